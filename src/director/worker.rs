//! Worker: one core's whole pipeline. It takes what waits, tells each frame's story, and sends. A turn
//! of its loop is a breath; the clock is read once for it.

use std::sync::Arc;

use super::lane::{Lane, Origin, OutFrame, Own};
use super::message::{Order, Report};
use super::neigh::Neighbours;
use super::probe::{Off, Probe};
use super::snapshot::Snapshot;
use super::story::Teller;
use super::verdict::{Account, DropReason, Verdict};
use super::{Director, Prepared, fragments, resolve};
use crate::conn::{ConnTable, Due};
use crate::lvs::tunables::BATCH_FRAMES_MAX;
use crate::time::{Duration, Instant};
use crate::wire::frag::Reassembler;
use crate::wire::{NicError, Rx, Tx};

/// What a worker is made of.
pub struct WorkerSetup {
    /// Its number, from 0.
    pub number: usize,
    /// The connections, shared by all workers.
    pub table: Arc<ConnTable>,
    /// The neighbours, shared by all workers.
    pub neighbours: Arc<Neighbours>,
    /// The first configuration.
    pub snapshot: Arc<Snapshot>,
    /// The halves of the snapshot's ports, in their order.
    pub ports: Vec<(Box<dyn Rx>, Box<dyn Tx>)>,
    /// Seed of its chance.
    pub seed: u64,
    /// Tell the story of the first connection.
    pub story: bool,
}

/// One worker.
pub struct Worker {
    director: Director,
    lane: Lane,
    rxs: Vec<Box<dyn Rx>>,
    txs: Vec<Box<dyn Tx>>,
    errors: Vec<Option<NicError>>,
    reports: Vec<Report>,
    teller: Option<Box<Teller>>,
    batch: Batch,
    stopped: bool,
}

/// What the passes over one batch hand to each other.
struct Batch {
    prepared: [Prepared; BATCH_FRAMES_MAX],
    verdicts: [Verdict; BATCH_FRAMES_MAX],
    warmth: u64,
}

/// How often a worker wakes while frames wait for a MAC address.
const HELD_CHECK: Duration = Duration::from_millis(100);

impl Worker {
    /// A worker that is ready to breathe.
    pub fn new(setup: WorkerSetup, now: Instant) -> Worker {
        let lane = Lane::new(
            setup.number,
            setup.snapshot,
            setup.neighbours,
            Arc::clone(&setup.table),
            setup.seed,
            now,
        );
        let (rxs, txs): (Vec<_>, Vec<_>) = setup.ports.into_iter().unzip();
        let batch = Batch {
            prepared: [Prepared::default(); BATCH_FRAMES_MAX],
            verdicts: [Verdict::Pass; BATCH_FRAMES_MAX],
            warmth: 0,
        };
        let mut worker = Worker {
            director: Director::new(setup.table),
            lane,
            errors: vec![None; rxs.len()],
            rxs,
            txs,
            reports: Vec::new(),
            teller: setup.story.then(|| Box::new(Teller::of_first_connection())),
            batch,
            stopped: false,
        };
        worker.fix_neighbours(now);
        worker
    }

    /// An order of the control plane.
    pub fn handle_order(&mut self, order: Order, now: Instant) {
        match order {
            Order::Adopt(snapshot) => {
                self.adopt(snapshot, now);
            }
            Order::Audit(audit) => {
                let account = self.lane.own.account.clone();
                let ports = self.rxs.iter_mut().map(|rx| rx.counters()).collect();
                let story = self.teller.as_ref().map(|teller| teller.lines().to_vec());
                let story = story.unwrap_or_default();
                self.reports.push(Report::Account {
                    audit,
                    account,
                    ports,
                    story,
                });
            }
            Order::Stop => self.stopped = true,
        }
    }

    /// The next snapshot. The old one is let go, not freed: the control plane holds it until every
    /// worker has done the same.
    fn adopt(&mut self, snapshot: Arc<Snapshot>, now: Instant) {
        let old = std::mem::replace(&mut self.lane.own.snapshot, snapshot);
        let new = &self.lane.own.snapshot;
        self.reports.push(Report::Adopted(new.id));
        if old.ports != new.ports {
            self.fix_neighbours(now);
        }
    }

