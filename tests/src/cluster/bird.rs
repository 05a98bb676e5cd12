//! BIRD on the nodes of a cluster, with the example's configuration: what is documented is what is
//! tested.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Cluster;
use crate::netns::wait_until;

/// The documented example.
const EXAMPLE: &str = include_str!("../../../deploy/bird/bird.conf");

/// Where it says who the node is, and who the others are. What stands there is the test's.
const ROUTER_ID: &str = "router id 10.0.0.1;";
const FIRST_NEIGHBOR: &str = "protocol bgp node2 from node";

/// BIRD starts in milliseconds; sessions follow after its delay of 5 s, or less.
const STARTS_WITHIN: Duration = Duration::from_secs(10);
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);

/// BIRD on one node. Dropped, it is killed: its routes stay in the node's kernel.
#[derive(Debug)]
pub struct Bird {
    process: Child,
    dir: TempDir,
}

impl Bird {
    /// Starts on a node, with all the others for neighbors; returns when it answers. `more` is
    /// appended to the configuration.
    ///
    /// # Errors
    /// When it cannot be started, or refuses the configuration.
    pub fn start(cluster: &Cluster, number: usize, more: &str) -> Result<Bird> {
        let dir = tempfile::Builder::new().prefix("viaduct-e2e-bird-").tempdir_in("/run")?;
        let config = dir.path().join("bird.conf");
        fs::write(&config, configuration(cluster, number)? + more)?;
        let log = fs::File::create(dir.path().join("log"))?;
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(&config).arg("-s").arg(socket(dir.path()));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let process = cluster.node(number).namespace().within(|| command.spawn())?;
        let bird = Bird { process: process.context("start bird")?, dir };
        wait_until("bird answers", STARTS_WITHIN, || Ok(bird.ask("show status").is_ok()))
            .with_context(|| bird.log())?;
        Ok(bird)
    }

    /// What `birdc` answers.
    ///
    /// # Errors
    /// When BIRD does not run, or refuses.
    pub fn ask(&self, question: &str) -> Result<String> {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(socket(self.dir.path())).args(question.split_whitespace());
        let output = command.output().context("run birdc")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "birdc {question}: {text}");
        Ok(text)
    }

    /// Waits until so many sessions are established.
    ///
    /// # Errors
    /// When they are not in time.
    pub fn wait_for_sessions(&self, count: usize) -> Result<()> {
        let mut text = String::new();
        wait_until("sessions are established", SESSIONS_WITHIN, || {
            text = self.ask("show protocols")?;
            Ok(text.matches("Established").count() == count)
        })
        .with_context(|| format!("{text}\n{}", self.log()))
    }

    /// What it has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ = self.process.kill(); // It may have ended.
        let _ = self.process.wait();
    }
}

fn socket(dir: &Path) -> std::path::PathBuf {
    dir.join("bird.ctl")
}

/// The example with a node's own address and neighbors in their places.
fn configuration(cluster: &Cluster, number: usize) -> Result<String> {
    let (common, _) = EXAMPLE.split_once(FIRST_NEIGHBOR).context("the example has neighbors")?;
    ensure!(common.contains(ROUTER_ID), "the example has a router id");
    let [id, _] = Cluster::address(number);
    let mut text = common.replace(ROUTER_ID, &format!("router id {id};"));
    for other in (0..cluster.nodes().len()).filter(|other| *other != number) {
        let [_, address] = Cluster::address(other);
        let IpAddr::V6(address) = address else { continue };
        let neighbor = format!("{{ neighbor {address} as CLUSTER_AS; }}");
        text += &format!("protocol bgp node{} from node {neighbor}\n", other + 1);
    }
    Ok(text)
}
