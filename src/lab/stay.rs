//! Clients that stay: many TCP connections of one host that ask for page after page until they are
//! told to end. Every byte that comes is looked at. A connection that ends before, or brings another
//! byte, is broken.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::host::{pattern, read_answer_head, read_head};
use super::netns::Inside;

/// How long a connection may take to be there, and a page to come. Under a flood most segments are
/// lost, and the kernel waits twice as long after each.
const PATIENCE: Duration = Duration::from_secs(120);
/// Connections that are opened at once.
const OPENING_MAX: usize = 64;
/// Time between two pages of a connection.
const PAUSE: Duration = Duration::from_millis(500);
/// Files a process with as many connections has open beside them.
const OTHER_FILES: u64 = 200;

/// What to open.
#[derive(Clone, Copy, Debug)]
pub struct Stay {
    /// Whom to ask.
    pub target: SocketAddr,
    /// How many connections.
    pub connections: u32,
    /// Bytes of each page.
    pub bytes: u64,
}

/// What became of the connections.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StayReport {
    /// Connections that were opened.
    pub connections: u64,
    /// Why connections broke, and how many for that reason.
    pub broken: BTreeMap<String, u64>,
    /// Pages that came whole.
    pub pages: u64,
    /// Fewest pages of one connection.
    pub pages_min: u64,
    /// Bytes of all pages.
    pub bytes: u64,
    /// The slowest page, in microseconds.
    pub slowest_us: u64,
}

/// What one connection has had.
#[derive(Default)]
struct Had {
    pages: u64,
    slowest: Duration,
    broken: Option<io::Error>,
}

impl Stay {
    /// Opens the connections, says how many there are once each has had a page, and goes on until
    /// `end` is told. Then each has one more page.
    ///
    /// # Errors
    /// When the system gives us no thread or no runtime.
    pub fn run(
        self,
        _: &Inside,
        opened: impl FnOnce(u64),
        end: impl FnOnce() + Send + 'static,
    ) -> io::Result<StayReport> {
        allow_files(u64::from(self.connections) + OTHER_FILES);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (ending, ended) = watch::channel(false);
        runtime.block_on(async {
            let (first, mut firsts) = mpsc::channel(1);
            let (gate, bytes) = (Arc::new(Semaphore::new(OPENING_MAX)), Arc::new(pattern()));
            let mut all = JoinSet::new();
            for _ in 0..self.connections {
                let (first, gate) = (first.clone(), Arc::clone(&gate));
                let (bytes, ended) = (Arc::clone(&bytes), ended.clone());
                all.spawn(async move { self.one(&bytes, (&gate, first), ended).await });
            }
            drop(first);
            let mut count = 0;
            while firsts.recv().await.is_some() {
                count += 1;
            }
            opened(count);
            std::thread::Builder::new().spawn(move || {
                end();
                let _ = ending.send(true);
            })?;
            let mut report = StayReport {
                connections: count,
                pages_min: u64::MAX,
                ..StayReport::default()
            };
            while let Some(had) = all.join_next().await {
                report.add(&had.expect("connections are not cancelled"), self.bytes);
            }
            Ok(report)
        })
    }

    async fn one(
        self,
        pattern: &[u8],
        (gate, first): (&Semaphore, mpsc::Sender<()>),
        mut ended: watch::Receiver<bool>,
    ) -> Had {
        let mut had = Had::default();
        let opening = async {
            let _place = gate.acquire().await.map_err(io::Error::other)?;
            let connect = timeout(PATIENCE, TcpStream::connect(self.target));
            let mut stream = connect.await??;
            stream.set_nodelay(true)?;
            self.page(&mut stream, pattern, &mut had).await?;
            let _ = first.send(()).await;
            Ok(stream)
        };
        let opened: io::Result<TcpStream> = opening.await;
        drop(first);
        let transfer = async {
            let mut stream = opened?;
            loop {
                let last = *ended.borrow();
                self.page(&mut stream, pattern, &mut had).await?;
                if last {
                    return Ok(());
                }
                // If the other end is gone, this is the end, too.
                let _ = timeout(PAUSE, ended.wait_for(|ended| *ended)).await;
            }
        };
        let transferred: io::Result<()> = transfer.await;
        had.broken = transferred.err();
        had
    }

    /// Asks for a page, and looks at every byte of it.
    async fn page(self, stream: &mut TcpStream, pattern: &[u8], had: &mut Had) -> io::Result<()> {
        let start = Instant::now();
        let (target, bytes) = (self.target, self.bytes);
        let fetch = async {
            let head = format!("GET /bytes/{bytes} HTTP/1.1\r\nHost: {target}\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            let mut buffer = Vec::with_capacity(16 * 1024);
            let head_bytes = read_head(stream, &mut buffer).await?;
            let head_bytes = head_bytes.ok_or(ErrorKind::UnexpectedEof)?;
            let (_, length) = read_answer_head(&buffer[..head_bytes])?;
            buffer.drain(..head_bytes);
            let mut at = 0;
            loop {
                for byte in buffer.drain(..) {
                    if at >= length || byte != pattern[(at % pattern.len() as u64) as usize] {
                        return Err(io::Error::new(ErrorKind::InvalidData, "a wrong byte"));
                    }
                    at += 1;
                }
                if at == length && length == bytes {
                    return Ok(());
                }
                if stream.read_buf(&mut buffer).await? == 0 {
                    return Err(ErrorKind::UnexpectedEof.into());
                }
            }
        };
        let fetched: io::Result<()> = timeout(PATIENCE, fetch).await?;
        fetched?;
        had.pages += 1;
        had.slowest = had.slowest.max(start.elapsed());
        Ok(())
    }
}

impl StayReport {
    fn add(&mut self, had: &Had, page_bytes: u64) {
        self.pages += had.pages;
        self.pages_min = self.pages_min.min(had.pages);
        self.bytes += had.pages * page_bytes;
        let slowest = u64::try_from(had.slowest.as_micros()).unwrap_or(u64::MAX);
        self.slowest_us = self.slowest_us.max(slowest);
        if let Some(error) = &had.broken {
            *self.broken.entry(error.to_string()).or_default() += 1;
        }
    }
}

/// Raises the limit of open files to `wanted`, as far as the system allows; what is refused later says
/// so itself.
pub fn allow_files(wanted: u64) {
    // SAFETY: both calls get a pointer to a struct on this stack, which the first one fills.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 && limit.rlim_cur < wanted {
            limit.rlim_cur = limit.rlim_max.min(wanted);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
