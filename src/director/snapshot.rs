//! Snapshot: everything a worker needs to know, immutable. The controller replaces it whole; what
//! lives inside (counters, scheduler state) is carried from one to the next.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use foldhash::fast::FixedState;

use super::classify::Classifier;
use super::pools::Pools;
use crate::lvs::tuple::{PackedAddress, pack};
use crate::lvs::{
    Endpoint, Family, Flow, ForwardMethod, Limits, MarkRule, Masquerading, Protocol, RealLive,
    RealServer, ServiceKey, ServiceSpec, SourcePool, Timeouts, Tunables, Tunnel,
};
use crate::sched::Scheduler;
use crate::time::Instant;
use crate::wire::Mac;

/// Number of a snapshot; every new one has a higher one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

/// A virtual service in force.
#[derive(Debug)]
pub struct Service {
    /// As configured.
    pub spec: ServiceSpec,
    /// Its real servers in the kernel's order: newest first.
    pub reals: Vec<RealServer>,
    /// The scheduler's state, shared by all snapshots of this service; `None` for scheduler `none`.
    pub scheduler: Option<Arc<Mutex<Box<dyn Scheduler>>>>,
}

/// Which side of the director a port is on. A hint for looking up and for stories: correctness does
/// not depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where clients come from.
    Public,
    /// Where the real servers are.
    Private,
}

/// An interface as the director sees it. Workers hold one `Rx` and `Tx` for each, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Interface name.
    pub name: String,
    /// Which side.
    pub side: Side,
    /// Its MAC address; unused where `raw_ip`.
    pub mac: Mac,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// No Ethernet: the kernel routes (TUN).
    pub raw_ip: bool,
    /// Its other end is this machine's own kernel, which has the same MAC address: what goes to a real
    /// server that is the director itself leaves by it (`KERNEL_HOP`), and the answers come in by it.
    pub kernel: bool,
    /// Addresses that the director itself owns and answers ARP for on this port, beside the VIPs: the
    /// floating gateway, for instance. The first of a family is the source of our ICMP errors.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Which of `addresses` the machine's kernel holds, too. It answers there for itself, so that nobody is
    /// locked out of the machine.
    pub held: Vec<IpAddr>,
    /// Networks reachable by this port: prefix, its length, and the gateway (`None`: on the link).
    pub routes: Vec<(IpAddr, u8, Option<IpAddr>)>,
    /// Networks reachable by this port for what comes from certain addresses. They go before `routes`.
    pub routes_from: Vec<SourceRoute>,
    /// Neighbours that need not be asked.
    pub neighbours: Vec<(IpAddr, Mac)>,
}

/// The next hop on the port whose other end is this machine's own kernel, whatever the target: the
/// port's `neighbours` have its MAC address.
pub const KERNEL_HOP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A route that only packets from certain addresses take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceRoute {
    /// Where they come from: prefix and its length.
    pub from: (IpAddr, u8),
    /// Where they go: prefix and its length.
    pub to: (IpAddr, u8),
    /// The gateway; `None`: on the link.
    pub via: Option<IpAddr>,
}

/// May this director answer for the VIPs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// Yes.
    #[default]
    Primary,
    /// No: it waits.
    Backup,
}

/// Everything a worker needs to know.
#[derive(Debug)]
pub struct Snapshot {
    /// Its number.
    pub id: SnapshotId,
    /// Primary or backup.
    pub role: Role,
    /// The services in the engine's order.
    pub services: Vec<Arc<Service>>,
    /// Interfaces, in the order of the workers' halves.
    pub ports: Vec<Port>,
    /// The sysctls.
    pub tunables: Tunables,
    /// The three timeouts of `--set`.
    pub timeouts: Timeouts,
    /// Bounds.
    pub limits: Limits,
    by_key: HashMap<ServiceKey, usize, FixedState>,
    vips: HashMap<IpAddr, (), FixedState>,
    own: HashMap<IpAddr, usize, FixedState>,
    reals_at: HashMap<IpAddr, Vec<(ForwardMethod, Arc<RealLive>)>, FixedState>,
    masq_reals: HashMap<(Protocol, Endpoint), (), FixedState>,
    /// Where real servers may speak first: the numbers of service and server.
    starters: HashMap<(Protocol, Endpoint), (usize, usize), FixedState>,
    /// All ports' routes, the longest prefix first.
    routes: Vec<Route>,
    /// All ports' routes by source, and the networks these hold for: the longest source prefix first.
    routes_from: Vec<(Route, Route)>,
    marks: Classifier,
    pools: Pools,
    ftp_ports: Vec<u16>,
    serves: [bool; 2],
    kernel_port: Option<usize>,
    has_ftp: bool,
    has_port_zero: bool,
}

