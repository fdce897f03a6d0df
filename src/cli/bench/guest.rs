//! What the harness starts inside the hosts of its labs: load and ends. Each prints lines that the
//! harness reads; outside a lab each refuses.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use super::socket;
use crate::bench::load::{self, Frames, SECONDS_MAX, say};
use crate::bench::talk;
use crate::lab::exec;
use crate::nic::Backend;

/// Who is started.
#[derive(Clone, Debug, clap::Subcommand)]
pub(super) enum Guest {
    /// Swallow and count streams and datagrams
    Ends,
    /// Send back what comes to a port
    Echo {
        /// The port
        port: u16,
    },
    /// Hand frames on between eth0 and eth1
    Forward {
        /// How frames are taken and given
        backend: Backend,
    },
    /// Fill TCP streams
    Bulk(BulkWords),
    /// Send UDP frames
    Frames(FramesWords),
    /// Ask and wait, or ask at a rate
    Talk(TalkWords),
    /// Hold connections until the input ends
    Hold {
        /// Whom to ask
        #[arg(value_parser = socket)]
        target: SocketAddr,
        /// How many
        #[arg(long)]
        connections: u16,
    },
}

/// `ulvs bench guest bulk`
#[derive(Clone, Debug, clap::Args)]
pub(super) struct BulkWords {
    /// Who swallows them
    #[arg(value_parser = socket)]
    target: SocketAddr,
    /// How many
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// For how long
    #[arg(long, default_value_t = SECONDS_MAX)]
    seconds: f64,
}

/// `ulvs bench guest frames`
#[derive(Clone, Debug, clap::Args)]
pub(super) struct FramesWords {
    /// Whom they are for
    target: SocketAddrV4,
    /// The neighbour who gets them
    #[arg(long)]
    via: Ipv4Addr,
    /// How many in a second; as many as go if left out
    #[arg(long)]
    per_second: Option<f64>,
    /// For how long
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// At most so many
    #[arg(long)]
    frames: Option<u64>,
    /// Different sources
    #[arg(long, default_value_t = 256)]
    flows: u32,
}

/// `ulvs bench guest talk`
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TalkWords {
    /// Whom to ask
    #[arg(value_parser = socket)]
    target: SocketAddr,
    /// On how many connections
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Questions in a second; the next one when the last is answered if left out
    #[arg(long)]
    per_second: Option<f64>,
    /// For how long
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

impl Guest {
    /// Does what it is there for.
    pub(super) fn run(&self) -> io::Result<()> {
        let inside = exec::inside()?;
        match self {
            Guest::Ends => load::ends(&inside),
            Guest::Echo { port } => load::echo(&inside, *port),
            Guest::Forward { backend } => load::forward(&inside, *backend),
            Guest::Bulk(words) => load::bulk(&inside, words.target, words.streams, words.seconds),
            Guest::Frames(words) => {
                let frames = Frames {
                    target: words.target,
                    via: words.via,
                    per_second: words.per_second,
                    seconds: words.seconds,
                    frames: words.frames,
                    flows: words.flows,
                };
                say(&serde_json::to_string(&frames.run(&inside)?)?)
            }
            Guest::Talk(words) => {
                let (target, connections) = (words.target, words.connections);
                let report = match words.per_second {
                    None => talk::in_turn(&inside, target, connections, words.seconds),
                    Some(rate) => talk::at_rate(&inside, target, connections, rate, words.seconds),
                };
                say(&serde_json::to_string(&report?)?)
            }
            Guest::Hold {
                target,
                connections,
            } => talk::hold(&inside, *target, usize::from(*connections)),
        }
    }
}
