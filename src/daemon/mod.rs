//! Floor C: the daemon. It starts everything, wires it up and stops it in order. One thread runs the
//! control loop: clients, links, signals, workers and time become Inputs of the `ControlPlane`, and
//! what comes out of it is done here. It decides nothing about services or packets.

mod clock;
mod door;
mod kernel;
mod local;
mod netlink;
mod patient;
mod places;
mod signal;
mod socket;
mod start;
mod threads;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

pub use start::check;

use crate::config::diff::Desired;
use crate::config::rules::words_of;
use crate::config::{Command, Config, Query, Reply, Request};
use crate::control::{ClientId, ControlPlane, Input, Output};
use crate::director::message::Report;
use crate::nic::slice;
use door::Asked;
use kernel::KernelOff;
use local::LocalNode;
use netlink::{LinkState, Links, Seen, Wanted};
use signal::{Signals, Wish};
use threads::{Crew, News};

/// The daemon itself, as a client of its own control plane.
const SELF: ClientId = ClientId(0);

/// The same, when it asks for what a file says that was read again.
const RELOAD: ClientId = ClientId(u64::MAX);

/// How long the workers may take to end. A breath takes well under a millisecond.
const END_TIME: Duration = Duration::from_secs(5);

/// How the daemon runs, beside what the configuration says.
#[derive(Clone, Default)]
pub struct Options {
    /// The control socket.
    pub control: PathBuf,
    /// Workers never sleep: less latency for a whole core.
    pub busy_poll: bool,
    /// Reads the configuration again, for SIGHUP; an error is a message for people.
    pub reload: Option<Reload>,
}

/// Reads the configuration again.
pub type Reload = Arc<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Why the daemon did not start, or did not end well: a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunError(String);

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for RunError {}

/// Runs a director until it is told to stop. Prints `ulvs: ready` when frames flow. Everything it did
/// to the machine is undone when it returns, also with an error.
///
/// # Errors
/// When something it needs is missing, or a worker died.
pub fn run(config: &Config, options: &Options) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| failed("start the control loop", &error))?;
    // A configuration of a hundred thousand lines is read in one go; frames do not wait for it.
    let _ = slice::ask_for_slices(slice::FOR_LONG_WORK);
    runtime.block_on(async {
        let mut daemon = Daemon::start(config, options).await?;
        daemon.serve().await;
        daemon.end().await
    })
}

/// Everything the control loop holds.
struct Daemon {
    plane: ControlPlane,
    crew: Crew,
    links: Links,
    wanted: Vec<Wanted>,
    seen: Vec<Seen>,
    signals: Signals,
    reload: Option<Reload>,
    questions: mpsc::Receiver<Asked>,
    answers: BTreeMap<ClientId, oneshot::Sender<Reply>>,
    /// What went wrong while it ran.
    faults: Vec<String>,
    /// Somebody wants it to end.
    stopping: bool,
    stopped: bool,
    /// Behind the workers: they have ended when the kernel gets its frames back.
    kernel_off: KernelOff,
    local_node: LocalNode,
    /// Last, so that the socket goes when everything else is gone.
    _socket: socket::SocketFile,
}

impl Daemon {
    async fn start(config: &Config, options: &Options) -> Result<Daemon, RunError> {
        let signals = Signals::new().map_err(|error| failed("listen to signals", &error))?;
        let socket = socket::open(&options.control);
        let (socket, questions) = socket.map_err(|error| RunError(error.to_string()))?;
        let links = Links::new().map_err(|error| failed("ask the kernel for its links", &error))?;
        let built = start::build(config, &links).await?;
        let kernel_off = KernelOff::begin(config, &built.plane.snapshot())?;
        let local_node = LocalNode::begin(built.local, &kernel_off)?;
        let pin = config.director.pin;
        let crew = Crew::start(built.workers, pin, options.busy_poll);
        Ok(Daemon {
            plane: built.plane,
            crew: crew.map_err(|error| failed("start the workers", &error))?,
            links,
            wanted: built.wanted,
            seen: built.seen,
            signals,
            reload: options.reload.clone(),
            questions,
            answers: BTreeMap::new(),
            faults: Vec::new(),
            stopping: false,
            stopped: false,
            kernel_off,
            local_node,
            _socket: socket,
        })
    }

