//! The whole packet path in memory: a worker between two interfaces, a client and real servers played
//! by hand.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};

use super::snapshot::{Parts, Service};
use super::*;
use crate::lvs::{
    Endpoint, ForwardMethod, Limits, RealKey, RealLive, RealServer, ServiceKey, ServiceSpec, Stats,
    Thresholds, Timeouts, Tunables, Weight,
};
use crate::sched;
use crate::time::Duration;
use crate::wire::memory::{MemoryFrame, MemoryNic};
use crate::wire::{Mac, Offload};

const CLIENT: [u8; 4] = [172, 16, 3, 9];
const VIP: [u8; 4] = [10, 0, 0, 100];
const RIP: [u8; 4] = [192, 168, 1, 11];
const OUTSIDE: Mac = Mac([2, 0, 0, 0, 0x0c, 1]);
const INSIDE: Mac = Mac([2, 0, 0, 0, 5, 1]);
const GATEWAY: Mac = Mac([2, 0, 0, 0, 0x0c, 0xfe]);
const SERVER: Mac = Mac([2, 0, 0, 0, 5, 11]);

struct House {
    worker: Worker,
    outside: MemoryNic,
    inside: MemoryNic,
    table: Arc<ConnTable>,
    live: Arc<RealLive>,
    now: Instant,
}

fn port(name: &str, side: Side, mac: Mac, address: [u8; 4], gateway: Option<[u8; 4]>) -> Port {
    let net = [address[0], address[1], address[2], 0];
    let mut routes = vec![(IpAddr::from(net), 24, None)];
    routes.extend(gateway.map(|gateway| ([0, 0, 0, 0].into(), 0, Some(gateway.into()))));
    Port {
        name: name.into(),
        side,
        mac,
        mtu: 1500,
        raw_ip: false,
        kernel: false,
        held: Vec::new(),
        addresses: vec![(address.into(), 24)],
        routes,
        routes_from: vec![],
        neighbours: vec![],
    }
}

fn house(key: ServiceKey, real_port: u16, knows_macs: bool) -> House {
    house_with(key, real_port, knows_macs, |_| {})
}

fn house_with(
    key: ServiceKey,
    real_port: u16,
    knows_macs: bool,
    change: impl FnOnce(&mut Parts),
) -> House {
    house_as(key, real_port, knows_macs, change, |snapshot| snapshot)
}

fn house_as(
    key: ServiceKey,
    real_port: u16,
    knows_macs: bool,
    change: impl FnOnce(&mut Parts),
    finish: impl FnOnce(Snapshot) -> Snapshot,
) -> House {
    let now = Instant::ZERO + Duration::from_secs(1000);
    let table = Arc::new(ConnTable::new(1000, 7));
    let endpoint = Endpoint::new(RIP.into(), real_port);
    let live = Arc::new(RealLive::new(1, endpoint, 1));
    let reals = vec![RealServer {
        key: RealKey(endpoint),
        weight: Weight(1),
        last_weight: Weight(1),
        method: ForwardMethod::Masq,
        thresholds: Thresholds::default(),
        live: Arc::clone(&live),
    }];
    let scheduler = sched::by_name("rr", &reals).map(|rr| Arc::new(Mutex::new(rr)));
    let spec = ServiceSpec::new(key, "rr");
    let service = Service {
        spec,
        reals,
        scheduler,
    };
    let mut public = port(
        "cl0",
        Side::Public,
        OUTSIDE,
        [10, 0, 0, 1],
        Some([10, 0, 0, 254]),
    );
    let mut private = port("rs0", Side::Private, INSIDE, [192, 168, 1, 1], None);
    if knows_macs {
        public.neighbours = vec![([10, 0, 0, 254].into(), GATEWAY)];
        private.neighbours = vec![(RIP.into(), SERVER)];
    }
    let mut parts = Parts {
        id: SnapshotId(1),
        role: Role::Primary,
        services: vec![Arc::new(service)],
        ports: vec![public, private],
        tunables: Tunables::default(),
        timeouts: Timeouts::default(),
        limits: Limits::default(),
    };
    change(&mut parts);
    let snapshot = finish(Snapshot::new(parts));
    let (outside, inside) = (MemoryNic::new(false), MemoryNic::new(false));
    let setup = WorkerSetup {
        number: 0,
        table: Arc::clone(&table),
        neighbours: Arc::new(Neighbours::new(16)),
        snapshot: Arc::new(snapshot),
        ports: vec![outside.halves(), inside.halves()],
        seed: 1,
        story: true,
    };
    House {
        worker: Worker::new(setup, now),
        outside,
        inside,
        table,
        live,
        now,
    }
}

