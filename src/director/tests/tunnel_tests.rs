//! Tunnels through the whole packet path: super-frames, frames that came with an unfinished sum, limits.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::lvs::{Tunnel, TunnelChecksum};
use crate::wire::arp::Arp;
use crate::wire::encap;
use crate::wire::gso::Segments;
use crate::wire::offload::VNET_HEADER_LEN;

const IPS: ([u8; 4], [u8; 4]) = (CLIENT, VIP);
const PORTS: (u16, u16) = (40_000, 80);
/// The director's own address inside.
const OWN: [u8; 4] = [192, 168, 1, 1];

/// A house whose real server is reached by this tunnel.
fn tunnel_house(tunnel: Tunnel, change: impl FnOnce(&mut Parts)) -> House {
    let house = house_with(udp_key(), 80, true, |parts| {
        let service = Arc::get_mut(&mut parts.services[0]).expect("not shared yet");
        service.reals[0].method = ForwardMethod::Tunnel;
        change(parts);
    });
    house.live.tunnel.store(tunnel.pack(), Relaxed);
    house
}

fn udp_key() -> ServiceKey {
    ServiceKey::Address {
        protocol: Protocol::UDP,
        virt: Endpoint::new(IPS.1.into(), PORTS.1),
    }
}

fn datagram(data: &[u8]) -> Vec<u8> {
    udp(IN, IPS, PORTS, data)
}

/// A super-frame of datagrams with `size` bytes of data each.
fn super_frame(data: &[u8], size: u16) -> MemoryFrame {
    let mut header = [0; VNET_HEADER_LEN];
    (header[0], header[1]) = (1, 5);
    header[2..4].copy_from_slice(&42u16.to_ne_bytes());
    header[4..6].copy_from_slice(&size.to_ne_bytes());
    header[6..8].copy_from_slice(&34u16.to_ne_bytes());
    header[8..10].copy_from_slice(&6u16.to_ne_bytes());
    MemoryFrame {
        bytes: datagram(data),
        offload: Offload::decode(&header),
        ..MemoryFrame::default()
    }
}

/// The data of the datagram in an envelope, whose sums must be right.
fn data_in(frame: &MemoryFrame) -> Vec<u8> {
    assert_eq!(frame.offload, Offload::default(), "nothing is left to do");
    let inner = encap::unwrap(&frame.bytes[14..]).expect("an envelope");
    let mut inner = inner.to_vec();
    let layout = Layout::parse(&inner, true).expect("a packet");
    let packet = Packet::over(&mut inner, layout, Offload::default());
    assert!(packet.transport_sum_holds());
    assert_eq!(packet.ttl(), 63);
    packet.transport()[8..].to_vec()
}

/// What a device makes of a frame: nothing else, or the datagrams of a super-frame.
fn on_the_wire(frame: &MemoryFrame) -> Vec<MemoryFrame> {
    if !frame.offload.is_gso() {
        return vec![frame.clone()];
    }
    let mut bytes = frame.bytes.clone();
    let layout = Layout::parse(&bytes, false).expect("a frame");
    let packet = Packet::over(&mut bytes, layout, frame.offload);
    assert!(packet.offload.is_partial() && packet.offload.csum_start() == usize::from(layout.l4));
    let segments = Segments::new(&packet).expect("a super-frame");
    let cut = (0..segments.len()).map(|index| {
        let mut bytes = frame.bytes[..14].to_vec();
        segments.write(index, &mut bytes);
        assert!(bytes.len() <= 1514, "a frame of a link of 1500 bytes");
        MemoryFrame {
            bytes,
            ..MemoryFrame::default()
        }
    });
    cut.collect()
}

#[test]
fn a_super_frame_leaves_as_its_segments_and_nobody_overtakes_it() {
    let (full, none) = (TunnelChecksum::Full, TunnelChecksum::No);
    let gue = |checksum| Tunnel::Gue {
        port: 6080,
        checksum,
    };
    // Frames for the link: a device can cut GUE alone.
    for (tunnel, frames) in [
        (Tunnel::Ipip, 5),
        (Tunnel::Gre { checksum: full }, 5),
        (gue(full), 2),
        (gue(none), 2),
    ] {
        let mut house = tunnel_house(tunnel, |_| {});
        let data: Vec<u8> = (0..3500u32).map(|at| at as u8).collect();
        let mut frame = super_frame(&data, 1000);
        let mut behind = datagram(b"behind it");
        for bytes in [&mut frame.bytes, &mut behind] {
            // What may be cut has an identification.
            bytes[20] = 0;
            mend(bytes);
        }
        house.outside.put(frame);
        house.outside.put_bytes(&behind);
        house.worker.breathe(house.now);
        let taken = house.inside.take();
        assert_eq!(taken.len(), frames, "{tunnel:?}");
        let wire: Vec<MemoryFrame> = taken.iter().flat_map(on_the_wire).collect();
        let sent: Vec<Vec<u8>> = wire.iter().map(data_in).collect();
        let mut expected: Vec<Vec<u8>> = data.chunks(1000).map(<[u8]>::to_vec).collect();
        expected.push(b"behind it".to_vec());
        assert_eq!(sent, expected, "{tunnel:?}");
        let mut idents: Vec<&[u8]> = wire.iter().map(|frame| &frame.bytes[18..20]).collect();
        idents.sort_unstable();
        idents.dedup();
        assert_eq!(idents.len(), 5, "no two packets share an identification");
        let account = house.worker.account();
        assert!(account.balances());
        assert_eq!(
            (account.received, account.forwarded, account.held),
            (2, 2, 0)
        );
    }
}

