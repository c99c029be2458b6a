//! What Pods and pod templates share: defaults and checks of a pod's spec.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::api::ephemeral;
use crate::api::field_error::{Errors, FieldError};
use crate::api::json::{child, is_true, items_at, set_default, set_default_text, text_at};
use crate::api::kinds::pod_volumes;
use crate::api::{names, quantity};

/// Kubernetes' grace of a pod that names none, in seconds.
const GRACE_SECONDS: i64 = 30;
/// Probes of a container.
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// Fills in what a pod's spec may leave out. `holder` is the Pod or the template.
pub(super) fn default(holder: &mut Value) {
    let Some(spec) = child(holder, "spec") else { return };
    set_default_text(spec, "restartPolicy", "Always");
    set_default_text(spec, "dnsPolicy", "ClusterFirst");
    set_default_text(spec, "schedulerName", "default-scheduler");
    set_default(spec, "terminationGracePeriodSeconds", GRACE_SECONDS);
    set_default(spec, "enableServiceLinks", true);
    set_default(spec, "securityContext", json!({}));
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in items_of(spec, list) {
            default_container(container);
        }
    }
    for volume in items_of(spec, "volumes") {
        pod_volumes::default(volume);
    }
}

pub(super) fn items_of<'a>(
    object: &'a mut Value,
    key: &str,
) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

fn default_container(container: &mut Value) {
    let policy = pull_policy(text_at(container, "/image"));
    set_default_text(container, "imagePullPolicy", policy);
    set_default_text(container, "terminationMessagePath", "/dev/termination-log");
    set_default_text(container, "terminationMessagePolicy", "File");
    for port in items_of(container, "ports") {
        set_default_text(port, "protocol", "TCP");
    }
    if let Some(resources) = child(container, "resources")
        && let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned()
        && let Some(requests) = child(resources, "requests")
    {
        for (name, limit) in limits {
            set_default(requests, &name, limit);
        }
    }
    for probe in PROBES {
        if let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) {
            default_probe(probe);
        }
    }
    for variable in items_of(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            set_default_text(field, "apiVersion", "v1");
        }
    }
}

fn default_probe(probe: &mut Value) {
    for (key, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        set_default(probe, key, value);
    }
    if let Some(get) = probe.get_mut("httpGet") {
        set_default_text(get, "path", "/");
        set_default_text(get, "scheme", "HTTP");
    }
}

/// `Always` for `latest` or no tag, else `IfNotPresent`.
pub(super) fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    match name.rsplit_once(':') {
        Some((_, tag)) if tag != "latest" => "IfNotPresent",
        _ => "Always",
    }
}

/// Kubernetes' class of service: Guaranteed, Burstable or BestEffort.
pub(super) fn qos_class(pod: &Value) -> &'static str {
    let containers: Vec<&Value> = items_at(pod, "/spec/containers")
        .iter()
        .chain(items_at(pod, "/spec/initContainers"))
        .collect();
    let get = |c: &Value, list: &str, name: &str| {
        c.pointer(&format!("/resources/{list}/{name}")).cloned()
    };
    let mut is_guaranteed = true;
    let mut is_best_effort = true;
    for container in containers {
        for name in ["cpu", "memory"] {
            let (request, limit) =
                (get(container, "requests", name), get(container, "limits", name));
            is_best_effort &= request.is_none() && limit.is_none();
            is_guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (is_best_effort, is_guaranteed) {
        (true, _) => "BestEffort",
        (_, true) => "Guaranteed",
        _ => "Burstable",
    }
}

/// Checks a pod's spec; `path` is `spec` or `spec.template.spec`.
pub(super) fn validate(holder: &Value, path: &str, errors: &mut Errors) {
    let containers = items_at(holder, "/spec/containers");
    if containers.is_empty() {
        errors.required(format!("{path}.containers"));
    }
    let mut seen = BTreeSet::new();
    for (list, pointer) in
        [("initContainers", "/spec/initContainers"), ("containers", "/spec/containers")]
    {
        for (at, container) in items_at(holder, pointer).iter().enumerate() {
            let field = format!("{path}.{list}[{at}]");
            let name = text_at(container, "/name");
            if !name.is_empty() && !seen.insert(name.to_owned()) {
                errors.duplicate(format!("{field}.name"), &json!(name));
            }
            validate_container(container, &field, errors);
        }
    }
    if path == "spec" {
        ephemeral::validate(holder, errors);
    } else if !items_at(holder, "/spec/ephemeralContainers").is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.forbidden(format!("{path}.ephemeralContainers"), detail);
    }
    let policy = holder.pointer("/spec/restartPolicy").unwrap_or(&Value::Null);
    errors.one_of(format!("{path}.restartPolicy"), policy, &["Always", "Never", "OnFailure"]);
    for field in ["hostPID", "hostIPC", "hostNetwork"] {
        if is_true(holder, &format!("/spec/{field}")) {
            errors.forbidden(
                format!("{path}.{field}"),
                "a WebAssembly pod has no namespaces of the host to share",
            );
        }
    }
    if let Some(grace) = holder.pointer("/spec/terminationGracePeriodSeconds")
        && grace.as_i64().is_some_and(|seconds| seconds < 0)
    {
        errors.invalid(
            format!("{path}.terminationGracePeriodSeconds"),
            grace,
            "must be greater than or equal to 0",
        );
    }
    pod_volumes::validate(holder, path, errors);
}

