//! LVS-TUN: the packet goes whole to its real server, in an envelope (`ip_vs_tunnel_xmit`).

use std::net::IpAddr;

use crate::lvs::{Tunnel, TunnelChecksum};
use crate::wire::Packet;
use crate::wire::encap::{Envelope, Outer, outer_len};

/// First and number of the source ports of GUE (`net.ipv4.ip_local_port_range`): they are spread by
/// flow, so that the routers on the way spread flows over their links.
const PORTS: (u16, u16) = (32_768, 28_232);

/// What an outer header says that its packet does not.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Our end.
    pub source: IpAddr,
    /// The real server.
    pub target: IpAddr,
    /// A fresh identification.
    pub ident: u16,
    /// Of both directions of the flow.
    pub hash: u64,
    /// Packets that may not be cut stay so in their envelope (`pmtu_disc`).
    pub keep_whole: bool,
}

/// What stands between the outer IP header and the packet. A checksum left to the other end
/// (`--tun-remcsum`) is done here: our packets leave with their own checksums finished, and the kernel
/// sends such a packet the same way.
pub fn envelope(tunnel: Tunnel) -> Envelope {
    match tunnel {
        Tunnel::Ipip => Envelope::Ipip,
        Tunnel::Gue { port, checksum } => Envelope::Gue {
            port,
            checksum: checksum != TunnelChecksum::No,
        },
        Tunnel::Gre { checksum } => Envelope::Gre {
            checksum: checksum != TunnelChecksum::No,
        },
    }
}

/// Bytes that a tunnel to `target` puts before each packet.
pub fn overhead(target: IpAddr, tunnel: Tunnel) -> u32 {
    outer_len(target, envelope(tunnel)) as u32
}

/// The outer header of a packet.
pub fn outer(packet: &Packet<'_>, tunnel: Tunnel, ends: Ends) -> Outer {
    let (first, count) = PORTS;
    let spread = (ends.hash >> 32) as u32 % u32::from(count);
    Outer {
        source: ends.source,
        target: ends.target,
        envelope: envelope(tunnel),
        dont_fragment: ends.keep_whole && packet.is_v4() && packet.dont_fragment(),
        ident: ends.ident,
        source_port: first + spread as u16,
    }
}
