//! Lines 20 and 25: the result of ADD against itself and against the kernel.

use serde_json::Value;

use super::attached;
use crate::conformance::attached::{
    address_objects, addresses, container_interface, host_interfaces, ips_point_at_the_container,
    is_in_place, link, list, macs_are_real, parse_prefix, text,
};
use crate::conformance::case::{Case, Checked, Stop, case, ensure, fail};
use crate::conformance::trial::{Container, Trial};

/// The rows.
pub fn cases() -> Vec<Case> {
    interfaces().into_iter().chain(addressing()).collect()
}

/// Line 20: interfaces of the result.
fn interfaces() -> Vec<Case> {
    vec![
        case("b20-container-interface").says("the container's interface is in the result").ask(
            |t| {
                let (container, result) = attached(t)?;
                let (_, interface) = container_interface(&result, &container)?;
                ensure(!text(interface, "mac").is_empty(), || format!("it has no mac: {result}"))
            },
        ),
        case("b20-host-interface").says("the host's end is in the result, without sandbox").ask(
            |t| {
                let (_, result) = attached(t)?;
                let host = host_interfaces(&result);
                ensure(!host.is_empty(), || format!("no interface without sandbox: {result}"))?;
                for interface in host {
                    let name = text(interface, "name");
                    ensure(link(&t.node, name)?.is_some(), || {
                        format!("{name} is not on the node")
                    })?;
                }
                Ok(())
            },
        ),
        case("b20-macs").says("MAC addresses of the result are those of the devices").ask(|t| {
            let (container, result) = attached(t)?;
            macs_are_real(&result, &container, &t.node)
        }),
        case("b20-ips-point-at-interface").says("ips[].interface is the container's").ask(|t| {
            let (container, result) = attached(t)?;
            ips_point_at_the_container(&result, &container)
        }),
    ]
}

/// Lines 20 and 25: addresses, routes and dns of the result.
fn addressing() -> Vec<Case> {
    vec![
        case("b20-ips-and-gateways")
            .says("addresses are CIDR, gateways of their family")
            .ask(gateways),
        case("b20-in-place").says("the interface is up, addresses and routes are set").ask(|t| {
            let (container, result) = attached(t)?;
            is_in_place(&result, &container)
        }),
        case("b20-no-empty-dns")
            .says("an empty dns is left out from 1.0.0 on")
            .ask(|t| {
                let (_, result) = attached(t)?;
                let empty =
                    result.get("dns").and_then(Value::as_object).is_some_and(|d| d.is_empty());
                ensure(!empty, || "the result has an empty dns".to_owned())
            })
            .version("1.0.0"),
        case("b20-distinct-addresses").says("two containers get different addresses").ask(|t| {
            let (_, one) = attached(t)?;
            let (_, two) = attached(t)?;
            let (one, two) = (addresses(&one)?, addresses(&two)?);
            let shared = one.iter().find(|address| two.contains(address));
            ensure(shared.is_none(), || format!("both got {shared:?}"))
        }),
        case("b25-addresses-usable-at-once").says("no address is tentative when ADD returns").ask(
            |t| {
                let container = t.container()?;
                let call = t.invocation("ADD", &container, &t.conf());
                let outcome = t.ask(&call)?;
                let result = crate::conformance::answer::result(&outcome, "ADD")?;
                t.note(format!("ADD took {} ms", outcome.took.as_millis()));
                usable_at_once(&result, &container)
            },
        ),
    ]
}

fn gateways(t: &Trial) -> Checked {
    let (_, result) = attached(t)?;
    for ip in list(&result, "ips") {
        let Some((address, Some(_))) = parse_prefix(text(ip, "address")) else {
            return fail(format!("ips[].address is not in CIDR notation: {ip}"));
        };
        let gateway = text(ip, "gateway");
        if gateway.is_empty() {
            continue;
        }
        match parse_prefix(gateway) {
            Some((gateway, None)) if gateway.is_ipv4() == address.is_ipv4() => {}
            _ => return fail(format!("the gateway is no address of the family: {ip}")),
        }
    }
    Ok(())
}

/// Every address of the result is neither tentative nor a failed duplicate (RFC 4862, section 5.4).
pub fn usable_at_once(result: &Value, container: &Container) -> Checked {
    let wanted = addresses(result)?;
    if wanted.is_empty() {
        return Err(Stop::Skip("the result has no addresses".to_owned()));
    }
    for object in address_objects(container)? {
        let flagged = ["tentative", "dadfailed"].iter().find(|flag| object.get(**flag).is_some());
        let ours = text(&object, "local").parse().is_ok_and(|local| wanted.contains(&local));
        ensure(!ours || flagged.is_none(), || {
            format!("{} is {flagged:?}", text(&object, "local"))
        })?;
    }
    Ok(())
}
