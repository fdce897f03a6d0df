//! Bare: what hyper cannot read as HTTP it answers by itself, with a status and nothing else. Here such
//! an answer gets the body that all others have. Everything else passes as it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use hyper::rt::{Read, ReadBufCursor, Write};

use super::said_in_json;

/// A client's stream.
pub(super) struct Bare<T> {
    io: T,
    /// What is still to be written of what was taken.
    rest: Vec<u8>,
}

impl<T: Write + Unpin> Bare<T> {
    pub fn new(io: T) -> Bare<T> {
        let rest = Vec::new();
        Bare { io, rest }
    }

    fn write_rest(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let count = ready!(Pin::new(&mut self.io).poll_write(context, &self.rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.drain(..count);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Read + Unpin> Read for Bare<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, into)
    }
}

impl<T: Write + Unpin> Write for Bare<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.write_rest(context))?;
        let Some(told) = told(bytes) else {
            return Pin::new(&mut self.io).poll_write(context, bytes);
        };
        self.rest = told;
        match self.write_rest(context) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What does not go out now is waited for by `poll_flush`.
            _ => Poll::Ready(Ok(bytes.len())),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_rest(context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_rest(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// The same bytes with a body, if they end with an answer that has none: ours have a type, all of them.
/// Answers to requests before may stand in front of it.
fn told(bytes: &[u8]) -> Option<Vec<u8>> {
    const BEGIN: &[u8] = b"HTTP/1.1 ";
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let mut places = bytes.windows(BEGIN.len());
    let at = places.rposition(|window| window == BEGIN)?;
    let head = std::str::from_utf8(&bytes[at..]).ok()?;
    let status = StatusCode::from_bytes(head.get(BEGIN.len()..BEGIN.len() + 3)?.as_bytes()).ok()?;
    let has_body = head.contains("\r\ncontent-type:");
    if !status.is_client_error() || has_body || !head.contains("\r\ncontent-length: 0\r\n") {
        return None;
    }
    let (code, why) = match status {
        StatusCode::URI_TOO_LONG => ("too-long", "the path is too long"),
        StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => {
            ("too-long", "the head is too long, or has too many headers")
        }
        _ => ("no-http", "this cannot be read as HTTP"),
    };
    let answer = said_in_json(status, "", code, why);
    Some([&bytes[..at], &answer].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_a_body_gets_one_and_others_pass() {
        let bare = b"HTTP/1.1 431 X\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        let before = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 2\r\n\r\nhi";
        let told_of = |bytes: &[u8]| told(bytes).map(|told| String::from_utf8(told).unwrap());
        let text = told_of(&[&before[..], bare].concat()).unwrap();
        assert!(text.starts_with("HTTP/1.1 200 OK"), "{text}");
        let (_, last) = text.split_once("hiHTTP/1.1 431 ").unwrap();
        let (head, body) = last.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{text}"
        );
        assert!(
            body.starts_with("{\"error\":{\"code\":\"too-long\""),
            "{text}"
        );
        let empty = b"HTTP/1.1 404 X\r\ncontent-type: a/b\r\ncontent-length: 0\r\n\r\n";
        for other in [
            &before[..],
            &bare[..9],
            empty,
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"",
        ] {
            assert_eq!(told_of(other), None);
        }
    }
}
