//! The lines, as people will read them; frames by etherparse's builder.

use etherparse::{EtherType, Ipv6FragmentHeader, PacketBuilder, VlanId};

use super::describe;
use crate::rng::Rng;
use crate::wire::Mac;
use crate::wire::arp::Arp;

const HERE: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THERE: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT: [u8; 4] = [172, 16, 3, 9];
const VIP: [u8; 4] = [1, 2, 3, 1];

macro_rules! frame {
    ($builder:expr, $payload:expr) => {{
        let mut bytes = Vec::new();
        let written = $builder.write(&mut bytes, $payload);
        written.expect("a vector takes everything");
        bytes
    }};
}

fn v4() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(HERE, THERE).ipv4(CLIENT, VIP, 64)
}

fn v6() -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    let (mut from, mut to) = ([0; 16], [0; 16]);
    (from[0], from[15], to[0], to[15]) = (0xfd, 9, 0xfd, 1);
    PacketBuilder::ethernet2(HERE, THERE).ipv6(from, to, 61)
}

#[test]
fn tcp_and_udp_tell_ends_flags_and_numbers() {
    let syn = frame!(v4().tcp(40000, 80, 1000, 64240).syn(), b"");
    let wanted = "172.16.3.9:40000 > 1.2.3.1:80 TCP S seq 1000 data 0, ttl 64, 40 bytes";
    assert_eq!(describe(&syn, false), wanted);
    assert_eq!(describe(&syn[14..], true), wanted);
    let data = frame!(v6().tcp(40000, 80, 1001, 64240).psh().ack(7), b"GET /");
    let wanted = "[fd00::9]:40000 > [fd00::1]:80 TCP PA seq 1001 ack 7 data 5, hop limit 61, \
                  65 bytes";
    assert_eq!(describe(&data, false), wanted);
    let none = frame!(v4().tcp(40000, 80, 1, 1), b"");
    assert!(describe(&none, false).contains("TCP - seq 1 data 0"));
    let udp = frame!(v4().udp(5353, 53), b"question");
    let wanted = "172.16.3.9:5353 > 1.2.3.1:53 UDP data 8, ttl 64, 36 bytes";
    assert_eq!(describe(&udp, false), wanted);
    // Ethernet pads short frames; the padding is no data.
    let padded = [syn, vec![0; 6]].concat();
    assert!(describe(&padded, false).ends_with("data 0, ttl 64, 40 bytes"));
}

#[test]
fn tags_are_told() {
    let tagged = PacketBuilder::ethernet2(HERE, THERE)
        .single_vlan(VlanId::try_new(7).expect("a number below 4096"))
        .ipv4(CLIENT, VIP, 64)
        .udp(1, 2);
    let line = describe(&frame!(tagged, b""), false);
    assert!(line.starts_with("VLAN 7 172.16.3.9:1 > 1.2.3.1:2 UDP data 0"));
}

#[test]
fn arp_asks_and_answers() {
    let text = |arp: Arp| {
        let mut bytes = Vec::new();
        arp.frame(&mut bytes);
        describe(&bytes, false)
    };
    let question = Arp::request(Mac(HERE), [1, 2, 3, 254].into(), VIP.into());
    assert_eq!(
        text(question),
        "ARP who has 1.2.3.1? tell 1.2.3.254 (02:00:00:00:00:01)"
    );
    assert_eq!(
        text(question.answered_by(Mac(THERE))),
        "ARP 1.2.3.1 is at 02:00:00:00:00:02"
    );
    assert_eq!(
        text(Arp::gratuitous(Mac(HERE), VIP.into())),
        "ARP 1.2.3.1 is at 02:00:00:00:00:01 (announced)"
    );
    let probe = Arp::request(Mac(HERE), [0; 4].into(), VIP.into());
    assert_eq!(
        text(probe),
        "ARP who has 1.2.3.1? asks 02:00:00:00:00:01, before it takes the address"
    );
}

