//! What the VIP's own stack would say, since the VIP is in no kernel: ARP, echo, resets, port
//! unreachable; and every ICMP error we owe.

use std::net::{IpAddr, Ipv4Addr};

use super::lane::Own;
use super::probe::{Probe, Step};
use super::resolve::LinkHeader;
use super::snapshot::{Role, Snapshot};
use super::verdict::{DropReason, Verdict};
use super::{Passage, fragments, local, resolve};
use crate::conn::{Conn, Direction};
use crate::lvs::{Endpoint, Family, Protocol};
use crate::time::Instant;
use crate::wire::Packet;
use crate::wire::answer::{self, IcmpError};
use crate::wire::arp::Arp;
use crate::wire::icmp::Message;
use crate::wire::options::{OptionFault, Signature};
use crate::wire::packet::{Fragment, number};

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

/// Does it come from outside under an address of ours? Of IPv6 that is not dropped at once, but what is
/// said to it stays here.
pub(super) fn is_from_itself<P: Probe>(p: &Passage<'_, '_, P>, own: &Own) -> bool {
    is_ours(own, &p.packet.source()) && own.snapshot.kernel_port() != Some(p.ingress)
}

/// A packet that no connection and no service took.
pub fn answer<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    answer_as(p.packet.target(), p, own)
}

/// The same; where routes go by their source, what is said is routed as if it came from `speaker`.
pub(super) fn answer_as<P: Probe>(
    speaker: IpAddr,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    if !is_ours(own, &p.packet.target()) {
        if let Some(verdict) = local::leave(p, own) {
            return verdict;
        }
        return if is_orphan(p, own) {
            disown(p, own)
        } else {
            Verdict::Pass
        };
    }
    if own.snapshot.is_held(&p.packet.target()) {
        p.say(|| "for the machine's own kernel".to_string());
        return Verdict::Pass;
    }
    // Nobody can be answered who has no address, or ours.
    let source = p.packet.source();
    if is_martian(p, own) || source.is_unspecified() || is_ours(own, &source) {
        return Verdict::Drop(DropReason::Martian);
    }
    if let Some(verdict) = refuse_options(Direction::In, p, own) {
        return verdict;
    }
    let packet = &p.packet;
    match packet.layout.protocol {
        _ if packet.is_icmp() => answer_icmp(p, own),
        // A segment that was cut off or damaged on its way deserves no reset.
        number::TCP if expects_reset(packet) => {
            let what = "a reset: nobody expected this segment";
            say(speaker, p, own, what, answer::tcp_reset)
        }
        number::UDP if packet.layout.transport && packet.transport_sum_holds() => {
            let error = IcmpError::PortUnreachable;
            complain_as(Some(speaker), p, own, error, DropReason::Unwanted)
        }
        number::TCP | number::UDP => Verdict::Drop(DropReason::Unwanted),
        number::ICMP | number::ICMPV6 => Verdict::Drop(DropReason::Unwanted),
        _ => {
            let error = IcmpError::ProtocolUnreachable(answer::protocol_named_at(packet));
            complain_as(Some(speaker), p, own, error, DropReason::Unwanted)
        }
    }
}

/// A packet that could not be scheduled: the same, but that one of SCTP without a whole chunk is dropped,
/// since nobody can tell what it wants (`sctp_conn_schedule`).
pub fn answer_stray<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    if lacks_chunk(p, own) {
        return Verdict::Drop(DropReason::Malformed);
    }
    answer(p, own)
}

