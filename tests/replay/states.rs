//! The recorded packet sequences of topic `states`: state, timeout and activity after each packet
//! must be the kernel's. Only the state tables are at work here; what the table of connections does
//! around them (who may open one, which SYN opens a new one in its place) is played by this file.

use serde_json::Value;
use ulvs::conn::{Direction, State};
use ulvs::lvs::{Protocol, Segment, TcpFlags, Timeouts};

use super::{cases, steps};

/// What the commands of a case set up.
struct Setup {
    protocol: Protocol,
    /// LVS-NAT: the server's packets come by.
    answers_seen: bool,
    secure: bool,
    sloppy: bool,
}

#[test]
fn states() {
    let mut packets = 0;
    let mut failures = Vec::new();
    let cases = cases("states", |name| name.contains("-table-"));
    for (name, case) in &cases {
        let setup = Setup::read(case);
        for step in steps(case).filter(|step| step["do"] == "sequence") {
            match replay(&setup, step["after"].as_array().expect("after")) {
                Ok(count) => packets += count,
                Err(difference) => failures.push(format!("{name}: {difference}")),
            }
        }
    }
    println!("states: {} cases, {packets} packets", cases.len());
    let bad = failures.len();
    assert!(
        failures.is_empty(),
        "{bad} sequences:\n{}",
        failures.join("\n")
    );
}

impl Setup {
    fn read(case: &Value) -> Setup {
        let args: Vec<&str> = steps(case)
            .filter_map(|step| step["args"].as_array())
            .flatten()
            .map(|word| word.as_str().expect("a word"))
            .collect();
        let named = |word| args.contains(&word);
        let set = |name: &str| {
            let name = format!("net.ipv4.vs.{name}");
            steps(case).any(|step| {
                step["set"][&name]
                    .as_str()
                    .is_some_and(|value| value != "0")
            })
        };
        let protocol = match args[1] {
            "-t" => Protocol::TCP,
            "-u" => Protocol::UDP,
            "--sctp-service" => Protocol::SCTP,
            other => panic!("unknown protocol {other}"),
        };
        Setup {
            protocol,
            answers_seen: named("-m"),
            secure: set("secure_tcp"),
            sloppy: set("sloppy_tcp"),
        }
    }

    /// May this packet open a connection?
    fn opens(&self, direction: Direction, segment: Segment) -> bool {
        direction != Direction::Out
            && match segment {
                Segment::Tcp(flags) => !flags.rst() && (flags.syn() || self.sloppy),
                Segment::Sctp { first, .. } => first == chunk("INIT"),
                Segment::Udp | Segment::Echo => true,
            }
    }
}

/// Does this packet open a new connection in the place of the old one (`conn_reuse_mode` 1)?
fn replaces(old: State, direction: Direction, segment: Segment) -> bool {
    let closed = ["TIME_WAIT", "CLOSE", "CLOSED"].contains(&old.name());
    let opening = match segment {
        Segment::Tcp(flags) => flags.syn(),
        Segment::Sctp { first, .. } => first == chunk("INIT"),
        Segment::Udp | Segment::Echo => false,
    };
    direction != Direction::Out && closed && opening
}

/// The number of packets, all alike, or the first difference.
fn replay(setup: &Setup, after: &[Value]) -> Result<usize, String> {
    let mut state: Option<State> = None;
    for (number, step) in after.iter().enumerate() {
        let packet = step[0].as_str().expect("a packet");
        let (direction, segment) = parse(setup, packet);
        let present = match state {
            Some(old) if replaces(old, direction, segment) => Some(State::initial(setup.protocol)),
            Some(old) => Some(old),
            None if setup.opens(direction, segment) => Some(State::initial(setup.protocol)),
            None => None,
        };
        state = present.map(|old| old.next(direction, segment, setup.secure));
        if !agrees(state, step) {
            let packets: Vec<&str> = after.iter().filter_map(|step| step[0].as_str()).collect();
            let packets = packets[..=number].join(" ");
            return Err(format!("{packets}: expected {step}, got {state:?}"));
        }
    }
    Ok(after.len())
}

/// Are name, timeout and activity as recorded? The seconds are truncated and may have gone down by 1.
fn agrees(state: Option<State>, step: &Value) -> bool {
    let Some(state) = state else {
        return step[1].is_null();
    };
    let left = state.timeout_s(&Timeouts::default()).into();
    let seconds = step[2].as_u64();
    let counts = [u64::from(state.is_active()), u64::from(!state.is_active())];
    step[1] == state.name()
        && (seconds == Some(left) || seconds == Some(left - 1))
        && [step[3].as_u64(), step[4].as_u64()] == counts.map(Some)
}

/// `cSA`: flags SA from the client's side; `sABORT`: an SCTP ABORT from the server's.
fn parse(setup: &Setup, packet: &str) -> (Direction, Segment) {
    let (side, what) = packet.split_at(1);
    let direction = match side {
        "s" => Direction::Out,
        "c" if setup.answers_seen => Direction::In,
        "c" => Direction::InOnly,
        other => panic!("unknown side {other}"),
    };
    let segment = match setup.protocol {
        Protocol::TCP => Segment::Tcp(TcpFlags(what.chars().fold(0, |all, c| all | flag(c)))),
        Protocol::UDP => Segment::Udp,
        _ => Segment::Sctp {
            first: chunk(what),
            second: None,
        },
    };
    (direction, segment)
}

fn flag(letter: char) -> u8 {
    match letter {
        'S' => TcpFlags::SYN,
        'F' => TcpFlags::FIN,
        'R' => TcpFlags::RST,
        'A' => TcpFlags::ACK,
        other => panic!("unknown flag {other}"),
    }
}

/// Chunk types by the names of the recordings (RFC 9260 section 3.2).
fn chunk(name: &str) -> u8 {
    match name {
        "DATA" => 0,
        "INIT" => 1,
        "INITACK" => 2,
        "ABORT" => 6,
        "SHUT" => 7,
        "SHUTACK" => 8,
        "ERR" => 9,
        "COOKIE" => 10,
        "COOKACK" => 11,
        "SHUTDONE" => 14,
        other => panic!("unknown chunk {other}"),
    }
}
