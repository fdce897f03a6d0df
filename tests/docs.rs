//! What the documents show is true: every configuration in them can be read, every key that the code
//! knows is described, and every file they point to is there.

use std::fs;
use std::path::Path;

use serde_json::Value;
use ulvs::config::file;
use ulvs::lvs::{Limits, Timeouts, Tunables};
use ulvs::sched;

const CONFIGURATION: &str = "docs/configuration.md";

fn documents() -> Vec<String> {
    let entries = fs::read_dir("docs").expect("docs");
    let docs = entries.map(|entry| entry.expect("entry").path().display().to_string());
    let mut names: Vec<String> = docs.filter(|name| name.ends_with(".md")).collect();
    names.sort();
    let others = [
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "tools/fuzz/README.md",
    ];
    names.extend(others.map(str::to_string));
    names
}

/// The fenced blocks of a language.
fn blocks<'a>(text: &'a str, language: &str) -> Vec<&'a str> {
    let open = format!("```{language}\n");
    let parts = text.split(&open).skip(1);
    parts
        .map(|part| part.split("```").next().expect("a first part"))
        .collect()
}

#[test]
fn every_configuration_shown_can_be_read() {
    let mut shown = 0;
    for name in documents() {
        let text = fs::read_to_string(&name).expect("readable document");
        for block in blocks(&text, "toml") {
            if let Err(problems) = file::parse(&name, block, &sched::NAMES) {
                panic!("{problems}");
            }
            shown += 1;
        }
    }
    assert!(shown >= 2, "no configuration is shown at all");
}

/// The second block of the page names every key; those left at their default show it.
#[test]
fn every_plain_key_is_described_with_its_default() {
    let text = fs::read_to_string(CONFIGURATION).expect(CONFIGURATION);
    let block = blocks(&text, "toml")[1];
    let shown = file::parse(CONFIGURATION, block, &sched::NAMES).expect("read above");
    assert_eq!(shown.timeouts, Timeouts::default());
    assert_eq!(shown.tunables, Tunables::default());
    assert_eq!(shown.limits, Limits::default());
    let plain = [
        serde_json::to_value(Tunables::default()),
        serde_json::to_value(Limits::default()),
    ];
    for fields in plain {
        let fields = fields.expect("plain fields");
        for key in fields.as_object().map(|map| map.keys()).expect("a map") {
            assert!(
                block
                    .lines()
                    .any(|line| line.starts_with(&format!("{key} = "))),
                "{CONFIGURATION} says nothing of {key} ({})",
                fields.get(key).unwrap_or(&Value::Null)
            );
        }
    }
}

/// `[text](path)` without a scheme is a file of ours.
#[test]
fn every_file_pointed_to_is_there() {
    for name in documents() {
        let text = fs::read_to_string(&name).expect("readable document");
        let folder = Path::new(&name).parent().expect("a folder");
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().expect("a first part");
            let path = target.split('#').next().expect("a first part");
            if path.is_empty() || target.contains("://") {
                continue;
            }
            assert!(folder.join(path).exists(), "{name}: {target} is not there");
        }
    }
}
