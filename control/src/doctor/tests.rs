//! Every check against a node that is well and the same node with one thing broken: exactly that is
//! found, and nothing else.

use std::path::PathBuf;

use dataplane::xsk::socket::SocketFeatures;

use super::facts::{Cni, Daemon, Machine, Network, Networkd, PluginList};
use super::settings::TCP_LOOSE;
use super::*;
use crate::config::{Config, PortMode};
use crate::netlink::{Address, AddressScope, Link, Route, RouteKind, Rule};
use crate::nft::{Accepted, ForwardChain};
use crate::node::{NODE_COOKIE, ROUTE_PROTOCOL, ROUTE_TABLE};
use crate::report::{FramesRow, Status, WorkerRow};

const CIDR_V4: &str = "10.244.1.0/24";
const CIDR_V6: &str = "fd00:10:244:1::/64";

pub(super) fn link(index: u32, name: &str, alias: Option<&str>) -> Link {
    Link {
        index,
        name: name.to_owned(),
        alias: alias.map(str::to_owned),
        up: true,
        loopback: name == "lo",
        ..Link::default()
    }
}

fn address(index: u32, text: &str) -> Address {
    let (address, len) = text.split_once('/').expect("a prefix");
    Address {
        index,
        address: address.parse().expect("an address"),
        prefix_len: len.parse().expect("a length"),
        scope: AddressScope::Universe,
        preferred: true,
    }
}

fn unreachable(dst: &str) -> Route {
    Route {
        table: ROUTE_TABLE,
        kind: RouteKind::Unreachable,
        next_hops: Vec::new(),
        ..Route::direct(dst.parse().expect("a prefix"), 0, ROUTE_PROTOCOL)
    }
}

fn route(dst: &str, index: u32, protocol: u8) -> Route {
    Route::direct(dst.parse().expect("a prefix"), index, protocol)
}

fn rule(ipv6: bool) -> Rule {
    Rule {
        ipv6,
        priority: 220,
        iif: Some("viaduct1".to_owned()),
        table: ROUTE_TABLE,
        protocol: ROUTE_PROTOCOL,
    }
}

fn network() -> Network {
    let mut viaduct1 = link(4, "viaduct1", Some(NODE_COOKIE));
    viaduct1.xdp_program = Some(77);
    let mut host_end = link(5, "vd0123456789ab", Some("viaduct:net/one/eth0"));
    host_end.xdp_program = Some(77);
    let settings = [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "1"),
        ("ipv4/conf/default/rp_filter", "1"),
        ("ipv4/conf/viaduct0/rp_filter", "2"),
        ("ipv4/conf/viaduct1/rp_filter", "2"),
        ("ipv4/conf/vd0123456789ab/rp_filter", "2"),
        ("netfilter/nf_conntrack_tcp_loose", "1"),
        ("ipv6/conf/eth0/forwarding", "1"),
        ("ipv6/conf/eth0/accept_ra", "2"),
        ("ipv6/conf/veth7/forwarding", "1"),
        ("ipv6/conf/veth7/accept_ra", "1"),
    ];
    Network {
        links: Ok(vec![
            link(1, "lo", None),
            link(2, "eth0", None),
            link(3, "viaduct0", Some(NODE_COOKIE)),
            viaduct1,
            host_end,
            link(6, "veth7", None),
        ]),
        addresses: Ok(vec![address(2, "192.0.2.1/24"), address(2, "2001:db8::1/64")]),
        routes: Ok(vec![
            // By BGP: the whole cluster's, wider than ours.
            route("10.244.0.0/16", 2, 186),
            route("::/0", 2, 9),
            route(CIDR_V4, 3, ROUTE_PROTOCOL),
            route(CIDR_V6, 3, ROUTE_PROTOCOL),
            unreachable(CIDR_V4),
            unreachable(CIDR_V6),
        ]),
        rules: Ok(vec![rule(false), rule(true)]),
        policies: Ok(Vec::new()),
        nics: Vec::new(),
        pinned: [("viaduct1".to_owned(), 77), ("vd0123456789ab".to_owned(), 77)].into(),
        settings: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        nft_table: Ok(true),
        dropping: Ok(Vec::new()),
        legacy_tables: vec!["nat".to_owned()],
    }
}