#[test]
fn icmp_tells_what_it_is_about() {
    let echo = frame!(v4().icmpv4_echo_request(7, 2), b"0123456789");
    let wanted = "172.16.3.9 > 1.2.3.1 ICMP echo request id 7 seq 2 data 10, ttl 64, 38 bytes";
    assert_eq!(describe(&echo, false), wanted);
    let echo = frame!(v6().icmpv6_echo_reply(7, 2), b"");
    assert!(describe(&echo, false).contains("fd00::9 > fd00::1 ICMPv6 echo reply id 7 seq 2"));
    let about = frame!(v4().tcp(40000, 80, 1000, 1), b"payload");
    let error = |kind: u8, code: u8, word: [u8; 4]| {
        let quote = &about[14..14 + 28];
        describe(&frame!(v4().icmpv4_raw(kind, code, word), quote), false)
    };
    let told = ", about 172.16.3.9:40000 > 1.2.3.1:80 TCP";
    assert!(error(3, 3, [0; 4]).contains(&format!("ICMP port unreachable{told}")));
    assert!(error(3, 4, [0, 0, 5, 120]).contains(&format!("at most 1400 bytes fit{told}")));
    assert!(error(11, 0, [0; 4]).contains(&format!("time to live exceeded{told}")));
    let cut = frame!(v4().icmpv4_raw(3, 1, [0; 4]), &about[14..24]);
    assert!(describe(&cut, false).contains("host unreachable, about something that is cut off"));
    let too_long = frame!(v6().icmpv6_raw(2, 0, 1280u32.to_be_bytes()), &about[14..]);
    assert!(describe(&too_long, false).contains("ICMPv6 too long: at most 1280 bytes fit, about"));
}

#[test]
fn neighbour_discovery_asks_and_answers() {
    let mut target = [0; 16];
    (target[0], target[15]) = (0xfd, 0x11);
    let question = frame!(v6().icmpv6_raw(135, 0, [0; 4]), &target);
    assert!(describe(&question, false).contains("ICMPv6 who has fd00::11?"));
    let answer = [&target[..], &[2, 1], &HERE].concat();
    let answer = frame!(v6().icmpv6_raw(136, 0, [0x60, 0, 0, 0]), &answer);
    assert!(describe(&answer, false).contains("fd00::11 is at 02:00:00:00:00:01"));
}

/// A packet of a protocol that the builder does not know.
fn ip(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = frame!(v4().udp(0, 0), b"");
    bytes.truncate(34);
    bytes.extend_from_slice(payload);
    bytes[23] = protocol;
    let len = (20 + payload.len()) as u16;
    bytes[16..18].copy_from_slice(&len.to_be_bytes());
    bytes
}

#[test]
fn sctp_names_its_chunks() {
    let header = [0x9c, 0x40, 0x0b, 0xb8, 0, 0, 0, 1, 0, 0, 0, 0];
    let init = [&header[..], &[1, 0, 0, 20], &[0; 16]].concat();
    let line = describe(&ip(132, &init), false);
    assert!(line.starts_with("172.16.3.9:40000 > 1.2.3.1:3000 SCTP INIT, ttl 64"));
    // COOKIE ECHO of 5 bytes, padded to 8; then DATA; then two that are not told.
    let many = [10, 0, 0, 5, 9, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0, 4, 3, 0, 0, 4];
    let line = describe(&ip(132, &[&header[..], &many].concat()), false);
    assert!(
        line.contains("SCTP COOKIE ECHO, DATA, SACK, …, ttl"),
        "{line}"
    );
    assert!(describe(&ip(132, &header), false).contains("SCTP, ttl 64"));
}

