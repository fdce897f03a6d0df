//! The way to programs of this machine: a TAP device, whose other end holds what it is told to.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use super::frame_tests::await_frames;
use super::world_tests::*;
use crate::nic::{
    Backend, Halves, KernelHoldings, KernelSource, LOCAL_DEVICE, LocalLink, OpenErrorKind,
    OpenOptions, Side, interfaces, open,
};
use crate::wire::checksum::Sum;
use crate::wire::{FrameView, Mac, Offload};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);
const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x100);
const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 16, 3, 9);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd01, 0, 0, 0, 0, 0, 0, 9);

fn open_device() -> Halves {
    let options = OpenOptions {
        ethernet: true,
        ..OpenOptions::new(LOCAL_DEVICE, Side::Private)
    };
    match open(Backend::Tun, &options) {
        Err(error) if error.kind != OpenErrorKind::BadOption => skip(&error.to_string()),
        opened => opened.unwrap(),
    }
}

fn holding(addresses: &[IpAddr], port: Option<(u8, u16)>) -> KernelHoldings {
    let sources = addresses.iter().map(|address| KernelSource {
        address: *address,
        port,
    });
    KernelHoldings {
        addresses: addresses.iter().copied().collect(),
        sources: sources.collect(),
    }
}

/// A datagram to the port 9 of `to`, as the director hands it over.
fn datagram(from: IpAddr, to: IpAddr) -> Vec<u8> {
    const WORDS: &[u8] = b"hello!";
    let len = (8 + WORDS.len()) as u16;
    let ports = [4000u16.to_be_bytes(), 9u16.to_be_bytes(), len.to_be_bytes()].concat();
    let ends = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => [from.octets(), to.octets()].concat(),
        (IpAddr::V6(from), IpAddr::V6(to)) => [from.octets(), to.octets()].concat(),
        _ => unreachable!(),
    };
    let pseudo = [&ends[..], &[0, 17], &len.to_be_bytes(), &ports, WORDS].concat();
    let sum = Sum::of(&pseudo).checksum().to_be_bytes();
    let mut ip = match from {
        IpAddr::V4(_) => vec![0x45, 0, 0, 20 + len as u8, 0, 0, 0, 0, 64, 17, 0, 0],
        IpAddr::V6(_) => vec![0x60, 0, 0, 0, 0, len as u8, 17, 64],
    };
    ip.extend(&ends);
    if from.is_ipv4() {
        let sum = Sum::of(&ip).checksum().to_be_bytes();
        ip[10..12].copy_from_slice(&sum);
    }
    let kind = if from.is_ipv4() { [8, 0] } else { [0x86, 0xdd] };
    let mac = link_mac(LOCAL_DEVICE).0;
    [&mac[..], &mac, &kind, &ip, &ports, &sum, WORDS].concat()
}

/// The MAC address that the kernel gave a device.
fn link_mac(name: &str) -> Mac {
    let all = crate::nic::all_interfaces();
    let found = all.iter().find(|interface| interface.name == name);
    found.expect("the device is there").mac
}

fn give(halves: &mut Halves, frame: &[u8]) {
    let view = FrameView {
        bytes: frame,
        offload: Offload::default(),
        raw_ip: false,
    };
    assert_eq!(halves.1.send(&mut std::iter::once(view)).taken, 1);
}

/// What a program hears when somebody says something again and again: an IPv6 address is there a moment
/// after it was added.
fn hear(program: &UdpSocket, buffer: &mut [u8], mut say: impl FnMut()) -> (usize, SocketAddr) {
    let patience = Duration::from_millis(100);
    program.set_read_timeout(Some(patience)).unwrap();
    for _ in 0..100 {
        say();
        if let Ok(heard) = program.recv_from(buffer) {
            return heard;
        }
    }
    panic!("nobody hears anything");
}

/// What comes out of the device from this program; the kernel may have a word about itself before.
fn take(halves: &mut Halves, words: &[u8]) -> Vec<u8> {
    loop {
        while halves.0.fill() == Ok(0) {
            await_frames(&mut *halves.0);
        }
        let view = halves.0.view(0);
        assert!(!view.raw_ip);
        let bytes = view.bytes.to_vec();
        halves.0.release();
        if bytes.ends_with(words) {
            return bytes;
        }
    }
}

