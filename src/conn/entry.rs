//! Conn: what we remember about one connection. Its ends never change; its state, deadline and
//! counters are atomics, because the two directions may be seen by different workers
//! (`ip_vs_conn.c`, `struct ip_vs_conn`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::defence::assures;
use super::direction::Direction;
use super::state::State;
use super::tcp::TcpState;
use crate::lvs::tuple::{PackedAddress, Tuple, unpack};
use crate::lvs::{Endpoint, Family, ForwardMethod, Protocol, RealLive, Segment, Timeouts};
use crate::time::{Duration, Instant};

/// Life of an entry before its first state (`ip_vs_conn_new`).
const NEW_TIMEOUT_S: u32 = 3;
/// Life given again to an expired entry that still controls others (`ip_vs_conn_expire`).
const CONTROLLING_TIMEOUT_S: u32 = 60;

/// Bits of `Conn::word` above the state.
mod flag {
    /// Counted inactive at its real server.
    pub const INACTIVE: u32 = 1 << 8;
    /// No packet of the real server was seen.
    pub const NO_OUTPUT: u32 = 1 << 9;
    /// A connection template: the remembered choice behind persistence.
    pub const TEMPLATE: u32 = 1 << 10;
    /// No longer in the table; whoever still holds it must let go.
    pub const GONE: u32 = 1 << 11;
    /// A template one of whose connections was established: the defences spare it.
    pub const ASSURED: u32 = 1 << 12;
    /// The state number.
    pub const STATE: u32 = 0xff;
    /// Where the number of the forwarding method begins; it has three bits and never changes.
    pub const METHOD_SHIFT: u32 = 13;
    /// A template whose key a persistence engine has added to.
    pub const ENGINE: u32 = 1 << 16;
    /// The real server's address is of IPv6, whatever the client's is: LVS-TUN crosses families.
    pub const REAL_V6: u32 = 1 << 18;
    /// An application helper follows it; the table knows what the helper remembers.
    pub const HELPED: u32 = 1 << 19;
    /// Its client's port is not known until the client speaks.
    pub const AWAITS_CLIENT: u32 = 1 << 20;
    /// Under full NAT: `control` is the inner half, which holds the local end, and the template.
    pub const LOCAL: u32 = 1 << 17;
}

/// One connection entry. About 104 bytes: what a packet needs is together and small.
#[derive(Debug)]
pub struct Conn {
    client: PackedAddress,
    virt: PackedAddress,
    real: PackedAddress,
    client_port: u16,
    virt_port: AtomicU16,
    real_port: AtomicU16,
    protocol: Protocol,
    family: Family,
    deadline: AtomicU64,
    server: Option<Arc<RealLive>>,
    control: Option<Arc<Conn>>,
    word: AtomicU32,
    timeout_s: AtomicU32,
    in_packets: AtomicU32,
    armed: AtomicU32,
    mark: u32,
    controls: AtomicU32,
}

// With the two counts of an `Arc` it fills 120 bytes, which the allocator makes 128, at a multiple of 128:
// two cache lines (docs/performance.md).
const _: () = assert!(size_of::<Conn>() == 104);

/// Whoever lets go of an entry that never was in the table (one-packet scheduling, a table that is full)
/// cannot forget to undo its counts.
impl Drop for Conn {
    fn drop(&mut self) {
        self.retire();
    }
}

/// What a new entry is made of.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Client to VIP, as the first packet said.
    pub tuple: Tuple,
    /// Where the real server listens. Its family is that of `server`, or of the tuple if there is none.
    pub real: (PackedAddress, u16),
    /// How packets get there.
    pub method: ForwardMethod,
    /// The real server it is bound to.
    pub server: Option<Arc<RealLive>>,
    /// The template that chose, if there is one.
    pub control: Option<Arc<Conn>>,
    /// Firewall mark of the first packet; 0 is none.
    pub mark: u32,
    /// It is a template.
    pub template: bool,
}

/// What the state tables go by, beside the packet.
#[derive(Clone, Copy, Debug)]
pub struct StepRules<'a> {
    /// Timeouts in force.
    pub timeouts: &'a Timeouts,
    /// The wary TCP table is in force.
    pub secure_tcp: bool,
}

