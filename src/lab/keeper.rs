//! The keeper: the one process that holds a lab. It is process 1 of the lab's process namespace, so
//! when it ends, the kernel ends everything in the lab and takes its networks down. Its own network
//! namespace is the switch; every host is a thread in namespaces of its own. It is this same
//! program, started by `Lab::start`, and obeys the orders that come over one socket pair.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, pipe};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::cleanup::HostRecord;
use super::decap;
use super::host::{Load, LoadReport, Server};
use super::link::{End, Network, plain_bridges, set_sysctls, wait_until_up};
use super::netns::{self, HostNamespaces, Inside};
use super::stay;
use super::topology::{Host, Interface, Role, Topology, Wiring, quiet};
use super::visit::{self, Visit, VisitReport};
use crate::config::codec;

/// The line a director prints when frames flow.
const READY_LINE: &str = "ulvs: ready";
/// How long a director may take to say so.
const READY_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a director may take to stop in order.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// Files this process may have open: its servers' connections are most of them.
const FILES_MAX: u64 = 20_000;
/// Jobs that may wait for a host; we give it one at a time.
const JOBS_MAX: usize = 4;
/// Numbers of links that nobody else uses: the kernel counts from 1.
const LINK_INDEX_FIRST: u32 = 100;

/// What the starter wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Make the hosts and wires, and start the web servers.
    Build(Box<Topology>),
    /// Start this program with these words in the director's host; wait until frames flow.
    StartDirector {
        /// Arguments, without the program's name.
        arguments: Vec<String>,
        /// What it prints is added to this file.
        log: PathBuf,
    },
    /// Send requests from the client.
    Load(Load),
    /// Somebody calls on a host.
    Visit {
        /// Who.
        host: String,
        /// Whom, and how.
        visit: Visit,
    },
    /// Stay when the starter goes.
    Keep,
    /// Stop the director in order, and end.
    Stop,
}

/// What came of an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The hosts are there.
    Built(Vec<HostRecord>),
    /// Frames flow.
    Ready,
    /// All requests are done.
    Loaded(LoadReport),
    /// What came of a visit.
    Visited(VisitReport),
    /// The starter may go.
    Kept,
    /// The director has stopped; with what was wrong about that, if anything was.
    Stopped(Option<String>),
    /// It could not be done.
    Failed(String),
}

