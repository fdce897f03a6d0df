//! The index: a cache that may forget, but never lies and never keeps what has left the table.

use std::sync::Arc;

use super::{SEED, conn, server, tuple};
use crate::conn::{Conn, ConnTable, Direction, Index};
use crate::lvs::Protocol;
use crate::lvs::tuple::Tuple;

/// As the director does it: the index, then the table, then the index again.
fn find(index: &mut Index, table: &ConnTable, tuple: &Tuple) -> Option<(Arc<Conn>, Direction)> {
    let hash = tuple.hash(SEED);
    if let Some((conn, direction)) = index.find(hash, tuple) {
        return Some((Arc::clone(conn), direction));
    }
    let (conn, direction) = table.find(tuple)?;
    index.remember(hash, direction, &conn);
    Some((conn, direction))
}

fn fill(table: &ConnTable, count: u32) -> Vec<Arc<Conn>> {
    let server = server();
    let enter = |client| table.insert(conn(Protocol::UDP, client, &server));
    (0..count)
        .map(|client| enter(client).expect("there is room"))
        .collect()
}

fn both_found(index: &mut Index, table: &ConnTable, conn: &Arc<Conn>) {
    for direction in [Direction::In, Direction::Out] {
        let (found, way) = find(index, table, &conn.tuple(direction)).expect("it is in the table");
        assert!(Arc::ptr_eq(&found, conn));
        assert_eq!(way, direction);
    }
}

/// Grows eight times while old connections go on: nobody is lost, and hardly anybody is looked up in
/// the table a second time.
#[test]
fn growing_while_in_use_forgets_hardly_anybody() {
    let table = ConnTable::new(100_000, SEED);
    let conns = fill(&table, 100_000);
    let mut index = Index::new(1 << 20);
    let mut asked_again = 0;
    for (count, conn) in conns.iter().enumerate() {
        both_found(&mut index, &table, conn);
        let old = conns[count / 2].out_tuple();
        asked_again += usize::from(index.find(old.hash(SEED), &old).is_none());
        both_found(&mut index, &table, &conns[count / 2]);
        index.settle();
        index.sweep();
    }
    assert!(asked_again < 1500, "{asked_again} asked for again");
    let alone = |conn: &&Arc<Conn>| {
        let tuple = conn.in_tuple();
        index.find(tuple.hash(SEED), &tuple).is_some()
    };
    // Shortly before a growth some neighbourhoods are full; who is pushed out comes back when asked for.
    let known = conns.iter().filter(alone).count();
    assert!(known > 96_000, "{known} known");
}

/// Whole new slots are never made at once: what a growth costs is spread over the connections before it.
#[test]
fn the_next_slots_are_ready_before_they_are_needed() {
    let table = ConnTable::new(40_000, SEED);
    let mut index = Index::new(1 << 20);
    let (mut before, mut growths, mut returned) = ((index.slots(), index.ready()), 0, 0);
    for conn in fill(&table, 40_000) {
        for direction in [Direction::In, Direction::Out] {
            index.remember(conn.tuple(direction).hash(SEED), direction, &conn);
            let after = (index.slots(), index.ready());
            if after.0 == before.0 {
                assert!(after.1 <= before.1 + 64, "{before:?} {after:?}");
            } else {
                assert!(before.1 + 64 >= after.0, "{before:?} {after:?}");
                assert_eq!(after.1, 0);
                // It grows as soon as three quarters are in use.
                assert_eq!(after.0, before.0 * 2);
                growths += 1;
            }
            before = after;
        }
        index.settle();
        returned += usize::from(index.take_spent().is_some());
    }
    assert_eq!((growths, returned), (5, 5), "{before:?}");
}

/// Growing again before the growth before is done may forget, but not lie.
#[test]
fn growing_without_a_breath_between_loses_nobody() {
    let table = ConnTable::new(100_000, SEED);
    let conns = fill(&table, 20_000);
    let mut index = Index::new(1 << 20);
    for conn in conns.iter().chain(&conns) {
        both_found(&mut index, &table, conn);
    }
    for _ in 0..1000 {
        index.settle();
        index.sweep();
    }
    assert!(index.used() > 39_600, "{} are known", index.used());
}

