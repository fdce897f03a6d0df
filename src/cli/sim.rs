//! `ulvs sim`: plays a simulated run and tells it aloud, or plays many and says which of them break a
//! law.

use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::sim::{self, Broken, Failure, Outcome};

/// Time between two updates of the line of progress.
const PROGRESS: Duration = Duration::from_millis(500);

/// Which runs to play.
#[derive(Args, Clone, Debug)]
pub struct SimArgs {
    /// Play this one and tell it aloud, step by step
    #[arg(
        long,
        value_name = "N",
        conflicts_with = "seeds",
        required_unless_present = "seeds"
    )]
    pub seed: Option<u64>,
    /// Play all from A up to, but not including, B, and tell only what fails
    #[arg(long, value_name = "A..B", value_parser = range)]
    pub seeds: Option<(u64, u64)>,
    /// Steps of each run
    #[arg(long, value_name = "M", default_value_t = sim::STEPS)]
    pub steps: u64,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let ends = text.split_once("..").and_then(|(first, end)| {
        let ends: (u64, u64) = (first.parse().ok()?, end.parse().ok()?);
        Some(ends).filter(|(first, end)| first < end)
    });
    ends.ok_or_else(|| "two numbers, the second one higher: 0..256".to_string())
}

/// Runs it.
pub fn run(args: &SimArgs) -> ExitCode {
    let result = match (args.seed, args.seeds) {
        (Some(seed), _) => aloud(seed, args.steps),
        (None, Some(seeds)) => sweep(seeds, args.steps, true),
        (None, None) => return ExitCode::FAILURE,
    };
    match result {
        Ok(outcome) => {
            say(&format!("{} runs held: {outcome}", outcome.runs));
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{}", report(&failure, args.steps));
            ExitCode::FAILURE
        }
    }
}

/// A failure and how to see it again.
pub fn report(failure: &Failure, steps: u64) -> String {
    let seed = failure.seed;
    format!("{failure}\nto play it again: ulvs sim --seed {seed} --steps {steps}")
}

/// Plays one run and tells it.
///
/// # Errors
/// The law that was broken.
pub fn aloud(seed: u64, steps: u64) -> Result<Outcome, Failure> {
    let mut last = 0;
    let mut tell = |line: &str| {
        last = step_of(line).unwrap_or(last);
        say(line);
    };
    guarded(|| sim::play(seed, steps, Some(&mut tell))).unwrap_or_else(|text| {
        let broken = Broken::new(0, text);
        let step = last;
        Err(Failure { seed, step, broken })
    })
}

/// The number of the step that a line begins, if it does.
fn step_of(line: &str) -> Option<u64> {
    line.strip_prefix('#')?.split(' ').next()?.parse().ok()
}

/// Plays the runs `first..end` on all cores, in order, and stops at the first that fails. With
/// `progress` one line on a terminal says how far it is.
///
/// # Errors
/// The failed run with the lowest seed that was played.
pub fn sweep((first, end): (u64, u64), steps: u64, progress: bool) -> Result<Outcome, Failure> {
    let next = AtomicU64::new(first);
    let failed = AtomicBool::new(false);
    let sum = Mutex::new((Outcome::default(), None::<Failure>));
    let work = || {
        while !failed.load(Relaxed) {
            let seed = next.fetch_add(1, Relaxed);
            if seed >= end {
                return;
            }
            let result = silent(seed, steps);
            let mut sum = sum.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            match result {
                Ok(outcome) => sum.0.add(&outcome),
                Err(failure) => {
                    failed.store(true, Relaxed);
                    let lower = sum.1.as_ref().is_none_or(|other| failure.seed < other.seed);
                    if lower {
                        sum.1 = Some(failure);
                    }
                }
            }
        }
    };
    let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
    thread::scope(|scope| {
        let hands: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        if progress && std::io::stderr().is_terminal() {
            let began = Instant::now();
            while !hands.iter().all(|hand| hand.is_finished()) {
                let done = next.load(Relaxed).min(end) - first;
                let all = end - first;
                eprint!("\r{done} of {all} runs, {} s ", began.elapsed().as_secs());
                thread::park_timeout(PROGRESS);
            }
            eprint!("\r\x1b[K");
        }
    });
    let (outcome, failure) = sum
        .into_inner()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    failure.map_or(Ok(outcome), Err)
}

/// Plays one run silently. A panic inside the director is a failure, too.
fn silent(seed: u64, steps: u64) -> Result<Outcome, Failure> {
    guarded(|| sim::play(seed, steps, None)).unwrap_or_else(|text| {
        let broken = Broken::new(0, text);
        Err(Failure {
            seed,
            step: 0,
            broken,
        })
    })
}

fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
        format!("panic: {}", text.unwrap_or_default())
    })
}

/// A reader that has gone away is no error of ours.
fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}
