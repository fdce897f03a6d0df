//! How a window goes: in a rig, which is a lab with a peer in its middle and the ends on both sides. The
//! rigs of all peers are up all the time, so that windows can be taken in turns; those that are not
//! measured are idle.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::load::{
    BULK_PORT, Counts, ECHO_PORT, FRAMES_PORT, FramesReport, PONG_PORT, SENDING, WEB_PORT, sleep,
};
use super::measure::{HELD, Kind, MANY_FLOWS, MANY_FLOWS_RATE};
use super::noise::{cpu_ns, memory_bytes};
use super::peer::{self, Peer, READY_TIMEOUT, last_processor};
use super::talk::TalkReport;
use super::{guest, search, wrk};
use crate::lab::Lab;
use crate::lab::program::Program;

/// How long a load goes on before it is looked at.
pub const LEAD: Duration = Duration::from_millis(100);
/// How much longer it goes on than it is looked at.
const TAIL: Duration = Duration::from_millis(50);
/// How long any load may take beyond its own time.
const PATIENCE: Duration = Duration::from_secs(15);
/// Source ports of the frames, as in docs/performance.md.
const FLOWS: u16 = 256;
/// Connections of the talks at a rate.
const TALKERS: usize = 16;

/// What one window brought.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// The figure.
    pub value: f64,
    /// Times that so many percent stay within, in nanoseconds.
    pub percentiles: Vec<(f64, u64)>,
    /// What else was seen.
    pub beside: BTreeMap<String, f64>,
}

impl Outcome {
    pub(super) fn of(value: f64) -> Outcome {
        Outcome {
            value,
            ..Outcome::default()
        }
    }

    pub(super) fn with(mut self, name: &str, value: f64) -> Outcome {
        self.beside.insert(name.to_string(), value);
        self
    }
}

/// A lab with a peer in its middle, and the ends. What is first is dropped first.
pub struct Rig {
    /// Whom it is about.
    pub peer: Box<dyn Peer>,
    programs: Vec<Program>,
    ends: Program,
    _echoes: Vec<Program>,
    lab: Lab,
}

impl Rig {
    /// Makes the network, starts the peer and the ends.
    ///
    /// # Errors
    /// What was refused; nothing is left of the attempt.
    pub fn up(peer: Box<dyn Peer>) -> io::Result<Rig> {
        Rig::named(peer, "bench")
    }

    /// Another one with the same peer, which has seen nothing yet: what a process has once had of memory
    /// it often keeps.
    fn fresh(&self) -> io::Result<Rig> {
        let all = peer::all().into_iter();
        let mut same = all.filter(|peer| peer.name() == self.peer.name());
        let peer = same.next().ok_or(io::ErrorKind::NotFound)?;
        Rig::named(peer, "fresh")
    }

    fn named(peer: Box<dyn Peer>, what: &str) -> io::Result<Rig> {
        let name = format!("{what}-{}-{}", peer.name(), std::process::id());
        let network = peer::network(&*peer);
        crate::lab::check_machine(&network)?;
        let mut lab = Lab::start(network, Some(&name))?;
        let programs = peer.start(&mut lab)?;
        let start = |words: &[&str], cpu| {
            let mut program = lab.start_program("rs1", &guest(words)?, cpu)?;
            program.next_line(READY_TIMEOUT)?;
            Ok::<Program, io::Error>(program)
        };
        let ends = start(&["ends"], None)?;
        let echo = start(&["echo", &ECHO_PORT.to_string()], None)?;
        let pong = start(&["echo", &PONG_PORT.to_string()], Some(last_processor()))?;
        Ok(Rig {
            peer,
            programs,
            ends,
            _echoes: vec![echo, pong],
            lab,
        })
    }

    /// Has somebody asked to stop?
    pub fn is_interrupted(&self) -> bool {
        self.lab.is_interrupted()
    }

