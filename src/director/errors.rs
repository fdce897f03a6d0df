//! ICMP errors about connections (`ip_vs_in_icmp`, `ip_vs_out_icmp`).

use std::sync::Arc;

use super::admit::{self, Admission};
use super::lane::Own;
use super::probe::{Probe, Step};
use super::verdict::{DropReason, Verdict};
use super::{Director, Passage, masq, serve, stack, tunnel};
use crate::conn::{Conn, Direction};
use crate::forward::{self, Outcome};
use crate::lvs::tuple::Tuple;
use crate::lvs::{Endpoint, Flow, ForwardMethod, Protocol};
use crate::wire::icmp::{Echo, Quote};

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
            return stack::answer(p, own);
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
    if conn.method().is_nat() && !p.packet.icmp_sum_holds() {
        return Verdict::Drop(DropReason::IcmpChecksum);
    }
    let next = match (direction, conn.method()) {
        (Direction::Out, ForwardMethod::FullNat) => conn.client().address,
        (Direction::Out, method) if method.is_nat() => p.packet.target(),
        (Direction::Out, _) | (_, ForwardMethod::Local) => return Verdict::Pass,
        (_, ForwardMethod::Bypass) => p.packet.target(),
        (_, ForwardMethod::FullNat | ForwardMethod::Masquerade) => conn.real().address,
        (_, ForwardMethod::Masq | ForwardMethod::Route | ForwardMethod::Tunnel) => {
            conn.real().address
        }
    };
    if p.packet.has_options()
        && let Some(verdict) = stack::heed_options(conn.virt().address, p, own)
    {
        return verdict;
    }
    serve::count(conn, direction, p.packet.ip_len(), own.worker);
    if conn.method() == ForwardMethod::Tunnel && direction != Direction::Out {
        return tunnel::carry(conn, p, own);
    }
    let Some((egress, next_hop)) = own.snapshot.route_to(next) else {
        return serve::no_route(direction, p, own);
    };
    let mtu = serve::mtu_towards(conn, direction, egress, p.now, own);
    if let Some(verdict) = serve::travel(direction, mtu, p, own) {
        return verdict;
    }
    let outcome = forward::icmp::apply(conn, direction, quote, &mut p.packet);
    debug_assert_eq!(outcome, Outcome::Ready(next));
    if P::ON {
        let text = format!("error rewritten like its connection, to {next}");
        p.probe.step(Step::Said(text));
    }
    serve::send_on(egress, next_hop, mtu, p, own)
}
