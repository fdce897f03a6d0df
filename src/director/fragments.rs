//! Fragments: gathered before anything looks at them, cut again on the way out. All frames of a datagram
//! share its fate in the account.

use super::lane::{HeldFrame, Own};
use super::probe::{Off, Probe};
use super::verdict::{DropReason, Verdict};
use super::{Director, Passage, stack};
use crate::conn::Index;
use crate::time::Instant;
use crate::wire::answer::IcmpError;
use crate::wire::cut::Cut;
use crate::wire::frag::{GivenUp, Lost, Outcome, Whole};
use crate::wire::packet::{Fragment, Kind, Layout};
use crate::wire::{Offload, Packet};

/// Shortest IPv6 packet that a link must carry whole (RFC 8200 section 5).
const V6_MTU_MIN: u32 = 1280;
/// Instead of a length: it came in fragments, and leaves whole.
const UNCUT: u32 = u32::MAX;

impl Director {
    /// A fragment: it waits for the others, or they are whole with it and go their way
    /// (`ip_vs_gather_frags`).
    #[cold]
    pub(super) fn handle_fragment<P: Probe>(
        &self,
        p: &mut Passage<'_, '_, P>,
        index: &mut Index,
        own: &mut Own,
    ) -> Verdict {
        if !concerns(p, own) {
            return Verdict::Pass;
        }
        while own.fragments.lacks_room()
            && let Some(given_up) = own.fragments.make_room()
        {
            book(given_up, p.now, own);
        }
        let refused = Verdict::Drop(DropReason::FragmentOverlap);
        match own.fragments.handle_fragment(&p.packet, p.ingress, p.now) {
            Outcome::Waits => {
                p.say(|| "a fragment: it waits for the others".to_string());
                Verdict::Held
            }
            Outcome::Repeated => refused,
            Outcome::Clashed(frames) => {
                p.say(|| "a fragment that does not fit the others".to_string());
                own.account.settle(frames.into(), refused);
                refused
            }
            Outcome::Whole(whole) => self.handle_gathered(whole, p, index, own),
        }
    }

    /// A datagram is whole: it is handled like any other.
    fn handle_gathered<P: Probe>(
        &self,
        whole: Whole,
        p: &mut Passage<'_, '_, P>,
        index: &mut Index,
        own: &mut Own,
    ) -> Verdict {
        let Whole {
            mut buffer,
            start,
            gathered,
        } = whole;
        p.say(|| format!("whole again: {} fragments", gathered.frames));
        let raw_ip = own.snapshot.ports[p.ingress].raw_ip;
        let prepared = self.prepare(&buffer[start..], raw_ip);
        // A fragment of fragments is nonsense.
        let sound = prepared.malformed.is_none() && prepared.layout.fragment == Fragment::Whole;
        let verdict = if sound {
            let mut passage = Passage {
                packet: Packet::inside(&mut buffer, start, prepared.layout),
                ingress: p.ingress,
                mark: p.mark,
                now: p.now,
                probe: &mut *p.probe,
                gathered: Some(&gathered),
                cut_to: 0,
            };
            self.decide(&mut passage, &prepared, index, own)
        } else {
            Verdict::Drop(DropReason::Malformed)
        };
        debug_assert!(!matches!(verdict, Verdict::Forward { .. }));
        own.account.settle(u64::from(gathered.frames) - 1, verdict);
        verdict
    }
}

/// Could a fragment be part of something that we handle? It may have no ports to go by.
fn concerns<P: Probe>(p: &Passage<'_, '_, P>, own: &Own) -> bool {
    let snapshot = &own.snapshot;
    let source = p.packet.source();
    snapshot.is_real(&source)
        || snapshot.pools().is_inside(source)
        || stack::is_ours(own, &p.packet.target())
        || p.mark != 0
        || !snapshot.marks().is_empty()
}

/// A packet that is longer than `mtu`, or came in fragments, is to be cut on its way out: not into longer
/// pieces than it came in (`ip_do_fragment`, `ip6_fragment`). A verdict if it cannot be.
#[cold]
pub fn prepare_cut<P: Probe>(mtu: u32, p: &mut Passage<'_, '_, P>) -> Option<Verdict> {
    if p.packet.offload.is_gso() {
        // Segments that would have to be fragmented: no sender makes them.
        return Some(Verdict::Drop(DropReason::TooLong));
    }
    p.cut_to = match p.gathered {
        None => mtu,
        // In an envelope of the other family it is like any other packet.
        Some(gathered) if gathered.v4 != p.packet.is_v4() => match p.packet.ip_len() {
            len if len <= mtu as usize => UNCUT,
            _ => mtu,
        },
        Some(gathered) if gathered.v4 => mtu.min(gathered.longest),
        // IPv6 that is no longer than one of its fragments had been leaves whole.
        Some(gathered) if p.packet.ip_len() as u32 <= mtu.min(gathered.longest) => UNCUT,
        Some(gathered) => mtu.min(gathered.longest.max(V6_MTU_MIN)),
    };
    None
}

