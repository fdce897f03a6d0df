//! A packet of a known connection: count it, move the state, restart the deadline, rewrite it, send it
//! on (`ip_vs_in_hook` behind the look-up, `handle_response`).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::lane::Own;
use super::probe::{Probe, Step};
use super::resolve;
use super::verdict::{DropReason, Verdict};
use super::{Passage, fragments, helper, local, stack, story, tunnel};
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{Conn, Direction, StepRules, Wheel};
use crate::forward::{self, Outcome};
use crate::lvs::{ForwardMethod, Protocol, Segment, TcpFlags, Tunables};
use crate::time::Instant;
use crate::wire::Packet;
use crate::wire::answer::IcmpError;

/// Type of the chunk that opens an association (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;

/// Does something about this connection need a second look before a packet of it is served?
#[inline]
pub fn needs_care(
    conn: &Conn,
    direction: Direction,
    segment: Segment,
    own: &Own,
    now: Instant,
) -> bool {
    conn.is_due(now)
        || direction != Direction::Out
            && (!has_server(conn)
                || opens(segment) && is_reused(conn, segment, &own.snapshot.tunables))
}

/// Is its real server still configured?
#[inline]
pub fn has_server(conn: &Conn) -> bool {
    conn.server()
        .is_none_or(|server| server.available.load(Relaxed))
}

/// Does this segment ask for a new connection?
#[inline]
fn opens(segment: Segment) -> bool {
    match segment {
        Segment::Tcp(flags) => flags.syn(),
        Segment::Sctp { first, .. } => first == SCTP_INIT,
        Segment::Udp | Segment::Echo => false,
    }
}

/// Is it a new connection over the rest of an old one (`is_new_conn_expected`)?
pub fn is_reused(conn: &Conn, segment: Segment, tunables: &Tunables) -> bool {
    // A masqueraded connection is opened by the real server's side, and moves by its state table.
    if !opens(segment) || conn.method() == ForwardMethod::Masquerade {
        return false;
    }
    let quiesced = conn
        .server()
        .is_some_and(|server| server.weight.load(Relaxed) == 0);
    if tunables.expire_nodest_conn != 0 && quiesced {
        return true;
    }
    let mode = tunables.conn_reuse_mode;
    if mode == 0 || conn.control().is_some() {
        return false;
    }
    let state = conn.state();
    match state.protocol() {
        Protocol::TCP => match TcpState::from_number(state.number()) {
            Some(TcpState::TimeWait | TcpState::Close) => true,
            Some(TcpState::FinWait) => mode & 2 != 0 && conn.no_output(),
            _ => false,
        },
        Protocol::SCTP => state.number() == SctpState::Closed as u8,
        _ => false,
    }
}

/// Serves one packet of `conn`.
pub fn serve<P: Probe>(
    conn: &Arc<Conn>,
    direction: Direction,
    segment: Segment,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    if P::ON {
        p.probe.step(Step::Found { conn, direction });
    }
    let outward = direction == Direction::Out;
    // A server of LVS-DR or LVS-TUN answers as the VIP. Routing drops what comes from outside under an
    // IPv4 address of the host itself before IPVS sees it (`fib_validate_source`).
    let not_nat = outward && !conn.method().is_nat();
    if not_nat && is_own(p.packet.source(), own) && own.snapshot.kernel_port() != Some(p.ingress) {
        return Verdict::Pass;
    }
    if p.packet.has_options()
        && let Some(verdict) = stack::heed_options(conn, direction, p, own)
    {
        return verdict;
    }
    // A reply is routed before IPVS sees it, a request after: so only a request that gets no further
    // has moved the state.
    let way = match outward && conn.method().is_nat() {
        true => match way_back(conn, p, own) {
            Ok(way) => Some(way),
            Err(verdict) => return verdict,
        },
        false => None,
    };
    count(conn, direction, p.packet.ip_len(), own.worker);
    let (from, to) = conn.step(direction, segment, rules(own), p.now);
    if Wheel::must_arm(conn) {
        own.wheel.arm(conn);
    }
    if P::ON {
        let expires_s = conn.expires_in(p.now).as_secs();
        p.probe.step(Step::State {
            from,
            to,
            expires_s,
        });
    }
    match way {
        Some(way) => carry_back(conn, way, p, own),
        None => carry(conn, direction, p, own),
    }
}

