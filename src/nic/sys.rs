//! The system calls of this room, each behind a safe function: sockets and their options, interface
//! questions, memory maps. Not here: anything that knows what a frame is.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Plain data that may cross the system call boundary.
///
/// # Safety
/// Every bit pattern must be a valid value.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: integers and C structures made of integers only.
unsafe impl Plain for libc::c_int {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for libc::tpacket_req {}
// SAFETY: as above; there is no padding between them.
unsafe impl Plain for libc::packet_mreq {}
// SAFETY: as above.
unsafe impl Plain for libc::tpacket_stats {}
// SAFETY: as above.
unsafe impl Plain for libc::timeval {}

/// The result of a system call that returns -1 on failure.
pub(super) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// The errno in `error`; 0 if it did not come from the system.
pub(super) fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// A new socket, closed on exec.
pub(super) fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: no memory is passed; the descriptor is fresh and owned by nobody else.
    unsafe {
        let fd = check(libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// setsockopt with a plain value.
pub(super) fn set_option<T: Plain>(
    fd: &OwnedFd,
    level: i32,
    name: i32,
    value: &T,
) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: `value` points at `len` readable bytes for the length of the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, len) }).map(|_| ())
}

/// getsockopt of a plain value.
pub(super) fn get_option<T: Plain>(fd: &OwnedFd, level: i32, name: i32) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `len` writable bytes, and any bytes are a valid `T` (it is `Plain`).
    unsafe {
        let mut value: T = std::mem::zeroed();
        let to = (&raw mut value).cast();
        check(libc::getsockopt(fd.as_raw_fd(), level, name, to, &mut len))?;
        Ok(value)
    }
}

/// The socket's pending error, taken from it; 0 if there is none.
pub(super) fn take_error(fd: &OwnedFd) -> i32 {
    get_option(fd, libc::SOL_SOCKET, libc::SO_ERROR).unwrap_or(0)
}

/// Gives a classic BPF program to the socket: `SO_ATTACH_FILTER`, `PACKET_FANOUT_DATA`.
pub(super) fn set_program(
    fd: &OwnedFd,
    level: i32,
    name: i32,
    program: &[libc::sock_filter],
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    let len = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let value = (&raw const program).cast();
    // SAFETY: the kernel reads `program.len` instructions behind `filter` and writes nothing.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value, len) }).map(|_| ())
}

/// Binds an AF_PACKET socket to an interface; `protocol` 0 receives nothing.
pub(super) fn bind_packet(fd: &OwnedFd, index: u32, protocol: u16) -> io::Result<()> {
    // SAFETY: `sockaddr_ll` is plain integers; the kernel reads `len` bytes of it.
    unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = protocol.to_be();
        address.sll_ifindex = index as i32;
        let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        check(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len)).map(|_| ())
    }
}

/// The index of the interface an AF_PACKET socket is bound to; -1 after the interface went away.
pub(super) fn bound_index(fd: &OwnedFd) -> io::Result<i32> {
    // SAFETY: the kernel writes at most `len` bytes of plain integers into `address`.
    unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        let to = (&raw mut address).cast();
        check(libc::getsockname(fd.as_raw_fd(), to, &mut len))?;
        Ok(address.sll_ifindex)
    }
}

/// The index of the interface of this name; `None` if there is none.
pub(super) fn interface_index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: `name` ends with a zero byte and lives through the call.
    match unsafe { libc::if_nametoindex(name.as_ptr()) } {
        0 => None,
        index => Some(index),
    }
}

/// An `ifreq` for the interface of this name; `None` if the name is too long for one.
pub(super) fn request_for(name: &str) -> Option<libc::ifreq> {
    if name.len() >= libc::IFNAMSIZ || name.bytes().any(|byte| byte == 0) {
        return None;
    }
    // SAFETY: all zeroes is a valid `ifreq`: integers, arrays and a union of such.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Some(request)
}

/// The `IFF_*` flags of the interface of this number.
pub(super) fn interface_flags(fd: &OwnedFd, index: u32) -> io::Result<i32> {
    let mut request = request_for("").ok_or(io::ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_ifindex = index as i32;
    // SAFETY: SIOCGIFNAME reads `ifru_ifindex` and writes the name, SIOCGIFFLAGS reads the name and
    // writes `ifru_flags`; all lie in `request`.
    unsafe {
        check(libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFNAME, &mut request))?;
        check(libc::ioctl(
            fd.as_raw_fd(),
            libc::SIOCGIFFLAGS,
            &mut request,
        ))?;
        Ok(i32::from(request.ifr_ifru.ifru_flags))
    }
}

/// The interface's MTU in bytes.
pub(super) fn interface_mtu(fd: &OwnedFd, name: &str) -> io::Result<u32> {
    let mut request = request_for(name).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: SIOCGIFMTU reads the name and writes `ifru_mtu`; both lie in `request`.
    unsafe {
        check(libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFMTU, &mut request))?;
        Ok(request.ifr_ifru.ifru_mtu as u32)
    }
}

/// The value of a sysctl of this thread's network namespace, by its path under `/proc/sys`.
pub(super) fn sysctl(path: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/{path}")).ok()?;
    Some(text.trim().to_string())
}

/// Puts `new` in the place of `fd`: the number stays, what it stands for changes, the old is closed.
pub(super) fn replace(fd: &impl AsRawFd, new: OwnedFd) -> io::Result<()> {
    // SAFETY: both descriptors are open; dup3 closes what `fd` stood for.
    check(unsafe { libc::dup3(new.as_raw_fd(), fd.as_raw_fd(), libc::O_CLOEXEC) }).map(|_| ())
}

/// Reads and writes on it return EAGAIN instead of waiting.
pub(super) fn set_nonblocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl on a number passes no memory.
    unsafe {
        let flags = check(libc::fcntl(fd.as_raw_fd(), libc::F_GETFL))?;
        check(libc::fcntl(
            fd.as_raw_fd(),
            libc::F_SETFL,
            flags | libc::O_NONBLOCK,
        ))
        .map(|_| ())
    }
}

/// Memory shared with the kernel or taken from it in whole pages. Handed out as raw pointers only:
/// who owns which byte at which moment is the business of the type around it.
#[derive(Debug)]
pub(super) struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the map is owned memory; nothing in it depends on the thread.
unsafe impl Send for Map {}

impl Map {
    /// `len` zero bytes; pages are taken when they are first touched.
    pub fn anonymous(len: usize) -> io::Result<Map> {
        Map::new(len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    /// The first `len` bytes of what `fd` maps.
    pub fn shared(len: usize, fd: &OwnedFd) -> io::Result<Map> {
        Map::new(len, libc::MAP_SHARED, fd.as_raw_fd())
    }

    fn new(len: usize, flags: i32, fd: i32) -> io::Result<Map> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses the place, so no memory in use is touched.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap without MAP_FIXED never gives null");
        Ok(Map { start, len })
    }

    /// Byte `at` of the map.
    ///
    /// # Panics
    /// When `at..at + len` is not inside.
    pub fn at(&self, at: usize, len: usize) -> NonNull<u8> {
        assert!(at.checked_add(len).is_some_and(|end| end <= self.len));
        // SAFETY: just checked to lie inside the map.
        unsafe { self.start.add(at) }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: start and length are those of one mmap call, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}
