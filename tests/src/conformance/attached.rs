//! Compares an ADD result with itself and with the kernel: what the result says must be in the
//! namespaces, and nothing else may have changed (checklist lines 15, 20 and 21).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;

use super::case::{Checked, ensure, fail};
use super::trial::Container;
use super::version::at_least;
use crate::netns::{Namespace, wait_until};

/// How long a plugin may take to finish removing what its answer said is removed: deleting a veth
/// is asynchronous in the kernel, and a plugin may do it after it has answered.
pub const SETTLE: Duration = Duration::from_secs(10);

/// The members of a list of the result; none when the list is absent.
pub fn list<'a>(result: &'a Value, key: &str) -> &'a [Value] {
    result.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// A string member, or "" when it is absent.
pub fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The container's interface in the result, and its index.
pub fn container_interface<'a>(
    result: &'a Value,
    container: &Container,
) -> Checked<(usize, &'a Value)> {
    let sandbox = container.netns_path();
    let found = list(result, "interfaces").iter().enumerate().find(|(_, interface)| {
        text(interface, "name") == container.ifname && text(interface, "sandbox") == sandbox
    });
    match found {
        Some(found) => Ok(found),
        None => fail(format!(
            "no interface {} with sandbox {sandbox} (CNI_NETNS verbatim) in the result: {result}",
            container.ifname
        )),
    }
}

/// The interfaces on the host's side: those without a sandbox.
pub fn host_interfaces(result: &Value) -> Vec<&Value> {
    let interfaces = list(result, "interfaces").iter();
    interfaces.filter(|interface| text(interface, "sandbox").is_empty()).collect()
}

/// The addresses of the result, without their prefix lengths.
pub fn addresses(result: &Value) -> Checked<Vec<IpAddr>> {
    let ips = list(result, "ips").iter();
    ips.map(|ip| match parse_prefix(text(ip, "address")) {
        Some((address, Some(_))) => Ok(address),
        _ => fail(format!("ips[].address is not in CIDR notation: {ip}")),
    })
    .collect()
}

/// The first IPv4 address of the result.
pub fn first_v4(result: &Value) -> Checked<std::net::Ipv4Addr> {
    for address in addresses(result)? {
        if let IpAddr::V4(address) = address {
            return Ok(address);
        }
    }
    fail(format!("the result has no IPv4 address: {result}"))
}

/// `address/length`, or an address alone.
pub fn parse_prefix(text: &str) -> Option<(IpAddr, Option<u8>)> {
    match text.split_once('/') {
        Some((address, length)) => {
            let (address, length): (IpAddr, u8) = (address.parse().ok()?, length.parse().ok()?);
            let longest = if address.is_ipv4() { 32 } else { 128 };
            (length <= longest).then_some((address, Some(length)))
        }
        None => Some((text.parse().ok()?, None)),
    }
}

/// Line 15: the result is of the version that was asked for, with its fields and no later ones.
pub fn has_shape_of(result: &Value, version: &str) -> Checked {
    ensure(text(result, "cniVersion") == version, || {
        format!("cniVersion of the result is {}, asked was {version}", text(result, "cniVersion"))
    })?;
    for ip in list(result, "ips") {
        let family = ip.get("version").and_then(Value::as_str);
        let wanted = match parse_prefix(text(ip, "address")) {
            _ if at_least(version, "1.0.0") => None,
            Some((IpAddr::V4(_), _)) => Some("4"),
            Some((IpAddr::V6(_), _)) => Some("6"),
            None => return fail(format!("ips[].address is no address: {ip}")),
        };
        ensure(family == wanted, || {
            format!("ips[].version is {family:?}, must be {wanted:?} in {version}: {ip}")
        })?;
    }
    if at_least(version, "1.1.0") {
        return Ok(());
    }
    let later = [
        ("interfaces", &["mtu", "socketPath", "pciID"][..]),
        ("routes", &["mtu", "advmss", "priority", "table", "scope"][..]),
    ];
    for (key, fields) in later {
        for (object, field) in
            list(result, key).iter().flat_map(|o| fields.iter().map(move |f| (o, f)))
        {
            ensure(object.get(field).is_none(), || {
                format!("{key}[].{field} came with 1.1.0 and must be left out of {version}")
            })?;
        }
    }
    Ok(())
}

