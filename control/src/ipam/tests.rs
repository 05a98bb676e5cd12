use proptest::prelude::*;

use super::*;
use crate::state::ADDRESSES_PER_POD_MAX;

const SECOND_NS: u64 = 1_000_000_000;

fn owner(id: u32) -> Attachment {
    Attachment {
        network: "viaduct".to_owned(),
        container_id: format!("c{id}"),
        ifname: "eth0".to_owned(),
    }
}

fn ipam(cidrs: &[&str]) -> Ipam {
    Ipam::new(&cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect::<Vec<_>>())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(subnet: &str, start: Option<&str>, end: Option<&str>) -> IpRange {
    IpRange {
        subnet: subnet.to_owned(),
        range_start: start.map(ip),
        range_end: end.map(ip),
        gateway: None,
    }
}

/// The addresses given, as text.
fn give(ipam: &mut Ipam, id: u32, now_ns: u64) -> Vec<String> {
    let given = ipam.allocate(&owner(id), &[], &[], now_ns).unwrap();
    given.iter().map(|given| format!("{}/{}", given.address, given.prefix_len)).collect()
}

#[test]
fn each_pod_gets_one_address_per_family_with_ipv4_first() {
    let mut ipam = ipam(&["fd00::/64", "10.0.0.0/24", "10.0.9.0/24"]);
    assert_eq!(give(&mut ipam, 1, 0), ["10.0.0.1/24", "fd00::1/64"]);
    assert_eq!(give(&mut ipam, 2, 0), ["10.0.0.2/24", "fd00::2/64"]);
    assert_eq!(ipam.owner(ip("fd00::2")), Some(&owner(2)));
    assert_eq!(ipam.owner(ip("fd00::3")), None);
}

#[test]
fn the_next_prefix_of_a_family_is_used_when_one_is_full_and_then_it_is_exhausted() {
    let mut ipam = ipam(&["10.0.0.0/30", "10.0.9.0/30"]);
    let given: Vec<_> = (0..4).map(|id| give(&mut ipam, id, 0).remove(0)).collect();
    assert_eq!(given, ["10.0.0.1/30", "10.0.0.2/30", "10.0.9.1/30", "10.0.9.2/30"]);
    let refused = ipam.allocate(&owner(9), &[], &[], 0).unwrap_err();
    assert_eq!(refused, IpamError::Exhausted { cidrs: "10.0.0.0/30, 10.0.9.0/30".to_owned() });
    assert_eq!(ipam.room(0), Err(refused));
}

#[test]
fn an_exhausted_family_takes_nothing_of_the_other() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/127"]);
    give(&mut ipam, 1, 0);
    assert!(matches!(
        ipam.allocate(&owner(2), &[], &[], 0),
        Err(IpamError::Exhausted { cidrs }) if cidrs == "fd00::/127"
    ));
    assert_eq!(ipam.owner(ip("10.0.0.2")), None);
    assert!(!ipam.held.contains_key(&owner(2)));
}

#[test]
fn never_used_addresses_go_before_freed_ones_and_those_in_the_order_they_were_freed() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    (1..=5).for_each(|id| drop(give(&mut ipam, id, 0)));
    for id in [3, 1, 4] {
        ipam.free(&owner(id), 0);
    }
    let later = COOL_DOWN_NS;
    let given: Vec<_> = (6..=9).map(|id| give(&mut ipam, id, later).remove(0)).collect();
    assert_eq!(given, ["10.0.0.6/29", "10.0.0.3/29", "10.0.0.1/29", "10.0.0.4/29"]);
}

#[test]
fn a_freed_address_rests_as_long_as_another_can_be_had() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    (1..=5).for_each(|id| drop(give(&mut ipam, id, 0)));
    ipam.free(&owner(2), 5 * SECOND_NS);
    ipam.free(&owner(4), 6 * SECOND_NS);
    assert_eq!(give(&mut ipam, 6, 7 * SECOND_NS), ["10.0.0.6/29"], "the one never used");
    assert_eq!(give(&mut ipam, 7, 7 * SECOND_NS), ["10.0.0.2/29"], "the one longest free");
    assert_eq!(give(&mut ipam, 8, 7 * SECOND_NS), ["10.0.0.4/29"]);
    assert!(ipam.allocate(&owner(9), &[], &[], 7 * SECOND_NS).is_err());
}

