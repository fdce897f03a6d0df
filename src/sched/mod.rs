//! Schedulers: the rules that pick a real server for a new connection. A scheduler sees the service's
//! real servers and the flow, never a packet and never the table, so that each can be compared with
//! the kernel's pick by pick. Each reads as the textbook for its rule (`ip_vs_<name>.c`).
//!
//! `reals` is always in the kernel's order: the newest server first.

use crate::lvs::{Flow, RealServer, ServiceFlags, Tunables};
use crate::rng::Rng;
use crate::time::Instant;

mod cache;
mod hash;

pub mod dh;
pub mod fo;
pub mod lblc;
pub mod lblcr;
pub mod lc;
pub mod mh;
pub mod nq;
pub mod ovf;
pub mod rr;
pub mod sed;
pub mod sh;
pub mod twos;
pub mod wlc;
pub mod wrr;

/// What a scheduler may know of the new connection.
pub struct PickContext<'a> {
    /// Client to VIP.
    pub flow: Flow,
    /// Scheduler flags of the service.
    pub flags: ServiceFlags,
    /// The time, for the schedulers that forget.
    pub now: Instant,
    /// How long they remember.
    pub tunables: &'a Tunables,
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

    /// Notes that `slot` of a table belongs to server `index`, and whether that can be chosen.
    fn note_slot(&mut self, slot: u32, index: usize, real: &RealServer) {
        self.note(index, || format!("slot {slot}"));
        if !real.usable() {
            self.note_unusable(index, real);
        }
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
    Some(match name {
        "rr" => Box::new(rr::RoundRobin::default()),
        "wrr" => Box::new(wrr::WeightedRoundRobin::new(reals)),
        "lc" => Box::new(lc::LeastConnection),
        "wlc" => Box::new(wlc::WeightedLeastConnection),
        "lblc" => Box::new(lblc::LocalityBased::default()),
        "lblcr" => Box::new(lblcr::LocalityBasedReplicated::default()),
        "dh" => Box::new(dh::DestinationHash::new(reals)),
        "sh" => Box::new(sh::SourceHash::new(reals)),
        "sed" => Box::new(sed::ShortestExpectedDelay),
        "nq" => Box::new(nq::NeverQueue),
        "fo" => Box::new(fo::Failover),
        "ovf" => Box::new(ovf::Overflow),
        "mh" => Box::new(mh::MaglevHash::new(reals)),
        "twos" => Box::new(twos::PowerOfTwo),
        _ => return None,
    })
}

/// Names of all schedulers that `by_name` knows.
pub const NAMES: [&str; 14] = [
    "rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos",
];

/// The load that lc and wlc compare: 256 times the active connections plus the inactive ones. Kernels
/// up to 6.1 (the recorded ones) count like this; newer ones use 257 times active.
pub fn overhead(real: &RealServer) -> u64 {
    u64::from(real.active()) * 256 + u64::from(real.inactive())
}

/// The sum of [`overhead`] for a story: `2*256 + 1`.
fn overhead_words(real: &RealServer) -> String {
    format!("{}*256 + {}", real.active(), real.inactive())
}

/// Where a server stood in the list when it was remembered, and who it is: lists change, and for a
/// moment workers may look at different ones.
#[derive(Clone, Copy, Debug)]
struct Place {
    index: usize,
    /// `RealLive::id`.
    id: u32,
}

impl Place {
    fn of((index, real): (usize, &RealServer)) -> Place {
        let id = real.live.id;
        Place { index, id }
    }

    /// A server whose number is not known.
    fn of_id(id: u32) -> Place {
        Place { index: 0, id }
    }

    /// Its number in this list.
    fn find(self, reals: &[RealServer]) -> Option<usize> {
        let is_it = |real: &RealServer| real.live.id == self.id;
        match reals.get(self.index) {
            Some(real) if is_it(real) => Some(self.index),
            _ => reals.iter().position(is_it),
        }
    }

    /// Number of the server behind `last`; the head if there is none.
    fn behind(last: Option<Place>, reals: &[RealServer]) -> usize {
        last.and_then(|last| last.find(reals))
            .map_or(0, |index| index + 1)
    }
}

/// The usable server with the least `load` divided by its weight; of equals the first in the list.
/// The quotients are compared crosswise, so nothing is rounded. `words` spells the load for a story.
fn least_per_weight(
    reals: &[RealServer],
    context: &mut PickContext<'_>,
    load: fn(&RealServer) -> u64,
    words: fn(&RealServer) -> String,
) -> Option<usize> {
    let mut least: Option<(usize, u64, u64)> = None;
    for (index, real) in reals.iter().enumerate() {
        if !real.usable() {
            context.note_unusable(index, real);
            continue;
        }
        let (load, weight) = (load(real), real.weight.0.unsigned_abs().into());
        context.note(index, || {
            format!("({})/{weight} = {}", words(real), quotient(load, weight))
        });
        if least.is_none_or(|(_, least_load, least_weight)| {
            is_less(load, weight, least_load, least_weight)
        }) {
            least = Some((index, load, weight));
        }
    }
    least.map(|(index, ..)| index)
}

/// The eligible server with the highest weight; of equals the first in the list.
fn heaviest(reals: &[RealServer], eligible: fn(&RealServer) -> bool) -> Option<usize> {
    let numbered = reals.iter().enumerate();
    let eligible = numbered.filter(|(_, real)| eligible(real));
    // Of equals `max_by_key` takes the last, hence from the end.
    let heaviest = eligible.rev().max_by_key(|(_, real)| real.weight);
    heaviest.map(|(index, _)| index)
}

/// Is `load_a/weight_a` less than `load_b/weight_b`?
fn is_less(load_a: u64, weight_a: u64, load_b: u64, weight_b: u64) -> bool {
    u128::from(load_a) * u128::from(weight_b) < u128::from(load_b) * u128::from(weight_a)
}

/// `load/weight` for people: whole if it is, else with two places.
fn quotient(load: u64, weight: u64) -> String {
    match load.checked_rem(weight) {
        Some(0) => (load / weight).to_string(),
        _ => format!("{:.2}", load as f64 / weight as f64),
    }
}

/// Greatest common divisor (Euclid); of 0 and `b` it is `b`.
fn greatest_common_divisor(a: i32, b: i32) -> i32 {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests;
