//! Who comes to the control socket: its owner and root, so many at once. A client speaks JSON lines
//! (`config::codec`) or HTTP (`web`); the first byte tells, since no JSON begins with a capital letter
//! and every method of HTTP does. Nothing is decided here: requests go to the control loop, replies
//! come back. A client that sends garbage is told so and cut off; one that hangs costs a task and no
//! more.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::patient::{Patience, Patient};
use super::places::{Place, Places};
use crate::config::codec::{self, Lines, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::config::{Listing, Refusal, Reply, Request};
use crate::control::{ClientId, SCHEDULERS};
use crate::web::{self, Api, DoorCounts, Submit};

/// Most clients at once. For the next one an idle client makes room; where none is idle, it is told to
/// come again. People and health checks are few.
pub(super) const CLIENTS_MAX: usize = 32;

/// Most clients that are being told so at once; beyond that, they are cut off without a word.
pub(super) const REFUSALS_MAX: usize = 32;

/// How long a client that is turned away may take to say what it speaks.
const REFUSAL_TIME: Duration = Duration::from_millis(500);

/// Bytes read or written at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// How often we look whether a client that waits for its answer is still there.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

pub(super) const PATIENCE: Patience = Patience {
    request: Duration::from_secs(60),
    chunk: Duration::from_secs(10),
    place: Duration::from_secs(1),
};

const NO_ROOM: &str = "too many clients; try again";
const NO_RIGHT: &str = "only the owner of the socket and root may ask";

/// What clients want of the control loop.
#[derive(Debug)]
pub(super) enum Asked {
    /// A request; the answer goes into the channel.
    Request {
        from: ClientId,
        request: Request,
        answer: oneshot::Sender<Reply>,
    },
    /// The client will not read its answer.
    Gone(ClientId),
}

/// Serves who comes from now on.
pub(super) fn open(
    listener: UnixListener,
    owner: u32,
    patience: Patience,
) -> mpsc::Receiver<Asked> {
    // One request of every client fits; nobody can make the queue longer.
    let (asked, questions) = mpsc::channel(CLIENTS_MAX);
    tokio::spawn(accept(listener, owner, asked, patience));
    questions
}

/// Accepts clients for ever. Each has a number of its own.
async fn accept(
    listener: UnixListener,
    owner: u32,
    asked: mpsc::Sender<Asked>,
    patience: Patience,
) {
    let places = Arc::new(Places::new(CLIENTS_MAX, patience.place));
    let doorstep = Arc::new(Semaphore::new(REFUSALS_MAX));
    let counts = Arc::new(DoorCounts::default());
    // Number 0 is the daemon itself.
    for number in 1.. {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors: the clients that end give some back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        counts.connected();
        let place = match may(&stream, owner) {
            true => places.take().ok_or(NO_ROOM),
            false => Err(NO_RIGHT),
        };
        let client = Client {
            from: ClientId(number),
            asked: asked.clone(),
            patience,
            counts: Arc::clone(&counts),
        };
        match place {
            Ok((seat, yielded)) => {
                if yielded {
                    counts.yielded();
                }
                drop(tokio::spawn(async move {
                    tokio::select! {
                        () = client.serve(stream, seat.place()) => {}
                        () = seat.place().lost() => {}
                    }
                }));
            }
            Err(why) => {
                counts.turned_away();
                let Ok(step) = Arc::clone(&doorstep).try_acquire_owned() else {
                    continue;
                };
                drop(tokio::spawn(async move {
                    let _step = step;
                    client.turn_away(stream, why).await;
                }));
            }
        }
    }
}

/// The file's mode says the same; but a descriptor may be handed on, and this cannot.
fn may(stream: &UnixStream, owner: u32) -> bool {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    peer.is_ok_and(|uid| uid == owner || uid == 0)
}

/// Does a client that begins so speak HTTP?
fn is_http(begun: &[u8]) -> bool {
    begun.first().is_some_and(u8::is_ascii_uppercase)
}

/// One that has come.
#[derive(Clone)]
struct Client {
    from: ClientId,
    asked: mpsc::Sender<Asked>,
    patience: Patience,
    counts: Arc<DoorCounts>,
}

impl Client {
    /// Listens to what it speaks, and serves it in that.
    async fn serve(self, mut stream: UnixStream, place: &Arc<Place>) {
        let begun = match timeout(self.patience.request, first_words(&mut stream)).await {
            Ok(begun) => begun,
            Err(_) => return self.counts.hung(),
        };
        match is_http(&begun) {
            true => self.serve_http(stream, begun, place).await,
            false => self.serve_lines(stream, &begun, place).await,
        }
    }

    async fn serve_http(self, stream: UnixStream, begun: Vec<u8>, place: &Arc<Place>) {
        self.counts.speaks_http();
        let stream = Arc::new(stream);
        let (near, counts) = (Arc::clone(&stream), Arc::clone(&self.counts));
        let io = Patient::new(near, begun, self.patience, counts, Arc::clone(place));
        let api = Api {
            counts: Arc::clone(&self.counts),
            submit: self.submit(stream, Arc::clone(place)),
            schedulers: &SCHEDULERS,
        };
        web::serve(TokioIo::new(io), &api).await;
    }

    /// The way of one request to the control loop and back. HTTP has one under way at a time.
    fn submit(self, stream: Arc<UnixStream>, place: Arc<Place>) -> Submit {
        Arc::new(move |request| {
            let (client, stream) = (self.clone(), Arc::clone(&stream));
            // Until something of the answer is taken.
            place.busy();
            Box::pin(async move {
                tokio::select! {
                    reply = client.ask(request) => reply,
                    () = hung_up(&stream) => None,
                }
            })
        })
    }

    /// Asks the control loop; `None` if it is gone, which it is only when the daemon ends. Whoever
    /// stops waiting for the answer is reported gone.
    async fn ask(&self, request: Request) -> Option<Reply> {
        let (answer, answered) = oneshot::channel();
        let question = Asked::Request {
            from: self.from,
            request,
            answer,
        };
        self.asked.send(question).await.ok()?;
        let mut waiting = Waiting(Some(self));
        let reply = answered.await.ok();
        waiting.0 = None;
        reply.map(|reply| self.completed(reply))
    }

    /// What the door alone knows is put in here, and counted what came too late or found no memory.
    fn completed(&self, mut reply: Reply) -> Reply {
        match &mut reply {
            Reply::Listing(Listing::Status(status)) => status.control = self.counts.row(),
            Reply::Late(_) => self.counts.late(),
            Reply::Refused(Refusal::OutOfMemory) => self.counts.no_memory(),
            _ => {}
        }
        reply
    }

    /// Request, reply, request, reply, until the client ends, hangs or sends garbage.
    async fn serve_lines(&self, mut stream: UnixStream, begun: &[u8], place: &Place) {
        let mut lines = Lines::new(REQUEST_BYTES_MAX);
        lines.push(begun);
        loop {
            place.idle();
            let next = next_line(&mut stream, &mut lines);
            let Ok(line) = timeout(self.patience.request, next).await else {
                return self.counts.hung();
            };
            place.busy();
            let request = match line {
                Ok(Some(line)) => codec::decode_request(&line).map_err(|error| error.to_string()),
                Ok(None) => return,
                Err(why) => Err(why),
            };
            let request = match request {
                Ok(request) => request,
                Err(why) => {
                    self.counts.bad_request();
                    return self.refuse(&mut stream, &why).await;
                }
            };
            let reply = tokio::select! {
                reply = self.ask(request) => reply,
                () = hung_up(&stream) => return,
            };
            let Some(reply) = reply else { return };
            if self.write(&mut stream, &reply).await.is_err() {
                return;
            }
        }
    }

    async fn refuse(&self, stream: &mut UnixStream, why: &str) {
        // A client that does not want to hear it has lost nothing.
        let _ = self
            .write(stream, &Reply::BadRequest(why.to_string()))
            .await;
    }

    /// Says why it is not served, in what it speaks, if it says something soon.
    async fn turn_away(&self, mut stream: UnixStream, why: &str) {
        let begun = timeout(REFUSAL_TIME, first_words(&mut stream)).await;
        if begun.is_ok_and(|begun| is_http(&begun)) {
            let bytes = web::turned_away(why == NO_RIGHT, why);
            let _ = self.write_bytes(&mut stream, &bytes).await;
        } else {
            self.refuse(&mut stream, why).await;
        }
    }

    async fn write(&self, stream: &mut UnixStream, reply: &Reply) -> io::Result<()> {
        let mut bytes = codec::encode(reply);
        if bytes.len() > REPLY_BYTES_MAX {
            self.counts.too_long();
            let sentence = format!("the answer is longer than {REPLY_BYTES_MAX} bytes");
            bytes = codec::encode(&Reply::BadRequest(sentence));
        }
        self.write_bytes(stream, &bytes).await
    }

    async fn write_bytes(&self, stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let written = timeout(self.patience.chunk, stream.write_all(chunk)).await;
            written.inspect_err(|_| self.counts.hung())??;
        }
        Ok(())
    }
}

