//! What the kernel around IPVS does with a frame that is none of IPVS's business, where the recordings
//! show it: plain routing. The director passes such frames on to the kernel; here this stands in for
//! it. (What the kernel's own stack says for the VIP and the director's addresses, the director says
//! itself, so a passed frame that is for the host gets nothing.)
//!
//! The rules, in this order (ip_forward = 1, rp_filter = 0, no redirects):
//! 1. A frame for another MAC address, or that is no IP packet, is not looked at.
//! 2. A packet whose source cannot be somebody else's is dropped: unspecified, loopback, multicast,
//!    broadcast, and for IPv4 the director's own addresses.
//! 3. A packet for the host stays here: one of its addresses, or a mark that is routed to it.
//! 4. An IPv4 packet whose options make no sense is answered with parameter problem; one that would
//!    choose its own way is dropped.
//! 5. A packet whose TTL or hop limit is 1 or 0 is answered with time exceeded, from the address of
//!    the interface it came in by, unless it is itself an ICMP error.
//! 6. The longest matching route says which interface and next hop; no route, nothing happens.
//! 7. A packet longer than the MTU of that interface is answered with fragmentation needed if it may
//!    not be cut (DF, or IPv6).
//! 8. TTL or hop limit goes down by one, and the frame gets the MAC addresses of the next hop.

use std::net::IpAddr;

use ulvs::director::snapshot::Snapshot;
use ulvs::time::Instant;
use ulvs::wire::answer::{self, IcmpError};
use ulvs::wire::cut::Cut;
use ulvs::wire::options::{OptionFault, Signature};
use ulvs::wire::{Layout, Offload, Packet};

use super::case::Side;
use super::house::Sent;
use super::net::director_mac;
use super::shell::Shell;

/// What comes out because of a frame that the director passed, not in longer packets than `longest`.
pub fn receive(
    snapshot: &Snapshot,
    shell: &Shell,
    side: Side,
    frame: &[u8],
    longest: usize,
    now: Instant,
) -> Vec<Sent> {
    let complain = |packet: &Packet<'_>, error| complain(snapshot, side, packet, error, now);
    let mut bytes = frame.to_vec();
    let Ok(layout) = Layout::parse(&bytes, false) else {
        return Vec::new();
    };
    bytes.truncate(layout.end as usize);
    let ip = matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]);
    if !ip || frame[..6] != director_mac(side).0 {
        return Vec::new();
    }
    let mut packet = Packet::over(&mut bytes, layout, Offload::default());
    let (source, target) = (packet.source(), packet.target());
    let own = |address: &IpAddr| snapshot.own_port(address).is_some();
    if is_martian(source) || source.is_ipv4() && own(&source) {
        return Vec::new();
    }
    if own(&target) {
        return Vec::new();
    }
    if shell.is_local_mark(shell.mark_of(side, frame)) {
        return answer_for_other(snapshot, side, &packet, now);
    }
    match packet
        .has_options()
        .then(|| packet.options_fault())
        .flatten()
    {
        Some(OptionFault::Malformed(at)) => {
            return complain(&packet, IcmpError::BadHeader(at));
        }
        Some(OptionFault::SourceRoute) => return Vec::new(),
        None => {}
    }
    if packet.ttl() <= 1 {
        return complain(&packet, IcmpError::TimeExceeded);
    }
    let Some((port, next_hop)) = snapshot.route_from(source, target) else {
        return Vec::new();
    };
    let egress = &snapshot.ports[port];
    if packet.ip_len() > egress.mtu as usize && packet.dont_fragment() {
        return complain(&packet, IcmpError::TooLong(egress.mtu as u16));
    }
    let neighbours = &mut egress.neighbours.iter();
    let Some((_, mac)) = neighbours.find(|(address, _)| *address == next_hop) else {
        return Vec::new();
    };
    let addresses = (
        snapshot.source_on(side as usize, source),
        snapshot.source_on(port, target),
    );
    if let (true, (IpAddr::V4(on_the_way_in), IpAddr::V4(on_the_way_out))) =
        (packet.has_options(), addresses)
    {
        let we = Signature {
            on_the_way_in,
            on_the_way_out,
        };
        packet.stamp_options(we, 0, |asked| own(&asked.into()));
    }
    packet.decrement_ttl();
    packet.set_macs(*mac, egress.mac);
    let side = Side::BOTH[port];
    let longest = longest.min(egress.mtu as usize);
    let frames = match packet.ip_len() > longest {
        true => cut(&packet, longest),
        false => vec![bytes],
    };
    frames
        .into_iter()
        .map(|frame| Sent { side, frame })
        .collect()
}

