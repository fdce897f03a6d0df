//! Finds our messages in what a program sends by netlink, and puts the answers into what it receives.
//!
//! The socket stays the kernel's. For every datagram that we have an answer in, the kernel is asked to
//! acknowledge a message that says nothing: its acknowledgement stands in the socket's queue where our
//! answer belongs. So poll and epoll wake up, a blocking read blocks, and the order is kept, all by
//! the kernel itself. Who reads the acknowledgement is given the answer instead.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::family::{self, Ask, CONTROL, FAMILY};
use crate::message::{self, Draft, Message, NLM_F_ACK, NLM_F_REQUEST, NLMSG_ERROR, NLMSG_NOOP};

/// What our messages that say nothing have for a sender: "ulvs".
const MARK: u32 = 0x756c_7673;
/// Bytes of their acknowledgement.
pub const PLACE_BYTES: usize = 36;
/// Answers that are kept for who does not read them; the oldest goes first.
const ANSWERS_MAX: usize = 256;
/// Longest message that is looked at; the kernel takes no longer one by default (`SO_SNDBUF`).
pub const SENT_BYTES_MAX: usize = 256 * 1024;

/// What waits to be read, by the number of its place.
static ANSWERS: Mutex<Answers> = Mutex::new(Answers::new());
/// How many wait, for those who only want to know that none does.
static COUNT: AtomicUsize = AtomicUsize::new(0);

struct Answers {
    next: u32,
    waiting: BTreeMap<u32, Waiting>,
}

/// The rest of an answer, of which the first datagram is read next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The socket.
    pub fd: i32,
    /// At least one.
    pub datagrams: VecDeque<Vec<u8>>,
}

impl Answers {
    const fn new() -> Answers {
        Answers {
            next: 0,
            waiting: BTreeMap::new(),
        }
    }

    fn counted(&self) {
        COUNT.store(self.waiting.len(), Relaxed);
    }
}

fn answers() -> MutexGuard<'static, Answers> {
    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// May anything be waiting?
pub fn any() -> bool {
    COUNT.load(Relaxed) > 0
}

/// Keeps an answer, and gives the message that makes its place in the socket's queue.
pub fn keep(waiting: Waiting) -> Vec<u8> {
    let mut answers = answers();
    let number = answers.next;
    answers.next = number.wrapping_add(1);
    answers.waiting.insert(number, waiting);
    if answers.waiting.len() > ANSWERS_MAX {
        answers.waiting.pop_first();
    }
    answers.counted();
    Draft::new(NLMSG_NOOP, NLM_F_REQUEST | NLM_F_ACK, number, MARK).finish()
}

/// The answer whose place this is, without taking it.
pub fn look(number: u32) -> Option<Vec<u8>> {
    let answers = answers();
    answers.waiting.get(&number)?.datagrams.front().cloned()
}

/// Takes the answer whose place this is; the datagrams behind the first are to be kept again.
pub fn take(number: u32) -> Option<(Vec<u8>, Option<Waiting>)> {
    let mut answers = answers();
    let mut waiting = answers.waiting.remove(&number)?;
    answers.counted();
    drop(answers);
    let first = waiting.datagrams.pop_front()?;
    let rest = (!waiting.datagrams.is_empty()).then_some(waiting);
    Some((first, rest))
}

/// Nobody will read what waits for this socket.
pub fn forget(fd: i32) {
    let mut answers = answers();
    answers.waiting.retain(|_, waiting| waiting.fd != fd);
    answers.counted();
}

/// Is this received datagram the place of an answer? Its number, and the port of the socket.
pub fn place(datagram: &[u8]) -> Option<(u32, u32)> {
    if datagram.len() != PLACE_BYTES {
        return None;
    }
    let error = Message::first(datagram).filter(|error| error.kind == NLMSG_ERROR)?;
    let said = Message::first(error.payload().get(4..)?)?;
    let ours = said.kind == NLMSG_NOOP && said.port == MARK;
    ours.then_some((said.sequence, error.port))
}

/// Can there be a message of ours in what begins with this? A look at a few bytes, for all that
/// programs send.
pub fn may_be_ours(beginning: &[u8]) -> bool {
    let kind = beginning
        .get(4..6)
        .map(|two| u16::from_ne_bytes([two[0], two[1]]));
    kind == Some(CONTROL) || kind == Some(FAMILY)
}

/// One message of a call: answered, or for the kernel.
#[derive(Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// The datagrams of the answer; none if nobody waits for one.
    Answered(Vec<Vec<u8>>),
    /// The bytes to be sent on.
    Kernels(&'a [u8]),
}

/// Answers what is ours of a call's messages; `None` if nothing is.
pub fn answer<'a>(sent: &'a [u8], ask: &mut Ask) -> Option<Vec<Part<'a>>> {
    let messages = message::split(sent)?;
    if !messages.iter().any(family::is_ours) {
        return None;
    }
    let part = |message: &Message<'a>| match family::is_ours(message) {
        true => Part::Answered(family::answer(message, ask)),
        false => Part::Kernels(message.bytes),
    };
    Some(messages.iter().map(part).collect())
}
