//! Least connection (`ip_vs_lc.c`): whoever has the least to do now.
//!
//! Looks at every usable server from the head of the list and takes the one with the least
//! [`overhead`]; of equals the first. Weights do not count, except that 0 takes a server out.
//!
//! A story tells each server's overhead: `2*256 + 1 = 513`.

use super::{Change, PickContext, Scheduler, of_equals, overhead};
use crate::lvs::RealServer;

/// Needs no memory: the servers' counters are all it looks at.
#[derive(Debug)]
pub struct LeastConnection;

impl Scheduler for LeastConnection {
    fn name(&self) -> &'static str {
        "lc"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let mut least: Option<(usize, u64)> = None;
        for (index, real) in reals.iter().enumerate() {
            if !real.usable() {
                context.note_unusable(index, real);
                continue;
            }
            let load = overhead(real);
            context.note(index, || {
                format!("{} = {load}", super::overhead_words(real))
            });
            if least.is_none_or(|(_, least_load)| load < least_load) {
                least = Some((index, load));
            }
        }
        let (index, least_load) = least?;
        context.because(|| {
            let equal = |real: &&RealServer| real.usable() && overhead(real) == least_load;
            of_equals("the least", reals.iter().filter(equal).count())
        });
        Some(index)
    }
}