/// A route as the packet path walks it.
#[derive(Debug)]
struct Route {
    family: Family,
    net: PackedAddress,
    mask: PackedAddress,
    port: usize,
    gateway: Option<IpAddr>,
}

impl Route {
    fn new(port: usize, prefix: IpAddr, len: u8, gateway: Option<IpAddr>) -> Route {
        let bits = u128::MAX
            .checked_shl(128 - u32::from(len.min(128)))
            .unwrap_or(0);
        let mask = match prefix {
            IpAddr::V4(_) => [0, (bits >> 96) as u64],
            IpAddr::V6(_) => [(bits >> 64) as u64, bits as u64],
        };
        let prefix_words = pack(prefix);
        let net = [prefix_words[0] & mask[0], prefix_words[1] & mask[1]];
        Route {
            family: Family::of(prefix),
            net,
            mask,
            port,
            gateway,
        }
    }

    fn covers(&self, family: Family, address: PackedAddress) -> bool {
        let differs =
            (address[0] & self.mask[0] ^ self.net[0]) | (address[1] & self.mask[1] ^ self.net[1]);
        differs == 0 && family == self.family
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// The routes of all ports: of two that match, the one that comes first is taken.
fn routes_of(ports: &[Port]) -> Vec<Route> {
    let mut routes: Vec<(u8, Route)> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        for (prefix, len, gateway) in &port.routes {
            routes.push((*len, Route::new(index, *prefix, *len, *gateway)));
        }
    }
    routes.sort_by_key(|(len, _)| std::cmp::Reverse(*len));
    routes.into_iter().map(|(_, route)| route).collect()
}

/// The routes by source, likewise.
fn routes_from_of(ports: &[Port]) -> Vec<(Route, Route)> {
    let mut routes: Vec<(u8, u8, Route, Route)> = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        for SourceRoute { from, to, via } in &port.routes_from {
            let source = Route::new(index, from.0, from.1, None);
            routes.push((from.1, to.1, source, Route::new(index, to.0, to.1, *via)));
        }
    }
    routes.sort_by_key(|(from, to, ..)| std::cmp::Reverse((*from, *to)));
    routes
        .into_iter()
        .map(|(_, _, from, to)| (from, to))
        .collect()
}

/// What a snapshot is made of; `Snapshot::new` builds the look-up tables.
#[derive(Debug)]
pub struct Parts {
    /// See `Snapshot::id`.
    pub id: SnapshotId,
    /// See `Snapshot::role`.
    pub role: Role,
    /// See `Snapshot::services`.
    pub services: Vec<Arc<Service>>,
    /// See `Snapshot::ports`.
    pub ports: Vec<Port>,
    /// See `Snapshot::tunables`.
    pub tunables: Tunables,
    /// See `Snapshot::timeouts`.
    pub timeouts: Timeouts,
    /// See `Snapshot::limits`.
    pub limits: Limits,
}

/// The first port a client may use without privilege; FTP data connections go to this or higher.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

