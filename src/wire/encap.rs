//! Encapsulation: puts IP in IP (RFC 2003, RFC 2473), GUE (draft-ietf-intarea-gue) or GRE (RFC 2784)
//! before a packet, and reads what lies under such headers. The outer header's fields follow what
//! Linux sends for LVS-TUN, as recorded; who it goes to, and from where, is decided elsewhere.

use std::net::IpAddr;

use super::checksum::{self, Sum};
use super::packet::{Fragment, Kind, Layout, Packet, number};

/// Length of IPv4 and IPv6 headers without options.
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
/// Length of UDP's header, of GUE's and GRE's without optional fields, and of GRE's checksum with the
/// two bytes behind it.
const UDP_LEN: usize = 8;
const GUE_LEN: usize = 4;
const GRE_LEN: usize = 4;
const GRE_SUM_LEN: usize = 4;
/// GRE's flag: a checksum is there (RFC 2784 section 2.1).
const GRE_HAS_SUM: u16 = 0x8000;
/// Explicit congestion notification (RFC 3168 section 5): its bits, and those of a packet that met
/// congestion; and what the outer header of such a packet says instead.
const ECN_MASK: u8 = 3;
const ECN_CONGESTED: u8 = 3;
const ECN_CAPABLE: u8 = 2;
/// The longest IP packet in bytes.
const PACKET_LEN_MAX: usize = 65_535;

/// Room that an outer header may need before a frame: IPv6, UDP and GUE are the longest.
pub const OUTER_LEN_MAX: usize = V6_LEN + UDP_LEN + GUE_LEN;

/// What stands between the outer IP header and the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Envelope {
    /// Nothing.
    Ipip,
    /// A UDP header to this port and a GUE header; the UDP checksum may be left out.
    Gue {
        /// The port that the other end listens on.
        port: u16,
        /// With a checksum.
        checksum: bool,
    },
    /// A GRE header.
    Gre {
        /// With a checksum.
        checksum: bool,
    },
}

impl Envelope {
    /// Bytes between the outer IP header and the packet.
    pub const fn len(self) -> usize {
        match self {
            Envelope::Ipip => 0,
            Envelope::Gue { .. } => UDP_LEN + GUE_LEN,
            Envelope::Gre { checksum: false } => GRE_LEN,
            Envelope::Gre { checksum: true } => GRE_LEN + GRE_SUM_LEN,
        }
    }

    /// Is there nothing?
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// An outer header: from us to the other end of a tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Outer {
    /// Our end.
    pub source: IpAddr,
    /// The other end, of the same family.
    pub target: IpAddr,
    /// What stands between.
    pub envelope: Envelope,
    /// IPv4: no router may cut it. Its identification is 0 then (RFC 6864).
    pub dont_fragment: bool,
    /// IPv4: the identification of a packet that may be cut.
    pub ident: u16,
    /// GUE: the source port, which spreads flows over paths.
    pub source_port: u16,
}

impl Outer {
    /// Bytes that it puts before a packet.
    pub const fn len(&self) -> usize {
        outer_len(self.target, self.envelope)
    }

