//! Who asks, and whether they may.
//!
//! Authentication happened before: a client certificate, a QUIC peer, or this process put a
//! [`UserInfo`] into the request. RBAC and the node authorizer are not built yet; until then
//! administrators and the system's own users may do everything, except that a plain node does not
//! read the Secrets of `kube-system` (join tokens), and anonymous users see health and version only.

use axum::body::Body;
use http::{Method, Request};

use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::apiserver::error::ApiError;
use crate::apiserver::request_info::RequestInfo;

/// Administrators.
const MASTERS: &str = "system:masters";
/// Every node.
const NODES: &str = "system:nodes";
/// Nodes that are servers: they forward requests of others.
const SERVERS: &str = "edgeorc:servers";
/// Prefix of the system's own users: controllers, scheduler.
const SYSTEM_USER: &str = "system:kube-";
/// Name of whoever showed no certificate.
const ANONYMOUS: &str = "system:anonymous";
/// Most groups taken from `Impersonate-Group` headers.
const GROUPS_MAX: usize = 32;
/// Header with the user to act as.
pub(super) const IMPERSONATE_USER: &str = "impersonate-user";
/// Header with a group of that user; repeated.
pub(super) const IMPERSONATE_GROUP: &str = "impersonate-group";

/// The user of a request, after impersonation.
pub(super) fn user(request: &Request<Body>) -> Result<UserInfo, ApiError> {
    let asking = request
        .extensions()
        .get::<UserInfo>()
        .cloned()
        .unwrap_or_else(|| UserInfo::new(ANONYMOUS, &["system:unauthenticated"]));
    let text = |value: &http::HeaderValue| value.to_str().map(str::to_owned).ok();
    let Some(name) = request.headers().get(IMPERSONATE_USER).and_then(text) else {
        return Ok(asking);
    };
    if !has_group(&asking, MASTERS) && !has_group(&asking, SERVERS) {
        return Err(
            Status::forbidden_path(&asking.name, "impersonate", request.uri().path()).into()
        );
    }
    let groups = request.headers().get_all(IMPERSONATE_GROUP);
    Ok(UserInfo { name, groups: groups.iter().filter_map(text).take(GROUPS_MAX).collect() })
}

/// Whether `user` may do `verb` on what `info` names.
pub(super) fn check(user: &UserInfo, verb: &str, info: &RequestInfo) -> Result<(), ApiError> {
    if has_group(user, MASTERS) || user.name.starts_with(SYSTEM_USER) || has_group(user, SERVERS) {
        return Ok(());
    }
    let is_token = info.resource.plural == "secrets"
        && info.namespace.as_deref().is_none_or(|namespace| namespace == "kube-system");
    // Agents serve sessions; they never ask for one.
    let sub = info.subresource.as_deref();
    let is_session = matches!(sub, Some("exec" | "attach" | "portforward"));
    if has_group(user, NODES) && !is_token && !is_session {
        return Ok(());
    }
    Err(Status::forbidden(
        info.resource,
        info.name.as_deref().unwrap_or_default(),
        &detail(user, verb, info),
    )
    .into())
}

/// Whether `user` may read a path that is no resource: discovery, OpenAPI, metrics.
pub(super) fn check_path(user: &UserInfo, method: &Method, path: &str) -> Result<(), ApiError> {
    if user.name == ANONYMOUS {
        let verb = method.as_str().to_lowercase();
        return Err(Status::forbidden_path(&user.name, &verb, path).into());
    }
    Ok(())
}

/// Whether `user` may use the registry: everybody the cluster knows.
pub(super) fn may_use_registry(user: &UserInfo) -> bool {
    user.name != ANONYMOUS
}

fn has_group(user: &UserInfo, group: &str) -> bool {
    user.groups.iter().any(|g| g == group)
}

/// Kubernetes' text.
fn detail(user: &UserInfo, verb: &str, info: &RequestInfo) -> String {
    let mut resource = info.resource.plural.to_owned();
    if let Some(sub) = &info.subresource {
        resource = format!("{resource}/{sub}");
    }
    let place = match &info.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {:?} {place}",
        user.name, info.resource.group
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(path: &str) -> RequestInfo {
        RequestInfo::parse(path).unwrap()
    }

    #[test]
    fn strangers_are_refused_in_kubernetes_words() {
        let stranger = UserInfo::new(ANONYMOUS, &[]);
        let refused =
            check(&stranger, "list", &info("/api/v1/namespaces/default/pods")).unwrap_err();
        assert_eq!(
            refused.0.message,
            "pods is forbidden: User \"system:anonymous\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
        );
        assert!(check_path(&stranger, &Method::GET, "/metrics").is_err());
    }

    #[test]
    fn a_plain_node_does_not_read_join_tokens() {
        let node = UserInfo::new("system:node:a", &[NODES]);
        assert!(check(&node, "list", &info("/api/v1/pods")).is_ok());
        assert!(check(&node, "get", &info("/api/v1/namespaces/kube-system/secrets/t")).is_err());
        assert!(check(&node, "list", &info("/api/v1/secrets")).is_err());
        assert!(check(&node, "get", &info("/api/v1/namespaces/default/secrets/s")).is_ok());
    }

    #[test]
    fn only_servers_and_administrators_act_as_others() {
        let request = |group: &str| {
            let mut request =
                Request::builder().header(IMPERSONATE_USER, "x").body(Body::empty()).unwrap();
            request.extensions_mut().insert(UserInfo::new("a", &[group]));
            request
        };
        assert_eq!(user(&request(SERVERS)).unwrap().name, "x");
        assert!(user(&request(NODES)).is_err());
    }
}
