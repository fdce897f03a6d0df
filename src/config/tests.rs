//! ulvs.toml read into a Config.

use super::command::{Command, RealSpec};
use super::file::{Cidr, Config, KeepKernelOff, NicKind, RouteSpec, Side, parse};
use crate::lvs::{
    Endpoint, Family, ForwardMethod, Netmask, Persistence, Protocol, RealKey, ServiceFlags,
    ServiceKey, Thresholds, Timeouts, Tunnel, Weight,
};

const NAT: &str = include_str!("../../tests/config/good/nat.toml");
const EVERYTHING: &str = include_str!("../../tests/config/good/everything.toml");
const SCHEDULERS: [&str; 3] = ["rr", "wlc", "sh"];

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

fn config(text: &str) -> Config {
    parse("ulvs.toml", text, &SCHEDULERS).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn what_is_left_out_has_its_default() {
    let config = config(NAT);
    assert_eq!(config.director.nic, NicKind::Packet);
    assert_eq!(config.director.workers, 1);
    assert_eq!(config.director.keep_kernel_off, KeepKernelOff::Auto);
    assert!(config.director.pin);
    assert_eq!(config.director.local_node, None);
    assert_eq!(config.timeouts, Timeouts::default());
    let vip = ServiceKey::tcp(ip("1.2.3.1"), 80);
    let weights: Vec<i32> = config.services[1..]
        .iter()
        .map(|command| match command {
            Command::AddReal { service, real } if *service == vip => real.weight.0,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(weights, [2, 1, 1]);
    let Command::AddService(spec) = &config.services[0] else {
        panic!("the service comes first");
    };
    assert_eq!((spec.key, spec.scheduler.as_str()), (vip, "wlc"));
    assert_eq!(spec.netmask, Netmask::V4(u32::MAX));
}

#[test]
fn every_key_arrives() {
    let config = config(EVERYTHING);
    assert_eq!(config.director.nic, NicKind::Mmsg);
    assert_eq!(config.director.workers, 2);
    assert_eq!(
        config.director.control.as_deref(),
        Some("/run/ulvs/test.sock")
    );
    assert_eq!(config.director.keep_kernel_off, KeepKernelOff::Nft);
    assert_eq!(config.director.tun, "ulvs1");
    assert!(!config.director.pin);
    assert_eq!(config.director.local_node, Some(false));
    let port = &config.ports[0];
    assert_eq!((port.interface.as_str(), port.side), ("eth0", Side::Public));
    let cidr = |address, prefix| Cidr {
        address: ip(address),
        prefix,
    };
    assert_eq!(
        port.addresses,
        [cidr("10.0.0.1", 24), cidr("fd00:c::1", 64)]
    );
    let default = RouteSpec {
        to: cidr("0.0.0.0", 0),
        via: Some(ip("10.0.0.254")),
        from: None,
    };
    assert_eq!(port.routes[0], default);
    assert_eq!(port.routes[2].via, None);
    let mac = [2, 0, 0, 0, 0x0c, 0xfe];
    assert_eq!(port.neighbours, [(ip("10.0.0.254"), mac)]);
    assert_eq!(config.ports[1].interface, "eth1.100");
    assert_eq!(config.tunables.conn_reuse_mode, 2);
    assert_eq!(
        (
            config.tunables.expire_nodest_conn,
            config.tunables.sloppy_tcp
        ),
        (1, 1)
    );
    assert_eq!(config.limits.conn_entries_max, 1_000_000);
    assert_eq!(config.limits.neigh_held_frames_max, 1);
}

#[test]
fn services_become_commands() {
    let config = config(EVERYTHING);
    let Command::AddService(web) = &config.services[0] else {
        panic!("a service first");
    };
    let both = ServiceFlags::SCHED_1 | ServiceFlags::SCHED_2;
    assert_eq!(web.flags, ServiceFlags(both));
    assert_eq!(web.persistence, Some(Persistence { timeout_s: 360 }));
    assert_eq!(web.netmask, Netmask::V4(0xffff_ff00));
    let expected = RealSpec {
        key: RealKey(Endpoint::new(ip("192.168.1.1"), 8080)),
        weight: Weight(0),
        method: ForwardMethod::Masq,
        thresholds: Thresholds {
            upper: 100,
            lower: 80,
        },
        tunnel: Tunnel::Ipip,
    };
    let Command::AddReal { real, .. } = &config.services[1] else {
        panic!("then its servers");
    };
    assert_eq!(*real, expected);
    let keys: Vec<ServiceKey> = config
        .services
        .iter()
        .filter_map(|command| match command {
            Command::AddService(spec) => Some(spec.key),
            _ => None,
        })
        .collect();
    let mark = |mark, family| ServiceKey::Mark { mark, family };
    let sctp = ServiceKey::Address {
        protocol: Protocol::SCTP,
        virt: Endpoint::new(ip("fd00:c::100"), 2905),
    };
    let expected = [
        ServiceKey::tcp(ip("1.2.3.1"), 80),
        ServiceKey::udp(ip("1.2.3.1"), 0),
        sctp,
        mark(u32::MAX, Family::V6),
        mark(5, Family::V4),
    ];
    assert_eq!(keys, expected);
}

#[test]
fn all_errors_are_shown_at_once() {
    let text = "[directr]\n[[port]]\nside = \"out\"\n[[service]]\ntcp = 80\n[limits]\nx = 1\n";
    let problems = parse("ulvs.toml", text, &SCHEDULERS).unwrap_err();
    let lines: Vec<usize> = problems
        .list()
        .iter()
        .map(|problem| problems.line_and_column(problem.span.start).0)
        .collect();
    assert_eq!(lines, [1, 2, 3, 5, 7], "{problems}");
    assert!(
        problems.to_string().contains("did you mean `director`?"),
        "{problems}"
    );
}

#[test]
fn the_least_config_has_two_ports() {
    let config = Config::minimal("eth0", "eth1", vec![Command::Flush]);
    assert_eq!(config.ports[0].side, Side::Public);
    assert_eq!(config.ports[1].interface, "eth1");
    assert_eq!(config.services, [Command::Flush]);
}
