//! Pick sequences of the rules on small lists, and the words of a story. What a real kernel decided
//! is replayed in `tests/replay/sched.rs`.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::{About, Change, NAMES, Note, PickContext, Scheduler, by_name};
use crate::lvs::{
    Endpoint, Flow, ForwardMethod, Protocol, RealKey, RealLive, RealServer, ServiceFlags,
    Thresholds, Tunables, Weight,
};
use crate::rng::Rng;
use crate::time::{Duration, Instant};

/// A service under test: names are letters, the list is newest first.
pub(super) struct Bench {
    pub(super) reals: Vec<RealServer>,
    scheduler: Box<dyn Scheduler>,
    rng: Rng,
    flow: Flow,
    flags: ServiceFlags,
    now: Instant,
    tunables: Tunables,
}

impl Bench {
    /// `scheduler` over servers with these weights, added one after the other: A, B, C, …
    pub(super) fn new(scheduler: &str, weights: &[i32]) -> Bench {
        let mut bench = Bench {
            reals: Vec::new(),
            scheduler: by_name(scheduler, &[]).expect("known scheduler"),
            rng: Rng::new(1),
            flow: Flow {
                protocol: Protocol::TCP,
                source: Endpoint::new([192, 0, 2, 1].into(), 40000),
                target: Endpoint::new([10, 0, 0, 1].into(), 80),
            },
            flags: ServiceFlags::default(),
            now: Instant::ZERO,
            tunables: Tunables::default(),
        };
        for (weight, id) in weights.iter().zip(0..) {
            bench.add(id, *weight);
        }
        bench
    }

    fn add(&mut self, id: u32, weight: i32) {
        let address = [10, 0, 0, 100 + u8::try_from(id).unwrap()].into();
        let endpoint = Endpoint::new(address, 80);
        let real = RealServer {
            key: RealKey(endpoint),
            weight: Weight(weight),
            last_weight: Weight(weight),
            method: ForwardMethod::Masq,
            thresholds: Thresholds::default(),
            live: Arc::new(RealLive::new(id, endpoint, 1)),
        };
        self.reals.insert(0, real);
        self.scheduler.changed(&self.reals, Change::Added);
    }

    fn remove(&mut self, id: u32) {
        let index = self.index_of(id);
        let before = index.checked_sub(1).map(|index| self.reals[index].live.id);
        self.reals.remove(index);
        let change = Change::Removed { id, before };
        self.scheduler.changed(&self.reals, change);
    }

    fn edit(&mut self, id: u32, weight: i32) {
        let index = self.index_of(id);
        self.reals[index].weight = Weight(weight);
        if weight != 0 {
            self.reals[index].last_weight = Weight(weight);
        }
        self.scheduler.changed(&self.reals, Change::Edited);
    }

    fn index_of(&self, id: u32) -> usize {
        let place = self.reals.iter().position(|real| real.live.id == id);
        place.unwrap()
    }

    /// Ends all connections.
    fn release(&mut self) {
        for real in &self.reals {
            real.live.active.store(0, Relaxed);
            real.live.clear_if_recovered();
        }
    }

    /// Picks once and leaves the counters alone.
    fn ask(&mut self, notes: Option<&mut Vec<Note>>) -> Option<usize> {
        let mut context = PickContext {
            flow: self.flow,
            target: self.flow.target.address,
            flags: self.flags,
            now: self.now,
            tunables: &self.tunables,
            rng: &mut self.rng,
            notes,
        };
        self.scheduler.pick(&self.reals, &mut context)
    }

    /// Picks once; the chosen server has one active connection more.
    fn pick(&mut self) -> Option<u32> {
        let index = self.ask(None)?;
        let live = &self.reals[index].live;
        live.active.fetch_add(1, Relaxed);
        live.mark_if_overloaded();
        Some(live.id)
    }

    /// The letters of the next `count` picks, `-` for nobody.
    fn picks(&mut self, count: usize) -> String {
        let letter = |id: Option<u32>| id.map_or('-', |id| char::from(b'A' + id as u8));
        (0..count).map(|_| letter(self.pick())).collect()
    }

