//! Tests of the specification's types: golden JSON per version, the refusals, and that no input
//! makes the parser panic.

mod bandwidth;
mod conf;
mod host_ports;
mod options;
mod result;
mod version;

use serde_json::{Value, json};

use super::*;

/// A configuration of version 1.1.0 with `extra` keys over it.
fn conf(extra: Value) -> Result<NetConf, CniError> {
    let mut map = json!({"cniVersion": "1.1.0", "name": "viaduct", "type": "viaduct-cni"});
    for (key, value) in extra.as_object().expect("an object") {
        map[key] = value.clone();
    }
    NetConf::parse(map.to_string().as_bytes())
}
