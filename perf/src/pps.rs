//! `viaduct-perf pps`: how many packets of 64 bytes get from pod to pod, forwarded by Viaduct and
//! by the kernel in turns.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::daemon::Setup;
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, sendmmsg};
use serde::Serialize;
use serde_json::json;

use crate::interrupt;
use crate::kernel::KernelRouting;
use crate::lane::{InterfaceCounts, Lane, Turns};
use crate::machine::{CpuTimes, TICK_NS};
use crate::report::{Report, Table, progress};
use crate::stats::{Ratio, median};
use crate::viaduct::Viaduct;

/// Payload of a packet that is 64 bytes on a wire: Ethernet 14, IPv4 20, UDP 8, and 4 of FCS.
const PAYLOAD_BYTES: usize = 18;

/// Packets per system call. From 64 on, more gain nothing.
const BATCH: usize = 64;

/// discard (RFC 863).
pub const PORT: u16 = 9;

/// After the last packet, until nothing is under way and the kernel's drop counters have been
/// mirrored (every 250 ms).
const SETTLE: Duration = Duration::from_millis(600);

/// How long and how often, and from how many threads.
#[derive(Debug, clap::Args)]
pub struct Options {
    #[command(flatten)]
    turns: Turns,
    /// Threads that send, each its own flow
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=64))]
    senders: u64,
}

/// One turn of an arm.
#[derive(Debug, Serialize)]
pub struct Turn {
    arm: &'static str,
    /// Packets that left the sender's interface, per second.
    pub offered_pps: f64,
    /// Packets that the receiver's interface got, per second.
    pub delivered_pps: f64,
    /// Packets of the first that are not among the second.
    lost: u64,
    /// Of these, what workers counted, by place and reason.
    drops: BTreeMap<String, u64>,
    /// CPU time of the whole machine, sender included, per packet delivered.
    pub cpu_ns_per_packet: f64,
    /// Time that the machine's host gave to others.
    pub steal_percent: f64,
}

/// Measures.
///
/// # Errors
/// When a lane cannot be built or loaded.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    progress("building the lanes");
    let viaduct = Viaduct::build(setup)?;
    let kernel = KernelRouting::build()?;
    let mut turns = Vec::new();
    for pair in 0..options.turns.pairs {
        for turn in 0..2 {
            interrupt::check()?;
            let turn = if (pair + turn) % 2 == 0 {
                let before = viaduct.counted()?;
                let mut turn = load(&viaduct.lane(), options.turns.seconds, options.senders)?;
                turn.drops = viaduct.counted()?.drops_since(&before);
                turn
            } else {
                load(&kernel.lane(), options.turns.seconds, options.senders)?
            };
            progress(&format!(
                "turn {} of {}: {} delivers {:.0} of {:.0} packets per second",
                pair + 1,
                options.turns.pairs,
                turn.arm,
                turn.delivered_pps,
                turn.offered_pps
            ));
            turns.push(turn);
        }
    }
    Ok(sum_up(&turns))
}

/// Sends as fast as a socket can. Nobody reads the receiving socket: what its pod's kernel has
/// accepted is delivered, and a reader would be what is measured.
///
/// # Errors
/// When a socket cannot be made, or it is interrupted.
pub fn load(lane: &Lane<'_>, seconds: u64, senders: u64) -> Result<Turn> {
    let sink = lane.server.within(|| UdpSocket::bind(("0.0.0.0", PORT)))?;
    let _sink = sink.context("bind the receiving socket")?;
    let target = SocketAddr::from((lane.address, PORT));
    let before = (InterfaceCounts::of(lane.client)?, InterfaceCounts::of(lane.server)?);
    let cpu = CpuTimes::now()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut threads = Vec::new();
    for _ in 0..senders {
        let socket = lane.client.within(|| connected(target))??;
        let stop = stop.clone();
        threads.push(thread::spawn(move || flood(&socket, &stop)));
    }
    let started = Instant::now();
    let paused = interrupt::pause(Duration::from_secs(seconds));
    stop.store(true, Ordering::Relaxed); // orders nothing
    for sender in threads {
        // A sender that panicked has offered less, which the counters show.
        let _ = sender.join();
    }
    let seconds = started.elapsed().as_secs_f64();
    let cpu = CpuTimes::now()?.since(cpu);
    paused?;
    interrupt::pause(SETTLE)?;
    let offered = InterfaceCounts::of(lane.client)?.tx - before.0.tx;
    let delivered = InterfaceCounts::of(lane.server)?.rx - before.1.rx;
    Ok(Turn {
        arm: lane.arm,
        offered_pps: offered as f64 / seconds,
        delivered_pps: delivered as f64 / seconds,
        lost: offered.saturating_sub(delivered),
        drops: BTreeMap::new(),
        cpu_ns_per_packet: (cpu.busy * TICK_NS) as f64 / delivered.max(1) as f64,
        steal_percent: cpu.steal_percent(),
    })
}

