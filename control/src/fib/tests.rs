//! Sequences of events without a kernel; `tests/fib_mirror.rs` has them with one.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::port::Mac;

use super::*;
use crate::netlink::{NextHop, Nexthop, NexthopRoute, Place as Stands, Policy, RouteKind, Verdict};

const ETH1: u32 = 3;
const ETH2: u32 = 4;
const OTHER: u32 = 9;

fn mac(number: u8) -> Mac {
    [6, 0, 0, 0, 0, number]
}

/// A mirror with two uplinks, whose routers `192.0.2.N` and `fd01::N` have the MAC address N.
fn mirror() -> Mirror {
    let mut mirror = Mirror::new(vec![
        "10.0.0.0/8".parse().expect("prefix"),
        "fd10::/16".parse().expect("prefix"),
    ]);
    let lookup = |(ipv6, priority, table)| Policy {
        ipv6,
        priority,
        conditions: Vec::new(),
        iif: None,
        own_packets: false,
        verdict: Verdict::Lookup(table),
    };
    let rules = [(false, 0, 255), (false, 100, 100), (false, 32766, 254), (true, 32766, 254)];
    mirror.look_into(Order::of(&rules.map(lookup)));
    mirror.set_uplink(UplinkId(0), Some(ETH1));
    mirror.set_uplink(UplinkId(1), Some(ETH2));
    for index in [ETH1, ETH2, OTHER] {
        mirror.apply(&Event::Link(link(index)));
    }
    for number in 2..10 {
        for address in [format!("192.0.2.{number}"), format!("fd01::{number}")] {
            let address = address.parse().expect("address");
            for index in [ETH1, ETH2] {
                let neighbor = Neighbor::permanent(index, address, mac(number));
                mirror.apply(&Event::Neighbor(neighbor));
            }
        }
    }
    mirror
}

fn link(index: u32) -> Link {
    Link { index, name: format!("eth{index}"), up: true, carrier: true, ..Link::default() }
}

fn hop(via: &str, index: u32) -> NextHop {
    let via = Some(via.parse().expect("address"));
    NextHop { via, index, weight: 1, onlink: false, dead: false }
}

fn route(dst: &str, via: &str) -> Route {
    let dst: IpNet = dst.parse().expect("prefix");
    Route { place: Stands::Alone, ..Route::via(dst, via.parse().expect("address"), ETH1, 4) }
}

fn put(mirror: &mut Mirror, place: Stands, route: &Route) -> Followed {
    mirror.apply(&Event::Route(Route { place, ..route.clone() }))
}

/// The MAC addresses that flows to a destination leave to; empty if the kernel takes them.
fn to(mirror: &Mirror, dst: &str) -> Vec<u8> {
    let dst: IpAddr = dst.parse().expect("address");
    let hops = (0..100).filter_map(|flow| mirror.fib().route(dst, flow * (u32::MAX / 100)));
    hops.map(|hop| hop.mac[5]).collect::<BTreeSet<u8>>().into_iter().collect()
}

#[test]
fn ipv4_routes_of_one_metric_stand_in_the_kernels_order_and_the_first_decides() {
    let mut mirror = mirror();
    let [a, b, c, d] = [2, 3, 4, 5].map(|n| route("10.1.0.0/16", &format!("192.0.2.{n}")));
    put(&mut mirror, Stands::Alone, &a);
    assert!(!put(&mut mirror, Stands::After, &b).changed);
    assert_eq!(to(&mirror, "10.1.0.1"), [2]);
    assert!(put(&mut mirror, Stands::Before, &c).changed);
    assert_eq!(to(&mirror, "10.1.0.1"), [4]);
    put(&mut mirror, Stands::Over, &d);
    assert_eq!(to(&mirror, "10.1.0.1"), [5], "in the place of the first");
    mirror.apply(&Event::RouteGone(d));
    assert_eq!(to(&mirror, "10.1.0.1"), [2]);
    mirror.apply(&Event::RouteGone(a));
    assert_eq!(to(&mirror, "10.1.0.1"), [3]);
    mirror.apply(&Event::RouteGone(b));
    assert!(to(&mirror, "10.1.0.1").is_empty());
    assert_eq!((mirror.routes(), mirror.fib().routes()), (0, 0));
}

