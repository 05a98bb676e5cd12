//! Associations as their ends make them, and what strangers send.

use super::*;
use Direction::{Original, Reply};
use FlowState::*;

const DATA: u8 = 0;
const HEARTBEAT: u8 = 4;
const COOKIE_ECHO: u8 = 10;

/// Tags of packets to the client and to the server.
const TO_CLIENT: u32 = 0xc11e_0001;
const TO_SERVER: u32 = 0x5e11_0002;

fn chunk(kind: u8, tag: u32) -> SctpChunk {
    SctpChunk { tag, kind, flags: 0, initiate_tag: None }
}

fn init() -> SctpChunk {
    SctpChunk { initiate_tag: Some(TO_CLIENT), ..chunk(INIT, 0) }
}

fn init_ack() -> SctpChunk {
    SctpChunk { initiate_tag: Some(TO_SERVER), ..chunk(INIT_ACK, TO_CLIENT) }
}

struct Association(Progress);

impl Association {
    fn established() -> Association {
        let mut association = Association(first(&init()).unwrap());
        assert_eq!(association.0.state, Opening);
        association.is(Original, init(), Opening);
        association.is(Reply, init_ack(), Answered);
        association.is(Original, chunk(COOKIE_ECHO, TO_SERVER), Answered);
        association.is(Reply, chunk(COOKIE_ACK, TO_CLIENT), Established);
        association
    }

    #[track_caller]
    fn is(&mut self, direction: Direction, chunk: SctpChunk, state: FlowState) {
        self.0 = after(self.0, direction, &chunk);
        assert_eq!(self.0.state, state);
    }
}

#[test]
fn an_association_is_opened_used_and_shut_down() {
    let mut association = Association::established();
    association.is(Original, chunk(DATA, TO_SERVER), Established);
    association.is(Original, init(), Established); // a restart is the ends' to agree on
    association.is(Reply, chunk(SHUTDOWN, TO_CLIENT), Closing);
    association.is(Original, chunk(SHUTDOWN_ACK, TO_SERVER), Closing);
    association.is(Reply, chunk(SHUTDOWN_COMPLETE, TO_CLIENT), TimeWait);
    association.is(Original, init(), Opening);
}

#[test]
fn who_does_not_know_the_tag_changes_nothing() {
    let mut association = Association(first(&init()).unwrap());
    let guessed = SctpChunk { tag: 7, ..init_ack() };
    association.is(Reply, guessed, Opening);
    association.is(Reply, init_ack(), Answered);
    association.is(Reply, chunk(COOKIE_ACK, 7), Answered);
    association.is(Reply, chunk(COOKIE_ACK, TO_CLIENT), Established);
    for kind in [ABORT, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE] {
        association.is(Original, chunk(kind, TO_CLIENT), Established);
        association.is(Reply, chunk(kind, TO_SERVER), Established);
    }
    association.is(Original, chunk(ABORT, TO_SERVER), Reset);
}

#[test]
fn an_abort_without_an_association_reflects_the_tag_that_it_answers() {
    let reflected = |tag| SctpChunk { flags: REFLECTED, ..chunk(ABORT, tag) };
    let mut association = Association::established();
    association.is(Reply, reflected(TO_CLIENT), Established);
    association.is(Reply, reflected(TO_SERVER), Reset);
    // The refusal of an INIT has the tag that the INIT gave (RFC 9260 §8.4).
    let mut association = Association(first(&init()).unwrap());
    association.is(Reply, chunk(ABORT, TO_CLIENT), Reset);
}

#[test]
fn what_is_seen_first_in_its_middle_needs_a_packet_of_each_side() {
    let mut association = Association(first(&chunk(HEARTBEAT, TO_SERVER)).unwrap());
    assert_eq!(association.0.state, PickedUp);
    association.is(Reply, chunk(ABORT, 7), PickedUp);
    association.is(Reply, chunk(DATA, TO_CLIENT), Established);
    association.is(Reply, chunk(ABORT, 7), Established);
    association.is(Reply, chunk(ABORT, TO_CLIENT), Reset);
}

#[test]
fn what_ends_or_answers_an_association_opens_none() {
    for kind in [INIT_ACK, COOKIE_ACK, ABORT, SHUTDOWN_ACK, SHUTDOWN_COMPLETE] {
        assert_eq!(first(&chunk(kind, 1)), None, "{kind}");
    }
}

#[test]
fn a_packet_is_read_with_the_tag_of_its_init_and_refused_when_it_is_cut_off() {
    let mut bytes = [0u8; 20];
    bytes[4..8].copy_from_slice(&7u32.to_be_bytes());
    bytes[12] = INIT;
    bytes[16..20].copy_from_slice(&9u32.to_be_bytes());
    let wanted = SctpChunk { tag: 7, kind: INIT, flags: 0, initiate_tag: Some(9) };
    assert_eq!(SctpChunk::read(&bytes), Some(wanted));
    assert_eq!(SctpChunk::read(&bytes[..19]), None);
    bytes[12] = DATA;
    assert_eq!(SctpChunk::read(&bytes[..16]), Some(chunk(DATA, 7)));
    assert_eq!(SctpChunk::read(&bytes[..15]), None);
}
