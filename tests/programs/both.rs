//! A director without services in a network of both families, with web servers that can be ended and
//! started again, and clients that stay. The director's kernel has addresses of its own on the real
//! servers' wire: from there health checks are made, as on any director.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;

use crate::site::{Inside, Site, ulvs, until};

/// What the director's host has, and what ulvs has there.
const PORTS: &str = r#"
[[port]]
interface = "eth0"
side = "public"
addresses = ["1.2.3.2/24", "fd00:c::2/64"]

[[port]]
interface = "eth1"
side = "private"
addresses = ["192.168.1.254/24", "fd00:5::254/64"]
"#;

/// The VIP of either family.
pub const VIPS: [&str; 2] = ["1.2.3.1", "[fd00:c::1]"];
/// Where real servers listen.
pub const PORT: u16 = 8080;

/// The network, and who runs in it.
pub struct Both {
    /// Who was started; they end before the network does.
    running: BTreeMap<String, Inside>,
    /// The network.
    pub site: Site,
}

impl Both {
    /// Everybody is there, the servers too.
    pub fn new() -> Option<Both> {
        // Whoever routes by the kernel gets addresses of both families, and then routes by ulvs.
        let site = Site::new(&["route", "--requests", "1"])?;
        for host in ["client", "director", "rs1", "rs2", "rs3"] {
            for (what, value) in [("accept_dad", 0), ("disable_ipv6", 0)] {
                let conf = "/proc/sys/net/ipv6/conf";
                let script = format!(
                    "for at in all default lo eth0; do echo {value} > {conf}/$at/{what}; done"
                );
                site.fine(host, &["sh", "-c", &script]);
            }
        }
        let ip = |host: &str, words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            site.fine(host, &[&["ip"], words.as_slice()].concat());
        };
        ip("client", "address add fd00:c::100/64 dev eth0 nodad");
        for number in 1..=3 {
            let host = format!("rs{number}");
            ip(
                &host,
                &format!("address add fd00:5::1{number}/64 dev eth0 nodad"),
            );
            ip(&host, "-6 route add default via fd00:5::254");
        }
        site.fine(
            "director",
            &["sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward"],
        );
        ip("director", "address flush dev eth0");
        ip("director", "address flush dev eth1");
        ip("director", "address add 192.168.1.253/24 dev eth1");
        ip("director", "address add fd00:5::253/64 dev eth1 nodad");
        let config = site.folder.join("ulvs.toml");
        fs::write(&config, PORTS).unwrap();
        let running = BTreeMap::new();
        let mut both = Both { running, site };
        both.start_director();
        for name in ["rs1", "rs2", "rs3"] {
            both.start_server(name);
        }
        Some(both)
    }

    /// Starts the director, without services.
    fn start_director(&mut self) {
        let config = self.site.folder.join("ulvs.toml");
        let program = ulvs().to_str().unwrap();
        let words = [program, "run", "--config", config.to_str().unwrap()];
        let director = self.site.start("director", &words);
        until("the director answers", || self.has_director().then_some(()));
        self.running.insert("director".to_string(), director);
    }

    fn has_director(&self) -> bool {
        let words = [ulvs().to_str().unwrap(), "adm", "-L", "-n"];
        self.site.run("director", &words).status.success()
    }

    /// Ends the director by force and starts it again: it knows nothing of what was configured.
    pub fn restart_director(&mut self) {
        self.end_server("director");
        until("it has ended", || (!self.has_director()).then_some(()));
        self.start_director();
        assert_eq!(self.rules(), "");
    }

    /// Starts the web server of a host.
    pub fn start_server(&mut self, name: &str) {
        let port = PORT.to_string();
        let words = [
            ulvs().to_str().unwrap(),
            "lab",
            "serve",
            &port,
            "--name",
            name,
        ];
        let server = self.site.start(name, &words);
        server.wait_for("serving");
        self.running.insert(name.to_string(), server);
    }

    /// Ends whoever runs in a host, its connections too.
    pub fn end_server(&mut self, name: &str) {
        self.running.remove(name).expect("it runs").kill();
    }

    /// The table, as ipvsadm-save prints it.
    pub fn rules(&self) -> String {
        self.site.ours(&["adm", "-S", "-n"])
    }

    /// The real servers of a service, with their weights.
    pub fn servers(&self, service: &str) -> Vec<String> {
        let begin = format!("-a -t {service} -r ");
        let rules = self.rules();
        let lines = rules.lines().filter_map(|line| line.strip_prefix(&begin));
        let server = |line: &str| {
            let (address, rest) = line.split_once(' ').unwrap();
            let weight = rest.split_once("-w ").unwrap().1;
            format!("{address} {}", weight.split(' ').next().unwrap())
        };
        let mut servers: Vec<String> = lines.map(server).collect();
        servers.sort();
        servers
    }

    /// Waits until these are the real servers of the service on `VIP:port`, in both families: written
    /// as number and weight of their hosts.
    pub fn wait_for_servers(&self, port: u16, wanted: [&[(u8, u32)]; 2]) {
        for (number, servers) in wanted.into_iter().enumerate() {
            let service = format!("{}:{port}", VIPS[number]);
            let name = |(host, weight): &(u8, u32)| match number {
                0 => format!("192.168.1.1{host}:{PORT} {weight}"),
                _ => format!("[fd00:5::1{host}]:{PORT} {weight}"),
            };
            let servers: Vec<String> = servers.iter().map(name).collect();
            let what = format!("{service} has {servers:?}");
            until(&what, || (self.servers(&service) == servers).then_some(()));
        }
    }

    /// Does somebody answer the client at this service?
    pub fn is_answered(&self, service: &str) -> bool {
        let words = [ulvs().to_str().unwrap(), "lab", "fetch", service];
        self.site.run("client", &words).status.success()
    }

    /// How many connections a host was ever given by a service, as counted so far.
    pub fn given(&self, service: &str, host: u8) -> u64 {
        let listing = self.site.ours(&["adm", "-L", "-n", "--stats", "--exact"]);
        let mut lines = listing.lines().skip_while(|line| !line.contains(service));
        let real = Both::real(service, host);
        let line = lines
            .find(|line| line.contains(&real))
            .expect("it is listed");
        line.split_whitespace().nth(2).unwrap().parse().unwrap()
    }

    /// A host as the real server of a service's family.
    pub fn real(service: &str, host: u8) -> String {
        match service.starts_with('[') {
            true => format!("[fd00:5::1{host}]:{PORT}"),
            false => format!("192.168.1.1{host}:{PORT}"),
        }
    }

    /// Who answers the client at this service: requests on connections of their own.
    pub fn answers(&self, service: &str, count: u32) -> BTreeMap<String, u32> {
        let mut answers = BTreeMap::new();
        for _ in 0..count {
            let words = [ulvs().to_str().unwrap(), "lab", "fetch", service];
            let page = self.site.fine("client", &words);
            let name = page.split(' ').next().unwrap().to_string();
            *answers.entry(name).or_default() += 1;
        }
        answers
    }

    /// Connections that stay, once all are there.
    pub fn stay(&self, service: &str, count: u32) -> Inside {
        let count = count.to_string();
        let program = ulvs().to_str().unwrap();
        let words = [
            program,
            "lab",
            "stay",
            service,
            "--connections",
            &count,
            "--bytes",
            "2000",
        ];
        let stay = self.site.start("client", &words);
        stay.wait_for(&format!("opened {count}"));
        stay
    }

    /// How many connections of a service are established with a host.
    pub fn connections(&self, service: &str, host: u8) -> usize {
        let listing = self.site.ours(&["adm", "-L", "-n", "-c"]);
        let real = Both::real(service, host);
        let established = listing.lines().filter(|line| line.contains("ESTABLISHED"));
        established
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .filter(|words| words[4] == service && words[5] == real)
            .count()
    }
}

/// Ends connections that stay, and what became of them.
pub fn end_of(mut stay: Inside) -> Value {
    stay.end_input();
    let report = stay.wait_for("pages_min");
    assert!(stay.wait().success());
    serde_json::from_str(&report).unwrap()
}
