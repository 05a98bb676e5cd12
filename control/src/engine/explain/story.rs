//! What happened to a packet, in a row for each stage. What cannot be read off the packet before
//! and after, or off the reason for which it was dropped, is not told.

use dataplane::conntrack::{Endpoint, FlowKey};
use dataplane::explain::{Content, Followed, Outcome, Probe, Stage, key_of};
use dataplane::parse::{self, Headers, Parsed};
use dataplane::port::PortId;
use dataplane::tables::PortKind;
use dataplane::xsk::program::{FALLBACK_OUTCOMES, ProgramError, Trial};

use super::{LENIENT_HOPS, NODE, Origin, name_of};
use crate::engine::Engine;
use crate::engine::attach::text;
use crate::node::NODE_IFNAME;
use crate::quantity::Quantity;
use crate::report::{Explanation, LimitDirection, LimitRow, StageRow, TCP_FLAGS};
use crate::workers::NODE_SLOT;

/// The stage before the workers' own.
const XDP: &str = "xdp";

/// Why the uplinks' program leaves a packet to the kernel, by what it counts.
const PASSES: [(&str, &str); 7] = [
    ("unknown_uplink", "the program does not know the interface"),
    ("other_mac", "it is for another MAC address than the interface's"),
    ("ether_type", "it is neither IPv4 nor IPv6"),
    ("malformed", "its headers make no sense"),
    ("not_ours", "it is neither for a pod of this node nor for a host port that workers lead"),
    ("not_direct", "its source is no direct address, so the kernel carries both ways"),
    ("fallback", "its worker is not there"),
];

/// An explanation that is being written.
pub(super) struct Story<'a> {
    engine: &'a Engine,
    origin: &'a Origin<'a>,
    told: Explanation,
}

