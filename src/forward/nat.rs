//! LVS-NAT, both directions (`ip_vs_nat_xmit`, `handle_response`).

use super::Outcome;
use crate::conn::Conn;
use crate::wire::Packet;

/// Client to real server: VIP and its port become RIP and its port.
#[inline]
pub fn to_real(conn: &Conn, packet: &mut Packet<'_>) -> Outcome {
    let real = conn.real();
    packet.set_target(real.address, real.port);
    Outcome::Ready(real.address)
}

/// Real server to client: RIP and its port become VIP and its port.
#[inline]
pub fn to_client(conn: &Conn, packet: &mut Packet<'_>) -> Outcome {
    let virt = conn.virt();
    packet.set_source(virt.address, virt.port);
    Outcome::Ready(packet.target())
}
