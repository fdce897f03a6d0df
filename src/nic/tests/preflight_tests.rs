//! Preflight: a machine that is set up well gives no warning; each trap gives its own.

use std::net::Ipv4Addr;

use super::frame_tests::two_spaces;
use super::world_tests::*;
use crate::nic::{Backend, OpenOptions, QuietRules, Severity, Side, preflight};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

/// The warnings about these ports in the calling thread's namespace.
fn warnings(backend: Backend, ports: &[&str]) -> Vec<String> {
    let option = |name: &&str| OpenOptions::new(*name, Side::Public);
    let options: Vec<_> = ports.iter().map(option).collect();
    let rules = QuietRules {
        vips: [VIP.into()].into(),
        ..QuietRules::default()
    };
    let found = preflight(backend, &options, &rules);
    assert!(found.is_sorted_by(|a, b| a.severity >= b.severity));
    found
        .iter()
        .map(|warning| {
            let word = if warning.severity == Severity::Note {
                "note"
            } else {
                "trouble"
            };
            format!("{word}: {warning}")
        })
        .collect()
}

#[track_caller]
fn only(found: &[String], begin: &str, remedy: &str) {
    let [one] = found else { panic!("{found:#?}") };
    assert!(one.starts_with(begin) && one.contains(remedy), "{one}");
}

#[test]
fn each_trap_has_its_warning() {
    in_world(User::Same, || {
        let (client, director) = two_spaces();
        director.come_in();
        // This machine may not let even root exceed the limit.
        let found = |ports: &[&str]| {
            let mut found = warnings(Backend::Packet, ports);
            found.retain(|warning| !warning.contains(" buffers are "));
            found
        };
        assert_eq!(found(&["d0"]), Vec::<String>::new());
        only(
            &found(&["d0", "d0"]),
            "trouble: interface `d0` is a port twice",
            "once",
        );
        only(
            &found(&["lo"]),
            "trouble: `lo` is the loopback",
            "neighbour",
        );

        add_address("d0", VIP, 32);
        only(
            &found(&["d0"]),
            "note: 10.0.0.100 is a virtual",
            "ip addr del 10.0.0.100/32 dev d0",
        );
        delete_address("d0", VIP, 32);

        set_tcp_segmentation("d0", false);
        only(
            &found(&["d0"]),
            "note: `d0` does not cut",
            "ethtool -K d0 tso on",
        );
        set_tcp_segmentation("d0", true);

        veth(&director, "d1", &client, "s0");
        set_mtu("d1", 1400);
        only(
            &found(&["d0", "d1"]),
            "note: `d0` takes packets of 1500",
            "ip link set d1 mtu 1500",
        );
        assert_eq!(found(&["d1"]), Vec::<String>::new());
        set_mtu("d1", 1500);

        link_down("d0");
        only(
            &found(&["d0"]),
            "trouble: `d0` is down",
            "ip link set d0 up",
        );
        link_up("d0");
        client.enter(|| link_down("c0"));
        only(&found(&["d0"]), "trouble: `d0` has no link", "other end");
        client.enter(|| link_up("c0"));

        if add_bridge("br0") {
            set_master("d0", "br0");
            only(
                &found(&["d0"]),
                "trouble: `d0` is part of a bridge",
                "ip link set d0 nomaster",
            );
        } else {
            eprintln!("skipped: this kernel has no bridges, so a port of one was not tried");
        }
    });
}

#[test]
fn a_tun_device_needs_a_kernel_that_forwards() {
    in_world(User::Same, || {
        let (_client, director) = two_spaces();
        director.come_in();
        // The questions are about the kernel around it, so any interface serves.
        sysctl("net.ipv4.ip_forward", "0");
        sysctl("net.ipv4.conf.d0.rp_filter", "0");
        only(
            &warnings(Backend::Tun, &["d0"]),
            "trouble: the kernel does not forward",
            "=1",
        );
        sysctl("net.ipv4.ip_forward", "1");
        sysctl("net.ipv4.conf.d0.rp_filter", "1");
        only(
            &warnings(Backend::Tun, &["d0"]),
            "trouble: the kernel will drop",
            "rp_filter=2",
        );
        sysctl("net.ipv4.conf.d0.rp_filter", "2");
        assert_eq!(warnings(Backend::Tun, &["d0"]), Vec::<String>::new());
    });
}

#[test]
fn an_ordinary_user_is_told_of_small_buffers() {
    in_world(User::Nobody, || {
        let (_client, director) = two_spaces();
        director.come_in();
        let found = warnings(Backend::Packet, &["d0"]);
        // Unless the machine's own limit is high already.
        for warning in &found {
            assert!(warning.contains("sysctl -w net.core."), "{warning}");
        }
    });
}
