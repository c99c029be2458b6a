//! The frame around everything written or sent: `magic, kind, version, length, CRC32C`, then a
//! bincode body in the `legacy()` layout.
//!
//! A kind and version names one frozen struct; the header, never an enum's order, says which.

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// First four bytes of every envelope and log record: `EDGR`.
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"EDGR");
/// Bytes before the body.
pub(crate) const HEADER_BYTES: usize = 16;
/// Largest body.
pub(crate) const BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of the header that the checksum covers; the checksum itself follows them.
const SUMMED_HEADER_BYTES: usize = 12;

/// What an envelope or a log record holds. Numbers are never used twice.
pub(crate) mod kind {
    /// Log: head of a segment.
    pub(crate) const SEGMENT: u16 = 1;
    /// Log: a vote.
    pub(crate) const VOTE: u16 = 2;
    /// Log: an entry.
    pub(crate) const ENTRY: u16 = 3;
    /// Log: entries after an index are gone.
    pub(crate) const TRUNCATE: u16 = 4;
    /// Log: entries up to an index are gone.
    pub(crate) const PURGE: u16 = 5;
    /// Log: entries up to an index are committed.
    pub(crate) const COMMITTED: u16 = 6;
    /// Whose data folder this is.
    pub(crate) const IDENTITY: u16 = 16;
    /// A batch of transactions, as it stands in a log entry.
    pub(crate) const COMMAND: u16 = 17;
    /// State: applied index, membership, counters.
    pub(crate) const STATE_META: u16 = 18;
    /// Snapshot: first frame.
    pub(crate) const SNAPSHOT_HEAD: u16 = 32;
    /// Snapshot: rows.
    pub(crate) const SNAPSHOT_ROWS: u16 = 33;
    /// Snapshot: remembered requests.
    pub(crate) const SNAPSHOT_REQUESTS: u16 = 34;
    /// Snapshot: last frame.
    pub(crate) const SNAPSHOT_FOOT: u16 = 35;
    /// Peer: append entries, and the answer.
    pub(crate) const APPEND: u16 = 64;
    pub(crate) const APPEND_REPLY: u16 = 65;
    /// Peer: vote and pre-vote, and the answer to both.
    pub(crate) const VOTE_REQUEST: u16 = 66;
    pub(crate) const PRE_VOTE_REQUEST: u16 = 67;
    pub(crate) const VOTE_REPLY: u16 = 68;
    /// Peer: part of a snapshot, and the answer.
    pub(crate) const SNAPSHOT_PART: u16 = 69;
    pub(crate) const SNAPSHOT_PART_REPLY: u16 = 70;
    /// Peer: leadership goes to a voter, and the answer.
    pub(crate) const TRANSFER: u16 = 71;
    pub(crate) const TRANSFER_REPLY: u16 = 72;
    /// Peer: a transaction for the leader, and the answer.
    pub(crate) const FORWARD_TXN: u16 = 73;
    pub(crate) const FORWARD_TXN_REPLY: u16 = 74;
    /// Peer: which index must be applied before a consistent read, and the answer.
    pub(crate) const READ_INDEX: u16 = 75;
    pub(crate) const READ_INDEX_REPLY: u16 = 76;
    /// Peer: change of membership, and the answer.
    pub(crate) const ADMIN: u16 = 77;
    pub(crate) const ADMIN_REPLY: u16 = 78;
    /// Peer: the request was not served.
    pub(crate) const REFUSAL: u16 = 127;
}

/// A frozen struct with its number.
pub(crate) trait Message: Serialize + DeserializeOwned {
    /// One of [`kind`].
    const KIND: u16;
    /// Starts at 1; a changed struct is a new version.
    const VERSION: u16;
}