/// The envelopes of many segments do not fit into one super-frame: then there are two, as long as each other.
#[test]
fn a_super_frame_too_long_for_its_envelopes_leaves_as_two() {
    let tunnel = Tunnel::Gue {
        port: 6080,
        checksum: TunnelChecksum::No,
    };
    let mut house = tunnel_house(tunnel, |_| {});
    let data: Vec<u8> = (0..65_000u32).map(|at| (at / 7) as u8).collect();
    house.outside.put(super_frame(&data, 500));
    house.worker.breathe(house.now);
    let taken = house.inside.take();
    let lengths: Vec<usize> = taken.iter().map(|frame| frame.bytes.len()).collect();
    assert_eq!(lengths, [14 + 20 + 8 + 65 * (4 + 28 + 500); 2]);
    let sent: Vec<Vec<u8>> = taken
        .iter()
        .flat_map(on_the_wire)
        .map(|f| data_in(&f))
        .collect();
    assert_eq!(sent.concat(), data);
    assert!(house.worker.account().balances());
    assert_eq!(house.worker.account().forwarded, 1);
}

#[test]
fn a_super_frame_is_all_or_nothing() {
    let mut house = tunnel_house(Tunnel::Ipip, |parts| {
        parts.limits.frag_cuts_per_breath_max = 3;
    });
    house.outside.put(super_frame(&[1; 3500], 1000));
    house.outside.put(super_frame(&[2; 2500], 1000));
    house.worker.breathe(house.now);
    let sent: Vec<Vec<u8>> = house.inside.take().iter().map(data_in).collect();
    assert_eq!(sent.concat(), [2; 2500]);
    let account = house.worker.account();
    assert_eq!(account.dropped_for(DropReason::FragmentLimit), 1);
    assert!(account.balances());
}

#[test]
fn segments_too_long_for_the_tunnel_are_told() {
    let mut house = tunnel_house(Tunnel::Ipip, |_| {});
    let mut frame = super_frame(&[1; 5000], 1460);
    frame.bytes[20] = 0x40;
    mend(&mut frame.bytes);
    house.outside.put(frame);
    house.worker.breathe(house.now);
    assert!(house.inside.take().is_empty());
    let told = house.outside.take();
    assert_eq!(told[0].bytes[34..36], [3, 4]);
    assert_eq!(told[0].bytes[40..42], 1480u16.to_be_bytes());
}

#[test]
fn an_envelope_waits_for_its_neighbour() {
    let mut house = tunnel_house(Tunnel::Ipip, |parts| parts.ports[1].neighbours.clear());
    house.outside.put_bytes(&datagram(b"early"));
    house.worker.breathe(house.now);
    let asked = house.inside.take();
    assert_eq!(asked.len(), 1, "who has the real server's address?");
    assert_eq!(house.worker.account().held, 1);
    let answer = Arp {
        is_request: false,
        sender_mac: SERVER,
        sender: RIP.into(),
        target_mac: INSIDE,
        target: [192, 168, 1, 1].into(),
    };
    let mut bytes = Vec::new();
    answer.frame(&mut bytes);
    house.inside.put_bytes(&bytes);
    for _ in 0..2 {
        house.now += Duration::from_millis(1);
        house.worker.breathe(house.now);
    }
    let sent = house.inside.take();
    assert_eq!(data_in(&sent[0]), b"early");
    assert_eq!(sent[0].bytes[..6], SERVER.0);
    assert!(house.worker.account().balances());
}

/// What a router says of an envelope that is too long for it.
fn too_long(envelope: &[u8], mtu: u16) -> Vec<u8> {
    let mut icmp = vec![3, 4, 0, 0, 0, 0];
    icmp.extend(mtu.to_be_bytes());
    icmp.extend(&envelope[14..]);
    let sum = crate::wire::checksum::Sum::of(&icmp).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let router = [192, 168, 1, 253];
    let mut frame = [INSIDE.0, SERVER.0].concat();
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(((20 + icmp.len()) as u16).to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 1, 0, 0]);
    frame.extend(router);
    frame.extend([192, 168, 1, 1]);
    frame.extend(icmp);
    mend(&mut frame);
    frame
}

