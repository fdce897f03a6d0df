//! Fragments by hand: what the kernel takes, what it refuses, and the way there and back.

use super::*;
use crate::rng::Rng;
use crate::wire::Offload;
use crate::wire::cut::Cut;
use crate::wire::packet::Layout;

const BOUNDS: Bounds = Bounds {
    bytes_max: 1 << 20,
    v4_wait: Duration::from_secs(30),
    v6_wait: Duration::from_secs(60),
};
const NOW: Instant = Instant::ZERO;

/// A fragment of IPv4, without a link header.
fn v4(tos: u8, word: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options.len();
    let mut bytes = vec![0x40 | (header_len / 4) as u8, tos];
    bytes.extend_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    bytes.extend_from_slice(&[0, 9]);
    bytes.extend_from_slice(&word.to_be_bytes());
    bytes.extend_from_slice(&[64, 17, 0, 0, 172, 16, 3, 9, 10, 0, 0, 100]);
    bytes.extend_from_slice(options);
    let sum = Sum::of(&bytes).checksum();
    bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A whole IPv6 packet of UDP behind `extensions`, of which the first is of kind `next`.
fn v6(next: u8, extensions: &[u8], payload: &[u8]) -> Vec<u8> {
    let len = (extensions.len() + payload.len()) as u16;
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend_from_slice(&len.to_be_bytes());
    bytes.extend_from_slice(&[next, 64]);
    bytes.extend_from_slice(&[0x20; 16]);
    bytes.extend_from_slice(&[0xfd; 16]);
    bytes.extend_from_slice(extensions);
    bytes.extend_from_slice(payload);
    bytes
}

fn take(reassembler: &mut Reassembler, mut bytes: Vec<u8>) -> Outcome {
    let layout = Layout::parse(&bytes, true).expect("a good packet");
    let packet = Packet::over(&mut bytes, layout, Offload::default());
    reassembler.handle_fragment(&packet, 0, NOW)
}

/// What becomes of these one after the other, in letters: waits, repeated, clashed, whole.
fn fate(frames: &[Vec<u8>]) -> String {
    let mut reassembler = Reassembler::new(BOUNDS);
    let letters = frames
        .iter()
        .map(|frame| match take(&mut reassembler, frame.clone()) {
            Outcome::Waits => 'w',
            Outcome::Repeated => 'r',
            Outcome::Clashed(_) => 'c',
            Outcome::Whole(_) => 'W',
        });
    letters.collect()
}

fn plain(offset: usize, more: bool, len: usize) -> Vec<u8> {
    let word = (offset / 8) as u16 | if more { 0x2000 } else { 0 };
    v4(0, word, &[], &vec![offset as u8; len])
}

/// As asked of Linux 6.1.
#[test]
fn repetitions_and_contradictions_are_told_apart_as_in_the_kernel() {
    let (a, b, c) = (
        plain(0, true, 400),
        plain(400, true, 400),
        plain(800, false, 100),
    );
    let ab = plain(0, true, 800);
    assert_eq!(fate(&[a.clone(), b.clone(), c.clone()]), "wwW");
    assert_eq!(fate(&[c.clone(), a.clone(), b.clone()]), "wwW");
    assert_eq!(fate(&[a.clone(), a.clone(), b.clone(), c.clone()]), "wrwW");
    // Within what came in a row, and across what did not.
    assert_eq!(fate(&[a.clone(), b.clone(), ab.clone(), c.clone()]), "wwrW");
    assert_eq!(fate(&[b.clone(), a.clone(), ab, c.clone()]), "wwcw");
    assert_eq!(fate(&[a.clone(), plain(392, true, 400), b.clone()]), "wcw");
    // Another end, an end before what is there, something behind the end, nothing at all.
    assert_eq!(fate(&[c.clone(), plain(800, false, 96)]), "wc");
    assert_eq!(fate(&[b.clone(), plain(400, false, 80)]), "wc");
    assert_eq!(fate(&[c, plain(1000, true, 80)]), "wc");
    assert_eq!(fate(&[a, plain(400, false, 0)]), "wc");
    assert_eq!(
        fate(&[plain(0, true, 800), plain(65_528, false, 1000)]),
        "wc"
    );
    // Beyond a multiple of eight it is cut off.
    assert_eq!(fate(&[plain(0, true, 404), plain(400, false, 8)]), "wW");
}

#[test]
fn a_repetition_may_tell_the_end() {
    let frames = [
        plain(0, true, 16),
        plain(24, true, 16),
        plain(32, false, 8),
        plain(16, true, 8),
    ];
    assert_eq!(fate(&frames), "wwrW");
}

#[test]
fn marks_of_congestion_are_joined() {
    let both = |first, last| {
        let mut reassembler = Reassembler::new(BOUNDS);
        take(&mut reassembler, v4(first, 0x2000, &[], &[1; 8]));
        match take(&mut reassembler, v4(last, 1, &[], &[2; 8])) {
            Outcome::Whole(whole) => Some(whole.buffer[whole.start + 1]),
            _ => None,
        }
    };
    assert_eq!(both(2, 3), Some(3));
    assert_eq!(both(2, 1), Some(2));
    assert_eq!(both(0x10, 0x20), Some(0x10));
    assert_eq!((both(0, 3), both(0, 2), both(3, 0)), (None, None, None));
}

#[test]
fn options_of_the_first_fragment_are_kept_and_blanked_in_later_ones() {
    let route = [7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0];
    let mut reassembler = Reassembler::new(BOUNDS);
    take(&mut reassembler, v4(0, 0x4001, &[], &[2; 8]));
    let Outcome::Whole(whole) = take(&mut reassembler, v4(0, 0x6000, &route, &[1; 8])) else {
        panic!("both are there");
    };
    let mut bytes = whole.buffer[whole.start..].to_vec();
    assert_eq!(whole.gathered.parts, [8, 8]);
    assert_eq!(
        (bytes.len(), bytes[6], Sum::of(&bytes[..32]).folded()),
        (48, 0x40, 0xffff)
    );
    let layout = Layout::parse(&bytes, true).expect("a good packet");
    let packet = Packet::over(&mut bytes, layout, Offload::default());
    let cut = Cut::new(&packet, 40, &[], 0).expect("room for eight bytes");
    let mut pieces = cut.ranges().map(|range| {
        let mut out = Vec::new();
        cut.write(range, &mut out);
        out
    });
    assert_eq!(pieces.next().expect("a first")[20..32], route);
    let second = pieces.next().expect("a second");
    assert_eq!(second[20..32], [1, 1, 1, 1, 1, 1, 1, 0x94, 4, 0, 0, 0]);
    assert_eq!(
        (second[6..8].to_vec(), Sum::of(&second[..32]).folded()),
        (vec![0, 1], 0xffff)
    );
    assert!(Cut::new(&packet, 39, &[], 0).is_none());
}

/// Whatever is cut is the same when it is whole again, in any order, and its time counts from its
/// first frame.
#[test]
fn cut_and_joined_is_the_same() {
    let mut rng = Rng::new(3);
    let hop_by_hop = [60, 0, 1, 4, 0, 0, 0, 0];
    let options = [17, 0, 1, 4, 0, 0, 0, 0];
    for round in 0..400 {
        let payload: Vec<u8> = (0..40 + rng.below(6000))
            .map(|_| rng.next_u64() as u8)
            .collect();
        let mut bytes = match round % 4 {
            0 => v4(2, 0, &[], &payload),
            1 => v4(0, 0, &[0x94, 4, 0, 0], &payload),
            2 => v6(17, &[], &payload),
            _ => v6(0, &[hop_by_hop, options].concat(), &payload),
        };
        let before = bytes.clone();
        let layout = Layout::parse(&bytes, true).expect("a good packet");
        let packet = Packet::over(&mut bytes, layout, Offload::default());
        let len_max = 100 + rng.below(1400) as usize;
        let cut = Cut::new(&packet, len_max, &[], 77).expect("room");
        let mut pieces: Vec<Vec<u8>> = Vec::new();
        for range in cut.ranges() {
            let mut out = Vec::new();
            cut.write(range, &mut out);
            assert!(out.len() <= len_max);
            pieces.push(out);
        }
        assert_eq!(pieces.len(), cut.len());
        if pieces.len() == 1 {
            continue;
        }
        let lens: Vec<usize> = cut.ranges().map(|(start, end)| end - start).collect();
        for at in (1..pieces.len()).rev() {
            pieces.swap(at, rng.below(at as u64 + 1) as usize);
        }
        let mut reassembler = Reassembler::new(BOUNDS);
        let last = pieces.pop().expect("several");
        for piece in pieces {
            assert!(matches!(take(&mut reassembler, piece), Outcome::Waits));
        }
        let Outcome::Whole(whole) = take(&mut reassembler, last) else {
            panic!("all are there");
        };
        assert_eq!(whole.buffer[whole.start..], before);
        let parts: Vec<usize> = whole
            .gathered
            .parts
            .iter()
            .map(|len| *len as usize)
            .collect();
        assert_eq!(parts, lens);
        assert!(reassembler.is_empty() && reassembler.bytes() == 0);
    }
}

#[test]
fn lengths_that_a_sender_chose_are_kept_where_they_fit() {
    let mut bytes = v4(0, 0, &[], &[5; 1200]);
    let layout = Layout::parse(&bytes, true).expect("a good packet");
    let packet = Packet::over(&mut bytes, layout, Offload::default());
    let lens = |len_max, parts: &[u16]| {
        let cut = Cut::new(&packet, len_max, parts, 0).expect("room");
        cut.ranges()
            .map(|(start, end)| end - start)
            .collect::<Vec<usize>>()
    };
    assert_eq!(lens(820, &[400, 800]), [400, 800]);
    assert_eq!(lens(819, &[400, 800]), [792, 408]);
    assert_eq!(lens(820, &[400, 400]), [800, 400], "not this packet's");
}

#[test]
fn what_comes_of_time_and_room() {
    let mut reassembler = Reassembler::new(Bounds {
        bytes_max: 2000,
        ..BOUNDS
    });
    take(&mut reassembler, plain(0, true, 400));
    assert_eq!(reassembler.poll_timeout(), Some(NOW + BOUNDS.v4_wait));
    assert_eq!(
        reassembler.poll_output(NOW + Duration::from_millis(29_999)),
        None
    );
    let late = reassembler
        .poll_output(NOW + BOUNDS.v4_wait)
        .expect("its time is up");
    assert_eq!(
        (late.why, late.frames, late.first),
        (Lost::Time, 1, Some(plain(0, true, 400)))
    );
    assert!(reassembler.is_empty() && !reassembler.lacks_room());
    take(&mut reassembler, plain(80, true, 800));
    assert!(reassembler.lacks_room());
    let gone = reassembler.make_room().expect("there is one");
    assert_eq!((gone.why, gone.frames, gone.first), (Lost::Room, 1, None));
    assert_eq!(reassembler.make_room(), None);
}

/// Rubbish in the place of fragments: never a panic, and the books stay right.
#[test]
fn rubbish_is_refused_or_kept_within_the_bound() {
    let mut rng = Rng::new(5);
    let mut reassembler = Reassembler::new(Bounds {
        bytes_max: 30_000,
        ..BOUNDS
    });
    for round in 0..20_000u64 {
        let word = rng.next_u64() as u16 & 0x60ff;
        let mut bytes = if round % 2 == 0 {
            v4(
                rng.next_u64() as u8 & 1,
                word,
                &[],
                &vec![1; rng.below(900) as usize],
            )
        } else {
            let len = rng.below(900) as usize;
            let fragment = [17, 0, 0, rng.next_u64() as u8, 0, 0, 0, 1];
            v6(44, &fragment, &vec![1; len])
        };
        let Ok(layout) = Layout::parse(&bytes, true) else {
            continue;
        };
        let packet = Packet::over(&mut bytes, layout, Offload::default());
        while reassembler.lacks_room() {
            reassembler.make_room().expect("somebody makes room");
        }
        reassembler.handle_fragment(&packet, 0, NOW);
        assert!(reassembler.bytes() <= 30_000);
    }
    while reassembler.poll_output(NOW + BOUNDS.v6_wait).is_some() {}
    assert_eq!((reassembler.len(), reassembler.bytes()), (0, 0));
}
