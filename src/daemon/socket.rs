//! The control socket: one JSON line per request and reply (`config::codec`) on a Unix socket that
//! only its owner and root may use. It decides nothing: requests go to the control loop, replies come
//! back. A client that sends garbage is told so and cut off; one that hangs costs a task and no more.

use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use crate::config::codec::{self, Lines, REPLY_BYTES_MAX, REQUEST_BYTES_MAX};
use crate::config::{Reply, Request};
use crate::control::ClientId;

/// Most clients at once; the next one is told to come again. People and health checks are few.
const CLIENTS_MAX: usize = 32;

/// Bytes read or written at a time.
const CHUNK_BYTES: usize = 64 << 10;

/// How often we look whether a client that waits for its answer is still there.
const LOOK_PERIOD: Duration = Duration::from_millis(100);

/// How patient we are with a client.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// To send a whole request line, counted from the end of the last reply.
    request: Duration,
    /// To take one chunk of a reply.
    chunk: Duration,
}

const PATIENCE: Patience = Patience {
    request: Duration::from_secs(60),
    chunk: Duration::from_secs(10),
};

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

/// Why there is no control socket.
#[derive(Debug)]
pub struct SocketError(String);

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SocketError {}

/// The socket's file; dropped, it is removed, and so is its directory if it was made for it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    made_directory: Option<PathBuf>,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    /// Another daemon may have taken the name meanwhile; its file is not ours to remove. That it
    /// cannot be removed is no reason not to end.
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
        if let Some(directory) = &self.made_directory {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Opens the control socket and serves it from now on. Must be called inside the tokio runtime.
///
/// # Errors
/// When the path cannot be used, or another daemon serves it.
pub(super) fn open(path: &Path) -> Result<(SocketFile, mpsc::Receiver<Asked>), SocketError> {
    open_with(path, PATIENCE)
}

fn open_with(
    path: &Path,
    patience: Patience,
) -> Result<(SocketFile, mpsc::Receiver<Asked>), SocketError> {
    let failed = |doing: &str, error: io::Error| {
        SocketError(format!(
            "cannot {doing} the control socket {}: {error}",
            path.display()
        ))
    };
    let made_directory = make_directory(path)?;
    let listener = bind(path).map_err(|error| failed("open", error))?;
    let only_owner = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, only_owner).map_err(|error| failed("protect", error))?;
    let metadata = std::fs::metadata(path).map_err(|error| failed("look at", error))?;
    let file = SocketFile {
        path: path.to_path_buf(),
        made_directory,
        identity: (metadata.dev(), metadata.ino()),
    };
    // One request of every client fits; nobody can make the queue longer.
    let (asked, questions) = mpsc::channel(CLIENTS_MAX);
    tokio::spawn(accept(listener, metadata.uid(), asked, patience));
    Ok((file, questions))
}

/// Makes the socket's directory, for its owner only, if there is none.
fn make_directory(path: &Path) -> Result<Option<PathBuf>, SocketError> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let shown = directory.display();
    if let Ok(metadata) = std::fs::metadata(directory) {
        let open_to_all = metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0;
        if open_to_all {
            return Err(SocketError(format!(
                "the directory {shown} of the control socket may be written by others, who could \
                 put a socket of their own there; choose another, or: chmod go-w {shown}"
            )));
        }
        return Ok(None);
    }
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(|error| {
        SocketError(format!(
            "cannot make the directory {shown} of the control socket: {error}"
        ))
    })?;
    Ok(Some(directory.to_path_buf()))
}

/// Binds; a socket file that nobody serves any more is taken over.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let error = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        result => return result,
    };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another ulvs serves it; stop that one or choose another path",
        )),
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        Err(_) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Accepts clients for ever. Each has a number of its own.
async fn accept(
    listener: UnixListener,
    owner: u32,
    asked: mpsc::Sender<Asked>,
    patience: Patience,
) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    // Number 0 is the daemon itself.
    for number in 1.. {
        let Ok((mut stream, _)) = listener.accept().await else {
            // Out of descriptors: the clients that end give some back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            refuse(&mut stream, "too many clients; try again", patience).await;
            continue;
        };
        let asked = asked.clone();
        tokio::spawn(async move {
            let _place = place;
            if may(&stream, owner) {
                serve(stream, ClientId(number), asked, patience).await;
            } else {
                refuse(
                    &mut stream,
                    "only the owner of the socket and root may ask",
                    patience,
                )
                .await;
            }
        });
    }
}

