//! Stage: a whole director in memory, played to frame by frame. The control plane, the worker and the
//! packet path are those of the daemon; only the interfaces are made of memory and the clock is the
//! capture's.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::scene::made_up;
use crate::config::{Command, Config, Listing, Query, Reply, Request};
use crate::conn::ConnTable;
use crate::control::{ClientId, ControlPlane, Input, Output, Setup, TABLE_SIZE};
use crate::director::{
    Account, Neighbours, Port, Probe, Snapshot, Step, Teller, Verdict, Worker, WorkerSetup, story,
};
use crate::lvs::tuple::Tuple;
use crate::lvs::{Endpoint, Flow, Protocol, ServiceKey};
use crate::time::Instant;
use crate::wire::checksum::pseudo_header;
use crate::wire::memory::{MemoryFrame, MemoryNic};
use crate::wire::packet::{Fragment, Kind, number};
use crate::wire::{Layout, Mac, Offload, Packet};

/// Every trace of one capture comes out the same.
const SEED: u64 = 1;
/// The one who asks.
const SELF: ClientId = ClientId(0);

/// A director in memory.
pub struct Stage {
    plane: ControlPlane,
    worker: Worker,
    table: Arc<ConnTable>,
    nics: Vec<MemoryNic>,
    neighbours: Arc<Neighbours>,
    /// Whose MAC addresses the director was given.
    known: BTreeSet<(usize, IpAddr)>,
    listener: Listener,
    raw_ip: bool,
    now: Instant,
}

/// What became of one frame.
pub struct Told {
    /// What happens to it.
    pub verdict: Verdict,
    /// Its story; the first line says what it is.
    pub lines: Vec<String>,
    /// The frames that came out because of it: port and frame.
    pub out: Vec<(usize, MemoryFrame)>,
}

/// Hears the story and keeps the verdict.
struct Listener {
    teller: Teller,
    verdict: Verdict,
}

impl Probe for Listener {
    const ON: bool = true;

    fn step(&mut self, step: Step<'_>) {
        if let Step::Ended(verdict) = step {
            self.verdict = verdict;
        }
        self.teller.step(step);
    }
}

impl Stage {
    /// Sets a director of this configuration up on these ports.
    ///
    /// # Errors
    /// Names the first service or real server that is refused.
    pub fn new(config: &Config, ports: &[Port], now: Instant) -> Result<Stage, String> {
        let raw_ip = ports.iter().any(|port| port.raw_ip);
        let entries = config.limits.conn_entries_max as usize;
        let table = Arc::new(ConnTable::new(entries, SEED));
        let setup = Setup {
            ports: ports.to_vec(),
            tunables: config.tunables,
            timeouts: config.timeouts,
            limits: config.limits,
            workers: 1,
            table: Arc::clone(&table),
            table_size: TABLE_SIZE,
            pid: 0,
            nic: "pcap".to_string(),
        };
        let plane = ControlPlane::new(setup, now);
        let nics: Vec<MemoryNic> = ports.iter().map(|_| MemoryNic::new(raw_ip)).collect();
        let entries = config.limits.neigh_entries_max as usize;
        let neighbours = Arc::new(Neighbours::new(entries));
        let setup = WorkerSetup {
            number: 0,
            table: Arc::clone(&table),
            neighbours: Arc::clone(&neighbours),
            snapshot: plane.snapshot(),
            ports: nics.iter().map(MemoryNic::halves).collect(),
            seed: SEED,
            story: false,
        };
        let each = |(index, port): (usize, &Port)| {
            let neighbours = port.neighbours.iter();
            let known = neighbours.map(move |(address, _)| (index, *address));
            known.collect::<Vec<_>>()
        };
        let mut stage = Stage {
            worker: Worker::new(setup, now),
            plane,
            table,
            nics,
            neighbours,
            known: ports.iter().enumerate().flat_map(each).collect(),
            listener: Listener {
                teller: Teller::new(),
                verdict: Verdict::Pass,
            },
            raw_ip,
            now,
        };
        for command in &config.services {
            stage.apply(command)?;
        }
        Ok(stage)
    }

