use proptest::prelude::*;

use super::*;

fn addresses(texts: &[&str]) -> Vec<PodAddress> {
    let address =
        |text: &&str| PodAddress { address: text.parse().unwrap(), prefix_len: 24, gateway: None };
    texts.iter().map(address).collect()
}

fn mapping(host_ip: &str, host_port: u16, container_port: u16) -> PortMapping {
    let host_ip = (!host_ip.is_empty()).then(|| host_ip.parse().unwrap());
    PortMapping { host_ip, host_port, container_port, protocol: PortProtocol::Tcp }
}

/// Each record as `address port -> serving container port`.
fn read(mappings: &[PortMapping], pod: &[&str]) -> Vec<String> {
    let records = host_ports_of(mappings, &addresses(pod)).unwrap();
    let text = |record: &HostPortRecord| {
        let HostPortRecord { address, port, serving, container_port, .. } = record;
        format!("{address:?} {port} -> {serving} {container_port}")
    };
    records.iter().map(text).collect()
}

const DUAL: [&str; 4] = ["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"];

#[test]
fn no_host_address_is_every_address_of_the_families_that_the_pod_has() {
    let any = [mapping("", 8080, 80)];
    let both = ["AnyV4 8080 -> 10.0.0.1 80", "AnyV6 8080 -> fd00::1 80"];
    assert_eq!(read(&any, &DUAL), both);
    assert_eq!(read(&any, &DUAL[..2]), both[..1]);
    assert_eq!(read(&any, &DUAL[2..]), both[1..]);
}

#[test]
fn a_wildcard_is_of_its_own_family_and_one_address_is_itself() {
    assert_eq!(read(&[mapping("0.0.0.0", 8080, 80)], &DUAL), ["AnyV4 8080 -> 10.0.0.1 80"]);
    assert_eq!(read(&[mapping("::", 8080, 80)], &DUAL), ["AnyV6 8080 -> fd00::1 80"]);
    let one = read(&[mapping("127.0.0.1", 8080, 80)], &DUAL);
    assert_eq!(one, ["One(127.0.0.1) 8080 -> 10.0.0.1 80"]);
    let one = read(&[mapping("2001:db8::1", 8080, 80)], &DUAL);
    assert_eq!(one, ["One(2001:db8::1) 8080 -> fd00::1 80"]);
}

#[test]
fn a_family_that_the_pod_lacks_is_passed_over() {
    let v6 = [mapping("::", 1, 1), mapping("2001:db8::1", 1, 1), mapping("", 2, 2)];
    assert_eq!(read(&v6, &DUAL[..2]), ["AnyV4 2 -> 10.0.0.1 2"]);
    let v4 = [mapping("0.0.0.0", 1, 1), mapping("192.0.2.1", 1, 1)];
    assert!(read(&v4, &DUAL[2..]).is_empty());
}

#[test]
fn the_same_wish_twice_is_one_and_a_contradiction_is_code_7() {
    let twice = [mapping("", 1, 1), mapping("0.0.0.0", 1, 1), mapping("", 1, 1)];
    assert_eq!(read(&twice, &DUAL), ["AnyV4 1 -> 10.0.0.1 1", "AnyV6 1 -> fd00::1 1"]);
    for contradiction in [
        [mapping("", 1, 1), mapping("", 1, 2)],
        [mapping("", 1, 2), mapping("::", 1, 1)],
        [mapping("192.0.2.1", 1, 2), mapping("192.0.2.1", 1, 1)],
    ] {
        let refused = host_ports_of(&contradiction, &addresses(&DUAL)).unwrap_err();
        assert!(matches!(refused, StateError::HostPortRepeated(_)), "{refused}");
        assert_eq!(refused.cni_code(), 7);
    }
    // Of IPv6 nothing is left to contradict.
    let contradiction = [mapping("0.0.0.0", 1, 1), mapping("::", 1, 2)];
    assert_eq!(read(&contradiction, &DUAL[..2]), ["AnyV4 1 -> 10.0.0.1 1"]);
}

