//! Reassembler: fragments become datagrams again, within a bound of bytes and of time. What it takes
//! and what it throws away is what Linux does (`ip_fragment.c`, `inet_fragment.c`, RFC 791 section 3.2,
//! RFC 8200 section 4.5, RFC 5722). `cut` is the way back.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::Packet;
use super::checksum::Sum;
use super::encap::OUTER_LEN_MAX;
use super::packet::{Kind, number};
use crate::time::{Duration, Instant};

/// What a datagram and a fragment cost beside their bytes, when the bound is looked at.
const DATAGRAM_COST: usize = 256;
const FRAGMENT_COST: usize = 64;
/// Longest IP packet; of IPv6 without its header.
const LEN_MAX: usize = 65_535;
/// Extension headers looked through on the way to the fragment header, as in `Layout`.
const EXTENSION_HEADERS_MAX: usize = 8;

/// What became of a fragment.
#[derive(Debug)]
pub enum Outcome {
    /// It waits for the others.
    Waits,
    /// It was the last one missing.
    Whole(Whole),
    /// It brings only bytes that are there already: it alone is refused.
    Repeated,
    /// It overlaps another or contradicts it, and its whole datagram is given up with it: so many
    /// frames that had waited.
    Clashed(u32),
}

/// A datagram, whole again.
#[derive(Debug)]
pub struct Whole {
    /// Holds the frame as it would have come without fragmentation, its link header that of the first
    /// fragment; before it is room for an outer header.
    pub buffer: Vec<u8>,
    /// Where in it the frame begins.
    pub start: usize,
    /// How it came.
    pub gathered: Gathered,
}

/// How a datagram came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// Frames it came in.
    pub frames: u32,
    /// The longest of them, as an IP packet.
    pub longest: u32,
    /// It is of IPv4.
    pub v4: bool,
    /// Bytes behind the headers that each brought, in order: a sender's choice that is kept if possible.
    pub parts: Vec<u16>,
}

/// A datagram that is given up.
#[derive(Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// Why.
    pub why: Lost,
    /// Frames of it that waited.
    pub frames: u32,
    /// Its first fragment as it came, if that is among them: RFC 792 wants its sender told.
    pub first: Option<Vec<u8>>,
    /// The port by which that came.
    pub ingress: usize,
}

/// Why a datagram is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// Its time is up.
    Time,
    /// It had waited longest when another needed room.
    Room,
}

/// Fragments that wait for others.
#[derive(Debug)]
pub struct Reassembler {
    datagrams: BTreeMap<Key, Datagram>,
    /// By when their time is up; the number tells those of one moment apart.
    due: BTreeMap<(Instant, u64), Key>,
    begun: u64,
    bytes: usize,
    bounds: Bounds,
}

/// What bounds it.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Most bytes held, what the bookkeeping needs included (`ipfrag_high_thresh`).
    pub bytes_max: usize,
    /// How long the fragments of an IPv4 datagram wait for the others (`ipfrag_time`).
    pub v4_wait: Duration,
    /// The same for IPv6 (RFC 8200 section 4.5, `nf_conntrack_frag6_timeout`).
    pub v6_wait: Duration,
}

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    source: IpAddr,
    target: IpAddr,
    ident: u32,
    /// 0 for IPv6.
    protocol: u8,
}

#[derive(Debug)]
struct Datagram {
    due: (Instant, u64),
    ingress: usize,
    /// Link and network header of the first fragment, as they came.
    header: Option<Header>,
    parts: Vec<Part>,
    /// Ranges that arrived in a row; only the last one grows (`inet_frag_queue_insert`).
    runs: Vec<(usize, usize)>,
    /// Known end; the true one once the last fragment is there.
    end: usize,
    has_last: bool,
    /// Bytes there.
    meat: usize,
    frames: u32,
    longest: usize,
    /// Longest fragment that must not be fragmented further.
    longest_whole: usize,
    /// Which values of ECN its fragments had, a bit for each.
    ecn: u8,
    cost: usize,
}

#[derive(Debug)]
struct Header {
    bytes: Vec<u8>,
    l3: usize,
    /// IPv6: where the number of the header behind the fragment header belongs, and that header.
    patch: Option<(usize, [u8; 8])>,
}

#[derive(Debug)]
struct Part {
    start: usize,
    bytes: Box<[u8]>,
}

/// A fragment, read.
struct Piece<'p> {
    key: Key,
    start: usize,
    end: usize,
    more: bool,
    payload: &'p [u8],
    header: &'p [u8],
    patch: Option<(usize, [u8; 8])>,
    ip_len: usize,
    dont_fragment: bool,
    ecn: u8,
}

