//! The maps `port` reads, as typed operations. Their layout is in `bpf/port.bpf.c`; keys and values
//! are in the machine's byte order, as the program sees them.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle, Object};

use super::{ProgramError, Programs};

/// Most ports at a time; slots are below it too.
pub const PORTS_MAX: u32 = 4096;
/// Most workers: each has two of the 64 sentinels.
pub const WORKERS_MAX: u32 = 32;
/// Most addresses that pods may send from, all pods together.
pub const SOURCES_MAX: u32 = 16384;

/// enum xdp_action of linux/bpf.h.
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// What becomes of packets that no worker takes: name of the outcome, and why it is refused, in a
/// clause; `None` for those that the kernel gets. In the order of enum outcome of `bpf/port.bpf.c`.
pub const FALLBACK_OUTCOMES: [(&str, Option<&str>); 11] = [
    ("passed", None),
    ("dropped", Some("the pod's fallback is drop")),
    ("unknown_port", None),
    ("too_short", Some("it ends before the headers it announces")),
    ("ether_type", Some("it is neither IPv4, IPv6 nor ARP")),
    ("source_mac", Some("its source MAC is not the pod's")),
    ("source_ipv4", Some("its source is no IPv4 address of the pod")),
    ("source_ipv6", Some("its source is no IPv6 address of the pod")),
    ("arp", Some("it is no ARP in the pod's own name")),
    ("neighbour_discovery", Some("a pod may not send this neighbour discovery")),
    ("extension_headers", Some("it has more than 8 IPv6 extension headers")),
];

/// What `port` knows of a port: who its worker is, and what to do without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortEntry {
    /// Where the port's XSK is, below [`PORTS_MAX`].
    pub slot: u32,
    /// The home worker, below [`WORKERS_MAX`].
    pub worker: u32,
    /// What becomes of packets while the worker is gone. A node port passes them whatever it says.
    pub fallback: Fallback,
    /// The pod's assigned MAC. It never starts with 02, the first byte of a marker.
    pub mac: [u8; 6],
    /// Whose packets enter here.
    pub kind: PortKind,
}

/// What becomes of a pod's legal packets while its worker is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// The node's kernel forwards them.
    Pass,
    /// They are dropped: a policy selects the pod, and only a worker can apply it.
    Drop,
}

/// Whose packets enter by a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A pod's: without a worker they pass only with the pod's own addresses.
    Pod,
    /// The node's kernel's own (`viaduct1`), which is trusted.
    Node,
}

/// Length of struct port.
const PORT_LEN: usize = 20;
/// Length of struct source.
const SOURCE_LEN: usize = 24;

impl PortEntry {
    fn encode(&self) -> [u8; PORT_LEN] {
        let PortEntry { slot, worker, fallback, mac, kind } = *self;
        let action = match fallback {
            Fallback::Pass => XDP_PASS,
            Fallback::Drop => XDP_DROP,
        };
        let mut bytes = [0; PORT_LEN];
        bytes[0..4].copy_from_slice(&slot.to_ne_bytes());
        bytes[4..8].copy_from_slice(&worker.to_ne_bytes());
        bytes[8..12].copy_from_slice(&action.to_ne_bytes());
        bytes[12..18].copy_from_slice(&mac);
        bytes[18] = match kind {
            PortKind::Pod => 0,
            PortKind::Node => 1,
        };
        bytes
    }

    /// Reads an entry as the program does: what it does not know is the stricter of the two.
    fn decode(bytes: &[u8; PORT_LEN]) -> PortEntry {
        let action = word(bytes, 8);
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[12..18]);
        PortEntry {
            slot: word(bytes, 0),
            worker: word(bytes, 4),
            fallback: if action == XDP_PASS { Fallback::Pass } else { Fallback::Drop },
            mac,
            kind: if bytes[18] == 1 { PortKind::Node } else { PortKind::Pod },
        }
    }
}

/// Handles of the pinned maps.
#[derive(Debug)]
pub(super) struct Maps {
    ports: MapHandle,
    sockets: MapHandle,
    sentinels: MapHandle,
    sources: MapHandle,
    fallback_counts: MapHandle,
}

impl Maps {
    /// The maps of the loaded `port` object.
    pub(super) fn of(port: &Object) -> libbpf_rs::Result<Maps> {
        let map = |name: &str| handle(port, name);
        Ok(Maps {
            ports: map("ports")?,
            sockets: map("sockets")?,
            sentinels: map("sentinels")?,
            sources: map("sources")?,
            fallback_counts: map("fallback_counts")?,
        })
    }
}

