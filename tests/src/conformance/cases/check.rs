//! Line 32: CHECK accepts what is as ADD left it, and what later plugins added; it notices what
//! was taken away.

use serde_json::{Value, json};

use super::attached;
use crate::conformance::answer;
use crate::conformance::attached::{
    Snapshot, address_objects, addresses, list, parse_prefix, text,
};
use crate::conformance::case::{Case, Checked, Need, Stop, case, ensure};
use crate::conformance::trial::{Container, Trial};

/// The rows.
pub fn cases() -> Vec<Case> {
    let rows = accepting().into_iter().chain(refusing());
    rows.map(|case| case.needs(Need::Verb("CHECK"))).collect()
}

/// What CHECK must accept.
fn accepting() -> Vec<Case> {
    vec![
        case("b32-untouched").says("CHECK right after ADD succeeds").ask(|t| {
            let (container, result) = attached(t)?;
            answer::silent(&t.check(&container, &result)?, "CHECK")
        }),
        case("b32-repeatedly").says("CHECK changes nothing and can be repeated").ask(|t| {
            let (container, result) = attached(t)?;
            let before = Snapshot::of(&t.node, &container)?;
            for _ in 0..3 {
                answer::silent(&t.check(&container, &result)?, "CHECK")?;
            }
            before.holds_again(&t.node, &container)
        }),
        case("b32-tolerates-additions").says("CHECK accepts what another plugin added").ask(|t| {
            let (container, result) = attached(t)?;
            let (netns, ifname) = (&container.netns, container.ifname.as_str());
            netns.ip(&["link", "add", "later0", "type", "veth", "peer", "name", "later1"])?;
            netns.ip(&["addr", "add", "192.0.2.7/32", "dev", ifname])?;
            netns.ip(&["link", "set", ifname, "alias", "another plugin was here"])?;
            answer::silent(&t.check(&container, &result)?, "CHECK")
        }),
    ]
}

/// What CHECK must notice.
fn refusing() -> Vec<Case> {
    vec![
        case("b32-notices-address-gone")
            .says("CHECK notices a removed address")
            .ask(|t| notices(t, remove_addresses)),
        case("b32-notices-route-gone")
            .says("CHECK notices a removed route")
            .ask(|t| notices(t, remove_a_route)),
        case("b32-notices-interface-gone").says("CHECK notices a removed interface").ask(|t| {
            notices(t, |container, _| {
                Ok(container.netns.ip(&["link", "del", &container.ifname])?)
            })
        }),
        case("b32-notices-interface-down").says("CHECK notices an interface set down").ask(|t| {
            notices(t, |container, _| {
                Ok(container.netns.ip(&["link", "set", &container.ifname, "down"])?)
            })
        }),
        case("b32-notices-namespace-gone").says("CHECK in a namespace that is gone fails").ask(
            |t| {
                notices(t, |container, _| {
                    container.netns.remove();
                    Ok(())
                })
            },
        ),
        case("b32-compares-prev-result").says("CHECK compares with prevResult's addresses").ask(
            |t| {
                let (container, mut result) = attached(t)?;
                let ip = result.pointer_mut("/ips/0/address");
                let Some(ip) = ip else {
                    return Err(Stop::Skip("there is no address".to_owned()));
                };
                let v6 = ip.as_str().is_some_and(|address| address.contains(':'));
                *ip = json!(if v6 { "2001:db8::9/64" } else { "192.0.2.9/24" });
                answer::error(&t.check(&container, &result)?, "CHECK", &[]).map(|_| ())
            },
        ),
        case("b32-after-del").says("CHECK after DEL fails").ask(|t| {
            let (container, result) = attached(t)?;
            t.del(&container, &result)?;
            answer::error(&t.check(&container, &result)?, "CHECK", &[]).map(|_| ())
        }),
    ]
}

/// After `damage`, CHECK fails; and DEL still succeeds.
fn notices(t: &Trial, damage: impl Fn(&Container, &Value) -> Checked) -> Checked {
    let (container, result) = attached(t)?;
    damage(&container, &result)?;
    answer::error(&t.check(&container, &result)?, "CHECK", &[])?;
    t.del(&container, &result)
}

/// Removes every address that is not link-local.
fn remove_addresses(container: &Container, _: &Value) -> Checked {
    for address in address_objects(container)? {
        if text(&address, "scope") == "global" {
            let length = address.get("prefixlen").and_then(Value::as_u64).unwrap_or(32);
            let cidr = format!("{}/{length}", text(&address, "local"));
            container.netns.ip(&["addr", "del", &cidr, "dev", &container.ifname])?;
        }
    }
    Ok(())
}

/// Removes the first route of the result.
fn remove_a_route(container: &Container, result: &Value) -> Checked {
    let Some(route) = list(result, "routes").first() else {
        return Err(Stop::Skip("the result has no routes".to_owned()));
    };
    ensure(!addresses(result)?.is_empty(), || "a route without an address".to_owned())?;
    let dst = text(route, "dst");
    let v6 = parse_prefix(dst).is_some_and(|(address, _)| address.is_ipv6());
    let family = if v6 { "-6" } else { "-4" };
    Ok(container.netns.ip(&[family, "route", "del", dst])?)
}
