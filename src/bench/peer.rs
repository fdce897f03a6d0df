//! Who is measured: one trait, and everybody who has it. A peer says which network it needs and what
//! must be installed, and starts what is its own in the middle of a lab; load, ends and windows are the
//! same for all. Proxies and nft are in `proxy`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::load::{BULK_PORT, ECHO_PORT, FRAMES_PORT, PONG_PORT, WEB_PORT};
use super::noise::processors;
use super::proxy::{Haproxy, Nft, Nginx};
use crate::lab::program::Program;
use crate::lab::topology::{Between, Topology};
use crate::lab::{self, Director, Lab};

/// How long something may take to be ready.
pub(super) const READY_TIMEOUT: Duration = Duration::from_secs(10);
/// Where programs are that an ordinary user's PATH may lack.
const OTHER_FOLDERS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// The addresses of both real servers, which are one machine.
pub const REALS: [Ipv4Addr; 2] = [
    Ipv4Addr::new(192, 168, 1, 11),
    Ipv4Addr::new(192, 168, 1, 12),
];
/// What clients ask for where somebody balances.
pub const VIP: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 1);
/// The neighbour who routes where nobody balances.
const ROUTER: Ipv4Addr = Ipv4Addr::new(1, 2, 3, 2);
/// TCP ports of the services that everybody offers.
pub const TCP_PORTS: [u16; 4] = [WEB_PORT, BULK_PORT, ECHO_PORT, PONG_PORT];

/// Something that must be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A program, and the Debian package it is in.
    Program(&'static str, &'static str),
    /// A file, and the Debian package it is in.
    File(&'static str, &'static str),
    /// A file of the kernel, and what to do about it.
    Kernel(&'static str, &'static str),
}

impl Need {
    /// Why it cannot be had, and what to do; nothing if it is there.
    pub fn missing(self) -> Option<String> {
        match self {
            Need::Program(name, package) if find(name).is_none() => {
                Some(format!("no program {name} here; apt-get install {package}"))
            }
            Need::File(path, package) if !Path::new(path).exists() => {
                Some(format!("no {path} here; apt-get install {package}"))
            }
            Need::Kernel(path, advice) if !Path::new(path).exists() => {
                Some(format!("this kernel has no {path}; {advice}"))
            }
            _ => None,
        }
    }
}

/// Where a program is.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(OTHER_FOLDERS.map(PathBuf::from));
    folders
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Somebody who is measured.
pub trait Peer {
    /// The name in all tables.
    fn name(&self) -> &'static str;

    /// What it is, in a few words.
    fn about(&self) -> &'static str;

    /// What must be installed.
    fn needs(&self) -> Vec<Need> {
        vec![]
    }

    /// What it is in the middle of.
    fn between(&self) -> Between;

    /// Whom clients ask.
    fn target(&self) -> Ipv4Addr {
        VIP
    }

    /// Does it hand on datagrams?
    fn has_udp(&self) -> bool {
        true
    }

    /// Has it processes that remember connections?
    fn keeps_connections(&self) -> bool {
        false
    }

    /// Starts what is its own in the lab.
    ///
    /// # Errors
    /// When that is refused, or does not become ready.
    fn start(&self, lab: &mut Lab) -> io::Result<Vec<Program>>;

    /// What it says of its own version.
    fn version(&self) -> String {
        String::new()
    }

    /// The neighbour whom clients give frames to.
    fn neighbour(&self) -> Ipv4Addr {
        match self.between() {
            Between::Kernel | Between::KernelOneWay if self.target() != VIP => ROUTER,
            _ => self.target(),
        }
    }
}

/// Everybody, in the order of the tables.
pub fn all() -> Vec<Box<dyn Peer>> {
    vec![
        Box::new(Nobody),
        Box::new(Route),
        Box::new(Forwarder("packet")),
        Box::new(Forwarder("mmsg")),
        Box::new(Nft),
        Box::new(KernelIpvs),
        Box::new(Haproxy),
        Box::new(Nginx),
        Box::new(Ulvs::PACKET),
        Box::new(Ulvs::MMSG),
        Box::new(Ulvs::TUN),
        Box::new(RouteOneWay),
        Box::new(Ulvs::DR),
        Box::new(Ulvs::IPIP),
    ]
}

/// The first line that a program prints when it is asked who it is.
pub(super) fn first_line(program: &str, argument: &str) -> String {
    let Some(path) = find(program) else {
        return String::new();
    };
    let mut command = Command::new(path);
    let output = command.arg(argument).stdin(Stdio::null()).output();
    let text = output.map(|output| [output.stdout, output.stderr].concat());
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    text.lines().next().unwrap_or("").trim().to_string()
}

