//! The transmit half of both packet backends: sendmmsg on a socket of its own, each frame in two
//! parts, its vnet header and its bytes where they lie. The queueing discipline is bypassed where
//! that can be: past it, the kernel drops a super-frame that the device cannot cut by itself
//! (`__dev_direct_xmit` in `net/core/dev.c`), so the first such frame ends the bypass.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::error::no_such_interface;
use super::packet_socket::{Buffer, set_buffer};
use super::sys::{self, check, errno};
use super::{BATCH_FRAMES_MAX, OpenError, OpenOptions, cut};
use crate::wire::nic::Sent;
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::{FrameView, Tx};

/// How often one `send` tries again when the queue behind the interface is full. Its packets leave
/// within microseconds or, where the peer is down, never.
const SEND_RETRIES_MAX: u32 = 16;

/// What a transmit half has counted; the receive half of the same interface reports it.
#[derive(Debug, Default)]
pub(super) struct TxCount {
    sent: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
}

impl TxCount {
    /// Books what became of some frames. One thread writes, so no locked instruction is needed.
    pub fn book(&self, sent: Sent) {
        let add = |to: &AtomicU64, more: usize| {
            to.store(to.load(Ordering::Relaxed) + more as u64, Ordering::Relaxed);
        };
        add(&self.sent, sent.taken);
        add(&self.refused, sent.refused);
    }

    /// Books a super-frame that the kernel would not take whole.
    pub fn book_cut(&self) {
        let before = self.cut.load(Ordering::Relaxed);
        self.cut.store(before + 1, Ordering::Relaxed);
    }

    /// Super-frames cut here.
    pub fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }

    /// Frames sent and frames refused.
    pub fn read(&self) -> (u64, u64) {
        let read = |from: &AtomicU64| from.load(Ordering::Relaxed);
        (read(&self.sent), read(&self.refused))
    }
}

/// The transmit half.
#[derive(Debug)]
pub(super) struct PacketTx {
    fd: OwnedFd,
    interface: String,
    bypasses: bool,
    count: Arc<TxCount>,
}

impl PacketTx {
    /// Opens and binds; `count` is shared with the receive half.
    pub fn open(options: &OpenOptions, count: Arc<TxCount>) -> Result<PacketTx, OpenError> {
        let name = &options.interface;
        let failed = |doing: &'static str| move |error| OpenError::packet(doing, name, &error);
        let index = sys::interface_index(name).ok_or_else(|| no_such_interface(name))?;
        let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
            .map_err(failed("open an AF_PACKET socket for sending"))?;
        let set = |option| sys::set_option(&fd, libc::SOL_PACKET, option, &1);
        set(libc::PACKET_VNET_HDR).map_err(failed("switch vnet headers on (PACKET_VNET_HDR)"))?;
        set(libc::PACKET_QDISC_BYPASS).map_err(failed(
            "bypass the queueing discipline (PACKET_QDISC_BYPASS)",
        ))?;
        set_buffer(&fd, Buffer::Send, options.send_buffer_bytes)
            .map_err(failed("set the send buffer"))?;
        sys::bind_packet(&fd, index, 0).map_err(failed("bind a socket for sending"))?;
        sys::take_error(&fd);
        Ok(PacketTx {
            fd,
            interface: name.clone(),
            bypasses: true,
            count,
        })
    }

    /// Sends `frames[from..]`, says how far it came.
    fn flush(&mut self, batch: &Batch<'_>, retries: &mut u32) -> Sent {
        let mut sent = Sent::default();
        let mut done = 0;
        let mut rebound = false;
        while done < batch.len {
            let error = match batch.send(&self.fd, done) {
                Ok(count) => {
                    sent.taken += count;
                    done += count;
                    continue;
                }
                Err(error) => errno(&error),
            };
            match error {
                libc::ENOBUFS if self.bypasses && batch.is_gso(done) => self.end_bypass(),
                libc::EINTR | libc::EAGAIN | libc::ENOBUFS if *retries < SEND_RETRIES_MAX => {
                    *retries += 1;
                    std::thread::yield_now();
                }
                libc::ENXIO | libc::ENODEV if !rebound && self.rebind() => rebound = true,
                libc::ENXIO | libc::ENODEV | libc::ENETDOWN => {
                    sent.refused += batch.len - done;
                    done = batch.len;
                }
                libc::EINVAL if batch.view(done).offload.is_udp_gso() => {
                    let whole = self.send_cut(batch.view(done), retries);
                    sent.taken += usize::from(whole);
                    sent.refused += usize::from(!whole);
                    done += 1;
                }
                // Too long, a vnet header that the kernel does not believe, or no room for long.
                _ => {
                    sent.refused += 1;
                    done += 1;
                }
            }
        }
        sent
    }

