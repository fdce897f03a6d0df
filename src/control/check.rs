//! What a Command must satisfy before anything is touched: the kernel's checks in the kernel's order
//! (`ip_vs_ctl.c`: `ip_vs_genl_set_cmd`, `ip_vs_add_service`, `ip_vs_add_dest`, …). The members of a
//! batch are checked one after the other against what those before them would leave behind, so that
//! a batch is refused before its first change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use super::desired::Services;
use super::synced::Synced;
use super::tunables;
use crate::config::command::FTP_PORTS_MAX;
use crate::config::{Command, RealSpec, Refusal};
use crate::director::snapshot::Port;
use crate::lvs::{
    Family, ForwardMethod, MarkRule, Masquerading, Netmask, Protocol, RealKey, ServiceFlags,
    ServiceKey, ServiceSpec, SourcePool, Timeouts, Tunables, Tunnel,
};
use crate::sched;

/// Longest timeout in seconds, of persistence and of `--set`: 31 days (ipvsadm's own limit).
const TIMEOUT_MAX_S: u32 = 2_678_400;

/// Most virtual services: one for every port of one VIP.
const SERVICES_MAX: usize = 65_536;

/// Most real servers of one service: a /16 of them.
const REALS_MAX: usize = 65_536;

/// Most rules for marks: each packet without a connection may be held against all of them.
const MARK_RULES_MAX: usize = 1024;

/// Most masqueraded networks: each new connection may be held against all of them.
const PREFIXES_MAX: usize = 64;

/// Most addresses that one pool can have; at 64,512 ports each they outlast the table.
const POOL_ADDRESSES_MAX: usize = 256;

/// The scheduler's name for a service that shall have none.
pub(super) const NO_SCHEDULER: &str = "none";

/// The one persistence engine there is.
pub(super) const ENGINE: &str = "sip";

/// What is there while a command is checked: what is in force, and over it what the batch has done
/// so far.
#[derive(Clone)]
pub(super) struct Shape<'a> {
    services: &'a Services,
    ports: &'a [Port],
    tunables: Tunables,
    synced: Synced,
    flushed: bool,
    touched: BTreeMap<ServiceKey, Option<BTreeSet<RealKey>>>,
    count: usize,
    /// Families in which full NAT has local addresses.
    local: [bool; 2],
}

