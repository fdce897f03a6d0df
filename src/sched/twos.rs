//! Power of two choices (`ip_vs_twos.c`): chance names two servers, the less loaded one is taken.
//!
//! Two numbers are drawn from 0 to the sum S of the usable weights, both included. Each names the
//! server at which the weights, added up from the head of the list, reach it; so a server is named in
//! proportion to its weight (the first one a little more often, since 0 and 1 both name it). The
//! second is taken only if its [`overhead`] per weight is less than the first one's.
//!
//! A story tells the two numbers and the quotients of the servers they named:
//! `draw 3 of 0..=4, the weights up to here make 4: (2*256 + 0)/1 = 512`.

use super::{Change, PickContext, Scheduler, is_less, overhead, overhead_words, quotient};
use crate::lvs::RealServer;

/// Needs no memory; chance comes with the context.
#[derive(Debug)]
pub struct PowerOfTwo;

impl Scheduler for PowerOfTwo {
    fn name(&self) -> &'static str {
        "twos"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let sum = reals.iter().map(usable_weight).sum();
        if sum == 0 {
            return None;
        }
        let first = draw(reals, sum, context)?;
        let second = draw(reals, sum, context)?;
        let [(load_1, weight_1), (load_2, weight_2)] =
            [first, second].map(|index| (overhead(&reals[index]), usable_weight(&reals[index])));
        let second_wins = is_less(load_2, weight_2, load_1, weight_1);
        context.because(|| {
            let words = match (first == second, second_wins) {
                (true, _) => "both draws named it",
                (false, true) => "the second draw has less",
                (false, false) => "the first draw; the second has not less",
            };
            words.to_string()
        });
        Some(if second_wins { second } else { first })
    }
}

/// Names a server by chance.
fn draw(reals: &[RealServer], sum: u64, context: &mut PickContext<'_>) -> Option<usize> {
    let drawn = context.rng.below(sum + 1);
    let mut reached = 0;
    let index = reals.iter().position(|real| {
        reached += usable_weight(real);
        real.usable() && reached >= drawn
    })?;
    context.note(index, || {
        let (real, weight) = (&reals[index], usable_weight(&reals[index]));
        let load = quotient(overhead(real), weight);
        let words = overhead_words(real);
        format!(
            "draw {drawn} of 0..={sum}, the weights up to here make {reached}: \
             ({words})/{weight} = {load}"
        )
    });
    Some(index)
}

/// The weight of a usable server, else 0.
fn usable_weight(real: &RealServer) -> u64 {
    if real.usable() {
        real.weight.0.unsigned_abs().into()
    } else {
        0
    }
}
