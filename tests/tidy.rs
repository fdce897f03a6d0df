//! Checks that docs/architecture.md is true: files, arrows, purity, owners of dependencies, sizes.
//!
//! Streaming and textual on purpose: one pass, no parser, a message that says what to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const LINE_COLUMNS_MAX: usize = 100;
const LEAVES: [&str; 3] = ["time", "rng", "stats"];
const IMPURE: [&str; 16] = [
    "std::fs",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "std::thread",
    "std::process",
    "std::env",
    "Instant::now",
    "SystemTime",
    "println!",
    "eprintln!",
    "rand::",
    "RandomState",
    "HashMap::new",
    "HashSet::new",
    "dbg!",
];

#[test]
fn tidy() {
    let doc = fs::read_to_string("docs/architecture.md").expect("docs/architecture.md");
    let rules = Rules::parse(&block(&doc, "layers"));
    let listed = described(&block(&doc, "tree"));
    let planned = described(&block(&doc, "to-come"));

    let mut errors = rules.self_check();
    let mut found = BTreeSet::new();
    for path in rust_files(Path::new("src")) {
        let name = path.to_string_lossy().replace('\\', "/");
        let text = fs::read_to_string(&path).expect("readable source");
        rules.check_file(&name, &text, &mut errors);
        if !name.ends_with("tests.rs") && !listed.contains_key(&name) {
            errors.push(missing_line(&name, &text, &planned));
        }
        found.insert(name);
    }
    for name in listed.keys().filter(|name| !found.contains(*name)) {
        errors.push(format!(
            "{name}: in the tree of docs/architecture.md but not on disk; take its line out"
        ));
    }
    for name in planned.keys().filter(|name| found.contains(*name)) {
        errors.push(format!(
            "{name}: has come; take its line out of the to-come block of docs/architecture.md"
        ));
    }
    assert!(errors.is_empty(), "\n{}\n", errors.join("\n"));
}

/// The source files of a block of docs/architecture.md, each with what is said of it.
fn described(block: &str) -> BTreeMap<String, String> {
    let entries = block.lines().filter_map(|line| line.split_once(' '));
    let sources = entries.filter(|(path, _)| path.starts_with("src/"));
    sources
        .map(|(path, text)| (path.to_string(), text.trim().to_string()))
        .collect()
}

/// Says which line to add, in the words of the plan or, failing that, of the file's own head.
fn missing_line(name: &str, text: &str, planned: &BTreeMap<String, String>) -> String {
    let head = text
        .lines()
        .map_while(|line| line.strip_prefix("//!"))
        .collect::<String>();
    let first_sentence = head.split(". ").next().unwrap_or("").trim();
    let what = planned.get(name).map_or(first_sentence, String::as_str);
    format!(
        "{name}: not in the tree of docs/architecture.md, section 3; add this line to the \
         ```tree block beside its room:\n{name:<26} {what}"
    )
}

struct Rules {
    allowed: BTreeMap<String, BTreeSet<String>>,
    pure: BTreeSet<String>,
    may_be_unsafe: BTreeSet<String>,
    owners: BTreeMap<String, BTreeSet<String>>,
}

impl Rules {
    fn parse(block: &str) -> Rules {
        let mut rules = Rules {
            allowed: BTreeMap::new(),
            pure: BTreeSet::new(),
            may_be_unsafe: BTreeSet::new(),
            owners: BTreeMap::new(),
        };
        for (key, value) in block.lines().filter_map(|line| line.split_once('=')) {
            let words: BTreeSet<String> = value.split_whitespace().map(str::to_string).collect();
            match key.trim() {
                "pure" => rules.pure = words,
                "unsafe" => rules.may_be_unsafe = words,
                "only" => {
                    for (crate_name, rooms) in words.iter().filter_map(|word| word.split_once(':'))
                    {
                        let rooms = rooms.split(',').map(str::to_string).collect();
                        rules.owners.insert(crate_name.to_string(), rooms);
                    }
                }
                room => {
                    rules.allowed.insert(room.to_string(), words);
                }
            }
        }
        rules
    }

    /// A pure room may only use pure rooms, and the arrows may not run in a circle.
    fn self_check(&self) -> Vec<String> {
        let mut errors = Vec::new();
        for room in &self.pure {
            for used in self.allowed[room].difference(&self.pure) {
                errors.push(format!("layers: pure room {room} uses impure room {used}"));
            }
        }
        let mut rest = self.allowed.clone();
        while let Some(free) = rest
            .iter()
            .find(|(_, used)| used.is_empty())
            .map(|(r, _)| r.clone())
        {
            rest.remove(&free);
            for used in rest.values_mut() {
                used.remove(&free);
            }
        }
        for room in rest.keys() {
            errors.push(format!("layers: {room} is part of a circle"));
        }
        errors
    }

