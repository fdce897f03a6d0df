//! The SCTP state table as IPVS has it (`ip_vs_proto_sctp.c`), written as a grid. It follows the type
//! of a packet's first chunk, never tags or TSNs; what it decides is how long an idle association is
//! kept and whether it counts as active. It is not the state machine of RFC 9260.

use super::direction::Direction;

/// State of an SCTP association. The numbers are the kernel's and travel in sync messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SctpState {
    /// Before the first packet.
    None = 0,
    /// The client's first INIT.
    Init1 = 1,
    /// The client's INIT again.
    Init = 2,
    /// The server answered with INIT-ACK.
    CookieSent = 3,
    /// The client returned the cookie.
    CookieReplied = 4,
    /// The server opened it.
    CookieWait = 5,
    /// Both opened it.
    Cookie = 6,
    /// The server returned the cookie.
    CookieEchoed = 7,
    /// Data may flow.
    Established = 8,
    /// The server shuts down.
    ShutdownSent = 9,
    /// The client shuts down.
    ShutdownReceived = 10,
    /// The server agreed to shut down.
    ShutdownAckSent = 11,
    /// Aborted before it was open.
    Rejected = 12,
    /// Over.
    Closed = 13,
}

use SctpState::{
    Closed as CL, Cookie as CO, CookieEchoed as CE, CookieReplied as CR, CookieSent as CS,
    CookieWait as CW, Established as ES, Init as IN, Init1 as I1, None as NO, Rejected as RJ,
    ShutdownAckSent as SA, ShutdownReceived as SR, ShutdownSent as SS,
};

/// All states in the order of their numbers.
pub(super) const STATES: [SctpState; 14] = [NO, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL];

