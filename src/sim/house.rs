//! The director of a run, whole but in memory: the control plane and the workers of the daemon, each in
//! a time of its own. Orders and reports take a while, frames wait for a worker to wake.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::topology;
use crate::config::{Reply, Request};
use crate::conn::ConnTable;
use crate::control::{ClientId, ControlPlane, Input, Output, Setup, TABLE_SIZE};
use crate::director::message::{Order, Report};
use crate::director::snapshot::{Snapshot, SnapshotId};
use crate::director::{Account, Neighbours, Worker, WorkerSetup};
use crate::lvs::tunables::BATCH_FRAMES_MAX;
use crate::lvs::{Endpoint, Flow, Limits, Protocol, Segment, TcpFlags, Timeouts, Tunables};
use crate::rng::Rng;
use crate::time::{Duration, Instant};
use crate::wire::memory::{MemoryFrame, MemoryNic};
use crate::wire::packet::{Fragment, Kind};
use crate::wire::{Layout, NicError, Packet};

/// How a worker is found for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// Both directions of a connection at the same worker.
    Together,
    /// Each direction at a worker of its own choice.
    Apart,
    /// Every frame anywhere.
    Scattered,
}

/// What a director is like.
#[derive(Clone, Copy, Debug)]
pub struct HouseRules {
    /// Number of workers.
    pub workers: usize,
    /// Who gets a frame.
    pub steering: Steering,
    /// Longest time that an order, a report or a bell takes.
    pub message_delay: Duration,
    /// Largest packet of each port.
    pub mtus: [u32; 2],
    /// Bounds.
    pub limits: Limits,
}

/// What a worker will read, as far as the laws want to know it.
#[derive(Clone, Debug)]
pub struct Fed {
    /// Who speaks to whom, if it has ports and is whole, and what it says.
    pub flow: Option<(Flow, Segment)>,
    /// Its firewall mark.
    pub mark: u32,
    /// A host made it by the book.
    pub plain: bool,
    /// It is AH or ESP.
    pub ipsec: bool,
}

/// Something that is to happen in the director.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// This worker gets its next order.
    Order(usize),
    /// The control plane gets this worker's next report.
    Report(usize),
    /// The control plane has something to do.
    Plane,
    /// This worker breathes.
    Breath(usize),
}

/// What came of a breath.
#[derive(Debug)]
pub struct Breath {
    /// The frames that were read, in their order.
    pub fed: Vec<Fed>,
    /// The frames that were sent, with their port.
    pub sent: Vec<(usize, Vec<u8>)>,
    /// Frames that the worker says it has read.
    pub handled: usize,
}

/// A worker and what is around it.
struct Seat {
    worker: Worker,
    nics: [MemoryNic; 2],
    down: [bool; 2],
    waiting: [VecDeque<Fed>; 2],
    orders: VecDeque<(Instant, Order)>,
    reports: VecDeque<(Instant, Report)>,
    wake: Option<Instant>,
    /// It has no core until then: it takes no order and no breath.
    stalled_until: Instant,
}

/// The director.
pub struct House {
    rules: HouseRules,
    plane: ControlPlane,
    seats: Vec<Seat>,
    table: Arc<ConnTable>,
    rng: Rng,
    /// Clients that wait, with the snapshot that their change is in.
    asking: BTreeMap<ClientId, SnapshotId>,
    clients: u64,
    replies: Vec<(ClientId, Reply)>,
}

impl House {
    /// A director without services.
    pub fn new(rules: HouseRules, seed: u64, now: Instant) -> House {
        let limits = rules.limits;
        let table = Arc::new(ConnTable::new(limits.conn_entries_max as usize, seed));
        let setup = Setup {
            ports: topology::ports(rules.mtus),
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits,
            workers: rules.workers,
            table: Arc::clone(&table),
            table_size: TABLE_SIZE,
            pid: 1,
            nic: "memory".to_string(),
        };
        let plane = ControlPlane::new(setup, now);
        let neighbours = Arc::new(Neighbours::new(limits.neigh_entries_max as usize));
        let seat = |number| {
            let nics = [MemoryNic::new(false), MemoryNic::new(false)];
            let setup = WorkerSetup {
                number,
                table: Arc::clone(&table),
                neighbours: Arc::clone(&neighbours),
                snapshot: plane.snapshot(),
                ports: nics.iter().map(MemoryNic::halves).collect(),
                seed,
                story: false,
            };
            Seat {
                worker: Worker::new(setup, now),
                nics,
                down: [false; 2],
                waiting: Default::default(),
                orders: VecDeque::new(),
                reports: VecDeque::new(),
                wake: None,
                stalled_until: now,
            }
        };
        House {
            seats: (0..rules.workers).map(seat).collect(),
            rules,
            plane,
            table,
            rng: Rng::new(seed),
            asking: BTreeMap::new(),
            clients: 0,
            replies: Vec::new(),
        }
    }

    /// Its connections.
    pub fn table(&self) -> &ConnTable {
        &self.table
    }

