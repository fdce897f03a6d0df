//! Locality-based least connection (`ip_vs_lblc.c`): one target address, one server, while that can
//! bear it; made for caches in front of the net, where the target is not the VIP.
//!
//! The server that had the target last has it again unless it is deleted, quiesced or *too busy*: it
//! has more active connections than its weight while some server of the service has less than half as
//! many as its own. Otherwise weighted least connection finds a server, which is remembered in its
//! place. A remembered server is not asked whether it is overloaded, as in the kernel.
//!
//! A story tells who was remembered for the target and whether that one can bear it, and if not, the
//! quotients of wlc.

use super::cache::Cache;
use super::roll::Roll;
use super::{Change, PickContext, Place, Scheduler, least_per_weight, overhead, overhead_words};
use crate::lvs::RealServer;

/// Remembers who had each target last.
#[derive(Debug)]
pub struct LocalityBased {
    cache: Cache<Place>,
    roll: Roll,
}

impl LocalityBased {
    /// Nobody is remembered yet.
    pub fn new(reals: &[RealServer]) -> LocalityBased {
        LocalityBased {
            cache: Cache::default(),
            roll: Roll::new(reals),
        }
    }
}

impl Scheduler for LocalityBased {
    fn name(&self) -> &'static str {
        "lblc"
    }

    fn changed(&mut self, reals: &[RealServer], change: Change) {
        self.roll.changed(reals, change);
    }

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let (target, now) = (context.target, context.now);
        let expiration_s = context.tunables.lblc_expiration;
        let Some(remembered) = self.cache.touch(target, now, expiration_s) else {
            context.remark(|| format!("nobody is remembered for {target}"));
            let index = least_per_weight(reals, context, overhead, overhead_words)?;
            let place = Place::of((index, &reals[index]));
            self.cache.insert(target, place, now);
            context.because(|| format!("remembered for {target}"));
            return Some(index);
        };
        if let Some(index) = self.roll.find(*remembered, reals) {
            *remembered = Place::of((index, &reals[index]));
            let real = &reals[index];
            let stays = real.weight.0 > 0 && !is_too_busy(real, reals);
            context.note(index, || {
                format!("had {target} last: {}", burden(real, reals))
            });
            if stays {
                context.because(|| "who keeps it".to_string());
                return Some(index);
            }
        } else {
            context.remark(|| format!("the one remembered for {target} is gone"));
        }
        let index = least_per_weight(reals, context, overhead, overhead_words)?;
        *remembered = Place::of((index, &reals[index]));
        context.because(|| format!("remembered for {target}"));
        Some(index)
    }
}

/// How much a server bears that had the target, against [`is_too_busy`], for a story.
pub(super) fn burden(real: &RealServer, reals: &[RealServer]) -> String {
    let (active, weight) = (real.active(), real.weight.0);
    if weight == 0 {
        return "weight 0".to_string();
    }
    if i64::from(active) <= i64::from(weight) {
        return format!("{active} active <= weight {weight}");
    }
    match reals.iter().find(|other| is_half_idle(other)) {
        Some(other) => {
            let (key, less, its) = (other.key, other.active(), other.weight.0);
            format!("{active} active > weight {weight}, and {key} has 2*{less} < weight {its}")
        }
        None => format!("{active} active > weight {weight}, but nobody has 2*active < weight"),
    }
}

/// Has `real` more active connections than its weight while somebody has less than half as many?
pub(super) fn is_too_busy(real: &RealServer, reals: &[RealServer]) -> bool {
    i64::from(real.active()) > i64::from(real.weight.0) && reals.iter().any(is_half_idle)
}

/// Has it less than half as many active connections as its weight?
fn is_half_idle(real: &RealServer) -> bool {
    i64::from(real.active()) * 2 < i64::from(real.weight.0)
}
