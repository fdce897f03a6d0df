//! Weighted failover (`ip_vs_fo.c`): one server has all, the others stand by.
//!
//! Looks at every usable server from the head of the list and takes the one with the highest weight;
//! of equals the first. The next one has its turn when that one is overloaded, quiesced or gone.
//!
//! A story tells each server's weight.

use super::{Change, PickContext, Scheduler, heaviest};
use crate::lvs::RealServer;

/// Needs no memory: the servers' weights are all it looks at.
#[derive(Debug)]
pub struct Failover;

impl Scheduler for Failover {
    fn name(&self) -> &'static str {
        "fo"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        if context.notes.is_some() {
            note_weights(reals, context);
        }
        heaviest(reals, context, RealServer::usable, "the highest weight")
    }
}

fn note_weights(reals: &[RealServer], context: &mut PickContext<'_>) {
    for (index, real) in reals.iter().enumerate() {
        if real.usable() {
            context.note(index, || format!("weight {}", real.weight.0));
        } else {
            context.note_unusable(index, real);
        }
    }
}
