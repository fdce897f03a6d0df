//! Keeps the kernel's own stack off our frames (`nic::Quiet`): says whose frames are ours, at the start
//! and whenever that changes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{RunError, say};
use crate::config::Config;
use crate::config::file::{KeepKernelOff, NicKind};
use crate::director::snapshot::{Port, Side, Snapshot};
use crate::lvs::{ForwardMethod, ServiceKey};
use crate::nic::{self, Backend, KeepOff, OpenOptions, Quiet, QuietPort, QuietRules, Severity};

/// The kernel is kept off as long as this lives.
#[derive(Debug)]
pub(super) struct KernelOff(Option<Quiet>);

impl KernelOff {
    /// Begins. A TUN device needs nothing: what comes out of it the kernel itself has routed there.
    ///
    /// # Errors
    /// When the kernel would talk about our frames and cannot be kept from it; says what to set.
    pub fn begin(config: &Config, snapshot: &Snapshot) -> Result<KernelOff, RunError> {
        look_first(config.director.nic, snapshot);
        let addresses = snapshot.pools().addresses();
        refuse_held(&addresses.collect(), &nic::interfaces())?;
        if config.director.nic == NicKind::Tun {
            return Ok(KernelOff(None));
        }
        for left in Quiet::cleanup_all() {
            say(&format!("removed what an earlier director left: {left}"));
        }
        let keep_off = match config.director.keep_kernel_off {
            KeepKernelOff::Auto => KeepOff::Auto,
            KeepKernelOff::Nft => KeepOff::Nft,
            KeepKernelOff::Tc => KeepOff::Tc,
            KeepKernelOff::None => KeepOff::None,
        };
        let outside = snapshot.ports.iter().filter(|port| !port.kernel);
        let ports = outside.map(|port| QuietPort {
            name: port.name.clone(),
            side: side_of(port),
        });
        let ports: Vec<QuietPort> = ports.collect();
        let quiet = Quiet::install(keep_off, &ports, &rules(snapshot));
        let quiet = quiet.map_err(|error| RunError(error.to_string()))?;
        Ok(KernelOff(Some(quiet)))
    }

    /// Is it kept off by a filter, whatever it holds?
    pub fn by_filter(&self) -> bool {
        let quiet = self.0.as_ref();
        quiet.is_some_and(|quiet| quiet.keep_off() != KeepOff::None)
    }

    /// For interfaces that the kernel does not see.
    #[cfg(test)]
    pub fn nothing() -> KernelOff {
        KernelOff(None)
    }

    /// Follows a change of services, real servers, addresses or interfaces. When it cannot, the old
    /// rules stay, and the person hears of it: what is in force already is not taken back.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        if let Some(quiet) = &mut self.0
            && let Err(error) = quiet.update(&rules(snapshot))
        {
            say(&error.to_string());
        }
    }
}

/// Tells a person what the machine is set to that would make trouble later, silently.
fn look_first(kind: NicKind, snapshot: &Snapshot) {
    let backend = match kind {
        NicKind::Packet => Backend::Packet,
        NicKind::Mmsg => Backend::Mmsg,
        NicKind::Tun => Backend::Tun,
    };
    let ports = snapshot.ports.iter().filter(|port| !port.kernel);
    let options: Vec<OpenOptions> = ports
        .map(|port| OpenOptions::new(&port.name, side_of(port)))
        .collect();
    for warning in nic::preflight(backend, &options, &rules(snapshot)) {
        let kind = match warning.severity {
            Severity::Trouble => "warning",
            Severity::Note => "note",
        };
        say(&format!("{kind}: {warning}"));
    }
}

/// What the director speaks from must not be the kernel's, which would reset what it has not opened.
fn refuse_held(pool: &BTreeSet<IpAddr>, interfaces: &[nic::Interface]) -> Result<(), RunError> {
    for interface in interfaces {
        let mut held = interface.addresses.iter();
        if let Some((address, _)) = held.find(|(address, _)| pool.contains(address)) {
            let name = &interface.name;
            return Err(RunError(format!(
                "{address} of [masquerade] or [fullnat] is an address of {name}: the kernel would \
                 answer for it, too; take it away there, or choose another"
            )));
        }
    }
    Ok(())
}

fn side_of(port: &Port) -> nic::Side {
    match port.side {
        Side::Public => nic::Side::Public,
        Side::Private => nic::Side::Private,
    }
}

/// Whose frames are ours. Only the answers of LVS-NAT come through us; other real servers may use this
/// machine as a router for what is theirs.
fn rules(snapshot: &Snapshot) -> QuietRules {
    let services = &snapshot.services;
    let vips = services
        .iter()
        .filter_map(|service| match service.spec.key {
            ServiceKey::Address { virt, .. } => Some(virt.address),
            ServiceKey::Mark { .. } => None,
        });
    let reals = services.iter().flat_map(|service| &service.reals);
    let behind_us = reals.filter(|real| real.method == ForwardMethod::Masq);
    let addresses = snapshot.ports.iter().flat_map(|port| &port.addresses);
    let addresses = addresses.map(|(address, _)| *address);
    QuietRules {
        vips: vips.chain(snapshot.marked_vips()).collect(),
        own: addresses.chain(snapshot.pools().addresses()).collect(),
        real_servers: behind_us
            .map(|real| real.key.0.address)
            .collect::<BTreeSet<_>>(),
    }
}
