//! A daemon that comes back with another port mode: pods keep the mode they were attached with, so
//! pods of both modes live on one node, and talk with each other and with the node.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::{NODE_V4, NODE_V6, Node, OUTSIDE_V4, OUTSIDE_V6, PortMode, Setup, on_each};
use e2e::netns::{Namespace, wait_until};
use e2e::pod::{IFNAME, Pod};
use e2e::traffic::{echo_datagrams, ping, reaches, transfer, udp_socket};
use rustix::process::Signal;

/// Bytes of each transfer, there and back: some hundred super-packets.
const TRANSFER_BYTES: u64 = 20_000_000;

/// A pod learns of a path's MTU by the next packet that is too long, or the one after that.
const LEARNT_WITHIN: Duration = Duration::from_secs(10);

/// Device MTU of interfaces of full mode.
const FULL: u64 = 65_535;

/// Ends the daemon and starts it in the port mode.
fn restart(node: &mut Node, signal: Signal, mode: PortMode) -> Result<()> {
    node.stop_daemon(signal)?;
    let path = node.config_path();
    let other = |text: String| match mode {
        PortMode::Auto => text.replace("\"basic\"", "\"auto\""),
        PortMode::Basic => text.replace("\"auto\"", "\"basic\""),
    };
    fs::write(&path, other(fs::read_to_string(&path)?))?;
    node.start_daemon()
}

/// The mode of a pod's port, as `viaduct ports` has it.
fn mode(node: &Node, pod: &Pod) -> Result<String> {
    let rows = node.list("ports")?;
    let mut rows = rows.as_array().into_iter().flatten();
    let row = rows.find(|row| row["device"] == pod.host_ifname.as_str());
    let mode = row.and_then(|row| row["mode"].as_str());
    mode.map(str::to_owned).with_context(|| format!("mode of {}", pod.container_id))
}

fn device_mtu(namespace: &Namespace, ifname: &str) -> Result<u64> {
    let links = namespace.ip_json(&["link", "show", "dev", ifname])?;
    links[0]["mtu"].as_u64().with_context(|| format!("MTU of {ifname}: {links}"))
}

/// Streams, datagrams of all sizes and echoes, in both families and directions.
fn talk(a: &Pod, b: &Pod) -> Result<()> {
    for (from, to) in a.addresses().into_iter().zip(b.addresses()) {
        transfer(&a.namespace, &b.namespace, to, TRANSFER_BYTES)?;
        for (sender, receiver) in [(a, to), (b, from)] {
            // From a larger network the first long one that may not be fragmented is lost, and
            // tells the path's MTU; unless the worker has told of many before (they are limited).
            for size in [1452, 8952] {
                let options = format!("-M do -c 1 -W 0.2 -s {size}");
                wait_until("the path's MTU is known", LEARNT_WITHIN, || {
                    let ping = ping(&sender.namespace, receiver, &options)?;
                    Ok(ping.received == 1 || ping.text.contains("mtu"))
                })
                .with_context(|| format!("{size} bytes to {receiver}"))?;
            }
        }
        let (client, server) = (udp_socket(&a.namespace, from)?, udp_socket(&b.namespace, to)?);
        echo_datagrams(&client, &server, &[1, 1400, 1473, 4000, 20_000, 65_000])?;
    }
    Ok(())
}

/// The same for the node and the world outside.
fn talk_with_node(node: &Node, pod: &Pod) -> Result<()> {
    for (own, its) in [NODE_V4.into(), NODE_V6.into()].into_iter().zip(pod.addresses()) {
        transfer(node.namespace(), &pod.namespace, its, TRANSFER_BYTES)?;
        transfer(&pod.namespace, node.namespace(), own, TRANSFER_BYTES)?;
    }
    for outside in [OUTSIDE_V4.into(), OUTSIDE_V6.into()] {
        transfer(&pod.namespace, node.outside(), outside, TRANSFER_BYTES)?;
    }
    Ok(())
}

