//! `viaductd`: arguments, logging, signals, exit code. The rest is `control::daemon`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use control::config::Config;
use control::daemon::{Daemon, lock_namespace};
use control::uninstall::uninstall;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing_subscriber::EnvFilter;

/// Userspace packet forwarding for the pods of this node.
///
/// Runs in the foreground and logs to stderr; `RUST_LOG` (for example `debug`) says how much.
/// Ready when `viaduct status` answers. When it stops or dies the kernel carries the pods' traffic
/// until it is back.
#[derive(Parser)]
#[command(name = "viaductd", version, about)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", default_value = "/etc/viaduct/viaduct.toml")]
    config: PathBuf,
    /// Take away everything the daemon ever made here, pods' interfaces included, put the node's
    /// settings back, and end. The daemon must not be running.
    #[arg(long)]
    uninstall: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", sentence(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.uninstall {
        let _only_one = lock_namespace()?;
        let failed = uninstall(&config);
        anyhow::ensure!(failed == 0, "{failed} steps failed; mend what the log says and try again");
        return Ok(());
    }
    raise_open_files();
    Daemon::start(config)?.run()
}

/// The error and its causes, without those that an error already tells in its own words.
fn sentence(error: &anyhow::Error) -> String {
    let mut told = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if told.is_empty() {
            told = cause;
        } else if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Every port has a socket.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    if let Err(error) = raised {
        tracing::warn!(%error, "raise the limit of open files");
    }
}
