//! Masquerading: what hosts inside may open outwards, under which end, and what never passes.

use super::*;
use crate::lvs::{Masquerading, SourcePool};

const PUBLIC: [u8; 4] = [10, 0, 0, 7];
const WORLD: [u8; 4] = [8, 8, 8, 8];
const HOST: [u8; 4] = [192, 168, 1, 12];

fn inside_net() -> Masquerading {
    Masquerading {
        prefixes: vec![([192, 168, 1, 0].into(), 24)],
        pool: SourcePool {
            addresses: vec![PUBLIC.into()],
            ..SourcePool::default()
        },
    }
}

fn masq_with(masquerading: &Masquerading, change: impl FnOnce(&mut Parts)) -> House {
    let more = |parts: &mut Parts| {
        parts.ports[1].neighbours.push((HOST.into(), SERVER));
        change(parts);
    };
    house_as(web(), 80, true, more, |snapshot| {
        snapshot.with_pools(masquerading, &SourcePool::default())
    })
}

fn masq() -> House {
    masq_with(&inside_net(), |_| {})
}

fn echo(to: (Mac, Mac), ips: ([u8; 4], [u8; 4]), (kind, id): (u8, u16)) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    icmp(to, ips, [kind, 0, 0, 0, high, low, 0, 1], b"ping")
}

fn asks(id: u16) -> (u8, u16) {
    (8, id)
}

fn replies(id: u16) -> (u8, u16) {
    (0, id)
}

/// Source, target and identifier of an echo whose sums are right.
fn echo_seen(frame: &[u8]) -> (IpAddr, IpAddr, u16) {
    let layout = Layout::parse(frame, false).expect("a good frame");
    let mut bytes = frame.to_vec();
    let packet = Packet::over(&mut bytes, layout, Offload::default());
    assert!(packet.icmp_sum_holds());
    let echo = packet.echo().expect("an echo");
    (packet.source(), packet.target(), echo.ident)
}

fn dropped(house: &House, reason: DropReason) -> u64 {
    house.worker.account().dropped_for(reason)
}

#[test]
fn a_host_speaks_under_the_public_address_and_is_answered() {
    let mut house = masq();
    let (out, inside) = house.inside_says(&tcp(OUT, (RIP, WORLD), (5000, 443), "S"));
    assert!(inside.is_empty());
    assert_eq!(
        seen(&out[0].bytes),
        (end(PUBLIC, 5000), end(WORLD, 443), 63)
    );
    let (_, inside) = house.outside_says(&tcp(IN, (WORLD, PUBLIC), (443, 5000), "SA"));
    assert_eq!(
        seen(&inside[0].bytes),
        (end(WORLD, 443), end(RIP, 5000), 63)
    );
    house.inside_says(&tcp(OUT, (RIP, WORLD), (5000, 443), "A"));
    let mut entries = Vec::new();
    house.table.for_each_masqueraded(|conn| {
        entries.push((conn.state_name(), conn.real(), conn.virt(), conn.client()));
    });
    let wanted = (
        "ESTABLISHED",
        end(RIP, 5000),
        end(PUBLIC, 5000),
        end(WORLD, 443),
    );
    assert_eq!(entries, [wanted]);
    assert_eq!((house.table.len(), house.table.masqueraded()), (0, 1));
    house.now += Duration::from_secs(901);
    for _ in 0..3 {
        house.breathe();
    }
    assert_eq!(
        (house.table.masqueraded(), house.table.whole_keys()),
        (0, 0)
    );
}

#[test]
fn the_port_is_kept_where_it_is_free_and_changed_where_not() {
    let mut house = masq();
    let (first, _) = house.inside_says(&udp(OUT, (RIP, WORLD), (5000, 53), b"?"));
    let (second, _) = house.inside_says(&udp(OUT, (HOST, WORLD), (5000, 53), b"?"));
    let (third, _) = house.inside_says(&udp(OUT, (HOST, [9, 9, 9, 9]), (5000, 53), b"?"));
    let port = |frame: &MemoryFrame| u16::from_be_bytes([frame.bytes[34], frame.bytes[35]]);
    assert_eq!(port(&first[0]), 5000);
    assert_ne!(
        port(&second[0]),
        5000,
        "the far end could not tell them apart"
    );
    assert_eq!(port(&third[0]), 5000, "another far end can");
    let back = udp(IN, (WORLD, PUBLIC), (53, port(&second[0])), b"!");
    let (_, inside) = house.outside_says(&back);
    assert_eq!(&inside[0].bytes[30..34], HOST);
    assert_eq!(&inside[0].bytes[36..38], 5000u16.to_be_bytes());
}