impl Programs {
    /// Sets the entry of the device `ifindex`, or replaces it at once.
    ///
    /// # Errors
    /// There are [`PORTS_MAX`] ports already.
    pub fn set_port(&self, ifindex: u32, entry: &PortEntry) -> Result<(), ProgramError> {
        update(&self.maps.ports, &ifindex.to_ne_bytes(), &entry.encode())
    }

    /// Removes the entry of the device `ifindex`, if there is one. A program still attached there
    /// passes everything from now on: detach it first.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_port(&self, ifindex: u32) -> Result<(), ProgramError> {
        delete(&self.maps.ports, &ifindex.to_ne_bytes())
    }

    /// All entries by device, in no order: also those an earlier daemon left.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn ports(&self) -> Result<Vec<(u32, PortEntry)>, ProgramError> {
        let map = &self.maps.ports;
        let mut ports = Vec::new();
        for key in map.keys() {
            let mut value = [0; PORT_LEN];
            let found = map.lookup_into(&key, &mut value, MapFlags::ANY);
            // Absent: removed since the key was listed.
            if found.map_err(|source| map_error(map, "read", source))? {
                ports.push((word(&key, 0), PortEntry::decode(&value)));
            }
        }
        Ok(ports)
    }

    /// Lets the pod at the device `ifindex` send from `address` while its worker is gone.
    ///
    /// # Errors
    /// There are [`SOURCES_MAX`] addresses already.
    pub fn allow_source(&self, ifindex: u32, address: IpAddr) -> Result<(), ProgramError> {
        update(&self.maps.sources, &source_key(ifindex, address), &[1])
    }

    /// Takes [`Programs::allow_source`] back, for every address of the device `ifindex`. Nothing to
    /// take back is no error. Goes through the whole map, one system call for each address of each
    /// pod, so that nothing stays behind that an earlier daemon allowed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget_sources(&self, ifindex: u32) -> Result<(), ProgramError> {
        let map = &self.maps.sources;
        // Listed before any is deleted: a listing starts over at a key that is gone.
        let keys: Vec<Vec<u8>> = map.keys().filter(|key| word(key, 0) == ifindex).collect();
        keys.iter().try_for_each(|key| delete(map, key))
    }

    /// Sends the packets of the port at `slot` to `socket`. Bind it first: those that reach an
    /// unbound one are lost. The entry goes away by itself when the socket is closed.
    ///
    /// # Errors
    /// `slot` is not below [`PORTS_MAX`], or `socket` is not an XSK.
    pub fn set_socket(&self, slot: u32, socket: BorrowedFd<'_>) -> Result<(), ProgramError> {
        set_xsk(&self.maps.sockets, slot, socket)
    }

    /// Sends the port at `slot` to the fallback. An empty slot is no error.
    ///
    /// # Errors
    /// `slot` is not below [`PORTS_MAX`].
    pub fn clear_socket(&self, slot: u32) -> Result<(), ProgramError> {
        delete(&self.maps.sockets, &slot.to_ne_bytes())
    }

    /// Declares the worker alive as long as the XSKs `low` and `high` are open, which should be its
    /// lowest and highest descriptor: those closed first and last.
    ///
    /// # Errors
    /// `worker` is not below [`WORKERS_MAX`], or a descriptor is not an XSK.
    pub fn set_sentinels(
        &self,
        worker: u32,
        low: BorrowedFd<'_>,
        high: BorrowedFd<'_>,
    ) -> Result<(), ProgramError> {
        let [first, second] = sentinel_keys(worker);
        set_xsk(&self.maps.sentinels, first, low)?;
        set_xsk(&self.maps.sentinels, second, high)
    }

    /// Sends all ports of the worker to the fallback, dead or merely hung.
    ///
    /// # Errors
    /// `worker` is not below [`WORKERS_MAX`].
    pub fn clear_sentinels(&self, worker: u32) -> Result<(), ProgramError> {
        let [first, second] = sentinel_keys(worker);
        // Both, even if the first fails: one missing is enough.
        let cleared = delete(&self.maps.sentinels, &first.to_ne_bytes());
        delete(&self.maps.sentinels, &second.to_ne_bytes()).and(cleared)
    }

    /// How many packets no worker took, by what became of them ([`FALLBACK_OUTCOMES`]), since the
    /// maps were made.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn fallback_counts(&self) -> Result<Vec<(&'static str, u64)>, ProgramError> {
        counts(&self.maps.fallback_counts, FALLBACK_OUTCOMES.map(|(name, _)| name))
    }
}

