//! What a real server of LVS-TUN needs where the kernel has no ipip, no gre and no fou: takes wrapped
//! packets from raw sockets, unwraps them, and gives what is inside to the kernel by a TUN device.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::net::UdpSocket;

use super::gather::Gather;
use super::link::Network;
use super::netns::Inside;
use crate::nic::{self, Backend, OpenOptions, Side};
use crate::wire::{FrameView, Offload, Tx, encap};

/// The device's name.
const DEVICE: &str = "decap0";
/// The port that GUE comes to (RFC draft-ietf-intarea-gue names 6080).
pub const GUE_PORT: u16 = 6080;
/// Protocol numbers of IP in IP and GRE.
const PROTOCOLS: [i32; 3] = [libc::IPPROTO_IPIP, libc::IPPROTO_GRE, libc::IPPROTO_UDP];
/// Packets that are taken from a socket before the next has its turn.
const PACKETS_AT_ONCE_MAX: usize = 256;
/// Bytes that may wait in a socket; the kernel counts more for a packet than it is long.
const WAITING_BYTES_MAX: libc::c_int = 32 << 20;
/// The longest packet.
const PACKET_BYTES_MAX: usize = 65_536;

/// Begins to unwrap, until the runtime ends.
///
/// # Errors
/// When there can be no TUN device or no raw socket.
pub async fn start(inside: &Inside) -> io::Result<()> {
    let options = OpenOptions::new(DEVICE, Side::Private);
    let opened = nic::open(Backend::Tun, &options);
    let (rx, tx) = opened.map_err(|error| io::Error::other(error.to_string()))?;
    Network::open(inside)?.take_up(DEVICE).await?;
    let mut sockets = Vec::new();
    for protocol in PROTOCOLS {
        sockets.push(raw_socket(inside, protocol)?);
    }
    // Somebody must listen on the port, or the kernel complains about every packet.
    let listener = UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, GUE_PORT))).await?;
    tokio::spawn(async move {
        // The device is there as long as its halves are.
        let _kept = (rx, listener);
        unwrap_all(&sockets, tx).await;
    });
    Ok(())
}

async fn unwrap_all(sockets: &[UdpSocket], mut tx: Box<dyn Tx>) {
    let [ipip, gre, gue] = sockets else { return };
    let (mut buffer, mut gather) = (vec![0; PACKET_BYTES_MAX], Gather::default());
    let mut send = |bytes: &[u8], offload: Offload| {
        let view = FrameView {
            bytes,
            offload,
            raw_ip: true,
        };
        tx.send(&mut std::iter::once(view));
    };
    loop {
        let ready = tokio::select! {
            ready = ipip.readable() => ready.map(|()| ipip),
            ready = gre.readable() => ready.map(|()| gre),
            ready = gue.readable() => ready.map(|()| gue),
        };
        let Ok(socket) = ready else { continue };
        for _ in 0..PACKETS_AT_ONCE_MAX {
            let Ok(count) = socket.try_recv(&mut buffer) else {
                break;
            };
            if let Some(inner) = inner_of(&mut buffer[..count]) {
                gather.push(inner, &mut send);
            }
        }
        gather.flush(&mut send);
        // Others on this host want their turn.
        tokio::task::yield_now().await;
    }
}

/// The packet inside, unless it is a datagram for somebody else.
fn inner_of(packet: &mut [u8]) -> Option<&mut [u8]> {
    let header = usize::from(packet.first()? & 15) * 4;
    let is_udp = i32::from(*packet.get(9)?) == libc::IPPROTO_UDP;
    let port = packet.get(header + 2..header + 4)?;
    if is_udp && port != GUE_PORT.to_be_bytes() {
        return None;
    }
    let inner = encap::unwrap(packet)?;
    let start = inner.as_ptr().addr() - packet.as_ptr().addr();
    let end = start + inner.len();
    Some(&mut packet[start..end])
}

fn raw_socket(_: &Inside, protocol: i32) -> io::Result<UdpSocket> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers only, and gives back a descriptor that nobody else owns.
    let socket = unsafe {
        match libc::socket(libc::AF_INET, kind, protocol) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    for option in [libc::SO_RCVBUF, libc::SO_RCVBUFFORCE] {
        // A kernel that gives less loses packets sooner, and TCP is slower for it.
        // SAFETY: setsockopt reads one int through the pointer.
        unsafe {
            let value: *const libc::c_int = &WAITING_BYTES_MAX;
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                value.cast(),
                len,
            );
        }
    }
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}
