//! Frames: what edgeorc sends itself outside HTTP. `magic, kind, version, length, CRC32C, body`.
//!
//! | bytes | field |
//! |---|---|
//! | 4 | `EORC` |
//! | 2 | kind: what the body is, see [`Kind`] |
//! | 2 | version of the body's layout |
//! | 4 | length of the body |
//! | 4 | CRC32C of kind, version, length and body |
//!
//! All numbers are big endian. Bodies are bincode in its `legacy` layout; a released struct is
//! frozen, a change is a new version.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"EORC";
/// Bytes before the body.
pub const HEADER_BYTES: usize = 16;
/// No body of any kind is longer.
pub const FRAME_BYTES_MAX: u32 = 8 * 1024 * 1024;

/// What the body of a frame is, and how long it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kind {
    id: u16,
    body_bytes_max: u32,
}

impl Kind {
    /// A Raft request of a server to a server.
    pub const RAFT_REQUEST: Self = Self::new(1, FRAME_BYTES_MAX);
    /// Its answer.
    pub const RAFT_RESPONSE: Self = Self::new(2, FRAME_BYTES_MAX);
    /// A new node asks for its certificate.
    pub const JOIN_REQUEST: Self = Self::new(16, 64 * 1024);
    /// The certificate, or the reason why not.
    pub const JOIN_RESPONSE: Self = Self::new(17, 256 * 1024);
    /// Head of a mesh stream: what it carries and to which pod.
    pub const MESH_OPEN: Self = Self::new(32, 256);
    /// Whether the pod was reached.
    pub const MESH_OPENED: Self = Self::new(33, 256);

    /// A kind with its number on the wire and its limit, at most [`FRAME_BYTES_MAX`].
    #[must_use]
    pub const fn new(id: u16, body_bytes_max: u32) -> Self {
        let max = if body_bytes_max > FRAME_BYTES_MAX { FRAME_BYTES_MAX } else { body_bytes_max };
        Self { id, body_bytes_max: max }
    }

    /// Number on the wire.
    #[must_use]
    pub const fn id(self) -> u16 {
        self.id
    }

    /// Longest body.
    #[must_use]
    pub const fn body_bytes_max(self) -> u32 {
        self.body_bytes_max
    }
}

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the body is.
    pub kind: Kind,
    /// Version of its layout.
    pub version: u16,
    /// The body.
    pub body: Bytes,
}