    /// Neighbours that somebody configured need not be asked.
    fn fix_neighbours(&mut self, now: Instant) {
        let own = &self.lane.own;
        for (index, port) in own.snapshot.ports.iter().enumerate() {
            for (address, mac) in &port.neighbours {
                own.neighbours.fix(index, *address, *mac, now);
            }
        }
    }

    /// One turn: takes a batch from every port and sees it through, sends what we made ourselves,
    /// closes connections whose time is up. Returns how many frames were handled.
    pub fn breathe(&mut self, now: Instant) -> usize {
        let telling = self.teller.take_if(|teller| !teller.is_done());
        match telling {
            Some(mut teller) => {
                teller.at(now);
                let handled = self.breathe_told(now, &mut *teller);
                self.teller = Some(teller);
                handled
            }
            None => self.breathe_told(now, &mut Off),
        }
    }

    /// The same, and `probe` hears every frame's story.
    pub fn breathe_told<P: Probe>(&mut self, now: Instant, probe: &mut P) -> usize {
        let Lane { own, .. } = &mut self.lane;
        if own.cache.refresh(&own.neighbours) || !own.held.is_empty() {
            resolve::settle_held(now, own);
        }
        if !own.fragments.is_empty() {
            fragments::give_up_late(now, own);
        }
        let mut handled = 0;
        for port in 0..self.rxs.len() {
            handled += self.inhale(port, now, probe);
        }
        self.exhale();
        self.expire(now);
        debug_assert!(self.lane.own.account.balances());
        handled
    }

    fn inhale<P: Probe>(&mut self, port: usize, now: Instant, probe: &mut P) -> usize {
        let count = match self.rxs[port].fill() {
            Ok(count) => {
                self.note_error(port, None);
                count
            }
            Err(error) => {
                self.note_error(port, Some(error));
                0
            }
        };
        if count == 0 {
            return 0;
        }
        self.prepare(port, count);
        self.judge(port, count, now, probe);
        self.send(port, count);
        self.rxs[port].release();
        count
    }

    /// The first passes: read and hash every frame, then warm what the look-ups will need, so that
    /// the cache misses of a batch overlap.
    fn prepare(&mut self, port: usize, count: usize) {
        let (rx, batch) = (&self.rxs[port], &mut self.batch);
        for (index, prepared) in batch.prepared[..count].iter_mut().enumerate() {
            let view = rx.view(index);
            *prepared = self.director.prepare(view.bytes, view.raw_ip);
        }
        let mut warmth = 0;
        for prepared in &batch.prepared[..count] {
            warmth ^= self.lane.index.warm(prepared.hash);
        }
        for prepared in &batch.prepared[..count] {
            warmth ^= self.lane.index.warm_conn(prepared.hash);
        }
        // Kept, so that the compiler may not leave the loads out.
        batch.warmth = batch.warmth.wrapping_add(warmth);
    }

    /// The middle pass: every frame's own story.
    fn judge<P: Probe>(&mut self, port: usize, count: usize, now: Instant, probe: &mut P) {
        let (rx, batch) = (&mut self.rxs[port], &mut self.batch);
        for index in 0..count {
            let mut frame = rx.frame(index);
            let prepared = &batch.prepared[index];
            let verdict =
                self.director
                    .handle_frame(&mut frame, prepared, port, &mut self.lane, now, probe);
            self.lane.own.account.book(verdict);
            batch.verdicts[index] = verdict;
        }
    }

    /// The last pass: the batch leaves, port by port, straight from the buffers it came in.
    fn send(&mut self, port: usize, count: usize) {
        let (rx, verdicts) = (&self.rxs[port], &self.batch.verdicts[..count]);
        for (out, tx) in self.txs.iter_mut().enumerate() {
            let leaves = Verdict::Forward { port: out };
            if !verdicts.contains(&leaves) {
                continue;
            }
            let chosen = (0..count).filter(|index| verdicts[*index] == leaves);
            let sent = tx.send(&mut chosen.map(|index| rx.view(index)));
            let account = &mut self.lane.own.account;
            account.forwarded -= sent.refused as u64;
            account.dropped[DropReason::TxRefused as usize] += sent.refused as u64;
        }
    }

