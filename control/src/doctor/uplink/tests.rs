//! As `doctor/tests.rs`, on a node with two uplinks: one NIC, one veth.

use super::*;
use crate::doctor::examine;
use crate::doctor::facts::VirtioFeatures;
use crate::doctor::tests::{Break, finds_in, healthy, link, links, rows_with, set};
use crate::ethtool::{ChannelCount, Channels};
use crate::netdev::XdpFeatures;
use crate::netlink::Verdict;
use crate::report::{Status, UplinkRow};

const NIC: &str = "eth1";
const VETH: &str = "veth7";

fn channels(now: u32, max: u32) -> Channels {
    Channels { combined: ChannelCount { now, max }, ..Channels::default() }
}

fn nic(name: &str, driver: &str) -> Nic {
    let xdp = XdpFeatures {
        native: true,
        multi_buffer: true,
        zero_copy: true,
        zero_copy_segments_max: 8,
        tx_checksum: false,
    };
    Nic {
        name: name.to_owned(),
        driver: Some(driver.to_owned()),
        channels: Ok(Some(channels(4, 8))),
        xdp: Ok(Some(xdp)),
        features: Ok(["rx-vlan-hw-parse".to_owned()].into()),
        virtio: None,
        pinned: None,
    }
}

fn uplink(name: &str) -> UplinkRow {
    let xdp = Some(if name == VETH { "generic" } else { "native" }.to_owned());
    let zero_copy = if name == VETH { 0 } else { 4 };
    UplinkRow { device: name.to_owned(), queues: 4, zero_copy, xdp, mtu: 1500, note: None }
}

/// The healthy node, with uplinks that are as good as they can be.
fn with_uplinks() -> Facts {
    let mut facts = healthy();
    let config = facts.config.as_mut().expect("a configuration");
    config.workers.cores = vec![0, 1];
    config.uplink.interfaces = vec![NIC.to_owned(), VETH.to_owned()];
    let is = |link: &Link| link.name == VETH;
    let mut wire = link(7, NIC, None);
    let veth = links(&mut facts).iter_mut().find(|link| is(link)).expect("it is there");
    veth.kind = Some("veth".to_owned());
    for link in [&mut wire, veth] {
        (link.carrier, link.mtu, link.mac) = (true, 1500, Some([0, 0, 0, 0, 0, 7]));
    }
    links(&mut facts).push(wire);
    set(&mut facts, "ipv4/conf/all/rp_filter", "0");
    facts.network.nics = vec![nic(NIC, "ice"), nic(VETH, "veth")];
    facts.daemon.status.as_mut().expect("a status").uplinks = vec![uplink(NIC), uplink(VETH)];
    facts
}

fn broken(change: Break) -> Facts {
    let mut facts = with_uplinks();
    change(&mut facts);
    facts
}

/// Asserts that these things are amiss, each with a mend, and nothing else.
#[track_caller]
fn finds(change: Break, expected: &[(&str, &str)]) {
    finds_in(&broken(change), expected);
}

/// Asserts that the row of a check about an interface is well, says this and proposes that.
#[track_caller]
fn says(change: Break, check: &str, name: &str, found: &str, mend: &str) {
    let facts = broken(change);
    let rows = examine(&facts);
    let about = |row: &&Row| row.check == check && row.found.contains(name);
    let row = rows.iter().find(about).unwrap_or_else(|| panic!("{rows:#?}"));
    assert_eq!(row.ok, Some(true), "{row:#?}");
    assert!(row.found.contains(found), "{row:#?} lacks {found:?}");
    assert!(row.mend.contains(mend) && row.mend.is_empty() == mend.is_empty(), "{row:#?}");
}

fn wire(facts: &mut Facts) -> &mut Link {
    links(facts).iter_mut().find(|link| link.name == NIC).expect("the NIC")
}

fn status(facts: &mut Facts) -> &mut Status {
    facts.daemon.status.as_mut().expect("a status")
}

fn features(facts: &mut Facts) -> &mut XdpFeatures {
    facts.network.nics[0].xdp.as_mut().expect("told").as_mut().expect("told")
}

/// No daemon has raised the uplinks yet.
fn unraised(facts: &mut Facts) {
    status(facts).uplinks.clear();
}

#[test]
fn without_uplinks_no_row_is_about_them() {
    let facts = healthy();
    for check in CHECKS {
        assert_eq!(check(&facts), []);
    }
    let refused = broken(|facts| facts.config = Err("no such file".to_owned()));
    assert!(CHECKS.iter().all(|check| check(&refused).is_empty()));
}

