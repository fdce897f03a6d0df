//! Scene: where the director of a trace stands. A capture does not say which side a frame came from,
//! who the director was, or what MAC addresses its neighbours have; this is found out from the
//! configuration and a first look at the whole capture, or made up, and said.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;

use crate::config::Command;
use crate::config::file::{Config, PortSpec, Side as ConfigSide};
use crate::director::snapshot::{Port, Side, SourceRoute};
use crate::lvs::{RealKey, ServiceKey};
use crate::nic::pcap::Captured;
use crate::wire::arp::Arp;
use crate::wire::packet::Kind;
use crate::wire::{Layout, Mac, Offload, Packet};

/// Ethernet's MTU; a capture with longer packets (of an offloading device) raises it.
const MTU: usize = 1500;
/// Interfaces of a capture that are looked at; any more are one with the last.
const INTERFACES_MAX: usize = 256;
/// ARP answers remembered until it is known who the director was.
const ANSWERS_MAX: usize = 256;

/// A network: `192.168.1.0/24`, or an address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Net {
    address: IpAddr,
    prefix: u8,
}

impl Net {
    fn new(address: IpAddr, prefix: u8) -> Net {
        Net { address, prefix }
    }

    fn host(address: IpAddr) -> Net {
        Net::new(address, width(address))
    }

    fn covers(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let behind = u32::from(width(self.address) - self.prefix);
        let differing = bits(self.address) ^ bits(other);
        let differing = differing.checked_shr(behind).unwrap_or(0);
        self.address.is_ipv4() == other.is_ipv4() && differing == 0
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl FromStr for Net {
    type Err = String;
    fn from_str(text: &str) -> Result<Net, String> {
        let (address, prefix) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address
            .parse()
            .map_err(|_| format!("{address:?} is no IP address"))?;
        let most = width(address);
        let prefix = match prefix {
            "" => Some(most),
            prefix => prefix.parse().ok().filter(|prefix| *prefix <= most),
        };
        let prefix = prefix.ok_or_else(|| format!("the prefix of {address} is 0 to {most}"))?;
        Ok(Net { address, prefix })
    }
}

/// What a person can say of a capture that does not say it itself.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Hints {
    /// Interface of a pcapng file where clients come from
    #[arg(long, value_name = "INTERFACE")]
    pub public: Option<String>,
    /// Interface of a pcapng file where the real servers are
    #[arg(long, value_name = "INTERFACE")]
    pub private: Option<String>,
    /// A network of clients, where addresses do not tell them from real servers
    #[arg(long, value_name = "NET")]
    pub public_net: Vec<Net>,
    /// A network of real servers
    #[arg(long, value_name = "NET")]
    pub private_net: Vec<Net>,
    /// MAC address of the director towards the clients
    #[arg(long, value_name = "MAC")]
    pub public_mac: Option<Mac>,
    /// MAC address of the director towards the real servers
    #[arg(long, value_name = "MAC")]
    pub private_mac: Option<Mac>,
    /// Firewall mark of the frames that clients send
    #[arg(
        long,
        value_name = "MARK",
        default_value_t = 0,
        hide_default_value = true
    )]
    pub mark: u32,
}

/// Who speaks to whom in a frame, at both levels.
struct Ends {
    source: IpAddr,
    target: IpAddr,
    source_mac: Mac,
    target_mac: Mac,
    arp: Option<Arp>,
}

impl Ends {
    fn of(packet: &mut Captured) -> Option<Ends> {
        let layout = Layout::parse(&packet.bytes, packet.raw_ip).ok()?;
        let packet = Packet::over(&mut packet.bytes, layout, Offload::default());
        let (source_mac, target_mac) = (packet.source_mac(), packet.target_mac());
        let (source, target, arp) = match layout.kind {
            Kind::V4 | Kind::V6 => (packet.source(), packet.target(), None),
            Kind::Arp => {
                let arp = Arp::read(&packet)?;
                (arp.sender.into(), arp.target.into(), Some(arp))
            }
            Kind::Other => return None,
        };
        Some(Ends {
            source,
            target,
            source_mac,
            target_mac,
            arp,
        })
    }
}

/// How often each MAC address was met in a role.
type Votes = BTreeMap<Mac, u64>;

