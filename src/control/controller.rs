//! Controller: the one writer. It alone changes what is configured; each change becomes the next
//! `Snapshot`. Exactly the kernel's rules (`ip_vs_ctl.c`). It starts nothing and tells nobody: that
//! is `ControlPlane`'s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use super::Setup;
use super::check::{NO_SCHEDULER, Shape};
use super::desired::{Desired, Detail, Services};
use super::guard::Guard;
use super::meter::Meter;
use super::synced::Synced;
use super::totals::Totals;
use super::trash::Trash;
use super::tunables;
use crate::config::command::State;
use crate::config::{Command, Listing, RealSpec, Refusal};
use crate::director::snapshot::{Parts, Port, Role, Snapshot, SnapshotId};
use crate::lvs::{
    Limits, Link, MarkRule, Masquerading, RealKey, RealLive, RealServer, ServiceKey, ServiceSpec,
    SourcePool, Stats, SyncRow, Timeouts, Tunables, Weight,
};
use crate::sched::{self, Change, Scheduler};
use crate::stats::RATE_PERIOD;
use crate::time::Instant;

/// Turns of the estimator made up for when time has jumped; after so many the rates are zero anyway.
const ESTIMATES_LATE_MAX: u32 = 64;

/// The one writer.
#[derive(Debug)]
pub struct Controller {
    services: Services,
    trash: Trash,
    totals: Totals,
    marks: Vec<MarkRule>,
    synced: Synced,
    pools: (Masquerading, SourcePool),
    ftp_ports: Vec<u16>,
    ports: Vec<Port>,
    tunables: Tunables,
    timeouts: Timeouts,
    limits: Limits,
    workers: usize,
    next_real: u32,
    next_object: u64,
    next_estimate: Instant,
    shape: u64,
    deletions: u64,
    guard: Guard,
    snapshot: Arc<Snapshot>,
}

impl Controller {
    /// A director without services.
    pub fn new(setup: &Setup, now: Instant) -> Controller {
        let parts = Parts {
            id: SnapshotId(1),
            role: Role::Primary,
            services: Vec::new(),
            ports: setup.ports.clone(),
            tunables: setup.tunables,
            timeouts: setup.timeouts,
            limits: setup.limits,
        };
        Controller {
            services: Services::new(),
            trash: Trash::default(),
            totals: Totals::new(setup.workers),
            marks: Vec::new(),
            synced: Synced::default(),
            pools: Default::default(),
            ftp_ports: Vec::new(),
            ports: setup.ports.clone(),
            tunables: setup.tunables,
            timeouts: setup.timeouts,
            limits: setup.limits,
            workers: setup.workers,
            next_real: 0,
            next_object: 0,
            next_estimate: now + RATE_PERIOD,
            shape: 0,
            deletions: 0,
            guard: Guard::new(Arc::clone(&setup.table), now),
            snapshot: Arc::new(Snapshot::new(parts)),
        }
    }

    /// Changes what is configured and builds the next snapshot; a batch whole or not at all.
    ///
    /// # Errors
    /// The kernel's own refusals; nothing was touched then, no scheduler either.
    pub fn apply(&mut self, command: Command, now: Instant) -> Result<(), Refusal> {
        let (synced, full_nat) = (self.synced.clone(), &self.pools.1);
        Shape::new(&self.services, &self.ports, self.tunables, synced, full_nat).check(&command)?;
        let shows = changes_snapshot(&command);
        self.enact(command, now);
        if shows {
            self.publish();
        }
        Ok(())
    }

    /// Changes each on its own, and builds one snapshot of what was not refused. A dry run changes
    /// nothing. Returns what became of each.
    pub fn apply_each(
        &mut self,
        commands: Vec<Command>,
        dry_run: bool,
        now: Instant,
    ) -> Vec<Option<Refusal>> {
        let (synced, full_nat) = (self.synced.clone(), &self.pools.1);
        let mut shape = Shape::new(&self.services, &self.ports, self.tunables, synced, full_nat);
        let judge = |command: &Command| shape.try_one(command).err();
        let refusals: Vec<Option<Refusal>> = commands.iter().map(judge).collect();
        if dry_run {
            return refusals;
        }
        let taken = commands.into_iter().zip(&refusals);
        let taken = taken.filter(|(_, refusal)| refusal.is_none());
        let mut shows = false;
        for (command, _) in taken {
            shows |= changes_snapshot(&command);
            self.enact(command, now);
        }
        if shows {
            self.publish();
        }
        refusals
    }