#[test]
fn good_uplinks_are_well_and_need_no_mend() {
    for facts in [with_uplinks(), broken(unraised)] {
        let rows: Vec<Row> = CHECKS.iter().flat_map(|check| check(&facts)).collect();
        assert_eq!(rows.len(), 7 * 2 + 1, "a row for each interface, and one for the rules");
        for row in rows {
            assert_eq!((row.ok, row.mend.as_str()), (Some(true), ""), "{row:#?}");
        }
        assert_eq!(rows_with(&facts, Some(false)), []);
    }
}

#[test]
fn an_interface_that_is_no_uplink_is_found_once() {
    finds(|f| wire(f).up = false, &[("uplink", "eth1 is down")]);
    finds(|f| wire(f).carrier = false, &[("uplink", "no carrier")]);
    finds(|f| wire(f).name = "eth9".to_owned(), &[("uplink", "no interface eth1")]);
    finds(|f| wire(f).kind = Some("bond".to_owned()), &[("uplink", "eth1 is a bond")]);
    finds(|f| wire(f).controller = Some(2), &[("uplink", "eth1 is a port of bridge eth0")]);
}

#[test]
fn queues_are_compared_with_workers() {
    fn set(facts: &mut Facts, now: u32, max: u32) {
        facts.network.nics[0].channels = Ok(Some(channels(now, max)));
    }
    const CHECK: &str = "uplink_queues";
    says(|f| set(f, 1, 8), CHECK, NIC, "worker 1 sends through worker 0", "channels = 2");
    says(|f| set(f, 1, 1), CHECK, NIC, "worker 1 sends through", "a NIC with 2 queues");
    says(|f| f.network.nics[0].channels = Ok(None), CHECK, NIC, "1 receive queue for", "fewer");
    says(|f| set(f, 64, 64), CHECK, NIC, "64 receive queues for 2 workers", "");
    finds(|f| set(f, 65, 65), &[(CHECK, "which can own 64 of them")]);
}

#[test]
fn configured_channels_count_instead_of_those_that_are() {
    fn configure(facts: &mut Facts, channels: u32) {
        facts.config.as_mut().expect("a configuration").uplink.channels = Some(channels);
    }
    const CHECK: &str = "uplink_queues";
    says(|f| configure(f, 8), CHECK, NIC, "8 receive queues", "");
    says(|f| configure(f, 1), CHECK, NIC, "worker 1 sends through worker 0", "channels = 2");
    let both = [(CHECK, "eth1 cannot have 9"), (CHECK, "veth7 cannot have 9")];
    finds(|f| configure(f, 9), &both);
}

#[test]
fn xdp_programs_of_others_on_an_uplink_are_found() {
    finds(|f| wire(f).xdp_program = Some(9), &[("uplink_xdp", "eth1 runs XDP program 9")]);
    finds(
        |f| {
            wire(f).xdp_program = Some(9);
            f.network.nics[0].pinned = Some(8);
        },
        &[("uplink_xdp", "not ours")],
    );
    finds(
        |f| {
            wire(f).xdp_program = Some(9);
            f.network.nics[0].pinned = Some(9);
        },
        &[],
    );
}

#[test]
fn where_the_program_runs_is_told_with_the_reason() {
    const CHECK: &str = "uplink_xdp";
    says(|_| {}, CHECK, VETH, "generic mode: of a veth it keeps", "");
    says(|_| {}, CHECK, NIC, "runs XDP in its driver", "");
    says(unraised, CHECK, NIC, "can run XDP in its driver", "");
    fn generic(facts: &mut Facts, note: &str) {
        let row = &mut status(facts).uplinks[0];
        (row.xdp, row.note) = (Some("generic".to_owned()), Some(note.to_owned()));
    }
    says(
        |f| generic(f, "disable LRO first"),
        CHECK,
        NIC,
        "generic mode: disable LRO first",
        "dmesg",
    );
    says(
        |f| {
            unraised(f);
            features(f).native = false;
        },
        CHECK,
        NIC,
        "ice runs no XDP programs",
        "a NIC whose driver",
    );
}

