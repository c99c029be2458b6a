//! Node.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use crate::api::decode::typed;
use crate::api::field_error::Errors;
use crate::api::json::{is_true, items_at, text_at};
use crate::api::kinds::{service_rules, taints};
use crate::api::meta;
use crate::api::resource::{ALL_VERBS, Column, Resource, Strategy, Subresource};
use crate::api::table::age;

pub(super) const RESOURCE: Resource = Resource {
    group: "",
    version: "v1",
    plural: "nodes",
    singular: "node",
    kind: "Node",
    list_kind: "NodeList",
    description: "A machine that runs pods.",
    short_names: &["no"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    is_volatile: false,
    has_status: true,
    has_scale: false,
    has_generation: false,
    subresources: &[Subresource {
        name: "proxy",
        kind: "NodeProxyOptions",
        group: "",
        version: "",
        verbs: &["get"],
    }],
    columns: &[
        Column::NAME,
        Column::text("Status"),
        Column::text("Roles"),
        Column::AGE,
        Column::text("Version"),
        Column::wide("Internal-IP"),
        Column::wide("External-IP"),
        Column::wide("OS-Image"),
        Column::wide("Kernel-Version"),
        Column::wide("Container-Runtime"),
    ],
    field_selectors: &["spec.unschedulable"],
    strategy: Strategy {
        validate: validate_cidrs,
        validate_create: |node, errors| taints::validate_taints(node, &[], errors),
        validate_update,
        cells,
        ..Strategy::plain(typed::<Node>)
    },
};

/// Shown where there is nothing.
const NONE: &str = "<none>";
/// Prefix of the labels that name a node's roles.
const ROLE_LABEL: &str = "node-role.kubernetes.io/";

/// Its ranges of pod addresses, that of IPv4 first.
fn pod_cidrs(node: &Value) -> Vec<&str> {
    let first = Some(text_at(node, "/spec/podCIDR")).filter(|cidr| !cidr.is_empty());
    let mut found: Vec<&str> = first.into_iter().collect();
    for cidr in items_at(node, "/spec/podCIDRs").iter().filter_map(Value::as_str) {
        if !found.contains(&cidr) {
            found.push(cidr);
        }
    }
    found
}

fn validate_cidrs(node: &Value, errors: &mut Errors) {
    for (at, cidr) in pod_cidrs(node).into_iter().enumerate() {
        if !service_rules::is_cidr(cidr) {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            errors.invalid(format!("spec.podCIDRs[{at}]"), &json!(cidr), detail);
        }
    }
}

/// What others rely on is said once: the addresses of pods, and which machine it is.
fn validate_update(old: &Value, new: &Value, errors: &mut Errors) {
    taints::validate_taints(new, items_at(old, "/spec/taints"), errors);
    let is_kept = |pointer: &str| {
        let had = text_at(old, pointer);
        had.is_empty() || had == text_at(new, pointer)
    };
    // A cluster that gets a second family of addresses gives its nodes a second range.
    if !is_kept("/spec/podCIDR") || !pod_cidrs(new).starts_with(&pod_cidrs(old)) {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.forbidden("spec.podCIDRs", detail);
    }
    if !is_kept("/spec/providerID") {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.forbidden("spec.providerID", detail);
    }
}

fn cells(object: &Value, now: Timestamp) -> Vec<Value> {
    let or_none = |text: &str| if text.is_empty() { NONE.to_owned() } else { text.to_owned() };
    let ready =
        items_at(object, "/status/conditions").iter().find(|c| text_at(c, "/type") == "Ready");
    let mut status = match ready.map(|condition| text_at(condition, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some("False" | "Unknown") => "NotReady".to_owned(),
        _ => "Unknown".to_owned(),
    };
    if is_true(object, "/spec/unschedulable") {
        status.push_str(",SchedulingDisabled");
    }
    let labels = meta::labels(object).into_iter().flatten();
    let roles: Vec<&str> = labels.filter_map(|(key, _)| key.strip_prefix(ROLE_LABEL)).collect();
    let address = |kind: &str| {
        let addresses = items_at(object, "/status/addresses").iter();
        addresses.filter(|a| text_at(a, "/type") == kind).map(|a| text_at(a, "/address")).next()
    };
    let info = |key: &str| or_none(text_at(object, &format!("/status/nodeInfo/{key}")));
    vec![
        json!(meta::name(object)),
        json!(status),
        json!(or_none(&roles.join(","))),
        json!(age(object, now)),
        json!(info("kubeletVersion")),
        json!(or_none(address("InternalIP").unwrap_or_default())),
        json!(or_none(address("ExternalIP").unwrap_or_default())),
        json!(info("osImage")),
        json!(info("kernelVersion")),
        json!(info("containerRuntimeVersion")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{self, strategy};

    fn node(spec: Value) -> Value {
        json!({"metadata": {"name": "n"}, "spec": spec})
    }

    fn texts(old: Value, new: Value) -> Vec<String> {
        let nodes = api::find("", "v1", "nodes").unwrap();
        let errors = strategy::validate_update(nodes, &node(old), &node(new));
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_range_is_added_and_never_changed() {
        let (first, second) = ("10.42.0.0/24", "fd00::/64");
        let one = json!({"podCIDR": first, "podCIDRs": [first]});
        let both = json!({"podCIDR": first, "podCIDRs": [first, second]});
        for (old, new) in [
            (json!({}), one.clone()),
            (json!({"podCIDR": first}), both.clone()),
            (one.clone(), both.clone()),
            (both.clone(), both.clone()),
        ] {
            assert_eq!(texts(old, new), Vec::<String>::new());
        }
        let said = "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid";
        let other = json!({"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24"]});
        for (old, new) in [
            (one.clone(), other),
            (one.clone(), json!({})),
            (one.clone(), json!({"podCIDRs": [first]})),
            (both.clone(), one),
            (both, json!({"podCIDR": first, "podCIDRs": [first, "fd01::/64"]})),
        ] {
            assert_eq!(texts(old, new), [said]);
        }
        assert_eq!(
            texts(json!({}), json!({"podCIDR": "10.42.0.0"})),
            [
                "spec.podCIDRs[0]: Invalid value: \"10.42.0.0\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
            ]
        );
    }

    #[test]
    fn a_provider_is_named_once() {
        let named = |id: &str| json!({"providerID": id});
        assert_eq!(texts(json!({}), named("a://1")), Vec::<String>::new());
        assert_eq!(texts(named("a://1"), named("a://1")), Vec::<String>::new());
        let said = "spec.providerID: Forbidden: node updates may not change providerID except from \"\" to valid";
        assert_eq!(texts(named("a://1"), named("a://2")), [said]);
        assert_eq!(texts(named("a://1"), json!({})), [said]);
    }

    #[test]
    fn taints_are_checked_when_they_come() {
        let bad = json!({"taints": [{"key": "a"}]});
        let nodes = api::find("", "v1", "nodes").unwrap();
        assert_eq!(strategy::validate_create(nodes, &node(bad.clone())).len(), 1);
        assert_eq!(texts(json!({}), bad.clone()).len(), 1);
        let cordoned = json!({"taints": [{"key": "a"}], "unschedulable": true});
        assert_eq!(texts(bad, cordoned), Vec::<String>::new());
    }
}
