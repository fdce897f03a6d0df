//! Debian's ldirectord, unchanged. It calls /sbin/ipvsadm by that path, so for it our program lies there:
//! in a mount namespace of its own, with folders for its files that nobody else sees.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::both::{Both, PORT, VIPS, end_of};
use crate::site::{Inside, is_installed, ulvs, until};

/// Requests on new connections to a service between two looks at its servers.
const REQUESTS: u64 = 4;

/// Three services, each checked in another way. IPv6 keeps dead servers, with weight 0.
const CONFIG: &str = r#"checktimeout=2
negotiatetimeout=2
checkinterval=1
autoreload=no

virtual=1.2.3.1:8080
    real=192.168.1.11:8080 masq 2
    real=192.168.1.12:8080 masq 1
    fallback=192.168.1.13:8080 masq
    protocol=tcp
    scheduler=wrr
    service=http
    checktype=negotiate
    request="health"
    receive="OK"
    quiescent=no

virtual6=[fd00:c::1]:8080
    real6=[fd00:5::11]:8080 masq 2
    real6=[fd00:5::12]:8080 masq 1
    fallback6=[fd00:5::13]:8080 masq
    protocol=tcp
    scheduler=wrr
    checktype=connect
    quiescent=yes

virtual=1.2.3.1:8081
    real=192.168.1.11:8080 masq 1
    real=192.168.1.12:8080 masq 1
    fallback=192.168.1.13:8080 masq
    protocol=tcp
    scheduler=rr
    checktype=external
    checkcommand="FOLDER/check"
    quiescent=no
"#;

/// It writes into /run; and its ipvsadm is ours.
const BEGIN: &str = "mount -t tmpfs tmpfs /run && mount --bind ULVS /sbin/ipvsadm \
                     && echo $$ > FOLDER/ldirectord.pid && exec ldirectord -d FOLDER/site.cf start";

/// The services, each `VIP:port`.
fn services() -> [String; 3] {
    let [four, six] = VIPS;
    [
        format!("{four}:{PORT}"),
        format!("{six}:{PORT}"),
        format!("{four}:8081"),
    ]
}

fn start(both: &Both) -> Inside {
    let folder = both.site.folder.to_str().unwrap();
    let config = CONFIG.replace("FOLDER", folder);
    fs::write(both.site.folder.join("site.cf"), config).unwrap();
    let program = ulvs().to_str().unwrap();
    // It is told the VIP, its port, the real server and its port.
    let check = both.site.folder.join("check");
    fs::write(
        &check,
        format!("#!/bin/sh\nexec {program} lab fetch $3:$4 /health\n"),
    )
    .unwrap();
    fs::set_permissions(&check, fs::Permissions::from_mode(0o755)).unwrap();
    let begin = BEGIN.replace("ULVS", program).replace("FOLDER", folder);
    let begin = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &begin,
    ];
    both.site.start("director", &begin)
}

#[test]
fn debians_ldirectord_runs_a_director() {
    if !is_installed("ldirectord") || !is_installed("ipvsadm") {
        return;
    }
    let Some(mut both) = Both::new() else {
        return;
    };
    let mut ldirectord = start(&both);
    let all: &[(u8, u32)] = &[(1, 2), (2, 1)];
    let third = |both: &Both, hosts: &[u8]| {
        let name = |host: &u8| format!("192.168.1.1{host}:{PORT} 1");
        let wanted: Vec<String> = hosts.iter().map(name).collect();
        let what = format!("the third service has {wanted:?}");
        until(&what, || {
            (both.servers(&services()[2]) == wanted).then_some(())
        });
    };
    both.wait_for_servers(PORT, [all, all]);
    third(&both, &[1, 2]);

    one_dies(&mut both);
    third(&both, &[1]);
    for service in services() {
        assert_eq!(
            both.answers(&service, 6),
            [("rs1".to_string(), 6)].into(),
            "{service}"
        );
    }
    both.end_server("rs1");
    both.wait_for_servers(PORT, [&[(3, 1)], &[(1, 0), (2, 0), (3, 1)]]);
    third(&both, &[3]);
    for service in services() {
        assert_eq!(
            both.answers(&service, 3),
            [("rs3".to_string(), 3)].into(),
            "{service}"
        );
    }
    both.start_server("rs1");
    both.start_server("rs2");
    both.wait_for_servers(PORT, [all, all]);
    third(&both, &[1, 2]);

    let number = fs::read_to_string(both.site.folder.join("ldirectord.pid")).unwrap();
    both.site
        .fine("director", &["kill", "-TERM", number.trim()]);
    assert!(ldirectord.wait().success());
    assert_eq!(both.rules(), "");
    let log = fs::read_to_string(both.site.complaints()).unwrap();
    assert!(
        log.contains("Added fallback server: 192.168.1.13:8080 (1.2.3.1:8081)"),
        "{log}"
    );
    assert!(!log.contains("failed:"), "{log}");
}

/// Whoever is not with the server that dies loses nothing: connections that ask for a page twice a
/// second, all the time, and requests on new connections until nobody is sent to the dead one any more.
fn one_dies(both: &mut Both) {
    let stays: Vec<Inside> = services().map(|service| both.stay(&service, 12)).into();
    let touched = services().map(|service| both.connections(&service, 2));
    let untouched = services().map(|service| both.connections(&service, 1));
    let given = |both: &Both, host: u8| services().map(|service| both.given(&service, host));
    let before = until("all are counted", || {
        let (one, two) = (given(both, 1), given(both, 2));
        let all = (0..3).all(|at| one[at] + two[at] >= 12 && two[at] >= touched[at] as u64);
        all.then_some(one)
    });
    both.end_server("rs2");
    let (mut asked, mut answered) = ([0; 3], [0; 3]);
    while let services = still_with(both, 2)
        && !services.is_empty()
    {
        for (at, service) in services {
            for _ in 0..REQUESTS {
                asked[at] += 1;
                answered[at] += u64::from(both.is_answered(&service));
            }
        }
    }
    assert!(asked.iter().all(|asked| *asked > 0), "{asked:?}");
    println!("of {asked:?} new requests {answered:?} were answered while one server was dead");
    until("every connection of the other server was answered", || {
        let after = given(both, 1);
        let more: [u64; 3] = std::array::from_fn(|at| after[at] - before[at]);
        (more == answered).then_some(())
    });
    both.wait_for_servers(PORT, [&[(1, 2)], &[(1, 2), (2, 0)]]);
    for (number, stay) in stays.into_iter().enumerate() {
        let report = end_of(stay);
        let broken = report["broken"].as_object().unwrap().values();
        let broken: u64 = broken.filter_map(serde_json::Value::as_u64).sum();
        assert_eq!(broken, touched[number] as u64, "{report}");
        assert!(touched[number] > 0 && untouched[number] > 0);
        assert_eq!(touched[number] + untouched[number], 12);
    }
}

/// The services that give a host connections, with their numbers.
fn still_with(both: &Both, host: u8) -> Vec<(usize, String)> {
    let gives = |service: &String| {
        let real = format!("{} ", Both::real(service, host));
        let servers = both.servers(service);
        let line = servers.iter().find_map(|line| line.strip_prefix(&real));
        line.is_some_and(|weight| weight != "0")
    };
    let services = services().into_iter().enumerate();
    services.filter(|(_, service)| gives(service)).collect()
}
