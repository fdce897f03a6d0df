//! Virtual services: what clients see.

use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::flow::{Endpoint, Family, Protocol};

/// What names a virtual service. Two services never share a key. The derived order is ipvsadm's
/// listing order (addresses before marks, IPv4 before IPv6) except that ipvsadm sorts by family first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ServiceKey {
    /// Protocol, VIP and port; port 0 stands for every port.
    Address {
        /// TCP, UDP or SCTP.
        protocol: Protocol,
        /// VIP and port.
        virt: Endpoint,
    },
    /// A firewall mark, 1..=4294967295, for one family.
    Mark {
        /// The mark; never 0.
        mark: u32,
        /// Which family's packets it groups.
        family: Family,
    },
}

impl ServiceKey {
    /// A TCP service.
    pub const fn tcp(address: IpAddr, port: u16) -> ServiceKey {
        ServiceKey::Address {
            protocol: Protocol::TCP,
            virt: Endpoint::new(address, port),
        }
    }

    /// A UDP service.
    pub const fn udp(address: IpAddr, port: u16) -> ServiceKey {
        ServiceKey::Address {
            protocol: Protocol::UDP,
            virt: Endpoint::new(address, port),
        }
    }

    /// The family of the packets this service takes.
    pub const fn family(&self) -> Family {
        match self {
            ServiceKey::Address { virt, .. } => Family::of(virt.address),
            ServiceKey::Mark { family, .. } => *family,
        }
    }

    /// The service's port; 0 for a mark.
    pub const fn port(&self) -> u16 {
        match self {
            ServiceKey::Address { virt, .. } => virt.port,
            ServiceKey::Mark { .. } => 0,
        }
    }

    /// True for a firewall-mark service.
    pub const fn is_mark(&self) -> bool {
        matches!(self, ServiceKey::Mark { .. })
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServiceKey::Address { protocol, virt } => write!(f, "{protocol} {virt}"),
            ServiceKey::Mark {
                mark,
                family: Family::V4,
            } => write!(f, "FWM {mark}"),
            ServiceKey::Mark {
                mark,
                family: Family::V6,
            } => write!(f, "FWM {mark} IPv6"),
        }
    }
}

/// Scheduler flags and one-packet scheduling, as the kernel numbers them (`IP_VS_SVC_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServiceFlags(pub u32);

impl ServiceFlags {
    /// One-packet scheduling (UDP).
    pub const ONE_PACKET: u32 = 0x4;
    /// `flag-1`; sh-fallback, mh-fallback.
    pub const SCHED_1: u32 = 0x8;
    /// `flag-2`; sh-port, mh-port.
    pub const SCHED_2: u32 = 0x10;
    /// `flag-3`.
    pub const SCHED_3: u32 = 0x20;

    /// Is the bit set?
    pub const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
}

/// The netmask of persistence: how many leading bits of the client's address count. IPv4 masks may
/// have gaps (ipvsadm accepts 255.0.255.0), so they are kept as masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Netmask {
    /// An IPv4 mask in host order; `u32::MAX` is one client.
    V4(u32),
    /// An IPv6 prefix length, 1..=128.
    V6(u8),
}

impl Netmask {
    /// The mask that keeps single clients apart.
    pub const fn full(family: Family) -> Netmask {
        match family {
            Family::V4 => Netmask::V4(u32::MAX),
            Family::V6 => Netmask::V6(128),
        }
    }
}

/// Persistence of a service: clients of one network stay with one real server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Persistence {
    /// Life of a connection template in seconds, 1..=2678400.
    pub timeout_s: u32,
}

/// A virtual service as configured; everything `ipvsadm -A` can say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "ServiceForm")]
pub struct ServiceSpec {
    /// What names it.
    pub key: ServiceKey,
    /// Scheduler name; ipvsadm's default is `wlc`. `none` means: no scheduler.
    pub scheduler: String,
    /// One-packet scheduling and scheduler flags.
    pub flags: ServiceFlags,
    /// Persistence, if clients shall stay.
    pub persistence: Option<Persistence>,
    /// Netmask of persistence; kept also without persistence, as the kernel does.
    pub netmask: Netmask,
    /// Persistence engine (`sip`).
    pub engine: Option<String>,
}

/// A virtual service as it may be written: what is left out is as `ipvsadm -A` has it.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ServiceForm {
    /// What names it.
    key: ServiceKey,
    /// The name of its scheduler; `none`: no scheduler.
    #[serde(default = "wlc")]
    scheduler: String,
    /// One-packet scheduling and scheduler flags.
    #[serde(default)]
    flags: ServiceFlags,
    /// Persistence, if clients shall stay with their real server.
    #[serde(default)]
    persistence: Option<Persistence>,
    /// Clients of one network stay together; if left out, each client is for itself.
    #[serde(default)]
    netmask: Option<Netmask>,
    /// Persistence engine: `sip`.
    #[serde(default)]
    engine: Option<String>,
}

fn wlc() -> String {
    "wlc".to_string()
}

impl From<ServiceForm> for ServiceSpec {
    fn from(form: ServiceForm) -> ServiceSpec {
        ServiceSpec {
            scheduler: form.scheduler,
            flags: form.flags,
            persistence: form.persistence,
            netmask: form.netmask.unwrap_or(Netmask::full(form.key.family())),
            engine: form.engine,
            key: form.key,
        }
    }
}

impl ServiceSpec {
    /// A service with ipvsadm's defaults.
    pub fn new(key: ServiceKey, scheduler: &str) -> ServiceSpec {
        ServiceSpec {
            key,
            scheduler: scheduler.to_string(),
            flags: ServiceFlags::default(),
            persistence: None,
            netmask: Netmask::full(key.family()),
            engine: None,
        }
    }
}
