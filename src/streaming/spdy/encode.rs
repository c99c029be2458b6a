//! From answers to bytes.

use bytes::{BufMut as _, Bytes, BytesMut};

use super::headers::pack_empty;
use super::{FIN, HEAD_BYTES, PING, RST_STREAM, SYN_REPLY, VERSION};

/// `REFUSED_STREAM`: nothing was done for it.
const REFUSED: u32 = 3;

/// Makes the frames of one connection.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    has_begun: bool,
}

impl Encoder {
    /// Accepts a stream. Replies must be sent in the order they are made.
    pub(crate) fn reply(&mut self, stream: u32) -> Bytes {
        let block = pack_empty(!std::mem::replace(&mut self.has_begun, true));
        let mut payload = BytesMut::with_capacity(4 + block.len());
        payload.put_u32(stream);
        payload.put_slice(&block);
        control(SYN_REPLY, &payload)
    }

    /// Bytes of a stream; `is_last` ends this direction of it.
    pub(crate) fn data(stream: u32, is_last: bool, bytes: &[u8]) -> Bytes {
        let mut frame = BytesMut::with_capacity(HEAD_BYTES + bytes.len());
        frame.put_u32(stream);
        frame.put_u8(if is_last { FIN } else { 0 });
        frame.put_uint(u64::try_from(bytes.len()).unwrap_or(u64::MAX), 3);
        frame.put_slice(bytes);
        frame.freeze()
    }

    /// Refuses a stream.
    pub(crate) fn refuse(stream: u32) -> Bytes {
        let mut payload = BytesMut::with_capacity(8);
        payload.put_u32(stream);
        payload.put_u32(REFUSED);
        control(RST_STREAM, &payload)
    }

    /// Answers a ping.
    pub(crate) fn ping(id: u32) -> Bytes {
        control(PING, &id.to_be_bytes())
    }
}

fn control(kind: u16, payload: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(HEAD_BYTES + payload.len());
    frame.put_u16(0x8000 | VERSION);
    frame.put_u16(kind);
    frame.put_u8(0);
    frame.put_uint(u64::try_from(payload.len()).unwrap_or(u64::MAX), 3);
    frame.put_slice(payload);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::streaming::spdy::{Decoder, Frame};

    #[test]
    fn what_is_written_is_read() {
        let mut encoder = Encoder::default();
        let mut decoder = Decoder::default();
        let frames = [
            encoder.reply(1),
            encoder.reply(3),
            Encoder::data(3, true, b"x"),
            Encoder::ping(7),
            Encoder::refuse(5),
        ];
        frames.iter().for_each(|frame| decoder.buffer().extend_from_slice(frame));
        let mut read = Vec::new();
        while let Some(frame) = decoder.next().unwrap() {
            read.push(frame);
        }
        let data = Frame::Data { stream: 3, is_last: true, bytes: Bytes::from_static(b"x") };
        let (ping, reset) = (Frame::Ping { id: 7 }, Frame::Reset { stream: 5 });
        assert_eq!(read, [Frame::Other, Frame::Other, data, ping, reset]);
    }
}
