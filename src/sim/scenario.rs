//! What happens in a run: knobs that a seed turns once, and weighted random actions, one for each step.

use std::fmt;
use std::net::IpAddr;

use super::host::Hosts;
use super::house::{HouseRules, Steering};
use super::net::Cables;
use super::operator::{self, TARGETS, pick};
use super::rubbish::{self, Rubbish};
use super::talk::{Ending, Fate, Poke, SIP_PORT, Talk};
use super::topology::{CLIENTS, REALS};
use crate::config::{Command, Query};
use crate::director::snapshot::Snapshot;
use crate::lvs::{Endpoint, Family, Limits, Protocol};
use crate::rng::Rng;
use crate::time::Duration;

/// How a run is: drawn once from its seed.
#[derive(Clone, Copy, Debug)]
pub struct Knobs {
    /// Nothing is lost, broken or changed: then every connection must succeed.
    pub calm: bool,
    /// The director.
    pub house: HouseRules,
    /// The cables.
    pub cables: Cables,
    /// Frames for the second VIP carry a mark.
    pub marks: bool,
    /// Once in a while minutes or an hour pass.
    pub leaps: bool,
    /// How often each kind of action is drawn, by `Kind`.
    weights: [u64; KINDS],
}

/// Kinds of actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Open,
    Poke,
    Serve,
    Operate,
    Ask,
    Rubbish,
    Complain,
    Disturb,
    Wait,
}

const KINDS: usize = 9;

const ALL: [Kind; KINDS] = [
    Kind::Open,
    Kind::Poke,
    Kind::Serve,
    Kind::Operate,
    Kind::Ask,
    Kind::Rubbish,
    Kind::Complain,
    Kind::Disturb,
    Kind::Wait,
];

/// How often each kind is drawn where nothing was turned.
const WEIGHTS: [u64; KINDS] = [30, 15, 4, 10, 2, 8, 4, 4, 3];

/// One thing that happens.
#[derive(Clone, Debug)]
pub enum Action {
    /// A client opens a TCP connection, perhaps from the port of an earlier talk.
    Connect {
        client: IpAddr,
        to: Endpoint,
        again: Option<u32>,
        requests: u32,
        ending: Ending,
    },
    /// A client sends a first datagram.
    Datagram { client: IpAddr, to: Endpoint },
    /// A client opens an SCTP association.
    Associate {
        client: IpAddr,
        to: Endpoint,
        again: Option<u32>,
    },
    /// A client goes on with a talk, or ends it.
    Poke(u32, Poke),
    /// The real server of a talk closes or resets.
    PokeServer { id: u32, reset: bool },
    /// A real server speaks first to the client of a talk.
    SpeakFirst { id: u32, real: IpAddr },
    /// Somebody complains about a talk.
    Complain { id: u32, inside: bool, router: bool },
    /// A frame nobody should send.
    Rubbish(Box<Rubbish>),
    /// The operator changes something.
    Command(Command),
    /// The operator asks something.
    Query(Query),
    /// A port of a worker gives no frames, or gives them again.
    Down {
        worker: usize,
        port: usize,
        down: bool,
    },
    /// A port of a worker takes no frames, or takes them again.
    Refuse {
        worker: usize,
        port: usize,
        refuses: bool,
    },
    /// A worker loses its core for a while.
    Stall { worker: usize, span: Duration },
    /// A port has another MTU from now on.
    Mtu { port: usize, mtu: u32 },
    /// Nothing but time.
    Wait,
}

/// Longest time that a worker has no core, in seconds. The control plane waits five for an answer.
pub const STALL_MAX_S: u64 = 20;

impl Knobs {
    /// The knobs of a seed.
    pub fn draw(rng: &mut Rng) -> Knobs {
        let calm = rng.chance(10);
        let mut weights = WEIGHTS;
        for weight in &mut weights {
            *weight *= pick(rng, &[0, 1, 1, 1, 3]);
        }
        weights[Kind::Open as usize] = WEIGHTS[Kind::Open as usize];
        if calm {
            weights[Kind::Operate as usize..].fill(0);
        }
        Knobs {
            calm,
            house: house_rules(rng, calm),
            cables: cables(rng, calm),
            marks: rng.chance(50),
            leaps: !calm && rng.chance(50),
            weights,
        }
    }

