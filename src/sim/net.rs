//! The cables between the hosts and the director. Frames are delayed, lost, sent twice and overtake one
//! another as the seed wants; no bit of them is ever changed.

use std::collections::BTreeMap;

use crate::rng::Rng;
use crate::time::{Duration, Instant};
use crate::wire::memory::MemoryFrame;

/// Where a frame arrives.
#[derive(Clone, Debug)]
pub enum Arrival {
    /// At the director, by this port.
    Director {
        /// Number of the port.
        port: usize,
        /// The frame, its mark included.
        frame: MemoryFrame,
        /// A host made it by the book.
        plain: bool,
    },
    /// At the hosts on the link of this port.
    Hosts {
        /// Number of the port.
        port: usize,
        /// The frame.
        frame: Vec<u8>,
    },
    /// At a client, past the director: what a real server under LVS-DR says.
    Past {
        /// The IP packet.
        packet: Vec<u8>,
    },
}

/// What the cables do to frames.
#[derive(Clone, Copy, Debug)]
pub struct Cables {
    /// Shortest time a frame is on its way.
    pub delay: Duration,
    /// At most so much is added to it.
    pub jitter: Duration,
    /// Of a thousand frames so many are lost.
    pub lost_permille: u64,
    /// Of a thousand frames so many arrive twice.
    pub twice_permille: u64,
    /// May a frame overtake one before it?
    pub overtaking: bool,
}

/// The frames that are on their way.
#[derive(Debug)]
pub struct Net {
    cables: Cables,
    on_way: BTreeMap<(Instant, u64), Arrival>,
    /// Arrival of the last frame of each cable and direction.
    last: [Instant; 5],
    frames: u64,
    lost: u64,
    rng: Rng,
}

impl Net {
    /// Cables on which nothing is on its way.
    pub fn new(cables: Cables, seed: u64) -> Net {
        Net {
            cables,
            on_way: BTreeMap::new(),
            last: [Instant::ZERO; 5],
            frames: 0,
            lost: 0,
            rng: Rng::new(seed),
        }
    }

    /// A frame sets out. Says if it is lost on its way.
    pub fn send(&mut self, arrival: Arrival, now: Instant) -> bool {
        if self.rng.below(1000) < self.cables.lost_permille {
            self.lost += 1;
            return true;
        }
        if self.rng.below(1000) < self.cables.twice_permille {
            self.send_once(arrival.clone(), now);
        }
        self.send_once(arrival, now);
        false
    }

    fn send_once(&mut self, arrival: Arrival, now: Instant) {
        let jitter = self.rng.below(self.cables.jitter.as_nanos() + 1);
        let mut at = now + self.cables.delay + Duration::from_nanos(jitter);
        let last = &mut self.last[cable(&arrival)];
        if !self.cables.overtaking {
            at = at.max(*last);
        }
        *last = at;
        self.frames += 1;
        self.on_way.insert((at, self.frames), arrival);
    }

    /// When the next frame arrives.
    pub fn next(&self) -> Option<Instant> {
        self.on_way.keys().next().map(|(at, _)| *at)
    }

    /// A frame that has arrived by `now`.
    pub fn take(&mut self, now: Instant) -> Option<Arrival> {
        let first = self.on_way.first_entry()?;
        (first.key().0 <= now).then(|| first.remove())
    }

    /// Frames that were lost.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

fn cable(arrival: &Arrival) -> usize {
    match arrival {
        Arrival::Director { port, .. } => *port,
        Arrival::Hosts { port, .. } => 2 + port,
        Arrival::Past { .. } => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CABLES: Cables = Cables {
        delay: Duration::from_millis(1),
        jitter: Duration::from_millis(9),
        lost_permille: 0,
        twice_permille: 0,
        overtaking: false,
    };

    fn numbered(number: u8) -> Arrival {
        Arrival::Hosts {
            port: 0,
            frame: vec![number],
        }
    }

    /// What arrives when a hundred frames are sent, each with its number.
    fn arrivals(cables: Cables) -> Vec<u8> {
        let mut net = Net::new(cables, 3);
        let mut now = Instant::ZERO;
        for number in 0..100 {
            net.send(numbered(number), now);
        }
        let mut all = Vec::new();
        while let Some(next) = net.next() {
            now = next;
            let Some(Arrival::Hosts { frame, .. }) = net.take(now) else {
                panic!("it is due");
            };
            all.push(frame[0]);
        }
        assert!(now <= Instant::ZERO + CABLES.delay + CABLES.jitter);
        all
    }

    #[test]
    fn a_good_cable_keeps_all_in_order() {
        assert_eq!(arrivals(CABLES), (0..100).collect::<Vec<u8>>());
    }

    #[test]
    fn a_bad_cable_does_what_it_is_told() {
        let lossy = arrivals(Cables {
            lost_permille: 500,
            ..CABLES
        });
        assert!((20..80).contains(&lossy.len()), "{}", lossy.len());
        let twice = arrivals(Cables {
            twice_permille: 500,
            ..CABLES
        });
        assert!((120..180).contains(&twice.len()), "{}", twice.len());
        let mut mixed = arrivals(Cables {
            overtaking: true,
            ..CABLES
        });
        assert!(!mixed.is_sorted());
        mixed.sort_unstable();
        assert_eq!(mixed, (0..100).collect::<Vec<u8>>());
    }
}