fn list(types: &[&str]) -> PluginList {
    PluginList {
        path: "/etc/cni/net.d/10-viaduct.conflist".into(),
        types: Ok(types.iter().map(|kind| (*kind).to_owned()).collect()),
    }
}

fn status() -> Status {
    let frames = FramesRow { free: 8, total: 8, ..FramesRow::default() };
    Status {
        version: "0.1.0".to_owned(),
        ready: true,
        workers: vec![WorkerRow { hugepages: true, frames, ..WorkerRow::default() }],
        ..Status::default()
    }
}

/// A node on which all is well and known.
pub(super) fn healthy() -> Facts {
    let path = PathBuf::from("/etc/viaduct/viaduct.toml");
    let text = format!("[node]\npod_cidrs = [{CIDR_V4:?}, {CIDR_V6:?}]\n");
    Facts {
        config: Ok(Config::parse(&text, &path, &[0, 1]).expect("a configuration")),
        config_path: path,
        machine: Machine {
            release: "6.18.44-x".to_owned(),
            capabilities: Ok(u64::MAX),
            locked_bytes_max: Some(8 << 20),
            sockets: Ok(SocketFeatures { multi_buffer: true, tx_checksum: true, tx_budget: true }),
            btf: true,
            bpf_dir: "/sys/fs/bpf/viaduct".into(),
            bpf_dir_fits: Ok(()),
            hugepages_free: Ok(64),
            online: Ok([0, 1].into()),
            isolated: Ok([1].into()),
            modules: [("nf_tables", Ok(true)), ("nft_masq", Ok(true))].into(),
        },
        network: network(),
        cni: Cni {
            conf_dir: "/etc/cni/net.d".into(),
            lists: Ok(vec![list(&["portmap", "viaduct-cni", "tuning"])]),
            bin_dir: "/opt/cni/bin".into(),
            loopback: Ok(true),
        },
        networkd: Some(Networkd { removes_routes: false, removes_rules: false }),
        daemon: Daemon {
            socket: "/run/viaduct/viaduct.sock".into(),
            status: Ok(status()),
            here: Ok(true),
        },
    }
}

/// A change of a healthy node's facts.
pub(super) type Break = fn(&mut Facts);

fn broken(change: Break) -> Facts {
    let mut facts = healthy();
    change(&mut facts);
    facts
}

pub(super) fn rows_with(facts: &Facts, ok: Option<bool>) -> Vec<Row> {
    examine(facts).into_iter().filter(|row| row.ok == ok).collect()
}

/// Asserts that the doctor finds these things amiss, each with a mend, and nothing else.
#[track_caller]
pub(super) fn finds_in(facts: &Facts, expected: &[(&str, &str)]) {
    let amiss = rows_with(facts, Some(false));
    assert_eq!(amiss.len(), expected.len(), "{amiss:#?}");
    for (row, (check, part)) in amiss.iter().zip(expected) {
        assert_eq!(row.check, *check);
        assert!(row.found.contains(part), "{row:#?} lacks {part:?}");
        assert!(!row.mend.is_empty(), "{row:#?}");
    }
    assert_eq!(rows_with(facts, None), [], "nothing is unknown");
}

/// The same of the healthy node with a change.
#[track_caller]
fn finds(change: Break, expected: &[(&str, &str)]) {
    finds_in(&broken(change), expected);
}

pub(super) fn links(facts: &mut Facts) -> &mut Vec<Link> {
    facts.network.links.as_mut().expect("links")
}

fn routes(facts: &mut Facts) -> &mut Vec<Route> {
    facts.network.routes.as_mut().expect("routes")
}