#[test]
fn one_port_of_all_protocols_and_of_one_address_beside_all_are_different() {
    let mut mappings: Vec<PortMapping> = PortProtocol::ALL
        .into_iter()
        .map(|protocol| PortMapping { protocol, ..mapping("0.0.0.0", 53, 5353) })
        .collect();
    mappings.push(mapping("192.0.2.1", 53, 53));
    let records = host_ports_of(&mappings, &addresses(&DUAL)).unwrap();
    assert_eq!(records.len(), 4);
}

#[test]
fn snat_decides_before_masq_all() {
    for (snat, masq_all, wish) in [
        (None, false, MasqueradeWish::Itself),
        (Some(true), false, MasqueradeWish::Itself),
        (None, true, MasqueradeWish::Everybody),
        (Some(true), true, MasqueradeWish::Everybody),
        (Some(false), false, MasqueradeWish::Nobody),
        (Some(false), true, MasqueradeWish::Nobody),
    ] {
        assert_eq!(MasqueradeWish::of(snat, masq_all), wish, "{snat:?} {masq_all}");
    }
}

fn any_mapping() -> impl Strategy<Value = PortMapping> {
    let host_ip = prop_oneof![
        Just(""),
        Just("0.0.0.0"),
        Just("::"),
        Just("192.0.2.1"),
        Just("192.0.2.2"),
        Just("2001:db8::1"),
    ];
    (host_ip, 1..4_u16, 1..3_u16, 0..3_usize).prop_map(|(host_ip, host, container, protocol)| {
        PortMapping { protocol: PortProtocol::ALL[protocol], ..mapping(host_ip, host, container) }
    })
}

proptest! {
    /// Every packet goes where the list of mappings says, read from end to end.
    #[test]
    fn the_records_lead_where_the_mappings_say(
        mappings in prop::collection::vec(any_mapping(), 0..6),
        families in 1..4_u8,
    ) {
        let pod: Vec<PodAddress> = addresses(&DUAL)
            .into_iter()
            .filter(|own| families & if own.address.is_ipv4() { 1 } else { 2 } != 0)
            .collect();
        let has = |is_v4: bool| pod.iter().any(|own| own.address.is_ipv4() == is_v4);
        // What each mapping says of a place: one address, or all of a family.
        let says = |mapping: &PortMapping, place: HostPortAddress| {
            has(place.is_v4()) && match (mapping.host_ip, place) {
                (None, HostPortAddress::One(_)) => false,
                (None, _) => true,
                (Some(asked), HostPortAddress::One(address)) => asked == address,
                (Some(asked), HostPortAddress::AnyV4) => asked.to_string() == "0.0.0.0",
                (Some(asked), HostPortAddress::AnyV6) => asked.to_string() == "::",
            }
        };
        let ones = ["192.0.2.1", "192.0.2.2", "2001:db8::1"];
        let ones = ones.map(|text| HostPortAddress::One(text.parse().unwrap()));
        let places = ones.into_iter().chain([HostPortAddress::AnyV4, HostPortAddress::AnyV6]);
        let mut wanted = Vec::new();
        let mut contradicts = false;
        for place in places {
            for (port, transport) in (1..4).flat_map(|p| PortProtocol::ALL.map(|t| (p, t))) {
                let ours = |m: &&PortMapping| (m.host_port, m.protocol) == (port, transport);
                let mut said: Vec<u16> = mappings
                    .iter()
                    .filter(ours)
                    .filter(|mapping| says(mapping, place))
                    .map(|mapping| mapping.container_port)
                    .collect();
                said.sort_unstable();
                said.dedup();
                contradicts |= said.len() > 1;
                wanted.extend(said.first().map(|to| (transport, place, port, *to)));
            }
        }
        match host_ports_of(&mappings, &pod) {
            Err(error) => prop_assert!(contradicts, "{}", error),
            Ok(records) => {
                prop_assert!(!contradicts);
                prop_assert!(records.is_sorted_by(|a, b| a.key() < b.key()));
                let mut found: Vec<_> = records
                    .iter()
                    .map(|r| (r.transport, r.address, r.port, r.container_port))
                    .collect();
                found.sort_unstable();
                wanted.sort_unstable();
                prop_assert_eq!(found, wanted);
                for record in &records {
                    let serving = if record.address.is_v4() { "10.0.0.1" } else { "fd00::1" };
                    prop_assert_eq!(record.serving.to_string(), serving);
                }
            }
        }
    }
}
