//! Kernel settings under `/proc/sys/net`, and the record that lets an uninstall put them back.
//!
//! Which namespace's settings these files show depends on the namespace of the calling thread.
//! A setting is named by its path below `/proc/sys/net`, such as `ipv4/conf/eth1.5/rp_filter`: the
//! dotted form cannot name an interface with a dot.

use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const ROOT: &str = "/proc/sys/net";

/// Longest value read; those of the settings we touch are single numbers.
const VALUE_BYTES: usize = 64;

/// A setting that could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// Reading failed.
    #[error("read {ROOT}/{key}: {source}")]
    Read {
        /// The setting.
        key: String,
        /// The system call's error.
        source: io::Error,
    },
    /// Writing failed.
    #[error("write {value} to {ROOT}/{key}: {source}; is /proc/sys mounted read-only?")]
    Write {
        /// The setting.
        key: String,
        /// What was to be written.
        value: String,
        /// The system call's error.
        source: io::Error,
    },
    /// The record of original values could not be kept, so the setting was not changed.
    #[error("keep the original of {ROOT}/{key} in {}: {source}", path.display())]
    Record {
        /// The setting.
        key: String,
        /// The record's file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
}

/// Whether this kernel has IPv6 at all (it may be off by `ipv6.disable=1`).
pub fn ipv6_exists() -> bool {
    Path::new(ROOT).join("ipv6").exists()
}

/// The value of a setting, without the line end; `None` if this kernel does not have it.
pub fn read(key: &str) -> Result<Option<String>, SysctlError> {
    let read = |mut file: File| value_of(&mut file).map(Some);
    File::open(Path::new(ROOT).join(key))
        .and_then(read)
        .or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(None) } else { Err(error) })
        .map_err(|source| SysctlError::Read { key: key.to_owned(), source })
}

/// Gives a setting a value, if it has another. A setting that this kernel does not have is left
/// out; returns whether something was written.
pub fn write(key: &str, value: &str) -> Result<bool, SysctlError> {
    let write = || {
        let path = Path::new(ROOT).join(key);
        let mut file = match OpenOptions::new().read(true).write(true).open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if value_of(&mut file)? == value {
            return Ok(false);
        }
        // At the beginning: elsewhere the kernel ignores a write (sysctl_writes_strict).
        file.write_all_at(value.as_bytes(), 0)?;
        Ok(true)
    };
    write().map_err(|source| SysctlError::Write {
        key: key.to_owned(),
        value: value.to_owned(),
        source,
    })
}

fn value_of(file: &mut File) -> io::Result<String> {
    let mut bytes = [0; VALUE_BYTES];
    let length = file.read(&mut bytes)?;
    let text = String::from_utf8_lossy(bytes.get(..length).unwrap_or_default());
    Ok(text.trim_end().to_owned())
}

/// A setting and the value it had before our first change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Original {
    /// Path below `/proc/sys/net`.
    pub key: String,
    /// The value it had.
    pub value: String,
}

/// The originals of the node's own settings that we changed, oldest first. Settings of interfaces
/// that we made are not here: they vanish with the interface.
///
/// With a file, an original is on disk before its setting changes, so a crash in between loses
/// nothing. The file belongs to one boot: settings do not outlive it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SysctlLog {
    originals: Vec<Original>,
    #[serde(skip)]
    file: Option<PathBuf>,
}

impl SysctlLog {
    /// Reads the record kept in `file`; no file is an empty record. The directory must exist.
    pub fn open(file: &Path) -> io::Result<SysctlLog> {
        let mut log = match fs::read(file) {
            Ok(bytes) => serde_json::from_slice::<SysctlLog>(&bytes).map_err(|error| {
                let what = format!("{} is not a record of settings: {error}", file.display());
                io::Error::new(ErrorKind::InvalidData, what)
            })?,
            Err(error) if error.kind() == ErrorKind::NotFound => SysctlLog::default(),
            Err(error) => return Err(error),
        };
        log.file = Some(file.to_owned());
        Ok(log)
    }

    /// A record that is kept in memory only.
    pub fn in_memory() -> SysctlLog {
        SysctlLog::default()
    }

    /// What is recorded, oldest first.
    pub fn originals(&self) -> &[Original] {
        &self.originals
    }

    /// Records the value of a setting that a change of another one will change with it.
    pub fn remember(&mut self, key: &str) -> Result<(), SysctlError> {
        if self.originals.iter().any(|original| original.key == key) {
            return Ok(());
        }
        let Some(value) = read(key)? else {
            return Ok(());
        };
        self.originals.push(Original { key: key.to_owned(), value });
        self.save().map_err(|source| {
            self.originals.pop();
            let path = self.file.clone().unwrap_or_default();
            SysctlError::Record { key: key.to_owned(), path, source }
        })
    }

    /// Gives a setting a value, after recording what it was; returns whether it changed.
    pub fn change(&mut self, key: &str, value: &str) -> Result<bool, SysctlError> {
        if read(key)?.is_none_or(|now| now == value) {
            return Ok(false);
        }
        self.remember(key)?;
        write(key, value)
    }

    /// Puts all originals back, newest change first, and empties the record. Settings of
    /// interfaces that are gone are skipped; the others' errors are all returned, and what could
    /// not be restored stays recorded.
    pub fn restore(&mut self) -> Vec<SysctlError> {
        let mut errors = Vec::new();
        let mut kept = Vec::new();
        while let Some(original) = self.originals.pop() {
            if let Err(error) = write(&original.key, &original.value) {
                errors.push(error);
                kept.push(original);
            }
        }
        kept.reverse();
        self.originals = kept;
        if let Err(source) = self.save() {
            let path = self.file.clone().unwrap_or_default();
            errors.push(SysctlError::Record { key: "*".to_owned(), path, source });
        }
        errors
    }

    /// Replaces the file in one step, so that a crash leaves the old one or the new one.
    fn save(&self) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let draft = file.with_extension("new");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(&draft, file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_this_kernel_does_not_have_is_none_and_no_error() {
        assert_eq!(read("ipv4/no_such_setting").expect("read"), None);
        assert!(!write("ipv4/no_such_setting", "1").expect("write"));
    }

    #[test]
    fn a_value_is_read_without_its_line_end() {
        let value = read("ipv4/ip_forward").expect("read").expect("ip_forward exists");
        assert!(value == "0" || value == "1", "{value:?}");
    }

    #[test]
    fn the_first_original_is_kept_and_survives_a_restart() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("sysctl.json");
        let mut log = SysctlLog::open(&file).expect("no file is an empty record");
        assert!(log.originals().is_empty());
        log.remember("ipv4/ip_forward").expect("remember");
        log.remember("ipv4/ip_forward").expect("remember again");
        let again = SysctlLog::open(&file).expect("read back");
        assert_eq!(again.originals().len(), 1);
        assert_eq!(again.originals(), log.originals());
    }

    #[test]
    fn a_damaged_record_is_an_error_and_not_an_empty_record() {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("sysctl.json");
        for bytes in ["", "{", r#"{"originals":[],"more":1}"#] {
            fs::write(&file, bytes).expect("write");
            assert!(SysctlLog::open(&file).is_err(), "{bytes:?}");
        }
    }
}
