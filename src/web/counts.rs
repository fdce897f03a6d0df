//! DoorCounts: what came to the control socket, and what was not served. Shared by all its clients.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::config::command::ControlRow;

/// Counters of the control socket since the director's start.
#[derive(Debug, Default)]
pub struct DoorCounts {
    connections: AtomicU64,
    http: AtomicU64,
    turned_away: AtomicU64,
    bad_requests: AtomicU64,
    hung: AtomicU64,
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

    /// What was sent could not be read, was too long, or asked for what there is not.
    pub fn bad_request(&self) {
        self.bad_requests.fetch_add(1, Relaxed);
    }

    /// Somebody neither sent nor took anything for too long.
    pub fn hung(&self) {
        self.hung.fetch_add(1, Relaxed);
    }

    /// For the listing.
    pub fn row(&self) -> ControlRow {
        ControlRow {
            connections: self.connections.load(Relaxed),
            http: self.http.load(Relaxed),
            turned_away: self.turned_away.load(Relaxed),
            bad_requests: self.bad_requests.load(Relaxed),
            hung: self.hung.load(Relaxed),
        }
    }
}
