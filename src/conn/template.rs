//! Persistence: the key of a connection template (`ip_vs_sched_persist`). A template is an entry like
//! any other, of a client network instead of a client.

use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;

use crate::lvs::tuple::{PackedAddress, Tuple};
use crate::lvs::{Family, Netmask, Protocol, ServiceSpec};

/// What a persistence engine adds to a template's key: for `sip`, the call's Call-ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineData(Arc<[u8]>);

impl EngineData {
    /// Most bytes (`IP_VS_PEDATA_MAXLEN`).
    pub const BYTES_MAX: usize = 255;

    /// These bytes, 1..=`BYTES_MAX`; `None` for none or more.
    pub fn new(bytes: &[u8]) -> Option<EngineData> {
        let fits = (1..=EngineData::BYTES_MAX).contains(&bytes.len());
        fits.then(|| EngineData(bytes.into()))
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Templates with such data are hashed by it alone: all calls of one client would be one row.
    pub(super) fn hash(&self, seed: u64) -> u64 {
        FixedState::with_seed(seed).hash_one(self.bytes())
    }
}

/// FTP's control port, whose data connections follow it.
const FTP_PORT: u16 = 21;

/// The key of the template that this packet of a persistent service asks for: the client's network and
/// port 0; the VIP and its port, port 0 where connections to other ports shall stay together, or the
/// mark in place of an address.
pub fn key(spec: &ServiceSpec, tuple: &Tuple, mark: u32) -> Tuple {
    let network = (masked(tuple.source, spec.netmask, tuple.family()), 0);
    let port = spec.key.port();
    if spec.key.is_mark() {
        return Tuple::new(
            tuple.family(),
            Protocol::IP,
            network,
            ([0, u64::from(mark)], 0),
        );
    }
    let own_port = tuple.target_port() == port && port != FTP_PORT;
    let virt = (tuple.target, if own_port { port } else { 0 });
    Tuple::new(tuple.family(), tuple.protocol(), network, virt)
}

fn masked(address: PackedAddress, netmask: Netmask, family: Family) -> PackedAddress {
    match (netmask, family) {
        (Netmask::V4(mask), Family::V4) => [0, address[1] & u64::from(mask)],
        (Netmask::V6(len), Family::V6) => {
            let bits = u128::from(address[0]) << 64 | u128::from(address[1]);
            let kept = bits
                & u128::MAX
                    .checked_shl(128 - u32::from(len.min(128)))
                    .unwrap_or(0);
            [(kept >> 64) as u64, kept as u64]
        }
        _ => address,
    }
}
