//! Three nodes on one switch: every pod reaches every pod, no address is translated on the way, the
//! nodes' agents reach all pods, a Service leads to another node. The same questions are asked of
//! plain Linux, and of Viaduct with one worker and with two; a part of them where ports can do what
//! they can on Linux 6.1.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, DIRECT, Forwarder, kernel_forwarded, on_clusters};
use e2e::daemon::PortMode;
use e2e::pod::Pod;
use e2e::traffic::{Tap, connect, listen, pump, reaches, transfer, udp_socket};

/// Enough for TCP to leave slow start, and for a thousand packets of 1500 bytes.
const SOME_BYTES: u64 = 4_000_000;

/// The same for streams that taps look at, each of which has room for so many frames only.
const BYTES_UNDER_TAPS: u64 = 500_000;

/// The Service's addresses, and its port.
const SERVICE: [&str; 2] = ["10.96.0.10", "fd00:96::10"];
const SERVICE_PORT: u16 = 80;

fn three_nodes(forwarders: Vec<Forwarder>) -> Vec<ClusterSetup> {
    forwarders.into_iter().map(|forwarder| ClusterSetup::new(forwarder, 3)).collect()
}

/// A pod with a socket for each of its addresses.
struct Party<'a> {
    pod: &'a Pod,
    sockets: [UdpSocket; 2],
}

