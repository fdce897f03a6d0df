//! What goes in at one end comes out at the other: every frame, once, in order, unchanged; also
//! when an interface goes down, goes away, and comes back.

use super::world_tests::*;
use crate::nic::{Backend, OpenOptions, Side, open, wait};
use crate::time::Duration;
use crate::wire::{FrameView, Mac, NicError, Offload, Rx, Tx};

const PACKET_BACKENDS: &[Backend] = &[Backend::Packet, Backend::Mmsg];
const PATIENCE: Duration = Duration::from_secs(10);

pub fn options(interface: &str) -> OpenOptions {
    let mut options = OpenOptions::new(interface, Side::Public);
    options.ring_slots = 64;
    options
}

/// An Ethernet frame from `c0` to `d0` of `len` bytes, different for each `number`.
pub fn frame(number: u32, len: usize) -> Vec<u8> {
    let mut frame = Vec::with_capacity(len);
    frame.extend_from_slice(&mac_of("d0").0);
    frame.extend_from_slice(&mac_of("c0").0);
    // An EtherType for local experiments (IEEE 802.1): no kernel stack answers it.
    frame.extend_from_slice(&[0x88, 0xb5]);
    frame.extend_from_slice(&number.to_be_bytes());
    frame.extend((frame.len()..len).map(|at| (at as u32 ^ number) as u8));
    frame.truncate(len);
    frame
}

pub fn send_all(tx: &mut dyn Tx, frames: &[Vec<u8>]) -> crate::wire::nic::Sent {
    tx.send(&mut frames.iter().map(|bytes| FrameView {
        bytes,
        offload: Offload::default(),
        raw_ip: false,
    }))
}

/// Receives `count` frames, or fails.
pub fn receive(rx: &mut dyn Rx, count: usize) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    while got.len() < count {
        let came = rx.fill().unwrap();
        for index in 0..came {
            got.push(rx.view(index).bytes.to_vec());
            assert_eq!(rx.frame(index).bytes(), got.last().unwrap());
        }
        rx.release();
        if came == 0 {
            await_frames(rx);
        }
    }
    got
}

/// Waits until the interface has something, or fails.
pub fn await_frames(rx: &mut dyn Rx) {
    let fd = rx.wait_fd().unwrap();
    assert!(wait(&[fd], Some(PATIENCE)).unwrap(), "no more frames came");
}

/// Two namespaces, `c0` in the first and `d0` in the second.
pub fn two_spaces() -> (Space, Space) {
    let (client, director) = (Space::new(), Space::new());
    veth(&client, "c0", &director, "d0");
    (client, director)
}

