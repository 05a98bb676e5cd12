//! Cuts a listing into pages.
//!
//! The reader asks for one page after another and says where the last one ended. So the control
//! thread is busy for the length of one page, keeps nothing for a slow reader, and a listing may
//! have a million rows.

use std::io;

use cni_bridge::protocol::{CallError, FRAME_BYTES_MAX, Reply};
use cni_bridge::spec::error::code;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Rows and end of a page, in bytes of JSON: a quarter of a frame. Such a page of routes takes the
/// control thread 3 ms, in which an ADD waits; one as long as a frame took 12 ms.
pub const PAGE_BYTES_MAX: usize = FRAME_BYTES_MAX / 4;

/// The rows that follow `after` (all, if it is absent): [`PAGE_BYTES_MAX`] of them, or one row.
///
/// `rows` gives every row behind a key with its own key, in ascending order of keys that no two
/// rows share. It is asked only for what goes into this page, so let it be lazy.
pub fn page<K, R, I>(after: Option<&str>, rows: impl FnOnce(Option<K>) -> I) -> Reply
where
    K: Serialize + DeserializeOwned,
    R: Serialize,
    I: Iterator<Item = (K, R)>,
{
    let all = |after| rows(after).map(|(key, row)| (key, Some(row)));
    sieved_page(after, usize::MAX, all)
}

/// As [`page`], for a listing of which few rows may be asked for: those that are not stand as
/// `None`. The page ends after `most` rows of either kind, so that the control thread is not busy
/// for longer; it may be without rows then, with more behind it.
pub fn sieved_page<K, R, I>(
    after: Option<&str>,
    most: usize,
    rows: impl FnOnce(Option<K>) -> I,
) -> Reply
where
    K: Serialize + DeserializeOwned,
    R: Serialize,
    I: Iterator<Item = (K, Option<R>)>,
{
    let after = match after.map(serde_json::from_str).transpose() {
        Ok(after) => after,
        Err(error) => {
            let msg = format!("a page begins after no row of this listing ({error}); list it anew");
            return Reply::Error(CallError { code: code::DECODE, msg, details: String::new() });
        }
    };
    let mut left = PAGE_BYTES_MAX;
    let mut page = Vec::new();
    let mut last = String::new();
    for (looked_at, (key, row)) in (1..).zip(rows(after)) {
        let Some(row) = row else {
            if looked_at >= most {
                let next = serde_json::to_string(&key).expect("keys are made of numbers");
                return Reply::Page { rows: page, next };
            }
            continue;
        };
        let row = serde_json::to_value(row).expect("rows have string keys and finite numbers");
        let next = serde_json::to_string(&key).expect("keys are made of numbers and strings");
        // This row may be the page's last, and with it a comma or the end of the page.
        let needed = json_bytes(&row) + 1;
        if needed + json_bytes(&next) > left && !page.is_empty() {
            return Reply::Page { rows: page, next: last };
        }
        left = left.saturating_sub(needed);
        page.push(row);
        last = next;
        if looked_at >= most {
            return Reply::Page { rows: page, next: last };
        }
    }
    Reply::Listing(page.into())
}

/// Length in bytes of a value's JSON.
fn json_bytes(value: &impl Serialize) -> usize {
    let mut counted = Count(0);
    serde_json::to_writer(&mut counted, value).expect("counting takes every value");
    counted.0
}

/// Takes bytes and remembers only how many.
struct Count(usize);

impl io::Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
