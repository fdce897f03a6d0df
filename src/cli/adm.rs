//! `ulvs adm`, and the same when called as `ipvsadm`, `ipvsadm-save` or `ipvsadm-restore`: words in,
//! text and exit status out, as ipvsadm 1.31 does it. What there is to know and to do goes through one
//! function that asks the daemon, so that tests can put anything in its place.

use std::io::Read;

use crate::cli::client::{self, Client};
use crate::cli::names::SystemNames;
use crate::cli::{help, list};
use crate::config::ipvsadm::{Call, Complaint, Fault, List, What, parse, parse_strictly};
use crate::config::rules::words_of;
use crate::config::words::Resolver;
use crate::config::{Command, Listing, Query, Refusal, Reply, Request};

/// Status of a call that did what it should.
const OK: u8 = 0;
/// Status of a listing of something that is not there.
const NOTHING_TO_LIST: u8 = 1;
/// Status when the words are wrong, or the daemon cannot be reached.
const FAILED: u8 = 2;
/// Status of everything that was refused (ipvsadm returns −1).
const REFUSED: u8 = 255;

/// What `ipvsadm -v` prints; scripts read it.
const VERSION: &str = "ipvsadm v1.31 2019/12/24 (compiled with popt and IPVS v1.2.1)\n";

/// Most lines of a restore that are sent at once.
const GROUP_MAX: usize = 4096;

/// Longest standard input of a restore, in bytes.
const INPUT_BYTES_MAX: u64 = crate::config::file::TEXT_BYTES_MAX as u64;

/// What a call printed, and its exit status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status.
    pub status: u8,
}

/// Takes a request to the daemon; an error is a sentence about the connection.
pub type Ask<'a> = dyn FnMut(Request) -> Result<Reply, String> + 'a;

/// Does what `argv` says, with this machine's names; `argv[0]` is the name the program was called by.
/// `stdin` is read by `-R` only.
pub fn run_with(argv: &[String], stdin: &str, ask: &mut dyn FnMut(Request) -> Reply) -> Outcome {
    let names = SystemNames::load();
    run_named(argv, stdin, &names, &mut |request| Ok(ask(request)))
}

/// The same with other names, and with a connection that may fail.
pub fn run_named(argv: &[String], stdin: &str, names: &dyn Resolver, ask: &mut Ask) -> Outcome {
    run_extra(argv, stdin, names, Extra::default(), ask)
}

/// What `ulvs adm` takes beside ipvsadm's words, wherever they stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extra {
    /// `--json`: a listing as JSON.
    pub json: bool,
    /// `--dry-run`: nothing is changed; what would be is printed.
    pub dry_run: bool,
}

impl Extra {
    /// Takes our own words out of a call's.
    pub fn take(argv: &[String]) -> (Vec<String>, Extra) {
        let has = |wanted: &str| argv.iter().any(|word| word == wanted);
        let extra = Extra {
            json: has("--json"),
            dry_run: has("--dry-run"),
        };
        let ours = |word: &&String| *word == "--json" || *word == "--dry-run";
        let words = argv.iter().filter(|word| !ours(word)).cloned();
        (words.collect(), extra)
    }
}

/// The same as `run_named`, with our own options.
pub fn run_extra(
    argv: &[String],
    stdin: &str,
    names: &dyn Resolver,
    extra: Extra,
    ask: &mut Ask,
) -> Outcome {
    let program = argv.first().map_or("ipvsadm", String::as_str);
    let words: Vec<&str> = argv.iter().skip(1).map(String::as_str).collect();
    let mut session = Session {
        program,
        names,
        ask,
        extra,
        restoring: false,
        pending: Vec::new(),
        outcome: Outcome::default(),
    };
    let status = session.call(&words, stdin);
    session.outcome.status = status.unwrap_or_else(|ended| ended.0);
    session.outcome
}

/// The program as a person calls it: asks the daemon of this user, prints nothing itself.
pub fn run(argv: &[String], names: &dyn Resolver) -> Outcome {
    run_own(argv, names, Extra::default())
}

/// The same with our own options: `ulvs adm`.
pub fn run_own(argv: &[String], names: &dyn Resolver, extra: Extra) -> Outcome {
    client::make_room();
    let words: Vec<&str> = argv.iter().skip(1).map(String::as_str).collect();
    let call = parse(&words, names);
    if matches!(call, Ok(Call::Help | Call::Version) | Err(_)) {
        let mut nobody = |_| Err("nothing was to be asked".to_string());
        return run_named(argv, "", names, &mut nobody);
    }
    let path = client::path();
    let mut client = match Client::connect(&path) {
        Ok(client) => client,
        Err(error) => return unreachable_daemon(&path, &error.to_string()),
    };
    let stdin = match call {
        Ok(Call::Restore) => read_stdin(),
        _ => Ok(String::new()),
    };
    match stdin {
        Ok(stdin) => run_extra(argv, &stdin, names, extra, &mut |request| {
            client.ask(&request)
        }),
        Err(sentence) => failed(sentence),
    }
}

