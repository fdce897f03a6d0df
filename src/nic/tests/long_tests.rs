//! Long frames and full buffers: super-frames between short ones, a ring that wraps, a ring that
//! overflows, and real TCP through a pair of interfaces.

use std::net::Ipv4Addr;

use super::frame_tests::*;
use super::stream_tests::*;
use super::world_tests::*;
use crate::nic::{Backend, OpenOptions, Side, cut, open};
use crate::rng::Rng;
use crate::wire::checksum::{self, Sum};
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::{FrameView, Layout, Offload, Packet};

/// A frame of IPv4 and TCP with an unfinished checksum, to be cut into segments of 1000 bytes where
/// it is longer than the MTU.
fn tcp_frame(number: u32, len: usize) -> (Vec<u8>, Offload) {
    let mut bytes = frame(number, len);
    bytes[12..14].copy_from_slice(&[0x08, 0x00]);
    let ip_len = (len - 14) as u16;
    bytes[14..34].copy_from_slice(&[
        0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    bytes[16..18].copy_from_slice(&ip_len.to_be_bytes());
    bytes[34..54].copy_from_slice(&[0; 20]);
    bytes[38..42].copy_from_slice(&number.to_be_bytes());
    bytes[46..48].copy_from_slice(&[0x50, 0x10]);
    let mut header = [0; VNET_HEADER_LEN];
    header[0] = 1;
    let is_long = len > 1514;
    header[1] = u8::from(is_long);
    let words = [54 * u16::from(is_long), 1000 * u16::from(is_long), 34, 16];
    for (at, word) in words.iter().enumerate() {
        header[2 + 2 * at..4 + 2 * at].copy_from_slice(&word.to_ne_bytes());
    }
    (bytes, Offload::decode(&header))
}

fn long_between_short(backend: Backend) {
    let (client, director) = two_spaces();
    let (_, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
    let (mut rx, _) = director.enter(|| open(backend, &options("d0")).unwrap());
    let mut rng = Rng::new(3);
    let mut number = 0;
    // 1846 is the longest that fits a slot of the ring.
    let edges = [
        54, 60, 1514, 1845, 1846, 1847, 1848, 2048, 9000, 65_000, 65_535,
    ];
    for _ in 0..40 {
        let count = 1 + rng.below(20) as usize;
        let sent: Vec<_> = (0..count)
            .map(|_| {
                number += 1;
                let (mut bytes, mut offload) = tcp_frame(number, edges[rng.below(11) as usize]);
                if rng.chance(30) && bytes.len() < 65_000 {
                    bytes.splice(12..12, [0x81, 0x00, 0x20, number as u8]);
                    offload.shift(4);
                }
                (bytes, offload)
            })
            .collect();
        let result = tx.send(&mut sent.iter().map(|(bytes, offload)| FrameView {
            bytes,
            offload: *offload,
            raw_ip: false,
        }));
        assert_eq!((result.taken, result.refused), (count, 0));
        let mut got = 0;
        while got < count {
            let came = rx.fill().unwrap();
            if came == 0 {
                await_frames(&mut *rx);
            }
            for index in 0..came {
                let (bytes, offload) = &sent[got + index];
                let view = rx.view(index);
                assert_eq!(view.bytes.len(), bytes.len());
                assert!(view.bytes == bytes, "frame {} differs", got + index);
                assert_eq!(view.offload.is_gso(), offload.is_gso());
                assert_eq!(view.offload.segment_len(), offload.segment_len());
                assert!(view.offload.is_partial());
                assert_eq!(view.offload.csum_start(), offload.csum_start());
                assert_eq!(view.offload.csum_offset(), offload.csum_offset());
            }
            got += came;
            rx.release();
        }
    }
    assert_eq!(rx.fill(), Ok(0));
    let counters = rx.counters();
    assert_eq!(counters.received, u64::from(number));
    assert_eq!((counters.overrun, counters.truncated), (0, 0));
}

#[test]
fn ring_keeps_long_frames_whole_and_in_order() {
    in_world(User::Same, || long_between_short(Backend::Packet));
}

#[test]
fn mmsg_keeps_long_frames_whole_and_in_order() {
    in_world(User::Same, || long_between_short(Backend::Mmsg));
}

/// An interface that cannot cut super-frames by itself: the kernel must.
#[test]
fn super_frames_leave_by_interfaces_that_cannot_cut_them() {
    in_world(User::Same, || {
        let (client, director) = two_spaces();
        client.enter(|| set_tcp_segmentation("c0", false));
        let (_, mut tx) = client.enter(|| open(Backend::Packet, &options("c0")).unwrap());
        let (mut rx, _) = director.enter(|| open(Backend::Packet, &options("d0")).unwrap());
        for number in [1, 2] {
            let (bytes, offload) = tcp_frame(number, 54 + 5 * 1000);
            let view = FrameView {
                bytes: &bytes,
                offload,
                raw_ip: false,
            };
            assert_eq!(tx.send(&mut std::iter::once(view)).taken, 1);
            let segments = receive(&mut *rx, 5);
            for (index, segment) in segments.iter().enumerate() {
                assert_eq!(segment.len(), 1054);
                assert!(segment[54..] == bytes[54 + 1000 * index..][..1000]);
            }
        }
    });
}

/// Datagrams of 1000 bytes, the last one shorter: whole where the device could cut them, and else cut by
/// the kernel, or by us where it is too old; on the wire they are the same.
#[test]
fn super_frames_of_udp_are_datagrams_with_sums_at_last() {
    in_world(User::Same, || {
        let (client, director) = two_spaces();
        let (_, mut tx) = client.enter(|| open(Backend::Packet, &options("c0")).unwrap());
        let (mut rx, _) = director.enter(|| open(Backend::Packet, &options("d0")).unwrap());
        let data: Vec<u8> = (0..4700u32).map(|at| (at / 3) as u8).collect();
        let whole = udp_frame(&data);
        let view = FrameView {
            bytes: &whole,
            offload: Offload::datagrams(34, 1000),
            raw_ip: false,
        };
        for device_can in [true, false] {
            client.enter(|| set_checksumming("c0", device_can));
            assert_eq!(tx.send(&mut std::iter::once(view)).taken, 1);
            let mut frames = receive(&mut *rx, 1);
            if device_can && frames[0].len() == whole.len() {
                frames = cut::datagrams(&view).expect("a super-frame");
            }
            while frames.len() < 5 {
                frames.extend(receive(&mut *rx, 1));
            }
            assert_eq!(frames.len(), 5);
            for (mut bytes, data) in frames.into_iter().zip(data.chunks(1000)) {
                assert_eq!(&bytes[42..], data);
                assert!(bytes[40..42] != [0, 0], "it has a sum");
                let layout = Layout::parse(&bytes, false).expect("lengths and header sum hold");
                let packet = Packet::over(&mut bytes, layout, Offload::default());
                assert!(packet.transport_sum_holds());
            }
        }
    });
}

/// A super-frame of UDP over IPv4, its sum begun.
fn udp_frame(data: &[u8]) -> Vec<u8> {
    let mut bytes = frame(1, 42 + data.len());
    bytes[12..14].copy_from_slice(&[0x08, 0x00]);
    let (ip_len, udp_len) = ((28 + data.len()) as u16, (8 + data.len()) as u16);
    bytes[14..34].copy_from_slice(&[
        0x45, 0, 0, 0, 0, 9, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
    ]);
    bytes[16..18].copy_from_slice(&ip_len.to_be_bytes());
    let sum = Sum::of(&bytes[14..34]).checksum();
    bytes[24..26].copy_from_slice(&sum.to_be_bytes());
    bytes[34..38].copy_from_slice(&[0x9c, 0x40, 0x17, 0xc0]);
    bytes[38..40].copy_from_slice(&udp_len.to_be_bytes());
    let ends = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
    let begun = checksum::pseudo_header(ends[0], ends[1], 17, udp_len.into()).folded();
    bytes[40..42].copy_from_slice(&begun.to_be_bytes());
    bytes[42..].copy_from_slice(data);
    bytes
}

/// Frames that arrive while nobody takes them: what fits is delivered once and in order, what does
/// not is counted.
fn overflow(backend: Backend) {
    let (client, director) = two_spaces();
    let (_, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
    let mut small = options("d0");
    small.receive_buffer_bytes = 200_000;
    let (mut rx, _) = director.enter(|| open(backend, &small).unwrap());
    let mut rng = Rng::new(5);
    let (mut sent, mut got, mut last) = (0, 0, 0);
    for _ in 0..50 {
        let burst = 1 + rng.below(300) as u32;
        for _ in 0..burst {
            sent += 1;
            let len = if rng.chance(10) { 30_000 } else { 100 };
            let (bytes, offload) = tcp_frame(sent, len);
            let view = FrameView {
                bytes: &bytes,
                offload,
                raw_ip: false,
            };
            assert_eq!(tx.send(&mut std::iter::once(view)).taken, 1);
        }
        while got + rx.counters().overrun < u64::from(sent) {
            let came = rx.fill().unwrap();
            for index in 0..came {
                let bytes = rx.view(index).bytes;
                let number = u32::from_be_bytes(bytes[38..42].try_into().unwrap());
                assert!(number > last, "{number} came after {last}");
                last = number;
                assert!(bytes == tcp_frame(number, bytes.len()).0);
            }
            got += came as u64;
            rx.release();
        }
    }
    let counters = rx.counters();
    assert_eq!((counters.received, counters.truncated), (got, 0));
    assert!(counters.overrun > 0, "the test did not overflow anything");
    assert_eq!(counters.received + counters.overrun, u64::from(sent));
}

#[test]
fn ring_counts_what_does_not_fit() {
    in_world(User::Same, || overflow(Backend::Packet));
}

#[test]
fn mmsg_counts_what_does_not_fit() {
    in_world(User::Same, || overflow(Backend::Mmsg));
}

/// Two senders on two processors against one receiver: each one's frames come once and in order.
fn race(backend: Backend) {
    const FRAMES: u32 = 40_000;
    let (client, director) = two_spaces();
    let (mut rx, _) = director.enter(|| open(backend, &options("d0")).unwrap());
    let send = |sender: u32| {
        let (_, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
        let mut rng = Rng::new(u64::from(sender));
        let mut taken = 0;
        for number in 0..FRAMES / 8 {
            let frames = [(); 8].map(|()| if rng.chance(5) { 20_000 } else { 60 });
            let mut at = number * 8;
            let frames = frames.map(|len| {
                at += 1;
                tcp_frame(sender << 24 | at, len)
            });
            let views = frames.iter().map(|(bytes, offload)| FrameView {
                bytes,
                offload: *offload,
                raw_ip: false,
            });
            taken += tx.send(&mut views.into_iter()).taken as u64;
        }
        taken
    };
    let (mut last, mut got) = ([0; 2], 0);
    std::thread::scope(|scope| {
        let send = &send;
        let mut senders = [0, 1].map(|sender| Some(scope.spawn(move || send(sender))));
        let (mut sent, mut running) = (0, 2);
        while running > 0 || got + rx.counters().overrun < sent {
            for sender in &mut senders {
                if sender.as_ref().is_some_and(|thread| thread.is_finished()) {
                    sent += sender.take().unwrap().join().unwrap();
                    running -= 1;
                }
            }
            let came = rx.fill().unwrap();
            for index in 0..came {
                let bytes = rx.view(index).bytes;
                let number = u32::from_be_bytes(bytes[38..42].try_into().unwrap());
                let last = &mut last[(number >> 24) as usize];
                assert!(number & 0xff_ffff > *last, "{number:x} came after {last:x}");
                *last = number & 0xff_ffff;
                assert!(bytes == tcp_frame(number, bytes.len()).0);
            }
            got += came as u64;
            rx.release();
        }
        assert_eq!(got + rx.counters().overrun, sent);
    });
    let counters = rx.counters();
    assert_eq!((counters.received, counters.truncated), (got, 0));
    assert!(
        got > u64::from(FRAMES / 10),
        "hardly anything came: {counters:?}"
    );
}

#[test]
fn ring_keeps_order_under_fire() {
    in_world(User::Same, || race(Backend::Packet));
}

#[test]
fn mmsg_keeps_order_under_fire() {
    in_world(User::Same, || race(Backend::Mmsg));
}

/// A real TCP connection through two patched interfaces, with super-frames and unfinished sums.
fn tcp_through(backend: Backend) {
    let (client, director) = two_spaces();
    let server = Space::new();
    veth(&director, "d1", &server, "s0");
    client.enter(|| add_address("c0", Ipv4Addr::new(10, 0, 0, 1), 24));
    server.enter(|| add_address("s0", Ipv4Addr::new(10, 0, 0, 2), 24));
    let (left, right) = director.enter(|| {
        let open = |name: &str| {
            // It is a patch cable, so the addresses are those of the other ends.
            let mut options = OpenOptions::new(name, Side::Public);
            options.foreign_macs = true;
            open(backend, &options).unwrap()
        };
        (open("d0"), open("d1"))
    });
    let super_frames = tcp_between(&client, &server, left, right);
    assert!(super_frames > 100, "only {super_frames} super-frames");
}

#[test]
fn ring_carries_tcp() {
    in_world(User::Same, || tcp_through(Backend::Packet));
}

#[test]
fn mmsg_carries_tcp() {
    in_world(User::Same, || tcp_through(Backend::Mmsg));
}

#[test]
fn ring_carries_tcp_for_an_ordinary_user() {
    in_world(User::Nobody, || tcp_through(Backend::Packet));
}
