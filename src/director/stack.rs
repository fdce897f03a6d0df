//! What the VIP's own stack would say, since the VIP is in no kernel: ARP, echo, resets, port
//! unreachable; and every ICMP error we owe.

use std::net::IpAddr;

use super::lane::Own;
use super::probe::{Probe, Step};
use super::snapshot::Role;
use super::verdict::{DropReason, Verdict};
use super::{Passage, fragments, resolve};
use crate::lvs::{Endpoint, Protocol};
use crate::time::Instant;
use crate::wire::Packet;
use crate::wire::answer::{self, IcmpError};
use crate::wire::arp::Arp;
use crate::wire::icmp::Message;
use crate::wire::options::OptionFault;
use crate::wire::packet::number;

/// Type of the chunk that aborts an association (RFC 9260 section 3.2).
const SCTP_ABORT: u8 = 6;

/// Lets a frame pass that is none of our business.
pub(super) fn pass_by<P: Probe>(
    p: &mut Passage<'_, '_, P>,
    own: &Own,
    why: super::NotForUs,
) -> Verdict {
    let mac = own.snapshot.ports[p.ingress].mac;
    let (from, to) = (p.packet.source_mac(), p.packet.target_mac());
    p.say(|| match why {
        super::NotForUs::Stranger => "neither ARP nor IP".to_string(),
        super::NotForUs::OtherMac if from == mac => "the director's own".to_string(),
        super::NotForUs::OtherMac => format!("for {to}, and the director is {mac}"),
        super::NotForUs::Backup => "this director is the backup".to_string(),
    });
    Verdict::Pass
}

/// Hears an ARP packet: learns from it, and answers for the VIPs and our own addresses on this port.
pub fn hear_arp<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let Own {
        snapshot,
        outbox,
        neighbours,
        ..
    } = own;
    let port = &snapshot.ports[p.ingress];
    let Some(arp) = Arp::read(&p.packet) else {
        return Verdict::Pass;
    };
    let target = IpAddr::V4(arp.target);
    let ours = snapshot.role == Role::Primary
        && (snapshot.is_vip(&target) || snapshot.own_port(&target) == Some(p.ingress));
    let from_us = arp.sender_mac == port.mac;
    if !from_us {
        neighbours.learn(p.ingress, arp.sender.into(), arp.sender_mac, ours, p.now);
    }
    if from_us || !ours {
        if !arp.is_request && !from_us {
            p.say(|| "remembered, if the director had asked".to_string());
        }
        return Verdict::Pass;
    }
    if !arp.is_request {
        return Verdict::Answered;
    }
    if P::ON {
        p.probe
            .step(Step::Said(format!("{target} is at {} (us)", port.mac)));
    }
    let answered = outbox.add(p.ingress, |out| arp.answered_by(port.mac).frame(out));
    if answered {
        Verdict::Answered
    } else {
        Verdict::Drop(DropReason::AnswerLimit)
    }
}

/// Is it an address whose stack we are: a VIP or one of our own?
pub(super) fn is_ours(own: &Own, address: &IpAddr) -> bool {
    own.snapshot.is_vip(address) || own.snapshot.own_port(address).is_some()
}

/// A packet that no connection and no service took.
pub fn answer<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    if !is_ours(own, &p.packet.target()) {
        return if is_orphan(p, own) {
            disown(p, own)
        } else {
            Verdict::Pass
        };
    }
    if is_martian(p, own) {
        return Verdict::Drop(DropReason::Martian);
    }
    if let Some(verdict) = refuse_options(p, own) {
        return verdict;
    }
    let packet = &p.packet;
    match packet.layout.protocol {
        _ if packet.is_icmp() => answer_icmp(p, own),
        // A segment that was cut off or damaged on its way deserves no reset.
        number::TCP if expects_reset(packet) => say(
            p,
            own,
            "a reset: nobody expected this segment",
            answer::tcp_reset,
        ),
        number::UDP if packet.layout.transport && packet.transport_sum_holds() => {
            complain(p, own, IcmpError::PortUnreachable, DropReason::Unwanted)
        }
        number::TCP | number::UDP => Verdict::Drop(DropReason::Unwanted),
        number::ICMP | number::ICMPV6 => Verdict::Drop(DropReason::Unwanted),
        _ => complain(p, own, IcmpError::ProtocolUnreachable, DropReason::Unwanted),
    }
}

