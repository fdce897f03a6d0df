//! Floor A: bytes in, bytes out. Frames, their headers, their checksums, and the seam (`nic`) between
//! the world and a worker. Nothing in here decides where a packet goes.

pub mod answer;
pub mod arp;
pub mod checksum;
pub mod cut;
pub mod edit;
pub mod encap;
pub mod frag;
pub mod gso;
pub mod gue;
pub mod icmp;
pub mod memory;
pub mod ndp;
pub mod nic;
pub mod offload;
pub mod options;
pub mod packet;
pub mod stream;
pub mod text;

pub use nic::{Frame, FrameMeta, FrameView, NicCounters, NicError, Rx, Tx};
pub use offload::Offload;
pub use packet::{Layout, Malformed, Packet};

/// A MAC address.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// Broadcast or multicast: the group bit is set (IEEE 802.3).
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl std::fmt::Debug for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Mac {
    type Err = String;
    fn from_str(text: &str) -> Result<Mac, String> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let value = part.and_then(|part| u8::from_str_radix(part, 16).ok());
            *byte = value.ok_or_else(|| format!("`{text}` is not a MAC address"))?;
        }
        if parts.next().is_some() {
            return Err(format!("`{text}` is not a MAC address"));
        }
        Ok(Mac(bytes))
    }
}
