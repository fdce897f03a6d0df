//! The kernel's rules, by scripted commands: what is refused, the order of servers, the trash, batches,
//! counters.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::tests::*;
use crate::config::command::StatsRow;
use crate::config::{Command, RealSpec, Refusal, Reply};
use crate::director::snapshot::SnapshotId;
use crate::lvs::{
    Family, ForwardMethod, Netmask, Persistence, Protocol, RealKey, ServiceFlags, ServiceKey,
    ServiceSpec, Stats, Thresholds, Timeouts, Tunnel, TunnelChecksum, Weight,
};

fn add_with(change: impl FnOnce(&mut RealSpec)) -> Command {
    let mut real = spec("192.168.1.99", 1);
    change(&mut real);
    Command::AddReal {
        service: web(),
        real,
    }
}

fn service_with(change: impl FnOnce(&mut ServiceSpec)) -> Command {
    let mut spec = ServiceSpec::new(ServiceKey::tcp(ip("10.0.0.100"), 81), "rr");
    change(&mut spec);
    Command::AddService(spec)
}

const GUE_TO_PORT_0: Tunnel = Tunnel::Gue {
    port: 0,
    checksum: TunnelChecksum::No,
};

/// tests/golden/cli: 004, 010, 012, 013, 022, 027, 028, 033, 042, 045, 046, 052, 058.
#[test]
fn refuses_what_the_kernel_refuses_and_with_its_word() {
    let mut room = Room::new(1);
    let absent = ServiceKey::tcp(ip("10.0.0.100"), 99);
    let script = [
        (add_web("rr"), Ok(())),
        (add_web("rr"), Err(Refusal::ServiceExists)),
        (add_web("nosuch"), Err(Refusal::ServiceExists)),
        (
            service_with(|spec| spec.scheduler = "nosuch".into()),
            Err(Refusal::SchedulerNotFound),
        ),
        (
            service_with(|spec| spec.engine = Some("nosuch".into())),
            Err(Refusal::SchedulerNotFound),
        ),
        (
            Command::EditService(ServiceSpec::new(web(), "nosuch")),
            Err(Refusal::SchedulerNotFound),
        ),
        (
            Command::EditService(ServiceSpec::new(absent, "nosuch")),
            Err(Refusal::NoSuchService),
        ),
        (Command::DeleteService(absent), Err(Refusal::NoSuchService)),
        (Command::Zero(Some(absent)), Err(Refusal::NoSuchService)),
        (Command::Zero(Some(web())), Ok(())),
        (Command::Zero(None), Ok(())),
        (add("192.168.1.11", 1), Ok(())),
        (add("192.168.1.11", 1), Err(Refusal::DestinationExists)),
        (add("192.168.1.11", -1), Err(Refusal::OutOfRange)),
        (edit("192.168.1.12", 1), Err(Refusal::NoSuchDestination)),
        (edit("192.168.1.12", -1), Err(Refusal::OutOfRange)),
        (delete("192.168.1.12"), Err(Refusal::NoSuchDestination)),
        (
            Command::AddReal {
                service: absent,
                real: spec("192.168.1.11", 1),
            },
            Err(Refusal::ServiceNotDefined),
        ),
        (
            Command::EditReal {
                service: absent,
                real: spec("192.168.1.11", -1),
            },
            Err(Refusal::ServiceNotDefined),
        ),
        (
            Command::DeleteReal {
                service: absent,
                real: RealKey(endpoint("192.168.1.11", 80)),
            },
            Err(Refusal::ServiceNotDefined),
        ),
        (
            add_with(|real| real.thresholds.lower = 10),
            Err(Refusal::OutOfRange),
        ),
        (
            add_with(|real| {
                real.thresholds = Thresholds {
                    upper: 5,
                    lower: 10,
                }
            }),
            Err(Refusal::OutOfRange),
        ),
        (
            add_with(|real| {
                real.thresholds = Thresholds {
                    upper: 10,
                    lower: 10,
                }
            }),
            Ok(()),
        ),
        (
            add_with(|real| real.method = ForwardMethod::Bypass),
            Err(Refusal::Invalid),
        ),
        (
            add_with(|real| real.tunnel = GUE_TO_PORT_0),
            Err(Refusal::Invalid),
        ),
        (add("224.0.0.1", 1), Err(Refusal::Invalid)),
        (add("255.255.255.255", 1), Err(Refusal::Invalid)),
        (add("0.0.0.0", 1), Err(Refusal::Invalid)),
        (add("192.168.1.255", 1), Err(Refusal::Invalid)),
        (add("127.0.0.1", 1), Ok(())),
        (add("192.168.1.1", i32::MAX), Ok(())),
        (add("fd00:5::11", 1), Err(Refusal::Invalid)),
        (
            service_with(|spec| spec.key = ServiceKey::tcp(ip("0.0.0.0"), 80)),
            Ok(()),
        ),
        (
            service_with(|spec| spec.key = ServiceKey::tcp(ip("224.0.0.1"), 80)),
            Ok(()),
        ),
        (Command::Flush, Ok(())),
        (Command::Flush, Ok(())),
        (Command::DeleteService(web()), Err(Refusal::NoSuchService)),
    ];
    for (step, (command, expected)) in script.into_iter().enumerate() {
        let words = format!("step {step}: {command:?}");
        assert_eq!(room.status(command), expected, "{words}");
    }
}

