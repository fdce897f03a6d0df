//! The steps of topic `proc`: the texts under `/proc/net`, and what sysctls take.

use ulvs::cli::{proc, tune};
use ulvs::config::{Command, Listing, Query, Reply, Request};
use ulvs::lvs::{Accepts, Tunables};

use super::case::{ProcText, SysctlProbe};
use super::house::House;
use super::judge::{Trouble, differs, same};
use super::words;

/// Lines of `ip_vs` before the first service.
const TITLE_LINES: usize = 3;

/// A text is the recorded one.
///
/// # Errors
/// `Differs` if it is not, `Cannot` for a file that nobody here knows.
pub fn text(house: &mut House, step: &ProcText) -> Result<(), Trouble> {
    let mut ask = |request| Ok(house.ask(request));
    let got = proc::text(&step.file, &mut ask).map_err(Trouble::Cannot)?;
    let (expected, ours) = match step.file.rsplit('/').next() {
        // The kernel lists services in the order of a hash, and those of marks after all others.
        Some("ip_vs") => (services(&step.text), services(&got)),
        Some("ip_vs_conn" | "ip_vs_conn_sync") => return connections(&step.text, &got),
        _ => (vec![step.text.clone()], vec![got.clone()]),
    };
    if expected == ours {
        return Ok(());
    }
    let counters = step.file.contains("_stats");
    if counters
        && words::after_a_turn(house, |house| {
            let mut ask = |request| Ok(house.ask(request));
            proc::text(&step.file, &mut ask).as_ref() == Ok(&step.text)
        })
    {
        return Ok(());
    }
    Err(differs(step.text.as_str(), got))
}

/// Title, services by address, services by mark; each service with its servers.
fn services(text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let (title, rest) = lines.split_at(TITLE_LINES.min(lines.len()));
    let (mut addresses, mut marks) = (Vec::<String>::new(), Vec::<String>::new());
    for line in rest {
        match line {
            server if server.starts_with("  ->") => {
                let service = marks.last_mut().or(addresses.last_mut());
                service
                    .expect("a server stands behind its service")
                    .push_str(server);
            }
            mark if mark.starts_with("FWM") => marks.push(mark.to_string()),
            // Behind a mark it is out of place, and differs.
            service if !marks.is_empty() => marks.push(service.to_string()),
            service => addresses.push(service.to_string()),
        }
    }
    addresses.sort();
    marks.sort();
    let title = std::iter::once(title.concat());
    title.chain(addresses).chain(marks).collect()
}

/// Entries in any order, of which the seconds may be one apart.
fn connections(expected: &str, got: &str) -> Result<(), Trouble> {
    let mut rest: Vec<&str> = got.lines().collect();
    let different = || differs(expected, got);
    for line in expected.lines() {
        let twin = rest.iter().position(|other| same_entry(line, other));
        rest.remove(twin.ok_or_else(different)?);
    }
    rest.is_empty().then_some(()).ok_or_else(different)
}

/// Lines are the same but for a second. Only the seconds fill seven columns, blanks first.
fn same_entry(expected: &str, got: &str) -> bool {
    const WIDTH: usize = 7;
    let parts = |line: &str| -> Option<(String, i64)> {
        let engine = line.find(" sip ").unwrap_or(line.len());
        let (front, behind) = line.split_at(engine);
        let (ends, seconds) = front.split_at_checked(front.len().checked_sub(WIDTH)?)?;
        let seconds = seconds.trim_start().parse().ok()?;
        Some((format!("{ends}{behind}"), seconds))
    };
    match (parts(expected), parts(got)) {
        (Some(expected), Some(got)) => expected.0 == got.0 && (expected.1 - got.1).abs() <= 1,
        _ => expected == got,
    }
}

/// A sysctl has the recorded default, and each value written in turn is taken or refused as recorded.
///
/// # Errors
/// `Differs` with the first that is not.
pub fn sysctl(house: &mut House, probe: &SysctlProbe) -> Result<(), Trouble> {
    let name = probe.name.trim_start_matches("net.ipv4.vs.");
    same(&probe.default, &value(house, name))?;
    let read_only = Tunables::accepts(name) == Some(Accepts::Nothing);
    let mode = if read_only { "0o444" } else { "0o644" };
    same(&probe.mode.as_str(), &mode)?;
    for (written, error, now) in &probe.writes {
        let change = Command::SetTunable {
            name: name.to_string(),
            value: written.clone(),
        };
        let said = match house.change(change) {
            Reply::Done => None,
            Reply::Refused(refusal) => Some(tune::word_for(name, refusal).to_string()),
            other => Some(format!("{other:?}")),
        };
        let expected = format!("{name} = `{written}`: {error:?}, then {now}");
        let got = format!(
            "{name} = `{written}`: {said:?}, then {}",
            value(house, name)
        );
        same(&expected, &got)?;
    }
    Ok(())
}

fn value(house: &mut House, name: &str) -> String {
    match house.ask(Request::Ask(Query::Tunables)) {
        Reply::Listing(Listing::Tunables(tunables)) => match tunables.get(name) {
            Some(value) => value.to_string(),
            None => format!("no sysctl {name}"),
        },
        other => format!("{other:?}"),
    }
}
