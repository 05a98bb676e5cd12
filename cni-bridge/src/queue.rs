//! DELs that the daemon could not be told, on disk beside its socket.
//!
//! A runtime repeats a failing DEL for ever and the pod stays undeletable meanwhile; so the shim
//! writes the DEL down and succeeds. The daemon drains the directory before it serves its first
//! ADD. One file per attachment, written whole or not at all: a repeated DEL replaces its file.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::protocol::{Attachment, DelRequest};

/// Files kept at most: many times the pods of a node, and a bound on what a runtime that runs wild
/// beside a dead daemon can write.
pub const FILES_MAX: usize = 4096;

/// A file longer than this in bytes is not ours: three names and their keys need far less.
const FILE_BYTES_MAX: u64 = 1 << 16;

/// Ending of the files; one still being written has another.
const SUFFIX: &str = "json";

/// Why a DEL could not be written down.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// Too many are waiting.
    #[error("{FILES_MAX} detached pods wait in {}; start viaductd, it clears them", .dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
    },
    /// The file system failed.
    #[error("the detached pod cannot be noted in {}: {source}; make it writable", .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The queue's directory for the daemon at `socket`.
pub fn directory(socket: &Path) -> PathBuf {
    socket.parent().unwrap_or(Path::new("/")).join("del-queue")
}

/// Writes `request` down in `dir`, which is made (mode 0700) when it is missing.
///
/// # Errors
/// [`QueueError::Full`] with [`FILES_MAX`] files there, [`QueueError::Io`] otherwise.
pub fn push(dir: &Path, request: &DelRequest) -> Result<(), QueueError> {
    let io = |source| QueueError::Io { dir: dir.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io)?;
    let path = path(dir, &request.attachment);
    if !path.exists() && fs::read_dir(dir).map_err(io)?.count() >= FILES_MAX {
        return Err(QueueError::Full { dir: dir.to_owned() });
    }
    write_whole(&path, request).map_err(io)
}

/// Writes to a file of another name and renames it: rename(2) is atomic, so a reader sees the whole
/// file or none.
fn write_whole(path: &Path, request: &DelRequest) -> io::Result<()> {
    // Two shims may write the same DEL at once: the process makes the name its own.
    let unfinished = path.with_extension(format!("{}.tmp", std::process::id()));
    let write = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)?;
        file.write_all(&serde_json::to_vec(request)?)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().inspect_err(|_| {
        // Best effort: the failure to report is the first one.
        let _ = fs::remove_file(&unfinished);
    })
}

/// The DELs that wait in `dir`, each with the file to [`remove`] once it is carried out. Files that
/// are torn, too long or of another name are passed over; a missing directory is an empty queue.
pub fn read(dir: &Path) -> Vec<(PathBuf, DelRequest)> {
    let Ok(entries) = fs::read_dir(dir) else {
        return Vec::new();
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .filter(|path| path.extension().is_some_and(|suffix| suffix == SUFFIX))
        .filter_map(|path| read_file(&path).map(|request| (path, request)))
        .take(FILES_MAX)
        .collect()
}

fn read_file(path: &Path) -> Option<DelRequest> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(FILE_BYTES_MAX).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// Whether a DEL of `attachment` waits in `dir`.
pub fn contains(dir: &Path, attachment: &Attachment) -> bool {
    path(dir, attachment).exists()
}

/// Forgets the DEL of `attachment` in `dir`; nothing to forget is fine.
///
/// # Errors
/// [`QueueError::Io`] when the file stays.
pub fn remove(dir: &Path, attachment: &Attachment) -> Result<(), QueueError> {
    match fs::remove_file(path(dir, attachment)) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(QueueError::Io { dir: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The file of `attachment`: named by a hash, since the three names together may be longer than a
/// file name.
fn path(dir: &Path, attachment: &Attachment) -> PathBuf {
    let Attachment { network, container_id, ifname } = attachment;
    // The zero byte is in none of the names, so no two attachments join to the same bytes.
    let bytes = [network.as_bytes(), container_id.as_bytes(), ifname.as_bytes()].join(&0);
    dir.join(format!("{:032x}.{SUFFIX}", fnv1a_128(&bytes)))
}

/// FNV-1a of 128 bits (draft-eastlake-fnv): stable between releases, unlike the standard library's
/// hash. Names come from the node's own runtime, so nobody looks for collisions.
fn fnv1a_128(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME))
}

#[cfg(test)]
mod tests;
