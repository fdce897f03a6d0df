//! Clients of the control socket, good ones and bad ones: lines and HTTP.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream as Peer;
use std::path::{Path, PathBuf};

use super::*;
use crate::config::command::{ControlRow, StatusRow};
use crate::config::{Query, Refusal};
use crate::daemon::socket::{SocketFile, open, open_with};

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
    served_with(name, patience_ms, Duration::MAX)
}

/// Whoever is idle for the time `place` makes room for others.
fn served_with(name: &str, patience_ms: u64, place: Duration) -> Served {
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
        place,
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
    fn client(&self) -> Peer {
        let client = Peer::connect(&self.path).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        client
    }

    /// Answers one request.
    fn answer(&mut self) {
        let asked = self.reply(Reply::Refused(Refusal::Invalid));
        assert_eq!(asked, Request::Ask(Query::Timeouts));
    }

    /// Answers one request so, whichever it is.
    fn reply(&mut self, reply: Reply) -> Request {
        match self.questions.blocking_recv() {
            Some(Asked::Request {
                answer, request, ..
            }) => {
                answer.send(reply).unwrap();
                request
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

fn line(client: &Peer) -> String {
    let mut line = String::new();
    BufReader::new(client).read_line(&mut line).unwrap();
    line
}

fn all(mut client: &Peer) -> String {
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
    for asks in [ASK, GET] {
        let mut client = served.client();
        client.write_all(asks).unwrap();
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
}

#[test]
fn too_many_clients_are_told_so() {
    let mut served = served("many", 10_000);
    let clients: Vec<Peer> = (0..CLIENTS_MAX).map(|_| served.client()).collect();
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

/// Reads one whole answer: a head, and a body of the length it tells.
fn http_answer(client: &Peer) -> (u16, String) {
    let mut reader = BufReader::new(client);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        assert_ne!(
            reader.read_line(&mut line).unwrap(),
            0,
            "closed behind {head:?}"
        );
        if line == "\r\n" {
            break;
        }
        if let Some(number) = line.strip_prefix("content-length: ") {
            length = number.trim().parse().unwrap();
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, String::from_utf8(body).unwrap())
}

const GET: &[u8] = b"GET /v1/timeouts HTTP/1.1\r\nhost: ulvs\r\n\r\n";

#[test]
fn the_first_byte_tells_http_from_lines() {
    let mut served = served("http", 10_000);
    let mut client = served.client();
    // Request by request on one connection, and in pieces.
    for pieces in [1, 7] {
        for piece in GET.chunks(GET.len() / pieces) {
            client.write_all(piece).unwrap();
        }
        served.answer();
        let (status, body) = http_answer(&client);
        assert_eq!(status, 422);
        assert!(
            body.starts_with("{\"error\":{\"code\":\"invalid\""),
            "{body}"
        );
    }
    client.write_all(GET).unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    served.answer();
    assert_eq!(http_answer(&client).0, 422);
    let mut other = served.client();
    other.write_all(ASK).unwrap();
    served.answer();
    assert_eq!(line(&other), "{\"refused\":\"invalid\"}\n");
}

#[test]
fn what_cannot_be_read_as_http_is_told_in_json() {
    let served = served("no-http", 10_000);
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(100));
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100 << 10));
    for (garbage, wanted) in [
        ("GARBAGE\r\n\r\n", (400, "no-http")),
        ("Hello there\n", (400, "no-http")),
        ("GET / HTTP/9.9\r\n\r\n", (400, "no-http")),
        ("GET / HTTP/1.1\r\n: x\r\n\r\n", (400, "no-http")),
        (&many, (431, "too-long")),
        (&long, (431, "too-long")),
    ] {
        let mut client = served.client();
        // It may be answered before we have said all.
        let _ = client.write_all(garbage.as_bytes());
        let (status, body) = http_answer(&client);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        let told = (status, body["error"]["code"].as_str().unwrap());
        assert_eq!(told, wanted, "{garbage:.40}");
    }
}

/// Asks by a line for what the door counts, and gives the control loop's part of the answer.
fn counted(served: &mut Served) -> ControlRow {
    let mut client = served.client();
    client.write_all(b"{\"ask\":\"status\"}\n").unwrap();
    served.reply(Reply::Listing(Listing::Status(StatusRow::default())));
    match codec::decode_reply(line(&client).trim_end().as_bytes()) {
        Ok(Reply::Listing(Listing::Status(status))) => status.control,
        other => panic!("no status but {other:?}"),
    }
}

#[test]
fn who_is_idle_makes_room_for_who_comes() {
    let mut served = served_with("room", 10_000, Duration::ZERO);
    let clients: Vec<Peer> = (0..CLIENTS_MAX).map(|_| served.client()).collect();
    for mut client in &clients {
        client.write_all(GET).unwrap();
        served.answer();
        assert_eq!(http_answer(client).0, 422);
    }
    assert_eq!(counted(&mut served).yielded, 1);
    assert_eq!(all(&clients[0]), "", "it was idle the longest");
    // All the others still are served.
    (&clients[1]).write_all(GET).unwrap();
    served.answer();
    assert_eq!(http_answer(&clients[1]).0, 422);
}

#[test]
fn answers_that_are_none_are_counted() {
    let mut served = served("counts", 10_000);
    let late = Reply::Late("worker 0".to_string());
    let no_memory = Reply::Refused(Refusal::OutOfMemory);
    for (reply, status) in [(late, 504), (no_memory, 507)] {
        let mut client = served.client();
        client.write_all(GET).unwrap();
        served.reply(reply);
        assert_eq!(http_answer(&client).0, status);
    }
    let counts = counted(&mut served);
    assert_eq!((counts.late, counts.no_memory, counts.http), (1, 1, 2));
}

#[test]
fn http_that_hangs_is_cut_off() {
    let mut served = served("http-hang", 300);
    let mut idle = served.client();
    idle.write_all(GET).unwrap();
    served.answer();
    assert_eq!(http_answer(&idle).0, 422);
    let mut halfway = served.client();
    halfway.write_all(b"GET /v1/tim").unwrap();
    let mut body = served.client();
    let head = b"POST /v1/do HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n\"fl";
    body.write_all(head).unwrap();
    let mut trickling = served.client();
    trickling.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    // One header after another, for ever, if it were let.
    let sent = (0..100_000)
        .take_while(|_| trickling.write_all(b"x: y\r\n").is_ok())
        .count();
    assert!(sent < 100_000);
    for client in [&idle, &halfway] {
        assert_eq!(all(client), "");
    }
    assert!(!all(&body).contains("200 OK"));
}

#[test]
fn who_takes_nothing_of_an_answer_is_cut_off() {
    let served = served("deaf", 300);
    let mut client = served.client();
    // Answers of this document fill every buffer on the way; then nothing more is read of us, and our
    // writing waits until we are cut off.
    let requests = b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let taken = (0..1000).take_while(|_| client.write_all(&requests).is_ok());
    assert!(taken.count() < 1000);
    let answers = all_or_nothing(&client).matches("HTTP/1.1 200 OK").count();
    assert!((1..1000).contains(&answers), "{answers}");
}

/// Whoever is already served goes on being served.
#[test]
fn ten_thousand_connections_are_turned_away_in_json() {
    let mut served = served("crowd", 10_000);
    let clients: Vec<Peer> = (0..CLIENTS_MAX).map(|_| served.client()).collect();
    (&clients[CLIENTS_MAX - 1]).write_all(ASK).unwrap();
    served.answer();
    line(&clients[CLIENTS_MAX - 1]);
    let mut told = 0;
    for _ in 0..10_000 {
        let mut client = served.client();
        // It may be closed at once, without a word.
        if client.write_all(GET).is_ok() {
            told += usize::from(all_or_nothing(&client).contains("503 Service Unavailable"));
        }
    }
    assert!(told > 0, "nobody was told");
    (&clients[0]).write_all(ASK).unwrap();
    served.answer();
    assert_eq!(line(&clients[0]), "{\"refused\":\"invalid\"}\n");
    // And there is room again once somebody goes.
    drop(clients);
    let mut client = served.client();
    let answer = loop {
        client
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .unwrap();
        match http_answer(&client) {
            (503, _) => client = served.client(),
            answer => break answer,
        }
    };
    assert_eq!(answer.0, 200);
}

fn all_or_nothing(mut client: &Peer) -> String {
    let mut text = Vec::new();
    let _ = client.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}
