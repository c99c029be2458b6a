//! What becomes of a request that a rule is for.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{StatusCode, Uri};

use crate::mesh::traffic::RequestStats;

/// Bytes of a request's body when the route sets no limit.
pub(super) const BODY_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// How a backend is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Protocol {
    #[default]
    Http1,
    /// HTTP/2 without TLS: `appProtocol: kubernetes.io/h2c`.
    H2c,
}

/// See the module. `B` is a reference to a Service while the table is pure data, and a balancer
/// when it is in use.
#[derive(Debug, Clone)]
pub(super) struct Action<B> {
    /// Kind, namespace, name (and number of the rule), for metrics and the access log.
    pub(super) name: Arc<str>,
    /// Backends with their shares.
    pub(super) choices: Vec<Choice<B>>,
    pub(super) weight_total: u64,
    pub(super) request: HeaderChange,
    pub(super) response: HeaderChange,
    pub(super) redirect: Option<Redirect>,
    pub(super) rewrite: Option<Rewrite>,
    pub(super) mirrors: Vec<Mirror<B>>,
    /// For the whole request.
    pub(super) timeout: Option<Duration>,
    /// For one attempt at a backend.
    pub(super) backend_timeout: Option<Duration>,
    pub(super) body_bytes_max: u64,
    /// What a request gets whose backend does not exist: 500 by a route, 503 by an Ingress.
    pub(super) missing: StatusCode,
    pub(super) stats: OnceLock<Arc<RequestStats>>,
}

/// A backend with its share.
#[derive(Debug, Clone)]
pub(super) struct Choice<B> {
    pub(super) weight: u64,
    /// `None`: it cannot be used, and requests for it fail.
    pub(super) backend: Option<B>,
    pub(super) protocol: Protocol,
    pub(super) request: HeaderChange,
    pub(super) response: HeaderChange,
}

/// Where copies go.
#[derive(Debug, Clone)]
pub(super) struct Mirror<B> {
    pub(super) backend: Option<B>,
    pub(super) numerator: u32,
    pub(super) denominator: u32,
}

impl<B> Action<B> {
    /// Answers with `missing` until it gets a choice.
    pub(super) fn new(name: &str, missing: StatusCode) -> Self {
        Self {
            name: name.into(),
            choices: Vec::new(),
            weight_total: 0,
            request: HeaderChange::default(),
            response: HeaderChange::default(),
            redirect: None,
            rewrite: None,
            mirrors: Vec::new(),
            timeout: None,
            backend_timeout: None,
            body_bytes_max: BODY_BYTES_MAX,
            missing,
            stats: OnceLock::new(),
        }
    }

    pub(super) fn add(&mut self, choice: Choice<B>) {
        if choice.weight > 0 {
            self.weight_total = self.weight_total.saturating_add(choice.weight);
            self.choices.push(choice);
        }
    }

    /// A backend by the shares; `below` gives a number below the one it gets.
    pub(super) fn choose(&self, below: impl FnOnce(u64) -> u64) -> Option<&Choice<B>> {
        if let [only] = self.choices.as_slice() {
            return Some(only);
        }
        let mut left = below(self.weight_total);
        self.choices.iter().find(|choice| {
            let is_it = left < choice.weight;
            left = left.saturating_sub(choice.weight);
            is_it
        })
    }

    /// The same with other backends.
    pub(super) fn map<U>(&self, resolve: &impl Fn(&B) -> Option<U>) -> Action<U> {
        let backend = |backend: &Option<B>| backend.as_ref().and_then(resolve);
        Action {
            name: Arc::clone(&self.name),
            choices: self
                .choices
                .iter()
                .map(|choice| Choice {
                    weight: choice.weight,
                    backend: backend(&choice.backend),
                    protocol: choice.protocol,
                    request: choice.request.clone(),
                    response: choice.response.clone(),
                })
                .collect(),
            weight_total: self.weight_total,
            request: self.request.clone(),
            response: self.response.clone(),
            redirect: self.redirect.clone(),
            rewrite: self.rewrite.clone(),
            mirrors: self
                .mirrors
                .iter()
                .map(|mirror| Mirror {
                    backend: backend(&mirror.backend),
                    numerator: mirror.numerator,
                    denominator: mirror.denominator,
                })
                .collect(),
            timeout: self.timeout,
            backend_timeout: self.backend_timeout,
            body_bytes_max: self.body_bytes_max,
            missing: self.missing,
            stats: OnceLock::new(),
        }
    }
}

/// Changes to header fields: set, then add, then remove.
#[derive(Debug, Clone, Default)]
pub(super) struct HeaderChange {
    pub(super) set: Vec<(HeaderName, HeaderValue)>,
    pub(super) add: Vec<(HeaderName, HeaderValue)>,
    pub(super) remove: Vec<HeaderName>,
}

impl HeaderChange {
    pub(super) fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name.clone(), value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Another path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PathChange {
    /// The whole path.
    Full(String),
    /// In place of the prefix that matched.
    Prefix(String),
}

impl PathChange {
    /// The path after the change; `prefix_bytes` of it were matched by a prefix.
    pub(super) fn apply(&self, path: &str, prefix_bytes: usize) -> String {
        match self {
            Self::Full(full) => full.clone(),
            Self::Prefix(with) => {
                let rest = path.get(prefix_bytes..).unwrap_or_default();
                let path = format!("{}{rest}", with.trim_end_matches('/'));
                if path.starts_with('/') { path } else { format!("/{path}") }
            }
        }
    }
}

/// Another host or path for the backend.
#[derive(Debug, Clone)]
pub(super) struct Rewrite {
    pub(super) host: Option<HeaderValue>,
    pub(super) path: Option<PathChange>,
}

/// An answer that sends the client elsewhere.
#[derive(Debug, Clone)]
pub(super) struct Redirect {
    pub(super) scheme: Option<&'static str>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) path: Option<PathChange>,
    pub(super) status: StatusCode,
}

/// Where a request came in, as far as a redirect depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival<'a> {
    pub(super) scheme: &'static str,
    /// The listener's port.
    pub(super) port: u16,
    /// The port is the node's ingress: clients may know it by another number.
    pub(super) is_ingress: bool,
    /// Host as the client wrote it, without port.
    pub(super) host: &'a str,
    /// Port that the client wrote.
    pub(super) client_port: Option<u16>,
    /// Real port of the node's HTTP and HTTPS ingress.
    pub(super) ingress_ports: (u16, u16),
}

