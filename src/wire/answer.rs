//! Packets made in answer to another: echo replies, ICMP errors, TCP resets. What a host's own stack
//! would say for the VIP; the fields follow what Linux sends, as recorded.

use std::net::IpAddr;

use super::checksum::{self, Sum};
use super::packet::{Kind, Packet, number};

/// TTL and hop limit of everything we make ourselves.
const TTL: u8 = 64;
/// An ICMPv4 error is at most this long (RFC 1812 section 4.3.2.3).
const V4_ERROR_LEN_MAX: usize = 576;
/// An ICMPv6 error is at most the minimum MTU (RFC 4443 section 2.4).
const V6_ERROR_LEN_MAX: usize = 1280;
/// The two bits that tell of congestion (RFC 3168).
const ECN: u8 = 3;
/// Precedence "internetwork control", which ICMP errors carry (RFC 1812 section 5.3.2).
const TOS_CONTROL: u8 = 0xc0;

/// What an ICMP error says, in words of both families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// TTL ran out on the way: 11/0, ICMPv6 3/0.
    TimeExceeded,
    /// The other fragments did not come in time: 11/1, ICMPv6 3/1.
    FragmentsMissing,
    /// Nobody listens: 3/3, ICMPv6 1/4.
    PortUnreachable,
    /// There is no way to the host: 3/1, ICMPv6 1/3.
    HostUnreachable,
    /// There is no way to the network: 3/1, ICMPv6 1/0.
    NoRoute,
    /// Nobody speaks this protocol: 3/2, ICMPv6 4/1 with the offset of the byte that names it.
    ProtocolUnreachable(u16),
    /// Too long for the next link of this MTU: 3/4, ICMPv6 2/0.
    TooLong(u16),
    /// The byte at this offset of the header makes no sense: 12/0, ICMPv6 4/0.
    BadHeader(u8),
    /// What somebody else has said, of the packet's own family: type, code and the four bytes behind
    /// the checksum.
    Relayed {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The rest of the header.
        rest: u32,
    },
}

impl IcmpError {
    /// Type, code and the header's last four bytes.
    fn parts(self, kind: Kind) -> (u8, u8, u32) {
        match (self, kind) {
            (IcmpError::TimeExceeded, Kind::V6) => (3, 0, 0),
            (IcmpError::TimeExceeded, _) => (11, 0, 0),
            (IcmpError::NoRoute, Kind::V6) => (1, 0, 0),
            (IcmpError::NoRoute, _) => (3, 1, 0),
            (IcmpError::HostUnreachable, Kind::V6) => (1, 3, 0),
            (IcmpError::HostUnreachable, _) => (3, 1, 0),
            (IcmpError::FragmentsMissing, Kind::V6) => (3, 1, 0),
            (IcmpError::FragmentsMissing, _) => (11, 1, 0),
            (IcmpError::PortUnreachable, Kind::V6) => (1, 4, 0),
            (IcmpError::PortUnreachable, _) => (3, 3, 0),
            (IcmpError::ProtocolUnreachable(at), Kind::V6) => (4, 1, u32::from(at)),
            (IcmpError::ProtocolUnreachable(_), _) => (3, 2, 0),
            (IcmpError::TooLong(mtu), Kind::V6) => (2, 0, u32::from(mtu)),
            (IcmpError::TooLong(mtu), _) => (3, 4, u32::from(mtu)),
            (IcmpError::Relayed { kind, code, rest }, _) => (kind, code, rest),
            (IcmpError::BadHeader(at), Kind::V6) => (4, 0, u32::from(at)),
            (IcmpError::BadHeader(at), _) => (12, 0, u32::from(at) << 24),
        }
    }
}

/// May this packet be answered with an ICMP error at all (RFC 1122 section 3.2.2): never about an ICMP
/// error, a later fragment, or a packet to or from no single host.
pub fn may_complain(packet: &Packet<'_>) -> bool {
    use super::packet::Fragment;
    let about_error = packet.is_icmp() && is_error(packet);
    let single = |address: IpAddr| match address {
        IpAddr::V4(a) => !a.is_unspecified() && !a.is_multicast() && !a.is_broadcast(),
        IpAddr::V6(a) => !a.is_unspecified() && !a.is_multicast(),
    };
    !about_error
        && packet.layout.fragment != Fragment::Later
        && !packet.target_mac().is_group()
        && single(packet.source())
        && single(packet.target())
}