/// Cuts the packet, whose MAC addresses are set, into the outbox.
#[cold]
pub fn send_cut<P: Probe>(egress: usize, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    let frames = p.gathered.map_or(1, |gathered| gathered.frames);
    let parts = p.gathered.map_or(&[][..], |gathered| &gathered.parts);
    p.packet.finish_sum();
    match cut(egress, &p.packet, p.cut_to, parts, frames, own) {
        Some(pieces) => {
            p.say(|| match pieces {
                1 => "leaves whole".to_string(),
                _ => format!("cut into {pieces} fragments"),
            });
            Verdict::Held
        }
        None => Verdict::Drop(DropReason::FragmentLimit),
    }
}

/// The same for a frame that waited for a MAC address; false if this breath has cut enough.
pub fn let_go_cut(frame: &mut HeldFrame, own: &mut Own) -> bool {
    let frames = frame.frames();
    let mut packet = Packet::over(&mut frame.bytes, frame.layout, frame.offload);
    packet.finish_sum();
    let parts = frame
        .gathered
        .as_ref()
        .map_or(&[][..], |gathered| &gathered.parts);
    if cut(frame.port, &packet, frame.cut_to, parts, frames, own).is_none() {
        own.account
            .settle(frames.into(), Verdict::Drop(DropReason::FragmentLimit));
    }
    true
}

/// Puts the pieces of a packet into the outbox, all or none. Says how many.
fn cut(
    egress: usize,
    packet: &Packet<'_>,
    len_max: u32,
    parts: &[u16],
    frames: u32,
    own: &mut Own,
) -> Option<usize> {
    if len_max == UNCUT {
        let sent = own
            .pieces
            .add_received(egress, frames, Offload::default(), |out| {
                out.extend_from_slice(packet.frame());
            });
        return sent.then_some(1);
    }
    let ident = own.rng.next_u64() as u32;
    let cut = Cut::new(packet, len_max as usize, parts, ident)?;
    let count = cut.len();
    if !own.pieces.has_room(count) {
        return None;
    }
    for (index, range) in cut.ranges().enumerate() {
        let carried = if index + 1 == count { frames } else { 0 };
        own.pieces
            .add_received(egress, carried, Offload::default(), |out| {
                cut.write(range, out)
            });
    }
    Some(count)
}

/// Sends an answer that may be longer than the port's MTU; false if there is no room for it.
#[cold]
pub fn answer(port: usize, own: &mut Own, build: impl FnOnce(&mut Vec<u8>)) -> bool {
    let mut frame = Vec::new();
    build(&mut frame);
    let (mtu, raw_ip) = (
        own.snapshot.ports[port].mtu,
        own.snapshot.ports[port].raw_ip,
    );
    let Ok(layout) = Layout::parse(&frame, raw_ip) else {
        return false;
    };
    let packet = Packet::over(&mut frame, layout, Offload::default());
    if packet.ip_len() <= mtu as usize {
        return own
            .outbox
            .add(port, |out| out.extend_from_slice(packet.frame()));
    }
    let ident = own.rng.next_u64() as u32;
    let Some(cut) = Cut::new(&packet, mtu as usize, &[], ident) else {
        return false;
    };
    own.outbox.has_room(cut.len())
        && cut
            .ranges()
            .all(|range| own.outbox.add(port, |out| cut.write(range, out)))
}

/// Gives up datagrams whose time is up, a bounded number in one breath: call it once a breath.
pub fn give_up_late(now: Instant, own: &mut Own) {
    for _ in 0..own.snapshot.limits.wheel_pops_per_breath_max {
        match own.fragments.poll_output(now) {
            Some(given_up) => book(given_up, now, own),
            None => return,
        }
    }
}

/// Books the frames of a datagram that is given up, and tells its sender if it was for lack of time
/// (`ip_expire`, `ip6frag_expire_frag_queue`).
fn book(given_up: GivenUp, now: Instant, own: &mut Own) {
    let reason = match given_up.why {
        Lost::Time => DropReason::Fragment,
        Lost::Room => DropReason::FragmentLimit,
    };
    let verdict = Verdict::Drop(reason);
    own.account.settle(given_up.frames.into(), verdict);
    if let (Lost::Time, Some(first)) = (given_up.why, given_up.first) {
        tell_sender(first, given_up.ingress, now, own);
    }
}

/// Quotes the first fragment to who sent it. An IPv4 packet of a real server had been on its way out.
fn tell_sender(mut first: Vec<u8>, ingress: usize, now: Instant, own: &mut Own) {
    let raw_ip = own.snapshot.ports[ingress].raw_ip;
    let Ok(layout) = Layout::parse(&first, raw_ip) else {
        return;
    };
    let mut p = Passage {
        packet: Packet::over(&mut first, layout, Offload::default()),
        ingress,
        mark: 0,
        now,
        probe: &mut Off,
        gathered: None,
        cut_to: 0,
    };
    let passing = !stack::is_ours(own, &p.packet.target());
    if passing && layout.kind == Kind::V4 && p.packet.ttl() > 1 {
        p.packet.decrement_ttl();
    }
    stack::complain(
        &mut p,
        own,
        IcmpError::FragmentsMissing,
        DropReason::Fragment,
    );
}
