//! `viaduct explain`: one made-up packet is shown to the XDP program and to workers in memory
//! ([`dataplane::explain`]), by the tables and flows of now. Nothing that lives is changed by it.
//!
//! It takes the control thread about a millisecond: the program is loaded once more, and the packet
//! is forwarded once or twice. If there are flows the workers' memory is looked through for them,
//! one or two milliseconds for 262,144 places of which few are taken.

mod story;

use std::io;
use std::net::{IpAddr, SocketAddr};

use cni_bridge::protocol::{CallError, ExplainRequest, ProbeContent, Reply};
use cni_bridge::spec::error::code;
use dataplane::conntrack::{Endpoint, Flow, FlowKey};
use dataplane::explain::{Content, FLOWS_MAX, Outcome, Probe, Question, Stage, explain, key_of};
use dataplane::port::{Mac, PortId};
use dataplane::worker::monotonic_ns;
use dataplane::xsk::program::Trial;

use super::Engine;
use super::compile::{flow_generation, port_of};
use super::flows::SOURCE_PORTS;
use crate::report::Explanation;
use crate::state::PodRecord;
use crate::workers::NODE_SLOT;
use story::Story;

/// What `--from` calls the node itself.
const NODE: &str = "node";

/// Whoever sends a packet to an uplink: nobody's address, and no marker.
const SOMEBODY: Mac = [0x0a, 0, 0, 0, 0, 1];

/// Hops of a packet that is sent in place of one that has none left.
const LENIENT_HOPS: u8 = 64;

/// Types of SCTP chunks (RFC 9260 §3.2).
const DATA: u8 = 0;
const INIT: u8 = 1;

/// Why a packet cannot be explained.
#[derive(Debug, thiserror::Error)]
enum ExplainError {
    #[error(
        "nothing here is called {0}: name a container (see viaduct pods), node, or an interface in \
         [uplink]"
    )]
    Unknown(String),
    #[error("{count} interfaces of pods are called {from}: name one as CONTAINER/IFNAME")]
    Ambiguous { from: String, count: usize },
    #[error("uplink {0} is left to the kernel: viaduct status says why")]
    NotRaised(String),
    #[error("{from} has no {family} address: name the packet's source before its destination")]
    NoSource { from: String, family: &'static str },
    #[error("source {src} and destination {dst} are of two families: name two addresses of one")]
    Families { src: IpAddr, dst: IpAddr },
    #[error("a packet like this has {least} bytes or more, not {bytes}: raise --bytes")]
    Short { least: u16, bytes: u16 },
    #[error("no memory to forward a packet in ({0}): try again when some is free")]
    Memory(#[from] io::Error),
}

/// Where a packet comes in.
struct Origin<'a> {
    /// What it is called.
    name: String,
    pod: Option<&'a PodRecord>,
    is_uplink: bool,
    port: PortId,
    ifindex: u32,
    src_mac: Mac,
    dst_mac: Mac,
    /// Addresses that its packets come from if none is named.
    addresses: Vec<IpAddr>,
}

impl Engine {
    /// The answer to `viaduct explain`.
    #[must_use]
    pub fn explain(&self, request: &ExplainRequest) -> Reply {
        match self.explanation(request) {
            Ok(explanation) => Reply::Listing(
                serde_json::to_value(explanation).expect("an explanation is made of strings"),
            ),
            Err(error) => Reply::Error(CallError {
                code: code::DECODE,
                msg: error.to_string(),
                details: String::new(),
            }),
        }
    }

    fn explanation(&self, request: &ExplainRequest) -> Result<Explanation, ExplainError> {
        let origin = self.origin(&request.from)?;
        let probe = probe(&origin, request)?;
        let frame = probe.frame();
        let mut story = Story::begin(self, &origin, &probe);
        let trial = match origin.is_uplink {
            true => self.programs.try_uplink(origin.ifindex, 0, &frame),
            false => self.programs.try_port(origin.ifindex, &frame),
        };
        match &trial {
            Ok(trial) => story.tell_trial(*trial),
            // The rest can be told all the same.
            Err(error) => story.tell_no_trial(error),
        }
        if !matches!(trial, Ok(Trial::Passed(_) | Trial::Dropped(_))) {
            let flows = self.flows_near(&frame);
            let outcome = self.run(&origin, &frame, &flows)?;
            // What has no hop left, or is too long, does not show where it was going.
            let way = match outcome.dropped.map(|dropped| Stage::of(dropped.reason)) {
                Some(Stage::HopLimit | Stage::Size) => {
                    Some(self.run(&origin, &lenient(probe).frame(), &flows)?)
                }
                _ => None,
            };
            story.tell(&frame, &outcome, way.as_ref());
        }
        Ok(story.end())
    }

    /// Forwards a packet in memory.
    fn run(&self, origin: &Origin<'_>, frame: &[u8], flows: &[Flow]) -> io::Result<Outcome> {
        explain(&Question {
            publisher: self.workers.publisher(),
            ingress: origin.port,
            frame,
            flows,
            source_ports: SOURCE_PORTS,
            now_ns: monotonic_ns(),
        })
    }