    /// Picks once and tells the story: `A: words` for servers, `-> words` for the choice.
    fn story(&mut self) -> String {
        let mut notes = Vec::new();
        self.ask(Some(&mut notes));
        let lines = notes.iter().map(|note| match note.about {
            About::Search => note.text.clone(),
            About::Server(index) => {
                let letter = char::from(b'A' + self.reals[index].live.id as u8);
                format!("{letter}: {}", note.text)
            }
            About::Choice => format!("-> {}", note.text),
        });
        lines.collect::<Vec<_>>().join("; ")
    }
}

#[test]
fn every_name_is_known_and_true() {
    for name in NAMES {
        assert_eq!(by_name(name, &[]).unwrap().name(), name);
    }
    assert!(by_name("none", &[]).is_none());
    assert!(by_name("RR", &[]).is_none());
}

#[test]
fn nobody_to_choose() {
    for name in NAMES {
        assert_eq!(Bench::new(name, &[]).picks(2), "--", "{name}, no servers");
        assert_eq!(Bench::new(name, &[0, 0]).picks(2), "--", "{name}, quiesced");
    }
}

#[test]
fn overloaded_servers_get_nothing() {
    for name in NAMES {
        let mut bench = Bench::new(name, &[1, 1]);
        for real in &bench.reals {
            real.live.overloaded.store(true, Relaxed);
        }
        assert_eq!(bench.picks(2), "--", "{name}");
    }
}

/// The first twelve picks when every connection stays active.
#[test]
fn sequences() {
    let cases = [
        ("rr", [3, 2, 1], "CBACBACBACBA"),
        ("lc", [3, 2, 1], "CBACBACBACBA"),
        ("wlc", [3, 2, 1], "CBAABACBAABA"),
        ("rr", [2, 1, 1], "CBACBACBACBA"),
        ("lc", [2, 1, 1], "CBACBACBACBA"),
        ("wlc", [2, 1, 1], "CBAACBAACBAA"),
        ("sed", [3, 2, 1], "ABACBAABACBA"),
        ("sed", [2, 1, 1], "ACBAACBAACBA"),
        ("nq", [3, 2, 1], "CBAABAABACBA"),
        ("nq", [2, 1, 1], "CBAAACBAACBA"),
        ("fo", [2, 3, 3], "CCCCCCCCCCCC"),
        ("ovf", [3, 2, 1], "AAAABBBCC---"),
    ];
    for (name, weights, expected) in cases {
        let mut bench = Bench::new(name, &weights);
        assert_eq!(bench.picks(12), expected, "{name} {weights:?}");
    }
}

#[test]
fn wrr_built_up_server_by_server_begins_with_one_turn_each() {
    assert_eq!(Bench::new("wrr", &[3, 2, 1]).picks(15), "CBAABACBAABACBA");
}

/// A scheduler that finds its servers there (`ipvsadm -E`) begins at the highest level.
#[test]
fn wrr_fresh_begins_with_the_heaviest() {
    let cases = [
        (vec![3, 2, 1], "ABACBAABACBA"),
        (vec![2, 1, 1], "ACBAACBAACBA"),
        (vec![4, 2, 2], "ACBAACBAACBA"),
        (vec![5, 1, 1], "AAAACBAAAAAC"),
    ];
    for (weights, expected) in cases {
        let mut bench = Bench::new("wrr", &weights);
        bench.scheduler = by_name("wrr", &bench.reals).unwrap();
        assert_eq!(bench.picks(12), expected, "{weights:?}");
    }
}

/// As a 6.1 kernel did it with these weights and upper thresholds: after `-` everybody is overloaded,
/// then all connections end.
#[test]
fn wrr_goes_on_after_nobody_was_left() {
    let mut bench = Bench::new("wrr", &[15, 9, 6]);
    for (real, upper) in bench.reals.iter().zip([5, 5, 1]) {
        real.live.upper.store(upper, Relaxed);
    }
    assert_eq!(bench.picks(14), "CBABCBCBBCC---");
    bench.release();
    assert_eq!(bench.picks(14), "BABCBCBBCCC---");
    bench.release();
    assert_eq!(bench.picks(4), "ABCB");
}

