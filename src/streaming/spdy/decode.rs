//! From bytes to frames.

use std::collections::BTreeMap;

use bytes::{Buf as _, Bytes, BytesMut};

use super::headers::Unpacker;
use super::{
    CONTROL_BYTES_MAX, DATA_BYTES_MAX, FIN, GOAWAY, HEAD_BYTES, HEADERS, PING, RST_STREAM,
    SETTINGS, SYN_REPLY, SYN_STREAM, SpdyError, VERSION, WINDOW_UPDATE,
};

/// Pairs of a header block; names in lower case.
pub(crate) type Headers = BTreeMap<String, String>;

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// Opens a stream.
    SynStream { stream: u32, is_last: bool, headers: Headers },
    /// Bytes of a stream; `is_last` ends this direction of it.
    Data { stream: u32, is_last: bool, bytes: Bytes },
    /// Gives a stream up.
    Reset { stream: u32 },
    /// To be sent back.
    Ping { id: u32 },
    /// The client opens no more streams.
    GoAway,
    /// One that asks for nothing: settings, window updates, answers.
    Other,
}

/// Cuts a connection's bytes into frames.
#[derive(Debug)]
pub(crate) struct Decoder {
    buffer: BytesMut,
    headers: Unpacker,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { buffer: BytesMut::new(), headers: Unpacker::new() }
    }
}

impl Decoder {
    /// Where to put what arrives.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// The next whole frame; `None` needs more bytes.
    pub(crate) fn next(&mut self) -> Result<Option<Frame>, SpdyError> {
        let Some(&[a, b, c, d, flags, e, f, g]) = self.buffer.first_chunk::<HEAD_BYTES>() else {
            return Ok(None);
        };
        let first = u32::from_be_bytes([a, b, c, d]);
        let bytes = usize::try_from(u32::from_be_bytes([0, e, f, g])).unwrap_or(usize::MAX);
        let is_control = a & 0x80 != 0;
        if bytes > if is_control { CONTROL_BYTES_MAX } else { DATA_BYTES_MAX } {
            return Err(SpdyError::TooLong(bytes));
        }
        if self.buffer.len() < HEAD_BYTES + bytes {
            return Ok(None);
        }
        self.buffer.advance(HEAD_BYTES);
        let payload = self.buffer.split_to(bytes).freeze();
        let is_last = flags & FIN != 0;
        if !is_control {
            return Ok(Some(Frame::Data { stream: not_zero(first)?, is_last, bytes: payload }));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        if version != VERSION {
            return Err(SpdyError::Version(version));
        }
        self.control(u16::from_be_bytes([c, d]), is_last, payload).map(Some)
    }

    fn control(
        &mut self,
        kind: u16,
        is_last: bool,
        mut payload: Bytes,
    ) -> Result<Frame, SpdyError> {
        let malformed = SpdyError::Malformed(kind);
        let mut word = || payload.try_get_u32().map_err(|_| malformed);
        match kind {
            SYN_STREAM => {
                let stream = not_zero(word()? & 0x7fff_ffff)?;
                let _associated = word()?;
                let _priority_and_slot = payload.try_get_u16().map_err(|_| malformed)?;
                let headers = self.headers.unpack(&payload)?;
                Ok(Frame::SynStream { stream, is_last, headers })
            }
            SYN_REPLY | HEADERS => {
                not_zero(word()? & 0x7fff_ffff)?;
                // Read for the sake of the blocks after it.
                self.headers.unpack(&payload)?;
                Ok(Frame::Other)
            }
            RST_STREAM => Ok(Frame::Reset { stream: not_zero(word()? & 0x7fff_ffff)? }),
            PING => Ok(Frame::Ping { id: word()? }),
            GOAWAY => Ok(Frame::GoAway),
            SETTINGS | WINDOW_UPDATE => Ok(Frame::Other),
            // A receiver ignores control frames it does not know.
            _ => Ok(Frame::Other),
        }
    }
}

fn not_zero(stream: u32) -> Result<u32, SpdyError> {
    if stream == 0 { Err(SpdyError::StreamZero) } else { Ok(stream) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(wire: &[u8]) -> Result<Option<Frame>, SpdyError> {
        let mut decoder = Decoder::default();
        decoder.buffer().extend_from_slice(wire);
        decoder.next()
    }

    #[test]
    fn frames_are_read_once_they_are_whole() {
        let wire = [0, 0, 0, 5, 1, 0, 0, 2, b'h', b'i'];
        for end in 0..wire.len() {
            assert_eq!(read(&wire[..end]), Ok(None), "{end}");
        }
        let bytes = Bytes::from_static(b"hi");
        assert_eq!(read(&wire), Ok(Some(Frame::Data { stream: 5, is_last: true, bytes })));
        assert_eq!(read(&[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]), Ok(Some(Frame::Ping { id: 9 })));
        assert_eq!(
            read(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 5]),
            Ok(Some(Frame::Reset { stream: 7 }))
        );
        assert_eq!(read(&[0x80, 3, 0, 9, 0, 0, 0, 0]), Ok(Some(Frame::Other)));
    }

    #[test]
    fn a_stream_is_opened_with_its_headers() {
        let mut wire = vec![0x80, 3, 0, 1, 0];
        let mut payload = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2];
        payload.extend_from_slice(&[0x00, 27, 0, !27, 0xff]);
        payload.extend_from_slice(b"\0\0\0\x01\0\0\0\x0astreamtype\0\0\0\x05error");
        payload.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        wire.extend_from_slice(&[0, 0, u8::try_from(payload.len()).unwrap()]);
        wire.extend_from_slice(&payload);
        let headers = Headers::from([("streamtype".to_owned(), "error".to_owned())]);
        assert_eq!(read(&wire), Ok(Some(Frame::SynStream { stream: 1, is_last: false, headers })));
    }

    #[test]
    fn malformed_frames_are_refused() {
        assert_eq!(read(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Err(SpdyError::Version(2)));
        assert_eq!(read(&[0, 0, 0, 0, 0, 0, 0, 0]), Err(SpdyError::StreamZero));
        assert_eq!(read(&[0x80, 3, 0, 6, 0, 0, 0, 0]), Err(SpdyError::Malformed(PING)));
        assert_eq!(read(&[0, 0, 0, 1, 0, 0xff, 0, 0]), Err(SpdyError::TooLong(0xff_0000)));
        assert_eq!(read(&[0x80, 3, 0, 1, 0, 1, 0, 0]), Err(SpdyError::TooLong(0x1_0000)));
        let no_headers = [0x80, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(&no_headers), Err(SpdyError::Headers));
    }

    proptest! {
        #[test]
        fn any_bytes_are_frames_or_an_error(wire in proptest::collection::vec(any::<u8>(), 0..128)) {
            let mut decoder = Decoder::default();
            decoder.buffer().extend_from_slice(&wire);
            while let Ok(Some(_)) = decoder.next() {}
        }

        #[test]
        fn any_header_block_is_read_or_an_error(block in proptest::collection::vec(any::<u8>(), 0..256)) {
            let length = u16::try_from(12 + block.len()).unwrap().to_be_bytes();
            let head = [0x80, 3, 0, 1, 0, 0, length[0], length[1], 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x78, 1];
            let _ = read(&[&head[..], &block].concat());
        }
    }
}
