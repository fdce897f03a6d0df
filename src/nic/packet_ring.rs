//! AF_PACKET with a receive ring, the default: the kernel writes frames into slots of 2 KiB that we
//! share with it (TPACKET_V2), the director edits them there, and sendmmsg sends them from there.
//! Frames too long for a slot wait whole in the socket's queue, in the order of the ring. See
//! `Documentation/networking/packet_mmap.rst`, and `tpacket_rcv` in `net/packet/af_packet.c`.

use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::packet_mmsg::{Inbox, view_of};
use super::packet_socket::{RxSocket, VlanTag};
use super::packet_tx::{PacketTx, TxCount};
use super::sys::{self, Map, errno};
use super::{Halves, OpenError, OpenOptions, RING_SLOTS_MIN};
use crate::wire::offload::VNET_HEADER_LEN;
use crate::wire::{Frame, FrameMeta, FrameView, NicCounters, NicError, Offload, Rx};

/// How many fills in a row may find nothing before the socket is asked for an error: the ring itself
/// does not tell that the interface went down. An error ends every wait at once, so it is asked soon.
const EMPTY_FILLS_MAX: u32 = 4;

/// How often a long frame is asked for again when an error of the socket came before it.
const LONG_TRIES_MAX: u32 = 4;

/// Opens an interface with this backend.
pub(super) fn open(options: &OpenOptions) -> Result<Halves, OpenError> {
    let sent = Arc::new(TxCount::default());
    let tx = PacketTx::open(options, Arc::clone(&sent))?;
    let rx = RingRx::open(options, sent)?;
    Ok((Box::new(rx), Box::new(tx)))
}

/// The receive half.
#[derive(Debug)]
struct RingRx {
    socket: RxSocket,
    /// `None` while the interface is gone: the map would keep the old socket alive.
    ring: Option<Ring>,
    /// The slot where the next batch begins.
    next: usize,
    /// Slots of this batch, to be given back.
    taken: usize,
    /// Long frames of this batch.
    long: Inbox,
    frames: Vec<Place>,
    frames_max: usize,
    empty_fills: u32,
    received: u64,
    truncated: u64,
    /// Long frames for which the socket's queue had no room.
    unqueued: u64,
    sent: Arc<TxCount>,
}

/// A frame, and where it lies.
#[derive(Clone, Copy, Debug)]
struct Place {
    buffer: Buffer,
    meta: FrameMeta,
}

#[derive(Clone, Copy, Debug)]
enum Buffer {
    Slot(usize),
    /// Of the inbox, and the tag that the frame's slot told.
    Long(usize, Option<VlanTag>),
}

impl RingRx {
    fn open(options: &OpenOptions, sent: Arc<TxCount>) -> Result<RingRx, OpenError> {
        let name = &options.interface;
        let long = Inbox::new(options.batch_frames_max)
            .map_err(|error| OpenError::packet("get memory for long frames", name, &error))?;
        let (socket, ring) = RxSocket::open(options, make_ring)?;
        Ok(RingRx {
            socket,
            ring: Some(ring),
            next: 0,
            taken: 0,
            long,
            frames: Vec::with_capacity(options.batch_frames_max),
            frames_max: options.batch_frames_max,
            empty_fills: 0,
            received: 0,
            truncated: 0,
            unqueued: 0,
            sent,
        })
    }

    /// Takes the slots that are ready, in order; says how many long frames they announce.
    fn take_slots(&mut self) -> usize {
        let Some(ring) = &mut self.ring else { return 0 };
        let mut announced = 0;
        while self.taken < self.frames_max {
            let slot = ring.behind(self.next, self.taken);
            let Some(arrival) = ring.arrival(slot) else {
                break;
            };
            self.taken += 1;
            match arrival {
                Arrival::Here(meta) => self.frames.push(Place {
                    buffer: Buffer::Slot(slot),
                    meta,
                }),
                Arrival::Queued(tag) => {
                    self.frames.push(Place {
                        buffer: Buffer::Long(announced, tag),
                        meta: FrameMeta::default(),
                    });
                    announced += 1;
                }
                Arrival::Lost => self.unqueued += 1,
            }
        }
        announced
    }

    /// Fetches the long frames of this batch out of the socket's queue.
    fn take_long(&mut self, announced: usize) {
        let mut came = 0;
        for _ in 0..LONG_TRIES_MAX {
            let wanted = announced - came;
            match self.long.receive(self.socket.fd(), came, wanted) {
                Ok(count) => came += count,
                // An error is told once, and the frames are still there behind it.
                Err(error) => self.socket.note(errno(&error)),
            }
            if came == announced {
                break;
            }
        }
        let (long, truncated) = (&mut self.long, &mut self.truncated);
        self.frames.retain_mut(|place| {
            let Buffer::Long(index, tag) = place.buffer else {
                return true;
            };
            let Some(meta) = long.untagged(index).filter(|_| index < came) else {
                *truncated += 1;
                return false;
            };
            place.meta = meta;
            if let Some(tag) = tag {
                tag.put_back(long.buffer_mut(index), &mut place.meta);
            }
            true
        });
    }

