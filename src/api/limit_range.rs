//! Limit ranges: what containers are given when they say nothing, and between which bounds they, pods
//! and claims must stay. At creation only.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::Value;

use crate::api::json::{child, entries_at, items_at, set, text_at};
use crate::api::kinds::qos_class;
use crate::api::meta;
use crate::api::quantity::Quantity;
use crate::api::quota::{Amounts, amounts, containers_need};

/// Tells what a limit range filled in.
const ANNOTATION: &str = "kubernetes.io/limit-ranger";
/// Where containers are.
const LISTS: [&str; 2] = ["/spec/containers", "/spec/initContainers"];

/// Gives the containers of a new pod the requests and limits that they leave open.
pub fn fill_in(pod: &mut Value, ranges: &[Value]) {
    let mut said: Vec<String> = Vec::new();
    for range in ranges {
        let limits = defaults(range, "default");
        let requests = defaults(range, "defaultRequest");
        for list in LISTS {
            let Some(containers) = pod.pointer_mut(list).and_then(Value::as_array_mut) else {
                continue;
            };
            let kind =
                if list.ends_with("initContainers") { "init container" } else { "container" };
            for container in containers {
                for (key, word, wanted) in
                    [("requests", "request", &requests), ("limits", "limit", &limits)]
                {
                    let set = fill(container, key, wanted);
                    if !set.is_empty() {
                        let name = text_at(container, "/name");
                        said.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                    }
                }
            }
        }
    }
    if said.is_empty() {
        return;
    }
    let class = qos_class(pod);
    if let Some(status) = child(pod, "status") {
        set(status, "qosClass", class);
    }
    if let Some(annotations) = child(pod, "metadata").and_then(|meta| child(meta, "annotations")) {
        set(annotations, ANNOTATION, format!("LimitRanger plugin set: {}", said.join("; ")));
    }
}

/// The defaults of containers in a range.
fn defaults(range: &Value, key: &str) -> BTreeMap<String, Value> {
    let of_containers = items_at(range, "/spec/limits")
        .iter()
        .filter(|limit| text_at(limit, "/type") == "Container");
    let mut found = BTreeMap::new();
    for limit in of_containers {
        for (name, value) in entries_at(limit, &format!("/{key}")) {
            found.insert(name.clone(), value.clone());
        }
    }
    found
}

/// Sets what is not there; names what was set.
fn fill(container: &mut Value, key: &str, wanted: &BTreeMap<String, Value>) -> Vec<String> {
    let mut filled = Vec::new();
    if wanted.is_empty() {
        return filled;
    }
    let Some(list) = child(container, "resources").and_then(|resources| child(resources, key))
    else {
        return filled;
    };
    for (name, value) in wanted {
        if list.get(name).is_none_or(Value::is_null) {
            set(list, name, value.clone());
            filled.push(name.clone());
        }
    }
    filled
}

/// What of a new pod is out of bounds, in Kubernetes' words.
#[must_use]
pub fn check_pod(pod: &Value, ranges: &[Value]) -> Vec<String> {
    let mut errors = Vec::new();
    for limit in ranges.iter().flat_map(|range| items_at(range, "/spec/limits")) {
        match text_at(limit, "/type") {
            "Container" => {
                for container in LISTS.iter().flat_map(|list| items_at(pod, list)) {
                    let (requests, limits) = asked(container);
                    check(limit, "Container", &requests, &limits, &mut errors);
                }
            }
            "Pod" => {
                let (requests, limits) =
                    (containers_need(pod, "requests"), containers_need(pod, "limits"));
                check(limit, "Pod", &requests, &limits, &mut errors);
            }
            _ => {}
        }
    }
    errors
}

/// What of a new claim is out of bounds.
#[must_use]
pub fn check_claim(claim: &Value, ranges: &[Value]) -> Vec<String> {
    const KIND: &str = "PersistentVolumeClaim";
    let mut errors = Vec::new();
    let limits = ranges.iter().flat_map(|range| items_at(range, "/spec/limits"));
    let asked = amounts(claim, "/spec/resources/requests");
    for limit in limits.filter(|limit| text_at(limit, "/type") == KIND) {
        for (name, least) in bounds(limit, "min") {
            check_least(&name, KIND, least, asked.get(&name), None, &mut errors);
        }
        for (name, most) in bounds(limit, "max") {
            let usage = format!("maximum {name} usage per {KIND} is {most}");
            match asked.get(&name) {
                None => errors.push(format!("{usage}.  No request is specified")),
                Some(asked) if asked.nanos() > most.nanos() => {
                    errors.push(format!("{usage}, but request is {asked}"));
                }
                Some(_) => {}
            }
        }
    }
    errors
}

fn bounds(limit: &Value, key: &str) -> Amounts {
    amounts(limit, &format!("/{key}"))
}

