//! Opens the network namespace that CNI_NETNS names, and makes sure that it is one.
//!
//! The daemon opens no path that a request names: it is sent the descriptor that this gives.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

use rustix::fs::OFlags;

use crate::env::Environment;
use crate::spec::{CniError, code};

/// `NSFS_MAGIC` of linux/magic.h: the file system of namespace files.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The namespace of the calling thread.
const OWN_NETNS: &str = "/proc/thread-self/ns/net";

/// Opens CNI_NETNS for reading, to be closed on exec.
///
/// # Errors
/// Code 4 when it cannot be opened or is no namespace; code 8 when it is the plugin's own and
/// CNI_NETNS_OVERRIDE does not allow that.
pub fn open(environment: &Environment) -> Result<OwnedFd, CniError> {
    let path = &environment.netns;
    let bad = |why: String| {
        CniError::new(
            code::ENVIRONMENT,
            format!("CNI_NETNS {path} {why}; name a network namespace"),
        )
    };
    // Not blocking, because opening a FIFO would: whether it is one shows only afterwards.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or_default();
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| bad(format!("cannot be opened: {error}")))?;
    let magic = rustix::fs::fstatfs(&file)
        .map_err(|error| bad(format!("cannot be examined: {error}")))?
        .f_type;
    if u64::try_from(magic) != Ok(NSFS_MAGIC) {
        return Err(bad("is not a namespace".to_owned()));
    }
    if !environment.own_netns_allowed && is_own(&file) {
        let msg = format!(
            "CNI_NETNS {path} is the network namespace of viaduct-cni itself; name the \
             container's, or set CNI_NETNS_OVERRIDE=1 if this is meant"
        );
        return Err(CniError::new(code::INVALID_NETNS, msg));
    }
    Ok(file.into())
}

/// Whether `file` is the namespace that this thread runs in. Namespaces are the same when device
/// and inode are (namespaces(7)).
fn is_own(file: &File) -> bool {
    match (file.metadata(), std::fs::metadata(OWN_NETNS)) {
        (Ok(theirs), Ok(ours)) => theirs.dev() == ours.dev() && theirs.ino() == ours.ino(),
        _ => false,
    }
}
