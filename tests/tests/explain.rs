//! `viaduct explain` says beforehand what a daemon does with a packet, and then it does that.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, Mapping, UPLINK, on_clusters};
use e2e::daemon::{NODE_V4, Node, OUTSIDE_V4, Setup, on_each};
use e2e::host_ports::{CONTAINER_PORT, Client, FAMILIES, HOST_PORT, Scene, among_direct_nodes};
use e2e::netns::wait_until;
use e2e::pod::{IFNAME, Pod, parse_mac};
use e2e::traffic::{Forger, Frame, Macs, Transport, echo_datagrams, udp_socket};
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, set_ip_mtu_discover, set_ip_ttl, set_ipv6_unicast_hops,
};
use serde_json::Value;

/// What becomes of a packet; `line` is what follows `viaduct explain`.
fn explain(node: &Node, line: &str) -> Result<Value> {
    let words = ["explain", "--json"].into_iter().chain(line.split_whitespace());
    let text = node.viaduct(&words.collect::<Vec<_>>())?;
    serde_json::from_str(&text).with_context(|| format!("read viaduct explain {line}"))
}

/// The row of a stage that a packet came to.
fn stage<'a>(explanation: &'a Value, name: &str) -> Result<&'a Value> {
    let mut stages = explanation["stages"].as_array().context("stages")?.iter();
    let row = stages.find(|row| row["stage"] == name);
    row.with_context(|| format!("stage {name} of {explanation:#}"))
}

fn ensure_forwarded(explanation: &Value, to: &str) -> Result<()> {
    let deliver = stage(explanation, "deliver")?["detail"].as_str().unwrap_or_default();
    let forwarded = explanation["verdict"] == "forwarded" && explanation["reason"].is_null();
    ensure!(forwarded && deliver.contains(to), "not forwarded to {to}: {explanation:#}");
    Ok(())
}

/// It ends at this stage, for this reason, and its sender is told so or not.
fn ensure_dropped(explanation: &Value, at: &str, reason: &str, told: bool) -> Result<()> {
    let last = explanation["stages"].as_array().and_then(|stages| stages.last());
    let last = last.context("a stage")?;
    ensure!(
        explanation["verdict"] == "dropped"
            && explanation["reason"] == reason
            && explanation["answer"].is_string() == told
            && last["stage"] == at
            && last["verdict"] == "drop",
        "not dropped at {at} for {reason}: {explanation:#}"
    );
    Ok(())
}

/// Packets of a pod that were dropped for a reason.
fn drops(node: &Node, pod: &Pod, reason: &str) -> Result<u64> {
    let rows = node.list("drops")?;
    let rows = rows.as_array().context("drops are an array")?.iter();
    let its = rows.filter(|row| row["pod"] == pod.container_id && row["reason"] == reason);
    Ok(its.filter_map(|row| row["count"].as_u64()).sum())
}

/// What is explained, `line`, is a drop, and nothing is dropped by explaining it; then `send` sends
/// such a packet, and it is.
fn explained_and_dropped(
    node: &Node,
    pod: &Pod,
    (line, at, reason): (&str, &str, &str),
    send: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let before = drops(node, pod, reason)?;
    let told = !reason.starts_with("spoofed");
    ensure_dropped(&explain(node, line)?, at, reason, told)?;
    ensure!(drops(node, pod, reason)? == before, "explaining {line} was counted");
    send()?;
    wait_until(reason, Duration::from_secs(10), || Ok(drops(node, pod, reason)? == before + 1))
}

