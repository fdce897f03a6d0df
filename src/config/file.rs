//! ulvs.toml: the file of a director. Everything a daemon needs to know to start, checked so far as a
//! text can be checked; all errors are shown at once, each with its place and a hint. What only the
//! machine knows (interfaces, links) is checked by the daemon.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::Range;

use toml::de::DeTable;

use super::command::Command;
use super::ipvsadm::TIMEOUT_MAX_S;
use super::marks;
use super::problem::Problems;
use super::routes;
use super::section::{Section, Word};
use super::services;
use super::{helpers, pools};
use crate::lvs::tunables::WORKERS_MAX;
use crate::lvs::{Accepts, Limits, Timeouts, Tunables};

/// Longest text of a configuration or rules file in bytes: about a hundred thousand rules.
pub const TEXT_BYTES_MAX: usize = 16 << 20;
/// Longest name of an interface in bytes (`IFNAMSIZ` without its NUL).
pub const INTERFACE_BYTES_MAX: usize = 15;
/// Longest path of a Unix socket in bytes (`sun_path` without its NUL).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Everything a daemon starts with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// How the daemon runs.
    pub director: DirectorSettings,
    /// The interfaces, in the order of the file.
    pub ports: Vec<PortSpec>,
    /// What makes the rules of marks, the pools and the table of services from nothing, in order.
    pub services: Vec<Command>,
    /// Timeouts of the protocol states.
    pub timeouts: Timeouts,
    /// The kernel's sysctls.
    pub tunables: Tunables,
    /// Our own bounds.
    pub limits: Limits,
}

/// How the daemon runs: `[director]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectorSettings {
    /// Which back-end takes and gives frames.
    pub nic: NicKind,
    /// Threads that forward, 1..=WORKERS_MAX.
    pub workers: usize,
    /// Path of the control socket; `None` for the usual place (`config::control_path`).
    pub control: Option<String>,
    /// How the kernel's own stack is kept off our frames.
    pub keep_kernel_off: KeepKernelOff,
    /// Pin each worker to a core.
    pub pin: bool,
    /// Name of the TUN device, for `NicKind::Tun`.
    pub tun: String,
    /// Make a way to programs of this machine, for real servers that are the director itself; if nothing
    /// is said, when there is such a real server at the start.
    pub local_node: Option<bool>,
}

impl Default for DirectorSettings {
    fn default() -> DirectorSettings {
        DirectorSettings {
            nic: NicKind::Packet,
            workers: 1,
            control: None,
            keep_kernel_off: KeepKernelOff::Auto,
            pin: true,
            tun: "ulvs0".to_string(),
            local_node: None,
        }
    }
}

/// A back-end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NicKind {
    /// AF_PACKET with a ring.
    #[default]
    Packet,
    /// AF_PACKET without a ring.
    Mmsg,
    /// A TUN device; the kernel routes.
    Tun,
}

impl NicKind {
    /// All, with the word for each.
    pub const ALL: [(&'static str, NicKind); 3] = [
        ("packet", NicKind::Packet),
        ("mmsg", NicKind::Mmsg),
        ("tun", NicKind::Tun),
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        word_of(&Self::ALL, self)
    }
}

/// How the kernel's stack is kept off our frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepKernelOff {
    /// What works on this machine.
    #[default]
    Auto,
    /// nftables.
    Nft,
    /// tc.
    Tc,
    /// Not at all: the operator has seen to it.
    None,
}

impl KeepKernelOff {
    /// All, with the word for each.
    pub const ALL: [(&'static str, KeepKernelOff); 4] = [
        ("auto", KeepKernelOff::Auto),
        ("nft", KeepKernelOff::Nft),
        ("tc", KeepKernelOff::Tc),
        ("none", KeepKernelOff::None),
    ];

    /// Its word.
    pub fn name(self) -> &'static str {
        word_of(&Self::ALL, self)
    }
}

/// Which side of the director an interface is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where clients come from.
    Public,
    /// Where the real servers are.
    Private,
}

