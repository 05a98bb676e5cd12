//! Remembers across a restart of the daemon which pods it serves.
//!
//! One append-only file, `journal` in the state directory. A line is a record: length and CRC-32 of
//! the JSON, both in hexadecimal, and the JSON. The first line names the format and the boot: what
//! another boot wrote is void, because its namespaces are gone. Neither damage nor a record of a
//! kind that only another release knows is an error: such lines are passed over with a warning and
//! a torn tail is cut off, since the kernel's own state, which the daemon compares with at start,
//! knows better than a file. CRC-32 rather than a plain hash: it finds every burst of up to 32
//! wrong bits, and torn writes are bursts.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use cni_bridge::protocol::Attachment;
use serde::{Deserialize, Serialize};

use crate::state::PodRecord;

#[cfg(test)]
mod tests;

/// Version of the file's format. The neighbouring versions can be read too, as during an upgrade or
/// a downgrade by one release: records and fields they do not know are skipped.
pub const FORMAT: u32 = 1;

/// The journal is rewritten when this many bytes of it say nothing about the present: a thousand
/// pods that came and went at some 700 bytes each, or a few with thousands of host ports. It is in
/// memory twice, as a file on tmpfs and here.
pub const DEAD_BYTES_MAX: u64 = 1 << 20;

/// Detached pods that a rewrite keeps, newest last, so that the addresses they had still cool down
/// after a restart: two per second over the two minutes of the cool-down.
pub const DETACHED_KEPT: usize = 256;

const FILE_NAME: &str = "journal";
const NEW_FILE_NAME: &str = "journal.new";

/// What the journal remembers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// A pod is served. A later one for the same attachment replaces it.
    Attached(Box<PodRecord>),
    /// A pod is no longer served.
    Detached(Attachment),
}

/// Why the journal could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The state directory is not private.
    #[error(
        "state directory {path} can be written by others than uid {uid}; \
         chown and chmod 0700 it, or set state_dir in [daemon] to a directory of its own"
    )]
    NotPrivate {
        /// The directory.
        path: PathBuf,
        /// The user id of the daemon.
        uid: u32,
    },
    /// A release that is too new wrote the file.
    #[error(
        "{path} has journal format {found} and this release knows up to {}; start the release that \
         wrote it, or drain the node and remove the file",
        FORMAT + 1
    )]
    Format {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
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

#[derive(Serialize, Deserialize)]
struct Header {
    format: u32,
    boot_id: String,
}

/// The open journal. Only one may be open in a directory: the daemon holds a lock for that.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    boot_id: String,
    file: File,
    /// Length in bytes of the intact part of the file; the next record goes there.
    len: u64,
    /// Whether a failed append may have left bytes behind `len`.
    has_torn_tail: bool,
    /// What the file says, in order.
    records: Vec<Record>,
    /// Attachments among `records` that are about the present, each with the length of its record
    /// in bytes of the file.
    attached: BTreeMap<Attachment, u64>,
    /// Sum of those lengths.
    live_bytes: u64,
    /// Bytes of records that are not about the present at which the next rewrite is due.
    dead_bytes_max: u64,
}

/// Identifies this boot of the kernel: random, and the same in all namespaces.
pub fn boot_id() -> Result<String, JournalError> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(io_error("read", path))?;
    Ok(text.trim().to_owned())
}

impl Journal {
    /// Opens or creates the journal in `dir` and returns what it remembers of this boot, oldest
    /// first. Replayed in order, the records give the pods, and the order in which addresses were
    /// freed.
    pub fn open(dir: &Path, boot_id: &str) -> Result<(Journal, Vec<Record>), JournalError> {
        prepare(dir)?;
        let path = dir.join(FILE_NAME);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        let (file, len, records) = match parse(&bytes, boot_id) {
            Parsed::Format(found) => return Err(JournalError::Format { path, found }),
            Parsed::Void => {
                let new = rewrite(dir, boot_id, &[]).map_err(io_error("write", &path))?;
                (new.file, new.len, Vec::new())
            }
            Parsed::Intact { len, records, damaged, unknown } => {
                if damaged > 0 || len < bytes.len() {
                    let cut_bytes = bytes.len() - len;
                    tracing::warn!(damaged, cut_bytes, "the journal was damaged; kept the rest");
                }
                if unknown > 0 {
                    tracing::warn!(unknown, "passed over journal records of another release");
                }
                let mut options = OpenOptions::new();
                let file = options.read(true).write(true).open(&path);
                let file = file.map_err(io_error("open", &path))?;
                file.set_len(len as u64).map_err(io_error("truncate", &path))?;
                (file, len as u64, records)
            }
        };
        let mut journal = Journal {
            dir: dir.to_owned(),
            boot_id: boot_id.to_owned(),
            file,
            len,
            has_torn_tail: false,
            records: Vec::new(),
            attached: BTreeMap::new(),
            live_bytes: 0,
            dead_bytes_max: DEAD_BYTES_MAX,
        };
        for (record, bytes) in &records {
            journal.remember(record.clone(), *bytes);
        }
        Ok((journal, records.into_iter().map(|(record, _)| record).collect()))
    }

