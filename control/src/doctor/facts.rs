//! What checks are made on: plain values, so that a test can make up any machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use dataplane::xsk::socket::SocketFeatures;
use ipnet::IpNet;

use crate::config::Config;
use crate::ethtool::Channels;
use crate::netdev::XdpFeatures;
use crate::netlink::{Address, Link, Policy, Route, Rule};
use crate::nft::ForwardChain;
use crate::node::COOKIE_PREFIX;
use crate::report::Status;

/// `RT_TABLE_MAIN` (linux/rtnetlink.h).
pub(super) const TABLE_MAIN: u32 = 254;

/// A fact, or in words why it could not be read.
pub type Read<T> = Result<T, String>;

/// Where to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// The daemon's configuration file.
    pub config: PathBuf,
    /// The daemon's socket; `None` is the one that the configuration names.
    pub socket: Option<PathBuf>,
    /// Directory of the container runtime's CNI configurations.
    pub cni_conf: PathBuf,
    /// Directory of CNI plugins.
    pub cni_bin: PathBuf,
}

/// Everything that was read, at one time.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The configuration file.
    pub config_path: PathBuf,
    /// What it says, or why it is refused.
    pub config: Read<Config>,
    /// Kernel, rights and resources.
    pub machine: Machine,
    /// The network namespace this was called in.
    pub network: Network,
    /// What the container runtime reads and executes.
    pub cni: Cni,
    /// systemd-networkd, if it runs and sees this network namespace.
    pub networkd: Option<Networkd>,
    /// The daemon.
    pub daemon: Daemon,
}

/// Kernel, rights and resources.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Release of the kernel, as in `uname -r`.
    pub release: String,
    /// Effective capabilities of this process, a bit each (capabilities(7)).
    pub capabilities: Read<u64>,
    /// Most bytes that an unprivileged process may lock; `None` is no limit.
    pub locked_bytes_max: Option<u64>,
    /// What AF_XDP sockets can do here.
    pub sockets: Read<SocketFeatures>,
    /// Whether the kernel has its own type information (BTF).
    pub btf: bool,
    /// Directory for BPF pins.
    pub bpf_dir: PathBuf,
    /// Whether pins in it would stay; if not, why and what to do.
    pub bpf_dir_fits: Read<()>,
    /// Free hugepages of 2 MiB.
    pub hugepages_free: Read<u64>,
    /// Cores that are online.
    pub online: Read<BTreeSet<usize>>,
    /// Cores that the scheduler leaves alone (`isolcpus=`).
    pub isolated: Read<BTreeSet<usize>>,
    /// Modules that are needed, and whether the kernel has each.
    pub modules: BTreeMap<&'static str, Read<bool>>,
}

/// A network namespace.
#[derive(Clone, Debug)]
pub struct Network {
    /// Interfaces.
    pub links: Read<Vec<Link>>,
    /// Their addresses.
    pub addresses: Read<Vec<Address>>,
    /// Routes of the main table and of ours.
    pub routes: Read<Vec<Route>>,
    /// Policy routing rules.
    pub rules: Read<Vec<Rule>>,
    /// The same in full.
    pub policies: Read<Vec<Policy>>,
    /// Those interfaces that the configuration names as uplinks, as far as they are there.
    pub nics: Vec<Nic>,
    /// For the name of each interface of ours, the XDP program that we pinned for it.
    pub pinned: BTreeMap<String, u32>,
    /// Settings by their path below `/proc/sys/net`; one that the kernel lacks is not there.
    pub settings: BTreeMap<String, String>,
    /// Whether our nf_tables table is there.
    pub nft_table: Read<bool>,
    /// Chains that drop what is forwarded, unless a rule accepts it.
    pub dropping: Read<Vec<ForwardChain>>,
    /// Tables of the older iptables, whose rules are not read.
    pub legacy_tables: Vec<String>,
}

/// What is to be known of an uplink beside its [`Link`].
#[derive(Clone, Debug)]
pub struct Nic {
    /// Name of the interface.
    pub name: String,
    /// Name of its driver, if that can be told.
    pub driver: Option<String>,
    /// Its channels; `None` if its driver has none to tell of.
    pub channels: Read<Option<Channels>>,
    /// What its driver can do; `None` if this kernel does not tell.
    pub xdp: Read<Option<XdpFeatures>>,
    /// Names of the offload features that are on.
    pub features: Read<BTreeSet<String>>,
    /// Of a virtio device: what it and the driver have agreed on.
    pub virtio: Option<VirtioFeatures>,
    /// The XDP program that we pinned for it.
    pub pinned: Option<u32>,
}

/// Features of a virtio device by their numbers (VIRTIO 1.2, 5.1.3 and 6).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VirtioFeatures(pub BTreeSet<usize>);

impl Network {
    /// A setting, or an empty text.
    pub(super) fn setting(&self, key: &str) -> &str {
        self.settings.get(key).map_or("", String::as_str)
    }

    /// Interfaces that we made, as far as interfaces can be listed.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().flatten().filter(|link| is_ours(link))
    }

    /// The interface of ours with this name.
    pub(super) fn our_link(&self, name: &str) -> Option<&Link> {
        self.ours().find(|link| link.name == name)
    }
}

/// Whether we made an interface.
pub(super) fn is_ours(link: &Link) -> bool {
    link.alias.as_deref().is_some_and(|alias| alias.starts_with(COOKIE_PREFIX))
}

/// What the container runtime reads and executes.
#[derive(Clone, Debug)]
pub struct Cni {
    /// Directory of its configurations.
    pub conf_dir: PathBuf,
    /// The lists of plugins in it, or why they cannot be read.
    pub lists: Read<Vec<PluginList>>,
    /// Directory of plugins.
    pub bin_dir: PathBuf,
    /// Whether the loopback plugin is in it and can be executed.
    pub loopback: Read<bool>,
}

/// A file of the container runtime's CNI configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginList {
    /// The file.
    pub path: PathBuf,
    /// Types of its plugins, in the order of their calls, or why they cannot be told.
    pub types: Read<Vec<String>>,
}

/// What systemd-networkd does with routes and rules that are not its own (networkd.conf(5)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Networkd {
    /// `ManageForeignRoutes`: it removes them.
    pub removes_routes: bool,
    /// `ManageForeignRoutingPolicyRules`: likewise.
    pub removes_rules: bool,
}

/// The daemon.
#[derive(Clone, Debug)]
pub struct Daemon {
    /// Where it was asked.
    pub socket: PathBuf,
    /// What it says of itself, or why it does not.
    pub status: Read<Status>,
    /// Whether a daemon runs in this network namespace.
    pub here: Read<bool>,
}

impl Facts {
    /// Prefixes of the node's pods: those of the configuration, else those of the daemon.
    pub(super) fn pod_cidrs(&self) -> Vec<IpNet> {
        match (&self.config, &self.daemon.status) {
            (Ok(config), _) => config.node.pod_cidrs.iter().map(IpNet::trunc).collect(),
            (Err(_), Ok(status)) => status.pod_cidrs.iter().map(IpNet::trunc).collect(),
            (Err(_), Err(_)) => Vec::new(),
        }
    }
}
