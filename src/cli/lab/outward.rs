//! The other way round: real servers of a lab call on a host outside, and somebody who may not tries
//! the same.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};

use crate::lab::Lab;
use crate::lab::topology::Role;
use crate::lab::visit::{Visit, VisitReport};

/// How long a real server waits for an answer: longer than the director holds a frame that waits for a
/// MAC address.
const PATIENCE_MS: u64 = 4000;
/// How long to wait for answers that must not come. They came within milliseconds to the others, who
/// have just been told the same way.
const SILENCE_MS: u64 = 500;
/// Ways of calling on a host: an echo, a page, a datagram.
const WAYS: usize = 3;

/// What came of all calls.
pub(super) struct Outward {
    world: IpAddr,
    seen_as: IpAddr,
    calls: Vec<(String, bool, VisitReport)>,
}

impl Outward {
    /// Every real server calls on the world, then the stray does; nothing in a lab without masquerading.
    pub fn try_all(lab: &mut Lab) -> io::Result<Option<Outward>> {
        let topology = lab.topology().clone();
        let with_role = |role| topology.hosts.iter().find(|host| host.role == role);
        let world = with_role(Role::World).and_then(|world| world.address());
        let (Some(world), Some((_, seen_as))) = (world, topology.masquerade) else {
            return Ok(None);
        };
        let visit = |patience_ms| Visit {
            target: world,
            port: topology.port,
            patience_ms,
        };
        let mut calls = Vec::new();
        for (name, _, _) in topology.real_servers() {
            let report = lab.visit(name, visit(PATIENCE_MS))?;
            calls.push((name.to_string(), true, report));
        }
        if let Some(stray) = with_role(Role::Stray) {
            let report = lab.visit(&stray.name, visit(SILENCE_MS))?;
            calls.push((stray.name.clone(), false, report));
        }
        Ok(Some(Outward {
            world,
            seen_as,
            calls,
        }))
    }

    /// Calls that came out otherwise than they should: each unanswered one of a real server, each that
    /// was seen under another address, each answered one of the stray.
    pub fn failed(&self) -> usize {
        let wrong = |(_, allowed, report): &(String, bool, VisitReport)| {
            if !*allowed {
                return report.answered();
            }
            let seen = |text: &Option<String>| {
                let address = text.as_ref()?.split(' ').nth(1)?;
                let with_port = address.parse::<SocketAddr>().map(|end| end.ip());
                with_port.or_else(|_| address.parse()).ok()
            };
            let seen = [seen(&report.page), seen(&report.datagram)];
            let seen = seen.into_iter().flatten();
            let otherwise = seen.filter(|address| *address != self.seen_as).count();
            WAYS - report.answered() + otherwise
        };
        self.calls.iter().map(wrong).sum()
    }

    /// As lines for people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<8} {:<14} {:<22} datagram to {}",
            "host", "ping", "page", self.world
        )];
        for (name, _, report) in &self.calls {
            let none = || "no answer".to_string();
            let echo = report.echo_us.map(|us| format!("{us} us"));
            let (page, datagram) = (report.page.clone(), report.datagram.clone());
            lines.push(format!(
                "{name:<8} {:<14} {:<22} {}",
                echo.unwrap_or_else(none),
                page.unwrap_or_else(none),
                datagram.unwrap_or_else(none),
            ));
        }
        lines
    }

    /// As a document.
    pub fn document(&self) -> Value {
        let call = |(name, allowed, report): &(String, bool, VisitReport)| {
            json!({ "host": name, "allowed": allowed, "echo_us": report.echo_us,
                    "page": report.page, "datagram": report.datagram })
        };
        let calls: Vec<Value> = self.calls.iter().map(call).collect();
        json!({ "world": self.world, "seen_as": self.seen_as, "failed": self.failed(),
                "calls": calls })
    }
}
