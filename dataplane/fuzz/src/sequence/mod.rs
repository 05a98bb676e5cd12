//! Conversations through host ports on a node in memory: clients of every kind ask, pods answer,
//! both send errors, time passes, host ports and pods change. What is asserted is what the two ends
//! see, and nothing of how a worker remembers it: a client hears whom it has asked, a pod hears one
//! client per address and port, and nobody else hears anything.

mod cast;
mod judge;
mod talk;

use std::cell::RefCell;
use std::sync::Arc;

use dataplane::conntrack::{Endpoint, FlowKey, Transport};
use dataplane::host_ports::{HostAddress, HostPort, HostPorts, Masquerade, Target};

use self::cast::{ALL_SAYS, CLIENTS, address, family, parsed};
use self::judge::trace;
use self::talk::{Conversation, Memory};
use crate::bytes::Bytes;
use crate::harness::{
    B, BARE, C, End, HIDDEN, NODE, Node, PLAIN, Setup, TO_B, TO_C, TO_PLAIN, host_ports,
};

/// Steps of one input.
const STEPS_MAX: usize = 100;

/// The host port that leads now to one pod, now to another, and the pods' port.
const MOVED: u16 = 8090;
const MOVED_TO: u16 = 90;

/// A port of the node that leads nowhere, and one of every pod that nobody has mapped.
const UNMAPPED: u16 = 8099;
const UNMAPPED_TO: u16 = 99;

/// Ports that clients ask from. The last one is a port that pods serve.
const CLIENT_PORTS: [u16; 3] = [2000, 2001, 80];

/// The only port that a flow gets as its source where the client's is taken.
const OTHER_PORT: u16 = 61_000;

const TRANSPORTS: [Transport; 3] = [Transport::Udp, Transport::Tcp, Transport::Sctp];

/// A node keeps the counters of all ports that it ever had, and sums them up in every pass.
const REPLACED_MAX: usize = 8;

const SECOND: u64 = 1_000_000_000;

/// Plays an input: the first byte says how many workers there are, the rest is steps.
pub fn nat_sequence(bytes: &[u8]) {
    thread_local! {
        static WORLDS: RefCell<[World; 2]> = RefCell::new([1, 2].map(World::new));
    }
    WORLDS.with_borrow_mut(|worlds| {
        let mut bytes = Bytes(bytes);
        let world = &mut worlds[usize::from(bytes.byte() & 1)];
        for _ in 0..STEPS_MAX {
            if bytes.is_empty() {
                break;
            }
            world.step(&mut bytes);
        }
        world.reset();
        if world.replaced > REPLACED_MAX {
            *world = World::new(world.node.workers());
        }
    });
}

struct World {
    node: Node,
    /// Pods replaced so far.
    replaced: usize,
    now_s: u64,
    /// Where [`MOVED`] leads.
    moved: &'static End,
    conversations: Vec<Conversation>,
    /// What pods get as answers at mapped ports of their own is followed at their side as well, and
    /// may take a port.
    shadows: Vec<FlowKey>,
}

/// A host port, and who serves it.
struct Mapping {
    pod: &'static End,
    port: u16,
    masquerade: Masquerade,
}

impl World {
    fn new(workers: usize) -> World {
        let setup = Setup {
            workers,
            host_ports: true,
            // More than an input can open, and so few that one pass forgets what is ordered.
            flows: 512,
            flows_per_pod: 512,
            ..Setup::default()
        };
        let mut world = World {
            node: Node::new(setup),
            replaced: 0,
            now_s: 1000,
            moved: &B,
            conversations: Vec::new(),
            shadows: Vec::new(),
        };
        world.node.set_time(world.now_s * SECOND);
        world.lead_moved_to(&B);
        world
    }

