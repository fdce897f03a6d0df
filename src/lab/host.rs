//! The people in a lab: a small real web server, and a client that asks it. Both speak HTTP/1.1
//! (RFC 9112) over the TCP of the kernel of their namespace, and both want proof that they are in
//! one.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::netns::Inside;
use crate::rng::Rng;
use crate::stats::Histogram;

/// Longest head of a request or an answer.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Connections a server keeps open at once; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 8 * 1024;
/// How long a server waits for a request, or for its client to take what it sends.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client waits for one answer. The kernel sends a lost SYN again after 1 and 3 s.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// The content of `/bytes/N` repeats after this many bytes: a prime, so that a block that was lost
/// or doubled shifts what follows.
const PATTERN_BYTES: usize = 1_048_573;
/// What a server hands to the kernel at once.
const WRITE_BYTES: usize = 256 * 1024;
/// Source ports of the client: every connection has one of its own for as long as that goes.
const SOURCE_PORTS: std::ops::Range<u16> = 10_000..60_000;
/// After so many failures in a row the rest is not tried any more and counts as failed.
const FAILURES_IN_A_ROW_MAX: u64 = 32;
/// Kinds of failure a report tells apart.
const ERRORS_MAX: usize = 8;

/// A web server of one host, listening.
#[derive(Debug)]
pub struct Server {
    name: String,
    listener: TcpListener,
    pattern: Arc<Vec<u8>>,
}

impl Server {
    /// Listens on `port` of every address of this host.
    ///
    /// # Errors
    /// When the port is taken, or is below 1024 and we may not have it.
    pub fn bind(_: &Inside, name: &str, port: u16, v6: bool) -> io::Result<Server> {
        let socket = if v6 {
            TcpSocket::new_v6()
        } else {
            TcpSocket::new_v4()
        }?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(unspecified(v6), port))?;
        Ok(Server {
            name: name.to_string(),
            listener: socket.listen(4096)?,
            pattern: Arc::new(pattern()),
        })
    }

    /// Serves until the runtime ends. `/` says who serves whom, `/health` says OK, `/bytes/N` gives
    /// N bytes that are always the same.
    pub async fn run(self) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let Ok((stream, peer)) = self.listener.accept().await else {
                // Out of descriptors: somebody must leave first.
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            let (name, pattern) = (self.name.clone(), Arc::clone(&self.pattern));
            tokio::spawn(async move {
                // A client that breaks off is not the server's trouble.
                let _ = answer_connection(stream, peer, &name, &pattern).await;
                drop(place);
            });
        }
    }
}

pub(super) fn unspecified(v6: bool) -> IpAddr {
    if v6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    }
}

/// The bytes that `/bytes/N` repeats.
pub(super) fn pattern() -> Vec<u8> {
    let mut rng = Rng::new(0x756c_7673);
    let words = std::iter::repeat_with(|| rng.next_u64().to_le_bytes());
    words.flatten().take(PATTERN_BYTES).collect()
}

async fn answer_connection(
    mut stream: TcpStream,
    peer: SocketAddr,
    name: &str,
    pattern: &[u8],
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let read = timeout(IDLE_TIMEOUT, read_head(&mut stream, &mut buffer));
        let Ok(Some(head_bytes)) = read.await? else {
            return Ok(());
        };
        let request = Request::parse(&buffer[..head_bytes]);
        buffer.drain(..head_bytes);
        let keep_alive = request.as_ref().is_ok_and(|request| request.keep_alive);
        let answer = Answer::to(&request, name, peer.ip());
        let mut bytes = answer.head(name, keep_alive).into_bytes();
        let wants_body = request.is_ok_and(|request| !request.head_only);
        if wants_body {
            bytes.extend_from_slice(answer.text.as_bytes());
        }
        timeout(IDLE_TIMEOUT, stream.write_all(&bytes)).await??;
        if wants_body && answer.text.is_empty() {
            send_pattern(&mut stream, pattern, answer.length).await?;
        }
        if !keep_alive {
            // The server closes first, so TIME_WAIT stays here and not with the client's ports.
            return stream.shutdown().await;
        }
    }
}

