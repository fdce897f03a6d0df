//! Weighted least connection (`ip_vs_wlc.c`), ipvsadm's default: whoever has the least to do now for
//! its weight.
//!
//! Looks at every usable server from the head of the list and takes the one with the least
//! [`overhead`] per weight; of equals the first. The quotients are compared crosswise, as the kernel
//! does, so that nothing is rounded.
//!
//! A story tells each server's quotient: `(2*256 + 0)/1 = 512`.

use super::{Change, PickContext, Scheduler, least_per_weight, overhead, overhead_words};
use crate::lvs::RealServer;

/// Needs no memory: the servers' counters and weights are all it looks at.
#[derive(Debug)]
pub struct WeightedLeastConnection;

impl Scheduler for WeightedLeastConnection {
    fn name(&self) -> &'static str {
        "wlc"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        least_per_weight(reals, context, overhead, overhead_words)
    }
}
