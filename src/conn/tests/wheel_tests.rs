//! The wheel: nobody expires early, nobody is lost, however deadlines move.

use std::sync::Arc;

use super::{at, conn, server};
use crate::conn::{Conn, Due, Wheel};
use crate::lvs::{Protocol, RealLive};
use crate::rng::Rng;
use crate::time::{Duration, Instant};

/// Length of a slot, as the wheel has it.
const SLOT: Duration = Duration::from_nanos(1 << 27);
/// Looks enough for everything.
const MANY: u32 = u32::MAX;

fn conn_until(client: u32, server: &Arc<RealLive>, deadline: Instant) -> Arc<Conn> {
    let conn = conn(Protocol::UDP, client, server);
    conn.end_now(deadline);
    conn
}

/// Everybody who expires by `now`.
fn expired(wheel: &mut Wheel, now: Instant) -> Vec<Arc<Conn>> {
    let mut pops = MANY;
    let mut found = Vec::new();
    while let Due::Expired(conn) = wheel.turn(now, &mut pops) {
        found.push(conn);
    }
    found
}

#[test]
fn a_deadline_moved_later_is_found_at_its_new_time() {
    let (server, mut wheel) = (server(), Wheel::new(at(0)));
    let conn = conn_until(1, &server, at(10));
    wheel.arm(&conn);
    assert!(expired(&mut wheel, at(9)).is_empty());
    conn.restart(300, at(9));
    assert!(!Wheel::must_arm(&conn), "the old slot will see to it");
    for second in 10..309 {
        assert!(expired(&mut wheel, at(second)).is_empty(), "at {second}");
    }
    assert_eq!(wheel.len(), 1);
    assert_eq!(expired(&mut wheel, at(309) + SLOT).len(), 1);
    assert!(wheel.is_empty() && wheel.poll_timeout().is_none());
}

#[test]
fn a_deadline_moved_earlier_is_armed_anew_and_expires_once() {
    let (server, mut wheel) = (server(), Wheel::new(at(0)));
    let conn = conn_until(1, &server, at(60));
    wheel.arm(&conn);
    conn.restart(10, at(1));
    assert!(Wheel::must_arm(&conn));
    wheel.arm(&conn);
    assert!(!Wheel::must_arm(&conn));
    assert_eq!(wheel.len(), 2);
    assert!(expired(&mut wheel, at(10)).is_empty());
    assert_eq!(expired(&mut wheel, at(11) + SLOT).len(), 1);
    // Its owner gives it more time: what the old slot holds is left over.
    conn.restart(200, at(12));
    wheel.arm(&conn);
    assert!(expired(&mut wheel, at(100)).is_empty());
    assert_eq!(wheel.len(), 1);
    assert_eq!(expired(&mut wheel, at(300)).len(), 1);
    assert!(wheel.is_empty());
}

#[test]
fn armed_twice_for_one_slot_it_expires_once() {
    let (server, mut wheel) = (server(), Wheel::new(at(0)));
    let conn = conn_until(1, &server, at(5));
    wheel.arm(&conn);
    wheel.arm(&conn);
    let mut pops = MANY;
    let Due::Expired(first) = wheel.turn(at(6), &mut pops) else {
        panic!("it is due")
    };
    first.retire();
    assert!(matches!(wheel.turn(at(6), &mut pops), Due::Nothing));
    assert!(wheel.is_empty());
}

#[test]
fn after_a_long_sleep_everything_due_is_found_and_nothing_else() {
    let (server, mut wheel) = (server(), Wheel::new(at(0)));
    let due: Vec<_> = (0..500)
        .map(|n| conn_until(n, &server, at(u64::from(n))))
        .collect();
    let late = conn_until(1000, &server, at(1_000_000));
    due.iter().chain([&late]).for_each(|conn| wheel.arm(conn));
    assert_eq!(expired(&mut wheel, at(900_000)).len(), 500);
    assert_eq!(wheel.len(), 1);
    assert_eq!(expired(&mut wheel, at(1_000_001)).len(), 1);
}

#[test]
fn one_breath_looks_at_no_more_than_its_pops() {
    let (server, mut wheel) = (server(), Wheel::new(at(0)));
    let conns: Vec<_> = (0..1000)
        .map(|n| conn_until(n, &server, at(u64::from(n % 3))))
        .collect();
    conns.iter().for_each(|conn| wheel.arm(conn));
    let mut found = 0;
    let mut breaths = 0;
    loop {
        breaths += 1;
        let (mut pops, mut here) = (64, 0);
        let end = loop {
            match wheel.turn(at(4), &mut pops) {
                Due::Expired(_) => here += 1,
                end => break end,
            }
        };
        assert!(here <= 64);
        found += here;
        match end {
            Due::Later => {
                let wake = wheel.poll_timeout().expect("somebody waits");
                assert!(wake <= at(4), "what was put off is due at once");
            }
            _ => break,
        }
    }
    assert_eq!((found, breaths), (1000, 16));
}