impl Reassembler {
    /// An empty one.
    pub fn new(bounds: Bounds) -> Reassembler {
        Reassembler {
            datagrams: BTreeMap::new(),
            due: BTreeMap::new(),
            begun: 0,
            bytes: 0,
            bounds,
        }
    }

    /// Does no fragment wait?
    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Datagrams that are not whole.
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Bytes held, what the bookkeeping needs included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Does the longest fragment that may come find no room? Then `make_room`.
    pub fn lacks_room(&self) -> bool {
        let reserve = (LEN_MAX + DATAGRAM_COST + FRAGMENT_COST).min(self.bounds.bytes_max / 2);
        self.bytes > self.bounds.bytes_max - reserve
    }

    /// A fragment came in by port `ingress`; there is room for it.
    pub fn handle_fragment(
        &mut self,
        packet: &Packet<'_>,
        ingress: usize,
        now: Instant,
    ) -> Outcome {
        let Some(piece) = read(packet) else {
            return Outcome::Clashed(0);
        };
        let outcome = self.take(&piece, packet, ingress, now);
        self.check();
        outcome
    }

    fn take(
        &mut self,
        piece: &Piece<'_>,
        packet: &Packet<'_>,
        ingress: usize,
        now: Instant,
    ) -> Outcome {
        let wait = match packet.layout.kind {
            Kind::V4 => self.bounds.v4_wait,
            _ => self.bounds.v6_wait,
        };
        let (due, begun) = (&mut self.due, &mut self.begun);
        let datagram = self.datagrams.entry(piece.key).or_insert_with(|| {
            *begun += 1;
            let at = (now + wait, *begun);
            due.insert(at, piece.key);
            self.bytes += DATAGRAM_COST;
            Datagram::new(at, ingress)
        });
        match datagram.add(piece) {
            Ok(cost) => {
                self.bytes += cost;
                if piece.start == 0 {
                    datagram.keep_header(piece, packet, ingress);
                }
            }
            Err(Clash::Repeated) => return Outcome::Repeated,
            Err(Clash::Overlap) => {
                let gone = self.remove(piece.key);
                return Outcome::Clashed(gone.map_or(0, |gone| gone.frames));
            }
        }
        if !datagram.is_whole() {
            return Outcome::Waits;
        }
        let Some(whole) = self.remove(piece.key) else {
            return Outcome::Waits;
        };
        let frames = whole.frames;
        match whole.join() {
            Some(whole) => Outcome::Whole(whole),
            // This fragment is counted by the caller.
            None => Outcome::Clashed(frames - 1),
        }
    }

    fn remove(&mut self, key: Key) -> Option<Datagram> {
        let gone = self.datagrams.remove(&key)?;
        self.due.remove(&gone.due);
        self.bytes -= gone.cost;
        Some(gone)
    }

    /// When the next datagram's time is up.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due.first_key_value().map(|((at, _), _)| *at)
    }

    /// The next datagram whose time is up.
    pub fn poll_output(&mut self, now: Instant) -> Option<GivenUp> {
        let ((at, _), _) = self.due.first_key_value()?;
        if *at > now {
            return None;
        }
        self.give_up(Lost::Time)
    }

    /// Gives up the datagram that is due first, so that another has room.
    pub fn make_room(&mut self) -> Option<GivenUp> {
        self.give_up(Lost::Room)
    }

    fn give_up(&mut self, why: Lost) -> Option<GivenUp> {
        let (_, key) = self.due.first_key_value()?;
        let gone = self.remove(*key)?;
        self.check();
        Some(GivenUp {
            why,
            frames: gone.frames,
            ingress: gone.ingress,
            first: gone.first_frame(),
        })
    }

    fn check(&self) {
        debug_assert_eq!(self.due.len(), self.datagrams.len());
        debug_assert!(self.datagrams.is_empty() == (self.bytes == 0));
    }
}

/// Why a fragment does not fit its datagram.
enum Clash {
    Repeated,
    Overlap,
}

impl Datagram {
    fn new(due: (Instant, u64), ingress: usize) -> Datagram {
        Datagram {
            due,
            ingress,
            header: None,
            parts: Vec::new(),
            runs: Vec::new(),
            end: 0,
            has_last: false,
            meat: 0,
            frames: 0,
            longest: 0,
            longest_whole: 0,
            ecn: 0,
            cost: DATAGRAM_COST,
        }
    }