/// `ipvsadm-save [-n]`
pub fn run_save(argv: &[String], names: &dyn Resolver) -> Outcome {
    let known = |word: &String| word == "-n" || !word.starts_with('-');
    if !argv.iter().skip(1).all(known) {
        let program = argv.first().map_or("ipvsadm-save", String::as_str);
        let stderr = format!(
            "{program}: prints the table of virtual services as rules.\n   With -n, in numbers.\n"
        );
        return Outcome {
            stderr,
            status: NOTHING_TO_LIST,
            ..Outcome::default()
        };
    }
    let numeric = argv.iter().any(|word| word == "-n");
    let mut words = vec!["ipvsadm".to_string(), "-S".to_string()];
    words.extend(numeric.then(|| "-n".to_string()));
    run(&words, names)
}

/// `ipvsadm-restore`: the table is emptied, then the lines of standard input that do not begin with
/// `#` are done.
pub fn run_restore(names: &dyn Resolver) -> Outcome {
    client::make_room();
    let stdin = match read_stdin() {
        Ok(stdin) => stdin,
        Err(sentence) => return failed(sentence),
    };
    let path = client::path();
    let mut client = match Client::connect(&path) {
        Ok(client) => client,
        Err(error) => return unreachable_daemon(&path, &error.to_string()),
    };
    restore_with(&stdin, names, &mut |request| client.ask(&request))
}

/// What `ipvsadm-restore` does with these lines.
pub fn restore_with(stdin: &str, names: &dyn Resolver, ask: &mut Ask) -> Outcome {
    let lines = stdin
        .split_inclusive('\n')
        .filter(|line| !line.starts_with('#'));
    let rules: String = lines.collect();
    let words = |option: &str| ["ipvsadm".to_string(), option.to_string()];
    let cleared = run_named(&words("-C"), "", names, ask);
    let mut restored = run_named(&words("-R"), &rules, names, ask);
    restored.stderr.insert_str(0, &cleared.stderr);
    restored
}

fn unreachable_daemon(path: &str, reason: &str) -> Outcome {
    // What the system says, without Rust's "(os error 2)".
    let reason = reason.split(" (os error").next().unwrap_or(reason);
    failed(format!(
        "Can't initialize ipvs: {reason}\nNo director listens at {path}. Is `ulvs run` running?"
    ))
}

fn failed(sentence: String) -> Outcome {
    Outcome {
        stderr: sentence + "\n",
        status: FAILED,
        ..Outcome::default()
    }
}

