//! The functions about sockets that are taken over. Each one does what its namesake does, by calling it,
//! unless what it carries is ours. Callers keep the promises of the namesake: pointers are good for
//! the lengths they come with.

use std::ffi::{c_int, c_void};

use libc::{msghdr, size_t, sockaddr, socklen_t, ssize_t};

use crate::relay::{self, Part, Waiting};
use crate::{director, message, next};

/// The first and last option of the older way (`IP_VS_BASE_CTL` and `IP_VS_SO_SET_MAX`).
const OLD_OPTIONS: std::ops::RangeInclusive<c_int> = 1152..=1167;

// What is sent.

/// # Safety
/// As sendmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendmsg(fd: c_int, msg: *const msghdr, flags: c_int) -> ssize_t {
    // SAFETY: the caller's message is good, and so are its parts.
    let ours = unsafe { msg.as_ref() }.and_then(|msg| {
        // SAFETY: as above.
        let sent = unsafe { gather(msg) }?;
        // SAFETY: the name is as long as it says.
        let to_kernel = unsafe { goes_to_kernel(msg.msg_name.cast(), msg.msg_namelen) };
        to_kernel.then(|| serve(fd, &sent)).flatten()
    });
    match ours {
        Some(done) => done,
        // SAFETY: passed on as it came.
        None => unsafe { next::SENDMSG.get()(fd, msg, flags) },
    }
}

/// # Safety
/// As sendto(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sendto(
    fd: c_int,
    buffer: *const c_void,
    length: size_t,
    flags: c_int,
    to: *const sockaddr,
    to_length: socklen_t,
) -> ssize_t {
    // SAFETY: the caller's buffer is as long as it says.
    let sent = unsafe { bytes(buffer, length) };
    // SAFETY: so is the address.
    let to_kernel = || unsafe { goes_to_kernel(to, to_length) };
    let ours = relay::may_be_ours(sent) && to_kernel();
    match ours.then(|| serve(fd, sent)).flatten() {
        Some(done) => done,
        // SAFETY: passed on as it came.
        None => unsafe { next::SENDTO.get()(fd, buffer, length, flags, to, to_length) },
    }
}

/// # Safety
/// As send(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn send(
    fd: c_int,
    buffer: *const c_void,
    length: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the caller's buffer is as long as it says.
    let sent = unsafe { bytes(buffer, length) };
    let ours = relay::may_be_ours(sent);
    match ours.then(|| serve(fd, sent)).flatten() {
        Some(done) => done,
        // SAFETY: passed on as it came.
        None => unsafe { next::SEND.get()(fd, buffer, length, flags) },
    }
}

/// The bytes of a message in parts, if they may be ours.
///
/// # Safety
/// The parts are as long as they say.
unsafe fn gather(msg: &msghdr) -> Option<Vec<u8>> {
    if msg.msg_iov.is_null() || msg.msg_iovlen == 0 {
        return None;
    }
    // SAFETY: there are as many parts as the message says.
    let parts = unsafe { std::slice::from_raw_parts(msg.msg_iov, msg.msg_iovlen) };
    // SAFETY: each is as long as it says.
    let first = unsafe { bytes(parts[0].iov_base, parts[0].iov_len) };
    let length: usize = parts.iter().map(|part| part.iov_len).sum();
    if !relay::may_be_ours(first) || length > relay::SENT_BYTES_MAX {
        return None;
    }
    let mut all = Vec::with_capacity(length);
    for part in parts {
        // SAFETY: as above.
        all.extend_from_slice(unsafe { bytes(part.iov_base, part.iov_len) });
    }
    Some(all)
}

/// # Safety
/// There are as many bytes.
unsafe fn bytes<'a>(start: *const c_void, length: usize) -> &'a [u8] {
    if start.is_null() {
        return &[];
    }
    // SAFETY: promised.
    unsafe { std::slice::from_raw_parts(start.cast(), length) }
}

/// Not another program's socket.
///
/// # Safety
/// The address is as long as it says.
unsafe fn goes_to_kernel(to: *const sockaddr, length: socklen_t) -> bool {
    if to.is_null() || (length as usize) < size_of::<libc::sockaddr_nl>() {
        return true;
    }
    // SAFETY: long enough; whatever it is, reading its numbers is harmless.
    let to = unsafe { to.cast::<libc::sockaddr_nl>().read_unaligned() };
    c_int::from(to.nl_family) != libc::AF_NETLINK || to.nl_pid == 0
}

