//! The texts of `/proc/net/ip_vs*`, which scripts still read, byte for byte like the kernel's
//! (`ip_vs_ctl.c`, `ip_vs_conn.c`, `ip_vs_app.c`). Rows in, text out; whoever wants one asks the
//! director what the file asks.

use std::net::IpAddr;

use super::command::{ConnRow, RealRow, ServiceRow, StatsRow};
use super::{Listing, Query};
use crate::lvs::{Endpoint, Family, Netmask, ServiceFlags, ServiceKey, ServiceSpec};

/// Where the kernel shows them.
const FOLDER: &str = "/proc/net/";
/// The files there are.
pub const FILES: [&str; 6] = [
    "ip_vs",
    "ip_vs_conn",
    "ip_vs_conn_sync",
    "ip_vs_stats",
    "ip_vs_stats_percpu",
    "ip_vs_app",
];
/// Ticks of a second in which `ip_vs` shows the timeout of persistence. In the kernel it is CONFIG_HZ,
/// which differs from machine to machine; this is the recorded one's, and what USER_HZ always is.
const TICKS_PER_SECOND: u64 = 100;

/// What has to be asked for the text of this file; its name may be the whole path.
///
/// # Errors
/// A sentence: there is no such file.
pub fn question(file: &str) -> Result<Query, String> {
    Ok(match name(file) {
        "ip_vs" => Query::Services(None),
        "ip_vs_conn" | "ip_vs_conn_sync" => Query::Connections,
        "ip_vs_stats" | "ip_vs_stats_percpu" => Query::Totals,
        // What it tells does not depend on the answer, but that there is a director does.
        "ip_vs_app" => Query::Status,
        _ => return Err(format!("no file {file:?}; there are {}", FILES.join(", "))),
    })
}

/// The text of this file, of the answer to its question; `None` if that is another one's.
pub fn text(file: &str, answer: &Listing) -> Option<String> {
    Some(match (name(file), answer) {
        (
            "ip_vs",
            Listing::Services {
                table_size,
                services: rows,
            },
        ) => services(*table_size, rows),
        ("ip_vs_conn", Listing::Connections(rows)) => connections(rows),
        ("ip_vs_conn_sync", Listing::Connections(rows)) => connections_sync(rows),
        ("ip_vs_stats", Listing::Totals { total, .. }) => stats(total),
        ("ip_vs_stats_percpu", Listing::Totals { total, workers }) => stats_percpu(total, workers),
        ("ip_vs_app", Listing::Status(_)) => helpers(),
        _ => return None,
    })
}

fn name(file: &str) -> &str {
    file.strip_prefix(FOLDER).unwrap_or(file)
}

/// `ip_vs`: services by address first, then by mark, each with its servers.
pub fn services(table_size: u32, rows: &[ServiceRow]) -> String {
    let mut text = format!(
        "IP Virtual Server version 1.2.1 (size={table_size})\n\
         Prot LocalAddress:Port Scheduler Flags\n  \
         -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n"
    );
    let (marks, addresses): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row.spec.key.is_mark());
    for row in addresses.into_iter().chain(marks) {
        text += &service(&row.spec);
        for real in &row.reals {
            text += &server(real);
        }
    }
    text
}

fn service(spec: &ServiceSpec) -> String {
    let ops = spec.flags.has(ServiceFlags::ONE_PACKET);
    let ops = if ops { "ops " } else { "" };
    let scheduler = &spec.scheduler;
    let mut line = match spec.key {
        ServiceKey::Mark { mark, .. } => format!("FWM  {mark:08X} {scheduler} {ops}"),
        ServiceKey::Address { protocol, virt } => match virt.address {
            IpAddr::V4(_) => format!("{protocol}  {} {scheduler} {ops} ", end(virt, ":")),
            // The kernel leaves the flag out here.
            IpAddr::V6(_) => {
                let address = address(virt.address);
                format!("{protocol}  [{address}]:{:04X} {scheduler} ", virt.port)
            }
        },
    };
    if let Some(persistence) = spec.persistence {
        let ticks = u64::from(persistence.timeout_s) * TICKS_PER_SECOND;
        line += &format!("persistent {ticks} {:08X}", mask(spec.netmask));
    }
    line + "\n"
}

