//! `viaduct-perf`: what Viaduct costs and what it gains, measured on this machine.
//!
//! Every subcommand but `routes` and `flows` builds all that it needs in network namespaces of its
//! own, measures, prints a table (or JSON), and removes everything again, also when it fails or is
//! interrupted. Viaduct and what it is compared with take turns within one run, because two runs on
//! a shared machine compare nothing; `README.md` says how to read the figures.

mod adoption;
mod cni;
mod flows;
mod host_ports;
mod idle;
mod internet;
mod interrupt;
mod iperf;
mod kernel;
mod lane;
mod latency;
mod limits;
mod machine;
mod plugin;
mod pps;
mod process;
mod report;
mod routes;
mod rtnetlink;
mod stats;
mod tcp;
mod testpmd;
mod viaduct;
mod wire;

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use e2e::daemon::{PortMode, Setup};

use crate::machine::Machine;
use crate::report::Report;

/// Measures Viaduct in namespaces of its own; needs root (routes and flows do not)
///
/// viaductd, viaduct and viaduct-cni are those of the release build, or of the folder in
/// VIADUCT_BIN_DIR.
#[derive(Debug, Parser)]
#[command(name = "viaduct-perf", version)]
struct Arguments {
    /// Print JSON with every single figure instead of tables
    #[arg(long, global = true)]
    json: bool,
    /// Use only what kernel 6.1 can do: port_mode = "basic"
    #[arg(long, global = true)]
    basic: bool,
    /// Workers of the node, pinned to the last cores
    #[arg(long, global = true, default_value_t = 1)]
    workers: usize,
    #[command(subcommand)]
    command: Measurement,
}

#[derive(Debug, Subcommand)]
enum Measurement {
    /// One TCP stream between two pods: Viaduct, DPDK testpmd and kernel routing in turns
    Tcp(tcp::Options),
    /// TCP between pods of two nodes on one switch: Viaduct, DPDK testpmd and the kernel in turns
    Wire(wire::Options),
    /// ADD, CHECK and DEL of pods: one after another, and many at once
    Cni(cni::Options),
    /// Packets of 64 bytes: Viaduct and kernel routing in turns
    Pps(pps::Options),
    /// Round trips of a small packet, alone and beside a bulk TCP stream
    Latency(latency::Options),
    /// CPU that an idle node takes
    Idle(idle::Options),
    /// Lookups and changes of the route mirror with as many routes as the internet has
    Routes(routes::Options),
    /// From a route in the kernel to packets that take it, with as many routes as the internet has
    Adoption(adoption::Options),
    /// The table of flows with a million of them, and a flood of SYNs to one pod
    Flows(flows::Options),
    /// Packets through host ports of another node, with one of them there and with thousands
    #[command(name = "hostports")]
    HostPorts(host_ports::Options),
    /// Limits of pods: how exactly they hold, beside the reference's plugin, and 250 at once
    Limits(limits::Options),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("viaduct-perf: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<()> {
    let Arguments { json, basic, workers, command } = arguments;
    interrupt::watch()?;
    let machine = Machine::look()?;
    let setup = Setup::new(if basic { PortMode::Basic } else { PortMode::Auto }, workers);
    let outcome = match command {
        Measurement::Tcp(options) => tcp::measure(&setup, &options),
        Measurement::Wire(options) => wire::measure(&setup, &options),
        Measurement::Cni(options) => cni::measure(&setup, &options),
        Measurement::Pps(options) => pps::measure(&setup, &options),
        Measurement::Latency(options) => latency::measure(&setup, &options),
        Measurement::Idle(options) => idle::measure(&setup, &options),
        Measurement::Routes(options) => routes::measure(&options),
        Measurement::Adoption(options) => adoption::measure(&setup, &options),
        Measurement::Flows(options) => flows::measure(&options),
        Measurement::HostPorts(options) => host_ports::measure(&setup, &options),
        Measurement::Limits(options) => limits::measure(&setup, &options),
    };
    // Programs that the same Ctrl-C has ended look as if they had failed.
    interrupt::check()?;
    let report = outcome?;
    print(&machine, &report, json).context("write to stdout")?;
    ensure!(report.failures.is_empty(), "not all could be measured; the report says what failed");
    Ok(())
}

fn print(machine: &Machine, report: &Report, json: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        let all = serde_json::json!({ "machine": machine, "report": report });
        writeln!(out, "{all:#}")?;
    } else {
        writeln!(out, "{machine}\n\n{report}")?;
    }
    Ok(())
}
