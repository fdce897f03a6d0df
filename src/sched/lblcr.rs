//! Locality-based least connection with replication (`ip_vs_lblcr.c`): one target address, a set of
//! servers that grows under load and shrinks with time.
//!
//! Of the servers that had the target, the usable one with the least [`overhead`] per weight has it
//! again; of equals the one that came to the set last. If it is *too busy* (see `lblc`), or there is
//! none, weighted least connection finds a server, which joins the set. When a set of several has not
//! changed for a day (`lblcr_expiration`), its most loaded member leaves.
//!
//! A story tells the quotients of the set and whether its least loaded can bear it, and if not, the
//! quotients of wlc.

use super::cache::Cache;
use super::lblc::{burden, is_too_busy};
use super::roll::Roll;
use super::{
    Change, PickContext, Place, Scheduler, is_less, least_per_weight, overhead, overhead_words,
    quotient,
};
use crate::lvs::RealServer;
use crate::time::{Duration, Instant};

/// Remembers who had each target.
#[derive(Debug)]
pub struct LocalityBasedReplicated {
    cache: Cache<Members>,
    roll: Roll,
}

impl LocalityBasedReplicated {
    /// Nobody is remembered yet.
    pub fn new(reals: &[RealServer]) -> LocalityBasedReplicated {
        LocalityBasedReplicated {
            cache: Cache::default(),
            roll: Roll::new(reals),
        }
    }
}

/// The servers of one target.
#[derive(Debug)]
struct Members {
    /// Newest first. Deleted servers stay: they may come back.
    places: Vec<Place>,
    last_change: Instant,
}

impl Scheduler for LocalityBasedReplicated {
    fn name(&self) -> &'static str {
        "lblcr"
    }

    fn changed(&mut self, reals: &[RealServer], change: Change) {
        self.roll.changed(reals, change);
    }

    fn pick(&mut self, reals: &[RealServer], context: &mut PickContext<'_>) -> Option<usize> {
        let (target, now) = (context.target, context.now);
        let expiration_s = context.tunables.lblcr_expiration;
        let Some(members) = self.cache.touch(target, now, expiration_s) else {
            context.remark(|| format!("nobody is remembered for {target}"));
            let index = least_per_weight(reals, context, overhead, overhead_words)?;
            let members = Members {
                places: vec![Place::of((index, &reals[index]))],
                last_change: now,
            };
            self.cache.insert(target, members, now);
            context.because(|| format!("first of the set of {target}"));
            return Some(index);
        };
        members.note_all(&self.roll, reals, context);
        let candidate = members.least_loaded(&self.roll, reals);
        members.shrink(&self.roll, reals, now, expiration_s);
        if let Some(index) = candidate {
            let real = &reals[index];
            context.note(index, || {
                format!("the least of the set of {target}: {}", burden(real, reals))
            });
            if !is_too_busy(real, reals) {
                context.because(|| "who keeps it".to_string());
                return Some(index);
            }
        }
        let index = least_per_weight(reals, context, overhead, overhead_words)?;
        let joins = members.join(Place::of((index, &reals[index])), now);
        context.because(|| {
            let words = if joins { "joins" } else { "is already of" };
            format!("{words} the set of {target}")
        });
        Some(index)
    }
}

impl Members {
    /// The usable member with the least overhead per weight; of equals the newest. Remembers where
    /// each stands now.
    fn least_loaded(&mut self, roll: &Roll, reals: &[RealServer]) -> Option<usize> {
        let present = self.places.iter_mut().filter_map(|place| {
            let index = roll.find(*place, reals)?;
            place.index = index;
            Some(index)
        });
        let usable = present.filter(|index| reals[*index].usable());
        usable.reduce(|least, index| {
            if is_less_loaded(&reals[index], &reals[least]) {
                index
            } else {
                least
            }
        })
    }

    /// Notes what every member bears, in the order of looking.
    fn note_all(&self, roll: &Roll, reals: &[RealServer], context: &mut PickContext<'_>) {
        if context.notes.is_none() {
            return;
        }
        let present = self
            .places
            .iter()
            .filter_map(|place| roll.find(*place, reals));
        for index in present {
            let real = &reals[index];
            if !real.usable() {
                context.note_unusable(index, real);
                continue;
            }
            let (load, weight) = (overhead(real), real.weight.0.unsigned_abs().into());
            let (words, load) = (overhead_words(real), quotient(load, weight));
            context.note(index, || format!("of the set: ({words})/{weight} = {load}"));
        }
    }

    /// A set of several that has not changed for so many seconds loses its most loaded member; with
    /// less than none, at once.
    fn shrink(&mut self, roll: &Roll, reals: &[RealServer], now: Instant, expiration_s: i64) {
        let unchanged = now.since(self.last_change);
        let is_old = u64::try_from(expiration_s)
            .map_or(true, |seconds| unchanged > Duration::from_secs(seconds));
        if self.places.len() < 2 || !is_old {
            return;
        }
        let present = self
            .places
            .iter()
            .filter_map(|place| roll.find(*place, reals));
        let weighty = present.filter(|index| reals[*index].weight.0 > 0);
        let most = weighty.reduce(|most, index| {
            if is_less_loaded(&reals[most], &reals[index]) {
                index
            } else {
                most
            }
        });
        if let Some(index) = most {
            let id = reals[index].live.id;
            self.places.retain(|place| place.id != id);
            self.last_change = now;
        }
    }

    /// Takes in a server that is not yet a member; was it none?
    fn join(&mut self, newcomer: Place, now: Instant) -> bool {
        let is_new = self.places.iter().all(|place| place.id != newcomer.id);
        if is_new {
            self.places.insert(0, newcomer);
            self.last_change = now;
        }
        is_new
    }
}

/// Has `a` less overhead per weight than `b`? Both have a weight.
fn is_less_loaded(a: &RealServer, b: &RealServer) -> bool {
    let weight = |real: &RealServer| real.weight.0.unsigned_abs().into();
    is_less(overhead(a), weight(a), overhead(b), weight(b))
}
