//! Where packets for other nodes go: the kernel's routes, as far as they lead to an uplink.
//!
//! Control follows the kernel and edits a [`Fib`]; each publication gives the workers a clone,
//! which shares everything that has not changed since. What the mirror does not know, or may not
//! send, is the kernel's: the answer is then `None`, and the packet leaves by the node port.

mod flow;
mod prefix_map;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hashbrown::HashMap;

pub use self::flow::flow_hash;
use self::prefix_map::PrefixMap;
use crate::port::Mac;
use crate::tables::Prefix;

/// An uplink interface: its place in the configuration's list, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UplinkId(pub u8);

/// One of the ways of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// The interface it leaves by.
    pub uplink: UplinkId,
    /// The router, of any family (RFC 8950 has IPv6 routers for IPv4 prefixes). `None`: the
    /// destination is on the link itself and stands among the neighbors.
    pub via: Option<IpAddr>,
    /// The router's MAC address. `None` while the kernel has not resolved it, or without `via`.
    pub mac: Option<Mac>,
    /// Share of the flows among the hops of the route, 1 to 65535; 0 counts as 1.
    pub weight: u16,
}

/// What a route does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Leaves the packet to the kernel: another interface, an address of the node, a refusal.
    Kernel,
    /// Goes on with the next table.
    Throw,
    /// Sends the packet out of an uplink.
    Uplink {
        /// The ways; each flow takes one of them.
        hops: Vec<NextHop>,
        /// Longest IP packet in bytes that the route takes, where it says so.
        mtu: Option<u32>,
    },
}

/// Where a packet leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The interface.
    pub uplink: UplinkId,
    /// Destination MAC address.
    pub mac: Mac,
    /// Longest IP packet in bytes that the route takes, where it says so.
    pub mtu: Option<u32>,
}

/// Number of an action; control gives them out densely, from 0, because many routes share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ActionId(pub u32);

/// The mirror of the kernel's forwarding. A clone costs a few reference counts, and shares all
/// memory with the original until one of them is changed: then the path to the change is copied.
#[derive(Clone, Debug, Default)]
pub struct Fib {
    tables: Vec<Table>,
    actions: Arc<Vec<Action>>,
    neighbors: Arc<HashMap<(UplinkId, IpAddr), Mac>>,
}

/// One table of the kernel, by family.
#[derive(Clone, Debug, Default)]
struct Table {
    v4: PrefixMap<ActionId>,
    v6: PrefixMap<ActionId>,
}

impl Fib {
    /// Makes it `count` tables, in the order of the kernel's rules. New ones are empty, surplus
    /// ones go.
    pub fn set_tables(&mut self, count: usize) {
        self.tables.resize_with(count, Table::default);
    }

    /// Lets `action` decide about `prefix` in a table, in place of what did. Panics when there is
    /// no such table.
    pub fn insert(&mut self, table: usize, prefix: Prefix, action: ActionId) {
        let (map, key) = self.tables[table].of(prefix.address);
        map.insert(key, prefix.len, action);
    }

    /// Forgets the route of exactly this prefix, if there is one. Panics when there is no such
    /// table.
    pub fn remove(&mut self, table: usize, prefix: Prefix) {
        let (map, key) = self.tables[table].of(prefix.address);
        map.remove(key, prefix.len);
    }

    /// Says what the number stands for. Until then it is [`Action::Kernel`]. The first change after
    /// a clone copies the list of actions, of neighbors with [`Fib::set_neighbor`]: control keeps
    /// both short.
    pub fn set_action(&mut self, id: ActionId, action: Action) {
        let actions = Arc::make_mut(&mut self.actions);
        let index = id.0 as usize;
        if actions.len() <= index {
            actions.resize(index + 1, Action::Kernel);
        }
        actions[index] = action;
    }

    /// Notes the MAC address of a destination on the link; `None` forgets it.
    pub fn set_neighbor(&mut self, uplink: UplinkId, address: IpAddr, mac: Option<Mac>) {
        let neighbors = Arc::make_mut(&mut self.neighbors);
        match mac {
            Some(mac) => neighbors.insert((uplink, address), mac),
            None => neighbors.remove(&(uplink, address)),
        };
    }

    /// Where a packet to `dst` of the flow leaves. The first table that covers `dst` decides, by
    /// its longest prefix. `None`: the kernel's.
    #[must_use]
    pub fn route(&self, dst: IpAddr, flow: u32) -> Option<Hop> {
        for table in &self.tables {
            let id = match dst {
                IpAddr::V4(dst) => table.v4.lookup(key_v4(dst)),
                IpAddr::V6(dst) => table.v6.lookup(u128::from(dst)),
            };
            let Some(id) = id else { continue };
            match self.actions.get(id.0 as usize)? {
                Action::Kernel => return None,
                Action::Throw => {}
                Action::Uplink { hops, mtu } => {
                    let (hop, mac) = self.choose(hops, dst, flow)?;
                    return Some(Hop { uplink: hop.uplink, mac, mtu: *mtu });
                }
            }
        }
        None
    }

    /// Routes in all tables.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.tables.iter().map(|table| table.v4.len() + table.v6.len()).sum()
    }

    /// Memory in bytes that the routes of all tables take, what the allocator adds apart.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.tables.iter().map(|table| table.v4.bytes() + table.v6.bytes()).sum()
    }

    /// The hop for the flow among those that can be used, and its MAC address. Each hop has a
    /// share of the hashes as large as its weight.
    #[inline]
    fn choose<'a>(
        &self,
        hops: &'a [NextHop],
        dst: IpAddr,
        flow: u32,
    ) -> Option<(&'a NextHop, Mac)> {
        let usable = |hop: &'a NextHop| Some((hop, self.mac(hop, dst)?));
        if let [only] = hops {
            return usable(only);
        }
        let weight = |hop: &NextHop| u64::from(hop.weight.max(1));
        let total: u64 = hops.iter().filter_map(usable).map(|(hop, _)| weight(hop)).sum();
        // Hashes are below 2^32: the point is below the total.
        let mut point = (u64::from(flow) * total) >> 32;
        for (hop, mac) in hops.iter().filter_map(usable) {
            if point < weight(hop) {
                return Some((hop, mac));
            }
            point -= weight(hop);
        }
        None
    }

    #[inline]
    fn mac(&self, hop: &NextHop, dst: IpAddr) -> Option<Mac> {
        match hop.via {
            Some(_) => hop.mac,
            None => self.neighbors.get(&(hop.uplink, dst)).copied(),
        }
    }
}

impl Table {
    /// The map of the address's family, and the address as its key.
    fn of(&mut self, address: IpAddr) -> (&mut PrefixMap<ActionId>, u128) {
        match address {
            IpAddr::V4(address) => (&mut self.v4, key_v4(address)),
            IpAddr::V6(address) => (&mut self.v6, u128::from(address)),
        }
    }
}

/// The first bit of an address is the first of a key.
#[inline]
fn key_v4(address: Ipv4Addr) -> u128 {
    u128::from(u32::from(address)) << 96
}

#[cfg(test)]
mod tests;
