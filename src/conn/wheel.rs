//! Wheel: lazy deadlines, one per worker. A packet only moves the deadline inside its entry; the wheel
//! notices when the entry's slot comes up, and arms it again if its time has not come. Nothing is ever
//! searched for in it.

use std::sync::Arc;

use super::entry::Conn;
use crate::time::Instant;

/// Length of a slot: 2^27 ns, 134 ms. An entry leaves the table at most one slot after its deadline;
/// lookups see the deadline itself, so nobody is served by an entry that is due.
const SLOT_SHIFT: u32 = 27;
/// Slots of the wheel: 69 s. A later deadline is looked at every 69 s, which costs an idle connection
/// next to nothing, and lets go of closed ones soon.
const SLOTS: u64 = 512;
/// The capacity a drained slot keeps for the next round; more is given back.
const SLOT_KEEP: usize = 256;

/// One worker's deadlines.
#[derive(Debug)]
pub struct Wheel {
    slots: Vec<Vec<Arc<Conn>>>,
    /// The slot that comes up next; all before it are done.
    tick: u64,
    len: usize,
}

/// What the wheel found when a slot came up.
#[derive(Debug)]
pub enum Due {
    /// Its time is up: take it out of the table, or give it more time and arm it again.
    Expired(Arc<Conn>),
    /// Every slot up to now is done.
    Nothing,
    /// The bound of this breath is reached; go on in the next one.
    Later,
}

/// The tick in which an entry with this deadline is surely due.
fn tick_behind(deadline: Instant) -> u64 {
    (deadline.as_nanos() >> SLOT_SHIFT) + 1
}

impl Wheel {
    /// A wheel that starts turning at `now`.
    pub fn new(now: Instant) -> Wheel {
        let slots = (0..SLOTS).map(|_| Vec::new()).collect();
        Wheel {
            slots,
            tick: now.as_nanos() >> SLOT_SHIFT,
            len: 0,
        }
    }

    /// The slot that comes up next, counted since the start of time.
    pub fn tick(&self) -> u64 {
        self.tick
    }

    /// Entries it knows, counting twice those that were armed twice.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Does it know none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Must the entry be armed anew? Only if its deadline is now earlier than the slot that knows it.
    pub fn must_arm(conn: &Conn) -> bool {
        let due = tick_behind(conn.deadline()) as u32;
        (due.wrapping_sub(conn.armed()) as i32) < 0
    }

    /// Puts the entry into the slot behind its deadline, or as far ahead as the wheel reaches.
    pub fn arm(&mut self, conn: &Arc<Conn>) {
        self.arm_from(conn, self.tick);
    }

    fn arm_from(&mut self, conn: &Arc<Conn>, first: u64) {
        let tick = tick_behind(conn.deadline()).clamp(first, self.tick + SLOTS - 1);
        conn.set_armed(tick as u32);
        self.slots[(tick % SLOTS) as usize].push(Arc::clone(conn));
        self.len += 1;
    }

    /// Looks at the entries whose slots have come up by `now`, until one has expired; spends one of
    /// `pops` for each entry looked at. Call it until it says `Nothing` or `Later`.
    pub fn turn(&mut self, now: Instant, pops: &mut u32) -> Due {
        let goal = now.as_nanos() >> SLOT_SHIFT;
        // After a long sleep one round over all slots sees everything.
        self.tick = self.tick.max((goal + 1).saturating_sub(SLOTS));
        while self.tick <= goal {
            if *pops == 0 {
                return Due::Later;
            }
            let slot = (self.tick % SLOTS) as usize;
            let Some(conn) = self.slots[slot].pop() else {
                self.slots[slot].shrink_to(SLOT_KEEP);
                self.tick += 1;
                continue;
            };
            *pops -= 1;
            self.len -= 1;
            // An entry armed anew for an earlier slot is known there; this one is left over.
            let left_over = u64::from(conn.armed()) % SLOTS != slot as u64;
            if conn.is_gone() || left_over {
                continue;
            }
            if conn.is_due(now) {
                return Due::Expired(conn);
            }
            self.arm_from(&conn, self.tick + 1);
        }
        Due::Nothing
    }

    /// When `turn` should be called next; `None` while it knows nobody.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.len != 0).then_some(Instant::from_nanos(self.tick << SLOT_SHIFT))
    }
}
