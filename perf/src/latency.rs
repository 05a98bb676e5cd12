//! `viaduct-perf latency`: round trips of a small UDP packet between two pods, alone and beside a
//! bulk TCP stream of the same pods, forwarded by Viaduct and by the kernel in turns.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::daemon::Setup;
use serde::Serialize;
use serde_json::json;

use crate::interrupt;
use crate::iperf::Bulk;
use crate::kernel::KernelRouting;
use crate::lane::Lane;
use crate::report::{Report, Table, progress};
use crate::stats::{Ratio, Times};
use crate::viaduct::Viaduct;

/// echo (RFC 862).
const PORT: u16 = 7;

/// A round trip that takes longer is counted as lost.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// Until TCP's window is open.
const BULK_WARM_UP: Duration = Duration::from_millis(700);

/// How long and how often.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Turns of each arm and load
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..))]
    pairs: u64,
    /// Seconds of one turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
}

/// What runs beside the round trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Beside {
    Nothing,
    BulkTcp,
}

/// One turn of an arm.
#[derive(Debug, Serialize)]
struct Turn {
    arm: &'static str,
    beside: Beside,
    #[serde(skip)]
    samples: Vec<Duration>,
    times: Times,
    lost: u64,
}

/// Measures.
///
/// # Errors
/// When a lane cannot be built or used.
pub fn measure(setup: &Setup, options: &Options) -> Result<Report> {
    progress("building the lanes");
    let viaduct = Viaduct::build(setup)?;
    let kernel = KernelRouting::build()?;
    let lanes = [viaduct.lane(), kernel.lane()];
    let mut turns = Vec::new();
    for pair in 0..options.pairs {
        progress(&format!("turn {} of {}", pair + 1, options.pairs));
        for beside in [Beside::Nothing, Beside::BulkTcp] {
            for turn in 0..2 {
                let lane = &lanes[((pair + turn) % 2) as usize];
                turns.push(take_turn(lane, beside, Duration::from_secs(options.seconds))?);
            }
        }
    }
    Ok(sum_up(&turns))
}

fn take_turn(lane: &Lane<'_>, beside: Beside, duration: Duration) -> Result<Turn> {
    let _bulk = match beside {
        Beside::Nothing => None,
        Beside::BulkTcp => {
            let bulk = Bulk::start(lane)?;
            interrupt::pause(BULK_WARM_UP)?;
            Some(bulk)
        }
    };
    let (samples, lost) = round_trips(lane, duration)?;
    Ok(Turn { arm: lane.arm, beside, times: Times::of(&samples), samples, lost })
}

/// One packet after another, each sent when the one before is back. Also how many were lost.
///
/// # Errors
/// When a socket cannot be made or used, or it is interrupted.
pub fn round_trips(lane: &Lane<'_>, duration: Duration) -> Result<(Vec<Duration>, u64)> {
    beside_echo(lane, |client| ask(client, duration))
}

/// A packet after `every` so much time, whatever became of those before: so what passes in a moment
/// counts as much as what waits long, where the path changes between the two. Also how many were
/// lost.
///
/// # Errors
/// See [`round_trips`].
pub fn samples(
    lane: &Lane<'_>,
    every: Duration,
    duration: Duration,
) -> Result<(Vec<Duration>, u64)> {
    beside_echo(lane, |client| sample(client, every, duration))
}

/// Lets a client ask a server that sends everything back.
fn beside_echo<T>(lane: &Lane<'_>, ask: impl FnOnce(&UdpSocket) -> Result<T>) -> Result<T> {
    let server = lane.server.within(|| UdpSocket::bind(("0.0.0.0", PORT)))?;
    let server = server.context("bind the echo socket")?;
    server.set_read_timeout(Some(Duration::from_millis(50)))?;
    let client = lane.client.within(|| UdpSocket::bind("0.0.0.0:0"))??;
    client.connect(SocketAddr::from((lane.address, PORT)))?;
    client.set_read_timeout(Some(LOST_AFTER))?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let echo = thread::spawn(move || echo(&server, &stopped));
    let asked = ask(&client);
    stop.store(true, Ordering::Relaxed); // orders nothing
    // An echo that panicked has lost every packet, which is counted.
    let _ = echo.join();
    asked
}

