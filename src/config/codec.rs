//! The control socket's wire: one JSON line per Request and Reply. Bytes in, bytes out; who opens the
//! socket is somebody else.

use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::command::{Reply, Request};

/// Longest request line in bytes. A Batch of about 150,000 servers fits; a client that sends more is
/// cut off instead of filling the daemon's memory.
pub const REQUEST_BYTES_MAX: usize = 32 << 20;

/// Longest reply line in bytes: a listing of about a million connections fits.
pub const REPLY_BYTES_MAX: usize = 256 << 20;

/// Where the control socket is, unless ulvs.toml says otherwise: `given` (`ULVS_CONTROL`) if set; root's
/// place under /run; else the user's runtime folder (`XDG_RUNTIME_DIR`); else a folder of their own
/// under /tmp.
pub fn control_path(given: Option<&str>, uid: u32, runtime_dir: Option<&str>) -> String {
    let set = |value: Option<&str>| value.filter(|value| !value.is_empty()).map(str::to_string);
    if let Some(given) = set(given) {
        return given;
    }
    let folder = match (uid, set(runtime_dir)) {
        (0, _) => "/run/ulvs".to_string(),
        (_, Some(runtime)) => format!("{runtime}/ulvs"),
        (uid, None) => format!("/tmp/ulvs-{uid}"),
    };
    format!("{folder}/control.sock")
}

/// Characters of the line shown beside an error.
const SHOWN_CHARS: usize = 40;

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CodecError {
    /// More bytes than `max` without a line end.
    TooLong {
        /// The limit in bytes.
        max: usize,
    },
    /// The bytes are not such a message.
    Malformed {
        /// Which character, counted from 1.
        column: usize,
        /// What was wrong.
        what: String,
        /// The text from there on, cut.
        near: String,
    },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CodecError::TooLong { max } => write!(f, "line longer than {max} bytes"),
            CodecError::Malformed { column, what, near } if near.is_empty() => {
                write!(f, "column {column}: {what}, at the end of the line")
            }
            CodecError::Malformed { column, what, near } => {
                write!(f, "column {column}: {what}, near `{near}`")
            }
        }
    }
}

impl std::error::Error for CodecError {}

/// A Request or Reply as one line, line end included.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages have string keys only");
    line.push(b'\n');
    line
}

/// Reads a request; `line` with or without its line end.
pub fn decode_request(line: &[u8]) -> Result<Request, CodecError> {
    decode(line, REQUEST_BYTES_MAX)
}

/// Reads a reply; `line` with or without its line end.
pub fn decode_reply(line: &[u8]) -> Result<Reply, CodecError> {
    decode(line, REPLY_BYTES_MAX)
}

fn decode<T: DeserializeOwned>(line: &[u8], max: usize) -> Result<T, CodecError> {
    if line.len() > max {
        return Err(CodecError::TooLong { max });
    }
    serde_json::from_slice(line).map_err(|error| malformed(line, &error))
}

fn malformed(line: &[u8], error: &serde_json::Error) -> CodecError {
    let Place {
        column, what, near, ..
    } = place(line, error);
    CodecError::Malformed { column, what, near }
}

/// Where a text is wrong, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which line, counted from 1.
    pub line: usize,
    /// Which byte of it, counted from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// The text from there on, cut; never across the line's end.
    pub near: String,
}

/// Where `bytes` are not the JSON that was to come.
pub fn place(bytes: &[u8], error: &serde_json::Error) -> Place {
    let text = error.to_string();
    let shown = format!(" at line {} column {}", error.line(), error.column());
    let lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let before: usize = lines
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum();
    let at = before + error.column().saturating_sub(1);
    Place {
        line: error.line(),
        column: error.column(),
        ..place_of(bytes, at, text.trim_end_matches(shown.as_str()))
    }
}

/// The place of the byte `at`.
pub fn place_of(bytes: &[u8], at: usize, what: &str) -> Place {
    let at = at.min(bytes.len());
    let before = &bytes[..at];
    let start = before.iter().rposition(|byte| *byte == b'\n');
    let rest = bytes[at..].split(|byte| *byte == b'\n').next();
    // Four bytes to a character at most.
    let rest = rest.map_or(&[][..], |rest| &rest[..rest.len().min(4 * SHOWN_CHARS)]);
    Place {
        line: before.iter().filter(|byte| **byte == b'\n').count() + 1,
        column: at - start.map_or(0, |newline| newline + 1) + 1,
        what: what.to_string(),
        near: String::from_utf8_lossy(rest)
            .trim_end()
            .chars()
            .take(SHOWN_CHARS)
            .collect(),
    }
}

