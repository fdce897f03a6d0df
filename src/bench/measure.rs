//! What is measured, and how one window of it goes: each in a rig, which is a lab with a peer in its
//! middle and the ends on both sides. The rigs of all peers are up all the time, so that windows can be
//! taken in turns; those that are not measured are idle.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use super::load::{
    BULK_PORT, Counts, ECHO_PORT, FRAMES_PORT, FramesReport, PONG_PORT, SENDING, WEB_PORT, sleep,
};
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
/// Connections that are held.
const HELD: usize = 5000;

/// A kind of window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// TCP streams, so many.
    Bulk(usize),
    /// Web pages; each with a connection of its own, or on connections that stay.
    Pages {
        /// A connection for each.
        close: bool,
    },
    /// Frames, as many as go.
    Frames,
    /// The most frames of which no more than this share is lost.
    FramesWithin(f64),
    /// One question at a time on one connection, all on one processor.
    PingPong,
    /// One question at a time on each of several connections.
    Talk,
    /// Questions at so many percent of the rate that `Talk` has found.
    Latency(u8),
    /// Connections that are open at the same time.
    Held,
}

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// The name in all tables.
    pub name: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// What exactly.
    pub about: &'static str,
    /// Is more better?
    pub more_is_better: bool,
    /// How.
    pub kind: Kind,
}

impl Measure {
    const fn new(
        name: &'static str,
        unit: &'static str,
        kind: Kind,
        about: &'static str,
    ) -> Measure {
        let more_is_better = !matches!(kind, Kind::PingPong | Kind::Latency(_) | Kind::Held);
        Measure {
            name,
            unit,
            about,
            more_is_better,
            kind,
        }
    }

    /// Is it about datagrams?
    pub const fn needs_udp(&self) -> bool {
        matches!(self.kind, Kind::Frames | Kind::FramesWithin(_))
    }

    /// What must be installed.
    pub fn needs(&self) -> Vec<peer::Need> {
        match self.kind {
            Kind::Pages { .. } => vec![peer::Need::Program("wrk", "wrk")],
            _ => vec![],
        }
    }

    /// How long one window of it takes about, in seconds.
    pub fn seconds(&self, window: f64) -> f64 {
        match self.kind {
            Kind::Pages { .. } => window.ceil() + 0.1,
            Kind::FramesWithin(_) => (window + 0.3) * f64::from(search::TRIALS_MAX) * 0.4,
            Kind::Held => 4.0,
            _ => window + 0.3,
        }
    }
}

/// Everything that is measured, in the order in which it is: what needs a figure of another comes later.
pub const ALL: [Measure; 13] = [
    Measure::new(
        "bulk1",
        "bit/s",
        Kind::Bulk(1),
        "bytes of one TCP stream that the receiver read",
    ),
    Measure::new(
        "bulk8",
        "bit/s",
        Kind::Bulk(8),
        "bytes of eight TCP streams that the receiver read",
    ),
    Measure::new(
        "connections",
        "conn/s",
        Kind::Pages { close: true },
        "web pages with a new TCP connection for each, wrk with 64 at once",
    ),
    Measure::new(
        "requests",
        "req/s",
        Kind::Pages { close: false },
        "web pages on connections that stay, wrk with 64",
    ),
    Measure::new(
        "frames",
        "frames/s",
        Kind::Frames,
        "UDP frames of 64 bytes in 256 flows, as many as the sender can; the receiver counts",
    ),
    Measure::new(
        "pingpong",
        "s",
        Kind::PingPong,
        "median time of 64 bytes there and back on one TCP connection; both ends, and a director \
         of one worker, on one processor",
    ),
    Measure::new(
        "talk",
        "answers/s",
        Kind::Talk,
        "64 bytes there and back on 16 TCP connections, one question at a time on each",
    ),
    Measure::new(
        "latency10",
        "s",
        Kind::Latency(10),
        "99 of 100 answers within; questions at 10 % of the peer's own talk rate, whether \
         answered or not",
    ),
    Measure::new("latency50", "s", Kind::Latency(50), "the same at 50 %"),
    Measure::new("latency90", "s", Kind::Latency(90), "the same at 90 %"),
    Measure::new(
        "frames-all",
        "frames/s",
        Kind::FramesWithin(0.0),
        "highest rate found at which no frame of 64 bytes was lost (search after MLRsearch)",
    ),
    Measure::new(
        "frames-995",
        "frames/s",
        Kind::FramesWithin(0.005),
        "highest rate found at which at most 0.5 % of the frames were lost",
    ),
    Measure::new(
        "memory",
        "bytes",
        Kind::Held,
        "memory of the peer's processes for each of 5,000 open connections; what the kernel keeps \
         is not in it",
    ),
];

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
        let name = format!("bench-{}-{}", peer.name(), std::process::id());
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
            Kind::Held => self.held(),
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
    fn what_needs_a_figure_of_another_comes_later() {
        let at = |wanted: &str| ALL.iter().position(|measure| measure.name == wanted);
        assert!(at("talk") < at("latency10"));
        let mut names: Vec<&str> = ALL.iter().map(|measure| measure.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }

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