fn cut(packet: &Packet<'_>, mtu: usize) -> Vec<Vec<u8>> {
    let Some(cut) = Cut::new(packet, mtu, &[], 0) else {
        return Vec::new();
    };
    let pieces = cut.ranges().map(|range| {
        let mut piece = Vec::new();
        cut.write(range, &mut piece);
        piece
    });
    pieces.collect()
}

/// What the host says to what is routed to it, though it is for another address: of IPv4 nothing, since
/// it has no route from there; of IPv6 what any closed port says.
fn answer_for_other(
    snapshot: &Snapshot,
    side: Side,
    packet: &Packet<'_>,
    now: Instant,
) -> Vec<Sent> {
    let (body, sound) = (packet.transport(), packet.layout.transport);
    let header = |at: usize| usize::from(body[at] >> 4) * 4;
    match packet.layout.protocol {
        _ if packet.is_v4() || !sound => Vec::new(),
        6 => {
            let whole = (20..=body.len()).contains(&header(12)) && packet.transport_sum_holds();
            let mut frame = Vec::new();
            answer::tcp_reset(packet, &mut frame);
            let resets = whole && packet.tcp_flags() & 4 == 0;
            match resets {
                true => say(snapshot, side, frame),
                false => Vec::new(),
            }
        }
        17 if packet.transport_sum_holds() => {
            complain(snapshot, side, packet, IcmpError::PortUnreachable, now)
        }
        132 if body.len() >= 16 => {
            let at = answer::protocol_named_at(packet);
            complain(
                snapshot,
                side,
                packet,
                IcmpError::ProtocolUnreachable(at),
                now,
            )
        }
        _ => Vec::new(),
    }
}

/// May no packet from outside have this source?
fn is_martian(source: IpAddr) -> bool {
    match source {
        IpAddr::V4(source) => {
            let nobody = source.is_unspecified() || source.is_broadcast();
            nobody || source.is_loopback() || source.is_multicast()
        }
        IpAddr::V6(source) => {
            source.is_unspecified() || source.is_loopback() || source.is_multicast()
        }
    }
}

fn complain(
    snapshot: &Snapshot,
    side: Side,
    packet: &Packet<'_>,
    error: IcmpError,
    now: Instant,
) -> Vec<Sent> {
    if !answer::may_complain(packet) {
        return Vec::new();
    }
    let source = snapshot.source_on(side as usize, packet.source());
    let mut frame = Vec::new();
    let link = snapshot.ports[side as usize].mtu;
    let mtu = snapshot.mtu_towards(&packet.source(), link, now);
    answer::icmp_error(packet, error, (source, mtu), 0, &mut frame);
    say(snapshot, side, frame)
}

/// Sends what the host says itself: by the route from its source, unlike the director.
fn say(snapshot: &Snapshot, side: Side, mut frame: Vec<u8>) -> Vec<Sent> {
    let Ok(layout) = Layout::parse(&frame, false) else {
        return Vec::new();
    };
    let mut packet = Packet::over(&mut frame, layout, Offload::default());
    let route = snapshot.route_from(packet.source(), packet.target());
    let found = route.and_then(|(port, next_hop)| {
        let egress = &snapshot.ports[port];
        let mut neighbours = egress.neighbours.iter();
        let (_, mac) = neighbours.find(|(address, _)| *address == next_hop)?;
        packet.set_macs(*mac, egress.mac);
        Some(Side::BOTH[port])
    });
    let side = found.unwrap_or(side);
    vec![Sent { side, frame }]
}
