//! Debian's ipvsadm and whatever else is started by `ulvs exec`. That it answers 500 drawn lines as our
//! own command does is tried by tools/kernel/on-shim.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::site::{Site, build_library, is_installed, ulvs, until};

/// What `ulvs exec` says and gives for an exit status.
fn refused(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(ulvs())
        .arg("exec")
        .args(words)
        .output()
        .unwrap();
    assert!(output.stdout.is_empty());
    (
        output.status.code(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

#[test]
fn what_cannot_be_served_is_told_so() {
    let folder = std::env::temp_dir().join(format!("ulvs-exec-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    // A program without a loader: a header that names no segments at all.
    let mut bytes = fs::read(ulvs()).unwrap();
    bytes.truncate(64);
    bytes[56..58].fill(0);
    let program = folder.join("static");
    fs::write(&program, bytes).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let script = folder.join("script");
    fs::write(&script, format!("#!{} -x\n", program.display())).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let reason = "static programs speak netlink directly and cannot be served";
    for words in [&program, &script] {
        let (status, said) = refused(&["--", words.to_str().unwrap()]);
        assert_eq!(status, Some(126), "{said}");
        assert!(said.contains(reason), "{said}");
    }
    let (status, said) = refused(&["--", "no-such-program", "-x"]);
    assert_eq!(
        (status, said.as_str()),
        (Some(127), "ulvs exec: no-such-program: no such program\n")
    );
    let (status, said) = refused(&["--shim", "/nowhere.so", "--", "sh"]);
    assert_eq!(status, Some(126));
    assert!(
        said.contains("no library at /nowhere.so; make it:"),
        "{said}"
    );
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn debians_ipvsadm_sees_the_director() {
    build_library();
    if !is_installed("ipvsadm") {
        return;
    }
    let Some(site) = Site::new(&["nat", "--requests", "40"]) else {
        return;
    };
    let program = ulvs().to_str().unwrap();
    let theirs = |words: &[&str]| {
        let begin = [program, "exec", "--", "ipvsadm"];
        site.fine("director", &[&begin, words].concat())
    };
    let own = |words: &[&str]| site.ours(&[&["adm"], words].concat());
    // The estimator has counted all of it.
    let stats = ["-L", "-n", "--stats", "--exact"];
    until("40 connections are counted", || {
        own(&stats).contains(" 40 ").then_some(())
    });
    for words in [
        &["-L", "-n"][..],
        &stats,
        &["-S", "-n"],
        &["-L", "--timeout"],
    ] {
        assert_eq!(theirs(words), own(words), "{words:?}");
    }
    let connections = theirs(&["-L", "-n", "-c"]);
    assert_eq!(connections.lines().count(), 2 + 40, "{connections}");
    assert!(
        connections.contains("1.2.3.1:80         192.168.1.11:80"),
        "{connections}"
    );
    // A change by the one is seen by the other, IPv6 included.
    let service = "[fd00:c::1]:443";
    theirs(&["-A", "-t", service, "-s", "sh", "-b", "sh-port", "-p", "77"]);
    theirs(&[
        "-a",
        "-t",
        service,
        "-r",
        "[fd00:5::9]:443",
        "-m",
        "-w",
        "7",
        "-x",
        "9",
    ]);
    assert!(own(&["-S", "-n"]).contains("-A -t [fd00:c::1]:443 -s sh -p 77 -b sh-port"));
    assert_eq!(
        theirs(&["-L", "-n", "--thresholds"]),
        own(&["-L", "-n", "--thresholds"])
    );
    let again = site.run(
        "director",
        &[program, "exec", "--", "ipvsadm", "-A", "-t", service],
    );
    assert_eq!(again.stderr, b"Service already exists\n");
    assert_eq!(again.status.code(), Some(255));
}

#[test]
fn files_and_other_netlink_are_as_they_should_be() {
    build_library();
    let Some(site) = Site::new(&["nat", "--requests", "4"]) else {
        return;
    };
    let program = ulvs().to_str().unwrap();
    let exec = |words: &[&str]| {
        let begin = [program, "exec", "--"];
        site.fine("director", &[&begin, words].concat())
    };
    for file in ["ip_vs", "ip_vs_stats", "ip_vs_app"] {
        let path = format!("/proc/net/{file}");
        assert_eq!(exec(&["cat", &path]), site.ours(&["proc", file]));
    }
    // The shell opens by another function than cat.
    let shell = "read -r line < /proc/net/ip_vs_conn && echo \"$line\"";
    assert!(exec(&["sh", "-c", shell]).starts_with("Pro FromIP"));
    for words in [
        &["ip", "link"][..],
        &["ip", "-o", "route"],
        &["cat", "/proc/net/dev_mcast"],
    ] {
        assert_eq!(exec(words), site.fine("director", words), "{words:?}");
    }
    // Nobody there: as without the kernel's module.
    let begin = [program, "exec", "--control", "/nowhere/control", "--"];
    let alone = |words: &[&str]| site.run("director", &[&begin, words].concat());
    let missing = alone(&["cat", "/proc/net/ip_vs"]);
    let said = String::from_utf8(missing.stderr).unwrap();
    assert!(
        said.contains("no director at /nowhere/control yet"),
        "{said}"
    );
    assert!(said.contains("No such file"), "{said}");
    if is_installed("ipvsadm") {
        let lost = alone(&["ipvsadm", "-L"]);
        let said = String::from_utf8(lost.stderr).unwrap();
        assert!(
            said.contains("Can't initialize ipvs: Protocol not available"),
            "{said}"
        );
        assert_eq!(lost.status.code(), Some(2));
    }
}

/// What libnl does not do: to poll, to look before it takes, to have too little room.
const OTHER_WAYS: &str = r#"
import select, socket, struct
def request(kind, flags, sequence, command, rest=b""):
    return struct.pack("=IHHIIBBH", 20 + len(rest), kind, flags, sequence, 0, command, 1, 0) + rest
def name(text):
    return struct.pack("=HH8s", 4 + len(text) + 1, 2, text)
def word(answer, at):
    return struct.unpack_from("=I", answer, at)[0]
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)
netlink.bind((0, 0))
port = netlink.getsockname()[0]
poll = select.poll()
poll.register(netlink, select.POLLIN)
assert poll.poll(0) == []
# Ours and the kernel's in one call: the answers come in this order, each from the kernel.
netlink.send(request(16, 5, 7, 3, name(b"IPVS")) + request(16, 1, 8, 3, name(b"nlctrl")))
assert poll.poll(1000)
short = netlink.recv(4, socket.MSG_PEEK)
assert len(short) == 4
whole = netlink.recv(4, socket.MSG_PEEK | socket.MSG_TRUNC)
answer, _, flags, sender = netlink.recvmsg(1000)
assert answer[:4] == short and len(answer) == len(whole) and sender == (0, 0) and flags == 0
assert (word(answer, 8), word(answer, 12)) == (7, port) and b"IPVS" in answer
family = struct.unpack_from("=H", answer, answer.index(b"IPVS") + 8 + 4)[0]
acknowledged = netlink.recvfrom(1000)[0]
other = netlink.recv(1000)
if word(acknowledged, 8) == 8:
    acknowledged, other = other, acknowledged
assert (word(acknowledged, 8), word(acknowledged, 16)) == (7, 0)
assert word(other, 8) == 8 and b"nlctrl" in other
assert poll.poll(0) == []
# A listing without room for it is cut, and says so.
netlink.send(request(family, 0x301, 9, 4))
cut, _, flags, _ = netlink.recvmsg(24)
assert len(cut) == 24 and flags & socket.MSG_TRUNC and word(cut, 8) == 9
# What nobody reads goes with its socket.
netlink.send(request(family, 0x301, 10, 4))
netlink.close()
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 16)
try:
    netlink.recv(100)
    raise SystemExit("an answer that nobody asked for")
except BlockingIOError:
    pass
for option in (1152, 1153, 1157):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).getsockopt(0, option, 64)
        raise SystemExit("the older way is there")
    except OSError as error:
        assert error.errno == 92, error
print("fine")
"#;

#[test]
fn netlink_is_whole_in_every_way_to_use_it() {
    build_library();
    if !Command::new("python3")
        .arg("-V")
        .output()
        .is_ok_and(|made| made.status.success())
    {
        println!("skipped: other ways to use netlink: there is no python3");
        return;
    }
    let Some(site) = Site::new(&["nat", "--requests", "1"]) else {
        return;
    };
    let program = ulvs().to_str().unwrap();
    let said = site.fine(
        "director",
        &[program, "exec", "--", "python3", "-c", OTHER_WAYS],
    );
    assert_eq!(said, "fine\n");
}