/// Is the packet too long for this MTU, and may not be cut? Fragments of IPv6 go on as they came
/// (`ensure_mtu_is_adequate`).
fn is_too_long<P: Probe>(
    direction: Direction,
    mtu: u32,
    held: bool,
    p: &Passage<'_, '_, P>,
) -> bool {
    match p.gathered {
        Some(gathered) if !p.packet.is_v4() => gathered.longest > mtu,
        _ => p.packet.wire_len() > mtu as usize && is_uncut(direction, held, &p.packet),
    }
}

/// May the packet not be cut?
fn is_uncut(direction: Direction, held: bool, packet: &Packet<'_>) -> bool {
    if !packet.is_v4() {
        return true;
    }
    let exempt = direction != Direction::Out && packet.is_icmp();
    packet.dont_fragment() && held && !exempt
}

/// Lets the director's own reset, which seems to come from the real server, close an entry.
pub fn close(conn: &Arc<Conn>, now: Instant, own: &mut Own) {
    let reset = Segment::Tcp(TcpFlags(TcpFlags::RST));
    conn.step(Direction::Out, reset, rules(own), now);
    own.wheel.arm(conn);
}

fn is_own(address: IpAddr, own: &Own) -> bool {
    address.is_ipv4() && own.snapshot.own_port(&address).is_some()
}

#[inline]
fn rules(own: &Own) -> StepRules<'_> {
    let secure_tcp = own.defences.secure_tcp();
    StepRules {
        timeouts: &own.snapshot.timeouts,
        secure_tcp,
    }
}

/// Counts a packet at its real server, while that is configured.
#[inline]
pub fn count(conn: &Conn, direction: Direction, bytes: usize, worker: usize) {
    let inward = direction != Direction::Out;
    if inward {
        conn.count_in();
    }
    let Some(server) = conn
        .server()
        .filter(|server| server.available.load(Relaxed))
    else {
        return;
    };
    let line = &server.stats[worker];
    if inward {
        line.count_in(bytes)
    } else {
        line.count_out(bytes)
    }
}

/// Where a packet leaves.
#[derive(Clone, Copy)]
pub(super) struct Way {
    egress: usize,
    next_hop: IpAddr,
    /// The longest packet on that way.
    mtu: u32,
}

/// Rewrites a packet and finds its way out.
#[inline]
pub(super) fn carry<P: Probe>(
    conn: &Arc<Conn>,
    direction: Direction,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let next = match (direction, conn.method()) {
        (Direction::Out, method) if method.is_nat() => {
            return match way_back(conn, p, own) {
                Ok(way) => carry_back(conn, way, p, own),
                Err(verdict) => verdict,
            };
        }
        (Direction::Out, _) => return local::leave(p, own).unwrap_or(Verdict::Pass),
        (_, ForwardMethod::Bypass) if stack::is_ours(own, &p.packet.target()) => {
            return Verdict::Drop(DropReason::Unwanted);
        }
        (_, ForwardMethod::Bypass) => p.packet.target(),
        (_, ForwardMethod::Local) => return local::deliver(conn, p, own),
        _ if is_local(conn) => return local::deliver(conn, p, own),
        (_, ForwardMethod::Tunnel) => return tunnel::carry(conn, p, own),
        _ => conn.real().address,
    };
    let way = match way_towards(conn, next, p, own) {
        Ok(way) => way,
        Err(verdict) => return verdict,
    };
    match rewrite(conn, direction, p, own) {
        Some(verdict) => verdict,
        None => send_on(way, p, own),
    }
}