    /// Forgets what an input has left, so that the next one finds a new node.
    fn reset(&mut self) {
        let ports =
            [TO_B, HIDDEN, BARE, TO_PLAIN, TO_C].map(|mapped| [mapped.host_port, mapped.port]);
        let others = [MOVED, MOVED_TO, UNMAPPED, UNMAPPED_TO].into_iter().chain(CLIENT_PORTS);
        let ports: Vec<u16> = ports.concat().into_iter().chain(others).collect();
        let any = [HostAddress::AnyV4, HostAddress::AnyV6];
        let all = TRANSPORTS.into_iter().flat_map(|transport| {
            let of_port = move |port| any.map(|address| HostPort { transport, address, port });
            ports.iter().copied().flat_map(of_port)
        });
        self.node.forget_flows(&all.collect::<Vec<_>>());
        self.node.run();
        self.conversations.clear();
        self.shadows.clear();
        self.lead_moved_to(&B);
        // Longer than datagrams are remembered by their first fragments.
        self.pass_time(2);
        let left: u64 = (0..self.node.workers()).map(|n| self.node.flows(n).flows.get()).sum();
        assert_eq!(left, 0, "flows that no host port and no pod's port was asked for");
        self.node.assert_at_rest();
    }

    fn lead_moved_to(&mut self, pod: &'static End) {
        let mut map: HostPorts = host_ports();
        for transport in TRANSPORTS {
            for (address, is_v6) in [(HostAddress::AnyV4, false), (HostAddress::AnyV6, true)] {
                let serving = Endpoint { address: self::address(pod, is_v6), port: MOVED_TO };
                let target = Target { pod: pod.id, serving, masquerade: Masquerade::Itself };
                map.insert(HostPort { transport, address, port: MOVED }, target);
            }
        }
        self.node.publish(|tables| tables.host_ports = Arc::new(map));
        self.forget_port(MOVED);
        self.moved = pod;
    }

    /// What an ADD or a DEL orders for a host port of any address.
    fn forget_port(&mut self, port: u16) {
        trace(|| format!("flows of {port} are forgotten"));
        let any = [HostAddress::AnyV4, HostAddress::AnyV6];
        let of_port = |transport| any.map(|address| HostPort { transport, address, port });
        self.node.forget_flows(&TRANSPORTS.map(of_port).concat());
        self.node.run();
        self.conversations.retain(|talk| talk.asks.dst.port != port);
    }

    fn pass_time(&mut self, seconds: u64) {
        trace(|| format!("{seconds} seconds pass"));
        self.now_s += seconds;
        self.node.set_time(self.now_s * SECOND);
        self.node.run();
        let now_s = self.now_s;
        self.conversations.retain(|talk| talk.memory(now_s) != Memory::Lost);
        let is_unsure = |talk: &&Conversation| talk.memory(now_s) == Memory::Unsure;
        let unsure = self.conversations.iter().filter(is_unsure).map(Conversation::asked);
        let unsure: Vec<HostPort> = unsure.collect();
        self.node.forget_flows(&unsure);
        self.node.run();
        self.conversations.retain(|talk| !unsure.contains(&talk.asked()));
        if seconds > 86_400 {
            self.shadows.clear();
        }
    }

    fn mapping(&self, port: u16) -> Option<Mapping> {
        let fixed = [TO_B, HIDDEN, BARE, TO_PLAIN, TO_C];
        let fixed = fixed.into_iter().find(|mapped| mapped.host_port == port);
        match fixed {
            Some(mapped) => {
                Some(Mapping { pod: mapped.pod, port: mapped.port, masquerade: mapped.masquerade })
            }
            None => (port == MOVED).then_some(Mapping {
                pod: self.moved,
                port: MOVED_TO,
                masquerade: Masquerade::Itself,
            }),
        }
    }

    fn is_mapped(&self, pod: &End, port: u16) -> bool {
        [8080, 8081, 8082, 8083, 8084, MOVED].into_iter().any(|host_port| {
            let mapping = self.mapping(host_port);
            mapping.is_some_and(|mapping| mapping.pod.id == pod.id && mapping.port == port)
        })
    }

