//! What a node's daemon and pods leave in the kernel, so that a test can compare before and after.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::daemon::{Node, workers};

/// Everything that could leak, by kind: a sorted list of what there is.
pub type Traces = BTreeMap<&'static str, Vec<String>>;

/// Interfaces, addresses, routes, rules, neighbors, nft table, AF_XDP sockets, BPF pins and map
/// entries; with a daemon also its descriptors, namespaces and free frames.
///
/// # Errors
/// When something cannot be listed.
pub fn traces(node: &Node) -> Result<Traces> {
    let mut traces = Traces::new();
    let lists = [
        ("links", "ip", "-o link"),
        ("addresses", "ip", "-o addr"),
        ("routes", "ip", "-4 route show table all"),
        ("routes of IPv6", "ip", "-6 route show table all"),
        ("rules", "ip", "-4 rule"),
        ("rules of IPv6", "ip", "-6 rule"),
        ("permanent neighbors", "ip", "neigh show nud permanent"),
        ("nft", "nft", "-s list ruleset"),
    ];
    for (kind, program, args) in lists {
        let output = node.namespace().run(program, &args.split(' ').collect::<Vec<_>>())?;
        ensure!(output.status.success(), "{program} {args}: {output:?}");
        traces.insert(kind, lines(&String::from_utf8_lossy(&output.stdout)));
    }
    traces.insert("XSKs", vec![xdp_sockets(node)?.to_string()]);
    traces.insert("pins", pins(node)?);
    traces.insert("map entries", map_entries(node)?);
    if let Ok(pid) = node.daemon_pid() {
        let (descriptors, namespaces) = descriptors(pid)?;
        traces.insert("descriptors", descriptors);
        traces.insert("namespaces held", namespaces);
        traces.insert("frames", free_frames(&node.list("status")?));
    }
    Ok(traces)
}

/// What is in one and not in the other, a line each.
#[must_use]
pub fn difference(before: &Traces, after: &Traces) -> Vec<String> {
    let mut lines = Vec::new();
    for (kind, was) in before {
        let is = after.get(kind).cloned().unwrap_or_default();
        let gone = was.iter().filter(|line| !is.contains(line));
        lines.extend(gone.map(|line| format!("{kind}: - {line}")));
        let new = is.iter().filter(|line| !was.contains(line));
        lines.extend(new.map(|line| format!("{kind}: + {line}")));
    }
    lines
}

/// AF_XDP sockets in the node's namespace: the column `sockets` of `/proc/net/protocols` is kept
/// for each namespace (net/core/sock.c, `sock_prot_inuse_get`).
///
/// # Errors
/// When the kernel has no AF_XDP.
pub fn xdp_sockets(node: &Node) -> Result<u32> {
    let read = || fs::read_to_string("/proc/thread-self/net/protocols");
    let text = node.namespace().within(read)??;
    let row = text.lines().find(|line| line.starts_with("XDP ")).context("a row for AF_XDP")?;
    Ok(row.split_whitespace().nth(2).context("a column for sockets")?.parse()?)
}

fn lines(text: &str) -> Vec<String> {
    // Lifetimes and the like change by themselves.
    let steady = |line: &str| !line.trim().is_empty() && !line.contains("valid_lft 0");
    let mut lines: Vec<String> = text.lines().filter(|l| steady(l)).map(str::to_owned).collect();
    lines.sort();
    lines
}

fn pins(node: &Node) -> Result<Vec<String>> {
    let output = Command::new("find").arg(node.bpf_dir()).output()?;
    Ok(lines(&String::from_utf8_lossy(&output.stdout)))
}

/// Keys of the pinned maps.
fn map_entries(node: &Node) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for map in ["ports", "sockets", "sources", "sentinels"] {
        let pin = node.bpf_dir().join(map);
        let mut command = Command::new("bpftool");
        command.args(["-j", "map", "dump", "pinned"]).arg(&pin);
        let output = command.output().context("run bpftool")?;
        let listed: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("bpftool of {}: {output:?}", pin.display()))?;
        let keys = listed.as_array().into_iter().flatten();
        // A socket map also lists its empty places, as an error.
        let taken = keys.filter(|entry| entry["value"]["error"].is_null());
        entries.extend(taken.map(|entry| format!("{map} {}", entry["key"])));
    }
    entries.sort();
    Ok(entries)
}

/// How many descriptors of each kind a process has, and the namespaces among them.
fn descriptors(pid: u32) -> Result<(Vec<String>, Vec<String>)> {
    let mut kinds = BTreeMap::<String, u32>::new();
    let mut namespaces = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        // One that was closed meanwhile is no leak.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        if target.starts_with("net:") {
            namespaces.push(target.clone());
        }
        let kind = target.split(":[").next().unwrap_or_default().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    namespaces.sort();
    let kinds = kinds.into_iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    Ok((kinds, namespaces))
}

fn free_frames(status: &Value) -> Vec<String> {
    workers(status).map(|worker| format!("{} {}", worker["id"], worker["frames"]["free"])).collect()
}
