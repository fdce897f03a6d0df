//! Small statistics, and the watch that figures are taken with.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

/// Reading the time waited takes no longer than this unless the processor is taken away meanwhile.
const LOOK_NS_MAX: u64 = 20_000;

/// The middle one, the lowest and the highest.
pub fn spread(figures: &[f64]) -> (f64, f64, f64) {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    (
        sorted[sorted.len() / 2],
        sorted[0],
        sorted[sorted.len() - 1],
    )
}

/// `median (lowest - highest)` with this many places.
pub fn words(figures: &[f64], places: usize) -> String {
    let (middle, low, high) = spread(figures);
    format!("{middle:.places$} ({low:.places$} - {high:.places$})")
}

/// Time as it passes for this thread: what it waits for a processor is left out, since what others on
/// the machine take is no stall of ours.
pub struct Watch {
    told: File,
    start: Instant,
    waited: u64,
}

impl Watch {
    /// The thread that asks.
    pub fn here() -> Watch {
        let told = File::open("/proc/thread-self/schedstat").expect("Linux tells this");
        Watch {
            told,
            start: Instant::now(),
            waited: 0,
        }
    }

    /// Begins.
    pub fn start(&mut self) {
        self.waited = self.waited();
        self.start = Instant::now();
    }

    /// Nanoseconds since the beginning.
    pub fn ns(&self) -> u64 {
        let passed = self.start.elapsed().as_nanos() as u64;
        let waited = self.waited();
        // What it waited for between the two looks has not passed.
        let between = self.start.elapsed().as_nanos() as u64 - passed;
        let between = if between > LOOK_NS_MAX { between } else { 0 };
        let lost = (waited - self.waited).saturating_sub(between);
        passed.saturating_sub(lost)
    }

    /// Nanoseconds that the thread could have run and had no processor.
    fn waited(&self) -> u64 {
        let mut text = [0; 64];
        let len = self
            .told
            .read_at(&mut text, 0)
            .expect("it can be read again");
        let text = std::str::from_utf8(&text[..len]).expect("digits");
        let second = text.split_whitespace().nth(1);
        let second = second.and_then(|word| word.parse().ok());
        second.expect("a number of nanoseconds")
    }
}
