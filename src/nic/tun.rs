//! TUN: packets that the kernel routes into a device come to us, and what we write the kernel
//! receives from it. No Ethernet: frames begin with IP. With vnet headers, so super-frames and
//! unfinished checksums pass, and with a queue for each worker; or, where one plain queue is enough,
//! through the crate tun-tap. A TAP device is the same with Ethernet. The device is made by opening it and goes away with the last queue;
//! its addresses and routes are the daemon's business. See `Documentation/networking/tuntap.rst`.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::error::OpenErrorKind;
use super::packet_mmsg::{FRAME_LEN_MAX, HEAD_ROOM, view_of};
use super::packet_tx::TxCount;
use super::sys::{self, check, errno};
use super::{Halves, OpenError, OpenOptions, cut};
use crate::wire::checksum::Sum;
use crate::wire::nic::Sent;
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::{Frame, FrameMeta, FrameView, NicCounters, NicError, Offload, Rx, Tx};

const DEVICE: &str = "/dev/net/tun";

/// How often one `send` tries again when the device has no memory for the moment.
const SEND_RETRIES_MAX: u32 = 16;

/// A buffer: head room, the longest packet, the same room behind it.
const BUFFER_LEN: usize = HEAD_ROOM + FRAME_LEN_MAX.next_multiple_of(64) + HEAD_ROOM;

/// Opens a queue of the device `options.interface`, which comes into being with its first queue.
pub(super) fn open(options: &OpenOptions) -> Result<Halves, OpenError> {
    let name = &options.interface;
    let request = sys::request_for(name).filter(|_| !name.is_empty());
    let request = request.ok_or_else(|| {
        let doing = format!("`{name}` cannot be the name of an interface");
        let advice = "1 to 15 characters are allowed";
        OpenError::new(OpenErrorKind::BadOption, &doing, advice)
    })?;
    let queue = if options.plain_tun {
        Queue::plain(options)?
    } else {
        Queue::with_offloads(options, request)?
    };
    let (queue, sent) = (Arc::new(queue), Arc::new(TxCount::default()));
    let rx = TunRx {
        queue: Arc::clone(&queue),
        buffers: vec![0; options.batch_frames_max * BUFFER_LEN],
        frames: Vec::with_capacity(options.batch_frames_max),
        frames_max: options.batch_frames_max,
        raw_ip: !options.ethernet,
        gone: false,
        received: 0,
        sent: Arc::clone(&sent),
    };
    let tx = TunTx {
        queue,
        raw_ip: !options.ethernet,
        scratch: Vec::new(),
        sent,
    };
    Ok((Box::new(rx), Box::new(tx)))
}

/// A queue of a device.
#[derive(Debug)]
enum Queue {
    /// Each packet behind a vnet header.
    WithOffloads(File),
    /// Bare packets.
    Plain(tun_tap::Iface),
}

