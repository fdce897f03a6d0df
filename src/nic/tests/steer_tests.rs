//! Steering: both directions of a connection come to the worker that `worker_for` names; what has no
//! ports comes to worker 0; nothing comes twice or not at all.

use std::net::IpAddr;

use super::frame_tests::*;
use super::world_tests::*;
use crate::nic::steer::worker_for;
use crate::nic::{Backend, Halves, OpenOptions, Side, open};
use crate::rng::Rng;

const WORKERS: usize = 4;
const TCP: u8 = 6;
const UDP: u8 = 17;
const SCTP: u8 = 132;
const ICMP: u8 = 1;

fn group(space: &Space, backend: Backend, name: &str, side: Side) -> Vec<Halves> {
    let mut options = OpenOptions::new(name, side);
    options.ring_slots = 1024;
    options.workers = WORKERS;
    options.foreign_macs = true;
    space.enter(|| {
        let open = |worker| {
            options.worker = worker;
            open(backend, &options).unwrap()
        };
        (0..WORKERS).map(open).collect()
    })
}

/// The IP header of a packet with 20 bytes behind it, and how it is to be sent.
fn packet(source: IpAddr, target: IpAddr, protocol: u8, ports: (u16, u16)) -> Vec<u8> {
    let mut bytes = frame(0, 12);
    match (source, target) {
        (IpAddr::V4(source), IpAddr::V4(target)) => {
            bytes.extend([0x08, 0x00, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0]);
            bytes.extend(source.octets());
            bytes.extend(target.octets());
        }
        (IpAddr::V6(source), IpAddr::V6(target)) => {
            bytes.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, protocol, 64]);
            bytes.extend(source.octets());
            bytes.extend(target.octets());
        }
        _ => unreachable!("one family"),
    }
    bytes.extend(ports.0.to_be_bytes());
    bytes.extend(ports.1.to_be_bytes());
    bytes.extend([0; 16]);
    bytes
}

/// Sends a frame and says which worker, and only which, got it.
fn landed(from: &mut Halves, group: &mut [Halves], bytes: Vec<u8>) -> usize {
    send_all(&mut *from.1, std::slice::from_ref(&bytes));
    let fds: Vec<i32> = group.iter().map(|half| half.0.wait_fd().unwrap()).collect();
    let patience = crate::time::Duration::from_secs(10);
    assert!(crate::nic::wait(&fds, Some(patience)).unwrap());
    let mut found = Vec::new();
    for (worker, (rx, _)) in group.iter_mut().enumerate() {
        if rx.fill().unwrap() > 0 {
            assert!(rx.view(0).bytes == bytes);
            found.push(worker);
        }
        rx.release();
    }
    assert_eq!(found.len(), 1, "the frame came to workers {found:?}");
    found[0]
}

fn steering(backend: Backend) {
    let (client, director) = two_spaces();
    let server = Space::new();
    veth(&director, "d1", &server, "s0");
    let mut outside = client.enter(|| open(backend, &options("c0")).unwrap());
    let mut inside = server.enter(|| open(backend, &options("s0")).unwrap());
    let mut public = group(&director, backend, "d0", Side::Public);
    let mut private = group(&director, backend, "d1", Side::Private);

    let mut rng = Rng::new(9);
    let mut spread = [0; WORKERS];
    for number in 0..300 {
        let protocol = [TCP, UDP, SCTP][number % 3];
        let port = rng.next_u64() as u16;
        let (cip, vip, rip): (IpAddr, IpAddr, IpAddr) = if number % 2 == 0 {
            let client = (rng.next_u64() as u32).to_be_bytes();
            (
                client.into(),
                [10, 0, 0, 100].into(),
                [192, 168, 1, 7].into(),
            )
        } else {
            let halves = [rng.next_u64(), rng.next_u64()];
            let client = (u128::from(halves[0]) << 64 | u128::from(halves[1])).to_be_bytes();
            (client.into(), [0xfd; 16].into(), [0xfe; 16].into())
        };
        let wanted = worker_for(cip, port, WORKERS);
        spread[wanted] += 1;
        let there = packet(cip, vip, protocol, (port, 80));
        assert_eq!(landed(&mut outside, &mut public, there), wanted);
        let back = packet(rip, cip, protocol, (8080, port));
        assert_eq!(landed(&mut inside, &mut private, back), wanted);
    }
    assert!(
        spread.iter().all(|count| *count > 300 / WORKERS / 2),
        "{spread:?}"
    );
    without_ports(&mut outside, &mut public);
}

