//! Edits in place: addresses, ports, MAC addresses, TTL. Every sum that was right before is right
//! afterwards, also a partial one, which the device finishes later.

use std::net::IpAddr;

use super::Mac;
use super::checksum::{self, Sum};
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
            self.bytes[..6].copy_from_slice(&target.0);
            self.bytes[6..12].copy_from_slice(&source.0);
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
            self.refresh_header_sum();
        } else {
            self.bytes[l3 + 7] -= 1;
        }
    }

    /// Computes the IPv4 header's checksum anew.
    pub(super) fn refresh_header_sum(&mut self) {
        let (l3, l4) = (self.l3(), self.l4());
        self.bytes[l3 + 10..l3 + 12].fill(0);
        let sum = Sum::of(&self.bytes[l3..l4]).checksum();
        self.bytes[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
    }

    fn set_end(&mut self, end: End, address: IpAddr, port: u16) {
        let old_address = if end == End::Source {
            self.source()
        } else {
            self.target()
        };
        let old_port = if end == End::Source {
            self.source_port()
        } else {
            self.target_port()
        };
        self.write_address(end, address);
        if self.layout.kind == Kind::V4 {
            self.refresh_header_sum();
        }
        let with_ports = matches!(
            self.layout.protocol,
            number::TCP | number::UDP | number::SCTP
        );
        if !self.layout.transport || !with_ports {
            return;
        }
        let port_at = self.l4() + if end == End::Source { 0 } else { 2 };
        self.bytes[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
        let addresses = (
            checksum::of_address(old_address),
            checksum::of_address(address),
        );
        self.repair_transport_sum(addresses, (old_port, port));
    }

    /// Writes an address of the packet's own family.
    fn write_address(&mut self, end: End, address: IpAddr) {
        let l3 = self.l3();
        match (self.layout.kind, address) {
            (Kind::V4, IpAddr::V4(address)) => {
                let at = l3 + if end == End::Source { 12 } else { 16 };
                self.bytes[at..at + 4].copy_from_slice(&address.octets());
            }
            (Kind::V6, IpAddr::V6(address)) => {
                let at = l3 + if end == End::Source { 8 } else { 24 };
                self.bytes[at..at + 16].copy_from_slice(&address.octets());
            }
            (kind, address) => debug_assert!(false, "{address} does not fit a {kind:?} packet"),
        }
    }

    fn repair_transport_sum(&mut self, addresses: (Sum, Sum), ports: (u16, u16)) {
        match self.layout.protocol {
            number::TCP => self.repair_sum_at(16, addresses, ports, false),
            number::UDP => self.repair_sum_at(6, addresses, ports, true),
            number::SCTP if ports.0 != ports.1 && self.layout.fragment == Fragment::Whole => {
                let (l4, end) = (self.l4(), self.layout.end as usize);
                let sum = checksum::sctp(&self.bytes[l4..end]);
                self.bytes[l4 + 8..l4 + 12].copy_from_slice(&sum.to_le_bytes());
            }
            _ => {}
        }
    }

    fn repair_sum_at(
        &mut self,
        offset: usize,
        addresses: (Sum, Sum),
        ports: (u16, u16),
        udp: bool,
    ) {
        let at = self.l4() + offset;
        let field = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        let repaired = if self.offload.is_partial() {
            // The device sums the ports itself; only the pseudo-header is in the field.
            checksum::update_partial(field, addresses.0, addresses.1)
        } else if udp && field == 0 {
            match self.full_transport_sum(at) {
                Some(sum) => sum,
                None => return,
            }
        } else {
            let (old, new) = (addresses.0.word(ports.0), addresses.1.word(ports.1));
            checksum::update(field, old, new)
        };
        let partial = self.offload.is_partial();
        let repaired = if udp && !partial && repaired == 0 {
            0xffff
        } else {
            repaired
        };
        self.bytes[at..at + 2].copy_from_slice(&repaired.to_be_bytes());
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
        Some(Sum::of(body).minus(field).plus(pseudo).checksum())
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
