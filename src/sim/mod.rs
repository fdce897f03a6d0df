//! The proof: the same `Worker` and the same `ControlPlane` as in the daemon, on a simulated network
//! with virtual time, among clients, real servers and an operator that chance leads. After everything
//! that happens the laws of `invariant` must hold. One seed is one run; it can be played again.

mod choice;
mod host;
mod house;
mod invariant;
mod ledger;
mod net;
mod operator;
mod outcome;
mod packet;
mod rubbish;
mod scenario;
mod station;
mod talk;
mod tcp;
mod topology;

pub use invariant::Broken;
pub use outcome::{Failure, Outcome};
pub use scenario::Knobs;

use crate::config::command::AccountRow;
use crate::config::{Command, Listing, Query, Reply, Request};
use crate::director::Account;
use crate::rng::Rng;
use crate::time::{Duration, Instant};
use crate::wire::memory::MemoryFrame;
use crate::wire::text;

use host::Hosts;
use house::{Event, House};
use invariant::Laws;
use net::{Arrival, Net};
use scenario::Action;
use talk::Fate;

/// Steps of a run unless somebody wants others.
pub const STEPS: u64 = 200;

/// The beginning of a longer time is played event by event, the rest in so many hops: a director that
/// wakes late must keep the laws, too.
const EXACT: Duration = Duration::from_secs(3);
const HOPS: u64 = 16;

/// Events of one step after which the simulation does not come to rest.
const EVENTS_MAX: u32 = 200_000;

/// Until everything has ended: the longest timeout, twice, since a template may outlive the last of
/// its connections by its own, in hops.
const REST: Duration = Duration::from_secs(2 * operator::TIMEOUT_MAX_S as u64 + 1000);
const REST_HOPS: u64 = 100;

/// Until each worker's index has forgotten its entries, of which it looks at some in each tick, and
/// then the trash its servers.
const SWEEP_HOP: Duration = Duration::from_millis(150);
const FORGET_HOP: Duration = Duration::from_secs(4);
const FORGET_HOPS: u64 = 100;

/// One run.
pub struct Sim {
    seed: u64,
    rng: Rng,
    knobs: Knobs,
    now: Instant,
    net: Net,
    hosts: Hosts,
    house: House,
    laws: Laws,
    steps: u64,
    /// A worker has lost its core and may not have answered everything yet: replies may be late.
    stalled: bool,
    outcome: Outcome,
    /// What has been told, if somebody listens.
    told: Option<Vec<String>>,
}

/// Plays a run of so many steps; `tell` hears every line of its story.
///
/// # Errors
/// The first law that is broken.
pub fn play(seed: u64, steps: u64, tell: Option<&mut dyn FnMut(&str)>) -> Result<Outcome, Failure> {
    let mut sim = Sim::new(seed, tell.is_some());
    let mut silent = |_: &str| {};
    let tell: &mut dyn FnMut(&str) = match tell {
        Some(tell) => tell,
        None => &mut silent,
    };
    let mut result = sim.begin();
    sim.hand_over(tell);
    while result.is_ok() && sim.steps < steps {
        result = sim.step();
        sim.hand_over(tell);
    }
    if result.is_ok() {
        sim.steps += 1;
        result = sim.finish();
        sim.hand_over(tell);
    }
    let step = sim.steps;
    match result {
        Ok(()) => Ok(sim.outcome),
        Err(broken) => Err(Failure { seed, step, broken }),
    }
}

impl Sim {
    /// A run before its first step.
    pub fn new(seed: u64, aloud: bool) -> Sim {
        let mut rng = Rng::new(seed);
        let knobs = Knobs::draw(&mut rng);
        let now = Instant::ZERO + Duration::from_secs(1000);
        Sim {
            seed,
            net: Net::new(knobs.cables, rng.next_u64()),
            hosts: Hosts::new(knobs.marks, rng.next_u64()),
            house: House::new(knobs.house, rng.next_u64(), now),
            rng,
            knobs,
            now,
            laws: Laws::default(),
            stalled: false,
            steps: 0,
            outcome: Outcome {
                account: Account::new(),
                ..Outcome::default()
            },
            told: aloud.then(Vec::new),
        }
    }

    /// Steps done so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// The services are configured.
    ///
    /// # Errors
    /// The law that is broken; so for all that follow.
    pub fn begin(&mut self) -> Result<(), Broken> {
        self.say(|sim| format!("seed {}: {:?}", sim.seed, sim.knobs));
        let tunables = if self.knobs.calm {
            0
        } else {
            self.rng.below(5)
        };
        let mut commands = operator::first_commands(&mut self.rng, self.knobs.calm);
        commands.extend((0..tunables).map(|_| operator::tunable(&mut self.rng)));
        for command in commands {
            self.say(|_| format!("operator: {}", operator::line_of(&command)));
            self.request(Request::Do(command))?;
        }
        self.pass(Duration::from_millis(20))
    }

