//! Floor C: whole networks in namespaces of our own, with or without root, and real TCP through
//! them. A lab is one keeper process (see `keeper`) with a folder that says so (see `cleanup`).
//! What people see of it is printed by `cli`.

pub mod cleanup;
pub mod decap;
pub mod exec;
pub mod flood;
mod gather;
pub mod host;
pub mod keeper;
pub mod link;
pub mod netns;
pub mod program;
pub mod stay;
pub mod topology;
pub mod visit;

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::config::codec;
use cleanup::{Claim, Process};
use host::{Load, LoadReport};
use keeper::{Answer, Order};
use netns::Boxed;
use topology::{Path as DirectorPath, TUN_NAME, Topology};
use visit::{Visit, VisitReport};

/// How long making a network may take. It takes a tenth of a second.
const BUILD_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a director may take to be ready, and a little more than the keeper gives it.
const DIRECTOR_TIMEOUT: Duration = Duration::from_secs(25);
/// How long an orderly stop may take.
const STOP_TIMEOUT: Duration = Duration::from_secs(8);
/// Name of the director's control socket in the lab's folder.
const CONTROL: &str = "control";
/// Name of the file with what the director has printed.
const DIRECTOR_LOG: &str = "director.log";
/// Longest answer of a keeper.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest path of a Unix socket, with its zero byte: unix(7).
const SOCKET_PATH_BYTES_MAX: usize = 108;

/// How the director shall run.
#[derive(Clone, Debug)]
pub struct Director {
    /// Back-end: `packet`, `mmsg` or `tun`.
    pub nic: String,
    /// How many workers.
    pub workers: u32,
    /// Scheduler of the service.
    pub scheduler: String,
    /// Bounds by their names in the configuration (`[limits]`), where they are not to be the usual.
    pub limits: Vec<(String, u64)>,
    /// Its own programs can be real servers.
    pub local_node: bool,
}

/// A lab that is up. It is gone when this is dropped, unless it was kept.
#[derive(Debug)]
pub struct Lab {
    claim: Option<Claim>,
    keeper: Boxed,
    orders: UnixStream,
    answers: codec::Lines,
    signals: Signals,
    topology: Topology,
}

impl Lab {
    /// Makes the network and starts the web servers. From here on SIGINT, SIGTERM and SIGHUP make
    /// the next step fail with `Interrupted` instead of ending this process.
    ///
    /// # Errors
    /// What the machine refused; nothing is left of the attempt.
    pub fn start(topology: Topology, name: Option<&str>) -> io::Result<Lab> {
        let machine = netns::current_net()?;
        let signals = Signals::catch()?;
        let claim = Claim::new(name, &topology, machine)?;
        let started = Lab::start_keeper(&claim, machine);
        let (keeper, orders) = match started {
            Ok(started) => started,
            Err(error) => {
                let _ = claim.remove();
                return Err(error);
            }
        };
        let mut topology = topology;
        let folder = claim.folder.to_string_lossy().into_owned();
        for word in &mut topology.server {
            *word = word.replace(topology::FOLDER, &folder);
        }
        let mut lab = Lab {
            claim: Some(claim),
            keeper,
            orders,
            answers: codec::Lines::new(ANSWER_BYTES_MAX),
            signals,
            topology: topology.clone(),
        };
        let process = Process::of(lab.keeper.pid)?;
        lab.record(|record| record.keeper = Some(process))?;
        match lab.ask(&Order::Build(Box::new(topology)), BUILD_TIMEOUT)? {
            Answer::Built(hosts) => lab.record(|record| record.hosts = hosts)?,
            other => return Err(lab.unexpected(&other)),
        }
        Ok(lab)
    }

    fn start_keeper(claim: &Claim, machine: u64) -> io::Result<(Boxed, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let log = File::create(claim.folder.join("keeper.log"))?;
        let keep = [theirs.as_raw_fd(), claim.lock.as_raw_fd()];
        let words = ["lab", "keeper"].map(str::to_string);
        let numbers = [
            keep[0].to_string(),
            keep[1].to_string(),
            machine.to_string(),
        ];
        let arguments: Vec<String> = words.into_iter().chain(numbers).collect();
        let keeper = netns::start_boxed(&arguments, &log, &keep)?;
        Ok((keeper, ours))
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.claim().record.name
    }

    /// The network.
    pub const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Was it made in a user namespace?
    pub const fn own_users(&self) -> bool {
        self.keeper.own_users
    }

    /// Where its files are; they go with it.
    pub fn folder(&self) -> PathBuf {
        self.claim().folder.clone()
    }

    /// Where the director's control socket is.
    pub fn control(&self) -> PathBuf {
        self.claim().folder.join(CONTROL)
    }

