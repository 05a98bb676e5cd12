//! Keeps the kernel's flows in step with its map of host ports, on a thread of its own: a list of
//! a full table takes the kernel as long as an ADD may take in all, several times.
//!
//! So flows are deleted some milliseconds after the map has changed. Until then a UDP client whose
//! flow is older than the map is answered by nobody, as it was before; and a flow that begins
//! meanwhile is right, because it is compared with the map of the moment in which it is found.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dataplane::host_ports::{HostAddress, HostPort, HostPorts};

use super::{KernelFlow, KernelFlowError, KernelFlows, Selection};

/// Up to so many ports are asked for one by one: the kernel goes through its table for each, which
/// takes a sixth of what it takes to hand out a table of which all flows are read.
const SELECTIONS_MAX: usize = 6;

/// Between a change and the list: who asked for the change gets the answer before the kernel is
/// busy, and what changes meanwhile is purged with it.
const COLLECT: Duration = Duration::from_millis(10);

/// The thread rests so many times as long as it has worked, so that many changes in a row cost
/// a fifth of a core at most.
const REST_FACTOR: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(1);

/// Where host ports lead now.
#[derive(Clone, Debug, Default)]
pub struct Serving {
    /// All of them.
    pub host_ports: Arc<HostPorts>,
    /// The node's addresses. Those of IPv4's loopback net count as such too.
    pub node: Arc<[IpAddr]>,
}

impl Serving {
    /// Whether a flow that was asked at one of the changed host ports leads elsewhere than it
    /// should. Flows in transit to somebody else's port of that number are none of ours.
    fn is_stale(&self, changed: &HashSet<HostPort>, flow: &KernelFlow) -> bool {
        let (transport, asked) = (flow.original.transport, flow.original.dst);
        let any = if asked.address.is_ipv4() { HostAddress::AnyV4 } else { HostAddress::AnyV6 };
        let is_changed = [HostAddress::One(asked.address), any]
            .into_iter()
            .any(|address| changed.contains(&HostPort { transport, address, port: asked.port }));
        if !is_changed || !self.is_node(asked.address) {
            return false;
        }
        let target = self.host_ports.lookup(transport, asked, |address| self.is_node(address));
        target.is_none_or(|target| target.serving != flow.reply.src)
    }

    fn is_node(&self, address: IpAddr) -> bool {
        // ::1 is not: no rule leads from it to a pod, as the kernel cannot route such packets.
        let is_loopback = address.is_ipv4() && address.is_loopback();
        is_loopback || self.node.contains(&address)
    }
}

/// The thread that purges, as control sees it.
pub struct Purge {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    wanted: Mutex<Wanted>,
    has_changed: Condvar,
    purged: AtomicU64,
}

#[derive(Default)]
struct Wanted {
    /// Host ports that changed since the thread last began a list.
    changed: HashSet<HostPort>,
    serving: Serving,
    is_over: bool,
}

impl Purge {
    /// Starts the thread, for the network namespace of the caller.
    ///
    /// # Errors
    /// [`KernelFlowError::Socket`]; also if there can be no more threads.
    pub fn start() -> Result<Purge, KernelFlowError> {
        let mut flows = KernelFlows::open()?;
        let shared = Arc::new(Shared::default());
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("purge".into());
        let thread = thread.spawn(move || theirs.run(&mut flows));
        Ok(Purge { shared, thread: Some(thread.map_err(KernelFlowError::Socket)?) })
    }

    /// Has the kernel forget the flows that were asked at `changed` host ports and lead elsewhere
    /// than `now`: to be called after each change, when the kernel's map has it. Returns at once.
    pub fn after(&self, changed: impl IntoIterator<Item = HostPort>, now: Serving) {
        let mut wanted = self.shared.lock();
        wanted.changed.extend(changed);
        wanted.serving = now;
        drop(wanted);
        self.shared.has_changed.notify_one();
    }

    /// Flows deleted so far.
    #[must_use]
    pub fn purged(&self) -> u64 {
        self.shared.purged.load(Ordering::Relaxed)
    }
}

