//! One entry: its counts, its end, and what templates control.

use std::sync::Arc;

use super::{SEED, at, conn, counts, opening, server, tuple};
use crate::conn::{Conn, ConnTable, Direction};
use crate::lvs::{ForwardMethod, Protocol, Segment, TcpFlags, Timeouts};
use crate::time::Instant;

fn tcp(flags: u8) -> Segment {
    Segment::Tcp(TcpFlags(flags))
}

const SYN: u8 = TcpFlags::SYN;
const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;

#[test]
fn counts_follow_the_life_of_a_connection() {
    let (server, timeouts) = (server(), Timeouts::default());
    let conn = conn(Protocol::TCP, 1, &server);
    assert_eq!(counts(&server), [0, 1, 0]);
    let life = [
        (Direction::In, SYN, "SYN_RECV", 60, [1, 0, 0]),
        (Direction::Out, SYN | ACK, "SYN_RECV", 60, [1, 0, 0]),
        (Direction::In, ACK, "ESTABLISHED", 900, [1, 0, 0]),
        (Direction::In, FIN | ACK, "CLOSE_WAIT", 60, [0, 1, 0]),
        (Direction::Out, FIN | ACK, "TIME_WAIT", 120, [0, 1, 0]),
        (Direction::In, ACK, "TIME_WAIT", 120, [0, 1, 0]),
    ];
    for (second, (direction, flags, state, expires_s, wanted)) in (1..).zip(life) {
        let now = at(second);
        let before = conn.state();
        let (from, to) = conn.step(direction, tcp(flags), &timeouts, now);
        assert_eq!((from, to.name()), (before, state));
        assert_eq!(conn.expires_in(now).as_secs(), expires_s);
        assert_eq!(counts(&server), wanted, "in {state}");
    }
    assert!(conn.retire());
    assert_eq!(counts(&server), [0; 3]);
    assert!(!conn.retire(), "an entry ends once");
    assert_eq!(counts(&server), [0; 3]);
}

#[test]
fn whoever_still_holds_a_retired_entry_changes_no_counts() {
    let (server, timeouts) = (server(), Timeouts::default());
    let conn = conn(Protocol::TCP, 1, &server);
    conn.step(Direction::In, tcp(SYN), &timeouts, at(1));
    assert!(conn.retire());
    // Another worker found it just before.
    conn.step(Direction::In, tcp(FIN), &timeouts, at(1));
    assert_eq!(counts(&server), [0; 3]);
    conn.step(Direction::In, tcp(SYN), &timeouts, at(1));
    assert_eq!(counts(&server), [0; 3]);
    assert!(conn.is_gone());
}

#[test]
fn udp_restarts_one_timeout_and_never_becomes_active() {
    let (server, timeouts) = (server(), Timeouts::default());
    let conn = conn(Protocol::UDP, 1, &server);
    for second in 1..4 {
        let direction = [Direction::In, Direction::Out][second as usize % 2];
        conn.step(direction, Segment::Udp, &timeouts, at(second));
        assert_eq!(conn.deadline(), at(second + 300));
        assert_eq!(counts(&server), [0, 1, 0]);
    }
    conn.touch(at(10));
    assert_eq!(conn.deadline(), at(310));
    assert!(!conn.is_due(at(309)) && conn.is_due(at(310)));
    conn.end_now(at(20));
    assert!(conn.is_due(at(20)));
}

#[test]
fn only_a_seen_answer_takes_the_entry_out_of_the_one_sided_table() {
    let (server, timeouts) = (server(), Timeouts::default());
    let mut opening = opening(tuple(Protocol::TCP, 1), &server);
    opening.method = ForwardMethod::Route;
    let conn = Conn::open(opening, at(0));
    assert!(conn.no_output());
    conn.step(Direction::In, tcp(SYN), &timeouts, at(0));
    conn.step(Direction::In, tcp(ACK), &timeouts, at(0));
    // The client closes first, and the server's side is guessed.
    let (_, to) = conn.step(Direction::In, tcp(FIN), &timeouts, at(0));
    assert_eq!(to.name(), "FIN_WAIT");
    conn.step(Direction::Out, tcp(ACK), &timeouts, at(0));
    assert!(!conn.no_output());
    let masq = super::conn(Protocol::TCP, 2, &server);
    assert!(!masq.no_output());
}

