//! An interface that makes its frames as they are asked for: no memory is touched beyond the batch, so
//! what is measured is the director.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use ulvs::director::{self, Port};
use ulvs::lvs::tunables::BATCH_FRAMES_MAX;
use ulvs::rng::Rng;
use ulvs::wire::nic::Sent;
use ulvs::wire::{Frame, FrameMeta, FrameView, Mac, NicCounters, NicError, Offload, Rx, Tx};

/// Room in each buffer: a 60-byte frame and what may grow around it.
const BUFFER: usize = 128;
/// Where frames begin in it.
const START: usize = 32;
/// A frame with a 40-byte TCP packet, padded as Ethernet wants it.
const FRAME: usize = 60;

/// What the generators of all interfaces agree on.
pub struct Plan {
    /// Real server (0..) of each flow, once known.
    pub servers: std::sync::RwLock<Vec<u8>>,
    /// Local end of each flow under full NAT, once known; empty under LVS-NAT.
    pub locals: std::sync::RwLock<Vec<(u32, u16)>>,
    /// How many flows.
    pub flows: usize,
    /// TCP flags to send.
    pub flags: AtomicU64,
    /// Next flow in order; `u64::MAX`: at random.
    pub cursor: AtomicU64,
    /// Which side speaks.
    pub client: AtomicBool,
    /// See `client`.
    pub server: AtomicBool,
    /// Frames still to be made.
    pub left: AtomicU64,
}

pub struct BenchRx {
    plan: Arc<Plan>,
    from_client: bool,
    buffers: Vec<[u8; BUFFER]>,
    metas: Vec<FrameMeta>,
    rng: Rng,
    pattern: [u8; FRAME],
}

/// The client's address and port of a flow.
pub fn client_of(flow: u32) -> (u32, u16) {
    (
        0x0a40_0000 + (flow >> 4),
        20_000 + (flow & 15) as u16 * 1021,
    )
}

/// The address of real server number `server`.
pub fn server_of(server: u8) -> u32 {
    0xc0a8_010b + u32::from(server)
}

pub const VIP: u32 = 0x0102_0301;
/// MAC addresses of the director's two ports.
pub const OUTSIDE: [u8; 6] = [2, 0, 0, 0, 0x0c, 1];
pub const INSIDE: [u8; 6] = [2, 0, 0, 0, 5, 1];
/// The router to the clients.
pub const GATEWAY: [u8; 4] = [1, 2, 3, 254];

/// A port of the director on the network `net`; the public one has the way to everybody else.
pub fn port(
    name: &str,
    side: director::Side,
    mac: [u8; 6],
    net: ([u8; 4], u8),
    neighbours: Vec<(IpAddr, Mac)>,
) -> Port {
    let mut routes = vec![(net.0.into(), net.1, None)];
    if side == director::Side::Public {
        routes.push(([0, 0, 0, 0].into(), 0, Some(GATEWAY.into())));
    }
    Port {
        name: name.into(),
        side,
        mac: Mac(mac),
        mtu: 1500,
        raw_ip: false,
        kernel: false,
        held: Vec::new(),
        addresses: vec![],
        routes,
        routes_from: vec![],
        neighbours,
    }
}

