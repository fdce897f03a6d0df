//! `ulvs apply` and `ulvs diff`: a whole configuration against a running director. The file is read and
//! judged first; then the director is asked what it is, and what is missing is sent as one batch, which
//! is done whole or not at all.

use std::path::{Path, PathBuf};

use clap::Args;

use super::adm::Outcome;
use super::client::{self, Client};
use super::run::read;
use crate::config::command::{State, StatusRow};
use crate::config::plan::{self, Wanted};
use crate::config::rules::words_of;
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
    client::make_room();
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

/// Reads either kind of file.
fn wanted(file: &Path, text: &str, names: &dyn Resolver) -> Result<Wanted, String> {
    let name = match file.as_os_str() == "-" {
        true => "standard input".to_string(),
        false => file.display().to_string(),
    };
    let toml = file.extension().is_some_and(|end| end == "toml");
    let wanted = match plan::is_rules(text) && !toml {
        true => plan::of_rules(&name, text, names),
        false => plan::of_toml(&name, text, &sched::NAMES),
    };
    wanted.map_err(|fault| fault.to_string())
}

/// Prints the plan; unless it is a dry run, has it done.
fn apply(wanted: &Wanted, dry_run: bool, ask: &mut Ask) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    if let Some(config) = &wanted.config {
        let restart = plan::needs_restart(config, &status(ask)?);
        let lines = restart.iter();
        outcome.stderr = lines
            .map(|why| format!("needs a restart: {why}\n"))
            .collect();
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

#[cfg(test)]
mod tests;
