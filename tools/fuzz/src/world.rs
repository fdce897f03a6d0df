//! The little world that inputs play in: one public and one private interface, a handful of clients,
//! VIPs and real servers, and the commands that an operator might give.

use std::net::IpAddr;

use ulvs::config::{Command, RealSpec};
use ulvs::director::snapshot::{Port, Side};
use ulvs::lvs::service::{Netmask, Persistence, ServiceFlags};
use ulvs::lvs::{
    Endpoint, Family, ForwardMethod, Masquerading, Protocol, RealKey, ServiceKey, ServiceSpec,
    SourcePool, Thresholds, Timeouts, Tunnel, TunnelChecksum, Weight,
};
use ulvs::wire::Mac;

use super::frames::{End, GUE_PORT};
use super::tape::Tape;

/// Index of the public port.
pub const PUBLIC: usize = 0;
/// Index of the private port.
pub const PRIVATE: usize = 1;
/// MAC addresses of the director, public port first.
pub const DIRECTOR_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0x0c, 1], [2, 0, 0, 0, 5, 1]];
/// MAC address of the gateway that far clients are behind.
pub const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0x0c, 0xfe];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Clients: near and far, both families.
pub fn clients() -> [IpAddr; 6] {
    [
        "1.2.3.10",
        "1.2.3.11",
        "9.9.9.9",
        "fd00:c::10",
        "2001:db8::9",
        "192.168.1.77",
    ]
    .map(ip)
}

/// Virtual addresses.
pub fn vips() -> [IpAddr; 3] {
    ["1.2.3.1", "1.2.3.4", "fd00:c::1"].map(ip)
}

/// Addresses of the director that are no VIPs.
pub fn own() -> [IpAddr; 4] {
    ["1.2.3.2", "192.168.1.254", "fd00:c::2", "fd00:5::fe"].map(ip)
}

/// Real servers. One of them and all machines with IPv6 are neighbours that need not be asked.
pub fn reals() -> [IpAddr; 5] {
    [
        "192.168.1.1",
        "192.168.1.2",
        "192.168.1.3",
        "fd00:5::1",
        "fd00:5::2",
    ]
    .map(ip)
}

/// The MAC address of a neighbour, made from its address.
pub fn mac_of(address: IpAddr) -> [u8; 6] {
    let last = match address {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15] | 0x40,
    };
    match address {
        _ if reals().contains(&address) => [2, 0, 0, 0, 5, last],
        _ if ["9.9.9.9", "2001:db8::9"].map(ip).contains(&address) => GATEWAY_MAC,
        _ => [2, 0, 0, 0, 0x0c, last],
    }
}

/// The director's interfaces.
pub fn ports(raw_ip: bool) -> Vec<Port> {
    let port = |name: &str, side, mac, [own4, own6]: [IpAddr; 2]| Port {
        name: name.to_string(),
        side,
        mac: Mac(mac),
        mtu: 1500,
        raw_ip,
        kernel: false,
        held: Vec::new(),
        addresses: vec![(own4, 24), (own6, 64)],
        routes: vec![(own4, 24, None), (own6, 64, None)],
        routes_from: Vec::new(),
        neighbours: Vec::new(),
    };
    let [public4, private4, public6, private6] = own();
    let mut public = port("pub0", Side::Public, DIRECTOR_MACS[0], [public4, public6]);
    public
        .routes
        .push((ip("0.0.0.0"), 0, Some(ip("1.2.3.254"))));
    public.routes.push((ip("::"), 0, Some(ip("fd00:c::fe"))));
    for gateway in ["1.2.3.254", "fd00:c::fe"].map(ip) {
        public.neighbours.push((gateway, Mac(GATEWAY_MAC)));
    }
    let client = clients()[3];
    public.neighbours.push((client, Mac(mac_of(client))));
    let mut private = port(
        "prv0",
        Side::Private,
        DIRECTOR_MACS[1],
        [private4, private6],
    );
    for real in [reals()[0], reals()[3], reals()[4]] {
        private.neighbours.push((real, Mac(mac_of(real))));
    }
    vec![public, private]
}