impl Redirect {
    /// The value of `Location`.
    pub(super) fn location(&self, at: Arrival<'_>, uri: &Uri, prefix_bytes: usize) -> String {
        let scheme = self.scheme.unwrap_or(at.scheme);
        let host = self.host.as_deref().unwrap_or(at.host);
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let port = self.port.or_else(|| self.port_kept(at));
        let usual = if scheme == "https" { 443 } else { 80 };
        let port = port.filter(|port| *port != usual);
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let path = match &self.path {
            Some(change) => change.apply(uri.path(), prefix_bytes),
            None => uri.path().to_owned(),
        };
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{scheme}://{host}{port}{path}{query}")
    }

    /// The port when the redirect names none; `None`: the usual one of the scheme.
    fn port_kept(&self, at: Arrival<'_>) -> Option<u16> {
        let is_other = self.scheme.is_some_and(|scheme| scheme != at.scheme);
        if !is_other {
            let kept = if at.is_ingress { at.client_port } else { Some(at.port) };
            return kept.filter(|_| self.scheme.is_none() || at.is_ingress);
        }
        // A client that sees the ingress at its real port is sent to the other real port.
        let (http, https) = at.ingress_ports;
        let (here, there) = if at.scheme == "http" { (http, https) } else { (https, http) };
        (at.is_ingress && at.client_port == Some(here) && there != 0).then_some(there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_is_replaced_as_the_spec_has_it() {
        for (path, prefix, with, wanted) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/foo", "", "/xyz", "/xyz/foo"),
        ] {
            let change = PathChange::Prefix(with.to_owned());
            assert_eq!(change.apply(path, prefix.len()), wanted, "{path} {with}");
        }
        assert_eq!(PathChange::Full("/x".to_owned()).apply("/foo", 4), "/x");
    }

    #[test]
    fn requests_are_shared_by_weight_and_zero_gets_none() {
        let mut action = Action::new("a", StatusCode::INTERNAL_SERVER_ERROR);
        for (weight, backend) in [(3, "a"), (0, "b"), (1, "c")] {
            action.add(Choice {
                weight,
                backend: Some(backend),
                protocol: Protocol::Http1,
                request: HeaderChange::default(),
                response: HeaderChange::default(),
            });
        }
        assert_eq!(action.weight_total, 4);
        let chosen: Vec<_> = (0..5).map(|n| action.choose(|_| n).and_then(|c| c.backend)).collect();
        assert_eq!(chosen, [Some("a"), Some("a"), Some("a"), Some("c"), None]);
    }

    #[test]
    fn a_redirect_keeps_what_it_does_not_name() {
        let uri = "/a/b?c=d".parse().unwrap();
        let http = Arrival {
            scheme: "http",
            port: 80,
            is_ingress: true,
            host: "h.com",
            client_port: None,
            ingress_ports: (8080, 8443),
        };
        let plain = Redirect {
            scheme: None,
            host: None,
            port: None,
            path: None,
            status: StatusCode::FOUND,
        };
        let https = Redirect { scheme: Some("https"), ..plain.clone() };
        let real = Arrival { client_port: Some(8080), ..http };
        let own = Arrival { port: 9000, is_ingress: false, client_port: Some(1), ..http };
        let host = Redirect { host: Some("x.com".to_owned()), ..plain.clone() };
        let port = Redirect { port: Some(444), ..https.clone() };
        let usual = Redirect { port: Some(443), ..https.clone() };
        let path = Redirect { path: Some(PathChange::Prefix("/z".to_owned())), ..plain.clone() };
        for (redirect, at, wanted) in [
            (&plain, http, "http://h.com/a/b?c=d"),
            (&plain, real, "http://h.com:8080/a/b?c=d"),
            (&plain, own, "http://h.com:9000/a/b?c=d"),
            (&host, own, "http://x.com:9000/a/b?c=d"),
            (&https, http, "https://h.com/a/b?c=d"),
            (&https, real, "https://h.com:8443/a/b?c=d"),
            (&https, own, "https://h.com/a/b?c=d"),
            (&port, http, "https://h.com:444/a/b?c=d"),
            (&usual, own, "https://h.com/a/b?c=d"),
            (&path, http, "http://h.com/z/b?c=d"),
        ] {
            assert_eq!(redirect.location(at, &uri, 2), wanted);
        }
    }

    #[test]
    fn header_fields_are_set_added_and_removed() {
        let pair = |name: &'static str, value: &'static str| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        let change = HeaderChange {
            set: vec![pair("a", "new")],
            add: vec![pair("b", "2")],
            remove: vec![HeaderName::from_static("c")],
        };
        let mut headers: HeaderMap =
            [pair("a", "old"), pair("b", "1"), pair("c", "x")].into_iter().collect();
        change.apply(&mut headers);
        assert_eq!(headers["a"], "new");
        assert_eq!(headers.get_all("b").iter().collect::<Vec<_>>(), ["1", "2"]);
        assert!(!headers.contains_key("c"));
    }
}
