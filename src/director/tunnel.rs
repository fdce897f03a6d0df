//! LVS-TUN: packets leave in an envelope to their real server, and what routers say of the envelopes is
//! told to the clients (`ip_vs_tunnel_xmit`, the tunnels' part of `ip_vs_in_icmp`).

use std::net::IpAddr;

use super::lane::Own;
use super::probe::{Probe, Step};
use super::resolve::LinkHeader;
use super::verdict::{DropReason, Verdict};
use super::{Director, Passage, resolve, serve, stack};
use crate::conn::{Conn, Direction};
use crate::forward::tunnel::{self, Ends};
use crate::lvs::{Endpoint, Flow, Protocol, Tunnel, Tuple};
use crate::wire::answer::IcmpError;
use crate::wire::encap::{self, Contents, Envelope, Outer};
use crate::wire::gso::Segments;
use crate::wire::gue::Datagrams;
use crate::wire::icmp::Quote;
use crate::wire::packet::{Kind, Layout, number};
use crate::wire::{Offload, Packet};

/// A link that carries less than this of a packet carries none (RFC 791, RFC 8200 section 5).
const V4_MTU_MIN: u32 = 68;
const V6_MTU_MIN: u32 = 1280;
/// The longest IP packet.
const PACKET_LEN_MAX: usize = 65_535;
/// Length of UDP's header.
const UDP_LEN: usize = 8;

/// Sends a packet of a client to its real server in an envelope.
pub(super) fn carry<P: Probe>(conn: &Conn, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let target = conn.real().address;
    let tunnel = conn.server().map_or(Tunnel::Ipip, |server| server.tunnel());
    let Some((egress, next_hop)) = own.snapshot.route_to(target) else {
        return lost(conn, p, own);
    };
    let source = own.snapshot.source_towards(egress, target, next_hop);
    if source.is_unspecified() {
        return lost(conn, p, own);
    }
    let link = own.snapshot.ports[egress].mtu;
    let path = conn
        .server()
        .map_or(link, |server| server.path.walk(link, p.now));
    let mtu = path.saturating_sub(tunnel::overhead(target, tunnel));
    let least = if target.is_ipv4() {
        V4_MTU_MIN
    } else {
        V6_MTU_MIN
    };
    // A packet that has come to its end is told so first.
    if mtu < least && p.packet.ttl() > 1 {
        return Verdict::Drop(DropReason::TooLong);
    }
    let held = own.snapshot.tunables.pmtu_disc != 0;
    if let Some(verdict) = serve::travel(conn, Direction::In, mtu, held, p, own) {
        return verdict;
    }
    let ends = Ends {
        source,
        target,
        ident: own.next_ident(),
        hash: conn.client_hash(0),
        keep_whole: held,
    };
    let outer = tunnel::outer(&p.packet, tunnel, ends);
    if P::ON {
        let (name, len) = (tunnel_name(tunnel), outer.len());
        let text = format!("Tunnel: in {name} from {source} to {target}, {len} bytes more");
        p.probe.step(Step::Said(text));
    }
    if p.packet.offload.is_gso() {
        return send_segments(outer, egress, next_hop, p, own);
    }
    if !p.packet.wrap(&outer) {
        return Verdict::Drop(DropReason::TooLong);
    }
    serve::send_on(serve::way(egress, next_hop, path), p, own)
}

/// There is no way to the real server, and the client is told so.
fn lost<P: Probe>(conn: &Conn, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    serve::refuse(
        conn,
        IcmpError::HostUnreachable,
        DropReason::NoRoute,
        p,
        own,
    )
}

/// Sends what a super-frame stands for, each segment in an envelope of its own.
fn send_segments<P: Probe>(
    outer: Outer,
    egress: usize,
    next_hop: IpAddr,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let Some(segments) = Segments::new(&p.packet) else {
        return Verdict::Drop(DropReason::TooLong);
    };
    if outer.len() + segments.longest() > PACKET_LEN_MAX {
        return Verdict::Drop(DropReason::TooLong);
    }
    let Some(link) = resolve::link_header(egress, next_hop, p.now, own) else {
        // Whoever sends super-frames sends them again.
        return Verdict::Drop(DropReason::NoNeighbour);
    };
    let count = segments.len();
    let sent = match Datagrams::new(&segments, &outer, link.bytes().len()) {
        Some(datagrams) => add_whole(&datagrams, outer, egress, &link, own),
        None => add_each(&segments, outer, egress, &link, own),
    };
    let Some(frames) = sent else {
        return Verdict::Drop(DropReason::FragmentLimit);
    };
    if P::ON {
        let text = format!("a super-frame: {count} segments in {frames} frames");
        p.probe.step(Step::Said(text));
    }
    Verdict::Held
}

