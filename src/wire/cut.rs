//! Cut: a packet that is too long for a link leaves it in fragments (RFC 791 section 3.2, RFC 8200
//! section 4.5). Fragments that came keep the lengths they had where those fit (`ip_do_fragment`,
//! `ip6_fragment`). `frag` is the way back.

use super::Packet;
use super::checksum::Sum;
use super::packet::{Kind, number};

/// Extension headers looked through for those that every fragment carries.
const EXTENSION_HEADERS_MAX: usize = 8;

/// How a packet is cut.
#[derive(Clone, Debug)]
pub struct Cut<'p> {
    frame: &'p [u8],
    kind: Kind,
    l3: usize,
    /// End of the headers that every fragment carries.
    head: usize,
    /// IPv6: the byte that announces what follows them.
    next_at: usize,
    end: usize,
    /// Most bytes of one fragment behind its headers; one that others follow has a multiple of eight.
    room: usize,
    parts: &'p [u16],
    /// What stands before the first part since the packet was put into an envelope.
    before: usize,
    ident: u32,
}

impl<'p> Cut<'p> {
    /// Cuts into IP packets of at most `len_max` bytes, each as long as `parts` says behind its headers
    /// if that fits, the first one with what an envelope has put before it. `ident` becomes the identification of IPv6 fragments; IPv4 has one already. `None`
    /// if not even eight bytes fit.
    pub fn new(
        packet: &'p Packet<'_>,
        len_max: usize,
        parts: &'p [u16],
        ident: u32,
    ) -> Option<Cut<'p>> {
        let (frame, layout) = (packet.frame(), packet.layout);
        let (l3, end) = (usize::from(layout.l3), layout.end as usize);
        let (next_at, head) = match layout.kind {
            Kind::V4 => (l3 + 9, usize::from(layout.l4)),
            Kind::V6 => carried_headers(frame, l3, end),
            _ => return None,
        };
        let extra = if layout.kind == Kind::V6 { 8 } else { 0 };
        let room = len_max.saturating_sub(head - l3 + extra);
        if room < 8 {
            return None;
        }
        let total: usize = parts.iter().map(|len| usize::from(*len)).sum();
        let before = (end - head).saturating_sub(total);
        let enclosed = packet.is_wrapped() && before % 8 == 0;
        let fit = (before == 0 || enclosed)
            && before + usize::from(*parts.first().unwrap_or(&0)) <= room
            && parts.iter().all(|len| usize::from(*len) <= room);
        Some(Cut {
            before,
            frame,
            kind: layout.kind,
            l3,
            head,
            next_at,
            end,
            room,
            parts: if fit { parts } else { &[] },
            ident,
        })
    }

    /// How many fragments there will be.
    pub fn len(&self) -> usize {
        match self.parts.len() {
            0 => {
                let step = self.room & !7;
                (self.end - self.head)
                    .saturating_sub(self.room)
                    .div_ceil(step)
                    + 1
            }
            len => len,
        }
    }

    /// There is always one.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where each fragment begins and ends in the frame.
    pub fn ranges(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let mut at = self.head;
        (0..self.len()).map(move |index| {
            let len = match self.parts.get(index) {
                Some(len) if index == 0 => self.before + usize::from(*len),
                Some(len) => usize::from(*len),
                None if self.end - at > self.room => self.room & !7,
                None => self.end - at,
            };
            let start = at;
            at += len;
            (start, at)
        })
    }

    /// Appends the fragment from `start` to `end` to `out`, as a whole frame.
    pub fn write(&self, (start, end): (usize, usize), out: &mut Vec<u8>) {
        let base = out.len();
        out.extend_from_slice(&self.frame[..self.head]);
        let (offset, more) = (start - self.head, end < self.end);
        match self.kind {
            Kind::V4 => {
                let header = &mut out[base + self.l3..];
                finish_v4(header, end - start, offset, more);
            }
            _ => {
                let len = self.head - self.l3 - 40 + 8 + end - start;
                let next = std::mem::replace(&mut out[base + self.next_at], number::FRAGMENT);
                let at = base + self.l3 + 4;
                out[at..at + 2].copy_from_slice(&(len as u16).to_be_bytes());
                let word = offset as u16 | u16::from(more);
                out.extend_from_slice(&[next, 0]);
                out.extend_from_slice(&word.to_be_bytes());
                out.extend_from_slice(&self.ident.to_be_bytes());
            }
        }
        out.extend_from_slice(&self.frame[start..end]);
    }
}

