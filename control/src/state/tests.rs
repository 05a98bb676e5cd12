use std::collections::HashSet;

use cni_bridge::protocol::{PortMapping, PortProtocol, RateRequest};
use proptest::prelude::*;

use super::*;
use crate::endpoint::Offloads;

const LIMITS: Limits = Limits { workers: 3, slots: 10, ports_per_worker: 4 };

pub(super) fn attachment(id: u8) -> Attachment {
    Attachment {
        network: if id.is_multiple_of(2) { "even" } else { "odd" }.to_owned(),
        container_id: format!("c{id}"),
        ifname: "eth0".to_owned(),
    }
}

fn v4(last: u8) -> PodAddress {
    PodAddress { address: IpAddr::from([10, 0, 0, last]), prefix_len: 24, gateway: None }
}

pub(super) fn pod(id: u8, addresses: &[u8]) -> NewPod {
    NewPod {
        attachment: attachment(id),
        netns: format!("/run/netns/p{id}"),
        netns_inode: u64::from(id) + 4_026_532_000,
        netns_dev: 4,
        host_ifname: format!("vd{id}"),
        host_ifindex: u32::from(id) + 100,
        mac: [0x0a, 0, 0, 0, 0, id],
        host_mac: [0x0e, 0, 0, 0, 0, id],
        addresses: addresses.iter().copied().map(v4).collect(),
        route_mtu: 1500,
        offloads: Offloads::Full,
        pod_namespace: "default".to_owned(),
        pod_name: format!("pod-{id}"),
        fallback: Fallback::Pass,
        host_ports: Vec::new(),
        masquerade: MasqueradeWish::Itself,
        limits: Bandwidth::default(),
    }
}

/// A state with these container IDs and interfaces, each another pod.
pub(super) fn state_of(pods: &[(&str, &str)]) -> State {
    let mut state = State::new(Limits { workers: 1, slots: 10, ports_per_worker: 10 });
    for (id, (container_id, ifname)) in (1..).zip(pods) {
        let mut new = pod(id, &[id]);
        new.attachment.network = "n".to_owned();
        new.attachment.container_id = (*container_id).to_owned();
        new.attachment.ifname = (*ifname).to_owned();
        state.apply(Change::Add(new)).unwrap();
    }
    state
}

fn mapping(host_ip: &str, host_port: u16) -> PortMapping {
    PortMapping {
        host_ip: (!host_ip.is_empty()).then(|| host_ip.parse().unwrap()),
        host_port,
        container_port: 80,
        protocol: PortProtocol::Tcp,
    }
}

/// A pod with one address, and these host ports.
fn mapped(id: u8, mappings: &[PortMapping]) -> NewPod {
    let new = pod(id, &[id]);
    NewPod { host_ports: host_ports_of(mappings, &new.addresses).unwrap(), ..new }
}

fn any_v4(port: u16) -> HostPortKey {
    HostPortKey { transport: PortProtocol::Tcp, address: HostPortAddress::AnyV4, port }
}

fn add(state: &mut State, id: u8) -> PodRecord {
    match state.apply(Change::Add(pod(id, &[id]))) {
        Ok(Effect::Added(record)) => record,
        other => panic!("adding pod {id} gave {other:?}"),
    }
}

#[test]
fn pods_go_to_the_least_loaded_worker_and_the_lowest_free_slot() {
    let mut state = State::new(LIMITS);
    let homes: Vec<_> = (0..5).map(|id| add(&mut state, id)).map(|r| (r.worker, r.slot)).collect();
    assert_eq!(homes, [(0, 0), (1, 1), (2, 2), (0, 3), (1, 4)]);
    state.apply(Change::Remove(attachment(1))).unwrap();
    let record = add(&mut state, 9);
    assert_eq!((record.worker, record.slot), (1, 1));
    assert_eq!(state.loads(), [2, 2, 1]);
}

