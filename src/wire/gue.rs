//! GUE for super-frames: the segments of one, each in an envelope of its own, are again a super-frame, of
//! UDP datagrams of one length (virtio 1.2 section 5.1.6.2, Linux `__udp_gso_segment`). So a device can
//! cut at the end of the way what no device could cut inside IP in IP or GRE. And the other end of it:
//! what lies in a GUE header.

use std::ops::Range;

use super::checksum;
use super::encap::{Envelope, Outer};
use super::gso::Segments;
use super::offload::Offload;
use super::packet::number;

/// UDP's header, GUE's without optional fields, and where UDP's checksum is.
const UDP_LEN: usize = 8;
const GUE_LEN: usize = 4;
const UDP_SUM_AT: usize = 6;
/// The longest frame with its link header: Linux cuts a longer one itself (`gso_features_check`).
const FRAME_LEN_MAX: usize = 65_535;

/// A super-frame as super-frames of GUE: one, or two where the envelopes do not fit into one.
#[derive(Clone, Copy, Debug)]
pub struct Datagrams<'s> {
    segments: &'s Segments<'s>,
    /// How many super-frames, and how many segments in each but the last.
    frames: usize,
    share: usize,
}

impl<'s> Datagrams<'s> {
    /// Puts these segments behind `outer` and a link header of `link_len` bytes. `None` where one of them
    /// alone is too long, where there is only one, or the envelope is not GUE.
    pub fn new(
        segments: &'s Segments<'s>,
        outer: &Outer,
        link_len: usize,
    ) -> Option<Datagrams<'s>> {
        let Envelope::Gue { .. } = outer.envelope else {
            return None;
        };
        let room = FRAME_LEN_MAX - link_len - (outer.len() - GUE_LEN);
        let fit = room / (GUE_LEN + segments.longest());
        let count = segments.len();
        if fit < 2 || count < 2 {
            return None;
        }
        let frames = count.div_ceil(fit);
        let share = count.div_ceil(frames);
        Some(Datagrams {
            segments,
            frames: count.div_ceil(share),
            share,
        })
    }

    /// How many super-frames there are.
    pub fn len(&self) -> usize {
        self.frames
    }

    /// There is always one.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Which segments are in super-frame `index`.
    pub fn segments_of(&self, index: usize) -> Range<usize> {
        let first = index * self.share;
        first..(first + self.share).min(self.segments.len())
    }

    /// Appends super-frame `index` to `out`, which holds its link header; says what is left to do. Every
    /// datagram leaves with a UDP checksum, also where `outer` asks for none: that is how a device cuts UDP.
    pub fn write(&self, index: usize, outer: &Outer, out: &mut Vec<u8>) -> Offload {
        let segments = self.segments_of(index);
        let (start, link_len) = (out.len(), out.len());
        out.resize(start + outer.len(), 0);
        let first = out.len();
        self.segments.write(segments.start, out);
        let header = [0, carried_in(out[first]), 0, 0];
        for segment in segments.clone().skip(1) {
            out.extend_from_slice(&header);
            self.segments.write(segment, out);
        }
        let envelope = Outer {
            envelope: without_checksum(outer.envelope),
            ..*outer
        };
        let (head, inner) = out[start..].split_at_mut(outer.len());
        envelope.write(head, inner);
        let udp = head.len() - GUE_LEN - UDP_LEN;
        let len = head.len() - udp + inner.len();
        let start_of_sum =
            checksum::pseudo_header(outer.source, outer.target, number::UDP, len).folded();
        head[udp + UDP_SUM_AT..udp + UDP_LEN].copy_from_slice(&start_of_sum.to_be_bytes());
        let at = (link_len + udp) as u16;
        match segments.len() {
            1 => Offload::partial(at, UDP_SUM_AT as u16),
            _ => Offload::datagrams(at, (GUE_LEN + self.segments.longest()) as u16),
        }
    }
}

fn without_checksum(envelope: Envelope) -> Envelope {
    match envelope {
        Envelope::Gue { port, .. } => Envelope::Gue {
            port,
            checksum: false,
        },
        other => other,
    }
}

/// The protocol number of the packet that begins with this byte.
fn carried_in(first: u8) -> u8 {
    match first >> 4 {
        6 => number::IPV6,
        _ => number::IPIP,
    }
}

