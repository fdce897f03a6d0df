//! ConnTable: the shared truth about all connections, sharded. The only file that knows dashmap, and
//! no guard of it leaves this file. Like the kernel's table it is hashed by the client's end alone, so
//! one entry serves both directions (`ip_vs_conn_hash`).

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dashmap::{DashMap, SharedValue};
use foldhash::fast::FixedState;

use super::defence::{Defences, ENTRIES_PER_PAGE};
use super::direction::Direction;
use super::entry::Conn;
use super::helped::Helped;
use super::template::EngineData;
use super::whole::WholeTuples;
use crate::lvs::ForwardMethod;
use crate::lvs::tuple::Tuple;

/// Shards of a table of this many entries. Growing one moves all of its entries in one go, each a cache
/// miss (the others go on): at no more than a thousand or two of them that stays far under a millisecond.
/// A shard without entries costs a cache line or two.
fn shards(len_max: usize) -> usize {
    (len_max / 1024)
        .next_power_of_two()
        .clamp(SHARDS_MIN, SHARDS_MAX)
}

const SHARDS_MIN: usize = 256;
const SHARDS_MAX: usize = 8192;
/// A shard with more room than this gives memory back once it is seven eighths empty.
const SHARD_KEEP: usize = 1024;

/// All connection entries.
#[derive(Debug)]
pub struct ConnTable {
    /// The key says nothing: an entry knows its own, and eight bytes for each are saved.
    map: DashMap<(), Arc<Conn>, Ready>,
    seed: u64,
    len: AtomicUsize,
    len_max: usize,
    refused: AtomicU64,
    defences: Arc<Defences>,
    /// What persistence engines added to templates' keys, by the entry's address: next to no entry has
    /// such data, so none has a field for it.
    engine: Mutex<EngineMap>,
    /// What application helpers remember, likewise.
    helped: Mutex<HashMap<usize, Helped, FixedState>>,
    /// Entries whose client's port is not known yet.
    awaiting: AtomicUsize,
    /// What is found by a whole tuple: the out-keys of full NAT, both keys of masqueraded entries.
    whole: WholeTuples,
    /// Masqueraded entries: they are in `whole` alone and count apart.
    masqueraded: AtomicUsize,
}

type EngineMap = HashMap<usize, EngineData, FixedState>;

/// The table holds `conn_entries_max` entries already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableFull;

/// Why an entry whose key the director itself chooses was not entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There are as many entries as there may be; it is counted.
    Full,
    /// Another entry has this key: choose another port.
    Taken,
}

impl From<TableFull> for Refused {
    fn from(_: TableFull) -> Refused {
        Refused::Full
    }
}

impl ConnTable {
    /// A table for at most `len_max` entries; `seed` makes its hashing its own.
    pub fn new(len_max: usize, seed: u64) -> ConnTable {
        ConnTable {
            map: DashMap::with_hasher_and_shard_amount(Ready, shards(len_max)),
            seed,
            len: AtomicUsize::new(0),
            len_max,
            refused: AtomicU64::new(0),
            defences: Arc::default(),
            engine: Mutex::new(HashMap::with_hasher(FixedState::with_seed(seed))),
            helped: Mutex::new(HashMap::with_hasher(FixedState::with_seed(seed))),
            awaiting: AtomicUsize::new(0),
            whole: WholeTuples::new(),
            masqueraded: AtomicUsize::new(0),
        }
    }

    /// The seed that packet hashes must use.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The defences, which go by the room left here.
    pub fn defences(&self) -> &Arc<Defences> {
        &self.defences
    }

    /// Room left, in the pages that the defences count in.
    pub fn pages_left(&self) -> i64 {
        (self.len_max.saturating_sub(self.len()) / ENTRIES_PER_PAGE) as i64
    }

    /// Entries right now, templates included, masqueraded ones not.
    pub fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    /// Is it empty?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Most entries there may be.
    pub fn len_max(&self) -> usize {
        self.len_max
    }

    /// Entries refused because the table was full.
    pub fn refused(&self) -> u64 {
        self.refused.load(Relaxed)
    }

