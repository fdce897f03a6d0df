//! Routes that commands of a case add to those of its network, take away, or make depend on the source.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ulvs::director::snapshot::{Port, SourceRoute};

use super::shell::INTERFACES;

/// A prefix and its length.
type Net = (IpAddr, u8);

/// What commands have made of the routes.
#[derive(Debug, Default)]
pub struct Routing {
    /// Routes by interface, in the main table.
    more: Vec<(usize, Net, Option<IpAddr>)>,
    /// Networks that cannot be reached (unreachable, blackhole).
    refused: Vec<Net>,
    /// Routes by interface, in tables of their own.
    tables: BTreeMap<String, Vec<(usize, Net, Option<IpAddr>)>>,
    /// Sources whose packets are routed by such a table first.
    sources: Vec<(Net, String)>,
    /// Interfaces that were set down.
    down: BTreeSet<usize>,
}

impl Routing {
    /// An `ip` command about routes; `None` if it is not understood.
    pub fn ip(&mut self, v6: bool, words: &[&str]) -> Option<()> {
        match words {
            ["route", "add", "unreachable" | "blackhole", net] => {
                self.refused.push(network(v6, net)?);
            }
            ["route", "del", "unreachable" | "blackhole", net] => {
                let net = network(v6, net)?;
                self.refused.retain(|refused| *refused != net);
            }
            ["route", "add", net, rest @ ..] => {
                let net = network(v6, net)?;
                let (mut via, mut port, mut table) = (None, None, None);
                for pair in rest.chunks(2) {
                    match pair {
                        ["via", gateway] => via = Some(gateway.parse().ok()?),
                        ["dev", name] => port = INTERFACES.iter().position(|known| known == name),
                        ["table", name] => table = Some(name.to_string()),
                        _ => return None,
                    }
                }
                let route = (port?, net, via);
                match table {
                    Some(table) => self.tables.entry(table).or_default().push(route),
                    None => self.more.push(route),
                }
            }
            ["rule", "add", "from", source, "lookup" | "table", table] => {
                self.sources.push((network(v6, source)?, table.to_string()));
            }
            ["link", "set", name, "down"] => {
                self.down
                    .insert(INTERFACES.iter().position(|known| known == name)?);
            }
            _ => return None,
        }
        Some(())
    }

    /// Puts the routes into the ports of the network as it was.
    pub fn apply(&self, ports: &mut [Port]) {
        for (at, port) in ports.iter_mut().enumerate() {
            let mine = |route: &&(usize, Net, Option<IpAddr>)| route.0 == at;
            let more = self.more.iter().filter(mine);
            port.routes
                .extend(more.map(|(_, net, via)| (net.0, net.1, *via)));
            for refused in &self.refused {
                let routes = std::mem::take(&mut port.routes);
                let rest = routes
                    .into_iter()
                    .flat_map(|route| without(route, *refused));
                port.routes = rest.collect();
            }
            for (source, table) in &self.sources {
                let routes = self.tables.get(table).map_or(&[][..], Vec::as_slice);
                port.routes_from
                    .extend(routes.iter().filter(mine).map(|(_, to, via)| SourceRoute {
                        from: *source,
                        to: *to,
                        via: *via,
                    }));
            }
            if self.down.contains(&at) {
                port.routes.clear();
                port.routes_from.clear();
            }
        }
    }
}

fn network(v6: bool, word: &str) -> Option<Net> {
    if word == "default" {
        return Some(match v6 {
            true => (Ipv6Addr::UNSPECIFIED.into(), 0),
            false => (Ipv4Addr::UNSPECIFIED.into(), 0),
        });
    }
    let (address, len) = word.split_once('/').unwrap_or((word, ""));
    let address: IpAddr = address.parse().ok()?;
    let len = match len {
        "" => width(address),
        len => len.parse().ok()?,
    };
    Some((address, len))
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The network as bits from the top.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)) << 96,
        IpAddr::V6(address) => u128::from(address),
    }
}

fn address(like: IpAddr, bits: u128) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from((bits >> 96) as u32).into(),
        IpAddr::V6(_) => Ipv6Addr::from(bits).into(),
    }
}

fn mask(len: u8) -> u128 {
    u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

/// The parts of a route that lead around a network which cannot be reached.
fn without(
    (net, len, via): (IpAddr, u8, Option<IpAddr>),
    (hole, hole_len): Net,
) -> Vec<(IpAddr, u8, Option<IpAddr>)> {
    if net.is_ipv4() != hole.is_ipv4() {
        return vec![(net, len, via)];
    }
    let shared = len.min(hole_len);
    if (bits(net) ^ bits(hole)) & mask(shared) != 0 {
        return vec![(net, len, via)];
    }
    // Beside each step down from the route's network to the hole lies one that is still reached.
    let beside = (len + 1..=hole_len).map(|len| {
        let flipped = bits(hole) & mask(len) ^ 1 << (128 - u32::from(len));
        (address(net, flipped), len, via)
    });
    beside.collect()
}
