//! The state of a connection of any protocol: one number that the tables of [`super::tcp`],
//! [`super::udp`] and [`super::sctp`] give its meaning.

use std::fmt;

use super::direction::Direction;
use super::{sctp, tcp, udp};
use crate::lvs::{Protocol, Segment, Timeouts};

/// The one state of an echo, and how long its reply is waited for (Linux, `nf_conntrack_icmp_timeout`).
const ECHO: u8 = 0;
const ECHO_TIMEOUT_S: u32 = 30;

/// The state of one connection. It always holds a number that its protocol has.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct State {
    protocol: Protocol,
    number: u8,
}

impl State {
    /// Before the first packet: number 0 of every protocol.
    pub const fn initial(protocol: Protocol) -> State {
        State {
            protocol,
            number: 0,
        }
    }

    /// The state that has this number in sync messages, if the protocol has it.
    pub const fn from_number(protocol: Protocol, number: u8) -> Option<State> {
        let known = match protocol {
            Protocol::TCP => tcp::TcpState::from_number(number).is_some(),
            Protocol::SCTP => sctp::SctpState::from_number(number).is_some(),
            _ => number == 0,
        };
        if known {
            Some(State { protocol, number })
        } else {
            None
        }
    }

    /// The state whose number an entry keeps: one that its protocol has.
    pub(super) const fn stored(protocol: Protocol, number: u8) -> State {
        debug_assert!(State::from_number(protocol, number).is_some());
        State { protocol, number }
    }

    /// Its number in sync messages.
    pub const fn number(self) -> u8 {
        self.number
    }

    /// Whose state it is.
    pub const fn protocol(self) -> Protocol {
        self.protocol
    }

    /// The state after a packet. A segment of another protocol changes nothing; the table never
    /// leads one to a connection. `secure` is `secure_tcp`.
    #[inline]
    pub fn next(self, direction: Direction, segment: Segment, secure: bool) -> State {
        let number = match (self.protocol, segment) {
            (Protocol::TCP, Segment::Tcp(flags)) => {
                tcp::next(direction, flags, self.tcp(), secure) as u8
            }
            (Protocol::SCTP, Segment::Sctp { first, second }) => {
                sctp::next(direction, first, second, self.sctp()) as u8
            }
            (Protocol::UDP, Segment::Udp) => udp::NORMAL,
            (Protocol::ICMP | Protocol::ICMPV6, Segment::Echo) => ECHO,
            (protocol, segment) => {
                debug_assert!(false, "{segment:?} on a {protocol} connection");
                self.number
            }
        };
        State { number, ..self }
    }

    /// How long a connection may stay idle in this state, in seconds.
    #[inline]
    pub fn timeout_s(self, timeouts: &Timeouts) -> u32 {
        match self.protocol {
            Protocol::TCP => tcp::timeout_s(self.tcp(), timeouts),
            Protocol::SCTP => sctp::timeout_s(self.sctp()),
            Protocol::ICMP | Protocol::ICMPV6 => ECHO_TIMEOUT_S,
            _ => udp::timeout_s(timeouts),
        }
    }

    /// Does a connection in this state count as active?
    pub const fn is_active(self) -> bool {
        match self.protocol {
            Protocol::TCP => self.tcp().is_active(),
            Protocol::SCTP => self.sctp().is_active(),
            _ => false,
        }
    }

    /// As ipvsadm prints it.
    pub const fn name(self) -> &'static str {
        match self.protocol {
            Protocol::TCP => self.tcp().name(),
            Protocol::SCTP => self.sctp().name(),
            Protocol::UDP => udp::NAME,
            Protocol::ICMP | Protocol::ICMPV6 => "ECHO",
            _ => "NONE",
        }
    }

    /// The number of a TCP connection as a name.
    const fn tcp(self) -> tcp::TcpState {
        tcp::STATES[self.number as usize]
    }

    /// The number of an SCTP association as a name.
    const fn sctp(self) -> sctp::SctpState {
        sctp::STATES[self.number as usize]
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lvs::TcpFlags;

    #[test]
    fn each_protocol_has_its_numbers() {
        let count = |protocol| {
            let known = |number: &u8| State::from_number(protocol, *number).is_some();
            (0..=u8::MAX).filter(known).count()
        };
        assert_eq!(count(Protocol::TCP), 11);
        assert_eq!(count(Protocol::SCTP), 14);
        assert_eq!(count(Protocol::UDP), 1);
    }

    #[test]
    fn a_life_of_each_protocol() {
        let timeouts = Timeouts::default();
        let ack = Segment::Tcp(TcpFlags(TcpFlags::ACK));
        let tcp = State::initial(Protocol::TCP).next(Direction::In, ack, false);
        assert_eq!(format!("{tcp:?}"), "TCP ESTABLISHED");
        assert!(tcp.is_active());
        assert_eq!((tcp.number(), tcp.timeout_s(&timeouts)), (1, 900));

        let udp = State::initial(Protocol::UDP).next(Direction::Out, Segment::Udp, false);
        assert_eq!(format!("{udp:?}"), "UDP UDP");
        assert!(!udp.is_active());
        assert_eq!((udp.number(), udp.timeout_s(&timeouts)), (0, 300));

        let data = Segment::Sctp {
            first: 0,
            second: None,
        };
        let sctp = State::initial(Protocol::SCTP).next(Direction::InOnly, data, false);
        assert_eq!(format!("{sctp:?}"), "SCTP ESTABLISHED");
        assert!(sctp.is_active());
        assert_eq!((sctp.number(), sctp.timeout_s(&timeouts)), (8, 900));
    }
}