/// A cable.
struct Nobody;

impl Peer for Nobody {
    fn name(&self) -> &'static str {
        "none"
    }

    fn about(&self) -> &'static str {
        "nobody in between: client and server on one veth pair"
    }

    fn between(&self) -> Between {
        Between::Nobody
    }

    fn target(&self) -> Ipv4Addr {
        REALS[0]
    }

    fn start(&self, _: &mut Lab) -> io::Result<Vec<Program>> {
        Ok(vec![])
    }
}

/// A kernel that routes and balances nothing.
struct Route;

impl Peer for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn about(&self) -> &'static str {
        "the kernel routes; nobody balances"
    }

    fn between(&self) -> Between {
        Between::Kernel
    }

    fn target(&self) -> Ipv4Addr {
        REALS[0]
    }

    fn start(&self, _: &mut Lab) -> io::Result<Vec<Program>> {
        Ok(vec![])
    }
}

/// The same where answers go past it: what LVS-DR and LVS-TUN are to be laid beside.
struct RouteOneWay;

impl Peer for RouteOneWay {
    fn name(&self) -> &'static str {
        "route-oneway"
    }

    fn about(&self) -> &'static str {
        "the kernel routes, answers go past it on a cable of their own; nobody balances"
    }

    fn between(&self) -> Between {
        Between::KernelOneWay
    }

    fn target(&self) -> Ipv4Addr {
        REALS[0]
    }

    fn start(&self, _: &mut Lab) -> io::Result<Vec<Program>> {
        Ok(vec![])
    }
}

/// The back-end of that word, with nothing behind it.
struct Forwarder(&'static str);

impl Peer for Forwarder {
    fn name(&self) -> &'static str {
        match self.0 {
            "packet" => "bare-packet",
            _ => "bare-mmsg",
        }
    }

    fn about(&self) -> &'static str {
        match self.0 {
            "packet" => "hands frames on as they are: ulvs's packet back-end alone",
            _ => "hands frames on as they are: ulvs's mmsg back-end alone",
        }
    }

    fn between(&self) -> Between {
        Between::Wire
    }

    fn target(&self) -> Ipv4Addr {
        REALS[0]
    }

    fn start(&self, lab: &mut Lab) -> io::Result<Vec<Program>> {
        let words = super::guest(&["forward", self.0])?;
        let mut program = lab.start_program("director", &words, Some(last_processor()))?;
        program.next_line(READY_TIMEOUT)?;
        Ok(vec![program])
    }
}

/// The processor on which a single worker of a director is pinned, and all that shall be like it.
pub fn last_processor() -> usize {
    processors() - 1
}

/// The kernel's own IPVS, driven by Debian's ipvsadm.
struct KernelIpvs;

impl Peer for KernelIpvs {
    fn name(&self) -> &'static str {
        "ipvs"
    }

    fn about(&self) -> &'static str {
        "the kernel's IPVS, LVS-NAT, rr"
    }

    fn needs(&self) -> Vec<Need> {
        vec![
            Need::Kernel(
                "/proc/net/ip_vs",
                "load it: modprobe ip_vs; not all kernels have it",
            ),
            Need::Program("ipvsadm", "ipvsadm"),
        ]
    }

    fn between(&self) -> Between {
        Between::Kernel
    }

    fn start(&self, lab: &mut Lab) -> io::Result<Vec<Program>> {
        let file = lab.folder().join("ipvsadm.rules");
        let services = TCP_PORTS
            .map(|port| ('t', port))
            .into_iter()
            .chain([('u', FRAMES_PORT)]);
        let mut text = String::new();
        for (protocol, port) in services {
            text.push_str(&format!("-A -{protocol} {VIP}:{port} -s rr\n"));
            for real in REALS {
                text.push_str(&format!(
                    "-a -{protocol} {VIP}:{port} -r {real}:{port} -m\n"
                ));
            }
        }
        std::fs::write(&file, text)?;
        let path = find("ipvsadm").ok_or(io::ErrorKind::NotFound)?;
        // By its path: in a lab the bare name is a link to ulvs.
        let line = format!("exec {} -R <{}", path.display(), file.display());
        let words = ["sh", "-c", &line].map(str::to_string);
        lab.start_program("director", &words, None)?
            .finish(READY_TIMEOUT)?;
        Ok(vec![])
    }

    fn version(&self) -> String {
        first_line("ipvsadm", "-v")
    }
}

