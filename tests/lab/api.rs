//! docs/api.md as it stands: every command in it is typed into a shell on the director of a lab, in
//! order, and what Debian's curl prints is what the page shows. And a crowd at the control socket does
//! not touch who is being served.

use std::fs;
use std::process::Command;

use super::Place;

const PAGE: &str = "docs/api.md";
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