#[test]
fn packets_longer_than_a_buffer_need_a_driver_that_takes_several() {
    fn jumbo(facts: &mut Facts, mtu: u32, multi_buffer: bool, segments: u32) {
        unraised(facts);
        wire(facts).mtu = mtu;
        features(facts).multi_buffer = multi_buffer;
        features(facts).zero_copy_segments_max = segments;
    }
    let (xdp, zero_copy) = ("uplink_xdp", "uplink_zero_copy");
    says(|f| jumbo(f, 9000, false, 1), xdp, NIC, "the MTU is 9000", "ip link set eth1 mtu 3498");
    says(|f| jumbo(f, 3498, false, 1), xdp, NIC, "in its driver", "");
    says(|f| jumbo(f, 9000, false, 1), zero_copy, NIC, "native mode", "mtu 3498");
    says(|f| jumbo(f, 9000, true, 1), xdp, NIC, "in its driver", "");
    says(|f| jumbo(f, 9000, true, 1), zero_copy, NIC, "one buffer only", "mtu 3498");
    says(|f| jumbo(f, 9000, true, 2), zero_copy, NIC, "without copies", "");
}

#[test]
fn copies_are_told_with_the_reason() {
    const CHECK: &str = "uplink_zero_copy";
    says(|_| {}, CHECK, NIC, "4 of 4 queues of eth1 copy nothing", "");
    says(unraised, CHECK, VETH, "veth7 copies: a veth has no zero-copy", "");
    says(
        |f| {
            status(f).uplinks[0].zero_copy = 0;
            features(f).zero_copy = false;
        },
        CHECK,
        NIC,
        "0 of 4 queues of eth1 copy nothing: ice has no zero-copy in this kernel",
        "newer kernel",
    );
    says(
        |f| {
            status(f).uplinks[0].zero_copy = 3;
            status(f).uplinks[0].note = Some("queue 3: no memory".to_owned());
        },
        CHECK,
        NIC,
        "queue 3: no memory",
        "dmesg",
    );
}

#[test]
fn of_a_virtio_nic_the_host_is_to_blame() {
    fn virtio(facts: &mut Facts, agreed: &[usize]) {
        unraised(facts);
        let features = agreed.iter().copied().collect();
        facts.network.nics[0].virtio = Some(VirtioFeatures(features));
        facts.network.nics[0].features = Ok(["rx-gro-hw".to_owned()].into());
    }
    let (xdp, zero_copy) = ("uplink_xdp", "uplink_zero_copy");
    let words = "the host leaves checksums open";
    says(|f| virtio(f, &[7, 33]), xdp, NIC, words, "guest_tso4=off");
    says(|f| virtio(f, &[2, 7, 33]), xdp, NIC, "can run XDP in its driver", "");
    says(|f| virtio(f, &[2, 7, 33]), zero_copy, NIC, "without copies", "");
    says(|f| virtio(f, &[2, 7]), zero_copy, NIC, "no mapped addresses", "iommu_platform=on");
    // Its driver stops the merging when XDP begins.
    finds(|f| virtio(f, &[2, 7, 33]), &[]);
}

#[test]
fn a_kernel_that_does_not_tell_leaves_it_open() {
    let facts = broken(|f| {
        unraised(f);
        f.network.nics[0].xdp = Ok(None);
        f.network.nics[0].channels = Err("not permitted".to_owned());
        f.network.nics[0].features = Err("not permitted".to_owned());
        f.network.policies = Err("not permitted".to_owned());
    });
    assert_eq!(rows_with(&facts, Some(false)), []);
    let unknown: Vec<String> = rows_with(&facts, None).into_iter().map(|row| row.check).collect();
    let expected =
        ["uplink_queues", "uplink_xdp", "uplink_zero_copy", "uplink_offloads", "uplink_rules"];
    assert_eq!(unknown, expected);
    // A daemon knows all the same.
    says(|f| f.network.nics[0].xdp = Ok(None), "uplink_xdp", NIC, "runs XDP in its driver", "");
    says(|f| f.network.nics[0].xdp = Ok(None), "uplink_zero_copy", NIC, "4 of 4", "");
}

#[test]
fn what_pods_send_must_fit() {
    fn both(facts: &mut Facts, node: Option<u32>, mtu: u32) {
        facts.config.as_mut().expect("a configuration").node.mtu = node;
        wire(facts).mtu = mtu;
    }
    const CHECK: &str = "uplink_mtu";
    finds(|f| both(f, Some(1500), 1400), &[(CHECK, "less than the 1500 of node.mtu")]);
    finds(|f| both(f, Some(1400), 1400), &[]);
    finds(|f| both(f, None, 1280), &[]);
    finds(|f| both(f, None, 1279), &[(CHECK, "less than the 1280 of IPv6")]);
}

