//! The channels that `[uplink] channels` sets, and the record that lets an uninstall put back what
//! there was. Nothing is set that the configuration does not ask for.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::ethtool::{Channels, Ethtool, EthtoolError};

/// Name of the record in `state_dir`.
pub const CHANNELS_FILE: &str = "channels";

/// Channels could not be set, or put back.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The driver refuses, or could not be asked.
    #[error(transparent)]
    Ethtool(#[from] EthtoolError),
    /// The driver cannot have as many.
    #[error(
        "{device} cannot have {wanted} queues, but {max} at most: lower [uplink] channels, or \
         leave it out"
    )]
    TooMany {
        /// The interface.
        device: String,
        /// What the configuration asks for.
        wanted: u32,
        /// What the driver can have.
        max: u32,
    },
    /// The record could not be read or kept, so nothing was changed.
    #[error("keep the original channels of {device} in {}: {source}", path.display())]
    Record {
        /// The interface.
        device: String,
        /// The record's file.
        path: PathBuf,
        /// The system call's error.
        source: io::Error,
    },
}

/// Originals by interface, in a file: how many channels of each kind there were, as (rx, tx,
/// combined).
#[derive(Debug)]
pub struct ChannelLog {
    file: PathBuf,
}

impl ChannelLog {
    /// The record kept in `file`, which need not exist.
    #[must_use]
    pub fn at(file: PathBuf) -> ChannelLog {
        ChannelLog { file }
    }

    /// Gives `device` as many receive queues, after recording what it had.
    ///
    /// # Errors
    /// See [`ChannelError`].
    pub fn set(&self, device: &str, wanted: u32) -> Result<(), ChannelError> {
        let mut ethtool = Ethtool::open()?;
        let channels = ethtool.channels(device)?;
        let max = channels.map_or(1, |channels| channels.receive_queues_max());
        let now = channels.map_or(1, |channels| channels.receive_queues());
        if now == wanted {
            return Ok(());
        }
        let too_many = || ChannelError::TooMany { device: device.to_owned(), wanted, max };
        let before = channels.ok_or_else(too_many)?;
        let after = before.with_queues(wanted).ok_or_else(too_many)?;
        self.remember(device, &before).map_err(|source| ChannelError::Record {
            device: device.to_owned(),
            path: self.file.clone(),
            source,
        })?;
        Ok(ethtool.set_channels(device, &after)?)
    }

    /// Puts all originals back and forgets them. Interfaces that are gone are passed over.
    ///
    /// # Errors
    /// One for each interface that could not be put back; its original stays recorded.
    pub fn restore(&self) -> Vec<ChannelError> {
        let record = |source| ChannelError::Record {
            device: "every uplink".to_owned(),
            path: self.file.clone(),
            source,
        };
        let mut kept = BTreeMap::new();
        let mut errors = Vec::new();
        match self.read() {
            Err(source) => return vec![record(source)],
            Ok(originals) => {
                for (device, original) in originals {
                    if let Err(error) = put_back(&device, original) {
                        errors.push(error.into());
                        kept.insert(device, original);
                    }
                }
            }
        }
        if let Err(source) = self.write(&kept) {
            errors.push(record(source));
        }
        errors
    }

    fn remember(&self, device: &str, before: &Channels) -> io::Result<()> {
        let mut originals = self.read()?;
        let counts = (before.rx.now, before.tx.now, before.combined.now);
        originals.entry(device.to_owned()).or_insert(counts);
        self.write(&originals)
    }

    fn read(&self) -> io::Result<BTreeMap<String, (u32, u32, u32)>> {
        match fs::read(&self.file) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// In one step, so that a crash leaves the old file or the new one.
    fn write(&self, originals: &BTreeMap<String, (u32, u32, u32)>) -> io::Result<()> {
        if originals.is_empty() && !self.file.exists() {
            return Ok(());
        }
        let draft = self.file.with_extension("new");
        fs::write(&draft, serde_json::to_vec(originals)?)?;
        fs::rename(&draft, &self.file)
    }
}

fn put_back(device: &str, (rx, tx, combined): (u32, u32, u32)) -> Result<(), EthtoolError> {
    if !Path::new("/proc/sys/net/ipv4/conf").join(device).exists() {
        return Ok(()); // gone, and its channels with it
    }
    let mut ethtool = Ethtool::open()?;
    let Some(mut channels) = ethtool.channels(device)? else { return Ok(()) };
    (channels.rx.now, channels.tx.now, channels.combined.now) = (rx, tx, combined);
    ethtool.set_channels(device, &channels)
}