#[test]
fn a_second_add_of_an_attachment_is_refused_and_does_not_harm_the_first() {
    let mut state = State::new(LIMITS);
    let first = add(&mut state, 1);
    let mut again = pod(1, &[200]);
    again.host_ifname = "vdother".to_owned();
    assert_eq!(state.apply(Change::Add(again)), Err(StateError::AlreadyAttached(attachment(1))));
    assert_eq!(state.pods().collect::<Vec<_>>(), [&first]);
    assert!(state.pod_by_address(v4(200).address).is_none());
    assert_eq!(state.generation(), 1);
}

#[test]
fn an_address_or_host_interface_of_another_pod_is_refused_with_its_owner() {
    let mut state = State::new(LIMITS);
    add(&mut state, 1);
    let refused = state.apply(Change::Add(pod(2, &[7, 1]))).unwrap_err();
    let owner = attachment(1);
    assert_eq!(refused, StateError::AddressTaken { address: v4(1).address, owner: owner.clone() });
    assert!(refused.to_string().contains("c1"), "{refused}");
    let mut collides = pod(2, &[2]);
    collides.host_ifname = "vd1".to_owned();
    let refused = state.apply(Change::Add(collides)).unwrap_err();
    assert_eq!(refused, StateError::HostInterfaceTaken { host_ifname: "vd1".to_owned(), owner });
    assert_eq!(state.pods().len(), 1);
}

#[test]
fn a_pod_needs_one_to_sixteen_addresses_each_once() {
    let mut state = State::new(LIMITS);
    let mut try_with = |addresses: &[u8]| state.apply(Change::Add(pod(1, addresses)));
    assert!(matches!(try_with(&[]), Err(StateError::AddressCount { found: 0, .. })));
    let many: Vec<u8> = (1..=17).collect();
    assert!(matches!(try_with(&many), Err(StateError::AddressCount { found: 17, .. })));
    assert_eq!(try_with(&[5, 5]), Err(StateError::AddressRepeated(v4(5).address)));
    assert!(try_with(&many[..16]).is_ok());
}

#[test]
fn a_mac_address_that_would_read_as_hints_or_as_a_group_is_refused() {
    let mut state = State::new(LIMITS);
    for (first_byte, is_fine) in [(0x02, false), (0x01, false), (0xff, false), (0x06, true)] {
        let mut candidate = pod(first_byte, &[first_byte]);
        candidate.mac[0] = first_byte;
        assert_eq!(state.apply(Change::Add(candidate)).is_ok(), is_fine, "{first_byte:02x}");
    }
}

#[test]
fn a_full_node_refuses_with_code_50_until_a_pod_leaves() {
    let mut state = State::new(LIMITS);
    (0..10).for_each(|id| drop(add(&mut state, id)));
    let refused = state.admit(&attachment(20)).unwrap_err();
    assert_eq!((refused.cni_code(), &refused), (50, &StateError::NoRoom { ports: 10 }));
    assert_eq!(state.apply(Change::Add(pod(20, &[20]))), Err(refused));
    state.apply(Change::Remove(attachment(4))).unwrap();
    assert_eq!(add(&mut state, 20).slot, 4);
}

#[test]
fn full_workers_refuse_although_slots_are_left() {
    let mut state = State::new(Limits { workers: 2, slots: 100, ports_per_worker: 1 });
    (0..2).for_each(|id| drop(add(&mut state, id)));
    assert_eq!(state.room(), Err(StateError::NoRoom { ports: 2 }));
}

#[test]
fn removing_twice_changes_nothing_the_second_time() {
    let mut state = State::new(LIMITS);
    let record = add(&mut state, 1);
    let remove = Change::Remove(attachment(1));
    assert_eq!(state.apply(remove.clone()), Ok(Effect::Removed(record)));
    let generation = state.generation();
    assert_eq!(state.apply(remove), Ok(Effect::Unchanged));
    assert_eq!(state.generation(), generation);
}