fn set_hops(socket: &UdpSocket, to: IpAddr, hops: u8) -> Result<()> {
    match to {
        IpAddr::V4(_) => set_ip_ttl(socket, hops.into())?,
        IpAddr::V6(_) => set_ipv6_unicast_hops(socket, Some(hops))?,
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn what_is_explained_of_a_pods_packet_is_what_happens_to_it() {
    on_each(Setup::modes_and_workers(), |node| {
        let [a, b] = [node.add_pod("first")?, node.add_pod("second")?];
        for ((own, other), nobody) in
            a.addresses().into_iter().zip(b.addresses()).zip(node.nobody())
        {
            let client = udp_socket(&a.namespace, own)?;
            let server = udp_socket(&b.namespace, other)?;
            let (from, to) = (client.local_addr()?, server.local_addr()?);
            let good = explain(node, &format!("--from first --protocol udp {from} {to}"))?;
            ensure_forwarded(&good, "second")?;
            ensure!(stage(&good, "xdp")?["verdict"] == "worker", "{good:#}");
            ensure!(stage(&good, "route")?["verdict"] == "pod", "{good:#}");
            echo_datagrams(&client, &server, &[1, 1000])?;

            let line = format!("--from first/{IFNAME} --protocol udp {from} {to} --ttl 1");
            explained_and_dropped(node, &a, (&line, "hop_limit", "ttl_expired"), || {
                let short = udp_socket(&a.namespace, own)?;
                set_hops(&short, to.ip(), 1)?;
                short.send_to(b"one hop", to)?;
                Ok(())
            })?;
            let gone = SocketAddr::new(nobody, 9);
            let line = format!("--from first --protocol udp {gone}");
            explained_and_dropped(node, &a, (&line, "route", "no_pod"), || {
                udp_socket(&a.namespace, own)?.send_to(b"anybody?", gone)?;
                Ok(())
            })?;
        }
        let links = node.namespace().ip_json(&["link", "show", "dev", &a.host_ifname])?;
        let gateway = parse_mac(links[0]["address"].as_str().context("a MAC")?)?;
        let line = format!("--from first --protocol udp {}:4000 {}:6666", b.v4, b.v4);
        explained_and_dropped(node, &a, (&line, "source", "spoofed_ipv4"), || {
            let forger = Forger::start(&a.namespace, IFNAME)?;
            forger.send(&Frame::udp_v4(Macs { src: a.mac, dst: gateway }, b.v4, b.v4))?;
            forger.wait_until_sent()
        })
    });
}

#[test]
#[ignore = "needs root"]
fn a_packet_that_is_too_long_is_refused_where_the_way_is_narrow() {
    on_each(Setup::modes(), |node| {
        let a = node.add_pod("wide")?;
        let b = node.add_pod_with_mtu("narrow", Some(1300))?;
        let to = SocketAddr::new(b.v4.into(), 9);
        let line = format!("--from wide --protocol udp {to} --bytes 1400");
        let cut = explain(node, &line)?;
        ensure_forwarded(&cut, "narrow")?;
        let line = format!("{line} --dont-fragment");
        explained_and_dropped(node, &a, (&line, "size", "mtu_exceeded"), || {
            let socket = udp_socket(&a.namespace, a.v4.into())?;
            set_ip_mtu_discover(&socket, Ipv4PathMtuDiscovery::PROBE)?;
            socket.send_to(&[0; 1372], to)?;
            Ok(())
        })
    });
}

#[test]
#[ignore = "needs root"]
fn the_limits_of_both_ends_are_named() -> Result<()> {
    let node = Node::start(Setup::modes().remove(0))?;
    let [first, second] = [node.add_pod("first")?, node.add_pod("second")?];
    let limit = |from: &str, to: &str| -> Result<(Value, Value)> {
        let told = explain(&node, &format!("--from {from} {to}:80"))?;
        let row = stage(&told, "limit")?;
        Ok((row["verdict"].clone(), row["detail"].clone()))
    };
    let [to_first, to_second] = [&first, &second].map(|pod| pod.v4.to_string());
    ensure!(limit("first", &to_second)?.0 == "none");
    node.set_limits(&first, "--egress 20M")?;
    node.set_limits(&second, "--ingress 1500k")?;
    let both =
        "egress of first/eth0: 20M, 0 bytes wait; ingress of second/eth0: 1500k, 0 bytes wait";
    let found = limit("first", &to_second)?;
    ensure!(found == ("pays".into(), both.into()), "{found:?}");
    ensure!(limit("second", &to_first)?.0 == "none", "not the other way round");
    node.check()
}

#[test]
#[ignore = "needs root"]
fn the_nodes_packets_and_those_to_the_node_are_explained() {
    on_each(Setup::modes(), |node| {
        let pod = node.add_pod("first")?;
        ensure_forwarded(&explain(node, &format!("--from node {}", pod.v4))?, "first")?;
        ensure_forwarded(&explain(node, &format!("--from node {}", pod.v6))?, "first")?;
        let out = explain(node, &format!("--from first {OUTSIDE_V4}:443"))?;
        ensure_forwarded(&out, "kernel")?;
        ensure!(stage(&out, "hop_limit")?["verdict"] == "kept", "{out:#}");
        let transit = explain(node, &format!("--from node {NODE_V4} {OUTSIDE_V4}"))?;
        ensure_dropped(&transit, "route", "not_ours", false)?;
        // For people.
        let table = node.viaduct(&["explain", "--from", "first", &format!("{OUTSIDE_V4}:443")])?;
        ensure!(table.contains("STAGE") && table.ends_with("forwarded\n"), "{table}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn what_cannot_be_explained_is_refused_in_a_sentence() {
    on_each(vec![Setup::modes().remove(0)], |node| {
        let [a, _] = [node.add_pod("same-1")?, node.add_pod("same-2")?];
        for (line, says) in [
            (format!("--from nobody {}", a.v4), "nothing here is called nobody"),
            (format!("--from same {}", a.v4), "2 interfaces of pods are called same"),
            (format!("--from same-1 {} {}", a.v4, a.v6), "two families"),
            (format!("--from same-1 {}:80 --bytes 20", a.v4), "40 bytes or more, not 20"),
            (format!("--from same-1 {} --protocol udp", a.v4), "needs a port"),
        ] {
            let Err(error) = explain(node, &line) else { bail!("{line} is explained") };
            ensure!(error.to_string().contains(says), "{line}: {error}");
        }
        Ok(())
    });
}

/// Viaduct with one worker and with two.
fn clusters() -> Vec<ClusterSetup> {
    let forwarders = Forwarder::viaducts().into_iter();
    forwarders.map(|forwarder| ClusterSetup::new(forwarder, 2)).collect()
}

/// Flows without what time changes of them.
fn flows(node: &Node) -> Result<Vec<Value>> {
    let mut rows = node.list("flows")?;
    let rows = rows.as_array_mut().context("flows are an array")?;
    rows.iter_mut().for_each(|row| row["idle_s"] = Value::Null);
    Ok(rows.clone())
}

#[test]
#[ignore = "needs root"]
fn a_host_port_is_explained_by_the_flows_that_live() {
    let mut setups = clusters();
    setups.push(among_direct_nodes(Forwarder::viaduct(2)));
    on_clusters(setups, |cluster| {
        let scene = Scene::set(cluster, &Mapping::all(HOST_PORT, CONTAINER_PORT).into())?;
        let node = cluster.node(0);
        for (client, from) in [(Client::Neighbour, "neighbour"), (Client::Remote, UPLINK)] {
            for family in FAMILIES {
                host_port(cluster, &scene, (client, from), family)
                    .with_context(|| format!("{client:?}, family {family}"))?;
            }
        }
        // One that nobody has opened.
        let stray = SocketAddr::new(scene.serving.v4.into(), CONTAINER_PORT);
        let to = SocketAddr::new(scene.neighbour.v4.into(), 1);
        let stray = explain(node, &format!("--from serving {stray} {to} --flags ack"))?;
        ensure_dropped(&stray, "flow", "nat_no_flow", false)
    });
}

fn host_port(
    cluster: &Cluster,
    scene: &Scene,
    (client, from): (Client, &str),
    family: usize,
) -> Result<()> {
    let node = cluster.node(0);
    let asked = SocketAddr::new(Scene::node_address(client)[family], HOST_PORT);
    let serving = SocketAddr::new(scene.serving.addresses()[family], CONTAINER_PORT);
    let visitor = scene.visit(cluster, client, Transport::Udp, family)?;
    let before = flows(node)?;
    let there = explain(node, &format!("--from {from} --protocol udp {} {asked}", visitor.seen))?;
    ensure_forwarded(&there, &format!("{} -> {serving}", visitor.seen))?;
    ensure!(stage(&there, "flow")?["verdict"] == "belongs", "{there:#}");
    ensure!(stage(&there, "host_port")?["verdict"] == "translated", "{there:#}");
    let line = format!("--from serving --protocol udp {serving} {}", visitor.seen);
    let back = explain(node, &line)?;
    ensure_forwarded(&back, &format!("{asked} -> {}", visitor.seen))?;
    ensure!(stage(&back, "host_port")?["verdict"] == "translated", "{back:#}");
    // Somebody who was not there yet, and whose TTL decides before there is a flow.
    let stranger = SocketAddr::new(visitor.seen.ip(), 1);
    let line = format!("--from {from} --protocol udp {stranger} {asked}");
    let opens = explain(node, &line)?;
    ensure_forwarded(&opens, "serving")?;
    ensure!(stage(&opens, "flow")?["verdict"] == "opens", "{opens:#}");
    let late = explain(node, &format!("{line} --ttl 1"))?;
    ensure_dropped(&late, "hop_limit", "ttl_expired", true)?;
    ensure!(stage(&late, "host_port")?["verdict"] == "translated", "{late:#}");
    ensure!(flows(node)? == before, "explaining has changed a flow");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn an_uplinks_packets_are_shown_to_its_program_first() {
    on_clusters(clusters(), |cluster| {
        let [here, there] = [cluster.add_pod(0, "here")?, cluster.add_pod(1, "there")?];
        cluster.warm_up((0, &here), &there)?;
        let node = cluster.node(0);
        let passed = node.list("status")?["uplink_passed"].clone();
        for (mine, other) in here.addresses().into_iter().zip(there.addresses()) {
            let out = explain(node, &format!("--from here {mine} {other}"))?;
            ensure_forwarded(&out, UPLINK)?;
            ensure!(stage(&out, "route")?["verdict"] == "uplink", "{out:#}");
            let into = explain(node, &format!("--from {UPLINK} {other} {mine}"))?;
            ensure_forwarded(&into, "here")?;
            let forged = explain(node, &format!("--from {UPLINK} {mine} {mine}"))?;
            ensure_dropped(&forged, "source", "spoofed_pod", false)?;
        }
        let far = explain(node, &format!("--from {UPLINK} {OUTSIDE_V4} {}", here.v4))?;
        ensure!(far["verdict"] == "kernel" && far["reason"].is_null(), "{far:#}");
        let xdp = stage(&far, "xdp")?["detail"].as_str().unwrap_or_default();
        ensure!(xdp.contains("no direct address"), "{xdp}");
        let now = node.list("status")?["uplink_passed"].clone();
        ensure!(now["not_direct"] == passed["not_direct"], "the trial was counted: {now}");
        Ok(())
    });
}
