//! The Debian package from its making to its purge, on a machine that is a copy of this one: its
//! files lie over this machine's in memory, its network is a namespace. And what else is under
//! `deploy/`: that the manifests are whole, and ask for what the unit asks for.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::daemon::{binary, ip};
use e2e::netns::{Namespace, wait_until};
use e2e::runtimes::{output, require};
use serde_json::Value;
use tempfile::TempDir;

/// The first process of the machine. Arguments: a directory to mount on, the package, and the
/// pods' namespaces. What it does not take along goes with the old root.
const INIT: &str = r#"
set -eu
scratch=$1 package=$2
shift 2
mount -t tmpfs machine "$scratch"
cd "$scratch"
mkdir upper work root
mount -t overlay machine -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" root
mount -t proc proc root/proc
mount --rbind /sys root/sys
mount --rbind /dev root/dev
mount -t tmpfs -o mode=755 machine root/run
mkdir root/run/lock root/run/lower root/run/netns root/run/upper
mount --bind / root/run/lower
mount --bind upper root/run/upper
cp "$package" root/run/viaduct.deb
for namespace; do
    touch "root/run/netns/${namespace##*/}"
    mount --bind "$namespace" "root/run/netns/${namespace##*/}"
done
cd root
pivot_root . mnt
umount --lazy /mnt
echo ready
# Not `exec`: the shell buries orphans.
cat >/dev/null
"#;

/// What a node looks like from its own network namespace.
const PICTURE: &str = "
for what in link address rule '-6 rule' 'route show table all' '-6 route show table all'; do
    ip -o $what
done
nft list ruleset
sysctl -a --pattern '^net[.]ipv[46][.]' 2>/dev/null";

/// Files of the machine that are not of this machine, or differ, but for dpkg's own accounts.
const LEFT: &str = "
cd /run/upper
find . -mindepth 1 -path ./var/lib/dpkg -prune -o -path ./var/log -prune -o -print |
    while read -r path; do
        [ -d \"$path\" ] && [ -d \"/run/lower/$path\" ] || echo \"$path\"
    done";

/// Programs that wait for something give up by themselves; this is for those that hang.
const SECONDS: &str = "60";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the package is in the workspace")
}

/// Makes the package of the binaries under test.
fn package(out: &Path) -> Result<PathBuf> {
    let daemon = binary("viaductd").canonicalize().context("build viaductd first")?;
    let mut make = Command::new(root().join("scripts/package"));
    make.arg(out).env("VIADUCT_BIN_DIR", daemon.parent().context("a directory")?);
    Ok(output(&mut make)?.trim().into())
}

/// A machine that lives as long as this value.
struct Machine {
    unshare: Child,
    init: String,
    _scratch: TempDir,
}