    fn step(&mut self, bytes: &mut Bytes<'_>) {
        match bytes.below(16) {
            0..5 => self.somebody_asks(bytes),
            5..7 => {
                if let Some(index) = self.some(bytes) {
                    let says = bytes.choice(&ALL_SAYS);
                    let Conversation { client, asks, .. } = self.conversations[index];
                    self.ask(client, &asks, says);
                }
            }
            7..10 => {
                if let Some(index) = self.some(bytes) {
                    let (says, form) = (bytes.choice(&ALL_SAYS), bytes.byte());
                    self.answer(index, says, form % 4 == 3);
                }
            }
            10 => {
                if let Some(index) = self.some(bytes) {
                    self.pod_complains(index);
                }
            }
            11 => {
                if let Some(index) = self.some(bytes) {
                    let by_router = bytes.byte() & 1 == 1;
                    self.client_complains(index, by_router);
                }
            }
            12 => {
                let seconds = bytes.choice(&[1, 10, 59, 60, 61, 299, 301, 90_000]);
                self.pass_time(seconds);
            }
            13 => {
                let pod = bytes.choice(&[&B, &C]);
                self.lead_moved_to(pod);
            }
            14 => {
                let pod = bytes.choice(&[&B, &C, &PLAIN]);
                self.replace(pod);
            }
            _ => {
                let mapped = [TO_B, HIDDEN, BARE, TO_PLAIN, TO_C];
                let port = mapped[bytes.below(mapped.len())].host_port;
                self.forget_port(port);
            }
        }
    }

    fn some(&self, bytes: &mut Bytes<'_>) -> Option<usize> {
        usize::from(bytes.byte()).checked_rem(self.conversations.len())
    }

    /// A pod goes, and another one gets its port and addresses.
    fn replace(&mut self, pod: &'static End) {
        trace(|| format!("{} is replaced", pod.name));
        for talk in self.conversations.iter_mut().filter(|talk| talk.client.end.id == pod.id) {
            talk.is_followed = false;
        }
        self.node.unlist(pod.id);
        self.node.remove_port(pod.id);
        self.node.retire_flows(pod.id);
        self.node.run();
        self.node.reclaim_port(pod.id);
        self.node.run();
        self.node.add_port(pod.id);
        self.node.list(pod);
        self.node.run();
        self.conversations.retain(|talk| talk.pod.id != pod.id);
        self.replaced += 1;
    }

    fn somebody_asks(&mut self, bytes: &mut Bytes<'_>) {
        let client = &CLIENTS[bytes.below(CLIENTS.len())];
        let (what, target) = (bytes.byte(), bytes.byte());
        let transport = TRANSPORTS[usize::from(what & 3) % 3];
        let is_v6 = what & 4 != 0;
        let port = CLIENT_PORTS[usize::from(what >> 3) % 3];
        let says = bytes.choice(&ALL_SAYS);
        let src = Endpoint { address: parsed(client.addresses[family(is_v6)]), port };
        let directly = target & 8 != 0 || client.end.id == NODE.id;
        let asked = [8080, 8081, 8082, 8083, 8084, MOVED, UNMAPPED, TO_B.host_port];
        let asked = asked[usize::from(target & 7)];
        let dst = match (directly, self.mapping(asked)) {
            (false, _) => Endpoint { address: address(&NODE, is_v6), port: asked },
            (true, Some(Mapping { pod, .. })) if pod.id == client.end.id => return, // within it
            // Nobody follows that any more when the port leads to another pod.
            (true, _) if asked == MOVED => return,
            (true, Some(Mapping { pod, port, .. })) => {
                Endpoint { address: address(pod, is_v6), port }
            }
            (true, None) => Endpoint { address: address(&PLAIN, is_v6), port: UNMAPPED_TO },
        };
        if directly && client.end.id == PLAIN.id && dst.port == UNMAPPED_TO {
            return;
        }
        self.ask(client, &FlowKey { transport, src, dst }, says);
    }
}