impl Snapshot {
    /// Builds the look-up tables over `parts`.
    pub fn new(parts: Parts) -> Snapshot {
        let hasher = || FixedState::with_seed(parts.id.0);
        let mut by_key = HashMap::with_hasher(hasher());
        let mut vips = HashMap::with_hasher(hasher());
        let mut own = HashMap::with_hasher(hasher());
        let mut reals_at: HashMap<_, Vec<_>, _> = HashMap::with_hasher(hasher());
        let mut masq_reals = HashMap::with_hasher(hasher());
        let mut starters = HashMap::with_hasher(hasher());
        let (mut has_ftp, mut has_port_zero) = (false, false);
        let mut serves = [false; 2];
        for (index, service) in parts.services.iter().enumerate() {
            by_key.insert(service.spec.key, index);
            for (at, real) in service.reals.iter().enumerate() {
                let here = reals_at.entry(real.key.0.address).or_default();
                here.push((real.method, Arc::clone(&real.live)));
                let masq = real.method == ForwardMethod::Masq;
                if let (true, ServiceKey::Address { protocol, virt }) = (masq, service.spec.key) {
                    masq_reals.insert((protocol, real.key.0), ());
                    if service.spec.engine.is_some() && virt.port != 0 {
                        starters.insert((protocol, real.key.0), (index, at));
                    }
                }
            }
            serves[service.spec.key.family() as usize] = true;
            if let ServiceKey::Address { protocol, virt } = service.spec.key {
                vips.insert(virt.address, ());
                has_ftp |= protocol == Protocol::TCP && virt.port == 21;
                has_port_zero |= virt.port == 0;
            }
        }
        for (index, port) in parts.ports.iter().enumerate() {
            for (address, _) in &port.addresses {
                own.insert(*address, index);
            }
        }
        for (address, here) in &reals_at {
            let local =
                address.is_loopback() || own.contains_key(address) || vips.contains_key(address);
            let learned = here.iter().find(|(_, live)| live.path.is_learned());
            for (_, live) in here {
                live.local.store(local, Relaxed);
                if let Some((_, other)) = learned {
                    live.path.share(&other.path);
                }
            }
        }
        Snapshot {
            routes: routes_of(&parts.ports),
            routes_from: routes_from_of(&parts.ports),
            kernel_port: parts.ports.iter().position(|port| port.kernel),
            id: parts.id,
            role: parts.role,
            services: parts.services,
            ports: parts.ports,
            tunables: parts.tunables,
            timeouts: parts.timeouts,
            limits: parts.limits,
            by_key,
            vips,
            own,
            reals_at,
            masq_reals,
            starters,
            marks: Classifier::default(),
            pools: Pools::default(),
            ftp_ports: Vec::new(),
            serves,
            has_ftp,
            has_port_zero,
        }
    }

    /// The same with these rules for marks. A single address to which they give the mark of a service
    /// is a VIP like that of any other.
    pub fn with_marks(mut self, rules: &[MarkRule]) -> Snapshot {
        let names: Vec<&str> = self.ports.iter().map(|port| port.name.as_str()).collect();
        self.marks = Classifier::new(rules, &names);
        let vips: Vec<IpAddr> = self.marked_vips().collect();
        self.vips
            .extend(vips.into_iter().map(|address| (address, ())));
        self
    }

    /// The same with the addresses that the director speaks from for others. It owns each of them on
    /// the port that leads there.
    pub fn with_pools(mut self, masquerading: &Masquerading, full_nat: &SourcePool) -> Snapshot {
        self.pools = Pools::new(masquerading, full_nat);
        let addresses: Vec<IpAddr> = self.pools.addresses().collect();
        for address in addresses {
            if let Some((port, _)) = self.route_to(address) {
                self.own.entry(address).or_insert(port);
            }
        }
        for family in [Family::V4, Family::V6] {
            self.serves[family as usize] |= self.pools.masquerades(family);
        }
        self
    }

    /// The addresses that the director speaks from for others.
    pub fn pools(&self) -> &Pools {
        &self.pools
    }

    /// Is it where a service listens?
    pub fn is_service(&self, protocol: Protocol, virt: Endpoint) -> bool {
        self.by_key
            .contains_key(&ServiceKey::Address { protocol, virt })
    }

