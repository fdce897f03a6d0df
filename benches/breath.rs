//! ns per frame of the whole `Worker::breathe` path on frames in memory, beside a bare loop that only
//! parses and rewrites; and the candidates for the connection table side by side.
//!
//! `cargo bench --bench breath -- [--flows N] [--frames N] [--only ROW] [--quick]`. Every figure is the median of interleaved
//! rounds of processor time, with the lowest and the highest; the machine's noise is in the spread.

#[path = "breath/nic.rs"]
mod nic;
#[path = "breath/world.rs"]
mod world;

use ulvs::lvs::{ForwardMethod, Tunnel, TunnelChecksum};
use world::{From, World};

struct Row {
    name: String,
    rounds: Vec<f64>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let quick = arguments.iter().any(|word| word == "--quick");
    let given = arguments.iter().position(|word| word == "--flows");
    let given = given
        .and_then(|at| arguments.get(at + 1))
        .and_then(|word| word.parse().ok());
    let flows = given.map_or(vec![1_000, 1_000_000], |flows: usize| vec![flows]);
    let rounds = if quick { 3 } else { 7 };
    let frames = number_after(&arguments, "--frames").unwrap_or(1 << 20);
    for flows in flows {
        println!("\n{flows} established NAT connections, uniformly random, both directions");
        report(&measure(
            flows,
            rounds,
            frames,
            number_after(&arguments, "--only"),
        ));
    }
}

fn number_after(arguments: &[String], option: &str) -> Option<usize> {
    let at = arguments.iter().position(|word| word == option)?;
    arguments.get(at + 1)?.parse().ok()
}

fn measure(flows: usize, rounds: usize, frames: usize, only: Option<usize>) -> Vec<Row> {
    let names = [
        "bare: parse and rewrite",
        "breathe, index and table",
        "breathe, table alone",
        "breathe, full NAT",
    ];
    let row = |name: &str| Row {
        name: name.to_string(),
        rounds: Vec::new(),
    };
    let mut rows: Vec<Row> = names.map(row).into();
    let wanted = |number| only.is_none_or(|only| only == number);
    let nat = (ForwardMethod::Masq, Tunnel::Ipip);
    let both_ends = (ForwardMethod::FullNat, Tunnel::Ipip);
    let mut with_index = wanted(1).then(|| World::established(flows, true, nat));
    let mut table_alone = wanted(2).then(|| World::established(flows, false, nat));
    let mut full_nat = wanted(3).then(|| World::established(flows, true, both_ends));
    // Every flow is seen before the clock starts: what is measured is established traffic.
    let worlds = [&mut with_index, &mut table_alone, &mut full_nat];
    for world in worlds.into_iter().flatten() {
        world.run(From::Both, 4 * flows);
    }
    for _ in 0..rounds {
        if wanted(0) {
            rows[0].rounds.push(time(|| world::bare(flows, frames)));
        }
        if let Some(world) = &mut with_index {
            rows[1].rounds.push(time(|| world.run(From::Both, frames)));
        }
        if let Some(world) = &mut table_alone {
            rows[2].rounds.push(time(|| world.run(From::Both, frames)));
        }
        if let Some(world) = &mut full_nat {
            rows[3].rounds.push(time(|| world.run(From::Both, frames)));
        }
    }
    // These see clients only. One world after the other: together they would not fit into memory.
    for (number, (name, way)) in (4..).zip(one_way()) {
        if !wanted(number) {
            continue;
        }
        let mut world = World::established(flows, true, way);
        world.run(From::Client, 4 * flows);
        let mut row = row(name);
        row.rounds
            .extend((0..rounds).map(|_| time(|| world.run(From::Client, frames))));
        rows.push(row);
    }
    rows.retain(|row| !row.rounds.is_empty());
    rows
}

/// The methods whose real servers answer past the director.
fn one_way() -> [(&'static str, (ForwardMethod, Tunnel)); 6] {
    use TunnelChecksum::{Full, No};
    let tunnel = |tunnel| (ForwardMethod::Tunnel, tunnel);
    let gue = |checksum| {
        tunnel(Tunnel::Gue {
            port: 6080,
            checksum,
        })
    };
    let gre = |checksum| tunnel(Tunnel::Gre { checksum });
    [
        ("breathe, DR", (ForwardMethod::Route, Tunnel::Ipip)),
        ("breathe, IPIP", tunnel(Tunnel::Ipip)),
        ("breathe, GUE", gue(No)),
        ("breathe, GUE, checksum", gue(Full)),
        ("breathe, GRE", gre(No)),
        ("breathe, GRE, checksum", gre(Full)),
    ]
}

/// ns per frame of one round.
fn time(round: impl FnOnce() -> usize) -> f64 {
    let start = cpu_ns();
    let frames = round();
    (cpu_ns() - start) as f64 / frames as f64
}

/// Processor time of this thread so far: what other programs take meanwhile is not counted.
fn cpu_ns() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux tells this");
    let first = text
        .split_whitespace()
        .next()
        .and_then(|word| word.parse().ok());
    first.expect("a number of nanoseconds")
}

fn report(rows: &[Row]) {
    println!(
        "{:<28}{:>10}{:>18}{:>10}",
        "", "median ns", "(min - max)", "of bare"
    );
    let median = |row: &Row| {
        let mut sorted = row.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        (
            sorted[sorted.len() / 2],
            sorted[0],
            sorted[sorted.len() - 1],
        )
    };
    let bare = median(&rows[0]).0;
    for row in rows {
        let (middle, low, high) = median(row);
        let spread = format!("({low:.1} - {high:.1})");
        println!(
            "{:<28}{middle:>10.1}{spread:>18}{:>10.2}",
            row.name,
            middle / bare
        );
    }
}
