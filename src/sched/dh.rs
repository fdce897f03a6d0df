//! Destination hashing (`ip_vs_dh.c`): one target address, one server; made for caches in front of
//! the net, where the target is not the VIP.
//!
//! The target's address is hashed to one of 256 slots. The slots are dealt out to the servers in
//! turn, from the head of the list and round and round, whatever their weights. When the server of the
//! slot is not usable, nobody is chosen: there is no second choice. Adding or removing a server deals
//! anew.
//!
//! A story tells the slot.

use super::hash::{fold, hash_32};
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
        let slot = hash_32(fold(context.flow.target.address), SLOTS_BITS);
        let index = self.slots.get(slot as usize)?.find(reals)?;
        let usable = reals[index].usable();
        context.note_slot(slot, index, &reals[index]);
        usable.then_some(index)
    }
}

/// One slot for each server in turn until all are dealt out.
fn deal(reals: &[RealServer]) -> Vec<Place> {
    let places = reals.iter().enumerate().map(Place::of);
    places.cycle().take(1 << SLOTS_BITS).collect()
}
