//! What our links are: MAC, MTU, addresses, routes, up or down. It reads the kernel's tables by
//! rtnetlink and hears when they change; it changes nothing.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkMessage;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType,
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

use crate::director::snapshot::{KERNEL_HOP, Port, Side, SourceRoute};
use crate::lvs::Link;
use crate::nic::LOCAL_DEVICE;
use crate::wire::Mac;

/// After a change the tables are read once nothing more changes for this long …
const QUIET: Duration = Duration::from_millis(50);

/// … but at the latest after this long.
const QUIET_WAIT_MAX: Duration = Duration::from_millis(500);

/// How long to wait before listening again when the kernel closed the socket on us.
const LISTEN_AGAIN: Duration = Duration::from_secs(1);

/// What the configuration says of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Which side of the director it is on.
    pub side: Side,
    /// It has no Ethernet header: a TUN device.
    pub raw_ip: bool,
    /// It leads to this machine's own kernel. Whatever that holds on its end is not the director's.
    pub kernel: bool,
    /// The director's own addresses on it; if there are none, those that the kernel holds.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Routes beside those of the addresses and of the kernel.
    pub routes: Vec<(IpAddr, u8, Option<IpAddr>)>,
    /// Routes that go by the source too.
    pub routes_from: Vec<SourceRoute>,
    /// Neighbours that need not be asked, beside the kernel's permanent ones.
    pub neighbours: Vec<(IpAddr, Mac)>,
}

/// Does an interface work?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Up, with a carrier.
    Up,
    /// Set down, or without a carrier.
    Down,
    /// There is none of this name.
    Gone,
}

/// An interface as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// As the director sees it; as it last was if it is gone.
    pub port: Port,
    /// Does it work?
    pub state: LinkState,
    /// Its number; 0 if it is gone. A new number under the old name is another interface.
    pub index: u32,
}

type Messages = std::pin::Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send>>;

/// The kernel's word on interfaces, in the network namespace of the thread that opened it.
pub struct Links {
    handle: Handle,
    messages: Messages,
    /// Something changed, and nobody was told yet.
    pending: bool,
}

/// The kernel's tables, as far as they say something about our interfaces.
#[derive(Default)]
struct Tables {
    links: BTreeMap<String, LinkMessage>,
    addresses: BTreeMap<u32, Vec<(IpAddr, u8)>>,
    routes: Vec<KernelRoute>,
    neighbours: BTreeMap<u32, Vec<(IpAddr, Mac)>>,
}

struct KernelRoute {
    index: u32,
    prefix: IpAddr,
    len: u8,
    gateway: Option<IpAddr>,
    metric: u32,
}

