//! One end of a toy TCP connection: handshake, data, retransmission, FIN and RST (RFC 9293, as far as a
//! load balancer could spoil it). One segment is on its way at a time; there is no window, no option and
//! no urgent data.

use std::collections::VecDeque;

use super::packet::TcpSegment;
use crate::lvs::TcpFlags;
use crate::time::{Duration, Instant};

const ACK: u8 = TcpFlags::ACK;
const FIN: u8 = TcpFlags::FIN;
const RST: u8 = TcpFlags::RST;
const SYN: u8 = TcpFlags::SYN;

/// Time until a segment is sent again; it doubles every time.
const AGAIN: Duration = Duration::from_millis(500);
/// How often a segment is sent before the end gives up: 31 seconds.
const TRIES_MAX: u32 = 6;

/// How far an end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Our SYN is on its way.
    Opening,
    /// Our SYN-ACK is on its way.
    Answering,
    /// Data may flow.
    Open,
    /// Both have closed, and know it.
    Closed,
    /// The other end reset it.
    Reset,
    /// The other end does not answer.
    Lost,
}

/// What a host wants to send.
#[derive(Clone, Debug)]
enum Piece {
    Data(Vec<u8>),
    Fin,
}

/// One end.
#[derive(Clone, Debug)]
pub struct TcpEnd {
    phase: Phase,
    /// Number of the next byte we send.
    next: u32,
    /// Number of the next byte we wait for.
    expected: u32,
    queue: VecDeque<Piece>,
    /// What we sent and nobody has acknowledged yet.
    unheard: Option<TcpSegment>,
    due: Option<Instant>,
    tries: u32,
    closing: bool,
    fin_heard: bool,
}

/// What a segment brought.
#[derive(Debug, Default)]
pub struct Brought {
    /// New bytes of the other end.
    pub data: Vec<u8>,
    /// It has nothing more to say.
    pub fin: bool,
    /// What to send now.
    pub answer: Option<TcpSegment>,
}

impl TcpEnd {
    /// A client's end and its SYN.
    pub fn open(first: u32, now: Instant) -> (TcpEnd, TcpSegment) {
        TcpEnd::begin(Phase::Opening, first, 0, SYN, now)
    }

    /// A server's end and its SYN-ACK, in answer to a SYN with number `heard`.
    pub fn answer(first: u32, heard: u32, now: Instant) -> (TcpEnd, TcpSegment) {
        TcpEnd::begin(
            Phase::Answering,
            first,
            heard.wrapping_add(1),
            SYN | ACK,
            now,
        )
    }

    fn begin(
        phase: Phase,
        first: u32,
        expected: u32,
        flags: u8,
        now: Instant,
    ) -> (TcpEnd, TcpSegment) {
        let segment = TcpSegment {
            flags,
            seq: first,
            ack: expected,
            data: Vec::new(),
        };
        let end = TcpEnd {
            phase,
            next: first.wrapping_add(1),
            expected,
            queue: VecDeque::new(),
            unheard: Some(segment.clone()),
            due: Some(now + AGAIN),
            tries: 1,
            closing: false,
            fin_heard: false,
        };
        (end, segment)
    }

