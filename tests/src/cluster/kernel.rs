//! Pods that only the kernel serves: a veth pair and routes, the plainest that there is. What such
//! a pod sees is what one of ours must see.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cable::{mac_of, set_sysctl};
use crate::daemon::{Node, ip};
use crate::netns::Namespace;
use crate::pod::{IFNAME, Pod};

/// The pods' routers, as the plugin tells them.
const GATEWAYS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1)),
];

/// Numbers the pods of this process: their addresses are above those that `nobody` has.
static PODS: AtomicU8 = AtomicU8::new(0);

/// Makes a node a router.
pub(super) fn forward(node: &Node) -> Result<()> {
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        set_sysctl(node.namespace(), key, "1")?;
    }
    Ok(())
}

/// Attaches a pod. Its device has the route MTU.
pub(super) fn add_pod(node: &Node, container_id: &str, mtu: u32) -> Result<Pod> {
    let namespace = Namespace::create("e2e-pod")?;
    let host = node.namespace();
    let number = PODS.fetch_add(1, Ordering::Relaxed) % 200 + 2; // 0 and 1 are not for pods
    let [v4, v6] = node.nobody();
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = (v4, v6) else { bail!("an address of each family") };
    let [a, b, c, _] = v4.octets();
    let v4 = Ipv4Addr::new(a, b, c, number);
    let v6 = Ipv6Addr::from(u128::from(v6) & !0xffff | u128::from(number));
    let host_ifname = format!("k{number}");
    let name = namespace.path().file_name().context("a named namespace")?.to_string_lossy();
    let peer = format!("peer name {IFNAME} mtu {mtu} netns {name}");
    ip(host, &format!("link add {host_ifname} mtu {mtu} type veth {peer}"))?;
    for (namespace, ifname) in [(host, host_ifname.as_str()), (&namespace, IFNAME)] {
        set_sysctl(namespace, &format!("net.ipv6.conf.{ifname}.accept_dad"), "0")?;
        ip(namespace, &format!("link set {ifname} up"))?;
    }
    ip(&namespace, "link set lo up")?;
    let gateway_mac = mac_text(mac_of(host, &host_ifname)?);
    let mac = mac_of(&namespace, IFNAME)?;
    for (address, gateway) in [IpAddr::from(v4), v6.into()].into_iter().zip(GATEWAYS) {
        let (len, dad) = if address.is_ipv4() { (32, "") } else { (128, "nodad") };
        ip(&namespace, &format!("addr add {address}/{len} dev {IFNAME} {dad}"))?;
        ip(&namespace, &format!("neigh add {gateway} lladdr {gateway_mac} dev {IFNAME}"))?;
        ip(&namespace, &format!("route add default via {gateway} dev {IFNAME} onlink"))?;
        ip(host, &format!("neigh add {address} lladdr {} dev {host_ifname}", mac_text(mac)))?;
        ip(host, &format!("route add {address}/{len} dev {host_ifname}"))?;
    }
    Ok(Pod {
        container_id: container_id.to_owned(),
        namespace,
        v4,
        v6,
        mac,
        host_ifname,
        result: Value::Null,
        mtu: Some(mtu),
    })
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
