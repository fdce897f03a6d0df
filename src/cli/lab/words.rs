//! The words of `ulvs lab` that start a network, and what they mean for it.

use clap::ValueEnum;

use crate::lab::decap::GUE_PORT;
use crate::lab::topology::Path;
use crate::lvs::{Tunnel, TunnelChecksum};

/// Most requests of one run.
const REQUESTS_MAX: u64 = 10_000_000;

#[derive(Clone, clap::Args)]
pub(super) struct Run {
    /// How many requests the client sends, each on a connection of its own
    #[arg(long, default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=REQUESTS_MAX))]
    pub requests: u64,
    /// Leave it up and say how to go on
    #[arg(long)]
    pub keep: bool,
    /// One JSON document instead of text
    #[arg(long)]
    pub json: bool,
    /// Name of the lab; else nat, nat-2 and so on
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct Nat {
    #[command(flatten)]
    pub run: Run,
    /// How frames come in: AF_PACKET with a ring, AF_PACKET with recvmmsg, or a TUN device
    #[arg(long, value_enum, default_value_t = Nic::Packet)]
    pub nic: Nic,
    /// Threads of the director that carry frames
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// Scheduler of the virtual service
    #[arg(long, default_value = "wrr")]
    pub scheduler: String,
    /// A bound of the director: conn_entries_max=20000, or another of [limits]; may be repeated
    #[arg(long = "limit", value_name = "NAME=N", value_parser = limit)]
    pub limits: Vec<(String, u64)>,
    /// The director's own programs can be real servers, too
    #[arg(long)]
    pub local_node: bool,
}

fn limit(text: &str) -> Result<(String, u64), String> {
    let of_name = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
    let known = |name: &str| !name.is_empty() && name.bytes().all(of_name);
    let parts = text.split_once('=').filter(|(name, _)| known(name));
    let limit = parts.and_then(|(name, n)| Some((name.to_string(), n.parse().ok()?)));
    limit.ok_or_else(|| "a name and a number: conn_entries_max=20000".to_string())
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
pub(super) enum Nic {
    Packet,
    Mmsg,
    Tun,
}

impl Nic {
    pub const fn name(self) -> &'static str {
        match self {
            Nic::Packet => "packet",
            Nic::Mmsg => "mmsg",
            Nic::Tun => "tun",
        }
    }
}

impl Nat {
    /// How frames get to ulvs.
    pub const fn path(&self) -> Path {
        match self.nic {
            Nic::Tun => Path::Tun,
            Nic::Packet | Nic::Mmsg => Path::Frames,
        }
    }
}

/// A lab in which the director must see frames.
#[derive(clap::Args)]
pub(super) struct Past {
    #[command(flatten)]
    pub run: Run,
    /// How frames come in: AF_PACKET with a ring or with recvmmsg
    #[arg(long, value_enum, default_value_t = Frames::Packet)]
    nic: Frames,
    /// Threads of the director that carry frames
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Scheduler of the virtual service
    #[arg(long, default_value = "wrr")]
    scheduler: String,
}

/// The back-ends that have MAC addresses.
#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Frames {
    Packet,
    Mmsg,
}

impl Past {
    /// The same words where a TUN device would do, too.
    pub fn nat(&self) -> Nat {
        Nat {
            run: self.run.clone(),
            nic: match self.nic {
                Frames::Packet => Nic::Packet,
                Frames::Mmsg => Nic::Mmsg,
            },
            workers: self.workers,
            scheduler: self.scheduler.clone(),
            limits: Vec::new(),
            local_node: false,
        }
    }
}

#[derive(clap::Args)]
pub(super) struct Tun {
    #[command(flatten)]
    pub past: Past,
    /// What packets are wrapped in
    #[arg(long = "type", value_enum, default_value_t = Kind::Ipip)]
    kind: Kind,
    /// With a checksum (gue, gre)
    #[arg(long)]
    csum: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Kind {
    Ipip,
    Gue,
    Gre,
}

impl Tun {
    /// What packets are wrapped in.
    pub const fn tunnel(&self) -> Tunnel {
        let checksum = if self.csum {
            TunnelChecksum::Full
        } else {
            TunnelChecksum::No
        };
        match self.kind {
            Kind::Ipip => Tunnel::Ipip,
            Kind::Gue => Tunnel::Gue {
                port: GUE_PORT,
                checksum,
            },
            Kind::Gre => Tunnel::Gre { checksum },
        }
    }
}
