//! A new connection of a persistent service: the client's template says whom, or a new one remembers
//! the scheduler's choice (`ip_vs_sched_persist`).

use std::sync::Arc;

use super::Passage;
use super::admit::{Admission, Choice, is_one_packet, leave, open, pick};
use super::lane::Own;
use super::probe::{Probe, Step};
use super::snapshot::{Service, Snapshot};
use crate::conn::{Conn, ConnTable, Opening, template};
use crate::lvs::RealServer;
use crate::lvs::tuple::{Tuple, pack};
use crate::time::Instant;

/// Opens a connection where the client's template says.
pub(super) fn admit<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    service: &Arc<Service>,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let key = template::key(&service.spec, tuple, p.mark);
    let known = match find(table, &key, service, &own.snapshot, p.now) {
        Some(found) => found,
        None => {
            let Some(real) = pick(service, tuple, p, own) else {
                return leave(service, tuple);
            };
            match remember(table, &key, service, real, p, own) {
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
    let same_port = tuple.target_port() == service.spec.key.port() && real.key.0.port != 0;
    let port = if same_port {
        real.key.0.port
    } else {
        tuple.target_port()
    };
    let control = Some(Arc::clone(&known));
    let choice = Choice {
        real,
        port,
        control,
        once: is_one_packet(service, tuple),
    };
    let admission = open(table, tuple, choice, p, own);
    known.touch(p.now);
    admission
}

/// The template of this client, if it still says something; one that does not is disowned, and makes
/// room for the next choice.
fn find(
    table: &ConnTable,
    key: &Tuple,
    service: &Service,
    snapshot: &Snapshot,
    now: Instant,
) -> Option<Arc<Conn>> {
    let found = table.find_template(key).filter(|found| !found.is_gone())?;
    if found.is_due(now) && !found.outlives_expiry(now) {
        table.remove(&found);
        return None;
    }
    let Some(real) = chosen_by(&found, service) else {
        found.disown();
        return None;
    };
    if snapshot.tunables.expire_quiescent_template != 0 && real.weight.0 == 0 {
        found.disown();
        return None;
    }
    Some(found)
}

/// The configured real server that a template remembers.
fn chosen_by<'s>(known: &Conn, service: &'s Service) -> Option<&'s RealServer> {
    let server = known.server()?;
    service
        .reals
        .iter()
        .find(|real| Arc::ptr_eq(&real.live, server))
}

/// Makes the template. Its life is the service's timeout as it is now; editing the service later
/// changes only new ones.
fn remember<P: Probe>(
    table: &ConnTable,
    key: &Tuple,
    service: &Service,
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
        method: real.method,
        server: Some(Arc::clone(&real.live)),
        control: None,
        mark: p.mark,
        template: true,
    };
    let made = Conn::open(opening, p.now);
    let timeout_s = service
        .spec
        .persistence
        .map_or(0, |persistence| persistence.timeout_s);
    made.restart(timeout_s, p.now);
    let made = table.insert(Arc::new(made)).ok()?;
    own.wheel.arm(&made);
    Some(made)
}
