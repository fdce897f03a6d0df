//! The other end of the control socket: one request line out, one reply line back.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::config::codec::{Lines, REPLY_BYTES_MAX, control_path, decode_reply, encode};
use crate::config::{Reply, Request};
use crate::nic::slice;

/// How long an answer may take. The daemon itself answers within 5 s, however its workers fare.
const ANSWER_TIME: Duration = Duration::from_secs(15);

/// A command may have much to read and to print: whoever moves packets beside it comes first.
pub fn make_room() {
    // Where it cannot be had the command runs as others do.
    let _ = slice::ask_for_slices(slice::FOR_LONG_WORK);
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    lines: Lines,
}

/// The path of the control socket for this user (`ULVS_CONTROL` names another).
pub fn path() -> String {
    let variable = |name: &str| std::env::var(name).ok();
    let uid = fs::metadata("/proc/self").map_or(u32::MAX, |meta| meta.uid());
    let (given, runtime) = (variable("ULVS_CONTROL"), variable("XDG_RUNTIME_DIR"));
    control_path(given.as_deref(), uid, runtime.as_deref())
}

impl Client {
    /// Connects to the daemon behind the socket `path`.
    ///
    /// # Errors
    /// The system's: nobody there, no right.
    pub fn connect(path: &str) -> std::io::Result<Client> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(ANSWER_TIME))?;
        stream.set_write_timeout(Some(ANSWER_TIME))?;
        let lines = Lines::new(REPLY_BYTES_MAX);
        Ok(Client { stream, lines })
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// What went wrong with the connection, or with the answer, as a sentence.
    pub fn ask(&mut self, request: &Request) -> Result<Reply, String> {
        let sent = self.stream.write_all(&encode(request));
        sent.map_err(|error| format!("the daemon does not listen: {error}"))?;
        let line = self.read_line()?;
        decode_reply(&line).map_err(|error| format!("the daemon's answer is wrong: {error}"))
    }

    fn read_line(&mut self) -> Result<Vec<u8>, String> {
        let mut chunk = vec![0; 1 << 16];
        loop {
            if let Some(line) = self.lines.next_line().map_err(|error| error.to_string())? {
                return Ok(line);
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("the daemon closed the connection".to_string()),
                Ok(count) => self.lines.push(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(format!("the daemon does not answer: {error}")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn served(answer: &'static [u8]) -> Result<Reply, String> {
        let name = format!("ulvs-client-{}-{}.sock", std::process::id(), answer.len());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 64];
            let count = stream.read(&mut request).unwrap();
            assert_eq!(&request[..count], b"\"stop\"\n");
            for piece in answer.chunks(3) {
                stream.write_all(piece).unwrap();
            }
        });
        let mut client = Client::connect(path.to_str().unwrap()).unwrap();
        let reply = client.ask(&Request::Stop);
        server.join().unwrap();
        fs::remove_file(&path).unwrap();
        reply
    }

    #[test]
    fn an_answer_comes_in_any_pieces() {
        assert_eq!(served(b"\"done\"\n"), Ok(Reply::Done));
    }

    #[test]
    fn no_answer_and_nonsense_are_told_apart() {
        let closed = Err("the daemon closed the connection".to_string());
        assert_eq!(served(b"\"don"), closed);
        assert!(served(b"garbage\n").unwrap_err().contains("column 1"));
        assert!(Client::connect("/nowhere/at/all").is_err());
    }
}
