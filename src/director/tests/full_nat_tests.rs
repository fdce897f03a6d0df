//! Full NAT: both ends are rewritten, both ways, errors too; local ends run out and come back.

use super::*;
use crate::lvs::{Masquerading, Persistence, SourcePool};

const LOCAL: [u8; 4] = [192, 168, 1, 250];
const OTHER: [u8; 4] = [192, 168, 1, 251];

fn pool(addresses: &[[u8; 4]], ports: (u16, u16)) -> SourcePool {
    let addresses = addresses.iter().map(|own| (*own).into()).collect();
    SourcePool { addresses, ports }
}

fn full(real_port: u16, pool: &SourcePool, change: impl FnOnce(&mut Service)) -> House {
    let as_full_nat = |parts: &mut Parts| {
        let service = Arc::get_mut(&mut parts.services[0]).expect("nobody else has it");
        service.reals[0].method = ForwardMethod::FullNat;
        change(service);
    };
    house_as(web(), real_port, true, as_full_nat, |snapshot| {
        snapshot.with_pools(&Masquerading::default(), pool)
    })
}

fn one_port() -> SourcePool {
    pool(&[LOCAL], (5000, 5000))
}

fn error_quoting(to: (Mac, Mac), ips: ([u8; 4], [u8; 4]), quoted: &[u8]) -> Vec<u8> {
    icmp(to, ips, [3, 4, 0, 0, 0, 0, 3, 132], quoted)
}

/// Source, target, and the ends that the quoted packet names; both sums are right.
fn error_seen(frame: &[u8]) -> (IpAddr, IpAddr, Endpoint, Endpoint) {
    let layout = Layout::parse(frame, false).expect("a good frame");
    let mut bytes = frame.to_vec();
    let packet = Packet::over(&mut bytes, layout, Offload::default());
    assert!(packet.icmp_sum_holds());
    let quote = packet.quote().expect("it quotes something");
    let header = &frame[usize::from(layout.l4) + 8..][..20];
    assert_eq!(crate::wire::checksum::Sum::of(header).folded(), 0xffff);
    (
        packet.source(),
        packet.target(),
        Endpoint::new(quote.source, quote.source_port),
        Endpoint::new(quote.target, quote.target_port),
    )
}

#[test]
fn both_ends_are_rewritten_there_and_back() {
    let mut house = full(8080, &one_port(), |_| {});
    let (out, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    assert!(out.is_empty());
    let (local, real) = (end(LOCAL, 5000), end(RIP, 8080));
    assert_eq!(seen(&inside[0].bytes), (local, real, 63));
    let (out, _) = house.inside_says(&tcp(OUT, (RIP, LOCAL), (8080, 5000), "SA"));
    assert_eq!(seen(&out[0].bytes), (end(VIP, 80), end(CLIENT, 40000), 63));
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "A"));
    let mut entries = Vec::new();
    house
        .table
        .for_each(|conn| entries.push((conn.state_name(), conn.local(), conn.real())));
    assert_eq!(entries, [("ESTABLISHED", Some(local), real)]);
    assert_eq!(house.live.total(), 1);
    assert_eq!(house.table.whole_keys(), 1);
    house.now += Duration::from_secs(2000);
    for _ in 0..4 {
        house.breathe();
    }
    let left = (
        house.table.len(),
        house.table.whole_keys(),
        house.live.total(),
    );
    assert_eq!(left, (0, 0, 0));
}

#[test]
fn a_second_worker_finds_the_answer() {
    let mut house = full(80, &one_port(), |_| {});
    let snapshot = Arc::clone(house.worker.snapshot());
    let (outside, inside) = (MemoryNic::new(false), MemoryNic::new(false));
    let setup = WorkerSetup {
        number: 0,
        table: Arc::clone(&house.table),
        neighbours: Arc::new(Neighbours::new(16)),
        snapshot,
        ports: vec![outside.halves(), inside.halves()],
        seed: 2,
        story: false,
    };
    let mut other = Worker::new(setup, house.now);
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    inside.put_bytes(&tcp(OUT, (RIP, LOCAL), (80, 5000), "SA"));
    other.breathe(house.now);
    let out = outside.take();
    assert_eq!(seen(&out[0].bytes), (end(VIP, 80), end(CLIENT, 40000), 63));
}

#[test]
fn local_ends_run_out_are_counted_and_come_back() {
    let mut house = full(80, &pool(&[LOCAL, OTHER], (5000, 5001)), |_| {});
    for client in 0..10 {
        let (_, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000 + client, 80), "S"));
        assert_eq!(inside.len(), usize::from(client < 4), "client {client}");
    }
    let dropped = house.worker.account().dropped_for(DropReason::NoSourcePort);
    assert_eq!((dropped, house.table.len(), house.live.total()), (6, 4, 4));
    let mut locals = Vec::new();
    house.table.for_each(|conn| locals.push(conn.local()));
    locals.sort_unstable();
    locals.dedup();
    assert_eq!(locals.len(), 4, "each has its own");
    house.now += Duration::from_secs(61);
    for _ in 0..3 {
        house.breathe();
    }
    let (_, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (50000, 80), "S"));
    assert_eq!(inside.len(), 1);
}

