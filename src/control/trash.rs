//! Trash: deleted real servers, kept so that a re-added one gets its old connections and counts
//! back (`ip_vs_ctl.c`: `ip_vs_trash_get_dest`, `ip_vs_dest_trash_expire`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::meter::Meter;
use crate::lvs::{RealKey, RealLive, ServiceKey};
use crate::time::{Duration, Instant};

/// How often the trash is looked through (`IP_VS_DEST_TRASH_PERIOD >> 1`).
const CHECK_PERIOD: Duration = Duration::from_secs(60);

/// How long a server lies unused before it is forgotten (`IP_VS_DEST_TRASH_PERIOD`).
const IDLE: Duration = Duration::from_secs(120);

/// Most servers in the trash: those of the largest service, or a script that adds and deletes a
/// thousand a second for a minute. Beyond it the one with the lowest key cannot be revived.
const TRASH_MAX: usize = 65_536;

/// A deleted real server.
#[derive(Debug)]
pub(super) struct Trashed {
    /// What lived; connections still point here.
    pub live: Arc<RealLive>,
    /// Its counters as listed.
    pub meter: Meter,
    /// Number of the service object it belonged to.
    pub object: u64,
    idle_since: Option<Instant>,
}

/// All deleted real servers that may come back.
#[derive(Debug, Default)]
pub(super) struct Trash {
    lying: BTreeMap<(ServiceKey, RealKey), Trashed>,
    next_check: Option<Instant>,
}

impl Trash {
    /// Throws a real server away.
    pub fn put(
        &mut self,
        service: ServiceKey,
        live: Arc<RealLive>,
        meter: Meter,
        object: u64,
        now: Instant,
    ) {
        if self.lying.is_empty() {
            self.next_check = Some(now + CHECK_PERIOD);
        }
        if self.lying.len() >= TRASH_MAX {
            self.lying.pop_first();
        }
        let key = (service, RealKey(live.endpoint));
        let thrown = Trashed {
            live,
            meter,
            object,
            idle_since: None,
        };
        self.lying.insert(key, thrown);
    }

    /// Takes the real server of this name out again, if it is still there.
    pub fn take(&mut self, service: ServiceKey, real: RealKey) -> Option<Trashed> {
        self.lying.remove(&(service, real))
    }

    /// When to look through it next; `None` while it is empty.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_check
    }

    /// Forgets what nobody refers to and has lain idle long enough. A server is idle when the trash
    /// holds the last handle on it: no connection and no snapshot of any worker has one.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_check.is_none_or(|due| now < due) {
            return;
        }
        self.lying.retain(|_, thrown| {
            let idle = Arc::strong_count(&thrown.live) == 1;
            thrown.idle_since = idle.then(|| thrown.idle_since.unwrap_or(now));
            thrown.idle_since.is_none_or(|since| now < since + IDLE)
        });
        self.next_check = (!self.lying.is_empty()).then(|| now + CHECK_PERIOD);
    }

    /// Every deleted server, for `check`.
    pub fn iter(&self) -> impl Iterator<Item = &Trashed> {
        self.lying.values()
    }
}
