//! WholeTuples: entries that the table's own hash, that of the client's end, does not lead to, or leads
//! to in too many at once. Those of full NAT are found here by their out-key, whose client is the
//! director; masqueraded ones by both keys, since fifty thousand of them may have one far end. The
//! table looks here last, and only if there is anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use dashmap::{DashMap, SharedValue};

use super::direction::Direction;
use super::entry::Conn;
use super::table::Ready;
use crate::lvs::Tuple;

/// Shards, as many as the table has.
const SHARDS: usize = 256;
/// A shard with more room than this gives memory back once it is seven eighths empty.
const SHARD_KEEP: usize = 1024;

/// Entries by whole tuples.
#[derive(Debug)]
pub(super) struct WholeTuples {
    /// The hash is that of the tuple in the place's direction, so an entry's own tells which it is.
    map: DashMap<(), Place, Ready>,
    len: AtomicUsize,
}

#[derive(Debug)]
struct Place {
    direction: Direction,
    conn: Arc<Conn>,
}

impl Place {
    fn tuple(&self) -> Tuple {
        self.conn.tuple(self.direction)
    }
}

impl WholeTuples {
    pub fn new() -> WholeTuples {
        WholeTuples {
            map: DashMap::with_hasher_and_shard_amount(Ready, SHARDS),
            len: AtomicUsize::new(0),
        }
    }

    /// Keys that are taken.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// The entry with this key, and which of its keys it is.
    pub fn find(&self, tuple: &Tuple, seed: u64) -> Option<(Arc<Conn>, Direction)> {
        if self.len() == 0 {
            return None;
        }
        let hash = tuple.hash(seed);
        let shard = self.map.shards()[self.map.determine_shard(hash as usize)].read();
        let (_, found) = shard.get(hash, |(_, place)| place.get().tuple() == *tuple)?;
        let place = found.get();
        Some((Arc::clone(&place.conn), place.direction))
    }

    /// Takes a key of this entry.
    ///
    /// # Errors
    /// The entry that has it already.
    pub fn claim(
        &self,
        conn: &Arc<Conn>,
        direction: Direction,
        seed: u64,
    ) -> Result<(), Arc<Conn>> {
        let tuple = conn.tuple(direction);
        let hash = tuple.hash(seed);
        let mut shard = self.map.shards()[self.map.determine_shard(hash as usize)].write();
        if let Some((_, other)) = shard.get(hash, |(_, place)| place.get().tuple() == tuple) {
            return Err(Arc::clone(&other.get().conn));
        }
        let place = Place {
            direction,
            conn: Arc::clone(conn),
        };
        shard.insert(hash, ((), SharedValue::new(place)), |(_, place)| {
            place.get().tuple().hash(seed)
        });
        self.len.fetch_add(1, Relaxed);
        Ok(())
    }

    /// Gives a key of this entry back; false if it had not taken it.
    pub fn release(&self, conn: &Arc<Conn>, direction: Direction, seed: u64) -> bool {
        let hash = conn.tuple(direction).hash(seed);
        let mut shard = self.map.shards()[self.map.determine_shard(hash as usize)].write();
        let mine = |(_, place): &((), SharedValue<Place>)| {
            let place = place.get();
            Arc::ptr_eq(&place.conn, conn) && place.direction == direction
        };
        let released = shard.remove_entry(hash, mine).is_some();
        if released && shard.capacity() > SHARD_KEEP && shard.len() * 8 < shard.capacity() {
            let keep = shard.len() * 2;
            shard.shrink_to(keep, |(_, place)| place.get().tuple().hash(seed));
        }
        drop(shard);
        if released {
            self.len.fetch_sub(1, Relaxed);
        }
        released
    }

    /// Shows every entry whose key in this direction is here.
    pub fn for_each(&self, direction: Direction, mut look: impl FnMut(&Arc<Conn>)) {
        for entry in self.map.iter() {
            let place = entry.value();
            if place.direction == direction {
                look(&place.conn);
            }
        }
    }
}
