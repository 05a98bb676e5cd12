use std::net::Ipv4Addr;

use super::*;

const MAC: Mac = [6, 0, 0, 0, 0, 2];

fn neighbor(number: u32, state: NeighborState) -> Neighbor {
    let address = Ipv4Addr::from(0x0a00_0000 + number).into();
    Neighbor { state, ..Neighbor::permanent(3, address, MAC) }
}

#[test]
fn only_a_stations_mac_address_in_a_state_the_kernel_sends_by_is_believed() {
    let mut neighbors = Neighbors::default();
    let mut learn = |neighbor: Neighbor| {
        neighbors.learn(&neighbor, false, Some([6, 0, 0, 0, 0, 1]));
        neighbors.mac((neighbor.index, neighbor.address))
    };
    for state in [NeighborState::Reachable, NeighborState::Stale, NeighborState::Delay] {
        assert_eq!(learn(neighbor(1, state)), Some(MAC), "{state:?}");
    }
    for state in [NeighborState::Failed, NeighborState::Incomplete, NeighborState::None] {
        assert_eq!(learn(neighbor(1, state)), None, "{state:?}");
    }
    let own = [6, 0, 0, 0, 0, 1];
    for mac in [[0; 6], [0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [1, 0, 0x5e, 0, 0, 1], own] {
        assert_eq!(
            learn(Neighbor { mac: Some(mac), ..neighbor(1, NeighborState::Permanent) }),
            None
        );
    }
}

#[test]
fn a_change_is_told_once() {
    let mut neighbors = Neighbors::default();
    let reachable = neighbor(1, NeighborState::Reachable);
    let place = (reachable.index, reachable.address);
    let told = Learned { mac: true, on_link: Some(Some(MAC)) };
    assert_eq!(neighbors.learn(&reachable, true, None), told);
    let stale = neighbor(1, NeighborState::Stale);
    assert_eq!(neighbors.learn(&stale, true, None), Learned::default());
    assert_eq!(neighbors.forget(place), Learned { mac: true, on_link: Some(None) });
    assert_eq!(neighbors.forget(place), Learned::default());
}

#[test]
fn destinations_on_the_link_are_bounded_and_a_place_that_is_left_is_taken() {
    let mut neighbors = Neighbors::default();
    let mut on_link = |number: u32, state| {
        neighbors.learn(&neighbor(number, state), true, None).on_link.is_some()
    };
    let max = u32::try_from(ON_LINK_MAX).expect("small");
    assert!((0..max).all(|number| on_link(number, NeighborState::Reachable)));
    assert!(!on_link(max, NeighborState::Reachable), "one too many");
    assert!(on_link(7, NeighborState::Failed), "is taken back");
    assert!(on_link(max, NeighborState::Reachable), "there is room again");
}

#[test]
fn old_destinations_are_asked_for_once_and_a_few_at_a_time() {
    let mut neighbors = Neighbors::default();
    for number in 0..100 {
        neighbors.learn(&neighbor(number, NeighborState::Stale), true, None);
    }
    // Not in `direct`, so that no worker sends to it.
    neighbors.learn(&neighbor(1000, NeighborState::Stale), false, None);
    let none = BTreeSet::new();
    let mut asked = || neighbors.wanted(&none).len();
    assert_eq!((asked(), asked(), asked()), (REQUESTS_MAX, 100 - REQUESTS_MAX, 0));
    neighbors.learn(&neighbor(5, NeighborState::Reachable), true, None);
    neighbors.learn(&neighbor(5, NeighborState::Stale), true, None);
    assert_eq!(neighbors.wanted(&none).len(), 1, "it has grown old again");
}

#[test]
fn routers_are_kept_unless_somebody_has_settled_them_and_only_ours_are_let_go() {
    let mut neighbors = Neighbors::default();
    let routers: BTreeSet<Place> = (1..=4)
        .map(|number| neighbor(number, NeighborState::None))
        .map(|n| (n.index, n.address))
        .collect();
    neighbors.learn(&neighbor(1, NeighborState::Permanent), false, None);
    let learned = Neighbor { learned: true, ..neighbor(2, NeighborState::Reachable) };
    neighbors.learn(&learned, false, None);
    neighbors.learn(&neighbor(3, NeighborState::Failed), false, None);
    let words: Vec<String> =
        neighbors.wanted(&routers).iter().map(|request| request.what().to_owned()).collect();
    assert_eq!(
        words,
        [
            "keep neighbor 10.0.0.3 on interface 3 resolved",
            "keep neighbor 10.0.0.4 on interface 3 resolved"
        ]
    );
    let managed = Neighbor { managed: true, ..neighbor(3, NeighborState::Reachable) };
    neighbors.learn(&Neighbor { protocol: ROUTE_PROTOCOL, ..managed }, false, None);
    neighbors.learn(
        &Neighbor { address: neighbor(4, NeighborState::None).address, ..managed },
        false,
        None,
    );
    assert!(neighbors.wanted(&routers).is_empty());
    let words: Vec<String> = neighbors
        .wanted(&BTreeSet::new())
        .iter()
        .map(|request| request.what().to_owned())
        .collect();
    assert_eq!(words, ["ask for neighbor 10.0.0.3 on interface 3"], "not what others manage");
}
