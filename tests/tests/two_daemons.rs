//! More than one daemon, and none: namespaces side by side, a second daemon in the same namespace,
//! and what the plugin does while nobody is there.

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, PortMode, Setup, on_each};
use e2e::netns::wait_until;
use e2e::traffic::{reaches, transfer};
use rustix::process::Signal;
use std::time::Duration;

#[test]
#[ignore = "needs root"]
fn two_nodes_of_one_machine_do_not_know_of_each_other() {
    on_each(Setup::modes(), |first| {
        let mut second = Node::start(Setup::new(PortMode::Auto, 1))?;
        let pods = [first.add_pod("same-name")?, first.add_pod("other")?];
        let others = [second.add_pod("same-name")?, second.add_pod("other")?];
        ensure!(pods[0].host_ifname == others[0].host_ifname, "kernel names are the same");
        for [from, to] in [&pods, &others] {
            for address in to.addresses() {
                transfer(&from.namespace, &to.namespace, address, 1_000_000)?;
            }
        }
        second.delete_pod(&others[1])?;
        second.stop_daemon(Signal::KILL)?;
        for address in pods[1].addresses() {
            reaches(&pods[0].namespace, address).context("the first node is untouched")?;
        }
        let rows = first.list("pods")?.as_array().map(Vec::len);
        ensure!(rows == Some(2), "pods of the first: {rows:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn a_second_daemon_in_the_same_namespace_is_refused() {
    on_each(Setup::modes(), |node| {
        let (a, b) = (node.add_pod("one")?, node.add_pod("two")?);
        let (status, said) = node.start_second_daemon()?;
        ensure!(!status.success(), "it ends with an error: {status}");
        ensure!(said.contains("another viaductd runs in this network namespace"), "{said}");
        for address in b.addresses() {
            reaches(&a.namespace, address).context("the first daemon goes on")?;
        }
        ensure!(node.packets_from(&a)? > 0, "by its workers");
        node.forget_log();
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn without_a_daemon_add_is_put_off_and_del_is_kept() {
    on_each(Setup::modes(), |node| {
        let (gone, stays) = (node.add_pod("gone")?, node.add_pod("stays")?);
        node.stop_daemon(Signal::KILL)?;
        let namespace = e2e::netns::Namespace::create("e2e-pod")?;
        let add = node.call("ADD", "new", Some(namespace.path()), &node.conf(None))?;
        let code = add.json.as_ref().and_then(|json| json["code"].as_u64());
        ensure!(code == Some(11), "ADD should be tried again later: {add:?}");
        node.delete_pod(&gone).context("DEL succeeds whatever is there")?;
        node.delete_pod(&gone).context("and once more")?;
        node.start_daemon()?;
        let rows = node.list("pods")?;
        let ids: Vec<_> = rows
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|row| row["container_id"].as_str())
            .collect();
        ensure!(ids == ["stays"], "the queued DEL is served before anything else: {ids:?}");
        wait_until("the interface is gone", Duration::from_secs(10), || {
            let links = node.namespace().ip_json(&["link"])?;
            let names = links.as_array().into_iter().flatten().map(|link| link["ifname"].as_str());
            Ok(!names.into_iter().any(|name| name == Some(gone.host_ifname.as_str())))
        })?;
        let new = node.attach("new", namespace, None).context("ADD is tried again")?;
        for address in new.addresses() {
            reaches(&stays.namespace, address)?;
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn pods_that_came_before_a_restart_are_pods_after_it() -> Result<()> {
    for signal in [Signal::TERM, Signal::KILL] {
        on_each(Setup::modes_and_workers(), |node| {
            let pods = [node.add_pod("one")?, node.add_pod("two")?, node.add_pod("three")?];
            node.stop_daemon(signal)?;
            node.start_daemon()?;
            for pod in &pods {
                node.check_pod(pod)?;
                ensure!(node.pod_row(pod)?["state"] == "userspace", "{}", pod.container_id);
            }
            let [a, b, c] = &pods;
            for address in b.addresses() {
                reaches(&a.namespace, address)?;
            }
            ensure!(node.packets_from(a)? >= 2, "workers carry it");
            node.delete_pod(c)?;
            let new = node.add_pod("four")?;
            let given: Vec<_> = [a, b].into_iter().flat_map(e2e::pod::Pod::addresses).collect();
            for address in new.addresses() {
                ensure!(!given.contains(&address), "{address} is somebody's");
                reaches(&a.namespace, address)?;
            }
            Ok(())
        });
    }
    Ok(())
}