#[test]
fn of_metrics_the_smallest_decides_and_of_prefixes_the_longest() {
    let mut mirror = mirror();
    put(&mut mirror, Stands::Alone, &Route { metric: 20, ..route("10.1.0.0/16", "192.0.2.2") });
    put(&mut mirror, Stands::Alone, &Route { metric: 10, ..route("10.1.0.0/16", "192.0.2.3") });
    put(&mut mirror, Stands::Alone, &route("10.1.2.0/24", "192.0.2.4"));
    assert_eq!((to(&mirror, "10.1.0.1"), to(&mirror, "10.1.2.1")), (vec![3], vec![4]));
    let outside = route("172.16.0.0/12", "192.0.2.2");
    assert_eq!(put(&mut mirror, Stands::Alone, &outside), Followed::default());
    put(&mut mirror, Stands::Alone, &route("0.0.0.0/0", "192.0.2.5"));
    assert_eq!(to(&mirror, "10.2.0.1"), [5], "what holds a direct prefix matters");
}

#[test]
fn ipv6_routes_by_routers_are_one_that_grows_and_shrinks() {
    let mut mirror = mirror();
    let one = |n| Route { metric: 1024, ..route("fd10::/32", &format!("fd01::{n}")) };
    put(&mut mirror, Stands::Alone, &one(2));
    let both = vec![hop("fd01::3", ETH2), hop("fd01::2", ETH1)];
    put(&mut mirror, Stands::After, &Route { next_hops: both, ..one(3) });
    assert_eq!((to(&mirror, "fd10::1"), mirror.routes()), (vec![2, 3], 1));
    let device = Route { next_hops: vec![NextHop { via: None, ..hop("::", ETH1) }], ..one(2) };
    put(&mut mirror, Stands::After, &device);
    assert!(to(&mirror, "fd10::1").is_empty(), "the kernel chooses among two of one metric");
    mirror.apply(&Event::RouteGone(device));
    mirror.apply(&Event::RouteGone(one(2)));
    assert_eq!(to(&mirror, "fd10::1"), [3]);
    put(&mut mirror, Stands::Over, &one(4));
    assert_eq!((to(&mirror, "fd10::1"), mirror.routes()), (vec![4], 1));
    mirror.apply(&Event::RouteGone(one(4)));
    assert_eq!((mirror.routes(), mirror.fib().routes()), (0, 0));
}

#[test]
fn what_asks_for_more_than_a_destination_or_leads_elsewhere_is_the_kernels() {
    let mut mirror = mirror();
    put(&mut mirror, Stands::Alone, &route("10.0.0.0/8", "192.0.2.2"));
    put(&mut mirror, Stands::Alone, &route("fd10::/16", "fd01::2"));
    let dst = "10.1.0.0/16";
    let hops = vec![hop("192.0.2.2", ETH1), hop("192.0.2.3", OTHER)];
    let from = Some("fd10:2::/32".parse().expect("prefix"));
    for (probe, kernels) in [
        ("10.1.0.1", Route { tos: 8, ..route(dst, "192.0.2.3") }),
        ("10.1.0.1", Route { encapsulates: true, ..route(dst, "192.0.2.3") }),
        ("10.1.0.1", Route { kind: RouteKind::BlackHole, next_hops: vec![], ..route(dst, "::1") }),
        ("10.1.0.1", Route { kind: RouteKind::Local, ..route(dst, "192.0.2.3") }),
        ("10.1.0.1", Route { next_hops: hops, ..route(dst, "192.0.2.3") }),
        ("fd10:1::1", Route { from, ..route("fd10:1::/32", "fd01::3") }),
    ] {
        assert_eq!(to(&mirror, probe), [2]);
        assert!(put(&mut mirror, Stands::Alone, &kernels).changed, "{kernels:?}");
        assert!(to(&mirror, probe).is_empty(), "{kernels:?}");
        mirror.apply(&Event::RouteGone(kernels));
    }
    assert_eq!(to(&mirror, "10.1.0.1"), [2]);
}