fn asked(container: &Value) -> (Amounts, Amounts) {
    (amounts(container, "/resources/requests"), amounts(container, "/resources/limits"))
}

fn check(
    limit: &Value,
    kind: &str,
    requests: &Amounts,
    limits: &Amounts,
    errors: &mut Vec<String>,
) {
    for (name, least) in bounds(limit, "min") {
        check_least(&name, kind, least, requests.get(&name), limits.get(&name), errors);
    }
    for (name, most) in bounds(limit, "max") {
        let usage = format!("maximum {name} usage per {kind} is {most}");
        match limits.get(&name) {
            None => errors.push(format!("{usage}.  No limit is specified")),
            Some(limit) if limit.nanos() > most.nanos() => {
                errors.push(format!("{usage}, but limit is {limit}"));
            }
            Some(_) => {
                let over = requests.get(&name).filter(|asked| asked.nanos() > most.nanos());
                errors.extend(over.map(|asked| format!("{usage}, but request is {asked}")));
            }
        }
    }
    for (name, most) in bounds(limit, "maxLimitRequestRatio") {
        check_ratio(&name, kind, most, requests.get(&name), limits.get(&name), errors);
    }
}

fn check_least(
    name: &str,
    kind: &str,
    least: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    errors: &mut Vec<String>,
) {
    let usage = format!("minimum {name} usage per {kind} is {least}");
    match (request, limit) {
        (None, _) => errors.push(format!("{usage}.  No request is specified")),
        (Some(asked), _) if asked.nanos() < least.nanos() => {
            errors.push(format!("{usage}, but request is {asked}"));
        }
        (Some(_), Some(limit)) if limit.nanos() < least.nanos() => {
            errors.push(format!("{usage}, but limit is {limit}"));
        }
        _ => {}
    }
}

fn check_ratio(
    name: &str,
    kind: &str,
    most: Quantity,
    request: Option<&Quantity>,
    limit: Option<&Quantity>,
    errors: &mut Vec<String>,
) {
    let said = |asked: Option<&Quantity>| asked.copied().filter(|asked| asked.nanos() > 0);
    let mut text = format!("{name} max limit to request ratio per {kind} is {most}");
    match (said(request), said(limit)) {
        (None, _) => text.push_str(", but no request is specified or request is 0"),
        (_, None) => text.push_str(", but no limit is specified or limit is 0"),
        (Some(request), Some(limit)) => {
            // limit / request > most, without a division.
            let is_fine = limit
                .nanos()
                .checked_mul(1_000_000_000)
                .zip(most.nanos().checked_mul(request.nanos()))
                .map_or(limit.nanos() / request.nanos().max(1) <= most.units().into(), |(a, b)| {
                    a <= b
                });
            if is_fine {
                return;
            }
            #[expect(clippy::cast_precision_loss, reason = "a ratio for people to read")]
            let ratio = limit.nanos() as f64 / request.nanos() as f64;
            let _ = write!(text, ", but provided ratio is {ratio:.6}");
        }
    }
    errors.push(text);
}

/// The texts as one, as Kubernetes joins them.
#[must_use]
pub fn joined(errors: &[String]) -> String {
    match errors {
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    }
}

