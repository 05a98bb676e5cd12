//! States of flows, how long each may be idle, and what a packet makes of it.

use super::sctp::{self, SctpChunk};
use super::tcp::{self, TcpSegment};
use super::{Direction, Transport};

/// Where a flow is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// TCP or SCTP: the client has asked (SYN, INIT).
    Opening = 1,
    /// TCP or SCTP: the server has answered, and the client has not shown that it got that.
    Answered,
    /// TCP or SCTP: first seen in the middle of a connection, and only from one side so far.
    PickedUp,
    /// TCP or SCTP: both sides have shown that they can receive.
    Established,
    /// TCP: one side or both have sent FIN. SCTP: SHUTDOWN.
    Closing,
    /// TCP: both FINs are acknowledged. SCTP: SHUTDOWN COMPLETE.
    TimeWait,
    /// TCP: RST. SCTP: ABORT.
    Reset,
    /// UDP: nobody has answered yet.
    Unanswered,
    /// UDP: there were packets both ways.
    Stream,
    /// An ICMP query.
    Query,
}

const STATES: [(FlowState, &str, Class); 10] = [
    (FlowState::Opening, "opening", Class::Embryonic),
    (FlowState::Answered, "answered", Class::Embryonic),
    (FlowState::PickedUp, "picked_up", Class::Embryonic),
    (FlowState::Established, "established", Class::Established),
    (FlowState::Closing, "closing", Class::Closing),
    (FlowState::TimeWait, "time_wait", Class::TimeWait),
    (FlowState::Reset, "reset", Class::Closing),
    (FlowState::Unanswered, "unanswered", Class::Embryonic),
    (FlowState::Stream, "stream", Class::Stream),
    (FlowState::Query, "query", Class::Embryonic),
];

impl FlowState {
    /// The state with this number; `None` for a number that no state has.
    #[must_use]
    pub fn from_number(number: u8) -> Option<FlowState> {
        STATES.get(usize::from(number).checked_sub(1)?).map(|row| row.0)
    }

    /// Stable name: the value of `state` in listings.
    #[must_use]
    pub fn name(self) -> &'static str {
        STATES[self as usize - 1].1
    }

    /// Whether flows of this transport can be in it.
    pub(super) fn is_of(self, transport: Transport) -> bool {
        match self {
            FlowState::Unanswered | FlowState::Stream => transport == Transport::Udp,
            FlowState::Query => transport == Transport::Query,
            _ => matches!(transport, Transport::Tcp | Transport::Sctp),
        }
    }

    /// Which timeout it has, and how early it gives way to others.
    #[inline]
    pub(super) fn class(self) -> Class {
        STATES[self as usize - 1].2
    }
}

/// States with one timeout and one standing when room is short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    Embryonic,
    Closing,
    TimeWait,
    Stream,
    Established,
}

pub(super) const CLASSES: usize = Class::Established as usize + 1;

impl Class {
    /// All of them, in the order in which they give way.
    pub(super) const ALL: [Class; CLASSES] =
        [Class::Embryonic, Class::TimeWait, Class::Closing, Class::Stream, Class::Established];

    /// Seconds without a packet after which a flow is forgotten.
    ///
    /// A flow that is forgotten too early does no harm where the next packet makes the same one
    /// again, as one to a host port does; so embryonic flows, of which an attacker can make any
    /// number, may be below the four minutes that RFC 5382 REQ-5 asks for, and UDP without an
    /// answer below the two minutes of RFC 4787 REQ-5.
    #[inline]
    pub(super) fn timeout_s(self) -> u32 {
        match self {
            // Several retransmissions of a SYN (RFC 6298: after 1, 3, 7, 15, 31 s); the least that
            // RFC 5508 REQ-2 allows for a query.
            Class::Embryonic => 60,
            // RFC 5382 REQ-5 for what is closing, RFC 7857 §2.2 after a RST.
            Class::Closing => 240,
            // Twice the maximum segment lifetime of most stacks (RFC 9293 §3.4.2 has 4 minutes).
            Class::TimeWait => 120,
            // What RFC 4787 REQ-5 recommends.
            Class::Stream => 300,
            // A day; RFC 5382 REQ-5 asks for 2 hours and 4 minutes at least.
            Class::Established => 86_400,
        }
    }

    /// Seconds without a packet after which a flow may be evicted for a new one, when no room is
    /// left. An embryonic or closing one gives way at once.
    pub(super) fn protected_s(self) -> u32 {
        match self {
            Class::Embryonic | Class::Closing | Class::TimeWait => 0,
            Class::Stream => 60,
            Class::Established => 300,
        }
    }
}

/// What a packet says about the state of its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// A TCP segment.
    Tcp(TcpSegment),
    /// The first chunk of an SCTP packet.
    Sctp(SctpChunk),
    /// A UDP datagram.
    Udp,
    /// An ICMP query or its answer.
    Query,
}

