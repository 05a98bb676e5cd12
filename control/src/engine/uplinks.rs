//! Uplinks: interfaces to other nodes whose queues belong to the workers. The interface, its
//! addresses and its routes stay the kernel's; only packets between pods take this way.
//!
//! An interface may vanish, come back, change its MAC, MTU or queues, or lose its program to
//! somebody else. [`Engine::watch_uplinks`] compares what is with what we have raised and starts
//! over where they differ; meanwhile the kernel carries the packets.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::Context;
use dataplane::fib::UplinkId;
use dataplane::offload::Hints;
use dataplane::port::{Mac, PortId, WorkerId};
use dataplane::tables::{PortKind, PortSpec, Uplink};
use dataplane::xsk::port::UPLINK_RINGS;
use dataplane::xsk::program::{AttachMode, Steering, UplinkEntry, UplinkProgram};
use dataplane::xsk::socket::Queue;
use ipnet::IpNet;

use super::compile::prefix;
use super::{Engine, Ports};
use crate::config::{Config, MTU_DEFAULT, MTU_MIN};
use crate::ethtool::Ethtool;
use crate::netlink::{Address, Link, Netlink};
use crate::report::UplinkRow;
use crate::uplink::announce::announce;
use crate::uplink::channels::{CHANNELS_FILE, ChannelLog};
use crate::uplink::fitness;
use crate::workers::UPLINK_PORTS_MAX;

/// The configured uplinks.
#[derive(Debug)]
pub(super) struct Uplinks {
    all: Vec<Slot>,
    /// Ports on their way out: their numbers are not free yet.
    leaving: BTreeSet<PortId>,
}

/// One configured interface.
#[derive(Debug)]
struct Slot {
    id: UplinkId,
    name: String,
    /// Ports of its queues: the first, and how many there may be.
    first: u16,
    room: u16,
    raised: Option<Raised>,
    /// Why it is not raised, or not as well as it could be.
    problem: Option<String>,
}

/// An interface that workers use.
#[derive(Clone, Debug)]
pub(super) struct Raised {
    /// What it was like when it was raised.
    pub(super) nic: Nic,
    /// How the program runs.
    pub(super) mode: AttachMode,
    /// Queues whose frames the NIC reads and writes in place.
    pub(super) zero_copy: u16,
    /// Why it does less than it could.
    pub(super) note: Option<String>,
}

/// What an interface is like. Another one is another reason to start over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Nic {
    pub(super) ifindex: u32,
    pub(super) mac: Mac,
    pub(super) mtu: u32,
    pub(super) queues: u16,
    /// A veth: packets may come with open checksums, and longer than the wire.
    pub(super) is_veth: bool,
}

impl Uplinks {
    /// The configured interfaces, none of them raised. They share the ports in equal parts.
    pub(super) fn new(names: &[String]) -> Uplinks {
        let room = UPLINK_PORTS_MAX / (names.len().max(1) as u16);
        let slots = (0u8..).zip(names).map(|(number, name)| Slot {
            id: UplinkId(number),
            name: name.clone(),
            first: 1 + u16::from(number) * room,
            room,
            raised: None,
            problem: None,
        });
        Uplinks { all: slots.collect(), leaving: BTreeSet::new() }
    }

    /// Whether every port that was ordered to go has gone.
    pub(super) fn is_settled(&self) -> bool {
        self.leaving.is_empty()
    }

    /// Whether this was a port of ours that was on its way out; its number is free now.
    pub(super) fn has_left(&mut self, id: PortId) -> bool {
        self.leaving.remove(&id)
    }

    /// The uplinks for the tables of `workers` workers, and their ports.
    pub(super) fn compile(&self, workers: u16) -> (Vec<Uplink>, Vec<PortSpec>) {
        let raised = self.all.iter().filter_map(|slot| Some((slot, slot.raised.as_ref()?)));
        let (mut uplinks, mut ports) = (Vec::new(), Vec::new());
        for (slot, Raised { nic, .. }) in raised {
            let port_of = |queue: u16| PortId(slot.first + queue % nic.queues);
            uplinks.push(Uplink { id: slot.id, ports: (0..workers).map(port_of).collect() });
            ports.extend((0..nic.queues).map(|queue| PortSpec {
                id: port_of(queue),
                worker: WorkerId(queue % workers),
                kind: PortKind::Uplink,
                mac: [0; 6],
                gateway_mac: nic.mac,
                mtu: nic.mtu as usize,
                device_mtu: nic.mtu as usize,
                addresses: Vec::new(),
                hints: if nic.is_veth { Hints::Inferred } else { Hints::Complete },
                tx_checksum: false,
            }));
        }
        (uplinks, ports)
    }