    /// One window. `base` is what this peer's talk has reached, for who needs it.
    ///
    /// # Errors
    /// When load or peer fail; the rig may be used again.
    pub fn measure(&mut self, kind: Kind, window: f64, base: Option<f64>) -> io::Result<Outcome> {
        match kind {
            Kind::Bulk(streams) => self.bulk(streams, window),
            Kind::Pages { close } => self.pages(close, window),
            Kind::Frames => self.frames(None, window).map(|seen| seen.outcome()),
            Kind::FramesWithin(loss) => {
                search::run(loss, |rate| self.frames(rate, window)).map(search::Found::outcome)
            }
            Kind::PingPong => self.ping_pong(window),
            Kind::Talk => self.talk(window),
            Kind::Latency(percent) => {
                let base = base.ok_or_else(|| {
                    io::Error::other("needs the rate that `talk` finds: measure it, too")
                })?;
                self.latency(base * f64::from(percent) / 100.0, window)
            }
            Kind::Held => self.fresh()?.held(),
            Kind::ManyFlows => self.fresh()?.many_flows(),
        }
    }

    /// Processes of the peer: none where the kernel does the work.
    fn pids(&self) -> Vec<i32> {
        let programs = self.programs.iter().flat_map(Program::pids);
        programs.chain(self.lab.director_pids()).collect()
    }

    fn counts(&mut self) -> io::Result<Counts> {
        self.ends.tell("counts")?;
        Ok(serde_json::from_str(&self.ends.next_line(PATIENCE)?)?)
    }

    fn load(&self, words: &[&str], cpu: Option<usize>) -> io::Result<Program> {
        let mut program = self.lab.start_program("client", &guest(words)?, cpu)?;
        let line = program.next_line(PATIENCE)?;
        match line == SENDING {
            true => Ok(program),
            false => Err(io::Error::other(line)),
        }
    }

    fn target(&self, port: u16) -> String {
        format!("{}:{port}", self.peer.target())
    }

    /// What the ends counted, and how long the peer was on processors, in the middle of a load.
    fn watch(&mut self, window: f64) -> io::Result<Watched> {
        sleep(LEAD);
        let pids = self.pids();
        let (first, cpu_first) = (self.counts()?, cpu_ns(&pids));
        sleep(Duration::from_secs_f64(window));
        let (second, cpu_second) = (self.counts()?, cpu_ns(&pids));
        Ok(Watched {
            seconds: second.at_ns.saturating_sub(first.at_ns) as f64 / 1e9,
            bytes: second.bytes.saturating_sub(first.bytes) as f64,
            datagrams: second.datagrams.saturating_sub(first.datagrams) as f64,
            cpu_ns: (!pids.is_empty()).then(|| cpu_second.saturating_sub(cpu_first) as f64),
        })
    }

    fn bulk(&mut self, streams: usize, window: f64) -> io::Result<Outcome> {
        let seconds = whole(window).to_string();
        let target = self.target(BULK_PORT);
        let words = [
            "bulk",
            &target,
            "--streams",
            &streams.to_string(),
            "--seconds",
            &seconds,
        ];
        let load = self.load(&words, None)?;
        let seen = self.watch(window)?;
        load.finish(PATIENCE)?;
        let outcome = Outcome::of(seen.bytes * 8.0 / seen.seconds);
        Ok(seen.with_cpu(outcome, seen.bytes / 1024.0, "peer_ns_per_kib"))
    }

    pub(super) fn frames(&mut self, rate: Option<f64>, window: f64) -> io::Result<Stream> {
        let (target, via) = (self.target(FRAMES_PORT), self.peer.neighbour().to_string());
        let (seconds, flows) = (whole(window).to_string(), FLOWS.to_string());
        let mut words = vec!["frames", &target, "--via", &via, "--seconds", &seconds];
        words.extend(["--flows", &flows]);
        let per_second = rate.unwrap_or(0.0).to_string();
        if rate.is_some() {
            words.extend(["--per-second", &per_second]);
        }
        let before = self.counts()?;
        let load = self.load(&words, Some(0))?;
        let watched = self.watch(window)?;
        let sent: FramesReport = serde_json::from_str(&load.finish(PATIENCE)?)?;
        // What is still under way has left the sender long ago; a queue of 100 ms is the longest here.
        sleep(LEAD);
        let after = self.counts()?;
        Ok(Stream {
            sent,
            came: after.datagrams.saturating_sub(before.datagrams),
            watched,
        })
    }