    /// The same with a helper for FTP on connections to these virtual ports.
    pub fn with_ftp(mut self, ports: &[u16]) -> Snapshot {
        self.ftp_ports = ports.to_vec();
        self
    }

    /// Virtual ports whose connections have a helper for FTP.
    pub fn ftp_ports(&self) -> &[u16] {
        &self.ftp_ports
    }

    /// The rules for marks.
    pub fn marks(&self) -> &Classifier {
        &self.marks
    }

    /// Single addresses to which the rules give the mark of a service.
    pub fn marked_vips(&self) -> impl Iterator<Item = IpAddr> {
        self.marks.rules().iter().flat_map(|rule| {
            let serves = |address: &IpAddr| {
                let (mark, family) = (rule.mark, Family::of(*address));
                self.by_key.contains_key(&ServiceKey::Mark { mark, family })
            };
            rule.single_targets().filter(serves)
        })
    }

    /// The service that takes a new connection, in the kernel's order (`ip_vs_service_find`):
    /// firewall mark; exact address and port; the FTP service for a TCP data connection; port zero.
    pub fn service_for(&self, flow: &Flow, mark: u32) -> Option<&Arc<Service>> {
        let at = |port: u16| {
            let virt = crate::lvs::Endpoint::new(flow.target.address, port);
            self.by_key.get(&ServiceKey::Address {
                protocol: flow.protocol,
                virt,
            })
        };
        let by_mark = || {
            self.by_key.get(&ServiceKey::Mark {
                mark,
                family: flow.family(),
            })
        };
        let ftp_data = flow.protocol == Protocol::TCP
            && self.has_ftp
            && (flow.target.port == 20 || flow.target.port >= FIRST_UNPRIVILEGED_PORT);
        let index = (mark != 0)
            .then(by_mark)
            .flatten()
            .or_else(|| at(flow.target.port))
            .or_else(|| ftp_data.then(|| at(21)).flatten())
            .or_else(|| self.has_port_zero.then(|| at(0)).flatten())?;
        Some(&self.services[*index])
    }

