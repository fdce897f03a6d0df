//! Plays a tape of bytes against a whole director in memory: the control plane, two workers that share
//! one table, two interfaces. After every step it checks what must hold; at the end it lets all time
//! pass and checks that nothing is left. A panic is a finding, and nothing else is.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ulvs::config::{Reply, Request};
use ulvs::conn::ConnTable;
use ulvs::control::{ClientId, ControlPlane, Input, Output, Setup, TABLE_SIZE};
use ulvs::director::neigh::Neighbours;
use ulvs::director::{Account, DropReason, Worker, WorkerSetup};
use ulvs::lvs::{Limits, Timeouts, Tunables};
use ulvs::time::{Duration, Instant};
use ulvs::wire::memory::{MemoryFrame, MemoryNic};
use ulvs::wire::{NicError, Offload};

use super::frames;
use super::guests::{self, Made};
use super::tape::Tape;
use super::world::{self, DIRECTOR_MACS, PRIVATE, PUBLIC};

const WORKERS: usize = 2;
const ETHERNET_LEN: usize = 14;
/// Steps of one run; a longer tape is not read on.
const STEPS_MAX: usize = 400;
/// Frames that were sent and can still be answered or complained about.
const RECENT_MAX: usize = 16;
/// Longest time that anything may live: the longest timeout of any state table is 900 s, templates
/// live up to 255 s here and 60 s longer for each connection they hold.
const LONGEST_LIFE_S: u64 = 2500;

/// One run.
pub struct Run {
    plane: ControlPlane,
    workers: Vec<Worker>,
    /// By worker, then by port; so is `down`.
    nics: Vec<[MemoryNic; 2]>,
    down: [[bool; 2]; WORKERS],
    table: Arc<ConnTable>,
    now: Instant,
    /// The last IP packets that the director sent, with the port.
    recent: VecDeque<(usize, Vec<u8>)>,
    /// A packet that is leaving in fragments, as far as it has left.
    joined: Vec<u8>,
    /// The last packet that has left in fragments.
    whole: Option<(usize, Vec<u8>)>,
    /// The last identification given to fragments: of each datagram its own.
    cuts: u16,
    /// The interfaces have no Ethernet, as a TUN device has none.
    raw_ip: bool,
    /// Neighbours answer when they are asked.
    polite: bool,
    /// A frame that was not made by the book may still be inside; its sums prove nothing.
    spoiled: bool,
    /// More such frames will come.
    rubbish: bool,
    clients: u64,
    replies: u64,
    last_reply: Option<Reply>,
    outcome: Outcome,
}

/// What became of the frames of a run.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The account of all workers together.
    pub account: Account,
    /// Frames that left by the public and by the private port.
    pub sent: [u64; 2],
    /// ICMP errors among them.
    pub errors: [u64; 2],
    /// Fragments that left.
    pub fragments: u64,
    /// Most entries that the table ever held.
    pub entries_max: usize,
}

impl Outcome {
    /// Adds another run.
    pub fn add(&mut self, other: &Outcome) {
        self.account.add(&other.account);
        for port in [PUBLIC, PRIVATE] {
            self.sent[port] += other.sent[port];
            self.errors[port] += other.errors[port];
        }
        self.fragments += other.fragments;
        self.entries_max = self.entries_max.max(other.entries_max);
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let account = &self.account;
        write!(
            f,
            "{} frames: {} forwarded, {} answered, {} passed, {} dropped (",
            account.received,
            account.forwarded,
            account.answered,
            account.passed,
            account.dropped_total()
        )?;
        for reason in DropReason::ALL {
            match account.dropped_for(reason) {
                0 => {}
                count => write!(f, " {} {count}", reason.word())?,
            }
        }
        let Outcome { sent, errors, .. } = self;
        write!(f, " ); packets out: {sent:?}, ICMP errors {errors:?}; ")?;
        let (fragments, most) = (self.fragments, self.entries_max);
        write!(f, "{fragments} fragments out, at most {most} entries")
    }
}