/// Answers what is ours of a call, and sends on what is not. `None` if nothing is ours.
fn serve(fd: c_int, sent: &[u8]) -> Option<ssize_t> {
    if !is_generic_netlink(fd) {
        return None;
    }
    for part in relay::answer(sent, &mut |request| director::ask(&request))? {
        let sent_on = match part {
            Part::Kernels(bytes) => to_kernel(fd, bytes),
            Part::Answered(datagrams) if datagrams.is_empty() => Ok(()),
            Part::Answered(datagrams) => hold_place(
                fd,
                Waiting {
                    fd,
                    datagrams: datagrams.into(),
                },
            ),
        };
        if sent_on.is_err() {
            return Some(-1);
        }
    }
    Some(sent.len().cast_signed())
}

/// Has the kernel put a place for the answer into the socket's queue.
fn hold_place(fd: c_int, waiting: Waiting) -> Result<(), ()> {
    to_kernel(fd, &relay::keep(waiting))
}

/// Sends to the kernel's end of the socket; errno tells why not.
fn to_kernel(fd: c_int, bytes: &[u8]) -> Result<(), ()> {
    // SAFETY: an all-zero address is a good one: the kernel's.
    let mut to: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    to.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    let length = size_of::<libc::sockaddr_nl>() as socklen_t;
    let to = (&raw const to).cast();
    // SAFETY: bytes and address live on this stack and are as long as said.
    let sent = unsafe { next::SENDTO.get()(fd, bytes.as_ptr().cast(), bytes.len(), 0, to, length) };
    if sent < 0 { Err(()) } else { Ok(()) }
}

fn is_generic_netlink(fd: c_int) -> bool {
    option(fd, libc::SO_DOMAIN) == Some(libc::AF_NETLINK)
        && option(fd, libc::SO_PROTOCOL) == Some(libc::NETLINK_GENERIC)
}

fn option(fd: c_int, name: c_int) -> Option<c_int> {
    let (mut value, mut length) = (0, size_of::<c_int>() as socklen_t);
    let (into, of) = ((&raw mut value).cast(), &raw mut length);
    // SAFETY: value and length live on this stack.
    let got = unsafe { next::GETSOCKOPT.get()(fd, libc::SOL_SOCKET, name, into, of) };
    (got == 0).then_some(value)
}

// What is received.

/// # Safety
/// As recvmsg(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvmsg(fd: c_int, msg: *mut msghdr, flags: c_int) -> ssize_t {
    let place = match upcoming(fd, flags) {
        Upcoming::Place(place) => place,
        Upcoming::Error => return -1,
        // SAFETY: passed on as it came.
        Upcoming::Kernels => return unsafe { next::RECVMSG.get()(fd, msg, flags) },
    };
    // Name, credentials and the rest come with the place.
    // SAFETY: as the caller promises.
    let received = unsafe { next::RECVMSG.get()(fd, msg, flags) };
    // SAFETY: the call above has taken it for a good one, or we stop here.
    let Some(msg) = unsafe { msg.as_mut() }.filter(|_| received >= 0) else {
        return received;
    };
    let Some(datagram) = exchange(fd, place, flags) else {
        return -1;
    };
    let mut rest = datagram.as_slice();
    for number in 0..msg.msg_iovlen {
        // SAFETY: there are as many parts as the message says.
        let part = unsafe { &*msg.msg_iov.add(number) };
        let count = rest.len().min(part.iov_len);
        // SAFETY: the part has room for as much, and is no memory of ours.
        unsafe {
            rest.as_ptr()
                .copy_to_nonoverlapping(part.iov_base.cast(), count)
        };
        rest = &rest[count..];
    }
    msg.msg_flags &= !libc::MSG_TRUNC;
    if !rest.is_empty() {
        msg.msg_flags |= libc::MSG_TRUNC;
    }
    told(datagram.len(), datagram.len() - rest.len(), flags)
}

