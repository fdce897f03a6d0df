//! Overflow (`ip_vs_ovf.c`): the heaviest server has all until it is full, then the next heaviest.
//!
//! Here a weight is a number of connections. Looks at every usable server from the head of the list
//! whose active connections are not above its weight, and takes the one with the highest weight; of
//! equals the first. So a server overflows when it has one more than its weight. Inactive connections
//! do not count.
//!
//! A story tells each server's active connections against its weight: `3 active <= weight 5`.

use super::{Change, PickContext, Scheduler, heaviest};
use crate::lvs::RealServer;

/// Needs no memory: the servers' counters and weights are all it looks at.
#[derive(Debug)]
pub struct Overflow;

impl Scheduler for Overflow {
    fn name(&self) -> &'static str {
        "ovf"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        if context.notes.is_some() {
            note_room(reals, context);
        }
        let eligible = |real: &RealServer| real.usable() && has_room(real);
        heaviest(
            reals,
            context,
            eligible,
            "the highest weight of those with room",
        )
    }
}

/// Not above its weight.
fn has_room(real: &RealServer) -> bool {
    i64::from(real.active()) <= i64::from(real.weight.0)
}

fn note_room(reals: &[RealServer], context: &mut PickContext<'_>) {
    for (index, real) in reals.iter().enumerate() {
        if real.usable() {
            let sign = if has_room(real) { "<=" } else { ">" };
            let (active, weight) = (real.active(), real.weight.0);
            context.note(index, || format!("{active} active {sign} weight {weight}"));
        } else {
            context.note_unusable(index, real);
        }
    }
}
