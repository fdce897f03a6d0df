//! The functions behind ours: those of the next library that has them, which is the C library unless
//! something else is preloaded, too.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};

use libc::{FILE, mode_t, msghdr, size_t, sockaddr, socklen_t, ssize_t};

type Close = unsafe extern "C" fn(c_int) -> c_int;
type Send = unsafe extern "C" fn(c_int, *const c_void, size_t, c_int) -> ssize_t;
type SendTo = unsafe extern "C" fn(
    c_int,
    *const c_void,
    size_t,
    c_int,
    *const sockaddr,
    socklen_t,
) -> ssize_t;
type SendMsg = unsafe extern "C" fn(c_int, *const msghdr, c_int) -> ssize_t;
type Recv = unsafe extern "C" fn(c_int, *mut c_void, size_t, c_int) -> ssize_t;
type RecvFrom = unsafe extern "C" fn(
    c_int,
    *mut c_void,
    size_t,
    c_int,
    *mut sockaddr,
    *mut socklen_t,
) -> ssize_t;
type RecvMsg = unsafe extern "C" fn(c_int, *mut msghdr, c_int) -> ssize_t;
type GetSockOpt = unsafe extern "C" fn(c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int;
type SetSockOpt = unsafe extern "C" fn(c_int, c_int, c_int, *const c_void, socklen_t) -> c_int;
type Open = unsafe extern "C" fn(*const c_char, c_int, mode_t) -> c_int;
type OpenAt = unsafe extern "C" fn(c_int, *const c_char, c_int, mode_t) -> c_int;
type FOpen = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut FILE;

/// A function that is looked for when it is first called.
pub struct Next<F> {
    name: &'static CStr,
    found: AtomicPtr<c_void>,
    kind: PhantomData<F>,
}

impl<F: Copy> Next<F> {
    /// # Safety
    /// The C library has a function of that name, and it is of type `F`.
    const unsafe fn new(name: &'static CStr) -> Next<F> {
        Next {
            name,
            found: AtomicPtr::new(std::ptr::null_mut()),
            kind: PhantomData,
        }
    }

    /// The function.
    pub fn get(&self) -> F {
        let mut found = self.found.load(Relaxed);
        if found.is_null() {
            // SAFETY: the name ends with a zero byte.
            found = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
            assert!(!found.is_null(), "every C library has {:?}", self.name);
            self.found.store(found, Relaxed);
        }
        // SAFETY: who made this has promised that F is the function's type, a pointer.
        unsafe { std::mem::transmute_copy(&found) }
    }
}

/// One line for each function; the types are those of the C library's manual pages.
macro_rules! next {
    ($($name:ident, $text:literal: $kind:ty;)*) => {
        $(
            // SAFETY: the C library has it, and it is of this type.
            pub static $name: Next<$kind> = unsafe { Next::new($text) };
        )*
    };
}

next! {
    SENDMSG, c"sendmsg": SendMsg;
    SENDTO, c"sendto": SendTo;
    SEND, c"send": Send;
    RECVMSG, c"recvmsg": RecvMsg;
    RECVFROM, c"recvfrom": RecvFrom;
    RECV, c"recv": Recv;
    CLOSE, c"close": Close;
    GETSOCKOPT, c"getsockopt": GetSockOpt;
    SETSOCKOPT, c"setsockopt": SetSockOpt;
    OPEN, c"open": Open;
    OPEN64, c"open64": Open;
    OPENAT, c"openat": OpenAt;
    OPENAT64, c"openat64": OpenAt;
    FOPEN, c"fopen": FOpen;
    FOPEN64, c"fopen64": FOpen;
}
