//! The wishes for limits: the capability `bandwidth`, and the keys of the reference's bandwidth
//! plugin beside it, which people bring along in their configurations.
//!
//! Rates are bits per second and bursts bits (CONVENTIONS.md, "bandwidth"); `ingress` is what comes
//! to the pod. A direction that the configuration itself speaks of is the configuration's, whatever
//! the runtime sends for it; the other one stays the runtime's: who limits one way has said nothing
//! of the other.

use serde_json::{Map, Value};

use super::conf::NetConf;
use super::error::CniError;
use super::json::{self, field};
use crate::protocol::{Bandwidth, RateRequest};

/// Where runtimes put the keys.
const PATH: &str = "runtimeConfig.bandwidth";

/// The keys of one direction.
struct Keys {
    rate: &'static str,
    burst: &'static str,
}

/// Keys by which the reference, in releases 1.5.0 and 1.5.1, leaves some destinations out of the
/// limits. Passed over, they would have that limited which is not to be.
const SUBNETS: [&str; 2] = ["unshapedSubnets", "shapedSubnets"];

const INGRESS: Keys = Keys { rate: "ingressRate", burst: "ingressBurst" };
const EGRESS: Keys = Keys { rate: "egressRate", burst: "egressBurst" };

impl Bandwidth {
    /// Reads the static keys of `conf`, and the capability in `runtime`, the configuration's
    /// `runtimeConfig`.
    ///
    /// # Errors
    /// Code 7 for a value that cannot be used, code 2 for one that asks for what does not exist
    /// here; the sentence names key and value.
    pub(super) fn parse(conf: &NetConf, runtime: &Map<String, Value>) -> Result<Self, CniError> {
        let empty = Map::new();
        let capability = json::object(runtime, "bandwidth", PATH)?.unwrap_or(&empty);
        let places = [
            Place { map: &conf.map, path: String::new() },
            Place { map: capability, path: format!("{PATH}.") },
        ];
        places.iter().try_for_each(Place::refuse_subnets)?;
        let limit = |keys| match places.iter().find(|place| place.speaks_of(keys)) {
            Some(place) => place.limit(keys),
            None => Ok(None),
        };
        Ok(Bandwidth { ingress: limit(&INGRESS)?, egress: limit(&EGRESS)? })
    }
}

/// Where the keys may stand.
struct Place<'a> {
    map: &'a Map<String, Value>,
    /// What stands before a key's name in a message.
    path: String,
}

impl Place<'_> {
    fn speaks_of(&self, keys: &Keys) -> bool {
        [keys.rate, keys.burst].iter().any(|key| field(self.map, key).is_some())
    }

    fn refuse_subnets(&self) -> Result<(), CniError> {
        const WHY: &str = "because a limit holds whatever the destination; leave it out";
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        let asked = |key| Some((key, field(self.map, key).filter(|value| !is_empty(value))?));
        match SUBNETS.into_iter().find_map(asked) {
            Some((key, value)) => {
                Err(json::unsupported(&format!("{}{key}", self.path), value, WHY))
            }
            None => Ok(()),
        }
    }

    /// The limit of one direction; both keys 0 ask for none.
    fn limit(&self, keys: &Keys) -> Result<Option<RateRequest>, CniError> {
        let (rate_bps, burst_bits) = (self.number(keys.rate)?, self.number(keys.burst)?);
        let refuse = |key, value: u64, why: &str| {
            Err(json::invalid(&format!("{}{key}", self.path), &value.to_string(), why))
        };
        let with = |key| format!("{key} must be set with it, and neither be 0");
        match (rate_bps, burst_bits) {
            (0, 0) => Ok(None),
            (rate, 0) => refuse(keys.rate, rate, &with(keys.burst)),
            (0, burst) => refuse(keys.burst, burst, &with(keys.rate)),
            (_, burst) if burst > RateRequest::BURST_BITS_MAX => {
                let why = format!("it must be at most {} bits", RateRequest::BURST_BITS_MAX);
                refuse(keys.burst, burst, &why)
            }
            _ => Ok(Some(RateRequest { rate_bps, burst_bits })),
        }
    }

    /// The number at `key`; absent is 0.
    fn number(&self, key: &str) -> Result<u64, CniError> {
        let Some(value) = field(self.map, key) else {
            return Ok(0);
        };
        let expected = "a whole number of bits, not negative and below 2^64";
        let wrong = || json::wrong(&format!("{}{key}", self.path), expected, value);
        value.as_u64().ok_or_else(wrong)
    }
}
