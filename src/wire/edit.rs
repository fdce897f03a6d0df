//! Edits in place: addresses, ports, MAC addresses, TTL. Every sum that was right before is right
//! afterwards, also a partial one, which the device finishes later.

use std::net::IpAddr;

use super::Mac;
use super::checksum::{self, Delta, Sum};
use super::offload::Offload;
use super::packet::{Fragment, Kind, Packet, number};

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
            let header = &mut self.bytes[self.start..self.start + 12];
            header[..6].copy_from_slice(&target.0);
            header[6..].copy_from_slice(&source.0);
        }
    }

    /// Replaces the source address and port.
    pub fn set_source(&mut self, address: IpAddr, port: u16) {
        self.set_end(End::Source, address, port);
    }

    /// Replaces the target address and port.
    pub fn set_target(&mut self, address: IpAddr, port: u16) {
        self.set_end(End::Target, address, port);
    }

    /// Takes one hop from TTL or hop limit, which must be above 1.
    pub fn decrement_ttl(&mut self) {
        debug_assert!(self.ttl() > 1);
        let l3 = self.l3();
        if self.layout.kind == Kind::V4 {
            self.bytes[l3 + 8] -= 1;
            // TTL is the upper byte of its word.
            self.repair_header_sum(Delta::none().word(0x0100, 0));
        } else {
            self.bytes[l3 + 7] -= 1;
        }
    }

    #[inline(always)]
    fn repair_header_sum(&mut self, delta: Delta) {
        let at = self.l3() + 10;
        let field = delta.apply(self.word_at(at));
        self.put_word(at, field);
    }

    #[inline(always)]
    fn word_at(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    #[inline(always)]
    fn put_word(&mut self, at: usize, word: u16) {
        self.bytes[at..at + 2].copy_from_slice(&word.to_be_bytes());
    }

    fn set_end(&mut self, end: End, address: IpAddr, port: u16) {
        let delta = self.replace_address(end, address);
        let with_ports = matches!(
            self.layout.protocol,
            number::TCP | number::UDP | number::SCTP
        );
        if !self.layout.transport || !with_ports {
            return;
        }
        let at = self.l4() + if end == End::Source { 0 } else { 2 };
        let old_port = self.word_at(at);
        self.put_word(at, port);
        match self.layout.protocol {
            number::TCP => self.repair_sum_at(16, delta, (old_port, port)),
            number::UDP => self.repair_sum_at(6, delta, (old_port, port)),
            _ if old_port != port => self.refresh_sctp_sum(),
            _ => {}
        }
    }

    /// Writes an address of the packet's own family, and repairs the header's sum.
    fn replace_address(&mut self, end: End, address: IpAddr) -> Delta {
        let l3 = self.l3();
        let old = if end == End::Source {
            self.source()
        } else {
            self.target()
        };
        let delta = Delta::address(old, address);
        match (self.layout.kind, address) {
            (Kind::V4, IpAddr::V4(address)) => {
                let at = l3 + if end == End::Source { 12 } else { 16 };
                self.bytes[at..at + 4].copy_from_slice(&address.octets());
                self.repair_header_sum(delta);
            }
            (Kind::V6, IpAddr::V6(address)) => {
                let at = l3 + if end == End::Source { 8 } else { 24 };
                self.bytes[at..at + 16].copy_from_slice(&address.octets());
            }
            (kind, address) => debug_assert!(false, "{address} does not fit a {kind:?} packet"),
        }
        delta
    }

    /// Every byte of an SCTP packet is under its checksum, so a changed port costs all of it.
    fn refresh_sctp_sum(&mut self) {
        if self.layout.fragment == Fragment::Whole {
            let (l4, end) = (self.l4(), self.end());
            let sum = checksum::sctp(&self.bytes[l4..end]);
            self.bytes[l4 + 8..l4 + 12].copy_from_slice(&sum.to_le_bytes());
        }
    }

    fn repair_sum_at(&mut self, offset: usize, addresses: Delta, ports: (u16, u16)) {
        let at = self.l4() + offset;
        let field = self.word_at(at);
        if self.offload.is_partial() {
            // The device sums the ports itself; only the pseudo-header is in the field.
            return self.put_word(at, addresses.apply_partial(field));
        }
        let udp = self.layout.protocol == number::UDP;
        let repaired = match field {
            0 if udp => self.full_transport_sum(at).unwrap_or(0),
            _ => addresses.word(ports.0, ports.1).apply(field),
        };
        // UDP says "no checksum" with 0; a sum that comes out as 0 is sent as its twin.
        let twin = udp && repaired == 0 && field != 0;
        self.put_word(at, if twin { 0xffff } else { repaired });
    }

    /// A UDP datagram without a checksum gets one when it is rewritten, as recorded from the kernel
    /// (`udp_snat_handler`, `udp_dnat_handler` recompute it in full). A fragment keeps none: its sum
    /// would have to cover bytes that are not here.
    fn full_transport_sum(&self, field_at: usize) -> Option<u16> {
        if self.layout.fragment != Fragment::Whole {
            return None;
        }
        let body = self.transport();
        let field = Sum::of(&self.bytes[field_at..field_at + 2]);
        let pseudo = checksum::pseudo_header(
            self.source(),
            self.target(),
            self.layout.protocol,
            body.len(),
        );
        let sum = Sum::of(body).minus(field).plus(pseudo).checksum();
        Some(if sum == 0 { 0xffff } else { sum })
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
        let body = self.transport();
        let protocol = self.layout.protocol;
        let unchecked = protocol == number::UDP
            && self.layout.kind == Kind::V4
            && body.get(6..8) == Some(&[0, 0]);
        if self.offload.is_partial() || unchecked {
            return true;
        }
        let pseudo = checksum::pseudo_header(self.source(), self.target(), protocol, body.len());
        Sum::of(body).plus(pseudo).folded() == 0xffff
    }
}
