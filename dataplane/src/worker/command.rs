//! Orders of the control thread to a worker, and the worker's answers: ports come and go.

use std::sync::Arc;

use rtrb::{Consumer, Producer, RingBuffer};

use super::Worker;
use super::port::Port;
use crate::conntrack::Carried;
use crate::counters::PortCounters;
use crate::host_ports::HostPort;
use crate::port::{PacketIo, PortId};
use crate::share::Share;
use crate::xsk::socket::lend;

/// Orders under way at most: a hundred ADDs at once, each with two orders, fit.
const QUEUE_LEN: usize = 1024;

/// An order.
#[derive(Debug)]
pub enum Command<P> {
    /// Serve this port from now on.
    AddPort {
        /// Its number: free, or reclaimed before.
        id: PortId,
        /// Its rings.
        io: Box<P>,
        /// Frames it may hold to receive into.
        share: Share,
        /// Where to count.
        counters: Arc<PortCounters>,
        /// Of a pod: the lower 32 bits of its generation, never 0. Flows of the same pod, whose
        /// port was rebuilt, go on; those of another one that had the number before are retired.
        /// 0: the port is no pod's, and has no flows.
        generation: u32,
    },
    /// Set frames aside for a socket that is to be bound with its fill ring full: drivers of NICs
    /// misbehave when it is empty. [`Event::Lent`] brings their addresses.
    Lend {
        /// The port that the socket will be, free or reclaimed before.
        id: PortId,
        /// Frames at most.
        max: u32,
    },
    /// Serve it no more, and give its rings back by [`Event::Removed`]. Its flows stay: the port
    /// may be built again for the same pod.
    RemovePort(PortId),
    /// Go on with flows that the node's kernel has carried while no worker was there, unless there
    /// are some with their keys; some in every pass from now on.
    TakeOver {
        /// Of pods of this worker.
        flows: Box<[Carried]>,
    },
    /// The pod of this port is gone: forget its flows, at once.
    RetireFlows {
        /// Its number.
        owner: PortId,
    },
    /// Forget every flow, of any pod, that was asked at one of these host ports: they lead
    /// elsewhere in the newest tables. The worker looks at all of its flows for it, at some in
    /// every pass from now on: a million are some 40 ms of work, in which flows that begin may be
    /// forgotten as well.
    ForgetFlows {
        /// The host ports. One that is of any address is of every address of its family.
        host_ports: Arc<[HostPort]>,
    },
    /// The port's socket is closed: take back the frames that its rings held.
    ReclaimPort(PortId),
    /// Serve what is there and stop.
    Stop,
}

/// An answer.
#[derive(Debug)]
pub enum Event<P> {
    /// The rings of a removed port, to be closed by control.
    Removed(PortId, Box<P>),
    /// Frames for the socket of a port that is to be.
    Lent(PortId, Vec<u64>),
    /// The frames of a closed port are free; its number can be used again.
    Reclaimed(PortId),
}

/// The worker's end of the orders.
pub type CommandQueue<P> = Consumer<Command<P>>;
/// The worker's end of the answers.
pub type EventQueue<P> = Producer<Event<P>>;

/// The ends of both queues: (control's, worker's).
#[must_use]
#[allow(clippy::type_complexity)] // Four ends, in pairs; a struct would only rename them.
pub fn queues<P>() -> ((Producer<Command<P>>, Consumer<Event<P>>), (CommandQueue<P>, EventQueue<P>))
{
    let (command_in, command_out) = RingBuffer::new(QUEUE_LEN);
    let (event_in, event_out) = RingBuffer::new(QUEUE_LEN);
    ((command_in, event_out), (command_out, event_in))
}

impl<P: PacketIo> Worker<P> {
    /// Carries out what control ordered since the last pass.
    pub(super) fn obey(&mut self) {
        while self.events.slots() > 0 {
            let Ok(command) = self.commands.pop() else { return };
            self.let_all_go();
            match command {
                Command::AddPort { id, io, share, counters, generation } => {
                    if generation != 0 {
                        self.flows.table.admit_owner(id, generation);
                    }
                    self.add_port(Port::new(id, *io, share, counters));
                }
                Command::Lend { id, max } => {
                    let frames = lend(&mut self.pool, id.0, max);
                    self.tell(Event::Lent(id, frames));
                }
                Command::RemovePort(id) => self.remove_port(id),
                Command::TakeOver { flows } => self.flows.orders.take_over(flows),
                Command::RetireFlows { owner } => self.flows.retire_owner(owner),
                Command::ForgetFlows { host_ports } => self.flows.orders.forget(host_ports),
                Command::ReclaimPort(id) => {
                    self.pool.reclaim_port(id.0);
                    self.tell(Event::Reclaimed(id));
                }
                Command::Stop => self.stopping = true,
            }
        }
    }

    fn add_port(&mut self, mut port: Port<P>) {
        let slot = usize::from(port.id.0);
        assert!(self.slots[slot].is_none(), "control adds a port once");
        port.io.refill(&mut self.pool, port.share.frames());
        let index = self.ports.len();
        self.slots[slot] = Some(index as u16);
        self.ports.push(port);
        self.follow_limits_of(index);
    }

    fn remove_port(&mut self, id: PortId) {
        let slot = usize::from(id.0);
        let Some(index) = self.slots[slot].map(usize::from) else { return };
        self.stop_waiting(index);
        self.ports[index].mirror_kernel_drops(self.pool.count());
        self.slots[slot] = None;
        self.to_kick.retain(|waiting| *waiting != id);
        let mut port = self.ports.swap_remove(index);
        port.io.abandon(&mut self.pool);
        if let Some(moved) = self.ports.get(index) {
            self.slots[usize::from(moved.id.0)] = Some(index as u16);
        }
        self.tell(Event::Removed(id, Box::new(port.io)));
    }

    fn tell(&mut self, event: Event<P>) {
        let told = self.events.push(event);
        assert!(told.is_ok(), "a slot was free before the order was taken");
    }
}