    /// What is configured.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.plane.snapshot()
    }

    /// Number of workers.
    pub fn workers(&self) -> usize {
        self.seats.len()
    }

    /// A worker, to be looked at.
    pub fn worker(&self, number: usize) -> &Worker {
        &self.seats[number].worker
    }

    /// All workers' accounts together.
    pub fn account(&self) -> Account {
        let mut sum = Account::new();
        self.seats
            .iter()
            .for_each(|seat| sum.add(seat.worker.account()));
        sum
    }

    /// Clients whose answer is still to come.
    pub fn asking(&self) -> usize {
        self.asking.len()
    }

    /// Frames that wait in front of a worker.
    pub fn waiting(&self) -> usize {
        let queues = self.seats.iter().flat_map(|seat| &seat.waiting);
        queues.map(VecDeque::len).sum()
    }

    /// The next event and its time; of equals the one that `Event` names first.
    pub fn next(&self) -> Option<(Instant, Event)> {
        let seats = || self.seats.iter().enumerate();
        let orders = seats().map(|(number, seat)| {
            let first = seat.orders.front();
            let due = first.map(|(due, _)| seat.stalled_until.max(*due));
            (due, Event::Order(number))
        });
        let reports = seats().map(|(number, seat)| {
            let first = seat.reports.front().map(|(due, _)| *due);
            (first, Event::Report(number))
        });
        let plane = [(self.plane.poll_timeout(), Event::Plane)];
        let breaths = seats().map(|(number, seat)| {
            let due = seat.wake.map(|wake| seat.stalled_until.max(wake));
            (due, Event::Breath(number))
        });
        let all = orders.chain(reports).chain(plane).chain(breaths);
        let due = all.filter_map(|(due, event)| Some((due?, event)));
        due.min_by_key(|(due, _)| *due)
    }

    /// A frame reaches one of the workers; says which, or `None` if its port is down.
    pub fn receive(
        &mut self,
        port: usize,
        frame: MemoryFrame,
        plain: bool,
        now: Instant,
    ) -> Option<usize> {
        let fed = read(&frame, plain);
        let number = self.steer(&fed);
        let delay = self.delay();
        let seat = &mut self.seats[number];
        if seat.down[port] {
            return None;
        }
        seat.waiting[port].push_back(fed);
        seat.nics[port].put(frame);
        seat.wake_by(now + delay);
        Some(number)
    }

    fn steer(&mut self, fed: &Fed) -> usize {
        let workers = self.seats.len() as u64;
        let Some((flow, _)) = fed
            .flow
            .filter(|_| self.rules.steering != Steering::Scattered)
        else {
            return self.rng.below(workers) as usize;
        };
        let sum = |port: u16, weight: u64| u64::from(port) * weight;
        let (source, target) = (flow.source.port, flow.target.port);
        // The client's port alone is the same in both directions.
        let number = match self.rules.steering {
            Steering::Together => sum(source.max(target), 7),
            _ => sum(source, 7) + sum(target, 3) + sum(source / 2, 5),
        };
        (number % workers) as usize
    }

    fn delay(&mut self) -> Duration {
        Duration::from_nanos(self.rng.below(self.rules.message_delay.as_nanos() + 1))
    }

    /// Somebody asks the control plane. Returns the number of this client.
    pub fn ask(&mut self, request: Request, now: Instant) -> ClientId {
        self.clients += 1;
        let from = ClientId(self.clients);
        self.plane.handle(Input::Request { from, request }, now);
        self.asking.insert(from, self.plane.snapshot().id);
        self.settle(now);
        from
    }

    /// Does what is due. A breath is for `breathe`.
    pub fn act(&mut self, event: Event, now: Instant) {
        match event {
            Event::Order(worker) => {
                let seat = &mut self.seats[worker];
                if let Some((_, order)) = seat.orders.pop_front() {
                    seat.worker.handle_order(order, now);
                    seat.wake_by(now);
                }
                self.collect(worker, now);
            }
            Event::Report(worker) => {
                if let Some((_, report)) = self.seats[worker].reports.pop_front() {
                    self.plane.handle(Input::Reported { worker, report }, now);
                }
            }
            Event::Plane => self.plane.handle_timeout(now),
            Event::Breath(_) => {}
        }
        self.settle(now);
    }

    /// Lets a worker breathe.
    pub fn breathe(&mut self, number: usize, now: Instant) -> Breath {
        let seat = &mut self.seats[number];
        let mut fed = Vec::new();
        for (waiting, down) in seat.waiting.iter_mut().zip(seat.down) {
            let batch = if down {
                0
            } else {
                waiting.len().min(BATCH_FRAMES_MAX)
            };
            fed.extend(waiting.drain(..batch));
        }
        let handled = seat.worker.breathe(now);
        let sent = (0..2).flat_map(|port| {
            let frames = seat.nics[port].take().into_iter();
            frames.map(move |frame| (port, frame.bytes))
        });
        let sent = sent.collect();
        let ready = |(waiting, down): (&VecDeque<Fed>, bool)| !down && !waiting.is_empty();
        let more = seat.waiting.iter().zip(seat.down).any(ready);
        seat.wake = match seat.worker.poll_timeout(now) {
            _ if handled > 0 || more => Some(now),
            timeout => timeout,
        };
        self.collect(number, now);
        Breath { fed, sent, handled }
    }

    /// Reports set out.
    fn collect(&mut self, number: usize, now: Instant) {
        while let Some(report) = self.seats[number].worker.poll_report() {
            let due = now + self.delay();
            let reports = &mut self.seats[number].reports;
            let last = reports.back().map_or(due, |(last, _)| *last);
            reports.push_back((due.max(last), report));
        }
    }

    /// Orders set out, replies are kept for whoever asked.
    fn settle(&mut self, now: Instant) {
        while let Some(output) = self.plane.poll_output() {
            match output {
                Output::Order { worker, order } => {
                    let due = now + self.delay();
                    let orders = &mut self.seats[worker].orders;
                    let last = orders.back().map_or(due, |(last, _)| *last);
                    orders.push_back((due.max(last), order));
                }
                Output::Reply { to, reply } => self.replies.push((to, reply)),
                Output::Changed | Output::Stopped => {}
            }
        }
    }

    /// The replies that came since the last call, each with the snapshot that must be in force
    /// everywhere if it says `Done`.
    ///
    /// # Errors
    /// A reply that nobody waits for.
    pub fn take_replies(&mut self) -> Result<Vec<(SnapshotId, Reply)>, String> {
        let replies = std::mem::take(&mut self.replies);
        let known = replies.into_iter().map(|(to, reply)| {
            let id = self.asking.remove(&to);
            id.map(|id| (id, reply))
                .ok_or_else(|| format!("client {} has two replies", to.0))
        });
        known.collect()
    }

    /// A worker loses its core for a while.
    pub fn stall(&mut self, worker: usize, until: Instant) {
        self.seats[worker].stalled_until = until;
    }

    /// Has a worker no core, or has it not yet had time since to answer?
    pub fn is_stalled(&self, now: Instant) -> bool {
        let soon = self.rules.message_delay;
        let stalled = |seat: &Seat| {
            let waits = seat.orders.len() + seat.reports.len() > 0;
            waits || now <= seat.stalled_until + soon
        };
        self.seats.iter().any(stalled)
    }

    /// A port has another MTU from now on.
    pub fn set_mtu(&mut self, port: usize, mtu: u32, now: Instant) {
        let mut ports = self.plane.snapshot().ports.clone();
        ports[port].mtu = mtu;
        self.plane.handle(Input::PortsChanged(ports), now);
        self.settle(now);
    }

    /// A port of a worker gives no more frames, or gives them again.
    pub fn set_down(&mut self, worker: usize, port: usize, down: bool, now: Instant) {
        let seat = &mut self.seats[worker];
        seat.down[port] = down;
        seat.nics[port].set_error(down.then_some(NicError::Down));
        seat.wake_by(now);
    }

    /// Every worker breathes soon, as it does wherever somebody chatters on a link.
    pub fn wake_all(&mut self, now: Instant) {
        self.seats.iter_mut().for_each(|seat| seat.wake_by(now));
    }

    /// A port of a worker takes no more frames, or takes them again.
    pub fn set_refusing(&mut self, worker: usize, port: usize, refuses: bool) {
        self.seats[worker].nics[port].set_refusing(refuses);
    }
}

