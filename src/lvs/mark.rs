//! MarkRule: which packets get which firewall mark. No mark of netfilter reaches a director that takes
//! frames before netfilter does, so it has rules of its own.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Protocol;
use super::json::prefixes;

/// Packets that match all that a rule says get its mark; what it does not say matches every packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MarkRule {
    /// The mark, not 0.
    pub mark: u32,
    /// The protocol. `Protocol::ICMP` stands for ICMPv6 too.
    #[serde(default)]
    pub protocol: Option<Protocol>,
    /// Networks of senders, each an address and the length of its prefix; none is all.
    #[serde(default, with = "prefixes")]
    #[schemars(with = "Vec<String>")]
    pub sources: Vec<(IpAddr, u8)>,
    /// Networks of targets.
    #[serde(default, with = "prefixes")]
    #[schemars(with = "Vec<String>")]
    pub targets: Vec<(IpAddr, u8)>,
    /// Target ports from the first to the last; none is all.
    #[serde(default)]
    pub target_ports: Vec<(u16, u16)>,
    /// The interface that the packet comes in by.
    #[serde(default)]
    pub interface: Option<String>,
}

impl MarkRule {
    /// Targets that are single addresses.
    pub fn single_targets(&self) -> impl Iterator<Item = IpAddr> {
        let whole =
            |(address, len): &&(IpAddr, u8)| *len == if address.is_ipv4() { 32 } else { 128 };
        self.targets
            .iter()
            .filter(whole)
            .map(|(address, _)| *address)
    }
}
