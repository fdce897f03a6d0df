//! A real server that is the director itself, where there is a port to this machine's own kernel: the
//! inside port of these houses.

use super::*;
use crate::director::snapshot::KERNEL_HOP;

/// Both ends of the way to the kernel have its MAC address.
const KERNEL: Mac = INSIDE;
const FROM_KERNEL: (Mac, Mac) = (KERNEL, KERNEL);

fn local_house(key: ServiceKey, real_port: u16, method: ForwardMethod) -> House {
    house_with(key, real_port, true, |parts| {
        let service = Arc::get_mut(&mut parts.services[0]).expect("not shared yet");
        service.reals[0].method = method;
        // Its address is the director's.
        parts.ports[0].addresses.push((RIP.into(), 32));
        let kernel = &mut parts.ports[1];
        kernel.kernel = true;
        (kernel.addresses, kernel.routes) = (vec![], vec![]);
        kernel.neighbours = vec![(KERNEL_HOP, KERNEL)];
    })
}

#[test]
fn under_nat_the_kernel_gets_it_rewritten_and_answers_as_the_vip() {
    let mut house = local_house(web(), 8080, ForwardMethod::Masq);
    let (outside, kernel) = house.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 80), "S"));
    assert!(outside.is_empty());
    let frame = &kernel[0].bytes;
    assert_eq!(seen(frame), (end(CLIENT, 40000), end(RIP, 8080), 64));
    assert_eq!(frame[..12], [KERNEL.0, KERNEL.0].concat());
    let answer = tcp(FROM_KERNEL, (RIP, CLIENT), (8080, 40000), "SA");
    let (outside, kernel) = house.inside_says(&answer);
    assert!(kernel.is_empty());
    let frame = &outside[0].bytes;
    assert_eq!(seen(frame), (end(VIP, 80), end(CLIENT, 40000), 63));
    assert_eq!(frame[..12], [GATEWAY.0, OUTSIDE.0].concat());
    assert_eq!(Stats::sum(&house.live.stats), [1, 1, 1, 47, 47]);
}

#[test]
fn otherwise_the_kernel_gets_it_as_it_came() {
    for method in [
        ForwardMethod::Route,
        ForwardMethod::Tunnel,
        ForwardMethod::Local,
    ] {
        let mut house = local_house(web(), 80, method);
        let question = tcp(IN, (CLIENT, VIP), (40000, 80), "S");
        let (outside, kernel) = house.outside_says(&question);
        assert!(outside.is_empty());
        assert_eq!(kernel[0].bytes[14..], question[14..], "{method:?}");
        let answer = tcp(FROM_KERNEL, (VIP, CLIENT), (80, 40000), "SA");
        let (outside, kernel) = house.inside_says(&answer);
        assert!(kernel.is_empty());
        assert_eq!(outside[0].bytes[14..], answer[14..], "{method:?}");
        assert_eq!(outside[0].bytes[..12], [GATEWAY.0, OUTSIDE.0].concat());
        let account = house.worker.account();
        assert_eq!((account.forwarded, account.dropped_total()), (2, 0));
    }
}

/// A reset for somebody whose entry is gone, an answer to who knows the address itself.
#[test]
fn what_the_kernel_says_on_no_connection_leaves_as_it_is() {
    let mut house = local_house(web(), 8080, ForwardMethod::Masq);
    let reset = tcp(FROM_KERNEL, (VIP, CLIENT), (80, 40000), "R");
    let (outside, kernel) = house.inside_says(&reset);
    assert!(kernel.is_empty());
    assert_eq!(outside[0].bytes[14..], reset[14..]);
    // From any other port that is none of our business.
    let mut plain = house_with(web(), 8080, true, |_| {});
    let (outside, _) = plain.inside_says(&tcp(OUT, (VIP, CLIENT), (80, 40000), "R"));
    assert!(outside.is_empty());
    assert_eq!(plain.worker.account().passed, 1);
}

