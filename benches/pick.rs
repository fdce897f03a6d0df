//! A director with a thousand virtual services, one of them with a thousand real servers: what a
//! decision of every scheduler costs there, and how long a change of one of the servers stalls running
//! traffic. docs/performance.md has the figures.
//!
//! `cargo bench --bench pick -- [--rounds N] [--only SCHEDULER] [--decisions] [--stalls] [--quick]`.
//! Every figure is the median of the rounds with the lowest and the highest; the machine's noise is in
//! the spread.

#[path = "pick/decide.rs"]
mod decide;
#[path = "pick/figures.rs"]
mod figures;
#[path = "pick/house.rs"]
mod house;
#[path = "breath/nic.rs"]
mod nic;
#[path = "pick/stall.rs"]
mod stall;

use ulvs::lvs::ServiceFlags;
use ulvs::sched::NAMES;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let has = |option: &str| arguments.iter().any(|word| word == option);
    let after = |option: &str| {
        let at = arguments.iter().position(|word| word == option)?;
        arguments.get(at + 1)
    };
    let usual = if has("--quick") { 1 } else { 5 };
    let rounds = after("--rounds").and_then(|word| word.parse().ok());
    let rounds = rounds.unwrap_or(usual);
    let only = after("--only");
    let mut names = NAMES.to_vec();
    names.retain(|name| only.is_none_or(|only| only == name));
    let both = !has("--decisions") && !has("--stalls");
    if both || has("--decisions") {
        let plain = names.iter().map(|name| (*name, ServiceFlags::default()));
        let mut rows: Vec<_> = plain.collect();
        // Those that try other slots when a server is not usable.
        let hashes = names.iter().filter(|name| ["sh", "mh"].contains(name));
        rows.extend(hashes.map(|name| (*name, ServiceFlags(ServiceFlags::SCHED_1))));
        decide::table(&rows, rounds);
    }
    if both || has("--stalls") {
        stall::table(&names, rounds);
    }
}
