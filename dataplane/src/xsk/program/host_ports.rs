//! Which packets to the node itself `uplink` hands to the workers: those for host ports, at the
//! addresses that the node has now. The maps are edited by element, so that a change costs the same
//! among ten host ports and among ten thousand.

use std::collections::BTreeSet;
use std::net::IpAddr;

use libbpf_rs::{ErrorKind, MapCore, MapFlags, MapHandle};

use super::maps::{delete, map_error, update};
use super::{ProgramError, Programs};
use crate::conntrack::Transport;
use crate::host_ports::{HostAddress, HostPort};

/// Most addresses of the node at which workers serve host ports.
pub const NODE_ADDRESSES_MAX: u32 = 4096;
/// Most host ports that workers serve, of all pods together.
pub const HOST_PORTS_MAX: u32 = 65536;

/// Length of struct address.
const ADDRESS_LEN: usize = 20;
/// Length of struct host_port.
const HOST_PORT_LEN: usize = 24;
/// What entries hold: their keys say it all.
const PRESENT: [u8; 1] = [1];
/// The one index of `host_ports_in_use`.
const IN_USE: [u8; 4] = [0; 4];

/// struct address of `bpf/uplink.bpf.c`.
fn encode_address(address: IpAddr) -> [u8; ADDRESS_LEN] {
    let mut bytes = [0; ADDRESS_LEN];
    let family: u32 = match address {
        IpAddr::V4(address) => {
            bytes[4..8].copy_from_slice(&address.octets());
            4
        }
        IpAddr::V6(address) => {
            bytes[4..20].copy_from_slice(&address.octets());
            6
        }
    };
    bytes[0..4].copy_from_slice(&family.to_ne_bytes());
    bytes
}

/// struct host_port of `bpf/uplink.bpf.c`.
fn encode(host_port: &HostPort) -> [u8; HOST_PORT_LEN] {
    let HostPort { transport, address, port } = *host_port;
    assert!(transport != Transport::Query, "host ports are of protocols that have ports");
    let address = match address {
        HostAddress::One(one) => {
            assert!(!one.is_unspecified(), "any address is said by AnyV4 or AnyV6");
            one
        }
        HostAddress::AnyV4 => IpAddr::from([0; 4]),
        HostAddress::AnyV6 => IpAddr::from([0; 16]),
    };
    let mut bytes = [0; HOST_PORT_LEN];
    bytes[..ADDRESS_LEN].copy_from_slice(&encode_address(address));
    bytes[20..22].copy_from_slice(&port.to_be_bytes());
    bytes[22] = transport as u8;
    bytes
}

