//! `POST serviceaccounts/<name>/token`: Kubernetes' TokenRequest.

use axum::body::Body;
use http::{Response, StatusCode};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{FieldError, meta};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::apiserver::service_account::{CLAIMS, ISSUER, USER_PREFIX, find};
use crate::apiserver::{body, response};
use crate::net::pki::NODE_USER_PREFIX;

/// Life of a token whose request names none, in seconds.
const LIFE_DEFAULT: i64 = 3600;
/// Shortest life, in seconds, as in Kubernetes.
const LIFE_MIN: i64 = 600;
/// Longest life, in seconds: what is asked beyond it is shortened, as Kubernetes' own flag does.
const LIFE_MAX: i64 = 365 * 24 * 3600;
/// Most audiences of one token.
const AUDIENCES_MAX: usize = 16;

/// The object that a token ends with.
struct Bound {
    kind: &'static str,
    object: Value,
}

/// Makes a token for the account of the path.
pub(in crate::apiserver) async fn request_token(
    call: Call,
    request_body: Body,
) -> Result<Response<Body>, ApiError> {
    let bytes = body::read(request_body).await?;
    let mut request = body::parse(body::media_type(&call.headers), &bytes)?.value;
    let (Some(namespace), Some(name)) = (call.info.namespace.clone(), call.info.name.clone())
    else {
        return Err(Status::no_such_path().into());
    };
    let account = find(&call.context, "serviceaccounts", Some(&namespace), &name).await?;
    let account = account.ok_or_else(|| Status::not_found(call.info.resource, &name))?;
    let life = life(&call, &request)?;
    let audiences = audiences(&call, &request)?;
    let bound = bound(&call, &request, &namespace, &name).await?;
    check_node(&call, bound.as_ref(), &name)?;
    let now = call.context.clock.now();
    let expires =
        now.checked_add(SignedDuration::from_secs(life)).map_err(|_| Status::internal("clock"))?;
    let node = match bound.as_ref().and_then(|bound| node_name(&bound.object)) {
        Some(node) => find(&call.context, "nodes", None, node).await?,
        None => None,
    };
    let claims = json!({
        "aud": audiences,
        "exp": expires.as_second(),
        "iat": now.as_second(),
        "iss": ISSUER,
        "jti": call.context.rng.uuid().to_string(),
        CLAIMS: own_claims(&namespace, &account, bound.as_ref(), node.as_ref()),
        "nbf": now.as_second(),
        "sub": format!("{USER_PREFIX}{namespace}:{name}"),
    });
    let signer = call.context.signers.get(&call.context.store).await?;
    let token = signer.sign(&claims).ok_or_else(|| Status::internal("the token was not signed"))?;
    let answer = json!({
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {
            "name": name, "namespace": namespace,
            "creationTimestamp": call.context.clock.now_rfc3339(),
        },
        "spec": {
            "audiences": audiences,
            "expirationSeconds": life,
            "boundObjectRef": request.pointer_mut("/spec/boundObjectRef").map(Value::take),
        },
        "status": { "token": token, "expirationTimestamp": whole_seconds(expires) },
    });
    Ok(response::json(StatusCode::CREATED, &answer))
}

fn whole_seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or(at).to_string()
}

fn invalid(call: &Call, field: &str, value: &Value, detail: &str) -> ApiError {
    let name = call.info.name.as_deref().unwrap_or_default();
    Status::invalid(call.info.resource, name, &[FieldError::invalid(field, value, detail)]).into()
}

fn life(call: &Call, request: &Value) -> Result<i64, ApiError> {
    let Some(asked) = request.pointer("/spec/expirationSeconds").filter(|v| !v.is_null()) else {
        return Ok(LIFE_DEFAULT);
    };
    match asked.as_i64() {
        Some(seconds) if seconds >= LIFE_MIN => Ok(seconds.min(LIFE_MAX)),
        _ => Err(invalid(
            call,
            "spec.expirationSeconds",
            asked,
            "may not specify a duration less than 10 minutes",
        )),
    }
}

fn audiences(call: &Call, request: &Value) -> Result<Vec<String>, ApiError> {
    let asked = request.pointer("/spec/audiences").and_then(Value::as_array);
    let list: Vec<String> =
        asked.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    if list.len() > AUDIENCES_MAX {
        return Err(invalid(call, "spec.audiences", &json!(list.len()), "too many audiences"));
    }
    Ok(if list.is_empty() { vec![ISSUER.to_owned()] } else { list })
}

/// The object of `spec.boundObjectRef`, if it is the one that is meant.
async fn bound(
    call: &Call,
    request: &Value,
    namespace: &str,
    account: &str,
) -> Result<Option<Bound>, ApiError> {
    let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|r| !r.is_null()) else {
        return Ok(None);
    };
    let text = |key: &str| reference.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, plural, within) = match text("kind") {
        "Pod" => ("pod", "pods", Some(namespace)),
        "Secret" => ("secret", "secrets", Some(namespace)),
        "Node" => ("node", "nodes", None),
        other => {
            let detail = "supported values: \"Node\", \"Pod\", \"Secret\"";
            return Err(invalid(call, "spec.boundObjectRef.kind", &json!(other), detail));
        }
    };
    let name = text("name");
    let resource = crate::api::find("", "v1", plural).unwrap_or(call.info.resource);
    let object = find(&call.context, plural, within, name).await?;
    let object = object.ok_or_else(|| Status::not_found(resource, name))?;
    let uid = text("uid");
    if !uid.is_empty() && uid != meta::uid(&object) {
        let detail = format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Status::conflict(resource, name, &detail).into());
    }
    let of = object.pointer("/spec/serviceAccountName").and_then(Value::as_str);
    if kind == "pod" && of.unwrap_or("default") != account {
        let detail = "cannot bind token for serviceaccount to pod running with different serviceaccount name";
        return Err(invalid(call, "spec.boundObjectRef.name", &json!(name), detail));
    }
    Ok(Some(Bound { kind, object }))
}

/// A node asks only for the pods that run on it.
fn check_node(call: &Call, bound: Option<&Bound>, account: &str) -> Result<(), ApiError> {
    let Some(node) = call.user.name.strip_prefix(NODE_USER_PREFIX) else { return Ok(()) };
    let is_own =
        bound.is_some_and(|bound| bound.kind == "pod" && node_name(&bound.object) == Some(node));
    if is_own {
        return Ok(());
    }
    let detail = format!("node {node:?} may ask for tokens that are bound to its own pods only");
    Err(Status::forbidden(call.info.resource, account, &detail).into())
}

fn node_name(object: &Value) -> Option<&str> {
    object.pointer("/spec/nodeName").and_then(Value::as_str).filter(|name| !name.is_empty())
}

/// What stands under `kubernetes.io` in a token.
fn own_claims(
    namespace: &str,
    account: &Value,
    bound: Option<&Bound>,
    node: Option<&Value>,
) -> Value {
    let named = |object: &Value| json!({"name": meta::name(object), "uid": meta::uid(object)});
    let mut claims = json!({"namespace": namespace, "serviceaccount": named(account)});
    if let Some(fields) = claims.as_object_mut() {
        if let Some(bound) = bound {
            fields.insert(bound.kind.to_owned(), named(&bound.object));
        }
        if let Some(node) = node {
            fields.insert("node".to_owned(), named(node));
        }
    }
    claims
}