/// Runs the keeper until it is told to stop or its starter is gone. `socket` and `lock` are
/// descriptors that the starter left open; `machine` is the inode of the machine's network.
///
/// # Errors
/// When it is not in a network of its own, or has no socket.
pub fn run(socket: i32, lock: i32, machine: u64) -> io::Result<()> {
    // Neither is for the director. The lock is never closed: the kernel does that when this process
    // is as good as gone, and who waits for the lock waits for that.
    let (socket, _) = (inherited(socket)?, inherited(lock)?.into_raw_fd());
    let inside = Inside::check(machine)?;
    netns::name_process(c"ulvs-lab");
    stay::allow_files(FILES_MAX);
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    runtime()?.block_on(async move {
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let (orders, mut answers) = stream.into_split();
        let mut orders = BufReader::new(orders).lines();
        let mut keeper = Keeper {
            inside,
            machine,
            hosts: Vec::new(),
            director: None,
            ended: signal(SignalKind::child())?,
            kept: false,
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut next = keeper.next_order(&mut orders, &mut terminate).await;
        while let Some(order) = next {
            let answer = tokio::select! {
                answer = keeper.obey(order) => answer,
                _ = terminate.recv() => break,
                // The starter does not wait for that answer any more, or is gone.
                newer = next_line(&mut orders) => {
                    next = newer;
                    continue;
                }
            };
            let stopped = matches!(answer, Answer::Stopped(_));
            let sent = answers.write_all(&codec::encode(&answer)).await;
            if stopped || sent.is_err() {
                break;
            }
            next = keeper.next_order(&mut orders, &mut terminate).await;
        }
        keeper.stop_director().await;
        Ok(())
    })
}

fn inherited(fd: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl takes numbers only; it fails if this descriptor is not open.
    if fd < 3 || unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        let text = format!("descriptor {fd} is not open; only `ulvs lab` starts this");
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    // SAFETY: it is open, and the starter left it open for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

type Orders = Lines<BufReader<OwnedReadHalf>>;

/// The next order; nothing when there will be none. May be dropped at any moment: nothing is lost.
async fn next_line(orders: &mut Orders) -> Option<Order> {
    let line = orders.next_line().await.ok().flatten()?;
    match serde_json::from_str(&line) {
        Ok(order) => Some(order),
        Err(error) => {
            eprintln!("bad order: {error}");
            None
        }
    }
}

struct Keeper {
    inside: Inside,
    machine: u64,
    hosts: Vec<HostThread>,
    director: Option<i32>,
    ended: Signal,
    kept: bool,
}

impl Keeper {
    /// The next order; nothing when it is time to stop. Reaps what has ended meanwhile.
    async fn next_order(&mut self, orders: &mut Orders, terminate: &mut Signal) -> Option<Order> {
        let mut gone = false;
        loop {
            tokio::select! {
                order = next_line(orders), if !gone => match order {
                    None if self.kept => gone = true,
                    order => return order,
                },
                _ = terminate.recv() => return None,
                _ = self.ended.recv() => reap(&mut self.director),
            }
        }
    }

    async fn obey(&mut self, order: Order) -> Answer {
        let done = match order {
            Order::Build(topology) => self.build(&topology).await.map(Answer::Built),
            Order::StartDirector { arguments, log } => self
                .start_director(arguments, log)
                .await
                .map(|()| Answer::Ready),
            Order::Load(load) => self.load(load).await.map(Answer::Loaded),
            Order::Visit { host, visit } => self.visit(&host, visit).await.map(Answer::Visited),
            Order::Keep => self.keep().map(|()| Answer::Kept),
            Order::Stop => Ok(Answer::Stopped(self.stop_director().await)),
        };
        done.unwrap_or_else(|error| Answer::Failed(error.to_string()))
    }

    async fn build(&mut self, topology: &Topology) -> io::Result<Vec<HostRecord>> {
        let starts: Vec<_> = topology
            .hosts
            .iter()
            .map(|host| start_host(host, self.machine))
            .collect();
        for start in starts {
            self.hosts.push(start?.await.map_err(io::Error::other)??);
        }
        let ports = self.lay_cables(topology).await?;
        let hosts = self.hosts.iter();
        let configured: Vec<_> = hosts.map(|host| host.ask(Job::Configure)).collect();
        for done in configured {
            done.await?;
        }
        wait_until_up(&self.inside, &ports).await?;
        for host in &self.hosts {
            let (port, v6) = (topology.port, topology.vip.is_ipv6());
            let is_real = matches!(host.host.role, Role::RealServer { .. });
            if is_real && !topology.server.is_empty() {
                let words = topology.server.clone();
                let start = |answer| Job::ServeProgram(port, words, answer);
                host.ask(start).await?;
            } else if is_real || host.host.role == Role::World {
                host.ask(|answer| Job::Serve(port, v6, answer)).await?;
            }
            if is_real && topology.method == "tunnel" {
                host.ask(Job::Unwrap).await?;
            }
            if host.host.role == Role::World {
                host.ask(|answer| Job::TellCallers(port, v6, answer))
                    .await?;
            }
        }
        let record = |host: &HostThread| {
            let HostNamespaces { net, mnt, uts } = &host.namespaces;
            HostRecord {
                name: host.host.name.clone(),
                descriptors: [net, mnt, uts].map(|file| file.as_raw_fd()),
            }
        };
        Ok(self.hosts.iter().map(record).collect())
    }

    /// Connects the hosts; gives back the names of the links that stay here, in the switch.
    async fn lay_cables(&self, topology: &Topology) -> io::Result<Vec<String>> {
        set_sysctls(&self.inside, &quiet())?;
        set_sysctls(&self.inside, &plain_bridges())?;
        let network = Network::open(&self.inside)?;
        let mut ports = Vec::new();
        let mut indices = LINK_INDEX_FIRST..;
        let mut number = || indices.next().expect("there are few links");
        for segment in &topology.segments {
            let mut ends = Vec::new();
            for host in &self.hosts {
                let on_segment = |interface: &&Interface| interface.segment == segment.name;
                for interface in host.host.interfaces.iter().filter(on_segment) {
                    let end = End {
                        name: interface.name.clone(),
                        index: number(),
                        mac: Some(interface.mac),
                        net: Some(host.namespaces.net.as_raw_fd()),
                    };
                    ends.push((format!("{}.{}", host.host.name, interface.name), end));
                }
            }
            if let [(_, one), (_, other)] = ends.as_slice() {
                network.add_cable(one, other, segment.mtu).await?;
                continue;
            }
            let bridge = format!("br-{}", segment.name);
            network.add_bridge(&bridge, segment.mtu).await?;
            for (name, end) in ends {
                let port = End {
                    name,
                    index: number(),
                    mac: None,
                    net: None,
                };
                network.add_cable(&port, &end, segment.mtu).await?;
                network.plug(&port.name, &bridge).await?;
                ports.push(port.name);
            }
        }
        Ok(ports)
    }

    async fn start_director(&mut self, arguments: Vec<String>, log: PathBuf) -> io::Result<()> {
        let host = host_with(&self.hosts, Role::Director)?;
        let log = File::options().append(true).create(true).open(log)?;
        let start = |answer| Job::StartProgram(arguments, log, answer);
        let (pid, stdout) = host.ask(start).await?;
        self.director = Some(pid);
        let ready = tokio::time::timeout(READY_TIMEOUT, async {
            stdout
                .await
                .map_err(|_| io::Error::other("the director ended before it was ready"))
        });
        let waited = ready.await.unwrap_or_else(|_| {
            let text = format!("the director did not say {READY_LINE:?} within {READY_TIMEOUT:?}");
            Err(io::Error::new(ErrorKind::TimedOut, text))
        });
        if let Err(error) = waited {
            self.stop_director().await;
            return Err(error);
        }
        let late = host.host.late.clone();
        host.ask(|answer| Job::Wire(late, answer)).await
    }

    async fn load(&mut self, load: Load) -> io::Result<LoadReport> {
        let had_director = self.director.is_some();
        let client = host_with(&self.hosts, Role::Client)?;
        let mut report = std::pin::pin!(client.ask(|answer| Job::Load(load, answer)));
        loop {
            tokio::select! {
                report = &mut report => return report,
                _ = self.ended.recv() => reap(&mut self.director),
            }
            if had_director && self.director.is_none() {
                return Err(io::Error::other(
                    "the director ended before the requests did",
                ));
            }
        }
    }

    async fn visit(&self, name: &str, visit: Visit) -> io::Result<VisitReport> {
        let host = self.hosts.iter().find(|host| host.host.name == name);
        let host = host.ok_or_else(|| io::Error::other(format!("this lab has no host {name}")))?;
        host.ask(|answer| Job::Visit(visit, answer)).await
    }

    fn keep(&mut self) -> io::Result<()> {
        netns::die_with_parent(false)?;
        self.kept = true;
        Ok(())
    }

    /// Stops the director with SIGTERM, or by force. Gives back what was wrong with that.
    async fn stop_director(&mut self) -> Option<String> {
        let pid = self.director?;
        reap(&mut self.director);
        if self.director.is_none() {
            return Some("the director had ended by itself; see its log".to_string());
        }
        kill(pid, libc::SIGTERM);
        let all = tokio::time::timeout(STOP_TIMEOUT, async {
            loop {
                self.ended.recv().await;
                match reap_one(pid) {
                    Some(0) => return None,
                    Some(status) => return Some(format!("the director stopped with {status}")),
                    None => {}
                }
            }
        });
        let wrong = all.await.unwrap_or_else(|_| {
            kill(pid, libc::SIGKILL);
            Some(format!("the director did not stop within {STOP_TIMEOUT:?}"))
        });
        self.director = None;
        wrong
    }
}

/// Takes leave of what has ended: as process 1 we inherit every orphan of the lab.
fn reap(director: &mut Option<i32>) {
    loop {
        // SAFETY: waitpid with a null status only takes leave.
        let pid = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
        if pid <= 0 {
            return;
        }
        if *director == Some(pid) {
            eprintln!("the director, process {pid} of the lab, has ended");
            *director = None;
        }
    }
}

fn kill(pid: i32, number: i32) {
    // SAFETY: kill takes two numbers. The process is our child and not reaped yet, so the number is
    // still its own.
    unsafe { libc::kill(pid, number) };
}

/// The status of a child that has ended: its exit code, or 128 and the signal.
fn reap_one(pid: i32) -> Option<i32> {
    let mut status = 0;
    // SAFETY: waitpid writes one number that lives on this stack.
    let reaped = unsafe { libc::waitpid(pid, &raw mut status, libc::WNOHANG) } == pid;
    let code = match libc::WIFEXITED(status) {
        true => libc::WEXITSTATUS(status),
        false => 128 + libc::WTERMSIG(status),
    };
    reaped.then_some(code)
}

fn host_with(hosts: &[HostThread], role: Role) -> io::Result<&HostThread> {
    let found = hosts.iter().find(|host| host.host.role == role);
    found.ok_or_else(|| io::Error::other(format!("this lab has no {role:?}")))
}

/// What a host is told. Each job carries where its answer goes.
enum Job {
    Configure(Done<()>),
    Wire(Wiring, Done<()>),
    Serve(u16, bool, Done<()>),
    TellCallers(u16, bool, Done<()>),
    Unwrap(Done<()>),
    ServeProgram(u16, Vec<String>, Done<()>),
    Load(Load, Done<LoadReport>),
    Visit(Visit, Done<VisitReport>),
    StartProgram(Vec<String>, File, Done<(i32, oneshot::Receiver<()>)>),
}

type Done<T> = oneshot::Sender<io::Result<T>>;

/// A host: a thread in namespaces of its own.
struct HostThread {
    host: Host,
    namespaces: HostNamespaces,
    jobs: mpsc::Sender<Job>,
}

impl HostThread {
    /// Gives the host a job at once; what comes back is to be awaited.
    fn ask<T>(&self, job: impl FnOnce(Done<T>) -> Job) -> impl Future<Output = io::Result<T>> {
        let lost = io::Error::other(format!("the thread of {} has ended", self.host.name));
        let (done, answer) = oneshot::channel();
        let taken = self.jobs.try_send(job(done)).is_ok();
        async move {
            match taken {
                true => answer.await.unwrap_or(Err(lost)),
                false => Err(lost),
            }
        }
    }
}

type Started = oneshot::Receiver<io::Result<HostThread>>;

/// Starts a host's thread. It enters new namespaces before it does anything else.
fn start_host(host: &Host, machine: u64) -> io::Result<Started> {
    let (started, receiver) = oneshot::channel();
    let host = host.clone();
    let thread = std::thread::Builder::new().name(host.name.clone());
    thread.spawn(move || {
        let entered = netns::enter_new_host(&host.name, machine);
        let entered = entered.and_then(|(inside, namespaces)| {
            set_sysctls(&inside, &host.sysctls)?;
            Ok((inside, namespaces, runtime()?))
        });
        match entered {
            Err(error) => {
                let text = format!("making the host {}: {error}", host.name);
                let _ = started.send(Err(io::Error::new(error.kind(), text)));
            }
            Ok((inside, namespaces, runtime)) => {
                let (jobs, todo) = mpsc::channel(JOBS_MAX);
                let thread = HostThread {
                    host: host.clone(),
                    namespaces,
                    jobs,
                };
                if started.send(Ok(thread)).is_ok() {
                    runtime.block_on(run_host(&host, &inside, todo));
                }
            }
        }
    })?;
    Ok(receiver)
}

async fn run_host(host: &Host, inside: &Inside, mut todo: mpsc::Receiver<Job>) {
    while let Some(job) = todo.recv().await {
        // If nobody waits for an answer any more, nobody misses it.
        match job {
            Job::Configure(done) => {
                let _ = done.send(configure(host, inside).await);
            }
            Job::Wire(wiring, done) => {
                let _ = done.send(wire(inside, &wiring).await);
            }
            Job::Serve(port, v6, done) => {
                let server = Server::bind(inside, &host.name, port, v6);
                let _ = done.send(server.map(|server| drop(tokio::spawn(server.run()))));
            }
            Job::TellCallers(port, v6, done) => {
                let _ = done.send(visit::tell_callers(inside, &host.name, port, v6).await);
            }
            Job::ServeProgram(port, words, done) => {
                let _ = done.send(serve_program(inside, port, words).await);
            }
            Job::Unwrap(done) => {
                let _ = done.send(decap::start(inside).await);
            }
            Job::Visit(visit, done) => {
                let _ = done.send(Ok(visit.run(inside).await));
            }
            Job::Load(load, done) => {
                let _ = done.send(Ok(load.run(inside).await));
            }
            Job::StartProgram(arguments, log, done) => {
                let _ = done.send(start_program(&arguments, log));
            }
        }
    }
}

async fn configure(host: &Host, inside: &Inside) -> io::Result<()> {
    // The loopback is up when it is taken up, and never says so.
    let names = host.interfaces.iter().map(|interface| &interface.name);
    let names: Vec<String> = names.filter(|name| *name != "lo").cloned().collect();
    let configured = async {
        Network::open(inside)?.configure(inside, host).await?;
        wait_until_up(inside, &names).await
    };
    let in_host =
        |error: io::Error| io::Error::new(error.kind(), format!("in {}: {error}", host.name));
    configured.await.map_err(in_host)
}

async fn wire(inside: &Inside, wiring: &Wiring) -> io::Result<()> {
    Network::open(inside)?.wire(inside, wiring).await
}

/// Starts this program in the namespaces of the calling thread, and tells when it is ready.
fn start_program(arguments: &[String], log: File) -> io::Result<(i32, oneshot::Receiver<()>)> {
    let mut child = Command::new("/proc/self/exe")
        .arg0("ulvs")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log.try_clone()?)
        .spawn()?;
    let stdout = child.stdout.take().expect("its stdout is a pipe");
    let stdout = pipe::Receiver::from_owned_fd(stdout.into())?;
    let (ready, receiver) = oneshot::channel();
    tokio::spawn(follow(stdout, log, ready));
    let pid = i32::try_from(child.id()).expect("a process id has 31 bits");
    Ok((pid, receiver))
}

/// Copies what a program prints to its log until it ends, and tells when it says that it is ready.
async fn follow(stdout: pipe::Receiver, mut log: File, ready: oneshot::Sender<()>) {
    let mut lines = BufReader::new(stdout).lines();
    let mut ready = Some(ready);
    while let Ok(Some(line)) = lines.next_line().await {
        if line == READY_LINE {
            let _ = ready.take().map(|ready| ready.send(()));
        }
        let _ = writeln!(log, "{line}");
    }
}

/// Listens on `port` and starts a program for each connection, which is its standard input and output,
/// as inetd(8) does. It ends with its connection, or with the lab.
async fn serve_program(_: &Inside, port: u16, words: Vec<String>) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Err(error) = start_for(stream, &words) {
                eprintln!("{}: {error}", words[0]);
            }
        }
    });
    Ok(())
}

fn start_for(stream: TcpStream, words: &[String]) -> io::Result<()> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    let (input, output) = (OwnedFd::from(stream.try_clone()?), OwnedFd::from(stream));
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]).stdin(input).stdout(output);
    // The keeper takes leave of it when it has ended.
    command.stderr(Stdio::null()).spawn().map(drop)
}