pub(super) fn set(facts: &mut Facts, key: &str, value: &str) {
    facts.network.settings.insert(key.to_owned(), value.to_owned());
}

/// What of the node a daemon makes.
fn unmade(facts: &mut Facts) {
    links(facts).retain(|link| link.alias.is_none());
    routes(facts).retain(|route| route.protocol != ROUTE_PROTOCOL);
    facts.network.rules = Ok(Vec::new());
    facts.network.nft_table = Ok(false);
    facts.network.pinned.clear();
    facts.daemon.here = Ok(false);
    facts.daemon.status = Err("no daemon answers".to_owned());
}

#[test]
fn on_a_healthy_node_all_is_well_and_nothing_needs_a_mend() {
    let rows = examine(&healthy());
    assert_eq!(rows.len(), CHECKS.len(), "a row for each check");
    for row in rows {
        assert_eq!((row.ok, row.mend.as_str()), (Some(true), ""), "{row:#?}");
        assert!(!row.found.is_empty());
    }
}

#[test]
fn before_the_first_start_only_the_daemon_is_unknown() {
    let facts = broken(|facts| {
        unmade(facts);
        set(facts, "ipv4/ip_forward", "0");
        set(facts, "ipv6/conf/all/forwarding", "0");
    });
    assert_eq!(rows_with(&facts, Some(false)), []);
    let unknown = rows_with(&facts, None);
    assert_eq!(unknown.len(), 1, "{unknown:#?}");
    assert_eq!(unknown[0].check, "daemon");
}

#[test]
fn the_machine_is_looked_at() {
    finds(|f| f.machine.release = "5.15.0-91-generic".to_owned(), &[("kernel", "5.15")]);
    finds(|f| f.machine.capabilities = Ok(!(1 << 12)), &[("rights", "CAP_NET_ADMIN")]);
    finds(|f| f.machine.btf = false, &[("btf", "marker")]);
    finds(
        |f| f.machine.bpf_dir_fits = Err("/x is not on a bpffs: run mount".to_owned()),
        &[("bpf_dir", "/x is not on a bpffs")],
    );
    finds(|f| f.machine.capabilities = Ok(0x20_3000), &[("locked_memory", "of 128 MiB")]);
    finds(|f| f.machine.online = Ok([0].into()), &[("cores", "core 1")]);
    finds(
        |f| {
            f.machine.modules.insert("nft_masq", Ok(false));
        },
        &[("modules", "nft_masq")],
    );
}

#[test]
fn a_kernel_without_full_ports_degrades_and_says_so() {
    let facts = broken(|facts| {
        facts.machine.sockets =
            Ok(SocketFeatures { multi_buffer: false, tx_checksum: false, tx_budget: false });
        facts.machine.btf = false;
        facts.machine.hugepages_free = Ok(0);
        facts.machine.isolated = Ok([].into());
        facts.daemon.status.as_mut().expect("a status").workers[0].hugepages = false;
    });
    let rows = examine(&facts);
    assert!(rows.iter().all(|row| row.ok == Some(true)), "{rows:#?}");
    let hints: Vec<_> = rows.iter().filter(|row| !row.mend.is_empty()).collect();
    let checks: Vec<_> = hints.iter().map(|row| row.check.as_str()).collect();
    assert_eq!(checks, ["port_mode", "hugepages", "cores"]);
    assert!(hints[0].found.starts_with("basic ports, because the kernel"), "{hints:#?}");
    let configured = broken(|facts| {
        facts.config.as_mut().expect("a configuration").workers.port_mode = PortMode::Basic;
    });
    let rows = examine(&configured);
    let mode = rows.iter().find(|row| row.check == "port_mode").expect("its row");
    assert!(mode.found.contains("because workers.port_mode"), "{mode:#?}");
}