/// What ipvsadm cannot say, but a line on the control socket can.
#[test]
fn refuses_what_no_service_can_be() {
    let mut room = Room::new(1);
    let marked = |mark| ServiceKey::Mark {
        mark,
        family: Family::V6,
    };
    let icmp = ServiceKey::Address {
        protocol: Protocol::ICMP,
        virt: endpoint("10.0.0.100", 0),
    };
    let life = |timeout_s| Some(Persistence { timeout_s });
    let refused = [
        service_with(|spec| spec.key = icmp),
        service_with(|spec| (spec.key, spec.netmask) = (marked(0), Netmask::V6(128))),
        service_with(|spec| spec.netmask = Netmask::V6(128)),
        service_with(|spec| (spec.key, spec.netmask) = (marked(5), Netmask::V6(0))),
        service_with(|spec| (spec.key, spec.netmask) = (marked(5), Netmask::V6(129))),
        service_with(|spec| spec.persistence = life(0)),
        service_with(|spec| spec.persistence = life(2_678_401)),
        service_with(|spec| spec.flags = ServiceFlags(0x1)),
        Command::SetTimeouts(Timeouts {
            tcp_s: 2_678_401,
            tcp_fin_s: 1,
            udp_s: 1,
        }),
        Command::SetTunable {
            name: "sloppy_tcp".into(),
            value: "yes".into(),
        },
    ];
    for command in refused {
        assert_eq!(
            room.status(command.clone()),
            Err(Refusal::Invalid),
            "{command:?}"
        );
    }
    let unknown = Command::SetTunable {
        name: "sloppy".into(),
        value: "1".into(),
    };
    assert_eq!(room.status(unknown), Err(Refusal::UnknownTunable));
    assert_eq!(
        room.plane.snapshot().id,
        SnapshotId(1),
        "nothing of this became a snapshot"
    );

    let fine = service_with(|spec| (spec.key, spec.netmask) = (marked(5), Netmask::V6(64)));
    assert_eq!(room.status(fine), Ok(()));
    for (address, expected) in [
        ("fe80::1", Err(Refusal::Invalid)),
        ("ff02::1", Err(Refusal::Invalid)),
        ("::", Err(Refusal::Invalid)),
        ("::ffff:10.0.0.1", Err(Refusal::Invalid)),
        ("::1", Ok(())),
        ("fd00:5::11", Ok(())),
    ] {
        let real = spec(address, 1);
        let command = Command::AddReal {
            service: marked(5),
            real,
        };
        assert_eq!(room.status(command), expected, "{address}");
    }
    let mut other = spec("192.168.1.11", 1);
    other.method = ForwardMethod::Tunnel;
    assert_eq!(
        room.status(Command::AddReal {
            service: marked(5),
            real: other
        }),
        Ok(())
    );
    other.method = ForwardMethod::Route;
    let back = Command::EditReal {
        service: marked(5),
        real: other,
    };
    assert_eq!(
        room.status(back),
        Err(Refusal::Invalid),
        "only a tunnel crosses families"
    );
}

