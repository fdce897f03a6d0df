//! Schedulers: the rules that pick a real server for a new connection. A scheduler sees the service's
//! real servers and the flow, never a packet and never the table, so that each can be compared with
//! the kernel's pick by pick. Each reads as the textbook for its rule (`ip_vs_<name>.c`).
//!
//! `reals` is always in the kernel's order: the newest server first.

use std::net::IpAddr;

use crate::lvs::{Endpoint, Flow, RealServer, ServiceFlags, Tunables, Weight};
use crate::rng::Rng;
use crate::time::Instant;

mod cache;
mod hash;
mod note;
mod roll;

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

use note::of_equals;
pub use note::{About, Note};

/// What a scheduler may know of the new connection.
pub struct PickContext<'a> {
    /// Client to VIP.
    pub flow: Flow,
    /// The address that the schedulers go by that go by the target: the VIP; of an ICMP error that
    /// opens a connection, the target of the quoted packet, which is the client.
    pub target: IpAddr,
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
        "lblc" => Box::new(lblc::LocalityBased::new(reals)),
        "lblcr" => Box::new(lblcr::LocalityBasedReplicated::new(reals)),
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

/// Is all that this scheduler remembers a table made of the list of real servers? Then a fresh one is
/// as good as one that was told of the change, and can be made before anybody has to wait for it.
pub fn is_table(name: &str) -> bool {
    ["dh", "sh", "mh"].contains(&name)
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

    /// Its number in this list. Lists change server by server, so it is looked for from where it
    /// stood, outwards.
    fn find(self, reals: &[RealServer]) -> Option<usize> {
        let is_it = |real: &RealServer| real.live.id == self.id;
        let (before, behind) = reals.split_at(self.index.min(reals.len()));
        for distance in 0..before.len().max(behind.len()) {
            if behind.get(distance).is_some_and(is_it) {
                return Some(before.len() + distance);
            }
            let at = before.len().checked_sub(distance + 1);
            if let Some(at) = at.filter(|at| is_it(&before[*at])) {
                return Some(at);
            }
        }
        None
    }

    /// Number of the server behind `last`; the head if there is none.
    fn behind(last: Option<Place>, reals: &[RealServer]) -> usize {
        last.and_then(|last| last.find(reals))
            .map_or(0, |index| index + 1)
    }
}

/// Where a search that begins with number `start` of the list begins, for a story.
fn start_words(start: usize, reals: &[RealServer]) -> String {
    match start.checked_sub(1).and_then(|last| reals.get(last)) {
        Some(last) => format!("begin behind {}, chosen last", last.key),
        None => "begin at the head of the list".to_string(),
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
    let (index, least_load, least_weight) = least?;
    context.because(|| {
        let equal = |real: &&RealServer| {
            let weight = real.weight.0.unsigned_abs().into();
            real.usable() && !is_less(least_load, least_weight, load(real), weight)
        };
        of_equals("the least", reals.iter().filter(equal).count())
    });
    Some(index)
}

/// The eligible server with the highest weight; of equals the first in the list. `words` says for a
/// story what that is.
fn heaviest(
    reals: &[RealServer],
    context: &mut PickContext<'_>,
    eligible: fn(&RealServer) -> bool,
    words: &str,
) -> Option<usize> {
    let mut found: Option<(usize, Weight)> = None;
    for (index, real) in reals.iter().enumerate() {
        // The weight is at hand; what `eligible` asks for is in memory elsewhere.
        if found.is_none_or(|(_, weight)| real.weight > weight) && eligible(real) {
            found = Some((index, real.weight));
        }
    }
    let (index, heaviest) = found?;
    context.because(|| {
        let equal = |real: &&RealServer| eligible(real) && real.weight == heaviest;
        of_equals(words, reals.iter().filter(equal).count())
    });
    Some(index)
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

/// Who was hashed, for a story; port 0 was not.
fn client_words(source: Endpoint, port: u16) -> String {
    match port {
        0 => format!("client {}", source.address),
        port => format!("client {}, plus port {port}", source.address),
    }
}

/// How many slots of a table are this server's, for a story.
fn slots_of(slots: &[Place], real: &RealServer) -> usize {
    let its = |place: &&Place| place.id == real.live.id;
    slots.iter().filter(its).count()
}

/// Why the server of a slot is chosen that was looked at after so many others, for a story.
fn slot_words(others: usize) -> String {
    match others {
        0 => "whose slot it is".to_string(),
        _ => format!("whose slot is the first of {} that can be used", others + 1),
    }
}

/// Why nobody is chosen after so many slots, for a story.
fn no_slot_words(slots: usize) -> String {
    match slots {
        1 => "and there is no second choice".to_string(),
        _ => format!("in {slots} slots"),
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
