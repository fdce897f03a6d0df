//! Neighbour discovery on a whole director: it answers for what is its own, asks for whom it needs, and
//! lets nobody else teach it.

use super::*;
use crate::wire::ndp::Discovery;

const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, 1);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xc, 0, 0, 0, 0, 0, 0x100);
const RIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0x11);
const NEIGHBOUR: Mac = Mac([2, 0, 0, 0, 0x0c, 9]);

fn six() -> House {
    let key = ServiceKey::tcp(VIP6.into(), 80);
    house_with(key, 80, false, |parts| {
        let service = Arc::get_mut(&mut parts.services[0]).expect("nobody else has it");
        service.reals[0].key = RealKey(Endpoint::new(RIP6.into(), 80));
        let live = RealLive::new(1, Endpoint::new(RIP6.into(), 80), 1);
        service.reals[0].live = Arc::new(live);
        for (at, net) in [(0, 0xc), (1, 5)] {
            let own = Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 0xfe);
            parts.ports[at].addresses.push((own.into(), 64));
            let prefix = Ipv6Addr::new(0xfd00, net, 0, 0, 0, 0, 0, 0);
            parts.ports[at].routes.push((prefix.into(), 64, None));
        }
    })
}

fn read(frame: &[u8]) -> Discovery {
    let layout = Layout::parse(frame, false).expect("a good frame");
    let mut bytes = frame.to_vec();
    Discovery::read(&Packet::over(&mut bytes, layout, Offload::default())).expect("sound")
}

fn syn() -> Vec<u8> {
    let ends = ((CLIENT6, 40000), (VIP6, 80));
    syn6((OUTSIDE, NEIGHBOUR), ends)
}

fn question(sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut frame = Vec::new();
    Discovery::ask(NEIGHBOUR, sender, target, &mut frame);
    frame
}

#[test]
fn who_asks_for_the_vip_is_answered_and_remembered() {
    let mut house = six();
    let (out, _) = house.outside_says(&question(CLIENT6, VIP6));
    let told = read(&out[0].bytes);
    assert_eq!(&out[0].bytes[..12], [NEIGHBOUR.0, OUTSIDE.0].concat());
    assert_eq!(
        (told.is_request, told.target, told.mac),
        (false, VIP6, Some(OUTSIDE))
    );
    // Its own address is answered for on its own port only, a stranger's nowhere.
    let own = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0xfe);
    for target in [own, CLIENT6] {
        let (out, inside) = house.outside_says(&question(CLIENT6, target));
        assert_eq!((out.len(), inside.len()), (0, 0), "{target}");
    }
}

#[test]
fn a_frame_waits_until_the_real_server_has_told_its_mac() {
    let mut house = six();
    let (_, asked) = house.outside_says(&syn());
    assert_eq!(house.worker.account().held, 1);
    let question = read(&asked[0].bytes);
    let inside = Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0xfe);
    assert_eq!((question.is_request, question.target), (true, RIP6));
    assert_eq!((question.sender, question.mac), (inside, Some(INSIDE)));
    let mut answer = Vec::new();
    question.answer(SERVER, INSIDE, &mut answer);
    let (_, inside) = house.inside_says(&answer);
    house.breathe();
    let sent = [inside, house.inside.take()].concat();
    assert_eq!(&sent[0].bytes[..12], [SERVER.0, INSIDE.0].concat());
    assert_eq!(&sent[0].bytes[38..54], RIP6.octets());
    assert_eq!(house.worker.account().held, 0);
}

#[test]
fn what_was_not_asked_for_is_not_believed() {
    let mut house = six();
    let lie = Discovery {
        is_request: true,
        sender: Ipv6Addr::new(0xfd00, 5, 0, 0, 0, 0, 0, 0xfe),
        target: RIP6,
        mac: None,
    };
    let mut frame = Vec::new();
    lie.answer(NEIGHBOUR, INSIDE, &mut frame);
    house.inside_says(&frame);
    house.outside_says(&syn());
    assert_eq!(
        house.worker.account().held,
        1,
        "nobody has told where it is"
    );
}