    /// What is amiss, one sentence for each interface.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.all.iter().filter_map(|slot| {
            let problem = slot.problem.as_ref()?;
            Some(format!("uplink {}: {problem}; the kernel carries its packets", slot.name))
        })
    }

    /// Every queue that workers own, by port: its interface's name, the port, the queue.
    pub(super) fn queues(&self) -> impl Iterator<Item = (&str, PortId, u16, &Raised)> {
        self.all.iter().flat_map(|slot| {
            slot.raised.iter().flat_map(move |raised| {
                let port = move |queue| PortId(slot.first + queue);
                (0..raised.nic.queues).map(move |queue| (&*slot.name, port(queue), queue, raised))
            })
        })
    }

    /// Every configured interface, for `viaduct status`.
    pub(super) fn rows(&self) -> impl Iterator<Item = UplinkRow> {
        self.all.iter().map(|slot| {
            let row = UplinkRow {
                device: slot.name.clone(),
                note: slot.problem.clone(),
                ..UplinkRow::default()
            };
            let Some(Raised { nic, mode, zero_copy, note }) = &slot.raised else { return row };
            UplinkRow {
                queues: nic.queues.into(),
                zero_copy: (*zero_copy).into(),
                xdp: Some(mode_name(*mode).to_owned()),
                mtu: nic.mtu,
                note: note.clone(),
                ..row
            }
        })
    }

    /// Tells other nodes of an address that an uplink has now.
    pub(super) fn announce(&self, address: &Address) {
        let IpAddr::V6(v6) = address.address else { return };
        let raised = self.all.iter().filter_map(|slot| slot.raised.as_ref());
        let mut uplinks = raised.filter(|raised| raised.nic.ifindex == address.index);
        if let Some(Raised { nic, .. }) = uplinks.next()
            && address.preferred
            && let Err(error) = announce(nic.ifindex, v6, nic.mac)
        {
            tracing::debug!(%error, %v6, "announce an address");
        }
    }

    /// The port of its first queue, if it is raised.
    pub(super) fn first_port(&self, id: UplinkId) -> Option<PortId> {
        let slot = self.all.get(usize::from(id.0))?;
        slot.raised.as_ref().map(|_| PortId(slot.first))
    }

    /// Whether an interface of this name is configured.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.all.iter().any(|slot| slot.name == name)
    }
}

/// Route MTU in bytes for networks that name none: as configured, else what every uplink takes.
pub(super) fn route_mtu(
    config: &Config,
    ports: &Ports,
    netlink: &mut Netlink,
) -> anyhow::Result<u32> {
    if let Some(mtu) = config.node.mtu {
        return Ok(mtu);
    }
    let mut smallest = None;
    for name in &config.uplink.interfaces {
        let mtu = netlink.link(name)?.map(|link| link.mtu);
        smallest = smallest.into_iter().chain(mtu).min();
    }
    let mtu = smallest.unwrap_or(MTU_DEFAULT);
    Ok(mtu.clamp(MTU_MIN, ports.route_mtu_max()))
}

/// Frames of each worker that the queues of the uplinks may hold: no pod can count on them.
pub(super) fn frames_per_worker(config: &Config) -> u32 {
    let workers = config.workers.cores.len() as u32;
    let room = u32::from(UPLINK_PORTS_MAX) / config.uplink.interfaces.len().max(1) as u32;
    let queues = config.uplink.interfaces.iter().map(|name| {
        // One that is not there may come later, with as many queues as it likes.
        let queues = Ethtool::open().and_then(|mut ethtool| ethtool.rx_queues(name)).unwrap_or(1);
        queues.min(room).div_ceil(workers)
    });
    queues.sum::<u32>() * UPLINK_RINGS.fill
}

impl Engine {
    /// Tells the program of the uplinks which packets are the workers': to pods, from direct
    /// addresses.
    pub(super) fn steer(&mut self) -> anyhow::Result<()> {
        let outside = super::outside(&self.config, self.state.pods());
        let host = |address| prefix(&IpNet::from(address));
        let pods =
            self.config.node.pod_cidrs.iter().map(prefix).chain(outside.into_iter().map(host));
        let list = |nets: &[IpNet]| nets.iter().map(prefix).collect::<Vec<_>>();
        self.programs.set_steering(&Steering {
            pods: &pods.collect::<Vec<_>>(),
            direct: &list(&self.config.uplink.direct),
            kernel: &list(&self.config.uplink.kernel),
        })?;
        Ok(())
    }

