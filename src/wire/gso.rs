//! Segments: a super-frame is cut into the packets it stands for, as a device would do it
//! (virtio 1.2 section 5.1.6.2, Linux `tcp_gso_segment`, `__udp_gso_segment`). For packets that go where
//! no device can follow: into a tunnel.

use std::net::IpAddr;

use super::checksum::{self, Sum};
use super::packet::{Packet, number};

/// Flags of TCP that only the last segment has (FIN, PSH), and that only the first has (CWR).
const TCP_LAST: u8 = 0x09;
const TCP_FIRST: u8 = 0x80;

/// The segments of a super-frame.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'p> {
    /// From the IP header to the last byte.
    packet: &'p [u8],
    source: IpAddr,
    target: IpAddr,
    protocol: u8,
    /// Where the transport header begins, and where its data does.
    l4: usize,
    data: usize,
    /// Most bytes of data in one segment.
    size: usize,
}

impl<'p> Segments<'p> {
    /// The segments of this packet. `None` if it is not a super-frame of TCP or of UDP segments.
    pub fn new(packet: &'p Packet<'_>) -> Option<Segments<'p>> {
        let (ip, layout) = (packet.ip(), packet.layout);
        let l4 = usize::from(layout.l4 - layout.l3);
        let size = usize::from(packet.offload.segment_len());
        let data = match layout.protocol {
            number::TCP if packet.offload.is_tcp_gso() && layout.transport => {
                l4 + usize::from(ip[l4 + 12] >> 4) * 4
            }
            number::UDP if packet.offload.is_udp_gso() && layout.transport => l4 + 8,
            _ => return None,
        };
        let sound = size != 0 && data <= ip.len();
        sound.then_some(Segments {
            packet: ip,
            source: packet.source(),
            target: packet.target(),
            protocol: layout.protocol,
            l4,
            data,
            size,
        })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        (self.packet.len() - self.data).div_ceil(self.size).max(1)
    }

    /// There is always one.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Bytes of the longest as a packet: all but the last are so long.
    pub fn longest(&self) -> usize {
        (self.data + self.size).min(self.packet.len())
    }

    /// Appends segment `index` to `out`: a whole IP packet with its sums.
    pub fn write(&self, index: usize, out: &mut Vec<u8>) {
        let from = self.data + index * self.size;
        let to = (from + self.size).min(self.packet.len());
        let base = out.len();
        out.extend_from_slice(&self.packet[..self.data]);
        out.extend_from_slice(&self.packet[from..to]);
        let segment = &mut out[base..];
        self.finish_ip(segment, index);
        match self.protocol {
            number::TCP => self.finish_tcp(segment, index),
            _ => self.finish_udp(segment),
        }
    }

    fn finish_ip(&self, segment: &mut [u8], index: usize) {
        let len = segment.len();
        if self.source.is_ipv6() {
            segment[4..6].copy_from_slice(&((len - 40) as u16).to_be_bytes());
            return;
        }
        let ident = u16::from_be_bytes([segment[4], segment[5]]).wrapping_add(index as u16);
        segment[2..4].copy_from_slice(&(len as u16).to_be_bytes());
        segment[4..6].copy_from_slice(&ident.to_be_bytes());
        segment[10..12].fill(0);
        let sum = Sum::of(&segment[..self.l4]).checksum();
        segment[10..12].copy_from_slice(&sum.to_be_bytes());
    }

    fn finish_tcp(&self, segment: &mut [u8], index: usize) {
        let header = &mut segment[self.l4..];
        let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
        let seq = seq.wrapping_add((index * self.size) as u32);
        header[4..8].copy_from_slice(&seq.to_be_bytes());
        if index + 1 != self.len() {
            header[13] &= !TCP_LAST;
        }
        if index != 0 {
            header[13] &= !TCP_FIRST;
        }
        self.finish_sum(header, 16);
    }

    fn finish_udp(&self, segment: &mut [u8]) {
        let header = &mut segment[self.l4..];
        let len = header.len() as u16;
        header[4..6].copy_from_slice(&len.to_be_bytes());
        self.finish_sum(header, 6);
    }

    fn finish_sum(&self, transport: &mut [u8], field: usize) {
        transport[field..field + 2].fill(0);
        let pseudo =
            checksum::pseudo_header(self.source, self.target, self.protocol, transport.len());
        // Zero would say "no checksum" in UDP; its twin means the same to TCP.
        let sum = match Sum::of(transport).plus(pseudo).checksum() {
            0 => 0xffff,
            sum => sum,
        };
        transport[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::offload::{Offload, VNET_HEADER_LEN};
    use crate::wire::{Layout, Malformed};

    /// What virtio calls a super-frame of this kind, with segments of 100 bytes.
    fn offload(gso_type: u8) -> Offload {
        let mut bytes = [0; VNET_HEADER_LEN];
        (bytes[0], bytes[1]) = (1, gso_type);
        bytes[4..6].copy_from_slice(&100u16.to_ne_bytes());
        Offload::decode(&bytes)
    }

    /// IPv4, TCP or UDP, so many bytes of data, whatever sums.
    fn packet(protocol: u8, data: usize) -> Vec<u8> {
        let header = if protocol == number::TCP { 20 } else { 8 };
        let len = (20 + header + data) as u16;
        let mut bytes = vec![0x45, 0, 0, 0, 0xff, 0xff, 0x40, 0, 64, protocol, 0, 0];
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = Sum::of(&bytes).checksum();
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend([0x9c, 0x40, 0, 80]);
        if protocol == number::TCP {
            // Sequence number close to its end; CWR, PSH, ACK and FIN.
            bytes.extend([
                0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 1, 0x50, 0x99, 1, 0, 0, 0, 0, 0,
            ]);
        } else {
            bytes.extend([0, 0, 0, 0]);
        }
        bytes.extend((0..data).map(|at| at as u8));
        bytes
    }

    fn cut(mut bytes: Vec<u8>, gso_type: u8) -> Result<Option<Vec<Vec<u8>>>, Malformed> {
        let layout = Layout::parse(&bytes, true)?;
        let packet = Packet::over(&mut bytes, layout, offload(gso_type));
        let Some(segments) = Segments::new(&packet) else {
            return Ok(None);
        };
        let written = (0..segments.len()).map(|index| {
            let mut out = vec![7];
            segments.write(index, &mut out);
            out.split_off(1)
        });
        Ok(Some(written.collect()))
    }

    #[test]
    fn segments_are_whole_packets_in_order() {
        for (protocol, gso_type, header) in [(number::TCP, 1, 40), (number::UDP, 5, 28)] {
            let whole = packet(protocol, 250);
            let cut = cut(whole.clone(), gso_type).expect("a packet");
            let mut data = Vec::new();
            let cut = cut.expect("a super-frame");
            assert_eq!(cut.len(), 3);
            for (index, mut segment) in cut.into_iter().enumerate() {
                let layout = Layout::parse(&segment, true).expect("a packet with its sum");
                assert_eq!(
                    segment[4..6],
                    (0xffffu16.wrapping_add(index as u16)).to_be_bytes()
                );
                data.extend_from_slice(&segment[header..]);
                if protocol == number::TCP {
                    let seq = 0xffff_fff0u32.wrapping_add(100 * index as u32);
                    assert_eq!(segment[24..28], seq.to_be_bytes());
                    assert_eq!(segment[33], [0x90, 0x10, 0x19][index], "segment {index}");
                }
                let packet = Packet::over(&mut segment, layout, Offload::default());
                assert!(packet.transport_sum_holds(), "segment {index}");
            }
            assert_eq!(data, whole[header..]);
        }
    }

    #[test]
    fn what_is_no_super_frame_is_not_cut() {
        for (protocol, gso_type) in [(number::TCP, 0), (number::TCP, 5), (number::UDP, 3)] {
            assert_eq!(cut(packet(protocol, 250), gso_type), Ok(None));
        }
        let mut lies = packet(number::TCP, 0);
        lies[32] = 0xf0;
        assert_eq!(cut(lies, 1), Ok(None), "a header longer than the packet");
    }
}
