//! Routing daemons on the nodes of a cluster, that tell each other by BGP where pods are. Each runs
//! with the configuration that is documented for it, in which only who the node is and who the
//! others are is the test's.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;
use crate::daemon::ip;
use crate::netns::wait_until;

/// A routing daemon starts, and answers, in milliseconds.
pub(super) const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// Sessions follow: the examples try again after 5 s.
const SESSIONS_WITHIN: Duration = Duration::from_secs(30);

/// A prefix of each family that is of no node and comes and goes, IPv4 first.
pub type Wanderer = [&'static str; 2];

/// A routing daemon on one node. Dropped, it ends.
pub trait Speaker: Sized {
    /// What `ip route` calls the protocol of the routes that it puts into the kernel.
    const PROTOCOL: &'static str;

    /// Whether these lead by next hop objects.
    const NEXT_HOP_OBJECTS: bool;

    /// Starts on a node, with all the others for neighbors; returns when it answers. The wanderer
    /// is not announced yet. Whoever of several announces it, the node with the highest number is
    /// preferred.
    ///
    /// # Errors
    /// When it cannot be started, or refuses the configuration.
    fn start(cluster: &Cluster, number: usize, wanderer: Wanderer) -> Result<Self>;

    /// How many sessions are established.
    ///
    /// # Errors
    /// When it does not answer.
    fn sessions(&self) -> Result<usize>;

    /// Announces the wanderer of a family (0 is IPv4), or no longer.
    ///
    /// # Errors
    /// When it refuses.
    fn announce(&self, family: usize, here: bool) -> Result<()>;

    /// What it has logged.
    fn log(&self) -> String;
}

/// One on each node; returns when all sessions are established. A node of plain Linux gets the
/// routes that viaductd puts for its pods.
///
/// # Errors
/// When one cannot be started, or a session is not established in time; with its log.
pub fn start_speakers<S: Speaker>(cluster: &Cluster, wanderer: Wanderer) -> Result<Vec<S>> {
    let mut speakers = Vec::new();
    for number in 0..cluster.nodes().len() {
        let node = cluster.node(number);
        for cidr in node.pod_cidrs().iter().filter(|_| !cluster.by_viaduct(number)) {
            ip(node.namespace(), &format!("route add unreachable {cidr} proto 118"))?;
        }
        speakers.push(S::start(cluster, number, wanderer)?);
    }
    for speaker in &speakers {
        let mut sessions = None;
        wait_until("sessions are established", SESSIONS_WITHIN, || {
            sessions = Some(speaker.sessions()?);
            Ok(sessions == Some(cluster.nodes().len() - 1))
        })
        .with_context(|| format!("{sessions:?}\n{}", speaker.log()))?;
    }
    Ok(speakers)
}

/// The nodes' IPv6 addresses, but for one node's, with their numbers from 1.
pub(super) fn neighbors(cluster: &Cluster, number: usize) -> Vec<(usize, IpAddr)> {
    let others = (0..cluster.nodes().len()).filter(|other| *other != number);
    others.map(|other| (other + 1, Cluster::address(other)[1])).collect()
}

/// Starts a program on a node, with a file for what it says.
pub(super) fn start_on(
    cluster: &Cluster,
    number: usize,
    command: &mut Command,
    log: &Path,
) -> Result<Child> {
    let log = File::options().create(true).append(true).open(log)?;
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let child = cluster.node(number).namespace().within(|| command.spawn())?;
    child.with_context(|| {
        format!("start {:?}; scripts/setup test installs it", command.get_program())
    })
}
