//! The last step: the next hop's MAC address. Known: the frame leaves. Unknown: we ask, and the frame
//! waits, within bounds.

use std::net::IpAddr;

use super::Passage;
use super::fragments;
use super::lane::{HeldFrame, Origin, Own};
use super::probe::{Probe, Step};
use super::verdict::{DropReason, Verdict};
use crate::time::{Duration, Instant};
use crate::wire::arp::Arp;
use crate::wire::ndp::Discovery;
use crate::wire::packet::ETHERNET_LEN;
use crate::wire::{Layout, Mac, Offload};

/// How long a frame waits for a MAC address: three questions.
const HELD_FOR: Duration = Duration::from_secs(3);

/// Sends a packet out by `egress` to the neighbour `next_hop`.
pub fn send<P: Probe>(
    egress: usize,
    next_hop: IpAddr,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let port = &own.snapshot.ports[egress];
    let (raw_ip, source) = (port.raw_ip, port.mac);
    if raw_ip != (p.packet.layout.l3 == 0) {
        // Frames do not change between ports with and without an Ethernet header; start-up sees to it.
        return Verdict::Drop(DropReason::NoRoute);
    }
    let mac = if raw_ip {
        Some(Mac::default())
    } else {
        find_mac(egress, next_hop, p.now, own)
    };
    let Some(mac) = mac else {
        return wait(egress, next_hop, p, own);
    };
    p.packet.set_macs(mac, source);
    if P::ON {
        let port = &own.snapshot.ports[egress];
        p.probe.step(Step::Sent {
            port,
            next_hop,
            mac,
        });
    }
    if p.cut_to != 0 {
        return fragments::send_cut(egress, p, own);
    }
    if p.packet.is_wrapped() && !own.pieces.frames().is_empty() {
        return send_behind(egress, p, own);
    }
    Verdict::Forward { port: egress }
}

/// Lets a packet wait until the MAC address of `next_hop` is known.
#[cold]
fn wait<P: Probe>(
    egress: usize,
    next_hop: IpAddr,
    p: &Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    own.hold(HeldFrame {
        port: egress,
        next_hop,
        since: p.now,
        bytes: p.packet.frame().to_vec(),
        layout: p.packet.layout,
        offload: p.packet.offload,
        origin: Origin::Received(p.gathered.map_or(1, |gathered| gathered.frames)),
        gathered: p.gathered.cloned(),
        cut_to: p.cut_to,
    });
    Verdict::Held
}

/// Sends an enveloped packet behind the segments of this breath, which would else overtake it.
fn send_behind<P: Probe>(egress: usize, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let (packet, offload) = (&p.packet, p.packet.offload);
    let sent = own.pieces.add_received(egress, 1, offload, |out| {
        out.extend_from_slice(packet.frame());
    });
    if sent {
        Verdict::Held
    } else {
        Verdict::Drop(DropReason::FragmentLimit)
    }
}

/// An Ethernet header of our own, or nothing where there is none.
#[derive(Clone, Copy)]
pub struct LinkHeader {
    bytes: [u8; ETHERNET_LEN],
    len: usize,
}