#[test]
fn restored_pods_keep_their_homes_and_later_pods_have_newer_generations() {
    let mut before = State::new(LIMITS);
    (0..6).for_each(|id| drop(add(&mut before, id)));
    before.apply(Change::Remove(attachment(0))).unwrap();
    let mut after = State::new(LIMITS);
    let mut records: Vec<PodRecord> = before.pods().cloned().collect();
    records.reverse();
    for record in records {
        let restored = after.apply(Change::Restore(record.clone()));
        assert_eq!(restored, Ok(Effect::Added(record)));
    }
    assert!(before.pods().eq(after.pods()));
    let newest = before.pods().map(|record| record.generation).max().unwrap();
    assert!(add(&mut after, 77).generation > newest);
}

#[test]
fn a_generation_that_nobody_has_counted_to_leaves_room_for_all_that_come() {
    let mut before = State::new(LIMITS);
    let records: Vec<_> = (0..4).map(|id| add(&mut before, id)).collect();
    let mut after = State::new(LIMITS);
    for (mut record, generation) in records.into_iter().zip([u64::MAX, 7, u64::MAX, u64::MAX - 1]) {
        record.generation = generation;
        after.apply(Change::Restore(record)).unwrap();
    }
    assert_eq!(after.pod(&attachment(1)).unwrap().generation, 7, "as it was");
    let newest = after.pods().map(|record| record.generation).max().unwrap();
    assert!(add(&mut after, 77).generation > newest);
    assert!(newest < 100);
}

#[test]
fn restored_pods_move_when_their_worker_or_slot_is_gone() {
    let mut before = State::new(LIMITS);
    let records: Vec<_> = (0..6).map(|id| add(&mut before, id)).collect();
    let mut after = State::new(Limits { workers: 1, slots: 6, ports_per_worker: 6 });
    for mut record in records {
        if record.slot == 5 {
            record.slot = 9;
        }
        after.apply(Change::Restore(record)).unwrap();
    }
    assert_eq!(after.loads(), [6]);
    assert_eq!(after.pod(&attachment(5)).unwrap().slot, 5);
}

#[test]
fn a_pod_that_is_there_is_restored_though_a_new_one_would_find_no_room() {
    let mut before = State::new(LIMITS);
    let records: Vec<_> = (0..6).map(|id| add(&mut before, id)).collect();
    for ports_per_worker in [0, 2] {
        let mut after = State::new(Limits { workers: 2, ports_per_worker, ..LIMITS });
        for record in &records {
            after.apply(Change::Restore(record.clone())).unwrap();
        }
        assert_eq!(after.pods().len(), 6);
        assert_eq!(after.loads().iter().sum::<u32>(), 6);
        assert!(matches!(after.room(), Err(StateError::NoRoom { ports: 6 })));
    }
}

#[test]
fn gc_names_what_its_network_does_not_list_and_nothing_of_another_network() {
    let mut state = State::new(LIMITS);
    (0..6).for_each(|id| drop(add(&mut state, id)));
    let valid = vec![("c2".to_owned(), "eth0".to_owned()), ("c4".to_owned(), "eth1".to_owned())];
    let request = GcRequest { network: "even".to_owned(), valid };
    assert_eq!(state.stale(&request), [attachment(0), attachment(4)]);
    let nothing_valid = GcRequest { network: "odd".to_owned(), valid: Vec::new() };
    assert_eq!(state.stale(&nothing_valid), [attachment(1), attachment(3), attachment(5)]);
    let unknown = GcRequest { network: "other".to_owned(), valid: Vec::new() };
    assert!(state.stale(&unknown).is_empty());
}

#[test]
fn a_record_without_a_field_of_a_newer_release_is_not_needed_and_an_unknown_field_is_ignored() {
    let mut state = State::new(LIMITS);
    let record = add(&mut state, 1);
    let mut json = serde_json::to_value(&record).unwrap();
    json["from_the_future"] = serde_json::json!({"a": 1});
    assert_eq!(serde_json::from_value::<PodRecord>(json).unwrap(), record);
}