/// Does it come from an address that nobody outside can have? What the kernel's routing drops before
/// IPVS sees it (`ip_route_input_slow`, `ip6_rcv_core`); for IPv6 our own addresses are not among it.
pub fn is_martian<P: Probe>(p: &Passage<'_, '_, P>, own: &Own) -> bool {
    let source = p.packet.source();
    match source {
        IpAddr::V4(v4) => {
            let nobody = v4.is_unspecified() || v4.is_broadcast();
            nobody || v4.is_loopback() || v4.is_multicast() || is_ours(own, &source)
        }
        IpAddr::V6(v6) => v6.is_unspecified() || v6.is_loopback() || v6.is_multicast(),
    }
}

/// With `nat_icmp_send`: does a real server under masq speak from a port of its service, though
/// nobody asked it? Its resets and aborts may pass.
fn is_orphan<P: Probe>(p: &Passage<'_, '_, P>, own: &Own) -> bool {
    if own.snapshot.tunables.nat_icmp_send == 0 || !p.packet.layout.transport {
        return false;
    }
    let packet = &p.packet;
    let ends_it = packet.tcp_flags() & 0x04 != 0
        || packet.layout.protocol == number::SCTP
            && packet
                .sctp_chunks()
                .is_some_and(|(first, _)| first == SCTP_ABORT);
    let protocol = Protocol(packet.layout.protocol);
    let speaker = Endpoint::new(packet.source(), packet.source_port());
    !ends_it && own.snapshot.is_masq_real(protocol, &speaker)
}

/// Tells a real server that nobody listens. It is told as a router tells: the quoted packet has lost a
/// hop.
fn disown<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    if p.packet.ttl() <= 1 {
        return complain(p, own, IcmpError::TimeExceeded, DropReason::TtlExceeded);
    }
    p.packet.decrement_ttl();
    complain(p, own, IcmpError::PortUnreachable, DropReason::Orphan)
}

fn expects_reset(packet: &Packet<'_>) -> bool {
    packet.layout.transport && packet.tcp_flags() & 0x04 == 0 && packet.transport_sum_holds()
}

fn answer_icmp<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let message = p.packet.icmp_message();
    let asks = match message {
        Message::Echo => true,
        Message::Timestamp => p.packet.transport().len() >= answer::TIMESTAMP_LEN,
        Message::Error | Message::Other => false,
    };
    if !asks {
        return Verdict::Drop(DropReason::Unwanted);
    }
    if !p.packet.icmp_sum_holds() {
        return Verdict::Drop(DropReason::IcmpChecksum);
    }
    let ident = own.rng.next_u64() as u16;
    let time = time_of_day(p.now);
    if message == Message::Timestamp {
        return say(p, own, "a timestamp reply", |packet, out| {
            answer::timestamp_reply(packet, ident, time, out)
        });
    }
    say(p, own, "an echo reply", |packet, out| {
        answer::echo_reply(packet, ident, out)
    })
}

/// Milliseconds that run on, with the bit that says: not counted from midnight (RFC 791, RFC 792).
/// There is no clock in here that knows the time of day, and strangers need not know it either.
fn time_of_day(now: Instant) -> u32 {
    const DAY_MS: u64 = 86_400_000;
    const NOT_STANDARD: u32 = 1 << 31;
    (now.as_nanos() / 1_000_000 % DAY_MS) as u32 | NOT_STANDARD
}

