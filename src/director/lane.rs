//! Lane: what one worker alone owns. Split in two, so that an entry found in the index can be used
//! while everything else is changed.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;

use super::neigh::{NeighbourCache, Neighbours};
use super::snapshot::Snapshot;
use super::verdict::{Account, DropReason};
use crate::conn::{Defences, Index, Wheel};
use crate::rng::Rng;
use crate::sched::Note;
use crate::time::Instant;
use crate::wire::{FrameView, Offload};

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
    /// Frames that wait for a MAC address.
    pub held: VecDeque<HeldFrame>,
    /// What all workers know of their neighbours.
    pub neighbours: Arc<Neighbours>,
    /// What this worker remembers of them.
    pub cache: NeighbourCache,
    /// Chance.
    pub rng: Rng,
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
        defences: Arc<Defences>,
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
            held: VecDeque::new(),
            neighbours,
            defences,
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
    /// Its offload.
    pub offload: Offload,
}

impl Own {
    /// An identification that this worker gives to no other IPv4 packet for a long time (RFC 6864): all
    /// others come first.
    pub fn next_ident(&mut self) -> u16 {
        self.ident = self.ident.wrapping_add(1);
        self.ident
    }

    /// Lets a frame wait; the one that waited longest makes room for it.
    pub fn hold(&mut self, frame: HeldFrame) {
        if self.held.len() >= self.snapshot.limits.neigh_held_frames_max.max(1) as usize {
            self.held.pop_front();
            self.account.held -= 1;
            self.account.dropped[DropReason::NoNeighbour as usize] += 1;
        }
        self.held.push_back(frame);
    }
}

/// Frames of our own making. The buffers are used again and again.
#[derive(Debug)]
pub struct Outbox {
    frames: Vec<OutFrame>,
    used: usize,
    frames_max: usize,
}

/// A frame of our own making.
#[derive(Debug, Default)]
pub struct OutFrame {
    /// Port it leaves by.
    pub port: usize,
    /// The whole frame.
    pub bytes: Vec<u8>,
    /// What the device must still do.
    pub offload: Offload,
    /// It was received, not made: it waited for a MAC address.
    pub was_held: bool,
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

    /// Adds a frame that waited; false if this breath has made enough.
    pub fn add_held(&mut self, port: usize, bytes: &[u8], offload: Offload) -> bool {
        let Some(frame) = self.slot(port) else {
            return false;
        };
        frame.bytes.extend_from_slice(bytes);
        (frame.offload, frame.was_held) = (offload, true);
        true
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
        (frame.offload, frame.was_held) = (Offload::default(), false);
        Some(frame)
    }

    /// The frames made in this breath.
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
