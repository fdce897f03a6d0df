//! A lab that is up, with a folder of its own: commands in its hosts, and an end that leaves nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
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
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.lab().args(["down", LAB]).output();
        let _ = fs::remove_dir_all(&self.folder);
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
