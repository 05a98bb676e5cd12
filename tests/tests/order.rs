//! Packets of a flow arrive in the order they were sent in: between pods that are homed on
//! different workers, where every packet crosses a ring, and between nodes with several queues.
//!
//! A million numbered datagrams per path; `VIADUCT_E2E_LONG=1` makes them ten million.

use anyhow::{Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, on_clusters};
use e2e::daemon::{PortMode, Setup, on_each};
use e2e::pod::Pod;
use e2e::traffic::{Sequence, sequence, udp_socket};

/// Datagrams under way at most, in steps of the receiver's: without loss, order is all there is.
fn datagrams() -> u64 {
    if std::env::var_os("VIADUCT_E2E_LONG").is_some() { 10_000_000 } else { 1_000_000 }
}

/// Numbered datagrams from a pod to another, in IPv4 and, of a tenth as many, in IPv6.
fn in_order(what: &str, from: &Pod, to: &Pod) -> Result<()> {
    let ways = from.addresses().into_iter().zip(to.addresses());
    for ((here, there), count) in ways.zip([datagrams(), datagrams() / 10]) {
        let sender = udp_socket(&from.namespace, here)?;
        let receiver = udp_socket(&to.namespace, there)?;
        let Sequence { came, lost, late, took } = sequence(&sender, &receiver, count)?;
        let rate = came as f64 / took.as_secs_f64() / 1e3;
        eprintln!("  {what}: {came} of {count} to {there}, {lost} lost, {rate:.0} k/s");
        ensure!(late == 0, "{what}: {late} of {count} came after later ones");
        // Nobody drops what there is room for, so nearly all of the flow was looked at.
        ensure!(lost <= count / 1000, "{what}: {lost} of {count} were lost");
    }
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn between_workers_of_a_node() {
    let setups = [PortMode::Auto, PortMode::Basic].map(|mode| Setup::new(mode, 2));
    on_each(setups.into(), |node| {
        let (a, b) = (node.add_pod("first")?, node.add_pod("second")?);
        let homes = [node.pod_row(&a)?["worker"].as_u64(), node.pod_row(&b)?["worker"].as_u64()];
        ensure!(homes[0] != homes[1], "every packet crosses: homes are {homes:?}");
        in_order("across workers", &a, &b)
    });
}

#[test]
#[ignore = "needs root"]
fn between_workers_of_two_nodes() {
    let setup = |forwarder| ClusterSetup::new(forwarder, 2);
    on_clusters(Forwarder::all().into_iter().map(setup).collect(), |cluster: &mut Cluster| {
        let pods = cluster.add_pods(2)?;
        // With two workers: to the sender's own number, and to the other.
        for to in &pods[1] {
            cluster.warm_up((0, &pods[0][0]), to)?;
            in_order("across nodes", &pods[0][0], to)?;
        }
        Ok(())
    });
}
