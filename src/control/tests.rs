//! Scripted commands against the control plane, with workers that answer when the test lets them.

use crate::config::Command;
use std::net::IpAddr;

use super::*;
use crate::config::RealSpec;
use crate::config::command::{ConnRow, ServiceRow};
use crate::conn::{Conn, Opening};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{
    Endpoint, Flow, ForwardMethod, Protocol, RealKey, RealLive, ServiceKey, ServiceSpec,
    Thresholds, Tunnel, Weight,
};
use crate::rng::Rng;
use crate::sched::PickContext;

pub(super) const ME: ClientId = ClientId(7);

/// A control plane and what it has said.
pub(super) struct Room {
    pub plane: ControlPlane,
    pub now: Instant,
    pub workers: usize,
    pub table: Arc<ConnTable>,
}

impl Room {
    pub fn new(workers: usize) -> Room {
        let table = Arc::new(ConnTable::new(1024, 1));
        let setup = Setup {
            ports: vec![
                port("eth0", Side::Public, "10.0.0.1"),
                port("eth1", Side::Private, "192.168.1.1"),
            ],
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            workers,
            table: Arc::clone(&table),
            table_size: TABLE_SIZE,
            pid: 4711,
            nic: "memory".to_string(),
        };
        let now = Instant::ZERO;
        let plane = ControlPlane::new(setup, now);
        Room {
            plane,
            now,
            workers,
            table,
        }
    }

    pub fn ask(&mut self, request: Request) -> Vec<Output> {
        self.plane
            .handle(Input::Request { from: ME, request }, self.now);
        self.outputs()
    }

    pub fn report(&mut self, worker: usize, report: Report) -> Vec<Output> {
        self.plane
            .handle(Input::Reported { worker, report }, self.now);
        self.outputs()
    }

    pub fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.plane.poll_output()).collect()
    }

    /// Does it, lets every worker adopt it, and returns the reply.
    pub fn run(&mut self, command: Command) -> Reply {
        let mut outputs = self.ask(Request::Do(command));
        for worker in 0..self.workers {
            let id = self.plane.snapshot().id;
            outputs.extend(self.report(worker, Report::Adopted(id)));
        }
        reply_in(&outputs)
            .expect("one reply for one command")
            .clone()
    }

    pub fn status(&mut self, command: Command) -> Result<(), Refusal> {
        match self.run(command) {
            Reply::Done => Ok(()),
            Reply::Refused(refusal) => Err(refusal),
            other => panic!("unexpected reply {other:?}"),
        }
    }

    pub fn sleep_ms(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        while let Some(due) = self.plane.poll_timeout().filter(|due| *due <= end) {
            self.now = due;
            self.plane.handle_timeout(due);
        }
        self.now = end;
    }

    /// The service's row: its counters, and per server key, active, inactive, counters.
    pub fn row(&mut self, key: ServiceKey) -> ServiceRow {
        let outputs = self.ask(Request::Ask(Query::Services(Some(key))));
        match reply_in(&outputs) {
            Some(Reply::Listing(Listing::Services {
                services,
                table_size: 4096,
            })) => services[0].clone(),
            other => panic!("no listing but {other:?}"),
        }
    }

    pub fn live(&self, key: ServiceKey, at: usize) -> Arc<RealLive> {
        let snapshot = self.plane.snapshot();
        Arc::clone(&snapshot.service(&key).expect("service").reals[at].live)
    }

    /// A client's connection to the first real server, bound and in the table.
    pub fn open_connection(&self) -> Arc<Conn> {
        let tuple = Tuple::from(Flow {
            protocol: Protocol::TCP,
            source: endpoint("203.0.113.9", 40_000),
            target: endpoint("10.0.0.100", 80),
        });
        let opening = Opening {
            tuple,
            real: (pack(ip("192.168.1.11")), 8080),
            method: ForwardMethod::Masq,
            server: Some(self.live(web(), 0)),
            control: None,
            mark: 0,
            template: false,
        };
        let conn = Arc::new(Conn::open(opening, self.now));
        self.table.insert(conn).expect("room in the table")
    }

    /// Addresses of the servers that the next `count` connections would go to.
    pub fn picks(&self, key: ServiceKey, count: usize) -> Vec<IpAddr> {
        let snapshot = self.plane.snapshot();
        let service = snapshot.service(&key).expect("service");
        let mut scheduler = service
            .scheduler
            .as_ref()
            .expect("scheduler")
            .lock()
            .expect("lock");
        let mut rng = Rng::new(1);
        let pick = |_| {
            let flow = Flow {
                protocol: Protocol::TCP,
                source: endpoint("203.0.113.9", 40_000),
                target: endpoint("10.0.0.100", 80),
            };
            let flags = service.spec.flags;
            let now = self.now;
            let mut context = PickContext {
                flow,
                target: flow.target.address,
                flags,
                now,
                tunables: &snapshot.tunables,
                rng: &mut rng,
                notes: None,
            };
            let at = scheduler
                .pick(&service.reals, &mut context)
                .expect("a server");
            service.reals[at].key.0.address
        };
        (0..count).map(pick).collect()
    }
}