fn say<P: Probe>(
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
    what: &str,
    build: impl FnOnce(&Packet<'_>, &mut Vec<u8>),
) -> Verdict {
    if P::ON {
        p.probe.step(Step::Said(format!("answers with {what}")));
    }
    let packet = &p.packet;
    let answered = match p.gathered {
        None => own.outbox.add(p.ingress, |out| build(packet, out)),
        Some(_) => fragments::answer(p.ingress, own, |out| build(packet, out)),
    };
    if answered {
        Verdict::Answered
    } else {
        Verdict::Drop(DropReason::AnswerLimit)
    }
}

/// Nobody can be chosen: port unreachable, also for TCP (`ip_vs_leave`).
pub fn refuse_service<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    complain_to_client(p, own, IcmpError::PortUnreachable, DropReason::NoRealServer)
}

/// Drops a packet of a client and tells him so. It would come from the address that was asked, so of
/// IPv4 nothing is said for an address that a mark service only passes on (as recorded: the kernel has no
/// route from there).
pub fn complain_to_client<P: Probe>(
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
    error: IcmpError,
    reason: DropReason,
) -> Verdict {
    if p.packet.is_v4() && !is_ours(own, &p.packet.target()) {
        return Verdict::Drop(reason);
    }
    complain(p, own, error, reason)
}

/// A packet whose IP options make no sense, or would choose its way, ends here.
pub fn refuse_options<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Option<Verdict> {
    if !p.packet.has_options() {
        return None;
    }
    Some(match p.packet.options_fault()? {
        OptionFault::SourceRoute => Verdict::Drop(DropReason::SourceRoute),
        OptionFault::Malformed(at) => {
            complain(p, own, IcmpError::BadHeader(at), DropReason::Malformed)
        }
    })
}

/// A packet of a connection passes the director: where its options ask for it, the director signs as
/// the VIP. A verdict if it ends here because of them.
pub fn heed_options<P: Probe>(
    virt: IpAddr,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let IpAddr::V4(virt) = virt else { return None };
    if let Some(verdict) = refuse_options(p, own) {
        return Some(verdict);
    }
    let (time, snapshot) = (time_of_day(p.now), &own.snapshot);
    p.packet.stamp_options(virt, time, |address| {
        let address = IpAddr::V4(address);
        snapshot.is_vip(&address) || snapshot.own_port(&address).is_some()
    });
    None
}

/// Drops the packet for `reason` and tells its sender so, where that is allowed.
pub fn complain<P: Probe>(
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
    error: IcmpError,
    reason: DropReason,
) -> Verdict {
    if answer::may_complain(&p.packet) {
        let target = p.packet.target();
        // A host answers from the address that was spoken to, a router from the port's own.
        let source = if is_ours(own, &target) {
            target
        } else {
            own.snapshot.source_on(p.ingress, p.packet.source())
        };
        if source.is_unspecified() {
            return Verdict::Drop(reason);
        }
        if P::ON {
            p.probe.step(Step::Said(format!(
                "tells {}: {error:?}",
                p.packet.source()
            )));
        }
        let ident = own.rng.next_u64() as u16;
        let packet = &p.packet;
        own.outbox.add(p.ingress, |out| {
            answer::icmp_error(packet, error, source, ident, out)
        });
    }
    Verdict::Drop(reason)
}

/// Tells the sender of `packet`, which is not the one at hand but quoted in it, of an error, from the
/// address that it had spoken to. It goes to where that sender is.
pub(super) fn tell_client(
    packet: &Packet<'_>,
    error: IcmpError,
    now: Instant,
    own: &mut Own,
) -> Verdict {
    let client = packet.source();
    let route = own.snapshot.route_to(client);
    let Some((egress, next_hop)) = route.filter(|_| answer::may_complain(packet)) else {
        return Verdict::Answered;
    };
    let (source, ident) = (packet.target(), own.rng.next_u64() as u16);
    let sent = resolve::send_own(egress, next_hop, now, own, |out| {
        answer::icmp_error(packet, error, source, ident, out)
    });
    if sent {
        Verdict::Answered
    } else {
        Verdict::Drop(DropReason::AnswerLimit)
    }
}
