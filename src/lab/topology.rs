//! Topologies as data: who is there, on which segment, with which addresses and routes. Nothing is
//! made in here. The addresses are those of the old howto: VIP 1.2.3.1, private net 192.168.1.0/24,
//! floating gateway 192.168.1.254.

mod files;
mod measured;
mod others;
mod six;

pub use files::{FOLDER, SETTINGS_FILE};
pub use measured::Between;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// An address with the length of its network: `192.168.1.11/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// The address, with its host bits.
    pub address: IpAddr,
    /// How many leading bits name the network.
    pub length: u8,
}

impl Prefix {
    const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Prefix {
        Prefix {
            address: IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            length,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A network on one wire. With two interfaces it is a cable; with more, a bridge in between.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Segment {
    /// Its name, at most 11 bytes.
    pub name: String,
    /// The network, for the drawing.
    pub net: Prefix,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

/// An interface of a host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Its name in the host.
    pub name: String,
    /// The segment it is plugged into.
    pub segment: String,
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Addresses that the host's kernel owns.
    pub addresses: Vec<Prefix>,
}

/// A route of a host's kernel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Where to.
    pub to: Prefix,
    /// The next router.
    pub via: Option<IpAddr>,
    /// Out of which interface; the kernel finds it by `via` if it is left out.
    pub interface: Option<String>,
    /// Routing table; 254 is the main one.
    pub table: u32,
}

/// What a host's kernel knows beyond its interfaces.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Wiring {
    /// Routes.
    pub routes: Vec<Route>,
    /// What comes in by this interface is routed by this table (below 256).
    pub rules: Vec<(String, u8)>,
    /// Addresses of others for which the kernel answers ARP on this interface.
    pub proxies: Vec<(IpAddr, String)>,
}

/// What a host does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Sends requests.
    Client,
    /// Somebody outside whom real servers call on: serves pages, answers datagrams.
    World,
    /// Routes between wires.
    Router,
    /// Nobody's real server; what it sends must not pass.
    Stray,
    /// Spreads them.
    Director,
    /// Serves them, on the port of the service.
    RealServer {
        /// Share of new connections.
        weight: u32,
    },
}

/// A host: a network namespace, and what is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    /// Its name, at most 11 bytes.
    pub name: String,
    /// What it does.
    pub role: Role,
    /// Its interfaces; `lo` is always there.
    pub interfaces: Vec<Interface>,
    /// Files under `/proc/sys/net` and what they must say, set before the interfaces are made. A
    /// name that ends in `?` may be missing or refused.
    pub sysctls: Vec<(String, String)>,
    /// Routes from the beginning.
    pub wiring: Wiring,
    /// Routes that need an interface which the director makes: added once it is ready.
    pub late: Wiring,
}

impl Host {
    /// The host's first address.
    pub fn address(&self) -> Option<IpAddr> {
        let mut all = self.interfaces.iter().flat_map(|i| &i.addresses);
        all.next().map(|prefix| prefix.address)
    }
}

/// How the director's frames get to ulvs, if they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// AF_PACKET: ulvs sees the frames of eth0 and eth1, the kernel owns no address there.
    Frames,
    /// TUN: the kernel owns the addresses and routes VIP and replies into the device.
    Tun,
    /// No ulvs: the director's kernel routes. The baseline.
    Kernel,
}

/// A whole network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Topology {
    /// Its name.
    pub name: String,
    /// How the director works.
    pub path: Path,
    /// The virtual IP.
    pub vip: IpAddr,
    /// The floating gateway: the real servers' default route.
    pub gateway: Prefix,
    /// The director's own address on the public side.
    pub dip: Prefix,
    /// TCP port of the virtual service and of the real servers.
    pub port: u16,
    /// Forwarding method of all real servers, as in ulvs.toml.
    pub method: String,
    /// The director's ports, where ulvs reads frames.
    pub ports: Vec<Port>,
    /// Whose connections are masqueraded, and how they look outside.
    pub masquerade: Option<(Prefix, IpAddr)>,
    /// Local addresses of full NAT.
    pub pool: Vec<IpAddr>,
    /// Other virtual addresses of the same service.
    pub more_vips: Vec<IpAddr>,
    /// The program that real servers start for each connection, and its words; ours if there is none.
    pub server: Vec<String>,
    /// What the drawing cannot show, a line each.
    pub notes: Vec<String>,
    /// The wires.
    pub segments: Vec<Segment>,
    /// The hosts.
    pub hosts: Vec<Host>,
}