pub(super) fn reply_in(outputs: &[Output]) -> Option<&Reply> {
    let replies = outputs.iter().filter_map(|output| match output {
        Output::Reply { to: ME, reply } => Some(reply),
        _ => None,
    });
    let replies: Vec<&Reply> = replies.collect();
    assert!(replies.len() < 2, "one request, one reply: {replies:?}");
    replies.first().copied()
}

pub(super) fn port(name: &str, side: Side, address: &str) -> Port {
    Port {
        name: name.to_string(),
        side,
        mac: "02:00:00:00:00:01".parse().expect("MAC"),
        mtu: 1500,
        raw_ip: false,
        kernel: false,
        held: Vec::new(),
        addresses: vec![(ip(address), 24)],
        routes: Vec::new(),
        routes_from: Vec::new(),
        neighbours: Vec::new(),
    }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().expect("address")
}

pub(super) fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint::new(ip(address), port)
}

pub(super) fn web() -> ServiceKey {
    ServiceKey::tcp(ip("10.0.0.100"), 80)
}

pub(super) fn add_web(scheduler: &str) -> Command {
    Command::AddService(ServiceSpec::new(web(), scheduler))
}

pub(super) fn spec(address: &str, weight: i32) -> RealSpec {
    RealSpec {
        key: RealKey(endpoint(address, 80)),
        weight: Weight(weight),
        method: ForwardMethod::Masq,
        thresholds: Thresholds::default(),
        tunnel: Tunnel::default(),
    }
}

pub(super) fn add(address: &str, weight: i32) -> Command {
    Command::AddReal {
        service: web(),
        real: spec(address, weight),
    }
}

pub(super) fn edit(address: &str, weight: i32) -> Command {
    Command::EditReal {
        service: web(),
        real: spec(address, weight),
    }
}

pub(super) fn delete(address: &str) -> Command {
    Command::DeleteReal {
        service: web(),
        real: RealKey(endpoint(address, 80)),
    }
}

