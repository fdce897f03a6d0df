//! Datagrams that left in fragments, put together again. Into which pieces the kernel cuts what it had
//! gathered depends on the spare room in its buffers (docs/differences.md), so where nothing but that
//! differs, what the pieces make together is compared.

use super::case::{FrameOut, Side, Volatile, VolatilePart};
use super::house::Sent;
use super::packet::folded;

/// Length of an Ethernet header.
const L3: usize = 14;

/// A frame, and what of it is volatile.
type Piece = (Vec<u8>, Vec<(usize, usize)>);

/// Are these the same datagrams, in pieces that are not longer than the kernel's longest? If so, as
/// frames to be compared.
pub fn joined(expected: &[FrameOut], got: &[Sent]) -> Option<(Vec<FrameOut>, Vec<Sent>)> {
    let (mut wanted, mut ours) = (Vec::new(), Vec::new());
    for side in Side::BOTH {
        let theirs = expected.iter().filter(|out| out.side == side);
        let theirs: Vec<Piece> = theirs.map(piece_of).collect();
        let mine = got.iter().filter(|sent| sent.side == side);
        let mine: Vec<Piece> = mine.map(|sent| (sent.frame.clone(), Vec::new())).collect();
        let longest = |pieces: &[Piece]| {
            pieces
                .iter()
                .map(|(frame, _)| frame.len())
                .max()
                .unwrap_or(0)
        };
        // The kernel's may be shorter for want of a multiple of eight.
        if longest(&mine) > longest(&theirs) + 7 {
            return None;
        }
        wanted.extend(join(theirs).into_iter().map(|(frame, ranges)| FrameOut {
            side,
            frame,
            volatile: Volatile::Parts(ranges_of(ranges)),
        }));
        let frames = join(mine).into_iter();
        ours.extend(frames.map(|(frame, _)| Sent { side, frame }));
    }
    let fewer = wanted.len() < expected.len() || ours.len() < got.len();
    fewer.then_some((wanted, ours))
}

/// Fragments of IPv4, all of one datagram and in order: the datagram, and the length of the longest of
/// them as an IP packet.
pub fn gathered(frames: &[Vec<u8>]) -> Option<(Vec<u8>, usize)> {
    let longest = frames.iter().map(|frame| frame.len() - L3).max()?;
    let pieces: Vec<Piece> = frames.iter().map(|f| (f.clone(), Vec::new())).collect();
    match &mut join(pieces)[..] {
        [(frame, _)] if frames.len() > 1 && frame[L3] >> 4 == 4 => {
            let header = usize::from(frame[L3] & 15) * 4;
            let mut frame = std::mem::take(frame);
            let len = (frame.len() - L3) as u16;
            frame[L3 + 2..L3 + 4].copy_from_slice(&len.to_be_bytes());
            let sum = !folded(&[&frame[L3..L3 + header]]);
            frame[L3 + 10..L3 + 12].copy_from_slice(&sum.to_be_bytes());
            Some((frame, longest))
        }
        _ => None,
    }
}

/// What was passed in fragments, as the kernel routes it on: datagrams of IPv6 that are no longer than
/// one of their fragments had been leave whole.
pub fn as_routed(sent: Vec<Sent>) -> Vec<Sent> {
    let Some(side) = sent.first().map(|sent| sent.side) else {
        return sent;
    };
    let longest = sent.iter().map(|sent| sent.frame.len()).max().unwrap_or(0);
    let pieces: Vec<Piece> = sent.iter().map(|s| (s.frame.clone(), Vec::new())).collect();
    match &mut join(pieces)[..] {
        [(frame, _)] if sent.len() > 1 && frame[L3] >> 4 == 6 && frame.len() <= longest => {
            let len = (frame.len() - L3 - 40) as u16;
            frame[L3 + 4..L3 + 6].copy_from_slice(&len.to_be_bytes());
            let frame = std::mem::take(frame);
            vec![Sent { side, frame }]
        }
        _ => sent,
    }
}

/// Of which datagram this is a fragment, if it is one.
pub fn key(frame: &[u8]) -> Option<Vec<u8>> {
    let cut = Cut::of(frame)?;
    (cut.more || cut.offset != 0).then_some(cut.key)
}

/// Where in its datagram a fragment lies.
pub fn offset(frame: &[u8]) -> usize {
    Cut::of(frame).map_or(0, |cut| cut.offset)
}

fn piece_of(out: &FrameOut) -> Piece {
    let parts = match &out.volatile {
        Volatile::Parts(parts) => &parts[..],
        Volatile::Length(()) => &[],
    };
    let ranges = parts.iter().filter_map(|part| match part {
        VolatilePart::Range(start, end) => Some((*start, *end)),
        VolatilePart::Length(()) => None,
    });
    (out.frame.clone(), ranges.collect())
}

