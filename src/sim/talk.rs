//! What a client has to say to a virtual service: a TCP connection that sends requests and wants their
//! echo, datagrams, an SCTP association. Whatever comes back is compared with what must come back.

use std::collections::VecDeque;

use super::invariant::Broken;
use super::packet::{self, Heard, TcpSegment};
use super::tcp::{Phase, TcpEnd};
use crate::lvs::{Endpoint, Flow, Protocol};
use crate::time::{Duration, Instant};

/// How a talk ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on.
    Open,
    /// All was said and heard.
    Done,
    /// The client was told that nobody listens.
    Refused,
    /// It was broken off.
    Reset,
    /// Nobody answered.
    Lost,
}

/// What a TCP client does when it has its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It closes.
    Close,
    /// It breaks off.
    Reset,
    /// It stays.
    Stay,
}

/// What somebody makes a client do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poke {
    /// One more request.
    Send,
    /// Close, or shut the association down.
    Close,
    /// Reset, or abort.
    Reset,
    /// Be switched off.
    Forget,
}

/// Longest request or datagram in bytes.
pub const DATA_MAX: usize = 600;

/// The port of services whose datagrams belong to calls (RFC 3261 section 19.1.2).
pub const SIP_PORT: u16 = 5060;
/// So many talks are one call, whoever their clients are.
const TALKS_PER_CALL: u32 = 3;

/// SCTP chunk types (RFC 9260 section 3.2), as a client sends them and as they are answered.
const SCTP_LIFE: [(u8, u8); 4] = [(1, 2), (10, 11), (0, 3), (7, 8)];
const SCTP_ABORT: u8 = 6;
const SCTP_END: u8 = 14;
const SCTP_AGAIN: Duration = Duration::from_secs(1);
const SCTP_TRIES_MAX: u32 = 5;

/// One talk of one client.
#[derive(Clone, Debug)]
pub struct Talk {
    /// Its number; it stands in every packet, so that who hears one knows whose it is.
    pub id: u32,
    /// How far it has come.
    pub fate: Fate,
    /// The client's end.
    pub from: Endpoint,
    /// The virtual service's end.
    pub to: Endpoint,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Tcp(Box<TcpTalk>),
    Udp {
        sent: u16,
    },
    Sctp {
        /// Which chunk of `SCTP_LIFE` is next to be answered.
        at: usize,
        due: Instant,
        tries: u32,
    },
}

#[derive(Clone, Debug)]
struct TcpTalk {
    end: TcpEnd,
    /// The echo that is still to come.
    awaited: VecDeque<u8>,
    requests: u32,
    said: u32,
    ending: Ending,
}

/// What every real server makes of what it hears.
pub fn echo(data: &[u8]) -> Vec<u8> {
    data.iter().map(|byte| byte ^ 0x5a).collect()
}

/// The number of the talk that a packet of a client belongs to.
pub fn id_of(heard: &Heard) -> Option<u32> {
    match heard.protocol {
        Protocol::TCP => heard.tcp().map(|segment| segment.seq >> 16),
        Protocol::UDP => {
            let (_, data) = split_head(heard.udp()?);
            let id = data.get(..4)?.try_into().expect("four bytes");
            Some(u32::from_be_bytes(id))
        }
        Protocol::SCTP => heard.sctp().map(|(tag, _)| tag),
        _ => None,
    }
}

/// What a real server answers to a datagram: what says whose it is stays, the rest is the echo.
pub fn datagram_answer(data: &[u8]) -> Vec<u8> {
    let (head, data) = split_head(data);
    let (who, rest) = data.split_at(data.len().min(6));
    [head, who, &echo(rest)].concat()
}

/// The lines of a SIP message, which say which call it belongs to, and what is behind them.
fn split_head(data: &[u8]) -> (&[u8], &[u8]) {
    const END: &[u8] = b"\r\n\r\n";
    let is_end = |window: &[u8]| window == END;
    let end = match data.starts_with(b"OPTIONS") {
        true => data.windows(END.len()).position(is_end),
        false => None,
    };
    data.split_at(end.map_or(0, |at| at + END.len()))
}

/// The chunk with which a real server answers a chunk, if it does.
pub fn sctp_answer(chunk: u8) -> Option<u8> {
    let step = SCTP_LIFE.iter().find(|(asked, _)| *asked == chunk);
    step.map(|(_, answer)| *answer)
}

impl Talk {
    /// A TCP connection and its SYN: it sends so many requests and ends like that.
    pub fn connect(
        id: u32,
        ends: (Endpoint, Endpoint),
        (requests, ending): (u32, Ending),
        now: Instant,
    ) -> (Talk, Vec<u8>) {
        let (end, syn) = TcpEnd::open(id << 16, now);
        let talk = TcpTalk {
            end,
            awaited: VecDeque::new(),
            requests,
            said: 0,
            ending,
        };
        let talk = Talk::new(id, ends, Kind::Tcp(Box::new(talk)));
        let packet = talk.tcp_packet(&syn);
        (talk, packet)
    }

