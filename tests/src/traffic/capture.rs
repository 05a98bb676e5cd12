//! What passes an interface, by tcpdump.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::wait_until_idle;
use crate::netns::Namespace;

/// tcpdump listens some 100 ms after it was started.
const LISTENS_WITHIN: Duration = Duration::from_secs(10);

/// tcpdump at work. Killed when dropped.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    lines: Receiver<Vec<String>>,
}

impl Capture {
    /// Starts to capture what matches a filter, a line each, with options such as `-Q in`; returns
    /// when packets are being looked at.
    ///
    /// # Errors
    /// When tcpdump cannot be started, or refuses the filter.
    pub fn start(namespace: &Namespace, options: &str, filter: &str) -> Result<Capture> {
        let mut command = Command::new("tcpdump");
        command.args(["-n", "-l", "--immediate-mode"]).args(options.split_whitespace());
        command.arg(filter).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut tcpdump = namespace.within(|| command.spawn())?.context("start tcpdump")?;
        let stderr = tcpdump.stderr.take().context("stderr is piped")?;
        let stdout = tcpdump.stdout.take().context("stdout is piped")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            // At its end it prints an empty line.
            let lines = BufReader::new(stdout).lines().map_while(Result::ok);
            let lines = lines.filter(|line| !line.is_empty()).collect();
            let _ = sender.send(lines); // nobody asks after a failure
        });
        let capture = Capture { tcpdump, lines };
        let (sender, listening) = channel();
        thread::spawn(move || {
            let mut stderr = BufReader::new(stderr);
            let mut said = String::new();
            while stderr.read_line(&mut said).is_ok_and(|len| len > 0) {
                if said.contains("listening on") {
                    let _ = sender.send(Ok(()));
                    break;
                }
            }
            let _ = sender.send(Err(said));
            let _ = stderr.read_to_end(&mut Vec::new()); // so that it never blocks
        });
        match listening.recv_timeout(LISTENS_WITHIN) {
            Ok(Ok(())) => Ok(capture),
            Ok(Err(said)) => anyhow::bail!("tcpdump {options} {filter}: {said}"),
            Err(_) => anyhow::bail!("tcpdump {options} {filter} does not listen"),
        }
    }

    /// Ends it and returns a line for each packet that passed before; with `-v`, several.
    ///
    /// # Errors
    /// When tcpdump does not end.
    pub fn stop(mut self) -> Result<Vec<String>> {
        // On a signal it leaves what it has not read yet.
        wait_until_idle(&self.tcpdump)?;
        kill_process(Pid::from_child(&self.tcpdump), Signal::INT).context("stop tcpdump")?;
        self.tcpdump.wait().context("wait for tcpdump")?;
        self.lines.recv_timeout(LISTENS_WITHIN).context("read what tcpdump saw")
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.tcpdump.kill(); // It may have ended.
        let _ = self.tcpdump.wait();
    }
}
