//! Fragments through the whole packet path: every order of them, too many of them, wrong ones.

use super::*;
use crate::rng::Rng;
use crate::wire::checksum::{self, Sum};
use crate::wire::cut::Cut;

type Ips = ([u8; 4], [u8; 4]);

/// A datagram of 8,000 bytes, in as many frames as a link of 1,500 bytes makes of it.
fn fragments(to: (Mac, Mac), ips: Ips, ports: (u16, u16), ident: u16) -> Vec<Vec<u8>> {
    let message: Vec<u8> = (0..8000).map(|at: u32| (at % 251) as u8).collect();
    let mut frame = udp(to, ips, ports, &message);
    frame[18..20].copy_from_slice(&ident.to_be_bytes());
    cut(&mut frame, 1500)
}

fn cut(frame: &mut [u8], len_max: usize) -> Vec<Vec<u8>> {
    frame[20] = 0;
    mend(frame);
    let layout = Layout::parse(frame, false).expect("a good frame");
    let packet = Packet::over(frame, layout, Offload::default());
    let cut = Cut::new(&packet, len_max, &[], 0).expect("enough room");
    let written = cut.ranges().map(|range| {
        let mut out = Vec::new();
        cut.write(range, &mut out);
        out
    });
    written.collect()
}

/// Makes the header's sum right.
fn mend(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

/// What the fragments carry together, read by hand, with addresses and TTL of the first.
fn joined(frames: &[MemoryFrame]) -> (Vec<u8>, [u8; 8], u8) {
    let part = |frame: &MemoryFrame| {
        let header = &frame.bytes[14..34];
        assert_eq!((header[0], Sum::of(header).folded()), (0x45, 0xffff));
        let word = |at: usize| usize::from(u16::from_be_bytes([header[at], header[at + 1]]));
        let part = frame.bytes[34..14 + word(2)].to_vec();
        ((word(6) & 0x1fff) * 8, part)
    };
    let mut parts: Vec<(usize, Vec<u8>)> = frames.iter().map(part).collect();
    parts.sort();
    let mut whole = Vec::new();
    for (offset, part) in parts {
        assert_eq!(offset, whole.len(), "no hole and no overlap");
        whole.extend_from_slice(&part);
    }
    let first = &frames[0].bytes;
    let ips = first[26..34].try_into().expect("two addresses");
    (whole, ips, first[22])
}

/// Is the datagram's checksum right between these addresses?
fn sum_holds(datagram: &[u8], ips: &[u8; 8]) -> bool {
    let of = |at: usize| IpAddr::from([ips[at], ips[at + 1], ips[at + 2], ips[at + 3]]);
    let pseudo = checksum::pseudo_header(of(0), of(4), number::UDP, datagram.len());
    Sum::of(datagram).plus(pseudo).folded() == 0xffff
}

/// Every order of `n` things.
fn orders(n: usize) -> Vec<Vec<usize>> {
    if n == 0 {
        return vec![vec![]];
    }
    let mut all = Vec::new();
    for shorter in orders(n - 1) {
        for at in 0..n {
            let mut order = shorter.clone();
            order.insert(at, n - 1);
            all.push(order);
        }
    }
    all
}

fn dns() -> House {
    house(ServiceKey::udp(VIP.into(), 53), 5353, true)
}

#[test]
fn a_long_datagram_passes_both_ways_in_every_order() {
    let mut house = dns();
    let orders = orders(6);
    assert_eq!(orders.len(), 720);
    for (ident, order) in orders.iter().enumerate() {
        let there = fragments(IN, (CLIENT, VIP), (40000, 53), ident as u16);
        let back = fragments(OUT, (RIP, CLIENT), (5353, 40000), ident as u16);
        for (at, index) in order.iter().enumerate() {
            let (_, inside) = house.outside_says(&there[*index]);
            assert_eq!(inside.len(), if at == 5 { 6 } else { 0 }, "{order:?}");
            if at == 5 {
                let (datagram, ips, ttl) = joined(&inside);
                assert_eq!(ips, [172, 16, 3, 9, 192, 168, 1, 11]);
                assert_eq!(datagram[..4], [0x9c, 0x40, 0x14, 0xe9]);
                assert!(sum_holds(&datagram, &ips) && datagram.len() == 8008 && ttl == 63);
            }
        }
        for (at, index) in order.iter().enumerate() {
            let (outside, _) = house.inside_says(&back[*index]);
            assert_eq!(outside.len(), if at == 5 { 6 } else { 0 }, "{order:?}");
            if at == 5 {
                let (datagram, ips, ttl) = joined(&outside);
                assert_eq!(ips, [10, 0, 0, 100, 172, 16, 3, 9]);
                assert_eq!(datagram[..4], [0, 53, 0x9c, 0x40]);
                assert!(sum_holds(&datagram, &ips) && ttl == 63);
            }
        }
    }
    let account = house.worker.account();
    assert_eq!((account.forwarded, account.held), (2 * 6 * 720, 0));
    assert_eq!(house.table.len(), 1, "they all are of one connection");
}

#[test]
fn ten_thousand_unfinished_datagrams_stay_within_the_bound_and_vanish_on_time() {
    let mut house = dns();
    let bound = Limits::default().frag_bytes_max as usize;
    for ident in 0..10_000 {
        let first = &fragments(IN, (CLIENT, VIP), (40000, 53), ident)[0];
        house.outside_says(first);
        assert!(house.worker.fragments().bytes() <= bound);
    }
    let account = house.worker.account().clone();
    let waiting = house.worker.fragments().len() as u64;
    let refused = account.dropped_for(DropReason::FragmentLimit);
    assert!(waiting > 2000, "the bound is used: {waiting}");
    assert_eq!((account.held, refused), (waiting, 10_000 - waiting));
    // Their time is not yet up, then it is.
    house.now += Duration::from_millis(29_999);
    house.breathe();
    assert_eq!(house.worker.account().held, waiting);
    house.now += Duration::from_millis(1);
    assert_eq!(house.worker.poll_timeout(house.now), Some(house.now));
    let mut told = 0;
    for _ in 0..waiting.div_ceil(512) {
        house.breathe();
        told += house.outside.take().len();
    }
    let account = house.worker.account();
    assert_eq!(account.held, 0);
    assert_eq!(house.worker.fragments().bytes(), 0);
    assert_eq!(account.dropped_for(DropReason::Fragment), waiting);
    assert!(
        told >= 256,
        "senders are told, as many as a breath allows: {told}"
    );
}

#[test]
fn who_waited_in_vain_is_told_with_the_first_fragment() {
    let mut house = dns();
    let there = fragments(IN, (CLIENT, VIP), (40000, 53), 7);
    house.outside_says(&there[0]);
    house.outside_says(&there[3]);
    let back = fragments(OUT, (RIP, CLIENT), (5353, 40000), 7);
    house.inside_says(&back[2]);
    house.now += Duration::from_secs(31);
    house.breathe();
    let told = house.outside.take();
    assert_eq!(told.len(), 1);
    let icmp = &told[0].bytes[34..];
    assert_eq!(icmp[..2], [11, 1]);
    assert_eq!(icmp[8..100], there[0][14..106], "as it came");
    assert!(
        house.inside.take().is_empty(),
        "there the first one was missing"
    );
    assert_eq!(house.worker.account().dropped_for(DropReason::Fragment), 3);
}

/// One of six fragments begins earlier or ends later than it should, in any order, and the good one
/// comes behind: nothing leaves, all are counted.
#[test]
fn overlapping_fragments_are_dropped_and_counted() {
    let mut house = dns();
    let mut rng = Rng::new(11);
    let mut sent = 0;
    for ident in 0..2000u16 {
        let good = fragments(IN, (CLIENT, VIP), (40000, 53), ident);
        let mut frames = good.clone();
        let wrong = 1 + rng.below(4) as usize;
        let word = u16::from_be_bytes([frames[wrong][20], frames[wrong][21]]);
        let shift = 1 + rng.below(100) as u16;
        let word = if rng.below(2) == 0 {
            word - shift
        } else {
            word + shift
        };
        frames[wrong][20..22].copy_from_slice(&word.to_be_bytes());
        mend(&mut frames[wrong]);
        for at in (1..frames.len()).rev() {
            frames.swap(at, rng.below(at as u64 + 1) as usize);
        }
        frames.push(good[wrong].clone());
        for frame in &frames {
            sent += 1;
            let (outside, inside) = house.outside_says(frame);
            assert!(outside.is_empty() && inside.is_empty(), "{ident}");
        }
    }
    let overlaps = house
        .worker
        .account()
        .dropped_for(DropReason::FragmentOverlap);
    assert!(overlaps > 2 * 2000, "{overlaps}");
    house.now += Duration::from_secs(31);
    for _ in 0..40 {
        house.breathe();
    }
    let account = house.worker.account();
    assert_eq!((account.received, account.dropped_total()), (sent, sent));
    assert!(house.table.is_empty() && account.held == 0);
}

#[test]
fn what_is_too_long_for_the_link_is_cut_and_what_must_not_be_is_refused() {
    let mut house = house_with(ServiceKey::udp(VIP.into(), 53), 5353, true, |parts| {
        parts.ports[1].mtu = 600;
    });
    let mut whole = udp(IN, (CLIENT, VIP), (40000, 53), &[7; 1300]);
    assert_eq!(whole[20] & 0x40, 0x40, "etherparse sets DF");
    let (outside, inside) = house.outside_says(&whole);
    assert!(inside.is_empty());
    let icmp = &outside[0].bytes[34..];
    assert_eq!(
        (&icmp[..2], &icmp[4..8]),
        (&[3, 4][..], &[0, 0, 2, 0x58][..])
    );
    whole[20] = 0;
    mend(&mut whole);
    let (_, inside) = house.outside_says(&whole);
    let lens: Vec<usize> = inside.iter().map(|frame| frame.bytes.len() - 34).collect();
    assert_eq!(lens, [576, 576, 156]);
    let (datagram, ips, _) = joined(&inside);
    assert!(sum_holds(&datagram, &ips) && datagram.len() == 1308);
    // An unfinished checksum is finished first: no device could do it for a fragment.
    let sum = checksum::pseudo_header(CLIENT.into(), VIP.into(), number::UDP, 1308);
    whole[40..42].copy_from_slice(&sum.folded().to_be_bytes());
    house.outside.put(MemoryFrame {
        bytes: whole,
        offload: Offload::partial(34, 6),
        mark: 0,
    });
    house.breathe();
    let inside = house.inside.take();
    let (datagram, ips, _) = joined(&inside);
    assert!(inside.iter().all(|frame| !frame.offload.is_partial()));
    assert!(sum_holds(&datagram, &ips));
    assert_eq!(
        house.worker.account().forwarded,
        2,
        "frames that came, not pieces"
    );
}

#[test]
fn fragments_wait_for_a_mac_as_one_datagram() {
    let mut house = house(ServiceKey::udp(VIP.into(), 53), 5353, false);
    for frame in &fragments(IN, (CLIENT, VIP), (40000, 53), 7) {
        house.outside_says(frame);
    }
    assert_eq!(house.worker.account().held, 6);
    let mut reply = [INSIDE.0, SERVER.0].concat();
    reply.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    reply.extend_from_slice(&[&SERVER.0[..], &RIP, &INSIDE.0, &[192, 168, 1, 1]].concat());
    let (_, first) = house.inside_says(&reply);
    house.breathe();
    let mut inside = first;
    inside.extend(house.inside.take());
    let (datagram, ips, _) = joined(&inside);
    assert!(sum_holds(&datagram, &ips) && inside.len() == 6);
    assert_eq!(inside[0].bytes[..6], SERVER.0);
    let account = house.worker.account();
    assert_eq!((account.held, account.forwarded), (0, 6));
}

#[test]
fn a_long_echo_is_answered_in_fragments() {
    let mut house = dns();
    let mut frame = udp(IN, (CLIENT, VIP), (0, 0), &[5; 4000]);
    // What was a datagram becomes an echo request.
    frame[23] = number::ICMP;
    frame[34..42].copy_from_slice(&[8, 0, 0, 0, 0, 1, 0, 2]);
    let sum = Sum::of(&frame[34..]).checksum();
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    let mut out = Vec::new();
    for piece in cut(&mut frame, 1500) {
        out = house.outside_says(&piece).0;
    }
    let (message, ips, ttl) = joined(&out);
    assert_eq!((out.len(), message.len(), ttl), (3, 4008, 64));
    assert_eq!((message[0], ips), (0, [10, 0, 0, 100, 172, 16, 3, 9]));
    assert_eq!(house.worker.account().answered, 3);
}
