//! Who asks, and whether they may.
//!
//! Authentication happened before: a client certificate, a QUIC peer, or this process put a
//! [`UserInfo`] into the request. RBAC and the node authorizer are not built yet; until then
//! administrators and the system's own users may do everything, except that a plain node does not
//! read the Secrets of `kube-system` (join tokens), and anonymous users see health and version only.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, Method, Request};

use crate::api::status::Status;
use crate::api::user::UserInfo;
use crate::apiserver::error::ApiError;
use crate::apiserver::request_info::RequestInfo;
use crate::net::pki::NODE_USER_PREFIX;

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
/// Most groups of a user in `Impersonate-Group` headers.
const GROUPS_MAX: usize = 32;
/// Header with the user to act as.
const IMPERSONATE_USER: &str = "impersonate-user";
/// Header with a group of that user; repeated.
const IMPERSONATE_GROUP: &str = "impersonate-group";

/// The user of a request, after impersonation.
pub(super) fn user(request: &Request<Body>) -> Result<UserInfo, ApiError> {
    let asking = request
        .extensions()
        .get::<UserInfo>()
        .cloned()
        .unwrap_or_else(|| UserInfo::new(ANONYMOUS, &["system:unauthenticated"]));
    let text = |value: &HeaderValue| -> Result<String, ApiError> {
        let refused = |_| Status::bad_request("an impersonation header is not visible ASCII");
        Ok(value.to_str().map_err(refused)?.to_owned())
    };
    let headers = request.headers();
    let groups = headers.get_all(IMPERSONATE_GROUP);
    let Some(name) = headers.get(IMPERSONATE_USER) else {
        if groups.iter().next().is_some() {
            return Err(Status::bad_request("groups to impersonate without a user").into());
        }
        return Ok(asking);
    };
    if !has_group(&asking, MASTERS) && !has_group(&asking, SERVERS) {
        return Err(
            Status::forbidden_path(&asking.name, "impersonate", request.uri().path()).into()
        );
    }
    let name = text(name)?;
    let groups = groups.iter().map(text).collect::<Result<Vec<_>, _>>()?;
    if groups.len() > GROUPS_MAX {
        return Err(Status::bad_request(format!(
            "{} groups to impersonate, at most {GROUPS_MAX} are allowed",
            groups.len()
        ))
        .into());
    }
    Ok(UserInfo { name, groups })
}

/// Puts `user` into `headers`, so that [`user`] finds exactly it.
pub(super) fn impersonate(headers: &mut HeaderMap, user: &UserInfo) -> Result<(), ApiError> {
    let value = |text: &str| -> Result<HeaderValue, ApiError> {
        HeaderValue::from_str(text)
            .ok()
            .filter(|value| value.to_str().is_ok())
            .ok_or_else(|| Status::bad_request("the user's name cannot be sent on").into())
    };
    if user.groups.len() > GROUPS_MAX {
        return Err(Status::bad_request("the user has too many groups to be sent on").into());
    }
    let name = value(&user.name)?;
    let groups = user.groups.iter().map(|group| value(group)).collect::<Result<Vec<_>, _>>()?;
    headers.remove(IMPERSONATE_GROUP);
    headers.insert(IMPERSONATE_USER, name);
    for group in groups {
        headers.append(IMPERSONATE_GROUP, group);
    }
    Ok(())
}