/// ulvs: one worker, rr.
struct Ulvs {
    name: &'static str,
    about: &'static str,
    /// The back-end.
    nic: &'static str,
    between: Between,
}

impl Ulvs {
    const PACKET: Ulvs = Ulvs {
        name: "ulvs-packet",
        about: "ulvs, LVS-NAT, rr, --nic packet, one worker that sleeps when nothing comes",
        nic: "packet",
        between: Between::Frames,
    };
    const MMSG: Ulvs = Ulvs {
        name: "ulvs-mmsg",
        about: "ulvs, LVS-NAT, rr, --nic mmsg, one worker that sleeps when nothing comes",
        nic: "mmsg",
        between: Between::Frames,
    };
    const TUN: Ulvs = Ulvs {
        name: "ulvs-tun",
        about: "ulvs, LVS-NAT, rr, --nic tun, one worker that sleeps when nothing comes",
        nic: "tun",
        between: Between::Tun,
    };
    const DR: Ulvs = Ulvs {
        name: "ulvs-dr",
        about: "ulvs, LVS-DR, rr, --nic packet; answers go past it",
        nic: "packet",
        between: Between::FramesOneWay,
    };
    const IPIP: Ulvs = Ulvs {
        name: "ulvs-ipip",
        about: "ulvs, LVS-TUN (IP in IP), rr, --nic packet; answers go past it, and the real \
                servers unwrap with a program of the lab, which is part of the cost",
        nic: "packet",
        between: Between::FramesWrapped,
    };
}

impl Peer for Ulvs {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn needs(&self) -> Vec<Need> {
        match self.between {
            Between::Tun | Between::FramesWrapped => {
                vec![Need::Kernel("/dev/net/tun", "load it: modprobe tun")]
            }
            _ => vec![],
        }
    }

    fn between(&self) -> Between {
        self.between
    }

    fn keeps_connections(&self) -> bool {
        true
    }

    fn start(&self, lab: &mut Lab) -> io::Result<Vec<Program>> {
        let director = Director {
            nic: self.nic.to_string(),
            workers: 1,
            scheduler: "rr".to_string(),
            limits: vec![],
            local_node: false,
        };
        let mut text = lab::director_config(lab.topology(), &director, &lab.control())?;
        // There is one real server in it so far, at one port.
        let method = lab.topology().method.clone();
        text.push_str(&real(REALS[1], WEB_PORT, &method));
        let tcp = TCP_PORTS[1..].iter().map(|port| ("tcp", *port));
        for (protocol, port) in tcp.chain([("udp", FRAMES_PORT)]) {
            let vip = SocketAddr::new(IpAddr::V4(VIP), port);
            text.push_str(&format!(
                "\n[[service]]\n{protocol} = \"{vip}\"\nscheduler = \"rr\"\n"
            ));
            REALS
                .iter()
                .for_each(|address| text.push_str(&real(*address, port, &method)));
        }
        lab.start_director_on(&text)?;
        Ok(vec![])
    }

    fn version(&self) -> String {
        format!("ulvs {}", env!("CARGO_PKG_VERSION"))
    }
}

fn real(address: Ipv4Addr, port: u16, method: &str) -> String {
    format!("\n[[service.real]]\naddress = \"{address}:{port}\"\nmethod = \"{method}\"\n")
}

/// The network for a peer.
pub fn network(peer: &dyn Peer) -> Topology {
    Topology::measured(peer.between())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_has_a_name_of_their_own() {
        let mut names: Vec<&str> = all().iter().map(|peer| peer.name()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        // A lab's host and folder names are made of them.
        assert!(
            names
                .iter()
                .all(|name| name.len() <= 12 && !name.contains(' '))
        );
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let told = Need::Program("no-such-program", "its-package")
            .missing()
            .unwrap();
        assert!(told.contains("no-such-program") && told.contains("apt-get install its-package"));
        assert!(Need::File("/no/such/file", "package").missing().is_some());
        assert!(
            Need::Kernel("/no/such/file", "load it")
                .missing()
                .unwrap()
                .contains("load it")
        );
        assert_eq!(Need::Program("sh", "dash").missing(), None);
        assert_eq!(Need::File("/proc/self/stat", "linux").missing(), None);
    }

    #[test]
    fn frames_go_to_a_neighbour() {
        for peer in all() {
            let neighbour = peer.neighbour();
            let near = match peer.between() {
                Between::Nobody | Between::Wire => [192, 168, 1],
                _ => [1, 2, 3],
            };
            assert_eq!(neighbour.octets()[..3], near, "{}", peer.name());
        }
    }
}
