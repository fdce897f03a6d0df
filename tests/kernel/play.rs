//! Plays a case step by step on a director of its own and compares after each step.

use serde_json::Value;
use ulvs::config::{Command, Refusal, Reply};
use ulvs::time::Duration;

use super::case::{Case, Side, Step, Stimulus};
use super::clients::Clients;
use super::house::{House, Sent};
use super::judge::{self, Trouble, differs};
use super::net::{Net, server_mac};
use super::packet;
use super::shell::Effect;
use super::{explained, pieces, sequence, texts, words};

/// Where a case stopped, and why.
#[derive(Debug)]
pub struct Stop {
    /// Number of the step, from 0.
    pub step: usize,
    /// What is wrong.
    pub trouble: Trouble,
}

/// Plays the whole case.
///
/// # Errors
/// The first step that went otherwise than recorded, or that cannot be played.
pub fn play(case: &Case) -> Result<(), Stop> {
    let stop = |step, trouble| Stop { step, trouble };
    let unknown = || Trouble::Cannot(format!("net `{}`", case.net));
    let net = Net::named(&case.net).ok_or_else(|| stop(0, unknown()))?;
    let mut house = House::new(net);
    for (number, value) in case.steps.iter().enumerate() {
        let step = Step::read(value).map_err(|why| stop(number, Trouble::Cannot(why)))?;
        take_in_time(&mut house, case, value, &step).map_err(|trouble| stop(number, trouble))?;
    }
    Ok(())
}

/// Plays the whole case whatever differs, and tells every step that does.
pub fn play_on(case: &Case, mut tell: impl FnMut(&Stop)) {
    let Some(net) = Net::named(&case.net) else {
        return;
    };
    let mut house = House::new(net);
    for (step, value) in case.steps.iter().enumerate() {
        let Ok(known) = Step::read(value) else { return };
        if let Err(trouble) = take_in_time(&mut house, case, value, &known) {
            tell(&Stop { step, trouble });
        }
    }
}

/// Plays a case again up to a step, whose packets are told. The director as it then is, if the case
/// can be played that far.
pub fn replay(case: &Case, last: usize) -> Option<House> {
    let mut house = House::new(Net::named(&case.net)?);
    for (number, value) in case.steps.iter().enumerate().take(last + 1) {
        if number == last {
            house.tell();
        }
        // What went otherwise in the last step is known already.
        let _ = take_in_time(&mut house, case, value, &Step::read(value).ok()?);
    }
    Some(house)
}

/// Takes a step when it was taken, if the case says when.
fn take_in_time(house: &mut House, case: &Case, value: &Value, step: &Step) -> Result<(), Trouble> {
    if let Some(seconds) = value["at"].as_f64() {
        house.sleep_until(Duration::from_nanos((seconds * 1e9) as u64));
    }
    take(house, case, step)
}

fn take(house: &mut House, case: &Case, step: &Step) -> Result<(), Trouble> {
    match step {
        Step::Ipvsadm(call) => words::run(house, call),
        Step::Sysctl { set } => {
            for (name, value) in set {
                set_tunable(house, name, value)?;
            }
            Ok(())
        }
        Step::Cmd { cmd, rc } => command(house, cmd, *rc),
        Step::Sleep { seconds } => {
            house.sleep(Duration::from_nanos((seconds * 1e9) as u64));
            Ok(())
        }
        Step::Packet(stimulus) => packet(house, stimulus, case.strict),
        Step::Show { conns, services } => {
            let lingering = match conns {
                Some(conns) => judge::entries(conns, house)?,
                None => Vec::new(),
            };
            match services {
                Some(services) => judge::services(services, house, &lingering),
                None => Ok(()),
            }
        }
        Step::Note { text } => note(house, text),
        Step::New(decision) => Clients::of(case, house)?.new_connection(decision),
        Step::Establish(ends) => Clients::of(case, house)?.establish(ends),
        Step::Close(ends) => Clients::of(case, house)?.close(ends),
        Step::Reset(ends) => Clients::of(case, house)?.reset(ends),
        Step::Counts { n } => Clients::of(case, house)?.counts(n),
        Step::Sequence { port, after } => sequence::play(house, *port, after),
        Step::Proc(step) => texts::text(house, step),
        Step::SysctlProbe(probe) => texts::sysctl(house, probe),
        Step::Distribution(distribution) => sequence::distribute(house, distribution),
    }
}