    /// Brings the uplinks to what the interfaces are now: raises what is there, lowers what went,
    /// starts over where something changed. Cheap when nothing did; call it about once a second,
    /// and when an interface changes. Returns whether the tables changed.
    pub(super) fn watch_uplinks(&mut self) -> bool {
        let mut changed = false;
        for number in 0..self.uplinks.all.len() {
            let slot = &self.uplinks.all[number];
            let (name, room) = (slot.name.clone(), slot.room);
            let found = self.look_at(&name, room, slot.raised.is_none());
            let slot = &mut self.uplinks.all[number];
            match (found, slot.raised.clone()) {
                (Ok(nic), Some(raised)) if nic == raised.nic => changed |= self.keep(number),
                (Ok(nic), Some(raised)) if nic.same_queues(&raised.nic) => {
                    changed |= self.refit(number, nic);
                }
                (found, Some(_)) => {
                    slot.problem = found.err();
                    changed |= self.lower(number);
                }
                (Ok(nic), None) => changed |= self.raise_or_say_why(number, nic),
                (Err(problem), None) => slot.say(problem),
            }
        }
        changed
    }

    /// What the interface is like, or why it cannot be an uplink now. One that goes down stays
    /// an uplink, but sockets cannot be bound to it then.
    fn look_at(&mut self, name: &str, room: u16, must_be_up: bool) -> Result<Nic, String> {
        let link = self.netlink.link(name).map_err(|error| error.to_string())?;
        let link = link.ok_or_else(|| "there is no such interface; see ip link".to_owned())?;
        if must_be_up && !link.up {
            return Err(format!("it is down; run ip link set dev {name} up"));
        }
        fitness::check(&link).map_err(|unfit| unfit.to_string())?;
        let queues = Ethtool::open().and_then(|mut ethtool| ethtool.rx_queues(name));
        let queues = queues.map_err(|error| error.to_string())?;
        Nic::of(&link, queues.min(room.into()))
    }

    /// Nothing about the interface has changed; its program may have been taken away.
    fn keep(&mut self, number: usize) -> bool {
        let slot = &self.uplinks.all[number];
        let Some(Raised { nic, mode, .. }) = &slot.raised else { return false };
        let (ifindex, mode) = (nic.ifindex, *mode);
        if self.programs.uplink_program_of(ifindex) == UplinkProgram::Ours(mode) {
            return false;
        }
        let name = slot.name.clone();
        match self.programs.attach_uplink(ifindex, &name, mode) {
            Ok(attached) if attached.mode == mode => {
                tracing::warn!(name, "somebody detached the program of an uplink: attached again");
                false
            }
            // In another mode the sockets cannot do what they were bound for.
            Ok(_) => self.lower(number),
            Err(error) => {
                self.uplinks.all[number].say(error.to_string());
                self.lower(number)
            }
        }
    }

    fn raise_or_say_why(&mut self, number: usize, nic: Nic) -> bool {
        let ports = self.uplinks.all[number].ports(nic.queues);
        if ports.clone().any(|id| self.uplinks.leaving.contains(&id)) {
            return false; // once they have gone
        }
        match self.raise(number, nic) {
            Ok(()) => true,
            Err(error) => {
                self.uplinks.all[number].say(format!("{error:#}"));
                self.lower(number);
                false
            }
        }
    }

