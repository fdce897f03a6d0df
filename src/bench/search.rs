//! The highest rate at which no more than a share of the frames is lost: after MLRsearch
//! (draft-ietf-bmwg-mlrsearch) and RFC 9411 section 7: a bound from above and one from below come closer
//! until they are a given ratio apart. A rate at which too much was lost, or that the sender did not
//! reach, is tried once more before it counts, since on a shared machine one bad moment is no limit; both
//! trials are counted.

use std::io;

use super::rig::{Outcome, Stream};

/// Trials of one search at most.
pub const TRIALS_MAX: u32 = 16;
/// The search ends when the bounds are this close: the upper is at most so many times the lower.
const CLOSE: f64 = 1.03;
/// A sender that falls behind the wanted rate by more than this limits the measurement itself.
const SENDER_SLACK: f64 = 0.98;
/// Below this many frames a second nothing is searched for any more.
const RATE_MIN: f64 = 1000.0;

/// What a search found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Found {
    /// The highest rate that went well; 0 if none did.
    pub lower: f64,
    /// The lowest rate that did not; the sender's own limit if all went well.
    pub upper: f64,
    /// Trials that it took.
    pub trials: u32,
    /// Was it the sender that could do no more?
    pub by_sender: bool,
}

impl Found {
    pub(super) fn outcome(self) -> Outcome {
        Outcome::of(self.lower)
            .with("not_at", self.upper)
            .with("trials", f64::from(self.trials))
            .with("limited_by_sender", f64::from(u8::from(self.by_sender)))
    }
}

/// What one trial says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Trial {
    /// Frames a second that the sender really sent.
    pub offered: f64,
    /// Frames a second that came.
    pub came: f64,
    /// The share that never came.
    pub lost: f64,
}

impl From<Stream> for Trial {
    fn from(stream: Stream) -> Trial {
        Trial {
            offered: stream.offered(),
            came: stream.rate(),
            lost: stream.lost(),
        }
    }
}

/// Searches with what sends frames at a rate, or as many as go.
///
/// # Errors
/// Of the sender.
pub(super) fn run(
    loss: f64,
    mut send: impl FnMut(Option<f64>) -> io::Result<Stream>,
) -> io::Result<Found> {
    search(loss, |rate| send(rate).map(Trial::from))
}

fn search(loss: f64, mut send: impl FnMut(Option<f64>) -> io::Result<Trial>) -> io::Result<Found> {
    let most = send(None)?;
    let mut found = Found {
        lower: 0.0,
        upper: most.offered,
        trials: 1,
        by_sender: false,
    };
    if most.lost <= loss {
        (found.lower, found.by_sender) = (most.offered, true);
        return Ok(found);
    }
    // What came under overload is a good guess for what can be carried.
    let mut next = most.came.min(most.offered * 0.9);
    while found.trials < TRIALS_MAX && next >= RATE_MIN && found.upper > found.lower * CLOSE {
        let (fine, trial) = holds(loss, next, &mut found.trials, &mut send)?;
        match fine {
            true if trial.offered < next * SENDER_SLACK => {
                // All came, but the sender cannot do what was wanted.
                (found.lower, found.upper) = (trial.offered, trial.offered);
                found.by_sender = true;
            }
            true => found.lower = next,
            false => found.upper = next,
        }
        next = match found.lower > 0.0 {
            // What came under overload mostly is the limit: a little above it nothing holds.
            true if fine && found.trials <= 3 => (found.lower * CLOSE).min(found.upper * 0.99),
            // In the middle of the ratio, not of the difference.
            true => (found.lower * found.upper).sqrt(),
            false => found.upper * 0.7,
        };
    }
    Ok(found)
}

/// Does this rate hold, if need be at the second attempt?
fn holds(
    loss: f64,
    rate: f64,
    trials: &mut u32,
    send: &mut impl FnMut(Option<f64>) -> io::Result<Trial>,
) -> io::Result<(bool, Trial)> {
    let mut last = send(Some(rate))?;
    *trials += 1;
    let in_doubt = last.lost > loss || last.offered < rate * SENDER_SLACK;
    if in_doubt && *trials < TRIALS_MAX {
        last = send(Some(rate))?;
        *trials += 1;
    }
    Ok((last.lost <= loss, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A device that carries so many frames, behind a sender that can send so many.
    fn device(capacity: f64, sender: f64) -> impl FnMut(Option<f64>) -> io::Result<Trial> {
        move |rate| {
            let offered = rate.unwrap_or(sender).min(sender);
            let came = offered.min(capacity);
            Ok(Trial {
                offered,
                came,
                lost: 1.0 - came / offered,
            })
        }
    }

    #[test]
    fn the_limit_is_found_within_the_ratio() {
        for capacity in [5_000.0, 123_456.0, 480_000.0] {
            for loss in [0.0, 0.005] {
                let found = search(loss, device(capacity, 500_000.0)).unwrap();
                let limit = capacity / (1.0 - loss);
                assert!(
                    found.lower <= limit && limit <= found.upper,
                    "{capacity}: {found:?}"
                );
                assert!(found.upper <= found.lower * CLOSE, "{capacity}: {found:?}");
                assert!(found.trials <= TRIALS_MAX && !found.by_sender);
            }
        }
    }

    #[test]
    fn a_sender_that_is_too_slow_is_named() {
        let found = search(0.0, device(2e6, 500_000.0)).unwrap();
        assert!(found.by_sender && found.lower == 500_000.0);
    }

    /// One bad moment does not halve the figure.
    #[test]
    fn a_bad_moment_is_no_limit() {
        let mut steady = device(300_000.0, 500_000.0);
        let mut count = 0;
        let found = search(0.0, |rate| {
            count += 1;
            let trial = steady(rate)?;
            let bad = count % 4 == 2;
            Ok(Trial {
                lost: if bad { 0.5 } else { trial.lost },
                ..trial
            })
        });
        let found = found.unwrap();
        assert!(found.lower > 270_000.0, "{found:?}");
    }

    #[test]
    fn nothing_that_works_ends_as_well() {
        let found = search(0.0, |rate| {
            let offered = rate.unwrap_or(500_000.0);
            Ok(Trial {
                offered,
                came: 0.0,
                lost: 1.0,
            })
        });
        assert_eq!(found.unwrap().lower, 0.0);
        let found = search(0.0, |rate| {
            let offered = rate.unwrap_or(500_000.0);
            Ok(Trial {
                offered,
                came: offered * 0.9,
                lost: 0.1,
            })
        });
        let found = found.unwrap();
        assert!(
            found.lower == 0.0 && found.trials <= TRIALS_MAX,
            "{found:?}"
        );
    }
}
