//! Deployments.

use serde_json::Value;

use crate::api::meta;
use crate::cli::describe::pod;
use crate::cli::describe::sheet::{Sheet, list, metadata, text};
use crate::cli::{selector, wait};

/// Describes a deployment, with its ReplicaSets.
pub(super) fn write(sheet: &mut Sheet, deployment: &Value, sets: &[Value]) {
    metadata(sheet, deployment);
    sheet.pair(0, "CreationTimestamp", meta::creation_timestamp(deployment).unwrap_or_default());
    sheet.pair(0, "Selector", selector::of(deployment));
    let count = |path: &str| deployment.pointer(path).and_then(Value::as_u64).unwrap_or(0);
    sheet.pair(
        0,
        "Replicas",
        format!(
            "{} desired | {} updated | {} total | {} available | {} unavailable",
            count("/spec/replicas"),
            count("/status/updatedReplicas"),
            count("/status/replicas"),
            count("/status/availableReplicas"),
            count("/status/unavailableReplicas"),
        ),
    );
    sheet.known(0, "StrategyType", text(deployment, "/spec/strategy/type"));
    sheet.pair(0, "MinReadySeconds", count("/spec/minReadySeconds").to_string());
    if let Some(rolling) = deployment.pointer("/spec/strategy/rollingUpdate") {
        let (down, up) = (text(rolling, "/maxUnavailable"), text(rolling, "/maxSurge"));
        sheet.pair(0, "RollingUpdateStrategy", format!("{down} max unavailable, {up} max surge"));
    }
    if deployment.pointer("/spec/paused").and_then(Value::as_bool) == Some(true) {
        sheet.pair(0, "Paused", "True");
    }
    if let Some(template) = deployment.pointer("/spec/template") {
        pod::write_template(sheet, 0, template);
    }
    let conditions = list(deployment, "/status/conditions");
    if !conditions.is_empty() {
        sheet.head(0, "Conditions");
        let rows = conditions
            .iter()
            .map(|c| ["/type", "/status", "/reason", "/message"].map(|p| text(c, p)).to_vec());
        sheet.table(1, &["Type", "Status", "Reason", "Message"], rows.collect());
    }
    let uid = meta::uid(deployment);
    let mut own: Vec<_> = sets.iter().filter(|set| wait::is_controlled_by(set, uid)).collect();
    own.sort_by_key(|set| wait::revision(set));
    let newest = own.pop();
    let old: Vec<_> = own.into_iter().filter(|set| replicas(set) > 0).map(set_line).collect();
    let join = |lines: Vec<String>| {
        if lines.is_empty() { "<none>".to_owned() } else { lines.join(", ") }
    };
    sheet.pair(0, "OldReplicaSets", join(old));
    sheet.pair(0, "NewReplicaSet", join(newest.into_iter().map(set_line).collect()));
}

fn replicas(set: &Value) -> u64 {
    set.pointer("/status/replicas").and_then(Value::as_u64).unwrap_or(0)
}

fn set_line(set: &Value) -> String {
    let wanted = set.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(0);
    format!("{} ({}/{wanted} replicas created)", meta::name(set), replicas(set))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployment_is_told_with_its_counts_conditions_and_sets() {
        let deployment = json!({
            "metadata": {"name": "d", "namespace": "default", "uid": "u",
                "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "replicas": 2, "selector": {"matchLabels": {"app": "d"}},
                "strategy": {"type": "RollingUpdate",
                    "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 1}},
                "template": {"metadata": {"labels": {"app": "d"}},
                    "spec": {"containers": [{"name": "main", "image": "i"}]}},
            },
            "status": {"replicas": 3, "updatedReplicas": 1, "availableReplicas": 2,
                "unavailableReplicas": 1,
                "conditions": [{"type": "Available", "status": "True", "reason": "Enough"}]},
        });
        let set = |name: &str, revision: &str, replicas: u64| {
            json!({
                "metadata": {"name": name, "annotations": {wait::REVISION: revision},
                    "ownerReferences": [{"uid": "u", "controller": true}]},
                "spec": {"replicas": replicas}, "status": {"replicas": replicas},
            })
        };
        let mut sheet = Sheet::default();
        write(
            &mut sheet,
            &deployment,
            &[set("d-2", "2", 1), set("d-1", "1", 2), set("d-0", "0", 0)],
        );
        let text = sheet.render();
        for line in [
            "Replicas:               2 desired | 1 updated | 3 total | 2 available | 1 unavailable",
            "RollingUpdateStrategy:  25% max unavailable, 1 max surge",
            "Pod Template:",
            "  Labels:          app=d",
            "    main:",
            "  Available   True     Enough",
            "OldReplicaSets:         d-1 (2/2 replicas created)\n",
            "NewReplicaSet:          d-2 (1/1 replicas created)\n",
        ] {
            assert!(text.contains(line), "{line:?} expected in:\n{text}");
        }
    }
}
