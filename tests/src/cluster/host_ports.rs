//! Pods with host ports: the mappings that a runtime asks for. Where a daemon forwards, it is asked;
//! where only the kernel does, Debian's `portmap` is chained behind, as in the reference.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, Forwarder, kernel};
use crate::daemon::Node;
use crate::netns::Namespace;
use crate::plugin::{Invocation, Outcome};
use crate::pod::{IFNAME, Pod};
use crate::traffic::Transport;

/// From Debian's package containernetworking-plugins, release 1.1.1 (Debian 12).
const PORTMAP: &str = "/usr/lib/cni/portmap";

/// One entry of `runtimeConfig.portMappings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// `hostIP`; left out if there is none.
    pub host_ip: Option<IpAddr>,
    /// `hostPort`.
    pub host_port: u16,
    /// `containerPort`.
    pub container_port: u16,
    /// `protocol`.
    pub transport: Transport,
}

impl Mapping {
    /// On every address of the node.
    #[must_use]
    pub fn new(transport: Transport, host_port: u16, container_port: u16) -> Mapping {
        Mapping { host_ip: None, host_port, container_port, transport }
    }

    /// The same port by all transports.
    #[must_use]
    pub fn all(host_port: u16, container_port: u16) -> Vec<Mapping> {
        Transport::ALL.map(|transport| Mapping::new(transport, host_port, container_port)).into()
    }

    /// On one address.
    #[must_use]
    pub fn at(self, host_ip: IpAddr) -> Mapping {
        Mapping { host_ip: Some(host_ip), ..self }
    }

    fn json(&self) -> Value {
        let mut entry = json!({
            "hostPort": self.host_port, "containerPort": self.container_port,
            "protocol": self.transport.name(),
        });
        if let Some(address) = self.host_ip {
            entry["hostIP"] = json!(address);
        }
        entry
    }
}

/// What is asked of host ports: the mappings, and keys of the plugin's own configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// `runtimeConfig.portMappings`.
    pub mappings: Vec<Mapping>,
    /// `snat`.
    pub snat: Option<bool>,
    /// `masqAll`.
    pub masq_all: Option<bool>,
}

impl From<Vec<Mapping>> for Wish {
    fn from(mappings: Vec<Mapping>) -> Wish {
        Wish { mappings, ..Wish::default() }
    }
}

impl Wish {
    fn write_to(&self, conf: &mut Value) {
        let entries: Vec<Value> = self.mappings.iter().map(Mapping::json).collect();
        conf["runtimeConfig"] = json!({ "portMappings": entries });
        for (key, value) in [("snat", self.snat), ("masqAll", self.masq_all)] {
            if let Some(value) = value {
                conf[key] = json!(value);
            }
        }
    }
}

impl Node {
    /// Calls ADD for a namespace with host ports, whatever comes of it.
    ///
    /// # Errors
    /// When the plugin cannot be started.
    pub fn ask_for_host_ports(
        &self,
        container_id: &str,
        namespace: &Namespace,
        wish: &Wish,
    ) -> Result<Outcome> {
        self.call("ADD", container_id, Some(namespace.path()), &self.conf_with_host_ports(wish))
    }

    /// The network configuration with host ports.
    #[must_use]
    pub fn conf_with_host_ports(&self, wish: &Wish) -> Value {
        let mut conf = self.conf(None);
        wish.write_to(&mut conf);
        conf
    }
}

impl Cluster {
    /// A pod on a node, with host ports.
    ///
    /// # Errors
    /// When it cannot be attached.
    pub fn add_pod_with_host_ports(
        &self,
        number: usize,
        container_id: &str,
        wish: &Wish,
    ) -> Result<Pod> {
        let node = self.node(number);
        match self.setup.forwarder_of(number) {
            Forwarder::Kernel => {
                let mut pod = kernel::add_pod(node, container_id, self.setup.mtu)?;
                pod.result = chained_result(&pod);
                portmap("ADD", node, &pod, wish)?;
                Ok(pod)
            }
            Forwarder::Viaduct { .. } => {
                let namespace = Namespace::create("e2e-pod")?;
                namespace.ip(&["link", "set", "lo", "up"])?;
                node.attach_as(container_id, namespace, &node.conf_with_host_ports(wish))
            }
        }
    }

    /// Removes a pod and its host ports. `portmap` needs to be told them once more; the daemon is
    /// not, because a runtime may have forgotten.
    ///
    /// # Errors
    /// When DEL fails.
    pub fn delete_pod_with_host_ports(&self, number: usize, pod: &Pod, wish: &Wish) -> Result<()> {
        let node = self.node(number);
        match self.setup.forwarder_of(number) {
            Forwarder::Kernel => portmap("DEL", node, pod, wish),
            Forwarder::Viaduct { .. } => node.delete_pod(pod),
        }
    }
}

/// What the plugin before `portmap` in a list would have answered.
fn chained_result(pod: &Pod) -> Value {
    let sandbox = pod.namespace.path();
    json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": pod.host_ifname}, {"name": IFNAME, "sandbox": sandbox}],
        "ips": [
            {"address": format!("{}/32", pod.v4), "interface": 1},
            {"address": format!("{}/128", pod.v6), "interface": 1},
        ],
    })
}

fn portmap(verb: &str, node: &Node, pod: &Pod, wish: &Wish) -> Result<()> {
    let mut conf = json!({
        "cniVersion": "1.0.0", "name": "reference", "type": "portmap", "prevResult": pod.result,
        "capabilities": {"portMappings": true},
    });
    wish.write_to(&mut conf);
    let call = Invocation {
        command: Some(verb.to_owned()),
        container_id: Some(pod.container_id.clone()),
        netns: Some(pod.namespace.path().to_string_lossy().into_owned()),
        ifname: Some(IFNAME.to_owned()),
        path: Some("/nonexistent".to_owned()),
        stdin: conf.to_string().into_bytes(),
        ..Invocation::default()
    };
    ensure!(
        Path::new(PORTMAP).exists(),
        "{PORTMAP} is missing: install containernetworking-plugins"
    );
    let outcome = call.run(Path::new(PORTMAP), Some(node.namespace()))?;
    ensure!(outcome.code == Some(0), "{verb} of portmap for {}: {outcome:?}", pod.container_id);
    Ok(())
}
