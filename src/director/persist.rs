//! A new connection of a persistent service: the client's template says whom, or a new one remembers
//! the scheduler's choice (`ip_vs_sched_persist`).

use std::sync::Arc;

use super::Passage;
use super::admit::{Admission, Choice, is_one_packet, leave, open, pick};
use super::lane::Own;
use super::probe::{Probe, Step};
use super::sip;
use super::snapshot::{Service, Snapshot};
use super::verdict::{DropReason, Verdict};
use crate::conn::{Conn, ConnTable, EngineData, Opening, template};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{Protocol, RealServer};
use crate::time::Instant;

/// Length of a UDP header in bytes (RFC 768).
const UDP_HEADER_LEN: usize = 8;

/// What a template is found by.
pub(super) struct TemplateKey {
    /// Client network and VIP, or mark.
    pub tuple: Tuple,
    /// What the service's engine adds.
    pub data: Option<EngineData>,
}

impl TemplateKey {
    /// With what the service's engine, if it has one, reads in this packet.
    ///
    /// # Errors
    /// `NoCallId` if it finds nothing.
    pub fn new<P: Probe>(
        service: &Service,
        tuple: Tuple,
        p: &Passage<'_, '_, P>,
    ) -> Result<TemplateKey, DropReason> {
        let data = match &service.spec.engine {
            Some(_) => Some(call_of(p).ok_or(DropReason::NoCallId)?),
            None => None,
        };
        Ok(TemplateKey { tuple, data })
    }

    fn find(&self, table: &ConnTable) -> Option<Arc<Conn>> {
        match &self.data {
            Some(data) => table.find_engine_template(&self.tuple, data),
            None => table.find_template(&self.tuple),
        }
    }
}

/// The call that a datagram belongs to. `sip` is the only engine there is.
fn call_of<P: Probe>(p: &Passage<'_, '_, P>) -> Option<EngineData> {
    let layout = &p.packet.layout;
    if Protocol(layout.protocol) != Protocol::UDP || !layout.transport {
        return None;
    }
    let message = p.packet.transport().get(UDP_HEADER_LEN..)?;
    EngineData::new(sip::call_id(message)?)
}

/// Opens a connection where the client's template says.
pub(super) fn admit<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    service: &Arc<Service>,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Admission {
    let key = template::key(&service.spec, tuple, p.mark);
    let key = match TemplateKey::new(service, key, p) {
        Ok(key) => key,
        Err(reason) => {
            p.say(|| "no Call-ID, and its service goes by that".to_string());
            return Admission::Refused(Verdict::Drop(reason));
        }
    };
    let known = match find(table, &key, service, &own.snapshot, p.now) {
        Some(found) => found,
        None => {
            let Some(real) = pick(service, tuple, p, own) else {
                return leave(table, service, tuple, p, own);
            };
            let port = if key.tuple.target_port() == 0 {
                0
            } else {
                real.key.0.port
            };
            match remember(table, key, service, (real, port), p, own) {
                Some(made) => made,
                None => return Admission::TableFull,
            }
        }
    };
    let Some(real) = chosen_by(&known, service) else {
        return leave(table, service, tuple, p, own);
    };
    if P::ON {
        let call = table.engine_data(&known).map(|data| {
            let id = String::from_utf8_lossy(data.bytes());
            format!(", call {id},")
        });
        let (client, call) = (known.client(), call.unwrap_or_default());
        let text = format!("template of {client}{call} says {}", real.key);
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
pub(super) fn find(
    table: &ConnTable,
    key: &TemplateKey,
    service: &Service,
    snapshot: &Snapshot,
    now: Instant,
) -> Option<Arc<Conn>> {
    let found = key.find(table).filter(|found| !found.is_gone())?;
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

/// Makes the template, which says this server and port. Its life is the service's timeout as it is now; editing the service later
/// changes only new ones.
pub(super) fn remember<P: Probe>(
    table: &ConnTable,
    key: TemplateKey,
    service: &Service,
    (real, port): (&RealServer, u16),
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Arc<Conn>> {
    let opening = Opening {
        tuple: key.tuple,
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
    let made = Arc::new(made);
    let made = match key.data {
        Some(data) => table.insert_engine_template(made, data),
        None => table.insert(made),
    };
    let made = made.ok()?;
    own.wheel.arm(&made);
    Some(made)
}