/// Sends an answer on to the client.
#[inline(always)]
fn carry_back<P: Probe>(
    conn: &Arc<Conn>,
    way: Way,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    if let Some(verdict) = rewrite(conn, Direction::Out, p, own) {
        return verdict;
    }
    let way = reroute(way, p, own);
    send_on(way, p, own)
}

/// Changes what the connection says is to be changed. A verdict if the packet ends here.
#[inline(always)]
pub(super) fn rewrite<P: Probe>(
    conn: &Arc<Conn>,
    direction: Direction,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    if conn.is_helped()
        && let Some(verdict) = helper::help(conn, direction, p, own)
    {
        return Some(verdict);
    }
    let before = P::ON.then(|| story::flow_of(&p.packet));
    let outcome = forward::apply(conn, direction, &mut p.packet);
    debug_assert!(matches!(outcome, Outcome::Ready(_)));
    if let Some(before) = before {
        let after = story::flow_of(&p.packet);
        let (ttl, checksum) = (p.packet.ttl(), story::checksum_word(&p.packet));
        p.probe.step(Step::Rewritten {
            conn,
            direction,
            before,
            after,
            ttl,
            checksum,
        });
    }
    None
}

/// The way of a packet of a client to `next`, with what that costs it: a hop. A verdict if it ends here.
#[inline(always)]
pub(super) fn way_towards<P: Probe>(
    conn: &Conn,
    next: IpAddr,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Result<Way, Verdict> {
    let Some((egress, next_hop)) = own.snapshot.route_to(next) else {
        let error = IcmpError::HostUnreachable;
        return Err(refuse(conn, error, DropReason::NoRoute, p, own));
    };
    let link = own.snapshot.ports[egress].mtu;
    // LVS-DR sends to a neighbour: nothing was learned of that (`FLOWI_FLAG_KNOWN_NH`).
    let mtu = match conn.server() {
        Some(server) if conn.method() != ForwardMethod::Route => server.path.get(link, p.now),
        _ => link,
    };
    let way = Way {
        egress,
        next_hop,
        mtu,
    };
    match travel(conn, Direction::In, mtu, true, p, own) {
        Some(verdict) => Err(verdict),
        None => Ok(way),
    }
}

/// The same for what comes from a real server: by its own address, as the kernel routes it before IPVS
/// sees it.
#[inline(always)]
pub(super) fn way_back<P: Probe>(
    conn: &Conn,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Result<Way, Verdict> {
    let target = match conn.method() {
        ForwardMethod::FullNat => conn.client().address,
        _ => p.packet.target(),
    };
    let Some((egress, next_hop)) = own.snapshot.route_from(p.packet.source(), target) else {
        let error = IcmpError::NoRoute;
        return Err(stack::complain(p, own, error, DropReason::NoRoute));
    };
    let mtu = own.snapshot.ports[egress].mtu;
    let way = Way {
        egress,
        next_hop,
        mtu,
    };
    match travel(conn, Direction::Out, mtu, true, p, own) {
        Some(verdict) => Err(verdict),
        None => Ok(way),
    }
}

/// With `snat_reroute` an answer goes the way that is the VIP's (`ip_vs_route_me_harder`). Only where
/// routes go by the source is that another one.
#[inline]
pub(super) fn reroute<P: Probe>(way: Way, p: &Passage<'_, '_, P>, own: &Own) -> Way {
    let snapshot = &own.snapshot;
    if !snapshot.routes_by_source() || snapshot.tunables.snat_reroute == 0 {
        return way;
    }
    let found = snapshot.route_from(p.packet.source(), p.packet.target());
    let Some((egress, next_hop)) = found else {
        return way;
    };
    Way {
        egress,
        next_hop,
        mtu: snapshot.ports[egress].mtu,
    }
}

/// Sends a packet that is ready; one that is too long for its way in fragments.
#[inline(always)]
pub(super) fn send_on<P: Probe>(way: Way, p: &mut Passage<'_, '_, P>, own: &mut Own) -> Verdict {
    if (p.packet.wire_len() > way.mtu as usize || p.gathered.is_some())
        && let Some(verdict) = fragments::prepare_cut(way.mtu, p)
    {
        return verdict;
    }
    resolve::send(way.egress, way.next_hop, p, own)
}

/// Drops a packet of a client and tells him so. What the director says of a connection's packets counts
/// as sent on the connection (`ip_vs_out_icmp`, at LOCAL_OUT).
pub(super) fn refuse<P: Probe>(
    conn: &Conn,
    error: IcmpError,
    reason: DropReason,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let before = own.outbox.frames().len();
    let verdict = stack::complain_to_client(p, own, error, reason);
    count_said(conn, before, p, own);
    verdict
}

/// Counts what was said since the outbox held `before` frames; says if anything was.
pub(super) fn count_said<P: Probe>(
    conn: &Conn,
    before: usize,
    p: &Passage<'_, '_, P>,
    own: &Own,
) -> bool {
    let l3 = usize::from(p.packet.layout.l3);
    let said = own.outbox.frames().iter().skip(before);
    let bytes: usize = said.map(|frame| frame.bytes.len() - l3).sum();
    if bytes != 0 {
        count(conn, Direction::Out, bytes, own.worker);
    }
    bytes != 0
}

/// The director answered a segment in the name of a real server: that is its answer.
pub(super) fn answered(conn: &Conn, segment: Segment, now: Instant, own: &Own) {
    conn.step(Direction::Out, segment, rules(own), now);
}

/// A way by this port, where nothing longer than `mtu` goes.
pub(super) fn way(egress: usize, next_hop: IpAddr, mtu: u32) -> Way {
    Way {
        egress,
        next_hop,
        mtu,
    }
}

/// Is the real server the director itself?
#[inline]
pub(super) fn is_local(conn: &Conn) -> bool {
    conn.server().is_some_and(|server| server.is_local())
}

/// One hop: TTL and MTU. A verdict if the packet ends here. A request's error quotes it with the TTL
/// already taken, a reply's as it came (recorded; `__ip_vs_get_out_rt`, `ip_forward`).
///
/// Who set DF is told if the packet is too long, unless the way is not to be `held` to that, or it is
/// itself an error, which is cut then.
#[inline(always)]
pub(super) fn travel<P: Probe>(
    conn: &Conn,
    direction: Direction,
    mtu: u32,
    held: bool,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let fits = p.packet.wire_len() <= mtu as usize && p.gathered.is_none();
    if p.packet.ttl() > 1 && fits {
        p.packet.decrement_ttl();
        return None;
    }
    travel_with_care(conn, direction, mtu, held, p, own)
}

/// The same for a packet that may end here.
#[cold]
fn travel_with_care<P: Probe>(
    conn: &Conn,
    direction: Direction,
    mtu: u32,
    held: bool,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let outward = direction == Direction::Out;
    let complain = |error, reason, p: &mut Passage<'_, '_, P>, own: &mut Own| match outward {
        true => stack::complain(p, own, error, reason),
        false => refuse(conn, error, reason, p, own),
    };
    if p.packet.ttl() <= 1 {
        let reason = DropReason::TtlExceeded;
        return Some(complain(IcmpError::TimeExceeded, reason, p, own));
    }
    if direction != Direction::Out {
        p.packet.decrement_ttl();
    }
    if (p.packet.wire_len() > mtu as usize || p.gathered.is_some())
        && is_too_long(direction, mtu, held, p)
    {
        let told = IcmpError::TooLong(mtu.min(u32::from(u16::MAX)) as u16);
        return Some(complain(told, DropReason::TooLong, p, own));
    }
    if direction == Direction::Out {
        p.packet.decrement_ttl();
    }
    None
}
