//! Objects as Kubernetes' own clients send them: `application/vnd.kubernetes.protobuf`.
//!
//! Data in: four bytes of magic and a `runtime.Unknown`, which says what kind it carries. Data out:
//! the same object as JSON, as Kubernetes' own decoder and encoder would make it. Which field has
//! which number stands in [`crate::api::schema`].
//!
//! # Invariants
//!
//! - No bytes make it panic, and none make it build more than [`VALUES_MAX`] values or nest deeper
//!   than [`DEPTH_MAX`].
//! - Fields with unknown numbers are skipped, as Kubernetes does.

use serde_json::{Map, Value, json};

use crate::api::decode::DEPTH_MAX;
use crate::api::schema::{SCHEMA, Schema};

mod object;
mod scalar;
mod wire;

/// The media type.
pub const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Values that one body may hold. A value of two bytes takes forty times that in memory.
pub const VALUES_MAX: usize = 1 << 18;
/// What a body begins with.
const MAGIC: &[u8] = b"k8s\0";
/// A kind that every group version has.
const DELETE_OPTIONS: &str = "DeleteOptions";

/// Why a body is no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The bytes are not what they should be: answer 400.
    #[error("{0}")]
    Malformed(String),
    /// The kind is not sent this way: answer 415.
    #[error("{kind} in version {api_version:?} has no protobuf encoding here")]
    NoSuchKind {
        /// As the body says it.
        api_version: String,
        /// As the body says it.
        kind: String,
    },
}

fn malformed(text: impl Into<String>) -> ProtobufError {
    ProtobufError::Malformed(text.into())
}

/// The object in `body`.
///
/// # Errors
///
/// See [`ProtobufError`].
pub fn to_json(body: &[u8]) -> Result<Value, ProtobufError> {
    let unknown = body.strip_prefix(MAGIC).ok_or_else(|| {
        malformed(
            "provided data does not appear to be a protobuf message, expected prefix 6b 38 73 00",
        )
    })?;
    let unknown = Unknown::read(unknown)?;
    if !unknown.encoding.is_empty() {
        return Err(malformed(format!("unknown content encoding {:?}", unknown.encoding)));
    }
    if !matches!(unknown.media_type.as_str(), "" | MEDIA_TYPE) {
        return Err(malformed(format!("unknown content type {:?}", unknown.media_type)));
    }
    let no_such_kind = || ProtobufError::NoSuchKind {
        api_version: unknown.api_version.clone(),
        kind: unknown.kind.clone(),
    };
    let message = kind(&SCHEMA, &unknown.api_version, &unknown.kind).ok_or_else(no_such_kind)?;
    let mut object = Map::new();
    if !unknown.api_version.is_empty() {
        object.insert("apiVersion".to_owned(), json!(unknown.api_version));
    }
    if !unknown.kind.is_empty() {
        object.insert("kind".to_owned(), json!(unknown.kind));
    }
    object::Decoder::new(&SCHEMA).message(message, unknown.raw, 0, &mut object)?;
    Ok(Value::Object(object))
}

fn kind(schema: &Schema, api_version: &str, kind: &str) -> Option<usize> {
    let api_version = if kind == DELETE_OPTIONS { "meta.k8s.io/v1" } else { api_version };
    let message = schema.kind(api_version, kind)?;
    // Only kinds have metadata, a spec or options; their fields have numbers when they are sent so.
    schema.message(message)?.fields.first().is_some_and(|field| field.number > 0).then_some(message)
}

/// The envelope.
#[derive(Default)]
struct Unknown<'a> {
    api_version: String,
    kind: String,
    raw: &'a [u8],
    encoding: String,
    media_type: String,
}

impl<'a> Unknown<'a> {
    fn read(bytes: &'a [u8]) -> Result<Self, ProtobufError> {
        let mut unknown = Self::default();
        for part in wire::parts(bytes) {
            match part? {
                (1, wire::Part::Bytes(meta)) => {
                    for part in wire::parts(meta) {
                        match part? {
                            (1, wire::Part::Bytes(text)) => {
                                unknown.api_version = wire::text(text)?;
                            }
                            (2, wire::Part::Bytes(text)) => unknown.kind = wire::text(text)?,
                            _ => {}
                        }
                    }
                }
                (2, wire::Part::Bytes(raw)) => unknown.raw = raw,
                (3, wire::Part::Bytes(text)) => unknown.encoding = wire::text(text)?,
                (4, wire::Part::Bytes(text)) => unknown.media_type = wire::text(text)?,
                _ => {}
            }
        }
        Ok(unknown)
    }
}

#[cfg(test)]
mod protobuf_test;
