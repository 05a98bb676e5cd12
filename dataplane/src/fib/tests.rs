//! Tables in order, hops by weight, neighbors, and clones.

use std::iter;

use proptest::prelude::*;

use super::*;

const KERNEL: ActionId = ActionId(0);
const THROW: ActionId = ActionId(1);
const WEST: ActionId = ActionId(2);
const EAST: ActionId = ActionId(3);

const MAC_WEST: Mac = [0, 0, 0x5e, 0, 0x53, 1];
const MAC_EAST: Mac = [0, 0, 0x5e, 0, 0x53, 2];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (address, len) = text.split_once('/').unwrap();
    Prefix { address: ip(address), len: len.parse().unwrap() }
}

fn hop(uplink: u8, via: &str, mac: Option<Mac>, weight: u16) -> NextHop {
    NextHop { uplink: UplinkId(uplink), via: Some(ip(via)), mac, weight }
}

fn on_link(uplink: u8) -> NextHop {
    NextHop { uplink: UplinkId(uplink), via: None, mac: None, weight: 1 }
}

fn uplink(hops: &[NextHop]) -> Action {
    Action::Uplink { hops: hops.to_vec(), mtu: None }
}

/// Routers to the west and to the east, and as many tables as asked for.
fn fib(tables: usize) -> Fib {
    let mut fib = Fib::default();
    fib.set_tables(tables);
    fib.set_action(KERNEL, Action::Kernel);
    fib.set_action(THROW, Action::Throw);
    fib.set_action(WEST, uplink(&[hop(0, "192.0.2.1", Some(MAC_WEST), 1)]));
    fib.set_action(EAST, uplink(&[hop(1, "198.51.100.1", Some(MAC_EAST), 1)]));
    fib
}

fn mac(fib: &Fib, dst: &str) -> Option<Mac> {
    fib.route(ip(dst), 0).map(|hop| hop.mac)
}

#[test]
fn without_tables_or_routes_all_is_the_kernels() {
    assert_eq!(Fib::default().route(ip("10.0.0.1"), 0), None);
    assert_eq!(fib(2).route(ip("fd00::1"), 0), None);
}

#[test]
fn the_longest_prefix_of_a_table_decides() {
    let mut fib = fib(1);
    fib.insert(0, prefix("0.0.0.0/0"), WEST);
    fib.insert(0, prefix("10.1.0.0/16"), EAST);
    fib.insert(0, prefix("10.1.7.0/24"), KERNEL);
    assert_eq!(mac(&fib, "9.9.9.9"), Some(MAC_WEST));
    assert_eq!(mac(&fib, "10.1.6.255"), Some(MAC_EAST));
    assert_eq!(mac(&fib, "10.1.7.0"), None);
    fib.remove(0, prefix("10.1.7.0/24"));
    assert_eq!(mac(&fib, "10.1.7.0"), Some(MAC_EAST));
}

#[test]
fn an_earlier_table_decides_even_by_a_shorter_prefix() {
    let mut fib = fib(2);
    fib.insert(0, prefix("10.0.0.0/8"), WEST);
    fib.insert(1, prefix("10.1.2.3/32"), EAST);
    fib.insert(1, prefix("11.0.0.0/8"), EAST);
    assert_eq!(mac(&fib, "10.1.2.3"), Some(MAC_WEST));
    assert_eq!(mac(&fib, "11.0.0.1"), Some(MAC_EAST));
}

#[test]
fn the_kernels_local_table_keeps_the_nodes_own_addresses() {
    let mut fib = fib(2);
    fib.insert(0, prefix("10.0.0.7/32"), KERNEL);
    fib.insert(1, prefix("10.0.0.0/8"), EAST);
    assert_eq!(mac(&fib, "10.0.0.7"), None);
    assert_eq!(mac(&fib, "10.0.0.8"), Some(MAC_EAST));
}

#[test]
fn throw_goes_on_with_the_next_table_and_not_with_a_shorter_prefix() {
    let mut fib = fib(3);
    fib.insert(0, prefix("0.0.0.0/0"), WEST);
    fib.insert(0, prefix("10.0.0.0/8"), THROW);
    fib.insert(2, prefix("10.1.0.0/16"), EAST);
    assert_eq!(mac(&fib, "10.1.0.1"), Some(MAC_EAST));
    assert_eq!(mac(&fib, "10.2.0.1"), None, "thrown by the last table that knows it");
    assert_eq!(mac(&fib, "11.0.0.1"), Some(MAC_WEST));
}

#[test]
fn families_do_not_meet() {
    let mut fib = fib(1);
    fib.insert(0, prefix("0.0.0.0/0"), WEST);
    assert_eq!(mac(&fib, "::a00:1"), None);
    fib.insert(0, prefix("::/0"), EAST);
    assert_eq!(mac(&fib, "::a00:1"), Some(MAC_EAST));
    assert_eq!(mac(&fib, "10.0.0.1"), Some(MAC_WEST));
}

