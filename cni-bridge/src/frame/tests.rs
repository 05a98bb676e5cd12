//! Tests of the codec: against every way of cutting a stream into pieces, and against a real socket
//! for the descriptor.

use std::fs::File;
use std::io::{IoSlice, Read, Write};
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::*;
use crate::protocol::{Call, Listing, Request};

fn request(version: u32) -> Request {
    Request { version, call: Call::List(Listing::Pods) }
}

#[test]
fn a_frame_is_a_big_endian_length_and_that_many_bytes_of_json() {
    let bytes = encode(&"ab").unwrap();
    assert_eq!(bytes, b"\x00\x00\x00\x04\"ab\"");
}

#[test]
fn a_message_longer_than_a_frame_is_refused_and_one_that_just_fits_is_not() {
    // Two bytes are quotation marks.
    let fits = "x".repeat(FRAME_BYTES_MAX - 2);
    assert_eq!(encode(&fits).unwrap().len(), LENGTH_BYTES + FRAME_BYTES_MAX);
    let error = encode(&format!("{fits}x")).unwrap_err();
    assert!(matches!(error, FrameError::TooLong { bytes } if bytes == FRAME_BYTES_MAX + 1));
}

#[test]
fn a_length_above_the_limit_is_refused_before_its_frame_arrives() {
    let mut decoder = Decoder::default();
    let length = u32::try_from(FRAME_BYTES_MAX).unwrap() + 1;
    decoder.push(&length.to_be_bytes());
    assert!(matches!(decoder.decode::<Request>(), Err(FrameError::TooLong { .. })));

    let mut decoder = Decoder::default();
    decoder.push(&(length - 1).to_be_bytes());
    assert!(decoder.decode::<Request>().unwrap().is_none(), "the longest frame is waited for");
    assert!(!decoder.is_empty());
}

#[test]
fn a_frame_of_other_json_is_malformed() {
    let mut decoder = Decoder::default();
    decoder.push(&encode(&"no request").unwrap());
    assert!(matches!(decoder.decode::<Request>(), Err(FrameError::Malformed(_))));
}

#[test]
fn a_descriptor_beside_the_first_byte_is_received_with_it() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"found").unwrap();
    let file = File::open(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file)));
    let file = file.unwrap();
    let descriptors = [file.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
    sendmsg(&ours, &[IoSlice::new(b"abc")], &mut control, SendFlags::empty()).unwrap();

    let mut buffer = [0; 8];
    let received = receive(&theirs, &mut buffer).unwrap();
    assert_eq!(&buffer[..received.bytes], b"abc");
    let mut text = String::new();
    File::from(received.descriptor.unwrap()).read_to_string(&mut text).unwrap();
    assert_eq!(text, "found");

    drop(ours);
    let received = receive(&theirs, &mut buffer).unwrap();
    assert_eq!(received.bytes, 0, "the peer closed");
    assert!(received.descriptor.is_none());
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_the_stream_is_cut(
        versions in prop::collection::vec(any::<u32>(), 0..8),
        cuts in prop::collection::vec(1usize..40, 1..64),
    ) {
        let stream: Vec<u8> =
            versions.iter().flat_map(|version| encode(&request(*version)).unwrap()).collect();
        let mut decoder = Decoder::default();
        let mut rest = stream.as_slice();
        let mut found = Vec::new();
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, after) = rest.split_at((*cut).min(rest.len()));
            decoder.push(piece);
            while let Some(request) = decoder.decode::<Request>().unwrap() {
                found.push(request.version);
            }
            rest = after;
        }
        prop_assert_eq!(found, versions);
        prop_assert!(decoder.is_empty());
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let mut decoder = Decoder::default();
        decoder.push(&bytes);
        let _ = decoder.decode::<Request>();
    }
}
