//! AF_PACKET without a ring: recvmmsg into buffers of our own, sendmmsg out of them. The simplest
//! backend and the reference that the ring is tested against. Super-frames arrive whole.

use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use super::packet_socket::{RxSocket, VlanTag};
use super::packet_tx::{PacketTx, TxCount};
use super::sys::{self, Map, check, errno};
use super::{Halves, OpenError, OpenOptions};
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::{Frame, FrameMeta, FrameView, NicCounters, NicError, Offload, Rx};

/// Opens an interface with this backend.
pub(super) fn open(options: &OpenOptions) -> Result<Halves, OpenError> {
    let count = Arc::new(TxCount::default());
    let tx = PacketTx::open(options, Arc::clone(&count))?;
    let rx = MmsgRx::open(options, count)?;
    Ok((Box::new(rx), Box::new(tx)))
}

/// The receive half.
#[derive(Debug)]
struct MmsgRx {
    socket: RxSocket,
    inbox: Inbox,
    frames_max: usize,
    frames: Vec<Place>,
    received: u64,
    truncated: u64,
    sent: Arc<TxCount>,
}

/// A frame and the slot it lies in.
#[derive(Clone, Copy, Debug)]
struct Place {
    slot: usize,
    meta: FrameMeta,
}

impl MmsgRx {
    fn open(options: &OpenOptions, sent: Arc<TxCount>) -> Result<MmsgRx, OpenError> {
        let name = &options.interface;
        let inbox = Inbox::new(options.batch_frames_max)
            .map_err(|error| OpenError::packet("get memory for frames", name, &error))?;
        let (socket, ()) = RxSocket::open(options, auxiliary_data)?;
        Ok(MmsgRx {
            socket,
            inbox,
            frames_max: options.batch_frames_max,
            frames: Vec::with_capacity(options.batch_frames_max),
            received: 0,
            truncated: 0,
            sent,
        })
    }

    /// Nothing came: why?
    fn explain(&mut self, errno: i32) -> Result<(), NicError> {
        match errno {
            libc::EAGAIN | libc::EINTR => self.socket.check(),
            // Told before the frames that came earlier: they are fetched first, then it is asked.
            libc::ENETDOWN => {
                self.socket.note(errno);
                Err(NicError::Down)
            }
            errno => Err(NicError::Errno(errno)),
        }
    }
}

/// Asks for VLAN tags beside the frames; the kernel has taken them out.
fn auxiliary_data(fd: &OwnedFd, options: &OpenOptions) -> Result<(), OpenError> {
    let doing = "ask for VLAN tags (PACKET_AUXDATA)";
    sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, &1)
        .map_err(|error| OpenError::packet(doing, &options.interface, &error))
}

impl Rx for MmsgRx {
    fn fill(&mut self) -> Result<usize, NicError> {
        debug_assert!(self.frames.is_empty(), "the batch before was not released");
        if self.socket.is_gone() {
            self.socket.rejoin(auxiliary_data)?;
        }
        let count = match self.inbox.receive(self.socket.fd(), 0, self.frames_max) {
            Ok(count) => count,
            Err(error) => return self.explain(errno(&error)).map(|()| 0),
        };
        for slot in 0..count {
            match self.inbox.meta(slot) {
                Some(meta) => self.frames.push(Place { slot, meta }),
                None => self.truncated += 1,
            }
        }
        self.received += self.frames.len() as u64;
        Ok(self.frames.len())
    }

    fn frame(&mut self, index: usize) -> Frame<'_> {
        let place = &mut self.frames[index];
        Frame {
            buffer: self.inbox.buffer_mut(place.slot),
            meta: &mut place.meta,
        }
    }

    fn view(&self, index: usize) -> FrameView<'_> {
        let Place { slot, meta } = self.frames[index];
        view_of(self.inbox.buffer(slot), &meta)
    }

    fn release(&mut self) {
        self.frames.clear();
    }

    fn wait_fd(&self) -> Option<i32> {
        Some(self.socket.raw_fd())
    }

    fn counters(&mut self) -> NicCounters {
        let (sent, refused) = self.sent.read();
        NicCounters {
            received: self.received,
            overrun: self.socket.overrun(),
            truncated: self.truncated,
            sent,
            refused,
            cut: self.sent.cut(),
        }
    }
}

/// The frame that `meta` describes, inside its buffer.
pub(super) fn view_of<'a>(buffer: &'a [u8], meta: &FrameMeta) -> FrameView<'a> {
    FrameView {
        bytes: &buffer[meta.start as usize..meta.end as usize],
        offload: meta.offload,
        raw_ip: meta.raw_ip,
    }
}

/// Room before a frame in every buffer of this room: a VLAN tag put back, an outer header or two.
pub(super) const HEAD_ROOM: usize = 128;

/// The longest super-frame: 64 KiB of IP, Ethernet, two VLAN tags.
pub(super) const FRAME_LEN_MAX: usize = 65535 + 14 + 8;

// A slot: auxiliary data, vnet header, then the buffer the director sees. The frame begins 2 bytes
// behind the head room, so that the IP header is aligned. The stride is an odd number of cache
// lines, so that the headers of a batch do not fight for the same cache set.
const CONTROL_AT: usize = 0;
const CONTROL_LEN: usize = 64;
const HEADER_AT: usize = CONTROL_AT + CONTROL_LEN;
const BUFFER_AT: usize = 128;
const FRAME_AT: usize = HEAD_ROOM + 2;
const STRIDE: usize = 1057 * 64;
const BUFFER_LEN: usize = STRIDE - BUFFER_AT;
const _: () = assert!(BUFFER_LEN >= FRAME_AT + FRAME_LEN_MAX + HEAD_ROOM && STRIDE / 64 % 2 == 1);

