//! Names as pods see them, and guests' HTTP requests, which are addressed by name.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::uri::{Authority, Scheme};
use http::{Request, Response};
use http_body_util::BodyExt;

use super::names::{self, NAME_BYTES_MAX, Named};
use crate::mesh::balancer::Backend;
use crate::mesh::call::CallError;
use crate::mesh::outside;
use crate::mesh::policy::{Caller, Origin};
use crate::mesh::routes::{Place, PortRef, Routes, ServiceKey};
use crate::mesh::{CLUSTER_DOMAIN, Mesh};
use crate::net::Body;
use crate::net::http::to_origin_form;

/// Names with at least this many dots are looked up as they stand first.
const NDOTS: usize = 5;
/// ExternalNames that are followed in a row.
const ALIASES_MAX: usize = 8;
/// What a name stands for within the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Service(ServiceKey),
    Addresses(Vec<IpAddr>),
    Alias(String),
}

impl Mesh {
    /// The addresses of a name, as a pod of `namespace` sees it: Services (`svc`, `svc.ns`,
    /// `svc.ns.svc.cluster.local`), pods of headless Services, ExternalNames, pods by address, and
    /// names outside. Empty is "no such name".
    pub async fn resolve(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        let mut name = name.to_ascii_lowercase();
        for _ in 0..ALIASES_MAX {
            let found = find(&self.0.table.load().routes, namespace, &name);
            match found {
                Some(Found::Addresses(ips)) => return ips,
                Some(Found::Service(key)) => {
                    let table = self.0.table.load();
                    let Some(route) = table.routes.services.get(&key) else { return Vec::new() };
                    if route.is_headless {
                        return route.hosts.iter().map(|host| host.ip).collect();
                    }
                    return route.cluster_ips.clone();
                }
                // A trailing dot: the alias is a whole name.
                Some(Found::Alias(target)) => name = format!("{}.", target.trim_end_matches('.')),
                None => return look_outside(&name).await,
            }
        }
        Vec::new()
    }

    /// Sends a guest's request to the pod, Service or outside host that its authority names.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn http(
        &self,
        namespace: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, CallError> {
        self.http_as(namespace, Origin::Node, request).await
    }

    /// As [`Self::http`], for a pod of this node: its network policies and those of the pod it
    /// reaches must allow it.
    ///
    /// # Errors
    ///
    /// See [`CallError`].
    pub async fn http_from(
        &self,
        caller: Caller<'_>,
        request: Request<Body>,
    ) -> Result<Response<Body>, CallError> {
        self.http_as(caller.namespace, Origin::Pod(caller), request).await
    }

    async fn http_as(
        &self,
        namespace: &str,
        origin: Origin<'_>,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, CallError> {
        let authority = authority(&request)?;
        let backend = self.backend_for(namespace, &authority).await?;
        let backend = self.for_client(backend, origin.uid());
        to_origin_form(&mut request);
        let response = self.call(&backend, origin, request).await?;
        Ok(response.map(BodyExt::boxed_unsync))
    }

    async fn backend_for(
        &self,
        namespace: &str,
        authority: &Authority,
    ) -> Result<Arc<Backend>, CallError> {
        let port = authority.port_u16().unwrap_or(80);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        if let Ok(ip) = host.parse::<IpAddr>() {
            return self.backend_at(SocketAddr::new(ip, port));
        }
        let found = find(&self.0.table.load().routes, namespace, &host.to_ascii_lowercase());
        if let Some(Found::Service((namespace, name))) = &found {
            let port = PortRef::Number(port);
            if let Some(backend) = self.0.table.load().internal_port(namespace, name, &port) {
                return Ok(backend);
            }
        }
        // Headless Services answer at any port of their pods; names outside have addresses only.
        let ips = self.resolve(namespace, host).await;
        // Of the first one's family: a pod may listen in one only.
        let family =
            |ip: &&IpAddr| ips.first().is_some_and(|first| first.is_ipv4() == ip.is_ipv4());
        let count = ips.iter().take_while(family).count();
        let Some(ip) = ips.get(self.0.dice.below(count)) else {
            return Err(match found {
                Some(_) => CallError::NoEndpoint,
                None => CallError::UnknownName(host.to_owned()),
            });
        };
        self.backend_at(SocketAddr::new(*ip, port))
    }

    fn backend_at(&self, address: SocketAddr) -> Result<Arc<Backend>, CallError> {
        let table = self.0.table.load();
        if let Some(backend) = table.cluster_ip(address) {
            return Ok(backend);
        }
        if table.is_cluster_ip(address.ip()) {
            return Err(CallError::NoEndpoint);
        }
        let is_pod = table.routes.place_of(address.ip()) != Place::Outside;
        if !is_pod && !outside::is_allowed(address.ip()) {
            return Err(CallError::Forbidden(address.to_string()));
        }
        Ok(Arc::new(table.single(address, |node| self.peer(node))))
    }
}

