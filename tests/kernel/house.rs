//! The director of a case, whole but in memory: the control plane, one worker, two interfaces, a
//! clock that moves only when told, and the host around it. Nothing in here knows of expectations.

use std::net::IpAddr;
use std::sync::Arc;

use ulvs::config::{Command, Reply, Request};
use ulvs::conn::{Conn, ConnTable};
use ulvs::control::{ClientId, ControlPlane, Input, Output, Setup, TABLE_SIZE};
use ulvs::director::snapshot::Snapshot;
use ulvs::director::{Neighbours, Teller, Worker, WorkerSetup};
use ulvs::lvs::tuple::Tuple;
use ulvs::lvs::{Flow, Limits, Timeouts, Tunables};
use ulvs::time::{Duration, Instant};
use ulvs::wire::memory::{MemoryFrame, MemoryNic};

use super::case::Side;
use super::host;
use super::net::Net;
use super::pieces;
use super::shell::Shell;

/// Whatever is done takes this long.
const STEP: Duration = Duration::from_nanos(20_000);
/// When a case begins.
const START: Instant = Instant::from_nanos(1_000_000_000_000);
/// Breaths after which a worker that still finds work is stuck.
const BREATHS_MAX: usize = 1000;
/// Who asks.
const ME: ClientId = ClientId(1);
/// Seeds of the table's hashing and of the worker's chance.
const SEED: u64 = 7;

/// The director and what is around it.
pub struct House {
    pub net: Net,
    /// What other commands have made of the director's host.
    pub shell: Shell,
    /// The last frame that a case brought, and where.
    pub last: Option<(Side, Vec<u8>)>,
    /// Servers that were reached by LVS-NAT and then edited to LVS-DR.
    pub stale_routes: Vec<IpAddr>,
    plane: ControlPlane,
    worker: Worker,
    table: Arc<ConnTable>,
    /// In the order of `Side::BOTH`; none if the director has no interfaces.
    nics: Vec<MemoryNic>,
    now: Instant,
    clients: u16,
    /// Fragments that came: where, of which datagram.
    fragments: Vec<(Side, Vec<u8>, Vec<u8>)>,
    /// Listens to the packets, if somebody wants their stories.
    teller: Option<Teller>,
}

/// A frame that came out.
#[derive(Debug)]
pub struct Sent {
    pub side: Side,
    pub frame: Vec<u8>,
}

impl House {
    /// A fresh director in this network.
    pub fn new(net: Net) -> House {
        let now = START;
        let limits = Limits::default();
        let table = Arc::new(ConnTable::new(limits.conn_entries_max as usize, SEED));
        let setup = Setup {
            ports: net.ports(),
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits,
            workers: 1,
            table: Arc::clone(&table),
            table_size: TABLE_SIZE,
            pid: 1,
            nic: "memory".into(),
        };
        let plane = ControlPlane::new(setup, now);
        let ports = plane.snapshot().ports.len();
        let nics: Vec<MemoryNic> = (0..ports).map(|_| MemoryNic::new(false)).collect();
        let setup = WorkerSetup {
            number: 0,
            table: Arc::clone(&table),
            neighbours: Arc::new(Neighbours::new(limits.neigh_entries_max as usize)),
            snapshot: plane.snapshot(),
            ports: nics.iter().map(MemoryNic::halves).collect(),
            seed: SEED,
            story: false,
        };
        House {
            net,
            shell: Shell::default(),
            last: None,
            stale_routes: Vec::new(),
            plane,
            worker: Worker::new(setup, now),
            table,
            nics,
            now,
            clients: 0,
            fragments: Vec::new(),
            teller: None,
        }
    }

    /// From now on the story of every packet is kept.
    pub fn tell(&mut self) {
        self.teller = Some(Teller::new());
    }

    /// What was told since the last time.
    pub fn told(&mut self) -> Vec<String> {
        self.teller.as_mut().map(Teller::take).unwrap_or_default()
    }

    /// The number of a client that nobody has been yet.
    pub fn fresh_client(&mut self) -> u16 {
        self.clients += 1;
        self.clients
    }

    /// Its clock.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Its connections.
    pub fn table(&self) -> &ConnTable {
        &self.table
    }

