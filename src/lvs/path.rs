//! PathMtu: how long a packet may be on the way to a real server, as far as routers told. The link's own
//! MTU is the port's. The rules are those of Linux's routes (`ip_rt_update_pmtu`, `ipv4_mtu`).

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::time::{Duration, Instant};

/// How long a router is believed (`net.ipv4.route.mtu_expires`).
const BELIEVED_FOR: Duration = Duration::from_secs(600);
/// Nobody is believed below this (`net.ipv4.route.min_pmtu`).
const LEARNED_MIN: u32 = 552;

/// Which route the last packet took: the kernel keeps it, and tells clients of it.
mod route {
    /// None yet.
    pub const UNKNOWN: u8 = 0;
    /// One that knows only the link's MTU.
    pub const PLAIN: u8 = 1;
    /// One with what was learned, and that hears what else is.
    pub const LEARNED: u8 = 2;
}

/// What is known of the way to one real server. Nearly always nothing, and then it costs one load.
#[derive(Debug, Default)]
pub struct PathMtu {
    /// 0 is nothing.
    learned: AtomicU32,
    until: AtomicU64,
    route: AtomicU8,
}

impl PathMtu {
    /// The longest packet now, on a link with this MTU.
    pub fn get(&self, link: u32, now: Instant) -> u32 {
        self.in_force(now).map_or(link, |learned| learned.min(link))
    }

    /// What was learned, while that is believed.
    fn in_force(&self, now: Instant) -> Option<u32> {
        let learned = self.learned.load(Relaxed);
        (learned != 0 && self.until.load(Relaxed) > now.as_nanos()).then_some(learned)
    }

    /// The same for a packet that goes this way now.
    pub fn walk(&self, link: u32, now: Instant) -> u32 {
        let learned = self.in_force(now);
        // It is another route also where what was learned is the link's own length.
        let route = match learned {
            None => route::PLAIN,
            Some(_) => route::LEARNED,
        };
        if self.route.load(Relaxed) != route {
            self.route.store(route, Relaxed);
        }
        learned.map_or(link, |learned| learned.min(link))
    }

    /// The way is looked for anew by the next packet: the real server was edited.
    pub fn forget_route(&self) {
        self.route.store(route::UNKNOWN, Relaxed);
    }

    /// A router says that no longer packet than `told` gets through. A way never becomes longer by
    /// that.
    pub fn learn(&self, told: u32, link: u32, now: Instant) {
        let before = self.get(link, now);
        if told > before {
            return;
        }
        let mtu = told.max(LEARNED_MIN.min(before));
        self.learned.store(mtu, Relaxed);
        self.until.store((now + BELIEVED_FOR).as_nanos(), Relaxed);
    }

    /// Was anything ever learned?
    pub fn is_learned(&self) -> bool {
        self.learned.load(Relaxed) != 0
    }

    /// It is the way to the same address as `other`: what was learned of that holds here, if nothing was
    /// learned here.
    pub fn share(&self, other: &PathMtu) {
        if !self.is_learned() {
            self.until.store(other.until.load(Relaxed), Relaxed);
            self.learned.store(other.learned.load(Relaxed), Relaxed);
        }
    }

    /// What a client is told when a router has said `told`: the length that the route of the last packet
    /// allows. That one hears of the first news only when the next packet comes.
    pub fn tell(&self, told: u32, link: u32, now: Instant) -> u32 {
        match self.route.load(Relaxed) {
            route::UNKNOWN => told,
            route::PLAIN => link,
            _ => self.get(link, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: u32 = 1500;

    fn at(secs: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(secs)
    }

    #[test]
    fn learned_for_ten_minutes_and_never_up() {
        let path = PathMtu::default();
        assert_eq!(path.get(LINK, at(0)), 1500);
        path.learn(1200, LINK, at(0));
        path.learn(1400, LINK, at(1));
        assert_eq!(path.get(LINK, at(599)), 1200);
        assert_eq!(path.get(LINK, at(600)), 1500);
        assert_eq!(path.get(1000, at(5)), 1000, "the link became shorter");
    }

    #[test]
    fn nobody_is_believed_below_the_least() {
        let path = PathMtu::default();
        path.learn(0, LINK, at(0));
        assert_eq!(path.get(LINK, at(0)), LEARNED_MIN);
    }

    #[test]
    fn a_client_is_told_of_the_route_that_its_packet_took() {
        let path = PathMtu::default();
        assert_eq!(path.tell(1200, LINK, at(0)), 1200);
        path.walk(LINK, at(0));
        path.learn(1200, LINK, at(0));
        assert_eq!(path.tell(1200, LINK, at(0)), 1500);
        assert_eq!(path.walk(LINK, at(1)), 1200);
        path.learn(1000, LINK, at(2));
        assert_eq!(path.tell(1000, LINK, at(2)), 1000);
    }

    #[test]
    fn what_was_learned_is_a_route_of_its_own_even_if_no_shorter_than_the_link() {
        let path = PathMtu::default();
        path.walk(LINK, at(0));
        path.learn(LINK, LINK, at(0));
        assert_eq!(path.tell(LINK, LINK, at(0)), 1500);
        path.walk(LINK, at(1));
        path.learn(576, LINK, at(2));
        assert_eq!(path.tell(576, LINK, at(2)), 576);
    }
}
