//! Schedulers: the rules that pick a real server for a new connection. A scheduler sees the service's
//! real servers and the flow, never a packet and never the table, so that each can be compared with
//! the kernel's pick by pick. Each reads as the textbook for its rule (`ip_vs_<name>.c`).
//!
//! `reals` is always in the kernel's order: the newest server first.

use crate::lvs::{Flow, RealServer, ServiceFlags};
use crate::rng::Rng;

/// What a scheduler may know of the new connection.
pub struct PickContext<'a> {
    /// Client to VIP.
    pub flow: Flow,
    /// Scheduler flags of the service.
    pub flags: ServiceFlags,
    /// Chance, for the schedulers that want it.
    pub rng: &'a mut Rng,
    /// Takes the numbers that were compared, when a story is told.
    pub notes: Option<&'a mut Vec<Note>>,
}

/// One real server as the scheduler weighed it, for the story of a pick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Number of the server in `reals`.
    pub index: usize,
    /// What was computed or why it was passed over, in the scheduler's own terms:
    /// `(2*256 + 0)/1 = 512`, `weight 0`, `overloaded`.
    pub text: String,
}

impl PickContext<'_> {
    /// Notes `text` about server `index`; the text is only made when somebody listens.
    pub fn note(&mut self, index: usize, text: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            notes.push(Note {
                index,
                text: text(),
            });
        }
    }

    /// Notes why a server that is not usable was passed over.
    pub fn note_unusable(&mut self, index: usize, real: &RealServer) {
        let why = if real.overloaded() {
            "overloaded"
        } else {
            "weight 0"
        };
        self.note(index, || why.to_string());
    }
}

/// How a service's list of real servers changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The server at the head (number 0) is new.
    Added,
    /// A server's weight, method or limits changed.
    Edited,
    /// The server with this id is gone; `before` is the id of the one that stood before it in the
    /// list, `None` if it was the head.
    Removed {
        /// Its `RealLive::id`.
        id: u32,
        /// The id of its predecessor.
        before: Option<u32>,
    },
}

/// A rule that picks. It is called for new connections only, under a lock of its service.
pub trait Scheduler: Send + std::fmt::Debug {
    /// The name ipvsadm knows.
    fn name(&self) -> &'static str;

    /// The list changed; `reals` is the new one. Called once for every change (`add_dest`,
    /// `upd_dest`, `del_dest` of the kernel's `struct ip_vs_scheduler`).
    fn changed(&mut self, reals: &[RealServer], change: Change);

    /// The number of the chosen server in `reals`, or `None` when nobody can be chosen.
    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize>;
}

/// A fresh scheduler for a service that has these real servers (`init_service`); `None` for a name
/// that is not known.
pub fn by_name(name: &str, reals: &[RealServer]) -> Option<Box<dyn Scheduler>> {
    let _ = (name, reals);
    None
}

/// Names of all schedulers that `by_name` knows.
pub const NAMES: [&str; 0] = [];

/// The load that lc and wlc compare: 256 times the active connections plus the inactive ones. Kernels
/// up to 6.1 (the recorded ones) count like this; newer ones use 257 times active.
pub fn overhead(real: &RealServer) -> u64 {
    u64::from(real.active()) * 256 + u64::from(real.inactive())
}
