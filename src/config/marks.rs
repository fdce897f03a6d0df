//! The rules for firewall marks in ulvs.toml: `[[mark]]`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::command::Command;
use super::problem::Problems;
use super::section::{Section, Word};
use crate::lvs::{Family, MarkRule, Protocol};

const MARK_KEYS: &[&str] = &[
    "mark",
    "protocol",
    "sources",
    "targets",
    "target_ports",
    "interface",
];
const PROTOCOLS: [(&str, Protocol); 4] = [
    ("tcp", Protocol::TCP),
    ("udp", Protocol::UDP),
    ("sctp", Protocol::SCTP),
    ("icmp", Protocol::ICMP),
];

/// Reads all `[[mark]]` tables; `interfaces` are those that the file names, none if it names none.
pub(super) fn read(
    top: &Section<'_>,
    interfaces: &[&str],
    problems: &mut Problems,
) -> Option<Command> {
    let sections = top.tables("mark", "[[mark]]", MARK_KEYS, problems);
    let rules: Vec<MarkRule> = sections
        .iter()
        .filter_map(|section| rule(section, interfaces, problems))
        .collect();
    (!rules.is_empty()).then_some(Command::SetMarks(rules))
}

fn rule(section: &Section<'_>, interfaces: &[&str], problems: &mut Problems) -> Option<MarkRule> {
    section.require("mark", "5", problems);
    let mark = section.integer("mark", 1..=i64::from(u32::MAX), problems);
    let protocol = section.choice("protocol", &PROTOCOLS, problems);
    let sources = networks(section, "sources", problems);
    let targets = networks(section, "targets", problems);
    let families = |networks: &[(IpAddr, u8)]| -> BTreeSet<Family> {
        networks
            .iter()
            .map(|(address, _)| Family::of(*address))
            .collect()
    };
    let (from, to) = (families(&sources), families(&targets));
    if !from.is_empty() && !to.is_empty() && from.is_disjoint(&to) {
        let what = "this rule matches no packet: its sources and targets are of two families";
        problems.add(section.key_span("targets"), what, "");
    }
    let words = section.texts("target_ports", problems);
    let target_ports = words
        .iter()
        .filter_map(|word| ports(word, problems))
        .collect();
    let has_ports = protocol.is_some_and(Protocol::is_balanced);
    if section.has("target_ports") && !has_ports {
        let what = "target_ports needs protocol = \"tcp\", \"udp\" or \"sctp\"";
        problems.add(section.key_span("target_ports"), what, "");
    }
    let interface = section.text("interface", problems);
    if let Some(word) = &interface
        && !interfaces.is_empty()
        && !interfaces.contains(&word.text)
    {
        let what = format!("no [[port]] has the interface {:?}", word.text);
        problems.add(
            word.span.clone(),
            what,
            format!("there are {}", interfaces.join(", ")),
        );
    }
    Some(MarkRule {
        mark: u32::try_from(mark?).expect("in range"),
        protocol,
        sources,
        targets,
        target_ports,
        interface: interface.map(|word| word.text.to_string()),
    })
}

/// Networks, or single addresses without a prefix length.
pub(super) fn networks(
    section: &Section<'_>,
    key: &str,
    problems: &mut Problems,
) -> Vec<(IpAddr, u8)> {
    let mut found = Vec::new();
    for word in section.texts(key, problems) {
        if let Ok(address) = word.text.parse::<IpAddr>() {
            found.push((address, if address.is_ipv4() { 32 } else { 128 }));
        } else if let Some(cidr) = super::file::network(&word, problems) {
            found.push((cidr.address, cidr.prefix));
        }
    }
    found
}

/// `80` or `8000-8099`.
pub(super) fn ports(word: &Word<'_>, problems: &mut Problems) -> Option<(u16, u16)> {
    let (first, last) = word.text.split_once('-').unwrap_or((word.text, word.text));
    let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
        let what = format!("{:?} is no port and no range of ports", word.text);
        problems.add(word.span.clone(), what, "");
        problems.hint("write \"80\" or \"8000-8099\"");
        return None;
    };
    if first > last {
        let what = format!("the range {:?} is empty", word.text);
        problems.add(word.span.clone(), what, format!("{first} is above {last}"));
        return None;
    }
    Some((first, last))
}
