//! Between an API server and an agent: one session on one HTTP exchange, frames in both bodies.
//!
//! ```text
//! version (1 byte, once at the start of each body), then frames:
//! kind (1 byte)   length (4 bytes, big endian)   payload
//! ```

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

/// First byte of each body. Another one is another layout.
pub(crate) const VERSION: u8 = 1;
/// Longest payload, in bytes.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 256 * 1024;
/// Bytes before a payload.
const HEAD_BYTES: usize = 5;

/// One message of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// To the node: input of the command.
    Stdin(Bytes),
    /// To the node: the input has ended.
    CloseStdin,
    /// To the node: the client's terminal changed; the client's own JSON.
    Resize(Bytes),
    /// From the node: output of the command.
    Stdout(Bytes),
    /// From the node: its standard error.
    Stderr(Bytes),
    /// From the node, the last one: the command ended with this code.
    Exit(i32),
    /// From the node, the last one: there is no exit code, for this reason.
    Failed(String),
}

/// The other end does not speak this protocol: end the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// A version this side does not know: the nodes run different releases.
    #[error("unknown version {0} of the session's frames")]
    Version(u8),
    /// A kind this side does not know.
    #[error("unknown kind {0} of frame")]
    Kind(u8),
    /// More than [`PAYLOAD_BYTES_MAX`], or not what the kind needs.
    #[error("a frame of kind {kind} cannot have {bytes} bytes")]
    Length { kind: u8, bytes: usize },
}

/// What each body begins with.
pub(crate) fn preface() -> Bytes {
    Bytes::from_static(&[VERSION])
}

impl Frame {
    /// The frame on the wire. Payloads longer than [`PAYLOAD_BYTES_MAX`] are the caller's mistake
    /// and will be refused at the other end.
    pub(crate) fn encode(&self) -> Bytes {
        let code;
        let (kind, payload): (u8, &[u8]) = match self {
            Self::Stdin(bytes) => (0, bytes),
            Self::Stdout(bytes) => (1, bytes),
            Self::Stderr(bytes) => (2, bytes),
            Self::Exit(exit) => {
                code = exit.to_be_bytes();
                (3, &code)
            }
            Self::Resize(bytes) => (4, bytes),
            Self::CloseStdin => (5, &[]),
            Self::Failed(text) => (6, text.as_bytes()),
        };
        let mut wire = BytesMut::with_capacity(HEAD_BYTES + payload.len());
        wire.put_u8(kind);
        wire.put_u32(u32::try_from(payload.len()).unwrap_or(u32::MAX));
        wire.put_slice(payload);
        wire.freeze()
    }

    fn read(kind: u8, payload: Bytes) -> Result<Self, FrameError> {
        let length = FrameError::Length { kind, bytes: payload.len() };
        Ok(match kind {
            0 => Self::Stdin(payload),
            1 => Self::Stdout(payload),
            2 => Self::Stderr(payload),
            3 => Self::Exit(i32::from_be_bytes(payload.as_ref().try_into().map_err(|_| length)?)),
            4 => Self::Resize(payload),
            5 if payload.is_empty() => Self::CloseStdin,
            5 => return Err(length),
            6 => Self::Failed(String::from_utf8_lossy(&payload).into_owned()),
            other => return Err(FrameError::Kind(other)),
        })
    }
}

/// Cuts a body into frames.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    has_version: bool,
    buffer: BytesMut,
}

impl Decoder {
    /// Adds what arrived.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame; `None` needs more bytes.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if !self.has_version {
            let Some(version) = self.buffer.first().copied() else { return Ok(None) };
            if version != VERSION {
                return Err(FrameError::Version(version));
            }
            self.buffer.advance(1);
            self.has_version = true;
        }
        let Some(&[kind, a, b, c, d]) = self.buffer.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let bytes = usize::try_from(u32::from_be_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        if bytes > PAYLOAD_BYTES_MAX {
            return Err(FrameError::Length { kind, bytes });
        }
        if self.buffer.len() < HEAD_BYTES + bytes {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        Frame::read(kind, self.buffer.split_to(bytes).freeze()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all() -> Vec<Frame> {
        vec![
            Frame::Stdin(Bytes::from_static(b"in")),
            Frame::CloseStdin,
            Frame::Resize(Bytes::from_static(b"{}")),
            Frame::Stdout(Bytes::new()),
            Frame::Stderr(Bytes::from_static(b"\0")),
            Frame::Exit(-1),
            Frame::Failed("no".to_owned()),
        ]
    }

    #[test]
    fn frames_are_read_back_however_they_are_cut() {
        let mut wire = preface().to_vec();
        all().iter().for_each(|frame| wire.extend_from_slice(&frame.encode()));
        for size in 1..wire.len() {
            let (mut decoder, mut read) = (Decoder::default(), Vec::new());
            for piece in wire.chunks(size) {
                decoder.push(piece);
                while let Some(frame) = decoder.next().unwrap() {
                    read.push(frame);
                }
            }
            assert_eq!(read, all());
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_before_its_body_is_awaited() {
        let refused = |wire: &[u8]| {
            let mut decoder = Decoder::default();
            decoder.push(wire);
            decoder.next().unwrap_err()
        };
        assert_eq!(refused(&[2]), FrameError::Version(2));
        assert_eq!(refused(&[1, 9, 0, 0, 0, 0]), FrameError::Kind(9));
        let huge = FrameError::Length { kind: 0, bytes: 0x0100_0000 };
        assert_eq!(refused(&[1, 0, 1, 0, 0, 0]), huge);
        assert_eq!(refused(&[1, 3, 0, 0, 0, 1, 7]), FrameError::Length { kind: 3, bytes: 1 });
        assert_eq!(refused(&[1, 5, 0, 0, 0, 1, 7]), FrameError::Length { kind: 5, bytes: 1 });
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(wire in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut decoder = Decoder::default();
            decoder.push(&wire);
            while let Ok(Some(_)) = decoder.next() {}
        }
    }
}
