//! Connections as their ends make them, and what strangers send.

use super::*;
use Direction::{Original, Reply};
use FlowState::*;

/// Sequence numbers of client and server before anything was sent, close to where they wrap.
const CLIENT: u32 = u32::MAX - 5;
const SERVER: u32 = u32::MAX - 20;

/// A segment: flags, sequence and acknowledgment numbers relative to the sides' first, bytes.
fn segment(direction: Direction, flags: u8, sequence: u32, ack: u32, bytes: u32) -> TcpSegment {
    let (own, other) = match direction {
        Original => (CLIENT, SERVER),
        Reply => (SERVER, CLIENT),
    };
    TcpSegment {
        flags,
        sequence: own.wrapping_add(sequence),
        acknowledgment: other.wrapping_add(ack),
        payload_bytes: bytes,
    }
}

struct Connection(Progress);

impl Connection {
    fn open() -> Connection {
        Connection(first(&segment(Original, SYN, 0, 0, 0)).unwrap())
    }

    fn established() -> Connection {
        let mut connection = Connection::open();
        assert_eq!(connection.0.state, Opening);
        connection.is(Reply, SYN | ACK, 0, 1, 0, Answered);
        connection.is(Original, ACK, 1, 1, 0, Established);
        connection
    }

    /// The state after one more segment.
    #[track_caller]
    fn is(
        &mut self,
        direction: Direction,
        flags: u8,
        seq: u32,
        ack: u32,
        bytes: u32,
        state: FlowState,
    ) {
        self.0 = after(self.0, direction, &segment(direction, flags, seq, ack, bytes));
        assert_eq!(self.0.state, state);
    }
}

#[test]
fn a_connection_is_opened_used_and_closed_by_both_sides() {
    let mut connection = Connection::established();
    connection.is(Original, ACK, 1, 1, 100, Established);
    connection.is(Reply, ACK, 1, 101, 5000, Established);
    connection.is(Original, ACK | FIN, 101, 5001, 0, Closing);
    connection.is(Reply, ACK, 5001, 102, 1000, Closing);
    connection.is(Reply, ACK | FIN, 6001, 102, 0, Closing);
    connection.is(Original, ACK, 102, 6001, 0, Closing); // not the FIN yet
    connection.is(Original, ACK, 102, 6002, 0, TimeWait);
    connection.is(Reply, ACK | FIN, 6001, 102, 0, TimeWait); // repeated
}

#[test]
fn the_server_may_close_first_and_even_before_the_client_has_acknowledged_it() {
    let mut connection = Connection::open();
    connection.is(Reply, SYN | ACK, 0, 1, 0, Answered);
    connection.is(Reply, ACK, 1, 1, 10, Answered);
    connection.is(Reply, ACK | FIN, 11, 1, 0, Answered);
    connection.is(Original, ACK, 1, 12, 0, Closing);
    connection.is(Original, ACK | FIN, 1, 12, 0, Closing);
    connection.is(Reply, ACK, 12, 2, 0, TimeWait);
}

#[test]
fn who_does_not_know_the_servers_number_establishes_nothing() {
    let mut connection = Connection::open();
    connection.is(Original, ACK, 1, 1, 0, Opening);
    connection.is(Reply, SYN | ACK, 0, 100_000, 0, Opening); // answers something else
    connection.is(Reply, SYN | ACK, 0, 1, 0, Answered);
    for guess in [0, 2, 1000, 1 << 31, u32::MAX] {
        connection.is(Original, ACK, 1, guess, 0, Answered);
    }
    connection.is(Original, ACK, 1, 1, 0, Established);
}

#[test]
fn a_syn_may_be_repeated_and_carry_data_that_is_acknowledged_later() {
    let mut connection = Connection(first(&segment(Original, SYN, 0, 0, 500)).unwrap());
    connection.is(Original, SYN, 0, 0, 500, Opening);
    connection.is(Reply, SYN | ACK, 0, 1, 0, Answered);
    connection.is(Reply, SYN | ACK, 0, 501, 0, Answered);
    connection.is(Original, ACK, 501, 1, 0, Established);
}

