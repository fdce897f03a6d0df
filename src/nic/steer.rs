//! Steering: a fanout group whose program sends both directions of a connection to the same worker,
//! by (client address, client port). Correctness never depends on it: a frame that lands elsewhere is
//! handled there. See packet(7), PACKET_FANOUT, and `net/core/filter.c` for the language.

use std::os::fd::OwnedFd;

use super::sys;

/// Where the client is, seen from this interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// Clients are out here: the client is the source of what arrives.
    Public,
    /// Real servers are out here: the client is the target of what arrives.
    Private,
}

/// The group of `interface` in this process, where nobody chose one.
pub(super) fn default_group(index: u32) -> u16 {
    (std::process::id() ^ index.wrapping_mul(0x9e37)) as u16
}

/// Joins the group as its next member. The socket must be bound, and its interface up.
pub(super) fn join(fd: &OwnedFd, group: u16, side: Side) -> std::io::Result<()> {
    let argument = u32::from(group) | libc::PACKET_FANOUT_CBPF << 16;
    sys::set_option(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &argument)?;
    // Each member gives the same program, so it does not matter who is first.
    let data = libc::PACKET_FANOUT_DATA;
    sys::set_program(fd, libc::SOL_PACKET, data, &program(side))
}

/// Which worker of `workers` the program chooses: the same arithmetic, for tests and explanations.
/// An IPv6 address is folded into 32 bits by exclusive or.
pub fn worker_for(client: std::net::IpAddr, port: u16, workers: usize) -> usize {
    let address = match client {
        std::net::IpAddr::V4(address) => u32::from(address),
        std::net::IpAddr::V6(address) => {
            let bits = u128::from(address);
            (bits >> 96) as u32 ^ (bits >> 64) as u32 ^ (bits >> 32) as u32 ^ bits as u32
        }
    };
    let mixed = (u32::from(port).wrapping_mul(PORT_MIX) ^ address).wrapping_mul(SUM_MIX);
    (mixed >> 16) as usize % workers
}

/// 2^32 divided by the golden ratio (Knuth, multiplicative hashing): spreads neighbouring ports.
const PORT_MIX: u32 = 0x9e37_79b9;
/// The first multiplier of MurmurHash3's finalizer: spreads neighbouring addresses.
const SUM_MIX: u32 = 0x85eb_ca6b;

const IPV4: u32 = 0x0800;
const IPV6: u32 = 0x86dd;
const TCP: u32 = 6;
const UDP: u32 = 17;
const SCTP: u32 = 132;

/// The program: TCP, UDP and SCTP by the client's address and port, everything else to worker 0
/// (ARP, ICMP, fragments, IPv6 extension headers).
fn program(side: Side) -> Vec<libc::sock_filter> {
    use op::*;
    // Offsets of the client's address and port in the network and transport headers.
    let (address4, address6, port) = match side {
        Side::Public => (12, 8, 0),
        Side::Private => (16, 24, 2),
    };
    let net = |at: u32| (libc::SKF_NET_OFF as u32).wrapping_add(at);
    let protocol = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
    // Jumps count the instructions to skip. `ELSEWHERE` stands behind each part.
    let ipv4 = vec![
        load_half(net(6)),
        jump_if_set(0x3fff, 13, 0),
        load_byte(net(9)),
        jump_if(TCP, 2, 0),
        jump_if(UDP, 1, 0),
        jump_if(SCTP, 0, 9),
        load_header_len(net(0)),
        load_half_indexed(net(port)),
        multiply(PORT_MIX),
        move_to_index(),
        load_word(net(address4)),
        xor_index(),
        multiply(SUM_MIX),
        shift_right(16),
        give_back_sum(),
        give_back(0),
    ];
    let ipv6 = vec![
        load_byte(net(6)),
        jump_if(TCP, 2, 0),
        jump_if(UDP, 1, 0),
        jump_if(SCTP, 0, 17),
        load_half(net(40 + port)),
        multiply(PORT_MIX),
        move_to_index(),
        load_word(net(address6)),
        xor_index(),
        move_to_index(),
        load_word(net(address6 + 4)),
        xor_index(),
        move_to_index(),
        load_word(net(address6 + 8)),
        xor_index(),
        move_to_index(),
        load_word(net(address6 + 12)),
        xor_index(),
        multiply(SUM_MIX),
        shift_right(16),
        give_back_sum(),
        give_back(0),
    ];
    let mut all = vec![
        load_word(protocol),
        jump_if(IPV4, 2, 0),
        jump_if(IPV6, 1 + ipv4.len() as u8, 0),
        give_back(0),
    ];
    all.extend(ipv4);
    all.extend(ipv6);
    all
}

/// The few instructions of classic BPF that this room writes.
pub(super) mod op {
    use libc::sock_filter;

    const fn plain(code: u32, k: u32) -> sock_filter {
        jump(code, k, 0, 0)
    }

    const fn jump(code: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
        sock_filter {
            code: code as u16,
            jt,
            jf,
            k,
        }
    }

    pub const fn load_word(at: u32) -> sock_filter {
        plain(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at)
    }

    pub const fn load_half(at: u32) -> sock_filter {
        plain(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, at)
    }

    pub const fn load_byte(at: u32) -> sock_filter {
        plain(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, at)
    }

    pub const fn load_half_indexed(at: u32) -> sock_filter {
        plain(libc::BPF_LD | libc::BPF_H | libc::BPF_IND, at)
    }

    /// The IPv4 header length in bytes, into the index register.
    pub const fn load_header_len(at: u32) -> sock_filter {
        plain(libc::BPF_LDX | libc::BPF_B | libc::BPF_MSH, at)
    }

    pub const fn multiply(by: u32) -> sock_filter {
        plain(libc::BPF_ALU | libc::BPF_MUL | libc::BPF_K, by)
    }

    pub const fn shift_right(by: u32) -> sock_filter {
        plain(libc::BPF_ALU | libc::BPF_RSH | libc::BPF_K, by)
    }

    pub const fn xor_index() -> sock_filter {
        plain(libc::BPF_ALU | libc::BPF_XOR | libc::BPF_X, 0)
    }

    pub const fn move_to_index() -> sock_filter {
        plain(libc::BPF_MISC | libc::BPF_TAX, 0)
    }

    pub const fn jump_if(equal: u32, then: u8, otherwise: u8) -> sock_filter {
        let code = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        jump(code, equal, then, otherwise)
    }

    pub const fn jump_if_set(bits: u32, then: u8, otherwise: u8) -> sock_filter {
        let code = libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K;
        jump(code, bits, then, otherwise)
    }

    pub const fn jump_over(instructions: u32) -> sock_filter {
        plain(libc::BPF_JMP | libc::BPF_JA | libc::BPF_K, instructions)
    }

    pub const fn give_back(value: u32) -> sock_filter {
        plain(libc::BPF_RET | libc::BPF_K, value)
    }

    pub const fn give_back_sum() -> sock_filter {
        plain(libc::BPF_RET | libc::BPF_A, 0)
    }
}