impl Queue {
    fn with_offloads(options: &OpenOptions, mut request: libc::ifreq) -> Result<Queue, OpenError> {
        let file = File::options()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|error| device_error(&error))?;
        let kind = match options.ethernet {
            true => libc::IFF_TAP,
            false => libc::IFF_TUN,
        };
        let mut flags = kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if options.workers > 1 {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        let fd = file.as_raw_fd();
        let header_len = VNET_HEADER_LEN as libc::c_int;
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        // SAFETY: TUNSETIFF reads and writes the request; TUNSETVNETHDRSZ reads an int;
        // TUNSETOFFLOAD takes a number. All live through the calls.
        unsafe {
            check(libc::ioctl(fd, libc::TUNSETIFF, &mut request))
                .map_err(|error| attach_error(options, &error))?;
            check(libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &header_len))
                .map_err(|error| attach_error(options, &error))?;
            // A kernel that knows fewer of them only gives shorter packets.
            let _ = check(libc::ioctl(
                fd,
                libc::TUNSETOFFLOAD,
                libc::c_ulong::from(offloads),
            ));
        }
        Ok(Queue::WithOffloads(file))
    }

    fn plain(options: &OpenOptions) -> Result<Queue, OpenError> {
        if options.workers > 1 {
            let doing = "a plain TUN device has one queue, so it serves one worker";
            let advice = "run one worker, or let the device have several queues";
            return Err(OpenError::new(OpenErrorKind::BadOption, doing, advice));
        }
        // Apart, so that a device file that is not there is told from a device that is not ours.
        File::options()
            .read(true)
            .write(true)
            .open(DEVICE)
            .map_err(|error| device_error(&error))?;
        let name = &options.interface;
        let device = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun)
            .map_err(|error| attach_error(options, &error))?;
        sys::set_nonblocking(&device).map_err(|error| attach_error(options, &error))?;
        Ok(Queue::Plain(device))
    }

    /// Reads a packet into `buffer`; says how long it is, and what its vnet header tells.
    fn read(&self, buffer: &mut [u8]) -> io::Result<(usize, Offload)> {
        match self {
            Queue::Plain(device) => device.recv(buffer).map(|len| (len, Offload::default())),
            Queue::WithOffloads(file) => {
                let mut header = [0; VNET_HEADER_LEN];
                let mut parts = [IoSliceMut::new(&mut header), IoSliceMut::new(buffer)];
                let len = (&*file).read_vectored(&mut parts)?;
                let len = len.saturating_sub(VNET_HEADER_LEN);
                Ok((len, Offload::decode(&header)))
            }
        }
    }

    /// Writes a packet. `scratch` is used where its checksum must be finished first.
    fn write(&self, view: &FrameView<'_>, scratch: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Queue::WithOffloads(file) => {
                let header = view.offload.encode();
                let parts = [IoSlice::new(&header), IoSlice::new(view.bytes)];
                (&*file).write_vectored(&parts).map(|_| ())
            }
            Queue::Plain(_) if view.offload.is_gso() => Err(io::ErrorKind::Unsupported.into()),
            Queue::Plain(device) if view.offload.is_partial() => {
                scratch.clear();
                scratch.extend_from_slice(view.bytes);
                finish_checksum(scratch, &view.offload);
                device.send(scratch).map(|_| ())
            }
            Queue::Plain(device) => device.send(view.bytes).map(|_| ()),
        }
    }

    /// The device is gone for good: puts in the descriptor's place one that never has anything,
    /// since the old one would end every wait at once.
    fn mute(&self) {
        let kind = libc::SOCK_DGRAM | libc::SOCK_NONBLOCK;
        if let Ok(mute) = sys::socket(libc::AF_UNIX, kind, 0) {
            // Its failure would leave a descriptor that is busy, not one that is wrong.
            let _ = sys::replace(self, mute);
        }
    }
}

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Queue::WithOffloads(file) => file.as_raw_fd(),
            Queue::Plain(device) => device.as_raw_fd(),
        }
    }
}

