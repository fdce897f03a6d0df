//! The TCP state table as IPVS has it (`ip_vs_proto_tcp.c`), written as a grid. It follows only flags
//! and directions, never sequence numbers; what it decides is how long an idle connection is kept and
//! whether it counts as active. It is not the state machine of RFC 9293.

use super::direction::Direction;
use crate::lvs::{TcpFlags, Timeouts};

/// State of a TCP connection. The numbers are the kernel's and travel in sync messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// Before the first packet.
    None = 0,
    /// Data may flow.
    Established = 1,
    /// The server opened it.
    SynSent = 2,
    /// The client opened it.
    SynRecv = 3,
    /// The server closed, or the client where only it is seen.
    FinWait = 4,
    /// Both closed.
    TimeWait = 5,
    /// Reset, or never properly open.
    Close = 6,
    /// The client closed.
    CloseWait = 7,
    /// Kept for the numbers of sync messages; no packet leads here.
    LastAck = 8,
    /// An FTP data connection that is expected.
    Listen = 9,
    /// Half open under `secure_tcp`: only the server's ACK establishes it.
    SynAck = 10,
}

use TcpState::{
    Close as CL, CloseWait as CW, Established as ES, FinWait as FW, LastAck as LA, Listen as LI,
    None as NO, SynAck as SA, SynRecv as SR, SynSent as SS, TimeWait as TW,
};

/// All states in the order of their numbers.
pub(super) const STATES: [TcpState; 11] = [NO, ES, SS, SR, FW, TW, CL, CW, LA, LI, SA];

/// Four rows for each direction: what happened; a column for each old state; in the cell the new one.
type Grid = [[TcpState; 11]; 12];

