//! What a lab has made is written down first and removed always. One folder per lab holds its
//! record, its log files and the director's control socket. Nothing else outlives a process:
//! namespaces, links, routes and mounts go with the last process of the lab (see `netns`).
//!
//! A lock file tells whether somebody of a lab still lives, also before that somebody is recorded.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::topology::Topology;

/// Names another folder for the labs' records; for tests that must not see each other's labs.
pub const FOLDER_VARIABLE: &str = "ULVS_LAB_DIR";
/// Labs one user may have at once.
const LABS_MAX: usize = 64;
/// How long a starter may take to stop its lab in order.
const STARTER_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a keeper may take to stop the director in order.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long the kernel may take to end what was killed.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the machine's process 1 may take to bury what has ended; nothing runs any more then.
const BURIAL_TIMEOUT: Duration = Duration::from_secs(3);
const RECORD: &str = "lab.json";
const LOCK: &str = "lock";

/// A process that cannot be mistaken for another one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat`, proc(5).
    pub started_ticks: u64,
}

impl Process {
    /// The process that has this number now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> io::Result<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in field 2 may hold spaces and brackets, so count from the last bracket.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let started = rest
            .split_whitespace()
            .nth(19)
            .and_then(|word| word.parse().ok());
        let started_ticks = started.ok_or_else(|| io::Error::other("cannot read /proc"))?;
        Ok(Process { pid, started_ticks })
    }

    /// A descriptor of exactly this process, if it lives.
    fn open(self) -> Option<OwnedFd> {
        // SAFETY: pidfd_open takes two numbers and gives back a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            return None;
        }
        let fd = i32::try_from(fd).expect("a descriptor has 31 bits");
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let same = Process::of(self.pid).is_ok_and(|now| now == self);
        (same && !has_ended(&fd, Duration::ZERO)).then_some(fd)
    }

    /// Is it still there?
    pub fn is_alive(self) -> bool {
        self.open().is_some()
    }

    /// Asks the process to stop; ends it by force when it has not stopped in time; waits until it
    /// is gone. True when it stopped by itself.
    fn end(self, patience: Duration) -> bool {
        let Some(fd) = self.open() else {
            return true;
        };
        let send = |signal: i32| {
            let nothing: *const libc::siginfo_t = std::ptr::null();
            let call = libc::SYS_pidfd_send_signal;
            // SAFETY: the descriptor is open; a null siginfo is allowed.
            unsafe { libc::syscall(call, fd.as_raw_fd(), signal, nothing, 0) };
        };
        send(libc::SIGTERM);
        if has_ended(&fd, patience) {
            return true;
        }
        send(libc::SIGKILL);
        has_ended(&fd, KILL_TIMEOUT);
        false
    }

    /// Waits until its number is free. An orphan stays as a zombie, with its process namespace, until
    /// the machine's process 1 takes leave of it; some take their time.
    #[expect(
        clippy::disallowed_methods,
        reason = "no event tells that a zombie is buried"
    )]
    fn wait_until_buried(self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while Process::of(self.pid).is_ok_and(|now| now == self) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Waits until the process of a pidfd has ended, at most `patience`. A process that is process 1 of
/// its namespace has ended when all others in there have.
pub fn has_ended(pidfd: &OwnedFd, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: pidfd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let left_ms = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: one pollfd, which lives on this stack.
        let ready = unsafe { libc::poll(&raw mut poll, 1, left_ms) };
        if ready != -1 || io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            return ready == 1;
        }
    }
}

/// How to enter a host: the keeper's open files of its namespaces.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostRecord {
    /// Name of the host.
    pub name: String,
    /// Descriptors in the keeper: network, mounts, host name.
    pub descriptors: [i32; 3],
}

/// What is known of a lab from outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// Name of the lab.
    pub name: String,
    /// Of which boot of the machine the process numbers are.
    pub boot: String,
    /// Who typed the command, while it runs.
    pub starter: Option<Process>,
    /// Who holds the namespaces.
    pub keeper: Option<Process>,
    /// Inode of the machine's own network namespace.
    pub machine_net: u64,
    /// The hosts, once they are there.
    pub hosts: Vec<HostRecord>,
    /// The network.
    pub topology: Topology,
}

