//! The daemons of connection synchronisation as they are asked for and listed: who multicasts
//! (`master`) and who listens (`backup`). Nothing in here sends a message.

use std::net::{IpAddr, Ipv4Addr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// UDP port of the messages unless another is asked for (`IP_VS_SYNC_PORT`).
pub const SYNC_PORT: u16 = 8848;
/// Group of the messages unless another is asked for (`IP_VS_SYNC_GROUP`).
pub const SYNC_GROUP: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 81);
/// TTL of the messages unless another is asked for.
pub const SYNC_TTL: u8 = 1;
/// A backup takes messages of at least so many bytes, whatever it is asked for.
const BACKUP_MAXLEN_MIN: u16 = 1024;
/// MTU by which a master cuts its messages; a backup's buffer is made for that or for more.
const MTU_MIN: u32 = 1500;
/// Longest IP packet.
const MTU_MAX: u32 = 65_535;

/// Which half of connection synchronisation.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum SyncRole {
    /// Sends.
    Master,
    /// Receives.
    Backup,
}

/// What `--start-daemon` shall start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyncDaemon {
    /// Which half.
    pub role: SyncRole,
    /// Interface to multicast on; ipvsadm's default is `eth0`.
    pub interface: Option<String>,
    /// 0..=255
    #[serde(default)]
    pub sync_id: u8,
    /// Longest message in bytes.
    pub maxlen: Option<u16>,
    /// Multicast group.
    pub group: Option<IpAddr>,
    /// UDP port.
    pub port: Option<u16>,
    /// TTL of the messages.
    pub ttl: Option<u8>,
}

/// A daemon as it is listed: with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SyncRow {
    /// Which half.
    pub role: SyncRole,
    /// Interface to multicast on.
    pub interface: String,
    /// 0..=255
    pub sync_id: u8,
    /// Longest message in bytes.
    pub maxlen: u16,
    /// Multicast group.
    pub group: IpAddr,
    /// UDP port.
    pub port: u16,
    /// TTL of the messages.
    pub ttl: u8,
}

/// An interface of the director's host, also one that no port is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// It is set up: something can be sent by it.
    pub up: bool,
}

impl SyncDaemon {
    /// The interface's name.
    pub fn interface(&self) -> &str {
        self.interface.as_deref().unwrap_or("eth0")
    }

    /// What is not said is filled in as the kernel does it (`start_sync_thread`; the lengths are
    /// recorded): a master's message fits 1,500 bytes, a backup's buffer what the interface carries.
    pub fn filled_in(&self, link: &Link) -> SyncRow {
        let group = self.group.unwrap_or(IpAddr::V4(SYNC_GROUP));
        let headers = if group.is_ipv4() { 20 + 8 } else { 40 + 8 };
        let (mtu, least) = match self.role {
            SyncRole::Master => (MTU_MIN, 0),
            SyncRole::Backup => (link.mtu.clamp(MTU_MIN, MTU_MAX), BACKUP_MAXLEN_MIN),
        };
        let whole = u16::try_from(mtu - headers).unwrap_or(u16::MAX);
        SyncRow {
            role: self.role,
            interface: self.interface().to_string(),
            sync_id: self.sync_id,
            maxlen: self.maxlen.unwrap_or(whole).max(least),
            group,
            port: self.port.unwrap_or(SYNC_PORT),
            ttl: self.ttl.unwrap_or(SYNC_TTL),
        }
    }
}
