//! The laws that must hold at every moment of a run, numbered as in docs/architecture.md, section 12:
//!
//! 1. All packets of a live connection go to one real server. Seen at the real servers; an entry may
//!    only be replaced by the kernel's rules, and a packet keeps its connection alive.
//! 2. No new connection goes to a quiesced, overloaded or deleted real server, but where a template
//!    says so, as in the kernel; and lblc does not ask whom it remembers, as in the kernel.
//! 3. Active, inactive and persistent counts are those of the entries, in the trash too.
//! 4. A client never sees a RIP, and all sums are right (`host`).
//! 5. Every frame is accounted for.
//! 8. When all traffic has stopped, nothing is left (`Sim::finish`).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::choice::{self, Choices, Loads};
use super::host::Sighting;
use super::house::{Breath, Fed, House};
use super::ledger::{Changes, Ledger, flow_of};
use super::scenario::STALL_MAX_S;
use super::talk::Talk;
use crate::conn::sctp::SctpState;
use crate::conn::tcp::TcpState;
use crate::conn::{Conn, Direction};
use crate::director::snapshot::{Service, Snapshot};
use crate::director::{Account, DropReason};
use crate::lvs::{Endpoint, Flow, Protocol, Segment, ServiceFlags, ServiceKey, Tunables, Tuple};
use crate::time::{Duration, Instant};

/// Type of the chunk that opens an association (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;

/// The time of an entry that no packet has moved yet (`ip_vs_conn_new`).
const UNSERVED: Duration = Duration::from_secs(3);

/// How long orders may be on their way: so long after `expire_nodest_conn` was turned off it may still
/// end connections.
const ORDERS_TAKE: Duration = Duration::from_secs(STALL_MAX_S + 10);

/// A law is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Which.
    pub law: u8,
    /// How.
    pub text: String,
}

impl Broken {
    /// Law number `law` is broken like this.
    pub fn new(law: u8, text: impl Into<String>) -> Broken {
        let text = text.into();
        Broken { law, text }
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invariant {}: {}", self.law, self.text)
    }
}

/// Law number `law` is broken unless it holds.
pub fn must(holds: bool, law: u8, text: impl FnOnce() -> String) -> Result<(), Broken> {
    if holds {
        Ok(())
    } else {
        Err(Broken::new(law, text()))
    }
}

/// How a worker and its real servers stood before a breath.
#[derive(Debug)]
pub struct Before {
    account: Account,
    loads: Loads,
}

/// Where the packets of a talk have been seen.
#[derive(Debug)]
struct Home {
    flow: Flow,
    reals: Vec<Endpoint>,
    /// Moves of its flow before it began.
    moves_before: u32,
}

/// What is known of the past, to judge the present by.
#[derive(Debug, Default)]
pub struct Laws {
    ledger: Ledger,
    homes: BTreeMap<u32, Home>,
    /// How often a flow could have got another real server, by the rules.
    moves: BTreeMap<Flow, u32>,
    /// Until when connections of deleted servers may be ended.
    orphans_end_until: Instant,
    /// May it right now, and was a message on its way at the last look?
    orphans_end: bool,
    on_their_way: bool,
    /// Entries that were replaced while their client still used them.
    replaced: u64,
    /// Most entries at once.
    entries_max: usize,
}

impl Laws {
    /// Entries that left before their time, by the rules.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Most entries there ever were.
    pub fn entries_max(&self) -> usize {
        self.entries_max
    }

    /// The second book.
    pub fn ledger(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// A talk begins.
    pub fn begin(&mut self, talk: &Talk) {
        let flow = talk.flow();
        let home = Home {
            flow,
            reals: Vec::new(),
            moves_before: self.moves.get(&flow).copied().unwrap_or(0),
        };
        self.homes.insert(talk.id, home);
    }

    /// A packet of a talk was seen at a real server.
    ///
    /// # Errors
    /// Law 1.
    pub fn see(&mut self, sighting: Sighting) -> Result<(), Broken> {
        let Some(home) = self.homes.get_mut(&sighting.id) else {
            return Ok(());
        };
        if !home.reals.contains(&sighting.real) {
            home.reals.push(sighting.real);
        }
        let moves = self.moves.get(&home.flow).copied().unwrap_or(0) - home.moves_before;
        must(home.reals.len() <= 1 + moves as usize, 1, || {
            let (id, flow, reals) = (sighting.id, home.flow, &home.reals);
            format!("packets of talk {id}, {flow}, went to {reals:?} after {moves} moves")
        })
    }

    /// How things stand before worker `number` breathes.
    pub fn before(&self, house: &House, number: usize) -> Before {
        Before {
            account: house.worker(number).account().clone(),
            loads: choice::loads(house, number),
        }
    }

    /// Worker `number` has breathed.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn after_breath(
        &mut self,
        house: &House,
        number: usize,
        (before, breath): (&Before, &Breath),
        now: Instant,
    ) -> Result<(), Broken> {
        check_account(house, number, (before, breath))?;
        let snapshot = Arc::clone(house.worker(number).snapshot());
        let changes = self.look(house, now)?;
        if let Some(conn) = changes.overdue.first() {
            let text = format!("{} was served though its time was up", flow_of(conn));
            return Err(Broken::new(1, text));
        }
        for conn in &changes.gone {
            let reused = is_reopened(conn, &breath.fed, &snapshot.tunables)
                || is_spoken_over(conn, &breath.fed, &snapshot);
            self.judge_gone(conn, reused, now)?;
        }
        let choices = Choices {
            ledger: &self.ledger,
            changes: &changes,
            loads: &before.loads,
            fed: &breath.fed,
            worker: number,
            snapshot: &snapshot,
        };
        let opened = choices.judge()?;
        self.ledger.note_services(&changes.opened, &snapshot);
        self.note_unseen(breath, &changes, opened, &snapshot);
        let stuck = lost_on_the_way(&before.account, house.worker(number).account());
        check_deadlines(house, (&breath.fed, stuck), &snapshot, now)?;
        self.ledger.check_counts()
    }

