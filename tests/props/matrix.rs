//! Every forwarding method × families × protocol × what may happen to a packet, on a whole director in
//! memory: each cell is right, or refused with a reason that is written down here. The test prints it.

use std::net::IpAddr;

use ulvs::config::command::{Command, RealSpec};
use ulvs::config::{Refusal, Reply};
use ulvs::lvs::{
    Endpoint, ForwardMethod, Protocol, RealKey, ServiceKey, ServiceSpec, Thresholds, Tunnel,
    TunnelChecksum, Weight,
};

use crate::fuzz::drive::Run;
use crate::fuzz::tape::Tape;
use crate::fuzz::world::{PRIVATE, PUBLIC};
use crate::fuzz::{frames, guests, world};

/// The port clients ask for, and the one at which real servers by NAT listen.
const PORTS: (u16, u16) = (80, 8080);
const CLIENT_PORT: u16 = 1025;
/// Bytes of payload in a fragment: those of IPv6, with two headers, fit 1,500 bytes as well.
const FRAGMENT: usize = 1400;
/// The MTU of the way to the real servers where it is too small.
const SMALL_MTU: u32 = 1400;
/// Protocol numbers of what tunnels carry and are carried in.
const IPIP: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;

/// Why some cells are refused: ipvsadm refuses the configuration, as the kernel does.
const MIXED: &str = "refused: only a tunnel goes to a server of the other family";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Method {
    Masq,
    Dr,
    Ipip,
    Gue,
    Gre,
    FullNat,
    Local,
}