    /// What happens next.
    pub fn action(&self, rng: &mut Rng, hosts: &Hosts, snapshot: &Snapshot) -> Action {
        let sum = self.weights.iter().sum();
        let mut at = rng.below(sum);
        let mut kind = Kind::Wait;
        for (candidate, weight) in ALL.into_iter().zip(self.weights) {
            if at < weight {
                kind = candidate;
                break;
            }
            at -= weight;
        }
        let action = match kind {
            Kind::Open => Some(open(rng, hosts.talks(), self.calm.then_some(snapshot))),
            Kind::Poke => poke(rng, hosts.talks(), self.calm),
            Kind::Serve => serve(rng, hosts.talks(), self.calm),
            Kind::Operate => Some(Action::Command(operator::command(rng, snapshot))),
            Kind::Ask => Some(Action::Query(operator::query(rng, snapshot))),
            Kind::Rubbish => {
                let live = any_open(rng, hosts.talks()).map(Talk::flow);
                let rubbish = rubbish::frame(rng, live, self.marks);
                Some(Action::Rubbish(Box::new(rubbish)))
            }
            Kind::Complain => any_open(rng, hosts.talks()).map(|talk| talk.id).map(|id| {
                let (inside, router) = (rng.chance(50), rng.chance(50));
                Action::Complain { id, inside, router }
            }),
            Kind::Disturb => Some(disturb(rng, self.house.workers)),
            Kind::Wait => None,
        };
        action.unwrap_or(Action::Wait)
    }

    /// How long it takes until the next thing happens: from a microsecond to seconds, rarely a minute,
    /// and where `leaps` allows up to an hour.
    pub fn span(&self, rng: &mut Rng) -> Duration {
        let (least_log2, most_log2) = match rng.below(100) {
            _ if self.calm => (14, 29),
            0..2 if self.leaps => (36, 42),
            0..8 if self.leaps => (33, 37),
            8..20 => (31, 34),
            20..40 => (10, 20),
            _ => (20, 32),
        };
        let log2 = least_log2 + rng.below(most_log2 - least_log2);
        let hour = Duration::from_secs(3600);
        Duration::from_nanos(rng.below(1 << log2)).min(hour)
    }
}

fn house_rules(rng: &mut Rng, calm: bool) -> HouseRules {
    let steerings = [Steering::Together, Steering::Apart, Steering::Scattered];
    let mut limits = Limits {
        conn_entries_max: 10_000,
        ..Limits::default()
    };
    if !calm {
        limits.conn_entries_max = pick(rng, &[10_000, 10_000, 200, 12]);
        limits.neigh_held_frames_max = pick(rng, &[64, 64, 2]);
        limits.neigh_entries_max = pick(rng, &[4096, 4096, 9]);
        limits.answers_per_breath_max = pick(rng, &[256, 256, 2]);
    }
    limits.index_slots_max = pick(rng, &[16 << 20, 4096, 0]);
    limits.wheel_pops_per_breath_max = pick(rng, &[512, 512, 3]);
    let private_mtu = if calm {
        1500
    } else {
        pick(rng, &[1500, 1500, 576])
    };
    HouseRules {
        workers: pick(rng, &[1, 2, 2]),
        steering: pick(rng, &steerings),
        message_delay: Duration::from_nanos(pick(rng, &[1_000, 50_000, 5_000_000])),
        mtus: [1500, private_mtu],
        limits,
    }
}

