//! Cache: what lblc and lblcr remember of each target address, and how they forget it
//! (`ip_vs_lblc.c`, `ip_vs_lblcr.c`). It has no timer: what is due is begun at the next look-up, and
//! done row by row in the look-ups behind it, so that none of them takes long.

use std::net::IpAddr;

use super::hash::{fold, hash_32};
use crate::time::{Duration, Instant};

/// Rows are 2 to this power (`CONFIG_IP_VS_LBLC_TAB_BITS`).
const ROWS_BITS: u32 = 10;
const ROWS: usize = 1 << ROWS_BITS;

/// Above so many entries the idle ones are thinned out.
const ENTRIES_MAX: usize = ROWS * 16;

/// With so many entries nothing new is remembered.
const ENTRIES_LIMIT: usize = ENTRIES_MAX / 2 * 3;

/// How often to look for entries to forget.
const CHECK_PERIOD: Duration = Duration::from_secs(60);

/// Every so many checks all entries are looked at.
const CHECKS_PER_FULL: u64 = 30;

/// Rows that one look-up sees through, of each sweep.
const ROWS_PER_LOOK_UP: usize = 4;

/// So long an entry must have been idle to be thinned out.
const THIN_IDLE: Duration = Duration::from_secs(6 * 60);

/// A value for each of a bounded number of addresses.
#[derive(Debug)]
pub struct Cache<V> {
    rows: Vec<Row<V>>,
    entries: usize,
    /// When the next check is due; `None` before the first use.
    next_check: Option<Instant>,
    /// Checks since the last full one.
    checks: u64,
    /// Forgets what was idle for as long as the sysctl says.
    full: Sweep,
    /// Counts the full checks.
    fulls: u64,
    /// Makes room when there are too many.
    thinning: Sweep,
}

#[derive(Debug)]
struct Row<V> {
    entries: Vec<Entry<V>>,
    /// The last full check that saw it.
    full: u64,
}

#[derive(Debug)]
struct Entry<V> {
    address: IpAddr,
    last_use: Instant,
    value: V,
}

/// A walk over the rows that forgets idle entries.
#[derive(Debug)]
struct Sweep {
    /// The time that counts, however late a row is seen.
    at: Instant,
    idle: Duration,
    /// The row seen last.
    row: usize,
    rows_left: usize,
    /// With so few entries it ends early.
    enough: usize,
}

impl Sweep {
    const fn new(idle: Duration) -> Sweep {
        Sweep {
            at: Instant::ZERO,
            idle,
            row: 0,
            rows_left: 0,
            enough: 0,
        }
    }

    /// Begins where it ended last.
    fn begin(&mut self, at: Instant, enough: usize) {
        (self.at, self.enough, self.rows_left) = (at, enough, ROWS);
    }

    /// The row to be seen next, unless so many `entries` are few enough.
    fn next_row(&mut self, entries: usize) -> Option<usize> {
        if entries <= self.enough {
            self.rows_left = 0;
        }
        self.rows_left = self.rows_left.checked_sub(1)?;
        self.row = (self.row + 1) % ROWS;
        Some(self.row)
    }
}

impl<V> Default for Row<V> {
    fn default() -> Row<V> {
        Row {
            entries: Vec::new(),
            full: 0,
        }
    }
}

impl<V> Default for Cache<V> {
    fn default() -> Cache<V> {
        Cache {
            rows: (0..ROWS).map(|_| Row::default()).collect(),
            entries: 0,
            next_check: None,
            checks: 0,
            full: Sweep::new(Duration::ZERO),
            fulls: 0,
            thinning: Sweep::new(THIN_IDLE),
        }
    }
}