/// Plays the whole tape.
pub fn run(bytes: &[u8]) -> Outcome {
    let mut tape = Tape::new(bytes);
    let mut run = Run::new(&mut tape);
    for _ in 0..STEPS_MAX {
        if tape.is_over() {
            break;
        }
        run.step(&mut tape);
    }
    run.finish()
}

impl Run {
    /// A director with a few services, and no traffic yet.
    pub fn new(tape: &mut Tape<'_>) -> Run {
        let now = Instant::from_nanos(1_000_000_000);
        let limits = Limits {
            // Small bounds are reached.
            conn_entries_max: if tape.once_in(4) { 6 } else { 1000 },
            index_slots_max: tape.pick(&[4096, 16, 0]),
            neigh_held_frames_max: 4,
            neigh_entries_max: if tape.once_in(4) { 3 } else { 64 },
            wheel_pops_per_breath_max: 64,
            answers_per_breath_max: 8,
            masquerade_entries_max: if tape.once_in(4) { 3 } else { 100 },
            frag_bytes_max: tape.pick(&[200_000, 6000]),
            frag_wait_s: 30,
            frag_wait_v6_s: 60,
            frag_cuts_per_breath_max: 64,
        };
        let seed = u64::from(tape.byte());
        let raw_ip = seed >= 0xc0;
        let table = Arc::new(ConnTable::new(limits.conn_entries_max as usize, seed));
        let setup = Setup {
            ports: world::ports(raw_ip),
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            limits,
            workers: WORKERS,
            table: Arc::clone(&table),
            table_size: TABLE_SIZE,
            pid: 1,
            nic: "memory".to_string(),
        };
        let plane = ControlPlane::new(setup, now);
        let neighbours = Arc::new(Neighbours::new(limits.neigh_entries_max as usize));
        let nic = || MemoryNic::new(raw_ip);
        let nics: Vec<[MemoryNic; 2]> = (0..WORKERS).map(|_| [nic(), nic()]).collect();
        let worker = |number: usize| {
            let setup = WorkerSetup {
                number,
                table: Arc::clone(&table),
                neighbours: Arc::clone(&neighbours),
                snapshot: plane.snapshot(),
                ports: nics[number].iter().map(MemoryNic::halves).collect(),
                seed,
                story: number == 1,
            };
            Worker::new(setup, now)
        };
        let workers = (0..WORKERS).map(worker).collect();
        let mut run = Run {
            plane,
            workers,
            nics,
            down: Default::default(),
            table,
            now,
            recent: VecDeque::new(),
            joined: Vec::new(),
            whole: None,
            cuts: 0x100,
            raw_ip,
            polite: true,
            spoiled: false,
            rubbish: false,
            clients: 0,
            replies: 0,
            last_reply: None,
            outcome: Outcome::default(),
        };
        for command in world::first_commands() {
            run.request(Request::Do(command));
        }
        run
    }

    /// One thing happens, then everybody takes a breath, then all must be well.
    pub fn step(&mut self, tape: &mut Tape<'_>) {
        match tape.below(32) {
            0..=23 => self.receive(tape),
            24..=27 => self.pass_time(tape),
            28..=29 => self.request(Request::Do(world::command(tape))),
            30 => self.polite = !tape.once_in(4),
            _ => self.trouble(tape),
        }
        self.breathe();
        self.check();
        self.outcome.entries_max = self.outcome.entries_max.max(self.table.len());
    }

    /// The director receives this IP packet by `port` at its first worker. Returns the packets it
    /// sent because of it, each with its port; one that it sent in fragments as a whole.
    pub fn exchange(&mut self, port: usize, packet: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let frame = guests::frame_of(port, packet);
        self.deliver(0, port, frame, Offload::default(), 0);
        self.recent.clear();
        self.whole = None;
        self.breathe();
        self.check();
        self.recent.drain(..).chain(self.whole.take()).collect()
    }

