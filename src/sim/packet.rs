//! Packets as toy hosts build and read them. The sums are made and checked by code of this file alone,
//! so that it can judge the sums of the director.

use std::net::IpAddr;

use crate::lvs::{Endpoint, Flow, Protocol};
use crate::wire::Mac;

const V4_HEADER: usize = 20;
const V6_HEADER: usize = 40;
const TTL: u8 = 64;

/// A TCP segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// Flags of the header.
    pub flags: u8,
    /// Number of its first byte.
    pub seq: u32,
    /// Number of the byte that is waited for.
    pub ack: u32,
    /// Its payload.
    pub data: Vec<u8>,
}

/// A packet as a host hears it: whole, and every sum right.
#[derive(Clone, Debug)]
pub struct Heard {
    /// Who sent it.
    pub source: IpAddr,
    /// Who shall have it.
    pub target: IpAddr,
    /// What lies behind the IP header.
    pub protocol: Protocol,
    /// Behind the IP header.
    pub body: Vec<u8>,
}

impl Heard {
    /// Reads an IP packet.
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn read(packet: &[u8]) -> Result<Heard, String> {
        let heard = read_header(packet)?;
        heard.check_sum()?;
        Ok(heard)
    }

    /// Who speaks to whom; ports are 0 where there are none.
    pub fn flow(&self) -> Flow {
        let ported = self.protocol.is_balanced() && self.body.len() >= 4;
        let port = |at: usize| if ported { be16(&self.body, at) } else { 0 };
        Flow {
            protocol: self.protocol,
            source: Endpoint::new(self.source, port(0)),
            target: Endpoint::new(self.target, port(2)),
        }
    }

    /// The TCP segment in it.
    pub fn tcp(&self) -> Option<TcpSegment> {
        let body = &self.body;
        if self.protocol != Protocol::TCP || body.len() < 20 {
            return None;
        }
        let data = body.get(usize::from(body[12] >> 4) * 4..)?;
        Some(TcpSegment {
            flags: body[13],
            seq: be32(body, 4),
            ack: be32(body, 8),
            data: data.to_vec(),
        })
    }

    /// The payload of a UDP datagram.
    pub fn udp(&self) -> Option<&[u8]> {
        (self.protocol == Protocol::UDP)
            .then(|| self.body.get(8..))
            .flatten()
    }

    /// Tag and type of the first chunk of an SCTP packet.
    pub fn sctp(&self) -> Option<(u32, u8)> {
        let whole = self.protocol == Protocol::SCTP && self.body.len() > 12;
        whole.then(|| (be32(&self.body, 4), self.body[12]))
    }

    /// What an ICMP error is about: the flow of the packet it quotes, and whether it says that nobody
    /// listens. `None` for all else.
    pub fn complaint(&self) -> Option<(Flow, bool)> {
        let v4 = self.protocol == Protocol::ICMP;
        let kind = *self.body.first()?;
        let code = *self.body.get(1)?;
        let error = if v4 {
            matches!(kind, 3 | 4 | 11 | 12)
        } else {
            self.protocol == Protocol::ICMPV6 && kind < 128
        };
        if !error {
            return None;
        }
        let nobody = (kind, code) == if v4 { (3, 3) } else { (1, 4) };
        Some((quoted_flow(self.body.get(8..)?)?, nobody))
    }

    fn check_sum(&self) -> Result<(), String> {
        let pseudo = pseudo_header(self.source, self.target, self.protocol, self.body.len());
        let right = match self.protocol {
            Protocol::TCP if self.body.len() >= 20 => sum_of(&[&pseudo, &self.body]) == 0,
            Protocol::UDP if self.body.len() >= 8 => {
                be16(&self.body, 6) == 0 && self.source.is_ipv4()
                    || sum_of(&[&pseudo, &self.body]) == 0
            }
            Protocol::SCTP if self.body.len() >= 12 => {
                crc32c(&self.body).to_le_bytes() == self.body[8..12]
            }
            Protocol::ICMP => sum_of(&[&self.body]) == 0,
            Protocol::ICMPV6 => sum_of(&[&pseudo, &self.body]) == 0,
            _ => true,
        };
        let (source, target, protocol) = (self.source, self.target, self.protocol);
        right
            .then_some(())
            .ok_or_else(|| format!("wrong {protocol} checksum, {source} > {target}"))
    }
}

