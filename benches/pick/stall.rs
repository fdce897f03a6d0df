//! What a change of one of a thousand real servers costs the traffic: a worker breathes established
//! and new connections without a pause while the control plane changes one server after the other.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant as Clock};

use hdrhistogram::Histogram;

use super::figures::{Watch, words};
use super::house::House;
use ulvs::config::{Reply, Request};
use ulvs::control::{ClientId, Input, Output};
use ulvs::director::Worker;
use ulvs::director::message::{Order, Report};
use ulvs::time::Instant;

/// Connections that are there before the clock starts.
const ESTABLISHED: u64 = 10_000;
/// Frames of established connections in a turn.
const OLD_FRAMES: u64 = 60;
/// Requests for new connections in a turn.
const NEW_FRAMES: u64 = 2;
/// Connections after which no new ones are opened.
const FLOWS: usize = 1 << 19;
/// Changes in one round.
const CHANGES: u32 = 300;
/// The bare thread's time, and its turns.
const BARE: Duration = Duration::from_millis(300);
const BARE_TURN: Duration = Duration::from_micros(30);

/// The turns of a worker, in ns: from taking its orders to telling its reports.
struct Turns {
    histogram: Histogram<u64>,
    /// The longest order alone.
    order: u64,
    /// The turn in which each order was taken.
    ordered: Vec<u64>,
}

impl Turns {
    fn new() -> Turns {
        Turns {
            histogram: Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("good bounds"),
            order: 0,
            ordered: Vec::new(),
        }
    }
}

/// The longest turn with an order that was long in every round: the rounds give the same orders, and
/// what the machine takes falls into another turn each time.
fn longest_always(told: &[Round]) -> f64 {
    let orders = told[0].changing.ordered.len();
    let same = |round: &Round| round.changing.ordered.len() == orders;
    assert!(orders > 0 && told.iter().all(same), "other orders");
    let least = |at: usize| told.iter().map(|round| round.changing.ordered[at]).min();
    let longest = (0..orders).filter_map(least).max();
    longest.expect("there are orders") as f64
}

/// The longest turn of a thread that does nothing at all but look at the clock, in turns of this
/// length, for as long as the rounds of a scheduler take: what the machine takes unseen.
fn bare() -> f64 {
    let (mut watch, start, mut longest) = (Watch::here(), Clock::now(), 0);
    while start.elapsed() < BARE {
        watch.start();
        let turn = Clock::now();
        while turn.elapsed() < BARE_TURN {
            std::hint::spin_loop();
        }
        longest = longest.max(watch.ns());
    }
    longest as f64
}

/// What a round gives.
struct Round {
    still: Turns,
    changing: Turns,
    /// ns of each change in the control plane.
    changes: Vec<f64>,
}

/// Between the two threads, in the place of the daemon's channels.
enum ToWorker {
    Order(Order),
    /// Say how the turns were since the last such question.
    Tell(Sender<Turns>),
    Stop,
}

/// Measures these schedulers and prints the table.
pub fn table(names: &[&str], rounds: usize) {
    println!(
        "\nThe turns of a worker while one of 1,000 real servers is changed, us, median (range) of \
         {rounds} rounds of {CHANGES} changes\n{:<8}{:>24}{:>22}{:>24}{:>22}{:>24}{:>16}{:>22}{:>24}{:>24}",
        "",
        "bare: longest",
        "still: 99.9 %",
        "longest",
        "changing: 99.9 %",
        "longest",
        "longest always",
        "longest order",
        "a change",
        "longest change"
    );
    for name in names {
        let (mut told, mut bares) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            bares.push(bare() / 1000.0);
            told.push(play(name));
        }
        let row = |of: &dyn Fn(&Round) -> f64| {
            let figures: Vec<f64> = told.iter().map(|round| of(round) / 1000.0).collect();
            words(&figures, 0)
        };
        let high = |turns: &Turns| turns.histogram.value_at_quantile(0.999) as f64;
        let change = |round: &Round, at: f64| {
            let mut sorted = round.changes.clone();
            sorted.sort_by(f64::total_cmp);
            sorted[((sorted.len() - 1) as f64 * at) as usize]
        };
        println!(
            "{name:<8}{:>24}{:>22}{:>24}{:>22}{:>24}{:>16.0}{:>22}{:>24}{:>24}",
            words(&bares, 0),
            row(&|round| high(&round.still)),
            row(&|round| round.still.histogram.max() as f64),
            row(&|round| high(&round.changing)),
            row(&|round| round.changing.histogram.max() as f64),
            longest_always(&told) / 1000.0,
            row(&|round| round.changing.order as f64),
            row(&|round| change(round, 0.5)),
            row(&|round| change(round, 1.0)),
        );
    }
}

