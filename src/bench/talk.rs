//! Question and answer over TCP connections that stay: one at a time, for the least time a byte needs
//! there and back, or at a fixed rate that does not wait for answers. In the latter every time counts
//! from the moment a question should have been asked, so who is slow cannot hide it by being asked less
//! (coordinated omission). What was never answered counts, too.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::load::{SENDING, duration, nanos, rest, say};
use crate::lab::netns::Inside;
use crate::lab::stay;
use crate::stats::Histogram;

/// Bytes of a question, and of its answer. The first eight are its number.
pub const QUESTION_BYTES: usize = 64;
/// Most connections of one talk.
pub const CONNECTIONS_MAX: usize = 256;
/// Most questions of one talk at a rate.
pub const QUESTIONS_MAX: u64 = 20_000_000;
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long answers may still come after the last question.
const GRACE: Duration = Duration::from_secs(1);
/// The percentiles that are told.
pub const PERCENTS: [f64; 12] = [
    0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0,
];

/// What came of a talk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TalkReport {
    /// Questions that were asked, or should have been.
    pub asked: u64,
    /// Answers that came.
    pub answered: u64,
    /// From the first question to the last, in seconds.
    pub took_s: f64,
    /// Times that so many percent stay within, in nanoseconds.
    pub percentiles: Vec<(f64, u64)>,
}

impl TalkReport {
    fn of(times: &Histogram, asked: u64, answered: u64, took: Duration) -> TalkReport {
        let percentile = |percent: f64| (percent, times.percentile(percent));
        TalkReport {
            asked,
            answered,
            took_s: took.as_secs_f64(),
            percentiles: PERCENTS.map(percentile).to_vec(),
        }
    }
}

/// Asks the next question on each connection when the last one is answered.
///
/// # Errors
/// When a connection cannot be opened, or an answer does not come.
pub fn in_turn(
    _: &Inside,
    target: SocketAddr,
    connections: usize,
    seconds: f64,
) -> io::Result<TalkReport> {
    let streams = open(target, connections)?;
    say(SENDING)?;
    let start = Instant::now();
    let end = start + duration(seconds);
    let ask = |mut stream: TcpStream| {
        thread::spawn(move || {
            let (mut times, mut question) = (Histogram::new(), [0x55; QUESTION_BYTES]);
            while Instant::now() < end {
                let asked = Instant::now();
                stream.write_all(&question)?;
                stream.read_exact(&mut question)?;
                times.record(nanos(asked.elapsed()));
            }
            Ok::<Histogram, io::Error>(times)
        })
    };
    let threads: Vec<_> = streams.into_iter().map(ask).collect();
    let mut all = Histogram::new();
    for thread in threads {
        all.merge(&thread.join().expect("no panic in there")?);
    }
    Ok(TalkReport::of(
        &all,
        all.count(),
        all.count(),
        start.elapsed(),
    ))
}

/// Asks so many questions in a second, spread over the connections in turn, whether answers come or not.
///
/// # Errors
/// When a connection cannot be opened, or breaks.
pub fn at_rate(
    _: &Inside,
    target: SocketAddr,
    connections: usize,
    per_second: f64,
    seconds: f64,
) -> io::Result<TalkReport> {
    let streams = open(target, connections)?;
    let length = duration(seconds);
    let wanted = (length.as_secs_f64() * per_second.max(1.0)) as u64;
    let plan = Schedule {
        questions: wanted.clamp(1, QUESTIONS_MAX),
        per_second: per_second.max(1.0),
    };
    let (heard, all_heard) = mpsc::channel();
    let start = Instant::now();
    for (number, stream) in streams.iter().enumerate() {
        let (mut stream, heard) = (stream.try_clone()?, heard.clone());
        let mut left = plan.share(number as u64, streams.len() as u64);
        thread::spawn(move || {
            let (mut times, mut answer) = (Histogram::new(), [0; QUESTION_BYTES]);
            let mut answered = 0_u64;
            while left > 0 && stream.read_exact(&mut answer).is_ok() {
                let question = u64::from_le_bytes(answer[..8].try_into().expect("eight bytes"));
                times.record(plan.late_by(question, start.elapsed()));
                answered += 1;
                left -= 1;
            }
            // If nobody waits any more, nobody misses it.
            let _ = heard.send((times, answered));
        });
    }
    drop(heard);
    say(SENDING)?;
    ask_all(&streams, plan, start)?;
    let took = start.elapsed();
    // Readers that still wait are told that there is nothing more.
    let deadline = Instant::now() + GRACE;
    let (mut times, mut answered, mut missing) = (Histogram::new(), 0, streams.len());
    while missing > 0 {
        let left = deadline.saturating_duration_since(Instant::now());
        let Ok((part, count)) = all_heard.recv_timeout(left) else {
            streams
                .iter()
                .for_each(|stream| drop(stream.shutdown(std::net::Shutdown::Both)));
            for (part, count) in all_heard.iter() {
                times.merge(&part);
                answered += count;
            }
            break;
        };
        times.merge(&part);
        answered += count;
        missing -= 1;
    }
    // What is not answered by now took at least as long as we have waited for it.
    for _ in answered..plan.questions {
        times.record(nanos(GRACE));
    }
    Ok(TalkReport::of(&times, plan.questions, answered, took))
}

