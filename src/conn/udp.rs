//! UDP as IPVS has it (`ip_vs_proto_udp.c`): one state, one timeout. Packets of either direction
//! restart the timeout; a UDP "connection" never counts as active.

use crate::lvs::Timeouts;

/// The number of the one state, in sync messages too.
pub const NORMAL: u8 = 0;

/// As ipvsadm prints the one state.
pub const NAME: &str = "UDP";

/// How long a connection may stay idle, in seconds.
pub const fn timeout_s(timeouts: &Timeouts) -> u32 {
    timeouts.udp_s
}
