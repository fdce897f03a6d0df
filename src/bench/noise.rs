//! Was the machine ours? A window counts what other processes and the host below took of the processors
//! meanwhile, and looks how long the clock stood still on an idle moment before and after. What our own
//! labs do is no noise: it is what is measured.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A window in which others took more of all processors than this is repeated.
pub const FOREIGN_MAX: f64 = 0.05;
/// A window beside which the clock stood still longer than this is repeated, in microseconds.
pub const GAP_MAX_US: f64 = 1000.0;
/// How long the clock is watched, before and after a window.
const WATCH: Duration = Duration::from_millis(2);
/// `USER_HZ`, in which /proc counts time: fixed at 100 on every architecture that we know.
pub const TICKS_PER_SECOND: f64 = 100.0;
/// The parent of all threads of the kernel.
const KTHREADD: i32 = 2;

/// What was seen beside a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Noise {
    /// Share of all processors' time that processes of others took, 0 to 1.
    pub foreign: f64,
    /// Share that the host below took for other guests, 0 to 1.
    pub steal: f64,
    /// How long the clock stood still at most, in microseconds.
    pub gap_us: f64,
}

impl Noise {
    /// Is a figure from this window to be doubted?
    pub fn is_loud(&self) -> bool {
        self.foreign + self.steal > FOREIGN_MAX || self.gap_us > GAP_MAX_US
    }
}

/// A process, as `/proc/PID/stat` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Who started it.
    pub parent: i32,
    /// Time on processors, in ticks.
    pub ticks: u64,
    /// The same, with what its ended children took.
    pub with_children: u64,
}

/// All processes at one moment.
#[derive(Clone, Debug, Default)]
pub struct Processes(BTreeMap<i32, Row>);

impl Processes {
    /// As they are now.
    pub fn now() -> Processes {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let rows = pids.filter_map(|pid| {
            let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            Some((pid, parse_stat(&text)?))
        });
        Processes(rows.collect())
    }

    /// Time of processes that are neither `own` nor started by it nor the kernel's, in ticks.
    fn foreign_ticks(&self, own: i32) -> u64 {
        let mut ours = BTreeSet::from([own]);
        // Children have higher numbers than their parents but for a wrap, so few rounds do.
        loop {
            let new: Vec<i32> = self
                .0
                .iter()
                .filter(|(pid, row)| ours.contains(&row.parent) && !ours.contains(pid))
                .map(|(pid, _)| *pid)
                .collect();
            if new.is_empty() {
                break;
            }
            ours.extend(new);
        }
        let foreign = self.0.iter().filter(|(pid, row)| {
            !ours.contains(pid) && **pid != KTHREADD && row.parent != KTHREADD
        });
        // Whose children ended while they were ours are left out with them; the parents of ours would
        // count us once we have ended, which is too late.
        foreign.map(|(_, row)| row.with_children).sum()
    }
}

/// Parent and times of a line of `/proc/PID/stat` (proc(5)). The name may contain anything.
fn parse_stat(text: &str) -> Option<Row> {
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // The state is field 3 of the manual and 0 of ours.
    let (user, system) = (number(11)?, number(12)?);
    Some(Row {
        parent: fields.get(1)?.parse().ok()?,
        ticks: user + system,
        with_children: user + system + number(13)? + number(14)?,
    })
}

/// Nanoseconds that these processes have had on processors, by the scheduler's own book.
pub fn cpu_ns(pids: &[i32]) -> u64 {
    let tasks = pids
        .iter()
        .flat_map(|pid| fs::read_dir(format!("/proc/{pid}/task")));
    let times = tasks.flatten().flatten().filter_map(|task| {
        let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    times.sum()
}

/// Bytes of memory that these processes have for themselves (`Pss` of smaps_rollup, proc(5)).
pub fn memory_bytes(pids: &[i32]) -> u64 {
    let texts = pids
        .iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok());
    let kib = texts.filter_map(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    });
    kib.sum::<u64>() * 1024
}

/// Watches one window.
#[derive(Debug)]
pub struct Watch {
    start: Instant,
    foreign: u64,
    steal: u64,
    gap: Duration,
}

impl Watch {
    /// Begins.
    pub fn begin() -> Watch {
        let gap = longest_gap();
        Watch {
            gap,
            foreign: Processes::now().foreign_ticks(own_pid()),
            steal: steal_ticks(),
            start: Instant::now(),
        }
    }

    /// Ends, and tells.
    pub fn end(self) -> Noise {
        let seconds = self.start.elapsed().as_secs_f64().max(0.001);
        let whole = seconds * TICKS_PER_SECOND * processors() as f64;
        let share = |now: u64, then: u64| now.saturating_sub(then) as f64 / whole;
        let foreign = Processes::now().foreign_ticks(own_pid());
        let steal = steal_ticks();
        let gap = self.gap.max(longest_gap());
        Noise {
            // A process that ends between two looks may be seen with its parent, too.
            foreign: share(foreign, self.foreign).min(1.0),
            steal: share(steal, self.steal),
            gap_us: gap.as_secs_f64() * 1e6,
        }
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}

/// How many processors there are.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Reads the clock again and again for a moment; the longest time between two readings.
fn longest_gap() -> Duration {
    let start = Instant::now();
    let (mut last, mut longest) = (start, Duration::ZERO);
    while last - start < WATCH {
        let now = Instant::now();
        longest = longest.max(now - last);
        last = now;
    }
    longest
}

/// Ticks that the host below gave to others: the eighth figure of the first line of `/proc/stat`.
fn steal_ticks() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or("");
    let field = first.split_whitespace().nth(8);
    field.and_then(|text| text.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_anything() {
        let line = "7 (a) b (c) S 3 7 7 0 -1 4194304 1 2 3 4 50 60 70 80 20 0 1 0 9 1 1";
        let row = parse_stat(line).unwrap();
        assert_eq!((row.parent, row.ticks, row.with_children), (3, 110, 260));
        assert_eq!(parse_stat("7 (a) S"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn ours_and_the_kernels_are_no_noise() {
        let row = |parent, ticks| Row {
            parent,
            ticks,
            with_children: ticks,
        };
        let all = Processes(BTreeMap::from([
            (1, row(0, 1)),
            (2, row(0, 10)),
            (3, row(2, 100)),
            (50, row(1, 1000)),
            (51, row(50, 10_000)),
            // The numbers of processes have begun anew.
            (40, row(51, 100_000)),
            (60, row(1, 1_000_000)),
        ]));
        assert_eq!(all.foreign_ticks(50), 1_000_001);
    }

    /// The time of this very process is seen, and is not foreign to itself.
    #[test]
    fn work_is_seen() {
        let own = [own_pid()];
        let before = cpu_ns(&own);
        let watch = Watch::begin();
        while cpu_ns(&own) < before + 20_000_000 {}
        let noise = watch.end();
        assert!(noise.foreign <= 1.0 && noise.gap_us > 0.0, "{noise:?}");
        assert!(memory_bytes(&own) > 100_000);
        assert!(processors() >= 1);
    }

    #[test]
    fn loud_is_loud() {
        let quiet = Noise::default();
        assert!(!quiet.is_loud());
        let loud = [
            Noise {
                foreign: 0.06,
                ..quiet
            },
            Noise {
                steal: 0.06,
                ..quiet
            },
            Noise {
                gap_us: 2000.0,
                ..quiet
            },
        ];
        assert!(loud.iter().all(Noise::is_loud));
    }
}