/// A loop that sleeps as long as the wheel allows closes a connection in the slot behind its deadline.
#[test]
fn waking_when_told_is_in_time() {
    let (server, mut rng) = (server(), Rng::new(3));
    for round in 0..2000 {
        let mut wheel = Wheel::new(at(0));
        let deadline = Instant::from_nanos(rng.below(200_000_000_000));
        wheel.arm(&conn_until(round, &server, deadline));
        let mut now = at(0);
        while expired(&mut wheel, now).is_empty() {
            let wake = wheel.poll_timeout().expect("somebody waits");
            assert!(wake > now, "it does not spin");
            now = wake;
        }
        assert!(now >= deadline);
        assert!(now - deadline <= SLOT, "{} late", now - deadline);
    }
}

/// A connection of the model and its owner's view of it.
struct Entry {
    conn: Arc<Conn>,
    ended: bool,
}

/// The world of the property test: the wheel beside a plain list of deadlines.
struct Model {
    wheel: Wheel,
    rng: Rng,
    now: Instant,
    entries: Vec<Entry>,
    server: Arc<RealLive>,
    expired: usize,
}

impl Model {
    fn open(&mut self) {
        let conn = conn(Protocol::UDP, self.entries.len() as u32, &self.server);
        conn.restart(self.rng.below(200) as u32, self.now);
        self.wheel.arm(&conn);
        self.entries.push(Entry { conn, ended: false });
    }

    /// A packet moves the deadline of somebody, later or earlier, as `serve` does it.
    fn touch(&mut self) {
        let at = self.rng.below(self.entries.len().max(1) as u64) as usize;
        let Some(entry) = self.entries.get(at).filter(|entry| !entry.ended) else {
            return;
        };
        let timeout_s = [0, 1, 10, 60, 69, 70, 300, 900][self.rng.below(8) as usize];
        entry.conn.restart(timeout_s, self.now);
        if Wheel::must_arm(&entry.conn) {
            self.wheel.arm(&entry.conn);
        }
    }

    /// Somebody is taken out of the table by other ways.
    fn remove(&mut self) {
        let at = self.rng.below(self.entries.len().max(1) as u64) as usize;
        if let Some(entry) = self.entries.get_mut(at).filter(|entry| !entry.ended) {
            entry.ended = true;
            entry.conn.retire();
        }
    }

    fn pass_time(&mut self) {
        let span = match self.rng.below(10) {
            0..6 => self.rng.below(200_000_000),
            6..8 => self.rng.below(5_000_000_000),
            8 => self.rng.below(70_000_000_000),
            _ => self.rng.below(500_000_000_000),
        };
        self.now += Duration::from_nanos(span);
    }

    /// One breath. If the wheel is done with `now`, nobody may be left whose slot has come up.
    fn turn(&mut self) {
        let mut pops = [1, 10, 1000, MANY][self.rng.below(4) as usize];
        loop {
            match self.wheel.turn(self.now, &mut pops) {
                Due::Expired(conn) => self.expire(&conn),
                Due::Nothing => break self.assert_nobody_is_late(),
                Due::Later => break,
            }
        }
    }

    fn expire(&mut self, conn: &Arc<Conn>) {
        assert!(conn.is_due(self.now), "early");
        let entry = self
            .entries
            .iter_mut()
            .find(|entry| Arc::ptr_eq(&entry.conn, conn))
            .expect("one of ours");
        assert!(!entry.ended, "twice");
        if self.rng.chance(20) {
            // It controls others.
            conn.restart(60, self.now);
            self.wheel.arm(conn);
            return;
        }
        entry.ended = true;
        conn.retire();
        self.expired += 1;
    }

    fn assert_nobody_is_late(&self) {
        let slot_of = |instant: Instant| instant.as_nanos() >> 27;
        for entry in self.entries.iter().filter(|entry| !entry.ended) {
            let deadline = entry.conn.deadline();
            assert!(slot_of(deadline) + 1 > slot_of(self.now), "lost");
        }
    }
}

#[test]
fn nobody_is_lost_and_nobody_is_early_in_any_order_of_things() {
    for seed in 0..60 {
        let mut model = Model {
            wheel: Wheel::new(at(0)),
            rng: Rng::new(seed),
            now: at(0),
            entries: Vec::new(),
            server: server(),
            expired: 0,
        };
        for _ in 0..2000 {
            match model.rng.below(10) {
                0..2 => model.open(),
                2..6 => model.touch(),
                6 => model.remove(),
                7..9 => model.turn(),
                _ => model.pass_time(),
            }
        }
        for _ in 0..400 {
            model.now += Duration::from_secs(70);
            model.turn();
        }
        assert!(model.expired > 50, "seed {seed}: {} ends", model.expired);
        assert!(model.entries.iter().all(|entry| entry.ended), "seed {seed}");
        // Those that were removed behind the wheel's back are let go of too.
        expired(&mut model.wheel, model.now + Duration::from_secs(1000));
        assert!(model.wheel.is_empty(), "seed {seed}");
        let held = |entry: &&Entry| Arc::strong_count(&entry.conn) > 1;
        assert_eq!(model.entries.iter().filter(held).count(), 0);
    }
}
