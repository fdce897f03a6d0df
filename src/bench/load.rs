//! Load, and those who count it: what runs inside the hosts of a lab, each as a process of its own. The
//! receiver counts, by its own clock; what a sender says of itself is only told beside.

use std::fs;
use std::io::{self, BufRead, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::lab::flood::Outlet;
use crate::lab::netns::Inside;
use crate::lab::stay;
use crate::nic::{self, Backend, OpenOptions, Side};
use crate::wire::checksum::{Sum, pseudo_header};
use crate::wire::{FrameView, Mac, Offload, Rx, Tx};

/// Port of the web server of the lab's real server.
pub const WEB_PORT: u16 = 80;
/// Where TCP streams are swallowed.
pub const BULK_PORT: u16 = 5001;
/// Where every byte is sent back (RFC 862).
pub const ECHO_PORT: u16 = 7;
/// The same, by a process that is pinned to the processor of a director.
pub const PONG_PORT: u16 = 8;
/// Where datagrams are counted and thrown away (RFC 863).
pub const FRAMES_PORT: u16 = 9;

/// Longest run of any load, in seconds.
pub const SECONDS_MAX: f64 = 120.0;
/// Most streams of a bulk load.
pub const STREAMS_MAX: usize = 64;
/// Connections the ends serve at once; each has a thread.
pub const CONNECTIONS_MAX: usize = 12_000;
/// What a stream hands to the kernel at once, and takes from it.
const BLOCK_BYTES: usize = 128 * 1024;
/// What a thread of the ends needs: it only hands bytes on.
const STACK_BYTES: usize = 256 * 1024;
/// Shortest wait that is left to the kernel; below, the clock is watched.
const SLEEP_MIN: Duration = Duration::from_micros(200);

/// The line with which a load says that it goes on.
pub const SENDING: &str = "sending";

/// What the ends have counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// When, in nanoseconds of a clock of theirs.
    pub at_ns: u64,
    /// Bytes of TCP streams that were read.
    pub bytes: u64,
    /// Datagrams with a right checksum that came to a socket.
    pub datagrams: u64,
}

/// The ends: everything that a real server does in a measurement but web pages and echoes.
///
/// # Errors
/// When a port is taken.
pub fn ends(_: &Inside) -> io::Result<()> {
    let everywhere = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let _frames = full_socket(FRAMES_PORT)?;
    let bytes = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&bytes);
    serve(TcpListener::bind(everywhere(BULK_PORT))?, move |stream| {
        swallow(stream, &counter)
    })?;
    let start = Instant::now();
    say("ready")?;
    for line in io::stdin().lines() {
        line?;
        let counts = Counts {
            bytes: bytes.load(Relaxed),
            datagrams: datagrams()?,
            at_ns: nanos(start.elapsed()),
        };
        say(&serde_json::to_string(&counts)?)?;
    }
    Ok(())
}

/// Datagrams that fill any queue, at most.
const FILLING_MAX: u32 = 1_000_000;
/// The queue is full when so many in a row were thrown away.
const THROWN_AWAY: u64 = 16;

/// A socket that is never read and whose queue is full: whatever comes, the kernel looks at it as at any
/// datagram, counts it and forgets it. It is filled over the loopback.
fn full_socket(port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    let filler = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    filler.connect((Ipv4Addr::LOCALHOST, port))?;
    let before = datagrams()?;
    for number in 0..FILLING_MAX {
        filler.send(&[0; FRAME_BYTES - UDP_AT - 8])?;
        if number % 64 == 0 && datagrams()? >= before + THROWN_AWAY {
            return Ok(socket);
        }
    }
    Err(io::Error::other("a queue of datagrams that does not fill"))
}

/// Sends everything back that comes to a port, until its input ends.
///
/// # Errors
/// When the port is taken.
pub fn echo(_: &Inside, port: u16) -> io::Result<()> {
    stay::allow_files(CONNECTIONS_MAX as u64 + 100);
    let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    serve(TcpListener::bind(everywhere)?, send_back)?;
    say("ready")?;
    io::stdin().read_line(&mut String::new()).map(drop)
}