fn vote(votes: &mut Votes, mac: Mac) {
    if !mac.is_group() && mac != Mac::default() {
        *votes.entry(mac).or_default() += 1;
    }
}

fn winner(votes: &Votes) -> Option<Mac> {
    let most = votes.iter().max_by_key(|(_, count)| **count);
    most.map(|(mac, _)| *mac)
}

/// What was seen on one interface of the capture.
#[derive(Clone, Debug, Default)]
struct Interface {
    name: Option<String>,
    named: Option<usize>,
    public: bool,
    private: bool,
}

/// The director's place: its ports, and how frames of the capture find to them.
#[derive(Debug)]
pub struct Scene {
    /// The ports, ready for a director.
    pub ports: Vec<Port>,
    /// Frames begin with IP.
    pub raw_ip: bool,
    /// Packets of the capture.
    pub packets: u64,
    /// What was found out and what was made up, one line each.
    pub notes: Vec<String>,
    hints: Hints,
    specs: Vec<PortSpec>,
    public: usize,
    private: usize,
    vips: BTreeSet<IpAddr>,
    rips: BTreeSet<IpAddr>,
    interfaces: Vec<Interface>,
    ours: Vec<Votes>,
    /// MAC addresses of real servers and gateways: heard from them, or only spoken to.
    heard: BTreeMap<IpAddr, Mac>,
    addressed: BTreeMap<IpAddr, Mac>,
    answers: BTreeSet<(usize, IpAddr, Mac)>,
    longest: usize,
    kinds: [bool; 2],
}

impl Scene {
    /// An empty scene of this configuration. Nothing is known of the capture yet.
    pub fn new(config: &Config, hints: &Hints) -> Scene {
        let mut specs = config.ports.clone();
        if specs.is_empty() {
            specs.push(PortSpec::new(&config.director.tun, ConfigSide::Public));
        }
        let of_side = |side| specs.iter().position(|spec| spec.side == side);
        let (public, private) = (of_side(ConfigSide::Public), of_side(ConfigSide::Private));
        let mut scene = Scene {
            ports: Vec::new(),
            raw_ip: false,
            packets: 0,
            notes: Vec::new(),
            hints: hints.clone(),
            public: public.or(private).unwrap_or(0),
            private: private.or(public).unwrap_or(0),
            vips: BTreeSet::new(),
            rips: BTreeSet::new(),
            interfaces: Vec::new(),
            ours: vec![Votes::new(); specs.len()],
            heard: BTreeMap::new(),
            addressed: BTreeMap::new(),
            answers: BTreeSet::new(),
            longest: 0,
            kinds: [false; 2],
            specs,
        };
        config
            .services
            .iter()
            .for_each(|command| scene.take(command));
        scene
    }

    fn take(&mut self, command: &Command) {
        let (key, real) = match command {
            Command::AddService(spec) => (spec.key, None),
            Command::AddReal { service, real } => (*service, Some(real.key)),
            Command::Batch(commands) => return commands.iter().for_each(|one| self.take(one)),
            _ => return,
        };
        if let ServiceKey::Address { virt, .. } = key {
            self.vips.insert(virt.address);
        }
        if let Some(RealKey(endpoint)) = real {
            self.rips.insert(endpoint.address);
        }
    }

    /// A first look at a packet, to learn from. `name` is what the capture calls its interface.
    pub fn learn(&mut self, packet: &mut Captured, name: Option<&str>) {
        self.packets += 1;
        self.kinds[usize::from(packet.raw_ip)] = true;
        let interface = self.interface(packet.interface, name);
        let Some(ends) = Ends::of(packet) else { return };
        let link = if packet.raw_ip { 0 } else { 14 };
        if ends.arp.is_none() {
            self.longest = self.longest.max(packet.original_len.saturating_sub(link));
        }
        let of_real = self.is_inside(ends.source) || self.is_inside(ends.target);
        let of_vip = self.vips.contains(&ends.source) || self.vips.contains(&ends.target);
        self.interfaces[interface].private |= of_real;
        self.interfaces[interface].public |= of_vip && !of_real;
        let port = self.port_of(interface, Some(&ends));
        self.learn_ours(port, &ends);
        self.learn_others(port, &ends);
    }

