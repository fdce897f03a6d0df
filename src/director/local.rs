//! A real server that is the director itself (local node). Where there is a port to this machine's own
//! kernel, its packets go there (`ip_vs_null_xmit`), and what the kernel answers leaves as the entry says.
//! Without one nobody can listen behind the VIP, and the director answers in that server's name as a host
//! on which nobody listens.

use std::sync::Arc;

use super::lane::Own;
use super::probe::Probe;
use super::snapshot::KERNEL_HOP;
use super::verdict::{DropReason, Verdict};
use super::{Passage, serve, stack};
use crate::conn::{Conn, Direction};
use crate::lvs::{Protocol, Segment, TcpFlags};
use crate::wire::answer::IcmpError;

/// The flags of the segment that answers where nobody listens: RST, ACK (RFC 9293 section 3.10.7.1).
const REFUSED: TcpFlags = TcpFlags(0x14);

/// The longest packet there is: what goes to the kernel crosses no link.
const PACKET_BYTES_MAX: u32 = 65_535;

/// A packet of a connection whose real server is the director.
pub(super) fn deliver<P: Probe>(
    conn: &Arc<Conn>,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let (nat, real) = (conn.method().is_nat(), conn.real());
    if nat && real.address.is_loopback() {
        // Nobody outside may be sent to a loopback address (`ip_vs_nat_xmit`).
        return Verdict::Drop(DropReason::Martian);
    }
    if own.snapshot.kernel_port().is_none() {
        return refuse(conn, p, own);
    }
    p.say(|| "its real server is the director".to_string());
    if nat && let Some(verdict) = serve::rewrite(conn, Direction::In, p, own) {
        return verdict;
    }
    hand_over(p, own).unwrap_or(Verdict::Drop(DropReason::Unwanted))
}

/// Gives the packet to this machine's own kernel as it is: it has travelled no hop. `None` where there is
/// no way to it.
pub(super) fn hand_over<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Option<Verdict> {
    let port = own.snapshot.kernel_port()?;
    let way = serve::way(port, KERNEL_HOP, PACKET_BYTES_MAX);
    Some(serve::send_on(way, p, own))
}

/// What this machine's own kernel says under an address of ours, and nothing changes: an answer to what
/// was handed over as it came, or a word to somebody who is no connection's client. `None` if it comes
/// from elsewhere.
#[cold]
pub(super) fn leave<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Option<Verdict> {
    if own.snapshot.kernel_port() != Some(p.ingress) {
        return None;
    }
    let (source, target) = (p.packet.source(), p.packet.target());
    let Some((egress, next_hop)) = own.snapshot.route_from(source, target) else {
        return Some(stack::complain(
            p,
            own,
            IcmpError::NoRoute,
            DropReason::NoRoute,
        ));
    };
    let mtu = own.snapshot.ports[egress].mtu;
    let may_be_cut = p.packet.is_v4() && !p.packet.dont_fragment();
    if p.packet.wire_len() > mtu as usize && !may_be_cut {
        let told = IcmpError::TooLong(mtu.min(u32::from(u16::MAX)) as u16);
        return Some(stack::complain(p, own, told, DropReason::TooLong));
    }
    Some(serve::send_on(serve::way(egress, next_hop, mtu), p, own))
}

/// Answers as a host on which nobody listens.
fn refuse<P: Probe>(conn: &Conn, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let (nat, real) = (conn.method().is_nat(), conn.real());
    p.say(|| "its real server is the director, where nobody listens".to_string());
    let before = own.outbox.frames().len();
    // What the server says is routed before it gets the VIP's address, and again afterwards only with
    // `snat_reroute`.
    let rerouted = !nat || own.snapshot.tunables.snat_reroute != 0;
    let speaker = match rerouted {
        true => p.packet.target(),
        false => real.address,
    };
    let verdict = if nat && conn.protocol() == Protocol::UDP {
        if p.packet.transport_sum_holds() {
            // The quotation is turned back afterwards, but for its checksum.
            p.packet.set_sum_of_target(real.address, real.port);
            let error = IcmpError::PortUnreachable;
            stack::complain_as(Some(speaker), p, own, error, DropReason::Unwanted)
        } else {
            Verdict::Drop(DropReason::Unwanted)
        }
    } else {
        stack::answer_as(speaker, p, own)
    };
    let said = serve::count_said(conn, before, p, own);
    // What it says to itself does not leave, but is said.
    let to_itself = stack::is_from_itself(p, own) && stack::expects_reset(&p.packet);
    if (said || to_itself) && conn.protocol() == Protocol::TCP {
        serve::answered(conn, Segment::Tcp(REFUSED), p.now, own);
    }
    verdict
}