fn cables(rng: &mut Rng, calm: bool) -> Cables {
    let delay_us = pick(rng, &[20, 200, 20_000]);
    let jitter_us = pick(rng, &[0, 100, 10_000]);
    let mut cables = Cables {
        delay: Duration::from_nanos(delay_us * 1000),
        jitter: Duration::from_nanos(jitter_us * 1000),
        lost_permille: 0,
        twice_permille: 0,
        overtaking: false,
    };
    if !calm {
        cables.lost_permille = pick(rng, &[0, 5, 50, 200]);
        cables.twice_permille = pick(rng, &[0, 10, 100]);
        cables.overtaking = rng.chance(50);
    }
    cables
}

/// A client begins something new. In a calm run, where all must succeed, with a VIP of `calm`.
fn open(rng: &mut Rng, talks: &[Talk], calm: Option<&Snapshot>) -> Action {
    let (served, calm) = (calm, calm.is_some());
    let again = if calm || !rng.chance(25) {
        None
    } else {
        a_spent_one(rng, talks)
    };
    let plan = |rng: &mut Rng| {
        let endings = [Ending::Close, Ending::Close, Ending::Reset, Ending::Stay];
        let ending = if calm {
            Ending::Close
        } else {
            pick(rng, &endings)
        };
        (rng.below(4) as u32, ending)
    };
    if let Some(talk) = again {
        let (client, to, again) = (talk.from.address, talk.to, Some(talk.id));
        if talk.protocol() == Protocol::SCTP {
            return Action::Associate { client, to, again };
        }
        let (requests, ending) = plan(rng);
        return Action::Connect {
            client,
            to,
            again,
            requests,
            ending,
        };
    }
    let is_good = |to: &Endpoint| served.is_none_or(|now| now.is_vip(&to.address));
    let targets = TARGETS.into_iter().filter(|(_, to)| is_good(to));
    let targets: Vec<(Protocol, Endpoint)> = targets.collect();
    let (protocol, to) = pick(rng, &targets);
    let of_family = |client: &IpAddr| Family::of(*client) == Family::of(to.address);
    let clients: Vec<IpAddr> = CLIENTS.into_iter().filter(of_family).collect();
    let client = pick(rng, &clients);
    let again = None;
    match protocol {
        Protocol::UDP => Action::Datagram { client, to },
        Protocol::SCTP => Action::Associate { client, to, again },
        _ => {
            let (requests, ending) = plan(rng);
            Action::Connect {
                client,
                to,
                again,
                requests,
                ending,
            }
        }
    }
}

/// An ended talk of TCP or SCTP, one of the last, whose port may be used again. Only the newest talk
/// of a port: the port is not in use again already.
fn a_spent_one<'t>(rng: &mut Rng, talks: &'t [Talk]) -> Option<&'t Talk> {
    let last = &talks[talks.len().saturating_sub(20)..];
    let is_spent = |talk: &&Talk| {
        let newer = talks[talk.id as usize..].iter();
        let in_use = newer.filter(|newer| newer.flow() == talk.flow()).count() > 0;
        talk.fate != Fate::Open && talk.protocol() != Protocol::UDP && !in_use
    };
    let spent: Vec<&Talk> = last.iter().filter(is_spent).collect();
    (!spent.is_empty()).then(|| pick(rng, &spent))
}

fn any_open<'t>(rng: &mut Rng, talks: &'t [Talk]) -> Option<&'t Talk> {
    let open: Vec<&Talk> = talks
        .iter()
        .filter(|talk| talk.fate == Fate::Open)
        .collect();
    (!open.is_empty()).then(|| pick(rng, &open))
}

fn one_open(rng: &mut Rng, talks: &[Talk], protocol: Protocol) -> Option<u32> {
    let open = talks.iter().filter(|talk| talk.fate == Fate::Open);
    let ids: Vec<u32> = open
        .filter(|talk| talk.protocol() == protocol)
        .map(|talk| talk.id)
        .collect();
    (!ids.is_empty()).then(|| pick(rng, &ids))
}

