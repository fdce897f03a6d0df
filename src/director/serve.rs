//! A packet of a known connection: count it, move the state, restart the deadline, rewrite it, send it
//! on (`ip_vs_in_hook` behind the look-up, `handle_response`).

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::lane::Own;
use super::probe::{Probe, Step};
use super::resolve;
use super::verdict::{DropReason, Verdict};
use super::{Passage, fragments, local, stack, story, tunnel};
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{Conn, Direction, StepRules, Wheel};
use crate::forward::{self, Outcome};
use crate::lvs::{ForwardMethod, Protocol, Segment, Tunables};
use crate::time::Instant;
use crate::wire::answer::IcmpError;

/// Type of the chunk that opens an association (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;

/// Does something about this connection need a second look before a packet of it is served?
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
pub fn has_server(conn: &Conn) -> bool {
    conn.server()
        .is_none_or(|server| server.available.load(Relaxed))
}

/// Does this segment ask for a new connection?
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
    if outward && !conn.method().is_nat() && is_own(p.packet.source(), own) {
        return Verdict::Pass;
    }
    if p.packet.has_options()
        && let Some(verdict) = stack::heed_options(conn.virt().address, p, own)
    {
        return verdict;
    }
    // A reply is routed before IPVS sees it, a request after: so only a request that dies of its TTL
    // has moved the state.
    if outward && p.packet.ttl() <= 1 && conn.method().is_nat() {
        return stack::complain(p, own, IcmpError::TimeExceeded, DropReason::TtlExceeded);
    }
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
    carry(conn, direction, p, own)
}

/// Is the packet too long for this MTU, and may not be cut? Fragments of IPv6 go on as they came
/// (`ensure_mtu_is_adequate`).
fn is_too_long<P: Probe>(
    direction: Direction,
    mtu: u32,
    p: &Passage<'_, '_, P>,
    own: &Own,
) -> bool {
    match p.gathered {
        Some(gathered) if !p.packet.is_v4() => gathered.longest > mtu,
        _ => p.packet.wire_len() > mtu as usize && is_uncut(direction, p, own),
    }
}

/// May the packet not be cut? Its sender says so by DF, to which a request is not held without
/// `pmtu_disc`, and an error never is.
fn is_uncut<P: Probe>(direction: Direction, p: &Passage<'_, '_, P>, own: &Own) -> bool {
    if !p.packet.is_v4() {
        return true;
    }
    let held =
        direction == Direction::Out || own.snapshot.tunables.pmtu_disc != 0 && !p.packet.is_icmp();
    p.packet.dont_fragment() && held
}

fn is_own(address: IpAddr, own: &Own) -> bool {
    address.is_ipv4() && own.snapshot.own_port(&address).is_some()
}

fn rules(own: &Own) -> StepRules<'_> {
    let secure_tcp = own.defences.secure_tcp();
    StepRules {
        timeouts: &own.snapshot.timeouts,
        secure_tcp,
    }
}

/// Counts a packet at its real server, while that is configured.
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

/// Rewrites a packet and finds its way out.
pub(super) fn carry<P: Probe>(
    conn: &Conn,
    direction: Direction,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    let next = match (direction, conn.method()) {
        (Direction::Out, ForwardMethod::Masq | ForwardMethod::Masquerade) => p.packet.target(),
        (Direction::Out, ForwardMethod::FullNat) => conn.client().address,
        (Direction::Out, _) => return Verdict::Pass,
        (_, ForwardMethod::Bypass) => p.packet.target(),
        (_, ForwardMethod::Local) => return local::deliver(conn, p, own),
        _ if is_local(conn) => return local::deliver(conn, p, own),
        (_, ForwardMethod::Masq | ForwardMethod::Route) => conn.real().address,
        (_, ForwardMethod::Tunnel) => return tunnel::carry(conn, p, own),
        (_, ForwardMethod::FullNat | ForwardMethod::Masquerade) => conn.real().address,
    };
    let Some((egress, next_hop)) = own.snapshot.route_to(next) else {
        return no_route(direction, p, own);
    };
    let mtu = mtu_towards(conn, direction, egress, p.now, own);
    if let Some(verdict) = travel(direction, mtu, p, own) {
        return verdict;
    }
    let before = P::ON.then(|| story::flow_of(&p.packet));
    let outcome = forward::apply(conn, direction, &mut p.packet);
    debug_assert_eq!(outcome, Outcome::Ready(next));
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
    send_on(egress, next_hop, mtu, p, own)
}

/// Sends a packet that is ready; one longer than `mtu` in fragments.
pub(super) fn send_on<P: Probe>(
    egress: usize,
    next_hop: IpAddr,
    mtu: u32,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    if (p.packet.wire_len() > mtu as usize || p.gathered.is_some())
        && let Some(verdict) = fragments::prepare_cut(mtu, p)
    {
        return verdict;
    }
    resolve::send(egress, next_hop, p, own)
}

/// The director answered in the name of a real server: that counts as its answer.
pub(super) fn answered(conn: &Conn, segment: Segment, now: Instant, own: &Own) {
    conn.step(Direction::Out, segment, rules(own), now);
}

/// Is the real server the director itself?
fn is_local(conn: &Conn) -> bool {
    conn.server().is_some_and(|server| server.is_local())
}

/// The longest packet on the way out by `egress`, and towards the real server as far as routers told.
pub(super) fn mtu_towards(
    conn: &Conn,
    direction: Direction,
    egress: usize,
    now: Instant,
    own: &Own,
) -> u32 {
    let link = own.snapshot.ports[egress].mtu;
    match conn.server() {
        Some(server) if direction != Direction::Out => server.path.get(link, now),
        _ => link,
    }
}

/// Nowhere to go: the client is told so, as if the way to the real server were down.
pub(super) fn no_route<P: Probe>(
    direction: Direction,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Verdict {
    if direction == Direction::Out {
        return Verdict::Drop(DropReason::NoRoute);
    }
    stack::complain(p, own, IcmpError::HostUnreachable, DropReason::NoRoute)
}

/// One hop: TTL and MTU. A verdict if the packet ends here. A request's error quotes it with the TTL
/// already taken, a reply's as it came (recorded; `__ip_vs_get_out_rt`, `ip_forward`).
pub fn travel<P: Probe>(
    direction: Direction,
    mtu: u32,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    if p.packet.ttl() <= 1 {
        let reason = DropReason::TtlExceeded;
        return Some(stack::complain(p, own, IcmpError::TimeExceeded, reason));
    }
    if direction != Direction::Out {
        p.packet.decrement_ttl();
    }
    if (p.packet.wire_len() > mtu as usize || p.gathered.is_some())
        && is_too_long(direction, mtu, p, own)
    {
        let told = IcmpError::TooLong(mtu.min(u32::from(u16::MAX)) as u16);
        return Some(stack::complain(p, own, told, DropReason::TooLong));
    }
    if direction == Direction::Out {
        p.packet.decrement_ttl();
    }
    None
}
