//! A lane: two pods and something that forwards between them. Every arm of a comparison offers one,
//! so that all are loaded in the same way.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use e2e::netns::Namespace;

/// Route MTU of every lane, in bytes: what pods see nearly everywhere.
pub const ROUTE_MTU: u32 = 1500;

/// Where traffic goes: from a client's pod to a server's.
#[derive(Clone, Copy, Debug)]
pub struct Lane<'a> {
    /// Name of what forwards.
    pub arm: &'static str,
    /// Where connections come from.
    pub client: &'a Namespace,
    /// Where they go.
    pub server: &'a Namespace,
    /// The server's address.
    pub address: Ipv4Addr,
}

/// How long and how often the arms of a comparison take turns.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Turns {
    /// Turns of each arm
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub pairs: u64,
    /// Seconds of one turn
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
}

impl Lane<'_> {
    /// Whether the server answers one ping within a second.
    ///
    /// # Errors
    /// When ping cannot be run.
    pub fn answers(&self) -> Result<bool> {
        let address = self.address.to_string();
        let output = self.client.run("ping", &["-c", "1", "-W", "1", "-q", &address])?;
        Ok(output.status.success())
    }
}

/// Makes the kind of veth pair that pods have: `host_ifname` in `host`, `eth0` in `pod`; both up.
///
/// # Errors
/// When `ip` fails.
pub fn wire(host: &Namespace, host_ifname: &str, pod: &Namespace) -> Result<()> {
    let name = pod.path().file_name().context("a namespace has a name")?.to_string_lossy();
    let words = ["link", "add", host_ifname, "type", "veth", "peer", "name", "eth0", "netns"];
    host.ip(&[&words[..], &[&*name]].concat())?;
    host.ip(&["link", "set", host_ifname, "up"])?;
    pod.ip(&["link", "set", "lo", "up"])?;
    pod.ip(&["link", "set", "eth0", "up"])
}

/// Ethernet address of an interface.
///
/// # Errors
/// When there is no such interface.
pub fn mac(namespace: &Namespace, ifname: &str) -> Result<String> {
    let links = namespace.ip_json(&["link", "show", "dev", ifname])?;
    let mac = links[0]["address"].as_str();
    mac.map(str::to_owned).with_context(|| format!("{ifname} has no Ethernet address"))
}

/// What an interface has sent and received, as its kernel counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounts {
    /// Packets received; a super-packet is one.
    pub rx: u64,
    /// Packets sent.
    pub tx: u64,
    /// Bytes received, with Ethernet headers.
    pub rx_bytes: u64,
}

impl InterfaceCounts {
    /// Of `eth0` in a pod.
    ///
    /// # Errors
    /// When there is no such interface.
    pub fn of(pod: &Namespace) -> Result<InterfaceCounts> {
        let text = pod.within(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
        InterfaceCounts::parse(&text)
    }

    fn parse(text: &str) -> Result<InterfaceCounts> {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix("eth0:"));
        let Some(line) = line else { bail!("the pod has no eth0") };
        let columns: Vec<u64> = line.split_whitespace().flat_map(str::parse).collect();
        // Received: bytes packets errs drop fifo frame compressed multicast; sent: bytes packets.
        let column = |index| columns.get(index).copied().context("a column of /proc/net/dev");
        Ok(InterfaceCounts { rx: column(1)?, tx: column(9)?, rx_bytes: column(0)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop
    lo:       1       2    0    0    0     0          0         0        3       4    0    0
  eth0:     746      17    0    0    0     0          0         0     9086      23    0    0
";

    #[test]
    fn bytes_are_the_first_column_and_packets_the_second_one_of_each_direction() {
        let counts = InterfaceCounts::parse(DEV).expect("parse");
        assert_eq!(counts, InterfaceCounts { rx: 17, tx: 23, rx_bytes: 746 });
    }

    #[test]
    fn a_pod_without_eth0_has_no_counts() {
        assert!(InterfaceCounts::parse("lo: 1 2 3 4 5 6 7 8 9 10").is_err());
    }
}
