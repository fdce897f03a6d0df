//! Counters of services, and the guard over the table.

use std::sync::Arc;

use super::tests::*;
use crate::config::Command;
use crate::lvs::{ForwardMethod, Stats, Timeouts};

/// A service counts what its real servers counted, also those that are gone.
#[test]
fn a_service_keeps_the_counts_of_servers_that_are_gone() {
    let mut room = Room::new(2);
    room.run(add_web("rr"));
    room.run(add("192.168.1.11", 1));
    room.run(add("192.168.1.12", 1));
    for at in [0, 1] {
        let live = room.live(web(), at);
        Stats::bump(&live.stats[at].conns, 2);
        live.stats[at].count_in(100);
    }
    room.sleep_ms(2_000);
    assert_eq!(room.row(web()).stats.counters, [4, 2, 0, 200, 0]);
    let live = room.live(web(), 0);
    live.stats[1].count_out(50);
    let key = live.endpoint.address.to_string();
    room.run(delete(&key));
    room.sleep_ms(2_000);
    assert_eq!(room.row(web()).stats.counters, [4, 2, 1, 200, 50]);
    room.run(add(&key, 1));
    room.sleep_ms(2_000);
    assert_eq!(room.row(web()).stats.counters, [4, 2, 1, 200, 50]);
}

/// Of a full table half-open entries go first, a part of it each second, and the automatics say that
/// they are on.
#[test]
fn the_guard_makes_room_when_it_is_scarce() {
    let mut room = Room::new(1);
    room.run(add_web("rr"));
    room.run(add("192.168.1.11", 1));
    let set = |name: &str, value: &str| Command::SetTunable {
        name: name.to_string(),
        value: value.to_string(),
    };
    room.run(set("drop_entry", "3"));
    let table = Arc::clone(&room.table);
    let opening = |port| crate::conn::Opening {
        tuple: crate::lvs::Tuple::from(crate::lvs::Flow {
            protocol: crate::lvs::Protocol::TCP,
            source: crate::lvs::Endpoint::new([10, 9, 8, 7].into(), port),
            target: crate::lvs::Endpoint::new([10, 0, 0, 100].into(), 80),
        }),
        real: ([0, 1], 80),
        method: ForwardMethod::Masq,
        server: None,
        control: None,
        mark: 0,
        template: false,
    };
    for port in 1..=200 {
        let conn = crate::conn::Conn::open(opening(port), room.now);
        let conn = table.insert(Arc::new(conn)).expect("room for it");
        let syn = crate::lvs::Segment::Tcp(crate::lvs::TcpFlags(crate::lvs::TcpFlags::SYN));
        conn.step(
            crate::conn::Direction::In,
            syn,
            &Timeouts::default(),
            room.now,
        );
    }
    room.sleep_ms(10_000);
    let left = table.len();
    assert!(
        (1..200).contains(&left),
        "{left} of 200 left after ten thirty-seconds of the table"
    );
}