#[test]
fn both_sides_may_open_at_once() {
    let mut connection = Connection::open();
    connection.is(Reply, SYN, 0, 0, 0, Answered);
    connection.is(Original, SYN | ACK, 0, 1, 0, Established);
    connection.is(Reply, SYN | ACK, 0, 1, 0, Established);
}

#[test]
fn a_rst_of_the_connection_ends_it_and_that_of_a_stranger_does_not() {
    let mut connection = Connection::established();
    connection.is(Original, ACK, 1, 1, 1000, Established);
    connection.is(Reply, ACK, 1, 1001, 0, Established);
    for stranger in [0, 1000, 1001 + 0x1_0000, 1 << 31] {
        connection.is(Original, RST, stranger, 0, 0, Established);
    }
    let before = connection.0;
    connection.is(Original, RST, 1001, 0, 0, Reset);
    connection.0 = before;
    connection.is(Reply, RST | ACK, 1, 1001, 0, Reset);
}

#[test]
fn a_refused_connection_is_reset_if_the_refusal_names_it() {
    let mut connection = Connection::open();
    // RFC 9293 §3.5.2: sequence number 0, whatever it is relative to ours.
    let refusal = |ack| TcpSegment {
        flags: RST | ACK,
        sequence: 0,
        acknowledgment: CLIENT.wrapping_add(ack),
        payload_bytes: 0,
    };
    connection.0 = after(connection.0, Reply, &refusal(7_000_000));
    assert_eq!(connection.0.state, Opening);
    connection.0 = after(connection.0, Reply, &refusal(1));
    assert_eq!(connection.0.state, Reset);
}

#[test]
fn the_ports_of_what_has_ended_can_be_used_again_and_those_of_what_lives_cannot() {
    let mut connection = Connection::established();
    connection.is(Original, SYN, 700_000, 0, 0, Established);
    connection.is(Reply, SYN, 700_000, 0, 0, Established);
    connection.is(Original, ACK | FIN, 1, 1, 0, Closing);
    connection.is(Original, SYN, 700_000, 0, 0, Opening);
    assert_eq!(connection.0.sides[1], Side::default());
    connection.is(Reply, SYN | ACK, 9_000_000, 700_001, 0, Answered);
    connection.is(Original, ACK, 700_001, 9_000_001, 0, Established);
    connection.is(Reply, RST, 9_000_001, 0, 0, Reset);
    connection.is(Reply, SYN, 0, 0, 0, Reset); // only the client opens
    connection.is(Original, SYN, 0, 0, 0, Opening);
}

#[test]
fn what_is_seen_first_in_its_middle_needs_a_packet_of_each_side() {
    let mut connection = Connection(first(&segment(Original, ACK, 5, 9, 100)).unwrap());
    assert_eq!(connection.0.state, PickedUp);
    connection.is(Original, ACK, 105, 9, 100, PickedUp);
    let before = connection.0;
    // A server without such a connection answers with the number that it was sent.
    connection.is(Reply, RST, 9, 0, 0, Reset);
    connection.0 = before;
    connection.is(Reply, ACK, 9, 205, 1000, Established);
    connection.is(Original, ACK | FIN, 205, 1009, 0, Closing);
}

#[test]
fn a_rst_an_answer_and_a_segment_without_flags_open_nothing() {
    for flags in [RST, RST | ACK, SYN | ACK, RST | SYN, 0, FIN] {
        assert_eq!(first(&segment(Original, flags, 0, 0, 0)), None, "{flags:#x}");
    }
}

#[test]
fn a_segment_is_read_with_its_options_and_refused_when_it_is_cut_off() {
    let mut bytes = [0u8; 32];
    bytes[4..8].copy_from_slice(&7u32.to_be_bytes());
    bytes[8..12].copy_from_slice(&9u32.to_be_bytes());
    bytes[12] = 0x80;
    bytes[13] = SYN | ACK;
    let segment = TcpSegment::read(&bytes, 132).unwrap();
    let wanted =
        TcpSegment { flags: SYN | ACK, sequence: 7, acknowledgment: 9, payload_bytes: 100 };
    assert_eq!(segment, wanted);
    assert_eq!(TcpSegment::read(&bytes[..19], 132), None);
    assert_eq!(TcpSegment::read(&bytes, 31), None, "the header is longer than the packet");
}
