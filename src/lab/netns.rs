//! Namespaces: a process in namespaces of its own, hosts inside it, and the way into them. They are
//! held by processes only, never by a mount or a name: when the last process is gone, the kernel
//! takes everything down by itself. See namespaces(7), user_namespaces(7), pid_namespaces(7).

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The inode of the network namespace of the calling thread. Two namespaces never share one.
///
/// # Errors
/// When `/proc` is not there.
pub fn current_net() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Proof that the calling thread is not in the machine's own network. Whatever opens a socket in a
/// lab asks for it. It cannot be sent to another thread, since it says nothing about that one.
#[derive(Debug)]
pub struct Inside {
    this_thread_only: PhantomData<*const ()>,
}

impl Inside {
    /// Compares the thread's network namespace with the machine's, which has inode `machine`.
    ///
    /// # Errors
    /// When they are the same, or when it cannot be known.
    pub fn check(machine: u64) -> io::Result<Inside> {
        if current_net()? == machine {
            return Err(io::Error::other(
                "this thread is still in the machine's own network namespace",
            ));
        }
        Ok(Inside {
            this_thread_only: PhantomData,
        })
    }
}

/// A process started in namespaces of its own: mounts, network, process ids, and users unless the
/// starter is root. It is process 1 of its process namespace: when it ends, for whatever reason,
/// the kernel ends every process that was started in there.
#[derive(Debug)]
pub struct Boxed {
    /// Process id as the starter sees it.
    pub pid: i32,
    /// Becomes readable when the process and all others of its process namespace have ended.
    pub pidfd: OwnedFd,
    /// Was a user namespace needed?
    pub own_users: bool,
}

impl Boxed {
    /// Ends it by force, and all others in there with it.
    pub fn kill(&self) {
        let nothing: *const libc::siginfo_t = std::ptr::null();
        let (call, fd) = (libc::SYS_pidfd_send_signal, self.pidfd.as_raw_fd());
        // SAFETY: the descriptor is open; a null siginfo is allowed.
        unsafe { libc::syscall(call, fd, libc::SIGKILL, nothing, 0) };
    }

    /// Takes leave of it; waits until it has ended.
    pub fn reap(&self) {
        // SAFETY: waitpid with a null status only takes leave; the process is our child.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }
}

/// Starts this very program again with `arguments` in new namespaces, with nothing on stdin, stdout
/// and stderr in `log`, and the descriptors `keep` left open. It dies when the calling thread ends.
/// As root it is root; otherwise it becomes root of a user namespace of its own.
///
/// # Errors
/// What the system refused, with what may be done about it.
pub fn start_boxed(arguments: &[String], log: &File, keep: &[RawFd]) -> io::Result<Boxed> {
    // SAFETY: geteuid only reads a number of the calling process.
    let root = unsafe { libc::geteuid() } == 0;
    if root {
        // Root inside a container may lack CAP_SYS_ADMIN and still be allowed a user namespace.
        match clone_boxed(arguments, log, keep, false) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            done => return done,
        }
    }
    clone_boxed(arguments, log, keep, true).map_err(explain_refusal)
}

fn explain_refusal(error: io::Error) -> io::Error {
    let mut hints = String::new();
    for (name, bad, hint) in [
        ("user/max_user_namespaces", "0", "user.max_user_namespaces"),
        ("user/max_net_namespaces", "0", "user.max_net_namespaces"),
        (
            "kernel/unprivileged_userns_clone",
            "0",
            "kernel.unprivileged_userns_clone=1",
        ),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ] {
        let value = fs::read_to_string(Path::new("/proc/sys").join(name));
        if value.is_ok_and(|value| value.trim() == bad) {
            hints = format!("{hints}; {name} is {bad} here, root can allow it: sysctl -w {hint}");
        }
    }
    io::Error::new(
        error.kind(),
        format!("cannot make namespaces: {error}{hints}; or run it as root"),
    )
}

