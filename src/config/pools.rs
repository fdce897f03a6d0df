//! `[masquerade]` and `[fullnat]` of ulvs.toml: under which addresses the director speaks for others.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::command::Command;
use super::file::once;
use super::marks::{networks, ports};
use super::problem::Problems;
use super::section::Section;
use super::words::can_serve;
use crate::lvs::{Family, Masquerading, SourcePool};

const MASQUERADE_KEYS: &[&str] = &["prefixes", "addresses", "ports"];
const FULL_NAT_KEYS: &[&str] = &["addresses", "ports"];

/// Reads both tables; `None` if there is neither.
pub(super) fn read(top: &Section<'_>, problems: &mut Problems) -> Option<Command> {
    let masquerade = top.table("masquerade", "[masquerade]", MASQUERADE_KEYS, problems);
    let full_nat = top.table("fullnat", "[fullnat]", FULL_NAT_KEYS, problems);
    if masquerade.is_none() && full_nat.is_none() {
        return None;
    }
    let masquerading = masquerade.map(|section| masquerading(&section, problems));
    let full_nat = full_nat.map(|section| pool(&section, problems));
    Some(Command::SetPools {
        masquerading: masquerading.unwrap_or_default(),
        full_nat: full_nat.unwrap_or_default(),
    })
}

fn masquerading(section: &Section<'_>, problems: &mut Problems) -> Masquerading {
    section.require("prefixes", "[\"192.168.1.0/24\"]", problems);
    let prefixes = networks(section, "prefixes", problems);
    let pool = pool(section, problems);
    let speaks = |family| pool.addresses.iter().any(|own| Family::of(*own) == family);
    let mut families = prefixes.iter().map(|(address, _)| Family::of(*address));
    if section.has("addresses") && families.any(|family| !speaks(family)) {
        let what = "a prefix is of a family that has no address here";
        problems.add(section.key_span("addresses"), what, "");
        problems.hint("its hosts could not be masqueraded: add an address of that family");
    }
    Masquerading { prefixes, pool }
}

fn pool(section: &Section<'_>, problems: &mut Problems) -> SourcePool {
    section.require("addresses", "[\"192.168.1.250\"]", problems);
    let mut pool = SourcePool::default();
    let mut seen = BTreeMap::new();
    for word in section.texts("addresses", problems) {
        let address = word.text.parse::<IpAddr>().ok();
        match address.filter(|address| can_serve(*address)) {
            Some(address) => {
                once(&mut seen, address, &word.span, "address", problems);
                pool.addresses.push(address);
            }
            None => {
                let what = format!("{:?} is no address that the director can have", word.text);
                problems.add(word.span, what, "");
                problems.hint("write an address of its own without a prefix length");
            }
        }
    }
    if let Some(word) = section.text("ports", problems)
        && let Some((first, last)) = ports(&word, problems)
    {
        if first == 0 {
            problems.add(word.span, "port 0 is none", "");
        }
        pool.ports = (first, last);
    }
    pool
}
