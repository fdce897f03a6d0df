//! Figures about what happened: `Rate` smooths a counter as the kernel's estimator does, `Histogram`
//! tells how times are spread. There is no clock in here: the caller samples and measures.

use std::fmt;

use crate::time::Duration;

/// How often a rate must be sampled (`est_timer` of `ip_vs_est.c`).
pub const RATE_PERIOD: Duration = Duration::from_secs(2);

/// The kernel's estimate of how fast a counter grows (`ip_vs_est.c`): every [`RATE_PERIOD`] the
/// estimate goes a quarter of the way to the growth just seen. So a step to a steady rate shows 25 %
/// of it after two seconds, then 44 %, 58 %, 68 %. Fixed point, so that the figures are the kernel's
/// to the last digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// The counter at the last sample.
    last: u64,
    /// Per second, times 2^`scale`.
    average: i64,
    scale: u32,
}

impl Rate {
    /// Of connections or packets, counted from `total` on.
    pub const fn of_events(total: u64) -> Rate {
        Rate::with_scale(total, 10)
    }

    /// Of bytes, counted from `total` on: coarser, so that large rates fit.
    pub const fn of_bytes(total: u64) -> Rate {
        Rate::with_scale(total, 5)
    }

    const fn with_scale(total: u64, scale: u32) -> Rate {
        Rate {
            last: total,
            average: 0,
            scale,
        }
    }

    /// Takes the counter as it is now; to be called once every [`RATE_PERIOD`]. A counter that went
    /// back has not grown.
    pub fn sample(&mut self, total: u64) {
        let growth = total.saturating_sub(self.last).min(GROWTH_MAX);
        self.last = total;
        // Half of the growth of two seconds is the growth of one, hence one bit less than the scale.
        let sample = (growth << (self.scale - 1)) as i64;
        self.average += (sample - self.average) >> 2;
    }

    /// Per second, as the kernel rounds it.
    pub const fn per_second(&self) -> u64 {
        let half = (1 << (self.scale - 1)) - 1;
        ((self.average + half) >> self.scale) as u64
    }

    /// Forgets the estimate but not where the counter stood (`ipvsadm -Z`).
    pub const fn zero(&mut self) {
        self.average = 0;
    }
}

/// More than any counter grows in two seconds, and little enough for the fixed point.
const GROWTH_MAX: u64 = 1 << 52;

/// The rates of the five counters of a server, a service or of everything, in the order of
/// `lvs::Stats::sum`: connections, packets in and out, bytes in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates([Rate; 5]);

impl Rates {
    /// Counted from these totals on.
    pub const fn new(totals: [u64; 5]) -> Rates {
        let [conns, in_packets, out_packets, in_bytes, out_bytes] = totals;
        Rates([
            Rate::of_events(conns),
            Rate::of_events(in_packets),
            Rate::of_events(out_packets),
            Rate::of_bytes(in_bytes),
            Rate::of_bytes(out_bytes),
        ])
    }

    /// Takes the counters as they are now; to be called once every [`RATE_PERIOD`].
    pub fn sample(&mut self, totals: [u64; 5]) {
        for (rate, total) in self.0.iter_mut().zip(totals) {
            rate.sample(total);
        }
    }

    /// Per second, as the kernel rounds them. What ipvsadm calls BPS are bytes.
    pub fn per_second(&self) -> [u64; 5] {
        self.0.map(|rate| rate.per_second())
    }

    /// Forgets the estimates but not where the counters stood (`ipvsadm -Z`).
    pub fn zero(&mut self) {
        self.0.iter_mut().for_each(Rate::zero);
    }
}

/// How times are spread, from a nanosecond to an hour, to three digits. Takes about 270 KB whatever
/// it holds.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: hdrhistogram::Histogram<u64>,
    max_ns: u64,
}

/// Longer times count as this one, in nanoseconds.
const LONGEST_NS: u64 = 3_600_000_000_000;

impl Histogram {
    /// An empty one.
    pub fn new() -> Histogram {
        let counts = hdrhistogram::Histogram::new_with_bounds(1, LONGEST_NS, 3);
        Histogram {
            counts: counts.expect("the bounds are constants that hdrhistogram accepts"),
            max_ns: 0,
        }
    }

    /// Counts one time.
    pub fn record(&mut self, nanos: u64) {
        self.counts.saturating_record(nanos);
        self.max_ns = self.max_ns.max(nanos);
    }

