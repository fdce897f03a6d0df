//! The few other commands that cases give to the director's host: netfilter marks, routing of marks to
//! the host itself, routes, and the MTU of an interface. What is not understood makes a case unplayable.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ulvs::lvs::{Link, Protocol};

use super::case::Side;
use super::packet::Seen;
use super::routing::Routing;

/// What commands have made of the director's host.
#[derive(Debug, Default)]
pub struct Shell {
    marks: Vec<MarkRule>,
    /// Which table a mark is routed by, and tables that route everything to the host.
    tables: BTreeMap<u32, String>,
    local_tables: Vec<String>,
    /// Interfaces that no packet uses; synchronisation may be asked to.
    dummies: Vec<Link>,
    /// Routes beyond those of the network.
    pub routing: Routing,
}

/// What a command asks of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It is done.
    Done,
    /// There are other interfaces than before, or others are up.
    Links,
    /// The helper for FTP is there, for these ports.
    Ftp(Vec<u16>),
    /// This interface has this MTU from now on.
    Mtu(usize, u32),
    /// The routes are others now.
    Routes,
}

/// The ports that options of the module `ip_vs_ftp` name; 21 if none does.
fn ftp_ports(options: &[&str]) -> Option<Vec<u16>> {
    match options {
        [] => Some(vec![21]),
        [list] => {
            let list = list.strip_prefix("ports=")?;
            list.split(',').map(|port| port.parse().ok()).collect()
        }
        _ => None,
    }
}

/// A rule of the mangle table's PREROUTING chain whose target is MARK.
#[derive(Debug, Default)]
struct MarkRule {
    v6: bool,
    side: Option<Side>,
    protocol: Option<Protocol>,
    source: Option<(IpAddr, u8)>,
    target: Option<(IpAddr, u8)>,
    source_ports: Option<(u16, u16)>,
    target_ports: Option<(u16, u16)>,
    mark: u32,
}

/// Interfaces by the names that commands use, in the order of `Side::BOTH`.
pub const INTERFACES: [&str; 2] = ["cl0", "rs0"];

impl Shell {
    /// Runs a command line.
    ///
    /// # Errors
    /// A command, or an option of it, that is not understood.
    pub fn run(&mut self, line: &str) -> Result<Effect, String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let unknown = || format!("command `{line}`");
        match words.as_slice() {
            ["iptables-legacy" | "iptables", rule @ ..] => {
                let rule = MarkRule::read(false, rule).ok_or_else(unknown)?;
                self.marks.push(rule);
            }
            ["ip6tables-legacy" | "ip6tables", rule @ ..] => {
                let rule = MarkRule::read(true, rule).ok_or_else(unknown)?;
                self.marks.push(rule);
            }
            ["ip", "-6", rest @ ..] | ["ip", rest @ ..] => {
                if let Some(effect) = self.ip(rest) {
                    return Ok(effect);
                }
                let v6 = words[1] == "-6";
                self.routing.ip(v6, rest).ok_or_else(unknown)?;
                return Ok(Effect::Routes);
            }
            ["modprobe", "ip_vs_ftp", options @ ..] => {
                return ftp_ports(options).map(Effect::Ftp).ok_or_else(unknown);
            }
            ["modprobe", "nf_nat"] => {}
            _ => return Err(unknown()),
        }
        Ok(Effect::Done)
    }

    fn ip(&mut self, words: &[&str]) -> Option<Effect> {
        match words {
            ["link", "set", name, "mtu", mtu] | ["link", "set", "dev", name, "mtu", mtu] => {
                let port = INTERFACES.iter().position(|known| known == name)?;
                return Some(Effect::Mtu(port, mtu.parse().ok()?));
            }
            ["rule", "add", "fwmark", mark, "lookup" | "table", table]
            | [
                "rule",
                "add",
                "iif",
                "cl0",
                "fwmark",
                mark,
                "lookup" | "table",
                table,
            ] => {
                self.tables.insert(number(mark)?, table.to_string());
            }
            [
                "route",
                "add",
                "local",
                "0.0.0.0/0" | "::/0" | "default",
                "dev",
                "lo",
                "table",
                table,
            ] => {
                self.local_tables.push(table.to_string());
            }
            ["link", "add", name, options @ .., "type", "dummy"] => {
                let mtu = match options {
                    [] => 1500,
                    ["mtu", mtu] => mtu.parse().ok()?,
                    _ => return None,
                };
                let name = name.to_string();
                self.dummies.push(Link {
                    name,
                    mtu,
                    up: false,
                });
                return Some(Effect::Links);
            }
            ["link", "set", name, "up"] | ["addr", "add", _, "dev", name, ..] => {
                let mut known = self.dummies.iter_mut();
                match known.find(|dummy| dummy.name == *name) {
                    Some(dummy) => dummy.up |= words[0] == "link",
                    None if *name == "lo" => {}
                    None => return None,
                }
                return Some(Effect::Links);
            }
            _ => return None,
        }
        Some(Effect::Done)
    }

    /// The mark of a frame: of the last rule that matches it, since MARK does not end the chain.
    pub fn mark_of(&self, side: Side, frame: &[u8]) -> u32 {
        if self.marks.is_empty() {
            return 0;
        }
        let Some(seen) = Seen::of(frame) else {
            return 0;
        };
        let mut backwards = self.marks.iter().rev();
        let last = backwards.find(|rule| rule.matches(side, &seen));
        last.map_or(0, |rule| rule.mark)
    }

    /// All interfaces of the host; those of the case's network are up.
    pub fn links(&self) -> Vec<Link> {
        let link = |name: &str| Link {
            name: name.to_string(),
            mtu: if name == "lo" { 65_536 } else { 1500 },
            up: true,
        };
        let own = ["lo", INTERFACES[0], INTERFACES[1]].map(link);
        own.into_iter()
            .chain(self.dummies.iter().cloned())
            .collect()
    }

    /// Are packets with this mark routed to the host itself?
    pub fn is_local_mark(&self, mark: u32) -> bool {
        let table = self.tables.get(&mark);
        table.is_some_and(|table| self.local_tables.contains(table))
    }
}