/// Where in a packet of IPv6 the byte lies that names its protocol.
pub fn protocol_named_at(packet: &Packet<'_>) -> u16 {
    let (ip, layout) = (packet.ip(), packet.layout);
    let l4 = usize::from(layout.l4 - layout.l3);
    let (mut named_at, mut at) = (6, 40);
    while layout.kind == Kind::V6 && at < l4 {
        let len = match ip[named_at] {
            number::FRAGMENT => 8,
            number::AH => (usize::from(ip[at + 1]) + 2) * 4,
            _ => (usize::from(ip[at + 1]) + 1) * 8,
        };
        (named_at, at) = (at, at + len);
    }
    named_at as u16
}

/// Is it an ICMP error, whether it says anything about a connection or not? Of IPv4 also what nobody has
/// given a meaning (`icmp_send`): the last type that Linux knows is the address mask's answer.
fn is_error(packet: &Packet<'_>) -> bool {
    let (kind, _) = packet.icmp_type_code();
    match packet.layout.kind {
        Kind::V6 => kind < 128,
        _ => matches!(kind, 3 | 4 | 5 | 11 | 12 | 19..),
    }
}

/// Builds the ICMP error about `packet`, from `source` back to who sent it, as long as a link of this
/// `mtu` takes. `ident` becomes the IPv4 identification. Appends a whole frame to `out`.
pub fn icmp_error(
    packet: &Packet<'_>,
    error: IcmpError,
    (source, mtu): (IpAddr, u32),
    ident: u16,
    out: &mut Vec<u8>,
) {
    let kind = packet.layout.kind;
    let quoted = packet.ip();
    let room = match kind {
        Kind::V6 => V6_ERROR_LEN_MAX - 48,
        _ => V4_ERROR_LEN_MAX.min(mtu as usize).saturating_sub(28),
    };
    let quoted = &quoted[..quoted.len().min(room)];
    let tos = match kind {
        Kind::V6 => 0,
        _ => (packet.ip()[1] & 0x1e) | TOS_CONTROL,
    };
    let header = Header {
        source,
        target: packet.source(),
        tos,
        ident,
        dont_fragment: false,
    };
    let (icmp_type, code, rest) = error.parts(kind);
    let at = header.begin(packet, icmp_number(kind), 8 + quoted.len(), out);
    out.extend_from_slice(&[icmp_type, code, 0, 0]);
    out.extend_from_slice(&rest.to_be_bytes());
    out.extend_from_slice(quoted);
    finish(out, at, 2, &header, icmp_number(kind), kind == Kind::V6);
}

/// Builds the answer to an echo request: the same body back, from the address that was asked.
pub fn echo_reply(packet: &Packet<'_>, ident: u16, out: &mut Vec<u8>) {
    let kind = packet.layout.kind;
    let tos = traffic_class(packet);
    let header = Header {
        source: packet.target(),
        target: packet.source(),
        tos,
        ident,
        dont_fragment: false,
    };
    let body = packet.transport();
    let at = header.begin(packet, icmp_number(kind), body.len(), out);
    out.extend_from_slice(&[if kind == Kind::V6 { 129 } else { 0 }, body[1], 0, 0]);
    out.extend_from_slice(&body[4..]);
    finish(out, at, 2, &header, icmp_number(kind), kind == Kind::V6);
}

/// Length of an ICMP timestamp message (RFC 792): header and three times.
const TIMESTAMP_LEN: usize = 20;
/// What is needed of a timestamp request: its header and when it was sent.
pub const TIMESTAMP_ASKED_LEN: usize = 12;

/// Builds the answer to a timestamp request of at least `TIMESTAMP_ASKED_LEN` bytes: when it was sent, as it
/// says itself, and when it was received and answered, both `time`.
pub fn timestamp_reply(packet: &Packet<'_>, ident: u16, time: u32, out: &mut Vec<u8>) {
    let header = Header {
        source: packet.target(),
        target: packet.source(),
        tos: packet.ip()[1],
        ident,
        dont_fragment: false,
    };
    let at = header.begin(packet, number::ICMP, TIMESTAMP_LEN, out);
    out.extend_from_slice(&[14, 0, 0, 0]);
    out.extend_from_slice(&packet.transport()[4..12]);
    out.extend_from_slice(&time.to_be_bytes());
    out.extend_from_slice(&time.to_be_bytes());
    finish(out, at, 2, &header, number::ICMP, false);
}

