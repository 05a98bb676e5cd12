//! DPDK's `dpdk-testpmd` as an arm: AF_XDP on the host ends of the same kind of veth pair, in io
//! mode, which copies packets from port to port and looks at nothing.
//!
//! The configuration is the best that was found for it (README.md, "How testpmd is run"). Its
//! driver neither asks the kernel for checksums nor takes packets of several frames: so pods
//! compute checksums themselves (`tx off`), and the native XDP that it loads ends their TSO.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::netns::{Namespace, wait_until};
use rustix::process::Signal;
use tempfile::NamedTempFile;

use crate::lane::{Lane, mac, wire};
use crate::machine::usable_cores;
use crate::process::Running;

/// Until a lane carries its first packet: testpmd takes 2 s to start here.
pub const LANE_DEADLINE: Duration = Duration::from_secs(20);

/// The program, of Debian's package dpdk.
const PROGRAM: &str = "dpdk-testpmd";

/// Addresses of the two pods, in one subnet: there is no router between them.
const PODS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 98, 0, 1), Ipv4Addr::new(10, 98, 0, 2)];

/// Arguments for the environment layer: no hugepages, no devices but the two named later, and no
/// file or socket that outlives the process.
const EAL: [&str; 8] = [
    "--no-huge",
    "-m",
    "1024",
    "--no-pci",
    "--no-telemetry",
    "--no-shconf",
    "--log-level",
    "warning",
];

/// Arguments for testpmd itself.
const TESTPMD: [&str; 6] = [
    "--forward-mode=io",
    "--nb-cores=1",
    "--burst=128",
    "--rxd=4096",
    "--txd=4096",
    "--total-num-mbufs=65536",
];

/// Two pods with testpmd between them. It polls without rest, so it is stopped (SIGSTOP) whenever
/// it is not its turn.
#[derive(Debug)]
pub struct Testpmd {
    process: Running,
    pods: [Namespace; 2],
    /// Owns the host ends.
    _host: Namespace,
    /// What testpmd writes.
    log: NamedTempFile,
}

/// testpmd runs while this is alive.
#[derive(Debug)]
pub struct Awake<'a>(&'a Testpmd);

impl Testpmd {
    /// Builds the lane; returns when it carries packets. It forwards on the last core, which is
    /// that of Viaduct's worker, too.
    ///
    /// # Errors
    /// When a step fails, or testpmd forwards nothing in time; with its log.
    pub fn build() -> Result<Testpmd> {
        let host = Namespace::create("perf-dpdk")?;
        let pods = [Namespace::create("perf-a")?, Namespace::create("perf-b")?];
        for ((pod, address), end) in pods.iter().zip(PODS).zip(["h0", "h1"]) {
            wire(&host, end, pod)?;
            pod.ip(&["addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
            let output = pod.run("ethtool", &["-K", "eth0", "tx", "off"])?;
            ensure!(output.status.success(), "turn checksum offload off: {output:?}");
        }
        for (pod, peer, address) in [(&pods[0], &pods[1], PODS[1]), (&pods[1], &pods[0], PODS[0])] {
            let (address, peer) = (address.to_string(), mac(peer, "eth0")?);
            pod.ip(&["neigh", "add", &address, "lladdr", &peer, "dev", "eth0"])?;
        }
        let log = NamedTempFile::new()?;
        let process = Running::start(&host, &mut command(&log)?)?;
        let mut testpmd = Testpmd { process, pods, _host: host, log };
        wait_until("testpmd forwards", LANE_DEADLINE, || {
            testpmd.process.check_alive()?;
            testpmd.lane().answers()
        })
        .with_context(|| fs::read_to_string(testpmd.log.path()).unwrap_or_default())?;
        testpmd.process.signal(Signal::STOP)?;
        Ok(testpmd)
    }

    /// From the first pod to the second.
    pub fn lane(&self) -> Lane<'_> {
        let [client, server] = &self.pods;
        Lane { arm: "testpmd", client, server, address: PODS[1] }
    }

    /// Lets testpmd run for its turn; returns when it forwards.
    ///
    /// # Errors
    /// When it has ended or does not forward.
    pub fn wake(&self) -> Result<Awake<'_>> {
        self.process.signal(Signal::CONT)?;
        let awake = Awake(self);
        wait_until("testpmd forwards again", LANE_DEADLINE, || self.lane().answers())?;
        Ok(awake)
    }
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        // If it has ended, the next turn will say so.
        let _ = self.0.process.signal(Signal::STOP);
    }
}

fn command(log: &NamedTempFile) -> Result<Command> {
    let cores = usable_cores()?;
    let [.., main, forwarding] = cores[..] else {
        bail!("testpmd needs a core beside the one it forwards on; this process may use one only");
    };
    let mut command = Command::new(PROGRAM);
    command.args(EAL);
    command.args(["-l", &format!("{main},{forwarding}"), "--main-lcore", &main.to_string()]);
    command.args(["--vdev", "net_af_xdp0,iface=h0", "--vdev", "net_af_xdp1,iface=h1", "--"]);
    command.args(TESTPMD);
    // It ends at the end of its input.
    let written = log.reopen()?;
    command.stdin(Stdio::piped()).stdout(written.try_clone()?).stderr(written);
    Ok(command)
}