/// Marks that a flow keeps beside its state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Side {
    /// TCP: the sequence number after the last byte that this side has sent. SCTP: the
    /// verification tag of its packets.
    pub(super) next: Option<u32>,
    /// TCP: the highest sequence number that this side has acknowledged.
    pub(super) acked: Option<u32>,
    /// TCP: this side has sent FIN, which `next` counts.
    pub(super) fin: bool,
}

/// State and both sides, by direction of their packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) state: FlowState,
    pub(super) sides: [Side; 2],
}

impl Progress {
    /// The progress of a flow whose first packet this is. `None` if such a packet opens none: it
    /// ends a flow, or answers one that is not there.
    pub(super) fn first(signal: &Signal) -> Option<Progress> {
        let fresh = |state| Progress { state, sides: [Side::default(); 2] };
        match signal {
            Signal::Tcp(segment) => tcp::first(segment),
            Signal::Sctp(chunk) => sctp::first(chunk),
            Signal::Udp => Some(fresh(FlowState::Unanswered)),
            Signal::Query => Some(fresh(FlowState::Query)),
        }
    }

    /// The progress after one more packet. A signal of another protocol changes nothing.
    #[inline]
    pub(super) fn after(self, direction: Direction, signal: &Signal) -> Progress {
        match signal {
            Signal::Tcp(segment) => tcp::after(self, direction, segment),
            Signal::Sctp(chunk) => sctp::after(self, direction, chunk),
            Signal::Udp if direction == Direction::Reply && self.state == FlowState::Unanswered => {
                Progress { state: FlowState::Stream, ..self }
            }
            Signal::Udp | Signal::Query => self,
        }
    }
}

impl Signal {
    /// Reads what later stages need of the L4 header at `l4`, whose packet has `l4_bytes` from
    /// there on. `None` for a header that is cut off.
    #[must_use]
    pub fn read(transport: Transport, l4: &[u8], l4_bytes: usize) -> Option<Signal> {
        match transport {
            Transport::Tcp => TcpSegment::read(l4, l4_bytes).map(Signal::Tcp),
            Transport::Sctp => SctpChunk::read(l4).map(Signal::Sctp),
            Transport::Udp => Some(Signal::Udp),
            Transport::Query => Some(Signal::Query),
        }
    }

    /// Whether a flow can begin with it: it asks for a connection, or is in the middle of one.
    #[must_use]
    pub fn opens(&self) -> bool {
        Progress::first(self).is_some()
    }

    /// Whether it asks for a connection, or is of a protocol that has none.
    #[must_use]
    pub fn asks(&self) -> bool {
        match self {
            Signal::Tcp(segment) => segment.asks(),
            Signal::Sctp(chunk) => chunk.asks(),
            Signal::Udp | Signal::Query => true,
        }
    }

    /// The signal without that it answers a packet that asked for a connection: with it a flow can
    /// begin whose first packet has passed unseen.
    #[must_use]
    pub fn in_the_middle(self) -> Signal {
        match self {
            Signal::Tcp(segment) => Signal::Tcp(segment.in_the_middle()),
            Signal::Sctp(chunk) => Signal::Sctp(chunk.in_the_middle()),
            Signal::Udp | Signal::Query => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_has_its_number_and_a_name_of_its_own() {
        let mut names = std::collections::HashSet::new();
        for (number, (state, name, class)) in (1..).zip(STATES) {
            assert_eq!(state as u8, number);
            assert_eq!(FlowState::from_number(number), Some(state));
            assert_eq!((state.name(), state.class()), (name, class));
            assert!(names.insert(name));
        }
        assert_eq!(FlowState::from_number(0), None);
        assert_eq!(FlowState::from_number(STATES.len() as u8 + 1), None);
    }

    #[test]
    fn every_class_stands_once_in_the_order_of_eviction() {
        let mut numbers = Class::ALL.map(|class| class as usize);
        numbers.sort_unstable();
        assert_eq!(numbers, std::array::from_fn(|number| number));
        for class in Class::ALL {
            assert!(class.protected_s() <= class.timeout_s());
        }
    }

    #[test]
    fn only_an_answer_makes_udp_a_stream_and_a_query_stays_one() {
        let unanswered = Progress::first(&Signal::Udp).unwrap();
        assert_eq!(unanswered.after(Direction::Original, &Signal::Udp), unanswered);
        let stream = unanswered.after(Direction::Reply, &Signal::Udp);
        assert_eq!(stream.state, FlowState::Stream);
        assert_eq!(stream.after(Direction::Original, &Signal::Udp), stream);
        let query = Progress::first(&Signal::Query).unwrap();
        assert_eq!(query.after(Direction::Reply, &Signal::Query), query);
    }
}