#[test]
fn whoever_left_the_table_is_not_found_and_soon_not_kept() {
    let table = ConnTable::new(100_000, SEED);
    let conns = fill(&table, 5000);
    let mut index = Index::new(1 << 20);
    for conn in &conns {
        both_found(&mut index, &table, conn);
        index.settle();
        index.sweep();
    }
    for (number, conn) in conns.iter().enumerate() {
        table.remove(conn);
        for direction in [Direction::In, Direction::Out] {
            let tuple = conn.tuple(direction);
            assert!(index.find(tuple.hash(SEED), &tuple).is_none());
            // Every second one is left to the sweep.
            if number % 2 == 0 {
                index.forget(tuple.hash(SEED), conn);
            }
        }
    }
    assert!(index.used() > 4900, "{} were left", index.used());
    while index.used() > 0 {
        let before = index.used();
        for _ in 0..1024 {
            index.settle();
            index.sweep();
        }
        assert!(index.used() < before, "a round of sweeps finds some");
    }
    for _ in 0..1024 {
        index.settle();
        index.sweep();
    }
    assert!(conns.iter().all(|conn| Arc::strong_count(conn) == 1));
}

/// Hashes with one home and different tags.
fn neighbours(count: u64) -> Vec<u64> {
    (1..=count).map(|tag| 9 << 32 | tag << 1).collect()
}

#[test]
fn a_hole_hides_the_ones_behind_it_until_they_come_back() {
    let table = ConnTable::new(10, SEED);
    let conns = fill(&table, 3);
    let hashes = neighbours(3);
    let mut index = Index::new(1 << 12);
    for (conn, hash) in conns.iter().zip(&hashes) {
        index.remember(*hash, Direction::In, conn);
    }
    let is_found =
        |index: &Index, at: usize| index.find(hashes[at], &conns[at].in_tuple()).is_some();
    assert!((0..3).all(|at| is_found(&index, at)));
    table.remove(&conns[1]);
    index.forget(hashes[1], &conns[1]);
    assert!(is_found(&index, 0) && !is_found(&index, 1) && !is_found(&index, 2));
    index.remember(hashes[2], Direction::In, &conns[2]);
    assert!(is_found(&index, 2));
    // It has two slots now, one on each side of the hole; when the entry goes, both empty.
    assert_eq!(index.used(), 3);
    table.remove(&conns[2]);
    index.forget(hashes[2], &conns[2]);
    assert_eq!(index.used(), 1);
    assert_eq!(Arc::strong_count(&conns[2]), 1);
    assert!(is_found(&index, 0));
}

#[test]
fn a_full_neighbourhood_forgets_one_and_asks_the_table_for_it() {
    let table = ConnTable::new(100, SEED);
    let conns = fill(&table, 17);
    let hashes = neighbours(17);
    let mut index = Index::new(1 << 12);
    for (conn, hash) in conns.iter().zip(&hashes) {
        index.remember(*hash, Direction::In, conn);
        assert!(index.find(*hash, &conn.in_tuple()).is_some());
    }
    assert_eq!(index.used(), 16);
    let found = |at: &usize| index.find(hashes[*at], &conns[*at].in_tuple()).is_some();
    assert_eq!((0..17).filter(found).count(), 16);
}

#[test]
fn equal_hashes_are_told_apart_by_the_whole_tuple() {
    let table = ConnTable::new(10, SEED);
    let conns = fill(&table, 2);
    let mut index = Index::new(1 << 12);
    index.remember(4, Direction::In, &conns[0]);
    assert!(index.find(4, &conns[1].in_tuple()).is_none());
    assert!(index.find(5, &conns[0].out_tuple()).is_none());
    index.remember(5, Direction::Out, &conns[0]);
    let (found, direction) = index
        .find(4, &conns[0].out_tuple())
        .expect("the lowest bit is the direction's");
    assert!(Arc::ptr_eq(found, &conns[0]) && direction == Direction::Out);
}

#[test]
fn at_its_bound_it_forgets_instead_of_growing() {
    let table = ConnTable::new(100_000, SEED);
    let conns = fill(&table, 50_000);
    let mut index = Index::new(5000);
    for conn in &conns {
        both_found(&mut index, &table, conn);
        assert!(index.used() <= 8192, "the bound, as a power of two");
    }
    assert!(index.used() > 8000, "and it is made use of");
    conns
        .iter()
        .for_each(|conn| both_found(&mut index, &table, conn));
}

#[test]
fn without_slots_it_remembers_nothing() {
    let table = ConnTable::new(10, SEED);
    let conns = fill(&table, 2);
    let mut index = Index::new(0);
    for conn in &conns {
        both_found(&mut index, &table, conn);
        let tuple = tuple(Protocol::UDP, 0);
        assert!(index.find(tuple.hash(SEED), &tuple).is_none());
        index.forget(tuple.hash(SEED), conn);
        index.settle();
        index.sweep();
    }
    assert_eq!(index.used(), 0);
    assert_eq!(index.warm(1) ^ index.warm_conn(1), 0);
}
