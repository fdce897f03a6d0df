//! Firewall marks of our own: the first rule that matches a packet says its mark. Only packets without
//! a connection are looked at, and none while there are no rules.

use std::net::IpAddr;

use crate::lvs::tuple::{PackedAddress, pack};
use crate::lvs::{Family, MarkRule, Protocol};

/// The rules, made ready for packets.
#[derive(Debug, Default)]
pub struct Classifier {
    rules: Vec<Rule>,
    /// As configured.
    source: Vec<MarkRule>,
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    /// Index of the port it came in by.
    pub ingress: usize,
    /// Its protocol.
    pub protocol: Protocol,
    /// Who sent it.
    pub source: IpAddr,
    /// Who shall have it.
    pub target: IpAddr,
    /// Its target port, if it has ports.
    pub target_port: Option<u16>,
}

#[derive(Debug)]
struct Rule {
    mark: u32,
    protocol: Option<Protocol>,
    sources: Vec<Prefix>,
    targets: Vec<Prefix>,
    target_ports: Vec<(u16, u16)>,
    interface: Interface,
}

#[derive(Clone, Copy, Debug)]
enum Interface {
    Any,
    Port(usize),
    /// One that the director does not have.
    Nowhere,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Prefix {
    family: Family,
    net: PackedAddress,
    mask: PackedAddress,
}

impl Classifier {
    /// These rules, in this order, for ports with these names.
    pub fn new(source: &[MarkRule], ports: &[&str]) -> Classifier {
        let rules = source.iter().map(|rule| Rule {
            mark: rule.mark,
            protocol: rule.protocol,
            sources: prefixes(&rule.sources),
            targets: prefixes(&rule.targets),
            target_ports: rule.target_ports.clone(),
            interface: match &rule.interface {
                None => Interface::Any,
                Some(name) => {
                    let at = ports.iter().position(|port| port == name);
                    at.map_or(Interface::Nowhere, Interface::Port)
                }
            },
        });
        Classifier {
            rules: rules.collect(),
            source: source.to_vec(),
        }
    }

    /// Are there none?
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules as configured.
    pub fn rules(&self) -> &[MarkRule] {
        &self.source
    }

    /// The mark of this packet and the number of the rule that says so, from 1.
    pub fn mark_of(&self, looks: &Looks) -> Option<(u32, usize)> {
        let (source, target) = (pack(looks.source), pack(looks.target));
        let at = self.rules.iter().position(|rule| {
            rule.protocol
                .is_none_or(|wanted| is_of(wanted, looks.protocol))
                && match rule.interface {
                    Interface::Any => true,
                    Interface::Port(port) => port == looks.ingress,
                    Interface::Nowhere => false,
                }
                && covered(&rule.sources, Family::of(looks.source), source)
                && covered(&rule.targets, Family::of(looks.target), target)
                && among(&rule.target_ports, looks.target_port)
        })?;
        Some((self.rules[at].mark, at + 1))
    }
}

fn is_of(wanted: Protocol, protocol: Protocol) -> bool {
    wanted == protocol || wanted == Protocol::ICMP && protocol == Protocol::ICMPV6
}

fn among(ranges: &[(u16, u16)], port: Option<u16>) -> bool {
    let within = |port: u16| {
        ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&port))
    };
    ranges.is_empty() || port.is_some_and(within)
}

pub(super) fn covered(prefixes: &[Prefix], family: Family, address: PackedAddress) -> bool {
    let covers = |prefix: &Prefix| {
        let differs = (address[0] & prefix.mask[0] ^ prefix.net[0])
            | (address[1] & prefix.mask[1] ^ prefix.net[1]);
        differs == 0 && family == prefix.family
    };
    prefixes.is_empty() || prefixes.iter().any(covers)
}

pub(super) fn prefixes(networks: &[(IpAddr, u8)]) -> Vec<Prefix> {
    networks
        .iter()
        .map(|(address, len)| prefix(*address, *len))
        .collect()
}

fn prefix(address: IpAddr, len: u8) -> Prefix {
    let bits = u128::MAX
        .checked_shl(128 - u32::from(len.min(128)))
        .unwrap_or(0);
    let mask = match address {
        IpAddr::V4(_) => [0, (bits >> 96) as u64],
        IpAddr::V6(_) => [(bits >> 64) as u64, bits as u64],
    };
    let words = pack(address);
    Prefix {
        family: Family::of(address),
        net: [words[0] & mask[0], words[1] & mask[1]],
        mask,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(mark: u32) -> MarkRule {
        MarkRule {
            mark,
            protocol: None,
            sources: vec![],
            targets: vec![],
            target_ports: vec![],
            interface: None,
        }
    }

    fn looks(protocol: Protocol, source: &str, target: &str, port: Option<u16>) -> Looks {
        Looks {
            ingress: 0,
            protocol,
            source: source.parse().expect("an address"),
            target: target.parse().expect("an address"),
            target_port: port,
        }
    }

    #[test]
    fn the_first_rule_that_matches_says_the_mark() {
        let net = |text: &str, len| (text.parse::<IpAddr>().expect("an address"), len);
        let web = MarkRule {
            protocol: Some(Protocol::TCP),
            targets: vec![net("10.0.0.100", 32), net("fd00::100", 128)],
            target_ports: vec![(80, 80), (8000, 8099)],
            ..rule(7)
        };
        let mut inner = rule(8);
        inner.sources = vec![net("172.16.3.77", 20)];
        let mut other = rule(9);
        other.interface = Some("eth1".to_string());
        let mut nowhere = rule(10);
        nowhere.interface = Some("eth7".to_string());
        let mut icmp = rule(11);
        icmp.protocol = Some(Protocol::ICMP);
        let rules = [web, inner, other, nowhere, icmp];
        let marks = Classifier::new(&rules, &["eth0", "eth1"]);
        let of = |looks: Looks| marks.mark_of(&looks);
        let client = "172.16.3.9";
        assert_eq!(
            of(looks(Protocol::TCP, client, "10.0.0.100", Some(80))),
            Some((7, 1))
        );
        assert_eq!(
            of(looks(Protocol::TCP, "fd01::1", "fd00::100", Some(8099))),
            Some((7, 1))
        );
        for port in [79, 81, 7999, 8100] {
            assert_eq!(
                of(looks(Protocol::TCP, client, "10.0.0.100", Some(port))),
                Some((8, 2))
            );
        }
        assert_eq!(
            of(looks(Protocol::UDP, client, "10.0.0.100", Some(80))),
            Some((8, 2))
        );
        assert_eq!(
            of(looks(Protocol::UDP, "172.16.16.1", "10.0.0.100", Some(80))),
            None
        );
        let mut inside = looks(Protocol::UDP, "172.16.16.1", "10.0.0.100", Some(80));
        inside.ingress = 1;
        assert_eq!(of(inside), Some((9, 3)));
        assert_eq!(
            of(looks(Protocol::ICMPV6, "fd01::1", "fd00::100", None)),
            Some((11, 5))
        );
        // Where nothing else is asked for, a port that is not there matches no range.
        assert_eq!(
            of(looks(Protocol::TCP, "9.9.9.9", "10.0.0.100", None)),
            None
        );
        assert!(Classifier::default().is_empty() && !marks.is_empty());
    }
}
