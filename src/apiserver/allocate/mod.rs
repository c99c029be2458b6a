//! Service addresses and node ports: chosen here, unique by keys written in the same transaction as
//! the Service.
//!
//! Data in: a Service as it is about to be written, and as it was. Data out: the Service with what
//! it left open chosen, and the keys that it claims and releases.
//!
//! # Invariants
//!
//! - An address or port belongs to at most one Service: its key must be absent for a claim to be
//!   committed, whichever server commits it.
//! - Nothing leaks: a key is written and removed only together with the Service that holds it.

mod addresses;
mod ports;
mod source;

use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{FieldError, Resource, meta};
use crate::apiserver::error::ApiError;
use crate::store::Side;

pub(super) use source::Source;

/// How often a choice is repeated when it was taken meanwhile.
pub(super) const TRIES_MAX: usize = 64;

/// Chooses what `service` leaves open and returns the keys that make it unique. `old` is the
/// Service as stored; what it already holds is kept, what it no longer holds is released.
pub(super) fn claims(
    source: &Source<'_>,
    resource: &Resource,
    old: Option<&Value>,
    service: &mut Value,
) -> Result<Vec<Side>, ApiError> {
    if !is_service(resource) {
        return Ok(Vec::new());
    }
    let before = old.map(held).unwrap_or_default();
    let chosen = addresses::choose(source, &before, service)
        .and_then(|()| ports::choose(source, &before, service));
    if let Err(refused) = chosen {
        return Err(match refused {
            Refused::Field(error) => {
                Status::invalid(resource, meta::name(service), &[*error]).into()
            }
            Refused::Full(what) => {
                Status::internal(format!("failed to allocate a {what}: range is full")).into()
            }
        });
    }
    let after = held(service);
    let claims = after.iter().filter(|name| !before.contains(name)).cloned().map(Side::Claim);
    let releases = before.iter().filter(|name| !after.contains(name)).cloned().map(Side::Release);
    Ok(claims.chain(releases).collect())
}

/// Why nothing could be chosen.
#[derive(Debug)]
enum Refused {
    /// The client asks for what cannot be.
    Field(Box<FieldError>),
    /// All of this kind are taken.
    Full(&'static str),
}

impl From<FieldError> for Refused {
    fn from(error: FieldError) -> Self {
        Self::Field(Box::new(error))
    }
}

/// The keys a deleted Service gives back.
pub(super) fn releases(resource: &Resource, object: &Value) -> Vec<Side> {
    held_by(resource, object).into_iter().map(Side::Release).collect()
}

/// What an object holds as the client wrote it, before the server chose the rest.
pub(super) fn held_by(resource: &Resource, object: &Value) -> Vec<String> {
    if is_service(resource) { held(object) } else { Vec::new() }
}

/// Why a write failed for good: the address or port that the client itself chose is `taken`.
/// `None` when it is not among what the client `chose`: the server may choose another.
pub(super) fn refuse(
    resource: &Resource,
    object: &Value,
    chose: &[String],
    taken: &str,
) -> Option<ApiError> {
    if !chose.iter().any(|chosen| chosen == taken) {
        return None;
    }
    let (kind, value) = taken.rsplit_once('/')?;
    let error = if kind == CLUSTER_IP {
        let detail = format!("failed to allocate IP {value}: provided IP is already allocated");
        let all = object.pointer("/spec/clusterIPs").cloned().unwrap_or_else(|| json!([value]));
        FieldError::invalid("spec.clusterIPs", &all, &detail)
    } else {
        let number = value.parse::<u64>().ok()?;
        FieldError::invalid(
            ports::path_of(object, number),
            &json!(number),
            "provided port is already allocated",
        )
    };
    Some(Status::invalid(resource, meta::name(object), &[error]).into())
}

fn is_service(resource: &Resource) -> bool {
    resource.plural == "services" && resource.group.is_empty()
}

/// Prefix of the keys of addresses.
const CLUSTER_IP: &str = "clusterip";

/// The key of an address.
fn address_key(address: impl std::fmt::Display) -> String {
    format!("{CLUSTER_IP}/{address}")
}

/// The key of a node port.
fn port_key(protocol: &str, port: u64) -> String {
    format!("{}-nodeport/{port}", protocol.to_lowercase())
}

/// Names of everything unique that the Service holds.
fn held(service: &Value) -> Vec<String> {
    let mut names: Vec<String> = addresses::of(service)
        .into_iter()
        .filter_map(|text| text.parse::<std::net::IpAddr>().ok())
        .map(address_key)
        .collect();
    names.extend(ports::held(service));
    names.sort();
    names.dedup();
    names
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
#[path = "allocate_test.rs"]
mod tests;