/// A lab's folder, ours as long as this lives or as the keeper does.
#[derive(Debug)]
pub struct Claim {
    /// The folder.
    pub folder: PathBuf,
    /// Held by the starter and by the keeper: the same open file.
    pub lock: File,
    /// What stands in the folder; call [`Claim::write`] after a change.
    pub record: Record,
}

impl Claim {
    /// Takes a name for a lab, `topology.name` or that with a number if no name is given, and
    /// writes down who we are before anything is made.
    ///
    /// # Errors
    /// When the name is taken, is no name, or the folder cannot be written.
    pub fn new(name: Option<&str>, topology: &Topology, machine_net: u64) -> io::Result<Claim> {
        let name = name.map(checked).transpose()?;
        let root = Root::lock(&folder_of_all()?)?;
        root.sweep();
        let claimed = Claim::in_root(&root, name, topology, machine_net);
        if claimed.is_err() {
            root.remove_if_empty();
        }
        claimed
    }

    fn in_root(
        root: &Root,
        name: Option<String>,
        topology: &Topology,
        machine_net: u64,
    ) -> io::Result<Claim> {
        let numbered = |number: usize| match number {
            1 => topology.name.clone(),
            _ => format!("{}-{number}", topology.name),
        };
        let wanted: Vec<String> = match name {
            Some(name) => vec![name],
            None => (1..=LABS_MAX).map(numbered).collect(),
        };
        for name in &wanted {
            let folder = root.path.join(name);
            match DirBuilder::new().mode(0o700).create(&folder) {
                Ok(()) => return claim_folder(folder, name, topology, machine_net),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(about(&folder, &error)),
            }
        }
        Err(io::Error::other(format!(
            "the lab {} is up already; end it with: ulvs lab down {}",
            wanted[0], wanted[0]
        )))
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self) -> io::Result<()> {
        let text = serde_json::to_string_pretty(&self.record)?;
        let new = self.folder.join("lab.json.new");
        fs::write(&new, text).map_err(|error| about(&new, &error))?;
        fs::rename(&new, self.folder.join(RECORD))
    }

    /// Removes the folder: the lab is gone.
    ///
    /// # Errors
    /// When something in it cannot be removed.
    pub fn remove(self) -> io::Result<()> {
        let root = Root::lock(self.folder.parent().unwrap_or(Path::new("/")))?;
        let removed = remove_folder(&self.folder);
        drop(self.lock);
        root.remove_if_empty();
        removed
    }
}

fn claim_folder(
    folder: PathBuf,
    name: &str,
    topology: &Topology,
    machine_net: u64,
) -> io::Result<Claim> {
    let lock = File::create(folder.join(LOCK))?;
    // Somebody who lists the labs may hold it for a moment.
    lock.lock()?;
    let pid = i32::try_from(std::process::id()).expect("a process id has 31 bits");
    let claim = Claim {
        record: Record {
            name: name.to_string(),
            boot: boot()?,
            starter: Some(Process::of(pid)?),
            keeper: None,
            machine_net,
            hosts: Vec::new(),
            topology: topology.clone(),
        },
        folder,
        lock,
    };
    claim.write()?;
    Ok(claim)
}

/// A lab that was found.
#[derive(Debug)]
pub struct Found {
    /// Its folder.
    pub folder: PathBuf,
    /// Its record; nothing if the starter died before it could write one.
    pub record: Option<Record>,
    /// Does somebody of it still live?
    pub alive: bool,
}

impl Found {
    fn at(folder: PathBuf) -> Found {
        let text = fs::read_to_string(folder.join(RECORD));
        let record: Option<Record> = text.ok().and_then(|text| serde_json::from_str(&text).ok());
        let boot = boot().unwrap_or_default();
        let record = record.filter(|record| record.boot == boot);
        let recorded = record
            .iter()
            .flat_map(|record| [record.starter, record.keeper]);
        let lives = recorded.flatten().any(Process::is_alive);
        let alive = lives || is_locked(&folder);
        Found {
            folder,
            record,
            alive,
        }
    }

