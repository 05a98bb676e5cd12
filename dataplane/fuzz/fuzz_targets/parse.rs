//! Reads any bytes as a frame: no panic, nothing outside of the frame.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dataplane_fuzz::read(bytes));
