//! Floor C: figures one can believe. Every peer gets a lab of its own, all are up at the same time, and
//! windows are taken in turns, so that a good or bad minute of the machine is everybody's. Receivers
//! count. What others do to the machine meanwhile is measured beside each window (`noise`); a noisy
//! window is taken again and both are kept. docs/bench.md tells the method.

pub mod compare;
pub mod fingerprint;
pub mod load;
pub mod measure;
pub mod noise;
pub mod peer;
mod plot;
mod proxy;
pub mod record;
pub mod report;
pub mod rig;
pub mod search;
pub mod selftest;
pub mod table;
pub mod talk;
pub mod tally;
mod wrk;

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use fingerprint::Fingerprint;
use measure::{Kind, Measure};
use noise::Watch;
use peer::Peer;
use record::{Document, FORMAT, MeasureRow, Missing, PeerRow, Plan, Sample};
use rig::Rig;
use tally::Summary;

use crate::lab::topology::Between;

/// Failures in a row after which a peer is not asked for a measure any more.
const FAILURES_MAX: u32 = 2;
/// Peers that are measured in every run called quick.
pub const QUICK_PEERS: [&str; 7] = [
    "none",
    "route",
    "bare-packet",
    "nft",
    "haproxy",
    "nginx",
    "ulvs-packet",
];
/// Measures of every run called quick.
pub const QUICK_MEASURES: [&str; 6] = [
    "bulk1",
    "bulk8",
    "connections",
    "requests",
    "frames",
    "pingpong",
];

/// What to do.
pub struct Options {
    /// Rounds, windows, retries.
    pub plan: Plan,
    /// Who is measured.
    pub peers: Vec<Box<dyn Peer>>,
    /// What is measured.
    pub measures: Vec<Measure>,
    /// Leave out web pages of those who balance nothing: that they are fast is seen elsewhere.
    pub lean: bool,
    /// How long all repetitions of noisy windows may take together, in seconds.
    pub retry_seconds: f64,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// This peer's lab is being made.
    Starting(String),
    /// It cannot be had.
    Missing(Missing),
    /// The next window.
    Window {
        /// What is measured.
        measure: &'static str,
        /// Of whom.
        peer: &'static str,
        /// In which round, from 1.
        round: u32,
        /// Windows behind us, of how many; repetitions are not among them.
        done: usize,
        /// All of them.
        all: usize,
        /// About how long it will still take.
        left: Duration,
    },
    /// A sample was taken.
    Took(Box<Sample>),
}

/// Runs everything, and gives back what was seen. An interrupt ends it early, and all that was taken is
/// kept.
///
/// # Errors
/// When nobody can be measured at all.
pub fn run(options: Options, tell: &mut dyn FnMut(Progress)) -> io::Result<Document> {
    let mut document = Document {
        format: FORMAT,
        fingerprint: Fingerprint::take(),
        plan: options.plan.clone(),
        peers: vec![],
        missing: vec![],
        measures: vec![],
        samples: vec![],
        took_s: 0.0,
        interrupted: false,
    };
    let mut run = Run {
        rigs: vec![],
        document: &mut document,
        retry_left: options.retry_seconds,
        tell,
    };
    run.start_peers(options.peers)?;
    if run.rigs.is_empty() {
        let why = run
            .document
            .missing
            .iter()
            .map(|row| format!("{}: {}", row.what, row.why));
        let why: Vec<String> = why.collect();
        return Err(io::Error::new(ErrorKind::NotFound, why.join("\n")));
    }
    let turns = run.plan_turns(&options.measures, options.lean);
    let started = Instant::now();
    run.take_turns(&turns);
    run.document.took_s = started.elapsed().as_secs_f64();
    drop(run);
    Ok(document)
}

/// A peer's turn at a measure.
struct Turn {
    measure: Measure,
    rig: usize,
    round: u32,
}

struct Run<'a> {
    rigs: Vec<Rig>,
    document: &'a mut Document,
    retry_left: f64,
    tell: &'a mut dyn FnMut(Progress),
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // What was made last goes first: each lab keeps the signals of those before it.
        while self.rigs.pop().is_some() {}
    }
}

