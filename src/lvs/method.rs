//! How a packet reaches its real server.

use serde::{Deserialize, Serialize};

/// The forwarding method of a real server. The numbers are the kernel's (`IP_VS_CONN_F_MASQ` …) and
/// travel in sync messages.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
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
        }
    }
}
