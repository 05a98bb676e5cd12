//! TCP streams by iperf3. Client and server are placed alike in every arm: on the cores that are
//! named, or by the scheduler.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::netns::{Namespace, wait_until};
use serde_json::Value;

use crate::lane::Lane;
use crate::process::Running;

/// A listening socket on iperf3's port 5201 as /proc/net/tcp writes it: address, port, no peer,
/// state LISTEN.
const LISTENING: &str = ":1451 00000000:0000 0A";

/// iperf3 listens within 20 ms here.
const LISTEN_DEADLINE: Duration = Duration::from_secs(5);

/// Beyond the time of a stream: handshakes, and the exchange of results at its end.
const SPARE_S: u64 = 5;

/// What is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Streams<'a> {
    /// How many at once.
    pub count: u32,
    /// Name of their congestion control; `None`: the machine's own.
    pub congestion: Option<&'a str>,
    /// Numbers of the cores of client and server; `None`: the scheduler's choice.
    pub cores: Option<[usize; 2]>,
    /// How long.
    pub seconds: u64,
}

impl Streams<'_> {
    /// A single stream, without wishes.
    pub fn one(seconds: u64) -> Self {
        Streams { count: 1, congestion: None, cores: None, seconds }
    }
}

/// What came of one stream, or of several together.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// What the receiver got.
    pub gbit_per_s: f64,
    /// The same in bytes of payload.
    pub received_bytes: u64,
    /// Segments that the sender sent again.
    pub retransmits: u64,
}

/// Runs streams over the lane.
///
/// # Errors
/// When iperf3 fails or does not end in time, or the kernel has no such congestion control.
pub fn run(lane: &Lane<'_>, streams: Streams<'_>) -> Result<Stream> {
    let Streams { count, congestion, cores, seconds } = streams;
    let _server = serve(lane.server)?;
    let (address, limit) = (lane.address.to_string(), (seconds + SPARE_S).to_string());
    let (time, count) = (seconds.to_string(), count.to_string());
    // A path that loses everything would hold iperf3 for minutes.
    let mut words = vec![&*limit, "iperf3", "-J", "-c", &address, "-t", &time, "-P", &count];
    words.extend(congestion.into_iter().flat_map(|name| ["-C", name]));
    let cores = cores.map(|[client, server]| format!("{client},{server}"));
    words.extend(cores.iter().flat_map(|cores| ["-A", cores]));
    let output = lane.client.run("timeout", &words)?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    ensure!(
        output.status.success(),
        "iperf3 over {} failed ({}): {}",
        lane.arm,
        output.status,
        answer["error"]
    );
    read(&answer).with_context(|| format!("read what iperf3 printed: {answer}"))
}

fn read(answer: &Value) -> Option<Stream> {
    let end = &answer["end"];
    Some(Stream {
        gbit_per_s: end["sum_received"]["bits_per_second"].as_f64()? / 1e9,
        received_bytes: end["sum_received"]["bytes"].as_u64()?,
        retransmits: end["sum_sent"]["retransmits"].as_u64()?,
    })
}

/// A stream in the background, until it is dropped.
#[derive(Debug)]
pub struct Bulk {
    _client: Running,
    _server: Running,
}

impl Bulk {
    /// Starts it; it lasts no longer than an hour.
    ///
    /// # Errors
    /// When iperf3 cannot be started.
    pub fn start(lane: &Lane<'_>) -> Result<Bulk> {
        let server = serve(lane.server)?;
        let mut client = Command::new("iperf3");
        client.args(["-c", &lane.address.to_string(), "-t", "3600"]);
        client.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Bulk { _client: Running::start(lane.client, &mut client)?, _server: server })
    }
}

fn serve(namespace: &Namespace) -> Result<Running> {
    let mut command = Command::new("iperf3");
    // Whatever goes wrong, the client says so, too.
    command.args(["-s", "-4", "-1"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut server = Running::start(namespace, &mut command)?;
    wait_until("iperf3 listens", LISTEN_DEADLINE, || {
        server.check_alive()?;
        let sockets = namespace.within(|| fs::read_to_string("/proc/thread-self/net/tcp"))??;
        Ok(sockets.contains(LISTENING))
    })?;
    Ok(server)
}