#[test]
fn a_configuration_that_is_refused_is_found_and_what_needs_it_is_unknown() {
    let facts = broken(|facts| {
        unmade(facts);
        facts.config = Err("viaduct.toml:3: node.mtue: unknown key".to_owned());
    });
    let amiss = rows_with(&facts, Some(false));
    assert_eq!(amiss.len(), 1, "{amiss:#?}");
    assert_eq!(amiss[0].check, "configuration");
    assert!(amiss[0].found.contains("viaduct.toml:3"));
    let unknown: Vec<_> = rows_with(&facts, None).into_iter().map(|row| row.check).collect();
    assert_eq!(unknown, ["hugepages", "cores", "forwarding", "pod_cidrs", "daemon"]);
}

#[test]
fn our_interfaces_must_filter_loosely_and_others_may_do_as_they_like() {
    let strict = "viaduct1 is strict";
    finds(|f| set(f, "ipv4/conf/viaduct1/rp_filter", "1"), &[("rp_filter", strict)]);
    finds(
        |f| set(f, "ipv4/conf/vd0123456789ab/rp_filter", "0"),
        &[("rp_filter", "vd0123456789ab is strict")],
    );
    // The larger of all's and the interface's own counts.
    finds(
        |f| {
            set(f, "ipv4/conf/all/rp_filter", "2");
            set(f, "ipv4/conf/viaduct1/rp_filter", "1");
        },
        &[],
    );
}

#[test]
fn a_kernel_that_takes_over_no_connection_is_found_and_one_that_tracks_none_yet_is_fine() {
    finds(|f| set(f, TCP_LOOSE, "0"), &[("tcp_loose", "nf_conntrack_tcp_loose is 0")]);
    finds(|f| drop(f.network.settings.remove(TCP_LOOSE)), &[]);
}

#[test]
fn forwarding_that_was_turned_off_is_found_for_the_families_that_pods_have() {
    finds(|f| set(f, "ipv4/ip_forward", "0"), &[("forwarding", "net.ipv4.ip_forward is off")]);
    finds(|f| set(f, "ipv6/conf/all/forwarding", "0"), &[("forwarding", "ipv6")]);
    finds(
        |f| {
            f.config.as_mut().expect("a configuration").node.pod_cidrs.truncate(1);
            set(f, "ipv6/conf/all/forwarding", "0");
        },
        &[],
    );
}

#[test]
fn an_interface_that_ignores_the_router_it_needs_is_found() {
    finds(|f| set(f, "ipv6/conf/eth0/accept_ra", "1"), &[("accept_ra", "eth0")]);
    // The default route has gone already.
    finds(
        |f| {
            set(f, "ipv6/conf/eth0/accept_ra", "1");
            routes(f).retain(|route| route.dst.prefix_len() != 0);
        },
        &[("accept_ra", "eth0")],
    );
    // Somebody set the default route by hand: nobody needs a router to announce itself.
    finds(
        |f| {
            set(f, "ipv6/conf/eth0/accept_ra", "1");
            routes(f).iter_mut().for_each(|route| route.protocol = route.protocol.max(16));
        },
        &[],
    );
}

#[test]
fn addresses_and_routes_of_others_within_the_pods_prefixes_are_found() {
    finds(
        |f| f.network.addresses.as_mut().expect("addresses").push(address(2, "10.244.1.1/24")),
        &[("pod_cidrs", "address 10.244.1.1 of eth0")],
    );
    finds(|f| routes(f).push(route("10.244.1.128/25", 6, 2)), &[("pod_cidrs", "dev veth7")]);
    finds(|f| routes(f).push(route("10.244.2.0/24", 6, 2)), &[]);
    finds(|f| routes(f).push(Route { table: 100, ..route("10.244.1.0/25", 6, 2) }), &[]);
}