    /// Adds what the fragment brings; says what that costs.
    fn add(&mut self, piece: &Piece<'_>) -> Result<usize, Clash> {
        let end = self.end_with(piece)?;
        // Also one that brings nothing new may tell where the datagram ends.
        (self.end, self.has_last) = (end, self.has_last || !piece.more);
        place(&mut self.runs, piece.start, piece.end)?;
        let at = self.parts.partition_point(|part| part.start < piece.start);
        let part = Part {
            start: piece.start,
            bytes: piece.payload.into(),
        };
        self.parts.insert(at, part);
        self.meat += piece.payload.len();
        self.frames += 1;
        self.longest = self.longest.max(piece.ip_len);
        if piece.dont_fragment {
            self.longest_whole = self.longest_whole.max(piece.ip_len);
        }
        self.ecn |= 1 << piece.ecn;
        let cost = FRAGMENT_COST + piece.payload.len();
        self.cost += cost;
        Ok(cost)
    }

    /// Where the datagram ends as far as is known with this fragment.
    fn end_with(&self, piece: &Piece<'_>) -> Result<usize, Clash> {
        let empty = piece.start == piece.end;
        let contradicts = match (piece.more, self.has_last) {
            (false, true) => piece.end != self.end,
            (false, false) => piece.end < self.end,
            (true, true) => piece.end > self.end,
            (true, false) => false,
        };
        if empty || contradicts {
            return Err(Clash::Overlap);
        }
        Ok(piece.end.max(self.end))
    }

    fn keep_header(&mut self, piece: &Piece<'_>, packet: &Packet<'_>, ingress: usize) {
        self.ingress = ingress;
        self.header = Some(Header {
            bytes: piece.header.to_vec(),
            l3: packet.layout.l3.into(),
            patch: piece.patch,
        });
    }

    fn is_whole(&self) -> bool {
        self.has_last && self.header.is_some() && self.meat == self.end
    }

    /// All parts behind the header of the first. `None` if it would be too long, or if its ECN marks
    /// cannot come from one datagram.
    fn join(self) -> Option<Whole> {
        let Header { bytes, l3, patch } = self.header?;
        let header_len = bytes.len() - l3;
        let (v6, ecn) = (patch.is_some(), joined_ecn(self.ecn)?);
        let counted = if v6 { header_len - 40 } else { header_len };
        if counted + self.end > LEN_MAX {
            return None;
        }
        let len = ((counted + self.end) as u16).to_be_bytes();
        let mut buffer = Vec::with_capacity(OUTER_LEN_MAX + bytes.len() + self.end);
        buffer.resize(OUTER_LEN_MAX, 0);
        buffer.extend_from_slice(&bytes);
        let joined = &mut buffer[OUTER_LEN_MAX..];
        if let Some((at, fragment)) = patch {
            joined[at] = fragment[0];
            joined[l3 + 4..l3 + 6].copy_from_slice(&len);
            joined[l3 + 1] |= ecn << 4;
        } else {
            let may_not = self.longest_whole == self.longest;
            joined[l3 + 1] |= ecn;
            joined[l3 + 2..l3 + 4].copy_from_slice(&len);
            joined[l3 + 6..l3 + 8].copy_from_slice(&[if may_not { 0x40 } else { 0 }, 0]);
            joined[l3 + 10..l3 + 12].fill(0);
            let sum = Sum::of(&joined[l3..]).checksum();
            joined[l3 + 10..l3 + 12].copy_from_slice(&sum.to_be_bytes());
        }
        for part in &self.parts {
            buffer.extend_from_slice(&part.bytes);
        }
        Some(Whole {
            buffer,
            start: OUTER_LEN_MAX,
            gathered: Gathered {
                frames: self.frames,
                longest: self.longest as u32,
                v4: !v6,
                parts: self
                    .parts
                    .iter()
                    .map(|part| part.bytes.len() as u16)
                    .collect(),
            },
        })
    }

    /// The first fragment as it came.
    fn first_frame(self) -> Option<Vec<u8>> {
        let Header {
            mut bytes, patch, ..
        } = self.header?;
        if let Some((_, fragment)) = patch {
            bytes.extend_from_slice(&fragment);
        }
        bytes.extend_from_slice(&self.parts.first()?.bytes);
        Some(bytes)
    }
}