/// The file's mode says the same; but a descriptor may be handed on, and this cannot.
fn may(stream: &UnixStream, owner: u32) -> bool {
    let peer = stream.peer_cred().map(|peer| peer.uid());
    peer.is_ok_and(|uid| uid == owner || uid == 0)
}

async fn refuse(stream: &mut UnixStream, why: &str, patience: Patience) {
    // A client that does not want to hear it has lost nothing.
    let _ = write(stream, &Reply::BadRequest(why.to_string()), patience).await;
}

/// Request, reply, request, reply, until the client ends, hangs or sends garbage.
async fn serve(
    mut stream: UnixStream,
    from: ClientId,
    asked: mpsc::Sender<Asked>,
    patience: Patience,
) {
    let mut lines = Lines::new(REQUEST_BYTES_MAX);
    loop {
        let Ok(line) = timeout(patience.request, next_line(&mut stream, &mut lines)).await else {
            return;
        };
        let request = match line {
            Ok(Some(line)) => codec::decode_request(&line).map_err(|error| error.to_string()),
            Ok(None) => return,
            Err(why) => Err(why),
        };
        let request = match request {
            Ok(request) => request,
            Err(why) => return refuse(&mut stream, &why, patience).await,
        };
        let (answer, answered) = oneshot::channel();
        let question = Asked::Request {
            from,
            request,
            answer,
        };
        // The control loop is gone only when the daemon ends.
        if asked.send(question).await.is_err() {
            return;
        }
        let reply = tokio::select! {
            reply = answered => reply,
            () = hung_up(&stream) => {
                let _ = asked.send(Asked::Gone(from)).await;
                return;
            }
        };
        let Ok(reply) = reply else { return };
        if write(&mut stream, &reply, patience).await.is_err() {
            return;
        }
    }
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

async fn write(stream: &mut UnixStream, reply: &Reply, patience: Patience) -> io::Result<()> {
    let mut bytes = codec::encode(reply);
    if bytes.len() > REPLY_BYTES_MAX {
        let sentence = format!("the answer is longer than {REPLY_BYTES_MAX} bytes");
        bytes = codec::encode(&Reply::BadRequest(sentence));
    }
    for chunk in bytes.chunks(CHUNK_BYTES) {
        timeout(patience.chunk, stream.write_all(chunk)).await??;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::os::unix::net::UnixStream as Client;

    use super::*;
    use crate::config::{Query, Refusal};

    const ASK: &[u8] = b"{\"ask\":\"timeouts\"}\n";

    /// A served socket in a directory of its own; every request is refused, and counted.
    struct Served {
        path: PathBuf,
        file: Option<SocketFile>,
        handle: tokio::runtime::Handle,
        questions: mpsc::Receiver<Asked>,
        _end: oneshot::Sender<()>,
    }

    fn served(name: &str, patience_ms: u64) -> Served {
        let directory = std::env::temp_dir().join(format!("ulvs-{name}-{}", std::process::id()));
        let path = directory.join("made/control.sock");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let each = Duration::from_millis(patience_ms);
        let patience = Patience {
            request: each,
            chunk: each,
        };
        let handle = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let (file, questions) = {
            let _inside = handle.enter();
            open_with(&path, patience).unwrap()
        };
        std::thread::spawn(move || runtime.block_on(ended));
        Served {
            path,
            file: Some(file),
            handle,
            questions,
            _end: end,
        }
    }

    impl Served {
        fn client(&self) -> Client {
            let client = Client::connect(&self.path).unwrap();
            client
                .set_read_timeout(Some(Duration::from_secs(20)))
                .unwrap();
            client
        }

        /// Answers one request.
        fn answer(&mut self) {
            match self.questions.blocking_recv() {
                Some(Asked::Request {
                    answer, request, ..
                }) => {
                    assert_eq!(request, Request::Ask(Query::Timeouts));
                    answer.send(Reply::Refused(Refusal::Invalid)).unwrap();
                }
                other => panic!("no request but {other:?}"),
            }
        }
    }

    impl Drop for Served {
        fn drop(&mut self) {
            let directory = self.path.ancestors().nth(2).unwrap();
            std::fs::remove_dir_all(directory).unwrap();
        }
    }

    fn line(client: &Client) -> String {
        let mut line = String::new();
        BufReader::new(client).read_line(&mut line).unwrap();
        line
    }

    fn all(mut client: &Client) -> String {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn requests_are_answered_in_turn_also_after_half_a_close() {
        let mut served = served("turn", 10_000);
        let mut client = served.client();
        for _ in 0..2 {
            client.write_all(ASK).unwrap();
            served.answer();
            assert_eq!(line(&client), "{\"refused\":\"invalid\"}\n");
        }
        client.write_all(ASK).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        served.answer();
        assert_eq!(all(&client), "{\"refused\":\"invalid\"}\n");
    }

    #[test]
    fn only_the_owner_may_and_nothing_is_left_behind() {
        let mut served = served("owner", 10_000);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&served.path), 0o600);
        let directory = served.path.parent().unwrap().to_path_buf();
        assert_eq!(mode(&directory), 0o700);
        drop(served.file.take());
        assert!(!directory.exists());
    }

    #[test]
    fn garbage_is_named_and_cut_off() {
        let served = served("garbage", 10_000);
        for garbage in [
            &b"hello\n"[..],
            b"{\"ask\":\"weather\"}\n",
            b"\n",
            b"\xff\xfe\x00\n",
        ] {
            let mut client = served.client();
            client.write_all(garbage).unwrap();
            let reply = all(&client);
            assert!(
                reply.starts_with("{\"bad-request\":"),
                "{garbage:?}: {reply}"
            );
        }
        let mut client = served.client();
        client.write_all(b"{\"ask\":").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(all(&client).contains("the line has no end"));
    }

    #[test]
    fn a_line_without_end_is_cut_off() {
        let served = served("endless", 10_000);
        let mut client = served.client();
        let megabyte = vec![b' '; 1 << 20];
        // The far end closes while we still write; how many writes succeed does not matter.
        let most = (REQUEST_BYTES_MAX >> 20) + 16;
        let written = (0..most)
            .take_while(|_| client.write_all(&megabyte).is_ok())
            .count();
        assert!(written < most, "{most} MiB were taken");
    }

    #[test]
    fn who_hangs_is_cut_off_and_costs_others_nothing() {
        let mut served = served("hang", 300);
        let silent = served.client();
        let mut halfway = served.client();
        halfway.write_all(b"{\"ask\"").unwrap();
        let mut busy = served.client();
        busy.write_all(ASK).unwrap();
        served.answer();
        assert_eq!(line(&busy), "{\"refused\":\"invalid\"}\n");
        assert_eq!(
            (all(&silent), all(&halfway)),
            (String::new(), String::new())
        );
    }

    #[test]
    fn a_client_that_went_is_reported() {
        let mut served = served("gone", 10_000);
        let mut client = served.client();
        client.write_all(ASK).unwrap();
        let first = served.questions.blocking_recv();
        let Some(Asked::Request { from, .. }) = &first else {
            panic!("no request but {first:?}");
        };
        drop(client);
        match served.questions.blocking_recv() {
            Some(Asked::Gone(client)) => assert_eq!(client, *from),
            other => panic!("not gone but {other:?}"),
        }
    }

    #[test]
    fn too_many_clients_are_told_so() {
        let mut served = served("many", 10_000);
        let clients: Vec<Client> = (0..CLIENTS_MAX).map(|_| served.client()).collect();
        // All of them are served once the last one is.
        (&clients[CLIENTS_MAX - 1]).write_all(ASK).unwrap();
        served.answer();
        line(&clients[CLIENTS_MAX - 1]);
        assert!(all(&served.client()).contains("too many clients"));
    }

    #[test]
    fn a_dead_daemons_socket_is_taken_over_and_a_living_ones_is_not() {
        let served = served("twice", 10_000);
        let inside = served.handle.enter();
        let refused = open(&served.path).unwrap_err();
        assert!(
            refused.to_string().contains("another ulvs serves it"),
            "{refused}"
        );
        let dead = served.path.with_file_name("dead.sock");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let (_file, _questions) = open(&dead).unwrap();
        drop(inside);
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let served = served("others", 10_000);
        let directory = served.path.parent().unwrap();
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
        let inside = served.handle.enter();
        let refused = open(&directory.join("other.sock")).unwrap_err();
        assert!(refused.to_string().contains("chmod go-w"), "{refused}");
        drop(inside);
    }
}
