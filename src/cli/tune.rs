//! `ulvs tune`: reads and sets the sysctls of a running director, by the names that the kernel gives
//! them in `net.ipv4.vs`, and with its words about values that it does not take.

use crate::cli::adm::Outcome;
use crate::cli::client::{self, Client};
use crate::config::{Command, Listing, Query, Refusal, Reply, Request};
use crate::lvs::{Accepts, Tunables};

/// What a name may begin with, as sysctl(8) takes it.
const PREFIXES: [&str; 2] = ["net.ipv4.vs.", "net/ipv4/vs/"];
/// Status when a name is unknown, a value refused, or nobody can be asked.
const FAILED: u8 = 2;

type Ask<'a> = dyn FnMut(Request) -> Result<Reply, String> + 'a;

/// `ulvs tune [NAME[=VALUE]]...`: asks the daemon of this user.
pub fn run(words: &[String]) -> Outcome {
    let path = client::path();
    match Client::connect(&path) {
        Ok(mut client) => run_with(words, &mut |request| client.ask(&request)),
        Err(error) => failed(
            Outcome::default(),
            &format!("no director at {path}: {error}"),
        ),
    }
}

/// The same with any way to ask. The first word that cannot be done ends it; those before it are done.
pub fn run_with(words: &[String], ask: &mut Ask) -> Outcome {
    let mut outcome = Outcome::default();
    if words.is_empty() {
        return match tunables(ask) {
            Ok(tunables) => {
                let lines = Tunables::NAMES.iter().map(|name| line(&tunables, name));
                outcome.stdout = lines.collect();
                outcome
            }
            Err(sentence) => failed(outcome, &sentence),
        };
    }
    for word in words {
        match one(word, ask) {
            Ok(line) => outcome.stdout += &line,
            Err(sentence) => return failed(outcome, &sentence),
        }
    }
    outcome
}

/// Does one word, and says what stands there then.
fn one(word: &str, ask: &mut Ask) -> Result<String, String> {
    let (name, value) = match word.split_once('=') {
        Some((name, value)) => (name.trim_end(), Some(value)),
        None => (word, None),
    };
    let short = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let name = short.unwrap_or(name);
    if Tunables::accepts(name).is_none() {
        return Err(format!(
            "{name}: {}",
            word_for(name, Refusal::UnknownTunable)
        ));
    }
    if let Some(value) = value {
        set(name, value.trim(), ask)?;
    }
    Ok(line(&tunables(ask)?, name))
}

fn set(name: &str, value: &str, ask: &mut Ask) -> Result<(), String> {
    let change = Command::SetTunable {
        name: name.to_string(),
        value: value.to_string(),
    };
    match ask(Request::Do(change))? {
        Reply::Done => Ok(()),
        Reply::Refused(refusal) => Err(format!("{name} = {value}: {}", word_for(name, refusal))),
        Reply::BadRequest(sentence) | Reply::Late(sentence) => Err(sentence),
        Reply::Listing(_) | Reply::Each(_) => Err(NONSENSE.to_string()),
    }
}

/// What the kernel says to who writes this sysctl (the text of its error number).
pub fn word_for(name: &str, refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::UnknownTunable => "No such file or directory",
        Refusal::Invalid if Tunables::accepts(name) == Some(Accepts::Nothing) => {
            "Permission denied"
        }
        Refusal::Invalid => "Invalid argument",
        other => other.sentence(),
    }
}

const NONSENSE: &str = "the daemon answered something else than was asked";

fn tunables(ask: &mut Ask) -> Result<Tunables, String> {
    match ask(Request::Ask(Query::Tunables))? {
        Reply::Listing(Listing::Tunables(tunables)) => Ok(*tunables),
        Reply::BadRequest(sentence) | Reply::Late(sentence) => Err(sentence),
        _ => Err(NONSENSE.to_string()),
    }
}

fn line(tunables: &Tunables, name: &str) -> String {
    let value = tunables.get(name).expect("every name has a value");
    format!("{name} = {value}\n")
}

fn failed(mut outcome: Outcome, sentence: &str) -> Outcome {
    outcome.stderr = format!("ulvs tune: {sentence}\n");
    outcome.status = FAILED;
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tune(words: &[&str]) -> (Outcome, Tunables) {
        let mut now = Tunables::default();
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let outcome = run_with(&words, &mut |request| {
            Ok(match request {
                Request::Ask(Query::Tunables) => Reply::Listing(Listing::Tunables(Box::new(now))),
                Request::Do(Command::SetTunable { name, value }) => match value.parse() {
                    Ok(number) => {
                        *now.get_mut(&name).expect("a known name") = number;
                        Reply::Done
                    }
                    Err(_) => Reply::Refused(Refusal::Invalid),
                },
                other => panic!("{other:?}"),
            })
        });
        (outcome, now)
    }

    #[test]
    fn lists_reads_and_sets() {
        let (all, _) = tune(&[]);
        assert_eq!(all.stdout.lines().count(), Tunables::NAMES.len());
        assert!(all.stdout.contains("\nconn_reuse_mode = 1\n"));
        let words = [
            "net.ipv4.vs.conn_reuse_mode=3",
            "sloppy_tcp = 1",
            "drop_entry",
        ];
        let (some, now) = tune(&words);
        assert_eq!(
            some.stdout,
            "conn_reuse_mode = 3\nsloppy_tcp = 1\ndrop_entry = 0\n"
        );
        assert_eq!(
            (now.conn_reuse_mode, now.sloppy_tcp, some.status),
            (3, 1, 0)
        );
    }

    #[test]
    fn refuses_in_the_kernels_words() {
        for (word, sentence) in [
            ("nosuch", "nosuch: No such file or directory"),
            ("nosuch=1", "nosuch: No such file or directory"),
            ("sync_version=x", "sync_version = x: Invalid argument"),
            ("debug_level=x", "debug_level = x: Permission denied"),
        ] {
            let (outcome, _) = tune(&["sloppy_tcp=1", word]);
            assert_eq!(outcome.stderr, format!("ulvs tune: {sentence}\n"));
            assert_eq!((outcome.status, &*outcome.stdout), (2, "sloppy_tcp = 1\n"));
        }
    }
}
