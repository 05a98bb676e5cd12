//! Host ports on the packet path: which packets belong to a flow, and what is written into them.
//!
//! | A packet | from-pod half, the sender's worker | to-pod half, the pod's worker |
//! | --- | --- | --- |
//! | for a host port | finds the pod that it leads to | finds or opens the flow, rewrites |
//! | for a mapped port of a pod itself | – | finds or opens the flow |
//! | from such a port | finds the flow, rewrites, or sends it to the node | – |
//!
//! A pod's flows are in the table of its own worker, so the from-pod half rewrites replies only,
//! and the to-pod half all but replies. Errors about a packet quote it as it came: it is rewritten
//! when everything else is decided.
//!
//! Flows to the pod's own address are followed as well. Else those that two addresses lead to would
//! be one for the pod; and what the node's kernel has translated, because it carries fragments and
//! interfaces without XDP, must be answered through it.

use std::net::IpAddr;

use super::flow_orders::FlowOrders;
use super::fragment::Cutter;
use super::{Direction as Side, Worker};
use crate::conntrack::{
    Direction, Flow, FlowKey, FlowTable, Found, NewFlow, OpenError, Replies, Signal, Source,
};
use crate::crossing::{Nat, Routed};
use crate::drop::DropReason;
use crate::first_fragments::{Datagram, FirstFragments};
use crate::frame::Packet;
use crate::nat::{self, Quote};
use crate::parse::{self, Addresses, ETHERNET_BYTES, Fragment, Headers, Parsed};
use crate::port::{PacketIo, Partial, PortId};
use crate::tables::{PortKind, PortSpec, Tables};

/// Flows forgotten in one pass at most: some 20 µs of work.
const EXPIRED_PER_PASS: usize = 64;

/// A busy worker looks for what has expired in one of so many passes.
const PASSES_PER_EXPIRY: u64 = 16;

/// A packet of which the flow is to be found, on the worker of its pod.
#[derive(Clone, Copy)]
pub(super) struct Seen<'a> {
    /// The newest tables.
    pub tables: &'a Tables,
    /// The pod that sends it, or that it is for.
    pub pod: &'a PortSpec,
    /// Its first frame.
    pub head: &'a [u8],
    /// Its headers.
    pub headers: &'a Headers,
    /// When.
    pub now_ns: u64,
}

/// What becomes of the addresses and ports of a packet.
#[derive(Clone, Copy)]
pub(super) struct Rewrite {
    /// The key of packets of its flow and direction, as they arrive.
    received: FlowKey,
    /// And as they leave.
    sent: FlowKey,
    /// The packet is an ICMP error about one of the other direction.
    quote: Option<Quote>,
}

impl Rewrite {
    fn of_original(flow: &Flow, quote: Option<Quote>) -> Rewrite {
        Rewrite { received: flow.original, sent: flow.translated, quote }
    }
}

/// A packet that a pod sends in reply, and that does not go on as it is.
#[derive(Clone, Copy)]
pub(super) struct Reply {
    /// What is written into it.
    pub rewrite: Rewrite,
    /// Which way it leaves.
    pub replies: Replies,
}

impl Reply {
    /// `None` where a reply goes on as it is.
    fn of(flow: &Flow, quote: Option<Quote>) -> Option<Reply> {
        let (received, sent) = (flow.translated.inverse(), flow.original.inverse());
        let as_it_is = received == sent && flow.replies == Replies::ByRoute;
        let rewrite = Rewrite { received, sent, quote };
        (!as_it_is).then_some(Reply { rewrite, replies: flow.replies })
    }

    /// Where it will be addressed to.
    pub fn destination(&self, headers: &Headers) -> IpAddr {
        let Rewrite { received, sent, .. } = &self.rewrite;
        let is_of_flow = headers.destination() == received.dst.address;
        if is_of_flow { sent.dst.address } else { headers.destination() }
    }
}

/// The flows of a worker's pods.
pub(super) struct Flows {
    pub table: FlowTable,
    /// What was decided about datagrams of pods with host ports; `None`: they go on as they are.
    fragments: FirstFragments<Option<Reply>>,
    /// What control has ordered, and takes several passes.
    pub orders: FlowOrders,
}

impl Flows {
    /// With what is known of flows already. `seed` must be random and secret.
    pub fn new(table: FlowTable, seed: u64) -> Flows {
        Flows { table, fragments: FirstFragments::new(seed), orders: FlowOrders::default() }
    }

    /// Goes on with what control has ordered.
    pub fn obey(&mut self, now_ns: u64) {
        self.orders.proceed(&mut self.table, now_ns);
    }

