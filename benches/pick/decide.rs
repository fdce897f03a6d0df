//! What one decision costs: `Scheduler::pick` over the thousand servers, and a whole new connection
//! through the worker.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::figures::{Watch, spread, words};
use super::house::House;
use super::nic::VIP;
use ulvs::director::snapshot::Service;
use ulvs::lvs::{Endpoint, Flow, Protocol, ServiceFlags, Tunables};
use ulvs::rng::Rng;
use ulvs::sched::PickContext;
use ulvs::time::{Duration, Instant};

/// Picks in one round with nothing between them.
const WARM: usize = 20_000;
/// Picks in one round with cold caches, and in one round behind a change.
const COLD: usize = 200;
/// Targets that lblc and lblcr remember: nearly as many as their caches hold.
const TARGETS: u64 = 20_000;
/// New connections in one round.
const CONNECTIONS: usize = 20_000;
/// More than the second-level cache has.
const FLUSH_BYTES: usize = 8 << 20;

/// The figures of one scheduler, ns, one for each round.
#[derive(Default)]
struct Rounds {
    warm: Vec<f64>,
    cold: Vec<f64>,
    changed: Vec<f64>,
    slow: Vec<f64>,
    longest: Vec<f64>,
    opened: Vec<f64>,
    /// Of each decision with cold caches or behind a change the shortest time of all rounds. Every
    /// round asks for the same decisions, so what is slow by itself is slow in all of them, and what
    /// was only interrupted is not.
    each: Vec<f64>,
}

impl Rounds {
    /// Adds the single decisions of a round.
    fn add_each(&mut self, all: &[f64]) {
        if self.each.is_empty() {
            self.each = all.to_vec();
        }
        assert_eq!(self.each.len(), all.len(), "every round is the same");
        for (least, now) in self.each.iter_mut().zip(all) {
            *least = least.min(*now);
        }
    }

    /// The longest decision that was long in every round.
    fn longest_always(&self) -> f64 {
        self.each.iter().copied().fold(0.0, f64::max)
    }
}

/// Asks one scheduler, again and again.
struct Asker {
    service: Arc<Service>,
    flags: ServiceFlags,
    rng: Rng,
    now: Instant,
    tunables: Tunables,
    watch: Watch,
}

impl Asker {
    fn flow(&mut self) -> Flow {
        let client = 0x0a00_0000 + self.rng.below(1 << 20) as u32;
        let target = VIP + (self.rng.below(TARGETS) as u32) * 256;
        Flow {
            protocol: Protocol::TCP,
            source: Endpoint::new(client.to_be_bytes().into(), 1024 + client as u16 / 2),
            target: Endpoint::new(target.to_be_bytes().into(), 80),
        }
    }

    /// One decision, under the lock as the worker takes it.
    fn pick(&mut self) -> Option<usize> {
        let flow = self.flow();
        let mut context = PickContext {
            flow,
            target: flow.target.address,
            flags: self.flags,
            now: self.now,
            tunables: &self.tunables,
            rng: &mut self.rng,
            notes: None,
        };
        let scheduler = self.service.scheduler.as_ref().expect("it has one");
        let mut scheduler = scheduler.lock().expect("nobody panicked with it");
        scheduler.pick(&self.service.reals, &mut context)
    }

    /// ns of one decision by the clock.
    fn timed(&mut self) -> f64 {
        self.watch.start();
        black_box(self.pick());
        self.watch.ns() as f64
    }

    /// ns of one of many decisions in a row.
    fn in_a_row(&mut self) -> f64 {
        self.watch.start();
        for _ in 0..WARM {
            black_box(self.pick());
        }
        self.watch.ns() as f64 / WARM as f64
    }
}

/// Measures these schedulers and prints the table.
pub fn table(names: &[(&str, ServiceFlags)], rounds: usize) {
    println!(
        "\nOne decision among 1,000 real servers, ns, median (range) of {rounds} rounds\n\
         {:<14}{:>22}{:>24}{:>24}{:>24}{:>26}{:>18}{:>22}",
        "",
        "in a row",
        "cold caches",
        "behind a change",
        "99 % of both",
        "longest of both",
        "longest always",
        "new connection"
    );
    for (name, flags) in names {
        let told = measure(name, *flags, rounds);
        let title = match flags.0 {
            0 => name.to_string(),
            _ => format!("{name}-fallback"),
        };
        println!(
            "{title:<14}{:>22}{:>24}{:>24}{:>24}{:>26}{:>18.0}{:>22}",
            words(&told.warm, 0),
            words(&told.cold, 0),
            words(&told.changed, 0),
            words(&told.slow, 0),
            words(&told.longest, 0),
            told.longest_always(),
            words(&told.opened, 0),
        );
    }
}

fn measure(name: &str, flags: ServiceFlags, rounds: usize) -> Rounds {
    let mut told = Rounds::default();
    for _ in 0..rounds {
        round(name, flags, &mut told);
    }
    told
}

/// One round, from the beginning: all its decisions are those of every other round.
fn round(name: &str, flags: ServiceFlags, told: &mut Rounds) {
    let mut house = House::new(name, CONNECTIONS, 1);
    house.load();
    let mut asker = Asker {
        service: house.service(),
        flags,
        rng: Rng::new(11),
        now: Instant::ZERO + Duration::from_secs(1),
        tunables: Tunables::default(),
        watch: Watch::here(),
    };
    // Every target is known before the clock starts, and every table has been read.
    for _ in 0..8 * TARGETS {
        asker.pick();
    }
    let mut rubbish = vec![1u8; FLUSH_BYTES];
    told.warm.push(asker.in_a_row());
    let mut cold = Vec::new();
    for _ in 0..COLD {
        flush(&mut rubbish);
        cold.push(asker.timed());
    }
    let mut changed = Vec::new();
    for _ in 0..COLD {
        let command = house.next_change();
        house.change(command);
        asker.service = house.service();
        changed.push(asker.timed());
    }
    told.cold.push(spread(&cold).0);
    told.changed.push(spread(&changed).0);
    let mut all = [cold, changed].concat();
    told.add_each(&all);
    all.sort_by(f64::total_cmp);
    told.slow.push(all[all.len() * 99 / 100]);
    told.longest.push(all[all.len() - 1]);
    told.opened.push(new_connections(&house));
}

fn flush(rubbish: &mut [u8]) {
    for at in (0..rubbish.len()).step_by(64) {
        rubbish[at] = rubbish[at].wrapping_add(1);
    }
    black_box(rubbish);
}

/// ns for each of many SYNs, from frame in to frame out, the generator included.
fn new_connections(house: &House) -> f64 {
    let now = Instant::ZERO + Duration::from_secs(2);
    let mut worker = house.worker(now);
    let plan = &house.plan;
    plan.flags.store(0x02, Relaxed);
    plan.cursor.store(0, Relaxed);
    plan.left.store(CONNECTIONS as u64, Relaxed);
    let mut watch = Watch::here();
    watch.start();
    let mut done = 0;
    while done < CONNECTIONS {
        done += worker.breathe(now);
    }
    let spent = watch.ns();
    assert_eq!(worker.account().received, CONNECTIONS as u64);
    spent as f64 / CONNECTIONS as f64
}