/// Where the kernel holds an address of the director, it answers for itself: nobody is locked out.
#[test]
fn what_the_kernel_holds_is_left_to_it() {
    let own = [10, 0, 0, 1];
    let knock = tcp(IN, (CLIENT, own), (40000, 22), "S");
    let echo = icmp(IN, (CLIENT, own), [8, 0, 0, 0, 0, 1, 0, 1], b"anybody?");
    let mut alone = house_with(web(), 80, true, |_| {});
    let mut held = house_with(web(), 80, true, |parts| {
        parts.ports[0].held = vec![own.into()]
    });
    for packet in [knock, echo] {
        let (answered, _) = alone.outside_says(&packet);
        assert_eq!(answered.len(), 1);
        let (answered, inside) = held.outside_says(&packet);
        assert!(answered.is_empty() && inside.is_empty());
    }
    assert_eq!(held.worker.account().passed, 2);
    // A VIP is the director's, whoever holds it.
    let mut vip = house_with(web(), 80, true, |parts| {
        parts.ports[0].addresses.push((VIP.into(), 32));
        parts.ports[0].held = vec![VIP.into()];
    });
    let (answered, _) = vip.outside_says(&tcp(IN, (CLIENT, VIP), (40000, 22), "S"));
    assert_eq!(answered.len(), 1);
}

#[test]
fn errors_follow_the_connection_both_ways() {
    let key = ServiceKey::Address {
        protocol: Protocol::UDP,
        virt: Endpoint::new(VIP.into(), 53),
    };
    for method in [ForwardMethod::Masq, ForwardMethod::Route] {
        let mut house = local_house(key, 53, method);
        let question = udp(IN, (CLIENT, VIP), (40000, 53), b"anybody?");
        let (_, kernel) = house.outside_says(&question);
        let here = if method.is_nat() { RIP } else { VIP };
        let unreachable = [3, 3, 0, 0, 0, 0, 0, 0];
        let complaint = icmp(
            FROM_KERNEL,
            (here, CLIENT),
            unreachable,
            &kernel[0].bytes[14..],
        );
        let (outside, _) = house.inside_says(&complaint);
        let told = &outside[0].bytes;
        assert_eq!(told[26..34], [VIP, CLIENT].concat(), "{method:?}");
        let ends = &question[26..38];
        assert_eq!(told[54..66], *ends, "{method:?}: what was sent is quoted");
        // The client's way is too narrow for an answer.
        let answer = udp(FROM_KERNEL, (here, CLIENT), (53, 40000), &[7; 1000]);
        let (outside, _) = house.inside_says(&answer);
        let narrow = [3, 4, 0, 0, 0, 0, 2, 88];
        let router = [10, 9, 9, 9];
        let complaint = icmp(IN, (router, VIP), narrow, &outside[0].bytes[14..42]);
        let (_, kernel) = house.outside_says(&complaint);
        let told = &kernel[0].bytes;
        assert_eq!(told[26..34], [router, here].concat(), "{method:?}");
        assert_eq!(
            told[54..62],
            answer[26..34],
            "{method:?}: its own answer is quoted"
        );
    }
}

#[test]
fn a_datagram_in_fragments_arrives_whole_or_in_fragments_again() {
    let key = ServiceKey::Address {
        protocol: Protocol::UDP,
        virt: Endpoint::new(VIP.into(), 53),
    };
    let mut house = local_house(key, 53, ForwardMethod::Route);
    let whole = udp(IN, (CLIENT, VIP), (40000, 53), &[9; 2000]);
    let piece = |from: usize, to: usize, more: u8| {
        let mut frame = whole[..34].to_vec();
        frame.extend(&whole[34 + from..34 + to]);
        frame[16..18].copy_from_slice(&((20 + to - from) as u16).to_be_bytes());
        frame[20..22].copy_from_slice(&[more << 5 | ((from / 8) >> 8) as u8, (from / 8) as u8]);
        frame[24..26].fill(0);
        let sum = crate::wire::checksum::Sum::of(&frame[14..34]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    let (outside, kernel) = house.outside_says(&piece(0, 1480, 1));
    assert!(outside.is_empty() && kernel.is_empty());
    let (_, kernel) = house.outside_says(&piece(1480, 2008, 0));
    let data: Vec<u8> = kernel
        .iter()
        .flat_map(|frame| frame.bytes[34..].to_vec())
        .collect();
    assert_eq!(data, whole[34..]);
    let account = house.worker.account();
    assert_eq!((account.forwarded, account.held), (2, 0));
}
