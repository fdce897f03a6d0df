//! `ulvs bench` as people use it, as short as it gets: what it measures here says nothing, but that it
//! measures, counts and cleans up does.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::{PATIENCE, Place, fs, machine, signal, wait};
use ulvs::bench::record::Document;

fn bench(place: &Place, words: &[&str]) -> Command {
    let mut command = Command::new(&place.program);
    command.arg("bench").args(words);
    command.env("ULVS_LAB_DIR", place.labs());
    command.stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A run that has begun to measure.
fn begun(place: &Place, out: &str) -> Child {
    let words = [
        "full",
        "--peers",
        "none,ulvs-packet",
        "--measures",
        "frames",
    ];
    let mut command = bench(place, &words);
    let mut child = command.args(["--out", out]).spawn().unwrap();
    let lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.starts_with("frames, round 1")));
    // Who prints to nobody would end by that.
    std::thread::spawn(move || lines.for_each(drop));
    child
}

#[test]
fn it_measures_everybody_who_is_there_and_leaves_nothing() {
    let (place, before) = (Place::new(), machine());
    let out = place.folder.join("run");
    let out = out.to_str().unwrap();
    let peers = "none,route,bare-mmsg,nft,haproxy,nginx,ulvs-packet,ulvs-tun,route-oneway,\
                 ulvs-dr,ulvs-ipip";
    let words = [
        "full",
        "--peers",
        peers,
        "--measures",
        "bulk1,connections,frames,pingpong",
        "--repeats",
        "1",
        "--window",
        "0.2",
        "--retries",
        "0",
        "--out",
        out,
    ];
    let output = bench(&place, &words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{errors}");
    place.assert_empty();
    assert_eq!(machine(), before);

    let document = Document::read(&fs::read_to_string(format!("{out}.json")).unwrap()).unwrap();
    let missing = |what: &str| document.missing.iter().find(|row| row.what == what);
    for peer in peers.split(',') {
        if let Some(row) = missing(peer) {
            println!("skipped: bench of {peer}: {}", row.why);
            assert!(
                row.why.contains("apt-get install") || row.why.contains("modprobe"),
                "{}",
                row.why
            );
            continue;
        }
        for measure in ["bulk1", "connections", "frames", "pingpong"] {
            let name = format!("{measure} of {peer}");
            if let Some(row) = missing(measure).or_else(|| missing(&name)) {
                let known = row.why == "it has no UDP" || row.why.contains("apt-get install");
                assert!(known, "{name}: {}", row.why);
                continue;
            }
            let samples = document.chosen(measure, peer);
            assert_eq!(samples.len(), 1, "{name}: {errors}");
            let value = samples[0].value;
            assert!(
                value.is_some_and(|value| value > 0.0),
                "{name}: {:?}",
                samples[0]
            );
        }
    }
    assert!(missing("frames of haproxy").is_some() || missing("haproxy").is_some());
    let page = fs::read_to_string(format!("{out}.html")).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>") && page.ends_with("</html>\n"));
    // What is read back makes the same page, and a run does not differ from itself.
    let again = bench(&place, &["report", &format!("{out}.json")])
        .output()
        .unwrap();
    assert!(again.status.success());
    assert_eq!(fs::read_to_string(format!("{out}.html")).unwrap(), page);
    let file = format!("{out}.json");
    let compared = bench(&place, &["compare", &file, &file]).output().unwrap();
    let text = String::from_utf8(compared.stdout).unwrap();
    assert!(
        text.contains("no difference seen") && !text.contains("WORSE"),
        "{text}"
    );
}

/// Within one percent. What a machine that others use cannot do says nothing about the harness.
#[test]
fn known_rates_are_found_again() {
    let place = Place::new();
    let output = bench(&place, &["selftest"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
    for line in text.lines() {
        match line {
            noisy if noisy.starts_with("WRONG, but others") => {
                println!("skipped: bench selftest: {noisy}");
            }
            line => assert!(line.starts_with("right"), "{text}"),
        }
    }
    place.assert_empty();
}

#[test]
fn interrupted_it_keeps_what_it_has_and_leaves_nothing() {
    let (place, before) = (Place::new(), machine());
    let out = place.folder.join("run");
    let mut child = begun(&place, out.to_str().unwrap());
    signal(&child, libc::SIGINT);
    let status = wait(&mut child, PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(130));
    place.assert_empty();
    assert_eq!(machine(), before);
    let text = fs::read_to_string(out.with_extension("json")).unwrap();
    assert!(Document::read(&text).unwrap().interrupted);
}

#[test]
fn killed_it_leaves_nothing_to_lab_down() {
    let (place, before) = (Place::new(), machine());
    let out = place.folder.join("run");
    let mut child = begun(&place, out.to_str().unwrap());
    signal(&child, libc::SIGKILL);
    child.wait().unwrap();
    place.fine(&["down"]);
    place.assert_empty();
    assert_eq!(machine(), before);
}

#[test]
fn its_guests_refuse_outside_a_lab() {
    let place = Place::new();
    for words in [
        &["guest", "ends"][..],
        &["guest", "bulk", "127.0.0.1:9"],
        &["guest", "frames", "127.0.0.1:9", "--via", "127.0.0.1"],
        &["guest", "forward", "packet"],
        &["guest", "talk", "127.0.0.1:9"],
        &["guest", "hold", "127.0.0.1:9", "--connections", "1"],
        &["guest", "echo", "7"],
    ] {
        let output = bench(&place, words).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && errors.contains("for hosts of a lab"),
            "{errors}"
        );
    }
}