#[test]
fn each_direction_has_its_tuple() {
    let server = server();
    let asked = tuple(Protocol::TCP, 1);
    let masq = conn(Protocol::TCP, 1, &server);
    assert_eq!(masq.in_tuple(), asked);
    assert_eq!(masq.tuple(Direction::InOnly), asked);
    let out = masq.tuple(Direction::Out).flow();
    assert_eq!(
        (out.source, out.target),
        (server.endpoint, asked.flow().source)
    );
    let mut opening = opening(asked, &server);
    opening.method = ForwardMethod::Route;
    let routed = Conn::open(opening, at(0)).out_tuple().flow();
    assert_eq!(
        routed.source,
        asked.flow().target,
        "it speaks for the VIP itself"
    );
}

fn template(server: &Arc<crate::lvs::RealLive>) -> Arc<Conn> {
    let mut opening = opening(tuple(Protocol::TCP, 0), server);
    opening.template = true;
    Arc::new(Conn::open(opening, Instant::ZERO))
}

#[test]
fn a_template_counts_as_persistent_and_outlives_whom_it_controls() {
    let server = server();
    let template = template(&server);
    assert_eq!(counts(&server), [0, 0, 1]);
    assert_eq!(template.state_name(), "NONE");
    assert!(!template.outlives_expiry(at(5)));
    let controlled = |client| {
        let mut opening = opening(tuple(Protocol::TCP, client), &server);
        opening.control = Some(Arc::clone(&template));
        Conn::open(opening, Instant::ZERO)
    };
    let (one, other) = (controlled(1), controlled(2));
    assert_eq!(counts(&server), [0, 2, 1]);
    one.retire();
    assert!(template.outlives_expiry(at(5)));
    assert_eq!(template.deadline(), at(65));
    other.retire();
    assert!(!template.outlives_expiry(at(65)));
    template.retire();
    assert_eq!(counts(&server), [0; 3]);
}

/// A whole network behind one template has more connections than sixteen bits count.
#[test]
fn a_template_controls_more_than_65536_connections() {
    let server = server();
    let template = template(&server);
    let controlled: Vec<Conn> = (1..=1 << 16)
        .map(|client| {
            let mut opening = opening(tuple(Protocol::TCP, client), &server);
            opening.control = Some(Arc::clone(&template));
            Conn::open(opening, Instant::ZERO)
        })
        .collect();
    assert!(template.is_controlling());
    controlled.iter().for_each(|conn| assert!(conn.retire()));
    assert!(!template.is_controlling());
}

#[test]
fn a_refused_entry_gives_its_template_back() {
    let server = server();
    let (table, template) = (ConnTable::new(0, SEED), template(&server));
    let mut opening = opening(tuple(Protocol::TCP, 1), &server);
    opening.control = Some(Arc::clone(&template));
    let refused = table.insert(Arc::new(Conn::open(opening, Instant::ZERO)));
    assert!(refused.is_err());
    assert!(!template.is_controlling());
    assert_eq!(counts(&server), [0, 0, 1]);
}

/// What docs/performance.md says of an entry's memory rests on this.
#[test]
fn an_entry_stays_small_and_keeps_its_method() {
    assert_eq!(size_of::<Conn>(), 104);
    let entry = Arc::new(Conn::open(
        opening(tuple(Protocol::UDP, 9), &server()),
        at(0),
    ));
    let counts = 2 * size_of::<usize>();
    assert_eq!(
        (Arc::as_ptr(&entry) as usize - counts) % 128,
        0,
        "the allocator's part of it"
    );
    let server = server();
    for method in [
        ForwardMethod::Masq,
        ForwardMethod::Local,
        ForwardMethod::Tunnel,
        ForwardMethod::Route,
        ForwardMethod::Bypass,
    ] {
        let mut opening = opening(tuple(Protocol::UDP, 1), &server);
        opening.method = method;
        let conn = Conn::open(opening, at(0));
        conn.step(Direction::Out, Segment::Udp, &Timeouts::default(), at(0));
        conn.retire();
        assert_eq!(conn.method(), method);
    }
}

#[test]
fn an_assured_template_keeps_its_method() {
    let server = server();
    for method in [
        ForwardMethod::Masq,
        ForwardMethod::Tunnel,
        ForwardMethod::Route,
    ] {
        let mut template = opening(tuple(Protocol::UDP, 0), &server);
        (template.method, template.template) = (method, true);
        let template = Arc::new(Conn::open(template, at(0)));
        assert!(!template.is_assured() && template.state_name() == "NONE");
        let mut child = opening(tuple(Protocol::UDP, 1), &server);
        child.control = Some(Arc::clone(&template));
        let child = Conn::open(child, at(0));
        child.step(Direction::In, Segment::Udp, &Timeouts::default(), at(0));
        assert!(!template.is_assured(), "nobody has answered yet");
        child.step(Direction::Out, Segment::Udp, &Timeouts::default(), at(0));
        assert!(template.is_assured() && template.state_name() == "ASSURED");
        assert_eq!(template.method(), method);
    }
}
