//! The result of ADD (SPEC.md, "ADD Success"), read from any version and written in any.
//!
//! In memory there is one shape, the newest. Reading an older version leaves the newer keys empty;
//! writing an older one drops them. So a `prevResult` or an IPAM result of one version is converted
//! by reading and writing it.

use std::net::IpAddr;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value, json};

use super::error::{CniError, code};
use super::version::CniVersion;

/// What an ADD made, with what earlier plugins of the chain had made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces, on the host and in the container.
    #[serde(deserialize_with = "null_is_default")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(deserialize_with = "null_is_default")]
    pub ips: Vec<Ip>,
    /// Routes in the container.
    #[serde(deserialize_with = "null_is_default")]
    pub routes: Vec<Route>,
    /// Resolver settings.
    #[serde(deserialize_with = "null_is_default")]
    pub dns: Dns,
}

/// One interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Interface {
    /// Name of the interface.
    pub name: String,
    /// Hardware address; empty when it has none.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// MTU in bytes; since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Path of the namespace; empty for an interface on the host.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Path of a socket that stands for the interface; since 1.1.0.
    #[serde(rename = "socketPath", skip_serializing_if = "Option::is_none")]
    pub socket_path: Option<String>,
    /// PCI address of the interface's device; since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "Option::is_none")]
    pub pci_id: Option<String>,
}

/// One address. Before 1.0.0 it is written with a `version` of "4" or "6".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The address with its prefix length.
    pub address: String,
    /// Gateway of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Index into [`CniResult::interfaces`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// One route.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Destination with its prefix length.
    pub dst: String,
    /// Next hop; absent means the gateway of the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<String>,
    /// MTU in bytes; since 1.1.0, as the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Largest TCP segment in bytes to announce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u64>,
    /// Metric of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u64>,
    /// Number of the route table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u64>,
    /// Scope of the route, as rtnetlink numbers it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u64>,
}

/// Resolver settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// Local domain.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Search list.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    /// Whether nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads `null` as the default: older writers send it for empty lists.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads `address/length`; `None` when either is malformed or the length too long.
pub fn parse_cidr(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    // `parse` would take a sign.
    let length = length.bytes().all(|byte| byte.is_ascii_digit()).then_some(length)?;
    let length: u8 = length.parse().ok()?;
    let length_max = if address.is_ipv4() { 32 } else { 128 };
    (length <= length_max).then_some((address, length))
}

impl CniResult {
    /// Reads a result of any version from `value`; `origin` names it in errors.
    ///
    /// # Errors
    /// Code 1 when the result names a version that is not spoken, 6 when it is malformed.
    pub fn from_value(value: &Value, origin: &str) -> Result<Self, CniError> {
        let version = value.get("cniVersion").and_then(Value::as_str);
        if let Some(text) = version.filter(|text| CniVersion::find(text).is_none()) {
            let details = format!(
                "{origin} has cniVersion {text:?}, viaduct-cni supports {:?}",
                CniVersion::names()
            );
            return Err(CniError::new(code::INCOMPATIBLE_VERSION, "incompatible CNI versions")
                .with_details(details));
        }
        let malformed = |why: String| {
            let msg = format!("{origin} is not a CNI result; repair the plugin that made it");
            Err(CniError::new(code::DECODE, msg).with_details(why))
        };
        // serde would take a list for an object whose keys all have defaults.
        if !value.is_object() {
            return malformed("it is no object".to_owned());
        }
        let result = match Self::deserialize(value) {
            Ok(result) => result,
            Err(error) => return malformed(error.to_string()),
        };
        for ip in &result.ips {
            if parse_cidr(&ip.address).is_none() {
                return malformed(format!(
                    "ips[].address {:?} is not in CIDR notation",
                    ip.address
                ));
            }
            if ip.interface.is_some_and(|index| index >= result.interfaces.len()) {
                return malformed(format!("{} names an interface that is not listed", ip.address));
            }
        }
        let gateways = result.ips.iter().filter_map(|ip| ip.gateway.as_deref());
        let hops = result.routes.iter().filter_map(|route| route.gw.as_deref());
        if let Some(text) = gateways.chain(hops).find(|text| text.parse::<IpAddr>().is_err()) {
            return malformed(format!("gateway {text:?} is no address"));
        }
        if let Some(route) = result.routes.iter().find(|route| parse_cidr(&route.dst).is_none()) {
            return malformed(format!("routes[].dst {:?} is not in CIDR notation", route.dst));
        }
        Ok(result)
    }

    /// Writes the result in the shape of `version`.
    pub fn render(&self, version: CniVersion) -> Value {
        let newest = version >= CniVersion::V1_1_0;
        let interfaces: Vec<Value> =
            self.interfaces.iter().map(|interface| interface.render(newest)).collect();
        let ips: Vec<Value> = self.ips.iter().map(|ip| ip.render(version)).collect();
        let routes: Vec<Value> = self.routes.iter().map(|route| route.render(newest)).collect();
        let mut map = Map::new();
        map.insert("cniVersion".to_owned(), Value::from(version.as_str()));
        for (key, list) in [("interfaces", interfaces), ("ips", ips), ("routes", routes)] {
            if !list.is_empty() {
                map.insert(key.to_owned(), Value::Array(list));
            }
        }
        // Before 1.0.0 the key is always there: the first readers took it for granted.
        if version < CniVersion::V1_0_0 || !self.dns.is_empty() {
            map.insert("dns".to_owned(), json!(self.dns));
        }
        Value::Object(map)
    }
}

impl Interface {
    fn render(&self, newest: bool) -> Value {
        if newest {
            return json!(self);
        }
        json!(Self { mtu: None, socket_path: None, pci_id: None, ..self.clone() })
    }
}

impl Ip {
    fn render(&self, version: CniVersion) -> Value {
        let mut value = json!(self);
        if version < CniVersion::V1_0_0
            && let Some(map) = value.as_object_mut()
        {
            let family = if self.address.contains(':') { "6" } else { "4" };
            map.insert("version".to_owned(), Value::from(family));
        }
        value
    }
}

impl Route {
    fn render(&self, newest: bool) -> Value {
        if newest {
            return json!(self);
        }
        json!(Self { dst: self.dst.clone(), gw: self.gw.clone(), ..Self::default() })
    }
}
