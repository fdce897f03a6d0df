//! Plans, and what becomes of them, on a control plane in memory.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::config::words::NumbersOnly;
use crate::conn::ConnTable;
use crate::control::{ClientId, ControlPlane, Input, Output, Setup, TABLE_SIZE};
use crate::director::message::{Order, Report};
use crate::lvs::{Limits, Timeouts, Tunables};
use crate::time::Instant;

const BEGINNING: &str = "\
-A -t 10.0.0.1:80 -s rr
-a -t 10.0.0.1:80 -r 192.168.1.10:80 -m -w 1
-a -t 10.0.0.1:80 -r 192.168.1.11:80 -m -w 1
-A -u 10.0.0.1:53 -s wlc
-a -u 10.0.0.1:53 -r 192.168.1.10:53 -m -w 2
";

/// A control plane whose one worker adopts every snapshot at once.
struct Director(ControlPlane, u64);

impl Director {
    fn new() -> Director {
        let setup = Setup {
            ports: Vec::new(),
            tunables: Tunables::default(),
            timeouts: Timeouts::default(),
            table: Arc::new(ConnTable::new(16, 1)),
            limits: Limits::default(),
            workers: 1,
            table_size: TABLE_SIZE,
            pid: 1,
            nic: "packet".to_string(),
        };
        Director(ControlPlane::new(setup, Instant::ZERO), 0)
    }

    fn ask(&mut self, request: Request) -> Reply {
        self.1 += 1;
        let (from, now) = (ClientId(self.1), Instant::ZERO);
        self.0.handle(Input::Request { from, request }, now);
        loop {
            match self.0.poll_output().expect("a reply comes") {
                Output::Reply { reply, .. } => return reply,
                Output::Order {
                    order: Order::Adopt(snapshot),
                    worker,
                } => {
                    let report = Report::Adopted(snapshot.id);
                    self.0.handle(Input::Reported { worker, report }, now);
                }
                _ => {}
            }
        }
    }

    fn apply(&mut self, name: &str, text: &str, dry_run: bool) -> Result<Outcome, String> {
        let wanted = wanted(Path::new(name), text, &NumbersOnly)?;
        apply(&wanted, dry_run, &mut |request| Ok(self.ask(request)))
    }

    fn state(&mut self) -> State {
        state(&mut |request| Ok(self.ask(request))).expect("a state")
    }
}

fn lines(outcome: &Outcome) -> Vec<&str> {
    outcome.stdout.lines().collect()
}

#[test]
fn a_plan_is_the_fewest_changes_and_doing_it_leaves_nothing_to_do() {
    let mut director = Director::new();
    let plan = director.apply("rules", BEGINNING, false).expect("a plan");
    assert_eq!(plan.stdout, BEGINNING, "into an empty director, all of it");
    let again = director.apply("rules", BEGINNING, false).expect("a plan");
    assert_eq!(again, Outcome::default());

    let wanted = "\
-A -t 10.0.0.1:80 -s wrr
-a -t 10.0.0.1:80 -r 192.168.1.11:80 -m -w 5 -x 9 -y 3
-a -t 10.0.0.1:80 -r 192.168.1.12:80 -m -w 1
-A -f 7 -s lc
";
    let expected = [
        "-D -u 10.0.0.1:53",
        "-E -t 10.0.0.1:80 -s wrr",
        "-d -t 10.0.0.1:80 -r 192.168.1.10:80",
        "-e -t 10.0.0.1:80 -r 192.168.1.11:80 -m -w 5 -x 9 -y 3",
        "-a -t 10.0.0.1:80 -r 192.168.1.12:80 -m -w 1",
        "-A -f 7 -s lc",
    ];
    let before = director.state();
    let plan = director.apply("rules", wanted, true).expect("a plan");
    assert_eq!(lines(&plan), expected);
    assert_eq!(director.state(), before, "a dry run changes nothing");
    let done = director.apply("rules", wanted, false).expect("a plan");
    assert_eq!(lines(&done), expected);
    let rest = director.apply("rules", wanted, true).expect("a plan");
    assert_eq!(rest, Outcome::default());
}

#[test]
fn what_the_director_refuses_is_refused_whole() {
    let mut director = Director::new();
    director.apply("rules", BEGINNING, false).expect("a plan");
    let before = director.state();
    // Only the kernel's own checks know it: the service is fine for the file.
    director.ask(Request::Do(Command::StartSync(sync_on("lo"))));
    let wanted = BEGINNING.replace("-s wlc", "-s nosuch") + "-A -t 10.0.0.2:80 -s rr\n";
    let refused = director.apply("rules", &wanted, false).unwrap_err();
    assert!(
        refused.contains("Scheduler or persistence engine not found"),
        "{refused}"
    );
    assert_eq!(director.state(), before);
}

fn sync_on(name: &str) -> crate::lvs::SyncDaemon {
    crate::lvs::SyncDaemon {
        role: crate::lvs::SyncRole::Master,
        interface: Some(name.to_string()),
        sync_id: 0,
        maxlen: None,
        group: None,
        port: None,
        ttl: None,
    }
}

#[test]
fn a_whole_file_speaks_of_sysctls_and_timeouts_too_and_of_what_needs_a_restart() {
    let mut director = Director::new();
    director.apply("rules", BEGINNING, false).expect("a plan");
    let text = "\
[director]
workers = 3
[[port]]
interface = \"eth0\"
side = \"public\"
[timeouts]
tcp = 300
[tunables]
conn_reuse_mode = 0
drop_entry = 1
";
    let done = director.apply("ulvs.toml", text, false).expect("a plan");
    let expected = [
        "-D -t 10.0.0.1:80",
        "-D -u 10.0.0.1:53",
        "--set 300 120 300",
        "ulvs tune conn_reuse_mode=0",
        "ulvs tune drop_entry=1",
    ];
    let mut got = lines(&done);
    got.sort_unstable();
    let mut sorted = expected;
    sorted.sort_unstable();
    assert_eq!(got, sorted);
    assert!(
        done.stderr
            .contains("needs a restart: workers is 1, the file says 3"),
        "{}",
        done.stderr
    );
    assert!(
        done.stderr.contains("interfaces is , the file says eth0"),
        "{}",
        done.stderr
    );
    // The defences move between 1 and 2 by themselves; that is no drift.
    let change = Command::SetTunable {
        name: "drop_entry".into(),
        value: "2".into(),
    };
    assert_eq!(director.ask(Request::Do(change)), Reply::Done);
    let rest = director.apply("ulvs.toml", text, true).expect("a plan");
    assert_eq!(rest.stdout, "");
}

#[test]
fn a_file_with_an_error_in_its_last_line_changes_nothing() {
    let mut director = Director::new();
    director.apply("rules", BEGINNING, false).expect("a plan");
    let before = director.state();
    let text = format!("-A -t 10.0.0.9:80 -s rr\n{BEGINNING}-a -t 10.0.0.9:80 -r nonsense -m\n");
    let message = director.apply("rules", &text, false).unwrap_err();
    assert!(message.contains("rules:7"), "{message}");
    let action = director.apply("rules", "-Z\n", false).unwrap_err();
    assert!(action.contains("`-Z` does something once"), "{action}");
    assert_eq!(director.state(), before);
}