    /// The service of this key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.by_key.get(key).map(|index| &self.services[*index])
    }

    /// Is there a service of this family at all, or a masqueraded host? Without a service IPVS has no hand in the family's packets,
    /// those of connections that are left included (`ip_vs_unregister_hooks`).
    pub fn serves(&self, family: Family) -> bool {
        self.serves[family as usize]
    }

    /// Is it the address of a virtual service?
    pub fn is_vip(&self, address: &IpAddr) -> bool {
        self.vips.contains_key(address)
    }

    /// Is it the address of a configured real server?
    pub fn is_real(&self, address: &IpAddr) -> bool {
        self.reals_at.contains_key(address)
    }

    /// The configured real servers with this address, of every service.
    pub fn reals_at(&self, address: &IpAddr) -> impl Iterator<Item = &Arc<RealLive>> {
        let here = self.reals_at.get(address).map_or(&[][..], Vec::as_slice);
        here.iter().map(|(_, live)| live)
    }

    /// The longest packet to this address by a link with this MTU: what was learned of the way to a
    /// real server counts for whatever goes there.
    pub fn mtu_towards(&self, address: &IpAddr, link: u32, now: Instant) -> u32 {
        let mut known = self.reals_at(address);
        known.next().map_or(link, |live| live.path.get(link, now))
    }

    /// What packets to the configured real servers with this address that are reached by LVS-TUN are
    /// wrapped in.
    pub fn tunnels_to(&self, address: &IpAddr) -> impl Iterator<Item = Tunnel> {
        let here = self.reals_at.get(address).map_or(&[][..], Vec::as_slice);
        let tunnelled = here
            .iter()
            .filter(|(method, _)| *method == ForwardMethod::Tunnel);
        tunnelled.map(|(_, live)| live.tunnel())
    }

    /// Does a configured real server listen here, under masq, for a service of this protocol?
    pub fn is_masq_real(&self, protocol: Protocol, endpoint: &Endpoint) -> bool {
        self.masq_reals.contains_key(&(protocol, *endpoint))
    }

    /// Does any service have a persistence engine that lets real servers speak first?
    pub fn has_engines(&self) -> bool {
        !self.starters.is_empty()
    }

    /// The service, and the real server of it, that starts this flow.
    pub fn started_by(&self, flow: &Flow) -> Option<(&Arc<Service>, &RealServer)> {
        let (service, real) = self.starters.get(&(flow.protocol, flow.source))?;
        let service = &self.services[*service];
        Some((service, &service.reals[*real]))
    }

    /// Is it an address the director owns on some port (not a VIP)? Which port?
    pub fn own_port(&self, address: &IpAddr) -> Option<usize> {
        self.own.get(address).copied()
    }

    /// Is it an address of the director where the machine's kernel answers for itself?
    pub fn is_held(&self, address: &IpAddr) -> bool {
        let port = self.own_port(address).map(|port| &self.ports[port]);
        port.is_some_and(|port| port.held.contains(address)) && !self.is_vip(address)
    }

    /// The port whose other end is this machine's own kernel.
    pub fn kernel_port(&self) -> Option<usize> {
        self.kernel_port
    }

    /// The address from which we speak on `port` to somebody of `other`'s family: the port's own, else
    /// a VIP. Unspecified if there is none.
    pub fn source_on(&self, port: usize, other: IpAddr) -> IpAddr {
        let same_family = |address: &IpAddr| address.is_ipv4() == other.is_ipv4();
        let own = self.ports[port]
            .addresses
            .iter()
            .map(|(address, _)| *address);
        let vips = self
            .services
            .iter()
            .filter_map(|service| match service.spec.key {
                ServiceKey::Address { virt, .. } => Some(virt.address),
                ServiceKey::Mark { .. } => None,
            });
        let none: IpAddr = match other {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        own.chain(vips).find(same_family).unwrap_or(none)
    }

    /// The address from which we send packets of our own to `target` on `port` by way of `next_hop`: one
    /// of a network that we share with either, if there is one.
    pub fn source_towards(&self, port: usize, target: IpAddr, next_hop: IpAddr) -> IpAddr {
        let addresses = &self.ports[port].addresses;
        let sharing = |other: IpAddr| {
            let (family, packed) = (Family::of(other), pack(other));
            let shares = |(address, len): &&(IpAddr, u8)| {
                Route::new(port, *address, *len, None).covers(family, packed)
            };
            addresses.iter().find(shares).map(|(address, _)| *address)
        };
        let near = || sharing(next_hop).filter(|address| !is_link_local(address));
        let found = sharing(target).or_else(near);
        found.unwrap_or_else(|| self.source_on(port, target))
    }

    /// The port and next hop for `target`: the longest matching prefix of all ports.
    #[inline]
    pub fn route_to(&self, target: IpAddr) -> Option<(usize, IpAddr)> {
        let (family, packed) = (Family::of(target), pack(target));
        let route = self
            .routes
            .iter()
            .find(|route| route.covers(family, packed))?;
        Some((route.port, route.gateway.unwrap_or(target)))
    }

    /// Does any route go by the source?
    pub fn routes_by_source(&self) -> bool {
        !self.routes_from.is_empty()
    }

    /// The port and next hop for a packet from `source` to `target`: a route by source if there is one.
    #[inline]
    pub fn route_from(&self, source: IpAddr, target: IpAddr) -> Option<(usize, IpAddr)> {
        if !self.routes_by_source() {
            return self.route_to(target);
        }
        let (family, from, to) = (Family::of(target), pack(source), pack(target));
        let covers = |(source, target): &&(Route, Route)| {
            source.covers(family, from) && target.covers(family, to)
        };
        match self.routes_from.iter().find(covers) {
            Some((_, route)) => Some((route.port, route.gateway.unwrap_or(target))),
            None => self.route_to(target),
        }
    }
}
