//! Is the harness itself right? Known rates and times go through it, with nobody in between, and it must
//! find them again within one percent.

use std::io;

use super::measure::Kind;
use super::noise::Watch;
use super::peer;
use super::rig::Rig;

/// How far off a figure may be.
pub const TOLERANCE: f64 = 0.01;
/// Frames a second that are sent: enough to count, and easy for any machine.
const RATES: [f64; 3] = [2_000.0, 10_000.0, 50_000.0];
/// How long, in seconds.
const WINDOW_S: f64 = 1.0;
/// Questions a second, and their number is known before.
const QUESTIONS: f64 = 2_000.0;

/// A known figure, and what the harness made of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    /// What.
    pub what: String,
    /// What it is.
    pub known: f64,
    /// What was measured.
    pub measured: f64,
    /// Did others use the machine meanwhile?
    pub noisy: bool,
}

impl Check {
    /// Is it right within [`TOLERANCE`]?
    pub fn is_right(&self) -> bool {
        (self.measured - self.known).abs() <= self.known * TOLERANCE
    }
}

/// Measures what is known. A machine that is too busy for a rate is given another chance, since a
/// sender that could not send tells nothing about who counts.
///
/// # Errors
/// When no lab can be made.
pub fn run() -> io::Result<Vec<Check>> {
    let nobody = peer::all().into_iter().find(|peer| peer.name() == "none");
    let nobody = nobody.ok_or_else(|| io::Error::other("there is nobody"))?;
    let mut rig = Rig::up(nobody)?;
    let mut checks = Vec::new();
    for rate in RATES {
        checks.push(until_right(|| {
            let watch = Watch::begin();
            let stream = rig.frames(Some(rate), WINDOW_S)?;
            Ok(Check {
                what: format!("{rate} frames/s sent, as the receiver counts them"),
                known: rate,
                measured: stream.rate(),
                noisy: watch.end().is_loud(),
            })
        })?);
    }
    checks.push(until_right(|| {
        let watch = Watch::begin();
        let outcome = rig.measure(Kind::Latency(100), WINDOW_S, Some(QUESTIONS))?;
        let asked = outcome.beside.get("asked_per_second").copied();
        let unanswered = outcome
            .beside
            .get("unanswered")
            .copied()
            .unwrap_or(QUESTIONS);
        Ok(Check {
            what: format!("{QUESTIONS} questions/s asked without waiting, all answered"),
            known: QUESTIONS,
            measured: asked.unwrap_or(0.0) - unanswered / WINDOW_S,
            noisy: watch.end().is_loud(),
        })
    })?);
    Ok(checks)
}

/// Attempts at a check.
const ATTEMPTS: u32 = 3;

fn until_right(mut check: impl FnMut() -> io::Result<Check>) -> io::Result<Check> {
    let mut last = check()?;
    for _ in 1..ATTEMPTS {
        if last.is_right() {
            break;
        }
        last = check()?;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_percent_is_one_percent() {
        let check = |measured| Check {
            what: String::new(),
            known: 1000.0,
            measured,
            noisy: false,
        };
        assert!(check(1009.9).is_right() && check(990.1).is_right());
        assert!(!check(1010.2).is_right() && !check(989.0).is_right());
    }
}
