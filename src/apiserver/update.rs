//! update and patch, of objects and of their subresources.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::api::patch::{self, PatchError};
use crate::api::status::{OBJECT_MODIFIED, Status};
use crate::api::{Resource, ephemeral, meta, schema, strategy};
use crate::apiserver::error::{self, ApiError};
use crate::apiserver::negotiate::Shape;
use crate::apiserver::router::Call;
use crate::apiserver::{
    admission, allocate, apply, body, image_policy, managed_fields, priority, quota, resize,
    response, versions,
};
use crate::store::{Freshness, Key, StoreError, check_fits};

/// How often a change that named no version is applied anew after a conflict; Kubernetes' figure.
const RETRIES_MAX: usize = 5;
/// What patches may be.
const PATCH_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    apply::MEDIA_TYPE,
];

/// Which part of an object a write may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// All but status.
    Main,
    /// Only status.
    Status,
    /// Only the ephemeral containers of a pod.
    EphemeralContainers,
    /// As the server itself decides; taken as it is.
    Internal,
}

/// Replaces an object.
pub(super) async fn put(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    replace(call, request_body, Part::Main).await
}

/// Replaces a part of an object by what the body holds.
pub(super) async fn replace(
    call: Call,
    request_body: Body,
    part: Part,
) -> Result<Response<Body>, ApiError> {
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let validation = call.query.field_validation()?;
    managed_fields::check(&call, "UpdateOptions")?;
    let bytes = body::read(request_body).await?;
    let parsed = body::parse(body::media_type(&call.headers), &bytes)?;
    let mut sent = parsed.value;
    let warnings = body::check(call.info.resource, &mut sent, &parsed.duplicates, validation)?;
    body::check_place(&mut sent, call.info.namespace.as_deref(), call.info.name.as_deref())?;
    let expected = error::sent_revision(&sent)?;
    let mut had = 0;
    let updated = modify(&call, part, expected, |current| {
        had = meta::generation(current);
        Ok(sent.clone())
    })
    .await?;
    Ok(answer(&call, &shape, (had, &updated), &warnings))
}

/// Patches an object.
pub(super) async fn patch(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    patch_part(call, request_body, Part::Main).await
}

/// Patches a part of an object.
pub(super) async fn patch_part(
    call: Call,
    request_body: Body,
    part: Part,
) -> Result<Response<Body>, ApiError> {
    if apply::is_apply(&call) {
        return apply::respond(call, request_body, part).await;
    }
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let validation = call.query.field_validation()?;
    let media = body::media_type(&call.headers).to_owned();
    check_patch_type(&media)?;
    managed_fields::check(&call, "PatchOptions")?;
    let bytes = body::read(request_body).await?;
    let sent = body::json(&bytes)?.value;
    let expected = error::sent_revision(&sent)?;
    let resource = call.info.resource;
    let (mut warnings, mut had) = (Vec::new(), 0);
    let updated = modify(&call, part, expected, |current| {
        let mut patched = versions::patched(call.alias, current, |shown| {
            patched(resource, &media, shown, &sent)
        })?;
        had = meta::generation(current);
        warnings = body::check_change(resource, current, &mut patched, validation)?;
        Ok(patched)
    })
    .await?;
    Ok(answer(&call, &shape, (had, &updated), &warnings))
}

/// The object as it is now, with what is to be said of it if its generation is no longer the one it had.
fn answer(
    call: &Call,
    shape: &Shape,
    (had, object): (i64, &Value),
    warnings: &[String],
) -> Response<Body> {
    let (resource, now) = (call.info.resource, call.context.clock.now());
    let mut answer = shape.respond(StatusCode::OK, resource, object, now);
    response::warn(&mut answer, warnings);
    if meta::generation(object) != had {
        response::warn(&mut answer, &strategy::warnings(resource, object));
    }
    response::warn(&mut answer, &call.take_warnings());
    answer
}

/// Refuses patch types that are not served.
pub(super) fn check_patch_type(media: &str) -> Result<(), ApiError> {
    if PATCH_TYPES.contains(&media) && media != apply::MEDIA_TYPE {
        return Ok(());
    }
    Err(Status::unsupported_media_type(PATCH_TYPES).into())
}

/// `current` with the patch applied.
pub(super) fn patched(
    resource: &Resource,
    media: &str,
    current: &Value,
    patch: &Value,
) -> Result<Value, ApiError> {
    let mut object = current.clone();
    let applied = match media {
        "application/json-patch+json" => patch::json(&mut object, patch),
        "application/merge-patch+json" => patch::merge(&mut object, patch),
        _ => patch::strategic(resource, &mut object, patch),
    };
    applied.map_err(|cause| match cause {
        PatchError::Malformed(text) => ApiError::from(Status::bad_request(text)),
        PatchError::TooLarge(text) => Status::entity_too_large(text).into(),
        PatchError::DoesNotApply(text) => Status::unprocessable(text).into(),
    })?;
    Ok(object)
}

