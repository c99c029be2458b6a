//! HTTPRoute.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::{Errors, FieldError};
use crate::api::gateway::{GROUP, HTTPRoute, compile_regex, parse_duration};
use crate::api::json::{
    child, is_unset, items_at, set, set_default, set_default_text, str_at, text_at,
};
use crate::api::kinds::gateway::check_host;
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy};
use crate::api::table::age;

/// Rules of one route: the spec's bound.
const RULES_MAX: usize = 16;
/// Hosts of one route: the spec's bound.
const HOSTS_MAX: usize = 16;
/// Matches of all rules of one route: the spec's bound.
const MATCHES_MAX: usize = 128;
/// Parents of one route: the spec's bound.
const PARENTS_MAX: usize = 32;
/// Entries of the lists within a rule: the spec's bound.
const ITEMS_MAX: usize = 64;
/// Bytes of a path, a regular expression or a value that is compared.
const VALUE_BYTES_MAX: usize = 4096;
/// Largest share of a backend: the spec's bound.
const WEIGHT_MAX: u64 = 1_000_000;

const METHODS: &[&str] =
    &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
const FILTERS: &[&str] = &[
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
    "RequestRedirect",
    "URLRewrite",
    "ExtensionRef",
    "CORS",
    "ExternalAuth",
];

pub(super) const RESOURCE: Resource = Resource {
    group: GROUP,
    version: "v1",
    plural: "httproutes",
    singular: "httproute",
    kind: "HTTPRoute",
    list_kind: "HTTPRouteList",
    description: "HTTP rules that attach to gateways.",
    short_names: &[],
    categories: &["gateway-api"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: true,
    subresources: &[],
    columns: &[Column::NAME, Column::text("Hostnames"), Column::AGE],
    field_selectors: &[],
    strategy: Strategy { default, validate, cells, ..Strategy::plain(typed::<HTTPRoute>) },
};

fn default(object: &mut Value) {
    let Some(spec) = child(object, "spec") else { return };
    for parent in spec.get_mut("parentRefs").and_then(Value::as_array_mut).into_iter().flatten() {
        set_default(parent, "group", GROUP);
        set_default_text(parent, "kind", "Gateway");
    }
    let has_rules = spec.get("rules").and_then(Value::as_array).is_some_and(|all| !all.is_empty());
    if !has_rules {
        set(spec, "rules", json!([{}]));
    }
    for rule in spec.get_mut("rules").and_then(Value::as_array_mut).into_iter().flatten() {
        default_rule(rule);
    }
}

fn default_rule(rule: &mut Value) {
    let is_any = rule.get("matches").and_then(Value::as_array).is_none_or(Vec::is_empty);
    if is_any {
        set(rule, "matches", json!([{}]));
    }
    for one in rule.get_mut("matches").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(path) = child(one, "path") {
            set_default_text(path, "type", "PathPrefix");
            set_default(path, "value", "/");
        }
        for list in ["headers", "queryParams"] {
            for value in one.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                set_default_text(value, "type", "Exact");
            }
        }
    }
    default_filters(rule);
    for backend in rule.get_mut("backendRefs").and_then(Value::as_array_mut).into_iter().flatten() {
        default_backend(backend);
        set_default(backend, "weight", 1);
        default_filters(backend);
    }
}

fn default_backend(backend: &mut Value) {
    set_default(backend, "group", "");
    set_default_text(backend, "kind", "Service");
}

fn default_filters(of: &mut Value) {
    for filter in of.get_mut("filters").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(redirect) = filter.get_mut("requestRedirect").filter(|one| one.is_object()) {
            set_default(redirect, "statusCode", 302);
        }
        if let Some(backend) = filter.pointer_mut("/requestMirror/backendRef") {
            default_backend(backend);
        }
    }
}

fn bound(errors: &mut Errors, field: &str, items: &[Value], items_max: usize) {
    if items.len() > items_max {
        errors.push(FieldError::too_many(field, items.len(), items_max));
    }
}

