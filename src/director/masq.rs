//! Connections that hosts behind the director open outwards: who may, under which public end, and the
//! entries of echoes, which have no ports. What is not from inside, or was not asked for from inside,
//! is not forwarded.

use std::net::IpAddr;
use std::sync::Arc;

use super::admit::{self, Admission};
use super::lane::Own;
use super::probe::Probe;
use super::verdict::{DropReason, Verdict};
use super::{Director, Passage, serve, stack};
use crate::conn::{Conn, ConnTable, Direction, Opening, Refused};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{Endpoint, Family, Flow, ForwardMethod, Protocol, Segment};
use crate::wire::answer::IcmpError;
use crate::wire::icmp::Echo;

/// Opens a masqueraded connection for this packet; `None` if it is none that leads outwards.
pub(super) fn admit<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    segment: Segment,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Admission> {
    let snapshot = Arc::clone(&own.snapshot);
    let pools = snapshot.pools();
    if !pools.masquerades(tuple.family()) || !leads_out(p, own) {
        return None;
    }
    if !admit::may_open(Some(segment), &snapshot.tunables) {
        return None;
    }
    if stack::is_martian(p, own) {
        return Some(Admission::Refused(Verdict::Drop(DropReason::Martian)));
    }
    if let Some(verdict) = stack::refuse_options(Direction::Out, p, own) {
        return Some(Admission::Refused(verdict));
    }
    if p.packet.ttl() <= 1 {
        let reason = DropReason::TtlExceeded;
        let verdict = stack::complain(p, own, IcmpError::TimeExceeded, reason);
        return Some(Admission::Refused(verdict));
    }
    Some(match open(table, tuple, p, own) {
        Ok(conn) => {
            own.wheel.arm(&conn);
            Admission::Opened(conn)
        }
        Err(reason) => Admission::Refused(Verdict::Drop(reason)),
    })
}

/// From inside, by the port that leads there, to somebody who is neither inside nor the director.
fn leads_out<P: Probe>(p: &Passage<'_, '_, P>, own: &Own) -> bool {
    let (snapshot, pools) = (&own.snapshot, own.snapshot.pools());
    let (source, target) = (p.packet.source(), p.packet.target());
    pools.is_inside(source)
        && !pools.is_inside(target)
        && is_one_host(target)
        && !snapshot.is_vip(&target)
        && snapshot.own_port(&target).is_none()
        && snapshot.route_to(target).is_some()
        && snapshot.route_to(source).map(|(port, _)| port) == Some(p.ingress)
}

/// One host somewhere, not a group, a link or this machine.
fn is_one_host(address: IpAddr) -> bool {
    let nobody = address.is_unspecified() || address.is_loopback() || address.is_multicast();
    let on_link = match address {
        IpAddr::V4(v4) => v4.is_broadcast() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    !nobody && !on_link
}

/// Enters it. The far end is the entry's client, the public one its virtual end, the host its real
/// server. A host keeps its address among the public ones, and its port where that is free.
fn open<P: Probe>(
    table: &ConnTable,
    tuple: &Tuple,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Result<Arc<Conn>, DropReason> {
    let (family, protocol) = (tuple.family(), tuple.protocol());
    let far = (tuple.target, tuple.target_port());
    let home = tuple.source[1] ^ tuple.source[0];
    let snapshot = Arc::clone(&own.snapshot);
    let len_max = snapshot.limits.masquerade_entries_max as usize;
    let inward = |end: Endpoint| Tuple::new(family, protocol, far, (pack(end.address), end.port));
    // A second try is needed only where another worker takes the same port at the same moment.
    for _ in 0..OPENINGS_MAX {
        let wish = Some(tuple.source_port());
        let chosen = snapshot
            .pools()
            .public
            .choose(family, home, wish, &mut own.rng, |end| {
                !snapshot.is_service(protocol, end) && table.find_whole(&inward(end)).is_none()
            });
        let public = chosen.ok_or(DropReason::NoSourcePort)?;
        p.say(|| format!("masquerades {} as {public}", tuple.flow().source));
        let opening = Opening {
            tuple: inward(public),
            real: (tuple.source, tuple.source_port()),
            method: ForwardMethod::Masquerade,
            server: None,
            control: None,
            mark: p.mark,
            template: false,
        };
        let conn = Arc::new(Conn::open(opening, p.now));
        match table.insert_masqueraded(conn, len_max) {
            Ok(conn) => return Ok(conn),
            Err(Refused::Full) => return Err(DropReason::MasqueradeFull),
            Err(Refused::Taken) => {}
        }
    }
    Err(DropReason::NoSourcePort)
}

/// Searches for a free end that another worker may spoil; each is bounded in itself.
pub(super) const OPENINGS_MAX: usize = 4;

impl Director {
    /// An echo, request or reply, in a family in which hosts are masqueraded: from inside it goes out,
    /// its reply comes back, and every other is for our own stack, or not ours.
    pub(super) fn handle_echo<P: Probe>(
        &self,
        echo: Echo,
        p: &mut Passage<'_, '_, P>,
        own: &mut Own,
    ) -> Verdict {
        let (source, target) = (p.packet.source(), p.packet.target());
        let tuple = echo_tuple(echo, source, target);
        let table = self.table();
        let found = table.find_whole(&tuple).filter(|(conn, _)| !conn.is_gone());
        if let Some((conn, direction)) = found.and_then(|found| self.still_alive(found, p)) {
            return serve::serve(&conn, direction, Segment::Echo, p, own);
        }
        let admission = echo
            .is_request
            .then(|| admit(table, &tuple, Segment::Echo, p, own))
            .flatten();
        match admission {
            Some(Admission::Opened(conn)) => {
                let direction = crate::conn::Direction::Out;
                serve::serve(&conn, direction, Segment::Echo, p, own)
            }
            Some(Admission::Refused(verdict)) => verdict,
            _ => stack::answer(p, own),
        }
    }
}

/// An echo as a flow: the one who asks has the identifier for a port, the other has port 0.
pub(super) fn echo_tuple(echo: Echo, source: IpAddr, target: IpAddr) -> Tuple {
    let (asks, told) = match echo.is_request {
        true => (echo.ident, 0),
        false => (0, echo.ident),
    };
    let protocol = match Family::of(source) {
        Family::V4 => Protocol::ICMP,
        Family::V6 => Protocol::ICMPV6,
    };
    let flow = Flow {
        protocol,
        source: Endpoint::new(source, asks),
        target: Endpoint::new(target, told),
    };
    flow.into()
}
