//! Real servers: the machines that do the work. The kernel calls one a *dest*.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering::Relaxed};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flow::Endpoint;
use super::method::{ForwardMethod, Tunnel};
use super::path::PathMtu;

/// A real server's share of new connections, 0..=2147483647; 0 is quiesced.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct Weight(pub i32);

/// Connection limits of a real server (active + inactive); 0 means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Thresholds {
    /// At this many connections the server is overloaded.
    pub upper: u32,
    /// Below this many it is no longer; 0 stands for three quarters of `upper`.
    pub lower: u32,
}

impl Thresholds {
    /// The lower threshold in force: ¾ of the upper one unless set (`ip_vs_dest_totalconns` users in
    /// `ip_vs_conn.c`).
    pub const fn lower_in_force(self) -> u32 {
        if self.lower != 0 {
            self.lower
        } else {
            self.upper - self.upper / 4
        }
    }
}

/// What names a real server within its service.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct RealKey(pub Endpoint);

impl fmt::Display for RealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A real server as a scheduler sees it: what is configured, and a handle on what lives. It is
/// replaced whole when the operator edits it; `live` is carried over.
#[derive(Clone, Debug)]
pub struct RealServer {
    /// Address and port; port 0 keeps the packet's own.
    pub key: RealKey,
    /// Share of new connections.
    pub weight: Weight,
    /// The last weight that was not 0, which `mh` builds its table from.
    pub last_weight: Weight,
    /// How packets get there.
    pub method: ForwardMethod,
    /// Connection limits.
    pub thresholds: Thresholds,
    /// Counters and flags, shared by all snapshots and connections.
    pub live: Arc<RealLive>,
}

impl RealServer {
    /// Connections counted active: those that do work.
    pub fn active(&self) -> u32 {
        now_counted(&self.live.active)
    }

    /// Connections counted inactive: all others.
    pub fn inactive(&self) -> u32 {
        now_counted(&self.live.inactive)
    }

    /// Has it reached its upper threshold?
    pub fn overloaded(&self) -> bool {
        self.live.overloaded.load(Relaxed)
    }

    /// May a scheduler choose it: weight above 0 and not overloaded.
    pub fn usable(&self) -> bool {
        self.weight.0 > 0 && !self.overloaded()
    }
}

/// The living part of a real server: what connections and workers change. Shared by every snapshot
/// that holds the server, by its connections, and, after a deletion, by the trash it may be revived
/// from.
#[derive(Debug)]
pub struct RealLive {
    /// A number that no other real server of this run has; schedulers remember servers by it.
    pub id: u32,
    /// Address and port.
    pub endpoint: Endpoint,
    /// Connections counted active.
    pub active: AtomicU32,
    /// Connections counted inactive.
    pub inactive: AtomicU32,
    /// Connection templates that point here.
    pub persistent: AtomicU32,
    /// At or above its upper threshold.
    pub overloaded: AtomicBool,
    /// False once deleted: packets of its connections are dropped.
    pub available: AtomicBool,
    /// Copies of the configured limits and weight, for connections, which see no snapshot.
    pub upper: AtomicU32,
    /// See `upper`.
    pub lower: AtomicU32,
    /// See `upper`.
    pub weight: AtomicI32,
    /// What LVS-TUN wraps packets in, packed; see `RealLive::tunnel`.
    pub tunnel: AtomicU32,
    /// Its address is one of the director's own.
    pub local: AtomicBool,
    /// How long a packet may be on the way there.
    pub path: PathMtu,
    /// Packets and bytes, one line per worker, added up when somebody asks.
    pub stats: Vec<Stats>,
}

impl RealLive {
    /// A server nobody has used yet, counted by `workers` workers (at least one).
    pub fn new(id: u32, endpoint: Endpoint, workers: usize) -> RealLive {
        RealLive {
            id,
            endpoint,
            active: AtomicU32::new(0),
            inactive: AtomicU32::new(0),
            persistent: AtomicU32::new(0),
            overloaded: AtomicBool::new(false),
            available: AtomicBool::new(true),
            upper: AtomicU32::new(0),
            lower: AtomicU32::new(0),
            weight: AtomicI32::new(0),
            tunnel: AtomicU32::new(Tunnel::Ipip.pack()),
            local: AtomicBool::new(false),
            path: PathMtu::default(),
            stats: Stats::lines(workers),
        }
    }