    /// One thing happens, and time passes.
    ///
    /// # Errors
    /// See `begin`.
    pub fn step(&mut self) -> Result<(), Broken> {
        self.steps += 1;
        self.stalled &= self.house.asking() > 0 || self.house.is_stalled(self.now);
        let snapshot = self.house.snapshot();
        let action = self.knobs.action(&mut self.rng, &self.hosts, &snapshot);
        drop(snapshot);
        self.say(|sim| {
            let (step, time) = (sim.steps, sim.time());
            format!("#{step} {time} {action}")
        });
        self.act(action)?;
        let span = self.knobs.span(&mut self.rng);
        self.pass(span)?;
        self.fold(self.now.as_nanos());
        self.fold(self.house.table().len() as u64);
        self.fold(self.house.account().received);
        Ok(())
    }

    fn act(&mut self, action: Action) -> Result<(), Broken> {
        let now = self.now;
        match action {
            Action::Connect {
                client,
                to,
                again,
                requests,
                ending,
            } => {
                let plan = (requests, ending);
                let talk = self.hosts.connect((client, to), again, plan, now);
                self.laws.begin(talk);
            }
            Action::Datagram { client, to } => {
                let talk = self.hosts.datagram(client, to, now);
                self.laws.begin(talk);
            }
            Action::Associate { client, to, again } => {
                let talk = self.hosts.associate((client, to), again, now);
                self.laws.begin(talk);
            }
            Action::Poke(id, poke) => self.hosts.poke(id, poke, now),
            Action::PokeServer { id, reset } => drop(self.hosts.poke_server(id, reset, now)),
            Action::SpeakFirst { id, real } => self.hosts.speak_first(id, real, now),
            Action::Complain { id, inside, router } => {
                self.hosts.complain(id, (inside, router), now);
            }
            Action::Rubbish(rubbish) => self.arrive(rubbish.port, rubbish.frame, false),
            Action::Command(command) => self.request(Request::Do(command))?,
            Action::Query(query) => self.request(Request::Ask(query))?,
            Action::Down { worker, port, down } => self.house.set_down(worker, port, down, now),
            Action::Refuse {
                worker,
                port,
                refuses,
            } => self.house.set_refusing(worker, port, refuses),
            Action::Stall { worker, span } => {
                self.stalled = true;
                self.house.stall(worker, now + span);
            }
            Action::Mtu { port, mtu } => {
                self.house.set_mtu(port, mtu, now);
                self.after_event()?;
            }
            Action::Wait => {}
        }
        self.set_out();
        Ok(())
    }

    fn request(&mut self, request: Request) -> Result<(), Broken> {
        self.outcome.requests += 1;
        self.house.ask(request, self.now);
        self.after_event()
    }

    /// Time passes, and everything that is due happens.
    fn pass(&mut self, span: Duration) -> Result<(), Broken> {
        let end = self.now + span;
        let exact_end = end.min(self.now + EXACT);
        for _ in 0..EVENTS_MAX {
            let Some(due) = self.next().filter(|due| *due <= exact_end) else {
                self.now = exact_end;
                return self.hop(end, HOPS);
            };
            self.now = self.now.max(due);
            self.turn()?;
        }
        Err(Broken::new(0, "the simulation does not come to rest"))
    }

    /// Time passes in a few hops; what was due meanwhile happens late.
    fn hop(&mut self, end: Instant, hops: u64) -> Result<(), Broken> {
        let hop = Duration::from_nanos((end - self.now).as_nanos() / hops + 1);
        while self.now < end {
            self.now = end.min(self.now + hop);
            let mut events = 0;
            while self.next().is_some_and(|due| due <= self.now) {
                events += 1;
                if events > EVENTS_MAX {
                    return Err(Broken::new(0, "the simulation does not come to rest"));
                }
                self.turn()?;
            }
        }
        Ok(())
    }

