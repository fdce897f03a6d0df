//! The recorded decisions of topic `sched`: the commands of a case build the list of real servers,
//! the recorded counters stand in for the connections, and each pick must be the kernel's.
//!
//! Whether a server is overloaded is not recorded; it is driven by the same calls a connection makes
//! (`RealLive::mark_if_overloaded`, `clear_if_recovered`).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::Value;
use ulvs::lvs::{
    Endpoint, Flow, ForwardMethod, Protocol, RealKey, RealLive, RealServer, ServiceFlags,
    Thresholds, Weight,
};
use ulvs::rng::Rng;
use ulvs::sched::{self, Change, PickContext, Scheduler};
use ulvs::time::Instant;

use super::{cases, steps, text};

/// The one service of a case.
struct Replay {
    /// Protocol and VIP; of a mark service only the protocol counts.
    protocol: Protocol,
    virt: Endpoint,
    flags: ServiceFlags,
    scheduler: Option<Box<dyn Scheduler>>,
    /// Newest first.
    reals: Vec<RealServer>,
    /// The living part of every server there ever was: one that comes back is the same.
    known: BTreeMap<Endpoint, Arc<RealLive>>,
    rng: Rng,
}

#[test]
fn rr() {
    replay_all("rr");
}

#[test]
fn wrr() {
    replay_all("wrr");
}

#[test]
fn lc() {
    replay_all("lc");
}

#[test]
fn wlc() {
    replay_all("wlc");
}

#[test]
fn lblc() {
    replay_all("lblc");
}

#[test]
fn lblcr() {
    replay_all("lblcr");
}

#[test]
fn dh() {
    replay_all("dh");
}

#[test]
fn sh() {
    replay_all("sh");
}

#[test]
fn sed() {
    replay_all("sed");
}

#[test]
fn nq() {
    replay_all("nq");
}

#[test]
fn fo() {
    replay_all("fo");
}

#[test]
fn ovf() {
    replay_all("ovf");
}

#[test]
fn mh() {
    replay_all("mh");
}

/// Chance cannot be replayed, but its distribution can be compared.
#[test]
fn twos() {
    let cases = cases("twos", |_| true);
    for (name, case) in &cases {
        let mut replay = Replay::new("-t", "10.0.0.100:80");
        for step in steps(case) {
            match text(step, "do") {
                "ipvsadm" => replay.command(step),
                "distribution" => replay.compare_distribution(name, step),
                other => panic!("unknown step {other}"),
            }
        }
    }
    println!("twos: {} cases", cases.len());
}

/// Replays every case of one scheduler and fails with the first difference of each bad one.
fn replay_all(scheduler: &str) {
    let mut decisions = 0;
    let mut failures = Vec::new();
    let of_this = |name: &str| name.split(['-', '+']).next() == Some(scheduler);
    let cases = cases("sched", of_this);
    for (name, case) in &cases {
        match replay(case) {
            Ok(count) => decisions += count,
            Err(difference) => failures.push(format!("{name}: {difference}")),
        }
    }
    println!("{scheduler}: {} cases, {decisions} decisions", cases.len());
    let bad = failures.len();
    assert!(failures.is_empty(), "{bad} cases:\n{}", failures.join("\n"));
}

/// The number of decisions, all alike, or the first difference.
fn replay(case: &Value) -> Result<usize, String> {
    let servers: Vec<Endpoint> = case["servers"]
        .as_array()
        .expect("servers")
        .iter()
        .map(|name| endpoint(name.as_str().expect("a name")))
        .collect();
    let service = case["service"].as_array().expect("service");
    let [option, name] = [0, 1].map(|index| service[index].as_str().expect("a word"));
    let mut replay = Replay::new(option, name);
    let mut decisions = 0;
    for (number, step) in steps(case).enumerate() {
        match text(step, "do") {
            "ipvsadm" => replay.command(step),
            "new" => {
                replay.set_counters(&servers, &step["n"]);
                let expected = step["to"].as_str().map(endpoint);
                let got = replay.decide(step);
                if got != expected {
                    return Err(format!("step {number} {step}: got {got:?}"));
                }
                decisions += 1;
            }
            // What these do to the counters is recorded with the next decision. `cmd` sets marks.
            "establish" | "close" | "reset" | "counts" | "cmd" => {}
            other => panic!("unknown step {other}"),
        }
    }
    Ok(decisions)
}