impl<'a> Party<'a> {
    fn new(pod: &'a Pod) -> Result<Party<'a>> {
        let [v4, v6] = pod.addresses();
        let sockets = [udp_socket(&pod.namespace, v4)?, udp_socket(&pod.namespace, v6)?];
        Ok(Party { pod, sockets })
    }
}

/// A datagram arrives, and its receiver sees the address that its sender has. Of so many, one at
/// least.
fn arrives_untranslated(from: &UdpSocket, to: &UdpSocket, datagrams: u32) -> Result<()> {
    let (source, destination) = (from.local_addr()?, to.local_addr()?);
    let mut text = [0; 64];
    let mut received = None;
    for _ in 0..datagrams {
        from.send_to(source.to_string().as_bytes(), destination)?;
        received = Some(to.recv_from(&mut text));
        if matches!(received, Some(Ok(_))) {
            break;
        }
    }
    let received = received.context("one was sent")?;
    let (len, seen) = received.with_context(|| format!("{source} to {destination}"))?;
    let text = String::from_utf8_lossy(&text[..len]).into_owned();
    ensure!(text == source.to_string(), "{destination} got what {text} sent, not {source}");
    ensure!(seen == source, "{destination} sees {seen}, not {source}");
    Ok(())
}

/// Every pod reaches every pod, and every node's pods are spread over all its workers.
fn all_pairs_reach_each_other(cluster: &Cluster, pods: &[Vec<Pod>]) -> Result<()> {
    let parties = pods.iter().flatten().map(Party::new).collect::<Result<Vec<_>>>()?;
    // Plain Linux on a busy machine has lost the first one to a neighbour.
    let datagrams = if cluster.setup().forwarder == Forwarder::Kernel { 3 } else { 1 };
    let mut pairs = 0;
    for from in &parties {
        for to in parties.iter().filter(|to| to.pod.container_id != from.pod.container_id) {
            for (from, to) in from.sockets.iter().zip(&to.sockets) {
                arrives_untranslated(from, to, datagrams)?;
                pairs += 1;
            }
        }
    }
    ensure!(pairs == 6 * 5 * 2, "{pairs} pairs of addresses");
    for pods in pods {
        let homes = pods.iter().map(|pod| home(cluster, pod)).collect::<Result<Vec<_>>>()?;
        let homes: BTreeSet<u64> = homes.into_iter().collect();
        ensure!(homes.len() == workers(cluster), "pods of a node are homed on {homes:?}");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn every_pod_reaches_every_pod_on_every_node_and_is_seen_by_its_own_address() {
    on_clusters(three_nodes(Forwarder::all()), |cluster| {
        let pods = cluster.add_pods(2)?;
        all_pairs_reach_each_other(cluster, &pods)
    });
}

/// How many workers each node has; one in place of none.
fn workers(cluster: &Cluster) -> usize {
    match cluster.setup().forwarder {
        Forwarder::Kernel => 1,
        Forwarder::Viaduct { workers, .. } => workers,
    }
}

/// The worker of a pod; 0 where there is none.
fn home(cluster: &Cluster, pod: &Pod) -> Result<u64> {
    if cluster.setup().forwarder == Forwarder::Kernel {
        return Ok(0);
    }
    let row = cluster.nodes().iter().find_map(|node| node.pod_row(pod).ok());
    row.context("a node has the pod")?["worker"].as_u64().context("a pod has a worker")
}

/// Streams from each node to the next one, of the given length: with two workers from the first
/// worker to both, and from the second to both.
fn streams_between_nodes(pods: &[Vec<Pod>], bytes: u64) -> Result<()> {
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            for address in pods[to][b].addresses() {
                let (a, b) = (&pods[from][a].namespace, &pods[to][b].namespace);
                transfer(a, b, address, bytes)?;
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn streams_between_all_pairs_of_nodes_and_workers_carry_every_byte() {
    on_clusters(three_nodes(Forwarder::all()), |cluster| {
        let pods = cluster.add_pods(2)?;
        streams_between_nodes(&pods, SOME_BYTES)
    });
}

#[test]
#[ignore = "needs root"]
fn basic_ports_carry_the_same_between_nodes_and_nothing_is_longer_than_the_mtu() {
    let basic = Forwarder::Viaduct { port_mode: PortMode::Basic, workers: 2 };
    on_clusters(three_nodes(vec![basic]), |cluster| {
        let pods = cluster.add_pods(2)?;
        for node in cluster.nodes() {
            let ports = node.list("ports")?;
            let modes: BTreeSet<&str> =
                ports.as_array().into_iter().flatten().filter_map(|p| p["mode"].as_str()).collect();
            ensure!(modes == BTreeSet::from(["basic"]), "modes of ports: {modes:?}");
        }
        all_pairs_reach_each_other(cluster, &pods)?;
        let mtu = cluster.setup().mtu as usize;
        let taps = ["p0", "p1", "p2"].map(|p| Tap::start(cluster.switch(), p, mtu, "ip or ip6"));
        let [a, b, c] = taps;
        let taps = [a?, b?, c?];
        streams_between_nodes(&pods, BYTES_UNDER_TAPS)?;
        for tap in taps {
            let seen = tap.stop()?;
            seen.all_right()?;
            ensure!(seen.longest == mtu, "as long as they may be: {seen:?}");
            // What one node sends: of two families, between four pairs of pods.
            let fewest = 2 * 4 * BYTES_UNDER_TAPS / cluster.setup().mtu as u64;
            ensure!(seen.tcp_segments > fewest, "{fewest} segments at least: {seen:?}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn what_pods_of_two_nodes_say_takes_the_uplinks_and_not_the_kernels() {
    on_clusters(three_nodes(Forwarder::all()), |cluster| {
        let pods = cluster.add_pods(2)?;
        let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(a, b)| (&pods[0][a], &pods[1][b]));
        for (a, b) in pairs {
            cluster.warm_up((0, a), b)?;
            cluster.warm_up((1, b), a)?;
        }
        let count = || -> Result<_> {
            let forwarded = |n| kernel_forwarded(cluster.node(n).namespace());
            let packets = |n| cluster.uplink_packets(n);
            Ok(([forwarded(0)?, forwarded(1)?], [packets(0)?, packets(1)?]))
        };
        let (forwarded, packets) = count()?;
        for (a, b) in pairs {
            for address in b.addresses() {
                transfer(&a.namespace, &b.namespace, address, SOME_BYTES)?;
            }
        }
        let (forwarded_now, packets_now) = count()?;
        for node in 0..2 {
            let by_kernel = forwarded_now[node] - forwarded[node];
            if !cluster.by_viaduct(node) {
                // The counter counts: cut or uncut, at least one packet for each 64 kB.
                ensure!(by_kernel > 8 * 2 * SOME_BYTES / 65_536, "Linux forwarded {by_kernel}");
                continue;
            }
            ensure!(by_kernel == 0, "the kernel of node {node} forwarded {by_kernel} packets");
            let came = packets_now[node].came - packets[node].came;
            let sent = packets_now[node].sent - packets[node].sent;
            // Eight streams, whose packets are cut to 1500 bytes on the wire. What a worker sends
            // as one unit counts as one.
            ensure!(came > 8 * SOME_BYTES / 1500, "{came} packets came by the uplink of {node}");
            ensure!(sent > 8 * SOME_BYTES / 65_536, "{sent} packets left by the uplink of {node}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn agents_reach_the_pods_of_every_node_and_pods_reach_every_node() {
    on_clusters(three_nodes(Forwarder::all()), |cluster| {
        let pods = cluster.add_pods(1)?;
        for agents in cluster.nodes() {
            for pod in pods.iter().flatten() {
                for address in pod.addresses() {
                    reaches(agents.namespace(), address)?;
                    transfer(agents.namespace(), &pod.namespace, address, 100_000)?;
                }
            }
        }
        for pod in pods.iter().flatten() {
            for node in 0..cluster.nodes().len() {
                for address in Cluster::address(node) {
                    reaches(&pod.namespace, address)?;
                }
            }
        }
        Ok(())
    });
}

/// What kube-proxy does, in nftables: a Service of one backend, for pods and the node. Who is no
/// pod is masqueraded, so that the backend's answer comes back here.
fn make_service(cluster: &Cluster, node: usize, backend: [SocketAddr; 2]) -> Result<()> {
    let ([v4, v6], [pods_v4, pods_v6]) = (SERVICE, DIRECT);
    let rules = format!(
        "ip daddr {v4} tcp dport {SERVICE_PORT} dnat ip to {}; \
         ip6 daddr {v6} tcp dport {SERVICE_PORT} dnat ip6 to {};",
        backend[0], backend[1]
    );
    let table = format!(
        "table inet services {{ \
         chain pre {{ type nat hook prerouting priority -100; {rules} }}; \
         chain out {{ type nat hook output priority -100; {rules} }}; \
         chain post {{ type nat hook postrouting priority 100; \
         ct status dnat ip saddr != {pods_v4} masquerade; \
         ct status dnat ip6 saddr != {pods_v6} masquerade; }}; }}"
    );
    let output = cluster.node(node).namespace().run("nft", &[&table])?;
    ensure!(output.status.success(), "nft {table}: {output:?}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_service_of_one_node_leads_to_a_backend_on_another() {
    on_clusters(three_nodes(Forwarder::all()), |cluster| {
        let pods = cluster.add_pods(2)?;
        let backend = &pods[1][0];
        let listeners = backend.addresses().map(|address| listen(&backend.namespace, address, 0));
        let [v4, v6] = listeners;
        let listeners = [v4?, v6?];
        make_service(cluster, 0, [listeners[0].local_addr()?, listeners[1].local_addr()?])?;
        let clients = [&pods[0][0].namespace, &pods[0][1].namespace, cluster.node(0).namespace()];
        for client in clients {
            for (address, listener) in SERVICE.iter().zip(&listeners) {
                let dial = SocketAddr::new(address.parse()?, SERVICE_PORT);
                let (here, there) = connect(client, dial, listener)?;
                pump(&here, &there, SOME_BYTES)?;
                pump(&there, &here, SOME_BYTES)?;
            }
        }
        // The neighbor: a node without the Service's rules does not lead there.
        let dial = SocketAddr::new(SERVICE[0].parse::<IpAddr>()?, SERVICE_PORT);
        let dial = || TcpStream::connect_timeout(&dial, Duration::from_secs(1));
        ensure!(pods[2][0].namespace.within(dial)?.is_err(), "node 2 has no such Service");
        Ok(())
    });
}
