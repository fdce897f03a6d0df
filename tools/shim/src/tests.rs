//! The family against requests as Debian's ipvsadm 1.31 sent them to a kernel, and against wrong ones.

use std::collections::VecDeque;

use ulvs::config::command::{RealRow, ServiceRow, StatsRow};
use ulvs::config::{Command, Listing, Query, RealSpec, Refusal, Reply, Request};
use ulvs::lvs::{
    Endpoint, ForwardMethod, Persistence, RealKey, ServiceFlags, ServiceKey, ServiceSpec, SyncRole,
    Thresholds, Timeouts, Tunnel, TunnelChecksum, Weight,
};

use crate::family::{CONTROL, Errno, FAMILY, answer};
use crate::message::{
    Attributes, Draft, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    split,
};
use crate::relay::{self, Part, Waiting};

/// A request of the family, from its generic header on, in the digits of a recording.
fn recorded(flags: u16, digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits
        .chunks(2)
        .map(|pair| std::str::from_utf8(pair).unwrap());
    let bytes: Vec<u8> = pairs
        .map(|pair| u8::from_str_radix(pair, 16).unwrap())
        .collect();
    Draft::new(FAMILY, NLM_F_REQUEST | flags, 77, 0)
        .raw(&bytes)
        .finish()
}

/// What the director was asked, and the errno of the answer.
fn asked(request: &[u8], reply: Result<Reply, Errno>) -> (Vec<Request>, Vec<Vec<u8>>) {
    let mut requests = Vec::new();
    let message = Message::first(request).unwrap();
    let datagrams = answer(&message, &mut |request| {
        requests.push(request);
        reply.clone()
    });
    (requests, datagrams)
}

fn command(digits: &str) -> Command {
    let (mut requests, datagrams) = asked(&recorded(NLM_F_ACK, digits), Ok(Reply::Done));
    assert_eq!(errno(&datagrams), Some(0));
    match requests.pop() {
        Some(Request::Do(command)) if requests.is_empty() => command,
        other => panic!("{other:?} after {requests:?}"),
    }
}

/// Of an answer that is an error or an acknowledgement.
fn errno(datagrams: &[Vec<u8>]) -> Option<Errno> {
    let [datagram] = datagrams else { return None };
    let message = Message::first(datagram).filter(|message| message.kind == NLMSG_ERROR)?;
    assert_eq!(message.sequence, 77);
    Some(-i32::from_ne_bytes(
        *message.payload().first_chunk().unwrap(),
    ))
}

fn endpoint(address: &str, port: u16) -> Endpoint {
    Endpoint::new(address.parse().unwrap(), port)
}

/// `-t 66.199.240.50:80`, whole, with what follows it.
const SERVICE: &str = "06000100 02000000 06000200 06000000 14000300 42c7f032 00000000 00000000 \
                       00000000 06000400 00500000";

fn key() -> ServiceKey {
    ServiceKey::tcp("66.199.240.50".parse().unwrap(), 80)
}

#[test]
fn services_are_read_as_ipvsadm_writes_them() {
    let added = command(&format!(
        "01010000 54000180 {SERVICE} 08000600 776c6300 0c000700 01000000 ffffffff 08000800 2c010000 \
         08000900 ffffff00"
    ));
    let mut spec = ServiceSpec::new(key(), "wlc");
    spec.persistence = Some(Persistence { timeout_s: 300 });
    spec.netmask = ulvs::lvs::Netmask::V4(0xffff_ff00);
    assert_eq!(added, Command::AddService(spec));
    let marked = command(
        "01010000 38000180 06000100 0a000000 08000500 05000000 07000600 73680000 0c000700 10000000 \
         ffffffff 08000800 00000000 08000900 80000000",
    );
    let mark = ServiceKey::Mark {
        mark: 5,
        family: ulvs::lvs::Family::V6,
    };
    let mut spec = ServiceSpec::new(mark, "sh");
    spec.flags = ServiceFlags(ServiceFlags::SCHED_2);
    assert_eq!(marked, Command::AddService(spec));
}

const SHORT_SERVICE: &str = "05000600 00000000 0c000700 00000000 ffffffff 08000800 00000000 08000900 \
                             ffffffff";

