//! Line 34: GC removes the attachments of its network that are not listed, and nothing else.

use serde_json::{Value, json};

use super::attached;
use crate::conformance::answer::{self, code};
use crate::conformance::attached::{interface_goes, is_in_place};
use crate::conformance::case::{Case, Checked, Need, case};
use crate::conformance::trial::{Container, Trial, unique};

/// The key of the specification, section "GC".
const KEY: &str = "cni.dev/valid-attachments";
/// The key that some releases of libcni sent instead (containernetworking/cni issue 1101).
const OLD_KEY: &str = "cni.dev/attachments";

/// The rows.
pub fn cases() -> Vec<Case> {
    let rows = choosing().into_iter().chain(around());
    rows.map(|case| case.needs(Need::Verb("GC"))).collect()
}

/// Which attachments of the network go.
fn choosing() -> Vec<Case> {
    vec![
        case("b34-key-absent").says("without the key: code 7 or no effect, never a purge").ask(
            |t| {
                let (container, result) = attached(t)?;
                let outcome = t.ask(&t.network_invocation("GC", &t.conf()))?;
                if outcome.code == Some(0) {
                    answer::silent(&outcome, "GC")?;
                } else {
                    answer::error(&outcome, "GC without the key", &[code::CONFIG])?;
                }
                is_in_place(&result, &container)
            },
        ),
        case("b34-empty-list").says("an empty list removes every attachment").ask(|t| {
            let (one, _) = attached(t)?;
            let (other, _) = attached(t)?;
            gc(t, KEY, &[])?;
            interface_goes(&one)?;
            interface_goes(&other)
        }),
        case("b34-partial-list")
            .says("a listed attachment stays, another goes")
            .ask(|t| partial(t, KEY)),
        case("b34-old-key").says("the key of older libcni works too").ask(|t| partial(t, OLD_KEY)),
        case("b34-interface-counts").says("the interface name is part of an attachment").ask(|t| {
            let (first, result) = attached(t)?;
            let second = t.second_interface(&first, "eth1");
            t.add(&second)?;
            gc(t, KEY, &[&first])?;
            interface_goes(&second)?;
            is_in_place(&result, &first)
        }),
    ]
}

/// What GC spares, and what may precede and follow it.
fn around() -> Vec<Case> {
    vec![
        case("b34-other-network").says("attachments of another network stay").ask(|t| {
            let container = t.container()?;
            let conf = t.conf_with(json!({"name": unique("conformance-other")}));
            let result = t.add_with(&container, &conf)?;
            gc(t, KEY, &[])?;
            is_in_place(&result, &container)
        }),
        case("b34-repeatedly").says("GC with nothing to do succeeds").ask(|t| {
            gc(t, KEY, &[])?;
            gc(t, KEY, &[])
        }),
        case("b34-then-add-and-del").says("after GC the container can be added again").ask(|t| {
            let (container, _) = attached(t)?;
            gc(t, KEY, &[])?;
            interface_goes(&container)?;
            let result = t.add(&container)?;
            is_in_place(&result, &container)?;
            t.del(&container, &result)
        }),
        case("b34-namespace-gone").says("GC cleans after namespaces that are gone").ask(|t| {
            let (container, _) = attached(t)?;
            container.netns.remove();
            gc(t, KEY, &[])
        }),
    ]
}

/// GC with these attachments as the valid ones; must succeed silently.
fn gc(t: &Trial, key: &str, valid: &[&Container]) -> Checked {
    let valid: Vec<Value> =
        valid.iter().map(|c| json!({"containerID": c.id, "ifname": c.ifname})).collect();
    let mut conf = t.conf();
    conf.insert(key.to_owned(), json!(valid));
    answer::silent(&t.ask(&t.network_invocation("GC", &conf))?, "GC")
}

fn partial(t: &Trial, key: &str) -> Checked {
    let (kept, result) = attached(t)?;
    let (stale, _) = attached(t)?;
    gc(t, key, &[&kept])?;
    interface_goes(&stale)?;
    is_in_place(&result, &kept)
}