#[test]
fn a_new_server_stands_at_the_head_and_an_edited_one_where_it_was() {
    let mut room = Room::new(1);
    let order = |room: &mut Room| -> Vec<String> {
        let row = room.row(web());
        row.reals
            .iter()
            .map(|real| format!("{}={}", real.spec.key.0.address, real.spec.weight.0))
            .collect()
    };
    room.run(add_web("rr"));
    for (address, weight) in [
        ("192.168.1.11", 1),
        ("192.168.1.12", 2),
        ("192.168.1.13", 3),
    ] {
        assert_eq!(room.run(add(address, weight)), Reply::Done);
    }
    assert_eq!(
        order(&mut room),
        ["192.168.1.13=3", "192.168.1.12=2", "192.168.1.11=1"]
    );
    room.run(edit("192.168.1.12", 0));
    assert_eq!(
        order(&mut room),
        ["192.168.1.13=3", "192.168.1.12=0", "192.168.1.11=1"]
    );
    let snapshot = room.plane.snapshot();
    let edited = &snapshot.service(&web()).expect("service").reals[1];
    assert_eq!((edited.weight, edited.last_weight), (Weight(0), Weight(2)));
    assert_eq!(edited.live.weight.load(Relaxed), 0);
    room.run(delete("192.168.1.11"));
    room.run(add("192.168.1.11", 0));
    assert_eq!(
        order(&mut room),
        ["192.168.1.11=0", "192.168.1.13=3", "192.168.1.12=0"]
    );
    let snapshot = room.plane.snapshot();
    let added = &snapshot.service(&web()).expect("service").reals[0];
    assert_eq!(
        added.last_weight,
        Weight(0),
        "a server added with weight 0 has no share in mh"
    );
}

/// tests/golden/states/readd-counts.json and readd-service-counts.json.
#[test]
fn a_server_added_again_has_its_connections_back() {
    let mut room = Room::new(2);
    room.run(add_web("rr"));
    room.run(add("192.168.1.11", 1));
    let live = room.live(web(), 0);
    live.inactive.store(3, Relaxed);
    Stats::bump(&live.stats[1].conns, 3);
    room.sleep_ms(2_200);
    room.run(delete("192.168.1.11"));
    assert!(!live.available.load(Relaxed), "its packets are dropped");
    room.run(add("192.168.1.11", 5));
    assert!(live.available.load(Relaxed) && Arc::ptr_eq(&live, &room.live(web(), 0)));
    let row = room.row(web()).reals[0];
    assert_eq!(
        (row.spec.weight, row.active, row.inactive),
        (Weight(5), 0, 3)
    );
    assert_eq!(
        row.stats.counters[0], 3,
        "the same service: statistics go on"
    );

    room.run(Command::DeleteService(web()));
    assert!(!live.available.load(Relaxed));
    room.run(add_web("wlc"));
    room.run(add("192.168.1.11", 5));
    assert!(Arc::ptr_eq(&live, &room.live(web(), 0)));
    let row = room.row(web()).reals[0];
    assert_eq!(
        (row.inactive, row.stats.counters[0]),
        (3, 0),
        "another service: they start anew"
    );
}

