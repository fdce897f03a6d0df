//! Captures: read a pcap or pcapng file packet by packet, or as if it were a wire (`PcapRx`); write a
//! pcapng file with a comment per packet. Bytes out of a file may be anything: they give an error
//! that says which packet, never a panic. See draft-ietf-opsawg-pcapng for the format.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use pcap_file::pcap::PcapParser;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgParser, PcapNgWriter};
use pcap_file::{DataLink, PcapError, TsResolution};

use super::BATCH_FRAMES_MAX;
use super::packet_mmsg::{HEAD_ROOM, view_of};
use crate::time::Instant;
use crate::wire::{Frame, FrameMeta, FrameView, NicCounters, NicError, Rx};

/// A comment longer than this is cut: an option of a block holds 64 KiB.
const COMMENT_LEN_MAX: usize = 60_000;

/// What is wrong with a capture, or with reading or writing it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureError {
    message: String,
}

impl CaptureError {
    fn new(message: impl Into<String>) -> CaptureError {
        CaptureError {
            message: message.into(),
        }
    }
}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for CaptureError {}

/// A packet of a capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// When it was captured: nanoseconds since 1970.
    pub time: Instant,
    /// Number of the interface in the file, from 0.
    pub interface: usize,
    /// No Ethernet header: it begins with IP.
    pub raw_ip: bool,
    /// How long it was; `bytes` holds fewer where the capture cut it.
    pub original_len: usize,
    /// The packet.
    pub bytes: Vec<u8>,
}

/// Reads a capture packet by packet.
pub struct CaptureReader<R: Read> {
    window: Window<R>,
    format: Format,
    /// Packets read so far, for messages.
    number: u64,
    is_over: bool,
}

enum Format {
    Pcap(PcapParser),
    PcapNg(PcapNgParser),
}

impl CaptureReader<File> {
    /// Opens a capture file.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture.
    pub fn open(path: &Path) -> Result<CaptureReader<File>, CaptureError> {
        let failed = |error| CaptureError::new(format!("cannot open {}: {error}", path.display()));
        CaptureReader::new(File::open(path).map_err(failed)?)
            .map_err(|error| CaptureError::new(format!("{}: {error}", path.display())))
    }
}

impl<R: Read> CaptureReader<R> {
    /// Reads a capture out of `reader`, which need not be buffered.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture.
    pub fn new(reader: R) -> Result<CaptureReader<R>, CaptureError> {
        let mut window = Window::new(reader);
        let magic = window
            .parse(|bytes| match bytes.first_chunk::<4>() {
                Some(magic) => Ok((bytes, *magic)),
                None => Err(PcapError::IncompleteBuffer),
            })
            .map_err(|_| CaptureError::new("it is too short to be a capture"))?;
        let explain = |error: PcapError| CaptureError::new(explained(&error));
        let format = match magic {
            [0x0a, 0x0d, 0x0d, 0x0a] => window.parse(PcapNgParser::new).map(Format::PcapNg),
            // Microseconds and nanoseconds, in both byte orders.
            [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0x4d, 0x3c, 0xb2, 0xa1] => window.parse(PcapParser::new).map(Format::Pcap),
            [0x1f, 0x8b, ..] => {
                return Err(CaptureError::new(
                    "it is compressed: unpack it first (gunzip)",
                ));
            }
            _ => return Err(CaptureError::new("it is neither pcap nor pcapng")),
        };
        Ok(CaptureReader {
            window,
            format: format.map_err(explain)?,
            number: 0,
            is_over: false,
        })
    }

    /// The next packet; `None` at the end. After an error there is no next packet.
    ///
    /// # Errors
    /// When the file is cut off, garbled, or of a kind of link that we do not read: which packet, and
    /// the byte of the file at which it begins.
    pub fn next_packet(&mut self) -> Result<Option<Captured>, CaptureError> {
        if self.is_over {
            return Ok(None);
        }
        let window = &mut self.window;
        let next = match &mut self.format {
            Format::Pcap(parser) => next_of_pcap(parser, window),
            Format::PcapNg(parser) => next_of_pcapng(parser, window),
        };
        self.number += 1;
        self.is_over = !matches!(next, Ok(Some(_)));
        next.map_err(|words| {
            let (number, at) = (self.number, self.window.last);
            CaptureError::new(format!("packet {number}, at byte {at}: {words}"))
        })
    }

