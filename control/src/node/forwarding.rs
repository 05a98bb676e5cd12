//! Turns the node into a router, remembering what it was.

use crate::sysctl::{self, SysctlError, SysctlLog};
use std::fs;

/// Names under `conf` that are no interfaces.
const TEMPLATES: [&str; 2] = ["all", "default"];

/// Turns IPv4 forwarding on in the namespace of the calling thread.
pub(super) fn forward_ipv4(log: &mut SysctlLog) -> Result<(), SysctlError> {
    const SWITCH: &str = "ipv4/ip_forward";
    if sysctl::read(SWITCH)?.is_none_or(|now| now == "1") {
        return Ok(());
    }
    // The switch sets these with it, and would again when it is put back (net/ipv4/devinet.c,
    // inet_forward_change). Recorded before it, they are restored after it.
    for name in names("ipv4/conf")?.iter().filter(|name| *name != "all") {
        log.remember(&format!("ipv4/conf/{name}/forwarding"))?;
    }
    log.remember("ipv4/conf/all/accept_redirects")?;
    log.change(SWITCH, "1")?;
    Ok(())
}

/// Turns IPv6 forwarding on, without taking the node's own default router away: an interface
/// that listens to router advertisements as a host (`accept_ra=1`) would stop to, so it gets
/// `accept_ra=2` first (ip-sysctl.rst, `accept_ra`).
///
/// Interfaces that appear later do not inherit that: among them are other people's veths, whose
/// containers could then announce themselves as the node's router.
pub(super) fn forward_ipv6(log: &mut SysctlLog) -> Result<(), SysctlError> {
    const SWITCH: &str = "ipv6/conf/all/forwarding";
    if sysctl::read(SWITCH)?.is_none_or(|now| now == "1") {
        return Ok(());
    }
    let names = names("ipv6/conf")?;
    for name in names.iter().filter(|name| !TEMPLATES.contains(&name.as_str())) {
        let accept_ra = format!("ipv6/conf/{name}/accept_ra");
        let is_host =
            sysctl::read(&format!("ipv6/conf/{name}/forwarding"))?.is_some_and(|v| v == "0");
        if is_host && sysctl::read(&accept_ra)?.is_some_and(|value| value == "1") {
            log.change(&accept_ra, "2")?;
        }
    }
    for name in names.iter().filter(|name| *name != "all") {
        log.remember(&format!("ipv6/conf/{name}/forwarding"))?;
    }
    log.change(SWITCH, "1")?;
    Ok(())
}

/// The interfaces and templates that have settings, without our own: those go with the interface.
fn names(directory: &str) -> Result<Vec<String>, SysctlError> {
    let read = || {
        let mut names = Vec::new();
        for entry in fs::read_dir(format!("/proc/sys/net/{directory}"))? {
            names.extend(entry?.file_name().into_string());
        }
        Ok(names)
    };
    let mut names =
        read().map_err(|source| SysctlError::Read { key: directory.to_owned(), source })?;
    names.retain(|name| !is_ours(name));
    Ok(names)
}

fn is_ours(name: &str) -> bool {
    let digits = name.strip_prefix(super::HOST_IFNAME_PREFIX).unwrap_or("");
    let host_end = digits.len() == 12 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    name == super::NODE_IFNAME || name == super::WORKER_IFNAME || host_end
}

#[cfg(test)]
mod tests {
    use super::is_ours;

    #[test]
    fn only_names_we_make_are_ours() {
        for name in ["viaduct0", "viaduct1", "vd0123456789ab"] {
            assert!(is_ours(name), "{name}");
        }
        for name in ["eth0", "vda", "vd", "viaduct2", "vd0123456789abc", "vd0123456789ag"] {
            assert!(!is_ours(name), "{name}");
        }
    }
}
