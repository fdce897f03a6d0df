//! What a real server of LVS-TUN needs where the kernel has no ipip, no gre and no fou: takes wrapped
//! packets from raw sockets, and from a UDP socket for GUE, unwraps them, and gives what is inside to the
//! kernel by a TUN device. On a thread of its own, many packets at a time.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::gather::Gather;
use super::link::Network;
use super::netns::Inside;
use crate::nic::{self, Backend, OpenOptions, Side, Waiter};
use crate::wire::{FrameView, Offload, Rx, Tx, encap, gue};

/// The device's name.
const DEVICE: &str = "decap0";
/// The port that GUE comes to (RFC draft-ietf-intarea-gue names 6080).
pub const GUE_PORT: u16 = 6080;
/// Arrivals that are taken from a socket at once.
const ARRIVALS_MAX: usize = 32;
/// How often a socket is asked again before the others have their turn.
const TURNS_MAX: usize = 8;
/// Bytes that may wait in a socket; the kernel counts more for a packet than it is long.
const WAITING_BYTES_MAX: libc::c_int = 32 << 20;
/// While so much comes between two looks, nobody wakes this thread for each packet, which would cost the
/// sender more than the packet: it looks again after a pause, as a network card holds back its interrupts.
const BUSY_BYTES: usize = 16 << 10;
const PAUSE: Duration = Duration::from_micros(50);
/// The longest packet.
const PACKET_BYTES_MAX: usize = 65_536;
/// Room for what the kernel says beside an arrival, in words of eight bytes.
const CONTROL_WORDS: usize = 8;

/// Begins to unwrap, until the process ends.
///
/// # Errors
/// When there can be no TUN device, no socket or no thread.
pub async fn start(inside: &Inside) -> io::Result<()> {
    let options = OpenOptions::new(DEVICE, Side::Private);
    let opened = nic::open(Backend::Tun, &options);
    let (rx, tx) = opened.map_err(|error| io::Error::other(error.to_string()))?;
    Network::open(inside)?.take_up(DEVICE).await?;
    let unwrapper = Unwrapper {
        raw: [
            raw_socket(inside, libc::IPPROTO_IPIP)?,
            raw_socket(inside, libc::IPPROTO_GRE)?,
        ],
        gue: gue_socket(inside)?,
        inbox: Inbox::new(),
        gather: Gather::default(),
        tx,
        _device: rx,
    };
    // It is in the namespaces of the thread that starts it.
    let thread = std::thread::Builder::new().name("decap".to_string());
    thread.spawn(move || unwrapper.run()).map(drop)
}

/// Everything that unwraps.
struct Unwrapper {
    /// IP in IP and GRE.
    raw: [OwnedFd; 2],
    gue: UdpSocket,
    inbox: Inbox,
    gather: Gather,
    tx: Box<dyn Tx>,
    /// The device is there as long as its halves are.
    _device: Box<dyn Rx>,
}

impl Unwrapper {
    fn run(mut self) {
        let [ipip, gre] = &self.raw;
        let fds = [ipip.as_raw_fd(), gre.as_raw_fd(), self.gue.as_raw_fd()];
        let mut waiter = Waiter::new(fds);
        // It fails when the kernel has no memory: then the lab is lost anyhow.
        while waiter.wait(None).is_ok() {
            while self.empty_all(fds) >= BUSY_BYTES {
                pause();
            }
        }
    }

    /// Unwraps what waits; says how many bytes that were.
    fn empty_all(&mut self, fds: [i32; 3]) -> usize {
        let mut bytes = 0;
        for (index, fd) in fds.into_iter().enumerate() {
            let unwrap = if index < self.raw.len() {
                unwrap_packet
            } else {
                unwrap_datagram
            };
            bytes += self.empty(fd, unwrap);
        }
        bytes
    }

    /// Unwraps what waits in a socket; says how many bytes that were.
    fn empty(&mut self, fd: i32, unwrap: fn(&mut [u8]) -> Option<&mut [u8]>) -> usize {
        let mut taken = 0;
        let Unwrapper {
            inbox, gather, tx, ..
        } = self;
        let mut send = |bytes: &[u8], offload: Offload| {
            let view = FrameView {
                bytes,
                offload,
                raw_ip: true,
            };
            tx.send(&mut std::iter::once(view));
        };
        for _ in 0..TURNS_MAX {
            let count = inbox.receive(fd);
            for index in 0..count {
                let (bytes, each) = inbox.arrival(index);
                taken += bytes.len();
                for packet in bytes.chunks_mut(each) {
                    if let Some(inner) = unwrap(packet) {
                        gather.push(inner, &mut send);
                    }
                }
            }
            if count < ARRIVALS_MAX {
                break;
            }
        }
        gather.flush(&mut send);
        taken
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "not to be woken is what it is for"
)]
fn pause() {
    std::thread::sleep(PAUSE);
}

/// The packet in IP or GRE.
fn unwrap_packet(packet: &mut [u8]) -> Option<&mut [u8]> {
    let inner = encap::unwrap(packet)?;
    let start = inner.as_ptr().addr() - packet.as_ptr().addr();
    let end = start + inner.len();
    Some(&mut packet[start..end])
}

