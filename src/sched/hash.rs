//! The hashes that spread addresses over tables: the kernel's multiplicative `hash_32`
//! (`include/linux/hash.h`, since 4.18) and SipHash-1-3 of one 32-bit word
//! (`hsiphash_1u32` of `lib/siphash.c` on 64-bit machines).

use std::net::IpAddr;

/// An address as 32 bits: IPv4 in host order, IPv6 as the exclusive or of its four words.
pub fn fold(address: IpAddr) -> u32 {
    match address {
        IpAddr::V4(address) => address.to_bits(),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            [0, 32, 64, 96]
                .into_iter()
                .fold(0, |folded, shift| folded ^ (bits >> shift) as u32)
        }
    }
}

/// The upper `bits` (1..=31) of `value` times 2^32 divided by the golden ratio.
pub const fn hash_32(value: u32, bits: u32) -> u32 {
    value.wrapping_mul(0x61c8_8647) >> (32 - bits)
}

/// How [`hash_32`] came to `slot`, for a story.
pub fn hash_32_words(of: &str, value: u32, bits: u32, slot: u32) -> String {
    let (shift, slots) = (32 - bits, 1 << bits);
    format!("{of}: ({value:#x} * 0x61c88647 mod 2^32) >> {shift} = slot {slot} of {slots}")
}

/// SipHash-1-3 (Aumasson, Bernstein 2012) of the four bytes of `word`, least significant first, cut to
/// 32 bits. `key` is both halves of the key.
pub const fn siphash_1_3(word: u32, key: u64) -> u32 {
    siphash_1_3_keyed(word, [key, key])
}

const fn siphash_1_3_keyed(word: u32, key: [u64; 2]) -> u32 {
    // One block: the word, and the length of the message in the highest byte.
    let block = (4 << 56) | word as u64;
    let mut v = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    v[3] ^= block;
    v = round(v);
    v[0] ^= block;
    v[2] ^= 0xff;
    v = round(round(round(v)));
    (v[0] ^ v[1] ^ v[2] ^ v[3]) as u32
}

const fn round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siphash_as_the_kernel_tests_it() {
        let key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
        assert_eq!(siphash_1_3_keyed(0x0302_0100, key), 0x88d3_8328);
        assert_eq!(siphash_1_3(0, 2_654_435_761), 0x1d5a_77c2);
        assert_eq!(siphash_1_3(1, 2_654_435_761), 0x16ec_66b2);
    }

    #[test]
    fn rows_of_addresses() {
        let row = |address: [u8; 4], bits| hash_32(fold(address.into()), bits);
        assert_eq!(row([192, 0, 2, 1], 8), 50);
        assert_eq!(row([192, 0, 2, 2], 8), 148);
        assert_eq!(row([198, 51, 100, 7], 8), 171);
        assert_eq!(row([203, 0, 113, 200], 8), 52);
        assert_eq!(row([192, 0, 2, 1], 10), 203);
        assert_eq!(hash_32(fold([192, 0, 2, 1].into()) + 40000, 8), 214);
    }

    #[test]
    fn ipv6_is_folded() {
        let address = "1:2:3:4:5:6:7:8".parse().unwrap();
        assert_eq!(
            fold(address),
            0x0001_0002 ^ 0x0003_0004 ^ 0x0005_0006 ^ 0x0007_0008
        );
    }
}
