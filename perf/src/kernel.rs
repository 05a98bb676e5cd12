//! The kernel's own forwarding as an arm: two pods on veth pairs, routed, with all offloads that
//! pods have by default. What userspace forwarding has to be held against.

use std::net::Ipv4Addr;

use anyhow::{Result, ensure};
use e2e::netns::{Namespace, wait_until};

use crate::lane::{Lane, wire};
use crate::testpmd::LANE_DEADLINE;

/// Addresses of the two pods. The namespaces are our own, so that they collide with nothing.
const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];

/// The gateway on every host end, as Viaduct's pods have it.
const GATEWAY: &str = "169.254.1.1";

/// Two pods and a kernel that routes between them.
#[derive(Debug)]
pub struct KernelRouting {
    pods: [Namespace; 2],
    /// Owns the host ends.
    _host: Namespace,
}

impl KernelRouting {
    /// Builds the lane; returns when it carries packets.
    ///
    /// # Errors
    /// When a step fails.
    pub fn build() -> Result<KernelRouting> {
        let host = Namespace::create("perf-router")?;
        let pods = [Namespace::create("perf-a")?, Namespace::create("perf-b")?];
        for ((pod, address), end) in pods.iter().zip(PODS).zip(["h0", "h1"]) {
            wire(&host, end, pod)?;
            let address = format!("{address}/32");
            host.ip(&["addr", "add", &format!("{GATEWAY}/32"), "dev", end])?;
            host.ip(&["route", "add", &address, "dev", end])?;
            pod.ip(&["addr", "add", &address, "dev", "eth0"])?;
            pod.ip(&["route", "add", GATEWAY, "dev", "eth0", "scope", "link"])?;
            pod.ip(&["route", "add", "default", "via", GATEWAY, "dev", "eth0"])?;
        }
        let output = host.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"])?;
        ensure!(output.status.success(), "turn on forwarding: {output:?}");
        let routing = KernelRouting { pods, _host: host };
        wait_until("the kernel routes", LANE_DEADLINE, || routing.lane().answers())?;
        Ok(routing)
    }

    /// From the first pod to the second.
    pub fn lane(&self) -> Lane<'_> {
        let [client, server] = &self.pods;
        Lane { arm: "kernel", client, server, address: PODS[1] }
    }
}
