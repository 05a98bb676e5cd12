//! The desired world: which pods are attached, where each lives, and which slot its port has.
//!
//! `State` is pure: no clock, no I/O, no randomness. A [`Change`] goes in, an [`Effect`] comes out,
//! and the same changes always give the same state. What the workers forward by is compiled from it
//! elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use cni_bridge::protocol::{Attachment, Bandwidth, GcRequest, PodAddress};

mod error;
mod host_ports;
mod limits;
mod names;
mod record;
#[cfg(test)]
mod tests;

pub use error::StateError;
pub use host_ports::{
    HOST_PORTS_MAX, HostPortAddress, HostPortKey, HostPortRecord, MasqueradeWish, host_ports_of,
};
pub use record::{Fallback, NewPod, PodRecord};

/// Most addresses of one pod: far above dual stack with a few ranges, and a bound on what one
/// request can make us store.
pub const ADDRESSES_PER_POD_MAX: usize = 16;

/// First byte of a source MAC that carries offload hints instead of an address (design: "What the
/// pod's kernel knows travels in the source MAC"), so no pod may own such an address.
pub const HINT_MAC_PREFIX: u8 = 0x02;

/// Highest generation that a restored pod keeps: no daemon counts so far, and there must be more.
const GENERATION_RESTORED_MAX: u64 = u64::MAX / 2;

/// One wish to change the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Serve a pod that has just been plumbed.
    Add(NewPod),
    /// Serve again a pod that an earlier daemon served; at start, before the first `Add`. Worker
    /// and slot are kept if they are still free, so that adopting a pod disturbs nothing.
    Restore(PodRecord),
    /// Stop serving a pod; nothing happens if it is not there (CNI spec, "DEL": repeats succeed).
    Remove(Attachment),
    /// Limit a pod from now on as asked for here, and not as before.
    SetLimits(Attachment, Bandwidth),
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// This pod is now served, here.
    Added(PodRecord),
    /// This pod is no longer served.
    Removed(PodRecord),
    /// This pod now has other limits.
    Limited(PodRecord),
    /// The state is as before, down to its generation.
    Unchanged,
}

/// Sizes that bound the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Workers that pods are spread over; at least 1.
    pub workers: u16,
    /// Port slots of the node.
    pub slots: u32,
    /// Ports that the memory of one worker has room for.
    pub ports_per_worker: u32,
}

/// The pods of this node and their homes.
#[derive(Clone, Debug)]
pub struct State {
    limits: Limits,
    generation: u64,
    pods: BTreeMap<Attachment, PodRecord>,
    /// Owner of each address, host interface and slot: an index over `pods`, nothing more.
    by_address: BTreeMap<IpAddr, Attachment>,
    by_host_ifname: BTreeMap<String, Attachment>,
    by_slot: BTreeMap<u32, Attachment>,
    /// Slot of the owner of each host port, as another index.
    by_host_port: BTreeMap<HostPortKey, u32>,
    /// Slots that no pod has but that cannot be given out yet.
    held_slots: BTreeSet<u32>,
    /// Pods per worker.
    loads: Vec<u32>,
    /// Set by the first `Add`; after it, `Restore` could repeat a generation.
    has_added: bool,
}

impl State {
    /// No pods yet.
    pub fn new(limits: Limits) -> State {
        assert!(limits.workers > 0, "a node has at least one worker");
        State {
            limits,
            generation: 0,
            pods: BTreeMap::new(),
            by_address: BTreeMap::new(),
            by_host_ifname: BTreeMap::new(),
            by_slot: BTreeMap::new(),
            by_host_port: BTreeMap::new(),
            held_slots: BTreeSet::new(),
            loads: vec![0; usize::from(limits.workers)],
            has_added: false,
        }
    }

    /// Makes one change, or refuses it and stays as it was.
    pub fn apply(&mut self, change: Change) -> Result<Effect, StateError> {
        match change {
            Change::Add(pod) => self.add(pod).map(Effect::Added),
            Change::Restore(record) => self.restore(record).map(Effect::Added),
            Change::Remove(attachment) => Ok(match self.remove(&attachment) {
                Some(record) => Effect::Removed(record),
                None => Effect::Unchanged,
            }),
            Change::SetLimits(attachment, limits) => self.set_limits(&attachment, limits),
        }
    }

    /// Whether an `Add` of this attachment could succeed, as far as that is known before its
    /// addresses are: ask before touching the kernel.
    pub fn admit(&self, attachment: &Attachment) -> Result<(), StateError> {
        if self.pods.contains_key(attachment) {
            return Err(StateError::AlreadyAttached(attachment.clone()));
        }
        self.room()
    }

