//! The operator of a run: somebody who changes everything all the time, sensibly or not.

use std::net::IpAddr;

use super::station::MARK;
use super::talk::SIP_PORT;
use super::topology::{REALS, VIPS};
use crate::config::{Command, Query, RealSpec};
use crate::director::snapshot::{Service, Snapshot};
use crate::lvs::{
    Endpoint, Family, ForwardMethod, Netmask, Persistence, Protocol, RealKey, ServiceFlags,
    ServiceKey, ServiceSpec, Thresholds, Timeouts, Tunnel, Weight,
};
use crate::rng::Rng;
use crate::sched;

/// Longest timeout that is ever configured, in seconds.
pub const TIMEOUT_MAX_S: u32 = 3600;

/// Tunables with the values that are tried.
const TUNABLES: [(&str, &[&str]); 17] = [
    ("conn_reuse_mode", &["0", "1", "1", "2", "3"]),
    ("expire_nodest_conn", &["0", "1"]),
    ("expire_quiescent_template", &["0", "1"]),
    ("sloppy_tcp", &["0", "0", "1"]),
    ("sloppy_sctp", &["0", "1"]),
    ("nat_icmp_send", &["0", "1"]),
    ("schedule_icmp", &["0", "1"]),
    ("drop_entry", &["0", "0", "1", "2", "3"]),
    ("drop_packet", &["0", "0", "0", "1", "2", "3"]),
    ("am_droprate", &["1", "2", "10"]),
    ("amemthresh", &["0", "1", "1024"]),
    ("secure_tcp", &["0", "0", "1", "2", "3"]),
    ("run_estimation", &["0", "1"]),
    ("cache_bypass", &["0", "1"]),
    ("snat_reroute", &["0", "1"]),
    ("sync_version", &["7"]),
    ("no_such_tunable", &["1"]),
];

/// One of these.
pub fn pick<T: Copy>(rng: &mut Rng, choices: &[T]) -> T {
    choices[rng.below(choices.len() as u64) as usize]
}

const fn address(protocol: Protocol, vip: usize, port: u16) -> ServiceKey {
    ServiceKey::Address {
        protocol,
        virt: Endpoint::new(VIPS[vip], port),
    }
}

/// Every service that a run may have; the first ones it begins with.
const KEYS: [ServiceKey; 11] = [
    address(Protocol::TCP, 0, 80),
    address(Protocol::UDP, 0, 53),
    address(Protocol::SCTP, 0, 9),
    address(Protocol::TCP, 2, 80),
    address(Protocol::UDP, 2, 53),
    address(Protocol::TCP, 1, 0),
    address(Protocol::UDP, 0, 500),
    address(Protocol::UDP, 0, SIP_PORT),
    address(Protocol::TCP, 0, 21),
    address(Protocol::TCP, 1, 80),
    ServiceKey::Mark {
        mark: MARK,
        family: Family::V4,
    },
];

/// What clients ask for: most of it is served most of the time.
pub const TARGETS: [(Protocol, Endpoint); 13] = [
    (Protocol::TCP, Endpoint::new(VIPS[0], 80)),
    (Protocol::TCP, Endpoint::new(VIPS[0], 80)),
    (Protocol::TCP, Endpoint::new(VIPS[0], 80)),
    (Protocol::UDP, Endpoint::new(VIPS[0], 53)),
    (Protocol::UDP, Endpoint::new(VIPS[0], 500)),
    (Protocol::UDP, Endpoint::new(VIPS[0], SIP_PORT)),
    (Protocol::SCTP, Endpoint::new(VIPS[0], 9)),
    (Protocol::TCP, Endpoint::new(VIPS[2], 80)),
    (Protocol::UDP, Endpoint::new(VIPS[2], 53)),
    (Protocol::TCP, Endpoint::new(VIPS[1], 80)),
    (Protocol::TCP, Endpoint::new(VIPS[1], 4444)),
    (Protocol::TCP, Endpoint::new(VIPS[0], 21)),
    (Protocol::TCP, Endpoint::new(VIPS[0], 81)),
];

/// What a run begins with: some services with some real servers each, all of them usable.
pub fn first_commands(rng: &mut Rng, calm: bool) -> Vec<Command> {
    let mut commands = Vec::new();
    let wanted = 3 + rng.below(KEYS.len() as u64 - 2) as usize;
    for key in &KEYS[..wanted] {
        let mut spec = ServiceSpec::new(*key, pick(rng, &sched::NAMES));
        if rng.chance(25) || key.port() == 0 {
            spec.persistence = Some(persistence(rng));
        }
        if key.port() == SIP_PORT && rng.chance(70) {
            spec.persistence = Some(persistence(rng));
            spec.engine = Some("sip".to_string());
        }
        if !calm && rng.chance(15) {
            spec.flags.0 |= ServiceFlags::ONE_PACKET;
        }
        commands.push(Command::AddService(spec));
        for address in of_family(key.family()) {
            if rng.chance(60) || address == REALS[0] || address == REALS[5] {
                let weight = 1 + rng.below(5) as i32;
                let real = real(
                    Endpoint::new(address, key.port()),
                    weight,
                    ForwardMethod::Masq,
                );
                let service = *key;
                commands.push(Command::AddReal { service, real });
            }
        }
    }
    commands
}