    /// Writes the director's configuration, starts it, and waits until frames flow.
    ///
    /// # Errors
    /// When it does not become ready, with the end of what it printed.
    pub fn start_director(&mut self, director: &Director) -> io::Result<()> {
        let text = director_config(&self.topology, director, &self.control())?;
        self.start_director_on(&text)
    }

    /// Writes this configuration, starts a director with it, and waits until frames flow.
    ///
    /// # Errors
    /// When it does not become ready, with the end of what it printed.
    pub fn start_director_on(&mut self, text: &str) -> io::Result<()> {
        let control = self.control();
        if control.as_os_str().len() >= SOCKET_PATH_BYTES_MAX {
            let text = format!("{} is too long for a socket", control.display());
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        let folder = self.claim().folder.clone();
        let config = folder.join("ulvs.toml");
        std::fs::write(&config, text)?;
        let log = folder.join(DIRECTOR_LOG);
        let order = Order::StartDirector {
            arguments: vec![
                "run".to_string(),
                "--config".to_string(),
                config.to_string_lossy().into_owned(),
            ],
            log: log.clone(),
        };
        match self.ask(&order, DIRECTOR_TIMEOUT) {
            Ok(Answer::Ready) => Ok(()),
            Ok(other) => Err(with_log(&self.unexpected(&other), &log)),
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => Err(with_log(&error, &log)),
        }
    }

    /// Sends requests from the client and waits for the answers.
    ///
    /// # Errors
    /// When the lab is gone, or time is up.
    pub fn load(&mut self, load: &Load) -> io::Result<LoadReport> {
        // At least 100 requests a second; a load that gets no answer at all gives up before.
        let patience = Duration::from_secs(60 + load.requests / 100);
        let log = self.claim().folder.join(DIRECTOR_LOG);
        match self.ask(&Order::Load(load.clone()), patience)? {
            Answer::Loaded(report) => Ok(report),
            other => Err(with_log(&self.unexpected(&other), &log)),
        }
    }

    /// Somebody calls on a host, and waits for the answers.
    ///
    /// # Errors
    /// When the lab is gone, or has no such host.
    pub fn visit(&mut self, host: &str, visit: Visit) -> io::Result<VisitReport> {
        let patience = Duration::from_millis(visit.patience_ms) + STOP_TIMEOUT;
        let host = host.to_string();
        match self.ask(&Order::Visit { host, visit }, patience)? {
            Answer::Visited(report) => Ok(report),
            other => Err(self.unexpected(&other)),
        }
    }

    /// Stops the director in order and removes everything.
    ///
    /// # Errors
    /// When the director had to be ended by force, had ended before, or something is left.
    pub fn stop(mut self) -> io::Result<()> {
        self.take_down()
    }

    /// Leaves the lab up; `lab down` ends it. Gives back its name.
    ///
    /// # Errors
    /// When the keeper is gone.
    pub fn keep(mut self) -> io::Result<String> {
        match self.ask(&Order::Keep, STOP_TIMEOUT)? {
            Answer::Kept => {}
            other => return Err(self.unexpected(&other)),
        }
        self.record(|record| record.starter = None)?;
        let name = self.name().to_string();
        self.claim = None;
        Ok(name)
    }

    fn take_down(&mut self) -> io::Result<()> {
        let Some(claim) = self.claim.take() else {
            return Ok(());
        };
        // Whoever pressed Ctrl-C once has been heard.
        self.signals.drain();
        let stopped = self.ask_to_stop();
        let in_order = cleanup::has_ended(&self.keeper.pidfd, Duration::from_secs(2));
        if !in_order {
            self.keeper.kill();
        }
        self.keeper.reap();
        claim.remove()?;
        match stopped? {
            None if in_order => Ok(()),
            Some(wrong) => Err(io::Error::other(wrong)),
            None => Err(io::Error::other("the lab did not stop in order")),
        }
    }

    fn claim(&self) -> &Claim {
        self.claim
            .as_ref()
            .expect("only keep and stop take it, and they end the lab")
    }

    fn record(&mut self, change: impl FnOnce(&mut cleanup::Record)) -> io::Result<()> {
        let claim = self.claim.as_mut().expect("only keep and stop take it");
        change(&mut claim.record);
        claim.write()
    }

    /// Gives the keeper an order and waits for its answer.
    fn ask(&mut self, order: &Order, patience: Duration) -> io::Result<Answer> {
        let sent = self.orders.write_all(&codec::encode(order));
        sent.map_err(|_| ended_from_outside())?;
        self.next_answer(Instant::now() + patience)
    }

    fn next_answer(&mut self, deadline: Instant) -> io::Result<Answer> {
        loop {
            if let Some(line) = self.answers.next_line().map_err(io::Error::other)? {
                return Ok(serde_json::from_slice(&line)?);
            }
            self.wait_readable(deadline)?;
            let mut part = [0; 4096];
            match self.orders.read(&mut part) {
                Ok(0) | Err(_) => return Err(ended_from_outside()),
                Ok(count) => self.answers.push(&part[..count]),
            }
        }
    }

    /// Tells the keeper to stop. Answers to earlier orders that nobody waited for are passed over.
    fn ask_to_stop(&mut self) -> io::Result<Option<String>> {
        let sent = self.orders.write_all(&codec::encode(&Order::Stop));
        sent.map_err(|_| ended_from_outside())?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Answer::Stopped(wrong) = self.next_answer(deadline)? {
                return Ok(wrong);
            }
        }
    }