    fn apply(&mut self, command: &Command) -> Result<(), String> {
        match self.request(Request::Do(command.clone())) {
            Some(Reply::Done) => Ok(()),
            Some(Reply::Refused(refusal)) => Err(format!("{}: {refusal}", name_of(command))),
            other => Err(format!("{}: {other:?}", name_of(command))),
        }
    }

    /// Asks the control plane, and plays the daemon until there is an answer.
    fn request(&mut self, request: Request) -> Option<Reply> {
        let from = SELF;
        self.plane
            .handle(Input::Request { from, request }, self.now);
        self.carry_messages()
    }

    /// Carries orders to the worker and reports back, as the daemon's threads do it.
    fn carry_messages(&mut self) -> Option<Reply> {
        let mut answer = None;
        while let Some(output) = self.plane.poll_output() {
            match output {
                Output::Order { order, .. } => self.worker.handle_order(order, self.now),
                Output::Reply { reply, .. } => answer = Some(reply),
                Output::Changed | Output::Stopped => {}
            }
            while let Some(report) = self.worker.poll_report() {
                let reported = Input::Reported { worker: 0, report };
                self.plane.handle(reported, self.now);
            }
        }
        answer
    }

    /// What a listing says now.
    pub fn ask(&mut self, query: Query) -> Option<Listing> {
        match self.request(Request::Ask(query)) {
            Some(Reply::Listing(listing)) => Some(listing),
            _ => None,
        }
    }

    /// The frame account.
    pub fn account(&self) -> &Account {
        self.worker.account()
    }

    fn snapshot(&self) -> &Snapshot {
        self.worker.snapshot()
    }

    /// A frame comes in by `port` at `now`; times that go back stand still.
    pub fn play(&mut self, port: usize, frame: MemoryFrame, now: Instant) -> Told {
        self.now = self.now.max(now);
        if self.plane.poll_timeout().is_some_and(|due| due <= self.now) {
            self.plane.handle_timeout(self.now);
            self.carry_messages();
        }
        if !self.raw_ip {
            self.introduce(port, &frame.bytes);
        }
        self.nics[port].put(frame);
        self.listener.teller.at(self.now);
        self.worker.breathe_told(self.now, &mut self.listener);
        let ports = self.nics.iter().enumerate();
        let out = ports.flat_map(|(port, nic)| nic.take().into_iter().map(move |out| (port, out)));
        Told {
            verdict: self.listener.verdict,
            lines: self.listener.teller.take(),
            out: out.collect(),
        }
    }

    /// Gives the director the MAC addresses of both ends of a packet, so that nothing waits for an
    /// answer that is not in the capture: what the frame says of its sender, else made up.
    fn introduce(&mut self, port: usize, bytes: &[u8]) {
        let mut bytes = bytes.to_vec();
        let Some((flow, mac)) = ends_of(&mut bytes) else {
            return;
        };
        let ours = self.snapshot().ports[port].mac;
        let source = self.snapshot().route_to(flow.source.address);
        if mac != ours
            && let Some((out, hop)) = source
            && out == port
        {
            self.meet(out, hop, mac);
        }
        let target = flow.target.address;
        if self.snapshot().is_vip(&target) || self.snapshot().own_port(&target).is_some() {
            return;
        }
        if let Some((out, hop)) = self.snapshot().route_to(target) {
            self.meet(out, hop, made_up(hop));
        }
    }

    fn meet(&mut self, port: usize, address: IpAddr, mac: Mac) {
        if self.known.insert((port, address)) {
            self.neighbours.fix(port, address, mac, self.now);
        }
    }