#[test]
fn servers_are_read_as_ipvsadm_writes_them() {
    let added = command(&format!(
        "05010000 54000180 {SERVICE} {SHORT_SERVICE} 60000280 06000b00 02000000 14000100 0a000064 \
         00000000 00000000 00000000 06000200 00500000 08000300 00000000 08000400 02000000 05000d00 \
         00000000 06000e00 00000000 06000f00 00000000 08000500 64000000 08000600 50000000"
    ));
    let mut real = RealSpec {
        key: RealKey(endpoint("10.0.0.100", 80)),
        weight: Weight(2),
        method: ForwardMethod::Masq,
        thresholds: Thresholds {
            upper: 100,
            lower: 80,
        },
        tunnel: Tunnel::Ipip,
    };
    let service = key();
    assert_eq!(added, Command::AddReal { service, real });
    let wrapped = command(&format!(
        "06010000 54000180 {SERVICE} {SHORT_SERVICE} 60000280 06000b00 02000000 14000100 0a000065 \
         00000000 00000000 00000000 06000200 00500000 08000300 02000000 08000400 01000000 05000d00 \
         01000000 06000e00 15b30000 06000f00 00000000 08000500 00000000 08000600 00000000"
    ));
    real = RealSpec {
        key: RealKey(endpoint("10.0.0.101", 80)),
        weight: Weight(1),
        method: ForwardMethod::Tunnel,
        thresholds: Thresholds::default(),
        tunnel: Tunnel::Gue {
            port: 5555,
            checksum: TunnelChecksum::No,
        },
    };
    assert_eq!(wrapped, Command::EditReal { service, real });
    let deleted = command(&format!(
        "07010000 54000180 {SERVICE} {SHORT_SERVICE} 20000280 14000100 0a000064 00000000 00000000 \
         00000000 06000200 00500000"
    ));
    let real = RealKey(endpoint("10.0.0.100", 80));
    assert_eq!(deleted, Command::DeleteReal { service, real });
}

#[test]
fn the_rest_is_read_as_ipvsadm_writes_it() {
    assert_eq!(command("10010000"), Command::Zero(None));
    assert_eq!(command("11010000"), Command::Flush);
    let zero = format!("10010000 54000180 {SERVICE} {SHORT_SERVICE}");
    assert_eq!(command(&zero), Command::Zero(Some(key())));
    let timeouts = Timeouts {
        tcp_s: 900,
        tcp_fin_s: 120,
        udp_s: 300,
    };
    let set = command("0c010000 08000400 84030000 08000500 78000000 08000600 2c010000");
    assert_eq!(set, Command::SetTimeouts(timeouts));
    let start = "09010000 20000380 08000100 01000000 09000200 65746830 00000000 08000300 05000000";
    let Command::StartSync(daemon) = command(start) else {
        panic!("no daemon");
    };
    assert_eq!(
        (daemon.interface(), daemon.sync_id, daemon.port),
        ("eth0", 5, None)
    );
    let stop = "0a010000 1c000380 08000100 01000000 05000200 00000000 08000300 00000000";
    assert_eq!(command(stop), Command::StopSync(SyncRole::Master));
}

#[test]
fn flags_that_are_not_spoken_of_stay() {
    let mut now = ServiceSpec::new(key(), "rr");
    now.flags = ServiceFlags(ServiceFlags::ONE_PACKET | ServiceFlags::SCHED_1);
    now.persistence = Some(Persistence { timeout_s: 50 });
    let row = ServiceRow {
        spec: now,
        stats: StatsRow::default(),
        reals: Vec::new(),
    };
    // Only flag 1 is spoken of, and it shall go.
    let request = recorded(
        NLM_F_ACK,
        &format!(
            "02010000 54000180 {SERVICE} 08000600 77727200 0c000700 00000000 08000000 08000800 \
             00000000 08000900 ffffffff"
        ),
    );
    let mut done = None;
    let message = Message::first(&request).unwrap();
    answer(&message, &mut |request| match request {
        Request::Do(command) => {
            done = Some(command);
            Ok(Reply::Done)
        }
        _ => Ok(services(vec![row.clone()])),
    });
    let Some(Command::EditService(spec)) = done else {
        panic!("{done:?}");
    };
    assert_eq!(spec.flags, ServiceFlags(ServiceFlags::ONE_PACKET));
    assert_eq!(spec.persistence, Some(Persistence { timeout_s: 50 }));
    assert_eq!(spec.scheduler, "wrr");
}

