//! What Pods and pod templates share: defaults and checks of a pod's spec.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::api::ephemeral;
use crate::api::field_error::Errors;
use crate::api::json::{child, int_at, items_at, set_default, set_default_text, text_at};
use crate::api::kinds::{
    pod_claims, pod_env, pod_placement, pod_ports, pod_probes, pod_resources, pod_security,
    pod_volumes,
};
use crate::api::names;

/// Kubernetes' grace of a pod that names none, in seconds.
const GRACE_SECONDS: i64 = 30;
const DNS_POLICIES: &[&str] = &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];

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
    pod_probes::default(container);
    for variable in items_of(container, "env") {
        if let Some(field) = variable.pointer_mut("/valueFrom/fieldRef") {
            set_default_text(field, "apiVersion", "v1");
        }
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

/// Checks a pod's spec; `path` is `spec` or `spec.template.spec`.
pub(super) fn validate(holder: &Value, path: &str, errors: &mut Errors) {
    let containers = items_at(holder, "/spec/containers");
    if containers.is_empty() {
        errors.required(format!("{path}.containers"));
    }
    let grace = int_at(holder, "/spec/terminationGracePeriodSeconds").unwrap_or(GRACE_SECONDS);
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
            let image = text_at(container, "/image");
            // Templates had it before this was looked at, in Kubernetes.
            if path == "spec" && image.trim() != image {
                let detail = "must not have leading or trailing whitespace";
                errors.invalid(format!("{field}.image"), &json!(image), detail);
            }
            validate_role(container, list, grace, &field, errors);
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
    pod_security::validate_pod(holder, path, errors);
    let deadline = holder.pointer("/spec/activeDeadlineSeconds").filter(|d| !d.is_null());
    if let Some(deadline) = deadline
        && !deadline.as_i64().is_some_and(|seconds| (1..=i64::from(i32::MAX)).contains(&seconds))
    {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.invalid(format!("{path}.activeDeadlineSeconds"), deadline, detail);
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
    validate_names(holder, path, errors);
    pod_claims::validate(holder, path, errors);
    pod_volumes::validate(holder, path, errors);
    pod_placement::validate(holder, path, errors);
}

/// What depends on whether a container is a main, a sidecar or a regular init container.
fn validate_role(container: &Value, list: &str, grace: i64, field: &str, errors: &mut Errors) {
    let policy = container.get("restartPolicy").filter(|policy| !policy.is_null());
    let policy_field = format!("{field}.restartPolicy");
    match policy {
        Some(_) if list == "containers" => {
            errors.forbidden(policy_field, "may not be set for non-init containers");
        }
        Some(policy) => errors.one_of(policy_field, policy, &["Always"]),
        None if list == "initContainers" => {
            return pod_probes::validate_none(container, field, errors);
        }
        None => {}
    }
    pod_probes::validate(container, grace, field, errors);
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
    let policy = container.get("terminationMessagePolicy").filter(|policy| !policy.is_null());
    if let Some(policy) = policy {
        let policies = &["FallbackToLogsOnError", "File"];
        errors.one_of(format!("{field}.terminationMessagePolicy"), policy, policies);
    }
    pod_ports::validate(container, field, errors);
    pod_env::validate(container, field, errors);
    pod_security::validate(container, field, errors);
    pod_resources::validate(container, field, errors);
}

/// What a pod says of itself and of how it looks up names.
fn validate_names(holder: &Value, path: &str, errors: &mut Errors) {
    type Check = fn(&str) -> Result<(), &'static str>;
    let checks: [(&str, Check); 3] = [
        ("hostname", names::check_dns1123_label),
        ("subdomain", names::check_dns1123_label),
        ("nodeName", names::check_dns1123_subdomain),
    ];
    for (key, check) in checks {
        let name = text_at(holder, &format!("/spec/{key}"));
        if let Err(rule) = check(name)
            && !name.is_empty()
        {
            errors.invalid(format!("{path}.{key}"), &json!(name), rule);
        }
    }
    let mut gates = BTreeSet::new();
    for (at, gate) in items_at(holder, "/spec/schedulingGates").iter().enumerate() {
        let (field, name) = (format!("{path}.schedulingGates[{at}]"), text_at(gate, "/name"));
        if let Err(rule) = names::check_qualified_name(name) {
            errors.invalid(field, &json!(name), rule);
        } else if !gates.insert(name) {
            errors.duplicate(field, &json!(name));
        }
    }
    for (at, gate) in items_at(holder, "/spec/readinessGates").iter().enumerate() {
        let name = text_at(gate, "/conditionType");
        if let Err(rule) = names::check_qualified_name(name) {
            let field = format!("{path}.readinessGates[{at}].conditionType");
            errors.invalid(field, &json!(name), rule);
        }
    }
    for (at, alias) in items_at(holder, "/spec/hostAliases").iter().enumerate() {
        let (field, ip) = (format!("{path}.hostAliases[{at}]"), text_at(alias, "/ip"));
        if ip.parse::<IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.invalid(format!("{field}.ip"), &json!(ip), detail);
        }
        for name in items_at(alias, "/hostnames").iter().map(|name| text_at(name, "")) {
            if let Err(rule) = names::check_dns1123_subdomain(name) {
                errors.invalid(format!("{field}.hostnames"), &json!(name), rule);
            }
        }
    }
    let policy = holder.pointer("/spec/dnsPolicy").unwrap_or(&Value::Null);
    errors.one_of(format!("{path}.dnsPolicy"), policy, DNS_POLICIES);
    if policy == "None" && items_at(holder, "/spec/dnsConfig/nameservers").is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.required_because(format!("{path}.dnsConfig.nameservers"), detail);
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
            "initContainers": [{"name": "i", "image": "x"}],
            "volumes": [{"name": "v"}, {"name": "w", "configMap": {"name": "c"}}],
        }});
        default(&mut pod);
        for (path, wanted) in [
            ("/spec/restartPolicy", json!("Always")),
            ("/spec/dnsPolicy", json!("ClusterFirst")),
            ("/spec/schedulerName", json!("default-scheduler")),
            ("/spec/enableServiceLinks", json!(true)),
            ("/spec/securityContext", json!({})),
            ("/spec/terminationGracePeriodSeconds", json!(30)),
            ("/spec/initContainers/0/imagePullPolicy", json!("Always")),
            ("/spec/initContainers/0/terminationMessagePath", json!("/dev/termination-log")),
            ("/spec/containers/0/terminationMessagePath", json!("/dev/termination-log")),
            ("/spec/containers/0/terminationMessagePolicy", json!("File")),
            ("/spec/volumes/1/configMap/defaultMode", json!(0o644)),
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

    fn with(more: &Value) -> Vec<String> {
        let mut spec = json!({"containers": [{"name": "a", "image": "x"}]});
        json_patch::merge(&mut spec, more);
        let mut pod = json!({ "spec": spec });
        default(&mut pod);
        errors(&pod)
    }

    #[test]
    fn names_and_ways_are_those_that_there_are() {
        let gate = |name: &str| json!({ "name": name });
        for (more, said) in [
            (json!({"hostname": "Under_score"}), "spec.hostname: Invalid value"),
            (json!({"subdomain": "a.b"}), "spec.subdomain: Invalid value"),
            (json!({"nodeName": "Bad Node"}), "spec.nodeName: Invalid value"),
            (json!({"schedulingGates": [gate("no good")]}), "spec.schedulingGates[0]: Invalid"),
            (json!({"schedulingGates": [gate("a"), gate("a")]}), "spec.schedulingGates[1]: Dup"),
            (json!({"readinessGates": [{"conditionType": "a b"}]}), "spec.readinessGates[0].cond"),
            (json!({"hostAliases": [{"ip": "a"}]}), "spec.hostAliases[0].ip: Invalid value: \"a\""),
            (
                json!({"hostAliases": [{"ip": "::1", "hostnames": ["a", "A_b"]}]}),
                "spec.hostAliases[0].hostnames: Invalid value: \"A_b\"",
            ),
            (json!({"dnsPolicy": "Foo"}), "spec.dnsPolicy: Unsupported value: \"Foo\""),
            (json!({"dnsPolicy": "None"}), "spec.dnsConfig.nameservers: Required value"),
            (
                json!({"containers": [{"name": "a", "image": " x"}]}),
                "spec.containers[0].image: Invalid value",
            ),
            (
                json!({"containers": [
                    {"name": "a", "image": "x", "terminationMessagePolicy": "Bar"}]}),
                "spec.containers[0].terminationMessagePolicy: Unsupported value",
            ),
        ] {
            let found = with(&more);
            assert!(found.len() == 1 && found[0].starts_with(said), "{said}: {found:?}");
        }
        let fine = json!({"hostname": "a", "nodeName": "a.b", "schedulingGates": [gate("x.io/a")],
            "dnsPolicy": "None", "dnsConfig": {"nameservers": ["10.0.0.1"]}});
        assert_eq!(with(&fine), Vec::<String>::new());
    }

    #[test]
    fn only_sidecars_and_mains_have_probes_and_hooks_and_only_inits_a_policy() {
        let probe = json!({"tcpSocket": {"port": 80}});
        let sidecar = json!([{"name": "i", "image": "x", "restartPolicy": "Always",
            "startupProbe": probe, "lifecycle": {"preStop": {"sleep": {"seconds": 1}}}}]);
        assert_eq!(with(&json!({"initContainers": sidecar})), Vec::<String>::new());
        for key in ["livenessProbe", "readinessProbe", "startupProbe", "lifecycle"] {
            let init = json!([{"name": "i", "image": "x", key: probe}]);
            assert_eq!(
                with(&json!({"initContainers": init})),
                [format!(
                    "spec.initContainers[0].{key}: Forbidden: may not be set for init containers without restartPolicy=Always"
                )]
            );
        }
        let never = json!([{"name": "i", "image": "x", "restartPolicy": "Never"}]);
        assert_eq!(
            with(&json!({"initContainers": never})),
            [
                "spec.initContainers[0].restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""
            ]
        );
        let main = json!([{"name": "a", "image": "x", "restartPolicy": "Always"}]);
        assert_eq!(
            with(&json!({"containers": main})),
            ["spec.containers[0].restartPolicy: Forbidden: may not be set for non-init containers"]
        );
    }

    #[test]
    fn a_deadline_is_positive_and_requests_are_not_above_limits() {
        assert_eq!(
            with(&json!({"activeDeadlineSeconds": 0})),
            [
                "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"
            ]
        );
        let resources = |request: &str| {
            json!({"containers": [{"name": "a", "image": "x", "resources": {
                "requests": {"memory": request}, "limits": {"memory": "64Mi"}}}]})
        };
        assert_eq!(with(&resources("65536Ki")), Vec::<String>::new());
        assert_eq!(
            with(&resources("65Mi")),
            [
                "spec.containers[0].resources.requests: Invalid value: \"65Mi\": must be less than or equal to memory limit of 64Mi"
            ]
        );
    }
}
