//! `uplink` on the NICs: attached in the best mode the driver has, watched, told whose queue is
//! whose. Links are pinned apart from those of the ports: nobody takes them for a pod's leftover.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, Program};

use super::link::{self, AttachMode, Attached};
use super::maps::{WORKERS_MAX, counts, delete, handle, map_error, update, word};
use super::{PORTS_MAX, ProgramError, Programs, names, program};

/// Most interfaces that may be uplinks at a time.
pub const UPLINKS_MAX: u32 = 128;

/// The folder of the uplinks' pinned links in `bpf_dir`, beside the map `uplinks`.
pub(super) const LINKS: &str = "uplink-links";

/// Why `uplink` passes a packet, in the order of its enum outcome.
pub(super) const OUTCOMES: [&str; 7] = [
    "unknown_uplink",
    "other_mac",
    "ether_type",
    "malformed",
    "not_ours",
    "not_direct",
    "fallback",
];

/// What `uplink` knows of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkEntry {
    /// Slot of queue 0; the other queues have the slots that follow.
    pub first_slot: u16,
    /// Queues that have a slot, at least 1. Packets of queues beyond pass.
    pub queues: u16,
    /// Workers, 1 to [`WORKERS_MAX`]: queue q belongs to worker q mod workers.
    pub workers: u16,
    /// The interface's own MAC: frames to others pass.
    pub mac: [u8; 6],
}

/// Length of struct uplink.
const UPLINK_LEN: usize = 24;

impl UplinkEntry {
    fn encode(&self) -> [u8; UPLINK_LEN] {
        let UplinkEntry { first_slot, queues, workers, mac } = *self;
        assert!(queues > 0, "an uplink has a queue");
        assert!((1..=WORKERS_MAX).contains(&u32::from(workers)), "a queue has a worker");
        let last = u32::from(first_slot) + u32::from(queues) - 1;
        assert!(last < PORTS_MAX, "the slots of an uplink are below {PORTS_MAX}");
        let mut bytes = [0; UPLINK_LEN];
        bytes[0..4].copy_from_slice(&u32::from(first_slot).to_ne_bytes());
        bytes[4..8].copy_from_slice(&u32::from(queues).to_ne_bytes());
        bytes[8..12].copy_from_slice(&u32::from(workers).to_ne_bytes());
        bytes[12..18].copy_from_slice(&mac);
        bytes
    }

    fn decode(bytes: &[u8; UPLINK_LEN]) -> UplinkEntry {
        let mut mac = [0; 6];
        mac.copy_from_slice(&bytes[12..18]);
        // Nobody but `encode` writes entries, from these types.
        let number = |at| word(bytes, at) as u16;
        UplinkEntry { first_slot: number(0), queues: number(4), workers: number(8), mac }
    }
}

/// Handles of the maps that only `uplink` reads.
#[derive(Debug)]
pub(super) struct UplinkMaps {
    uplinks: MapHandle,
    uplink_counts: MapHandle,
    pub(super) pod_prefixes: MapHandle,
    pub(super) direct_prefixes: MapHandle,
    pub(super) node_addresses: MapHandle,
    pub(super) host_ports: MapHandle,
    pub(super) host_ports_in_use: MapHandle,
}

impl UplinkMaps {
    /// The maps of the loaded `uplink` object.
    pub(super) fn of(uplink: &Object) -> libbpf_rs::Result<UplinkMaps> {
        Ok(UplinkMaps {
            uplinks: handle(uplink, "uplinks")?,
            uplink_counts: handle(uplink, "uplink_counts")?,
            pod_prefixes: handle(uplink, "pod_prefixes")?,
            direct_prefixes: handle(uplink, "direct_prefixes")?,
            node_addresses: handle(uplink, "node_addresses")?,
            host_ports: handle(uplink, "host_ports")?,
            host_ports_in_use: handle(uplink, "host_ports_in_use")?,
        })
    }
}

impl Programs {
    /// Attaches `uplink` to the device `ifindex`, called `name`, of the calling thread's network
    /// namespace, by a link pinned as `uplink-links/<name>` (a dot in the name becomes a colon).
    /// Where the driver refuses native mode the answer says why, and the program runs in generic
    /// mode.
    ///
    /// A link already pinned under the name is taken over, with this program swapped in atomically,
    /// if it is this device's and runs in the `wanted` mode; else it is replaced. Packets pass in
    /// between, as they do without an entry ([`Programs::set_uplink`]). Native mode may take the
    /// NIC down and up again.
    ///
    /// # Errors
    /// [`ProgramError::Occupied`] when the device runs another XDP program, in whatever mode.
    pub fn attach_uplink(
        &self,
        ifindex: u32,
        name: &str,
        wanted: AttachMode,
    ) -> Result<Attached, ProgramError> {
        link::attach(&self.uplink_pin(name), ifindex, &self.uplink_program(), wanted)
    }

