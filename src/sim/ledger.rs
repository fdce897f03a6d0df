//! The entries of the connection table as the simulator knows them: a second book, kept by looking at
//! the table after everything that happens. It says what is new, what is gone and what was served
//! though its time was up; whether that is right, `invariant` judges.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};

use super::invariant::Broken;
use crate::conn::{Conn, ConnTable};
use crate::director::snapshot::Snapshot;
use crate::lvs::{Flow, RealLive, ServiceKey, Tuple};
use crate::time::Instant;

/// What became different in the table.
#[derive(Debug, Default)]
pub struct Changes {
    /// Connections that were not there.
    pub opened: Vec<Arc<Conn>>,
    /// Templates that were not there.
    pub remembered: Vec<Arc<Conn>>,
    /// Entries that are no longer there.
    pub gone: Vec<Arc<Conn>>,
    /// Connections whose time was up, and yet they go on.
    pub overdue: Vec<Arc<Conn>>,
}

/// An entry as it was at the last look.
#[derive(Debug)]
struct Known {
    conn: Arc<Conn>,
    deadline: Instant,
    /// The last look that found it, and the first.
    seen: u64,
    born: u64,
    /// The service that took it.
    service: Option<ServiceKey>,
}

/// The second book.
#[derive(Debug, Default)]
pub struct Ledger {
    conns: BTreeMap<Flow, Known>,
    /// A template that was disowned loses its key, so they have none here.
    templates: Vec<Known>,
    /// Every real server that was ever configured, by its id, those in the trash included. Weak, since
    /// the trash forgets a server once nobody else holds it.
    lives: BTreeMap<u32, Weak<RealLive>>,
    looks: u64,
}

/// What is counted at a real server: active and inactive connections, templates.
type Counts = (u32, u32, u32);

/// Client to VIP.
pub fn flow_of(conn: &Conn) -> Flow {
    conn.in_tuple().flow()
}

impl Ledger {
    /// Looks at the table.
    ///
    /// # Errors
    /// Two connections of one flow.
    pub fn look(&mut self, table: &ConnTable, now: Instant) -> Result<Changes, Broken> {
        self.looks += 1;
        let look = self.looks;
        let mut changes = Changes::default();
        let mut twins = None;
        table.for_each(|conn| {
            let known = if conn.is_template() {
                let mut templates = self.templates.iter_mut();
                templates.find(|known| Arc::ptr_eq(&known.conn, conn))
            } else {
                self.conns.get_mut(&flow_of(conn))
            };
            let fresh = Known {
                conn: Arc::clone(conn),
                deadline: conn.deadline(),
                seen: look,
                born: look,
                service: None,
            };
            match known {
                Some(known) if Arc::ptr_eq(&known.conn, conn) => {
                    if known.deadline <= now && conn.deadline() > now && !conn.is_template() {
                        changes.overdue.push(Arc::clone(conn));
                    }
                    (known.seen, known.deadline) = (look, conn.deadline());
                    return;
                }
                Some(known) if known.seen == look => twins = Some(flow_of(conn)),
                Some(known) => changes.gone.push(std::mem::replace(known, fresh).conn),
                None if conn.is_template() => self.templates.push(fresh),
                None => {
                    self.conns.insert(flow_of(conn), fresh);
                }
            }
            let new = if conn.is_template() {
                &mut changes.remembered
            } else {
                &mut changes.opened
            };
            new.push(Arc::clone(conn));
        });
        if let Some(flow) = twins {
            return Err(Broken::new(1, format!("two entries of {flow}")));
        }
        self.let_go(&mut changes);
        Ok(changes)
    }

    /// Takes out what the last look did not find.
    fn let_go(&mut self, changes: &mut Changes) {
        let look = self.looks;
        let mut leave = |known: &Known| {
            let stays = known.seen == look;
            if !stays {
                changes.gone.push(Arc::clone(&known.conn));
            }
            stays
        };
        self.conns.retain(|_, known| leave(known));
        self.templates.retain(|known| leave(known));
    }

    /// Was this template there before the last look?
    pub fn knew_template(&self, template: &Arc<Conn>) -> bool {
        let mut templates = self.templates.iter();
        let known = templates.find(|known| Arc::ptr_eq(&known.conn, template));
        known.is_some_and(|known| known.born < self.looks)
    }

