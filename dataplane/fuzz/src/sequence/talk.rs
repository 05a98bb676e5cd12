//! What the two ends of a conversation do, and what comes of it.

use dataplane::conntrack::{Endpoint, FlowKey, Transport};
use dataplane::host_ports::{HostAddress, HostPort, Masquerade};

use super::cast::{
    Client, FRAGMENT, ROUTER, Says, Way, address, error_of, family, packet_of, parsed, translated,
};
use super::judge::Expected;
use super::{Mapping, OTHER_PORT, World};
use crate::harness::packet::Packet;
use crate::harness::{ENDS, End, NODE};

/// Two ends that talk, of whom one is a pod behind a host port or a port that one leads to.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) client: &'static Client,
    pub(super) pod: &'static End,
    /// What the client sends, and what the pod gets of it.
    pub(super) asks: FlowKey,
    pub(super) seen: FlowKey,
    /// Seconds.
    pub(super) last_s: u64,
    /// The pod has answered.
    pub(super) is_answered: bool,
    /// Somebody has said that he ends it.
    pub(super) is_ending: bool,
    /// The client is a pod that asks from a mapped port, and its side of the node follows the
    /// conversation, since the last answer. Else its packets that go on with it may be dropped.
    pub(super) is_followed: bool,
    /// The last packets of both, as they were sent.
    pub(super) question: Option<Packet>,
    pub(super) answer: Option<Packet>,
}

/// Whether the node remembers a conversation.
#[derive(PartialEq, Eq)]
pub(super) enum Memory {
    Sure,
    Lost,
    Unsure,
}

impl Conversation {
    pub(super) fn memory(&self, now_s: u64) -> Memory {
        let idle_s = now_s - self.last_s;
        let is_udp = self.asks.transport == Transport::Udp;
        // Of a connection only that is sure which one side has said.
        let (surely, at_most) = match (is_udp, self.is_answered, self.is_ending) {
            (true, false, _) | (false, false, false) => (60, 60),
            (true, true, _) => (300, 300),
            (false, _, _) => (60, 86_400),
        };
        match idle_s {
            _ if idle_s <= surely => Memory::Sure,
            _ if idle_s > at_most => Memory::Lost,
            _ => Memory::Unsure,
        }
    }

    /// The address that the client has asked, for orders to forget.
    pub(super) fn asked(&self) -> HostPort {
        let Endpoint { address, port } = self.asks.dst;
        HostPort { transport: self.asks.transport, address: HostAddress::One(address), port }
    }
}

impl World {
    /// The conversation in which this is what the client sends.
    pub(super) fn talk_of(&self, asks: &FlowKey) -> Option<usize> {
        self.conversations.iter().position(|talk| talk.asks == *asks)
    }

    pub(super) fn ask(&mut self, client: &'static Client, asks: &FlowKey, says: Says) {
        let to_client = |talk: &Conversation| talk.seen.inverse() == *asks;
        if let Some(index) = self.conversations.iter().position(to_client) {
            return self.answer(index, says, false);
        }
        let question = packet_of(asks, client.end, says);
        let may_begin = asks.transport == Transport::Udp || says == Says::Ask;
        let from_mapped = self.is_mapped(client.end, asks.src.port);
        if let Some(index) = self.talk_of(asks) {
            let Conversation { pod, seen, is_followed, .. } = self.conversations[index];
            if from_mapped && !may_begin && !is_followed {
                return;
            }
            let out = self.through(client.end, Way::Pod(pod.name), translated(&question, &seen));
            self.send(client.end, vec![question.clone()], &out);
            let talk = &mut self.conversations[index];
            talk.last_s = self.now_s;
            talk.is_ending |= matches!(says, Says::End | Says::Abort);
            talk.is_followed &= says != Says::Abort;
            talk.question = Some(question);
            return;
        }
        if from_mapped && !may_begin {
            // What goes on from a mapped port may need another address, which nobody knows.
            return self.expect_nothing_unless_shadowed(client, question, asks);
        }
        if asks.dst.address == address(&NODE, asks.dst.address.is_ipv6()) {
            self.ask_host_port(client, asks, says, question);
        } else {
            self.ask_directly(client, asks, says, question);
        }
    }