/// Extension headers that are cut off, or whose length lies, are not read past their end.
#[test]
fn cut_off_extension_headers_are_told_as_such() {
    let whole = frame!(v6().udp(5000, 53), &[0; 24]);
    for first in [0, 43, 44, 60] {
        for second in [0, 43, 44, 51, 60] {
            let mut bytes = whole.clone();
            bytes[20] = first;
            // Eight bytes and whole; behind it one that says that it has 2,048.
            bytes[54..62].copy_from_slice(&[second, 0, 0, 0, 0, 0, 0, 0]);
            (bytes[62], bytes[63]) = (first, 255);
            for end in 54..=bytes.len() {
                let line = describe(&bytes[..end], false);
                assert!(line.starts_with("fd00::9 > fd00::1 "), "{first}: {line}");
            }
        }
    }
}

#[test]
fn fragments_tell_their_place() {
    let mut first = frame!(v4().udp(5000, 53), &[0; 24]);
    first[18..22].copy_from_slice(&[0, 77, 0x20, 0]);
    let line = describe(&first, false);
    assert!(
        line.starts_with(
            "172.16.3.9:5000 > 1.2.3.1:53 UDP fragment 0 to 32 of packet 77, the first"
        ),
        "{line}"
    );
    first[20..22].copy_from_slice(&[0, 4]);
    let line = describe(&first, false);
    assert!(
        line.starts_with("172.16.3.9 > 1.2.3.1 UDP fragment 32 to 64 of packet 77, the last"),
        "{line}"
    );
    let mut sixth = frame!(v6().udp(5000, 53), &[0; 24]);
    let header = Ipv6FragmentHeader::new(
        etherparse::IpNumber::UDP,
        etherparse::IpFragOffset::try_new(100).expect("small"),
        true,
        9,
    );
    sixth.splice(54..54, header.to_bytes());
    (sixth[20], sixth[19]) = (44, sixth[19] + 8);
    let line = describe(&sixth, false);
    assert!(
        line.contains("fragment 800 to 832 of packet 9, a middle one"),
        "{line}"
    );
}

#[test]
fn strangers_and_ruins_are_told_too() {
    let mut lldp = [&THERE[..], &HERE, &EtherType(0x88cc).0.to_be_bytes()].concat();
    lldp.resize(60, 0);
    let wanted = "LLDP from 02:00:00:00:00:01 to 02:00:00:00:00:02, 60 bytes";
    assert_eq!(describe(&lldp, false), wanted);
    lldp[12..14].copy_from_slice(&[0x12, 0x34]);
    assert!(describe(&lldp, false).starts_with("Ethernet type 0x1234 from"));
    let gre = ip(47, &[0; 8]);
    assert!(describe(&gre, false).starts_with("172.16.3.9 > 1.2.3.1 GRE, ttl 64"));
    assert_eq!(describe(&[1, 2, 3], false), "3 bytes that are no packet");
    assert_eq!(describe(&[], true), "0 bytes that are no packet");
    let syn = frame!(v4().tcp(40000, 80, 1000, 64240).syn(), b"");
    let line = describe(&syn[..44], false);
    assert!(
        line.starts_with("172.16.3.9:40000 > 1.2.3.1:80 TCP, ttl 64, 40 bytes; the TCP"),
        "{line}"
    );
    let line = describe(&syn[..20], false);
    assert!(line.contains("cut off or wrong"), "{line}");
}

#[test]
fn no_bytes_make_it_panic() {
    let mut rng = Rng::new(11);
    let mut seeds = vec![
        frame!(v4().tcp(1, 2, 3, 4).syn(), b"abc"),
        frame!(v6().udp(1, 2), b"abc"),
        frame!(v4().icmpv4_raw(3, 3, [0; 4]), &ip(17, &[0; 16])[14..]),
        frame!(v6().icmpv6_raw(135, 0, [0; 4]), &[0; 24]),
        ip(132, &[0; 40]),
    ];
    let mut arp = Vec::new();
    Arp::request(Mac(HERE), CLIENT.into(), VIP.into()).frame(&mut arp);
    seeds.push(arp);
    for round in 0..60_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..rng.below(6) {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] = rng.next_u64() as u8;
        }
        bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize);
        for raw_ip in [false, true] {
            let line = describe(&bytes, raw_ip);
            assert!(!line.is_empty() && !line.contains('\n'));
        }
    }
}
