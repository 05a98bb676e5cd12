//! The files in which workers keep their flows, so that connections outlive the process.
//!
//! One file per worker, in the directory `flows` of the state directory: the memory of its flow
//! table itself, in the layout of `dataplane::conntrack`. So nothing has to be saved when the
//! daemon is killed, and nothing is read from a file that is in use: a start copies what earlier
//! processes have left into new tables, whose number and size may be others.
//!
//! ```text
//! open ─► left ─► create, and restore into the new table ─► settle
//!         flows-3-0  flows-3-1   new-0  new-1               flows-4-0  flows-4-1
//! ```
//!
//! The number after `flows` is that of the start, not of the process: in a container every process
//! is number 1. Files without it (`new-…`) belong to a start that has not come to its end; whoever
//! finds them removes them, because all that is in them is in the older files too.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use dataplane::conntrack::{LayoutError, Records};
use dataplane::xsk::words::Words;
use rustix::fs::OFlags;
use rustix::io::Errno;

#[cfg(test)]
mod tests;

/// Name of the directory in the state directory.
const DIRECTORY: &str = "flows";
/// What the name of a file begins with: followed by the numbers of the start and of the worker.
const SETTLED: &str = "flows-";
/// The same for a file of a start that goes on: followed by the number of the worker.
const NEW: &str = "new-";

/// Bytes read at once from an old file.
const READ_BYTES: usize = 256 << 10;

/// Why the files of the flows cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FlowFileError {
    /// The file system is too full, or its quota or size limit too low.
    #[error(
        "no room for the {bytes} bytes of {flows} flows in {path} ({source}); \
         lower flows in [nat], or give the file system of state_dir room for them, and for as \
         many again while the daemon starts"
    )]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// Flows of this worker.
        flows: u32,
        /// Bytes that they take.
        bytes: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file system cannot reserve room ahead (fallocate(2)), or does not map files.
    #[error(
        "the file system of {path} cannot hold tables of flows ({source}); set state_dir in \
         [daemon] to a directory on tmpfs, ext4, xfs or btrfs"
    )]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {operation} {path}: {source}; mend that or change state_dir in [daemon]")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The boot id of the kernel ([`crate::journal::boot_id`]) as the files keep it: its 32 hexadecimal
/// digits as two words.
#[must_use]
pub fn boot_words(boot_id: &str) -> [u64; 2] {
    let digits = boot_id.chars().filter_map(|digit| digit.to_digit(16));
    let number = digits.fold(0u128, |number, digit| number << 4 | u128::from(digit));
    [(number >> 64) as u64, number as u64]
}

/// Removes all files of flows: with the daemon's pods, their flows are gone.
///
/// # Errors
/// [`FlowFileError::Io`] if the directory cannot be removed.
pub fn remove_all(state_dir: &Path) -> Result<(), FlowFileError> {
    let directory = state_dir.join(DIRECTORY);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(io_error("remove", &directory)(error))
        }
        _ => Ok(()),
    }
}

/// The files while the daemon starts. Dropped before [`FlowFiles::settle`], it takes back what it
/// has made and leaves what it has found.
#[derive(Debug)]
pub struct FlowFiles {
    directory: PathBuf,
    boot: [u64; 2],
    /// Number of this start: above that of every file found.
    start: u64,
    left: Vec<Records>,
    /// What is to be removed at the end, the discarded ones too.
    old: Vec<PathBuf>,
    /// Workers whose file has its first name.
    made: Vec<u16>,
}

impl FlowFiles {
    /// Reads what earlier processes of this boot have left in `state_dir`, of whatever number of
    /// workers and size; what cannot be read is discarded with a warning. Nothing is removed yet
    /// but files of starts that failed. Only one process may have the directory: the daemon holds
    /// a lock for that.
    ///
    /// # Errors
    /// [`FlowFileError::Io`] if the directory cannot be made or listed.
    pub fn open(state_dir: &Path, boot: [u64; 2]) -> Result<FlowFiles, FlowFileError> {
        let directory = state_dir.join(DIRECTORY);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        made.map_err(io_error("create", &directory))?;
        let mut found: Vec<(u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&directory).map_err(io_error("list", &directory))? {
            let path = entry.map_err(io_error("list", &directory))?.path();
            match Name::of(&path) {
                Name::Settled { start } => found.push((start, path)),
                Name::New => remove(&path),
                Name::Foreign => tracing::warn!(?path, "no file of flows; leaving it alone"),
            }
        }
        // Where two files know the same flow, the newer one is right and comes first.
        found.sort_by(|a, b| b.cmp(a));
        let start = found.first().map_or(0, |(start, _)| *start) + 1;
        let mut files =
            FlowFiles { directory, boot, start, left: vec![], old: vec![], made: vec![] };
        for (_, path) in found {
            match read(&path, boot) {
                Ok(records) => files.left.push(records),
                Err(error) => tracing::warn!(?path, "{error}"),
            }
            files.old.push(path);
        }
        Ok(files)
    }

