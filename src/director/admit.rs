//! A packet with no connection: may it open one, which service takes it, whom does the scheduler
//! choose (`ip_vs_try_to_schedule`, `ip_vs_schedule`).

use std::sync::Arc;

use super::classify::Looks;
use super::lane::Own;
use super::persist;
use super::probe::{Probe, Step};
use super::snapshot::{Service, Snapshot};
use super::verdict::{DropReason, Verdict};
use super::{Passage, bypass, helper, masq, stack};
use crate::conn::{Conn, ConnTable, Direction, Opening, Refused};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{
    Endpoint, Flow, ForwardMethod, Protocol, RealServer, Segment, ServiceFlags, Stats, Tunables,
};
use crate::sched::PickContext;

/// What became of a packet that had no connection.
pub enum Admission {
    /// It has one now.
    Opened(Arc<Conn>),
    /// It may not open one, or no service wants it.
    NotOurs,
    /// A service wants it, but nobody can serve.
    NoRealServer,
    /// It has one for this packet alone (one-packet scheduling).
    Once(Arc<Conn>),
    /// The defences drop it (`drop_packet`).
    Defended,
    /// No more entries.
    TableFull,
    /// It ends here, whoever would serve it.
    Refused(Verdict),
}

/// Whom a new connection goes to, and why.
pub(super) struct Choice<'a> {
    /// The real server.
    pub real: &'a RealServer,
    /// Its port, for this connection.
    pub port: u16,
    /// The template that said so.
    pub control: Option<Arc<Conn>>,
    /// The entry lives for this packet only.
    pub once: bool,
}

/// The source port of active FTP data connections, which are never scheduled.
const FTP_DATA_PORT: u16 = 20;
/// FTP's control port.
const FTP_PORT: u16 = 21;
/// Chunk types of SCTP that decide whether an association may be opened (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;
const SCTP_ABORT: u8 = 6;

/// Tries to open a connection for this packet; without a segment it is an ICMP error, which
/// `schedule_icmp` allows to open one.
pub fn admit<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    segment: Option<Segment>,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let snapshot = Arc::clone(&own.snapshot);
    if !may_open(segment, &snapshot.tunables) {
        p.say(|| "no connection, and nothing that opens one".to_string());
        return Admission::NotOurs;
    }
    if !snapshot.marks().is_empty() && p.mark == 0 {
        mark(p, &snapshot);
    }
    let Some(service) = snapshot.service_for(&tuple.flow(), p.mark) else {
        let Flow {
            protocol, target, ..
        } = tuple.flow();
        p.say(|| format!("no connection, and no service {protocol} {target}"));
        return Admission::NotOurs;
    };
    if own.defences.refuses_new() {
        return Admission::Defended;
    }
    if tuple.source_port() == FTP_DATA_PORT {
        return Admission::NotOurs;
    }
    if stack::is_martian(p, own) {
        return Admission::Refused(Verdict::Drop(DropReason::Martian));
    }
    if let Some(verdict) = stack::refuse_options(Direction::In, p, own) {
        return Admission::Refused(verdict);
    }
    if P::ON {
        p.probe.step(Step::Service { service });
    }
    if service.spec.persistence.is_some() {
        return persist::admit(table, tuple, service, p, own);
    }
    let key = &service.spec.key;
    let other_port = !key.is_mark() && tuple.target_port() != key.port();
    let chosen = if other_port {
        None
    } else {
        pick(service, tuple, p, own)
    };
    let Some(real) = chosen else {
        return leave(table, service, tuple, p, own);
    };
    let port = real_port(real, tuple);
    let choice = Choice {
        real,
        port,
        control: None,
        once: is_one_packet(service, tuple),
    };
    open(table, tuple, choice, p, own)
}

/// Gives the packet the mark that the rules say.
fn mark<P: Probe>(p: &mut Passage<'_, '_, P>, snapshot: &Snapshot) {
    let (packet, protocol) = (&p.packet, Protocol(p.packet.layout.protocol));
    let has_ports = protocol.is_balanced() && packet.layout.transport;
    let looks = Looks {
        ingress: p.ingress,
        protocol,
        source: packet.source(),
        target: packet.target(),
        target_port: has_ports.then(|| packet.target_port()),
    };
    if let Some((mark, rule)) = snapshot.marks().mark_of(&looks) {
        p.mark = mark;
        p.say(|| format!("mark {mark}: rule {rule}"));
    }
}

/// Is each datagram of this service scheduled anew?
pub(super) fn is_one_packet(service: &Service, tuple: &Tuple) -> bool {
    service.spec.flags.has(ServiceFlags::ONE_PACKET) && tuple.protocol() == Protocol::UDP
}

/// May this segment open a connection at all?
pub(super) fn may_open(segment: Option<Segment>, tunables: &Tunables) -> bool {
    let Some(segment) = segment else {
        return tunables.schedule_icmp != 0;
    };
    match segment {
        Segment::Tcp(flags) => !flags.rst() && (flags.syn() || tunables.sloppy_tcp != 0),
        Segment::Udp | Segment::Echo => true,
        Segment::Sctp { first, .. } => {
            first != SCTP_ABORT && (first == SCTP_INIT || tunables.sloppy_sctp != 0)
        }
    }
}