/// The packet in GUE; the kernel has taken UDP off.
fn unwrap_datagram(datagram: &mut [u8]) -> Option<&mut [u8]> {
    let start = datagram.len() - gue::inner(datagram)?.len();
    Some(&mut datagram[start..])
}

/// Where arrivals are put: packets, or datagrams of one length that came behind each other and that the
/// kernel hands over together (`UDP_GRO`, udp(7)).
struct Inbox {
    buffers: Vec<u8>,
    /// Bytes of each, and of each datagram in it but the last.
    arrivals: [(usize, usize); ARRIVALS_MAX],
}

impl Inbox {
    fn new() -> Inbox {
        Inbox {
            buffers: vec![0; ARRIVALS_MAX * PACKET_BYTES_MAX],
            arrivals: [(0, 0); ARRIVALS_MAX],
        }
    }

    /// Takes what waits in a socket; says how many arrivals. None also where it failed.
    fn receive(&mut self, fd: i32) -> usize {
        let mut controls = [[0u64; CONTROL_WORDS]; ARRIVALS_MAX];
        let mut parts = [const { EMPTY_PART }; ARRIVALS_MAX];
        // SAFETY: all zeroes is a valid mmsghdr: null pointers with zero lengths.
        let mut messages: [libc::mmsghdr; ARRIVALS_MAX] = unsafe { std::mem::zeroed() };
        let buffers = self.buffers.chunks_exact_mut(PACKET_BYTES_MAX);
        let all = messages.iter_mut().zip(&mut parts).zip(&mut controls);
        for (((message, part), control), buffer) in all.zip(buffers) {
            (part.iov_base, part.iov_len) = (buffer.as_mut_ptr().cast(), buffer.len());
            let header = &mut message.msg_hdr;
            (header.msg_iov, header.msg_iovlen) = (part, 1);
            header.msg_control = control.as_mut_ptr().cast();
            header.msg_controllen = size_of_val(control);
        }
        let count = ARRIVALS_MAX as libc::c_uint;
        let (flags, forever) = (libc::MSG_DONTWAIT, std::ptr::null_mut());
        // SAFETY: `count` messages, each with one part inside `buffers` and a control buffer; all live
        // through the call, and nobody else looks at them.
        let came = unsafe { libc::recvmmsg(fd, messages.as_mut_ptr(), count, flags, forever) };
        let came = usize::try_from(came).unwrap_or(0);
        for (arrival, message) in self.arrivals.iter_mut().zip(&messages[..came]) {
            let len = message.msg_len as usize;
            let each = datagram_len(&message.msg_hdr).unwrap_or(len);
            *arrival = (len, each.max(1));
        }
        came
    }

    /// The bytes of an arrival, and how many of them are a packet.
    fn arrival(&mut self, index: usize) -> (&mut [u8], usize) {
        let (len, each) = self.arrivals[index];
        (&mut self.buffers[index * PACKET_BYTES_MAX..][..len], each)
    }
}

const EMPTY_PART: libc::iovec = libc::iovec {
    iov_base: std::ptr::null_mut(),
    iov_len: 0,
};

/// What the kernel says of datagrams that it handed over together.
fn datagram_len(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the control buffer of `message` is alive and holds what recvmmsg wrote; the CMSG macros stay
    // inside `msg_controllen`; the data is a plain int and is read unaligned.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(message);
        while let Some(header) = control.as_ref() {
            if (header.cmsg_level, header.cmsg_type) == (libc::SOL_UDP, libc::UDP_GRO) {
                let data = libc::CMSG_DATA(control).cast::<libc::c_int>();
                return usize::try_from(data.read_unaligned()).ok();
            }
            control = libc::CMSG_NXTHDR(message, control);
        }
    }
    None
}

/// Where GUE comes to: datagrams that belong together are taken together.
fn gue_socket(_: &Inside) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, GUE_PORT)))?;
    // A kernel before 5.0 gives them one by one.
    set(&socket, libc::SOL_UDP, libc::UDP_GRO, 1);
    make_room(&socket);
    Ok(socket)
}

fn raw_socket(_: &Inside, protocol: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes numbers only, and gives back a descriptor that nobody else owns.
    let socket = unsafe {
        match libc::socket(libc::AF_INET, kind, protocol) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    make_room(&socket);
    Ok(socket)
}

/// A kernel that gives less loses packets sooner, and TCP is slower for it.
fn make_room(socket: &impl AsRawFd) {
    for option in [libc::SO_RCVBUF, libc::SO_RCVBUFFORCE] {
        set(socket, libc::SOL_SOCKET, option, WAITING_BYTES_MAX);
    }
}

/// Sets an option that a kernel may refuse.
fn set(socket: &impl AsRawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) {
    let len = size_of::<libc::c_int>() as libc::socklen_t;
    let value: *const libc::c_int = &value;
    // SAFETY: setsockopt reads one int through the pointer.
    unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), len);
    }
}
