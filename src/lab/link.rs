//! Links, addresses and routes by rtnetlink(7), inside a lab's namespaces only. No `ip` command.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoVeth, LinkAttribute, LinkMessage, State,
};
use rtnetlink::packet_route::neighbour::NeighbourFlags;
use rtnetlink::packet_route::route::{RouteMessage, RouteScope};
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{
    Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, LinkVeth, MulticastGroup,
    RouteMessageBuilder,
};

use super::netns::Inside;
use super::topology::{Host, Prefix, Route, Wiring};

/// How long links may take to come up. It takes milliseconds.
const UP_TIMEOUT: Duration = Duration::from_secs(5);

/// One end of a veth pair that is to be made.
#[derive(Clone, Debug)]
pub struct End {
    /// Name in the namespace it goes to.
    pub name: String,
    /// Number in that namespace. The two ends must differ: where a link's number is that of its
    /// peer, the kernel takes it for a link with no peer and may wait a second before using it
    /// (`linkwatch_urgent_event` in net/core/link_watch.c).
    pub index: u32,
    /// MAC address; the kernel draws one if it is left out.
    pub mac: Option<[u8; 6]>,
    /// The network namespace it goes to; the present one if it is left out.
    pub net: Option<RawFd>,
}

/// The kernel's network configuration of the namespace of the thread that made this.
#[derive(Debug)]
pub struct Network {
    handle: Handle,
}

impl Network {
    /// Opens rtnetlink in the present namespace; the thread must run a tokio runtime.
    ///
    /// # Errors
    /// When the socket cannot be had.
    pub fn open(_: &Inside) -> io::Result<Network> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Network { handle })
    }

    /// Makes a bridge and takes it up.
    ///
    /// # Errors
    /// What the kernel refused; a kernel without bridges says "not supported".
    pub async fn add_bridge(&self, name: &str, mtu: u32) -> io::Result<()> {
        // A bridge that watches multicasts joins their watchers with frames of its own (RFC 4286).
        let plain = InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)]);
        let message = LinkBridge::new(name).set_info_data(plain).mtu(mtu).up();
        let message = message.build();
        let added = self.handle.link().add(message).execute().await;
        added.map_err(|error| doing(&format!("making the bridge {name}"), &error))
    }

    /// Makes a veth pair with its ends where they belong; both are down.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn add_cable(&self, here: &End, there: &End, mtu: u32) -> io::Result<()> {
        let peer = end_message(LinkMessageBuilder::<LinkUnspec>::default(), there, mtu).build();
        let pair = end_message(LinkVeth::new(&here.name, &there.name), here, mtu);
        let pair = pair.set_info_data(InfoData::Veth(InfoVeth::Peer(peer)));
        // The builder has named the pair already; one name is enough.
        let mut message = pair.build();
        let mut named = false;
        message.attributes.retain(|attribute| {
            let name = matches!(attribute, LinkAttribute::IfName(_));
            !(name && std::mem::replace(&mut named, true))
        });
        let added = self.handle.link().add(message).execute().await;
        added.map_err(|error| {
            let what = format!("making the cable {} to {}", here.name, there.name);
            doing(&what, &error)
        })
    }

    /// Plugs a link into a bridge and takes it up.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn plug(&self, port: &str, bridge: &str) -> io::Result<()> {
        let controller = self.index(bridge).await?;
        let message = LinkUnspec::new_with_index(self.index(port).await?);
        let message = message.controller(controller).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(|error| doing(&format!("plugging {port} into {bridge}"), &error))
    }

    /// Gives the host of this namespace its addresses, takes its links up, then adds its routes.
    ///
    /// # Errors
    /// What the kernel refused.
    pub async fn configure(&self, inside: &Inside, host: &Host) -> io::Result<()> {
        self.take_up("lo").await?;
        for interface in &host.interfaces {
            for address in &interface.addresses {
                let index = self.index(&interface.name).await?;
                let Prefix { address, length } = *address;
                let request = self.handle.address().add(index, address, length);
                request.execute().await.map_err(|error| {
                    doing(
                        &format!("giving {} the address {address}", host.name),
                        &error,
                    )
                })?;
            }
            self.take_up(&interface.name).await?;
        }
        self.wire(inside, &host.wiring).await
    }

    /// Adds routes, rules and proxies. The interfaces they name are taken up first.
    ///
    /// # Errors
    /// What the kernel refused; "no such device" when an interface is not there.
    pub async fn wire(&self, inside: &Inside, wiring: &Wiring) -> io::Result<()> {
        for route in &wiring.routes {
            if let Some(name) = &route.interface {
                self.take_up(name).await?;
            }
            let message = self.route_message(route).await?;
            let added = self.handle.route().add(message).execute().await;
            added.map_err(|error| doing(&format!("adding the route to {}", route.to), &error))?;
        }
        for (interface, table) in &wiring.rules {
            let rule = self.handle.rule().add().v4().input_interface(interface);
            let rule = rule.table_id(u32::from(*table)).action(RuleAction::ToTable);
            let added = rule.execute().await;
            added.map_err(|error| doing(&format!("adding the rule for {interface}"), &error))?;
        }
        for (address, interface) in &wiring.proxies {
            let index = self.index(interface).await?;
            let request = self.handle.neighbours().add(index, *address);
            let added = request.flags(NeighbourFlags::Proxy).execute().await;
            added.map_err(|error| doing(&format!("answering ARP for {address}"), &error))?;
            // Else the kernel answers for others after a random part of 0.8 s.
            let delay = format!("ipv4/neigh/{interface}/proxy_delay");
            set_sysctls(inside, &[(delay, "0".to_string())])?;
        }
        Ok(())
    }

    /// Takes a link up.
    ///
    /// # Errors
    /// What the kernel refused; "no such device" when it is not there.
    pub async fn take_up(&self, name: &str) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).up();
        let set = self.handle.link().set(message.build()).execute().await;
        set.map_err(|error| doing(&format!("taking {name} up"), &error))
    }

    async fn index(&self, name: &str) -> io::Result<u32> {
        let mut found = self.handle.link().get().match_name(name).execute();
        let link = found.try_next().await;
        let link = link.map_err(|error| doing(&format!("looking for {name}"), &error))?;
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("there is no {name}"));
        Ok(link.ok_or_else(gone)?.header.index)
    }

    async fn route_message(&self, route: &Route) -> io::Result<RouteMessage> {
        let mut builder = RouteMessageBuilder::<IpAddr>::new().table_id(route.table);
        if route.to.length > 0 || route.to.address.is_ipv6() {
            let Prefix { address, length } = route.to;
            builder = builder
                .destination_prefix(address, length)
                .map_err(io::Error::other)?;
        } else {
            builder.get_mut().header.address_family = AddressFamily::Inet;
        }
        if let Some(via) = route.via {
            builder = builder.gateway(via).map_err(io::Error::other)?;
        } else {
            builder = builder.scope(RouteScope::Link);
        }
        if let Some(name) = &route.interface {
            builder = builder.output_interface(self.index(name).await?);
        }
        Ok(builder.build())
    }
}