    /// The entry of a packet, whichever direction it goes: from a real server first, as the kernel's
    /// hooks look (`ip_vs_conn_out_get`, then `ip_vs_conn_in_get`); last those of whole tuples.
    pub fn find(&self, tuple: &Tuple) -> Option<(Arc<Conn>, Direction)> {
        let out = || self.find_out(tuple).map(|conn| (conn, Direction::Out));
        let inward = || self.find_in(tuple).map(|conn| (conn, Direction::In));
        out().or_else(inward).or_else(|| self.find_whole(tuple))
    }

    /// The entry of a packet that only a whole tuple leads to: from a real server under full NAT, or
    /// of a masqueraded connection.
    pub fn find_whole(&self, tuple: &Tuple) -> Option<(Arc<Conn>, Direction)> {
        self.whole.find(tuple, self.seed)
    }

    /// Masqueraded entries right now.
    pub fn masqueraded(&self) -> usize {
        self.masqueraded.load(Relaxed)
    }

    /// The entry of a packet from the client.
    pub fn find_in(&self, tuple: &Tuple) -> Option<Arc<Conn>> {
        let hash = Tuple::client_hash(
            tuple.source,
            tuple.source_port(),
            tuple.protocol(),
            self.seed,
        );
        self.get(hash, |conn| {
            conn.in_tuple() == *tuple && !conn.is_template()
        })
    }

    /// The entry of a packet from the real server.
    pub fn find_out(&self, tuple: &Tuple) -> Option<Arc<Conn>> {
        let hash = Tuple::client_hash(
            tuple.target,
            tuple.target_port(),
            tuple.protocol(),
            self.seed,
        );
        self.get(hash, |conn| {
            conn.out_tuple() == *tuple && !conn.is_template()
        })
    }

    /// The entry that waits for this packet, whatever port its client has (`IP_VS_CONN_F_NO_CPORT`).
    pub fn find_awaiting(&self, tuple: &Tuple) -> Option<Arc<Conn>> {
        if self.awaiting.load(Relaxed) == 0 {
            return None;
        }
        let any_port = (tuple.source, 0);
        let target = (tuple.target, tuple.target_port());
        let key = Tuple::new(tuple.family(), tuple.protocol(), any_port, target);
        self.find_in(&key).filter(|conn| conn.awaits_client())
    }

    /// Shows, and lets change, what a helper remembers of an entry; `None` if the entry has left.
    pub fn with_helped<R>(
        &self,
        conn: &Arc<Conn>,
        look: impl FnOnce(&mut Helped) -> R,
    ) -> Option<R> {
        self.helped().get_mut(&Arc::as_ptr(conn).addr()).map(look)
    }

    /// Always taken behind a shard's lock, if both are. A worker that panicked left it whole.
    fn helped(&self) -> MutexGuard<'_, HashMap<usize, Helped, FixedState>> {
        self.helped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Things remembered beside entries; for those who look for leaks.
    pub fn remembered(&self) -> usize {
        self.engine().len() + self.helped().len() + self.awaiting.load(Relaxed)
    }

    /// The template with this key: client network and port 0, VIP (or mark) and port.
    pub fn find_template(&self, key: &Tuple) -> Option<Arc<Conn>> {
        let hash = Tuple::client_hash(key.source, key.source_port(), key.protocol(), self.seed);
        self.get(hash, |conn| conn.is_template() && conn.in_tuple() == *key)
    }

    /// The template with this key, of which the client's port does not count, and this data of a
    /// persistence engine (`ip_vs_sip_ct_match`).
    pub fn find_engine_template(&self, key: &Tuple, data: &EngineData) -> Option<Arc<Conn>> {
        self.get(data.hash(self.seed), |conn| {
            conn.has_engine_data()
                && same_call(&conn.in_tuple(), key)
                && self.engine_data(conn).as_ref() == Some(data)
        })
    }

    /// What a persistence engine added to this template's key.
    pub fn engine_data(&self, conn: &Arc<Conn>) -> Option<EngineData> {
        if !conn.has_engine_data() {
            return None;
        }
        self.engine().get(&Arc::as_ptr(conn).addr()).cloned()
    }

