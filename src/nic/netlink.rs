//! A few netlink messages, written and read by hand: what quiet needs to talk to nf_tables and to
//! traffic control. Not a netlink library; links, addresses and routes are the daemon's business.
//! See netlink(7) and `include/uapi/linux/netlink.h`.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::sys::{self, check};

/// Bytes of `nlmsghdr`: length, kind, flags, sequence, port.
const HEADER_LEN: usize = 16;
/// Bytes of `nlattr`: length, kind.
const ATTRIBUTE_LEN: usize = 4;
/// The attribute of an error that holds words.
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel sends at most 32 KiB at once.
const REPLY_LEN_MAX: usize = 64 << 10;
/// The kernel answers within the call; this is only so that a bug cannot hang us.
const REPLY_WAIT_S: libc::time_t = 5;

/// What the kernel answered to a request that it did not grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The errno.
    pub errno: i32,
    /// The kernel's own words, if it had any.
    pub words: String,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.errno).fmt(f)?;
        match self.words.as_str() {
            "" => Ok(()),
            words => write!(f, " ({words})"),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Refused {
        Refused {
            errno: sys::errno(&error),
            words: String::new(),
        }
    }
}

/// A message under construction.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A request of this kind, with its fixed part.
    pub fn new(kind: u16, flags: i32, fixed: &[u8]) -> Message {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = (flags | libc::NLM_F_REQUEST) as u16;
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        let mut message = Message { bytes };
        message.pad();
        message
    }

    /// Adds an attribute.
    pub fn put(&mut self, kind: u16, value: &[u8]) -> &mut Message {
        self.attribute(kind, |message| message.bytes.extend_from_slice(value))
    }

    /// Adds text, with the zero byte behind it.
    pub fn text(&mut self, kind: u16, text: &str) -> &mut Message {
        self.attribute(kind, |message| {
            message.bytes.extend_from_slice(text.as_bytes());
            message.bytes.push(0);
        })
    }

    /// Adds a number in network order, as nf_tables wants it.
    pub fn number(&mut self, kind: u16, value: u32) -> &mut Message {
        self.put(kind, &value.to_be_bytes())
    }

    /// Adds a number in host order, as rtnetlink wants it.
    pub fn native(&mut self, kind: u16, value: u32) -> &mut Message {
        self.put(kind, &value.to_ne_bytes())
    }

    /// Adds bytes that are no attribute: a fixed part inside a nest.
    #[cfg(test)]
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Message {
        self.bytes.extend_from_slice(bytes);
        self.pad();
        self
    }

    /// Adds an attribute that holds what `fill` adds.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        self.attribute(kind | libc::NLA_F_NESTED as u16, fill)
    }

    fn attribute(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; ATTRIBUTE_LEN]);
        fill(self);
        let len = u16::try_from(self.bytes.len() - start)
            .expect("callers bound what they put into one attribute");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(&mut self, sequence: u32, flags: i32) -> &[u8] {
        let len = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&len.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags as u16;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// A netlink socket.
#[derive(Debug)]
pub(super) struct Netlink {
    fd: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Opens one of `NETLINK_ROUTE`, `NETLINK_NETFILTER`.
    pub fn open(protocol: i32) -> io::Result<Netlink> {
        let fd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, protocol)?;
        // Words with errors, without the request repeated. Old kernels lack it; then no words.
        let _ = sys::set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, &1);
        let _ = sys::set_option(&fd, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, &1);
        let wait = libc::timeval {
            tv_sec: REPLY_WAIT_S,
            tv_usec: 0,
        };
        sys::set_option(&fd, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &wait)?;
        Ok(Netlink { fd, sequence: 0 })
    }

    /// Sends one request and waits until it is done.
    pub fn request(&mut self, mut message: Message) -> Result<(), Refused> {
        self.sequence += 1;
        let sequence = self.sequence;
        self.send(message.finish(sequence, libc::NLM_F_ACK))?;
        self.until_done(sequence, &mut |_, _| {})
    }

    /// Sends requests between the two marks of a batch, as one datagram, and waits until all are
    /// done. nf_tables takes a batch whole or not at all. The last request speaks for all: a mark
    /// gives no answer, and whoever fails answers anyhow.
    pub fn batch(
        &mut self,
        mut begin: Message,
        requests: Vec<Message>,
        mut end: Message,
    ) -> Result<(), Refused> {
        let first = self.sequence + 1;
        let last = first + requests.len() as u32;
        let mut bytes = begin.finish(first, 0).to_vec();
        for (mut request, number) in requests.into_iter().zip(first + 1..) {
            let flags = if number == last { libc::NLM_F_ACK } else { 0 };
            bytes.extend_from_slice(request.finish(number, flags));
        }
        bytes.extend_from_slice(end.finish(last + 1, 0));
        self.sequence = last + 1;
        self.send(&bytes)?;
        self.until_done(first, &mut |_, _| {})
    }

    /// Asks for all of something; `each` sees the kind of each answer and what follows its header.
    pub fn dump(
        &mut self,
        mut message: Message,
        each: &mut dyn FnMut(u16, &[u8]),
    ) -> Result<(), Refused> {
        self.sequence += 1;
        let sequence = self.sequence;
        let bytes = message.finish(sequence, libc::NLM_F_DUMP).to_vec();
        self.send(&bytes)?;
        self.until_done(sequence, each)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let fd = self.fd.as_raw_fd();
        // SAFETY: the kernel reads `bytes.len()` bytes during the call.
        let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) };
        check(sent as i32).map(|_| ())
    }

    /// Reads answers to requests numbered `first` and later until the kernel says that it is done.
    fn until_done(&self, first: u32, each: &mut dyn FnMut(u16, &[u8])) -> Result<(), Refused> {
        let mut buffer = vec![0; REPLY_LEN_MAX];
        loop {
            let fd = self.fd.as_raw_fd();
            // SAFETY: the kernel writes at most `buffer.len()` bytes into `buffer`.
            let came = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
            let came = check(came as i32)? as usize;
            for reply in Replies(&buffer[..came]) {
                // An answer to an earlier request, which has failed already.
                if reply.sequence < first {
                    continue;
                }
                match i32::from(reply.kind) {
                    libc::NLMSG_ERROR => return verdict(reply.payload),
                    libc::NLMSG_DONE => return Ok(()),
                    libc::NLMSG_NOOP => {}
                    _ => each(reply.kind, reply.payload),
                }
            }
        }
    }
}

