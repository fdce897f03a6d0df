//! Masquerading: connections that hosts behind the director open themselves. Seen from outside such an
//! entry is like one of LVS-NAT: its client is the far end, its virtual end the public one, its real
//! end the host inside. Only an echo is special: the port is its identifier.

use super::{Outcome, nat};
use crate::conn::Conn;
use crate::lvs::Protocol;
use crate::wire::Packet;

/// Host to far end: it comes from the public end.
pub fn to_world(conn: &Conn, packet: &mut Packet<'_>) -> Outcome {
    if !is_echo(conn) {
        return nat::to_client(conn, packet);
    }
    let public = conn.virt();
    packet.set_icmp_source(public.address);
    packet.set_echo_ident(public.port);
    Outcome::Ready(packet.target())
}

/// Far end to host.
pub fn to_host(conn: &Conn, packet: &mut Packet<'_>) -> Outcome {
    if !is_echo(conn) {
        return nat::to_real(conn, packet);
    }
    let host = conn.real();
    packet.set_icmp_target(host.address);
    packet.set_echo_ident(host.port);
    Outcome::Ready(host.address)
}

fn is_echo(conn: &Conn) -> bool {
    matches!(conn.protocol(), Protocol::ICMP | Protocol::ICMPV6)
}
