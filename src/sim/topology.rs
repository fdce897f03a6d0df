//! The network of a run as data: who has which address and MAC address, and the director's ports.
//!
//! Clients are near (on the director's public link) or far (behind a gateway); real servers are on the
//! private link, where the director is their gateway. Both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::director::snapshot::{Port, Side};
use crate::wire::Mac;

/// Number of the director's port towards the clients.
pub const PUBLIC: usize = 0;
/// Number of the director's port towards the real servers.
pub const PRIVATE: usize = 1;

/// The director's MAC addresses, by port.
pub const DIRECTOR: [Mac; 2] = [Mac([2, 0, 0, 0, 0x0c, 1]), Mac([2, 0, 0, 0, 5, 1])];
/// The gateway's MAC address, which far clients are behind.
pub const GATEWAY: Mac = Mac([2, 0, 0, 0, 0x0c, 0xfe]);

const GATEWAY_V4: IpAddr = v4(10, 0, 0, 254);
const GATEWAY_V6: IpAddr = v6(0xc, 0xfe);

const fn v4(a: u8, b: u8, c: u8, d: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(a, b, c, d))
}

const fn v6(net: u16, host: u16) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, host))
}

/// Who asks: three near, two far, one near and one far with IPv6.
pub const CLIENTS: [IpAddr; 7] = [
    v4(10, 0, 0, 11),
    v4(10, 0, 0, 12),
    v4(10, 0, 0, 13),
    v4(172, 16, 3, 9),
    v4(172, 16, 3, 200),
    v6(0xc, 0x11),
    v6(0xfa, 0x9),
];

/// What they ask.
pub const VIPS: [IpAddr; 3] = [v4(10, 0, 0, 100), v4(10, 0, 0, 101), v6(0xc, 0x100)];

/// Who serves.
pub const REALS: [IpAddr; 8] = [
    v4(192, 168, 1, 11),
    v4(192, 168, 1, 12),
    v4(192, 168, 1, 13),
    v4(192, 168, 1, 14),
    v4(192, 168, 1, 15),
    v6(0x5, 0x11),
    v6(0x5, 0x12),
    v6(0x5, 0x13),
];

/// A router in front of the real servers that complains about their packets.
pub const INNER_ROUTER: IpAddr = v4(192, 168, 1, 99);

/// The director's own addresses by port and family.
pub const OWN: [[IpAddr; 2]; 2] = [
    [v4(10, 0, 0, 1), v6(0xc, 1)],
    [v4(192, 168, 1, 254), v6(0x5, 0xfe)],
];

/// Somebody on the other side of the gateway who follows no rules.
pub fn stranger(number: u64) -> [IpAddr; 2] {
    let number = (number % 200) as u8;
    [v4(198, 51, 100, number), v6(0xbad, number.into())]
}

/// May no client ever see it? Addresses of the private link.
pub fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.octets()[..3] == [192, 168, 1],
        IpAddr::V6(address) => address.segments()[..2] == [0xfd00, 0x5],
    }
}

/// The MAC address that frames for `address` go to on its link.
pub fn mac_of(address: IpAddr) -> Mac {
    let (side, last) = match address {
        IpAddr::V4(address) => {
            let [a, b, _, d] = address.octets();
            match (a, b) {
                (192, 168) => (5, d),
                (10, _) => (0x0c, d),
                _ => return GATEWAY,
            }
        }
        IpAddr::V6(address) => {
            let segments = address.segments();
            let last = segments[7] as u8 | 0x40;
            match segments[1] {
                0x5 => (5, last),
                0xc => (0x0c, last),
                _ => return GATEWAY,
            }
        }
    };
    if [GATEWAY_V4, GATEWAY_V6].contains(&address) {
        return GATEWAY;
    }
    Mac([2, 0, 0, 0, side, last])
}

/// Every machine on the links but the director: its IPv4 address, if it answers ARP, and its port.
pub fn stations() -> Vec<(Mac, Option<Ipv4Addr>, usize)> {
    let near = CLIENTS
        .into_iter()
        .filter(|client| mac_of(*client) != GATEWAY);
    let inside = REALS.into_iter().chain([INNER_ROUTER]);
    let public = near.chain([GATEWAY_V4]).map(|address| (address, PUBLIC));
    let private = inside.map(|address| (address, PRIVATE));
    let station = |(address, port): (IpAddr, usize)| {
        let v4 = match address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        };
        (mac_of(address), v4, port)
    };
    public.chain(private).map(station).collect()
}

/// The director's ports. Who speaks IPv6 need not be asked; everybody else answers ARP.
pub fn ports(mtus: [u32; 2]) -> Vec<Port> {
    let port = |name: &str, side, number: usize| {
        let [own_v4, own_v6] = OWN[number];
        Port {
            name: name.to_string(),
            side,
            mac: DIRECTOR[number],
            mtu: mtus[number],
            raw_ip: false,
            kernel: false,
            held: Vec::new(),
            addresses: vec![(own_v4, 24), (own_v6, 64)],
            routes: vec![(own_v4, 24, None), (own_v6, 64, None)],
            routes_from: Vec::new(),
            neighbours: Vec::new(),
        }
    };
    let mut public = port("pub0", Side::Public, PUBLIC);
    let mut private = port("prv0", Side::Private, PRIVATE);
    public.routes.extend([
        (v4(0, 0, 0, 0), 0, Some(GATEWAY_V4)),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0, Some(GATEWAY_V6)),
    ]);
    let known = |address: &IpAddr| address.is_ipv6();
    let with_mac = |address: IpAddr| (address, mac_of(address));
    let outside = CLIENTS.into_iter().chain([GATEWAY_V6]).filter(known);
    public.neighbours = outside.map(with_mac).collect();
    private.neighbours = REALS.into_iter().filter(known).map(with_mac).collect();
    vec![public, private]
}
