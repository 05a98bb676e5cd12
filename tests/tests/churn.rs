//! Pods come and go, one by one and a hundred at once, also with mistakes, and leave nothing.
//!
//! `VIADUCT_E2E_LONG=1` repeats the hundred ten times instead of twice.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::daemon::{Node, Setup, on_each};
use e2e::netns::{Namespace, wait_until};
use e2e::pod::Pod;
use e2e::traces::{Traces, difference, traces, xdp_sockets};
use e2e::traffic::reaches;

/// What a node is expected to carry (Kubernetes' default is 110 pods).
const PODS: usize = 110;

/// What is removed in the background is gone by then: 100 pods at some 30 ms each.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);

/// Waits until the kernel and the daemon hold what they held before.
fn leaves_nothing(node: &Node, before: &Traces) -> Result<()> {
    let mut left = Vec::new();
    let waited = wait_until("everything is as it was", SETTLED_WITHIN, || {
        left = difference(before, &traces(node)?);
        Ok(left.is_empty())
    });
    ensure!(waited.is_ok(), "{} traces are left: {:#?}", left.len(), &left[..left.len().min(20)]);
    Ok(())
}

/// Prints the median and the 99th percentile.
fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    println!("{what:<12} p50 {:>8.2?} p99 {:>8.2?}", at(0.5), at(0.99));
}

fn timed<T>(times: &mut Vec<Duration>, run: impl FnOnce() -> Result<T>) -> Result<T> {
    let started = Instant::now();
    let result = run()?;
    times.push(started.elapsed());
    Ok(result)
}

#[test]
#[ignore = "needs root"]
fn a_full_node_fills_and_empties_one_by_one() {
    on_each(Setup::modes_and_workers(), |node| {
        let before = traces(node)?;
        let [mut adds, mut checks, mut dels] = [const { Vec::new() }; 3];
        let mut pods = Vec::with_capacity(PODS);
        for number in 0..PODS {
            let namespace = Namespace::create("e2e-pod")?;
            let id = format!("pod-{number}");
            pods.push(timed(&mut adds, || node.attach(&id, namespace, None))?);
        }
        let sockets = xdp_sockets(node)?;
        for pod in &pods {
            timed(&mut checks, || node.check_pod(pod))?;
        }
        for address in pods[PODS - 1].addresses() {
            reaches(&pods[0].namespace, address)?;
        }
        for pod in &pods {
            timed(&mut dels, || node.delete_pod(pod))?;
        }
        println!("{}, {PODS} pods, {sockets} XSKs", node.setup());
        print_times("dual ADD", adds);
        print_times("CHECK", checks);
        print_times("DEL", dels);
        leaves_nothing(node, &before)
    });
}

/// Runs `call` for each item at the same time.
fn at_once<T: Sync, R: Send>(items: &[T], call: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    std::thread::scope(|scope| {
        let calls: Vec<_> = items.iter().map(|item| scope.spawn(|| call(item))).collect();
        calls.into_iter().map(|call| call.join().expect("no call panics")).collect()
    })
}

#[test]
#[ignore = "needs root"]
fn a_hundred_pods_come_and_go_at_once() {
    let rounds = if std::env::var_os("VIADUCT_E2E_LONG").is_some() { 10 } else { 2 };
    on_each(Setup::modes_and_workers(), |node| {
        let before = traces(node)?;
        let ids: Vec<String> = (0..100).map(|number| format!("pod-{number}")).collect();
        for round in 0..rounds {
            let started = Instant::now();
            let pods: Vec<Pod> = at_once(&ids, |id| node.add_pod(id))?;
            let added = started.elapsed();
            let addresses: std::collections::BTreeSet<_> =
                pods.iter().flat_map(Pod::addresses).collect();
            ensure!(addresses.len() == 200, "every pod has addresses of its own");
            reaches(&pods[0].namespace, pods[99].v4.into())?;
            let started = Instant::now();
            at_once(&pods, |pod| node.delete_pod(pod))?;
            let deleted = started.elapsed();
            leaves_nothing(node, &before)?;
            let settled = started.elapsed();
            println!(
                "{}, round {round}: 100 ADDs at once {added:.1?}, DELs {deleted:.1?}, \
                 all gone after {settled:.1?}",
                node.setup()
            );
        }
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn namespaces_that_go_before_their_del_leave_nothing_after_it() {
    on_each(Setup::modes(), |node| {
        let before = traces(node)?;
        let pods: Result<Vec<Pod>> =
            (0..10).map(|number| node.add_pod(&format!("pod-{number}"))).collect();
        let pods = pods?;
        for pod in &pods {
            pod.namespace.remove();
        }
        at_once(&pods, |pod| node.delete_pod(pod))?;
        leaves_nothing(node, &before)
    });
}

#[test]
#[ignore = "needs root"]
fn what_is_asked_wrongly_changes_nothing() {
    let setup = |setup| Setup { v4_prefix_len: 29, ..setup };
    on_each(Setup::modes().into_iter().map(setup).collect(), |node| {
        let conf = node.conf(None);
        let empty = traces(node)?;
        let unknown = node.call("DEL", "nobody", None, &conf)?;
        ensure!(unknown.code == Some(0), "DEL of what is not there: {unknown:?}");

        let pod = node.add_pod("one")?;
        let before = traces(node)?;
        let again = node.call("ADD", "one", Some(pod.namespace.path()), &conf)?;
        ensure!(again.code != Some(0), "a second ADD: {again:?}");
        let gone = std::path::Path::new("/run/netns/no-such-namespace");
        let nowhere = node.call("ADD", "two", Some(gone), &conf)?;
        ensure!(nowhere.code != Some(0), "ADD without a namespace: {nowhere:?}");
        let odd = node.call("ADD", "two", Some(pod.namespace.path()), &conf)?;
        ensure!(odd.code != Some(0), "ADD over somebody's eth0: {odd:?}");
        let tiny = node.call("ADD", "two", Some(node.outside().path()), &node.conf(Some(100)))?;
        ensure!(tiny.code != Some(0), "ADD with an MTU below IPv6's: {tiny:?}");
        leaves_nothing(node, &before)?;
        node.check_pod(&pod)?;
        reaches(node.namespace(), pod.v4.into())?;

        // Six addresses at most in a /29; the ADD that finds none left has an IPv6 one by then.
        let mut others = Vec::new();
        let full = loop {
            let full = traces(node)?;
            match node.add_pod(&format!("more-{}", others.len())) {
                Ok(pod) => others.push(pod),
                Err(error) => {
                    ensure!(others.len() >= 4, "the range is exhausted early: {error:#}");
                    break full;
                }
            }
            ensure!(others.len() < 10, "more pods than addresses");
        };
        leaves_nothing(node, &full)?;
        for pod in others.iter().chain([&pod]) {
            node.delete_pod(pod)?;
            node.delete_pod(pod)?; // A runtime repeats a DEL until it has heard the answer.
        }
        leaves_nothing(node, &empty)
    });
}
