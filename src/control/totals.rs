//! Totals: the counters over all services, for ever (`ip_vs_ctl.c`: `ip_vs_stats_show`,
//! `ip_vs_stats_percpu_show`). Real servers count; what deleted ones had counted is kept here.

use std::sync::atomic::Ordering::Relaxed;

use super::meter::Meter;
use crate::config::Listing;
use crate::lvs::Stats;

/// The counters over everything.
#[derive(Debug)]
pub(super) struct Totals {
    meter: Meter,
    /// What real servers that are not configured any more had counted, per worker. It may be below
    /// zero, which wraps, if a worker was late with a packet of one that came back.
    gone: Vec<[u64; 5]>,
}

impl Totals {
    /// Of a director with so many workers.
    pub fn new(workers: usize) -> Totals {
        Totals {
            meter: Meter::new(),
            gone: vec![[0; 5]; workers],
        }
    }

    /// A real server is not configured any more.
    pub fn part_with(&mut self, lines: &[Stats]) {
        for (gone, line) in self.gone.iter_mut().zip(lines) {
            *gone = each(*gone, counters(line), u64::wrapping_add);
        }
    }

    /// It is configured again, with what it had counted.
    pub fn welcome(&mut self, lines: &[Stats]) {
        for (gone, line) in self.gone.iter_mut().zip(lines) {
            *gone = each(*gone, counters(line), u64::wrapping_sub);
        }
    }

    /// What each worker has counted, with these real servers configured.
    fn workers<'a>(&self, reals: impl Iterator<Item = &'a [Stats]>) -> Vec<[u64; 5]> {
        let mut sums = self.gone.clone();
        for lines in reals {
            for (sum, line) in sums.iter_mut().zip(lines) {
                *sum = each(*sum, counters(line), u64::wrapping_add);
            }
        }
        sums
    }

    /// One turn of the estimator.
    pub fn estimate<'a>(&mut self, reals: impl Iterator<Item = &'a [Stats]>) {
        let workers = self.workers(reals);
        let sum = workers
            .iter()
            .fold([0; 5], |sum, worker| each(sum, *worker, u64::wrapping_add));
        self.meter.estimate_total(sum);
    }

    /// `ipvsadm -Z` without a service.
    pub fn zero(&mut self) {
        self.meter.zero();
    }

    /// As listed: the total as last estimated, the workers' own counters as they are.
    pub fn listing<'a>(&self, reals: impl Iterator<Item = &'a [Stats]>) -> Listing {
        Listing::Totals {
            total: self.meter.row(),
            workers: self.workers(reals),
        }
    }
}

fn counters(line: &Stats) -> [u64; 5] {
    let all = [
        &line.conns,
        &line.in_packets,
        &line.out_packets,
        &line.in_bytes,
        &line.out_bytes,
    ];
    all.map(|counter| counter.load(Relaxed))
}

fn each(a: [u64; 5], b: [u64; 5], join: fn(u64, u64) -> u64) -> [u64; 5] {
    std::array::from_fn(|at| join(a[at], b[at]))
}