/// The next change.
pub fn command(rng: &mut Rng, now: &Snapshot) -> Command {
    let key = known_key(rng, now);
    match rng.below(100) {
        0..4 => {
            let key = pick(rng, &KEYS);
            Command::AddService(service(rng, key))
        }
        4..14 => Command::EditService(service(rng, key)),
        14..17 => Command::DeleteService(key),
        17..33 => add_real(rng, now, key),
        33..55 => edit_real(rng, now, key),
        55..72 => delete_real(rng, now, key),
        72..74 => Command::Zero(rng.chance(50).then_some(key)),
        74..80 => Command::SetTimeouts(timeouts(rng)),
        80..94 => tunable(rng),
        94..95 => Command::Flush,
        _ => Command::Batch((0..rng.below(4)).map(|_| command(rng, now)).collect()),
    }
}

/// The next question.
pub fn query(rng: &mut Rng, now: &Snapshot) -> Query {
    match rng.below(6) {
        0 => Query::Services(None),
        1 => Query::Services(Some(known_key(rng, now))),
        2 | 3 => Query::Connections,
        4 => Query::Timeouts,
        _ => Query::Account,
    }
}

/// A service that is there, mostly.
fn known_key(rng: &mut Rng, now: &Snapshot) -> ServiceKey {
    let there: Vec<ServiceKey> = now
        .services
        .iter()
        .map(|service| service.spec.key)
        .collect();
    if there.is_empty() || rng.chance(8) {
        pick(rng, &KEYS)
    } else {
        pick(rng, &there)
    }
}

fn service(rng: &mut Rng, key: ServiceKey) -> ServiceSpec {
    let scheduler = match rng.below(40) {
        0 => "none",
        1 => "nonsense",
        _ => pick(rng, &sched::NAMES),
    };
    let mut spec = ServiceSpec::new(key, scheduler);
    let flags = rng.next_u64() as u32;
    spec.flags = ServiceFlags(flags & (ServiceFlags::SCHED_1 | ServiceFlags::SCHED_2));
    if rng.chance(15) {
        spec.flags.0 |= ServiceFlags::ONE_PACKET;
    }
    if key.port() == SIP_PORT && rng.chance(70) {
        spec.engine = Some("sip".to_string());
    }
    if rng.chance(30) {
        spec.persistence = Some(persistence(rng));
        spec.netmask = match key.family() {
            Family::V4 => Netmask::V4(pick(rng, &[u32::MAX, u32::MAX, 0xffff_ff00, 0])),
            Family::V6 => Netmask::V6(pick(rng, &[128, 64])),
        };
    }
    spec
}

fn persistence(rng: &mut Rng) -> Persistence {
    let timeout_s = pick(rng, &[1, 5, 60, 300]);
    Persistence { timeout_s }
}

fn real(endpoint: Endpoint, weight: i32, method: ForwardMethod) -> RealSpec {
    RealSpec {
        key: RealKey(endpoint),
        weight: Weight(weight),
        method,
        thresholds: Thresholds::default(),
        tunnel: Tunnel::default(),
    }
}

fn of_family(family: Family) -> impl Iterator<Item = IpAddr> {
    REALS
        .into_iter()
        .filter(move |real| Family::of(*real) == family)
}

/// How a real server shall be.
fn any_real(rng: &mut Rng, endpoint: Endpoint) -> RealSpec {
    let method = match rng.below(40) {
        0..4 => ForwardMethod::Route,
        4 => ForwardMethod::Local,
        5 => ForwardMethod::Tunnel,
        _ => ForwardMethod::Masq,
    };
    let weight = pick(rng, &[0, 0, 1, 1, 1, 2, 3, 5, 100, -1]);
    let mut spec = real(endpoint, weight, method);
    if rng.chance(30) {
        spec.thresholds = Thresholds {
            upper: pick(rng, &[1, 1, 2, 3, 6]),
            lower: pick(rng, &[0, 0, 1, 2]),
        };
    }
    spec
}

