//! A real server that is the director itself (local node). The VIP is in no kernel and nobody can listen
//! behind it, so that the director answers in that server's name as a host on which nobody listens.

use std::net::IpAddr;

use super::lane::Own;
use super::probe::Probe;
use super::verdict::{DropReason, Verdict};
use super::{Passage, serve, stack};
use crate::conn::Conn;
use crate::lvs::{ForwardMethod, Protocol, Segment, TcpFlags};

/// The flags of the segment that answers where nobody listens: RST, ACK (RFC 9293 section 3.10.7.1).
const REFUSED: TcpFlags = TcpFlags(0x14);

/// A packet of a connection whose real server is the director.
pub(super) fn deliver<P: Probe>(conn: &Conn, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    if is_loopback(conn) {
        // Nobody outside may speak to a loopback address, LVS-NAT or not (`ip_vs_nat_xmit`).
        return Verdict::Drop(DropReason::Martian);
    }
    p.say(|| "its real server is the director, where nobody listens".to_string());
    let reset = conn.protocol() == Protocol::TCP;
    let verdict = stack::answer(p, own);
    if verdict == Verdict::Answered && reset {
        serve::answered(conn, Segment::Tcp(REFUSED), p.now, own);
    }
    verdict
}

/// Would the packet be rewritten to a loopback address?
fn is_loopback(conn: &Conn) -> bool {
    let loopback = match conn.real().address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(_) => false,
    };
    conn.method() == ForwardMethod::Masq && loopback
}