    /// Forgets the flows of a pod that is gone, at once.
    pub fn retire_owner(&mut self, owner: PortId) {
        self.orders.retire_owner(owner);
        self.table.retire_owner(owner);
    }

    /// What to do with a packet that a pod with host ports sends; `None`: nothing.
    pub fn find_reply(&mut self, seen: &Seen<'_>) -> Result<Option<Reply>, DropReason> {
        let Seen { head, headers, now_ns, .. } = *seen;
        if headers.fragment == Fragment::Later {
            let verdict = self.fragments.recall(&datagram(headers), now_ns);
            return verdict.ok_or(DropReason::FragmentWithoutFirst);
        }
        let reply = match FlowKey::of_packet(head, headers) {
            Some(key) => self.reply(seen, &key)?,
            None => self.error_in_reply(seen),
        };
        if headers.fragment == Fragment::First {
            self.fragments.remember(datagram(headers), reply, now_ns);
        }
        Ok(reply)
    }

    fn reply(&mut self, seen: &Seen<'_>, key: &FlowKey) -> Result<Option<Reply>, DropReason> {
        let Seen { tables, pod, head, headers, now_ns } = *seen;
        let signal = signal(key, head, headers);
        let Some((found, flow)) = self.find(key, now_ns) else {
            // A pod may open connections from any port. But what goes on with one that is not known
            // here may need another source address, which nobody knows: it must not leave as it is.
            let goes_on = !signal.is_some_and(|signal| signal.asks());
            let is_mapped = tables.is_mapped(pod.id, key.transport, key.src.port);
            return if is_mapped && goes_on { Err(DropReason::NatNoFlow) } else { Ok(None) };
        };
        if found.direction() == Direction::Original {
            return Ok(None); // it is for a pod of this worker, whose half of the path translates it
        }
        if let Some(signal) = signal {
            self.table.observe(found, &signal, now_ns);
        }
        Ok(Reply::of(&flow, None))
    }

    /// An ICMP error that a pod sends about a packet that it got. One about a flow that is not
    /// known goes on as it is: its receiver takes it for what it is, or has sent no such packet.
    fn error_in_reply(&self, seen: &Seen<'_>) -> Option<Reply> {
        let quote = quote_of(seen.head, seen.headers)?;
        let (found, flow) = self.find(&quote.key.inverse(), seen.now_ns)?;
        let is_reply = found.direction() == Direction::Reply;
        Reply::of(&flow, Some(quote)).filter(|_| is_reply)
    }

    /// What to do with a packet for a host port that leads to the pod.
    fn lead(&mut self, seen: &Seen<'_>) -> Result<Rewrite, DropReason> {
        let Seen { tables, pod, head, headers, now_ns } = *seen;
        if let Some(quote) = quote_of(head, headers) {
            let found = self.find(&quote.key.inverse(), now_ns).filter(is_original_of(pod.id));
            let (_, flow) = found.ok_or(DropReason::IcmpErrorUnknownFlow)?;
            return Ok(Rewrite::of_original(&flow, Some(quote)));
        }
        let key = FlowKey::of_packet(head, headers).ok_or(DropReason::NatNoFlow)?;
        let signal = signal(&key, head, headers);
        if let Some(found) = self.find(&key, now_ns) {
            // Else the host port leads to another pod since, and the old flow is about to go.
            let own = Some(found).filter(is_original_of(pod.id));
            let (found, flow) = own.ok_or(DropReason::NatNoFlow)?;
            if let Some(signal) = signal {
                self.table.observe(found, &signal, now_ns);
            }
            return Ok(Rewrite::of_original(&flow, None));
        }
        let target = tables.host_port(key.transport, key.dst).filter(|t| t.pod == pod.id);
        let (target, signal) = target.zip(signal).ok_or(DropReason::NatNoFlow)?;
        let source = target.source(pod, key.src.address);
        let (owner, serving, replies) = (pod.id, target.serving, Replies::ByRoute);
        let new = NewFlow { owner, original: key, serving, source, replies };
        if signal.opens() {
            self.take_over(&new, now_ns);
        }
        let found = self.table.open(&new, &signal, now_ns).map_err(reason)?;
        Ok(Rewrite::of_original(&self.table.flow(found), None))
    }

    /// A client whose long datagrams came first was tracked as the node's kernel translates it. It
    /// is the same client, and must look the same to the pod: the kernel's flow gives way.
    fn take_over(&mut self, new: &NewFlow, now_ns: u64) {
        if new.source != Source::Client {
            return;
        }
        let translated = FlowKey { dst: new.serving, ..new.original };
        let Some((found, flow)) = self.find(&translated, now_ns) else { return };
        if flow.original == flow.translated && flow.replies == Replies::ByNode {
            self.table.close(found);
        }
    }