/// Bytes as they come from a socket, cut into lines of bounded length.
#[derive(Debug)]
pub struct Lines {
    bytes: Vec<u8>,
    searched: usize,
    max: usize,
}

impl Lines {
    /// Lines of at most `max` bytes.
    pub fn new(max: usize) -> Lines {
        Lines {
            bytes: Vec::new(),
            searched: 0,
            max,
        }
    }

    /// More bytes have come. Take the lines out before the next chunk.
    pub fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    /// The next whole line without its line end; `None` until one is complete. Once a line is too
    /// long, every further call says so: the connection cannot be trusted to be in step.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, CodecError> {
        let end = self.bytes[self.searched..].iter().position(|b| *b == b'\n');
        let length = end.map_or(self.bytes.len(), |end| self.searched + end);
        if length > self.max {
            return Err(CodecError::TooLong { max: self.max });
        }
        if end.is_none() {
            self.searched = length;
            return Ok(None);
        }
        let rest = self.bytes.split_off(length + 1);
        let mut line = std::mem::replace(&mut self.bytes, rest);
        line.pop();
        self.searched = 0;
        Ok(Some(line))
    }

    /// True if bytes of an unfinished line are held.
    pub fn has_partial(&self) -> bool {
        !self.bytes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::command::{Command, Query, RealSpec, Refusal};
    use crate::lvs::{
        Endpoint, ForwardMethod, RealKey, ServiceKey, ServiceSpec, Thresholds, Tunnel,
        TunnelChecksum, Weight,
    };

    fn service() -> ServiceKey {
        ServiceKey::tcp("1.2.3.1".parse().unwrap(), 80)
    }

    #[test]
    fn requests_and_replies_come_back_as_they_were() {
        let real = RealSpec {
            key: RealKey(Endpoint::new("fd00::1".parse().unwrap(), 8080)),
            weight: Weight(i32::MAX),
            method: ForwardMethod::Tunnel,
            thresholds: Thresholds { upper: 9, lower: 3 },
            tunnel: Tunnel::Gue {
                port: 6080,
                checksum: TunnelChecksum::Remote,
            },
        };
        let requests = [
            Request::Stop,
            Request::Ask(Query::Services(Some(service()))),
            Request::Do(Command::Batch(vec![
                Command::Flush,
                Command::AddService(ServiceSpec::new(service(), "wlc")),
                Command::AddReal {
                    service: service(),
                    real,
                },
            ])),
        ];
        for request in requests {
            let line = encode(&request);
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert_eq!(decode_request(&line), Ok(request));
        }
        let reply = Reply::Refused(Refusal::ServiceExists);
        assert_eq!(decode_reply(&encode(&reply)), Ok(reply));
    }

    #[test]
    fn the_socket_has_one_place_for_each_user() {
        let user = control_path(None, 1000, Some("/run/user/1000"));
        assert_eq!(user, "/run/user/1000/ulvs/control.sock");
        assert_eq!(control_path(Some(""), 7, None), "/tmp/ulvs-7/control.sock");
        assert_eq!(control_path(None, 0, Some("/x")), "/run/ulvs/control.sock");
        assert_eq!(control_path(Some("/x/y"), 0, None), "/x/y");
    }

    #[test]
    fn errors_name_the_place() {
        let error = decode_request(br#"{"do":{"flusch":1}}"#).unwrap_err();
        let text = error.to_string();
        assert!(
            text.starts_with("column 15: unknown variant `flusch`"),
            "{text}"
        );
        let error = decode_request(b"").unwrap_err().to_string();
        assert!(error.contains("at the end of the line"), "{error}");
        let error = decode_request(b"\"stop\" trailing")
            .unwrap_err()
            .to_string();
        assert!(error.contains("near `trailing`"), "{error}");
        assert!(decode_request(b"\xff\xfe").is_err());
        let deep = b"[".repeat(100_000);
        assert!(decode_request(&deep).is_err());
    }

    #[test]
    fn lines_are_cut_wherever_the_chunks_end() {
        let mut lines = Lines::new(8);
        lines.push(b"on");
        assert_eq!(lines.next_line(), Ok(None));
        lines.push(b"e\ntwo\n\nlast");
        assert_eq!(lines.next_line(), Ok(Some(b"one".to_vec())));
        assert_eq!(lines.next_line(), Ok(Some(b"two".to_vec())));
        assert_eq!(lines.next_line(), Ok(Some(b"".to_vec())));
        assert_eq!(lines.next_line(), Ok(None));
        assert!(lines.has_partial());
        lines.push(b"12345");
        assert_eq!(lines.next_line(), Err(CodecError::TooLong { max: 8 }));
        lines.push(b"\n");
        assert!(lines.next_line().is_err());
    }
}