impl Replay {
    /// A director without services; the one to come has this option and name.
    fn new(option: &str, name: &str) -> Replay {
        let (protocol, virt) = match option {
            "-t" => (Protocol::TCP, endpoint(name)),
            "-u" => (Protocol::UDP, endpoint(name)),
            "--sctp-service" => (Protocol::SCTP, endpoint(name)),
            "-f" => (Protocol::TCP, endpoint("0.0.0.0:0")),
            other => panic!("unknown service {other}"),
        };
        Replay {
            protocol,
            virt,
            flags: ServiceFlags::default(),
            scheduler: None,
            reals: Vec::new(),
            known: BTreeMap::new(),
            rng: Rng::new(1),
        }
    }

    /// One ipvsadm call of the kinds that topic `sched` has; all succeeded.
    fn command(&mut self, step: &Value) {
        assert_eq!(step["rc"], 0, "{step}");
        let args = step["args"].as_array().expect("args");
        let args: Vec<&str> = args.iter().map(|arg| arg.as_str().expect("word")).collect();
        let option = |name: &str| {
            let place = args.iter().position(|arg| *arg == name)?;
            args.get(place + 1).copied()
        };
        match args[0] {
            "-A" | "-E" => self.set_service(option("-s"), option("-b")),
            "-a" => self.add(args.as_slice(), option),
            "-e" => self.edit(args.as_slice(), option),
            "-d" => self.remove(endpoint(option("-r").expect("-r"))),
            other => panic!("unknown command {other}"),
        }
    }

    /// The scheduler keeps its state when it is only named again.
    fn set_service(&mut self, scheduler: Option<&str>, flags: Option<&str>) {
        let name = scheduler.unwrap_or("wlc");
        let present = self.scheduler.as_ref().map(|scheduler| scheduler.name());
        if present != Some(name) {
            self.scheduler = sched::by_name(name, &self.reals);
            assert!(self.scheduler.is_some(), "unknown scheduler {name}");
        }
        let words = flags.unwrap_or("").split(',');
        let bits = words.map(|word| match word {
            "" => 0,
            "sh-fallback" | "mh-fallback" => ServiceFlags::SCHED_1,
            "sh-port" | "mh-port" => ServiceFlags::SCHED_2,
            other => panic!("unknown flag {other}"),
        });
        self.flags = ServiceFlags(bits.fold(0, |all, bit| all | bit));
    }