/// Services a run may have.
fn service_keys() -> [ServiceKey; 9] {
    let [vip, other, vip6] = vips();
    let at = |protocol, address, port| ServiceKey::Address {
        protocol,
        virt: Endpoint::new(address, port),
    };
    [
        at(Protocol::TCP, vip, 80),
        at(Protocol::UDP, vip, 53),
        at(Protocol::TCP, vip6, 80),
        at(Protocol::UDP, vip6, 53),
        at(Protocol::TCP, vip, 21),
        at(Protocol::TCP, other, 0),
        at(Protocol::SCTP, vip, 80),
        ServiceKey::Mark {
            mark: 1,
            family: Family::V4,
        },
        ServiceKey::Mark {
            mark: 1,
            family: Family::V6,
        },
    ]
}

/// Virtual endpoints that clients try: those of the services, and some nobody serves.
pub fn targets() -> [End; 9] {
    let [vip, other, vip6] = vips();
    [
        (vip, 80),
        (vip, 53),
        (vip6, 80),
        (vip6, 53),
        (vip, 21),
        (vip, 5000),
        (other, 1234),
        (own()[0], 80),
        // A machine of the private side that is nobody's real server.
        (ip("192.168.1.9"), 80),
    ]
}

/// What every run begins with: four services with all real servers of their family.
pub fn first_commands() -> Vec<Command> {
    let keys = service_keys();
    let mut commands = vec![pools(["1.2.3.7", "fd00:c::7"], (1024, 1031))];
    commands.push(Command::SetFtpPorts(vec![80]));
    for (key, scheduler) in keys[..4].iter().zip(["wlc", "rr", "wrr", "lc"]) {
        commands.push(Command::AddService(ServiceSpec::new(*key, scheduler)));
        for (index, address) in reals().into_iter().enumerate() {
            if Family::of(address) == key.family() {
                let port = if index == 1 { 8080 } else { key.port() };
                commands.push(Command::AddReal {
                    service: *key,
                    real: real(address, port, index as i32 % 2 + 1, ForwardMethod::Masq),
                });
            }
        }
    }
    commands
}

fn real(address: IpAddr, port: u16, weight: i32, method: ForwardMethod) -> RealSpec {
    RealSpec {
        key: RealKey(Endpoint::new(address, port)),
        weight: Weight(weight),
        method,
        tunnel: Default::default(),
        thresholds: Thresholds::default(),
    }
}

/// The machines inside speak as these addresses, the director itself as one more.
fn pools(public: [&str; 2], ports: (u16, u16)) -> Command {
    let prefixes = vec![(ip("192.168.1.0"), 24), (ip("fd00:5::"), 64)];
    let pool = |addresses: [&str; 2]| SourcePool {
        addresses: addresses.map(ip).to_vec(),
        ports,
    };
    Command::SetPools {
        masquerading: Masquerading {
            prefixes,
            pool: pool(public),
        },
        full_nat: pool(["192.168.1.250", "fd00:5::fa"]),
    }
}