/// What a per-CPU array counts, under the names of its indexes.
pub(super) fn counts(
    map: &MapHandle,
    names: impl IntoIterator<Item = &'static str>,
) -> Result<Vec<(&'static str, u64)>, ProgramError> {
    let count = |(index, name): (u32, &'static str)| {
        let found = map.lookup_percpu(&index.to_ne_bytes(), MapFlags::ANY);
        let cores = found.map_err(|source| map_error(map, "read", source))?;
        let sum = cores.unwrap_or_default().iter().map(|core| count_of_core(core)).sum();
        Ok((name, sum))
    };
    (0..).zip(names).map(count).collect()
}

/// The map of a loaded object by its name.
pub(super) fn handle(object: &Object, name: &str) -> libbpf_rs::Result<MapHandle> {
    let found = object.maps().find(|map| map.name() == name);
    MapHandle::try_from(&found.expect("the committed object has its maps"))
}

pub(super) fn update(map: &MapHandle, key: &[u8], value: &[u8]) -> Result<(), ProgramError> {
    map.update(key, value, MapFlags::ANY).map_err(|source| map_error(map, "write to", source))
}

pub(super) fn delete(map: &MapHandle, key: &[u8]) -> Result<(), ProgramError> {
    match map.delete(key) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(map_error(map, "delete from", source))
        }
        _ => Ok(()),
    }
}

fn set_xsk(map: &MapHandle, key: u32, socket: BorrowedFd<'_>) -> Result<(), ProgramError> {
    // The kernel takes the descriptor's number and keeps the socket (net/xdp/xskmap.c).
    update(map, &key.to_ne_bytes(), &socket.as_raw_fd().to_ne_bytes())
}

pub(super) fn map_error(
    map: &MapHandle,
    operation: &'static str,
    source: libbpf_rs::Error,
) -> ProgramError {
    let name = map.name().to_string_lossy().into_owned();
    ProgramError::Map { map: name, entries: map.max_entries(), operation, source }
}

/// The keys of a worker's sentinels. A worker that cannot be ends beyond the map and is refused.
fn sentinel_keys(worker: u32) -> [u32; 2] {
    let first = worker.saturating_mul(2);
    [first, first.saturating_add(1)]
}

/// struct source of `bpf/port.bpf.c`.
fn source_key(ifindex: u32, address: IpAddr) -> [u8; SOURCE_LEN] {
    let mut key = [0; SOURCE_LEN];
    key[0..4].copy_from_slice(&ifindex.to_ne_bytes());
    let family: u32 = match address {
        IpAddr::V4(address) => {
            key[8..12].copy_from_slice(&address.octets());
            4
        }
        IpAddr::V6(address) => {
            key[8..24].copy_from_slice(&address.octets());
            6
        }
    };
    key[4..8].copy_from_slice(&family.to_ne_bytes());
    key
}

/// The u32 at `at` of a key or value whose length was checked when the map was taken over.
pub(super) fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    u32::from_ne_bytes(word.expect("keys and values have the length checked at load"))
}

fn count_of_core(bytes: &[u8]) -> u64 {
    let count = bytes.try_into();
    u64::from_ne_bytes(count.expect("counts are u64, checked at load"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_back_as_it_was_written() {
        for fallback in [Fallback::Pass, Fallback::Drop] {
            for kind in [PortKind::Pod, PortKind::Node] {
                let mac = [0xaa, 1, 2, 3, 4, 5];
                let entry = PortEntry { slot: 7, worker: 3, fallback, mac, kind };
                assert_eq!(PortEntry::decode(&entry.encode()), entry);
            }
        }
    }

    #[test]
    fn an_entry_with_unknown_bytes_is_a_pod_that_drops() {
        let entry = PortEntry::decode(&[0xff; PORT_LEN]);
        assert_eq!((entry.fallback, entry.kind), (Fallback::Drop, PortKind::Pod));
    }

    #[test]
    fn an_ipv4_source_is_never_the_key_of_an_ipv6_source() {
        let v4 = source_key(1, "10.0.0.1".parse().expect("an address"));
        let v6 = source_key(1, "a00:1::".parse().expect("an address"));
        assert_eq!(v4[8..], v6[8..]);
        assert_ne!(v4, v6);
    }
}