impl<'a> From<&'a Timeouts> for StepRules<'a> {
    fn from(timeouts: &'a Timeouts) -> StepRules<'a> {
        StepRules {
            timeouts,
            secure_tcp: false,
        }
    }
}

impl Conn {
    /// Makes the entry and binds it to its real server: it counts there as inactive (a template as
    /// persistent) until its first active state (`ip_vs_bind_dest`).
    pub fn open(opening: Opening, now: Instant) -> Conn {
        let tuple = opening.tuple;
        let mut word = flag::INACTIVE | u32::from(State::initial(tuple.protocol()).number());
        word |= (opening.method as u32) << flag::METHOD_SHIFT;
        // What passes by has no real server, from which the kernel takes this flag (`ip_vs_leave`).
        if !opening.method.is_nat() && opening.method != ForwardMethod::Bypass {
            word |= flag::NO_OUTPUT;
        }
        if opening.template {
            word |= flag::TEMPLATE;
        }
        let server = opening.server.as_deref();
        if server.map_or(tuple.family(), |server| Family::of(server.address())) == Family::V6 {
            word |= flag::REAL_V6;
        }
        if let Some(server) = &opening.server {
            let counter = if opening.template {
                &server.persistent
            } else {
                &server.inactive
            };
            counter.fetch_add(1, Relaxed);
            server.mark_if_overloaded();
        }
        if let Some(control) = &opening.control {
            control.controls.fetch_add(1, Relaxed);
        }
        let deadline = now + Duration::from_secs(NEW_TIMEOUT_S.into());
        Conn {
            client: tuple.source,
            virt: tuple.target,
            real: opening.real.0,
            client_port: tuple.source_port(),
            virt_port: AtomicU16::new(tuple.target_port()),
            real_port: AtomicU16::new(opening.real.1),
            protocol: tuple.protocol(),
            family: tuple.family(),
            deadline: AtomicU64::new(deadline.as_nanos()),
            server: opening.server,
            control: opening.control,
            word: AtomicU32::new(word),
            timeout_s: AtomicU32::new(NEW_TIMEOUT_S),
            in_packets: AtomicU32::new(0),
            armed: AtomicU32::new(0),
            mark: opening.mark,
            controls: AtomicU32::new(0),
        }
    }

    /// The same under full NAT, whose real server sees `local` as its client. So few entries have a
    /// local end that none has a field for it: it is the client of a second, inner half, which the
    /// entry holds in the place of its template, and which holds the template.
    pub fn open_full_nat(opening: Opening, local: (PackedAddress, u16), now: Instant) -> Conn {
        let tuple = opening.tuple;
        let virt = (tuple.target, tuple.target_port());
        let inner = Opening {
            tuple: Tuple::new(tuple.family(), tuple.protocol(), local, virt),
            server: None,
            control: None,
            ..opening.clone()
        };
        let mut conn = Conn::open(opening, now);
        let mut half = Conn::open(inner, now);
        // It was never in a table and counts nowhere.
        half.word.fetch_or(flag::GONE, Relaxed);
        half.control = conn.control.take();
        conn.control = Some(Arc::new(half));
        conn.word.fetch_or(flag::LOCAL, Relaxed);
        conn
    }

    /// TCP, UDP or SCTP; IP (0) for the template of a mark; ICMP for a masqueraded echo.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Who asked.
    #[inline]
    pub fn client(&self) -> Endpoint {
        Endpoint::new(unpack(self.family, self.client), self.client_port)
    }

    /// What was asked for.
    #[inline]
    pub fn virt(&self) -> Endpoint {
        Endpoint::new(unpack(self.family, self.virt), self.virt_port.load(Relaxed))
    }

    /// Who serves.
    #[inline]
    pub fn real(&self) -> Endpoint {
        let family = if self.has(flag::REAL_V6) {
            Family::V6
        } else {
            Family::V4
        };
        Endpoint::new(unpack(family, self.real), self.real_port.load(Relaxed))
    }

