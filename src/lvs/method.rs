//! How a packet reaches its real server, and what LVS-TUN wraps it in.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The forwarding method of a real server. The numbers are the kernel's (`IP_VS_CONN_F_MASQ` …) and
/// travel in sync messages.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ForwardMethod {
    /// LVS-NAT: both directions are rewritten by the director.
    Masq = 0,
    /// The real server is the director itself.
    Local = 1,
    /// LVS-TUN: encapsulated to the real server, which answers directly.
    Tunnel = 2,
    /// LVS-DR: only the MAC address changes; the real server answers directly. ipvsadm's default.
    #[default]
    Route = 3,
    /// Sent on to its original target (`cache_bypass`).
    Bypass = 4,
    /// Full NAT, an addition of ours: the client's end is rewritten too, so that the real server
    /// answers to the director wherever its routes lead. The kernel has no such number.
    #[serde(rename = "fnat")]
    FullNat = 5,
    /// No service's: an entry of a connection that a host behind the director opened outwards. The
    /// kernel has no such number.
    Masquerade = 6,
}

impl ForwardMethod {
    /// The word ipvsadm and `/proc/net/ip_vs` print.
    pub const fn name(self) -> &'static str {
        match self {
            ForwardMethod::Masq => "Masq",
            ForwardMethod::Local => "Local",
            ForwardMethod::Tunnel => "Tunnel",
            ForwardMethod::Route => "Route",
            ForwardMethod::Bypass => "Bypass",
            ForwardMethod::FullNat => "FullNAT",
            ForwardMethod::Masquerade => "Masqued",
        }
    }

    /// Does the director rewrite both directions, so that answers must pass it?
    pub const fn is_nat(self) -> bool {
        matches!(
            self,
            ForwardMethod::Masq | ForwardMethod::FullNat | ForwardMethod::Masquerade
        )
    }

    /// Can a real server be configured with it?
    pub const fn is_configurable(self) -> bool {
        !matches!(self, ForwardMethod::Bypass | ForwardMethod::Masquerade)
    }
}

/// What LVS-TUN wraps a packet in (`ipvsadm --tun-type`, `IP_VS_CONN_F_TUNNEL_TYPE_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Tunnel {
    /// IP in IP (RFC 2003), or IPv6 in IPv6 and the mixed forms.
    #[default]
    Ipip,
    /// Generic UDP Encapsulation (draft-ietf-intarea-gue).
    Gue {
        /// UDP port the real server listens on, in host order; never 0.
        port: u16,
        /// Which checksum the outer header carries.
        checksum: TunnelChecksum,
    },
    /// Generic Routing Encapsulation (RFC 2784).
    Gre {
        /// `No` or `Full`; GRE knows no remote checksum.
        checksum: TunnelChecksum,
    },
}

/// Checksum of a GUE or GRE header (`--tun-nocsum`, `--tun-csum`, `--tun-remcsum`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TunnelChecksum {
    /// None.
    #[default]
    No,
    /// Over the whole datagram.
    Full,
    /// Remote checksum offload.
    Remote,
}

impl Tunnel {
    /// In one word, for those who read it while somebody edits it.
    pub const fn pack(self) -> u32 {
        match self {
            Tunnel::Ipip => 0,
            Tunnel::Gue { port, checksum } => 1 << 16 | checksum.pack() | port as u32,
            Tunnel::Gre { checksum } => 2 << 16 | checksum.pack(),
        }
    }

    /// Of such a word.
    pub const fn unpack(word: u32) -> Tunnel {
        let checksum = TunnelChecksum::unpack(word);
        match word >> 16 & 3 {
            1 => Tunnel::Gue {
                port: word as u16,
                checksum,
            },
            2 => Tunnel::Gre { checksum },
            _ => Tunnel::Ipip,
        }
    }
}

impl TunnelChecksum {
    const fn pack(self) -> u32 {
        (self as u32) << 18
    }

    const fn unpack(word: u32) -> TunnelChecksum {
        match word >> 18 & 3 {
            1 => TunnelChecksum::Full,
            2 => TunnelChecksum::Remote,
            _ => TunnelChecksum::No,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_survives_packing() {
        use TunnelChecksum::{Full, No, Remote};
        for checksum in [No, Full, Remote] {
            let gue = Tunnel::Gue {
                port: 0xffff,
                checksum,
            };
            for tunnel in [Tunnel::Ipip, gue, Tunnel::Gre { checksum }] {
                assert_eq!(Tunnel::unpack(tunnel.pack()), tunnel);
            }
        }
    }
}