    /// How far it has come.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Has it come to its end, one way or the other?
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Closed | Phase::Reset | Phase::Lost)
    }

    /// Was `close` called?
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// Is this segment the SYN that this end answered?
    pub fn is_my_syn(&self, segment: &TcpSegment) -> bool {
        segment.seq.wrapping_add(1) == self.expected
            && matches!(self.phase, Phase::Answering | Phase::Open)
    }

    /// When `handle_timeout` is due.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Sends bytes, now or when those before have arrived.
    pub fn send(&mut self, data: Vec<u8>, now: Instant) -> Option<TcpSegment> {
        if self.closing || self.is_over() {
            return None;
        }
        self.queue.push_back(Piece::Data(data));
        self.go_on(now)
    }

    /// Has nothing more to say.
    pub fn close(&mut self, now: Instant) -> Option<TcpSegment> {
        if self.closing || self.is_over() {
            return None;
        }
        self.closing = true;
        self.queue.push_back(Piece::Fin);
        self.go_on(now)
    }

    /// Breaks it off.
    pub fn reset(&mut self) -> TcpSegment {
        self.end(Phase::Reset);
        self.segment(RST | ACK, Vec::new())
    }

    /// The other end says something.
    pub fn handle(&mut self, segment: &TcpSegment, now: Instant) -> Brought {
        if segment.flags & RST != 0 {
            self.handle_reset(segment);
            return Brought::default();
        }
        if self.phase == Phase::Opening {
            return self.handle_opening(segment, now);
        }
        if segment.flags & SYN != 0 {
            let again = self.unheard.clone().filter(|sent| sent.flags & SYN != 0);
            let answer = again.unwrap_or_else(|| self.segment(ACK, Vec::new()));
            return Brought {
                answer: Some(answer),
                ..Brought::default()
            };
        }
        self.handle_ack(segment);
        let mut brought = self.take(segment);
        let owes = !segment.data.is_empty() || segment.flags & FIN != 0;
        let all_said = self.closing && self.queue.is_empty() && self.unheard.is_none();
        brought.answer = self.go_on(now);
        if brought.answer.is_none() && owes {
            brought.answer = Some(self.segment(ACK, Vec::new()));
        }
        if all_said && self.fin_heard {
            self.end(Phase::Closed);
        }
        brought
    }

    /// Time passed: sends again what was not heard, or gives up.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<TcpSegment> {
        self.due.filter(|due| *due <= now)?;
        if self.tries >= TRIES_MAX {
            self.end(Phase::Lost);
            return None;
        }
        self.due = Some(now + Duration::from_nanos(AGAIN.as_nanos() << self.tries));
        self.tries += 1;
        self.unheard.clone()
    }

    /// A reset counts only if its number is the one we wait for.
    fn handle_reset(&mut self, segment: &TcpSegment) {
        let fits = match self.phase {
            Phase::Opening => segment.ack == self.next,
            _ => segment.seq == self.expected,
        };
        if fits && !self.is_over() {
            self.end(Phase::Reset);
        }
    }

    fn handle_opening(&mut self, segment: &TcpSegment, now: Instant) -> Brought {
        let mut brought = Brought::default();
        if segment.flags & ACK != 0 && segment.ack != self.next {
            brought.answer = Some(TcpSegment {
                flags: RST,
                seq: segment.ack,
                ack: 0,
                data: Vec::new(),
            });
        } else if segment.flags & (SYN | ACK) == SYN | ACK {
            self.expected = segment.seq.wrapping_add(1);
            self.phase = Phase::Open;
            self.heard();
            let more = self.go_on(now);
            brought.answer = more.or_else(|| Some(self.segment(ACK, Vec::new())));
        }
        brought
    }

    fn handle_ack(&mut self, segment: &TcpSegment) {
        if segment.flags & ACK == 0 || segment.ack != self.next || self.unheard.is_none() {
            return;
        }
        self.heard();
        if self.phase == Phase::Answering {
            self.phase = Phase::Open;
        }
    }

    /// What we sent has arrived.
    fn heard(&mut self) {
        self.unheard = None;
        self.due = None;
        self.tries = 0;
    }

    fn take(&mut self, segment: &TcpSegment) -> Brought {
        let mut brought = Brought::default();
        if segment.seq != self.expected || self.fin_heard {
            return brought;
        }
        self.expected = self.expected.wrapping_add(segment.data.len() as u32);
        brought.data.clone_from(&segment.data);
        if segment.flags & FIN != 0 {
            self.expected = self.expected.wrapping_add(1);
            self.fin_heard = true;
            brought.fin = true;
        }
        brought
    }

    /// The next piece, if nothing is on its way.
    fn go_on(&mut self, now: Instant) -> Option<TcpSegment> {
        if self.unheard.is_some() || !matches!(self.phase, Phase::Open | Phase::Answering) {
            return None;
        }
        let (flags, data) = match self.queue.pop_front()? {
            Piece::Data(data) => (ACK | TcpFlags::PSH, data),
            Piece::Fin => (ACK | FIN, Vec::new()),
        };
        let occupied = data.len() as u32 + u32::from(flags & FIN != 0);
        let segment = self.segment(flags, data);
        self.next = self.next.wrapping_add(occupied);
        self.unheard = Some(segment.clone());
        self.due = Some(now + AGAIN);
        self.tries = 1;
        Some(segment)
    }

    fn segment(&self, flags: u8, data: Vec<u8>) -> TcpSegment {
        TcpSegment {
            flags,
            seq: self.next,
            ack: self.expected,
            data,
        }
    }

    fn end(&mut self, phase: Phase) {
        self.phase = phase;
        self.heard();
        self.queue.clear();
    }
}

