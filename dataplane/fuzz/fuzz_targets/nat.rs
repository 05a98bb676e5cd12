//! Translates any packet, there and back: no panic, nothing but addresses, ports and checksums
//! changes, and every checksum is as right as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dataplane_fuzz::nat(bytes));