#[test]
fn what_is_missing_of_the_kernel_path_is_found_once_it_was_made() {
    finds(|f| f.network.rules = Ok(vec![rule(true)]), &[("rule", "IPv4 rule 220")]);
    finds(
        |f| f.network.rules.as_mut().expect("rules").iter_mut().for_each(|rule| rule.table = 254),
        &[("rule", "IPv4"), ("rule", "IPv6")],
    );
    finds(
        |f| routes(f).retain(|route| *route != unreachable(CIDR_V6)),
        &[("routes", "unreachable fd00")],
    );
    finds(
        |f| routes(f).retain(|r| r.dst.to_string() != CIDR_V4 || r.next_hops.is_empty()),
        &[("routes", "10.244.1.0/24 by viaduct0")],
    );
    finds(|f| f.network.nft_table = Ok(false), &[("nft_table", "inet viaduct")]);
    finds(|f| links(f)[3].up = false, &[("node_port", "viaduct1 is down")]);
    finds(
        |f| {
            links(f).remove(3);
            f.network.rules = Ok(Vec::new());
        },
        &[("node_port", "viaduct1 is missing")],
    );
}

#[test]
fn a_device_of_somebody_else_with_our_name_is_found() {
    let facts = broken(|facts| {
        unmade(facts);
        links(facts).push(link(9, "viaduct0", None));
    });
    let amiss = rows_with(&facts, Some(false));
    assert!(amiss[0].found.contains("viaduct0 is not ours"), "{amiss:#?}");
}

#[test]
fn xdp_programs_of_others_on_our_interfaces_are_found() {
    finds(|f| links(f)[3].xdp_program = Some(8), &[("xdp", "viaduct1 runs XDP program 8")]);
    finds(|f| links(f)[4].xdp_program = Some(8), &[("xdp", "vd0123456789ab runs")]);
    finds(|f| f.network.pinned.clear(), &[("xdp", "viaduct1 runs"), ("xdp", "vd01234")]);
    finds(|f| links(f)[3].xdp_program = None, &[("xdp", "viaduct1 runs no XDP program")]);
    // A pod that is being attached, and an interface that is none of our business.
    finds(|f| links(f)[4].xdp_program = None, &[]);
    finds(|f| links(f)[1].xdp_program = Some(8), &[]);
}

fn dropping(facts: &mut Facts, family: &'static str, accepted: Vec<Accepted>) {
    let (table, name) = ("filter".to_owned(), "FORWARD".to_owned());
    facts.network.dropping = Ok(vec![ForwardChain { family, table, name, accepted }]);
}

#[test]
fn a_chain_that_drops_what_pods_send_is_found_for_each_family_it_sees() {
    let (v4, v6) = ("comes from 10.244.1.0/24", "comes from fd00:10:244:1::/64");
    finds(|f| dropping(f, "ip", Vec::new()), &[("forward_policy", v4)]);
    finds(|f| dropping(f, "ip6", Vec::new()), &[("forward_policy", v6)]);
    let both = [("forward_policy", v4), ("forward_policy", v6)];
    finds(|f| dropping(f, "inet", Vec::new()), &both);
    fn source(prefix: &str) -> Vec<Accepted> {
        vec![Accepted::Source(prefix.parse().expect("a prefix"))]
    }
    finds(|f| dropping(f, "inet", source("10.244.0.0/16")), &[("forward_policy", v6)]);
    finds(|f| dropping(f, "ip", source("10.244.1.0/25")), &[("forward_policy", v4)]);
    finds(|f| dropping(f, "inet", vec![Accepted::All]), &[]);
    for (name, is_enough) in [("viaduct0", true), ("via*", true), ("docker0", false)] {
        let mut facts = healthy();
        dropping(&mut facts, "inet", vec![Accepted::Interface(name.to_owned())]);
        assert_eq!(rows_with(&facts, Some(false)).is_empty(), is_enough, "{name}");
    }
}

#[test]
fn rules_of_the_older_iptables_are_not_guessed_at() {
    let facts = broken(|facts| facts.network.legacy_tables.push("filter".to_owned()));
    assert_eq!(rows_with(&facts, Some(false)), []);
    let unknown = rows_with(&facts, None);
    assert_eq!(unknown.len(), 1);
    assert!(unknown[0].mend.contains("iptables-legacy -S FORWARD"));
}