/// Why bytes are not the expected envelope.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnvelopeError {
    #[error("envelope is cut off at {0} bytes")]
    Short(usize),
    #[error("not an envelope: magic is {0:#010x}")]
    Magic(u32),
    #[error("body of {0} bytes is over the limit")]
    TooLarge(usize),
    #[error("{0} bytes after the envelope")]
    Trailing(usize),
    #[error("checksum does not match")]
    Checksum,
    #[error("kind {kind} version {version} is not known here")]
    Unknown { kind: u16, version: u16 },
    #[error("cannot encode: {0}")]
    Encode(#[from] bincode::error::EncodeError),
    #[error("cannot decode: {0}")]
    Decode(#[from] bincode::error::DecodeError),
}

/// Parsed header, checksum not yet verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u16,
    pub(crate) version: u16,
    pub(crate) length: u32,
    pub(crate) crc: u32,
}

impl Header {
    /// Reads the first [`HEADER_BYTES`] of `bytes`.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        let head: &[u8; HEADER_BYTES] =
            bytes.first_chunk().ok_or(EnvelopeError::Short(bytes.len()))?;
        let [m0, m1, m2, m3, k0, k1, v0, v1, l0, l1, l2, l3, c0, c1, c2, c3] = *head;
        let magic = u32::from_le_bytes([m0, m1, m2, m3]);
        if magic != MAGIC {
            return Err(EnvelopeError::Magic(magic));
        }
        Ok(Self {
            kind: u16::from_le_bytes([k0, k1]),
            version: u16::from_le_bytes([v0, v1]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
            crc: u32::from_le_bytes([c0, c1, c2, c3]),
        })
    }

    fn body_bytes(self) -> usize {
        usize::try_from(self.length).unwrap_or(usize::MAX)
    }
}

/// Appends the bincode body of `value` to `out`, at most [`BODY_BYTES_MAX`].
pub(crate) fn encode_body(value: impl Serialize, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
    let before = out.len();
    let config = bincode::config::legacy().with_limit::<BODY_BYTES_MAX>();
    bincode::serde::encode_into_std_write(value, out, config)?;
    let written = out.len().saturating_sub(before);
    if written > BODY_BYTES_MAX {
        out.truncate(before);
        return Err(EnvelopeError::TooLarge(written));
    }
    Ok(())
}

/// Reads a bincode body that fills `bytes` exactly.
pub(crate) fn decode_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, EnvelopeError> {
    let config = bincode::config::legacy().with_limit::<BODY_BYTES_MAX>();
    let (value, used) = bincode::serde::decode_from_slice(bytes, config)?;
    if used != bytes.len() {
        return Err(EnvelopeError::Trailing(bytes.len().saturating_sub(used)));
    }
    Ok(value)
}

/// One envelope with `message` in it.
pub(crate) fn encode<M: Message>(message: &M) -> Result<Bytes, EnvelopeError> {
    encode_as(M::KIND, M::VERSION, message)
}

/// One envelope of the given kind; for bodies that are a tuple around a [`Message`].
pub(crate) fn encode_as(
    kind: u16,
    version: u16,
    body: impl Serialize,
) -> Result<Bytes, EnvelopeError> {
    let mut out = vec![0; HEADER_BYTES];
    encode_body(body, &mut out)?;
    let length = u32::try_from(out.len().saturating_sub(HEADER_BYTES))
        .map_err(|_| EnvelopeError::TooLarge(out.len()))?;
    let mut head = [0; HEADER_BYTES];
    fill(&mut head, &[&MAGIC.to_le_bytes(), &kind.to_le_bytes(), &version.to_le_bytes()]);
    fill_at(&mut head, 8, &length.to_le_bytes());
    let crc = checksum(&head, out.get(HEADER_BYTES..).unwrap_or_default());
    fill_at(&mut head, SUMMED_HEADER_BYTES, &crc.to_le_bytes());
    fill_at(&mut out, 0, &head);
    Ok(out.into())
}

/// The message in `bytes`, which is exactly one envelope of its kind and version.
pub(crate) fn decode<M: Message>(bytes: &[u8]) -> Result<M, EnvelopeError> {
    decode_as(M::KIND, M::VERSION, bytes)
}

