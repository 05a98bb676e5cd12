//! What an uplink leaves to the kernel, and what it must not let in: the node keeps its own
//! network, whoever is no pod reaches pods by the kernel, and nobody outside is taken for a pod of
//! this node. The same questions are asked of plain Linux.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, DIRECT, Forwarder, UPLINK, forget_neighbors};
use e2e::cluster::{UplinkPackets, kernel_forwarded, mac_of, on_clusters};
use e2e::daemon::ip;
use e2e::netns::{Namespace, wait_until};
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{
    Capture, Forger, Frame, Macs, connect, echo_datagrams, listen, ping, pump, reaches, transfer,
    udp_socket,
};

/// Enough for TCP to leave slow start.
const SOME_BYTES: u64 = 1_000_000;

/// The number of a host that is no node: its addresses are in no direct prefix.
const STRANGER: usize = 99;

/// A VLAN that nobody is in.
const VLAN: u16 = 42;

/// What a frame of [`Frame::udp_v4`] is found by.
const FORGED: &str = "udp dst port 6666";

fn two_nodes(forwarders: Vec<Forwarder>) -> Vec<ClusterSetup> {
    forwarders.into_iter().map(|forwarder| ClusterSetup::new(forwarder, 2)).collect()
}

/// A host on the switch that knows the way to the first node's pods.
fn stranger(cluster: &Cluster) -> Result<Namespace> {
    let host = cluster.add_host(STRANGER)?;
    for (cidr, gateway) in cluster.node(0).pod_cidrs().iter().zip(Cluster::address(0)) {
        ip(&host, &format!("route add {cidr} via {gateway} dev {UPLINK}"))?;
    }
    Ok(host)
}

