//! The daemon's configuration file: its keys, their defaults, and every reason to refuse one.
//!
//! Parsed once at the edge: whoever holds a [`Config`] need not check it again. A refusal names the
//! file, the line, the key and the mend, because the reader is an operator whose node is not ready.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;

mod file;
mod source;
#[cfg(test)]
mod tests;

/// Smallest route MTU in bytes: IPv6 needs it (RFC 8200 §5).
pub const MTU_MIN: u32 = 1280;
/// Largest route MTU in bytes: the longest IPv4 packet, and the device MTU of pods.
pub const MTU_MAX: u32 = 65535;
/// Route MTU in bytes on a node without uplinks: what Ethernet carries.
pub const MTU_DEFAULT: u32 = 1500;

/// Most pod CIDRs of a node: far above one or two per family, and a bound on the prefixes that the
/// XDP program and the route rules must hold.
pub const POD_CIDRS_MAX: usize = 16;

/// Most uplinks: each shares [`crate::workers::UPLINK_PORTS_MAX`] with the others.
pub const UPLINKS_MAX: usize = 8;

/// Most prefixes in `direct`, and in `kernel`: workers look through them for every packet that is
/// not for a pod of the node.
pub const DIRECT_MAX: usize = 64;

/// Fewest frames per worker: the rings of a few dozen ports.
pub const FRAMES_MIN: u32 = 4096;
/// Most frames per worker: at more, binding a socket costs over 34 ms and 33 MB of kernel memory.
pub const FRAMES_MAX: u32 = 262_144;
/// Frames per worker by default: 128 MB, and room for some two hundred ports.
pub const FRAMES_DEFAULT: u32 = 32_768;

/// Fewest entries of the flow table, below which ordinary nodes would lose connections.
pub const FLOWS_MIN: u32 = 1024;
/// Most entries of the flow table: a few GB of memory.
pub const FLOWS_MAX: u32 = 1 << 24;
/// Entries of the flow table by default.
pub const FLOWS_DEFAULT: u32 = 1 << 18;
/// Fewest flows that a pod may have: a browser's connections.
pub const FLOWS_PER_POD_MIN: u32 = 64;
/// The part of a worker's flows that one pod may have by default: a flooded one leaves most to the
/// others.
pub const FLOWS_PER_POD_PART: u32 = 4;

/// Shortest queue or burst of a shaper: below it, timer slack alone would empty the bucket.
pub const SHAPING_MIN: Duration = Duration::from_millis(1);
/// Longest queue or burst of a shaper: above it, TCP's retransmission timer (1 s at first, RFC 6298
/// §2.1) would fire while the packet still waits.
pub const SHAPING_MAX: Duration = Duration::from_secs(1);

/// Longest path of a unix socket in bytes: `sun_path` has 108, one for the final zero (unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the configuration {path}: {source}; name a readable file with --config")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel did not tell which cores the process may use.
    #[error("cannot ask the kernel which cores this process may use: {0}; run it on Linux 5.4+")]
    Affinity(io::Error),
    /// A key or value is wrong.
    #[error("{path}:{line}: {key}: {problem}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Line within the file, from 1.
        line: usize,
        /// The key with its table, as in `node.mtu`; `syntax` when the file is not TOML.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[node]`.
    pub node: Node,
    /// `[workers]`.
    pub workers: Workers,
    /// `[uplink]`.
    pub uplink: Uplink,
    /// `[nat]`.
    pub nat: Nat,
    /// `[shaping]`.
    pub shaping: Shaping,
    /// `[daemon]`.
    pub daemon: Daemon,
}

/// What the node is to its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Prefixes that embedded IPAM allocates from: 1 to [`POD_CIDRS_MAX`], none overlapping, each
    /// with at least one address for a pod.
    pub pod_cidrs: Vec<IpNet>,
    /// Route MTU in bytes, [`MTU_MIN`] to [`MTU_MAX`]; `None`: the smallest of the uplinks', and
    /// [`MTU_DEFAULT`] without uplinks.
    pub mtu: Option<u32>,
    /// Whether pod sources that leave the direct prefixes become the node's address.
    pub masquerade: bool,
}

/// The threads that forward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workers {
    /// One worker per core, in this order: at least one, each once, all usable by the process.
    pub cores: Vec<usize>,
    /// UMEM frames per worker: a power of two, [`FRAMES_MIN`] to [`FRAMES_MAX`].
    pub frames: u32,
    /// Which capabilities pod ports use.
    pub port_mode: PortMode,
}

/// Which capabilities pod ports use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortMode {
    /// All that the kernel has.
    Auto,
    /// None, as on a kernel without multi-buffer AF_XDP.
    Basic,
}

/// The way to other nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Interfaces that workers own queues of: at most [`UPLINKS_MAX`], each once.
    pub interfaces: Vec<String>,
    /// Receive queues that every one of them is set to; `None` leaves them as they are.
    pub channels: Option<u32>,
    /// Prefixes reached without address translation; by default the pod CIDRs.
    pub direct: Vec<IpNet>,
    /// Prefixes within `direct` that are left to the kernel all the same.
    pub kernel: Vec<IpNet>,
}

/// Address translation and connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nat {
    /// Entries of the flow table over all workers, [`FLOWS_MIN`] to [`FLOWS_MAX`].
    pub flows: u32,
    /// Most flows of one pod, [`FLOWS_PER_POD_MIN`] to [`FLOWS_MAX`].
    pub flows_per_pod: u32,
}

/// Bandwidth limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shaping {
    /// Longest time a packet waits, [`SHAPING_MIN`] to [`SHAPING_MAX`].
    pub queue: Duration,
    /// Time at the limit's rate that may pass at once, [`SHAPING_MIN`] to [`SHAPING_MAX`].
    pub burst: Duration,
}

/// Where the daemon meets the rest of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// The unix socket of the shim and the command line: absolute.
    pub socket: PathBuf,
    /// Directory of the journal: absolute.
    pub state_dir: PathBuf,
    /// Directory of BPF pins, on a bpffs: absolute.
    pub bpf_dir: PathBuf,
    /// Where /metrics, /healthz and /readyz are served; `None` (written `""`) is nowhere.
    pub metrics: Option<SocketAddr>,
}

impl Config {
    /// Reads and checks the file at `path`, against the cores that this thread may use.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = fs::read_to_string(path);
        let text = read.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let set = rustix::thread::sched_getaffinity(None)
            .map_err(|errno| ConfigError::Affinity(errno.into()))?;
        let cores: Vec<usize> =
            (0..rustix::thread::CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
        Config::parse(&text, path, &cores)
    }

    /// Checks `text`, which errors say is from `path`, on a machine where the process may use these
    /// cores (ascending).
    pub fn parse(text: &str, path: &Path, usable_cores: &[usize]) -> Result<Config, ConfigError> {
        file::parse(text, path, usable_cores)
    }
}
