//! Raising and lowering uplinks, and keeping them as the interfaces are. No error here stops the
//! daemon: an uplink that is not raised is left to the kernel, says why, and is tried again.

use std::os::fd::{AsFd, OwnedFd};

use dataplane::port::PortId;
use dataplane::xsk::program::{AttachMode, Steering, UplinkEntry};
use dataplane::xsk::socket::Queue;
use ipnet::IpNet;

use super::super::compile::prefix;
use super::super::{Engine, outside};
use super::{Nic, Raised, queue_share};
use crate::uplink::channels::{CHANNELS_FILE, ChannelLog};
use crate::uplink::fitness;
use crate::workers::{UplinkPort, WorkersError};

/// An uplink whose queues have their sockets, before the workers know of it.
struct Bound {
    /// Its place in the configuration.
    number: usize,
    /// For the socket map.
    sockets: Vec<(PortId, OwnedFd)>,
}

/// Why an interface is not what an uplink needs.
enum Obstacle {
    /// It could not be asked: that says nothing about it.
    Unknown(String),
    /// It cannot be an uplink now.
    Unfit(String),
}

impl Obstacle {
    fn unknown(error: impl std::fmt::Display) -> Obstacle {
        Obstacle::Unknown(error.to_string())
    }

    fn sentence(self) -> String {
        match self {
            Obstacle::Unknown(sentence) | Obstacle::Unfit(sentence) => sentence,
        }
    }
}

impl Engine {
    /// Tells the program of the uplinks which packets are the workers': to pods, from direct
    /// addresses.
    pub(in super::super) fn steer(&mut self) -> anyhow::Result<()> {
        let outside = outside(&self.config, self.state.pods());
        let host = |address| prefix(&IpNet::from(address));
        let pods = self.config.node.pod_cidrs.iter().map(prefix);
        let pods: Vec<_> = pods.chain(outside.into_iter().map(host)).collect();
        let list = |nets: &[IpNet]| nets.iter().map(prefix).collect::<Vec<_>>();
        self.programs.set_steering(&Steering {
            pods: &pods,
            direct: &list(&self.config.uplink.direct),
            kernel: &list(&self.config.uplink.kernel),
        })?;
        Ok(())
    }

    /// Brings the uplinks to what the interfaces are now: raises what is there, lowers what went,
    /// starts over where something changed. Cheap when nothing did; call it about once a second,
    /// and when an interface changes.
    pub(in super::super) fn watch_uplinks(&mut self) {
        let mut changed = false;
        let mut bound = Vec::new();
        for number in 0..self.uplinks.all.len() {
            let slot = &self.uplinks.all[number];
            let (name, room) = (slot.name.clone(), slot.room);
            let found = self.look_at(&name, room, slot.raised.is_none());
            let slot = &mut self.uplinks.all[number];
            match (found, slot.raised.clone()) {
                (Ok(nic), Some(raised)) if nic == raised.nic => self.keep(number),
                (Ok(nic), Some(raised)) if nic.same_queues(&raised.nic) => {
                    self.refit(number, nic);
                    changed = true;
                }
                (Err(Obstacle::Unknown(error)), Some(_)) => {
                    tracing::warn!(error, name, "look after an uplink");
                }
                (found, Some(_)) => {
                    slot.problem = found.err().map(Obstacle::sentence);
                    self.lower(number);
                }
                (Ok(nic), None) => bound.extend(self.bind_or_say_why(number, nic)),
                (Err(obstacle), None) => slot.say(obstacle.sentence()),
            }
        }
        // The workers know of an uplink before it sends them packets: all that were bound at once.
        if changed || !bound.is_empty() {
            self.publish_routes();
        }
        for uplink in bound {
            self.open(uplink);
        }
    }

