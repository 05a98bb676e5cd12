//! Host ports in the table: sets and maps, and what each host port has in them.
//!
//! ```text
//! map host_ports_one   address . protocol . port → pod's address . port      of one address
//! map host_ports_any   protocol . port → pod's address . port                of all of a family
//! set container_ports  pod's address . protocol . port                       for the guard
//! set hairpins         the pod's address twice . protocol . port             unless snat is false
//! set masquerade_all   pod's address . protocol . port                       if masqAll is true
//! set not_node         addresses that are local without being the node's
//! ```
//!
//! There is one of each for IPv4 and one for IPv6, their names end in 4 and 6. They are edited
//! element by element: the cost of a change does not depend on how many host ports there are.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::conntrack::Endpoint;
use dataplane::host_ports::{HostAddress, HostPort, Masquerade};

use super::encode::Batch;
use super::intervals::Family;
use super::sets::{self, Element, Part, Shape};

/// A host port as the kernel's table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostPortEntry {
    /// The port of the node.
    pub host_port: HostPort,
    /// Address and port of the pod that it leads to, of the family of the host port.
    pub serving: Endpoint,
    /// Whose source is hidden. All entries that lead to one port of a pod agree on it.
    ///
    /// Beyond these, a node process that asks 127.0.0.1 is masqueraded, but for
    /// [`Masquerade::Nobody`]: no pod could answer it.
    pub masquerade: Masquerade,
}

impl HostPortEntry {
    fn family(&self) -> Family {
        family_of(self.serving.address)
    }

    fn protocol(&self) -> [u8; 4] {
        padded(&[self.host_port.transport as u8])
    }

    /// The pod's end as a key of its own, or as the end of one.
    fn container_port(&self) -> Vec<u8> {
        let port = padded(&self.serving.port.to_be_bytes());
        [&bytes_of(self.serving.address)[..], &self.protocol(), &port].concat()
    }

    /// What the entry has in a set.
    fn element(&self, set: Set) -> Option<Element> {
        let port = padded(&self.host_port.port.to_be_bytes());
        let leads_to = || {
            let port = padded(&self.serving.port.to_be_bytes());
            [&bytes_of(self.serving.address)[..], &port].concat()
        };
        let (key, value) = match (set, self.host_port.address) {
            (Set::One, HostAddress::One(address)) => {
                ([&bytes_of(address)[..], &self.protocol(), &port].concat(), leads_to())
            }
            (Set::Any, HostAddress::AnyV4 | HostAddress::AnyV6) => {
                ([self.protocol(), port].concat(), leads_to())
            }
            (Set::ContainerPorts, _) => (self.container_port(), Vec::new()),
            (Set::Hairpins, _) if self.masquerade != Masquerade::Nobody => {
                let twice = [bytes_of(self.serving.address), self.container_port()].concat();
                (twice, Vec::new())
            }
            (Set::MasqueradeAll, _) if self.masquerade == Masquerade::Everybody => {
                (self.container_port(), Vec::new())
            }
            _ => return None,
        };
        Some(Element { key, value })
    }
}

/// One of the sets and maps above.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Set {
    One,
    Any,
    ContainerPorts,
    Hairpins,
    MasqueradeAll,
    NotNode,
}

impl Set {
    /// Those that host ports have elements in.
    const OF_ENTRIES: [Set; 5] =
        [Set::One, Set::Any, Set::ContainerPorts, Set::Hairpins, Set::MasqueradeAll];

    pub(super) fn name(self, family: Family) -> String {
        let name = match self {
            Set::One => "host_ports_one",
            Set::Any => "host_ports_any",
            Set::ContainerPorts => "container_ports",
            Set::Hairpins => "hairpins",
            Set::MasqueradeAll => "masquerade_all",
            Set::NotNode => "not_node",
        };
        format!("{name}{}", family.suffix())
    }

    fn shape(self, family: Family) -> Shape {
        let address = Part::Address(family);
        let key = match self {
            Set::One | Set::ContainerPorts | Set::MasqueradeAll => {
                vec![address, Part::Transport, Part::Port]
            }
            Set::Any => vec![Part::Transport, Part::Port],
            Set::Hairpins => vec![address, address, Part::Transport, Part::Port],
            Set::NotNode => vec![address],
        };
        let value = match self {
            Set::One | Set::Any => vec![address, Part::Port],
            _ => Vec::new(),
        };
        Shape { key, value }
    }
}

/// Makes all sets and maps and fills them; numbers them from `id` on.
pub(super) fn make(batch: &mut Batch, id: u32, entries: &[HostPortEntry], not_node: &[IpAddr]) {
    let mut id = id;
    for family in Family::ALL {
        for set in Set::OF_ENTRIES.into_iter().chain([Set::NotNode]) {
            sets::make(batch, id, &set.name(family), &set.shape(family));
            id += 1;
        }
    }
    put(batch, entries);
    change_not_node(batch, not_node, &[]);
}

/// The batch that adds host ports.
pub(super) fn addition(entries: &[HostPortEntry]) -> Batch {
    let mut batch = Batch::begin();
    put(&mut batch, entries);
    batch.finish()
}

