//! What the one who asks may do, and who it is: `SelfSubjectAccessReview`, `SelfSubjectRulesReview`,
//! `SelfSubjectReview`. Nothing of it is stored.

use axum::body::Body;
use http::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};

use crate::api::reviews;
use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::apiserver::error::ApiError;
use crate::apiserver::request_info::RequestInfo;
use crate::apiserver::{access, body, response};

/// Whether `request` is a review.
pub(super) fn is_review(request: &Request<Body>) -> bool {
    reviews::at(request.uri().path()).is_some()
}

/// Answers a review.
pub(super) async fn respond(
    user: &UserInfo,
    request: Request<Body>,
) -> Result<Response<Body>, ApiError> {
    let (mut parts, sent) = request.into_parts();
    let review = reviews::at(parts.uri.path()).ok_or_else(Status::no_such_path)?;
    if parts.method != Method::POST {
        return Err(Status::no_such_path().into());
    }
    let sent = body::enter(&mut parts.headers, sent).await?;
    let bytes = body::read(sent).await?;
    let object = body::parse(body::media_type(&parts.headers), &bytes)?.value;
    let spec = object.get("spec").cloned().unwrap_or_default();
    let mut answer = json!({
        "kind": review.kind,
        "apiVersion": review.api_version(),
        "metadata": {"creationTimestamp": null},
    });
    if let Some(fields) = answer.as_object_mut() {
        if !spec.is_null() {
            fields.insert("spec".to_owned(), spec.clone());
        }
        fields.insert("status".to_owned(), status(review.kind, user, &spec)?);
    }
    Ok(response::json(StatusCode::CREATED, &answer))
}

fn status(kind: &str, user: &UserInfo, spec: &Value) -> Result<Value, ApiError> {
    Ok(match kind {
        "SelfSubjectAccessReview" => {
            let (is_allowed, reason) = may(user, spec)?;
            if is_allowed {
                json!({"allowed": true, "reason": reason})
            } else {
                json!({"allowed": false, "reason": reason})
            }
        }
        "SelfSubjectRulesReview" if access::may_do_everything(user) => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
        // What others may do is not written down as rules.
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [],
            "nonResourceRules": [],
            "incomplete": true,
            "evaluationError": "rules are not listed for this user",
        }),
        _ => json!({"userInfo": {"username": user.name, "groups": user.groups}}),
    })
}

fn may(user: &UserInfo, spec: &Value) -> Result<(bool, String), ApiError> {
    let text = |pointer: &str| spec.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (on_resource, on_path) = (
        spec.get("resourceAttributes").is_some_and(Value::is_object),
        spec.get("nonResourceAttributes").is_some_and(Value::is_object),
    );
    if on_resource == on_path {
        return Err(Status::unprocessable(
            "SelfSubjectAccessReview is invalid: spec: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )
        .into());
    }
    if access::may_do_everything(user) {
        return Ok((true, String::new()));
    }
    if on_path {
        let path = text("/nonResourceAttributes/path");
        let refused = access::check_path(user, &Method::GET, path).err();
        return Ok((refused.is_none(), refused.map(|r| r.0.message).unwrap_or_default()));
    }
    let at = |key: &str| text(&format!("/resourceAttributes/{key}"));
    let version =
        if at("version").is_empty() || at("version") == "*" { "v1" } else { at("version") };
    let root = match at("group") {
        "" => format!("/api/{version}"),
        group => format!("/apis/{group}/{version}"),
    };
    let place = match at("namespace") {
        "" => String::new(),
        namespace => format!("/namespaces/{namespace}"),
    };
    let mut path = format!("{root}{place}/{}", at("resource"));
    for part in ["name", "subresource"] {
        if !at(part).is_empty() {
            path = format!("{path}/{}", at(part));
        } else if part == "name" && !at("subresource").is_empty() {
            path = format!("{path}/any");
        }
    }
    let Some(info) = RequestInfo::parse(&path) else {
        return Ok((false, "no such resource".to_owned()));
    };
    let refused = access::check(user, at("verb"), &info).err();
    Ok((refused.is_none(), refused.map(|r| r.0.message).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(verb: &str) -> Value {
        json!({"resourceAttributes": {"namespace": "n", "verb": verb, "resource": "pods"}})
    }

    #[test]
    fn administrators_may_and_strangers_may_not() {
        let admin = UserInfo::new("admin", &["system:masters"]);
        let stranger = UserInfo::new("x", &[]);
        let path = json!({"nonResourceAttributes": {"verb": "get", "path": "/healthz"}});
        assert_eq!(may(&admin, &pods("create")).unwrap(), (true, String::new()));
        assert!(may(&admin, &path).unwrap().0);
        let (is_allowed, reason) = may(&stranger, &pods("create")).unwrap();
        assert!(!is_allowed && reason.contains("cannot create resource \"pods\""), "{reason}");
        assert!(may(&admin, &json!({})).is_err(), "a question about nothing");
        let unknown = json!({"resourceAttributes": {"verb": "get", "resource": "unicorns"}});
        assert!(!may(&stranger, &unknown).unwrap().0);
    }

    #[test]
    fn a_node_may_not_read_join_tokens() {
        let node = UserInfo::new("system:node:a", &["system:nodes"]);
        let of = |namespace: &str| {
            json!({"resourceAttributes": {"namespace": namespace,
            "verb": "get", "resource": "secrets", "name": "s"}})
        };
        assert!(may(&node, &of("default")).unwrap().0);
        assert!(!may(&node, &of("kube-system")).unwrap().0);
    }
}
