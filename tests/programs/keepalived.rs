//! Debian's keepalived checks two services, one of each family, and keeps a director up to date.

use std::fs;

use crate::both::{Both, PORT, VIPS, end_of};
use crate::site::{Inside, build_library, is_installed, ulvs, until};

/// Two servers and a third one for when there are too few; checked by connecting and by asking. The
/// IPv6 service wants both servers, or none.
const CONFIG: &str = "
virtual_server VIP 8080 {
    delay_loop 1
    warmup 0
    connect_timeout 2
    retry 1
    delay_before_retry 1
    lvs_sched wrr
    lvs_method NAT
    protocol TCP
    quorum QUORUM
    sorry_server REAL3 8080
    real_server REAL1 8080 {
        weight 2
        TCP_CHECK { }
    }
    real_server REAL2 8080 {
        weight 1
        HTTP_GET {
            url {
                path /health
                status_code 200
            }
        }
    }
}
";

struct Keepalived {
    process: Inside,
}

fn path(both: &Both, name: &str) -> String {
    both.site.folder.join(name).to_str().unwrap().to_string()
}

impl Keepalived {
    /// Starts it, when it was started so often before.
    fn start(both: &Both, before: usize) -> Keepalived {
        let files = ["keepalived.conf", "parent.pid", "vrrp.pid", "checkers.pid"];
        let [config, parent, vrrp, checkers] = files.map(|name| path(both, name));
        let words = [
            ulvs().to_str().unwrap(),
            "exec",
            "--",
            "keepalived",
            "-n",
            "-l",
        ];
        let files = ["-f", &config, "-p", &parent, "-r", &vrrp, "-c", &checkers];
        let process = both.site.start("director", &[&words[..], &files].concat());
        until("keepalived has begun to check", || {
            let begins = log(both).matches("Activating healthchecker").count();
            (begins >= 4 * (before + 1)).then_some(())
        });
        Keepalived { process }
    }

    /// Stops it in order.
    fn stop(mut self, both: &Both) {
        self.signal(both, "TERM", &["parent.pid"]);
        assert!(self.process.wait().success());
    }

    /// Sends a signal to its processes, as their files name them.
    fn signal(&self, both: &Both, number: &str, files: &[&str]) {
        let files: Vec<String> = files.iter().map(|name| path(both, name)).collect();
        let script = format!("kill -{number} $(cat {})", files.join(" "));
        both.site.fine("director", &["sh", "-c", &script]);
    }
}

/// What it says, whichever way it chose.
fn log(both: &Both) -> String {
    fs::read_to_string(both.site.complaints()).unwrap_or_default()
}

fn config() -> String {
    let one = |vip: &str, quorum: &str, real: &str| {
        let text = CONFIG.replace("VIP", vip).replace("QUORUM", quorum);
        text.replace("REAL", real)
    };
    one("1.2.3.1", "1", "192.168.1.1") + &one("fd00:c::1", "3", "fd00:5::1")
}

#[test]
fn debians_keepalived_runs_a_director() {
    build_library();
    if !is_installed("keepalived") {
        return;
    }
    let Some(mut both) = Both::new() else {
        return;
    };
    fs::write(both.site.folder.join("keepalived.conf"), config()).unwrap();
    let keepalived = Keepalived::start(&both, 0);
    let all: &[(u8, u32)] = &[(1, 2), (2, 1)];
    both.wait_for_servers(PORT, [all, all]);
    servers_come_and_go(&mut both);
    both.wait_for_servers(PORT, [all, all]);
    let keepalived = killed_and_started_again(&both, keepalived);
    keepalived.stop(&both);
    assert_eq!(both.rules(), "");
    assert!(!log(&both).contains("IPVS:"), "{}", log(&both));
}