/// Builds the reset that answers a TCP segment nobody expected (RFC 9293 section 3.10.7.1).
pub fn tcp_reset(packet: &Packet<'_>, out: &mut Vec<u8>) {
    let segment = packet.transport();
    let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().expect("four bytes"));
    let (flags, offset) = (segment[13], usize::from(segment[12] >> 4) * 4);
    let header = Header {
        source: packet.target(),
        target: packet.source(),
        tos: traffic_class(packet) & !ECN,
        ident: 0,
        dont_fragment: true,
    };
    let has_ack = flags & 0x10 != 0;
    let occupied = segment.len().saturating_sub(offset) as u32
        + u32::from(flags & 0x02 != 0)
        + u32::from(flags & 0x01 != 0);
    let (seq, ack, answer) = if has_ack {
        (word(8), 0, 0x04)
    } else {
        (0, word(4).wrapping_add(occupied), 0x14)
    };
    let at = header.begin(packet, number::TCP, 20, out);
    out.extend_from_slice(&segment[2..4]);
    out.extend_from_slice(&segment[..2]);
    out.extend_from_slice(&seq.to_be_bytes());
    out.extend_from_slice(&ack.to_be_bytes());
    out.extend_from_slice(&[0x50, answer, 0, 0, 0, 0, 0, 0]);
    finish(out, at, 16, &header, number::TCP, true);
}

/// The type of service of IPv4, the traffic class of IPv6.
fn traffic_class(packet: &Packet<'_>) -> u8 {
    let ip = packet.ip();
    match packet.layout.kind {
        Kind::V6 => ip[0] << 4 | ip[1] >> 4,
        _ => ip[1],
    }
}

fn icmp_number(kind: Kind) -> u8 {
    if kind == Kind::V6 {
        number::ICMPV6
    } else {
        number::ICMP
    }
}

/// The IP header of an answer.
struct Header {
    source: IpAddr,
    target: IpAddr,
    tos: u8,
    ident: u16,
    dont_fragment: bool,
}

impl Header {
    /// Appends the Ethernet header (back to who sent `packet`) and the IP header; returns the offset
    /// of the transport header.
    fn begin(&self, packet: &Packet<'_>, protocol: u8, len: usize, out: &mut Vec<u8>) -> usize {
        let l3 = usize::from(packet.layout.l3);
        if l3 != 0 {
            let frame = packet.frame();
            out.extend_from_slice(&frame[6..12]);
            out.extend_from_slice(&frame[..6]);
            out.extend_from_slice(&frame[12..l3]);
        }
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let at = out.len();
                let total = (20 + len) as u16;
                out.extend_from_slice(&[0x45, self.tos]);
                out.extend_from_slice(&total.to_be_bytes());
                out.extend_from_slice(&self.ident.to_be_bytes());
                out.extend_from_slice(&[
                    if self.dont_fragment { 0x40 } else { 0 },
                    0,
                    TTL,
                    protocol,
                ]);
                out.extend_from_slice(&[0, 0]);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&target.octets());
                let sum = Sum::of(&out[at..]).checksum();
                out[at + 10..at + 12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                out.extend_from_slice(&[0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                out.extend_from_slice(&(len as u16).to_be_bytes());
                out.extend_from_slice(&[protocol, TTL]);
                out.extend_from_slice(&source.octets());
                out.extend_from_slice(&target.octets());
            }
            _ => debug_assert!(false, "an answer never changes family"),
        }
        out.len()
    }
}

/// Fills in the transport checksum of the packet that ends `out`.
fn finish(out: &mut [u8], at: usize, field: usize, header: &Header, protocol: u8, pseudo: bool) {
    let body = Sum::of(&out[at..]);
    let sum = if pseudo {
        body.plus(checksum::pseudo_header(
            header.source,
            header.target,
            protocol,
            out.len() - at,
        ))
    } else {
        body
    };
    let sum = match sum.checksum() {
        // As recorded: the kernel finishes a segment of IPv6 like a datagram, in which zero means none.
        0 if protocol == number::TCP && header.source.is_ipv6() => 0xffff,
        sum => sum,
    };
    out[at + field..at + field + 2].copy_from_slice(&sum.to_be_bytes());
}