fn packet(house: &mut House, stimulus: &Stimulus, strict: bool) -> Result<(), Trouble> {
    let sent = house.inject(stimulus.side, &stimulus.frame);
    house.last = Some((stimulus.side, stimulus.frame.clone()));
    let stale = stimulus.out.is_empty() && took_stale_route(house, &sent);
    if !stale {
        let same = judge::frames(&stimulus.out, &sent, stimulus.unstable);
        match pieces::joined(&stimulus.out, &sent).filter(|_| strict && same.is_err()) {
            Some((expected, got)) => {
                judge::frames(&expected, &got, false)?;
                explained::count("a datagram that had come in fragments leaves in other pieces");
            }
            None => same?,
        }
    } else if strict {
        explained::count("a server edited from LVS-NAT to LVS-DR has its new way at once");
    }
    let mut lingering = match &stimulus.conns {
        Some(conns) => judge::entries(conns, house)?,
        None => Vec::new(),
    };
    if let Some(entries) = &stimulus.entry {
        lingering.extend(judge::entries_of(entries, house)?);
    }
    match &stimulus.counts {
        Some(counts) => judge::counts(counts, house, &lingering),
        None => Ok(()),
    }
}

/// A deliberate difference (docs/differences.md): the kernel remembers the route to a server that it
/// found for LVS-NAT, and still takes it when the server was edited to LVS-DR; there it leads nowhere.
fn took_stale_route(house: &House, sent: &[Sent]) -> bool {
    let [only] = sent else { return false };
    let numbers = house
        .stale_routes
        .iter()
        .filter_map(|address| house.net.server_number(*address));
    let mut macs = numbers.map(server_mac);
    only.side == Side::Server && macs.any(|mac| only.frame[..6] == mac.0)
}

/// A note is for people, but some tell of packets that were too many to be written down: the last one
/// made longer, "the same N-byte packet M more times", and that one again, "and M times".
fn note(house: &mut House, text: &str) -> Result<(), Trouble> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let number_before = |word: &str| {
        let at = words.iter().position(|found| *found == word)?;
        words[..at]
            .iter()
            .rev()
            .find_map(|word| word.parse::<u32>().ok())
    };
    let Some(times) = number_before("times") else {
        return Ok(());
    };
    let unclear = || Trouble::Cannot(format!("`{text}`"));
    let (side, frame) = house.last.take().ok_or_else(unclear)?;
    let lengths = words.iter().filter_map(|word| word.strip_suffix("-byte"));
    let frame = match lengths.filter_map(|len| len.parse().ok()).next() {
        Some(len) => packet::lengthened(&frame, len).ok_or_else(unclear)?,
        None => frame,
    };
    for _ in 0..times {
        house.inject(side, &frame);
    }
    house.last = Some((side, frame));
    Ok(())
}

/// Sets a sysctl. One that the director does not know is no difference by itself: what it would have
/// changed shows, and `beyond` names it.
fn set_tunable(house: &mut House, name: &str, value: &str) -> Result<(), Trouble> {
    let short = name.trim_start_matches("net.ipv4.vs.");
    let change = Command::SetTunable {
        name: short.into(),
        value: value.into(),
    };
    match house.change(change) {
        Reply::Done | Reply::Refused(Refusal::UnknownTunable) => Ok(()),
        other => Err(differs(format!("{name} = {value}"), format!("{other:?}"))),
    }
}

fn command(house: &mut House, line: &str, rc: i32) -> Result<(), Trouble> {
    if rc != 0 {
        return Ok(());
    }
    for line in line.split(';') {
        match house.shell.run(line.trim()).map_err(Trouble::Cannot)? {
            Effect::Done => {}
            Effect::Links => house.tell_links(),
            Effect::Mtu(port, mtu) => house.set_mtu(port, mtu),
            Effect::Routes => house.set_routes(),
            Effect::Ftp(ports) => match house.change(Command::SetFtpPorts(ports)) {
                Reply::Done => {}
                other => return Err(differs("the module is there", format!("{other:?}"))),
            },
        }
    }
    Ok(())
}
