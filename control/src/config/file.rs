//! The TOML of the configuration file, and the checks that turn it into a [`Config`].
//!
//! Every value keeps its place in the text, so that a refusal can name the line.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use toml::Spanned;

use super::source::Source;
use super::{
    Config, ConfigError, DIRECT_MAX, Daemon, FLOWS_DEFAULT, FLOWS_MAX, FLOWS_MIN,
    FLOWS_PER_POD_MIN, FLOWS_PER_POD_PART, FRAMES_DEFAULT, FRAMES_MAX, FRAMES_MIN, MTU_DEFAULT,
    MTU_MAX, MTU_MIN, Nat, Node, POD_CIDRS_MAX, PortMode, SOCKET_PATH_BYTES_MAX, Shaping,
    UPLINKS_MAX, Uplink, Workers,
};
use crate::ipam;
use crate::workers::UPLINK_PORTS_MAX;

/// Bytes of an interface name, its final zero included (`IFNAMSIZ`, linux/if.h).
const IFNAME_BYTES: usize = 16;

/// Prefixes that no pod can live in, with the reason.
const UNUSABLE: [(IpNet, &str); 7] = [
    (v4([0, 0, 0, 0], 8), "\"this network\", RFC 1122 §3.2.1.3"),
    (v4([127, 0, 0, 0], 8), "loopback, RFC 1122 §3.2.1.3"),
    (v4([169, 254, 0, 0], 16), "link-local, RFC 3927, where the pods' gateway is"),
    (v4([224, 0, 0, 0], 3), "multicast and reserved, RFC 5771 and RFC 1112 §4"),
    (v6(0, 8), "reserved with loopback and mapped IPv4, RFC 4291 §2.5"),
    (v6(0xfe80, 10), "link-local, RFC 4291 §2.5.6, where the pods' gateway is"),
    (v6(0xff00, 8), "multicast, RFC 4291 §2.7"),
];

const fn v4(address: [u8; 4], prefix_len: u8) -> IpNet {
    let [a, b, c, d] = address;
    IpNet::V4(Ipv4Net::new_assert(std::net::Ipv4Addr::new(a, b, c, d), prefix_len))
}