#[test]
fn a_requested_address_is_given_even_while_it_cools_down() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/64"]);
    ipam.allocate(&owner(1), &[ip("10.0.0.77")], &[], 0).unwrap();
    ipam.free(&owner(1), 0);
    let given = ipam.allocate(&owner(2), &[ip("10.0.0.77"), ip("fd00::abcd")], &[], 0).unwrap();
    let given: Vec<IpAddr> = given.iter().map(|given| given.address).collect();
    assert_eq!(given, [ip("10.0.0.77"), ip("fd00::abcd")]);
}

#[test]
fn a_requested_address_that_is_taken_is_refused_with_its_owner() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/64"]);
    give(&mut ipam, 1, 0);
    let refused = ipam.allocate(&owner(2), &[ip("fd00::1")], &[], 0).unwrap_err();
    assert_eq!(refused, IpamError::Taken { address: ip("fd00::1"), owner: owner(1) });
    assert!(refused.to_string().contains("c1"), "{refused}");
    assert_eq!(ipam.owner(ip("10.0.0.2")), None, "a refusal takes nothing");
}

#[test]
fn addresses_that_no_pod_may_have_are_refused() {
    let mut ipam = ipam(&["10.0.0.0/24", "fd00::/64"]);
    for text in ["10.0.0.0", "10.0.0.255", "10.0.1.1", "fd00::", "fd01::1", "::ffff:10.0.0.5"] {
        let refused = ipam.allocate(&owner(1), &[ip(text)], &[], 0).unwrap_err();
        assert!(matches!(refused, IpamError::Outside { .. }), "{text}: {refused}");
        assert_eq!(refused.cni_code(), 7);
        assert!(matches!(ipam.reserve(&owner(1), ip(text)), Err(IpamError::Outside { .. })));
    }
    let last = ip("fd00::ffff:ffff:ffff:ffff");
    assert!(ipam.allocate(&owner(1), &[last], &[], 0).is_ok(), "IPv6 has no broadcast address");
}

#[test]
fn more_requested_addresses_than_places_are_refused() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    let two = [ip("10.0.0.5"), ip("10.0.0.6")];
    let refused = ipam.allocate(&owner(1), &two, &[], 0).unwrap_err();
    assert_eq!(refused, IpamError::Surplus { address: two[1] });
    let list = vec![range("10.0.0.0/24", None, None)];
    let repeated = [two[0], two[0]];
    let refused = ipam.allocate(&owner(1), &repeated, &[list.clone(), list], 0).unwrap_err();
    assert_eq!(refused, IpamError::Surplus { address: two[0] });
}

#[test]
fn an_owner_cannot_allocate_twice() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    give(&mut ipam, 1, 0);
    assert_eq!(ipam.allocate(&owner(1), &[], &[], 0), Err(IpamError::AlreadyOwns(owner(1))));
    assert_eq!(give(&mut ipam, 2, 0), ["10.0.0.2/24"]);
}

#[test]
fn ranges_give_one_address_per_list_and_show_their_subnet_and_gateway() {
    let mut ipam = ipam(&["10.0.0.0/16", "fd00::/64"]);
    let mut first = range("10.0.7.0/28", Some("10.0.7.4"), Some("10.0.7.5"));
    first.gateway = Some(ip("10.0.7.4"));
    let second = range("10.0.7.16/28", None, None);
    let ranges = [vec![range("fd00::40/122", None, None)], vec![first.clone(), second]];
    let mut give = |id: u32, requested: &[IpAddr]| {
        let given = ipam.allocate(&owner(id), requested, &ranges, 0).unwrap();
        given.iter().map(|g| format!("{}/{}", g.address, g.prefix_len)).collect::<Vec<_>>()
    };
    assert_eq!(give(1, &[]), ["10.0.7.5/28", "fd00::41/122"], "the gateway is nobody's");
    assert_eq!(give(2, &[]), ["10.0.7.17/28", "fd00::42/122"]);
    assert_eq!(give(3, &[ip("10.0.7.30")]), ["10.0.7.30/28", "fd00::43/122"]);
    let given = ipam.allocate(&owner(4), &[], &[vec![range("10.0.8.0/24", None, None)]], 0);
    assert_eq!(given.unwrap().len(), 1);
}