    /// Anything else has happened.
    ///
    /// # Errors
    /// The law that is broken.
    pub fn after_event(&mut self, house: &House, now: Instant) -> Result<(), Broken> {
        self.ledger.meet(&house.snapshot());
        let changes = self.look(house, now)?;
        let opened = changes.opened.iter().chain(&changes.remembered).next();
        if let Some(conn) = opened {
            let text = format!("{} opened without a packet", flow_of(conn));
            return Err(Broken::new(2, text));
        }
        let reaping = house.table().defences().drops_entries();
        for conn in &changes.gone {
            self.judge_gone(conn, reaping && may_be_reaped(conn, now), now)?;
        }
        self.ledger.check_revival(&house.snapshot())?;
        self.ledger.check_counts()
    }

    fn look(&mut self, house: &House, now: Instant) -> Result<Changes, Broken> {
        let workers = (0..house.workers()).map(|number| house.worker(number).snapshot());
        let newest = house.snapshot();
        if workers
            .chain([&newest])
            .any(|snapshot| snapshot.tunables.expire_nodest_conn != 0)
        {
            self.orphans_end_until = now + ORDERS_TAKE;
        }
        // Where time leaps, what was on its way arrives late.
        let late = self.orphans_end && self.on_their_way;
        self.orphans_end = now <= self.orphans_end_until || late;
        self.on_their_way = house.is_stalled(now);
        let changes = self.ledger.look(house.table(), now)?;
        self.entries_max = self.entries_max.max(self.ledger.len());
        must(self.ledger.len() == house.table().len(), 3, || {
            let (shown, counted) = (self.ledger.len(), house.table().len());
            format!("the table shows {shown} entries and counts {counted}")
        })?;
        Ok(changes)
    }

    /// An entry has left the table: its time was up, its real server was deleted, or `by_rule` says so.
    fn judge_gone(&mut self, conn: &Conn, by_rule: bool, now: Instant) -> Result<(), Broken> {
        let orphaned = conn
            .server()
            .is_some_and(|server| !server.available.load(Relaxed));
        let flow = flow_of(conn);
        let fine = conn.is_due(now) || by_rule || orphaned && self.orphans_end;
        must(fine && !conn.is_controlling(), 1, || {
            let (state, left) = (conn.state_name(), conn.expires_in(now));
            format!("{flow} in {state} left the table, {left} before its time")
        })?;
        self.replaced += u64::from(!conn.is_due(now));
        self.note_move(flow);
        Ok(())
    }

    fn note_move(&mut self, flow: Flow) {
        *self.moves.entry(flow).or_default() += 1;
    }

    /// Connections that were opened and have left again, within one breath: one-packet scheduling, and
    /// reuse on reuse. Their packets may have gone anywhere.
    fn note_unseen(
        &mut self,
        breath: &Breath,
        changes: &Changes,
        opened: u64,
        snapshot: &Snapshot,
    ) {
        let bound = |conn: &&Arc<Conn>| conn.server().is_some();
        let unseen = opened > changes.opened.iter().filter(bound).count() as u64;
        for fed in &breath.fed {
            let Some((flow, segment)) = fed.flow else {
                continue;
            };
            let once = snapshot
                .service_for(&flow, fed.mark)
                .is_some_and(is_one_packet);
            let once = once && flow.protocol == Protocol::UDP && !self.ledger.has(&flow);
            if once || unseen && opens(segment) {
                self.note_move(flow);
            }
            // Whoever speaks first has the connection from now on.
            if let Some((service, _)) = snapshot.started_by(&flow)
                && let ServiceKey::Address { protocol, virt } = service.spec.key
            {
                self.note_move(Flow {
                    protocol,
                    source: flow.target,
                    target: virt,
                });
            }
        }
    }
}