    /// The name of an interface in the file, if it tells one (pcapng).
    pub fn interface_name(&self, interface: usize) -> Option<&str> {
        let Format::PcapNg(parser) = &self.format else {
            return None;
        };
        let mut options = parser.interfaces().get(interface)?.options.iter();
        options.find_map(|option| match option {
            InterfaceDescriptionOption::IfName(name) => Some(name.as_ref()),
            _ => None,
        })
    }
}

impl<R: Read> fmt::Debug for CaptureReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("CaptureReader");
        shown.field("number", &self.number).finish_non_exhaustive()
    }
}

/// The part of a file that is being read, and where in the file that is.
struct Window<R: Read> {
    reader: R,
    bytes: Vec<u8>,
    /// What of `bytes` is done with.
    done: usize,
    /// Offset in the file of what is not done with.
    offset: u64,
    /// Offset of what was parsed last, or could not be.
    last: u64,
}

/// Bytes read at once.
const READ_LEN: usize = 64 << 10;
/// A block longer than this is garbled: the longest packet has 256 KiB.
const BLOCK_LEN_MAX: usize = 16 << 20;

impl<R: Read> Window<R> {
    fn new(reader: R) -> Window<R> {
        Window {
            reader,
            bytes: Vec::new(),
            done: 0,
            offset: 0,
            last: 0,
        }
    }