impl Side {
    /// Both, with the word for each.
    pub const ALL: [(&'static str, Side); 2] =
        [("public", Side::Public), ("private", Side::Private)];

    /// Its word.
    pub fn name(self) -> &'static str {
        word_of(&Self::ALL, self)
    }
}

fn word_of<T: Copy + PartialEq>(all: &[(&'static str, T)], value: T) -> &'static str {
    let found = all.iter().find(|(_, other)| *other == value);
    found.expect("every value has its word").0
}

/// An interface: `[[port]]`. What is left out is taken from the machine by the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name.
    pub interface: String,
    /// Its side.
    pub side: Side,
    /// Addresses that the director itself owns there, with the length of their network's prefix.
    pub addresses: Vec<Cidr>,
    /// Networks reachable there.
    pub routes: Vec<RouteSpec>,
    /// Neighbours that need not be asked.
    pub neighbours: Vec<(IpAddr, [u8; 6])>,
}

impl PortSpec {
    /// An interface of which only name and side are given.
    pub fn new(interface: &str, side: Side) -> PortSpec {
        PortSpec {
            interface: interface.to_string(),
            side,
            addresses: Vec::new(),
            routes: Vec::new(),
            neighbours: Vec::new(),
        }
    }
}

/// An address and the length of its network's prefix: `192.168.1.254/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cidr {
    /// The address.
    pub address: IpAddr,
    /// 0..=32 or 0..=128.
    pub prefix: u8,
}

/// A network and the way to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteSpec {
    /// The network; no bit behind the prefix is set.
    pub to: Cidr,
    /// The gateway; `None` for a network on the link.
    pub via: Option<IpAddr>,
    /// Only for packets from this network; `None` for all.
    pub from: Option<Cidr>,
}

impl Config {
    /// The least a director needs: one interface to the clients, one to the real servers, and rules.
    pub fn minimal(public: &str, private: &str, rules: Vec<Command>) -> Config {
        Config {
            ports: vec![
                PortSpec::new(public, Side::Public),
                PortSpec::new(private, Side::Private),
            ],
            services: rules,
            ..Config::default()
        }
    }
}

const TOP_KEYS: &[&str] = &[
    "director",
    "port",
    "mark",
    "masquerade",
    "fullnat",
    "ftp",
    "service",
    "timeouts",
    "tunables",
    "limits",
];
const DIRECTOR_KEYS: &[&str] = &[
    "nic",
    "workers",
    "control",
    "keep_kernel_off",
    "pin",
    "tun",
    "local_node",
];
const PORT_KEYS: &[&str] = &["interface", "side", "addresses", "routes", "neighbours"];
const TIMEOUT_KEYS: &[&str] = &["tcp", "tcpfin", "udp"];

/// Reads a configuration. `name` is what problems call the file; `schedulers` are the names that may be
/// used beside `none` (an empty list allows all).
pub fn parse(name: &str, text: &str, schedulers: &[&str]) -> Result<Config, Problems> {
    let mut problems = Problems::new(name, text);
    if text.len() > TEXT_BYTES_MAX {
        problems.add(0..0, format!("longer than {TEXT_BYTES_MAX} bytes"), "");
        return problems.or(Config::default());
    }
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        problems.add(span, error.message(), "");
    }
    if !problems.is_empty() {
        return problems.or(Config::default());
    }
    let top = Section::open("the file", table.get_ref(), 0..0, TOP_KEYS, &mut problems);
    let director = director(&top, &mut problems);
    let ports = ports(&top, &mut problems);
    let interfaces: Vec<&str> = ports.iter().map(|port| port.interface.as_str()).collect();
    let marks = marks::read(&top, &interfaces, &mut problems);
    let pools = pools::read(&top, &mut problems);
    let ftp = helpers::read(&top, &mut problems);
    let services = services::read(&top, schedulers, &mut problems);
    let config = Config {
        director,
        ports,
        services: marks
            .into_iter()
            .chain(pools)
            .chain(ftp)
            .chain(services)
            .collect(),
        timeouts: timeouts(&top, &mut problems),
        tunables: tunables(&top, &mut problems),
        limits: limits(&top, &mut problems),
    };
    if config.director.nic != NicKind::Tun && config.ports.is_empty() && !top.has("port") {
        let span = 0..text.lines().next().unwrap_or("").len();
        problems.add(span, "the director has no interface", "");
        problems.hint("add a [[port]] with interface = \"eth0\" and side = \"public\"");
    }
    problems.or(config)
}

