//! A SYN flood at full speed while a thousand connections transfer: none breaks, the table stays within
//! its limit, and the three defences do in each mode what `update_defense_level` does. Here it is short;
//! `tools/lab-flood` takes its time (`ULVS_FLOOD_SECONDS`), each defence by itself.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use ulvs::cli::client::Client;
use ulvs::config::command::{AccountRow, ConnRow, StatusRow};
use ulvs::config::{Command, Listing, Query, Reply, Request};
use ulvs::lab::flood::FloodReport;
use ulvs::lab::stay::StayReport;
use ulvs::lvs::{Endpoint, Tunables};

use super::{PATIENCE, Place, pass, wait};

/// Entries of the director's table. A full one leaves no page of memory, an idle one more than
/// `MEMORY` pages.
const ENTRIES_MAX: u64 = 20_000;
const ENTRIES_PER_PAGE: u64 = 16;
/// `amemthresh`: as it is by default; more pages than the whole table has; none.
const MEMORY: u64 = 1024;
const SCARCE: u64 = 2048;
const PLENTY: u64 = 0;
/// Connections that stay.
const CONNECTIONS: u64 = 1000;
/// Segments of a measured burst, and how many of them in a second.
const BURST: u64 = 200;
const BURST_PER_SECOND: u64 = 2000;
/// `am_droprate` by default.
const DROP_RATE: u64 = 10;
/// Segments after which the table is full, even if half of them were lost.
const FILLING: &str = "50000";
/// More than one period of the defences: in it, something is dropped or nothing is.
const PERIOD: Duration = Duration::from_millis(1300);
const DEFENCES: [&str; 3] = ["drop_entry", "drop_packet", "secure_tcp"];

/// Modes of `DEFENCES`.
type Modes = [i64; 3];

/// A lab whose director is under attack.
struct Siege<'p> {
    place: &'p Place,
    lab: String,
    control: Client,
    stay: Child,
    said: BufReader<std::process::ChildStdout>,
    seed: u64,
}

/// What a claim is about, for whoever reads along.
fn holds(what: &str, is: bool, seen: impl std::fmt::Display) {
    assert!(is, "FAILS   {what}: {seen}");
    println!("holds   {what}: {seen}");
}

#[test]
fn a_flood_breaks_no_connection_and_meets_the_defences() {
    let place = Place::new();
    let seconds = std::env::var("ULVS_FLOOD_SECONDS").ok();
    match seconds.map(|text| text.parse::<u64>().expect("ULVS_FLOOD_SECONDS is a number")) {
        None => short(&place),
        Some(seconds) => long(&place, seconds),
    }
    place.assert_empty();
}

/// One lab; the three defences change their mode together.
fn short(place: &Place) {
    let mut siege = Siege::begin(place, "flood");
    for mode in 0..4 {
        siege.check_modes([mode; 3]);
    }
    for mode in 0..4 {
        siege.flood([mode; 3], 1);
        siege.memory_is_back([mode; 3]);
    }
    siege.end();
}

/// A lab for each mode of each defence, and one in which memory comes back by itself.
fn long(place: &Place, seconds: u64) {
    for (at, name) in DEFENCES.iter().enumerate() {
        for mode in 0..4 {
            println!("== {name} = {mode}");
            let mut modes = [0; 3];
            modes[at] = mode;
            let mut siege = Siege::begin(place, &format!("{}-{mode}", name.replace('_', "-")));
            siege.check_modes(modes);
            siege.flood(modes, seconds);
            siege.memory_is_back(modes);
            siege.end();
        }
    }
    println!("== all three by themselves, and the entries expire");
    let mut siege = Siege::begin(place, "flood");
    siege.flood([1; 3], seconds);
    siege.wait_for_tunables([1; 3], Duration::from_secs(200));
    let left = siege.status().connections;
    let room = (ENTRIES_MAX - left) / ENTRIES_PER_PAGE;
    holds(
        "memory is back once entries have gone",
        room >= MEMORY,
        format!("{left} entries"),
    );
    siege.end();
}

/// What a mode reads as while memory is plenty, or scarce.
fn in_force(modes: Modes, scarce: bool) -> Modes {
    modes.map(|mode| match mode {
        1 | 2 => 1 + i64::from(scarce),
        mode => mode,
    })
}

