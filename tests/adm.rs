//! The ipvsadm personality with a real control plane behind it, against recordings of ipvsadm 1.31 with
//! a real kernel behind it: `tests/adm`, which goes into the corners of the grammar. Text and exit status
//! must be the same byte for byte. The cases of `tests/golden/cli` are played by `tests/kernel.rs`.

mod recorded;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use recorded::Recorded;
use serde_json::Value;
use ulvs::cli::adm::{Outcome, run_named};
use ulvs::config::{Reply, Request};
use ulvs::conn::ConnTable;
use ulvs::control::{ClientId, ControlPlane, Input, Output, Setup, TABLE_SIZE};
use ulvs::director::message::{Order, Report};
use ulvs::lvs::{Limits, Timeouts, Tunables};
use ulvs::time::Instant;

/// A control plane whose one worker adopts every snapshot at once.
struct Director {
    plane: ControlPlane,
    asked: u64,
}

impl Director {
    fn new() -> Director {
        let limits = Limits::default();
        let setup = Setup {
            ports: Vec::new(),
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            table: Arc::new(ConnTable::new(1024, 1)),
            limits,
            workers: 1,
            table_size: TABLE_SIZE,
            pid: 1,
            nic: "memory".to_string(),
        };
        Director {
            plane: ControlPlane::new(setup, Instant::from_nanos(0)),
            asked: 0,
        }
    }

    fn ask(&mut self, request: Request) -> Reply {
        let now = Instant::from_nanos(0);
        let from = ClientId(self.asked);
        self.asked += 1;
        self.plane.handle(Input::Request { from, request }, now);
        loop {
            match self.plane.poll_output().expect("a reply comes") {
                Output::Reply { reply, .. } => return reply,
                Output::Order {
                    worker,
                    order: Order::Adopt(snapshot),
                } => {
                    let report = Report::Adopted(snapshot.id);
                    self.plane.handle(Input::Reported { worker, report }, now);
                }
                _ => {}
            }
        }
    }

    fn run(&mut self, words: &[String], stdin: &str) -> Outcome {
        let mut argv = vec!["ipvsadm".to_string()];
        argv.extend_from_slice(words);
        run_named(
            &argv,
            stdin,
            &Recorded,
            &mut |request| Ok(self.ask(request)),
        )
    }
}

/// One call: its words, its input, and what came of it.
struct Call {
    words: Vec<String>,
    stdin: String,
    expected: Outcome,
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    paths
}

/// Replays calls on a fresh director; says where it went another way first.
fn replay(calls: &[Call]) -> Result<(), String> {
    let mut director = Director::new();
    for (number, call) in calls.iter().enumerate() {
        let got = director.run(&call.words, &call.stdin);
        if got != call.expected {
            let (words, expected) = (&call.words, &call.expected);
            return Err(format!(
                "call {number}: {words:?}\n{expected:#?}\ngot\n{got:#?}"
            ));
        }
    }
    Ok(())
}

fn golden(path: &Path) -> Vec<Call> {
    let text = fs::read_to_string(path).expect("readable case");
    let case: Value = serde_json::from_str(&text).expect("a case is JSON");
    let steps = case["steps"].as_array().expect("steps").iter();
    let calls = steps.filter(|step| step["do"] == "ipvsadm");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_string();
    calls
        .map(|step| Call {
            words: step["args"]
                .as_array()
                .expect("args")
                .iter()
                .map(text)
                .collect(),
            stdin: text(&step["stdin"]),
            expected: Outcome {
                stdout: text(&step["out"]),
                stderr: text(&step["err"]),
                status: u8::try_from(step["rc"].as_u64().expect("rc")).expect("a status"),
            },
        })
        .collect()
}

/// Replays every case of a folder; the number that were done.
fn replay_folder(folder: &Path) -> usize {
    let mut done = 0;
    let mut failures = Vec::new();
    for path in files(folder, "json") {
        let name = path.file_stem().expect("a name").to_string_lossy();
        let calls = golden(&path);
        match replay(&calls) {
            Ok(()) => done += 1,
            Err(difference) => failures.push(format!("{name}: {difference}")),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    done
}

#[test]
fn answers_in_the_corners_too() {
    assert!(replay_folder(Path::new("tests/adm")) >= 9);
}