impl Drop for Purge {
    /// Waits for a list that goes on: some hundred milliseconds at most.
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.has_changed.notify_one();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that purges the kernel's flows has panicked");
        }
    }
}

impl Shared {
    /// No invariant spans several fields, so a panic elsewhere leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of the thread.
    fn run(&self, flows: &mut KernelFlows) {
        while let Some(changed) = self.next() {
            let began = Instant::now();
            match self.purge(flows, &changed) {
                Ok(purged) => {
                    self.purged.fetch_add(purged.into(), Ordering::Relaxed);
                }
                // The table is being rebuilt: it will not be so for long.
                Err(KernelFlowError::Interrupted) => self.lock().changed.extend(changed),
                Err(error) => tracing::error!(
                    "flows of before a change of host ports stay with their old pod until they \
                     are idle: {error}"
                ),
            }
            self.rest((began.elapsed() * REST_FACTOR).min(REST_MAX));
        }
    }

    /// Waits for host ports that have changed; `None` at the end.
    fn next(&self) -> Option<HashSet<HostPort>> {
        let is_idle = |wanted: &mut Wanted| wanted.changed.is_empty() && !wanted.is_over;
        drop(self.has_changed.wait_while(self.lock(), is_idle));
        self.rest(COLLECT);
        let mut wanted = self.lock();
        (!wanted.is_over).then(|| std::mem::take(&mut wanted.changed))
    }

    fn rest(&self, time: Duration) {
        let goes_on = |wanted: &mut Wanted| !wanted.is_over;
        drop(self.has_changed.wait_timeout_while(self.lock(), time, goes_on));
    }

    fn purge(
        &self,
        flows: &mut KernelFlows,
        changed: &HashSet<HostPort>,
    ) -> Result<u32, KernelFlowError> {
        let mut purged = 0;
        for selection in selections(changed) {
            let is_stale = |flow: &KernelFlow| self.lock().serving.is_stale(changed, flow);
            purged += flows.purge_among(selection, is_stale)?;
        }
        Ok(purged)
    }
}

/// What to list, to see all flows that were asked at these host ports.
fn selections(changed: &HashSet<HostPort>) -> HashSet<Selection> {
    let of = |host_port: &HostPort| {
        let is_v4 = match host_port.address {
            HostAddress::One(address) => address.is_ipv4(),
            HostAddress::AnyV4 => true,
            HostAddress::AnyV6 => false,
        };
        let HostPort { transport, port, .. } = *host_port;
        Selection::Asked { transport, is_v4, port }
    };
    let selections: HashSet<_> = changed.iter().map(of).collect();
    if selections.len() > SELECTIONS_MAX { HashSet::from([Selection::All]) } else { selections }
}

#[cfg(test)]
mod tests {
    use dataplane::conntrack::{Endpoint, FlowKey, Transport};
    use dataplane::host_ports::{Masquerade, Target};
    use dataplane::port::PortId;

    use super::*;

    fn end(text: &str) -> Endpoint {
        let socket: std::net::SocketAddr = text.parse().expect("an address and a port");
        Endpoint { address: socket.ip(), port: socket.port() }
    }

    /// A UDP flow that was asked at one end and is answered by another.
    fn flow(asked: &str, answers: &str) -> KernelFlow {
        let client =
            end(if asked.starts_with('[') { "[2001:db8::9]:5000" } else { "9.9.9.9:5000" });
        let key = |src, dst| FlowKey { transport: Transport::Udp, src, dst };
        let (original, reply) = (key(client, end(asked)), key(end(answers), client));
        KernelFlow { id: 1, zone: 0, status: 0, original, reply, is_closing: false }
    }

    fn host_port(address: HostAddress, port: u16) -> HostPort {
        HostPort { transport: Transport::Udp, address, port }
    }

