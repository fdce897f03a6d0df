//! Weighted round robin (`ip_vs_wrr.c`): turns in proportion to the weights, evenly mixed.
//!
//! The list is walked lap by lap at a *level*, and a lap takes the usable servers whose weight
//! reaches the level. The first lap runs at the highest weight, each next one lower by the greatest
//! common divisor of the weights, and below the lowest level the highest comes again. With weights 3,
//! 2 and 1 the laps are A, AB, ABC: of six connections A gets three, B two, C one.
//!
//! A change of the list puts the position back to the head but keeps the level, rounded to the new
//! step. So a service that was built up server by server starts at level 1: its first lap takes every
//! server once.
//!
//! A story tells where the search began, and each server's weight against the level at which it was
//! looked at.

use super::{Change, PickContext, Place, Scheduler, greatest_common_divisor};
use crate::lvs::RealServer;

/// Where the walk stands.
#[derive(Debug)]
pub struct WeightedRoundRobin {
    /// The server chosen last; `None` stands before the head of the list.
    last: Option<Place>,
    /// Weight that a server needs in this lap; always 1 more than a multiple of `step`, unless 0:
    /// there was no weight yet.
    level: i32,
    /// By how much the level falls from lap to lap.
    step: i32,
    /// Level of the highest lap; 0 when no server has a weight.
    top: i32,
}

impl WeightedRoundRobin {
    /// A walk that stands before the head of `reals`, at the highest level.
    pub fn new(reals: &[RealServer]) -> WeightedRoundRobin {
        let (step, top) = measure(reals);
        WeightedRoundRobin {
            last: None,
            level: top,
            step,
            top,
        }
    }
}

impl Scheduler for WeightedRoundRobin {
    fn name(&self) -> &'static str {
        "wrr"
    }

    fn changed(&mut self, reals: &[RealServer], _change: Change) {
        (self.step, self.top) = measure(reals);
        self.last = None;
        if self.level > self.top || self.level == 0 {
            self.level = self.top;
        } else if self.step > 1 {
            self.level = self.level / self.step * self.step + 1;
        }
    }

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        if self.top == 0 {
            return None;
        }
        let start = Place::behind(self.last, reals);
        context.remark(|| {
            let (words, level) = (super::start_words(start, reals), self.level);
            format!("{words}, at level {level}")
        });
        let chosen = self.walk(reals, start, context).or_else(|| {
            let goes_on = self.start_next_lap(reals);
            context.remark(|| self.lap_words(goes_on));
            goes_on.then(|| self.walk(reals, 0, context)).flatten()
        })?;
        context.because(|| "its turn in this lap".to_string());
        self.last = Some(Place::of((chosen, &reals[chosen])));
        Some(chosen)
    }
}

impl WeightedRoundRobin {
    /// The first server from number `start` on that may have a turn in this lap.
    fn walk(
        &self,
        reals: &[RealServer],
        start: usize,
        context: &mut PickContext<'_>,
    ) -> Option<usize> {
        for (index, real) in reals.iter().enumerate().skip(start) {
            let (weight, level) = (real.weight.0, self.level);
            if !real.usable() {
                context.note_unusable(index, real);
            } else if weight < level {
                context.note(index, || format!("weight {weight} < level {level}"));
            } else {
                context.note(index, || format!("weight {weight} >= level {level}"));
                return Some(index);
            }
        }
        None
    }

    /// What comes behind the end of the list, for a story.
    fn lap_words(&self, goes_on: bool) -> String {
        let (level, step, top) = (self.level, self.step, self.top);
        if goes_on {
            format!(
                "end of the lap; the next is at level {level} ({top} at most, in steps of {step})"
            )
        } else {
            "end of the lap, and nobody for a next one".to_string()
        }
    }

    /// Goes to the next lap that takes somebody; false if no lap would. The laps in between, whose
    /// level nobody reaches, are skipped in one stride.
    fn start_next_lap(&mut self, reals: &[RealServer]) -> bool {
        let usable = reals.iter().filter(|real| real.usable());
        let Some(reach) = usable.map(|real| real.weight.0).max() else {
            // The kernel searches on until it has looked at everybody in the lowest lap. If that lap
            // was a whole one, the walk has come to its end; if the search began in the midst of it,
            // it ends where it began.
            if self.level > self.step || self.last.is_none() {
                (self.last, self.level) = (None, self.top);
            }
            return false;
        };
        let below = self.level - self.step;
        let highest = if below > 0 { below } else { self.top };
        self.level = highest.min((reach - 1) / self.step * self.step + 1);
        true
    }
}

/// Step and highest level for these weights: their greatest common divisor, and the highest weight
/// brought down to 1 more than a multiple of it, which takes the same servers.
fn measure(reals: &[RealServer]) -> (i32, i32) {
    let weights = reals.iter().map(|real| real.weight.0);
    let highest = weights.clone().max().unwrap_or(0);
    let mut step = 0;
    for weight in weights.filter(|weight| *weight > 0) {
        step = greatest_common_divisor(step, weight);
        if step == 1 {
            break;
        }
    }
    let step = step.max(1);
    (step, highest - (step - 1))
}
