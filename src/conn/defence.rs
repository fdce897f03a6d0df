//! Defences against overload (`update_defense_level`, `ip_vs_todrop`, `todrop_entry`). "Memory" is the
//! room left in the bounded table. The control plane sets the level once a second; the packet path
//! only reads it.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::Relaxed};

use super::entry::Conn;
use super::state::State;
use super::tcp::TcpState;
use crate::lvs::{Protocol, Tunables};
use crate::time::{Duration, Instant};

/// Entries of the table that count as one page of memory: 4096 bytes at 256 bytes an entry.
pub const ENTRIES_PER_PAGE: usize = 16;

/// An entry younger than this since its last packet is spared.
const SPARED: Duration = Duration::from_secs(60);
/// An entry that has seen more packets than this is spared.
const FEW_PACKETS: usize = 8;

/// What is in force right now; shared by all workers.
#[derive(Debug, Default)]
pub struct Defences {
    secure_tcp: AtomicBool,
    drop_entry: AtomicBool,
    drop_rate: AtomicI64,
    drop_counter: AtomicI64,
}

impl Defences {
    /// Is the wary TCP table in force?
    pub fn secure_tcp(&self) -> bool {
        self.secure_tcp.load(Relaxed)
    }

    /// Shall entries be dropped?
    pub fn drops_entries(&self) -> bool {
        self.drop_entry.load(Relaxed)
    }

    /// Shall this new connection be refused? One of every `drop_rate`, the first one first.
    pub fn refuses_new(&self) -> bool {
        let rate = self.drop_rate.load(Relaxed);
        if rate == 0 || self.drop_counter.fetch_sub(1, Relaxed) > 1 {
            return false;
        }
        self.drop_counter.store(rate, Relaxed);
        true
    }

    /// Sets the level by the memory that is left, in pages. Modes 1 and 2 are automatic: the kernel
    /// writes into the tunable which of the two is in force, and so do we.
    pub fn update(&self, tunables: &mut Tunables, available: i64) {
        let threshold = tunables.amemthresh;
        let scarce = available < threshold;
        automatic(&mut tunables.drop_entry, scarce);
        automatic(&mut tunables.drop_packet, scarce);
        automatic(&mut tunables.secure_tcp, scarce);
        self.drop_entry.store(tunables.drop_entry >= 2, Relaxed);
        self.secure_tcp.store(tunables.secure_tcp >= 2, Relaxed);
        match tunables.drop_packet {
            2 => {
                let rate = threshold / (threshold - available).max(1);
                self.drop_counter.store(rate, Relaxed);
                self.drop_rate.store(rate, Relaxed);
            }
            3 => self.drop_rate.store(tunables.am_droprate, Relaxed),
            _ => self.drop_rate.store(0, Relaxed),
        }
    }
}

fn automatic(mode: &mut i64, scarce: bool) {
    if matches!(*mode, 1 | 2) {
        *mode = if scarce { 2 } else { 1 };
    }
}

/// Chooses the entries that are dropped to make room. It counts, as the kernel does, so that of those
/// with k packets each k-th goes.
#[derive(Debug, Default)]
pub struct Reaper {
    counters: [u32; FEW_PACKETS + 1],
}

impl Reaper {
    /// Shall this entry go? Half-open ones do, idle ones with few packets do by turns; whoever
    /// controls others stays.
    pub fn takes(&mut self, conn: &Conn, now: Instant) -> bool {
        if conn.is_controlling() {
            return false;
        }
        if conn.is_template() {
            return !conn.is_assured();
        }
        let state = conn.state();
        match state.protocol() {
            Protocol::TCP => match TcpState::from_number(state.number()) {
                Some(TcpState::SynRecv | TcpState::SynAck) => true,
                Some(TcpState::Established) => self.idle(conn, now),
                _ => false,
            },
            Protocol::SCTP => match state.number() {
                1 | 2 => true,
                _ if state.is_active() => self.idle(conn, now),
                _ => false,
            },
            _ => self.idle(conn, now),
        }
    }

    fn idle(&mut self, conn: &Conn, now: Instant) -> bool {
        if conn.idle_for(now) < SPARED {
            return false;
        }
        let packets = conn.in_packets() as usize;
        if packets == 0 || packets > FEW_PACKETS {
            return false;
        }
        let counter = &mut self.counters[packets];
        if *counter > 1 {
            *counter -= 1;
            return false;
        }
        *counter = packets as u32;
        true
    }
}

/// Did the state become one in which a connection vouches for its template?
pub fn assures(state: State, answered: bool) -> bool {
    match state.protocol() {
        Protocol::UDP => answered,
        _ => state.is_active() && state.name() == "ESTABLISHED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tenth_new_connection_from_the_first_on() {
        let (defences, mut tunables) = (Defences::default(), Tunables::default());
        assert!(!(0..100).any(|_| defences.refuses_new()));
        tunables.drop_packet = 3;
        defences.update(&mut tunables, i64::MAX);
        let refused: Vec<usize> = (0..60).filter(|_| defences.refuses_new()).collect();
        assert_eq!(refused, [0, 10, 20, 30, 40, 50]);
    }

    #[test]
    fn automatics_follow_the_memory_and_say_so() {
        let (defences, mut tunables) = (Defences::default(), Tunables::default());
        (
            tunables.drop_entry,
            tunables.secure_tcp,
            tunables.drop_packet,
        ) = (1, 2, 1);
        defences.update(&mut tunables, 5000);
        assert_eq!((tunables.drop_entry, tunables.secure_tcp), (1, 1));
        assert!(!defences.drops_entries() && !defences.secure_tcp() && !defences.refuses_new());
        defences.update(&mut tunables, 512);
        assert_eq!(
            (
                tunables.drop_entry,
                tunables.secure_tcp,
                tunables.drop_packet
            ),
            (2, 2, 2)
        );
        assert!(defences.drops_entries() && defences.secure_tcp());
        let refused = (0..10).filter(|_| defences.refuses_new()).count();
        assert_eq!(refused, 5, "1024 / (1024 - 512) = 2");
    }
}