/// A prefix length of IPv6 is printed with its bytes turned round.
fn mask(netmask: Netmask) -> u32 {
    match netmask {
        Netmask::V4(mask) => mask,
        Netmask::V6(len) => u32::from(len).swap_bytes(),
    }
}

fn server(row: &RealRow) -> String {
    let RealRow {
        spec,
        active,
        inactive,
        ..
    } = row;
    let Endpoint { address: ip, port } = spec.key.0;
    let name = match Family::of(ip) {
        Family::V4 => format!("{}:{port:04X}", address(ip)),
        Family::V6 => format!("[{}]:{port:04X}", address(ip)),
    };
    let (method, weight) = (spec.method.name(), spec.weight.0);
    format!("  -> {name}      {method:<7} {weight:<6} {active:<10} {inactive:<10}\n")
}

/// `ip_vs_conn`.
pub fn connections(rows: &[ConnRow]) -> String {
    let mut text = "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt \
                    State       Expires PEName PEData\n"
        .to_string();
    for row in rows {
        let engine = row.engine.as_ref();
        let engine = engine.map_or(String::new(), |(name, data)| format!(" {name} {data}"));
        let (ends, state, expires_s) = (ends(row), &row.state, row.expires_s);
        text += &format!("{ends} {state:<11} {expires_s:>7}{engine}\n");
    }
    text
}

/// `ip_vs_conn_sync`: no entry comes from another director yet.
pub fn connections_sync(rows: &[ConnRow]) -> String {
    let mut text =
        "Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Origin Expires\n".to_string();
    for row in rows {
        let (ends, state, expires_s) = (ends(row), &row.state, row.expires_s);
        text += &format!("{ends} {state:<11} LOCAL  {expires_s:>7}\n");
    }
    text
}

fn ends(row: &ConnRow) -> String {
    let protocol = row.protocol.to_string();
    let [client, virt, real] = [row.client, row.virt, row.real].map(|at| end(at, " "));
    format!("{protocol:<3} {client} {virt} {real}")
}

fn end(end: Endpoint, between: &str) -> String {
    format!("{}{between}{:04X}", address(end.address), end.port)
}

/// Eight hex digits, or eight groups of four.
fn address(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => format!("{:08X}", u32::from(address)),
        IpAddr::V6(address) => {
            let groups = address.segments().map(|group| format!("{group:04x}"));
            groups.join(":")
        }
    }
}

/// `ip_vs_stats`: counters and rates over everything, hexadecimal.
pub fn stats(total: &StatsRow) -> String {
    format!(
        "   Total Incoming Outgoing         Incoming         Outgoing\n   \
         Conns  Packets  Packets            Bytes            Bytes\n\
         {}\n\n \
         Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n\
         {}\n",
        numbers(total.counters),
        numbers(total.rates)
    )
}

/// `ip_vs_stats_percpu`: the same, and of each worker, which stands for a processor.
pub fn stats_percpu(total: &StatsRow, workers: &[[u64; 5]]) -> String {
    let lines = workers.iter().enumerate();
    let lines: String = lines
        .map(|(number, counters)| format!("{number:3X} {}\n", numbers(*counters)))
        .collect();
    format!(
        "       Total Incoming Outgoing         Incoming         Outgoing\n\
         CPU    Conns  Packets  Packets            Bytes            Bytes\n\
         {lines}  ~ {}\n\n     \
         Conns/s   Pkts/s   Pkts/s          Bytes/s          Bytes/s\n    {}\n",
        numbers(total.counters),
        numbers(total.rates)
    )
}

fn numbers([conns, packets_in, packets_out, bytes_in, bytes_out]: [u64; 5]) -> String {
    format!("{conns:8X} {packets_in:8X} {packets_out:8X} {bytes_in:16X} {bytes_out:16X}")
}

/// `ip_vs_app`: there are no helpers of applications yet.
fn helpers() -> String {
    "prot port    usecnt name\n".to_string()
}