impl House {
    fn breathe(&mut self) {
        self.worker.breathe(self.now);
        assert!(
            self.worker.account().balances(),
            "{:?}",
            self.worker.account()
        );
    }

    fn outside_says(&mut self, frame: &[u8]) -> (Vec<MemoryFrame>, Vec<MemoryFrame>) {
        self.outside.put_bytes(frame);
        self.breathe();
        (self.outside.take(), self.inside.take())
    }

    fn inside_says(&mut self, frame: &[u8]) -> (Vec<MemoryFrame>, Vec<MemoryFrame>) {
        self.inside.put_bytes(frame);
        self.breathe();
        (self.outside.take(), self.inside.take())
    }
}

/// A whole TCP segment by etherparse, the independent builder.
fn tcp(to: (Mac, Mac), ips: ([u8; 4], [u8; 4]), ports: (u16, u16), flags: &str) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(to.1.0, to.0.0)
        .ipv4(ips.0, ips.1, 64)
        .tcp(ports.0, ports.1, 1000, 4096);
    let mut builder = if flags.contains('A') {
        builder.ack(7000)
    } else {
        builder
    };
    for flag in flags.chars() {
        builder = match flag {
            'S' => builder.syn(),
            'F' => builder.fin(),
            'R' => builder.rst(),
            _ => builder,
        };
    }
    let mut frame = Vec::new();
    builder
        .write(&mut frame, b"payload")
        .expect("a vector takes everything");
    frame
}

/// A whole TCP segment over IPv6 that opens a connection.
fn syn6(to: (Mac, Mac), ends: ((Ipv6Addr, u16), (Ipv6Addr, u16))) -> Vec<u8> {
    let (source, target) = ends;
    let builder = etherparse::PacketBuilder::ethernet2(to.1.0, to.0.0);
    let builder = builder.ipv6(source.0.octets(), target.0.octets(), 64);
    let builder = builder.tcp(source.1, target.1, 1000, 4096).syn();
    let mut frame = Vec::new();
    let written = builder.write(&mut frame, b"");
    written.expect("a vector takes everything");
    frame
}

/// A whole datagram over IPv6, without data.
fn udp6(to: (Mac, Mac), ends: ((Ipv6Addr, u16), (Ipv6Addr, u16))) -> Vec<u8> {
    let (source, target) = ends;
    let builder = etherparse::PacketBuilder::ethernet2(to.1.0, to.0.0);
    let builder = builder.ipv6(source.0.octets(), target.0.octets(), 64);
    let mut frame = Vec::new();
    let written = builder.udp(source.1, target.1).write(&mut frame, b"");
    written.expect("a vector takes everything");
    frame
}

/// A whole datagram.
fn udp(to: (Mac, Mac), ips: ([u8; 4], [u8; 4]), ports: (u16, u16), message: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(to.1.0, to.0.0).ipv4(ips.0, ips.1, 64);
    let mut frame = Vec::new();
    let written = builder.udp(ports.0, ports.1).write(&mut frame, message);
    written.expect("a vector takes everything");
    frame
}

/// A whole ICMP message: its header, of which the checksum is put in, and what follows.
fn icmp(to: (Mac, Mac), ips: ([u8; 4], [u8; 4]), header: [u8; 8], rest: &[u8]) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(to.1.0, to.0.0).ipv4(ips.0, ips.1, 64);
    let [kind, code, _, _, bytes5to8 @ ..] = header;
    let mut frame = Vec::new();
    let written = builder
        .icmpv4_raw(kind, code, bytes5to8)
        .write(&mut frame, rest);
    written.expect("a vector takes everything");
    frame
}