    /// The name of the lab, which is that of its folder.
    pub fn name(&self) -> String {
        let name = self.folder.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Ends the lab's own processes and nobody else's, in order if they obey.
    fn end(&self) -> io::Result<()> {
        if let Some(record) = &self.record {
            // The starter goes first, since it may be about to make more; it stops its lab itself.
            if let Some(starter) = record.starter {
                starter.end(STARTER_TIMEOUT);
            }
            if let Some(keeper) = record.keeper {
                keeper.end(KEEPER_TIMEOUT);
            }
        }
        // A keeper that was killed off before it was recorded has nothing yet and ends by itself.
        if wait_unlocked(&self.folder, KILL_TIMEOUT) {
            return Ok(());
        }
        let text = format!("somebody still holds {}/{LOCK}", self.folder.display());
        Err(io::Error::other(text))
    }
}

/// The labs of this user.
///
/// # Errors
/// When their folder cannot be read.
pub fn list() -> io::Result<Vec<Found>> {
    let root = folder_of_all()?;
    let folders = match fs::read_dir(&root) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| about(&root, &error))?,
    };
    let mut found = Vec::new();
    for folder in folders.take(LABS_MAX) {
        found.push(folder?.path());
    }
    found.sort();
    Ok(found.into_iter().map(Found::at).collect())
}

/// Ends labs and removes what is left of them: one, or all of this user. Gives back their names.
///
/// # Errors
/// When there is no lab of that name, or something of it cannot be ended or removed.
pub fn down(name: Option<&str>) -> io::Result<Vec<String>> {
    let (mut ended, mut keepers) = (Vec::new(), Vec::new());
    // With the lock, so that no lab is seen half made.
    let root = Root::lock(&folder_of_all()?)?;
    let labs = list()?;
    root.remove_if_empty();
    for lab in labs {
        if name.is_some_and(|name| name != lab.name()) {
            continue;
        }
        lab.end()?;
        let root = Root::lock(&folder_of_all()?)?;
        // Its own starter may have been quicker, and another lab may have taken the name since.
        if !is_locked(&lab.folder) {
            remove_folder(&lab.folder)?;
        }
        root.remove_if_empty();
        ended.push(lab.name());
        keepers.extend(lab.record.and_then(|record| record.keeper));
    }
    for keeper in keepers {
        keeper.wait_until_buried(BURIAL_TIMEOUT);
    }
    match name {
        Some(name) if ended.is_empty() => Err(io::Error::new(
            ErrorKind::NotFound,
            format!("there is no lab {name}; see: ulvs lab list"),
        )),
        _ => Ok(ended),
    }
}

/// The folder that holds the labs' folders. Whoever has it locked is the only one who adds and
/// removes labs.
struct Root {
    path: PathBuf,
    lock: File,
}

impl Root {
    fn lock(path: &Path) -> io::Result<Root> {
        for _ in 0..100 {
            let mut builder = DirBuilder::new();
            let made = builder.recursive(true).mode(0o700).create(path);
            made.map_err(|error| about(path, &error))?;
            ours_alone(path)?;
            let lock = File::open(path)?;
            lock.lock()?;
            // Somebody may have removed the empty folder while we waited for it.
            let same = fs::metadata(path).map(|now| now.ino());
            if same.is_ok_and(|now| lock.metadata().is_ok_and(|then| then.ino() == now)) {
                let path = path.to_path_buf();
                return Ok(Root { path, lock });
            }
        }
        Err(io::Error::other(format!("cannot lock {}", path.display())))
    }

    /// Removes what dead labs have left. Here, because it takes the lock.
    fn sweep(&self) {
        let folders = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for folder in folders {
            let lab = Found::at(folder.path());
            if !lab.alive {
                // A folder that stays is in nobody's way: it only keeps its name taken.
                let _ = remove_folder(&lab.folder);
            }
        }
    }

    fn remove_if_empty(self) {
        // These fail when something is in there, which is what we want.
        let _ = fs::remove_dir(&self.path);
        if let Some(parent) = self.path.parent().filter(|parent| is_own(parent)) {
            let _ = fs::remove_dir(parent);
        }
        drop(self.lock);
    }
}