impl<'p> Siege<'p> {
    /// A director with a small table, and connections through it that have each had a page.
    fn begin(place: &'p Place, lab: &str) -> Siege<'p> {
        let limit = format!("conn_entries_max={ENTRIES_MAX}");
        place.fine(&[
            "nat",
            "--requests",
            "1",
            "--keep",
            "--name",
            lab,
            "--limit",
            &limit,
        ]);
        let control = place.labs().join(lab).join("control");
        let mut stay = inside(place, lab, &["stay", "1.2.3.1:80", "--connections"])
            .arg(CONNECTIONS.to_string())
            .stdin(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(stay.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), format!("opened {CONNECTIONS}"));
        Siege {
            place,
            lab: lab.to_string(),
            control: Client::connect(control.to_str().unwrap()).unwrap(),
            stay,
            said,
            seed: 1,
        }
    }

    /// The connections end, each after one more page; so does the lab.
    fn end(mut self) {
        drop(self.stay.stdin.take());
        let mut text = String::new();
        self.said.read_to_string(&mut text).unwrap();
        let status = wait(&mut self.stay, PATIENCE).expect("it ends");
        assert!(status.success(), "{text}");
        let report: StayReport = serde_json::from_str(&text).unwrap();
        let StayReport {
            connections,
            pages,
            pages_min,
            bytes,
            slowest_us,
            ..
        } = report;
        let mib = bytes >> 20;
        let slowest_ms = slowest_us / 1000;
        let broken = report.broken;
        holds(
            "no connection broke",
            broken.is_empty(),
            format!("{broken:?} of {connections}"),
        );
        holds(
            "each of them transferred",
            connections == CONNECTIONS && pages_min >= 2,
            format!("{pages} pages, {mib} MiB, at least {pages_min} each, slowest {slowest_ms} ms"),
        );
        let account = self.account();
        holds(
            "the frame account balances",
            account.balances,
            account.received,
        );
        self.place.fine(&["down", &self.lab]);
    }

    fn ask(&mut self, request: &Request) -> Listing {
        match self.control.ask(request).unwrap() {
            Reply::Listing(listing) => listing,
            other => panic!("{request:?}: {other:?}"),
        }
    }

    fn status(&mut self) -> StatusRow {
        match self.ask(&Request::Ask(Query::Status)) {
            Listing::Status(row) => row,
            other => panic!("{other:?}"),
        }
    }

    fn account(&mut self) -> AccountRow {
        match self.ask(&Request::Ask(Query::Account)) {
            Listing::Account(row) => row,
            other => panic!("{other:?}"),
        }
    }

    fn tunables(&mut self) -> Tunables {
        match self.ask(&Request::Ask(Query::Tunables)) {
            Listing::Tunables(tunables) => *tunables,
            other => panic!("{other:?}"),
        }
    }

    /// Connections that were ever opened.
    fn opened(&mut self) -> u64 {
        match self.ask(&Request::Ask(Query::Totals)) {
            Listing::Totals { workers, .. } => workers.iter().map(|counters| counters[0]).sum(),
            other => panic!("{other:?}"),
        }
    }

    /// Entries of whoever is no client of ours.
    fn strangers(&mut self) -> Vec<ConnRow> {
        let Listing::Connections(mut rows) = self.ask(&Request::Ask(Query::Connections)) else {
            panic!("no connections");
        };
        rows.retain(|row| row.client.address.to_string() != "1.2.3.100");
        rows
    }

    fn set(&mut self, name: &str, value: impl ToString) {
        let (name, value) = (name.to_string(), value.to_string());
        let set = Request::Do(Command::SetTunable { name, value });
        assert_eq!(self.control.ask(&set), Ok(Reply::Done), "{set:?}");
    }

    fn set_modes(&mut self, modes: Modes, amemthresh: u64) {
        self.set("amemthresh", amemthresh);
        for (name, mode) in DEFENCES.iter().zip(modes) {
            self.set(name, mode);
        }
    }

    fn wait_for_tunables(&mut self, wanted: Modes, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let all = self.tunables();
            let now = [all.drop_entry, all.drop_packet, all.secure_tcp];
            if now == wanted {
                return holds("the sysctls read", true, format!("{wanted:?}"));
            }
            assert!(
                Instant::now() < deadline,
                "the sysctls read {now:?}, not {wanted:?}"
            );
            pass(Duration::from_millis(20));
        }
    }

