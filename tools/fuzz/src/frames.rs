//! Builds frames with right checksums: TCP, UDP and SCTP over IPv4 and IPv6, ICMP, ARP, neighbour
//! discovery. It shares no code with the director, so that it can judge the director's sums.

use std::net::IpAddr;

use ulvs::wire::Offload;

/// Ethernet, IPv4 and IPv6 numbers (IANA).
pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
pub const ETHERTYPE_VLAN: u16 = 0x8100;
pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMPV6: u8 = 58;
pub const FRAGMENT: u8 = 44;
pub const SCTP: u8 = 132;

/// Where real servers take GUE.
pub const GUE_PORT: u16 = 6080;

/// Address and port.
pub type End = (IpAddr, u16);

/// The Internet checksum (RFC 1071) over all parts, each of even length but the last.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The pseudo-header of a transport checksum (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo_header(source: IpAddr, target: IpAddr, protocol: u8, len: usize) -> Vec<u8> {
    let mut bytes = octets(source);
    bytes.extend(octets(target));
    if source.is_ipv4() {
        bytes.extend([0, protocol]);
        bytes.extend((len as u16).to_be_bytes());
    } else {
        bytes.extend((len as u32).to_be_bytes());
        bytes.extend([0, 0, 0, protocol]);
    }
    bytes
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An IP packet around `payload`.
pub fn ip(source: IpAddr, target: IpAddr, protocol: u8, ttl: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(40 + payload.len());
    if source.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend(((20 + payload.len()) as u16).to_be_bytes());
        packet.extend([0x12, 0x34, 0x40, 0, ttl, protocol, 0, 0]);
        packet.extend(octets(source));
        packet.extend(octets(target));
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend((payload.len() as u16).to_be_bytes());
        packet.extend([protocol, ttl]);
        packet.extend(octets(source));
        packet.extend(octets(target));
    }
    packet.extend(payload);
    packet
}

