//! One example of every command, as values: what they are in JSON is said by the types alone.

use std::net::IpAddr;

use crate::config::{Command, RealSpec};
use crate::lvs::{
    Endpoint, ForwardMethod, MarkRule, Masquerading, Persistence, Protocol, RealKey, ServiceKey,
    ServiceSpec, SourcePool, SyncDaemon, SyncRole, Thresholds, Timeouts, Tunnel, TunnelChecksum,
    Weight,
};

/// The virtual service of the examples.
pub(super) const SERVICE: ServiceKey = ServiceKey::tcp(v4([1, 2, 3, 1]), 80);

const fn v4([a, b, c, d]: [u8; 4]) -> IpAddr {
    IpAddr::V4(std::net::Ipv4Addr::new(a, b, c, d))
}

/// One of every command, in an order in which an empty director does them all.
pub(super) fn commands() -> Vec<Command> {
    let service = SERVICE;
    let first = real([192, 168, 1, 1], ForwardMethod::Masq);
    let mut tunnelled = real([10, 3, 0, 2], ForwardMethod::Tunnel);
    tunnelled.tunnel = Tunnel::Gue {
        port: 6080,
        checksum: TunnelChecksum::Full,
    };
    let edited = RealSpec {
        weight: Weight(3),
        thresholds: Thresholds {
            upper: 100,
            lower: 80,
        },
        ..first
    };
    vec![
        Command::Flush,
        Command::AddService(ServiceSpec::new(service, "wlc")),
        Command::EditService(ServiceSpec {
            persistence: Some(Persistence { timeout_s: 360 }),
            ..ServiceSpec::new(service, "wrr")
        }),
        Command::AddReal {
            service,
            real: first,
        },
        Command::EditReal {
            service,
            real: edited,
        },
        Command::DeleteReal {
            service,
            real: first.key,
        },
        Command::Zero(Some(service)),
        Command::DeleteService(service),
        Command::SetTimeouts(Timeouts {
            tcp_s: 900,
            tcp_fin_s: 120,
            udp_s: 300,
        }),
        Command::SetTunable {
            name: "conn_reuse_mode".to_string(),
            value: "1".to_string(),
        },
        Command::SetMarks(vec![marks()]),
        Command::SetFtpPorts(vec![21]),
        pools(),
        Command::StartSync(SyncDaemon {
            role: SyncRole::Master,
            interface: Some("eth1".to_string()),
            sync_id: 7,
            maxlen: None,
            group: None,
            port: None,
            ttl: None,
        }),
        Command::StopSync(SyncRole::Master),
        Command::Batch(vec![
            Command::AddService(ServiceSpec::new(service, "sh")),
            Command::AddReal {
                service,
                real: tunnelled,
            },
        ]),
    ]
}

fn real(address: [u8; 4], method: ForwardMethod) -> RealSpec {
    RealSpec {
        key: RealKey(Endpoint::new(v4(address), 80)),
        weight: Weight(1),
        method,
        thresholds: Thresholds::default(),
        tunnel: Tunnel::default(),
    }
}

fn marks() -> MarkRule {
    MarkRule {
        mark: 1,
        protocol: Some(Protocol::TCP),
        sources: vec![(v4([10, 0, 0, 0]), 8)],
        targets: vec![(v4([1, 2, 3, 1]), 32)],
        target_ports: vec![(80, 80), (443, 443)],
        interface: None,
    }
}

fn pools() -> Command {
    let pool = |address| SourcePool {
        addresses: vec![v4(address)],
        ..SourcePool::default()
    };
    Command::SetPools {
        masquerading: Masquerading {
            prefixes: vec![(v4([192, 168, 1, 0]), 24)],
            pool: pool([1, 2, 3, 7]),
        },
        full_nat: pool([192, 168, 1, 250]),
    }
}

/// A configuration as lines of ipvsadm-save.
pub(super) const RULES: &str = "-A -t 1.2.3.1:80 -s wlc\n\
    -a -t 1.2.3.1:80 -r 192.168.1.1:80 -m -w 2\n\
    -a -t 1.2.3.1:80 -r 192.168.1.2:80 -m -w 1\n";

/// The same as ulvs.toml.
pub(super) const TOML: &str = "[[port]]\ninterface = \"eth0\"\nside = \"public\"\n\n\
    [[service]]\ntcp = \"1.2.3.1:80\"\n\n\
    [[service.real]]\naddress = \"192.168.1.1:80\"\nmethod = \"masq\"\nweight = 2\n";
