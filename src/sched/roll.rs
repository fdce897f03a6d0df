//! Roll: who is in a service's list of real servers, for the schedulers that remember servers for a
//! long time. Whoever is gone for good would be searched for in the whole list at every look.

use super::{Change, Place};
use crate::lvs::RealServer;

/// The ids of the servers in the list, in ascending order.
#[derive(Debug, Default)]
pub struct Roll {
    ids: Vec<u32>,
}

impl Roll {
    /// Everybody in this list.
    pub fn new(reals: &[RealServer]) -> Roll {
        let mut ids: Vec<u32> = reals.iter().map(|real| real.live.id).collect();
        ids.sort_unstable();
        Roll { ids }
    }

    /// The list changed, and is `reals` now.
    pub fn changed(&mut self, reals: &[RealServer], change: Change) {
        match change {
            Change::Added => {
                let newcomer = reals.first().map(|real| real.live.id);
                if let Some(id) = newcomer
                    && let Err(at) = self.ids.binary_search(&id)
                {
                    self.ids.insert(at, id);
                }
            }
            Change::Removed { id, .. } => {
                if let Ok(at) = self.ids.binary_search(&id) {
                    self.ids.remove(at);
                }
            }
            Change::Edited => {}
        }
    }

    /// Number of this server in the list, if it is there.
    pub fn find(&self, place: Place, reals: &[RealServer]) -> Option<usize> {
        let stays = |real: &RealServer| real.live.id == place.id;
        if reals.get(place.index).is_some_and(stays) {
            return Some(place.index);
        }
        self.ids.binary_search(&place.id).ok()?;
        place.find(reals)
    }
}
