//! Guard: sets the level of the defences once a second by the room left in the connection table, and
//! drops entries while `drop_entry` is in force (`defense_work_handler`, `ip_vs_random_dropentry`).

use std::sync::Arc;

use crate::conn::ConnTable;
use crate::conn::defence::Reaper;
use crate::lvs::Tunables;
use crate::rng::Rng;
use crate::time::{Duration, Instant};

/// Time between two looks at the memory (`DEFENSE_TIMER_PERIOD`).
const PERIOD: Duration = Duration::from_secs(1);
/// Of so many parts of the table one, chosen at random, is searched for entries to drop.
const PARTS: u64 = 32;

/// Keeps the defences.
#[derive(Debug)]
pub(super) struct Guard {
    table: Arc<ConnTable>,
    due: Instant,
    reaper: Reaper,
    rng: Rng,
}

impl Guard {
    /// A guard over this table.
    pub fn new(table: Arc<ConnTable>, now: Instant) -> Guard {
        let rng = Rng::new(table.seed());
        Guard {
            table,
            due: now + PERIOD,
            reaper: Reaper::default(),
            rng,
        }
    }

    /// When to call `handle_timeout` next.
    pub fn poll_timeout(&self) -> Instant {
        self.due
    }

    /// Sets the level now: somebody changed a tunable.
    pub fn update(&self, tunables: &mut Tunables) {
        self.table
            .defences()
            .update(tunables, self.table.pages_left());
    }

    /// Sets the level and drops entries, when it is time.
    pub fn handle_timeout(&mut self, tunables: &mut Tunables, now: Instant) {
        if now < self.due {
            return;
        }
        self.due = now + PERIOD;
        self.update(tunables);
        if self.table.defences().drops_entries() {
            self.reap(now);
        }
    }

    fn reap(&mut self, now: Instant) {
        let part = self.rng.below(PARTS);
        let mut doomed = Vec::new();
        self.table.for_each_in(part, PARTS, |conn| {
            if self.reaper.takes(conn, now) {
                doomed.push(Arc::clone(conn));
            }
        });
        for conn in doomed {
            self.table.remove(&conn);
        }
    }
}
