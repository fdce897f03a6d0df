//! Somebody in a lab calls on a host: an echo request, a page, a datagram. And the host that is called
//! on, which tells every caller how it looks from there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::host;
use super::netns::Inside;

/// What the datagram asks.
const QUESTION: &[u8] = b"who am I?\n";
/// Identifier of our echo requests; the host has one caller.
const IDENT: u16 = 0x756c;
/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 4096;

/// Whom to call on, in three ways at once.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Visit {
    /// The host.
    pub target: IpAddr,
    /// Where it serves pages and answers datagrams.
    pub port: u16,
    /// How long to wait for each answer, in milliseconds.
    pub patience_ms: u64,
}

/// What came of it; what got no answer is left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VisitReport {
    /// Time of an echo, in microseconds.
    pub echo_us: Option<u64>,
    /// What the page said: the name of the host, and the address it sees.
    pub page: Option<String>,
    /// What the datagram said: the same, with the port.
    pub datagram: Option<String>,
}

impl VisitReport {
    /// How many of the three had an answer.
    pub fn answered(&self) -> usize {
        let all = [
            self.echo_us.is_some(),
            self.page.is_some(),
            self.datagram.is_some(),
        ];
        all.into_iter().filter(|answered| *answered).count()
    }
}

impl Visit {
    /// Calls in all three ways at the same time.
    pub async fn run(self, inside: &Inside) -> VisitReport {
        let patience = Duration::from_millis(self.patience_ms);
        let at = SocketAddr::new(self.target, self.port);
        let (echo, page, datagram) = tokio::join!(
            timeout(patience, echo(inside, self.target)),
            timeout(patience, page(at)),
            timeout(patience, datagram(at)),
        );
        VisitReport {
            echo_us: echo.ok().and_then(Result::ok),
            page: page.ok().and_then(Result::ok),
            datagram: datagram.ok().and_then(Result::ok),
        }
    }
}

async fn page(at: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect(at).await?;
    let head = host::request_head(at, "/");
    stream.write_all(head.as_bytes()).await?;
    let mut text = String::new();
    stream
        .take(ANSWER_BYTES_MAX)
        .read_to_string(&mut text)
        .await?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim());
    body.map(str::to_string)
        .ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn datagram(at: SocketAddr) -> io::Result<String> {
    let any: SocketAddr = match at {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(at).await?;
    socket.send(QUESTION).await?;
    let mut buffer = [0; 256];
    let count = socket.recv(&mut buffer).await?;
    Ok(String::from_utf8_lossy(&buffer[..count]).trim().to_string())
}

/// Sends one echo request and waits for its reply; gives back the time in microseconds.
async fn echo(_: &Inside, target: IpAddr) -> io::Result<u64> {
    let (domain, protocol, asks, replies) = match target {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8, 0),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129),
    };
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes numbers only, and gives back a descriptor that nobody else owns.
    let socket = unsafe {
        match libc::socket(domain, kind, protocol) {
            -1 => return Err(io::Error::last_os_error()),
            fd => OwnedFd::from_raw_fd(fd),
        }
    };
    // A raw socket is connected and used like one for datagrams.
    let socket = std::net::UdpSocket::from(socket);
    socket.connect(SocketAddr::new(target, 0))?;
    let [high, low] = IDENT.to_be_bytes();
    let mut request = [asks, 0, 0, 0, high, low, 0, 1];
    // The kernel makes the checksum of ICMPv6, not that of ICMP.
    let sum = crate::wire::checksum::Sum::of(&request).checksum();
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    let start = Instant::now();
    socket.send(&request)?;
    let socket = UdpSocket::from_std(socket)?;
    loop {
        let mut buffer = [0; 2048];
        let count = socket.recv(&mut buffer).await?;
        // IPv4 shows its header, IPv6 does not.
        let header = match target {
            IpAddr::V4(_) => usize::from(buffer[0] & 15) * 4,
            IpAddr::V6(_) => 0,
        };
        let message = &buffer[..count];
        let message = message.get(header..header + 8).unwrap_or_default();
        if message.first() == Some(&replies) && message[4..6] == [high, low] {
            let time = start.elapsed().as_micros();
            return Ok(u64::try_from(time).unwrap_or(u64::MAX));
        }
    }
}

/// Answers every datagram on `port` with the name of this host and how the caller looks from here,
/// until the runtime ends.
///
/// # Errors
/// When the port is taken.
pub async fn tell_callers(_: &Inside, name: &str, port: u16, v6: bool) -> io::Result<()> {
    let socket = UdpSocket::bind(SocketAddr::new(host::unspecified(v6), port)).await?;
    let name = name.to_string();
    tokio::spawn(async move {
        let mut buffer = [0; 256];
        loop {
            // An error is that of an earlier answer, which found nobody.
            if let Ok((_, caller)) = socket.recv_from(&mut buffer).await {
                let answer = format!("{name} {caller}\n");
                let _ = socket.send_to(answer.as_bytes(), caller).await;
            }
        }
    });
    Ok(())
}
