//! What a real server of LVS-TUN needs where the kernel has no ipip, no gre and no fou: takes wrapped
//! packets from raw sockets, unwraps them, and gives what is inside to the kernel by a TUN device.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};

use tokio::net::UdpSocket;

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
    let mut buffers = [(); 3].map(|()| vec![0; PACKET_BYTES_MAX]);
    let [one, two, three] = &mut buffers;
    loop {
        let (received, buffer) = tokio::select! {
            received = ipip.recv(one) => (received, &*one),
            received = gre.recv(two) => (received, &*two),
            received = gue.recv(three) => (received, &*three),
        };
        let Ok(count) = received else { continue };
        if let Some(inner) = inner_of(&buffer[..count]) {
            let view = FrameView {
                bytes: inner,
                offload: Offload::default(),
                raw_ip: true,
            };
            tx.send(&mut std::iter::once(view));
        }
    }
}

/// The packet inside, unless it is a datagram for somebody else.
fn inner_of(packet: &[u8]) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 15) * 4;
    let is_udp = i32::from(*packet.get(9)?) == libc::IPPROTO_UDP;
    let port = packet.get(header + 2..header + 4)?;
    if is_udp && port != GUE_PORT.to_be_bytes() {
        return None;
    }
    encap::unwrap(packet)
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
    UdpSocket::from_std(std::net::UdpSocket::from(socket))
}