    /// The template with this key that was there before the last look. Whoever comes to a service
    /// without persistence engine does not find one that an engine has added a call to.
    pub fn template(&self, key: &Tuple) -> Option<&Arc<Conn>> {
        let mut templates = self.templates.iter();
        let plain = |conn: &Conn| conn.in_tuple() == *key && !conn.has_engine_data();
        let known = templates.find(|known| plain(&known.conn));
        let known = known.filter(|known| known.born < self.looks);
        known.map(|known| &known.conn)
    }

    /// Notes which services took the connections of the last look.
    pub fn note_services(&mut self, opened: &[Arc<Conn>], snapshot: &Snapshot) {
        for conn in opened {
            let flow = flow_of(conn);
            let service = snapshot.service_for(&flow, conn.mark());
            if let Some(known) = self.conns.get_mut(&flow) {
                known.service = service.map(|service| service.spec.key);
            }
        }
    }

    /// A real server that was deleted and is there again has its connections back
    /// (`ip_vs_trash_get_dest`).
    ///
    /// # Errors
    /// Law 1: one of its connections is still bound to what was deleted.
    pub fn check_revival(&self, snapshot: &Snapshot) -> Result<(), Broken> {
        for known in self.conns.values() {
            let orphaned = |server: &&Arc<RealLive>| !server.available.load(Relaxed);
            let Some(server) = known.conn.server().filter(orphaned) else {
                continue;
            };
            let service = known.service.and_then(|key| snapshot.service(&key));
            let reals = service.map_or(&[][..], |service| &service.reals);
            if reals.iter().any(|real| real.key.0 == server.endpoint) {
                let (flow, endpoint) = (flow_of(&known.conn), server.endpoint);
                let text = format!("{endpoint} is back without its connection {flow}");
                return Err(Broken::new(1, text));
            }
        }
        Ok(())
    }

    /// Is there a connection of this flow?
    pub fn has(&self, flow: &Flow) -> bool {
        self.conns.contains_key(flow)
    }

    /// Entries, templates included.
    pub fn len(&self) -> usize {
        self.conns.len() + self.templates.len()
    }

    /// Takes in the real servers of a snapshot.
    pub fn meet(&mut self, snapshot: &Snapshot) {
        for real in snapshot.services.iter().flat_map(|service| &service.reals) {
            let live = || Arc::downgrade(&real.live);
            self.lives.entry(real.live.id).or_insert_with(live);
        }
    }

    /// Forgets the real servers that nobody holds any more.
    pub fn forget_freed(&mut self) {
        self.lives.retain(|_, live| live.strong_count() > 0);
    }

    /// Real servers that somebody still holds.
    pub fn held_servers(&self) -> usize {
        self.lives
            .values()
            .filter(|live| live.strong_count() > 0)
            .count()
    }

    /// The counts of every real server, deleted ones included, are those of the entries bound to it.
    ///
    /// # Errors
    /// They are not.
    pub fn check_counts(&self) -> Result<(), Broken> {
        let mut bound: BTreeMap<u32, Counts> = BTreeMap::new();
        let entries = self.conns.values().chain(&self.templates);
        for conn in entries.map(|known| &known.conn) {
            let Some(server) = conn.server() else {
                continue;
            };
            let counts = bound.entry(server.id).or_default();
            *match (conn.is_template(), conn.state().is_active()) {
                (true, _) => &mut counts.2,
                (_, true) => &mut counts.0,
                _ => &mut counts.1,
            } += 1;
        }
        for (id, live) in &self.lives {
            let Some(live) = live.upgrade() else { continue };
            let counted = (
                live.active.load(Relaxed),
                live.inactive.load(Relaxed),
                live.persistent.load(Relaxed),
            );
            let wanted = bound.get(id).copied().unwrap_or_default();
            if counted != wanted {
                let text = format!(
                    "{} counts {counted:?} active, inactive, persistent; bound are {wanted:?}",
                    live.endpoint
                );
                return Err(Broken::new(3, text));
            }
        }
        Ok(())
    }
}
