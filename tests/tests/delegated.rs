//! Pods whose addresses a delegated IPAM plugin gave them, outside of `pod_cidrs`: the node, other
//! pods and the outside are as near to them as to any pod, with a daemon and without.

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::{NODE_V4, NODE_V6, Node, OUTSIDE_V4, OUTSIDE_V6, Setup, binary, on_each};
use e2e::netns::{Namespace, wait_until};
use e2e::plugin::{Invocation, Outcome};
use e2e::pod::{IFNAME, Pod, parse_mac};
use e2e::traffic::{Capture, reaches, transfer};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Where Debian has the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// What every address here begins with, in either family.
const RANGES: [&str; 2] = ["203.0.113.", "2001:db8:99:"];

/// What the daemon does by itself, once a second, is done within so long on a busy machine, too.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(10);

/// A pod with addresses from outside of the node's pod CIDRs.
struct Delegated {
    container_id: String,
    namespace: Namespace,
    conf: Value,
    result: Value,
    addresses: Vec<IpAddr>,
    mac: [u8; 6],
}

fn call(node: &Node, verb: &str, id: &str, namespace: &Namespace, conf: &Value) -> Result<Outcome> {
    let call = Invocation {
        command: Some(verb.to_owned()),
        container_id: Some(id.to_owned()),
        netns: Some(namespace.path().to_string_lossy().into_owned()),
        ifname: Some(IFNAME.to_owned()),
        path: Some(PLUGINS.to_owned()),
        stdin: conf.to_string().into_bytes(),
        ..Invocation::default()
    };
    let outcome = call.run(&binary("viaduct-cni"), Some(node.namespace()))?;
    ensure!(outcome.code == Some(0), "{verb} {id}: {outcome:?}");
    Ok(outcome)
}

impl Delegated {
    fn namespace() -> Result<Namespace> {
        let namespace = Namespace::create("e2e-pod")?;
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// ADD with the `static` plugin, which gives the addresses that it is told.
    fn add(node: &Node, id: &str, namespace: Namespace, addresses: &[IpAddr]) -> Result<Delegated> {
        let mut conf = node.conf(None);
        let prefix = |ip: &IpAddr| if ip.is_ipv4() { 24 } else { 64 };
        let given = addresses.iter().map(|ip| json!({"address": format!("{ip}/{}", prefix(ip))}));
        conf["ipam"] = json!({"type": "static", "addresses": given.collect::<Vec<_>>()});
        let result = call(node, "ADD", id, &namespace, &conf)?.json.context("a result")?;
        let mac = result["interfaces"].as_array().into_iter().flatten();
        let mac = mac.filter(|interface| interface["sandbox"].is_string());
        let mac = mac.filter_map(|interface| interface["mac"].as_str()).next().context("a MAC")?;
        Ok(Delegated {
            container_id: id.to_owned(),
            mac: parse_mac(mac)?,
            namespace,
            conf,
            result,
            addresses: addresses.to_vec(),
        })
    }

    fn check(&self, node: &Node) -> Result<()> {
        let mut conf = self.conf.clone();
        conf["prevResult"] = self.result.clone();
        call(node, "CHECK", &self.container_id, &self.namespace, &conf).map(drop)
    }

    fn delete(&self, node: &Node) -> Result<()> {
        call(node, "DEL", &self.container_id, &self.namespace, &self.conf).map(drop)
    }
}

fn addresses(number: u8) -> [IpAddr; 2] {
    RANGES.map(|range| {
        let end = if range.ends_with('.') { "" } else { ":" };
        format!("{range}{end}{number}").parse().expect("an address")
    })
}

/// Lines of the node's routes and of our nft table that name an address from outside.
fn traces(node: &Node) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let commands = [
        "ip route show table all",
        "ip -6 route show table all",
        "ip neigh show nud all",
        "ip -6 neigh show nud all",
        "nft list table inet viaduct",
    ];
    for words in commands {
        let words: Vec<&str> = words.split_whitespace().collect();
        let output = node.namespace().run(words[0], &words[1..])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let ours = |line: &&str| RANGES.iter().any(|range| line.contains(range));
        lines.extend(text.lines().filter(ours).map(|line| line.trim().to_owned()));
    }
    Ok(lines)
}