    /// An operator changes something; what the director says to it.
    pub fn configure(&mut self, command: ulvs::config::Command) -> Reply {
        self.ask(Request::Do(command))
    }

    /// A request of any kind, and what the director says to it.
    pub fn ask(&mut self, request: Request) -> Reply {
        self.request(request);
        self.last_reply.take().expect("every request has a reply")
    }

    /// The longest packet that leaves by `port`, in bytes, is from now on this.
    pub fn set_mtu(&mut self, port: usize, mtu: u32) {
        let mut ports = self.plane.snapshot().ports.clone();
        ports[port].mtu = mtu;
        self.plane.handle(Input::PortsChanged(ports), self.now);
        self.settle();
    }

    /// From now on frames may be wrong, so that the sums of what comes out prove nothing.
    pub fn expect_rubbish(&mut self) {
        self.rubbish = true;
        self.spoiled = true;
    }

    fn receive(&mut self, tape: &mut Tape<'_>) {
        let made = guests::make(tape, &self.recent);
        self.spoiled |= !made.by_the_book;
        self.cuts += 1;
        for piece in guests::fragments(tape, &made, self.cuts) {
            let worker = made.worker % WORKERS;
            self.deliver(worker, made.port, piece, Offload::default(), made.mark);
            self.breathe();
            self.spoiled |= !made.by_the_book;
        }
        let Made {
            port,
            frame,
            offload,
            mark,
            worker,
            ..
        } = made;
        self.deliver(worker % WORKERS, port, frame, offload, mark);
    }

    /// Where there is no Ethernet, what its header would be is left out.
    fn deliver(&self, worker: usize, port: usize, frame: Vec<u8>, offload: Offload, mark: u32) {
        let mut frame = MemoryFrame {
            bytes: frame,
            offload,
            mark,
        };
        if self.raw_ip {
            frame.bytes.drain(..ETHERNET_LEN.min(frame.bytes.len()));
            frame.offload.shift(-(ETHERNET_LEN as i32));
        }
        self.nics[worker][port].put(frame);
    }

    fn pass_time(&mut self, tape: &mut Tape<'_>) {
        let spans_ms = [1, 10, 100, 1000, 3000, 10_000, 60_000, 300_000];
        let span = tape.pick(&spans_ms) * (1 + tape.below(4) as u64);
        self.now += Duration::from_millis(span);
        self.plane.handle_timeout(self.now);
        self.settle();
    }

    /// An interface goes down or comes back, or refuses frames, or a client of the control plane
    /// asks for everything there is.
    fn trouble(&mut self, tape: &mut Tape<'_>) {
        let (worker, port) = (tape.below(WORKERS), tape.below(2));
        let nic = &self.nics[worker][port];
        match tape.below(5) {
            word @ 0..=1 => {
                self.down[worker][port] = word == 0;
                nic.set_error((word == 0).then_some(NicError::Down));
            }
            2 => nic.set_refusing(true),
            3 => nic.set_refusing(false),
            _ => self.ask_everything(),
        }
    }

    fn ask_everything(&mut self) {
        use ulvs::config::Query;
        for query in [
            Query::Services(None),
            Query::Connections,
            Query::Masqueraded,
            Query::Timeouts,
            Query::Account,
            Query::Status,
        ] {
            self.request(Request::Ask(query));
        }
    }

    fn request(&mut self, request: Request) {
        self.clients += 1;
        let from = ClientId(self.clients);
        self.plane
            .handle(Input::Request { from, request }, self.now);
        self.settle();
        assert_eq!(self.replies, self.clients, "every request has one reply");
    }

