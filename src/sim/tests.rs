//! Laws that cannot be broken find nothing: each is broken here on purpose.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::conn::{Conn, Opening};
use crate::lvs::tuple::pack;
use crate::lvs::{Endpoint, ForwardMethod, Protocol, RealServer, Tuple};

/// A run in which connections are open.
fn run() -> Sim {
    run_where(|_| true)
}

/// The first such run that is also like this.
fn run_where(wanted: impl Fn(&Sim) -> bool) -> Sim {
    for seed in 0.. {
        let mut sim = Sim::new(seed, false);
        sim.begin().expect("it holds");
        for _ in 0..30 {
            sim.step().expect("it holds");
        }
        if sim.house.table().len() > 3 && wanted(&sim) {
            return sim;
        }
    }
    unreachable!("some seed opens connections");
}

fn entry(sim: &Sim, wanted: impl Fn(&Conn) -> bool) -> Arc<Conn> {
    let mut found = None;
    sim.house.table().for_each(|conn| {
        if found.is_none() && wanted(conn) && !conn.is_due(sim.now) {
            found = Some(Arc::clone(conn));
        }
    });
    found.expect("there is one")
}

fn a_real(sim: &Sim) -> RealServer {
    let snapshot = sim.house.snapshot();
    let mut reals = snapshot.services.iter().flat_map(|service| &service.reals);
    reals.next().expect("there are real servers").clone()
}

/// The number of the law that something notices.
fn law(result: Result<(), Broken>) -> u8 {
    result.expect_err("it should be noticed").law
}

#[test]
fn an_entry_that_leaves_too_early_is_noticed() {
    // `drop_entry` may take half-open entries at any time.
    let mut sim = run_where(|sim| !sim.house.table().defences().drops_entries());
    let conn = entry(&sim, |conn| !conn.is_template() && !conn.is_controlling());
    sim.house.table().remove(&conn);
    assert_eq!(law(sim.after_event()), 1);
}

#[test]
fn an_entry_from_nowhere_is_noticed() {
    let mut sim = run();
    let real = a_real(&sim);
    let client = Endpoint::new(topology::CLIENTS[0], 9);
    let tuple = Tuple::from(crate::lvs::Flow {
        protocol: Protocol::TCP,
        source: client,
        target: Endpoint::new(topology::VIPS[0], 80),
    });
    let opening = Opening {
        tuple,
        real: (pack(real.key.0.address), 80),
        method: ForwardMethod::Masq,
        server: Some(Arc::clone(&real.live)),
        control: None,
        mark: 0,
        template: false,
    };
    let conn = Arc::new(Conn::open(opening, sim.now));
    sim.house.table().insert(conn).expect("there is room");
    assert_eq!(law(sim.after_event()), 2);
}

#[test]
fn a_count_that_is_one_off_is_noticed() {
    let mut sim = run();
    a_real(&sim).live.inactive.fetch_add(1, Relaxed);
    assert_eq!(law(sim.after_event()), 3);
}

#[test]
fn a_deadline_that_does_not_start_anew_is_noticed() {
    let mut sim = run();
    let conn = entry(&sim, |conn| !conn.is_template());
    // As if its time had been up all along, and somebody served it all the same.
    conn.end_now(sim.now);
    sim.after_event().expect("an entry may be overdue");
    conn.restart(60, sim.now);
    let worker = 0;
    assert_eq!(law(sim.breathe(worker)), 1);
}

#[test]
fn a_frame_that_shows_a_rip_is_noticed() {
    let mut sim = run();
    let client = Endpoint::new(topology::CLIENTS[0], 20_001);
    let real = Endpoint::new(topology::REALS[0], 80);
    let packet = packet::udp(real, client, b"secret");
    let (to, from) = (
        topology::mac_of(client.address),
        topology::DIRECTOR[topology::PUBLIC],
    );
    let frame = packet::frame(to, from, &packet);
    let heard = sim.hosts.hear(topology::PUBLIC, &frame, sim.now);
    assert_eq!(law(heard), 4);
    let quoting = packet::complaint(topology::VIPS[0], 3, 3, &packet::udp(client, real, b"x"));
    let frame = packet::frame(to, from, &quoting);
    let heard = sim.hosts.hear(topology::PUBLIC, &frame, sim.now);
    assert_eq!(law(heard), 4);
}

#[test]
fn a_wrong_sum_is_noticed() {
    let mut sim = run();
    let client = Endpoint::new(topology::CLIENTS[0], 20_001);
    let vip = Endpoint::new(topology::VIPS[0], 80);
    let mut packet = packet::udp(vip, client, b"payload");
    *packet.last_mut().expect("a byte") ^= 1;
    let (to, from) = (
        topology::mac_of(client.address),
        topology::DIRECTOR[topology::PUBLIC],
    );
    let frame = packet::frame(to, from, &packet);
    let heard = sim.hosts.hear(topology::PUBLIC, &frame, sim.now);
    assert_eq!(law(heard), 4);
}

#[test]
fn two_real_servers_of_one_talk_are_noticed() {
    let mut sim = run();
    let to = Endpoint::new(topology::VIPS[0], 80);
    let ending = talk::Ending::Stay;
    let connect = sim
        .hosts
        .connect((topology::CLIENTS[0], to), None, (1, ending), sim.now);
    sim.laws.begin(connect);
    let id = connect.id;
    let at = |number: usize| host::Sighting {
        id,
        real: Endpoint::new(topology::REALS[number], 80),
    };
    sim.laws.see(at(0)).expect("the first one");
    sim.laws.see(at(0)).expect("the same one");
    assert_eq!(law(sim.laws.see(at(1))), 1);
}

#[test]
fn what_is_left_at_the_end_is_noticed() {
    let mut sim = run();
    assert!(!sim.house.table().is_empty());
    assert_eq!(law(sim.check_empty()), 8);
    sim.finish().expect("nothing is left");
}