    /// Always taken behind a shard's lock, if both are. A worker that panicked left it whole.
    fn engine(&self) -> MutexGuard<'_, EngineMap> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash_of(&self, conn: &Arc<Conn>) -> u64 {
        match self.engine_data(conn) {
            Some(data) => data.hash(self.seed),
            None => conn.client_hash(self.seed),
        }
    }

    fn get(&self, hash: u64, wanted: impl Fn(&Arc<Conn>) -> bool) -> Option<Arc<Conn>> {
        let shard = self.map.shards()[self.map.determine_shard(hash as usize)].read();
        let found = shard.get(hash, |(_, conn)| wanted(conn.get()));
        found.map(|(_, conn)| Arc::clone(conn.get()))
    }

    /// Enters a connection. If another worker entered the same one meanwhile, that one is returned
    /// and `conn` is let go, so that all workers agree.
    ///
    /// # Errors
    /// `TableFull` at `len_max` entries; the refusal is counted and the entry's counts are undone.
    pub fn insert(&self, conn: Arc<Conn>) -> Result<Arc<Conn>, TableFull> {
        self.insert_as(conn, None)
    }

    /// The same with a template to whose key a persistence engine has added this.
    ///
    /// # Errors
    /// As above.
    pub fn insert_engine_template(
        &self,
        conn: Arc<Conn>,
        data: EngineData,
    ) -> Result<Arc<Conn>, TableFull> {
        self.insert_as(conn, Some(data))
    }

    fn insert_as(&self, conn: Arc<Conn>, data: Option<EngineData>) -> Result<Arc<Conn>, TableFull> {
        if self.len.fetch_add(1, Relaxed) >= self.len_max {
            self.len.fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            conn.retire();
            return Err(TableFull);
        }
        let hash = match &data {
            Some(data) => data.hash(self.seed),
            None => conn.client_hash(self.seed),
        };
        let mut shard = self.map.shards()[self.map.determine_shard(hash as usize)].write();
        let twin = shard.get(hash, |(_, other)| {
            let other = other.get();
            same(other, &conn) && self.engine_data(other) == data
        });
        if let Some((_, twin)) = twin {
            let twin = Arc::clone(twin.get());
            drop(shard);
            self.len.fetch_sub(1, Relaxed);
            conn.retire();
            return Ok(twin);
        }
        if let Some(data) = data {
            conn.set_engine_data();
            self.engine().insert(Arc::as_ptr(&conn).addr(), data);
        }
        if conn.is_helped() {
            let helped = Helped::default();
            self.helped().insert(Arc::as_ptr(&conn).addr(), helped);
        }
        let awaits = usize::from(conn.awaits_client());
        self.awaiting.fetch_add(awaits, Relaxed);
        shard.insert(
            hash,
            ((), SharedValue::new(Arc::clone(&conn))),
            |(_, conn)| self.hash_of(conn.get()),
        );
        Ok(conn)
    }

    /// Enters a connection of full NAT; as `insert`, but its out-key may be taken.
    ///
    /// # Errors
    /// `Taken` if another entry has this real server and local end; `Full` as `insert`.
    pub fn insert_full_nat(&self, conn: Arc<Conn>) -> Result<Arc<Conn>, Refused> {
        if self.whole.claim(&conn, Direction::Out, self.seed).is_err() {
            return Err(Refused::Taken);
        }
        let entered = self.insert(Arc::clone(&conn));
        if !entered
            .as_ref()
            .is_ok_and(|entered| Arc::ptr_eq(entered, &conn))
        {
            self.whole.release(&conn, Direction::Out, self.seed);
        }
        Ok(entered?)
    }

    /// Enters a masqueraded connection, unless there are `len_max` of them already. If another worker
    /// entered the same one meanwhile, that one is returned.
    ///
    /// # Errors
    /// `Taken` if another entry has this far end and public end; `Full`, counted.
    pub fn insert_masqueraded(
        &self,
        conn: Arc<Conn>,
        len_max: usize,
    ) -> Result<Arc<Conn>, Refused> {
        if self.masqueraded.fetch_add(1, Relaxed) >= len_max {
            self.masqueraded.fetch_sub(1, Relaxed);
            self.refused.fetch_add(1, Relaxed);
            return Err(Refused::Full);
        }
        // Nobody outside knows the in-key yet, so it can be given back unnoticed.
        let claimed = self.whole.claim(&conn, Direction::In, self.seed);
        let entered = match claimed {
            Err(_) => Err(Refused::Taken),
            Ok(()) => match self.whole.claim(&conn, Direction::Out, self.seed) {
                Ok(()) => return Ok(conn),
                Err(twin) => {
                    self.whole.release(&conn, Direction::In, self.seed);
                    Ok(twin)
                }
            },
        };
        self.masqueraded.fetch_sub(1, Relaxed);
        entered
    }

    /// Shows every masqueraded entry, in table order.
    pub fn for_each_masqueraded(&self, mut look: impl FnMut(&Arc<Conn>)) {
        self.whole.for_each(Direction::In, &mut look);
    }

    /// Keys by which entries are found as whole tuples; for those who look for leaks.
    pub fn whole_keys(&self) -> usize {
        self.whole.len()
    }

    /// Takes an entry out, if it is still there, and undoes its counts.
    pub fn remove(&self, conn: &Arc<Conn>) {
        if self.withdraw(conn) {
            conn.retire();
        }
    }

    /// Takes an entry out and leaves it counted at its real server: whoever gets `true` retires it.
    pub fn withdraw(&self, conn: &Arc<Conn>) -> bool {
        match conn.method() {
            ForwardMethod::Masquerade => return self.withdraw_masqueraded(conn),
            ForwardMethod::FullNat => {
                // A template has no local end, and took no key.
                self.whole.release(conn, Direction::Out, self.seed);
            }
            _ => {}
        }
        let hash = self.hash_of(conn);
        let mut shard = self.map.shards()[self.map.determine_shard(hash as usize)].write();
        let removed = shard.remove_entry(hash, |(_, other)| Arc::ptr_eq(other.get(), conn));
        // A drained shard gives its memory back, or one flood would be paid for for ever.
        if removed.is_some() && shard.capacity() > SHARD_KEEP && shard.len() * 8 < shard.capacity()
        {
            let keep = shard.len() * 2;
            shard.shrink_to(keep, |(_, conn)| self.hash_of(conn.get()));
        }
        drop(shard);
        if removed.is_some() {
            self.len.fetch_sub(1, Relaxed);
            if conn.has_engine_data() {
                self.engine().remove(&Arc::as_ptr(conn).addr());
            }
            if conn.is_helped() {
                self.helped().remove(&Arc::as_ptr(conn).addr());
            }
            self.awaiting
                .fetch_sub(usize::from(conn.awaits_client()), Relaxed);
        }
        removed.is_some()
    }

    fn withdraw_masqueraded(&self, conn: &Arc<Conn>) -> bool {
        let removed = self.whole.release(conn, Direction::In, self.seed);
        self.whole.release(conn, Direction::Out, self.seed);
        self.masqueraded.fetch_sub(usize::from(removed), Relaxed);
        removed
    }

    /// Shows the entries of one of `parts` equal parts of the table.
    pub fn for_each_in(&self, part: u64, parts: u64, mut look: impl FnMut(&Arc<Conn>)) {
        for entry in self.map.iter() {
            let place = entry.value().client_hash(self.seed) >> 32;
            if place % parts.max(1) == part {
                look(entry.value());
            }
        }
    }

    /// Shows every entry, in table order, one shard at a time.
    pub fn for_each(&self, mut look: impl FnMut(&Arc<Conn>)) {
        for entry in self.map.iter() {
            look(entry.value());
        }
    }
}

/// Keys of engine templates are the same but for the client's port.
fn same_call(a: &Tuple, b: &Tuple) -> bool {
    (a.protocol(), a.family()) == (b.protocol(), b.family())
        && (a.source, a.target) == (b.source, b.target)
        && a.target_port() == b.target_port()
}

fn same(a: &Conn, b: &Conn) -> bool {
    a.in_tuple() == b.in_tuple() && a.is_template() == b.is_template() && !a.is_gone()
}

/// The hasher of a map whose keys are hashes already.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ready;

impl BuildHasher for Ready {
    type Hasher = Taken;
    fn build_hasher(&self) -> Taken {
        Taken(0)
    }
}

/// Hands a `u64` key through as its own hash.
#[derive(Debug)]
pub(super) struct Taken(u64);

impl Hasher for Taken {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