fn director(top: &Section<'_>, problems: &mut Problems) -> DirectorSettings {
    let mut settings = DirectorSettings::default();
    let Some(section) = top.table("director", "[director]", DIRECTOR_KEYS, problems) else {
        return settings;
    };
    if let Some(nic) = section.choice("nic", &NicKind::ALL, problems) {
        settings.nic = nic;
    }
    let most = i64::try_from(WORKERS_MAX).expect("a small constant");
    if let Some(workers) = section.integer("workers", 1..=most, problems) {
        settings.workers = usize::try_from(workers).expect("in range");
    }
    if let Some(path) = section.text("control", problems) {
        check_socket_path(&path, problems);
        settings.control = Some(path.text.to_string());
    }
    if let Some(way) = section.choice("keep_kernel_off", &KeepKernelOff::ALL, problems) {
        settings.keep_kernel_off = way;
    }
    if let Some(pin) = section.boolean("pin", problems) {
        settings.pin = pin;
    }
    if let Some(name) = section.text("tun", problems) {
        check_interface(&name, problems);
        settings.tun = name.text.to_string();
    }
    settings.local_node = section.boolean("local_node", problems);
    settings
}

fn check_socket_path(path: &Word<'_>, problems: &mut Problems) {
    if !path.text.starts_with('/') {
        let what = "the control socket needs an absolute path";
        problems.add(path.span.clone(), what, "");
    } else if path.text.len() > SOCKET_PATH_BYTES_MAX {
        let what = format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes");
        let label = format!("this one has {}", path.text.len());
        problems.add(path.span.clone(), what, label);
    }
}

/// What the kernel allows (`dev_valid_name`).
fn check_interface(name: &Word<'_>, problems: &mut Problems) {
    let odd = |c: char| c.is_whitespace() || c == '/' || c == ':' || c.is_control();
    let wrong = match name.text {
        "" | "." | ".." => "cannot be a name",
        text if text.len() > INTERFACE_BYTES_MAX => "too long",
        text if text.contains(odd) => "has a character that no interface has",
        _ => return,
    };
    let what = format!("{:?} is no name of an interface", name.text);
    problems.add(name.span.clone(), what, wrong);
}

fn ports(top: &Section<'_>, problems: &mut Problems) -> Vec<PortSpec> {
    let mut ports = Vec::new();
    let mut names = BTreeMap::new();
    let mut owned = BTreeMap::new();
    for section in top.tables("port", "[[port]]", PORT_KEYS, problems) {
        section.require("interface", "\"eth0\"", problems);
        section.require("side", "\"public\"", problems);
        let name = section.text("interface", problems);
        if let Some(name) = &name {
            check_interface(name, problems);
            once(&mut names, name.text, &name.span, "interface", problems);
        }
        let side = section.choice("side", &Side::ALL, problems);
        let addresses = cidrs(&section, &mut owned, problems);
        let routes = routes::routes(&section, problems);
        let neighbours = routes::neighbours(&section, problems);
        if let (Some(name), Some(side)) = (name, side) {
            ports.push(PortSpec {
                interface: name.text.to_string(),
                side,
                addresses,
                routes,
                neighbours,
            });
        }
    }
    ports
}

/// Notes a value that was there before.
pub(super) fn once(
    seen: &mut BTreeMap<String, Range<usize>>,
    value: impl ToString,
    span: &Range<usize>,
    kind: &str,
    problems: &mut Problems,
) {
    let text = value.to_string();
    match seen.get(&text) {
        Some(first) => {
            let (line, _) = problems.line_and_column(first.start);
            let label = format!("first in line {line}");
            problems.add(span.clone(), format!("{kind} {text} is given twice"), label);
        }
        None => {
            seen.insert(text, span.clone());
        }
    }
}

fn cidrs(
    section: &Section<'_>,
    owned: &mut BTreeMap<String, Range<usize>>,
    problems: &mut Problems,
) -> Vec<Cidr> {
    let mut found = Vec::new();
    for word in section.texts("addresses", problems) {
        let Some(cidr) = cidr(&word, problems) else {
            continue;
        };
        if cidr.address.is_unspecified() || cidr.address.is_multicast() {
            let what = format!("{} cannot be an interface's own", cidr.address);
            problems.add(word.span.clone(), what, "");
        }
        once(owned, cidr.address, &word.span, "address", problems);
        found.push(cidr);
    }
    found
}

