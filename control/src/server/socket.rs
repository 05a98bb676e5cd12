//! The control socket's file: made so that nobody but root can ever connect, removed when the
//! daemon ends, and never taken from a daemon that lives.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, fchmod};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use thiserror::Error;

/// Connections that wait to be accepted: as many as may be open.
const BACKLOG: i32 = super::CONNECTIONS_MAX as i32;

/// Why the daemon cannot listen.
#[derive(Debug, Error)]
pub enum SocketError {
    /// A step failed.
    #[error("{step} control socket {}: {source}; see [daemon] socket", path.display())]
    Step {
        /// What was done.
        step: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Somebody else could put a socket of theirs in our place.
    #[error(
        "directory {} of the control socket can be written by others than root (mode {mode:o}); \
         chmod it to 0700", path.display()
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something that is no socket is in the way.
    #[error("{} is not a socket; move it away or name another [daemon] socket", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Another daemon is there.
    #[error("a daemon answers on {} already; stop it or name another [daemon] socket",
        path.display())]
    Answered {
        /// The path.
        path: PathBuf,
    },
}

impl SocketError {
    pub(super) fn step(step: &'static str, path: &Path, source: io::Error) -> SocketError {
        SocketError::Step { step, path: path.to_owned(), source }
    }
}

/// A socket file of ours. Dropping it removes the file, unless it is no longer ours.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode number of the file.
    identity: (u64, u64),
}

impl SocketFile {
    /// Makes the socket and listens on it without blocking.
    pub(super) fn listen(path: &Path) -> Result<(SocketFile, UnixListener), SocketError> {
        let failed = |step| move |source| SocketError::step(step, path, source);
        make_directory(path)?;
        let address =
            SocketAddrUnix::new(path).map_err(|error| failed("name")(io::Error::from(error)))?;
        remove_stale(path, &address)?;
        let listening = || -> rustix::io::Result<_> {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            // The file gets the mode that the socket has at bind(2) (Linux, unix_bind_bsd), so
            // there is no moment in which others could connect.
            fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
            bind(&socket, &address)?;
            listen(&socket, BACKLOG)?;
            Ok(socket)
        };
        let socket = listening().map_err(|error| failed("listen on")(error.into()))?;
        let file = fs::symlink_metadata(path).map_err(failed("look at"))?;
        let identity = (file.dev(), file.ino());
        Ok((SocketFile { path: path.to_owned(), identity }, socket.into()))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|file| (file.dev(), file.ino()) == self.identity);
        if ours {
            // What remains is stale, and the next daemon removes it.
            let _removed = fs::remove_file(&self.path);
        }
    }
}

/// Makes the socket's directory, if need be, for root alone. One that exists is left as it is,
/// since it may be everybody's (`/run`), but nobody else may be able to replace what is in it.
fn make_directory(socket: &Path) -> Result<(), SocketError> {
    /// Set on `/tmp`: there only the owner can replace a file (inode(7), S_ISVTX).
    const STICKY: u32 = 0o1000;
    const WRITABLE_BY_OTHERS: u32 = 0o022;
    let failed = |source| SocketError::step("make the directory of", socket, source);
    let Some(directory) = socket.parent().filter(|path| !path.as_os_str().is_empty()) else {
        return Ok(());
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let mode = fs::metadata(directory).map_err(failed)?.mode() & 0o7777;
    if mode & WRITABLE_BY_OTHERS != 0 && mode & STICKY == 0 {
        return Err(SocketError::Directory { path: directory.to_owned(), mode });
    }
    Ok(())
}

/// Removes a socket on which nobody listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), SocketError> {
    let failed = |source| SocketError::step("look at", path, source);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(file) if !file.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .map_err(|error| failed(error.into()))?;
    match connect(&probe, address) {
        // unix(7): nobody listens on the socket.
        Err(rustix::io::Errno::CONNREFUSED) => match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SocketError::step("remove the stale", path, error))
            }
            _ => Ok(()),
        },
        // EAGAIN: somebody listens, but the backlog is full.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => {
            Err(SocketError::Answered { path: path.to_owned() })
        }
        Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(error.into())),
    }
}
