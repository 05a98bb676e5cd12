//! Ports of the node that lead to a pod, as the state knows them: one record for each address, or
//! all of a family, that a request's mapping stands for.

use std::fmt;
use std::net::IpAddr;

use cni_bridge::protocol::{PodAddress, PortMapping, PortProtocol};
use serde::{Deserialize, Serialize};

use super::{PodRecord, StateError};

#[cfg(test)]
mod tests;

/// Most host ports of a node: each has an entry in a map of the XDP program, whose size is fixed
/// when it is made.
pub const HOST_PORTS_MAX: usize = dataplane::xsk::program::HOST_PORTS_MAX as usize;

/// At which addresses of the node a host port is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostPortAddress {
    /// At this one, while the node has it.
    One(IpAddr),
    /// At every IPv4 address that the node has.
    AnyV4,
    /// At every IPv6 address that the node has.
    AnyV6,
}

impl HostPortAddress {
    /// Whether it is of IPv4.
    #[must_use]
    pub fn is_v4(self) -> bool {
        match self {
            HostPortAddress::One(address) => address.is_ipv4(),
            HostPortAddress::AnyV4 => true,
            HostPortAddress::AnyV6 => false,
        }
    }
}

/// What tells host ports apart: no two of a node have the same. One of a single address and one of
/// every address are two, of which the first decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPortKey {
    /// The protocol.
    pub transport: PortProtocol,
    /// Where it is asked.
    pub address: HostPortAddress,
    /// Its number.
    pub port: u16,
}

impl fmt::Display for HostPortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let HostPortKey { transport, address, port } = self;
        write!(f, "hostPort {port} ({}) of ", transport.as_str())?;
        match address {
            HostPortAddress::One(address) => write!(f, "address {address}"),
            HostPortAddress::AnyV4 => f.write_str("every IPv4 address"),
            HostPortAddress::AnyV6 => f.write_str("every IPv6 address"),
        }
    }
}

/// A host port of a pod, and what it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPortRecord {
    /// The protocol.
    pub transport: PortProtocol,
    /// Where it is asked.
    pub address: HostPortAddress,
    /// Its number; never 0.
    pub port: u16,
    /// The pod's address that serves it, of the same family.
    pub serving: IpAddr,
    /// The pod's port that serves it; never 0.
    pub container_port: u16,
}

impl HostPortRecord {
    /// What tells it apart.
    #[must_use]
    pub fn key(&self) -> HostPortKey {
        HostPortKey { transport: self.transport, address: self.address, port: self.port }
    }
}

/// Whose connections to a pod's host ports get the address that they asked for as their source, so
/// that the pod's answers come back by the node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MasqueradeWish {
    /// The pod's own, and the node's to 127.0.0.1: they could not be answered otherwise.
    #[default]
    Itself,
    /// Everybody's.
    Everybody,
    /// Nobody's.
    Nobody,
}

impl MasqueradeWish {
    /// What portmap's keys `snat` and `masqAll` ask for together: without `snat` there is nothing
    /// for `masqAll` to widen.
    #[must_use]
    pub fn of(snat: Option<bool>, masq_all: bool) -> MasqueradeWish {
        match (snat.unwrap_or(true), masq_all) {
            (false, _) => MasqueradeWish::Nobody,
            (true, true) => MasqueradeWish::Everybody,
            (true, false) => MasqueradeWish::Itself,
        }
    }
}

/// The host ports that `mappings` stand for at a pod with these addresses, in the order of their
/// keys. The pod's first address of a family serves; a mapping for a family that the pod has no
/// address of is passed over, as portmap does.
///
/// # Errors
/// [`StateError::HostPortRepeated`] when two mappings lead one host port to two ports of the pod.
pub fn host_ports_of(
    mappings: &[PortMapping],
    addresses: &[PodAddress],
) -> Result<Vec<HostPortRecord>, StateError> {
    let mut records: Vec<HostPortRecord> =
        mappings.iter().flat_map(|mapping| expand(mapping, addresses)).collect();
    // By all that is in them, so that equal records are neighbours.
    records.sort_by_key(|record| (record.key(), record.container_port));
    records.dedup();
    refuse_repeated(&records)?;
    Ok(records)
}

/// One mapping: the wildcard of each family, or one address.
fn expand<'a>(
    mapping: &'a PortMapping,
    addresses: &'a [PodAddress],
) -> impl Iterator<Item = HostPortRecord> + 'a {
    let PortMapping { host_ip, host_port, container_port, protocol } = *mapping;
    let (v4, v6) = (HostPortAddress::AnyV4, HostPortAddress::AnyV6);
    let asked = match host_ip {
        None => [Some(v4), Some(v6)],
        Some(IpAddr::V4(any)) if any.is_unspecified() => [Some(v4), None],
        Some(IpAddr::V6(any)) if any.is_unspecified() => [Some(v6), None],
        Some(address) => [Some(HostPortAddress::One(address)), None],
    };
    asked.into_iter().flatten().filter_map(move |address| {
        let serving = addresses.iter().find(|own| own.address.is_ipv4() == address.is_v4())?;
        let (transport, port, serving) = (protocol, host_port, serving.address);
        Some(HostPortRecord { transport, address, port, serving, container_port })
    })
}

impl PodRecord {
    /// Whether every mapping leads to this pod, as far as the pod has addresses of its family.
    ///
    /// # Errors
    /// The first that does not: [`StateError::HostPortMissing`].
    pub fn check_host_ports(&self, mappings: &[PortMapping]) -> Result<(), StateError> {
        let wanted = mappings.iter().flat_map(|mapping| expand(mapping, &self.addresses));
        for record in wanted {
            if self.host_port(&record.key()) != Some(&record) {
                let attachment = self.attachment.clone();
                let (host_port, container_port) = (record.key(), record.container_port);
                return Err(StateError::HostPortMissing { host_port, container_port, attachment });
            }
        }
        Ok(())
    }

    /// Its host port of this key.
    #[must_use]
    pub fn host_port(&self, key: &HostPortKey) -> Option<&HostPortRecord> {
        let index = self.host_ports.binary_search_by_key(key, HostPortRecord::key).ok()?;
        self.host_ports.get(index)
    }

    /// That its host ports are in order, each once, and lead to the pod's own addresses: a journal
    /// may say anything.
    pub(super) fn check_own_host_ports(&self) -> Result<(), StateError> {
        for record in &self.host_ports {
            let is_own = self.addresses.iter().any(|own| own.address == record.serving);
            let is_whole = record.port != 0 && record.container_port != 0;
            if !is_own || !is_whole || record.serving.is_ipv4() != record.address.is_v4() {
                let attachment = self.attachment.clone();
                return Err(StateError::HostPortUnusable { host_port: record.key(), attachment });
            }
        }
        refuse_repeated(&self.host_ports)
    }
}

/// Refuses two records of one key among `sorted` ones.
fn refuse_repeated(sorted: &[HostPortRecord]) -> Result<(), StateError> {
    let repeated = sorted.windows(2).find_map(|pair| match pair {
        [one, other] if one.key() >= other.key() => Some(other.key()),
        _ => None,
    });
    repeated.map_or(Ok(()), |host_port| Err(StateError::HostPortRepeated(host_port)))
}
