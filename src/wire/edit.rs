//! Edits in place: addresses, ports, MAC addresses, TTL. Every sum that was right before is right
//! afterwards, also a partial one, which the device finishes later.

use std::net::{IpAddr, Ipv6Addr};

use super::Mac;
use super::checksum::{self, Delta, Sum};
use super::offload::Offload;
use super::packet::{Fragment, Kind, Packet, V4_LEN, number};

/// Lengths of headers without options.
const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;

/// Which end of the packet is rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Source,
    Target,
}

impl Packet<'_> {
    /// Sets the Ethernet header's addresses; nothing to do where there is none.
    pub fn set_macs(&mut self, target: Mac, source: Mac) {
        if self.layout.l3 != 0 {
            let header = self.bytes[self.start..].first_chunk_mut::<12>();
            let header = header.expect("an Ethernet header is whole");
            header[..6].copy_from_slice(&target.0);
            header[6..].copy_from_slice(&source.0);
        }
    }

    /// Replaces the source address and port.
    #[inline]
    pub fn set_source(&mut self, address: IpAddr, port: u16) {
        self.set_end(End::Source, address, port);
    }

    /// Replaces the target address and port.
    #[inline]
    pub fn set_target(&mut self, address: IpAddr, port: u16) {
        self.set_end(End::Target, address, port);
    }

    /// Takes one hop from TTL or hop limit, which must be above 1.
    #[inline]
    pub fn decrement_ttl(&mut self) {
        debug_assert!(self.ttl() > 1);
        if self.layout.kind == Kind::V4 {
            let header = self.v4_header();
            header[8] -= 1;
            // TTL is the upper byte of its word.
            repair(header, 10, Delta::none().word(0x0100, 0));
        } else {
            let l3 = self.l3();
            self.bytes[l3 + 7] -= 1;
        }
    }

    /// The IPv4 header without its options: its length is known, so one check serves for every access.
    #[inline(always)]
    fn v4_header(&mut self) -> &mut [u8; V4_LEN] {
        let at = self.l3();
        let header = self.bytes[at..].first_chunk_mut();
        header.expect("the layout of an IPv4 packet was read from a whole header")
    }

    #[inline(always)]
    fn word_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    #[inline(always)]
    fn put_word(&mut self, at: usize, word: u16) {
        self.bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }

    #[inline(always)]
    fn set_end(&mut self, end: End, address: IpAddr, port: u16) {
        let delta = self.replace_address(end, address);
        if !self.layout.transport {
            return;
        }
        match self.layout.protocol {
            number::TCP => self.replace_tcp_port(end, port, delta),
            number::UDP => self.replace_udp_port(end, port, delta),
            number::SCTP => self.replace_sctp_port(end, port),
            _ => {}
        }
    }

    /// Writes an address of the packet's own family, and repairs the header's sum.
    #[inline(always)]
    fn replace_address(&mut self, end: End, address: IpAddr) -> Delta {
        match (self.layout.kind, address) {
            (Kind::V4, IpAddr::V4(address)) => {
                let at = if end == End::Source { 12 } else { 16 };
                let header = self.v4_header();
                let old = [header[at], header[at + 1], header[at + 2], header[at + 3]];
                let delta = Delta::v4(old.into(), address);
                header[at..at + 4].copy_from_slice(&address.octets());
                repair(header, 10, delta);
                delta
            }
            (Kind::V6, IpAddr::V6(address)) => self.replace_v6_address(end, address),
            (kind, address) => {
                debug_assert!(false, "{address} does not fit a {kind:?} packet");
                Delta::none()
            }
        }
    }

    fn replace_v6_address(&mut self, end: End, address: Ipv6Addr) -> Delta {
        let at = self.l3() + if end == End::Source { 8 } else { 24 };
        let field = &mut self.bytes[at..at + 16];
        let old: [u8; 16] = (&*field).try_into().expect("sixteen bytes");
        field.copy_from_slice(&address.octets());
        Delta::address(IpAddr::from(old), address.into())
    }

    #[inline(always)]
    fn replace_tcp_port(&mut self, end: End, port: u16, addresses: Delta) {
        let (at, partial) = (self.l4(), self.offload.is_partial());
        let Some(header) = self.bytes[at..].first_chunk_mut::<TCP_LEN>() else {
            return debug_assert!(false, "a whole TCP header was announced");
        };
        let old = replace_port(header, end, port);
        let field = u16::from_be_bytes([header[16], header[17]]);
        let repaired = match partial {
            // The device sums the ports itself; only the pseudo-header is in the field.
            true => addresses.apply_partial(field),
            false => addresses.word(old, port).apply(field),
        };
        header[16..18].copy_from_slice(&repaired.to_be_bytes());
    }

    #[inline(always)]
    fn replace_udp_port(&mut self, end: End, port: u16, addresses: Delta) {
        let (at, partial) = (self.l4(), self.offload.is_partial());
        let Some(header) = self.bytes[at..].first_chunk_mut::<UDP_LEN>() else {
            return debug_assert!(false, "a whole UDP header was announced");
        };
        let old = replace_port(header, end, port);
        let field = u16::from_be_bytes([header[6], header[7]]);
        let repaired = match field {
            _ if partial => addresses.apply_partial(field),
            0 => return self.fill_udp_sum(at + 6),
            // UDP says "no checksum" with 0; a sum that comes out as 0 is sent as its twin.
            _ => match addresses.word(old, port).apply(field) {
                0 => 0xffff,
                sum => sum,
            },
        };
        header[6..8].copy_from_slice(&repaired.to_be_bytes());
    }

    fn replace_sctp_port(&mut self, end: End, port: u16) {
        let at = self.l4();
        if replace_port(&mut self.bytes[at..], end, port) != port {
            self.refresh_sctp_sum();
        }
    }

    /// Every byte of an SCTP packet is under its checksum, so a changed port costs all of it.
    fn refresh_sctp_sum(&mut self) {
        if self.layout.fragment == Fragment::Whole {
            let (l4, end) = (self.l4(), self.end());
            let sum = checksum::sctp(&self.bytes[l4..end]);
            self.bytes[l4 + 8..l4 + 12].copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// A UDP datagram without a checksum gets one when it is rewritten, as recorded from the kernel
    /// (`udp_snat_handler`, `udp_dnat_handler` recompute it in full). A fragment keeps none: its sum
    /// would have to cover bytes that are not here.
    #[cold]
    fn fill_udp_sum(&mut self, field_at: usize) {
        if self.layout.fragment != Fragment::Whole {
            return;
        }
        let body = self.transport();
        let (source, target) = (self.source(), self.target());
        let pseudo = checksum::pseudo_header(source, target, self.layout.protocol, body.len());
        // The field itself holds zero.
        let sum = match Sum::of(body).plus(pseudo).checksum() {
            0 => 0xffff,
            sum => sum,
        };
        self.put_word(field_at, sum);
    }

    /// Gives a packet the transport checksum that it would have at another target, and leaves the target
    /// as it is: what a host quotes that got it rewritten.
    pub fn set_sum_of_target(&mut self, address: IpAddr, port: u16) {
        let (target, target_port) = (self.target(), self.target_port());
        self.set_target(address, port);
        let at = self.l4()
            + if self.layout.protocol == number::TCP {
                16
            } else {
                6
            };
        let sum = self.word_at(at);
        self.set_target(target, target_port);
        self.put_word(at, sum);
    }

    /// Writes the transport checksum that was left to a device, so that nothing is left to it. (A
    /// super-frame has one for each of its segments, and is none of this.)
    pub fn finish_sum(&mut self) {
        if !self.offload.is_partial() || self.offload.is_gso() {
            return;
        }
        if self.layout.protocol == number::SCTP {
            self.refresh_sctp_sum();
            self.offload = Offload::default();
            return;
        }
        let from = self.start + self.offload.csum_start();
        let (field, end) = (from + self.offload.csum_offset(), self.end());
        if field + 2 <= end {
            // Zero would say "no checksum" in UDP; its twin means the same to TCP.
            let sum = match Sum::of(&self.bytes[from..end]).checksum() {
                0 => 0xffff,
                sum => sum,
            };
            self.put_word(field, sum);
        }
        self.offload = Offload::default();
    }

    /// Is the TCP or UDP checksum right? A partial one is, by its nature; so is a UDP checksum of 0.
    pub fn transport_sum_holds(&self) -> bool {
        if self.offload.is_partial() {
            return true;
        }
        let mut body = self.transport();
        let protocol = self.layout.protocol;
        if let (number::UDP, Some(len)) = (protocol, body.get(4..6)) {
            // What is behind the datagram's own length is not part of it (RFC 768).
            let len = usize::from(u16::from_be_bytes([len[0], len[1]]));
            match body.get(..len) {
                // A jumbogram's length does not fit (RFC 2675 section 4).
                _ if len == 0 && self.layout.kind == Kind::V6 => {}
                Some(whole) if len >= 8 => body = whole,
                _ => return false,
            }
        }
        let unchecked = protocol == number::UDP
            && self.layout.kind == Kind::V4
            && body.get(6..8) == Some(&[0, 0]);
        if unchecked {
            return true;
        }
        let pseudo = checksum::pseudo_header(self.source(), self.target(), protocol, body.len());
        Sum::of(body).plus(pseudo).folded() == 0xffff
    }
}

/// Applies a difference to the checksum field at `at` of a header.
#[inline(always)]
fn repair(header: &mut [u8; V4_LEN], at: usize, delta: Delta) {
    let field = delta.apply(u16::from_be_bytes([header[at], header[at + 1]]));
    header[at..at + 2].copy_from_slice(&field.to_be_bytes());
}

/// Writes a port into a transport header and returns the one it replaces.
#[inline(always)]
fn replace_port(header: &mut [u8], end: End, port: u16) -> u16 {
    let at = if end == End::Source { 0 } else { 2 };
    let field = &mut header[at..at + 2];
    let old = u16::from_be_bytes([field[0], field[1]]);
    field.copy_from_slice(&port.to_be_bytes());
    old
}