    /// All that commands have configured.
    pub fn state(&self) -> State {
        let service = |service: &Desired| {
            let reals = service.reals.iter().rev();
            let reals = reals.map(|real| service.details[&real.live.id].spec);
            (service.spec.clone(), reals.collect())
        };
        State {
            services: self.services.values().map(service).collect(),
            marks: self.marks.clone(),
            pools: self.pools.clone(),
            ftp_ports: self.ftp_ports.clone(),
            timeouts: self.timeouts,
            tunables: self.tunables,
        }
    }

    /// The interfaces as they now are: the same ones in the same order.
    pub fn set_ports(&mut self, ports: Vec<Port>) {
        let same = ports
            .iter()
            .map(|port| &port.name)
            .eq(self.ports.iter().map(|port| &port.name));
        assert!(same, "workers hold their ports by number: {ports:?}");
        self.ports = ports;
        self.shape += 1;
        self.publish();
    }

    /// The host's interfaces as they now are.
    pub fn set_links(&mut self, links: Vec<Link>) {
        self.synced.set_links(links);
    }

    /// The daemons of connection synchronisation, the master first.
    pub fn sync_daemons(&self) -> Vec<SyncRow> {
        self.synced.listing()
    }

    /// What is in force once every worker has adopted it.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }

    /// Counts the changes of what exists: services, real servers and their methods, ports.
    pub fn shape(&self) -> u64 {
        self.shape
    }

    /// Counts the real servers that were ever deleted.
    pub fn deletions(&self) -> u64 {
        self.deletions
    }

    /// The desired services.
    pub(super) fn services(&self) -> &Services {
        &self.services
    }

    /// The sysctls in force; the defences' automatics are among them.
    pub fn tunables(&self) -> &Tunables {
        &self.tunables
    }

    /// The counters over everything.
    pub(super) fn totals(&self) -> Listing {
        self.totals.listing(lines_of(&self.services))
    }

    /// When to call `handle_timeout` next.
    pub fn poll_timeout(&self) -> Instant {
        let always = self.next_estimate.min(self.guard.poll_timeout());
        let trash = self.trash.poll_timeout();
        trash.map_or(always, |due| due.min(always))
    }