#[test]
fn a_host_port_of_another_pod_is_refused_with_its_owner() {
    let mut state = State::new(LIMITS);
    state.apply(Change::Add(mapped(1, &[mapping("", 8080), mapping("192.0.2.1", 81)]))).unwrap();
    for (wish, key) in [
        (mapping("", 8080), any_v4(8080)),
        (mapping("0.0.0.0", 8080), any_v4(8080)),
        (
            mapping("192.0.2.1", 81),
            HostPortKey {
                address: HostPortAddress::One("192.0.2.1".parse().unwrap()),
                ..any_v4(81)
            },
        ),
    ] {
        let before = state.clone();
        let new = mapped(2, &[mapping("", 7), wish]);
        let early = state.admit_host_ports(&new.host_ports).unwrap_err();
        let refused = state.apply(Change::Add(new)).unwrap_err();
        assert_eq!(early, refused, "known before the kernel is touched");
        assert_eq!(refused.cni_code(), 101);
        let StateError::HostPortTaken { host_port, owner, .. } = &refused else {
            panic!("{refused}")
        };
        assert_eq!((host_port, owner), (&key, &attachment(1)));
        let sentence = refused.to_string();
        for part in [&key.port.to_string(), "tcp", "pod default/pod-1", "container c1"] {
            assert!(sentence.contains(part), "{sentence}");
        }
        assert!(state.pods().eq(before.pods()));
        assert!(state.pod_by_host_port(&any_v4(7)).is_none(), "nothing of it stays");
    }
}

#[test]
fn a_single_address_beside_all_and_another_protocol_are_no_conflict() {
    let mut state = State::new(LIMITS);
    let udp = PortMapping { protocol: PortProtocol::Udp, ..mapping("", 8080) };
    for (id, wish) in [
        (1, mapping("", 8080)),
        (2, mapping("192.0.2.1", 8080)),
        (3, mapping("192.0.2.2", 8080)),
        (4, udp),
        (5, mapping("", 8081)),
    ] {
        state.apply(Change::Add(mapped(id, &[wish]))).unwrap();
    }
    let owners: Vec<&str> =
        state.host_ports_after(None).map(|(pod, _)| pod.attachment.container_id.as_str()).collect();
    assert_eq!(owners, ["c2", "c3", "c1", "c5", "c4"], "tcp first, then single addresses");
}

#[test]
fn a_port_of_both_protocols_is_freed_as_two_and_given_to_two_others() {
    let mut state = State::new(LIMITS);
    let udp = PortMapping { protocol: PortProtocol::Udp, ..mapping("", 53) };
    state.apply(Change::Add(mapped(1, &[mapping("", 53), udp]))).unwrap();
    state.apply(Change::Remove(attachment(1))).unwrap();
    assert_eq!(state.host_ports_after(None).count(), 0);
    state.apply(Change::Add(mapped(2, &[udp]))).unwrap();
    state.apply(Change::Add(mapped(3, &[mapping("", 53)]))).unwrap();
    let owner = |transport| state.pod_by_host_port(&HostPortKey { transport, ..any_v4(53) });
    assert_eq!(owner(PortProtocol::Udp).unwrap().attachment, attachment(2));
    assert_eq!(owner(PortProtocol::Tcp).unwrap().attachment, attachment(3));
}

#[test]
fn host_ports_go_with_their_attachment_and_a_late_removal_of_an_older_one_takes_none() {
    let mut state = State::new(LIMITS);
    let wish = [mapping("", 8080)];
    state.apply(Change::Add(mapped(1, &wish))).unwrap();
    // A second sandbox of the same pod asks while the first is there, and when it is not.
    assert!(state.apply(Change::Add(mapped(2, &wish))).is_err());
    state.apply(Change::Remove(attachment(1))).unwrap();
    state.apply(Change::Add(mapped(2, &wish))).unwrap();
    assert_eq!(state.apply(Change::Remove(attachment(1))), Ok(Effect::Unchanged));
    assert_eq!(state.pod_by_host_port(&any_v4(8080)).unwrap().attachment, attachment(2));
    // GC knows attachments only.
    let request = GcRequest { network: "even".to_owned(), valid: Vec::new() };
    for stale in state.stale(&request) {
        state.apply(Change::Remove(stale)).unwrap();
    }
    assert!(state.pod_by_host_port(&any_v4(8080)).is_none());
}

