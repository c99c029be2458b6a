//! `v4.channel.k8s.io` and `v5.channel.k8s.io`: the first byte of each WebSocket message names the
//! stream that the rest belongs to. Version 5 adds a message that ends one stream.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::streaming::frame::Frame;

/// Name of version 5 in `Sec-WebSocket-Protocol`.
pub(crate) const V5: &str = "v5.channel.k8s.io";
/// Name of version 4.
pub(crate) const V4: &str = "v4.channel.k8s.io";

const STDIN: u8 = 0;
/// Number of standard output.
pub(crate) const STDOUT: u8 = 1;
/// Number of standard error.
pub(crate) const STDERR: u8 = 2;
/// Number of the stream that carries the final `Status`.
pub(crate) const ERROR: u8 = 3;
const RESIZE: u8 = 4;
/// In version 5: the second byte names a stream that has ended.
const CLOSE: u8 = 255;

/// The client broke the protocol: end the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChannelError {
    /// The message does not even name its stream.
    #[error("an empty message")]
    Empty,
    /// The stream is not one that a client sends on.
    #[error("a message for the stream {0}")]
    Stream(u8),
}

/// What a client's message means to the command; `None` is nothing (an empty write, as clients
/// send to keep a connection alive).
pub(crate) fn read(message: &Bytes, is_v5: bool) -> Result<Option<Frame>, ChannelError> {
    let Some((stream, payload)) = message.split_first() else { return Err(ChannelError::Empty) };
    let rest = message.slice(1..);
    match *stream {
        STDIN | RESIZE if rest.is_empty() => Ok(None),
        STDIN => Ok(Some(Frame::Stdin(rest))),
        RESIZE => Ok(Some(Frame::Resize(rest))),
        CLOSE if is_v5 && payload == [STDIN] => Ok(Some(Frame::CloseStdin)),
        other => Err(ChannelError::Stream(other)),
    }
}

/// A message for the client.
pub(crate) fn write(stream: u8, payload: &[u8]) -> Bytes {
    let mut message = BytesMut::with_capacity(1 + payload.len());
    message.put_u8(stream);
    message.put_slice(payload);
    message.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_stream() {
        let read = |bytes: &'static [u8], is_v5| read(&Bytes::from_static(bytes), is_v5);
        let stdin = Frame::Stdin(Bytes::from_static(b"ab"));
        assert_eq!(read(b"\0ab", false), Ok(Some(stdin)));
        assert_eq!(read(b"\0", false), Ok(None));
        let resize = Frame::Resize(Bytes::from_static(b"{}"));
        assert_eq!(read(b"\x04{}", true), Ok(Some(resize)));
        assert_eq!(read(b"\xff\0", true), Ok(Some(Frame::CloseStdin)));
        assert_eq!(write(STDERR, b"no"), Bytes::from_static(b"\x02no"));
    }

    #[test]
    fn what_clients_do_not_send_is_refused() {
        let read = |bytes: &'static [u8], is_v5| read(&Bytes::from_static(bytes), is_v5);
        assert_eq!(read(b"", true), Err(ChannelError::Empty));
        assert_eq!(read(b"\x01x", true), Err(ChannelError::Stream(1)));
        assert_eq!(read(b"\xff\0", false), Err(ChannelError::Stream(255)));
        assert_eq!(read(b"\xff\x01", true), Err(ChannelError::Stream(255)));
        assert_eq!(read(b"\xff", true), Err(ChannelError::Stream(255)));
    }
}