fn clone_boxed(
    arguments: &[String],
    log: &File,
    keep: &[RawFd],
    own_users: bool,
) -> io::Result<Boxed> {
    let words: Vec<CString> = ["ulvs"]
        .into_iter()
        .chain(arguments.iter().map(String::as_str))
        .map(|word| CString::new(word).map_err(io::Error::other))
        .collect::<Result<_, _>>()?;
    let mut argv: Vec<*const libc::c_char> = words.iter().map(|word| word.as_ptr()).collect();
    argv.push(std::ptr::null());
    // SAFETY: geteuid and getegid only read numbers of the calling process.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let child = Child {
        argv,
        null: File::open("/dev/null")?,
        log: log.as_raw_fd(),
        keep,
        maps: own_users.then(|| (format!("0 {user} 1"), format!("0 {group} 1"))),
    };
    let (mut failure, failure_writer) = io::pipe()?;
    let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWPID;
    if own_users {
        flags |= libc::CLONE_NEWUSER;
    }
    let mut pidfd: libc::c_int = -1;
    // SAFETY: clone without CLONE_VM and with a null stack is fork: the child has its own copy of
    // everything and runs on a copy of this stack. Until execve it makes system calls only. The
    // only pointer is that of pidfd, which outlives the call.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags | libc::CLONE_PIDFD | libc::SIGCHLD),
            0,
            &raw mut pidfd,
            0,
            0,
        )
    };
    if pid == 0 {
        let code = child.become_boxed();
        // SAFETY: write and _exit are async-signal-safe; the bytes live on this stack.
        unsafe {
            libc::write(failure_writer.as_raw_fd(), (&raw const code).cast(), 8);
            libc::_exit(127);
        }
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has put a new descriptor of ours into pidfd, which nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(failure_writer);
    // The pipe closes by itself at execve; bytes in it tell which step failed, and why.
    let mut code = [0; 8];
    match failure.read(&mut code)? {
        0 => Ok(Boxed {
            pid: i32::try_from(pid).expect("a process id has 31 bits"),
            pidfd,
            own_users,
        }),
        _ => {
            let errno = i32::from_ne_bytes(code[4..].try_into().expect("four bytes"));
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

/// What the child needs between clone and execve, made ready before.
struct Child<'a> {
    argv: Vec<*const libc::c_char>,
    null: File,
    log: RawFd,
    keep: &'a [RawFd],
    maps: Option<(String, String)>,
}

impl Child<'_> {
    /// Runs in the child. Returns only if something failed: the step and errno.
    fn become_boxed(&self) -> [i32; 2] {
        let failed = |step| {
            // SAFETY: errno is this thread's own.
            [step, unsafe { *libc::__errno_location() }]
        };
        if let Some((users, groups)) = &self.maps {
            // setgroups must be given up before an ordinary user may write gid_map.
            for (path, text) in [
                (c"/proc/self/setgroups", "deny"),
                (c"/proc/self/uid_map", users.as_str()),
                (c"/proc/self/gid_map", groups.as_str()),
            ] {
                // SAFETY: open, write and close get a C string and bytes that live long enough.
                unsafe {
                    let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                    if fd < 0 || libc::write(fd, text.as_ptr().cast(), text.len()) < 0 {
                        return failed(1);
                    }
                    libc::close(fd);
                }
            }
        }
        // SAFETY: system calls with constants, descriptors of ours, and C strings that live long
        // enough; the signal set is written before it is read.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0 || libc::setsid() < 0 {
                return failed(2);
            }
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
            let private = libc::MS_REC | libc::MS_PRIVATE;
            let (root, nothing) = (c"/".as_ptr(), std::ptr::null());
            if libc::mount(nothing, root, nothing, private, nothing.cast()) < 0 {
                return failed(3);
            }
            // Best effort: with a /proc of its own, `ps` in the lab shows the lab. Where parts of
            // /proc are covered (containers) the kernel refuses, and the old one stays.
            let proc = c"proc".as_ptr();
            libc::mount(proc, c"/proc".as_ptr(), proc, 0, nothing.cast());
            for (from, to) in [(self.null.as_raw_fd(), 0), (self.log, 1), (self.log, 2)] {
                if libc::dup2(from, to) < 0 {
                    return failed(4);
                }
            }
            // What the starter was given by others is not for us: somebody may wait for its end.
            // Before Linux 5.11 that is refused, and nothing worse happens than such a wait.
            let on_exec = libc::CLOSE_RANGE_CLOEXEC;
            libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, on_exec);
            for fd in self.keep {
                if libc::fcntl(*fd, libc::F_SETFD, 0) < 0 {
                    return failed(5);
                }
            }
            libc::execv(c"/proc/self/exe".as_ptr(), self.argv.as_ptr());
        }
        failed(6)
    }
}