#[rustfmt::skip]
const NORMAL: Grid = [
    //            NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /* IN   syn */ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    /* IN   fin */ [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, TW],
    /* IN   ack */ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /* IN   rst */ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, SR],
    /* OUT  syn */ [SS, ES, SS, SR, SS, SS, SS, SS, SS, LI, SR],
    /* OUT  fin */ [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    /* OUT  ack */ [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    /* OUT  rst */ [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
    /* ONLY syn */ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SR],
    /* ONLY fin */ [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
    /* ONLY ack */ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /* ONLY rst */ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

/// In force under `secure_tcp`: the handshake must be seen from the server too.
#[rustfmt::skip]
const SECURE: Grid = [
    //            NO  ES  SS  SR  FW  TW  CL  CW  LA  LI  SA
    /* IN   syn */ [SR, ES, ES, SR, SR, SR, SR, SR, SR, SR, SA],
    /* IN   fin */ [CL, CW, SS, TW, TW, TW, CL, CW, LA, LI, SA],
    /* IN   ack */ [ES, ES, SS, SR, FW, TW, CL, CW, CL, LI, SA],
    /* IN   rst */ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
    /* OUT  syn */ [SS, ES, SS, SA, SS, SS, SS, SS, SS, LI, SA],
    /* OUT  fin */ [TW, FW, SS, TW, FW, TW, CL, TW, LA, LI, TW],
    /* OUT  ack */ [ES, ES, SS, ES, FW, TW, CL, CW, LA, ES, ES],
    /* OUT  rst */ [CL, CL, SS, CL, CL, TW, CL, CL, CL, CL, CL],
    /* ONLY syn */ [SA, ES, ES, SR, SA, SA, SA, SA, SA, SA, SA],
    /* ONLY fin */ [CL, FW, SS, TW, FW, TW, CL, CW, LA, LI, TW],
    /* ONLY ack */ [ES, ES, SS, ES, FW, TW, CL, CW, CL, LI, ES],
    /* ONLY rst */ [CL, CL, CL, SR, CL, CL, CL, CL, LA, LI, CL],
];

/// The name that ipvsadm prints, the timeout in seconds unless `--set` changed it, and whether a
/// connection in this state counts as active.
#[rustfmt::skip]
const PROPERTIES: [(&str, u32, bool); 11] = [
    /* NO */ ("NONE",          2, false),
    /* ES */ ("ESTABLISHED", 900, true ),
    /* SS */ ("SYN_SENT",    120, true ),
    /* SR */ ("SYN_RECV",     60, true ),
    /* FW */ ("FIN_WAIT",    120, false),
    /* TW */ ("TIME_WAIT",   120, false),
    /* CL */ ("CLOSE",        10, false),
    /* CW */ ("CLOSE_WAIT",   60, false),
    /* LA */ ("LAST_ACK",     30, false),
    /* LI */ ("LISTEN",      120, false),
    /* SA */ ("SYNACK",      120, true ),
];

/// The state after a segment. RST counts before SYN, SYN before FIN, FIN before ACK; a segment with
/// none of them closes. `secure` puts the table of `secure_tcp` in force.
#[inline]
pub fn next(direction: Direction, flags: TcpFlags, old: TcpState, secure: bool) -> TcpState {
    let event = match flags {
        flags if flags.rst() => 3,
        flags if flags.syn() => 0,
        flags if flags.fin() => 1,
        flags if flags.ack() => 2,
        _ => return TcpState::Close,
    };
    let grid = if secure { &SECURE } else { &NORMAL };
    grid[direction as usize * 4 + event][old as usize]
}

/// How long a connection may stay idle in this state, in seconds.
#[inline]
pub fn timeout_s(state: TcpState, timeouts: &Timeouts) -> u32 {
    match state {
        TcpState::Established => timeouts.tcp_s,
        TcpState::FinWait => timeouts.tcp_fin_s,
        other => PROPERTIES[other as usize].1,
    }
}

impl TcpState {
    /// The state of this number, if there is one.
    pub const fn from_number(number: u8) -> Option<TcpState> {
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

    /// Does a connection in this state count as active?
    pub const fn is_active(self) -> bool {
        PROPERTIES[self as usize].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_places() {
        for (number, state) in (0..).zip(STATES) {
            assert_eq!(state as u8, number);
            assert_eq!(TcpState::from_number(number), Some(state));
        }
        assert_eq!(TcpState::from_number(11), Option::None);
    }

    #[test]
    fn flags_have_an_order() {
        let after = |flags| next(Direction::In, TcpFlags(flags), ES, false);
        let (fin, syn, rst, ack) = (TcpFlags::FIN, TcpFlags::SYN, TcpFlags::RST, TcpFlags::ACK);
        assert_eq!(after(rst | syn | fin | ack), CL);
        assert_eq!(after(syn | fin | ack), ES);
        assert_eq!(after(fin | ack), CW);
        assert_eq!(after(ack), ES);
        assert_eq!(after(TcpFlags::PSH), CL, "none of them closes");
    }

    /// Exactly these cells differ under `secure_tcp`.
    #[test]
    fn secure_differs_where_it_should() {
        let pairs = NORMAL.iter().flatten().zip(SECURE.iter().flatten());
        let differing = pairs
            .enumerate()
            .filter(|(_, (normal, secure))| normal != secure);
        let cells: Vec<(usize, usize)> =
            differing.map(|(cell, _)| (cell / 11, cell % 11)).collect();
        let only_syn = [NO, FW, TW, CL, CW, LA, LI, SA].map(|old| (8, old as usize));
        let (sr, sa) = (SR as usize, SA as usize);
        let mut expected = vec![
            (0, sa),
            (1, sa),
            (2, sr),
            (2, sa),
            (3, sa),
            (4, sr),
            (4, sa),
        ];
        expected.extend(only_syn);
        assert_eq!(cells, expected);
    }

    #[test]
    fn set_changes_two_timeouts() {
        let timeouts = Timeouts {
            tcp_s: 7,
            tcp_fin_s: 8,
            udp_s: 9,
        };
        let seconds = STATES.map(|state| timeout_s(state, &timeouts));
        assert_eq!(seconds, [2, 7, 120, 60, 8, 120, 10, 60, 30, 120, 120]);
        let seconds = STATES.map(|state| timeout_s(state, &Timeouts::default()));
        let usual = PROPERTIES.map(|(_, seconds, _)| seconds);
        assert_eq!(seconds, usual, "the defaults of --set are the table's");
    }
}
