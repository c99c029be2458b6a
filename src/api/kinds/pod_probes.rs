//! Probes and lifecycle hooks of containers: defaults and checks.

use serde_json::{Value, json};

use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{int_at, is_unset, items_at, set_default, set_default_text, text_at};
use crate::api::names;

/// Probes of a container.
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
/// What a probe can do, and what a hook can.
const PROBE_HANDLERS: [&str; 4] = ["exec", "grpc", "httpGet", "tcpSocket"];
const HOOK_HANDLERS: [&str; 4] = ["exec", "httpGet", "sleep", "tcpSocket"];
/// Said of what only sidecars may have among the init containers.
const ONLY_SIDECARS: &str = "may not be set for init containers without restartPolicy=Always";
const PORT_RANGE: &str = "must be between 1 and 65535, inclusive";

/// Fills in what probes and hooks may leave out.
pub(super) fn default(container: &mut Value) {
    for name in PROBES {
        let Some(probe) = container.get_mut(name).filter(|probe| probe.is_object()) else {
            continue;
        };
        for (key, value) in [
            ("timeoutSeconds", 1),
            ("periodSeconds", 10),
            ("successThreshold", 1),
            ("failureThreshold", 3),
        ] {
            set_default(probe, key, value);
        }
        default_handler(probe);
    }
    for hook in HOOKS {
        if let Some(hook) = container.pointer_mut(&format!("/lifecycle/{hook}")) {
            default_handler(hook);
        }
    }
}

fn default_handler(handler: &mut Value) {
    if let Some(get) = handler.get_mut("httpGet") {
        set_default_text(get, "path", "/");
        set_default_text(get, "scheme", "HTTP");
    }
    if let Some(call) = handler.get_mut("grpc") {
        set_default(call, "service", "");
    }
}

/// Checks the probes and hooks of a container that may have them.
pub(super) fn validate(container: &Value, grace: i64, field: &str, errors: &mut Errors) {
    for name in PROBES {
        if let Some(probe) = container.get(name).filter(|probe| probe.is_object()) {
            validate_probe(name, probe, &format!("{field}.{name}"), errors);
        }
    }
    for name in HOOKS {
        let Some(hook) = container.pointer(&format!("/lifecycle/{name}")) else { continue };
        let field = format!("{field}.lifecycle.{name}");
        if hook.is_object() {
            validate_handler(hook, &HOOK_HANDLERS, &field, errors);
        }
        if let Some(seconds) = int_at(hook, "/sleep/seconds")
            && !(0..=grace).contains(&seconds)
        {
            let field = format!("{field}.sleep.seconds");
            let detail = format!(
                "must be non-negative and less than terminationGracePeriodSeconds ({grace})"
            );
            errors.invalid(field, &json!(seconds), &detail);
        }
    }
}

/// Checks that a regular init container, which nobody waits for but its end, has none of them.
pub(super) fn validate_none(container: &Value, field: &str, errors: &mut Errors) {
    for name in PROBES.into_iter().chain(["lifecycle"]) {
        if !is_unset(container.get(name)) {
            errors.forbidden(format!("{field}.{name}"), ONLY_SIDECARS);
        }
    }
}

fn validate_probe(name: &str, probe: &Value, field: &str, errors: &mut Errors) {
    validate_handler(probe, &PROBE_HANDLERS, field, errors);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if let Some(value) = probe.get(key).filter(|value| value.as_i64().is_some_and(|n| n < 0)) {
            let detail = "must be greater than or equal to 0";
            errors.invalid(format!("{field}.{key}"), value, detail);
        }
    }
    let grace = probe.get("terminationGracePeriodSeconds").filter(|grace| !grace.is_null());
    let grace_field = format!("{field}.terminationGracePeriodSeconds");
    if name == "readinessProbe" {
        if let Some(grace) = grace {
            errors.invalid(grace_field, grace, "must not be set for readinessProbes");
        }
        return;
    }
    if let Some(grace) = grace.filter(|grace| grace.as_i64().is_some_and(|n| n <= 0)) {
        errors.invalid(grace_field, grace, "must be greater than 0");
    }
    if let Some(successes) = probe.get("successThreshold").filter(|n| n.as_i64() != Some(1)) {
        errors.invalid(format!("{field}.successThreshold"), successes, "must be 1");
    }
}

fn validate_handler(handler: &Value, known: &[&str], field: &str, errors: &mut Errors) {
    let named: Vec<&str> =
        known.iter().copied().filter(|key| !is_unset(handler.get(key))).collect();
    match named.as_slice() {
        [] => errors.push(FieldError::required(field, "must specify a handler type")),
        [_] => {}
        [_, more @ ..] => {
            for key in more {
                let detail = "may not specify more than 1 handler type";
                errors.forbidden(format!("{field}.{key}"), detail);
            }
        }
    }
    if named.contains(&"exec") && items_at(handler, "/exec/command").is_empty() {
        errors.required(format!("{field}.exec.command"));
    }
    for key in ["httpGet", "tcpSocket", "grpc"].into_iter().filter(|key| named.contains(key)) {
        validate_port(
            handler.pointer(&format!("/{key}/port")),
            &format!("{field}.{key}.port"),
            errors,
        );
    }
    if named.contains(&"httpGet") {
        let scheme = handler.pointer("/httpGet/scheme").unwrap_or(&Value::Null);
        errors.one_of(format!("{field}.httpGet.scheme"), scheme, &["HTTP", "HTTPS"]);
        for (at, header) in items_at(handler, "/httpGet/httpHeaders").iter().enumerate() {
            let name = text_at(header, "/name");
            if !is_header_name(name) {
                let field = format!("{field}.httpGet.httpHeaders[{at}].name");
                let detail = "a valid HTTP header must consist of alphanumeric characters or '-' \
                              (e.g. 'X-Header-Name', regex used for validation is '[-A-Za-z0-9]+')";
                errors.invalid(field, &json!(name), detail);
            }
        }
    }
}

