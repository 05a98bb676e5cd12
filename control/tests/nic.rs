//! What the kernel says of interfaces that could be uplinks, and what it makes of our wishes, on
//! real interfaces in a namespace of their own (needs root).

mod namespace;

use control::ethtool::Ethtool;
use control::netdev::xdp_features;
use control::netlink::{Link, Netlink};
use control::uplink::channels::ChannelLog;
use control::uplink::fitness::{Unfit, check, judge};
use namespace::{Namespace, run};

fn links(namespace: &Namespace) -> Vec<Link> {
    namespace.visit(|| Netlink::open().expect("netlink").links().expect("links"))
}

fn veth(namespace: &Namespace, queues: u32) {
    let sizes = format!("numrxqueues {queues} numtxqueues {queues}");
    namespace.run(&format!("ip link add up0 {sizes} type veth peer name far0 {sizes}"));
}

#[test]
#[ignore = "needs root"]
fn channels_are_read_set_and_put_back() {
    let namespace = Namespace::new();
    veth(&namespace, 4);
    namespace.visit(|| {
        let mut ethtool = Ethtool::open().expect("ethtool");
        let before = ethtool.channels("up0").expect("read").expect("a veth has channels");
        assert_eq!((before.rx.max, before.tx.max, before.combined.max), (4, 4, 0));
        assert_eq!(before.receive_queues(), 4);
        for queues in [1, 3, 4, 2] {
            let wanted = before.with_queues(queues).expect("as many as it was made with");
            ethtool.set_channels("up0", &wanted).expect("set");
            assert_eq!(ethtool.channels("up0").expect("read"), Some(wanted));
            assert_eq!(ethtool.rx_queues("up0").expect("read"), queues);
        }
        ethtool.set_channels("up0", &before).expect("put back");
        assert_eq!(ethtool.channels("up0").expect("read"), Some(before));

        let mut beyond = before;
        beyond.rx.now = 5;
        let refused = ethtool.set_channels("up0", &beyond).expect_err("more than it has");
        assert!(refused.to_string().starts_with("set channels of up0 to 0 combined, 5 rx, 4 tx: "));
    });
}

#[test]
#[ignore = "needs root"]
fn channels_that_the_configuration_asks_for_go_back_to_what_they_were_at_first() {
    let namespace = Namespace::new();
    veth(&namespace, 4);
    let directory = tempfile::tempdir().expect("a directory");
    let log = ChannelLog::at(directory.path().join("channels"));
    namespace.visit(|| {
        let queues = || Ethtool::open().expect("ethtool").rx_queues("up0").expect("read");
        assert!(log.restore().is_empty(), "nothing was changed, nothing is put back");
        assert!(log.set("up0", 4).is_ok() && !directory.path().join("channels").exists());
        for wanted in [2, 3] {
            log.set("up0", wanted).expect("set");
            assert_eq!(queues(), wanted);
        }
        let refused = log.set("up0", 5).expect_err("more than it has");
        assert!(refused.to_string().contains("up0 cannot have 5 queues, but 4 at most"));
        assert!(log.restore().is_empty());
        assert_eq!(queues(), 4);
        run("ip link set up0 down");
        log.set("up0", 1).expect("set");
        run("ip link del up0");
        assert!(log.restore().is_empty(), "an interface that is gone needs nothing");
    });
}

#[test]
#[ignore = "needs root"]
fn a_driver_without_channels_has_the_one_queue_that_is_known_to_be_there() {
    let namespace = Namespace::new();
    namespace.visit(|| {
        run("ip link add br0 type bridge");
        let mut ethtool = Ethtool::open().expect("ethtool");
        assert_eq!(ethtool.channels("br0").expect("read"), None);
        assert_eq!(ethtool.rx_queues("br0").expect("read"), 1);
        ethtool.channels("nothing").expect_err("no such interface");
    });
}

#[test]
#[ignore = "needs root"]
fn features_that_are_on_are_listed() {
    let namespace = Namespace::new();
    veth(&namespace, 1);
    namespace.visit(|| {
        let mut ethtool = Ethtool::open().expect("ethtool");
        let parsing = "rx-vlan-hw-parse";
        for (on, word) in [(false, "off"), (true, "on")] {
            run(&format!("ethtool -K up0 rxvlan {word}"));
            let active = ethtool.active_features("up0").expect("read");
            assert_eq!(active.contains(parsing), on, "{active:?}");
        }
        ethtool.set_features("up0", &[(parsing, false)]).expect("set");
        assert!(!ethtool.active_features("up0").expect("read").contains(parsing));
    });
}

#[test]
#[ignore = "needs root"]
fn a_veth_has_native_mode_and_no_zero_copy_and_a_bridge_has_neither() {
    let namespace = Namespace::new();
    veth(&namespace, 1);
    namespace.run("ip link add br0 type bridge");
    let links = links(&namespace);
    let ask = |name| {
        let link = links.iter().find(|link| link.name == name).expect("it was made");
        namespace.visit(|| xdp_features(link.index)).expect("read")
    };
    // Only kernels before 6.3 do not tell.
    let Some(veth) = ask("up0") else { return };
    assert!(veth.native && veth.multi_buffer && !veth.zero_copy, "{veth:?}");
    let bridge = ask("br0").expect("of one interface it told");
    assert!(!bridge.native && !bridge.zero_copy, "{bridge:?}");
}

#[test]
#[ignore = "needs root"]
fn interfaces_that_can_be_uplinks_are_told_from_others() {
    let namespace = Namespace::new();
    veth(&namespace, 1);
    namespace.visit(|| {
        run("ip link add br0 type bridge");
        run("ip link add ifb7 type ifb");
        run("ip tuntap add tap0 mode tap");
        run("ip link set far0 master br0");
    });
    let links = links(&namespace);
    assert_eq!(judge("up0", &links).map(|link| link.name.as_str()), Ok("up0"));
    for (name, found) in [
        ("lo", "lo is the loopback interface"),
        ("br0", "br0 is a bridge of far0"),
        ("far0", "far0 is a port of bridge br0"),
        ("tap0", "tap0 leads into a process"),
        ("ifb7", "ifb7 is of kind ifb"),
    ] {
        let refused = judge(name, &links).expect_err("it cannot be an uplink");
        assert!(refused.to_string().starts_with(found), "{refused}");
        let link = links.iter().find(|link| link.name == name).expect("it was made");
        check(link).expect_err("nor if it is all that is known");
    }
    assert_eq!(judge("eth9", &links), Err(Unfit::Missing { name: "eth9".to_owned() }));
}
