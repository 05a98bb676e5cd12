//! ADD: from the runtime's wishes to the daemon's reply to the result, undone when it fails half
//! way.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

use serde_json::Value;

use super::{Invocation, detach};
use crate::client::{self, ClientError};
use crate::env::Environment;
use crate::ipam::Delegate;
use crate::namespace;
use crate::protocol::{AddReply, AddRequest, Addressing, Call, ExtraRoute, PodAddress, Reply};
use crate::queue;
use crate::spec::result::{CniResult, Dns, Interface, Ip, Route, parse_cidr};
use crate::spec::{AddOptions, CniError, HostPortOptions, NetConf, Verb, code};

/// Gateway of every pod's default route; workers answer ARP for it.
const GATEWAY_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1));

/// The same for IPv6; workers answer neighbor solicitations for it.
const GATEWAY_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1));

/// Carries out ADD; gives the result in the configuration's version.
pub(super) fn add(invocation: &Invocation) -> Result<Value, CniError> {
    let Invocation { environment, conf, stdin } = invocation;
    let options = options(conf, environment)?;
    let previous = conf.prev_result()?.unwrap_or_default();
    let own_dns = conf.dns()?;
    let netns = namespace::open(environment)?;
    carry_out_queued_del(invocation)?;

    let delegate = Delegate::find(conf, environment, stdin)?;
    let allocated = delegate.as_ref().map(Delegate::add).transpose()?;
    let request = request(environment, conf, options, allocated.as_ref());
    let reply = ask_add(invocation, request, netns.as_fd()).map_err(|error| match &delegate {
        Some(delegate) => delegate.release_after(error),
        None => error,
    })?;
    let allocated = allocated.unwrap_or_default();
    let dns = if allocated.dns.is_empty() { own_dns } else { allocated.dns };
    let made = Made { environment, reply: &reply, routes: allocated.routes, dns };
    Ok(result(previous, made).render(conf.version))
}

/// The wishes of the configuration and of CNI_ARGS.
pub(super) fn options(conf: &NetConf, environment: &Environment) -> Result<AddOptions, CniError> {
    AddOptions::parse(conf, &environment.args)
}

/// A DEL of the same attachment that the daemon has not been told yet would, replayed later, remove
/// what this ADD makes; so it goes first.
fn carry_out_queued_del(invocation: &Invocation) -> Result<(), CniError> {
    let Invocation { environment, conf, .. } = invocation;
    let waits = queue::contains(&queue::directory(&conf.socket), &environment.attachment(conf));
    if !waits {
        return Ok(());
    }
    detach::tell(invocation).map_err(|error| transport_error(&error))?
}

/// Asks the daemon. When it is not certain that nothing was made, what may have been made is
/// detached again.
fn ask_add(
    invocation: &Invocation,
    request: AddRequest,
    netns: std::os::fd::BorrowedFd<'_>,
) -> Result<AddReply, CniError> {
    let (mappings, bandwidth) = (request.port_mappings.len(), request.bandwidth);
    let call = Call::Add(Box::new(request));
    match client::ask(&invocation.conf.socket, call, Some(netns), client::DEADLINE) {
        Ok(Reply::Added(reply)) if reply.port_mappings != mappings => {
            Err(undo(invocation, unread(invocation, &format!("{mappings} portMappings"))))
        }
        Ok(Reply::Added(reply)) if reply.bandwidth != bandwidth => {
            Err(undo(invocation, unread(invocation, "bandwidth")))
        }
        Ok(Reply::Added(reply)) => Ok(reply),
        Ok(Reply::Error(error)) => Err(error.into()),
        Ok(_) => Err(undo(invocation, unexpected_reply(Verb::Add))),
        Err(error @ (ClientError::Unreachable { .. } | ClientError::Path { .. })) => {
            Err(transport_error(&error))
        }
        Err(error) => Err(undo(invocation, transport_error(&error))),
    }
}

fn undo(invocation: &Invocation, error: CniError) -> CniError {
    match detach::tell_or_queue(invocation) {
        Ok(()) => error,
        Err(second) => error.with_details(format!("detaching again: {second}")),
    }
}

/// A daemon that is away or slow is a passing condition (SPEC.md, "Error", code 11): the runtime
/// tries again.
pub(super) fn transport_error(error: &ClientError) -> CniError {
    let code = match error {
        ClientError::Unreachable { .. }
        | ClientError::Deadline { .. }
        | ClientError::Broken { .. } => code::TRY_AGAIN,
        ClientError::Path { .. } => code::INVALID_CONFIG,
        ClientError::Request { .. } | ClientError::Reply { .. } => code::GENERIC,
    };
    CniError::new(code, error.to_string())
}

