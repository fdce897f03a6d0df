//! The grammar of ipvsadm: words become a Call. One grammar for the command line, the lines of
//! `ipvsadm -R` and rules files. The order of the checks, the sentences and the exit statuses are
//! those of ipvsadm 1.31, recorded from the program; nothing is asked and nothing is changed here.

use std::fmt;

use super::command::Command;
use super::draft::{Draft, timeouts};
use super::options::{Opt, Scanner, Token};
use super::words::Resolver;
use crate::lvs::{ServiceKey, SyncRole};

/// Longest timeout ipvsadm takes, in seconds: 31 days.
pub const TIMEOUT_MAX_S: u32 = 31 * 24 * 3600;
/// Persistence of a bare `-p`, in seconds.
pub const PERSISTENCE_DEFAULT_S: u32 = 360;
/// Longest name of a scheduler or engine in bytes (`IP_VS_SCHEDNAME_MAXLEN` without its NUL).
pub const NAME_BYTES_MAX: usize = 15;
/// ipvsadm's default scheduler.
pub const SCHEDULER_DEFAULT: &str = "wlc";

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// A change.
    Change(Command),
    /// `-L`.
    List(List),
    /// `-S`
    Save {
        /// `-n`
        numeric: bool,
    },
    /// `-R`
    Restore,
    /// `-h`
    Help,
    /// `-v`
    Version,
}

/// What `-L` shall show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct List {
    /// Of what.
    pub what: What,
    /// No names.
    pub numeric: bool,
    /// Whole numbers.
    pub exact: bool,
    /// In ipvsadm's order, not in the engine's.
    pub sorted: bool,
    /// Which columns.
    pub columns: Columns,
}

/// The subject of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// All services, or one.
    Services(Option<ServiceKey>),
    /// `-c`
    Connections,
    /// `--masqueraded`, an addition of ours.
    Masqueraded,
    /// `--timeout`
    Timeouts,
    /// `--daemon`
    Daemons,
}

/// The columns of a listing of services; if several are asked for, the first of these is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Columns {
    /// `--stats`
    Stats,
    /// `--rate`
    Rate,
    /// `--thresholds`
    Thresholds,
    /// `--persistent-conn`
    Persistent,
    /// `--tun-info`
    Tunnel,
    /// Method, weight, connections.
    Plain,
}

/// Why words were not understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What is wrong.
    pub fault: Fault,
    /// Number of the word at fault, where there is one.
    pub word: Option<usize>,
}

/// What is wrong with the words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// They do not begin with a command.
    NoCommand,
    /// popt did not understand an option.
    BadOption {
        /// The option as written.
        text: String,
        /// popt's reason.
        why: &'static str,
    },
    /// ipvsadm did not.
    Wrong(String),
}

impl Complaint {
    /// Exit status of ipvsadm.
    pub const fn status(&self) -> u8 {
        match self.fault {
            Fault::NoCommand | Fault::BadOption { .. } => 255,
            Fault::Wrong(_) => 2,
        }
    }

    /// What ipvsadm says when it is called as `program`; line end not included.
    pub fn message(&self, program: &str) -> String {
        match &self.fault {
            Fault::NoCommand => {
                format!("Try `{program} -h' or '{program} --help' for more information.")
            }
            Fault::BadOption { text, why } => format!("{text}: {why}"),
            Fault::Wrong(text) => text.clone(),
        }
    }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message("ipvsadm"))
    }
}

/// A complaint in ipvsadm's own words.
pub(super) fn wrong(text: impl Into<String>, word: Option<usize>) -> Complaint {
    Complaint {
        fault: Fault::Wrong(text.into()),
        word,
    }
}

/// Understands `words` (without the program's name), our additions included. No words at all list all
/// services.
pub fn parse(words: &[&str], names: &dyn Resolver) -> Result<Call, Complaint> {
    understand(Scanner::new(words), words, names)
}

/// Understands what ipvsadm itself understands.
pub fn parse_strictly(words: &[&str], names: &dyn Resolver) -> Result<Call, Complaint> {
    understand(Scanner::strict(words), words, names)
}

fn understand(
    mut scanner: Scanner<'_>,
    words: &[&str],
    names: &dyn Resolver,
) -> Result<Call, Complaint> {
    if words.is_empty() {
        return Ok(Call::List(Draft::default().list()));
    }
    let mut plain = Vec::new();
    let Some((opt, value, word)) = first_option(&mut scanner, &mut plain) else {
        let fault = Fault::NoCommand;
        let word = Some(0);
        return Err(Complaint { fault, word });
    };
    match opt {
        Opt::Help => return Ok(Call::Help),
        Opt::Version => return Ok(Call::Version),
        _ => {}
    }
    let Some(command) = opt.as_command() else {
        let (fault, word) = (Fault::NoCommand, Some(word));
        return Err(Complaint { fault, word });
    };
    let role = value.map(|text| sync_role(opt, text, word)).transpose()?;
    let mut draft = Draft::default();
    for token in scanner {
        match token {
            Token::Plain { word } => plain.push(word),
            Token::Bad { word, why } => return Err(bad_option(words[word], why, word)),
            Token::Option { opt, value, word } => draft.take(opt, value, word, words, names)?,
        }
    }
    if opt == Opt::Set {
        draft.timeouts = timeouts(words, &mut plain)?;
    }
    if let Some(word) = plain.first() {
        let text = format!("unexpected argument {}", words[*word]);
        return Err(wrong(text, Some(*word)));
    }
    draft.resolve_flags()?;
    draft.check(command)?;
    draft.call(command.command, role)
}

type FirstOption<'a> = (Opt, Option<&'a str>, usize);

fn first_option<'a>(scanner: &mut Scanner<'a>, plain: &mut Vec<usize>) -> Option<FirstOption<'a>> {
    loop {
        match scanner.next()? {
            Token::Plain { word } => plain.push(word),
            Token::Bad { .. } => return None,
            Token::Option { opt, value, word } => return Some((opt, value, word)),
        }
    }
}

fn bad_option(text: &str, why: &'static str, word: usize) -> Complaint {
    let text = text.to_string();
    Complaint {
        fault: Fault::BadOption { text, why },
        word: Some(word),
    }
}

fn sync_role(opt: Opt, text: &str, word: usize) -> Result<SyncRole, Complaint> {
    match (text, opt) {
        ("master", _) => Ok(SyncRole::Master),
        ("backup", _) => Ok(SyncRole::Backup),
        (_, Opt::StartDaemon) => {
            let text = "illegal start-daemon parameter specified";
            Err(wrong(text, Some(word)))
        }
        _ => Err(wrong("illegal start_daemon specified", Some(word))),
    }
}
