//! Tuple: a flow packed into five words, so that the packet path compares and hashes it without
//! asking which family it is. IPv4 uses the lower half of the second word of an address.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::flow::{Endpoint, Family, Flow, Protocol};

/// An address in two words; IPv4 is `[0, address]`.
pub type PackedAddress = [u64; 2];

/// One direction of a conversation, packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Who sent it.
    pub source: PackedAddress,
    /// Who shall have it.
    pub target: PackedAddress,
    /// Source port, target port, protocol and family, in this order from the top.
    meta: u64,
}

const FAMILY_V6: u64 = 1;

impl Tuple {
    /// Packs the parts of a flow.
    pub const fn new(
        family: Family,
        protocol: Protocol,
        source: (PackedAddress, u16),
        target: (PackedAddress, u16),
    ) -> Tuple {
        let family = match family {
            Family::V4 => 0,
            Family::V6 => FAMILY_V6,
        };
        let ports = (source.1 as u64) << 48 | (target.1 as u64) << 32;
        Tuple {
            source: source.0,
            target: target.0,
            meta: ports | (protocol.0 as u64) << 8 | family,
        }
    }

    /// The family of both addresses.
    pub const fn family(&self) -> Family {
        if self.meta & FAMILY_V6 != 0 {
            Family::V6
        } else {
            Family::V4
        }
    }

    /// TCP, UDP, SCTP, or 0 for a mark's template.
    pub const fn protocol(&self) -> Protocol {
        Protocol((self.meta >> 8) as u8)
    }

    /// The source port.
    pub const fn source_port(&self) -> u16 {
        (self.meta >> 48) as u16
    }

    /// The target port.
    pub const fn target_port(&self) -> u16 {
        (self.meta >> 32) as u16
    }

    /// The same flow, unpacked.
    pub fn flow(&self) -> Flow {
        let unpack = |address, port| Endpoint::new(unpack(self.family(), address), port);
        Flow {
            protocol: self.protocol(),
            source: unpack(self.source, self.source_port()),
            target: unpack(self.target, self.target_port()),
        }
    }

    /// A hash of everything. Multiply-and-fold twice; `seed` makes it this process's own, so that
    /// nobody outside can choose addresses that collide.
    pub const fn hash(&self, seed: u64) -> u64 {
        let addresses = self.source[1].rotate_left(32) ^ self.target[1];
        let high = self.source[0].rotate_left(17) ^ self.target[0];
        fold(
            fold(addresses ^ seed, self.meta ^ 0x9e37_79b9_7f4a_7c15) ^ high,
            seed | 1,
        )
    }

    /// A hash of the client's end alone: what both directions of a connection have in common.
    pub const fn client_hash(
        client: PackedAddress,
        port: u16,
        protocol: Protocol,
        seed: u64,
    ) -> u64 {
        let rest = (port as u64) << 8 | protocol.0 as u64;
        fold(
            fold(client[1] ^ seed, rest ^ 0x9e37_79b9_7f4a_7c15) ^ client[0],
            seed | 1,
        )
    }
}

/// The high and the low half of the 128-bit product, folded into one word.
const fn fold(a: u64, b: u64) -> u64 {
    let product = (a as u128).wrapping_mul(b as u128 ^ 0xa076_1d64_78bd_642f);
    (product as u64) ^ (product >> 64) as u64
}

impl From<Flow> for Tuple {
    fn from(flow: Flow) -> Tuple {
        Tuple::new(
            flow.family(),
            flow.protocol,
            (pack(flow.source.address), flow.source.port),
            (pack(flow.target.address), flow.target.port),
        )
    }
}

/// Packs an address.
#[inline]
pub const fn pack(address: IpAddr) -> PackedAddress {
    match address {
        IpAddr::V4(address) => [0, address.to_bits() as u64],
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [(bits >> 64) as u64, bits as u64]
        }
    }
}

/// Unpacks an address of a known family.
#[inline]
pub const fn unpack(family: Family, packed: PackedAddress) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(packed[1] as u32)),
        Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(
            (packed[0] as u128) << 64 | packed[1] as u128,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(source: &str, target: &str) -> Flow {
        let end = |text: &str, port| Endpoint::new(text.parse().expect("address"), port);
        Flow {
            protocol: Protocol::TCP,
            source: end(source, 40000),
            target: end(target, 80),
        }
    }

    #[test]
    fn packing_loses_nothing() {
        for flow in [
            flow("10.0.0.1", "1.2.3.4"),
            flow("fd00::1", "::ffff:1.2.3.4"),
        ] {
            assert_eq!(Tuple::from(flow).flow(), flow);
        }
    }

    #[test]
    fn families_stay_apart() {
        let v4 = Tuple::from(flow("0.0.0.1", "0.0.0.2"));
        let v6 = Tuple::from(flow("::1", "::2"));
        assert_ne!(v4, v6);
    }

    #[test]
    fn hashes_spread_over_the_low_bits() {
        let mut seen = vec![0u32; 256];
        for port in 0..25_600u32 {
            let mut flow = flow("10.0.0.1", "1.2.3.4");
            flow.source.port = port as u16;
            seen[(Tuple::from(flow).hash(7) & 255) as usize] += 1;
        }
        assert!(
            seen.iter().all(|count| (50..200).contains(count)),
            "{seen:?}"
        );
    }
}
