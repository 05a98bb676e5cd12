//! The CNI plugin that a container runtime executes: the process around [`cni_bridge::shim`].
#![deny(unsafe_code)]

use std::ffi::OsStr;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use cni_bridge::shim::{self, Plugin};

fn main() -> ExitCode {
    let program = std::env::args_os().next().unwrap_or_default();
    let plugin = match Path::new(&program).file_name().and_then(OsStr::to_str) {
        Some("loopback") => Plugin::Loopback,
        _ => Plugin::Viaduct,
    };
    let lookup = |name: &str| std::env::var_os(name);
    let outcome = shim::guard(|| shim::run(plugin, &lookup, &mut io::stdin().lock()));
    // Nobody is left to be told when standard error is closed.
    let _ = io::stderr().write_all(outcome.stderr.as_bytes());
    let mut stdout = io::stdout().lock();
    match stdout.write_all(outcome.stdout.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => ExitCode::from(outcome.status),
        // A result that the runtime did not get is a failed call.
        Err(_) => ExitCode::FAILURE,
    }
}
