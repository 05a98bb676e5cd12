//! The command line: asks the daemon and prints what it says. All of it is `control::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    control::cli::main()
}
