//! Our kernel objects, put back where somebody else took them away: routes, rules, the nft table.

use std::net::IpAddr;

use super::{Engine, node_config, outside};
use crate::endpoint::kernel_path;
use crate::netlink::{Request, Route};
use crate::node::{NodePort, Reached};
use crate::sysctl::SysctlLog;

impl Engine {
    /// Whether the loss of this route is damage, and not the trace of a pod that went.
    pub fn wants_route(&mut self, route: &Route) -> bool {
        let whole = route.dst.prefix_len() == route.dst.max_prefix_len();
        let pod = self.state.pod_by_address(route.dst.addr()).filter(|_| whole).cloned();
        // A route goes with its interface; that is told by an event of its own.
        let to_a_pod = pod.is_some_and(|pod| self.is_there(&pod));
        to_a_pod || self.node.wants(route)
    }

    /// Makes everything as it should be; what is right is left alone.
    pub fn repair(&mut self) -> anyhow::Result<()> {
        self.node.mend(&mut self.netlink)?;
        self.ensure_nft()?;
        let mut requests = Vec::new();
        for pod in self.state.pods() {
            let addresses: Vec<IpAddr> = pod.addresses.iter().map(|a| a.address).collect();
            let path =
                kernel_path(pod.host_ifindex, &pod.host_ifname, pod.mac, &addresses).into_iter();
            // A pod whose namespace went before its DEL has no device left to repair.
            requests.extend(path.map(Request::if_present));
        }
        self.netlink.execute(requests)?;
        Ok(())
    }

    /// The node port for the pods of now, and the nft table.
    fn ensure_node(&mut self) -> anyhow::Result<()> {
        let outside = outside(&self.config, self.state.pods());
        let config = node_config(&self.config, self.route_mtu, &self.ports, outside);
        let mut sysctls = SysctlLog::open(&self.config.daemon.state_dir.join("sysctls"))?;
        self.node = NodePort::ensure(&config, &mut sysctls)?;
        self.ensure_nft()?;
        Ok(())
    }

    /// Lets the node reach the pods of now that have addresses outside of `pod_cidrs`, and no
    /// longer those that went; masquerade follows. Nothing to do for all others.
    pub(super) fn reach_pods(&mut self) -> anyhow::Result<()> {
        let outside = outside(&self.config, self.state.pods());
        let before = self.node.destinations();
        match self.node.reach(&mut self.netlink, &outside)? {
            Reached::Same => return Ok(()),
            Reached::Changed => self.masquerade_pods(&before)?,
            // Forwarding and the rule of a family that had no pods before.
            Reached::NewFamily => self.ensure_node()?,
        }
        self.steer()
    }
}