/// A port of the director.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Port {
    /// Its interface.
    pub interface: String,
    /// Clients come from here.
    pub public: bool,
    /// The address that ulvs itself owns there.
    pub address: Prefix,
    /// Routes by a gateway: where to, and by whom.
    pub routes: Vec<(Prefix, IpAddr)>,
}

impl Port {
    fn new(interface: &str, public: bool, address: Prefix) -> Port {
        Port {
            interface: interface.to_string(),
            public,
            address,
            routes: Vec::new(),
        }
    }
}

/// The VIP of the fifth seed.
pub const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(1, 2, 3, 1));
/// The TUN device of the director.
pub const TUN_NAME: &str = "ulvs0";
const GATEWAY: Prefix = Prefix::v4(192, 168, 1, 254, 24);
const DIP: Prefix = Prefix::v4(1, 2, 3, 2, 24);
const CLIENT: Prefix = Prefix::v4(1, 2, 3, 100, 24);
/// Somebody outside, for what real servers ask of the world.
const WORLD: Prefix = Prefix::v4(1, 2, 3, 53, 24);
/// Somebody inside whose address is in no masqueraded network.
const STRAY: Prefix = Prefix::v4(192, 168, 2, 66, 24);
/// Where full NAT speaks from.
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 1, 250));
const ANYWHERE: Prefix = Prefix::v4(0, 0, 0, 0, 0);
/// The table that holds one route: into the TUN device.
const TUN_TABLE: u8 = 100;
const TABLE_MAIN: u32 = 254;
const PORT: u16 = 80;
const MTU_BYTES: u32 = 1500;

impl Topology {
    /// The NAT example of the fifth seed: a client, a director, and three real servers of which rs1
    /// has weight 2.
    ///
    /// With [`Path::Tun`] the director's kernel does the ARP and the Ethernet:
    /// * ARP for the VIP is answered by proxy on eth0, at once;
    /// * the VIP is routed into the device; ulvs writes it back with a RIP as target, and the main
    ///   table sends it out of eth1;
    /// * what the real servers send comes in by eth1 and a rule sends it into the device, whatever
    ///   its target; ulvs writes it back with the VIP as source, and the main table sends it to the
    ///   client out of eth0. That rule does not catch what ulvs has written, since this comes in by
    ///   the device;
    /// * `rp_filter` is off: in the device all sources are on the wrong side.
    pub fn nat(path: Path) -> Topology {
        let segment = |name: &str, net: Prefix| Segment {
            name: name.to_string(),
            net,
            mtu: MTU_BYTES,
        };
        let mut hosts = vec![client(path), director(path)];
        for (number, weight) in [(1, 2), (2, 1), (3, 1)] {
            hosts.push(real_server(number, weight));
        }
        let ulvs = path != Path::Kernel;
        if ulvs {
            hosts.extend([world(), stray()]);
        }
        let mut public = Port::new("eth0", true, DIP);
        if ulvs {
            // Answers to addresses that nobody here has go there, and are heard by nobody.
            public.routes.push((ANYWHERE, WORLD.address));
        }
        let inside = Prefix::v4(192, 168, 1, 0, 24);
        let outward = [
            format!("world {} is one more host outside", WORLD.address),
            format!("stray {} is on the real servers' wire,", STRAY.address),
            format!("  but not in their network, which is masqueraded as {VIP}"),
        ];
        Topology {
            name: if path == Path::Kernel { "route" } else { "nat" }.to_string(),
            path,
            vip: VIP,
            gateway: GATEWAY,
            dip: DIP,
            port: PORT,
            method: "masq".to_string(),
            ports: vec![public, Port::new("eth1", false, GATEWAY)],
            masquerade: ulvs.then_some((inside, VIP)),
            pool: vec![],
            more_vips: vec![],
            server: vec![],
            notes: if ulvs { outward.to_vec() } else { vec![] },
            segments: vec![
                segment("out", Prefix::v4(1, 2, 3, 0, 24)),
                segment("in", Prefix::v4(192, 168, 1, 0, 24)),
            ],
            hosts,
        }
    }