/// Reads until the empty line; gives the length of the head, or nothing at the end of the stream.
pub(super) async fn read_head(
    stream: &mut TcpStream,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<usize>> {
    loop {
        if let Some(at) = buffer.windows(4).position(|four| four == b"\r\n\r\n") {
            return Ok(Some(at + 4));
        }
        if buffer.len() > HEAD_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::InvalidData, "head too long"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn send_pattern(stream: &mut TcpStream, pattern: &[u8], length: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < length {
        let from = (sent % PATTERN_BYTES as u64) as usize;
        let left = usize::try_from(length - sent).unwrap_or(usize::MAX);
        let part = &pattern[from..(from + left.min(WRITE_BYTES)).min(PATTERN_BYTES)];
        timeout(IDLE_TIMEOUT, stream.write_all(part)).await??;
        sent += part.len() as u64;
    }
    Ok(())
}

struct Request {
    path: String,
    head_only: bool,
    keep_alive: bool,
}

impl Request {
    /// Reads a head; the error is the status to answer with.
    fn parse(head: &[u8]) -> Result<Request, &'static str> {
        const BAD: &str = "400 Bad Request";
        let head = std::str::from_utf8(head).map_err(|_| BAD)?;
        let mut lines = head.split("\r\n");
        let mut words = lines.next().unwrap_or("").split(' ');
        let (Some(method), Some(path), Some(version)) = (words.next(), words.next(), words.next())
        else {
            return Err(BAD);
        };
        let mut keep_alive = match version {
            "HTTP/1.1" => true,
            "HTTP/1.0" => false,
            _ => return Err("505 HTTP Version Not Supported"),
        };
        let head_only = match method {
            "GET" => false,
            "HEAD" => true,
            _ => return Err("405 Method Not Allowed"),
        };
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "connection" if value.eq_ignore_ascii_case("close") => keep_alive = false,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => keep_alive = true,
                // Nobody may hide a second request in a body that we do not read.
                "transfer-encoding" => return Err(BAD),
                "content-length" if value != "0" => return Err(BAD),
                _ => {}
            }
        }
        Ok(Request {
            path: path.to_string(),
            head_only,
            keep_alive,
        })
    }
}

/// What is sent back: a text, or `length` bytes of the pattern.
struct Answer {
    status: &'static str,
    text: String,
    length: u64,
}

impl Answer {
    fn to(request: &Result<Request, &'static str>, name: &str, client: IpAddr) -> Answer {
        let (status, text) = match request {
            Err(status) => (*status, format!("{status}\n")),
            Ok(request) => match request.path.as_str() {
                "/" => ("200 OK", format!("{name} {client}\n")),
                "/health" => ("200 OK", "OK\n".to_string()),
                path => match path.strip_prefix("/bytes/").map(str::parse) {
                    Some(Ok(length)) => {
                        return Answer {
                            status: "200 OK",
                            text: String::new(),
                            length,
                        };
                    }
                    _ => ("404 Not Found", "nothing here\n".to_string()),
                },
            },
        };
        Answer {
            status,
            length: text.len() as u64,
            text,
        }
    }

    fn head(&self, name: &str, keep_alive: bool) -> String {
        let connection = if keep_alive { "keep-alive" } else { "close" };
        format!(
            "HTTP/1.1 {}\r\nServer: {name}\r\nContent-Length: {}\r\n\
             Connection: {connection}\r\n\r\n",
            self.status, self.length
        )
    }
}

/// Requests to send: one TCP connection each, opened once, never again.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Load {
    /// How many.
    pub requests: u64,
    /// How many at once.
    pub at_once: u16,
    /// Whom to ask: by turns, if there are several.
    pub targets: Vec<SocketAddr>,
    /// The path to ask for.
    pub path: String,
}

/// What became of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadReport {
    /// Requests asked for.
    pub requests: u64,
    /// Requests without a whole answer 200.
    pub failed: u64,
    /// Answers by the name of the server.
    pub served: BTreeMap<String, u64>,
    /// Why requests failed, and how many for that reason.
    pub errors: BTreeMap<String, u64>,
    /// From the first request to the last answer, in microseconds.
    pub took_us: u64,
    /// Latency from connect to the end of the answer, in microseconds: half are quicker.
    pub p50_us: u64,
    /// 99 of 100 are quicker.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

