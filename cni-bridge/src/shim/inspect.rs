//! CHECK and STATUS: they look and change nothing.

use std::os::fd::AsFd;

use super::Invocation;
use super::attach::{transport_error, unexpected_reply};
use crate::client;
use crate::env::Environment;
use crate::ipam::Delegate;
use crate::namespace;
use crate::protocol::{Attachment, Call, CheckRequest, Reply};
use crate::spec::result::CniResult;
use crate::spec::{CniError, HostPortOptions, Verb, code};

/// Carries out CHECK, by the daemon and then by the delegate.
pub(super) fn check(invocation: &Invocation) -> Result<(), CniError> {
    let Invocation { environment, conf, stdin } = invocation;
    let Some(previous) = conf.prev_result()? else {
        let msg = "CHECK got no prevResult; send the result of the ADD";
        return Err(CniError::new(code::INVALID_CONFIG, msg));
    };
    let mut request = request(environment, environment.attachment(conf), &previous)?;
    request.port_mappings = HostPortOptions::check(conf)?;
    let netns = namespace::open(environment)?;
    let call = Call::Check(request);
    match client::ask(&conf.socket, call, Some(netns.as_fd()), client::DEADLINE) {
        Ok(Reply::Done) => {}
        Ok(Reply::Error(error)) => return Err(error.into()),
        Ok(_) => return Err(unexpected_reply(Verb::Check)),
        Err(error) => return Err(transport_error(&error)),
    }
    match Delegate::find(conf, environment, stdin)? {
        Some(delegate) => delegate.run(Verb::Check),
        None => Ok(()),
    }
}

/// What of `previous` is ours: the interface named CNI_IFNAME in CNI_NETNS, its addresses, and the
/// host's interface, which ADD lists just before it. Plugins after us only append.
pub(super) fn request(
    environment: &Environment,
    attachment: Attachment,
    previous: &CniResult,
) -> Result<CheckRequest, CniError> {
    let Environment { ifname, netns, .. } = environment;
    let index = previous
        .interfaces
        .iter()
        .position(|interface| interface.name == *ifname && interface.sandbox == *netns)
        .ok_or_else(|| {
            let msg = format!("prevResult has no interface {ifname} in {netns}; run ADD first");
            CniError::new(code::INVALID_CONFIG, msg)
        })?;
    let interface = |index: usize| previous.interfaces.get(index);
    let host = index.checked_sub(1).and_then(interface).filter(|host| host.sandbox.is_empty());
    let ours = previous.ips.iter().filter(|ip| ip.interface == Some(index));
    Ok(CheckRequest {
        attachment,
        addresses: ours.map(|ip| ip.address.clone()).collect(),
        mac: interface(index).map(|ours| ours.mac.clone()).filter(|mac| !mac.is_empty()),
        host_ifname: host.map(|host| host.name.clone()),
        routes: previous.routes.iter().map(|route| route.dst.clone()).collect(),
        port_mappings: Vec::new(),
    })
}

/// Carries out STATUS. Whatever keeps the daemon from answering keeps an ADD from working, so it is
/// code 50.
pub(super) fn status(invocation: &Invocation) -> Result<(), CniError> {
    let Invocation { environment, conf, stdin } = invocation;
    let call = Call::CniStatus { delegated_ipam: conf.ipam.is_some() };
    match client::ask(&conf.socket, call, None, client::DEADLINE) {
        Ok(Reply::Done) => {}
        Ok(Reply::Error(error)) => return Err(error.into()),
        Ok(_) => return Err(unexpected_reply(Verb::Status)),
        Err(error) => return Err(CniError::new(code::NOT_AVAILABLE, error.to_string())),
    }
    match Delegate::find(conf, environment, stdin)? {
        Some(delegate) => delegate.run(Verb::Status),
        None => Ok(()),
    }
}