    /// Whether these host ports are free: ask when the pod's addresses are known, before touching
    /// the kernel.
    pub fn admit_host_ports(&self, host_ports: &[HostPortRecord]) -> Result<(), StateError> {
        let (found, used) = (host_ports.len(), self.by_host_port.len());
        if found > HOST_PORTS_MAX.saturating_sub(used) {
            return Err(StateError::NoHostPorts { found, used });
        }
        let owner =
            |record: &HostPortRecord| Some((record.key(), self.pod_by_host_port(&record.key())?));
        match host_ports.iter().find_map(owner) {
            Some((host_port, pod)) => {
                let (owner, who) = (pod.attachment.clone(), pod.who());
                Err(StateError::HostPortTaken { host_port, owner, who })
            }
            None => Ok(()),
        }
    }

    /// Whether there is room for one more pod.
    pub fn room(&self) -> Result<(), StateError> {
        self.least_loaded_worker()?;
        self.lowest_free_slot()?;
        Ok(())
    }

    /// How often the state has changed, counted on from the highest generation restored.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Keeps the slot of a removed pod from being given out: its port is still closing.
    pub fn hold_slot(&mut self, slot: u32) {
        self.held_slots.insert(slot);
    }

    /// The port that had this slot is closed.
    pub fn release_slot(&mut self, slot: u32) {
        self.held_slots.remove(&slot);
    }

    /// The limits it was made with.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Every pod, in the order of their attachments.
    pub fn pods(&self) -> impl ExactSizeIterator<Item = &PodRecord> {
        self.pods.values()
    }