/// Line 20: every `ips[].interface` is the index of the container's interface.
pub fn ips_point_at_the_container(result: &Value, container: &Container) -> Checked {
    let (index, _) = container_interface(result, container)?;
    ensure(!list(result, "ips").is_empty(), || format!("the result has no ips: {result}"))?;
    for ip in list(result, "ips") {
        let points_at = ip.get("interface").and_then(Value::as_u64);
        ensure(points_at == Some(index as u64), || {
            format!("ips[].interface is {points_at:?}, {} is at {index}: {ip}", container.ifname)
        })?;
    }
    Ok(())
}

/// Line 20: every MAC address of the result is that of the device it names.
pub fn macs_are_real(result: &Value, container: &Container, node: &Namespace) -> Checked {
    let (_, inside) = container_interface(result, container)?;
    let outside = host_interfaces(result).into_iter().map(|interface| (node, interface));
    for (netns, interface) in outside.chain([(&container.netns, inside)]) {
        let name = text(interface, "name");
        let Some(link) = link(netns, name)? else {
            return fail(format!("the result names {name}, which is not there"));
        };
        let (said, real) = (text(interface, "mac"), text(&link, "address"));
        ensure(said.eq_ignore_ascii_case(real), || format!("mac of {name} is {real}, not {said}"))?;
    }
    Ok(())
}

/// Line 20: every address of the result is on the interface, which is up, and every route exists.
pub fn is_in_place(result: &Value, container: &Container) -> Checked {
    let Some(link) = link(&container.netns, &container.ifname)? else {
        return fail(format!("{} of {} is not there", container.ifname, container.id));
    };
    ensure(list(&link, "flags").iter().any(|flag| flag == "UP"), || {
        format!("{} is not up", container.ifname)
    })?;
    let live = live_addresses(container)?;
    for address in addresses(result)? {
        ensure(live.contains(&address), || {
            format!("{address} of the result is not on {}: {live:?}", container.ifname)
        })?;
    }
    let live = live_routes(&container.netns)?;
    for route in list(result, "routes") {
        let dst = text(route, "dst");
        ensure(parse_route(dst, false).is_some_and(|dst| live.contains(&dst)), || {
            format!("route {dst} of the result is not in the container: {live:?}")
        })?;
    }
    Ok(())
}

/// The link of that name as `ip` shows it.
pub fn link(netns: &Namespace, name: &str) -> Checked<Option<Value>> {
    let links = netns.ip_json(&["link"])?;
    let mut links = links.as_array().cloned().unwrap_or_default().into_iter();
    Ok(links.find(|link| text(link, "ifname") == name))
}

/// Every address of the container's interface, with its flags.
pub fn address_objects(container: &Container) -> Checked<Vec<Value>> {
    let shown = container.netns.ip_json(&["addr", "show", "dev", &container.ifname])?;
    let shown = shown.as_array().map_or(&[][..], Vec::as_slice);
    Ok(shown.iter().flat_map(|link| list(link, "addr_info")).cloned().collect())
}

/// Every address of the container's interface.
pub fn live_addresses(container: &Container) -> Checked<BTreeSet<IpAddr>> {
    let objects = address_objects(container)?;
    Ok(objects.iter().filter_map(|object| text(object, "local").parse().ok()).collect())
}

/// Destinations of the routes of both families, in all tables.
pub fn live_routes(netns: &Namespace) -> Checked<BTreeSet<(IpAddr, u8)>> {
    let mut destinations = BTreeSet::new();
    for (family, v6) in [("-4", false), ("-6", true)] {
        let routes = netns.ip_json(&[family, "route", "show", "table", "all"])?;
        let routes = routes.as_array().map_or(&[][..], Vec::as_slice);
        destinations.extend(routes.iter().filter_map(|route| parse_route(text(route, "dst"), v6)));
    }
    Ok(destinations)
}

/// A destination as `ip` or a result writes it: `default`, an address, or a prefix.
fn parse_route(dst: &str, v6: bool) -> Option<(IpAddr, u8)> {
    if dst == "default" {
        let any = if v6 { "::" } else { "0.0.0.0" };
        return Some((any.parse().ok()?, 0));
    }
    let (address, length) = parse_prefix(dst)?;
    Some((address, length.unwrap_or(if address.is_ipv4() { 32 } else { 128 })))
}