impl<'a> Shape<'a> {
    /// What is in force.
    pub fn new(
        services: &'a Services,
        ports: &'a [Port],
        tunables: Tunables,
        synced: Synced,
        full_nat: &SourcePool,
    ) -> Shape<'a> {
        Shape {
            services,
            ports,
            tunables,
            synced,
            flushed: false,
            touched: BTreeMap::new(),
            count: services.len(),
            local: families_of(full_nat),
        }
    }

    /// May this be done?
    ///
    /// # Errors
    /// The kernel's own; for a batch, that of its first bad member.
    pub fn check(&mut self, command: &Command) -> Result<(), Refusal> {
        match command {
            Command::AddService(spec) if self.has(&spec.key) => Err(Refusal::ServiceExists),
            Command::AddService(_) if self.count >= SERVICES_MAX => Err(Refusal::OutOfMemory),
            Command::AddService(spec) => service(spec),
            Command::EditService(spec) => {
                self.must_have(&spec.key, Refusal::NoSuchService)?;
                service(spec)
            }
            Command::DeleteService(key) | Command::Zero(Some(key)) => {
                self.must_have(key, Refusal::NoSuchService)
            }
            Command::AddReal { service, real } => self.add_real(service, real),
            Command::EditReal { service, real } => {
                self.must_have(service, Refusal::ServiceNotDefined)?;
                self.real(service, real)?;
                self.must_have_real(service, real.key)
            }
            Command::DeleteReal { service, real } => {
                self.must_have(service, Refusal::ServiceNotDefined)?;
                self.must_have_real(service, *real)
            }
            Command::SetTimeouts(timeouts) => timeouts_in_range(timeouts),
            Command::SetTunable { name, value } => tunables::set(&mut self.tunables, name, value),
            Command::SetMarks(rules) => marks(rules),
            Command::SetFtpPorts(ports) => ftp_ports(ports),
            // Its messages have one family for the client and the server.
            Command::StartSync(_) if self.has_mixed() => Err(Refusal::Invalid),
            Command::StartSync(daemon) => self.synced.start(daemon),
            Command::StopSync(role) => self.synced.stop(*role),
            Command::SetPools {
                masquerading,
                full_nat,
            } => {
                pools(masquerading, full_nat)?;
                self.local = families_of(full_nat);
                Ok(())
            }
            Command::Flush | Command::Zero(None) => Ok(()),
            Command::Batch(commands) => commands.iter().try_for_each(|command| {
                self.check(command)?;
                self.record(command);
                Ok(())
            }),
        }
    }

    /// Judges one of several commands that are done each on its own, and remembers it if it is good. A
    /// batch among them that is refused has changed nothing.
    ///
    /// # Errors
    /// As `check`.
    pub fn try_one(&mut self, command: &Command) -> Result<(), Refusal> {
        if matches!(command, Command::Batch(_)) {
            let before = self.clone();
            return self.check(command).inspect_err(|_| *self = before);
        }
        self.check(command)?;
        self.record(command);
        Ok(())
    }

    fn add_real(&mut self, key: &ServiceKey, spec: &RealSpec) -> Result<(), Refusal> {
        self.must_have(key, Refusal::ServiceNotDefined)?;
        self.real(key, spec)?;
        if self.has_real(key, spec.key) {
            return Err(Refusal::DestinationExists);
        }
        if self.reals_of(key) >= REALS_MAX {
            return Err(Refusal::OutOfMemory);
        }
        if !is_unicast(spec.key.0.address, self.ports) {
            return Err(Refusal::Invalid);
        }
        Ok(())
    }

    /// The checks that -a and -e share.
    fn real(&self, key: &ServiceKey, spec: &RealSpec) -> Result<(), Refusal> {
        let mixed = Family::of(spec.key.0.address) != key.family();
        if !spec.method.is_configurable() || (mixed && spec.method != ForwardMethod::Tunnel) {
            return Err(Refusal::Invalid);
        }
        if mixed && self.synced.is_running() {
            return Err(Refusal::Invalid);
        }
        if spec.method == ForwardMethod::FullNat && !self.local[key.family() as usize] {
            return Err(Refusal::NoLocalAddress);
        }
        if spec.weight.0 < 0 || spec.thresholds.lower > spec.thresholds.upper {
            return Err(Refusal::OutOfRange);
        }
        if matches!(spec.tunnel, Tunnel::Gue { port: 0, .. }) {
            return Err(Refusal::Invalid);
        }
        Ok(())
    }

    fn has(&self, key: &ServiceKey) -> bool {
        match self.touched.get(key) {
            Some(touched) => touched.is_some(),
            None => !self.flushed && self.services.contains_key(key),
        }
    }

    fn has_real(&self, key: &ServiceKey, real: RealKey) -> bool {
        match self.touched.get(key) {
            Some(touched) => touched.as_ref().is_some_and(|reals| reals.contains(&real)),
            None => !self.flushed && self.services.get(key).is_some_and(|s| s.has_real(real)),
        }
    }

    /// Is there a real server of another family than its service (`mixed_address_family_dests`)?
    fn has_mixed(&self) -> bool {
        let is_mixed =
            |key: &ServiceKey, real: &RealKey| Family::of(real.0.address) != key.family();
        let mut touched = self.touched.iter();
        let mut others = self.services.iter().filter(|(key, _)| {
            let touched = self.flushed || self.touched.contains_key(key);
            !touched
        });
        touched.any(|(key, reals)| {
            let mut reals = reals.iter().flatten();
            reals.any(|real| is_mixed(key, real))
        }) || others.any(|(key, service)| {
            let mut reals = service.reals.iter();
            reals.any(|real| is_mixed(key, &real.key))
        })
    }

    fn reals_of(&self, key: &ServiceKey) -> usize {
        match self.touched.get(key) {
            Some(touched) => touched.as_ref().map_or(0, BTreeSet::len),
            None => self
                .services
                .get(key)
                .map_or(0, |service| service.reals.len()),
        }
    }

    fn must_have(&self, key: &ServiceKey, otherwise: Refusal) -> Result<(), Refusal> {
        self.has(key).then_some(()).ok_or(otherwise)
    }

    fn must_have_real(&self, key: &ServiceKey, real: RealKey) -> Result<(), Refusal> {
        let found = self.has_real(key, real);
        found.then_some(()).ok_or(Refusal::NoSuchDestination)
    }

    /// Remembers what a checked member of a batch would do.
    fn record(&mut self, command: &Command) {
        match command {
            Command::AddService(spec) => {
                self.touched.insert(spec.key, Some(BTreeSet::new()));
                self.count += 1;
            }
            Command::DeleteService(key) => {
                self.touched.insert(*key, None);
                self.count -= 1;
            }
            Command::Flush => {
                self.touched.clear();
                self.flushed = true;
                self.count = 0;
            }
            Command::AddReal { service, real } => {
                self.touch(service).insert(real.key);
            }
            Command::DeleteReal { service, real } => {
                self.touch(service).remove(real);
            }
            _ => {}
        }
    }

    /// The real servers of a service that is there, to be changed.
    fn touch(&mut self, key: &ServiceKey) -> &mut BTreeSet<RealKey> {
        let in_force = || {
            let service = self.services.get(key);
            service.map(|service| service.reals.iter().map(|real| real.key).collect())
        };
        let touched = self.touched.entry(*key).or_insert_with(in_force);
        touched
            .as_mut()
            .expect("the command was checked: the service is there")
    }
}

