//! The control socket's file: where it is made, who may look into its directory, and that it goes in
//! the end. Those who come through it are `door`'s.

use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::door::{self, Asked, PATIENCE};
use super::patient::Patience;

/// Why there is no control socket.
#[derive(Debug)]
pub struct SocketError(String);

impl fmt::Display for SocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SocketError {}

/// The socket's file; dropped, it is removed, and so is its directory if it was made for it.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    made_directory: Option<PathBuf>,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    /// Another daemon may have taken the name meanwhile; its file is not ours to remove. That it
    /// cannot be removed is no reason not to end.
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
        if let Some(directory) = &self.made_directory {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Opens the control socket and serves it from now on. Must be called inside the tokio runtime.
///
/// # Errors
/// When the path cannot be used, or another daemon serves it.
pub(super) fn open(path: &Path) -> Result<(SocketFile, mpsc::Receiver<Asked>), SocketError> {
    open_with(path, PATIENCE)
}

pub(super) fn open_with(
    path: &Path,
    patience: Patience,
) -> Result<(SocketFile, mpsc::Receiver<Asked>), SocketError> {
    let failed = |doing: &str, error: io::Error| {
        SocketError(format!(
            "cannot {doing} the control socket {}: {error}",
            path.display()
        ))
    };
    let made_directory = make_directory(path)?;
    let listener = bind(path).map_err(|error| failed("open", error))?;
    let only_owner = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, only_owner).map_err(|error| failed("protect", error))?;
    let metadata = std::fs::metadata(path).map_err(|error| failed("look at", error))?;
    let file = SocketFile {
        path: path.to_path_buf(),
        made_directory,
        identity: (metadata.dev(), metadata.ino()),
    };
    Ok((file, door::open(listener, metadata.uid(), patience)))
}

/// Makes the socket's directory, for its owner only, if there is none.
fn make_directory(path: &Path) -> Result<Option<PathBuf>, SocketError> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let shown = directory.display();
    if let Ok(metadata) = std::fs::metadata(directory) {
        let open_to_all = metadata.mode() & 0o022 != 0 && metadata.mode() & 0o1000 == 0;
        if open_to_all {
            return Err(SocketError(format!(
                "the directory {shown} of the control socket may be written by others, who could \
                 put a socket of their own there; choose another, or: chmod go-w {shown}"
            )));
        }
        return Ok(None);
    }
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(directory);
    made.map_err(|error| {
        SocketError(format!(
            "cannot make the directory {shown} of the control socket: {error}"
        ))
    })?;
    Ok(Some(directory.to_path_buf()))
}

/// Binds; a socket file that nobody serves any more is taken over.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let error = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        result => return result,
    };
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another ulvs serves it; stop that one or choose another path",
        )),
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        Err(_) => Err(error),
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}