    /// The server's address.
    pub fn address(&self) -> IpAddr {
        self.endpoint.address
    }

    /// What LVS-TUN wraps packets to it in, as the operator said last.
    pub fn tunnel(&self) -> Tunnel {
        Tunnel::unpack(self.tunnel.load(Relaxed))
    }

    /// Is its address one of the director's own?
    pub fn is_local(&self) -> bool {
        self.local.load(Relaxed)
    }

    /// The thresholds in force.
    pub fn thresholds(&self) -> Thresholds {
        Thresholds {
            upper: self.upper.load(Relaxed),
            lower: self.lower.load(Relaxed),
        }
    }

    /// Active and inactive connections together (templates do not count).
    pub fn total(&self) -> u32 {
        now_counted(&self.active).saturating_add(now_counted(&self.inactive))
    }

    /// A connection was bound: overloaded from the upper threshold on (`ip_vs_bind_dest`).
    pub fn mark_if_overloaded(&self) {
        let upper = self.upper.load(Relaxed);
        if upper != 0 && self.total() >= upper {
            self.overloaded.store(true, Relaxed);
        }
    }

    /// A connection was unbound: no longer overloaded below the lower threshold
    /// (`ip_vs_unbind_dest`, `ip_vs_dest_totalconns`).
    pub fn clear_if_recovered(&self) {
        let limits = self.thresholds();
        if limits.upper == 0 || self.total() < limits.lower_in_force() {
            self.overloaded.store(false, Relaxed);
        }
    }

    /// The operator edited the limits. As recorded from Linux 6.1: an upper limit of 0 or a higher one
    /// than before clears the flag; otherwise an edit leaves it as it is, and never sets it.
    pub fn set_thresholds(&self, limits: Thresholds) {
        let old = self.upper.swap(limits.upper, Relaxed);
        self.lower.store(limits.lower, Relaxed);
        if limits.upper == 0 || limits.upper > old {
            self.overloaded.store(false, Relaxed);
        }
    }
}

/// A count that may be below zero for a moment: when two workers move one connection to and fro, the
/// second may count it out before the first has counted it in. Nobody shall take that for a
/// huge one (the kernel's counts are signed).
fn now_counted(count: &AtomicU32) -> u32 {
    count.load(Relaxed).cast_signed().max(0).unsigned_abs()
}

/// Five counters of one worker about one server or service. Only that worker writes, so no locked
/// instruction is needed; the cache line is its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Stats {
    /// Connections opened.
    pub conns: AtomicU64,
    /// Packets from clients.
    pub in_packets: AtomicU64,
    /// Packets to clients.
    pub out_packets: AtomicU64,
    /// Bytes of IP packets from clients.
    pub in_bytes: AtomicU64,
    /// Bytes of IP packets to clients.
    pub out_bytes: AtomicU64,
}

impl Stats {
    /// One line for each of `workers` workers, at least one.
    pub fn lines(workers: usize) -> Vec<Stats> {
        (0..workers.max(1)).map(|_| Stats::default()).collect()
    }

    /// Adds to a counter that only this thread writes.
    pub fn bump(counter: &AtomicU64, by: u64) {
        counter.store(counter.load(Relaxed).wrapping_add(by), Relaxed);
    }

    /// One packet of `bytes` IP bytes from a client.
    pub fn count_in(&self, bytes: usize) {
        Stats::bump(&self.in_packets, 1);
        Stats::bump(&self.in_bytes, bytes as u64);
    }

    /// One packet of `bytes` IP bytes to a client.
    pub fn count_out(&self, bytes: usize) {
        Stats::bump(&self.out_packets, 1);
        Stats::bump(&self.out_bytes, bytes as u64);
    }

    /// The sum over all workers: conns, in packets, out packets, in bytes, out bytes.
    pub fn sum(lines: &[Stats]) -> [u64; 5] {
        lines.iter().fold([0; 5], |sum, line| {
            let here = [
                &line.conns,
                &line.in_packets,
                &line.out_packets,
                &line.in_bytes,
                &line.out_bytes,
            ];
            std::array::from_fn(|i| sum[i] + here[i].load(Relaxed))
        })
    }
}