/// The reset that answers a segment of no connection (RFC 9293 section 3.10.7.1).
pub fn refusal(segment: &TcpSegment) -> Option<TcpSegment> {
    if segment.flags & RST != 0 {
        return None;
    }
    let occupied = segment.data.len() as u32
        + u32::from(segment.flags & SYN != 0)
        + u32::from(segment.flags & FIN != 0);
    let (flags, seq, ack) = if segment.flags & ACK != 0 {
        (RST, segment.ack, 0)
    } else {
        (RST | ACK, 0, segment.seq.wrapping_add(occupied))
    };
    Some(TcpSegment {
        flags,
        seq,
        ack,
        data: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::ZERO;

    /// Lets both ends talk; every `lose`th segment is lost and comes again after a timeout.
    fn talk(client: &mut TcpEnd, server: &mut TcpEnd, first: TcpSegment, lose: usize) -> Vec<u8> {
        let (mut now, mut count, mut echoed) = (NOW, 0, Vec::new());
        let mut wire = VecDeque::from([(false, first)]);
        for _ in 0..200 {
            let Some((to_server, segment)) = wire.pop_front() else {
                now += Duration::from_secs(20);
                let client_again = client.handle_timeout(now).map(|segment| (true, segment));
                let server_again = server.handle_timeout(now).map(|segment| (false, segment));
                wire.extend(client_again.into_iter().chain(server_again));
                if wire.is_empty() {
                    break;
                }
                continue;
            };
            count += 1;
            if count % lose == 0 {
                continue;
            }
            let end = if to_server {
                &mut *server
            } else {
                &mut *client
            };
            let brought = end.handle(&segment, now);
            wire.extend(brought.answer.map(|answer| (!to_server, answer)));
            if to_server && !brought.data.is_empty() {
                wire.extend(server.send(brought.data, now).map(|echo| (false, echo)));
            } else {
                echoed.extend(brought.data);
            }
            if to_server && brought.fin {
                wire.extend(server.close(now).map(|fin| (false, fin)));
            }
        }
        echoed
    }

    #[test]
    fn a_connection_lives_and_ends_also_where_segments_are_lost() {
        for lose in [1000, 3, 4, 5, 7] {
            let (mut client, syn) = TcpEnd::open(1 << 16, NOW);
            let (mut server, synack) = TcpEnd::answer(900, syn.seq, NOW);
            assert!(client.send(b"one".to_vec(), NOW).is_none());
            assert!(client.send(b"two".to_vec(), NOW).is_none());
            assert!(client.close(NOW).is_none());
            let echoed = talk(&mut client, &mut server, synack, lose);
            assert_eq!(echoed, b"onetwo", "every {lose}th lost");
            assert_eq!(client.phase(), Phase::Closed, "every {lose}th lost");
        }
    }

    #[test]
    fn resets_and_silence_end_it() {
        let (mut client, syn) = TcpEnd::open(5, NOW);
        client.handle(&refusal(&syn).expect("a SYN is refused"), NOW);
        assert_eq!(client.phase(), Phase::Reset);
        let (mut client, _) = TcpEnd::open(5, NOW);
        let mut now = NOW;
        while client.due().is_some() {
            now += Duration::from_secs(60);
            client.handle_timeout(now);
        }
        assert_eq!(client.phase(), Phase::Lost);
        assert!(refusal(&client.reset()).is_none());
    }
}
