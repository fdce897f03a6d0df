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
    /// What the workers had counted when last asked: what came later is still to be added to the
    /// service.
    seen: [u64; 5],
    /// What had been copied at the last zero.
    origin: [u64; 5],
    rates: Rates,
}

impl Meter {
    /// Of something nobody has used yet.
    pub fn new() -> Meter {
        Meter {
            copied: [0; 5],
            seen: [0; 5],
            origin: [0; 5],
            rates: Rates::new([0; 5]),
        }
    }

    /// One turn of the estimator over a real server, `stats::RATE_PERIOD` after the one before. Says
    /// what its service has to add.
    pub fn estimate(&mut self, lines: &[Stats]) -> [u64; 5] {
        let more = self.settle(lines);
        self.copied = self.seen;
        self.rates.sample(self.copied);
        more
    }

    /// What was counted since last asked, without a turn of the estimator: the real server goes.
    pub fn settle(&mut self, lines: &[Stats]) -> [u64; 5] {
        let now = Stats::sum(lines);
        let more = std::array::from_fn(|at| now[at] - self.seen[at]);
        self.seen = now;
        more
    }

    /// One turn of the estimator over a service: what its real servers counted since the one before.
    /// A service counts exactly what its real servers do, so no worker counts for it.
    pub fn estimate_sum(&mut self, more: [u64; 5]) {
        self.copied = std::array::from_fn(|at| self.copied[at] + more[at]);
        self.rates.sample(self.copied);
    }

    /// One turn of the estimator over everything, which has counted so much in all.
    pub fn estimate_total(&mut self, total: [u64; 5]) {
        self.copied = total;
        self.rates.sample(total);
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