/// Nobody serves it: it may pass by, or what the FTP service caught of other ports is for our own stack,
/// or else it is told that nobody serves (`ip_vs_leave`).
pub(super) fn leave<P: Probe>(
    table: &ConnTable,
    service: &Service,
    tuple: &Tuple,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    if let Some(passing) = bypass::admit(table, service, tuple, p, own) {
        return passing;
    }
    let key = &service.spec.key;
    let ftp = key.port() == FTP_PORT && tuple.protocol() == Protocol::TCP;
    if ftp && tuple.target_port() != FTP_PORT {
        Admission::NotOurs
    } else {
        Admission::NoRealServer
    }
}

/// Asks the scheduler.
pub(super) fn pick<'s, P: Probe>(
    service: &'s Service,
    tuple: &Tuple,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<&'s RealServer> {
    let scheduler = service.scheduler.as_ref()?;
    own.notes.clear();
    let flow = tuple.flow();
    let quoted = p.packet.is_icmp();
    let mut context = PickContext {
        flow,
        target: if quoted { flow.source } else { flow.target }.address,
        flags: service.spec.flags,
        now: p.now,
        tunables: &own.snapshot.tunables,
        rng: &mut own.rng,
        notes: P::ON.then_some(&mut own.notes),
    };
    // A worker that panicked inside a pick left a scheduler that is still whole.
    let mut scheduler = scheduler
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner());
    let chosen = scheduler.pick(&service.reals, &mut context);
    if P::ON {
        let (reals, notes, scheduler) = (&service.reals, &own.notes, scheduler.name());
        p.probe.step(Step::Pick {
            scheduler,
            reals,
            notes,
            chosen,
        });
    }
    chosen.map(|index| &service.reals[index])
}

/// The real server's port: its own, or the packet's where it has none.
fn real_port(real: &RealServer, tuple: &Tuple) -> u16 {
    if real.key.0.port == 0 {
        tuple.target_port()
    } else {
        real.key.0.port
    }
}

/// Enters the connection.
pub(super) fn open<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    choice: Choice<'_>,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let real = choice.real;
    let opening = Opening {
        tuple: *tuple,
        real: (pack(real.key.0.address), choice.port),
        method: real.method,
        server: Some(Arc::clone(&real.live)),
        control: choice.control,
        mark: p.mark,
        template: false,
    };
    if real.method == ForwardMethod::FullNat {
        return open_full_nat(table, opening, p, own);
    }
    let conn = Arc::new(Conn::open(opening, p.now));
    if helper::helps(&conn, own) {
        conn.set_helped();
    }
    let counter = &real.live.stats[own.worker].conns;
    if choice.once {
        Stats::bump(counter, 1);
        return Admission::Once(conn);
    }
    let entered = enter(table, conn, own);
    // What found no room was no connection, so it does not count (`ip_vs_conn_new`).
    if let Admission::Opened(_) = entered {
        Stats::bump(counter, 1);
    }
    entered
}

/// Puts a new entry into the table.
pub(super) fn enter(table: &ConnTable, conn: Arc<Conn>, own: &mut Own) -> Admission {
    match table.insert(conn) {
        Ok(conn) => {
            own.wheel.arm(&conn);
            Admission::Opened(conn)
        }
        Err(_) => Admission::TableFull,
    }
}

/// Enters a connection of full NAT under a free local end: one that no other connection to this real
/// server has. It is entered even if it was for one packet alone, since the answer must find it.
fn open_full_nat<P: Probe>(
    table: &ConnTable,
    opening: Opening,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let (snapshot, tuple) = (Arc::clone(&own.snapshot), opening.tuple);
    let (family, protocol, real) = (tuple.family(), tuple.protocol(), opening.real);
    let server = opening.server.clone();
    for _ in 0..masq::OPENINGS_MAX {
        let home = own.rng.next_u64();
        let local = |end: Endpoint| (pack(end.address), end.port);
        let outward = |end: Endpoint| Tuple::new(family, protocol, real, local(end));
        let is_free = |end| table.find_whole(&outward(end)).is_none();
        let chosen = snapshot
            .pools()
            .local
            .choose(family, home, None, &mut own.rng, is_free);
        let Some(end) = chosen else { break };
        p.say(|| format!("the real server sees {end}"));
        let conn = Arc::new(Conn::open_full_nat(opening.clone(), local(end), p.now));
        match table.insert_full_nat(conn) {
            Ok(conn) => {
                if let Some(server) = server {
                    Stats::bump(&server.stats[own.worker].conns, 1);
                }
                own.wheel.arm(&conn);
                return Admission::Opened(conn);
            }
            Err(Refused::Full) => return Admission::TableFull,
            Err(Refused::Taken) => {}
        }
    }
    Admission::Refused(Verdict::Drop(DropReason::NoSourcePort))
}
