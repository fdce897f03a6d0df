//! The nouns as they stand in JSON: one word each, as people write them (`tcp:1.2.3.1:80`). They go
//! over the control socket and into `--json`. Reading is strict: what is written is read again, and a
//! wrong word is named.

use std::borrow::Cow;
use std::fmt::{self, Display};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Endpoint, Family, Netmask, Protocol, ServiceFlags, ServiceKey};

/// The protocols that have a name; others are numbers.
const PROTOCOLS: [(&str, Protocol); 6] = [
    ("ip", Protocol::IP),
    ("tcp", Protocol::TCP),
    ("udp", Protocol::UDP),
    ("sctp", Protocol::SCTP),
    ("icmp", Protocol::ICMP),
    ("icmpv6", Protocol::ICMPV6),
];

/// The flags that have a name; others are written `bit-0` to `bit-31`.
const FLAGS: [(&str, u32); 4] = [
    ("one-packet", ServiceFlags::ONE_PACKET),
    ("flag-1", ServiceFlags::SCHED_1),
    ("flag-2", ServiceFlags::SCHED_2),
    ("flag-3", ServiceFlags::SCHED_3),
];

/// What a firewall mark's service is called.
const MARK: &str = "fwmark";
/// Behind the mark, if it groups IPv6.
const MARK_V6: &str = "v6";

/// A word that is no such noun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrongWord {
    /// The word.
    pub word: String,
    /// What it should have been.
    pub wanted: &'static str,
}