    pub(super) fn ask_host_port(
        &mut self,
        client: &'static Client,
        asks: &FlowKey,
        says: Says,
        question: Packet,
    ) {
        let is_udp = asks.transport == Transport::Udp;
        let Some(mapping) = self.mapping(asks.dst.port) else {
            // Off the wire it is not ours; from pods it is for the node.
            let out = match client.back {
                Way::Pod(_) => self.through(client.end, Way::Node, question.clone()),
                Way::Uplink | Way::Node => Expected::Nothing,
            };
            return self.send(client.end, vec![question], &out);
        };
        if !is_udp && matches!(says, Says::Answer | Says::Abort) {
            return self.send(client.end, vec![question], &Expected::Nothing);
        }
        let Mapping { pod, port, masquerade } = mapping;
        let hides = match masquerade {
            Masquerade::Everybody => true,
            Masquerade::Itself => client.end.id == pod.id,
            Masquerade::Nobody => false,
        };
        let is_v6 = asks.dst.address.is_ipv6();
        let source = if hides { asks.dst.address } else { asks.src.address };
        let src = Endpoint { address: source, port: asks.src.port };
        let dst = Endpoint { address: address(pod, is_v6), port };
        let kept = FlowKey { transport: asks.transport, src, dst };
        self.begin(client, pod, asks, &kept, says, question);
    }

    pub(super) fn ask_directly(
        &mut self,
        client: &'static Client,
        asks: &FlowKey,
        says: Says,
        question: Packet,
    ) {
        let is_it = |end: &&End| address(end, asks.dst.address.is_ipv6()) == asks.dst.address;
        let pod = ENDS.into_iter().find(is_it).expect("a pod was asked");
        let is_udp = asks.transport == Transport::Udp;
        let is_followed = self.is_mapped(pod, asks.dst.port) && (is_udp || says != Says::Abort);
        if !is_followed {
            let out = self.through(client.end, Way::Pod(pod.name), question.clone());
            return self.send(client.end, vec![question], &out);
        }
        if client.end.id == NODE.id
            && let Some(talk) = self.conversations.iter().find(|talk| talk.seen == *asks)
        {
            // A process of the node has the very port that a pod's question was masqueraded with.
            // UDP cannot be told from fragments of the pod's own, which the kernel translates.
            if !is_udp && says == Says::Ask && talk.asks.src.address != talk.seen.src.address {
                self.send(client.end, vec![question], &Expected::Nothing);
            }
            return;
        }
        self.begin(client, pod, asks, asks, says, question);
    }

    /// The first packet of a conversation, which the pod sees with this key unless it is taken.
    pub(super) fn begin(
        &mut self,
        client: &'static Client,
        pod: &'static End,
        asks: &FlowKey,
        kept: &FlowKey,
        says: Says,
        question: Packet,
    ) {
        let is_taken = |key: &FlowKey| self.conversations.iter().any(|talk| talk.seen == *key);
        let other = FlowKey { src: Endpoint { port: OTHER_PORT, ..kept.src }, ..*kept };
        let is_own = kept.inverse() == *asks;
        if self.conversations.iter().any(|talk| talk.asks == kept.inverse()) {
            // Both ask each other, from the ports that they serve. Nobody follows what a pod asks
            // directly until it is answered, so the two cannot be told apart.
            return;
        }
        let is_shadowed = self.shadows.contains(kept);
        let mut may_be = Vec::new();
        if !is_taken(kept) && !is_own {
            may_be.push(*kept);
        }
        let may_fail = may_be.is_empty() || is_shadowed;
        if may_fail && !is_taken(&other) {
            may_be.push(other);
        }
        let is_refused = may_fail && is_taken(&other);
        let seen = self.observe(client.end, pod, &question, &may_be);
        let Some(seen) = seen else {
            assert!(is_refused || may_be.is_empty(), "{asks:?} was lost, for {may_be:?}");
            return;
        };
        self.conversations.push(Conversation {
            client,
            pod,
            asks: *asks,
            seen,
            last_s: self.now_s,
            is_answered: false,
            is_ending: matches!(says, Says::End | Says::Abort),
            is_followed: false,
            question: Some(question),
            answer: None,
        });
    }