/// Ten rows for each direction: which chunk came; a column for each old state; in the cell the new
/// one.
#[rustfmt::skip]
const GRID: [[SctpState; 14]; 30] = [
    //                      NO  I1  IN  CS  CR  CW  CO  CE  ES  SS  SR  SA  RJ  CL
    /* IN   data, other  */ [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* IN   init         */ [I1, IN, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, IN, IN],
    /* IN   init ack     */ [CW, CW, CW, CS, CR, CO, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* IN   cookie echo  */ [CR, IN, IN, CR, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* IN   cookie ack   */ [ES, I1, IN, CS, CR, CW, CO, ES, ES, SS, SR, SA, RJ, CL],
    /* IN   shutdown     */ [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    /* IN   shutdown ack */ [CL, IN, IN, CS, CR, CW, CO, CE, ES, CL, SR, CL, RJ, CL],
    /* IN   shutdown com */ [CL, CL, CL, CS, CR, CW, CO, CE, ES, SS, SR, CL, RJ, CL],
    /* IN   error        */ [CL, I1, IN, CS, CR, CW, CO, CL, ES, SS, SR, SA, RJ, CL],
    /* IN   abort        */ [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],

    /* OUT  data, other  */ [ES, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* OUT  init         */ [CW, CW, CW, CW, CW, CW, CW, CW, ES, CW, CW, CW, CW, CW],
    /* OUT  init ack     */ [CS, CS, CS, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* OUT  cookie echo  */ [CE, CE, CE, CE, CE, CE, CE, CE, ES, SS, SR, SA, RJ, CL],
    /* OUT  cookie ack   */ [ES, ES, ES, ES, ES, ES, ES, ES, ES, SS, SR, SA, RJ, CL],
    /* OUT  shutdown     */ [SS, SS, SS, SS, SS, SS, SS, SS, SS, SS, SR, SA, RJ, CL],
    /* OUT  shutdown ack */ [SA, SA, SA, SA, SA, CW, CO, CE, ES, SA, SA, SA, RJ, CL],
    /* OUT  shutdown com */ [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* OUT  error        */ [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* OUT  abort        */ [CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL, CL],

    /* ONLY data, other  */ [ES, I1, IN, CS, CR, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* ONLY init         */ [I1, IN, IN, IN, IN, IN, CO, CE, ES, SS, SR, SA, IN, IN],
    /* ONLY init ack     */ [CE, CE, CE, CE, CE, CE, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* ONLY cookie echo  */ [ES, ES, ES, ES, ES, ES, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* ONLY cookie ack   */ [ES, I1, IN, ES, ES, CW, ES, ES, ES, SS, SR, SA, RJ, CL],
    /* ONLY shutdown     */ [SR, I1, IN, CS, CR, CW, CO, CE, SR, SS, SR, SA, RJ, CL],
    /* ONLY shutdown ack */ [CL, IN, IN, CS, CR, CW, CO, CE, CL, CL, SR, CL, RJ, CL],
    /* ONLY shutdown com */ [CL, CL, CL, CL, CL, CW, CO, CE, ES, SS, CL, CL, RJ, CL],
    /* ONLY error        */ [CL, I1, IN, CS, CR, CW, CO, CE, ES, SS, SR, SA, RJ, CL],
    /* ONLY abort        */ [CL, CL, CL, CL, CL, RJ, CL, CL, CL, CL, CL, CL, CL, CL],
];

/// The name that ipvsadm prints and the timeout in seconds.
#[rustfmt::skip]
const PROPERTIES: [(&str, u32); 14] = [
    /* NO */ ("NONE",          2),
    /* I1 */ ("INIT1",         4),
    /* IN */ ("INIT",         61),
    /* CS */ ("C-SENT",       61),
    /* CR */ ("C-REPLIED",    61),
    /* CW */ ("C-WAIT",       61),
    /* CO */ ("COOKIE",       61),
    /* CE */ ("C-ECHOED",     61),
    /* ES */ ("ESTABLISHED", 900),
    /* SS */ ("S-SENT",       61),
    /* SR */ ("S-RECEIVED",   61),
    /* SA */ ("S-ACK-SENT",   61),
    /* RJ */ ("REJECTED",      4),
    /* CL */ ("CLOSED",       61),
];

/// Chunk types that the table knows (RFC 9260 section 3.2).
mod chunk {
    pub const INIT: u8 = 1;
    pub const INIT_ACK: u8 = 2;
    pub const ABORT: u8 = 6;
    pub const SHUTDOWN: u8 = 7;
    pub const SHUTDOWN_ACK: u8 = 8;
    pub const ERROR: u8 = 9;
    pub const COOKIE_ECHO: u8 = 10;
    pub const COOKIE_ACK: u8 = 11;
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// The state after a packet whose first chunks have these types.
pub fn next(direction: Direction, first: u8, second: Option<u8>, old: SctpState) -> SctpState {
    GRID[direction as usize * 10 + event(first, second)][old as usize]
}

/// The row within a direction. Cookie chunks may be bundled with an ABORT behind them, which then
/// decides.
fn event(first: u8, second: Option<u8>) -> usize {
    match first {
        chunk::COOKIE_ECHO | chunk::COOKIE_ACK if second == Some(chunk::ABORT) => 9,
        chunk::INIT => 1,
        chunk::INIT_ACK => 2,
        chunk::COOKIE_ECHO => 3,
        chunk::COOKIE_ACK => 4,
        chunk::SHUTDOWN => 5,
        chunk::SHUTDOWN_ACK => 6,
        chunk::SHUTDOWN_COMPLETE => 7,
        chunk::ERROR => 8,
        chunk::ABORT => 9,
        _ => 0,
    }
}

/// How long an association may stay idle in this state, in seconds. `--set` has no word for SCTP.
pub const fn timeout_s(state: SctpState) -> u32 {
    PROPERTIES[state as usize].1
}

impl SctpState {
    /// The state of this number, if there is one.
    pub const fn from_number(number: u8) -> Option<SctpState> {
        if (number as usize) < STATES.len() {
            Some(STATES[number as usize])
        } else {
            Option::None
        }
    }

    /// As ipvsadm prints it.
    pub const fn name(self) -> &'static str {
        PROPERTIES[self as usize].0
    }

    /// Does an association in this state count as active?
    pub const fn is_active(self) -> bool {
        matches!(self, SctpState::Established)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places() {
        for (number, state) in (0..).zip(STATES) {
            assert_eq!(state as u8, number);
            assert_eq!(SctpState::from_number(number), Some(state));
        }
        assert_eq!(SctpState::from_number(14), Option::None);
    }

    #[test]
    fn an_abort_behind_a_cookie_decides() {
        let after = |first, second| next(Direction::In, first, second, ES);
        assert_eq!(after(chunk::COOKIE_ECHO, Some(0)), ES);
        assert_eq!(after(chunk::COOKIE_ECHO, Some(chunk::ABORT)), CL);
        assert_eq!(after(chunk::COOKIE_ACK, Some(chunk::ABORT)), CL);
        assert_eq!(after(0, Some(chunk::ABORT)), ES, "not behind data");
        assert_eq!(after(chunk::ABORT, Option::None), CL);
    }

    #[test]
    fn an_unknown_chunk_counts_as_data() {
        for old in STATES {
            let data = next(Direction::InOnly, 0, Option::None, old);
            assert_eq!(next(Direction::InOnly, 255, Option::None, old), data);
        }
    }
}