impl Links {
    /// Listens to the kernel. Must be called inside the tokio runtime.
    ///
    /// # Errors
    /// When the system gives no netlink socket.
    pub fn new() -> io::Result<Links> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, messages) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        let messages = Box::pin(messages.map(|(message, _)| message));
        Ok(Links {
            handle,
            messages,
            pending: false,
        })
    }

    /// The wanted interfaces as they are now. `before` is what they were, for those that are gone.
    ///
    /// # Errors
    /// When the kernel does not answer; the message says about what.
    pub async fn read(&self, wanted: &[Wanted], before: &[Port]) -> Result<Vec<Seen>, String> {
        let tables = self.tables().await?;
        let seen = wanted.iter().enumerate().map(|(at, wanted)| {
            let Some(link) = tables.links.get(&wanted.name) else {
                return gone(wanted, before.get(at));
            };
            Seen {
                port: tables.port(wanted, link),
                state: state_of(link),
                index: link.header.index,
            }
        });
        Ok(seen.collect())
    }

    /// All interfaces there are.
    ///
    /// # Errors
    /// When the kernel does not answer; the message says about what.
    pub async fn all(&self) -> Result<Vec<Link>, String> {
        let tables = self.tables().await?;
        let links = tables.links.iter().map(|(name, link)| Link {
            name: name.clone(),
            mtu: mtu_of(link),
            up: link.header.flags.contains(LinkFlags::Up),
        });
        Ok(links.collect())
    }

    /// Waits until something changed and things have settled. Nothing is lost if the wait is given
    /// up and begun again.
    pub async fn changed(&mut self) {
        if !self.pending {
            let message = self.messages.next().await;
            self.pending = true;
            if message.is_none() {
                self.listen_again().await;
            }
        }
        let settled = async {
            while tokio::time::timeout(QUIET, self.messages.next())
                .await
                .is_ok_and(|message| message.is_some())
            {}
        };
        // Running out of patience is as good as quiet: the tables are read either way.
        let _ = tokio::time::timeout(QUIET_WAIT_MAX, settled).await;
        self.pending = false;
    }

    /// The kernel closes the socket of who does not keep up; what was missed is read by the caller.
    async fn listen_again(&mut self) {
        tokio::time::sleep(LISTEN_AGAIN).await;
        if let Ok(links) = Links::new() {
            (self.handle, self.messages) = (links.handle, links.messages);
        }
    }

    async fn tables(&self) -> Result<Tables, String> {
        let failed = |what: &str, error: rtnetlink::Error| {
            format!("the kernel does not tell its {what}: {error}")
        };
        let mut tables = Tables::default();
        let mut links = self.handle.link().get().execute();
        while let Some(link) = links
            .try_next()
            .await
            .map_err(|e| failed("interfaces", e))?
        {
            let name = link
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    LinkAttribute::IfName(name) => Some(name.clone()),
                    _ => None,
                });
            tables.links.extend(name.map(|name| (name, link)));
        }
        let mut addresses = self.handle.address().get().execute();
        while let Some(message) = addresses
            .try_next()
            .await
            .map_err(|e| failed("addresses", e))?
        {
            tables.add_address(&message);
        }
        // A kernel without one of the families refuses to list its routes: then there are none.
        let v4 = RouteMessageBuilder::<std::net::Ipv4Addr>::new().build();
        let v6 = RouteMessageBuilder::<std::net::Ipv6Addr>::new().build();
        for request in [v4, v6] {
            let mut routes = self.handle.route().get(request).execute();
            while let Ok(Some(route)) = routes.try_next().await {
                tables.add_route(&route);
            }
        }
        tables.routes.sort_by_key(|route| route.metric);
        let mut neighbours = self.handle.neighbours().get().execute();
        while let Ok(Some(message)) = neighbours.try_next().await {
            if message.header.state == NeighbourState::Permanent {
                tables.add_neighbour(message.header.ifindex, &message.attributes);
            }
        }
        Ok(tables)
    }
}

impl Tables {
    fn port(&self, wanted: &Wanted, link: &LinkMessage) -> Port {
        let index = link.header.index;
        let held = || self.addresses.get(&index).cloned().unwrap_or_default();
        if wanted.kernel {
            let mac = mac_of(link);
            return Port {
                mac,
                mtu: mtu_of(link),
                neighbours: vec![(KERNEL_HOP, mac)],
                ..bare_port(wanted)
            };
        }
        let addresses = match wanted.addresses.is_empty() {
            true => held(),
            false => wanted.addresses.clone(),
        };
        let permanent = self.neighbours.get(&index).cloned().unwrap_or_default();
        Port {
            name: wanted.name.clone(),
            side: wanted.side,
            mac: mac_of(link),
            mtu: mtu_of(link),
            raw_ip: wanted.raw_ip,
            kernel: false,
            held: self.held_of(&addresses),
            routes: self.routes_of(index, wanted, &addresses),
            addresses,
            routes_from: wanted.routes_from.clone(),
            neighbours: wanted.neighbours.iter().copied().chain(permanent).collect(),
        }
    }

    /// Which of these addresses the kernel holds on any interface, but for the one that we reach it by.
    fn held_of(&self, addresses: &[(IpAddr, u8)]) -> Vec<IpAddr> {
        let ours = self.links.get(LOCAL_DEVICE).map(|link| link.header.index);
        let others = self
            .addresses
            .iter()
            .filter(|(index, _)| Some(**index) != ours);
        let held: Vec<IpAddr> = others
            .flat_map(|(_, held)| held.iter().map(|(address, _)| *address))
            .collect();
        let own = addresses.iter().map(|(address, _)| *address);
        own.filter(|own| held.contains(own)).collect()
    }

    /// Configured routes first, then the networks of the addresses, then the kernel's by metric: of
    /// equal prefixes the first wins.
    fn routes_of(
        &self,
        index: u32,
        wanted: &Wanted,
        addresses: &[(IpAddr, u8)],
    ) -> Vec<(IpAddr, u8, Option<IpAddr>)> {
        let on_link = addresses
            .iter()
            .map(|(address, len)| (network(*address, *len), *len, None));
        let kernel = self.routes.iter().filter(|route| route.index == index);
        let kernel = kernel.map(|route| (route.prefix, route.len, route.gateway));
        let all = wanted.routes.iter().copied().chain(on_link).chain(kernel);
        let mut routes: Vec<(IpAddr, u8, Option<IpAddr>)> = Vec::new();
        for route in all {
            let known = |other: &(IpAddr, u8, _)| (other.0, other.1) == (route.0, route.1);
            if !routes.iter().any(known) {
                routes.push(route);
            }
        }
        routes
    }

