//! A text that describes a whole director, in either form, and what a running one lacks to be that.

use std::fmt;

use super::command::StatusRow;
use super::diff::{Desired, NoState};
use super::file::{self, Config, NicKind};
use super::problem::Problems;
use super::rules::{self, words_of};
use super::words::Resolver;

/// A text that was read without complaint.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// What commands can bring about.
    pub desired: Desired,
    /// What only a start can bring into force; rules have none.
    pub config: Option<Config>,
}

/// Why a text describes no director. Displays as a report for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is wrong, at these places.
    Wrong(Problems),
    /// It does something once: the sentence names what.
    NoState(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Wrong(problems) => problems.fmt(f),
            Fault::NoState(sentence) => f.write_str(sentence),
        }
    }
}

/// Is it rules? The first word of rules is an option of ipvsadm; no TOML begins so. A text that says
/// nothing is rules without a service.
pub fn is_rules(text: &str) -> bool {
    let mut said = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let option = |line: &str| line.starts_with('-') || line.starts_with("ipvsadm");
    said.next().is_none_or(option)
}

/// Reads rules as ipvsadm-save prints them. `name` is what problems call the text.
///
/// # Errors
/// All that is wrong in it.
pub fn of_rules(name: &str, text: &str, names: &dyn Resolver) -> Result<Wanted, Fault> {
    let commands = rules::parse(name, text, names).map_err(Fault::Wrong)?;
    let desired = Desired::of_commands(&commands).map_err(|once| no_state(name, &once))?;
    let config = None;
    Ok(Wanted { desired, config })
}

/// Reads ulvs.toml. `schedulers` are the names of those there are.
///
/// # Errors
/// All that is wrong in it.
pub fn of_toml(name: &str, text: &str, schedulers: &[&str]) -> Result<Wanted, Fault> {
    let config = file::parse(name, text, schedulers).map_err(Fault::Wrong)?;
    let desired = Desired::of_config(&config).map_err(|once| no_state(name, &once))?;
    let config = Some(config);
    Ok(Wanted { desired, config })
}

fn no_state(name: &str, NoState(command): &NoState) -> Fault {
    let words = words_of(command);
    Fault::NoState(format!(
        "{name}: `{words}` does something once; a state is described by services and servers"
    ))
}

/// What the text says otherwise and no running director can change, a sentence each.
pub fn needs_restart(config: &Config, status: &StatusRow) -> Vec<String> {
    let director = &config.director;
    let ports = match director.nic {
        NicKind::Tun => vec![director.tun.clone()],
        _ => config
            .ports
            .iter()
            .map(|port| port.interface.clone())
            .collect(),
    };
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort();
        names.join(" ")
    };
    let most = config.limits.conn_entries_max;
    let pairs = [
        ("nic", status.nic.clone(), director.nic.name().to_string()),
        (
            "workers",
            status.workers.to_string(),
            director.workers.to_string(),
        ),
        ("interfaces", sorted(&status.ports), sorted(&ports)),
        (
            "conn_entries_max",
            status.connections_max.to_string(),
            most.to_string(),
        ),
    ];
    let differing = pairs.iter().filter(|(_, now, then)| now != then);
    differing
        .map(|(name, now, then)| format!("{name} is {now}, the file says {then}"))
        .collect()
}