impl BenchRx {
    pub fn new(plan: Arc<Plan>, from_client: bool, seed: u64) -> BenchRx {
        let mut pattern = [0; FRAME];
        let mac = if from_client { OUTSIDE } else { INSIDE };
        pattern[..6].copy_from_slice(&mac);
        pattern[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
        pattern[12..14].copy_from_slice(&[8, 0]);
        pattern[14..24].copy_from_slice(&[0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6]);
        pattern[46] = 0x50;
        BenchRx {
            plan,
            from_client,
            buffers: vec![[0; BUFFER]; BATCH_FRAMES_MAX],
            metas: vec![FrameMeta::default(); BATCH_FRAMES_MAX],
            rng: Rng::new(seed),
            pattern,
        }
    }

    fn write(&mut self, at: usize, flow: u32, server: u8, flags: u8, local: Option<(u32, u16)>) {
        let (client, port) = local.unwrap_or(client_of(flow));
        let frame = &mut self.buffers[at][START..START + FRAME];
        frame.copy_from_slice(&self.pattern);
        let (source, target, source_port, target_port) = if self.from_client {
            (client, VIP, port, 80)
        } else {
            (server_of(server), client, 80, port)
        };
        frame[26..30].copy_from_slice(&source.to_be_bytes());
        frame[30..34].copy_from_slice(&target.to_be_bytes());
        frame[34..36].copy_from_slice(&u16::to_be_bytes(source_port));
        frame[36..38].copy_from_slice(&u16::to_be_bytes(target_port));
        frame[47] = flags;
        let fixed = 0x4500 + 40 + 1 + 0x4000 + 0x4006;
        let sum = fixed + (source >> 16) + (source & 0xffff) + (target >> 16) + (target & 0xffff);
        let sum = (sum & 0xffff) + (sum >> 16);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        self.metas[at] = FrameMeta {
            start: START as u32,
            end: (START + FRAME) as u32,
            offload: Offload::default(),
            mark: 0,
            raw_ip: false,
        };
    }
}

impl Rx for BenchRx {
    fn fill(&mut self) -> Result<usize, NicError> {
        let speaks = if self.from_client {
            &self.plan.client
        } else {
            &self.plan.server
        };
        let left = self.plan.left.load(Relaxed);
        if !speaks.load(Relaxed) || left == 0 {
            return Ok(0);
        }
        let count = left.min(BATCH_FRAMES_MAX as u64);
        self.plan.left.store(left - count, Relaxed);
        let flags = self.plan.flags.load(Relaxed) as u8;
        let cursor = self.plan.cursor.load(Relaxed);
        let plan = Arc::clone(&self.plan);
        let servers = plan.servers.read().expect("nobody panicked with it");
        let locals = plan.locals.read().expect("nobody panicked with it");
        for at in 0..count as usize {
            let flow = match cursor {
                u64::MAX => self.rng.below(plan.flows as u64),
                first => first + at as u64,
            } as u32;
            let server = if self.from_client {
                0
            } else {
                servers[flow as usize]
            };
            let local = match self.from_client {
                true => None,
                false => locals.get(flow as usize).copied(),
            };
            self.write(at, flow, server, flags, local);
        }
        if cursor != u64::MAX {
            self.plan.cursor.store(cursor + count, Relaxed);
        }
        Ok(count as usize)
    }

    fn frame(&mut self, index: usize) -> Frame<'_> {
        Frame {
            buffer: &mut self.buffers[index],
            meta: &mut self.metas[index],
        }
    }

    fn view(&self, index: usize) -> FrameView<'_> {
        let meta = &self.metas[index];
        let bytes = &self.buffers[index][meta.start as usize..meta.end as usize];
        FrameView {
            bytes,
            offload: meta.offload,
            raw_ip: false,
        }
    }

    fn release(&mut self) {}

    fn wait_fd(&self) -> Option<i32> {
        None
    }

    fn counters(&mut self) -> NicCounters {
        NicCounters::default()
    }
}

/// Takes everything; the sum keeps the compiler from leaving the frames out. While `servers` are
/// learned, notes which one each flow went to.
pub struct BenchTx {
    pub plan: Arc<Plan>,
    pub learns: Arc<AtomicBool>,
    /// Flows learned so far: they come in their order.
    pub learned: usize,
    pub sum: u64,
}

impl Tx for BenchTx {
    fn send<'f>(&mut self, frames: &mut dyn Iterator<Item = FrameView<'f>>) -> Sent {
        let mut sent = Sent::default();
        let learns = self.learns.load(Relaxed);
        for frame in frames {
            self.sum = self.sum.wrapping_add(u64::from(frame.bytes[33]));
            sent.taken += 1;
            if learns {
                let port = u16::from_be_bytes([frame.bytes[34], frame.bytes[35]]);
                let source = u32::from_be_bytes(frame.bytes[26..30].try_into().expect("four"));
                let mut servers = self.plan.servers.write().expect("nobody panicked with it");
                servers[self.learned] = frame.bytes[33] - 11;
                let mut locals = self.plan.locals.write().expect("nobody panicked with it");
                if let Some(local) = locals.get_mut(self.learned) {
                    *local = (source, port);
                }
                self.learned += 1;
            }
        }
        sent
    }
}