    /// Never.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Writes it into `head`, which is `len` bytes before `inner`, a whole IP packet.
    pub fn write(&self, head: &mut [u8], inner: &[u8]) {
        debug_assert_eq!(head.len(), self.len());
        let ip_len = head.len() - self.envelope.len();
        let (ip, between) = head.split_at_mut(ip_len);
        let protocol = self.write_between(between, inner);
        let len = ip_len + between.len() + inner.len();
        match (self.source, self.target) {
            (IpAddr::V4(source), IpAddr::V4(target)) => {
                let (ident, flags) = match self.dont_fragment {
                    true => (0, 0x40),
                    false => (self.ident, 0),
                };
                ip[..2].copy_from_slice(&[0x45, outer_class(inner)]);
                ip[2..4].copy_from_slice(&(len as u16).to_be_bytes());
                ip[4..6].copy_from_slice(&ident.to_be_bytes());
                ip[6..12].copy_from_slice(&[flags, 0, inner_ttl(inner), protocol, 0, 0]);
                ip[12..16].copy_from_slice(&source.octets());
                ip[16..20].copy_from_slice(&target.octets());
                let sum = Sum::of(ip).checksum();
                ip[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(target)) => {
                let class = outer_class(inner);
                ip[..4].copy_from_slice(&[0x60 | class >> 4, class << 4, 0, 0]);
                ip[4..6].copy_from_slice(&((len - V6_LEN) as u16).to_be_bytes());
                ip[6..8].copy_from_slice(&[protocol, inner_ttl(inner)]);
                ip[8..24].copy_from_slice(&source.octets());
                ip[24..40].copy_from_slice(&target.octets());
            }
            (source, target) => debug_assert!(false, "a header from {source} to {target}"),
        }
    }

    /// Writes what stands between the IP header and `inner`; returns the IP header's protocol.
    fn write_between(&self, between: &mut [u8], inner: &[u8]) -> u8 {
        let carried = protocol_of(inner);
        match self.envelope {
            Envelope::Ipip => carried,
            Envelope::Gue { port, checksum } => {
                let len = (between.len() + inner.len()) as u16;
                between[..2].copy_from_slice(&self.source_port.to_be_bytes());
                between[2..4].copy_from_slice(&port.to_be_bytes());
                between[4..6].copy_from_slice(&len.to_be_bytes());
                between[6..12].copy_from_slice(&[0, 0, 0, carried, 0, 0]);
                if checksum {
                    let pseudo = checksum::pseudo_header(
                        self.source,
                        self.target,
                        number::UDP,
                        usize::from(len),
                    );
                    // 0 would say that there is none (RFC 768).
                    let sum = match Sum::of(between)
                        .plus(Sum::of(inner))
                        .plus(pseudo)
                        .checksum()
                    {
                        0 => 0xffff,
                        sum => sum,
                    };
                    between[6..8].copy_from_slice(&sum.to_be_bytes());
                }
                number::UDP
            }
            Envelope::Gre { checksum } => {
                let flags = if checksum { GRE_HAS_SUM } else { 0 };
                between[..2].copy_from_slice(&flags.to_be_bytes());
                between[2..4].copy_from_slice(&ether_type(inner).to_be_bytes());
                if checksum {
                    between[4..8].fill(0);
                    // Zero and its complement are one sum; the kernel writes the latter (recorded).
                    let sum = match Sum::of(between).plus(Sum::of(inner)).checksum() {
                        0 => 0xffff,
                        sum => sum,
                    };
                    between[4..6].copy_from_slice(&sum.to_be_bytes());
                }
                number::GRE
            }
        }
    }
}

/// Bytes that an outer header to `target` puts before a packet.
pub const fn outer_len(target: IpAddr, envelope: Envelope) -> usize {
    let ip = match target {
        IpAddr::V4(_) => V4_LEN,
        IpAddr::V6(_) => V6_LEN,
    };
    ip + envelope.len()
}

fn is_v6(inner: &[u8]) -> bool {
    inner[0] >> 4 == 6
}

/// The protocol number under which IP is carried in IP.
fn protocol_of(inner: &[u8]) -> u8 {
    if is_v6(inner) {
        number::IPV6
    } else {
        number::IPIP
    }
}

fn ether_type(inner: &[u8]) -> u16 {
    if is_v6(inner) { 0x86dd } else { 0x0800 }
}

/// TOS or traffic class of the outer header: the packet's own, but that it met congestion is told to
/// nobody before the packet is out of the tunnel (RFC 6040 section 4.1, "compatibility mode" aside).
fn outer_class(inner: &[u8]) -> u8 {
    let class = if is_v6(inner) {
        inner[0] << 4 | inner[1] >> 4
    } else {
        inner[1]
    };
    match class & ECN_MASK {
        ECN_CONGESTED => class & !ECN_MASK | ECN_CAPABLE,
        _ => class,
    }
}

fn inner_ttl(inner: &[u8]) -> u8 {
    if is_v6(inner) { inner[7] } else { inner[8] }
}

impl Packet<'_> {
    /// Puts an outer header before the packet, in the room before its frame; from now on it is the
    /// outer packet. What a device was to do with the packet is done here first. False, and nothing
    /// has changed, if there is no room, the packet would be longer than IP can say, or it is a
    /// super-frame.
    pub fn wrap(&mut self, outer: &Outer) -> bool {
        let (len, ip_len) = (outer.len(), self.ip_len());
        if self.start < len || ip_len + len > PACKET_LEN_MAX || self.offload.is_gso() {
            return false;
        }
        self.finish_sum();
        let (start, l3, end) = (self.start, self.l3(), self.end());
        // The Ethernet header moves to the front; padding behind the packet is left behind.
        self.bytes.copy_within(start..l3, start - len);
        let (head, inner) = self.bytes[..end].split_at_mut(l3);
        outer.write(&mut head[l3 - len..], inner);
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = &mut bytes[..end];
        (self.start, self.wrapped) = (start - len, true);
        let kind = match outer.target {
            IpAddr::V4(_) => Kind::V4,
            IpAddr::V6(_) => Kind::V6,
        };
        if l3 != start {
            let ether_type: u16 = if kind == Kind::V6 { 0x86dd } else { 0x0800 };
            let at = l3 - len - 2;
            self.bytes[at..at + 2].copy_from_slice(&ether_type.to_be_bytes());
        }
        let l4 = usize::from(self.layout.l3) + len - outer.envelope.len();
        self.layout = Layout {
            kind,
            l3: self.layout.l3,
            l4: l4 as u16,
            end: self.layout.end + len as u32,
            protocol: outer_protocol(outer, &self.bytes[l3..end]),
            fragment: Fragment::Whole,
            transport: true,
        };
        true
    }
}