/// Whether `user` may do `verb` on what `info` names.
pub(super) fn check(user: &UserInfo, verb: &str, info: &RequestInfo) -> Result<(), ApiError> {
    if may_do_everything(user) {
        return Ok(());
    }
    let is_token = info.resource.plural == "secrets"
        && info.namespace.as_deref().is_none_or(|namespace| namespace == "kube-system");
    // Agents serve sessions; they never ask for one.
    let sub = info.subresource.as_deref();
    let is_session = matches!(sub, Some("exec" | "attach" | "portforward" | "proxy"));
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

/// Whether `user` may pull from the registry: everybody the cluster knows.
pub(super) fn may_pull(user: &UserInfo) -> bool {
    user.name != ANONYMOUS
}

/// Whether `user` may push to it: administrators, and servers for each other. A pod that could would
/// choose what other namespaces run.
pub(super) fn may_push(user: &UserInfo) -> bool {
    [SERVERS, MASTERS].iter().any(|group| has_group(user, group))
}

/// Whether `user` may have compiled code: nodes, and who may do everything.
pub(super) fn may_use_compiled(user: &UserInfo) -> bool {
    [NODES, SERVERS, MASTERS].iter().any(|group| has_group(user, group))
}

/// Whether nothing is refused to `user`.
pub(super) fn may_do_everything(user: &UserInfo) -> bool {
    has_group(user, MASTERS) || user.name.starts_with(SYSTEM_USER) || has_group(user, SERVERS)
}

/// Whether it is the system itself that asks: a controller, the scheduler, an agent, a server.
pub(super) fn is_system(user: &UserInfo) -> bool {
    user.name.starts_with(SYSTEM_USER) || has_group(user, NODES) || has_group(user, SERVERS)
}

/// Whether it is a node that asks.
pub(super) fn is_node(user: &UserInfo) -> bool {
    has_group(user, NODES)
}

/// Name of the node that asks.
pub(super) fn node_name(user: &UserInfo) -> Option<&str> {
    user.name.strip_prefix(NODE_USER_PREFIX).filter(|_| is_node(user))
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
    fn pods_and_nodes_pull_and_only_administrators_and_servers_push() {
        let user = UserInfo::new;
        let pod = user("system:serviceaccount:shop:default", &["system:serviceaccounts"]);
        let node = user("system:node:one", &[NODES]);
        for puller in [&pod, &node] {
            assert!(may_pull(puller) && !may_push(puller), "{puller:?}");
        }
        assert!(may_push(&user("admin", &[MASTERS])) && may_push(&user("one", &[NODES, SERVERS])));
        assert!(!may_pull(&user(ANONYMOUS, &[])));
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

    #[test]
    fn an_impersonation_that_cannot_be_read_is_refused_and_not_left_out() {
        let request = |headers: &[(&str, &[u8])]| {
            let mut request = Request::new(Body::empty());
            for (name, value) in headers {
                let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                request.headers_mut().append(name, HeaderValue::from_bytes(value).unwrap());
            }
            request.extensions_mut().insert(UserInfo::new("admin", &[MASTERS]));
            user(&request)
        };
        let cases: [&[(&str, &[u8])]; 3] = [
            &[(IMPERSONATE_USER, "j\u{f6}rg".as_bytes())],
            &[(IMPERSONATE_USER, b"x"), (IMPERSONATE_GROUP, "gr\u{fc}n".as_bytes())],
            &[(IMPERSONATE_GROUP, b"g")],
        ];
        for headers in cases {
            assert_eq!(request(headers).unwrap_err().0.code, 400, "{headers:?}");
        }
        let many = [(IMPERSONATE_GROUP, &b"g"[..]); GROUPS_MAX + 1];
        let many = [&[(IMPERSONATE_USER, &b"x"[..])][..], &many].concat();
        assert_eq!(request(&many).unwrap_err().0.code, 400);
    }

    #[test]
    fn a_user_that_cannot_be_sent_on_is_refused() {
        let mut headers = HeaderMap::new();
        for user in [UserInfo::new("j\u{f6}rg", &[]), UserInfo::new("a", &["b\n"])] {
            assert_eq!(impersonate(&mut headers, &user).unwrap_err().0.code, 400);
        }
        assert!(headers.is_empty());
        impersonate(&mut headers, &UserInfo::new("a", &["g", "h"])).unwrap();
        assert_eq!(headers.get_all(IMPERSONATE_GROUP).iter().count(), 2);
    }
}
