//! Forwards any packets: no panic, and both conservation laws hold.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dataplane_fuzz::forward(bytes));