impl<V> Cache<V> {
    /// What is remembered of `address`, which thereby is in use `now`. Who was idle for
    /// `expiration_s` seconds is forgotten when all entries are looked at.
    pub fn touch(&mut self, address: IpAddr, now: Instant, expiration_s: i64) -> Option<&mut V> {
        self.begin_due(now, expiration_s);
        self.go_on();
        let row = row_of(address);
        // What a full check would have forgotten by now must not be found.
        self.see_fully(row);
        let mut entries = self.rows[row].entries.iter_mut();
        let entry = entries.find(|entry| entry.address == address)?;
        entry.last_use = now;
        Some(&mut entry.value)
    }

    /// Remembers `value` of an address that is not remembered, unless there is no room.
    pub fn insert(&mut self, address: IpAddr, value: V, now: Instant) {
        if self.entries < ENTRIES_LIMIT {
            self.rows[row_of(address)].entries.push(Entry {
                address,
                last_use: now,
                value,
            });
            self.entries += 1;
        }
    }

    /// Begins the sweeps that were due until `now`: of several full checks the last one forgets all
    /// that those before it would have, and so with thinning.
    fn begin_due(&mut self, now: Instant, expiration_s: i64) {
        let next = *self.next_check.get_or_insert(now + CHECK_PERIOD);
        if now < next {
            return;
        }
        let late = now.since(next).as_nanos() / CHECK_PERIOD.as_nanos();
        let time_of = |check: u64| next + Duration::from_nanos(CHECK_PERIOD.as_nanos() * check);
        let done = self.checks + late + 1;
        if done >= CHECKS_PER_FULL {
            let since_full = done % CHECKS_PER_FULL;
            // The full one came before those that are counted from it.
            self.full.begin(time_of(late - since_full), 0);
            self.full.idle = Duration::from_secs(u64::try_from(expiration_s).unwrap_or(0));
            self.fulls += 1;
        }
        self.checks = done % CHECKS_PER_FULL;
        if self.checks > 0 && self.entries > ENTRIES_MAX {
            let goal = ((self.entries - ENTRIES_MAX) * 4 / 3).min(ENTRIES_MAX / 2);
            self.thinning.begin(time_of(late), self.entries - goal);
        }
        self.next_check = Some(time_of(late + 1));
    }

    /// Sees some rows through.
    fn go_on(&mut self) {
        for _ in 0..ROWS_PER_LOOK_UP {
            if let Some(row) = self.full.next_row(self.entries) {
                self.see_fully(row);
            }
            if let Some(row) = self.thinning.next_row(self.entries) {
                self.rows[row].forget(&self.thinning, &mut self.entries);
            }
        }
    }

    /// Does to a row what the last full check wants, once: who came after it is none of its.
    fn see_fully(&mut self, row: usize) {
        let row = &mut self.rows[row];
        if row.full != self.fulls {
            row.full = self.fulls;
            row.forget(&self.full, &mut self.entries);
        }
    }
}

impl<V> Row<V> {
    /// Forgets the entries that had been idle for too long when the sweep was due.
    fn forget(&mut self, sweep: &Sweep, entries: &mut usize) {
        let before = self.entries.len();
        let stays = |entry: &Entry<V>| sweep.at.since(entry.last_use) < sweep.idle;
        self.entries.retain(stays);
        *entries -= before - self.entries.len();
    }
}

