//! The simulator's sweep: the same director as the daemon's on a simulated network, led by chance; its
//! laws hold for every seed. `ULVS_SIM_SEED=n` plays one seed aloud, `ULVS_SIM_SEEDS=n` the first n
//! seeds (256), `ULVS_SIM_STEPS=n` makes runs of n steps.

use ulvs::cli::sim as cli;
use ulvs::director::DropReason;
use ulvs::sim::{self, Outcome};

/// Seeds of a sweep. With `sim::STEPS` steps each they take about 40 s of one core in a debug build.
const SEEDS: u64 = 256;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let number = text.parse();
    Some(number.unwrap_or_else(|_| panic!("{variable}={text}: not a number")))
}

#[test]
fn the_laws_hold_for_every_seed() {
    let steps = number_from("ULVS_SIM_STEPS").unwrap_or(sim::STEPS);
    let result = match number_from("ULVS_SIM_SEED") {
        Some(seed) => cli::aloud(seed, steps),
        None => {
            let seeds = number_from("ULVS_SIM_SEEDS").unwrap_or(SEEDS);
            cli::sweep((0, seeds), steps, false)
        }
    };
    let outcome = result.unwrap_or_else(|failure| panic!("{}", cli::report(&failure, steps)));
    println!("{} runs held: {outcome}", outcome.runs);
    if outcome.runs >= 100 && steps >= sim::STEPS {
        assert_reached(&outcome);
    }
}

/// A simulator in which nothing happens finds nothing: what runs are meant to reach is reached.
fn assert_reached(all: &Outcome) {
    use DropReason::*;
    let account = &all.account;
    assert!(account.forwarded > 100 * all.runs && account.answered > 10 * all.runs);
    let [open, done, refused, reset, lost] = all.talks;
    assert!(done > 10 * all.runs, "{all}");
    assert!(
        [open, refused, reset, lost]
            .iter()
            .all(|count| *count > 100),
        "{all}"
    );
    assert!(all.replaced > all.runs && all.entries_max >= 100, "{all}");
    for reason in [
        Malformed,
        TtlExceeded,
        NoRealServer,
        RealServerGone,
        TableFull,
        NoNeighbour,
        TooLong,
        TxRefused,
        AnswerLimit,
        Fragment,
        Unwanted,
        SourceRoute,
        Martian,
        Orphan,
        Defence,
        NoCallId,
    ] {
        assert!(
            account.dropped_for(reason) > 0,
            "no {}: {all}",
            reason.word()
        );
    }
}

#[test]
fn a_seed_replays_exactly() {
    let digest = |seed| {
        let outcome = sim::play(seed, 100, None).expect("the laws hold");
        (outcome.digest, outcome.account)
    };
    let first: Vec<_> = (0..12).map(digest).collect();
    let again: Vec<_> = (0..12).map(digest).collect();
    assert_eq!(first, again);
    let mut digests: Vec<u64> = first.iter().map(|(digest, _)| *digest).collect();
    digests.sort_unstable();
    digests.dedup();
    assert_eq!(digests.len(), 12, "other seeds are other runs");
}

#[test]
fn telling_a_run_does_not_change_it() {
    let mut story = Vec::new();
    let mut tell = |line: &str| story.push(line.to_string());
    let told = sim::play(7, 50, Some(&mut tell)).expect("the laws hold");
    let silent = sim::play(7, 50, None).expect("the laws hold");
    assert_eq!(told.digest, silent.digest);
    let steps = story.iter().filter(|line| line.starts_with('#')).count();
    assert_eq!(steps, 50, "every step is told");
    assert!(story.iter().any(|line| line.contains("> worker 0")));
}