    /// What the interface is like, or why it cannot be an uplink now. One that goes down stays
    /// an uplink, but sockets cannot be bound to it then.
    fn look_at(&mut self, name: &str, room: u16, must_be_up: bool) -> Result<Nic, Obstacle> {
        let link = self.netlink.link(name).map_err(Obstacle::unknown)?;
        let missing = || Obstacle::Unfit("there is no such interface; see ip link".to_owned());
        let link = link.ok_or_else(missing)?;
        if must_be_up && !link.up {
            return Err(Obstacle::Unfit(format!("it is down; run ip link set dev {name} up")));
        }
        fitness::check(&link).map_err(|unfit| Obstacle::Unfit(unfit.to_string()))?;
        let queues = self.uplinks.rx_queues(name).map_err(Obstacle::unknown)?;
        Nic::of(&link, queues.min(room.into())).map_err(Obstacle::Unfit)
    }

    /// Nothing about the interface has changed; its program may have been taken away.
    fn keep(&mut self, number: usize) {
        let slot = &self.uplinks.all[number];
        let Some(Raised { nic, mode, .. }) = &slot.raised else { return };
        let (ifindex, mode) = (nic.ifindex, *mode);
        if self.programs.uplink_mode_of(ifindex) == Some(mode) {
            return;
        }
        let name = slot.name.clone();
        match self.programs.attach_uplink(ifindex, &name, mode) {
            Ok(attached) if attached.mode == mode => {
                tracing::warn!(name, "somebody detached the program of an uplink: attached again");
            }
            // In another mode the sockets cannot do what they were bound for.
            Ok(_) => self.lower(number),
            Err(error) => {
                self.uplinks.all[number].say(error.to_string());
                self.lower(number);
            }
        }
    }

    fn bind_or_say_why(&mut self, number: usize, nic: Nic) -> Option<Bound> {
        let slot = &self.uplinks.all[number];
        if slot.ports(slot.room).any(|id| self.uplinks.leaving.contains(&id)) {
            return None; // once they have gone
        }
        if let Some(problem) = self.hangs() {
            self.uplinks.all[number].say(problem);
            return None; // its frames are needed
        }
        match self.bind(number, nic) {
            Ok(bound) => Some(bound),
            Err(error) => {
                self.uplinks.all[number].say(error.to_string());
                self.lower(number);
                None
            }
        }
    }

    /// The program, then a socket for each queue. Without an entry every packet passes.
    fn bind(&mut self, number: usize, nic: Nic) -> anyhow::Result<Bound> {
        let slot = &self.uplinks.all[number];
        let (id, name, first, room) = (slot.id, slot.name.clone(), slot.first, slot.room);
        if let Some(wanted) = self.config.uplink.channels {
            let log = ChannelLog::at(self.config.daemon.state_dir.join(CHANNELS_FILE));
            log.set(&name, wanted)?;
        }
        // A veth in native mode takes the far end's segmentation offload away (decision 0001).
        let wanted = if nic.is_veth { AttachMode::Generic } else { AttachMode::Native };
        let attached = self.programs.attach_uplink(nic.ifindex, &name, wanted)?;
        // Some drivers add queues for XDP (virtio_net).
        let queues = self.uplinks.rx_queues(&name)?.min(room.into()) as u16;
        let nic = Nic { queues, ..nic };
        let (sockets, zero_copy, refused) = self.bind_queues(first, &name, &nic, attached.mode)?;
        let (mode, note) = (attached.mode, attached.refused.or(refused));
        self.set_uplink(id, Some(nic.ifindex));
        self.uplinks.all[number].raised = Some(Raised { nic, mode, zero_copy, note });
        Ok(Bound { number, sockets })
    }

    /// The workers know of the uplink: from now on it gives them packets.
    fn open(&mut self, Bound { number, sockets }: Bound) {
        let slot = &mut self.uplinks.all[number];
        let Some(Raised { nic, mode, zero_copy, .. }) = slot.raised.clone() else { return };
        slot.problem = None;
        let (name, first) = (slot.name.clone(), slot.first);
        let entry = self.entry(first, &nic);
        let entered = sockets
            .iter()
            .try_for_each(|(port, socket)| {
                self.programs.set_socket(u32::from(port.0), socket.as_fd())
            })
            .and_then(|()| self.programs.set_uplink(nic.ifindex, &entry));
        if let Err(error) = entered {
            self.uplinks.all[number].say(error.to_string());
            return self.lower(number);
        }
        self.announce_uplink(nic.ifindex);
        let (queues, zero_copy) = (nic.queues, zero_copy.iter().filter(|is| **is).count());
        tracing::info!(name, queues, zero_copy, ?mode, "uplink is up");
    }