    /// Full NAT: the same three real servers, but they know no way to the client at all, neither by the
    /// director nor by anybody else. What reaches them comes from an address on their own wire.
    ///
    /// With [`Path::Tun`] that address is one that the director's kernel answers for by proxy on eth1
    /// and routes into the device.
    pub fn full_nat(path: Path) -> Topology {
        let mut topology = Topology::nat(path);
        topology.name = "fnat".to_string();
        topology.method = "fnat".to_string();
        topology.masquerade = None;
        topology.pool = vec![LOCAL];
        topology.notes = vec![
            format!("the real servers have no route beyond their wire; they see {LOCAL},"),
            "  an address of the director there, and answer to it".to_string(),
        ];
        topology.leave_out_world();
        for host in &mut topology.hosts {
            match host.role {
                Role::RealServer { .. } => host.wiring = Wiring::default(),
                Role::Director if path == Path::Tun => {
                    // Nothing else of what real servers send is for the device.
                    host.late.rules.clear();
                    host.late.routes.retain(|route| route.table == TABLE_MAIN);
                    host.late.routes.push(into_tun(single(LOCAL), TABLE_MAIN));
                    host.late.proxies.push((LOCAL, "eth1".to_string()));
                }
                _ => {}
            }
        }
        topology
    }

    /// Nobody but client, director and real servers.
    fn leave_out_world(&mut self) {
        let gone = [Role::World, Role::Stray];
        self.hosts.retain(|host| !gone.contains(&host.role));
        for port in &mut self.ports {
            port.routes.retain(|(_, via)| *via != WORLD.address);
        }
    }

    /// The host of that name.
    pub fn host(&self, name: &str) -> Option<&Host> {
        self.hosts.iter().find(|host| host.name == name)
    }

