//! A million UDP flows and a million half-open TCP connections at once, through a whole worker, in
//! memory and in virtual time: what one costs in memory, that all are gone after their timeouts, and
//! that a second flood finds the memory of the first.
//!
//! Built without optimization it runs with a fifth of them and says so; `cargo nextest run --release
//! --test scale --no-capture` is the whole thing.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use ulvs::conn::ConnTable;
use ulvs::director::snapshot::{Parts, Port, Role, Service, Side, Snapshot, SnapshotId};
use ulvs::director::{Neighbours, Worker, WorkerSetup};
use ulvs::lvs::tunables::BATCH_FRAMES_MAX;
use ulvs::lvs::{
    Endpoint, ForwardMethod, Limits, Protocol, RealKey, RealLive, RealServer, ServiceKey,
    ServiceSpec, Thresholds, Timeouts, Tunables, Weight,
};
use ulvs::time::{Duration, Instant};
use ulvs::wire::checksum::{Sum, pseudo_header};
use ulvs::wire::nic::Sent;
use ulvs::wire::{Frame, FrameMeta, FrameView, Mac, NicCounters, NicError, Rx, Tx};

/// Connections of each protocol.
const FLOWS: u32 = if cfg!(debug_assertions) {
    200_000
} else {
    1_000_000
};
/// What one connection may cost, everything included: entry, table, index, wheel, allocator.
const BYTES_PER_CONN_MAX: u64 = 300;
/// How late the last of a million connections may be closed: a slot of the wheel, and the time that a
/// bounded number in each breath takes.
const LATE_S: u64 = 1;
/// Between two breaths of a busy worker.
const BREATH: Duration = Duration::from_nanos(20_000);

const VIP: [u8; 4] = [1, 2, 3, 1];
const OUTSIDE: Mac = Mac([2, 0, 0, 0, 0x0c, 1]);
const INSIDE: Mac = Mac([2, 0, 0, 0, 5, 1]);
const GATEWAY: ([u8; 4], Mac) = ([1, 2, 3, 254], Mac([2, 0, 0, 0, 0x0c, 0xfe]));
const SERVERS: u8 = 4;

/// Number of a real server and of the bytes that tell it from the others.
fn server_address(server: u8) -> [u8; 4] {
    [192, 168, 1, 11 + server]
}

/// The client's end of a flow: 16 ports of each address.
fn client_end(flow: u32) -> ([u8; 4], u16) {
    let address = 0x0a40_0000 + (flow >> 4);
    (address.to_be_bytes(), 20_000 + (flow & 15) as u16 * 1021)
}

fn flow_of(address: [u8; 4], port: u16) -> u32 {
    (u32::from_be_bytes(address) - 0x0a40_0000) << 4 | u32::from((port - 20_000) / 1021)
}

/// What is sent next, agreed on by both interfaces.
struct Plan {
    udp: AtomicBool,
    servers_speak: AtomicBool,
    next: AtomicU32,
    /// Real server of each flow of the protocol that was opened last.
    servers: Mutex<Vec<u8>>,
}

const BUFFER: usize = 128;
const START: usize = 32;
/// Ethernet, IPv4 and TCP; UDP carries twelve bytes of payload in the same room.
const FRAME: usize = 54;

/// Makes the frames of one side in the same few buffers: nothing is allocated per frame.
struct Source {
    plan: Arc<Plan>,
    server_side: bool,
    buffers: Vec<[u8; BUFFER]>,
    metas: Vec<FrameMeta>,
}

impl Source {
    fn new(plan: &Arc<Plan>, server_side: bool) -> Source {
        Source {
            plan: Arc::clone(plan),
            server_side,
            buffers: vec![[0; BUFFER]; BATCH_FRAMES_MAX],
            metas: vec![FrameMeta::default(); BATCH_FRAMES_MAX],
        }
    }