fn play(name: &str) -> Round {
    let mut house = House::new(name, FLOWS, ESTABLISHED as usize);
    house.load();
    let start = Clock::now();
    let worker = house.worker(now(start));
    let (orders, taken) = channel();
    let (tell, told) = channel();
    let plan = std::sync::Arc::clone(&house.plan);
    let traffic = Traffic {
        worker,
        plan,
        opened: 0,
        start,
    };
    let thread = thread::spawn(move || traffic.run(&taken, &tell));
    let turns = |orders: &Sender<ToWorker>| {
        let (answer, answered) = channel();
        orders
            .send(ToWorker::Tell(answer))
            .expect("the worker listens");
        answered.recv().expect("the worker answers")
    };
    // The first turns open the established connections.
    turns(&orders);
    let begin = Clock::now();
    let changes = (0..CHANGES)
        .map(|_| change(&mut house, &orders, &told))
        .collect();
    let changing = turns(&orders);
    // As long again without a change, in which nothing is told.
    let until = Clock::now() + begin.elapsed();
    while let Ok(report) = told.recv_timeout(until.saturating_duration_since(Clock::now())) {
        assert!(matches!(report, Report::Spent(_)), "{report:?}");
    }
    let still = turns(&orders);
    orders.send(ToWorker::Stop).expect("the worker listens");
    thread.join().expect("the worker ends well");
    Round {
        still,
        changing,
        changes,
    }
}

fn now(start: Clock) -> Instant {
    Instant::from_nanos(1_000_000_000 + start.elapsed().as_nanos() as u64)
}

/// One change, until it is in force; ns of its part in the control plane.
fn change(house: &mut House, orders: &Sender<ToWorker>, told: &Receiver<Report>) -> f64 {
    let command = house.next_change();
    let (from, request) = (ClientId(1), Request::Do(command));
    let begin = Clock::now();
    house
        .plane
        .handle(Input::Request { from, request }, Instant::ZERO);
    let mut spent = begin.elapsed();
    loop {
        while let Some(output) = house.plane.poll_output() {
            match output {
                Output::Order { order, .. } => {
                    orders
                        .send(ToWorker::Order(order))
                        .expect("the worker listens");
                }
                Output::Reply {
                    reply: Reply::Done, ..
                } => return spent.as_nanos() as f64,
                Output::Reply { reply, .. } => panic!("{reply:?}"),
                Output::Changed | Output::Stopped => {}
            }
        }
        let report = told.recv().expect("the worker tells");
        let begin = Clock::now();
        house
            .plane
            .handle(Input::Reported { worker: 0, report }, Instant::ZERO);
        spent += begin.elapsed();
    }
}

/// The worker's thread.
struct Traffic {
    worker: Worker,
    plan: std::sync::Arc<super::nic::Plan>,
    opened: u64,
    start: Clock,
}

impl Traffic {
    fn run(mut self, taken: &Receiver<ToWorker>, tell: &Sender<Report>) {
        while self.opened < ESTABLISHED {
            self.open(64);
        }
        let mut watch = Watch::here();
        let mut turns = Turns::new();
        loop {
            watch.start();
            let now = now(self.start);
            let (mut question, mut orders_given) = (None, 0);
            while let Ok(word) = taken.try_recv() {
                match word {
                    ToWorker::Order(order) => {
                        self.worker.handle_order(order, now);
                        orders_given += 1;
                    }
                    ToWorker::Tell(answer) => question = Some(answer),
                    ToWorker::Stop => return,
                }
            }
            let ordered = (orders_given > 0).then(|| watch.ns());
            self.breathe_old();
            self.open(NEW_FRAMES);
            while let Some(report) = self.worker.poll_report() {
                tell.send(report).expect("the control plane listens");
            }
            let turn = watch.ns();
            turns.histogram.saturating_record(turn);
            turns.ordered.extend(vec![turn; orders_given]);
            turns.order = turns.order.max(ordered.unwrap_or(0));
            if let Some(answer) = question {
                // Who asked may have gone.
                let _ = answer.send(std::mem::replace(&mut turns, Turns::new()));
            }
        }
    }

    /// Frames of connections that are there.
    fn breathe_old(&mut self) {
        self.plan.flags.store(0x10, Relaxed);
        self.plan.cursor.store(u64::MAX, Relaxed);
        self.plan.left.store(OLD_FRAMES, Relaxed);
        self.worker.breathe(now(self.start));
    }

    /// So many new connections.
    fn open(&mut self, count: u64) {
        if self.opened + count > FLOWS as u64 {
            return;
        }
        self.plan.flags.store(0x02, Relaxed);
        self.plan.cursor.store(self.opened, Relaxed);
        self.plan.left.store(count, Relaxed);
        self.worker.breathe(now(self.start));
        self.opened += count;
    }
}