#[test]
fn the_trash_forgets_a_server_that_nobody_holds_for_two_minutes() {
    let mut room = Room::new(1);
    room.run(add_web("rr"));
    let again = |room: &mut Room| {
        room.run(add("192.168.1.11", 1));
        room.live(web(), 0).id
    };
    let first = again(&mut room);
    let connection = room.live(web(), 0);
    room.run(delete("192.168.1.11"));
    room.sleep_ms(1_000_000);
    assert_eq!(again(&mut room), first, "a connection held it");
    room.run(delete("192.168.1.11"));
    drop(connection);
    room.sleep_ms(170_000);
    assert_eq!(
        again(&mut room),
        first,
        "seen idle after 60 s, two minutes not over"
    );
    room.run(delete("192.168.1.11"));
    room.sleep_ms(190_000);
    assert_ne!(again(&mut room), first, "idle for two minutes");
}

#[test]
fn an_edit_of_thresholds_may_clear_the_flag_and_never_sets_it() {
    let mut room = Room::new(1);
    room.run(add_web("rr"));
    room.run(add("192.168.1.11", 1));
    let live = room.live(web(), 0);
    live.active.store(4, Relaxed);
    let limit = |upper, lower| {
        let thresholds = Thresholds { upper, lower };
        let real = RealSpec {
            thresholds,
            ..spec("192.168.1.11", 1)
        };
        Command::EditReal {
            service: web(),
            real,
        }
    };
    room.run(limit(4, 2));
    assert!(
        !live.overloaded.load(Relaxed),
        "the next connection sets it"
    );
    live.mark_if_overloaded();
    room.run(limit(3, 2));
    assert!(live.overloaded.load(Relaxed));
    room.run(limit(20, 10));
    assert!(!live.overloaded.load(Relaxed));
    assert_eq!(
        room.row(web()).reals[0].spec.thresholds,
        Thresholds {
            upper: 20,
            lower: 10
        }
    );
}

#[test]
fn a_batch_with_one_bad_line_changes_nothing() {
    let made = || {
        let mut room = Room::new(1);
        room.run(add_web("wrr"));
        for (address, weight) in [
            ("192.168.1.11", 3),
            ("192.168.1.12", 2),
            ("192.168.1.13", 1),
        ] {
            room.run(add(address, weight));
        }
        room
    };
    let (mut room, twin) = (made(), made());
    assert_eq!(
        room.picks(web(), 2),
        twin.picks(web(), 2),
        "both stand in the middle of a round"
    );
    let before = room.plane.snapshot();
    let other = ServiceKey::tcp(ip("10.0.0.100"), 443);
    let good = [
        edit("192.168.1.11", 9),
        delete("192.168.1.12"),
        add("192.168.1.12", 4),
        Command::AddService(ServiceSpec::new(other, "rr")),
        Command::AddReal {
            service: other,
            real: spec("192.168.1.11", 1),
        },
        Command::SetTunable {
            name: "sloppy_tcp".into(),
            value: "1".into(),
        },
        Command::EditService(ServiceSpec::new(web(), "lc")),
    ];
    for bad in [
        Command::AddService(ServiceSpec::new(other, "rr")),
        Command::AddReal {
            service: other,
            real: spec("192.168.1.11", 1),
        },
        Command::SetTunable {
            name: "sloppy_tcp".into(),
            value: "x".into(),
        },
        Command::Batch(vec![Command::Flush, delete("192.168.1.11")]),
        Command::Batch(vec![delete("192.168.1.12"), edit("192.168.1.12", 1)]),
    ] {
        let batch = Command::Batch(good.iter().cloned().chain([bad.clone()]).collect());
        assert!(matches!(room.run(batch), Reply::Refused(_)), "{bad:?}");
        assert!(Arc::ptr_eq(&before, &room.plane.snapshot()));
    }
    assert_eq!(
        room.picks(web(), 12),
        twin.picks(web(), 12),
        "nor was the scheduler disturbed"
    );

    assert_eq!(room.run(Command::Batch(good.to_vec())), Reply::Done);
    let after = room.plane.snapshot();
    assert_eq!(after.id.0, before.id.0 + 1, "one snapshot for all");
    assert!(after.tunables.sloppy_tcp != 0 && after.service(&other).is_some());
    let reals = &after.service(&web()).expect("service").reals;
    let weights: Vec<i32> = reals.iter().map(|real| real.weight.0).collect();
    assert_eq!(weights, [4, 1, 9], "deleted and added again: at the head");
}

