//! The networks in which answers do not pass the director: direct routing, where all are on one wire,
//! and tunnels to real servers behind a router.

use super::*;

/// The router of the tunnels' network, on each of its three wires.
const ROUTER: [Prefix; 3] = [
    Prefix::v4(1, 2, 3, 254, 24),
    Prefix::v4(192, 168, 1, 253, 24),
    Prefix::v4(10, 8, 0, 1, 24),
];
/// The network of real servers behind it.
const FAR: Prefix = Prefix::v4(10, 8, 0, 0, 24);

impl Topology {
    /// Direct routing on one wire: client, director and real servers are neighbours. Each real server
    /// has the VIP on its loopback and keeps silent when somebody asks who has it, so all requests go
    /// to the director and all answers go straight to the client. `Path::Tun` is not for this: what
    /// changes is the MAC address, and a TUN device has none.
    pub fn direct(path: Path) -> Topology {
        let mut topology = Topology::nat(path);
        topology.name = "dr".to_string();
        topology.method = "route".to_string();
        topology.alone();
        topology.segments.truncate(1);
        topology.ports.truncate(1);
        for host in &mut topology.hosts {
            match host.role {
                Role::Director => host.interfaces.truncate(1),
                Role::RealServer { .. } => {
                    let number = host.interfaces[0].mac[5];
                    let address = Prefix::v4(1, 2, 3, number, 24);
                    host.interfaces = vec![
                        interface("eth0", "out", number, vec![address]),
                        loopback(VIP),
                    ];
                    host.wiring = Wiring::default();
                    // Linux's two switches for this (LVS HOWTO, "the ARP problem").
                    for (name, value) in [("arp_ignore", "1"), ("arp_announce", "2")] {
                        let name = format!("ipv4/conf/all/{name}");
                        host.sysctls.push((name, value.to_string()));
                    }
                }
                _ => {}
            }
        }
        topology.notes = vec![
            "requests: client > director > real server; answers: real server > client".to_string(),
        ];
        topology
    }

    /// Tunnels: real servers behind a router unwrap what reaches them, have the VIP on their loopback,
    /// and answer by their own router, which knows the client as its neighbour.
    pub fn tunnel(path: Path) -> Topology {
        let mut topology = Topology::nat(path);
        topology.name = "tun".to_string();
        topology.method = "tunnel".to_string();
        topology.alone();
        topology.segments.push(Segment {
            name: "far".to_string(),
            net: FAR,
            mtu: MTU_BYTES,
        });
        topology.ports[1].routes = vec![(FAR, ROUTER[1].address)];
        topology.hosts.insert(2, router());
        for host in &mut topology.hosts {
            if let Role::RealServer { .. } = host.role {
                let number = host.interfaces[0].mac[5];
                let address = Prefix::v4(10, 8, 0, number, 24);
                host.interfaces = vec![
                    interface("eth0", "far", number, vec![address]),
                    loopback(VIP),
                ];
                host.wiring.routes = vec![route(ANYWHERE, ROUTER[2])];
                // What comes out of the tunnel has a source that is elsewhere.
                host.sysctls.extend(no_reverse_path_filter());
            }
        }
        topology.notes = vec![
            "requests: client > director > router > real server, wrapped from the director on"
                .to_string(),
            "answers: real server > router > client".to_string(),
        ];
        topology
    }

    /// Nobody but client, director and real servers.
    pub(super) fn alone(&mut self) {
        self.masquerade = None;
        self.leave_out_world();
    }

    /// The wires, and who is on each.
    pub(super) fn wires(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let width = self.segments.iter().map(|wire| wire.net.to_string().len());
        let width = width.max().unwrap_or(0);
        for segment in &self.segments {
            let mut first = true;
            for host in &self.hosts {
                let here = |interface: &&Interface| interface.segment == segment.name;
                let Some(interface) = host.interfaces.iter().find(here) else {
                    continue;
                };
                let net = if first {
                    segment.net.to_string()
                } else {
                    String::new()
                };
                let (dash, joint) = if first { ('-', '+') } else { (' ', '|') };
                first = false;
                let who = self.on_wire(host, interface);
                lines.push(format!("{net:<width$} {dash}{joint}- {who}"));
            }
        }
        lines
    }

    /// How a host looks on a wire.
    fn on_wire(&self, host: &Host, interface: &Interface) -> String {
        let port = self
            .ports
            .iter()
            .find(|port| port.interface == interface.name);
        let address = match (host.role, port) {
            (Role::Director, Some(port)) => port.address.address.to_string(),
            _ => {
                let own = interface.addresses.first();
                own.map_or(String::new(), |own| own.address.to_string())
            }
        };
        let more = match host.role {
            Role::Director if port.is_some_and(|port| port.public) => {
                format!(", VIP {}", SocketAddr::new(self.vip, self.port))
            }
            Role::RealServer { weight } => format!(" weight {weight}, and the VIP"),
            _ => String::new(),
        };
        format!("{} {address}{more}", host.name)
    }
}

pub(super) fn loopback(address: IpAddr) -> Interface {
    Interface {
        name: "lo".to_string(),
        segment: String::new(),
        mac: [0; 6],
        addresses: vec![single(address)],
    }
}

pub(super) fn no_reverse_path_filter() -> [(String, String); 2] {
    ["all", "default"].map(|name| {
        let name = format!("ipv4/conf/{name}/rp_filter");
        (name, "0".to_string())
    })
}

fn router() -> Host {
    let at = ["out", "in", "far"].into_iter().zip(ROUTER).enumerate();
    let interfaces = at.map(|(number, (segment, address))| Interface {
        // The last byte of its addresses is another's on one of the wires.
        mac: [2, 0, 0, 0, 0x0f, number as u8],
        ..interface(&format!("eth{number}"), segment, 0, vec![address])
    });
    let mut sysctls = quiet();
    sysctls.push(("ipv4/ip_forward".to_string(), "1".to_string()));
    sysctls.extend(no_reverse_path_filter());
    Host {
        name: "router".to_string(),
        role: Role::Router,
        interfaces: interfaces.collect(),
        sysctls,
        wiring: Wiring::default(),
        late: Wiring::default(),
    }
}