    fn write(&mut self, at: usize, flow: u32, server: u8, udp: bool) {
        let (client, client_port) = client_end(flow);
        let client = (client, client_port);
        let (source, target, to, flags) = if self.server_side {
            ((server_address(server), 80), client, INSIDE, 0x12)
        } else {
            (client, (VIP, 80), OUTSIDE, 0x02)
        };
        let protocol = if udp { 17 } else { 6 };
        let frame = &mut self.buffers[at][START..START + FRAME];
        frame.fill(0);
        frame[..6].copy_from_slice(&to.0);
        frame[6..12].copy_from_slice(&GATEWAY.1.0);
        frame[12..26].copy_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, protocol, 0, 0]);
        frame[26..30].copy_from_slice(&source.0);
        frame[30..34].copy_from_slice(&target.0);
        frame[34..36].copy_from_slice(&source.1.to_be_bytes());
        frame[36..38].copy_from_slice(&target.1.to_be_bytes());
        let sum_at = if udp { 40 } else { 50 };
        if udp {
            frame[39] = 20;
        } else {
            (frame[46], frame[47]) = (0x50, flags);
        }
        let header = Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&header.to_be_bytes());
        let pseudo = pseudo_header(source.0.into(), target.0.into(), protocol, 20);
        let sum = pseudo.plus(Sum::of(&frame[34..54])).checksum();
        frame[sum_at..sum_at + 2].copy_from_slice(&sum.to_be_bytes());
        self.metas[at] = FrameMeta {
            start: START as u32,
            end: (START + FRAME) as u32,
            ..FrameMeta::default()
        };
    }
}

impl Rx for Source {
    fn fill(&mut self) -> Result<usize, NicError> {
        let plan = Arc::clone(&self.plan);
        let first = plan.next.load(Relaxed);
        if plan.servers_speak.load(Relaxed) != self.server_side || first == FLOWS {
            return Ok(0);
        }
        let count = (FLOWS - first).min(BATCH_FRAMES_MAX as u32);
        let servers = plan.servers.lock().expect("nobody panicked with it");
        for at in 0..count {
            let flow = first + at;
            let udp = plan.udp.load(Relaxed);
            self.write(at as usize, flow, servers[flow as usize], udp);
        }
        plan.next.store(first + count, Relaxed);
        Ok(count as usize)
    }

    fn frame(&mut self, index: usize) -> Frame<'_> {
        Frame {
            buffer: &mut self.buffers[index],
            meta: &mut self.metas[index],
        }
    }

    fn view(&self, index: usize) -> FrameView<'_> {
        let meta = &self.metas[index];
        FrameView {
            bytes: &self.buffers[index][meta.start as usize..meta.end as usize],
            offload: meta.offload,
            raw_ip: false,
        }
    }

    fn release(&mut self) {}

    fn wait_fd(&self) -> Option<i32> {
        None
    }

    fn counters(&mut self) -> NicCounters {
        NicCounters::default()
    }
}

/// Takes everything. The one on the inside remembers which server got which flow.
struct Sink {
    plan: Arc<Plan>,
    server_side: bool,
}

impl Tx for Sink {
    fn send<'f>(&mut self, frames: &mut dyn Iterator<Item = FrameView<'f>>) -> Sent {
        let mut sent = Sent::default();
        let mut servers = self.plan.servers.lock().expect("nobody panicked with it");
        for frame in frames {
            sent.taken += 1;
            if self.server_side {
                let source = frame.bytes[26..30].try_into().expect("four bytes");
                let port = u16::from_be_bytes([frame.bytes[34], frame.bytes[35]]);
                servers[flow_of(source, port) as usize] = frame.bytes[33] - 11;
            } else {
                assert_eq!(frame.bytes[26..30], VIP, "nobody sees a real server");
            }
        }
        sent
    }
}

struct World {
    worker: Worker,
    plan: Arc<Plan>,
    table: Arc<ConnTable>,
    /// The real servers of UDP and of TCP.
    lives: [Vec<Arc<RealLive>>; 2],
    now: Instant,
}

fn service(protocol: Protocol, first_id: u32) -> Service {
    let real = |server: u8| {
        let endpoint = Endpoint::new(server_address(server).into(), 80);
        RealServer {
            key: RealKey(endpoint),
            weight: Weight(1),
            last_weight: Weight(1),
            method: ForwardMethod::Masq,
            thresholds: Thresholds::default(),
            live: Arc::new(RealLive::new(first_id + u32::from(server), endpoint, 1)),
        }
    };
    let reals: Vec<RealServer> = (0..SERVERS).map(real).collect();
    let key = ServiceKey::Address {
        protocol,
        virt: Endpoint::new(VIP.into(), 80),
    };
    let scheduler = ulvs::sched::by_name("rr", &reals).map(|rr| Arc::new(Mutex::new(rr)));
    Service {
        spec: ServiceSpec::new(key, "rr"),
        reals,
        scheduler,
    }
}