impl Load {
    /// Sends the requests and waits for all answers, but not longer than they may take.
    pub async fn run(self, _: &Inside) -> LoadReport {
        let start = Instant::now();
        let (load, shared) = (Arc::new(self), Arc::new(Shared::default()));
        let mut lanes = JoinSet::new();
        for _ in 0..load.at_once.max(1) {
            lanes.spawn(Arc::clone(&load).run_lane(Arc::clone(&shared)));
        }
        let mut report = LoadReport::default();
        let mut latencies = Histogram::new();
        while let Some(lane) = lanes.join_next().await {
            // A lane ends early only by a mistake of ours.
            let (part, times) = lane.expect("lanes are not cancelled");
            latencies.merge(&times);
            report.requests += part.requests;
            report.failed += part.failed;
            for (name, count) in part.served {
                *report.served.entry(name).or_default() += count;
            }
            for (reason, count) in part.errors {
                count_error(&mut report.errors, reason, count);
            }
        }
        report.took_us = nanos(start.elapsed()) / 1000;
        report.p50_us = latencies.p50() / 1000;
        report.p99_us = latencies.p99() / 1000;
        report.max_us = latencies.max() / 1000;
        report
    }

    async fn run_lane(self: Arc<Load>, shared: Arc<Shared>) -> (LoadReport, Histogram) {
        let mut report = LoadReport::default();
        let mut latencies = Histogram::new();
        loop {
            let number = shared.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.requests {
                return (report, latencies);
            }
            report.requests += 1;
            if shared.is_hopeless() {
                report.failed += 1;
                count_error(&mut report.errors, "not tried any more".to_string(), 1);
                continue;
            }
            let target = self.targets[(number % self.targets.len() as u64) as usize];
            let start = Instant::now();
            let asked = timeout(REQUEST_TIMEOUT, ask_once(target, &self.path, number)).await;
            match asked.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into())) {
                Ok(server) => {
                    latencies.record(nanos(start.elapsed()));
                    shared.failures_in_a_row.store(0, Ordering::Relaxed);
                    *report.served.entry(server).or_default() += 1;
                }
                Err(error) => {
                    report.failed += 1;
                    shared.failures_in_a_row.fetch_add(1, Ordering::Relaxed);
                    count_error(&mut report.errors, error.to_string(), 1);
                }
            }
        }
    }
}

/// What the lanes of a load know of each other.
#[derive(Default)]
struct Shared {
    next: AtomicU64,
    failures_in_a_row: AtomicU64,
}