/// Buffers for long frames, and the message headers through which recvmmsg fills them. The ring uses
/// it for the frames that do not fit its slots.
#[derive(Debug)]
pub(super) struct Inbox {
    memory: Map,
    messages: Vec<libc::mmsghdr>,
    parts: Vec<[libc::iovec; 2]>,
}

// SAFETY: the pointers in `messages` and `parts` point into `memory` and `parts`, owned by the same
// value and at a fixed place; nothing depends on the thread.
unsafe impl Send for Inbox {}

impl Inbox {
    /// Buffers for `slots` frames. Memory is taken when they are first used.
    pub fn new(slots: usize) -> std::io::Result<Inbox> {
        let memory = Map::anonymous(slots * STRIDE)?;
        let mut parts: Vec<[libc::iovec; 2]> = (0..slots)
            .map(|slot| {
                let at = slot * STRIDE;
                let frame = at + BUFFER_AT + FRAME_AT;
                [
                    part(memory.at(at + HEADER_AT, VNET_HEADER_LEN), VNET_HEADER_LEN),
                    part(memory.at(frame, FRAME_LEN_MAX), FRAME_LEN_MAX),
                ]
            })
            .collect();
        let messages = (0..slots)
            .map(|slot| {
                // SAFETY: all zeroes is a valid mmsghdr: null pointers with zero lengths.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_iov = parts[slot].as_mut_ptr();
                message.msg_hdr.msg_iovlen = 2;
                let control = memory.at(slot * STRIDE + CONTROL_AT, CONTROL_LEN);
                message.msg_hdr.msg_control = control.as_ptr().cast();
                message
            })
            .collect();
        Ok(Inbox {
            memory,
            messages,
            parts,
        })
    }

    /// Receives at most `count` frames into the slots from `first` on; says how many came.
    pub fn receive(&mut self, fd: &OwnedFd, first: usize, count: usize) -> std::io::Result<usize> {
        debug_assert_eq!(self.parts.len(), self.messages.len());
        let messages = &mut self.messages[first..first + count];
        for message in messages.iter_mut() {
            message.msg_hdr.msg_controllen = CONTROL_LEN;
            message.msg_hdr.msg_flags = 0;
        }
        let (start, count) = (messages.as_mut_ptr(), count as libc::c_uint);
        let (flags, forever) = (libc::MSG_DONTWAIT, std::ptr::null_mut());
        // SAFETY: `count` messages, each of which points at two parts and a control buffer inside
        // `memory`; `&mut self` says that nobody looks at those now.
        let came = unsafe { libc::recvmmsg(fd.as_raw_fd(), start, count, flags, forever) };
        check(came).map(|came| came as usize)
    }

    /// What is known of the frame just received into `slot`, with its VLAN tag back in it; `None` if
    /// it was longer than the buffer, and is lost.
    pub fn meta(&mut self, slot: usize) -> Option<FrameMeta> {
        let tag = self.tag(slot);
        let mut meta = self.untagged(slot)?;
        if let Some(tag) = tag {
            tag.put_back(self.buffer_mut(slot), &mut meta);
        }
        Some(meta)
    }

    /// As `meta`, the tag left out: where it is known from elsewhere.
    pub fn untagged(&self, slot: usize) -> Option<FrameMeta> {
        let message = &self.messages[slot];
        let len = (message.msg_len as usize).checked_sub(VNET_HEADER_LEN)?;
        if message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
            return None;
        }
        let header = self.memory.at(slot * STRIDE + HEADER_AT, VNET_HEADER_LEN);
        // SAFETY: ten bytes inside `memory`, written by the kernel before recvmmsg came back.
        let header: [u8; VNET_HEADER_LEN] = unsafe { header.cast().read() };
        Some(FrameMeta {
            start: FRAME_AT as u32,
            end: (FRAME_AT + len) as u32,
            offload: Offload::decode(&header),
            ..FrameMeta::default()
        })
    }

    /// The buffer of `slot`.
    pub fn buffer(&self, slot: usize) -> &[u8] {
        let start = self.memory.at(slot * STRIDE + BUFFER_AT, BUFFER_LEN);
        // SAFETY: inside `memory`, initialized (zero or received), borrowed with `self`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), BUFFER_LEN) }
    }

    /// The buffer of `slot`, to be edited.
    pub fn buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        let start = self.memory.at(slot * STRIDE + BUFFER_AT, BUFFER_LEN);
        // SAFETY: as `buffer`; `&mut self` keeps everyone else out, the kernel too, since it writes
        // only inside `receive`.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), BUFFER_LEN) }
    }

    fn tag(&self, slot: usize) -> Option<VlanTag> {
        let message = &self.messages[slot].msg_hdr;
        // SAFETY: the control buffer lies in `memory` and holds what the kernel wrote; the CMSG
        // macros stay inside `msg_controllen`; the data is read unaligned and is plain integers.
        unsafe {
            let mut control = libc::CMSG_FIRSTHDR(message);
            while let Some(header) = control.as_ref() {
                if header.cmsg_level == libc::SOL_PACKET && header.cmsg_type == libc::PACKET_AUXDATA
                {
                    let data = libc::CMSG_DATA(control).cast::<libc::tpacket_auxdata>();
                    let data = data.read_unaligned();
                    let (tpid, tci) = (data.tp_vlan_tpid, data.tp_vlan_tci);
                    return VlanTag::from_status(data.tp_status, tpid, tci);
                }
                control = libc::CMSG_NXTHDR(message, control);
            }
        }
        None
    }
}

fn part(start: NonNull<u8>, len: usize) -> libc::iovec {
    libc::iovec {
        iov_base: start.as_ptr().cast(),
        iov_len: len,
    }
}