/// A command, sensible or not.
pub fn command(tape: &mut Tape<'_>) -> Command {
    let service = tape.pick(&service_keys());
    match tape.below(16) {
        0..=1 => Command::AddService(service_spec(tape, service)),
        2 => Command::EditService(service_spec(tape, service)),
        3 => Command::DeleteService(service),
        4..=6 => Command::AddReal {
            service,
            real: any_real(tape, service),
        },
        7..=9 => Command::EditReal {
            service,
            real: any_real(tape, service),
        },
        10..=11 => Command::DeleteReal {
            service,
            real: any_real(tape, service).key,
        },
        12 => Command::Zero(tape.once_in(2).then_some(service)),
        13 => Command::SetTimeouts(Timeouts {
            tcp_s: u32::from(tape.byte()),
            tcp_fin_s: u32::from(tape.byte()),
            udp_s: u32::from(tape.byte()),
        }),
        14 => Command::SetTunable {
            name: tape.pick(&TUNABLES).to_string(),
            value: tape.below(4).to_string(),
        },
        _ => match tape.below(7) {
            0 => Command::Flush,
            1 => {
                let last = 1024 + u16::from(tape.byte() % 4);
                // Under a VIP, or one that nobody can have.
                let public = tape.pick(&[["1.2.3.1", "fd00:c::1"], ["224.0.0.1", "fd00:c::7"]]);
                pools(public, (1024, last))
            }
            3 => Command::SetFtpPorts(tape.pick(&[&[][..], &[21], &[80, 21], &[0]]).to_vec()),
            2 => Command::SetPools {
                masquerading: Masquerading::default(),
                full_nat: SourcePool::default(),
            },
            _ => Command::Batch((0..tape.below(4)).map(|_| command(tape)).collect()),
        },
    }
}

const TUNABLES: [&str; 8] = [
    "conn_reuse_mode",
    "expire_nodest_conn",
    "expire_quiescent_template",
    "sloppy_tcp",
    "sloppy_sctp",
    "nat_icmp_send",
    "schedule_icmp",
    "no_such_tunable",
];

const SCHEDULERS: [&str; 8] = ["rr", "wrr", "lc", "wlc", "none", "sh", "mh", "nonsense"];

fn service_spec(tape: &mut Tape<'_>, key: ServiceKey) -> ServiceSpec {
    let mut spec = ServiceSpec::new(key, tape.pick(&SCHEDULERS));
    spec.flags = ServiceFlags(u32::from(tape.byte() & 0x3c));
    if tape.once_in(4) {
        spec.persistence = Some(Persistence {
            timeout_s: u32::from(tape.byte()),
        });
        if let Netmask::V4(mask) = &mut spec.netmask {
            *mask = u32::MAX << (tape.byte() % 32);
        }
    }
    if tape.once_in(8) {
        spec.engine = Some("sip".to_string());
    }
    spec
}

fn any_real(tape: &mut Tape<'_>, service: ServiceKey) -> RealSpec {
    let family = service.family();
    let of_family: Vec<IpAddr> = reals()
        .into_iter()
        .filter(|a| Family::of(*a) == family)
        .collect();
    // Once in a while a real server of the other family, or an address of our own.
    let address = match tape.below(16) {
        0 => tape.pick(&reals()),
        1 => tape.pick(&own()),
        _ => tape.pick(&of_family),
    };
    let port = tape.pick(&[service.port(), service.port(), 8080, 0]);
    let method = match tape.below(9) {
        0 => ForwardMethod::Route,
        1 => ForwardMethod::Local,
        2 => ForwardMethod::Tunnel,
        3 => ForwardMethod::FullNat,
        _ => ForwardMethod::Masq,
    };
    let mut spec = real(address, port, i32::from(tape.byte() % 5) - 1, method);
    if method == ForwardMethod::Tunnel {
        spec.tunnel = any_tunnel(tape);
    }
    if tape.once_in(4) {
        spec.thresholds = Thresholds {
            upper: u32::from(tape.byte() % 8),
            lower: u32::from(tape.byte() % 8),
        };
    }
    spec
}

fn any_tunnel(tape: &mut Tape<'_>) -> Tunnel {
    use TunnelChecksum::{Full, No, Remote};
    match tape.below(3) {
        0 => Tunnel::Ipip,
        1 => Tunnel::Gre {
            checksum: tape.pick(&[No, Full]),
        },
        _ => Tunnel::Gue {
            port: GUE_PORT,
            checksum: tape.pick(&[No, Full, Remote]),
        },
    }
}