fn ask_all(streams: &[TcpStream], plan: Schedule, start: Instant) -> io::Result<()> {
    let mut question = [0x55; QUESTION_BYTES];
    for number in 0..plan.questions {
        while start.elapsed() < plan.due(number) {
            rest(plan.due(number), start);
        }
        question[..8].copy_from_slice(&number.to_le_bytes());
        let mut stream = &streams[(number % streams.len() as u64) as usize];
        stream.write_all(&question)?;
    }
    Ok(())
}

/// When each question should be asked.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    questions: u64,
    per_second: f64,
}

impl Schedule {
    fn due(self, question: u64) -> Duration {
        Duration::from_secs_f64(question as f64 / self.per_second)
    }

    /// How long after its time a question was answered.
    fn late_by(self, question: u64, now: Duration) -> u64 {
        nanos(now.saturating_sub(self.due(question)))
    }

    /// How many questions connection `number` of `all` gets.
    fn share(self, number: u64, all: u64) -> u64 {
        self.questions / all + u64::from(number < self.questions % all)
    }
}

fn open(target: SocketAddr, connections: usize) -> io::Result<Vec<TcpStream>> {
    let connect = |_| {
        let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Whoever is in between has opened its own side once an answer has come.
        let mut first = [0; QUESTION_BYTES];
        (&stream).write_all(&first)?;
        (&stream).read_exact(&mut first)?;
        Ok(stream)
    };
    (0..connections.clamp(1, CONNECTIONS_MAX))
        .map(connect)
        .collect()
}

/// Opens many connections, each with one question answered, says how many there are, and keeps them until
/// its input ends.
///
/// # Errors
/// When one cannot be opened or is not answered; how many there were is in the text.
pub fn hold(_: &Inside, target: SocketAddr, connections: usize) -> io::Result<()> {
    stay::allow_files(connections as u64 + 100);
    let mut streams = Vec::with_capacity(connections);
    for number in 0..connections {
        let opened = open(target, 1);
        let opened = opened.map_err(|error| {
            let text = format!("connection {} of {connections}: {error}", number + 1);
            io::Error::new(error.kind(), text)
        });
        streams.extend(opened?);
    }
    say(&format!("holding {}", streams.len()))?;
    io::stdin().read_line(&mut String::new())?;
    // All must still be there.
    let mut question = [0x55; QUESTION_BYTES];
    let mut alive = 0;
    for mut stream in &streams {
        let answered = stream
            .write_all(&question)
            .and_then(|()| stream.read_exact(&mut question));
        alive += usize::from(answered.is_ok());
    }
    say(&format!("alive {alive}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_question_has_its_time_and_its_connection() {
        let plan = Schedule {
            questions: 1003,
            per_second: 1000.0,
        };
        assert_eq!(plan.due(500), Duration::from_millis(500));
        let all: u64 = (0..16).map(|number| plan.share(number, 16)).sum();
        assert_eq!(all, 1003);
        assert_eq!(plan.late_by(500, Duration::from_millis(503)), 3_000_000);
        assert_eq!(plan.late_by(500, Duration::from_millis(400)), 0);
    }

    /// A server that stands still for 100 ms delays all that should have been asked meanwhile, not only
    /// the one question that was.
    #[test]
    fn a_pause_is_seen_by_all_who_should_have_asked() {
        let plan = Schedule {
            questions: 1000,
            per_second: 1000.0,
        };
        let pause = Duration::from_millis(400)..Duration::from_millis(500);
        let mut times = Histogram::new();
        for question in 0..plan.questions {
            let due = plan.due(question);
            let answered = if pause.contains(&due) { pause.end } else { due };
            times.record(plan.late_by(question, answered));
        }
        assert!(times.percentile(89.0) < 1000);
        let p95 = times.percentile(95.0);
        assert!((45_000_000..=55_000_000).contains(&p95), "{p95}");
    }
}
