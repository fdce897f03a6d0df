//! Programs as processes in a host of a lab that is up: those of others, and this one again. Each is
//! started by `ulvs lab exec`, so it ends with its lab whatever happens, and is ended by process id.
//! What it prints comes line by line.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::{Lab, netns};

/// How long an orderly end may take before it is made by force.
const END_TIMEOUT: Duration = Duration::from_secs(3);
/// Time between two looks at something that tells nobody when it happens.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Lines that may wait to be read; a program that prints more waits.
const LINES_MAX: usize = 4096;
/// The end of a log that an error shows.
const LOG_LINES_SHOWN: usize = 12;
/// State of a listening socket in `/proc/net/tcp`: `TCP_LISTEN` of `net/tcp_states.h`.
const LISTEN: &str = "0A";

/// A process in a host of a lab. It is ended when this is dropped.
#[derive(Debug)]
pub struct Program {
    words: String,
    entrance: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    log: PathBuf,
}

impl Lab {
    /// Starts a program in `host`, on processor `cpu` alone if one is given. What it prints as
    /// errors is added to a file in the lab's folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_program(
        &self,
        host: &str,
        words: &[String],
        cpu: Option<usize>,
    ) -> io::Result<Program> {
        let log = self.folder().join(format!("{host}.log"));
        let errors = File::options().append(true).create(true).open(&log)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("ulvs");
        command.args(["lab", "exec", "--lab", self.name(), host, "--"]);
        command.args(words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(errors);
        // SAFETY: the closure makes system calls on values of its own stack only.
        unsafe { command.pre_exec(move || make_ready(cpu)) };
        let mut entrance = command.spawn()?;
        let stdout = entrance.stdout.take().expect("its stdout is a pipe");
        let (sender, lines) = mpsc::sync_channel(LINES_MAX);
        std::thread::Builder::new().spawn(move || {
            let read = BufReader::new(stdout).lines().map_while(Result::ok);
            for line in read {
                if sender.send(line).is_err() {
                    return;
                }
            }
        })?;
        Ok(Program {
            words: words.join(" "),
            input: entrance.stdin.take(),
            entrance,
            lines,
            log,
        })
    }

    /// Process ids of the director that `start_director` has started, as this process sees them.
    pub fn director_pids(&self) -> Vec<i32> {
        children_of(self.keeper.pid)
            .into_iter()
            .filter(|pid| command_line(*pid).starts_with("ulvs run "))
            .collect()
    }

    /// Has somebody asked to stop (SIGINT, SIGTERM, SIGHUP)?
    pub fn is_interrupted(&self) -> bool {
        self.signals.is_pending()
    }
}

/// Runs between fork and exec: signals as at login, one processor if so wished, an end with us.
fn make_ready(cpu: Option<usize>) -> io::Result<()> {
    // SAFETY: the sets live on this stack and are written before they are read.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        if let Some(cpu) = cpu.filter(|cpu| *cpu < libc::CPU_SETSIZE as usize) {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            let bytes = size_of::<libc::cpu_set_t>();
            if libc::sched_setaffinity(0, bytes, &raw const set) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    netns::die_with_parent(true)
}

impl Program {
    /// The next line that it prints.
    ///
    /// # Errors
    /// When it prints none in time, or has ended; with the end of its log.
    pub fn next_line(&mut self, patience: Duration) -> io::Result<String> {
        self.lines.recv_timeout(patience).map_err(|error| {
            let (kind, what) = match error {
                RecvTimeoutError::Timeout => (ErrorKind::TimedOut, "says nothing"),
                RecvTimeoutError::Disconnected => (ErrorKind::UnexpectedEof, "has ended"),
            };
            self.trouble(kind, what)
        })
    }

    /// Writes a line to its input.
    ///
    /// # Errors
    /// When it does not read any more.
    pub fn tell(&mut self, line: &str) -> io::Result<()> {
        let input = self.input.as_mut();
        let input = input.ok_or_else(|| io::Error::from(ErrorKind::BrokenPipe))?;
        input.write_all(format!("{line}\n").as_bytes())
    }