pub(in crate::api) fn validate_container(container: &Value, field: &str, errors: &mut Errors) {
    let name = text_at(container, "/name");
    if name.is_empty() {
        errors.required(format!("{field}.name"));
    } else if let Err(detail) = names::check_dns1123_label(name) {
        errors.invalid(format!("{field}.name"), &json!(name), detail);
    }
    if text_at(container, "/image").trim().is_empty() {
        errors.required(format!("{field}.image"));
    }
    let policy = container.get("imagePullPolicy").unwrap_or(&Value::Null);
    errors.one_of(format!("{field}.imagePullPolicy"), policy, &["Always", "IfNotPresent", "Never"]);
    for (at, port) in items_at(container, "/ports").iter().enumerate() {
        let number = port.get("containerPort").unwrap_or(&Value::Null);
        if !number.as_i64().is_some_and(|number| (1..=65535).contains(&number)) {
            let detail = "must be between 1 and 65535, inclusive";
            errors.invalid(format!("{field}.ports[{at}].containerPort"), number, detail);
        }
        let protocol = port.get("protocol").unwrap_or(&Value::Null);
        errors.one_of(format!("{field}.ports[{at}].protocol"), protocol, &["SCTP", "TCP", "UDP"]);
    }
    for (at, variable) in items_at(container, "/env").iter().enumerate() {
        let name = text_at(variable, "/name");
        if name.is_empty() {
            errors.required(format!("{field}.env[{at}].name"));
        } else if let Err(detail) = names::check_env_name(name) {
            errors.invalid(format!("{field}.env[{at}].name"), &json!(name), detail);
        }
    }
    if is_true(container, "/securityContext/privileged") {
        errors.forbidden(
            format!("{field}.securityContext.privileged"),
            "a WebAssembly container has no privileges of the host to get",
        );
    }
    validate_resources(container, field, errors);
}

fn validate_resources(container: &Value, field: &str, errors: &mut Errors) {
    for list in ["limits", "requests"] {
        for (name, amount) in crate::api::json::entries_at(container, &format!("/resources/{list}"))
        {
            let text = amount.as_str().map_or_else(|| amount.to_string(), str::to_owned);
            if quantity::canonical(&text).is_err() {
                let path = format!("{field}.resources.{list}[{name}]");
                errors.push(FieldError::invalid(
                    path,
                    amount,
                    "must be a quantity such as 100m or 64Mi",
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(pod: &Value) -> Vec<String> {
        let mut errors = Errors::default();
        validate(pod, "spec", &mut errors);
        errors.into_vec().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pod_is_completed_like_kubernetes_does() {
        let mut pod = json!({"spec": {
            "containers": [{"name": "a", "image": "x:v1", "ports": [{"containerPort": 80}],
                "resources": {"limits": {"cpu": "1"}}, "readinessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}],
        }});
        default(&mut pod);
        for (path, wanted) in [
            ("/spec/restartPolicy", json!("Always")),
            ("/spec/terminationGracePeriodSeconds", json!(30)),
            ("/spec/containers/0/imagePullPolicy", json!("IfNotPresent")),
            ("/spec/containers/0/ports/0/protocol", json!("TCP")),
            ("/spec/containers/0/resources/requests/cpu", json!("1")),
            ("/spec/containers/0/readinessProbe/httpGet/path", json!("/")),
            ("/spec/containers/0/readinessProbe/failureThreshold", json!(3)),
            ("/spec/volumes/0/emptyDir", json!({})),
        ] {
            assert_eq!(pod.pointer(path), Some(&wanted), "{path}");
        }
        assert!(errors(&pod).is_empty());
        assert_eq!(qos_class(&pod), "Burstable");
    }

    #[test]
    fn images_without_a_tag_are_pulled_always() {
        let cases = [
            ("a", "Always"),
            ("a:latest", "Always"),
            ("a:v1", "IfNotPresent"),
            ("h:5000/a", "Always"),
            ("a@sha256:0", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn what_is_missing_or_refused_is_named_by_its_path() {
        assert!(
            errors(&json!({"spec": {"restartPolicy": "Always"}}))
                .contains(&"spec.containers: Required value".to_owned())
        );
        let bad = json!({"spec": {"restartPolicy": "Always", "hostNetwork": true, "containers": [
            {"name": "A", "imagePullPolicy": "Always"},
            {"name": "b", "image": "x", "imagePullPolicy": "Always", "securityContext": {"privileged": true}},
            {"name": "b", "image": "x", "imagePullPolicy": "Always", "resources": {"limits": {"cpu": "many"}}},
        ]}});
        let found = errors(&bad).join("\n");
        for part in [
            "spec.containers[0].name: Invalid value",
            "spec.containers[0].image: Required value",
            "spec.containers[2].name: Duplicate value",
            "privileged: Forbidden",
            "hostNetwork: Forbidden",
            "resources.limits[cpu]: Invalid value",
        ] {
            assert!(found.contains(part), "{part} in {found}");
        }
    }
}
