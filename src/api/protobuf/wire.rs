//! The parts of a message: numbers with bytes or integers.

use prost::encoding::{WireType, decode_key, decode_varint};

use crate::api::protobuf::{ProtobufError, malformed};

/// What stands under a number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Part<'a> {
    Varint(u64),
    Fixed,
    Bytes(&'a [u8]),
}

/// Reads part after part; after an error there is nothing more.
pub(super) fn parts(
    bytes: &[u8],
) -> impl Iterator<Item = Result<(u32, Part<'_>), ProtobufError>> + '_ {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let part = part(&mut rest);
        if part.is_err() {
            rest = &[];
        }
        Some(part)
    })
}

fn part<'a>(rest: &mut &'a [u8]) -> Result<(u32, Part<'a>), ProtobufError> {
    let wrong = |cause: prost::DecodeError| malformed(format!("malformed protobuf: {cause}"));
    let (number, wire) = decode_key(rest).map_err(wrong)?;
    let part = match wire {
        WireType::Varint => Part::Varint(decode_varint(rest).map_err(wrong)?),
        WireType::LengthDelimited => {
            let length = decode_varint(rest).map_err(wrong)?;
            Part::Bytes(take(rest, usize::try_from(length).unwrap_or(usize::MAX))?)
        }
        WireType::SixtyFourBit => take(rest, 8).map(|_| Part::Fixed)?,
        WireType::ThirtyTwoBit => take(rest, 4).map(|_| Part::Fixed)?,
        WireType::StartGroup | WireType::EndGroup => {
            return Err(malformed(format!("malformed protobuf: field {number} is a group")));
        }
    };
    Ok((number, part))
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8], ProtobufError> {
    let (taken, after) = rest
        .split_at_checked(length)
        .ok_or_else(|| malformed("malformed protobuf: unexpected end of the message"))?;
    *rest = after;
    Ok(taken)
}

/// Integers one after the other, as a packed list holds them.
pub(super) fn packed(mut bytes: &[u8]) -> Result<Vec<u64>, ProtobufError> {
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        let wrong = |cause: prost::DecodeError| malformed(format!("malformed protobuf: {cause}"));
        numbers.push(decode_varint(&mut bytes).map_err(wrong)?);
    }
    Ok(numbers)
}

/// Bytes as text.
pub(super) fn text(bytes: &[u8]) -> Result<String, ProtobufError> {
    let text = std::str::from_utf8(bytes);
    text.map(str::to_owned).map_err(|_| malformed("malformed protobuf: a string is not UTF-8"))
}