fn poke(rng: &mut Rng, talks: &[Talk], calm: bool) -> Option<Action> {
    let talk = any_open(rng, talks)?;
    let poke = match rng.below(10) {
        _ if calm || talk.protocol() == Protocol::UDP => Poke::Send,
        0..5 => Poke::Send,
        5..8 => Poke::Close,
        8 => Poke::Reset,
        _ => Poke::Forget,
    };
    Some(Action::Poke(talk.id, poke))
}

/// A real server does something nobody asked it for.
fn serve(rng: &mut Rng, talks: &[Talk], calm: bool) -> Option<Action> {
    let calls = talks.iter().filter(|talk| talk.to.port == SIP_PORT);
    let ids: Vec<u32> = calls.map(|talk| talk.id).collect();
    if !calm && !ids.is_empty() && rng.chance(40) {
        let (id, real) = (pick(rng, &ids), pick(rng, &REALS[..5]));
        return Some(Action::SpeakFirst { id, real });
    }
    let id = one_open(rng, talks, Protocol::TCP)?;
    let reset = !calm && rng.chance(40);
    Some(Action::PokeServer { id, reset })
}

fn disturb(rng: &mut Rng, workers: usize) -> Action {
    let (worker, port) = (rng.below(workers as u64) as usize, rng.below(2) as usize);
    // Disturbances end sooner than they begin, or little would get through.
    let begins = rng.chance(15);
    match rng.below(8) {
        0..3 => Action::Down {
            worker,
            port,
            down: begins,
        },
        3..5 => Action::Refuse {
            worker,
            port,
            refuses: begins,
        },
        5 => Action::Mtu {
            port,
            mtu: pick(rng, &[1500, 1500, 1400, 576]),
        },
        _ => {
            let longest = pick(rng, &[1, 4, STALL_MAX_S]);
            let span = Duration::from_nanos(rng.below(longest * 1_000_000_000));
            Action::Stall { worker, span }
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port_name = |port: &usize| ["pub0", "prv0"][*port];
        match self {
            Action::Connect {
                client, to, again, ..
            } => {
                write!(f, "{client} opens a TCP connection to {to}")?;
                again.map_or(Ok(()), |id| write!(f, " from the port of talk {id}"))
            }
            Action::Datagram { client, to } => write!(f, "{client} sends a datagram to {to}"),
            Action::Associate { client, to, again } => {
                write!(f, "{client} opens an SCTP association with {to}")?;
                again.map_or(Ok(()), |id| write!(f, " from the port of talk {id}"))
            }
            Action::Poke(id, poke) => write!(f, "the client of talk {id}: {poke:?}"),
            Action::PokeServer { id, reset } => {
                let what = if *reset { "resets" } else { "closes" };
                write!(f, "the real server of talk {id} {what}")
            }
            Action::SpeakFirst { id, real } => {
                write!(f, "{real} speaks to the client of talk {id}")
            }
            Action::Complain { id, inside, router } => {
                let side = if *inside { "real server's" } else { "client's" };
                let who = if *router { "a router" } else { "the host" };
                write!(f, "{who} on the {side} side complains of talk {id}")
            }
            Action::Rubbish(rubbish) => write!(f, "rubbish: {}", rubbish.name),
            Action::Command(command) => write!(f, "operator: {}", operator::line_of(command)),
            Action::Query(query) => write!(f, "operator asks: {query:?}"),
            Action::Down { worker, port, down } => {
                let how = if *down { "down" } else { "up" };
                write!(f, "{} of worker {worker} is {how}", port_name(port))
            }
            Action::Refuse {
                worker,
                port,
                refuses,
            } => {
                let how = if *refuses {
                    "refuses frames"
                } else {
                    "takes frames"
                };
                write!(f, "{} of worker {worker} {how}", port_name(port))
            }
            Action::Stall { worker, span } => write!(f, "worker {worker} stalls for {span}"),
            Action::Mtu { port, mtu } => write!(f, "the MTU of {} is {mtu}", port_name(port)),
            Action::Wait => write!(f, "time passes"),
        }
    }
}