    /// Carries orders and reports to and fro until nobody has anything to say.
    fn settle(&mut self) {
        loop {
            while let Some(output) = self.plane.poll_output() {
                match output {
                    Output::Order { worker, order } => {
                        self.workers[worker].handle_order(order, self.now);
                    }
                    Output::Reply { reply, .. } => {
                        assert!(!matches!(reply, Reply::Late(_)), "no worker is late here");
                        self.replies += 1;
                        self.last_reply = Some(reply);
                    }
                    Output::Changed | Output::Stopped => {}
                }
            }
            let mut silent = true;
            for (worker, machine) in self.workers.iter_mut().enumerate() {
                while let Some(report) = machine.poll_report() {
                    self.plane
                        .handle(Input::Reported { worker, report }, self.now);
                    silent = false;
                }
            }
            if silent {
                return;
            }
        }
    }

    /// Everybody works until nothing waits. Polite neighbours answer questions meanwhile.
    fn breathe(&mut self) {
        for _ in 0..4 {
            for number in 0..WORKERS {
                self.workers[number].breathe(self.now);
                for port in [PUBLIC, PRIVATE] {
                    for frame in self.nics[number][port].take() {
                        self.look_at(number, port, frame);
                    }
                }
            }
            self.settle();
        }
        // Behind an interface that is down frames wait, too, and more of them than are taken at once.
        let waiting = self.nics.iter().flatten().any(|nic| nic.waiting() > 0);
        let down = waiting || self.down.iter().flatten().any(|down| *down);
        let held: u64 = self
            .workers
            .iter()
            .map(|worker| worker.account().held)
            .sum();
        self.spoiled &= held > 0 || down || self.rubbish;
    }

    /// What left by `port` must be fit to be seen there.
    fn look_at(&mut self, worker: usize, port: usize, sent: MemoryFrame) {
        if !self.raw_ip {
            let bytes = &sent.bytes;
            assert!(
                bytes.len() >= ETHERNET_LEN,
                "sent without an Ethernet header"
            );
            assert_eq!(bytes[6..12], DIRECTOR_MACS[port], "not sent in our name");
            if self.polite
                && let Some(answer) = guests::answer_question(bytes)
            {
                self.deliver(worker, port, answer, Offload::default(), 0);
            }
        }
        let found = match self.raw_ip {
            true => Some((0, &sent.bytes[..])),
            false => guests::packet_of(&sent.bytes),
        };
        let Some((l3, packet)) = found else {
            return;
        };
        self.outcome.sent[port] += 1;
        self.outcome.errors[port] += u64::from(guests::is_error(packet));
        if let Some(fragment) = frames::read_fragment(packet) {
            self.outcome.fragments += 1;
            return self.join(port, packet, fragment);
        }
        if !self.spoiled {
            check_packet(packet, l3, sent.offload);
            if !self.is_for_server(port, &sent.bytes) {
                check_secrecy(packet);
            }
        }
        self.recent.push_back((port, packet.to_vec()));
        if self.recent.len() > RECENT_MAX {
            self.recent.pop_front();
        }
    }

    /// The pieces of a packet leave one behind the other. When they are whole, the packet is looked at.
    fn join(&mut self, port: usize, packet: &[u8], fragment: (usize, bool, usize)) {
        let (offset, more, header) = fragment;
        let carried = header.min(if packet[0] >> 4 == 4 { header } else { 40 });
        if offset == 0 {
            self.joined = packet[..carried].to_vec();
            match packet[0] >> 4 {
                4 => self.joined[6..8].fill(0),
                _ => self.joined[6] = packet[40],
            }
        } else if self.joined.len() != carried + offset {
            assert!(self.spoiled, "a hole before {packet:02x?}");
            return;
        }
        self.joined.extend_from_slice(&packet[header..]);
        if !more {
            let mut whole = std::mem::take(&mut self.joined);
            guests::set_length(&mut whole);
            if !self.spoiled {
                check_packet(&whole, 0, Offload::default());
            }
            self.whole = Some((port, whole));
        }
    }

