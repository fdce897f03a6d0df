//! What the documents show is true: every configuration in them can be read, every key that the code
//! knows is described, and every file they point to is there.

use std::fs;
use std::path::Path;

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

/// The second block of the page names every section; what it shows are the defaults.
#[test]
fn every_limit_and_tunable_is_described_with_its_default() {
    let text = fs::read_to_string(CONFIGURATION).expect(CONFIGURATION);
    let block = blocks(&text, "toml")[1];
    let shown = file::parse(CONFIGURATION, block, &sched::NAMES).expect("read above");
    assert_eq!(shown.timeouts, Timeouts::default());
    assert_eq!(shown.tunables, Tunables::default());
    assert_eq!(shown.limits, Limits::default());
    let limits = serde_json::to_value(Limits::default()).expect("plain fields");
    for name in limits.as_object().expect("a map").keys() {
        let line = format!("\n{name} = ");
        assert!(
            block.contains(&line),
            "{CONFIGURATION} says nothing of {name}"
        );
    }
    for name in Tunables::NAMES {
        let default = Tunables::default().get(name).expect("its own name");
        let row = format!("| `{name}` | {default} |");
        let brief = match default {
            0 => format!("`{name}`"),
            other => format!("`{name}` ({other})"),
        };
        let one_line = text.replace('\n', " ");
        let told = one_line.contains(&row) || one_line.contains(&brief);
        assert!(
            told,
            "{CONFIGURATION} says nothing of {name}, or not its default"
        );
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