/// Is it for us, of SCTP, and without a whole chunk?
pub fn lacks_chunk<P: Probe>(p: &Passage<'_, '_, P>, own: &Own) -> bool {
    let packet = &p.packet;
    packet.layout.protocol == number::SCTP
        && packet.layout.fragment == Fragment::Whole
        && !(packet.layout.transport && packet.sctp_chunks().is_some())
        && own.snapshot.serves(Family::of(packet.target()))
        && (p.mark != 0 || is_ours(own, &packet.target()))
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
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_multicast(),
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
    if let Some(verdict) = refuse_options(Direction::Out, p, own) {
        return verdict;
    }
    if p.packet.ttl() <= 1 {
        return complain(p, own, IcmpError::TimeExceeded, DropReason::TtlExceeded);
    }
    p.packet.decrement_ttl();
    complain(p, own, IcmpError::PortUnreachable, DropReason::Orphan)
}

pub(super) fn expects_reset(packet: &Packet<'_>) -> bool {
    let segment = packet.transport();
    let header = |segment: &[u8]| usize::from(segment[12] >> 4) * 4;
    packet.layout.protocol == number::TCP
        && packet.layout.transport
        && (20..=segment.len()).contains(&header(segment))
        && packet.tcp_flags() & 0x04 == 0
        && packet.transport_sum_holds()
}