    /// The program, then sockets, then tables, then the entry: until that every packet passes.
    fn raise(&mut self, number: usize, nic: Nic) -> anyhow::Result<()> {
        let slot = &self.uplinks.all[number];
        let (id, name, first) = (slot.id, slot.name.clone(), slot.first);
        if let Some(wanted) = self.config.uplink.channels {
            let log = ChannelLog::at(self.config.daemon.state_dir.join(CHANNELS_FILE));
            log.set(&name, wanted)?;
        }
        // A veth in native mode takes the far end's segmentation offload away (decision 0001).
        let wanted = if nic.is_veth { AttachMode::Generic } else { AttachMode::Native };
        let attached = self.programs.attach_uplink(nic.ifindex, &name, wanted)?;
        // Some drivers add queues for XDP (virtio_net).
        let queues = Ethtool::open()?.rx_queues(&name)?.min(slot.room.into()) as u16;
        let nic = Nic { queues, ..nic };
        let workers = self.state.limits().workers;
        let mut sockets: Vec<(PortId, OwnedFd)> = Vec::with_capacity(queues.into());
        let (mut zero_copy, mut refused) = (0, attached.refused);
        for queue in 0..queues {
            let port = PortId(first + queue);
            let place = Queue { device: &name, ifindex: nic.ifindex, queue: queue.into() };
            let (socket, mode) = self
                .workers
                .add_uplink_port(queue % workers, port, place, nic.mtu, attached.mode)
                .with_context(|| format!("queue {queue}"))?;
            zero_copy += u16::from(mode.zero_copy);
            refused = refused.or(mode.refused);
            sockets.push((port, socket));
        }
        let entry = UplinkEntry { first_slot: first, queues, workers, mac: nic.mac };
        let ifindex = nic.ifindex;
        tracing::info!(name, queues, zero_copy, mode = ?attached.mode, "uplink is up");
        let raised = Raised { nic, mode: attached.mode, zero_copy, note: refused };
        self.uplinks.all[number].raised = Some(raised);
        self.uplinks.all[number].problem = None;
        self.mirror.set_uplink(id, Some(ifindex));
        self.mirror.resync(&mut self.netlink)?;
        self.publish()?;
        self.announce_uplink(ifindex);
        for (port, socket) in &sockets {
            self.programs.set_socket(u32::from(port.0), socket.as_fd())?;
        }
        Ok(self.programs.set_uplink(ifindex, &entry)?)
    }

    /// The same queues under another MAC or MTU.
    fn refit(&mut self, number: usize, nic: Nic) -> bool {
        let slot = &mut self.uplinks.all[number];
        let Some(raised) = &mut slot.raised else { return false };
        tracing::info!(slot.name, mtu = nic.mtu, "uplink changed");
        raised.nic = nic.clone();
        let workers = self.state.limits().workers;
        let entry =
            UplinkEntry { first_slot: slot.first, queues: nic.queues, workers, mac: nic.mac };
        if let Err(error) = self.programs.set_uplink(nic.ifindex, &entry) {
            tracing::error!(%error, slot.name, "tell the program of an uplink");
        }
        self.announce_uplink(nic.ifindex);
        true
    }

    /// Tells other nodes of all addresses of an uplink: its Ethernet address may be another.
    fn announce_uplink(&mut self, ifindex: u32) {
        for address in self.netlink.addresses().unwrap_or_default() {
            if address.index == ifindex {
                self.uplinks.announce(&address);
            }
        }
    }

    /// Leaves the interface to the kernel, and its ports to the reaper.
    fn lower(&mut self, number: usize) -> bool {
        let slot = &mut self.uplinks.all[number];
        let raised = slot.raised.take();
        let (id, name, ports) = (slot.id, slot.name.clone(), slot.ports(slot.room));
        if raised.is_some() {
            tracing::warn!(name, "uplink is down: the kernel carries its packets");
        }
        self.mirror.set_uplink(id, None);
        if let Some(raised) = &raised {
            let removed = self.programs.remove_uplink(raised.nic.ifindex);
            if let Err(error) = removed {
                tracing::error!(%error, name, "take an uplink from its program");
            }
        }
        for port in ports.filter(|port| self.workers.has_port(*port)).collect::<Vec<_>>() {
            if self.uplinks.leaving.insert(port)
                && let Err(error) = self.workers.remove_port(port)
            {
                tracing::error!(%error, name, "take an uplink from its worker");
            }
        }
        raised.is_some()
    }
}

fn mode_name(mode: AttachMode) -> &'static str {
    match mode {
        AttachMode::Native => "native",
        AttachMode::Generic => "generic",
    }
}

impl Slot {
    /// Ports of the first `queues` queues.
    fn ports(&self, queues: u16) -> impl Iterator<Item = PortId> + Clone + use<> {
        (self.first..self.first + queues.min(self.room)).map(PortId)
    }

    /// Notes a problem, and logs it the first time.
    fn say(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!("uplink {}: {problem}", self.name);
            self.problem = Some(problem);
        }
    }
}

impl Nic {
    fn of(link: &Link, queues: u32) -> Result<Nic, String> {
        let mac = link.mac.ok_or_else(|| "it has no Ethernet address".to_owned())?;
        let queues = u16::try_from(queues).unwrap_or(u16::MAX).max(1);
        let is_veth = link.kind.as_deref() == Some("veth");
        Ok(Nic { ifindex: link.index, mac, mtu: link.mtu, queues, is_veth })
    }

    /// Whether the sockets of the one can serve the other.
    fn same_queues(&self, other: &Nic) -> bool {
        (self.ifindex, self.queues, self.is_veth) == (other.ifindex, other.queues, other.is_veth)
    }
}
