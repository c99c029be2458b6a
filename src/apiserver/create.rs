//! create.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::Value;

use crate::api::status::Status;
use crate::api::{meta, names, strategy};
use crate::apiserver::error::ApiError;
use crate::apiserver::negotiate::Shape;
use crate::apiserver::router::Call;
use crate::apiserver::update::Part;
use crate::apiserver::{
    admission, allocate, apply, body, image_policy, limit_range, managed_fields, priority, quota,
    response, runtime_class, service_account,
};
use crate::store::{Key, StoreError, check_fits};

/// How many names are tried for `generateName`.
const NAMES_MAX: usize = 8;

/// Creates an object in the collection of the path.
pub(super) async fn respond(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let validation = call.query.field_validation()?;
    let is_dry_run = call.query.is_dry_run()?;
    managed_fields::check(&call, "CreateOptions")?;
    let bytes = body::read(request_body).await?;
    let parsed = body::parse(body::media_type(&call.headers), &bytes)?;
    let mut object = parsed.value;
    let mut warnings =
        body::check(call.info.resource, &mut object, &parsed.duplicates, validation)?;
    warnings.extend(strategy::warnings(call.info.resource, &object));
    let created = create(&call, object, is_dry_run).await?;
    warnings.extend(call.take_warnings());
    let now = call.context.clock.now();
    let mut answer = shape.respond(StatusCode::CREATED, call.info.resource, &created, now);
    response::warn(&mut answer, &warnings);
    Ok(answer)
}

/// Admits, completes, validates and stores `object`.
pub(super) async fn create(
    call: &Call,
    mut object: Value,
    is_dry_run: bool,
) -> Result<Value, ApiError> {
    let resource = call.info.resource;
    if resource.is_namespaced && call.info.namespace.is_none() {
        return Err(Status::method_not_allowed(resource, "create").into());
    }
    body::check_place(&mut object, call.info.namespace.as_deref(), None)?;
    if !meta::resource_version(&object).is_empty() {
        return Err(Status::bad_request(
            "resourceVersion should not be set on objects to be created",
        )
        .into());
    }
    admission::namespace(call).await?;
    strategy::prepare_create(resource, &mut object);
    limit_range::admit(call, &mut object).await?;
    admission::default(resource, &mut object);
    admission::default_new(resource, &mut object);
    priority::admit(call, &mut object).await?;
    runtime_class::admit(call, &mut object).await?;
    service_account::admit(call, &mut object).await?;
    image_policy::admit(call, None, &object).await?;
    if !apply::is_apply(call) {
        managed_fields::track(call, Part::Main, None, &mut object);
    }
    let now = call.context.clock.now_rfc3339();
    meta::set_created(&mut object, &call.context.rng.uuid().to_string(), &now);
    let base = meta::generate_name(&object).to_owned();
    let is_generated = meta::name(&object).is_empty() && !base.is_empty();
    for _ in 0..NAMES_MAX {
        if is_generated {
            let suffix = call.context.rng.name_suffix(names::SUFFIX_LEN);
            meta::set_name(&mut object, &names::generate_name(&base, &suffix));
        }
        let mut object = object.clone();
        strategy::identify(resource, &mut object);
        let errors = strategy::validate_create(resource, &object);
        if !errors.is_empty() {
            return Err(Status::invalid(resource, meta::name(&object), &errors).into());
        }
        match store(call, &object, is_dry_run).await {
            Err(error) if is_generated && error.0.code == 409 => {}
            other => return other,
        }
    }
    Err(Status::already_exists(resource, meta::name(&object)).into())
}

/// Writes the object with what it needs to be unique.
async fn store(call: &Call, object: &Value, is_dry_run: bool) -> Result<Value, ApiError> {
    let resource = call.info.resource;
    let key = Key::new(resource, call.info.namespace.as_deref(), meta::name(object));
    let store = &call.context.store;
    let chosen = allocate::held_by(resource, object);
    let mut source = allocate::Source::new(&call.context.rng, &call.context.service_cidrs);
    for _ in 0..allocate::TRIES_MAX {
        let mut complete = object.clone();
        let mut sides = allocate::claims(&source, resource, None, &mut complete)?;
        let charges = quota::charges(call, None, &complete).await?;
        sides.extend(charges.sides.iter().cloned());
        if is_dry_run {
            check_fits(&complete)?;
            let found = store.get(&key, crate::store::Freshness::Latest).await;
            return match found.map_err(|error| ApiError::store(error, &key))? {
                Some(_) => Err(Status::already_exists(resource, &key.name).into()),
                None => Ok(complete),
            };
        }
        match store.create(&key, &complete, &sides).await {
            Ok(stored) => return Ok(stored.object),
            Err(StoreError::SideTaken { key: taken }) if taken.starts_with(quota::CHARGE) => {}
            Err(StoreError::SideTaken { key: taken }) => {
                if let Some(refused) = allocate::refuse(resource, &complete, &chosen, &taken) {
                    return Err(refused);
                }
                source.learn(taken, store).await.map_err(|error| ApiError::store(error, &key))?;
            }
            Err(error) => return Err(ApiError::store(error, &key)),
        }
    }
    Err(Status::internal("no free address or port was found").into())
}
