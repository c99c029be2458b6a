//! What a path asks for: Kubernetes' `RequestInfo`.

use http::Method;

use crate::api::{self, Resource};
use crate::store::{Key, Scope};

/// A request for a resource, read from its path.
#[derive(Debug, Clone)]
pub(super) struct RequestInfo {
    /// Kind asked for.
    pub(super) resource: &'static Resource,
    /// Namespace in the path.
    pub(super) namespace: Option<String>,
    /// Name in the path.
    pub(super) name: Option<String>,
    /// `status`, `scale`, `log`, ...
    pub(super) subresource: Option<String>,
    /// What follows `.../NAME/proxy`, with the slash before it.
    pub(super) rest: String,
}

impl RequestInfo {
    /// Reads `/api/v1/...` and `/apis/<group>/<version>/...`. `None` is "no such path".
    pub(super) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let below = |rest: &[&str]| {
            let whole: String = rest.iter().flat_map(|part| ["/", part]).collect();
            if path.ends_with('/') { whole + "/" } else { whole }
        };
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let find = |plural: &str| {
            let stored = api::find(group, version, plural);
            stored
                .or_else(|| api::metrics::find(group, version, plural))
                .or_else(|| api::custom_metrics::find(group, version, plural))
        };
        let owned = |text: &str| Some(text.to_owned());
        let info = |resource, namespace, name, subresource| {
            Some(Self { resource, namespace, name, subresource, rest: String::new() })
        };
        match rest {
            // `namespaces/x` and its subresources are the Namespace itself.
            ["namespaces"] => info(find("namespaces")?, None, None, None),
            ["namespaces", name] => info(find("namespaces")?, None, owned(name), None),
            ["namespaces", name, sub @ ("status" | "finalize")] => {
                info(find("namespaces")?, None, owned(name), owned(sub))
            }
            ["namespaces", namespace, plural, tail @ ..] => {
                let resource = find(plural).filter(|r| r.is_namespaced)?;
                match tail {
                    [] => info(resource, owned(namespace), None, None),
                    [name] => info(resource, owned(namespace), owned(name), None),
                    [name, sub @ "proxy", rest @ ..] if matches!(*plural, "pods" | "services") => {
                        let asked = info(resource, owned(namespace), owned(name), owned(sub))?;
                        Some(Self { rest: below(rest), ..asked })
                    }
                    [name, sub] => info(resource, owned(namespace), owned(name), owned(sub)),
                    _ => None,
                }
            }
            [plural] => info(find(plural)?, None, None, None),
            [plural, name] => {
                let resource = find(plural).filter(|r| !r.is_namespaced)?;
                info(resource, None, owned(name), None)
            }
            ["nodes", name, sub @ "proxy", rest @ ..] if group.is_empty() => Some(Self {
                rest: below(rest),
                ..info(find("nodes")?, None, owned(name), owned(sub))?
            }),
            [plural, name, sub] => {
                let resource = find(plural).filter(|r| !r.is_namespaced)?;
                info(resource, None, owned(name), owned(sub))
            }
            _ => None,
        }
    }

    /// Kubernetes' verb for access rules and metrics.
    pub(super) fn verb(&self, method: &Method, is_watch: bool) -> &'static str {
        match (method.as_str(), self.name.is_some()) {
            ("GET" | "HEAD", _) if is_watch => "watch",
            ("GET" | "HEAD", true) => "get",
            ("GET" | "HEAD", false) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "delete",
            ("DELETE", false) => "deletecollection",
            _ => "unknown",
        }
    }

    /// The one object asked for.
    pub(super) fn key(&self) -> Option<Key> {
        let name = self.name.as_deref()?;
        Some(Key::new(self.resource, self.namespace.as_deref(), name))
    }

    /// The collection asked for.
    pub(super) fn scope(&self) -> Scope {
        Scope::new(self.resource, self.namespace.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(path: &str) -> Option<String> {
        let info = RequestInfo::parse(path)?;
        let part = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        Some(format!(
            "{} {} {} {}",
            info.resource.plural,
            part(&info.namespace),
            part(&info.name),
            part(&info.subresource)
        ))
    }

    #[test]
    fn what_is_behind_a_proxy_keeps_its_slashes() {
        let rest = |path: &str| {
            RequestInfo::parse(&format!("/api/v1/namespaces/a/pods/x/proxy{path}")).unwrap().rest
        };
        for path in ["", "/", "/b", "/b/", "/b/c"] {
            assert_eq!(rest(path), path);
        }
    }

    #[test]
    fn paths_name_kinds_objects_and_subresources() {
        let cases = [
            ("/api/v1/pods", Some("pods - - -")),
            ("/api/v1/namespaces", Some("namespaces - - -")),
            ("/api/v1/namespaces/a", Some("namespaces - a -")),
            ("/api/v1/namespaces/a/finalize", Some("namespaces - a finalize")),
            ("/api/v1/namespaces/a/pods", Some("pods a - -")),
            ("/api/v1/namespaces/a/pods/x/log", Some("pods a x log")),
            ("/apis/apps/v1/namespaces/a/deployments/x/scale", Some("deployments a x scale")),
            ("/api/v1/nodes/n/status", Some("nodes - n status")),
            ("/api/v1/nodes/n/proxy/stats/summary", Some("nodes - n proxy")),
            ("/api/v1/pods/n/proxy/stats/summary", None),
            ("/api/v1/namespaces/a/pods/x:80/proxy/b/c", Some("pods a x:80 proxy")),
            (
                "/api/v1/namespaces/a/services/https:x:web/proxy/",
                Some("services a https:x:web proxy"),
            ),
            ("/api/v1/namespaces/a/configmaps/x/proxy/b", None),
            ("/apis/metrics.k8s.io/v1beta1/nodes/n", Some("nodes - n -")),
            ("/apis/metrics.k8s.io/v1beta1/namespaces/a/pods", Some("pods a - -")),
            ("/apis/metrics.k8s.io/v1beta1/secrets", None),
            ("/api/v1/namespaces/a/nodes", None),
            ("/api/v1/pods/x", None),
            ("/api/v1/nonsense", None),
            ("/apis/apps/v1beta1/deployments", None),
            ("/api/v1/namespaces/a/pods/x/log/more", None),
        ];
        for (path, wanted) in cases {
            assert_eq!(shown(path).as_deref(), wanted, "{path}");
        }
    }
}
