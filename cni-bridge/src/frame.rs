//! The codec of the protocol: a 4-byte big-endian length, then that many bytes of JSON.
//!
//! It owns no socket, so that the daemon's non-blocking loop and the blocking client share it. A
//! length above [`FRAME_BYTES_MAX`] is refused before a byte of its frame is kept.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};
use serde::{Serialize, de::DeserializeOwned};

use crate::protocol::FRAME_BYTES_MAX;

/// Bytes of the length before a frame.
const LENGTH_BYTES: usize = 4;

/// Why a frame could not be made or read. The connection is of no use afterwards. Who owns the
/// connection knows the peer, and adds what to do.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than the protocol allows.
    #[error("a message of {bytes} bytes is longer than {FRAME_BYTES_MAX}")]
    TooLong {
        /// Length in bytes that was announced or is needed.
        bytes: usize,
    },
    /// The frame is not the JSON that was expected.
    #[error("a message is not what this release knows: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Writes `message` as one frame.
///
/// # Errors
/// [`FrameError::TooLong`] when it does not fit in a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = vec![0; LENGTH_BYTES];
    serde_json::to_writer(&mut bytes, message)?;
    let body = bytes.len() - LENGTH_BYTES;
    if body > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong { bytes: body });
    }
    let length = u32::try_from(body).expect("FRAME_BYTES_MAX fits in 32 bits");
    bytes[..LENGTH_BYTES].copy_from_slice(&length.to_be_bytes());
    Ok(bytes)
}

/// Puts frames together from whatever pieces a socket gives.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes received and not yet given out; begins at the start of a frame.
    buffer: Vec<u8>,
}

impl Decoder {
    /// Takes the bytes that were received. Call [`Decoder::decode`] afterwards until it gives
    /// `None`: then the decoder never holds more than one frame and one piece.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the connection may close here: no part of a frame is waiting for its rest.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next whole frame as a `T`, or `None` until more bytes have come.
    ///
    /// # Errors
    /// [`FrameError`] when the peer announces too long a frame or sends a malformed one.
    pub fn decode<T: DeserializeOwned>(&mut self) -> Result<Option<T>, FrameError> {
        let Some((length, rest)) = self.buffer.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(FrameError::TooLong { bytes: length });
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let message = serde_json::from_slice(body)?;
        self.buffer.drain(..LENGTH_BYTES + length);
        Ok(Some(message))
    }
}

/// What one receive gave.
#[derive(Debug)]
pub struct Received {
    /// Bytes received; 0 means that the peer has closed.
    pub bytes: usize,
    /// The descriptor that came beside them (`SCM_RIGHTS`), to be closed on exec.
    pub descriptor: Option<OwnedFd>,
}

/// Receives into `buffer`, with the descriptor that may come beside the bytes. Of several
/// descriptors one is kept and the rest are closed. Works on blocking and non-blocking sockets.
///
/// # Errors
/// Those of recvmsg(2), among them `WouldBlock`; `InvalidData` when descriptors were cut off.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut pieces = [IoSliceMut::new(buffer)];
    let message = recvmsg(socket, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptor = None;
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = part {
            descriptor = descriptors.into_iter().next().or(descriptor);
        }
    }
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "more than one descriptor came beside a request, or none could be opened",
        ));
    }
    Ok(Received { bytes: message.bytes, descriptor })
}

#[cfg(test)]
mod tests;