/// Adds super-frames of GUE, which a device can cut. Says how many, if this breath has room for them.
fn add_whole(
    datagrams: &Datagrams<'_>,
    mut outer: Outer,
    egress: usize,
    link: &LinkHeader,
    own: &mut Own,
) -> Option<usize> {
    let count = datagrams.len();
    if !own.pieces.has_room(count) {
        return None;
    }
    for index in 0..count {
        outer.ident = own.next_idents(datagrams.segments_of(index).len());
        let carried = u32::from(index + 1 == count);
        own.pieces.add_cut(egress, carried, |out| {
            out.extend_from_slice(link.bytes());
            datagrams.write(index, &outer, out)
        });
    }
    Some(count)
}

/// Adds each segment as a frame: no device could cut them inside this envelope. Says how many, if this
/// breath has room for them.
fn add_each(
    segments: &Segments<'_>,
    mut outer: Outer,
    egress: usize,
    link: &LinkHeader,
    own: &mut Own,
) -> Option<usize> {
    let count = segments.len();
    if !own.pieces.has_room(count) {
        return None;
    }
    for index in 0..count {
        outer.ident = own.next_ident();
        let carried = u32::from(index + 1 == count);
        own.pieces.add_cut(egress, carried, |out| {
            out.extend_from_slice(link.bytes());
            let at = out.len();
            out.resize(at + outer.len(), 0);
            segments.write(index, out);
            let (head, inner) = out[at..].split_at_mut(outer.len());
            outer.write(head, inner);
            Offload::default()
        });
    }
    Some(count)
}

fn tunnel_name(tunnel: Tunnel) -> &'static str {
    match tunnel {
        Tunnel::Ipip => "IP",
        Tunnel::Gue { .. } => "GUE",
        Tunnel::Gre { .. } => "GRE",
    }
}

/// The packet of a client that an ICMP error quotes inside one of our envelopes.
struct Enclosed {
    /// Where it begins in the ICMP message.
    at: usize,
    /// The real server that the envelope was for.
    real: IpAddr,
    /// It is from us: only then is its way known, of which something could be learned.
    from_us: bool,
    /// What stands in the envelope between the IP header and the packet, in bytes.
    between: u32,
    layout: Layout,
    tuple: Tuple,
}

impl Director {
    /// An ICMP error about one of our envelopes: the client is told, from the VIP, as far as it is
    /// its business. `None` if it is about anything else. IPv4 only, as in the kernel.
    pub(super) fn relate_envelope<P: Probe>(
        &self,
        quote: &Quote,
        p: &mut Passage<'_, '_, P>,
        own: &mut Own,
    ) -> Option<Verdict> {
        if !p.packet.is_v4() || !stack::is_ours(own, &p.packet.target()) {
            return None;
        }
        let about = enclosed(quote, p, own).and_then(|enclosed| {
            let conn = self.table().find_in(&enclosed.tuple);
            Some((conn.filter(|conn| !conn.is_gone())?, enclosed))
        });
        let Some((conn, enclosed)) = about else {
            overhear(quote, p, own);
            return None;
        };
        if !p.packet.icmp_sum_holds() {
            return Some(Verdict::Drop(DropReason::IcmpChecksum));
        }
        p.say(|| "about one of our envelopes".to_string());
        Some(complain_about(&conn, &enclosed, p, own))
    }
}

/// Finds the packet in the envelope, if it is one that we could have sent to a real server.
fn enclosed<P: Probe>(quote: &Quote, p: &Passage<'_, '_, P>, own: &Own) -> Option<Enclosed> {
    let message = p.packet.quoted();
    let found = encap::contents(message, &quote.layout)?;
    let known = own.snapshot.tunnels_to(&quote.target);
    if found.kind != Kind::V4 || !known.into_iter().any(|tunnel| is_of(tunnel, &found)) {
        return None;
    }
    let inner = message.get(found.at..)?;
    let layout = Layout::parse_quoted(inner, Kind::V4).ok()?;
    let protocol = Protocol(layout.protocol);
    if !protocol.is_balanced() || !layout.transport {
        return None;
    }
    let inner = Quote::read(inner, layout);
    let flow = Flow {
        protocol,
        source: Endpoint::new(inner.source, inner.source_port),
        target: Endpoint::new(inner.target, inner.target_port),
    };
    Some(Enclosed {
        at: found.at,
        real: quote.target,
        from_us: own.snapshot.own_port(&quote.source).is_some(),
        between: (found.at - usize::from(quote.layout.l4)) as u32,
        layout,
        tuple: flow.into(),
    })
}

