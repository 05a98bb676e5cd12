//! The folder of the pins: it must be on a bpffs, and on one that outlives us.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use rustix::fs::{major, minor, statfs};

use super::ProgramError;

/// Mounts of PID 1, and so of the machine (proc_pid_mountinfo(5)). Unlike /proc/1/root it can be
/// read without CAP_SYS_PTRACE.
const MOUNTS_OF_PID_1: &str = "/proc/1/mountinfo";

/// Checks that what is pinned in `path` would stay. Changes nothing; `path` need not exist yet.
///
/// `ip netns exec` mounts a bpffs of its own, in a mount namespace of its own: pins made there
/// vanish with the process, and with them the fallback of every port. So the filesystem must be
/// mounted for PID 1 too. In a container with a PID namespace of its own, PID 1 is the container's,
/// and this proves less: give it the host's /sys/fs/bpf.
///
/// # Errors
/// [`ProgramError::NotBpffs`], [`ProgramError::PrivateMount`], or a folder cannot be looked at.
pub fn check_bpf_dir(path: &Path) -> Result<(), ProgramError> {
    let not_bpffs = || ProgramError::NotBpffs { path: path.into() };
    let error = |source| ProgramError::Directory { path: path.into(), source };
    // Looked at before anything is made: a folder left on the wrong filesystem would be litter.
    let existing = path.ancestors().find(|folder| folder.is_dir());
    let existing = existing.ok_or_else(not_bpffs)?;
    let filesystem = statfs(existing).map_err(|errno| error(errno.into()))?;
    if filesystem.f_type != libc::BPF_FS_MAGIC {
        return Err(not_bpffs());
    }
    let device = fs::metadata(existing).map_err(error)?.dev();
    if !is_mounted_for_pid_1(device)? {
        return Err(ProgramError::PrivateMount { path: path.into() });
    }
    Ok(())
}

/// Creates `path`, once it is known that what is pinned in it stays.
pub(super) fn prepare(path: &Path) -> Result<(), ProgramError> {
    check_bpf_dir(path)?;
    create(path)
}

/// Creates a folder that only root enters, with its parents; one that exists stays as it is.
pub(super) fn create(path: &Path) -> Result<(), ProgramError> {
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|source| ProgramError::Directory { path: path.into(), source })
}

/// Each mounted bpffs is a filesystem of its own, with a device number of its own.
fn is_mounted_for_pid_1(device: u64) -> Result<bool, ProgramError> {
    let read = fs::read_to_string(MOUNTS_OF_PID_1);
    let mounts = read.map_err(|source: io::Error| ProgramError::Directory {
        path: MOUNTS_OF_PID_1.into(),
        source,
    })?;
    let wanted = format!("{}:{}", major(device), minor(device));
    // The third field of a line is the device number.
    Ok(mounts.lines().any(|line| line.split(' ').nth(2) == Some(&wanted)))
}