impl Run<'_> {
    fn miss(&mut self, what: &str, why: &str) {
        let missing = Missing {
            what: what.to_string(),
            why: why.trim().to_string(),
        };
        (self.tell)(Progress::Missing(missing.clone()));
        self.document.missing.push(missing);
    }

    fn start_peers(&mut self, peers: Vec<Box<dyn Peer>>) -> io::Result<()> {
        for peer in peers {
            let name = peer.name();
            let lacks: Vec<String> = peer
                .needs()
                .iter()
                .filter_map(|need| need.missing())
                .collect();
            if !lacks.is_empty() {
                self.miss(name, &lacks.join("; "));
                continue;
            }
            (self.tell)(Progress::Starting(name.to_string()));
            let row = PeerRow {
                name: name.to_string(),
                about: peer.about().to_string(),
                version: peer.version(),
            };
            match Rig::up(peer) {
                Ok(rig) => {
                    self.rigs.push(rig);
                    self.document.peers.push(row);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => return Err(error),
                Err(error) => self.miss(name, &format!("does not start: {error}")),
            }
        }
        Ok(())
    }

    /// All windows in their order: measure by measure, round by round, everybody in turn; every other
    /// round backwards, so that nobody always comes behind the same neighbour.
    fn plan_turns(&mut self, measures: &[Measure], lean: bool) -> Vec<Turn> {
        let mut turns = Vec::new();
        for measure in measures {
            let needs = measure.needs();
            let lacks: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
            if !lacks.is_empty() {
                self.miss(measure.name, &lacks.join("; "));
                continue;
            }
            self.document.measures.push(MeasureRow {
                name: measure.name.to_string(),
                unit: measure.unit.to_string(),
                about: measure.about.to_string(),
                more_is_better: measure.more_is_better,
            });
            let who = self.who_takes_part(measure, lean);
            for round in 0..self.document.plan.repeats {
                let turn = |rig: &usize| Turn {
                    measure: *measure,
                    rig: *rig,
                    round,
                };
                match round % 2 {
                    0 => turns.extend(who.iter().map(turn)),
                    _ => turns.extend(who.iter().rev().map(turn)),
                }
            }
        }
        turns
    }

    fn who_takes_part(&mut self, measure: &Measure, lean: bool) -> Vec<usize> {
        let mut who = Vec::new();
        for index in 0..self.rigs.len() {
            let peer = &self.rigs[index].peer;
            let (name, has_udp) = (peer.name(), peer.has_udp());
            let keeps = peer.keeps_connections();
            let is_bare = matches!(peer.between(), Between::Nobody | Between::Wire);
            let pages = matches!(measure.kind, Kind::Pages { .. });
            if measure.needs_udp() && !has_udp {
                self.miss(&format!("{} of {name}", measure.name), "it has no UDP");
            } else if measure.is_memory() && !keeps {
                let why =
                    "what it keeps of connections is nothing, or the kernel's and not told apart";
                self.miss(&format!("{} of {name}", measure.name), why);
            } else if lean && pages && is_bare {
                self.miss(&format!("{} of {name}", measure.name), "left to a full run");
            } else {
                who.push(index);
            }
        }
        who
    }

    fn take_turns(&mut self, turns: &[Turn]) {
        let window = self.document.plan.window_s;
        let expected = |turns: &[Turn]| {
            let each = turns.iter().map(|turn| turn.measure.seconds(window));
            each.sum::<f64>()
        };
        let (started, all) = (Instant::now(), expected(turns));
        let mut failures: BTreeMap<(&str, usize), u32> = BTreeMap::new();
        for (done, turn) in turns.iter().enumerate() {
            if self.rigs.iter().any(Rig::is_interrupted) {
                self.document.interrupted = true;
                return;
            }
            let key = (turn.measure.name, turn.rig);
            if failures
                .get(&key)
                .is_some_and(|count| *count >= FAILURES_MAX)
            {
                continue;
            }
            // What is left, by what the part behind us took against its own expectation.
            let left = expected(&turns[done..]);
            let pace = started.elapsed().as_secs_f64() / (all - left).max(1.0);
            let name = self.rigs[turn.rig].peer.name();
            (self.tell)(Progress::Window {
                measure: turn.measure.name,
                peer: name,
                round: turn.round + 1,
                done,
                all: turns.len(),
                left: load::duration_long(left * pace.max(0.5)),
            });
            match self.take_turn(turn) {
                true => failures.remove(&key),
                false => failures.insert(key, failures.get(&key).unwrap_or(&0) + 1),
            };
        }
    }

    /// One window, and again as long as it is noisy and there is time. Was there a figure?
    fn take_turn(&mut self, turn: &Turn) -> bool {
        let plan = &self.document.plan;
        let (window, retries) = (plan.window_s, plan.retries);
        let mut fine = false;
        for attempt in 0..=retries {
            let started = Instant::now();
            let sample = self.take_window(turn, window, attempt);
            let again = sample.noisy && sample.value.is_some();
            fine |= sample.value.is_some();
            (self.tell)(Progress::Took(Box::new(sample.clone())));
            self.document.samples.push(sample);
            if attempt > 0 {
                self.retry_left -= started.elapsed().as_secs_f64();
            }
            if !again || self.retry_left < turn.measure.seconds(window) {
                break;
            }
        }
        fine
    }

    fn take_window(&mut self, turn: &Turn, window: f64, attempt: u32) -> Sample {
        let peer = self.rigs[turn.rig].peer.name();
        let talks = self.document.chosen("talk", peer);
        let talks: Vec<f64> = talks.iter().filter_map(|sample| sample.value).collect();
        let base = Summary::of(&talks).map(|summary| summary.median);
        let watch = Watch::begin();
        let outcome = self.rigs[turn.rig].measure(turn.measure.kind, window, base);
        let noise = watch.end();
        let mut sample = Sample {
            measure: turn.measure.name.to_string(),
            peer: peer.to_string(),
            round: turn.round,
            attempt,
            value: None,
            percentiles: vec![],
            beside: BTreeMap::new(),
            noisy: noise.is_loud(),
            noise,
            problem: None,
        };
        match outcome {
            Ok(outcome) => {
                sample.value = Some(outcome.value).filter(|value| value.is_finite());
                sample.percentiles = outcome.percentiles;
                sample.beside = outcome.beside;
            }
            Err(error) => sample.problem = Some(error.to_string()),
        }
        sample
    }
}

/// The words of this very program as a guest in a lab.
fn guest(words: &[&str]) -> io::Result<Vec<String>> {
    let program = std::env::current_exe()?;
    let first = [program.to_string_lossy().as_ref(), "bench", "guest"].map(str::to_string);
    let rest = words.iter().map(|word| (*word).to_string());
    Ok(first.into_iter().chain(rest).collect())
}