    fn next(&self) -> Option<Instant> {
        let house = self.house.next().map(|(due, _)| due);
        [house, self.net.next(), self.hosts.next()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Everything that is due now happens once: first frames arrive, then the director acts.
    fn turn(&mut self) -> Result<(), Broken> {
        while let Some(arrival) = self.net.take(self.now) {
            self.deliver(arrival)?;
        }
        self.hosts.handle_timeout(self.now);
        self.set_out();
        if let Some((due, event)) = self.house.next()
            && due <= self.now
        {
            match event {
                Event::Breath(worker) => self.breathe(worker)?,
                event => {
                    self.house.act(event, self.now);
                    self.after_event()?;
                }
            }
        }
        Ok(())
    }

    fn deliver(&mut self, arrival: Arrival) -> Result<(), Broken> {
        match arrival {
            Arrival::Director { port, frame, plain } => self.arrive(port, frame, plain),
            Arrival::Hosts { port, frame } => self.hosts.hear(port, &frame, self.now)?,
            Arrival::Past { packet } => self.hosts.hear_past(&packet, self.now)?,
        }
        for sighting in self.hosts.take_sightings() {
            self.laws.see(sighting)?;
        }
        self.set_out();
        Ok(())
    }

    /// A frame reaches the director.
    fn arrive(&mut self, port: usize, frame: MemoryFrame, plain: bool) {
        let line = self
            .told
            .is_some()
            .then(|| text::describe(&frame.bytes, false));
        let worker = self.house.receive(port, frame, plain, self.now);
        if let Some(line) = line {
            let name = ["pub0", "prv0"][port];
            let way = match worker {
                Some(worker) => format!("> worker {worker}"),
                None => "lost, the port is down".to_string(),
            };
            self.say(|sim| format!("     {} {name} {way}: {line}", sim.time()));
        }
    }

    /// What the hosts say gets on its way.
    fn set_out(&mut self) {
        for arrival in self.hosts.take_out() {
            self.send(arrival);
        }
    }

    fn send(&mut self, arrival: Arrival) {
        let line = match &arrival {
            _ if self.told.is_none() => None,
            Arrival::Director { frame, .. } => Some(text::describe(&frame.bytes, false)),
            Arrival::Hosts { frame, .. } => Some(text::describe(frame, false)),
            Arrival::Past { .. } => None,
        };
        let lost = self.net.send(arrival, self.now);
        if let Some(line) = line.filter(|_| lost) {
            self.say(|sim| format!("     {} lost on the way: {line}", sim.time()));
        }
    }

    fn breathe(&mut self, worker: usize) -> Result<(), Broken> {
        let before = self.laws.before(&self.house, worker);
        let breath = self.house.breathe(worker, self.now);
        self.laws
            .after_breath(&self.house, worker, (&before, &breath), self.now)?;
        for (port, frame) in breath.sent {
            self.say(|sim| {
                let (time, name) = (sim.time(), ["pub0", "prv0"][port]);
                format!(
                    "     {time} {name} < worker {worker}: {}",
                    text::describe(&frame, false)
                )
            });
            self.fold_bytes(&frame);
            self.send(Arrival::Hosts { port, frame });
        }
        Ok(())
    }

    /// Something happened to the director that was no breath.
    fn after_event(&mut self) -> Result<(), Broken> {
        self.laws.after_event(&self.house, self.now)?;
        let replies = self.house.take_replies();
        for (id, reply) in replies.map_err(|text| Broken::new(5, text))? {
            self.say(|sim| format!("     {} reply: {}", sim.time(), reply_line(&reply)));
            self.judge_reply(id, &reply)?;
        }
        Ok(())
    }

    /// `Done` means: in force everywhere. Listings say what is there.
    fn judge_reply(&self, id: crate::director::SnapshotId, reply: &Reply) -> Result<(), Broken> {
        let table = self.house.table().len();
        match reply {
            Reply::Done => {
                let mut workers = (0..self.house.workers()).map(|number| self.house.worker(number));
                let everywhere = workers.all(|worker| worker.snapshot().id >= id);
                let text = "a change is reported done and not in force in every worker";
                everywhere.then_some(()).ok_or_else(|| Broken::new(2, text))
            }
            Reply::Listing(Listing::Connections(rows)) if rows.len() != table => {
                let text = format!("{} connections are listed of {table}", rows.len());
                Err(Broken::new(3, text))
            }
            Reply::Listing(Listing::Account(row)) => check_row(row, self.stalled),
            Reply::Late(_) if self.stalled => Ok(()),
            Reply::Late(text) | Reply::BadRequest(text) => Err(Broken::new(2, text.clone())),
            _ => Ok(()),
        }
    }

    /// All traffic stops; after the longest timeout nothing may be left.
    ///
    /// # Errors
    /// See `begin`.
    pub fn finish(&mut self) -> Result<(), Broken> {
        self.say(|sim| format!("{} all traffic stops", sim.time()));
        self.stop_traffic()?;
        self.hop(self.now + REST, REST_HOPS)?;
        self.check_empty()?;
        self.request(Request::Do(Command::Flush))?;
        self.request(Request::Ask(Query::Account))?;
        for hop in [SWEEP_HOP, FORGET_HOP] {
            for _ in 0..FORGET_HOPS {
                self.house.wake_all(self.now);
                self.hop(self.now + hop, 1)?;
            }
        }
        let (held, asking) = (self.laws.ledger().held_servers(), self.house.asking());
        if held + asking > 0 {
            let text = format!("{held} real servers are never forgotten, {asking} clients wait");
            return Err(Broken::new(8, text));
        }
        self.fold(self.now.as_nanos());
        let outcome = &mut self.outcome;
        (outcome.runs, outcome.account) = (1, self.house.account());
        outcome.replaced = self.laws.replaced();
        outcome.entries_max = self.laws.entries_max();
        outcome.frames_lost = self.net.lost();
        outcome.seconds = self.now.as_nanos() / 1_000_000_000;
        self.say(|sim| format!("{} nothing is left\n{}", sim.time(), sim.outcome));
        Ok(())
    }

    /// Every port works again, what is on its way arrives, and nobody says anything any more.
    fn stop_traffic(&mut self) -> Result<(), Broken> {
        for worker in 0..self.house.workers() {
            for port in 0..2 {
                self.house.set_down(worker, port, false, self.now);
                self.house.set_refusing(worker, port, false);
            }
        }
        if self.knobs.calm {
            self.pass(EXACT)?;
            self.hop(self.now + Duration::from_secs(60), 600)?;
        }
        for talk in self.hosts.talks() {
            self.outcome.talks[talk.fate as usize] += 1;
        }
        self.check_calm()?;
        self.hosts.fall_silent();
        self.pass(EXACT)
    }

    /// Where nothing was lost, broken or changed every connection succeeds or is refused.
    fn check_calm(&self) -> Result<(), Broken> {
        let bad = |fate: Fate| matches!(fate, Fate::Lost | Fate::Reset);
        let mut talks = self.hosts.talks().iter();
        match talks.find(|talk| self.knobs.calm && bad(talk.fate)) {
            Some(talk) => {
                let (id, flow, fate) = (talk.id, talk.flow(), talk.fate);
                Err(Broken::new(
                    1,
                    format!("talk {id}, {flow}, is {fate:?} in a calm run"),
                ))
            }
            None => Ok(()),
        }
    }

    fn check_empty(&mut self) -> Result<(), Broken> {
        let (table, held) = (self.house.table().len(), self.house.account().held);
        let waiting = self.house.waiting();
        if table + waiting > 0 || held > 0 {
            let text = format!("left: {table} entries, {held} frames held, {waiting} unread");
            return Err(Broken::new(8, text));
        }
        // With no entry left the counts of every server must be zero.
        self.laws.ledger().check_counts()?;
        self.laws.ledger().forget_freed();
        Ok(())
    }

    fn time(&self) -> String {
        let nanos = self.now.as_nanos();
        format!(
            "{}.{:06}",
            nanos / 1_000_000_000 - 1000,
            nanos / 1000 % 1_000_000
        )
    }

    fn say(&mut self, line: impl FnOnce(&Sim) -> String) {
        if self.told.is_some() {
            let line = line(self);
            self.told.get_or_insert_default().push(line);
        }
    }

    fn hand_over(&mut self, tell: &mut dyn FnMut(&str)) {
        if let Some(told) = &mut self.told {
            told.drain(..).for_each(|line| tell(&line));
        }
    }

    /// FNV-1a, by words.
    fn fold(&mut self, word: u64) {
        let digest = self.outcome.digest ^ word;
        self.outcome.digest = digest.wrapping_mul(0x0000_0100_0000_01b3).rotate_left(7);
    }

    fn fold_bytes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
    }
}

/// The account as it is told: it balances, and so do the ports.
fn check_row(row: &AccountRow, stalled: bool) -> Result<(), Broken> {
    let sum = |column: usize| {
        row.ports
            .iter()
            .map(|(_, counts)| counts[column])
            .sum::<u64>()
    };
    let fine = row.balances
        && (stalled || row.silent.is_empty())
        && sum(0) == row.received
        && sum(3) == row.forwarded + row.originated;
    fine.then_some(())
        .ok_or_else(|| Broken::new(5, format!("the account does not add up: {row:?}")))
}

fn reply_line(reply: &Reply) -> String {
    match reply {
        Reply::Done => "done".to_string(),
        Reply::Refused(refusal) => format!("refused: {refusal}"),
        Reply::Each(refusals) => {
            let refused = refusals.iter().flatten().count();
            format!("done but for {refused} of {}", refusals.len())
        }
        Reply::Listing(Listing::Connections(rows)) => format!("{} connections", rows.len()),
        Reply::Listing(Listing::Services { services, .. }) => {
            format!("{} services", services.len())
        }
        Reply::Listing(_) => "a listing".to_string(),
        Reply::Late(text) | Reply::BadRequest(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests;
