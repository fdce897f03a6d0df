//! Names of hosts and services as this machine knows them: `/etc/services`, `/etc/hosts`, and for
//! addresses of names the system's resolver.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};

use crate::config::words::Resolver;
use crate::lvs::Protocol;

/// The machine's names, read once.
#[derive(Debug, Default)]
pub struct SystemNames {
    ports: HashMap<(String, Protocol), u16>,
    services: HashMap<(u16, Protocol), String>,
    hosts: HashMap<IpAddr, String>,
}

impl SystemNames {
    /// Reads the files; one that is not there has no names.
    pub fn load() -> SystemNames {
        let read = |path: &str| {
            let bytes = fs::read(path).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        SystemNames::parse(&read("/etc/services"), &read("/etc/hosts"))
    }

    fn parse(services: &str, hosts: &str) -> SystemNames {
        let mut names = SystemNames::default();
        services.lines().for_each(|line| names.add_service(line));
        hosts.lines().for_each(|line| names.add_host(line));
        names
    }

    /// `http 80/tcp www # comment`: the first line wins, as in getservbyname(3).
    fn add_service(&mut self, line: &str) {
        let mut words = words_of(line);
        let Some((name, port)) = words.next().zip(words.next()) else {
            return;
        };
        let Some((port, protocol)) = port.split_once('/') else {
            return;
        };
        let protocol = match protocol {
            "tcp" => Protocol::TCP,
            "udp" => Protocol::UDP,
            "sctp" => Protocol::SCTP,
            _ => return,
        };
        let Ok(port) = port.parse::<u16>() else {
            return;
        };
        for alias in std::iter::once(name).chain(words) {
            let key = (alias.to_string(), protocol);
            self.ports.entry(key).or_insert(port);
        }
        let key = (port, protocol);
        self.services.entry(key).or_insert_with(|| name.to_string());
    }

    /// `127.0.0.1 localhost alias`
    fn add_host(&mut self, line: &str) {
        let mut words = words_of(line);
        let Some((address, name)) = words.next().zip(words.next()) else {
            return;
        };
        if let Ok(address) = address.parse::<IpAddr>() {
            let name = name.to_string();
            self.hosts.entry(address).or_insert(name);
        }
    }
}

fn words_of(line: &str) -> impl Iterator<Item = &str> {
    let text = line.split('#').next().unwrap_or("");
    text.split_ascii_whitespace()
}

impl Resolver for SystemNames {
    fn address_of(&self, host: &str) -> Option<Ipv4Addr> {
        let mut found = (host, 0).to_socket_addrs().ok()?;
        found.find_map(|address| match address {
            SocketAddr::V4(v4) => Some(*v4.ip()),
            SocketAddr::V6(_) => None,
        })
    }

    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        self.ports.get(&(service.to_string(), protocol)).copied()
    }

    fn host_of(&self, address: IpAddr) -> Option<String> {
        self.hosts.get(&address).cloned()
    }

    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
        self.services.get(&(port, protocol)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_read_as_the_system_reads_them() {
        let services = "# x\nhttp\t80/tcp\twww # web\ntftp 69/udp\nbad\nx y/tcp\nz 80/tcp\n";
        let hosts =
            "127.0.0.1\tlocalhost me\n::1 ip6-localhost\n127.0.0.1 other\nfoo bar\n1.2.3.4\n";
        let names = SystemNames::parse(services, hosts);
        assert_eq!(names.port_of("www", Protocol::TCP), Some(80));
        assert_eq!(names.port_of("http", Protocol::UDP), None);
        assert_eq!(names.port_of("HTTP", Protocol::TCP), None);
        assert_eq!(names.service_of(80, Protocol::TCP).as_deref(), Some("http"));
        assert_eq!(names.service_of(69, Protocol::TCP), None);
        let name = |text: &str| names.host_of(text.parse().unwrap());
        assert_eq!(name("127.0.0.1").as_deref(), Some("localhost"));
        assert_eq!(name("::1").as_deref(), Some("ip6-localhost"));
        assert_eq!(name("1.2.3.4"), None);
    }
}