#[test]
fn host_ports_are_restored_with_their_pod_wherever_its_slot_is() {
    let mut before = State::new(LIMITS);
    let wish = [mapping("", 8080), mapping("192.0.2.1", 8080)];
    let masquerade = MasqueradeWish::Everybody;
    let mut new = NewPod { masquerade, ..mapped(1, &wish) };
    new.host_ports.reverse();
    before.apply(Change::Add(new)).unwrap();
    let json = serde_json::to_string(before.pod(&attachment(1)).unwrap()).unwrap();
    let mut record: PodRecord = serde_json::from_str(&json).unwrap();
    assert_eq!(Some(&record), before.pod(&attachment(1)));
    // Of a daemon with more slots, and in another order.
    record.slot = 99;
    record.host_ports.reverse();
    let mut after = State::new(LIMITS);
    after.apply(Change::Restore(record)).unwrap();
    assert!(
        after
            .host_ports_after(None)
            .map(|(_, r)| r.key())
            .eq(before.host_ports_after(None).map(|(_, record)| record.key()))
    );
    let owner = after.pod_by_host_port(&any_v4(8080)).unwrap();
    assert_eq!((owner.slot, owner.masquerade), (0, MasqueradeWish::Everybody));
    assert!(after.apply(Change::Add(mapped(2, &wish[..1]))).is_err());
}

#[test]
fn a_record_of_a_release_without_host_ports_has_none_and_is_written_as_it_was() {
    let record = add(&mut State::new(LIMITS), 1);
    let mut json = serde_json::to_value(&record).unwrap();
    assert!(json.get("host_ports").is_none());
    assert_eq!(json.as_object_mut().unwrap().remove("masquerade"), Some("itself".into()));
    assert_eq!(serde_json::from_value::<PodRecord>(json).unwrap(), record);
}

#[test]
fn the_journal_form_of_a_host_port_does_not_change() {
    let wish = [mapping("", 8080), mapping("192.0.2.1", 81)];
    let json = serde_json::to_value(&mapped(7, &wish).host_ports).unwrap();
    let golden = serde_json::json!([
        {"transport": "tcp", "address": {"one": "192.0.2.1"}, "port": 81, "serving": "10.0.0.7",
         "container_port": 80},
        {"transport": "tcp", "address": "any_v4", "port": 8080, "serving": "10.0.0.7",
         "container_port": 80},
    ]);
    assert_eq!(json, golden);
    let v6 = serde_json::json!("any_v6");
    assert_eq!(serde_json::to_value(HostPortAddress::AnyV6).unwrap(), v6);
}

#[test]
fn a_restored_record_whose_host_ports_cannot_be_is_refused_and_not_indexed() {
    let wish = [mapping("", 8080), mapping("192.0.2.1", 8080)];
    let sound = mapped(1, &wish).at_home(0, 0, 1);
    let spoil = |spoil: &dyn Fn(&mut HostPortRecord)| {
        let mut record = sound.clone();
        spoil(&mut record.host_ports[0]);
        record
    };
    let twice = PodRecord {
        host_ports: [&sound.host_ports[..], &sound.host_ports[..]].concat(),
        ..sound.clone()
    };
    for record in [
        spoil(&|host_port| host_port.port = 0),
        spoil(&|host_port| host_port.container_port = 0),
        spoil(&|host_port| host_port.serving = "10.0.0.9".parse().unwrap()),
        spoil(&|host_port| host_port.address = HostPortAddress::AnyV6),
        twice,
    ] {
        let mut state = State::new(LIMITS);
        let refused = state.apply(Change::Restore(record)).unwrap_err();
        assert_eq!(refused.cni_code(), 7, "{refused}");
        assert_eq!(state.host_ports_after(None).count(), 0);
    }
    assert!(State::new(LIMITS).apply(Change::Restore(sound)).is_ok());
}

