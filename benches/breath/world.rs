//! A worker between two generating interfaces, with its connections established by real handshakes.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};

use super::nic::{BenchRx, BenchTx, GATEWAY, INSIDE, OUTSIDE, Plan, VIP, port, server_of};
use ulvs::conn::ConnTable;
use ulvs::director::snapshot::{Parts, Role, Service, Side, Snapshot, SnapshotId};
use ulvs::director::{Director, Neighbours, Worker, WorkerSetup};
use ulvs::lvs::{
    Endpoint, ForwardMethod, Limits, Masquerading, RealKey, RealLive, RealServer, ServiceKey,
    ServiceSpec, SourcePool, Thresholds, Timeouts, Tunables, Tunnel, Weight,
};
use ulvs::time::{Duration, Instant};
use ulvs::wire::{Mac, Packet, Rx};

const SERVERS: u8 = 4;

/// Whose frames a round is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Client,
    Server,
    Both,
}

pub struct World {
    worker: Worker,
    plan: Arc<Plan>,
    now: Instant,
    pub table: Arc<ConnTable>,
}

/// Addresses that full NAT speaks from: 252,000 local ends for each of four real servers.
const LOCALS: [[u8; 4]; 5] = [
    [192, 168, 1, 200],
    [192, 168, 1, 201],
    [192, 168, 1, 202],
    [192, 168, 1, 203],
    [192, 168, 1, 204],
];

fn snapshot(index: bool, entries: usize, (method, tunnel): (ForwardMethod, Tunnel)) -> Snapshot {
    let real = |number: u8| {
        let endpoint = Endpoint::new(IpAddr::from(server_of(number).to_be_bytes()), 80);
        let live = RealLive::new(number.into(), endpoint, 1);
        live.tunnel.store(tunnel.pack(), Relaxed);
        RealServer {
            key: RealKey(endpoint),
            weight: Weight(1),
            last_weight: Weight(1),
            method,
            thresholds: Thresholds::default(),
            live: Arc::new(live),
        }
    };
    let reals: Vec<RealServer> = (0..SERVERS).map(real).collect();
    let scheduler = ulvs::sched::by_name("rr", &reals).map(|rr| Arc::new(Mutex::new(rr)));
    let spec = ServiceSpec::new(ServiceKey::tcp(VIP.to_be_bytes().into(), 80), "rr");
    let neighbour = |real: &RealServer| (real.key.0.address, Mac([2, 0, 0, 0, 5, 0x20]));
    let inside = reals.iter().map(neighbour).collect();
    let outside = vec![(GATEWAY.into(), Mac([2, 0, 0, 0, 0x0c, 0xfe]))];
    let service = Service {
        spec,
        reals,
        scheduler,
    };
    let limits = Limits {
        conn_entries_max: entries as u32 + 1,
        index_slots_max: if index {
            Limits::default().index_slots_max
        } else {
            0
        },
        ..Limits::default()
    };
    let pool = SourcePool {
        addresses: LOCALS.map(Into::into).to_vec(),
        ..SourcePool::default()
    };
    Snapshot::new(Parts {
        id: SnapshotId(1),
        role: Role::Primary,
        services: vec![Arc::new(service)],
        ports: vec![
            port(
                "outside",
                Side::Public,
                OUTSIDE,
                ([1, 2, 3, 0], 24),
                outside,
            ),
            port(
                "inside",
                Side::Private,
                INSIDE,
                ([192, 168, 1, 0], 24),
                inside,
            ),
        ],
        tunables: Tunables::default(),
        timeouts: Timeouts::default(),
        limits,
    })
    .with_pools(&Masquerading::default(), &pool)
}

