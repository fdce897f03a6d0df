//! Destination hashing (`ip_vs_dh.c`): one target address, one server; made for caches in front of
//! the net, where the target is not the VIP.
//!
//! The target's address is hashed to one of 256 slots. The slots are dealt out to the servers in
//! turn, from the head of the list and round and round, whatever their weights. When the server of the
//! slot is not usable, nobody is chosen: there is no second choice. Adding or removing a server deals
//! anew.
//!
//! A story tells the hash, the slot and how many slots its server has.

use super::hash::{fold, hash_32, hash_32_words};
use super::{Change, PickContext, Place, Scheduler};
use crate::lvs::RealServer;

/// Slots are 2 to this power (`CONFIG_IP_VS_DH_TAB_BITS`).
const SLOTS_BITS: u32 = 8;

/// Remembers whose each slot is.
#[derive(Debug)]
pub struct DestinationHash {
    /// Empty when there is no server.
    slots: Vec<Place>,
}

impl DestinationHash {
    /// Slots dealt out to `reals`.
    pub fn new(reals: &[RealServer]) -> DestinationHash {
        DestinationHash { slots: deal(reals) }
    }
}

impl Scheduler for DestinationHash {
    fn name(&self) -> &'static str {
        "dh"
    }

    fn changed(&mut self, reals: &[RealServer], change: Change) {
        match change {
            Change::Added | Change::Removed { .. } => self.slots = deal(reals),
            Change::Edited => {}
        }
    }

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let target = context.target;
        let value = fold(target);
        let slot = hash_32(value, SLOTS_BITS);
        context.remark(|| hash_32_words(&format!("target {target}"), value, SLOTS_BITS, slot));
        let index = self.slots.get(slot as usize)?.find(reals)?;
        let usable = reals[index].usable();
        context.remark(|| {
            let (servers, number) = (reals.len(), slot as usize % reals.len());
            format!(
                "dealt out to {servers} servers: {slot} mod {servers} = {number} behind the head"
            )
        });
        let of = || super::slots_of(&self.slots, &reals[index]);
        context.note_slot(slot, index, &reals[index], of);
        context.because(|| match usable {
            true => super::slot_words(0),
            false => super::no_slot_words(1),
        });
        usable.then_some(index)
    }
}

/// One slot for each server in turn until all are dealt out.
fn deal(reals: &[RealServer]) -> Vec<Place> {
    let places = reals.iter().enumerate().map(Place::of);
    places.cycle().take(1 << SLOTS_BITS).collect()
}