#[test]
fn two_lists_over_one_subnet_give_two_addresses() {
    let mut ipam = ipam(&["10.0.0.0/16"]);
    let list = vec![range("10.0.7.0/29", None, None)];
    let both = [list.clone(), list.clone()];
    let given = ipam.allocate(&owner(1), &[ip("10.0.7.1")], &both, 0).unwrap();
    let given: Vec<IpAddr> = given.iter().map(|given| given.address).collect();
    assert_eq!(given, [ip("10.0.7.1"), ip("10.0.7.2")]);
}

#[test]
fn ranges_that_cannot_be_used_are_refused_with_code_7() {
    let mut ipam = ipam(&["10.0.0.0/16", "fd00::/64"]);
    let start = |text| range("10.0.7.0/24", Some(text), None);
    let bad = [
        range("10.0.7.0", None, None),
        range("10.0.7.1/24", None, None),
        range("10.1.0.0/24", None, None),
        range("10.0.0.0/15", None, None),
        range("10.0.7.0/31", None, None),
        range("10.0.7.0/32", None, None),
        range("fd00::/128", None, None),
        start("10.0.8.1"),
        start("fd00::1"),
        start("10.0.7.255"),
        range("10.0.7.0/24", Some("10.0.7.9"), Some("10.0.7.8")),
    ];
    for range in bad {
        let refused = ipam.allocate(&owner(1), &[], &[vec![range.clone()]], 0).unwrap_err();
        assert!(matches!(refused, IpamError::Range { .. }), "{range:?}: {refused}");
        assert_eq!(refused.cni_code(), 7);
    }
    assert!(matches!(
        ipam.allocate(&owner(1), &[], &[Vec::new()], 0),
        Err(IpamError::Range { .. })
    ));
    let many = vec![vec![range("10.0.7.0/24", None, None)]; ADDRESSES_PER_POD_MAX + 1];
    let refused = ipam.allocate(&owner(1), &[], &many, 0);
    assert!(matches!(refused, Err(IpamError::Range { .. })));
}

#[test]
fn reserving_is_idempotent_and_refuses_a_second_owner() {
    let mut ipam = ipam(&["10.0.0.0/24"]);
    for _ in 0..2 {
        ipam.reserve(&owner(1), ip("10.0.0.1")).unwrap();
    }
    assert_eq!(
        ipam.reserve(&owner(2), ip("10.0.0.1")),
        Err(IpamError::Taken { address: ip("10.0.0.1"), owner: owner(1) })
    );
    assert_eq!(give(&mut ipam, 2, 0), ["10.0.0.2/24"]);
    ipam.free(&owner(1), 0);
    assert_eq!(ipam.owner(ip("10.0.0.1")), None);
}

#[test]
fn freeing_an_unknown_owner_or_twice_changes_nothing() {
    let mut ipam = ipam(&["10.0.0.0/29"]);
    give(&mut ipam, 1, 0);
    ipam.free(&owner(9), 0);
    ipam.free(&owner(1), 0);
    ipam.free(&owner(1), 7);
    assert_eq!(ipam.pools[0].freed.len(), 1);
    assert_eq!(ipam.free_count, 1);
}