    /// The control loop: one thing happens, everything it brings about is done, the next thing.
    async fn serve(&mut self) {
        self.tell_links().await;
        self.obey();
        while !self.stopped {
            let wait = self.plane.poll_timeout().map(|due| due.since(clock::now()));
            let wait = wait.map_or(Duration::MAX, |wait| Duration::from_nanos(wait.as_nanos()));
            tokio::select! {
                wish = self.signals.wish() => match wish {
                    Wish::Stop(signal) => {
                        say(&format!("{signal}: stopping"));
                        self.stop();
                    }
                    Wish::Reload => self.reload(),
                },
                () = self.links.changed() => self.look_at_links().await,
                Some(asked) = self.questions.recv() => self.handle_asked(asked),
                (worker, news) = self.crew.news() => self.handle_news(worker, news),
                () = tokio::time::sleep(wait) => self.plane.handle_timeout(clock::now()),
            }
            self.obey();
        }
    }

    fn handle(&mut self, input: Input) {
        self.plane.handle(input, clock::now());
    }

    fn handle_asked(&mut self, asked: Asked) {
        match asked {
            Asked::Request {
                from,
                request,
                answer,
            } => {
                self.stopping |= request == Request::Stop;
                self.answers.insert(from, answer);
                self.handle(Input::Request { from, request });
            }
            Asked::Gone(client) => {
                self.answers.remove(&client);
                self.handle(Input::ClientGone(client));
            }
        }
    }

    fn handle_news(&mut self, worker: usize, news: News) {
        match news {
            News::Report(report) => {
                self.tell_of(worker, &report);
                self.handle(Input::Reported { worker, report });
            }
            News::Ended => self.give_up(format!("worker {worker} has ended by itself")),
        }
    }

    /// A port that is down or gone is told by `look_at_links`, once and not by every worker.
    fn tell_of(&self, worker: usize, report: &Report) {
        use crate::wire::NicError;
        if let Report::Port {
            port,
            error: Some(NicError::Errno(number)),
        } = report
        {
            let name = &self.seen[*port].port.name;
            let error = std::io::Error::from_raw_os_error(*number);
            say(&format!(
                "worker {worker} gets no frames from {name}: {error}"
            ));
        }
    }

    /// Does what the control plane wants.
    fn obey(&mut self) {
        while let Some(output) = self.plane.poll_output() {
            match output {
                Output::Order { worker, order } => {
                    if self.crew.order(worker, order).is_err() {
                        self.give_up(format!("worker {worker} does not take its orders"));
                    }
                }
                Output::Reply { to: SELF, reply } => self.handle_own(reply),
                Output::Reply { to: RELOAD, reply } => say(&format!("SIGHUP: {}", told(&reply))),
                Output::Reply { to, reply } => {
                    if let Some(answer) = self.answers.remove(&to) {
                        // A client that went meanwhile wants no answer.
                        let _ = answer.send(reply);
                    }
                }
                Output::Changed => self.follow(),
                Output::Stopped => self.stopped = true,
            }
        }
    }

    /// What the kernel must be told of a change. Before it holds an address for us, it is kept off that.
    fn follow(&mut self) {
        let snapshot = self.plane.snapshot();
        self.kernel_off.follow(&snapshot);
        self.local_node.follow(&snapshot);
    }

    /// The answers to what the daemon itself asked at the start: first the services, then, when they
    /// are in force, a sign of life of every worker.
    fn handle_own(&mut self, reply: Reply) {
        match reply {
            Reply::Done => {
                let request = Request::Ask(Query::Account);
                self.handle(Input::Request {
                    from: SELF,
                    request,
                });
            }
            Reply::Listing(_) => println!("ulvs: ready"),
            Reply::Each(_) => {}
            // Who stops before the start is over has not failed.
            _ if self.stopping => {}
            Reply::Refused(refusal) => self.give_up(format!("the configuration: {refusal}")),
            Reply::Late(why) | Reply::BadRequest(why) => self.give_up(why),
        }
    }