fn end_message<T>(builder: LinkMessageBuilder<T>, end: &End, mtu: u32) -> LinkMessageBuilder<T> {
    let mut builder = builder.name(end.name.as_str()).index(end.index).mtu(mtu);
    if let Some(mac) = end.mac {
        builder = builder.address(mac.to_vec());
    }
    if let Some(net) = end.net {
        builder = builder.setns_by_fd(net);
    }
    builder
}

/// Waits until the links of the present namespace are up in the kernel's eyes: only then does a
/// bridge forward and a link send.
///
/// # Errors
/// When one is not up in time, with its name.
pub async fn wait_until_up(_: &Inside, names: &[String]) -> io::Result<()> {
    let (connection, handle, mut events) =
        rtnetlink::new_multicast_connection(&[MulticastGroup::Link])?;
    let connection = tokio::spawn(connection);
    let mut missing = names.to_vec();
    let all_up = async {
        loop {
            let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
            missing = names.to_vec();
            missing.retain(|name| !links.iter().any(|link| is_up(link, name)));
            // Any event about a link is a reason to look again.
            if missing.is_empty() || events.next().await.is_none() {
                return Ok::<(), rtnetlink::Error>(());
            }
        }
    };
    let done = tokio::time::timeout(UP_TIMEOUT, all_up).await;
    connection.abort();
    match done {
        Ok(Ok(())) if missing.is_empty() => Ok(()),
        Ok(Err(error)) => Err(doing("looking at the links", &error)),
        Ok(Ok(())) | Err(_) => Err(io::Error::other(format!(
            "{} did not come up within {UP_TIMEOUT:?}",
            missing.join(", ")
        ))),
    }
}

fn is_up(link: &LinkMessage, name: &str) -> bool {
    let attributes = &link.attributes;
    attributes.contains(&LinkAttribute::IfName(name.to_string()))
        && attributes.contains(&LinkAttribute::OperState(State::Up))
}

/// Writes the sysctls of the present network namespace. One that says the right thing already need
/// not be writable.
///
/// # Errors
/// When one cannot be set, and it must be.
pub fn set_sysctls(_: &Inside, sysctls: &[(String, String)]) -> io::Result<()> {
    for (name, value) in sysctls {
        let optional = name.ends_with('?');
        let path = format!("/proc/sys/net/{}", name.trim_end_matches('?'));
        let now = fs::read_to_string(&path).unwrap_or_default();
        if now.trim() == value {
            continue;
        }
        match fs::write(&path, value) {
            Err(error) if !optional => {
                let text = format!("cannot write {value} to {path}: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Sysctls by which a switch does not look for rules about IP packets (br_netfilter, where there is one).
pub fn plain_bridges() -> Vec<(String, String)> {
    ["iptables", "ip6tables", "arptables"]
        .map(|name| (format!("bridge/bridge-nf-call-{name}?"), "0".to_string()))
        .to_vec()
}

fn doing(what: &str, error: &rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => {
            let error = message.to_io();
            io::Error::new(error.kind(), format!("{what}: {error}"))
        }
        other => io::Error::other(format!("{what}: {other}")),
    }
}
