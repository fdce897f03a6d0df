//! A real server that is the director itself (local node). The VIP is in no kernel and nobody can listen
//! behind it, so that the director answers in that server's name as a host on which nobody listens.

use super::lane::Own;
use super::probe::Probe;
use super::verdict::{DropReason, Verdict};
use super::{Passage, serve, stack};
use crate::conn::Conn;
use crate::lvs::{Protocol, Segment, TcpFlags};
use crate::wire::answer::IcmpError;

/// The flags of the segment that answers where nobody listens: RST, ACK (RFC 9293 section 3.10.7.1).
const REFUSED: TcpFlags = TcpFlags(0x14);

/// A packet of a connection whose real server is the director.
pub(super) fn deliver<P: Probe>(conn: &Conn, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let (nat, real) = (conn.method().is_nat(), conn.real());
    if nat && real.address.is_loopback() {
        // Nobody outside may be sent to a loopback address (`ip_vs_nat_xmit`).
        return Verdict::Drop(DropReason::Martian);
    }
    p.say(|| "its real server is the director, where nobody listens".to_string());
    let before = own.outbox.frames().len();
    let verdict = if nat && conn.protocol() == Protocol::UDP {
        if p.packet.transport_sum_holds() {
            // The quotation is turned back afterwards, but for its checksum.
            p.packet.set_sum_of_target(real.address, real.port);
            stack::complain(p, own, IcmpError::PortUnreachable, DropReason::Unwanted)
        } else {
            Verdict::Drop(DropReason::Unwanted)
        }
    } else {
        stack::answer(p, own)
    };
    let said = serve::count_said(conn, before, p, own);
    if said && conn.protocol() == Protocol::TCP {
        serve::answered(conn, Segment::Tcp(REFUSED), p.now, own);
    }
    verdict
}
