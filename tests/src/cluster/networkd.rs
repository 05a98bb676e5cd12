//! systemd-networkd on a node of a cluster, with the uplink for its interface and Debian's
//! settings. It finds what it would find if its namespaces were a machine of its own: PID 1 on the
//! node's network, a udev that knows the interfaces, and a control group.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use tempfile::TempDir;

use super::bgp::start_on;
use super::{Cluster, UPLINK};
use crate::daemon::binary;
use crate::netns::wait_until;

/// It takes some hundred milliseconds to look around and to configure an interface.
const CONFIGURES_WITHIN: Duration = Duration::from_secs(30);

/// The first process of the namespaces: covers what systemd-networkd and `viaduct doctor` look at,
/// and starts systemd-networkd. Arguments: the directory of its configuration.
const MACHINE: &str = r#"
config=$1
# Copies of the host's named namespaces would keep those alive after their removal.
umount --lazy --recursive /run/netns 2>/dev/null || true
mount --bind "$config" /etc/systemd
mount -t tmpfs machine /run
mkdir -p /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
chown -R systemd-network: /run/systemd/netif
# Of this network; and a writable one is what says that there is a udev, which is waited for.
mount -t sysfs machine /sys
mkdir -p /run/udev/data
for index in $(cat /sys/class/net/*/ifindex); do echo I:1 >"/run/udev/data/n$index"; done
mount -t tmpfs machine /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/system.slice/systemd-networkd.service
# Not `exec`: as PID 1 it would write its log to the console, and, as another user than it was
# started as, outlive `unshare` (prctl(2), PR_SET_PDEATHSIG).
SYSTEMD_LOG_LEVEL=debug /lib/systemd/systemd-networkd &
wait
"#;

/// systemd-networkd at work. Dropped, it is killed: what it has set stays.
#[derive(Debug)]
pub struct Networkd {
    machine: Child,
    dir: TempDir,
}

impl Networkd {
    /// Starts on a node, with a drop-in for networkd.conf(5); returns when it has configured the
    /// uplink, with the addresses that the node has.
    ///
    /// # Errors
    /// When it cannot be started, or does not get that far; with its log.
    pub fn start(cluster: &Cluster, number: usize, drop_in: &str) -> Result<Networkd> {
        let dir = tempfile::Builder::new().prefix("viaduct-e2e-networkd-").tempdir()?;
        let config = dir.path().join("systemd");
        let [v4, v6] = Cluster::address(number);
        let network = format!(
            "[Match]\nName={UPLINK}\n[Network]\nIPv6AcceptRA=no\nAddress={v4}/24\nAddress={v6}/64\n"
        );
        for (folder, name, text) in [
            ("network", "10-uplink.network", network.as_str()),
            ("networkd.conf.d", "10-viaduct.conf", drop_in),
        ] {
            fs::create_dir_all(config.join(folder))?;
            fs::write(config.join(folder).join(name), text)?;
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]);
        command.args(["sh", "-euc", MACHINE, "machine"]).arg(config);
        let machine = start_on(cluster, number, &mut command, &log(dir.path()))?;
        let networkd = Networkd { machine, dir };
        let configured = format!("{UPLINK}: State changed: configuring -> configured");
        networkd.wait_for("the uplink is configured", |log| log.contains(&configured))?;
        Ok(networkd)
    }

    /// Waits until its log fulfils a condition.
    ///
    /// # Errors
    /// When it does not in time; with the log.
    pub fn wait_for(&self, what: &str, fulfilled: impl Fn(&str) -> bool) -> Result<()> {
        wait_until(what, CONFIGURES_WITHIN, || Ok(fulfilled(&self.log())))
            .with_context(|| self.log())
    }

    /// All that it has done so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(log(self.dir.path())).unwrap_or_default()
    }

    /// What `viaduct doctor` finds about it, of the checks named `networkd`: whether that is well,
    /// and the sentence.
    ///
    /// # Errors
    /// When the doctor cannot be asked.
    pub fn diagnosis(&self, cluster: &Cluster, number: usize) -> Result<Vec<(bool, String)>> {
        let unshare = self.machine.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let mut command = Command::new("nsenter");
        command.args(["--mount", "--pid", "--target", children.trim(), "--"]);
        command.arg(binary("viaduct").canonicalize()?).args(["doctor", "--json"]);
        let output = cluster.node(number).namespace().within(|| command.output())??;
        let rows: Vec<Value> = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read the rows: {output:?}"))?;
        let rows = rows.iter().filter(|row| row["check"] == "networkd");
        let told = rows.map(|row| Some((row["ok"].as_bool()?, row["found"].as_str()?.to_owned())));
        told.collect::<Option<Vec<_>>>().context("a row is well or not, and says why")
    }
}

impl Drop for Networkd {
    fn drop(&mut self) {
        let _ = self.machine.kill(); // It may have ended.
        let _ = self.machine.wait();
    }
}

fn log(dir: &Path) -> PathBuf {
    dir.join("log")
}