#[test]
fn a_command_is_done_when_every_worker_has_it() {
    let mut room = Room::new(2);
    let outputs = room.ask(Request::Do(add_web("rr")));
    let [
        Output::Changed,
        Output::Order {
            worker: 0,
            order: Order::Adopt(first),
        },
        Output::Order { worker: 1, .. },
    ] = &outputs[..]
    else {
        panic!("the kernel's stack is kept off first, then the workers: {outputs:?}");
    };
    assert!(room.report(1, Report::Adopted(first.id)).is_empty());
    assert!(room.report(0, Report::Adopted(SnapshotId(1))).is_empty());
    let outputs = room.report(0, Report::Adopted(first.id));
    assert_eq!(reply_in(&outputs), Some(&Reply::Done));

    let tunable = Command::SetTunable {
        name: "sloppy_tcp".into(),
        value: "1".into(),
    };
    let outputs = room.ask(Request::Do(tunable));
    assert!(
        !outputs
            .iter()
            .any(|output| matches!(output, Output::Changed))
    );
    let id = room.plane.snapshot().id;
    room.report(0, Report::Adopted(id));
    room.sleep_ms(5_000);
    let outputs = room.outputs();
    assert!(matches!(reply_in(&outputs), Some(Reply::Late(why)) if why.ends_with("worker 1")));
    assert!(
        room.report(1, Report::Adopted(id)).is_empty(),
        "nobody waits any more"
    );
}

#[test]
fn a_client_that_went_is_not_answered_and_too_many_are_refused() {
    let mut room = Room::new(1);
    room.ask(Request::Do(add_web("rr")));
    room.plane.handle(Input::ClientGone(ME), room.now);
    let id = room.plane.snapshot().id;
    assert!(room.report(0, Report::Adopted(id)).is_empty());
    for _ in 0..CLIENTS_WAITING_MAX {
        assert_eq!(room.ask(Request::Ask(Query::Account)).len(), 1);
    }
    let id = room.plane.snapshot().id;
    for request in [
        Request::Ask(Query::Account),
        Request::Do(add("192.168.1.11", 1)),
    ] {
        let outputs = room.ask(request);
        assert_eq!(
            reply_in(&outputs),
            Some(&Reply::Refused(Refusal::OutOfMemory))
        );
    }
    assert_eq!(room.plane.snapshot().id, id);
}

#[test]
fn the_account_is_the_sum_over_workers_and_says_who_was_silent() {
    let mut room = Room::new(2);
    let told = |audit: u64| {
        let mut account = Account::new();
        account.book(crate::director::verdict::Verdict::Pass);
        account.book(crate::director::verdict::Verdict::Drop(DropReason::NoRoute));
        Report::Account {
            audit,
            account,
            ports: vec![Default::default(); 2],
            story: vec!["#1".to_string()],
        }
    };
    let row = |outputs: &[Output]| match reply_in(outputs) {
        Some(Reply::Listing(Listing::Account(row))) => row.clone(),
        other => panic!("no account but {other:?}"),
    };
    room.ask(Request::Ask(Query::Account));
    assert!(room.report(0, told(1)).is_empty());
    assert!(
        room.report(0, told(1)).is_empty(),
        "told twice, counted once"
    );
    let whole = row(&room.report(1, told(1)));
    assert_eq!(
        (whole.received, whole.passed, whole.dropped, whole.balances),
        (4, 2, 2, true)
    );
    assert_eq!(whole.drops, [("no-route".to_string(), 2)]);
    assert!(whole.silent.is_empty() && whole.ports[1].0 == "eth1");
    assert_eq!(whole.story, ["#1"], "one is told, not one of each worker");

    room.ask(Request::Ask(Query::Account));
    room.report(1, told(2));
    room.sleep_ms(5_000);
    let part = row(&room.outputs());
    assert_eq!((part.received, part.silent), (2, vec![0]));
    assert!(room.report(0, told(2)).is_empty());
}

#[test]
fn ports_that_changed_reach_the_workers() {
    let mut room = Room::new(1);
    let mut ports = room.plane.snapshot().ports.clone();
    ports[1].mtu = 9000;
    room.plane.handle(Input::PortsChanged(ports), room.now);
    let outputs = room.outputs();
    let [
        Output::Changed,
        Output::Order {
            order: Order::Adopt(next),
            ..
        },
    ] = &outputs[..]
    else {
        panic!("{outputs:?}");
    };
    assert_eq!(next.ports[1].mtu, 9000);
}