/// The namespaces of one host, open. As long as somebody has them open, or a thread is in them,
/// they are there.
#[derive(Debug)]
pub struct HostNamespaces {
    /// Network.
    pub net: File,
    /// Mounts.
    pub mnt: File,
    /// Host name.
    pub uts: File,
}

/// Takes the calling thread into new namespaces of network, mounts and host name, and gives back
/// the proof and the namespaces. For a thread of its own: it never comes back.
///
/// # Errors
/// What the system refused.
pub fn enter_new_host(name: &str, machine: u64) -> io::Result<(Inside, HostNamespaces)> {
    // SAFETY: unshare changes the namespaces of this thread and touches no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWUTS) })?;
    let inside = Inside::check(machine)?;
    // SAFETY: the name's bytes live longer than the call.
    check(unsafe { libc::sethostname(name.as_ptr().cast(), name.len()) })?;
    // Best effort, as `ip netns exec` does it: /sys shows the interfaces of the network it was
    // mounted from. Nothing of ours reads it, but programs started by `lab exec` may.
    let sysfs = c"sysfs".as_ptr();
    // SAFETY: constants only.
    unsafe { libc::mount(sysfs, c"/sys".as_ptr(), sysfs, 0, std::ptr::null()) };
    let open = |name: &str| File::open(Path::new("/proc/thread-self/ns").join(name));
    let namespaces = HostNamespaces {
        net: open("net")?,
        mnt: open("mnt")?,
        uts: open("uts")?,
    };
    Ok((inside, namespaces))
}

/// Takes the calling process into the namespaces of a host: `keeper` is the process that holds
/// them, `descriptors` are its open files of the namespaces (network, mounts, host name). Processes
/// started afterwards end when the keeper ends. Only for a process with one thread.
///
/// # Errors
/// When the keeper is gone, belongs to somebody else, or its network is the machine's own.
pub fn enter_host(keeper: i32, descriptors: [i32; 3], machine: u64) -> io::Result<()> {
    let users = File::open(format!("/proc/{keeper}/ns/user"))?;
    let pids = File::open(format!("/proc/{keeper}/ns/pid"))?;
    let [net, mnt, uts] = descriptors.map(|fd| File::open(format!("/proc/{keeper}/fd/{fd}")));
    let here = fs::metadata("/proc/self/ns/user")?.ino();
    if users.metadata()?.ino() != here {
        join(&users, libc::CLONE_NEWUSER)?;
    }
    join(&pids, libc::CLONE_NEWPID)?;
    join(&net?, libc::CLONE_NEWNET)?;
    join(&uts?, libc::CLONE_NEWUTS)?;
    Inside::check(machine)?;
    // Mounts come last: the lab's /proc does not know this process, which is not in there, only the
    // ones it starts.
    join(&mnt?, libc::CLONE_NEWNS)
}

fn join(namespace: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: setns takes a descriptor that is open for the time of the call.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kind) })
}

/// Asks to be killed when the calling thread's parent ends, or takes that wish back.
///
/// # Errors
/// Never on Linux since 2.1.57, but the kernel may say so.
pub fn die_with_parent(wish: bool) -> io::Result<()> {
    let signal = if wish { libc::SIGKILL } else { 0 };
    // SAFETY: prctl with a number.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal) })
}

/// The name that `ps` shows for this process, at most 15 bytes.
pub fn name_process(name: &CStr) {
    // SAFETY: prctl reads at most 16 bytes of the name, up to its zero byte.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_itself_is_not_inside() {
        let machine = current_net().unwrap();
        assert!(Inside::check(machine).is_err());
    }

    #[test]
    fn a_new_host_is_inside_and_the_machine_stays_where_it_was() {
        let machine = current_net().unwrap();
        let entered = std::thread::spawn(move || {
            enter_new_host("host", machine).map(|(_, namespaces)| namespaces)
        });
        match entered.join().unwrap() {
            Ok(namespaces) => {
                assert_ne!(namespaces.net.metadata().unwrap().ino(), machine);
                assert_eq!(current_net().unwrap(), machine);
            }
            Err(error) => {
                // Only root may do this outside a user namespace; tests/lab.rs covers the rest.
                assert_eq!(error.raw_os_error(), Some(libc::EPERM));
                println!("skipped: {error}");
            }
        }
    }
}
