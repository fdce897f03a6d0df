//! Floor B: the control plane. `ControlPlane` is one machine on one thread: it is told what happened
//! (`Input`) and says what it wants done (`Output`). It decides what the services are, by
//! `Controller`, the one writer; it waits for the workers, and answers clients.

mod check;
pub mod controller;
mod desired;
pub mod event;
mod guard;
mod listing;
mod meter;
mod synced;
mod totals;
mod trash;
mod tunables;

#[cfg(test)]
mod counts_tests;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

pub use controller::Controller;
pub use event::{ClientId, Input, Output};

pub use crate::sched::NAMES as SCHEDULERS;

use crate::config::command::{AccountRow, State, StatusRow};
use crate::config::{Listing, Query, Refusal, Reply, Request};
use crate::conn::ConnTable;
use crate::director::message::{Order, Report};
use crate::director::snapshot::{Port, Side, Snapshot, SnapshotId};
use crate::director::verdict::{Account, DropReason};
use crate::lvs::{Limits, Timeouts, Tunables};
use crate::time::{Duration, Instant};

/// Rows of the connection table as ipvsadm prints them; the kernel's default (2^12).
pub const TABLE_SIZE: u32 = 4096;

/// Most clients that wait for workers at once; a 257th is refused.
const CLIENTS_WAITING_MAX: usize = 256;

/// How long a client waits for workers. A worker breathes thousands of times a second; one that is
/// silent for so long is stuck, and the client shall hear of it.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// What a control plane is made of.
#[derive(Debug)]
pub struct Setup {
    /// The interfaces, in the order of the workers' halves.
    pub ports: Vec<Port>,
    /// The sysctls to begin with.
    pub tunables: Tunables,
    /// The three timeouts to begin with.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    /// Number of workers, at least one.
    pub workers: usize,
    /// The connections, for listing.
    pub table: Arc<ConnTable>,
    /// Rows that listings name as the table's size; `TABLE_SIZE` unless configured.
    pub table_size: u32,
    /// Process id, for `Query::Status`.
    pub pid: u32,
    /// Name of the back-end, for `Query::Status`.
    pub nic: String,
}

/// The control plane.
#[derive(Debug)]
pub struct ControlPlane {
    setup: Setup,
    controller: Controller,
    outputs: VecDeque<Output>,
    /// The newest snapshot each worker has in force.
    adopted: Vec<SnapshotId>,
    /// Snapshots that some worker may still have in force, the newest left out: they are freed here,
    /// where no frame waits for it.
    retired: Vec<Arc<Snapshot>>,
    waiting: Vec<Waiting>,
    audits: u64,
    /// Once this snapshot is in force everywhere, connections of deleted real servers end.
    orphans_end: Option<SnapshotId>,
    stopped: bool,
}

/// A client that waits for workers.
#[derive(Debug)]
struct Waiting {
    client: ClientId,
    until: Instant,
    wait: Wait,
}

/// What for.
#[derive(Debug)]
enum Wait {
    /// This snapshot shall be in force everywhere; then this is the reply.
    Adoption { id: SnapshotId, reply: Reply },
    /// Every worker shall have told its part.
    Audit(Audit),
}

/// A frame account that is being gathered.
#[derive(Debug)]
struct Audit {
    number: u64,
    /// Workers that have not told their part.
    silent: Vec<u32>,
    sum: Part,
}

/// What one worker, or several together, have to account for.
#[derive(Debug)]
struct Part {
    account: Account,
    /// Counters per port: received, overrun, truncated, sent, refused, cut.
    ports: Vec<[u64; 6]>,
    /// Of several workers' stories, the first that begins with the opening of its connection.
    story: Vec<String>,
}

impl Part {
    fn add(&mut self, other: &Part) {
        self.account.add(&other.account);
        let sums = self.ports.iter_mut().flatten();
        sums.zip(other.ports.iter().flatten())
            .for_each(|(sum, more)| *sum += more);
        // Each worker tells what it saw; the one that opened its connection knows the beginning.
        let opens = |story: &[String]| story.iter().any(|line| line.contains("NONE -> "));
        if self.story.is_empty() || opens(&other.story) && !opens(&self.story) {
            self.story.clone_from(&other.story);
        }
    }
}