    /// If a real server speaks here whose client was given to another one in this run: the connection's
    /// real server. Captures of other schedulers' choices look like this.
    pub fn chosen_instead(&self, bytes: &[u8]) -> Option<(Endpoint, Endpoint)> {
        let mut bytes = bytes.to_vec();
        let flow = flow_of(&mut bytes, self.raw_ip)?;
        let of_service = |key: &ServiceKey| match *key {
            ServiceKey::Address { protocol, virt } if protocol == flow.protocol => Some(virt),
            _ => None,
        };
        let services = self.snapshot().services.iter();
        let virts = services.filter_map(|service| {
            let mut reals = service.reals.iter();
            let serves = reals.any(|real| real.key.0 == flow.source);
            of_service(&service.spec.key).filter(|_| serves)
        });
        for virt in virts {
            let request = Flow {
                source: flow.target,
                target: virt,
                ..flow
            };
            let found = self.table.find_in(&Tuple::from(request));
            if let Some(conn) = found.filter(|conn| conn.real() != flow.source) {
                return Some((flow.source, conn.real()));
            }
        }
        None
    }

    /// Makes an answer of one real server one of another's, as if that one had been asked when the
    /// frame was captured.
    pub fn recast(&self, frame: &mut MemoryFrame, from: Endpoint) {
        let Ok(layout) = Layout::parse(&frame.bytes, self.raw_ip) else {
            return;
        };
        let mut packet = Packet::over(&mut frame.bytes, layout, frame.offload);
        packet.set_source(from.address, from.port);
        let told = self.neighbours.list();
        let known = told.iter().find(|(_, address, _)| *address == from.address);
        if let Some((_, _, mac)) = known.filter(|_| !self.raw_ip) {
            let target = packet.target_mac();
            packet.set_macs(target, *mac);
        }
    }
}

/// What a sender left to its device: a capture on its own machine shows the transport checksum before
/// that is finished, which is the sum over the pseudo-header alone.
pub fn offload_of(bytes: &mut [u8], raw_ip: bool) -> Offload {
    let Ok(layout) = Layout::parse(bytes, raw_ip) else {
        return Offload::default();
    };
    let field = match layout.protocol {
        number::TCP => 16,
        number::UDP => 6,
        _ => return Offload::default(),
    };
    let is_ip = matches!(layout.kind, Kind::V4 | Kind::V6);
    if !is_ip || !layout.transport || layout.fragment != Fragment::Whole {
        return Offload::default();
    }
    let packet = Packet::over(bytes, layout, Offload::default());
    let body = packet.transport();
    let (source, target) = (packet.source(), packet.target());
    let left = pseudo_header(source, target, layout.protocol, body.len()).folded();
    let stored = u16::from_be_bytes([body[field], body[field + 1]]);
    if stored == left && !packet.transport_sum_holds() {
        Offload::partial(layout.l4, field as u16)
    } else {
        Offload::default()
    }
}

/// What a refused command was about.
fn name_of(command: &Command) -> String {
    match command {
        Command::AddService(spec) => format!("service {}", spec.key),
        Command::AddReal { service, real } => {
            format!("service {service}, real server {}", real.key)
        }
        other => format!("{other:?}"),
    }
}

/// Who speaks to whom in an Ethernet frame that carries IP, and the sender's MAC address.
fn ends_of(bytes: &mut [u8]) -> Option<(Flow, Mac)> {
    let layout = Layout::parse(bytes, false).ok()?;
    let packet = Packet::over(bytes, layout, Offload::default());
    let is_ip = matches!(layout.kind, Kind::V4 | Kind::V6);
    is_ip.then(|| (story::flow_of(&packet), packet.source_mac()))
}

/// The flow of a whole packet with ports.
fn flow_of(bytes: &mut [u8], raw_ip: bool) -> Option<Flow> {
    let layout = Layout::parse(bytes, raw_ip).ok()?;
    let ported = Protocol(layout.protocol).is_balanced() && layout.transport;
    let packet = Packet::over(bytes, layout, Offload::default());
    (ported && layout.fragment == Fragment::Whole).then(|| story::flow_of(&packet))
}