/// # Safety
/// As recvfrom(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recvfrom(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    flags: c_int,
    from: *mut sockaddr,
    from_length: *mut socklen_t,
) -> ssize_t {
    let place = match upcoming(fd, flags) {
        Upcoming::Place(place) => place,
        Upcoming::Error => return -1,
        Upcoming::Kernels => {
            // SAFETY: passed on as it came.
            return unsafe { next::RECVFROM.get()(fd, buffer, length, flags, from, from_length) };
        }
    };
    // SAFETY: as the caller promises.
    let received = unsafe { next::RECVFROM.get()(fd, buffer, length, flags, from, from_length) };
    if received < 0 {
        return received;
    }
    let Some(datagram) = exchange(fd, place, flags) else {
        return -1;
    };
    let count = datagram.len().min(length);
    // SAFETY: the caller's buffer has room for `length` bytes, and is no memory of ours.
    unsafe {
        datagram
            .as_ptr()
            .copy_to_nonoverlapping(buffer.cast(), count)
    };
    told(datagram.len(), count, flags)
}

/// # Safety
/// As recv(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn recv(
    fd: c_int,
    buffer: *mut c_void,
    length: size_t,
    flags: c_int,
) -> ssize_t {
    let nobody = std::ptr::null_mut();
    // SAFETY: as the caller promises; recv is recvfrom without an address.
    unsafe { recvfrom(fd, buffer, length, flags, nobody, std::ptr::null_mut()) }
}

/// How many bytes the caller is told of.
const fn told(whole: usize, copied: usize, flags: c_int) -> ssize_t {
    let count = if flags & libc::MSG_TRUNC != 0 {
        whole
    } else {
        copied
    };
    count.cast_signed()
}

/// What the next datagram of a socket is.
enum Upcoming {
    /// The kernel's own.
    Kernels,
    /// The place of an answer: its number, and the socket's port.
    Place((u32, u32)),
    /// There is none; errno tells why.
    Error,
}

/// Waits for the next datagram as the caller would, and looks at it without taking it.
fn upcoming(fd: c_int, flags: c_int) -> Upcoming {
    if !relay::any() || flags & libc::MSG_ERRQUEUE != 0 || !is_generic_netlink(fd) {
        return Upcoming::Kernels;
    }
    loop {
        let mut beginning = [0; relay::PLACE_BYTES + 1];
        let (into, length) = (beginning.as_mut_ptr().cast(), beginning.len());
        let peek = libc::MSG_PEEK | flags & libc::MSG_DONTWAIT;
        // SAFETY: the buffer lives on this stack and is as long as said.
        let count = unsafe { next::RECV.get()(fd, into, length, peek) };
        let Ok(count) = usize::try_from(count) else {
            return Upcoming::Error;
        };
        let Some(place) = relay::place(&beginning[..count]) else {
            return Upcoming::Kernels;
        };
        if relay::look(place.0).is_some() {
            return Upcoming::Place(place);
        }
        // Too many answers were left unread, and this was the oldest.
        // SAFETY: as above.
        unsafe { next::RECV.get()(fd, into, length, libc::MSG_DONTWAIT) };
    }
}

/// The answer whose place was just received. If it goes on, the next place is held.
fn exchange(fd: c_int, (number, port): (u32, u32), flags: c_int) -> Option<Vec<u8>> {
    let mut datagram = if flags & libc::MSG_PEEK != 0 {
        relay::look(number)?
    } else {
        let (first, rest) = relay::take(number)?;
        if let Some(rest) = rest {
            hold_place(fd, rest).ok()?;
        }
        first
    };
    message::address_to(&mut datagram, port);
    Some(datagram)
}

// The rest of a socket's life.

/// # Safety
/// As close(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    if relay::any() {
        relay::forget(fd);
    }
    // SAFETY: passed on as it came.
    unsafe { next::CLOSE.get()(fd) }
}

/// # Safety
/// As getsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut socklen_t,
) -> c_int {
    if level == libc::IPPROTO_IP && OLD_OPTIONS.contains(&name) {
        return fail(libc::ENOPROTOOPT);
    }
    // SAFETY: passed on as it came.
    unsafe { next::GETSOCKOPT.get()(fd, level, name, value, length) }
}

/// # Safety
/// As setsockopt(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn setsockopt(
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: socklen_t,
) -> c_int {
    if level == libc::IPPROTO_IP && OLD_OPTIONS.contains(&name) {
        return fail(libc::ENOPROTOOPT);
    }
    // SAFETY: passed on as it came.
    unsafe { next::SETSOCKOPT.get()(fd, level, name, value, length) }
}

/// What a C function returns that has failed.
pub fn fail(errno: c_int) -> c_int {
    // SAFETY: every thread has its errno.
    unsafe { *libc::__errno_location() = errno };
    -1
}