impl ControlPlane {
    /// A control plane without services. Its first `snapshot` is taken to be in force: workers are
    /// built with it.
    pub fn new(setup: Setup, now: Instant) -> ControlPlane {
        assert!(setup.workers > 0, "a director has at least one worker");
        let controller = Controller::new(&setup, now);
        ControlPlane {
            adopted: vec![controller.snapshot().id; setup.workers],
            controller,
            retired: Vec::new(),
            outputs: VecDeque::new(),
            waiting: Vec::new(),
            audits: 0,
            orphans_end: None,
            stopped: false,
            setup,
        }
    }

    /// Something happened. Once `Output::Stopped` is out, nothing is heard any more.
    pub fn handle(&mut self, input: Input, now: Instant) {
        if self.stopped {
            return;
        }
        match input {
            Input::Request { from, request } => self.handle_request(from, request, now),
            Input::Reported { worker, report } => self.handle_report(worker, report),
            Input::ClientGone(client) => self.waiting.retain(|waiting| waiting.client != client),
            Input::PortsChanged(ports) => self.handle_ports(ports),
            Input::LinksChanged(links) => self.controller.set_links(links),
            Input::Stop => self.stop(),
        }
        self.check();
    }

    /// Time passed: rates, trash, clients that waited long enough.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.controller.handle_timeout(now);
        self.answer(|waiting| waiting.until <= now);
        self.check();
    }

    /// When to call `handle_timeout` next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let first = self.waiting.iter().map(|waiting| waiting.until).min();
        let controller = self.controller.poll_timeout();
        Some(first.map_or(controller, |first| first.min(controller)))
    }

    /// What the control plane wants done; drain it until `None` after every `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The newest snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(self.controller.snapshot())
    }

    /// All that commands have configured.
    pub fn state(&self) -> State {
        self.controller.state()
    }

    /// Debug builds: every invariant.
    pub fn check(&self) {
        if cfg!(debug_assertions) {
            let newest = self.controller.snapshot().id;
            assert!(self.adopted.iter().all(|adopted| *adopted <= newest));
            assert!(self.waiting.len() <= CLIENTS_WAITING_MAX);
            self.controller.check();
        }
    }

    fn handle_request(&mut self, from: ClientId, request: Request, now: Instant) {
        match request {
            Request::Do(command) => {
                let change = |controller: &mut Controller| match controller.apply(command, now) {
                    Ok(()) => Reply::Done,
                    Err(refusal) => Reply::Refused(refusal),
                };
                self.handle_change(from, change, now);
            }
            Request::Each { commands, dry_run } => {
                let change = |controller: &mut Controller| {
                    Reply::Each(controller.apply_each(commands, dry_run, now))
                };
                self.handle_change(from, change, now);
            }
            Request::Ask(query) => self.handle_query(from, query, now),
            Request::Stop => {
                self.reply(from, Reply::Done);
                self.stop();
            }
        }
    }

    /// Changes what is configured; the client has its reply when that is in force everywhere.
    fn handle_change(
        &mut self,
        from: ClientId,
        change: impl FnOnce(&mut Controller) -> Reply,
        now: Instant,
    ) {
        if self.waiting.len() >= CLIENTS_WAITING_MAX {
            return self.reply(from, Reply::Refused(Refusal::OutOfMemory));
        }
        let (shape, old) = (self.controller.shape(), self.snapshot());
        let deletions = self.controller.deletions();
        let reply = change(&mut self.controller);
        if matches!(reply, Reply::Refused(_)) {
            return self.reply(from, reply);
        }
        let snapshot = self.controller.snapshot();
        let ends = snapshot.tunables.expire_nodest_conn != 0;
        if ends && self.controller.deletions() != deletions {
            self.orphans_end = Some(snapshot.id);
        }
        self.spread(shape, old);
        let id = self.controller.snapshot().id;
        self.wait(from, Wait::Adoption { id, reply }, now);
        self.answer_adoptions();
    }

    fn handle_ports(&mut self, ports: Vec<Port>) {
        let (shape, old) = (self.controller.shape(), self.snapshot());
        self.controller.set_ports(ports);
        self.spread(shape, old);
    }

    /// Tells of what became different since `shape` and snapshot `old`.
    fn spread(&mut self, shape: u64, old: Arc<Snapshot>) {
        if self.controller.shape() != shape {
            self.outputs.push_back(Output::Changed);
        }
        if self.controller.snapshot().id != old.id {
            self.retired.push(old);
            self.order_all(&Order::Adopt(self.snapshot()));
        }
    }

    fn handle_query(&mut self, from: ClientId, query: Query, now: Instant) {
        let listing = match query {
            Query::Services(key) => listing::services(&self.controller, key, self.setup.table_size),
            Query::Connections => Ok(listing::connections(&self.setup.table, now)),
            Query::Masqueraded => Ok(listing::masqueraded(&self.setup.table, now)),
            Query::Totals => Ok(self.controller.totals()),
            Query::Tunables => Ok(Listing::Tunables(Box::new(*self.controller.tunables()))),
            Query::Timeouts => Ok(Listing::Timeouts(self.controller.snapshot().timeouts)),
            Query::State => Ok(Listing::State(Box::new(self.controller.state()))),
            Query::SyncDaemons => Ok(Listing::SyncDaemons(self.controller.sync_daemons())),
            Query::Status => Ok(Listing::Status(self.status())),
            Query::Account => return self.audit(from, now),
        };
        let reply = listing.map_or_else(Reply::Refused, Reply::Listing);
        self.reply(from, reply);
    }

    fn handle_report(&mut self, worker: usize, report: Report) {
        match report {
            Report::Adopted(id) => {
                self.adopted[worker] = self.adopted[worker].max(id);
                self.answer_adoptions();
            }
            Report::Account {
                audit,
                account,
                ports,
                story,
            } => {
                let part = Part {
                    account,
                    story,
                    ports: ports
                        .iter()
                        .map(|port| {
                            [
                                port.received,
                                port.overrun,
                                port.truncated,
                                port.sent,
                                port.refused,
                                port.cut,
                            ]
                        })
                        .collect(),
                };
                self.add_account(worker, audit, part);
            }
            // There is nothing to decide: a port that works again is used again. The daemon says it.
            Report::Port { .. } => {}
            Report::Spent(memory) => drop(memory),
        }
    }

    /// A snapshot may have come into force everywhere.
    fn answer_adoptions(&mut self) {
        let everywhere = *self.adopted.iter().min().expect("there is a worker");
        self.retired.retain(|snapshot| snapshot.id >= everywhere);
        if self.orphans_end.take_if(|id| *id <= everywhere).is_some() {
            end_orphans(&self.setup.table);
        }
        self.answer(
            |waiting| matches!(waiting.wait, Wait::Adoption { id, .. } if id <= everywhere),
        );
    }

    /// Asks every worker for its account.
    fn audit(&mut self, from: ClientId, now: Instant) {
        if self.waiting.len() >= CLIENTS_WAITING_MAX {
            return self.reply(from, Reply::Refused(Refusal::OutOfMemory));
        }
        self.audits += 1;
        let audit = Audit {
            number: self.audits,
            silent: (0..self.setup.workers as u32).collect(),
            sum: Part {
                account: Account::new(),
                ports: vec![[0; 6]; self.setup.ports.len()],
                story: Vec::new(),
            },
        };
        self.wait(from, Wait::Audit(audit), now);
        self.order_all(&Order::Audit(self.audits));
    }

    /// One worker's part of an audit; a part that comes too late finds nobody waiting.
    fn add_account(&mut self, worker: usize, number: u64, part: Part) {
        for waiting in &mut self.waiting {
            if let Wait::Audit(audit) = &mut waiting.wait
                && audit.number == number
                && let Some(at) = audit
                    .silent
                    .iter()
                    .position(|silent| *silent as usize == worker)
            {
                audit.silent.remove(at);
                audit.sum.add(&part);
            }
        }
        self.answer(|waiting| match &waiting.wait {
            Wait::Audit(audit) => audit.silent.is_empty(),
            Wait::Adoption { .. } => false,
        });
    }

    fn wait(&mut self, client: ClientId, wait: Wait, now: Instant) {
        let until = now + ANSWER_TIME;
        self.waiting.push(Waiting {
            client,
            until,
            wait,
        });
    }

    /// Answers those whose waiting has come to its end, with what is known by now.
    fn answer(&mut self, finished: impl Fn(&Waiting) -> bool) {
        let all = std::mem::take(&mut self.waiting);
        let (done, waiting) = all.into_iter().partition(finished);
        self.waiting = waiting;
        for waiting in done {
            let reply = match waiting.wait {
                Wait::Adoption { id, reply } => self.adoption(id, reply),
                Wait::Audit(audit) => Reply::Listing(Listing::Account(self.account(audit))),
            };
            self.reply(waiting.client, reply);
        }
    }

    /// The reply to a change, if it is in force everywhere by now.
    fn adoption(&self, id: SnapshotId, reply: Reply) -> Reply {
        let workers = self.adopted.iter().enumerate();
        let behind: Vec<String> = workers
            .filter(|(_, adopted)| **adopted < id)
            .map(|(worker, _)| worker.to_string())
            .collect();
        if behind.is_empty() {
            return reply;
        }
        Reply::Late(format!(
            "the change is made, but not yet in force in worker {}",
            behind.join(", ")
        ))
    }

    fn account(&self, audit: Audit) -> AccountRow {
        let account = &audit.sum.account;
        let drops = DropReason::ALL.map(|why| (why.word().to_string(), account.dropped_for(why)));
        let names = self
            .controller
            .snapshot()
            .ports
            .iter()
            .map(|port| port.name.clone());
        AccountRow {
            received: account.received,
            forwarded: account.forwarded,
            answered: account.answered,
            passed: account.passed,
            held: account.held,
            dropped: account.dropped_total(),
            drops: drops.into_iter().filter(|(_, count)| *count > 0).collect(),
            originated: account.originated,
            balances: account.balances(),
            ports: names.zip(audit.sum.ports).collect(),
            story: audit.sum.story,
            silent: audit.silent,
        }
    }

    fn status(&self) -> StatusRow {
        let mut ports: Vec<&Port> = self.controller.snapshot().ports.iter().collect();
        ports.sort_by_key(|port| port.side == Side::Private);
        StatusRow {
            version: env!("CARGO_PKG_VERSION").to_string(),
            pid: self.setup.pid,
            workers: self.setup.workers as u32,
            nic: self.setup.nic.clone(),
            ports: ports.iter().map(|port| port.name.clone()).collect(),
            table_size: self.setup.table_size,
            connections: self.setup.table.len() as u64,
            connections_max: u64::from(self.setup.limits.conn_entries_max),
            ..StatusRow::default()
        }
    }

    /// Tells every worker to end; whoever still waits is told too.
    fn stop(&mut self) {
        if self.stopped {
            return;
        }
        self.stopped = true;
        for waiting in std::mem::take(&mut self.waiting) {
            self.reply(waiting.client, Reply::Late("the daemon stops".to_string()));
        }
        self.order_all(&Order::Stop);
        self.outputs.push_back(Output::Stopped);
    }

    fn order_all(&mut self, order: &Order) {
        let orders = (0..self.setup.workers).map(|worker| Output::Order {
            worker,
            order: order.clone(),
        });
        self.outputs.extend(orders);
    }

    fn reply(&mut self, to: ClientId, reply: Reply) {
        self.outputs.push_back(Output::Reply { to, reply });
    }
}

/// Ends the connections of deleted real servers, as `expire_nodest_conn` wants it
/// (`ip_vs_expire_nodest_conn_flush`); those that control others after the ones they control.
fn end_orphans(table: &ConnTable) {
    let mut orphans = Vec::new();
    table.for_each(|conn| {
        if conn
            .server()
            .is_some_and(|server| !server.available.load(Relaxed))
        {
            orphans.push(Arc::clone(conn));
        }
    });
    orphans.sort_by_key(|conn| conn.is_controlling());
    for conn in orphans.iter().filter(|conn| !conn.is_controlling()) {
        table.remove(conn);
    }
}
