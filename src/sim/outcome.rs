//! What came of a run, or of many: counts, and a digest to tell whether two runs were the same.

use std::fmt;

use super::invariant::Broken;
use crate::director::{Account, DropReason};

/// How a run ended: what happened in it.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// A sum over all that the director sent and counted: the same for the same seed.
    pub digest: u64,
    /// Runs that were added up.
    pub runs: u64,
    /// The account of all workers.
    pub account: Account,
    /// Talks by fate: open at the end, done, refused, reset, lost.
    pub talks: [u64; 5],
    /// Changes and questions.
    pub requests: u64,
    /// Entries that left before their time, by the rules.
    pub replaced: u64,
    /// Most entries at once.
    pub entries_max: usize,
    /// Frames lost on the cables.
    pub frames_lost: u64,
    /// Time that passed in the runs, in seconds.
    pub seconds: u64,
}

/// A law was broken.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The run.
    pub seed: u64,
    /// The step; one more than there are if it was the end.
    pub step: u64,
    /// What went wrong.
    pub broken: Broken,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { seed, step, broken } = self;
        write!(f, "seed {seed}, step {step}: {broken}")
    }
}

impl Outcome {
    /// Adds another run.
    pub fn add(&mut self, other: &Outcome) {
        self.digest ^= other.digest;
        self.runs += other.runs;
        self.account.add(&other.account);
        let talks = self.talks.iter_mut().zip(other.talks);
        talks.for_each(|(sum, more)| *sum += more);
        self.requests += other.requests;
        self.replaced += other.replaced;
        self.entries_max = self.entries_max.max(other.entries_max);
        self.frames_lost += other.frames_lost;
        self.seconds += other.seconds;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = &self.account;
        let [open, done, refused, reset, lost] = self.talks;
        let talks: u64 = self.talks.iter().sum();
        write!(
            f,
            "{talks} talks: {done} done, {refused} refused, {reset} reset, {lost} lost, "
        )?;
        write!(f, "{open} open; ")?;
        write!(
            f,
            "{} frames read: {} forwarded, {} answered, {} passed, {} dropped (",
            account.received,
            account.forwarded,
            account.answered,
            account.passed,
            account.dropped_total()
        )?;
        let counts = DropReason::ALL.map(|reason| (reason.word(), account.dropped_for(reason)));
        let counts = counts.iter().filter(|(_, count)| *count > 0);
        let words: Vec<String> = counts
            .map(|(word, count)| format!("{word} {count}"))
            .collect();
        write!(f, "{}); {} requests, ", words.join(", "), self.requests)?;
        write!(
            f,
            "{} entries replaced, at most {} at once, ",
            self.replaced, self.entries_max
        )?;
        write!(
            f,
            "{} s of virtual time, digest {:016x}",
            self.seconds, self.digest
        )
    }
}
