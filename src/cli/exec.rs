//! `ulvs exec -- PROGRAM …`: starts a program that drives the kernel's IPVS, and has it drive ulvs. A
//! library (tools/shim) is loaded into it before all others; a program that loads no libraries cannot
//! be served, and is told so.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Args;

use super::client::{self, Client};

/// The library's file.
pub const LIBRARY: &str = "libulvs_shim.so";
/// Names another place for it.
const LIBRARY_VARIABLE: &str = "ULVS_SHIM";
/// Where the library and its program find the director.
const CONTROL_VARIABLE: &str = "ULVS_CONTROL";
/// What the loader of Linux loads before all else: ld.so(8).
const PRELOAD_VARIABLE: &str = "LD_PRELOAD";
/// Status when the program is there and cannot be started or served, as shells give it.
const CANNOT: u8 = 126;
/// Status when there is no such program, as shells give it.
const NOT_FOUND: u8 = 127;
/// Bytes of a program's beginning that are read; its table of segments stands within them.
const HEAD_BYTES: u64 = 64 * 1024;
/// Most scripts that are each other's interpreters, as in the kernel (`exec_binprm`).
const SCRIPTS_MAX: usize = 5;

/// What to start, and with what.
#[derive(Args, Clone, Debug)]
pub struct ExecArgs {
    /// Path of the control socket
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,
    /// The library, if it is not beside ulvs
    #[arg(long, value_name = "FILE")]
    pub shim: Option<PathBuf>,
    /// The program and its words
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    pub words: Vec<OsString>,
}

/// Becomes the program; what comes back is why it cannot be.
pub fn run(args: &ExecArgs) -> ExitCode {
    let (status, sentence) = become_program(args);
    eprintln!("ulvs exec: {sentence}");
    ExitCode::from(status)
}

fn become_program(args: &ExecArgs) -> (u8, String) {
    let name = args
        .words
        .first()
        .map_or(OsStr::new(""), OsString::as_os_str);
    let shown = name.to_string_lossy();
    let Some(program) = find(name, std::env::var_os("PATH").as_deref()) else {
        return (NOT_FOUND, format!("{shown}: no such program"));
    };
    if let Err(why) = can_be_served(&program) {
        return (CANNOT, format!("{}: {why}", program.display()));
    }
    let library = match library(args.shim.as_deref()) {
        Ok(library) => library,
        Err(sentence) => return (CANNOT, sentence),
    };
    let control = args.control.as_deref();
    let control = control.map_or_else(client::path, |path| path.to_string_lossy().into_owned());
    // The program may go to another folder.
    let control = std::path::absolute(&control).unwrap_or_else(|_| control.into());
    if let Err(error) = Client::connect(&control.to_string_lossy()) {
        let control = control.display();
        eprintln!("ulvs exec: no director at {control} yet ({error}); is `ulvs run` running?");
    }
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os(PRELOAD_VARIABLE).filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = Command::new(&program);
    command.arg0(name).args(&args.words[1..]);
    command.env(CONTROL_VARIABLE, control);
    command.env(PRELOAD_VARIABLE, preload);
    let error = command.exec();
    (CANNOT, format!("{}: {error}", program.display()))
}

/// Where a shell would find it. A link to ulvs itself is none: that needs no library.
fn find(name: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        let program = PathBuf::from(name);
        return program.exists().then_some(program);
    }
    let folders = std::env::split_paths(path?);
    let mut places = folders.map(|folder| folder.join(name));
    let own = std::env::current_exe().and_then(fs::canonicalize).ok();
    places.find(|place| {
        let runs = fs::metadata(place).is_ok_and(|meta| meta.mode() & 0o111 != 0);
        runs && (own.is_none() || fs::canonicalize(place).ok() != own)
    })
}

/// The library: as given, else beside this program, else where an installation puts it.
fn library(given: Option<&Path>) -> Result<PathBuf, String> {
    let given = given.map(Path::to_path_buf);
    let given = given.or_else(|| std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from));
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("/"));
    let places = match given {
        Some(given) => vec![given],
        None => vec![
            folder.join(LIBRARY),
            folder.join("../lib/ulvs").join(LIBRARY),
        ],
    };
    let mut found = places
        .iter()
        .filter_map(|place| fs::canonicalize(place).ok());
    let library = found.next().ok_or_else(|| {
        let places: Vec<String> = places
            .iter()
            .map(|place| place.display().to_string())
            .collect();
        format!(
            "no library at {}; make it: cargo build --release -p ulvs-shim, or say where: --shim",
            places.join(" or ")
        )
    })?;
    // The loader takes blanks and colons for ends of names.
    let parts = library.as_os_str().as_bytes();
    match parts.iter().any(|byte| b" :\t\n".contains(byte)) {
        true => Err(format!(
            "{}: no library can have such a path",
            library.display()
        )),
        false => Ok(library),
    }
}

/// What the kernel and the loader make of a file.
#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// A loader loads its libraries, and ours before.
    Dynamic,
    /// It brings all with it.
    Static,
    /// It makes its system calls without the C library, however it is linked.
    Go,
    /// Somebody else reads it.
    Script(PathBuf),
    /// Not for this machine, or no program: the kernel will say so.
    Other,
}