    fn pages(&mut self, close: bool, window: f64) -> io::Result<Outcome> {
        let words = wrk::words(&self.target(WEB_PORT), close, window);
        let words: Vec<String> = words.into_iter().collect();
        let pids = self.pids();
        let before = cpu_ns(&pids);
        let program = self.lab.start_program("client", &words, None)?;
        let text = program.finish(PATIENCE + Duration::from_secs_f64(window.ceil()))?;
        let cpu = cpu_ns(&pids).saturating_sub(before) as f64;
        let report = wrk::parse(&text).map_err(io::Error::other)?;
        let mut outcome = Outcome::of(report.per_second).with("errors", report.errors);
        if !pids.is_empty() {
            outcome = outcome.with("peer_ns_each", cpu / report.requests.max(1.0));
        }
        Ok(outcome)
    }

    fn ping_pong(&mut self, window: f64) -> io::Result<Outcome> {
        let (target, seconds) = (self.target(PONG_PORT), window.to_string());
        let words = ["talk", &target, "--connections", "1", "--seconds", &seconds];
        let report = self.talk_report(&words, Some(last_processor()))?;
        let median = at_percent(&report, 50.0)?;
        Ok(Outcome {
            value: median,
            percentiles: report.percentiles,
            ..Outcome::default()
        })
    }

    fn talk(&mut self, window: f64) -> io::Result<Outcome> {
        let (target, seconds) = (self.target(ECHO_PORT), window.to_string());
        let connections = TALKERS.to_string();
        let words = [
            "talk",
            &target,
            "--connections",
            &connections,
            "--seconds",
            &seconds,
        ];
        let report = self.talk_report(&words, None)?;
        Ok(Outcome {
            value: report.answered as f64 / report.took_s,
            percentiles: report.percentiles,
            ..Outcome::default()
        })
    }

    fn latency(&mut self, rate: f64, window: f64) -> io::Result<Outcome> {
        let (target, seconds) = (self.target(ECHO_PORT), window.to_string());
        let (connections, rate_word) = (TALKERS.to_string(), rate.to_string());
        let mut words = vec!["talk", &target, "--connections", &connections];
        words.extend(["--seconds", &seconds, "--per-second", &rate_word]);
        let report = self.talk_report(&words, None)?;
        let unanswered = report.asked.saturating_sub(report.answered) as f64;
        let outcome = Outcome::of(at_percent(&report, 99.0)?)
            .with("per_second", rate)
            .with("asked", report.asked as f64)
            .with("asked_per_second", report.asked as f64 / report.took_s)
            .with("unanswered", unanswered);
        Ok(Outcome {
            percentiles: report.percentiles,
            ..outcome
        })
    }

    fn talk_report(&self, words: &[&str], cpu: Option<usize>) -> io::Result<TalkReport> {
        let text = self.load(words, cpu)?.finish(PATIENCE)?;
        Ok(serde_json::from_str(&text)?)
    }

    fn many_flows(&mut self) -> io::Result<Outcome> {
        let pids = self.pids();
        let before = memory_bytes(&pids);
        let (target, via) = (self.target(FRAMES_PORT), self.peer.neighbour().to_string());
        let (flows, rate) = (MANY_FLOWS.to_string(), MANY_FLOWS_RATE.to_string());
        let mut words = vec!["frames", &target, "--via", &via, "--flows", &flows];
        words.extend(["--frames", &flows, "--per-second", &rate, "--seconds", "60"]);
        let counted = self.counts()?;
        let text = self.load(&words, Some(0))?.finish(PATIENCE * 5)?;
        let sent: FramesReport = serde_json::from_str(&text)?;
        sleep(LEAD);
        let grown = memory_bytes(&pids).saturating_sub(before) as f64;
        let came = self.counts()?.datagrams.saturating_sub(counted.datagrams) as f64;
        // Whoever loses a frame does not remember its flow.
        let outcome = Outcome::of(grown / came.max(1.0));
        Ok(outcome
            .with("flows", came)
            .with("lost", 1.0 - came / sent.sent.max(1) as f64)
            .with("per_second", sent.sent as f64 / sent.took_s.max(1e-9)))
    }