/// Why a frame was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream ended or broke. Whether the peer acted is unknown.
    #[error("stream broke: {0}")]
    Io(#[from] std::io::Error),
    /// The peer speaks something else. Give the stream up.
    #[error("not a frame of ours")]
    Magic,
    /// A kind that is not expected here. Give the stream up.
    #[error("frame kind {got} is not expected here")]
    Kind {
        /// As read.
        got: u16,
    },
    /// Longer than its kind may be; the body was not read. Give up.
    #[error("frame of {got} bytes is over the limit of {max}")]
    TooLong {
        /// As read or given.
        got: u64,
        /// Of this kind.
        max: u32,
    },
    /// Damaged on the way. Give the stream up.
    #[error("frame checksum does not match")]
    Checksum,
    /// The body is not what its kind and version say, or cannot be written. Give up.
    #[error("cannot {action} a frame body: {reason}")]
    Body {
        /// `read` or `write`.
        action: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// One frame as bytes.
///
/// # Errors
///
/// [`FrameError::TooLong`].
pub fn encode(kind: Kind, version: u16, body: &[u8]) -> Result<BytesMut, FrameError> {
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if length > kind.body_bytes_max {
        return Err(FrameError::TooLong { got: body.len() as u64, max: kind.body_bytes_max });
    }
    let mut out = BytesMut::with_capacity(HEADER_BYTES + body.len());
    out.put_slice(&MAGIC);
    out.put_u16(kind.id);
    out.put_u16(version);
    out.put_u32(length);
    out.put_u32(checksum(kind.id, version, length, body));
    out.put_slice(body);
    Ok(out)
}

/// Reads one frame of one of `kinds`. The length is judged before the body is read.
///
/// # Errors
///
/// See [`FrameError`].
///
/// # Cancel safety
///
/// Not cancel safe: the stream is of no use after a cancelled read.
pub async fn read_frame(
    io: &mut (impl AsyncRead + Unpin),
    kinds: &[Kind],
) -> Result<Frame, FrameError> {
    let mut header = [0; HEADER_BYTES];
    io.read_exact(&mut header).await?;
    let header = Header::parse(&header, kinds)?;
    let mut body = BytesMut::zeroed(header.len());
    io.read_exact(&mut body).await?;
    header.check(body.freeze())
}

/// Writes one frame and flushes.
///
/// # Errors
///
/// See [`FrameError`].
///
/// # Cancel safety
///
/// Not cancel safe: the stream is of no use after a cancelled write.
pub async fn write_frame(
    io: &mut (impl AsyncWrite + Unpin),
    kind: Kind,
    version: u16,
    body: &[u8],
) -> Result<(), FrameError> {
    let bytes = encode(kind, version, body)?;
    io.write_all(&bytes).await?;
    io.flush().await?;
    Ok(())
}

/// The body of a frame for `value`.
///
/// # Errors
///
/// [`FrameError::Body`].
pub fn to_body(value: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    bincode::serde::encode_to_vec(value, bincode::config::legacy())
        .map_err(|err| FrameError::Body { action: "write", reason: err.to_string() })
}

/// The value in a frame's body; bytes left over are an error.
///
/// # Errors
///
/// [`FrameError::Body`].
pub fn from_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, FrameError> {
    const LIMIT: usize = FRAME_BYTES_MAX as usize;
    let malformed = |reason: String| FrameError::Body { action: "read", reason };
    let config = bincode::config::legacy().with_limit::<LIMIT>();
    let (value, used) = bincode::serde::decode_from_slice(body, config)
        .map_err(|err| malformed(err.to_string()))?;
    if used != body.len() {
        return Err(malformed(format!("{} bytes left over", body.len().saturating_sub(used))));
    }
    Ok(value)
}

struct Header {
    kind: Kind,
    version: u16,
    length: u32,
    checksum: u32,
}

impl Header {
    fn parse(mut bytes: &[u8], kinds: &[Kind]) -> Result<Self, FrameError> {
        if bytes.len() < HEADER_BYTES || !bytes.starts_with(&MAGIC) {
            return Err(FrameError::Magic);
        }
        bytes.advance(MAGIC.len());
        let (id, version) = (bytes.get_u16(), bytes.get_u16());
        let (length, checksum) = (bytes.get_u32(), bytes.get_u32());
        let kind = kinds.iter().copied().find(|kind| kind.id == id);
        let kind = kind.ok_or(FrameError::Kind { got: id })?;
        if length > kind.body_bytes_max {
            return Err(FrameError::TooLong { got: length.into(), max: kind.body_bytes_max });
        }
        Ok(Self { kind, version, length, checksum })
    }

    fn len(&self) -> usize {
        self.length as usize
    }

    fn check(self, body: Bytes) -> Result<Frame, FrameError> {
        if checksum(self.kind.id, self.version, self.length, &body) != self.checksum {
            return Err(FrameError::Checksum);
        }
        Ok(Frame { kind: self.kind, version: self.version, body })
    }
}

fn checksum(kind: u16, version: u16, length: u32, body: &[u8]) -> u32 {
    let mut head = [0_u8; 8];
    let mut rest = head.as_mut_slice();
    rest.put_u16(kind);
    rest.put_u16(version);
    rest.put_u32(length);
    crc32c::crc32c_append(crc32c::crc32c(&head), body)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 2] = [Kind::new(7, 100), Kind::new(8, 5000)];

    proptest! {
        #[test]
        fn what_was_encoded_is_read(
            which in 0_usize..2, version: u16, body in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut bytes = encode(KINDS[which], version, &body).unwrap();
            bytes.extend_from_slice(b"next");
            let mut rest = &bytes[..];
            let frame = read(&mut rest).unwrap();
            prop_assert_eq!(frame.kind, KINDS[which]);
            prop_assert_eq!(frame.version, version);
            prop_assert_eq!(&frame.body[..], &body[..]);
            prop_assert_eq!(rest, b"next");
        }

        #[test]
        fn any_bytes_give_a_frame_or_an_error_and_never_a_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200), with_magic: bool,
        ) {
            let mut input = Vec::new();
            if with_magic {
                input.extend_from_slice(&MAGIC);
                input.extend_from_slice(&[0, 7]);
            }
            input.extend_from_slice(&bytes);
            let _ = read(&mut &input[..]);
        }

        #[test]
        fn a_flipped_bit_is_found(at in 0_usize..56, bit in 0_u8..8) {
            let mut bytes = encode(KINDS[0], 1, &[5; 40]).unwrap();
            bytes[at] ^= 1 << bit;
            prop_assert!(read(&mut &bytes[..]).is_err());
        }

        #[test]
        fn a_frame_cut_short_is_an_error_of_the_stream(cut in 0_usize..56) {
            let whole = encode(KINDS[0], 1, &[5; 40]).unwrap();
            prop_assert!(matches!(read(&mut &whole[..cut]), Err(FrameError::Io(_))));
        }
    }

    /// Bytes in memory are there at once.
    fn read(bytes: &mut &[u8]) -> Result<Frame, FrameError> {
        read_frame(bytes, &KINDS).now_or_never().unwrap()
    }

    #[tokio::test]
    async fn a_long_frame_is_refused_before_its_body_is_read() {
        let mut bytes = BytesMut::from(&MAGIC[..]);
        bytes.put_u16(7);
        bytes.put_u16(1);
        bytes.put_u32(101);
        bytes.put_u32(0);
        let err = read_frame(&mut &bytes[..], &KINDS).await.unwrap_err();
        assert!(matches!(err, FrameError::TooLong { got: 101, max: 100 }));
        assert!(encode(KINDS[0], 1, &[0; 101]).is_err());
    }
}
