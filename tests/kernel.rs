//! Walks what a real kernel IPVS was recorded to do (`tests/golden`, schema in its README): every case
//! is played on a whole director in memory, control plane and worker, in virtual time.
//!
//! `ULVS_GOLDEN` names another folder: one that holds topic folders, or a topic folder itself. Without
//! `ULVS_GOLDEN_ALL` tells of every step that differs, not of the first of a case alone. Without
//! a terminal in between: `cargo nextest run --release --test kernel --no-capture`.

#[path = "kernel/beyond.rs"]
mod beyond;
#[path = "kernel/case.rs"]
mod case;
#[path = "kernel/clients.rs"]
mod clients;
#[path = "kernel/explained.rs"]
mod explained;
#[path = "kernel/host.rs"]
mod host;
#[path = "kernel/house.rs"]
mod house;
#[path = "kernel/judge.rs"]
mod judge;
#[path = "kernel/net.rs"]
mod net;
#[path = "kernel/packet.rs"]
mod packet;
#[path = "kernel/pieces.rs"]
mod pieces;
#[path = "kernel/play.rs"]
mod play;
#[path = "kernel/routing.rs"]
mod routing;
#[path = "kernel/sequence.rs"]
mod sequence;
#[path = "kernel/shell.rs"]
mod shell;
#[path = "kernel/tale.rs"]
mod tale;
#[path = "kernel/texts.rs"]
mod texts;
#[path = "kernel/words.rs"]
mod words;

mod recorded;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use case::Case;
use judge::Trouble;

/// How a case ended.
enum Outcome {
    Passed,
    /// What happened at which step; expected; got.
    Failed(String),
    /// Why it cannot pass yet.
    NotSupported(String),
}

/// How many cases ended how.
#[derive(Clone, Copy, Default)]
struct Sum {
    passed: usize,
    failed: usize,
    not_supported: usize,
}

impl std::fmt::Display for Sum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Sum {
            passed,
            failed,
            not_supported,
        } = self;
        let cases = passed + failed + not_supported;
        write!(
            f,
            "{cases} cases, {passed} passed, {failed} failed, {not_supported} not supported"
        )
    }
}

#[test]
fn golden() -> ExitCode {
    let root = std::env::var_os("ULVS_GOLDEN").unwrap_or_else(|| "tests/golden".into());
    let topics = topics(Path::new(&root));
    let (mut sum, mut reasons) = (Sum::default(), BTreeMap::<String, Vec<String>>::new());
    for (topic, files) in &topics {
        let mut here = Sum::default();
        for (file, outcome) in files.iter().zip(run_all(files)) {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let name = format!("{topic}/{stem}");
            match outcome {
                Outcome::Passed => here.passed += 1,
                Outcome::Failed(why) => {
                    here.failed += 1;
                    println!("FAILED {name}: {why}");
                }
                Outcome::NotSupported(why) => {
                    here.not_supported += 1;
                    reasons.entry(why).or_default().push(name);
                }
            }
        }
        println!("{topic}: {here}");
        sum.passed += here.passed;
        sum.failed += here.failed;
        sum.not_supported += here.not_supported;
    }
    for (why, names) in &reasons {
        println!("not supported, {why}: {}", names.join(" "));
    }
    // Lines of this form are what CI repeats at its end.
    for (why, names) in &reasons {
        println!("skipped: {} golden cases: {why}", names.len());
    }
    for line in explained::lines() {
        println!("{line}");
    }
    println!("golden: {sum}");
    // No case at all would prove nothing.
    if sum.failed == 0 && !topics.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The topic folders under `root` with their cases by name; `root` itself if it holds cases.
fn topics(root: &Path) -> Vec<(String, Vec<PathBuf>)> {
    let mut folders: Vec<PathBuf> = entries(root)
        .into_iter()
        .filter(|path| path.is_dir())
        .collect();
    folders.push(root.to_path_buf());
    folders.sort();
    let topics = folders.iter().map(|folder| {
        let json = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "json");
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        (
            name.into_owned(),
            entries(folder).into_iter().filter(json).collect(),
        )
    });
    topics
        .filter(|(_, files): &(String, Vec<PathBuf>)| !files.is_empty())
        .collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries =
        std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .collect();
    paths.sort();
    paths
}

/// Plays the cases on all processors; the outcomes are in the order of the files.
fn run_all(files: &[PathBuf]) -> Vec<Outcome> {
    let next = AtomicUsize::new(0);
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(file) = files.get(at) else {
                return done;
            };
            done.push((at, run(file)));
        }
    };
    let mut outcomes: Vec<(usize, Outcome)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().map(|worker| worker.join());
        done.flat_map(|done| done.expect("a case that panics is caught in it"))
            .collect()
    });
    outcomes.sort_by_key(|(at, _)| *at);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}

/// One of all the steps of a case that differ, on few lines.
fn tell_briefly(file: &Path, case: &Case, stop: &play::Stop) {
    if let Trouble::Differs { expected, got } = &stop.trouble {
        let (number, note) = (stop.step, &case.steps[stop.step]["note"]);
        let name = file.display();
        println!("differs: {name} step {number} {note}\n  kernel: {expected}\n  ulvs:   {got}");
    }
}

/// Plays one case. A panic of the director is a failure of this case alone.
fn run(file: &Path) -> Outcome {
    let case = match Case::read(file) {
        Ok(case) => case,
        Err(why) => return Outcome::Failed(why),
    };
    if std::env::var_os("ULVS_GOLDEN_ALL").is_some() {
        play::play_on(&case, |stop| tell_briefly(file, &case, stop));
    }
    let played = std::panic::catch_unwind(|| play::play(&case));
    let stop = match played {
        Ok(Ok(())) => return Outcome::Passed,
        Ok(Err(stop)) => stop,
        Err(_) => return Outcome::Failed("the director panicked; its words are above".into()),
    };
    // What comes later explains no difference, but may explain why a step cannot be played.
    let steps = match stop.trouble {
        Trouble::Differs { .. } => stop.step + 1,
        Trouble::Cannot(_) => case.steps.len(),
    };
    let excuses = beyond::excuses(&case, net::Net::named(&case.net), steps);
    if !excuses.is_empty() && !case.strict {
        let excuses: Vec<&str> = excuses.into_iter().collect();
        return Outcome::NotSupported(excuses.join(" + "));
    }
    match stop.trouble {
        Trouble::Cannot(why) => Outcome::NotSupported(format!("nobody plays {why}")),
        Trouble::Differs { expected, got } => {
            let step = &case.steps[stop.step];
            let what = step["do"].as_str().unwrap_or("?");
            let note = step["note"].as_str().unwrap_or("");
            let number = stop.step;
            let tale = if case.strict {
                tale::tell(&case, number)
            } else {
                String::new()
            };
            Outcome::Failed(format!(
                "step {number} ({what} {note})\n    expected: {expected}\n    got:      {got}{tale}"
            ))
        }
    }
}
