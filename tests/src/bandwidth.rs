//! Pods with limits: the capability `bandwidth` as runtimes ask for it, and what comes of it.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::daemon::Node;
use crate::netns::Namespace;
use crate::pod::Pod;

/// The burst that containerd asks for, in bits.
pub const RUNTIME_BURST: u64 = u32::MAX as u64;

/// `runtimeConfig.bandwidth` in bits per second, with the burst that containerd asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bandwidth {
    /// To the pod.
    pub ingress: Option<u64>,
    /// From the pod.
    pub egress: Option<u64>,
}

impl Bandwidth {
    /// A limit of what comes to the pod.
    #[must_use]
    pub fn ingress(bits_per_s: u64) -> Bandwidth {
        Bandwidth { ingress: Some(bits_per_s), egress: None }
    }

    /// A limit of what the pod sends.
    #[must_use]
    pub fn egress(bits_per_s: u64) -> Bandwidth {
        Bandwidth { ingress: None, egress: Some(bits_per_s) }
    }

    /// Writes it into a configuration, beside what else is in `runtimeConfig`.
    pub fn write_to(self, conf: &mut Value) {
        let sides = [
            ("ingressRate", "ingressBurst", self.ingress),
            ("egressRate", "egressBurst", self.egress),
        ];
        for (rate, burst, bits_per_s) in sides {
            if let Some(bits_per_s) = bits_per_s {
                let bandwidth = &mut conf["runtimeConfig"]["bandwidth"];
                bandwidth[rate] = json!(bits_per_s);
                bandwidth[burst] = json!(RUNTIME_BURST);
            }
        }
    }
}

impl Node {
    /// A pod with limits.
    ///
    /// # Errors
    /// See [`Node::add_pod`].
    pub fn add_limited_pod(&self, container_id: &str, bandwidth: Bandwidth) -> Result<Pod> {
        let mut conf = self.conf(None);
        bandwidth.write_to(&mut conf);
        self.attach_in_new_namespace(container_id, &conf)
    }

    /// A pod with a configuration of the test's own.
    ///
    /// # Errors
    /// See [`Node::add_pod`].
    pub fn attach_in_new_namespace(&self, container_id: &str, conf: &Value) -> Result<Pod> {
        let namespace = Namespace::create("e2e-pod")?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        self.attach_as(container_id, namespace, conf)
    }

    /// `viaduct limits set` for a pod: what follows its name on the line.
    ///
    /// # Errors
    /// When it is refused.
    pub fn set_limits(&self, pod: &Pod, line: &str) -> Result<()> {
        let words = ["limits", "set", &pod.container_id].into_iter().chain(line.split_whitespace());
        self.viaduct(&words.collect::<Vec<_>>())?;
        Ok(())
    }

    /// The row of a pod and direction (`ingress`, `egress`) in `viaduct limits`.
    ///
    /// # Errors
    /// When there is none.
    pub fn limit_row(&self, pod: &Pod, direction: &str) -> Result<Value> {
        let rows = self.list("limits")?;
        let mut rows = rows.as_array().into_iter().flatten();
        let row = rows.find(|row| {
            row["container_id"] == pod.container_id.as_str() && row["direction"] == direction
        });
        row.cloned().with_context(|| format!("limits of {}", pod.container_id))
    }
}