#[test]
fn a_batch_sees_what_its_own_lines_did() {
    let mut room = Room::new(1);
    room.run(add_web("rr"));
    room.run(add("192.168.1.11", 1));
    let fine = [
        vec![Command::Flush, add_web("rr"), add("192.168.1.11", 1)],
        vec![
            Command::DeleteService(web()),
            add_web("rr"),
            add("192.168.1.11", 1),
        ],
        vec![
            delete("192.168.1.11"),
            add("192.168.1.11", 1),
            edit("192.168.1.11", 2),
        ],
    ];
    for batch in fine {
        assert_eq!(
            room.run(Command::Batch(batch.clone())),
            Reply::Done,
            "{batch:?}"
        );
    }
    let bad = Command::Batch(vec![
        Command::DeleteService(web()),
        add_web("rr"),
        delete("192.168.1.11"),
    ]);
    assert_eq!(room.run(bad), Reply::Refused(Refusal::NoSuchDestination));
}

#[test]
fn a_scheduler_starts_anew_only_under_another_name() {
    let mut room = Room::new(1);
    room.run(add_web("rr"));
    for address in ["192.168.1.11", "192.168.1.12", "192.168.1.13"] {
        room.run(add(address, 1));
    }
    let first = room.picks(web(), 1)[0];
    let edited = |name: &str| Command::EditService(ServiceSpec::new(web(), name));
    room.run(edited("rr"));
    assert_ne!(room.picks(web(), 1)[0], first, "the round goes on");
    room.run(edited("wrr"));
    room.run(edited("rr"));
    assert_eq!(room.picks(web(), 1)[0], first, "a new round begins");
    room.run(edited("none"));
    let snapshot = room.plane.snapshot();
    assert!(
        snapshot
            .service(&web())
            .expect("service")
            .scheduler
            .is_none()
    );
    room.run(add("192.168.1.14", 1));
    room.run(edited("rr"));
    assert_eq!(
        room.picks(web(), 1),
        [ip("192.168.1.14")],
        "it knows what came meanwhile"
    );
}

/// tests/golden/states/stats-large.json.
#[test]
fn counters_are_listed_as_the_estimator_copies_them() {
    let mut room = Room::new(2);
    room.run(add_web("rr"));
    room.run(add("192.168.1.11", 1));
    let live = room.live(web(), 0);
    let count = |conns: u64, packets: u64, bytes: u64| {
        Stats::bump(&live.stats[0].conns, conns);
        Stats::bump(&live.stats[0].in_packets, packets / 2);
        Stats::bump(&live.stats[1].in_packets, packets - packets / 2);
        Stats::bump(&live.stats[1].in_bytes, bytes);
    };
    let stats = |room: &mut Room| room.row(web()).reals[0].stats;
    count(1, 10, 13_000);
    assert_eq!(stats(&mut room).counters, [0; 5], "nothing was copied yet");
    room.sleep_ms(2_200);
    assert_eq!(stats(&mut room).counters, [1, 10, 0, 13_000, 0]);
    assert_eq!(stats(&mut room).rates, [0, 1, 0, 1625, 0]);
    count(0, 3_000, 4_320_000);
    room.sleep_ms(2_200);
    assert_eq!(stats(&mut room).rates, [0, 376, 0, 541_219, 0]);
    assert_eq!(stats(&mut room).counters, [1, 3_010, 0, 4_333_000, 0]);
    count(2, 0, 0);
    room.run(Command::Zero(None));
    assert_eq!(stats(&mut room), StatsRow::default());
    room.sleep_ms(2_200);
    assert_eq!(
        stats(&mut room).counters,
        [2, 0, 0, 0, 0],
        "counted, but not copied before the zero"
    );
}
