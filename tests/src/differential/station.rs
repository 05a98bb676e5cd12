//! A place where frames are sent and seen: one interface, served by a process (`inject.py`) in
//! its namespace.

use std::io::{BufReader, Read, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Namespace;

/// The program, so that the test needs no file of the source tree when it runs.
const PROGRAM: &str = include_str!("inject.py");

/// Starting Python takes 30 ms; a machine under load a hundred times that.
const READY_WITHIN: Duration = Duration::from_secs(10);

/// How a frame leaves the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// By the queueing discipline and the tc programs of the interface, as a pod's kernel sends.
    Queued = 0,
    /// Past both, by `PACKET_QDISC_BYPASS`: what a pod with CAP_NET_RAW can do.
    Bypass = 1,
}

/// What a station says.
#[derive(Debug)]
enum Record {
    Arrived(Vec<u8>),
    Wrong(String),
    Ready,
}

/// One interface of one namespace. Its process ends with the value.
#[derive(Debug)]
pub struct Station {
    name: String,
    child: Child,
    stdin: ChildStdin,
    records: Receiver<Record>,
    queued: Vec<u8>,
}

impl Station {
    /// Starts the process for `interface` of `namespace`, on processor `cpu`, and waits until it
    /// sees what arrives.
    ///
    /// # Errors
    /// When Python cannot be started there, or has no such interface.
    pub fn start(namespace: &Namespace, interface: &str, cpu: usize) -> Result<Station> {
        let name = format!("{interface} in {}", namespace.path().display());
        let mut child = namespace
            .within(|| {
                Command::new("python3")
                    .args(["-c", PROGRAM, interface, &cpu.to_string()])
                    .stdin(Stdio::piped())
                    .stdout(Stdio::piped())
                    .spawn()
            })?
            .with_context(|| format!("start python3 for {name}"))?;
        let stdin = child.stdin.take().context("the process has a stdin")?;
        let stdout = child.stdout.take().context("the process has a stdout")?;
        let (sender, records) = channel();
        // A thread of its own, so that neither side ever waits for the other's full pipe.
        thread::spawn(move || read_records(stdout, &sender));
        let station = Station { name, child, stdin, records, queued: Vec::new() };
        match station.records.recv_timeout(READY_WITHIN) {
            Ok(Record::Ready) => Ok(station),
            other => bail!("the process for {} is not ready: {other:?}", station.name),
        }
    }

    /// Notes a frame to be sent by the next [`Station::send`].
    pub fn queue(&mut self, frame: &[u8], sending: Sending) {
        let length = u32::try_from(frame.len() + 1).expect("frames are short");
        self.queued.extend(length.to_be_bytes());
        self.queued.push(sending as u8);
        self.queued.extend(frame);
    }

    /// Sends the frames that were queued, in their order.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn send(&mut self) -> Result<()> {
        let sent = self.stdin.write_all(&self.queued).and_then(|()| self.stdin.flush());
        self.queued.clear();
        sent.with_context(|| format!("hand frames to {}", self.name))
    }

    /// Gives every frame that arrives to `seen`, until it answers `true`.
    ///
    /// # Errors
    /// When `seen` has not answered `true` by `deadline`, or something went wrong meanwhile.
    pub fn receive_until(
        &self,
        what: &str,
        deadline: Instant,
        mut seen: impl FnMut(Vec<u8>) -> bool,
    ) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.records.recv_timeout(left) {
                Ok(Record::Arrived(frame)) => {
                    if seen(frame) {
                        return Ok(());
                    }
                }
                Ok(Record::Wrong(sentence)) => bail!("{}: {sentence}", self.name),
                Ok(Record::Ready) => bail!("{}: ready a second time", self.name),
                Err(_) => bail!("{}: {what} did not arrive in time", self.name),
            }
        }
    }
}

impl Drop for Station {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads to the end of the process, or of interest in it.
fn read_records(stdout: impl Read, sender: &Sender<Record>) {
    let mut stdout = BufReader::with_capacity(1 << 20, stdout);
    while let Some(record) = read_record(&mut stdout) {
        if sender.send(record).is_err() {
            return;
        }
    }
}

fn read_record(stdout: &mut impl Read) -> Option<Record> {
    let mut head = [0; 5];
    stdout.read_exact(&mut head).ok()?;
    let [a, b, c, d, kind] = head;
    let mut body = vec![0; u32::from_be_bytes([a, b, c, d]).checked_sub(1)? as usize];
    stdout.read_exact(&mut body).ok()?;
    Some(match kind {
        0 => Record::Arrived(body),
        1 => Record::Wrong(String::from_utf8_lossy(&body).into_owned()),
        _ => Record::Ready,
    })
}
