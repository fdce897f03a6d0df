//! Floor A: the director. `Director::handle_frame` tells the life of a packet on one screen, in the
//! order of the kernel's `ip_vs_in_hook` and `ip_vs_out_hook`; everything it calls does one thing.

use std::sync::Arc;

use crate::conn::{Conn, ConnTable, Direction, Index};
use crate::lvs::tuple::{Tuple, pack};
use crate::lvs::{Family, ForwardMethod, Protocol, Segment, TcpFlags};
use crate::time::Instant;
use crate::wire::frag::Gathered;
use crate::wire::icmp::{Echo, Message};
use crate::wire::packet::{Fragment, Kind, number};
use crate::wire::{self, Frame, Layout, Malformed, Packet};

pub mod admit;
mod bypass;
pub mod classify;
mod discovery;
pub mod errors;
pub mod fragments;
pub mod ftp;
pub mod helper;
mod ike;
pub mod lane;
mod local;
mod masq;
pub mod message;
pub mod neigh;
mod persist;
pub mod pools;
pub mod probe;
pub mod resolve;
pub mod serve;
mod sip;
pub mod snapshot;
pub mod stack;
mod starts;
pub mod story;
mod tunnel;
pub mod verdict;
pub mod worker;

pub use lane::Lane;
pub use message::{Order, Report};
pub use neigh::Neighbours;
pub use probe::{Off, Probe, Step};
pub use snapshot::{Port, Role, Side, Snapshot, SnapshotId};
pub use story::Teller;
pub use verdict::{Account, DropReason, Verdict};
pub use worker::{Worker, WorkerSetup};

use lane::Own;

/// The rules. All workers share one; what they do not share is in their lanes.
#[derive(Clone, Debug)]
pub struct Director {
    table: Arc<ConnTable>,
}

/// What the first pass over a batch learns of a frame: where things lie, who talks to whom, and the
/// hash to look that up with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Prepared {
    layout: Layout,
    malformed: Option<Malformed>,
    tuple: Tuple,
    /// Hash of the tuple; 0 where the packet has none.
    pub hash: u64,
    has_tuple: bool,
}

impl Prepared {
    /// Where things lie in the frame.
    pub fn layout(&self) -> Layout {
        self.layout
    }
}

/// Everything that is known of one frame on its way through the director.
pub struct Passage<'a, 'f, P: Probe> {
    /// The packet.
    pub packet: Packet<'f>,
    /// Index of the port it came in by.
    pub ingress: usize,
    /// Firewall mark; 0 is none.
    pub mark: u32,
    /// The clock of this breath.
    pub now: Instant,
    /// Who listens.
    pub probe: &'a mut P,
    /// How it came, if that was in fragments: then it does not lie where frames are received.
    pub gathered: Option<&'a Gathered>,
    /// Longest IP packet that it is cut into on its way out; 0: it leaves whole.
    pub cut_to: u32,
}

impl Director {
    /// A director over this table.
    pub fn new(table: Arc<ConnTable>) -> Director {
        Director { table }
    }

    /// The connections.
    pub fn table(&self) -> &Arc<ConnTable> {
        &self.table
    }

    /// Reads a frame: the first pass over a batch.
    #[inline]
    pub fn prepare(&self, bytes: &[u8], raw_ip: bool) -> Prepared {
        let layout = match Layout::parse(bytes, raw_ip) {
            Ok(layout) => layout,
            Err(malformed) => {
                return Prepared {
                    malformed: Some(malformed),
                    ..Prepared::default()
                };
            }
        };
        let balanced = Protocol(layout.protocol).is_balanced();
        let has_tuple = balanced && layout.transport && layout.fragment == Fragment::Whole;
        let tuple = if has_tuple {
            tuple_of(bytes, &layout)
        } else {
            Tuple::default()
        };
        let hash = tuple.hash(self.table.seed());
        Prepared {
            layout,
            malformed: None,
            tuple,
            hash,
            has_tuple,
        }
    }

    /// The life of a packet. The verdict is booked in the lane's account by the caller.
    pub fn handle_frame<P: Probe>(
        &self,
        frame: &mut Frame<'_>,
        prepared: &Prepared,
        ingress: usize,
        lane: &mut Lane,
        now: Instant,
        probe: &mut P,
    ) -> Verdict {
        let Lane { index, own } = lane;
        if P::ON {
            tell_arrival(frame, &own.snapshot.ports[ingress], probe);
        }
        if let Some(malformed) = prepared.malformed {
            return refuse_malformed(malformed, probe);
        }
        let mark = frame.meta.mark;
        let packet = Packet::new(frame, prepared.layout);
        let mut passage = Passage {
            packet,
            ingress,
            mark,
            now,
            probe,
            gathered: None,
            cut_to: 0,
        };
        let verdict = self.decide(&mut passage, prepared, index, own);
        if P::ON {
            passage.probe.step(Step::Ended(verdict));
        }
        let place = passage.packet.place();
        // It may have grown at its front; what an Ethernet card had padded does not travel on.
        if (place.start, place.end) != (frame.meta.start, frame.meta.end) {
            frame.moved(place);
        }
        verdict
    }

