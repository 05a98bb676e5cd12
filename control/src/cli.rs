//! `viaduct`: asks the daemon for a listing and prints it, as JSON for programs or as a table for
//! people.
//!
//! JSON is passed on as the daemon sent it, so that no key is lost between releases, and as it
//! comes: a node may have a million routes. A failure is one sentence on stderr and an exit code
//! other than 0.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use cni_bridge::client::{ClientError, ask};
use cni_bridge::protocol::{Call, CallError, FlowFilter, Listing, Reply};
use cni_bridge::spec::conf::SOCKET_DEFAULT;
use serde::de::DeserializeOwned;
use serde_json::Value;
use thiserror::Error;

use self::array::Array;
use crate::doctor::{self, Facts, Places};
use crate::report::Status;

mod array;
mod explain;
mod figures;
mod limits;
mod nat;
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
are complete: an array of objects, or one object for status, whose keys stay the same. What changes
while a long listing is read may be missing from it, but nothing is in it twice.

Exit codes: 0 done, 1 no daemon answers, it reports an error, (status) it is not ready or (doctor)
something is amiss, 2 wrong arguments. What went wrong is one sentence on stderr.";

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// The daemon and its workers; exits 0 only if the daemon is ready
    ///
    /// Shows what the kernel's sockets can do, the generation of the tables, what became of
    /// packets on fallback (while no worker took them), and every worker with two laws: all its
    /// frames are somewhere (FRAMES = FREE + RX + TX + CROSSING), and all its packets are
    /// accounted for (RECEIVED + GENERATED + CROSSED IN = SENT + DROPPED + CROSSED OUT).
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
    /// Routes the workers forward by, in the order of their destinations
    ///
    /// SOURCE is "pod" for a pod's address, "no_pod" for the rest of the pod network, where
    /// nothing is sent, and "node" for all else, which the node's kernel routes.
    #[command(verbatim_doc_comment)]
    Routes(Format),
    /// Packets not forwarded: how many, whose, which way and why
    ///
    /// One row for every pod, direction and reason that happened since viaductd serves the pod,
    /// most packets first. Packets "from_pod" were sent by the pod, those "to_pod" were for it;
    /// the node's own are under the name of its port's device. Reasons that begin with "fallback_"
    /// are what was refused while no worker was there, of all pods together.
    #[command(verbatim_doc_comment)]
    Drops(Format),
    /// Ports of the node that lead to pods
    ///
    /// HOST is the address and port of the node that clients ask: one of its addresses, or any it
    /// has of that family. POD is what answers.
    #[command(verbatim_doc_comment)]
    Hostports(Format),
    /// Flows that workers follow: who asks which host port, and which pod answers
    ///
    /// A flow is what has the same protocol, addresses and ports, there and back. All that goes to
    /// a port of a pod that a host port leads to is followed. POD SEES is shown where it is not the
    /// client. REPLIES BY is "node" where the node's own kernel has sent the client's packets, and
    /// gets the pod's. What only the kernel carries is not shown.
    #[command(verbatim_doc_comment)]
    Flows(Flows),
    /// What becomes of a packet: the verdict of each stage by the tables and flows of now
    ///
    /// The packet is made up, shown to the XDP program, and forwarded in memory by the code of the
    /// workers. Nothing is sent, counted or remembered. Exits 0 whatever becomes of the packet.
    #[command(verbatim_doc_comment)]
    Explain(explain::Packet),
    /// Limits of pods' bandwidth, and how they are changed
    ///
    /// DIRECTION is "ingress" for what comes to the pod and "egress" for what it sends. RATE is
    /// bits per second, BURST what may pass at once after a pause, of what was ASKED for. TOKENS is
    /// what may pass now, less than 0 the debt of the last packet. QUEUED bytes wait; DROPPED
    /// packets would have waited too long; MARKED ones told their senders to slow down.
    #[command(verbatim_doc_comment)]
    Limits(limits::Limits),
    /// What stands in Viaduct's way here, with and without a daemon; exits 0 if nothing is amiss
    ///
    /// Looks at this machine and at the network namespace it runs in, and asks the daemon if there
    /// is one: run it as root, where viaductd runs. RESULT is "ok", "amiss", or "unknown" where it
    /// could not be found out, which is no failure. What to do about it stands below the table.
    #[command(verbatim_doc_comment)]
    Doctor(Examination),
}

/// Which flows `viaduct flows` shows.
#[derive(Args, Clone, Debug)]
struct Flows {
    #[command(flatten)]
    format: Format,
    /// Of this pod: namespace/name, a name, or the beginning of a container ID
    #[arg(long, value_name = "POD")]
    pod: Option<String>,
    /// From or to this address
    #[arg(long, value_name = "ADDRESS")]
    address: Option<IpAddr>,
    /// From or to this port
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,
}

/// What `viaduct doctor` looks at.
#[derive(Args, Clone, Debug)]
struct Examination {
    #[command(flatten)]
    format: Format,
    /// The daemon's configuration; it names the socket too, if --socket does not
    #[arg(long, value_name = "FILE", default_value = "/etc/viaduct/viaduct.toml")]
    config: PathBuf,
    /// Directory of the container runtime's CNI configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_conf: PathBuf,
    /// Directory of CNI plugins
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin: PathBuf,
}

