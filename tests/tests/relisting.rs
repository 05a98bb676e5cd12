//! The daemon answers while it lists the kernel's routes, of which there may be a million, and says
//! that it is ready when it knows them.

use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use e2e::cluster::{Cluster, ClusterSetup, Forwarder, on_clusters};
use e2e::daemon::binary;
use rustix::process::Signal;

/// So many that they take the daemon hundreds of turns.
const ROUTES: u32 = 300_000;

/// Where the routes lead, a direct prefix.
const DIRECT: &str = "100.64.0.0/10";

/// Answers while routes are listed. One turn lists less than a hundredth of them, and an answer
/// takes some milliseconds; so there are far more, however fast or slow the machine is.
const ANSWERS: usize = 3;

#[test]
#[ignore = "needs root"]
fn a_daemon_that_starts_answers_before_it_knows_the_routes_and_is_ready_when_it_does() {
    let setup = ClusterSetup::new(Forwarder::viaduct(1), 2);
    let direct = setup.direct.iter().cloned().chain([DIRECT.to_owned()]).collect();
    on_clusters(vec![ClusterSetup { plain: 1, direct, ..setup }], |cluster| {
        add_routes(cluster)?;
        cluster.node_mut(0).stop_daemon(Signal::TERM)?;
        let socket = cluster.node(0).socket();
        let started = AtomicBool::new(false);
        let not_yet = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let mut answers = 0;
                while !started.load(Ordering::Relaxed) {
                    let mut ask = Command::new(binary("viaduct"));
                    let output = ask.arg("--socket").arg(&socket).arg("status").output()?;
                    let answer = String::from_utf8_lossy(&output.stderr).into_owned();
                    answers += usize::from(answer.contains("routes are not listed yet"));
                }
                Ok::<usize, anyhow::Error>(answers)
            });
            let ready = cluster.node_mut(0).start_daemon();
            started.store(true, Ordering::Relaxed);
            ready.and(asking.join().expect("asking does not panic"))
        })?;
        ensure!(not_yet >= ANSWERS, "{not_yet} answers while routes were listed");
        let status = cluster.node(0).list("status")?;
        let known = status["routes"].as_u64().context("status counts routes")?;
        ensure!(known >= u64::from(ROUTES), "ready, but only {known} routes are known");
        Ok(())
    });
}

/// Gives the first node's kernel the routes, by the second node.
fn add_routes(cluster: &Cluster) -> Result<()> {
    let router = Cluster::address(1)[0];
    let first = u32::from(std::net::Ipv4Addr::new(100, 64, 0, 0));
    let line = |number| {
        let dst = std::net::Ipv4Addr::from(first + number * 4);
        format!("route add {dst}/30 via {router}\n")
    };
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("routes");
    fs::write(&path, (0..ROUTES).map(line).collect::<String>())?;
    let path = path.to_str().context("a temporary directory has a plain name")?;
    cluster.node(0).namespace().ip(&["-batch", path])
}
