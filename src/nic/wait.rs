//! Waiting: for frames on any port, for a wake-up from another thread, or for a deadline. Not here:
//! the clock; the caller says how long.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::sys::check;
use crate::time::Duration;

/// A wake-up that another thread may ring: an eventfd. Clones ring the same bell.
#[derive(Clone, Debug)]
pub struct EventFd {
    fd: Arc<OwnedFd>,
}

impl EventFd {
    /// A silent bell.
    ///
    /// # Errors
    /// When the process may open no more descriptors.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no memory is passed; the descriptor is fresh and owned by nobody else.
        let fd = unsafe {
            let fd = check(libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC))?;
            OwnedFd::from_raw_fd(fd)
        };
        Ok(EventFd { fd: Arc::new(fd) })
    }

    /// Rings: whoever waits on it wakes up, now or when it next waits.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes eight bytes that live through the call. It fails only with EAGAIN, when
        // the bell has been rung 2^64 times already; then it rings anyhow.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Silences it; says whether it had been rung.
    pub fn drain(&self) -> bool {
        let mut count = [0u8; 8];
        // SAFETY: reads eight bytes into `count`; EAGAIN when it had not been rung.
        unsafe { libc::read(self.fd.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) == 8 }
    }

    /// What to wait on.
    pub fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }
}

/// A fixed set of descriptors to wait on.
#[derive(Debug, Default)]
pub struct Waiter {
    polls: Vec<libc::pollfd>,
}

impl Waiter {
    /// Waits on these descriptors (`Rx::wait_fd`, `EventFd::fd`), which must stay open.
    pub fn new(fds: impl IntoIterator<Item = i32>) -> Waiter {
        let poll = |fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        };
        Waiter {
            polls: fds.into_iter().map(poll).collect(),
        }
    }

    /// Waits until one of them has something, at most `timeout` (`None`: for ever). True if one
    /// has; false on timeout and when a signal came.
    ///
    /// # Errors
    /// When the kernel has no memory; nothing else is left.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let limit = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: (timeout.as_nanos() % 1_000_000_000) as libc::c_long,
        });
        let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        let count = self.polls.len() as libc::nfds_t;
        // SAFETY: `polls` is `count` entries, `limit` null or a timespec that lives through the
        // call; no signal mask.
        let result =
            unsafe { libc::ppoll(self.polls.as_mut_ptr(), count, limit, std::ptr::null()) };
        match check(result) {
            Ok(ready) => Ok(ready > 0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Waits until one of `fds` has something, at most `timeout` (`None`: for ever). See `Waiter`, which
/// saves the allocation where the set does not change.
///
/// # Errors
/// As `Waiter::wait`.
pub fn wait(fds: &[i32], timeout: Option<Duration>) -> io::Result<bool> {
    Waiter::new(fds.iter().copied()).wait(timeout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bell_rung_elsewhere_wakes_and_is_silenced() {
        let bell = EventFd::new().unwrap();
        assert!(!wait(&[bell.fd()], Some(Duration::ZERO)).unwrap());
        let other = bell.clone();
        let ringer = std::thread::spawn(move || other.wake());
        assert!(wait(&[bell.fd()], Some(Duration::from_secs(10))).unwrap());
        ringer.join().unwrap();
        assert!(bell.drain() && !bell.drain());
        assert!(!wait(&[bell.fd()], Some(Duration::from_millis(1))).unwrap());
    }
}
