//! Frames: built for stimuli that a case only names, and read for comparing and for people. Written
//! without the library's own parser and sums, so that a mistake there shows.

use std::fmt::Write;
use std::net::IpAddr;

use ulvs::lvs::{Endpoint, Protocol};
use ulvs::wire::{Mac, checksum};

/// TTL or hop limit of everything that clients and servers send.
const TTL: u8 = 64;
/// Sequence number, acknowledged number and window of every TCP segment.
const TCP_SEQ: u32 = 1000;
const TCP_ACK: u32 = 2000;
const TCP_WINDOW: u16 = 0xfaf0;

/// What a packet carries.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// A TCP segment without data; flags by letters, as in `SA`.
    Tcp(&'a str),
    /// A UDP datagram.
    Udp(&'a [u8]),
    /// An SCTP packet of one chunk of this type.
    Sctp(u8),
}

impl Payload<'_> {
    fn protocol(self) -> Protocol {
        match self {
            Payload::Tcp(_) => Protocol::TCP,
            Payload::Udp(_) => Protocol::UDP,
            Payload::Sctp(_) => Protocol::SCTP,
        }
    }
}

/// A whole frame from one machine to another.
pub fn build(macs: (Mac, Mac), from: Endpoint, to: Endpoint, payload: Payload<'_>) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(from.port.to_be_bytes());
    body.extend(to.port.to_be_bytes());
    let sum_at = match payload {
        Payload::Tcp(flags) => tcp(flags, &mut body),
        Payload::Udp(data) => udp(data, &mut body),
        Payload::Sctp(chunk) => sctp(chunk, &mut body),
    };
    let protocol = payload.protocol();
    if let Some(at) = sum_at {
        let sum = !folded(&[
            &pseudo_header(from.address, to.address, protocol, &body),
            &body,
        ]);
        let sum = if protocol == Protocol::UDP && sum == 0 {
            0xffff
        } else {
            sum
        };
        body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }
    let mut frame = [macs.1.0, macs.0.0].concat();
    frame.extend(ip_header(from.address, to.address, protocol, body.len()));
    frame.extend(body);
    frame
}

fn tcp(flags: &str, body: &mut Vec<u8>) -> Option<usize> {
    let bit = |letter: char| "FSRPAUEC".find(letter).map_or(0, |at| 1u8 << at);
    let bits = flags.chars().fold(0, |bits, letter| bits | bit(letter));
    let ack = if flags.contains('A') { TCP_ACK } else { 0 };
    body.extend(TCP_SEQ.to_be_bytes());
    body.extend(ack.to_be_bytes());
    body.extend([0x50, bits]);
    body.extend(TCP_WINDOW.to_be_bytes());
    body.extend([0; 4]);
    Some(16)
}

fn udp(data: &[u8], body: &mut Vec<u8>) -> Option<usize> {
    body.extend((8 + data.len() as u16).to_be_bytes());
    body.extend([0; 2]);
    body.extend(data);
    Some(6)
}

fn sctp(chunk: u8, body: &mut Vec<u8>) -> Option<usize> {
    // Tag and sum; then one chunk: type, flags, length, and what an INIT chunk would hold.
    body.extend([0; 8]);
    body.extend([chunk, 0, 0, 20]);
    body.extend([
        0x11, 0x22, 0x33, 0x44, 0, 0, 0x10, 0, 0, 10, 0, 10, 0, 0, 0, 1,
    ]);
    let sum = checksum::sctp(body);
    body[8..12].copy_from_slice(&sum.to_le_bytes());
    None
}

fn ip_header(from: IpAddr, to: IpAddr, protocol: Protocol, len: usize) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut header = vec![0x08, 0, 0x45, 0];
            header.extend((20 + len as u16).to_be_bytes());
            header.extend([0, 0, 0x40, 0, TTL, protocol.0, 0, 0]);
            header.extend(from.octets());
            header.extend(to.octets());
            let sum = !folded(&[&header[2..]]);
            header[12..14].copy_from_slice(&sum.to_be_bytes());
            header
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut header = vec![0x86, 0xdd, 0x60, 0, 0, 0];
            header.extend((len as u16).to_be_bytes());
            header.extend([protocol.0, TTL]);
            header.extend(from.octets());
            header.extend(to.octets());
            header
        }
        _ => panic!("{from} and {to} are of two families"),
    }
}

fn pseudo_header(from: IpAddr, to: IpAddr, protocol: Protocol, body: &[u8]) -> Vec<u8> {
    let mut header = Vec::new();
    for address in [from, to] {
        match address {
            IpAddr::V4(address) => header.extend(address.octets()),
            IpAddr::V6(address) => header.extend(address.octets()),
        }
    }
    header.extend([0, protocol.0]);
    header.extend((body.len() as u16).to_be_bytes());
    header
}