/// `nlmsgerr`: the errno, negative, or 0; the request's header; then words.
fn verdict(payload: &[u8]) -> Result<(), Refused> {
    let errno = payload
        .first_chunk()
        .map_or(-libc::EIO, |bytes| i32::from_ne_bytes(*bytes));
    if errno == 0 {
        return Ok(());
    }
    let rest = payload.get(4 + HEADER_LEN..).unwrap_or_default();
    let words = attributes(rest).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG);
    Err(Refused {
        errno: -errno,
        words: words.map_or_else(String::new, |(_, value)| text_of(value)),
    })
}

/// Text up to its zero byte.
pub(super) fn text_of(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&value[..end.unwrap_or(value.len())]).into_owned()
}

struct Reply<'a> {
    kind: u16,
    sequence: u32,
    payload: &'a [u8],
}

/// The messages in one datagram; stops at the first that does not fit.
struct Replies<'a>(&'a [u8]);

impl<'a> Iterator for Replies<'a> {
    type Item = Reply<'a>;
    fn next(&mut self) -> Option<Reply<'a>> {
        let bytes = self.0;
        let len = u32::from_ne_bytes(*bytes.first_chunk()?) as usize;
        let message = bytes.get(..len).filter(|_| len >= HEADER_LEN)?;
        self.0 = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(Reply {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            sequence: u32::from_ne_bytes([message[8], message[9], message[10], message[11]]),
            payload: &message[HEADER_LEN..],
        })
    }
}

/// The attributes in `bytes`, by kind; stops at the first that does not fit.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head: [u8; ATTRIBUTE_LEN] = *bytes.first_chunk()?;
        let len = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let value = bytes.get(ATTRIBUTE_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([head[2], head[3]]) & libc::NLA_TYPE_MASK as u16;
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read() {
        let mut message = Message::new(7, 0, &[1, 2, 3, 4]);
        message.text(1, "eth0").nest(2, |inner| {
            inner.number(3, 5);
        });
        let bytes = message.finish(9, libc::NLM_F_ACK).to_vec();
        let reply = Replies(&bytes).next().unwrap();
        assert_eq!((reply.kind, reply.sequence), (7, 9));
        let found: Vec<_> = attributes(&reply.payload[4..]).collect();
        assert_eq!(text_of(found[0].1), "eth0");
        let inner: Vec<_> = attributes(found[1].1).collect();
        assert_eq!(inner, [(3, [0, 0, 0, 5].as_slice())]);
    }

    #[test]
    fn garbage_ends_the_reading() {
        for len in 0..64 {
            for fill in [0u8, 1, 15, 17, 255] {
                let bytes = vec![fill; len];
                assert!(attributes(&bytes).count() <= len);
                assert!(Replies(&bytes).count() <= len);
            }
        }
        assert_eq!(verdict(&[]).unwrap_err().errno, libc::EIO);
    }
}
