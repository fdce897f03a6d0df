//! Shortest expected delay (`ip_vs_sed.c`): whoever would have the least to do for its weight if the
//! new connection came to it.
//!
//! Looks at every usable server from the head of the list and takes the one with the least active
//! connections, the new one included, per weight; of equals the first. Inactive connections do not
//! count. A heavy server that is idle comes before a light one that is idle, unlike with wlc.
//!
//! A story tells each server's quotient: `(2 + 1)/3 = 1`.

use super::{Change, PickContext, Scheduler, least_per_weight};
use crate::lvs::RealServer;

/// Needs no memory: the servers' counters and weights are all it looks at.
#[derive(Debug)]
pub struct ShortestExpectedDelay;

impl Scheduler for ShortestExpectedDelay {
    fn name(&self) -> &'static str {
        "sed"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        least_per_weight(reals, context, delay, delay_words)
    }
}

/// Active connections, if the server gets one more.
pub(super) fn delay(real: &RealServer) -> u64 {
    u64::from(real.active()) + 1
}

/// The sum of [`delay`] for a story: `2 + 1`.
pub(super) fn delay_words(real: &RealServer) -> String {
    format!("{} + 1", real.active())
}