    /// Detaches what [`Programs::attach_uplink`] pinned under `name`. Nothing there is no error.
    ///
    /// # Errors
    /// The pin cannot be removed.
    pub fn detach_uplink(&self, name: &str) -> Result<(), ProgramError> {
        link::detach(&self.uplink_pin(name))
    }

    /// Names of the interfaces with a pinned link, in no order. Those of deleted devices are among
    /// them until [`Programs::detach_uplink`].
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn attached_uplinks(&self) -> Result<Vec<String>, ProgramError> {
        let pins = names(&self.uplink_links)?;
        Ok(pins.into_iter().map(|name| name.replace(':', ".")).collect())
    }

    /// Where the device `ifindex` of the calling thread's network namespace runs the program that
    /// these [`Programs`] have attached; `None`: it runs none, somebody else's, or an earlier
    /// daemon's. One netlink request, to be asked every now and then, since others may detach ours.
    #[must_use]
    pub fn uplink_mode_of(&self, ifindex: u32) -> Option<AttachMode> {
        let program = self.uplink_program();
        let running = link::running_programs(program.as_fd(), ifindex.try_into().unwrap_or(0));
        running.mode_of(Program::id_from_fd(program.as_fd()).unwrap_or(0))
    }

    /// Sets the entry of the device `ifindex`, or replaces it at once.
    ///
    /// # Errors
    /// There are [`UPLINKS_MAX`] uplinks already.
    ///
    /// # Panics
    /// A number of the entry is outside of its range.
    pub fn set_uplink(&self, ifindex: u32, entry: &UplinkEntry) -> Result<(), ProgramError> {
        update(&self.uplink_maps.uplinks, &ifindex.to_ne_bytes(), &entry.encode())
    }

    /// Removes the entry of the device `ifindex`, if there is one: all its packets pass.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_uplink(&self, ifindex: u32) -> Result<(), ProgramError> {
        delete(&self.uplink_maps.uplinks, &ifindex.to_ne_bytes())
    }

    /// All entries by device, in no order: also those an earlier daemon left.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn uplinks(&self) -> Result<Vec<(u32, UplinkEntry)>, ProgramError> {
        let map = &self.uplink_maps.uplinks;
        let mut uplinks = Vec::new();
        for key in map.keys() {
            let mut value = [0; UPLINK_LEN];
            let found = map.lookup_into(&key, &mut value, MapFlags::ANY);
            // Absent: removed since the key was listed.
            if found.map_err(|source| map_error(map, "read", source))? {
                uplinks.push((word(&key, 0), UplinkEntry::decode(&value)));
            }
        }
        Ok(uplinks)
    }

    /// How many packets of all uplinks passed to the kernel, by why, since the maps were made.
    /// `fallback` are those that a worker should have had.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn uplink_counts(&self) -> Result<Vec<(&'static str, u64)>, ProgramError> {
        counts(&self.uplink_maps.uplink_counts, OUTCOMES)
    }

    fn uplink_program(&self) -> Program<'_> {
        program(&self.uplink, "uplink")
    }

    fn uplink_pin(&self, name: &str) -> PathBuf {
        self.uplink_links.join(pin_name(name))
    }
}

/// The id of the program that the link of the uplink `name` in `bpf_dir` runs; `None` if there is
/// no link that this process can open. Changes nothing.
#[must_use]
pub fn pinned_uplink_program(bpf_dir: &Path, name: &str) -> Option<u32> {
    link::program_of(&bpf_dir.join(LINKS).join(pin_name(name)))
}

/// bpffs reserves names with a dot (kernel/bpf/inode.c, bpf_lookup), which VLAN devices have; no
/// interface has a colon in its name (net/core/dev.c, dev_valid_name).
fn pin_name(name: &str) -> String {
    assert!(!name.is_empty() && !name.contains(['/', ':']), "uplinks are named as interfaces");
    name.replace('.', ":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_back_as_it_was_written() {
        let mac = [0xaa, 1, 2, 3, 4, 5];
        for (first_slot, queues, workers) in [(1, 1, 1), (1, 128, 32), (4095, 1, 2)] {
            let entry = UplinkEntry { first_slot, queues, workers, mac };
            assert_eq!(UplinkEntry::decode(&entry.encode()), entry);
        }
    }

    #[test]
    fn entries_that_the_program_could_not_use_are_refused() {
        let good = UplinkEntry { first_slot: 1, queues: 4, workers: 2, mac: [0; 6] };
        let bad = [
            UplinkEntry { queues: 0, ..good },
            UplinkEntry { workers: 0, ..good },
            UplinkEntry { workers: 33, ..good },
            UplinkEntry { first_slot: 4093, ..good },
        ];
        good.encode();
        for entry in bad {
            std::panic::catch_unwind(|| entry.encode()).expect_err("refused");
        }
    }

    #[test]
    fn a_vlan_device_can_be_pinned() {
        assert_eq!(pin_name("eth0.100"), "eth0:100");
        assert_eq!(pin_name("eth0"), "eth0");
    }
}
