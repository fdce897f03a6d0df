//! Floor C: the world's interfaces behind `wire::nic::{Rx, Tx}`. `open` gives the two halves of an
//! interface to one worker; `steer` spreads frames over workers; `quiet` keeps the kernel's own stack
//! off our frames. Nothing in here knows a virtual service or a connection.

mod cut;
mod error;
mod local_link;
mod netlink;
mod packet_mmsg;
mod packet_ring;
mod packet_socket;
mod packet_tx;
pub mod pcap;
mod preflight;
mod quiet;
mod quiet_nft;
mod quiet_tc;
pub mod slice;
pub mod steer;
mod sys;
mod tun;
mod wait;

#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::wire::{Mac, Rx, Tx};

pub use error::{OpenError, OpenErrorKind};
pub use local_link::{KernelHoldings, KernelSource, LOCAL_DEVICE, LocalLink};
pub use preflight::{Severity, Warning, preflight};
pub use quiet::{KeepOff, QUIET_ADDRESSES_MAX, Quiet, QuietError, QuietPort, QuietRules};
pub use steer::Side;
pub use wait::{EventFd, Waiter, wait};

/// How frames are taken from and given to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// AF_PACKET with a receive ring; the default.
    #[default]
    Packet,
    /// AF_PACKET with recvmmsg and sendmmsg; the reference in tests.
    Mmsg,
    /// A TUN device, made by opening it; frames begin with IP.
    Tun,
}

impl Backend {
    /// Every backend, in the order of their words.
    pub const ALL: [Backend; 3] = [Backend::Packet, Backend::Mmsg, Backend::Tun];

    /// The word people type.
    pub const fn word(self) -> &'static str {
        match self {
            Backend::Packet => "packet",
            Backend::Mmsg => "mmsg",
            Backend::Tun => "tun",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for Backend {
    type Err = String;
    fn from_str(text: &str) -> Result<Backend, String> {
        let found = Backend::ALL
            .into_iter()
            .find(|backend| backend.word() == text);
        found.ok_or_else(|| format!("`{text}` is not one of: packet, mmsg, tun"))
    }
}

/// Frames taken from one interface in one breath at most, if the options do not say less.
pub const BATCH_FRAMES_MAX: usize = 64;

/// Slots of a receive ring, 2 KiB each: 16 MiB, or 13 ms of frames at the 0.6 Mpps one worker does.
pub const RING_SLOTS: usize = 8192;

/// Slots of the smallest ring: a batch must not meet its own first slot again.
pub const RING_SLOTS_MIN: usize = BATCH_FRAMES_MAX;

/// Slots of the largest ring that may be asked for: 512 MiB.
pub const RING_SLOTS_MAX: usize = 1 << 18;

/// Socket buffer in bytes, each way. Without the right to exceed `net.core.rmem_max` (wmem_max) the
/// kernel gives less; `preflight` says so.
pub const SOCKET_BUFFER_BYTES: usize = 32 << 20;

/// What to open, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// Interface name.
    pub interface: String,
    /// A hint for the program that spreads frames over workers.
    pub side: Side,
    /// Which worker this is for, from 0. With several workers, open in this order.
    pub worker: usize,
    /// How many workers there are.
    pub workers: usize,
    /// Fanout group: the same for all workers of one interface. `None` makes one out of the process
    /// number and the interface, so two daemons do not meet.
    pub fanout_group: Option<u16>,
    /// Take frames for other machines' MAC addresses too.
    pub foreign_macs: bool,
    /// Slots of the receive ring (`Backend::Packet`): `RING_SLOTS_MIN` to `RING_SLOTS_MAX`.
    pub ring_slots: usize,
    /// Receive buffer of the socket in bytes.
    pub receive_buffer_bytes: usize,
    /// Send buffer of the socket in bytes.
    pub send_buffer_bytes: usize,
    /// Frames that one `fill` takes at most; 1 to `BATCH_FRAMES_MAX`.
    pub batch_frames_max: usize,
    /// `Backend::Tun`: one plain queue without offloads, as every kernel and TUN library has it.
    pub plain_tun: bool,
    /// `Backend::Tun`: frames begin with Ethernet (TAP).
    pub ethernet: bool,
}

impl OpenOptions {
    /// For a single worker, with default sizes.
    pub fn new(interface: impl Into<String>, side: Side) -> OpenOptions {
        OpenOptions {
            interface: interface.into(),
            side,
            worker: 0,
            workers: 1,
            fanout_group: None,
            foreign_macs: false,
            ring_slots: RING_SLOTS,
            receive_buffer_bytes: SOCKET_BUFFER_BYTES,
            send_buffer_bytes: SOCKET_BUFFER_BYTES,
            batch_frames_max: BATCH_FRAMES_MAX,
            plain_tun: false,
            ethernet: false,
        }
    }

    fn check(&self) -> Result<(), OpenError> {
        let bad = |what: String| Err(OpenError::new(OpenErrorKind::BadOption, &what, ""));
        if !(1..=BATCH_FRAMES_MAX).contains(&self.batch_frames_max) {
            return bad(format!(
                "batch_frames_max is {}, which is not 1 to {BATCH_FRAMES_MAX}",
                self.batch_frames_max
            ));
        }
        if !(RING_SLOTS_MIN..=RING_SLOTS_MAX).contains(&self.ring_slots) {
            return bad(format!(
                "ring_slots is {}, which is not {RING_SLOTS_MIN} to {RING_SLOTS_MAX}",
                self.ring_slots
            ));
        }
        if self.worker >= self.workers {
            return bad(format!(
                "worker {} of {} does not exist",
                self.worker, self.workers
            ));
        }
        Ok(())
    }
}

/// The two halves of an interface, for one worker.
pub type Halves = (Box<dyn Rx>, Box<dyn Tx>);

/// Opens an interface.
///
/// # Errors
/// `OpenError` says what was being done, with what, and what to try.
pub fn open(backend: Backend, options: &OpenOptions) -> Result<Halves, OpenError> {
    options.check()?;
    match backend {
        Backend::Mmsg => packet_mmsg::open(options),
        Backend::Packet => packet_ring::open(options),
        Backend::Tun => tun::open(options),
    }
}

/// An interface of this machine (of the network namespace of this thread).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its index.
    pub index: u32,
    /// Its MAC address; zero where it has none.
    pub mac: Mac,
    /// Set up by an administrator.
    pub up: bool,
    /// The loopback.
    pub loopback: bool,
    /// Addresses the kernel holds on it, with their prefix lengths.
    pub addresses: Vec<(IpAddr, u8)>,
}

/// The interfaces of this machine, but for the one by which we reach its kernel: what that holds there is
/// kept from everybody else.
pub fn interfaces() -> Vec<Interface> {
    let mut found = all_interfaces();
    found.retain(|interface| interface.name != LOCAL_DEVICE);
    found
}

fn all_interfaces() -> Vec<Interface> {
    let mut found: Vec<Interface> = pnet::datalink::interfaces()
        .into_iter()
        .map(|interface| Interface {
            index: interface.index,
            mac: Mac(interface
                .mac
                .map_or([0; 6], |m| [m.0, m.1, m.2, m.3, m.4, m.5])),
            up: interface.is_up(),
            loopback: interface.is_loopback(),
            addresses: interface
                .ips
                .iter()
                .map(|network| (network.ip(), network.prefix()))
                .collect(),
            name: interface.name,
        })
        .collect();
    found.sort_by_key(|interface| interface.index);
    found
}
