//! Services that go by Call-ID.

use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::lvs::{Persistence, ServiceFlags};

fn sip_house(one_packet: bool) -> House {
    let virt = Endpoint::new(VIP.into(), 5060);
    let key = ServiceKey::Address {
        protocol: Protocol::UDP,
        virt,
    };
    house_with(key, 5060, true, |parts| {
        let service = Arc::get_mut(&mut parts.services[0]).expect("nobody else has it");
        service.spec.persistence = Some(Persistence { timeout_s: 60 });
        service.spec.engine = Some("sip".into());
        if one_packet {
            service.spec.flags = ServiceFlags(ServiceFlags::ONE_PACKET);
        }
    })
}

const CALL: &[u8] = b"INVITE sip:b@h SIP/2.0\r\nCall-ID: a1@h\r\n\r\n";

#[test]
fn a_server_of_a_sip_service_may_speak_first() {
    for one_packet in [false, true] {
        let mut house = sip_house(one_packet);
        let (out, _) = house.inside_says(&udp(OUT, (RIP, CLIENT), (5060, 5070), CALL));
        let told = &out[0].bytes;
        assert_eq!(told[26..30], VIP, "it speaks for the VIP");
        assert_eq!(told[34..38], [19, 196, 19, 206], "ports 5060 and 5070");
        let live = &house.live;
        let counted = [&live.persistent, &live.inactive].map(|count| count.load(Relaxed));
        assert_eq!(counted, [1, u32::from(!one_packet)]);
        assert_eq!(Stats::sum(&live.stats)[..3], [1, 0, 1]);
        // The answer finds its way back, and so does who else calls with this Call-ID.
        let (out, back) = house.outside_says(&udp(IN, (CLIENT, VIP), (5070, 5060), CALL));
        assert_eq!((out.len(), &back[0].bytes[30..34]), (0, &RIP[..]));
        assert_eq!(house.live.persistent.load(Relaxed), 1, "no other template");
        // A server that speaks of no call, or from another port, is not ours.
        for (port, message) in [(5060, &b"ping"[..]), (5062, CALL)] {
            let frame = udp(OUT, (RIP, [172, 16, 9, 9]), (port, 5070), message);
            assert!(house.inside_says(&frame).0.is_empty());
        }
        assert_eq!(house.worker.account().passed, 2);
        for _ in 0..5 {
            house.now += Duration::from_secs(100);
            house.breathe();
        }
        assert!(house.table.is_empty(), "all of it expires");
    }
}

#[test]
fn many_calls_of_one_client_are_told_apart() {
    let mut house = sip_house(true);
    for call in 0..300 {
        let message = format!("BYE x SIP/2.0\r\ni: {call}\r\n");
        house.outside_says(&udp(IN, (CLIENT, VIP), (5070, 5060), message.as_bytes()));
    }
    let mut calls = std::collections::BTreeSet::new();
    house.table.for_each(|conn| {
        let data = house.table.engine_data(conn).expect("a template of a call");
        calls.insert(data.bytes().to_vec());
    });
    assert_eq!((calls.len(), house.table.len()), (300, 300));
    house.outside_says(&udp(IN, (CLIENT, VIP), (5070, 5060), b"no call\r\n"));
    let dropped = house.worker.account().dropped_for(DropReason::NoCallId);
    assert_eq!((dropped, house.table.len()), (1, 300));
}