/// Every pod is served, passes CHECK, and nothing for it was refused.
fn is_well(node: &Node, pods: &[&Pod]) -> Result<()> {
    for pod in pods {
        node.check_pod(pod)?;
        let row = node.pod_row(pod)?;
        ensure!(row["state"] == "userspace", "{}: {row:#}", pod.container_id);
        for reason in ["tx_refused", "tx_invalid", "bad_marker"] {
            for direction in ["from_pod", "to_pod"] {
                let drops = &row[direction]["drops"][reason];
                ensure!(drops.is_null(), "{reason} of {}: {row:#}", pod.container_id);
            }
        }
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn pods_keep_their_port_mode_over_restarts_and_all_modes_talk() {
    let setups = [1, 2].map(|workers| Setup::new(PortMode::Auto, workers));
    on_each(setups.into(), |node| {
        let (full, large) =
            (node.add_pod("full")?, node.add_pod_with_mtu("full-large", Some(9000))?);
        restart(node, Signal::TERM, PortMode::Basic)?;
        let basic = node.add_pod("basic")?;
        let small = node.add_pod_with_mtu("basic-small", Some(1400))?;
        ensure!(device_mtu(&full.namespace, IFNAME)? == FULL, "a full pod stays full");
        ensure!(device_mtu(&basic.namespace, IFNAME)? == 1500, "a new one is basic");
        let all = [&full, &large, &basic, &small];
        is_well(node, &all)?;
        talk(&full, &large)?;
        talk(&full, &basic)?;
        talk(&basic, &large)?;
        talk(&small, &full)?;
        all.iter().try_for_each(|pod| talk_with_node(node, pod))?;
        is_well(node, &all)?;

        restart(node, Signal::KILL, PortMode::Auto)?;
        let new = node.add_pod("full-again")?;
        ensure!(device_mtu(&basic.namespace, IFNAME)? == 1500, "a basic pod stays basic");
        ensure!(device_mtu(&new.namespace, IFNAME)? == FULL, "a new one is full");
        talk(&new, &full)?;
        talk(&new, &basic)?;
        talk(&small, &large)?;
        [&new, &basic, &small].iter().try_for_each(|pod| talk_with_node(node, pod))?;
        let is_basic = |pod| Ok::<_, anyhow::Error>(mode(node, pod)? == "basic");
        ensure!(is_basic(&basic)? && is_basic(&small)?, "basic pods are shown as such");
        ensure!(!is_basic(&full)? && !is_basic(&large)? && !is_basic(&new)?, "and full ones");
        is_well(node, &[&full, &large, &basic, &small, &new])
    });
}

#[test]
#[ignore = "needs root"]
fn what_a_basic_pod_cannot_take_is_fragmented_or_refused_with_an_error() {
    on_each(vec![Setup::new(PortMode::Basic, 1)], |node| {
        let small = node.add_pod("small")?;
        let large = node.add_pod_with_mtu("large", Some(3400))?;
        let parts = ping(&large.namespace, small.v4.into(), "-M dont -c 1 -W 2 -s 3000")?;
        ensure!(parts.received == 1, "3000 bytes arrive in fragments: {}", parts.text);
        for (from, to) in large.addresses().into_iter().zip(small.addresses()) {
            let first = ping(&large.namespace, to, "-M do -c 1 -W 1 -s 3000")?;
            ensure!(first.received == 0, "{to} takes no 3000 bytes: {}", first.text);
            // By now the sender knows, and fragments itself.
            let (client, server) =
                (udp_socket(&large.namespace, from)?, udp_socket(&small.namespace, to)?);
            echo_datagrams(&client, &server, &[3000, 20_000])?;
        }
        let row = node.pod_row(&large)?;
        ensure!(row["from_pod"]["drops"]["mtu_exceeded"] == 2, "one in each family: {row:#}");
        // The node takes whatever a pod of any network may send.
        for node_address in [NODE_V4.into(), NODE_V6.into()] {
            let whole = ping(&large.namespace, node_address, "-M do -c 1 -W 2 -s 3300")?;
            ensure!(whole.received == 1, "{node_address}: {}", whole.text);
        }
        is_well(node, &[&small, &large])
    });
}

/// The marker's filter on the node port, as tc shows it.
fn marker(node: &Node) -> Result<String> {
    let output = node.namespace().run("tc", &["filter", "show", "dev", "viaduct0", "egress"])?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether the node's kernel leaves segmentation to the workers.
fn leaves_segmentation(node: &Node) -> Result<bool> {
    let output = node.namespace().run("ethtool", &["-k", "viaduct0"])?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().any(|line| line.trim() == "tx-tcp-segmentation: on"))
}

#[test]
#[ignore = "needs root"]
fn the_node_port_follows_the_port_mode_when_no_full_pod_is_left() {
    on_each(vec![Setup::new(PortMode::Auto, 1)], |node| {
        let gone = node.add_pod("gone")?;
        node.delete_pod(&gone)?;
        for (mode, full) in [(PortMode::Basic, false), (PortMode::Auto, true)] {
            restart(node, Signal::TERM, mode)?;
            let is_full = device_mtu(node.namespace(), "viaduct0")? == FULL;
            ensure!(is_full == full, "{mode:?}: device MTU of viaduct0");
            ensure!(marker(node)?.is_empty() != full, "{mode:?}: {}", marker(node)?);
            ensure!(leaves_segmentation(node)? == full, "{mode:?}: segmentation");
            let pod = node.add_pod("one")?;
            talk_with_node(node, &pod)?;
            is_well(node, &[&pod])?;
            node.delete_pod(&pod)?;
        }
        // Nothing changes when nothing is to change: the devices, and so their traffic, stay.
        let index = |node: &Node| -> Result<_> {
            Ok(node.namespace().ip_json(&["link", "show", "dev", "viaduct0"])?[0]["ifindex"]
                .clone())
        };
        let before = index(node)?;
        restart(node, Signal::TERM, PortMode::Auto)?;
        ensure!(index(node)? == before, "viaduct0 is the same device");
        let pod = node.add_pod("one")?;
        pod.addresses().into_iter().try_for_each(|address| reaches(node.namespace(), address))
    });
}
