//! A director with a thousand virtual services, one of them with a thousand real servers of mixed
//! weights: its control plane, and a worker between two generating interfaces.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, RwLock};

use super::nic::{BenchRx, BenchTx, GATEWAY, INSIDE, OUTSIDE, Plan, VIP, port};
use ulvs::config::{Command, RealSpec, Reply, Request};
use ulvs::conn::ConnTable;
use ulvs::control::{ClientId, ControlPlane, Input, Output, Setup, TABLE_SIZE};
use ulvs::director::message::{Order, Report};
use ulvs::director::snapshot::Service;
use ulvs::director::{Neighbours, Side, Worker, WorkerSetup};
use ulvs::lvs::{
    Endpoint, ForwardMethod, Limits, RealKey, ServiceKey, ServiceSpec, Thresholds, Timeouts,
    Tunables, Weight,
};
use ulvs::rng::Rng;
use ulvs::time::Instant;
use ulvs::wire::{Mac, Rx, Tx};

pub const SERVICES: u16 = 1000;
pub const SERVERS: u16 = 1000;
/// Weights are drawn from 1 to this.
const WEIGHT_MAX: u64 = 100;
/// So many of a hundred servers are quiesced.
const QUIESCED_PERCENT: u64 = 2;
/// The first port of the small services.
const SMALL_FIRST: u16 = 2000;

/// The service with all the servers.
pub fn big() -> ServiceKey {
    ServiceKey::tcp(VIP.to_be_bytes().into(), 80)
}

/// Server number `number` of the big service.
pub fn server(number: u16) -> RealKey {
    let address = 0xc0a8_1000 + u32::from(number);
    RealKey(Endpoint::new(address.to_be_bytes().into(), 80))
}

fn real(key: RealKey, weight: i32) -> RealSpec {
    RealSpec {
        key,
        weight: Weight(weight),
        method: ForwardMethod::Masq,
        thresholds: Thresholds::default(),
        tunnel: Default::default(),
    }
}

/// The control plane of that director, and what it shares with the worker.
pub struct House {
    pub plane: ControlPlane,
    pub table: Arc<ConnTable>,
    pub plan: Arc<Plan>,
    rng: Rng,
    /// The next change: edit, delete or add this server.
    turn: u32,
    /// The server that is deleted and will be added.
    away: u16,
}

impl House {
    /// The whole director; `flows` bounds the connections, the first `established` of which are drawn
    /// from where frames are drawn by chance.
    pub fn new(scheduler: &str, flows: usize, established: usize) -> House {
        let table = Arc::new(ConnTable::new(flows + 1, 0x5eed));
        let neighbour = |number| (server(number).0.address, Mac([2, 0, 0, 0, 5, 0x20]));
        let inside: Vec<(IpAddr, Mac)> = (0..SERVERS).map(neighbour).collect();
        let outside = vec![(GATEWAY.into(), Mac([2, 0, 0, 0, 0x0c, 0xfe]))];
        let net = ([192, 168, 0, 0], 16);
        let setup = Setup {
            ports: vec![
                port(
                    "outside",
                    Side::Public,
                    OUTSIDE,
                    ([1, 2, 3, 0], 24),
                    outside,
                ),
                port("inside", Side::Private, INSIDE, net, inside),
            ],
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            workers: 1,
            table: Arc::clone(&table),
            table_size: TABLE_SIZE,
            pid: 1,
            nic: "memory".into(),
        };
        let plan = Plan {
            servers: RwLock::new(Vec::new()),
            locals: RwLock::default(),
            flows: established,
            flags: AtomicU64::new(0),
            cursor: AtomicU64::new(u64::MAX),
            client: AtomicBool::new(true),
            server: AtomicBool::new(false),
            left: AtomicU64::new(0),
        };
        let mut house = House {
            plane: ControlPlane::new(setup, Instant::ZERO),
            table,
            plan: Arc::new(plan),
            rng: Rng::new(7),
            turn: 0,
            away: 0,
        };
        house.furnish(scheduler);
        house
    }

    fn weight(&mut self) -> i32 {
        if self.rng.chance(QUIESCED_PERCENT) {
            0
        } else {
            1 + self.rng.below(WEIGHT_MAX) as i32
        }
    }

    fn furnish(&mut self, scheduler: &str) {
        let mut commands = vec![Command::AddService(ServiceSpec::new(big(), scheduler))];
        for number in 0..SERVERS {
            let (service, weight) = (big(), self.weight());
            let real = real(server(number), weight);
            commands.push(Command::AddReal { service, real });
        }
        for number in 1..SERVICES {
            let service = ServiceKey::tcp(VIP.to_be_bytes().into(), SMALL_FIRST + number);
            commands.push(Command::AddService(ServiceSpec::new(service, scheduler)));
            let real = real(server(number), 1);
            commands.push(Command::AddReal { service, real });
        }
        self.change(Command::Batch(commands));
    }

    /// Does a command while no worker runs.
    pub fn change(&mut self, command: Command) {
        let (from, request) = (ClientId(1), Request::Do(command));
        let now = Instant::ZERO;
        self.plane.handle(Input::Request { from, request }, now);
        while let Some(output) = self.plane.poll_output() {
            match output {
                Output::Order { order, worker } => {
                    let Order::Adopt(snapshot) = order else {
                        panic!("{order:?}");
                    };
                    let report = Report::Adopted(snapshot.id);
                    self.plane.handle(Input::Reported { worker, report }, now);
                }
                Output::Reply { reply, .. } => assert_eq!(reply, Reply::Done),
                Output::Changed | Output::Stopped => {}
            }
        }
    }

    /// The next change of one server of the big service: a new weight, gone, back again at the head.
    pub fn next_change(&mut self) -> Command {
        let service = big();
        self.turn += 1;
        match self.turn % 3 {
            1 => {
                self.away = self.rng.below(SERVERS.into()) as u16;
                let weight = self.weight();
                let real = real(server(self.away), weight);
                Command::EditReal { service, real }
            }
            2 => Command::DeleteReal {
                service,
                real: server(self.away),
            },
            _ => {
                let weight = self.weight();
                let real = real(server(self.away), weight);
                Command::AddReal { service, real }
            }
        }
    }

    /// The big service as it is in force.
    pub fn service(&self) -> Arc<Service> {
        let snapshot = self.plane.snapshot();
        Arc::clone(snapshot.service(&big()).expect("it was added"))
    }

    /// Gives every server some connections, as they would be after a while.
    pub fn load(&mut self) {
        for real in &self.service().reals {
            let mut below = |bound| self.rng.below(bound) as u32;
            real.live.active.store(below(200), Relaxed);
            real.live.inactive.store(below(400), Relaxed);
        }
    }

    /// The worker, ready to breathe.
    pub fn worker(&self, now: Instant) -> Worker {
        let half = |from_client| {
            let rx = BenchRx::new(Arc::clone(&self.plan), from_client, 42);
            let tx = BenchTx {
                plan: Arc::clone(&self.plan),
                learns: Arc::default(),
                learned: 0,
                sum: 0,
            };
            (Box::new(rx) as Box<dyn Rx>, Box::new(tx) as Box<dyn Tx>)
        };
        let setup = WorkerSetup {
            number: 0,
            table: Arc::clone(&self.table),
            neighbours: Arc::new(Neighbours::new(
                Limits::default().neigh_entries_max as usize,
            )),
            snapshot: self.plane.snapshot(),
            ports: vec![half(true), half(false)],
            seed: 3,
            story: false,
        };
        Worker::new(setup, now)
    }
}
