//! Counters as they stand in JSON: each with its name. In the program they are arrays, which are summed
//! and compared as a whole; the modules are for `#[serde(with = …)]`.

use std::fmt;

use schemars::JsonSchema;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What is counted of a service, a real server, a worker, and of all.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Counts {
    /// Connections.
    connections: u64,
    /// Packets from clients.
    packets_in: u64,
    /// Packets to clients.
    packets_out: u64,
    /// Bytes from clients.
    bytes_in: u64,
    /// Bytes to clients.
    bytes_out: u64,
}

impl From<[u64; 5]> for Counts {
    fn from(all: [u64; 5]) -> Counts {
        let [connections, packets_in, packets_out, bytes_in, bytes_out] = all;
        Counts {
            connections,
            packets_in,
            packets_out,
            bytes_in,
            bytes_out,
        }
    }
}

impl From<Counts> for [u64; 5] {
    fn from(counts: Counts) -> [u64; 5] {
        [
            counts.connections,
            counts.packets_in,
            counts.packets_out,
            counts.bytes_in,
            counts.bytes_out,
        ]
    }
}

/// `[u64; 5]` as `Counts`.
pub(super) mod five {
    use super::*;

    pub fn serialize<S: Serializer>(all: &[u64; 5], to: S) -> Result<S::Ok, S::Error> {
        Counts::from(*all).serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u64; 5], D::Error> {
        Counts::deserialize(from).map(Into::into)
    }
}

/// One `Counts` of each worker.
pub(super) mod each {
    use super::*;

    pub fn serialize<S: Serializer>(all: &[[u64; 5]], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(|one| Counts::from(*one)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<[u64; 5]>, D::Error> {
        let all = Vec::<Counts>::deserialize(from)?;
        Ok(all.into_iter().map(Into::into).collect())
    }
}

/// What is counted of an interface.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PortCounts {
    /// Its name.
    name: String,
    /// Frames taken from it.
    received: u64,
    /// Frames that it had no room for.
    overrun: u64,
    /// Frames longer than we have room for.
    truncated: u64,
    /// Frames given to it.
    sent: u64,
    /// Frames that it did not take.
    refused: u64,
    /// Super-frames of UDP that were cut for it: the kernel is older than Linux 6.2.
    #[serde(default)]
    cut: u64,
}

/// Interfaces with their counters.
pub(super) mod ports {
    use super::*;

    type Port = (String, [u64; 6]);

    pub fn serialize<S: Serializer>(all: &[Port], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(all.iter().map(|(name, counts)| {
            let [received, overrun, truncated, sent, refused, cut] = *counts;
            PortCounts {
                name: name.clone(),
                received,
                overrun,
                truncated,
                sent,
                refused,
                cut,
            }
        }))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Port>, D::Error> {
        let all = Vec::<PortCounts>::deserialize(from)?;
        let port = |port: PortCounts| {
            let counts = [
                port.received,
                port.overrun,
                port.truncated,
                port.sent,
                port.refused,
                port.cut,
            ];
            (port.name, counts)
        };
        Ok(all.into_iter().map(port).collect())
    }
}

/// Names with their counts, in their order.
pub(super) mod named {
    use super::*;

    pub fn serialize<S: Serializer>(all: &[(String, u64)], to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(all.iter().map(|(name, count)| (name, count)))
    }

    pub fn deserialize<'de, D>(from: D) -> Result<Vec<(String, u64)>, D::Error>
    where
        D: Deserializer<'de>,
    {
        from.deserialize_map(Pairs)
    }

    struct Pairs;

    impl<'de> Visitor<'de> for Pairs {
        type Value = Vec<(String, u64)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("names with their counts")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
}
