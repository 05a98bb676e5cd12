//! The wishes for host ports: the capability `portMappings`, and the keys of the reference's
//! portmap plugin beside it, which people bring along in their configurations.
//!
//! No key is quietly taken for something else than it means there: it is honoured, or it asks for
//! what happens anyway, or it is refused by name and value.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Map, Value};

use super::conf::NetConf;
use super::error::CniError;
use super::json::{self, field};
use crate::protocol::{PortMapping, PortProtocol};

/// Where runtimes put the entries.
const PATH: &str = "runtimeConfig.portMappings";

/// Bit of the packet mark that portmap takes when `markMasqBit` is absent.
const MARK_BIT_DEFAULT: u64 = 13;

/// What a configuration says of host ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPortOptions {
    /// Entries that ask for something, in their order.
    pub mappings: Vec<PortMapping>,
    /// Key `snat`.
    pub snat: Option<bool>,
    /// Key `masqAll`; absent is false.
    pub masq_all: bool,
}

impl HostPortOptions {
    /// Reads the capability in `runtime`, the configuration's `runtimeConfig`, and the static keys
    /// of `conf`.
    ///
    /// # Errors
    /// Code 7 for an entry or a value that cannot be used, code 2 for a key that asks for what
    /// does not exist here; the sentence names entry, key and value.
    pub(super) fn parse(conf: &NetConf, runtime: &Map<String, Value>) -> Result<Self, CniError> {
        let map = &conf.map;
        refuse_foreign(map)?;
        Ok(Self {
            mappings: mappings(runtime)?,
            snat: json::boolean(map, "snat", "snat")?,
            masq_all: json::boolean(map, "masqAll", "masqAll")?.unwrap_or(false),
        })
    }

    /// Reads of `conf` what CHECK compares.
    ///
    /// # Errors
    /// Code 7 for an entry that cannot be used, code 2 for one that asks for what does not exist.
    pub fn check(conf: &NetConf) -> Result<Vec<PortMapping>, CniError> {
        match json::object(&conf.map, "runtimeConfig", "runtimeConfig")? {
            Some(runtime) => mappings(runtime),
            None => Ok(Vec::new()),
        }
    }
}

fn mappings(runtime: &Map<String, Value>) -> Result<Vec<PortMapping>, CniError> {
    let entries = json::list(runtime, "portMappings", PATH)?;
    entries.iter().filter_map(|entry| mapping(entry).transpose()).collect()
}

/// One entry; `None` for one without a host port: test suites of the CRI send those.
fn mapping(entry: &Value) -> Result<Option<PortMapping>, CniError> {
    if entry.is_null() {
        return Ok(None);
    }
    let wrong = |why: &str| json::invalid(PATH, &entry.to_string(), why);
    let map = entry.as_object().ok_or_else(|| wrong("it must be made of objects"))?;
    let host_port = match field(map, "hostPort").map(port) {
        None | Some(Some(0)) => return Ok(None),
        Some(Some(port)) => port,
        Some(None) => return Err(wrong("hostPort must be a number from 0 to 65535")),
    };
    let container_port = field(map, "containerPort").and_then(port).filter(|port| *port != 0);
    let container_port =
        container_port.ok_or_else(|| wrong("containerPort must be a number from 1 to 65535"))?;
    let protocol =
        protocol(map).ok_or_else(|| wrong("protocol must be \"tcp\", \"udp\" or \"sctp\""))?;
    let host_ip = host_ip(map).map_err(wrong)?;
    // The reference's successors know entries for several ports; the capability does not.
    match field(map, "range").filter(|range| !matches!(range.as_u64(), Some(0 | 1))) {
        Some(_) => Err(json::unsupported(PATH, entry, "range; send one entry for each port")),
        None => Ok(Some(PortMapping { host_ip, host_port, container_port, protocol })),
    }
}

fn port(value: &Value) -> Option<u16> {
    value.as_u64().and_then(|port| u16::try_from(port).ok())
}

/// The protocol, in any case; an absent or empty one is TCP.
fn protocol(map: &Map<String, Value>) -> Option<PortProtocol> {
    let name = match field(map, "protocol") {
        None => return Some(PortProtocol::Tcp),
        Some(value) => value.as_str()?,
    };
    if name.is_empty() {
        return Some(PortProtocol::Tcp);
    }
    PortProtocol::ALL.into_iter().find(|protocol| protocol.as_str().eq_ignore_ascii_case(name))
}

/// The address of the node; `None` for all of them, which an absent or empty `hostIP` means.
fn host_ip(map: &Map<String, Value>) -> Result<Option<IpAddr>, &'static str> {
    const WHY: &str = "hostIP must be an address, or empty for all addresses of the node";
    let text = match field(map, "hostIP") {
        None => return Ok(None),
        Some(value) => value.as_str().ok_or(WHY)?,
    };
    if text.is_empty() {
        return Ok(None);
    }
    // ::ffff:192.0.2.1 is 192.0.2.1 to the runtimes, and no packet carries it (RFC 4291 2.5.5.2).
    let address = text.parse::<IpAddr>().map_err(|_| WHY)?.to_canonical();
    if address.is_multicast() || address == Ipv4Addr::BROADCAST {
        return Err("hostIP must be an address that a node can have, not a group's");
    }
    Ok(Some(address))
}

/// Refuses keys that would change what portmap does into what is not done here. That a value is
/// portmap's default is no wish.
fn refuse_foreign(map: &Map<String, Value>) -> Result<(), CniError> {
    let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
    type IsFine<'a> = &'a dyn Fn(&Value) -> bool;
    let keys: [(&str, IsFine<'_>, &str); 6] = [
        ("backend", &|value| value == "nftables", "but nftables; leave it out"),
        ("markMasqBit", &|value| value.as_u64() == Some(MARK_BIT_DEFAULT), MARKS),
        ("externalSetMarkChain", &|_| false, MARKS),
        ("conditionsV4", &is_empty, CONDITIONS),
        ("conditionsV6", &is_empty, CONDITIONS),
        // In the configuration itself: portmap ignores it, which whoever wrote it did not expect.
        ("portMappings", &is_empty, "here; the runtime sends it in runtimeConfig"),
    ];
    for (key, is_fine, instead) in keys {
        if let Some(value) = field(map, key).filter(|value| !is_fine(value)) {
            return Err(json::unsupported(key, value, instead));
        }
    }
    Ok(())
}

/// Why keys about marks are refused.
const MARKS: &str = "because packets of host ports get no mark; leave it out";

/// Why keys with conditions of iptables are refused.
const CONDITIONS: &str = "because host ports are no iptables rules; leave it out";
