//! Feeds the plugin's input checks: a byte chooses the verb, a text is the value
//! of every CNI variable, bytes are standard input.
#![no_main]

use cni_bridge::{shim, spec::Verb};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, String, Vec<u8>)| {
    let (choice, value, stdin) = input;
    let verb = Verb::ALL[usize::from(choice) % Verb::ALL.len()];
    let _ = shim::check_input(verb, &|_| Some(value.clone().into()), &stdin);
});