impl LinkHeader {
    fn ethernet(target: Mac, source: Mac, next_hop: IpAddr) -> LinkHeader {
        let mut bytes = [0; ETHERNET_LEN];
        let ether_type: u16 = if next_hop.is_ipv4() { 0x0800 } else { 0x86dd };
        bytes[..6].copy_from_slice(&target.0);
        bytes[6..12].copy_from_slice(&source.0);
        bytes[12..].copy_from_slice(&ether_type.to_be_bytes());
        LinkHeader {
            bytes,
            len: ETHERNET_LEN,
        }
    }

    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What stands before an IP packet of our own to `next_hop`; `None` if that is not known yet, and then it
/// is asked for.
pub fn link_header(
    egress: usize,
    next_hop: IpAddr,
    now: Instant,
    own: &mut Own,
) -> Option<LinkHeader> {
    let port = &own.snapshot.ports[egress];
    let (raw_ip, source) = (port.raw_ip, port.mac);
    if raw_ip {
        let bytes = [0; ETHERNET_LEN];
        return Some(LinkHeader { bytes, len: 0 });
    }
    let target = find_mac(egress, next_hop, now, own)?;
    Some(LinkHeader::ethernet(target, source, next_hop))
}

/// Sends an IP packet of our own that `build` appends; false if this breath has made enough. One whose
/// next hop is not known yet waits for it, as others do.
pub fn send_own(
    egress: usize,
    next_hop: IpAddr,
    now: Instant,
    own: &mut Own,
    build: impl FnOnce(&mut Vec<u8>),
) -> bool {
    if let Some(link) = link_header(egress, next_hop, now, own) {
        return own.outbox.add(egress, |out| {
            out.extend_from_slice(link.bytes());
            build(out);
        });
    }
    let link = LinkHeader::ethernet(Mac::default(), own.snapshot.ports[egress].mac, next_hop);
    let mut bytes = link.bytes().to_vec();
    build(&mut bytes);
    own.hold(HeldFrame {
        port: egress,
        next_hop,
        since: now,
        bytes,
        layout: Layout::default(),
        offload: Offload::default(),
        origin: Origin::Ours,
        gathered: None,
        cut_to: 0,
    });
    true
}

/// The MAC address of `next_hop`, from this worker's memory, from what all workers know, or, if there
/// is none, after a question that goes out with this breath.
#[inline]
fn find_mac(egress: usize, next_hop: IpAddr, now: Instant, own: &mut Own) -> Option<Mac> {
    if let Some(mac) = own.cache.get(egress, next_hop, now) {
        return Some(mac);
    }
    let answer = own.neighbours.look_up(egress, next_hop, now);
    own.cache.put(egress, next_hop, &answer);
    if answer.ask {
        ask(egress, next_hop, own);
    }
    answer.mac
}

/// Asks the link who has `next_hop`.
fn ask(egress: usize, next_hop: IpAddr, own: &mut Own) {
    let Own {
        snapshot, outbox, ..
    } = own;
    let port = &snapshot.ports[egress];
    match (next_hop, snapshot.source_on(egress, next_hop)) {
        (IpAddr::V4(target), IpAddr::V4(sender)) => outbox.add(egress, |out| {
            Arp::request(port.mac, sender, target).frame(out)
        }),
        // Who has no address there cannot be answered.
        (IpAddr::V6(target), IpAddr::V6(sender)) if !sender.is_unspecified() => {
            outbox.add(egress, |out| Discovery::ask(port.mac, sender, target, out))
        }
        _ => false,
    };
}

/// Sends or gives up the frames that waited: call it once a breath.
pub fn settle_held(now: Instant, own: &mut Own) {
    if own.held.is_empty() {
        return;
    }
    for _ in 0..own.held.len() {
        let Some(mut frame) = own.held.pop_front() else {
            return;
        };
        let mac = find_mac(frame.port, frame.next_hop, now, own);
        match mac {
            Some(mac) => {
                let source = own.snapshot.ports[frame.port].mac;
                frame.bytes[..6].copy_from_slice(&mac.0);
                frame.bytes[6..ETHERNET_LEN - 2].copy_from_slice(&source.0);
                if !let_go(&mut frame, own) {
                    own.held.push_front(frame);
                    return;
                }
            }
            None if now - frame.since >= HELD_FOR => {
                let verdict = Verdict::Drop(DropReason::NoNeighbour);
                own.account.settle(frame.frames().into(), verdict);
            }
            None => own.held.push_back(frame),
        }
    }
}

/// Puts a frame that waited where it leaves from; false if this breath has sent enough.
fn let_go(frame: &mut HeldFrame, own: &mut Own) -> bool {
    if frame.cut_to != 0 {
        return fragments::let_go_cut(frame, own);
    }
    let (port, offload) = (frame.port, frame.offload);
    let write = |out: &mut Vec<u8>| out.extend_from_slice(&frame.bytes);
    match frame.origin {
        Origin::Ours => own.outbox.add(port, write),
        Origin::Received(frames) => own.outbox.add_received(port, frames, offload, write),
    }
}
