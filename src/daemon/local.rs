//! Real servers that are the director itself (local node): the way to programs of this machine, and what
//! its kernel must hold and route for them. It reads what is configured, and decides nothing about packets.

use std::net::IpAddr;

use super::kernel::KernelOff;
use super::netlink::Wanted;
use super::{RunError, say};
use crate::config::file::NicKind;
use crate::config::{Command, Config};
use crate::director::snapshot::{Side, Snapshot};
use crate::lvs::{ForwardMethod, RealServer, ServiceKey};
use crate::nic::{
    self, Backend, Halves, KernelHoldings, KernelSource, LOCAL_DEVICE, LocalLink, OpenOptions,
};

/// Opens the way if it is wanted: one port more for every worker. Where only a real server asks for it and
/// it cannot be, the person hears why, and that server is answered for as one on which nobody listens.
///
/// # Errors
/// When the configuration asks for it and it cannot be.
pub(super) fn open(
    config: &Config,
    wanted: &mut Vec<Wanted>,
    halves: &mut [Vec<Halves>],
) -> Result<Option<LocalLink>, RunError> {
    let asked = config.director.local_node;
    // A TUN device is what the kernel routes into: it has a way to itself.
    let possible = config.director.nic != NicKind::Tun;
    if !possible || !asked.unwrap_or_else(|| has_local_server(config, wanted)) {
        return Ok(None);
    }
    match try_open(halves) {
        Ok(link) => {
            wanted.push(port());
            Ok(Some(link))
        }
        Err(why) if asked.is_some() => Err(RunError(why)),
        Err(why) => {
            say(&format!(
                "note: real servers that are this machine serve nobody: {why}"
            ));
            Ok(None)
        }
    }
}

fn try_open(halves: &mut [Vec<Halves>]) -> Result<LocalLink, String> {
    let workers = halves.len();
    let mut opened = Vec::new();
    for worker in 0..workers {
        let options = OpenOptions {
            worker,
            workers,
            ethernet: true,
            ..OpenOptions::new(LOCAL_DEVICE, nic::Side::Private)
        };
        opened.push(nic::open(Backend::Tun, &options).map_err(|error| error.to_string())?);
    }
    let link = LocalLink::set_up()?;
    for (halves, more) in halves.iter_mut().zip(opened) {
        halves.push(more);
    }
    Ok(link)
}

fn port() -> Wanted {
    Wanted {
        name: LOCAL_DEVICE.to_string(),
        side: Side::Private,
        raw_ip: false,
        kernel: true,
        addresses: Vec::new(),
        routes: Vec::new(),
        routes_from: Vec::new(),
        neighbours: Vec::new(),
    }
}

/// Does any real server of the configuration have an address of the director?
fn has_local_server(config: &Config, wanted: &[Wanted]) -> bool {
    let held = nic::interfaces().into_iter().flat_map(|held| {
        let ours = wanted.iter().any(|port| port.name == held.name);
        held.addresses.into_iter().filter(move |_| ours)
    });
    let configured = wanted.iter().flat_map(|port| port.addresses.clone());
    let vips = config.services.iter().filter_map(|command| match command {
        Command::AddService(spec) => vip_of(&spec.key),
        _ => None,
    });
    let own = held.chain(configured).map(|(address, _)| address);
    let own: Vec<IpAddr> = own.chain(vips).collect();
    config.services.iter().any(|command| match command {
        Command::AddReal { real, .. } => {
            let address = real.key.0.address;
            address.is_loopback() || own.contains(&address)
        }
        _ => false,
    })
}

/// The kernel's end of the way, and what it holds.
#[derive(Debug)]
pub(super) struct LocalNode(Option<LocalLink>);

impl LocalNode {
    /// Begins with nothing held.
    ///
    /// # Errors
    /// When nothing would keep the kernel off what it is to hold, so that it would answer for it outside.
    pub fn begin(link: Option<LocalLink>, kernel_off: &KernelOff) -> Result<LocalNode, RunError> {
        if link.is_some() && !kernel_off.by_filter() {
            let why = "the kernel must hold the virtual addresses of real servers that are this \
                       machine, and would answer for them outside: keep it off by nft or tc, or \
                       say local_node = false";
            return Err(RunError(why.to_string()));
        }
        Ok(LocalNode(link))
    }

    /// Without a way.
    #[cfg(test)]
    pub fn nothing() -> LocalNode {
        LocalNode(None)
    }

    /// Follows a change of services and real servers.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        if let Some(link) = &mut self.0
            && let Err(why) = link.update(&ends(snapshot))
        {
            say(&why);
        }
    }
}

/// What the kernel must hold, and from where it answers: the VIP where packets come as they are; under NAT
/// the real server's own address, with its port alone, since that address has other uses.
fn ends(snapshot: &Snapshot) -> KernelHoldings {
    let mut ends = KernelHoldings::default();
    let elsewhere: Vec<IpAddr> = nic::interfaces()
        .into_iter()
        .flat_map(|interface| interface.addresses)
        .map(|(address, _)| address)
        .collect();
    let mut add = |address: IpAddr, port| {
        ends.sources.insert(KernelSource { address, port });
        if !elsewhere.contains(&address) {
            ends.addresses.insert(address);
        }
    };
    for service in &snapshot.services {
        for real in service.reals.iter().filter(|real| real.live.is_local()) {
            match (real.method, service.spec.key) {
                (ForwardMethod::Masq | ForwardMethod::FullNat, key) => {
                    if let Some(port) = port_of(real, &key) {
                        add(real.key.0.address, port);
                    }
                }
                (_, ServiceKey::Address { virt, .. }) => add(virt.address, None),
                (_, ServiceKey::Mark { .. }) => {
                    snapshot.marked_vips().for_each(|vip| add(vip, None));
                }
            }
        }
    }
    ends
}

/// Protocol and port of a real server under NAT. Without a port, it is all of the address; `None` for one
/// of the loopback, which nobody outside is sent to.
fn port_of(real: &RealServer, key: &ServiceKey) -> Option<Option<(u8, u16)>> {
    let endpoint = real.key.0;
    if endpoint.address.is_loopback() {
        return None;
    }
    Some(match key {
        ServiceKey::Address { protocol, .. } if endpoint.port != 0 => {
            Some((protocol.0, endpoint.port))
        }
        _ => None,
    })
}

fn vip_of(key: &ServiceKey) -> Option<IpAddr> {
    match key {
        ServiceKey::Address { virt, .. } => Some(virt.address),
        ServiceKey::Mark { .. } => None,
    }
}