#[test]
fn a_node_has_room_for_65_536_host_ports_and_says_how_many_are_in_use() {
    let range = |host_ip: &str, ports: std::ops::RangeInclusive<u16>| {
        ports.map(|port| mapping(host_ip, port)).collect::<Vec<_>>()
    };
    let mut state = State::new(LIMITS);
    state.apply(Change::Add(mapped(1, &range("", 1..=65_535)))).unwrap();
    let two = mapped(2, &range("192.0.2.1", 1..=2));
    let refused = state.apply(Change::Add(two)).unwrap_err();
    assert_eq!(refused, StateError::NoHostPorts { found: 2, used: 65_535 });
    assert_eq!(refused.cni_code(), 50);
    let one = mapped(2, &range("192.0.2.1", 1..=1));
    state.apply(Change::Add(one)).unwrap();
    assert!(state.apply(Change::Add(mapped(3, &[mapping("192.0.2.1", 2)]))).is_err());
    state.apply(Change::Add(pod(3, &[3]))).unwrap();
    state.apply(Change::Remove(attachment(1))).unwrap();
    state.apply(Change::Add(mapped(1, &range("", 1..=65_535)))).unwrap();
}

#[test]
fn check_finds_each_mapping_that_does_not_lead_to_the_pod() {
    let mut state = State::new(LIMITS);
    state.apply(Change::Add(mapped(1, &[mapping("", 1), mapping("192.0.2.1", 2)]))).unwrap();
    let pod = state.pod(&attachment(1)).unwrap();
    let mut other_port = mapping("", 1);
    other_port.container_port = 81;
    let udp = PortMapping { protocol: PortProtocol::Udp, ..mapping("", 1) };
    for (mapping, is_there) in [
        (mapping("", 1), true),
        (mapping("0.0.0.0", 1), true),
        (mapping("::", 1), true), // the pod has no address that could serve it
        (mapping("192.0.2.1", 2), true),
        (mapping("", 2), false),
        (mapping("192.0.2.1", 1), false),
        (mapping("", 3), false),
        (other_port, false),
        (udp, false),
    ] {
        let checked = pod.check_host_ports(&[mapping]);
        assert_eq!(checked.is_ok(), is_there, "{mapping:?}");
        if let Err(missing) = checked {
            let sentence = missing.to_string();
            assert!(sentence.contains("c1") && sentence.contains("hostPort"), "{sentence}");
        }
    }
    assert!(pod.check_host_ports(&[]).is_ok(), "a runtime that says nothing is not contradicted");
}

/// The naive model: a list, searched from end to end.
#[derive(Default)]
struct Model {
    pods: Vec<PodRecord>,
    generation: u64,
}

impl Model {
    fn free_worker(&self) -> Option<u16> {
        let load = |worker: u16| self.pods.iter().filter(|pod| pod.worker == worker).count();
        let mut best = None;
        for worker in 0..LIMITS.workers {
            if load(worker) < LIMITS.ports_per_worker as usize
                && best.is_none_or(|best| load(worker) < load(best))
            {
                best = Some(worker);
            }
        }
        best
    }

    fn add(&mut self, pod: &NewPod) -> bool {
        let slot = (0..LIMITS.slots).find(|slot| self.pods.iter().all(|pod| pod.slot != *slot));
        let (Some(worker), Some(slot)) = (self.free_worker(), slot) else {
            return false;
        };
        let clashes = self.pods.iter().any(|other| {
            let shares = |a: &PodAddress| pod.addresses.iter().any(|b| a.address == b.address);
            let maps = |a: &HostPortRecord| pod.host_ports.iter().any(|b| a.key() == b.key());
            other.attachment == pod.attachment
                || other.addresses.iter().any(shares)
                || other.host_ports.iter().any(maps)
        });
        let distinct: HashSet<_> = pod.addresses.iter().map(|a| a.address).collect();
        if clashes || pod.addresses.is_empty() || distinct.len() != pod.addresses.len() {
            return false;
        }
        self.generation += 1;
        self.pods.push(pod.clone().at_home(worker, slot, self.generation));
        true
    }

