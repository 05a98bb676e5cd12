//! Messages: written as ctnetlink reads them, and read whatever they are.

use proptest::prelude::*;

use super::message::{Content, Message, delete, list};
use super::*;
use crate::nfnetlink;
use dataplane::conntrack::Endpoint;

fn messages(bytes: &[u8]) -> impl Iterator<Item = Message> {
    nfnetlink::messages(bytes).filter_map(|received| Message::read(&received))
}

fn end(is_v4: bool, address: u128, port: u16) -> Endpoint {
    let address = match is_v4 {
        true => std::net::Ipv4Addr::from(address as u32).into(),
        false => std::net::Ipv6Addr::from(address).into(),
    };
    Endpoint { address, port }
}

prop_compose! {
    fn any_flow()(
        is_v4: bool,
        addresses: [u128; 4],
        ports: [u16; 4],
        transport in prop_oneof![Just(6u8), Just(17), Just(132)],
        id: u32,
        zone: u16,
        status: u32,
    ) -> KernelFlow {
        let transport = Transport::from_number(transport).expect("one of ours");
        let [a, b, c, d] = [0, 1, 2, 3].map(|n| end(is_v4, addresses[n], ports[n]));
        let key = |src, dst| FlowKey { transport, src, dst };
        let (original, reply, is_closing) = (key(a, b), key(c, d), false);
        KernelFlow { id, zone, status, original, reply, is_closing }
    }
}

/// A message that lists a flow, made of the orders to delete it and its reverse: the attributes
/// have the same names.
fn listed(flow: &KernelFlow, sequence: u32) -> Vec<u8> {
    const HEADERS: usize = 20;
    let mut bytes = delete(sequence, flow);
    let reply = delete(sequence, &KernelFlow { original: flow.reply, zone: 0, ..*flow });
    let tuple_bytes = usize::from(u16::from_ne_bytes([reply[HEADERS], reply[HEADERS + 1]]));
    let start = bytes.len();
    bytes.extend(&reply[HEADERS..HEADERS + tuple_bytes]);
    bytes[start + 2] = 2; // CTA_TUPLE_REPLY
    crate::attributes::put(&mut bytes, 3, &flow.status.to_be_bytes());
    let length = u32::try_from(bytes.len()).unwrap();
    bytes[0..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..6].copy_from_slice(&u16::from_be_bytes([1, 0]).to_ne_bytes());
    bytes
}

proptest! {
    #[test]
    fn a_flow_is_read_as_it_is_written(flow in any_flow(), sequence: u32) {
        let mut bytes = listed(&flow, sequence);
        bytes.extend(listed(&flow, sequence));
        let content = Content::Flow(flow);
        let expected = Message { sequence, is_interrupted: false, content };
        prop_assert_eq!(messages(&bytes).collect::<Vec<_>>(), [expected, expected]);
        bytes[6] |= 0x10; // NLM_F_DUMP_INTR
        prop_assert!(messages(&bytes).next().unwrap().is_interrupted);
    }

    #[test]
    fn damaged_messages_are_read_without_a_panic(
        flow in any_flow(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        end in any::<prop::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = listed(&flow, 1);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(end.index(bytes.len() + 1));
        prop_assert!(messages(&bytes).count() <= bytes.len() / 16);
        prop_assert!(messages(&noise).count() <= noise.len() / 16);
    }
}

fn some_flow() -> KernelFlow {
    let key = |transport| FlowKey { transport, src: end(true, 1, 1), dst: end(true, 2, 2) };
    let original = key(Transport::Tcp);
    let reply = original.inverse();
    KernelFlow { id: 7, zone: 0, status: 1 << 5, original, reply, is_closing: false }
}

#[test]
fn what_is_not_followed_is_passed_over() {
    let is_other = |bytes: &[u8]| messages(bytes).next().unwrap().content == Content::Other;
    let whole = listed(&some_flow(), 5);
    assert!(!is_other(&whole));
    // The number of the protocol: after the headers, the tuple, its addresses, and the header of
    // the ports.
    let protocol = 20 + 4 + 20 + 4 + 4;
    assert_eq!(whole[protocol], 6);
    for number in [1, 58, 47] {
        let mut other = whole.clone();
        other[protocol] = number;
        assert!(is_other(&other), "protocol {number}");
    }
    let mut mixed = some_flow();
    mixed.reply.src = end(false, 1 << 125, 1);
    mixed.reply.dst = end(false, 1 << 126, 1);
    assert!(is_other(&listed(&mixed, 5)), "two families");
}

#[test]
fn ends_of_lists_and_refusals_are_told_apart() {
    let end = |kind: u16, code: i32| {
        let mut bytes = 20u32.to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 2]);
        bytes.extend(9u32.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        let message = messages(&bytes).next().expect("a message");
        assert_eq!(message.sequence, 9);
        message.content
    };
    assert_eq!(end(3, 0), Content::End(None));
    assert_eq!(end(2, 0), Content::End(None));
    assert_eq!(end(2, -2), Content::End(Some(Errno::NOENT)));
}

#[test]
fn a_kernel_without_ctnetlink_is_told_what_it_lacks() {
    let text = refused("list", Errno::INVAL).to_string();
    assert!(text.contains("modprobe nf_conntrack_netlink"), "{text}");
    assert!(!refused("list", Errno::PERM).to_string().contains("modprobe"));
}

#[test]
fn a_list_of_one_port_says_what_must_be_equal() {
    let all = list(3, Selection::All);
    assert_eq!((all.len(), all[16]), (20, 0), "no attribute and no family");
    let asked = Selection::Asked { transport: Transport::Udp, is_v4: false, port: 0x1234 };
    let bytes = list(3, asked);
    assert_eq!(bytes[16], 10, "AF_INET6");
    // CTA_TUPLE_ORIG { CTA_TUPLE_PROTO { number, destination port } }, CTA_FILTER { flags }
    let protocol = [5, 0, 1, 0, 17, 0, 0, 0];
    let port = [6, 0, 3, 0, 0x12, 0x34, 0, 0];
    let tuple = [&[24, 0, 1, 0x80, 20, 0, 2, 0x80][..], &protocol, &port].concat();
    let filter = [12, 0, 25, 0x80, 8, 0, 1, 0, 0x28, 0, 0, 0];
    assert_eq!(bytes[20..], [&tuple[..], &filter].concat());
}

#[test]
fn a_connection_that_is_being_closed_is_told_from_one_that_is_not() {
    let is_closing = |kind: u16, state: u8| {
        let mut bytes = listed(&some_flow(), 5);
        crate::attributes::nest(&mut bytes, 4, |protocol| {
            crate::attributes::nest(protocol, kind, |of| crate::attributes::put(of, 1, &[state]));
        });
        let length = u32::try_from(bytes.len()).unwrap();
        bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        match messages(&bytes).next().unwrap().content {
            Content::Flow(flow) => flow.is_closing,
            other => panic!("{other:?}"),
        }
    };
    // TCP: SYN_SENT, SYN_RECV and ESTABLISHED; FIN_WAIT to CLOSE.
    assert!((1..=3).all(|state| !is_closing(1, state)));
    assert!((4..=8).all(|state| is_closing(1, state)));
    // SCTP: up to ESTABLISHED; SHUTDOWN_SENT and what follows.
    assert!((1..=4).all(|state| !is_closing(3, state)));
    assert!((5..=7).all(|state| is_closing(3, state)));
}