impl Display for WrongWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` is not {}", self.word, self.wanted)
    }
}

impl std::error::Error for WrongWord {}

fn wrong(word: &str, wanted: &'static str) -> WrongWord {
    let word = word.chars().take(60).collect();
    WrongWord { word, wanted }
}

const AN_ENDPOINT: &str = "ADDRESS:PORT or [IPV6]:PORT";

impl FromStr for Endpoint {
    type Err = WrongWord;

    fn from_str(text: &str) -> Result<Endpoint, WrongWord> {
        match text.parse::<SocketAddr>() {
            // A scope is no part of an endpoint of ours.
            Ok(SocketAddr::V6(at)) if at.scope_id() != 0 => Err(wrong(text, AN_ENDPOINT)),
            Ok(at) => Ok(Endpoint::new(at.ip(), at.port())),
            Err(_) => Err(wrong(text, AN_ENDPOINT)),
        }
    }
}

const A_SERVICE: &str =
    "a service: tcp, udp or sctp:ADDRESS:PORT, [IPV6] in brackets, or fwmark:MARK, fwmark:MARK:v6";

impl FromStr for ServiceKey {
    type Err = WrongWord;

    fn from_str(text: &str) -> Result<ServiceKey, WrongWord> {
        read_service(text).ok_or_else(|| wrong(text, A_SERVICE))
    }
}

fn read_service(text: &str) -> Option<ServiceKey> {
    let (kind, rest) = text.split_once(':')?;
    if kind == MARK {
        let (mark, family) = match rest.split_once(':') {
            Some((mark, MARK_V6)) => (mark, Family::V6),
            Some(_) => return None,
            None => (rest, Family::V4),
        };
        let mark = mark.parse().ok().filter(|mark| *mark != 0)?;
        return Some(ServiceKey::Mark { mark, family });
    }
    let (_, protocol) = PROTOCOLS.iter().find(|(name, _)| *name == kind)?;
    let virt = rest.parse().ok()?;
    protocol.is_balanced().then_some(ServiceKey::Address {
        protocol: *protocol,
        virt,
    })
}

/// A service in one word, as `FromStr` reads it.
struct Word<'a>(&'a ServiceKey);

impl Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ServiceKey::Address { protocol, virt } => {
                let name = PROTOCOLS.iter().find(|(_, known)| known == protocol);
                write!(f, "{}:{virt}", name.map_or("?", |(name, _)| name))
            }
            ServiceKey::Mark { mark, family } => match family {
                Family::V4 => write!(f, "{MARK}:{mark}"),
                Family::V6 => write!(f, "{MARK}:{mark}:{MARK_V6}"),
            },
        }
    }
}

impl Serialize for ServiceKey {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&Word(self))
    }
}

impl<'de> Deserialize<'de> for ServiceKey {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ServiceKey, D::Error> {
        read_word(from)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Endpoint {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Endpoint, D::Error> {
        read_word(from)
    }
}

fn read_word<'de, D, T>(from: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = WrongWord>,
{
    let text = Cow::<str>::deserialize(from)?;
    text.parse().map_err(de::Error::custom)
}

impl Serialize for Protocol {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match PROTOCOLS.iter().find(|(_, known)| known == self) {
            Some((name, _)) => to.serialize_str(name),
            None => to.serialize_u8(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Protocol {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Protocol, D::Error> {
        from.deserialize_any(ProtocolVisitor)
    }
}

struct ProtocolVisitor;

impl Visitor<'_> for ProtocolVisitor {
    type Value = Protocol;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tcp, udp, sctp, icmp, icmpv6, ip, or a number from 0 to 255")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Protocol, E> {
        let found = PROTOCOLS.iter().find(|(name, _)| *name == text);
        let found = found.map(|(_, protocol)| *protocol);
        found.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Protocol, E> {
        let number = u8::try_from(number);
        let fault = |_| E::custom("a protocol is a number from 0 to 255");
        number.map(Protocol).map_err(fault)
    }
}

impl Serialize for Netmask {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Netmask::V4(mask) => to.collect_str(&Ipv4Addr::from(*mask)),
            Netmask::V6(prefix) => to.serialize_u8(*prefix),
        }
    }
}

impl<'de> Deserialize<'de> for Netmask {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Netmask, D::Error> {
        from.deserialize_any(NetmaskVisitor)
    }
}

struct NetmaskVisitor;

impl Visitor<'_> for NetmaskVisitor {
    type Value = Netmask;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a netmask like \"255.255.255.0\", or for IPv6 a length from 1 to 128")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Netmask, E> {
        let mask = text.parse::<Ipv4Addr>();
        let fault = |_| E::invalid_value(de::Unexpected::Str(text), &self);
        mask.map(|mask| Netmask::V4(mask.into())).map_err(fault)
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Netmask, E> {
        let fault = || E::invalid_value(de::Unexpected::Unsigned(number), &self);
        let prefix = u8::try_from(number).ok();
        let prefix = prefix.filter(|prefix| (1..=128).contains(prefix));
        prefix.map(Netmask::V6).ok_or_else(fault)
    }
}

impl Serialize for ServiceFlags {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let set = (0..u32::BITS).filter(|place| self.has(1 << place));
        to.collect_seq(set.map(|place| {
            let named = FLAGS.iter().find(|(_, bit)| *bit == 1 << place);
            named.map_or_else(|| format!("bit-{place}"), |(name, _)| name.to_string())
        }))
    }
}

impl<'de> Deserialize<'de> for ServiceFlags {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<ServiceFlags, D::Error> {
        let words = Vec::<Cow<str>>::deserialize(from)?;
        let bits = words.iter().map(|word| {
            flag(word).ok_or_else(|| {
                let wanted = "one of one-packet, flag-1, flag-2, flag-3, bit-0 to bit-31";
                de::Error::custom(wrong(word, wanted))
            })
        });
        let bits = bits.collect::<Result<Vec<u32>, D::Error>>()?;
        Ok(ServiceFlags(bits.iter().fold(0, |all, bit| all | bit)))
    }
}

fn flag(word: &str) -> Option<u32> {
    let named = FLAGS.iter().find(|(name, _)| *name == word);
    named.map(|(_, bit)| *bit).or_else(|| {
        let place = word.strip_prefix("bit-")?.parse::<u32>().ok()?;
        1u32.checked_shl(place)
    })
}

/// Networks, each `ADDRESS/LENGTH`: for `#[serde(with = …)]`.
pub mod prefixes {
    use super::*;

    /// As words.
    pub fn serialize<S: Serializer>(networks: &[(IpAddr, u8)], to: S) -> Result<S::Ok, S::Error> {
        let words = networks.iter();
        to.collect_seq(words.map(|(address, len)| format!("{address}/{len}")))
    }

    /// Of words.
    pub fn deserialize<'de, D>(from: D) -> Result<Vec<(IpAddr, u8)>, D::Error>
    where
        D: Deserializer<'de>,
    {
        let words = Vec::<Cow<str>>::deserialize(from)?;
        let read = |word: &Cow<str>| prefix(word).ok_or_else(|| wrong(word, "ADDRESS/LENGTH"));
        let networks = words.iter().map(read).collect::<Result<_, WrongWord>>();
        networks.map_err(de::Error::custom)
    }

    fn prefix(word: &str) -> Option<(IpAddr, u8)> {
        let (address, len) = word.split_once('/')?;
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let len = len.parse().ok().filter(|len| *len <= most)?;
        Some((address, len))
    }
}