    /// Estimates rates and empties the trash, when it is time.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..ESTIMATES_LATE_MAX {
            if now < self.next_estimate {
                break;
            }
            self.estimate();
            self.next_estimate += RATE_PERIOD;
        }
        if self.next_estimate <= now {
            self.next_estimate = now + RATE_PERIOD;
        }
        self.trash.handle_timeout(now);
        self.guard.handle_timeout(&mut self.tunables, now);
    }

    /// Without `run_estimation` neither rates nor the listed counters move (`ip_vs_est.c`).
    fn estimate(&mut self) {
        if self.tunables.run_estimation == 0 {
            return;
        }
        for service in self.services.values_mut() {
            let mut sum = std::mem::take(&mut service.late);
            for real in &service.reals {
                let detail = service.details.get_mut(&real.live.id);
                let detail = detail.expect("every real server has its details");
                let more = detail.meter.estimate(&real.live.stats);
                sum = std::array::from_fn(|at| sum[at] + more[at]);
            }
            service.meter.estimate_sum(sum);
        }
        self.totals.estimate(lines_of(&self.services));
    }

    /// Does what was checked.
    fn enact(&mut self, command: Command, now: Instant) {
        match command {
            Command::AddService(spec) => self.add_service(spec),
            Command::EditService(spec) => self.edit_service(spec),
            Command::DeleteService(key) => self.delete_service(key, now),
            Command::Flush => self.flush(now),
            Command::AddReal { service, real } => self.add_real(service, real),
            Command::EditReal { service, real } => self.edit_real(service, real),
            Command::DeleteReal { service, real } => self.delete_real(service, real, now),
            Command::Zero(key) => self.zero(key),
            Command::SetTimeouts(timeouts) => self.set_timeouts(timeouts),
            Command::SetTunable { name, value } => {
                tunables::set(&mut self.tunables, &name, &value).expect("the command was checked");
                self.guard.update(&mut self.tunables);
            }
            Command::SetMarks(rules) => {
                self.shape += 1;
                self.marks = rules;
            }
            Command::SetFtpPorts(ports) => {
                self.shape += 1;
                self.ftp_ports = ports;
            }
            Command::StartSync(daemon) => {
                self.synced.start(&daemon).expect("the command was checked");
            }
            Command::StopSync(role) => {
                self.synced.stop(role).expect("the command was checked");
            }
            Command::SetPools {
                masquerading,
                full_nat,
            } => {
                self.shape += 1;
                self.pools = (masquerading, full_nat);
            }
            Command::Batch(commands) => {
                for command in commands {
                    self.enact(command, now);
                }
            }
        }
    }

    fn add_service(&mut self, spec: ServiceSpec) {
        self.shape += 1;
        self.next_object += 1;
        let service = Desired {
            scheduler: scheduler_for(&spec.scheduler, &[]),
            reals: Vec::new(),
            details: BTreeMap::new(),
            meter: Meter::new(),
            late: [0; 5],
            object: self.next_object,
            in_force: None,
            spec,
        };
        self.services.insert(service.spec.key, service);
    }

    /// The scheduler's state starts anew only when its name changes (`ip_vs_edit_service`).
    fn edit_service(&mut self, spec: ServiceSpec) {
        let service = self.desired(spec.key);
        if service.spec.scheduler != spec.scheduler {
            service.scheduler = scheduler_for(&spec.scheduler, &service.reals);
        }
        service.spec = spec;
        service.in_force = None;
    }

    fn delete_service(&mut self, key: ServiceKey, now: Instant) {
        self.shape += 1;
        let gone = self.services.remove(&key);
        let mut gone = gone.expect("the command was checked: the service is there");
        for real in gone.reals {
            let detail = gone.details.remove(&real.live.id);
            let meter = detail.expect("every real server has its details").meter;
            self.throw_away(key, real.live, meter, gone.object, now);
        }
    }

    fn flush(&mut self, now: Instant) {
        while let Some(key) = self.services.keys().next().copied() {
            self.delete_service(key, now);
        }
    }

    /// A new real server stands at the head of the list (`__ip_vs_update_dest`); one from the trash
    /// keeps its connections and counts, and its statistics if the service is still the same object.
    fn add_real(&mut self, key: ServiceKey, spec: RealSpec) {
        self.shape += 1;
        let object = self.desired(key).object;
        let (live, meter) = match self.trash.take(key, spec.key) {
            Some(mut thrown) => {
                if thrown.object != object {
                    thrown.meter.zero();
                }
                self.totals.welcome(&thrown.live.stats);
                (thrown.live, thrown.meter)
            }
            None => (self.new_live(spec.key), Meter::new()),
        };
        live.available.store(true, Relaxed);
        let id = live.id;
        let real = configure(&spec, spec.weight, live);
        let service = self.desired(key);
        service.reals.insert(0, real);
        service.details.insert(id, Detail { spec, meter });
        service.tell_scheduler(Change::Added);
    }

    fn new_live(&mut self, key: RealKey) -> Arc<RealLive> {
        let next = self.next_real.checked_add(1);
        self.next_real = next.expect("a real server a second lasts 136 years");
        Arc::new(RealLive::new(self.next_real, key.0, self.workers))
    }

    /// An edited real server keeps its place.
    fn edit_real(&mut self, key: ServiceKey, spec: RealSpec) {
        let service = self.desired(key);
        let at = service.position(spec.key);
        let at = at.expect("the command was checked: the server is there");
        let rerouted = service.reals[at].method != spec.method;
        let real = &mut service.reals[at];
        let last_weight = if spec.weight.0 != 0 {
            spec.weight
        } else {
            real.last_weight
        };
        *real = configure(&spec, last_weight, Arc::clone(&real.live));
        let detail = service.details.get_mut(&real.live.id);
        detail.expect("every real server has its details").spec = spec;
        service.tell_scheduler(Change::Edited);
        self.shape += u64::from(rerouted);
    }

    fn delete_real(&mut self, key: ServiceKey, real: RealKey, now: Instant) {
        self.shape += 1;
        let service = self.desired(key);
        let at = service.position(real);
        let at = at.expect("the command was checked: the server is there");
        let before = at
            .checked_sub(1)
            .map(|before| service.reals[before].live.id);
        let live = service.reals.remove(at).live;
        let detail = service.details.remove(&live.id);
        let mut meter = detail.expect("every real server has its details").meter;
        let more = meter.settle(&live.stats);
        service.late = std::array::from_fn(|at| service.late[at] + more[at]);
        let object = service.object;
        service.tell_scheduler(Change::Removed {
            id: live.id,
            before,
        });
        self.throw_away(key, live, meter, object, now);
    }

    /// From now on the packets of its connections are dropped.
    fn throw_away(
        &mut self,
        key: ServiceKey,
        live: Arc<RealLive>,
        meter: Meter,
        object: u64,
        now: Instant,
    ) {
        self.deletions += 1;
        self.totals.part_with(&live.stats);
        live.available.store(false, Relaxed);
        self.trash.put(key, live, meter, object, now);
    }

    fn zero(&mut self, key: Option<ServiceKey>) {
        match key {
            Some(key) => self.desired(key).zero(),
            None => {
                self.services.values_mut().for_each(Desired::zero);
                self.totals.zero();
            }
        }
    }

    /// A zero leaves that timeout as it is (`ip_vs_set_timeout`).
    fn set_timeouts(&mut self, wanted: Timeouts) {
        let keep = |wanted: u32, now: u32| if wanted == 0 { now } else { wanted };
        self.timeouts = Timeouts {
            tcp_s: keep(wanted.tcp_s, self.timeouts.tcp_s),
            tcp_fin_s: keep(wanted.tcp_fin_s, self.timeouts.tcp_fin_s),
            udp_s: keep(wanted.udp_s, self.timeouts.udp_s),
        };
    }

    fn desired(&mut self, key: ServiceKey) -> &mut Desired {
        let service = self.services.get_mut(&key);
        service.expect("the command was checked: the service is there")
    }

    /// Debug builds: what must hold between two commands.
    pub fn check(&self) {
        let mut ids = BTreeSet::new();
        for (key, service) in &self.services {
            assert_eq!(*key, service.spec.key);
            assert_eq!(service.reals.len(), service.details.len(), "{key}");
            assert_eq!(
                service.scheduler.is_none(),
                service.spec.scheduler == NO_SCHEDULER
            );
            for real in &service.reals {
                let detail = &service.details[&real.live.id];
                assert_eq!(
                    (detail.spec.key, detail.spec.weight),
                    (real.key, real.weight)
                );
                assert!(real.live.available.load(Relaxed), "{key} {}", real.key);
                assert!(
                    ids.insert(real.live.id),
                    "real server {} is listed twice",
                    real.key
                );
            }
        }
        for thrown in self.trash.iter() {
            assert!(!thrown.live.available.load(Relaxed), "deleted, but in use");
            assert!(ids.insert(thrown.live.id), "deleted, but listed");
        }
        let shown: usize = self
            .snapshot
            .services
            .iter()
            .map(|service| service.reals.len())
            .sum();
        let wanted: usize = self
            .services
            .values()
            .map(|service| service.reals.len())
            .sum();
        assert_eq!(shown, wanted, "the snapshot is not what is configured");
    }

    /// Builds the next snapshot; services that did not change are carried over as they are.
    fn publish(&mut self) {
        let in_force = self.services.values_mut().map(Desired::in_force);
        let parts = Parts {
            id: SnapshotId(self.snapshot.id.0 + 1),
            role: Role::Primary,
            services: in_force.collect(),
            ports: self.ports.clone(),
            tunables: self.tunables,
            timeouts: self.timeouts,
            limits: self.limits,
        };
        let (masquerading, full_nat) = &self.pools;
        let snapshot = Snapshot::new(parts).with_marks(&self.marks);
        let snapshot = snapshot.with_pools(masquerading, full_nat);
        self.snapshot = Arc::new(snapshot.with_ftp(&self.ftp_ports));
    }
}

