//! Lane: what one worker alone owns. Split in two, so that an entry found in the index can be used
//! while everything else is changed.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use super::neigh::{NeighbourCache, Neighbours};
use super::snapshot::Snapshot;
use super::verdict::{Account, DropReason, Verdict};
use crate::conn::{ConnTable, Defences, Index, Wheel};
use crate::lvs::Limits;
use crate::rng::Rng;
use crate::sched::Note;
use crate::time::{Duration, Instant};
use crate::wire::frag::{Bounds, Gathered, Reassembler};
use crate::wire::{FrameView, Layout, Offload};

/// What one worker alone owns.
#[derive(Debug)]
pub struct Lane {
    /// Its way to the connections.
    pub index: Index,
    /// All the rest.
    pub own: Own,
}

/// Everything of a lane but the index.
#[derive(Debug)]
pub struct Own {
    /// Number of the worker, from 0.
    pub worker: usize,
    /// The configuration in force here.
    pub snapshot: Arc<Snapshot>,
    /// Deadlines of the connections it opened.
    pub wheel: Wheel,
    /// Every frame it took.
    pub account: Account,
    /// Frames of its own making, to be sent at the end of the breath.
    pub outbox: Outbox,
    /// What received packets were cut into, to be sent at the end of the breath.
    pub pieces: Outbox,
    /// Fragments that wait for others.
    pub fragments: Reassembler,
    /// Frames that wait for a MAC address.
    pub held: VecDeque<HeldFrame>,
    /// What all workers know of their neighbours.
    pub neighbours: Arc<Neighbours>,
    /// What this worker remembers of them.
    pub cache: NeighbourCache,
    /// Chance.
    pub rng: Rng,
    /// The connections, shared by all workers.
    pub table: Arc<ConnTable>,
    /// The defences in force.
    pub defences: Arc<Defences>,
    /// The identification of the last IPv4 packet that it made.
    pub ident: u16,
    /// Scratch space for the numbers of a pick.
    pub notes: Vec<Note>,
}

impl Lane {
    /// The lane of worker `worker`.
    pub fn new(
        worker: usize,
        snapshot: Arc<Snapshot>,
        neighbours: Arc<Neighbours>,
        table: Arc<ConnTable>,
        seed: u64,
        now: Instant,
    ) -> Lane {
        let mut rng = Rng::new(seed ^ worker as u64);
        let limits = snapshot.limits;
        let own = Own {
            worker,
            wheel: Wheel::new(now),
            account: Account::new(),
            outbox: Outbox::new(limits.answers_per_breath_max as usize),
            pieces: Outbox::new(limits.frag_cuts_per_breath_max as usize),
            fragments: Reassembler::new(bounds(&limits)),
            held: VecDeque::new(),
            neighbours,
            defences: Arc::clone(table.defences()),
            table,
            cache: NeighbourCache::new(limits.neigh_entries_max as usize),
            notes: Vec::new(),
            ident: rng.next_u64() as u16,
            rng,
            snapshot,
        };
        Lane {
            index: Index::new(limits.index_slots_max as usize),
            own,
        }
    }
}

fn bounds(limits: &Limits) -> Bounds {
    Bounds {
        bytes_max: limits.frag_bytes_max as usize,
        v4_wait: Duration::from_secs(limits.frag_wait_s.into()),
        v6_wait: Duration::from_secs(limits.frag_wait_v6_s.into()),
    }
}

/// A frame that waits for its next hop's MAC address.
#[derive(Debug)]
pub struct HeldFrame {
    /// Port it shall leave by.
    pub port: usize,
    /// Whose MAC address is missing.
    pub next_hop: IpAddr,
    /// When it began to wait.
    pub since: Instant,
    /// The frame, ready but for the MAC addresses.
    pub bytes: Vec<u8>,
    /// Where things lie in it.
    pub layout: Layout,
    /// Its offload.
    pub offload: Offload,
    /// Where it comes from.
    pub origin: Origin,
    /// How it came, if that was in fragments.
    pub gathered: Option<Gathered>,
    /// Longest IP packet it is cut into; 0: it leaves whole.
    pub cut_to: u32,
}

impl HeldFrame {
    /// How many received frames it stands for.
    pub fn frames(&self) -> u32 {
        match self.origin {
            Origin::Ours => 0,
            Origin::Received(frames) => frames,
        }
    }
}

