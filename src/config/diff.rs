//! From one state to another: the smallest set of Commands that makes the running director what a file
//! says. It asks nobody and changes nothing; whoever wants the change sends them as one batch.

use std::collections::BTreeMap;

use super::command::{Command, RealSpec, State};
use super::file::Config;
use crate::lvs::{
    MarkRule, Masquerading, RealKey, ServiceKey, ServiceSpec, SourcePool, Timeouts, Tunables,
};

/// Sysctls whose values 1 and 2 are one setting: the director itself moves between them.
const AUTOMATIC: [&str; 3] = ["drop_entry", "drop_packet", "secure_tcp"];

/// What a file says the director shall be. What it does not speak of stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    services: BTreeMap<ServiceKey, (ServiceSpec, Vec<RealSpec>)>,
    marks: Option<Vec<MarkRule>>,
    pools: Option<(Masquerading, SourcePool)>,
    ftp_ports: Option<Vec<u16>>,
    timeouts: Option<Timeouts>,
    tunables: Option<Tunables>,
}

/// A command that does something once and leaves no state behind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoState(pub Command);

impl Desired {
    /// What commands that begin with an empty director leave behind. They are those of a file that was
    /// read without complaint, so none is refused.
    ///
    /// # Errors
    /// A command that does something once, like zeroing counters.
    pub fn of_commands(commands: &[Command]) -> Result<Desired, NoState> {
        let mut desired = Desired::default();
        for command in commands {
            desired.take(command)?;
        }
        Ok(desired)
    }

    /// All that a configuration file says; what it leaves out has its default.
    ///
    /// # Errors
    /// As `of_commands`.
    pub fn of_config(config: &Config) -> Result<Desired, NoState> {
        let mut desired = Desired::of_commands(&config.services)?;
        desired.marks.get_or_insert_default();
        desired.pools.get_or_insert_default();
        desired.ftp_ports.get_or_insert_default();
        desired.timeouts = Some(config.timeouts);
        desired.tunables = Some(config.tunables);
        Ok(desired)
    }

    fn take(&mut self, command: &Command) -> Result<(), NoState> {
        match command {
            Command::AddService(spec) => {
                self.services.insert(spec.key, (spec.clone(), Vec::new()));
            }
            Command::EditService(spec) => {
                if let Some((old, _)) = self.services.get_mut(&spec.key) {
                    *old = spec.clone();
                }
            }
            Command::DeleteService(key) => {
                self.services.remove(key);
            }
            Command::Flush => self.services.clear(),
            Command::AddReal { service, real } => self.reals(service).push(*real),
            Command::EditReal { service, real } => {
                let same = |old: &&mut RealSpec| old.key == real.key;
                if let Some(old) = self.reals(service).iter_mut().find(same) {
                    *old = *real;
                }
            }
            Command::DeleteReal { service, real } => {
                self.reals(service).retain(|old| old.key != *real);
            }
            Command::SetTimeouts(timeouts) => self.timeouts = Some(*timeouts),
            Command::SetFtpPorts(ports) => self.ftp_ports = Some(ports.clone()),
            Command::SetMarks(rules) => self.marks = Some(rules.clone()),
            Command::SetPools {
                masquerading,
                full_nat,
            } => self.pools = Some((masquerading.clone(), full_nat.clone())),
            Command::Batch(commands) => {
                for command in commands {
                    self.take(command)?;
                }
            }
            Command::Zero(_)
            | Command::SetTunable { .. }
            | Command::StartSync(_)
            | Command::StopSync(_) => return Err(NoState(command.clone())),
        }
        Ok(())
    }

    /// The servers of a service; of one that is not there, nobody's.
    fn reals(&mut self, key: &ServiceKey) -> &mut Vec<RealSpec> {
        let nobody = || (ServiceSpec::new(*key, ""), Vec::new());
        &mut self.services.entry(*key).or_insert_with(nobody).1
    }