/// Gives a noun the schema of its words.
macro_rules! schemas {
    ($($noun:ident: $schema:tt;)+) => {$(
        impl JsonSchema for $noun {
            fn schema_name() -> Cow<'static, str> {
                stringify!($noun).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )+};
}

schemas! {
    Endpoint: {
        "type": "string",
        "description": "An address and a port; an IPv6 address in brackets.",
        "examples": ["192.168.1.1:80", "[fd00::1]:80"]
    };
    ServiceKey: {
        "type": "string",
        "description": "What names a virtual service: protocol, VIP and port, where port 0 is \
                        every port; or a firewall mark, of IPv4 unless :v6 follows.",
        "pattern": "^((tcp|udp|sctp):.+:[0-9]+|fwmark:[0-9]+(:v6)?)$",
        "examples": ["tcp:1.2.3.1:80", "udp:[fd00::1]:53", "fwmark:5", "fwmark:5:v6"]
    };
    Protocol: {
        "description": "A protocol by its name, or by its number.",
        "anyOf": [
            { "enum": ["tcp", "udp", "sctp", "icmp", "icmpv6", "ip"] },
            { "type": "integer", "minimum": 0, "maximum": 255 }
        ]
    };
    Netmask: {
        "description": "Which clients stay together: an IPv4 netmask, or an IPv6 prefix length.",
        "anyOf": [
            { "type": "string", "format": "ipv4" },
            { "type": "integer", "minimum": 1, "maximum": 128 }
        ]
    };
    ServiceFlags: {
        "type": "array",
        "description": "one-packet: schedule every datagram anew. flag-1, flag-2, flag-3: what the \
                        scheduler makes of them (sh and mh: fallback, port).",
        "items": { "type": "string", "pattern": "^(one-packet|flag-[123]|bit-[0-9]+)$" }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;

    fn there_and_back<T>(noun: T, json: &str)
    where
        T: Serialize + DeserializeOwned + PartialEq + fmt::Debug,
    {
        assert_eq!(serde_json::to_string(&noun).unwrap(), json);
        assert_eq!(serde_json::from_str::<T>(json).unwrap(), noun);
    }

    #[test]
    fn nouns_are_words() {
        let v6 = Endpoint::new("fd00::1".parse().unwrap(), 53);
        there_and_back(v6, "\"[fd00::1]:53\"");
        let mapped = Endpoint::new("::ffff:1.2.3.4".parse().unwrap(), 0);
        there_and_back(mapped, "\"[::ffff:1.2.3.4]:0\"");
        let web = ServiceKey::tcp("1.2.3.1".parse().unwrap(), 80);
        there_and_back(web, "\"tcp:1.2.3.1:80\"");
        let (protocol, virt) = (Protocol::SCTP, v6);
        let sctp = ServiceKey::Address { protocol, virt };
        there_and_back(sctp, "\"sctp:[fd00::1]:53\"");
        for (family, json) in [
            (Family::V4, "\"fwmark:4294967295\""),
            (Family::V6, "\"fwmark:4294967295:v6\""),
        ] {
            there_and_back(
                ServiceKey::Mark {
                    mark: u32::MAX,
                    family,
                },
                json,
            );
        }
        there_and_back(Protocol::UDP, "\"udp\"");
        there_and_back(Protocol(47), "47");
        there_and_back(Netmask::V4(0xff00_ff00), "\"255.0.255.0\"");
        there_and_back(Netmask::V6(64), "64");
        there_and_back(ServiceFlags(0x14), "[\"one-packet\",\"flag-2\"]");
        there_and_back(ServiceFlags(1 << 31 | 1), "[\"bit-0\",\"bit-31\"]");
        there_and_back(ServiceFlags(0), "[]");
    }

    #[test]
    fn wrong_words_are_named() {
        for word in [
            "tcp",
            "tcp:1.2.3.1",
            "tcp:fd00::1:80",
            "tcp:[fe80::1%3]:80",
            "tcp:1.2.3.1:65536",
            "icmp:1.2.3.1:80",
            "TCP:1.2.3.1:80",
            "fwmark:0",
            "fwmark:5:v4",
            "fwmark:-1",
            "",
        ] {
            let error = word.parse::<ServiceKey>().unwrap_err();
            assert_eq!(error.word, word);
        }
        let said = |json: &str| {
            serde_json::from_str::<ServiceKey>(json)
                .unwrap_err()
                .to_string()
        };
        assert!(said("\"tcp:x\"").starts_with("`tcp:x` is not a service: tcp,"));
        assert!(serde_json::from_str::<Protocol>("256").is_err());
        assert!(serde_json::from_str::<Protocol>("\"gre\"").is_err());
        assert!(serde_json::from_str::<Netmask>("129").is_err());
        assert!(serde_json::from_str::<Netmask>("\"255.0\"").is_err());
        assert!(serde_json::from_str::<ServiceFlags>("[\"bit-32\"]").is_err());
        let long = "x".repeat(100_000);
        assert_eq!(long.parse::<Endpoint>().unwrap_err().word.len(), 60);
    }
}