/// Puts the transport checksum at `at`, over the pseudo-header and all of `bytes`.
fn finish(bytes: &mut [u8], at: usize, source: IpAddr, target: IpAddr, protocol: u8) {
    bytes[at..at + 2].fill(0);
    let pseudo = pseudo_header(source, target, protocol, bytes.len());
    let sum = match checksum(&[&pseudo, bytes]) {
        0 if protocol == UDP => 0xffff,
        sum => sum,
    };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// A TCP segment in an IP packet.
pub fn tcp(source: End, target: End, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(20 + payload.len());
    bytes.extend(source.1.to_be_bytes());
    bytes.extend(target.1.to_be_bytes());
    bytes.extend([
        0, 0, 0x10, 0, 0, 0, 0x20, 0, 0x50, flags, 0x40, 0, 0, 0, 0, 0,
    ]);
    bytes.extend(payload);
    finish(&mut bytes, 16, source.0, target.0, TCP);
    ip(source.0, target.0, TCP, 64, &bytes)
}

/// A UDP datagram in an IP packet.
pub fn udp(source: End, target: End, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(8 + payload.len());
    bytes.extend(source.1.to_be_bytes());
    bytes.extend(target.1.to_be_bytes());
    bytes.extend(((8 + payload.len()) as u16).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    finish(&mut bytes, 6, source.0, target.0, UDP);
    ip(source.0, target.0, UDP, 64, &bytes)
}

/// The CRC32c of an SCTP packet whose checksum field counts as zero (RFC 9260 appendix A), bit by bit.
pub fn crc32c(packet: &[u8]) -> u32 {
    let mut crc = !0u32;
    for (at, byte) in packet.iter().enumerate() {
        crc ^= u32::from(if (8..12).contains(&at) { 0 } else { *byte });
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// An SCTP packet with one chunk.
pub fn sctp(source: End, target: End, chunk: u8) -> Vec<u8> {
    sctp_with(source, target, chunk, &[])
}

/// The same with something in the chunk: a multiple of four bytes.
pub fn sctp_with(source: End, target: End, chunk: u8, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 + value.len());
    bytes.extend(source.1.to_be_bytes());
    bytes.extend(target.1.to_be_bytes());
    bytes.extend([0, 0, 0, 1, 0, 0, 0, 0, chunk, 0]);
    bytes.extend((4 + value.len() as u16).to_be_bytes());
    bytes.extend(value);
    let sum = crc32c(&bytes);
    bytes[8..12].copy_from_slice(&sum.to_le_bytes());
    ip(source.0, target.0, SCTP, 64, &bytes)
}

/// An ICMP message of the family of `source`.
pub fn icmp(source: IpAddr, target: IpAddr, kind: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(rest);
    if source.is_ipv4() {
        let sum = checksum(&[&bytes]);
        bytes[2..4].copy_from_slice(&sum.to_be_bytes());
        ip(source, target, ICMP, 64, &bytes)
    } else {
        finish(&mut bytes, 2, source, target, ICMPV6);
        // Neighbour discovery is only believed with hop limit 255 (RFC 4861 section 7.1).
        ip(source, target, ICMPV6, 255, &bytes)
    }
}

/// An ICMP error about `quote`, the beginning of an IP packet.
pub fn icmp_error(source: IpAddr, target: IpAddr, kind: u8, code: u8, quote: &[u8]) -> Vec<u8> {
    let mut rest = vec![0, 0, 5, 0x78];
    rest.extend(quote);
    icmp(source, target, kind, code, &rest)
}

/// An ARP message (RFC 826); both addresses are IPv4.
pub fn arp(op: u16, sender: ([u8; 6], [u8; 4]), target: ([u8; 6], [u8; 4])) -> Vec<u8> {
    let mut bytes = vec![0, 1, 8, 0, 6, 4];
    bytes.extend(op.to_be_bytes());
    bytes.extend(sender.0);
    bytes.extend(sender.1);
    bytes.extend(target.0);
    bytes.extend(target.1);
    bytes
}

/// An Ethernet frame.
pub fn ethernet(target: [u8; 6], source: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(14 + payload.len());
    bytes.extend(target);
    bytes.extend(source);
    bytes.extend(ethertype.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The Ethernet type of an IP packet.
pub fn ethertype(packet: &[u8]) -> u16 {
    match packet.first().map(|byte| byte >> 4) {
        Some(6) => ETHERTYPE_IPV6,
        _ => ETHERTYPE_IPV4,
    }
}

/// Is every checksum of this whole IP packet right? Packets we have no opinion about are.
pub fn sums_are_right(packet: &[u8]) -> bool {
    own_sums_are_right(packet) && inside(packet).is_none_or(own_sums_are_right)
}

/// The packet in an envelope of IP in IP, GRE or GUE, whose own checksum, where it has one, is right.
fn inside(packet: &[u8]) -> Option<&[u8]> {
    let (header, protocol, ..) = read_ip(packet)?;
    let bytes = &packet[header..];
    let len = match protocol {
        4 | 41 => 0,
        47 if *bytes.first()? & 0x80 != 0 => {
            assert_eq!(checksum(&[bytes]), 0, "GRE: {packet:02x?}");
            8
        }
        47 => 4,
        UDP if bytes.get(2..4)? == GUE_PORT.to_be_bytes() => 12,
        _ => return None,
    };
    bytes.get(len..)
}

fn own_sums_are_right(packet: &[u8]) -> bool {
    let Some((header, protocol, source, target)) = read_ip(packet) else {
        return true;
    };
    if source.is_ipv4() && checksum(&[&packet[..header]]) != 0 {
        return false;
    }
    let bytes = &packet[header..];
    let at = match protocol {
        SCTP if bytes.len() >= 12 => return crc32c(bytes).to_le_bytes() == bytes[8..12],
        TCP => 16,
        UDP => 6,
        ICMP | ICMPV6 => 2,
        _ => return true,
    };
    if bytes.len() < at + 2 {
        return true;
    }
    // Over IPv6 only a tunnel may do without (RFC 6935).
    let may_lack = source.is_ipv4() || bytes[2..4] == GUE_PORT.to_be_bytes();
    if protocol == UDP && bytes[6..8] == [0, 0] && may_lack {
        return true;
    }
    let pseudo = match protocol {
        ICMP => Vec::new(),
        _ => pseudo_header(source, target, protocol, bytes.len()),
    };
    checksum(&[&pseudo, bytes]) == 0
}

/// The fragments of a packet, each with so many bytes of it, a multiple of eight. None if it is not whole.
pub fn fragments(packet: &[u8], size: usize, ident: u16) -> Vec<Vec<u8>> {
    let Some((header, protocol, source, target)) = read_ip(packet) else {
        return Vec::new();
    };
    let count = (packet.len() - header).div_ceil(size);
    let parts = packet[header..].chunks(size).enumerate();
    let made = parts.map(|(index, part)| {
        let (offset, more) = (index * size, index + 1 < count);
        if source.is_ipv4() {
            let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
            let mut made = packet[..header].to_vec();
            made[2..4].copy_from_slice(&((header + part.len()) as u16).to_be_bytes());
            made[4..6].copy_from_slice(&ident.to_be_bytes());
            made[6..8].copy_from_slice(&word.to_be_bytes());
            made[10..12].fill(0);
            let sum = checksum(&[&made]);
            made[10..12].copy_from_slice(&sum.to_be_bytes());
            made.extend(part);
            return made;
        }
        let mut payload = vec![protocol, 0];
        payload.extend((offset as u16 | u16::from(more)).to_be_bytes());
        payload.extend(u32::from(ident).to_be_bytes());
        payload.extend(part);
        ip(source, target, FRAGMENT, packet[7], &payload)
    });
    made.collect()
}

/// Offset, bytes and "more" of a fragment, and where its header that all share ends.
pub fn read_fragment(packet: &[u8]) -> Option<(usize, bool, usize)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let word = usize::from(u16::from_be_bytes([packet[6], packet[7]]));
            let header = usize::from(packet[0] & 15) * 4;
            (word & 0x3fff != 0).then_some(((word & 0x1fff) * 8, word & 0x2000 != 0, header))
        }
        6 if packet.len() >= 48 && packet[6] == FRAGMENT => {
            let word = usize::from(u16::from_be_bytes([packet[42], packet[43]]));
            Some((word & 0xfff8, word & 1 != 0, 48))
        }
        _ => None,
    }
}

/// Header length, protocol and addresses of a whole IP packet that is no fragment and has no
/// extension headers.
pub fn read_ip(packet: &[u8]) -> Option<(usize, u8, IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 if packet.len() >= 20 => {
            let header = usize::from(packet[0] & 15) * 4;
            let total = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            let fragment = u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0;
            if header < 20 || total != packet.len() || header > total || fragment {
                return None;
            }
            let source: [u8; 4] = packet[12..16].try_into().ok()?;
            let target: [u8; 4] = packet[16..20].try_into().ok()?;
            Some((header, packet[9], source.into(), target.into()))
        }
        6 if packet.len() >= 40 => {
            let len = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            if len + 40 != packet.len() {
                return None;
            }
            let source: [u8; 16] = packet[8..24].try_into().ok()?;
            let target: [u8; 16] = packet[24..40].try_into().ok()?;
            Some((40, packet[6], source.into(), target.into()))
        }
        _ => None,
    }
}

/// Is the unfinished checksum of this whole packet the plain sum over its pseudo-header, as the device
/// that finishes it wants, and is the device told where it is? `l3` bytes stand before the packet.
pub fn partial_sum_is_right(packet: &[u8], l3: usize, offload: Offload) -> bool {
    let Some((header, protocol, source, target)) = read_ip(packet) else {
        return true;
    };
    let bytes = &packet[header..];
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return true,
    };
    let pseudo = pseudo_header(source, target, protocol, bytes.len());
    let wanted = !checksum(&[&pseudo]);
    if (offload.csum_start(), offload.csum_offset()) != (l3 + header, at) {
        return false;
    }
    bytes.len() >= at + 2 && same_sum(u16::from_be_bytes([bytes[at], bytes[at + 1]]), wanted)
}