    fn wait_readable(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        let wait = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        let mut polls = [
            wait(self.orders.as_raw_fd()),
            wait(self.signals.fd.as_raw_fd()),
        ];
        // SAFETY: two pollfd that live on this stack.
        let ready = unsafe { libc::poll(polls.as_mut_ptr(), 2, left_ms) };
        if polls[1].revents != 0 {
            return Err(io::Error::new(ErrorKind::Interrupted, "interrupted"));
        }
        match ready {
            -1 => Err(io::Error::last_os_error()),
            0 => Err(io::Error::new(
                ErrorKind::TimedOut,
                "the lab does not answer",
            )),
            _ => Ok(()),
        }
    }

    fn unexpected(&self, answer: &Answer) -> io::Error {
        match answer {
            Answer::Failed(text) => io::Error::other(text.clone()),
            other => io::Error::other(format!("the keeper of {} said {other:?}", self.name())),
        }
    }
}

fn ended_from_outside() -> io::Error {
    io::Error::other("the lab was ended from outside")
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Whoever drops a lab has an error of his own to tell.
        let _ = self.take_down();
    }
}

/// SIGINT, SIGTERM and SIGHUP as something to wait for, until this is dropped.
#[derive(Debug)]
struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    fn catch() -> io::Result<Signals> {
        // SAFETY: the sets live on this stack and are written before they are read; signalfd gives
        // back a new descriptor that nobody else owns.
        unsafe {
            let (mut set, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigemptyset(&raw mut set);
            for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
                libc::sigaddset(&raw mut set, number);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, &raw mut before);
            match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                fd => Ok(Signals {
                    fd: OwnedFd::from_raw_fd(fd),
                    before,
                }),
            }
        }
    }

    fn is_pending(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd that lives on this stack; it does not wait.
        unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
    }

    fn drain(&self) {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        // SAFETY: the buffer is as long as one answer; the descriptor does not block.
        while unsafe { libc::read(self.fd.as_raw_fd(), info.as_mut_ptr().cast(), info.len()) } > 0 {
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.drain();
        // SAFETY: the set was written by the kernel in `catch`.
        unsafe {
            let before = &raw const self.before;
            libc::pthread_sigmask(libc::SIG_SETMASK, before, std::ptr::null_mut());
        }
    }
}

/// Looks for what a lab of this kind needs beyond namespaces, before anything is made.
///
/// # Errors
/// What is missing, and what may be done about it.
pub fn check_machine(topology: &Topology) -> io::Result<()> {
    const DEVICE: &str = "/dev/net/tun";
    if topology.path == DirectorPath::Tun || topology.method == "tunnel" {
        let opened = File::options().read(true).write(true).open(DEVICE);
        opened.map_err(|error| {
            let text = format!(
                "cannot open {DEVICE}: {error}; a TUN device needs root, or: chmod 666 {DEVICE}"
            );
            io::Error::new(error.kind(), text)
        })?;
    }
    Ok(())
}

fn with_log(error: &io::Error, log: &Path) -> io::Error {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let last = lines[lines.len().saturating_sub(20)..].join("\n");
    io::Error::new(
        error.kind(),
        format!("{error}\n{last}").trim_end().to_string(),
    )
}