/// Runs something of which the first node's workers must see nothing on the uplink.
fn unseen_by_workers(cluster: &Cluster, what: impl FnOnce() -> Result<()>) -> Result<()> {
    let before = cluster.uplink_packets(0)?;
    what()?;
    let UplinkPackets { came, sent } = cluster.uplink_packets(0)?;
    ensure!(came == before.came, "workers took {} packets", came - before.came);
    ensure!(sent == before.sent, "workers sent {} packets", sent - before.sent);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn the_node_keeps_its_own_network() {
    on_clusters(two_nodes(Forwarder::all()), |cluster| {
        let host = stranger(cluster)?;
        let node = cluster.node(0).namespace();
        unseen_by_workers(cluster, || {
            for (address, own) in Cluster::address(0).into_iter().zip(Cluster::address(STRANGER)) {
                // Neighbors are asked for again: by broadcast in IPv4, by multicast in IPv6.
                for namespace in [&host, node] {
                    forget_neighbors(namespace)?;
                }
                reaches(&host, address)?;
                forget_neighbors(node)?;
                reaches(node, own)?;
                for port in [22, 179] {
                    let listener = listen(node, address, port)?;
                    let (there, here) = connect(&host, listener.local_addr()?, &listener)?;
                    pump(&there, &here, SOME_BYTES)?;
                    pump(&here, &there, SOME_BYTES)?;
                }
                // In fragments, of which only the first has ports.
                let echo = ping(&host, address, "-c 1 -W 2 -s 20000")?;
                ensure!(echo.received == 1, "{address}: {}", echo.text);
                let sockets = [udp_socket(&host, own)?, udp_socket(node, address)?];
                echo_datagrams(&sockets[0], &sockets[1], &[1, 1473, 9000, 65_507])?;
            }
            Ok(())
        })
    });
}

#[test]
#[ignore = "needs root"]
fn whoever_is_no_pod_reaches_pods_by_the_kernel_and_is_answered() {
    on_clusters(two_nodes(Forwarder::all()), |cluster| {
        let host = stranger(cluster)?;
        let pod = cluster.add_pod(0, "one")?;
        let before = kernel_forwarded(cluster.node(0).namespace())?;
        unseen_by_workers(cluster, || {
            for (address, from) in pod.addresses().into_iter().zip(Cluster::address(STRANGER)) {
                reaches(&host, address)?;
                transfer(&host, &pod.namespace, address, SOME_BYTES)?;
                let (client, server) =
                    (udp_socket(&host, from)?, udp_socket(&pod.namespace, address)?);
                echo_datagrams(&client, &server, &[1, 1473, 9000])?;
            }
            Ok(())
        })?;
        let forwarded = kernel_forwarded(cluster.node(0).namespace())? - before;
        ensure!(forwarded > 100, "the kernel forwarded {forwarded} packets");
        Ok(())
    });
}

/// IPv6 is left to the kernel, which masquerades it; IPv4 is not.
#[test]
#[ignore = "needs root"]
fn what_is_carved_out_of_direct_goes_by_the_kernel() {
    let carve = |setup| ClusterSetup { kernel: vec![DIRECT[1].to_owned()], ..setup };
    let setups = two_nodes(Forwarder::viaducts()).into_iter().map(carve).collect();
    on_clusters(setups, |cluster| {
        let (a, b) = (cluster.add_pod(0, "a")?, cluster.add_pod(1, "b")?);
        let seen_as = |from: IpAddr, to: IpAddr| -> Result<IpAddr> {
            let listener = listen(&b.namespace, to, 0)?;
            let (client, server) = connect(&a.namespace, listener.local_addr()?, &listener)?;
            pump(&client, &server, SOME_BYTES)?;
            pump(&server, &client, SOME_BYTES)?;
            ensure!(client.local_addr()?.ip() == from, "the pod calls itself {from}");
            Ok(server.peer_addr()?.ip())
        };
        unseen_by_workers(cluster, || {
            let seen = seen_as(a.v6.into(), b.v6.into())?;
            ensure!(seen == Cluster::address(0)[1], "{} is seen as {seen}", a.v6);
            Ok(())
        })?;
        let before = cluster.uplink_packets(1)?;
        let seen = seen_as(a.v4.into(), b.v4.into())?;
        ensure!(seen == IpAddr::from(a.v4), "{} is seen as {seen}", a.v4);
        let came = cluster.uplink_packets(1)?.came - before.came;
        ensure!(came > SOME_BYTES / 1500, "workers took {came} packets");
        Ok(())
    });
}

/// Sends frames from the stranger to the first node's uplink, and returns how many of them the node
/// and the pod saw. A whole frame from the stranger to the pod, sent last, must arrive.
fn send_forged(
    cluster: &Cluster,
    host: &Namespace,
    pod: &Pod,
    frames: &[Frame],
) -> Result<[usize; 2]> {
    let node = cluster.node(0).namespace();
    let filter = format!("{FORGED} or (vlan and {FORGED})");
    let taps = [
        Capture::start(node, &format!("-i {UPLINK} -Q in"), &filter)?,
        Capture::start(&pod.namespace, &format!("-i {IFNAME} -Q in"), FORGED)?,
    ];
    let forger = Forger::start(host, UPLINK)?;
    frames.iter().try_for_each(|frame| forger.send(frame))?;
    forger.wait_until_sent()?;
    // What was sent before something that has arrived has arrived, too, or never will.
    wait_until("the last frame arrives", Duration::from_secs(15), || {
        Ok(reaches(host, pod.v4.into()).is_ok())
    })?;
    reaches(host, pod.v6.into())?;
    let [at_node, at_pod] = taps.map(Capture::stop);
    Ok([at_node?.len(), at_pod?.len()])
}

/// Packets that the first node dropped for a reason.
fn dropped(cluster: &Cluster, reason: &str) -> Result<u64> {
    let rows = cluster.node(0).list("drops")?;
    let rows = rows.as_array().context("drops are an array")?.iter();
    let counts = rows.filter(|row| row["reason"] == reason).map(|row| row["count"].as_u64());
    counts.sum::<Option<u64>>().context("each row counts")
}

fn macs(cluster: &Cluster, host: &Namespace) -> Result<Macs> {
    let dst = mac_of(cluster.node(0).namespace(), UPLINK)?;
    Ok(Macs { src: mac_of(host, UPLINK)?, dst })
}

#[test]
#[ignore = "needs root"]
fn tagged_frames_are_the_kernels() {
    on_clusters(two_nodes(Forwarder::all()), |cluster| {
        let host = stranger(cluster)?;
        let (pod, other) = (cluster.add_pod(0, "one")?, cluster.add_pod(1, "two")?);
        let macs = macs(cluster, &host)?;
        let frames = [
            Frame::udp_v4(macs, other.v4, pod.v4).tagged(VLAN),
            Frame::udp_v6(macs, other.v6, pod.v6).tagged(VLAN),
        ];
        let [at_node, at_pod] = send_forged(cluster, &host, &pod, &frames)?;
        ensure!((at_node, at_pod) == (2, 0), "{at_node} of 2 at the node, {at_pod} at the pod");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn frames_to_another_station_are_no_business_of_the_node() {
    on_clusters(two_nodes(Forwarder::all()), |cluster| {
        let host = stranger(cluster)?;
        let (pod, other) = (cluster.add_pod(0, "one")?, cluster.add_pod(1, "two")?);
        // The switch does not know it, so every port gets what is for it.
        let macs = Macs { dst: [0x0a, 0xbb, 0xbb, 0xbb, 0xbb, 0xbb], ..macs(cluster, &host)? };
        let frames = [Frame::udp_v4(macs, other.v4, pod.v4), Frame::udp_v6(macs, other.v6, pod.v6)];
        let [at_node, at_pod] = send_forged(cluster, &host, &pod, &frames)?;
        ensure!((at_node, at_pod) == (2, 0), "{at_node} of 2 at the node, {at_pod} at the pod");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_pods_address_does_not_come_from_outside() {
    on_clusters(two_nodes(Forwarder::viaducts()), |cluster| {
        let host = stranger(cluster)?;
        let (pod, other) = (cluster.add_pod(0, "one")?, cluster.add_pod(0, "other")?);
        let remote = cluster.add_pod(1, "remote")?;
        let macs = macs(cluster, &host)?;
        let from_other =
            [Frame::udp_v4(macs, other.v4, pod.v4), Frame::udp_v6(macs, other.v6, pod.v6)];
        let before = dropped(cluster, "spoofed_pod")?;
        let [at_node, at_pod] = send_forged(cluster, &host, &pod, &from_other)?;
        ensure!((at_node, at_pod) == (0, 0), "{at_node} at the node, {at_pod} at the pod");
        let drops = dropped(cluster, "spoofed_pod")? - before;
        ensure!(drops == 2, "{drops} of 2 were dropped for it");
        // The neighbor: whether another node's pod is where it says, no node can know.
        let from_remote =
            [Frame::udp_v4(macs, remote.v4, pod.v4), Frame::udp_v6(macs, remote.v6, pod.v6)];
        let [_, at_pod] = send_forged(cluster, &host, &pod, &from_remote)?;
        ensure!(at_pod == 2, "{at_pod} of 2 at the pod");
        ensure!(dropped(cluster, "spoofed_pod")? - before == 2, "no more were dropped");
        Ok(())
    });
}