/// Can the library be loaded into it?
fn can_be_served(program: &Path) -> Result<(), String> {
    let mut file = program.to_path_buf();
    for _ in 0..=SCRIPTS_MAX {
        let meta = fs::metadata(&file).map_err(|error| format!("{}: {error}", file.display()))?;
        let mut head = Vec::new();
        // What cannot be read can perhaps be started all the same.
        let opened = File::open(&file);
        let _ = opened.and_then(|file| file.take(HEAD_BYTES).read_to_end(&mut head));
        match kind(&head) {
            Kind::Static => {
                return Err("static programs speak netlink directly and cannot be served".into());
            }
            Kind::Go => {
                return Err("Go programs speak netlink directly and cannot be served".into());
            }
            Kind::Dynamic if is_raised(&meta) => {
                return Err(
                    "started with another user's rights it loads no library of ours".to_string(),
                );
            }
            Kind::Script(interpreter) => file = interpreter,
            Kind::Dynamic | Kind::Other => return Ok(()),
        }
    }
    Ok(())
}

/// The loader loads nothing that the environment names into a program that runs with other rights than
/// its starter's: ld.so(8).
fn is_raised(meta: &fs::Metadata) -> bool {
    let own = fs::metadata("/proc/self").map_or((0, 0), |own| (own.uid(), own.gid()));
    let user = meta.mode() & 0o4000 != 0 && meta.uid() != own.0;
    let group = meta.mode() & 0o2010 == 0o2010 && meta.gid() != own.1;
    user || group
}

/// By the first bytes: elf(5), execve(2).
fn kind(head: &[u8]) -> Kind {
    if let Some(rest) = head.strip_prefix(b"#!") {
        let line = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
        let mut words = line
            .split(|byte| b" \t".contains(byte))
            .filter(|word| !word.is_empty());
        return match words.next() {
            Some(interpreter) => Kind::Script(PathBuf::from(OsStr::from_bytes(interpreter))),
            None => Kind::Other,
        };
    }
    match interpreted(head) {
        Some(true) if is_go(head) => Kind::Go,
        Some(true) => Kind::Dynamic,
        Some(false) => Kind::Static,
        None => Kind::Other,
    }
}

/// Is there a note by Go's linker, with its build's name: four bytes of owner, type 4?
fn is_go(head: &[u8]) -> bool {
    let four = 4_u32.to_ne_bytes();
    let is_note =
        |note: &[u8]| note[..4] == four && note[8..12] == four && &note[12..] == b"Go\0\0";
    head.windows(16).step_by(4).any(is_note)
}

/// Does a 64-bit ELF file of this machine's byte order name a loader (`PT_INTERP`)?
fn interpreted(head: &[u8]) -> Option<bool> {
    const PT_INTERP: u32 = 3;
    let short = |at: usize| {
        let two = head.get(at..)?.first_chunk::<2>()?;
        Some(usize::from(u16::from_ne_bytes(*two)))
    };
    let is_elf = head.starts_with(b"\x7fELF\x02");
    let order = if cfg!(target_endian = "little") { 1 } else { 2 };
    if !is_elf || head.get(5) != Some(&order) {
        return None;
    }
    let table = head.get(32..)?.first_chunk::<8>()?;
    let table = usize::try_from(u64::from_ne_bytes(*table)).ok()?;
    let (size, count) = (short(54)?, short(56)?);
    let kind = |number: usize| {
        let at = table.checked_add(number.checked_mul(size)?)?;
        head.get(at..)?
            .first_chunk::<4>()
            .map(|four| u32::from_ne_bytes(*four))
    };
    Some((0..count).any(|number| kind(number) == Some(PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segments: &[u32]) -> Vec<u8> {
        let order = if cfg!(target_endian = "little") { 1 } else { 2 };
        let mut head = b"\x7fELF\x02".to_vec();
        head.push(order);
        head.resize(64, 0);
        head[32..40].copy_from_slice(&64_u64.to_ne_bytes());
        head[54..56].copy_from_slice(&56_u16.to_ne_bytes());
        let count = u16::try_from(segments.len()).unwrap();
        head[56..58].copy_from_slice(&count.to_ne_bytes());
        for segment in segments {
            head.extend(segment.to_ne_bytes());
            head.resize(head.len() + 52, 0);
        }
        head
    }

    #[test]
    fn programs_are_told_apart_by_their_beginning() {
        assert_eq!(kind(&elf(&[6, 3, 1])), Kind::Dynamic);
        assert_eq!(kind(&elf(&[6, 1])), Kind::Static);
        let mut go = elf(&[6, 3, 1]);
        for word in [4, 20, 4] {
            go.extend(u32::to_ne_bytes(word));
        }
        go.extend(b"Go\0\0");
        assert_eq!(kind(&go), Kind::Go);
        let perl = Kind::Script("/usr/bin/perl".into());
        assert_eq!(kind(b"#! /usr/bin/perl -w\nprint"), perl);
        for other in [&b"#!\n"[..], b"#!", b"", b"MZ", b"\x7fELF\x01\x01"] {
            assert_eq!(kind(other), Kind::Other);
        }
        for length in 0..elf(&[6, 1]).len() {
            assert_ne!(kind(&elf(&[6, 1])[..length]), Kind::Dynamic);
        }
    }

    #[test]
    fn the_machines_own_programs_can_be_served() {
        assert_eq!(can_be_served(&std::env::current_exe().unwrap()), Ok(()));
        assert_eq!(
            can_be_served(&find("sh".as_ref(), Some("/bin".as_ref())).unwrap()),
            Ok(())
        );
        assert_eq!(
            find("no-such-program".as_ref(), Some("/bin".as_ref())),
            None
        );
        assert_eq!(find("/bin/no-such-program".as_ref(), None), None);
        assert!(can_be_served(Path::new("/nowhere")).is_err());
    }
}