/// Reads the object, lets `change` make the new one, and writes it with the version read.
///
/// With `expected`, the object must have that version; without, conflicts are retried, unless the
/// new object names a version itself.
pub(super) async fn modify(
    call: &Call,
    part: Part,
    expected: Option<u64>,
    mut change: impl FnMut(&Value) -> Result<Value, ApiError>,
) -> Result<Value, ApiError> {
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    let edit = Edit { call, key, part, expected, is_dry_run: call.query.is_dry_run()? };
    let mut source = allocate::Source::new(&call.context.rng, &call.context.service_cidrs);
    // The write is checked against the version read, so a copy that is behind can do no harm:
    // only what leads to no write must be seen in the newest state.
    if !edit.is_dry_run {
        match edit.attempt(Freshness::Any, &source, &mut change).await {
            Ok(Attempt::Written(object)) => return Ok(object),
            Ok(Attempt::Failed(error)) => return Err(error),
            Ok(Attempt::Unchanged(_) | Attempt::Conflict(_) | Attempt::Taken(_)) | Err(_) => {}
        }
    }
    let (mut conflicts, mut refusals) = (0, 0);
    loop {
        match edit.attempt(Freshness::Latest, &source, &mut change).await? {
            Attempt::Written(object) | Attempt::Unchanged(object) => return Ok(object),
            Attempt::Failed(error) => return Err(error),
            Attempt::Conflict(error) => {
                conflicts += 1;
                if expected.is_some() || conflicts >= RETRIES_MAX {
                    return Err(error);
                }
            }
            Attempt::Taken(key) => {
                refusals += 1;
                if key.starts_with(quota::CHARGE) && refusals < allocate::TRIES_MAX {
                    continue;
                }
                if refusals >= allocate::TRIES_MAX {
                    return Err(Status::internal("no free address or port was found").into());
                }
                source.learn(key, &call.context.store).await?;
            }
        }
    }
}

/// A change of one object.
struct Edit<'a> {
    call: &'a Call,
    key: Key,
    part: Part,
    expected: Option<u64>,
    is_dry_run: bool,
}

/// What became of one attempt.
enum Attempt {
    /// The object as stored now.
    Written(Value),
    /// Nothing was to be written: a dry run, or no difference.
    Unchanged(Value),
    /// Written since it was read.
    Conflict(ApiError),
    /// What the server chose was taken meanwhile: the key of it.
    Taken(String),
    /// The write failed for good; it may have happened, so it is never made again.
    Failed(ApiError),
}

impl Edit<'_> {
    /// One attempt; an error says that it did not come to a write.
    async fn attempt(
        &self,
        freshness: Freshness,
        source: &allocate::Source<'_>,
        change: &mut impl FnMut(&Value) -> Result<Value, ApiError>,
    ) -> Result<Attempt, ApiError> {
        let (key, store) = (&self.key, &self.call.context.store);
        let found = store.get(key, freshness).await;
        let mut current = found
            .map_err(|error| ApiError::store(error, key))?
            .ok_or_else(|| Status::not_found(key.resource, &key.name))?;
        // Older versions stored quantities as they were sent; what is none stays.
        let _ = schema::canonicalize(key.resource, &mut current.object);
        if self.expected.is_some_and(|expected| expected != current.revision) {
            return Err(Status::conflict(key.resource, &key.name, OBJECT_MODIFIED).into());
        }
        let mut new = change(&current.object)?;
        error::check_revision(key, &new, current.revision)?;
        check_identity(key, &current.object, &new)?;
        complete(key.resource, self.part, &current.object, &mut new)?;
        if !apply::is_apply(self.call) {
            managed_fields::track(self.call, self.part, Some(&current.object), &mut new);
        }
        if self.part == Part::Main {
            resize::admit(self.call, &current.object, &new).await?;
        }
        if let Err(refused) = self.admit(&current.object, &new).await {
            return Ok(Attempt::Failed(refused));
        }
        let chosen = allocate::held_by(key.resource, &new);
        let mut sides = allocate::claims(source, key.resource, Some(&current.object), &mut new)?;
        let charges = match self.part {
            Part::Main => match quota::charges(self.call, Some(&current.object), &new).await {
                Ok(charges) => Some(charges),
                Err(refused) => return Ok(Attempt::Failed(refused)),
            },
            _ => None,
        };
        sides.extend(charges.iter().flat_map(|charges| charges.sides.iter().cloned()));
        meta::set_resource_version(&mut new, current.revision);
        if self.is_dry_run {
            check_fits(&new)?;
        }
        if self.is_dry_run || new == current.object {
            return Ok(Attempt::Unchanged(new));
        }
        let written = if is_finished(key.resource, &new) {
            let releases = allocate::releases(key.resource, &current.object);
            store.delete(key, current.revision, &releases).await.map(|_| new.clone())
        } else {
            store.update(key, current.revision, &new, &sides).await.map(|stored| stored.object)
        };
        match written {
            Ok(object) => Ok(Attempt::Written(object)),
            Err(error @ StoreError::Conflict { .. }) => {
                Ok(Attempt::Conflict(ApiError::store(error, key)))
            }
            Err(StoreError::SideTaken { key: taken }) => {
                match allocate::refuse(key.resource, &new, &chosen, &taken) {
                    Some(refused) => Ok(Attempt::Failed(refused)),
                    None => Ok(Attempt::Taken(taken)),
                }
            }
            Err(error) => Ok(Attempt::Failed(ApiError::store(error, key))),
        }
    }

    /// What others have a say in: their no is final, since to ask them again may cost much.
    async fn admit(&self, old: &Value, new: &Value) -> Result<(), ApiError> {
        if self.key.resource.plural == "priorityclasses" {
            priority::check_default(self.call, new).await?;
        }
        if matches!(self.part, Part::Main | Part::EphemeralContainers) {
            image_policy::admit(self.call, Some(old), new).await?;
        }
        Ok(())
    }
}