fn read_stdin() -> Result<String, String> {
    let mut bytes = Vec::new();
    let mut limited = std::io::stdin().lock().take(INPUT_BYTES_MAX + 1);
    let read = limited.read_to_end(&mut bytes);
    read.map_err(|error| format!("standard input: {error}"))?;
    if bytes.len() as u64 > INPUT_BYTES_MAX {
        return Err(format!(
            "standard input is longer than {INPUT_BYTES_MAX} bytes"
        ));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// One run of the program.
struct Session<'a> {
    program: &'a str,
    names: &'a dyn Resolver,
    ask: &'a mut Ask<'a>,
    extra: Extra,
    restoring: bool,
    /// Changes of a restore that were read and not yet sent.
    pending: Vec<Command>,
    outcome: Outcome,
}

/// The program ends here, also in the middle of a restore.
struct Ended(u8);

type Status = Result<u8, Ended>;

impl Session<'_> {
    fn call(&mut self, words: &[&str], stdin: &str) -> Status {
        let call = match self.parse(words) {
            Ok(Call::Restore) if self.restoring => return self.complain(&NESTED),
            Ok(call) => call,
            Err(complaint) => return self.complain(&complaint),
        };
        match call {
            Call::Change(command) if self.restoring => {
                self.pending.push(command);
                let full = self.pending.len() >= GROUP_MAX && !self.extra.dry_run;
                if full { self.flush() } else { Ok(OK) }
            }
            Call::Change(command) => {
                self.pending.push(command);
                self.flush()
            }
            Call::List(list) => self.list(&list),
            Call::Save { numeric } => self.save(numeric),
            Call::Restore => self.restore(stdin),
            Call::Help => {
                self.outcome.stdout += &help::text(self.program);
                Err(Ended(OK))
            }
            Call::Version => {
                self.outcome.stdout += VERSION;
                Err(Ended(OK))
            }
        }
    }

    /// Our additions are for those who call ulvs by its name, and for what it has saved.
    fn parse(&self, words: &[&str]) -> Result<Call, Complaint> {
        if self.program.starts_with("ulvs") || self.restoring {
            return parse(words, self.names);
        }
        parse_strictly(words, self.names)
    }

    /// A restore goes on behind a word that popt does not know, and ends at every other complaint.
    fn complain(&mut self, complaint: &Complaint) -> Status {
        let message = complaint.message(self.program);
        self.say(&message);
        match complaint.fault {
            Fault::BadOption { .. } => Ok(complaint.status()),
            Fault::NoCommand | Fault::Wrong(_) => Err(Ended(complaint.status())),
        }
    }

    /// Sends the changes that wait; the status is that of the last.
    fn flush(&mut self) -> Status {
        let commands = std::mem::take(&mut self.pending);
        if commands.is_empty() {
            return Ok(OK);
        }
        let dry_run = self.extra.dry_run;
        let words: Vec<String> = match dry_run {
            true => commands.iter().map(words_of).collect(),
            false => Vec::new(),
        };
        let count = commands.len();
        match self.answer(Request::Each { commands, dry_run })? {
            Reply::Each(refusals) if refusals.len() == count => {
                for (number, refusal) in refusals.iter().enumerate() {
                    match refusal {
                        Some(refusal) => self.say(refusal.sentence()),
                        None if dry_run => {
                            self.outcome.stdout += &words[number];
                            self.outcome.stdout.push('\n');
                        }
                        None => {}
                    }
                }
                let last = refusals.last().is_some_and(Option::is_some);
                Ok(if last { REFUSED } else { OK })
            }
            Reply::Refused(refusal) => Ok(self.refuse(refusal.sentence())),
            Reply::BadRequest(sentence) | Reply::Late(sentence) => Ok(self.refuse(&sentence)),
            _ => Err(self.nonsense()),
        }
    }

    fn list(&mut self, list: &List) -> Status {
        let query = match list.what {
            What::Services(key) => Query::Services(key),
            What::Connections => Query::Connections,
            What::Masqueraded => Query::Masqueraded,
            What::Timeouts => Query::Timeouts,
            What::Daemons => Query::SyncDaemons,
        };
        let listing = self.listing(query)?;
        if self.extra.json {
            self.print_json(&listing);
            return Ok(OK);
        }
        let text = match listing {
            Listing::Services {
                table_size,
                services,
            } => list::services(table_size, &services, list, self.names),
            Listing::Masqueraded(rows) => list::masqueraded(&rows, list, self.names),
            Listing::Connections(rows) => list::connections(&rows, list, self.names),
            Listing::Timeouts(timeouts) => list::timeouts(&timeouts),
            Listing::SyncDaemons(rows) => list::sync_daemons(&rows),
            _ => return Err(self.nonsense()),
        };
        self.outcome.stdout += &text;
        Ok(OK)
    }

    fn save(&mut self, numeric: bool) -> Status {
        match self.listing(Query::Services(None))? {
            listing if self.extra.json => {
                self.print_json(&listing);
                Ok(OK)
            }
            Listing::Services { services, .. } => {
                self.outcome.stdout += &list::rules(&services, numeric, self.names);
                Ok(OK)
            }
            _ => Err(self.nonsense()),
        }
    }

    /// Every line is a call of its own; the last one's status counts.
    fn restore(&mut self, stdin: &str) -> Status {
        self.restoring = true;
        let mut status = OK;
        for line in stdin.lines() {
            let words = line.split_ascii_whitespace();
            let words: Vec<&str> = words.skip_while(|word| *word == "ipvsadm").collect();
            if !words.is_empty() {
                status = self.restore_line(&words)?;
            }
        }
        match self.pending.is_empty() {
            true => Ok(status),
            false => self.flush(),
        }
    }

    /// What waits is sent before anything is said, so that the words come in the order of the lines.
    fn restore_line(&mut self, words: &[&str]) -> Status {
        let is_change = matches!(self.parse(words), Ok(Call::Change(_)));
        if !is_change {
            self.flush()?;
        }
        self.call(words, "")
    }

    fn print_json(&mut self, listing: &Listing) {
        let text = serde_json::to_string_pretty(listing);
        self.outcome.stdout += &text.expect("listings have string keys only");
        self.outcome.stdout.push('\n');
    }

    fn listing(&mut self, query: Query) -> Result<Listing, Ended> {
        match self.answer(Request::Ask(query))? {
            Reply::Listing(listing) => Ok(listing),
            Reply::Refused(Refusal::NoSuchService) => {
                self.say(Refusal::NoSuchService.sentence());
                Err(Ended(NOTHING_TO_LIST))
            }
            Reply::Refused(refusal) => Err(Ended(self.refuse(refusal.sentence()))),
            Reply::BadRequest(sentence) | Reply::Late(sentence) => {
                Err(Ended(self.refuse(&sentence)))
            }
            Reply::Done | Reply::Each(_) => Err(self.nonsense()),
        }
    }

    fn answer(&mut self, request: Request) -> Result<Reply, Ended> {
        (self.ask)(request).map_err(|sentence| {
            self.say(&sentence);
            Ended(FAILED)
        })
    }

    fn refuse(&mut self, sentence: &str) -> u8 {
        self.say(sentence);
        REFUSED
    }

    fn nonsense(&mut self) -> Ended {
        self.say("the daemon answered something else than was asked; are both of one version?");
        Ended(FAILED)
    }

    fn say(&mut self, sentence: &str) {
        self.outcome.stderr += sentence;
        self.outcome.stderr.push('\n');
    }
}

/// `-R` among the lines of `-R`.
const NESTED: Complaint = Complaint {
    fault: Fault::NoCommand,
    word: None,
};