    /// Datagrams; the first one is sent by `poke`.
    pub fn datagrams(id: u32, ends: (Endpoint, Endpoint)) -> Talk {
        Talk::new(id, ends, Kind::Udp { sent: 0 })
    }

    /// An SCTP association and its INIT.
    pub fn associate(id: u32, ends: (Endpoint, Endpoint), now: Instant) -> (Talk, Vec<u8>) {
        let kind = Kind::Sctp {
            at: 0,
            due: now + SCTP_AGAIN,
            tries: 1,
        };
        let talk = Talk::new(id, ends, kind);
        let packet = talk.sctp_packet(SCTP_LIFE[0].0);
        (talk, packet)
    }

    fn new(id: u32, (from, to): (Endpoint, Endpoint), kind: Kind) -> Talk {
        Talk {
            id,
            fate: Fate::Open,
            from,
            to,
            kind,
        }
    }

    /// TCP, UDP or SCTP.
    pub fn protocol(&self) -> Protocol {
        match self.kind {
            Kind::Tcp(_) => Protocol::TCP,
            Kind::Udp { .. } => Protocol::UDP,
            Kind::Sctp { .. } => Protocol::SCTP,
        }
    }

    /// Client to VIP.
    pub fn flow(&self) -> Flow {
        Flow {
            protocol: self.protocol(),
            source: self.from,
            target: self.to,
        }
    }

    /// When `handle_timeout` is due.
    pub fn due(&self) -> Option<Instant> {
        match &self.kind {
            Kind::Tcp(tcp) => tcp.end.due(),
            Kind::Sctp { due, .. } if self.fate == Fate::Open => Some(*due),
            _ => None,
        }
    }

    /// Somebody makes the client do something. Returns the packet it sends, if it sends one now.
    pub fn poke(&mut self, poke: Poke, now: Instant) -> Option<Vec<u8>> {
        let over = self.fate != Fate::Open;
        if over {
            return None;
        }
        if poke == Poke::Forget {
            self.fate = Fate::Lost;
            return None;
        }
        let chunk = match &mut self.kind {
            Kind::Udp { sent } => {
                *sent = sent.wrapping_add(1);
                let number = *sent;
                return Some(self.udp_packet(number));
            }
            Kind::Tcp(tcp) => {
                let segment = tcp.poke(poke, self.id, now);
                self.note_phase();
                return segment.map(|segment| self.tcp_packet(&segment));
            }
            Kind::Sctp { at, .. } => match poke {
                Poke::Reset => {
                    self.fate = Fate::Reset;
                    SCTP_ABORT
                }
                _ => SCTP_LIFE[*at].0,
            },
        };
        Some(self.sctp_packet(chunk))
    }

    /// A packet of the virtual service. Returns what the client says to it.
    ///
    /// # Errors
    /// Something came that the client never asked for.
    pub fn hear(&mut self, heard: &Heard, now: Instant) -> Result<Option<Vec<u8>>, Broken> {
        match &mut self.kind {
            Kind::Tcp(tcp) => {
                let Some(segment) = heard.tcp() else {
                    return Ok(None);
                };
                let opening = tcp.end.phase() == Phase::Opening;
                let answer = tcp.hear(&segment, self.id, now)?;
                self.note_phase();
                if self.fate == Fate::Reset && opening {
                    self.fate = Fate::Refused;
                }
                Ok(answer.map(|answer| self.tcp_packet(&answer)))
            }
            Kind::Udp { .. } => self.hear_datagram(heard).map(|()| None),
            Kind::Sctp { .. } => Ok(self.hear_chunk(heard, now)),
        }
    }

    /// An ICMP error says that nobody listens.
    pub fn hear_refusal(&mut self) {
        let waiting = match &self.kind {
            Kind::Tcp(tcp) => tcp.end.phase() == Phase::Opening,
            Kind::Sctp { at, .. } => *at == 0,
            Kind::Udp { .. } => false,
        };
        if waiting && self.fate == Fate::Open {
            self.fate = Fate::Refused;
        }
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.due().filter(|due| *due <= now)?;
        match &mut self.kind {
            Kind::Tcp(tcp) => {
                let segment = tcp.end.handle_timeout(now);
                self.note_phase();
                segment.map(|segment| self.tcp_packet(&segment))
            }
            Kind::Sctp { at, due, tries } => {
                if *tries == SCTP_TRIES_MAX {
                    self.fate = Fate::Lost;
                    return None;
                }
                *tries += 1;
                *due = now + SCTP_AGAIN;
                let chunk = SCTP_LIFE[*at].0;
                Some(self.sctp_packet(chunk))
            }
            Kind::Udp { .. } => None,
        }
    }

