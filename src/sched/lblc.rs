//! Locality-based least connection (`ip_vs_lblc.c`): one target address, one server, while that can
//! bear it; made for caches in front of the net, where the target is not the VIP.
//!
//! The server that had the target last has it again unless it is deleted, quiesced or *too busy*: it
//! has more active connections than its weight while some server of the service has less than half as
//! many as its own. Otherwise weighted least connection finds a server, which is remembered in its
//! place. A remembered server is not asked whether it is overloaded, as in the kernel.
//!
//! A story tells whether the target was remembered, and if nobody was, the quotients of wlc.

use super::cache::Cache;
use super::{Change, PickContext, Place, Scheduler, least_per_weight, overhead, overhead_words};
use crate::lvs::RealServer;

/// Remembers who had each target last.
#[derive(Debug, Default)]
pub struct LocalityBased {
    cache: Cache<Place>,
}

impl Scheduler for LocalityBased {
    fn name(&self) -> &'static str {
        "lblc"
    }

    fn changed(&mut self, _reals: &[RealServer], _change: Change) {}

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let (target, now) = (context.flow.target.address, context.now);
        let expiration_s = context.tunables.lblc_expiration;
        let Some(remembered) = self.cache.touch(target, now, expiration_s) else {
            let index = least_per_weight(reals, context, overhead, overhead_words)?;
            let place = Place::of((index, &reals[index]));
            self.cache.insert(target, place, now);
            return Some(index);
        };
        if let Some(index) = remembered.find(reals) {
            let real = &reals[index];
            if real.weight.0 > 0 && !is_too_busy(real, reals) {
                context.note(index, || format!("remembered for {target}"));
                return Some(index);
            }
            let why = if real.weight.0 > 0 {
                "too busy"
            } else {
                "weight 0"
            };
            context.note(index, || format!("remembered for {target}, but {why}"));
        }
        let index = least_per_weight(reals, context, overhead, overhead_words)?;
        *remembered = Place::of((index, &reals[index]));
        Some(index)
    }
}

/// Has `real` more active connections than its weight while somebody has less than half as many?
pub(super) fn is_too_busy(real: &RealServer, reals: &[RealServer]) -> bool {
    let active = |real: &RealServer| i64::from(real.active());
    let weight = |real: &RealServer| i64::from(real.weight.0);
    let half_idle = |other: &RealServer| active(other) * 2 < weight(other);
    active(real) > weight(real) && reals.iter().any(half_idle)
}
