//! What the documents show is true: every configuration in them can be read, every key that the code
//! knows is described, and every file they point to is there.

use std::collections::BTreeSet;
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
    let mut obeyed = BTreeSet::new();
    note_obeyed(Path::new("src"), &mut obeyed);
    let one_line = text.replace('\n', " ");
    for name in Tunables::NAMES {
        let default = Tunables::default().get(name).expect("its own name");
        let brief = match default {
            0 => format!("`{name}`"),
            other => format!("`{name}` ({other})"),
        };
        let (told, how) = match obeyed.contains(*name) {
            true => (text.contains(&format!("| `{name}` | {default} |")), "a row"),
            false => (one_line.contains(&format!(" {brief}")), "a word"),
        };
        assert!(
            told,
            "{CONFIGURATION} lacks {how} for {name} with its default {default}"
        );
    }
}

/// The tunables that code looks at.
fn note_obeyed(folder: &Path, obeyed: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            note_obeyed(&path, obeyed);
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable source");
        for after in text.split("tunables.").skip(1) {
            let name = after
                .split(|c: char| !c.is_alphanumeric() && c != '_')
                .next();
            obeyed.extend(name.map(str::to_string));
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

/// Tests, benches and tools are in the map, too.
#[test]
fn every_test_and_tool_has_its_line() {
    let map = fs::read_to_string("docs/architecture.md").expect("docs/architecture.md");
    for folder in ["tests", "benches", "tools"] {
        for entry in fs::read_dir(folder).expect("readable folder") {
            let path = entry.expect("entry").path();
            // A folder beside a file of its name belongs to it.
            if path.is_dir() && path.with_extension("rs").exists() {
                continue;
            }
            let name = path.display().to_string();
            let told = map.contains(&name) || folder == "benches" && map.contains("\nbenches/");
            assert!(
                told,
                "{name}: give it a line under \"Outside `src`\" in docs/architecture.md, section 3"
            );
        }
    }
}

/// Sections 5 and 15 of the architecture lead through real functions: each `Type::function` and
/// `file::function` they name is there.
#[test]
fn the_walk_of_a_packet_is_real() {
    let text = fs::read_to_string("docs/architecture.md").expect("docs/architecture.md");
    let section = |from: &str, to: &str| {
        let start = text.find(from).expect("its beginning");
        let end = text[start..].find(to).expect("its end");
        &text[start..start + end]
    };
    let walk = [
        section("## 5. How a packet walks", "### Batches"),
        section("## 15. The kernel map", "## 16."),
    ];
    let mut items = BTreeSet::new();
    note_items(Path::new("src"), &mut items);
    let mut named = 0;
    for name in walk
        .iter()
        .flat_map(|part| part.split('`').skip(1).step_by(2))
    {
        let Some((before, last)) = name.rsplit_once("::") else {
            continue;
        };
        let owner = before.rsplit("::").next().expect("a last part");
        for word in [last, owner] {
            let there = items.contains(word);
            assert!(
                there,
                "architecture.md names {name}, but there is no {word}"
            );
        }
        named += 1;
    }
    assert!(named > 30, "only {named} names were found");
}

/// Every name that is declared: functions, modules, types, and what begins a line, as variants do.
fn note_items(folder: &Path, items: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("readable folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            note_items(&path, items);
            continue;
        }
        let text = fs::read_to_string(&path).expect("readable source");
        for line in text.lines() {
            let words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            let words: Vec<&str> = words.filter(|word| !word.is_empty()).collect();
            items.extend(words.first().map(|word| word.to_string()));
            for pair in words.windows(2) {
                if matches!(pair[0], "fn" | "mod" | "struct" | "enum" | "trait") {
                    items.insert(pair[1].to_string());
                }
            }
        }
    }
}