/// The director's configuration file for this network. Real servers or services may be added at its end:
/// the last section is the last real server of the last service.
///
/// # Errors
/// Never for what can be written as text.
pub fn director_config(
    topology: &Topology,
    director: &Director,
    control: &Path,
) -> io::Result<String> {
    let quoted = |text: &str| serde_json::to_string(text);
    let mut text = format!(
        "[director]\nnic = {}\nworkers = {}\ncontrol = {}\n",
        quoted(&director.nic)?,
        director.workers,
        quoted(&control.to_string_lossy())?,
    );
    if director.local_node {
        text.push_str("local_node = true\n");
    }
    match topology.path {
        // Whatever it writes into the device, the kernel knows the way.
        DirectorPath::Tun => text.push_str(&format!(
            "tun = \"{TUN_NAME}\"\n\n[[port]]\ninterface = \"{TUN_NAME}\"\nside = \"public\"\n\
             routes = [{{ to = \"0.0.0.0/0\" }}]\n"
        )),
        DirectorPath::Frames | DirectorPath::Kernel => {
            for port in &topology.ports {
                let (name, side) = (
                    &port.interface,
                    if port.public { "public" } else { "private" },
                );
                text.push_str(&format!(
                    "\n[[port]]\ninterface = \"{name}\"\nside = \"{side}\"\n\
                     addresses = [\"{}\"]\n",
                    port.address
                ));
                let routes = port.routes.iter();
                let routes =
                    routes.map(|(to, via)| format!("{{ to = \"{to}\", via = \"{via}\" }}"));
                let routes: Vec<String> = routes.collect();
                text.push_str(&format!("routes = [{}]\n", routes.join(", ")));
            }
        }
    }
    if let Some((prefix, address)) = topology.masquerade {
        text.push_str(&format!(
            "\n[masquerade]\nprefixes = [\"{prefix}\"]\naddresses = [\"{address}\"]\n"
        ));
    }
    if !director.limits.is_empty() {
        let limits = director.limits.iter();
        let limits: Vec<String> = limits.map(|(name, n)| format!("{name} = {n}\n")).collect();
        text.push_str(&format!("\n[limits]\n{}", limits.concat()));
    }
    if !topology.pool.is_empty() {
        let pool = topology.pool.iter().map(|own| format!("\"{own}\""));
        let pool: Vec<String> = pool.collect();
        text.push_str(&format!("\n[fullnat]\naddresses = [{}]\n", pool.join(", ")));
    }
    if !topology.server.is_empty() {
        // What real servers start speaks FTP.
        text.push_str("\n[ftp]\n");
    }
    for vip in [topology.vip].iter().chain(&topology.more_vips) {
        text.push_str(&service(topology, *vip, director)?);
    }
    Ok(text)
}

/// The service at one VIP with all real servers.
fn service(topology: &Topology, vip: IpAddr, director: &Director) -> io::Result<String> {
    let quoted = |text: &str| serde_json::to_string(text);
    let mut text = String::new();
    text.push_str(&format!(
        "\n[[service]]\ntcp = \"{}\"\nscheduler = {}\n",
        SocketAddr::new(vip, topology.port),
        quoted(&director.scheduler)?,
    ));
    for (_, address, weight) in topology.real_servers() {
        text.push_str(&format!(
            "\n[[service.real]]\naddress = \"{}\"\nweight = {weight}\n\
             method = \"{}\"\n",
            SocketAddr::new(address, topology.port),
            topology.method
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::file::{self, NicKind};

    #[test]
    fn the_configuration_is_one_that_the_daemon_reads() {
        for (nic, kind, path) in [
            ("packet", NicKind::Packet, DirectorPath::Frames),
            ("mmsg", NicKind::Mmsg, DirectorPath::Frames),
            ("tun", NicKind::Tun, DirectorPath::Tun),
        ] {
            let director = Director {
                nic: nic.to_string(),
                workers: 2,
                scheduler: "wrr".to_string(),
                limits: vec![("conn_entries_max".to_string(), 20_000)],
                local_node: kind != NicKind::Tun,
            };
            let control = Path::new("/tmp/a \"folder\"/control");
            let read = |topology: &Topology| {
                let text = director_config(topology, &director, control).unwrap();
                let config = file::parse("ulvs.toml", &text, &["wrr"]);
                config.unwrap_or_else(|problems| panic!("{problems}\n{text}"))
            };
            let full_nat = read(&Topology::full_nat(path));
            assert_eq!(
                full_nat.services.len(),
                5,
                "pools, a service, three servers"
            );
            let config = read(&Topology::nat(path));
            assert_eq!(config.director.nic, kind);
            assert_eq!(config.director.workers, 2);
            assert_eq!(config.limits.conn_entries_max, 20_000);
            assert_eq!(config.director.control.as_deref(), control.to_str());
            assert_eq!(config.services.len(), 5, "pools, a service, three servers");
            let interfaces = config.ports.iter().map(|port| port.interface.as_str());
            let interfaces: Vec<&str> = interfaces.collect();
            match path {
                DirectorPath::Tun => assert_eq!(interfaces, [TUN_NAME]),
                _ => assert_eq!(interfaces, ["eth0", "eth1"]),
            }
        }
    }
}