/// A thread for each connection, as long as there are not too many.
fn serve(
    listener: TcpListener,
    answer: impl Fn(&mut TcpStream) -> io::Result<()> + Clone + Send + 'static,
) -> io::Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            if open.fetch_add(1, Relaxed) >= CONNECTIONS_MAX {
                open.fetch_sub(1, Relaxed);
                continue;
            }
            let (answer, place) = (answer.clone(), Arc::clone(&open));
            let started = thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn(move || {
                    // Who breaks off is not our trouble.
                    let _ = answer(&mut stream);
                    place.fetch_sub(1, Relaxed);
                });
            if started.is_err() {
                open.fetch_sub(1, Relaxed);
            }
        }
    };
    thread::Builder::new().spawn(accept).map(drop)
}

fn swallow(stream: &mut TcpStream, bytes: &AtomicU64) -> io::Result<()> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(()),
            count => bytes.fetch_add(count as u64, Relaxed),
        };
    }
}

fn send_back(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut block = [0; 4096];
    loop {
        match stream.read(&mut block)? {
            0 => return Ok(()),
            count => stream.write_all(&block[..count])?,
        }
    }
}

/// Datagrams that came to a socket of this host, read or thrown away because nobody reads: RFC 4113 and
/// `UDP_MIB_RCVBUFERRORS`. What has a wrong checksum is not among them.
fn datagrams() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/net/snmp")?;
    count_datagrams(&text).ok_or_else(|| io::Error::other("/proc/net/snmp has no line Udp"))
}

fn count_datagrams(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let pairs = names.split(' ').zip(values.split(' '));
    let wanted = pairs.filter(|(name, _)| ["InDatagrams", "RcvbufErrors"].contains(name));
    wanted.map(|(_, value)| value.parse::<u64>().ok()).sum()
}

/// Fills streams to a target for so long.
///
/// # Errors
/// When a stream cannot be opened.
pub fn bulk(_: &Inside, target: SocketAddr, streams: usize, seconds: f64) -> io::Result<()> {
    let connect = |_| TcpStream::connect_timeout(&target, Duration::from_secs(5));
    let opened: io::Result<Vec<TcpStream>> =
        (0..streams.clamp(1, STREAMS_MAX)).map(connect).collect();
    let end = Instant::now() + duration(seconds);
    let threads: Vec<_> = opened?
        .into_iter()
        .map(|stream| thread::spawn(move || fill(stream, end)))
        .collect();
    say(SENDING)?;
    for thread in threads {
        thread.join().expect("no panic in there")?;
    }
    Ok(())
}