#[test]
fn programs_get_what_is_handed_over_and_their_answers_come_back() {
    in_world(User::Same, || {
        Space::new().enter(|| {
            let mut halves = open_device();
            let mut link = LocalLink::set_up().unwrap();
            for (vip, client) in [
                (IpAddr::from(VIP), IpAddr::from(CLIENT)),
                (VIP6.into(), CLIENT6.into()),
            ] {
                link.update(&holding(&[vip], Some((17, 9)))).unwrap();
                // Nobody else sees what is held there.
                assert!(!interfaces().iter().any(|held| held.name == LOCAL_DEVICE));
                let program = UdpSocket::bind((vip, 9)).unwrap();
                let mut buffer = [0; 100];
                let (len, asked) = hear(&program, &mut buffer, || {
                    give(&mut halves, &datagram(client, vip));
                });
                assert_eq!(
                    (&buffer[..len], asked),
                    (&b"hello!"[..], SocketAddr::new(client, 4000))
                );
                program.send_to(b"and you", asked).unwrap();
                let answer = take(&mut halves, b"and you");
                let mac = link_mac(LOCAL_DEVICE).0;
                assert_eq!(answer[..12], [mac, mac].concat());
                // Another port of the address is none of ours.
                let other = UdpSocket::bind((vip, 10)).unwrap();
                assert!(other.send_to(b"elsewhere", asked).is_err());
            }
        });
    });
}

/// Carries what came out of one device into another.
fn carry(from: &mut Halves, to: &mut Halves, mac: Mac) {
    for index in 0..from.0.fill().unwrap() {
        let view = from.0.view(index);
        let mut bytes = view.bytes.to_vec();
        bytes[..6].copy_from_slice(&mac.0);
        let view = FrameView {
            bytes: &bytes,
            ..view
        };
        to.1.send(&mut std::iter::once(view));
    }
    from.0.release();
}

#[test]
fn tcp_serves_from_an_address_that_is_all_ours() {
    in_world(User::Same, || {
        let (client, server) = (Space::new(), Space::new());
        let mut left = client.enter(|| {
            let options = OpenOptions {
                ethernet: true,
                ..OpenOptions::new("tap0", Side::Public)
            };
            let halves = open(Backend::Tun, &options).unwrap();
            add_address("tap0", Ipv4Addr::new(10, 0, 0, 1), 24);
            link_up("tap0");
            halves
        });
        let mut right = server.enter(open_device);
        let _link = server.enter(|| {
            let mut link = LocalLink::set_up().unwrap();
            link.update(&holding(&[VIP.into()], None)).unwrap();
            link
        });
        let macs = [
            client.enter(|| link_mac("tap0")),
            server.enter(|| link_mac(LOCAL_DEVICE)),
        ];
        client.enter(|| add_neighbour("tap0", VIP, macs[1]));
        let listener = server.enter(|| TcpListener::bind((VIP, 80)).unwrap());
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            stream.read_to_end(&mut got).unwrap();
            got.len()
        });
        let asking = client.enter(|| {
            std::thread::spawn(|| {
                let mut stream = std::net::TcpStream::connect((VIP, 80)).unwrap();
                stream.write_all(&vec![7; 1 << 20]).unwrap();
            })
        });
        while !serving.is_finished() {
            carry(&mut left, &mut right, macs[1]);
            carry(&mut right, &mut left, macs[0]);
            std::thread::yield_now();
        }
        asking.join().unwrap();
        assert_eq!(serving.join().unwrap(), 1 << 20);
    });
}

/// Rules outlive a director that is killed; the next one removes them. What one has no more use for goes.
#[test]
fn nothing_is_left_of_what_was_held() {
    in_world(User::Same, || {
        Space::new().enter(|| {
            killed(|| {
                let _halves = open_device();
                // Nobody drops it.
                let link = Box::leak(Box::new(LocalLink::set_up().unwrap()));
                let held = holding(&[VIP.into(), VIP6.into()], None);
                link.update(&held).unwrap();
            });
            assert_eq!(rules(), 2);
            let mut halves = open_device();
            let mut link = LocalLink::set_up().unwrap();
            assert_eq!(rules(), 0);
            let wanted = holding(&[VIP.into()], None);
            link.update(&wanted).unwrap();
            link.update(&wanted).unwrap();
            assert_eq!(rules(), 1);
            let program = UdpSocket::bind((VIP, 9)).unwrap();
            let (len, _) = hear(&program, &mut [0; 100], || {
                give(&mut halves, &datagram(CLIENT.into(), VIP.into()));
            });
            assert_eq!(len, 6);
            let none = KernelHoldings {
                addresses: BTreeSet::new(),
                sources: BTreeSet::new(),
            };
            link.update(&none).unwrap();
            assert_eq!(rules(), 0);
            assert!(UdpSocket::bind((VIP, 10)).is_err(), "the address is gone");
            link.update(&wanted).unwrap();
            drop(link);
            assert_eq!(rules(), 0);
        });
    });
}

/// How many rules of ours there are.
fn rules() -> usize {
    crate::nic::local_link::rules_in_force().unwrap()
}