/// The packet behind a GUE header: data of version 0, optional fields skipped unseen. `None` for anything
/// else.
pub fn inner(payload: &[u8]) -> Option<&[u8]> {
    let (header, _) = payload.split_first_chunk::<GUE_LEN>()?;
    let (version_and_control, words) = (header[0] >> 5, usize::from(header[0] & 0x1f));
    let packet = payload.get(GUE_LEN + words * 4..)?;
    let carried = carried_in(*packet.first()?);
    (version_and_control == 0 && carried == header[1]).then_some(packet)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::encap;
    use crate::wire::offload::VNET_HEADER_LEN;
    use crate::wire::{Layout, Packet};

    /// A super-frame of TCP over IPv6 with so much data in segments of 1000 bytes.
    fn super_frame(data: usize) -> (Vec<u8>, Offload) {
        let mut bytes = vec![0x60, 0, 0, 0];
        bytes.extend(((20 + data) as u16).to_be_bytes());
        bytes.extend([number::TCP, 64]);
        bytes.extend(1..33);
        bytes.extend([
            0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 9, 0x50, 0x18, 1, 0, 0, 0, 0, 0,
        ]);
        bytes.extend((0..data).map(|at| (at / 3) as u8));
        let mut header = [0; VNET_HEADER_LEN];
        (header[0], header[1]) = (1, 4);
        header[4..6].copy_from_slice(&1000u16.to_ne_bytes());
        (bytes, Offload::decode(&header))
    }

    fn outer(v6: bool, envelope: Envelope) -> Outer {
        let (source, target) = match v6 {
            false => ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
            true => ([1u16; 8].into(), [2u16; 8].into()),
        };
        Outer {
            source,
            target,
            envelope,
            dont_fragment: false,
            ident: 7,
            source_port: 40_000,
        }
    }

    const GUE: Envelope = Envelope::Gue {
        port: 6080,
        checksum: true,
    };

    /// Cut by a device, each datagram is what the segment would be in an envelope of its own.
    #[test]
    fn datagrams_are_the_segments_in_their_envelopes() {
        for (v6, data, frames) in [(false, 65_000, 2), (true, 65_000, 2), (false, 2_500, 1)] {
            let outer = outer(v6, GUE);
            let (mut bytes, offload) = super_frame(data);
            let layout = Layout::parse(&bytes, true).expect("a packet");
            let packet = Packet::over(&mut bytes, layout, offload);
            let segments = Segments::new(&packet).expect("a super-frame");
            let datagrams = Datagrams::new(&segments, &outer, 14).expect("it is GUE");
            assert_eq!(datagrams.len(), frames);
            let mut seen = 0;
            for index in 0..frames {
                let mut out = vec![9; 14];
                let offload = datagrams.write(index, &outer, &mut out);
                assert!(out.len() <= FRAME_LEN_MAX);
                let mut whole = out.split_off(14);
                let mut offload = offload;
                offload.shift(-14);
                let layout = Layout::parse(&whole, true).expect("a packet");
                let packet = Packet::over(&mut whole, layout, offload);
                let cut = Segments::new(&packet).expect("a super-frame");
                assert_eq!(cut.len(), datagrams.segments_of(index).len());
                for at in 0..cut.len() {
                    let (mut datagram, mut segment) = (Vec::new(), Vec::new());
                    cut.write(at, &mut datagram);
                    segments.write(seen, &mut segment);
                    let mut expected = vec![0; outer.len()];
                    let own = Outer {
                        ident: 7 + at as u16,
                        ..outer
                    };
                    own.write(&mut expected, &segment);
                    expected.extend(&segment);
                    assert_eq!(datagram, expected, "segment {seen}");
                    assert_eq!(encap::unwrap(&datagram), Some(&segment[..]));
                    let payload = &datagram[outer.len() - GUE_LEN..];
                    assert_eq!(inner(payload), Some(&segment[..]));
                    seen += 1;
                }
            }
            assert_eq!(seen, segments.len());
        }
    }

    #[test]
    fn what_cannot_be_datagrams_is_none() {
        let taken = |data, envelope| {
            let (mut bytes, offload) = super_frame(data);
            let layout = Layout::parse(&bytes, true).expect("a packet");
            let packet = Packet::over(&mut bytes, layout, offload);
            let segments = Segments::new(&packet).expect("a super-frame");
            Datagrams::new(&segments, &outer(false, envelope), 14).is_some()
        };
        assert!(taken(1_001, GUE));
        assert!(!taken(1_000, GUE), "one segment");
        assert!(!taken(5_000, Envelope::Ipip));
        assert!(!taken(5_000, Envelope::Gre { checksum: true }));
    }

    #[test]
    fn only_packets_are_found_in_gue() {
        let packet = [0x45, 1, 2, 3];
        let with = |header: [u8; 4]| [&header[..], &packet].concat();
        assert_eq!(inner(&with([0, number::IPIP, 0, 0])), Some(&packet[..]));
        let optional = [&[1, number::IPIP, 0, 0, 9, 9, 9, 9], &packet[..]].concat();
        assert_eq!(inner(&optional), Some(&packet[..]));
        for header in [
            [0x20, number::IPIP, 0, 0],
            [0x40, number::IPIP, 0, 0],
            [0, number::IPV6, 0, 0],
            [0, number::UDP, 0, 0],
            [2, number::IPIP, 0, 0],
        ] {
            assert_eq!(inner(&with(header)), None, "{header:?}");
        }
        assert_eq!(inner(&[0, number::IPIP, 0]), None);
        assert_eq!(inner(&[0, number::IPIP, 0, 0]), None);
    }
}