/// Makes a copy of the packet's header that of the fragment at `offset`.
fn finish_v4(header: &mut [u8], len: usize, offset: usize, more: bool) {
    let total = (header.len() + len) as u16;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
    header[6..8].copy_from_slice(&word.to_be_bytes());
    if offset != 0 {
        blank_options(&mut header[20..]);
    }
    header[10..12].fill(0);
    let sum = Sum::of(header).checksum();
    header[10..12].copy_from_slice(&sum.to_be_bytes());
}

/// Options without the copy bit are of the first fragment only: in the others they do nothing
/// (RFC 791 section 3.1, `ip_options_fragment`).
fn blank_options(options: &mut [u8]) {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while at < options.len() && options[at] != END {
        if options[at] == NOTHING {
            at += 1;
            continue;
        }
        let len = usize::from(options.get(at + 1).copied().unwrap_or(0));
        if len < 2 || at + len > options.len() {
            return;
        }
        if options[at] & COPIED == 0 {
            options[at..at + len].fill(NOTHING);
        }
        at += len;
    }
}

/// The headers of IPv6 that every fragment carries: up to the last hop-by-hop or routing header. Where
/// the number of what follows stands, and where that begins.
fn carried_headers(frame: &[u8], l3: usize, end: usize) -> (usize, usize) {
    let (mut next_at, mut at) = (l3 + 6, l3 + 40);
    let mut carried = (next_at, at);
    for _ in 0..EXTENSION_HEADERS_MAX {
        let next = frame[next_at];
        if !matches!(next, 0 | 43 | 60) || at + 8 > end {
            break;
        }
        let len = (usize::from(frame[at + 1]) + 1) * 8;
        (next_at, at) = (at, at + len);
        if at > end {
            break;
        }
        if next != 60 {
            carried = (next_at, at);
        }
    }
    carried
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Layout;
    use crate::wire::encap::{Envelope, Outer};
    use crate::wire::offload::Offload;

    /// An IPv4 packet with `len` bytes behind its header.
    fn packet(len: usize) -> Vec<u8> {
        let mut bytes = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17];
        bytes.resize(20 + len, 7);
        bytes[2..4].copy_from_slice(&(20 + len as u16).to_be_bytes());
        bytes[10..12].fill(0);
        let sum = Sum::of(&bytes[..20]).checksum();
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn lengths(packet: &Packet<'_>, len_max: usize, parts: &[u16]) -> Vec<usize> {
        let cut = Cut::new(packet, len_max, parts, 0).expect("enough room");
        let lengths: Vec<usize> = cut.ranges().map(|(start, end)| end - start).collect();
        assert_eq!(lengths.len(), cut.len());
        lengths
    }

    fn plain(len: usize, len_max: usize, parts: &[u16]) -> Vec<usize> {
        let mut bytes = packet(len);
        let layout = Layout::parse(&bytes, true).expect("a good packet");
        lengths(
            &Packet::over(&mut bytes, layout, Offload::default()),
            len_max,
            parts,
        )
    }

    #[test]
    fn only_pieces_that_others_follow_have_a_multiple_of_eight() {
        assert_eq!(plain(36, 40, &[]), [16, 20]);
        assert_eq!(plain(37, 40, &[]), [16, 16, 5]);
        assert_eq!(plain(20, 40, &[]), [20]);
        assert_eq!(plain(24, 43, &[]), [16, 8]);
    }

    #[test]
    fn parts_are_kept_where_they_fit() {
        assert_eq!(plain(60, 60, &[16, 40, 4]), [16, 40, 4]);
        assert_eq!(plain(60, 50, &[16, 40, 4]), [24, 24, 12]);
    }

    #[test]
    fn an_envelope_lengthens_the_first_part_by_what_it_has_put_before_it() {
        let enclosed = |envelope| {
            let mut bytes = vec![0; 64];
            bytes.extend_from_slice(&packet(56));
            let layout = Layout::parse(&bytes[64..], true).expect("a good packet");
            let mut packet = Packet::inside(&mut bytes, 64, layout);
            let outer = Outer {
                source: [10, 0, 0, 1].into(),
                target: [10, 0, 0, 2].into(),
                envelope,
                dont_fragment: false,
                ident: 1,
                source_port: 40_000,
            };
            assert!(packet.wrap(&outer));
            lengths(&packet, 80, &[16, 40])
        };
        // Eight bytes of UDP, four of GUE, twenty of IP: the parts stay.
        let gue = Envelope::Gue {
            port: 6080,
            checksum: false,
        };
        assert_eq!(enclosed(gue), [48, 40]);
        // Twenty bytes of IP alone: nothing fits any more.
        assert_eq!(enclosed(Envelope::Ipip), [56, 20]);
    }
}