impl Own {
    /// An identification that this worker gives to no other IPv4 packet for a long time (RFC 6864): all
    /// others come first.
    pub fn next_ident(&mut self) -> u16 {
        self.ident = self.ident.wrapping_add(1);
        self.ident
    }

    /// The first of so many identifications in a row: of what a device cuts a super-frame into.
    pub fn next_idents(&mut self, count: usize) -> u16 {
        let first = self.next_ident();
        self.ident = first.wrapping_add((count as u16).saturating_sub(1));
        first
    }

    /// Lets a frame wait; the one that waited longest makes room for it.
    pub fn hold(&mut self, frame: HeldFrame) {
        let held_max = self.snapshot.limits.neigh_held_frames_max.max(1) as usize;
        if self.held.len() >= held_max
            && let Some(oldest) = self.held.pop_front()
        {
            let verdict = Verdict::Drop(DropReason::NoNeighbour);
            self.account.settle(oldest.frames().into(), verdict);
        }
        self.held.push_back(frame);
    }
}

/// Frames that do not lie in the buffers they came in. The buffers are used again and again.
#[derive(Debug)]
pub struct Outbox {
    frames: Vec<OutFrame>,
    used: usize,
    frames_max: usize,
}

/// Where a frame in an outbox comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// We made it.
    #[default]
    Ours,
    /// It was received: when it has left, so many received frames have. Of the pieces of one packet
    /// the last one counts for all.
    Received(u32),
}

/// A frame in an outbox.
#[derive(Debug, Default)]
pub struct OutFrame {
    /// Port it leaves by.
    pub port: usize,
    /// The whole frame.
    pub bytes: Vec<u8>,
    /// What the device must still do.
    pub offload: Offload,
    /// Where it comes from.
    pub origin: Origin,
}

impl Outbox {
    /// An outbox for at most `frames_max` frames in one breath.
    pub fn new(frames_max: usize) -> Outbox {
        Outbox {
            frames: Vec::new(),
            used: 0,
            frames_max: frames_max.max(1),
        }
    }

    /// Adds a frame for `port` that `build` writes; false if this breath has made enough.
    pub fn add(&mut self, port: usize, build: impl FnOnce(&mut Vec<u8>)) -> bool {
        let Some(frame) = self.slot(port) else {
            return false;
        };
        build(&mut frame.bytes);
        true
    }

    /// Adds a frame for `port` that `build` writes and that stands for `frames` received ones; false if
    /// this breath has made enough.
    pub fn add_received(
        &mut self,
        port: usize,
        frames: u32,
        offload: Offload,
        build: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        self.add_cut(port, frames, |out| {
            build(out);
            offload
        })
    }

    /// The same where `build` says what is left to do with the frame.
    pub fn add_cut(
        &mut self,
        port: usize,
        frames: u32,
        build: impl FnOnce(&mut Vec<u8>) -> Offload,
    ) -> bool {
        let Some(frame) = self.slot(port) else {
            return false;
        };
        frame.offload = build(&mut frame.bytes);
        frame.origin = Origin::Received(frames);
        true
    }

    /// Is there room for so many frames more?
    pub fn has_room(&self, frames: usize) -> bool {
        self.used + frames <= self.frames_max
    }

    fn slot(&mut self, port: usize) -> Option<&mut OutFrame> {
        if self.used == self.frames_max {
            return None;
        }
        if self.used == self.frames.len() {
            self.frames.push(OutFrame::default());
        }
        let frame = &mut self.frames[self.used];
        self.used += 1;
        frame.port = port;
        frame.bytes.clear();
        (frame.offload, frame.origin) = (Offload::default(), Origin::Ours);
        Some(frame)
    }

    /// The frames of this breath.
    pub fn frames(&self) -> &[OutFrame] {
        &self.frames[..self.used]
    }

    /// They are sent.
    pub fn clear(&mut self) {
        self.used = 0;
    }
}

impl OutFrame {
    /// As a port's transmit half wants it.
    pub fn view(&self, raw_ip: bool) -> FrameView<'_> {
        FrameView {
            bytes: &self.bytes,
            offload: self.offload,
            raw_ip,
        }
    }
}