impl World {
    /// `flows` connections, each opened by SYN, SYN-ACK and ACK through the worker itself. Only under
    /// NAT does it see the second.
    pub fn established(flows: usize, index: bool, way: (ForwardMethod, Tunnel)) -> World {
        let (method, both) = (way.0, way.0.is_nat());
        let locals = match method {
            ForwardMethod::FullNat => vec![(0, 0); flows + 1024],
            _ => vec![],
        };
        let plan = Arc::new(Plan {
            servers: RwLock::new(vec![0; flows + 1024]),
            locals: RwLock::new(locals),
            flows,
            flags: AtomicU64::new(0),
            cursor: AtomicU64::new(u64::MAX),
            client: AtomicBool::new(false),
            server: AtomicBool::new(false),
            left: AtomicU64::new(0),
        });
        let now = Instant::ZERO + Duration::from_secs(1);
        let table = Arc::new(ConnTable::new(flows + 1, 0x5eed));
        let learns = Arc::new(AtomicBool::new(both));
        let half = |from_client: bool| {
            let rx = BenchRx::new(Arc::clone(&plan), from_client, 42);
            let learns = if from_client {
                Arc::default()
            } else {
                Arc::clone(&learns)
            };
            let tx = BenchTx {
                plan: Arc::clone(&plan),
                learns,
                learned: 0,
                sum: 0,
            };
            (
                Box::new(rx) as Box<dyn Rx>,
                Box::new(tx) as Box<dyn ulvs::wire::Tx>,
            )
        };
        let setup = WorkerSetup {
            number: 0,
            table: Arc::clone(&table),
            neighbours: Arc::new(Neighbours::new(64)),
            snapshot: Arc::new(snapshot(index, flows, way)),
            ports: vec![half(true), half(false)],
            seed: 3,
            story: false,
        };
        let mut world = World {
            worker: Worker::new(setup, now),
            plan: Arc::clone(&plan),
            now,
            table,
        };
        world.handshake(From::Client, 0x02, flows);
        learns.store(false, Relaxed);
        if both {
            world.handshake(From::Server, 0x12, flows);
        }
        world.handshake(From::Client, 0x10, flows);
        assert_eq!(world.table.len(), flows, "every flow is in the table");
        plan.flags.store(0x10, Relaxed);
        world
    }

    fn handshake(&mut self, from: From, flags: u64, flows: usize) {
        self.plan.flags.store(flags, Relaxed);
        self.plan.cursor.store(0, Relaxed);
        self.run(from, flows);
        self.plan.cursor.store(u64::MAX, Relaxed);
    }

    /// Sends `frames` frames through the worker; all of them must come out. Returns how many.
    pub fn run(&mut self, from: From, frames: usize) -> usize {
        let before = self.worker.account().clone();
        self.plan.client.store(from != From::Server, Relaxed);
        self.plan.server.store(from != From::Client, Relaxed);
        self.plan.left.store(frames as u64, Relaxed);
        let mut done = 0;
        while done < frames {
            done += self.worker.breathe(self.now);
            self.now += Duration::from_nanos(10_000);
        }
        let forwarded = self.worker.account().forwarded - before.forwarded;
        assert_eq!(forwarded, frames as u64, "{:?}", self.worker.account());
        done
    }
}

/// The same frames through a loop that parses each and rewrites its target, and knows nothing.
pub fn bare(flows: usize, frames: usize) -> usize {
    let plan = Arc::new(Plan {
        servers: RwLock::new(vec![0; flows + 1024]),
        locals: RwLock::default(),
        flows,
        flags: AtomicU64::new(0x10),
        cursor: AtomicU64::new(u64::MAX),
        client: AtomicBool::new(true),
        server: AtomicBool::new(false),
        left: AtomicU64::new(frames as u64),
    });
    let director = Director::new(Arc::new(ConnTable::new(1, 1)));
    let mut rx = BenchRx::new(Arc::clone(&plan), true, 42);
    let real: IpAddr = server_of(1).to_be_bytes().into();
    let mut done = 0;
    let mut sum = 0u64;
    while done < frames {
        let count = rx.fill().expect("memory is never down");
        for index in 0..count {
            let mut frame = rx.frame(index);
            let prepared = director.prepare(frame.bytes(), false);
            sum = sum.wrapping_add(prepared.hash);
            let mut packet = Packet::new(&mut frame, prepared.layout());
            packet.set_target(real, 8080);
            packet.decrement_ttl();
            packet.set_macs(Mac(OUTSIDE), Mac(INSIDE));
        }
        done += count;
    }
    std::hint::black_box(sum);
    done
}