    /// A socket on each queue: those for the socket map, whether the NIC exchanges their frames in
    /// place, and why not if one does not.
    #[allow(clippy::type_complexity)] // Three lists of one loop; a struct would only rename them.
    fn bind_queues(
        &mut self,
        first: u16,
        name: &str,
        nic: &Nic,
        attached: AttachMode,
    ) -> Result<(Vec<(PortId, OwnedFd)>, Vec<bool>, Option<String>), WorkersError> {
        let workers = self.state.limits().workers;
        let share = queue_share(&self.config, nic.queues.into());
        let (mut sockets, mut zero_copy, mut refused) = (Vec::new(), Vec::new(), None);
        for queue in 0..nic.queues {
            let id = PortId(first + queue);
            let place = Queue { device: name, ifindex: nic.ifindex, queue: queue.into() };
            let worker = queue % workers;
            let port = UplinkPort { worker, id, queue: place, mtu: nic.mtu, attached, share };
            let (socket, mode) = self.workers.add_uplink_port(port).inspect_err(|_| {
                self.uplinks.leaving.insert(id);
            })?;
            zero_copy.push(mode.zero_copy);
            refused = refused.or(mode.refused);
            sockets.push((id, socket));
        }
        Ok((sockets, zero_copy, refused))
    }

    fn entry(&self, first_slot: u16, nic: &Nic) -> UplinkEntry {
        let workers = self.state.limits().workers;
        UplinkEntry { first_slot, queues: nic.queues, workers, mac: nic.mac }
    }

    /// The same queues under another MAC or MTU.
    fn refit(&mut self, number: usize, nic: Nic) {
        let slot = &mut self.uplinks.all[number];
        let Some(raised) = &mut slot.raised else { return };
        tracing::info!(slot.name, mtu = nic.mtu, "uplink changed");
        raised.nic = nic.clone();
        let (name, first) = (slot.name.clone(), slot.first);
        if let Err(error) = self.programs.set_uplink(nic.ifindex, &self.entry(first, &nic)) {
            tracing::error!(%error, name, "tell the program of an uplink");
        }
        self.announce_uplink(nic.ifindex);
    }

    /// Tells other nodes of all addresses of an uplink: its Ethernet address may be another.
    fn announce_uplink(&mut self, ifindex: u32) {
        for address in self.netlink.addresses().unwrap_or_default() {
            if address.index == ifindex {
                self.uplinks.announce(&address);
            }
        }
    }

    /// Leaves the interface to the kernel: first the program knows, then the workers, then their
    /// ports go.
    fn lower(&mut self, number: usize) {
        let slot = &mut self.uplinks.all[number];
        let raised = slot.raised.take();
        let (id, name, ports) = (slot.id, slot.name.clone(), slot.ports(slot.room));
        self.set_uplink(id, None);
        if let Some(raised) = &raised {
            tracing::warn!(name, "uplink is down: the kernel carries its packets");
            if let Err(error) = self.programs.remove_uplink(raised.nic.ifindex) {
                tracing::error!(%error, name, "take an uplink from its program");
            }
            self.publish_routes();
        }
        for port in ports.filter(|port| self.workers.has_port(*port)).collect::<Vec<_>>() {
            if !self.uplinks.leaving.insert(port) {
                continue;
            }
            if let Err(error) = self.workers.remove_port(port) {
                tracing::error!(%error, name, "take an uplink from its worker");
                self.uplinks.leaving.remove(&port);
            }
        }
    }
}
