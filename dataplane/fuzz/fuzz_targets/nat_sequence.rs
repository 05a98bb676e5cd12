//! Plays conversations through host ports: every client hears whom it has asked, every pod one
//! client per address and port, and nobody else hears anything.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dataplane_fuzz::nat_sequence(bytes));
