//! Cables between namespaces: veth pairs that are like a wire.

use anyhow::{Context, Result, ensure};

use crate::daemon::ip;
use crate::netns::Namespace;

/// What the ends of a cable leave to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// Nothing: what is sent has complete checksums and is no longer than the MTU, as on a wire.
    Off,
    /// Checksums and cutting, as between the containers of one machine (kind).
    On,
}

impl Offloads {
    /// Switches for `ethtool -K`. `tx` turns off all segmentation that needs a checksum: TCP's
    /// and UDP's; `gso` what the kernel does late in its place; `gro` the merging of what came;
    /// `txvlan` tags that stand beside the frame and not in it.
    fn switches(self) -> &'static str {
        match self {
            Offloads::Off => "tx off tso off gso off gro off txvlan off",
            Offloads::On => "tx on tso on gso on",
        }
    }
}

/// A kind of cable.
#[derive(Clone, Copy, Debug)]
pub struct Cable {
    /// Queues at each end, in both directions.
    pub queues: u32,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// What the ends leave to each other.
    pub offloads: Offloads,
}

impl Cable {
    /// Lays it between two namespaces; both ends are up.
    ///
    /// # Errors
    /// When a name is taken.
    pub fn lay(self, one: (&Namespace, &str), other: (&Namespace, &str)) -> Result<()> {
        let Cable { queues, mtu, offloads } = self;
        let queues = format!("mtu {mtu} numtxqueues {queues} numrxqueues {queues}");
        let there = other.0.path().file_name().context("a named namespace")?.to_string_lossy();
        let peer = format!("peer name {} {queues} netns {there}", other.1);
        ip(one.0, &format!("link add {} {queues} type veth {peer}", one.1))?;
        for (namespace, ifname) in [one, other] {
            let switches = offloads.switches().split_whitespace();
            let words: Vec<&str> = ["-K", ifname].into_iter().chain(switches).collect();
            let output = namespace.run("ethtool", &words)?;
            ensure!(output.status.success(), "ethtool {}: {output:?}", words.join(" "));
            // So that nothing changes by itself a second later.
            set_sysctl(namespace, &format!("net.ipv6.conf.{ifname}.accept_dad"), "0")?;
            ip(namespace, &format!("link set {ifname} up"))?;
        }
        Ok(())
    }
}

/// Writes a setting of a namespace's network.
///
/// # Errors
/// When there is no such setting.
pub fn set_sysctl(namespace: &Namespace, key: &str, value: &str) -> Result<()> {
    let output = namespace.run("sysctl", &["-qw", &format!("{key}={value}")])?;
    ensure!(output.status.success(), "set {key} to {value}: {output:?}");
    Ok(())
}

/// Ethernet address of an interface.
///
/// # Errors
/// When there is no such interface.
pub fn mac_of(namespace: &Namespace, ifname: &str) -> Result<[u8; 6]> {
    let links = namespace.ip_json(&["link", "show", "dev", ifname])?;
    crate::pod::parse_mac(links[0]["address"].as_str().context("an Ethernet address")?)
}
