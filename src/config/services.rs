//! `[[service]]` and `[[service.real]]` of ulvs.toml: virtual services and their real servers, as the
//! Commands that make them.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use super::command::{Command, RealSpec};
use super::file::once;
use super::ipvsadm::{NAME_BYTES_MAX, SCHEDULER_DEFAULT, TIMEOUT_MAX_S};
use super::problem::{Problems, nearest};
use super::section::{Section, Word};
use super::words::{FlagFault, can_serve, flag_bit};
use crate::lvs::{
    Endpoint, Family, ForwardMethod, Netmask, Persistence, Protocol, RealKey, ServiceFlags,
    ServiceKey, ServiceSpec, Thresholds, Tunnel, TunnelChecksum, Weight,
};

const SERVICE_KEYS: &[&str] = &[
    "tcp",
    "udp",
    "sctp",
    "fwmark",
    "family",
    "scheduler",
    "persistent",
    "netmask",
    "flags",
    "one_packet",
    "engine",
    "real",
];
const REAL_KEYS: &[&str] = &[
    "address",
    "weight",
    "method",
    "upper",
    "lower",
    "tunnel",
    "tunnel_port",
    "tunnel_checksum",
];

const PROTOCOLS: [(&str, Protocol); 3] = [
    ("tcp", Protocol::TCP),
    ("udp", Protocol::UDP),
    ("sctp", Protocol::SCTP),
];
const FAMILIES: [(&str, Family); 2] = [("v4", Family::V4), ("v6", Family::V6)];
const METHODS: [(&str, ForwardMethod); 4] = [
    ("masq", ForwardMethod::Masq),
    ("route", ForwardMethod::Route),
    ("tunnel", ForwardMethod::Tunnel),
    ("fnat", ForwardMethod::FullNat),
];

/// What LVS-TUN wraps packets in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TunnelKind {
    Ipip,
    Gue,
    Gre,
}

const TUNNELS: [(&str, TunnelKind); 3] = [
    ("ipip", TunnelKind::Ipip),
    ("gue", TunnelKind::Gue),
    ("gre", TunnelKind::Gre),
];
const CHECKSUMS: [(&str, TunnelChecksum); 3] = [
    ("no", TunnelChecksum::No),
    ("full", TunnelChecksum::Full),
    ("remote", TunnelChecksum::Remote),
];

/// All services with their servers, in the order of the file.
pub(super) fn read(
    top: &Section<'_>,
    schedulers: &[&str],
    problems: &mut Problems,
) -> Vec<Command> {
    let mut commands = Vec::new();
    let mut seen = BTreeMap::new();
    for section in top.tables("service", "[[service]]", SERVICE_KEYS, problems) {
        let Some((key, span)) = service_key(&section, problems) else {
            // Its servers are still looked at, so that all errors show at once.
            reals(&section, None, problems);
            continue;
        };
        once(&mut seen, key, &span, "service", problems);
        let spec = service(&section, key, schedulers, problems);
        commands.push(Command::AddService(spec));
        let reals = reals(&section, Some(key), problems);
        commands.extend(
            reals
                .into_iter()
                .map(|real| Command::AddReal { service: key, real }),
        );
    }
    commands
}