    /// Writes a record and waits until it would survive a crash of the machine (on tmpfs: at once).
    /// On failure the file says what it said before.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        let line = line(record).map_err(self.failed("encode a record for"))?;
        if self.has_torn_tail {
            self.cut().map_err(self.failed("truncate"))?;
        }
        let written = self.file.write_all_at(line.as_bytes(), self.len);
        if let Err(error) = written.and_then(|()| self.file.sync_data()) {
            // Should the cut fail too, it is repeated before the next append; until then the
            // tail is torn or repeats what this error denies, and neither outlives a replay
            // against the kernel's state.
            self.has_torn_tail = true;
            let _ = self.cut();
            return Err(self.failed("append to")(error));
        }
        self.len += line.len() as u64;
        self.remember(record.clone(), line.len() as u64);
        if self.dead_bytes() > self.dead_bytes_max {
            self.compact();
        }
        Ok(())
    }

    /// Takes note of a record that has this many bytes in the file.
    fn remember(&mut self, record: Record, bytes: u64) {
        let replaced = match &record {
            Record::Attached(pod) => {
                self.live_bytes += bytes;
                self.attached.insert(pod.attachment.clone(), bytes)
            }
            Record::Detached(attachment) => self.attached.remove(attachment),
        };
        self.live_bytes -= replaced.unwrap_or(0);
        self.records.push(record);
    }

    /// Bytes of records that say nothing about the present.
    fn dead_bytes(&self) -> u64 {
        self.len - self.live_bytes
    }

    /// Rewrites the file without most of its past. A failure costs nothing but room: the old file
    /// stays in use, and the next try waits for as many dead records again.
    fn compact(&mut self) {
        let records = compacted(&self.records);
        match rewrite(&self.dir, &self.boot_id, &records) {
            Ok(Written { file, len, lengths }) => {
                (self.file, self.len, self.live_bytes) = (file, len, 0);
                (self.records, self.attached) = (Vec::new(), BTreeMap::new());
                for (record, bytes) in records.into_iter().zip(lengths) {
                    self.remember(record, bytes);
                }
                // What is kept of the past counts, so that a rewrite always frees as much.
                self.dead_bytes_max = self.dead_bytes() + DEAD_BYTES_MAX;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot rewrite the journal; it grows until that works");
                self.dead_bytes_max += DEAD_BYTES_MAX;
            }
        }
    }

    fn cut(&mut self) -> io::Result<()> {
        self.file.set_len(self.len)?;
        self.has_torn_tail = false;
        Ok(())
    }

    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> JournalError + use<> {
        io_error(operation, &self.dir.join(FILE_NAME))
    }
}

/// Makes the state directory, or refuses one that another user could plant a journal in.
fn prepare(dir: &Path) -> Result<(), JournalError> {
    // Permissions of a directory that exists are the operator's: we refuse, but never change them.
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(io_error("create", dir))?;
    let metadata = fs::metadata(dir).map_err(io_error("inspect", dir))?;
    let uid = rustix::process::geteuid().as_raw();
    if metadata.uid() != uid || metadata.mode() & 0o022 != 0 {
        return Err(JournalError::NotPrivate { path: dir.to_owned(), uid });
    }
    Ok(())
}

/// A file that was written anew.
struct Written {
    file: File,
    /// Its length in bytes.
    len: u64,
    /// That of each record.
    lengths: Vec<u64>,
}

