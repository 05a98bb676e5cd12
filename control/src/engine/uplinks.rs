//! Uplinks: interfaces to other nodes whose queues belong to the workers. The interface, its
//! addresses and its routes stay the kernel's; only packets between pods take this way.
//!
//! An interface may vanish, come back, change its MAC, MTU or queues, or lose its program to
//! somebody else. `Engine::watch_uplinks` compares what is with what we have raised and starts
//! over where they differ; meanwhile the kernel carries the packets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use dataplane::fib::UplinkId;
use dataplane::offload::Hints;
use dataplane::port::{Mac, PortId, WorkerId};
use dataplane::shaper::Limits;
use dataplane::share::Share;
use dataplane::tables::{PortKind, PortSpec, Uplink};
use dataplane::xsk::port::UPLINK_SHARE;
use dataplane::xsk::program::AttachMode;
use dataplane::xsk::uplink::ONE_FRAME_MTU;

use super::Ports;
use crate::config::{Config, MTU_DEFAULT, MTU_MIN};
use crate::ethtool::{Ethtool, EthtoolError};
use crate::netlink::{Address, Link, Netlink};
use crate::report::UplinkRow;
use crate::uplink::announce::announce;
use crate::workers::UPLINK_PORTS_MAX;

mod raise;

/// The part of a worker's frames that all uplinks together may hold to receive into: the rest is
/// for pods. With the default of 32,768 frames that is room for 128 pods per worker.
const FRAMES_PART: u32 = 4;

/// Fewest frames of a queue: a burst of a few dozen packets, also on a NIC with more queues than it
/// should have here.
const QUEUE_FRAMES_MIN: u32 = 32;

/// The configured uplinks.
#[derive(Debug)]
pub(super) struct Uplinks {
    all: Vec<Slot>,
    /// Ports on their way out: their numbers are not free yet.
    leaving: BTreeSet<PortId>,
    /// Opened when it is first needed.
    ethtool: Option<Ethtool>,
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
    /// Of each queue: whether the NIC reads and writes its frames in place.
    pub(super) zero_copy: Vec<bool>,
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
        Uplinks { all: slots.collect(), leaving: BTreeSet::new(), ethtool: None }
    }

    /// Whether every port that was ordered to go has gone.
    pub(super) fn is_settled(&self) -> bool {
        self.leaving.is_empty()
    }

    /// A port is gone; its number is free now.
    pub(super) fn has_left(&mut self, id: PortId) {
        self.leaving.remove(&id);
    }

    /// Receive queues of an interface.
    fn rx_queues(&mut self, name: &str) -> Result<u32, EthtoolError> {
        let ethtool = match &mut self.ethtool {
            Some(ethtool) => ethtool,
            none => none.insert(Ethtool::open()?),
        };
        ethtool.rx_queues(name)
    }

    /// The uplinks for the tables of `workers` workers, and their ports. Nobody sends by a queue
    /// whose worker `is_out`.
    pub(super) fn compile(
        &self,
        workers: u16,
        is_out: impl Fn(u16) -> bool,
    ) -> (Vec<Uplink>, Vec<PortSpec>) {
        let raised = self.all.iter().filter_map(|slot| Some((slot, slot.raised.as_ref()?)));
        let (mut uplinks, mut ports) = (Vec::new(), Vec::new());
        for (slot, Raised { nic, mode, .. }) in raised {
            let port_of = |queue: u16| PortId(slot.first + queue);
            let served = (0..nic.queues).filter(|queue| !is_out(queue % workers));
            let served: Vec<u16> = served.collect();
            if !served.is_empty() {
                let by = |worker: u16| {
                    let own = served.iter().find(|queue| **queue % workers == worker);
                    port_of(*own.unwrap_or(&served[usize::from(worker) % served.len()]))
                };
                uplinks.push(Uplink { id: slot.id, ports: (0..workers).map(by).collect() });
            }
            ports.extend((0..nic.queues).map(|queue| PortSpec {
                id: port_of(queue),
                worker: WorkerId(queue % workers),
                kind: PortKind::Uplink,
                mac: [0; 6],
                gateway_mac: nic.mac,
                mtu: nic.mtu as usize,
                device_mtu: nic.mtu as usize,
                addresses: Vec::new(),
                // Behind a driver the kernel may have what its host or its hardware left open.
                hints: match (nic.is_veth, mode) {
                    (false, AttachMode::Native) => Hints::Complete,
                    _ => Hints::Inferred,
                },
                tx_checksum: false,
                limits: Limits::default(),
            }));
        }
        (uplinks, ports)
    }

    /// What is amiss, one sentence for each interface.
    pub(super) fn problems(&self) -> impl Iterator<Item = String> {
        self.all.iter().filter_map(|slot| {
            let problem = slot.problem.as_ref()?;
            Some(format!("uplink {} is left to the kernel: {problem}", slot.name))
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
                zero_copy: zero_copy.iter().filter(|in_place| **in_place).count() as u32,
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

/// Frames that each of `queues` queues of an uplink may hold.
fn queue_share(config: &Config, queues: u32) -> Share {
    let workers = config.workers.cores.len() as u32;
    let uplinks = config.uplink.interfaces.len().max(1) as u32;
    let frames = config.workers.frames / FRAMES_PART / uplinks / queues.max(1).div_ceil(workers);
    let most = frames.clamp(QUEUE_FRAMES_MIN, UPLINK_SHARE.most());
    Share::between(most.min(UPLINK_SHARE.frames()), most)
}

/// Frames of each worker that no pod can count on, because queues of uplinks may hold them.
pub(super) fn frames_per_worker(config: &Config) -> u32 {
    let workers = config.workers.cores.len() as u32;
    let names = &config.uplink.interfaces;
    let room = u32::from(UPLINK_PORTS_MAX) / names.len().max(1) as u32;
    let frames = names.iter().map(|name| {
        let now = || Ethtool::open().and_then(|mut ethtool| ethtool.rx_queues(name));
        // One that is not there may come later, with as many queues as it likes.
        let queues = config.uplink.channels.or_else(|| now().ok()).unwrap_or(room).min(room);
        queues.div_ceil(workers) * queue_share(config, queues).most()
    });
    frames.sum::<u32>().min(config.workers.frames / FRAMES_PART)
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
        let bound = |nic: &Nic| (nic.ifindex, nic.queues, nic.is_veth, nic.mtu > ONE_FRAME_MTU);
        bound(self) == bound(other)
    }
}
