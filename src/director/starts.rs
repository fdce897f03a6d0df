//! Requests that real servers start: where a persistence engine knows whose call a datagram belongs to,
//! a server behind LVS-NAT may speak first, and the answer finds its way back (`ip_vs_new_conn_out`).

use std::sync::Arc;

use super::Passage;
use super::admit::{Admission, Choice, is_one_packet, open};
use super::lane::Own;
use super::persist::{self, TemplateKey};
use super::probe::Probe;
use super::snapshot::Service;
use super::stack;
use super::verdict::DropReason;
use crate::conn::{Conn, ConnTable, template};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{Protocol, RealServer, ServiceKey};
use crate::wire::answer::IcmpError;

/// Opens the connection of a datagram that a real server sent to a client of its own accord; `None` if
/// it did not.
pub(super) fn admit<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Admission> {
    if tuple.protocol() != Protocol::UDP || !own.snapshot.has_engines() {
        return None;
    }
    let snapshot = Arc::clone(&own.snapshot);
    let flow = tuple.flow();
    if snapshot.is_vip(&flow.target.address) {
        return None;
    }
    let (service, real) = snapshot.started_by(&flow)?;
    let ServiceKey::Address { protocol, virt } = service.spec.key else {
        return None;
    };
    if p.packet.ttl() <= 1 {
        let reason = DropReason::TtlExceeded;
        let verdict = stack::complain(p, own, IcmpError::TimeExceeded, reason);
        return Some(Admission::Refused(verdict));
    }
    let client = (tuple.target, tuple.target_port());
    let inward = Tuple::new(
        tuple.family(),
        protocol,
        client,
        (pack(virt.address), virt.port),
    );
    let control = match service.spec.persistence {
        Some(_) => Some(template(table, inward, (service, real), tuple, p, own)?),
        None => None,
    };
    p.say(|| format!("{} speaks first, for {}", real.key, service.spec.key));
    // Who spoke last to this client gets the answers.
    if let Some(other) = table.find_in(&inward) {
        table.remove(&other);
    }
    let known = control.clone();
    let choice = Choice {
        real,
        port: tuple.source_port(),
        control,
        once: is_one_packet(service, tuple),
    };
    let admission = open(table, &inward, choice, p, own);
    if let Some(known) = known {
        known.touch(p.now);
    }
    Some(admission)
}

/// The template of this call. It follows the server that speaks: one that says another server is
/// disowned, like one whose server is gone.
fn template<P: Probe>(
    table: &ConnTable,
    inward: Tuple,
    (service, real): (&Service, &RealServer),
    tuple: &Tuple,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Arc<Conn>> {
    let key = template::key(&service.spec, &inward, p.mark);
    let key = TemplateKey::new(service, key, p).ok()?;
    if let Some(known) = persist::find(table, &key, service, &own.snapshot, p.now) {
        if known
            .server()
            .is_some_and(|server| Arc::ptr_eq(server, &real.live))
        {
            return Some(known);
        }
        known.disown();
    }
    persist::remember(table, key, service, (real, tuple.source_port()), p, own)
}