    /// The real server it is bound to.
    pub fn server(&self) -> Option<&Arc<RealLive>> {
        self.server.as_ref()
    }

    /// How packets get there.
    #[inline]
    pub fn method(&self) -> ForwardMethod {
        match self.word.load(Relaxed) >> flag::METHOD_SHIFT & 7 {
            0 => ForwardMethod::Masq,
            1 => ForwardMethod::Local,
            2 => ForwardMethod::Tunnel,
            3 => ForwardMethod::Route,
            5 => ForwardMethod::FullNat,
            6 => ForwardMethod::Masquerade,
            _ => ForwardMethod::Bypass,
        }
    }

    /// The entry that controls this one: its template.
    pub fn control(&self) -> Option<&Arc<Conn>> {
        let held = self.control.as_ref()?;
        if self.has(flag::LOCAL) {
            return held.control.as_ref();
        }
        Some(held)
    }

    /// Under full NAT: the director's end, which the real server takes for its client.
    pub fn local(&self) -> Option<Endpoint> {
        self.half().map(|half| half.client())
    }

    fn half(&self) -> Option<&Arc<Conn>> {
        let held = self.control.as_ref()?;
        self.has(flag::LOCAL).then_some(held)
    }

    /// Firewall mark of its first packet; 0 is none.
    pub fn mark(&self) -> u32 {
        self.mark
    }

    /// Packets that clients sent.
    pub fn in_packets(&self) -> u32 {
        self.in_packets.load(Relaxed)
    }

    fn has(&self, bit: u32) -> bool {
        self.word.load(Relaxed) & bit != 0
    }

    /// Is it a template?
    pub fn is_template(&self) -> bool {
        self.has(flag::TEMPLATE)
    }

    /// Did a persistence engine add to this template's key? The table knows what.
    pub fn has_engine_data(&self) -> bool {
        self.has(flag::ENGINE)
    }

    /// Whether the table keeps an engine's data for it; said before anybody else can find it.
    pub(super) fn set_engine_data(&self) {
        self.word.fetch_or(flag::ENGINE, Relaxed);
    }

    /// Does an application helper follow it?
    pub fn is_helped(&self) -> bool {
        self.has(flag::HELPED)
    }

    /// An application helper shall follow it; said before anybody else can find it.
    pub fn set_helped(&self) {
        self.word.fetch_or(flag::HELPED, Relaxed);
    }

    /// Is its client's port not known yet (`IP_VS_CONN_F_NO_CPORT`)? It is 0 then.
    pub fn awaits_client(&self) -> bool {
        self.has(flag::AWAITS_CLIENT)
    }

    /// Its client's port will be known when the client speaks; said before anybody else can find it.
    pub fn set_awaits_client(&self) {
        self.word.fetch_or(flag::AWAITS_CLIENT, Relaxed);
    }

    /// It waits for its first packet: a data connection that a helper has heard of
    /// (`ip_vs_tcp_conn_listen`). Its real server's counts stay as they are.
    pub fn listen(&self, timeouts: &Timeouts, now: Instant) {
        let listening = State::from_number(Protocol::TCP, TcpState::Listen as u8);
        let listening = listening.unwrap_or(State::initial(Protocol::TCP));
        let with = |word| Some(word & !flag::STATE | u32::from(listening.number()));
        // The closure never refuses.
        let _ = self.word.fetch_update(Relaxed, Relaxed, with);
        self.restart(listening.timeout_s(timeouts), now);
    }

    /// Has it left the table?
    pub fn is_gone(&self) -> bool {
        self.has(flag::GONE)
    }

    /// Was one of a template's connections established?
    pub fn is_assured(&self) -> bool {
        self.has(flag::ASSURED)
    }

    /// Was no packet of the real server seen yet?
    pub fn no_output(&self) -> bool {
        self.has(flag::NO_OUTPUT)
    }

    /// Does it control others?
    pub fn is_controlling(&self) -> bool {
        self.controls.load(Relaxed) != 0
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.state_in(self.word.load(Relaxed))
    }

    /// The state that a word says. Only numbers of the entry's own protocol are ever written there.
    fn state_in(&self, word: u32) -> State {
        State::stored(self.protocol, (word & flag::STATE) as u8)
    }

