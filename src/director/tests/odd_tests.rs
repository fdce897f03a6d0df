//! Odd packets, as a real kernel was seen to treat them: padding, lying lengths, quotes that are cut off
//! or of later fragments, answers that are owed and answers that are not.

use super::*;
use crate::wire::checksum::Sum;

const PLACE_OF_ICMP: usize = 34;

/// The IPv4 header's sum made right.
fn mended(mut frame: Vec<u8>) -> Vec<u8> {
    frame[24..26].fill(0);
    let sum = Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// The same packet with these options, a multiple of four bytes.
fn with_options(plain: &[u8], options: &[u8]) -> Vec<u8> {
    let mut frame = [&plain[..34], options, &plain[34..]].concat();
    let (len, header) = (frame.len() as u16 - 14, 20 + options.len());
    frame[14] = 0x40 | (header / 4) as u8;
    frame[16..18].copy_from_slice(&len.to_be_bytes());
    frame[24..26].fill(0);
    let sum = Sum::of(&frame[14..14 + header]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A house with a connection of a client to a server of LVS-NAT, 8080 behind 80.
fn connected(change: impl FnOnce(&mut Parts)) -> House {
    let mut house = house_with(web(), 8080, true, change);
    house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    house.inside_says(&tcp(OUT, (RIP, CLIENT), (8080, 40000), "SA"));
    house
}

/// What the VIP had said to the client, as an error of the client's side quotes it.
fn quoted() -> Vec<u8> {
    tcp(IN, (VIP, CLIENT), (80, 40000), "A")[14..42].to_vec()
}

fn complaint(quote: &[u8]) -> Vec<u8> {
    icmp(IN, (CLIENT, VIP), [3, 1, 0, 0, 0, 0, 0, 0], quote)
}

#[test]
fn what_a_card_has_padded_does_not_travel_on() {
    let mut house = connected(|_| {});
    let plain = tcp(IN, (CLIENT, VIP), (40000, 80), "A");
    let padded = [&plain[..], &[0xee; 9]].concat();
    let (_, inside) = house.outside_says(&padded);
    assert_eq!(inside[0].bytes.len(), plain.len());
    let (outside, _) = house.inside_says(&{
        let answer = tcp(OUT, (RIP, CLIENT), (8080, 40000), "A");
        [&answer[..], &[0xee; 3]].concat()
    });
    assert_eq!(outside[0].bytes.len(), plain.len());
}

#[test]
fn a_quote_of_another_version_or_of_a_later_fragment_is_nobodys() {
    for schedule in [0, 1] {
        let mut house = connected(|parts| parts.tunables.schedule_icmp = schedule);
        let (_, inside) = house.outside_says(&complaint(&quoted()));
        assert_eq!(&inside[0].bytes[30..34], RIP);
        let inner = &inside[0].bytes[PLACE_OF_ICMP + 8..];
        assert_eq!((&inner[12..16], &inner[20..22]), (&RIP[..], &[31, 144][..]));
        let (mut other, mut later, mut cut_off) = (quoted(), quoted(), quoted());
        other[0] = 0xa5;
        later[7] = 1;
        cut_off[7] = 1;
        cut_off.truncate(20);
        for quote in [other, later, cut_off] {
            let (outside, inside) = house.outside_says(&complaint(&quote));
            assert!(outside.is_empty() && inside.is_empty());
            // From inside it goes the way of whatever passes.
            let passed = house.worker.account().passed;
            let header = [3, 1, 0, 0, 0, 0, 0, 0];
            house.inside_says(&icmp(OUT, (RIP, CLIENT), header, &quote));
            assert_eq!(house.worker.account().passed, passed + 1, "{quote:?}");
        }
    }
}

/// What a host refuses for its options it refuses before it asks for a connection.
#[test]
fn an_old_connection_is_not_given_up_for_a_packet_that_ends_by_its_options() {
    let mut house = connected(|_| {});
    house.inside_says(&tcp(OUT, (RIP, CLIENT), (8080, 40000), "R"));
    let before = (house.table.len(), house.live.total());
    let plain = tcp(IN, (CLIENT, VIP), (40000, 80), "S");
    // A router alert that is shorter than one can be.
    let (outside, inside) = house.outside_says(&with_options(&plain, &[148, 3, 0, 0]));
    assert_eq!(outside[0].bytes[PLACE_OF_ICMP], 12, "parameter problem");
    assert!(inside.is_empty());
    assert_eq!((house.table.len(), house.live.total()), before);
}

#[test]
fn a_real_server_is_told_of_its_options_before_it_is_told_that_nobody_listens() {
    let mut house = house_with(web(), 8080, true, |parts| parts.tunables.nat_icmp_send = 1);
    let plain = tcp(OUT, (RIP, CLIENT), (8080, 40000), "A");
    for (frame, told) in [(with_options(&plain, &[148, 3, 0, 0]), 12), (plain, 3)] {
        let (_, inside) = house.inside_says(&frame);
        assert_eq!(inside[0].bytes[PLACE_OF_ICMP], told);
    }
}

/// An answer of LVS-NAT with a record-route option, as a client gets it: what was written into it.
#[test]
fn an_answer_is_signed_as_the_vip_only_if_it_is_routed_as_the_vip() {
    for (reroute, signed) in [(1, VIP), (0, [10, 0, 0, 1])] {
        let mut house = connected(|parts| parts.tunables.snat_reroute = reroute);
        let plain = tcp(OUT, (RIP, CLIENT), (8080, 40000), "A");
        let asking = with_options(&plain, &[7, 7, 4, 0, 0, 0, 0, 0]);
        let (outside, _) = house.inside_says(&asking);
        assert_eq!(outside[0].bytes[36..41], [&[8], &signed[..]].concat());
    }
}

/// Of IPv6 a packet that comes from outside under an address of ours is served, but nothing is said to it.
#[test]
fn nothing_is_said_to_who_speaks_under_our_own_address() {
    let six = |last: u16| Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, last);
    let (vip, real) = (six(0x100), six(0xb));
    let key = ServiceKey::tcp(vip.into(), 80);
    let ends = ((vip, 40000), (vip, 80));
    let house_as = |key, method| {
        house_with(key, 80, true, |parts| {
            let service = Arc::get_mut(&mut parts.services[0]).expect("not shared yet");
            let here = Endpoint::new(real.into(), 80);
            service.reals[0].key = RealKey(here);
            service.reals[0].live = Arc::new(RealLive::new(1, here, 1));
            service.reals[0].method = method;
            let inside = &mut parts.ports[1];
            inside.addresses.push((six(1).into(), 64));
            inside.routes.push((six(0).into(), 64, None));
            inside.neighbours.push((real.into(), SERVER));
        })
    };
    let mut last_hop = syn6(IN, ends);
    last_hop[21] = 1;
    let (outside, inside) = house_as(key, ForwardMethod::Route).outside_says(&last_hop);
    assert!(outside.is_empty() && inside.is_empty());
    // Where the real server is the director itself, its reset is heard.
    let mut here = house_as(key, ForwardMethod::Local);
    let (outside, _) = here.outside_says(&syn6(IN, ends));
    assert!(outside.is_empty());
    let mut states = Vec::new();
    here.table.for_each(|conn| states.push(conn.state_name()));
    assert_eq!(states, ["CLOSE"]);
    // What is shorter than a segment gets no reset, and is looked at no further.
    let mut here = house_as(ServiceKey::udp(vip.into(), 80), ForwardMethod::Local);
    assert!(here.outside_says(&udp6(IN, ends)).0.is_empty());
}

#[test]
fn a_later_fragment_of_udp_is_no_quote_from_outside() {
    let mut house = house_with(ServiceKey::udp(VIP.into(), 53), 53, true, |parts| {
        parts.tunables.schedule_icmp = 1;
    });
    house.outside_says(&udp(IN, (CLIENT, VIP), (40000, 53), b"?"));
    let mut quote = udp(IN, (VIP, CLIENT), (53, 40000), b"!")[14..42].to_vec();
    assert_eq!(house.outside_says(&complaint(&quote)).1.len(), 1);
    quote[7] = 1;
    let (outside, inside) = house.outside_says(&complaint(&quote));
    assert!(outside.is_empty() && inside.is_empty());
}

#[test]
fn a_quote_without_ports_is_dropped_where_errors_are_scheduled() {
    for schedule in [0, 1] {
        let mut house = connected(|parts| parts.tunables.schedule_icmp = schedule);
        let cut_off = &quoted()[..23];
        house.inside_says(&icmp(OUT, (RIP, CLIENT), [3, 1, 0, 0, 0, 0, 0, 0], cut_off));
        let account = house.worker.account();
        let fate = (account.passed, account.dropped_for(DropReason::Malformed));
        assert_eq!(fate, if schedule == 0 { (1, 0) } else { (0, 1) });
    }
}

#[test]
fn a_wrong_sum_of_an_error_stops_it_under_nat_alone() {
    for (method, stopped) in [(ForwardMethod::Masq, 1), (ForwardMethod::Route, 0)] {
        let mut house = house_with(web(), 80, true, |parts| {
            let service = Arc::get_mut(&mut parts.services[0]).expect("not shared yet");
            service.reals[0].method = method;
        });
        house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
        let mut error = complaint(&quoted());
        assert_eq!(house.outside_says(&error).1.len(), 1);
        error[PLACE_OF_ICMP + 2] ^= 1;
        assert_eq!(house.outside_says(&error).1.len(), 1 - stopped);
        let dropped = house.worker.account().dropped_for(DropReason::IcmpChecksum);
        assert_eq!(dropped, stopped as u64);
    }
}

#[test]
fn a_reset_says_nothing_of_congestion() {
    let mut house = house(web(), 80, true);
    let mut frame = tcp(IN, (CLIENT, VIP), (40000, 81), "S");
    frame[15] = 0x8f;
    let (outside, _) = house.outside_says(&mended(frame));
    assert_eq!(outside[0].bytes[15], 0x8c);
}

#[test]
fn a_segment_with_a_header_that_lies_is_not_reset() {
    let mut house = house(web(), 80, true);
    for offset in [0, 4, 15] {
        let mut frame = tcp(IN, (CLIENT, VIP), (40000, 81), "S");
        let word = |frame: &[u8], at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let (old, sum) = (word(&frame, 46), word(&frame, 50));
        frame[46] = offset << 4 | frame[46] & 15;
        let sum = crate::wire::checksum::Delta::none()
            .word(old, word(&frame, 46))
            .apply(sum);
        frame[50..52].copy_from_slice(&sum.to_be_bytes());
        let (outside, _) = house.outside_says(&frame);
        assert!(outside.is_empty(), "{offset}");
    }
}

#[test]
fn only_what_a_datagram_says_is_its_length_is_summed() {
    let mut house = house(web(), 80, true);
    // The last two bytes lie behind the datagram's own length.
    let mut frame = udp(IN, (CLIENT, VIP), (40000, 81), b"ab");
    frame[16..18].copy_from_slice(&32u16.to_be_bytes());
    frame.extend_from_slice(b"zz");
    let (outside, _) = house.outside_says(&mended(frame.clone()));
    assert_eq!(outside.len(), 1, "port unreachable");
    frame[39] += 1;
    let (outside, _) = house.outside_says(&mended(frame));
    assert!(outside.is_empty(), "a sum over other bytes");
}

#[test]
fn no_error_answers_an_error_that_is_about_no_connection() {
    for kind in [5, 12, 40] {
        let mut house = connected(|_| {});
        let mut error = icmp(IN, (CLIENT, RIP), [kind, 0, 0, 0, 0, 0, 0, 0], &quoted());
        error[22] = 1;
        let (outside, _) = house.outside_says(&mended(error));
        assert!(outside.is_empty());
    }
}

#[test]
fn a_short_question_for_the_time_is_answered() {
    let mut house = house(web(), 80, true);
    let question = |rest: &[u8]| icmp(IN, (CLIENT, VIP), [13, 0, 0, 0, 1, 2, 3, 4], rest);
    assert_eq!(house.outside_says(&question(&[9; 4])).0.len(), 1);
    assert_eq!(house.outside_says(&question(&[9; 3])).0.len(), 0);
}

#[test]
fn an_error_is_no_longer_than_its_way_takes() {
    let mut house = house_with(web(), 80, true, |parts| parts.ports[0].mtu = 300);
    let (outside, _) = house.outside_says(&udp(IN, (CLIENT, VIP), (40000, 81), &[7; 280]));
    assert_eq!(outside[0].bytes.len(), 314);
}

#[test]
fn answers_go_the_way_that_is_the_vips() {
    let other = Mac([2, 0, 0, 0, 0x0c, 9]);
    let mut house = house_with(web(), 80, true, |parts| {
        let port = &mut parts.ports[0];
        port.neighbours.push(([10, 0, 0, 9].into(), other));
        port.routes_from.push(snapshot::SourceRoute {
            from: (VIP.into(), 32),
            to: ([0, 0, 0, 0].into(), 0),
            via: Some([10, 0, 0, 9].into()),
        });
    });
    let (outside, _) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 81), "S"));
    assert_eq!(&outside[0].bytes[..12], [other.0, OUTSIDE.0].concat());
    let (outside, _) = house.outside_says(&udp(IN, (CLIENT, VIP), (40000, 81), b"?"));
    assert_eq!(&outside[0].bytes[..6], other.0);
    // The director's own address has no way of its own.
    let own = [10, 0, 0, 1];
    let (outside, _) = house.outside_says(&udp(IN, (CLIENT, own), (40000, 81), b"?"));
    assert_eq!(&outside[0].bytes[..6], GATEWAY.0);
}

#[test]
fn sctp_without_a_chunk_is_nobodys() {
    let mut house = house(web(), 80, true);
    let mut frame = udp(IN, (CLIENT, VIP), (40000, 81), b"12345678");
    frame[23] = 132;
    let (outside, _) = house.outside_says(&mended(frame.clone()));
    assert_eq!(outside.len(), 1, "a whole chunk: protocol unreachable");
    frame[17] -= 1;
    let (outside, _) = house.outside_says(&mended(frame));
    assert!(outside.is_empty());
}

#[test]
fn sctp_without_a_chunk_is_looked_at_only_where_its_family_is_served() {
    let v6 = ServiceKey::tcp(Ipv6Addr::LOCALHOST.into(), 80);
    let mut house = house(v6, 80, true);
    let own = [10, 0, 0, 1];
    let mut frame = udp(IN, (CLIENT, own), (40000, 81), b"1234");
    frame[23] = 132;
    let (outside, _) = house.outside_says(&mended(frame));
    assert_eq!(outside.len(), 1, "protocol unreachable");
}