fn validate(object: &Value, errors: &mut Errors) {
    bound(errors, "spec.parentRefs", items_at(object, "/spec/parentRefs"), PARENTS_MAX);
    for (at, parent) in items_at(object, "/spec/parentRefs").iter().enumerate() {
        if text_at(parent, "/name").is_empty() {
            errors.required(format!("spec.parentRefs[{at}].name"));
        }
    }
    let hosts = items_at(object, "/spec/hostnames");
    bound(errors, "spec.hostnames", hosts, HOSTS_MAX);
    for (at, host) in hosts.iter().enumerate() {
        let host = host.as_str().unwrap_or_default();
        check_host(host, &format!("spec.hostnames[{at}]"), errors);
    }
    let rules = items_at(object, "/spec/rules");
    bound(errors, "spec.rules", rules, RULES_MAX);
    let matches: usize = rules.iter().map(|rule| items_at(rule, "/matches").len()).sum();
    if matches > MATCHES_MAX {
        errors.push(FieldError::too_many("spec.rules", matches, MATCHES_MAX));
    }
    for (at, rule) in rules.iter().enumerate() {
        validate_rule(rule, &format!("spec.rules[{at}]"), errors);
    }
}

fn validate_rule(rule: &Value, field: &str, errors: &mut Errors) {
    bound(errors, &format!("{field}.matches"), items_at(rule, "/matches"), ITEMS_MAX);
    for (at, one) in items_at(rule, "/matches").iter().enumerate() {
        validate_match(one, &format!("{field}.matches[{at}]"), errors);
    }
    validate_filters(rule, field, errors);
    let backends = items_at(rule, "/backendRefs");
    bound(errors, &format!("{field}.backendRefs"), backends, ITEMS_MAX);
    for (at, backend) in backends.iter().enumerate() {
        let field = format!("{field}.backendRefs[{at}]");
        validate_backend(backend, &field, errors);
        validate_filters(backend, &field, errors);
    }
    let redirects = items_at(rule, "/filters").iter();
    if !backends.is_empty() && redirects.clone().any(|f| text_at(f, "/type") == "RequestRedirect") {
        let detail = "RequestRedirect filter must not be used together with backendRefs";
        errors.invalid(field, &Value::Null, detail);
    }
    let mut limits = Vec::new();
    for name in ["request", "backendRequest"] {
        let Some(text) = str_at(rule, &format!("/timeouts/{name}")) else { continue };
        match parse_duration(text) {
            Some(limit) => limits.push(limit),
            None => errors.invalid(
                format!("{field}.timeouts.{name}"),
                &json!(text),
                "must be a duration of the Gateway API, for example 10s",
            ),
        }
    }
    if let [request, backend] = limits.as_slice()
        && !request.is_zero()
        && backend > request
    {
        let detail = "backendRequest timeout cannot be longer than request timeout";
        errors.invalid(format!("{field}.timeouts"), &Value::Null, detail);
    }
}

fn validate_match(one: &Value, field: &str, errors: &mut Errors) {
    let kind = one.pointer("/path/type").unwrap_or(&Value::Null);
    let path = text_at(one, "/path/value");
    if !kind.is_null() {
        let kinds = &["Exact", "PathPrefix", "RegularExpression"];
        errors.one_of(format!("{field}.path.type"), kind, kinds);
        let is_literal = matches!(kind.as_str(), Some("Exact" | "PathPrefix"));
        let forbidden = ["//", "/./", "/../", "%2f", "%2F", "#"];
        if is_literal
            && (!path.starts_with('/')
                || forbidden.iter().any(|part| path.contains(part))
                || path.ends_with("/..")
                || path.ends_with("/."))
        {
            let detail = "must be an absolute path in its plain form";
            errors.invalid(format!("{field}.path.value"), &json!(path), detail);
        }
        if kind == "RegularExpression" {
            check_regex(path, &format!("{field}.path.value"), errors);
        }
    }
    if path.len() > VALUE_BYTES_MAX {
        errors.push(FieldError::too_long(format!("{field}.path.value"), VALUE_BYTES_MAX));
    }
    for (list, items_max) in [("headers", 16), ("queryParams", 16)] {
        let items = items_at(one, &format!("/{list}"));
        bound(errors, &format!("{field}.{list}"), items, items_max);
        for (at, item) in items.iter().enumerate() {
            let field = format!("{field}.{list}[{at}]");
            let (name, value) = (text_at(item, "/name"), text_at(item, "/value"));
            if name.is_empty() || (list == "headers" && !is_header_name(name)) {
                errors.invalid(format!("{field}.name"), &json!(name), "must be a name");
            }
            if value.len() > VALUE_BYTES_MAX {
                errors.push(FieldError::too_long(format!("{field}.value"), VALUE_BYTES_MAX));
            }
            let kind = item.get("type").unwrap_or(&Value::Null);
            if !kind.is_null() {
                errors.one_of(format!("{field}.type"), kind, &["Exact", "RegularExpression"]);
            }
            if kind == "RegularExpression" {
                check_regex(value, &format!("{field}.value"), errors);
            }
        }
    }
    if let Some(method) = one.get("method").filter(|method| !method.is_null()) {
        errors.one_of(format!("{field}.method"), method, METHODS);
    }
}