/// A client that waits for its answer; dropped before that is there, it has gone.
struct Waiting<'a>(Option<&'a Client>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(client) = self.0 {
            // Where there is no room the answer comes and finds nobody, which costs as little.
            let _ = client.asked.try_send(Asked::Gone(client.from));
        }
    }
}

/// What a client says first, as much as is there; nothing if it ends without a word.
async fn first_words(stream: &mut UnixStream) -> Vec<u8> {
    let mut begun = vec![0; CHUNK_BYTES];
    let count = stream.read(&mut begun).await.unwrap_or(0);
    begun.truncate(count);
    begun
}

/// The next whole line; `None` when the client has ended.
async fn next_line(stream: &mut UnixStream, lines: &mut Lines) -> Result<Option<Vec<u8>>, String> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        if let Some(line) = lines.next_line().map_err(|error| error.to_string())? {
            return Ok(Some(line));
        }
        match stream.read(&mut chunk).await {
            Ok(0) if lines.has_partial() => return Err("the line has no end".to_string()),
            Ok(0) | Err(_) => return Ok(None),
            Ok(count) => lines.push(&chunk[..count]),
        }
    }
}

/// Waits until the client has closed both directions; one that only ended its own half still reads.
/// The system tells this together with "writable", which is true all the time: hence a look now and
/// then.
async fn hung_up(stream: &UnixStream) {
    loop {
        match stream.ready(Interest::WRITABLE).await {
            Ok(ready) if !ready.is_write_closed() => tokio::time::sleep(LOOK_PERIOD).await,
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests;
