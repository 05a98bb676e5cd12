//! FRR on the nodes of a cluster, with the example's configuration: what is documented is what is
//! tested. zebra and bgpd are started as FRR's own scripts do, with a directory for each node in
//! place of `/run/frr` and `/etc/frr`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use super::Cluster;
use super::bgp::{STARTS_WITHIN, Speaker, Wanderer, neighbors, start_on};
use crate::netns::wait_until;

/// The documented example.
const EXAMPLE: &str = include_str!("../../../deploy/frr/frr.conf");

/// Where it says who the node is, where its pods are, and who the others are. What stands there is
/// the test's.
const ROUTER_ID: &str = "router-id 10.0.0.1\n";
const PODS: [&str; 2] = ["permit 10.244.1.0/24\n", "permit fd00:10:244:1::/64\n"];
const NEIGHBORS: &str =
    " neighbor fd00:a::2 peer-group nodes\n neighbor fd00:a::3 peer-group nodes\n";

/// bgpd's configuration, and the parts of it for each family.
const BGP: &str = "router bgp 64512";
const ADDRESS_FAMILIES: [&str; 2] = ["address-family ipv4 unicast", "address-family ipv6 unicast"];

/// The daemons, in the order in which they are started: each answers when those that come later may
/// speak with it.
const DAEMONS: [&str; 2] = ["zebra", "bgpd"];

/// A daemon that is told to end takes its routes out of the kernel, and itself out of /var/tmp.
const ENDS_WITHIN: Duration = Duration::from_secs(20);

/// FRR on one node. Dropped, it is stopped.
#[derive(Debug)]
pub struct Frr {
    daemons: Vec<Child>,
    dir: TempDir,
    wanderer: Wanderer,
}

impl Frr {
    /// What `vtysh` answers to commands, one after the other.
    fn ask(&self, commands: &[&str]) -> Result<String> {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        answer(vtysh(self.dir.path()).args(commands))
    }

    /// Starts a daemon; returns when it answers.
    fn start_daemon(&mut self, cluster: &Cluster, number: usize, name: &str) -> Result<()> {
        let dir = self.dir.path();
        let mut command = Command::new(format!("/usr/lib/frr/{name}"));
        command.arg("--vty_socket").arg(dir).arg("-z").arg(dir.join("zserv.api"));
        command.arg("-i").arg(dir.join(name).with_extension("pid"));
        // Neither a configuration of the machine's nor a TCP port; the log is the file.
        command.args(["-f", "/dev/null", "-P", "0", "--log", "stdout"]);
        self.daemons.push(start_on(cluster, number, &mut command, &log(dir))?);
        wait_until("the daemon answers", STARTS_WITHIN, || {
            Ok(answer(vtysh(dir).args(["-d", name, "-c", "show version"])).is_ok())
        })
        .with_context(|| format!("{name}: {}", self.log()))
    }
}

impl Speaker for Frr {
    const PROTOCOL: &'static str = "bgp";
    const NEXT_HOP_OBJECTS: bool = true;

    fn start(cluster: &Cluster, number: usize, wanderer: Wanderer) -> Result<Frr> {
        let dir = tempfile::Builder::new().prefix("viaduct-e2e-frr-").tempdir_in("/run")?;
        fs::write(dir.path().join("frr.conf"), configuration(cluster, number)?)?;
        fs::write(dir.path().join("vtysh.conf"), "")?; // The shell wants to see one.
        // The daemons give up root's rights for those of this user.
        answer(Command::new("chown").arg("frr:frr").arg(dir.path()))?;
        let mut frr = Frr { daemons: Vec::new(), dir, wanderer };
        for daemon in DAEMONS {
            frr.start_daemon(cluster, number, daemon)?;
        }
        // One configuration for all daemons, which the shell deals out.
        answer(vtysh(frr.dir.path()).arg("-b")).with_context(|| frr.log())?;
        Ok(frr)
    }

    fn sessions(&self) -> Result<usize> {
        let summary = self.ask(&["show bgp ipv4 unicast summary json"])?;
        let summary: Value = serde_json::from_str(&summary).context(summary)?;
        let peers = summary["peers"].as_object().into_iter().flatten();
        Ok(peers.filter(|(_, peer)| peer["state"] == "Established").count())
    }

    fn announce(&self, family: usize, here: bool) -> Result<()> {
        let verb = if here { "network" } else { "no network" };
        let network = format!("{verb} {} route-map wanderer", self.wanderer[family]);
        let said = self.ask(&["configure terminal", BGP, ADDRESS_FAMILIES[family], &network])?;
        ensure!(said.is_empty(), "{network}: {said}");
        Ok(())
    }

    fn log(&self) -> String {
        fs::read_to_string(log(self.dir.path())).unwrap_or_default()
    }
}

impl Drop for Frr {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = kill_process(Pid::from_child(daemon), Signal::TERM); // It may have ended.
            let _ =
                wait_until("FRR's daemon ends", ENDS_WITHIN, || Ok(daemon.try_wait()?.is_some()));
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// FRR's shell, told where the daemons are.
fn vtysh(dir: &Path) -> Command {
    let mut command = Command::new("vtysh");
    command.arg("--vty_socket").arg(dir).arg("--config_dir").arg(dir);
    command
}

fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}

/// What a command says, if it succeeds.
fn answer(command: &mut Command) -> Result<String> {
    let output = command.output();
    let output = output.with_context(|| format!("{command:?}; scripts/setup test installs FRR"))?;
    ensure!(output.status.success(), "{command:?}: {output:?}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The example with a node's own address, pods and neighbors in their places, and the preference
/// of what it announces besides.
fn configuration(cluster: &Cluster, number: usize) -> Result<String> {
    let [id, _] = Cluster::address(number);
    let [pods_v4, pods_v6] = cluster.node(number).pod_cidrs();
    let others = neighbors(cluster, number).into_iter();
    let others = others.map(|(_, address)| format!(" neighbor {address} peer-group nodes\n"));
    let mut text = EXAMPLE.to_owned();
    for (example, ours) in [
        (ROUTER_ID, format!("router-id {id}\n")),
        (PODS[0], format!("permit {pods_v4}\n")),
        (PODS[1], format!("permit {pods_v6}\n")),
        (NEIGHBORS, others.collect()),
    ] {
        ensure!(text.matches(example).count() == 1, "the example says {example:?} once");
        text = text.replace(example, &ours);
    }
    let preference = 100 + number;
    // What is announced by name need not be a route that zebra knows.
    text += &format!(
        "route-map wanderer permit 10\n set local-preference {preference}\nexit\n\
         {BGP}\n no bgp network import-check\nexit\n"
    );
    Ok(text)
}
