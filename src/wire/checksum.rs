//! The Internet checksum (RFC 1071), its incremental update (RFC 1624), and SCTP's CRC32c (RFC 9260
//! appendix B). Sums are kept unfolded in 64 bits until somebody wants a field.

use std::net::{IpAddr, Ipv4Addr};

/// From so many bytes on they are summed in a way that pays for many.
const LONG: usize = 128;

/// An unfinished ones'-complement sum of 16-bit words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes` as big-endian words; an odd last byte is padded with zero.
    #[inline]
    pub fn of(bytes: &[u8]) -> Sum {
        if bytes.len() >= LONG {
            return Sum::of_many(bytes);
        }
        let (words, rest) = bytes.as_chunks::<4>();
        let total: u64 = words
            .iter()
            .map(|word| u64::from(u32::from_be_bytes(*word)))
            .sum();
        let mut last = [0; 4];
        last[..rest.len()].copy_from_slice(rest);
        Sum(total + u64::from(u32::from_be_bytes(last)))
    }

    /// The same three times as fast, for many bytes: four sums of eight bytes a word side by side, in the
    /// order of this machine. The bytes of a folded sum are exchanged where those of the words are
    /// (RFC 1071 section 2 B).
    fn of_many(bytes: &[u8]) -> Sum {
        let (blocks, rest) = bytes.as_chunks::<32>();
        let mut sums = [0u64; 4];
        for block in blocks {
            let (words, _) = block.as_chunks::<8>();
            for (sum, word) in sums.iter_mut().zip(words) {
                let (more, carry) = sum.overflowing_add(u64::from_ne_bytes(*word));
                *sum = more + u64::from(carry);
            }
        }
        let total = sums.iter().fold(Sum(0), |total, sum| total.plus(Sum(*sum)));
        Sum(u64::from(u16::from_be(total.folded()))).plus(Sum::of(rest))
    }

    /// The sum of an IPv4 header without options.
    #[inline(always)]
    pub fn of_header(header: &[u8; 20]) -> Sum {
        let word = |at: usize| {
            let octets = [header[at], header[at + 1], header[at + 2], header[at + 3]];
            u64::from(u32::from_be_bytes(octets))
        };
        Sum(word(0) + word(4) + word(8) + word(12) + word(16))
    }

    /// Adds one 16-bit word.
    pub const fn word(self, word: u16) -> Sum {
        Sum(self.0 + word as u64)
    }

    /// Adds another sum.
    pub const fn plus(self, other: Sum) -> Sum {
        Sum(fold32(self.0) as u64 + fold32(other.0) as u64)
    }

    /// Takes another sum out again: adds its complement (RFC 1624, equation 3).
    pub const fn minus(self, other: Sum) -> Sum {
        Sum(fold32(self.0) as u64 + !fold32(other.0) as u64)
    }

    /// The sum folded to 16 bits, not complemented: what a partial checksum field holds.
    #[inline(always)]
    pub const fn folded(self) -> u16 {
        let sum = fold32(self.0);
        // The lower half of this addition carries into the upper one, which is what is wanted.
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }

    /// The checksum field of these bytes.
    pub const fn checksum(self) -> u16 {
        !self.folded()
    }
}

#[inline(always)]
const fn fold32(sum: u64) -> u32 {
    let (sum, carry) = (sum as u32).overflowing_add((sum >> 32) as u32);
    // Where it carries, the sum is at most twice the largest word less its overflow: room for one more.
    sum + carry as u32
}

/// What a replacement of some words does to a sum over them: `new - old` in ones' complement, for one
/// field or several.
#[derive(Clone, Copy, Debug)]
pub struct Delta(u64);

impl Delta {
    /// Nothing was replaced yet.
    #[inline(always)]
    pub const fn none() -> Delta {
        Delta(0)
    }

    /// One IPv4 address takes the place of another.
    #[inline(always)]
    pub const fn v4(old: Ipv4Addr, new: Ipv4Addr) -> Delta {
        Delta(!old.to_bits() as u64 + new.to_bits() as u64)
    }

    /// One address takes the place of another of its family.
    pub fn address(old: IpAddr, new: IpAddr) -> Delta {
        match (old, new) {
            (IpAddr::V4(old), IpAddr::V4(new)) => Delta::v4(old, new),
            _ => Delta(of_address(new).minus(of_address(old)).0),
        }
    }