#[test]
fn plugins_after_ours_that_workers_bypass_are_found() {
    let after = |kind: &str| vec![list(&["viaduct-cni", "tuning", kind])];
    for (kind, amiss) in [("portmap", 1), ("bandwidth", 1), ("firewall", 0)] {
        let mut facts = healthy();
        facts.cni.lists = Ok(after(kind));
        let rows = rows_with(&facts, Some(false));
        assert_eq!(rows.len(), amiss, "{rows:#?}");
        assert!(rows.iter().all(|row| row.found.contains(kind) && row.found.contains("10-via")));
        let instead = rows.iter().all(|row| row.mend.contains("capabilities of viaduct-cni"));
        assert!(instead, "{rows:#?}");
    }
    finds(|f| f.cni.lists = Ok(vec![list(&["bridge", "portmap"])]), &[]);
    finds(|f| f.cni.loopback = Ok(false), &[("loopback_plugin", "/opt/cni/bin/loopback")]);
}

#[test]
fn a_networkd_that_removes_what_is_not_its_own_is_found() {
    let networkd = |removes_routes, removes_rules| Some(Networkd { removes_routes, removes_rules });
    let mut facts = healthy();
    for (found, amiss) in [(networkd(true, true), 2), (networkd(false, true), 1), (None, 0)] {
        facts.networkd = found;
        assert_eq!(rows_with(&facts, Some(false)).len(), amiss);
    }
}

#[test]
fn what_a_daemon_says_of_itself_is_passed_on() {
    fn status(facts: &mut Facts) -> &mut Status {
        facts.daemon.status.as_mut().expect("a status")
    }
    finds(
        |f| {
            status(f).ready = false;
            status(f).problems =
                vec!["worker 1 hangs: the kernel carries its pods; restart viaductd".into()];
        },
        &[("daemon", "worker 1 hangs")],
    );
    finds(|f| status(f).ready = false, &[("daemon", "still starting")]);
    finds(|f| status(f).workers[0].frames.free = 7, &[("daemon", "worker 0 has lost track")]);
    finds(|f| f.daemon.here = Ok(false), &[("daemon", "another network namespace")]);
    finds(
        |f| f.daemon.status = Err("no daemon answers on /x".to_owned()),
        &[("daemon", "runs in this network namespace, but no daemon answers on /x")],
    );
}

#[test]
fn what_cannot_be_read_is_unknown_and_never_a_failure() {
    let facts = broken(|facts| {
        let why = || "not permitted".to_owned();
        let Network { links, addresses, routes, rules, nft_table, dropping, .. } =
            &mut facts.network;
        *links = Err(why());
        *addresses = Err(why());
        *routes = Err(why());
        *rules = Err(why());
        *nft_table = Err(why());
        *dropping = Err(why());
        facts.machine.capabilities = Err(why());
        facts.machine.online = Err(why());
        facts.machine.modules.insert("nft_ct", Err(why()));
        facts.cni.lists = Err(why());
        facts.cni.loopback = Err(why());
        facts.daemon.status = Err(why());
        facts.daemon.here = Err(why());
        facts.machine.hugepages_free = Err(why());
        facts.machine.locked_bytes_max = None;
    });
    assert_eq!(rows_with(&facts, Some(false)), []);
    assert!(rows_with(&facts, None).len() > 10);
}

#[test]
fn a_row_has_the_keys_of_the_contract() {
    let row = serde_json::json!(Row::unknown("rule", "why", "what"));
    let expected = serde_json::json!({"check": "rule", "ok": null, "found": "why", "mend": "what"});
    assert_eq!(row, expected);
    let read: Row = serde_json::from_value(row).expect("it reads back");
    assert_eq!(read.ok, None);
}
