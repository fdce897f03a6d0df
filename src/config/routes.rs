//! The routes and neighbours of a `[[port]]` in `ulvs.toml`.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::file::{RouteSpec, network, once};
use super::problem::Problems;
use super::section::{Section, Word};
use crate::lvs::Family;

const ROUTE_KEYS: &[&str] = &["to", "via", "from"];
const NEIGHBOUR_KEYS: &[&str] = &["address", "mac"];

/// The routes, in the order of the file.
pub(super) fn routes(port: &Section<'_>, problems: &mut Problems) -> Vec<RouteSpec> {
    let mut routes = Vec::new();
    for section in port.tables("routes", "a route", ROUTE_KEYS, problems) {
        section.require("to", "\"0.0.0.0/0\"", problems);
        let to = section.text("to", problems);
        let to = to.and_then(|word| network(&word, problems));
        let via = section.text("via", problems);
        let via_address = via.as_ref().and_then(|word| address(word, problems));
        let from = section.text("from", problems);
        let from = from.and_then(|word| network(&word, problems));
        let Some(to) = to else { continue };
        if from.is_some_and(|from| Family::of(from.address) != Family::of(to.address)) {
            let what = "packets from one family do not go to another";
            problems.add(section.key_span("from"), what, "");
        }
        let families = via_address.map(|via| (Family::of(via), Family::of(to.address)));
        if let (Some((one, other)), Some(via)) = (families, &via)
            && one != other
        {
            let what = "a gateway is of the family of its network";
            problems.add(
                via.span.clone(),
                what,
                format!("the network is {}", to.address),
            );
        }
        let via = via_address;
        routes.push(RouteSpec { to, via, from });
    }
    routes
}

fn address(word: &Word<'_>, problems: &mut Problems) -> Option<IpAddr> {
    let found = word.text.parse::<IpAddr>().ok();
    if found.is_none() {
        let what = format!("{:?} is no IP address", word.text);
        problems.add(word.span.clone(), what, "");
    }
    found
}

/// The neighbours that need not be asked.
pub(super) fn neighbours(port: &Section<'_>, problems: &mut Problems) -> Vec<(IpAddr, [u8; 6])> {
    let title = "a neighbour";
    let mut found = Vec::new();
    let mut seen = BTreeMap::new();
    for section in port.tables("neighbours", title, NEIGHBOUR_KEYS, problems) {
        section.require("address", "\"192.168.1.1\"", problems);
        section.require("mac", "\"02:00:00:00:00:01\"", problems);
        let word = section.text("address", problems);
        let ip = word.as_ref().and_then(|word| address(word, problems));
        if let (Some(ip), Some(word)) = (ip, &word) {
            once(&mut seen, ip, &word.span, "neighbour", problems);
        }
        let mac = section.text("mac", problems);
        let mac = mac.and_then(|word| mac_address(&word, problems));
        found.extend(ip.zip(mac));
    }
    found
}

fn mac_address(word: &Word<'_>, problems: &mut Problems) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        let hex = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        hex.then(|| u8::from_str_radix(part, 16).ok()).flatten()
    };
    let bytes: Option<Vec<u8>> = word.text.split(':').map(byte).collect();
    let mac: Option<[u8; 6]> = bytes.and_then(|bytes| bytes.try_into().ok());
    if mac.is_none() {
        let what = format!("{:?} is no MAC address", word.text);
        problems.add(word.span.clone(), what, "");
        problems.hint("write six bytes in hex, as in \"02:00:00:00:00:01\"");
    }
    mac
}
