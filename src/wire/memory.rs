//! Interfaces made of memory: what tests, the simulator and benchmarks put before a worker. What one
//! end sends is kept until somebody takes it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use super::nic::{Frame, FrameMeta, FrameView, NicCounters, NicError, Rx, Sent, Tx};
use super::offload::Offload;

/// Room before a frame, for a VLAN tag or an outer header.
const HEAD_ROOM: usize = 128;
/// Frames handed out in one batch.
const BATCH: usize = 64;

/// A frame in memory with what is known of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryFrame {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Its offload.
    pub offload: Offload,
    /// Its firewall mark.
    pub mark: u32,
}

/// The hand on one interface of memory: puts frames in, takes frames out, breaks the link.
#[derive(Clone, Debug)]
pub struct MemoryNic {
    link: Arc<Mutex<Link>>,
    raw_ip: bool,
}

#[derive(Debug, Default)]
struct Link {
    waiting: VecDeque<MemoryFrame>,
    sent: Vec<MemoryFrame>,
    error: Option<NicError>,
    refuses: bool,
    counters: NicCounters,
}

impl MemoryNic {
    /// An interface; `raw_ip` if its frames have no Ethernet header.
    pub fn new(raw_ip: bool) -> MemoryNic {
        MemoryNic {
            link: Arc::default(),
            raw_ip,
        }
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// A frame arrives.
    pub fn put(&self, frame: MemoryFrame) {
        self.link().waiting.push_back(frame);
    }

    /// Plain bytes arrive.
    pub fn put_bytes(&self, bytes: &[u8]) {
        self.put(MemoryFrame {
            bytes: bytes.to_vec(),
            ..MemoryFrame::default()
        });
    }

    /// Frames that have arrived and that nobody has taken yet.
    pub fn waiting(&self) -> usize {
        self.link().waiting.len()
    }

    /// Takes everything that was sent since the last call.
    pub fn take(&self) -> Vec<MemoryFrame> {
        std::mem::take(&mut self.link().sent)
    }

    /// From now on the interface says this instead of giving frames.
    pub fn set_error(&self, error: Option<NicError>) {
        self.link().error = error;
    }

    /// From now on the interface takes no frames, or takes them again.
    pub fn set_refusing(&self, refuses: bool) {
        self.link().refuses = refuses;
    }

    /// The two halves for a worker.
    pub fn halves(&self) -> (Box<dyn Rx>, Box<dyn Tx>) {
        let rx = MemoryRx {
            nic: self.clone(),
            batch: Vec::new(),
        };
        (Box::new(rx), Box::new(MemoryTx { nic: self.clone() }))
    }
}

struct MemoryRx {
    nic: MemoryNic,
    batch: Vec<(Vec<u8>, FrameMeta)>,
}

impl Rx for MemoryRx {
    fn fill(&mut self) -> Result<usize, NicError> {
        let mut link = self.nic.link();
        if let Some(error) = link.error {
            return Err(error);
        }
        debug_assert!(self.batch.is_empty(), "the batch before was released");
        while self.batch.len() < BATCH {
            let Some(frame) = link.waiting.pop_front() else {
                break;
            };
            let mut buffer = vec![0; HEAD_ROOM];
            buffer.extend_from_slice(&frame.bytes);
            let meta = FrameMeta {
                start: HEAD_ROOM as u32,
                end: buffer.len() as u32,
                offload: frame.offload,
                mark: frame.mark,
                raw_ip: self.nic.raw_ip,
            };
            self.batch.push((buffer, meta));
        }
        link.counters.received += self.batch.len() as u64;
        Ok(self.batch.len())
    }

    fn frame(&mut self, index: usize) -> Frame<'_> {
        let (buffer, meta) = &mut self.batch[index];
        Frame { buffer, meta }
    }

    fn view(&self, index: usize) -> FrameView<'_> {
        let (buffer, meta) = &self.batch[index];
        let bytes = &buffer[meta.start as usize..meta.end as usize];
        FrameView {
            bytes,
            offload: meta.offload,
            raw_ip: meta.raw_ip,
        }
    }

    fn release(&mut self) {
        self.batch.clear();
    }

    fn wait_fd(&self) -> Option<i32> {
        None
    }

    fn counters(&mut self) -> NicCounters {
        self.nic.link().counters
    }
}

struct MemoryTx {
    nic: MemoryNic,
}

impl Tx for MemoryTx {
    fn send<'f>(&mut self, frames: &mut dyn Iterator<Item = FrameView<'f>>) -> Sent {
        let mut link = self.nic.link();
        let mut sent = Sent::default();
        for frame in frames {
            if link.refuses {
                sent.refused += 1;
                continue;
            }
            let bytes = frame.bytes.to_vec();
            link.sent.push(MemoryFrame {
                bytes,
                offload: frame.offload,
                mark: 0,
            });
            sent.taken += 1;
        }
        link.counters.sent += sent.taken as u64;
        link.counters.refused += sent.refused as u64;
        sent
    }
}