    fn remove(&mut self, attachment: &Attachment) -> bool {
        let len = self.pods.len();
        self.pods.retain(|pod| pod.attachment != *attachment);
        let is_gone = self.pods.len() < len;
        self.generation += u64::from(is_gone);
        is_gone
    }

    /// `None` when there is no such pod or the limits cannot be, else whether that changes it.
    fn limit(&mut self, attachment: &Attachment, limits: Bandwidth) -> Option<bool> {
        let pod = self.pods.iter_mut().find(|pod| pod.attachment == *attachment)?;
        limits.egress.is_none_or(|limit| limit.rate_bps > 0).then_some(())?;
        let is_changed = pod.limits != limits;
        pod.limits = limits;
        self.generation += u64::from(is_changed);
        Some(is_changed)
    }
}

#[derive(Clone, Debug)]
enum Op {
    Add(u8, Vec<u8>, Vec<PortMapping>),
    Remove(u8),
    /// Limit what the pod sends; to nothing if the rate is 0, which cannot be.
    Limit(u8, Option<u64>),
}

fn any_mapping() -> impl Strategy<Value = PortMapping> {
    let host_ip = prop_oneof![3 => Just("192.0.2.1"), 3 => Just("192.0.2.2"), 1 => Just("")];
    (host_ip, 1..6_u16, any::<bool>()).prop_map(|(host_ip, port, is_tcp)| {
        let protocol = if is_tcp { PortProtocol::Tcp } else { PortProtocol::Udp };
        PortMapping { protocol, ..mapping(host_ip, port) }
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (
            0..16_u8,
            prop::collection::vec(0..40_u8, 0..4),
            prop::collection::vec(any_mapping(), 0..3),
        )
            .prop_map(|(id, addresses, mappings)| Op::Add(id, addresses, mappings)),
        1 => (0..16_u8).prop_map(Op::Remove),
        1 => (0..16_u8, prop::option::of(0..3_u64)).prop_map(|(id, rate)| Op::Limit(id, rate)),
    ]
}

fn check_invariants(state: &State) {
    let slots: HashSet<u32> = state.pods().map(|pod| pod.slot).collect();
    assert_eq!(slots.len(), state.pods().len(), "slots are unique");
    assert!(slots.iter().all(|slot| *slot < LIMITS.slots));
    let generations: HashSet<u64> = state.pods().map(|pod| pod.generation).collect();
    assert_eq!(generations.len(), state.pods().len(), "generations are unique");
    let addresses: Vec<_> = state.pods().flat_map(|pod| &pod.addresses).collect();
    let distinct: HashSet<IpAddr> = addresses.iter().map(|a| a.address).collect();
    assert_eq!(distinct.len(), addresses.len(), "addresses are unique");
    assert_eq!(state.by_address.len(), addresses.len(), "the address index is exact");
    assert_eq!(state.by_host_ifname.len(), state.pods().len(), "the name index is exact");
    for (worker, load) in state.loads().iter().enumerate() {
        let pods = state.pods().filter(|pod| usize::from(pod.worker) == worker).count();
        assert_eq!(pods, *load as usize, "worker {worker}");
        assert!(*load <= LIMITS.ports_per_worker);
    }
    assert!(state.pods_after(None).eq(state.pods()));
    for slot in 0..=LIMITS.slots {
        let from: Vec<u32> = state.pods_from_slot(slot).map(|pod| pod.slot).collect();
        assert!(from.is_sorted());
        let expected: HashSet<u32> = slots.iter().copied().filter(|other| *other >= slot).collect();
        assert_eq!(from.into_iter().collect::<HashSet<u32>>(), expected);
    }
    for id in 0..16 {
        // Whether there is such a pod or not.
        let behind = state.pods().filter(|pod| pod.attachment > attachment(id));
        assert!(state.pods_after(Some(&attachment(id))).eq(behind));
    }
    let host_ports = || state.host_ports_after(None);
    assert!(host_ports().map(|(_, record)| record.key()).is_sorted_by(|a, b| a < b));
    let of_pods: usize = state.pods().map(|pod| pod.host_ports.len()).sum();
    assert_eq!(of_pods, state.by_host_port.len(), "the host port index is exact");
    assert_eq!(of_pods, host_ports().count());
    for (skip, (_, record)) in host_ports().enumerate() {
        let after = state.host_ports_after(Some(&record.key()));
        assert!(after.eq(host_ports().skip(skip + 1)));
    }
    for pod in state.pods() {
        for record in &pod.host_ports {
            assert_eq!(state.pod_by_host_port(&record.key()), Some(pod));
        }
        assert_eq!(state.pod_by_slot(pod.slot), Some(pod));
        for address in &pod.addresses {
            assert_eq!(state.pod_by_address(address.address), Some(pod));
        }
    }
}

proptest! {
    #[test]
    fn any_changes_keep_the_invariants_and_equal_the_naive_model(
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let (mut state, mut model) = (State::new(LIMITS), Model::default());
        let mut has_removed = false;
        for op in ops {
            let before = state.clone();
            let is_changed = match op {
                Op::Add(id, addresses, mappings) => {
                    let new = pod(id, &addresses);
                    let host_ports = host_ports_of(&mappings, &new.addresses).unwrap();
                    let new = NewPod { host_ports, ..new };
                    let is_added = model.add(&new);
                    prop_assert_eq!(state.apply(Change::Add(new)).is_ok(), is_added);
                    is_added
                }
                Op::Remove(id) => {
                    let is_removed = model.remove(&attachment(id));
                    let effect = state.apply(Change::Remove(attachment(id))).unwrap();
                    prop_assert_eq!(matches!(effect, Effect::Removed(_)), is_removed);
                    has_removed |= is_removed;
                    is_removed
                }
                Op::Limit(id, rate) => {
                    let egress = rate.map(|rate_bps| RateRequest { rate_bps, burst_bits: 8 });
                    let limits = Bandwidth { ingress: None, egress };
                    let is_changed = model.limit(&attachment(id), limits);
                    let effect = state.apply(Change::SetLimits(attachment(id), limits)).ok();
                    let is_limited = effect.map(|effect| matches!(effect, Effect::Limited(_)));
                    prop_assert_eq!(is_limited, is_changed);
                    is_changed.unwrap_or(false)
                }
            };
            check_invariants(&state);
            if !is_changed {
                prop_assert!(state.pods().eq(before.pods()));
            }
            let mut expected = model.pods.clone();
            expected.sort_by(|a, b| a.attachment.cmp(&b.attachment));
            prop_assert_eq!(state.pods().cloned().collect::<Vec<_>>(), expected);
            prop_assert_eq!(state.generation(), model.generation);
            if !has_removed {
                let (min, max) = (state.loads().iter().min(), state.loads().iter().max());
                prop_assert!(max.unwrap() - min.unwrap() <= 1);
            }
        }
    }
}

#[test]
fn the_mode_of_a_record_is_kept_and_basic_where_it_does_not_say() {
    let record = add(&mut State::new(LIMITS), 1);
    let mut json = serde_json::to_value(&record).unwrap();
    assert_eq!(serde_json::from_value::<PodRecord>(json.clone()).unwrap(), record);
    assert_eq!(json.as_object_mut().unwrap().remove("offloads"), Some("full".into()));
    let old: PodRecord = serde_json::from_value(json).unwrap();
    assert_eq!(old, PodRecord { offloads: Offloads::Basic, ..record });
}
