//! Where the director speaks for others under an address of its own: full NAT towards the real servers,
//! masquerading towards the world. Both are additions of ours to IPVS.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::json::prefixes;

/// Addresses of the director and the ports it may use there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SourcePool {
    /// The addresses, of either family.
    pub addresses: Vec<IpAddr>,
    /// First and last port. An echo's identifier counts as its port.
    #[serde(default = "unprivileged")]
    pub ports: (u16, u16),
}

/// Ports that no well-known service has.
const fn unprivileged() -> (u16, u16) {
    (1024, u16::MAX)
}

impl Default for SourcePool {
    fn default() -> SourcePool {
        SourcePool {
            addresses: Vec::new(),
            ports: unprivileged(),
        }
    }
}

/// Who may open connections outwards, and under which addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Masquerading {
    /// Networks behind the director: address and length of the prefix.
    #[serde(with = "prefixes")]
    #[schemars(with = "Vec<String>")]
    pub prefixes: Vec<(IpAddr, u8)>,
    /// What the world sees.
    pub pool: SourcePool,
}