fn add_real(rng: &mut Rng, now: &Snapshot, service: ServiceKey) -> Command {
    // Rarely an address of the wrong family, which is refused.
    let family = if rng.chance(3) {
        Family::V6
    } else {
        service.family()
    };
    let all: Vec<IpAddr> = of_family(family).collect();
    let missing = |address: &IpAddr| {
        let there = now
            .service(&service)
            .is_some_and(|service| has(service, *address));
        !there
    };
    let absent: Vec<IpAddr> = all.iter().copied().filter(missing).collect();
    let address = pick(rng, if absent.is_empty() { &all } else { &absent });
    let port = pick(
        rng,
        &[service.port(), service.port(), service.port(), 8080, 0],
    );
    let real = any_real(rng, Endpoint::new(address, port));
    Command::AddReal { service, real }
}

fn has(service: &Service, address: IpAddr) -> bool {
    service
        .reals
        .iter()
        .any(|real| real.key.0.address == address)
}

/// The name of a real server that is there, mostly.
fn known_real(rng: &mut Rng, now: &Snapshot, service: ServiceKey) -> Endpoint {
    let reals = now
        .service(&service)
        .map_or(&[][..], |service| &service.reals);
    if reals.is_empty() || rng.chance(4) {
        Endpoint::new(REALS[2], service.port())
    } else {
        reals[rng.below(reals.len() as u64) as usize].key.0
    }
}

fn edit_real(rng: &mut Rng, now: &Snapshot, service: ServiceKey) -> Command {
    let endpoint = known_real(rng, now, service);
    let real = any_real(rng, endpoint);
    Command::EditReal { service, real }
}

fn delete_real(rng: &mut Rng, now: &Snapshot, service: ServiceKey) -> Command {
    let real = RealKey(known_real(rng, now, service));
    Command::DeleteReal { service, real }
}

fn timeouts(rng: &mut Rng) -> Timeouts {
    let mut one = || pick(rng, &[0, 1, 3, 30, 120, 900, TIMEOUT_MAX_S]);
    Timeouts {
        tcp_s: one(),
        tcp_fin_s: one(),
        udp_s: one(),
    }
}

/// One tunable is set.
pub fn tunable(rng: &mut Rng) -> Command {
    let (name, values) = pick(rng, &TUNABLES);
    Command::SetTunable {
        name: name.to_string(),
        value: pick(rng, values).to_string(),
    }
}

/// A command in one line, for people: as ipvsadm would take it where it would.
pub fn line_of(command: &Command) -> String {
    let specified = |real: &RealSpec| {
        let limits = real.thresholds;
        let (key, method, weight) = (real.key, real.method.name(), real.weight.0);
        format!(
            "{key} {method} weight {weight} limits {}/{}",
            limits.upper, limits.lower
        )
    };
    let served = |spec: &ServiceSpec| {
        let persistent = spec.persistence.map(|persistence| persistence.timeout_s);
        let persistent = persistent.map_or(String::new(), |life| format!(" persistent {life} s"));
        let engine = spec.engine.as_ref();
        let engine = engine.map_or(String::new(), |name| format!(" engine {name}"));
        format!(
            "{} {}{persistent}{engine} flags {:#x}",
            spec.key, spec.scheduler, spec.flags.0
        )
    };
    match command {
        Command::AddService(spec) => format!("add service {}", served(spec)),
        Command::EditService(spec) => format!("edit service {}", served(spec)),
        Command::DeleteService(key) => format!("delete service {key}"),
        Command::Flush => "delete all services".to_string(),
        Command::AddReal { service, real } => format!("{service}: add {}", specified(real)),
        Command::EditReal { service, real } => format!("{service}: edit {}", specified(real)),
        Command::DeleteReal { service, real } => format!("{service}: delete {real}"),
        Command::Zero(None) => "zero all counters".to_string(),
        Command::Zero(Some(key)) => format!("zero the counters of {key}"),
        Command::SetTimeouts(Timeouts {
            tcp_s,
            tcp_fin_s,
            udp_s,
        }) => format!("set timeouts {tcp_s} {tcp_fin_s} {udp_s}"),
        Command::SetTunable { name, value } => format!("set {name} = {value}"),
        Command::SetMarks(rules) => format!("mark packets by {} rules", rules.len()),
        Command::SetFtpPorts(ports) => format!("a helper for FTP on ports {ports:?}"),
        Command::StartSync(daemon) => format!("start the synchronisation's {:?}", daemon.role),
        Command::StopSync(role) => format!("stop the synchronisation's {role:?}"),
        Command::SetPools {
            masquerading,
            full_nat,
        } => format!(
            "masquerade {} networks, full NAT from {} addresses",
            masquerading.prefixes.len(),
            full_nat.addresses.len()
        ),
        Command::Batch(all) => {
            let all: Vec<String> = all.iter().map(line_of).collect();
            format!("all or nothing: [{}]", all.join("; "))
        }
    }
}