/// What an independent parser sees: addresses, ports and whether every checksum is right.
fn seen(frame: &[u8]) -> (Endpoint, Endpoint, u8) {
    let sliced = etherparse::SlicedPacket::from_ethernet(frame).expect("a good frame");
    let Some(etherparse::NetSlice::Ipv4(ip)) = sliced.net else {
        panic!("IPv4")
    };
    let header = ip.header();
    assert_eq!(
        header.to_header().calc_header_checksum(),
        header.header_checksum()
    );
    let Some(etherparse::TransportSlice::Tcp(tcp)) = sliced.transport else {
        panic!("TCP")
    };
    assert_eq!(
        tcp.calc_checksum_ipv4(header.source(), header.destination()),
        Ok(tcp.checksum())
    );
    let source = Endpoint::new(header.source().into(), tcp.source_port());
    let target = Endpoint::new(header.destination().into(), tcp.destination_port());
    (source, target, header.ttl())
}

fn web() -> ServiceKey {
    ServiceKey::tcp(VIP.into(), 80)
}

fn end(address: [u8; 4], port: u16) -> Endpoint {
    Endpoint::new(address.into(), port)
}

const IN: (Mac, Mac) = (OUTSIDE, GATEWAY);
const OUT: (Mac, Mac) = (INSIDE, SERVER);

#[test]
fn a_connection_goes_there_and_back() {
    let mut house = house(web(), 8080, true);
    let (out, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    assert!(out.is_empty());
    assert_eq!(
        seen(&inside[0].bytes),
        (end(CLIENT, 40000), end(RIP, 8080), 63)
    );
    assert_eq!(&inside[0].bytes[..12], [SERVER.0, INSIDE.0].concat());
    assert_eq!(
        (house.live.active.load(std::sync::atomic::Ordering::Relaxed)),
        1
    );
    let (out, inside) = house.inside_says(&tcp(OUT, (RIP, CLIENT), (8080, 40000), "SA"));
    assert!(inside.is_empty());
    assert_eq!(seen(&out[0].bytes), (end(VIP, 80), end(CLIENT, 40000), 63));
    assert_eq!(&out[0].bytes[..12], [GATEWAY.0, OUTSIDE.0].concat());
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "A"));
    let mut states = Vec::new();
    house.table.for_each(|conn| states.push(conn.state_name()));
    assert_eq!(states, ["ESTABLISHED"]);
    assert_eq!(Stats::sum(&house.live.stats), [1, 2, 1, 94, 47]);
}

#[test]
fn frames_wait_for_the_mac_and_then_leave() {
    let mut house = house(web(), 80, false);
    let (_, asked) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    assert_eq!(house.worker.account().held, 1);
    let layout = Layout::parse(&asked[0].bytes, false).expect("ARP");
    let mut bytes = asked[0].bytes.clone();
    let question =
        crate::wire::arp::Arp::read(&Packet::over(&mut bytes, layout, Offload::default()))
            .expect("a question");
    assert_eq!(
        (question.target, question.sender),
        (RIP.into(), [192, 168, 1, 1].into())
    );
    let mut answer = Vec::new();
    question.answered_by(SERVER).frame(&mut answer);
    let (_, inside) = house.inside_says(&answer);
    // What was learned in one breath frees the frame in the next.
    house.breathe();
    let inside = [inside, house.inside.take()].concat();
    assert_eq!(seen(&inside[0].bytes).1, end(RIP, 80));
    assert_eq!(&inside[0].bytes[..6], SERVER.0);
    assert_eq!(
        (
            house.worker.account().held,
            house.worker.account().forwarded
        ),
        (0, 1)
    );
}

#[test]
fn frames_without_a_mac_are_given_up_and_counted() {
    let mut house = house(web(), 80, false);
    for client in 0..100 {
        house
            .outside
            .put_bytes(&tcp(IN, (CLIENT, VIP), (40000 + client, 80), "S"));
    }
    house.breathe();
    house.breathe();
    assert_eq!(house.worker.account().held, 64);
    house.now += Duration::from_secs(4);
    house.breathe();
    assert_eq!(house.worker.account().held, 0);
    assert_eq!(
        house.worker.account().dropped_for(DropReason::NoNeighbour),
        100
    );
}

