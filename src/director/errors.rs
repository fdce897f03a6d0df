//! ICMP errors about connections (`ip_vs_in_icmp`, `ip_vs_out_icmp`).

use std::sync::Arc;

use super::admit::{self, Admission};
use super::lane::Own;
use super::probe::{Probe, Step};
use super::verdict::{DropReason, Verdict};
use super::{Director, Passage, local, masq, serve, stack, tunnel};
use crate::conn::{Conn, Direction};
use crate::forward::{self, Outcome};
use crate::lvs::tuple::Tuple;
use crate::lvs::{Endpoint, Flow, ForwardMethod, Protocol};
use crate::wire::icmp::{Echo, Quote};
use crate::wire::packet::Fragment;

impl Director {
    /// An ICMP error: if it quotes a packet of a connection, it follows that connection; else it is
    /// for our own stack, which has no use for it, or not ours.
    pub(super) fn relate_error<P: Probe>(
        &self,
        p: &mut Passage<'_, '_, P>,
        own: &mut Own,
    ) -> Verdict {
        let Some(quote) = p.packet.quote() else {
            return stack::answer(p, own);
        };
        if let Some(verdict) = self.relate_envelope(&quote, p, own) {
            return verdict;
        }
        let Some(tuple) = quoted_tuple(&quote, p) else {
            return match is_cut_off(&quote) && own.snapshot.tunables.schedule_icmp != 0 {
                true => Verdict::Drop(DropReason::Malformed),
                false => stack::answer(p, own),
            };
        };
        let found = self.table.find(&tuple).filter(|(conn, _)| !conn.is_gone());
        let found = found.or_else(|| {
            let may_open = tuple.protocol().is_balanced();
            may_open.then(|| self.admit_error(&tuple, p, own)).flatten()
        });
        let Some((conn, direction)) = found else {
            return stack::answer(p, own);
        };
        if P::ON {
            p.probe.step(Step::Found {
                conn: &conn,
                direction,
            });
        }
        follow(&conn, direction, &quote, p, own)
    }
}

impl Director {
    /// With `schedule_icmp` an error about a packet of a service, but of no connection, opens one.
    fn admit_error<P: Probe>(
        &self,
        tuple: &Tuple,
        p: &mut Passage<'_, '_, P>,
        own: &mut Own,
    ) -> Option<(Arc<Conn>, Direction)> {
        match admit::admit(&self.table, tuple, None, p, own) {
            Admission::Opened(conn) | Admission::Once(conn) => Some((conn, Direction::In)),
            _ => None,
        }
    }
}

/// Does it quote a packet that would be scheduled if its ports were there? What cannot be scheduled for
/// that is dropped. A later fragment never has any, and is nobody's.
fn is_cut_off(quote: &Quote) -> bool {
    let protocol = Protocol(quote.layout.protocol);
    let later = quote.layout.fragment == Fragment::Later;
    protocol.is_balanced() && !quote.layout.transport && !later
}

/// The tuple of a packet that would go where the error came from: the quoted one, turned round. It is
/// from the client if the VIP's packet is quoted, and from the real server if the client's is.
fn quoted_tuple<P: Probe>(quote: &Quote, p: &Passage<'_, '_, P>) -> Option<Tuple> {
    if let Some(echo) = p.packet.quoted_echo(quote) {
        // Turned round: as if it were the other half of the exchange.
        let is_request = !echo.is_request;
        let other = Echo { is_request, ..echo };
        return Some(masq::echo_tuple(other, quote.target, quote.source));
    }
    let protocol = Protocol(quote.layout.protocol);
    if !protocol.is_balanced() || !quote.has_ports() {
        return None;
    }
    let flow = Flow {
        protocol,
        source: Endpoint::new(quote.target, quote.target_port),
        target: Endpoint::new(quote.source, quote.source_port),
    };
    Some(flow.into())
}

fn follow<P: Probe>(
    conn: &Conn,
    direction: Direction,
    quote: &Quote,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let outward = direction == Direction::Out;
    if conn.method().is_nat() && !p.packet.icmp_sum_holds() {
        return Verdict::Drop(DropReason::IcmpChecksum);
    }
    if outward && !conn.method().is_nat() {
        return local::leave(p, own).unwrap_or(Verdict::Pass);
    }
    if !outward && conn.method() == ForwardMethod::Local {
        return local::hand_over(p, own).unwrap_or(Verdict::Pass);
    }
    if p.packet.has_options()
        && let Some(verdict) = stack::heed_options(conn, direction, p, own)
    {
        return verdict;
    }
    if outward {
        let way = match serve::way_back(conn, p, own) {
            Ok(way) => way,
            Err(verdict) => return verdict,
        };
        serve::count(conn, direction, p.packet.ip_len(), own.worker);
        rewrite(conn, direction, quote, p);
        let way = serve::reroute(way, p, own);
        return serve::send_on(way, p, own);
    }
    serve::count(conn, direction, p.packet.ip_len(), own.worker);
    let next = match conn.method() {
        _ if serve::is_local(conn) => {
            if conn.method().is_nat() {
                rewrite(conn, direction, quote, p);
            }
            return local::hand_over(p, own).unwrap_or(Verdict::Drop(DropReason::Unwanted));
        }
        ForwardMethod::Tunnel => return tunnel::carry(conn, p, own),
        ForwardMethod::Bypass => p.packet.target(),
        _ => conn.real().address,
    };
    let way = match serve::way_towards(conn, next, p, own) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    rewrite(conn, direction, quote, p);
    serve::send_on(way, p, own)
}

fn rewrite<P: Probe>(conn: &Conn, direction: Direction, quote: &Quote, p: &mut Passage<'_, '_, P>) {
    let outcome = forward::icmp::apply(conn, direction, quote, &mut p.packet);
    debug_assert!(matches!(outcome, Outcome::Ready(_)));
    p.say(|| "error rewritten like its connection".to_string());
}
