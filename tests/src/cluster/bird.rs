//! BIRD on the nodes of a cluster, with the example's configuration: what is documented is what is
//! tested.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::Cluster;
use super::bgp::{STARTS_WITHIN, Speaker, Wanderer, neighbors, start_on};
use crate::netns::wait_until;

/// The documented example.
const EXAMPLE: &str = include_str!("../../../deploy/bird/bird.conf");

/// Where it says who the node is, and who the others are. What stands there is the test's.
const ROUTER_ID: &str = "router id 10.0.0.1;";
const FIRST_NEIGHBOR: &str = "protocol bgp node2 from node";

/// BIRD on one node. Dropped, it is killed: its routes stay in the node's kernel.
#[derive(Debug)]
pub struct Bird {
    process: Child,
    dir: TempDir,
}

impl Bird {
    /// What `birdc` answers.
    fn ask(&self, question: &str) -> Result<String> {
        let mut command = Command::new("birdc");
        command.arg("-s").arg(socket(self.dir.path())).args(question.split_whitespace());
        let output = command.output().context("run birdc")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(output.status.success(), "birdc {question}: {text}");
        Ok(text)
    }
}

impl Speaker for Bird {
    const PROTOCOL: &'static str = "bird";
    const NEXT_HOP_OBJECTS: bool = false;

    fn start(cluster: &Cluster, number: usize, wanderer: Wanderer) -> Result<Bird> {
        let dir = tempfile::Builder::new().prefix("viaduct-e2e-bird-").tempdir_in("/run")?;
        let config = dir.path().join("bird.conf");
        fs::write(&config, configuration(cluster, number, wanderer)?)?;
        let mut command = Command::new("bird");
        command.arg("-f").arg("-c").arg(&config).arg("-s").arg(socket(dir.path()));
        let process = start_on(cluster, number, &mut command, &log(dir.path()))?;
        let bird = Bird { process, dir };
        wait_until("bird answers", STARTS_WITHIN, || Ok(bird.ask("show status").is_ok()))
            .with_context(|| bird.log())?;
        Ok(bird)
    }

    fn sessions(&self) -> Result<usize> {
        Ok(self.ask("show protocols")?.matches("Established").count())
    }

    fn announce(&self, family: usize, here: bool) -> Result<()> {
        let verb = if here { "enable" } else { "disable" };
        self.ask(&format!("{verb} wanderer{family}"))?;
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(log(self.dir.path())).unwrap_or_default()
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        let _ = self.process.kill(); // It may have ended.
        let _ = self.process.wait();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("bird.ctl")
}

fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// The example with a node's own address and neighbors in their places, and the wanderer.
fn configuration(cluster: &Cluster, number: usize, wanderer: Wanderer) -> Result<String> {
    let (common, _) = EXAMPLE.split_once(FIRST_NEIGHBOR).context("the example has neighbors")?;
    ensure!(common.contains(ROUTER_ID), "the example has a router id");
    let [id, _] = Cluster::address(number);
    let mut text = common.replace(ROUTER_ID, &format!("router id {id};"));
    for (other, address) in neighbors(cluster, number) {
        let neighbor = format!("{{ neighbor {address} as CLUSTER_AS; }}");
        text += &format!("protocol bgp node{other} from node {neighbor}\n");
    }
    let preference = 100 + number;
    for (family, (channel, prefix)) in ["ipv4", "ipv6"].iter().zip(wanderer).enumerate() {
        text += &format!(
            "protocol static wanderer{family} {{ disabled; {channel}; \
             route {prefix} unreachable {{ bgp_local_pref = {preference}; }}; }}\n"
        );
    }
    Ok(text)
}
