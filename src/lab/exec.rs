//! The way into a lab that is up: a command in one of its hosts, and a page fetched from there.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::Command;

use super::{cleanup, host, netns};

/// Set for commands that `exec` starts: the lab's name.
pub const LAB_VARIABLE: &str = "ULVS_LAB";
/// Set for commands that `exec` starts: where `ulvs adm` finds the lab's director.
pub const CONTROL_VARIABLE: &str = "ULVS_CONTROL";
/// Set for commands that `exec` starts: the inode of the machine's own network.
pub const MACHINE_VARIABLE: &str = "ULVS_LAB_MACHINE";

/// The host where the director runs.
const DIRECTOR: &str = "director";
/// Folder of a lab with links to this program.
const LINKS: &str = "bin";
/// The names of the links.
const NAMES: [&str; 4] = ["ulvs", "ipvsadm", "ipvsadm-save", "ipvsadm-restore"];

/// Runs a command in a host of a lab that is up, and gives back its exit status as a shell tells
/// it. The command ends when the lab does.
///
/// # Errors
/// When there is no such lab or host, or the command cannot be started.
pub fn run(lab: Option<&str>, host: &str, command: &[String]) -> io::Result<i32> {
    let found = find(lab)?;
    let record = found
        .record
        .as_ref()
        .filter(|record| !record.hosts.is_empty());
    let record = record.ok_or_else(|| io::Error::other("that lab is not up yet"))?;
    let names: Vec<&str> = record.hosts.iter().map(|host| host.name.as_str()).collect();
    let entry = record
        .hosts
        .iter()
        .find(|entry| entry.name == host)
        .ok_or_else(|| {
            let text = format!("no host {host} in {}: {}", record.name, names.join(", "));
            io::Error::new(ErrorKind::NotFound, text)
        })?;
    let keeper = record.keeper.filter(|keeper| keeper.is_alive());
    let keeper = keeper.ok_or_else(|| io::Error::other("the keeper of that lab is gone"))?;
    let words = command.split_first();
    let (program, arguments) = words.ok_or_else(|| io::Error::other("exec needs a command"))?;
    let here = std::env::current_dir()?;
    let path = match host {
        DIRECTOR => Some(path_with_links(&found.folder.join(LINKS))?),
        _ => None,
    };
    netns::enter_host(keeper.pid, entry.descriptors, record.machine_net)?;
    // The new mount namespace has put us into its root folder.
    let _ = std::env::set_current_dir(here);
    let mut command = Command::new(program);
    command.args(arguments);
    command.env(LAB_VARIABLE, &record.name);
    command.env(MACHINE_VARIABLE, record.machine_net.to_string());
    command.env(CONTROL_VARIABLE, found.folder.join(super::CONTROL));
    if let Some(path) = path {
        command.env("PATH", path);
    }
    // SAFETY: the closure makes one system call.
    unsafe { command.pre_exec(|| netns::die_with_parent(true)) };
    leave_signals_to_child();
    let status = command.spawn().map_err(|error| {
        let text = format!("cannot run {program}: {error}");
        io::Error::new(error.kind(), text)
    });
    let status = status?.wait()?;
    Ok(status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// The folder with this program under the names that drive a director, before all others: there the words
/// of anybody's notes work as they stand.
fn path_with_links(folder: &Path) -> io::Result<OsString> {
    let program = std::env::current_exe()?;
    std::fs::create_dir_all(folder)?;
    for name in NAMES {
        match std::os::unix::fs::symlink(&program, folder.join(name)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(folder.to_path_buf()).chain(std::env::split_paths(&path));
    std::env::join_paths(folders).map_err(io::Error::other)
}

/// Fetches a page from within a host of a lab; only where `exec` has brought us.
///
/// # Errors
/// When we are not inside a lab, or the page cannot be had whole.
pub fn fetch(target: SocketAddr, path: &str, out: &mut dyn Write) -> io::Result<()> {
    host::fetch(&inside()?, target, path, out)
}

/// Serves pages on a port of a host of a lab, over IPv4 and IPv6, until the process is ended; says when
/// it listens. Only where `exec` has brought us.
///
/// # Errors
/// When we are not inside a lab, or the port is taken.
pub fn serve(name: &str, port: u16, listens: impl FnOnce()) -> io::Result<()> {
    let inside = inside()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let server = host::Server::bind(&inside, name, port, true)?;
        listens();
        server.run().await;
        Ok(())
    })
}

/// The proof that `exec` has brought us into a host of a lab.
///
/// # Errors
/// When it has not.
pub fn inside() -> io::Result<netns::Inside> {
    let machine = std::env::var(MACHINE_VARIABLE).ok();
    let machine = machine.and_then(|text| text.parse().ok());
    let machine = machine.ok_or_else(|| {
        io::Error::other("this is for hosts of a lab: ulvs lab exec client -- ulvs lab fetch …")
    })?;
    netns::Inside::check(machine)
}

/// The lab of that name, or the only one.
fn find(name: Option<&str>) -> io::Result<cleanup::Found> {
    let mut labs = cleanup::list()?;
    labs.retain(|lab| lab.alive && name.is_none_or(|name| name == lab.name()));
    match (labs.len(), name) {
        (1, _) => Ok(labs.remove(0)),
        (0, Some(name)) => Err(io::Error::other(format!("there is no lab {name}"))),
        (0, None) => Err(io::Error::other(
            "no lab is up; make one: ulvs lab nat --keep",
        )),
        _ => {
            let names: Vec<String> = labs.iter().map(cleanup::Found::name).collect();
            let text = format!(
                "several labs are up, say which: --lab {}",
                names.join(" | --lab ")
            );
            Err(io::Error::other(text))
        }
    }
}

/// Ctrl-C reaches the command in the foreground too; it decides what comes of that, we wait for it.
fn leave_signals_to_child() {
    extern "C" fn nothing(_: libc::c_int) {}
    for number in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: the handler does nothing, and unlike SIG_IGN it does not pass on to the child.
        unsafe { libc::signal(number, nothing as *const () as libc::sighandler_t) };
    }
}