#[test]
fn a_stop_reaches_every_worker_and_whoever_waits() {
    let mut room = Room::new(2);
    room.ask(Request::Ask(Query::Account));
    let outputs = {
        let request = Request::Stop;
        room.plane.handle(
            Input::Request {
                from: ClientId(8),
                request,
            },
            room.now,
        );
        room.outputs()
    };
    let to_eight = Output::Reply {
        to: ClientId(8),
        reply: Reply::Done,
    };
    assert_eq!(format!("{:?}", outputs[0]), format!("{to_eight:?}"));
    assert_eq!(
        reply_in(&outputs),
        Some(&Reply::Late("the daemon stops".to_string()))
    );
    let stops = outputs.iter().filter(|output| {
        matches!(
            output,
            Output::Order {
                order: Order::Stop,
                ..
            }
        )
    });
    assert_eq!(stops.count(), 2);
    assert!(matches!(outputs.last(), Some(Output::Stopped)));
    room.plane.handle(Input::Stop, room.now);
    assert!(
        room.ask(Request::Ask(Query::Timeouts)).is_empty(),
        "there is no more output"
    );
}

#[test]
fn timeouts_and_status_are_listed() {
    let mut room = Room::new(3);
    let wanted = Timeouts {
        tcp_s: 0,
        tcp_fin_s: 0,
        udp_s: 30,
    };
    room.run(Command::SetTimeouts(wanted));
    let outputs = room.ask(Request::Ask(Query::Timeouts));
    let expected = Timeouts {
        tcp_s: 900,
        tcp_fin_s: 120,
        udp_s: 30,
    };
    assert_eq!(
        reply_in(&outputs),
        Some(&Reply::Listing(Listing::Timeouts(expected)))
    );
    let outputs = room.ask(Request::Ask(Query::Status));
    let Some(Reply::Listing(Listing::Status(status))) = reply_in(&outputs) else {
        panic!("{outputs:?}");
    };
    assert_eq!(
        (status.pid, status.workers, status.nic.as_str()),
        (4711, 3, "memory")
    );
    assert_eq!(status.ports, ["eth0", "eth1"]);
}

#[test]
fn connections_are_listed_with_the_seconds_they_have_left() {
    let mut room = Room::new(1);
    room.run(add_web("rr"));
    room.run(add("192.168.1.11", 1));
    let conn = room.open_connection();
    conn.restart(60, room.now);
    room.sleep_ms(2_500);
    let outputs = room.ask(Request::Ask(Query::Connections));
    let expected = ConnRow {
        protocol: Protocol::TCP,
        client: endpoint("203.0.113.9", 40_000),
        virt: endpoint("10.0.0.100", 80),
        real: endpoint("192.168.1.11", 8080),
        state: "NONE".to_string(),
        expires_s: 57,
        engine: None,
        local: None,
    };
    let listing = Listing::Connections(vec![expected]);
    assert_eq!(reply_in(&outputs), Some(&Reply::Listing(listing)));
    assert_eq!(room.row(web()).reals[0].inactive, 1);
}

/// `expire_nodest_conn`, and without it tests/golden/states/timer-nodest.json.
#[test]
fn connections_of_a_deleted_server_end_at_once_only_if_wanted() {
    for (wanted, left) in [("0", 1), ("1", 0)] {
        let mut room = Room::new(2);
        let name = "expire_nodest_conn".to_string();
        let value = wanted.to_string();
        room.run(Command::SetTunable { name, value });
        room.run(add_web("rr"));
        room.run(add("192.168.1.11", 1));
        room.open_connection();
        room.ask(Request::Do(delete("192.168.1.11")));
        let id = room.plane.snapshot().id;
        room.report(0, Report::Adopted(id));
        assert_eq!(
            room.table.len(),
            1,
            "worker 1 may still open connections to it"
        );
        room.report(1, Report::Adopted(id));
        assert_eq!(room.table.len(), left, "expire_nodest_conn = {wanted}");
    }
}
