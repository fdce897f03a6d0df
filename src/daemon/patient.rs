//! A client's stream that is not waited for without end: who sends no request for too long, or takes
//! nothing of an answer, is cut off. What was read to find out what the client speaks comes first.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::time::{Sleep, sleep};

use super::places::Place;
use crate::web::DoorCounts;

/// How patient we are with a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// To send a whole request, counted from the beginning or from the end of the last reply.
    pub request: Duration,
    /// To take something of a reply.
    pub chunk: Duration,
    /// To be idle and keep its place, when all are taken and somebody comes.
    pub place: Duration,
}

/// The stream of a client that speaks HTTP.
pub(super) struct Patient {
    stream: Arc<UnixStream>,
    /// What was read of it before.
    begun: Vec<u8>,
    patience: Patience,
    /// When the request must have come.
    read_by: Pin<Box<Sleep>>,
    /// When something must have been taken; there is one while something waits to be.
    write_by: Option<Pin<Box<Sleep>>>,
    counts: Arc<DoorCounts>,
    place: Arc<Place>,
}

impl Patient {
    /// The rest of `stream`, behind what was `begun`.
    pub fn new(
        stream: Arc<UnixStream>,
        begun: Vec<u8>,
        patience: Patience,
        counts: Arc<DoorCounts>,
        place: Arc<Place>,
    ) -> Patient {
        Patient {
            stream,
            begun,
            patience,
            read_by: Box::pin(sleep(patience.request)),
            write_by: None,
            counts,
            place,
        }
    }

    fn hung<T>(&self) -> Poll<io::Result<T>> {
        self.counts.hung();
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.begun.is_empty() {
            let count = self.begun.len().min(into.remaining());
            into.put_slice(&self.begun[..count]);
            self.begun.drain(..count);
            return Poll::Ready(Ok(()));
        }
        // What the system calls ready may be gone again; then it is waited for anew.
        while let Poll::Ready(ready) = self.stream.poll_read_ready(context) {
            ready?;
            match self.stream.try_read(into.initialize_unfilled()) {
                Ok(count) => {
                    into.advance(count);
                    self.place.idle();
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        match self.read_by.as_mut().poll(context) {
            Poll::Ready(()) => self.hung(),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncWrite for Patient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        while let Poll::Ready(ready) = self.stream.poll_write_ready(context) {
            ready?;
            match self.stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => {
                    self.write_by = None;
                    self.place.idle();
                    let until = sleep(self.patience.request).deadline();
                    self.read_by.as_mut().reset(until);
                    return Poll::Ready(done);
                }
            }
        }
        self.place.busy();
        let chunk = self.patience.chunk;
        let by = self.write_by.get_or_insert_with(|| Box::pin(sleep(chunk)));
        match by.as_mut().poll(context) {
            Poll::Ready(()) => self.hung(),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Nothing is kept back here.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// The stream closes when the last who holds it lets go.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
