//! `ulvs apply` and `ulvs diff`: a whole configuration against a running director. The file is read and
//! judged first; then the director is asked what it is, and what is missing is sent as one batch, which
//! is done whole or not at all.

use std::path::{Path, PathBuf};

use clap::Args;

use super::adm::Outcome;
use super::client::{self, Client};
use super::run::read;
use crate::config::command::{State, StatusRow};
use crate::config::diff::{Desired, NoState};
use crate::config::file::{Config, NicKind, parse};
use crate::config::rules::{self, words_of};
use crate::config::words::Resolver;
use crate::config::{Command, Listing, Query, Reply, Request};
use crate::sched;

/// Status of `ulvs diff` when there is something to change.
const DIFFERS: u8 = 1;
/// Status when the file is wrong, nobody can be asked, or the director refuses.
const FAILED: u8 = 2;
/// How often the plan is made again when somebody else has changed the director meanwhile.
const TRIES: usize = 3;

/// Makes a running director what a file says.
#[derive(Args, Clone, Debug)]
pub struct ApplyArgs {
    /// ulvs.toml, or rules as ipvsadm-save prints them; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Only show the changes
    #[arg(long)]
    pub dry_run: bool,
}

/// Shows what would be changed.
#[derive(Args, Clone, Debug)]
pub struct DiffArgs {
    /// ulvs.toml, or rules as ipvsadm-save prints them; `-` is standard input
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Takes a request to the daemon; an error is a sentence about the connection.
type Ask<'a> = dyn FnMut(Request) -> Result<Reply, String> + 'a;

/// A file that was read without complaint.
struct Wanted {
    desired: Desired,
    /// What only a start can bring into force; rules have none.
    config: Option<Config>,
}

/// `ulvs apply FILE`: asks the daemon of this user.
pub fn run(args: &ApplyArgs, names: &dyn Resolver) -> Outcome {
    with_daemon(&args.file, names, |wanted, ask| {
        apply(wanted, args.dry_run, ask)
    })
}

/// `ulvs diff FILE`: asks the daemon of this user.
pub fn run_diff(args: &DiffArgs, names: &dyn Resolver) -> Outcome {
    with_daemon(&args.file, names, |wanted, ask| {
        let mut outcome = apply(wanted, true, ask)?;
        if !outcome.stdout.is_empty() {
            outcome.status = DIFFERS;
        }
        Ok(outcome)
    })
}

fn with_daemon(
    file: &Path,
    names: &dyn Resolver,
    act: impl FnOnce(&Wanted, &mut Ask) -> Result<Outcome, String>,
) -> Outcome {
    let done = read(file)
        .and_then(|text| wanted(file, &text, names))
        .and_then(|wanted| {
            let path = client::path();
            let mut client = Client::connect(&path)
                .map_err(|error| format!("no director at {path}: {error}"))?;
            act(&wanted, &mut |request| client.ask(&request))
        });
    done.unwrap_or_else(|sentence| Outcome {
        stderr: format!("ulvs: {}\n", sentence.trim_end()),
        status: FAILED,
        ..Outcome::default()
    })
}

/// Reads either kind of file. The first word of rules is an option of ipvsadm; no TOML begins so.
fn wanted(file: &Path, text: &str, names: &dyn Resolver) -> Result<Wanted, String> {
    let name = match file.as_os_str() == "-" {
        true => "standard input".to_string(),
        false => file.display().to_string(),
    };
    let mut said = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    let is_rules = |line: &str| line.starts_with('-') || line.starts_with("ipvsadm");
    let no_state = |NoState(command): NoState| {
        let words = words_of(&command);
        format!(
            "{name}: `{words}` does something once; a state is described by services and servers"
        )
    };
    if said.next().is_none_or(is_rules) && file.extension().is_none_or(|end| end != "toml") {
        let commands = rules::parse(&name, text, names).map_err(|problems| problems.to_string())?;
        let desired = Desired::of_commands(&commands).map_err(no_state)?;
        let config = None;
        return Ok(Wanted { desired, config });
    }
    let config = parse(&name, text, &sched::NAMES).map_err(|problems| problems.to_string())?;
    let desired = Desired::of_config(&config).map_err(no_state)?;
    let config = Some(config);
    Ok(Wanted { desired, config })
}

/// Prints the plan; unless it is a dry run, has it done.
fn apply(wanted: &Wanted, dry_run: bool, ask: &mut Ask) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    if let Some(config) = &wanted.config {
        outcome.stderr = restart_lines(config, &status(ask)?);
    }
    let mut refused = String::new();
    for _ in 0..TRIES {
        let changes = wanted.desired.changes_from(&state(ask)?);
        outcome.stdout = changes
            .iter()
            .map(|change| words_of(change) + "\n")
            .collect();
        if changes.is_empty() {
            return Ok(outcome);
        }
        let request = match dry_run {
            true => Request::Each {
                commands: vec![Command::Batch(changes)],
                dry_run,
            },
            false => Request::Do(Command::Batch(changes)),
        };
        match ask(request)? {
            Reply::Done => return Ok(outcome),
            Reply::Each(refusals) => match refusals.first().copied().flatten() {
                None => return Ok(outcome),
                Some(refusal) => refused = refusal.to_string(),
            },
            Reply::Refused(refusal) => refused = refusal.to_string(),
            Reply::BadRequest(sentence) | Reply::Late(sentence) => return Err(sentence),
            Reply::Listing(_) => return Err(NONSENSE.to_string()),
        }
    }
    Err(format!("nothing was changed: the director says: {refused}"))
}

const NONSENSE: &str = "the daemon answered something else than was asked";

fn state(ask: &mut Ask) -> Result<State, String> {
    match ask(Request::Ask(Query::State))? {
        Reply::Listing(Listing::State(state)) => Ok(*state),
        Reply::BadRequest(sentence) | Reply::Late(sentence) => Err(sentence),
        _ => Err(NONSENSE.to_string()),
    }
}

fn status(ask: &mut Ask) -> Result<StatusRow, String> {
    match ask(Request::Ask(Query::Status))? {
        Reply::Listing(Listing::Status(status)) => Ok(status),
        Reply::BadRequest(sentence) | Reply::Late(sentence) => Err(sentence),
        _ => Err(NONSENSE.to_string()),
    }
}

/// What the file says otherwise and no running director can change.
fn restart_lines(config: &Config, status: &StatusRow) -> String {
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
        .map(|(name, now, then)| {
            format!("needs a restart: {name} is {now}, the file says {then}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests;