/// The error for a daemon that passed over a capability, as one does that is older than it is: a
/// pod without the ports that it is to be reached by is none, and one without its limits takes what
/// is others'.
fn unread(invocation: &Invocation, capability: &str) -> CniError {
    let msg = format!(
        "viaductd at {} knows nothing of the {capability} asked for; run viaductd and viaduct-cni \
         of one release",
        invocation.conf.socket.display()
    );
    CniError::new(code::RELEASES_APART, msg)
}

/// The error for a reply of another kind than the call has.
pub(super) fn unexpected_reply(verb: Verb) -> CniError {
    let msg = format!(
        "viaductd answered {} with something else; run viaductd and viaduct-cni of one release",
        verb.as_str()
    );
    CniError::new(code::GENERIC, msg)
}

fn request(
    environment: &Environment,
    conf: &NetConf,
    options: AddOptions,
    allocated: Option<&CniResult>,
) -> AddRequest {
    let AddOptions { mtu, mac, ips, ranges, pod_namespace, pod_name, host_ports, bandwidth } =
        options;
    let HostPortOptions { mappings, snat, masq_all } = host_ports;
    let addressing = match allocated {
        None => Addressing::Embedded { requested: ips, ranges },
        Some(result) => Addressing::Delegated(result.ips.iter().filter_map(pod_address).collect()),
    };
    let extra = |route: &Route| ExtraRoute {
        dst: route.dst.clone(),
        gw: route.gw.as_deref().and_then(|gw| gw.parse().ok()),
    };
    AddRequest {
        attachment: environment.attachment(conf),
        netns: environment.netns.clone(),
        addressing,
        mac,
        mtu,
        routes: allocated.map_or(&[][..], |result| &result.routes).iter().map(extra).collect(),
        pod_namespace,
        pod_name,
        port_mappings: mappings,
        snat,
        masq_all,
        bandwidth,
    }
}

/// One delegated address. [`CniResult::from_value`] has checked the address and the gateway.
fn pod_address(ip: &Ip) -> Option<PodAddress> {
    let (address, prefix_len) = parse_cidr(&ip.address)?;
    let gateway = ip.gateway.as_deref().and_then(|gateway| gateway.parse().ok());
    Some(PodAddress { address, prefix_len, gateway })
}

/// What this ADD made, for its result.
pub(super) struct Made<'a> {
    pub environment: &'a Environment,
    pub reply: &'a AddReply,
    /// Routes of the IPAM result.
    pub routes: Vec<Route>,
    pub dns: Dns,
}

/// Appends what was made to what earlier plugins of the chain had made.
pub(super) fn result(previous: CniResult, made: Made<'_>) -> CniResult {
    let Made { environment, reply, routes, dns } = made;
    let mut result = previous;
    result.interfaces.push(Interface {
        name: reply.host_ifname.clone(),
        mac: reply.host_mac.clone(),
        ..Interface::default()
    });
    let container = result.interfaces.len();
    result.interfaces.push(Interface {
        name: environment.ifname.clone(),
        mac: reply.mac.clone(),
        mtu: Some(u64::from(reply.mtu)),
        sandbox: environment.netns.clone(),
        ..Interface::default()
    });
    result.ips.extend(reply.addresses.iter().map(|address| {
        let gateway = address.gateway.unwrap_or_else(|| link_gateway(address.address));
        Ip {
            address: format!("{}/{}", address.address, address.prefix_len),
            gateway: Some(gateway.to_string()),
            interface: Some(container),
        }
    }));
    result.routes.extend(default_routes(&reply.addresses));
    // The pod's default routes are the two above, whatever IPAM calls its own.
    let is_default = |route: &Route| parse_cidr(&route.dst).is_some_and(|(_, length)| length == 0);
    result.routes.extend(routes.into_iter().filter(|route| !is_default(route)));
    if result.dns.is_empty() {
        result.dns = dns;
    }
    result
}

fn default_routes(addresses: &[PodAddress]) -> impl Iterator<Item = Route> {
    let families = [
        ("0.0.0.0/0", GATEWAY_V4, addresses.iter().any(|address| address.address.is_ipv4())),
        ("::/0", GATEWAY_V6, addresses.iter().any(|address| address.address.is_ipv6())),
    ];
    families.into_iter().filter(|(_, _, present)| *present).map(|(dst, gateway, _)| Route {
        dst: dst.to_owned(),
        gw: Some(gateway.to_string()),
        ..Route::default()
    })
}

fn link_gateway(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GATEWAY_V4 } else { GATEWAY_V6 }
}