/// Kubernetes' idea of the name of a header.
fn is_header_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
}

fn validate_port(port: Option<&Value>, field: &str, errors: &mut Errors) {
    let port = port.unwrap_or(&Value::Null);
    match port {
        Value::String(name) => {
            if let Err(rule) = names::check_port_name(name) {
                errors.invalid(field, port, rule);
            }
        }
        Value::Number(number) if number.as_i64().is_some_and(|n| (1..=65535).contains(&n)) => {}
        _ => errors.invalid(field, port, PORT_RANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(container: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(container, 30, "c", &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn probes_and_hooks_are_completed_like_kubernetes_does() {
        for name in PROBES {
            let mut container = json!({name: {"httpGet": {"port": 80}}});
            default(&mut container);
            let wanted = json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3});
            assert_eq!(container, json!({name: wanted}));
            assert_eq!(texts(&container), Vec::<String>::new());
        }
        let mut container = json!({"livenessProbe": {"grpc": {"port": 1}, "timeoutSeconds": 7},
            "lifecycle": {"postStart": {"httpGet": {"port": "web"}}, "preStop": {"httpGet": {
                "port": 1, "path": "/bye", "scheme": "HTTPS"}}}});
        default(&mut container);
        for (path, wanted) in [
            ("/livenessProbe/grpc/service", json!("")),
            ("/livenessProbe/timeoutSeconds", json!(7)),
            ("/lifecycle/postStart/httpGet/path", json!("/")),
            ("/lifecycle/postStart/httpGet/scheme", json!("HTTP")),
            ("/lifecycle/preStop/httpGet/path", json!("/bye")),
            ("/lifecycle/preStop/httpGet/scheme", json!("HTTPS")),
        ] {
            assert_eq!(container.pointer(path), Some(&wanted), "{path}");
        }
        assert_eq!(texts(&container), Vec::<String>::new());
    }

    #[test]
    fn a_liveness_or_startup_probe_needs_one_success_and_only_they_have_a_grace() {
        let probe = |more: Value| {
            let mut probe = json!({"tcpSocket": {"port": 1}, "successThreshold": 1});
            json_patch::merge(&mut probe, &more);
            probe
        };
        for name in ["livenessProbe", "startupProbe"] {
            assert_eq!(
                texts(&json!({name: probe(json!({"successThreshold": 2}))})),
                [format!("c.{name}.successThreshold: Invalid value: 2: must be 1")]
            );
            assert_eq!(
                texts(&json!({name: probe(json!({"terminationGracePeriodSeconds": 0}))})),
                [format!(
                    "c.{name}.terminationGracePeriodSeconds: Invalid value: 0: must be greater than 0"
                )]
            );
            let allowed = json!({name: probe(json!({"terminationGracePeriodSeconds": 5}))});
            assert_eq!(texts(&allowed), Vec::<String>::new());
        }
        let readiness = |more: Value| texts(&json!({"readinessProbe": probe(more)}));
        assert_eq!(readiness(json!({"successThreshold": 2})), Vec::<String>::new());
        assert_eq!(
            readiness(json!({"terminationGracePeriodSeconds": 5})),
            [
                "c.readinessProbe.terminationGracePeriodSeconds: Invalid value: 5: must not be set for readinessProbes"
            ]
        );
    }

    #[test]
    fn a_probe_or_hook_does_one_thing_that_can_be_done() {
        for (handler, wanted) in [
            (json!({}), ": Required value: must specify a handler type"),
            (
                json!({"tcpSocket": {"port": 1}, "exec": {"command": ["a"]}}),
                ".tcpSocket: Forbidden: may not specify more than 1 handler type",
            ),
            (json!({"exec": {}}), ".exec.command: Required value"),
            (
                json!({"tcpSocket": {"port": 0}}),
                ".tcpSocket.port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                json!({"httpGet": {"port": 1, "scheme": "GOPHER"}}),
                ".httpGet.scheme: Unsupported value: \"GOPHER\": supported values: \"HTTP\", \"HTTPS\"",
            ),
        ] {
            let found = texts(&json!({"lifecycle": {"preStop": handler}}));
            assert_eq!(found, [format!("c.lifecycle.preStop{wanted}")]);
            let mut probe = handler;
            probe["successThreshold"] = json!(1);
            let found = texts(&json!({"startupProbe": probe}));
            assert_eq!(found, [format!("c.startupProbe{wanted}")]);
        }
        let header = json!({"httpGet": {"port": 1, "scheme": "HTTP", "httpHeaders": [
            {"name": "X-Fine", "value": ""}, {"name": "not one", "value": ""}]}});
        let found = texts(&json!({"readinessProbe": header}));
        assert!(
            found[0].starts_with("c.readinessProbe.httpGet.httpHeaders[1].name: Invalid value")
        );
        assert_eq!(found.len(), 1, "{found:?}");
        let found =
            texts(&json!({"readinessProbe": {"tcpSocket": {"port": 1}, "periodSeconds": -1}}));
        assert_eq!(
            found,
            [
                "c.readinessProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0"
            ]
        );
    }

    #[test]
    fn a_hook_does_not_sleep_longer_than_the_grace() {
        let sleep = |seconds: i64| {
            texts(&json!({"lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}}))
        };
        assert_eq!(sleep(30), Vec::<String>::new());
        for seconds in [-1, 31] {
            assert_eq!(
                sleep(seconds),
                [format!(
                    "c.lifecycle.preStop.sleep.seconds: Invalid value: {seconds}: must be non-negative and less than terminationGracePeriodSeconds (30)"
                )]
            );
        }
    }
}