fn row_of(address: IpAddr) -> usize {
    hash_32(fold(address), ROWS_BITS) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_S: i64 = 86_400;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    /// A cache in which the addresses `0..count` were used at second 0.
    fn filled(count: u32) -> Cache<u32> {
        let mut cache = Cache::default();
        for number in 0..count {
            assert!(cache.touch(address(number), at(0), DAY_S).is_none());
            cache.insert(address(number), number, at(0));
        }
        cache
    }

    #[test]
    fn remembers_each_address() {
        let mut cache = filled(5000);
        for number in 0..5000 {
            assert_eq!(
                cache.touch(address(number), at(1), DAY_S),
                Some(&mut number.clone())
            );
        }
        assert!(cache.touch(address(5000), at(1), DAY_S).is_none());
    }

    /// Looks up somebody unknown until everything that is due is done.
    fn settle(cache: &mut Cache<u32>, now: Instant) {
        for _ in 0..ROWS / ROWS_PER_LOOK_UP {
            assert!(cache.touch([192, 0, 2, 1].into(), now, DAY_S).is_none());
        }
        assert_eq!((cache.full.rows_left, cache.thinning.rows_left), (0, 0));
    }

    /// Full checks come every half hour; the first one after a day of silence forgets.
    #[test]
    fn forgets_after_a_day() {
        let day = 86_400;
        let mut cache = filled(2);
        assert!(
            cache.touch(address(0), at(day), DAY_S).is_none(),
            "the check at 86400 s"
        );
        let mut cache = filled(2);
        assert!(cache.touch(address(0), at(day - 1), DAY_S).is_some());
        assert!(cache.touch(address(1), at(day + 1), DAY_S).is_none());
        assert!(
            cache.touch(address(0), at(2 * day - 1), DAY_S).is_some(),
            "the next check is later"
        );
        settle(&mut cache, at(2 * day - 1));
        assert_eq!(cache.entries, 1);
    }

    /// The full check is at 1800 s.
    #[test]
    fn forgets_after_what_the_sysctl_says() {
        for (expiration_s, remembered) in [(1800, false), (1801, true), (0, false), (-1, false)] {
            let mut cache = filled(1);
            let found = cache.touch(address(0), at(1800), expiration_s);
            assert_eq!(found.is_some(), remembered, "{expiration_s} s");
        }
    }

    /// A check sees no entry that came after it.
    #[test]
    fn what_comes_after_a_check_stays() {
        let mut cache = filled(1);
        for number in 1..2000 {
            assert!(cache.touch(address(number), at(1800), 0).is_none());
            cache.insert(address(number), number, at(1800));
        }
        for number in 1..2000 {
            assert!(cache.touch(address(number), at(1800), 0).is_some());
        }
    }

    /// A look-up sees a few rows only, and still finds nothing that a check has forgotten.
    #[test]
    fn forgets_little_by_little() {
        let mut cache = filled(10_000);
        let now = at(86_400);
        assert!(cache.touch(address(9_999), now, DAY_S).is_none());
        assert!(cache.entries > 9_000, "{} are left", cache.entries);
        for number in 0..10_000 {
            assert!(cache.touch(address(number), now, DAY_S).is_none());
        }
        assert_eq!(cache.entries, 0);
    }

    #[test]
    fn is_bounded() {
        let mut cache = filled(40_000);
        assert_eq!(cache.entries, ENTRIES_LIMIT);
        assert!(cache.touch(address(39_999), at(1), DAY_S).is_none());
    }

    /// Entries idle for six minutes are thinned out, a third more than there are too many; those in
    /// use stay.
    #[test]
    fn thins_out_what_is_idle() {
        let mut cache = filled(ENTRIES_MAX as u32 + 3000);
        for number in 0..1000 {
            cache.touch(address(number), at(300), DAY_S);
        }
        cache.touch(address(0), at(359), DAY_S);
        assert_eq!(
            cache.entries,
            ENTRIES_MAX + 3000,
            "nobody idle for six minutes yet"
        );
        cache.touch(address(0), at(360), DAY_S);
        settle(&mut cache, at(361));
        let left = cache.entries;
        assert!(
            (ENTRIES_MAX - 1100..=ENTRIES_MAX - 1000).contains(&left),
            "{left}"
        );
        for number in 0..1000 {
            assert!(cache.touch(address(number), at(361), DAY_S).is_some());
        }
    }

    #[test]
    fn a_year_of_silence_takes_no_time() {
        let mut cache = filled(20_000);
        let now = at(100 * 365 * 86_400);
        assert!(cache.touch(address(1), now, DAY_S).is_none());
        settle(&mut cache, now);
        assert_eq!(cache.entries, 0);
    }
}