fn port(name: &str, side: Side, mac: Mac, net: [u8; 4], neighbours: Vec<(IpAddr, Mac)>) -> Port {
    let mut routes = vec![(net.into(), 24, None)];
    if side == Side::Public {
        routes.push(([0, 0, 0, 0].into(), 0, Some(GATEWAY.0.into())));
    }
    Port {
        name: name.into(),
        side,
        mac,
        mtu: 1500,
        raw_ip: false,
        kernel: false,
        held: Vec::new(),
        addresses: vec![],
        routes,
        routes_from: vec![],
        neighbours,
    }
}

impl World {
    fn new() -> World {
        let services = [service(Protocol::UDP, 10), service(Protocol::TCP, 20)];
        let lives = [0, 1].map(|at: usize| {
            let reals = services[at].reals.iter();
            reals.map(|real| Arc::clone(&real.live)).collect()
        });
        let neighbour = |server| (server_address(server).into(), Mac([2, 0, 0, 0, 5, 11]));
        let inside = (0..SERVERS).map(neighbour).collect();
        let outside = vec![(GATEWAY.0.into(), GATEWAY.1)];
        let snapshot = Snapshot::new(Parts {
            id: SnapshotId(1),
            role: Role::Primary,
            services: services.into_iter().map(Arc::new).collect(),
            ports: vec![
                port("outside", Side::Public, OUTSIDE, [1, 2, 3, 0], outside),
                port("inside", Side::Private, INSIDE, [192, 168, 1, 0], inside),
            ],
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
        });
        let plan = Arc::new(Plan {
            udp: AtomicBool::new(false),
            servers_speak: AtomicBool::new(false),
            next: AtomicU32::new(FLOWS),
            servers: Mutex::new(vec![u8::MAX; FLOWS as usize]),
        });
        let half = |server_side| {
            let sink = Sink {
                plan: Arc::clone(&plan),
                server_side,
            };
            let source: Box<dyn Rx> = Box::new(Source::new(&plan, server_side));
            (source, Box::new(sink) as Box<dyn Tx>)
        };
        let table = Arc::new(ConnTable::new(4 << 20, 0x5eed));
        let now = Instant::ZERO + Duration::from_secs(1);
        let setup = WorkerSetup {
            number: 0,
            table: Arc::clone(&table),
            neighbours: Arc::new(Neighbours::new(64)),
            snapshot: Arc::new(snapshot),
            ports: vec![half(false), half(true)],
            seed: 3,
            story: false,
        };
        World {
            worker: Worker::new(setup, now),
            plan,
            table,
            lives,
            now,
        }
    }

    fn breathe(&mut self) {
        self.worker.breathe(self.now);
        // The control plane takes them, and gives back the memory that is in one.
        while self.worker.poll_report().is_some() {}
        self.now += BREATH;
    }

    /// One frame of every flow, from the clients or from the real servers; all of them get through.
    fn say(&mut self, udp: bool, servers_speak: bool) {
        let before = self.worker.account().forwarded;
        self.plan.udp.store(udp, Relaxed);
        self.plan.servers_speak.store(servers_speak, Relaxed);
        self.plan.next.store(0, Relaxed);
        while self.plan.next.load(Relaxed) < FLOWS {
            self.breathe();
        }
        let forwarded = self.worker.account().forwarded - before;
        assert_eq!(forwarded, u64::from(FLOWS), "{:?}", self.worker.account());
        assert!(self.worker.account().balances());
    }

    /// Lets time pass until `end`, with nothing to do but to close connections: the worker wakes when
    /// it asked to.
    fn sleep_until(&mut self, end: Instant) {
        while self.now < end {
            self.breathe();
            let wake = self.worker.poll_timeout(self.now).unwrap_or(end);
            self.now = self.now.max(wake.min(end));
        }
        self.breathe();
    }

