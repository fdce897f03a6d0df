//! DoorCounts: what came to the control socket, and what was not served. Shared by all its clients.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::config::command::ControlRow;

/// Counters of the control socket since the director's start.
#[derive(Debug, Default)]
pub struct DoorCounts {
    connections: AtomicU64,
    http: AtomicU64,
    turned_away: AtomicU64,
    yielded: AtomicU64,
    bad_requests: AtomicU64,
    hung: AtomicU64,
    late: AtomicU64,
    no_memory: AtomicU64,
    too_long: AtomicU64,
}

impl DoorCounts {
    /// Somebody connected.
    pub fn connected(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    /// And speaks HTTP.
    pub fn speaks_http(&self) {
        self.http.fetch_add(1, Relaxed);
    }

    /// There was no room, or no right.
    pub fn turned_away(&self) {
        self.turned_away.fetch_add(1, Relaxed);
    }

    /// An idle client made room for another one.
    pub fn yielded(&self) {
        self.yielded.fetch_add(1, Relaxed);
    }

    /// What was sent could not be read, was too long, or asked for what there is not.
    pub fn bad_request(&self) {
        self.bad_requests.fetch_add(1, Relaxed);
    }

    /// Somebody neither sent nor took anything for too long.
    pub fn hung(&self) {
        self.hung.fetch_add(1, Relaxed);
    }

    /// A worker did not answer in time.
    pub fn late(&self) {
        self.late.fetch_add(1, Relaxed);
    }

    /// A bound of the director was reached.
    pub fn no_memory(&self) {
        self.no_memory.fetch_add(1, Relaxed);
    }

    /// An answer was longer than any may be.
    pub fn too_long(&self) {
        self.too_long.fetch_add(1, Relaxed);
    }

    /// For the listing.
    pub fn row(&self) -> ControlRow {
        ControlRow {
            connections: self.connections.load(Relaxed),
            http: self.http.load(Relaxed),
            turned_away: self.turned_away.load(Relaxed),
            bad_requests: self.bad_requests.load(Relaxed),
            hung: self.hung.load(Relaxed),
            yielded: self.yielded.load(Relaxed),
            late: self.late.load(Relaxed),
            no_memory: self.no_memory.load(Relaxed),
            too_long: self.too_long.load(Relaxed),
        }
    }
}
