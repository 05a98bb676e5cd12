//! What packets say, and what that makes of a flow, as the documents have it: timeouts, who gives
//! way, and which state may follow which.

use dataplane::conntrack::{Direction, FlowState, SctpChunk, Signal, TcpSegment, Transport};

use crate::bytes::Bytes;

/// A packet of this transport.
pub(super) fn signal(transport: Transport, bytes: &mut Bytes<'_>) -> Signal {
    match transport {
        Transport::Tcp => {
            let flags = bytes.choice(&[0x02, 0x12, 0x10, 0x11, 0x04, 0x14, 0x00, 0x18]);
            let numbers = bytes.byte();
            Signal::Tcp(TcpSegment {
                flags,
                sequence: u32::from(numbers & 0xf),
                acknowledgment: u32::from(numbers >> 4),
                payload_bytes: 0,
            })
        }
        Transport::Sctp => {
            let kind = bytes.choice(&[1, 2, 0, 10, 11, 6, 7, 8, 14]);
            let tags = bytes.byte();
            let initiate_tag = (kind == 1 || kind == 2).then_some(u32::from(tags >> 4));
            let (tag, flags) = (u32::from(tags & 7), tags >> 3 & 1);
            Signal::Sctp(SctpChunk { tag, kind, flags, initiate_tag })
        }
        Transport::Udp => Signal::Udp,
        Transport::Query => Signal::Query,
    }
}

/// Whether a packet like that may be the first of a flow.
pub(super) fn opens(signal: &Signal) -> bool {
    match signal {
        Signal::Tcp(segment) => [0x02, 0x10, 0x11, 0x18].contains(&segment.flags),
        Signal::Sctp(chunk) => [1, 0, 10, 7].contains(&chunk.kind),
        Signal::Udp | Signal::Query => true,
    }
}

/// Seconds that a state may be idle, seconds after which it may give way for others, and who gives
/// way first.
pub(super) fn rules(state: FlowState) -> (u64, u64, u8) {
    match state {
        FlowState::Opening | FlowState::Answered | FlowState::PickedUp => (60, 0, 0),
        FlowState::Unanswered | FlowState::Query => (60, 0, 0),
        FlowState::TimeWait => (120, 0, 1),
        FlowState::Closing | FlowState::Reset => (240, 0, 2),
        FlowState::Stream => (300, 60, 3),
        FlowState::Established => (86_400, 300, 4),
    }
}

/// Whether a packet in this direction may have made the one of the other.
pub(super) fn may_follow(from: FlowState, to: FlowState, direction: Direction) -> bool {
    use FlowState::{
        Answered, Closing, Established, Opening, PickedUp, Reset, Stream, TimeWait, Unanswered,
    };
    match to {
        _ if from == to => true,
        Opening => direction == Direction::Original && ![Established, Answered].contains(&from),
        Answered => from == Opening && direction == Direction::Reply,
        Established => [Answered, PickedUp].contains(&from),
        // Marks of the FIN may be there before both sides have shown that they can receive.
        Closing => [Established, Answered, PickedUp].contains(&from),
        TimeWait => [Established, Closing, Answered, PickedUp].contains(&from),
        Stream => from == Unanswered && direction == Direction::Reply,
        Reset => true,
        PickedUp | Unanswered | FlowState::Query => false,
    }
}
