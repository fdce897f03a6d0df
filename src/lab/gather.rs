//! Segments of a TCP connection that came one behind the other become a super-frame, as the kernel does
//! it on real devices (`tcp_gro_receive`): what comes out of a tunnel in user space would else cross the
//! kernel piece by piece. It changes nothing that the receiver can see.

use crate::wire::checksum::Sum;
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::packet::{Fragment, Kind, number};
use crate::wire::{Layout, Offload, Packet};

/// The longest IP packet.
const PACKET_BYTES_MAX: usize = 65_535;
/// IP headers without options.
const V4_LEN: usize = 20;
const V6_LEN: usize = 40;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
/// Where the flags and the checksum are in a TCP header.
const FLAGS_AT: usize = 13;
const CHECKSUM_AT: usize = 16;
/// `virtio_net_hdr`: the checksum is unfinished; segments of TCP over IPv4, over IPv6.
const NEEDS_CSUM: u8 = 1;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;

/// The segments that wait for more.
#[derive(Debug, Default)]
pub struct Gather {
    bytes: Vec<u8>,
    run: Option<Run>,
}

/// What is gathered.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where TCP begins, and where its data does.
    l4: usize,
    data: usize,
    /// Bytes of data in each segment.
    size: usize,
    segments: usize,
    /// The number of the byte that comes next.
    next: u32,
}

impl Gather {
    /// Takes a packet, and gives to `send` what cannot wait: a packet and what is left to do with it.
    pub fn push(&mut self, packet: &mut [u8], send: &mut dyn FnMut(&[u8], Offload)) {
        let Some(run) = read(packet) else {
            self.flush(send);
            return send(packet, Offload::default());
        };
        if !self.takes(&run, packet) {
            self.flush(send);
            self.bytes.clear();
            self.bytes.extend_from_slice(packet);
            self.run = Some(run);
        }
        let pushed = packet[run.l4 + FLAGS_AT] & PSH != 0;
        if pushed || self.run.is_some_and(|whole| whole.size != run.size) {
            self.flush(send);
        }
    }

    /// Adds the segment if it is the next of those that wait.
    fn takes(&mut self, new: &Run, packet: &[u8]) -> bool {
        let Some(run) = &mut self.run else {
            return false;
        };
        let next = new.next.wrapping_sub(new.size as u32) == run.next
            && (new.l4, new.data) == (run.l4, run.data)
            && new.size <= run.size
            && self.bytes.len() + new.size <= PACKET_BYTES_MAX
            && is_alike(&self.bytes, packet, run);
        if next {
            self.bytes.extend_from_slice(&packet[run.data..]);
            self.bytes[run.l4 + FLAGS_AT] |= packet[run.l4 + FLAGS_AT];
            (run.next, run.segments) = (new.next, run.segments + 1);
        }
        next
    }

    /// Sends what waits: call it when nothing more is there for the moment.
    pub fn flush(&mut self, send: &mut dyn FnMut(&[u8], Offload)) {
        match self.run.take() {
            None => {}
            Some(run) if run.segments == 1 => send(&self.bytes, Offload::default()),
            Some(run) => {
                let offload = self.finish(&run);
                send(&self.bytes, offload);
            }
        }
    }

    /// The lengths of the whole, its header's sum, and the start of the other, which the kernel finishes
    /// if it has to.
    fn finish(&mut self, run: &Run) -> Offload {
        let is_v4 = run.l4 == V4_LEN;
        let len = (self.bytes.len() - run.l4) as u16;
        let mut pseudo = vec![0, number::TCP];
        pseudo.extend(len.to_be_bytes());
        if is_v4 {
            let whole = self.bytes.len() as u16;
            self.bytes[2..4].copy_from_slice(&whole.to_be_bytes());
            self.bytes[10..12].fill(0);
            let sum = Sum::of(&self.bytes[..V4_LEN]).checksum();
            self.bytes[10..12].copy_from_slice(&sum.to_be_bytes());
            pseudo.extend(&self.bytes[12..V4_LEN]);
        } else {
            self.bytes[4..6].copy_from_slice(&len.to_be_bytes());
            pseudo.extend(&self.bytes[8..V6_LEN]);
        }
        let start = !Sum::of(&pseudo).checksum();
        let at = run.l4 + CHECKSUM_AT;
        self.bytes[at..at + 2].copy_from_slice(&start.to_be_bytes());
        let mut header = [0; VNET_HEADER_LEN];
        header[0] = NEEDS_CSUM;
        header[1] = if is_v4 { GSO_TCPV4 } else { GSO_TCPV6 };
        let words = [run.data, run.size, run.l4, CHECKSUM_AT];
        for (place, word) in header[2..].chunks_exact_mut(2).zip(words) {
            place.copy_from_slice(&(word as u16).to_ne_bytes());
        }
        Offload::decode(&header)
    }
}

