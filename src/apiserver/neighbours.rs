//! What a node is told of the other nodes.
//!
//! Every agent lists and watches all Nodes, so what is told of one goes to each of the others. They
//! need to know where it is, which addresses its pods have and in which zone it is. A node that lists or
//! watches Nodes gets that of the others, and its own Node whole. Changes of anything else are not told.
//! Least of all whether it is ready: where hundreds fall silent that would be most of what servers do,
//! and the endpoints of their pods are told in any case. Nor is anything told of a node before it has
//! described itself: the start of a fleet costs each node a few hundred bytes for each other one.
//!
//! Reading a single Node gives all of it.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::api::{meta, node_place};
use crate::apiserver::access;
use crate::apiserver::router::Call;
use crate::store::{Change, Shown};

/// Labels that others look at.
const LABELS: [&str; 2] = [node_place::SERVER, node_place::ZONE];
/// Annotations that others look at.
const ANNOTATIONS: [&str; 2] = [node_place::QUIC_ADDRESS, node_place::INGRESS_ADDRESS];

/// The view of the node that asks.
#[derive(Debug, Clone)]
pub(super) struct Neighbours {
    me: String,
}

impl Neighbours {
    /// `None` unless a node asks for Nodes.
    pub(super) fn of(call: &Call) -> Option<Self> {
        let resource = call.info.resource;
        let is_nodes = resource.group.is_empty() && resource.plural == "nodes";
        let me = access::node_name(&call.user).filter(|_| is_nodes)?;
        Some(Self { me: me.to_owned() })
    }

    /// The node that asks.
    pub(super) fn me(&self) -> &str {
        &self.me
    }

    /// Whether the node that asks is told of `node` at all.
    pub(super) fn has(&self, node: &Value) -> bool {
        self.is_own(node) || has_addresses(node)
    }

    /// `node` as it is told.
    pub(super) fn told(&self, node: Value) -> Value {
        if self.is_own(&node) { node } else { cut(&node) }
    }

    /// As [`Self::told`], of what other watchers look at as well: cut once for all of them.
    pub(super) fn told_of<'a>(&self, node: &'a Shown) -> &'a Shown {
        if self.is_own(node.object()) { node } else { node.part(cut) }
    }

    fn is_own(&self, node: &Value) -> bool {
        meta::name(node) == self.me
    }
}

/// Whether a change of a Node is told to others.
pub(super) fn are_told(change: &Change) -> bool {
    fn told(node: Option<&Arc<Shown>>) -> Option<&Value> {
        Some(node.filter(|node| has_addresses(node.object()))?.part(cut).object())
    }
    // Both carry the revision of the change.
    told(change.previous.as_ref()) != told(change.current.as_ref())
}

fn has_addresses(node: &Value) -> bool {
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    addresses.is_some_and(|addresses| !addresses.is_empty())
}

/// What others need of a Node.
fn cut(node: &Value) -> Value {
    let mut metadata = kept(node.get("metadata"), &["name", "uid", "resourceVersion"]);
    for (field, names) in [("labels", &LABELS), ("annotations", &ANNOTATIONS)] {
        let some = kept(node.pointer(&format!("/metadata/{field}")), names);
        insert_if_any(&mut metadata, field, some);
    }
    let status = kept(node.get("status"), &["addresses"]);
    let mut whole = kept(Some(node), &["kind", "apiVersion"]);
    whole.insert("metadata".to_owned(), Value::Object(metadata));
    insert_if_any(&mut whole, "spec", kept(node.get("spec"), &["podCIDR", "podCIDRs"]));
    insert_if_any(&mut whole, "status", status);
    Value::Object(whole)
}

/// The fields of `object` that are named.
fn kept(object: Option<&Value>, names: &[&str]) -> Map<String, Value> {
    let field = |name: &&str| Some(((*name).to_owned(), object?.get(name)?.clone()));
    names.iter().filter_map(field).collect()
}

fn insert_if_any(into: &mut Map<String, Value>, name: &str, fields: Map<String, Value>) {
    if !fields.is_empty() {
        into.insert(name.to_owned(), Value::Object(fields));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str) -> Value {
        json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {
                "name": name, "uid": "u", "resourceVersion": "7", "managedFields": [{}],
                "labels": {"topology.kubernetes.io/zone": "z", "kubernetes.io/os": "linux"},
                "annotations": {"edgeorc.io/quic-address": "10.0.0.1:6443", "other": "x"},
            },
            "spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"], "taints": [{}]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "conditions": [
                    {"type": "DiskPressure", "status": "False"},
                    {"type": "Ready", "status": "True", "lastHeartbeatTime": "then"},
                ],
                "images": [{}], "nodeInfo": {}, "capacity": {},
            },
        })
    }

    #[test]
    fn of_another_node_what_routes_are_made_of_is_told_and_of_its_own_everything() {
        let view = Neighbours { me: "me".to_owned() };
        assert_eq!(view.told(node("me")), node("me"));
        let told = json!({
            "kind": "Node", "apiVersion": "v1",
            "metadata": {
                "name": "other", "uid": "u", "resourceVersion": "7",
                "labels": {"topology.kubernetes.io/zone": "z"},
                "annotations": {"edgeorc.io/quic-address": "10.0.0.1:6443"},
            },
            "spec": {"podCIDR": "10.42.0.0/24", "podCIDRs": ["10.42.0.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "10.0.0.1"}]},
        });
        assert_eq!(view.told(node("other")), told);
        let shown = Shown::new(node("other"));
        assert_eq!(view.told_of(&shown).object(), &told);
    }

    #[test]
    fn a_node_that_has_not_described_itself_is_told_to_itself_only() {
        let view = Neighbours { me: "me".to_owned() };
        let bare = |name: &str| json!({"metadata": {"name": name}, "spec": {}});
        assert!(view.has(&bare("me")) && !view.has(&bare("other")) && view.has(&node("other")));
    }
}
