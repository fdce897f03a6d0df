//! The languages people write in, against what was recorded and against files that are wrong on
//! purpose: `tests/golden/cli` (ipvsadm's own answers), `tests/config/good`, and `tests/config/bad` with
//! the message for each beside it. `BLESS=1` writes the messages anew; read them before you commit.

mod recorded;

use std::fs;
use std::path::{Path, PathBuf};

use recorded::Recorded;
use serde_json::Value;
use ulvs::config::command::Refusal;
use ulvs::config::problem::Problems;
use ulvs::config::{file, ipvsadm, rules};
use ulvs::sched;

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// Sentences of the engine, not of the grammar.
fn is_refusal(message: &str) -> bool {
    let refusals = [
        Refusal::ServiceExists,
        Refusal::NoSuchService,
        Refusal::ServiceNotDefined,
        Refusal::DestinationExists,
        Refusal::NoSuchDestination,
        Refusal::SchedulerNotFound,
        Refusal::Invalid,
        Refusal::OutOfRange,
        Refusal::SyncRunning,
        Refusal::SyncNotRunning,
        Refusal::NoSuchDevice,
        Refusal::NetworkUnreachable,
    ];
    refusals.iter().any(|refusal| refusal.sentence() == message)
}

#[test]
fn the_grammar_complains_as_ipvsadm_does() {
    let mut calls = 0;
    let mut differences = Vec::new();
    for path in files("tests/golden/cli", "json") {
        let case: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        for step in case["steps"].as_array().unwrap() {
            if step["do"] != "ipvsadm" || step.get("stdin").is_some() {
                continue;
            }
            calls += 1;
            let words = step["args"].as_array().unwrap();
            let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
            let said = step["err"].as_str().unwrap();
            let refused = is_refusal(said.trim_end());
            let expected = match (said, refused) {
                ("", _) | (_, true) => (String::new(), 0),
                _ => (said.to_string(), step["rc"].as_u64().unwrap()),
            };
            let got = match ipvsadm::parse(&words, &Recorded) {
                Ok(_) => (String::new(), 0),
                Err(complaint) => {
                    let message = format!("{}\n", complaint.message("ipvsadm"));
                    (message, u64::from(complaint.status()))
                }
            };
            if got != expected {
                let name = path.display();
                differences.push(format!("{name}: {words:?}\n  {expected:?}\n  {got:?}"));
            }
        }
    }
    assert!(calls > 200, "only {calls} calls found");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Reads a file of either kind; `Err` is the report for people.
fn read(path: &Path) -> Result<(), Problems> {
    let text = fs::read_to_string(path).expect("readable file");
    let name = path.file_name().expect("a name").to_string_lossy();
    match path.extension().expect("a kind").to_str() {
        Some("toml") => file::parse(&name, &text, &sched::NAMES).map(|_| ()),
        Some("rules") => rules::parse(&name, &text, &Recorded).map(|_| ()),
        other => panic!("{other:?} is no kind of file"),
    }
}

fn both_kinds(folder: &str) -> Vec<PathBuf> {
    let mut paths = files(folder, "toml");
    paths.extend(files(folder, "rules"));
    paths
}

#[test]
fn good_files_are_taken() {
    let paths = both_kinds("tests/config/good");
    assert!(paths.len() >= 3);
    for path in paths {
        if let Err(problems) = read(&path) {
            panic!("{}:\n{problems}", path.display());
        }
    }
}

#[test]
fn bad_files_are_refused_with_their_message() {
    let bless = std::env::var_os("BLESS").is_some();
    let paths = both_kinds("tests/config/bad");
    assert!(paths.len() >= 40, "only {} bad files", paths.len());
    let mut differences = Vec::new();
    for path in paths {
        let name = path.display();
        let Err(problems) = read(&path) else {
            differences.push(format!("{name}: taken, but it is bad"));
            continue;
        };
        let beside = PathBuf::from(format!("{name}.expected"));
        let report = problems.to_string();
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        if bless {
            fs::write(&beside, &report).expect("writable folder");
        } else if report != expected {
            differences.push(format!("{name}:\nexpected\n{expected}\ngot\n{report}"));
        }
        assert!(!problems.list().is_empty(), "{name}: no place");
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// Every good file, cut off or with one letter changed at every place: whatever is said of it, nothing
/// panics, and what is found wrong lies within the text.
#[test]
fn no_damage_to_a_file_panics() {
    let mut refused = 0;
    for path in both_kinds("tests/config/good") {
        let text = fs::read_to_string(&path).expect("readable file");
        let is_toml = path.extension().is_some_and(|kind| kind == "toml");
        for (at, letter) in text.char_indices() {
            let rest = &text[at + letter.len_utf8()..];
            for damage in ["", "\"", "[", "]", "=", "\n", "0", "-", "é", "\0"] {
                let damaged = format!("{}{damage}{rest}", &text[..at]);
                refused += usize::from(!taken(&damaged, is_toml));
            }
            refused += usize::from(!taken(&text[..at], is_toml));
        }
    }
    assert!(refused > 1000, "only {refused} damaged files were refused");
}

fn taken(text: &str, is_toml: bool) -> bool {
    let result = match is_toml {
        true => file::parse("f", text, &sched::NAMES).map(|_| ()),
        false => rules::parse("f", text, &Recorded).map(|_| ()),
    };
    let Err(problems) = result else {
        return true;
    };
    for problem in problems.list() {
        assert!(
            text.get(problem.span.clone()).is_some(),
            "{problem:?}\n{text}"
        );
    }
    assert!(problems.to_string().starts_with("error: "), "{problems}");
    false
}