/// A whole segment that only carries data, with nothing wrong about it; its last byte is the packet's.
fn read(packet: &mut [u8]) -> Option<Run> {
    let layout = Layout::parse(packet, true).ok()?;
    let (l4, end) = (usize::from(layout.l4), layout.end as usize);
    let plain = match layout.kind {
        Kind::V4 => l4 == V4_LEN,
        Kind::V6 => l4 == V6_LEN,
        _ => false,
    };
    let tcp = layout.protocol == number::TCP && layout.transport;
    if !plain || !tcp || layout.fragment != Fragment::Whole || end != packet.len() {
        return None;
    }
    let data = l4 + usize::from(packet[l4 + 12] >> 4) * 4;
    let flags = packet[l4 + FLAGS_AT];
    if data >= end || flags & !PSH != ACK {
        return None;
    }
    if !Packet::over(packet, layout, Offload::default()).transport_sum_holds() {
        return None;
    }
    let size = end - data;
    let first = u32::from_be_bytes([
        packet[l4 + 4],
        packet[l4 + 5],
        packet[l4 + 6],
        packet[l4 + 7],
    ]);
    Some(Run {
        l4,
        data,
        size,
        segments: 1,
        next: first.wrapping_add(size as u32),
    })
}

/// Are the headers alike but for what is each segment's own: length, identification, sums, number, PSH?
fn is_alike(one: &[u8], other: &[u8], run: &Run) -> bool {
    let same = |from: usize, to: usize| one[from..to] == other[from..to];
    let ip = match run.l4 {
        V4_LEN => same(0, 2) && same(6, 10) && same(12, V4_LEN),
        _ => same(0, 4) && same(6, V6_LEN),
    };
    let tcp = |from: usize, to: usize| same(run.l4 + from, run.l4 + to);
    ip && tcp(0, 4) && tcp(8, FLAGS_AT) && tcp(14, CHECKSUM_AT) && same(run.l4 + 18, run.data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment with these bytes of data from this number on.
    fn segment(v6: bool, number: u32, data: &[u8], push: bool) -> Vec<u8> {
        let mut tcp = vec![0x9c, 0x40, 0, 80];
        tcp.extend(number.to_be_bytes());
        tcp.extend([0, 0, 0, 9, 0x50, ACK, 1, 0, 0, 0, 0, 0]);
        tcp[FLAGS_AT] |= if push { PSH } else { 0 };
        tcp.extend(data);
        let len = tcp.len() as u16;
        let ends: Vec<u8> = if v6 {
            (1..33).collect()
        } else {
            (1..9).collect()
        };
        let pseudo = [&ends[..], &[0, 6], &len.to_be_bytes(), &tcp].concat();
        let sum = Sum::of(&pseudo).checksum();
        tcp[CHECKSUM_AT..CHECKSUM_AT + 2].copy_from_slice(&sum.to_be_bytes());
        let mut ip = if v6 {
            let len = len.to_be_bytes();
            vec![0x60, 0, 0, 0, len[0], len[1], 6, 60]
        } else {
            let len = (len + 20).to_be_bytes();
            vec![
                0x45,
                0,
                len[0],
                len[1],
                0,
                number as u8,
                0x40,
                0,
                60,
                6,
                0,
                0,
            ]
        };
        ip.extend(&ends);
        if !v6 {
            let sum = Sum::of(&ip).checksum();
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        [ip, tcp].concat()
    }

    /// What comes out for what goes in.
    fn gathered(packets: &[Vec<u8>]) -> Vec<(Vec<u8>, Offload)> {
        let (mut gather, mut out) = (Gather::default(), Vec::new());
        let mut send = |bytes: &[u8], offload: Offload| out.push((bytes.to_vec(), offload));
        for packet in packets {
            gather.push(&mut packet.clone(), &mut send);
        }
        gather.flush(&mut send);
        out
    }

    /// Cut up again by what cuts for tunnels, it is what went in.
    #[test]
    fn what_is_gathered_is_what_came() {
        for v6 in [false, true] {
            let at = |number: u32| segment(v6, number, &[number as u8; 100], false);
            let mut packets: Vec<Vec<u8>> = (0..5).map(|number| at(number * 100)).collect();
            packets.push(segment(v6, 500, b"the rest", true));
            let out = gathered(&packets);
            assert_eq!(out.len(), 1);
            let (mut bytes, offload) = out.into_iter().next().unwrap();
            let layout = Layout::parse(&bytes, true).expect("a packet");
            let packet = Packet::over(&mut bytes, layout, offload);
            let segments = crate::wire::gso::Segments::new(&packet).expect("a super-frame");
            assert_eq!(segments.len(), 6);
            for (index, packet) in packets.iter().enumerate() {
                let mut piece = Vec::new();
                segments.write(index, &mut piece);
                // Identifications count on from the first.
                let own = if v6 { 4 } else { 12 };
                assert_eq!(piece[own..], packet[own..], "{index}");
            }
        }
    }

    #[test]
    fn what_does_not_follow_is_left_alone() {
        let plain = |number: u32| segment(false, number, &[7; 100], false);
        let mut wrong = plain(100);
        wrong[45] ^= 1;
        let mut fin = plain(100);
        fin[33] |= 1;
        let mut other = segment(false, 100, &[7; 100], false);
        other[12] = 99;
        for second in [
            plain(50),
            plain(101),
            plain(0),
            wrong,
            fin,
            other,
            vec![1, 2, 3],
            vec![],
        ] {
            let out = gathered(&[plain(0), second.clone()]);
            let untouched = Offload::default();
            assert_eq!(out, [(plain(0), untouched), (second, untouched)]);
        }
        let longer = segment(false, 100, &[7; 101], false);
        assert_eq!(gathered(&[plain(0), longer]).len(), 2);
        let many: Vec<Vec<u8>> = (0..1000).map(|number| plain(number * 100)).collect();
        assert_eq!(
            gathered(&many).len(),
            2,
            "no packet is longer than 65,535 bytes"
        );
    }
}
