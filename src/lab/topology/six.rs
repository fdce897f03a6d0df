//! The network of LVS-NAT once more, over IPv6: the same people at the same places.

use std::net::Ipv6Addr;

use super::*;

const fn v6(net: u16, last: u16, length: u8) -> Prefix {
    Prefix {
        address: IpAddr::V6(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, last)),
        length,
    }
}

/// The networks, and who is where: the last number is that of IPv4, read as hexadecimal digits.
const OUTSIDE: u16 = 0xc;
const INSIDE: u16 = 5;
const VIP6: IpAddr = v6(OUTSIDE, 1, 64).address;
const DIP6: Prefix = v6(OUTSIDE, 2, 64);
const GATEWAY6: Prefix = v6(INSIDE, 0x254, 64);
const NOWHERE: Prefix = Prefix {
    address: IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    length: 0,
};

impl Topology {
    /// LVS-NAT over IPv6. Neighbours are found by neighbour discovery, the director's answers included;
    /// nobody but the director's kernel is without IPv6, and that has no address anyway.
    pub fn six() -> Topology {
        let mut topology = Topology::nat(Path::Frames);
        topology.name = "v6".to_string();
        topology.vip = VIP6;
        topology.dip = DIP6;
        topology.gateway = GATEWAY6;
        let inside = v6(INSIDE, 0, 64);
        topology.masquerade = Some((inside, VIP6));
        topology.ports = vec![
            Port::new("eth0", true, DIP6),
            Port::new("eth1", false, GATEWAY6),
        ];
        topology.segments[0].net = v6(OUTSIDE, 0, 64);
        topology.segments[1].net = inside;
        for host in &mut topology.hosts {
            let (net, last) = match host.name.as_str() {
                "client" => (OUTSIDE, 0x100),
                "world" => (OUTSIDE, 0x53),
                "stray" => (INSIDE + 1, 0x66),
                "rs1" => (INSIDE, 0x11),
                "rs2" => (INSIDE, 0x12),
                "rs3" => (INSIDE, 0x13),
                _ => continue,
            };
            host.interfaces[0].addresses = vec![v6(net, last, 64)];
            host.sysctls = prompt();
            host.wiring.routes = match host.role {
                Role::Stray => vec![on_link(GATEWAY6), route(NOWHERE, GATEWAY6)],
                Role::RealServer { .. } => vec![route(NOWHERE, GATEWAY6)],
                _ => vec![],
            };
        }
        let (world, stray) = (v6(OUTSIDE, 0x53, 64), v6(INSIDE + 1, 0x66, 64));
        topology.notes = vec![
            format!("world {} is one more host outside", world.address),
            format!("stray {} is on the real servers' wire,", stray.address),
            format!("  but not in their network, which is masqueraded as {VIP6}"),
        ];
        topology
    }
}

fn on_link(neighbour: Prefix) -> Route {
    Route {
        to: single(neighbour.address),
        via: None,
        interface: Some("eth0".to_string()),
        table: TABLE_MAIN,
    }
}

/// IPv6 without a second of waiting for duplicates or routers.
fn prompt() -> Vec<(String, String)> {
    let mut all = Vec::new();
    for name in ["all", "default"] {
        for (what, value) in [
            ("disable_ipv6", "0"),
            ("accept_dad", "0"),
            ("dad_transmits", "0"),
            ("router_solicitations", "0"),
            ("accept_ra", "0"),
        ] {
            all.push((format!("ipv6/conf/{name}/{what}"), value.to_string()));
        }
    }
    all
}