    fn serving(leads: &[(HostPort, &str)]) -> Serving {
        let mut host_ports = HostPorts::default();
        for (host_port, at) in leads {
            let (pod, masquerade) = (PortId(1), Masquerade::Itself);
            host_ports.insert(*host_port, Target { pod, serving: end(at), masquerade });
        }
        let node = ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|text| text.parse().unwrap());
        Serving { host_ports: Arc::new(host_ports), node: Arc::new(node) }
    }

    #[test]
    fn what_leads_elsewhere_than_the_map_is_stale() {
        let any = host_port(HostAddress::AnyV4, 80);
        let changed = HashSet::from([any]);
        let now = serving(&[(any, "10.0.0.2:8080")]);
        let is_stale = |asked, answers| now.is_stale(&changed, &flow(asked, answers));
        assert!(is_stale("192.0.2.1:80", "10.0.0.1:8080"), "the pod before");
        assert!(is_stale("192.0.2.2:80", "192.0.2.2:80"), "the node, when there was no pod");
        assert!(is_stale("127.0.0.1:80", "127.0.0.1:80"));
        assert!(is_stale("192.0.2.1:80", "10.0.0.2:80"), "another port of the pod");
        assert!(!is_stale("192.0.2.1:80", "10.0.0.2:8080"), "as it should be");
        assert!(!is_stale("192.0.2.1:81", "10.0.0.1:8080"), "another port");
        assert!(!is_stale("198.51.100.1:80", "198.51.100.1:80"), "in transit");
        assert!(!is_stale("[2001:db8::1]:80", "[2001:db8::1]:80"), "another family");
        let mut tcp = flow("192.0.2.1:80", "10.0.0.1:8080");
        tcp.original.transport = Transport::Tcp;
        assert!(!now.is_stale(&changed, &tcp), "another protocol");
    }

    #[test]
    fn after_its_end_a_host_port_leads_nowhere() {
        let any = host_port(HostAddress::AnyV6, 80);
        let (changed, now) = (HashSet::from([any]), serving(&[]));
        assert!(now.is_stale(&changed, &flow("[2001:db8::1]:80", "[fd00::1]:8080")));
        assert!(!now.is_stale(&changed, &flow("[2001:db8::5]:80", "[fd00::1]:8080")));
        assert!(!now.is_stale(&changed, &flow("[::1]:80", "[::1]:80")));
    }

    #[test]
    fn a_change_for_any_address_leaves_the_flows_of_a_more_specific_one() {
        let one = host_port(HostAddress::One("192.0.2.1".parse().unwrap()), 80);
        let any = host_port(HostAddress::AnyV4, 80);
        let now = serving(&[(one, "10.0.0.1:8080"), (any, "10.0.0.2:8080")]);
        let changed = HashSet::from([any]);
        assert!(!now.is_stale(&changed, &flow("192.0.2.1:80", "10.0.0.1:8080")));
        assert!(now.is_stale(&changed, &flow("192.0.2.2:80", "10.0.0.1:8080")));
        // And when the specific one comes, those of the general one at its address are stale.
        let changed = HashSet::from([one]);
        assert!(now.is_stale(&changed, &flow("192.0.2.1:80", "10.0.0.2:8080")));
        assert!(!now.is_stale(&changed, &flow("192.0.2.2:80", "10.0.0.2:8080")));
    }

    #[test]
    fn few_ports_are_selected_by_the_kernel_and_many_are_not() {
        let one = HostAddress::One("192.0.2.1".parse().unwrap());
        let of = |count: u16, address| (0..count).map(move |port| host_port(address, port));
        let few: HashSet<_> = of(6, one).chain(of(6, HostAddress::AnyV4)).collect();
        let expected: HashSet<_> = (0..6)
            .map(|port| Selection::Asked { transport: Transport::Udp, is_v4: true, port })
            .collect();
        assert_eq!(selections(&few), expected, "both addresses in one list");
        let many: HashSet<_> = of(7, HostAddress::AnyV6).collect();
        assert_eq!(selections(&many), HashSet::from([Selection::All]));
    }
}
