//! Verdict: what happens to one frame; `DropReason`: why it was dropped; `Account`: every frame is
//! accounted for.

use serde::{Deserialize, Serialize};

/// What happens to one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was rewritten in place and leaves by this port.
    Forward {
        /// Index into the snapshot's ports.
        port: usize,
    },
    /// It was for us and was answered (or needed no answer); answers lie in the outbox.
    Answered,
    /// It is not ours; the kernel, which saw it too, may have it.
    Pass,
    /// It waits for a neighbour's MAC address or for other fragments, or lies in the outbox as a copy.
    Held,
    /// It goes nowhere.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $word:literal,)+) => {
        /// Why a frame was dropped. A closed list; each has a counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// Every reason, in order.
            pub const ALL: [DropReason; [$($word),+].len()] = [$(DropReason::$name),+];

            /// The word for listings and JSON.
            pub const fn word(self) -> &'static str {
                match self { $(DropReason::$name => $word,)+ }
            }

            /// The same as a sentence, for people.
            pub fn sentence(self) -> String {
                let lines: &[&str] = match self { $(DropReason::$name => &[$($doc),+],)+ };
                let words = lines.iter().map(|line| line.trim());
                words.collect::<Vec<&str>>().join(" ").trim_end_matches('.').to_string()
            }
        }
    };
}

drop_reasons! {
    /// Shorter than its own headers, or lengths that lie.
    Malformed = "malformed",
    /// The IPv4 header's checksum is wrong.
    IpChecksum = "ip-checksum",
    /// An ICMP error that would be rewritten has a wrong checksum.
    IcmpChecksum = "icmp-checksum",
    /// TTL or hop limit ran out; the sender was told.
    TtlExceeded = "ttl-exceeded",
    /// No real server could be chosen; the sender was told.
    NoRealServer = "no-real-server",
    /// The connection's real server was deleted.
    RealServerGone = "real-server-gone",
    /// The connection table is full.
    TableFull = "table-full",
    /// No port leads to the next hop.
    NoRoute = "no-route",
    /// The next hop did not tell its MAC address, or too many frames waited.
    NoNeighbour = "no-neighbour",
    /// Longer than the MTU of the port it should leave by; the sender was told.
    TooLong = "too-long",
    /// The interface would not take it.
    TxRefused = "tx-refused",
    /// More answers in one breath than we make.
    AnswerLimit = "answer-limit",
    /// A fragment whose datagram did not become whole in time; the sender was told.
    Fragment = "fragment",
    /// A fragment that overlaps another, repeats or contradicts it, with all of its datagram.
    FragmentOverlap = "fragment-overlap",
    /// A fragment for which, or a datagram for whose fragments, there was no room.
    FragmentLimit = "fragment-limit",
    /// For our address, but nobody here wants it.
    Unwanted = "unwanted",
    /// Its sender wants to choose its way.
    SourceRoute = "source-route",
    /// For us, from a source that nobody outside can have.
    Martian = "martian",
    /// A real server spoke though nobody asked it; it was told (`nat_icmp_send`).
    Orphan = "orphan",
    /// The defences against overload dropped a new connection (`drop_packet`).
    Defence = "defence",
    /// A service's persistence engine found no Call-ID in it.
    NoCallId = "no-call-id",
    /// No address and port of the pool is free for a connection of full NAT or of a masqueraded host.
    NoSourcePort = "no-source-port",
    /// There are as many masqueraded connections as there may be.
    MasqueradeFull = "masquerade-full",
    /// This director is the backup.
    NotPrimary = "not-primary",
}

/// The frame account: `received = forwarded + answered + passed + held + dropped`, at any moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// Frames taken from interfaces.
    pub received: u64,
    /// Frames sent on.
    pub forwarded: u64,
    /// Frames that were for us.
    pub answered: u64,
    /// Frames left to the kernel.
    pub passed: u64,
    /// Frames that wait for a MAC address or for other fragments right now.
    pub held: u64,
    /// Frames dropped, by reason (`DropReason::ALL`).
    pub dropped: Vec<u64>,
    /// Frames we made ourselves (answers, ARP requests); not part of the equation.
    pub originated: u64,
}

impl Account {
    /// An empty account.
    pub fn new() -> Account {
        Account {
            dropped: vec![0; DropReason::ALL.len()],
            ..Account::default()
        }
    }

    /// Books one frame's verdict.
    pub fn book(&mut self, verdict: Verdict) {
        self.received += 1;
        match verdict {
            Verdict::Forward { .. } => self.forwarded += 1,
            Verdict::Answered => self.answered += 1,
            Verdict::Pass => self.passed += 1,
            Verdict::Held => self.held += 1,
            Verdict::Drop(reason) => self.dropped[reason as usize] += 1,
        }
    }

    /// Frames that were held became what this verdict says.
    pub fn settle(&mut self, frames: u64, verdict: Verdict) {
        self.held -= frames;
        match verdict {
            Verdict::Forward { .. } => self.forwarded += frames,
            Verdict::Answered => self.answered += frames,
            Verdict::Pass => self.passed += frames,
            Verdict::Held => self.held += frames,
            Verdict::Drop(reason) => self.dropped[reason as usize] += frames,
        }
    }

    /// All drops together.
    pub fn dropped_total(&self) -> u64 {
        self.dropped.iter().sum()
    }

    /// Drops for one reason.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).copied().unwrap_or(0)
    }

    /// Does the equation hold?
    pub fn balances(&self) -> bool {
        self.received
            == self.forwarded + self.answered + self.passed + self.held + self.dropped_total()
    }

    /// Adds another worker's account.
    pub fn add(&mut self, other: &Account) {
        self.received += other.received;
        self.forwarded += other.forwarded;
        self.answered += other.answered;
        self.passed += other.passed;
        self.held += other.held;
        self.originated += other.originated;
        self.dropped.resize(DropReason::ALL.len(), 0);
        for (mine, theirs) in self.dropped.iter_mut().zip(&other.dropped) {
            *mine += theirs;
        }
    }
}
