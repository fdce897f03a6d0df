//! What people and programs write to a director: command lines, rules, configuration files, bytes on
//! the control socket. None may make it panic, and what is refused changes nothing.

use ulvs::cli::adm;
use ulvs::config::codec::{self, Lines};
use ulvs::config::command::State;
use ulvs::config::diff::Desired;
use ulvs::config::words::NumbersOnly;
use ulvs::config::{Command, Listing, Query, Reply, Request, file, rules};
use ulvs::sched;

use super::drive::Run;
use super::tape::Tape;

/// Lines of one run; more are not read.
const LINES_MAX: usize = 40;
/// Longest request line on the socket here: small, so that the bound is reached.
const REQUEST_BYTES_MAX: usize = 2000;

/// Command lines of ipvsadm, one in a line, the words between blanks. What follows a line of `-R` up to
/// an empty one is its input.
pub fn command_lines(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut desk = Desk::new();
    let mut lines = text.lines().take(LINES_MAX);
    while let Some(line) = lines.next() {
        let mut argv = vec!["ipvsadm".to_string()];
        argv.extend(line.split_whitespace().map(str::to_string));
        let restores = argv
            .iter()
            .any(|word| word.starts_with('-') && word.contains('R'));
        let input: Vec<&str> = match restores {
            true => lines.by_ref().take_while(|line| !line.is_empty()).collect(),
            false => vec![],
        };
        let before = desk.state();
        let outcome = desk.call(&argv, &input.join("\n"));
        if outcome.status != 0 {
            assert!(!outcome.stderr.is_empty(), "{line}: fails and says nothing");
            // A restore does its lines one by one, as ipvsadm does.
            assert!(
                restores || desk.state() == before,
                "{line}: refused, and changed"
            );
        }
    }
    desk.come_back();
}

/// Rules as ipvsadm-save prints them, applied whole.
pub fn rules(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match rules::parse("rules", &text, &NumbersOnly) {
        Ok(commands) => Desk::new().apply(Desired::of_commands(&commands).ok()),
        Err(problems) => assert!(problems.to_string().contains("rules:"), "{problems}"),
    }
}

/// A configuration file, applied whole.
pub fn configuration(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match file::parse("ulvs.toml", &text, &sched::NAMES) {
        Ok(config) => Desk::new().apply(Desired::of_config(&config).ok()),
        Err(problems) => assert!(problems.to_string().contains("ulvs.toml"), "{problems}"),
    }
}

/// Bytes of a client of the control socket; the first one says in how large pieces they come.
pub fn socket(bytes: &[u8]) {
    let Some((piece, bytes)) = bytes.split_first() else {
        return;
    };
    let mut desk = Desk::new();
    let mut lines = Lines::new(REQUEST_BYTES_MAX);
    for chunk in bytes.chunks(usize::from(*piece).max(1)) {
        lines.push(chunk);
        loop {
            match lines.next_line() {
                Ok(Some(line)) => desk.hear(&line),
                Ok(None) => break,
                Err(error) => return assert!(!error.to_string().is_empty()),
            }
        }
    }
    desk.come_back();
}

/// A director in memory that is only spoken to.
struct Desk {
    run: Run,
}

impl Desk {
    fn new() -> Desk {
        Desk {
            run: Run::new(&mut Tape::new(&[0, 0, 1])),
        }
    }

    fn state(&mut self) -> State {
        match self.run.ask(Request::Ask(Query::State)) {
            Reply::Listing(Listing::State(state)) => *state,
            other => panic!("asked for the state: {other:?}"),
        }
    }

    fn call(&mut self, argv: &[String], input: &str) -> adm::Outcome {
        let run = &mut self.run;
        adm::run_named(argv, input, &NumbersOnly, &mut |request| {
            Ok(run.ask(request))
        })
    }

    /// Brings the director to what a file says, if that is a state: whole or not at all, and then there
    /// is nothing left to do.
    fn apply(&mut self, desired: Option<Desired>) {
        let Some(desired) = desired else { return };
        let before = self.state();
        let changes = desired.changes_from(&before);
        match self.run.configure(Command::Batch(changes)) {
            Reply::Done => {
                let left = desired.changes_from(&self.state());
                assert!(left.is_empty(), "still to be done: {left:?}");
                self.come_back();
            }
            Reply::Refused(_) => assert_eq!(self.state(), before, "refused, and changed"),
            other => panic!("a batch is done or refused: {other:?}"),
        }
    }

    /// One line of a client.
    fn hear(&mut self, line: &[u8]) {
        let Ok(request) = codec::decode_request(line) else {
            return;
        };
        if request == Request::Stop {
            return;
        }
        let before = self.state();
        let dry = matches!(
            request,
            Request::Ask(_) | Request::Each { dry_run: true, .. }
        );
        let reply = self.run.ask(request);
        let said = codec::encode(&reply);
        assert_eq!(
            codec::decode_reply(&said).as_ref(),
            Ok(&reply),
            "a reply can be read"
        );
        if dry || matches!(reply, Reply::Refused(_) | Reply::BadRequest(_)) {
            assert_eq!(self.state(), before, "{reply:?}, and changed");
        }
    }

    /// What is saved can be made so. A program that does not speak through ipvsadm may have said what
    /// ipvsadm cannot (another port by LVS-TUN), so the first time something may be changed by it; the
    /// second time nothing is.
    fn come_back(&mut self) {
        self.make_as_saved();
        let first = self.save();
        self.make_as_saved();
        assert_eq!(self.save(), first, "saved otherwise than it was");
    }

    /// Unless it cannot be read: ipvsadm prints marks beyond 2^31 - 1 as negative numbers and flags
    /// without a name as nothing, and reads neither.
    fn make_as_saved(&mut self) {
        let saved = self.save();
        let Ok(commands) = rules::parse("saved", &saved, &NumbersOnly) else {
            return;
        };
        let desired = Desired::of_commands(&commands).unwrap_or_else(|_| panic!("no state"));
        let changes = desired.changes_from(&self.state());
        let reply = self.run.configure(Command::Batch(changes));
        assert_eq!(reply, Reply::Done, "{saved}");
    }

    fn save(&mut self) -> String {
        let saved = self.call(&["ipvsadm".to_string(), "-Sn".to_string()], "");
        assert_eq!(saved.status, 0, "{}", saved.stderr);
        saved.stdout
    }
}
