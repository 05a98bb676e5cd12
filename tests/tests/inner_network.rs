//! A pod with a network of its own behind it: docker in docker, a virtual machine in a pod. Its
//! kernel translates and forwards what comes to the pod's address, to a link that takes 1500 bytes
//! and no more. So a stream must not come to it in packets of 64 kB, which nobody cuts again.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, on_clusters, set_sysctl};
use e2e::daemon::{PortMode, Setup, ip, on_each};
use e2e::netns::{Namespace, wait_until};
use e2e::pod::Pod;
use e2e::traffic::{connect, listen, pump};

/// Bytes of each transfer, there and again back: hundreds of super-packets.
const TRANSFER_BYTES: u64 = 20_000_000;

/// The port that the pod hands on.
const PORT: u16 = 5001;

/// Workers are asked once a second whether a pod has refused what it was sent.
const LEARNT_WITHIN: Duration = Duration::from_secs(10);

/// A host behind a pod, with addresses of its own.
struct Behind {
    host: Namespace,
    addresses: [IpAddr; 2],
}

impl Behind {
    /// Puts a host behind a pod, which hands on what comes to [`PORT`] of its own addresses.
    fn put(pod: &Pod) -> Result<Behind> {
        let host = Namespace::create("e2e-behind")?;
        let there = host.path().file_name().context("a named namespace")?.to_string_lossy();
        let pair =
            format!("link add inner0 mtu 1500 type veth peer name eth0 mtu 1500 netns {there}");
        ip(&pod.namespace, &pair)?;
        let addresses: [IpAddr; 2] = [
            Ipv4Addr::new(172, 17, 0, 2).into(),
            Ipv6Addr::new(0xfd00, 0x17, 0, 0, 0, 0, 0, 2).into(),
        ];
        for (namespace, device, last) in [(&pod.namespace, "inner0", 1), (&host, "eth0", 2)] {
            ip(namespace, &format!("addr add 172.17.0.{last}/24 dev {device}"))?;
            ip(namespace, &format!("addr add fd00:17::{last}/64 dev {device} nodad"))?;
            ip(namespace, &format!("link set {device} up"))?;
        }
        ip(&host, "route add default via 172.17.0.1")?;
        ip(&host, "-6 route add default via fd00:17::1")?;
        set_sysctl(&pod.namespace, "net.ipv4.ip_forward", "1")?;
        set_sysctl(&pod.namespace, "net.ipv6.conf.all.forwarding", "1")?;
        let rules = format!(
            "table inet inner {{ chain in {{ type nat hook prerouting priority dstnat; \
             ip daddr {v4} tcp dport {PORT} dnat ip to {}; \
             ip6 daddr {v6} tcp dport {PORT} dnat ip6 to {}; }}\n}}",
            addresses[0],
            addresses[1],
            v4 = pod.v4,
            v6 = pod.v6
        );
        let output = pod.namespace.run("nft", &[&rules])?;
        ensure!(output.status.success(), "nft {rules}: {output:?}");
        Ok(Behind { host, addresses })
    }

    /// Streams between a pod and the host, both ways, in both families. What is refused at first is
    /// lost; Reno goes on at once after that, where BBR would believe in a slow path for seconds.
    fn exchange(&self, from: &Pod, by: &Pod) -> Result<()> {
        for namespace in [&from.namespace, &self.host] {
            set_sysctl(namespace, "net.ipv4.tcp_congestion_control", "reno")?;
        }
        for (address, dial) in self.addresses.into_iter().zip(by.addresses()) {
            let listener = listen(&self.host, address, PORT)?;
            let (dial, started) = (SocketAddr::new(dial, PORT), Instant::now());
            let (client, server) = connect(&from.namespace, dial, &listener)?;
            pump(&client, &server, TRANSFER_BYTES).with_context(|| format!("to {dial}"))?;
            pump(&server, &client, TRANSFER_BYTES).with_context(|| format!("from {dial}"))?;
            eprintln!("  there and back by {dial}: {:.1?}", started.elapsed());
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs root and a release build"]
fn a_pod_of_the_same_node_reaches_what_is_behind_another() {
    let setups = vec![Setup::new(PortMode::Auto, 1), Setup::new(PortMode::Auto, 2)];
    on_each(setups, |node| {
        let (client, router) = (node.add_pod("client")?, node.add_pod("router")?);
        let behind = Behind::put(&router)?;
        behind.exchange(&client, &router)?;
        wait_until("the pod is known to take no super-packets", LEARNT_WITHIN, || {
            Ok(node.pod_row(&router)?["super_packets"] == false)
        })?;
        ensure!(node.pod_row(&client)?["super_packets"] == true, "the other pod takes them");
        behind.exchange(&client, &router)
    });
}

#[test]
#[ignore = "needs root and a release build"]
fn a_pod_of_another_node_reaches_what_is_behind_a_pod() {
    let setups = Forwarder::all().into_iter().map(|forwarder| ClusterSetup::new(forwarder, 2));
    on_clusters(setups.collect(), |cluster: &mut Cluster| {
        let (client, router) = (cluster.add_pod(0, "client")?, cluster.add_pod(1, "router")?);
        let behind = Behind::put(&router)?;
        behind.exchange(&client, &router)?;
        behind.exchange(&client, &router)
    });
}
