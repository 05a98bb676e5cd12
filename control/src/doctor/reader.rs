//! Reads the facts: the machine, and the network namespace of this process. Changes nothing, and
//! what cannot be read is a fact without a value, not an error.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};

use cni_bridge::spec::conf::SOCKET_DEFAULT;
use dataplane::xsk::program::{check_bpf_dir, pinned_program};
use dataplane::xsk::socket::probe;
use rustix::process::{Resource, getrlimit};

use super::facts::{Daemon, Facts, Machine, Network, Places, Read, TABLE_MAIN, is_ours};
use super::settings::TCP_LOOSE;
use super::{nic, others};
use crate::config::Config;
use crate::netlink::{Link, Netlink, NetlinkError};
use crate::nft::{NftError, NftTable};
use crate::node::ROUTE_TABLE;
use crate::report::Status;
use crate::sysctl;

/// Where pins go without a configuration that says otherwise.
const BPF_DIR_DEFAULT: &str = "/sys/fs/bpf/viaduct";

/// Modules of nf_tables that our table needs, and that of the list of the kernel's flows, by the
/// names of their files.
const MODULES: [&str; 8] = [
    "nf_conntrack",
    "nf_conntrack_netlink",
    "nf_tables",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
];

/// What marks the lock of a daemon in the list of unix sockets of a network namespace.
const LOCK: &str = "@viaductd";

impl Facts {
    /// Looks at everything once. `ask` gets the status of the daemon that listens on a socket.
    #[must_use]
    pub fn read(places: &Places, ask: impl FnOnce(&Path) -> Read<Status>) -> Facts {
        let config = Config::load(&places.config).map_err(words);
        let of_config = |path: fn(&Config) -> &PathBuf, default: &str| {
            config.as_ref().map_or_else(|_| PathBuf::from(default), |config| path(config).clone())
        };
        let bpf_dir = of_config(|config| &config.daemon.bpf_dir, BPF_DIR_DEFAULT);
        let named = places.socket.clone();
        let socket =
            named.unwrap_or_else(|| of_config(|config| &config.daemon.socket, SOCKET_DEFAULT));
        Facts {
            config_path: places.config.clone(),
            machine: machine(bpf_dir.clone()),
            network: network(&bpf_dir, config.as_ref().map_or(&[], |c| &c.uplink.interfaces)),
            cni: others::cni(places),
            networkd: others::networkd(Path::new("/")),
            daemon: Daemon { status: ask(&socket), here: daemon_is_here(), socket },
            config,
        }
    }
}

fn words(error: impl Display) -> String {
    error.to_string()
}

fn text(path: &str) -> Read<String> {
    fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))
}

fn machine(bpf_dir: PathBuf) -> Machine {
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    Machine {
        capabilities: text("/proc/self/status").and_then(|status| capabilities(&status)),
        locked_bytes_max: getrlimit(Resource::Memlock).current,
        sockets: probe().map_err(words),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        bpf_dir_fits: check_bpf_dir(&bpf_dir).map_err(words),
        bpf_dir,
        hugepages_free: text("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
            .and_then(|free| free.trim().parse().map_err(words)),
        online: text("/sys/devices/system/cpu/online").and_then(|list| cpu_list(&list)),
        isolated: text("/sys/devices/system/cpu/isolated").and_then(|list| cpu_list(&list)),
        modules: modules(&release),
        release,
    }
}

/// The line `CapEff` (proc_pid_status(5)).
fn capabilities(status: &str) -> Read<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    held.ok_or_else(|| "/proc/self/status does not tell the capabilities".to_owned())
}

/// A list such as `0-3,8` (cpuset(7), "List format").
fn cpu_list(list: &str) -> Read<BTreeSet<usize>> {
    let mut cpus = BTreeSet::new();
    for range in list.trim().split(',').filter(|range| !range.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) => cpus.extend(first..=last),
            _ => return Err(format!("the kernel's list of cores has {range:?} in it")),
        }
    }
    Ok(cpus)
}

/// Which modules the kernel has: built in, loaded, or on disk, to be loaded when they are needed.
fn modules(release: &str) -> BTreeMap<&'static str, Read<bool>> {
    let folder = format!("/lib/modules/{release}");
    let files = ["builtin", "dep"].map(|which| text(&format!("{folder}/modules.{which}")).ok());
    let has = |name: &str| {
        if Path::new("/sys/module").join(name).exists() {
            return Ok(true);
        }
        match files.iter().flatten().any(|list| lists_module(list, name)) {
            true => Ok(true),
            false if files.iter().any(Option::is_some) => Ok(false),
            false => Err(format!("there is no list of the kernel's modules in {folder}")),
        }
    };
    MODULES.map(|name| (name, has(name))).into()
}

/// Whether a list of modules.dep(5) or modules.builtin has one: a path per line, up to a colon.
fn lists_module(list: &str, name: &str) -> bool {
    list.lines().any(|line| {
        let path = line.split(':').next().unwrap_or_default();
        let file = path.rsplit('/').next().unwrap_or_default();
        file.split('.').next().is_some_and(|stem| stem.replace('-', "_") == name)
    })
}