impl Shared {
    fn is_hopeless(&self) -> bool {
        self.failures_in_a_row.load(Ordering::Relaxed) >= FAILURES_IN_A_ROW_MAX
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

fn count_error(errors: &mut BTreeMap<String, u64>, reason: String, count: u64) {
    let known = errors.len() < ERRORS_MAX || errors.contains_key(&reason);
    let reason = if known { reason } else { "other".to_string() };
    *errors.entry(reason).or_default() += count;
}

/// One connection, one request, one answer; gives the name of the server.
async fn ask_once(target: SocketAddr, path: &str, number: u64) -> io::Result<String> {
    let socket = bind_source(target.is_ipv6(), number)?;
    let mut stream = socket.connect(target).await?;
    stream.set_nodelay(true)?;
    stream
        .write_all(request_head(target, path).as_bytes())
        .await?;
    let mut buffer = Vec::with_capacity(1024);
    let head_bytes = read_head(&mut stream, &mut buffer).await?;
    let head_bytes = head_bytes.ok_or(ErrorKind::UnexpectedEof)?;
    let (server, length) = read_answer_head(&buffer[..head_bytes])?;
    let mut got = (buffer.len() - head_bytes) as u64;
    loop {
        buffer.clear();
        match stream.read_buf(&mut buffer).await? {
            0 => break,
            more => got += more as u64,
        }
    }
    if got != length {
        return Err(io::Error::new(
            ErrorKind::InvalidData,
            "answer of wrong length",
        ));
    }
    Ok(server)
}

/// A socket with a source port that no other request of this load has had lately: what the director
/// still remembers of an old connection cannot touch a new one.
fn bind_source(v6: bool, number: u64) -> io::Result<TcpSocket> {
    let ports = u64::from(SOURCE_PORTS.end - SOURCE_PORTS.start);
    // Ports that others of this host listen on or use are passed over; that sends nothing.
    for other in 0..100 {
        let socket = if v6 {
            TcpSocket::new_v6()
        } else {
            TcpSocket::new_v4()
        }?;
        let port = SOURCE_PORTS.start + ((number + other * 251) % ports) as u16;
        match socket.bind(SocketAddr::new(unspecified(v6), port)) {
            Err(error) if error.kind() == ErrorKind::AddrInUse => {}
            bound => return bound.map(|()| socket),
        }
    }
    Err(ErrorKind::AddrInUse.into())
}

pub(super) fn request_head(target: SocketAddr, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n")
}

/// Server and content length of an answer 200.
pub(super) fn read_answer_head(head: &[u8]) -> io::Result<(String, u64)> {
    let bad = |text: String| io::Error::new(ErrorKind::InvalidData, text);
    let head = std::str::from_utf8(head).map_err(|error| bad(error.to_string()))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or("");
    if !status.starts_with("HTTP/1.1 200 ") {
        return Err(bad(format!("answer: {status}")));
    }
    let (mut server, mut length) = (None, None);
    for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
        match name {
            "Server" => server = Some(value.to_string()),
            "Content-Length" => length = value.parse().ok(),
            _ => {}
        }
    }
    server
        .zip(length)
        .ok_or_else(|| bad("answer without Server or Content-Length".to_string()))
}

/// Fetches one page from inside a lab and writes its content to `out`: for people whose machine has
/// no curl.
///
/// # Errors
/// When the connection fails, the answer is not 200, or it ends too early.
pub fn fetch(_: &Inside, target: SocketAddr, path: &str, out: &mut dyn Write) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let connect = timeout(REQUEST_TIMEOUT, TcpStream::connect(target));
        let mut stream = connect.await??;
        stream
            .write_all(request_head(target, path).as_bytes())
            .await?;
        let mut buffer = Vec::with_capacity(WRITE_BYTES);
        let head = timeout(IDLE_TIMEOUT, read_head(&mut stream, &mut buffer)).await??;
        let head_bytes = head.ok_or(ErrorKind::UnexpectedEof)?;
        let (_, length) = read_answer_head(&buffer[..head_bytes])?;
        buffer.drain(..head_bytes);
        let mut got = 0;
        loop {
            out.write_all(&buffer)?;
            got += buffer.len() as u64;
            buffer.clear();
            if timeout(IDLE_TIMEOUT, stream.read_buf(&mut buffer)).await?? == 0 {
                break;
            }
        }
        out.flush()?;
        if got == length {
            Ok(())
        } else {
            Err(ErrorKind::UnexpectedEof.into())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_as_they_are_meant() {
        let parse = |text: &str| Request::parse(text.as_bytes());
        assert!(
            parse("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap()
                .keep_alive
        );
        assert!(
            !parse("GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                .unwrap()
                .keep_alive
        );
        assert!(!parse("GET / HTTP/1.0\r\n\r\n").unwrap().keep_alive);
        assert!(
            parse("GET / HTTP/1.0\r\nconnection: Keep-Alive\r\n\r\n")
                .unwrap()
                .keep_alive
        );
        assert!(parse("HEAD /x HTTP/1.1\r\n\r\n").unwrap().head_only);
        for bad in [
            "\r\n\r\n",
            "GET\r\n\r\n",
            "GET / HTTP/2\r\n\r\n",
            "POST / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
            "GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_request_has_a_port_of_its_own() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        let _entered = runtime.as_ref().unwrap().enter();
        // Binding sends nothing, so this may run on the machine itself.
        let first = bind_source(false, 7).unwrap();
        let second = bind_source(false, 7).unwrap();
        assert_ne!(
            first.local_addr().unwrap().port(),
            second.local_addr().unwrap().port()
        );
    }

    #[test]
    fn failures_are_told_apart_but_not_without_bound() {
        let mut errors = BTreeMap::new();
        for number in 0..100 {
            count_error(&mut errors, format!("error {number}"), 1);
        }
        assert!(errors.len() <= ERRORS_MAX + 1);
        assert_eq!(errors.values().sum::<u64>(), 100);
    }
}
