//! `ulvs lab` as people use it: real namespaces, real TCP, and nothing left afterwards, whatever
//! happens in between. Every test has a folder of its own for its labs, and finds the processes it
//! started by that folder's name in their environment.

#[path = "lab/api.rs"]
mod api;
#[path = "lab/bench.rs"]
mod bench;
#[path = "lab/flood.rs"]
mod flood;
#[path = "lab/words.rs"]
mod words;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::Value;
use ulvs::rng::Rng;

/// Long enough for a busy machine; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// The user that an ordinary user is tried with, when the tests run as root.
const NOBODY: u32 = 65534;

/// A place for labs that no other test sees, and that is empty at the end.
struct Place {
    folder: PathBuf,
    program: PathBuf,
    user: Option<u32>,
}

impl Place {
    fn new() -> Place {
        Place::of(None)
    }

    /// `None` with a printed reason where the kernel lets no ordinary user make namespaces.
    fn of_an_ordinary_user() -> Option<Place> {
        // SAFETY: geteuid only reads a number of the calling process.
        let user = (unsafe { libc::geteuid() } == 0).then_some(NOBODY);
        let place = Place::of(user);
        let tried = place.lab(&["route", "--requests", "1"]);
        let text = String::from_utf8_lossy(&tried.stderr).into_owned();
        if text.contains("cannot make namespaces") {
            println!("skipped: labs of an ordinary user: {}", text.trim());
            return None;
        }
        assert!(tried.status.success(), "{text}");
        Some(place)
    }

    fn of(user: Option<u32>) -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ulvs-test-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::DirBuilder::new().mode(0o755).create(&folder).unwrap();
        let mut program = PathBuf::from(env!("CARGO_BIN_EXE_ulvs"));
        if let Some(user) = user {
            // The build folder may be closed to others.
            let copy = folder.join("ulvs");
            fs::copy(&program, &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
            program = copy;
            std::os::unix::fs::chown(&folder, Some(user), Some(user)).unwrap();
        }
        Place {
            folder,
            program,
            user,
        }
    }