/// Law 5, for one breath.
fn check_account(
    house: &House,
    number: usize,
    (before, breath): (&Before, &Breath),
) -> Result<(), Broken> {
    let (was, account) = (&before.account, house.worker(number).account());
    must(account.balances(), 5, || {
        format!("worker {number}: {account:?}")
    })?;
    let read = account.received - was.received;
    let all = [breath.fed.len() as u64, breath.handled as u64];
    must(all == [read; 2], 5, || {
        format!(
            "worker {number} was fed {} frames and accounts for {read}",
            all[0]
        )
    })?;
    let made = account.forwarded + account.originated - was.forwarded - was.originated;
    must(made == breath.sent.len() as u64, 5, || {
        let sent = breath.sent.len();
        format!("worker {number} sent {sent} frames and accounts for {made}")
    })
}

/// Did a packet find no way on? An answer is routed before its connection is served, so then it may
/// not have been.
fn lost_on_the_way(was: &Account, account: &Account) -> bool {
    let reasons = [
        DropReason::TooLong,
        DropReason::NoRoute,
        DropReason::TtlExceeded,
    ];
    let count = |account: &Account| reasons.map(|reason| account.dropped_for(reason));
    count(was) != count(account)
}

/// A connection that was served has its whole time again; with `stuck` answers may not have been.
fn check_deadlines(
    house: &House,
    (fed, stuck): (&[Fed], bool),
    snapshot: &Snapshot,
    now: Instant,
) -> Result<(), Broken> {
    let ipsec = fed.iter().any(|fed| fed.ipsec);
    let mut last: BTreeMap<Flow, (Arc<Conn>, Direction, bool)> = BTreeMap::new();
    for fed in fed {
        let Some((flow, _)) = fed.flow.filter(|(flow, _)| snapshot.serves(flow.family())) else {
            continue;
        };
        if let Some((conn, direction)) = house.table().find(&Tuple::from(flow)) {
            last.insert(flow_of(&conn), (conn, direction, fed.plain));
        }
    }
    for (flow, (conn, direction, plain)) in last {
        let server = conn.server();
        let deaf = direction == Direction::In
            && server.is_some_and(|server| !server.available.load(Relaxed));
        // AH and ESP start the time of their key exchange anew, too.
        let lost = stuck && direction == Direction::Out;
        // The packet itself may have been refused, and the entry opened by an ICMP error behind it.
        let by_icmp = snapshot.tunables.schedule_icmp != 0 && conn.deadline() == now + UNSERVED;
        if !plain || deaf || lost || by_icmp || ipsec && flow.protocol == Protocol::UDP {
            continue;
        }
        let timeout_s = conn.state().timeout_s(&snapshot.timeouts);
        let wanted = now + Duration::from_secs(timeout_s.into());
        must(conn.deadline() == wanted, 1, || {
            let (state, left) = (conn.state_name(), conn.expires_in(now));
            format!("{flow} in {state} was served and expires in {left}, not in {timeout_s} s")
        })?;
    }
    Ok(())
}

/// Does a real server of a service with a persistence engine speak first to the client of this
/// connection, so that it is his from now on?
fn is_spoken_over(conn: &Conn, fed: &[Fed], snapshot: &Snapshot) -> bool {
    let client = conn.client();
    let mut flows = fed.iter().filter_map(|fed| fed.flow);
    snapshot.has_engines() && flows.any(|(flow, _)| flow.target == client)
}

/// Would `drop_entry` take it: half-open, or idle for a minute with few packets; a template none of
/// whose connections was established.
fn may_be_reaped(conn: &Conn, now: Instant) -> bool {
    let idle = || conn.idle_for(now).as_secs() >= 60 && (1..=8).contains(&conn.in_packets());
    if conn.is_template() {
        return !conn.is_assured();
    }
    match (conn.protocol(), conn.state().name()) {
        (Protocol::TCP, "SYN_RECV" | "SYNACK") | (Protocol::SCTP, "INIT1" | "INIT") => true,
        (Protocol::UDP, _) | (_, "ESTABLISHED") => idle(),
        _ => false,
    }
}

/// Does a packet of this breath open a connection over the rest of this one, by `conn_reuse_mode` or
/// `expire_nodest_conn`?
fn is_reopened(conn: &Conn, fed: &[Fed], tunables: &Tunables) -> bool {
    let flow = flow_of(conn);
    let mut packets = fed.iter().filter_map(|fed| fed.flow);
    packets.any(|(other, segment)| other == flow && opens(segment)) && may_be_reused(conn, tunables)
}

fn may_be_reused(conn: &Conn, tunables: &Tunables) -> bool {
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
    let number = conn.state().number();
    match conn.protocol() {
        Protocol::TCP => match TcpState::from_number(number) {
            Some(TcpState::TimeWait | TcpState::Close) => true,
            Some(TcpState::FinWait) => mode & 2 != 0 && conn.no_output(),
            _ => false,
        },
        Protocol::SCTP => number == SctpState::Closed as u8,
        _ => false,
    }
}

fn opens(segment: Segment) -> bool {
    match segment {
        Segment::Tcp(flags) => flags.syn(),
        Segment::Sctp { first, .. } => first == SCTP_INIT,
        Segment::Udp | Segment::Echo => false,
    }
}

fn is_one_packet(service: &Arc<Service>) -> bool {
    service.spec.flags.has(ServiceFlags::ONE_PACKET)
}
