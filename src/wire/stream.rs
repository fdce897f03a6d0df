//! The bytes a TCP segment carries: read, replaced by others of another length, and the numbers that
//! count them moved (RFC 9293, RFC 2018). Every sum that was right before is right afterwards.

use super::checksum::{self, Delta, Sum};
use super::packet::{Kind, Packet, number};

/// Where the fields lie in the TCP header.
const SEQUENCE: usize = 4;
const ACKNOWLEDGED: usize = 8;
const CHECKSUM: usize = 16;
const ACK: u8 = 0x10;
/// Kinds of options.
const END: u8 = 0;
const NOTHING: u8 = 1;
const SACK: u8 = 5;

impl Packet<'_> {
    /// What a whole TCP segment carries; empty if it carries nothing or lies about its header.
    pub fn text(&self) -> &[u8] {
        let segment = self.transport();
        match self.tcp_header_len() {
            Some(header) => &segment[header..],
            None => &[],
        }
    }

    /// Length of the TCP header, if there is a whole one.
    fn tcp_header_len(&self) -> Option<usize> {
        if self.layout.protocol != number::TCP || !self.layout.transport {
            return None;
        }
        let segment = self.transport();
        let len = usize::from(segment[12] >> 4) * 4;
        (len >= 20 && len <= segment.len()).then_some(len)
    }

    /// The sequence number of a TCP segment whose header is whole.
    pub fn sequence(&self) -> u32 {
        self.long_at(self.l4() + SEQUENCE)
    }

    fn long_at(&self, at: usize) -> u32 {
        let bytes = &self.bytes[at..at + 4];
        u32::from_be_bytes(bytes.try_into().expect("four bytes"))
    }

    /// Puts `new` in the place of the bytes from `from` to `to` of the text. The frame grows and shrinks
    /// at its front; false, and nothing is changed, if there is no room for that.
    pub fn replace_text(&mut self, from: usize, to: usize, new: &[u8]) -> bool {
        let Some(header) = self.tcp_header_len() else {
            return false;
        };
        debug_assert!(from <= to && to <= self.text().len());
        let by = new.len() as isize - (to - from) as isize;
        let counted = match self.layout.kind {
            Kind::V6 => self.ip_len() - 40,
            _ => self.ip_len(),
        };
        let Ok(len) = u16::try_from(counted as isize + by) else {
            return false;
        };
        let Some(start) = self.start.checked_add_signed(-by) else {
            return false;
        };
        let old_len = self.transport().len() as u16;
        let text = self.l4() + header + from;
        self.bytes.copy_within(self.start..text, start);
        self.start = start;
        self.layout.end = (self.layout.end as isize + by) as u32;
        let text = self.l4() + header + from;
        self.bytes[text..text + new.len()].copy_from_slice(new);
        self.set_ip_len(len);
        self.renew_tcp_sum(old_len);
        true
    }

    fn set_ip_len(&mut self, len: u16) {
        let l3 = self.l3();
        if self.layout.kind == Kind::V6 {
            self.bytes[l3 + 4..l3 + 6].copy_from_slice(&len.to_be_bytes());
            return;
        }
        let old = u16::from_be_bytes([self.bytes[l3 + 2], self.bytes[l3 + 3]]);
        self.bytes[l3 + 2..l3 + 4].copy_from_slice(&len.to_be_bytes());
        self.mend(l3 + 10, Delta::none().word(old, len));
    }

    /// The sum over the segment, or what of it is not left to a device: the pseudo-header's, which counts
    /// the length.
    fn renew_tcp_sum(&mut self, old_len: u16) {
        let (at, len) = (self.l4() + CHECKSUM, self.transport().len());
        if self.offload.is_partial() {
            let field = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
            let field = Delta::none().word(old_len, len as u16).apply_partial(field);
            self.bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
            return;
        }
        self.bytes[at..at + 2].fill(0);
        let pseudo = checksum::pseudo_header(self.source(), self.target(), number::TCP, len);
        let sum = Sum::of(self.transport()).plus(pseudo).checksum();
        self.bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    }

    fn mend(&mut self, at: usize, delta: Delta) {
        let field = delta.apply(u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]));
        self.bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }

    /// Moves the sequence number.
    pub fn move_sequence(&mut self, to: impl Fn(u32) -> u32) {
        if self.tcp_header_len().is_some() {
            self.move_long(SEQUENCE, &to);
        }
    }

    /// Moves the acknowledged number and those of selective acknowledgements.
    pub fn move_acknowledged(&mut self, to: impl Fn(u32) -> u32) {
        let Some(header) = self.tcp_header_len() else {
            return;
        };
        if self.tcp_flags() & ACK == 0 {
            return;
        }
        self.move_long(ACKNOWLEDGED, &to);
        let mut at = 20;
        while at < header {
            let option = &self.transport()[at..header];
            let len = match option[0] {
                END => return,
                NOTHING => 1,
                _ => usize::from(option.get(1).copied().unwrap_or(0)),
            };
            if len == 0 || len > option.len() || option[0] != NOTHING && len < 2 {
                return;
            }
            if option[0] == SACK {
                for edge in (at + 2..at + len)
                    .step_by(4)
                    .filter(|edge| edge + 4 <= at + len)
                {
                    self.move_long(edge, &to);
                }
            }
            at += len;
        }
    }

    /// Moves the number at this offset of the segment. A partial sum does not cover it.
    fn move_long(&mut self, offset: usize, to: &impl Fn(u32) -> u32) {
        let at = self.l4() + offset;
        let (old, new) = (self.long_at(at), to(self.long_at(at)));
        if old == new {
            return;
        }
        self.bytes[at..at + 4].copy_from_slice(&new.to_be_bytes());
        if self.offload.is_partial() {
            return;
        }
        let mut delta = Delta::none();
        for shift in [16, 0] {
            let (mut old, mut new) = ((old >> shift) as u16, (new >> shift) as u16);
            if offset % 2 == 1 {
                // Behind an odd number of bytes each lies in the other half of its word.
                (old, new) = (old.swap_bytes(), new.swap_bytes());
            }
            delta = delta.word(old, new);
        }
        self.mend(self.l4() + CHECKSUM, delta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::wire::Offload;
    use crate::wire::packet::Layout;

    /// A frame with room before it: options of 24 bytes with a SACK of two blocks, at an odd offset.
    fn segment(text: &[u8], room: usize) -> Vec<u8> {
        let mut tcp = vec![
            0, 21, 0x9c, 0x40, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0xb0, 0x18, 1, 0, 0, 0, 0, 0,
        ];
        tcp.extend([1, SACK, 18]);
        tcp.extend([
            0, 0, 0x30, 0, 0, 0, 0x30, 9, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 5,
        ]);
        tcp.extend([1, 1, 1, 1, 0]);
        tcp.extend(text);
        let (source, target) = ([192, 168, 1, 11], [172, 16, 3, 9]);
        let pseudo = checksum::pseudo_header(source.into(), target.into(), number::TCP, tcp.len());
        let sum = Sum::of(&tcp).plus(pseudo).checksum();
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut frame = vec![0xee; room];
        frame.extend([2; 12]);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend(((20 + tcp.len()) as u16).to_be_bytes());
        frame.extend([0, 1, 0, 0, 64, number::TCP, 0, 0]);
        frame.extend([source, target].concat());
        let sum = Sum::of(&frame[room + 14..room + 34]).checksum();
        frame[room + 24..room + 26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(tcp);
        frame
    }

    fn with<R>(buffer: &mut [u8], start: usize, look: impl FnOnce(&mut Packet<'_>) -> R) -> R {
        let layout = Layout::parse(&buffer[start..], false).expect("a good frame");
        look(&mut Packet::inside(buffer, start, layout))
    }

    #[test]
    fn a_text_is_replaced_by_a_longer_and_a_shorter_one() {
        for new in ["", "(10,0,0,100,4,1)", "(1)", "(192,168,1,11,4,1)"] {
            let mut buffer = segment(b"227 ok (192,168,1,11,4,1)\r\n", 8);
            let (start, sound) = with(&mut buffer, 8, |packet| {
                assert!(packet.replace_text(7, 25, new.as_bytes()));
                assert_eq!(packet.text(), format!("227 ok {new}\r\n").as_bytes());
                (packet.start, packet.transport_sum_holds())
            });
            assert!(sound);
            with(&mut buffer, start, |packet| {
                assert_eq!(packet.text(), format!("227 ok {new}\r\n").as_bytes());
                assert_eq!(packet.frame()[..12], [2; 12]);
            });
        }
    }

    #[test]
    fn without_room_nothing_is_changed() {
        let mut buffer = segment(b"227 (1,1,1,1,4,1)\r\n", 3);
        let before = buffer.clone();
        let done = with(&mut buffer, 3, |packet| {
            packet.replace_text(5, 16, b"255,255,255,255,4,1")
        });
        assert!(!done);
        assert_eq!(buffer, before);
    }

    #[test]
    fn an_unfinished_sum_counts_the_new_length() {
        let mut buffer = segment(b"abcdef", 8);
        let pseudo = |len| {
            let ends = ([192, 168, 1, 11].into(), [172, 16, 3, 9].into());
            checksum::pseudo_header(ends.0, ends.1, number::TCP, len).folded()
        };
        buffer[8 + 50..8 + 52].copy_from_slice(&pseudo(50).to_be_bytes());
        with(&mut buffer, 8, |packet| {
            packet.offload = Offload::partial(34, 16);
            assert!(packet.replace_text(0, 3, b"xyzuvw"));
            packet.move_sequence(|seq| seq + 1);
            let field = &packet.transport()[16..18];
            assert_eq!(field, pseudo(53).to_be_bytes());
            packet.finish_sum();
            assert!(packet.transport_sum_holds());
        });
    }

    #[test]
    fn numbers_and_selective_acknowledgements_move_and_the_sum_holds() {
        let mut rng = Rng::new(9);
        for _ in 0..500 {
            let by = rng.next_u64() as u32;
            let mut buffer = segment(b"abc", 0);
            with(&mut buffer, 0, |packet| {
                packet.move_sequence(|seq| seq.wrapping_sub(by));
                packet.move_acknowledged(|ack| ack.wrapping_add(by));
                assert!(packet.transport_sum_holds());
                let long = |at: usize| packet.long_at(packet.l4() + at);
                assert_eq!(long(4), 0x1000u32.wrapping_sub(by));
                let moved = [8, 23, 27, 31, 35].map(|at| long(at).wrapping_sub(by));
                assert_eq!(moved, [0x2000, 0x3000, 0x3009, u32::MAX, 5]);
                assert_eq!(packet.text(), b"abc");
            });
        }
    }

    #[test]
    fn lying_headers_and_options_are_left_alone() {
        let good = segment(b"abc", 0);
        for (at, byte) in [
            (46, 0x40),
            (46, 0xf0),
            (56, 0),
            (56, 1),
            (56, 200),
            (56, 19),
        ] {
            let mut buffer = good.clone();
            buffer[at] = byte;
            with(&mut buffer, 0, |packet| {
                packet.move_acknowledged(|ack| ack.wrapping_add(1));
                let _ = packet.text();
                packet.replace_text(0, 0, b"");
            });
        }
    }
}
