//! Pods of a node, attached and detached by the real plugin as a container runtime does it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::daemon::{Node, binary};
use crate::netns::Namespace;
use crate::plugin::{Invocation, Outcome};

/// The pods' interface.
pub const IFNAME: &str = "eth0";

/// An attached pod. Dropped, it takes its namespace with it, and so its interface; the daemon
/// hears of it only by [`Node::delete_pod`].
#[derive(Debug)]
pub struct Pod {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// Its network namespace.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// Ethernet address of its interface.
    pub mac: [u8; 6],
    /// Name of the host end.
    pub host_ifname: String,
    /// What ADD printed.
    pub result: Value,
    /// Route MTU asked for, in bytes.
    pub mtu: Option<u32>,
}

impl Pod {
    /// Its addresses, IPv4 first.
    #[must_use]
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Node {
    /// Makes a namespace and attaches it.
    ///
    /// # Errors
    /// When ADD fails, or its result is not what a dual-stack ADD answers.
    pub fn add_pod(&self, container_id: &str) -> Result<Pod> {
        self.add_pod_with_mtu(container_id, None)
    }

    /// The same, to a network with a route MTU of its own.
    ///
    /// # Errors
    /// See [`Node::add_pod`].
    pub fn add_pod_with_mtu(&self, container_id: &str, mtu: Option<u32>) -> Result<Pod> {
        let namespace = Namespace::create("e2e-pod")?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        self.attach(container_id, namespace, mtu)
    }

    /// Attaches a namespace that exists.
    ///
    /// # Errors
    /// See [`Node::add_pod`].
    pub fn attach(
        &self,
        container_id: &str,
        namespace: Namespace,
        mtu: Option<u32>,
    ) -> Result<Pod> {
        let pod = self.attach_as(container_id, namespace, &self.conf(mtu))?;
        Ok(Pod { mtu, ..pod })
    }

    /// The same, to a network with a configuration of its own.
    ///
    /// # Errors
    /// See [`Node::add_pod`].
    pub fn attach_as(&self, container_id: &str, namespace: Namespace, conf: &Value) -> Result<Pod> {
        let netns = namespace.path().to_owned();
        let outcome = self.call("ADD", container_id, Some(&netns), conf)?;
        ensure!(outcome.code == Some(0), "ADD {container_id}: {outcome:?}");
        let result = outcome.json.context("ADD prints a result")?;
        let addresses: Vec<IpAddr> = result["ips"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["address"].as_str()?.split('/').next()?.parse().ok())
            .collect();
        let [IpAddr::V4(v4), IpAddr::V6(v6)] = addresses[..] else {
            anyhow::bail!("a dual-stack result has an address of each family: {result}");
        };
        let interfaces = result["interfaces"].as_array().context("interfaces")?;
        let find = |in_pod: bool| {
            interfaces.iter().find(|interface| interface["sandbox"].is_string() == in_pod)
        };
        let text = |interface: Option<&Value>, key: &str| {
            let value = interface.and_then(|interface| interface[key].as_str());
            value.map(str::to_owned).with_context(|| format!("{key} in {result}"))
        };
        Ok(Pod {
            container_id: container_id.to_owned(),
            v4,
            v6,
            mac: parse_mac(&text(find(true), "mac")?)?,
            host_ifname: text(find(false), "name")?,
            namespace,
            result,
            mtu: None,
        })
    }

    /// DEL.
    ///
    /// # Errors
    /// When it fails.
    pub fn delete_pod(&self, pod: &Pod) -> Result<()> {
        let netns = pod.namespace.path();
        let outcome = self.call("DEL", &pod.container_id, Some(netns), &self.conf(pod.mtu))?;
        ensure!(outcome.code == Some(0), "DEL {}: {outcome:?}", pod.container_id);
        Ok(())
    }

    /// CHECK.
    ///
    /// # Errors
    /// When it fails.
    pub fn check_pod(&self, pod: &Pod) -> Result<()> {
        let mut conf = self.conf(pod.mtu);
        conf["prevResult"] = pod.result.clone();
        let outcome = self.call("CHECK", &pod.container_id, Some(pod.namespace.path()), &conf)?;
        ensure!(outcome.code == Some(0), "CHECK {}: {outcome:?}", pod.container_id);
        Ok(())
    }

    /// One call of the plugin in the node's namespace, whatever comes of it.
    ///
    /// # Errors
    /// When the plugin cannot be started.
    pub fn call(
        &self,
        verb: &str,
        container_id: &str,
        netns: Option<&Path>,
        conf: &Value,
    ) -> Result<Outcome> {
        let call = Invocation {
            command: Some(verb.to_owned()),
            container_id: Some(container_id.to_owned()),
            netns: netns.map(|path| path.to_string_lossy().into_owned()),
            ifname: Some(IFNAME.to_owned()),
            path: Some("/nonexistent".to_owned()),
            stdin: conf.to_string().into_bytes(),
            ..Invocation::default()
        };
        call.run(&binary("viaduct-cni"), Some(self.namespace()))
    }

    /// The network configuration of this node's pods.
    #[must_use]
    pub fn conf(&self, mtu: Option<u32>) -> Value {
        let mut conf = json!({
            "cniVersion": "1.0.0", "name": "viaduct", "type": "viaduct-cni",
            "socket": self.socket(),
        });
        if let Some(mtu) = mtu {
            conf["mtu"] = json!(mtu);
        }
        conf
    }

    /// The row of a pod in `viaduct pods`.
    ///
    /// # Errors
    /// When there is none.
    pub fn pod_row(&self, pod: &Pod) -> Result<Value> {
        let rows = self.list("pods")?;
        let mut rows = rows.as_array().into_iter().flatten();
        let row = rows.find(|row| row["container_id"] == pod.container_id.as_str());
        row.cloned().with_context(|| format!("viaduct pods shows {}", pod.container_id))
    }

    /// Packets that workers have taken from a pod since its daemon started.
    ///
    /// # Errors
    /// When the daemon does not know the pod.
    pub fn packets_from(&self, pod: &Pod) -> Result<u64> {
        self.pod_row(pod)?["from_pod"]["packets"].as_u64().context("a count of packets")
    }
}

/// Reads an Ethernet address as people write it.
///
/// # Errors
/// When it is none.
pub fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Result<Vec<u8>, _> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("MAC {text}"))
}