/// Finishes a checksum that holds only the sum over the pseudo-header (RFC 1071).
fn finish_checksum(packet: &mut [u8], offload: &Offload) {
    let start = offload.csum_start();
    let field = start + offload.csum_offset();
    if field + 2 > packet.len() {
        return;
    }
    // Zero would say "no checksum" in UDP; its other spelling means the same to TCP.
    let sum = match Sum::of(&packet[start..]).checksum() {
        0 => 0xffff,
        sum => sum,
    };
    packet[field..field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn device_error(error: &io::Error) -> OpenError {
    let doing = format!("cannot open {DEVICE}: {error}");
    match errno(error) {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => OpenError::new(
            OpenErrorKind::NotSupported,
            &doing,
            "load the driver (modprobe tun); in a container, hand the device in \
             (--device /dev/net/tun); or use another backend (--nic packet)",
        ),
        libc::EACCES | libc::EPERM => OpenError::new(
            OpenErrorKind::NotPermitted,
            &doing,
            "run as root, let users open it (chmod 666 /dev/net/tun), \
             or use another backend (--nic packet)",
        ),
        number => OpenError::new(OpenErrorKind::System(number), &doing, ""),
    }
}

fn attach_error(options: &OpenOptions, error: &io::Error) -> OpenError {
    let name = &options.interface;
    let doing = format!("cannot make the TUN device `{name}`: {error}");
    match errno(error) {
        libc::EPERM | libc::EACCES => OpenError::new(
            OpenErrorKind::NotPermitted,
            &doing,
            "run as root, give the program CAP_NET_ADMIN, or run it in a user namespace of its own",
        ),
        libc::EBUSY => OpenError::new(
            OpenErrorKind::System(libc::EBUSY),
            &doing,
            "another program has it open: choose another name",
        ),
        libc::EINVAL => OpenError::new(
            OpenErrorKind::System(libc::EINVAL),
            &doing,
            "an interface of this name exists and is of another kind: choose another name",
        ),
        number => OpenError::new(OpenErrorKind::System(number), &doing, ""),
    }
}

/// The receive half.
#[derive(Debug)]
struct TunRx {
    queue: Arc<Queue>,
    buffers: Vec<u8>,
    frames: Vec<FrameMeta>,
    frames_max: usize,
    raw_ip: bool,
    gone: bool,
    received: u64,
    sent: Arc<TxCount>,
}

impl TunRx {
    fn read(&mut self) -> io::Result<()> {
        let start = self.frames.len() * BUFFER_LEN;
        let room = &mut self.buffers[start + HEAD_ROOM..start + BUFFER_LEN];
        let (len, offload) = self.queue.read(room)?;
        self.frames.push(FrameMeta {
            start: HEAD_ROOM as u32,
            end: (HEAD_ROOM + len) as u32,
            offload,
            raw_ip: self.raw_ip,
            ..FrameMeta::default()
        });
        Ok(())
    }

    fn failed(&mut self, errno: i32) -> NicError {
        match errno {
            // The device was deleted (`tun_detach_all` in `drivers/net/tun.c`).
            libc::EBADFD | libc::EFAULT => {
                self.gone = true;
                self.queue.mute();
                NicError::Gone
            }
            libc::EIO => NicError::Down,
            errno => NicError::Errno(errno),
        }
    }
}

impl Rx for TunRx {
    fn fill(&mut self) -> Result<usize, NicError> {
        debug_assert!(self.frames.is_empty(), "the batch before was not released");
        if self.gone {
            return Err(NicError::Gone);
        }
        while self.frames.len() < self.frames_max {
            match self.read().map_err(|error| errno(&error)) {
                Ok(()) | Err(libc::EINTR) => {}
                Err(libc::EAGAIN) => break,
                // What came before the error is not lost; the error is told next time.
                Err(_) if !self.frames.is_empty() => break,
                Err(errno) => return Err(self.failed(errno)),
            }
        }
        self.received += self.frames.len() as u64;
        Ok(self.frames.len())
    }

    fn frame(&mut self, index: usize) -> Frame<'_> {
        Frame {
            buffer: &mut self.buffers[index * BUFFER_LEN..][..BUFFER_LEN],
            meta: &mut self.frames[index],
        }
    }

    fn view(&self, index: usize) -> FrameView<'_> {
        let buffer = &self.buffers[index * BUFFER_LEN..][..BUFFER_LEN];
        view_of(buffer, &self.frames[index])
    }

    fn release(&mut self) {
        self.frames.clear();
    }

    fn wait_fd(&self) -> Option<i32> {
        Some(self.queue.as_raw_fd())
    }

    fn counters(&mut self) -> NicCounters {
        let (sent, refused) = self.sent.read();
        NicCounters {
            received: self.received,
            sent,
            refused,
            cut: self.sent.cut(),
            ..NicCounters::default()
        }
    }
}

/// The transmit half.
#[derive(Debug)]
struct TunTx {
    queue: Arc<Queue>,
    raw_ip: bool,
    scratch: Vec<u8>,
    sent: Arc<TxCount>,
}

impl TunTx {
    fn send_one(&mut self, view: &FrameView<'_>, retries: &mut u32) -> bool {
        loop {
            let Err(error) = self.queue.write(view, &mut self.scratch) else {
                return true;
            };
            match errno(&error) {
                libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM
                    if *retries < SEND_RETRIES_MAX =>
                {
                    *retries += 1;
                    std::thread::yield_now();
                }
                // What an old kernel says, and what a plain queue does.
                _ => return view.offload.is_udp_gso() && self.send_cut(view, retries),
            }
        }
    }

    /// Sends a super-frame of UDP that this device would not take; says whether all of it left.
    fn send_cut(&mut self, view: &FrameView<'_>, retries: &mut u32) -> bool {
        let Some(frames) = cut::datagrams(view) else {
            return false;
        };
        self.sent.book_cut();
        let views = frames.iter().map(|bytes| cut::view(bytes, view.raw_ip));
        let mut whole = true;
        for view in views {
            whole &= self.send_one(&view, retries);
        }
        whole
    }
}

impl Tx for TunTx {
    fn send<'f>(&mut self, frames: &mut dyn Iterator<Item = FrameView<'f>>) -> Sent {
        let mut sent = Sent::default();
        let mut retries = 0;
        for view in frames {
            if view.raw_ip == self.raw_ip && self.send_one(&view, &mut retries) {
                sent.taken += 1;
            } else {
                sent.refused += 1;
            }
        }
        self.sent.book(sent);
        sent
    }
}
