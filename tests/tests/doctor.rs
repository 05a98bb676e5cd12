//! `viaduct doctor` on a node that is well, and on the same node with one thing broken at a time:
//! it finds exactly that, and what it says to do mends it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::{Node, OUTSIDE_V6, PortMode, Setup, binary, ip};
use e2e::netns::{Namespace, wait_until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Directories of a container runtime that is configured as it should be.
struct Runtime(TempDir);

impl Runtime {
    fn new() -> Result<Runtime> {
        let runtime = Runtime(tempfile::tempdir()?);
        fs::create_dir(runtime.0.path().join("net.d"))?;
        fs::create_dir(runtime.0.path().join("bin"))?;
        runtime.chain(&["viaduct-cni"])?;
        std::os::unix::fs::symlink(binary("viaduct-cni"), runtime.loopback())?;
        Ok(runtime)
    }

    /// Writes a list of plugins.
    fn chain(&self, types: &[&str]) -> Result<()> {
        let plugins: Vec<Value> = types.iter().map(|kind| json!({"type": kind})).collect();
        let list = json!({"cniVersion": "1.0.0", "name": "viaduct", "plugins": plugins});
        Ok(fs::write(self.0.path().join("net.d/10-viaduct.conflist"), list.to_string())?)
    }

    fn loopback(&self) -> std::path::PathBuf {
        self.0.path().join("bin/loopback")
    }
}

/// What the doctor says about a node, from within a namespace.
fn rows(
    node: &Node,
    within: &Namespace,
    runtime: &Runtime,
    config: &Path,
) -> Result<(Vec<Value>, Option<i32>)> {
    let mut command = Command::new(binary("viaduct"));
    command.arg("doctor").arg("--json").arg("--config").arg(config);
    command.arg("--socket").arg(node.socket());
    command.arg("--cni-conf").arg(runtime.0.path().join("net.d"));
    command.arg("--cni-bin").arg(runtime.0.path().join("bin"));
    let output = within.within(|| command.output())??;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("read the rows; stderr: {stderr}"))?;
    for row in &rows {
        let keys: Vec<_> = row.as_object().context("a row is an object")?.keys().collect();
        ensure!(keys == ["check", "found", "mend", "ok"], "keys of a row: {keys:?}");
    }
    let well = output.status.success();
    ensure!(well == stderr.is_empty(), "a failure is a sentence: {stderr:?}");
    Ok((rows, output.status.code()))
}

/// The findings and the exit code that goes with them.
fn findings(rows: &[Value], code: Option<i32>) -> Result<Vec<&Value>> {
    let amiss: Vec<&Value> = rows.iter().filter(|row| row["ok"] == json!(false)).collect();
    let expected = if amiss.is_empty() { 0 } else { 1 };
    ensure!(code == Some(expected), "exit code {code:?} with {amiss:#?}");
    for row in &amiss {
        ensure!(row["mend"].as_str().is_some_and(|mend| !mend.is_empty()), "no mend: {row:#}");
    }
    Ok(amiss)
}

/// A node and a container runtime on it.
struct Patient {
    node: Node,
    runtime: Runtime,
}

impl Patient {
    fn new(setup: Setup) -> Result<Patient> {
        Ok(Patient { node: Node::make(setup)?, runtime: Runtime::new()? })
    }

    fn run(&self, program: &str, words: &str) -> Result<()> {
        let args: Vec<&str> = words.split_whitespace().collect();
        let output = self.node.namespace().run(program, &args)?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{program} {words}: {stderr}");
        Ok(())
    }

    /// Asserts that this check finds something, as often as told, and no other check does.
    fn finds(&self, check: &str, times: usize, part: &str) -> Result<()> {
        let config = self.node.config_path();
        let (rows, code) = rows(&self.node, self.node.namespace(), &self.runtime, &config)?;
        let amiss = findings(&rows, code)?;
        let right = |row: &&Value| {
            row["check"] == json!(check) && row["found"].as_str().is_some_and(|f| f.contains(part))
        };
        ensure!(
            amiss.len() == times && amiss.iter().all(right),
            "{times} findings of {check} with {part:?} were expected: {amiss:#?}"
        );
        Ok(())
    }