    /// Reads on; says if there was something to read.
    fn read_on(&mut self) -> io::Result<bool> {
        self.bytes.drain(..self.done);
        self.done = 0;
        let len = self.bytes.len();
        self.bytes.resize(len + READ_LEN, 0);
        let read = loop {
            match self.reader.read(&mut self.bytes[len..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        let more = *read.as_ref().unwrap_or(&0);
        self.bytes.truncate(len + more);
        read.map(|more| more > 0)
    }

    /// Is the file at its end?
    fn is_over(&mut self) -> io::Result<bool> {
        Ok(self.done == self.bytes.len() && !self.read_on()?)
    }

    /// Parses what comes next; `parse` gives back the rest of what it got.
    fn parse<T>(
        &mut self,
        mut parse: impl FnMut(&[u8]) -> Result<(&[u8], T), PcapError>,
    ) -> Result<T, PcapError> {
        self.last = self.offset;
        loop {
            let bytes = &self.bytes[self.done..];
            match parse(bytes) {
                Ok((rest, value)) => {
                    let len = bytes.len() - rest.len();
                    self.done += len;
                    self.offset += len as u64;
                    return Ok(value);
                }
                Err(PcapError::IncompleteBuffer) if bytes.len() > BLOCK_LEN_MAX => {
                    return Err(PcapError::InvalidField("its length lies"));
                }
                Err(PcapError::IncompleteBuffer) => {
                    if !self.read_on().map_err(PcapError::IoError)? {
                        return Err(PcapError::IncompleteBuffer);
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

fn next_of_pcap<R: Read>(
    parser: &PcapParser,
    window: &mut Window<R>,
) -> Result<Option<Captured>, String> {
    let header = parser.header();
    if window.is_over().map_err(|error| unreadable(&error))? {
        return Ok(None);
    }
    // Raw: the crate's own checks refuse packets that a capture has cut.
    let packet = window.parse(|bytes| {
        let (rest, packet) = parser.next_raw_packet(bytes)?;
        Ok((rest, packet.into_owned()))
    });
    let packet = packet.map_err(|error| explained(&error))?;
    let nanos_per_unit = match header.ts_resolution {
        TsResolution::MicroSecond => 1000,
        TsResolution::NanoSecond => 1,
    };
    let nanos = u64::from(packet.ts_frac) * nanos_per_unit;
    Ok(Some(Captured {
        time: Instant::from_nanos(u64::from(packet.ts_sec) * NANOS_PER_S + nanos),
        interface: 0,
        raw_ip: is_raw_ip(header.datalink)?,
        original_len: packet.orig_len as usize,
        bytes: packet.data.into_owned(),
    }))
}

fn next_of_pcapng<R: Read>(
    parser: &mut PcapNgParser,
    window: &mut Window<R>,
) -> Result<Option<Captured>, String> {
    loop {
        if window.is_over().map_err(|error| unreadable(&error))? {
            return Ok(None);
        }
        let block = window.parse(|bytes| {
            let (rest, block) = parser.next_block(bytes)?;
            Ok((rest, block.into_owned()))
        });
        let (interface, units, original_len, bytes) =
            match block.map_err(|error| explained(&error))? {
                Block::EnhancedPacket(packet) => (
                    packet.interface_id as usize,
                    // The crate takes units of the interface for nanoseconds.
                    packet.timestamp.as_nanos() as u64,
                    packet.original_len,
                    packet.data.into_owned(),
                ),
                Block::Packet(packet) => (
                    usize::from(packet.interface_id),
                    packet.timestamp,
                    packet.original_len,
                    packet.data.into_owned(),
                ),
                // It has no time and may have padding behind it.
                Block::SimplePacket(packet) => {
                    let mut bytes = packet.data.into_owned();
                    bytes.truncate(packet.original_len as usize);
                    (0, 0, packet.original_len, bytes)
                }
                _ => continue,
            };
        let described = parser.interfaces().get(interface);
        let described = described
            .ok_or_else(|| format!("it is of interface {interface}, which is not described"))?;
        return Ok(Some(Captured {
            time: instant_of(units, &described.options),
            interface,
            raw_ip: is_raw_ip(described.linktype)?,
            original_len: original_len as usize,
            bytes,
        }));
    }
}

const NANOS_PER_S: u64 = 1_000_000_000;

/// A time in the interface's units: microseconds, if it does not say otherwise (`if_tsresol`).
fn instant_of(units: u64, options: &[InterfaceDescriptionOption<'_>]) -> Instant {
    let mut options = options.iter();
    let resolution = options.find_map(|option| match option {
        InterfaceDescriptionOption::IfTsResol(resolution) => Some(*resolution),
        _ => None,
    });
    let resolution = resolution.unwrap_or(6);
    let exponent = u32::from(resolution & 0x7f);
    // The highest bit tells powers of two from powers of ten.
    let per_s = if resolution & 0x80 != 0 {
        2u128.checked_pow(exponent)
    } else {
        10u128.checked_pow(exponent)
    };
    let nanos = u128::from(units) * u128::from(NANOS_PER_S) / per_s.unwrap_or(u128::MAX);
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

fn is_raw_ip(link: DataLink) -> Result<bool, String> {
    match link {
        DataLink::ETHERNET => Ok(false),
        DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => Ok(true),
        DataLink::LINUX_SLL | DataLink::LINUX_SLL2 => Err(
            "it was captured on all interfaces together, which hides the Ethernet header: \
             capture on one of them (tcpdump -i eth0)"
                .to_string(),
        ),
        other => Err(format!(
            "its link is of a kind that we do not read ({other:?}): only Ethernet and raw IP"
        )),
    }
}

fn unreadable(error: &io::Error) -> String {
    format!("it cannot be read: {error}")
}

/// The crate's errors in words.
fn explained(error: &PcapError) -> String {
    match error {
        PcapError::IoError(error) => unreadable(error),
        PcapError::IncompleteBuffer => "the file ends in the middle of it".to_string(),
        PcapError::InvalidField(field) => format!("it is garbled: {field}"),
        PcapError::Utf8Error(_) | PcapError::FromUtf8Error(_) => {
            "it is garbled: a text is not UTF-8".to_string()
        }
        PcapError::InvalidInterfaceId(id) => {
            format!("it is of interface {id}, which is not described")
        }
    }
}

/// A capture as if it were a wire: its packets arrive as fast as they are taken.
#[derive(Debug)]
pub struct PcapRx<R: Read> {
    reader: CaptureReader<R>,
    frames: Vec<(Vec<u8>, FrameMeta, Instant)>,
    error: Option<CaptureError>,
    counters: NicCounters,
}

impl<R: Read> PcapRx<R> {
    /// Takes the packets of `reader`.
    pub fn new(reader: CaptureReader<R>) -> PcapRx<R> {
        PcapRx {
            reader,
            frames: Vec::with_capacity(BATCH_FRAMES_MAX),
            error: None,
            counters: NicCounters::default(),
        }
    }

    /// When frame `index` of the batch was captured.
    pub fn time(&self, index: usize) -> Instant {
        self.frames[index].2
    }

    /// Why the capture ended, if it did not end in order. `fill` then says EIO.
    pub fn error(&self) -> Option<&CaptureError> {
        self.error.as_ref()
    }

    fn push(&mut self, packet: Captured) {
        let end = HEAD_ROOM + packet.bytes.len();
        let mut buffer = vec![0; end + HEAD_ROOM];
        buffer[HEAD_ROOM..end].copy_from_slice(&packet.bytes);
        let meta = FrameMeta {
            start: HEAD_ROOM as u32,
            end: end as u32,
            raw_ip: packet.raw_ip,
            ..FrameMeta::default()
        };
        self.counters.received += 1;
        self.counters.truncated += u64::from(packet.bytes.len() < packet.original_len);
        self.frames.push((buffer, meta, packet.time));
    }
}

impl<R: Read + Send> Rx for PcapRx<R> {
    fn fill(&mut self) -> Result<usize, NicError> {
        debug_assert!(self.frames.is_empty(), "the batch before was not released");
        while self.frames.len() < BATCH_FRAMES_MAX && self.error.is_none() {
            match self.reader.next_packet() {
                Ok(Some(packet)) => self.push(packet),
                Ok(None) => break,
                Err(error) => self.error = Some(error),
            }
        }
        match &self.error {
            Some(_) if self.frames.is_empty() => Err(NicError::Errno(libc::EIO)),
            _ => Ok(self.frames.len()),
        }
    }

    fn frame(&mut self, index: usize) -> Frame<'_> {
        let (buffer, meta, _) = &mut self.frames[index];
        Frame { buffer, meta }
    }

    fn view(&self, index: usize) -> FrameView<'_> {
        let (buffer, meta, _) = &self.frames[index];
        view_of(buffer, meta)
    }

    fn release(&mut self) {
        self.frames.clear();
    }

    fn wait_fd(&self) -> Option<i32> {
        None
    }

    fn counters(&mut self) -> NicCounters {
        self.counters
    }
}

/// An interface of a capture to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureInterface {
    /// Its name.
    pub name: String,
    /// Packets begin with IP.
    pub raw_ip: bool,
}

/// Writes a pcapng file, nanoseconds and all.
pub struct CaptureWriter<W: Write> {
    writer: PcapNgWriter<W>,
}

impl<W: Write> CaptureWriter<W> {
    /// Begins a file with packets of these interfaces.
    ///
    /// # Errors
    /// When `writer` fails.
    pub fn new(
        writer: W,
        interfaces: &[CaptureInterface],
    ) -> Result<CaptureWriter<W>, CaptureError> {
        let mut writer = PcapNgWriter::new(writer).map_err(|error| unwritten(&error))?;
        for interface in interfaces {
            let raw_ip = interface.raw_ip;
            let block = InterfaceDescriptionBlock {
                linktype: if raw_ip {
                    DataLink::RAW
                } else {
                    DataLink::ETHERNET
                },
                snaplen: 0,
                options: vec![
                    InterfaceDescriptionOption::IfName(Cow::Borrowed(interface.name.as_str())),
                    InterfaceDescriptionOption::IfTsResol(9),
                ],
            };
            let written = writer.write_pcapng_block(block);
            written.map_err(|error| unwritten(&error))?;
        }
        Ok(CaptureWriter { writer })
    }

    /// Writes a packet, and `comment` (unless it is empty) for whoever looks at it in Wireshark.
    ///
    /// # Errors
    /// When the writer fails, or the file has no such interface.
    pub fn write(&mut self, packet: &Captured, comment: &str) -> Result<(), CaptureError> {
        let mut options = Vec::new();
        if !comment.is_empty() {
            let comment = &comment[..comment.floor_char_boundary(COMMENT_LEN_MAX)];
            options.push(EnhancedPacketOption::Comment(Cow::Borrowed(comment)));
        }
        let block = EnhancedPacketBlock {
            interface_id: u32::try_from(packet.interface).unwrap_or(u32::MAX),
            timestamp: std::time::Duration::from_nanos(packet.time.as_nanos()),
            original_len: u32::try_from(packet.original_len).unwrap_or(u32::MAX),
            data: Cow::Borrowed(&packet.bytes),
            options,
        };
        let written = self.writer.write_pcapng_block(block);
        written.map(|_| ()).map_err(|error| unwritten(&error))
    }

    /// Ends the file.
    ///
    /// # Errors
    /// When what was buffered cannot be written.
    pub fn finish(self) -> Result<W, CaptureError> {
        let mut writer = self.writer.into_inner();
        let flushed = writer.flush();
        flushed.map_err(|error| CaptureError::new(format!("it cannot be written: {error}")))?;
        Ok(writer)
    }
}

impl<W: Write> fmt::Debug for CaptureWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CaptureWriter")
    }
}

fn unwritten(error: &PcapError) -> CaptureError {
    match error {
        PcapError::IoError(error) => CaptureError::new(format!("it cannot be written: {error}")),
        error => CaptureError::new(explained(error)),
    }
}