    fn check_file(&self, name: &str, text: &str, errors: &mut Vec<String>) {
        let room = room_of(name);
        if text.lines().count() > FILE_LINES_MAX {
            errors.push(format!(
                "{name}: over {FILE_LINES_MAX} lines; find its second purpose"
            ));
        }
        if !text.starts_with("//!") {
            errors.push(format!("{name}: begin with //! and say what this file is"));
        }
        let known =
            LEAVES.contains(&room.as_str()) || room == "lib" || self.allowed.contains_key(&room);
        if !known {
            errors.push(format!(
                "{name}: room {room} has no line in the layers block"
            ));
            return;
        }
        let code = strip_comments(text);
        for (number, line) in code.lines().enumerate() {
            let at = format!("{name}:{}", number + 1);
            if line.chars().count() > LINE_COLUMNS_MAX {
                errors.push(format!("{at}: over {LINE_COLUMNS_MAX} columns"));
            }
            if self.pure.contains(&room) || LEAVES.contains(&room.as_str()) {
                for banned in IMPURE.iter().filter(|banned| line.contains(**banned)) {
                    errors.push(format!(
                        "{at}: {banned} in pure room {room}; pass it in instead"
                    ));
                }
            }
            if line.contains("super::super") {
                errors.push(format!(
                    "{at}: super::super walks around the arrows; use crate::"
                ));
            }
            if line.contains("unsafe ") && !self.may_be_unsafe.contains(&room) && room != "lib" {
                let rooms = &self.may_be_unsafe;
                errors.push(format!("{at}: unsafe outside the rooms {rooms:?}"));
            }
            for (crate_name, owners) in &self.owners {
                let oracle = name.ends_with("/tests.rs"); // An independent judge may sit in a test.
                let foreign = line.contains(&format!("{crate_name}::"));
                if foreign && !owners.contains(&room) && !oracle {
                    errors.push(format!(
                        "{at}: {crate_name} belongs to {owners:?}, not {room}"
                    ));
                }
            }
        }
        for used in rooms_used(&code) {
            let fine = used == room
                || room == "lib"
                || LEAVES.contains(&used.as_str())
                || !self.allowed.contains_key(&used)
                || self
                    .allowed
                    .get(&room)
                    .is_some_and(|allowed| allowed.contains(&used));
            if !fine {
                errors.push(format!(
                    "{name}: {room} -> {used} is not in the layers block"
                ));
            }
        }
    }
}

/// Every first name after `crate::` or `ulvs::`, also inside braces: `use crate::{a::X, b}`.
fn rooms_used(code: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for root in ["crate::", "ulvs::"] {
        for (start, _) in code.match_indices(root) {
            let rest = &code[start + root.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                let mut depth = 1;
                let mut fresh = true;
                let mut word = String::new();
                for c in group.chars() {
                    match c {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        _ => {}
                    }
                    if depth == 1 && fresh && (c.is_alphanumeric() || c == '_') {
                        word.push(c);
                    } else if !word.is_empty() {
                        used.insert(std::mem::take(&mut word));
                        fresh = false;
                    }
                    if depth == 1 && c == ',' {
                        fresh = true;
                    }
                    if depth == 0 {
                        break;
                    }
                }
            } else {
                used.insert(
                    rest.chars()
                        .take_while(|c| c.is_alphanumeric() || *c == '_')
                        .collect(),
                );
            }
        }
    }
    used
}

fn room_of(name: &str) -> String {
    name.split('/')
        .nth(1)
        .expect("src/…")
        .trim_end_matches(".rs")
        .to_string()
}

fn strip_comments(text: &str) -> String {
    let line_of = |line: &str| match line.find("//") {
        Some(at) if !line[..at].contains('"') => line[..at].to_string(),
        _ => line.to_string(),
    };
    text.lines().map(line_of).collect::<Vec<_>>().join("\n")
}

fn block(doc: &str, name: &str) -> String {
    let open = format!("```{name}\n");
    let start = doc
        .find(&open)
        .unwrap_or_else(|| panic!("no ```{name} block"))
        + open.len();
    doc[start..start + doc[start..].find("```").expect("closed block")].to_string()
}

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut dirs = vec![dir.to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("readable folder") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}
