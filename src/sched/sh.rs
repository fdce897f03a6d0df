//! Source hashing (`ip_vs_sh.c`): one client, one server.
//!
//! The client's address (with flag `sh-port` its port too) is hashed to one of 256 slots. The slots
//! are dealt out to the servers from the head of the list and round and round, to each as many in a
//! row as its weight; a quiesced server still gets one. Any change of the list deals anew.
//!
//! When the server of the slot is not usable, nobody is chosen. With flag `sh-fallback` all slots are
//! tried, one after the other, beginning at twice the number of the one that failed.
//!
//! A story tells the hash, the slots that were looked at, and how many slots their servers have.

use super::hash::{fold, hash_32, hash_32_words};
use super::{Change, PickContext, Place, Scheduler};
use crate::lvs::{RealServer, ServiceFlags};

/// Slots are 2 to this power (`CONFIG_IP_VS_SH_TAB_BITS`).
const SLOTS_BITS: u32 = 8;
const SLOTS: u32 = 1 << SLOTS_BITS;

/// Remembers whose each slot is.
#[derive(Debug)]
pub struct SourceHash {
    /// Empty when there is no server.
    slots: Vec<Place>,
}

impl SourceHash {
    /// Slots dealt out to `reals`.
    pub fn new(reals: &[RealServer]) -> SourceHash {
        SourceHash { slots: deal(reals) }
    }
}

impl Scheduler for SourceHash {
    fn name(&self) -> &'static str {
        "sh"
    }

    fn changed(&mut self, reals: &[RealServer], _change: Change) {
        self.slots = deal(reals);
    }

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let source = context.flow.source;
        let port = if context.flags.has(ServiceFlags::SCHED_2) {
            source.port
        } else {
            0
        };
        let value = fold(source.address).wrapping_add(port.into());
        let hash = hash_32(value, SLOTS_BITS);
        context
            .remark(|| hash_32_words(&super::client_words(source, port), value, SLOTS_BITS, hash));
        let fallback = context.flags.has(ServiceFlags::SCHED_1);
        let others = (0..if fallback { SLOTS } else { 0 }).map(|step| {
            let offset = (step + hash) % SLOTS;
            (hash + offset) % SLOTS
        });
        for (looked, slot) in [hash].into_iter().chain(others).enumerate() {
            let index = self.slots.get(slot as usize)?.find(reals)?;
            let usable = reals[index].usable();
            let of = || super::slots_of(&self.slots, &reals[index]);
            context.note_slot(slot, index, &reals[index], of);
            if usable {
                context.because(|| super::slot_words(looked));
                return Some(index);
            }
            if fallback && looked == 0 {
                let next = 2 * hash % SLOTS;
                context.remark(|| format!("fallback: from slot 2*{hash} mod {SLOTS} = {next} on"));
            }
        }
        let slots = if fallback { SLOTS as usize + 1 } else { 1 };
        context.because(|| super::no_slot_words(slots));
        None
    }
}

/// As many slots in a row as its weight, at least one, for each server in turn until all are dealt
/// out.
fn deal(reals: &[RealServer]) -> Vec<Place> {
    let turns = reals.iter().enumerate().flat_map(|(index, real)| {
        let slots = real.weight.0.clamp(1, SLOTS as i32) as usize;
        std::iter::repeat_n(Place::of((index, real)), slots)
    });
    turns.cycle().take(SLOTS as usize).collect()
}