impl Machine {
    fn start(node: &Namespace, package: &Path, pods: &[Namespace]) -> Result<Machine> {
        let scratch = tempfile::tempdir()?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child"])
            .args(["sh", "-c", INIT, "machine"])
            .args([scratch.path(), package])
            .args(pods.iter().map(Namespace::path))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut unshare = node.within(|| command.spawn())?.context("run unshare")?;
        let mut line = String::new();
        if let Some(stdout) = &mut unshare.stdout {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        let pid = unshare.id();
        let init = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let machine = Machine {
            unshare,
            init: init.unwrap_or_default().trim().to_owned(),
            _scratch: scratch,
        };
        ensure!(line == "ready\n", "the machine did not start; stderr says why");
        Ok(machine)
    }

    /// Runs lines of the shell and returns what they print.
    fn shell(&self, lines: &str) -> Result<String> {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.init, "--mount", "--pid", "--net"])
            .args(["timeout", "--kill-after=5", SECONDS, "sh", "-euc", lines])
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        output(&mut command)
    }

    /// The daemon as the unit starts it: with its capabilities and its journal's directory.
    fn start_daemon(&self) -> Result<()> {
        self.shell(&format!(
            "mkdir -p -m 0700 /run/viaduct
             setpriv --inh-caps=-all --bounding-set={} --no-new-privs \
                 viaductd --config /etc/viaduct/viaduct.toml >>/run/log 2>&1 &",
            bounding_set()?
        ))?;
        let ready = wait_until("viaductd is ready", Duration::from_secs(15), || {
            Ok(self.shell("viaduct status").is_ok())
        });
        ready.with_context(|| self.shell("cat /run/log").unwrap_or_default())
    }

    fn stop_daemon(&self) -> Result<()> {
        self.shell("kill $(pidof viaductd); while pidof -q viaductd; do sleep 0.02; done")?;
        Ok(())
    }

    /// One call of the installed plugin, with the shipped configuration.
    fn cni(&self, verb: &str, pod: &Namespace) -> Result<String> {
        let name = pod.path().file_name().context("a named namespace")?.to_string_lossy();
        self.shell(&format!(
            "python3 -c 'import json
conf = json.load(open(\"/usr/share/doc/viaduct/examples/10-viaduct.conflist\"))
print(json.dumps(dict(conf[\"plugins\"][0], cniVersion=\"1.0.0\", name=conf[\"name\"])))' |
             CNI_COMMAND={verb} CNI_CONTAINERID={name} CNI_NETNS=/run/netns/{name} \
             CNI_IFNAME=eth0 CNI_PATH=/opt/cni/bin /opt/cni/bin/viaduct-cni"
        ))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Its first process ends with its input, and the kernel kills the rest.
        drop(self.unshare.stdin.take());
        let _ended = self.unshare.wait();
    }
}

/// The unit's capabilities, as setpriv(1) writes them.
fn bounding_set() -> Result<String> {
    let unit = fs::read_to_string(root().join("deploy/viaductd.service"))?;
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.context("the unit bounds capabilities")?.to_lowercase();
    Ok(names
        .split(' ')
        .fold("-all".to_owned(), |set, name| format!("{set},+{}", name.trim_start_matches("cap_"))))
}

fn talks(from: &Namespace, to: &str) -> Result<()> {
    let ping = from.run("ping", &["-n", "-c", "3", "-i", "0.1", "-W", "2", to])?;
    ensure!(ping.status.success(), "ping {to}: {}", String::from_utf8_lossy(&ping.stdout));
    Ok(())
}

/// What is in one and not in the other.
fn difference(before: &str, after: &str) -> Vec<String> {
    let gone = before.lines().filter(|line| !after.lines().any(|other| other == *line));
    let new = after.lines().filter(|line| !before.lines().any(|other| other == *line));
    gone.map(|line| format!("- {line}")).chain(new.map(|line| format!("+ {line}"))).collect()
}

fn lifecycle() -> Result<()> {
    let out = tempfile::tempdir()?;
    let package = package(out.path())?;
    let node = Namespace::create("e2e-packaged")?;
    ip(&node, "link set lo up")?;
    ip(&node, "address add 192.0.2.1/32 dev lo")?;
    let pods = [Namespace::create("e2e-pod")?, Namespace::create("e2e-pod")?];
    let machine = Machine::start(&node, &package, &pods)?;
    let before = machine.shell(PICTURE)?;

    machine.shell("dpkg --install /run/viaduct.deb")?;
    let refused = machine.shell("viaductd --config /etc/viaduct/viaduct.toml");
    let refused = refused.err().context("no start without pod_cidrs")?.to_string();
    ensure!(refused.contains("node.pod_cidrs: is missing"), "{refused}");
    ensure!(machine.shell("readlink /opt/cni/bin/loopback")? == "viaduct-cni\n", "a loopback");

    let bpf_dir = format!("/sys/fs/bpf/viaduct-e2e-packaged-{}", std::process::id());
    machine.shell(&format!(
        "sed -i 's,^# pod_cidrs,pod_cidrs,; s,^# bpf_dir = .*,bpf_dir = \"{bpf_dir}\",' \
             /etc/viaduct/viaduct.toml"
    ))?;
    machine.start_daemon()?;
    for pod in &pods {
        machine.cni("ADD", pod)?;
    }
    let all_talk = || talks(&pods[0], "10.244.1.2").and_then(|()| talks(&pods[1], "192.0.2.1"));
    all_talk()?;
    ensure!(Path::new(&bpf_dir).exists(), "the configuration is heeded");

    machine.shell("dpkg --install /run/viaduct.deb").context("an upgrade")?;
    all_talk().context("after an upgrade, with the daemon of before")?;
    machine.stop_daemon()?;
    all_talk().context("carried by the kernel")?;
    machine.start_daemon()?;
    all_talk().context("after an upgrade, with the new daemon")?;

    let refused = machine.shell("dpkg --remove viaduct").err().context("a daemon runs")?;
    ensure!(refused.to_string().contains("another viaductd runs"), "{refused}");
    all_talk().context("after a removal that was refused")?;

    machine.cni("DEL", &pods[0])?;
    machine.stop_daemon()?;
    machine.shell("dpkg --remove viaduct")?;
    let mut left = Vec::new();
    let same = wait_until("the node is as it was", Duration::from_secs(10), || {
        left = difference(&before, &machine.shell(PICTURE)?);
        Ok(left.is_empty())
    });
    same.with_context(|| format!("{left:#?}"))?;
    ensure!(!Path::new(&bpf_dir).exists(), "pins are left");
    ensure!(machine.shell("ls -d /run/viaduct").is_err(), "state is left");
    let left = machine.shell(LEFT)?;
    ensure!(left == "./etc/viaduct\n./etc/viaduct/viaduct.toml\n", "a removal leaves:\n{left}");
    machine.shell("dpkg --purge viaduct")?;
    let left = machine.shell(LEFT)?;
    ensure!(left.is_empty(), "a purge leaves:\n{left}");
    Ok(())
}

#[test]
#[ignore = "needs root"]
fn a_package_installs_upgrades_and_leaves_the_node_as_it_was() {
    if let Err(error) = lifecycle() {
        panic!("{error:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn somebody_elses_loopback_plugin_stays() {
    let test = || -> Result<()> {
        let out = tempfile::tempdir()?;
        let package = package(out.path())?;
        let node = Namespace::create("e2e-packaged")?;
        let machine = Machine::start(&node, &package, &[])?;
        machine.shell("mkdir -p /opt/cni/bin; echo theirs >/opt/cni/bin/loopback")?;
        let theirs = || machine.shell("cat /opt/cni/bin/loopback");
        machine.shell("dpkg --install /run/viaduct.deb")?;
        ensure!(theirs()? == "theirs\n", "replaced");
        machine.shell("dpkg --purge viaduct").context("without a daemon ever")?;
        ensure!(theirs()? == "theirs\n", "removed");
        Ok(())
    };
    if let Err(error) = test() {
        panic!("{error:?}");
    }
}

#[test]
#[ignore = "needs the release binaries"]
fn the_package_holds_programs_unit_and_configuration_and_no_network() {
    let test = || -> Result<()> {
        let out = tempfile::tempdir()?;
        let package = package(out.path())?;
        let listed = output(Command::new("dpkg-deb").arg("--contents").arg(&package))?;
        for row in listed.lines() {
            ensure!(row.contains(" root/root "), "not root's: {row}");
        }
        let mut programs: Vec<&str> =
            listed.lines().filter(|row| row.starts_with("-rwxr-xr-x")).collect();
        programs = programs.iter().filter_map(|row| row.split(" ./").nth(1)).collect();
        programs.sort_unstable();
        ensure!(
            programs == ["usr/bin/viaduct", "usr/lib/cni/viaduct-cni", "usr/sbin/viaductd"],
            "{programs:?}"
        );
        let doc = |name: &str| format!("usr/share/doc/viaduct/{name}");
        for file in [
            "etc/viaduct/viaduct.toml".to_owned(),
            "lib/systemd/system/viaductd.service".to_owned(),
            doc("routing.md"),
            doc("examples/bird.conf"),
            doc("examples/frr.conf"),
        ] {
            let row = listed.lines().find(|row| row.ends_with(&format!(" ./{file}")));
            ensure!(row.is_some_and(|row| row.starts_with("-rw-r--r--")), "{file}: {row:?}");
        }
        ensure!(!listed.contains("./etc/cni"), "which network a node has is the operator's");
        let again = fs::read(&package)?;
        self::package(out.path())?;
        ensure!(again == fs::read(&package)?, "the same commit makes the same package");
        Ok(())
    };
    if let Err(error) = test() {
        panic!("{error:?}");
    }
}

/// The documents of a manifest.
fn manifest(name: &str) -> Result<Vec<Value>> {
    const PROGRAM: &str = "import json, sys, yaml
print(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let path = root().join("deploy").join(name);
    let parsed = output(Command::new("python3").args(["-c", PROGRAM]).arg(path));
    Ok(serde_json::from_str(&parsed.context("is python3-yaml installed?")?)?)
}

fn check_manifests() -> Result<()> {
    for name in ["daemonset.yaml", "daemonset-uninstall.yaml"] {
        let documents = manifest(name)?;
        let set = documents.iter().find(|document| document["kind"] == "DaemonSet");
        let spec = &set.context("a DaemonSet")?["spec"]["template"]["spec"];
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let volumes = list(&spec["volumes"]);
        for container in [list(&spec["initContainers"]), list(&spec["containers"])].concat() {
            for mount in list(&container["volumeMounts"]) {
                let known = volumes.iter().any(|volume| volume["name"] == mount["name"]);
                ensure!(known, "{name}: no volume for {mount}");
            }
        }
    }
    let documents = manifest("daemonset.yaml")?;
    let shipped = fs::read_to_string(root().join("deploy/10-viaduct.conflist"))?;
    let in_map = documents[0]["data"]["10-viaduct.conflist"].as_str().context("a conflist")?;
    ensure!(in_map == shipped, "the ConfigMap's conflist is not the shipped one");
    let daemon = &documents[1]["spec"]["template"]["spec"]["containers"][0]["command"];
    let bounds = format!("--bounding-set={}", bounding_set()?);
    let same = daemon.as_array().context("a command")?.iter().any(|word| *word == bounds);
    ensure!(same, "unit and DaemonSet give different capabilities: {daemon} lacks {bounds}");
    Ok(())
}

#[test]
#[ignore = "needs python3-yaml"]
fn the_manifests_are_whole_and_give_the_units_capabilities() {
    if let Err(error) = require("python3", "python3").and_then(|()| check_manifests()) {
        panic!("{error:?}");
    }
}