/// The batch that takes host ports away: all that lead to one port of a pod together, because they
/// share elements.
pub(super) fn removal(gone: &[HostPortEntry]) -> Batch {
    let mut batch = Batch::begin();
    for family in Family::ALL {
        for set in Set::OF_ENTRIES {
            sets::take(&mut batch, &set.name(family), &elements(set, family, gone));
        }
    }
    batch.finish()
}

/// The batch that changes which local addresses are not the node's.
pub(super) fn not_node_change(came: &[IpAddr], went: &[IpAddr]) -> Batch {
    let mut batch = Batch::begin();
    change_not_node(&mut batch, came, went);
    batch.finish()
}

fn put(batch: &mut Batch, entries: &[HostPortEntry]) {
    for family in Family::ALL {
        for set in Set::OF_ENTRIES {
            sets::put(batch, &set.name(family), &elements(set, family, entries));
        }
    }
}

fn change_not_node(batch: &mut Batch, came: &[IpAddr], went: &[IpAddr]) {
    for family in Family::ALL {
        let of_family = |addresses: &[IpAddr]| {
            let of_family = addresses.iter().filter(|address| family_of(**address) == family);
            let keys: BTreeSet<Vec<u8>> = of_family.map(|address| bytes_of(*address)).collect();
            keys.into_iter().map(|key| Element { key, value: Vec::new() }).collect::<Vec<_>>()
        };
        let name = Set::NotNode.name(family);
        sets::take(batch, &name, &of_family(went));
        sets::put(batch, &name, &of_family(came));
    }
}

/// What these entries have in a set, each element once.
fn elements(set: Set, family: Family, entries: &[HostPortEntry]) -> Vec<Element> {
    let of_family = entries.iter().filter(|entry| entry.family() == family);
    let elements: BTreeSet<Element> = of_family.filter_map(|entry| entry.element(set)).collect();
    elements.into_iter().collect()
}

fn family_of(address: IpAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A short field as it stands in its register.
fn padded(bytes: &[u8]) -> [u8; 4] {
    let mut field = [0; 4];
    field[..bytes.len()].copy_from_slice(bytes);
    field
}

#[cfg(test)]
mod tests {
    use dataplane::conntrack::Transport;

    use super::*;
    use crate::nfnetlink::messages;
    use crate::nft::encode::{SUBSYSTEM, message};

    fn entry(address: &str, port: u16, serving: &str) -> HostPortEntry {
        let address = match address {
            "0.0.0.0" => HostAddress::AnyV4,
            "::" => HostAddress::AnyV6,
            one => HostAddress::One(one.parse().unwrap()),
        };
        HostPortEntry {
            host_port: HostPort { transport: Transport::Tcp, address, port },
            serving: Endpoint { address: serving.parse().unwrap(), port: 80 },
            masquerade: Masquerade::Itself,
        }
    }

    /// Messages of a batch by their type, without its frame.
    fn kinds(batch: &Batch) -> Vec<u8> {
        let all = messages(batch.bytes());
        all.filter_map(|received| received.of(SUBSYSTEM).map(|(kind, ..)| kind)).collect()
    }

    #[test]
    fn a_host_port_is_added_by_three_elements_however_many_there_are() {
        for (address, serving, bytes_max) in
            [("0.0.0.0", "10.244.1.2", 400), ("2001:db8::1", "fd00::2", 500)]
        {
            let batch = addition(&[entry(address, 8080, serving)]);
            assert_eq!(kinds(&batch), [message::NEWSETELEM; 3]);
            assert!(batch.bytes().len() <= bytes_max, "{} bytes", batch.bytes().len());
        }
    }

    #[test]
    fn elements_that_two_host_ports_share_are_there_once_and_go_with_them() {
        let two = [entry("0.0.0.0", 8080, "10.244.1.2"), entry("0.0.0.0", 8081, "10.244.1.2")];
        assert_eq!(elements(Set::ContainerPorts, Family::V4, &two).len(), 1);
        assert_eq!(elements(Set::Any, Family::V4, &two).len(), 2);
        assert_eq!(kinds(&removal(&two)), [message::DELSETELEM; 3]);
    }

    #[test]
    fn what_is_masqueraded_decides_on_the_sets_that_hold_the_pod() {
        let sets = |masquerade| {
            let entry = HostPortEntry { masquerade, ..entry("0.0.0.0", 8080, "10.244.1.2") };
            [Set::Hairpins, Set::MasqueradeAll].map(|set| entry.element(set).is_some())
        };
        assert_eq!(sets(Masquerade::Itself), [true, false]);
        assert_eq!(sets(Masquerade::Everybody), [true, true]);
        assert_eq!(sets(Masquerade::Nobody), [false, false]);
    }

    #[test]
    fn keys_have_the_length_and_the_padding_of_registers() {
        let one = entry("192.0.2.1", 8080, "10.244.1.2").element(Set::One).unwrap();
        assert_eq!(one.key, [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(one.value, [10, 244, 1, 2, 0, 80, 0, 0]);
        let hairpin = entry("::", 8080, "fd00::2").element(Set::Hairpins).unwrap();
        assert_eq!((hairpin.key.len(), hairpin.value.len()), (40, 0));
        assert_eq!(hairpin.key[..16], hairpin.key[16..32]);
    }
}