    fn labs(&self) -> PathBuf {
        self.folder.join("labs")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("lab")
            .args(words)
            .env("ULVS_LAB_DIR", self.labs());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    fn lab(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs it, and what it prints if it ends with 0.
    fn fine(&self, words: &[&str]) -> String {
        let output = self.lab(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {}\n{errors}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_str(&self.fine(words)).unwrap()
    }

    fn record(&self, lab: &str) -> Value {
        let text = fs::read_to_string(self.labs().join(lab).join("lab.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Processes of this place that live, zombies not counted.
    fn processes(&self) -> Vec<i32> {
        let mark = format!("ULVS_LAB_DIR={}\0", self.labs().display());
        let ours = |pid: &i32| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment
                .windows(mark.len())
                .any(|part| part == mark.as_bytes())
        };
        let all = fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter(ours).collect()
    }

    fn assert_empty(&self) {
        assert!(
            !self.labs().exists(),
            "{:?}",
            fs::read_dir(self.labs()).unwrap().collect::<Vec<_>>()
        );
        assert_eq!(self.processes(), Vec::<i32>::new());
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.lab(&["down"]);
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits for an end, at most `patience`.
fn wait(child: &mut Child, patience: Duration) -> Option<std::process::ExitStatus> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        pass(Duration::from_millis(1));
    }
    None
}

/// Lets time pass where a test wants a random moment, or a bounded look again.
fn pass(time: Duration) {
    let (_keep, never) = mpsc::channel::<()>();
    let _ = never.recv_timeout(time);
}

fn signal(child: &Child, number: i32) {
    let pid = i32::try_from(child.id()).unwrap();
    // SAFETY: kill takes two numbers; the child is ours and not waited for yet.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0);
}

/// What of the machine itself a lab might touch: its links, its mounts.
fn machine() -> (Vec<String>, usize) {
    let links = fs::read_to_string("/proc/self/net/dev").unwrap();
    let names = links.lines().filter_map(|line| line.split_once(':'));
    let names = names.map(|(name, _)| name.trim().to_string()).collect();
    let mounts = fs::read_to_string("/proc/self/mountinfo")
        .unwrap()
        .lines()
        .count();
    (names, mounts)
}

#[test]
fn requests_cross_the_kernel_and_nothing_is_left() {
    let (place, before) = (Place::new(), machine());
    let report = place.json(&["route", "--requests", "400", "--json"]);
    assert_eq!(report["failed"], 0);
    assert_eq!(report["requests"], 400);
    assert_eq!(
        report["served"],
        serde_json::json!({ "rs1": 200, "rs2": 100, "rs3": 100 })
    );
    place.assert_empty();
    assert_eq!(machine(), before);
}

/// Every way for frames to come in that this machine has, with one worker and with two.
fn ways() -> Vec<Vec<&'static str>> {
    let mut ways = vec![
        vec!["--nic", "packet"],
        vec!["--nic", "mmsg"],
        vec!["--nic", "packet", "--workers", "2"],
        vec!["--nic", "mmsg", "--workers", "2"],
    ];
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => ways.extend([vec!["--nic", "tun"], vec!["--nic", "tun", "--workers", "2"]]),
        Err(error) => println!("skipped: labs with --nic tun: /dev/net/tun: {error}"),
    }
    ways
}

/// Every real server reached the world by an echo, a page and a datagram, and was seen as the VIP; who
/// is not masqueraded reached nobody.
fn assert_called_from_inside(report: &Value) {
    let outward = &report["outward"];
    assert_eq!(outward["failed"], 0, "{outward:#}");
    let calls = outward["calls"].as_array().unwrap();
    let hosts: Vec<&str> = calls
        .iter()
        .filter_map(|call| call["host"].as_str())
        .collect();
    assert_eq!(hosts, ["rs1", "rs2", "rs3", "stray"]);
    for call in calls {
        let datagram = call["datagram"].as_str().unwrap_or("nothing");
        if call["host"] == "stray" {
            assert!(
                call["echo_us"].is_null() && call["page"].is_null(),
                "{call}"
            );
            assert_eq!(datagram, "nothing");
        } else {
            assert!(call["echo_us"].as_u64().is_some(), "{call}");
            assert_eq!(call["page"], "world 1.2.3.1");
            assert!(datagram.starts_with("world 1.2.3.1:"), "{call}");
        }
    }
    assert_eq!(report["masqueraded"], 9, "three servers in three ways");
}

#[test]
fn full_nat_needs_no_way_back_to_the_client() {
    let place = Place::new();
    for way in ways() {
        let mut words = vec!["fnat", "--requests", "400", "--json"];
        words.extend(&way);
        let report = place.json(&words);
        let served = serde_json::json!({ "rs1": 200, "rs2": 100, "rs3": 100 });
        assert_eq!(
            (&report["failed"], &report["served"]),
            (&0.into(), &served),
            "{way:?}"
        );
        let account = &report["account"];
        assert_eq!(account["dropped"], 0, "{way:?}: {account}");
        assert_eq!(account["balances"], true, "{way:?}: {account}");
        place.assert_empty();
    }
    let said = place.fine(&["fnat", "--requests", "8"]);
    for part in [
        "they see 192.168.1.250",
        "    -> 192.168.1.11:80              FullNAT 2      ",
        "forward   FullNAT: target 1.2.3.1:80 -> 192.168.1.1",
        "forward   FullNAT: source 192.168.1.1",
        " from 192.168.1.250:",
    ] {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
    place.assert_empty();
}

/// The same network over IPv6; neighbours are found by neighbour discovery alone.
#[test]
fn nat_balances_over_ipv6_too() {
    let place = Place::new();
    for way in [&[][..], &["--nic", "mmsg", "--workers", "2"]] {
        let words = [&["v6", "--requests", "400", "--json"], way].concat();
        let report = place.json(&words);
        let served = serde_json::json!({ "rs1": 200, "rs2": 100, "rs3": 100 });
        assert_eq!(
            (&report["failed"], &report["served"]),
            (&0.into(), &served),
            "{way:?}"
        );
        assert_eq!(
            report["account"]["dropped"], 0,
            "{way:?}: {}",
            report["account"]
        );
        let outward = &report["outward"];
        assert_eq!(outward["failed"], 0, "{outward:#}");
        assert_eq!(
            outward["calls"][0]["page"], "world fd00:c::1",
            "{outward:#}"
        );
        assert_eq!(report["masqueraded"], 9);
        place.assert_empty();
    }
    let said = place.fine(&["v6", "--requests", "4"]);
    for part in [
        "VIP [fd00:c::1]:80",
        "rs1 fd00:5::11 weight 2",
        "forward   Masq: target [fd00:c::1]:80 -> [fd00:5::1",
    ] {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
    place.assert_empty();
}

/// Whole files by every way of FTP, through a VIP with a shorter text than the real servers' and one
/// with a longer.
#[test]
fn files_arrive_whole_by_every_way_of_ftp() {
    let place = Place::new();
    for way in [&[][..], &["--nic", "mmsg", "--workers", "2"]] {
        let words = [&["ftp", "--mib", "8", "--json"], way].concat();
        let tried = place.lab(&words);
        let errors = String::from_utf8_lossy(&tried.stderr).into_owned();
        if errors.contains("apt install") {
            println!("skipped: {}", errors.trim());
            return place.assert_empty();
        }
        assert!(tried.status.success(), "{way:?}: {errors}");
        let report: Value = serde_json::from_slice(&tried.stdout).unwrap();
        assert_eq!(report["failed"], 0, "{way:?}: {report:#}");
        let transfers = report["transfers"].as_array().unwrap();
        let ways: Vec<&str> = transfers
            .iter()
            .filter_map(|one| one["way"].as_str())
            .collect();
        assert_eq!(ways, ["EPSV", "PASV", "EPRT", "PORT"].repeat(2), "{way:?}");
        assert_eq!(
            report["account"]["dropped"], 0,
            "{way:?}: {}",
            report["account"]
        );
        place.assert_empty();
    }
}

/// In these labs the real servers answer the client themselves.
#[test]
fn answers_go_past_the_director_of_direct_routing_and_of_tunnels() {
    let place = Place::new();
    let mut labs = vec![vec!["dr"], vec!["dr", "--nic", "mmsg", "--workers", "2"]];
    match File::options().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => labs.extend([
            vec!["tun"],
            vec!["tun", "--nic", "mmsg", "--workers", "2"],
            vec!["tun", "--type", "gue"],
            vec!["tun", "--type", "gue", "--csum"],
            vec!["tun", "--type", "gre"],
            vec!["tun", "--type", "gre", "--csum"],
        ]),
        Err(error) => println!("skipped: lab tun: /dev/net/tun: {error}"),
    }
    for lab in labs {
        let words = [&lab[..], &["--requests", "400", "--json"]].concat();
        let report = place.json(&words);
        let served = serde_json::json!({ "rs1": 200, "rs2": 100, "rs3": 100 });
        assert_eq!(
            (&report["failed"], &report["served"]),
            (&0.into(), &served),
            "{lab:?}"
        );
        let passed = |way: &str| report["passed"][way].as_u64().unwrap();
        // SYN, ACK, the request, and what ends it; never an answer.
        assert!(passed("in") >= 400 * 4, "{lab:?}: {}", report["passed"]);
        assert_eq!(passed("out"), 0, "{lab:?}");
        let account = &report["account"];
        let count = |name: &str| account[name].as_u64().unwrap();
        assert_eq!(count("forwarded"), passed("in"), "{lab:?}: {account}");
        assert_eq!(count("dropped"), 0, "{lab:?}: {account}");
        place.assert_empty();
    }
    let said = place.fine(&["dr", "--requests", "4"]);
    for part in [
        "1.2.3.0/24 -+- client 1.2.3.100\n",
        "|- director 1.2.3.2, VIP 1.2.3.1:80\n",
        "|- rs3 1.2.3.13 weight 1, and the VIP\n",
        "0 packets of the real servers: they answer the client themselves",
        "forward   Route: only the MAC addresses change, ttl 63",
    ] {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
    place.assert_empty();
}

#[test]
fn ulvs_balances_as_the_weights_say() {
    let place = Place::new();
    for way in ways() {
        let mut words = vec!["nat", "--requests", "400", "--scheduler", "wrr", "--json"];
        words.extend(&way);
        let report = place.json(&words);
        let served = serde_json::json!({ "rs1": 200, "rs2": 100, "rs3": 100 });
        assert_eq!(report["failed"], 0, "{way:?}");
        assert_eq!(report["served"], served, "{way:?}");
        let account = &report["account"];
        let count = |name: &str| account[name].as_u64().unwrap();
        let kinds = ["forwarded", "answered", "passed", "held", "dropped"];
        assert_eq!(
            count("received"),
            kinds.map(count).iter().sum::<u64>(),
            "{way:?}: {account}"
        );
        // Nobody else is in there: only what the stray tries is not ours, in three ways, each tried
        // once or twice; and nothing has to be dropped.
        let strays = count("passed");
        assert!((3..=6).contains(&strays), "{way:?}: {account}");
        assert_eq!(count("dropped"), 0, "{way:?}: {account}");
        assert_called_from_inside(&report);
        // A connection is never less than SYN, SYN ACK, and two FINs with their ACKs.
        assert!(count("forwarded") > 400 * 6, "{way:?}: {account}");
        let story = report["story"].as_array().unwrap();
        assert!(!story.is_empty(), "{way:?}");
        // Each of several queues of a TUN device sees what the kernel gives it, maybe the answer only.
        if !way.contains(&"2") {
            let first = story[0].as_str().unwrap();
            assert!(first.contains("1.2.3.1:80 TCP S "), "{way:?}: {first}");
        }
        place.assert_empty();
    }
}

#[test]
fn what_people_get_to_read_is_all_there() {
    let (place, before) = (Place::new(), machine());
    let said = place.fine(&["nat"]);
    for part in [
        "VIP 1.2.3.1:80",
        "100 requests to http://1.2.3.1:80/ by wrr, nic packet, 1 worker(s): 0 failed",
        "Latency: p50 ",
        "pick      wrr ",
        "NONE -> SYN_RECV",
        "  TCP  1.2.3.1:80 wrr\n    -> 192.168.1.11:80              Masq    2      ",
        "TIME_WAIT   1.2.3.100:",
        "Calls from inside: 0 failed",
        "stray    no answer      no answer              no answer",
        "The frame account: it balances",
    ] {
        assert!(said.contains(part), "{part:?} is missing in\n{said}");
    }
    place.assert_empty();
    assert_eq!(machine(), before);
}

#[test]
fn a_director_that_will_not_start_or_dies_says_so() {
    let place = Place::new();
    let refused = place.lab(&["nat", "--scheduler", "nosuch"]);
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        said.contains("nosuch") && said.contains("ulvs.toml"),
        "{said}"
    );
    place.assert_empty();

    let mut child = place
        .command(&["nat", "--requests", "1000000"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let director = loop {
        assert!(Instant::now() < deadline, "no director");
        let log = place.labs().join("nat/director.log");
        let ready = fs::read_to_string(log).is_ok_and(|text| text.contains("ulvs: ready"));
        let is_director = |pid: &i32| {
            let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            words.starts_with(b"ulvs\0run\0")
        };
        match place.processes().into_iter().find(is_director) {
            Some(pid) if ready => break pid,
            _ => pass(Duration::from_millis(1)),
        }
    };
    // SAFETY: kill takes two numbers; this is the director that this test has just started.
    assert_eq!(unsafe { libc::kill(director, libc::SIGKILL) }, 0);
    let status = wait(&mut child, PATIENCE).expect("the lab does not wait for the dead");
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("the director ended"), "{said}");
    place.assert_empty();
}

#[test]
fn a_download_through_the_director_is_what_the_server_sent() {
    let place = Place::new();
    place.fine(&["nat", "--requests", "1", "--keep"]);
    let program = place.program.to_str().unwrap();
    let fetch = |server: &str| {
        let path = "/bytes/50000000";
        let words = [
            "exec", "client", "--", program, "lab", "fetch", server, path,
        ];
        place.lab(&words).stdout
    };
    let through = fetch("1.2.3.1:80");
    let words = [
        "exec",
        "rs2",
        "--",
        program,
        "lab",
        "fetch",
        "127.0.0.1:80",
        "/bytes/50000000",
    ];
    let sent = place.lab(&words).stdout;
    assert_eq!(sent.len(), 50_000_000);
    assert!(
        through == sent,
        "{} bytes came through, or other ones",
        through.len()
    );
    // Without the director there is no way from the client to a real server.
    assert!(fetch("192.168.1.11:80").is_empty());
    let listing = place.fine(&["exec", "director", "--", program, "adm", "-L", "-n"]);
    assert!(
        listing.contains("-> 192.168.1.12:80              Masq    1 "),
        "{listing}"
    );
    place.fine(&["down"]);
    place.assert_empty();
}

/// A program of the director's own is a real server: it gets packets as they came, or rewritten, and is
/// seen as the VIP.
#[test]
fn the_directors_own_programs_are_real_servers() {
    if let Err(error) = File::options().read(true).write(true).open("/dev/net/tun") {
        return println!("skipped: the director as a real server: /dev/net/tun: {error}");
    }
    let place = Place::new();
    let program = place.program.to_str().unwrap();
    for way in [&[][..], &["--nic", "mmsg", "--workers", "2"]] {
        let lab = ["nat", "--requests", "1", "--keep", "--local-node"];
        place.fine(&[&lab, way].concat());
        let mut servers = Vec::new();
        let adm = |words: &str| {
            let exec = ["exec", "director", "--", program, "adm"];
            let words: Vec<&str> = words.split(' ').collect();
            place.fine(&[&exec[..], &words].concat())
        };
        for (port, real, method) in [
            (81, "127.0.0.1:81", "-g"),
            (82, "1.2.3.1:82", "-i"),
            (83, "192.168.1.254:8083", "-m"),
        ] {
            adm(&format!("-A -t 1.2.3.1:{port} -s rr"));
            adm(&format!("-a -t 1.2.3.1:{port} -r {real} {method}"));
            let listen = real.rsplit(':').next().unwrap();
            let serve = ["exec", "director", "--", program, "lab", "serve", listen];
            let mut server = place.command(&serve).spawn().unwrap();
            let mut said = [0; 8];
            let out = server.stdout.as_mut().unwrap();
            out.read_exact(&mut said).unwrap();
            assert_eq!(&said, b"serving\n");
            let fetch = |path: &str| {
                let vip = format!("1.2.3.1:{port}");
                let words = ["exec", "client", "--", program, "lab", "fetch", &vip, path];
                place.lab(&words).stdout
            };
            let page = String::from_utf8(fetch("/")).unwrap();
            assert_eq!(page, "guest ::ffff:1.2.3.100\n", "{real} {method}");
            assert_eq!(
                fetch("/bytes/10000000").len(),
                10_000_000,
                "{real} {method}"
            );
            servers.push(server);
            adm(&format!("-D -t 1.2.3.1:{port}"));
        }
        // Nothing is left in the kernel of what is served no more.
        let held = place.fine(&["exec", "director", "--", "cat", "/proc/net/fib_trie"]);
        assert!(
            !held.contains("1.2.3.1\n") && !held.contains("192.168.1.254"),
            "{held}"
        );
        place.fine(&["down"]);
        for mut server in servers {
            assert!(
                wait(&mut server, PATIENCE).is_some(),
                "it ends with its lab"
            );
        }
        place.assert_empty();
    }
}

#[test]
fn an_ordinary_user_has_labs_too() {
    let Some(place) = Place::of_an_ordinary_user() else {
        return;
    };
    let report = place.json(&["nat", "--requests", "100", "--json"]);
    assert_eq!(report["failed"], 0);
    assert_eq!(
        report["served"],
        serde_json::json!({ "rs1": 50, "rs2": 25, "rs3": 25 })
    );
    assert_called_from_inside(&report);
    for lab in ["fnat", "dr", "v6"] {
        let report = place.json(&[lab, "--requests", "100", "--json"]);
        assert_eq!(report["failed"], 0, "{lab}");
    }
    let report = place.json(&["route", "--requests", "100", "--json", "--keep"]);
    assert_eq!(report["failed"], 0);
    assert_eq!(
        place.fine(&["exec", "rs2", "--", "cat", "/proc/sys/kernel/hostname"]),
        "rs2\n"
    );
    let refused = place.lab(&["exec", "rs2", "--", "cat", "/etc/shadow"]);
    assert!(
        !refused.status.success(),
        "root of a lab is not root of the machine"
    );
    place.fine(&["down"]);
    place.assert_empty();
}

#[test]
fn a_kept_lab_can_be_entered_and_ended() {
    let place = Place::new();
    let said = place.fine(&["route", "--requests", "1", "--keep"]);
    assert!(said.contains("lab down route"), "{said}");
    let listed = place.json(&["list", "--json"]);
    assert_eq!(listed[0]["name"], "route");
    assert_eq!(listed[0]["alive"], true);
    for host in ["client", "director", "rs1", "rs2", "rs3"] {
        let name = place.fine(&["exec", host, "--", "cat", "/proc/sys/kernel/hostname"]);
        assert_eq!(name.trim(), host);
        let seen = place.fine(&["exec", host, "--", "cat", "/proc/net/dev"]);
        assert_eq!(seen.contains("eth1:"), host == "director", "{host}: {seen}");
    }
    let status = place
        .lab(&["exec", "rs1", "--", "sh", "-c", "exit 7"])
        .status;
    assert_eq!(status.code(), Some(7));
    let status = place
        .lab(&["exec", "rs1", "--", "sh", "-c", "kill -TERM $$"])
        .status;
    assert_eq!(status.code(), Some(128 + libc::SIGTERM));
    assert!(!place.lab(&["exec", "rs9", "--", "true"]).status.success());

    // Whatever still runs in a lab ends with it.
    let mut sleeper = place
        .command(&["exec", "rs1", "--", "sleep", "1000"])
        .spawn()
        .unwrap();
    while place.processes().len() < 3 {
        assert!(sleeper.try_wait().unwrap().is_none());
        pass(Duration::from_millis(1));
    }
    place.fine(&["down"]);
    let status = wait(&mut sleeper, PATIENCE).expect("the command ends with its lab");
    assert!(!status.success());
    place.assert_empty();
}

#[test]
fn pages_are_whole_and_always_the_same() {
    let place = Place::new();
    place.fine(&["route", "--requests", "1", "--keep"]);
    let program = place.program.to_str().unwrap();
    let fetch = |server: &str, path: &str| {
        let words = [
            "exec", "client", "--", program, "lab", "fetch", server, path,
        ];
        let output = place.lab(&words);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        output.stdout
    };
    assert_eq!(fetch("192.168.1.12:80", "/"), b"rs2 1.2.3.100\n");
    assert_eq!(fetch("192.168.1.12:80", "/health"), b"OK\n");
    let (one, other) = (
        fetch("192.168.1.11:80", "/bytes/5000000"),
        fetch("192.168.1.13:80", "/bytes/5000000"),
    );
    assert_eq!(one.len(), 5_000_000);
    assert!(one == other, "two servers give different bytes");
    assert!(
        one[..1_000_000] != one[1_000_000..2_000_000],
        "lost blocks would not show"
    );
    assert_eq!(fetch("192.168.1.11:80", "/bytes/0"), b"");
    let words = [
        "exec",
        "client",
        "--",
        program,
        "lab",
        "fetch",
        "192.168.1.11:80",
        "/nosuch",
    ];
    let missing = place.lab(&words);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains("404"));
}

#[test]
fn several_labs_are_up_at_once() {
    let place = Place::new();
    for name in ["route", "route-2", "mine"] {
        let mut words = vec!["route", "--requests", "10", "--keep", "--json"];
        if name == "mine" {
            words.extend(["--name", "mine"]);
        }
        let report = place.json(&words);
        assert_eq!(
            (&report["lab"], &report["failed"]),
            (&name.into(), &0.into())
        );
    }
    let taken = place.lab(&["route", "--requests", "1", "--name", "mine"]);
    assert!(!taken.status.success());
    assert!(String::from_utf8_lossy(&taken.stderr).contains("mine is up already"));
    let unclear = place.lab(&["exec", "rs1", "--", "true"]);
    assert!(String::from_utf8_lossy(&unclear.stderr).contains("--lab route-2"));
    assert_eq!(place.fine(&["down", "route"]), "route is gone\n");
    place.fine(&["exec", "--lab", "route-2", "rs1", "--", "true"]);
    place.fine(&["exec", "--lab", "mine", "rs1", "--", "true"]);
    assert!(!place.lab(&["down", "route"]).status.success());
    place.fine(&["down"]);
    place.assert_empty();
}

#[test]
fn ctrl_c_takes_everything_down() {
    let place = Place::new();
    for number in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let mut child = place
            .command(&["route", "--requests", "1000000"])
            .spawn()
            .unwrap();
        // It prints the network once that is there, and then it is busy for minutes.
        let mut stdout = child.stdout.take().unwrap();
        assert!(stdout.read(&mut [0; 16]).unwrap() > 0);
        signal(&child, number);
        let status = wait(&mut child, PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(130));
        place.assert_empty();
    }
}

#[test]
fn killed_at_any_moment_it_leaves_nothing_to_lab_down() {
    let (place, before) = (Place::new(), machine());
    // Under ULVS_LAB_KILLS=50 it is as long as the release asks for.
    let kills = std::env::var("ULVS_LAB_KILLS").map_or(10, |text| text.parse().unwrap());
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut rng = Rng::new(seed);
    for _ in 0..kills {
        let mut child = place
            .command(&["route", "--requests", "20"])
            .spawn()
            .unwrap();
        pass(Duration::from_micros(rng.below(100_000)));
        signal(&child, libc::SIGKILL);
        child.wait().unwrap();
        place.fine(&["down"]);
        place.assert_empty();
    }
    assert_eq!(machine(), before);
}

#[test]
fn what_a_killed_lab_left_is_in_nobodys_way() {
    let place = Place::new();
    place.fine(&["route", "--requests", "1", "--keep"]);
    let keeper = place.record("route")["keeper"]["pid"].as_i64().unwrap();
    // SAFETY: kill takes two numbers; this is the keeper that this test has just started.
    assert_eq!(
        unsafe { libc::kill(i32::try_from(keeper).unwrap(), libc::SIGKILL) },
        0
    );
    let deadline = Instant::now() + PATIENCE;
    while place.json(&["list", "--json"])[0]["alive"] == true {
        assert!(Instant::now() < deadline);
    }
    assert!(!place.lab(&["exec", "rs1", "--", "true"]).status.success());
    // The next one takes the name again.
    let report = place.json(&["route", "--requests", "1", "--json"]);
    assert_eq!(report["lab"], "route");
    place.assert_empty();
}

#[test]
fn a_lab_ends_with_its_keeper() {
    let place = Place::new();
    let mut child = place
        .command(&["route", "--requests", "1000000"])
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    assert!(stdout.read(&mut [0; 16]).unwrap() > 0);
    let keeper = place.record("route")["keeper"]["pid"].as_i64().unwrap();
    // SAFETY: kill takes two numbers; this is the keeper that this test has just started.
    assert_eq!(
        unsafe { libc::kill(i32::try_from(keeper).unwrap(), libc::SIGKILL) },
        0
    );
    let status = wait(&mut child, PATIENCE).expect("it notices");
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert!(said.contains("ended from outside"), "{said}");
    place.assert_empty();
}

#[test]
fn nothing_is_sent_from_the_machine_itself() {
    let place = Place::new();
    let refused = place.lab(&["fetch", "1.2.3.1:80"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("for hosts of a lab"));
    let own_net = fs::metadata("/proc/self/ns/net").unwrap();
    let own_net = std::os::unix::fs::MetadataExt::ino(&own_net).to_string();
    let mut pretending = place.command(&["fetch", "1.2.3.1:80"]);
    let refused = pretending
        .env("ULVS_LAB_MACHINE", own_net)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("machine's own network"));
    for words in [&["keeper", "0", "1", "2"], &["keeper", "99", "98", "1"]] {
        assert!(!place.lab(words).status.success());
    }
}

#[test]
fn wrong_words_are_refused_before_anything_is_made() {
    let place = Place::new();
    for words in [
        &["nat", "--nic", "pigeon"][..],
        &["nat", "--workers", "0"],
        &["dr", "--nic", "tun"],
        &["v6", "--nic", "tun"],
        &["tun", "--type", "pigeon"],
        &["nat", "--requests", "-1"],
        &["nat", "--requests", "0"],
        &["route", "--name", "../x", "--requests", "1"],
        &["exec", "rs1"],
        &["exec", "rs1", "--", "true"],
        &["down", "nosuch"],
        &["nosuch"],
    ] {
        let output = place.lab(words);
        assert!(!output.status.success(), "{words:?}");
        assert!(!output.stderr.is_empty(), "{words:?}");
        place.assert_empty();
    }
}

#[test]
fn a_folder_that_others_can_write_is_refused() {
    let place = Place::new();
    fs::create_dir(place.labs()).unwrap();
    fs::set_permissions(place.labs(), fs::Permissions::from_mode(0o777)).unwrap();
    let refused = place.lab(&["route", "--requests", "1"]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("not a folder of ours alone"));
    assert!(Path::new(&place.labs()).exists());
}
