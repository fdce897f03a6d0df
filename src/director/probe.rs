//! Trace points in the packet path. `Off` costs nothing: the compiler removes the calls. `Teller` turns
//! the same points into the story of a packet.

use std::net::IpAddr;

use crate::conn::{Conn, Direction, State};
use crate::lvs::{Flow, RealServer};
use crate::sched::Note;
use crate::wire::Mac;

use super::snapshot::{Port, Service};
use super::verdict::Verdict;

/// What happened to a packet at a numbered point of `docs/architecture.md`, section 5.
#[derive(Debug)]
pub enum Step<'a> {
    /// A frame came in.
    Arrived {
        /// Where.
        port: &'a Port,
        /// What it is, in one line (`wire::text`).
        text: String,
    },
    /// It belongs to this connection.
    Found {
        /// The entry.
        conn: &'a Conn,
        /// Which way the packet goes.
        direction: Direction,
    },
    /// No connection; this service takes new ones.
    Service {
        /// The service.
        service: &'a Service,
    },
    /// The scheduler looked at the real servers.
    Pick {
        /// The scheduler's name.
        scheduler: &'a str,
        /// Who was there to choose from.
        reals: &'a [RealServer],
        /// What it compared.
        notes: &'a [Note],
        /// Whom it chose.
        chosen: Option<usize>,
    },
    /// The state moved (or stayed) and the deadline started anew.
    State {
        /// State before the packet.
        from: State,
        /// State after it.
        to: State,
        /// Seconds until the entry expires.
        expires_s: u64,
    },
    /// The packet as it was rewritten.
    Rewritten {
        /// The entry that said how.
        conn: &'a Conn,
        /// Which way.
        direction: Direction,
        /// The flow before and after.
        before: Flow,
        /// See `before`.
        after: Flow,
        /// TTL now.
        ttl: u8,
        /// What was done about the transport checksum.
        checksum: &'static str,
    },
    /// It leaves.
    Sent {
        /// By this port.
        port: &'a Port,
        /// To this neighbour.
        next_hop: IpAddr,
        /// Who has this MAC address.
        mac: Mac,
    },
    /// Something worth a word: an answer, a hold, an expiry.
    Said(String),
    /// The end of its story.
    Ended(Verdict),
}

/// Something that listens at the trace points.
pub trait Probe {
    /// Does it listen at all? A constant, so that the silent case is compiled away.
    const ON: bool;

    /// This happened.
    fn step(&mut self, step: Step<'_>);
}

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Off;

impl Probe for Off {
    const ON: bool = false;
    #[inline(always)]
    fn step(&mut self, _: Step<'_>) {}
}
