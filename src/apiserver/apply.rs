//! Server-side apply: `PATCH` with `application/apply-patch+yaml`.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::api::FieldError;
use crate::api::apply::{self, ApplyError, Writer};
use crate::api::status::Status;
use crate::api::strategy;
use crate::apiserver::error::{self, ApiError};
use crate::apiserver::negotiate::Shape;
use crate::apiserver::router::Call;
use crate::apiserver::update::{self, Part};
use crate::apiserver::{body, create, managed_fields, response};

/// The media type.
pub(super) const MEDIA_TYPE: &str = "application/apply-patch+yaml";
/// How often an object that is made or deleted meanwhile is tried anew.
const RETRIES_MAX: usize = 5;
/// How Kubernetes names the query in errors.
const OPTIONS: &str = "PatchOptions";

/// Makes the object, or the part of it, what the manager says of it.
pub(super) async fn respond(
    call: Call,
    request_body: Body,
    part: Part,
) -> Result<Response<Body>, ApiError> {
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let validation = call.query.field_validation()?;
    if call.query.get("fieldManager").is_none() {
        let error = FieldError::required("fieldManager", "is required for apply patch");
        return Err(Status::invalid_options(OPTIONS, &error).into());
    }
    managed_fields::check(&call, OPTIONS)?;
    let bytes = body::read(request_body).await?;
    // JSON is YAML, and told of fields that stand in it twice.
    let parsed = body::json(&bytes).or_else(|_| body::parse("application/yaml", &bytes))?;
    let mut applied = parsed.value;
    check(&call, &applied)?;
    let mut warnings =
        body::check(call.info.resource, &mut applied, &parsed.duplicates, validation)?;
    body::check_place(&mut applied, call.info.namespace.as_deref(), call.info.name.as_deref())?;
    warnings.extend(strategy::warnings(call.info.resource, &applied));
    let (code, object) = write(&call, part, &applied).await?;
    warnings.extend(call.take_warnings());
    let now = call.context.clock.now();
    let mut answer = shape.respond(code, call.info.resource, &object, now);
    response::warn(&mut answer, &warnings);
    Ok(answer)
}

/// An applied object says what it is, and nothing of managers.
fn check(call: &Call, applied: &Value) -> Result<(), ApiError> {
    let refused = |text: String| Err(Status::bad_request(text).into());
    if !applied.is_object() {
        return refused("the applied configuration must be an object".to_owned());
    }
    for key in ["apiVersion", "kind"] {
        if applied.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
            return refused(format!(
                "error decoding the applied configuration of {}: {key} must be set",
                call.info.resource.qualified()
            ));
        }
    }
    if applied.pointer("/metadata/managedFields").is_some_and(|list| !list.is_null()) {
        return refused("metadata.managedFields must be nil".to_owned());
    }
    Ok(())
}

async fn write(call: &Call, part: Part, applied: &Value) -> Result<(StatusCode, Value), ApiError> {
    let resource = call.info.resource;
    let now = call.context.clock.now_rfc3339();
    let manager = managed_fields::manager(call);
    let subresource = call.info.subresource.as_deref().unwrap_or_default();
    let writer = Writer { manager: &manager, subresource, now: &now };
    let is_forced = call.query.get("force").is_some_and(|force| matches!(force, "true" | "1"));
    let expected = error::sent_revision(applied)?;
    let with = |stored: Option<&Value>| {
        apply::apply(resource, stored, applied, &writer, is_forced).map_err(|cause| match cause {
            ApplyError::Malformed(text) => ApiError::from(Status::bad_request(text)),
            ApplyError::Conflicts(ref conflicts) => {
                Status::apply_conflict(cause.to_string(), conflicts).into()
            }
        })
    };
    let mut tries = 0;
    loop {
        tries += 1;
        match update::modify(call, part, expected, |stored| with(Some(stored))).await {
            Err(missing) if missing.0.code == 404 && part == Part::Main && expected.is_none() => {}
            other => return Ok((StatusCode::OK, other?)),
        }
        let is_dry_run = call.query.is_dry_run()?;
        match create::create(call, with(None)?, is_dry_run).await {
            // Made by somebody meanwhile: then it is a change of that.
            Err(there)
                if there.0.reason == crate::api::status::Reason::AlreadyExists
                    && tries < RETRIES_MAX => {}
            other => return Ok((StatusCode::CREATED, other?)),
        }
    }
}

/// Whether this request is an apply.
pub(super) fn is_apply(call: &Call) -> bool {
    body::media_type(&call.headers) == MEDIA_TYPE
}
