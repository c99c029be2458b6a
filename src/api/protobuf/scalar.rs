//! Values that are one thing in JSON: scalars, and messages with a text of their own.

use base64::Engine as _;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::protobuf::wire::{self, Part};
use crate::api::protobuf::{ProtobufError, malformed};
use crate::api::schema::Type;

/// The value of a field that is no message with fields. `None`: it says that it is not set.
pub(super) fn value(kind: Type, part: Part<'_>) -> Result<Option<Value>, ProtobufError> {
    Ok(match (kind, part) {
        (Type::Whole, Part::Varint(number)) => Some(whole(number)),
        (Type::Flag, Part::Varint(number)) => Some(json!(number != 0)),
        (Type::Text, Part::Bytes(bytes)) => Some(json!(wire::text(bytes)?)),
        (Type::Bytes, Part::Bytes(bytes)) => {
            Some(json!(base64::engine::general_purpose::STANDARD.encode(bytes)))
        }
        (Type::Quantity, Part::Bytes(bytes)) => Some(quantity(bytes)?),
        (Type::IntOrString, Part::Bytes(bytes)) => Some(int_or_string(bytes)?),
        (Type::Time | Type::MicroTime, Part::Bytes([])) => None,
        (Type::Time, Part::Bytes(bytes)) => Some(json!(time(bytes)?.0.to_string())),
        (Type::MicroTime, Part::Bytes(bytes)) => {
            let (at, micros) = time(bytes)?;
            Some(json!(format!("{}.{micros:06}Z", at.strftime("%Y-%m-%dT%H:%M:%S"))))
        }
        (Type::Raw, Part::Bytes(bytes)) => raw(bytes)?,
        (Type::Texts, Part::Bytes(bytes)) => Some(texts(bytes)?),
        _ => return Err(malformed("malformed protobuf: a field has the wrong wire type")),
    })
}

/// What a field's type is when an entry of a map leaves its value out.
pub(super) fn zero(kind: Type) -> Value {
    match kind {
        Type::Whole | Type::IntOrString => json!(0),
        Type::Flag => json!(false),
        Type::Text | Type::Bytes => json!(""),
        Type::Quantity => json!("0"),
        Type::Time | Type::MicroTime | Type::Raw => Value::Null,
        Type::Texts => json!([]),
        Type::Message(_) => json!({}),
    }
}

/// Negative numbers are sent as the ten bytes of their two's complement.
pub(super) fn whole(number: u64) -> Value {
    json!(i64::from_ne_bytes(number.to_ne_bytes()))
}

fn quantity(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut text = String::new();
    for part in wire::parts(bytes) {
        if let (1, Part::Bytes(bytes)) = part? {
            text = wire::text(bytes)?;
        }
    }
    Ok(if text.is_empty() { json!("0") } else { json!(text) })
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, json!(0), String::new());
    for part in wire::parts(bytes) {
        match part? {
            (1, Part::Varint(kind)) => is_text = kind == 1,
            (2, Part::Varint(value)) => number = whole(value),
            (3, Part::Bytes(bytes)) => text = wire::text(bytes)?,
            _ => {}
        }
    }
    Ok(if is_text { json!(text) } else { number })
}

/// The second, and the microseconds after it.
fn time(bytes: &[u8]) -> Result<(Timestamp, u32), ProtobufError> {
    let (mut seconds, mut nanos) = (0, 0);
    for part in wire::parts(bytes) {
        match part? {
            (1, Part::Varint(value)) => seconds = i64::from_ne_bytes(value.to_ne_bytes()),
            (2, Part::Varint(value)) => nanos = u32::try_from(value).unwrap_or(u32::MAX),
            _ => {}
        }
    }
    let at = Timestamp::from_second(seconds).ok().filter(|_| nanos < 1_000_000_000);
    let at = at.ok_or_else(|| malformed(format!("no such time: {seconds} s, {nanos} ns")))?;
    Ok((at, nanos / 1_000))
}

/// JSON in a message of its own; nothing is not set.
fn raw(bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    let mut raw: &[u8] = &[];
    for part in wire::parts(bytes) {
        if let (1, Part::Bytes(bytes)) = part? {
            raw = bytes;
        }
    }
    if raw.is_empty() {
        return Ok(None);
    }
    let decoded = crate::api::decode::parse_json(raw);
    let wrong = |cause| malformed(format!("a field holds JSON that cannot be parsed: {cause}"));
    Ok(Some(decoded.map_err(wrong)?.value))
}

fn texts(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let mut texts = Vec::new();
    for part in wire::parts(bytes) {
        if let (1, Part::Bytes(bytes)) = part? {
            texts.push(json!(wire::text(bytes)?));
        }
    }
    Ok(Value::Array(texts))
}