impl Programs {
    /// Makes these the addresses of the node at which host ports are asked; to all others packets
    /// are in transit. One that stays is there all the while.
    ///
    /// # Errors
    /// There are more than [`NODE_ADDRESSES_MAX`], of the old and the new ones together. Part of
    /// the new ones may be in force then; the kernel serves host ports at the others.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), ProgramError> {
        let map = &self.uplink_maps.node_addresses;
        let wanted: BTreeSet<_> =
            addresses.iter().map(|address| encode_address(*address)).collect();
        let present = keys(map);
        wanted.difference(&present).try_for_each(|key| update(map, key, &PRESENT))?;
        present.difference(&wanted).try_for_each(|key| delete(map, key))
    }

    /// Hands packets for these host ports to the workers, from now on. One that is there already
    /// stays.
    ///
    /// # Errors
    /// There are more than [`HOST_PORTS_MAX`]. None of those that are new is there then.
    ///
    /// # Panics
    /// A host port is of no transport with ports, or its one address is unspecified.
    pub fn add_host_ports(&mut self, host_ports: &[HostPort]) -> Result<(), ProgramError> {
        let wanted: Vec<_> = host_ports.iter().map(encode).collect();
        self.insert(&wanted)
    }

    /// Leaves packets for these host ports to the kernel, from now on. One that is not there is no
    /// error.
    ///
    /// # Errors
    /// The kernel refuses. The others are removed all the same.
    ///
    /// # Panics
    /// As [`Programs::add_host_ports`].
    pub fn remove_host_ports(&mut self, host_ports: &[HostPort]) -> Result<(), ProgramError> {
        let surplus: Vec<_> = host_ports.iter().map(encode).collect();
        self.take_out(&surplus)
    }

    /// Makes these the host ports whose packets workers get, whatever an earlier daemon left. One
    /// that stays is there all the while. Reads the whole map: one system call for each entry.
    ///
    /// # Errors
    /// As [`Programs::add_host_ports`]; those that stay and nothing else is there then.
    ///
    /// # Panics
    /// As [`Programs::add_host_ports`].
    pub fn replace_host_ports(&mut self, host_ports: &[HostPort]) -> Result<(), ProgramError> {
        let wanted: BTreeSet<_> = host_ports.iter().map(encode).collect();
        let present = keys(&self.uplink_maps.host_ports);
        // What an earlier daemon had in use, this one has not counted.
        self.host_ports = present.len();
        let surplus: Vec<_> = present.difference(&wanted).copied().collect();
        self.take_out(&surplus)?;
        let missing: Vec<_> = wanted.difference(&present).copied().collect();
        self.insert(&missing)
    }

    fn insert(&mut self, wanted: &[[u8; HOST_PORT_LEN]]) -> Result<(), ProgramError> {
        if !wanted.is_empty() {
            self.say_in_use(true)?;
        }
        let map = &self.uplink_maps.host_ports;
        let mut added = Vec::new();
        for key in wanted {
            match map.update(key, &PRESENT, MapFlags::NO_EXIST) {
                Ok(()) => added.push(*key),
                Err(exists) if exists.kind() == ErrorKind::AlreadyExists => {}
                Err(source) => {
                    let error = map_error(map, "write to", source);
                    self.host_ports += added.len();
                    // The first error is the one to tell.
                    let _ = self.take_out(&added);
                    return Err(error);
                }
            }
        }
        self.host_ports += added.len();
        Ok(())
    }

    fn take_out(&mut self, surplus: &[[u8; HOST_PORT_LEN]]) -> Result<(), ProgramError> {
        let map = &self.uplink_maps.host_ports;
        let mut taken = Ok(());
        for key in surplus {
            match map.delete(key) {
                Ok(()) => self.host_ports = self.host_ports.saturating_sub(1),
                Err(absent) if absent.kind() == ErrorKind::NotFound => {}
                Err(source) => taken = taken.and(Err(map_error(map, "delete from", source))),
            }
        }
        if self.host_ports == 0 {
            self.say_in_use(false)?;
        }
        taken
    }

    /// Said before the first entry is there, and taken back after the last is gone.
    fn say_in_use(&self, in_use: bool) -> Result<(), ProgramError> {
        let map = &self.uplink_maps.host_ports_in_use;
        update(map, &IN_USE, &u32::from(in_use).to_ne_bytes())
    }
}

/// The keys that `map` holds now: also what an earlier daemon left.
fn keys<const LEN: usize>(map: &MapHandle) -> BTreeSet<[u8; LEN]> {
    let key = |key: Vec<u8>| key.try_into().expect("keys have the length checked at load");
    map.keys().map(key).collect()
}

/// How many host ports an earlier daemon has left.
pub(super) fn left(map: &MapHandle) -> usize {
    map.keys().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(address: HostAddress, transport: Transport, port: u16) -> HostPort {
        HostPort { transport, address, port }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn host_ports_that_differ_in_one_thing_have_keys_of_their_own() {
        let one = |text| HostAddress::One(ip(text));
        let different = [
            at(one("10.0.0.1"), Transport::Tcp, 80),
            at(one("10.0.0.2"), Transport::Tcp, 80),
            at(one("10.0.0.1"), Transport::Udp, 80),
            at(one("10.0.0.1"), Transport::Sctp, 80),
            at(one("10.0.0.1"), Transport::Tcp, 81),
            at(one("10.0.0.1"), Transport::Tcp, 80 << 8),
            at(one("a00:1::"), Transport::Tcp, 80),
            at(HostAddress::AnyV4, Transport::Tcp, 80),
            at(HostAddress::AnyV6, Transport::Tcp, 80),
        ];
        let keys: BTreeSet<_> = different.iter().map(encode).collect();
        assert_eq!(keys.len(), different.len());
    }

    #[test]
    fn a_key_has_the_bytes_that_the_program_reads() {
        let key = encode(&at(HostAddress::One(ip("10.1.2.3")), Transport::Sctp, 0x1f90));
        assert_eq!(key[..4], 4_u32.to_ne_bytes());
        assert_eq!(key[4..20], [10, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(key[20..], [0x1f, 0x90, 132, 0]);
    }

    #[test]
    fn host_ports_that_the_program_could_not_find_are_refused() {
        let bad = [
            at(HostAddress::AnyV4, Transport::Query, 80),
            at(HostAddress::One(ip("0.0.0.0")), Transport::Tcp, 80),
            at(HostAddress::One(ip("::")), Transport::Tcp, 80),
        ];
        for host_port in bad {
            std::panic::catch_unwind(|| encode(&host_port)).expect_err("refused");
        }
    }
}