    /// The real servers: name, address, weight.
    pub fn real_servers(&self) -> Vec<(&str, IpAddr, u32)> {
        let real = |host: &'_ Host| match host.role {
            Role::RealServer { weight } => host.address().map(|address| (address, weight)),
            _ => None,
        };
        let hosts = self.hosts.iter();
        hosts
            .filter_map(|host| real(host).map(|(a, w)| (host.name.as_str(), a, w)))
            .collect()
    }

    /// The network as a drawing, one line of text each.
    pub fn drawing(&self) -> Vec<String> {
        let mut lines = match self.method.as_str() {
            "masq" | "fnat" => self.boxes(),
            _ => self.wires(),
        };
        lines.extend(self.notes.iter().cloned());
        lines
    }

    /// Client and director as boxes, the real servers beside them.
    fn boxes(&self) -> Vec<String> {
        let reals = self.real_servers();
        let client = self.hosts.iter().find(|host| host.role == Role::Client);
        let client = client.and_then(Host::address);
        let client = client.map_or(String::new(), |address| address.to_string());
        let middle = match self.path {
            Path::Kernel => "the kernel routes".to_string(),
            Path::Frames | Path::Tun => format!("VIP {}", SocketAddr::new(self.vip, self.port)),
        };
        let gateway = format!("gateway {}", self.gateway.address);
        let left = ["client", client.as_str(), ""];
        let center = ["director", middle.as_str(), gateway.as_str()];
        let width = |lines: &[&str]| lines.iter().map(|line| line.len()).max().unwrap_or(0);
        let (left_width, center_width) = (width(&left), width(&center));
        let net = |name: &str| {
            let found = self.segments.iter().find(|segment| segment.name == name);
            found.map_or(String::new(), |segment| segment.net.to_string())
        };
        let (outside, inside) = (net("out"), net("in"));
        let wires = [format!("- {outside} -"), format!("- {inside} -")];
        let blank = wires.each_ref().map(|wire| " ".repeat(wire.len()));
        let rows = reals.len().max(3);
        // The boxes stand beside the middle row, so that the wires meet the middle real server.
        let first = (rows - 3) / 2;
        let frame = |inner: usize| format!("+{}+", "-".repeat(inner + 2));
        let mut lines = Vec::new();
        for row in 0..rows + 2 {
            let boxed = |lines: [&str; 3], width: usize| match row.checked_sub(first) {
                Some(0) | Some(4) => frame(width),
                Some(at @ 1..=3) => format!("| {:<width$} |", lines[at - 1]),
                _ => " ".repeat(width + 4),
            };
            let on_wire = row == first + 2;
            let wire = |side: usize| if on_wire { &wires[side] } else { &blank[side] };
            let real = row.checked_sub(1).and_then(|at| reals.get(at));
            let real = real.map_or(String::new(), |(name, address, weight)| {
                let joint = if on_wire { '+' } else { '|' };
                format!("{joint}- {name} {address} weight {weight}")
            });
            let line = format!(
                "{}{}{}{}{real}",
                boxed(left, left_width),
                wire(0),
                boxed(center, center_width),
                wire(1),
            );
            lines.push(line.trim_end().to_string());
        }
        lines
    }
}

fn client(path: Path) -> Host {
    let mut wiring = Wiring::default();
    if path == Path::Kernel {
        // Without ulvs the client must know the way to the real servers.
        wiring
            .routes
            .push(route(Prefix::v4(192, 168, 1, 0, 24), DIP));
    }
    Host {
        name: "client".to_string(),
        role: Role::Client,
        interfaces: vec![interface("eth0", "out", 0x64, vec![CLIENT])],
        sysctls: quiet(),
        wiring,
        late: Wiring::default(),
    }
}

fn director(path: Path) -> Host {
    let (outside, inside) = match path {
        Path::Frames => (vec![], vec![]),
        Path::Tun | Path::Kernel => (vec![DIP], vec![GATEWAY]),
    };
    let mut sysctls = quiet();
    let forward = if path == Path::Frames { "0" } else { "1" };
    sysctls.push(("ipv4/ip_forward".to_string(), forward.to_string()));
    let mut late = Wiring::default();
    if path == Path::Tun {
        for name in ["all", "default"] {
            let name = format!("ipv4/conf/{name}/rp_filter");
            sysctls.push((name, "0".to_string()));
        }
        late.routes.push(into_tun(single(VIP), TABLE_MAIN));
        late.routes.push(into_tun(ANYWHERE, u32::from(TUN_TABLE)));
        late.rules.push(("eth1".to_string(), TUN_TABLE));
        late.proxies.push((VIP, "eth0".to_string()));
    }
    Host {
        name: "director".to_string(),
        role: Role::Director,
        interfaces: vec![
            interface("eth0", "out", 0x02, outside),
            interface("eth1", "in", 0xfe, inside),
        ],
        sysctls,
        wiring: Wiring::default(),
        late,
    }
}

fn into_tun(to: Prefix, table: u32) -> Route {
    Route {
        to,
        via: None,
        interface: Some(TUN_NAME.to_string()),
        table,
    }
}

/// One address as a network.
const fn single(address: IpAddr) -> Prefix {
    let length = if address.is_ipv4() { 32 } else { 128 };
    Prefix { address, length }
}

