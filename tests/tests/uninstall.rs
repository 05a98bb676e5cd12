//! A node after `viaductd --uninstall` is as it was before the first start.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, UPLINK, on_clusters};
use e2e::daemon::{Node, PortMode, Setup, binary};
use e2e::netns::{Namespace, wait_until};
use e2e::traffic::ping;
use rustix::process::Signal;

/// What the daemon may change on a node: links, addresses, routes of all tables, rules, settings.
fn picture(node: &Namespace) -> Result<Vec<String>> {
    let mut seen = Vec::new();
    for what in [
        &["link"][..],
        &["address"],
        &["route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["rule"],
        &["-6", "rule"],
    ] {
        let rows = node.ip_json(what)?;
        let rows = rows.as_array().context("an array")?;
        // The kernel's own per-address bookkeeping differs from second to second.
        seen.extend(rows.iter().filter(|row| !row["dst"].is_null() || row["dev"].is_null()).map(
            |row| {
                let mut row = row.clone();
                for key in ["stats", "stats64", "expires", "ifindex", "link_index", "metric"] {
                    if let Some(fields) = row.as_object_mut() {
                        fields.remove(key);
                    }
                }
                row.to_string()
            },
        ));
    }
    let sysctls = node.run("sysctl", &["-a", "--pattern", r"^net\.ipv[46]\."])?;
    seen.extend(String::from_utf8_lossy(&sysctls.stdout).lines().map(str::to_owned));
    seen.sort();
    Ok(seen)
}

/// The picture once the kernel has nothing more to add: carrier, addresses and their routes come in
/// steps, each from a work queue.
fn settled(node: &Namespace) -> Result<Vec<String>> {
    /// Looks in a row that must agree, each some 50 ms.
    const LOOKS: u32 = 20;
    let (mut last, mut agreed) = (Vec::new(), 0);
    wait_until("the node has settled", Duration::from_secs(20), || {
        let now = picture(node)?;
        let busy = |row: &String| row.contains("NO-CARRIER") || row.contains("tentative");
        agreed = if now == last && !now.iter().any(busy) { agreed + 1 } else { 0 };
        last = now;
        Ok(agreed >= LOOKS)
    })?;
    Ok(last)
}

fn uninstall(node: &Node) -> Result<()> {
    let config = node.config_path();
    let run =
        || Command::new(binary("viaductd")).arg("--config").arg(config).arg("--uninstall").output();
    let output = node.namespace().within(run)??;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "uninstall failed: {said}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn uninstall_leaves_the_node_as_it_was() {
    let test = || -> Result<()> {
        let mut node = Node::make(Setup::new(PortMode::Auto, 1))?;
        let before = settled(node.namespace())?;
        node.start_daemon()?;
        let _pod = node.add_pod("stays")?;
        let during = picture(node.namespace())?;
        ensure!(before != during, "the picture shows what a daemon changes");
        node.stop_daemon(Signal::TERM)?;
        uninstall(&node)?;
        let after = settled(node.namespace())?;
        let lost: Vec<_> = before.iter().filter(|row| !after.contains(row)).collect();
        let new: Vec<_> = after.iter().filter(|row| !before.contains(row)).collect();
        ensure!(lost.is_empty() && new.is_empty(), "lost {lost:#?}\nnew {new:#?}");
        ensure!(!node.bpf_dir().exists(), "pins are gone");
        uninstall(&node).context("a second time")
    };
    if let Err(error) = test() {
        panic!("{error:?}");
    }
}

/// Routers that the kernel keeps resolved on the uplink although it has nothing for them.
fn managed_neighbors(node: &Node) -> Result<usize> {
    let all = node.namespace().ip_json(&["neigh", "show", "dev", UPLINK])?;
    let all = all.as_array().context("neighbors are a list")?;
    Ok(all.iter().filter(|at| at.get("managed").is_some()).count())
}

fn has_program(node: &Node) -> Result<bool> {
    let links = node.namespace().ip_json(&["-d", "link", "show", "dev", UPLINK])?;
    Ok(!links[0]["xdp"].is_null())
}

#[test]
#[ignore = "needs root"]
fn uninstall_leaves_the_uplink_to_the_kernel() {
    on_clusters(vec![ClusterSetup::new(Forwarder::viaduct(1), 2)], |cluster| {
        let (a, b) = (cluster.add_pod(0, "a")?, cluster.add_pod(1, "b")?);
        cluster.warm_up((0, &a), &b)?;
        let node = cluster.node(0);
        ensure!(has_program(node)?, "the uplink runs our program");
        ensure!(managed_neighbors(node)? > 0, "the other node's addresses are kept resolved");
        cluster.node_mut(0).stop_daemon(Signal::TERM)?;
        let node = cluster.node(0);
        uninstall(node)?;
        ensure!(!has_program(node)? && !node.bpf_dir().exists(), "program and pins are gone");
        ensure!(managed_neighbors(node)? == 0, "neighbors are ordinary ones");
        ping(node.namespace(), Cluster::address(1)[0], "-c 1 -W 5").map(drop)
    });
}