impl MarkRule {
    fn read(v6: bool, words: &[&str]) -> Option<MarkRule> {
        let mut rule = MarkRule {
            v6,
            ..MarkRule::default()
        };
        let (mut table, mut chain, mut target) = ("filter", "", "");
        let mut words = words.iter();
        while let (Some(option), Some(value)) = (words.next(), words.next()) {
            match *option {
                "-t" | "--table" => table = value,
                "-A" | "--append" => chain = value,
                "-j" | "--jump" => target = value,
                "-m" | "--match" => ["tcp", "udp", "sctp"].contains(value).then_some(())?,
                "-i" | "--in-interface" => {
                    let at = INTERFACES.iter().position(|name| name == value)?;
                    rule.side = Some(Side::BOTH[at]);
                }
                "-p" | "--protocol" => rule.protocol = Some(protocol(value)?),
                "-s" | "--source" => rule.source = Some(network(value)?),
                "-d" | "--destination" => rule.target = Some(network(value)?),
                "--sport" | "--source-port" => rule.source_ports = Some(ports(value)?),
                "--dport" | "--destination-port" => rule.target_ports = Some(ports(value)?),
                "--set-mark" => rule.mark = number(value)?,
                _ => return None,
            }
        }
        let marks = (table, chain, target) == ("mangle", "PREROUTING", "MARK");
        (marks && rule.mark != 0).then_some(rule)
    }

    fn matches(&self, side: Side, seen: &Seen<'_>) -> bool {
        let within = |net: Option<(IpAddr, u8)>, address: IpAddr| {
            net.is_none_or(|(prefix, len)| covers(prefix, len, address))
        };
        let among = |range: Option<(u16, u16)>, port: u16| {
            range.is_none_or(|(first, last)| (first..=last).contains(&port))
        };
        let (source_port, target_port) = seen.ports();
        seen.source.is_ipv6() == self.v6
            && self.side.is_none_or(|wanted| wanted == side)
            && self.protocol.is_none_or(|wanted| wanted == seen.protocol)
            && within(self.source, seen.source)
            && within(self.target, seen.target)
            && among(self.source_ports, source_port)
            && among(self.target_ports, target_port)
    }
}

fn protocol(word: &str) -> Option<Protocol> {
    match word {
        "tcp" => Some(Protocol::TCP),
        "udp" => Some(Protocol::UDP),
        "sctp" => Some(Protocol::SCTP),
        "icmp" => Some(Protocol::ICMP),
        "icmpv6" | "ipv6-icmp" => Some(Protocol::ICMPV6),
        _ => None,
    }
}

fn network(word: &str) -> Option<(IpAddr, u8)> {
    let (address, len) = word.split_once('/').unwrap_or((word, ""));
    let address: IpAddr = address.parse().ok()?;
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let len = if len.is_empty() {
        whole
    } else {
        len.parse().ok()?
    };
    (len <= whole).then_some((address, len))
}

fn ports(word: &str) -> Option<(u16, u16)> {
    let (first, last) = word.split_once(':').unwrap_or((word, word));
    Some((first.parse().ok()?, last.parse().ok()?))
}

fn number(word: &str) -> Option<u32> {
    match word.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => word.parse().ok(),
    }
}

/// Does `prefix/len` hold `address`? Never across families.
fn covers(prefix: IpAddr, len: u8, address: IpAddr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    };
    let ((prefix, family), (address, other)) = (bits(prefix), bits(address));
    let host = u128::MAX.checked_shr(len.into()).unwrap_or(0);
    family == other && (prefix ^ address) & !host == 0
}