    /// The pod of a conversation answers what it has got.
    pub(super) fn answer(&mut self, index: usize, says: Says, in_fragments: bool) {
        let Conversation { client, pod, asks, seen, .. } = self.conversations[index];
        let answer = packet_of(&seen.inverse(), pod, says);
        let heard = translated(&answer, &asks.inverse());
        let back = self.way_back(index);
        if in_fragments && asks.transport != Transport::Sctp {
            let pieces = answer.fragments(FRAGMENT);
            let out = heard.fragments(FRAGMENT).into_iter();
            let out = out.map(|piece| self.at_end(pod, back, piece)).collect();
            self.send(pod, pieces, &Expected::Out(back, out));
        } else {
            let out = self.through(pod, back, heard);
            self.send(pod, vec![answer.clone()], &out);
            self.conversations[index].answer = Some(answer);
        }
        let is_followed = self.is_mapped(client.end, asks.src.port);
        if is_followed {
            self.shadows.push(asks.inverse());
        }
        let talk = &mut self.conversations[index];
        talk.last_s = self.now_s;
        talk.is_answered = true;
        talk.is_followed = is_followed && says != Says::Abort;
        talk.is_ending |= matches!(says, Says::End | Says::Abort);
    }

    /// Where the answers of a conversation go.
    pub(super) fn way_back(&self, index: usize) -> Way {
        self.conversations[index].client.back
    }

    /// The pod says that it cannot be reached, of the last packet that it got.
    pub(super) fn pod_complains(&mut self, index: usize) {
        let Conversation { client, pod, asks, seen, ref question, .. } = self.conversations[index];
        let Some(question) = question.clone() else { return };
        let got = self.at_end(client.end, Way::Pod(pod.name), translated(&question, &seen));
        let asked = self.at_end(client.end, Way::Pod(pod.name), question);
        let error = error_of(pod, seen.dst.address, seen.src.address, &got);
        let heard = error_of(pod, asks.dst.address, asks.src.address, &asked);
        let out = self.through(pod, self.way_back(index), heard);
        self.send(pod, vec![error], &out);
    }

    /// The client, or a router on the way to it, says the same of the last answer.
    pub(super) fn client_complains(&mut self, index: usize, by_router: bool) {
        let Conversation { client, pod, asks, seen, ref answer, .. } = self.conversations[index];
        let Some(answer) = answer.clone() else { return };
        let back = self.way_back(index);
        let got = self.at_end(pod, back, translated(&answer, &asks.inverse()));
        let sent = self.at_end(pod, back, answer);
        let is_v6 = asks.src.address.is_ipv6();
        let has_router = by_router && !matches!(back, Way::Pod(_));
        let router = parsed(ROUTER[family(is_v6)]);
        let (from, seen_from) = match has_router {
            true => (router, router),
            false => (asks.src.address, seen.src.address),
        };
        let error = error_of(client.end, from, asks.dst.address, &got);
        let heard = error_of(client.end, seen_from, seen.dst.address, &sent);
        let out = self.through(client.end, Way::Pod(pod.name), heard);
        self.send(client.end, vec![error], &out);
    }

    pub(super) fn expect_nothing_unless_shadowed(
        &mut self,
        client: &'static Client,
        question: Packet,
        asks: &FlowKey,
    ) {
        if !self.shadows.contains(&asks.inverse()) {
            self.send(client.end, vec![question], &Expected::Nothing);
        }
    }
}