fn check_regex(text: &str, field: &str, errors: &mut Errors) {
    if compile_regex(text).is_none() {
        errors.invalid(field, &json!(text), "must be a regular expression");
    }
}

fn is_header_name(name: &str) -> bool {
    http::HeaderName::from_bytes(name.as_bytes()).is_ok()
}

fn validate_backend(backend: &Value, field: &str, errors: &mut Errors) {
    if text_at(backend, "/name").is_empty() {
        errors.required(format!("{field}.name"));
    }
    let is_service = text_at(backend, "/group").is_empty()
        && matches!(text_at(backend, "/kind"), "" | "Service");
    if is_service && is_unset(backend.get("port")) {
        errors.push(FieldError::required(
            format!("{field}.port"),
            "Must have port for Service reference",
        ));
    }
    let weight = backend.get("weight").and_then(Value::as_u64);
    if weight.is_some_and(|weight| weight > WEIGHT_MAX) {
        let detail = "must be between 0 and 1000000, inclusive";
        errors.invalid(format!("{field}.weight"), &json!(weight), detail);
    }
}

fn validate_filters(of: &Value, field: &str, errors: &mut Errors) {
    let filters = items_at(of, "/filters");
    bound(errors, &format!("{field}.filters"), filters, ITEMS_MAX);
    for (at, filter) in filters.iter().enumerate() {
        let field = format!("{field}.filters[{at}]");
        let kind = filter.get("type").unwrap_or(&Value::Null);
        errors.one_of(format!("{field}.type"), kind, FILTERS);
        let name = match kind.as_str().unwrap_or_default() {
            "RequestHeaderModifier" => "requestHeaderModifier",
            "ResponseHeaderModifier" => "responseHeaderModifier",
            "RequestMirror" => "requestMirror",
            "RequestRedirect" => "requestRedirect",
            "URLRewrite" => "urlRewrite",
            _ => continue,
        };
        if is_unset(filter.get(name)) {
            errors.push(FieldError::required(
                format!("{field}.{name}"),
                "must be set for this type of filter",
            ));
        }
        for list in ["set", "add"] {
            for pair in items_at(filter, &format!("/{name}/{list}")) {
                let (key, value) = (text_at(pair, "/name"), text_at(pair, "/value"));
                if !is_header_name(key) || http::HeaderValue::from_str(value).is_err() {
                    let detail = "must be a header field";
                    errors.invalid(format!("{field}.{name}.{list}"), pair, detail);
                }
            }
        }
        if name == "requestRedirect" {
            let redirect = filter.get(name).unwrap_or(&Value::Null);
            let code = redirect.get("statusCode").and_then(Value::as_u64).unwrap_or(302);
            if !matches!(code, 301 | 302 | 303 | 307 | 308) {
                let detail = "must be one of 301, 302, 303, 307, 308";
                errors.invalid(format!("{field}.{name}.statusCode"), &json!(code), detail);
            }
            if let Some(scheme) = redirect.get("scheme").filter(|scheme| !scheme.is_null()) {
                errors.one_of(format!("{field}.{name}.scheme"), scheme, &["http", "https"]);
            }
        }
        if name == "requestMirror" {
            let backend = filter.pointer("/requestMirror/backendRef").unwrap_or(&Value::Null);
            validate_backend(backend, &format!("{field}.{name}.backendRef"), errors);
        }
    }
    for kind in ["RequestHeaderModifier", "ResponseHeaderModifier", "RequestRedirect", "URLRewrite"]
    {
        if filters.iter().filter(|filter| text_at(filter, "/type") == kind).count() > 1 {
            let detail = format!("{kind} filter cannot be repeated");
            errors.invalid(format!("{field}.filters"), &Value::Null, &detail);
        }
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let hosts = object.pointer("/spec/hostnames").filter(|hosts| !hosts.is_null());
    vec![
        json!(meta::name(object)),
        json!(hosts.map(ToString::to_string).unwrap_or_default()),
        json!(age(object, now)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::strategy;

    fn errors(route: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(route, &mut errors);
        let texts = errors.into_vec().iter().map(ToString::to_string).collect::<Vec<_>>();
        texts.iter().map(|text| text.split(": ").next().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_route_is_completed_and_its_fields_are_known() {
        let mut route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "default"},
            "spec": {"parentRefs": [{"name": "gw"}], "rules": [{
                "matches": [{"headers": [{"name": "x", "value": "y"}]}],
                "filters": [{"type": "RequestMirror", "requestMirror": {"backendRef":
                    {"name": "m", "port": 80}}}],
                "backendRefs": [{"name": "web", "port": 80}]}]},
        });
        strategy::prepare_create(&RESOURCE, &mut route);
        let at = |pointer: &str| text_at(&route, pointer).to_owned();
        assert_eq!(at("/spec/parentRefs/0/kind"), "Gateway");
        assert_eq!(at("/spec/rules/0/matches/0/path/type"), "PathPrefix");
        assert_eq!(at("/spec/rules/0/matches/0/path/value"), "/");
        assert_eq!(at("/spec/rules/0/matches/0/headers/0/type"), "Exact");
        assert_eq!(at("/spec/rules/0/backendRefs/0/kind"), "Service");
        assert_eq!(route.pointer("/spec/rules/0/backendRefs/0/weight"), Some(&json!(1)));
        assert_eq!(errors(&route), Vec::<String>::new());
        assert_eq!(strategy::decode(&RESOURCE, &mut route, None), Ok(vec![]));

        let mut bare = json!({"metadata": {"name": "r"}, "spec": {}});
        default(&mut bare);
        let wanted = json!([{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]);
        assert_eq!(bare.pointer("/spec/rules"), Some(&wanted));
    }

    #[test]
    fn what_makes_no_route_is_refused_by_its_path() {
        let refused = errors(&json!({"spec": {"hostnames": ["a b"], "rules": [{
            "matches": [
                {"path": {"type": "Exact", "value": "a"}},
                {"path": {"type": "PathPrefix", "value": "/a//b"}},
                {"path": {"type": "RegularExpression", "value": "("}},
                {"method": "BREW"},
                {"headers": [{"name": "", "value": "x"}]}],
            "filters": [{"type": "URLRewrite"}, {"type": "Nothing"},
                {"type": "RequestRedirect", "requestRedirect": {"statusCode": 200}}],
            "backendRefs": [{"name": "web"}, {"name": "web", "port": 80, "weight": 2_000_000}],
            "timeouts": {"request": "1s", "backendRequest": "2s"},
        }]}}));
        assert_eq!(
            refused,
            [
                "spec.hostnames[0]",
                "spec.rules[0].matches[0].path.value",
                "spec.rules[0].matches[1].path.value",
                "spec.rules[0].matches[2].path.value",
                "spec.rules[0].matches[3].method",
                "spec.rules[0].matches[4].headers[0].name",
                "spec.rules[0].filters[0].urlRewrite",
                "spec.rules[0].filters[1].type",
                "spec.rules[0].filters[2].requestRedirect.statusCode",
                "spec.rules[0].backendRefs[0].port",
                "spec.rules[0].backendRefs[1].weight",
                "spec.rules[0]",
                "spec.rules[0].timeouts",
            ]
        );
    }
}