fn services(services: Vec<ServiceRow>) -> Reply {
    Reply::Listing(Listing::Services {
        table_size: 4096,
        services,
    })
}

#[test]
fn refusals_have_the_kernels_numbers() {
    let flush = recorded(NLM_F_ACK, "11010000");
    for (refusal, number) in [
        (Refusal::ServiceExists, libc::EEXIST),
        (Refusal::NoSuchService, libc::ESRCH),
        (Refusal::NoSuchDestination, libc::ENOENT),
        (Refusal::Invalid, libc::EINVAL),
        (Refusal::OutOfRange, libc::ERANGE),
    ] {
        let (_, datagrams) = asked(&flush, Ok(Reply::Refused(refusal)));
        assert_eq!(errno(&datagrams), Some(number));
        // The request stands behind it.
        assert!(datagrams[0].ends_with(&flush));
    }
    let (_, datagrams) = asked(&flush, Err(libc::ECONNREFUSED));
    assert_eq!(errno(&datagrams), Some(libc::ECONNREFUSED));
    for wrong in [
        "",
        "63010000",
        "01010000",
        "05010000 04000180",
        "04010000",
        "0b010000",
    ] {
        let request = recorded(NLM_F_ACK, wrong);
        let (requests, datagrams) = asked(&request, Ok(Reply::Done));
        assert_eq!(requests, [], "{wrong}");
        let refused = errno(&datagrams).unwrap();
        assert!(
            [libc::EINVAL, libc::EOPNOTSUPP].contains(&refused),
            "{wrong}: {refused}"
        );
    }
    // Cut anywhere, a request changes nothing and breaks nothing.
    let whole = format!("01010000 38000180 {SERVICE}");
    for cut in 0..whole.len() {
        asked(&recorded(NLM_F_ACK, &whole[..cut & !1]), Ok(Reply::Done));
    }
}

#[test]
fn a_long_listing_comes_in_several_datagrams() {
    let real = |number: u16| RealRow {
        spec: RealSpec {
            key: RealKey(endpoint("fd00::5", number)),
            weight: Weight(1),
            method: ForwardMethod::FullNat,
            thresholds: Thresholds::default(),
            tunnel: Tunnel::Ipip,
        },
        active: 3,
        inactive: 4,
        persistent: 0,
        stats: StatsRow {
            counters: [1, 2, 3, 1 << 40, 5],
            rates: [6, 7, 8, 9, 1 << 33],
        },
    };
    let row = ServiceRow {
        spec: ServiceSpec::new(key(), "wlc"),
        stats: StatsRow::default(),
        reals: (1..=200).map(real).collect(),
    };
    let request = recorded(NLM_F_DUMP, &format!("08010000 30000180 {SERVICE}"));
    let (requests, datagrams) = asked(&request, Ok(services(vec![row])));
    assert_eq!(requests, [Request::Ask(Query::Services(Some(key())))]);
    assert!(datagrams.len() > 5 && datagrams.iter().all(|one| one.len() <= 8192));
    let mut messages: Vec<Message> = Vec::new();
    for datagram in &datagrams {
        messages.extend(split(datagram).unwrap());
    }
    assert_eq!(messages.pop().map(|last| last.kind), Some(NLMSG_DONE));
    assert_eq!(messages.len(), 200);
    let (_, attributes) = messages[199].generic().unwrap();
    let server = attributes.nested(2).unwrap();
    assert_eq!(
        (server.port(2), server.word(3), server.word(7)),
        (Some(200), Some(0), Some(3))
    );
    let [old, wide] = [10, 12].map(|number| server.nested(number).unwrap());
    let long = |stats: &Attributes, at| stats.get(at).map(|eight| eight.try_into().unwrap());
    assert_eq!(long(&old, 4).map(u64::from_ne_bytes), Some(1 << 40));
    assert_eq!(old.word(10), Some(0));
    assert_eq!(long(&wide, 10).map(u64::from_ne_bytes), Some(1 << 33));
}