fn read_header(packet: &[u8]) -> Result<Heard, String> {
    let (header, protocol, len) = match packet.first().map(|byte| byte >> 4) {
        Some(4) if packet.len() >= V4_HEADER => {
            let header = usize::from(packet[0] & 15) * 4;
            (header, packet[9], usize::from(be16(packet, 2)))
        }
        Some(6) if packet.len() >= V6_HEADER => {
            let len = V6_HEADER + usize::from(be16(packet, 4));
            (V6_HEADER, packet[6], len)
        }
        _ => return Err("no IP packet".to_string()),
    };
    if header < V4_HEADER || header > len || len != packet.len() {
        return Err("an IP packet with lengths that lie".to_string());
    }
    let (source, target) = addresses(packet);
    if source.is_ipv4() && sum_of(&[&packet[..header]]) != 0 {
        return Err(format!("wrong IP checksum, {source} > {target}"));
    }
    Ok(Heard {
        source,
        target,
        protocol: Protocol(protocol),
        body: packet[header..].to_vec(),
    })
}

/// The addresses of a packet of which at least the IP header is whole.
fn addresses(packet: &[u8]) -> (IpAddr, IpAddr) {
    if packet[0] >> 4 == 4 {
        let octets = |at: usize| -> [u8; 4] { packet[at..at + 4].try_into().expect("four bytes") };
        (octets(12).into(), octets(16).into())
    } else {
        let octets =
            |at: usize| -> [u8; 16] { packet[at..at + 16].try_into().expect("sixteen bytes") };
        (octets(8).into(), octets(24).into())
    }
}

fn quoted_flow(quote: &[u8]) -> Option<Flow> {
    let (header, protocol) = match quote.first()? >> 4 {
        4 if quote.len() >= V4_HEADER => (usize::from(quote[0] & 15) * 4, quote[9]),
        6 if quote.len() >= V6_HEADER => (V6_HEADER, quote[6]),
        _ => return None,
    };
    let ports = quote.get(header..header + 4)?;
    let (source, target) = addresses(quote);
    Some(Flow {
        protocol: Protocol(protocol),
        source: Endpoint::new(source, be16(ports, 0)),
        target: Endpoint::new(target, be16(ports, 2)),
    })
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A TCP segment in an IP packet.
pub fn tcp(from: Endpoint, to: Endpoint, segment: &TcpSegment) -> Vec<u8> {
    let mut body = ports(from, to);
    body.extend(segment.seq.to_be_bytes());
    body.extend(segment.ack.to_be_bytes());
    body.extend([0x50, segment.flags, 0x40, 0, 0, 0, 0, 0]);
    body.extend(&segment.data);
    put_sum(&mut body, 16, Protocol::TCP, from, to);
    ip(from.address, to.address, Protocol::TCP, &body)
}

/// A UDP datagram in an IP packet.
pub fn udp(from: Endpoint, to: Endpoint, data: &[u8]) -> Vec<u8> {
    let mut body = ports(from, to);
    body.extend((8 + data.len() as u16).to_be_bytes());
    body.extend([0, 0]);
    body.extend(data);
    put_sum(&mut body, 6, Protocol::UDP, from, to);
    ip(from.address, to.address, Protocol::UDP, &body)
}

/// An SCTP packet of one chunk in an IP packet.
pub fn sctp(from: Endpoint, to: Endpoint, tag: u32, chunk: u8) -> Vec<u8> {
    let mut body = ports(from, to);
    body.extend(tag.to_be_bytes());
    body.extend([0, 0, 0, 0, chunk, 0, 0, 8, 1, 2, 3, 4]);
    let crc = crc32c(&body);
    body[8..12].copy_from_slice(&crc.to_le_bytes());
    ip(from.address, to.address, Protocol::SCTP, &body)
}

/// An ICMP message of the family of `source`: type, code, and all behind the checksum.
pub fn icmp(source: IpAddr, target: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = vec![kind, code, 0, 0];
    body.extend(rest);
    let protocol = if source.is_ipv4() {
        Protocol::ICMP
    } else {
        Protocol::ICMPV6
    };
    let pseudo = match protocol {
        Protocol::ICMP => Vec::new(),
        _ => pseudo_header(source, target, protocol, body.len()),
    };
    let sum = sum_of(&[&pseudo, &body]);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ip(source, target, protocol, &body)
}

/// An ICMP error from `source` to whoever sent `quote`, the beginning of an IP packet.
pub fn complaint(source: IpAddr, kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let mut rest = vec![0, 0, 5, 0x78];
    rest.extend(&quote[..quote.len().min(V6_HEADER + 28)]);
    icmp(source, addresses(quote).0, kind, code, &rest)
}

/// An IP packet around `body`.
pub fn ip(source: IpAddr, target: IpAddr, protocol: Protocol, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(V6_HEADER + body.len());
    if source.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend(((V4_HEADER + body.len()) as u16).to_be_bytes());
        packet.extend([0x12, 0x34, 0x40, 0, TTL, protocol.0, 0, 0]);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([protocol.0, TTL]);
    }
    packet.extend(octets(source));
    packet.extend(octets(target));
    packet.extend(body);
    mend(&mut packet);
    packet
}