    /// What is configured.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.plane.snapshot()
    }

    /// The entry of a packet from a client, if there is one and its time is not up.
    pub fn conn(&self, flow: Flow) -> Option<Arc<Conn>> {
        let conn = self.table.find_in(&Tuple::from(flow))?;
        (!conn.is_due(self.now)).then_some(conn)
    }

    /// Asks the control plane, and lets the worker do what it orders.
    pub fn ask(&mut self, request: Request) -> Reply {
        self.now += STEP;
        self.plane.handle_timeout(self.now);
        self.plane
            .handle(Input::Request { from: ME, request }, self.now);
        let reply = self.settle();
        reply.expect("one worker that obeys at once, so every request has its reply by now")
    }

    /// Changes something.
    pub fn change(&mut self, command: Command) -> Reply {
        self.ask(Request::Do(command))
    }

    /// Carries orders and reports between the two planes until nobody has anything to say.
    fn settle(&mut self) -> Option<Reply> {
        let mut reply = None;
        loop {
            while let Some(output) = self.plane.poll_output() {
                match output {
                    Output::Order { order, .. } => self.worker.handle_order(order, self.now),
                    Output::Reply { reply: said, .. } => reply = Some(said),
                    Output::Changed | Output::Stopped => {}
                }
            }
            let Some(report) = self.worker.poll_report() else {
                return reply;
            };
            self.plane
                .handle(Input::Reported { worker: 0, report }, self.now);
        }
    }

    /// The host's interfaces are not what they were.
    pub fn tell_links(&mut self) {
        let links = self.shell.links();
        self.plane.handle(Input::LinksChanged(links), self.now);
        self.settle();
    }

    /// The largest IP packet of an interface becomes `mtu`.
    pub fn set_mtu(&mut self, port: usize, mtu: u32) {
        let mut ports = self.snapshot().ports.clone();
        ports[port].mtu = mtu;
        self.plane.handle(Input::PortsChanged(ports), self.now);
        self.settle();
    }

    /// The routes are those that commands have made of them.
    pub fn set_routes(&mut self) {
        let mut ports = self.net.ports();
        for (port, now) in ports.iter_mut().zip(&self.snapshot().ports) {
            port.mtu = now.mtu;
        }
        self.shell.routing.apply(&mut ports);
        self.plane.handle(Input::PortsChanged(ports), self.now);
        self.settle();
    }

    /// A frame arrives; whatever comes out because of it, in order for each side.
    pub fn inject(&mut self, side: Side, frame: &[u8]) -> Vec<Sent> {
        if self.nics.is_empty() {
            return Vec::new();
        }
        self.now += STEP;
        self.plane.handle_timeout(self.now);
        let passed = self.worker.account().passed;
        self.nics[side as usize].put(MemoryFrame {
            bytes: frame.to_vec(),
            mark: self.shell.mark_of(side, frame),
            ..MemoryFrame::default()
        });
        self.breathe();
        let mut sent = self.take();
        let count = self.worker.account().passed - passed;
        sent.extend(self.routed(side, frame, count as usize));
        sent
    }

    /// What the host makes of what passed.
    fn routed(&mut self, side: Side, frame: &[u8], count: usize) -> Vec<Sent> {
        let frames = self.passed(side, frame, count);
        let receive = |frame: &[u8], longest| {
            host::receive(
                &self.snapshot(),
                &self.shell,
                side,
                frame,
                longest,
                self.now,
            )
        };
        if let Some((datagram, longest)) = pieces::gathered(&frames) {
            return receive(&datagram, longest);
        }
        let routed = frames.iter().flat_map(|frame| receive(frame, usize::MAX));
        pieces::as_routed(routed.collect())
    }

    /// The frames of a datagram that passed with this frame: this one alone, or all its fragments.
    fn passed(&mut self, side: Side, frame: &[u8], count: usize) -> Vec<Vec<u8>> {
        let Some(key) = pieces::key(frame) else {
            return Vec::from_iter((count != 0).then(|| frame.to_vec()));
        };
        self.fragments.push((side, key.clone(), frame.to_vec()));
        if count == 0 {
            return Vec::new();
        }
        let of_it = |(at, other, _): &(Side, Vec<u8>, Vec<u8>)| *at == side && *other == key;
        let mut frames: Vec<Vec<u8>> = Vec::new();
        self.fragments.retain(|known| {
            if of_it(known) {
                frames.push(known.2.clone());
            }
            !of_it(known)
        });
        frames.sort_by_key(|frame| pieces::offset(frame));
        // One that came twice was dropped once.
        if frames.len() > count {
            frames.dedup_by_key(|frame| pieces::offset(frame));
        }
        frames.split_off(frames.len().saturating_sub(count))
    }

    /// Breathes until there is nothing more to do.
    fn breathe(&mut self) {
        for _ in 0..BREATHS_MAX {
            self.now += STEP;
            let handled = match &mut self.teller {
                Some(teller) => {
                    teller.at(self.now);
                    self.worker.breathe_told(self.now, teller)
                }
                None => self.worker.breathe(self.now),
            };
            assert!(
                self.worker.account().balances(),
                "{:?}",
                self.worker.account()
            );
            self.settle();
            if handled == 0 {
                return;
            }
        }
        panic!("after {BREATHS_MAX} breaths the worker still finds frames");
    }

    fn take(&mut self) -> Vec<Sent> {
        let take = |(side, nic): (Side, &MemoryNic)| {
            let frames = nic.take().into_iter();
            frames.map(move |frame| Sent {
                side,
                frame: frame.bytes,
            })
        };
        Side::BOTH
            .into_iter()
            .zip(&self.nics)
            .flat_map(take)
            .collect()
    }

    /// Time passes until so long after the case began, if that is not yet so.
    pub fn sleep_until(&mut self, since_start: Duration) {
        let end = START + since_start;
        if self.now < end {
            self.sleep(end - self.now);
        }
    }

    /// Time passes, and both planes do what is due meanwhile.
    pub fn sleep(&mut self, span: Duration) {
        let end = self.now + span;
        while self.now < end {
            let due = [
                self.plane.poll_timeout(),
                self.worker.poll_timeout(self.now),
            ];
            let due = due
                .into_iter()
                .flatten()
                .min()
                .map_or(end, |due| due.min(end));
            self.now = due.max(self.now + STEP);
            self.plane.handle_timeout(self.now);
            self.breathe();
        }
    }
}
