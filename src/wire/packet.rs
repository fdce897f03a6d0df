//! Packet: a checked view over one mutable frame. `Layout::parse` checks every length once; afterwards
//! no accessor can fail. This short parser serves the packet path; etherparse is its oracle in the
//! property tests and reads whatever a story wants to know beyond it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::Mac;
use super::checksum::Sum;
use super::nic::{Frame, Place};
use super::offload::Offload;

/// Length of an Ethernet header without tags.
pub const ETHERNET_LEN: usize = 14;
/// Length of an IPv4 header without options.
pub(super) const V4_LEN: usize = 20;
/// Extension headers of IPv6 looked through; a packet with more is malformed to us.
const EXTENSION_HEADERS_MAX: usize = 8;

/// Numbers of the protocols this room knows by name (IANA).
pub mod number {
    #![allow(missing_docs)]
    pub const ICMP: u8 = 1;
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const IPV6: u8 = 41;
    pub const FRAGMENT: u8 = 44;
    pub const GRE: u8 = 47;
    pub const AH: u8 = 51;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
}

/// A header, for saying which one is at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Header {
    /// Ethernet
    Ethernet,
    /// The VLAN tag.
    Vlan,
    /// ARP
    Arp,
    /// IPv4, its options, or the packet it announces.
    V4,
    /// IPv6, or the packet it announces.
    V6,
    /// An IPv6 extension header.
    V6Extension,
}

/// Why a frame is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than this header, or than what this header announces.
    Short(Header),
    /// A length field of this header that lies.
    Length(Header),
    /// The version field is not that of the Ethernet type.
    Version,
    /// The IPv4 header checksum is wrong.
    Checksum,
    /// More IPv6 extension headers than we look through.
    Extensions,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Malformed::Short(header) => write!(f, "cut off in {header}"),
            Malformed::Length(header) => write!(f, "a length in {header} lies"),
            Malformed::Version => f.write_str("the version of IP is not what was announced"),
            Malformed::Checksum => f.write_str("the checksum of the IPv4 header is wrong"),
            Malformed::Extensions => f.write_str("too many IPv6 extension headers"),
        }
    }
}

impl std::fmt::Display for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Header::Ethernet => "the Ethernet header",
            Header::Vlan => "the VLAN tag",
            Header::Arp => "ARP",
            Header::V4 => "IPv4",
            Header::V6 => "IPv6",
            Header::V6Extension => "an IPv6 extension header",
        })
    }
}

/// What lies in the frame above Ethernet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// IPv4
    V4,
    /// IPv6
    V6,
    /// ARP for IPv4 over Ethernet.
    Arp,
    /// Something we do not know.
    #[default]
    Other,
}

/// Whether the packet is a fragment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fragment {
    /// A whole packet.
    #[default]
    Whole,
    /// The first fragment: it has the transport header.
    First,
    /// A later one: it has none.
    Later,
}

/// Where things lie in a frame, counted from its first byte. `Copy` and without a borrow, so that a
/// batch can be parsed in one pass and handled in another.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// What it is.
    pub kind: Kind,
    /// Offset of the network header; 0 where there is no Ethernet header.
    pub l3: u16,
    /// Offset of the transport header.
    pub l4: u16,
    /// Offset behind the packet; Ethernet padding lies beyond it.
    pub end: u32,
    /// Transport protocol number; of the innermost header for IPv6.
    pub protocol: u8,
    /// Fragment or whole.
    pub fragment: Fragment,
    /// The transport header is there in full: 20 bytes of TCP, 8 of UDP and ICMP, 12 of SCTP.
    pub transport: bool,
}