    /// A measured burst in calm, and one where memory is scarce: each defence does what its mode says.
    fn check_modes(&mut self, modes: Modes) {
        println!("-- {DEFENCES:?} = {modes:?}: bursts of {BURST}");
        for (scarce, amemthresh) in [(false, MEMORY), (true, SCARCE)] {
            self.set_modes(modes, amemthresh);
            let wanted = in_force(modes, scarce);
            self.wait_for_tunables(wanted, PATIENCE);
            let left = (ENTRIES_MAX - self.status().connections) / ENTRIES_PER_PAGE;
            let (dropped, new) = self.burst();
            let rate = match wanted[1] {
                2 => amemthresh / (amemthresh - left),
                3 => DROP_RATE,
                _ => BURST * 2,
            };
            // Whose turn it is the counter knows; the level may be set anew in the middle.
            let fits = dropped.abs_diff(BURST / rate) <= if rate > BURST { 0 } else { 2 };
            let what = format!("drop_packet {}, one of {rate} is dropped", wanted[1]);
            holds(&what, fits, format!("{dropped} of {BURST}"));
            self.check_secure(wanted[2] >= 2, &new);
            self.check_reaping(wanted[0] >= 2, &new);
        }
        self.set_modes([0; 3], MEMORY);
    }

    /// Sends a burst. Gives how many of it were dropped by the defences, and who has an entry now.
    fn burst(&mut self) -> (u64, BTreeSet<Endpoint>) {
        let before: BTreeSet<Endpoint> = self.strangers().iter().map(|row| row.client).collect();
        let (opened, drops) = (self.opened(), drops(&self.account(), "defence"));
        let (frames, rate) = (BURST.to_string(), BURST_PER_SECOND.to_string());
        let words = ["--frames", &frames, "--per-second", &rate];
        let child = self.start_flood(&words);
        let report = flood_report(child);
        assert_eq!((report.sent, report.refused), (BURST, 0));
        let deadline = Instant::now() + PATIENCE;
        loop {
            let dropped = drops_since(&self.account(), "defence", drops);
            let all = self.opened() - opened + dropped;
            if all == BURST {
                let mut now: BTreeSet<_> = self.strangers().iter().map(|row| row.client).collect();
                now.retain(|client| !before.contains(client));
                return (dropped, now);
            }
            assert!(
                all < BURST && Instant::now() < deadline,
                "{all} of {BURST} came"
            );
            pass(Duration::from_millis(10));
        }
    }

    /// The wary table has a state of its own for those whose answer was seen and not acknowledged.
    fn check_secure(&mut self, secure: bool, new: &BTreeSet<Endpoint>) {
        let deadline = Instant::now() + PATIENCE;
        let wanted = if secure { "SYNACK" } else { "SYN_RECV" };
        loop {
            let rows = self.strangers();
            let ours: Vec<&ConnRow> = rows
                .iter()
                .filter(|row| new.contains(&row.client))
                .collect();
            let there = ours.iter().filter(|row| row.state == wanted).count();
            // Some may have been reaped, or had no answer.
            if there > 0 && there >= ours.len() * 9 / 10 && (secure || there == ours.len()) {
                let seen = format!("{there} of {}", ours.len());
                return holds(&format!("half-open ones are in {wanted}"), true, seen);
            }
            assert!(
                secure && Instant::now() < deadline,
                "{there} of {} {wanted}",
                ours.len()
            );
            pass(Duration::from_millis(20));
        }
    }

    /// Half-open entries go before their time only while `drop_entry` is in force.
    fn check_reaping(&mut self, reaping: bool, new: &BTreeSet<Endpoint>) {
        let start = Instant::now();
        let patience = if reaping { PATIENCE } else { PERIOD };
        loop {
            let rows = self.strangers();
            let there = rows.iter().filter(|row| new.contains(&row.client)).count();
            let gone = new.len() - there;
            let late = start.elapsed() >= patience;
            if late || reaping && gone > 0 {
                let what = if reaping {
                    "drop_entry takes entries"
                } else {
                    "all entries stay"
                };
                return holds(
                    what,
                    (gone > 0) == reaping,
                    format!("{gone} of {} gone", new.len()),
                );
            }
            pass(Duration::from_millis(20));
        }
    }

