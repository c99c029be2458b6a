//! Pods of which there may never be two, and the times on which their nodes and the leader agree.
//!
//! ```text
//!  last answered heartbeat           10 s                     15 s
//!  ──┬─────────────────────────────────┬────────────────────────┬──────────►
//!    │ the pod runs                    │ its node stops it      │ the leader lets it be replaced
//! ```
//!
//! # Invariants
//!
//! - [`FENCED_AFTER`] on the node's clock ends before [`REPLACED_AFTER`] on the leader's: both count from
//!   the same heartbeat, the node from when it sent it, the leader from when it saw it.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

/// A node stops the pods that must be unique when the last heartbeat that was answered is this old.
pub const FENCED_AFTER: Duration = Duration::from_secs(10);
/// The leader removes such a pod of a silent node when the last heartbeat it saw is this old. The
/// difference is what stopping takes, what clocks differ in speed, and the age of a quorum's answer.
pub const REPLACED_AFTER: Duration = Duration::from_secs(15);
/// The annotation whose value `off` keeps such a pod running on a node that is cut off. It is then not
/// replaced until its node is back or is deleted.
pub const FENCING_ANNOTATION: &str = "edgeorc.io/fencing";

/// Whether `pod` is one of a kind: a stateful set's.
#[must_use]
pub fn must_be_unique(pod: &Pod) -> bool {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    owners.any(|owner| {
        owner.controller == Some(true)
            && owner.kind == "StatefulSet"
            && owner.api_version.starts_with("apps/")
    })
}

/// Whether its node stops `pod` when it is cut off.
#[must_use]
pub fn is_fenced(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let fencing = annotations.and_then(|all| all.get(FENCING_ANNOTATION));
    must_be_unique(pod) && fencing.is_none_or(|fencing| fencing != "off")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_of_a_stateful_set_is_fenced_unless_it_says_otherwise() {
        let pod = |kind: &str, fencing: Option<&str>| -> Pod {
            serde_json::from_value(json!({"metadata": {
                "annotations": fencing.map(|value| json!({FENCING_ANNOTATION: value})),
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": "db", "uid": "u",
                    "controller": true}]}}))
            .unwrap()
        };
        assert!(is_fenced(&pod("StatefulSet", None)));
        assert!(is_fenced(&pod("StatefulSet", Some("on"))));
        assert!(!is_fenced(&pod("StatefulSet", Some("off"))));
        assert!(must_be_unique(&pod("StatefulSet", Some("off"))));
        assert!(!is_fenced(&pod("ReplicaSet", None)));
    }

    #[test]
    fn the_node_is_done_before_the_leader_begins() {
        let stopping = Duration::from_secs(3);
        assert!(FENCED_AFTER + stopping < REPLACED_AFTER);
    }
}
