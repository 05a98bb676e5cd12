//! CNI CHECK: is a pod's interface still what it should be? What later plugins of a chain may have
//! added is none of our business; what we made must be there.

use super::{EndpointError, EndpointSpec, HostSide, in_namespace};
use crate::netlink::{NeighborState, Netlink};
use crate::node::{GATEWAY_V4, GATEWAY_V6, ROUTE_TABLE};
use ipnet::IpNet;
use std::net::IpAddr;

/// The first thing that is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Difference {
    /// It could not be compared.
    #[error(transparent)]
    Unknown(#[from] EndpointError),
    /// Something is gone.
    #[error("{what} is missing; delete the attachment and add it again")]
    Missing {
        /// Object and place.
        what: String,
    },
    /// Something is not what it was.
    #[error("{what} is {found} instead of {wanted}; delete the attachment and add it again")]
    Changed {
        /// Object and place.
        what: String,
        /// What it is.
        found: String,
        /// What it should be.
        wanted: String,
    },
}

/// Compares a pod's interface with its specification; returns the first difference.
pub fn check(host: &mut HostSide, spec: &EndpointSpec<'_>) -> Result<(), Difference> {
    let pod_index = check_host_end(&mut host.netlink, spec)?;
    in_namespace(spec.netns, || check_pod_end(spec, pod_index))
        .map_err(|error| Difference::Unknown(EndpointError::Namespace(error)))?
}

fn check_host_end(netlink: &mut Netlink, spec: &EndpointSpec<'_>) -> Result<u32, Difference> {
    let name = spec.host_ifname;
    let link = ask(netlink.link(name))?.ok_or_else(|| missing(format!("host interface {name}")))?;
    equal(&format!("the alias of {name}"), link.alias.as_deref().unwrap_or(""), spec.cookie)?;
    equal(&format!("the state of {name}"), state(link.up), state(true))?;
    let routes = ask(netlink.routes(Some(ROUTE_TABLE)))?;
    let neighbors = ask(netlink.neighbors(Some(link.index)))?;
    for address in spec.addresses {
        let dst = IpNet::from(*address);
        let leads_here = routes.iter().any(|route| {
            route.dst == dst && route.next_hops.iter().any(|hop| hop.index == link.index)
        });
        if !leads_here {
            return Err(missing(format!("the route to {address} by {name}")));
        }
        let known = neighbors.iter().any(|neighbor| {
            neighbor.address == *address
                && neighbor.mac == Some(spec.mac)
                && neighbor.state == NeighborState::Permanent
        });
        if !known {
            return Err(missing(format!("the permanent neighbor {address} of {name}")));
        }
    }
    Ok(link.peer_index.unwrap_or(0))
}

/// Runs inside the pod's namespace.
fn check_pod_end(spec: &EndpointSpec<'_>, index: u32) -> Result<(), Difference> {
    let name = spec.ifname;
    let mut netlink = ask(Netlink::open())?;
    let link = ask(netlink.link(name))?.ok_or_else(|| missing(format!("{name} in the pod")))?;
    equal(&format!("the index of {name}"), &link.index.to_string(), &index.to_string())?;
    equal(&format!("the state of {name}"), state(link.up), state(true))?;
    let mac = link.mac.map(words).unwrap_or_default();
    equal(&format!("the Ethernet address of {name}"), &mac, &words(spec.mac))?;
    let addresses = ask(netlink.addresses())?;
    for address in spec.addresses {
        let there = addresses.iter().any(|a| a.index == index && a.address == *address);
        if !there {
            return Err(missing(format!("address {address} of {name}")));
        }
    }
    let routes = ask(netlink.routes(None))?;
    let gateways = [
        (spec.v4().next().is_some(), IpAddr::from(GATEWAY_V4)),
        (spec.v6().next().is_some(), IpAddr::from(GATEWAY_V6)),
    ];
    for (wanted, gateway) in gateways {
        let there = routes.iter().any(|route| {
            route.dst.prefix_len() == 0
                && route.next_hops.iter().any(|h| h.via == Some(gateway) && h.index == index)
        });
        if wanted && !there {
            return Err(missing(format!("the pod's default route via {gateway} dev {name}")));
        }
    }
    Ok(())
}

fn ask<T, E: Into<EndpointError>>(answer: Result<T, E>) -> Result<T, Difference> {
    answer.map_err(|error| Difference::Unknown(error.into()))
}

fn missing(what: String) -> Difference {
    Difference::Missing { what }
}

fn state(up: bool) -> &'static str {
    if up { "up" } else { "down" }
}

fn words(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn equal(what: &str, found: &str, wanted: &str) -> Result<(), Difference> {
    if found == wanted {
        return Ok(());
    }
    let (what, found, wanted) = (what.to_owned(), found.to_owned(), wanted.to_owned());
    Err(Difference::Changed { what, found, wanted })
}