/// What -A and -E must satisfy.
fn service(spec: &ServiceSpec) -> Result<(), Refusal> {
    let known = spec.scheduler == NO_SCHEDULER || sched::by_name(&spec.scheduler, &[]).is_some();
    let engine_known = spec.engine.as_deref().is_none_or(|name| name == ENGINE);
    if !known || !engine_known {
        return Err(Refusal::SchedulerNotFound);
    }
    let key_ok = match spec.key {
        ServiceKey::Address { protocol, .. } => protocol.is_balanced(),
        ServiceKey::Mark { mark, .. } => mark != 0,
    };
    let netmask_ok = match (spec.netmask, spec.key.family()) {
        (Netmask::V4(_), Family::V4) => true,
        (Netmask::V6(len), Family::V6) => (1..=128).contains(&len),
        _ => false,
    };
    let life = spec
        .persistence
        .map_or(1, |persistence| persistence.timeout_s);
    let life_ok = (1..=TIMEOUT_MAX_S).contains(&life);
    let known_flags = ServiceFlags::ONE_PACKET
        | ServiceFlags::SCHED_1
        | ServiceFlags::SCHED_2
        | ServiceFlags::SCHED_3;
    let flags_ok = spec.flags.0 & !known_flags == 0;
    if key_ok && netmask_ok && life_ok && flags_ok {
        Ok(())
    } else {
        Err(Refusal::Invalid)
    }
}

/// What rules for marks must satisfy: a bounded number, no mark of 0, prefixes that fit, no empty range,
/// ports only where there are some.
fn marks(rules: &[MarkRule]) -> Result<(), Refusal> {
    if rules.len() > MARK_RULES_MAX {
        return Err(Refusal::OutOfMemory);
    }
    let fine = rules.iter().all(|rule| {
        let has_ports = rule.protocol.is_some_and(Protocol::is_balanced);
        let mut networks = rule.sources.iter().chain(&rule.targets);
        rule.mark != 0
            && networks.all(|(address, len)| *len <= if address.is_ipv4() { 32 } else { 128 })
            && rule.target_ports.iter().all(|(first, last)| first <= last)
            && (rule.target_ports.is_empty() || has_ports)
    });
    fine.then_some(()).ok_or(Refusal::Invalid)
}

