//! Pools: the addresses and ports that the director speaks from for others, as the packet path uses
//! them, and the search for a free one. It knows no table: the caller says what is free.

use std::net::IpAddr;

use super::classify::{Prefix, covered, prefixes};
use crate::lvs::tunables::SOURCE_PROBES_MAX;
use crate::lvs::tuple::pack;
use crate::lvs::{Endpoint, Family, Masquerading, SourcePool};
use crate::rng::Rng;

/// What a snapshot knows of them.
#[derive(Debug, Default)]
pub struct Pools {
    inside: Vec<Prefix>,
    /// Public ends of masqueraded connections.
    pub public: Ends,
    /// Local ends of full NAT.
    pub local: Ends,
}

/// Addresses by family, and the ports that may be used at each.
#[derive(Debug, Default)]
pub struct Ends {
    addresses: [Vec<IpAddr>; 2],
    ports: (u16, u16),
}

impl Pools {
    /// As configured.
    pub fn new(masquerading: &Masquerading, full_nat: &SourcePool) -> Pools {
        Pools {
            inside: prefixes(&masquerading.prefixes),
            public: Ends::new(&masquerading.pool),
            local: Ends::new(full_nat),
        }
    }

    /// Is it an address behind the director whose connections are masqueraded?
    pub fn is_inside(&self, address: IpAddr) -> bool {
        !self.inside.is_empty() && covered(&self.inside, Family::of(address), pack(address))
    }

    /// Is anybody of this family masqueraded?
    pub fn masquerades(&self, family: Family) -> bool {
        !self.inside.is_empty() && self.public.has(family)
    }

    /// All addresses of the pools: the director answers for them.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let both = self.public.addresses.iter().chain(&self.local.addresses);
        both.flatten().copied()
    }
}

impl Ends {
    fn new(pool: &SourcePool) -> Ends {
        let of = |family: Family| {
            let mine = pool.addresses.iter().copied();
            mine.filter(|address| Family::of(*address) == family)
                .collect()
        };
        Ends {
            addresses: [of(Family::V4), of(Family::V6)],
            ports: pool.ports,
        }
    }

    /// Is there an address of this family?
    pub fn has(&self, family: Family) -> bool {
        !self.addresses[family as usize].is_empty()
    }

    /// A free end of this family. `home` says at which address to look first; the port wished for is
    /// tried there before all others. Then chance leads, half of the tries at that address and half at
    /// all of them, since a row of neighbours is long where most ports are taken.
    pub fn choose(
        &self,
        family: Family,
        home: u64,
        wish: Option<u16>,
        rng: &mut Rng,
        mut is_free: impl FnMut(Endpoint) -> bool,
    ) -> Option<Endpoint> {
        let addresses = &self.addresses[family as usize];
        let count = addresses.len() as u64;
        let home = *addresses.get(home.checked_rem(count)? as usize)?;
        let (first, last) = self.ports;
        let wished = wish.filter(|port| (first..=last).contains(port));
        if let Some(port) = wished
            && is_free(Endpoint::new(home, port))
        {
            return Some(Endpoint::new(home, port));
        }
        for probe in 0..SOURCE_PROBES_MAX {
            let address = if probe < SOURCE_PROBES_MAX / 2 || count == 1 {
                home
            } else {
                addresses[rng.below(count) as usize]
            };
            let port = first + rng.below(u64::from(last - first) + 1) as u16;
            let end = Endpoint::new(address, port);
            if is_free(end) {
                return Some(end);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(ports: (u16, u16)) -> Ends {
        Ends::new(&SourcePool {
            addresses: vec![[10, 0, 0, 5].into(), [10, 0, 0, 6].into()],
            ports,
        })
    }

    #[test]
    fn the_port_wished_for_is_kept_while_it_is_free() {
        let (ends, mut rng) = (pool((1024, 2047)), Rng::new(1));
        let end = ends.choose(Family::V4, 0, Some(1500), &mut rng, |_| true);
        assert_eq!(end, Some(Endpoint::new([10, 0, 0, 5].into(), 1500)));
        let taken = |end: Endpoint| end.port != 1500;
        let other = ends.choose(Family::V4, 0, Some(1500), &mut rng, taken);
        let other = other.expect("a thousand others are free");
        assert!((1024..2048).contains(&other.port) && other.port != 1500);
        // A wish outside the range is none.
        let end = ends.choose(Family::V4, 1, Some(80), &mut rng, |_| true);
        assert!(end.is_some_and(|end| end.port >= 1024));
    }

    #[test]
    fn the_search_is_bounded_and_reaches_every_address() {
        let (ends, mut rng) = (pool((1024, 1024)), Rng::new(1));
        let mut asked = Vec::new();
        let nobody = ends.choose(Family::V4, 0, None, &mut rng, |end| {
            asked.push(end);
            false
        });
        assert_eq!((nobody, asked.len()), (None, SOURCE_PROBES_MAX as usize));
        assert!(
            asked
                .iter()
                .any(|end| end.address == IpAddr::from([10, 0, 0, 6]))
        );
        assert!(!ends.has(Family::V6));
        let none = ends.choose(Family::V6, 0, None, &mut rng, |_| true);
        assert_eq!(none, None, "nothing to choose from");
    }

    #[test]
    fn almost_all_ports_of_an_address_can_be_in_use() {
        let (ends, mut rng) = (pool((1024, 5119)), Rng::new(7));
        let mut taken = std::collections::BTreeSet::new();
        let found = (0..7_500u32).filter(|_| {
            let end = ends.choose(Family::V4, 0, None, &mut rng, |end| !taken.contains(&end));
            end.is_some_and(|end| taken.insert(end))
        });
        assert!(found.count() >= 7_480);
    }
}
