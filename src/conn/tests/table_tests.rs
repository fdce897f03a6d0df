//! The table: one entry for both directions, twins, its bound, exact counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{SEED, conn, counts, opening, server, tuple};
use crate::conn::{Conn, ConnTable, Direction, EngineData, Opening, TableFull};
use crate::lvs::Protocol;
use crate::time::Instant;

#[test]
fn both_directions_lead_to_one_entry() {
    let (server, table) = (server(), ConnTable::new(10, SEED));
    let made = table
        .insert(conn(Protocol::TCP, 1, &server))
        .expect("there is room");
    for direction in [Direction::In, Direction::Out] {
        let (found, way) = table.find(&made.tuple(direction)).expect("it is there");
        assert!(Arc::ptr_eq(&found, &made) && way == direction);
    }
    let udp = tuple(Protocol::UDP, 1);
    assert!(table.find(&udp).is_none(), "another protocol");
    assert!(table.find(&tuple(Protocol::TCP, 2)).is_none());
    table.remove(&made);
    assert!(table.find(&made.in_tuple()).is_none());
    assert!(made.is_gone() && table.is_empty());
}

#[test]
fn the_second_of_two_twins_is_let_go() {
    let (server, table) = (server(), ConnTable::new(10, SEED));
    let first = table
        .insert(conn(Protocol::TCP, 1, &server))
        .expect("there is room");
    let second = conn(Protocol::TCP, 1, &server);
    assert_eq!(counts(&server), [0, 2, 0]);
    let kept = table.insert(Arc::clone(&second)).expect("there is room");
    assert!(Arc::ptr_eq(&kept, &first) && second.is_gone());
    assert_eq!((table.len(), counts(&server)), (1, [0, 1, 0]));
    table.remove(&second);
    assert_eq!(
        (table.len(), counts(&server)),
        (1, [0, 1, 0]),
        "not its own"
    );
    table.remove(&first);
    table.remove(&first);
    assert_eq!((table.len(), counts(&server)), (0, [0; 3]));
}

#[test]
fn a_template_is_no_twin_of_a_connection() {
    let (server, table) = (server(), ConnTable::new(10, SEED));
    let plain = table
        .insert(conn(Protocol::TCP, 1, &server))
        .expect("there is room");
    let key = plain.in_tuple();
    assert!(table.find_template(&key).is_none());
    let mut opening = opening(key, &server);
    opening.template = true;
    let template = table
        .insert(Arc::new(Conn::open(opening, Instant::ZERO)))
        .expect("there is room");
    assert_eq!(table.len(), 2);
    let found = table.find_template(&key).expect("it is there");
    assert!(Arc::ptr_eq(&found, &template));
    let found = table.find_in(&key).expect("it is there");
    assert!(Arc::ptr_eq(&found, &plain));
}

#[test]
fn a_full_table_refuses_and_counts_until_there_is_room() {
    let (server, table) = (server(), ConnTable::new(3, SEED));
    let conns: Vec<_> = (0..3)
        .map(|client| {
            table
                .insert(conn(Protocol::UDP, client, &server))
                .expect("there is room")
        })
        .collect();
    let refused = conn(Protocol::UDP, 9, &server);
    assert_eq!(
        table.insert(Arc::clone(&refused)).map(|_| ()),
        Err(TableFull)
    );
    assert!(refused.is_gone());
    assert_eq!((table.len(), table.refused()), (3, 1));
    assert_eq!(counts(&server), [0, 3, 0]);
    table.remove(&conns[1]);
    assert!(table.insert(conn(Protocol::UDP, 9, &server)).is_ok());
    assert_eq!((table.len(), table.refused(), table.len_max()), (3, 1, 3));
}

#[test]
fn every_entry_is_shown_once_and_a_drained_table_starts_over() {
    let (server, table) = (server(), ConnTable::new(1 << 20, SEED));
    for round in 0..2 {
        let conns: Vec<_> = (0..100_000)
            .map(|client| {
                table
                    .insert(conn(Protocol::UDP, client, &server))
                    .expect("there is room")
            })
            .collect();
        let mut seen = BTreeSet::new();
        table.for_each(|conn| assert!(seen.insert(conn.client())));
        assert_eq!((seen.len(), table.len()), (100_000, 100_000), "{round}");
        // Shards shrink on the way; the ones that are left must be found all the same.
        for (number, conn) in conns.iter().enumerate() {
            table.remove(conn);
            let later = &conns[(number + 1..conns.len()).nth(7).unwrap_or(number)];
            let found = table.find_in(&later.in_tuple());
            assert_eq!(found.is_some(), later.client() != conn.client());
        }
        assert_eq!((table.len(), counts(&server)), (0, [0; 3]));
        table.for_each(|_| panic!("nobody is left"));
    }
}

#[test]
fn calls_are_found_however_full_the_table_becomes() {
    const CALLS: u16 = 5000;
    let (server, table) = (server(), ConnTable::new(10_000, SEED));
    let call = |number: u16| EngineData::new(format!("{number}@h").as_bytes()).expect("short");
    let key = tuple(Protocol::UDP, 0);
    let templates: Vec<Arc<Conn>> = (0..CALLS)
        .map(|number| {
            let template = Opening {
                template: true,
                ..opening(key, &server)
            };
            let template = Arc::new(Conn::open(template, Instant::ZERO));
            table.insert_engine_template(template, call(number))
        })
        .collect::<Result<_, TableFull>>()
        .expect("there is room");
    for (number, template) in (0..CALLS).zip(&templates) {
        let found = table.find_engine_template(&key, &call(number));
        assert!(found.is_some_and(|found| Arc::ptr_eq(&found, template)));
    }
    for template in &templates {
        table.remove(template);
    }
    assert!(table.is_empty(), "{} are left", table.len());
}
