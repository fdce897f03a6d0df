//! Netlink messages as bytes: read with every length checked, written with every length filled in.
//! See netlink(7); `include/uapi/linux/netlink.h` and `genetlink.h` for the numbers.

/// The answer to a request: an errno, and the request itself.
pub const NLMSG_ERROR: u16 = 2;
/// The end of an answer in several messages.
pub const NLMSG_DONE: u16 = 3;
/// A message that says nothing.
pub const NLMSG_NOOP: u16 = 1;
/// It asks for something.
pub const NLM_F_REQUEST: u16 = 0x1;
/// One of several messages of one answer.
pub const NLM_F_MULTI: u16 = 0x2;
/// The asker wants to hear that it was done.
pub const NLM_F_ACK: u16 = 0x4;
/// All there are.
pub const NLM_F_DUMP: u16 = 0x300;

/// Bytes of a netlink header.
pub const HEADER_BYTES: usize = 16;
/// Bytes of a generic netlink header.
const GENERIC_BYTES: usize = 4;
/// Bits of an attribute's type that are not its number.
const ATTRIBUTE_FLAGS: u16 = 0xc000;
/// The attribute holds attributes.
const NESTED: u16 = 0x8000;

/// Most nested attributes open at a time: the IPVS family has three floors.
const DEPTH_MAX: usize = 4;

/// One message as it came.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The whole, header included, without padding.
    pub bytes: &'a [u8],
    /// Which kind: a number below 16, or that of a family.
    pub kind: u16,
    /// `NLM_F_…`
    pub flags: u16,
    /// The asker's number for it.
    pub sequence: u32,
    /// The asker's socket, if it has written it there.
    pub port: u32,
}

/// Splits what one call sends into its messages; `None` if the lengths do not fit.
pub fn split(mut bytes: &[u8]) -> Option<Vec<Message<'_>>> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let message = Message::first(bytes)?;
        let next = align(message.bytes.len()).min(bytes.len());
        bytes = &bytes[next..];
        messages.push(message);
    }
    Some(messages)
}

impl<'a> Message<'a> {
    /// The message at the beginning of `bytes`.
    pub fn first(bytes: &'a [u8]) -> Option<Message<'a>> {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        if length < HEADER_BYTES {
            return None;
        }
        Some(Message {
            bytes: bytes.get(..length)?,
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            port: u32_at(bytes, 12)?,
        })
    }

    /// What it carries.
    pub fn payload(&self) -> &'a [u8] {
        &self.bytes[HEADER_BYTES..]
    }

    /// Of a generic one: its command and its attributes.
    pub fn generic(&self) -> Option<(u8, Attributes<'a>)> {
        let payload = self.payload();
        let attributes = payload.get(GENERIC_BYTES..)?;
        Some((payload[0], Attributes(attributes)))
    }

    /// Are all of the flag's bits set?
    pub const fn has(&self, flag: u16) -> bool {
        self.flags & flag == flag
    }
}

/// Attributes, one behind the other. What is too short to be one ends them, as in the kernel.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a>(pub &'a [u8]);

