//! One record of the log: header, payload, padding to whole sectors.
//!
//! ```text
//!  0 magic   4 kind 6 version   8 length   12 crc   16 crc of the record before
//! 20 zero   24 number   32 first number of the batch   40 index   48 term   56 payload
//! ```

use crate::envelope::{MAGIC, fill, fill_at};

/// Sector: records start at multiples of it, and a power cut tears no smaller unit.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Bytes before the payload.
pub(crate) const RECORD_HEADER_BYTES: usize = 56;
/// Largest payload.
pub(crate) const PAYLOAD_BYTES_MAX: usize = crate::envelope::BODY_BYTES_MAX;
const CRC_AT: usize = 12;
const AFTER_CRC_AT: usize = 16;

/// What stands before a payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) kind: u16,
    pub(crate) version: u16,
    pub(crate) length: u32,
    pub(crate) crc: u32,
    pub(crate) prev_crc: u32,
    /// Number of this record since the log began.
    pub(crate) number: u64,
    /// Number of the first record of its batch; all before it were durable.
    pub(crate) batch: u64,
    pub(crate) index: u64,
    pub(crate) term: u64,
}

impl RecordHeader {
    /// Bytes of the whole record on disk.
    pub(crate) fn padded_bytes(&self) -> usize {
        padded(usize::try_from(self.length).unwrap_or(usize::MAX))
    }

    fn bytes(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0; RECORD_HEADER_BYTES];
        fill(
            &mut out,
            &[
                &MAGIC.to_le_bytes(),
                &self.kind.to_le_bytes(),
                &self.version.to_le_bytes(),
                &self.length.to_le_bytes(),
                &self.crc.to_le_bytes(),
                &self.prev_crc.to_le_bytes(),
                &[0; 4],
                &self.number.to_le_bytes(),
                &self.batch.to_le_bytes(),
                &self.index.to_le_bytes(),
                &self.term.to_le_bytes(),
            ],
        );
        out
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let u16_at = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let u32_at = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let u64_at = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if u32_at(0)? != MAGIC || u32_at(20)? != 0 {
            return None;
        }
        let header = Self {
            kind: u16_at(4)?,
            version: u16_at(6)?,
            length: u32_at(8)?,
            crc: u32_at(CRC_AT)?,
            prev_crc: u32_at(AFTER_CRC_AT)?,
            number: u64_at(24)?,
            batch: u64_at(32)?,
            index: u64_at(40)?,
            term: u64_at(48)?,
        };
        (usize::try_from(header.length).ok()? <= PAYLOAD_BYTES_MAX).then_some(header)
    }
}

/// Bytes on disk of a record with `payload` bytes.
pub(crate) fn padded(payload: usize) -> usize {
    payload.saturating_add(RECORD_HEADER_BYTES).div_ceil(SECTOR_BYTES).saturating_mul(SECTOR_BYTES)
}

/// Appends a record to `out`; `write_payload` appends its payload. Returns the finished header.
///
/// `salt` is the log's own, so that a payload cannot hold what looks like a record.
pub(crate) fn append<E>(
    out: &mut Vec<u8>,
    salt: u32,
    mut header: RecordHeader,
    write_payload: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<RecordHeader, E> {
    let start = out.len();
    out.resize(start.saturating_add(RECORD_HEADER_BYTES), 0);
    write_payload(out)?;
    let length = out.len().saturating_sub(start).saturating_sub(RECORD_HEADER_BYTES);
    header.length = u32::try_from(length).unwrap_or(u32::MAX);
    header.crc = 0;
    let payload_at = start.saturating_add(RECORD_HEADER_BYTES);
    header.crc = checksum(salt, &header.bytes(), out.get(payload_at..).unwrap_or_default());
    fill_at(out, start, &header.bytes());
    out.resize(start.saturating_add(padded(length)), 0);
    Ok(header)
}

/// The record at the start of `bytes`, when it is whole and its checksum holds.
pub(crate) fn read(salt: u32, bytes: &[u8]) -> Option<(RecordHeader, &[u8])> {
    let header = RecordHeader::parse(bytes)?;
    let length = usize::try_from(header.length).ok()?;
    let payload = bytes.get(RECORD_HEADER_BYTES..RECORD_HEADER_BYTES.saturating_add(length))?;
    let head = bytes.get(..RECORD_HEADER_BYTES)?;
    (checksum(salt, head, payload) == header.crc).then_some((header, payload))
}

fn checksum(salt: u32, head: &[u8], payload: &[u8]) -> u32 {
    let before = head.get(..CRC_AT).unwrap_or_default();
    let after = head.get(AFTER_CRC_AT..).unwrap_or_default();
    let crc = crc32c::crc32c_append(crc32c::crc32c(&salt.to_le_bytes()), before);
    crc32c::crc32c_append(crc32c::crc32c_append(crc, after), payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn sample() -> (Vec<u8>, RecordHeader) {
        let header = RecordHeader {
            kind: 3,
            version: 1,
            length: 0,
            crc: 0,
            prev_crc: 0x0102_0304,
            number: 9,
            batch: 8,
            index: 7,
            term: 6,
        };
        let mut out = Vec::new();
        let written = append(&mut out, 5, header, |out| {
            out.extend_from_slice(b"payload");
            Ok::<_, Infallible>(())
        })
        .unwrap();
        (out, written)
    }

    #[test]
    fn the_layout_is_frozen() {
        let (bytes, header) = sample();
        assert_eq!(bytes.len(), SECTOR_BYTES);
        let hex: String = bytes[..63].iter().map(|b| format!("{b:02x}")).collect();
        let golden = concat!(
            "45444752030001000700000014bedebd0403020100000000",
            "0900000000000000080000000000000007000000000000000600000000000000",
            "7061796c6f6164"
        );
        assert_eq!(hex, golden);
        assert!(bytes[63..].iter().all(|b| *b == 0));
        assert_eq!(read(5, &bytes), Some((header, &b"payload"[..])));
    }

    #[test]
    fn any_flipped_bit_and_another_salt_are_noticed() {
        let (bytes, _) = sample();
        assert!(read(6, &bytes).is_none());
        for bit in 0..63 * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(read(5, &bytes).is_none(), "bit {bit}");
        }
    }
}