async fn look_outside(name: &str) -> Vec<IpAddr> {
    let name = name.trim_end_matches('.');
    let is_ours = name == CLUSTER_DOMAIN
        || name.strip_suffix(CLUSTER_DOMAIN).is_some_and(|rest| rest.ends_with('.'));
    // The host's own short names (its hosts file) are not a pod's.
    if is_ours || !name.contains('.') || name.len() > NAME_BYTES_MAX {
        return Vec::new();
    }
    outside::lookup(name).await
}

/// Looks a lower-case name up through the search domains `ns.svc.cluster.local`,
/// `svc.cluster.local` and `cluster.local`, as a pod's resolver would.
fn find(routes: &Routes, namespace: &str, name: &str) -> Option<Found> {
    if name.len() > NAME_BYTES_MAX {
        return None;
    }
    if let Ok(ip) = name.parse::<IpAddr>() {
        return Some(Found::Addresses(vec![ip]));
    }
    if let Some(whole) = name.strip_suffix('.') {
        return find_whole(routes, whole);
    }
    let search = || {
        find_within(routes, &format!("{name}.{namespace}.svc"))
            .or_else(|| find_within(routes, &format!("{name}.svc")))
            .or_else(|| find_within(routes, name))
    };
    if name.matches('.').count() >= NDOTS {
        find_whole(routes, name).or_else(search)
    } else {
        search().or_else(|| find_whole(routes, name))
    }
}

fn find_whole(routes: &Routes, name: &str) -> Option<Found> {
    find_within(routes, names::within(name)?)
}

/// `svc.ns.svc`, `host.svc.ns.svc` or `1-2-3-4.ns.pod`.
fn find_within(routes: &Routes, within: &str) -> Option<Found> {
    match names::find(routes, within)? {
        Named::Service(key, route) => Some(match &route.external_name {
            Some(target) => Found::Alias(target.to_ascii_lowercase()),
            None => Found::Service(key),
        }),
        Named::Host(ips) => Some(Found::Addresses(ips)),
        Named::Pod(ip) => Some(Found::Addresses(vec![ip])),
        Named::Apex | Named::Version | Named::Branch | Named::Port { .. } => None,
    }
}

/// Whom a guest's request is for.
fn authority(request: &Request<Body>) -> Result<Authority, CallError> {
    let uri = request.uri();
    if uri.scheme().is_some_and(|scheme| *scheme != Scheme::HTTP) {
        return Err(CallError::Forbidden(format!("scheme of {uri}")));
    }
    let header = request.headers().get(http::header::HOST).and_then(|host| host.to_str().ok());
    let authority = match uri.authority() {
        Some(authority) => Some(authority.clone()),
        None => header.and_then(|host| host.parse().ok()),
    };
    authority.ok_or_else(|| CallError::Forbidden("no host".to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mesh::testing::{service, slice_of};

    fn routes() -> Routes {
        let services = [
            service("web", json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 80 }] })),
            service("db", json!({ "clusterIP": "None", "ports": [{ "port": 5432 }] })),
            service("ext", json!({ "type": "ExternalName", "externalName": "Example.org" })),
        ];
        let endpoints = json!([
            { "addresses": ["10.42.0.5"], "hostname": "db-0" },
            { "addresses": ["10.42.1.5"], "hostname": "db-1" },
        ]);
        let slices = [slice_of("db", &json!([{ "port": 5432 }]), &endpoints)];
        Routes::build(&services, &slices, [], [], "a")
    }

    #[test]
    fn names_are_found_through_the_search_domains() {
        let routes = routes();
        let web = Some(Found::Service(("default".to_owned(), "web".to_owned())));
        for name in [
            "web",
            "web.default",
            "web.default.svc",
            "web.default.svc.cluster.local",
            "web.default.svc.cluster.local.",
        ] {
            assert_eq!(find(&routes, "default", name), web, "{name}");
        }
        assert_eq!(find(&routes, "other", "web.default"), web);
        for name in ["web.", "nothing", "web.other", "a.b.c.d.e.f", "web.default.svc.", ""] {
            assert_eq!(find(&routes, "default", name), None, "{name}");
        }
        assert_eq!(find(&routes, "other", "web"), None);
    }

    #[test]
    fn pods_of_headless_services_aliases_and_addresses_are_found() {
        let routes = routes();
        let one = |ip: &str| Some(Found::Addresses(vec![ip.parse().unwrap()]));
        assert_eq!(find(&routes, "default", "db-1.db"), one("10.42.1.5"));
        assert_eq!(find(&routes, "x", "db-0.db.default.svc.cluster.local"), one("10.42.0.5"));
        assert_eq!(find(&routes, "x", "10-42-0-5.default.pod"), one("10.42.0.5"));
        assert_eq!(find(&routes, "x", "10.1.2.3"), one("10.1.2.3"));
        assert_eq!(find(&routes, "default", "ext"), Some(Found::Alias("example.org".to_owned())));
    }
}