    /// Reads the configuration again and asks for what has to be changed, whole or not at all. A file
    /// with a mistake changes nothing.
    fn reload(&mut self) {
        let Some(reload) = &self.reload else {
            return say("SIGHUP: this director was started without a file; nothing is read");
        };
        let desired = reload().and_then(|config| {
            let desired = Desired::of_config(&config);
            desired.map_err(|_| "the file does something once, and describes no state".to_string())
        });
        let desired = match desired {
            Ok(desired) => desired,
            Err(message) => {
                return say(&format!(
                    "SIGHUP: nothing is changed.\n{}",
                    message.trim_end()
                ));
            }
        };
        let changes = desired.changes_from(&self.plane.state());
        for change in &changes {
            say(&format!("SIGHUP: {}", words_of(change)));
        }
        let request = Request::Do(Command::Batch(changes));
        self.handle(Input::Request {
            from: RELOAD,
            request,
        });
    }

    /// Stops, and ends with an error.
    fn give_up(&mut self, why: String) {
        say(&format!("{why}: stopping"));
        self.faults.push(why);
        self.stop();
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.handle(Input::Stop);
    }

    /// Synchronisation is sent by any interface of the host, not by our ports alone.
    async fn tell_links(&mut self) {
        match self.links.all().await {
            Ok(links) => self.handle(Input::LinksChanged(links)),
            Err(why) => say(&why),
        }
    }

    async fn look_at_links(&mut self) {
        let before: Vec<_> = self.seen.iter().map(|seen| seen.port.clone()).collect();
        let seen = match self.links.read(&self.wanted, &before).await {
            Ok(seen) => seen,
            Err(why) => return say(&why),
        };
        for (old, new) in self.seen.iter().zip(&seen) {
            tell_of_change(old, new);
        }
        self.seen = seen;
        self.tell_links().await;
        let ports: Vec<_> = self.seen.iter().map(|seen| seen.port.clone()).collect();
        if ports != before {
            self.handle(Input::PortsChanged(ports));
        }
        self.follow();
        self.crew.wake_all();
    }

    /// Sees the workers off; what is left is undone by being dropped.
    async fn end(mut self) -> Result<(), RunError> {
        let ended = async {
            while !self.crew.all_ended() {
                self.crew.news().await;
            }
        };
        // Who does not end in time is named by `farewell`.
        let _ = tokio::time::timeout(END_TIME, ended).await;
        // The last replies are on their way to the clients: one turn for their tasks.
        tokio::task::yield_now().await;
        self.faults.extend(self.crew.farewell());
        match self.faults.is_empty() {
            true => Ok(()),
            false => Err(RunError(self.faults.join("; "))),
        }
    }
}

fn tell_of_change(old: &Seen, new: &Seen) {
    let name = &new.port.name;
    if new.port.kernel && new.state != LinkState::Gone {
        return;
    }
    match (old.state, new.state) {
        (old, new) if old == new => {}
        (_, LinkState::Up) => say(&format!("{name} is up again")),
        (_, LinkState::Down) => say(&format!("{name} is down; its frames flow once it is up")),
        (_, LinkState::Gone) => say(&format!(
            "{name} is gone; what would leave by it is dropped"
        )),
    }
    if old.port.mtu != new.port.mtu && new.state != LinkState::Gone {
        say(&format!("{name} has an MTU of {} now", new.port.mtu));
    }
}

/// What became of the changes that a file brought.
fn told(reply: &Reply) -> String {
    match reply {
        Reply::Done => "the director is what the file says".to_string(),
        Reply::Refused(refusal) => format!("nothing is changed: {refusal}"),
        Reply::Late(why) | Reply::BadRequest(why) => why.clone(),
        Reply::Listing(_) | Reply::Each(_) => "an answer that nobody asked for".to_string(),
    }
}

/// A line for the person who started the daemon, or for its log.
fn say(text: &str) {
    eprintln!("ulvs: {text}");
}

fn failed(doing: &str, error: &std::io::Error) -> RunError {
    RunError(format!("cannot {doing}: {error}"))
}
