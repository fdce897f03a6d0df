//! Cache: what lblc and lblcr remember of each target address, and how they forget it
//! (`ip_vs_lblc.c`, `ip_vs_lblcr.c`). It has no timer: what is due is done before the next look-up,
//! when nobody could have noticed that it was late.

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
const CHECKS_PER_FULL: u32 = 30;

/// So long an entry must have been idle to be thinned out.
const THIN_IDLE: Duration = Duration::from_secs(6 * 60);

/// A value for each of a bounded number of addresses.
#[derive(Debug)]
pub struct Cache<V> {
    rows: Vec<Vec<Entry<V>>>,
    entries: usize,
    /// When to look next for entries to forget; `None` before the first use.
    next_check: Option<Instant>,
    /// Checks since the last full one.
    checks: u32,
    /// The row at which the last thinning ended.
    thinned: usize,
}

#[derive(Debug)]
struct Entry<V> {
    address: IpAddr,
    last_use: Instant,
    value: V,
}

impl<V> Default for Cache<V> {
    fn default() -> Cache<V> {
        Cache {
            rows: (0..ROWS).map(|_| Vec::new()).collect(),
            entries: 0,
            next_check: None,
            checks: 0,
            thinned: 0,
        }
    }
}

impl<V> Cache<V> {
    /// What is remembered of `address`, which thereby is in use `now`. Who was idle for
    /// `expiration_s` seconds is forgotten when all entries are looked at.
    pub fn touch(&mut self, address: IpAddr, now: Instant, expiration_s: i64) -> Option<&mut V> {
        self.forget(now, expiration_s);
        let row = &mut self.rows[row_of(address)];
        let entry = row.iter_mut().find(|entry| entry.address == address)?;
        entry.last_use = now;
        Some(&mut entry.value)
    }

    /// Remembers `value` of an address that is not remembered, unless there is no room.
    pub fn insert(&mut self, address: IpAddr, value: V, now: Instant) {
        if self.entries < ENTRIES_LIMIT {
            self.rows[row_of(address)].push(Entry {
                address,
                last_use: now,
                value,
            });
            self.entries += 1;
        }
    }

    /// Does the checks that were due until `now`, as if each had come in time.
    fn forget(&mut self, now: Instant, expiration_s: i64) {
        let mut next = self.next_check.unwrap_or(now + CHECK_PERIOD);
        while next <= now && self.entries > 0 {
            self.check(next, expiration_s);
            next += CHECK_PERIOD;
        }
        // With nothing left to forget the checks are all the same; only their time goes on.
        self.next_check = Some(next.max(now));
    }

    fn check(&mut self, now: Instant, expiration_s: i64) {
        self.checks += 1;
        if self.checks == CHECKS_PER_FULL {
            self.checks = 0;
            let idle = Duration::from_secs(u64::try_from(expiration_s).unwrap_or(0));
            for row in 0..ROWS {
                self.forget_idle(row, idle, now);
            }
        } else if self.entries > ENTRIES_MAX {
            self.thin_out(now);
        }
    }

    /// Forgets idle entries row by row, from where it ended last, until there is room again.
    fn thin_out(&mut self, now: Instant) {
        let goal = ((self.entries - ENTRIES_MAX) * 4 / 3).min(ENTRIES_MAX / 2);
        let enough = self.entries - goal;
        for _ in 0..ROWS {
            self.thinned = (self.thinned + 1) % ROWS;
            self.forget_idle(self.thinned, THIN_IDLE, now);
            if self.entries <= enough {
                break;
            }
        }
    }

    /// Forgets the entries of a row that were idle for `idle`.
    fn forget_idle(&mut self, row: usize, idle: Duration, now: Instant) {
        let row = &mut self.rows[row];
        let before = row.len();
        row.retain(|entry| now.since(entry.last_use) < idle);
        self.entries -= before - row.len();
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
        assert!(
            cache
                .touch(address(1), at(100 * 365 * 86_400), DAY_S)
                .is_none()
        );
        assert_eq!(cache.entries, 0);
    }
}
