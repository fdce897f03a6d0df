//! The listings, byte for byte like ipvsadm's. Rows in, text out; nothing is asked here.

use std::net::IpAddr;

use crate::cli::order;
use crate::config::command::{ConnRow, MasqueradedRow, RealRow, ServiceRow};
use crate::config::ipvsadm::{Columns, List, What};
use crate::config::rules::{protocol_of, real_line, service_line};
use crate::config::words::{NumbersOnly, Resolver, cut, endpoint_text, flags_text, netmask_text};
use crate::lvs::{
    Endpoint, Family, ForwardMethod, Protocol, ServiceFlags, ServiceKey, ServiceSpec, SyncRole,
    SyncRow, Timeouts, Tunnel, TunnelChecksum,
};

/// What of an IPv4 name fits into a listing of services; IPv6 names are never cut.
const NAME_BYTES_MAX: usize = 28;

/// `ipvsadm -L`: title, services, servers.
pub fn services(table_size: u32, rows: &[ServiceRow], list: &List, names: &dyn Resolver) -> String {
    let names = if list.numeric { &NumbersOnly } else { names };
    let mut text = String::new();
    if list.what == What::Services(None) {
        text += &format!("IP Virtual Server version 1.2.1 (size={table_size})\n");
    }
    text += title(list.columns);
    for row in order::services(rows, list.sorted) {
        text += &service(row, list, names);
        for real in order::reals(&row.reals, list.sorted) {
            text += &server(&row.spec.key, real, list, names);
        }
    }
    text
}

/// `ipvsadm -S`: rules.
pub fn rules(rows: &[ServiceRow], numeric: bool, names: &dyn Resolver) -> String {
    let names = if numeric { &NumbersOnly } else { names };
    let mut text = String::new();
    for row in order::services(rows, true) {
        text += &service_line(&row.spec, names);
        text.push('\n');
        for real in order::reals(&row.reals, true) {
            text += &real_line(&row.spec.key, &real.spec, names);
            text.push('\n');
        }
    }
    text
}

/// `ipvsadm -L -c`. With `--persistent-conn` the title has the columns of persistence engines.
pub fn connections(rows: &[ConnRow], list: &List, names: &dyn Resolver) -> String {
    let names = if list.numeric { &NumbersOnly } else { names };
    let mut text = "IPVS connection entries\n\
                    pro expire state       source             virtual            destination"
        .to_string();
    if list.columns == Columns::Persistent {
        text += "        pe name          pe_data";
    }
    text.push('\n');
    for row in rows {
        let name = |end: Endpoint| endpoint_text(end.address, end.port, row.protocol, names);
        let engine = match (&row.engine, list.columns) {
            (Some(engine), Columns::Persistent) => Some(engine),
            _ => None,
        };
        let real = match (engine, row.local) {
            (Some((engine, data)), _) => format!("{:<16} {engine:<18} {data}", name(row.real)),
            (None, Some(local)) => format!("{:<18} from {}", name(row.real), name(local)),
            (None, None) => name(row.real),
        };
        text += &format!(
            "{:<3} {:02}:{:02}  {:<11} {:<18} {:<18} {real}\n",
            row.protocol.to_string(),
            row.expires_s / 60,
            row.expires_s % 60,
            row.state,
            name(row.client),
            name(row.virt),
        );
    }
    text
}

/// `ulvs adm -L --masqueraded`: the host, its public end, the far end. An identifier of echoes stands
/// where others have a port.
pub fn masqueraded(rows: &[MasqueradedRow], list: &List, names: &dyn Resolver) -> String {
    let names = if list.numeric { &NumbersOnly } else { names };
    let mut text = "Masqueraded connections\n\
                    pro    expire state       host                  public                target\n"
        .to_string();
    for row in rows {
        let name = |end: Endpoint| endpoint_text(end.address, end.port, row.protocol, names);
        text += &format!(
            "{:<6} {:02}:{:02}  {:<11} {:<21} {:<21} {}\n",
            row.protocol.to_string(),
            row.expires_s / 60,
            row.expires_s % 60,
            row.state,
            name(row.host),
            name(row.public),
            name(row.target),
        );
    }
    text
}

/// `ipvsadm -L --timeout`
pub fn timeouts(timeouts: &Timeouts) -> String {
    let Timeouts {
        tcp_s,
        tcp_fin_s,
        udp_s,
    } = timeouts;
    format!("Timeout (tcp tcpfin udp): {tcp_s} {tcp_fin_s} {udp_s}\n")
}

