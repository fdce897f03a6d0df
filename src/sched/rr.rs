//! Round robin (`ip_vs_rr.c`): each server in its turn, whatever its weight and load.
//!
//! The search starts behind the server chosen last, goes once around the list and takes the first
//! usable server; the one chosen last is looked at last. When that server is deleted, its place is
//! taken by the one before it, so nobody loses a turn. New servers come to the head of the list and
//! get their turn after the end of the present lap.
//!
//! A story tells where the search began, who was passed over, and who was next in turn.

use super::{Change, PickContext, Place, Scheduler};
use crate::lvs::RealServer;

/// Remembers who was chosen last.
#[derive(Debug, Default)]
pub struct RoundRobin {
    /// The server chosen last; `None` stands before the head of the list.
    last: Option<Place>,
}

impl Scheduler for RoundRobin {
    fn name(&self) -> &'static str {
        "rr"
    }

    fn changed(&mut self, _reals: &[RealServer], change: Change) {
        match change {
            Change::Removed { id, before } if self.last.is_some_and(|last| last.id == id) => {
                self.last = before.map(Place::of_id);
            }
            Change::Removed { .. } | Change::Added | Change::Edited => {}
        }
    }

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let start = Place::behind(self.last, reals);
        context.remark(|| super::start_words(start, reals));
        for index in (start..reals.len()).chain(0..start) {
            let real = &reals[index];
            if real.usable() {
                context.because(|| "next in turn".to_string());
                self.last = Some(Place::of((index, real)));
                return Some(index);
            }
            context.note_unusable(index, real);
        }
        None
    }
}
