//! Neighbour discovery: what `stack::hear_arp` is for IPv4. Answers for the VIPs and our own addresses,
//! and remembers what neighbours tell.

use std::net::IpAddr;

use super::Passage;
use super::lane::Own;
use super::probe::{Probe, Step};
use super::snapshot::Role;
use super::verdict::{DropReason, Verdict};
use crate::wire::ndp::Discovery;

/// Hears a solicitation or an advertisement. One that is not sound is nobody's.
pub(super) fn hear<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let Own {
        snapshot,
        outbox,
        neighbours,
        ..
    } = own;
    let port = &snapshot.ports[p.ingress];
    let Some(heard) = Discovery::read(&p.packet) else {
        return Verdict::Pass;
    };
    let target = IpAddr::V6(heard.target);
    let ours = snapshot.role == Role::Primary
        && (snapshot.is_vip(&target) || snapshot.own_port(&target) == Some(p.ingress));
    let speaker = p.packet.source_mac();
    if speaker == port.mac {
        return Verdict::Pass;
    }
    let about = if heard.is_request {
        IpAddr::V6(heard.sender)
    } else {
        target
    };
    if let Some(mac) = heard.mac {
        let welcome = heard.is_request && ours;
        neighbours.learn(p.ingress, about, mac, welcome, p.now);
    }
    if !heard.is_request || !ours {
        if !heard.is_request {
            p.say(|| "remembered, if the director had asked".to_string());
        }
        return Verdict::Pass;
    }
    if P::ON {
        let text = format!("{target} is at {} (us)", port.mac);
        p.probe.step(Step::Said(text));
    }
    let answered = outbox.add(p.ingress, |out| heard.answer(port.mac, speaker, out));
    if answered {
        Verdict::Answered
    } else {
        Verdict::Drop(DropReason::AnswerLimit)
    }
}