#[test]
fn tables_are_asked_in_their_order_and_throw_leads_to_the_next() {
    let mut mirror = mirror();
    put(&mut mirror, Stands::Alone, &route("10.0.0.0/8", "192.0.2.2"));
    put(&mut mirror, Stands::Alone, &Route { table: 100, ..route("10.1.0.0/16", "192.0.2.3") });
    put(&mut mirror, Stands::Alone, &Route { table: 99, ..route("10.0.0.0/8", "192.0.2.4") });
    assert_eq!((to(&mirror, "10.1.0.1"), to(&mirror, "10.2.0.1")), (vec![3], vec![2]));
    let throw = Route { table: 100, kind: RouteKind::Throw, ..route("10.1.2.0/24", "192.0.2.2") };
    put(&mut mirror, Stands::Alone, &Route { next_hops: vec![], ..throw });
    assert_eq!(to(&mirror, "10.1.2.1"), [2]);
}

#[test]
fn a_route_by_a_nexthop_object_follows_it_and_goes_with_it() {
    let mut mirror = mirror();
    let object = |id, route| Event::Nexthop(Nexthop { id, route });
    mirror.apply(&object(1, NexthopRoute::Way(hop("192.0.2.2", ETH1))));
    mirror.apply(&object(2, NexthopRoute::Way(hop("fd01::3", ETH2))));
    mirror.apply(&object(9, NexthopRoute::Group(vec![(1, 1), (2, 3)])));
    let by = Route { nexthop: Some(9), ..route("10.1.0.0/16", "192.0.2.9") };
    put(&mut mirror, Stands::Alone, &by);
    assert_eq!(to(&mirror, "10.1.0.1"), [2, 3], "also by a router of the other family");
    mirror.apply(&object(1, NexthopRoute::Way(hop("192.0.2.4", ETH1))));
    assert_eq!(to(&mirror, "10.1.0.1"), [3, 4]);
    mirror.apply(&Event::NexthopGone(2));
    assert_eq!(to(&mirror, "10.1.0.1"), [4]);
    mirror.apply(&object(1, NexthopRoute::Other));
    assert!(to(&mirror, "10.1.0.1").is_empty(), "a blackhole");
    assert!(mirror.apply(&Event::NexthopGone(9)).resync, "IPv4 routes go without a message");
}

#[test]
fn a_link_that_is_down_takes_its_hops_along_and_no_route_by_it_costs_nothing() {
    let mut mirror = mirror();
    let both = vec![hop("192.0.2.2", ETH1), hop("192.0.2.3", ETH2)];
    put(&mut mirror, Stands::Alone, &Route { next_hops: both, ..route("10.1.0.0/16", "::1") });
    put(&mut mirror, Stands::Alone, &route("10.2.0.0/16", "192.0.2.2"));
    let down = |index| Event::Link(Link { up: false, carrier: false, ..link(index) });
    assert_eq!(mirror.apply(&down(OTHER)), Followed::default());
    assert_eq!(mirror.apply(&down(ETH1)), Followed { changed: true, resync: true });
    assert_eq!((to(&mirror, "10.1.0.1"), to(&mirror, "10.2.0.1")), (vec![3], vec![]));
    assert_eq!(mirror.apply(&down(ETH1)), Followed::default(), "nothing new");
    assert!(mirror.apply(&Event::LinkGone(link(ETH2))).resync);
    assert!(to(&mirror, "10.1.0.1").is_empty());
}

