//! Listeners: which of them can be served, and which hosts they are for.

use crate::api::gateway::types::{GROUP, Gateway, Listener};

/// What became of one listener, as far as its Gateway tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerState {
    /// Its name.
    pub name: String,
    /// Another listener of the Gateway wants the same port in another way: the spec's reason.
    pub conflict: Option<&'static str>,
    /// Why it cannot be served at all: the spec's reason, and what to tell.
    pub refusal: Option<(&'static str, String)>,
    /// It can take HTTPRoutes.
    pub takes_http_routes: bool,
    /// It names kinds of routes that are not served here.
    pub has_unknown_kinds: bool,
}

impl ListenerState {
    /// Whether it serves requests.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.conflict.is_none() && self.refusal.is_none()
    }

    /// The states of all listeners of `gateway`, in their order.
    #[must_use]
    pub fn of(gateway: &Gateway) -> Vec<Self> {
        let all = &gateway.spec.listeners;
        let state = |listener: &Listener| {
            let (takes_http_routes, has_unknown_kinds) = kinds(listener);
            Self {
                name: listener.name.clone(),
                conflict: conflict(listener, all),
                refusal: refusal(listener),
                takes_http_routes,
                has_unknown_kinds,
            }
        };
        all.iter().map(state).collect()
    }
}

fn refusal(listener: &Listener) -> Option<(&'static str, String)> {
    match listener.protocol.as_str() {
        "HTTP" | "HTTPS" => {}
        other => {
            return Some(("UnsupportedProtocol", format!("protocol {other} is not served")));
        }
    }
    let mode = listener.tls.as_ref().and_then(|tls| tls.mode.as_deref());
    (listener.protocol == "HTTPS" && mode == Some("Passthrough"))
        .then(|| ("UnsupportedProtocol", "an HTTPS listener cannot pass TLS through".to_owned()))
}

fn conflict(listener: &Listener, all: &[Listener]) -> Option<&'static str> {
    let host = |one: &Listener| one.hostname.clone().unwrap_or_default().to_ascii_lowercase();
    let others = || all.iter().filter(|one| one.name != listener.name && one.port == listener.port);
    if others().any(|other| other.protocol != listener.protocol) {
        return Some("ProtocolConflict");
    }
    others().any(|other| host(other) == host(listener)).then_some("HostnameConflict")
}

/// Whether HTTPRoutes may attach, and whether there are kinds that nobody knows.
fn kinds(listener: &Listener) -> (bool, bool) {
    let is_http = matches!(listener.protocol.as_str(), "HTTP" | "HTTPS");
    let named = listener.allowed_routes.as_ref().map_or(&[][..], |allowed| &allowed.kinds);
    if named.is_empty() {
        return (is_http, false);
    }
    let is_known = |kind: &&crate::api::gateway::types::RouteGroupKind| {
        kind.group.as_deref().unwrap_or(GROUP) == GROUP && kind.kind == "HTTPRoute"
    };
    let known = named.iter().filter(is_known).count();
    (is_http && known > 0, known < named.len())
}

/// The hosts that both the listener and the route are for; empty: every host. `None`: they have
/// none in common.
#[must_use]
pub fn intersect(listener: Option<&str>, route: &[String]) -> Option<Vec<String>> {
    let listener = listener.filter(|host| !host.is_empty()).map(str::to_ascii_lowercase);
    let Some(listener) = listener else {
        return Some(route.iter().map(|host| host.to_ascii_lowercase()).collect());
    };
    if route.is_empty() {
        return Some(vec![listener]);
    }
    let common = route.iter().filter_map(|host| common(&listener, &host.to_ascii_lowercase()));
    let common: Vec<String> = common.collect();
    (!common.is_empty()).then_some(common)
}

/// The narrower of two host patterns, if one is within the other.
fn common(a: &str, b: &str) -> Option<String> {
    if matches_host(a, b) {
        return Some(b.to_owned());
    }
    matches_host(b, a).then(|| a.to_owned())
}

/// Whether `pattern` (a host, or `*.` and a host for any number of labels before it) covers `host`,
/// which may be such a pattern itself. Both in lower case.
#[must_use]
pub fn matches_host(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix('*') {
        // With its dot, so that at least one label is before it.
        Some(suffix) => host.strip_suffix(suffix).is_some_and(|label| !label.is_empty()),
        None => pattern == host,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn hosts_of_listener_and_route_are_those_in_common() {
        let some = |hosts: &[&str]| Some(hosts.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
        type Case = (Option<&'static str>, &'static [&'static str], Option<Vec<String>>);
        let cases: &[Case] = &[
            (None, &[], some(&[])),
            (Some(""), &["A.com"], some(&["a.com"])),
            (Some("a.com"), &[], some(&["a.com"])),
            (Some("a.com"), &["a.com", "b.com"], some(&["a.com"])),
            (Some("a.com"), &["*.com"], some(&["a.com"])),
            (Some("*.a.com"), &["x.a.com", "a.com", "x.y.a.com"], some(&["x.a.com", "x.y.a.com"])),
            (Some("*.a.com"), &["*.x.a.com"], some(&["*.x.a.com"])),
            (Some("*.x.a.com"), &["*.a.com"], some(&["*.x.a.com"])),
            (Some("*.a.com"), &["*.a.com"], some(&["*.a.com"])),
            (Some("*.a.com"), &["*.b.com", "ba.com"], None),
            (Some("a.com"), &["b.com"], None),
        ];
        for (listener, route, wanted) in cases {
            let route: Vec<String> = route.iter().map(|h| (*h).to_owned()).collect();
            assert_eq!(&intersect(*listener, &route), wanted, "{listener:?} {route:?}");
        }
    }

    #[test]
    fn listeners_that_cannot_be_served_say_why() {
        let gateway: Gateway = serde_json::from_value(json!({"spec": {"listeners": [
            {"name": "a", "port": 80, "protocol": "HTTP"},
            {"name": "b", "port": 80, "protocol": "HTTP"},
            {"name": "c", "port": 81, "protocol": "HTTP"},
            {"name": "d", "port": 81, "protocol": "HTTPS"},
            {"name": "e", "port": 82, "protocol": "TCP"},
            {"name": "f", "port": 83, "protocol": "HTTP", "allowedRoutes": {"kinds":
                [{"kind": "HTTPRoute"}, {"kind": "Other"}]}},
            {"name": "g", "port": 84, "protocol": "HTTP", "allowedRoutes": {"kinds":
                [{"kind": "GRPCRoute"}]}},
            {"name": "h", "port": 85, "protocol": "HTTP", "hostname": "a.com"},
            {"name": "i", "port": 85, "protocol": "HTTP"},
        ]}}))
        .unwrap();
        let states = ListenerState::of(&gateway);
        let conflicts: Vec<_> = states.iter().map(|state| state.conflict.unwrap_or("")).collect();
        let (host, protocol) = ("HostnameConflict", "ProtocolConflict");
        assert_eq!(conflicts, [host, host, protocol, protocol, "", "", "", "", ""]);
        assert_eq!(states[4].refusal.as_ref().unwrap().0, "UnsupportedProtocol");
        let kinds = |at: usize| (states[at].takes_http_routes, states[at].has_unknown_kinds);
        assert_eq!(
            [kinds(4), kinds(5), kinds(6), kinds(7)],
            [(false, false), (true, true), (false, true), (true, false)]
        );
        assert!(states[7].is_served() && !states[0].is_served());
    }
}