impl Layout {
    /// Reads a frame that begins with an Ethernet header, or with IP if `raw_ip`.
    ///
    /// # Errors
    /// `Malformed` for a header that is cut off or lies; the frame was not touched.
    #[inline]
    pub fn parse(bytes: &[u8], raw_ip: bool) -> Result<Layout, Malformed> {
        let (kind, l3) = match raw_ip {
            true => (ether_type_of(bytes)?, 0),
            false => read_ethernet(bytes)?,
        };
        match kind {
            0x0800 => parse_v4(bytes, l3),
            0x86dd => parse_v6(bytes, l3),
            0x0806 => parse_arp(bytes, l3),
            _ => Ok(Layout {
                l3: l3 as u16,
                l4: l3 as u16,
                end: bytes.len() as u32,
                ..Layout::default()
            }),
        }
    }

    /// Reads a bare IP packet of this family whose end may be cut off, as quoted in an ICMP error: lengths
    /// beyond `bytes` are not an error here, and of IPv4 neither the version nor the checksum is looked at.
    /// Its options may be cut off too; then there is no transport header.
    ///
    /// # Errors
    /// `Malformed` if not even the IP header is whole.
    pub fn parse_quoted(bytes: &[u8], kind: Kind) -> Result<Layout, Malformed> {
        match kind {
            Kind::V4 => {
                let Some(fixed) = bytes.first_chunk::<V4_LEN>() else {
                    return Err(Malformed::Short(Header::V4));
                };
                if fixed[0] >> 4 != 4 {
                    return Err(Malformed::Version);
                }
                let header = usize::from(fixed[0] & 0x0f) * 4;
                if header < V4_LEN {
                    return Err(Malformed::Length(Header::V4));
                }
                let mut layout = v4_layout(fixed, 0, header);
                layout.end = bytes.len() as u32;
                layout.transport = has_ports(bytes.len(), &layout);
                Ok(layout)
            }
            Kind::V6 => {
                if bytes.len() < 40 {
                    return Err(Malformed::Short(Header::V6));
                }
                if bytes[0] >> 4 != 6 {
                    return Err(Malformed::Version);
                }
                let mut layout = walk_v6(bytes, 0, bytes.len())?;
                layout.transport = has_ports(bytes.len(), &layout);
                Ok(layout)
            }
            _ => Err(Malformed::Version),
        }
    }
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Is so much of a transport header quoted that its ports are there? As recorded, four bytes are enough.
fn has_ports(len: usize, layout: &Layout) -> bool {
    layout.fragment != Fragment::Later && len >= usize::from(layout.l4) + 4
}

/// The type that an Ethernet header announces, and the offset behind it.
#[inline(always)]
fn read_ethernet(bytes: &[u8]) -> Result<(u16, usize), Malformed> {
    let Some(header) = bytes.first_chunk::<ETHERNET_LEN>() else {
        return Err(Malformed::Short(Header::Ethernet));
    };
    let kind = be16(header, 12);
    if !matches!(kind, 0x8100 | 0x88a8) {
        return Ok((kind, ETHERNET_LEN));
    }
    let l3 = ETHERNET_LEN + 4;
    if bytes.len() < l3 {
        return Err(Malformed::Short(Header::Vlan));
    }
    Ok((be16(bytes, 16), l3))
}

/// The Ethernet type of a bare IP packet.
fn ether_type_of(bytes: &[u8]) -> Result<u16, Malformed> {
    match bytes.first().map(|byte| byte >> 4) {
        Some(4) => Ok(0x0800),
        Some(6) => Ok(0x86dd),
        _ => Err(Malformed::Version),
    }
}

/// The part of an IPv4 header that is always there, and the length of all of it.
#[inline(always)]
fn v4_header(packet: &[u8]) -> Result<(&[u8; V4_LEN], usize), Malformed> {
    let Some(fixed) = packet.first_chunk::<V4_LEN>() else {
        return Err(Malformed::Short(Header::V4));
    };
    if fixed[0] >> 4 != 4 {
        return Err(Malformed::Version);
    }
    let header = usize::from(fixed[0] & 0x0f) * 4;
    if header < V4_LEN {
        return Err(Malformed::Length(Header::V4));
    }
    if packet.len() < header {
        return Err(Malformed::Short(Header::V4));
    }
    Ok((fixed, header))
}

#[inline(always)]
fn v4_layout(fixed: &[u8; V4_LEN], l3: usize, header: usize) -> Layout {
    let fragment = match be16(fixed, 6) & 0x3fff {
        0 => Fragment::Whole,
        word if word & 0x1fff == 0 => Fragment::First,
        _ => Fragment::Later,
    };
    Layout {
        kind: Kind::V4,
        l3: l3 as u16,
        l4: (l3 + header) as u16,
        end: 0,
        protocol: fixed[9],
        fragment,
        transport: false,
    }
}

#[inline(always)]
fn parse_v4(bytes: &[u8], l3: usize) -> Result<Layout, Malformed> {
    let packet = &bytes[l3..];
    let (fixed, header) = v4_header(packet)?;
    let total = usize::from(be16(fixed, 2));
    if total < header {
        return Err(Malformed::Length(Header::V4));
    }
    if packet.len() < total {
        return Err(Malformed::Short(Header::V4));
    }
    let sum = match header {
        V4_LEN => Sum::of_header(fixed),
        _ => Sum::of(&packet[..header]),
    };
    if sum.folded() != 0xffff {
        return Err(Malformed::Checksum);
    }
    let mut layout = v4_layout(fixed, l3, header);
    layout.end = (l3 + total) as u32;
    layout.transport = has_transport(bytes, &layout);
    Ok(layout)
}

fn parse_v6(bytes: &[u8], l3: usize) -> Result<Layout, Malformed> {
    if bytes.len() < l3 + 40 {
        return Err(Malformed::Short(Header::V6));
    }
    if bytes[l3] >> 4 != 6 {
        return Err(Malformed::Version);
    }
    let end = l3 + 40 + usize::from(be16(bytes, l3 + 4));
    if bytes.len() < end {
        return Err(Malformed::Short(Header::V6));
    }
    let mut layout = walk_v6(bytes, l3, end)?;
    layout.transport = has_transport(bytes, &layout);
    Ok(layout)
}

/// Looks through extension headers (RFC 8200 section 4) up to the transport header.
fn walk_v6(bytes: &[u8], l3: usize, end: usize) -> Result<Layout, Malformed> {
    let mut next = bytes[l3 + 6];
    let mut at = l3 + 40;
    let mut fragment = Fragment::Whole;
    for _ in 0..EXTENSION_HEADERS_MAX {
        let len = match next {
            0 | 43 | 60 if at + 8 <= end => (usize::from(bytes[at + 1]) + 1) * 8,
            number::AH if at + 8 <= end => (usize::from(bytes[at + 1]) + 2) * 4,
            number::FRAGMENT if at + 8 <= end => {
                let word = be16(bytes, at + 2);
                fragment = match (word & 0xfff8, word & 1) {
                    (0, 0) => fragment,
                    (0, _) => Fragment::First,
                    _ => Fragment::Later,
                };
                8
            }
            0 | 43 | 60 | number::AH | number::FRAGMENT => {
                return Err(Malformed::Short(Header::V6Extension));
            }
            _ => {
                let mut layout = Layout {
                    kind: Kind::V6,
                    l3: l3 as u16,
                    ..Layout::default()
                };
                (layout.l4, layout.end) = (at as u16, end as u32);
                (layout.protocol, layout.fragment) = (next, fragment);
                return Ok(layout);
            }
        };
        next = bytes[at];
        at += len;
        if fragment == Fragment::Later {
            // What follows is the middle of something; its first byte is no header.
            let mut layout = Layout {
                kind: Kind::V6,
                l3: l3 as u16,
                ..Layout::default()
            };
            (layout.l4, layout.end) = (at.min(end) as u16, end as u32);
            (layout.protocol, layout.fragment) = (next, fragment);
            return Ok(layout);
        }
        if at > end {
            return Err(Malformed::Length(Header::V6Extension));
        }
    }
    Err(Malformed::Extensions)
}

#[inline]
fn has_transport(bytes: &[u8], layout: &Layout) -> bool {
    let here = (layout.end as usize).saturating_sub(usize::from(layout.l4));
    let needed = match layout.protocol {
        number::TCP => 20,
        number::SCTP => 12,
        _ => 8,
    };
    debug_assert!(layout.end as usize <= bytes.len());
    layout.fragment != Fragment::Later && here >= needed
}

fn parse_arp(bytes: &[u8], l3: usize) -> Result<Layout, Malformed> {
    if bytes.len() < l3 + 28 {
        return Err(Malformed::Short(Header::Arp));
    }
    let known =
        be16(bytes, l3) == 1 && be16(bytes, l3 + 2) == 0x0800 && bytes[l3 + 4..l3 + 6] == [6, 4];
    let kind = if known { Kind::Arp } else { Kind::Other };
    let end = (l3 + 28) as u32;
    Ok(Layout {
        kind,
        l3: l3 as u16,
        l4: l3 as u16,
        end,
        ..Layout::default()
    })
}

/// A parsed frame: its bytes with the room before them, its layout and its offload.
#[derive(Debug)]
pub struct Packet<'a> {
    /// The buffer up to the frame's last byte; every offset of `layout`, counted from `start`, lies
    /// inside it.
    pub(super) bytes: &'a mut [u8],
    /// Where the frame begins. Before it is room to grow.
    pub(super) start: usize,
    /// It is an envelope that was put around another packet here.
    pub(super) wrapped: bool,
    /// Where things are.
    pub layout: Layout,
    /// What the device must still do.
    pub offload: Offload,
}