fn plain_host(name: &str, role: Role, at: (&str, u8), address: Prefix) -> Host {
    Host {
        name: name.to_string(),
        role,
        interfaces: vec![interface("eth0", at.0, at.1, vec![address])],
        sysctls: quiet(),
        wiring: Wiring::default(),
        late: Wiring::default(),
    }
}

fn world() -> Host {
    plain_host("world", Role::World, ("out", 0x35), WORLD)
}

/// It knows the gateway as the real servers do, though its own address is of another network.
fn stray() -> Host {
    let mut host = plain_host("stray", Role::Stray, ("in", 0x42), STRAY);
    host.wiring.routes = vec![
        Route {
            to: single(GATEWAY.address),
            via: None,
            interface: Some("eth0".to_string()),
            table: TABLE_MAIN,
        },
        route(ANYWHERE, GATEWAY),
    ];
    host
}

fn real_server(number: u8, weight: u32) -> Host {
    let address = Prefix::v4(192, 168, 1, 10 + number, 24);
    Host {
        name: format!("rs{number}"),
        role: Role::RealServer { weight },
        interfaces: vec![interface("eth0", "in", 10 + number, vec![address])],
        sysctls: quiet(),
        wiring: Wiring {
            routes: vec![route(ANYWHERE, GATEWAY)],
            ..Wiring::default()
        },
        late: Wiring::default(),
    }
}

/// MAC addresses tell the segment and the last byte of the IP address: 02:00:00:00:in:0b.
fn interface(name: &str, segment: &str, last: u8, addresses: Vec<Prefix>) -> Interface {
    let side = if segment == "out" { 0x01 } else { 0x02 };
    Interface {
        name: name.to_string(),
        segment: segment.to_string(),
        mac: [2, 0, 0, 0, side, last],
        addresses,
    }
}

fn route(to: Prefix, via: Prefix) -> Route {
    Route {
        to,
        via: Some(via.address),
        interface: None,
        table: TABLE_MAIN,
    }
}

/// There is no IPv6 in these networks, so nobody, switch included, shall look for IPv6 routers.
pub fn quiet() -> Vec<(String, String)> {
    ["all", "default"]
        .map(|name| (format!("ipv6/conf/{name}/disable_ipv6?"), "1".to_string()))
        .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawing_shows_everybody_once() {
        let lines = Topology::nat(Path::Frames).drawing();
        let text = lines.join("\n");
        for word in [
            "client",
            "1.2.3.100",
            "VIP 1.2.3.1:80",
            "gateway 192.168.1.254",
            "rs1",
            "rs2",
            "rs3",
            "192.168.1.11 weight 2",
            "1.2.3.0/24",
            "192.168.1.0/24",
        ] {
            assert_eq!(text.matches(word).count(), 1, "{word} in\n{text}");
        }
        assert!(lines.iter().all(|line| line.len() <= 100), "{text}");
    }

    #[test]
    fn names_fit_and_macs_differ() {
        let all = [Path::Frames, Path::Tun, Path::Kernel].map(Topology::nat);
        let others = [Path::Frames, Path::Tun].map(Topology::full_nat);
        let past = [Topology::direct, Topology::tunnel].map(|make| make(Path::Frames));
        let everybody = all.into_iter().chain(others).chain(past);
        for topology in everybody.chain([Topology::six(), Topology::ftp("vsftpd")]) {
            let mut macs = Vec::new();
            for host in &topology.hosts {
                assert!(host.name.len() <= 11);
                for interface in host.interfaces.iter().filter(|at| at.name != "lo") {
                    assert!(!macs.contains(&interface.mac));
                    macs.push(interface.mac);
                    let known = |segment: &Segment| segment.name == interface.segment;
                    assert!(topology.segments.iter().any(known));
                }
            }
        }
    }

    #[test]
    fn the_kernel_owns_no_address_where_ulvs_reads_frames() {
        let topology = Topology::nat(Path::Frames);
        let director = topology.host("director").unwrap();
        assert!(director.interfaces.iter().all(|i| i.addresses.is_empty()));
    }
}