/// As [`decode`], for bodies that are a tuple around a [`Message`].
pub(crate) fn decode_as<T: DeserializeOwned>(
    kind: u16,
    version: u16,
    bytes: &[u8],
) -> Result<T, EnvelopeError> {
    let (header, body, rest) = split(bytes)?;
    if !rest.is_empty() {
        return Err(EnvelopeError::Trailing(rest.len()));
    }
    if (header.kind, header.version) != (kind, version) {
        return Err(EnvelopeError::Unknown { kind: header.kind, version: header.version });
    }
    decode_body(body)
}

/// Takes the first envelope off `bytes`: verified header, body, what follows.
pub(crate) fn split(bytes: &[u8]) -> Result<(Header, &[u8], &[u8]), EnvelopeError> {
    let header = Header::parse(bytes)?;
    let length = header.body_bytes();
    if length > BODY_BYTES_MAX {
        return Err(EnvelopeError::TooLarge(length));
    }
    let (head, rest) =
        bytes.split_at_checked(HEADER_BYTES).ok_or(EnvelopeError::Short(bytes.len()))?;
    let (body, rest) = rest.split_at_checked(length).ok_or(EnvelopeError::Short(bytes.len()))?;
    if checksum(head, body) != header.crc {
        return Err(EnvelopeError::Checksum);
    }
    Ok((header, body, rest))
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    let summed = head.get(..SUMMED_HEADER_BYTES).unwrap_or_default();
    crc32c::crc32c_append(crc32c::crc32c(summed), body)
}

/// Copies `parts` one after the other to the start of `out`, as far as they fit.
pub(crate) fn fill(out: &mut [u8], parts: &[&[u8]]) {
    let mut at = 0;
    for part in parts {
        fill_at(out, at, part);
        at += part.len();
    }
}

/// Copies `part` to `out[at..]`, when it fits.
pub(crate) fn fill_at(out: &mut [u8], at: usize, part: &[u8]) {
    if let Some(place) = out.get_mut(at..at.saturating_add(part.len())) {
        place.copy_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        text: String,
        bytes: Bytes,
        maybe: Option<u32>,
    }

    impl Message for Sample {
        const KIND: u16 = 0x0102;
        const VERSION: u16 = 3;
    }

    fn sample() -> Sample {
        Sample { number: 7, text: "hi".into(), bytes: Bytes::from_static(b"xyz"), maybe: Some(9) }
    }

    #[test]
    fn the_layout_is_frozen() {
        let golden = concat!(
            "45444752", // magic
            "0201",     // kind
            "0300",     // version
            "22000000", // length
            "9dfc7cd1", // checksum
            "0700000000000000",
            "02000000000000006869",
            "030000000000000078797a",
            "0109000000",
        );
        let bytes = encode(&sample()).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden);
    }

    #[test]
    fn what_was_encoded_decodes() {
        assert_eq!(decode::<Sample>(&encode(&sample()).unwrap()).unwrap(), sample());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        let mut bytes = encode(&sample()).unwrap().to_vec();
        bytes.push(0);
        assert!(matches!(decode::<Sample>(&bytes), Err(EnvelopeError::Trailing(1))));
        let mut body = Vec::new();
        encode_body(sample(), &mut body).unwrap();
        body.push(1);
        assert!(matches!(decode_body::<Sample>(&body), Err(EnvelopeError::Trailing(1))));
    }

    #[test]
    fn another_version_is_refused() {
        let bytes = encode_as(Sample::KIND, 4, sample()).unwrap();
        assert!(matches!(
            decode::<Sample>(&bytes),
            Err(EnvelopeError::Unknown { kind: 0x0102, version: 4 })
        ));
    }

    proptest! {
        #[test]
        fn any_flipped_bit_is_noticed(at in 0_usize..50, bit in 0_u8..8) {
            let mut bytes = encode(&sample()).unwrap().to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(decode::<Sample>(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode::<Sample>(&bytes);
            let _ = decode_body::<Sample>(&bytes);
        }
    }
}