fn sample(client: &UdpSocket, every: Duration, duration: Duration) -> Result<(Vec<Duration>, u64)> {
    let started = Instant::now();
    let count = (duration.as_nanos() / every.as_nanos().max(1)) as u32;
    let send = || {
        for number in 0..count {
            let due = every * number;
            thread::sleep(due.saturating_sub(started.elapsed()));
            let now_ns = started.elapsed().as_nanos() as u64;
            // What cannot be sent does not come back, which is counted.
            let _ = client.send(&now_ns.to_be_bytes());
        }
    };
    thread::scope(|scope| {
        scope.spawn(send);
        let (mut samples, mut stamp) = (Vec::new(), [0; 8]);
        while samples.len() < count as usize && started.elapsed() < duration + LOST_AFTER {
            interrupt::check()?;
            match client.recv(&mut stamp) {
                Ok(_) => {
                    let sent = Duration::from_nanos(u64::from_be_bytes(stamp));
                    samples.push(started.elapsed().saturating_sub(sent));
                }
                Err(error) if is_timeout(error.kind()) => {}
                Err(error) => return Err(error).context("receive a packet"),
            }
        }
        let lost = u64::from(count) - samples.len() as u64;
        Ok((samples, lost))
    })
}

fn ask(client: &UdpSocket, duration: Duration) -> Result<(Vec<Duration>, u64)> {
    let (mut samples, mut lost) = (Vec::new(), 0);
    let end = Instant::now() + duration;
    let mut answer = [0; 64];
    for number in 0u64.. {
        let sent = Instant::now();
        if sent >= end {
            break;
        }
        interrupt::check()?;
        let question = number.to_be_bytes();
        client.send(&question).context("send a packet")?;
        loop {
            match client.recv(&mut answer) {
                // Late answers of lost packets are not this one's.
                Ok(len) if answer[..len] != question => {}
                Ok(_) => {
                    samples.push(sent.elapsed());
                    break;
                }
                Err(error) if is_timeout(error.kind()) => {
                    lost += 1;
                    break;
                }
                Err(error) => return Err(error).context("receive a packet"),
            }
        }
    }
    Ok((samples, lost))
}

fn echo(server: &UdpSocket, stop: &AtomicBool) {
    let mut packet = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        // A timeout lets us look at `stop`; an answer that cannot be sent is a lost packet.
        if let Ok((len, from)) = server.recv_from(&mut packet) {
            let _ = server.send_to(&packet[..len], from);
        }
    }
}

fn is_timeout(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn sum_up(turns: &[Turn]) -> Report {
    let of = |arm: &str, beside| {
        let arm = arm.to_owned();
        turns.iter().filter(move |turn| turn.arm == arm && turn.beside == beside)
    };
    let heads = ["arm", "beside", "round trips", "p50", "p99", "p99.9", "max", "lost"];
    let mut table = Table::new("UDP round trips between pods, in µs", &heads);
    let mut paired =
        Table::new("turn by turn, viaduct / kernel", &["beside", "p50", "p99", "turns of p99"]);
    let mut ratios = Vec::new();
    for (beside, name) in [(Beside::Nothing, "nothing"), (Beside::BulkTcp, "bulk TCP")] {
        for arm in ["viaduct", "kernel"] {
            let all: Vec<Duration> =
                of(arm, beside).flat_map(|turn| turn.samples.iter().copied()).collect();
            let lost: u64 = of(arm, beside).map(|turn| turn.lost).sum();
            let Times { count, p50_us, p99_us, p999_us, max_us } = Times::of(&all);
            let mut row = vec![arm.to_owned(), name.to_owned(), count.to_string()];
            row.extend([p50_us, p99_us, p999_us, max_us].map(|us| format!("{us:.1}")));
            row.push(lost.to_string());
            table.row(row);
        }
        let ratio = |figure: fn(&Turn) -> f64| {
            let [viaduct, kernel] =
                ["viaduct", "kernel"].map(|arm| of(arm, beside).map(figure).collect::<Vec<f64>>());
            Ratio::of(("viaduct", &viaduct), ("kernel", &kernel))
        };
        let (p50, p99) = (ratio(|turn| turn.times.p50_us), ratio(|turn| turn.times.p99_us));
        let each: Vec<String> = p99.turns.iter().map(|turn| format!("{turn:.2}")).collect();
        let medians = [p50.median, p99.median].map(|median| format!("{median:.2}"));
        paired.row([name.to_owned()].into_iter().chain(medians).chain([each.join(" ")]));
        ratios.push(json!({ "beside": beside, "p50": p50, "p99": p99 }));
    }
    Report::new(
        "latency",
        vec![table, paired],
        Vec::new(),
        json!({ "turns": turns, "ratios": ratios }),
    )
}