    /// Waits until it has ended by itself; gives back what it printed.
    ///
    /// # Errors
    /// When it does not end in time, or not with status 0; with the end of its log.
    pub fn finish(mut self, patience: Duration) -> io::Result<String> {
        let deadline = Instant::now() + patience;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => text.extend([&line, "\n"]),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(self.trouble(ErrorKind::TimedOut, "does not end"));
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        match self.wait_until(deadline)? {
            true => Ok(text),
            false => Err(self.trouble(ErrorKind::Other, "has failed")),
        }
    }

    /// Did it end with status 0?
    fn wait_until(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            if let Some(status) = self.entrance.try_wait()? {
                return Ok(status.success());
            }
            if Instant::now() >= deadline {
                return Err(self.trouble(ErrorKind::TimedOut, "does not end"));
            }
            look_again();
        }
    }

    /// Waits until it listens on a TCP port of its host, in the eyes of that host's kernel.
    ///
    /// # Errors
    /// When it has ended or does not listen in time, with the end of its log.
    pub fn wait_until_listening(&mut self, port: u16, patience: Duration) -> io::Result<()> {
        let deadline = Instant::now() + patience;
        let wanted = format!(":{port:04X}");
        while Instant::now() < deadline {
            if self.entrance.try_wait()?.is_some() {
                return Err(self.trouble(ErrorKind::UnexpectedEof, "has ended"));
            }
            let listens = |pid: &i32| {
                let table = fs::read_to_string(format!("/proc/{pid}/net/tcp")).unwrap_or_default();
                table.lines().any(|line| {
                    let mut fields = line.split_whitespace().skip(1);
                    let local = fields.next().unwrap_or("");
                    local.ends_with(&wanted) && fields.nth(1) == Some(LISTEN)
                })
            };
            // The entrance itself stays in the machine's network until it is through.
            if children_of(self.pid()).iter().any(listens) {
                return Ok(());
            }
            look_again();
        }
        Err(self.trouble(ErrorKind::TimedOut, &format!("does not listen on {port}")))
    }

    /// Process ids of the program and of all that it has started, as this process sees them.
    pub fn pids(&self) -> Vec<i32> {
        let mut all = children_of(self.pid());
        let mut at = 0;
        while let Some(pid) = all.get(at) {
            all.extend(children_of(*pid));
            at += 1;
        }
        all
    }

    /// Asks it to end, and makes it if it does not.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if !matches!(self.entrance.try_wait(), Ok(None)) {
            return;
        }
        // The entrance waits for it and then ends, too.
        for pid in children_of(self.pid()) {
            // SAFETY: kill takes two numbers; the process is a child of the entrance, which waits
            // for it, so the number is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        if self.wait_until(Instant::now() + END_TIMEOUT).is_err() {
            // What the entrance has started dies with it.
            let _ = self.entrance.kill();
            let _ = self.entrance.wait();
        }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.entrance.id()).expect("a process id has 31 bits")
    }

    fn trouble(&self, kind: ErrorKind, what: &str) -> io::Error {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n");
        let text = format!("`{}` {what}\n{last}", self.words);
        io::Error::new(kind, text.trim_end().to_string())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "programs of others tell nobody when they listen; ends have a deadline"
)]
fn look_again() {
    std::thread::sleep(LOOK_AGAIN);
}

/// Processes whose parent is `parent`.
fn children_of(parent: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{parent}/task")).into_iter();
    let mut found = Vec::new();
    for task in tasks.flatten().flatten() {
        let text = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(
            text.split_whitespace()
                .filter_map(|pid| pid.parse::<i32>().ok()),
        );
    }
    found
}

fn command_line(pid: i32) -> String {
    let bytes = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"));
    String::from_utf8_lossy(&bytes.unwrap_or_default()).replace('\0', " ")
}
