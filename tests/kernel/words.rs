//! The `ipvsadm` steps: words become a change of the control plane, and what comes of it is compared
//! with what the program said.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::LazyLock;

use ulvs::cli::adm::{Outcome, run_named};
use ulvs::cli::names::SystemNames;
use ulvs::config::Command;
use ulvs::config::ipvsadm::{self, Call};
use ulvs::config::words::{NumbersOnly, Resolver};
use ulvs::lvs::{ForwardMethod, Protocol, ServiceKey, Stats};
use ulvs::stats::RATE_PERIOD;
use ulvs::time::Duration;

use super::case;
use super::house::House;
use super::judge::{Trouble, differs};
use crate::recorded::Recorded;

/// Calls ipvsadm and compares status and texts.
///
/// # Errors
/// `Differs` if it says or does something else.
pub fn run(house: &mut House, call: &case::Call) -> Result<(), Trouble> {
    note_stale_route(house, call);
    let got = spoken(house, call);
    let expected = Outcome {
        stdout: call.out.clone(),
        stderr: call.err.clone(),
        status: call.rc,
    };
    if got == expected {
        return Ok(());
    }
    let counters = call.args.iter().any(|word| word == "--stats");
    if counters && after_a_turn(house, |house| spoken(house, call) == expected) {
        return Ok(());
    }
    let alike = (&got.stderr, got.status) == (&expected.stderr, expected.status)
        && listed_alike(&expected.stdout, &got.stdout);
    if alike {
        return Ok(());
    }
    let text = |outcome: &Outcome| {
        let Outcome {
            stdout,
            stderr,
            status,
        } = outcome;
        format!("{:?}: status {status}\n{stdout}{stderr}", call.args)
    };
    Err(differs(text(&expected), text(&got)))
}

/// What ipvsadm says.
fn spoken(house: &mut House, call: &case::Call) -> Outcome {
    let mut argv = vec!["ipvsadm".to_string()];
    argv.extend_from_slice(&call.args);
    let names = Names::default();
    let got = run_named(&argv, &call.stdin, &names, &mut |request| {
        Ok(house.ask(request))
    });
    let waited_s = UNKNOWN_NAME_S * u64::from(names.unknown.get());
    house.sleep(Duration::from_secs(waited_s));
    got
}

/// Counters are listed as the estimator saw them last, every other second; whether it had looked when
/// the recording asked is not in it. Is it as recorded once it has?
pub fn after_a_turn(house: &mut House, is_recorded: impl FnOnce(&mut House) -> bool) -> bool {
    house.sleep(RATE_PERIOD);
    is_recorded(house)
}

/// Listings that need not be the same to the letter: entries are listed in the order of a hash with a
/// random key, their seconds may be one apart, and rates depend on when the estimator last looked.
fn listed_alike(expected: &str, got: &str) -> bool {
    let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
    let (mut expected, mut got) = (lines(expected), lines(got));
    if expected.len() != got.len() || expected.first() != got.first() {
        return false;
    }
    if expected
        .first()
        .is_some_and(|line| line == "IPVS connection entries")
    {
        return expected[2..].iter().all(|line| {
            let twin = got.iter().position(|other| same_entry(line, other));
            twin.map(|at| got.swap_remove(at)).is_some()
        });
    }
    let rates = |line: &String| line.contains(" CPS ");
    if !expected.iter().any(rates) {
        return false;
    }
    for line in expected.iter_mut().chain(&mut got) {
        *line = without_rates(line);
    }
    expected == got
}

/// Lines of `-L -c` are the same but for a second.
fn same_entry(expected: &str, got: &str) -> bool {
    let parts = |line: &str| -> Option<(String, i64, String)> {
        let (protocol, rest) = line.split_at_checked(4)?;
        let (time, rest) = rest.split_at_checked(5)?;
        let (minutes, seconds) = time.split_once(':')?;
        let seconds = minutes.trim().parse::<i64>().ok()? * 60 + seconds.parse::<i64>().ok()?;
        Some((protocol.to_string(), seconds, rest.to_string()))
    };
    match (parts(expected), parts(got)) {
        (Some(expected), Some(got)) => {
            let near = (expected.1 - got.1).abs() <= 1;
            near && (expected.0, expected.2) == (got.0, got.2)
        }
        _ => false,
    }
}

/// A line of `--rate` without its five numbers, which fill columns of nine.
fn without_rates(line: &str) -> String {
    let name = line.len().saturating_sub(5 * 9);
    let numbers = |text: &str| {
        text.bytes()
            .all(|byte| byte == b' ' || byte.is_ascii_digit())
    };
    match line.split_at_checked(name) {
        Some((name, rates)) if numbers(rates) => name.to_string(),
        _ => line.to_string(),
    }
}

/// Remembers a server that packets have reached by LVS-NAT and that this call turns to LVS-DR.
fn note_stale_route(house: &mut House, call: &case::Call) {
    let words: Vec<&str> = call.args.iter().map(String::as_str).collect();
    let Ok(Call::Change(Command::EditReal { service, real })) =
        ipvsadm::parse(&words, &NumbersOnly)
    else {
        return;
    };
    let snapshot = house.snapshot();
    let reals = snapshot.service(&service).map(|service| &service.reals);
    let before = reals.and_then(|reals| reals.iter().find(|before| before.key == real.key));
    let was_reached = before.is_some_and(|before| {
        let [_, in_packets, ..] = Stats::sum(&before.live.stats);
        before.method == ForwardMethod::Masq && in_packets > 0
    });
    if was_reached && real.method == ForwardMethod::Route {
        house.stale_routes.push(real.key.0.address);
    }
}

/// How long the recording machine took to learn that an address has no name, in seconds: its resolver
/// had no network, and asks twice for five seconds (resolv.conf(5)). Connections expired meanwhile.
const UNKNOWN_NAME_S: u64 = 10;

/// Names as the recording machine knew them: those that cases use, and Debian's for ports.
#[derive(Default)]
struct Names {
    /// Addresses without a name that were asked for.
    unknown: Cell<u32>,
}

static DEBIAN: LazyLock<SystemNames> = LazyLock::new(SystemNames::load);

impl Resolver for Names {
    fn address_of(&self, host: &str) -> Option<Ipv4Addr> {
        Recorded.address_of(host)
    }
    fn port_of(&self, service: &str, protocol: Protocol) -> Option<u16> {
        let recorded = Recorded.port_of(service, protocol);
        recorded.or_else(|| DEBIAN.port_of(service, protocol))
    }
    fn host_of(&self, address: IpAddr) -> Option<String> {
        let name = Recorded.host_of(address);
        self.unknown
            .set(self.unknown.get() + u32::from(name.is_none()));
        name
    }
    fn service_of(&self, port: u16, protocol: Protocol) -> Option<String> {
        let recorded = Recorded.service_of(port, protocol);
        recorded.or_else(|| DEBIAN.service_of(port, protocol))
    }
}

/// The service that these words name: `-t 10.0.0.100:80`, `-f 7 -6` and the like.
pub fn service(words: &[String]) -> Option<ServiceKey> {
    let mut line = vec!["-D"];
    line.extend(words.iter().map(String::as_str));
    match ipvsadm::parse(&line, &NumbersOnly) {
        Ok(Call::Change(Command::DeleteService(key))) => Some(key),
        _ => None,
    }
}