/// What names the service, and where that stands.
fn service_key(
    section: &Section<'_>,
    problems: &mut Problems,
) -> Option<(ServiceKey, Range<usize>)> {
    let names = ["tcp", "udp", "sctp", "fwmark"];
    let given: Vec<&str> = names.into_iter().filter(|key| section.has(key)).collect();
    let [name] = given[..] else {
        let what = "a service has exactly one of tcp, udp, sctp and fwmark";
        match given.get(1) {
            Some(second) => problems.add(section.key_span(second), what, "one too many"),
            None => problems.add(section.span(), what, "none here"),
        }
        problems.hint("for example tcp = \"1.2.3.1:80\", or fwmark = 5");
        return None;
    };
    let span = section.span_of(name);
    if name == "fwmark" {
        let mark = section.integer(name, 1..=i64::from(u32::MAX), problems)?;
        let mark = u32::try_from(mark).expect("in range");
        let family = section.choice("family", &FAMILIES, problems);
        let family = family.unwrap_or(Family::V4);
        return Some((ServiceKey::Mark { mark, family }, span));
    }
    if section.has("family") {
        let what = "family is for fwmark services; an address says its own";
        problems.add(section.key_span("family"), what, "");
    }
    let (_, protocol) = PROTOCOLS.into_iter().find(|(key, _)| *key == name)?;
    let word = section.text(name, problems)?;
    let (address, port) = endpoint(&word, problems)?;
    let port = port.unwrap_or(0);
    if port == 0 && !section.has("persistent") {
        let what = "a service without a port must be persistent";
        problems.add(word.span, what, "every port");
        problems.hint("write ADDRESS:PORT, or add persistent = 360");
    }
    let virt = Endpoint::new(address, port);
    Some((ServiceKey::Address { protocol, virt }, span))
}

/// `ADDRESS`, `ADDRESS:PORT`, `[IPV6]:PORT`; numbers only.
fn endpoint(word: &Word<'_>, problems: &mut Problems) -> Option<(IpAddr, Option<u16>)> {
    let bare = word.text.parse::<IpAddr>().ok();
    if let Some(address) = bare {
        return Some((address, None));
    }
    let split = match word.text.strip_prefix('[') {
        Some(rest) => rest.split_once("]:"),
        None => word.text.rsplit_once(':'),
    };
    let (host, port) = split.unwrap_or((word.text, ""));
    let Ok(address) = host.parse::<IpAddr>() else {
        let what = format!("{:?} is no address and port", word.text);
        problems.add(word.span.clone(), what, "");
        problems.hint("write \"1.2.3.1:80\" or \"[fd00::1]:80\"; names are not looked up here");
        return None;
    };
    let Ok(port) = port.parse::<u16>() else {
        let what = format!("{port:?} is no port");
        problems.add(word.span.clone(), what, "0 to 65535");
        return None;
    };
    Some((address, Some(port)))
}

fn service(
    section: &Section<'_>,
    key: ServiceKey,
    schedulers: &[&str],
    problems: &mut Problems,
) -> ServiceSpec {
    let scheduler = section.text("scheduler", problems);
    if let Some(word) = &scheduler {
        check_scheduler(word, schedulers, problems);
    }
    let scheduler = scheduler.map_or(SCHEDULER_DEFAULT, |word| word.text);
    let mut spec = ServiceSpec::new(key, scheduler);
    let seconds = section.integer("persistent", 1..=i64::from(TIMEOUT_MAX_S), problems);
    spec.persistence = seconds.map(|seconds| Persistence {
        timeout_s: u32::try_from(seconds).expect("in range"),
    });
    if let Some(netmask) = netmask(section, key.family(), problems) {
        spec.netmask = netmask;
    }
    let mut bits = flags(section, scheduler, problems);
    if section.boolean("one_packet", problems) == Some(true) {
        bits |= ServiceFlags::ONE_PACKET;
        let protocol = match key {
            ServiceKey::Address { protocol, .. } => protocol,
            ServiceKey::Mark { .. } => Protocol::UDP,
        };
        if protocol != Protocol::UDP {
            let what = "one_packet is only for udp and fwmark services";
            problems.add(section.key_span("one_packet"), what, "");
        }
    }
    spec.flags = ServiceFlags(bits);
    spec.engine = engine(section, problems);
    spec
}

