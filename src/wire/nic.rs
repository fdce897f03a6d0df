//! The seam between the world and a worker: an interface has a receive half and a transmit half. A
//! worker fills a batch, edits its frames where they lie, hands them to other interfaces' transmit
//! halves, and then gives the buffers back. No frame is copied on that way.

use super::offload::Offload;

/// What is known of a frame beside its bytes. `start..end` is the frame inside its buffer: the bytes
/// before and behind it are room to grow.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameMeta {
    /// Offset of the Ethernet header (or of the IP header where `raw_ip`) in the buffer.
    pub start: u32,
    /// Offset behind the last byte.
    pub end: u32,
    /// What virtio_net_hdr said of it: partial checksum, GSO.
    pub offload: Offload,
    /// Firewall mark; 0 is none.
    pub mark: u32,
    /// No Ethernet header: the frame begins with IP (TUN).
    pub raw_ip: bool,
}

/// A received frame in its buffer, to be edited in place.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The whole buffer, with head and tail room.
    pub buffer: &'a mut [u8],
    /// Where in it the frame lies, and what is known of it.
    pub meta: &'a mut FrameMeta,
}

impl Frame<'_> {
    /// The frame's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.buffer[self.meta.start as usize..self.meta.end as usize]
    }

    /// The frame's bytes, to be edited.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.meta.start as usize..self.meta.end as usize]
    }

    /// From now on it lies here in its buffer.
    pub fn moved(&mut self, place: Place) {
        debug_assert!(place.start <= place.end && place.end as usize <= self.buffer.len());
        (self.meta.start, self.meta.end) = (place.start, place.end);
        self.meta.offload = place.offload;
    }
}

/// Where a frame lies that grew at its front.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// See `FrameMeta::start`.
    pub start: u32,
    /// See `FrameMeta::end`.
    pub end: u32,
    /// See `FrameMeta::offload`.
    pub offload: Offload,
}

/// A frame about to be sent.
#[derive(Clone, Copy, Debug)]
pub struct FrameView<'a> {
    /// From the Ethernet header (or the IP header where `raw_ip`) to the last byte.
    pub bytes: &'a [u8],
    /// What the device must still do: partial checksum, segmentation.
    pub offload: Offload,
    /// No Ethernet header.
    pub raw_ip: bool,
}

/// What an interface's receive half has counted since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NicCounters {
    /// Frames handed to the worker.
    pub received: u64,
    /// Frames that the kernel dropped because our ring or buffer was full.
    pub overrun: u64,
    /// Frames longer than any buffer of ours.
    pub truncated: u64,
    /// Frames handed to the kernel for sending.
    pub sent: u64,
    /// Frames that the kernel would not take.
    pub refused: u64,
    /// Super-frames of UDP that the kernel would not take whole, and that were cut here.
    pub cut: u64,
}

/// Why an interface gave nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicError {
    /// The interface is down; it may come back.
    Down,
    /// The interface no longer exists.
    Gone,
    /// Any other errno of the system.
    Errno(i32),
}

/// The receive half of an interface.
pub trait Rx: Send {
    /// Takes the frames that wait, at most `BATCH_FRAMES_MAX`, without blocking. They are numbers
    /// `0..n` until `release`. Frames of the batch before must have been released.
    ///
    /// # Errors
    /// `NicError` when the interface can give nothing; the next call may succeed again.
    fn fill(&mut self) -> Result<usize, NicError>;

    /// Frame `index` of the batch, to be edited.
    fn frame(&mut self, index: usize) -> Frame<'_>;

    /// Frame `index` of the batch as it now is.
    fn view(&self, index: usize) -> FrameView<'_>;

    /// Gives the batch's buffers back.
    fn release(&mut self);

    /// What to wait on (a file descriptor), for interfaces of the machine.
    fn wait_fd(&self) -> Option<i32>;

    /// What was counted so far.
    fn counters(&mut self) -> NicCounters;
}

/// The transmit half of an interface.
pub trait Tx: Send {
    /// Sends frames, and says how many the interface took and how many it would not; those are lost
    /// and counted by the caller. The frames need not outlive the call.
    fn send<'f>(&mut self, frames: &mut dyn Iterator<Item = FrameView<'f>>) -> Sent;
}

/// What became of the frames given to `Tx::send`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Frames the interface took.
    pub taken: usize,
    /// Frames it would not take (down, too long, no buffer).
    pub refused: usize,
}