#[test]
fn everything_is_gone_after_its_timeout() {
    let mut house = house(web(), 80, true);
    for client in 0..500 {
        house
            .outside
            .put_bytes(&tcp(IN, (CLIENT, VIP), (20000 + client, 80), "S"));
    }
    for _ in 0..10 {
        house.breathe();
    }
    assert_eq!((house.table.len(), house.live.total()), (500, 500));
    house.now += Duration::from_secs(59);
    house.breathe();
    assert_eq!(house.table.len(), 500);
    house.now += Duration::from_millis(1200);
    house.breathe();
    assert_eq!((house.table.len(), house.live.total()), (0, 0));
}

#[test]
fn the_table_has_an_end_and_refusals_are_counted() {
    let mut house = house(web(), 80, true);
    for client in 0..1010 {
        house
            .outside
            .put_bytes(&tcp(IN, (CLIENT, VIP), (20000 + client, 80), "S"));
    }
    for _ in 0..20 {
        house.breathe();
    }
    assert_eq!((house.table.len(), house.live.total()), (1000, 1000));
    assert_eq!(
        house.worker.account().dropped_for(DropReason::TableFull),
        10
    );
    assert_eq!(house.table.refused(), 10);
}

#[test]
fn strays_are_reset_and_strangers_passed() {
    let mut house = house(web(), 80, true);
    let (out, _) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "A"));
    assert_eq!(seen(&out[0].bytes), (end(VIP, 80), end(CLIENT, 40000), 64));
    assert_eq!(house.worker.account().answered, 1);
    let (out, inside) = house.outside_says(&tcp(IN, (CLIENT, [9, 9, 9, 9]), (40000, 80), "S"));
    assert!(out.is_empty() && inside.is_empty());
    assert_eq!(house.worker.account().passed, 1);
}

#[test]
fn a_deleted_server_silences_its_connections_until_it_is_back() {
    use std::sync::atomic::Ordering::Relaxed;
    let mut house = house(web(), 80, true);
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    house.live.available.store(false, Relaxed);
    let (out, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "A"));
    assert!(out.is_empty() && inside.is_empty());
    assert_eq!(
        house
            .worker
            .account()
            .dropped_for(DropReason::RealServerGone),
        1
    );
    let (out, _) = house.inside_says(&tcp(OUT, (RIP, CLIENT), (80, 40000), "SA"));
    assert_eq!(out.len(), 1, "what the server still says goes out");
    house.live.available.store(true, Relaxed);
    let (_, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "A"));
    assert_eq!(inside.len(), 1);
}

#[test]
fn a_port_that_takes_nothing_costs_drops_not_lies() {
    let mut house = house(web(), 80, true);
    house.inside.set_refusing(true);
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    assert_eq!(house.worker.account().dropped_for(DropReason::TxRefused), 1);
    assert_eq!(house.worker.account().forwarded, 0);
}

#[test]
fn a_partial_checksum_stays_true() {
    let mut house = house(web(), 8080, true);
    let mut bytes = tcp(IN, (CLIENT, VIP), (40000, 80), "S");
    // As a sender on the same machine leaves it: the plain sum of the pseudo-header.
    let len = bytes.len() - 34;
    let pseudo = crate::wire::checksum::pseudo_header(CLIENT.into(), VIP.into(), 6, len).folded();
    bytes[50..52].copy_from_slice(&pseudo.to_be_bytes());
    let offload = Offload::partial(34, 16);
    house.outside.put(MemoryFrame {
        bytes,
        offload,
        mark: 0,
    });
    house.breathe();
    let frame = &house.inside.take()[0];
    assert!(frame.offload.is_partial());
    let field = u16::from_be_bytes([frame.bytes[50], frame.bytes[51]]);
    let wanted = crate::wire::checksum::pseudo_header(CLIENT.into(), RIP.into(), 6, len).folded();
    assert_eq!(field, wanted);
}

