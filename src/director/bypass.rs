//! `cache_bypass`: a packet for a mark's service that nobody can serve goes on to its own target, and so
//! do those that follow it (`ip_vs_leave`, `ip_vs_bypass_xmit`). Made for transparent caches: without
//! one, clients still reach the web.

use std::net::IpAddr;
use std::sync::Arc;

use super::lane::Own;
use super::probe::Probe;
use super::snapshot::Service;
use super::{Passage, admit, stack};
use crate::conn::{Conn, ConnTable, Opening};
use crate::lvs::ForwardMethod;
use crate::lvs::tuple::Tuple;

/// Opens an entry without a real server, if this service's packets may pass it by.
pub(super) fn admit<P: Probe>(
    table: &ConnTable,
    service: &Service,
    tuple: &Tuple,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<admit::Admission> {
    let on = own.snapshot.tunables.cache_bypass != 0 && service.spec.key.is_mark();
    if !on || p.packet.is_icmp() || !is_elsewhere(tuple.flow().target.address, own) {
        return None;
    }
    p.say(|| "nobody serves it: it goes on to its own target".to_string());
    let opening = Opening {
        tuple: *tuple,
        real: ([0, 0], 0),
        method: ForwardMethod::Bypass,
        server: None,
        control: None,
        mark: p.mark,
        template: false,
    };
    let conn = Arc::new(Conn::open(opening, p.now));
    if admit::is_one_packet(service, tuple) {
        return Some(admit::Admission::Once(conn));
    }
    Some(admit::enter(table, conn, own))
}

/// Is it somebody else's single address? Of IPv6 even our own will do.
fn is_elsewhere(target: IpAddr, own: &Own) -> bool {
    match target {
        IpAddr::V4(v4) => {
            let single = !v4.is_unspecified() && !v4.is_broadcast() && !v4.is_multicast();
            single && !v4.is_loopback() && !stack::is_ours(own, &target)
        }
        IpAddr::V6(v6) => !v6.is_unspecified() && !v6.is_loopback() && !v6.is_multicast(),
    }
}