    /// Asserts that nothing is amiss.
    fn is_well(&self) -> Result<()> {
        self.finds("no check", 0, "")
    }
}

fn check(setup: Setup, test: impl Fn(&mut Patient) -> Result<()>) {
    let name = setup.to_string();
    let mut patient = Patient::new(setup).unwrap_or_else(|error| panic!("{error:?}"));
    if let Err(error) = test(&mut patient) {
        panic!("on a node with {name}: {error:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_node_is_well_before_the_first_start_with_a_daemon_and_after_it() {
    for setup in Setup::modes() {
        check(setup, |patient| {
            patient.is_well().context("before the first start")?;
            patient.node.start_daemon()?;
            let _pod = patient.node.add_pod("one")?;
            patient.is_well().context("with a daemon")?;
            patient.node.stop_daemon(Signal::KILL)?;
            patient.is_well().context("after it")
        });
    }
}

#[test]
#[ignore = "needs root"]
fn each_broken_setting_is_found_and_its_mend_helps() {
    check(Setup::new(PortMode::Auto, 1), |patient| {
        patient.node.start_daemon()?;
        let pod = patient.node.add_pod("one")?;
        let [v4, v6] = patient.node.pod_cidrs();
        for ifname in ["viaduct1", &pod.host_ifname] {
            patient.run("sysctl", &format!("-qw net.ipv4.conf.{ifname}.rp_filter=1"))?;
            patient.finds("rp_filter", 1, ifname)?;
            patient.run("sysctl", &format!("-qw net.ipv4.conf.{ifname}.rp_filter=2"))?;
        }
        patient.run("sysctl", "-qw net.ipv4.conf.all.rp_filter=1")?;
        patient.is_well().context("strict filtering elsewhere is fine")?;

        patient.run("nft", "add table inet fw")?;
        let chain =
            "add chain inet fw guard { type filter hook forward priority 0 ; policy drop ; }";
        patient.run("nft", chain)?;
        patient.finds("forward_policy", 2, "chain guard of table inet fw")?;
        patient
            .run("nft", &format!("insert rule inet fw guard ip saddr {v4} tcp dport 80 accept"))?;
        patient.finds("forward_policy", 2, "chain guard of table inet fw")?;
        patient.run("nft", &format!("insert rule inet fw guard ip saddr {v4} accept"))?;
        patient.finds("forward_policy", 1, &v6)?;
        patient.run("nft", &format!("insert rule inet fw guard ip6 saddr {v6} accept"))?;
        patient.is_well().context("rules let the pods through")?;
        patient.run("nft", "delete table inet fw")?;

        let default = format!("-6 route replace default via {OUTSIDE_V6} dev up0 proto");
        patient.run("sysctl", "-qw net.ipv6.conf.up0.accept_ra=1")?;
        patient.is_well().context("the default route is no router's")?;
        ip(patient.node.namespace(), &format!("{default} ra"))?;
        patient.finds("accept_ra", 1, "up0")?;
        patient.run("sysctl", "-qw net.ipv6.conf.up0.accept_ra=2")?;
        patient.is_well().context("the router is listened to")?;

        patient.run("sysctl", "-qw net.netfilter.nf_conntrack_tcp_loose=0")?;
        patient.finds("tcp_loose", 1, "nf_conntrack_tcp_loose is 0")?;
        patient.run("sysctl", "-qw net.netfilter.nf_conntrack_tcp_loose=1")?;

        let inside = v4.replace(".0/24", ".77/32");
        ip(patient.node.namespace(), &format!("addr add {inside} dev lo"))?;
        patient.finds("pod_cidrs", 1, "of lo lies within")?;
        ip(patient.node.namespace(), &format!("addr del {inside} dev lo"))?;
        let part = v4.replace(".0/24", ".128/25");
        ip(patient.node.namespace(), &format!("route add {part} dev up0"))?;
        patient.finds("pod_cidrs", 1, "dev up0")?;
        ip(patient.node.namespace(), &format!("route del {part} dev up0"))?;

        patient.run("sysctl", "-qw net.ipv4.ip_forward=0")?;
        patient.finds("forwarding", 1, "net.ipv4.ip_forward")?;
        patient.run("sysctl", "-qw net.ipv4.ip_forward=1")?;
        patient.is_well()
    });
}

#[test]
#[ignore = "needs root"]
fn plugins_and_files_around_us_are_looked_at() {
    check(Setup::new(PortMode::Auto, 1), |patient| {
        patient.runtime.chain(&["viaduct-cni", "portmap"])?;
        patient.finds("chained_plugins", 1, "portmap")?;
        patient.runtime.chain(&["bandwidth", "viaduct-cni"])?;
        patient.is_well().context("nothing after us")?;
        fs::remove_file(patient.runtime.loopback())?;
        patient.finds("loopback_plugin", 1, "bin/loopback")?;
        std::os::unix::fs::symlink(binary("viaduct-cni"), patient.runtime.loopback())?;

        let wrong = patient.runtime.0.path().join("wrong.toml");
        fs::write(&wrong, "[node]\npod_cidrs = [\"10.244.1.0/24\"]\nmtue = 1500\n")?;
        let namespace = patient.node.namespace();
        let (rows, code) = rows(&patient.node, namespace, &patient.runtime, &wrong)?;
        let amiss = findings(&rows, code)?;
        ensure!(amiss.len() == 1 && amiss[0]["check"] == json!("configuration"), "{amiss:#?}");
        let found = amiss[0]["found"].as_str().unwrap_or_default();
        ensure!(found.contains("wrong.toml:3") && found.contains("mtue"), "{found}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn damage_while_no_daemon_runs_is_found_and_a_start_mends_it() {
    check(Setup::new(PortMode::Auto, 1), |patient| {
        patient.node.start_daemon()?;
        let _pod = patient.node.add_pod("one")?;
        patient.node.stop_daemon(Signal::TERM)?;
        ip(patient.node.namespace(), "rule del priority 220")?;
        patient.finds("rule", 1, "IPv4 rule 220")?;
        ip(patient.node.namespace(), "-6 route flush table 22084")?;
        ip(patient.node.namespace(), "-6 rule del priority 220")?;
        let config = patient.node.config_path();
        let namespace = patient.node.namespace();
        let (listed, code) = rows(&patient.node, namespace, &patient.runtime, &config)?;
        let checks: Vec<_> = findings(&listed, code)?.iter().map(|row| &row["check"]).collect();
        ensure!(checks == ["rule", "rule", "routes"], "{checks:?}");
        let unknown: Vec<_> = listed.iter().filter(|row| row["ok"].is_null()).collect();
        ensure!(unknown.len() == 1 && unknown[0]["check"] == json!("daemon"), "{unknown:#?}");
        patient.node.start_daemon()?;
        patient.is_well().context("the daemon put them back")?;

        let outside = patient.node.outside();
        let (listed, code) = rows(&patient.node, outside, &patient.runtime, &config)?;
        let amiss = findings(&listed, code)?;
        let found = amiss.first().and_then(|row| row["found"].as_str()).unwrap_or_default();
        ensure!(amiss.len() == 1 && found.contains("another network namespace"), "{amiss:#?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs root"]
fn an_xdp_program_that_is_not_ours_is_found() {
    check(Setup::new(PortMode::Auto, 1), |patient| {
        patient.node.start_daemon()?;
        patient.node.stop_daemon(Signal::TERM)?;
        fs::remove_file(patient.node.bpf_dir().join("links/viaduct1"))?;
        // A link goes some time after its last pin.
        wait_until("the program is detached", Duration::from_secs(10), || {
            let links = patient.node.namespace().ip_json(&["link", "show", "viaduct1"])?;
            Ok(links[0]["xdp"].is_null())
        })?;
        patient.finds("xdp", 1, "viaduct1 runs no XDP program")?;
        let object = Path::new(env!("CARGO_MANIFEST_DIR")).join("../dataplane/src/bpf/port.bpf.o");
        let object = object.display();
        let words = format!("link set dev viaduct1 xdpgeneric obj {object} sec xdp.frags");
        if let Err(error) = ip(patient.node.namespace(), &words) {
            eprintln!("skipped: this ip cannot attach XDP programs: {error:#}");
            return Ok(());
        }
        patient.finds("xdp", 1, "which is not ours")?;
        ip(patient.node.namespace(), "link set dev viaduct1 xdpgeneric off")?;
        patient.node.start_daemon()?;
        patient.is_well()
    });
}
