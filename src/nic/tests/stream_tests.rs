//! A real TCP connection between two namespaces, through two interfaces patched together by hand.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};

use super::world_tests::*;
use crate::nic::{EventFd, Halves, Waiter};
use crate::rng::Rng;

/// Where the server is; the client is 10.0.0.1.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const BYTES: usize = 32 << 20;
const BLOCK_LEN: usize = 1 << 16;

/// Sends bytes from `client` to `server` by way of `left` and `right`, and compares them. Says how
/// many super-frames went by.
pub fn tcp_between(client: &Space, server: &Space, left: Halves, right: Halves) -> u64 {
    let bell = EventFd::new().unwrap();
    let address = SocketAddrV4::new(SERVER, 80);
    let listener = server.enter(|| TcpListener::bind(address).unwrap());
    std::thread::scope(|scope| {
        let patch = scope.spawn(|| patch(left, right, &bell));
        let sending = scope.spawn(|| {
            client.come_in();
            let mut stream = TcpStream::connect(address).unwrap();
            let mut rng = Rng::new(1);
            let mut block = vec![0; BLOCK_LEN];
            for _ in 0..BYTES / BLOCK_LEN {
                block.fill_with(|| rng.next_u64() as u8);
                stream.write_all(&block).unwrap();
            }
        });
        let (mut stream, _) = listener.accept().unwrap();
        let mut rng = Rng::new(1);
        let mut block = vec![0; BLOCK_LEN];
        for _ in 0..BYTES / BLOCK_LEN {
            stream.read_exact(&mut block).unwrap();
            assert!(block.iter().all(|byte| *byte == rng.next_u64() as u8));
        }
        assert_eq!(stream.read(&mut block).unwrap(), 0);
        sending.join().unwrap();
        bell.wake();
        patch.join().unwrap()
    })
}

/// Hands frames from each side to the other until the bell rings; says how many super-frames went.
fn patch(mut left: Halves, mut right: Halves, bell: &EventFd) -> u64 {
    let fds = [
        left.0.wait_fd().unwrap(),
        right.0.wait_fd().unwrap(),
        bell.fd(),
    ];
    let mut waiter = Waiter::new(fds);
    let mut super_frames = 0;
    loop {
        let mut moved = 0;
        for (rx, tx) in [(&mut left.0, &mut right.1), (&mut right.0, &mut left.1)] {
            let came = rx.fill().unwrap();
            let views = (0..came).map(|index| rx.view(index));
            super_frames += views.clone().filter(|view| view.offload.is_gso()).count() as u64;
            let sent = tx.send(&mut views.into_iter());
            assert_eq!(sent.taken + sent.refused, came);
            rx.release();
            moved += came;
        }
        if moved == 0 {
            if bell.drain() {
                break;
            }
            waiter.wait(None).unwrap();
        }
    }
    for rx in [&mut left.0, &mut right.0] {
        let counters = rx.counters();
        assert_eq!(counters.truncated, 0, "{counters:?}");
    }
    super_frames
}