const METHODS: [Method; 7] = [
    Method::Masq,
    Method::Dr,
    Method::Ipip,
    Method::Gue,
    Method::Gre,
    Method::FullNat,
    Method::Local,
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Situation {
    Plain,
    Fragmented,
    ErrorBack,
    MtuTooSmall,
    Ttl1,
}

const SITUATIONS: [Situation; 5] = [
    Situation::Plain,
    Situation::Fragmented,
    Situation::ErrorBack,
    Situation::MtuTooSmall,
    Situation::Ttl1,
];

/// Client and virtual service, then real server: are they of IPv6?
const FAMILIES: [(bool, bool); 4] = [(false, false), (true, true), (false, true), (true, false)];

const PROTOCOLS: [Protocol; 3] = [Protocol::TCP, Protocol::UDP, Protocol::SCTP];

/// One column of the matrix for one row.
struct Cell {
    method: Method,
    families: (bool, bool),
    protocol: Protocol,
}

type Sent = Vec<(usize, Vec<u8>)>;

impl Method {
    fn is_tunnel(self) -> bool {
        matches!(self, Method::Ipip | Method::Gue | Method::Gre)
    }

    fn configured(self) -> (ForwardMethod, Tunnel) {
        let checksum = TunnelChecksum::No;
        let port = frames::GUE_PORT;
        match self {
            Method::Masq => (ForwardMethod::Masq, Tunnel::Ipip),
            Method::Dr | Method::Local => (ForwardMethod::Route, Tunnel::Ipip),
            Method::FullNat => (ForwardMethod::FullNat, Tunnel::Ipip),
            Method::Ipip => (ForwardMethod::Tunnel, Tunnel::Ipip),
            Method::Gue => (ForwardMethod::Tunnel, Tunnel::Gue { port, checksum }),
            Method::Gre => (ForwardMethod::Tunnel, Tunnel::Gre { checksum }),
        }
    }

    /// Bytes that a tunnel puts between the outer IP header and the packet.
    fn shell(self) -> usize {
        match self {
            Method::Gue => 8 + 4,
            Method::Gre => 4,
            _ => 0,
        }
    }
}

impl Cell {
    fn client(&self) -> IpAddr {
        world::clients()[if self.families.0 { 3 } else { 2 }]
    }

    fn vip(&self) -> IpAddr {
        world::vips()[if self.families.0 { 2 } else { 0 }]
    }

    fn rip(&self) -> IpAddr {
        match (self.method, self.families.1) {
            (Method::Local, v6) => world::own()[if v6 { 3 } else { 1 }],
            (_, v6) => world::reals()[if v6 { 3 } else { 0 }],
        }
    }

    /// A director with this one service and server; or why there is none.
    fn director(&self) -> Result<Run, Refusal> {
        let mut run = Run::new(&mut Tape::new(&[0, 0, 1]));
        let service = ServiceKey::Address {
            protocol: self.protocol,
            virt: Endpoint::new(self.vip(), PORTS.0),
        };
        let (method, tunnel) = self.method.configured();
        let port = match method.is_nat() {
            true => PORTS.1,
            false => PORTS.0,
        };
        let real = RealSpec {
            key: RealKey(Endpoint::new(self.rip(), port)),
            weight: Weight(1),
            method,
            thresholds: Thresholds::default(),
            tunnel,
        };
        for command in [
            Command::Flush,
            Command::AddService(ServiceSpec::new(service, "rr")),
            Command::AddReal { service, real },
        ] {
            match run.configure(command) {
                Reply::Done => {}
                Reply::Refused(refusal) => return Err(refusal),
                other => panic!("{other:?}"),
            }
        }
        Ok(run)
    }

    /// A packet that opens a connection, with so many bytes of payload.
    fn request(&self, payload: usize) -> Vec<u8> {
        let (from, to) = ((self.client(), CLIENT_PORT), (self.vip(), PORTS.0));
        let bytes: Vec<u8> = (0..payload).map(|at| at as u8).collect();
        match self.protocol {
            Protocol::TCP => frames::tcp(from, to, 0x02, &bytes),
            Protocol::UDP => frames::udp(from, to, &bytes),
            _ => frames::sctp_with(from, to, 1, &bytes),
        }
    }

    fn run(&self, situation: Situation) -> Result<String, String> {
        let mut run = match self.director() {
            Ok(run) => run,
            Err(Refusal::Invalid) if self.families.0 != self.families.1 => return Ok(MIXED.into()),
            Err(refusal) => return Err(format!("refused: {refusal}")),
        };
        match (situation, self.method) {
            (_, Method::Local) => self.local(situation, &mut run),
            (Situation::Plain, _) => self.plain(&mut run).map(|_| "ok".to_string()),
            (Situation::Fragmented, _) => self.fragmented(&mut run),
            (Situation::ErrorBack, _) => self.error_back(&mut run),
            (Situation::MtuTooSmall, _) => self.mtu_too_small(&mut run),
            (Situation::Ttl1, _) => self.ttl_1(&mut run),
        }
    }

    /// There and, where the director rewrites both ways, back. Returns what the server got.
    fn plain(&self, run: &mut Run) -> Result<Vec<u8>, String> {
        let request = self.request(20);
        let inside = only(PRIVATE, run.exchange(PUBLIC, &request))?;
        self.check_arrival(&request, &inside)?;
        if matches!(self.method, Method::Masq | Method::FullNat) {
            let (_, _, seen, _) = frames::read_ip(&inside).ok_or("no packet")?;
            let (from, to) = (source_port(&inside), (self.rip(), PORTS.1));
            let answer = match self.protocol {
                Protocol::TCP => frames::tcp(to, (seen, from), 0x12, b"answer"),
                Protocol::UDP => frames::udp(to, (seen, from), b"answer"),
                _ => frames::sctp(to, (seen, from), 2),
            };
            let outside = only(PUBLIC, run.exchange(PRIVATE, &answer))?;
            let (header, _, source, target) = frames::read_ip(&outside).ok_or("no packet")?;
            let ports = (word(&outside, header), word(&outside, header + 2));
            let expected = (self.vip(), self.client(), (PORTS.0, CLIENT_PORT));
            equal("the answer", (source, target, ports), expected)?;
        }
        Ok(inside)
    }

    fn fragmented(&self, run: &mut Run) -> Result<String, String> {
        let request = self.request(3000);
        let mut sent = Sent::new();
        for fragment in frames::fragments(&request, FRAGMENT, 7) {
            sent.extend(run.exchange(PUBLIC, &fragment));
        }
        let inside = only(PRIVATE, sent)?;
        self.check_arrival(&request, &inside)?;
        Ok("ok".into())
    }

    /// An error of the real server, or of a router on the way into the tunnel.
    fn error_back(&self, run: &mut Run) -> Result<String, String> {
        let inside = self.plain(run)?;
        let (_, _, seen, _) = frames::read_ip(&inside).ok_or("no packet")?;
        let unreachable = match self.rip().is_ipv4() {
            true => (3, 3),
            false => (1, 4),
        };
        let (kind, code) = match (self.method.is_tunnel(), self.rip().is_ipv4()) {
            (false, _) => unreachable,
            (true, true) => (3, 4),
            (true, false) => (2, 0),
        };
        let error = frames::icmp_error(self.rip(), seen, kind, code, &inside);
        let sent = run.exchange(PRIVATE, &error);
        if self.method == Method::Dr {
            equal("goes past the director", sent.len(), 0)?;
            return Ok("ok".into());
        }
        if self.method.is_tunnel() && self.families != (false, false) {
            // The kernel relays only what is about IPv4 in IPv4 (`ip_vs_in_icmp`).
            equal("for nobody", sent.len(), 0)?;
            return Ok("ok".into());
        }
        let outside = only(PUBLIC, sent)?;
        self.check_error(&outside, (kind, code))?;
        Ok("ok".into())
    }

    fn mtu_too_small(&self, run: &mut Run) -> Result<String, String> {
        run.set_mtu(PRIVATE, SMALL_MTU);
        let request = self.request(1420);
        let error = only(PUBLIC, run.exchange(PUBLIC, &request))?;
        let kinds = match self.families.0 {
            false => (3, 4),
            true => (2, 0),
        };
        let header = self.check_error(&error, kinds)?;
        let told = u32::from(word(&error, header + 6));
        let outer = match (self.method.is_tunnel(), self.families.1) {
            (false, _) => 0,
            (true, false) => 20,
            (true, true) => 40,
        };
        let fits = SMALL_MTU - outer - self.method.shell() as u32;
        equal("what fits", told, fits)?;
        Ok("ok".into())
    }

    fn ttl_1(&self, run: &mut Run) -> Result<String, String> {
        let mut request = self.request(20);
        let at = if self.families.0 { 7 } else { 8 };
        request[at] = 1;
        guests::repair_header(&mut request);
        let error = only(PUBLIC, run.exchange(PUBLIC, &request))?;
        let kinds = match self.families.0 {
            false => (11, 0),
            true => (3, 0),
        };
        self.check_error(&error, kinds)?;
        Ok("ok".into())
    }

    /// The director itself serves: nothing leaves towards the servers, and the client has its answer.
    fn local(&self, situation: Situation, run: &mut Run) -> Result<String, String> {
        let request = match situation {
            Situation::Fragmented => self.request(3000),
            Situation::MtuTooSmall => self.request(1420),
            _ => self.request(20),
        };
        run.set_mtu(PRIVATE, SMALL_MTU);
        let mut sent = Sent::new();
        match situation {
            Situation::Fragmented => {
                for fragment in frames::fragments(&request, FRAGMENT, 7) {
                    sent.extend(run.exchange(PUBLIC, &fragment));
                }
            }
            Situation::Ttl1 => {
                let mut request = request;
                request[if self.families.0 { 7 } else { 8 }] = 1;
                guests::repair_header(&mut request);
                sent = run.exchange(PUBLIC, &request);
            }
            _ => sent = run.exchange(PUBLIC, &request),
        }
        let answer = only(PUBLIC, sent)?;
        let (_, _, source, target) = frames::read_ip(&answer).ok_or("no packet")?;
        equal("the answer", (source, target), (self.vip(), self.client()))?;
        Ok("ok".into())
    }

    /// Did the real server get what its method promises?
    fn check_arrival(&self, request: &[u8], inside: &[u8]) -> Result<(), String> {
        let (client, vip, rip) = (self.client(), self.vip(), self.rip());
        let (header, protocol, source, target) = frames::read_ip(inside).ok_or("no packet")?;
        let pool = ["192.168.1.250", "fd00:5::fa"].map(|text| text.parse().expect("an address"));
        let local = pool[usize::from(self.families.1)];
        match self.method {
            Method::Masq | Method::FullNat => {
                let from = if self.method == Method::Masq {
                    client
                } else {
                    local
                };
                equal("who asks whom", (source, target), (from, rip))?;
                equal("the port", word(inside, header + 2), PORTS.1)?;
                equal("the hops", ttl(inside), 63)
            }
            Method::Dr => self.check_inner(request, inside, (client, vip)),
            Method::Ipip | Method::Gue | Method::Gre => {
                equal("the tunnel's end", target, rip)?;
                let own = world::own()[if self.families.1 { 3 } else { 1 }];
                equal("the tunnel's beginning", source, own)?;
                let inner = self.unwrap(protocol, &inside[header..])?;
                self.check_inner(request, inner, (client, vip))
            }
            Method::Local => Err("it left the director".into()),
        }
    }

    /// What a tunnel carries, by the numbers of the tunnel's own standard.
    fn unwrap<'a>(&self, protocol: u8, body: &'a [u8]) -> Result<&'a [u8], String> {
        let carried = if self.families.0 { IPV6 } else { IPIP };
        match self.method {
            Method::Gue => {
                equal("the outer protocol", protocol, frames::UDP)?;
                equal("the tunnel's port", word(body, 2), frames::GUE_PORT)?;
                equal("GUE, version 0, no options", body[8], 0)?;
                equal("what GUE carries", body[9], carried)?;
            }
            Method::Gre => {
                equal("the outer protocol", protocol, GRE)?;
                equal("GRE without options", word(body, 0), 0)?;
                let kind = match self.families.0 {
                    false => frames::ETHERTYPE_IPV4,
                    true => frames::ETHERTYPE_IPV6,
                };
                equal("what GRE carries", word(body, 2), kind)?;
            }
            _ => equal("the outer protocol", protocol, carried)?,
        }
        Ok(&body[self.method.shell()..])
    }

    /// The same packet, a hop on.
    fn check_inner(
        &self,
        request: &[u8],
        inner: &[u8],
        ends: (IpAddr, IpAddr),
    ) -> Result<(), String> {
        let (header, protocol, source, target) =
            frames::read_ip(inner).ok_or("no packet inside")?;
        let (before, was, ..) = frames::read_ip(request).ok_or("no request")?;
        equal("who asks whom", (source, target), ends)?;
        equal("the protocol", protocol, was)?;
        equal("the hops", ttl(inner), 63)?;
        let same = inner[header..] == request[before..];
        same.then_some(()).ok_or("the payload is another".into())
    }

    /// An ICMP error for the client, about what it sent. Returns where its ICMP header begins.
    fn check_error(&self, error: &[u8], kinds: (u8, u8)) -> Result<usize, String> {
        let (header, _, _, target) = frames::read_ip(error).ok_or("no packet")?;
        equal("who is told", target, self.client())?;
        equal("what", (error[header], error[header + 1]), kinds)?;
        let quoted = guests::quoted_ends(&error[header + 8..]);
        equal("about", quoted, Some((self.client(), self.vip())))?;
        Ok(header)
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), String> {
    match got == expected {
        true => Ok(()),
        false => Err(format!("{what}: {got:?}, not {expected:?}")),
    }
}