/// The laps between far weights are skipped, not walked: this would take minutes otherwise.
#[test]
fn wrr_strides_over_empty_laps() {
    let mut bench = Bench::new("wrr", &[i32::MAX, 1]);
    assert_eq!(bench.picks(4), "BAAA");
    bench.reals[1].live.overloaded.store(true, Relaxed);
    assert_eq!(bench.picks(1000), "B".repeat(1000));
}

#[test]
fn rr_steps_back_when_the_last_one_goes() {
    let mut bench = Bench::new("rr", &[1, 1, 1, 1]);
    assert_eq!(bench.picks(2), "DC");
    bench.remove(2);
    assert_eq!(bench.picks(3), "BAD");
    bench.remove(3);
    assert_eq!(bench.picks(3), "BAB");
}

#[test]
fn rr_keeps_its_place_when_others_come_and_go() {
    let mut bench = Bench::new("rr", &[1, 1, 1]);
    assert_eq!(bench.picks(2), "CB");
    bench.add(3, 1);
    assert_eq!(bench.picks(3), "ADC");
    bench.edit(1, 0);
    assert_eq!(bench.picks(3), "ADC");
}

#[test]
fn stories() {
    let mut bench = Bench::new("wlc", &[3, 1, 0]);
    bench.reals[2].live.active.store(2, Relaxed);
    bench.reals[2].live.inactive.store(1, Relaxed);
    assert_eq!(
        bench.story(),
        "C: weight 0; B: (0*256 + 0)/1 = 0; A: (2*256 + 1)/3 = 171; -> the least"
    );
    bench.reals[2].live.inactive.store(2, Relaxed);
    assert!(bench.story().contains("A: (2*256 + 2)/3 = 171.33;"));
    bench.scheduler = by_name("lc", &bench.reals).unwrap();
    assert!(bench.story().ends_with("A: 2*256 + 2 = 514; -> the least"));
    bench.scheduler = by_name("wrr", &bench.reals).unwrap();
    assert_eq!(
        bench.story(),
        "begin at the head of the list, at level 3; C: weight 0; B: weight 1 < level 3; \
         A: weight 3 >= level 3; -> its turn in this lap"
    );
    bench.scheduler = by_name("rr", &bench.reals).unwrap();
    bench.reals[1].live.overloaded.store(true, Relaxed);
    assert_eq!(
        bench.story(),
        "begin at the head of the list; C: weight 0; B: overloaded; -> next in turn"
    );
}

#[test]
fn quotients_are_compared_without_rounding_or_overflow() {
    let mut bench = Bench::new("wlc", &[i32::MAX, i32::MAX - 1]);
    for real in &bench.reals {
        real.live.active.store(i32::MAX.unsigned_abs(), Relaxed);
    }
    assert_eq!(
        bench.ask(None),
        Some(1),
        "the heavier one has less per weight"
    );
}

#[test]
fn dh_asks_the_target_only() {
    let mut bench = Bench::new("dh", &[1, 1, 1, 1]);
    bench.flow.target.address = [192, 0, 2, 1].into();
    // Slot 50, dealt round and round from the head D.
    assert_eq!(bench.pick(), Some(3 - 50 % 4));
    bench.flow.source.address = [192, 0, 2, 99].into();
    assert_eq!(bench.pick(), Some(3 - 50 % 4));
    bench.edit(3 - 50 % 4, 0);
    assert_eq!(bench.picks(1), "-", "there is no second choice");
}

#[test]
fn sh_falls_back_only_if_told() {
    let mut bench = Bench::new("sh", &[1, 1]);
    let first = bench.pick().unwrap();
    bench.edit(first, 0);
    assert_eq!(bench.pick(), None);
    bench.flags = ServiceFlags(ServiceFlags::SCHED_1);
    assert_eq!(bench.pick(), Some(1 - first));
}

/// Figures of the specification, from an independent implementation.
#[test]
fn mh_clients() {
    let mut bench = Bench::new("mh", &[2, 1, 1]);
    let cases = [
        ([192, 0, 2, 1], "B: slot 2891, one of its 1023;"),
        ([198, 51, 100, 7], "B: slot 924, one of its 1023;"),
        ([203, 0, 113, 200], "A: slot 3310, one of its 2046;"),
    ];
    for (client, words) in cases {
        bench.flow.source.address = client.into();
        let story = bench.story();
        assert!(story.contains(words), "{story}");
    }
}