    /// Who the director is: whoever the VIP's packets are sent to, or the real servers' answers.
    fn learn_ours(&mut self, port: usize, ends: &Ends) {
        let from_real = self.is_inside(ends.source);
        let to_real = self.is_inside(ends.target);
        let votes = &mut self.ours[port];
        if let Some(arp) = ends.arp {
            if self.vips.contains(&ends.source) {
                vote(votes, arp.sender_mac);
            }
            if !arp.is_request && self.answers.len() < ANSWERS_MAX {
                self.answers.insert((port, ends.source, arp.sender_mac));
            }
            return;
        }
        if self.vips.contains(&ends.target) || from_real && !to_real {
            vote(votes, ends.target_mac);
        }
        if self.vips.contains(&ends.source) || to_real && !from_real {
            vote(votes, ends.source_mac);
        }
    }

    /// The MAC addresses of whom we may have to speak to first.
    fn learn_others(&mut self, port: usize, ends: &Ends) {
        let spec = &self.specs[port];
        let gateways = spec.routes.iter().filter_map(|route| route.via);
        let wanted = |address: &IpAddr| {
            self.rips.contains(address) || gateways.clone().any(|via| via == *address)
        };
        if wanted(&ends.source) {
            self.heard.entry(ends.source).or_insert(ends.source_mac);
        }
        if wanted(&ends.target) && ends.arp.is_none() {
            self.addressed.entry(ends.target).or_insert(ends.target_mac);
        }
        // Whoever is behind a gateway comes with the gateway's MAC address.
        let far = ends.arp.is_none() && !self.is_near(port, ends.source);
        let via = spec.routes.iter().find_map(|route| {
            let net = Net::new(route.to.address, route.to.prefix);
            route.via.filter(|_| far && net.covers(ends.source))
        });
        if let Some(via) = via {
            self.heard.entry(via).or_insert(ends.source_mac);
        }
    }

    /// Is it on the link of this port, by what is configured?
    fn is_near(&self, port: usize, address: IpAddr) -> bool {
        let spec = &self.specs[port];
        let own = spec.addresses.iter();
        let mut near = own.map(|own| Net::new(own.address, own.prefix));
        let routed = spec.routes.iter().filter(|route| route.via.is_none());
        let mut routed = routed.map(|route| Net::new(route.to.address, route.to.prefix));
        near.any(|net| net.covers(address)) || routed.any(|net| net.covers(address))
    }

    /// The entry of an interface of the capture, made when it is first met.
    fn interface(&mut self, number: usize, name: Option<&str>) -> usize {
        let number = number.min(INTERFACES_MAX - 1);
        while self.interfaces.len() <= number {
            self.interfaces.push(Interface::default());
        }
        let hinted = |hint: &Option<String>| name.is_some() && hint.as_deref() == name;
        if name.is_some() && self.interfaces[number].name.is_none() {
            self.interfaces[number].name = name.map(str::to_string);
        }
        if hinted(&self.hints.public) {
            self.interfaces[number].named = Some(self.public);
        } else if hinted(&self.hints.private) {
            self.interfaces[number].named = Some(self.private);
        } else if let Some(name) = name {
            let port = self.specs.iter().position(|spec| spec.interface == name);
            self.interfaces[number].named = port;
        }
        number
    }

    /// The port that a packet came in by: told by the interface's name, else by what this interface
    /// has seen, else by the packet's addresses.
    fn port_of(&self, interface: usize, ends: Option<&Ends>) -> usize {
        let interface = &self.interfaces[interface];
        match (interface.named, interface.public, interface.private) {
            (Some(port), ..) => port,
            (None, true, false) => self.public,
            (None, false, true) => self.private,
            _ => ends.map_or(self.public, |ends| self.place(ends.source, ends.target)),
        }
    }

    /// Is it a real server's, or of a network that is said to be theirs?
    fn is_inside(&self, address: IpAddr) -> bool {
        let within = |nets: &[Net]| nets.iter().any(|net| net.covers(address));
        let inside = self.rips.contains(&address) || within(&self.hints.private_net);
        inside && !within(&self.hints.public_net)
    }

