//! Index: one worker's own way to its connections, in front of the shared table. Open addressing over
//! whole tuples, a slot for each direction that was seen; nobody else touches it, so nothing is
//! locked, and a batch's slots can be warmed before they are needed.
//!
//! It is a cache: whatever is missing is found in the table and put here. So it may forget at any
//! time. It grows without a pause: the next slots are made ready, some with each connection that is
//! remembered when it gets full, and the old ones are still searched while they move over, some in each breath.

use std::sync::Arc;

use super::direction::Direction;
use super::entry::Conn;
use crate::lvs::tuple::Tuple;

/// Slots at the start; 64 KiB.
const SLOTS_MIN: usize = 1 << 12;
/// A slot is searched for at most this far from its home. Beyond it the table is asked.
const PROBES_MAX: usize = 16;
/// Sweeps in which every slot is looked at once, to let go of entries that left the table: a minute of
/// them.
const SWEEPS: usize = 512;
/// Slots looked at in one sweep at the least.
const SWEEP_MIN: usize = 64;
/// Slots of the next size made ready with each connection remembered from `READY_FROM` on: all of
/// them when three quarters are in use. So a growth is no pause, which making a whole new table at once
/// would be: milliseconds for the fresh pages of a million slots.
const READY: usize = 64;
/// They are begun when so many of thirty-two slots are in use: late, since they hold memory.
const READY_FROM: usize = 23;
/// Old slots moved over in one breath after a growth: a hundred thousand breaths a second are had, so
/// even the largest index has moved before it can fill up again.
const MOVE: usize = 256;

#[derive(Clone, Debug, Default)]
struct Slot {
    /// The tuple's hash; its lowest bit is the direction.
    tag: u64,
    conn: Option<Arc<Conn>>,
}

/// One worker's own index.
#[derive(Debug)]
pub struct Index {
    slots: Vec<Slot>,
    used: usize,
    slots_max: usize,
    swept: usize,
    /// The slots of the next size as far as they are ready.
    next: Vec<Slot>,
    /// What has not moved yet since the last growth; it moves from the end. `old_mask` is its mask
    /// when it was whole.
    old: Vec<Slot>,
    old_mask: usize,
    /// Old slots that are all empty now.
    spent: Option<Spent>,
    remembers: bool,
}

/// Memory that an index needs no longer, for somebody with time to give it back: that takes milliseconds
/// for a large one.
#[derive(Clone, Debug)]
pub struct Spent(#[allow(dead_code, reason = "it is only held")] Vec<Slot>);

const OUT: u64 = 1;

fn tag_of(hash: u64, direction: Direction) -> u64 {
    hash & !OUT | u64::from(direction == Direction::Out)
}

/// The upper half of the hash: the table's shards use other bits of another hash.
fn home(hash: u64, mask: usize) -> usize {
    (hash >> 32) as usize & mask
}

/// Searches slots whose home is found with `mask`; those beyond the end have moved away.
fn find_in<'s>(
    slots: &'s [Slot],
    mask: usize,
    hash: u64,
    tuple: &Tuple,
) -> Option<(&'s Arc<Conn>, Direction)> {
    let home = home(hash, mask);
    for probe in 0..PROBES_MAX {
        let Some(slot) = slots.get((home + probe) & mask) else {
            continue;
        };
        let conn = slot.conn.as_ref()?;
        if (slot.tag ^ hash) & !OUT != 0 {
            continue;
        }
        let direction = if slot.tag & OUT != 0 {
            Direction::Out
        } else {
            Direction::In
        };
        if conn.has_tuple(direction, tuple) && !conn.is_gone() {
            return Some((conn, direction));
        }
    }
    None
}

impl Index {
    /// An index that grows to at most `slots_max` slots (rounded up to a power of two); 0 makes one
    /// that remembers nothing.
    pub fn new(slots_max: usize) -> Index {
        let remembers = slots_max != 0;
        let slots_max = slots_max.max(SLOTS_MIN).next_power_of_two();
        let slots = vec![Slot::default(); SLOTS_MIN];
        Index {
            slots,
            used: 0,
            slots_max,
            swept: 0,
            next: Vec::new(),
            old: Vec::new(),
            old_mask: 0,
            spent: None,
            remembers,
        }
    }

    fn home(&self, hash: u64) -> usize {
        home(hash, self.slots.len() - 1)
    }

    /// Loads the home slot of a hash, so that the misses of a batch overlap.
    pub fn warm(&self, hash: u64) -> u64 {
        self.slots[self.home(hash)].tag
    }

    /// Loads the entry that the hash leads to, be it at home or pushed further.
    pub fn warm_conn(&self, hash: u64) -> u64 {
        let (home, mask) = (self.home(hash), self.slots.len() - 1);
        for probe in 0..PROBES_MAX {
            let Slot { tag, conn } = &self.slots[(home + probe) & mask];
            let Some(conn) = conn else { break };
            if (tag ^ hash) & !OUT == 0 {
                return conn.warm();
            }
        }
        0
    }