    /// The life of a packet that could be read.
    #[inline(always)]
    fn decide<P: Probe>(
        &self,
        p: &mut Passage<'_, '_, P>,
        prepared: &Prepared,
        index: &mut Index,
        own: &mut Own,
    ) -> Verdict {
        match p.kind(own, prepared) {
            Shape::NotForUs(why) => stack::pass_by(p, own, why),
            Shape::Arp => stack::hear_arp(p, own),
            Shape::Discovery => discovery::hear(p, own),
            Shape::IcmpError => self.relate_error(p, own),
            Shape::Echo(echo) => self.handle_echo(echo, p, own),
            Shape::Fragment => self.handle_fragment(p, index, own),
            Shape::Other if ike::is_ipsec(p.packet.layout.protocol) => self.follow_ike(p, own),
            Shape::Other => stack::answer_stray(p, own),
            Shape::Flow(segment) => {
                if let Some((conn, direction)) = index.find(prepared.hash, &prepared.tuple)
                    && !serve::needs_care(conn, direction, segment, own, p.now)
                {
                    serve::serve(conn, direction, segment, p, own)
                } else {
                    self.handle_flow(p, prepared, segment, index, own)
                }
            }
        }
    }

    /// A packet whose connection this worker does not know, or knows something odd of.
    fn handle_flow<P: Probe>(
        &self,
        p: &mut Passage<'_, '_, P>,
        prepared: &Prepared,
        segment: Segment,
        index: &mut Index,
        own: &mut Own,
    ) -> Verdict {
        let tuple = &prepared.tuple;
        let found = self.table.find(tuple).filter(|(conn, _)| !conn.is_gone());
        let found = found.and_then(|found| self.still_alive(found, p));
        // A host looks at the options before it asks for a connection (`ip_rcv_options`): what ends by
        // them gives up no old one.
        if let Some((_, direction)) = found
            && let Some(verdict) = stack::refuse_options(direction, p, own)
        {
            return verdict;
        }
        let mut replaced = None;
        let found = found.and_then(|found| self.not_reused(found, segment, p, own, &mut replaced));
        let awaited = || Some((helper::meet_client(tuple, p.now, own)?, Direction::In));
        match found.or_else(awaited) {
            Some((conn, Direction::Out)) => {
                index.remember(prepared.hash, Direction::Out, &conn);
                serve::serve(&conn, Direction::Out, segment, p, own)
            }
            Some((conn, direction)) if serve::has_server(&conn) => {
                index.remember(prepared.hash, direction, &conn);
                serve::serve(&conn, direction, segment, p, own)
            }
            Some((conn, _)) => {
                if own.snapshot.tunables.expire_nodest_conn == 0 {
                    return Verdict::Drop(DropReason::RealServerGone);
                }
                let left = self.table.withdraw(&conn).then_some(conn);
                self.handle_successor(left, p, prepared, segment, index, own)
            }
            None => self.handle_successor(replaced, p, prepared, segment, index, own),
        }
    }

    /// A packet that no entry serves, or none any more: the entry it has left counts at its real server
    /// until the packet is scheduled.
    fn handle_successor<P: Probe>(
        &self,
        left: Option<Arc<Conn>>,
        p: &mut Passage<'_, '_, P>,
        prepared: &Prepared,
        segment: Segment,
        index: &mut Index,
        own: &mut Own,
    ) -> Verdict {
        let verdict = self.handle_new(p, prepared, segment, index, own);
        let Some(left) = left else { return verdict };
        let direct = matches!(left.method(), ForwardMethod::Route | ForwardMethod::Tunnel);
        // The kernel's own reset passes IPVS on its way out, where an entry of LVS-DR or LVS-TUN takes
        // it for the real server's, and so stays: it goes a tick after it was left, and this is sooner.
        if direct && verdict == Verdict::Answered && matches!(segment, Segment::Tcp(_)) {
            p.say(|| "the reset closes the entry that was left, which stays".to_string());
            if let Ok(left) = self.table.insert(left) {
                serve::close(&left, p.now, own);
            }
        } else {
            left.retire();
        }
        verdict
    }

