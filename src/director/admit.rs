//! A packet with no connection: may it open one, which service takes it, whom does the scheduler
//! choose (`ip_vs_try_to_schedule`, `ip_vs_schedule`, `ip_vs_sched_persist`).

use std::sync::Arc;

use super::Passage;
use super::lane::Own;
use super::probe::{Probe, Step};
use super::snapshot::{Service, Snapshot};
use crate::conn::{Conn, ConnTable, Opening, template};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{ForwardMethod, Protocol, RealServer, Segment, Stats, Tunables};
use crate::sched::PickContext;

/// What became of a packet that had no connection.
pub enum Admission {
    /// It has one now.
    Opened(Arc<Conn>),
    /// It may not open one, or no service wants it.
    NotOurs,
    /// A service wants it, but nobody can serve.
    NoRealServer,
    /// No more entries.
    TableFull,
}

/// The source port of active FTP data connections, which are never scheduled.
const FTP_DATA_PORT: u16 = 20;
/// FTP's control port.
const FTP_PORT: u16 = 21;
/// Chunk types of SCTP that decide whether an association may be opened (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;
const SCTP_ABORT: u8 = 6;

/// Tries to open a connection for this packet.
pub fn admit<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    segment: Segment,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let snapshot = Arc::clone(&own.snapshot);
    if !may_open(segment, &snapshot.tunables) {
        return Admission::NotOurs;
    }
    let Some(service) = snapshot.service_for(&tuple.flow(), p.mark) else {
        return Admission::NotOurs;
    };
    if tuple.source_port() == FTP_DATA_PORT {
        return Admission::NotOurs;
    }
    if P::ON {
        p.probe.step(Step::Service { service });
    }
    let spec = &service.spec;
    let other_port = !spec.key.is_mark() && tuple.target_port() != spec.key.port();
    if spec.persistence.is_some() {
        return persist(table, tuple, service, p, own);
    }
    let chosen = if other_port {
        None
    } else {
        pick(service, tuple, p, own)
    };
    let Some(real) = chosen else {
        return leave(service, tuple);
    };
    open(table, tuple, real, None, real_port(real, tuple), p, own)
}

/// May this segment open a connection at all?
fn may_open(segment: Segment, tunables: &Tunables) -> bool {
    match segment {
        Segment::Tcp(flags) => !flags.rst() && (flags.syn() || tunables.sloppy_tcp != 0),
        Segment::Udp => true,
        Segment::Sctp { first, .. } => {
            first != SCTP_ABORT && (first == SCTP_INIT || tunables.sloppy_sctp != 0)
        }
    }
}

/// Nobody serves it: what the FTP service caught of other ports is for our own stack, all else is told
/// that nobody serves (`ip_vs_leave`).
fn leave(service: &Service, tuple: &Tuple) -> Admission {
    let key = &service.spec.key;
    let ftp = key.port() == FTP_PORT && tuple.protocol() == Protocol::TCP;
    if ftp && tuple.target_port() != FTP_PORT {
        Admission::NotOurs
    } else {
        Admission::NoRealServer
    }
}

/// Asks the scheduler.
fn pick<'s, P: Probe>(
    service: &'s Service,
    tuple: &Tuple,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<&'s RealServer> {
    let scheduler = service.scheduler.as_ref()?;
    own.notes.clear();
    let mut context = PickContext {
        flow: tuple.flow(),
        flags: service.spec.flags,
        now: p.now,
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

fn open<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    real: &RealServer,
    control: Option<Arc<Conn>>,
    port: u16,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let opening = Opening {
        tuple: *tuple,
        real: (pack(real.key.0.address), port),
        method: real.method,
        server: Some(Arc::clone(&real.live)),
        control,
        mark: p.mark,
        template: false,
    };
    match table.insert(Arc::new(Conn::open(opening, p.now))) {
        Ok(conn) => {
            own.wheel.arm(&conn);
            Stats::bump(&real.live.stats[own.worker].conns, 1);
            Admission::Opened(conn)
        }
        Err(_) => Admission::TableFull,
    }
}

/// A persistent service: the client's template says whom, or a new one remembers the scheduler's
/// choice.
fn persist<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    service: &Arc<Service>,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let spec = &service.spec;
    let timeout_s = spec
        .persistence
        .map_or(0, |persistence| persistence.timeout_s);
    let key = template::key(spec, tuple, p.mark);
    let usable = |found: &Arc<Conn>| template_holds(found, service, &own.snapshot, p.now);
    let known = table.find_template(&key).filter(|found| !found.is_gone());
    let known = match known {
        Some(found) if usable(&found) => Some(found),
        // A template that is of no use any more makes room for the next choice.
        Some(found) => {
            table.remove(&found);
            None
        }
        None => None,
    };
    let known = match known {
        Some(found) => found,
        None => {
            let Some(real) = pick(service, tuple, p, own) else {
                return leave(service, tuple);
            };
            match make_template(table, &key, real, p, own) {
                Some(made) => made,
                None => return Admission::TableFull,
            }
        }
    };
    let Some(real) = chosen_by(&known, service) else {
        return leave(service, tuple);
    };
    if P::ON {
        let text = format!("template of {} says {}", known.client(), real.key);
        p.probe.step(Step::Said(text));
    }
    let same_port = tuple.target_port() == spec.key.port() && real.key.0.port != 0;
    let port = if same_port {
        real.key.0.port
    } else {
        tuple.target_port()
    };
    let admission = open(table, tuple, real, Some(Arc::clone(&known)), port, p, own);
    known.restart(timeout_s, p.now);
    admission
}

/// The configured real server that a template remembers.
fn chosen_by<'s>(known: &Conn, service: &'s Service) -> Option<&'s RealServer> {
    let server = known.server()?;
    service
        .reals
        .iter()
        .find(|real| Arc::ptr_eq(&real.live, server))
}

/// Does a template still say something (`ip_vs_check_template`)?
fn template_holds(
    known: &Arc<Conn>,
    service: &Service,
    snapshot: &Snapshot,
    now: crate::time::Instant,
) -> bool {
    let Some(real) = chosen_by(known, service) else {
        return false;
    };
    let quiesced = snapshot.tunables.expire_quiescent_template != 0 && real.weight.0 == 0;
    !quiesced && (!known.is_due(now) || known.outlives_expiry(now))
}

fn make_template<P: Probe>(
    table: &ConnTable,
    key: &Tuple,
    real: &RealServer,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Arc<Conn>> {
    let port = if key.target_port() == 0 {
        0
    } else {
        real.key.0.port
    };
    let opening = Opening {
        tuple: *key,
        real: (pack(real.key.0.address), port),
        method: ForwardMethod::Masq,
        server: Some(Arc::clone(&real.live)),
        control: None,
        mark: p.mark,
        template: true,
    };
    let made = table.insert(Arc::new(Conn::open(opening, p.now))).ok()?;
    own.wheel.arm(&made);
    Some(made)
}