fn check_scheduler(word: &Word<'_>, schedulers: &[&str], problems: &mut Problems) {
    let known = schedulers.is_empty() || word.text == "none" || schedulers.contains(&word.text);
    if known && !word.text.is_empty() && word.text.len() <= NAME_BYTES_MAX {
        return;
    }
    let what = format!("no such scheduler: {:?}", word.text);
    problems.add(word.span.clone(), what, "");
    match nearest(word.text, schedulers) {
        Some(near) => problems.hint(format!("did you mean \"{near}\"?")),
        None => problems.hint(format!("there are {}, none", schedulers.join(", "))),
    }
}

/// A dotted mask for IPv4, a prefix length for IPv6.
fn netmask(section: &Section<'_>, family: Family, problems: &mut Problems) -> Option<Netmask> {
    if section.has("netmask") && !section.has("persistent") {
        let what = "netmask has no effect without persistent";
        problems.add(section.key_span("netmask"), what, "");
    }
    match family {
        Family::V6 => {
            let prefix = section.integer("netmask", 1..=128, problems)?;
            Some(Netmask::V6(u8::try_from(prefix).expect("in range")))
        }
        Family::V4 => {
            let word = section.text("netmask", problems)?;
            let mask = word.text.parse::<Ipv4Addr>().ok();
            if mask.is_none() {
                let what = format!("{:?} is no IPv4 mask", word.text);
                problems.add(word.span, what, "");
                problems.hint("write a dotted mask, as in \"255.255.255.0\"");
            }
            mask.map(|mask| Netmask::V4(u32::from(mask)))
        }
    }
}

fn flags(section: &Section<'_>, scheduler: &str, problems: &mut Problems) -> u32 {
    let mut bits = 0;
    for word in section.texts("flags", problems) {
        match flag_bit(word.text, scheduler) {
            Ok(bit) => bits |= bit,
            Err(FlagFault::Incompatible) => {
                let what = format!("scheduler {scheduler} has no flag {:?}", word.text);
                problems.add(word.span, what, "belongs to another scheduler");
            }
            Err(FlagFault::Invalid) => {
                let what = format!("no such scheduler flag: {:?}", word.text);
                problems.add(word.span, what, "");
                let all = "sh-fallback, sh-port, mh-fallback, mh-port, flag-1, flag-2, flag-3";
                problems.hint(format!("one of {all}"));
            }
        }
    }
    bits
}

fn engine(section: &Section<'_>, problems: &mut Problems) -> Option<String> {
    let word = section.text("engine", problems)?;
    if word.text.is_empty() || word.text.len() > NAME_BYTES_MAX {
        let what = format!("{:?} is no name of a persistence engine", word.text);
        problems.add(word.span.clone(), what, "");
        problems.hint("\"sip\" is one");
    }
    if !section.has("persistent") {
        let what = "engine has no effect without persistent";
        problems.add(section.key_span("engine"), what, "");
    }
    Some(word.text.to_string())
}

fn reals(service: &Section<'_>, key: Option<ServiceKey>, problems: &mut Problems) -> Vec<RealSpec> {
    let mut found = Vec::new();
    let mut seen = BTreeMap::new();
    for section in service.tables("real", "[[service.real]]", REAL_KEYS, problems) {
        if let Some((real, span)) = real(&section, key, problems) {
            once(&mut seen, real.key, &span, "real server", problems);
            found.push(real);
        }
    }
    found
}