fn fill(mut stream: TcpStream, end: Instant) -> io::Result<()> {
    let block = vec![0x55; BLOCK_BYTES];
    // Somebody in between may have stopped to read.
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    while Instant::now() < end {
        match stream.write(&block) {
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// UDP frames to send.
#[derive(Clone, Copy, Debug)]
pub struct Frames {
    /// Address and port they are for.
    pub target: SocketAddrV4,
    /// The neighbour who gets them.
    pub via: Ipv4Addr,
    /// How many in a second; as many as go if left out.
    pub per_second: Option<f64>,
    /// For how long.
    pub seconds: f64,
    /// At most so many; without a bound if left out.
    pub frames: Option<u64>,
    /// Different source addresses and ports, at most [`FLOWS_MAX`].
    pub flows: u32,
}

/// Most flows of one sender: each has its frame in memory.
pub const FLOWS_MAX: u32 = 2_000_000;
/// Source ports of one address.
const PORTS: std::ops::Range<u32> = 1024..65_535;
/// Source addresses beyond the sender's own count on from here. Nobody answers to them.
const STRANGERS: u32 = u32::from_be_bytes([10, 128, 0, 0]);

/// What a sender of frames says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FramesReport {
    /// Frames the interface took.
    pub sent: u64,
    /// Frames it would not take.
    pub refused: u64,
    /// For how long, in seconds.
    pub took_s: f64,
}

/// An Ethernet frame of the least length, without its check sequence.
const FRAME_BYTES: usize = 60;
const IP_AT: usize = 14;
const UDP_AT: usize = IP_AT + 20;
const UDP: u8 = 17;
/// Frames handed over at once when as many as go are wanted. At a rate it is what is due.
const BATCH: usize = nic::BATCH_FRAMES_MAX;

impl Frames {
    /// Sends them.
    ///
    /// # Errors
    /// When the neighbour is not there, or the interface cannot be opened.
    pub fn run(&self, inside: &Inside) -> io::Result<FramesReport> {
        let Outlet { mut tx, macs, own } = Outlet::towards(inside, self.via)?;
        let frames: Vec<_> = (0..self.flows.clamp(1, FLOWS_MAX))
            .map(|flow| frame(macs, source(own, flow), self.target))
            .collect();
        let mut ring = frames.iter().cycle();
        let (start, length) = (Instant::now(), duration(self.seconds));
        say(SENDING)?;
        let mut report = FramesReport::default();
        while start.elapsed() < length {
            let done = report.sent + report.refused;
            let left = self.frames.unwrap_or(u64::MAX).saturating_sub(done);
            if left == 0 {
                break;
            }
            let count = match self.per_second {
                None => BATCH,
                Some(rate) => {
                    let due = (start.elapsed().as_secs_f64() * rate) as u64;
                    if due <= done {
                        rest(Duration::from_secs_f64((done + 1) as f64 / rate), start);
                        continue;
                    }
                    // Who is late sends more at once, up to a batch: the rate is kept.
                    (due - done).min(BATCH as u64) as usize
                }
            };
            let count = left.min(count as u64) as usize;
            let views = ring.by_ref().take(count).map(|frame| FrameView {
                bytes: frame,
                offload: Offload::default(),
                raw_ip: false,
            });
            let sent = tx.send(&mut { views });
            report.sent += sent.taken as u64;
            report.refused += sent.refused as u64;
        }
        report.took_s = start.elapsed().as_secs_f64();
        Ok(report)
    }
}

/// Where the frames of a flow come from.
fn source(own: Ipv4Addr, flow: u32) -> SocketAddrV4 {
    let ports = PORTS.end - PORTS.start;
    let address = match flow / ports {
        0 => own,
        number => Ipv4Addr::from(STRANGERS + number),
    };
    SocketAddrV4::new(address, (PORTS.start + flow % ports) as u16)
}

fn frame((to, from): (Mac, Mac), source: SocketAddrV4, target: SocketAddrV4) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    let [high, low] = ((FRAME_BYTES - IP_AT) as u16).to_be_bytes();
    // Version and header length; do not fragment; TTL 64.
    frame[IP_AT..IP_AT + 10].copy_from_slice(&[0x45, 0, high, low, 0, 0, 0x40, 0, 64, UDP]);
    frame[IP_AT + 12..IP_AT + 16].copy_from_slice(&source.ip().octets());
    frame[IP_AT + 16..UDP_AT].copy_from_slice(&target.ip().octets());
    let sum = Sum::of(&frame[IP_AT..UDP_AT]).checksum();
    frame[IP_AT + 10..IP_AT + 12].copy_from_slice(&sum.to_be_bytes());
    frame[UDP_AT..UDP_AT + 2].copy_from_slice(&source.port().to_be_bytes());
    frame[UDP_AT + 2..UDP_AT + 4].copy_from_slice(&target.port().to_be_bytes());
    let length = ((FRAME_BYTES - UDP_AT) as u16).to_be_bytes();
    frame[UDP_AT + 4..UDP_AT + 6].copy_from_slice(&length);
    let ends = (IpAddr::V4(*source.ip()), IpAddr::V4(*target.ip()));
    let pseudo = pseudo_header(ends.0, ends.1, UDP, FRAME_BYTES - UDP_AT);
    let sum = Sum::of(&frame[UDP_AT..]).plus(pseudo).checksum();
    frame[UDP_AT + 6..UDP_AT + 8].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Hands frames from each of two interfaces to the other, as they are, until its input ends: what the
/// reading and the sending alone cost.
///
/// # Errors
/// When an interface cannot be opened, or the system refuses to wait.
pub fn forward(_: &Inside, backend: Backend) -> io::Result<()> {
    let open = |name: &str, side| {
        let options = OpenOptions {
            foreign_macs: true,
            ..OpenOptions::new(name, side)
        };
        nic::open(backend, &options).map_err(|error| io::Error::other(error.to_string()))
    };
    let (mut outer_rx, mut outer_tx) = open("eth0", Side::Public)?;
    let (mut inner_rx, mut inner_tx) = open("eth1", Side::Private)?;
    let fds = [&outer_rx, &inner_rx].map(|rx| rx.wait_fd());
    let fds: Vec<i32> = fds.into_iter().flatten().collect();
    say("forwarding")?;
    let ended = Arc::new(AtomicU64::new(0));
    let end = Arc::clone(&ended);
    thread::spawn(move || {
        // Nobody writes: this is the wait for the end.
        let _ = io::stdin().lock().read_line(&mut String::new());
        end.store(1, Relaxed);
    });
    while ended.load(Relaxed) == 0 {
        let passed = pass(&mut *outer_rx, &mut *inner_tx) + pass(&mut *inner_rx, &mut *outer_tx);
        if passed == 0 {
            nic::wait(&fds, Some(crate::time::Duration::from_secs(1)))?;
        }
    }
    Ok(())
}

fn pass(rx: &mut dyn Rx, tx: &mut dyn Tx) -> usize {
    // An interface that gives nothing now may give something later.
    let count = rx.fill().unwrap_or(0);
    if count > 0 {
        tx.send(&mut (0..count).map(|index| rx.view(index)));
        rx.release();
    }
    count
}

/// Sleeps or spins until `at` after `start`.
pub(super) fn rest(at: Duration, start: Instant) {
    let left = at.saturating_sub(start.elapsed());
    if left > SLEEP_MIN {
        sleep(left - SLEEP_MIN / 2);
    } else {
        std::hint::spin_loop();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a rate is time that passes, and so is a window"
)]
pub(super) fn sleep(time: Duration) {
    thread::sleep(time.min(duration(SECONDS_MAX)));
}

/// Seconds as people give them, within bounds.
pub(super) fn duration(seconds: f64) -> Duration {
    let finite = if seconds.is_finite() { seconds } else { 0.0 };
    Duration::from_secs_f64(finite.clamp(0.0, SECONDS_MAX))
}

/// The same without an upper bound that matters: how long a run will still take.
pub(super) fn duration_long(seconds: f64) -> Duration {
    Duration::from_secs(if seconds.is_finite() {
        seconds.clamp(0.0, 1e7) as u64
    } else {
        0
    })
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Prints a line at once.
///
/// # Errors
/// When nobody reads it.
pub fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Layout, Packet};

    #[test]
    fn every_frame_is_whole() {
        let macs = (Mac([2, 0, 0, 0, 1, 2]), Mac([2, 0, 0, 0, 1, 0x64]));
        let source = SocketAddrV4::new([1, 2, 3, 100].into(), 1024);
        let target = SocketAddrV4::new([1, 2, 3, 1].into(), FRAMES_PORT);
        let mut frame = frame(macs, source, target);
        let layout = Layout::parse(&frame, false).expect("well formed");
        let packet = Packet::over(&mut frame, layout, Offload::default());
        assert!(packet.transport_sum_holds());
        assert_eq!(
            (packet.source_port(), packet.target_port()),
            (1024, FRAMES_PORT)
        );
        assert_eq!(packet.target(), IpAddr::V4(*target.ip()));
    }

    #[test]
    fn every_flow_has_a_source_of_its_own() {
        let own = Ipv4Addr::new(1, 2, 3, 100);
        let sources: std::collections::BTreeSet<_> =
            (0..200_000).map(|flow| source(own, flow)).collect();
        assert_eq!(sources.len(), 200_000);
        assert_eq!(source(own, 0), SocketAddrV4::new(own, 1024));
    }

    #[test]
    fn datagrams_that_nobody_reads_are_counted() {
        let text = "Tcp: a b\nTcp: 1 2\n\
            Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors\n\
            Udp: 7 1 2 3 1000 5 6\nUdpLite: InDatagrams\nUdpLite: 99\n";
        assert_eq!(count_datagrams(text), Some(1007));
        assert_eq!(count_datagrams("Udp: InDatagrams\n"), None);
    }

    #[test]
    fn time_has_bounds() {
        assert_eq!(duration(f64::NAN), Duration::ZERO);
        assert_eq!(duration(-1.0), Duration::ZERO);
        assert_eq!(duration(1e30), Duration::from_secs(120));
    }
}
