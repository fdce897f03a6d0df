//! Meter: the counters of one service or real server as they are listed. Workers count all the time;
//! what is listed is copied only when the estimator runs, together with the rates, as the kernel does
//! (`ip_vs_est.c`, `ip_vs_copy_stats`).

use crate::config::command::StatsRow;
use crate::lvs::Stats;
use crate::stats::Rates;

/// The counters of one service or real server as listed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Meter {
    /// What the workers had counted when last copied.
    copied: [u64; 5],
    /// What had been copied at the last zero.
    origin: [u64; 5],
    rates: Rates,
}

impl Meter {
    /// Of something nobody has used yet.
    pub fn new() -> Meter {
        Meter {
            copied: [0; 5],
            origin: [0; 5],
            rates: Rates::new([0; 5]),
        }
    }

    /// One turn of the estimator, `stats::RATE_PERIOD` after the one before.
    pub fn estimate(&mut self, lines: &[Stats]) {
        self.copied = Stats::sum(lines);
        self.rates.sample(self.copied);
    }

    /// Starts anew from what was last copied (`ip_vs_zero_stats`): packets counted since then show up
    /// at the next turn.
    pub fn zero(&mut self) {
        self.origin = self.copied;
        self.rates.zero();
    }

    /// As listed.
    pub fn row(&self) -> StatsRow {
        StatsRow {
            counters: std::array::from_fn(|at| self.copied[at] - self.origin[at]),
            rates: self.rates.per_second(),
        }
    }
}