    /// Takes in what another one counted.
    pub fn merge(&mut self, other: &Histogram) {
        let sum = self.counts.add(&other.counts);
        sum.expect("all histograms have the same bounds");
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// The longest in nanoseconds, exact; 0 if there is none.
    pub fn max(&self) -> u64 {
        self.max_ns
    }

    /// The time in nanoseconds that `percent` of all stay within; 0 if there is none.
    pub fn percentile(&self, percent: f64) -> u64 {
        let value = self.counts.value_at_quantile(percent / 100.0);
        value.min(self.max_ns)
    }

    /// The median in nanoseconds.
    pub fn p50(&self) -> u64 {
        self.percentile(50.0)
    }

    /// 99 of 100 stay within this many nanoseconds.
    pub fn p99(&self) -> u64 {
        self.percentile(99.0)
    }

    /// 999 of 1000 stay within this many nanoseconds.
    pub fn p999(&self) -> u64 {
        self.percentile(99.9)
    }
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

/// `p50 1.2 ms, p99 3.4 ms, p99.9 5.6 ms, max 7.8 ms of 100`
impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = [self.p50(), self.p99(), self.p999(), self.max()].map(Duration::from_nanos);
        let [p50, p99, p999, max] = times;
        let count = self.count();
        write!(
            f,
            "p50 {p50}, p99 {p99}, p99.9 {p999}, max {max} of {count}"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A step to 1000 a second shows 25 %, 43.75 %, 57.8 %, 68.4 % of it.
    #[test]
    fn a_step_is_followed_in_quarters() {
        let (mut packets, mut bytes) = (Rate::of_events(7), Rate::of_bytes(0));
        let mut shown = Vec::new();
        for tick in 1..=4 {
            packets.sample(7 + tick * 2000);
            bytes.sample(tick * 2000);
            shown.push((packets.per_second(), bytes.per_second()));
        }
        assert_eq!(shown, [(250, 250), (437, 437), (578, 578), (684, 684)]);
    }

    /// The figures of tests/golden/states/stats-large.json: 10 packets, then 3000, then none for two
    /// periods.
    #[test]
    fn figures_of_a_kernel() {
        let mut rates = Rates::new([0; 5]);
        rates.sample([1, 10, 0, 13_000, 0]);
        assert_eq!(rates.per_second(), [0, 1, 0, 1625, 0]);
        rates.sample([1, 3010, 0, 4_333_000, 0]);
        assert_eq!(rates.per_second(), [0, 376, 0, 541_219, 0]);
        rates.sample([1, 3010, 0, 4_333_000, 0]);
        rates.sample([1, 3010, 0, 4_333_000, 0]);
        assert_eq!(rates.per_second(), [0, 211, 0, 304_436, 0]);
        rates.zero();
        assert_eq!(rates.per_second(), [0; 5]);
        rates.sample([1, 3010, 0, 4_333_000, 0]);
        assert_eq!(rates.per_second(), [0; 5], "zeroing is no growth");
    }

    /// The estimate falls towards 0 and stays at it.
    #[test]
    fn silence_ends_at_zero() {
        let mut rate = Rate::of_events(0);
        rate.sample(1_000_000);
        let mut before = rate.per_second();
        for _ in 0..100 {
            rate.sample(1_000_000);
            assert!(rate.per_second() <= before);
            before = rate.per_second();
        }
        assert_eq!(before, 0);
    }

    #[test]
    fn large_rates_fit() {
        let mut rate = Rate::of_bytes(0);
        let terabit = 125_000_000_000;
        for tick in 1..=100 {
            rate.sample(tick * 2 * terabit);
        }
        assert!(rate.per_second().abs_diff(terabit) <= 1, "{rate:?}");
    }

    #[test]
    fn counters_that_jump_are_fine() {
        let mut rate = Rate::of_events(u64::MAX);
        for total in [0, u64::MAX, 0, u64::MAX, 5] {
            rate.sample(total);
        }
        assert!(rate.per_second() <= GROWTH_MAX);
    }

    #[test]
    fn percentiles_to_three_digits() {
        let mut histogram = Histogram::new();
        for micros in 1..=10_000 {
            histogram.record(micros * 1000);
        }
        let close = |got: u64, expected: u64| got.abs_diff(expected) <= expected / 1000;
        assert_eq!(histogram.count(), 10_000);
        assert_eq!(histogram.max(), 10_000_000);
        assert!(close(histogram.p50(), 5_000_000), "{histogram}");
        assert!(close(histogram.p99(), 9_900_000), "{histogram}");
        assert!(close(histogram.p999(), 9_990_000), "{histogram}");
        assert_eq!(histogram.percentile(100.0), histogram.max());
    }

    #[test]
    fn nothing_and_too_much_are_fine() {
        let mut histogram = Histogram::default();
        assert_eq!(
            [histogram.p50(), histogram.max(), histogram.count()],
            [0; 3]
        );
        histogram.record(0);
        histogram.record(u64::MAX);
        assert_eq!((histogram.max(), histogram.count()), (u64::MAX, 2));
        assert!(histogram.percentile(100.0) >= LONGEST_NS);
    }

    #[test]
    fn merging_adds() {
        let (mut a, mut b) = (Histogram::new(), Histogram::new());
        a.record(1000);
        b.record(3000);
        b.record(5000);
        a.merge(&b);
        assert_eq!((a.count(), a.p50(), a.max()), (3, 3001, 5000));
        assert_eq!(
            a.to_string(),
            "p50 3.0 µs, p99 5.0 µs, p99.9 5.0 µs, max 5.0 µs of 3"
        );
    }
}