/// Ports of the FTP helper: few, and real ones.
fn ftp_ports(ports: &[u16]) -> Result<(), Refusal> {
    let fine = ports.len() <= FTP_PORTS_MAX && ports.iter().all(|port| *port != 0);
    if fine { Ok(()) } else { Err(Refusal::Invalid) }
}

/// What the pools must satisfy: bounded numbers, prefixes that fit, addresses that one host can have,
/// ports from 1 on.
fn pools(masquerading: &Masquerading, full_nat: &SourcePool) -> Result<(), Refusal> {
    let pools = [&masquerading.pool, full_nat];
    let many = |pool: &&SourcePool| pool.addresses.len() > POOL_ADDRESSES_MAX;
    if masquerading.prefixes.len() > PREFIXES_MAX || pools.iter().any(many) {
        return Err(Refusal::OutOfMemory);
    }
    let mut prefixes = masquerading.prefixes.iter();
    let speaks = families_of(&masquerading.pool);
    let prefixes_fine = prefixes.all(|(address, len)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        *len <= most && speaks[Family::of(*address) as usize]
    });
    let pool_fine = |pool: &SourcePool| {
        let (first, last) = pool.ports;
        let fine = pool
            .addresses
            .iter()
            .all(|address| is_unicast(*address, &[]));
        fine && first > 0 && first <= last
    };
    let fine = prefixes_fine && pools.into_iter().all(pool_fine);
    fine.then_some(()).ok_or(Refusal::Invalid)
}

fn families_of(pool: &SourcePool) -> [bool; 2] {
    [Family::V4, Family::V6].map(|family| {
        let mut addresses = pool.addresses.iter();
        addresses.any(|address| Family::of(*address) == family)
    })
}

fn timeouts_in_range(timeouts: &Timeouts) -> Result<(), Refusal> {
    let all = [timeouts.tcp_s, timeouts.tcp_fin_s, timeouts.udp_s];
    let fine = all.iter().all(|seconds| *seconds <= TIMEOUT_MAX_S);
    fine.then_some(()).ok_or(Refusal::Invalid)
}

/// May a real server have this address? What the kernel's `inet_addr_type` and `ipv6_addr_type` call
/// unicast or local, with the addresses of our own ports in the place of the kernel's.
fn is_unicast(address: IpAddr, ports: &[Port]) -> bool {
    let mut own = ports.iter().flat_map(|port| &port.addresses);
    match address {
        IpAddr::V4(address) => {
            // Of 0.0.0.0/8 only the first address is special (since Linux 5.3).
            let special = address.is_unspecified() || address.is_broadcast();
            let ends_network = own.any(|(own, len)| is_broadcast_of(*own, *len, address));
            !special && !address.is_multicast() && !ends_network
        }
        IpAddr::V6(v6) => {
            let mapped = v6.to_ipv4_mapped().is_some();
            let usable = !v6.is_unspecified() && !v6.is_multicast() && !mapped;
            usable && (!v6.is_unicast_link_local() || own.any(|(own, _)| *own == address))
        }
    }
}

/// Is `address` the broadcast address of the network `own/len`? Networks of two hosts have none.
fn is_broadcast_of(own: IpAddr, len: u8, address: Ipv4Addr) -> bool {
    let IpAddr::V4(own) = own else {
        return false;
    };
    let hosts = u32::MAX.checked_shr(u32::from(len)).unwrap_or(0);
    len < 31 && u32::from(own) | hosts == u32::from(address)
}