#[test]
fn an_ipv4_route_may_lead_to_an_ipv6_router() {
    let mut fib = fib(1);
    let hops = vec![hop(3, "fe80::1", Some(MAC_EAST), 1)];
    fib.set_action(WEST, Action::Uplink { hops, mtu: Some(1400) });
    fib.insert(0, prefix("10.2.0.0/16"), WEST);
    let expected = Hop { uplink: UplinkId(3), mac: MAC_EAST, mtu: Some(1400) };
    assert_eq!(fib.route(ip("10.2.0.1"), 77), Some(expected));
}

#[test]
fn a_changed_action_changes_all_its_routes() {
    let mut fib = fib(1);
    fib.insert(0, prefix("10.1.0.0/16"), WEST);
    fib.insert(0, prefix("fd00:1::/32"), WEST);
    fib.set_action(WEST, uplink(&[hop(0, "192.0.2.1", None, 1)]));
    assert_eq!((mac(&fib, "10.1.0.1"), mac(&fib, "fd00:1::1")), (None, None));
    fib.set_action(WEST, uplink(&[hop(0, "192.0.2.1", Some(MAC_EAST), 1)]));
    assert_eq!(mac(&fib, "10.1.0.1"), Some(MAC_EAST));
    assert_eq!(mac(&fib, "fd00:1::1"), Some(MAC_EAST));
}

#[test]
fn an_action_that_nobody_set_is_the_kernels() {
    let mut fib = fib(1);
    fib.insert(0, prefix("10.0.0.0/8"), ActionId(9));
    fib.insert(0, prefix("11.0.0.0/8"), ActionId(7));
    fib.set_action(ActionId(8), Action::Throw);
    assert_eq!((mac(&fib, "10.0.0.1"), mac(&fib, "11.0.0.1")), (None, None));
}

#[test]
fn a_destination_on_the_link_is_looked_up_among_the_neighbors_of_its_uplink() {
    let mut fib = fib(1);
    fib.set_action(WEST, uplink(&[on_link(1)]));
    fib.insert(0, prefix("192.0.2.0/24"), WEST);
    fib.set_neighbor(UplinkId(1), ip("192.0.2.9"), Some(MAC_EAST));
    fib.set_neighbor(UplinkId(0), ip("192.0.2.8"), Some(MAC_EAST));
    let expected = Hop { uplink: UplinkId(1), mac: MAC_EAST, mtu: None };
    assert_eq!(fib.route(ip("192.0.2.9"), 0), Some(expected));
    assert_eq!(fib.route(ip("192.0.2.8"), 0), None, "a neighbor on another uplink");
    fib.set_neighbor(UplinkId(1), ip("192.0.2.9"), None);
    assert_eq!(fib.route(ip("192.0.2.9"), 0), None);
}

#[test]
fn a_neighbor_without_a_route_is_the_kernels() {
    let mut fib = fib(1);
    fib.set_neighbor(UplinkId(0), ip("192.0.2.9"), Some(MAC_EAST));
    assert_eq!(mac(&fib, "192.0.2.9"), None);
}

/// How many of evenly spread hashes each of the uplinks gets, and how many none.
fn spread(fib: &Fib, dst: &str, uplinks: usize) -> (Vec<usize>, usize) {
    let (mut counts, mut none) = (vec![0; uplinks], 0);
    for flow in (0..1000_u32).map(|n| n * (u32::MAX / 999)) {
        match fib.route(ip(dst), flow) {
            Some(hop) => counts[usize::from(hop.uplink.0)] += 1,
            None => none += 1,
        }
    }
    (counts, none)
}

fn near(counts: &[usize], expected: &[usize]) -> bool {
    iter::zip(counts, expected).all(|(count, expected)| count.abs_diff(*expected) <= 2)
}

#[test]
fn hops_share_the_flows_by_weight() {
    let mut fib = fib(1);
    let mut hops: Vec<NextHop> = [1, 2, 7]
        .iter()
        .enumerate()
        .map(|(n, weight)| hop(n as u8, "192.0.2.1", Some([n as u8; 6]), *weight))
        .collect();
    fib.set_action(WEST, uplink(&hops));
    fib.insert(0, prefix("10.0.0.0/8"), WEST);
    let (counts, none) = spread(&fib, "10.0.0.1", 3);
    assert!(near(&counts, &[100, 200, 700]) && none == 0, "{counts:?} {none}");
    // Unresolved: the others share its flows by their weights.
    hops[2].mac = None;
    fib.set_action(WEST, uplink(&hops));
    let (counts, none) = spread(&fib, "10.0.0.1", 3);
    assert!(near(&counts, &[333, 667, 0]) && none == 0, "{counts:?} {none}");
    hops[0].mac = None;
    hops[1].mac = None;
    fib.set_action(WEST, uplink(&hops));
    assert_eq!(spread(&fib, "10.0.0.1", 3), (vec![0, 0, 0], 1000));
    fib.set_action(WEST, uplink(&[]));
    assert_eq!(spread(&fib, "10.0.0.1", 3), (vec![0, 0, 0], 1000));
}