impl<'a> Attributes<'a> {
    /// The value of the last attribute of this number.
    pub fn get(&self, number: u16) -> Option<&'a [u8]> {
        let mut found = None;
        let mut rest = self.0;
        while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
            let length = usize::from(length);
            let Some(value) = rest.get(4..length) else {
                break;
            };
            if kind & !ATTRIBUTE_FLAGS == number {
                found = Some(value);
            }
            rest = rest.get(align(length)..).unwrap_or_default();
        }
        found
    }

    /// The attributes inside one.
    pub fn nested(&self, number: u16) -> Option<Attributes<'a>> {
        self.get(number).map(Attributes)
    }

    /// A byte.
    pub fn byte(&self, number: u16) -> Option<u8> {
        self.get(number)?.first().copied()
    }

    /// Two bytes in the machine's order.
    pub fn short(&self, number: u16) -> Option<u16> {
        u16_at(self.get(number)?, 0)
    }

    /// Two bytes in the network's order.
    pub fn port(&self, number: u16) -> Option<u16> {
        self.short(number).map(u16::from_be)
    }

    /// Four bytes in the machine's order.
    pub fn word(&self, number: u16) -> Option<u32> {
        u32_at(self.get(number)?, 0)
    }

    /// Text up to its zero byte.
    pub fn text(&self, number: u16) -> Option<String> {
        let bytes = self.get(number)?;
        let end = bytes.iter().position(|byte| *byte == 0);
        let text = &bytes[..end.unwrap_or(bytes.len())];
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// A message that is being written.
#[derive(Debug)]
pub struct Draft {
    bytes: Vec<u8>,
    /// Where the attributes begin that are not closed yet.
    open: Vec<usize>,
}

impl Draft {
    /// A message of this kind with nothing in it.
    pub fn new(kind: u16, flags: u16, sequence: u32, port: u32) -> Draft {
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend(port.to_ne_bytes());
        Draft {
            bytes,
            open: Vec::with_capacity(DEPTH_MAX),
        }
    }

    /// A generic one.
    pub fn generic(kind: u16, flags: u16, sequence: u32, command: u8) -> Draft {
        let mut draft = Draft::new(kind, flags, sequence, 0);
        // The family's version, and two bytes that are kept free.
        draft.bytes.extend([command, 1, 0, 0]);
        draft
    }

    /// Bytes that are no attribute.
    pub fn raw(mut self, bytes: &[u8]) -> Draft {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// An attribute.
    pub fn put(&mut self, number: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("our values are short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(number.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(align(self.bytes.len()), 0);
    }

    /// An attribute of one byte.
    pub fn byte(&mut self, number: u16, value: u8) {
        self.put(number, &[value]);
    }

    /// Of two bytes in the machine's order.
    pub fn short(&mut self, number: u16, value: u16) {
        self.put(number, &value.to_ne_bytes());
    }

    /// Of two bytes in the network's order.
    pub fn port(&mut self, number: u16, value: u16) {
        self.put(number, &value.to_be_bytes());
    }

    /// Of four bytes.
    pub fn word(&mut self, number: u16, value: u32) {
        self.put(number, &value.to_ne_bytes());
    }

    /// Of eight bytes.
    pub fn long(&mut self, number: u16, value: u64) {
        self.put(number, &value.to_ne_bytes());
    }

    /// Text with its zero byte.
    pub fn text(&mut self, number: u16, text: &str) {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(number, &bytes);
    }

    /// Begins an attribute that holds attributes, until `end`.
    pub fn begin(&mut self, number: u16) {
        self.open.push(self.bytes.len());
        self.put(number | NESTED, &[]);
    }

    /// Closes what was begun last.
    pub fn end(&mut self) {
        let at = self.open.pop().expect("every end has its begin");
        let length = u16::try_from(self.bytes.len() - at).expect("our values are short");
        self.bytes[at..at + 2].copy_from_slice(&length.to_ne_bytes());
    }

    /// The whole message, padded.
    pub fn finish(mut self) -> Vec<u8> {
        let length = u32::try_from(self.bytes.len()).expect("our messages are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(align(self.bytes.len()), 0);
        self.bytes
    }
}

/// Says what became of a request: 0, or an errno.
pub fn error(request: &Message, errno: i32) -> Vec<u8> {
    let draft = Draft::new(NLMSG_ERROR, 0, request.sequence, request.port);
    // Of what was done only the header is repeated, as the kernel does it.
    let repeated = match errno {
        0 => &request.bytes[..HEADER_BYTES],
        _ => request.bytes,
    };
    draft.raw(&(-errno).to_ne_bytes()).raw(repeated).finish()
}

/// Writes into all messages of a datagram to which socket they go.
pub fn address_to(datagram: &mut [u8], port: u32) {
    let mut at = 0;
    while let Some(length) = u32_at(&datagram[at..], 0) {
        if let Some(place) = datagram.get_mut(at + 12..at + 16) {
            place.copy_from_slice(&port.to_ne_bytes());
        }
        at += align((length as usize).max(HEADER_BYTES));
        if at >= datagram.len() {
            break;
        }
    }
}

const fn align(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let two = bytes.get(at..at + 2)?;
    Some(u16::from_ne_bytes([two[0], two[1]]))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes([four[0], four[1], four[2], four[3]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut draft = Draft::generic(20, NLM_F_REQUEST, 7, 4);
        draft.begin(1);
        draft.short(1, 2);
        draft.text(6, "wlc");
        draft.end();
        draft.port(4, 80);
        let bytes = draft.finish();
        let both = [bytes.clone(), bytes].concat();
        let messages = split(&both).unwrap();
        assert_eq!(messages.len(), 2);
        let (command, attributes) = messages[1].generic().unwrap();
        assert_eq!((command, messages[1].sequence), (4, 7));
        let inner = attributes.nested(1).unwrap();
        assert_eq!(inner.short(1), Some(2));
        assert_eq!(inner.text(6).as_deref(), Some("wlc"));
        assert_eq!(
            (inner.word(6), inner.word(1)),
            (Some(u32::from_ne_bytes(*b"wlc\0")), None)
        );
        assert_eq!(attributes.port(4), Some(80));
    }

    #[test]
    fn lengths_that_do_not_fit_are_no_messages() {
        let good = Draft::new(20, 0, 0, 0).finish();
        for cut in 0..good.len() {
            assert_eq!(split(&good[..cut]).is_some(), cut == 0);
        }
        let mut long = good.clone();
        long[0] = 17;
        assert!(split(&long).is_none());
        long[0] = 3;
        assert!(split(&long).is_none());
        // An attribute that is longer than its message, and one shorter than its header.
        for length in [9, 3, 0] {
            assert_eq!(Attributes(&[length, 0, 1, 0, 1, 2, 3, 4]).get(1), None);
        }
    }

    #[test]
    fn every_message_of_a_datagram_is_addressed() {
        let one = Draft::new(20, 0, 1, 0).raw(&[1, 2, 3, 4]).finish();
        let mut both = [one.clone(), one].concat();
        address_to(&mut both, 99);
        let messages = split(&both).unwrap();
        assert!(messages.iter().all(|message| message.port == 99));
        assert_eq!(messages[1].payload(), [1, 2, 3, 4]);
        address_to(&mut [], 99);
        address_to(&mut [0; 7], 99);
    }
}
