//! docs/api.md as it stands: every command in it is typed into a shell on the director of a lab, in
//! order, and what Debian's curl prints is what the page shows. And a crowd at the control socket does
//! not touch who is being served.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use ulvs::lab::stay::StayReport;

use super::{PATIENCE, Place, wait};

const PAGE: &str = "docs/api.md";
/// Connections through the director that stay.
const CONNECTIONS: u64 = 200;
/// Who comes to the control socket.
const CROWD: usize = 10_000;
/// How many of them are there at a time.
const STANDING: usize = 300;
/// Stands for what is different each time.
const ANYTHING: char = '…';

/// A command of the page, and what it prints.
struct Example {
    line: usize,
    command: String,
    output: String,
}

/// The blocks marked `console`: `$` begins a command, `>` goes on with it, the rest is its output.
fn examples(page: &str) -> Vec<Example> {
    let mut found: Vec<Example> = Vec::new();
    let mut inside = false;
    for (number, text) in page.lines().enumerate() {
        if text.starts_with("```") {
            inside = text == "```console";
        } else if !inside {
        } else if let Some(command) = text.strip_prefix("$ ") {
            found.push(Example {
                line: number + 1,
                command: command.to_string() + "\n",
                output: String::new(),
            });
        } else {
            let last = found.last_mut().expect("a block begins with a command");
            match text.strip_prefix("> ") {
                Some(more) if last.output.is_empty() => last.command += &(more.to_string() + "\n"),
                _ => last.output += &(text.to_string() + "\n"),
            }
        }
    }
    found
}

/// Is this what was shown? An ellipsis stands for anything within a line.
fn matches(shown: &str, printed: &str) -> bool {
    let mut parts = shown.split(ANYTHING);
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = printed.strip_prefix(first) else {
        return false;
    };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[test]
fn the_page_of_the_control_api_is_true() {
    if let Err(error) = Command::new("curl").arg("--version").output() {
        println!("skipped: docs/api.md with curl: {error}");
        return;
    }
    let page = fs::read_to_string(PAGE).unwrap();
    let place = Place::new();
    place.fine(&["nat", "--requests", "1", "--keep"]);
    let examples = examples(&page);
    assert!(examples.len() >= 15, "{PAGE} shows too little");
    for Example {
        line,
        command,
        output,
    } in &examples
    {
        let done = place.lab(&["exec", "director", "--", "sh", "-c", command]);
        let printed = String::from_utf8(done.stdout).unwrap();
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{PAGE}:{line}: {command}{errors}");
        assert!(
            matches(output, &printed),
            "{PAGE}:{line}: {command}shown:\n{output}printed:\n{printed}{errors}"
        );
    }
    // What the last example has left serves.
    place.fine(&[
        "exec",
        "client",
        "--",
        "curl",
        "-sS",
        "http://1.2.3.1/health",
    ]);
    let stop = "curl -sS --unix-socket $ULVS_CONTROL http://ulvs/v1/stop -X POST";
    let said = place.fine(&["exec", "director", "--", "sh", "-c", stop]);
    assert_eq!(said, "{\"done\":true}\n");
    place.fine(&["down"]);
    place.assert_empty();
}

#[test]
fn an_ellipsis_stands_for_anything() {
    for (shown, printed, same) in [
        ("a…c\n", "abbc\n", true),
        ("a…c\n", "abb\n", false),
        ("abc\n", "abc\n", true),
        ("abc\n", "abcd\n", false),
        ("…b…", "abc", true),
        ("…b…", "ac", false),
    ] {
        assert_eq!(matches(shown, printed), same, "{shown} {printed}");
    }
}

/// Ten thousand come to the control socket with garbage, halves and nothing at all, and stay as long as
/// they are let; no connection through the director breaks meanwhile, and each goes on to transfer.
#[test]
fn a_crowd_at_the_control_socket_touches_no_connection() {
    let place = Place::new();
    place.fine(&["nat", "--requests", "1", "--keep"]);
    let program = place.program.to_str().unwrap();
    let count = CONNECTIONS.to_string();
    let words = [
        "exec",
        "client",
        "--",
        program,
        "lab",
        "stay",
        "1.2.3.1:80",
        "--connections",
    ];
    let mut stay = place
        .command(&[&words[..], &[count.as_str()]].concat())
        .stdin(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(stay.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), format!("opened {CONNECTIONS}"));

    let control = place.labs().join("nat/control");
    let mut crowd = VecDeque::new();
    for number in 0..CROWD {
        // The kernel's own queue of those who wait to be accepted is bounded, too.
        let Ok(mut peer) = UnixStream::connect(&control) else {
            crowd.pop_front();
            continue;
        };
        let says: &[u8] = match number % 6 {
            0 => b"",
            1 => b"GARBAGE \xff\xfe\r\n\r\n",
            2 => b"POST /v1/do HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n\"fl",
            3 => b"{\"do\":\"flusch\"}\n",
            4 => b"{\"do\":{\"batch\":[\"flush\"",
            _ => b"DELETE /v1/services HTTP/1.1\r\nhost: x\r\n\r\n",
        };
        // It may have been turned away already.
        let _ = peer.write_all(says);
        crowd.push_back(peer);
        if crowd.len() > STANDING {
            crowd.pop_front();
        }
    }
    drop(crowd);
    let curl = "curl -sSf --retry 20 --retry-all-errors --unix-socket $ULVS_CONTROL \
                http://ulvs/v1/status";
    let status = place.json(&["exec", "director", "--", "sh", "-c", curl]);
    let seen = &status["status"]["control"];
    println!("control socket: {seen}");
    assert!(
        seen["connections"].as_u64().unwrap() > CROWD as u64 / 2,
        "{seen}"
    );
    assert!(seen["turned_away"].as_u64().unwrap() > 0, "{seen}");
    assert!(seen["bad_requests"].as_u64().unwrap() > 0, "{seen}");

    drop(stay.stdin.take());
    let mut text = String::new();
    said.read_to_string(&mut text).unwrap();
    assert!(
        wait(&mut stay, PATIENCE).expect("it ends").success(),
        "{text}"
    );
    let report: StayReport = serde_json::from_str(&text).unwrap();
    println!("through the director: {text}");
    assert!(report.broken.is_empty(), "{text}");
    assert_eq!(report.connections, CONNECTIONS);
    assert!(report.pages_min >= 2, "{text}");
    let rules = "curl -sS --unix-socket $ULVS_CONTROL http://ulvs/v1/rules";
    let rules = place.fine(&["exec", "director", "--", "sh", "-c", rules]);
    assert_eq!(rules.lines().count(), 4, "{rules}");
    place.fine(&["down"]);
    place.assert_empty();
}