fn outer_protocol(outer: &Outer, inner: &[u8]) -> u8 {
    match outer.envelope {
        Envelope::Ipip => protocol_of(inner),
        Envelope::Gue { .. } => number::UDP,
        Envelope::Gre { .. } => number::GRE,
    }
}

/// What lies under an outer header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents {
    /// Where the inner packet begins, counted from the first byte of the outer one.
    pub at: usize,
    /// Its family: `Kind::V4` or `Kind::V6`.
    pub kind: Kind,
    /// What stands between. Whether GUE's UDP checksum is there says `checksum`.
    pub envelope: Envelope,
}

/// Reads the headers of an IP packet that carries another; `layout` is its own, counted from its first
/// byte. The packet may be cut off, as quoted in an ICMP error: no sum is looked at, and of the inner
/// packet only its version, if that much is there.
pub fn contents(bytes: &[u8], layout: &Layout) -> Option<Contents> {
    if layout.fragment == Fragment::Later {
        return None;
    }
    let l4 = usize::from(layout.l4);
    let rest = bytes.get(l4..)?;
    let (len, kind, envelope) = match layout.protocol {
        number::IPIP => (0, Kind::V4, Envelope::Ipip),
        number::IPV6 => (0, Kind::V6, Envelope::Ipip),
        number::UDP => in_gue(rest)?,
        number::GRE => in_gre(rest)?,
        _ => return None,
    };
    let version = rest.get(len).map(|byte| byte >> 4);
    let expected = if kind == Kind::V6 { 6 } else { 4 };
    version
        .is_none_or(|version| version == expected)
        .then_some(Contents {
            at: l4 + len,
            kind,
            envelope,
        })
}

/// Reads UDP's and GUE's headers: data of version 0, optional fields skipped unseen.
fn in_gue(rest: &[u8]) -> Option<(usize, Kind, Envelope)> {
    let header = rest.get(..UDP_LEN + GUE_LEN)?;
    let (version_and_control, words) = (header[8] >> 5, usize::from(header[8] & 0x1f));
    if version_and_control != 0 {
        return None;
    }
    let kind = match header[9] {
        number::IPIP => Kind::V4,
        number::IPV6 => Kind::V6,
        _ => return None,
    };
    let envelope = Envelope::Gue {
        port: u16::from_be_bytes([header[2], header[3]]),
        checksum: header[6..8] != [0, 0],
    };
    Some((UDP_LEN + GUE_LEN + words * 4, kind, envelope))
}

/// Reads GRE's header: version 0, with a checksum or without, nothing else.
fn in_gre(rest: &[u8]) -> Option<(usize, Kind, Envelope)> {
    let header = rest.get(..GRE_LEN)?;
    let flags = u16::from_be_bytes([header[0], header[1]]);
    if flags & !GRE_HAS_SUM != 0 {
        return None;
    }
    let kind = match u16::from_be_bytes([header[2], header[3]]) {
        0x0800 => Kind::V4,
        0x86dd => Kind::V6,
        _ => return None,
    };
    let envelope = Envelope::Gre {
        checksum: flags != 0,
    };
    Some((envelope.len(), kind, envelope))
}

/// Takes the outer headers off a whole IP packet: what a real server of LVS-TUN does.
///
/// `None` if it carries no packet, or a checksum on the way there is wrong.
pub fn unwrap(packet: &[u8]) -> Option<&[u8]> {
    let layout = Layout::parse(packet, true).ok()?;
    let packet = &packet[..layout.end as usize];
    if layout.fragment != Fragment::Whole {
        return None;
    }
    let found = contents(packet, &layout)?;
    let rest = &packet[usize::from(layout.l4)..];
    let holds = match found.envelope {
        Envelope::Ipip | Envelope::Gre { checksum: false } => true,
        Envelope::Gre { checksum: true } => Sum::of(rest).folded() == 0xffff,
        Envelope::Gue {
            checksum: false, ..
        } => true,
        Envelope::Gue { .. } => {
            let (source, target) = ends(packet);
            let pseudo = checksum::pseudo_header(source, target, number::UDP, rest.len());
            Sum::of(rest).plus(pseudo).folded() == 0xffff
        }
    };
    if holds { packet.get(found.at..) } else { None }
}