/// Node, another pod and the outside, in both families; the outside knows no way to any pod.
fn is_near(node: &Node, pod: &Delegated, other: &Pod) -> Result<()> {
    for address in &pod.addresses {
        reaches(node.namespace(), *address).context("from the node")?;
        reaches(&other.namespace, *address).context("from a pod")?;
    }
    let others = other.addresses().into_iter().chain([NODE_V4.into(), NODE_V6.into()]);
    for to in others.chain([OUTSIDE_V4.into(), OUTSIDE_V6.into()]) {
        reaches(&pod.namespace, to)?;
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn addresses_outside_of_the_pod_cidrs_are_reached_like_all_others() {
    on_each(Setup::modes(), |node| {
        let inside = node.add_pod("inside")?;
        let one = Delegated::add(node, "one", Delegated::namespace()?, &addresses(7))?;
        let two = Delegated::add(node, "two", Delegated::namespace()?, &addresses(8))?;
        for pod in [&one, &two] {
            is_near(node, pod, &inside)?;
        }
        for address in &two.addresses {
            transfer(&one.namespace, &two.namespace, *address, 1_000_000)?;
            transfer(node.namespace(), &two.namespace, *address, 1_000_000)?;
        }

        node.stop_daemon(Signal::KILL)?;
        is_near(node, &one, &inside).context("without a daemon")?;
        two.addresses.iter().try_for_each(|address| reaches(&one.namespace, *address))?;
        node.start_daemon()?;
        for pod in [&one, &two] {
            pod.check(node)?;
            is_near(node, pod, &inside).context("after a restart")?;
        }

        one.delete(node)?;
        let row = |line: &String| line.contains("203.0.113.7") || line.contains("2001:db8:99::7");
        wait_until("nothing of it is left", FOLLOWED_WITHIN, || {
            Ok(!traces(node)?.iter().any(row))
        })?;
        is_near(node, &two, &inside).context("beside a pod that went")?;
        ensure!(!node.log().contains("repaired"), "nothing was damaged:\n{}", node.log());

        let before = traces(node)?;
        node.namespace().ip(&["route", "del", "203.0.113.8"])?;
        node.namespace().ip(&["-6", "route", "del", "2001:db8:99::8"])?;
        let same = || Ok(traces(node)? == before);
        wait_until("the ways to it are repaired", FOLLOWED_WITHIN, same)?;
        two.delete(node)?;
        let none = || Ok(traces(node)?.is_empty());
        wait_until("nothing is left", FOLLOWED_WITHIN, none)
            .with_context(|| format!("{:#?}", traces(node)))
    });
}

#[test]
#[ignore = "needs root"]
fn a_pod_that_went_without_a_daemon_leaves_no_way_behind_and_neither_does_uninstall() {
    on_each(Setup::modes(), |node| {
        let pods = [1, 2].map(|number| -> Result<Delegated> {
            let id = format!("pod-{number}");
            Delegated::add(node, &id, Delegated::namespace()?, &addresses(number))
        });
        let [gone, stays] = pods;
        let (gone, stays) = (gone?, stays?);
        node.stop_daemon(Signal::KILL)?;
        gone.delete(node).context("DEL is kept for the next daemon")?;
        node.start_daemon()?;
        wait_until("its ways are gone", FOLLOWED_WITHIN, || {
            let traces = traces(node)?;
            Ok(!traces.iter().any(|line| line.contains("203.0.113.1")))
        })?;
        reaches(node.namespace(), stays.addresses[0])?;
        node.stop_daemon(Signal::TERM)?;
        let mut uninstall = Command::new(binary("viaductd"));
        uninstall.arg("--config").arg(node.config_path()).arg("--uninstall");
        let output = node.namespace().within(|| uninstall.output())??;
        ensure!(output.status.success(), "uninstall: {output:?}");
        let left = traces(node)?;
        ensure!(!left.iter().any(|line| line.contains("viaduct")), "{left:#?}");
        node.start_daemon()
    });
}

#[test]
#[ignore = "needs root"]
fn a_family_that_only_delegated_addresses_have_is_forwarded_too() -> Result<()> {
    let mut node = Node::make(Setup::modes().remove(0))?;
    let path = node.config_path();
    let [v4, v6] = node.pod_cidrs();
    let config = fs::read_to_string(&path)?;
    ensure!(config.contains(&v6), "{config}");
    fs::write(&path, config.replace(&format!("[\"{v4}\",\"{v6}\"]"), &format!("[\"{v4}\"]")))?;
    ensure!(!fs::read_to_string(&path)?.contains(&v6), "{config}");
    node.start_daemon()?;
    let pod = Delegated::add(&node, "one", Delegated::namespace()?, &addresses(9))?;
    let both = |node: &Node| -> Result<()> {
        for (own, outside) in
            [(NODE_V4.into(), OUTSIDE_V4.into()), (NODE_V6.into(), OUTSIDE_V6.into())]
        {
            reaches(&pod.namespace, own)?;
            reaches(&pod.namespace, outside)?;
        }
        pod.addresses.iter().try_for_each(|address| reaches(node.namespace(), *address))
    };
    both(&node)?;
    node.stop_daemon(Signal::KILL)?;
    both(&node).context("without a daemon")?;
    node.start_daemon()?;
    both(&node).context("after a restart")?;
    pod.delete(&node)?;
    wait_until("nothing is left", FOLLOWED_WITHIN, || Ok(traces(&node)?.is_empty()))?;
    node.check()
}

#[test]
#[ignore = "needs root"]
fn an_add_announces_every_address_of_the_pod_and_no_worker_counts_that() {
    on_each(Setup::modes(), |node| {
        let namespace = Delegated::namespace()?;
        let all: Vec<IpAddr> = [11, 12].into_iter().flat_map(addresses).collect();
        let options = "-i any -Q out -e -v";
        let capture = Capture::start(&namespace, options, "arp or icmp6 or icmp")?;
        let pod = Delegated::add(node, "one", namespace, &all)?;
        let mac = pod.mac.map(|byte| format!("{byte:02x}")).join(":");
        // After the announcements: when this was seen, all of them were.
        for to in [NODE_V4.into(), NODE_V6.into()] {
            reaches(&pod.namespace, to)?;
        }
        // With `-v` a packet may take several lines.
        let text = capture.stop()?.join(" ").replace("  ", " ");
        for address in &all {
            let (what, seen) = match address {
                IpAddr::V4(ip) => ("ARP", format!("Request who-has {ip} tell {ip}")),
                IpAddr::V6(ip) => ("advertisement", format!("{ip} > ff02::1: ")),
            };
            ensure!(text.contains(&seen), "no {what} of {address}:\n{text}");
            if address.is_ipv6() {
                let target = format!("tgt is {address}, Flags [override]");
                ensure!(text.contains(&target), "no override for {address}:\n{text}");
            }
        }
        ensure!(text.contains(&mac), "from {mac}:\n{text}");
        let rows = node.list("pods")?;
        let drops = &rows[0]["from_pod"]["drops"];
        for reason in ["arp_not_for_gateway", "nd_not_for_gateway", "spoofed_arp", "spoofed_nd"] {
            ensure!(drops[reason].is_null(), "{reason}: {drops}");
        }
        pod.delete(node)
    });
}