/// How a listing is printed.
#[derive(Args, Clone, Copy, Debug)]
struct Format {
    /// Print JSON with all keys instead of a table
    #[arg(long)]
    json: bool,
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
        "viaduct cannot read viaductd's listing ({source}); use a viaduct of the daemon's release, \
         or --json"
    )]
    Unreadable {
        #[from]
        source: serde_json::Error,
    },
    #[error("a packet goes somewhere: name its destination")]
    NoDestination,
    #[error("a packet of {protocol} needs a port of its destination: write {dst}, for example")]
    NoPort { protocol: String, dst: SocketAddr },
    #[error(
        "nothing is to become of container {container_id}; name a rate, as --ingress 20M or \
         --egress 20M, or none to take one away"
    )]
    NoRate { container_id: String },
    #[error(
        "a burst without a rate limits nothing; name the rate of container {container_id} with \
         --ingress or --egress"
    )]
    BurstAlone { container_id: String },
    #[error("viaductd is not ready: {0}")]
    NotReady(String),
    #[error("things amiss: {count}; mend them as the doctor says")]
    Amiss { count: usize },
    #[error("cannot write to standard output: {0}; make room where it goes")]
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
    match command {
        Command::Status(format) => status(socket, format, out),
        Command::Pods(format) => list(socket, calls(Listing::Pods), format, views::pods, out),
        Command::Ports(format) => list(socket, calls(Listing::Ports), format, views::ports, out),
        Command::Routes(format) => list(socket, calls(Listing::Routes), format, views::routes, out),
        Command::Drops(format) => list(socket, calls(Listing::Drops), format, views::drops, out),
        Command::Hostports(format) => {
            list(socket, calls(Listing::Hostports), format, nat::host_ports, out)
        }
        Command::Flows(Flows { format, pod, address, port }) => {
            let filter = FlowFilter { pod, address, port };
            let call = |after| Call::Flows { filter: filter.clone(), after };
            list(socket, call, format, nat::flows, out)
        }
        Command::Explain(packet) => explain::explain(socket, packet, out),
        Command::Limits(wish) => limits::run(socket, wish, out),
        Command::Doctor(examination) => examine(socket, examination, out),
    }
}

/// The calls for the pages of a listing: for the first, and for the one behind `next` of another.
fn calls(listing: Listing) -> impl Fn(Option<String>) -> Call {
    move |after| match after {
        None => Call::List(listing),
        Some(after) => Call::ListAfter { listing, after },
    }
}

/// Looks at the machine, and says what it found.
fn examine(socket: &Path, examination: Examination, out: &mut impl Write) -> Result<(), CliError> {
    let Examination { format, config, cni_conf, cni_bin } = examination;
    let socket = (socket != Path::new(SOCKET_DEFAULT)).then(|| socket.to_owned());
    let places = Places { config, socket, cni_conf, cni_bin };
    let facts = Facts::read(&places, |socket| read_status(socket).map_err(|e| e.to_string()));
    let rows = doctor::examine(&facts);
    if format.json {
        let mut array = Array::new(out);
        rows.iter().try_for_each(|row| array.row(&serde_json::json!(row)))?;
        array.end()?;
    } else {
        out.write_all(views::doctor(&rows).as_bytes())?;
        out.flush()?;
    }
    match rows.iter().filter(|row| row.ok == Some(false)).count() {
        0 => Ok(()),
        count => Err(CliError::Amiss { count }),
    }
}

fn read_status(socket: &Path) -> Result<Status, CliError> {
    match fetch(socket, Call::List(Listing::Status))? {
        Reply::Listing(value) => Ok(serde_json::from_value(value)?),
        _ => Err(CliError::NotAListing { socket: socket.to_owned() }),
    }
}

fn status(socket: &Path, format: Format, out: &mut impl Write) -> Result<(), CliError> {
    let Reply::Listing(value) = fetch(socket, Call::List(Listing::Status))? else {
        return Err(CliError::NotAListing { socket: socket.to_owned() });
    };
    if format.json {
        writeln!(out, "{value:#}")?;
    }
    let status: Status = serde_json::from_value(value)?;
    if !format.json {
        out.write_all(views::status(&status).as_bytes())?;
    }
    out.flush()?;
    check_ready(&status)
}

/// Prints the rows of a listing: JSON page by page, a table when all are there, because the width
/// of its columns takes all of them.
fn list<R: DeserializeOwned>(
    socket: &Path,
    call: impl Fn(Option<String>) -> Call,
    format: Format,
    view: impl FnOnce(&[R]) -> String,
    out: &mut impl Write,
) -> Result<(), CliError> {
    if format.json {
        let mut array = Array::new(out);
        each_page(socket, call, |page| Ok(page.iter().try_for_each(|row| array.row(row))?))?;
        return Ok(array.end()?);
    }
    let mut rows = Vec::new();
    each_page(socket, call, |page| {
        let page = page.into_iter().map(serde_json::from_value);
        rows.extend(page.collect::<Result<Vec<R>, _>>()?);
        Ok(())
    })?;
    out.write_all(view(&rows).as_bytes())?;
    Ok(out.flush()?)
}

/// Takes a listing page by page. Each is asked for on a connection of its own: the daemon would not
/// keep one open for somebody who reads through a pager.
fn each_page(
    socket: &Path,
    call: impl Fn(Option<String>) -> Call,
    mut take: impl FnMut(Vec<Value>) -> Result<(), CliError>,
) -> Result<(), CliError> {
    let mut after = None;
    loop {
        match fetch(socket, call(after.clone()))? {
            Reply::Listing(Value::Array(rows)) => return take(rows),
            // Pages that lead nowhere would have no end. One may be without rows, but goes on.
            Reply::Page { rows, next } if after.as_ref() != Some(&next) => {
                take(rows)?;
                after = Some(next);
            }
            _ => return Err(CliError::NotAListing { socket: socket.to_owned() }),
        }
    }
}

/// The daemon's answer to one call, unless it is an error.
fn fetch(socket: &Path, call: Call) -> Result<Reply, CliError> {
    let reply = ask(socket, call, None, DEADLINE).map_err(|error| match error {
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
        Reply::Error(error) => Err(CliError::Refused(error)),
        reply => Ok(reply),
    }
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