/// Ones' complement has two zeros.
fn same_sum(a: u16, b: u16) -> bool {
    a == b || (a == 0 && b == 0xffff) || (a == 0xffff && b == 0)
}

/// Replaces the transport checksum by the plain sum over the pseudo-header, as a sender on the same
/// machine leaves it, and says what its offload is (without Ethernet header).
pub fn make_partial(packet: &mut [u8]) -> Option<(u16, u16)> {
    let (header, protocol, source, target) = read_ip(packet)?;
    let at = match protocol {
        TCP => 16,
        UDP => 6,
        _ => return None,
    };
    let pseudo = pseudo_header(source, target, protocol, packet.len() - header);
    let sum = !checksum(&[&pseudo]);
    packet[header + at..header + at + 2].copy_from_slice(&sum.to_be_bytes());
    Some((header as u16, at as u16))
}

/// Sets the first word behind the IP header so that a TCP or UDP checksum over what is there holds,
/// even where the field itself is cut off.
pub fn make_sum_hold(packet: &mut [u8]) {
    let Some((header, protocol, source, target)) = read_ip(packet) else {
        return;
    };
    if packet.len() < header + 2 {
        return;
    }
    packet[header..header + 2].fill(0);
    let body = &packet[header..];
    let pseudo = pseudo_header(source, target, protocol, body.len());
    let word = checksum(&[&pseudo, body]);
    packet[header..header + 2].copy_from_slice(&word.to_be_bytes());
}