/// The same packet with so many more bytes behind it that it has this IP length. Its transport sum is
/// no longer right; IPVS does not look at it.
pub fn lengthened(frame: &[u8], ip_len: u16) -> Option<Vec<u8>> {
    let seen = Seen::of(frame).filter(|seen| seen.source.is_ipv4())?;
    let (header_len, whole) = (seen.l4 - L3, L3 + usize::from(ip_len));
    let mut frame = frame.to_vec();
    if frame.len() > whole {
        return None;
    }
    frame.resize(whole, 0);
    frame[L3 + 2..L3 + 4].copy_from_slice(&ip_len.to_be_bytes());
    frame[L3 + 10..L3 + 12].fill(0);
    let sum = !folded(&[&frame[L3..L3 + header_len]]);
    frame[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
    Some(frame)
}

/// The ones'-complement sum over parts of even length (but for the last) as 16-bit words (RFC 1071).
pub fn folded(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// What lies in a frame.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// The frame.
    pub frame: &'a [u8],
    /// Where the transport header begins.
    pub l4: usize,
    pub protocol: Protocol,
    pub source: IpAddr,
    pub target: IpAddr,
    pub ttl: u8,
    /// It is a fragment.
    pub fragment: bool,
}

/// Where the network header begins: tags do not occur.
const L3: usize = 14;

impl Seen<'_> {
    /// Reads a frame; `None` if it is not IP or not even its IP header is whole.
    pub fn of(frame: &[u8]) -> Option<Seen<'_>> {
        let ip = frame.get(L3..)?;
        match (frame[12], frame[13]) {
            (0x08, 0x00) => {
                let octets = |at: usize| -> Option<[u8; 4]> { ip.get(at..at + 4)?.try_into().ok() };
                Some(Seen {
                    frame,
                    l4: L3 + usize::from(ip[0] & 15) * 4,
                    protocol: Protocol(*ip.get(9)?),
                    source: octets(12)?.into(),
                    target: octets(16)?.into(),
                    ttl: ip[8],
                    fragment: ip[6] & 0x3f != 0 || ip[7] != 0,
                })
            }
            (0x86, 0xdd) => {
                let octets =
                    |at: usize| -> Option<[u8; 16]> { ip.get(at..at + 16)?.try_into().ok() };
                let (source, target) = (octets(8)?.into(), octets(24)?.into());
                let (mut next, mut at, mut fragment) = (ip[6], 40, false);
                // Hop-by-hop, routing, fragment and destination headers (RFC 8200 section 4).
                while matches!(next, 0 | 43 | 44 | 60) && !fragment {
                    fragment = next == 44;
                    let len = if fragment { 0 } else { *ip.get(at + 1)? };
                    (next, at) = (*ip.get(at)?, at + 8 + usize::from(len) * 8);
                }
                Some(Seen {
                    frame,
                    l4: L3 + at,
                    protocol: Protocol(next),
                    source,
                    target,
                    ttl: ip[7],
                    fragment,
                })
            }
            _ => None,
        }
    }

    /// Source and target port; 0 where there are none.
    pub fn ports(&self) -> (u16, u16) {
        let port = |at: usize| match self.frame.get(at..at + 2) {
            Some(bytes) if self.protocol.is_balanced() => u16::from_be_bytes([bytes[0], bytes[1]]),
            _ => 0,
        };
        (port(self.l4), port(self.l4 + 2))
    }

    /// Type and code of an ICMP message of either family.
    pub fn icmp(&self) -> Option<(u8, u8)> {
        let icmp = matches!(self.protocol, Protocol::ICMP | Protocol::ICMPV6);
        let header = self.frame.get(self.l4..self.l4 + 2)?;
        icmp.then_some((header[0], header[1]))
    }

    /// The word by which topics `sched` and `states` name an answer.
    pub fn answer(&self) -> String {
        let rst = self.protocol == Protocol::TCP
            && self
                .frame
                .get(self.l4 + 13)
                .is_some_and(|flags| flags & 4 != 0);
        match (self.icmp(), self.source) {
            (Some((kind, code)), IpAddr::V4(_)) => format!("icmp:{kind}/{code}"),
            (Some((kind, code)), IpAddr::V6(_)) => format!("icmp6:{kind}/{code}"),
            _ if rst => "rst".into(),
            _ => describe(self.frame),
        }
    }
}

/// A frame in a line, for people.
pub fn describe(frame: &[u8]) -> String {
    let Some(seen) = Seen::of(frame) else {
        return format!("not IP, {} bytes", frame.len());
    };
    let (source, target) = seen.ports();
    let mut text = format!(
        "{} > {} {} ttl {}",
        Endpoint::new(seen.source, source),
        Endpoint::new(seen.target, target),
        seen.protocol,
        seen.ttl
    );
    if let Some((kind, code)) = seen.icmp() {
        let _ = write!(text, " {kind}/{code}");
    }
    if seen.fragment {
        text.push_str(" fragment");
    }
    let mac = frame[..6].iter().map(|byte| format!("{byte:02x}"));
    let _ = write!(
        text,
        ", {} bytes to {}",
        frame.len(),
        mac.collect::<Vec<_>>().join(":")
    );
    text
}