impl Seat {
    fn wake_by(&mut self, due: Instant) {
        self.wake = Some(self.wake.map_or(due, |wake| wake.min(due)));
    }
}

/// Reads of a frame what the laws want to know.
fn read(frame: &MemoryFrame, plain: bool) -> Fed {
    let mut fed = Fed {
        flow: None,
        mark: frame.mark,
        plain,
        ipsec: false,
    };
    let Ok(layout) = Layout::parse(&frame.bytes, false) else {
        return fed;
    };
    let protocol = Protocol(layout.protocol);
    let ip = matches!(layout.kind, Kind::V4 | Kind::V6);
    fed.ipsec = ip && matches!(protocol.0, 50 | 51);
    if !ip || !layout.transport || layout.fragment != Fragment::Whole || !protocol.is_balanced() {
        return fed;
    }
    let mut bytes = frame.bytes.clone();
    let packet = Packet::over(&mut bytes, layout, frame.offload);
    let flow = Flow {
        protocol,
        source: Endpoint::new(packet.source(), packet.source_port()),
        target: Endpoint::new(packet.target(), packet.target_port()),
    };
    let segment = match protocol {
        Protocol::TCP => Segment::Tcp(TcpFlags(packet.tcp_flags())),
        Protocol::SCTP => {
            let (first, second) = packet.sctp_chunks().unwrap_or((u8::MAX, None));
            Segment::Sctp { first, second }
        }
        _ => Segment::Udp,
    };
    fed.flow = Some((flow, segment));
    fed
}
