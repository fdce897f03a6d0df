//! Worker threads: one pinned thread for each worker, which runs to completion; no async anywhere
//! near them. Orders go to a worker through a channel and a bell, its reports come back through a
//! channel and a bell. A worker that ends, in order or by a panic, says so with its last breath.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use crossbeam_channel::{Receiver, Sender, TryRecvError, TrySendError, bounded};
use tokio::sync::Notify;

use super::clock;
use crate::director::message::{Order, Report};
use crate::director::worker::Worker;
use crate::nic::{EventFd, Waiter, slice};
use crate::time::Duration;

/// Orders that may wait for one worker. Each client of the control socket has at most one on its
/// way, so a worker with so many is stuck.
const ORDERS_MAX: usize = 1024;

/// Reports of all workers that may wait for the control loop; beyond it a worker keeps its own.
const REPORTS_MAX: usize = 1024;

/// A worker that is woken so often in a row without a frame has a port that cries wolf: one whose
/// interface is gone says "ready" all the time.
const FALSE_ALARMS_MAX: u32 = 64;

/// How long such a worker then sleeps; orders wake it all the same.
const FALSE_ALARM_REST: Duration = Duration::from_millis(10);

/// When a worker tries again to hand over a report that found the channel full.
const TELL_AGAIN: Duration = Duration::from_millis(1);

/// What comes from a worker thread.
#[derive(Debug)]
pub(super) enum News {
    /// The worker says something.
    Report(Report),
    /// The thread ends.
    Ended,
}

/// A worker does not take its orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stuck;

/// All worker threads.
#[derive(Debug)]
pub(super) struct Crew {
    hands: Vec<Hand>,
    news: Receiver<(usize, News)>,
    bell: Arc<Notify>,
}

/// One worker thread, seen from the control loop.
#[derive(Debug)]
struct Hand {
    orders: Sender<Order>,
    wake: EventFd,
    thread: JoinHandle<()>,
    ended: bool,
}

impl Crew {
    /// Starts the workers; with `pin`, each on a core of its own if there are enough. With `busy_poll`
    /// they never sleep.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor; the threads started before end by themselves.
    pub fn start(workers: Vec<Worker>, pin: bool, busy_poll: bool) -> io::Result<Crew> {
        let cores = if pin {
            cores_for(workers.len())
        } else {
            Vec::new()
        };
        let (tell, news) = bounded(REPORTS_MAX);
        let bell = Arc::new(Notify::new());
        let mut hands = Vec::new();
        for (number, worker) in workers.into_iter().enumerate() {
            let (orders, taken) = bounded(ORDERS_MAX);
            let wake = EventFd::new()?;
            let post = Post {
                worker,
                orders: taken,
                wake: wake.clone(),
                busy_poll,
                mouth: Mouth {
                    number,
                    tell: tell.clone(),
                    bell: Arc::clone(&bell),
                },
                unsent: None,
            };
            let core = cores.get(number).copied();
            let thread = Builder::new().name(format!("worker-{number}"));
            hands.push(Hand {
                orders,
                wake,
                thread: thread.spawn(move || post.run_on(core))?,
                ended: false,
            });
        }
        Ok(Crew { hands, news, bell })
    }

    /// Gives an order to a worker. One that has ended needs none.
    ///
    /// # Errors
    /// When the worker has not taken its orders for too long.
    pub fn order(&self, worker: usize, order: Order) -> Result<(), Stuck> {
        let hand = &self.hands[worker];
        match hand.orders.try_send(order) {
            Ok(()) | Err(TrySendError::Disconnected(_)) => {}
            Err(TrySendError::Full(_)) => return Err(Stuck),
        }
        hand.wake.wake();
        Ok(())
    }

    /// Lets every worker breathe once: a port that was gone is looked for again.
    pub fn wake_all(&self) {
        self.hands.iter().for_each(|hand| hand.wake.wake());
    }