#[test]
fn errors_follow_both_ways() {
    let mut house = full(8080, &one_port(), |_| {});
    let (_, inside) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    let (out, _) = house.inside_says(&tcp(OUT, (RIP, LOCAL), (8080, 5000), "SA"));
    // A router outside complains about the answer: the real server hears of it from the local end.
    let router = [7, 7, 7, 7];
    let error = error_quoting(IN, (router, VIP), &out[0].bytes[14..]);
    let (_, inward) = house.outside_says(&error);
    let (real, local) = (end(RIP, 8080), end(LOCAL, 5000));
    let heard = (LOCAL.into(), RIP.into(), real, local);
    assert_eq!(error_seen(&inward[0].bytes), heard);
    // And one inside about the question: the client hears of it from the VIP.
    let router = [192, 168, 1, 77];
    let error = error_quoting(OUT, (router, LOCAL), &inside[0].bytes[14..]);
    let (outward, _) = house.inside_says(&error);
    let heard = (VIP.into(), CLIENT.into(), end(CLIENT, 40000), end(VIP, 80));
    assert_eq!(error_seen(&outward[0].bytes), heard);
}

#[test]
fn the_director_answers_for_the_pool_where_it_leads_to() {
    let mut house = full(80, &one_port(), |_| {});
    let question = |to: Mac, sender: [u8; 4]| {
        let mut frame = Vec::new();
        crate::wire::arp::Arp::request(to, sender.into(), LOCAL.into()).frame(&mut frame);
        frame
    };
    let (out, inside) = house.inside_says(&question(SERVER, RIP));
    assert_eq!((out.len(), inside.len()), (0, 1));
    assert_eq!(&inside[0].bytes[6..12], INSIDE.0);
    let (out, inside) = house.outside_says(&question(GATEWAY, [10, 0, 0, 254]));
    assert_eq!((out.len(), inside.len()), (0, 0), "not on the other side");
    // A segment that nobody expects is reset, not passed to a kernel that does not know the address.
    let (_, inside) = house.inside_says(&tcp(OUT, (RIP, LOCAL), (80, 6000), "A"));
    let reset = (end(LOCAL, 6000), end(RIP, 80), 64);
    assert_eq!(seen(&inside[0].bytes), reset);
}

#[test]
fn a_template_controls_and_is_assured() {
    let persistent = |service: &mut Service| {
        service.spec.persistence = Some(Persistence { timeout_s: 100 });
    };
    let mut house = full(80, &pool(&[LOCAL], (5000, 5009)), persistent);
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    let mut port = 0;
    house
        .table
        .for_each(|conn| port = conn.local().map_or(port, |local| local.port));
    house.inside_says(&tcp(OUT, (RIP, LOCAL), (80, port), "SA"));
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "A"));
    let mut seen = Vec::new();
    house.table.for_each(|conn| {
        let controlled = conn.control().is_some_and(|control| control.is_template());
        seen.push((
            conn.is_template(),
            conn.is_assured(),
            controlled,
            conn.is_controlling(),
        ));
    });
    seen.sort_unstable();
    assert_eq!(
        seen,
        [(false, false, true, false), (true, true, false, true)]
    );
    house.now += Duration::from_secs(3000);
    for _ in 0..8 {
        house.breathe();
        house.now += Duration::from_secs(60);
    }
    let left = (
        house.table.len(),
        house.table.whole_keys(),
        house.live.total(),
    );
    assert_eq!(left, (0, 0, 0));
}

#[test]
fn datagrams_scheduled_one_by_one_still_find_their_way_back() {
    let as_full_nat = |parts: &mut Parts| {
        let service = Arc::get_mut(&mut parts.services[0]).expect("nobody else has it");
        service.reals[0].method = ForwardMethod::FullNat;
        service.spec.flags = crate::lvs::ServiceFlags(crate::lvs::ServiceFlags::ONE_PACKET);
    };
    let key = ServiceKey::udp(VIP.into(), 53);
    let mut house = house_as(key, 53, true, as_full_nat, |snapshot| {
        snapshot.with_pools(&Masquerading::default(), &one_port())
    });
    house.outside_says(&udp(IN, (CLIENT, VIP), (40000, 53), b"?"));
    let (out, _) = house.inside_says(&udp(OUT, (RIP, LOCAL), (53, 5000), b"!"));
    let layout = Layout::parse(&out[0].bytes, false).expect("a good frame");
    let mut bytes = out[0].bytes.clone();
    let packet = Packet::over(&mut bytes, layout, Offload::default());
    assert!(packet.transport_sum_holds());
    let ends = (
        packet.source(),
        packet.source_port(),
        packet.target(),
        packet.target_port(),
    );
    assert_eq!(ends, (VIP.into(), 53, CLIENT.into(), 40000));
}

#[test]
fn a_story_tells_both_ends() {
    let mut house = full(8080, &one_port(), |_| {});
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    house.inside_says(&tcp(OUT, (RIP, LOCAL), (8080, 5000), "SA"));
    house.worker.handle_order(Order::Audit(1), house.now);
    let Some(Report::Account { story, .. }) = house.worker.poll_report() else {
        panic!("an account")
    };
    let story = story.join("\n");
    for wanted in [
        "FullNAT: target 10.0.0.100:80 -> 192.168.1.11:8080, \
         source 172.16.3.9:40000 -> 192.168.1.250:5000, ttl 63",
        "FullNAT: source 192.168.1.11:8080 -> 10.0.0.100:80, \
         target 192.168.1.250:5000 -> 172.16.3.9:40000, ttl 63",
    ] {
        assert!(story.contains(wanted), "`{wanted}` is missing in\n{story}");
    }
}
