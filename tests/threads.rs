//! The connection table and its entries under several threads at once, as several workers use them:
//! twins, entries that leave while others look, counts that come out exact.

use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::thread;

use ulvs::conn::{Conn, ConnTable, Direction, Opening};
use ulvs::lvs::tuple::{Tuple, pack};
use ulvs::lvs::{
    Endpoint, Flow, ForwardMethod, Protocol, RealLive, Segment, TcpFlags, Thresholds, Timeouts,
};
use ulvs::rng::Rng;
use ulvs::time::{Duration, Instant};

const THREADS: u64 = 4;

fn server() -> Arc<RealLive> {
    let endpoint = Endpoint::new([192, 168, 1, 11].into(), 8080);
    Arc::new(RealLive::new(1, endpoint, 1))
}

fn tuple(client: u32) -> Tuple {
    let [_, b, c, d] = client.to_be_bytes();
    Tuple::from(Flow {
        protocol: Protocol::TCP,
        source: Endpoint::new([10, b, c, d].into(), 40000),
        target: Endpoint::new([1, 2, 3, 1].into(), 80),
    })
}

fn conn(client: u32, server: &Arc<RealLive>) -> Arc<Conn> {
    let opening = Opening {
        tuple: tuple(client),
        real: (pack(server.address()), server.endpoint.port),
        method: ForwardMethod::Masq,
        server: Some(Arc::clone(server)),
        control: None,
        mark: 0,
        template: false,
    };
    Arc::new(Conn::open(opening, Instant::ZERO))
}

fn counts(server: &RealLive) -> (u32, u32) {
    (server.active.load(Relaxed), server.inactive.load(Relaxed))
}

/// Every worker sees the first packet of the same connections: each connection exists once.
#[test]
fn of_many_twins_one_is_kept_and_all_agree() {
    const CONNS: u32 = 2000;
    let (server, table) = (server(), ConnTable::new(CONNS as usize * 4, 7));
    let start = Barrier::new(THREADS as usize);
    let kept: Vec<Vec<Arc<Conn>>> = thread::scope(|scope| {
        let open = || {
            start.wait();
            let insert = |client| table.insert(conn(client, &server));
            (0..CONNS)
                .map(|client| insert(client).expect("there is room"))
                .collect()
        };
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(open)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect()
    });
    assert_eq!((table.len(), counts(&server)), (CONNS as usize, (0, CONNS)));
    for (client, first) in kept[0].iter().enumerate() {
        assert!(kept.iter().all(|other| Arc::ptr_eq(&other[client], first)));
        assert!(!first.is_gone());
    }
}

/// Workers open, find and remove at random while somebody lists: nothing is shown twice or half, and
/// in the end length and counts are exact.
#[test]
fn entries_come_and_go_while_somebody_lists() {
    const CLIENTS: u64 = 500;
    let (server, table) = (server(), ConnTable::new(200, 7));
    let (done, listed) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let work = |seed: u64| {
            let mut rng = Rng::new(seed);
            for _ in 0..10_000 {
                let client = rng.below(CLIENTS) as u32;
                if rng.chance(50) {
                    let _ = table.insert(conn(client, &server));
                } else if let Some((found, _)) = table.find(&tuple(client)) {
                    assert_eq!(found.in_tuple(), tuple(client));
                    table.remove(&found);
                }
            }
        };
        let workers: Vec<_> = (0..THREADS)
            .map(|seed| scope.spawn(move || work(seed)))
            .collect();
        scope.spawn(|| {
            while !done.load(Relaxed) {
                let mut seen = std::collections::BTreeSet::new();
                table.for_each(|conn| {
                    seen.insert(conn.client());
                });
                assert!(seen.len() <= CLIENTS as usize);
                listed.fetch_add(1, Relaxed);
            }
        });
        for worker in workers {
            worker.join().expect("no panic");
        }
        done.store(true, Relaxed);
    });
    assert!(listed.load(Relaxed) > 0);
    let mut left = Vec::new();
    table.for_each(|conn| left.push(Arc::clone(conn)));
    assert_eq!(left.len(), table.len());
    assert_eq!(counts(&server), (0, left.len() as u32));
    assert!(
        table.refused() > 0,
        "the bound was met, or this shows nothing"
    );
    left.iter().for_each(|conn| table.remove(conn));
    assert_eq!((table.len(), counts(&server)), (0, (0, 0)));
}

/// One thread sees the client's segments, the other the server's, of the same connections, while a
/// third takes the connections out. Whatever the order, nothing is counted that is not there.
#[test]
fn both_directions_step_while_a_third_removes() {
    const CONNS: u32 = 400;
    let (server, table) = (server(), ConnTable::new(10_000, 7));
    server.set_thresholds(Thresholds {
        upper: 2 * CONNS,
        lower: 0,
    });
    let timeouts = Timeouts::default();
    let done = AtomicBool::new(false);
    let conns: Vec<_> = (0..CONNS)
        .map(|client| table.insert(conn(client, &server)).expect("there is room"))
        .collect();
    // SYN makes an entry active, FIN and RST inactive: the counts move with nearly every step.
    let step = |direction: Direction, seed: u64| {
        let mut rng = Rng::new(seed);
        let mut steps = 0u64;
        while !done.load(Relaxed) || steps < 20_000 {
            let flags = [TcpFlags::SYN, TcpFlags::FIN, TcpFlags::RST, TcpFlags::ACK];
            let segment = Segment::Tcp(TcpFlags(flags[rng.below(4) as usize]));
            let conn = &conns[rng.below(u64::from(CONNS)) as usize];
            let now = Instant::ZERO + Duration::from_nanos(steps);
            conn.step(direction, segment, &timeouts, now);
            steps += 1;
        }
    };
    let watch = || {
        while !done.load(Relaxed) {
            // What a scheduler and a listing see in the middle of it.
            assert!(server.total() <= 2 * CONNS, "{}", server.total());
            server.mark_if_overloaded();
            assert!(!server.overloaded.load(Relaxed));
        }
    };
    thread::scope(|scope| {
        scope.spawn(|| step(Direction::In, 1));
        scope.spawn(|| step(Direction::Out, 2));
        scope.spawn(watch);
        let mut rng = Rng::new(3);
        for half in 0..2 {
            for at in (half..CONNS as usize).step_by(2) {
                for _ in 0..rng.below(3) {
                    thread::yield_now();
                }
                table.remove(&conns[at]);
            }
        }
        done.store(true, Relaxed);
    });
    assert!(table.is_empty());
    assert_eq!(counts(&server), (0, 0));
    assert!(!server.overloaded.load(Relaxed));
}

/// The same without a removal: what is counted is what the entries say.
#[test]
fn counts_are_exact_when_both_directions_step() {
    const CONNS: u32 = 50;
    let (server, timeouts) = (server(), Timeouts::default());
    let conns: Vec<_> = (0..CONNS).map(|client| conn(client, &server)).collect();
    thread::scope(|scope| {
        for (seed, direction) in [(1, Direction::In), (2, Direction::Out)] {
            let (conns, timeouts) = (&conns, &timeouts);
            scope.spawn(move || {
                let mut rng = Rng::new(seed);
                for _ in 0..100_000 {
                    let flags = TcpFlags(rng.below(32) as u8);
                    let conn = &conns[rng.below(u64::from(CONNS)) as usize];
                    conn.step(direction, Segment::Tcp(flags), timeouts, Instant::ZERO);
                    conn.count_in();
                }
            });
        }
    });
    let active = conns.iter().filter(|conn| conn.state().is_active()).count() as u32;
    assert_eq!(counts(&server), (active, CONNS - active));
}