    /// Sends a super-frame of UDP that this kernel would not take; says whether all of it left.
    fn send_cut(&mut self, view: &FrameView<'_>, retries: &mut u32) -> bool {
        let Some(frames) = cut::datagrams(view) else {
            return false;
        };
        let (mut batch, mut refused) = (Batch::new(), 0);
        let mut frames = frames.iter().map(|bytes| cut::view(bytes, view.raw_ip));
        while batch.load(&mut frames) > 0 {
            refused += self.flush(&batch, retries).refused;
        }
        self.count.book_cut();
        refused == 0
    }

    /// From now on frames go through the queueing discipline, where super-frames are cut. All of
    /// them, since two ways out could overtake each other.
    fn end_bypass(&mut self) {
        self.bypasses = false;
        // If the kernel refuses, the frame is refused too, and counted.
        let _ = sys::set_option(&self.fd, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &0);
    }

    /// The interface went away; if one of its name is there again, that one it is.
    fn rebind(&self) -> bool {
        let index = sys::interface_index(&self.interface);
        index.is_some_and(|index| sys::bind_packet(&self.fd, index, 0).is_ok())
    }
}

impl Tx for PacketTx {
    fn send<'f>(&mut self, frames: &mut dyn Iterator<Item = FrameView<'f>>) -> Sent {
        let mut total = Sent::default();
        let mut retries = 0;
        let mut batch = Batch::new();
        while batch.load(frames) > 0 {
            let sent = self.flush(&batch, &mut retries);
            total.taken += sent.taken;
            total.refused += sent.refused;
        }
        total.refused += batch.foreign;
        self.count.book(total);
        total
    }
}

/// Frames on their way into one sendmmsg. It borrows them, so they live until it is gone.
struct Batch<'f> {
    len: usize,
    /// Frames without an Ethernet header, which this interface cannot carry.
    foreign: usize,
    views: [MaybeUninit<FrameView<'f>>; BATCH_FRAMES_MAX],
}

impl<'f> Batch<'f> {
    fn new() -> Batch<'f> {
        Batch {
            len: 0,
            foreign: 0,
            views: [const { MaybeUninit::uninit() }; BATCH_FRAMES_MAX],
        }
    }

    /// Takes the next frames, as many as fit; says how many.
    fn load(&mut self, from: &mut dyn Iterator<Item = FrameView<'f>>) -> usize {
        self.len = 0;
        while self.len < BATCH_FRAMES_MAX {
            let Some(view) = from.next() else { break };
            if view.raw_ip {
                self.foreign += 1;
                continue;
            }
            self.views[self.len].write(view);
            self.len += 1;
        }
        self.len
    }

    fn is_gso(&self, index: usize) -> bool {
        self.view(index).offload.is_gso()
    }

    fn view(&self, index: usize) -> &FrameView<'f> {
        assert!(index < self.len);
        // SAFETY: `load` has written the views `0..len`.
        unsafe { self.views[index].assume_init_ref() }
    }

    /// Sends the frames from `first` on; says how many the kernel took.
    fn send(&self, fd: &OwnedFd, first: usize) -> std::io::Result<usize> {
        // Not initialized: to zero 7 KB for one frame would cost a tenth of sending it.
        let mut headers = [const { MaybeUninit::uninit() }; BATCH_FRAMES_MAX];
        let mut parts = [const { MaybeUninit::uninit() }; BATCH_FRAMES_MAX];
        let mut messages = [const { MaybeUninit::uninit() }; BATCH_FRAMES_MAX];
        for index in first..self.len {
            let view = self.view(index);
            let header: &mut [u8; VNET_HEADER_LEN] = headers[index].write(view.offload.encode());
            let parts = parts[index].write([part(header), part(view.bytes)]);
            messages[index].write(message(parts));
        }
        let messages = messages[first..].as_mut_ptr().cast();
        let count = (self.len - first) as libc::c_uint;
        // SAFETY: `count` messages are written; each points at two parts, and those at a header
        // on this stack and at a frame borrowed for `'f`, which the kernel only reads.
        let sent = unsafe { libc::sendmmsg(fd.as_raw_fd(), messages, count, libc::MSG_DONTWAIT) };
        check(sent).map(|sent| sent as usize)
    }
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn message(parts: &mut [libc::iovec; 2]) -> libc::mmsghdr {
    // SAFETY: all zeroes is a valid mmsghdr: null pointers with zero lengths.
    let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
    message.msg_hdr.msg_iov = parts.as_mut_ptr();
    message.msg_hdr.msg_iovlen = parts.len();
    message
}