/// What the workers counted at each configured real server.
fn lines_of(services: &Services) -> impl Iterator<Item = &[Stats]> {
    let reals = services.values().flat_map(|service| &service.reals);
    reals.map(|real| real.live.stats.as_slice())
}

/// A scheduler of this name over these real servers; none for the name `none`.
fn scheduler_for(name: &str, reals: &[RealServer]) -> Option<Arc<Mutex<Box<dyn Scheduler>>>> {
    if name == NO_SCHEDULER {
        return None;
    }
    let scheduler = sched::by_name(name, reals).expect("the command was checked: name is known");
    Some(Arc::new(Mutex::new(scheduler)))
}

/// A real server as configured; what lives learns its limits and weight.
fn configure(spec: &RealSpec, last_weight: Weight, live: Arc<RealLive>) -> RealServer {
    live.weight.store(spec.weight.0, Relaxed);
    live.set_thresholds(spec.thresholds);
    live.tunnel.store(spec.tunnel.pack(), Relaxed);
    live.path.forget_route();
    RealServer {
        key: spec.key,
        weight: spec.weight,
        last_weight,
        method: spec.method,
        thresholds: spec.thresholds,
        live,
    }
}

/// Does a worker have to know?
fn changes_snapshot(command: &Command) -> bool {
    match command {
        Command::Zero(_) | Command::StartSync(_) | Command::StopSync(_) => false,
        Command::Batch(commands) => commands.iter().any(changes_snapshot),
        _ => true,
    }
}