    /// What to do with a packet for an address of the pod itself; `None`: nothing.
    fn track(&mut self, seen: &Seen<'_>, nat: Nat) -> Result<Option<Rewrite>, DropReason> {
        let Seen { tables, pod: &PortSpec { id: pod, .. }, head, headers, now_ns } = *seen;
        let Some(key) = FlowKey::of_packet(head, headers) else {
            // A later fragment has the pod's address already. An error about a reply whose port was
            // changed speaks of the changed one.
            let Some(quote) = quote_of(head, headers) else { return Ok(None) };
            let found = self.find(&quote.key.inverse(), now_ns).filter(is_original_of(pod));
            return Ok(found.map(|(_, flow)| Rewrite::of_original(&flow, Some(quote))));
        };
        if !tables.is_mapped(pod, key.transport, key.dst.port) {
            return Ok(None);
        }
        let Some(signal) = signal(&key, head, headers) else { return Ok(None) };
        if let Some(found) = self.find(&key, now_ns) {
            // Else it is what another pod of this worker replies.
            let own = Some(found).filter(is_original_of(pod));
            return Ok(own.map(|(found, flow)| {
                self.table.observe(found, &signal, now_ns);
                Rewrite::of_original(&flow, None)
            }));
        }
        let answered = self.find(&key.inverse(), now_ns);
        if answered.is_some_and(|(found, _)| found.direction() == Direction::Original) {
            return Ok(None); // the pod is the client, of one of this worker, by a mapped port
        }
        let replies = match nat {
            Nat::FromNode if self.joins(&key, &signal, now_ns)? => return Ok(None),
            Nat::FromNode => Replies::ByNode,
            Nat::None | Nat::HostPort | Nat::Direct => Replies::ByRoute,
        };
        let (original, serving, source) = (key, key.dst, Source::Client);
        let new = NewFlow { owner: pod, original, serving, source, replies };
        // An answer: the pod has opened this from a mapped port, and its worker learns of it here.
        match self.table.open(&new, &signal.in_the_middle(), now_ns) {
            Ok(found) => Ok(Some(Rewrite::of_original(&self.table.flow(found), None))),
            Err(OpenError::NoOpening) => Ok(None),
            Err(error) => Err(reason(error)),
        }
    }

    /// Whether what the kernel has translated looks to the pod like a flow that goes through here:
    /// it is of that flow, as the fragments of a long datagram are.
    fn joins(&mut self, key: &FlowKey, signal: &Signal, now_ns: u64) -> Result<bool, DropReason> {
        let Some((found, flow)) = self.find(&key.inverse(), now_ns) else { return Ok(false) };
        let is_masqueraded = flow.translated.src.address != flow.original.src.address;
        if is_masqueraded && matches!(signal, Signal::Tcp(_) | Signal::Sctp(_)) && signal.asks() {
            // A process of the node has got the very port that a pod was masqueraded with.
            return Err(DropReason::NatNoPort);
        }
        self.table.observe(found.opposite(), signal, now_ns);
        Ok(true)
    }

    fn find(&self, key: &FlowKey, now_ns: u64) -> Option<(Found, Flow)> {
        let found = self.table.lookup(key, now_ns)?;
        Some((found, self.table.flow(found)))
    }
}

/// Whether a packet was found to be an original one of a flow that this pod serves.
fn is_original_of(pod: PortId) -> impl Fn(&(Found, Flow)) -> bool {
    move |(found, flow)| found.direction() == Direction::Original && flow.owner == pod
}

impl<P: PacketIo> Worker<P> {
    /// Sees to the flow of a packet, and sends the packet on: the to-pod half of pods with host
    /// ports.
    pub(super) fn deliver_tracked(
        &mut self,
        tables: &Tables,
        egress: usize,
        mut packet: Packet,
        mut routed: Routed,
    ) {
        let nat = std::mem::replace(&mut routed.nat, Nat::None);
        let Some(pod) = tables.port(routed.egress) else {
            return self.discard(egress, Side::ToPod, packet, DropReason::PortDown);
        };
        match self.follow(tables, pod, nat, &mut packet, routed.offload.partial) {
            Ok(headers) => {
                let is_long = packet.len() - ETHERNET_BYTES > pod.device_mtu;
                if nat == Nat::HostPort && is_long && !headers.dont_fragment {
                    let cutter = Cutter::to_pod(egress, self.id, pod.device_mtu);
                    return self.fragment(tables, packet, routed, cutter);
                }
                self.deliver(tables, packet, routed);
            }
            Err(reason) => self.discard(egress, Side::ToPod, packet, reason),
        }
    }