/// Could this tunnel have made the envelope? Whether there is a checksum says nothing.
fn is_of(tunnel: Tunnel, found: &Contents) -> bool {
    match (tunnel, found.envelope) {
        (Tunnel::Ipip, Envelope::Ipip) | (Tunnel::Gre { .. }, Envelope::Gre { .. }) => true,
        (Tunnel::Gue { port, .. }, Envelope::Gue { port: found, .. }) => port == found,
        _ => false,
    }
}

/// Tells the client what a router or the real server said. Too long an envelope is a matter of the way:
/// its length is learned, and told less the envelope, if the client asked not to be cut.
fn complain_about<P: Probe>(
    conn: &Conn,
    enclosed: &Enclosed,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let (kind, code, rest) = p.packet.icmp_words();
    let error = match (kind, code) {
        (3, 4) => {
            let mtu = learn(conn, enclosed, rest & 0xffff, p, own);
            let inner = &p.packet.quoted()[enclosed.at..];
            if inner[6] & 0x40 == 0 {
                return Verdict::Answered;
            }
            IcmpError::Relayed {
                kind,
                code,
                rest: mtu,
            }
        }
        _ => IcmpError::Relayed { kind, code, rest },
    };
    let mut inner = p.packet.quoted()[enclosed.at..].to_vec();
    // The kernel counts what it quotes, and then what it sends.
    serve::count(conn, Direction::Out, inner.len(), own.worker);
    let before = own.outbox.frames().len();
    let inner = Packet::over(&mut inner, enclosed.layout, Offload::default());
    let verdict = stack::tell_client(&inner, error, p.now, own);
    serve::count_said(conn, before, p, own);
    verdict
}

/// What a router says of a datagram of UDP that is from us is believed although too little of it is quoted
/// to show whose it was, as a host's own stack does (recorded): GUE's envelopes are such datagrams, and
/// many routers quote no more than UDP's header.
fn overhear<P: Probe>(quote: &Quote, p: &mut Passage<'_, '_, P>, own: &Own) {
    let (kind, code, rest) = p.packet.icmp_words();
    let whole = p.packet.quoted().len() >= usize::from(quote.layout.l4) + UDP_LEN;
    let datagram = quote.layout.protocol == number::UDP && whole;
    let from_us = own.snapshot.own_port(&quote.source).is_some();
    if (kind, code) == (3, 4) && datagram && from_us && p.packet.icmp_sum_holds() {
        p.say(|| "about a datagram of ours, which may be an envelope".to_string());
        learn_of(quote.target, rest & 0xffff, p, own);
    }
}

/// Learns the longest packet on the way to a real server; returns the link's.
fn learn_of<P: Probe>(real: IpAddr, told: u32, p: &Passage<'_, '_, P>, own: &Own) -> u32 {
    let link = link_towards(real, own);
    for live in own.snapshot.reals_at(&real) {
        live.path.learn(told, link, p.now);
    }
    link
}

/// The longest packet that the first link on the way to this address takes.
fn link_towards(real: IpAddr, own: &Own) -> u32 {
    let route = own.snapshot.route_to(real);
    route.map_or(u32::from(u16::MAX), |(egress, _)| {
        own.snapshot.ports[egress].mtu
    })
}

/// Learns the longest packet on the way to a real server; returns what is left of it for the client's.
fn learn<P: Probe>(
    conn: &Conn,
    enclosed: &Enclosed,
    told: u32,
    p: &Passage<'_, '_, P>,
    own: &Own,
) -> u32 {
    let link = match enclosed.from_us {
        true => learn_of(enclosed.real, told, p, own),
        false => link_towards(enclosed.real, own),
    };
    let mtu = conn
        .server()
        .map_or(told, |server| server.path.tell(told, link, p.now));
    let envelope = 20 + enclosed.between;
    if mtu > V4_MTU_MIN + envelope {
        mtu - envelope
    } else {
        mtu
    }
}