    /// Nothing was in the ring: why?
    fn explain(&mut self) -> Result<(), NicError> {
        self.empty_fills += 1;
        if self.empty_fills >= EMPTY_FILLS_MAX {
            self.empty_fills = 0;
            self.socket.note(sys::take_error(self.socket.fd()));
        }
        let health = self.socket.check();
        if self.socket.is_gone() {
            self.ring = None;
        }
        health
    }

    fn rejoin(&mut self) -> Result<(), NicError> {
        self.ring = Some(self.socket.rejoin(make_ring)?);
        self.next = 0;
        Ok(())
    }
}

impl Rx for RingRx {
    fn fill(&mut self) -> Result<usize, NicError> {
        debug_assert_eq!(self.taken, 0, "the batch before was not released");
        if self.socket.is_gone() {
            self.rejoin()?;
        }
        let announced = self.take_slots();
        if self.taken == 0 {
            return self.explain().map(|()| 0);
        }
        self.empty_fills = 0;
        if announced > 0 {
            self.take_long(announced);
        }
        self.received += self.frames.len() as u64;
        Ok(self.frames.len())
    }

    fn frame(&mut self, index: usize) -> Frame<'_> {
        let place = &mut self.frames[index];
        let buffer = match place.buffer {
            Buffer::Long(index, _) => self.long.buffer_mut(index),
            Buffer::Slot(slot) => {
                let ring = self.ring.as_mut();
                ring.expect("it outlives its batch").buffer_mut(slot)
            }
        };
        Frame {
            buffer,
            meta: &mut place.meta,
        }
    }

    fn view(&self, index: usize) -> FrameView<'_> {
        let place = &self.frames[index];
        let buffer = match place.buffer {
            Buffer::Long(index, _) => self.long.buffer(index),
            Buffer::Slot(slot) => {
                let ring = self.ring.as_ref();
                ring.expect("it outlives its batch").buffer(slot)
            }
        };
        view_of(buffer, &place.meta)
    }

    fn release(&mut self) {
        self.frames.clear();
        let Some(ring) = &mut self.ring else { return };
        for slot in 0..self.taken {
            ring.give_back(ring.behind(self.next, slot));
        }
        self.next = ring.behind(self.next, self.taken);
        self.taken = 0;
    }

    fn wait_fd(&self) -> Option<i32> {
        Some(self.socket.raw_fd())
    }

    fn counters(&mut self) -> NicCounters {
        let (sent, refused) = self.sent.read();
        NicCounters {
            received: self.received,
            overrun: self.socket.overrun() + self.unqueued,
            truncated: self.truncated,
            sent,
            refused,
            cut: self.sent.cut(),
        }
    }
}

/// What the kernel says of a slot it has filled.
#[derive(Clone, Copy, Debug)]
enum Arrival {
    /// The frame lies in the slot.
    Here(FrameMeta),
    /// It waits whole in the socket's queue; its VLAN tag is told here.
    Queued(Option<VlanTag>),
    /// It is longer than a slot, and the queue had no room for it.
    Lost,
}

const SLOT_LEN: usize = 2048;
/// Slots that lie together in physical memory: 128 KiB, which the kernel falls back from if it must.
const BLOCK_SLOTS: usize = 64;
/// `tpacket2_hdr` and `sockaddr_ll`; behind them begins what the director may use.
const BUFFER_AT: usize = 52;
const BUFFER_LEN: usize = SLOT_LEN - BUFFER_AT;
/// Head room asked of the kernel. With this much the vnet header, Ethernet, IPv4 and TCP share one
/// cache line (bytes 192 to 255 of the slot), and the IP header is aligned.
const RESERVE: u32 = 126;

/// The ring of slots. A slot belongs to the kernel or to us, as its first word says; we hand out
/// slices only of slots between `arrival` and `give_back`, by the order of calls in `RingRx`.
#[derive(Debug)]
struct Ring {
    memory: Map,
    slots: usize,
}

