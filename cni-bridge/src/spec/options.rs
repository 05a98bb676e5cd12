//! What only ADD reads of the configuration and of CNI_ARGS: addresses and MAC asked for, MTU, the
//! pod's name, its host ports and limits; and the refusal of what is not supported.
//!
//! One wish may come from three places. The strongest wins: the capability in `runtimeConfig`,
//! then `args.cni` (CONVENTIONS.md: it replaces CNI_ARGS), then CNI_ARGS.

use std::net::IpAddr;

use serde_json::{Map, Value};

use super::conf::NetConf;
use super::error::{CniError, code};
use super::host_ports::HostPortOptions;
use super::json::{self, field};
use crate::protocol::{Bandwidth, IpRange};

/// Smallest `mtu`: every IPv6 link carries 1280 bytes (RFC 8200 section 5).
pub const MTU_MIN: u32 = 1280;

/// Largest `mtu`: a veth's largest device MTU, which is also the longest IPv4 packet.
pub const MTU_MAX: u32 = 65535;

/// The wishes of one ADD.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AddOptions {
    /// Route MTU in bytes, [`MTU_MIN`] to [`MTU_MAX`]; `None` leaves it to the daemon.
    pub mtu: Option<u32>,
    /// MAC address of the pod's interface, lower case with colons.
    pub mac: Option<String>,
    /// Addresses asked for.
    pub ips: Vec<IpAddr>,
    /// Ranges to allocate from, one inner list per address.
    pub ranges: Vec<Vec<IpRange>>,
    /// K8S_POD_NAMESPACE, or empty.
    pub pod_namespace: String,
    /// K8S_POD_NAME, or empty.
    pub pod_name: String,
    /// Ports of the node that are to lead to the pod.
    pub host_ports: HostPortOptions,
    /// Limits of the pod.
    pub bandwidth: Bandwidth,
}

impl AddOptions {
    /// Reads the wishes from the configuration and from `args`, the text of CNI_ARGS.
    ///
    /// # Errors
    /// Code 2 for what is not supported, 7 for values that cannot be used, 4 for those of
    /// CNI_ARGS.
    pub fn parse(conf: &NetConf, args: &str) -> Result<Self, CniError> {
        let empty = Map::new();
        let runtime = json::object(&conf.map, "runtimeConfig", "runtimeConfig")?.unwrap_or(&empty);
        let host_ports = HostPortOptions::parse(conf, runtime)?;
        let bandwidth = Bandwidth::parse(conf, runtime)?;
        let args = CniArgs::parse(args);
        let cni = match json::object(&conf.map, "args", "args")? {
            Some(map) => json::object(map, "cni", "args.cni")?.unwrap_or(&empty),
            None => &empty,
        };
        Ok(Self {
            mtu: mtu(&conf.map)?,
            mac: mac(runtime, cni, &args)?,
            ips: ips(runtime, cni, &args)?,
            ranges: ranges(runtime)?,
            pod_namespace: args.find("K8S_POD_NAMESPACE").unwrap_or_default().to_owned(),
            pod_name: args.find("K8S_POD_NAME").unwrap_or_default().to_owned(),
            host_ports,
            bandwidth,
        })
    }
}

/// CNI_ARGS: `KEY=value` pairs between semicolons. Unknown keys and malformed pairs are ignored,
/// with or without `IgnoreUnknown`: they are meant for somebody else.
struct CniArgs<'a>(Vec<(&'a str, &'a str)>);

impl<'a> CniArgs<'a> {
    fn parse(text: &'a str) -> Self {
        Self(text.split(';').filter_map(|pair| pair.trim().split_once('=')).collect())
    }

    /// The value of `key`; an empty one counts as absent.
    fn find(&self, key: &str) -> Option<&'a str> {
        self.0
            .iter()
            .find(|(name, value)| *name == key && !value.is_empty())
            .map(|(_, value)| *value)
    }
}

fn mtu(map: &Map<String, Value>) -> Result<Option<u32>, CniError> {
    let Some(value) = field(map, "mtu") else {
        return Ok(None);
    };
    let mtu = value.as_u64().and_then(|mtu| u32::try_from(mtu).ok());
    match mtu.filter(|mtu| (MTU_MIN..=MTU_MAX).contains(mtu)) {
        Some(mtu) => Ok(Some(mtu)),
        None => Err(json::wrong("mtu", &format!("a number from {MTU_MIN} to {MTU_MAX}"), value)),
    }
}

