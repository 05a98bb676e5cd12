//! The node's addresses: followed by netlink, so that one that is added answers at host ports, and
//! one that is removed stops.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Engine;
use crate::netlink::AddressScope;

/// Interface on which kube-proxy keeps the addresses of Services, in its mode `ipvs`: they are the
/// kernel's, and not the node's. No host port is asked there.
const SERVICES_IFNAME: &str = "kube-ipvs0";

impl Engine {
    /// Addresses or default routes changed: new connections, ICMP errors and host ports use them.
    pub fn follow_addresses(&mut self) -> anyhow::Result<()> {
        let Some(defaults) = self.default_routes()? else { return Ok(()) };
        self.node.follow_addresses(&mut self.netlink, &defaults)?;
        let (addresses, not_node) = self.discover_addresses();
        if not_node != self.not_node {
            self.exempt_addresses(not_node)?;
        }
        if addresses != self.node_addresses {
            self.serve_addresses(addresses)?;
        }
        Ok(())
    }

    /// The node's addresses, the preferred ones first, and those that are local only. Loopback
    /// addresses are among neither: host ports there are the kernel's alone.
    pub(super) fn discover_addresses(&mut self) -> (Vec<IpAddr>, BTreeSet<IpAddr>) {
        let preferred = &self.node.addresses;
        let mut addresses: Vec<IpAddr> =
            preferred.v4.map(IpAddr::V4).into_iter().chain(preferred.v6.map(IpAddr::V6)).collect();
        let mut not_node = BTreeSet::new();
        let services = self.netlink.link(SERVICES_IFNAME).ok().flatten().map(|link| link.index);
        // Without the others the kernel alone serves host ports there.
        for address in self.netlink.addresses().unwrap_or_default() {
            if services == Some(address.index) {
                not_node.insert(address.address);
                continue;
            }
            let global = matches!(address.scope, AddressScope::Universe | AddressScope::Site);
            if global && !addresses.contains(&address.address) {
                addresses.push(address.address);
            }
        }
        // One that is on both is the node's.
        not_node.retain(|address| !addresses.contains(address));
        (addresses, not_node)
    }

    /// Workers serve host ports at these addresses of the node, and no longer at others that they
    /// knew. The XDP program never takes what is for an address that workers do not know.
    fn serve_addresses(&mut self, addresses: Vec<IpAddr>) -> anyhow::Result<()> {
        let kept: Vec<IpAddr> =
            self.node_addresses.iter().filter(|a| addresses.contains(a)).copied().collect();
        self.programs.set_node_addresses(&kept)?;
        self.node_addresses = addresses;
        self.publish()?;
        self.programs.set_node_addresses(&self.node_addresses)?;
        Ok(())
    }
}
