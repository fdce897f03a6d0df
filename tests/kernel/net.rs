//! The network of a case: which addresses it has (`net` in the head) and who has which MAC address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ulvs::director::snapshot::{Port, Side as PortSide};
use ulvs::wire::Mac;

use super::case::Side;

/// Real servers have the numbers 10 to this.
const SERVERS: std::ops::RangeInclusive<u8> = 10..=254;

/// Other machines on the client side have these.
const CLIENTS: std::ops::RangeInclusive<u8> = 2..=9;

/// The addresses of one network.
#[derive(Clone, Copy, Debug)]
pub struct Net {
    /// Has the director interfaces at all?
    wired: bool,
    /// First three octets of the client side, of the VIP and of the server side.
    client4: [u8; 3],
    vip4: [u8; 4],
    server4: [u8; 3],
    /// First two groups of the client side and of the server side; and the VIP's last group.
    client6: [u16; 2],
    vip6: u16,
    server6: [u16; 2],
}

impl Net {
    /// Do packets flow in it?
    pub fn is_wired(&self) -> bool {
        self.wired
    }

    /// The network of this name; `none` is that of a director to whom one only talks.
    pub fn named(name: &str) -> Option<Net> {
        match name {
            "g" | "none" => Some(Net {
                wired: name == "g",
                client4: [10, 0, 0],
                vip4: [10, 0, 0, 100],
                server4: [192, 168, 1],
                client6: [0xfd00, 0xc],
                vip6: 0x100,
                server6: [0xfd00, 0x5],
            }),
            "h" => Some(Net {
                wired: true,
                client4: [10, 9, 8],
                vip4: [10, 9, 8, 77],
                server4: [172, 20, 5],
                client6: [0xfd09, 0x8],
                vip6: 0x77,
                server6: [0xfd20, 0x5],
            }),
            _ => None,
        }
    }

    /// The VIP of IPv4, for cases that name none.
    pub fn vip(&self) -> IpAddr {
        self.vip4.into()
    }

    /// The two interfaces, in the order of `Side::BOTH`.
    pub fn ports(&self) -> Vec<Port> {
        if !self.wired {
            return Vec::new();
        }
        let client_net = (four(self.client4, 0), six(self.client6, 0));
        let server_net = (four(self.server4, 0), six(self.server6, 0));
        let gateway = (four(self.client4, 254), six(self.client6, 0xfe));
        let mut client = port(
            "cl0",
            PortSide::Public,
            director_mac(Side::Client),
            client_net,
        );
        client.addresses = vec![
            (four(self.client4, 1), 24),
            (self.vip4.into(), 32),
            // Of equals the kernel speaks from the one that was added last.
            (six(self.client6, self.vip6), 128),
            (six(self.client6, 1), 64),
        ];
        client.routes.extend([
            (Ipv4Addr::UNSPECIFIED.into(), 0, Some(gateway.0)),
            (Ipv6Addr::UNSPECIFIED.into(), 0, Some(gateway.1)),
        ]);
        client.neighbours = vec![(gateway.0, GATEWAY_MAC), (gateway.1, GATEWAY_MAC)];
        client.neighbours.extend(CLIENTS.flat_map(|n| {
            let addresses = [four(self.client4, n), six(self.client6, n.into())];
            addresses.map(|address| (address, Mac([2, 0, 0, 0, 0x0c, n])))
        }));
        let mut server = port(
            "rs0",
            PortSide::Private,
            director_mac(Side::Server),
            server_net,
        );
        server.addresses = vec![(four(self.server4, 1), 24), (six(self.server6, 1), 64)];
        server.neighbours = SERVERS
            .flat_map(|n| {
                let addresses = [four(self.server4, n), six(self.server6, n.into())];
                addresses.map(|address| (address, server_mac(n)))
            })
            .collect();
        vec![client, server]
    }

    /// The number of a real server, from its address: the last byte of its MAC address.
    pub fn server_number(&self, address: IpAddr) -> Option<u8> {
        match address {
            IpAddr::V4(address) => {
                let octets = address.octets();
                (octets[..3] == self.server4).then_some(octets[3])
            }
            IpAddr::V6(address) => {
                let groups = address.segments();
                let ours = groups[..2] == self.server6 && groups[2..7] == [0; 5];
                u8::try_from(groups[7]).ok().filter(|_| ours)
            }
        }
    }
}

/// The gateway of the client side, behind which all far clients are.
pub const GATEWAY_MAC: Mac = Mac([2, 0, 0, 0, 0x0c, 0xfe]);

/// The director's MAC address on a side.
pub fn director_mac(side: Side) -> Mac {
    match side {
        Side::Client => Mac([2, 0, 0, 0, 0x0c, 1]),
        Side::Server => Mac([2, 0, 0, 0, 5, 1]),
    }
}

/// The MAC address of real server `number`.
pub fn server_mac(number: u8) -> Mac {
    Mac([2, 0, 0, 0, 5, number])
}

fn four(net: [u8; 3], host: u8) -> IpAddr {
    IpAddr::from([net[0], net[1], net[2], host])
}

fn six(net: [u16; 2], host: u16) -> IpAddr {
    IpAddr::from([net[0], net[1], 0, 0, 0, 0, 0, host])
}

fn port(name: &str, side: PortSide, mac: Mac, on_link: (IpAddr, IpAddr)) -> Port {
    Port {
        name: name.into(),
        side,
        mac,
        mtu: 1500,
        raw_ip: false,
        kernel: false,
        held: Vec::new(),
        addresses: Vec::new(),
        routes: vec![(on_link.0, 24, None), (on_link.1, 64, None)],
        routes_from: Vec::new(),
        neighbours: Vec::new(),
    }
}