    /// The Commands that make `state` what is desired: first what goes, then what stays and changes,
    /// then what comes, in the order of the keys; a service's new servers in the order of the file.
    /// Of two states that differ in the order of a service's servers alone there are none: a server
    /// that serves is not taken out to be put in elsewhere.
    pub fn changes_from(&self, state: &State) -> Vec<Command> {
        let mut changes = Vec::new();
        let before: BTreeMap<ServiceKey, _> = state
            .services
            .iter()
            .map(|(spec, reals)| (spec.key, (spec, reals)))
            .collect();
        let ftp_ports = self.ftp_ports.as_ref();
        if let Some(ports) = ftp_ports.filter(|ports| **ports != state.ftp_ports) {
            changes.push(Command::SetFtpPorts(ports.clone()));
        }
        // Servers by full NAT need its local addresses, so those come first.
        if let Some(pools) = self.pools.as_ref().filter(|pools| **pools != state.pools) {
            let (masquerading, full_nat) = pools.clone();
            changes.push(Command::SetPools {
                masquerading,
                full_nat,
            });
        }
        let gone = before.keys().filter(|key| !self.services.contains_key(key));
        changes.extend(gone.map(|key| Command::DeleteService(*key)));
        for (key, (spec, reals)) in &self.services {
            match before.get(key) {
                Some((old, _)) if *old != spec => {
                    changes.push(Command::EditService(spec.clone()));
                }
                Some(_) => {}
                None => changes.push(Command::AddService(spec.clone())),
            }
            let old = before.get(key).map_or(&[][..], |(_, reals)| reals);
            changes_of_reals(*key, old, reals, &mut changes);
        }
        if let Some(marks) = self.marks.as_ref().filter(|marks| **marks != state.marks) {
            changes.push(Command::SetMarks(marks.clone()));
        }
        if let Some(timeouts) = self
            .timeouts
            .filter(|wanted| differs(wanted, &state.timeouts))
        {
            changes.push(Command::SetTimeouts(timeouts));
        }
        if let Some(tunables) = &self.tunables {
            changes.extend(changes_of_tunables(&state.tunables, tunables));
        }
        changes
    }
}

fn changes_of_reals(
    service: ServiceKey,
    old: &[RealSpec],
    new: &[RealSpec],
    changes: &mut Vec<Command>,
) {
    let before: BTreeMap<RealKey, &RealSpec> = old.iter().map(|real| (real.key, real)).collect();
    let after: BTreeMap<RealKey, &RealSpec> = new.iter().map(|real| (real.key, real)).collect();
    let gone = old.iter().filter(|real| !after.contains_key(&real.key));
    changes.extend(gone.map(|real| Command::DeleteReal {
        service,
        real: real.key,
    }));
    for real in new {
        match before.get(&real.key) {
            Some(old) if *old == real => {}
            Some(_) => changes.push(Command::EditReal {
                service,
                real: *real,
            }),
            None => changes.push(Command::AddReal {
                service,
                real: *real,
            }),
        }
    }
}

/// A zero leaves that timeout as it is, here as in `--set`.
fn differs(wanted: &Timeouts, now: &Timeouts) -> bool {
    let pairs = [
        (wanted.tcp_s, now.tcp_s),
        (wanted.tcp_fin_s, now.tcp_fin_s),
        (wanted.udp_s, now.udp_s),
    ];
    pairs
        .iter()
        .any(|(wanted, now)| *wanted != 0 && wanted != now)
}

fn changes_of_tunables(now: &Tunables, wanted: &Tunables) -> Vec<Command> {
    let mut changes = Vec::new();
    for name in Tunables::NAMES {
        let (Some(old), Some(new)) = (now.get(name), wanted.get(name)) else {
            continue;
        };
        let moves = AUTOMATIC.contains(name) && (1..=2).contains(&old) && (1..=2).contains(&new);
        if old != new && !moves {
            changes.push(Command::SetTunable {
                name: name.to_string(),
                value: new.to_string(),
            });
        }
    }
    changes
}
