//! Floor A: how a packet of a known connection is changed on its way. It cannot choose: the connection
//! says where to.

use std::net::IpAddr;

use crate::conn::{Conn, Direction};
use crate::lvs::ForwardMethod;
use crate::wire::Packet;

pub mod full;
pub mod icmp;
pub mod masq;
pub mod nat;
pub mod tunnel;

/// What became of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is ready to go to this address.
    Ready(IpAddr),
    /// It goes on as it is; the kernel routes it.
    Untouched,
    /// It goes to this address in an envelope (`tunnel`).
    Enclosed(IpAddr),
}

/// Rewrites a packet whose TTL was already seen to, by the connection's method and direction
/// (`cp->packet_xmit` towards the real server, `handle_response` towards the client).
#[inline]
pub fn apply(conn: &Conn, direction: Direction, packet: &mut Packet<'_>) -> Outcome {
    match (direction, conn.method()) {
        (Direction::Out, ForwardMethod::Masq) => nat::to_client(conn, packet),
        (Direction::Out, ForwardMethod::FullNat) => full::to_client(conn, packet),
        (Direction::Out, ForwardMethod::Masquerade) => masq::to_world(conn, packet),
        (Direction::Out, _) => Outcome::Untouched,
        (_, ForwardMethod::Masq) => nat::to_real(conn, packet),
        (_, ForwardMethod::FullNat) => full::to_real(conn, packet),
        (_, ForwardMethod::Masquerade) => masq::to_host(conn, packet),
        (_, ForwardMethod::Route) => Outcome::Ready(conn.real().address),
        (_, ForwardMethod::Local) => Outcome::Untouched,
        (_, ForwardMethod::Tunnel) => Outcome::Enclosed(conn.real().address),
        (_, ForwardMethod::Bypass) => Outcome::Ready(packet.target()),
    }
}
