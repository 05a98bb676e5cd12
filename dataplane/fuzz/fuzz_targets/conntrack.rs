//! Plays steps on a table of flows and on a list: both remember the same, and whoever gives way had
//! to.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dataplane_fuzz::conntrack(bytes));
