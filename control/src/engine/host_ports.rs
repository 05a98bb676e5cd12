//! Host ports in force: in the kernel's table for every pod, in the workers' tables and the XDP
//! program's maps for those that workers serve.
//!
//! A packet is never taken by one who cannot lead it on: what takes comes last and goes first.
//!
//! ```text
//! ADD  kernel's table ─► workers' tables ─► XDP program's map ─► flows that lead elsewhere go
//! DEL  XDP program's map ─► workers' tables ─► the pod's flows ─► kernel's table ─► its flows
//! ```

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dataplane::host_ports::HostPort;
use dataplane::port::PortId;

use super::Engine;
use super::compile::port_of;
use super::detach::slot_of;
use crate::ctnetlink::Serving;
use crate::host_ports::{Lead, asked, general, is_on_wire, of_pod};
use crate::report::HostPortRow;
use crate::state::{HostPortKey, PodRecord};
use crate::sysctl::{self, SysctlError};

/// Between two looks at the XDP program's maps: to read 10,000 host ports takes some 10 ms.
const LOOK_AFTER: Duration = Duration::from_secs(10);

/// What `net.ipv4.ip_local_port_range` is unless somebody changes it (Linux,
/// Documentation/networking/ip-sysctl.rst).
const LOCAL_PORTS: RangeInclusive<u16> = 32768..=60999;

impl Engine {
    /// Workers lead the host ports of a pod to it from the next tables on. One of them serves it,
    /// or is about to.
    pub(super) fn lead_host_ports(&mut self, pod: &PodRecord) {
        if pod.host_ports.is_empty() {
            return;
        }
        let host_ports = Arc::make_mut(&mut self.host_ports);
        for Lead { host_port, target } in of_pod(pod, port_of(pod)) {
            host_ports.remove(&host_port);
            host_ports.insert(host_port, target);
        }
    }

    /// Packets for the host ports of a pod go to the workers, which lead them on by now; flows that
    /// led elsewhere so far are forgotten.
    pub(super) fn take_host_ports(&mut self, pod: &PodRecord) -> anyhow::Result<()> {
        if pod.host_ports.is_empty() {
            return Ok(());
        }
        self.programs.add_host_ports(&self.of_workers(pod))?;
        // Others' flows can have been asked at these only where a more general host port decided so
        // far. To look for some costs as much as there are flows.
        let is_of_other = |host_port: &HostPort| {
            general(host_port).is_some_and(|general| self.host_ports.get(&general).is_some())
        };
        let more_special: Arc<[HostPort]> =
            pod.host_ports.iter().map(asked).filter(is_of_other).collect();
        if !more_special.is_empty() {
            self.workers.forget_flows(&more_special)?;
        }
        Ok(())
    }

    /// Leaves the host ports of a pod to the kernel; the next tables lead them nowhere. Goes on
    /// after an error.
    pub(super) fn withdraw_host_ports(&mut self, pod: &PodRecord) {
        if pod.host_ports.is_empty() {
            return;
        }
        if let Err(error) = self.programs.remove_host_ports(&self.of_workers(pod)) {
            tracing::warn!(%error, host_ifname = pod.host_ifname, "leave host ports to the kernel");
        }
        let host_ports = Arc::make_mut(&mut self.host_ports);
        for host_port in pod.host_ports.iter().map(asked) {
            host_ports.remove(&host_port);
        }
    }

    /// Has the kernel forget flows that were asked at the host ports of a pod, which came or went,
    /// and lead elsewhere than they should now: soon, but after the answer to the request.
    pub(super) fn purge_kernel_flows(&self, pod: &PodRecord) {
        if pod.host_ports.is_empty() {
            return;
        }
        let node = self.node_addresses.as_slice().into();
        let now = Serving { host_ports: self.host_ports.clone(), node };
        self.purge.after(pod.host_ports.iter().map(asked), now);
    }

    /// The XDP program takes what workers lead on now, whatever an earlier daemon or somebody else
    /// has made of its maps.
    pub(super) fn steer_host_ports(&mut self) -> anyhow::Result<()> {
        let wanted =
            self.host_ports.iter().map(|(host_port, _)| *host_port).filter(|p| self.is_workers(p));
        let wanted: Vec<HostPort> = wanted.collect();
        self.programs.set_node_addresses(&self.node_addresses)?;
        self.programs.replace_host_ports(&wanted)?;
        Ok(())
    }

    /// Puts back what somebody has taken out of the XDP program's maps of host ports, or into them.
    pub(super) fn look_after_host_ports(&mut self, now: Instant) {
        let has_uplinks = !self.config.uplink.interfaces.is_empty();
        if !has_uplinks || now.duration_since(self.host_ports_seen) < LOOK_AFTER {
            return;
        }
        self.host_ports_seen = now;
        if let Err(error) = self.steer_host_ports() {
            tracing::error!("tell the uplinks' program which host ports are ours: {error:#}");
        }
    }

    /// Whether the XDP program takes packets for this host port.
    fn is_workers(&self, host_port: &HostPort) -> bool {
        is_on_wire(host_port) && self.host_ports.is_workers(host_port.port)
    }

    fn of_workers(&self, pod: &PodRecord) -> Vec<HostPort> {
        pod.host_ports.iter().map(asked).filter(|port| self.is_workers(port)).collect()
    }

    /// Ports of the node that lead to pods, behind the row of this key.
    pub(super) fn host_port_rows(
        &self,
        after: Option<HostPortKey>,
    ) -> impl Iterator<Item = (HostPortKey, HostPortRow)> {
        self.state.host_ports_after(after.as_ref()).map(|(pod, record)| {
            let (container_id, ifname) = (&pod.attachment.container_id, &pod.attachment.ifname);
            (record.key(), HostPortRow::new(record, container_id, ifname))
        })
    }

    /// The pod whose port this is.
    pub(super) fn pod_at(&self, id: PortId) -> Option<&PodRecord> {
        self.state.pod_by_slot(slot_of(id)?)
    }

    /// Whether every host port of the pod leads to it, or why not.
    pub(super) fn check_host_ports(&mut self, pod: &PodRecord) -> Result<(), String> {
        if pod.host_ports.is_empty() {
            return Ok(());
        }
        let is_astray = |lead: &Lead| self.host_ports.get(&lead.host_port) != Some(&lead.target);
        let astray = of_pod(pod, port_of(pod)).find(is_astray);
        if let Some(Lead { host_port, .. }) = astray {
            let HostPort { transport, port, .. } = host_port;
            return Err(format!("workers do not serve host port {port}/{}", transport.name()));
        }
        match self.nft.present() {
            Ok(true) => Ok(()),
            Ok(false) => Err("the nft table inet viaduct is gone: wait a second".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }
}

/// Ports that the node's kernel gives to the connections it opens, and so leads itself where they
/// are host ports.
pub(super) fn ports_of_the_kernel() -> Result<RangeInclusive<u16>, SysctlError> {
    let range = sysctl::read("ipv4/ip_local_port_range")?.unwrap_or_default();
    Ok(range_of(&range).unwrap_or(LOCAL_PORTS))
}

fn range_of(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once(char::is_whitespace)?;
    Some(first.parse().ok()?..=last.trim().parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_ports_are_read_as_the_kernel_writes_them() {
        assert_eq!(range_of("32768\t60999"), Some(32768..=60999));
        assert_eq!(range_of("1024   65535"), Some(1024..=65535));
        for text in ["", "32768", "a b", "1\t70000"] {
            assert_eq!(range_of(text), None, "{text}");
        }
    }
}
