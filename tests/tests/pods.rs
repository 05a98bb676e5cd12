//! Pods of one node talk with each other: every family, size and MTU, and what happens to packets
//! that cannot arrive. On every node: port modes `auto` and `basic`, one worker and two.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, PortMode, Setup, binary, on_each, workers};
use e2e::netns::Namespace;
use e2e::plugin::Invocation;
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{echo_datagrams, ping, reaches, transfer, udp_socket};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use serde_json::Value;

/// Largest UDP payload: 65535 less IPv4 and UDP headers (RFC 768, RFC 791).
const DATAGRAM_MAX: usize = 65_507;

fn two_pods(node: &Node) -> Result<[Pod; 2]> {
    Ok([node.add_pod("first")?, node.add_pod("second")?])
}

/// Packets that the workers have taken from ports.
fn received(node: &Node) -> Result<u64> {
    let status = node.list("status")?;
    let received = workers(&status).map(|worker| worker["packets"]["received"].as_u64());
    received.sum::<Option<u64>>().context("every worker counts")
}

#[test]
#[ignore = "needs root"]
fn two_pods_reach_each_other_through_userspace() {
    on_each(Setup::modes_and_workers(), |node| {
        let [a, b] = two_pods(node)?;
        let before = received(node)?;
        for (from, to) in [(&a, &b), (&b, &a)] {
            for address in to.addresses() {
                reaches(&from.namespace, address)?;
            }
        }
        // Two directions, two families, a request and a reply each.
        let seen = received(node)? - before;
        ensure!(seen >= 8, "workers saw {seen} of 8 packets: the kernel carried the rest");
        let status = node.list("status")?;
        let busy_ns: Option<u64> = workers(&status).map(|worker| worker["busy_ns"].as_u64()).sum();
        ensure!(busy_ns > Some(0), "workers moved packets in {busy_ns:?} ns");
        for pod in [&a, &b] {
            let packets = node.packets_from(pod)?;
            ensure!(packets >= 4, "{} sent 4 echoes, workers saw {packets}", pod.container_id);
            node.check_pod(pod)?;
        }
        let homes: Vec<_> = node
            .list("pods")?
            .as_array()
            .into_iter()
            .flatten()
            .map(|row| row["worker"].as_u64())
            .collect();
        let spread = homes.first() != homes.last();
        ensure!(spread == (node.setup().workers == 2), "homes of the pods: {homes:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_hundred_megabytes_of_tcp_arrive_as_they_were_sent_in_both_families() {
    on_each(Setup::modes_and_workers(), |node| {
        let [a, b] = two_pods(node)?;
        for address in b.addresses() {
            // There and back: 100 MB together.
            transfer(&a.namespace, &b.namespace, address, 50_000_000)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn datagrams_of_every_size_arrive_whole() {
    let mut sizes: Vec<usize> = (1..64).collect();
    // Around what fits in a packet (1500 less 28, or 48), in a frame and in two, and the longest.
    sizes.extend((1440..1480).chain(3990..4100).step_by(3));
    sizes.extend([8000, 8192, 16_000, 32_768, 50_000, 65_000, DATAGRAM_MAX - 1, DATAGRAM_MAX]);
    on_each(Setup::modes_and_workers(), |node| {
        let [a, b] = two_pods(node)?;
        for (from, to) in a.addresses().into_iter().zip(b.addresses()) {
            let client = udp_socket(&a.namespace, from)?;
            let server = udp_socket(&b.namespace, to)?;
            echo_datagrams(&client, &server, &sizes)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn echoes_of_every_size_return() {
    on_each(Setup::modes_and_workers(), |node| {
        let [a, b] = two_pods(node)?;
        for address in b.addresses() {
            for size in [0, 1, 56, 1452, 1453, 1472, 1473, 4000, 9000, 65_487] {
                let ping = ping(&a.namespace, address, &format!("-c 1 -W 2 -s {size}"))?;
                ensure!(ping.received == 1, "{size} bytes to {address}: {}", ping.text);
            }
        }
        Ok(())
    });
}

/// Sends `size` bytes that may not be fragmented; returns whether the kernel let them go.
fn send_unfragmented(socket: &UdpSocket, to: IpAddr, size: usize) -> Result<bool> {
    match to {
        IpAddr::V4(_) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::DO)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::DO)?,
    }
    match socket.send_to(&vec![0; size], (to, 9)) {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {
            Ok(false)
        }
        Err(error) => Err(error).context("send"),
    }
}

/// IP and UDP headers of the address's family, in bytes.
fn headers(address: IpAddr) -> usize {
    if address.is_ipv4() { 28 } else { 48 }
}

#[test]
#[ignore = "needs root"]
fn what_exceeds_the_route_mtu_and_may_not_be_fragmented_is_refused_in_the_pod() {
    on_each(Setup::modes(), |node| {
        let [a, b] = two_pods(node)?;
        for (from, to) in a.addresses().into_iter().zip(b.addresses()) {
            let socket = udp_socket(&a.namespace, from)?;
            let fits = 1500 - headers(to);
            ensure!(send_unfragmented(&socket, to, fits)?, "{fits} bytes fit 1500 to {to}");
            ensure!(!send_unfragmented(&socket, to, fits + 1)?, "{fits} + 1 do not, to {to}");
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn networks_have_an_mtu_of_their_own() {
    on_each(Setup::modes_and_workers(), |node| {
        // Without multi-buffer frames a packet has to fit in a page.
        let large = match node.setup().port_mode {
            PortMode::Auto => 9000,
            PortMode::Basic => 3400,
        };
        let a = node.add_pod_with_mtu("large", Some(large))?;
        let b = node.add_pod_with_mtu("large-too", Some(large))?;
        let small = node.add_pod("small")?;
        for address in b.addresses() {
            let whole = large as usize - headers(address);
            for (size, passes) in [(whole, true), (whole + 1, false)] {
                let options = format!("-M do -c 1 -W 2 -s {size}");
                let ping = ping(&a.namespace, address, &options)?;
                ensure!((ping.received == 1) == passes, "{size} to {address}: {}", ping.text);
            }
            transfer(&a.namespace, &b.namespace, address, 20_000_000)?;
        }
        for address in small.addresses() {
            // The sender's kernel learns the path's MTU from our ICMP error, and then refuses.
            let size = 1500 - headers(address);
            let options = format!("-M do -c 2 -i 0.1 -W 2 -s {}", size + 1);
            let ping = ping(&a.namespace, address, &options)?;
            ensure!(ping.received == 0, "more than 1500 reached {address}: {}", ping.text);
            ensure!(
                ping.text.contains("mtu = 1500")
                    || ping.text.contains("mtu: 1500")
                    || ping.text.contains("mtu=1500"),
                "no path MTU for {address}: {}",
                ping.text
            );
            let socket = udp_socket(&a.namespace, unspecified(address))?;
            ensure!(!send_unfragmented(&socket, address, size + 1)?, "{address} is remembered");
            transfer(&a.namespace, &small.namespace, address, 20_000_000)?;
            transfer(
                &small.namespace,
                &a.namespace,
                a.addresses()[usize::from(address.is_ipv6())],
                20_000_000,
            )?;
        }
        Ok(())
    });
}

fn unspecified(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// What `ping` says that was in an ICMP error.
fn told(from: &Namespace, to: IpAddr, options: &str, what: &[&str]) -> Result<()> {
    let ping = ping(from, to, &format!("-c 1 -W 2 {options}"))?;
    ensure!(ping.received == 0, "{to} answered: {}", ping.text);
    ensure!(what.iter().any(|what| ping.text.contains(what)), "{to}: {}", ping.text);
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_pod_is_one_hop_away_and_the_hop_limit_is_heeded() {
    on_each(Setup::modes(), |node| {
        let [a, b] = two_pods(node)?;
        let exceeded = ["Time to live exceeded", "Hop limit"];
        for address in b.addresses() {
            told(&a.namespace, address, "-t 1", &exceeded)?;
            // 64 less the one hop that we are.
            let ping = ping(&a.namespace, address, "-c 1 -W 2")?;
            ensure!(ping.text.contains("ttl=63"), "{address}: {}", ping.text);
        }
        // The node is no hop away from its pods: we and its kernel are one router.
        for address in node_addresses() {
            let ping = ping(&a.namespace, address, "-t 1 -c 1 -W 2")?;
            ensure!(ping.text.contains("ttl=64"), "{address}: {}", ping.text);
        }
        for address in b.addresses() {
            let ping = ping(node.namespace(), address, "-t 1 -c 1 -W 2")?;
            ensure!(ping.text.contains("ttl=64"), "{address}: {}", ping.text);
        }
        Ok(())
    });
}

fn node_addresses() -> [IpAddr; 2] {
    [e2e::daemon::NODE_V4.into(), e2e::daemon::NODE_V6.into()]
}

#[test]
#[ignore = "needs root"]
fn an_address_that_no_pod_has_is_unreachable_at_once() {
    on_each(Setup::modes(), |node| {
        let [a, b] = two_pods(node)?;
        let unreachable = ["Destination Host Unreachable", "Destination unreachable"];
        for address in node.nobody() {
            told(&a.namespace, address, "", &unreachable)?;
        }
        let drops = node.pod_row(&a)?["from_pod"]["drops"]["no_pod"].as_u64();
        ensure!(drops >= Some(2), "both are counted as no_pod: {drops:?}");
        node.delete_pod(&b)?;
        for address in b.addresses() {
            told(&a.namespace, address, "", &unreachable)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_closed_port_is_refused_by_the_pod_itself() {
    on_each(Setup::modes(), |node| {
        let [a, b] = two_pods(node)?;
        for address in b.addresses() {
            let refused = a.namespace.within(|| std::net::TcpStream::connect((address, 9)))?;
            let kind = refused.err().map(|error| error.kind());
            ensure!(kind == Some(ErrorKind::ConnectionRefused), "{address}: {kind:?}");
        }
        Ok(())
    });
}

/// Length in bytes of a page of a listing (`control/src/server/page.rs`, `PAGE_BYTES_MAX`).
const PAGE_BYTES: usize = 1 << 18;

/// ADD of a pod whose runtime tells this name of it.
fn add_named(node: &Node, container_id: &str, name: &str) -> Result<Namespace> {
    let namespace = Namespace::create("e2e-pod")?;
    let call = Invocation {
        command: Some("ADD".to_owned()),
        container_id: Some(container_id.to_owned()),
        netns: Some(namespace.path().to_string_lossy().into_owned()),
        ifname: Some(IFNAME.to_owned()),
        args: Some(format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}")),
        path: Some("/nonexistent".to_owned()),
        stdin: node.conf(None).to_string().into_bytes(),
        ..Invocation::default()
    };
    let outcome = call.run(&binary("viaduct-cni"), Some(node.namespace()))?;
    ensure!(outcome.code == Some(0), "ADD {container_id}: {outcome:?}");
    Ok(namespace)
}

#[test]
#[ignore = "needs root"]
fn a_listing_of_several_pages_has_every_row_once_and_is_in_order() {
    on_each(Setup::modes().into_iter().take(1).collect(), |node| {
        // Names as long as an environment variable may be fill pages with few pods.
        let name = "n".repeat(100_000);
        let ids: Vec<String> = (0..7).map(|number| format!("pod-{number}")).collect();
        let _pods =
            ids.iter().map(|id| add_named(node, id, &name)).collect::<Result<Vec<Namespace>>>()?;
        let list = |listing| {
            let text = node.viaduct(&[listing, "--json"])?;
            ensure!(text.len() > 2 * PAGE_BYTES, "more than two pages: {} bytes", text.len());
            Ok::<Vec<Value>, anyhow::Error>(serde_json::from_str(&text)?)
        };
        let rows = list("pods")?;
        let listed: Vec<_> = rows.iter().filter_map(|row| row["container_id"].as_str()).collect();
        ensure!(listed == ids, "pods: {listed:?}");
        let table = node.viaduct(&["pods"])?;
        ensure!(table.lines().count() == 1 + ids.len(), "a line each and the titles");
        // A page of limits is full with two of them, and without the first every page but the last
        // ends between those of a pod.
        let limits = ids.iter().flat_map(|id| [(id.as_str(), "ingress"), (id, "egress")]).skip(1);
        for (id, direction) in limits.clone() {
            node.viaduct(&["limits", "set", id, &format!("--{direction}"), "1M"])?;
        }
        let rows = list("limits")?;
        let text = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
        let listed = rows.iter().map(|row| (text(row, "container_id"), text(row, "direction")));
        let listed: Vec<(String, String)> = listed.collect();
        let wanted = limits.map(|(id, direction)| (id.to_owned(), direction.to_owned()));
        ensure!(listed == wanted.collect::<Vec<_>>(), "limits: {listed:?}");
        // Drops carry the names too: whatever the kernels have sent, no row is there twice.
        let drops = node.list("drops")?;
        let drops = drops.as_array().context("drops are an array")?;
        let keys: BTreeSet<String> = drops
            .iter()
            .map(|row| format!("{} {} {}", row["port"], row["direction"], row["reason"]))
            .collect();
        ensure!(keys.len() == drops.len(), "of {} drops {} differ", drops.len(), keys.len());
        let ports = node.list("ports")?;
        let ports = ports.as_array().context("ports are an array")?;
        let numbers: Vec<_> = ports.iter().filter_map(|row| row["port"].as_u64()).collect();
        // The node's, and behind those that are kept for uplinks the pods'.
        ensure!(numbers.len() == 1 + ids.len() && numbers[0] == 0, "ports: {numbers:?}");
        ensure!(numbers.is_sorted_by(|a, b| a < b), "in order: {numbers:?}");
        Ok(())
    });
}