    /// A packet with no connection: it may open one, or it is for our own stack, or not ours.
    fn handle_new<P: Probe>(
        &self,
        p: &mut Passage<'_, '_, P>,
        prepared: &Prepared,
        segment: Segment,
        index: &mut Index,
        own: &mut Own,
    ) -> Verdict {
        if stack::lacks_chunk(p, own) {
            return Verdict::Drop(DropReason::Malformed);
        }
        let tuple = &prepared.tuple;
        let (admission, direction) = match starts::admit(&self.table, tuple, p, own) {
            Some(admission) => (admission, Direction::Out),
            None => (
                admit::admit(&self.table, tuple, Some(segment), p, own),
                Direction::In,
            ),
        };
        match admission {
            admit::Admission::Opened(conn) => {
                index.remember(prepared.hash, direction, &conn);
                serve::serve(&conn, direction, segment, p, own)
            }
            admit::Admission::Once(conn) => serve::serve(&conn, direction, segment, p, own),
            admit::Admission::TableFull => Verdict::Drop(DropReason::TableFull),
            admit::Admission::Refused(verdict) => verdict,
            admit::Admission::Defended => Verdict::Drop(DropReason::Defence),
            admit::Admission::NotOurs => self.handle_outward(p, prepared, segment, index, own),
            admit::Admission::NoRealServer => stack::refuse_service(p, own),
        }
    }

    /// No service wants it: a host behind the director may open a connection outwards, or it is for our
    /// own stack, or not ours.
    fn handle_outward<P: Probe>(
        &self,
        p: &mut Passage<'_, '_, P>,
        prepared: &Prepared,
        segment: Segment,
        index: &mut Index,
        own: &mut Own,
    ) -> Verdict {
        match masq::admit(&self.table, &prepared.tuple, segment, p, own) {
            Some(admit::Admission::Opened(conn)) => {
                index.remember(prepared.hash, Direction::Out, &conn);
                serve::serve(&conn, Direction::Out, segment, p, own)
            }
            Some(admit::Admission::Refused(verdict)) => verdict,
            _ => stack::answer(p, own),
        }
    }

    /// An entry whose time is up is no entry, unless it controls others.
    fn still_alive<P: Probe>(
        &self,
        (conn, direction): (Arc<Conn>, Direction),
        p: &mut Passage<'_, '_, P>,
    ) -> Option<(Arc<Conn>, Direction)> {
        if conn.is_due(p.now) && !conn.outlives_expiry(p.now) {
            p.say(|| "its connection has expired".to_string());
            self.table.remove(&conn);
            return None;
        }
        Some((conn, direction))
    }

    /// A client that reuses its port for a new connection is scheduled anew
    /// (`is_new_conn`, `is_new_conn_expected`). The old entry makes room at once, but counts at its
    /// real server until the new one is scheduled: the kernel's goes a tick later
    /// (`ip_vs_conn_expire_now`).
    fn not_reused<P: Probe>(
        &self,
        (conn, direction): (Arc<Conn>, Direction),
        segment: Segment,
        p: &mut Passage<'_, '_, P>,
        own: &Own,
        replaced: &mut Option<Arc<Conn>>,
    ) -> Option<(Arc<Conn>, Direction)> {
        if direction != Direction::Out && serve::is_reused(&conn, segment, &own.snapshot.tunables) {
            p.say(|| format!("a new connection over an old one in {}", conn.state()));
            if !conn.is_controlling() && self.table.withdraw(&conn) {
                *replaced = Some(conn);
            }
            return None;
        }
        Some((conn, direction))
    }
}

/// Where every story begins.
fn tell_arrival<P: Probe>(frame: &Frame<'_>, port: &Port, probe: &mut P) {
    let text = wire::text::describe(frame.bytes(), frame.meta.raw_ip);
    probe.step(Step::Arrived { port, text });
}

/// The end of a frame that lies about itself.
fn refuse_malformed<P: Probe>(malformed: Malformed, probe: &mut P) -> Verdict {
    let verdict = Verdict::Drop(malformed.into());
    if P::ON {
        probe.step(Step::Said(malformed.to_string()));
        probe.step(Step::Ended(verdict));
    }
    verdict
}

impl From<Malformed> for DropReason {
    fn from(malformed: Malformed) -> DropReason {
        match malformed {
            Malformed::Checksum => DropReason::IpChecksum,
            _ => DropReason::Malformed,
        }
    }
}

/// What kind of business a frame is.
enum Shape {
    NotForUs(NotForUs),
    Arp,
    Discovery,
    IcmpError,
    /// An echo, where hosts are masqueraded.
    Echo(Echo),
    Fragment,
    /// TCP, UDP or SCTP with a whole transport header.
    Flow(Segment),
    Other,
}