    /// Active and inactive connections of the real servers of UDP, then of TCP.
    fn counts(&self) -> [[u32; 2]; 2] {
        [0, 1].map(|at: usize| {
            let sum = |count: fn(&RealLive) -> u32| self.lives[at].iter().map(|l| count(l)).sum();
            [
                sum(|live| live.active.load(Relaxed)),
                sum(|live| live.inactive.load(Relaxed)),
            ]
        })
    }

    /// Entries that anybody still holds: each of them holds its real server.
    fn held(&self) -> usize {
        let holders = self.lives.iter().flatten().map(Arc::strong_count);
        // The snapshot holds it by its service and by its address, and this test does, too.
        holders.map(|holders| holders - 3).sum()
    }

    /// Opens all connections, watches them, and waits until they are gone. Returns the most bytes
    /// of memory that the process had beside `base`.
    fn flood(&mut self, base: u64) -> u64 {
        let all = 2 * FLOWS as usize;
        self.say(true, false);
        let udp_told = self.now;
        self.say(false, false);
        assert_eq!(self.table.len(), all);
        let asked = rss_bytes() - base;
        println!(
            "  clients have spoken: {} B per connection",
            per_conn(asked)
        );
        // The order matters: `servers` knows those of the protocol that spoke last.
        self.say(false, true);
        let tcp_answered = self.now;
        self.say_udp_again();
        assert_eq!(self.table.len(), all);
        assert_eq!(self.counts(), [[0, FLOWS], [FLOWS, 0]]);
        let held = rss_bytes() - base;
        println!(
            "  servers have answered: {} B per connection",
            per_conn(held)
        );
        assert!(per_conn(held) <= BYTES_PER_CONN_MAX);
        let udp_answered = self.now;
        assert!(udp_answered - udp_told < Duration::from_secs(30));

        self.sleep_until(tcp_answered + Duration::from_secs(59));
        assert_eq!(self.table.len(), all, "nobody goes before its time");
        self.sleep_until(udp_answered + Duration::from_secs(60 + LATE_S));
        assert_eq!(self.counts(), [[0, FLOWS], [0, 0]], "SYN_RECV lasts 60 s");
        assert_eq!(self.table.len(), FLOWS as usize);
        self.sleep_until(udp_told + Duration::from_secs(299));
        assert_eq!(self.table.len(), FLOWS as usize);
        self.sleep_until(udp_answered + Duration::from_secs(300 + LATE_S));
        assert_eq!(self.counts(), [[0, 0], [0, 0]]);
        assert_eq!((self.table.len(), self.held()), (0, 0), "UDP lasts 300 s");
        assert!(self.worker.poll_timeout(self.now).is_none(), "nobody waits");
        assert_eq!(self.table.refused(), 0);
        let account = self.worker.account();
        assert!(
            account.balances() && account.dropped_total() == 0,
            "{account:?}"
        );
        println!(
            "  all gone: {} MiB stay with the process",
            (rss_bytes() - base) >> 20
        );
        held
    }

    /// Another datagram of every client, and the answers to it.
    fn say_udp_again(&mut self) {
        self.say(true, false);
        self.say(true, true);
    }
}

fn per_conn(bytes: u64) -> u64 {
    bytes.div_ceil(2 * u64::from(FLOWS))
}

/// Memory that this process holds right now, in bytes.
fn rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux tells this");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.expect("a number of KiB") << 10
}

#[test]
fn a_million_flows_and_a_million_half_open_connections_come_and_go() {
    if cfg!(debug_assertions) {
        println!("scale: {FLOWS} of each: an unoptimized build; --release runs 1,000,000 of each");
    }
    let mut world = World::new();
    world.breathe();
    let base = rss_bytes();
    println!("the first flood, {FLOWS} UDP flows and {FLOWS} half-open TCP connections:");
    let first = world.flood(base);
    println!("the second flood:");
    let second = world.flood(base);
    assert!(
        second <= first + first / 50,
        "the second flood took {second} bytes, the first {first}"
    );
    // Five frames of every UDP or TCP connection and flood.
    assert_eq!(world.worker.account().forwarded, 2 * 5 * u64::from(FLOWS));
}