    /// Under LVS-DR the address in a packet does not say who gets it: the MAC address does, and where
    /// there is none, at least the port that all real servers are behind.
    fn is_for_server(&self, port: usize, frame: &[u8]) -> bool {
        if self.raw_ip {
            return port == PRIVATE;
        }
        world::reals()
            .iter()
            .any(|real| frame[..6] == world::mac_of(*real))
    }

    /// What must hold between two steps.
    fn check(&self) {
        for (number, worker) in self.workers.iter().enumerate() {
            let account = worker.account();
            assert!(account.balances(), "worker {number}: {account:?}");
        }
        self.check_counts();
    }

    /// The counts of every real server are those of the entries bound to it.
    fn check_counts(&self) {
        let mut bound: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
        self.table.for_each(|conn| {
            if let Some(server) = conn.server() {
                let (conns, templates) = bound.entry(server.id).or_default();
                *if conn.is_template() { templates } else { conns } += 1;
            }
        });
        let snapshot = self.plane.snapshot();
        for service in &snapshot.services {
            for real in &service.reals {
                let (conns, templates) = bound.get(&real.live.id).copied().unwrap_or_default();
                let persistent = real
                    .live
                    .persistent
                    .load(std::sync::atomic::Ordering::Relaxed);
                assert_eq!(
                    real.live.total(),
                    conns,
                    "{}: {:?}",
                    real.key,
                    service.spec.key
                );
                assert_eq!(
                    persistent, templates,
                    "{}: {:?}",
                    real.key, service.spec.key
                );
            }
        }
    }

    /// All traffic stops and the longest life passes: nothing may be left.
    pub fn finish(mut self) -> Outcome {
        self.down = Default::default();
        for nic in self.nics.iter().flatten() {
            nic.set_error(None);
            nic.set_refusing(false);
        }
        for _ in 0..LONGEST_LIFE_S / 10 {
            self.now += Duration::from_secs(10);
            self.breathe();
        }
        self.plane.handle_timeout(self.now);
        self.settle();
        self.check();
        assert_eq!(self.table.len(), 0, "entries outlive their time");
        assert_eq!(self.table.remembered(), 0, "helpers remember for ever");
        let (masqueraded, keys) = (self.table.masqueraded(), self.table.whole_keys());
        assert_eq!(
            (masqueraded, keys),
            (0, 0),
            "masqueraded ones outlive theirs"
        );
        for worker in &self.workers {
            assert_eq!(worker.account().held, 0, "frames wait for ever");
        }
        self.ask_everything();
        self.plane.handle(Input::Stop, self.now);
        self.settle();
        assert!(self.workers.iter().all(Worker::stopped));
        for worker in &self.workers {
            self.outcome.account.add(worker.account());
        }
        self.outcome
    }
}

/// A packet that came of packets made by the book has right sums.
fn check_packet(packet: &[u8], l3: usize, offload: Offload) {
    if frames::read_ip(packet).is_none() {
        return;
    }
    if offload.is_partial() {
        assert!(
            frames::partial_sum_is_right(packet, l3, offload),
            "partial sum: {packet:02x?}"
        );
    } else {
        assert!(frames::sums_are_right(packet), "wrong sum: {packet:02x?}");
    }
}

/// Nothing of the real servers is in what a client gets, if it came of packets made by the book.
fn check_secrecy(packet: &[u8]) {
    let Some((header, _, source, target)) = frames::read_ip(packet) else {
        return;
    };
    if !world::clients().contains(&target) {
        return;
    }
    let hidden = |address: IpAddr| world::reals().contains(&address);
    assert!(!hidden(source), "a client sees {source}: {packet:02x?}");
    if guests::is_error(packet)
        && let Some((from, to)) = guests::quoted_ends(&packet[header + 8..])
    {
        assert!(
            !hidden(from) && !hidden(to),
            "a client sees {from} or {to}: {packet:02x?}"
        );
    }
}