fn is_locked(folder: &Path) -> bool {
    let Ok(lock) = File::open(folder.join(LOCK)) else {
        return false;
    };
    matches!(lock.try_lock_shared(), Err(fs::TryLockError::WouldBlock))
}

/// Waits until nobody holds the lock; false if that takes longer than `patience`.
fn wait_unlocked(folder: &Path, patience: Duration) -> bool {
    let Ok(lock) = File::open(folder.join(LOCK)) else {
        return true;
    };
    let (done, unlocked) = mpsc::channel();
    // flock(2) knows no deadline, so a thread waits. If it waits too long it ends with the program.
    std::thread::spawn(move || lock.lock_shared().is_ok_and(|()| done.send(()).is_ok()));
    unlocked.recv_timeout(patience).is_ok()
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(about(folder, &error)),
        _ => Ok(()),
    }
}

/// `/run/ulvs/labs` for root, `$XDG_RUNTIME_DIR/ulvs/labs` for others, and `/tmp/ulvs-UID/labs`
/// where there is no such folder.
fn folder_of_all() -> io::Result<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER_VARIABLE) {
        return std::path::absolute(folder);
    }
    // SAFETY: geteuid only reads a number of the calling process.
    let user = unsafe { libc::geteuid() };
    let runtime = match user {
        0 => Some(PathBuf::from("/run")),
        _ => std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from),
    };
    let usable = |path: &PathBuf| fs::metadata(path).is_ok_and(|it| it.uid() == user);
    Ok(match runtime.filter(usable) {
        Some(runtime) => runtime.join("ulvs/labs"),
        None => PathBuf::from(format!("/tmp/ulvs-{user}/labs")),
    })
}

/// Is this a folder that only we put there, between the system's and the labs'?
fn is_own(parent: &Path) -> bool {
    let name = parent.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ulvs") && std::env::var_os(FOLDER_VARIABLE).is_none()
}

/// In /tmp anybody may have made a folder of that name before us.
fn ours_alone(path: &Path) -> io::Result<()> {
    // SAFETY: geteuid only reads a number of the calling process.
    let user = unsafe { libc::geteuid() };
    for path in [Some(path), path.parent().filter(|parent| is_own(parent))] {
        let Some(path) = path else { continue };
        let it = fs::symlink_metadata(path).map_err(|error| about(path, &error))?;
        if !it.is_dir() || it.uid() != user || it.mode() & 0o022 != 0 {
            let text = format!("{} is not a folder of ours alone", path.display());
            return Err(io::Error::new(ErrorKind::PermissionDenied, text));
        }
    }
    Ok(())
}

fn checked(name: &str) -> io::Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 32 || name.starts_with('-') || !name.chars().all(fine) {
        let text = format!("{name:?} is no name for a lab: letters, digits, - and _, at most 32");
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    Ok(name.to_string())
}

fn boot() -> io::Result<String> {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim().to_string())
}

fn about(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_with_the_same_number_is_not_the_same() {
        let me = Process::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(me.is_alive());
        let other = Process {
            started_ticks: me.started_ticks + 1,
            ..me
        };
        assert!(!other.is_alive());
        // Ending it must therefore not end us.
        assert!(other.end(Duration::ZERO));
    }

    #[test]
    fn names_cannot_leave_the_folder() {
        for name in ["", "..", "a/b", "-x", "a b", &"x".repeat(33)] {
            assert!(checked(name).is_err(), "{name:?}");
        }
        assert!(checked("nat-2").is_ok());
    }

    #[test]
    fn a_lock_is_held_until_the_last_holder_is_gone() {
        let folder = std::env::temp_dir().join(format!("ulvs-lock-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let lock = File::create(folder.join(LOCK)).unwrap();
        lock.lock().unwrap();
        let second = lock.try_clone().unwrap();
        drop(lock);
        assert!(is_locked(&folder));
        drop(second);
        assert!(!is_locked(&folder));
        fs::remove_dir_all(&folder).unwrap();
    }
}
