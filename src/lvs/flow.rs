//! Who talks to whom: families, protocols, endpoints, flows, and what a state table needs to know of
//! one segment.

use std::fmt;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Address family. Never mixed within one flow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4
    V4,
    /// IPv6
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }
}

/// The IP protocol number of a flow (IANA). IPVS schedules TCP, UDP and SCTP; `IP` (0) is the
/// protocol of a firewall-mark template.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Protocol(pub u8);

impl Protocol {
    /// Protocol of firewall-mark templates.
    pub const IP: Protocol = Protocol(0);
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol(1);
    /// TCP.
    pub const TCP: Protocol = Protocol(6);
    /// UDP.
    pub const UDP: Protocol = Protocol(17);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol(58);
    /// SCTP.
    pub const SCTP: Protocol = Protocol(132);

    /// The name ipvsadm prints, or `None` for a protocol no service can have.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Protocol::IP => "IP",
            Protocol::TCP => "TCP",
            Protocol::UDP => "UDP",
            Protocol::SCTP => "SCTP",
            _ => return None,
        })
    }

    /// True for the three protocols a virtual service can have.
    pub const fn is_balanced(self) -> bool {
        matches!(self, Protocol::TCP | Protocol::UDP | Protocol::SCTP)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.0) {
            (Some(name), _) => f.write_str(name),
            (None, 1) => f.write_str("ICMP"),
            (None, 58) => f.write_str("ICMPv6"),
            (None, number) => write!(f, "protocol {number}"),
        }
    }
}

impl fmt::Debug for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An address and a port. Prints as ipvsadm does: `10.0.0.1:80`, `[fd00::1]:80`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// IPv4 or IPv6 address.
    pub address: IpAddr,
    /// TCP, UDP or SCTP port in host order.
    pub port: u16,
}

impl Endpoint {
    /// The endpoint `address:port`.
    pub const fn new(address: IpAddr, port: u16) -> Endpoint {
        Endpoint { address, port }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}", self.port),
            IpAddr::V6(address) => write!(f, "[{address}]:{}", self.port),
        }
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One direction of a conversation, as read from one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// Who sent it.
    pub source: Endpoint,
    /// Who shall have it.
    pub target: Endpoint,
}

impl Flow {
    /// The same conversation seen from the other side.
    pub const fn reversed(self) -> Flow {
        Flow {
            protocol: self.protocol,
            source: self.target,
            target: self.source,
        }
    }

    /// The family of both endpoints.
    pub const fn family(self) -> Family {
        Family::of(self.source.address)
    }
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} {}", self.source, self.target, self.protocol)
    }
}

/// The flags byte of a TCP header (RFC 9293 section 3.1).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// FIN
    pub const FIN: u8 = 0x01;
    /// SYN
    pub const SYN: u8 = 0x02;
    /// RST
    pub const RST: u8 = 0x04;
    /// PSH
    pub const PSH: u8 = 0x08;
    /// ACK
    pub const ACK: u8 = 0x10;

    /// FIN is set.
    pub const fn fin(self) -> bool {
        self.0 & Self::FIN != 0
    }
    /// SYN is set.
    pub const fn syn(self) -> bool {
        self.0 & Self::SYN != 0
    }
    /// RST is set.
    pub const fn rst(self) -> bool {
        self.0 & Self::RST != 0
    }
    /// ACK is set.
    pub const fn ack(self) -> bool {
        self.0 & Self::ACK != 0
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in "FSRPAUEC".chars().enumerate() {
            if self.0 & (1 << bit) != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// What the state table of a protocol needs to know of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// A TCP segment's flags.
    Tcp(TcpFlags),
    /// A UDP datagram; there is nothing more to know.
    Udp,
    /// An ICMP echo, request or reply, of a masqueraded host.
    Echo,
    /// The types of the first SCTP chunk and, where it counts, of the one behind it.
    Sctp {
        /// Type of the first chunk (RFC 9260 section 3.2).
        first: u8,
        /// Type of the second chunk, if there is one.
        second: Option<u8>,
    },
}
