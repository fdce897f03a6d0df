//! The languages people write in, against what was recorded and against files that are wrong on
//! purpose: `tests/golden/cli` (ipvsadm's own answers).

mod recorded;

use std::fs;
use std::path::PathBuf;

use recorded::Recorded;
use serde_json::Value;
use ulvs::config::command::Refusal;
use ulvs::config::ipvsadm;

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
    ];
    let daemons = ["Daemon has already run", "No such device"];
    refusals.iter().any(|refusal| refusal.sentence() == message) || daemons.contains(&message)
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