/// The one packet that left, if it left by this port.
fn only(port: usize, mut sent: Sent) -> Result<Vec<u8>, String> {
    match (sent.pop(), sent.len()) {
        (Some((by, packet)), 0) if by == port => Ok(packet),
        (last, more) => Err(format!(
            "not one packet by port {port}: {more} and {last:02x?}"
        )),
    }
}

fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn source_port(packet: &[u8]) -> u16 {
    let header = frames::read_ip(packet).map_or(0, |(header, ..)| header);
    word(packet, header)
}

fn ttl(packet: &[u8]) -> u8 {
    packet[if packet[0] >> 4 == 4 { 8 } else { 7 }]
}

fn family(v6: bool) -> &'static str {
    if v6 { "IPv6" } else { "IPv4" }
}

#[test]
fn every_method_with_everything() {
    let mut failures = Vec::new();
    println!(
        "{:<8} {:<13} {:<5} {SITUATIONS:?}",
        "method", "families", ""
    );
    for method in METHODS {
        for families in FAMILIES {
            for protocol in PROTOCOLS {
                let cell = Cell {
                    method,
                    families,
                    protocol,
                };
                let (client, server) = (family(families.0), family(families.1));
                let name = format!("{method:?}");
                let mut row = format!("{name:<8} {client} > {server}  {protocol:<5}");
                for situation in SITUATIONS {
                    match cell.run(situation) {
                        Ok(text) if text == MIXED => {
                            row += &format!(" {text}");
                            break;
                        }
                        Ok(text) => row += &format!(" {text}"),
                        Err(why) => {
                            row += " FAILS";
                            failures.push(format!("{row}: {situation:?}: {why}"));
                        }
                    }
                }
                println!("{row}");
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
