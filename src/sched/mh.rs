//! Maglev hashing (`ip_vs_mh.c`; Eisenbud and others, NSDI 2016): one client, one server, and few
//! clients change theirs when servers come and go.
//!
//! A table of 4093 slots, a prime. Each server has an order of its own in which it would like to have
//! the slots: from a start on in steps of a skip, both hashes of its address and port. The servers
//! take turns from the head of the list, and in a turn one claims as many free slots as its share of
//! the weights, until all are taken. The client's address (with flag `mh-port` its port too) is hashed
//! to a slot. When its server is not usable, nobody is chosen; with flag `mh-fallback` the hash is
//! repeated with other offsets.
//!
//! Shares come from the last weights that were not 0: a quiesced server keeps its slots, so that its
//! clients come back to it. A server that never had a weight has none.
//!
//! A story tells the hash, the slots that were looked at, and how many slots their servers have.

use super::hash::{fold, siphash_1_3};
use super::{Change, PickContext, Place, Scheduler, greatest_common_divisor};
use crate::lvs::{Endpoint, RealServer, ServiceFlags};

/// Slots: the prime below 2 to the power of 12 (`CONFIG_IP_VS_MH_TAB_INDEX`).
const SLOTS: u32 = 4093;

/// Shares are cut to half as many bits as the table has, so that a turn stays short.
const SHARE_BITS: u32 = 12 / 2;

/// Keys of the two hash functions, from the kernel.
const KEY_1: u64 = 2_654_435_761;
const KEY_2: u64 = 2_654_446_892;

/// Remembers whose each slot is.
#[derive(Debug)]
pub struct MaglevHash {
    /// Empty when no server ever had a weight.
    slots: Vec<Place>,
}

impl MaglevHash {
    /// Slots claimed by `reals`.
    pub fn new(reals: &[RealServer]) -> MaglevHash {
        MaglevHash {
            slots: populate(reals),
        }
    }
}

impl Scheduler for MaglevHash {
    fn name(&self) -> &'static str {
        "mh"
    }

    fn changed(&mut self, reals: &[RealServer], _change: Change) {
        self.slots = populate(reals);
    }

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let source = context.flow.source;
        let port = if context.flags.has(ServiceFlags::SCHED_2) {
            source.port
        } else {
            0
        };
        let client = fold(source.address).wrapping_add(port.into());
        let slot = slot_of(client);
        context.remark(|| {
            let who = super::client_words(source, port);
            format!("{who}: SipHash-1-3 of {client:#x} mod {SLOTS} = slot {slot} of {SLOTS}")
        });
        let fallback = context.flags.has(ServiceFlags::SCHED_1);
        let others = (0..if fallback { SLOTS } else { 0 }).map(|step| {
            let offset = (step + slot) % SLOTS;
            slot_of(client.wrapping_add(offset))
        });
        for (looked, slot) in [slot].into_iter().chain(others).enumerate() {
            let index = self.slots.get(slot as usize)?.find(reals)?;
            let usable = reals[index].usable();
            let of = || super::slots_of(&self.slots, &reals[index]);
            context.note_slot(slot, index, &reals[index], of);
            if usable {
                context.because(|| super::slot_words(looked));
                return Some(index);
            }
            if fallback && looked == 0 {
                context.remark(|| {
                    let next = (slot + 1) % SLOTS;
                    format!("fallback: hashed again with {slot} added, then {next}, ...")
                });
            }
        }
        let slots = if fallback { SLOTS as usize + 1 } else { 1 };
        context.because(|| super::no_slot_words(slots));
        None
    }
}

fn slot_of(value: u32) -> u32 {
    siphash_1_3(value, KEY_1) % SLOTS
}

/// Lets the servers claim the slots in turns.
fn populate(reals: &[RealServer]) -> Vec<Place> {
    let claims = turns(reals);
    if claims.iter().all(|claims| *claims == 0) {
        return Vec::new();
    }
    let mut slots: Vec<Option<Place>> = vec![None; SLOTS as usize];
    let mut walks: Vec<Walk> = reals.iter().map(|real| Walk::new(real.key.0)).collect();
    let mut free = SLOTS;
    while free > 0 {
        for (index, claims) in claims.iter().enumerate() {
            for _ in 0..(*claims).min(free) {
                let slot = walks[index].next_free(&slots);
                slots[slot] = Some(Place::of((index, &reals[index])));
                free -= 1;
            }
        }
    }
    slots.into_iter().flatten().collect()
}

/// How many slots each server claims in a turn.
fn turns(reals: &[RealServer]) -> Vec<u32> {
    let weights = reals.iter().map(|real| real.last_weight.0);
    let divisor = weights.clone().fold(0, greatest_common_divisor).max(1);
    let largest = weights.clone().max().unwrap_or(0) / divisor;
    let shift = (i32::BITS - largest.leading_zeros()).saturating_sub(SHARE_BITS);
    let turn = |weight: i32| match weight {
        0 => 0,
        weight => ((weight / divisor) >> shift).max(1).unsigned_abs(),
    };
    weights.map(turn).collect()
}

/// The order in which a server would like to have the slots.
struct Walk {
    at: u32,
    skip: u32,
}

impl Walk {
    fn new(server: Endpoint) -> Walk {
        let value = fold(server.address).wrapping_add(server.port.into());
        Walk {
            at: slot_of(value),
            skip: siphash_1_3(value, KEY_2) % (SLOTS - 1) + 1,
        }
    }

    /// The next free slot of this order; there must be one.
    fn next_free(&mut self, slots: &[Option<Place>]) -> usize {
        while slots[self.at as usize].is_some() {
            self.at = (self.at + self.skip) % SLOTS;
        }
        self.at as usize
    }
}

#[cfg(test)]
mod tests {
    use super::{SLOTS, Walk, populate};
    use crate::lvs::Endpoint;
    use crate::sched::tests::Bench;

    #[test]
    fn starts_and_skips() {
        let walk = |last: u8| {
            let walk = Walk::new(Endpoint::new([10, 0, 0, last].into(), 80));
            (walk.at, walk.skip)
        };
        assert_eq!(walk(100), (3042, 3353));
        assert_eq!(walk(101), (2230, 127));
        assert_eq!(walk(102), (2016, 1188));
    }

    /// Slots of A, B, C, …
    fn shares(weights: &[i32]) -> Vec<usize> {
        let slots = populate(&Bench::new("mh", weights).reals);
        let ids = 0..weights.len() as u32;
        ids.map(|id| slots.iter().filter(|place| place.id == id).count())
            .collect()
    }

    #[test]
    fn slots_in_proportion() {
        assert_eq!(shares(&[2, 1, 1]), [2046, 1023, 1024]);
        assert_eq!(shares(&[5]), [SLOTS as usize]);
        assert_eq!(shares(&[0, 7]), [0, SLOTS as usize]);
        assert_eq!(shares(&[0, 0]), [0, 0]);
        // The largest share is cut to six bits, the smallest stays at one slot a turn.
        let shares = shares(&[i32::MAX, 1]);
        assert_eq!(shares[0] + shares[1], SLOTS as usize);
        assert_eq!(shares[1], (SLOTS as usize).div_ceil(64));
    }
}
