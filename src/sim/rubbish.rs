//! Frames that nobody should send, and some do: strays of no connection, packets that are cut, bent or
//! forged. They come from strangers, or pretend to be a client's.

use std::net::IpAddr;

use super::operator::{TARGETS, pick};
use super::packet::{self, TcpSegment};
use super::station::MARK;
use super::topology::{self, CLIENTS, DIRECTOR, GATEWAY, OWN, PRIVATE, PUBLIC, REALS, VIPS};
use crate::lvs::{Endpoint, Flow, Protocol};
use crate::rng::Rng;
use crate::wire::memory::MemoryFrame;
use crate::wire::{Mac, Offload};

/// A frame that arrives at a port, and what it is.
#[derive(Clone, Debug)]
pub struct Rubbish {
    pub port: usize,
    pub frame: MemoryFrame,
    pub name: &'static str,
}

/// TCP flags in every combination that means something, and some that do not.
const FLAGS: [u8; 10] = [0x02, 0x10, 0x04, 0x11, 0x01, 0x12, 0x14, 0x00, 0x3f, 0x29];

/// The next such frame. `live` is the flow of a client that talks right now.
pub fn frame(rng: &mut Rng, live: Option<Flow>, marks: bool) -> Rubbish {
    let (name, mut packet) = match rng.below(12) {
        0..4 => ("stray", stray(rng)),
        4 => match live {
            Some(flow) => ("forged", forged(rng, flow)),
            None => ("stray", stray(rng)),
        },
        5 => ("ping", ping(rng)),
        6 => ("ipsec", ipsec(rng)),
        7 => ("martian", martian(rng)),
        8 => return orphan(rng),
        9 => ("bent", bend(rng)),
        10 => ("options", with_options(rng)),
        _ => ("fragment", fragment(rng)),
    };
    if rng.chance(5) {
        let hops = rng.below(3) as u8;
        set_ttl(&mut packet, hops);
    }
    let target = match rng.below(30) {
        0 => Mac([2, 0, 0, 0, 9, 9]),
        1 => Mac::BROADCAST,
        _ => DIRECTOR[PUBLIC],
    };
    let mut bytes = packet::frame(target, GATEWAY, &packet);
    match rng.below(40) {
        0 => bytes[12] = 0x77,
        1 => bytes.truncate(rng.below(40) as usize),
        2 => drop(bytes.splice(12..12, [0x81, 0, 0, 7])),
        _ => {}
    }
    let to_second = matches!(VIPS[1], IpAddr::V4(vip) if packet.get(16..20) == Some(&vip.octets()));
    let mark = if marks && to_second { MARK } else { 0 };
    Rubbish {
        port: PUBLIC,
        frame: in_memory(bytes, mark),
        name,
    }
}

fn in_memory(bytes: Vec<u8>, mark: u32) -> MemoryFrame {
    MemoryFrame {
        bytes,
        offload: Offload::default(),
        mark,
    }
}

fn segment(rng: &mut Rng) -> TcpSegment {
    TcpSegment {
        flags: pick(rng, &FLAGS),
        // No talk has the number 0.
        seq: rng.below(1000) as u32,
        ack: rng.next_u64() as u32,
        data: vec![7; rng.below(20) as usize],
    }
}

/// A packet of no connection to something that may be served.
fn stray(rng: &mut Rng) -> Vec<u8> {
    let (protocol, to) = pick(rng, &TARGETS);
    let number = rng.next_u64();
    let from = topology::stranger(number)[usize::from(to.address.is_ipv6())];
    let from = Endpoint::new(from, 1000 + rng.below(50) as u16);
    packet_of(rng, protocol, from, to)
}

/// A packet that pretends to be of a client's connection.
fn forged(rng: &mut Rng, flow: Flow) -> Vec<u8> {
    packet_of(rng, flow.protocol, flow.source, flow.target)
}

fn packet_of(rng: &mut Rng, protocol: Protocol, from: Endpoint, to: Endpoint) -> Vec<u8> {
    match protocol {
        Protocol::TCP => packet::tcp(from, to, &segment(rng)),
        Protocol::SCTP => packet::sctp(from, to, 0, pick(rng, &[1, 6, 0, 10, 11, 14, 7, 2, 99])),
        _ => packet::udp(from, to, &[0; 8]),
    }
}

