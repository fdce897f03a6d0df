//! Neighbours: who has which MAC address. We answer ARP for our VIPs and our own addresses, learn from
//! every question and answer we hear, and ask when we need somebody (RFC 826; the times are those of
//! Linux, `neighbour.c`, rounded).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use crate::lvs::tuple::{PackedAddress, pack};
use crate::time::{Duration, Instant};
use crate::wire::Mac;

/// How long an answer is believed without a question.
const FRESH: Duration = Duration::from_secs(30);
/// How long an answer is used at all; meanwhile questions go out.
const USABLE: Duration = Duration::from_secs(60);
/// Time between two questions about one address. So long nobody takes its place either, or more
/// neighbours than fit would push each other out, and each would be asked for again at once.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What all workers know of their neighbours.
#[derive(Debug)]
pub struct Neighbours {
    known: Mutex<Table>,
    generation: AtomicU64,
    entries_max: usize,
}

#[derive(Debug, Default)]
struct Table {
    known: BTreeMap<(usize, IpAddr), Known>,
    /// Until then nobody may be forgotten, so nobody need be looked for.
    crowded_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    mac: Option<Mac>,
    learned: Instant,
    asked: Option<Instant>,
    fixed: bool,
}

/// What is known of one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its MAC address, if it ever told.
    pub mac: Option<Mac>,
    /// Somebody should ask it now.
    pub ask: bool,
    /// Until when this answer needs no second look.
    pub fresh_until: Instant,
}

impl Neighbours {
    /// Nobody is known yet; at most `entries_max` will be.
    pub fn new(entries_max: usize) -> Neighbours {
        Neighbours {
            known: Mutex::new(Table::default()),
            generation: AtomicU64::new(0),
            entries_max: entries_max.max(1),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // A worker that panicked while holding the lock left a whole entry or none.
        self.known
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Changes whenever a MAC address was learned or changed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Relaxed)
    }

    /// `address` on `port` is at `mac`. Learned only if it was known or asked for, unless `welcome`:
    /// strangers that shout do not fill the table.
    pub fn learn(&self, port: usize, address: IpAddr, mac: Mac, welcome: bool, now: Instant) {
        if mac.is_group() || mac == Mac::default() || address.is_unspecified() {
            return;
        }
        let mut table = self.lock();
        let here = table.known.get(&(port, address)).copied();
        if here.is_none() && !welcome || here.is_some_and(|known| known.fixed) {
            return;
        }
        if here.is_none() && !table.make_room(self.entries_max, now) {
            return;
        }
        table.known.insert(
            (port, address),
            Known {
                mac: Some(mac),
                learned: now,
                asked: None,
                fixed: false,
            },
        );
        if here.and_then(|known| known.mac) != Some(mac) {
            self.generation.fetch_add(1, Relaxed);
        }
    }

    /// `address` on `port` is at `mac`, for ever: somebody configured it.
    pub fn fix(&self, port: usize, address: IpAddr, mac: Mac, now: Instant) {
        let entry = Known {
            mac: Some(mac),
            learned: now,
            asked: None,
            fixed: true,
        };
        self.lock().known.insert((port, address), entry);
        self.generation.fetch_add(1, Relaxed);
    }

    /// What is known of `address` on `port`. If it says `ask`, the caller asks, and nobody else within
    /// the next second. Where there is no room for one more nobody asks yet.
    pub fn look_up(&self, port: usize, address: IpAddr, now: Instant) -> Answer {
        let mut table = self.lock();
        let stranger = !table.known.contains_key(&(port, address));
        if stranger && !table.make_room(self.entries_max, now) {
            return Answer {
                mac: None,
                ask: false,
                fresh_until: now,
            };
        }
        let unknown = Known {
            mac: None,
            learned: now,
            asked: None,
            fixed: false,
        };
        let entry = table.known.entry((port, address)).or_insert(unknown);
        if entry.fixed {
            return Answer {
                mac: entry.mac,
                ask: false,
                fresh_until: now + FRESH,
            };
        }
        let age = now - entry.learned;
        if entry.mac.is_some() && age < FRESH {
            return Answer {
                mac: entry.mac,
                ask: false,
                fresh_until: entry.learned + FRESH,
            };
        }
        if age >= USABLE {
            entry.mac = None;
        }
        let ask = entry.asked.is_none_or(|asked| now - asked >= ASK_AGAIN);
        if ask {
            entry.asked = Some(now);
        }
        Answer {
            mac: entry.mac,
            ask,
            fresh_until: now + ASK_AGAIN,
        }
    }

    /// Every neighbour that has told its MAC address: port, address, MAC.
    pub fn list(&self) -> Vec<(usize, IpAddr, Mac)> {
        let table = self.lock();
        let told = |((port, address), known): (&(usize, IpAddr), &Known)| {
            known.mac.map(|mac| (*port, *address, mac))
        };
        table.known.iter().filter_map(told).collect()
    }
}

impl Table {
    /// Makes room for one more, if there is none: whoever never answered goes first, then the oldest.
    /// Says if there is room now.
    fn make_room(&mut self, entries_max: usize, now: Instant) -> bool {
        if self.known.len() < entries_max {
            return true;
        }
        if self.crowded_until.is_some_and(|until| now < until) {
            return false;
        }
        let others = || self.known.iter().filter(|(_, known)| !known.fixed);
        let idle = others().filter(|(_, known)| now - known.touched() >= ASK_AGAIN);
        let goes = idle.min_by_key(|(_, known)| (known.mac.is_some(), known.touched()));
        let Some(key) = goes.map(|(key, _)| *key) else {
            let oldest = others().map(|(_, known)| known.touched()).min();
            self.crowded_until = oldest.map(|touched| touched + ASK_AGAIN);
            return false;
        };
        self.known.remove(&key);
        true
    }
}