    fn held(&mut self) -> io::Result<Outcome> {
        let pids = self.pids();
        let before = memory_bytes(&pids);
        let target = self.target(ECHO_PORT);
        let words = guest(&["hold", &target, "--connections", &HELD.to_string()])?;
        let started = Instant::now();
        let mut load = self.lab.start_program("client", &words, None)?;
        load.next_line(PATIENCE * 2)?;
        let took = started.elapsed().as_secs_f64();
        let grown = memory_bytes(&pids).saturating_sub(before) as f64;
        load.tell("end")?;
        let alive = load.next_line(PATIENCE)?;
        let alive = alive
            .strip_prefix("alive ")
            .and_then(|text| text.parse::<f64>().ok());
        load.finish(PATIENCE)?;
        let alive = alive.ok_or_else(|| io::Error::other("nobody says what is left"))?;
        let outcome = Outcome::of(grown / HELD as f64);
        Ok(outcome
            .with("connections", HELD as f64)
            .with("alive", alive)
            .with("opening_s", took))
    }
}

/// A whole load: what is looked at, and what is before and behind it.
fn whole(window: f64) -> f64 {
    window + (LEAD + TAIL).as_secs_f64()
}

fn at_percent(report: &TalkReport, percent: f64) -> io::Result<f64> {
    let found = report.percentiles.iter().find(|(name, _)| *name == percent);
    found
        .map(|(_, nanos)| *nanos as f64 / 1e9)
        .ok_or_else(|| io::Error::other(format!("no {percent} % in the report")))
}

/// What was counted between two moments in the middle of a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Watched {
    seconds: f64,
    bytes: f64,
    datagrams: f64,
    cpu_ns: Option<f64>,
}

impl Watched {
    fn with_cpu(&self, outcome: Outcome, pieces: f64, name: &str) -> Outcome {
        match self.cpu_ns {
            None => outcome,
            Some(cpu) => outcome
                .with("peer_processors", cpu / 1e9 / self.seconds)
                .with(name, cpu / pieces.max(1.0)),
        }
    }
}

/// A stream of frames, as sender and receiver saw it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stream {
    /// What the sender says.
    pub sent: FramesReport,
    /// All that came in the end.
    pub came: u64,
    /// What came in the middle of it.
    pub watched: Watched,
}

impl Stream {
    /// Frames a second that came.
    pub fn rate(&self) -> f64 {
        self.watched.datagrams / self.watched.seconds
    }

    /// Frames a second that were sent.
    pub fn offered(&self) -> f64 {
        self.sent.sent as f64 / self.sent.took_s.max(1e-9)
    }

    /// The share that never came. What the sender's interface refused was never sent.
    pub fn lost(&self) -> f64 {
        1.0 - self.came as f64 / self.sent.sent.max(1) as f64
    }

    fn outcome(&self) -> Outcome {
        let outcome = Outcome::of(self.rate())
            .with("offered", self.offered())
            .with("lost", self.lost());
        self.watched
            .with_cpu(outcome, self.watched.datagrams, "peer_ns_each")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_receiver_decides() {
        let stream = Stream {
            sent: FramesReport {
                sent: 2000,
                refused: 500,
                took_s: 2.0,
            },
            came: 1500,
            watched: Watched {
                seconds: 0.5,
                bytes: 0.0,
                datagrams: 300.0,
                cpu_ns: Some(250e6),
            },
        };
        assert_eq!(
            (stream.rate(), stream.offered(), stream.lost()),
            (600.0, 1000.0, 0.25)
        );
        let outcome = stream.outcome();
        assert_eq!(outcome.beside["peer_processors"], 0.5);
        assert!((outcome.beside["peer_ns_each"] - 833_333.3).abs() < 1.0);
    }
}