    /// Its state as ipvsadm prints it.
    pub fn state_name(&self) -> &'static str {
        match (self.is_template(), self.is_assured()) {
            (true, true) => "ASSURED",
            (true, false) => "NONE",
            _ => self.state().name(),
        }
    }

    /// When it expires, unless a packet comes.
    pub fn deadline(&self) -> Instant {
        Instant::from_nanos(self.deadline.load(Relaxed))
    }

    /// How long until it expires; zero when it is due.
    pub fn expires_in(&self, now: Instant) -> Duration {
        self.deadline() - now
    }

    /// Is its time up?
    pub fn is_due(&self, now: Instant) -> bool {
        self.deadline.load(Relaxed) <= now.as_nanos()
    }

    /// The tuple of packets from the client.
    #[inline]
    pub fn in_tuple(&self) -> Tuple {
        let (client, virt) = (
            (self.client, self.client_port),
            (self.virt, self.virt_port.load(Relaxed)),
        );
        Tuple::new(self.family, self.protocol, client, virt)
    }

    /// The tuple of packets from the real server: under NAT it speaks for itself, otherwise for the
    /// VIP; under full NAT to the director's own end.
    #[inline]
    pub fn out_tuple(&self) -> Tuple {
        let real = || (self.real, self.real_port.load(Relaxed));
        let (speaker, listener) = match self.method() {
            ForwardMethod::Masq | ForwardMethod::Masquerade => (real(), self),
            ForwardMethod::FullNat => (real(), self.half().map_or(self, |half| half)),
            _ => ((self.virt, self.virt_port.load(Relaxed)), self),
        };
        let listener = (listener.client, listener.client_port);
        Tuple::new(self.family, self.protocol, speaker, listener)
    }

    /// Is this the tuple of its packets in this direction?
    #[inline(always)]
    pub fn has_tuple(&self, direction: Direction, tuple: &Tuple) -> bool {
        match direction {
            Direction::Out => self.out_tuple() == *tuple,
            _ => self.in_tuple() == *tuple,
        }
    }

    /// The tuple of packets in this direction.
    pub fn tuple(&self, direction: Direction) -> Tuple {
        if direction == Direction::Out {
            self.out_tuple()
        } else {
            self.in_tuple()
        }
    }

    /// What both directions have in common, hashed.
    pub fn client_hash(&self, seed: u64) -> u64 {
        Tuple::client_hash(self.client, self.client_port, self.protocol, seed)
    }

    /// Loads the entry's cache lines and nothing more: called for a whole batch at once, so that the
    /// misses overlap. The sum only keeps the compiler from leaving the loads out.
    pub fn warm(&self) -> u64 {
        self.client[1] ^ self.deadline.load(Relaxed) ^ u64::from(self.word.load(Relaxed))
    }

    /// One packet moves the state; the deadline starts anew, and the real server's counts follow when
    /// the state becomes active or stops being so (`ip_vs_set_state`, `set_tcp_state`). Returns the
    /// state before and after.
    #[inline]
    pub fn step<'r>(
        &self,
        direction: Direction,
        segment: Segment,
        rules: impl Into<StepRules<'r>>,
        now: Instant,
    ) -> (State, State) {
        let rules = rules.into();
        let mut old = self.word.load(Relaxed);
        loop {
            let (new, from, to) = self.next_word(old, direction, segment, rules.secure_tcp);
            let taken = old == new
                || self
                    .word
                    .compare_exchange_weak(old, new, Relaxed, Relaxed)
                    .is_ok();
            if taken {
                self.follow_activity(old, new);
                self.restart(to.timeout_s(rules.timeouts), now);
                if let Some(control) = self.control()
                    && assures(to, direction == Direction::Out)
                {
                    control.word.fetch_or(flag::ASSURED, Relaxed);
                }
                return (from, to);
            }
            old = self.word.load(Relaxed);
        }
    }

    #[inline]
    fn next_word(
        &self,
        old: u32,
        direction: Direction,
        segment: Segment,
        secure: bool,
    ) -> (u32, State, State) {
        let mut new = old;
        let seen_as = match direction {
            Direction::Out => {
                new &= !flag::NO_OUTPUT;
                Direction::Out
            }
            _ if old & flag::NO_OUTPUT != 0 => Direction::InOnly,
            _ => Direction::In,
        };
        let from = self.state_in(old);
        let to = from.next(seen_as, segment, secure);
        if to != from {
            new = new & !flag::STATE | u32::from(to.number());
            if self.server.is_some() {
                new = if to.is_active() {
                    new & !flag::INACTIVE
                } else {
                    new | flag::INACTIVE
                };
            }
        }
        (new, from, to)
    }

    /// Moves the real server's counts when the entry became active or inactive. One that was gone by
    /// then counts no more: `retire` has undone what stood in its word.
    #[inline]
    fn follow_activity(&self, old: u32, new: u32) {
        let Some(server) = &self.server else { return };
        if old & flag::GONE != 0 {
            return;
        }
        match (old & flag::INACTIVE != 0, new & flag::INACTIVE != 0) {
            (true, false) => {
                server.active.fetch_add(1, Relaxed);
                server.inactive.fetch_sub(1, Relaxed);
            }
            (false, true) => {
                server.inactive.fetch_add(1, Relaxed);
                server.active.fetch_sub(1, Relaxed);
            }
            _ => {}
        }
    }

    /// Starts the deadline anew with `timeout_s` seconds, kept for later restarts.
    #[inline]
    pub fn restart(&self, timeout_s: u32, now: Instant) {
        self.timeout_s.store(timeout_s, Relaxed);
        let deadline = now + Duration::from_secs(timeout_s.into());
        self.deadline.store(deadline.as_nanos(), Relaxed);
    }

    /// Starts the deadline anew with the timeout it has (`ip_vs_conn_put`).
    pub fn touch(&self, now: Instant) {
        self.restart(self.timeout_s.load(Relaxed), now);
    }

    /// One more packet of a client.
    pub fn count_in(&self) {
        self.in_packets
            .store(self.in_packets.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// How long ago its last packet was.
    pub fn idle_for(&self, now: Instant) -> Duration {
        let timeout = Duration::from_secs(self.timeout_s.load(Relaxed).into());
        let last = self
            .deadline
            .load(Relaxed)
            .saturating_sub(timeout.as_nanos());
        now - Instant::from_nanos(last)
    }

    /// A template that is of no use any more is never found again and dies in its own time
    /// (`ip_vs_check_template`).
    pub fn disown(&self) {
        self.virt_port.store(u16::MAX, Relaxed);
        self.real_port.store(u16::MAX, Relaxed);
    }

    /// Makes it due now.
    pub fn end_now(&self, now: Instant) {
        self.deadline.store(now.as_nanos(), Relaxed);
    }

    /// An expired entry that still controls others lives on (`ip_vs_conn_expire`); says if it does.
    pub fn outlives_expiry(&self, now: Instant) -> bool {
        if self.is_controlling() {
            self.restart(CONTROLLING_TIMEOUT_S, now);
            return true;
        }
        false
    }

    /// Marks it gone and undoes its counts, once; false if somebody did before
    /// (`ip_vs_unbind_dest`).
    pub fn retire(&self) -> bool {
        let before = self.word.fetch_or(flag::GONE, Relaxed);
        if before & flag::GONE != 0 {
            return false;
        }
        if let Some(server) = &self.server {
            let counter = match (before & flag::TEMPLATE != 0, before & flag::INACTIVE != 0) {
                (true, _) => &server.persistent,
                (_, true) => &server.inactive,
                _ => &server.active,
            };
            counter.fetch_sub(1, Relaxed);
            server.clear_if_recovered();
        }
        if let Some(control) = self.control() {
            control.controls.fetch_sub(1, Relaxed);
        }
        true
    }

    /// The tick of the timer wheel that knows it; see `Wheel`.
    pub(super) fn armed(&self) -> u32 {
        self.armed.load(Relaxed)
    }

    pub(super) fn set_armed(&self, tick: u32) {
        self.armed.store(tick, Relaxed);
    }
}