fn without_ports(outside: &mut Halves, public: &mut [Halves]) {
    let cip: IpAddr = [10, 1, 2, 3].into();
    let vip: IpAddr = [10, 0, 0, 100].into();
    // A port that leads elsewhere, so that worker 0 is not met by chance.
    let port = (1000..).find(|port| worker_for(cip, *port, WORKERS) == 2);
    let ports = (port.unwrap(), 80);
    let whole = packet(cip, vip, TCP, ports);
    assert_eq!(landed(outside, public, whole.clone()), 2);
    // IP options move the ports.
    let mut optioned = whole.clone();
    optioned[14] = 0x46;
    optioned.splice(34..34, [1; 4]);
    assert_eq!(landed(outside, public, optioned), 2);
    // A VLAN tag does not.
    let mut tagged = whole.clone();
    tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
    assert_eq!(landed(outside, public, tagged), 2);

    for flags in [[0x20, 0], [0, 1], [0x20, 1]] {
        let mut fragment = whole.clone();
        fragment[20..22].copy_from_slice(&flags);
        assert_eq!(landed(outside, public, fragment), 0);
    }
    assert_eq!(landed(outside, public, packet(cip, vip, ICMP, ports)), 0);
    let (cip, vip) = (IpAddr::from([1; 16]), IpAddr::from([2; 16]));
    for extension in [0, 43, 44, 58, 60] {
        assert_eq!(
            landed(outside, public, packet(cip, vip, extension, ports)),
            0
        );
    }
    assert_eq!(landed(outside, public, frame(1, 60)), 0);
    // Ports promised, but the packet ends before them.
    assert_eq!(landed(outside, public, whole[..34].to_vec()), 0);
    assert_eq!(landed(outside, public, whole[..20].to_vec()), 0);
}

#[test]
fn both_directions_meet_one_worker_by_the_ring() {
    in_world(User::Same, || steering(Backend::Packet));
}

#[test]
fn both_directions_meet_one_worker_by_mmsg() {
    in_world(User::Same, || steering(Backend::Mmsg));
}

#[test]
fn steering_works_for_an_ordinary_user() {
    in_world(User::Nobody, || steering(Backend::Packet));
}

/// All workers lose their interface, and all find it again: the group must be left by each before
/// any can join the new one.
#[test]
fn a_whole_group_comes_back() {
    in_world(User::Same, || {
        let (client, director) = two_spaces();
        let mut public = group(&director, Backend::Packet, "d0", Side::Public);
        director.come_in();
        for round in 0..3 {
            link_delete("d0");
            for (rx, _) in &mut public {
                until(&mut **rx, Err(crate::wire::NicError::Gone));
            }
            veth(&client, "c0", &director, "d0");
            for (rx, _) in &mut public {
                until(&mut **rx, Ok(0));
            }
            let mut outside = client.enter(|| open(Backend::Packet, &options("c0")).unwrap());
            for port in 0..50 {
                let cip = IpAddr::from([10, 1, round, 3]);
                let bytes = packet(cip, [10, 0, 0, 100].into(), UDP, (port, 80));
                let wanted = worker_for(cip, port, WORKERS);
                assert_eq!(landed(&mut outside, &mut public, bytes), wanted);
            }
        }
    });
}

/// Frames that arrive while the workers open the interface one after the other.
fn opening_under_fire(backend: Backend) {
    let (client, director) = two_spaces();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let ordering = std::sync::atomic::Ordering::Relaxed;
    let fire = || {
        let (_, mut tx) = client.enter(|| open(backend, &options("c0")).unwrap());
        let mut number = 0u32;
        while !stop.load(ordering) {
            number += 1;
            let source = IpAddr::from((number * 7).to_be_bytes());
            let mut bytes = packet(source, [10, 0, 0, 100].into(), UDP, (1, 80));
            bytes[40..44].copy_from_slice(&number.to_be_bytes());
            send_all(&mut *tx, &[bytes]);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(fire);
        let _stop = StopAtEnd(&stop);
        for _ in 0..8 {
            let mut public = group(&director, backend, "d0", Side::Public);
            let mut seen = std::collections::BTreeSet::new();
            for _ in 0..20 {
                for (rx, _) in &mut public {
                    for index in 0..rx.fill().unwrap() {
                        let bytes = rx.view(index).bytes;
                        let number: [u8; 4] = bytes[40..44].try_into().unwrap();
                        assert!(seen.insert(number), "{number:?} came twice");
                    }
                    rx.release();
                }
            }
        }
    });
}

/// Stops the other thread also when this one panics.
struct StopAtEnd<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

#[test]
fn nothing_comes_twice_while_the_ring_opens() {
    in_world(User::Same, || opening_under_fire(Backend::Packet));
}

#[test]
fn nothing_comes_twice_while_mmsg_opens() {
    in_world(User::Same, || opening_under_fire(Backend::Mmsg));
}
