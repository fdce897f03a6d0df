//! Captures: read a pcap or pcapng file packet by packet, or as if it were a wire (`PcapRx`); write a
//! pcapng file with a comment per packet. Bytes out of a file may be anything: they give an error
//! that says which packet, never a panic. See draft-ietf-opsawg-pcapng for the format.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::{Block, PcapNgReader, PcapNgWriter};
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
    format: Format<R>,
    /// Packets read so far, for messages.
    number: u64,
    is_over: bool,
}

enum Format<R: Read> {
    Pcap(PcapReader<R>),
    PcapNg(PcapNgReader<R>),
}

/// What the format of a file is told by, read already and put before the rest again.
type Rewound<R> = io::Chain<io::Cursor<[u8; 4]>, R>;

impl CaptureReader<Rewound<File>> {
    /// Opens a capture file.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture.
    pub fn open(path: &Path) -> Result<CaptureReader<Rewound<File>>, CaptureError> {
        let failed = |error| CaptureError::new(format!("cannot open {}: {error}", path.display()));
        CaptureReader::new(File::open(path).map_err(failed)?)
            .map_err(|error| CaptureError::new(format!("{}: {error}", path.display())))
    }
}

impl<R: Read> CaptureReader<Rewound<R>> {
    /// Reads a capture out of `reader`, which need not be buffered.
    ///
    /// # Errors
    /// When it cannot be read, or is no capture.
    pub fn new(mut reader: R) -> Result<CaptureReader<Rewound<R>>, CaptureError> {
        let mut magic = [0; 4];
        reader
            .read_exact(&mut magic)
            .map_err(|_| CaptureError::new("it is too short to be a capture"))?;
        let reader = io::Cursor::new(magic).chain(reader);
        let explain = |error: PcapError| CaptureError::new(explained(&error));
        let format = match magic {
            [0x0a, 0x0d, 0x0d, 0x0a] => PcapNgReader::new(reader)
                .map(Format::PcapNg)
                .map_err(explain)?,
            // Microseconds and nanoseconds, in both byte orders.
            [0xa1, 0xb2, 0xc3, 0xd4]
            | [0xd4, 0xc3, 0xb2, 0xa1]
            | [0xa1, 0xb2, 0x3c, 0x4d]
            | [0x4d, 0x3c, 0xb2, 0xa1] => {
                PcapReader::new(reader).map(Format::Pcap).map_err(explain)?
            }
            [0x1f, 0x8b, ..] => {
                return Err(CaptureError::new(
                    "it is compressed: unpack it first (gunzip)",
                ));
            }
            _ => return Err(CaptureError::new("it is neither pcap nor pcapng")),
        };
        Ok(CaptureReader {
            format,
            number: 0,
            is_over: false,
        })
    }
}

impl<R: Read> CaptureReader<R> {
    /// The next packet; `None` at the end. After an error there is no next packet.
    ///
    /// # Errors
    /// When the file is cut off, garbled, or of a kind of link that we do not read.
    pub fn next_packet(&mut self) -> Result<Option<Captured>, CaptureError> {
        if self.is_over {
            return Ok(None);
        }
        let next = match &mut self.format {
            Format::Pcap(reader) => next_of_pcap(reader),
            Format::PcapNg(reader) => next_of_pcapng(reader),
        };
        self.number += 1;
        self.is_over = !matches!(next, Ok(Some(_)));
        next.map_err(|words| CaptureError::new(format!("packet {}: {words}", self.number)))
    }

    /// The name of an interface in the file, if it tells one (pcapng).
    pub fn interface_name(&self, interface: usize) -> Option<&str> {
        let Format::PcapNg(reader) = &self.format else {
            return None;
        };
        let mut options = reader.interfaces().get(interface)?.options.iter();
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

fn next_of_pcap<R: Read>(reader: &mut PcapReader<R>) -> Result<Option<Captured>, String> {
    let header = reader.header();
    // Raw: the crate's own checks refuse packets that a capture has cut.
    let Some(packet) = reader.next_raw_packet() else {
        return Ok(None);
    };
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

fn next_of_pcapng<R: Read>(reader: &mut PcapNgReader<R>) -> Result<Option<Captured>, String> {
    loop {
        let Some(block) = reader.next_block() else {
            return Ok(None);
        };
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
        let described = reader.interfaces().get(interface);
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

/// The crate's errors in words.
fn explained(error: &PcapError) -> String {
    match error {
        PcapError::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the file ends in the middle of it".to_string()
        }
        PcapError::IoError(error) => format!("it cannot be read: {error}"),
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