/// keepalived does not look whether what it did is still there. It goes on where that is put back, and
/// does it again when it is started again.
#[test]
fn keepalived_and_a_director_that_is_started_again() {
    build_library();
    if !is_installed("keepalived") {
        return;
    }
    let Some(mut both) = Both::new() else {
        return;
    };
    fs::write(both.site.folder.join("keepalived.conf"), config()).unwrap();
    let keepalived = Keepalived::start(&both, 0);
    let all: &[(u8, u32)] = &[(1, 2), (2, 1)];
    both.wait_for_servers(PORT, [all, all]);

    fs::write(both.site.folder.join("saved"), both.rules()).unwrap();
    both.restart_director();
    let restore = format!("{} adm -R < {}", ulvs().display(), path(&both, "saved"));
    both.site.fine("director", &["sh", "-c", &restore]);
    both.wait_for_servers(PORT, [all, all]);
    both.end_server("rs2");
    both.wait_for_servers(PORT, [&[(1, 2)], &[(3, 1)]]);
    both.start_server("rs2");
    both.wait_for_servers(PORT, [all, all]);
    assert!(!log(&both).contains("IPVS:"), "{}", log(&both));

    // Nothing is put back this time: what it asks for then is refused, and it says so, and goes on.
    both.restart_director();
    both.end_server("rs2");
    until("it complains", || log(&both).contains("IPVS").then_some(()));
    both.start_server("rs2");
    assert_eq!(both.rules(), "");
    keepalived.stop(&both);
    let keepalived = Keepalived::start(&both, 1);
    both.wait_for_servers(PORT, [all, all]);
    for vip in VIPS {
        let six = both.answers(&format!("{vip}:{PORT}"), 6);
        assert_eq!(six, [("rs1".to_string(), 4), ("rs2".to_string(), 2)].into());
    }
    keepalived.stop(&both);
    assert_eq!(both.rules(), "");
}

fn servers_come_and_go(both: &mut Both) {
    let services = VIPS.map(|vip| format!("{vip}:{PORT}"));
    // IPv6 has too few then, and says sorry.
    both.end_server("rs2");
    both.wait_for_servers(PORT, [&[(1, 2)], &[(3, 1)]]);
    assert_eq!(
        both.answers(&services[0], 4),
        [("rs1".to_string(), 4)].into()
    );
    assert_eq!(
        both.answers(&services[1], 4),
        [("rs3".to_string(), 4)].into()
    );
    both.end_server("rs1");
    both.wait_for_servers(PORT, [&[(3, 1)], &[(3, 1)]]);
    assert_eq!(
        both.answers(&services[0], 4),
        [("rs3".to_string(), 4)].into()
    );
    both.start_server("rs1");
    both.wait_for_servers(PORT, [&[(1, 2)], &[(3, 1)]]);
    both.start_server("rs2");
    both.wait_for_servers(PORT, [&[(1, 2), (2, 1)], &[(1, 2), (2, 1)]]);
    let six = both.answers(&services[1], 6);
    assert_eq!(six, [("rs1".to_string(), 4), ("rs2".to_string(), 2)].into());
}

/// By force, once with its checker and once without, which then takes the services away. Connections
/// outlast both.
fn killed_and_started_again(both: &Both, mut keepalived: Keepalived) -> Keepalived {
    let stays = VIPS.map(|vip| both.stay(&format!("{vip}:{PORT}"), 12));
    for (number, files) in [&["checkers.pid", "parent.pid"][..], &["parent.pid"]]
        .into_iter()
        .enumerate()
    {
        if files.len() == 2 {
            // Nobody shall see the other end, and have time to do something about it.
            keepalived.signal(both, "STOP", files);
        }
        keepalived.signal(both, "KILL", files);
        assert!(!keepalived.process.wait().success());
        match files.len() {
            2 => assert_eq!(both.rules().lines().count(), 6, "{}", both.rules()),
            _ => until("the services are gone", || {
                both.rules().is_empty().then_some(())
            }),
        }
        keepalived = Keepalived::start(both, number + 1);
        both.wait_for_servers(PORT, [&[(1, 2), (2, 1)], &[(1, 2), (2, 1)]]);
    }
    for stay in stays {
        let report = end_of(stay);
        assert_eq!(report["broken"], serde_json::json!({}), "{report}");
        assert!(report["pages_min"].as_u64() > Some(2), "{report}");
    }
    keepalived
}