/// Makes the sum of an IPv4 header right again.
pub fn mend(packet: &mut [u8]) {
    let header = packet.first().map_or(0, |byte| usize::from(byte & 15) * 4);
    if packet.len() >= header && header >= V4_HEADER && packet[0] >> 4 == 4 {
        packet[10..12].fill(0);
        let sum = sum_of(&[&packet[..header]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// An IP packet in an Ethernet frame.
pub fn frame(to: Mac, from: Mac, packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = match packet.first().map(|byte| byte >> 4) {
        Some(6) => [0x86, 0xdd],
        _ => [0x08, 0x00],
    };
    [&to.0[..], &from.0, &kind, packet].concat()
}

/// The IP packet in an Ethernet frame; `None` for a frame of another kind.
pub fn packet_in(frame: &[u8]) -> Option<&[u8]> {
    let tagged = frame.get(12..14)? == [0x81, 0x00];
    let at = if tagged { 18 } else { 14 };
    let packet = frame.get(at..)?;
    match frame[at - 2..at] {
        [0x08, 0x00] => packet.get(..usize::from(be16(packet.get(2..4)?, 0))),
        [0x86, 0xdd] => packet.get(..V6_HEADER + usize::from(be16(packet.get(4..6)?, 0))),
        _ => None,
    }
}

fn ports(from: Endpoint, to: Endpoint) -> Vec<u8> {
    [from.port.to_be_bytes(), to.port.to_be_bytes()].concat()
}

fn put_sum(body: &mut [u8], at: usize, protocol: Protocol, from: Endpoint, to: Endpoint) {
    let pseudo = pseudo_header(from.address, to.address, protocol, body.len());
    let sum = match sum_of(&[&pseudo, body]) {
        0 if protocol == Protocol::UDP => 0xffff,
        sum => sum,
    };
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The pseudo-header of a transport checksum (RFC 9293 section 3.1, RFC 8200 section 8.1).
fn pseudo_header(source: IpAddr, target: IpAddr, protocol: Protocol, len: usize) -> Vec<u8> {
    let mut bytes = octets(source);
    bytes.extend(octets(target));
    bytes.extend((len as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol.0]);
    bytes
}

/// The Internet checksum (RFC 1071) over all parts, each of even length but the last; 0 over bytes that
/// carry a right one.
fn sum_of(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// CRC32c (RFC 9260 appendix A) over a packet whose checksum field counts as zero.
fn crc32c(packet: &[u8]) -> u32 {
    let mut crc = !0u32;
    for (at, byte) in packet.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&at) { 0 } else { *byte });
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::checksum;

    fn end(text: &str, port: u16) -> Endpoint {
        Endpoint::new(text.parse().expect("address"), port)
    }

    #[test]
    fn what_is_built_is_heard() {
        let segment = TcpSegment {
            flags: 0x18,
            seq: 7,
            ack: 9,
            data: b"hello".to_vec(),
        };
        for (from, to) in [("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")] {
            let (from, to) = (end(from, 1000), end(to, 80));
            let heard = Heard::read(&tcp(from, to, &segment)).expect("right sums");
            assert_eq!((heard.flow().source, heard.flow().target), (from, to));
            assert_eq!(heard.tcp(), Some(segment.clone()));
            let packet = udp(from, to, b"odd");
            assert_eq!(
                Heard::read(&packet).expect("right").udp(),
                Some(&b"odd"[..])
            );
            let heard = Heard::read(&sctp(from, to, 77, 1)).expect("right sums");
            assert_eq!(heard.sctp(), Some((77, 1)));
            let error = complaint(
                to.address,
                if from.address.is_ipv4() { 3 } else { 1 },
                3,
                &packet,
            );
            let (flow, nobody) = Heard::read(&error)
                .expect("right")
                .complaint()
                .expect("error");
            assert_eq!((flow.source, flow.target), (from, to));
            assert_eq!(nobody, from.address.is_ipv4());
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let packet = udp(end("10.0.0.1", 1), end("10.0.0.2", 2), b"payload");
        for at in 0..packet.len() * 8 {
            let mut wrong = packet.clone();
            wrong[at / 8] ^= 1 << (at % 8);
            assert!(Heard::read(&wrong).is_err(), "bit {at}");
        }
    }

    #[test]
    fn two_ways_to_the_same_crc() {
        let packet = sctp(end("10.0.0.1", 1), end("10.0.0.2", 2), 3, 4);
        assert_eq!(crc32c(&packet[20..]), checksum::sctp(&packet[20..]));
    }
}
