//! Full NAT, both directions: the client's end is rewritten too. It is an addition of ours; the kernel
//! has no such method.

use super::Outcome;
use crate::conn::Conn;
use crate::wire::Packet;
use crate::wire::icmp::Quote;

/// Client to real server: it comes from the local end, which the answer will find.
pub fn to_real(conn: &Conn, packet: &mut Packet<'_>) -> Outcome {
    let (real, local) = (conn.real(), conn.local());
    let local = local.expect("an entry of full NAT has a local end");
    packet.set_target(real.address, real.port);
    packet.set_source(local.address, local.port);
    Outcome::Ready(real.address)
}

/// Real server to client: it comes from the VIP and goes to the client.
pub fn to_client(conn: &Conn, packet: &mut Packet<'_>) -> Outcome {
    let (virt, client) = (conn.virt(), conn.client());
    packet.set_source(virt.address, virt.port);
    packet.set_target(client.address, client.port);
    Outcome::Ready(client.address)
}

/// An error about what the VIP sent: whoever made it, the real server hears of it from the local end,
/// since it need not know a way to anybody else.
pub fn error_to_real(conn: &Conn, quote: &Quote, packet: &mut Packet<'_>) -> Outcome {
    let (real, local) = (conn.real(), conn.local());
    let local = local.expect("an entry of full NAT has a local end");
    packet.set_icmp_source(local.address);
    packet.set_icmp_target(real.address);
    packet.set_quoted_source(quote, real.address, real.port);
    packet.set_quoted_target(quote, local.address, local.port);
    Outcome::Ready(real.address)
}

/// An error about what the client sent.
pub fn error_to_client(conn: &Conn, quote: &Quote, packet: &mut Packet<'_>) -> Outcome {
    let (virt, client) = (conn.virt(), conn.client());
    packet.set_icmp_source(virt.address);
    packet.set_icmp_target(client.address);
    packet.set_quoted_source(quote, client.address, client.port);
    packet.set_quoted_target(quote, virt.address, virt.port);
    Outcome::Ready(client.address)
}