/// `ipvsadm -L --daemon`
pub fn sync_daemons(rows: &[SyncRow]) -> String {
    let line = |row: &SyncRow| {
        let role = match row.role {
            SyncRole::Master => "master",
            SyncRole::Backup => "backup",
        };
        let SyncRow {
            interface,
            sync_id,
            maxlen,
            group,
            port,
            ttl,
            ..
        } = row;
        format!(
            "{role} sync daemon (mcast={interface}, syncid={sync_id}, maxlen={maxlen}, \
             group={group}, port={port}, ttl={ttl})\n"
        )
    };
    rows.iter().map(line).collect()
}

fn title(columns: Columns) -> &'static str {
    match columns {
        Columns::Plain => {
            "Prot LocalAddress:Port Scheduler Flags\n  \
             -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        }
        Columns::Tunnel => {
            "Prot LocalAddress:Port Scheduler Flags\n  \
             -> RemoteAddress:Port           Forward TunnelInfo    Weight ActiveConn InActConn\n"
        }
        Columns::Stats => {
            "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n  \
             -> RemoteAddress:Port\n"
        }
        Columns::Rate => {
            "Prot LocalAddress:Port                 CPS    InPPS   OutPPS    InBPS   OutBPS\n  \
             -> RemoteAddress:Port\n"
        }
        Columns::Thresholds => {
            "Prot LocalAddress:Port            Uthreshold Lthreshold ActiveConn InActConn \n  \
             -> RemoteAddress:Port\n"
        }
        Columns::Persistent => {
            "Prot LocalAddress:Port            Weight    PersistConn ActiveConn InActConn \n  \
             -> RemoteAddress:Port\n"
        }
    }
}

fn service(row: &ServiceRow, list: &List, names: &dyn Resolver) -> String {
    let name = service_name(&row.spec.key, names);
    match list.columns {
        Columns::Stats => format!("{name:<33}{}\n", numbers(row.stats.counters, list.exact)),
        Columns::Rate => format!("{name:<33}{}\n", numbers(row.stats.rates, list.exact)),
        _ => format!("{name} {}\n", scheduling(&row.spec)),
    }
}

/// `TCP  1.2.3.1:80`, `FWM  5 IPv6`; ipvsadm prints a mark as a signed number.
fn service_name(key: &ServiceKey, names: &dyn Resolver) -> String {
    match *key {
        ServiceKey::Address { protocol, virt } => {
            let kind = protocol.to_string();
            format!("{kind:<4} {}", name(virt, protocol, names))
        }
        ServiceKey::Mark { mark, family } => {
            let family = match family {
                Family::V4 => "",
                Family::V6 => " IPv6",
            };
            format!("FWM  {}{family}", mark.cast_signed())
        }
    }
}

/// Scheduler, flags, persistence: `sh (sh-port) persistent 360 mask 255.255.255.0 pe sip ops`.
fn scheduling(spec: &ServiceSpec) -> String {
    let mut text = spec.scheduler.clone();
    if let Some(flags) = flags_text(spec.flags, &spec.scheduler) {
        text += &format!(" ({flags})");
    }
    if let Some(persistence) = spec.persistence {
        text += &format!(" persistent {}", persistence.timeout_s);
        if let Some(mask) = netmask_text(spec.netmask) {
            text += &format!(" mask {mask}");
        }
        if let Some(engine) = &spec.engine {
            text += &format!(" pe {engine}");
        }
    }
    if spec.flags.has(ServiceFlags::ONE_PACKET) {
        text += " ops";
    }
    text
}

fn server(service: &ServiceKey, row: &RealRow, list: &List, names: &dyn Resolver) -> String {
    let spec = &row.spec;
    let name = name(spec.key.0, protocol_of(service), names);
    let method = spec.method.name();
    let weight = spec.weight.0;
    let RealRow {
        active, inactive, ..
    } = row;
    let columns = match list.columns {
        Columns::Stats => numbers(row.stats.counters, list.exact),
        Columns::Rate => rates_of_server(row.stats.rates, list.exact),
        Columns::Plain => format!(" {method:<7} {weight:<6} {active:<10} {inactive:<10}"),
        Columns::Tunnel => {
            let tunnel = tunnel_text(row);
            format!(" {method:<7} {tunnel:<13} {weight:<6} {active:<10} {inactive:<10}")
        }
        Columns::Thresholds => {
            let (upper, lower) = (spec.thresholds.upper, spec.thresholds.lower);
            format!(" {upper:<10} {lower:<10} {active:<10} {inactive:<10}")
        }
        Columns::Persistent => {
            let persistent = row.persistent;
            format!(" {weight:<9} {persistent:<11} {active:<10} {inactive:<10}")
        }
    };
    format!("  -> {name:<28}{columns}\n")
}