    /// The pods behind this attachment in that order; all of them without one.
    pub fn pods_after<'state>(
        &'state self,
        after: Option<&Attachment>,
    ) -> impl Iterator<Item = &'state PodRecord> + use<'state> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.pods.range((from, Bound::Unbounded)).map(|(_, pod)| pod)
    }

    /// The pods whose ports have this slot or a higher one, in the order of their slots.
    pub fn pods_from_slot(&self, slot: u32) -> impl Iterator<Item = &PodRecord> {
        self.by_slot.range(slot..).filter_map(|(_, attachment)| self.pods.get(attachment))
    }

    /// The pod of this attachment.
    pub fn pod(&self, attachment: &Attachment) -> Option<&PodRecord> {
        self.pods.get(attachment)
    }

    /// The pod that has this address.
    pub fn pod_by_address(&self, address: IpAddr) -> Option<&PodRecord> {
        self.pods.get(self.by_address.get(&address)?)
    }

    /// The pod whose port has this slot.
    pub fn pod_by_slot(&self, slot: u32) -> Option<&PodRecord> {
        self.pods.get(self.by_slot.get(&slot)?)
    }

    /// The pod that has this host port.
    pub fn pod_by_host_port(&self, host_port: &HostPortKey) -> Option<&PodRecord> {
        self.pod_by_slot(*self.by_host_port.get(host_port)?)
    }

    /// The host ports behind this one, each with its pod, in the order of their keys; all of them
    /// without one.
    pub fn host_ports_after<'state>(
        &'state self,
        after: Option<&HostPortKey>,
    ) -> impl Iterator<Item = (&'state PodRecord, &'state HostPortRecord)> + use<'state> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_host_port.range((from, Bound::Unbounded)).filter_map(|(key, slot)| {
            let pod = self.pod_by_slot(*slot)?;
            Some((pod, pod.host_port(key)?))
        })
    }

    /// Pods per worker, by worker index.
    pub fn loads(&self) -> &[u32] {
        &self.loads
    }

    /// The attachments that a CNI GC wants gone: those of its network that it does not list. Other
    /// networks are never touched (CNI spec, "GC").
    pub fn stale(&self, request: &GcRequest) -> Vec<Attachment> {
        let GcRequest { network, valid } = request;
        let valid: BTreeSet<(&str, &str)> =
            valid.iter().map(|(id, ifname)| (id.as_str(), ifname.as_str())).collect();
        let is_stale = |attachment: &&Attachment| {
            let pair = (attachment.container_id.as_str(), attachment.ifname.as_str());
            attachment.network == *network && !valid.contains(&pair)
        };
        self.pods.keys().filter(is_stale).cloned().collect()
    }

    fn add(&mut self, pod: NewPod) -> Result<PodRecord, StateError> {
        self.admit(&pod.attachment)?;
        let record =
            pod.at_home(self.least_loaded_worker()?, self.lowest_free_slot()?, self.generation + 1);
        self.check(&record)?;
        self.generation += 1;
        self.has_added = true;
        self.insert(record.clone());
        Ok(record)
    }

    fn restore(&mut self, mut record: PodRecord) -> Result<PodRecord, StateError> {
        assert!(!self.has_added, "pods are restored before the first one is added");
        if self.pods.contains_key(&record.attachment) {
            return Err(StateError::AlreadyAttached(record.attachment));
        }
        // The configuration may have fewer workers or smaller ones than the last daemon had. A pod
        // that is there is served all the same, if with fewer frames than one should have.
        let load = self.loads.get(usize::from(record.worker));
        if load.is_none_or(|load| *load >= self.limits.ports_per_worker) {
            let least =
                (0..self.limits.workers).min_by_key(|worker| self.loads[usize::from(*worker)]);
            record.worker = self.least_loaded_worker().ok().or(least).unwrap_or(0);
        }
        if record.slot >= self.limits.slots || self.by_slot.contains_key(&record.slot) {
            record.slot = self.lowest_free_slot()?;
        }
        record.host_ports.sort_by_key(HostPortRecord::key);
        self.check(&record)?;
        if record.generation > GENERATION_RESTORED_MAX {
            record.generation = self.generation + 1;
        }
        self.generation = record.generation.max(self.generation + 1);
        self.insert(record.clone());
        Ok(record)
    }

    /// Refuses a record that would take something from another pod, or that no pod can have.
    fn check(&self, record: &PodRecord) -> Result<(), StateError> {
        let container_id = || record.attachment.container_id.clone();
        let [first_byte, ..] = record.mac;
        // RFC 9542 §2.1: the lowest bit of the first byte marks a group address.
        if first_byte == HINT_MAC_PREFIX || first_byte & 1 == 1 {
            return Err(StateError::UnusableMac { container_id: container_id(), first_byte });
        }
        let found = record.addresses.len();
        if found == 0 || found > ADDRESSES_PER_POD_MAX {
            return Err(StateError::AddressCount { container_id: container_id(), found });
        }
        let mut own = BTreeSet::new();
        for &PodAddress { address, .. } in &record.addresses {
            if !own.insert(address) {
                return Err(StateError::AddressRepeated(address));
            }
            if let Some(owner) = self.by_address.get(&address) {
                return Err(StateError::AddressTaken { address, owner: owner.clone() });
            }
        }
        if let Some(owner) = self.by_host_ifname.get(&record.host_ifname) {
            return Err(StateError::HostInterfaceTaken {
                host_ifname: record.host_ifname.clone(),
                owner: owner.clone(),
            });
        }
        record.check_limits()?;
        record.check_own_host_ports()?;
        self.admit_host_ports(&record.host_ports)
    }

    /// Fewest pods first, then lowest index.
    fn least_loaded_worker(&self) -> Result<u16, StateError> {
        (0..self.limits.workers)
            .zip(&self.loads)
            .filter(|(_, load)| **load < self.limits.ports_per_worker)
            .min_by_key(|(worker, load)| (**load, *worker))
            .map(|(worker, _)| worker)
            .ok_or(StateError::NoRoom { ports: self.pods.len() })
    }

    /// A walk over the slots in use: hundreds of pods per node, and only at ADD.
    fn lowest_free_slot(&self) -> Result<u32, StateError> {
        (0..self.limits.slots)
            .find(|slot| !self.by_slot.contains_key(slot) && !self.held_slots.contains(slot))
            .ok_or(StateError::NoRoom { ports: self.pods.len() })
    }

    fn insert(&mut self, record: PodRecord) {
        let attachment = &record.attachment;
        for PodAddress { address, .. } in &record.addresses {
            self.by_address.insert(*address, attachment.clone());
        }
        self.by_host_ifname.insert(record.host_ifname.clone(), attachment.clone());
        self.by_slot.insert(record.slot, attachment.clone());
        let keys = record.host_ports.iter().map(|host_port| (host_port.key(), record.slot));
        self.by_host_port.extend(keys);
        self.loads[usize::from(record.worker)] += 1;
        self.pods.insert(attachment.clone(), record);
    }

    fn remove(&mut self, attachment: &Attachment) -> Option<PodRecord> {
        let record = self.pods.remove(attachment)?;
        for PodAddress { address, .. } in &record.addresses {
            self.by_address.remove(address);
        }
        self.by_host_ifname.remove(&record.host_ifname);
        self.by_slot.remove(&record.slot);
        for host_port in &record.host_ports {
            self.by_host_port.remove(&host_port.key());
        }
        self.loads[usize::from(record.worker)] -= 1;
        self.generation += 1;
        Some(record)
    }
}