/// Replaces the file in one step: whoever crashes in between leaves the old one or the new one.
fn rewrite(dir: &Path, boot_id: &str, records: &[Record]) -> io::Result<Written> {
    let mut text = line(&Header { format: FORMAT, boot_id: boot_id.to_owned() })?;
    let mut lengths = Vec::with_capacity(records.len());
    for record in records {
        let line = line(record)?;
        lengths.push(line.len() as u64);
        text.push_str(&line);
    }
    let new = dir.join(NEW_FILE_NAME);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, dir.join(FILE_NAME))?;
    // Without this the rename itself may be lost (open(2), fsync(2) "NOTES").
    File::open(dir)?.sync_all()?;
    Ok(Written { file, len: text.len() as u64, lengths })
}

/// The records worth keeping, in their order: attached pods, and the newest [`DETACHED_KEPT`] pods
/// that came and went, without their host ports, which rest after no pod.
fn compacted(records: &[Record]) -> Vec<Record> {
    let mut attached: BTreeMap<&Attachment, usize> = BTreeMap::new();
    let mut detached: Vec<[usize; 2]> = Vec::new();
    for (index, record) in records.iter().enumerate() {
        match record {
            Record::Attached(pod) => {
                attached.insert(&pod.attachment, index);
            }
            Record::Detached(attachment) => {
                detached.extend(attached.remove(attachment).map(|start| [start, index]));
            }
        }
    }
    let past = detached.iter().rev().take(DETACHED_KEPT).flatten();
    let mut kept: Vec<(usize, bool)> = past.map(|index| (*index, true)).collect();
    kept.extend(attached.values().map(|index| (*index, false)));
    kept.sort_unstable();
    let record = |(index, is_past): (usize, bool)| {
        let mut record = records[index].clone();
        if let (Record::Attached(pod), true) = (&mut record, is_past) {
            pod.host_ports = Vec::new();
        }
        record
    };
    kept.into_iter().map(record).collect()
}

enum Parsed {
    /// No header, a damaged one, or one of another boot.
    Void,
    /// A format that we cannot read.
    Format(u32),
    Intact {
        /// Length in bytes up to and with the last intact line.
        len: usize,
        /// Each with its length in bytes.
        records: Vec<(Record, u64)>,
        /// Lines whose sum is wrong.
        damaged: usize,
        /// Lines that are whole and say what we do not know.
        unknown: usize,
    },
}

fn parse(bytes: &[u8], boot_id: &str) -> Parsed {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let Some(first) = lines.next() else {
        return Parsed::Void;
    };
    let header = checked(first).and_then(|json| serde_json::from_slice::<Header>(json).ok());
    let Some(header) = header.filter(|header| header.boot_id == boot_id) else {
        return Parsed::Void;
    };
    if header.format > FORMAT + 1 {
        return Parsed::Format(header.format);
    }
    let (mut end, mut len) = (first.len(), first.len());
    let (mut records, mut damaged, mut unknown) = (Vec::new(), 0, 0);
    for line in lines {
        end += line.len();
        let Some(json) = checked(line) else {
            damaged += 1;
            continue;
        };
        len = end;
        match serde_json::from_slice(json) {
            Ok(record) => records.push((record, line.len() as u64)),
            Err(_) => unknown += 1,
        }
    }
    Parsed::Intact { len, records, damaged, unknown }
}

/// A line with its length and sum. JSON text has no line break of its own.
fn line<T: Serialize>(value: &T) -> io::Result<String> {
    let json = serde_json::to_string(value)?;
    Ok(format!("{:08x} {:08x} {json}\n", json.len(), crc32(json.as_bytes())))
}

/// The JSON of a line, if the line is whole.
fn checked(line: &[u8]) -> Option<&[u8]> {
    let (sums, json) = line.strip_suffix(b"\n")?.split_at_checked(18)?;
    let expected = format!("{:08x} {:08x} ", json.len(), crc32(json));
    (sums == expected.as_bytes()).then_some(json)
}

/// CRC-32 of IEEE 802.3 §3.2.9, reflected, one byte at a time: a pod with a thousand host ports in
/// both families has a line of 200 kB.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc: u32, byte| {
        let [low, ..] = crc.to_le_bytes();
        (crc >> 8) ^ CRC_32_OF_BYTE[usize::from(low ^ byte)]
    })
}

/// What eight steps of the division do to each byte.
const CRC_32_OF_BYTE: [u32; 256] = {
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut crc, mut bit) = (byte as u32, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn io_error(
    operation: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Io { operation, path, source }
}