    /// One 16-bit word takes the place of another, too.
    #[inline(always)]
    pub const fn word(self, old: u16, new: u16) -> Delta {
        Delta(self.0 + !old as u64 + new as u64)
    }

    /// The checksum field afterwards (RFC 1624, equation 3).
    #[inline(always)]
    pub const fn apply(self, field: u16) -> u16 {
        !Sum(self.0 + !field as u64).folded()
    }

    /// The field of a partial checksum (the plain pseudo-header sum) afterwards.
    #[inline(always)]
    pub const fn apply_partial(self, field: u16) -> u16 {
        Sum(self.0 + field as u64).folded()
    }
}

/// The sum over an address.
pub fn of_address(address: IpAddr) -> Sum {
    match address {
        IpAddr::V4(address) => Sum(u64::from(u32::from(address))),
        IpAddr::V6(address) => Sum::of(&address.octets()),
    }
}

/// The sum over the pseudo-header (RFC 9293 section 3.1, RFC 8200 section 8.1).
pub fn pseudo_header(source: IpAddr, target: IpAddr, protocol: u8, len: usize) -> Sum {
    let addresses = of_address(source).plus(of_address(target));
    addresses.word(u16::from(protocol)).plus(Sum(len as u64))
}

/// SCTP's checksum over a packet whose checksum field counts as zero; to be stored little-endian at
/// offset 8.
pub fn sctp(packet: &[u8]) -> u32 {
    let mut crc = !0u32;
    for (at, byte) in packet.iter().enumerate() {
        let byte = if (8..12).contains(&at) { 0 } else { *byte };
        crc = (crc >> 8) ^ CRC32C[usize::from((crc as u8) ^ byte)];
    }
    !crc
}

/// The table of the Castagnoli polynomial, reflected: 0x82f63b78.
const CRC32C: [u32; 256] = {
    let mut table = [0u32; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 != 0 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn slow(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn fast_sum_is_the_slow_sum() {
        let mut rng = Rng::new(3);
        for len in (0..400).chain([1447, 1448, 65_535]) {
            let bytes: Vec<u8> = (0..len).map(|_| rng.next_u64() as u8).collect();
            assert_eq!(Sum::of(&bytes).checksum(), slow(&bytes), "length {len}");
            assert_eq!(Sum::of(&vec![0xff; len]).checksum(), slow(&vec![0xff; len]));
            assert_eq!(Sum::of(&vec![0; len]).checksum(), 0xffff);
        }
    }

    #[test]
    fn incremental_update_is_the_full_sum() {
        let mut rng = Rng::new(4);
        for _ in 0..10_000 {
            let mut bytes: [u8; 24] = std::array::from_fn(|_| rng.next_u64() as u8);
            let before = Sum::of(&bytes).checksum();
            let read = |bytes: &[u8; 24]| {
                let octets: [u8; 4] = bytes[4..8].try_into().expect("four");
                (
                    IpAddr::from(octets),
                    u16::from_be_bytes([bytes[8], bytes[9]]),
                )
            };
            let old = read(&bytes);
            for byte in &mut bytes[4..10] {
                *byte = rng.next_u64() as u8;
            }
            let new = read(&bytes);
            let delta = Delta::address(old.0, new.0).word(old.1, new.1);
            assert_eq!(delta.apply(before), Sum::of(&bytes).checksum());
            assert_eq!(delta.apply_partial(!before), Sum::of(&bytes).folded());
        }
    }

    #[test]
    fn crc32c_check_value() {
        // The field itself is skipped, so the check string is laid around it.
        let mut packet = b"12345678".to_vec();
        packet.extend([0; 4]);
        let with_zero_field = sctp(&packet);
        packet[8..12].copy_from_slice(&[9; 4]);
        assert_eq!(sctp(&packet), with_zero_field);
        let plain = b"1234".iter().fold(!0u32, |crc, byte| {
            (crc >> 8) ^ CRC32C[usize::from((crc as u8) ^ byte)]
        });
        assert_eq!(sctp(b"1234"), !plain);
        let nine = b"123456789".iter().fold(!0u32, |crc, byte| {
            (crc >> 8) ^ CRC32C[usize::from((crc as u8) ^ byte)]
        });
        assert_eq!(!nine, 0xe306_9283, "the published check value of CRC-32C");
    }
}
