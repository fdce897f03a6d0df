//! Never queue (`ip_vs_nq.c`): nobody waits at a busy server while another is idle.
//!
//! Takes the first usable server from the head of the list that has no active connection, however
//! light; if nobody is idle it is shortest expected delay.
//!
//! A story tells who is busy and who is idle, or each server's quotient: `(2 + 1)/3 = 1`.

use super::sed::{delay, delay_words};
use super::{Change, PickContext, Scheduler, least_per_weight};
use crate::lvs::RealServer;

/// Needs no memory: the servers' counters and weights are all it looks at.
#[derive(Debug)]
pub struct NeverQueue;

impl Scheduler for NeverQueue {
    fn name(&self) -> &'static str {
        "nq"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let idle = |real: &RealServer| real.usable() && real.active() == 0;
        if let Some(index) = reals.iter().position(idle) {
            for (index, real) in reals.iter().enumerate().take(index + 1) {
                if real.usable() {
                    context.note(index, || format!("{} active", real.active()));
                } else {
                    context.note_unusable(index, real);
                }
            }
            context.because(|| "the first that is idle".to_string());
            return Some(index);
        }
        context.remark(|| "nobody is idle".to_string());
        least_per_weight(reals, context, delay, delay_words)
    }
}