    /// The next word of a worker: its number, and what it says. Nothing is lost if the wait is given
    /// up and begun again.
    pub async fn news(&mut self) -> (usize, News) {
        loop {
            if let Ok((worker, news)) = self.news.try_recv() {
                self.hands[worker].ended |= matches!(news, News::Ended);
                return (worker, news);
            }
            self.bell.notified().await;
        }
    }

    /// Has every thread ended?
    pub fn all_ended(&self) -> bool {
        self.hands.iter().all(|hand| hand.ended)
    }

    /// Sees the threads off: for each that ended by a panic or not at all, a sentence.
    pub fn farewell(self) -> Vec<String> {
        let ends = self
            .hands
            .into_iter()
            .enumerate()
            .filter_map(|(worker, hand)| {
                if !hand.ended {
                    return Some(format!("worker {worker} does not end"));
                }
                let panic = hand.thread.join().err()?;
                let words = panic.downcast_ref::<&str>().map(ToString::to_string);
                let words = words.or_else(|| panic.downcast_ref::<String>().cloned());
                let words = words.unwrap_or_default();
                Some(format!("worker {worker} panicked: {words}"))
            });
        ends.collect()
    }
}

/// One worker thread, seen from itself.
struct Post {
    worker: Worker,
    orders: Receiver<Order>,
    wake: EventFd,
    busy_poll: bool,
    mouth: Mouth,
    /// A report that found the channel full.
    unsent: Option<Report>,
}

/// How a worker thread is heard; dropped, also by a panic, it says that the thread ends.
struct Mouth {
    number: usize,
    tell: Sender<(usize, News)>,
    bell: Arc<Notify>,
}

impl Drop for Mouth {
    fn drop(&mut self) {
        // The control loop takes from this channel until every thread has ended; if it is gone
        // itself, nobody wants to know.
        let _ = self.tell.send((self.number, News::Ended));
        self.bell.notify_one();
    }
}

impl Post {
    fn run_on(mut self, core: Option<core_affinity::CoreId>) {
        if let Some(core) = core
            && !core_affinity::set_for_current(core)
        {
            let (number, core) = (self.mouth.number, core.id);
            eprintln!("ulvs: worker {number} cannot be pinned to core {core}; it runs unpinned");
        }
        // Where it cannot be had the worker waits its turn as every thread does.
        let _ = slice::ask_for_slices(slice::FOR_PACKETS);
        self.run();
    }

