//! What a case asks for that the director does not have yet, read from the case's own steps. A case
//! that goes otherwise than recorded is excused only by something named here; whatever is built is
//! taken out.

use std::collections::BTreeSet;

use serde_json::Value;
use ulvs::config::Command;
use ulvs::config::ipvsadm::{self, Call};
use ulvs::config::words::NumbersOnly;

use super::case::{Case, Step};
use super::net::Net;

/// What the first `steps` steps of a case ask for that is not there yet, and that excuses the last of
/// them.
pub fn excuses(case: &Case, net: Option<Net>, steps: usize) -> BTreeSet<&'static str> {
    let mut found = BTreeSet::new();
    for value in case.steps.iter().take(steps) {
        match Step::read(value) {
            Ok(Step::Ipvsadm(call)) => {
                let words: Vec<&str> = call.args.iter().map(String::as_str).collect();
                if let Ok(call) = ipvsadm::parse(&words, &NumbersOnly) {
                    of_call(&call, net, &mut found);
                }
            }
            Ok(Step::Sysctl { set }) => {
                for name in set.keys() {
                    of_sysctl(name, &mut found);
                }
            }
            _ => of_other(value, &mut found),
        }
    }
    found
}

fn of_call(call: &Call, net: Option<Net>, found: &mut BTreeSet<&'static str>) {
    match call {
        // To whom one only talks, one can talk about synchronisation; with packets, it must happen.
        Call::Change(Command::StartSync(_) | Command::StopSync(_))
            if net.is_none_or(|net| net.is_wired()) =>
        {
            found.insert("synchronisation of connections (--start-daemon)");
        }
        _ => {}
    }
}

fn of_sysctl(name: &str, found: &mut BTreeSet<&'static str>) {
    let name = name.trim_start_matches("net.ipv4.vs.");
    if name.starts_with("sync_") {
        found.insert("synchronisation of connections (--start-daemon)");
    }
}

fn of_other(value: &Value, found: &mut BTreeSet<&'static str>) {
    match value["do"].as_str() {
        Some("local-send") => found.insert("clients on the director's own host"),
        _ => false,
    };
}