    fn add_address(&mut self, message: &rtnetlink::packet_route::address::AddressMessage) {
        let find = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
            message.attributes.iter().find_map(wanted)
        };
        let local = find(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
        let address = local.or_else(|| {
            find(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
        });
        if let Some(address) = address.filter(|address| !is_link_local(address)) {
            let held = self.addresses.entry(message.header.index).or_default();
            held.push((address, message.header.prefix_len));
        }
    }

    /// Unicast routes of the main table; of a route over several next hops, each.
    fn add_route(&mut self, message: &RouteMessage) {
        let header = &message.header;
        if header.table != RouteHeader::RT_TABLE_MAIN || header.kind != RouteType::Unicast {
            return;
        }
        let (mut prefix, mut metric) = (unspecified(message), 0);
        let (mut gateway, mut index) = (None, None);
        let mut hops = Vec::new();
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => prefix = ip(address).or(prefix),
                RouteAttribute::Gateway(address) => gateway = ip(address),
                RouteAttribute::Oif(oif) => index = Some(*oif),
                RouteAttribute::Priority(priority) => metric = *priority,
                RouteAttribute::MultiPath(more) => hops = more.clone(),
                _ => {}
            }
        }
        let mut next_hops: Vec<(u32, Option<IpAddr>)> = Vec::new();
        next_hops.extend(index.map(|index| (index, gateway)));
        next_hops.extend(
            hops.iter()
                .map(|hop| (hop.interface_index, gateway_of(&hop.attributes))),
        );
        let prefix = prefix.filter(|prefix| !is_link_local(prefix));
        for (index, gateway) in next_hops {
            self.routes.extend(prefix.map(|prefix| KernelRoute {
                index,
                prefix,
                len: header.destination_prefix_length,
                gateway,
                metric,
            }));
        }
    }

    fn add_neighbour(&mut self, index: u32, attributes: &[NeighbourAttribute]) {
        let (mut address, mut mac) = (None, None);
        for attribute in attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                    address = Some(IpAddr::V4(*v4));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                    address = Some(IpAddr::V6(*v6));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = <[u8; 6]>::try_from(&bytes[..]).ok().map(Mac);
                }
                _ => {}
            }
        }
        if let Some(pair) = address.zip(mac) {
            self.neighbours.entry(index).or_default().push(pair);
        }
    }
}

fn gone(wanted: &Wanted, before: Option<&Port>) -> Seen {
    Seen {
        port: before.cloned().unwrap_or_else(|| bare_port(wanted)),
        state: LinkState::Gone,
        index: 0,
    }
}

/// A port of which nothing is known but what is wanted.
fn bare_port(wanted: &Wanted) -> Port {
    Port {
        name: wanted.name.clone(),
        side: wanted.side,
        mac: Mac::default(),
        mtu: 0,
        raw_ip: wanted.raw_ip,
        kernel: wanted.kernel,
        held: Vec::new(),
        addresses: wanted.addresses.clone(),
        routes: Vec::new(),
        routes_from: Vec::new(),
        neighbours: Vec::new(),
    }
}

/// A carrier counts too, but only where the driver knows of one: TUN devices and veths say so.
fn state_of(link: &LinkMessage) -> LinkState {
    let works = LinkFlags::Up | LinkFlags::LowerUp;
    match link.header.flags.contains(works) {
        true => LinkState::Up,
        false => LinkState::Down,
    }
}

fn mac_of(link: &LinkMessage) -> Mac {
    let address = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Address(bytes) => <[u8; 6]>::try_from(&bytes[..]).ok(),
            _ => None,
        });
    Mac(address.unwrap_or_default())
}

fn mtu_of(link: &LinkMessage) -> u32 {
    let mtu = link
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
    mtu.unwrap_or_default()
}

fn gateway_of(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        _ => None,
    })
}

/// The prefix of a default route, which the kernel leaves out.
fn unspecified(message: &RouteMessage) -> Option<IpAddr> {
    use rtnetlink::packet_route::AddressFamily;
    match message.header.address_family {
        AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// IPv6 link-local addresses are the kernel's own business, and the same on every link: no service is
/// reached by one.
fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The network that holds `address`.
fn network(address: IpAddr, len: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(len.min(32)))
                .unwrap_or(0);
            IpAddr::from((u32::from(address) & mask).to_be_bytes())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(len.min(128)))
                .unwrap_or(0);
            IpAddr::from((u128::from(address) & mask).to_be_bytes())
        }
    }
}
