//! A lab that is up, with a folder of its own: commands in its hosts, and an end that leaves nothing.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Long enough for a busy machine; a test that needs it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The one lab of a site.
const LAB: &str = "site";

/// The program under test.
pub fn ulvs() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_ulvs"))
}

/// Makes the preload library, which is a package of its own, beside the program.
pub fn build_library() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        let folder = ulvs().parent().unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "-p", "ulvs-shim"]);
        build.arg("--target-dir").arg(folder.parent().unwrap());
        if folder.ends_with("release") {
            build.arg("--release");
        }
        let built = build.output().unwrap();
        let complaints = String::from_utf8_lossy(&built.stderr);
        assert!(built.status.success(), "{complaints}");
        assert!(folder.join(ulvs::cli::exec::LIBRARY).exists());
    });
}

/// Is this program of Debian's here? `tools/ci` installs those that the tests call.
pub fn is_installed(program: &str) -> bool {
    let folders = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];
    let found = folders
        .iter()
        .any(|folder| Path::new(folder).join(program).exists());
    if !found {
        println!("skipped: {program}: it is not installed");
    }
    found
}

/// A lab that is up.
pub struct Site {
    /// Of this site alone; it goes with it.
    pub folder: PathBuf,
}

/// A process in a host of a site; ended with what holds it.
pub struct Inside {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

impl Site {
    /// `ulvs lab WORDS --keep`; `None` with a printed reason where there can be no labs.
    pub fn new(words: &[&str]) -> Option<Site> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("ulvs-programs-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        let site = Site { folder };
        let mut command = site.lab();
        let made = command
            .args(words)
            .args(["--keep", "--name", LAB])
            .output()
            .unwrap();
        let complaints = String::from_utf8_lossy(&made.stderr);
        if complaints.contains("cannot make namespaces") {
            println!("skipped: programs in a lab: {}", complaints.trim());
            return None;
        }
        assert!(made.status.success(), "{complaints}");
        Some(site)
    }

    fn lab(&self) -> Command {
        let mut command = Command::new(ulvs());
        command
            .arg("lab")
            .env("ULVS_LAB_DIR", self.folder.join("labs"));
        command.stdin(Stdio::null());
        command
    }

    /// A command in a host, with the folders of administrators in its path.
    pub fn command(&self, host: &str, words: &[&str]) -> Command {
        let mut command = self.lab();
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{path}:/usr/sbin:/sbin"));
        command.args(["exec", "--lab", LAB, host, "--"]).args(words);
        command
    }

    /// Runs it to its end.
    pub fn run(&self, host: &str, words: &[&str]) -> Output {
        self.command(host, words).output().unwrap()
    }

    /// Runs it, and what it prints if it ends with 0 and complains of nothing.
    pub fn fine(&self, host: &str, words: &[&str]) -> String {
        let output = self.run(host, words);
        let complaints = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {}\n{complaints}",
            output.status
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// `ulvs …` in the director's host.
    pub fn ours(&self, words: &[&str]) -> String {
        let program = [ulvs().to_str().unwrap()];
        self.fine("director", &[&program, words].concat())
    }

    /// Starts a process that can be told to end by the end of its input, and whose lines can be waited
    /// for. What it complains of goes to a file of the site.
    pub fn start(&self, host: &str, words: &[&str]) -> Inside {
        let complaints = File::options()
            .append(true)
            .create(true)
            .open(self.complaints());
        let mut command = self.command(host, words);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        command.stderr(complaints.unwrap());
        let mut child = command.spawn().unwrap();
        Inside {
            stdin: child.stdin.take(),
            lines: lines_of(child.stdout.take().unwrap()),
            child,
        }
    }

    /// Where the complaints of started processes are.
    pub fn complaints(&self) -> PathBuf {
        self.folder.join("complaints")
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.lab().args(["down", LAB]).output();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn lines_of(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

impl Inside {
    /// Waits for a line that holds this.
    pub fn wait_for(&self, wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) if line.contains(wanted) => return line,
                Ok(line) => seen = seen + &line + "\n",
                Err(why) => panic!("{why}: no {wanted:?} in\n{seen}"),
            }
        }
    }

    /// Ends its input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// Waits until it has ended by itself.
    pub fn wait(&mut self) -> ExitStatus {
        until("it ends", || self.child.try_wait().unwrap())
    }

    /// Ends the process that led into the lab by force; the program inside ends with it.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again and again until there is an answer.
pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        let (_keep, never) = mpsc::channel::<()>();
        let _ = never.recv_timeout(Duration::from_millis(50));
    }
}