    fn follow(
        &mut self,
        tables: &Tables,
        pod: &PortSpec,
        nat: Nat,
        packet: &mut Packet,
        partial: Option<Partial>,
    ) -> Result<Headers, DropReason> {
        let head = self.pool.head(packet);
        let Parsed::Ip(mut headers) = parse::headers(head, packet.len())? else {
            return Err(DropReason::NatUntranslatable);
        };
        let seen = Seen { tables, pod, head, headers: &headers, now_ns: self.now_ns };
        let rewrite = match nat {
            Nat::HostPort => Some(self.flows.lead(&seen)?),
            Nat::None | Nat::Direct | Nat::FromNode => self.flows.track(&seen, nat)?,
        };
        if let Some(rewrite) = rewrite {
            self.translate(packet, &mut headers, &rewrite, partial)?;
        }
        Ok(headers)
    }

    /// Writes other addresses and ports into a packet and its headers.
    pub(super) fn translate(
        &mut self,
        packet: &mut Packet,
        headers: &mut Headers,
        rewrite: &Rewrite,
        partial: Option<Partial>,
    ) -> Result<(), DropReason> {
        let Rewrite { received, sent, quote } = rewrite;
        if received == sent {
            return Ok(());
        }
        let head = self.pool.head_mut(packet);
        let translated = match quote {
            Some(quote) => nat::translate_error(head, headers, quote, (received, sent), partial),
            None => nat::translate(head, headers, sent, partial),
        };
        translated.map_err(|_| DropReason::NatUntranslatable)?;
        if quote.is_some() {
            self.counters.icmp_errors_translated.add(1);
        }
        if let Some(addresses) = Addresses::of_head(head) {
            headers.addresses = addresses;
        }
        Ok(())
    }

    /// Forgets what was idle for too long, when there is time.
    pub(super) fn forget_flows(&mut self, taken: usize) {
        if taken == 0 || self.counters.passes.get().is_multiple_of(PASSES_PER_EXPIRY) {
            self.flows.table.expire(self.now_ns, EXPIRED_PER_PASS);
        }
    }
}

/// The pod that a packet leads to, which is not for a pod's address: by the host port that it is
/// for, or that the packet came from which an ICMP error speaks of. Fragments are the kernel's,
/// which puts them together.
pub(super) fn asked_pod<'a>(
    tables: &'a Tables,
    ingress: &PortSpec,
    head: &[u8],
    headers: &Headers,
) -> Result<Option<&'a PortSpec>, DropReason> {
    if !tables.is_node(headers.destination()) || headers.fragment != Fragment::Whole {
        return Ok(None);
    }
    let asked = match FlowKey::of_packet(head, headers) {
        Some(key) => Some((key.transport, key.dst)),
        None => quote_of(head, headers).map(|quote| (quote.key.transport, quote.key.src)),
    };
    let Some((transport, asked)) = asked else { return Ok(None) };
    if asked.address != headers.destination() {
        return Ok(None);
    }
    let Some(target) = tables.host_port(transport, asked) else { return Ok(None) };
    // RFC 1812 §5.3.8: no packet of the node's own comes off a wire.
    if ingress.kind == PortKind::Uplink && tables.is_node(headers.source()) {
        return Err(DropReason::MartianSource);
    }
    tables.port(target.pod).map(Some).ok_or(DropReason::PortDown)
}

fn quote_of(head: &[u8], headers: &Headers) -> Option<Quote> {
    nat::quote(head, headers).ok().flatten()
}

/// What a packet says about the state of its flow; `None` if its L4 header makes no sense.
fn signal(key: &FlowKey, head: &[u8], headers: &Headers) -> Option<Signal> {
    let l4 = head.get(headers.l4_offset..headers.len.min(head.len()))?;
    Signal::read(key.transport, l4, headers.len - headers.l4_offset)
}

fn datagram(headers: &Headers) -> Datagram {
    let protocol = match headers.addresses {
        Addresses::V4 { .. } => headers.protocol,
        Addresses::V6 { .. } => 0,
    };
    let (src, dst) = (headers.source(), headers.destination());
    Datagram { src, dst, protocol, id: headers.fragment_id }
}

fn reason(error: OpenError) -> DropReason {
    match error {
        // It was looked up before, so it cannot be there.
        OpenError::NoOpening | OpenError::Exists => DropReason::NatNoFlow,
        OpenError::NoOwner => DropReason::PortDown,
        OpenError::NoPort => DropReason::NatNoPort,
        OpenError::Quota => DropReason::FlowQuota,
        OpenError::Full => DropReason::FlowTableFull,
    }
}