    /// The flows of earlier processes, those of the newest first: to be restored, in this order,
    /// into the tables of all workers.
    #[must_use]
    pub fn left(&self) -> &[Records] {
        &self.left
    }

    /// Makes the file of a worker, with room for `flows` flows and 96 bytes each, and an empty
    /// table in it. If the old files leave no room for the new ones they are removed before their
    /// time: what was in them has been read, and is lost only if this process dies before it has
    /// settled.
    ///
    /// # Errors
    /// [`FlowFileError`]; the file is not there then.
    pub fn create(&mut self, worker: u16, flows: u32) -> Result<Records, FlowFileError> {
        let path = self.new_path(worker);
        let words = match make(&path, flows) {
            Err(FlowFileError::NoRoom { .. }) if !self.old.is_empty() => {
                tracing::warn!("no room for old and new flows at once; removing the old files now");
                self.remove_old();
                make(&path, flows)?
            }
            made => made?,
        };
        self.made.push(worker);
        Ok(Records::format(Arc::new(words), self.boot))
    }

    /// Gives the new files their lasting names and removes the old ones: to be called when all
    /// tables are complete. Whenever the process dies, before, in the middle or after, the next one
    /// finds every flow in one of the files.
    ///
    /// # Errors
    /// [`FlowFileError::Io`] if a file cannot be renamed; its flows are found by no later process.
    pub fn settle(mut self) -> Result<(), FlowFileError> {
        for worker in &self.made {
            let (from, start) = (self.new_path(*worker), self.start);
            let to = self.directory.join(format!("{SETTLED}{start}-{worker}"));
            fs::rename(&from, &to).map_err(io_error("rename", &from))?;
        }
        self.made.clear();
        self.remove_old();
        Ok(())
    }

    fn remove_old(&mut self) {
        self.old.drain(..).for_each(|path| remove(&path));
    }

    fn new_path(&self, worker: u16) -> PathBuf {
        self.directory.join(format!("{NEW}{worker}"))
    }
}

impl Drop for FlowFiles {
    fn drop(&mut self) {
        self.made.iter().for_each(|worker| remove(&self.new_path(*worker)));
    }
}

/// What the name of a file says.
enum Name {
    Settled { start: u64 },
    New,
    Foreign,
}

impl Name {
    fn of(path: &Path) -> Name {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let is_worker = |digits: &str| digits.parse::<u16>().is_ok();
        if let Some((start, worker)) = name.strip_prefix(SETTLED).and_then(|at| at.split_once('-'))
            // Not to the end of u64, so that there is always a next one.
            && let Ok(start) = start.parse::<u32>()
            && is_worker(worker)
        {
            return Name::Settled { start: start.into() };
        }
        match name.strip_prefix(NEW) {
            Some(worker) if is_worker(worker) => Name::New,
            _ => Name::Foreign,
        }
    }
}

/// Makes the file, whole and all zero.
fn make(path: &Path, flows: u32) -> Result<Words, FlowFileError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options.open(path).map_err(io_error("create", path))?;
    let len = Records::words(flows);
    Words::of_file(file.as_fd(), len).map_err(|source| {
        remove(path);
        let path = path.to_owned();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG | Errno::NOMEM) => {
                FlowFileError::NoRoom { path, flows, bytes: len * size_of::<u64>(), source }
            }
            Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => {
                FlowFileError::Unfit { path, source }
            }
            _ => FlowFileError::Io { operation: "reserve room in", path, source },
        }
    })
}

fn read(path: &Path, boot: [u64; 2]) -> Result<Records, LayoutError> {
    let unreadable = |error: io::Error| LayoutError::Unreadable { kind: error.kind() };
    let mut options = OpenOptions::new();
    // A FIFO of that name would let nobody go on, and a link might lead anywhere.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = options.read(true).custom_flags(flags.bits().cast_signed()).open(path);
    let file: File = file.map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(LayoutError::Damaged);
    }
    Records::read(BufReader::with_capacity(READ_BYTES, file), boot)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(?path, %error, "cannot remove a file of flows that is not needed any more");
    }
}

fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> FlowFileError + use<> {
    let path = path.to_owned();
    move |source| FlowFileError::Io { operation, path, source }
}
