//! DPDK's `dpdk-testpmd` as an arm: AF_XDP on the host ends of the same kind of veth pair, in io
//! mode, which copies packets from port to port and looks at nothing. It stands between two pods
//! of one node, or in place of the forwarders of two nodes.
//!
//! The configuration is the best that was found for it (README.md, "How testpmd is run"). Its
//! driver neither asks the kernel for checksums nor takes packets of several frames: so pods
//! compute checksums themselves (`tx off`), and the native XDP that it loads ends their TSO.

use std::fs;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::cluster::{Cable, Offloads, Wiring, set_sysctl};
use e2e::daemon::ip;
use e2e::netns::{Namespace, wait_until};
use rustix::process::Signal;
use tempfile::NamedTempFile;

use crate::lane::{Lane, ROUTE_MTU, mac, wire};
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
const TESTPMD: [&str; 5] =
    ["--forward-mode=io", "--burst=128", "--rxd=4096", "--txd=4096", "--total-num-mbufs=65536"];

/// Two pods with testpmd between them. It polls without rest, so it is stopped (SIGSTOP) whenever
/// it is not its turn.
#[derive(Debug)]
pub struct Testpmd {
    process: Running,
    pods: [Namespace; 2],
    /// Own the host ends, and the switch between nodes.
    _hosts: Vec<Namespace>,
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
        Testpmd::start(host, &["h0", "h1"], 1, Vec::new())
    }

    /// The same with a wire between: two uplinks, and each pod's packets go out by the one and come
    /// in by the other. One process stands for both nodes, and has a forwarding thread
    /// for each, on a core of its own as Viaduct's workers are.
    ///
    /// # Errors
    /// See [`Testpmd::build`].
    pub fn build_nodes(wiring: Wiring) -> Result<Testpmd> {
        let host = Namespace::create("perf-dpdk")?;
        let cable = Cable { queues: 1, mtu: ROUTE_MTU, offloads: Offloads::Off };
        // testpmd pairs the first port with the second, and the third with the fourth.
        let ports = ["h0", "u0", "u1", "h1"];
        if wiring == Wiring::Cable {
            cable.lay((&host, "u0"), (&host, "u1"))?;
            return Testpmd::start(host, &ports, 2, Vec::new());
        }
        let switch = Namespace::create("perf-switch")?;
        ip(&switch, "link add br0 type bridge stp_state 0 mcast_snooping 0")?;
        ip(&switch, "link set br0 up")?;
        plain_switch(&switch)?;
        for (uplink, port) in [("u0", "p0"), ("u1", "p1")] {
            cable.lay((&host, uplink), (&switch, port))?;
            ip(&switch, &format!("link set {port} master br0"))?;
        }
        Testpmd::start(host, &ports, 2, vec![switch])
    }

    /// Adds the pods with their host ends h0 and h1, and has testpmd forward between `ports`, with
    /// so many threads.
    fn start(
        host: Namespace,
        ports: &[&str],
        threads: usize,
        others: Vec<Namespace>,
    ) -> Result<Testpmd> {
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
        let process = Running::start(&host, &mut command(ports, threads, &log)?)?;
        let _hosts = std::iter::once(host).chain(others).collect();
        let mut testpmd = Testpmd { process, pods, _hosts, log };
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

/// Has the bridges of a namespace forward as a switch does: without asking the packet filter, which
/// a kernel with br_netfilter does for every frame.
///
/// # Errors
/// When the setting cannot be written.
pub fn plain_switch(switch: &Namespace) -> Result<()> {
    for family in ["arp", "ip", "ip6"] {
        let key = format!("net.bridge.bridge-nf-call-{family}tables");
        let there = switch.run("sysctl", &["-q", &key])?.status.success();
        if there {
            set_sysctl(switch, &key, "0")?;
        }
    }
    Ok(())
}

fn command(ports: &[&str], threads: usize, log: &NamedTempFile) -> Result<Command> {
    let cores = usable_cores()?;
    let [.., first, last] = cores[..] else {
        bail!("testpmd needs a core beside the one it forwards on; this process may use one only");
    };
    // The main thread (0) has nothing to do while the others forward, from the last core down.
    let forwarding = [format!("1@{last}"), format!("2@{first}")];
    let lcores = format!("0@{first},{}", forwarding[..threads].join(","));
    let mut command = Command::new(PROGRAM);
    command.args(EAL);
    command.args(["--lcores", &lcores, "--main-lcore", "0"]);
    for (number, ifname) in ports.iter().enumerate() {
        command.args(["--vdev", &format!("net_af_xdp{number},iface={ifname}")]);
    }
    command.args(["--", &format!("--nb-cores={threads}")]);
    command.args(TESTPMD);
    // It ends at the end of its input.
    let written = log.reopen()?;
    command.stdin(Stdio::piped()).stdout(written.try_clone()?).stderr(written);
    Ok(command)
}