fn mac(
    runtime: &Map<String, Value>,
    cni: &Map<String, Value>,
    args: &CniArgs<'_>,
) -> Result<Option<String>, CniError> {
    for (map, path) in [(runtime, "runtimeConfig.mac"), (cni, "args.cni.mac")] {
        if let Some(text) = json::string(map, "mac", path)?.filter(|text| !text.is_empty()) {
            let mac = parse_mac(text);
            return mac.map(Some).map_err(|why| json::invalid(path, &format!("{text:?}"), why));
        }
    }
    let Some(text) = args.find("MAC") else {
        return Ok(None);
    };
    parse_mac(text).map(Some).map_err(|why| in_args("MAC", text, why))
}

/// Reads six pairs of hexadecimal digits between colons or hyphens; gives them back in lower case
/// with colons, or says what is wrong.
fn parse_mac(text: &str) -> Result<String, &'static str> {
    let octets: Option<Vec<u8>> = text.split([':', '-']).map(parse_octet).collect();
    let octets: [u8; 6] = octets
        .and_then(|octets| octets.try_into().ok())
        .ok_or("it must be six pairs of hexadecimal digits, such as 0a:58:0a:f4:01:05")?;
    if octets[0] & 1 == 1 || octets == [0; 6] {
        return Err("it must be a unicast address, whose first octet is even");
    }
    // A source MAC that starts with 02 carries what the pod's kernel knows of the packet.
    if octets[0] == 0x02 {
        return Err("addresses that start with 02 are reserved; choose another first octet");
    }
    let pairs: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
    Ok(pairs.join(":"))
}

fn parse_octet(text: &str) -> Option<u8> {
    let hex = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hex.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

fn ips(
    runtime: &Map<String, Value>,
    cni: &Map<String, Value>,
    args: &CniArgs<'_>,
) -> Result<Vec<IpAddr>, CniError> {
    for (map, path) in [(runtime, "runtimeConfig.ips"), (cni, "args.cni.ips")] {
        let texts = json::strings(map, "ips", path)?;
        if !texts.is_empty() {
            let why = "it must be an address, with or without a prefix length";
            let read = |text: &str| {
                parse_ip(text).ok_or_else(|| json::invalid(path, &format!("{text:?}"), why))
            };
            return texts.into_iter().map(read).collect();
        }
    }
    let Some(list) = args.find("IP") else {
        return Ok(Vec::new());
    };
    let why = "it must be addresses, with or without a prefix length, between commas";
    let read = |text: &str| parse_ip(text.trim()).ok_or_else(|| in_args("IP", list, why));
    list.split(',').map(read).collect()
}

/// Reads an address; a prefix length behind it (the capability `ips` allows one) is checked and
/// dropped, because the subnet is the allocator's to know.
fn parse_ip(text: &str) -> Option<IpAddr> {
    match text.split_once('/') {
        None => text.parse().ok(),
        Some(_) => super::result::parse_cidr(text).map(|(address, _)| address),
    }
}

fn ranges(runtime: &Map<String, Value>) -> Result<Vec<Vec<IpRange>>, CniError> {
    const PATH: &str = "runtimeConfig.ipRanges";
    let sets = json::list(runtime, "ipRanges", PATH)?;
    let read_set = |set: &Value| {
        let ranges = set.as_array().ok_or_else(|| json::wrong(PATH, "a list of lists", set))?;
        ranges.iter().map(|range| parse_range(PATH, range)).collect()
    };
    sets.iter().map(read_set).collect()
}

fn parse_range(path: &str, value: &Value) -> Result<IpRange, CniError> {
    let map = value.as_object().ok_or_else(|| json::wrong(path, "made of objects", value))?;
    let subnet = json::string(map, "subnet", &format!("{path}.subnet"))?
        .filter(|text| super::result::parse_cidr(text).is_some())
        .ok_or_else(|| json::wrong(path, "made of ranges with a subnet in CIDR notation", value))?;
    let address = |key: &str| {
        let path = format!("{path}.{key}");
        let Some(text) = json::string(map, key, &path)? else {
            return Ok(None);
        };
        let why = "it must be an address";
        text.parse().map(Some).map_err(|_| json::invalid(&path, &format!("{text:?}"), why))
    };
    Ok(IpRange {
        subnet: subnet.to_owned(),
        range_start: address("rangeStart")?,
        range_end: address("rangeEnd")?,
        gateway: address("gateway")?,
    })
}

fn in_args(key: &str, value: &str, why: &str) -> CniError {
    let msg = format!("{key}={} of CNI_ARGS cannot be used: {why}", json::brief(value));
    CniError::new(code::ENVIRONMENT, msg)
}