impl Known {
    /// When it was last learned or asked for.
    fn touched(&self) -> Instant {
        self.asked
            .map_or(self.learned, |asked| asked.max(self.learned))
    }
}

/// Neighbours of one set of the memory; a fifth takes the place of the first.
const WAYS: usize = 4;

/// One worker's memory of look-ups, so that the packet path takes no lock. Four ways to a set: a fifth
/// neighbour of a set pushes one out, which is then looked up again.
#[derive(Debug)]
pub struct NeighbourCache {
    sets: Vec<[Remembered; WAYS]>,
    next: usize,
    generation: u64,
}

#[derive(Clone, Copy, Debug)]
struct Remembered {
    address: PackedAddress,
    port: u32,
    mac: Mac,
    until: Instant,
}

const NOBODY: Remembered = Remembered {
    address: [0; 2],
    port: u32::MAX,
    mac: Mac([0; 6]),
    until: Instant::ZERO,
};

impl NeighbourCache {
    /// An empty memory of about `entries_max` neighbours.
    pub fn new(entries_max: usize) -> NeighbourCache {
        let sets = (entries_max / WAYS).max(1).next_power_of_two();
        NeighbourCache {
            sets: vec![[NOBODY; WAYS]; sets],
            next: 0,
            generation: 0,
        }
    }

    fn set_of(&self, address: PackedAddress) -> usize {
        let mixed = (address[0] ^ address[1]).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as usize & (self.sets.len() - 1)
    }

    /// The MAC address of `address` on `port`, if it is known and fresh.
    #[inline]
    pub fn get(&self, port: usize, address: IpAddr, now: Instant) -> Option<Mac> {
        let address = pack(address);
        let set = &self.sets[self.set_of(address)];
        let wanted = |way: &&Remembered| way.address == address && way.port == port as u32;
        set.iter()
            .find(wanted)
            .filter(|way| now < way.until)
            .map(|way| way.mac)
    }

    /// Remembers an answer.
    pub fn put(&mut self, port: usize, address: IpAddr, answer: &Answer) {
        let Some(mac) = answer.mac else { return };
        let (address, port) = (pack(address), port as u32);
        let set = self.set_of(address);
        let ways = &mut self.sets[set];
        let mine = ways
            .iter()
            .position(|way| way.address == address && way.port == port);
        let free = || ways.iter().position(|way| way.port == u32::MAX);
        let at = mine.or_else(free).unwrap_or(self.next % WAYS);
        self.next = self.next.wrapping_add(1);
        ways[at] = Remembered {
            address,
            port,
            mac,
            until: answer.fresh_until,
        };
    }

    /// Forgets everything if somebody learned something meanwhile; says if so.
    pub fn refresh(&mut self, neighbours: &Neighbours) -> bool {
        let generation = neighbours.generation();
        let changed = generation != self.generation;
        if changed {
            self.generation = generation;
            self.sets.fill([NOBODY; WAYS]);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 9]);

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn one_question_a_second_until_the_answer() {
        let neighbours = Neighbours::new(8);
        let who: IpAddr = [10, 0, 0, 9].into();
        assert!(neighbours.look_up(0, who, at(0)).ask);
        assert!(!neighbours.look_up(0, who, at(0)).ask);
        assert!(neighbours.look_up(0, who, at(1)).ask);
        neighbours.learn(0, who, MAC, false, at(1));
        let answer = neighbours.look_up(0, who, at(2));
        assert_eq!((answer.mac, answer.ask), (Some(MAC), false));
    }

    #[test]
    fn an_old_answer_is_used_while_asking_and_then_dropped() {
        let neighbours = Neighbours::new(8);
        let who: IpAddr = [10, 0, 0, 9].into();
        neighbours.learn(0, who, MAC, true, at(0));
        let answer = neighbours.look_up(0, who, at(40));
        assert_eq!((answer.mac, answer.ask), (Some(MAC), true));
        assert_eq!(neighbours.look_up(0, who, at(61)).mac, None);
    }

    #[test]
    fn strangers_do_not_fill_the_table() {
        let neighbours = Neighbours::new(2);
        for last in 0..10 {
            neighbours.learn(0, [10, 0, 0, last].into(), MAC, false, at(0));
        }
        assert!(neighbours.list().is_empty());
        for last in 1..10 {
            neighbours.learn(0, [10, 0, 0, last].into(), MAC, true, at(u64::from(last)));
        }
        assert_eq!(neighbours.list().len(), 2);
    }
    #[test]
    fn more_than_fit_do_not_push_each_other_out() {
        let neighbours = Neighbours::new(4);
        let ask = |now| {
            let all = (1..=20_u8).map(|last| neighbours.look_up(0, [10, 0, 0, last].into(), now));
            all.filter(|answer| answer.ask).count()
        };
        // Everybody is wanted again and again, as by frames that wait.
        assert_eq!((0..100).map(|_| ask(at(5))).sum::<usize>(), 4);
        neighbours.learn(0, [10, 0, 0, 1].into(), MAC, false, at(5));
        assert_eq!(neighbours.list().len(), 1, "the answer is heard");
        let half = at(5) + Duration::from_millis(500);
        assert_eq!(ask(half), 0);
        assert_eq!(
            (0..100).map(|_| ask(at(6))).sum::<usize>(),
            4,
            "others' turn"
        );
    }
}