    /// The connection of a packet and its direction.
    pub fn find(&self, hash: u64, tuple: &Tuple) -> Option<(&Arc<Conn>, Direction)> {
        let found = find_in(&self.slots, self.slots.len() - 1, hash, tuple);
        if found.is_none() && !self.old.is_empty() {
            return find_in(&self.old, self.old_mask, hash, tuple);
        }
        found
    }

    /// Remembers a connection under the tuple it was found by. A full neighbourhood forgets the home
    /// slot's entry.
    pub fn remember(&mut self, hash: u64, direction: Direction, conn: &Arc<Conn>) {
        if !self.remembers {
            return;
        }
        if self.used * 32 >= self.slots.len() * READY_FROM && self.slots.len() < self.slots_max {
            self.get_ready();
            if self.used * 4 >= self.slots.len() * 3 {
                self.grow();
            }
        }
        self.put(tag_of(hash, direction), Arc::clone(conn));
    }

    fn put(&mut self, tag: u64, conn: Arc<Conn>) {
        let (home, mask) = (self.home(tag), self.slots.len() - 1);
        let mut at = home;
        for probe in 0..PROBES_MAX {
            let here = (home + probe) & mask;
            let free = match &self.slots[here] {
                Slot { conn: None, .. } => true,
                Slot {
                    tag: other,
                    conn: Some(conn),
                } => *other == tag || conn.is_gone(),
            };
            if free {
                at = here;
                break;
            }
        }
        self.used += usize::from(self.slots[at].conn.is_none());
        self.slots[at] = Slot {
            tag,
            conn: Some(conn),
        };
    }

    /// Makes some of the next slots ready. Their memory is only touched here, step by step.
    fn get_ready(&mut self) {
        let wanted = self.slots.len() * 2;
        if self.next.capacity() == 0 {
            self.next = Vec::with_capacity(wanted);
        }
        let ready = self.next.len() + READY;
        self.next.resize(ready.min(wanted), Slot::default());
    }

    /// Twice the slots, once all of them are ready; until then a full neighbourhood forgets. What is
    /// still to move from the growth before is let go: it comes back from the table.
    fn grow(&mut self) {
        if self.next.len() != self.slots.len() * 2 {
            return;
        }
        let slots = std::mem::take(&mut self.next);
        self.old_mask = self.slots.len() - 1;
        self.old = std::mem::replace(&mut self.slots, slots);
        self.used = 0;
        self.swept = 0;
    }

    /// Moves some slots over after a growth: once a breath.
    pub fn settle(&mut self) {
        for _ in 0..MOVE.min(self.old.len()) {
            let Some(Slot { tag, conn }) = self.old.pop() else {
                break;
            };
            if let Some(conn) = conn.filter(|conn| !conn.is_gone()) {
                self.put(tag, conn);
            }
        }
        if self.old.is_empty() && self.old.capacity() != 0 {
            self.spent = Some(Spent(std::mem::take(&mut self.old)));
        }
    }

    /// What is needed no longer since the last growth, once.
    pub fn take_spent(&mut self) -> Option<Spent> {
        self.spent.take()
    }

    /// Lets go of some entries that left the table: once a tick of the wheel, since every entry looked
    /// at is a cache miss. An emptied slot may hide the ones probed behind it until they are found in
    /// the table again; it is a cache.
    pub fn sweep(&mut self) {
        if self.used == 0 {
            return;
        }
        for _ in 0..(self.slots.len() / SWEEPS).max(SWEEP_MIN) {
            let slot = &mut self.slots[self.swept];
            if slot.conn.as_ref().is_some_and(|conn| conn.is_gone()) {
                slot.conn = None;
                self.used -= 1;
            }
            self.swept = (self.swept + 1) & (self.slots.len() - 1);
        }
    }

    /// Slots in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Slots there are.
    #[cfg(test)]
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Slots of the next size that are ready.
    #[cfg(test)]
    pub fn ready(&self) -> usize {
        self.next.len()
    }

    /// Forgets a connection that has left the table, in every slot near the home of this hash. Holes
    /// do not end the search: where many leave at once there are many, and what is kept here keeps
    /// its memory.
    pub fn forget(&mut self, hash: u64, conn: &Arc<Conn>) {
        let (home, mask) = (self.home(hash), self.slots.len() - 1);
        for probe in 0..PROBES_MAX {
            let slot = &mut self.slots[(home + probe) & mask];
            if slot
                .conn
                .as_ref()
                .is_some_and(|other| Arc::ptr_eq(other, conn))
            {
                slot.conn = None;
                self.used -= 1;
            }
        }
    }
}