#[test]
fn echoes_pass_with_identifiers_of_their_own() {
    let mut house = masq();
    let (out, _) = house.inside_says(&echo(OUT, (RIP, WORLD), asks(2000)));
    assert_eq!(
        echo_seen(&out[0].bytes),
        (PUBLIC.into(), WORLD.into(), 2000)
    );
    let (out, _) = house.inside_says(&echo(OUT, (HOST, WORLD), asks(2000)));
    let (_, _, other) = echo_seen(&out[0].bytes);
    assert_ne!(other, 2000);
    let (_, inside) = house.outside_says(&echo(IN, (WORLD, PUBLIC), replies(other)));
    assert_eq!(
        echo_seen(&inside[0].bytes),
        (WORLD.into(), HOST.into(), 2000)
    );
    let (_, inside) = house.outside_says(&echo(IN, (WORLD, PUBLIC), replies(2000)));
    assert_eq!(
        echo_seen(&inside[0].bytes),
        (WORLD.into(), RIP.into(), 2000)
    );
    let (_, inside) = house.outside_says(&echo(IN, (WORLD, PUBLIC), replies(3)));
    assert!(inside.is_empty(), "nobody asked");
    // The director's own addresses answer for themselves, and open nothing.
    let (out, inside) = house.inside_says(&echo(OUT, (RIP, VIP), asks(9)));
    assert_eq!(
        (out.len(), inside.len(), house.table.masqueraded()),
        (0, 1, 2)
    );
    house.now += Duration::from_secs(31);
    for _ in 0..3 {
        house.breathe();
    }
    assert_eq!(
        (house.table.masqueraded(), house.table.whole_keys()),
        (0, 0)
    );
}

#[test]
fn errors_about_them_follow_both_ways() {
    let mut house = masq();
    let (out, _) = house.inside_says(&echo(OUT, (RIP, WORLD), asks(2000)));
    let mut pinged = echo(OUT, (RIP, WORLD), asks(2000));
    let router = [7, 7, 7, 7];
    let error = |to: (Mac, Mac), ips: ([u8; 4], [u8; 4]), quoted: &[u8]| {
        icmp(to, ips, [11, 0, 0, 0, 0, 0, 0, 0], quoted)
    };
    let (_, inside) = house.outside_says(&error(IN, (router, PUBLIC), &out[0].bytes[14..]));
    // The host hears what it sent quoted, byte for byte but for the hop that it has lost.
    let layout = Layout::parse(&pinged, false).expect("a good frame");
    Packet::over(&mut pinged, layout, Offload::default()).decrement_ttl();
    assert_eq!(&inside[0].bytes[26..34], [router, RIP].concat());
    assert_eq!(&inside[0].bytes[42..], &pinged[14..]);
    let (out, _) = house.inside_says(&tcp(OUT, (RIP, WORLD), (5000, 443), "S"));
    let (_, inside) = house.outside_says(&error(IN, (router, PUBLIC), &out[0].bytes[14..]));
    assert_eq!(&inside[0].bytes[54..58], RIP);
    let (_, answer) = house.outside_says(&tcp(IN, (WORLD, PUBLIC), (443, 5000), "SA"));
    let (out, _) = house.inside_says(&error(OUT, (HOST, WORLD), &answer[0].bytes[14..]));
    assert_eq!(&out[0].bytes[26..34], [PUBLIC, WORLD].concat());
    assert_eq!(&out[0].bytes[58..62], PUBLIC);
}

#[test]
fn nothing_else_passes() {
    let mut house = masq();
    let stranger = [192, 168, 2, 9];
    let mut left = Vec::new();
    for frame in [
        // From outside the prefixes, from a private address on the wrong side, and among ourselves.
        (1, tcp(OUT, (stranger, WORLD), (5000, 443), "S")),
        (0, tcp(IN, (HOST, WORLD), (5000, 443), "S")),
        (1, tcp(OUT, (HOST, RIP), (5000, 443), "S")),
        // Nothing that opens nothing, to nobody or to everybody.
        (1, tcp(OUT, (HOST, WORLD), (5000, 443), "A")),
        (1, tcp(OUT, (HOST, WORLD), (5000, 443), "R")),
        (1, udp(OUT, (HOST, [255, 255, 255, 255]), (68, 67), b"?")),
        (1, udp(OUT, (HOST, [224, 0, 0, 251]), (5353, 5353), b"?")),
        (1, echo(OUT, (HOST, WORLD), replies(7))),
        // And from outside to a private address, whatever it is.
        (0, tcp(IN, (WORLD, HOST), (443, 5000), "S")),
        (0, tcp(IN, (WORLD, HOST), (443, 5000), "SA")),
        (0, udp(IN, (WORLD, HOST), (53, 5000), b"!")),
        (0, echo(IN, (WORLD, HOST), asks(7))),
        (0, udp(IN, (WORLD, PUBLIC), (53, 5000), b"!")),
    ] {
        let (out, inside) = match frame {
            (0, frame) => house.outside_says(&frame),
            (_, frame) => house.inside_says(&frame),
        };
        left.push((out.len(), inside.len()));
    }
    // The last one is told that nobody listens.
    assert_eq!(left.pop(), Some((1, 0)));
    assert!(left.iter().all(|sent| *sent == (0, 0)), "{left:?}");
    assert_eq!(
        (house.table.masqueraded(), house.worker.account().forwarded),
        (0, 0)
    );
}