    fn origin(&self, from: &str) -> Result<Origin<'_>, ExplainError> {
        if from == NODE {
            let node = &self.node;
            return Ok(Origin {
                name: NODE.to_owned(),
                pod: None,
                is_uplink: false,
                port: PortId(NODE_SLOT),
                ifindex: node.worker_index,
                src_mac: node.node_mac,
                dst_mac: node.worker_mac,
                addresses: self.node_addresses.clone(),
            });
        }
        // Which queue a NIC would take does not matter: all lead to the same.
        if let Some((name, port, _, raised)) =
            self.uplinks.queues().find(|(name, ..)| *name == from)
        {
            return Ok(Origin {
                name: name.to_owned(),
                pod: None,
                is_uplink: true,
                port,
                ifindex: raised.nic.ifindex,
                src_mac: SOMEBODY,
                dst_mac: raised.nic.mac,
                addresses: Vec::new(),
            });
        }
        if self.uplinks.is_named(from) {
            return Err(ExplainError::NotRaised(from.to_owned()));
        }
        let pods = self.state.called(from);
        match pods[..] {
            [pod] => Ok(Origin {
                name: name_of(pod),
                pod: Some(pod),
                is_uplink: false,
                port: port_of(pod),
                ifindex: pod.host_ifindex,
                src_mac: pod.mac,
                dst_mac: pod.host_mac,
                addresses: pod.addresses.iter().map(|address| address.address).collect(),
            }),
            [] => Err(ExplainError::Unknown(from.to_owned())),
            _ => Err(ExplainError::Ambiguous { from: from.to_owned(), count: pods.len() }),
        }
    }

    /// Copies of the flows that can decide about a packet: [`FLOWS_MAX`], its own first.
    fn flows_near(&self, frame: &[u8]) -> Vec<Flow> {
        let Some(key) = key_of(frame) else { return Vec::new() };
        let is_there = |flow: &Flow| {
            let pod = self.pod_at(flow.owner);
            pod.is_some_and(|pod| flow_generation(pod) == flow.generation)
        };
        let workers = self.workers.handles().iter();
        let used = workers.filter(|worker| worker.flow_counters.flows.get() > 0);
        let near = used.flat_map(|worker| worker.flows.iter()).filter(|flow| is_near(flow, &key));
        let mut near: Vec<Flow> = near.filter(is_there).collect();
        near.sort_by_key(|flow| flow.original != key && flow.translated.inverse() != key);
        near.truncate(FLOWS_MAX);
        near
    }
}

/// Whether a flow has an end that is one of the packet's, or that the packet's client would get.
fn is_near(flow: &Flow, key: &FlowKey) -> bool {
    let masqueraded = Endpoint { address: key.dst.address, port: key.src.port };
    let ends = [key.src, key.dst, masqueraded];
    flow.original.transport == key.transport
        && (ends.contains(&flow.original.src) || ends.contains(&flow.translated.src))
}

/// What a pod's interface is called: its container and its own name.
fn name_of(pod: &PodRecord) -> String {
    format!("{}/{}", pod.attachment.container_id, pod.attachment.ifname)
}

/// The packet that is asked about.
fn probe(origin: &Origin<'_>, request: &ExplainRequest) -> Result<Probe, ExplainError> {
    let ExplainRequest { from: _, src, sport, dst, dport, content, ttl, bytes, dont_fragment } =
        *request;
    let own = || origin.addresses.iter().copied().find(|own| own.is_ipv4() == dst.is_ipv4());
    let src = src.or_else(own).ok_or_else(|| ExplainError::NoSource {
        from: origin.name.clone(),
        family: if dst.is_ipv4() { "IPv4" } else { "IPv6" },
    })?;
    if src.is_ipv4() != dst.is_ipv4() {
        return Err(ExplainError::Families { src, dst });
    }
    let probe = Probe {
        src_mac: origin.src_mac,
        dst_mac: origin.dst_mac,
        src: SocketAddr::new(src, sport),
        dst: SocketAddr::new(dst, dport),
        content: match content {
            ProbeContent::Tcp { flags } => Content::Tcp { flags },
            ProbeContent::Udp => Content::Udp,
            ProbeContent::Sctp { opens } => {
                Content::Sctp { chunk: if opens { INIT } else { DATA } }
            }
            ProbeContent::Icmp => Content::Echo,
        },
        hop_limit: ttl,
        ip_bytes: bytes.unwrap_or(0),
        dont_fragment,
    };
    match bytes {
        Some(bytes) if bytes < probe.least_bytes() => {
            Err(ExplainError::Short { least: probe.least_bytes(), bytes })
        }
        _ => Ok(probe),
    }
}

/// The same packet, but short, and with hops to go.
fn lenient(probe: Probe) -> Probe {
    Probe { hop_limit: LENIENT_HOPS, ip_bytes: 0, ..probe }
}
