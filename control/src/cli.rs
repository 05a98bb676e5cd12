//! `viaduct`: asks the daemon for a listing and prints it, as JSON for programs or as a table for
//! people.
//!
//! JSON is passed on as the daemon sent it, so that no key is lost between releases. A failure is
//! one sentence on stderr and an exit code other than 0.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use cni_bridge::client::{ClientError, ask};
use cni_bridge::protocol::{Call, CallError, Listing, Reply};
use cni_bridge::spec::conf::SOCKET_DEFAULT;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use crate::report::Status;

mod figures;
mod table;
#[cfg(test)]
mod tests;
mod views;

/// How long to wait for a listing: the daemon makes one in milliseconds, but may be busy with an
/// ADD that waits for a removal.
const DEADLINE: Duration = Duration::from_secs(5);

/// Asks viaductd, the packet forwarder of this node, what it does.
#[derive(Debug, Parser)]
#[command(name = "viaduct", version, after_help = AFTER_HELP)]
struct Arguments {
    /// The socket of the daemon, as [daemon] socket in its configuration
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET_DEFAULT)]
    socket: PathBuf,
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Listings are tables for people: numbers are shortened, and an empty cell is a dash. With --json they
are complete: an array of objects, or one object for status, whose keys stay the same.

Exit codes: 0 done, 1 no daemon answers, it reports an error, or (status) it is not ready, 2 wrong
arguments. What went wrong is one sentence on stderr.";

#[derive(Clone, Copy, Debug, Subcommand)]
enum Command {
    /// The daemon and its workers; exits 0 only if the daemon is ready
    ///
    /// Shows what the kernel's sockets can do, the generation of the tables, and every worker
    /// with two laws: all its frames are somewhere (FRAMES = FREE + RX + TX + CROSSING), and all
    /// its packets are accounted for
    /// (RECEIVED + GENERATED + CROSSED IN = SENT + DROPPED + CROSSED OUT).
    #[command(verbatim_doc_comment)]
    Status(Format),
    /// Attached pods: addresses, worker, traffic and drops
    ///
    /// STATE is "userspace" while a worker forwards for the pod. On fallback the kernel does
    /// ("fallback: pass") or nobody may ("fallback: drop"). FROM POD and TO POD are bytes as the
    /// pod's interface saw them since viaductd serves it; --json has packets too, and what they
    /// were on a wire.
    #[command(verbatim_doc_comment)]
    Pods(Format),
    /// Ports, with the worker that owns each and their traffic
    ///
    /// A port of kind "pod" is the host end of a pod's interface: FROM is what the pod sent. The
    /// port of kind "node" leads to the node's own kernel: FROM is what the kernel sent.
    #[command(verbatim_doc_comment)]
    Ports(Format),
    /// Routes the workers forward by
    Routes(Format),
    /// Packets not forwarded: how many, whose, which way and why
    ///
    /// One row for every pod, direction and reason that happened since viaductd serves the pod,
    /// most packets first. Packets "from_pod" were sent by the pod, those "to_pod" were for it;
    /// the node's own are under the name of its port's device.
    #[command(verbatim_doc_comment)]
    Drops(Format),
}

/// How a listing is printed.
#[derive(Args, Clone, Copy, Debug)]
struct Format {
    /// Print JSON with all keys instead of a table
    #[arg(long)]
    json: bool,
}

impl Command {
    fn parts(self) -> (Listing, Format) {
        match self {
            Command::Status(format) => (Listing::Status, format),
            Command::Pods(format) => (Listing::Pods, format),
            Command::Ports(format) => (Listing::Ports, format),
            Command::Routes(format) => (Listing::Routes, format),
            Command::Drops(format) => (Listing::Drops, format),
        }
    }
}

/// Why a command failed.
#[derive(Debug, Error)]
enum CliError {
    #[error(
        "no daemon answers on {}: start viaductd or name its socket with --socket",
        socket.display()
    )]
    NoDaemon { socket: PathBuf },
    #[error("{} is open to root only: run viaduct as root", socket.display())]
    NotRoot { socket: PathBuf },
    #[error(transparent)]
    Client(ClientError),
    #[error("viaductd says: {}{}{}", .0.msg, if .0.details.is_empty() { "" } else { ": " },
        .0.details)]
    Refused(CallError),
    #[error("viaductd on {} answers something else than a listing; use a viaduct of its release",
        socket.display())]
    NotAListing { socket: PathBuf },
    #[error(
        "viaduct cannot read the listing ({source}); use a viaduct of the daemon's release, \
        or --json"
    )]
    Unreadable {
        #[from]
        source: serde_json::Error,
    },
    #[error("viaductd is not ready: {0}")]
    NotReady(String),
    #[error("write to stdout: {0}")]
    Write(#[from] io::Error),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let Arguments { socket, command } = Arguments::parse();
    match run(&socket, command, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader, such as `head`, has seen enough.
        Err(CliError::Write(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("viaduct: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(socket: &Path, command: Command, out: &mut impl Write) -> Result<(), CliError> {
    let (listing, format) = command.parts();
    let value = fetch(socket, listing)?;
    if format.json {
        writeln!(out, "{value:#}")?;
    } else {
        out.write_all(view(listing, value.clone())?.as_bytes())?;
    }
    out.flush()?;
    if listing == Listing::Status {
        check_ready(&read(value)?)?;
    }
    Ok(())
}

fn fetch(socket: &Path, listing: Listing) -> Result<Value, CliError> {
    let reply = ask(socket, Call::List(listing), None, DEADLINE).map_err(|error| match error {
        ClientError::Unreachable { socket, source } => match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                CliError::NoDaemon { socket }
            }
            io::ErrorKind::PermissionDenied => CliError::NotRoot { socket },
            _ => CliError::Client(ClientError::Unreachable { socket, source }),
        },
        other => CliError::Client(other),
    })?;
    match reply {
        Reply::Listing(value) => Ok(value),
        Reply::Error(error) => Err(CliError::Refused(error)),
        Reply::Added(_) | Reply::Done => Err(CliError::NotAListing { socket: socket.to_owned() }),
    }
}

fn read<T: DeserializeOwned>(value: Value) -> Result<T, CliError> {
    Ok(serde_json::from_value(value)?)
}

fn view(listing: Listing, value: Value) -> Result<String, CliError> {
    Ok(match listing {
        Listing::Status => views::status(&read(value)?),
        Listing::Pods => views::pods(&read::<Vec<_>>(value)?),
        Listing::Ports => views::ports(&read::<Vec<_>>(value)?),
        Listing::Routes => views::routes(&read::<Vec<_>>(value)?),
        Listing::Drops => views::drops(&read::<Vec<_>>(value)?),
    })
}

/// Scripts wait for the daemon by the exit code of `viaduct status`.
fn check_ready(status: &Status) -> Result<(), CliError> {
    if status.ready {
        return Ok(());
    }
    let why = if status.problems.is_empty() {
        "it is still starting; wait, or look at its log".to_owned()
    } else {
        status.problems.join("; ")
    };
    Err(CliError::NotReady(why))
}