fn connected(target: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(target).with_context(|| format!("connect to {target}"))?;
    Ok(socket)
}

fn flood(socket: &UdpSocket, stop: &AtomicBool) {
    let payload = [0; PAYLOAD_BYTES];
    let pieces = [IoSlice::new(&payload)];
    let mut controls: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        (0..BATCH).map(|_| SendAncillaryBuffer::default()).collect();
    let mut messages: Vec<MMsgHdr<'_>> =
        controls.iter_mut().map(|control| MMsgHdr::new(&pieces, control)).collect();
    while !stop.load(Ordering::Relaxed) {
        // A full queue is what a flood is for: the next call tries again.
        let _ = sendmmsg(socket, &mut messages, SendFlags::empty());
    }
}

fn sum_up(turns: &[Turn]) -> Report {
    let of = |arm: &str, figure: fn(&Turn) -> f64| -> Vec<f64> {
        turns.iter().filter(|turn| turn.arm == arm).map(figure).collect()
    };
    let heads = ["arm", "offered", "delivered", "turns", "lost %", "CPU ns/packet", "steal %"];
    let mut table = Table::new("UDP packets of 64 bytes, thousands per second, medians", &heads);
    let mut drops = Table::new("lost packets by reason, all turns", &["arm and reason", "packets"]);
    for arm in ["viaduct", "kernel"] {
        let offered = of(arm, |turn| turn.offered_pps);
        let delivered = of(arm, |turn| turn.delivered_pps);
        let lost = of(arm, |turn| 100.0 * (1.0 - turn.delivered_pps / turn.offered_pps.max(1.0)));
        let each: Vec<String> = delivered.iter().map(|pps| format!("{:.0}", pps / 1e3)).collect();
        let steal = of(arm, |turn| turn.steal_percent).into_iter().fold(0.0, f64::max);
        table.row([
            arm.to_owned(),
            format!("{:.0}", median(&offered) / 1e3),
            format!("{:.0}", median(&delivered) / 1e3),
            each.join(" "),
            format!("{:.2}", median(&lost)),
            format!("{:.0}", median(&of(arm, |turn| turn.cpu_ns_per_packet))),
            format!("{steal:.1}"),
        ]);
        for (reason, count) in losses(turns, arm) {
            drops.row([format!("{arm}: {reason}"), count.to_string()]);
        }
    }
    let (viaduct, kernel) = (of("viaduct", |t| t.delivered_pps), of("kernel", |t| t.delivered_pps));
    let ratio = Ratio::of(("viaduct", &viaduct), ("kernel", &kernel));
    let mut paired = Table::new("delivered, turn by turn", &["ratio", "median", "turns"]);
    let each: Vec<String> = ratio.turns.iter().map(|turn| format!("{turn:.2}")).collect();
    paired.row([ratio.of.clone(), format!("{:.2}", ratio.median), each.join(" ")]);
    Report::new(
        "pps",
        vec![table, paired, drops],
        Vec::new(),
        json!({ "turns": turns, "ratio": ratio }),
    )
}

/// Drops of an arm by reason, and what nobody gave a reason for.
fn losses(turns: &[Turn], arm: &str) -> BTreeMap<String, i64> {
    let mut losses = BTreeMap::new();
    let mut unexplained = 0;
    for turn in turns.iter().filter(|turn| turn.arm == arm) {
        unexplained += turn.lost as i64;
        for (reason, count) in &turn.drops {
            *losses.entry(reason.clone()).or_insert(0) += *count as i64;
            unexplained -= *count as i64;
        }
    }
    losses.insert("no reason known".to_owned(), unexplained);
    losses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_worker_counted_is_lost_for_no_known_reason() {
        let turn = |lost, drops: &[(&str, u64)]| Turn {
            arm: "viaduct",
            offered_pps: 0.0,
            delivered_pps: 0.0,
            lost,
            drops: drops.iter().map(|(reason, n)| ((*reason).to_owned(), *n)).collect(),
            cpu_ns_per_packet: 0.0,
            steal_percent: 0.0,
        };
        let turns = [turn(10, &[("a", 7)]), turn(5, &[("a", 1), ("b", 4)])];
        let found: Vec<(String, i64)> = losses(&turns, "viaduct").into_iter().collect();
        let expected = [("a", 8), ("b", 4), ("no reason known", 3)];
        assert_eq!(found, expected.map(|(reason, n)| (reason.to_owned(), n)));
    }
}