impl<'a> Packet<'a> {
    /// Joins a frame and the layout that was read from it.
    pub fn new(frame: &'a mut Frame<'_>, layout: Layout) -> Packet<'a> {
        let (start, end) = (frame.meta.start as usize, frame.meta.end as usize);
        debug_assert!(start + layout.end as usize <= end);
        Packet {
            bytes: &mut frame.buffer[..end],
            start,
            wrapped: false,
            layout,
            offload: frame.meta.offload,
        }
    }

    /// A packet in bare bytes; for packets quoted or built in memory.
    pub fn over(bytes: &'a mut [u8], layout: Layout, offload: Offload) -> Packet<'a> {
        debug_assert!(layout.end as usize <= bytes.len());
        Packet {
            bytes,
            start: 0,
            wrapped: false,
            layout,
            offload,
        }
    }

    /// A packet whose frame begins at `start` of its buffer; the bytes before it are room to grow.
    pub fn inside(buffer: &'a mut [u8], start: usize, layout: Layout) -> Packet<'a> {
        debug_assert!(start + layout.end as usize <= buffer.len());
        Packet {
            bytes: buffer,
            start,
            wrapped: false,
            layout,
            offload: Offload::default(),
        }
    }

    /// Where the frame lies in its buffer now, and what is left for a device to do; see `Frame::moved`.
    pub fn place(&self) -> Place {
        Place {
            start: self.start as u32,
            end: self.end() as u32,
            offload: self.offload,
        }
    }

    /// Was it put into an envelope since it was parsed?
    pub fn is_wrapped(&self) -> bool {
        self.wrapped
    }

    /// Where the network header lies in `bytes`.
    pub(super) fn l3(&self) -> usize {
        self.start + usize::from(self.layout.l3)
    }

    /// Where the transport header lies in `bytes`.
    pub(super) fn l4(&self) -> usize {
        self.start + usize::from(self.layout.l4)
    }

    /// Where the packet ends in `bytes`.
    pub(super) fn end(&self) -> usize {
        self.start + self.layout.end as usize
    }

    /// The frame's bytes, Ethernet padding included.
    pub fn frame(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    /// The IP packet: network header to last byte, without padding.
    pub fn ip(&self) -> &[u8] {
        &self.bytes[self.l3()..self.end()]
    }

    /// The transport header and what follows.
    pub fn transport(&self) -> &[u8] {
        &self.bytes[self.l4()..self.end()]
    }

    /// Length of the IP packet in bytes; what counters count.
    pub fn ip_len(&self) -> usize {
        self.layout.end as usize - usize::from(self.layout.l3)
    }

    /// The IP packet's length on the wire: of one segment for a super-frame.
    pub fn wire_len(&self) -> usize {
        if !self.offload.is_gso() {
            return self.ip_len();
        }
        let header = match self.layout.protocol {
            number::TCP => usize::from(self.bytes[self.l4() + 12] >> 4) * 4,
            _ => 8,
        };
        self.l4() - self.l3() + header + usize::from(self.offload.segment_len())
    }

    /// Who the frame is for; zero where there is no Ethernet header.
    pub fn target_mac(&self) -> Mac {
        self.mac_at(0)
    }

    /// Who sent the frame; zero where there is no Ethernet header.
    pub fn source_mac(&self) -> Mac {
        self.mac_at(6)
    }

    fn mac_at(&self, at: usize) -> Mac {
        let mac = self.bytes[self.start + at..].first_chunk();
        match self.layout.l3 {
            0 => Mac::default(),
            _ => Mac(*mac.expect("an Ethernet header is whole")),
        }
    }

    /// The IP source address.
    pub fn source(&self) -> IpAddr {
        self.address_at(if self.layout.kind == Kind::V4 { 12 } else { 8 })
    }

    /// The IP target address.
    pub fn target(&self) -> IpAddr {
        self.address_at(if self.layout.kind == Kind::V4 { 16 } else { 24 })
    }

    fn address_at(&self, offset: usize) -> IpAddr {
        let at = self.l3() + offset;
        if self.layout.kind == Kind::V4 {
            let bytes: [u8; 4] = self.bytes[at..at + 4].try_into().expect("four bytes");
            IpAddr::V4(Ipv4Addr::from(bytes))
        } else {
            let bytes: [u8; 16] = self.bytes[at..at + 16].try_into().expect("sixteen bytes");
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
    }

    /// The source port; 0 where the transport header is cut off.
    pub fn source_port(&self) -> u16 {
        if self.layout.transport {
            be16(self.bytes, self.l4())
        } else {
            0
        }
    }

    /// The target port; 0 where the transport header is cut off.
    pub fn target_port(&self) -> u16 {
        if self.layout.transport {
            be16(self.bytes, self.l4() + 2)
        } else {
            0
        }
    }

    /// The flags of a TCP segment; 0 for anything else.
    pub fn tcp_flags(&self) -> u8 {
        let whole = self.layout.transport && self.layout.protocol == number::TCP;
        if whole { self.bytes[self.l4() + 13] } else { 0 }
    }

    /// Is it an IPv4 packet?
    pub fn is_v4(&self) -> bool {
        self.layout.kind == Kind::V4
    }

    /// TTL or hop limit.
    pub fn ttl(&self) -> u8 {
        self.bytes[self.l3() + if self.layout.kind == Kind::V4 { 8 } else { 7 }]
    }

    /// DF is set. IPv6 is never fragmented on its way.
    pub fn dont_fragment(&self) -> bool {
        self.layout.kind == Kind::V6 || self.bytes[self.l3() + 6] & 0x40 != 0
    }

    /// Types of the first two chunks of an SCTP packet: the second lies behind the first, on a
    /// four-byte boundary.
    pub fn sctp_chunks(&self) -> Option<(u8, Option<u8>)> {
        let packet = self.transport();
        let first = *packet.get(12)?;
        let len = usize::from(u16::from_be_bytes([*packet.get(14)?, *packet.get(15)?]));
        Some((
            first,
            packet.get(12 + len.max(4).next_multiple_of(4)).copied(),
        ))
    }
}