fn ranges_of(ranges: Vec<(usize, usize)>) -> Vec<VolatilePart> {
    let ranges = ranges.into_iter();
    ranges
        .map(|(start, end)| VolatilePart::Range(start, end))
        .collect()
}

/// Every run of fragments of one datagram, from its first to its last, becomes one frame without the
/// fields that tell of the cut.
fn join(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut rest = pieces.into_iter().peekable();
    let mut joined = Vec::new();
    while let Some(piece) = rest.next() {
        let Some(first) = Cut::of(&piece.0).filter(|cut| cut.offset == 0 && cut.more) else {
            joined.push(piece);
            continue;
        };
        let mut run = vec![piece];
        let (mut end, mut more) = (first.len, true);
        while more && let Some((frame, _)) = rest.peek() {
            let next = Cut::of(frame).filter(|next| next.key == first.key && next.offset == end);
            let Some(next) = next else { break };
            (end, more) = (end + next.len, next.more);
            run.extend(rest.next());
        }
        match more {
            true => joined.extend(run),
            false => joined.push(first.whole(run)),
        }
    }
    joined
}

/// Is this IPv4 packet an envelope around an IPv6 one (IPIP, GRE, GUE)?
fn is_around_v6(frame: &[u8]) -> bool {
    let body = frame.get(L3 + usize::from(frame[L3] & 15) * 4..);
    let body = body.unwrap_or_default();
    match frame[L3 + 9] {
        41 => true,
        47 => body.get(2..4) == Some(&[0x86, 0xdd]),
        17 => body.get(8..10) == Some(&[0, 41]),
        _ => false,
    }
}

/// What a fragment says of itself.
struct Cut {
    /// Addresses, protocol, identification.
    key: Vec<u8>,
    offset: usize,
    len: usize,
    more: bool,
    /// Where the payload begins; of IPv6, the fragment header before it.
    start: usize,
    header: Option<(usize, usize)>,
}

impl Cut {
    fn of(frame: &[u8]) -> Option<Cut> {
        let ip = frame.get(L3..)?;
        let word = |at: usize| Some(u16::from_be_bytes(ip.get(at..at + 2)?.try_into().ok()?));
        if ip.first()? >> 4 == 4 {
            let start = usize::from(ip[0] & 15) * 4;
            let cut = word(6)?;
            return Some(Cut {
                key: [ip.get(12..20)?, &ip[4..6], &ip[9..10]].concat(),
                offset: usize::from(cut & 0x1fff) * 8,
                len: usize::from(word(2)?).checked_sub(start)?,
                more: cut & 0x2000 != 0,
                start: L3 + start,
                header: None,
            });
        }
        let (mut named, mut at) = (6, 40);
        while matches!(ip.get(named)?, 0 | 43 | 60) {
            (named, at) = (at, at + 8 + usize::from(*ip.get(at + 1)?) * 8);
        }
        if ip[named] != 44 {
            return None;
        }
        let cut = word(at + 2)?;
        Some(Cut {
            key: [ip.get(8..40)?, ip.get(at + 4..at + 8)?].concat(),
            offset: usize::from(cut & 0xfff8),
            len: (40 + usize::from(word(4)?)).checked_sub(at + 8)?,
            more: cut & 1 != 0,
            start: L3 + at + 8,
            header: Some((L3 + named, L3 + at)),
        })
    }

    /// The datagram of a whole run.
    fn whole(&self, run: Vec<Piece>) -> Piece {
        let (mut frame, mut ranges) = run[0].clone();
        for (piece, _) in &run[1..] {
            let cut = Cut::of(piece).expect("it was read before");
            frame.extend_from_slice(&piece[cut.start..]);
        }
        let Some((named, header)) = self.header else {
            frame[L3 + 2..L3 + 4].fill(0);
            // DF on pieces of an envelope around IPv6 is left over in the kernel from something else.
            frame[L3 + 6] &= if is_around_v6(&frame) { 0 } else { 0x40 };
            frame[L3 + 7] = 0;
            frame[L3 + 10..L3 + 12].fill(0);
            return (frame, ranges);
        };
        frame[L3 + 4..L3 + 6].fill(0);
        frame[named] = frame[header];
        frame.drain(header..header + 8);
        ranges.retain(|(start, end)| *end <= header || *start >= header + 8);
        for (start, end) in &mut ranges {
            if *start >= header {
                (*start, *end) = (*start - 8, *end - 8);
            }
        }
        (frame, ranges)
    }
}