    fn run(&mut self) {
        let mut sleeper = Sleeper::new(self.wake.clone());
        while !self.worker.stopped() {
            let now = clock::now();
            loop {
                match self.orders.try_recv() {
                    Ok(order) => self.worker.handle_order(order, now),
                    Err(TryRecvError::Empty) => break,
                    // The control loop is gone, and with it whoever could stop us.
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            let frames = self.worker.breathe(now);
            self.tell();
            if frames > 0 {
                sleeper.false_alarms = 0;
            } else if !self.busy_poll && !self.worker.stopped() {
                let due = self.worker.poll_timeout(now);
                let limit = due.map(|due| due.since(now));
                let limit = if self.unsent.is_some() {
                    Some(TELL_AGAIN)
                } else {
                    limit
                };
                sleeper.sleep(self.worker.wait_fds(), limit);
            }
        }
        self.tell();
    }

    /// Hands over what the worker has to report; what does not fit stays for the next breath.
    fn tell(&mut self) {
        let mut told = false;
        while let Some(report) = self.unsent.take().or_else(|| self.worker.poll_report()) {
            let news = (self.mouth.number, News::Report(report));
            match self.mouth.tell.try_send(news) {
                Ok(()) => told = true,
                Err(TrySendError::Full((_, News::Report(report)))) => {
                    self.unsent = Some(report);
                    break;
                }
                Err(_) => break,
            }
        }
        if told || self.unsent.is_some() {
            self.mouth.bell.notify_one();
        }
    }
}

/// Sleeps until a port or the bell has something.
struct Sleeper {
    wake: EventFd,
    fds: Vec<i32>,
    ports: Waiter,
    bell: Waiter,
    false_alarms: u32,
}

impl Sleeper {
    fn new(wake: EventFd) -> Sleeper {
        Sleeper {
            fds: Vec::new(),
            ports: Waiter::new([wake.fd()]),
            bell: Waiter::new([wake.fd()]),
            wake,
            false_alarms: 0,
        }
    }

    /// Sleeps at most `limit`. `fds` are the ports' now: an interface that came back has a new one.
    fn sleep(&mut self, fds: Vec<i32>, limit: Option<Duration>) {
        if fds != self.fds {
            self.ports = Waiter::new(fds.iter().copied().chain([self.wake.fd()]));
            self.fds = fds;
        }
        let wolf = self.false_alarms >= FALSE_ALARMS_MAX;
        let woken = match wolf {
            true => {
                let limit = limit.map_or(FALSE_ALARM_REST, |limit| limit.min(FALSE_ALARM_REST));
                self.bell.wait(Some(limit))
            }
            false => self.ports.wait(limit),
        };
        // The kernel has no memory: breathing on without sleep is all that is left.
        let woken = woken.unwrap_or(true);
        let rung = woken && self.wake.drain();
        if rung || (!woken && !wolf) {
            self.false_alarms = 0;
        } else {
            self.false_alarms = self.false_alarms.saturating_add(1);
        }
    }
}

/// A core for each worker, or none for any: two workers on one core are worse than letting the
/// scheduler place them. The last cores are taken first, since interrupts and the rest of the system
/// prefer the first.
fn cores_for(workers: usize) -> Vec<core_affinity::CoreId> {
    let mut cores = core_affinity::get_core_ids().unwrap_or_default();
    if cores.len() < workers {
        let there = cores.len();
        eprintln!("ulvs: {workers} workers on {there} cores: they run unpinned");
        return Vec::new();
    }
    cores.reverse();
    cores.truncate(workers);
    cores
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};

    use super::*;
    use crate::conn::ConnTable;
    use crate::control::{ControlPlane, Setup};
    use crate::director::neigh::Neighbours;
    use crate::director::snapshot::{Port, Side};
    use crate::director::worker::WorkerSetup;
    use crate::lvs::{Limits, Timeouts, Tunables};
    use crate::time::Instant;
    use crate::wire::memory::MemoryNic;
    use crate::wire::{Frame, FrameView, Mac, NicCounters, NicError, Rx};

    /// A receive half that panics when told to, counts how often it is asked, and says "ready" for
    /// ever if it has a bell.
    struct Odd {
        inner: Box<dyn Rx>,
        panics: Arc<AtomicBool>,
        asked: Arc<AtomicU64>,
        bell: Option<EventFd>,
    }

    impl Rx for Odd {
        fn fill(&mut self) -> Result<usize, NicError> {
            assert!(!self.panics.load(SeqCst), "the port bit me");
            self.asked.fetch_add(1, SeqCst);
            self.inner.fill()
        }
        fn frame(&mut self, index: usize) -> Frame<'_> {
            self.inner.frame(index)
        }
        fn view(&self, index: usize) -> FrameView<'_> {
            self.inner.view(index)
        }
        fn release(&mut self) {
            self.inner.release();
        }
        fn wait_fd(&self) -> Option<i32> {
            self.bell.as_ref().map(EventFd::fd)
        }
        fn counters(&mut self) -> NicCounters {
            self.inner.counters()
        }
    }

    /// Two workers; the second one's port is odd.
    pub struct Bench {
        pub plane: ControlPlane,
        pub crew: Crew,
        pub panics: Arc<AtomicBool>,
        asked: Arc<AtomicU64>,
    }

    pub fn bench(bell: Option<EventFd>) -> Bench {
        let table = Arc::new(ConnTable::new(16, 1));
        let setup = Setup {
            ports: vec![Port {
                name: "memory".to_string(),
                side: Side::Public,
                mac: Mac([2, 0, 0, 0, 0, 1]),
                mtu: 1500,
                raw_ip: false,
                kernel: false,
                held: Vec::new(),
                addresses: Vec::new(),
                routes: Vec::new(),
                routes_from: Vec::new(),
                neighbours: Vec::new(),
            }],
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            workers: 2,
            table: Arc::clone(&table),
            table_size: 4096,
            pid: 1,
            nic: "memory".to_string(),
        };
        let plane = ControlPlane::new(setup, Instant::ZERO);
        let (panics, asked) = (Arc::default(), Arc::default());
        let mut bell = bell;
        let workers = [0, 1].map(|number| {
            let (rx, tx) = MemoryNic::new(false).halves();
            let rx: Box<dyn Rx> = match number {
                0 => rx,
                _ => Box::new(Odd {
                    inner: rx,
                    panics: Arc::clone(&panics),
                    asked: Arc::clone(&asked),
                    bell: bell.take(),
                }),
            };
            let setup = WorkerSetup {
                number,
                table: Arc::clone(&table),
                neighbours: Arc::new(Neighbours::new(16)),
                snapshot: plane.snapshot(),
                ports: vec![(rx, tx)],
                seed: 1,
                story: false,
            };
            Worker::new(setup, clock::now())
        });
        let crew = Crew::start(workers.into(), false, false).unwrap();
        Bench {
            plane,
            crew,
            panics,
            asked,
        }
    }

    /// Waits for a word of a worker; a test that waits for ever is ended by the harness.
    fn news(crew: &mut Crew) -> (usize, News) {
        let runtime = tokio::runtime::Builder::new_current_thread().build();
        runtime.unwrap().block_on(crew.news())
    }

    fn audited(crew: &mut Crew, worker: usize) {
        crew.order(worker, Order::Audit(7)).unwrap();
        match news(crew) {
            (from, News::Report(Report::Account { audit: 7, .. })) => assert_eq!(from, worker),
            other => panic!("no account but {other:?}"),
        }
    }

    #[test]
    fn orders_reach_sleeping_workers_and_all_end_in_order() {
        let mut bench = bench(None);
        for worker in [0, 1, 1, 0] {
            audited(&mut bench.crew, worker);
        }
        for worker in [0, 1] {
            bench.crew.order(worker, Order::Stop).unwrap();
            assert!(matches!(news(&mut bench.crew), (from, News::Ended) if from == worker));
        }
        assert!(bench.crew.all_ended());
        assert_eq!(
            bench.crew.order(0, Order::Stop),
            Ok(()),
            "who has ended needs no order"
        );
        assert_eq!(bench.crew.farewell(), Vec::<String>::new());
    }

    #[test]
    fn a_panic_is_heard_and_the_other_worker_goes_on() {
        let mut bench = bench(None);
        bench.panics.store(true, SeqCst);
        bench.crew.order(1, Order::Audit(1)).unwrap();
        // The worker may have answered the order before it breathed.
        while !matches!(news(&mut bench.crew), (1, News::Ended)) {}
        audited(&mut bench.crew, 0);
        bench.crew.order(0, Order::Stop).unwrap();
        while !bench.crew.all_ended() {
            news(&mut bench.crew);
        }
        assert_eq!(
            bench.crew.farewell(),
            ["worker 1 panicked: the port bit me"]
        );
    }

    #[test]
    fn a_port_that_cries_wolf_costs_no_core() {
        let bell = EventFd::new().unwrap();
        bell.wake();
        let mut bench = bench(Some(bell));
        audited(&mut bench.crew, 1);
        let before = bench.asked.load(SeqCst);
        #[expect(clippy::disallowed_methods, reason = "time for the worker to waste")]
        std::thread::sleep(std::time::Duration::from_millis(300));
        let asked = bench.asked.load(SeqCst) - before;
        assert!(asked < 500, "asked {asked} times in 0.3 s");
        audited(&mut bench.crew, 1);
    }

    #[test]
    fn a_control_loop_that_is_gone_ends_the_workers() {
        let bench = bench(None);
        let threads: Vec<_> = bench
            .crew
            .hands
            .into_iter()
            .map(|hand| {
                drop(hand.orders);
                hand.wake.wake();
                hand.thread
            })
            .collect();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
    }
}