#[test]
fn a_weight_of_zero_counts_as_one_and_the_largest_do_not_overflow() {
    let mut fib = fib(1);
    fib.insert(0, prefix("10.0.0.0/8"), WEST);
    let zero = [hop(0, "192.0.2.1", Some(MAC_WEST), 0), hop(1, "192.0.2.2", Some(MAC_EAST), 0)];
    fib.set_action(WEST, uplink(&zero));
    let (counts, none) = spread(&fib, "10.0.0.1", 2);
    assert!(near(&counts, &[500, 500]) && none == 0, "{counts:?} {none}");
    let many: Vec<NextHop> =
        (0..250).map(|n| hop(n % 2, "192.0.2.1", Some(MAC_WEST), u16::MAX)).collect();
    fib.set_action(WEST, uplink(&many));
    let (counts, none) = spread(&fib, "10.0.0.1", 2);
    assert!(near(&counts, &[500, 500]) && none == 0, "{counts:?} {none}");
}

#[test]
fn on_link_hops_of_a_group_count_where_the_neighbor_is_known() {
    let mut fib = fib(1);
    fib.set_action(WEST, uplink(&[on_link(0), on_link(1)]));
    fib.insert(0, prefix("192.0.2.0/24"), WEST);
    fib.set_neighbor(UplinkId(1), ip("192.0.2.9"), Some(MAC_EAST));
    assert_eq!(spread(&fib, "192.0.2.9", 2), (vec![0, 1000], 0));
    assert_eq!(spread(&fib, "192.0.2.8", 2), (vec![0, 0], 1000));
}

#[test]
fn surplus_tables_go_and_new_ones_are_empty() {
    let mut fib = fib(2);
    fib.insert(0, prefix("10.0.0.0/8"), WEST);
    fib.insert(0, prefix("fd00::/8"), WEST);
    fib.insert(1, prefix("11.0.0.0/8"), EAST);
    assert_eq!((fib.routes(), mac(&fib, "11.0.0.1")), (3, Some(MAC_EAST)));
    let all_bytes = fib.bytes();
    fib.set_tables(1);
    fib.set_tables(2);
    assert_eq!((fib.routes(), mac(&fib, "11.0.0.1")), (2, None));
    assert_eq!(mac(&fib, "10.0.0.1"), Some(MAC_WEST), "the others stay");
    assert!((1..all_bytes).contains(&fib.bytes()));
    fib.set_tables(0);
    assert_eq!((fib.routes(), fib.bytes()), (0, 0));
}

#[test]
fn a_clone_stays_as_it_was() {
    let mut fib = fib(1);
    fib.insert(0, prefix("10.0.0.0/8"), WEST);
    fib.set_action(EAST, uplink(&[on_link(0)]));
    fib.insert(0, prefix("192.0.2.0/24"), EAST);
    fib.set_neighbor(UplinkId(0), ip("192.0.2.9"), Some(MAC_EAST));
    let adopted = fib.clone();
    fib.insert(0, prefix("10.1.0.0/16"), KERNEL);
    fib.remove(0, prefix("10.0.0.0/8"));
    fib.set_neighbor(UplinkId(0), ip("192.0.2.9"), None);
    fib.set_action(WEST, Action::Kernel);
    for dst in ["10.0.0.1", "10.1.0.1", "192.0.2.9"] {
        assert!(mac(&adopted, dst).is_some(), "{dst} in the clone");
        assert_eq!(mac(&fib, dst), None, "{dst} in the original");
    }
    fib.set_tables(0);
    assert_eq!(adopted.routes(), 2);
}

proptest! {
    #[test]
    fn a_flow_keeps_its_hop_whatever_else_changes(
        flow: u32,
        weights in prop::collection::vec(1_u16..100, 2..8),
        others in prop::collection::vec((any::<u32>(), 17_u8..=32), 0..50),
    ) {
        let mut fib = fib(1);
        let hops: Vec<NextHop> = iter::zip(0.., weights)
            .map(|(n, weight)| hop(n, "192.0.2.1", Some([n; 6]), weight))
            .collect();
        fib.set_action(WEST, uplink(&hops));
        fib.insert(0, prefix("10.1.0.0/16"), WEST);
        let before = fib.route(ip("10.1.2.3"), flow);
        prop_assert!(before.is_some());
        for (address, len) in others {
            let address = Ipv4Addr::from(11 << 24 | address >> 8);
            fib.insert(0, Prefix { address: IpAddr::V4(address), len }, EAST);
            fib.set_neighbor(UplinkId(0), IpAddr::V4(address), Some(MAC_EAST));
        }
        prop_assert_eq!(fib.route(ip("10.1.2.3"), flow), before);
    }
}