/// A write meant for an object that was deleted and made again is a conflict.
fn check_identity(key: &Key, old: &Value, new: &Value) -> Result<(), ApiError> {
    let (sent, has) = (meta::uid(new), meta::uid(old));
    if sent.is_empty() || sent == has {
        return Ok(());
    }
    let detail =
        format!("Precondition failed: UID in precondition: {sent}, UID in object meta: {has}");
    Err(Status::conflict(key.resource, &key.name, &detail).into())
}

/// Defaults and checks the new object against the old.
fn complete(resource: &Resource, part: Part, old: &Value, new: &mut Value) -> Result<(), ApiError> {
    match part {
        Part::Main => {
            admission::default(resource, new);
            strategy::prepare_update(resource, old, new);
        }
        Part::Status => strategy::prepare_status_update(resource, old, new),
        Part::EphemeralContainers => ephemeral::prepare_update(resource, old, new),
        Part::Internal => return Ok(()),
    }
    let check = |old: &Value| match part {
        Part::EphemeralContainers => ephemeral::validate_update(resource, old, new),
        _ => strategy::validate_update(resource, old, new),
    };
    let mut errors = check(old);
    if errors.is_empty() {
        return Ok(());
    }
    // Older versions stored nulls and unknown fields as they were sent: to drop them is no change.
    let mut read = old.clone();
    if strategy::decode(resource, &mut read, None).is_ok() {
        errors = check(&read);
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(Status::invalid(resource, meta::name(new), &errors).into())
}

/// Whether a deleted object has nothing left to wait for.
pub(super) fn is_finished(resource: &Resource, object: &Value) -> bool {
    let is_deleted = meta::deletion_timestamp(object).is_some();
    let grace = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    let has_spec_finalizers = object
        .pointer("/spec/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|list| !list.is_empty());
    is_deleted
        && meta::finalizers(object).is_empty()
        && (resource.plural != "pods" || grace.unwrap_or(0) == 0)
        && (resource.plural != "namespaces" || !has_spec_finalizers)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;
    use crate::apiserver::query::FieldValidation;

    /// What older versions stored as it was sent: a null and an unknown field where nothing may change.
    #[test]
    fn what_older_versions_stored_can_be_changed() {
        let sets = api::find("apps", "v1", "statefulsets").unwrap();
        let labels = json!({"app": "a"});
        let claim = json!({"metadata": {"name": "c", "creationTimestamp": null}, "wrong": 1,
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}});
        let mut old = json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {
            "selector": {"matchLabels": labels}, "serviceName": "s",
            "template": {"metadata": {"labels": labels},
                "spec": {"containers": [{"name": "a", "image": "x"}]}},
            "volumeClaimTemplates": [claim],
        }});
        strategy::prepare_create(sets, &mut old);
        let mut new = old.clone();
        new["spec"]["template"]["spec"]["containers"][0]["image"] = json!("y");
        body::check_change(sets, &old, &mut new, FieldValidation::Ignore).unwrap();
        assert!(new.pointer("/spec/volumeClaimTemplates/0/wrong").is_none());
        complete(sets, Part::Main, &old, &mut new).unwrap();
        new["spec"]["serviceName"] = json!("t");
        assert!(complete(sets, Part::Main, &old, &mut new).is_err(), "that is a change");
    }

    #[test]
    fn a_bad_quantity_of_before_stands_in_nobodys_way() {
        let pods = api::find("", "v1", "pods").unwrap();
        let volume = json!({"name": "v", "emptyDir": {"sizeLimit": "1Gb"}});
        let old = json!({"metadata": {"name": "p", "finalizers": ["a/b"]}, "spec": {
            "containers": [{"name": "a", "image": "x"}], "volumes": [volume]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!([]);
        body::check_change(pods, &old, &mut new.clone(), FieldValidation::Ignore).unwrap();
        let fine = json!({"metadata": {"name": "p"}, "spec": {"containers": []}});
        assert!(
            body::check_change(pods, &fine, &mut new, FieldValidation::Ignore).is_err(),
            "it is new"
        );
    }
}