impl<'a> Story<'a> {
    pub(super) fn begin(engine: &'a Engine, origin: &'a Origin<'a>, probe: &Probe) -> Story<'a> {
        let told = Explanation {
            from: origin.name.clone(),
            packet: packet(probe),
            verdict: "kernel".to_owned(),
            ..Explanation::default()
        };
        Story { engine, origin, told }
    }

    pub(super) fn end(self) -> Explanation {
        self.told
    }

    /// What the XDP program does.
    pub(super) fn tell_trial(&mut self, trial: Trial) {
        match trial {
            Trial::Taken => self.row(XDP, "worker", "a worker gets it".to_owned()),
            Trial::Passed(why) => {
                let passes = PASSES.iter().find(|(name, _)| *name == why && self.origin.is_uplink);
                let why = passes.map_or("no worker serves this port", |(_, why)| why);
                self.row(XDP, "kernel", format!("the node's kernel gets it: {why}"));
            }
            Trial::Dropped(why) => {
                let outcome = FALLBACK_OUTCOMES.iter().find(|(name, _)| *name == why);
                let words = outcome.and_then(|(_, words)| *words).unwrap_or(why);
                self.row(XDP, "drop", format!("no worker serves this port, and {words}"));
                self.told.verdict = "dropped".to_owned();
                self.told.reason = Some(format!("fallback_{why}"));
            }
        }
    }

    pub(super) fn tell_no_trial(&mut self, error: &ProgramError) {
        self.row(XDP, "unknown", error.to_string());
    }

    /// What workers do. `way`: what became of a packet that may go on where this one may not.
    pub(super) fn tell(&mut self, frame: &[u8], outcome: &Outcome, way: Option<&Outcome>) {
        let answer = outcome.answer.as_deref().and_then(told_by);
        self.told.verdict = match outcome.dropped {
            None => "forwarded".to_owned(),
            Some(_) => "dropped".to_owned(),
        };
        self.told.reason = outcome.dropped.map(|dropped| dropped.reason.name().to_owned());
        let end = outcome.dropped.map(|dropped| Stage::of(dropped.reason));
        for stage in Stage::ALL {
            if let Some(dropped) = outcome.dropped.filter(|_| end == Some(stage)) {
                let mut detail = dropped.reason.sentence().to_owned();
                if dropped.is_leaving {
                    detail += &format!("; it is for {}", self.end_of(dropped.port));
                }
                if let Some(answer) = &answer {
                    detail += &format!("; its sender is told: {answer}");
                }
                self.row(stage.name(), "drop", detail);
                break;
            }
            let (verdict, detail) = self.passed(stage, frame, outcome, way.unwrap_or(outcome));
            self.row(stage.name(), verdict, detail);
        }
        self.told.answer = answer;
    }

    /// What a stage did with a packet that went on from it.
    fn passed(
        &self,
        stage: Stage,
        frame: &[u8],
        outcome: &Outcome,
        way: &Outcome,
    ) -> (&'static str, String) {
        let before = headers(frame);
        let after = way.sent.first().map(|(_, bytes)| bytes.as_slice());
        match stage {
            Stage::Parse => ("ok", self.told.packet.clone()),
            Stage::Source => ("ok", self.may_send()),
            Stage::Flow => flow(outcome.flow.as_ref().or(way.flow.as_ref().filter(|f| !f.is_new))),
            Stage::HostPort => translation(frame, after),
            Stage::Route => self.route(way),
            Stage::HopLimit => hop_limit(before, outcome, way),
            Stage::Size => size(before, outcome),
            Stage::Limit => self.limit(way),
            Stage::Deliver => self.delivered(outcome),
        }
    }

    fn may_send(&self) -> String {
        let origin = self.origin;
        let whose = match (origin.pod, origin.is_uplink) {
            (Some(_), _) => "its addresses are the pod's own",
            (None, true) => "its source is no address of this node's pods",
            (None, false) => "the node may send from any address",
        };
        whose.to_owned()
    }

    fn route(&self, way: &Outcome) -> (&'static str, String) {
        let left = way.sent.first().map(|(port, bytes)| (*port, bytes.as_slice()));
        let stayed = way.dropped.filter(|dropped| dropped.is_leaving);
        let Some((port, bytes)) = left.or(stayed.map(|dropped| (dropped.port, &[][..]))) else {
            return ("ok", "there is a way".to_owned());
        };
        let to = self.end_of(port);
        match self.kind_of(port) {
            PortKind::Pod => ("pod", format!("to {to}")),
            PortKind::Node => ("node", format!("to {to}, which routes it on")),
            PortKind::Uplink => {
                let next = bytes.first_chunk().copied().map(text).unwrap_or_default();
                ("uplink", format!("by {to} to the next hop {next}"))
            }
        }
    }

    /// The limits of both ends as they stand: the packet here has found their buckets full.
    fn limit(&self, way: &Outcome) -> (&'static str, String) {
        let receiver = way.sent.first().and_then(|(port, _)| self.engine.pod_at(*port));
        let ends = [(self.origin.pod, LimitDirection::Egress), (receiver, LimitDirection::Ingress)];
        let rows = ends.into_iter().flat_map(|(pod, direction)| {
            let rows = pod.into_iter().flat_map(|pod| self.engine.limits_of(pod));
            rows.map(|(_, row)| row).filter(move |row| row.direction == direction)
        });
        let limits: Vec<String> = rows
            .map(|row| {
                let (rate, direction) = (Quantity(row.applied_bps), row.direction.name());
                let LimitRow { container_id, ifname, queued_bytes, .. } = row;
                format!("{direction} of {container_id}/{ifname}: {rate}, {queued_bytes} bytes wait")
            })
            .collect();
        match limits.is_empty() {
            true => ("none", "neither end has a limit on the way".to_owned()),
            false => ("pays", limits.join("; ")),
        }
    }

    fn delivered(&self, outcome: &Outcome) -> (&'static str, String) {
        let Some((port, bytes)) = outcome.sent.first() else {
            return ("ok", "it left".to_owned());
        };
        let ends = headers(bytes).map(|headers| ends(bytes, &headers)).unwrap_or_default();
        ("sent", format!("to {} as {ends}", self.end_of(*port)))
    }

    fn kind_of(&self, port: PortId) -> PortKind {
        match self.engine.pod_at(port) {
            Some(_) => PortKind::Pod,
            None if port == PortId(NODE_SLOT) => PortKind::Node,
            None => PortKind::Uplink,
        }
    }

    /// What is at the far end of a port.
    fn end_of(&self, port: PortId) -> String {
        if let Some(pod) = self.engine.pod_at(port) {
            return format!("{}, port {}", name_of(pod), port.0);
        }
        if port == PortId(NODE_SLOT) {
            return format!("the {NODE}'s kernel, {NODE_IFNAME}");
        }
        let queue = self.engine.uplinks.queues().find(|(_, id, ..)| *id == port);
        let (name, queue) = queue.map_or(("", 0), |(name, _, queue, _)| (name, queue));
        format!("uplink {name}, queue {queue}")
    }

    fn row(&mut self, stage: &str, verdict: &str, detail: String) {
        let (stage, verdict) = (stage.to_owned(), verdict.to_owned());
        self.told.stages.push(StageRow { stage, verdict, detail });
    }
}

/// What a packet is, in a line.
fn packet(probe: &Probe) -> String {
    let Probe { src, dst, content, hop_limit, dont_fragment, .. } = probe;
    let bytes = probe.ip_bytes.max(probe.least_bytes());
    let what = match content {
        Content::Tcp { flags } => {
            let set = TCP_FLAGS.iter().filter(|(_, bit)| flags & bit != 0).map(|(name, _)| *name);
            format!("tcp {}", set.collect::<Vec<_>>().join(","))
        }
        Content::Udp => "udp".to_owned(),
        Content::Sctp { .. } => "sctp".to_owned(),
        Content::Echo => {
            let (src, dst) = (src.ip(), dst.ip());
            return format!("icmp echo {src} -> {dst}, {bytes} bytes, hop limit {hop_limit}");
        }
    };
    let whole = if *dont_fragment { ", don't fragment" } else { "" };
    format!("{what} {src} -> {dst}, {bytes} bytes, hop limit {hop_limit}{whole}")
}

fn headers(frame: &[u8]) -> Option<Headers> {
    match parse::headers(frame, frame.len()) {
        Ok(Parsed::Ip(headers)) => Some(headers),
        _ => None,
    }
}

/// Between whom a packet is.
fn ends(frame: &[u8], headers: &Headers) -> String {
    match FlowKey::of_packet(frame, headers) {
        Some(FlowKey { transport, src, dst }) if headers.icmp_type.is_none() => {
            format!("{} {} -> {}", transport.name(), end(src), end(dst))
        }
        _ => format!("{} -> {}", headers.source(), headers.destination()),
    }
}

fn end(Endpoint { address, port }: Endpoint) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

fn flow(followed: Option<&Followed>) -> (&'static str, String) {
    let Some(Followed { flow, is_new }) = followed else {
        return ("none", "it belongs to no flow that workers follow".to_owned());
    };
    let (asked, client) = (end(flow.original.dst), end(flow.original.src));
    match is_new {
        true => ("opens", format!("the first of a flow: {client} asks {asked}")),
        false => {
            let state = flow.state.name();
            ("belongs", format!("of a flow that is {state}: {client} asks {asked}"))
        }
    }
}

/// Whether a packet that leaves has made a hop. What was refused later has the one of `way`.
fn hop_limit(before: Option<Headers>, outcome: &Outcome, way: &Outcome) -> (&'static str, String) {
    let left = |outcome: &Outcome| {
        outcome.sent.first().and_then(|(_, bytes)| headers(bytes)).map(|left| left.hop_limit)
    };
    let before = before.map_or(0, |headers| headers.hop_limit);
    let made = match (left(outcome), left(way)) {
        (Some(after), _) => before.saturating_sub(after),
        (None, Some(after)) => LENIENT_HOPS.saturating_sub(after),
        (None, None) => 0,
    };
    match made {
        0 => ("kept", format!("{before}: the node and its workers are one router")),
        _ => ("ok", format!("{before}, then {}", before.saturating_sub(made))),
    }
}

/// What was written into a packet.
fn translation(before: &[u8], after: Option<&[u8]>) -> (&'static str, String) {
    let keys = (key_of(before), after.and_then(key_of));
    let (Some(before), Some(after)) = keys else {
        return ("none", "its addresses and ports stay as they are".to_owned());
    };
    let change = |name: &str, from: Endpoint, to: Endpoint| {
        (from != to).then(|| format!("{name} {} becomes {}", end(from), end(to)))
    };
    let source = change("source", before.src, after.src);
    let destination = change("destination", before.dst, after.dst);
    let changes: Vec<String> = source.into_iter().chain(destination).collect();
    match changes.is_empty() {
        true => ("none", "its addresses and ports stay as they are".to_owned()),
        false => ("translated", changes.join(", ")),
    }
}

fn size(before: Option<Headers>, outcome: &Outcome) -> (&'static str, String) {
    let bytes = before.map_or(0, |headers| headers.ip_len());
    let sizes = outcome.sent.iter().filter_map(|(_, bytes)| headers(bytes));
    let largest = sizes.map(|headers| headers.ip_len()).max().unwrap_or(0);
    match outcome.sent.len() {
        0 | 1 => ("fits", format!("{bytes} bytes go as they are")),
        many => ("fragmented", format!("{bytes} bytes go in {many} packets of {largest} or less")),
    }
}

/// What an ICMP error of ours says.
fn told_by(answer: &[u8]) -> Option<String> {
    let headers = headers(answer)?;
    let icmp = answer.get(headers.l4_offset..)?;
    let &[kind, code, _, _, a, b, c, d] = icmp.first_chunk::<8>()?;
    let mtu = match headers.source().is_ipv4() {
        // RFC 1191 §4, RFC 4443 §3.2.
        true => u32::from(u16::from_be_bytes([c, d])),
        false => u32::from_be_bytes([a, b, c, d]),
    };
    Some(match (headers.source().is_ipv4(), kind, code) {
        (true, 3, 1) => "ICMP host unreachable".to_owned(),
        (true, 3, 4) => format!("ICMP fragmentation needed, MTU {mtu}"),
        (true, 11, _) => "ICMP time exceeded".to_owned(),
        (false, 1, _) => "ICMPv6 address unreachable".to_owned(),
        (false, 2, _) => format!("ICMPv6 packet too big, MTU {mtu}"),
        (false, 3, _) => "ICMPv6 time exceeded".to_owned(),
        _ => format!("ICMP type {kind}, code {code}"),
    })
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use dataplane::icmp::{ERROR_BYTES_MAX, Envelope, ErrorKind, build};

    use super::*;

    #[test]
    fn what_a_sender_is_told_is_read_off_the_error() {
        let told = |v6: bool, kind| {
            let [src, dst] = match v6 {
                false => ["10.244.1.5:9", "10.244.1.6:9"],
                true => ["[fd00::5]:9", "[fd00::6]:9"],
            };
            let offender = Probe {
                src_mac: [0; 6],
                dst_mac: [0; 6],
                src: src.parse().expect("an end"),
                dst: dst.parse().expect("an end"),
                content: Content::Udp,
                hop_limit: 1,
                ip_bytes: 1400,
                dont_fragment: true,
            };
            let source: IpAddr = dst.parse::<std::net::SocketAddr>().expect("an end").ip();
            let envelope = Envelope { src_mac: [0; 6], dst_mac: [0; 6], source };
            let mut answer = [0; ERROR_BYTES_MAX];
            let len = build(kind, &offender.frame(), 14, &envelope, &mut answer).expect("built");
            told_by(&answer[..len]).expect("an ICMP error")
        };
        for (kind, v4, v6) in [
            (
                ErrorKind::TooBig { mtu: 1300 },
                "ICMP fragmentation needed, MTU 1300",
                "ICMPv6 packet too big, MTU 1300",
            ),
            (ErrorKind::TimeExceeded, "ICMP time exceeded", "ICMPv6 time exceeded"),
            (ErrorKind::HostUnreachable, "ICMP host unreachable", "ICMPv6 address unreachable"),
        ] {
            assert_eq!([told(false, kind), told(true, kind)], [v4, v6]);
        }
    }
}