    fn place(&self, source: IpAddr, target: IpAddr) -> usize {
        let outside = |net: &Net| net.covers(source);
        if self.hints.public_net.iter().any(outside) {
            return self.public;
        }
        for address in [source, target] {
            let near = (0..self.specs.len()).find(|port| self.is_near(*port, address));
            let inside = self.is_inside(address).then_some(self.private);
            if let Some(port) = near.or(inside) {
                return port;
            }
        }
        self.public
    }

    /// The port of a packet, now that everything is known.
    pub fn port(&self, packet: &mut Captured) -> usize {
        let interface = packet.interface.min(self.interfaces.len().max(1) - 1);
        let ends = Ends::of(packet);
        if self.interfaces.is_empty() {
            return self.public;
        }
        self.port_of(interface, ends.as_ref())
    }

    /// Everything has been seen: the ports stand.
    ///
    /// # Errors
    /// When the capture cannot be one director's.
    pub fn settle(&mut self) -> Result<(), String> {
        if self.kinds == [true; 2] {
            return Err(
                "it has packets with and without Ethernet headers; trace one kind of them"
                    .to_string(),
            );
        }
        self.raw_ip = self.kinds[1];
        self.check_hints()?;
        self.settle_sides();
        let mtu = self.longest.max(MTU);
        if mtu > MTU {
            self.notes.push(format!(
                "MTU {mtu}, since the capture has packets that long"
            ));
        }
        for index in 0..self.specs.len() {
            let port = self.settle_port(index, mtu as u32);
            self.ports.push(port);
        }
        Ok(())
    }

    /// Says which interface of the capture is which port; ports that nobody has named take its name.
    fn settle_sides(&mut self) {
        for interface in &self.interfaces {
            let port = match (interface.named, interface.public, interface.private) {
                (None, true, false) => self.public,
                (None, false, true) => self.private,
                _ => continue,
            };
            let Some(name) = &interface.name else {
                continue;
            };
            let side = self.specs[port].side.name();
            self.notes
                .push(format!("{name}: taken for the {side} side"));
            if self.specs[port].interface == side {
                self.specs[port].interface.clone_from(name);
            }
        }
    }

    fn check_hints(&self) -> Result<(), String> {
        for (hint, port) in [
            (&self.hints.public, self.public),
            (&self.hints.private, self.private),
        ] {
            let named = |interface: &Interface| interface.named == Some(port);
            if let Some(name) = hint
                && !self.interfaces.iter().any(named)
            {
                return Err(format!("it has no interface {name:?}"));
            }
        }
        Ok(())
    }

    fn settle_port(&mut self, index: usize, mtu: u32) -> Port {
        let spec = self.specs[index].clone();
        let side = match spec.side {
            ConfigSide::Public => Side::Public,
            ConfigSide::Private => Side::Private,
        };
        let mac = self.settle_mac(index, &spec);
        let mut addresses: Vec<(IpAddr, u8)> = spec
            .addresses
            .iter()
            .map(|own| (own.address, own.prefix))
            .collect();
        let told = self.answers.iter().filter(|(port, address, by)| {
            (*port, *by) == (index, mac) && !self.vips.contains(address)
        });
        for (_, address, _) in told {
            if addresses.iter().all(|(own, _)| own != address) {
                addresses.push((*address, width(*address)));
            }
        }
        for (address, _) in &addresses[spec.addresses.len()..] {
            let line = format!("{}: the director answers for {address}", spec.interface);
            self.notes.push(line);
        }
        let routes = self.routes(index, &spec);
        Port {
            neighbours: self.neighbours(index, &spec, &routes),
            routes_from: routes_from(&spec),
            name: spec.interface,
            side,
            mac,
            mtu,
            raw_ip: self.raw_ip,
            kernel: false,
            held: Vec::new(),
            addresses,
            routes,
        }
    }

    fn settle_mac(&mut self, index: usize, spec: &PortSpec) -> Mac {
        let hinted = match index {
            _ if index == self.public => self.hints.public_mac,
            _ if index == self.private => self.hints.private_mac,
            _ => None,
        };
        let name = &spec.interface;
        let (mac, how) = match (hinted, winner(&self.ours[index])) {
            (Some(mac), _) => (mac, "as told"),
            (None, Some(mac)) => (mac, "from the capture"),
            (None, None) => (Mac([2, 0, 0, 0, 0xff, index as u8]), "made up"),
        };
        if !self.raw_ip {
            self.notes
                .push(format!("{name}: the director is {mac} ({how})"));
        }
        mac
    }