    fn note_phase(&mut self) {
        let Kind::Tcp(tcp) = &self.kind else { return };
        let fate = match tcp.end.phase() {
            Phase::Closed => Fate::Done,
            Phase::Reset => Fate::Reset,
            Phase::Lost => Fate::Lost,
            _ => return,
        };
        if self.fate == Fate::Open {
            self.fate = fate;
        }
    }

    fn hear_datagram(&self, heard: &Heard) -> Result<(), Broken> {
        let (_, data) = split_head(heard.udp().unwrap_or_default());
        let mine = data.get(..4) == Some(&self.id.to_be_bytes()[..]);
        let number = data
            .get(4..6)
            .map(|number| u16::from_be_bytes([number[0], number[1]]));
        let wanted = number.map(|number| echo(&filler(self.id, number.into())));
        if mine && wanted.as_deref() != data.get(6..) {
            return Err(Broken::new(
                4,
                format!("talk {} has a wrong answer", self.id),
            ));
        }
        Ok(())
    }

    fn hear_chunk(&mut self, heard: &Heard, now: Instant) -> Option<Vec<u8>> {
        let Kind::Sctp { at, due, tries } = &mut self.kind else {
            return None;
        };
        let (tag, chunk) = heard.sctp()?;
        if tag != self.id || self.fate != Fate::Open || chunk != SCTP_LIFE[*at].1 {
            return None;
        }
        let next = SCTP_LIFE.get(*at + 1).map(|(chunk, _)| *chunk);
        match next {
            Some(_) => (*at, *due, *tries) = (*at + 1, now + SCTP_AGAIN, 1),
            None => self.fate = Fate::Done,
        }
        Some(self.sctp_packet(next.unwrap_or(SCTP_END)))
    }

    fn tcp_packet(&self, segment: &TcpSegment) -> Vec<u8> {
        packet::tcp(self.from, self.to, segment)
    }

    fn udp_packet(&self, number: u16) -> Vec<u8> {
        packet::udp(self.from, self.to, &self.datagram(number, |data| data))
    }

    /// What a real server says that speaks first.
    pub fn unasked(&self) -> Vec<u8> {
        self.datagram(0, |data| echo(&data))
    }

    fn datagram(&self, number: u16, body: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Vec<u8> {
        let call = self.id / TALKS_PER_CALL;
        let head = match self.to.port {
            SIP_PORT => format!("OPTIONS sip:sim SIP/2.0\r\nCall-ID: {call}@sim\r\n\r\n"),
            _ => String::new(),
        };
        let (id, number_bytes) = (self.id.to_be_bytes(), number.to_be_bytes());
        let body = body(filler(self.id, number.into()));
        [head.as_bytes(), &id, &number_bytes, &body].concat()
    }

    fn sctp_packet(&self, chunk: u8) -> Vec<u8> {
        packet::sctp(self.from, self.to, self.id, chunk)
    }
}

impl TcpTalk {
    fn poke(&mut self, poke: Poke, id: u32, now: Instant) -> Option<TcpSegment> {
        match poke {
            Poke::Send => self.request(id, now),
            Poke::Close => self.end.close(now),
            Poke::Reset => Some(self.end.reset()),
            Poke::Forget => None,
        }
    }

    fn request(&mut self, id: u32, now: Instant) -> Option<TcpSegment> {
        if self.end.is_closing() || self.end.is_over() {
            return None;
        }
        self.said += 1;
        let data = filler(id, self.said);
        self.awaited.extend(echo(&data));
        self.end.send(data, now)
    }

    fn hear(
        &mut self,
        segment: &TcpSegment,
        id: u32,
        now: Instant,
    ) -> Result<Option<TcpSegment>, Broken> {
        let brought = self.end.handle(segment, now);
        for byte in &brought.data {
            if self.awaited.pop_front() != Some(*byte) {
                return Err(Broken::new(4, format!("talk {id} has a wrong answer")));
            }
        }
        let over = brought.fin.then(|| self.end.close(now)).flatten();
        let idle = self.end.phase() == Phase::Open && self.awaited.is_empty();
        let more = match (self.said < self.requests, self.ending) {
            _ if !idle => None,
            (true, _) => self.request(id, now),
            (false, Ending::Close) => self.end.close(now),
            (false, Ending::Reset) => Some(self.end.reset()),
            (false, Ending::Stay) => None,
        };
        Ok(more.or(over).or(brought.answer))
    }
}

/// The bytes of request or datagram `number` of a talk.
fn filler(id: u32, number: u32) -> Vec<u8> {
    let mixed = (id.wrapping_mul(2_654_435_761)).wrapping_add(number.wrapping_mul(40_503));
    let len = 1 + mixed as usize % DATA_MAX;
    (0..len)
        .map(|at| (mixed >> (at % 24)) as u8 ^ at as u8)
        .collect()
}
