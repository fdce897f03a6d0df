//! The names of hosts and services on the machine where ipvsadm's answers were recorded.

use std::net::{IpAddr, Ipv4Addr};

use ulvs::config::words::Resolver;
use ulvs::lvs::Protocol;

/// The names that the recordings use.
pub struct Recorded;

const SERVICES: [(&str, u16, Protocol); 12] = [
    ("http", 80, Protocol::TCP),
    ("https", 443, Protocol::TCP),
    ("domain", 53, Protocol::TCP),
    ("domain", 53, Protocol::UDP),
    ("kerberos", 88, Protocol::TCP),
    ("mdns", 5353, Protocol::UDP),
    ("ftp", 21, Protocol::TCP),
    ("ftp-data", 20, Protocol::TCP),
    ("sip", 5060, Protocol::UDP),
    ("https", 443, Protocol::UDP),
    ("gnutella-svc", 6346, Protocol::TCP),
    ("http-alt", 8080, Protocol::TCP),
];

impl Resolver for Recorded {
    fn address_of(&self, host: &str) -> Option<Ipv4Addr> {
        (host == "localhost").then_some(Ipv4Addr::LOCALHOST)
    }
    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        let row = SERVICES
            .iter()
            .find(|row| (row.0, row.2) == (service, protocol));
        row.map(|row| row.1)
    }
    fn host_of(&self, address: IpAddr) -> Option<String> {
        (address == IpAddr::V4(Ipv4Addr::LOCALHOST)).then(|| "localhost".to_string())
    }
    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
        let row = SERVICES
            .iter()
            .find(|row| (row.1, row.2) == (port, protocol));
        row.map(|row| row.0.to_string())
    }
}