fn sizes_and_tags(backend: Backend) {
    let (client, director) = two_spaces();
    let (_, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
    let (mut rx, _) = director.enter(|| open(backend, &options("d0")).unwrap());
    let mut sent = Vec::new();
    for len in (14..1515).step_by(7).chain([1514]) {
        sent.push(frame(len as u32, len));
    }
    // One tag, and one inside another; the kernel takes the outer one out of both.
    let mut tagged = frame(1, 200);
    tagged.splice(12..12, [0x81, 0x00, 0x20, 0x05]);
    sent.push(tagged);
    let mut twice = frame(2, 200);
    twice.splice(12..12, [0x88, 0xa8, 0x00, 0x07, 0x81, 0x00, 0x20, 0x05]);
    sent.push(twice);
    for part in sent.chunks(32) {
        let result = send_all(&mut *tx, part);
        assert_eq!((result.taken, result.refused), (part.len(), 0));
        assert_eq!(receive(&mut *rx, part.len()), part);
    }
    assert_eq!(rx.fill(), Ok(0));
    let counters = rx.counters();
    assert_eq!(counters.received, sent.len() as u64);
    assert_eq!((counters.overrun, counters.truncated), (0, 0));
}

#[test]
fn ring_carries_all_sizes_and_tags() {
    in_world(User::Same, || sizes_and_tags(Backend::Packet));
}

#[test]
fn mmsg_carries_all_sizes_and_tags() {
    in_world(User::Same, || sizes_and_tags(Backend::Mmsg));
}

#[test]
fn ring_works_for_an_ordinary_user() {
    in_world(User::Nobody, || sizes_and_tags(Backend::Packet));
}

#[test]
fn mmsg_works_for_an_ordinary_user() {
    in_world(User::Nobody, || sizes_and_tags(Backend::Mmsg));
}

fn refusals(backend: Backend) {
    let (client, _director) = two_spaces();
    let (mut rx, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
    // Too long for the interface, too short for Ethernet, then a good one.
    let result = send_all(&mut *tx, &[frame(1, 1600), frame(2, 10), frame(3, 60)]);
    assert_eq!((result.taken, result.refused), (1, 2));
    let mut raw = std::iter::once(FrameView {
        bytes: &[0x45; 40],
        offload: Offload::default(),
        raw_ip: true,
    });
    assert_eq!(tx.send(&mut raw).refused, 1);
    let counters = rx.counters();
    assert_eq!((counters.sent, counters.refused), (1, 3));
}

#[test]
fn ring_refuses_what_does_not_fit() {
    in_world(User::Same, || refusals(Backend::Packet));
}

#[test]
fn mmsg_refuses_what_does_not_fit() {
    in_world(User::Same, || refusals(Backend::Mmsg));
}

fn other_macs(backend: Backend) {
    let (client, director) = two_spaces();
    let (_, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
    let (mut ours, _) = director.enter(|| open(backend, &options("d0")).unwrap());
    let mut all = options("d0");
    all.foreign_macs = true;
    let (mut all, _) = director.enter(|| open(backend, &all).unwrap());
    let mut foreign = frame(1, 60);
    foreign[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    let mut broadcast = frame(2, 60);
    broadcast[..6].copy_from_slice(&Mac::BROADCAST.0);
    let sent = [foreign, broadcast, frame(3, 60)];
    send_all(&mut *tx, &sent);
    assert_eq!(receive(&mut *all, 3), sent);
    assert_eq!(receive(&mut *ours, 2), sent[1..]);
    assert_eq!(ours.fill(), Ok(0));
}

#[test]
fn ring_leaves_other_machines_frames_alone() {
    in_world(User::Same, || other_macs(Backend::Packet));
}

#[test]
fn mmsg_leaves_other_machines_frames_alone() {
    in_world(User::Same, || other_macs(Backend::Mmsg));
}

/// Waits until `fill` says `expected`; the kernel may need several calls to say all.
pub fn until(rx: &mut dyn Rx, expected: Result<usize, NicError>) {
    for _ in 0..100 {
        if rx.fill() == expected {
            rx.release();
            return;
        }
        rx.release();
    }
    panic!("never said {expected:?}");
}

fn down_and_up(backend: Backend, workers: usize) {
    let (client, director) = two_spaces();
    let mut wanted = options("d0");
    wanted.workers = workers;
    let (_, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
    let (mut rx, mut back) = director.enter(|| open(backend, &wanted).unwrap());
    // The fill that meets the error must be made where the interface is.
    director.come_in();
    let one = [frame(1, 100)];
    send_all(&mut *tx, &one);
    assert_eq!(receive(&mut *rx, 1), one);
    for _ in 0..3 {
        link_down("d0");
        until(&mut *rx, Err(NicError::Down));
        assert_eq!(send_all(&mut *back, &one).refused, 1);
        link_up("d0");
        until(&mut *rx, Ok(0));
        assert_eq!(send_all(&mut *tx, &one).taken, 1);
        assert_eq!(receive(&mut *rx, 1), one);
        assert_eq!(send_all(&mut *back, &one).taken, 1);
    }
    link_delete("d0");
    until(&mut *rx, Err(NicError::Gone));
    assert_eq!(send_all(&mut *back, &one).refused, 1);
    assert_eq!(rx.fill(), Err(NicError::Gone));
    veth(&client, "c0", &director, "d0");
    until(&mut *rx, Ok(0));
    client.enter(|| {
        // The old sending half finds the new interface by its name, too.
        assert_eq!(send_all(&mut *tx, &one).taken, 1);
    });
    assert_eq!(receive(&mut *rx, 1), one);
    assert_eq!(send_all(&mut *back, &one).taken, 1);
    assert_eq!(rx.counters().received, 5);
}

#[test]
fn ring_lives_through_down_and_gone() {
    in_world(User::Same, || down_and_up(Backend::Packet, 1));
}

#[test]
fn mmsg_lives_through_down_and_gone() {
    in_world(User::Same, || down_and_up(Backend::Mmsg, 1));
}

#[test]
fn ring_in_a_group_lives_through_down_and_gone() {
    in_world(User::Same, || down_and_up(Backend::Packet, 2));
}

#[test]
fn mmsg_in_a_group_lives_through_down_and_gone() {
    in_world(User::Same, || down_and_up(Backend::Mmsg, 2));
}

#[test]
fn errors_say_what_to_try() {
    in_world(User::Same, || {
        let (_client, director) = two_spaces();
        director.come_in();
        for &backend in PACKET_BACKENDS {
            let error = open(backend, &options("eth7")).err().unwrap().to_string();
            assert_eq!(error, "there is no interface `eth7`; there are: lo, d0");
            link_down("d0");
            let mut two = options("d0");
            two.workers = 2;
            if let Err(error) = open(backend, &two) {
                assert!(error.to_string().contains("ip link set d0 up"), "{error}");
            }
            link_up("d0");
        }
        let mut bad = options("d0");
        bad.batch_frames_max = 65;
        let error = open(Backend::Mmsg, &bad).err().unwrap().to_string();
        assert_eq!(error, "batch_frames_max is 65, which is not 1 to 64");
    });
}
