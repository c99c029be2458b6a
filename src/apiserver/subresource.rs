//! `/status`, `/scale`, `pods/binding`, `pods/ephemeralcontainers`, `pods/eviction`, `serviceaccounts/token` and `namespaces/finalize`.

use axum::body::Body;
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{meta, scale};
use crate::apiserver::error::{self, ApiError};
use crate::apiserver::router::Call;
use crate::apiserver::update::{self, Part};
use crate::apiserver::{body, eviction, read, response, service_account};
use crate::store::Freshness;

/// Answers by subresource and verb.
pub(super) async fn respond(
    call: Call,
    method: &Method,
    sub: &str,
    request_body: Body,
) -> Result<Response<Body>, ApiError> {
    let resource = call.info.resource;
    match (sub, method.as_str()) {
        ("status", _) if !resource.has_status => Err(Status::no_such_path().into()),
        ("status", "GET") => read::get(call).await,
        ("status", "PUT") => update::replace(call, request_body, Part::Status).await,
        ("status", "PATCH") => update::patch_part(call, request_body, Part::Status).await,
        ("scale", _) if !resource.has_scale => Err(Status::no_such_path().into()),
        ("scale", "GET" | "PUT" | "PATCH") => scale_of(call, method, request_body).await,
        ("ephemeralcontainers", _) if resource.plural != "pods" => {
            Err(Status::no_such_path().into())
        }
        ("ephemeralcontainers", "GET") => read::get(call).await,
        ("ephemeralcontainers", "PUT") => {
            update::replace(call, request_body, Part::EphemeralContainers).await
        }
        ("ephemeralcontainers", "PATCH") => {
            update::patch_part(call, request_body, Part::EphemeralContainers).await
        }
        ("eviction", "POST") if resource.plural == "pods" => {
            eviction::respond(call, request_body).await
        }
        ("binding", "POST") if resource.plural == "pods" => bind(call, request_body).await,
        ("token", "POST") if resource.plural == "serviceaccounts" => {
            service_account::request_token(call, request_body).await
        }
        ("finalize", "PUT") if resource.plural == "namespaces" => {
            finalize(call, request_body).await
        }
        (
            "status"
            | "scale"
            | "binding"
            | "ephemeralcontainers"
            | "eviction"
            | "finalize"
            | "token",
            other,
        ) => Err(Status::method_not_allowed(resource, other).into()),
        _ => Err(Status::no_such_path().into()),
    }
}

/// Reads or sets the number of replicas.
async fn scale_of(
    call: Call,
    method: &Method,
    request_body: Body,
) -> Result<Response<Body>, ApiError> {
    let resource = call.info.resource;
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    if method == Method::GET {
        let found = call.context.store.get(&key, Freshness::Latest).await;
        let stored = found
            .map_err(|error| ApiError::store(error, &key))?
            .ok_or_else(|| Status::not_found(resource, &key.name))?;
        return Ok(response::json(StatusCode::OK, &scale::get(resource, &stored.object)));
    }
    let media = body::media_type(&call.headers).to_owned();
    let is_patch = method == Method::PATCH;
    if is_patch {
        update::check_patch_type(&media)?;
    }
    let bytes = body::read(request_body).await?;
    let sent = if is_patch { body::json(&bytes)? } else { body::parse(&media, &bytes)? }.value;
    let expected = error::sent_revision(&sent)?;
    let updated = update::modify(&call, Part::Main, expected, |current| {
        let wanted = if is_patch {
            // A Scale has no lists, so a strategic patch of it is a merge patch.
            let media = media.replace("strategic-merge", "merge");
            update::patched(resource, &media, &scale::get(resource, current), &sent)?
        } else {
            sent.clone()
        };
        error::check_revision(&key, &wanted, error::sent_revision(current)?.unwrap_or_default())?;
        let mut object = current.clone();
        scale::apply(resource, &mut object, &wanted)
            .map_err(|cause| Status::invalid(resource, meta::name(current), &[cause]))?;
        Ok(object)
    })
    .await?;
    Ok(response::json(StatusCode::OK, &scale::get(resource, &updated)))
}

/// Puts a pod on a node, once.
async fn bind(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    let bytes = body::read(request_body).await?;
    let binding = body::parse(body::media_type(&call.headers), &bytes)?.value;
    let node = binding.pointer("/target/name").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        return Err(Status::unprocessable("Binding is invalid: target.name: Required value").into());
    }
    let uid = meta::uid(&binding);
    let now = call.context.clock.now_rfc3339();
    let resource = call.info.resource;
    let name = call.info.name.clone().unwrap_or_default();
    update::modify(&call, Part::Internal, None, |pod| {
        let conflict = |detail: String| ApiError::from(Status::conflict(resource, &name, &detail));
        if !uid.is_empty() && uid != meta::uid(pod) {
            return Err(conflict(format!("the pod is another one, uid {}", meta::uid(pod))));
        }
        if meta::deletion_timestamp(pod).is_some() {
            return Err(conflict(format!(
                "pod {name} is being deleted, cannot be assigned to a host"
            )));
        }
        let bound = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
        if !bound.is_empty() {
            return Err(conflict(format!("pod {name} is already assigned to node {bound:?}")));
        }
        let gates = pod.pointer("/spec/schedulingGates").and_then(Value::as_array);
        if gates.is_some_and(|gates| !gates.is_empty()) {
            return Err(conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        let mut bound = pod.clone();
        if let Some(spec) = bound.get_mut("spec").and_then(Value::as_object_mut) {
            spec.insert("nodeName".to_owned(), json!(node));
        }
        schedule(&mut bound, &now);
        Ok(bound)
    })
    .await?;
    Ok(response::json(
        StatusCode::CREATED,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
        }),
    ))
}

/// Sets the condition PodScheduled.
fn schedule(pod: &mut Value, now: &str) {
    let Some(fields) = pod.as_object_mut() else { return };
    let status = fields.entry("status").or_insert_with(|| json!({}));
    let Some(status) = status.as_object_mut() else { return };
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some("PodScheduled"));
    list.push(json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now,
    }));
}

/// Takes the finalizers of a Namespace's spec; the last one lets it go.
async fn finalize(call: Call, request_body: Body) -> Result<Response<Body>, ApiError> {
    let bytes = body::read(request_body).await?;
    let sent = body::parse(body::media_type(&call.headers), &bytes)?.value;
    let finalizers = sent.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
    let expected = error::sent_revision(&sent)?;
    let updated = update::modify(&call, Part::Internal, expected, |current| {
        let mut namespace = current.clone();
        if let Some(fields) = namespace.as_object_mut() {
            fields.insert("spec".to_owned(), json!({"finalizers": finalizers}));
        }
        Ok(namespace)
    })
    .await?;
    Ok(response::json(StatusCode::OK, &updated))
}