/// Enters a range among those that are there. Only a fragment behind all others makes the last range
/// longer; one that lies within a single range is a repetition (`inet_frag_queue_insert`).
fn place(runs: &mut Vec<(usize, usize)>, start: usize, end: usize) -> Result<(), Clash> {
    match runs.last_mut() {
        Some(last) if end > last.1 => {
            if start < last.1 {
                return Err(Clash::Overlap);
            }
            if start == last.1 {
                last.1 = end;
            } else {
                runs.push((start, end));
            }
            Ok(())
        }
        None => {
            runs.push((start, end));
            Ok(())
        }
        Some(_) => {
            let at = runs.partition_point(|run| run.1 <= start);
            let run = runs[at];
            if end <= run.0 {
                runs.insert(at, (start, end));
                Ok(())
            } else if start >= run.0 && end <= run.1 {
                Err(Clash::Repeated)
            } else {
                Err(Clash::Overlap)
            }
        }
    }
}

/// The ECN bits that the whole adds to those of its first fragment, from the set of all fragments'
/// (RFC 3168 section 5.3, `ip_frag_ecn_table`). `None`: some know of ECN and some do not.
fn joined_ecn(seen: u8) -> Option<u8> {
    const NOT_CAPABLE: u8 = 1;
    const CONGESTED: u8 = 1 << 3;
    match seen {
        NOT_CAPABLE => Some(0),
        _ if seen & NOT_CAPABLE != 0 => None,
        _ if seen & CONGESTED != 0 => Some(3),
        _ => Some(0),
    }
}

/// Reads a fragment. `None` if there is nothing to be made of it.
fn read<'p>(packet: &'p Packet<'_>) -> Option<Piece<'p>> {
    match packet.layout.kind {
        Kind::V4 => read_v4(packet),
        Kind::V6 => read_v6(packet),
        _ => None,
    }
}

fn read_v4<'p>(packet: &'p Packet<'_>) -> Option<Piece<'p>> {
    let (frame, l3) = (packet.frame(), usize::from(packet.layout.l3));
    let l4 = usize::from(packet.layout.l4);
    let word = u16::from_be_bytes([frame[l3 + 6], frame[l3 + 7]]);
    let (start, more) = (usize::from(word & 0x1fff) * 8, word & 0x2000 != 0);
    let mut payload = &frame[l4..packet.layout.end as usize];
    if more {
        // What is beyond the last multiple of eight comes again (`ip_frag_queue`).
        payload = &payload[..payload.len() & !7];
    }
    if start + payload.len() > LEN_MAX {
        return None;
    }
    Some(Piece {
        key: Key {
            source: packet.source(),
            target: packet.target(),
            ident: u32::from(u16::from_be_bytes([frame[l3 + 4], frame[l3 + 5]])),
            protocol: packet.layout.protocol,
        },
        start,
        end: start + payload.len(),
        more,
        payload,
        header: &frame[..l4],
        patch: None,
        ip_len: packet.ip_len(),
        dont_fragment: packet.dont_fragment(),
        ecn: frame[l3 + 1] & 3,
    })
}

fn read_v6<'p>(packet: &'p Packet<'_>) -> Option<Piece<'p>> {
    let (frame, l3) = (packet.frame(), usize::from(packet.layout.l3));
    let (patch_at, at) = fragment_header(frame, l3, packet.layout.end as usize)?;
    let fragment: [u8; 8] = frame[at..at + 8].try_into().expect("eight bytes");
    let word = u16::from_be_bytes([fragment[2], fragment[3]]);
    let (start, more) = (usize::from(word & 0xfff8), word & 1 != 0);
    let payload = &frame[at + 8..packet.layout.end as usize];
    let end = start + payload.len();
    if end > LEN_MAX || more && payload.len() % 8 != 0 {
        return None;
    }
    Some(Piece {
        key: Key {
            source: packet.source(),
            target: packet.target(),
            ident: u32::from_be_bytes([fragment[4], fragment[5], fragment[6], fragment[7]]),
            protocol: 0,
        },
        start,
        end,
        more,
        payload,
        header: &frame[..at],
        patch: Some((patch_at, fragment)),
        ip_len: packet.ip_len(),
        dont_fragment: false,
        ecn: frame[l3 + 1] >> 4 & 3,
    })
}

/// Where the fragment header lies, and before it the byte that announces it.
fn fragment_header(frame: &[u8], l3: usize, end: usize) -> Option<(usize, usize)> {
    let (mut patch_at, mut at) = (l3 + 6, l3 + 40);
    for _ in 0..EXTENSION_HEADERS_MAX {
        if at + 8 > end {
            return None;
        }
        let len = match frame[patch_at] {
            number::FRAGMENT => return Some((patch_at, at)),
            0 | 43 | 60 => (usize::from(frame[at + 1]) + 1) * 8,
            number::AH => (usize::from(frame[at + 1]) + 2) * 4,
            _ => return None,
        };
        (patch_at, at) = (at, at + len);
    }
    None
}

#[cfg(test)]
mod tests;