#[test]
fn numbers_of_actions_are_dense_and_used_again() {
    let mut mirror = mirror();
    for round in 0..1000 {
        let way = route("10.1.0.0/16", &format!("192.0.2.{}", 2 + round % 5));
        put(&mut mirror, Stands::Alone, &Route { mtu: Some(1280 + round), ..way.clone() });
        put(&mut mirror, Stands::Alone, &Route { mtu: Some(1280 + round), metric: 5, ..way });
    }
    assert_eq!(mirror.ways.iter().count(), 1, "two routes go one way");
    assert!(mirror.ways.iter().all(|(id, _)| id.0 <= 3), "{:?}", mirror.ways);
}

#[test]
fn a_listing_goes_on_behind_any_route() {
    let mut mirror = mirror();
    for number in 0..20 {
        put(&mut mirror, Stands::Alone, &route(&format!("10.{number}.0.0/16"), "192.0.2.2"));
    }
    put(&mut mirror, Stands::Alone, &Route { metric: 7, ..route("10.3.0.0/16", "192.0.2.3") });
    let all: Vec<RouteKey> = mirror.routes_after(None).map(|(key, _)| key).collect();
    assert_eq!(all.len(), 21);
    assert!(all.is_sorted());
    for (number, key) in all.iter().enumerate() {
        let text = serde_json::to_string(key).expect("a key is plain");
        let key = serde_json::from_str(&text).expect("and comes back");
        let rest = mirror.routes_after(Some(key)).map(|(key, _)| key);
        assert!(rest.eq(all[number + 1..].iter().copied()));
    }
    let (_, first) = mirror.routes_after(None).next().expect("a route");
    assert_eq!(first.hops[0].dev, "eth3");
    assert!(first.decides && first.hops[0].resolved);
}

#[test]
fn default_routes_are_told_as_the_kernel_has_them_also_where_nothing_direct_is() {
    let mut mirror = Mirror::new(vec!["10.0.0.0/8".parse().expect("prefix")]);
    let lookup = |ipv6| Policy {
        ipv6,
        priority: 32766,
        conditions: Vec::new(),
        iif: None,
        own_packets: false,
        verdict: Verdict::Lookup(254),
    };
    mirror.look_into(Order::of(&[lookup(false), lookup(true)]));
    mirror.apply(&Event::Link(link(ETH1)));
    let src = Some("192.0.2.1".parse().expect("address"));
    let v4 = Route { src, metric: 7, ..route("0.0.0.0/0", "192.0.2.2") };
    let v6 = Route { metric: 1024, ..route("::/0", "fd01::2") };
    for route in [&v4, &v6] {
        put(&mut mirror, Stands::Alone, route);
    }
    put(&mut mirror, Stands::Alone, &route("10.1.0.0/16", "192.0.2.2"));
    put(&mut mirror, Stands::Alone, &route("fd10::/16", "fd01::2"));
    assert_eq!(mirror.routes(), 3, "an IPv6 route that nothing direct is behind is not kept");
    let told = |route: &Route| Route { place: Stands::After, ..route.clone() };
    assert_eq!(mirror.default_routes(254), [told(&v4), told(&v6)]);
    assert_eq!(mirror.default_routes(255), []);
    mirror.apply(&Event::LinkGone(link(ETH1)));
    let defaults = mirror.default_routes(254);
    assert!(defaults.iter().all(|route| route.next_hops.iter().all(|hop| hop.dead)));
}

#[test]
fn rules_and_lost_events_take_a_resync_and_our_own_rule_does_not() {
    let mut mirror = mirror();
    let rule = |iif: Option<&str>| crate::netlink::Rule {
        ipv6: false,
        priority: 220,
        iif: iif.map(str::to_owned),
        table: 100,
        protocol: 0,
    };
    assert!(mirror.apply(&Event::Rule(rule(None))).resync);
    assert!(mirror.apply(&Event::RuleGone(rule(Some("eth0")))).resync);
    assert!(!mirror.apply(&Event::Rule(rule(Some(WORKER_IFNAME)))).resync);
    assert!(mirror.apply(&Event::Overrun).resync);
}