/// Why a frame is none of our business.
#[derive(Clone, Copy)]
enum NotForUs {
    Stranger,
    OtherMac,
    Backup,
}

impl<P: Probe> Passage<'_, '_, P> {
    /// Tells something in words; they are only made when somebody listens.
    fn say(&mut self, text: impl FnOnce() -> String) {
        if P::ON {
            self.probe.step(Step::Said(text()));
        }
    }

    /// Sorts the frame. What the director is for comes first.
    #[inline(always)]
    fn kind(&self, own: &Own, prepared: &Prepared) -> Shape {
        let snapshot = &*own.snapshot;
        let port = &snapshot.ports[self.ingress];
        let at_us = port.raw_ip || self.packet.target_mac() == port.mac;
        let flow = prepared.has_tuple && at_us && snapshot.role != Role::Backup;
        if flow && snapshot.serves(self.family()) {
            return Shape::Flow(segment_of(&self.packet));
        }
        self.kind_of_rest(own)
    }

    fn family(&self) -> Family {
        match self.packet.layout.kind {
            Kind::V6 => Family::V6,
            _ => Family::V4,
        }
    }

    /// Sorts what is no flow of ours: not addressed to us at link level first, then by what it carries.
    fn kind_of_rest(&self, own: &Own) -> Shape {
        let port = &own.snapshot.ports[self.ingress];
        let packet = &self.packet;
        match packet.layout.kind {
            Kind::Arp => return Shape::Arp,
            // Asked of a group, so not by our MAC address.
            Kind::V6 if !port.raw_ip && packet.is_discovery() => return Shape::Discovery,
            Kind::Other => return Shape::NotForUs(NotForUs::Stranger),
            _ => {}
        }
        if !port.raw_ip && packet.target_mac() != port.mac {
            return Shape::NotForUs(NotForUs::OtherMac);
        }
        if own.snapshot.role == Role::Backup {
            return Shape::NotForUs(NotForUs::Backup);
        }
        let family = self.family();
        let serves = own.snapshot.serves(family);
        match packet.layout.fragment {
            Fragment::Whole if !serves => Shape::Other,
            Fragment::Whole if packet.is_icmp() && packet.icmp_message() == Message::Error => {
                Shape::IcmpError
            }
            Fragment::Whole if own.snapshot.pools().masquerades(family) => {
                packet.echo().map_or(Shape::Other, Shape::Echo)
            }
            Fragment::Whole => Shape::Other,
            // They follow their key exchange as they are (`ip_vs_proto_ah_esp.c`, `dont_defrag`).
            _ if ike::is_ipsec(packet.layout.protocol) && family == Family::V4 => Shape::Other,
            _ => Shape::Fragment,
        }
    }
}

/// Packs the flow of a packet that has ports.
#[inline(always)]
fn tuple_of(bytes: &[u8], layout: &Layout) -> Tuple {
    let (ip, transport) = (&bytes[layout.l3.into()..], &bytes[layout.l4.into()..]);
    let ports = transport.first_chunk::<4>();
    let ports = ports.expect("a transport header is whole");
    let source_port = u16::from_be_bytes([ports[0], ports[1]]);
    let target_port = u16::from_be_bytes([ports[2], ports[3]]);
    let protocol = Protocol(layout.protocol);
    let (family, source, target) = match layout.kind {
        Kind::V4 => {
            let addresses = ip[12..].first_chunk::<8>();
            let [a, b, c, d, e, f, g, h] = *addresses.expect("an IPv4 header is whole");
            let word = |octets| u64::from(u32::from_be_bytes(octets));
            (Family::V4, [0, word([a, b, c, d])], [0, word([e, f, g, h])])
        }
        _ => {
            let addresses = ip[8..].first_chunk::<32>();
            let (addresses, _) = addresses
                .expect("an IPv6 header is whole")
                .as_chunks::<16>();
            (
                Family::V6,
                pack(addresses[0].into()),
                pack(addresses[1].into()),
            )
        }
    };
    Tuple::new(
        family,
        protocol,
        (source, source_port),
        (target, target_port),
    )
}

/// What the state table wants to know of a packet that has a tuple.
#[inline(always)]
fn segment_of(packet: &Packet<'_>) -> Segment {
    match packet.layout.protocol {
        number::TCP => Segment::Tcp(TcpFlags(packet.tcp_flags())),
        number::SCTP => {
            // Without a chunk it changes no state: like one of a type nobody knows.
            let (first, second) = packet.sctp_chunks().unwrap_or((u8::MAX, None));
            Segment::Sctp { first, second }
        }
        _ => Segment::Udp,
    }
}

#[cfg(test)]
mod tests;