const fn v6(first_group: u16, prefix_len: u8) -> IpNet {
    let address = std::net::Ipv6Addr::new(first_group, 0, 0, 0, 0, 0, 0, 0);
    IpNet::V6(Ipv6Net::new_assert(address, prefix_len))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    node: Option<Spanned<NodeTable>>,
    #[serde(default)]
    workers: WorkersTable,
    #[serde(default)]
    uplink: UplinkTable,
    #[serde(default)]
    nat: NatTable,
    #[serde(default)]
    shaping: ShapingTable,
    #[serde(default)]
    daemon: DaemonTable,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NodeTable {
    pod_cidrs: Option<Spanned<Vec<Spanned<String>>>>,
    mtu: Option<Spanned<i64>>,
    masquerade: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct WorkersTable {
    cores: Option<Spanned<Vec<Spanned<i64>>>>,
    frames: Option<Spanned<i64>>,
    port_mode: Option<PortMode>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct UplinkTable {
    interfaces: Option<Vec<Spanned<String>>>,
    channels: Option<Spanned<i64>>,
    direct: Option<Vec<Spanned<String>>>,
    kernel: Option<Vec<Spanned<String>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NatTable {
    flows: Option<Spanned<i64>>,
    flows_per_pod: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShapingTable {
    queue: Option<Spanned<String>>,
    burst: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct DaemonTable {
    socket: Option<Spanned<String>>,
    state_dir: Option<Spanned<String>>,
    bpf_dir: Option<Spanned<String>>,
    metrics: Option<Spanned<String>>,
}

/// Checks the whole file.
pub(super) fn parse(text: &str, path: &Path, usable: &[usize]) -> Result<Config, ConfigError> {
    let source = Source { text, path };
    let file: ConfigFile = toml::from_str(text).map_err(|error| source.malformed(error))?;
    let ConfigFile { node, workers, uplink, nat, shaping, daemon } = file;
    let node = check_node(&source, node)?;
    let workers = check_workers(&source, workers, usable)?;
    Ok(Config {
        uplink: check_uplink(&source, uplink, &node.pod_cidrs)?,
        nat: check_nat(&source, nat, workers.cores.len())?,
        workers,
        shaping: Shaping {
            queue: source.duration("shaping.queue", shaping.queue, Duration::from_millis(25))?,
            burst: source.duration("shaping.burst", shaping.burst, Duration::from_millis(50))?,
        },
        daemon: check_daemon(&source, daemon)?,
        node,
    })
}

fn check_node(source: &Source, table: Option<Spanned<NodeTable>>) -> Result<Node, ConfigError> {
    const KEY: &str = "node.pod_cidrs";
    let missing = "is missing; name the prefixes of this node's pods, as in \
                   pod_cidrs = [\"10.244.1.0/24\"]";
    let table = table.ok_or_else(|| source.refuse(KEY, 0..0, missing))?;
    let span = table.span();
    let NodeTable { pod_cidrs, mtu, masquerade } = table.into_inner();
    let cidrs = pod_cidrs.ok_or_else(|| source.refuse(KEY, span, missing))?;
    let span = cidrs.span();
    let cidrs = cidrs.into_inner();
    if cidrs.is_empty() || cidrs.len() > POD_CIDRS_MAX {
        let problem = format!("has {} prefixes; name 1 to {POD_CIDRS_MAX} of them", cidrs.len());
        return Err(source.refuse(KEY, span, problem));
    }
    let mut pod_cidrs: Vec<IpNet> = Vec::with_capacity(cidrs.len());
    for cidr in &cidrs {
        let net = check_pod_cidr(source, KEY, cidr)?;
        if let Some(other) = pod_cidrs.iter().find(|other| overlap(&net, other)) {
            let problem = format!("{net} overlaps {other}; keep one of them");
            return Err(source.refuse(KEY, cidr.span(), problem));
        }
        pod_cidrs.push(net);
    }
    Ok(Node {
        pod_cidrs,
        mtu: match mtu {
            None => None,
            Some(_) => Some(source.number("node.mtu", mtu, MTU_DEFAULT, MTU_MIN..=MTU_MAX)?),
        },
        masquerade: masquerade.unwrap_or(true),
    })
}

fn check_pod_cidr(
    source: &Source,
    key: &str,
    cidr: &Spanned<String>,
) -> Result<IpNet, ConfigError> {
    let net = source.prefix(key, cidr)?;
    if let Some((unusable, reason)) = UNUSABLE.iter().find(|(other, _)| overlap(&net, other)) {
        let problem =
            format!("{net} overlaps {unusable} ({reason}); choose a prefix that pods can use");
        return Err(source.refuse(key, cidr.span(), problem));
    }
    if ipam::usable(net).is_none() {
        let problem = format!(
            "{net} has no address for a pod; use an IPv4 prefix of at most /30 or an IPv6 \
             prefix of at most /127"
        );
        return Err(source.refuse(key, cidr.span(), problem));
    }
    Ok(net)
}

fn check_workers(
    source: &Source,
    table: WorkersTable,
    usable: &[usize],
) -> Result<Workers, ConfigError> {
    let WorkersTable { cores, frames, port_mode } = table;
    let frames_key = "workers.frames";
    let frames_span = frames.as_ref().map(Spanned::span).unwrap_or_default();
    let frames = source.number(frames_key, frames, FRAMES_DEFAULT, FRAMES_MIN..=FRAMES_MAX)?;
    if !frames.is_power_of_two() {
        let nearest = frames.next_power_of_two();
        let problem = format!("{frames} is not a power of two; use {nearest}");
        return Err(source.refuse(frames_key, frames_span, problem));
    }
    Ok(Workers {
        cores: check_cores(source, cores, usable)?,
        frames,
        port_mode: port_mode.unwrap_or(PortMode::Auto),
    })
}

fn check_cores(
    source: &Source,
    value: Option<Spanned<Vec<Spanned<i64>>>>,
    usable: &[usize],
) -> Result<Vec<usize>, ConfigError> {
    const KEY: &str = "workers.cores";
    let Some(value) = value else {
        // The last one: interrupts and the rest of the node gather on the first.
        let last = usable.last().copied();
        return last.map(|core| vec![core]).ok_or_else(|| {
            source.refuse(KEY, 0..0, "the process may use no core; widen its CPU affinity")
        });
    };
    if value.get_ref().is_empty() {
        let problem = "is empty; name at least one core or leave the key out";
        return Err(source.refuse(KEY, value.span(), problem));
    }
    let most = dataplane::xsk::program::WORKERS_MAX as usize;
    if value.get_ref().len() > most {
        let problem = format!("names more than {most} cores; one worker per core, {most} at most");
        return Err(source.refuse(KEY, value.span(), &problem));
    }
    let mut cores = Vec::with_capacity(value.get_ref().len());
    for core in value.get_ref() {
        let number = *core.get_ref();
        let found = usize::try_from(number).ok().filter(|core| usable.contains(core));
        let Some(found) = found else {
            let problem = format!(
                "core {number} is not one that this process may use; choose from {usable:?}"
            );
            return Err(source.refuse(KEY, core.span(), problem));
        };
        if cores.contains(&found) {
            let problem = format!("core {number} is named twice; name it once");
            return Err(source.refuse(KEY, core.span(), problem));
        }
        cores.push(found);
    }
    Ok(cores)
}

fn check_uplink(
    source: &Source,
    table: UplinkTable,
    pod_cidrs: &[IpNet],
) -> Result<Uplink, ConfigError> {
    let UplinkTable { interfaces, channels, direct, kernel } = table;
    let interfaces = check_interfaces(source, interfaces.unwrap_or_default())?;
    let channels = match channels {
        None => None,
        Some(given) => {
            let most = u32::from(UPLINK_PORTS_MAX);
            Some(source.number("uplink.channels", Some(given), 1, 1..=most)?)
        }
    };
    let beyond = direct.as_ref().and_then(|list| list.get(DIRECT_MAX)).map(Spanned::span);
    let direct = match direct {
        Some(list) => source.prefixes("uplink.direct", &list)?,
        None => pod_cidrs.to_vec(),
    };
    let key = "uplink.kernel";
    let list = kernel.unwrap_or_default();
    let kernel = source.prefixes(key, &list)?;
    for (key, nets, beyond) in [
        ("uplink.direct", &direct, beyond),
        (key, &kernel, list.get(DIRECT_MAX).map(Spanned::span)),
    ] {
        if let Some(span) = beyond {
            let problem = format!("{} prefixes are more than {DIRECT_MAX}; join some", nets.len());
            return Err(source.refuse(key, span, problem));
        }
    }
    for (net, written) in kernel.iter().zip(&list) {
        if !direct.iter().any(|other| overlap(net, other)) {
            let problem = format!(
                "{net} is in none of the direct prefixes and so the kernel's already; remove it"
            );
            return Err(source.refuse(key, written.span(), problem));
        }
    }
    Ok(Uplink { interfaces, channels, direct, kernel })
}

fn check_interfaces(
    source: &Source,
    list: Vec<Spanned<String>>,
) -> Result<Vec<String>, ConfigError> {
    const KEY: &str = "uplink.interfaces";
    let mut names: Vec<String> = Vec::with_capacity(list.len());
    for written in list {
        let name = written.get_ref();
        let problem = if name.is_empty() || name.len() >= IFNAME_BYTES {
            Some(format!("\"{name}\" is no name of an interface; see ip link"))
        } else if names.contains(name) {
            Some(format!("{name} is named twice; name it once"))
        } else if names.len() == UPLINKS_MAX {
            Some(format!("there are more than {UPLINKS_MAX} interfaces; leave some to the kernel"))
        } else {
            None
        };
        if let Some(problem) = problem {
            return Err(source.refuse(KEY, written.span(), problem));
        }
        names.push(written.into_inner());
    }
    Ok(names)
}

fn check_nat(source: &Source, table: NatTable, workers: usize) -> Result<Nat, ConfigError> {
    let NatTable { flows, flows_per_pod } = table;
    let flows = source.number("nat.flows", flows, FLOWS_DEFAULT, FLOWS_MIN..=FLOWS_MAX)?;
    let part = (flows / workers as u32 / FLOWS_PER_POD_PART).max(FLOWS_PER_POD_MIN);
    let range = FLOWS_PER_POD_MIN..=FLOWS_MAX;
    let flows_per_pod = source.number("nat.flows_per_pod", flows_per_pod, part, range)?;
    Ok(Nat { flows, flows_per_pod })
}

fn check_daemon(source: &Source, table: DaemonTable) -> Result<Daemon, ConfigError> {
    let DaemonTable { socket, state_dir, bpf_dir, metrics } = table;
    let socket_span = socket.as_ref().map(Spanned::span).unwrap_or_default();
    let socket = source.path("daemon.socket", socket, "/run/viaduct/viaduct.sock")?;
    let len = socket.as_os_str().len();
    if len > SOCKET_PATH_BYTES_MAX {
        let problem =
            format!("has {len} bytes; a unix socket's path has at most {SOCKET_PATH_BYTES_MAX}");
        return Err(source.refuse("daemon.socket", socket_span, problem));
    }
    Ok(Daemon {
        socket,
        state_dir: source.path("daemon.state_dir", state_dir, "/run/viaduct")?,
        bpf_dir: source.path("daemon.bpf_dir", bpf_dir, "/sys/fs/bpf/viaduct")?,
        metrics: check_metrics(source, metrics)?,
    })
}

fn check_metrics(
    source: &Source,
    value: Option<Spanned<String>>,
) -> Result<Option<SocketAddr>, ConfigError> {
    let Some(value) = value else {
        return Ok(Some(SocketAddr::from(([127, 0, 0, 1], 9477))));
    };
    let text = value.get_ref();
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| {
        let problem = format!(
            "{text:?} is not an address with a port; write it like \"127.0.0.1:9477\" or \
             \"[::1]:9477\", or \"\" for none"
        );
        source.refuse("daemon.metrics", value.span(), problem)
    })
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}