fn ping(rng: &mut Rng) -> Vec<u8> {
    let target = pick(
        rng,
        &[VIPS[0], VIPS[2], OWN[PUBLIC][0], OWN[PUBLIC][1], REALS[0]],
    );
    let from = topology::stranger(3)[usize::from(target.is_ipv6())];
    let kind = if target.is_ipv6() {
        128
    } else {
        pick(rng, &[8, 13, 0, 17])
    };
    packet::icmp(from, target, kind, 0, &[1; 28])
}

/// AH or ESP of a client that may have exchanged keys before.
fn ipsec(rng: &mut Rng) -> Vec<u8> {
    let protocol = Protocol(pick(rng, &[50, 51]));
    packet::ip(pick(rng, &CLIENTS[..5]), VIPS[0], protocol, &[9; 40])
}

/// From an address that nobody outside can have.
fn martian(rng: &mut Rng) -> Vec<u8> {
    let nobody: [IpAddr; 3] = [
        [127, 0, 0, 1].into(),
        [224, 0, 0, 1].into(),
        [0, 0, 0, 0].into(),
    ];
    let sources = [nobody[0], nobody[1], nobody[2], VIPS[0], OWN[PUBLIC][0]];
    let from = Endpoint::new(pick(rng, &sources), 1000);
    packet::tcp(from, Endpoint::new(VIPS[0], 80), &segment(rng))
}

/// A real server speaks though nobody asked it.
fn orphan(rng: &mut Rng) -> Rubbish {
    let real = Endpoint::new(pick(rng, &REALS), 80);
    let family = usize::from(real.address.is_ipv6());
    let to = Endpoint::new(topology::stranger(11)[family], 1 + rng.below(9) as u16);
    let packet = packet::tcp(real, to, &segment(rng));
    let bytes = packet::frame(DIRECTOR[PRIVATE], topology::mac_of(real.address), &packet);
    Rubbish {
        port: PRIVATE,
        frame: in_memory(bytes, 0),
        name: "orphan",
    }
}

/// A stray that was damaged: cut, stretched, with other bytes; often so that its header sum is right.
fn bend(rng: &mut Rng) -> Vec<u8> {
    let mut packet = stray(rng);
    let len = packet.len() as u64;
    match rng.below(4) {
        0 => packet.truncate(1 + rng.below(len) as usize),
        1 => packet.extend(vec![3; rng.below(60) as usize]),
        2 => {
            let length_at = if packet[0] >> 4 == 6 { 4 } else { 2 };
            packet[length_at] ^= 1 << rng.below(8);
        }
        // Behind the addresses, or a stranger would pass for somebody else.
        _ => {
            let first = if packet[0] >> 4 == 4 { 20 } else { 40 };
            let at = (first + rng.below(len - first)) as usize;
            packet[at] = rng.next_u64() as u8;
        }
    }
    if rng.chance(70) {
        packet::mend(&mut packet);
    }
    packet
}

/// IPv4 options: record route, timestamp, a source route, nonsense.
fn with_options(rng: &mut Rng) -> Vec<u8> {
    const OPTIONS: [[u8; 12]; 5] = [
        [7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [131, 7, 4, 1, 2, 3, 4, 0, 0, 0, 0, 0],
        [7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        [1; 12],
    ];
    let mut packet = stray(rng);
    if packet[0] >> 4 == 4 {
        let options = pick(rng, &OPTIONS);
        packet.splice(20..20, options);
        packet[0] += 3;
        let len = packet.len() as u16;
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        packet::mend(&mut packet);
    }
    packet
}

fn fragment(rng: &mut Rng) -> Vec<u8> {
    let mut packet = stray(rng);
    if packet[0] >> 4 == 4 {
        let word: u16 = pick(rng, &[0x2000, 0x2001, 0x0001]);
        packet[6..8].copy_from_slice(&word.to_be_bytes());
        packet::mend(&mut packet);
    } else {
        packet[6] = 44;
    }
    packet
}

fn set_ttl(packet: &mut [u8], hops: u8) {
    let at = if packet[0] >> 4 == 6 { 7 } else { 8 };
    if packet.len() > at {
        packet[at] = hops;
        packet::mend(packet);
    }
}
