//! TUN devices: what the kernel routes into them comes out, and the other way round.

use std::net::{Ipv4Addr, UdpSocket};

use super::frame_tests::{await_frames, receive};
use super::stream_tests::*;
use super::world_tests::*;
use crate::nic::{Backend, Halves, OpenErrorKind, OpenOptions, Side, open};
use crate::wire::NicError;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

/// A device in `space`, up, with an address.
fn device(
    space: &Space,
    name: &str,
    address: Ipv4Addr,
    plain: bool,
    workers: usize,
) -> Vec<Halves> {
    let mut options = OpenOptions::new(name, Side::Public);
    options.plain_tun = plain;
    options.workers = workers;
    space.enter(|| {
        let open = |worker| {
            options.worker = worker;
            match open(Backend::Tun, &options) {
                Err(error) if error.kind != OpenErrorKind::BadOption => skip(&error.to_string()),
                opened => opened.unwrap(),
            }
        };
        let halves = (0..workers).map(open).collect();
        add_address(name, address, 24);
        link_up(name);
        halves
    })
}

fn tcp_through(plain: bool) -> u64 {
    let (client, server) = (Space::new(), Space::new());
    let left = device(&client, "tun0", CLIENT, plain, 1).remove(0);
    let right = device(&server, "tun0", SERVER, plain, 1).remove(0);
    tcp_between(&client, &server, left, right)
}

#[test]
fn tun_carries_tcp_in_super_frames() {
    in_world(User::Same, || assert!(tcp_through(false) > 100));
}

#[test]
fn a_plain_tun_carries_tcp_in_small_packets() {
    in_world(User::Same, || assert_eq!(tcp_through(true), 0));
}

/// Where checksums are left to the device on one side and the other side has none.
#[test]
fn a_plain_tun_finishes_checksums() {
    in_world(User::Same, || {
        let (client, server) = (Space::new(), Space::new());
        let mut left = device(&client, "tun0", CLIENT, false, 1).remove(0);
        let mut right = device(&server, "tun0", SERVER, true, 1).remove(0);
        let receiver = server.enter(|| UdpSocket::bind((SERVER, 9)).unwrap());
        let sender = client.enter(|| UdpSocket::bind((CLIENT, 9)).unwrap());
        for len in [0, 1, 100, 1400] {
            let words = vec![7; len];
            sender.send_to(&words, (SERVER, 9)).unwrap();
            while left.0.fill() == Ok(0) {
                await_frames(&mut *left.0);
            }
            let view = left.0.view(0);
            assert!(view.raw_ip && view.offload.is_partial());
            assert_eq!(right.1.send(&mut std::iter::once(view)).taken, 1);
            left.0.release();
            let mut got = [0; 2000];
            assert_eq!(receiver.recv(&mut got).unwrap(), len);
        }
    });
}

#[test]
fn several_queues_share_a_device() {
    in_world(User::Same, || {
        let client = Space::new();
        let mut queues = device(&client, "tun0", CLIENT, false, 2);
        let socket = client.enter(|| UdpSocket::bind((CLIENT, 0)).unwrap());
        for port in 1000..1020 {
            socket.send_to(b"hello", (SERVER, port)).unwrap();
        }
        let mut came = 0;
        for (rx, _) in &mut queues {
            came += rx.fill().unwrap();
            rx.release();
        }
        assert_eq!(came, 20);
        let first = queues.remove(0);
        drop(first);
        socket.send_to(b"hello", (SERVER, 1000)).unwrap();
        assert_eq!(receive(&mut *queues[0].0, 1)[0].len(), 20 + 8 + 5);
    });
}

fn down_and_gone(plain: bool) {
    let client = Space::new();
    let (mut rx, mut tx) = device(&client, "tun0", CLIENT, plain, 1).remove(0);
    let packet = |tx: &mut dyn crate::wire::Tx| {
        let mut bytes = [0; 20];
        bytes[0] = 0x45;
        let view = crate::wire::FrameView {
            bytes: &bytes,
            offload: crate::wire::Offload::default(),
            raw_ip: true,
        };
        tx.send(&mut std::iter::once(view)).taken
    };
    assert_eq!(packet(&mut *tx), 1);
    client.enter(|| link_down("tun0"));
    assert_eq!(packet(&mut *tx), 0);
    assert_eq!(rx.fill(), Ok(0));
    client.enter(|| link_up("tun0"));
    assert_eq!(packet(&mut *tx), 1);
    client.enter(|| link_delete("tun0"));
    assert_eq!(packet(&mut *tx), 0);
    assert_eq!(rx.fill(), Err(NicError::Gone));
    assert_eq!(rx.fill(), Err(NicError::Gone));
    let fd = rx.wait_fd().unwrap();
    let waited = crate::nic::wait(&[fd], Some(crate::time::Duration::from_millis(1)));
    assert!(
        !waited.unwrap(),
        "a device that is gone must not end every wait"
    );
    assert_eq!(packet(&mut *tx), 0);
}

#[test]
fn tun_lives_through_down_and_gone() {
    in_world(User::Same, || down_and_gone(false));
}

#[test]
fn a_plain_tun_lives_through_down_and_gone() {
    in_world(User::Same, || down_and_gone(true));
}

#[test]
fn errors_say_what_to_try() {
    in_world(User::Same, || {
        let client = Space::new();
        let _held = device(&client, "tun0", CLIENT, false, 1);
        client.come_in();
        let say = |options: &OpenOptions| {
            open(Backend::Tun, options)
                .err()
                .expect("an error")
                .to_string()
        };
        let mut options = OpenOptions::new("tun0", Side::Public);
        assert!(
            say(&options).contains("choose another name"),
            "{}",
            say(&options)
        );
        options.interface = "lo".into();
        assert!(
            say(&options).contains("choose another name"),
            "{}",
            say(&options)
        );
        options.interface = "a-name-that-is-too-long".into();
        assert!(
            say(&options).contains("1 to 15 characters"),
            "{}",
            say(&options)
        );
        options.interface = String::new();
        assert!(
            say(&options).contains("1 to 15 characters"),
            "{}",
            say(&options)
        );
        options.plain_tun = true;
        assert!(say(&options).contains("1 to 15 characters"));
        options.interface = "tun1".into();
        options.workers = 2;
        assert!(say(&options).contains("one queue"), "{}", say(&options));
    });
}
