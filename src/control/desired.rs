//! Desired: a virtual service as it shall be, with all that is known of its real servers. It changes
//! nothing by itself: `Controller` does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::meter::Meter;
use crate::config::RealSpec;
use crate::director::snapshot::Service;
use crate::lvs::{RealKey, RealServer, ServiceKey, ServiceSpec};
use crate::sched::{self, Change, Scheduler};

/// The desired services by name.
pub(super) type Services = BTreeMap<ServiceKey, Desired>;

/// A virtual service as it shall be.
#[derive(Debug)]
pub(super) struct Desired {
    pub spec: ServiceSpec,
    /// Newest first.
    pub reals: Vec<RealServer>,
    /// What is known of each real server beside what a scheduler sees, by `RealLive::id`.
    pub details: BTreeMap<u32, Detail>,
    pub meter: Meter,
    pub scheduler: Option<Arc<Mutex<Box<dyn Scheduler>>>>,
    /// What real servers that are gone had counted since the last turn of the estimator.
    pub late: [u64; 5],
    /// Tells a service from a later one of the same key.
    pub object: u64,
    /// As it stands in the snapshot; `None` once changed.
    pub in_force: Option<Arc<Service>>,
}

/// What is known of a real server beside what a scheduler sees.
#[derive(Debug)]
pub(super) struct Detail {
    /// As configured.
    pub spec: RealSpec,
    /// Its counters as listed.
    pub meter: Meter,
}

impl Desired {
    /// Does the service have this real server?
    pub fn has_real(&self, key: RealKey) -> bool {
        self.position(key).is_some()
    }

    pub fn position(&self, key: RealKey) -> Option<usize> {
        self.reals.iter().position(|real| real.key == key)
    }

    pub fn zero(&mut self) {
        self.meter.zero();
        self.details
            .values_mut()
            .for_each(|detail| detail.meter.zero());
    }

    /// As it stands in the next snapshot; made anew only if it changed.
    pub fn in_force(&mut self) -> Arc<Service> {
        let make = || {
            Arc::new(Service {
                spec: self.spec.clone(),
                reals: self.reals.clone(),
                scheduler: self.scheduler.clone(),
            })
        };
        Arc::clone(self.in_force.get_or_insert_with(make))
    }

    /// Tells the scheduler of a change of the list, once for each. Workers that have a connection to
    /// schedule wait for the lock meanwhile, so what takes long is done before and behind it.
    pub fn tell_scheduler(&mut self, change: Change) {
        self.in_force = None;
        let Some(scheduler) = &self.scheduler else {
            return;
        };
        let name = &self.spec.scheduler;
        let fresh = sched::is_table(name).then(|| sched::by_name(name, &self.reals));
        // A worker that panicked inside a pick leaves the lock poisoned; the daemon is stopping
        // then, and the order to stop must still get out.
        let mut scheduler = scheduler.lock().unwrap_or_else(PoisonError::into_inner);
        let old = match fresh.flatten() {
            Some(fresh) => Some(std::mem::replace(&mut *scheduler, fresh)),
            None => {
                scheduler.changed(&self.reals, change);
                None
            }
        };
        drop(scheduler);
        drop(old);
    }
}
