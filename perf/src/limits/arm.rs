//! Pods with a limit, by Viaduct and by the reference's plugins, made in the same way: a namespace,
//! an ADD, and an address.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, Setup};
use e2e::netns::{Namespace, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Direction, Rate};
use crate::lane::Lane;
use crate::plugin::{Container, Plugin};
use crate::testpmd::LANE_DEADLINE;

/// Where Debian puts the reference plugins (package containernetworking-plugins).
const REFERENCE_PLUGINS: &str = "/usr/lib/cni";

/// A limit as a runtime asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// Which packets.
    pub direction: Direction,
    /// Its rate.
    pub rate: Rate,
    /// Its burst, in bits.
    pub burst_bits: u64,
}

impl Asked {
    fn json(&self) -> Value {
        let key = |what: &str| format!("{}{what}", self.direction.cni());
        json!({ key("Rate"): self.rate.0, key("Burst"): self.burst_bits })
    }
}

/// Who makes pods and carries their packets.
#[derive(Debug)]
pub enum Arm {
    /// Viaduct, with its own limits.
    Viaduct(Node),
    /// `ptp` with `host-local`, and `bandwidth` behind it; the kernel routes.
    Reference {
        /// The node.
        node: Namespace,
        /// Where `host-local` remembers addresses.
        leases: TempDir,
    },
}

/// A pod.
#[derive(Debug)]
pub struct Place {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its address.
    pub address: Ipv4Addr,
}

impl Place {
    /// Lets its TCP say that it understands congestion marks (RFC 3168), which Linux by itself only
    /// answers.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn speak_ecn(&self) -> Result<()> {
        let output = self.namespace.run("sysctl", &["-qw", "net.ipv4.tcp_ecn=1"])?;
        ensure!(output.status.success(), "turn on ECN: {output:?}");
        Ok(())
    }
}

impl Arm {
    /// A node of each.
    ///
    /// # Errors
    /// When one cannot be made.
    pub fn both(setup: &Setup) -> Result<[Arm; 2]> {
        let node = Namespace::create("perf-reference")?;
        node.ip(&["link", "set", "lo", "up"])?;
        let reference = Arm::Reference { node, leases: TempDir::new()? };
        Ok([Arm::Viaduct(Node::start(setup.clone())?), reference])
    }

    /// As tables and figures name it.
    pub fn name(&self) -> &'static str {
        match self {
            Arm::Viaduct(_) => "viaduct",
            Arm::Reference { .. } => "bandwidth",
        }
    }

    /// A pod, with a limit or without.
    ///
    /// # Errors
    /// When ADD fails.
    pub fn add(&self, id: &str, limit: Option<Asked>) -> Result<Place> {
        match self {
            Arm::Viaduct(node) => {
                let mut conf = node.conf(None);
                if let Some(limit) = limit {
                    conf["runtimeConfig"] = json!({ "bandwidth": limit.json() });
                }
                let namespace = Namespace::create("perf-pod")?;
                let pod = node.attach_as(id, namespace, &conf)?;
                Ok(Place { namespace: pod.namespace, address: pod.v4 })
            }
            Arm::Reference { node, leases } => add_by_reference(node, leases, id, limit),
        }
    }
}

fn add_by_reference(
    node: &Namespace,
    leases: &TempDir,
    id: &str,
    limit: Option<Asked>,
) -> Result<Place> {
    let plugin = |name: &str, conf: Value| Plugin {
        program: format!("{REFERENCE_PLUGINS}/{name}").into(),
        cni_path: REFERENCE_PLUGINS.to_owned(),
        conf,
        node,
    };
    let namespace = Namespace::create("perf-pod")?;
    let container = Container { id: id.to_owned(), namespace, result: Value::Null };
    let conf = json!({
        "cniVersion": "1.0.0", "name": "perf-reference", "type": "ptp",
        "ipam": {
            "type": "host-local", "dataDir": leases.path(),
            "ranges": [[{"subnet": "10.97.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}],
        },
    });
    let (_, result) = plugin("ptp", conf).call("ADD", &container)?;
    if let Some(limit) = limit {
        let conf = json!({
            "cniVersion": "1.0.0", "name": "perf-reference", "type": "bandwidth",
            "prevResult": result, "runtimeConfig": { "bandwidth": limit.json() },
        });
        plugin("bandwidth", conf).call("ADD", &container)?;
    }
    let address = result["ips"][0]["address"].as_str().context("ptp answers an address")?;
    let address = address.split('/').next().unwrap_or_default().parse()?;
    Ok(Place { namespace: container.namespace, address })
}

/// From a pod to another one, of which one has a limit in this direction; returns when the lane
/// carries packets.
///
/// # Errors
/// When it carries none.
pub fn lane<'a>(
    arm: &Arm,
    direction: Direction,
    limited: &'a Place,
    free: &'a Place,
) -> Result<Lane<'a>> {
    let (client, server) = match direction {
        Direction::ToPod => (free, limited),
        Direction::FromPod => (limited, free),
    };
    let (client, address) = (&client.namespace, server.address);
    let lane = Lane { arm: arm.name(), client, server: &server.namespace, address };
    wait_until("pods reach each other", LANE_DEADLINE, || lane.answers())?;
    Ok(lane)
}
