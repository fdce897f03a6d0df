//! The director behind its control socket, found as `ulvs adm` finds it (`ULVS_CONTROL`). Every request
//! has a connection of its own: nothing is left open that a fork would share.

use ulvs::cli::client::{self, Client};
use ulvs::config::{Reply, Request};

use crate::family::Errno;

/// Asks, and waits for the answer.
///
/// # Errors
/// `EPERM` for who may not ask; otherwise what the system says of the socket, `EPROTO` for an answer
/// that is none.
pub fn ask(request: &Request) -> Result<Reply, Errno> {
    let mut client =
        Client::connect(&client::path()).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM) => libc::EPERM,
            Some(errno) => errno,
            None => libc::EIO,
        })?;
    client.ask(request).map_err(|_| libc::EPROTO)
}