fn network(bpf_dir: &Path, uplinks: &[String]) -> Network {
    let mut netlink = Netlink::open().map_err(words);
    let mut links = list(&mut netlink, Netlink::links);
    if let Ok(links) = &mut links {
        links.sort_by_key(|link| link.index);
    }
    let routes = list(&mut netlink, |netlink| {
        let mut routes = netlink.routes(Some(TABLE_MAIN))?;
        routes.extend(netlink.routes(Some(ROUTE_TABLE))?);
        Ok(routes)
    });
    let mut nft = NftTable::open().map_err(words);
    let pinned = links
        .iter()
        .flatten()
        .filter(|link| is_ours(link))
        .filter_map(|link| Some((link.name.clone(), pinned_program(bpf_dir, &link.name)?)));
    Network {
        pinned: pinned.collect(),
        settings: settings(links.as_deref().unwrap_or_default(), uplinks),
        addresses: list(&mut netlink, Netlink::addresses),
        rules: list(&mut netlink, Netlink::rules),
        policies: list(&mut netlink, Netlink::policies),
        nics: nic::read(uplinks, links.as_deref().unwrap_or_default(), bpf_dir),
        nft_table: ask_nft(&mut nft, NftTable::present),
        dropping: ask_nft(&mut nft, NftTable::dropping_forward_chains),
        legacy_tables: legacy_tables(),
        links,
        routes,
    }
}

fn list<T>(
    netlink: &mut Read<Netlink>,
    read: impl FnOnce(&mut Netlink) -> Result<T, NetlinkError>,
) -> Read<T> {
    read(netlink.as_mut().map_err(|why| why.clone())?).map_err(words)
}

fn ask_nft<T>(
    nft: &mut Read<NftTable>,
    read: impl FnOnce(&mut NftTable) -> Result<T, NftError>,
) -> Read<T> {
    read(nft.as_mut().map_err(|why| why.clone())?).map_err(words)
}

fn settings(links: &[Link], uplinks: &[String]) -> BTreeMap<String, String> {
    let mut keys: Vec<String> = [
        "ipv4/ip_forward",
        "ipv6/conf/all/forwarding",
        "ipv4/conf/all/rp_filter",
        "ipv4/conf/default/rp_filter",
        TCP_LOOSE,
    ]
    .map(str::to_owned)
    .into();
    for link in links {
        let name = &link.name;
        if is_ours(link) {
            keys.push(format!("ipv4/conf/{name}/rp_filter"));
        } else {
            keys.push(format!("ipv6/conf/{name}/accept_ra"));
            keys.push(format!("ipv6/conf/{name}/forwarding"));
        }
        if uplinks.contains(name) {
            keys.push(format!("ipv4/conf/{name}/rp_filter"));
        }
    }
    // A setting that cannot be read, of an interface that went meanwhile, is as if it were not.
    let value = |key: String| Some((sysctl::read(&key).ok()??, key));
    keys.into_iter().filter_map(value).map(|(value, key)| (key, value)).collect()
}

/// Tables of iptables-legacy that are in use in this network namespace, of both families.
fn legacy_tables() -> Vec<String> {
    let files = ["/proc/self/net/ip_tables_names", "/proc/self/net/ip6_tables_names"];
    let names = files.iter().filter_map(|file| text(file).ok());
    names.flat_map(|names| names.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Whether a daemon holds the lock of this network namespace. Listed rather than tried: whoever
/// tries the lock could keep a daemon from starting.
fn daemon_is_here() -> Read<bool> {
    let sockets = text("/proc/self/net/unix")?;
    Ok(sockets.lines().any(|line| line.split_whitespace().last() == Some(LOCK)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_are_read() {
        assert_eq!(cpu_list("0-2,8\n"), Ok([0, 1, 2, 8].into()));
        assert_eq!(cpu_list("\n"), Ok(BTreeSet::new()), "nothing is isolated");
        assert!(cpu_list("0-x").is_err());
    }

    #[test]
    fn modules_are_found_by_the_stem_of_their_file() {
        let list = "kernel/net/netfilter/nft_masq.ko.xz: kernel/net/netfilter/nf_tables.ko.xz\n\
                    kernel/net/netfilter/nft-ct.ko:\n";
        assert!(lists_module(list, "nft_masq") && lists_module(list, "nft_ct"));
        assert!(!lists_module(list, "nf_tables"), "a module that another needs has its own line");
        assert!(!lists_module(list, "nft_mas"));
    }

    #[test]
    fn capabilities_are_hexadecimal() {
        assert_eq!(capabilities("Name:\tx\nCapEff:\t0000000000003000\n"), Ok(0x3000));
        assert!(capabilities("Name:\tx\n").is_err());
    }

    #[test]
    fn this_machine_can_be_read_by_anybody() {
        let places = Places {
            config: PathBuf::from("/nonexistent/viaduct.toml"),
            socket: None,
            cni_conf: PathBuf::from("/nonexistent"),
            cni_bin: PathBuf::from("/nonexistent"),
        };
        let facts = Facts::read(&places, |socket| {
            assert_eq!(socket, Path::new(SOCKET_DEFAULT));
            Err("nobody answers".to_owned())
        });
        assert!(facts.config.is_err());
        let links = facts.network.links.as_ref().expect("anybody may list interfaces");
        assert!(links.iter().any(|link| link.loopback));
        assert!(super::super::examine(&facts).len() >= super::super::CHECKS.len());
    }
}
