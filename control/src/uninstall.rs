//! Leaves a node as it was before the daemon first started: devices, routes, rules, the nft table,
//! pins, files, and every sysctl of the node with its original value.

use std::fs;
use std::io;
use std::path::Path;

use dataplane::xsk::program::Programs;

use crate::config::Config;
use crate::endpoint::{HostSide, detach};
use crate::flows;
use crate::netlink::{Netlink, Request};
use crate::nft::NftTable;
use crate::node::{COOKIE_PREFIX, HOST_IFNAME_PREFIX, NodePort, ROUTE_PROTOCOL};
use crate::sysctl::SysctlLog;
use crate::uplink::channels::{CHANNELS_FILE, ChannelLog};

/// Takes everything away, pods' interfaces included. Goes on after an error; returns the number
/// of steps that failed, each of which was logged. May be called again.
pub fn uninstall(config: &Config) -> usize {
    let mut failed = 0;
    let mut step = |what: &str, result: anyhow::Result<()>| {
        if let Err(error) = result {
            tracing::error!("{what}: {error:#}");
            failed += 1;
        }
    };
    step("delete host ends", delete_host_ends());
    step("detach programs", unpin(&config.daemon.bpf_dir));
    step("let go of neighbors", release_neighbors());
    let channels = ChannelLog::at(config.daemon.state_dir.join(CHANNELS_FILE));
    for error in channels.restore() {
        step("put channels back", Err(error.into()));
    }
    step("remove the nft table", NftTable::open().and_then(|mut t| t.remove()).map_err(Into::into));
    match SysctlLog::open(&config.daemon.state_dir.join("sysctls")) {
        Ok(mut sysctls) => {
            for error in NodePort::remove(&mut sysctls) {
                step("remove the node port", Err(error.into()));
            }
        }
        Err(error) => step("read the originals of sysctls", Err(error.into())),
    }
    step("remove files of flows", flows::remove_all(&config.daemon.state_dir).map_err(Into::into));
    for file in ["journal", "sysctls", CHANNELS_FILE] {
        step("remove files", remove(&config.daemon.state_dir.join(file)));
    }
    failed
}

fn delete_host_ends() -> anyhow::Result<()> {
    let mut host = HostSide::open()?;
    for link in Netlink::open()?.links()? {
        let alias = link.alias.unwrap_or_default();
        if link.name.starts_with(HOST_IFNAME_PREFIX) && alias.starts_with(COOKIE_PREFIX) {
            detach(&mut host, &link.name, &alias)?;
        }
    }
    Ok(())
}

/// The routers that the kernel keeps resolved for us are ordinary neighbors again.
fn release_neighbors() -> anyhow::Result<()> {
    let mut netlink = Netlink::open()?;
    let neighbors = netlink.neighbors(None)?.into_iter();
    let ours = neighbors.filter(|at| at.managed && at.protocol == ROUTE_PROTOCOL);
    let requests: Vec<Request> =
        ours.map(|at| Request::use_neighbor(at.index, at.address)).collect();
    if !requests.is_empty() {
        netlink.execute(requests)?;
    }
    Ok(())
}

/// Pinned links first: a program that is still attached keeps its maps.
fn unpin(bpf_dir: &Path) -> anyhow::Result<()> {
    if !bpf_dir.exists() {
        return Ok(());
    }
    let programs = Programs::load(bpf_dir)?;
    for name in programs.links()? {
        programs.detach(&name)?;
    }
    for name in programs.attached_uplinks()? {
        programs.detach_uplink(&name)?;
    }
    drop(programs);
    Ok(fs::remove_dir_all(bpf_dir)?)
}

fn remove(file: &Path) -> anyhow::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