    fn add<'a>(&mut self, args: &[&str], option: impl Fn(&str) -> Option<&'a str>) {
        let name = endpoint(option("-r").expect("-r"));
        let id = u32::try_from(self.known.len()).expect("few servers");
        let fresh = || Arc::new(RealLive::new(id, name, 1));
        let live = self.known.entry(name).or_insert_with(fresh).clone();
        live.available.store(true, Relaxed);
        let real = RealServer {
            key: RealKey(name),
            weight: Weight(1),
            last_weight: Weight(0),
            method: ForwardMethod::Route,
            thresholds: Thresholds::default(),
            live,
        };
        self.reals.insert(0, configured(real, args, option));
        self.tell(Change::Added);
    }

    fn edit<'a>(&mut self, args: &[&str], option: impl Fn(&str) -> Option<&'a str>) {
        let name = RealKey(endpoint(option("-r").expect("-r")));
        let real = self.reals.iter_mut().find(|real| real.key == name);
        let real = real.expect("a server that is there");
        *real = configured(real.clone(), args, option);
        self.tell(Change::Edited);
    }

    fn remove(&mut self, name: Endpoint) {
        let place = self.reals.iter().position(|real| real.key.0 == name);
        let index = place.expect("a server that is there");
        let gone = self.reals.remove(index);
        gone.live.available.store(false, Relaxed);
        let before = index.checked_sub(1).map(|index| self.reals[index].live.id);
        let id = gone.live.id;
        self.tell(Change::Removed { id, before });
    }

    fn tell(&mut self, change: Change) {
        let scheduler = self.scheduler.as_mut().expect("a scheduler");
        scheduler.changed(&self.reals, change);
    }

    /// Sets the recorded counters of the servers that are in service.
    fn set_counters(&mut self, servers: &[Endpoint], recorded: &Value) {
        let pairs = recorded.as_array().expect("n").iter();
        for (name, pair) in servers.iter().zip(pairs) {
            let in_service = self.reals.iter().find(|real| real.key.0 == *name);
            assert_eq!(in_service.is_some(), !pair.is_null(), "{name} in service");
            if let Some(real) = in_service {
                let count = |index: usize| {
                    let number = pair[index].as_u64().expect("a count");
                    u32::try_from(number).expect("a small count")
                };
                let before = real.live.total();
                real.live.active.store(count(0), Relaxed);
                real.live.inactive.store(count(1), Relaxed);
                if real.live.total() < before {
                    real.live.clear_if_recovered();
                }
            }
        }
    }

    /// Asks the scheduler for the connection of a `new` step, and opens it.
    fn decide(&mut self, step: &Value) -> Option<Endpoint> {
        let index = self.pick(Flow {
            protocol: self.protocol,
            source: endpoint(text(step, "c")),
            target: step["d"].as_str().map_or(self.virt, endpoint),
        })?;
        let real = &self.reals[index];
        real.live.inactive.fetch_add(1, Relaxed);
        real.live.mark_if_overloaded();
        Some(real.key.0)
    }

    fn pick(&mut self, flow: Flow) -> Option<usize> {
        let mut context = PickContext {
            flow,
            target: flow.target.address,
            flags: self.flags,
            now: Instant::ZERO,
            tunables: &ulvs::lvs::Tunables::default(),
            rng: &mut self.rng,
            notes: None,
        };
        let scheduler = self.scheduler.as_mut().expect("a scheduler");
        scheduler.pick(&self.reals, &mut context)
    }

    /// Opens as many connections as were recorded, all of which stay active, and compares how many
    /// each server got. The recorded figures differ by up to 4 between two runs of the kernel.
    fn compare_distribution(&mut self, name: &str, step: &Value) {
        for real in &self.reals {
            real.live.active.store(0, Relaxed);
        }
        let count = step["new_connections"].as_u64().expect("a count");
        for port in 0..count {
            let port = u16::try_from(port).expect("few connections");
            let source = Endpoint::new([192, 0, 2, 1].into(), port);
            let (protocol, target) = (self.protocol, self.virt);
            let chosen = self.pick(Flow {
                protocol,
                source,
                target,
            });
            if let Some(index) = chosen {
                self.reals[index].live.active.fetch_add(1, Relaxed);
            }
        }
        for real in &self.reals {
            let expected = step["chosen"][real.key.to_string()].as_u64();
            let expected = expected.expect("a recorded server");
            let got = u64::from(real.active());
            assert!(
                got.abs_diff(expected) <= 10,
                "{name}: {} got {got} in {step}",
                real.key
            );
        }
    }
}

/// `real` with the weight, method and thresholds of a command line; what is not named falls back to
/// ipvsadm's defaults.
fn configured<'a>(
    mut real: RealServer,
    args: &[&str],
    option: impl Fn(&str) -> Option<&'a str>,
) -> RealServer {
    let number = |name: &str| option(name).map(|word| word.parse::<u32>().expect("a number"));
    let weight = i32::try_from(number("-w").unwrap_or(1)).expect("a weight");
    real.weight = Weight(weight);
    if weight != 0 {
        real.last_weight = Weight(weight);
    }
    real.method = match args.iter().find(|arg| ["-m", "-i", "-g"].contains(arg)) {
        Some(&"-m") => ForwardMethod::Masq,
        Some(&"-i") => ForwardMethod::Tunnel,
        _ => ForwardMethod::Route,
    };
    real.thresholds = Thresholds {
        upper: number("-x").unwrap_or(0),
        lower: number("-y").unwrap_or(0),
    };
    real.live.weight.store(weight, Relaxed);
    real.live.set_thresholds(real.thresholds);
    real
}

fn endpoint(text: &str) -> Endpoint {
    let address: SocketAddr = text
        .parse()
        .unwrap_or_else(|_| panic!("{text}: no endpoint"));
    Endpoint::new(address.ip(), address.port())
}