/// An answer of our own waits, too, for whoever it shall go to.
#[test]
fn what_a_router_says_of_an_envelope_waits_for_the_clients_neighbour() {
    let mut house = tunnel_house(Tunnel::Ipip, |parts| parts.ports[0].neighbours.clear());
    let mut question = datagram(&[7; 1400]);
    question[20] = 0x40;
    mend(&mut question);
    let (asked, wrapped) = house.outside_says(&question);
    assert!(asked.is_empty());
    let (asked, _) = house.inside_says(&too_long(&wrapped[0].bytes, 1200));
    assert_eq!(asked.len(), 1, "who has the gateway's address?");
    let account = house.worker.account();
    assert_eq!((account.answered, account.held), (1, 0));
    let layout = Layout::parse(&asked[0].bytes, false).expect("ARP");
    let mut bytes = asked[0].bytes.clone();
    let asked = Arp::read(&Packet::over(&mut bytes, layout, Offload::default()));
    let mut answer = Vec::new();
    asked
        .expect("a question")
        .answered_by(GATEWAY)
        .frame(&mut answer);
    let (told, _) = house.outside_says(&answer);
    house.breathe();
    let told = [told, house.outside.take()].concat();
    assert_eq!(told.len(), 1);
    assert_eq!(
        told[0].bytes[..14],
        [&GATEWAY.0[..], &OUTSIDE.0, &[8, 0]].concat()
    );
    assert_eq!(told[0].bytes[34..36], [3, 4]);
    assert_eq!(told[0].bytes[30..34], CLIENT);
    assert!(house.worker.account().balances());
}

/// It is given up like everything else for which nobody answers, and is no received frame.
#[test]
fn what_waits_for_nobody_is_given_up_without_a_trace_in_the_account() {
    let mut house = tunnel_house(Tunnel::Ipip, |parts| parts.ports[0].neighbours.clear());
    let mut question = datagram(&[7; 1400]);
    question[20] = 0x40;
    mend(&mut question);
    let (_, wrapped) = house.outside_says(&question);
    house.inside_says(&too_long(&wrapped[0].bytes, 1200));
    house.now += Duration::from_secs(4);
    house.breathe();
    let account = house.worker.account();
    assert_eq!(
        (account.received, account.forwarded, account.answered),
        (2, 1, 1)
    );
    assert_eq!(account.dropped_for(DropReason::NoNeighbour), 0);
    assert!(account.balances());
    assert!(
        house
            .worker
            .poll_timeout(house.now)
            .is_none_or(|due| due > house.now)
    );
}

fn mend(frame: &mut [u8]) {
    frame[24..26].fill(0);
    let sum = crate::wire::checksum::Sum::of(&frame[14..34]).checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

#[test]
fn nothing_is_learned_of_an_envelope_that_is_not_ours() {
    for (source, passes) in [([192, 168, 1, 1], 0), ([192, 168, 255, 1], 1)] {
        let mut house = tunnel_house(Tunnel::Ipip, |_| {});
        let mut question = datagram(&[7; 1400]);
        question[20] = 0x40;
        mend(&mut question);
        let (_, mut wrapped) = house.outside_says(&question);
        wrapped[0].bytes[26..30].copy_from_slice(&source);
        house.inside_says(&too_long(&wrapped[0].bytes, 1200));
        let (_, again) = house.outside_says(&question);
        assert_eq!(again.len(), passes, "{source:?}");
    }
}

/// A router that is too narrow says so about an envelope of GUE, of which it quotes no more than UDP's
/// header, as RFC 792 asks for.
#[test]
fn a_short_quote_of_an_envelope_of_gue_teaches_its_length() {
    let checksum = TunnelChecksum::No;
    let tunnels = [
        (
            Tunnel::Gue {
                port: 6080,
                checksum,
            },
            1,
        ),
        (Tunnel::Gre { checksum }, 0),
    ];
    for (tunnel, refused) in tunnels {
        let mut house = tunnel_house(tunnel, |_| {});
        let (_, sent) = house.outside_says(&datagram(&[1; 900]));
        let narrow = [3, 4, 0, 0, 0, 0, 2, 88];
        let quote = &sent[0].bytes[14..42];
        let (outside, _) = house.inside_says(&icmp(OUT, (RIP, OWN), narrow, quote));
        assert!(outside.is_empty(), "whose it was is not quoted");
        let (told, sent) = house.outside_says(&datagram(&[1; 900]));
        assert_eq!(
            (told.len(), sent.len()),
            (refused, 1 - refused),
            "{tunnel:?}"
        );
    }
}

/// What is known of the way to a real server counts for errors that it is sent, too.
#[test]
fn an_error_to_a_real_server_is_no_longer_than_its_way() {
    let mut house = tunnel_house(Tunnel::Ipip, |_| {});
    house.live.path.learn(552, 1500, house.now);
    let mut dying = udp(OUT, (RIP, OWN), (9, 9), &[7; 1000]);
    let (_, told) = house.inside_says(&dying);
    assert_eq!((told[0].bytes.len(), told[0].bytes[34]), (14 + 552, 3));
    house.now += Duration::from_secs(601);
    dying[19] += 1;
    mend(&mut dying);
    let (_, told) = house.inside_says(&dying);
    assert_eq!(told[0].bytes.len(), 14 + 576);
}
