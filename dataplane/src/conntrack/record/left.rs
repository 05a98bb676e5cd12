//! Reads what an earlier process has left in a file, and trusts none of it.
//!
//! The flows are copied and the file is not mapped: memory that is mapped from a damaged disk, or
//! from a file that somebody shortens, ends the process with SIGBUS. Only flows that were in use
//! are kept, so their memory is that of the connections there were, not that of the table.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{HEADER_WORDS, LayoutError, MAGIC, RECORD_WORDS, Records, VERSION, Words};
use crate::conntrack::index::FLOWS_MAX;

impl Records {
    /// A copy in memory of the flows in a file of an earlier process of this boot, in their order.
    /// Reads in small pieces: give it a buffered reader.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn read(mut file: impl Read, boot: [u64; 2]) -> Result<Records, LayoutError> {
        let header = words::<HEADER_WORDS>(&mut file)?;
        let room = check(&header, boot)?;
        let mut kept = Vec::new();
        for _ in 0..room {
            let record = words::<RECORD_WORDS>(&mut file)?;
            if record[0] != 0 {
                kept.extend(record);
            }
        }
        let memory = Words::anonymous(HEADER_WORDS + kept.len()).map_err(unreadable)?;
        let (head, rest) = memory.split_at(HEADER_WORDS);
        head.iter().zip(header).for_each(|(to, word)| to.store(word, Ordering::Relaxed));
        rest.iter().zip(&kept).for_each(|(to, word)| to.store(*word, Ordering::Relaxed));
        let flows = u32::try_from(kept.len() / RECORD_WORDS).expect("no more than room");
        head[2].store(u64::from(flows), Ordering::Relaxed);
        Ok(Records { words: Arc::new(memory), flows })
    }
}

/// The room that a header tells of, if it is one of this layout and boot.
pub(super) fn check(header: &[u64], boot: [u64; 2]) -> Result<u32, LayoutError> {
    let [magic, layout, room, boot0, boot1, ..] = *header else {
        return Err(LayoutError::Damaged);
    };
    if magic != MAGIC {
        return Err(LayoutError::Damaged);
    }
    let found = layout >> 32;
    if found != VERSION {
        return Err(LayoutError::Version { found });
    }
    if [boot0, boot1] != boot {
        return Err(LayoutError::OtherBoot);
    }
    let room = u32::try_from(room).ok().filter(|room| (1..=FLOWS_MAX).contains(room));
    let is_whole = layout == VERSION << 32 | RECORD_WORDS as u64;
    room.filter(|_| is_whole).ok_or(LayoutError::Damaged)
}

/// The next words of a file.
fn words<const N: usize>(file: &mut impl Read) -> Result<[u64; N], LayoutError> {
    let mut words = [0; N];
    for word in &mut words {
        let mut bytes = [0; size_of::<u64>()];
        file.read_exact(&mut bytes).map_err(unreadable)?;
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(words)
}

fn unreadable(error: io::Error) -> LayoutError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LayoutError::Damaged,
        kind => LayoutError::Unreadable { kind },
    }
}

#[cfg(test)]
mod tests;