    /// As fast as it goes for so many seconds.
    fn flood(&mut self, modes: Modes, seconds: u64) {
        println!("-- {DEFENCES:?} = {modes:?}: full speed for {seconds} s");
        self.set_modes(modes, MEMORY);
        let before = (self.opened(), self.status().connections);
        let (mut most, mut in_time, mut looks) = (0, Vec::new(), 0_u32);
        let wanted = in_force(modes, true);
        // A slow machine may take its time to fill the table.
        for bound in [["--frames", FILLING], ["--seconds", &seconds.to_string()]] {
            let mut child = self.start_flood(&bound);
            while child.try_wait().unwrap().is_none() {
                let status = self.status();
                assert_eq!(status.connections_max, ENTRIES_MAX);
                most = most.max(status.connections);
                looks += 1;
                let all = self.tunables();
                if [all.drop_entry, all.drop_packet, all.secure_tcp] == wanted {
                    let account = self.account();
                    in_time.push((account, self.opened()));
                }
                pass(Duration::from_millis(20));
            }
            let report = flood_report(child);
            let per_second = report.sent * 1_000_000 / report.took_us.max(1);
            println!("        {} segments, {per_second} a second", report.sent);
        }
        let seen = format!("at most {most} in {looks} looks");
        holds(
            &format!("never more than {ENTRIES_MAX} entries"),
            most <= ENTRIES_MAX,
            seen,
        );
        let scarce = ENTRIES_MAX - most < MEMORY * ENTRIES_PER_PAGE;
        holds(
            "the flood takes the memory",
            scarce,
            format!("{most} entries"),
        );
        holds(
            "the sysctls read in the flood",
            in_time.len() >= 2,
            format!("{wanted:?}"),
        );
        self.check_drops(wanted[1], &in_time);
        let after = (self.opened(), self.status().connections);
        let gone = (before.1 + after.0 - before.0).saturating_sub(after.1);
        // What was there before the flood may have had its time.
        let expired = before.1 - CONNECTIONS;
        let fits = if wanted[0] >= 2 {
            gone > 0
        } else {
            gone <= expired
        };
        holds(
            &format!("drop_entry {}: entries gone", wanted[0]),
            fits,
            gone,
        );
    }

    /// What became of new connections between the first and the last look at a full house.
    fn check_drops(&mut self, drop_packet: i64, looks: &[(AccountRow, u64)]) {
        let (first, last) = (
            looks.first().expect("two looks"),
            looks.last().expect("two looks"),
        );
        let since = |reason: &str| drops_since(&last.0, reason, drops(&first.0, reason));
        let (defence, full, opened) = (since("defence"), since("table-full"), last.1 - first.1);
        let all = defence + full + opened;
        let seen = format!("{defence} dropped by it, {full} found no room, {opened} opened");
        let fits = match drop_packet {
            0 => defence == 0 && full > 0,
            // All are dropped while less than half of the memory is left, and in a flood it is.
            2 => defence > 0 && defence >= all / 2,
            _ => defence.abs_diff(all / DROP_RATE) <= all / 100 + 2,
        };
        holds(
            &format!("drop_packet {drop_packet} in the flood"),
            fits,
            seen,
        );
    }

    /// Automatic defences take themselves back.
    fn memory_is_back(&mut self, modes: Modes) {
        self.set("amemthresh", PLENTY);
        self.wait_for_tunables(in_force(modes, false), PATIENCE);
        self.set_modes([0; 3], MEMORY);
    }

    fn start_flood(&mut self, words: &[&str]) -> Child {
        self.seed += 1;
        let seed = self.seed.to_string();
        let all = [&["flood", "1.2.3.1:80", "--seed", &seed], words].concat();
        inside(self.place, &self.lab, &all).spawn().unwrap()
    }
}

impl Drop for Siege<'_> {
    fn drop(&mut self) {
        // It ends with the lab at the latest; a test that fails does not wait for that.
        let _ = self.stay.kill();
        let _ = self.stay.wait();
    }
}

/// `ulvs lab WORDS` on the client.
fn inside(place: &Place, lab: &str, words: &[&str]) -> std::process::Command {
    let program = place.program.to_str().unwrap();
    let before = ["exec", "--lab", lab, "client", "--", program, "lab"];
    place.command(&[&before, words].concat())
}

fn flood_report(child: Child) -> FloodReport {
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn drops(account: &AccountRow, reason: &str) -> u64 {
    let mut all = account.drops.iter();
    all.find(|(name, _)| name == reason)
        .map_or(0, |(_, count)| *count)
}

fn drops_since(account: &AccountRow, reason: &str, before: u64) -> u64 {
    drops(account, reason) - before
}