    /// Sends what we made ourselves, what had waited, and what packets were cut into.
    fn exhale(&mut self) {
        let Own {
            outbox,
            pieces,
            account,
            snapshot,
            ..
        } = &mut self.lane.own;
        for outbox in [outbox, pieces] {
            if outbox.frames().is_empty() {
                continue;
            }
            for (port, tx) in self.txs.iter_mut().enumerate() {
                let raw_ip = snapshot.ports[port].raw_ip;
                for ours in [true, false] {
                    let mine = || {
                        let frames = outbox.frames().iter();
                        frames.filter(move |frame| {
                            frame.port == port && (frame.origin == Origin::Ours) == ours
                        })
                    };
                    let sent = tx.send(&mut mine().map(|frame| frame.view(raw_ip)));
                    match ours {
                        true => account.originated += sent.taken as u64,
                        false => book_received(account, mine(), sent.taken),
                    }
                }
            }
            outbox.clear();
        }
    }

    /// Closes connections whose time is up, a bounded number in one breath.
    fn expire(&mut self, now: Instant) {
        let table = self.director.table();
        let Lane { index, own } = &mut self.lane;
        let mut pops = own.snapshot.limits.wheel_pops_per_breath_max;
        index.settle();
        self.reports.extend(index.take_spent().map(Report::Spent));
        let before = own.wheel.tick();
        while let Due::Expired(conn) = own.wheel.turn(now, &mut pops) {
            if conn.outlives_expiry(now) {
                own.wheel.arm(&conn);
                continue;
            }
            table.remove(&conn);
            for tuple in [conn.in_tuple(), conn.out_tuple()] {
                index.forget(tuple.hash(table.seed()), &conn);
            }
        }
        if own.wheel.tick() != before {
            index.sweep();
        }
    }

    fn note_error(&mut self, port: usize, error: Option<NicError>) {
        if self.errors[port] != error {
            self.errors[port] = error;
            self.reports.push(Report::Port { port, error });
        }
    }

    /// What the control plane shall know, one at a time.
    pub fn poll_report(&mut self) -> Option<Report> {
        if self.reports.is_empty() {
            None
        } else {
            Some(self.reports.remove(0))
        }
    }

    /// When the next breath is due even if no frame comes.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let held = (!self.lane.own.held.is_empty()).then_some(now + HELD_CHECK);
        let wheel = self.lane.own.wheel.poll_timeout();
        let fragments = self.lane.own.fragments.poll_timeout();
        [held, wheel, fragments].into_iter().flatten().min()
    }

    /// File descriptors to wait on; -1 stands for a port that has none or is gone.
    pub fn wait_fds(&self) -> Vec<i32> {
        self.rxs
            .iter()
            .map(|rx| rx.wait_fd().unwrap_or(-1))
            .collect()
    }

    /// Was it told to stop?
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Its frame account, exact between two breaths.
    pub fn account(&self) -> &Account {
        &self.lane.own.account
    }

    /// Fragments that wait for others here.
    pub fn fragments(&self) -> &Reassembler {
        &self.lane.own.fragments
    }

    /// The configuration it works by.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.lane.own.snapshot
    }
}

/// Books received frames that left an outbox. An interface says how many it took, not which; all pieces of
/// a packet are behind each other.
fn book_received<'f>(
    account: &mut Account,
    frames: impl Iterator<Item = &'f OutFrame>,
    taken: usize,
) {
    for (index, frame) in frames.enumerate() {
        let Origin::Received(count) = frame.origin else {
            continue;
        };
        let verdict = match index < taken {
            true => Verdict::Forward { port: frame.port },
            false => Verdict::Drop(DropReason::TxRefused),
        };
        account.settle(count.into(), verdict);
    }
}