#[test]
fn limits_hold_and_are_counted() {
    let mut house = masq_with(&inside_net(), |parts| {
        parts.limits.masquerade_entries_max = 5;
    });
    for port in 0..8 {
        house.inside_says(&udp(OUT, (RIP, WORLD), (5000 + port, 53), b"?"));
    }
    assert_eq!(house.table.masqueraded(), 5);
    assert_eq!(dropped(&house, DropReason::MasqueradeFull), 3);
    let mut few = inside_net();
    few.pool.ports = (7000, 7002);
    let mut house = masq_with(&few, |_| {});
    for port in 0..8 {
        house.inside_says(&udp(OUT, (RIP, WORLD), (5000 + port, 53), b"?"));
    }
    assert_eq!(house.table.masqueraded(), 3);
    assert_eq!(dropped(&house, DropReason::NoSourcePort), 5);
    let (_, inside) = house.inside_says(&{
        let mut dying = udp(OUT, (HOST, WORLD), (5000, 53), b"?");
        dying[22] = 1;
        dying[24..26].fill(0);
        let sum = crate::wire::checksum::Sum::of(&dying[14..34]).checksum();
        dying[24..26].copy_from_slice(&sum.to_be_bytes());
        dying
    });
    assert_eq!(
        inside.len(),
        1,
        "who lets it die is told, and takes no entry"
    );
    assert_eq!(dropped(&house, DropReason::TtlExceeded), 1);
}

/// The public address may be the VIP: a service's port is never given away, and a reply goes before a
/// service of all ports.
#[test]
fn the_vip_can_be_the_public_address() {
    let mut shared = inside_net();
    shared.pool.addresses = vec![VIP.into()];
    shared.pool.ports = (80, 81);
    let mut house = masq_with(&shared, |_| {});
    let (out, _) = house.inside_says(&tcp(OUT, (HOST, WORLD), (80, 443), "S"));
    assert_eq!(seen(&out[0].bytes).0, end(VIP, 81));
    let (_, inside) = house.outside_says(&tcp(IN, (WORLD, VIP), (443, 81), "SA"));
    assert_eq!(seen(&inside[0].bytes).1, end(HOST, 80));
    let (_, inside) = house.outside_says(&tcp(IN, (WORLD, VIP), (443, 80), "S"));
    assert_eq!(
        seen(&inside[0].bytes).1,
        end(RIP, 80),
        "a client of the service"
    );
}

#[test]
fn a_port_used_again_after_a_close_keeps_its_entry() {
    let mut house = masq();
    for flags in ["S", "R", "S"] {
        let (out, _) = house.inside_says(&tcp(OUT, (RIP, WORLD), (5000, 443), flags));
        assert_eq!(seen(&out[0].bytes).0, end(PUBLIC, 5000), "{flags}");
    }
    assert_eq!(house.table.masqueraded(), 1);
}

/// Acceptance: fifty thousand at once from one host, to one far end, under one address.
#[test]
fn fifty_thousand_at_once_have_one_address() {
    let mut house = masq();
    for port in 0..50_000u32 {
        let port = 10_000 + port as u16;
        house
            .inside
            .put_bytes(&udp(OUT, (RIP, WORLD), (port, 53), b"?"));
        if port.is_multiple_of(64) {
            house.breathe();
        }
    }
    house.breathe();
    assert_eq!(house.table.masqueraded(), 50_000);
    let mut ports = std::collections::BTreeSet::new();
    for frame in house.outside.take() {
        assert_eq!(&frame.bytes[26..30], PUBLIC);
        ports.insert([frame.bytes[34], frame.bytes[35]]);
    }
    assert_eq!(ports.len(), 50_000);
    // All of them find their way back.
    for port in ports {
        let frame = udp(IN, (WORLD, PUBLIC), (53, u16::from_be_bytes(port)), b"!");
        house.outside.put_bytes(&frame);
        if port[1] % 64 == 0 {
            house.breathe();
        }
    }
    for _ in 0..20 {
        house.breathe();
    }
    assert_eq!(house.inside.take().len(), 50_000);
}