fn name(endpoint: Endpoint, protocol: Protocol, names: &dyn Resolver) -> String {
    let text = endpoint_text(endpoint.address, endpoint.port, protocol, names);
    match endpoint.address {
        IpAddr::V4(_) => cut(&text, NAME_BYTES_MAX).to_string(),
        IpAddr::V6(_) => text,
    }
}

fn tunnel_text(row: &RealRow) -> String {
    let checksum = |checksum| match checksum {
        TunnelChecksum::No => "-c",
        TunnelChecksum::Full => "+c",
        TunnelChecksum::Remote => "r+c",
    };
    match (row.spec.method, row.spec.tunnel) {
        (ForwardMethod::Tunnel, Tunnel::Ipip) => "ipip".to_string(),
        (ForwardMethod::Tunnel, Tunnel::Gue { port, checksum: c }) => {
            format!("gue:{port}:{}", checksum(c))
        }
        (ForwardMethod::Tunnel, Tunnel::Gre { checksum: c }) => format!("gre:{}", checksum(c)),
        _ => "n/a".to_string(),
    }
}

fn numbers(values: [u64; 5], exact: bool) -> String {
    values.map(|value| number(value, exact)).concat()
}

/// Of a server's rates ipvsadm abbreviates only the bytes.
fn rates_of_server(values: [u64; 5], exact: bool) -> String {
    let [conns, packets_in, packets_out, bytes_in, bytes_out] = values;
    let whole = [conns, packets_in, packets_out].map(|value| number(value, true));
    let bytes = [bytes_in, bytes_out].map(|value| number(value, exact));
    whole.concat() + &bytes.concat()
}

/// A blank and eight columns; beyond that, unless it shall be exact, cut to thousands, millions …
fn number(value: u64, exact: bool) -> String {
    const K: u64 = 1000;
    let (value, unit) = match value {
        _ if exact => (value, ""),
        _ if value < 100_000_000 => (value, ""),
        _ if value < 1_000_000_000 => (value / K, "K"),
        _ if value < 100_000_000_000 => (value / (K * K), "M"),
        _ if value < 100_000_000_000_000 => (value / (K * K * K), "G"),
        _ => (value / (K * K * K * K), "T"),
    };
    let width = 8 - unit.len();
    format!(" {value:>width$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command::Listing;

    // Recorded from ipvsadm 1.31 with counters put into the kernel's answer.
    #[test]
    fn numbers_are_cut_as_ipvsadm_cuts_them() {
        let small = [
            2_962_962,
            23_703_696,
            20_740_734,
            2_370_369_600,
            118_518_480_000,
        ];
        assert_eq!(
            numbers(small, false),
            "  2962962 23703696 20740734    2370M     118G"
        );
        let exact = "  2962962 23703696 20740734 2370369600 118518480000";
        assert_eq!(numbers(small, true), exact);
        let server = [987_654, 7_901_232, 6_913_578, 790_123_200, 39_506_160_000];
        assert_eq!(
            numbers(server, false),
            "   987654  7901232  6913578  790123K   39506M"
        );
        assert_eq!(number(99_999_999, false), " 99999999");
        assert_eq!(number(100_000_000, false), "  100000K");
        assert_eq!(number(u64::MAX, false), " 18446744T");
    }

    #[test]
    fn a_masqueraded_connection_is_listed_by_its_three_ends() {
        let end = |last, port| Endpoint::new(IpAddr::from([192, 168, 1, last]), port);
        let row = MasqueradedRow {
            protocol: Protocol::UDP,
            host: end(11, 5000),
            public: end(1, 6000),
            target: end(53, 53),
            state: "UDP".to_string(),
            expires_s: 299,
        };
        let list = List {
            what: What::Masqueraded,
            numeric: true,
            exact: false,
            sorted: true,
            columns: Columns::Plain,
        };
        let text = masqueraded(std::slice::from_ref(&row), &list, &NumbersOnly);
        let line = "UDP    04:59  UDP         192.168.1.11:5000     192.168.1.1:6000      \
                    192.168.1.53:53";
        assert_eq!(text.lines().nth(2), Some(line));
        let document = serde_json::to_value(Listing::Masqueraded(vec![row])).expect("a document");
        let row = &document["masqueraded"][0];
        assert_eq!(
            [&row["host"], &row["public"], &row["target"]],
            ["192.168.1.11:5000", "192.168.1.1:6000", "192.168.1.53:53"]
        );
        assert_eq!(
            (&row["state"], &row["expires_s"]),
            (&"UDP".into(), &299.into())
        );
    }

    #[test]
    fn packets_per_second_of_a_server_are_never_cut() {
        let rates = [1, 200_000_000, 3, 4, 200_000_000];
        assert_eq!(
            rates_of_server(rates, false),
            "        1 200000000        3        4  200000K"
        );
    }
}