fn real(
    section: &Section<'_>,
    service: Option<ServiceKey>,
    problems: &mut Problems,
) -> Option<(RealSpec, Range<usize>)> {
    section.require("address", "\"192.168.1.1:80\"", problems);
    let method = method(section, problems).unwrap_or_default();
    let weight = section.integer("weight", 0..=i64::from(i32::MAX), problems);
    let thresholds = thresholds(section, problems);
    let tunnel = tunnel(section, method, problems);
    let word = section.text("address", problems)?;
    let (address, port) = endpoint(&word, problems)?;
    if !can_serve(address) {
        let what = format!("{address} cannot be a real server");
        problems.add(word.span.clone(), what, "not a unicast address");
    }
    let service = service?;
    let port = port.unwrap_or(service.port());
    if Family::of(address) != service.family() && method != ForwardMethod::Tunnel {
        let what = "only a tunnel reaches a server of another family than the service's";
        problems.add(word.span.clone(), what, "");
    }
    let keeps_port = !service.is_mark() && !method.is_nat();
    if keeps_port && port != service.port() {
        let what = "only method = \"masq\" or \"fnat\" can change the port";
        let label = format!("the service has port {}", service.port());
        problems.add(word.span.clone(), what, label);
    }
    let weight = weight.map_or(1, |weight| i32::try_from(weight).expect("in range"));
    let real = RealSpec {
        key: RealKey(Endpoint::new(address, port)),
        weight: Weight(weight),
        method,
        thresholds,
        tunnel,
    };
    Some((real, word.span))
}

fn method(section: &Section<'_>, problems: &mut Problems) -> Option<ForwardMethod> {
    // Who says NAT means LVS-NAT; the nearest word is another.
    if let Some(word) = section.text("method", problems)
        && word.text == "nat"
    {
        let all = METHODS.map(|(name, _)| name).join(", ");
        let what = "no such method: \"nat\"";
        problems.add(word.span, what, format!("one of {all}"));
        problems.hint("\"masq\" is LVS-NAT; \"fnat\" rewrites the client's end, too");
        return None;
    }
    section.choice("method", &METHODS, problems)
}

/// What the packets to a server are wrapped in; IP in IP if nothing is said.
fn tunnel(section: &Section<'_>, method: ForwardMethod, problems: &mut Problems) -> Tunnel {
    for key in ["tunnel", "tunnel_port", "tunnel_checksum"] {
        if section.has(key) && method != ForwardMethod::Tunnel {
            let what = format!("{key} has no effect without method = \"tunnel\"");
            problems.add(section.key_span(key), what, "");
        }
    }
    let kind = section.choice("tunnel", &TUNNELS, problems);
    let kind = kind.unwrap_or(TunnelKind::Ipip);
    let port = section.integer("tunnel_port", 1..=i64::from(u16::MAX), problems);
    let checksum = section.choice("tunnel_checksum", &CHECKSUMS, problems);
    if port.is_some() && kind != TunnelKind::Gue {
        let what = "only gue has a port";
        problems.add(section.key_span("tunnel_port"), what, "");
    }
    let summed = match kind {
        TunnelKind::Ipip => checksum.is_none(),
        TunnelKind::Gre => checksum != Some(TunnelChecksum::Remote),
        TunnelKind::Gue => true,
    };
    if !summed {
        let what = "this tunnel knows no such checksum";
        problems.add(section.key_span("tunnel_checksum"), what, "");
    }
    let checksum = checksum.unwrap_or_default();
    match (kind, port) {
        (TunnelKind::Ipip, _) => Tunnel::Ipip,
        (TunnelKind::Gre, _) => Tunnel::Gre { checksum },
        (TunnelKind::Gue, Some(port)) => Tunnel::Gue {
            port: u16::try_from(port).expect("in range"),
            checksum,
        },
        (TunnelKind::Gue, None) => {
            if !section.has("tunnel_port") {
                section.require("tunnel_port", "6080", problems);
            }
            Tunnel::Ipip
        }
    }
}

fn thresholds(section: &Section<'_>, problems: &mut Problems) -> Thresholds {
    let range = 0..=i64::from(i32::MAX);
    let upper = section.integer("upper", range.clone(), problems);
    let lower = section.integer("lower", range, problems);
    let unsigned = |value: Option<i64>| value.map_or(0, |value| value.unsigned_abs() as u32);
    let (upper, lower) = (unsigned(upper), unsigned(lower));
    if lower > upper {
        let what = "the lower threshold is above the upper one";
        problems.add(section.span_of("lower"), what, format!("upper is {upper}"));
    }
    Thresholds { upper, lower }
}