/// A quiesced server keeps its slots: other clients stay where they are.
#[test]
fn mh_keeps_the_slots_of_the_quiesced() {
    let mut bench = Bench::new("mh", &[1, 1, 1]);
    let picks = |bench: &mut Bench| -> Vec<Option<u32>> {
        let one = |last: u8| {
            bench.flow.source.address = [203, 0, 113, last].into();
            bench.pick()
        };
        (0..200).map(one).collect()
    };
    let before = picks(&mut bench);
    bench.edit(1, 0);
    let after = picks(&mut bench);
    for (before, after) in before.into_iter().zip(after) {
        assert_eq!(after, before.filter(|id| *id != 1));
    }
}

#[test]
fn lblc_stays_while_it_can() {
    let mut bench = Bench::new("lblc", &[2, 2]);
    // Three connections are more than the weight, and A, with none, has less than half of its own.
    assert_eq!(bench.picks(4), "BBBA");
    assert_eq!(
        bench.story(),
        "A: had 10.0.0.1 last: 1 active <= weight 2; -> who keeps it"
    );
    bench.reals[1].live.overloaded.store(true, Relaxed);
    assert_eq!(
        bench.picks(1),
        "A",
        "overload of the remembered one is not asked"
    );
    bench.edit(0, 0);
    assert_eq!(bench.picks(1), "B");
    assert!(bench.story().starts_with("B: had 10.0.0.1 last: "));
}

#[test]
fn lblc_forgets_after_a_day() {
    let mut bench = Bench::new("lblc", &[9, 9]);
    assert_eq!(bench.picks(2), "BB");
    bench.now = Instant::ZERO + Duration::from_secs(86_400 + 1800);
    assert_eq!(bench.picks(1), "A");
}

#[test]
fn lblcr_spreads_under_load_and_shrinks_with_time() {
    let mut bench = Bench::new("lblcr", &[2, 2]);
    // B until it has three; A joins; then the least loaded of both.
    assert_eq!(bench.picks(7), "BBBAAAA");
    assert_eq!(
        bench.story(),
        "A: of the set: (4*256 + 0)/2 = 512; B: of the set: (3*256 + 0)/2 = 384; \
         B: the least of the set of 10.0.0.1: 3 active > weight 2, but nobody has 2*active < \
         weight; -> who keeps it"
    );
    // After a day without a change the most loaded leaves; the target itself stays in use.
    for hour in 1..=25 {
        bench.now = Instant::ZERO + Duration::from_secs(hour * 3600);
        bench.story();
    }
    bench.release();
    bench.reals[0].live.active.store(1, Relaxed);
    assert_eq!(bench.picks(2), "BB", "A is idle but has left");
}

/// A member of the set that is deleted is passed over, and counts again when it comes back; so does
/// the one that is remembered.
#[test]
fn whoever_comes_back_is_remembered() {
    for name in ["lblc", "lblcr"] {
        let mut bench = Bench::new(name, &[5, 5, 5]);
        assert_eq!(bench.picks(2), "CC", "{name}");
        let (gone, behind) = (bench.reals[0].clone(), bench.reals[1].clone());
        bench.remove(2);
        if name == "lblcr" {
            assert_eq!(bench.picks(1), "B", "{name}: it joins the set");
        }
        bench.reals.insert(0, gone);
        bench.scheduler.changed(&bench.reals, Change::Added);
        behind.live.active.store(3, Relaxed);
        assert_eq!(bench.picks(1), "C", "{name}");
    }
}

/// Where the lists of two workers differ for a moment, nobody is chosen wrongly and nothing panics.
#[test]
fn a_list_that_is_not_the_announced_one() {
    for name in NAMES {
        let mut bench = Bench::new(name, &[1, 2, 3]);
        bench.picks(3);
        let reals = bench.reals.clone();
        for left in (0..3).rev() {
            bench.reals = reals[3 - left..].to_vec();
            bench.picks(3);
        }
    }
}