/// Fills in what a limit range says between the lines: `max` is the default limit, that the default
/// request, and `min` the request where there is neither.
pub(super) fn complete(range: &mut Value) {
    let limits = range.pointer_mut("/spec/limits").and_then(Value::as_array_mut);
    for limit in limits.into_iter().flatten() {
        if text_at(limit, "/type") != "Container" {
            continue;
        }
        for (from, to) in
            [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")]
        {
            let given: BTreeMap<String, Value> = entries_at(limit, &format!("/{from}"))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect();
            if given.is_empty() {
                continue;
            }
            let Some(target) = child(limit, to) else { continue };
            for (name, value) in given {
                if target.get(&name).is_none() {
                    set(target, &name, value);
                }
            }
        }
    }
}

/// Whether limit ranges say anything about objects of this kind.
#[must_use]
pub fn is_about(plural: &str, object: &Value) -> bool {
    match plural {
        // The picture of what a node runs by itself.
        "pods" => meta::annotation(object, "kubernetes.io/config.mirror").is_none(),
        other => other == "persistentvolumeclaims",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn range(limits: &Value) -> Value {
        let mut range = json!({"metadata": {"name": "r"}, "spec": {"limits": [limits]}});
        complete(&mut range);
        range
    }

    fn pod(resources: &Value) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a", "resources": resources}]}})
    }

    #[test]
    fn what_a_range_leaves_open_follows_from_the_rest() {
        let range = range(&json!({"type": "Container", "max": {"cpu": "2", "memory": "1Gi"},
            "default": {"memory": "512Mi"}, "min": {"cpu": "50m", "ephemeral-storage": "1Mi"}}));
        let limit = &range["spec"]["limits"][0];
        assert_eq!(limit["default"], json!({"memory": "512Mi", "cpu": "2"}));
        assert_eq!(
            limit["defaultRequest"],
            json!({"cpu": "2", "memory": "512Mi", "ephemeral-storage": "1Mi"})
        );
    }

    #[test]
    fn a_container_that_says_nothing_is_given_the_defaults() {
        let range = range(&json!({"type": "Container", "default": {"cpu": "500m"},
            "defaultRequest": {"cpu": "100m", "memory": "16Mi"}}));
        let mut given = pod(&json!({"requests": {"memory": "32Mi"}}));
        fill_in(&mut given, std::slice::from_ref(&range));
        assert_eq!(
            given["spec"]["containers"][0]["resources"],
            json!({"requests": {"memory": "32Mi", "cpu": "100m"}, "limits": {"cpu": "500m"}})
        );
        assert_eq!(given["status"]["qosClass"], "Burstable");
        assert_eq!(
            given["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container a; cpu limit for container a"
        );
        let mut full =
            pod(&json!({"requests": {"cpu": "1", "memory": "1"}, "limits": {"cpu": "1"}}));
        let before = full.clone();
        fill_in(&mut full, &[range]);
        assert_eq!(full, before);
    }

    #[test]
    fn what_is_out_of_bounds_is_refused_in_kubernetes_words() {
        let cases = [
            (
                json!({"type": "Container", "min": {"cpu": "100m"}}),
                json!({"requests": {"cpu": "50m"}, "limits": {"cpu": "1"}}),
                "minimum cpu usage per Container is 100m, but request is 50m",
            ),
            (
                json!({"type": "Container", "max": {"memory": "64Mi"}}),
                json!({"requests": {"memory": "1Mi"}, "limits": {"memory": "128Mi"}}),
                "maximum memory usage per Container is 64Mi, but limit is 128Mi",
            ),
            (
                json!({"type": "Pod", "max": {"memory": "64Mi"}}),
                json!({}),
                "maximum memory usage per Pod is 64Mi.  No limit is specified",
            ),
            (
                json!({"type": "Pod", "min": {"cpu": "1"}}),
                json!({}),
                "minimum cpu usage per Pod is 1.  No request is specified",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"requests": {"cpu": "100m"}, "limits": {"cpu": "300m"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({}),
                "cpu max limit to request ratio per Container is 2, but no request is specified or request is 0",
            ),
        ];
        for (limit, resources, said) in cases {
            let raw = json!({"spec": {"limits": [limit]}});
            assert_eq!(check_pod(&pod(&resources), &[raw]), [said]);
        }
        let fine = json!({"spec": {"limits": [{"type": "Container", "min": {"cpu": "100m"},
            "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "2"}}]}});
        let within = json!({"requests": {"cpu": "500m"}, "limits": {"cpu": "1"}});
        assert_eq!(check_pod(&pod(&within), &[fine]), Vec::<String>::new());
    }

    #[test]
    fn sidecars_count_beside_the_mains_and_beside_later_init_containers() {
        let range = json!({"spec": {"limits": [{"type": "Pod", "max": {"memory": "100Mi"}}]}});
        let with = |memory: &str| json!({"limits": {"memory": memory}});
        let check = |inits: Value| {
            let main = json!({"name": "a", "resources": with("40Mi")});
            let pod = json!({"spec": {"containers": [main], "initContainers": inits}});
            joined(&check_pod(&pod, std::slice::from_ref(&range)))
        };
        let said = "maximum memory usage per Pod is 100Mi, but limit is";
        let side = |memory: &str| json!({"restartPolicy": "Always", "resources": with(memory)});
        let init = |memory: &str| json!({"resources": with(memory)});
        assert_eq!(check(json!([side("60Mi"), init("40Mi")])), "[]");
        assert_eq!(check(json!([side("70Mi")])), format!("{said} 110Mi"));
        assert_eq!(check(json!([side("60Mi"), init("50Mi")])), format!("{said} 110Mi"));
        assert_eq!(check(json!([init("100Mi"), side("60Mi")])), "[]");
    }

    #[test]
    fn claims_have_bounds_as_well() {
        let range = json!({"spec": {"limits": [{"type": "PersistentVolumeClaim",
            "min": {"storage": "1Gi"}, "max": {"storage": "10Gi"}}]}});
        let check = |size: &str| {
            let claim = json!({"spec": {"resources": {"requests": {"storage": size}}}});
            joined(&check_claim(&claim, std::slice::from_ref(&range)))
        };
        assert_eq!(
            check("512Mi"),
            "minimum storage usage per PersistentVolumeClaim is 1Gi, but request is 512Mi"
        );
        assert_eq!(
            check("11Gi"),
            "maximum storage usage per PersistentVolumeClaim is 10Gi, but request is 11Gi"
        );
        assert_eq!(check("5Gi"), "[]");
    }
}
