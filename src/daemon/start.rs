//! From a configuration to a running director: opens the interfaces, reads the links, builds the
//! tables and the workers. It runs nothing.

use std::sync::Arc;

use super::clock;
use super::local;
use super::netlink::{LinkState, Links, Seen, Wanted};
use super::say;
use super::{RunError, SELF};
use crate::config::Config;
use crate::config::file::{NicKind, PortSpec, Side as ConfigSide};
use crate::config::{Command, Request};
use crate::conn::ConnTable;
use crate::control::{ControlPlane, Controller, Input, Setup, TABLE_SIZE};
use crate::director::neigh::Neighbours;
use crate::director::snapshot::{Port, Side, SourceRoute};
use crate::director::worker::{Worker, WorkerSetup};
use crate::nic::{self, Backend, Halves, LocalLink, OpenOptions};
use crate::wire::Mac;

/// Everything that runs, before it runs.
pub(super) struct Built {
    pub plane: ControlPlane,
    pub workers: Vec<Worker>,
    pub wanted: Vec<Wanted>,
    pub seen: Vec<Seen>,
    /// The kernel's end of the way to programs of this machine.
    pub local: Option<LocalLink>,
}

/// Would the director take this configuration? Applies nothing, opens nothing.
///
/// # Errors
/// Names the first service or real server that would be refused.
pub fn check(config: &Config) -> Result<(), RunError> {
    let table = Arc::new(ConnTable::new(1, 0));
    let setup = setup(config, Vec::new(), table);
    let mut controller = Controller::new(&setup, clock::now());
    for command in &config.services {
        let applied = controller.apply(command.clone(), clock::now());
        applied.map_err(|refusal| RunError(format!("{}: {refusal}", name_of(command))))?;
    }
    Ok(())
}

/// Opens and builds everything; the services are asked for, but not yet in force.
pub(super) async fn build(config: &Config, links: &Links) -> Result<Built, RunError> {
    check(config)?;
    let mut wanted = wanted(config);
    let mut halves = open(config, &wanted)?;
    let local = local::open(config, &mut wanted, &mut halves)?;
    let seen = links.read(&wanted, &[]).await.map_err(RunError)?;
    seen.iter().for_each(tell_of);
    let ports: Vec<Port> = seen.iter().map(|seen| seen.port.clone()).collect();
    let seed = random()?;
    let entries = config.limits.conn_entries_max as usize;
    let table = Arc::new(ConnTable::new(entries, seed));
    let setup = setup(config, ports, Arc::clone(&table));
    let now = clock::now();
    let mut plane = ControlPlane::new(setup, now);
    let neighbours = Neighbours::new(config.limits.neigh_entries_max as usize);
    let neighbours = Arc::new(neighbours);
    let mut workers = Vec::new();
    for (number, ports) in halves.into_iter().enumerate() {
        let setup = WorkerSetup {
            number,
            table: Arc::clone(&table),
            neighbours: Arc::clone(&neighbours),
            snapshot: plane.snapshot(),
            ports,
            seed: random()?,
            story: true,
        };
        workers.push(Worker::new(setup, now));
    }
    let services = Command::Batch(config.services.clone());
    let request = Request::Do(services);
    plane.handle(
        Input::Request {
            from: SELF,
            request,
        },
        now,
    );
    Ok(Built {
        plane,
        workers,
        wanted,
        seen,
        local,
    })
}

fn setup(config: &Config, ports: Vec<Port>, table: Arc<ConnTable>) -> Setup {
    Setup {
        ports,
        tunables: config.tunables,
        timeouts: config.timeouts,
        limits: config.limits,
        workers: config.director.workers,
        table,
        table_size: TABLE_SIZE,
        pid: std::process::id(),
        nic: config.director.nic.name().to_string(),
    }
}

/// The interfaces to open; under TUN the device alone.
fn wanted(config: &Config) -> Vec<Wanted> {
    if config.director.nic == NicKind::Tun {
        let name = &config.director.tun;
        let configured = config.ports.iter().find(|port| port.interface == *name);
        let port = configured.cloned();
        let port = port.unwrap_or_else(|| PortSpec::new(name, ConfigSide::Public));
        return vec![wanted_port(&port, true)];
    }
    let ports = config.ports.iter();
    ports.map(|port| wanted_port(port, false)).collect()
}

fn wanted_port(port: &PortSpec, raw_ip: bool) -> Wanted {
    let routes = port.routes.iter().filter(|route| route.from.is_none());
    let routes_from = port.routes.iter().filter_map(|route| {
        let from = route.from?;
        Some(SourceRoute {
            from: (from.address, from.prefix),
            to: (route.to.address, route.to.prefix),
            via: route.via,
        })
    });
    let addresses = port.addresses.iter();
    let neighbours = port.neighbours.iter();
    Wanted {
        name: port.interface.clone(),
        side: match port.side {
            ConfigSide::Public => Side::Public,
            ConfigSide::Private => Side::Private,
        },
        raw_ip,
        kernel: false,
        addresses: addresses.map(|own| (own.address, own.prefix)).collect(),
        routes: routes
            .map(|route| (route.to.address, route.to.prefix, route.via))
            .collect(),
        routes_from: routes_from.collect(),
        neighbours: neighbours
            .map(|(address, mac)| (*address, Mac(*mac)))
            .collect(),
    }
}

/// The halves of every port for every worker. The workers of one port are opened in their order: that
/// is how the program which spreads frames numbers them.
fn open(config: &Config, wanted: &[Wanted]) -> Result<Vec<Vec<Halves>>, RunError> {
    let backend = match config.director.nic {
        NicKind::Packet => Backend::Packet,
        NicKind::Mmsg => Backend::Mmsg,
        NicKind::Tun => Backend::Tun,
    };
    let workers = config.director.workers;
    let mut halves: Vec<Vec<Halves>> = (0..workers).map(|_| Vec::new()).collect();
    for port in wanted {
        let side = match port.side {
            Side::Public => nic::Side::Public,
            Side::Private => nic::Side::Private,
        };
        for (worker, halves) in halves.iter_mut().enumerate() {
            let options = OpenOptions {
                worker,
                workers,
                ..OpenOptions::new(&port.name, side)
            };
            let opened = nic::open(backend, &options);
            halves.push(opened.map_err(|error| RunError(error.to_string()))?);
        }
    }
    Ok(halves)
}

/// What a person should know of an interface before frames flow.
fn tell_of(seen: &Seen) {
    let name = &seen.port.name;
    if seen.port.kernel {
        return;
    }
    if seen.state != LinkState::Up {
        say(&format!("{name} is down; its frames flow once it is up"));
    }
    if seen.port.addresses.is_empty() && !seen.port.raw_ip {
        say(&format!(
            "{name} has no address of the director: nobody there can use it as a gateway"
        ));
    }
}

/// What a refused command was about.
fn name_of(command: &Command) -> String {
    match command {
        Command::AddService(spec) => format!("service {}", spec.key),
        Command::AddReal { service, real } => {
            format!("service {service}, real server {}", real.key)
        }
        other => format!("{other:?}"),
    }
}

fn random() -> Result<u64, RunError> {
    let number = getrandom::u64();
    number.map_err(|error| RunError(format!("the system gives no random number: {error}")))
}