    /// The routes of a port: configured ones, links, and, where nothing leads anywhere, the real
    /// servers on the private side and everything else on the public one.
    fn routes(&self, index: usize, spec: &PortSpec) -> Vec<(IpAddr, u8, Option<IpAddr>)> {
        let configured = |spec: &PortSpec| -> Vec<(Net, Option<IpAddr>)> {
            let own = spec.addresses.iter();
            let links = own.map(|own| (Net::new(own.address, own.prefix), None));
            let routes = spec.routes.iter().filter(|route| route.from.is_none());
            let routes =
                routes.map(|route| (Net::new(route.to.address, route.to.prefix), route.via));
            links.chain(routes).collect()
        };
        let mut routes = configured(spec);
        let all: Vec<Net> = self
            .specs
            .iter()
            .flat_map(configured)
            .map(|(net, _)| net)
            .collect();
        if index == self.private {
            let lost = |rip: &&IpAddr| !all.iter().any(|net| net.prefix > 0 && net.covers(**rip));
            let lost = self.rips.iter().filter(lost);
            routes.extend(lost.map(|rip| (Net::host(*rip), None)));
            routes.extend(self.hints.private_net.iter().map(|net| (*net, None)));
        }
        if index == self.public {
            for all_of_it in ["0.0.0.0/0", "::/0"] {
                let net = Net::from_str(all_of_it).expect("a good network");
                if !all.contains(&net) {
                    routes.push((net, None));
                }
            }
        }
        let plain = |(net, via): (Net, Option<IpAddr>)| (net.address, net.prefix, via);
        routes.into_iter().map(plain).collect()
    }

    /// The neighbours that a director speaks to first: real servers and gateways.
    fn neighbours(
        &mut self,
        index: usize,
        spec: &PortSpec,
        routes: &[(IpAddr, u8, Option<IpAddr>)],
    ) -> Vec<(IpAddr, Mac)> {
        let configured = spec.neighbours.iter();
        let mut found: Vec<(IpAddr, Mac)> = configured
            .map(|(address, mac)| (*address, Mac(*mac)))
            .collect();
        let gateways = spec.routes.iter().filter_map(|route| route.via);
        let near = |rip: &&IpAddr| {
            let covers = |(address, prefix, via): &(IpAddr, u8, Option<IpAddr>)| {
                via.is_none() && Net::new(*address, *prefix).covers(**rip)
            };
            index == self.private && routes.iter().any(covers)
        };
        let reals = self.rips.iter().filter(near).copied();
        for address in gateways.chain(reals).collect::<BTreeSet<IpAddr>>() {
            if found.iter().any(|(known, _)| *known == address) {
                continue;
            }
            let seen = self
                .heard
                .get(&address)
                .or_else(|| self.addressed.get(&address));
            let (mac, how) = match seen.filter(|mac| !mac.is_group()) {
                Some(mac) => (*mac, "from the capture"),
                None => (made_up(address), "made up"),
            };
            if !self.raw_ip {
                let name = &spec.interface;
                self.notes
                    .push(format!("{name}: {address} is {mac} ({how})"));
            }
            found.push((address, mac));
        }
        found
    }
}

/// A MAC address for somebody whose own is nowhere to be seen: locally administered, and the last
/// bytes of the IP address can be read in it.
pub fn made_up(address: IpAddr) -> Mac {
    let last: [u8; 4] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let [.., a, b, c, d] = address.octets();
            [a, b, c, d]
        }
    };
    let [a, b, c, d] = last;
    Mac([2, 0, a, b, c, d])
}

fn routes_from(spec: &PortSpec) -> Vec<SourceRoute> {
    let by_source = spec.routes.iter().filter_map(|route| {
        let from = route.from?;
        Some(SourceRoute {
            from: (from.address, from.prefix),
            to: (route.to.address, route.to.prefix),
            via: route.via,
        })
    });
    by_source.collect()
}