fn make_ring(fd: &OwnedFd, options: &OpenOptions) -> Result<Ring, OpenError> {
    let name = &options.interface;
    let failed = |doing: &'static str| move |error| OpenError::packet(doing, name, &error);
    let set = |option, value: u32| sys::set_option(fd, libc::SOL_PACKET, option, &value);
    set(
        libc::PACKET_VERSION,
        libc::tpacket_versions::TPACKET_V2 as u32,
    )
    .map_err(failed("choose the ring's layout (PACKET_VERSION)"))?;
    set(libc::PACKET_COPY_THRESH, 1)
        .map_err(failed("have long frames queued (PACKET_COPY_THRESH)"))?;
    set(libc::PACKET_RESERVE, RESERVE).map_err(failed("reserve head room (PACKET_RESERVE)"))?;
    let mut slots = options.ring_slots.next_multiple_of(BLOCK_SLOTS);
    loop {
        match request_ring(fd, slots) {
            // A machine with little memory gets a smaller ring: it counts what does not fit.
            Err(error) if errno(&error) == libc::ENOMEM && slots > RING_SLOTS_MIN => {
                slots = (slots / 2).next_multiple_of(BLOCK_SLOTS);
            }
            made => {
                made.map_err(failed("make a receive ring (PACKET_RX_RING)"))?;
                break;
            }
        }
    }
    let memory = Map::shared(slots * SLOT_LEN, fd).map_err(failed("map a receive ring"))?;
    Ok(Ring { memory, slots })
}

fn request_ring(fd: &OwnedFd, slots: usize) -> std::io::Result<()> {
    let request = libc::tpacket_req {
        tp_block_size: (BLOCK_SLOTS * SLOT_LEN) as u32,
        tp_block_nr: (slots / BLOCK_SLOTS) as u32,
        tp_frame_size: SLOT_LEN as u32,
        tp_frame_nr: slots as u32,
    };
    sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)
}

impl Ring {
    /// The slot `by` behind `slot`, round the ring.
    fn behind(&self, slot: usize, by: usize) -> usize {
        let sum = slot + by;
        if sum < self.slots {
            sum
        } else {
            sum - self.slots
        }
    }

    /// What lies in the slot, if the kernel has filled it.
    fn arrival(&mut self, slot: usize) -> Option<Arrival> {
        let status = self.status(slot).load(Ordering::Acquire);
        if status & libc::TP_STATUS_USER == 0 {
            return None;
        }
        let header: NonNull<libc::tpacket2_hdr> = self.at(slot, 0, SLOT_LEN).cast();
        // SAFETY: the header lies at the start of the slot, which is aligned to its length; the
        // slot is ours, so the kernel does not write it.
        let header = unsafe { header.read() };
        let tag = VlanTag::from_status(status, header.tp_vlan_tpid, header.tp_vlan_tci);
        if status & libc::TP_STATUS_COPY != 0 {
            return Some(Arrival::Queued(tag));
        }
        let (start, len) = (usize::from(header.tp_mac), header.tp_snaplen as usize);
        let whole = header.tp_snaplen == header.tp_len;
        if !whole || start < BUFFER_AT + VNET_HEADER_LEN || start + len > SLOT_LEN {
            return Some(Arrival::Lost);
        }
        let header = self.at(slot, start - VNET_HEADER_LEN, VNET_HEADER_LEN);
        // SAFETY: ten bytes inside the slot, which is ours; any bytes are a valid array.
        let header: [u8; VNET_HEADER_LEN] = unsafe { header.cast().read() };
        let mut meta = FrameMeta {
            start: (start - BUFFER_AT) as u32,
            end: (start - BUFFER_AT + len) as u32,
            offload: Offload::decode(&header),
            ..FrameMeta::default()
        };
        if let Some(tag) = tag {
            tag.put_back(self.buffer_mut(slot), &mut meta);
        }
        Some(Arrival::Here(meta))
    }

    /// The slot is the kernel's again.
    fn give_back(&mut self, slot: usize) {
        let status = self.status(slot);
        status.store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }

    fn buffer(&self, slot: usize) -> &[u8] {
        let start = self.at(slot, BUFFER_AT, BUFFER_LEN);
        // SAFETY: inside the slot, initialized (zero or a frame); the slot is ours until
        // `give_back`, which needs `&mut self`.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), BUFFER_LEN) }
    }

    fn buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        let start = self.at(slot, BUFFER_AT, BUFFER_LEN);
        // SAFETY: as `buffer`; `&mut self` keeps all other borrowers out.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), BUFFER_LEN) }
    }

    fn status(&self, slot: usize) -> &AtomicU32 {
        let status = self.at(slot, 0, size_of::<AtomicU32>());
        // SAFETY: the first word of a slot, aligned, mapped as long as `self`, and touched by the
        // kernel and by us as an atomic only while its owner may change.
        unsafe { AtomicU32::from_ptr(status.cast().as_ptr()) }
    }

    fn at(&self, slot: usize, at: usize, len: usize) -> NonNull<u8> {
        debug_assert!(at + len <= SLOT_LEN);
        self.memory.at(slot * SLOT_LEN + at, len)
    }
}