#[test]
fn offloads_that_change_frames_are_found() {
    fn on(facts: &mut Facts, name: &str) {
        facts.network.nics[0].features.as_mut().expect("told").insert(name.to_owned());
    }
    const CHECK: &str = "uplink_offloads";
    finds(|f| on(f, "rx-lro"), &[(CHECK, "merges what it receives (rx-lro)")]);
    finds(|f| on(f, "rx-gro-hw"), &[(CHECK, "merges what it receives (rx-gro-hw)")]);
    finds(|f| on(f, "rx-gro"), &[]);
}

#[test]
fn tags_that_xdp_does_not_see_matter_once_there_is_a_vlan() {
    fn vlan(facts: &mut Facts, parent: u32) {
        let kind = Some("vlan".to_owned());
        let vlan = Link { kind, peer_index: Some(parent), ..link(20, "eth1.7", None) };
        links(facts).push(vlan);
    }
    const CHECK: &str = "uplink_offloads";
    finds(|f| vlan(f, 7), &[(CHECK, "eth1 takes off the tags of eth1.7")]);
    finds(|f| vlan(f, 2), &[]);
    finds(
        |f| {
            vlan(f, 7);
            f.network.nics[0].features = Ok([].into());
        },
        &[],
    );
    says(|f| vlan(f, 6), CHECK, VETH, "eth1.7 is a VLAN of the veth veth7", "txvlan off");
}

#[test]
fn strict_filtering_is_amiss_with_several_uplinks() {
    const CHECK: &str = "uplink_rp_filter";
    fn strict(facts: &mut Facts) {
        set(facts, "ipv4/conf/eth1/rp_filter", "1");
    }
    finds(strict, &[(CHECK, "eth1 is strict")]);
    finds(|f| set(f, "ipv4/conf/eth1/rp_filter", "2"), &[]);
    // The larger of all's and the interface's own counts.
    let both = [(CHECK, "eth1 is strict"), (CHECK, "veth7 is strict")];
    finds(|f| set(f, "ipv4/conf/all/rp_filter", "1"), &both);
    finds(
        |f| {
            strict(f);
            f.config.as_mut().expect("a configuration").uplink.interfaces.truncate(1);
        },
        &[],
    );
}

fn policy(conditions: &[&str], iif: Option<&str>) -> Policy {
    Policy {
        ipv6: false,
        priority: 100,
        conditions: conditions.iter().map(|words| (*words).to_owned()).collect(),
        iif: iif.map(str::to_owned),
        own_packets: false,
        verdict: Verdict::Lookup(100),
    }
}

#[test]
fn rules_that_workers_cannot_follow_are_found_if_a_packet_of_a_pod_can_meet_them() {
    let found = |policy: Policy| {
        let mut facts = with_uplinks();
        facts.network.policies = Ok(vec![policy]);
        let amiss = rows_with(&facts, Some(false));
        assert!(amiss.iter().all(|row| row.check == "uplink_rules" && !row.mend.is_empty()));
        amiss.first().map(|row| row.found.clone())
    };
    let from = found(policy(&["from 10.244.0.0/16"], None)).expect("a finding");
    assert!(from.starts_with("IPv4 rule 100: from 10.244.0.0/16 lookup 100 asks more"), "{from}");
    assert!(found(policy(&["iif viaduct0"], Some("viaduct0"))).is_some());
    assert!(found(policy(&["iif vd0123456789ab"], Some("vd0123456789ab"))).is_some());
    assert!(found(policy(&["not", "fwmark 0x1"], None)).is_some());
    for (conditions, iif) in [
        (&[][..], None),
        (&["fwmark 0x1"], None),
        (&["l3mdev"], None),
        (&["iif viaduct1"], Some("viaduct1")),
        (&["iif eth0"], Some("eth0")),
    ] {
        assert_eq!(found(policy(conditions, iif)), None, "{conditions:?}");
    }
    assert_eq!(found(Policy { own_packets: true, ..policy(&["oif eth0"], None) }), None);
}

#[test]
fn memory_counts_once_for_each_worker_and_once_for_each_queue() {
    fn limit(facts: &mut Facts, bytes: u64) {
        facts.machine.capabilities = Ok(0x20_3000);
        facts.machine.locked_bytes_max = Some(bytes);
    }
    // Two workers of 128 MiB, and two interfaces of four queues.
    finds(|f| limit(f, (1280 << 20) - 1), &[("locked_memory", "of 1280 MiB")]);
    finds(|f| limit(f, 1280 << 20), &[]);
}