#[test]
fn only_our_messages_are_taken() {
    let resolve = |name: &str| {
        let mut draft = Draft::generic(CONTROL, NLM_F_REQUEST, 1, 3);
        draft.text(2, name);
        draft.finish()
    };
    let mut ask = |_| Ok(Reply::Listing(Listing::Timeouts(Timeouts::default())));
    assert_eq!(relay::answer(&resolve("nl80211"), &mut ask), None);
    assert_eq!(relay::answer(b"GET / HTTP/1.1\r\n\r\n", &mut ask), None);
    let both = [resolve("IPVS"), resolve("nl80211")].concat();
    let parts = relay::answer(&both, &mut ask).unwrap();
    let [Part::Answered(datagrams), Part::Kernels(rest)] = parts.as_slice() else {
        panic!("{parts:?}");
    };
    assert_eq!(*rest, resolve("nl80211"));
    let (command, attributes) = Message::first(&datagrams[0]).unwrap().generic().unwrap();
    assert_eq!((command, attributes.short(1)), (1, Some(FAMILY)));
    // Without a director there is no such family.
    let mut nobody = |_| Err(libc::ECONNREFUSED);
    let ipvs = resolve("IPVS");
    let parts = relay::answer(&ipvs, &mut nobody).unwrap();
    let Part::Answered(datagrams) = &parts[0] else {
        panic!("{parts:?}");
    };
    assert_eq!(datagrams[0][16..20], (-libc::ENOENT).to_ne_bytes());
}

#[test]
fn no_bytes_break_it() {
    let mut rng = ulvs::rng::Rng::new(5);
    let whole = format!("05010000 54000180 {SERVICE} {SHORT_SERVICE} 60000280 06000b00 02000000");
    let good = recorded(NLM_F_ACK | NLM_F_DUMP, &whole);
    let mut answered = 0;
    for _ in 0..50_000 {
        let mut bytes = good.clone();
        // The command and a few bytes more; lengths are among them.
        bytes[16] = rng.next_u64() as u8 % 19;
        for _ in 0..rng.next_u64() % 6 {
            let at = rng.next_u64() as usize % bytes.len();
            bytes[at] = rng.next_u64() as u8;
        }
        let replies = [
            Ok(Reply::Done),
            Ok(services(Vec::new())),
            Err(libc::ECONNREFUSED),
        ];
        let reply = &replies[rng.next_u64() as usize % 3];
        let parts = relay::answer(&bytes, &mut |_| reply.clone());
        for part in parts.into_iter().flatten() {
            let Part::Answered(datagrams) = part else {
                continue;
            };
            for mut datagram in datagrams {
                crate::message::address_to(&mut datagram, 3);
                assert!(split(&datagram).is_some_and(|all| all.iter().all(|one| one.port == 3)));
                answered += 1;
            }
        }
    }
    assert!(answered > 20_000, "{answered}");
}

#[test]
fn an_answer_is_found_by_its_place() {
    let datagrams: VecDeque<Vec<u8>> = [vec![1], vec![2]].into();
    let held = relay::keep(Waiting { fd: 9, datagrams });
    // What the kernel makes of it: an acknowledgement with its header.
    let message = Message::first(&held).unwrap();
    let place = crate::message::error(&message, 0);
    let (number, _) = relay::place(&place).unwrap();
    assert_eq!(relay::look(number), Some(vec![1]));
    let (first, rest) = relay::take(number).unwrap();
    assert_eq!((first, relay::look(number)), (vec![1], None));
    let rest = rest.unwrap();
    assert_eq!(rest.datagrams, [vec![2]]);
    let held = relay::keep(rest);
    relay::forget(8);
    assert!(relay::any());
    relay::forget(9);
    assert_eq!(relay::look(Message::first(&held).unwrap().sequence), None);
    // Another's acknowledgement is nobody's place.
    let other = crate::message::error(&Message::first(&recorded(0, "11010000")).unwrap(), 0);
    assert_eq!(relay::place(&other), None);
    assert_eq!(relay::place(&place[..35]), None);
}
