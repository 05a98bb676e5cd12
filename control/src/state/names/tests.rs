//! Which pods a text means, and what they are called.

use super::super::Change;
use super::super::tests::{pod, state_of};
use super::*;

#[test]
fn a_pod_is_found_by_as_much_of_its_id_as_tells_it_from_the_others() {
    let state =
        state_of(&[("abc1", "eth0"), ("abc1", "net1"), ("abd", "eth0"), ("abdicate", "eth0")]);
    let find = |id: &str, ifname: Option<&str>| {
        let found = state.find(id, ifname).map(|pod| &pod.attachment);
        found.map(|found| (found.container_id.as_str(), found.ifname.as_str()))
    };
    assert_eq!(find("abc", Some("eth0")), Ok(("abc1", "eth0")));
    assert_eq!(find("abc1", Some("net1")), Ok(("abc1", "net1")));
    assert_eq!(find("abd", None), Ok(("abd", "eth0")), "a whole ID, though another begins so");
    assert_eq!(find("abdi", None), Ok(("abdicate", "eth0")));
    for (id, ifname) in [("abe", None), ("", None), ("abc", Some("eth1")), ("bc", None)] {
        let error = find(id, ifname).unwrap_err();
        assert!(matches!(error, StateError::NoSuchPod { .. }), "{id}: {error}");
        assert!(error.to_string().contains(id) && error.to_string().contains("viaduct pods"));
        assert!(error.to_string().contains(ifname.unwrap_or("an interface here")), "{error}");
    }
    for (id, ifname, several) in [("abc1", None, 2), ("ab", None, 4), ("ab", Some("eth0"), 3)] {
        let error = find(id, ifname).unwrap_err();
        let StateError::SeveralPods { found, .. } = &error else { panic!("{error}") };
        assert_eq!(*found, several);
        let sentence = error.to_string();
        for part in [id, "eth0 of abc1", "--ifname"] {
            assert!(sentence.contains(part), "{sentence}");
        }
    }
}

#[test]
fn a_pod_is_meant_by_any_of_its_names_and_by_nothing_else() {
    let mut state = state_of(&[("c0ffee", "eth0"), ("c0ffee", "net1"), ("bare", "eth0")]);
    let named = |pod: &PodRecord, namespace: &str, name: &str| PodRecord {
        pod_namespace: namespace.to_owned(),
        pod_name: name.to_owned(),
        ..pod.clone()
    };
    let record = state.pods().next().unwrap().clone();
    let cart = named(&record, "shop", "cart");
    assert_eq!(cart.name().as_deref(), Some("shop/cart"));
    for text in ["shop/cart", "cart", "bare", "b"] {
        assert!(cart.is_called(text), "{text}");
    }
    for text in ["", "shop", "other/cart", "are", "car", "/cart", "bare/eth0"] {
        assert!(!cart.is_called(text), "{text}");
    }
    let of_podman = named(&record, "", "web");
    assert!(of_podman.is_called("web") && !of_podman.is_called("/web"));
    let nameless = named(&record, "default", "");
    assert!(!nameless.is_called("") && !nameless.is_called("default/"));
    for (pod, who) in [
        (&cart, "pod shop/cart, interface eth0 of container bare"),
        (&of_podman, "pod web, interface eth0 of container bare"),
        (&nameless, "interface eth0 of container bare"),
    ] {
        assert_eq!(pod.who(), who);
    }

    let mut longer = pod(9, &[9]);
    longer.attachment.container_id = "bareback".to_owned();
    state.apply(Change::Add(longer)).unwrap();
    let called = |text: &str| -> Vec<String> {
        let found = state.called(text).into_iter().map(|pod| pod.attachment.clone());
        found.map(|of| format!("{}/{}", of.container_id, of.ifname)).collect()
    };
    for (text, wanted) in [
        ("c0f", &["c0ffee/eth0", "c0ffee/net1"][..]),
        ("c0f/net1", &["c0ffee/net1"]),
        ("bare", &["bare/eth0"]),
        ("bare/eth0", &["bare/eth0"]),
        ("bareb/eth0", &["bareback/eth0"]),
        ("ba", &["bare/eth0", "bareback/eth0"]),
        ("pod-9", &["bareback/eth0"]),
        ("default/pod-9", &["bareback/eth0"]),
        ("/eth0", &[]),
        ("", &[]),
        ("c0f/net2", &[]),
    ] {
        let mut found = called(text);
        found.sort();
        assert_eq!(found, wanted, "{text}");
    }
}
