//! OpenError: why an interface could not be opened, in words for a person: what was being done, with
//! what, and what to try.

use std::fmt;
use std::io;

use super::sys::errno;

/// What kind of trouble it is, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenErrorKind {
    /// There is no interface of this name.
    NoSuchInterface,
    /// The process may not do this.
    NotPermitted,
    /// It must be up for this.
    Down,
    /// The kernel, or this kind of interface, cannot do this.
    NotSupported,
    /// The options contradict each other.
    BadOption,
    /// Any other errno.
    System(i32),
}

/// Why an interface could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenError {
    /// For programs.
    pub kind: OpenErrorKind,
    message: String,
}

impl OpenError {
    /// `doing` what failed; `advice` says what to try, or is empty.
    pub(super) fn new(kind: OpenErrorKind, doing: &str, advice: &str) -> OpenError {
        let message = match advice {
            "" => doing.to_string(),
            advice => format!("{doing}; {advice}"),
        };
        OpenError { kind, message }
    }

    /// A system call of AF_PACKET failed while `doing` something with `interface`.
    pub(super) fn packet(doing: &str, interface: &str, error: &io::Error) -> OpenError {
        let what = format!("cannot {doing} on interface `{interface}`: {error}");
        match errno(error) {
            libc::EPERM | libc::EACCES => OpenError::new(
                OpenErrorKind::NotPermitted,
                &what,
                "run as root, give the program CAP_NET_RAW and CAP_NET_ADMIN \
                 (setcap cap_net_raw,cap_net_admin+ep), or run it in a user namespace of its own",
            ),
            libc::ENODEV | libc::ENXIO => no_such_interface(interface),
            libc::ENETDOWN => OpenError::new(
                OpenErrorKind::Down,
                &what,
                &format!("bring it up: ip link set {interface} up"),
            ),
            libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT => OpenError::new(
                OpenErrorKind::NotSupported,
                &what,
                "Linux 4.20 or later with CONFIG_PACKET is needed",
            ),
            libc::ENOMEM => OpenError::new(
                OpenErrorKind::System(libc::ENOMEM),
                &what,
                "make the ring smaller or free memory",
            ),
            number => OpenError::new(OpenErrorKind::System(number), &what, ""),
        }
    }
}

/// The error that lists the interfaces that do exist.
pub(super) fn no_such_interface(name: &str) -> OpenError {
    let known: Vec<String> = super::interfaces()
        .into_iter()
        .map(|interface| interface.name)
        .collect();
    OpenError::new(
        OpenErrorKind::NoSuchInterface,
        &format!("there is no interface `{name}`"),
        &format!("there are: {}", known.join(", ")),
    )
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for OpenError {}
