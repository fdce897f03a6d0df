//! An ICMP error about a connection follows the connection (`ip_vs_nat_icmp`).

use super::{Outcome, full};
use crate::conn::{Conn, Direction};
use crate::lvs::ForwardMethod;
use crate::wire::Packet;
use crate::wire::icmp::Quote;

/// Rewrites an error and the packet it quotes. From outside (`Direction::In`) it complains about what
/// the VIP sent: it goes to the real server, which sent it. From inside (`Direction::Out`) it
/// complains about what the client sent: it comes from the VIP, also if a router made it.
pub fn apply(conn: &Conn, direction: Direction, quote: &Quote, packet: &mut Packet<'_>) -> Outcome {
    match (direction, conn.method()) {
        (Direction::Out, ForwardMethod::FullNat) => full::error_to_client(conn, quote, packet),
        (_, ForwardMethod::FullNat) => full::error_to_real(conn, quote, packet),
        (Direction::Out, ForwardMethod::Masq | ForwardMethod::Masquerade) => {
            let virt = conn.virt();
            packet.set_icmp_source(virt.address);
            packet.set_quoted_target(quote, virt.address, virt.port);
            Outcome::Ready(packet.target())
        }
        (Direction::Out, _) => Outcome::Untouched,
        (_, ForwardMethod::Masq | ForwardMethod::Masquerade) => {
            let real = conn.real();
            packet.set_icmp_target(real.address);
            packet.set_quoted_source(quote, real.address, real.port);
            Outcome::Ready(real.address)
        }
        (_, ForwardMethod::Route) => Outcome::Ready(conn.real().address),
        (_, ForwardMethod::Local) => Outcome::Untouched,
        (_, ForwardMethod::Tunnel) => Outcome::Enclosed(conn.real().address),
        (_, ForwardMethod::Bypass) => Outcome::Ready(packet.target()),
    }
}