/// What a failed or undone call must leave as it was: links and routes of both sides, and the
/// addresses of the container. Link-local IPv6 is left out, since the kernel adds it by itself
/// some time after a link came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Takes one.
    pub fn of(node: &Namespace, container: &Container) -> Checked<Self> {
        let mut lines = BTreeSet::new();
        for (side, netns) in [("node", node), ("container", &container.netns)] {
            let links = netns.ip_json(&["addr"])?;
            for link in links.as_array().map_or(&[][..], Vec::as_slice) {
                let name = text(link, "ifname");
                lines.insert(format!("{side} link {name} {}", text(link, "address")));
                let addresses = list(link, "addr_info").iter().map(|one| text(one, "local"));
                let addresses = addresses.filter(|address| !address.starts_with("fe80:"));
                lines.extend(addresses.map(|address| format!("{side} address {address} {name}")));
            }
            let routes = live_routes(netns)?.into_iter().filter(|(dst, _)| !is_kernels_own(*dst));
            lines.extend(routes.map(|(dst, length)| format!("{side} route {dst}/{length}")));
        }
        Ok(Self(lines))
    }

    /// Waits until everything is as it was.
    pub fn holds_again(&self, node: &Namespace, container: &Container) -> Checked {
        let mut now = self.clone();
        let waited = wait_until("everything is as it was", SETTLE, || {
            now = Self::of(node, container).map_err(|stop| anyhow::anyhow!("{stop:?}"))?;
            Ok(now == *self)
        });
        if waited.is_ok() {
            return Ok(());
        }
        let added: Vec<_> = now.0.difference(&self.0).collect();
        let lost: Vec<_> = self.0.difference(&now.0).collect();
        fail(format!("left behind: {added:?}; lost: {lost:?}"))
    }
}

/// Link-local and multicast routes come and go by the kernel's own clock.
fn is_kernels_own(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V4(dst) => dst.is_link_local() || dst.is_multicast(),
        IpAddr::V6(dst) => dst.is_unicast_link_local() || dst.is_multicast(),
    }
}

/// Waits until the container has lost its interface.
pub fn interface_goes(container: &Container) -> Checked {
    let what = format!("{} is gone", container.ifname);
    let gone = || {
        let links = container.netns.ip_json(&["link"])?;
        let links = links.as_array().map_or(&[][..], Vec::as_slice);
        Ok(!links.iter().any(|link| text(link, "ifname") == container.ifname))
    };
    wait_until(&what, SETTLE, gone).or_else(|error| fail(error.to_string()))
}

/// The container still has its interface.
pub fn interface_stays(container: &Container) -> Checked {
    let there = link(&container.netns, &container.ifname)?.is_some();
    ensure(there, || format!("{} of {} is gone", container.ifname, container.id))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_version_has_its_own_fields() {
        let old =
            json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.1/8"}]});
        assert!(has_shape_of(&old, "0.4.0").is_ok());
        assert!(has_shape_of(&old, "0.3.1").is_err(), "cniVersion is not echoed");
        let new =
            json!({"cniVersion": "1.0.0", "ips": [{"version": "4", "address": "10.0.0.1/8"}]});
        assert!(has_shape_of(&new, "1.0.0").is_err(), "ips[].version ended with 1.0.0");
        let wrong =
            json!({"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "10.0.0.1/8"}]});
        assert!(has_shape_of(&wrong, "0.4.0").is_err(), "wrong family");
        for version in ["1.0.0", "1.1.0"] {
            let mtu = json!({"cniVersion": version, "interfaces": [{"name": "eth0", "mtu": 1500}]});
            assert_eq!(has_shape_of(&mtu, version).is_ok(), version == "1.1.0");
        }
    }

    #[test]
    fn a_prefix_longer_than_its_family_allows_is_none() {
        assert!(parse_prefix("10.0.0.1/33").is_none());
        assert!(parse_prefix("fd00::1/33").is_some());
        assert!(parse_prefix("banana").is_none());
    }

    #[test]
    fn default_and_host_routes_compare_with_prefixes() {
        assert_eq!(parse_route("default", true), parse_route("::/0", false));
        assert_eq!(parse_route("10.0.0.1", false), parse_route("10.0.0.1/32", false));
        assert_ne!(parse_route("default", true), parse_route("default", false));
    }
}