fn ends(packet: &[u8]) -> (IpAddr, IpAddr) {
    if is_v6(packet) {
        let octets =
            |at: usize| -> [u8; 16] { packet[at..at + 16].try_into().expect("sixteen bytes") };
        (octets(8).into(), octets(24).into())
    } else {
        let octets = |at: usize| -> [u8; 4] { packet[at..at + 4].try_into().expect("four bytes") };
        (octets(12).into(), octets(16).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Frame, FrameMeta, Offload};

    /// An IPv4 datagram of this TOS, with one byte of data behind a UDP header without a sum.
    fn datagram(tos: u8) -> Vec<u8> {
        let mut bytes = vec![0x45, tos, 0, 29, 0, 7, 0x40, 0, 9, 17, 0, 0];
        bytes.extend([172, 16, 3, 9, 10, 0, 0, 100]);
        let sum = Sum::of(&bytes).checksum();
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend([0x9c, 0xbb, 0, 80, 0, 9, 0, 0, b'x']);
        bytes
    }

    fn outer(envelope: Envelope, v6: bool) -> Outer {
        let ends: (IpAddr, IpAddr) = match v6 {
            false => ([192, 168, 1, 1].into(), [192, 168, 1, 11].into()),
            true => (
                "fd00:5::1".parse().expect("an address"),
                "fd00:5::b".parse().expect("an address"),
            ),
        };
        Outer {
            source: ends.0,
            target: ends.1,
            envelope,
            dont_fragment: true,
            ident: 1,
            source_port: 40_000,
        }
    }

    const ENVELOPES: [Envelope; 5] = [
        Envelope::Ipip,
        Envelope::Gue {
            port: 6080,
            checksum: false,
        },
        Envelope::Gue {
            port: 6080,
            checksum: true,
        },
        Envelope::Gre { checksum: false },
        Envelope::Gre { checksum: true },
    ];

    #[test]
    fn what_is_put_in_comes_out() {
        let inner = datagram(0);
        for (envelope, v6) in ENVELOPES.into_iter().flat_map(|e| [(e, false), (e, true)]) {
            let outer = outer(envelope, v6);
            let mut packet = vec![0; outer.len()];
            outer.write(&mut packet, &inner);
            packet.extend_from_slice(&inner);
            assert_eq!(unwrap(&packet), Some(&inner[..]), "{outer:?}");
            let last = packet.len() - 1;
            packet[last] ^= 1;
            let summed = matches!(
                envelope,
                Envelope::Gue { checksum: true, .. } | Envelope::Gre { checksum: true }
            );
            assert_eq!(unwrap(&packet).is_none(), summed, "damaged: {outer:?}");
        }
    }

    #[test]
    fn a_frame_grows_at_its_front_and_loses_its_padding() {
        let inner = datagram(0);
        let mut buffer = vec![0xee; OUTER_LEN_MAX + 14];
        buffer[OUTER_LEN_MAX..].fill(2);
        buffer[OUTER_LEN_MAX + 12..].copy_from_slice(&[8, 0]);
        buffer.extend_from_slice(&inner);
        buffer.extend([0; 17]);
        let mut meta = FrameMeta {
            start: OUTER_LEN_MAX as u32,
            end: buffer.len() as u32,
            ..FrameMeta::default()
        };
        let mut frame = Frame {
            buffer: &mut buffer,
            meta: &mut meta,
        };
        let layout = Layout::parse(frame.bytes(), false).expect("a datagram");
        let mut packet = Packet::new(&mut frame, layout);
        assert!(packet.wrap(&outer(Envelope::Gre { checksum: true }, true)));
        assert_eq!(packet.offload, Offload::default());
        let place = packet.place();
        frame.moved(place);
        let bytes = frame.bytes();
        assert_eq!(bytes[12..14], [0x86, 0xdd]);
        assert_eq!(unwrap(&bytes[14..]), Some(&inner[..]));
        assert_eq!(bytes.len(), 14 + 48 + inner.len(), "no padding is left");
    }

    #[test]
    fn congestion_is_not_told_outside() {
        for (inner, outside) in [(0xff, 0xfe), (0xb9, 0xb9), (0, 0)] {
            let inner = datagram(inner);
            let outer = outer(Envelope::Ipip, false);
            let mut head = [0; 20];
            outer.write(&mut head, &inner);
            assert_eq!(head[1], outside);
        }
    }

    #[test]
    fn what_is_no_tunnel_is_not_opened() {
        let inner = datagram(0);
        assert_eq!(unwrap(&inner), None);
        let outer = outer(Envelope::Gre { checksum: false }, false);
        let mut packet = vec![0; outer.len()];
        outer.write(&mut packet, &inner);
        packet.extend_from_slice(&inner);
        for (at, value) in [(20, 0x20), (21, 1), (23, 1), (24, 0x65)] {
            let mut other = packet.clone();
            other[at] = value;
            assert_eq!(unwrap(&other), None, "byte {at} is {value:#x}");
        }
        for len in 0..packet.len() {
            assert_eq!(unwrap(&packet[..len]), None, "cut off at {len}");
        }
    }
}
