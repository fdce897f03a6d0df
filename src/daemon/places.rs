//! The places at the control socket: so many clients at once. When all are taken, the client that has
//! asked for nothing the longest makes room for the next one; who waits for an answer keeps its place.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// All places.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    /// How long a client may be idle and keep its place whoever comes.
    kept: Duration,
    taken: Mutex<Vec<Arc<Place>>>,
}

/// One place.
#[derive(Debug)]
pub(super) struct Place {
    /// Since when its client is idle; `None` while it waits for an answer.
    idle_since: Mutex<Option<Instant>>,
    leave: Notify,
}

/// A client's hold of its place; dropped, the place is free.
#[derive(Debug)]
pub(super) struct Seat {
    places: Arc<Places>,
    place: Arc<Place>,
}

impl Places {
    pub fn new(most: usize, kept: Duration) -> Places {
        Places {
            most,
            kept,
            taken: Mutex::default(),
        }
    }

    /// A place for who comes, and whether another one must leave for it; `None` if nobody can.
    pub fn take(self: &Arc<Self>) -> Option<(Seat, bool)> {
        let mut taken = locked(&self.taken);
        let mut yielded = false;
        if taken.len() >= self.most {
            let now = Instant::now();
            let idle = |place: &Place| {
                let since = (*locked(&place.idle_since))?;
                (now.duration_since(since) >= self.kept).then_some(since)
            };
            let idlers = taken.iter().enumerate();
            let idlers = idlers.filter_map(|(at, place)| Some((idle(place)?, at)));
            let (_, longest) = idlers.min()?;
            taken.swap_remove(longest).leave.notify_one();
            yielded = true;
        }
        let place = Arc::new(Place {
            idle_since: Mutex::new(Some(Instant::now())),
            leave: Notify::new(),
        });
        taken.push(Arc::clone(&place));
        let places = Arc::clone(self);
        Some((Seat { places, place }, yielded))
    }
}

impl Place {
    /// Its client waits for us from now on.
    pub fn busy(&self) {
        *locked(&self.idle_since) = None;
    }

    /// We wait for its client from now on.
    pub fn idle(&self) {
        *locked(&self.idle_since) = Some(Instant::now());
    }

    /// Waits until the place is somebody else's.
    pub async fn lost(&self) {
        self.leave.notified().await;
    }
}

impl Seat {
    /// The place that is held.
    pub fn place(&self) -> &Arc<Place> {
        &self.place
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        locked(&self.places.taken).retain(|place| !Arc::ptr_eq(place, &self.place));
    }
}

/// Nothing that holds one of these locks can panic half-way; what is in them is good all the same.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_idle_the_longest_makes_room_and_who_waits_does_not() {
        let places = Arc::new(Places::new(3, Duration::ZERO));
        let [first, second, third] = [(); 3].map(|()| places.take().unwrap().0);
        first.place().busy();
        third.place().idle();
        second.place().idle();
        let left = |seat: &Seat| {
            let taken = locked(&places.taken);
            !taken.iter().any(|place| Arc::ptr_eq(place, seat.place()))
        };
        let (_fourth, yielded) = places.take().unwrap();
        assert!(yielded && left(&third) && !left(&second) && !left(&first));
        second.place().busy();
        _fourth.place().busy();
        assert!(places.take().is_none(), "everybody waits for an answer");
        drop(first);
        assert!(!places.take().unwrap().1, "one has gone by itself");
    }

    #[test]
    fn who_has_just_come_keeps_its_place() {
        let places = Arc::new(Places::new(1, Duration::from_secs(3600)));
        let (seat, _) = places.take().unwrap();
        assert!(places.take().is_none());
        drop(seat);
        assert!(places.take().is_some());
    }
}
