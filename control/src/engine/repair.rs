//! Our kernel objects, put back where somebody else took them away: routes, rules, the nft table.

use std::net::IpAddr;

use super::{Engine, nft_config, node_config};
use crate::endpoint::kernel_path;
use crate::netlink::{Request, Route, RouteKind};
use crate::node::NodePort;
use crate::sysctl::SysctlLog;

impl Engine {
    /// Whether the loss of this route is damage, and not the trace of a pod that went.
    pub fn wants_route(&mut self, route: &Route) -> bool {
        let by_node_port = route.next_hops.iter().any(|hop| hop.index == self.node.node_index);
        let whole = route.dst.prefix_len() == route.dst.max_prefix_len();
        let pod = self.state.pod_by_address(route.dst.addr()).filter(|_| whole).cloned();
        // A route goes with its interface; that is told by an event of its own.
        let to_a_pod = pod.is_some_and(|pod| self.is_there(&pod));
        by_node_port || to_a_pod || route.kind == RouteKind::Unreachable
    }

    /// Makes everything as it should be; what is right is left alone.
    pub fn repair(&mut self) -> anyhow::Result<()> {
        let mut sysctls = SysctlLog::open(&self.config.daemon.state_dir.join("sysctls"))?;
        self.node = NodePort::ensure(&node_config(&self.config, &self.ports), &mut sysctls)?;
        self.nft.ensure(&nft_config(&self.config))?;
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
}