/// `ADDRESS/LENGTH`.
fn cidr(word: &Word<'_>, problems: &mut Problems) -> Option<Cidr> {
    let example = "write ADDRESS/LENGTH, as in \"192.168.1.254/24\" or \"fd00::1/64\"";
    let Some((address, prefix)) = word.text.split_once('/') else {
        let what = format!("{:?} has no prefix length", word.text);
        problems.add(word.span.clone(), what, "");
        problems.hint(example);
        return None;
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        let what = format!("{address:?} is no IP address");
        problems.add(word.span.clone(), what, "");
        problems.hint(example);
        return None;
    };
    let most = width(address);
    let prefix = prefix.parse::<u8>().ok().filter(|prefix| *prefix <= most);
    let Some(prefix) = prefix else {
        let what = format!("the prefix length of {address} is 0 to {most}");
        problems.add(word.span.clone(), what, "");
        return None;
    };
    Some(Cidr { address, prefix })
}

fn width(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

/// A CIDR with nothing behind its prefix.
pub(super) fn network(word: &Word<'_>, problems: &mut Problems) -> Option<Cidr> {
    let cidr = cidr(word, problems)?;
    let masked = masked(cidr);
    if masked != cidr.address {
        let what = format!("{:?} is an address, not a network", word.text);
        problems.add(word.span.clone(), what, "bits are set behind the prefix");
        problems.hint(format!("the network is {masked}/{}", cidr.prefix));
        return None;
    }
    Some(cidr)
}

fn masked(cidr: Cidr) -> IpAddr {
    let prefix = u32::from(cidr.prefix);
    match cidr.address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            IpAddr::V4((u32::from(v4) & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            IpAddr::V6((u128::from(v6) & mask).into())
        }
    }
}

fn timeouts(top: &Section<'_>, problems: &mut Problems) -> Timeouts {
    let mut timeouts = Timeouts::default();
    let Some(section) = top.table("timeouts", "[timeouts]", TIMEOUT_KEYS, problems) else {
        return timeouts;
    };
    let mut read = |key: &str, target: &mut u32| {
        let seconds = section.integer(key, 1..=i64::from(TIMEOUT_MAX_S), problems);
        if let Some(seconds) = seconds {
            *target = u32::try_from(seconds).expect("in range");
        }
    };
    read("tcp", &mut timeouts.tcp_s);
    read("tcpfin", &mut timeouts.tcp_fin_s);
    read("udp", &mut timeouts.udp_s);
    timeouts
}

fn tunables(top: &Section<'_>, problems: &mut Problems) -> Tunables {
    let mut tunables = Tunables::default();
    let names = Tunables::NAMES;
    let Some(section) = top.table("tunables", "[tunables]", names, problems) else {
        return tunables;
    };
    for name in names {
        let Some(number) = section.number_or_switch(name, problems) else {
            continue;
        };
        let accepts = Tunables::accepts(name).expect("a name out of NAMES");
        if accepts.takes(number) {
            *tunables.get_mut(name).expect("a name out of NAMES") = number;
        } else {
            let what = format!("`{name}` does not take {number}");
            problems.add(section.span_of(name), what, accepted(accepts));
        }
    }
    tunables
}

fn accepted(accepts: Accepts) -> String {
    match accepts {
        Accepts::Number => "a number of 32 bits".to_string(),
        Accepts::Natural => "0 or more".to_string(),
        Accepts::UpTo(max) => format!("0 to {max}"),
        Accepts::PowerOfTwo => "a power of two".to_string(),
        Accepts::Seconds => "seconds, at most 21474836".to_string(),
        Accepts::Nothing => "it can only be read".to_string(),
    }
}

/// Bounds that may be zero; with any other of zero nothing would work.
const ZERO_LIMITS: [&str; 1] = ["index_slots_max"];

/// Every field of `Limits` is a key, so that a new one needs no line here.
fn limits(top: &Section<'_>, problems: &mut Problems) -> Limits {
    let defaults = serde_json::to_value(Limits::default()).expect("plain numbers");
    let mut fields = defaults.as_object().cloned().unwrap_or_default();
    let names: Vec<&str> = defaults
        .as_object()
        .into_iter()
        .flatten()
        .map(|field| field.0.as_str())
        .collect();
    let Some(section) = top.table("limits", "[limits]", &names, problems) else {
        return Limits::default();
    };
    for name in &names {
        let least = i64::from(!ZERO_LIMITS.contains(name));
        if let Some(number) = section.integer(name, least..=i64::from(u32::MAX), problems) {
            fields.insert((*name).to_string(), number.into());
        }
    }
    serde_json::from_value(fields.into()).expect("numbers in range")
}
