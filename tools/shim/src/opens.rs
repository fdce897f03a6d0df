//! The functions that open files and are taken over, for the texts of `/proc/net/ip_vs*`. Those of C
//! take the mode as one more argument that may be missing: who reads a register that nobody has set
//! passes on what nobody looks at.

use std::ffi::{CStr, c_char, c_int};

use libc::{FILE, mode_t};

use crate::hooks::{close, fail};
use crate::{files, next};

/// # Safety
/// As open(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's path ends with a zero byte; passed on as it came.
    unsafe { opened(path, flags, || next::OPEN.get()(path, flags, mode)) }
}

/// # Safety
/// As open(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int {
    // SAFETY: the caller's path ends with a zero byte; passed on as it came.
    unsafe { opened(path, flags, || next::OPEN64.get()(path, flags, mode)) }
}

/// # Safety
/// As openat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's path ends with a zero byte; passed on as it came.
    unsafe {
        opened(path, flags, || {
            next::OPENAT.get()(folder, path, flags, mode)
        })
    }
}

/// # Safety
/// As openat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn openat64(
    folder: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the caller's path ends with a zero byte; passed on as it came.
    unsafe {
        opened(path, flags, || {
            next::OPENAT64.get()(folder, path, flags, mode)
        })
    }
}

/// # Safety
/// As fopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's texts end with a zero byte; passed on as they came.
    unsafe { fopened(path, mode, || next::FOPEN.get()(path, mode)) }
}

/// # Safety
/// As fopen(3).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the caller's texts end with a zero byte; passed on as they came.
    unsafe { fopened(path, mode, || next::FOPEN64.get()(path, mode)) }
}

/// Opens one of our files, or lets the C library do it.
///
/// # Safety
/// As open(2).
unsafe fn opened(path: *const c_char, flags: c_int, onwards: impl FnOnce() -> c_int) -> c_int {
    // SAFETY: promised.
    match unsafe { ours(path) } {
        Some(name) => open_text(name, flags),
        None => onwards(),
    }
}

/// The same for streams.
///
/// # Safety
/// As fopen(3).
unsafe fn fopened(
    path: *const c_char,
    mode: *const c_char,
    onwards: impl FnOnce() -> *mut FILE,
) -> *mut FILE {
    // SAFETY: promised.
    match unsafe { ours(path) } {
        // SAFETY: promised.
        Some(name) => unsafe { fopen_text(name, mode) },
        None => onwards(),
    }
}

/// Which of our files this is, if any.
///
/// # Safety
/// The path ends with a zero byte, or there is none.
unsafe fn ours(path: *const c_char) -> Option<&'static str> {
    if path.is_null() {
        return None;
    }
    // SAFETY: promised.
    files::name(unsafe { CStr::from_ptr(path) })
}

/// # Safety
/// The mode ends with a zero byte.
unsafe fn fopen_text(name: &str, mode: *const c_char) -> *mut FILE {
    // SAFETY: promised.
    let words = unsafe { CStr::from_ptr(mode) }.to_bytes();
    let reads = words.first() == Some(&b'r') && !words.contains(&b'+');
    let close_on_exec = if words.contains(&b'e') {
        libc::O_CLOEXEC
    } else {
        0
    };
    let access = if reads { libc::O_RDONLY } else { libc::O_RDWR };
    let fd = open_text(name, access | close_on_exec);
    if fd < 0 {
        return std::ptr::null_mut();
    }
    // SAFETY: the descriptor is new, and the mode is one for reading.
    unsafe { libc::fdopen(fd, mode) }
}

/// A descriptor that the text can be read from; without a director there is no such file.
fn open_text(name: &str, flags: c_int) -> c_int {
    if flags & libc::O_ACCMODE != libc::O_RDONLY {
        return fail(libc::EACCES);
    }
    let Some(text) = files::text(name) else {
        return fail(libc::ENOENT);
    };
    let close_on_exec = if flags & libc::O_CLOEXEC != 0 {
        libc::MFD_CLOEXEC
    } else {
        0
    };
    // SAFETY: the name ends with a zero byte.
    let fd = unsafe { libc::memfd_create(c"ip_vs".as_ptr(), close_on_exec) };
    if fd < 0 {
        return fd;
    }
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        // SAFETY: the bytes are there; the descriptor is ours.
        let written = unsafe { libc::write(fd, rest.as_ptr().cast(), rest.len()) };
        let Ok(written) = usize::try_from(written) else {
            // SAFETY: the descriptor is ours and is not used again.
            unsafe { close(fd) };
            return fail(libc::ENOMEM);
        };
        rest = &rest[written..];
    }
    // SAFETY: the descriptor is ours.
    unsafe { libc::lseek(fd, 0, libc::SEEK_SET) };
    fd
}
