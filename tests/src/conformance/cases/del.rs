//! Lines 27, 29 and 31: DEL succeeds whatever is missing, removes what is there, and touches
//! nothing else. A DEL that fails makes a pod that cannot be deleted.

use serde_json::{Value, json};

use super::attached;
use crate::conformance::answer;
use crate::conformance::attached::{SETTLE, Snapshot, interface_goes, is_in_place};
use crate::conformance::case::{Case, Checked, case, fail};
use crate::conformance::trial::{Conf, Container, Trial, link_names};
use crate::netns::wait_until;

/// The rows.
pub fn cases() -> Vec<Case> {
    let mut cases = tolerant();
    cases.extend(tolerant_of_loss());
    cases.extend([
        case("b27-removes-everything").says("DEL leaves both sides as before ADD").ask(|t| {
            let container = t.container()?;
            let before = Snapshot::of(&t.node, &container)?;
            let result = t.add(&container)?;
            t.del(&container, &result)?;
            before.holds_again(&t.node, &container)
        }),
        case("b29-two-interfaces").says("DEL of one interface spares the other").ask(|t| {
            let (first, kept) = attached(t)?;
            let second = t.second_interface(&first, "eth1");
            let result = t.add(&second)?;
            t.del(&second, &result)?;
            interface_goes(&second)?;
            is_in_place(&kept, &first)
        }),
        case("b29-similar-ids")
            .says("long ids that differ at the end do not collide")
            .ask(similar_ids),
        case("b29-other-container").says("DEL spares other containers").ask(|t| {
            let (one, result) = attached(t)?;
            let (other, kept) = attached(t)?;
            t.del(&one, &result)?;
            interface_goes(&one)?;
            is_in_place(&kept, &other)
        }),
        case("b31-older-sandbox").says("DEL of a pod's old sandbox spares the new one").ask(|t| {
            let pod = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web";
            let (old, new) = (t.container()?, t.container()?);
            let as_pod = |verb: &str, container: &Container| {
                let mut call = t.invocation(verb, container, &t.conf());
                call.set("CNI_ARGS", Some(pod));
                t.ask(&call)
            };
            answer::result(&as_pod("ADD", &old)?, "ADD of the old sandbox")?;
            let kept = answer::result(&as_pod("ADD", &new)?, "ADD of the new sandbox")?;
            answer::silent(&as_pod("DEL", &old)?, "DEL of the old sandbox")?;
            is_in_place(&kept, &new)
        }),
    ]);
    cases
}

/// Line 27: what may be missing of the call.
fn tolerant() -> Vec<Case> {
    vec![
        case("b27-before-add").says("DEL of a container never added succeeds").ask(|t| {
            let container = t.container()?;
            let before = Snapshot::of(&t.node, &container)?;
            del(t, &container, &t.conf())?;
            before.holds_again(&t.node, &container)
        }),
        case("b27-twice").says("a second DEL succeeds").ask(|t| {
            let (container, result) = attached(t)?;
            t.del(&container, &result)?;
            t.del(&container, &result)
        }),
        case("b27-without-prev-result").says("DEL needs no prevResult").ask(|t| {
            let (container, _) = attached(t)?;
            del(t, &container, &t.conf())?;
            interface_goes(&container)
        }),
        case("b27-empty-prev-result").says("DEL survives a prevResult without content").ask(|t| {
            let (container, _) = attached(t)?;
            let empty = json!({"prevResult": {"cniVersion": t.version}});
            del(t, &container, &t.conf_with(empty))?;
            interface_goes(&container)
        }),
    ]
}

/// Line 27: what may have happened to the namespace and the interface.
fn tolerant_of_loss() -> Vec<Case> {
    vec![
        case("b27-without-netns")
            .says("DEL without CNI_NETNS succeeds and cleans")
            .ask(|t| no_netns(t, None)),
        case("b27-empty-netns")
            .says("DEL with an empty CNI_NETNS succeeds and cleans")
            .ask(|t| no_netns(t, Some(""))),
        case("b27-netns-path-gone").says("DEL after the namespace is gone succeeds").ask(|t| {
            attached(t)?; // what a plugin makes once per node is there from now on
            let before = link_names(&t.node)?;
            let (container, result) = attached(t)?;
            container.netns.remove();
            t.del(&container, &result)?;
            host_ends_go(t, &before)
        }),
        case("b27-interface-gone").says("DEL after the interface is gone succeeds").ask(|t| {
            let (container, result) = attached(t)?;
            container.netns.ip(&["link", "del", &container.ifname])?;
            t.del(&container, &result)
        }),
        case("b27-interface-renamed").says("DEL after the interface was renamed succeeds").ask(
            |t| {
                let (container, result) = attached(t)?;
                let netns = &container.netns;
                netns.ip(&["link", "set", &container.ifname, "down"])?;
                netns.ip(&["link", "set", &container.ifname, "name", "renamed0"])?;
                t.del(&container, &result)
            },
        ),
        case("b27-other-version").says("DEL works in another version than ADD").ask(|t| {
            let container = t.container()?;
            let conf = t.conf_with(json!({"cniVersion": "0.4.0"}));
            let result = t.add_with(&container, &conf)?;
            t.del(&container, &result)?;
            interface_goes(&container)
        }),
    ]
}

fn del(t: &Trial, container: &Container, conf: &Conf) -> Checked {
    answer::silent(&t.ask(&t.invocation("DEL", container, conf))?, "DEL")
}

/// Without the namespace a plugin may not reach the interface; what it reserved it can free. The
/// same container id can be added again, in a new namespace.
fn no_netns(t: &Trial, netns: Option<&str>) -> Checked {
    let (container, result) = attached(t)?;
    let mut call = t.invocation("DEL", &container, &t.conf_with(json!({"prevResult": result})));
    call.set("CNI_NETNS", netns);
    answer::silent(&t.ask(&call)?, "DEL")?;
    let fresh = t.container()?;
    let mut call = t.invocation("ADD", &fresh, &t.conf());
    call.set("CNI_CONTAINERID", Some(&container.id));
    let result = answer::result(&t.ask(&call)?, "ADD of the same id afterwards")?;
    is_in_place(&result, &fresh)?;
    // The fresh namespace's attachment has the id of the first container.
    call.set("CNI_COMMAND", Some("DEL"));
    answer::silent(&t.ask(&call)?, "DEL")
}

/// The node has the links it had before; what a plugin keeps for all containers may stay.
fn host_ends_go(t: &Trial, before: &Value) -> Checked {
    let gone = || Ok(link_names(&t.node)? == *before);
    wait_until("the host's end is gone from the node", SETTLE, gone)
        .or_else(|error| fail(error.to_string()))
}

/// Runtimes use ids of 64 hexadecimal digits; names cut from their beginning collide.
fn similar_ids(t: &Trial) -> Checked {
    let stem = format!("{:0<60}", t.network.replace('-', "x"));
    let (one, other) = (t.container()?, t.container()?);
    let call = |verb: &str, container: &Container, tail: &str| {
        let mut call = t.invocation(verb, container, &t.conf());
        call.set("CNI_CONTAINERID", Some(&format!("{stem}{tail}")));
        t.ask(&call)
    };
    answer::result(&call("ADD", &one, "a")?, "ADD")?;
    let kept = answer::result(&call("ADD", &other, "b")?, "ADD of a similar id")?;
    answer::silent(&call("DEL", &one, "a")?, "DEL")?;
    interface_goes(&one)?;
    is_in_place(&kept, &other)
}