fn answer_icmp<P: Probe>(p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let message = p.packet.icmp_message();
    let asks = match message {
        Message::Echo => true,
        Message::Timestamp => p.packet.transport().len() >= answer::TIMESTAMP_ASKED_LEN,
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
        let what = "a timestamp reply";
        return say(p.packet.target(), p, own, what, |packet, out| {
            answer::timestamp_reply(packet, ident, time, out)
        });
    }
    say(p.packet.target(), p, own, "an echo reply", |packet, out| {
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
    speaker: IpAddr,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
    what: &str,
    build: impl FnOnce(&Packet<'_>, &mut Vec<u8>),
) -> Verdict {
    if P::ON {
        p.probe.step(Step::Said(format!("answers with {what}")));
    }
    let Some(back) = way_of_answer(speaker, p, own) else {
        return Verdict::Answered;
    };
    let packet = &p.packet;
    let build = |out: &mut Vec<u8>| {
        let at = out.len();
        build(packet, out);
        back.address(&mut out[at..]);
    };
    let answered = match p.gathered {
        None => own.outbox.add(back.port, build),
        Some(_) => fragments::answer(back.port, own, build),
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
pub fn refuse_options<P: Probe>(
    direction: Direction,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    if !p.packet.has_options() {
        return None;
    }
    Some(match p.packet.options_fault()? {
        OptionFault::SourceRoute => Verdict::Drop(DropReason::SourceRoute),
        OptionFault::Malformed(at) => {
            let (error, reason) = (IcmpError::BadHeader(at), DropReason::Malformed);
            match direction {
                Direction::Out => complain(p, own, error, reason),
                _ => complain_to_client(p, own, error, reason),
            }
        }
    })
}

/// A packet of a connection passes the director: where its options ask for it, the director signs. A
/// verdict if it ends here because of them.
#[cold]
pub fn heed_options<P: Probe>(
    conn: &Conn,
    direction: Direction,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let IpAddr::V4(virt) = conn.virt().address else {
        return None;
    };
    if let Some(verdict) = refuse_options(direction, p, own) {
        return Some(verdict);
    }
    let (time, snapshot) = (time_of_day(p.now), &own.snapshot);
    let we = signature(virt, direction, p, snapshot);
    p.packet.stamp_options(we, time, |address| {
        let address = IpAddr::V4(address);
        snapshot.is_vip(&address) || snapshot.own_port(&address).is_some()
    });
    None
}

/// Under which addresses the director takes part: to clients it is the VIP. An answer comes in by the
/// port of the real server, and leaves by the VIP's way only with `snat_reroute`, else by the client's
/// port (recorded; `ip_rt_get_source`).
fn signature<P: Probe>(
    virt: Ipv4Addr,
    direction: Direction,
    p: &Passage<'_, '_, P>,
    snapshot: &Snapshot,
) -> Signature {
    if direction != Direction::Out {
        return virt.into();
    }
    let v4 = |address| match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => virt,
    };
    let (source, target) = (p.packet.source(), p.packet.target());
    let by_its_port = || {
        let (egress, next_hop) = snapshot.route_from(source, target)?;
        Some(v4(snapshot.source_towards(egress, target, next_hop)))
    };
    Signature {
        on_the_way_in: v4(snapshot.source_towards(p.ingress, source, source)),
        on_the_way_out: match snapshot.tunables.snat_reroute {
            0 => by_its_port().unwrap_or(virt),
            _ => virt,
        },
    }
}

/// Drops the packet for `reason` and tells its sender so, where that is allowed.
pub fn complain<P: Probe>(
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
    error: IcmpError,
    reason: DropReason,
) -> Verdict {
    complain_as(None, p, own, error, reason)
}

/// The same; where routes go by their source, it is routed as if it came from `speaker`, if that is another
/// than who says it.
pub(super) fn complain_as<P: Probe>(
    speaker: Option<IpAddr>,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
    error: IcmpError,
    reason: DropReason,
) -> Verdict {
    if answer::may_complain(&p.packet) && !is_from_itself(p, own) {
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
        let Some(back) = way_of_answer(speaker.unwrap_or(source), p, own) else {
            return Verdict::Drop(reason);
        };
        let (packet, link) = (&p.packet, own.snapshot.ports[back.port].mtu);
        let mtu = own.snapshot.mtu_towards(&packet.source(), link, p.now);
        own.outbox.add(back.port, |out| {
            let at = out.len();
            answer::icmp_error(packet, error, (source, mtu), ident, out);
            back.address(&mut out[at..]);
        });
    }
    Verdict::Drop(reason)
}

/// How an answer leaves.
struct Back {
    port: usize,
    link: Option<LinkHeader>,
}

impl Back {
    /// Gives the frame of an answer, which goes to where the question came from, the addresses of its way.
    fn address(&self, frame: &mut [u8]) {
        if let Some(link) = &self.link {
            frame[..link.bytes().len()].copy_from_slice(link.bytes());
        }
    }
}

/// How an answer from `source` leaves: back to where the question came from, which takes no route and no
/// neighbour, unless routes go by their source. `None` if the next hop is not known yet.
#[inline]
fn way_of_answer<P: Probe>(source: IpAddr, p: &Passage<'_, '_, P>, own: &mut Own) -> Option<Back> {
    let port = p.ingress;
    match own.snapshot.routes_by_source() {
        true => way_by_source(source, p, own),
        false => Some(Back { port, link: None }),
    }
}

#[cold]
fn way_by_source<P: Probe>(source: IpAddr, p: &Passage<'_, '_, P>, own: &mut Own) -> Option<Back> {
    let (client, snapshot) = (p.packet.source(), &own.snapshot);
    let route = snapshot.route_from(source, client);
    let plain = |port: usize| !snapshot.ports[port].raw_ip;
    match route.filter(|(port, _)| plain(*port) && plain(p.ingress)) {
        Some((port, next_hop)) if Some((port, next_hop)) != snapshot.route_to(client) => {
            let link = Some(resolve::link_header(port, next_hop, p.now, own)?);
            Some(Back { port, link })
        }
        _ => Some(Back {
            port: p.ingress,
            link: None,
        }),
    }
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
    if packet.is_v4() && !is_ours(own, &packet.target()) {
        return Verdict::Answered;
    }
    let route = own.snapshot.route_from(packet.target(), client);
    let Some((egress, next_hop)) = route.filter(|_| answer::may_complain(packet)) else {
        return Verdict::Answered;
    };
    let (source, ident) = (packet.target(), own.rng.next_u64() as u16);
    let mtu = own.snapshot.ports[egress].mtu;
    let sent = resolve::send_own(egress, next_hop, now, own, |out| {
        answer::icmp_error(packet, error, (source, mtu), ident, out)
    });
    if sent {
        Verdict::Answered
    } else {
        Verdict::Drop(DropReason::AnswerLimit)
    }
}