#[test]
fn the_last_prefixes_of_the_number_spaces_do_not_overflow() {
    let mut ipam = ipam(&["255.255.255.252/30", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"]);
    let top = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff/127";
    assert_eq!(give(&mut ipam, 1, 0), ["255.255.255.253/30", top]);
    assert!(matches!(ipam.allocate(&owner(2), &[], &[], 0), Err(IpamError::Exhausted { .. })));
    assert_eq!(usable("0.0.0.0/0".parse().unwrap()), Some((1, 0xffff_fffe)));
    assert_eq!(usable("::/0".parse().unwrap()), Some((1, u128::MAX)));
}

#[test]
fn an_ipv6_prefix_remembers_a_bounded_number_of_pods_past() {
    let mut ipam = ipam(&["fd00::/64"]);
    let pods = u32::try_from(FREED_LEN_MAX).unwrap() + 2000;
    for id in 0..pods {
        let now_ns = u64::from(id) * SECOND_NS;
        give(&mut ipam, id, now_ns);
        ipam.free(&owner(id), now_ns);
    }
    assert_eq!(ipam.pools[0].freed.len(), FREED_LEN_MAX);
    assert_eq!(ipam.pools[0].freed_keys.len(), FREED_LEN_MAX);
    assert!(ipam.pools[0].owned.is_empty() && ipam.held.is_empty());
}

/// The naive oracle: every address of the pools in order, and what became of it.
struct Oracle {
    addresses: Vec<(IpAddr, Fate)>,
    frees: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Fresh,
    Owned(u32),
    Freed { order: u64 },
}

/// What the oracle expects where the allocator gives an error.
#[derive(Debug, PartialEq)]
enum Refusal {
    Exhausted,
    Taken,
    Outside,
    AlreadyOwns,
}

impl Oracle {
    fn new(cidrs: &[&str]) -> Oracle {
        let mut addresses = Vec::new();
        for cidr in cidrs {
            let net: IpNet = cidr.parse().unwrap();
            let hosts = net.hosts().filter(|host| *host != net.network());
            addresses.extend(hosts.map(|host| (host, Fate::Fresh)));
        }
        Oracle { addresses, frees: 0 }
    }

    fn allocate(
        &mut self,
        id: u32,
        requested: Option<IpAddr>,
        within: Option<IpNet>,
    ) -> Result<Vec<IpAddr>, Refusal> {
        if self.addresses.iter().any(|(_, fate)| *fate == Fate::Owned(id)) {
            return Err(Refusal::AlreadyOwns);
        }
        // Indexes of the candidates of each wish.
        let candidates = |is_wanted: &dyn Fn(&IpAddr) -> bool| -> Vec<usize> {
            let indexed = self.addresses.iter().enumerate();
            indexed.filter(|(_, (ip, _))| is_wanted(ip)).map(|(index, _)| index).collect()
        };
        let wishes = match within {
            Some(net) => {
                let (first, last) = usable(net).unwrap();
                vec![candidates(&|ip| net.contains(ip) && (first..=last).contains(&number(*ip)))]
            }
            None => vec![candidates(&IpAddr::is_ipv4), candidates(&IpAddr::is_ipv6)],
        };
        let wanted = requested.map(|ip| self.addresses.iter().position(|(other, _)| *other == ip));
        if let Some(index) = wanted {
            let is_held = |index: usize| wishes.iter().any(|wish| wish.contains(&index));
            let index = index.filter(|index| is_held(*index)).ok_or(Refusal::Outside)?;
            if matches!(self.addresses[index].1, Fate::Owned(_)) {
                return Err(Refusal::Taken);
            }
        }
        let wanted = wanted.flatten();
        let mut chosen = Vec::new();
        for wish in &wishes {
            chosen.push(match wanted.filter(|index| wish.contains(index)) {
                Some(index) => index,
                None => self.choose(wish)?,
            });
        }
        for index in &chosen {
            self.addresses[*index].1 = Fate::Owned(id);
        }
        Ok(chosen.into_iter().map(|index| self.addresses[index].0).collect())
    }

    fn choose(&self, wish: &[usize]) -> Result<usize, Refusal> {
        let fate = |index: usize| self.addresses[index].1;
        if let Some(index) = wish.iter().find(|index| fate(**index) == Fate::Fresh) {
            return Ok(*index);
        }
        let mut oldest = None;
        for &index in wish {
            if let Fate::Freed { order } = fate(index)
                && oldest.is_none_or(|(_, least)| order < least)
            {
                oldest = Some((index, order));
            }
        }
        let (index, _) = oldest.ok_or(Refusal::Exhausted)?;
        Ok(index)
    }

    fn free(&mut self, id: u32, order: &[IpAddr]) {
        for ip in order {
            let entry = self.addresses.iter_mut().find(|(other, _)| other == ip).unwrap();
            assert_eq!(entry.1, Fate::Owned(id));
            entry.1 = Fate::Freed { order: self.frees };
            self.frees += 1;
        }
    }
}

fn refusal(error: &IpamError) -> Refusal {
    match error {
        IpamError::Exhausted { .. } => Refusal::Exhausted,
        IpamError::Taken { .. } => Refusal::Taken,
        IpamError::Outside { .. } => Refusal::Outside,
        IpamError::AlreadyOwns(_) => Refusal::AlreadyOwns,
        other => panic!("{other}"),
    }
}

const CIDRS: [&str; 3] = ["10.0.0.0/29", "10.0.0.16/28", "fd00::/123"];

#[derive(Clone, Debug)]
enum Op {
    Allocate { id: u32, requested: Option<IpAddr>, within: Option<IpNet> },
    Reserve { id: u32, address: IpAddr },
    Free { id: u32 },
    Wait { seconds: u64 },
}

fn op() -> impl Strategy<Value = Op> {
    let address = prop_oneof![
        (0..33_u8).prop_map(|last| IpAddr::from([10, 0, 0, last])),
        (0..33_u16).prop_map(|last| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last])),
    ];
    let nets: Vec<IpNet> = ["10.0.0.4/30", "10.0.0.16/29", "10.0.0.16/28", "fd00::8/126"]
        .map(|net| net.parse().unwrap())
        .to_vec();
    let id = 0..26_u32;
    let wish = (
        id.clone(),
        proptest::option::weighted(0.15, address.clone()),
        proptest::option::weighted(0.2, prop::sample::select(nets)),
    );
    prop_oneof![
        6 => wish.prop_map(|(id, requested, within)| Op::Allocate { id, requested, within }),
        1 => (id.clone(), address).prop_map(|(id, address)| Op::Reserve { id, address }),
        4 => id.prop_map(|id| Op::Free { id }),
        1 => (1..100_u64).prop_map(|seconds| Op::Wait { seconds }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn no_address_has_two_owners_and_every_choice_is_that_of_the_naive_oracle(
        ops in prop::collection::vec(op(), 0..200),
    ) {
        let (mut ipam, mut oracle) = (ipam(&CIDRS), Oracle::new(&CIDRS));
        let mut now_ns = 0;
        for op in ops {
            match op {
                Op::Allocate { id, requested, within } => {
                    let ranges: Vec<Vec<IpRange>> = within
                        .map(|net| vec![range(&net.to_string(), None, None)])
                        .into_iter()
                        .collect();
                    let requested_list: Vec<IpAddr> = requested.into_iter().collect();
                    let given = ipam.allocate(&owner(id), &requested_list, &ranges, now_ns);
                    let given = given
                        .map(|given| given.iter().map(|given| given.address).collect::<Vec<_>>())
                        .map_err(|error| refusal(&error));
                    prop_assert_eq!(given, oracle.allocate(id, requested, within));
                }
                Op::Reserve { id, address } => {
                    let entry = oracle.addresses.iter_mut().find(|(other, _)| *other == address);
                    let expected = match entry {
                        None => Err(Refusal::Outside),
                        Some((_, Fate::Owned(other))) if *other != id => Err(Refusal::Taken),
                        Some(entry) => {
                            entry.1 = Fate::Owned(id);
                            Ok(())
                        }
                    };
                    let reserved = ipam.reserve(&owner(id), address);
                    prop_assert_eq!(reserved.map_err(|error| refusal(&error)), expected);
                }
                Op::Free { id } => {
                    let held = ipam.held.get(&owner(id)).cloned().unwrap_or_default();
                    let held: Vec<IpAddr> = held
                        .iter()
                        .map(|place| address(ipam.pools[place.pool].net, place.number))
                        .collect();
                    ipam.free(&owner(id), now_ns);
                    oracle.free(id, &held);
                }
                Op::Wait { seconds } => now_ns += seconds * SECOND_NS,
            }
            for (ip, fate) in &oracle.addresses {
                let expected = match fate {
                    Fate::Owned(id) => Some(owner(*id)),
                    _ => None,
                };
                prop_assert_eq!(ipam.owner(*ip), expected.as_ref());
            }
            for pool in &ipam.pools {
                prop_assert!((pool.first..pool.cursor).all(|number| pool.is_used(number)));
                prop_assert_eq!(pool.freed.len(), pool.freed_keys.len());
            }
        }
    }
}