#[test]
fn the_first_connection_is_told() {
    let mut house = house(web(), 8080, true);
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40001, 80), "S"));
    house.inside_says(&tcp(OUT, (RIP, CLIENT), (8080, 40000), "SA"));
    house.worker.handle_order(Order::Audit(5), house.now);
    let Some(Report::Account {
        story, audit: 5, ..
    }) = house.worker.poll_report()
    else {
        panic!("an account")
    };
    let story = story.join("\n");
    let wanted = [
        "#1  0.000000  in cl0  172.16.3.9:40000 > 10.0.0.100:80 TCP S seq 1000 data 7, ttl 64",
        "    service   TCP 10.0.0.100:80 rr",
        "    pick      rr (each in turn)",
        "                begin at the head of the list",
        "              -> 192.168.1.11:8080, next in turn",
        "    entry     172.16.3.9:40000 > 10.0.0.100:80 > 192.168.1.11:8080, the client speaks",
        "    state     NONE -> SYN_RECV, expires in 60 s",
        "    forward   Masq: target 10.0.0.100:80 -> 192.168.1.11:8080, ttl 63, checksum adjusted",
        "    send      rs0 via 192.168.1.11 (02:00:00:00:05:0b)",
        "#2  0.000000  in rs0  192.168.1.11:8080 > 172.16.3.9:40000 TCP SA seq 1000 ack 7000",
        "    forward   Masq: source 192.168.1.11:8080 -> 10.0.0.100:80, ttl 63, checksum adjusted",
    ];
    let mut rest = story.as_str();
    for line in wanted {
        let at = rest
            .find(line)
            .unwrap_or_else(|| panic!("`{line}` is missing in\n{story}"));
        rest = &rest[at + line.len()..];
    }
    assert!(
        !story.contains("40001"),
        "only the first connection is told:\n{story}"
    );
}

#[test]
fn the_story_ends_even_if_the_connection_does_not() {
    let mut house = house(web(), 80, true);
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    for _ in 0..200 {
        for client in 0..60 {
            house
                .outside
                .put_bytes(&tcp(IN, (CLIENT, VIP), (50000 + client, 80), "S"));
        }
        house.breathe();
        house.breathe();
    }
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "A"));
    house.worker.handle_order(Order::Audit(1), house.now);
    let Some(Report::Account { story, .. }) = house.worker.poll_report() else {
        panic!("an account")
    };
    assert!(!story.is_empty() && !story.iter().any(|line| line.contains("ESTABLISHED")));
}

/// An ICMP error may open a one-packet entry (`schedule_icmp`): it lives for that error only.
#[test]
fn an_error_under_one_packet_scheduling_leaves_no_count() {
    let key = ServiceKey::udp(VIP.into(), 80);
    let mut house = house_with(key, 80, true, |parts| {
        parts.tunables.schedule_icmp = 1;
        let service = Arc::get_mut(&mut parts.services[0]).expect("nobody else has it");
        service.spec.flags = crate::lvs::ServiceFlags(crate::lvs::ServiceFlags::ONE_PACKET);
    });
    let mut quoted = Vec::new();
    etherparse::PacketBuilder::ipv4(VIP, CLIENT, 64)
        .udp(80, 40000)
        .write(&mut quoted, b"x")
        .expect("a vector takes everything");
    let mut frame = Vec::new();
    let unreachable = etherparse::Icmpv4Type::DestinationUnreachable(
        etherparse::icmpv4::DestUnreachableHeader::Port,
    );
    etherparse::PacketBuilder::ethernet2(IN.1.0, IN.0.0)
        .ipv4(CLIENT, VIP, 64)
        .icmpv4(unreachable)
        .write(&mut frame, &quoted)
        .expect("a vector takes everything");
    let (_, inside) = house.outside_says(&frame);
    assert_eq!(inside.len(), 1, "the error goes on to the real server");
    assert_eq!((house.table.len(), house.live.total()), (0, 0));
}

mod discovery_tests;
mod fragment_tests;
mod ftp_tests;
mod full_nat_tests;
mod local_tests;
mod mark_tests;
mod masq_tests;
mod odd_tests;
mod sip_tests;
mod tunnel_tests;
