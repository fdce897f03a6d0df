//! The difference between the kernel and the director as a tale of both, for people: what had been
//! configured, what this client had done, what was sent, what each made of it, and the tables of both.

use std::fmt::Write;

use serde_json::Value;

use super::case::{Case, Step, Stimulus};
use super::house::House;
use super::judge;
use super::packet::{Seen, describe};
use super::play;

/// Steps of the same client before the one that differs.
const STEPS_BEFORE_MAX: usize = 12;

/// Tells of the step that went otherwise.
pub fn tell(case: &Case, number: usize) -> String {
    let mut text = String::from("\n  what was configured until then:\n");
    for value in &case.steps[..number] {
        if let Some(line) = configuration(value) {
            let _ = writeln!(text, "    {line}");
        }
    }
    let value = &case.steps[number];
    if let Ok(Step::Packet(stimulus)) = Step::read(value) {
        before(&mut text, case, number, &stimulus);
        let _ = writeln!(text, "  what was sent:\n    {}", line_of(value, &stimulus));
    }
    match play::replay(case, number) {
        Some(house) => both(&mut text, case, number, house),
        None => text.push_str("  (it cannot be played again)\n"),
    }
    text
}

/// A step that configures, as a line.
fn configuration(value: &Value) -> Option<String> {
    let at = value["at"].as_f64().unwrap_or(0.0);
    let line = match Step::read(value).ok()? {
        Step::Ipvsadm(call) if call.stdin.is_empty() => {
            let status = if call.rc == 0 { "" } else { "   (refused)" };
            format!("ipvsadm {}{status}", call.args.join(" "))
        }
        Step::Ipvsadm(call) => {
            let lines: Vec<&str> = call.stdin.lines().collect();
            format!("ipvsadm -R:\n      {}", lines.join("\n      "))
        }
        Step::Sysctl { set } => format!("sysctl {set:?}"),
        Step::Cmd { cmd, .. } => cmd,
        _ => return None,
    };
    Some(format!("{at:.3} s  {line}"))
}

/// What the same client and port did before.
fn before(text: &mut String, case: &Case, number: usize, stimulus: &Stimulus) {
    let Some(ends) = Ends::of(&stimulus.frame) else {
        return;
    };
    let mut lines = Vec::new();
    for value in case.steps[..number].iter().rev() {
        let Ok(Step::Packet(earlier)) = Step::read(value) else {
            continue;
        };
        if Ends::of(&earlier.frame).is_some_and(|other| other.meet(&ends)) {
            lines.push(line_of(value, &earlier));
        }
        if lines.len() == STEPS_BEFORE_MAX {
            break;
        }
    }
    text.push_str("  what these two said before, and what the kernel made of it:\n");
    for line in lines.iter().rev() {
        let _ = writeln!(text, "    {line}");
    }
}

/// Both ends of a packet: address and port.
struct Ends([(std::net::IpAddr, u16); 2]);

impl Ends {
    fn of(frame: &[u8]) -> Option<Ends> {
        let seen = Seen::of(frame)?;
        let (source, target) = seen.ports();
        Some(Ends([(seen.source, source), (seen.target, target)]))
    }

    /// Have they an end in common? (The client's: a server's answer comes from another address.)
    fn meet(&self, other: &Ends) -> bool {
        let [source, target] = &self.0;
        let [from, to] = &other.0;
        source == from || source == to || target == from
    }
}

fn line_of(value: &Value, stimulus: &Stimulus) -> String {
    let at = value["at"].as_f64().unwrap_or(0.0);
    let note = value["note"].as_str().unwrap_or("");
    let outs = stimulus.out.iter();
    let outs: Vec<String> = outs
        .map(|out| format!("{:?}: {}", out.side, describe(&out.frame)))
        .collect();
    let came = match outs.is_empty() {
        true => "nothing".into(),
        false => outs.join("; "),
    };
    let (side, what) = (stimulus.side, describe(&stimulus.frame));
    format!("{at:.3} s  {note}: {side:?}: {what}\n        => {came}")
}

/// The tables of both, and the director's own story.
fn both(text: &mut String, case: &Case, number: usize, mut house: House) {
    let value = &case.steps[number];
    let kernel = &value["entry"];
    if !kernel.is_null() {
        let client = kernel["client"].as_str().unwrap_or("");
        let _ = writeln!(
            text,
            "  entries of {client}\n    kernel: {}",
            kernel["rows"]
        );
        let _ = writeln!(text, "    ulvs:   {:?}", judge::rows_of(client, &house));
    }
    let shows = case.steps.iter().enumerate();
    let nearest = shows
        .filter(|(_, step)| step["services"].is_array())
        .min_by_key(|(at, _)| (at.abs_diff(number), *at > number));
    if let Some((at, show)) = nearest {
        let _ = writeln!(text, "  services\n    kernel, in step {at}:");
        for service in show["services"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "      {service}");
        }
    }
    let _ = writeln!(text, "    ulvs, after this step:");
    for service in &house.snapshot().services {
        let _ = writeln!(text, "      {:?}", judge::listed(service));
    }
    text.push_str("  the story that ulvs tells of it:\n");
    for line in house.told() {
        let _ = writeln!(text, "    {line}");
    }
}
