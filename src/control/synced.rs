//! Synced: which daemons of connection synchronisation were started. It knows the host's interfaces,
//! since a daemon needs one; it sends and receives nothing.

use crate::config::Refusal;
use crate::lvs::sync::{Link, SyncDaemon, SyncRole, SyncRow};

/// An interface that carries less has no IPv6 (RFC 8200 section 5).
const V6_MTU_MIN: u32 = 1280;

/// What was started.
#[derive(Clone, Debug, Default)]
pub(super) struct Synced {
    links: Vec<Link>,
    /// Master and backup.
    running: [Option<SyncRow>; 2],
}

impl Synced {
    /// The interfaces as they now are. A daemon keeps running when its interface goes.
    pub fn set_links(&mut self, links: Vec<Link>) {
        self.links = links;
    }

    /// Starts one (`ip_vs_genl_new_daemon`).
    ///
    /// # Errors
    /// There is no such interface; it runs already; a master can send nothing by it; a backup can join
    /// no group of this family there.
    pub fn start(&mut self, daemon: &SyncDaemon) -> Result<(), Refusal> {
        let name = daemon.interface();
        let link = self.links.iter().find(|link| link.name == name);
        let link = link.ok_or(Refusal::NoSuchDevice)?;
        let running = &mut self.running[daemon.role as usize];
        if running.is_some() {
            return Err(Refusal::SyncRunning);
        }
        let v6 = daemon.group.is_some_and(|group| group.is_ipv6());
        let without_family = v6 && link.mtu < V6_MTU_MIN;
        match daemon.role {
            SyncRole::Master if !link.up || without_family => {
                return Err(Refusal::NetworkUnreachable);
            }
            SyncRole::Backup if without_family => return Err(Refusal::Invalid),
            _ => {}
        }
        *running = Some(daemon.filled_in(link));
        Ok(())
    }

    /// Stops one (`ip_vs_genl_del_daemon`).
    ///
    /// # Errors
    /// It does not run.
    pub fn stop(&mut self, role: SyncRole) -> Result<(), Refusal> {
        let stopped = self.running[role as usize].take();
        stopped.map(|_| ()).ok_or(Refusal::SyncNotRunning)
    }

    /// Does any run?
    pub fn is_running(&self) -> bool {
        self.running.iter().any(Option::is_some)
    }

    /// Those that run, the master first.
    pub fn listing(&self) -> Vec<SyncRow> {
        self.running.iter().flatten().cloned().collect()
    }
}
