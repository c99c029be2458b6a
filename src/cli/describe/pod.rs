//! Pods, and the templates they are made of.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::{meta, table};
use crate::cli::describe::container;
use crate::cli::describe::sheet::{Sheet, annotations, entries, list, text};

/// Sources of volumes with the field that tells most of them.
const VOLUMES: &[(&str, &str, &str)] = &[
    ("configMap", "ConfigMap", "/configMap/name"),
    ("secret", "Secret", "/secret/secretName"),
    ("emptyDir", "EmptyDir", "/emptyDir/medium"),
    ("hostPath", "HostPath", "/hostPath/path"),
    ("persistentVolumeClaim", "PersistentVolumeClaim", "/persistentVolumeClaim/claimName"),
    ("projected", "Projected", "/projected/defaultMode"),
    ("downwardAPI", "DownwardAPI", "/downwardAPI/defaultMode"),
];

/// Describes a pod.
pub(super) fn write(sheet: &mut Sheet, pod: &Value, now: Timestamp) {
    sheet.pair(0, "Name", meta::name(pod));
    sheet.pair(0, "Namespace", meta::namespace(pod));
    sheet.pair(
        0,
        "Priority",
        Some(text(pod, "/spec/priority"))
            .filter(|p| !p.is_empty())
            .unwrap_or_else(|| "0".to_owned()),
    );
    sheet.known(0, "Priority Class Name", text(pod, "/spec/priorityClassName"));
    sheet.known(0, "Runtime Class Name", text(pod, "/spec/runtimeClassName"));
    sheet.known(0, "Service Account", text(pod, "/spec/serviceAccountName"));
    let (node, host) = (text(pod, "/spec/nodeName"), text(pod, "/status/hostIP"));
    sheet.pair(
        0,
        "Node",
        if node.is_empty() { "<none>".to_owned() } else { format!("{node}/{host}") },
    );
    sheet.known(0, "Start Time", text(pod, "/status/startTime"));
    sheet.pairs(0, "Labels", entries(pod, "/metadata/labels", "="));
    sheet.pairs(0, "Annotations", annotations(pod, "/metadata/annotations"));
    match meta::deletion_timestamp(pod) {
        Some(at) => {
            sheet.pair(0, "Status", format!("Terminating (lasts {})", table::since(Some(at), now)));
            let grace = text(pod, "/metadata/deletionGracePeriodSeconds");
            sheet.pair(0, "Termination Grace Period", format!("{grace}s"));
        }
        None => sheet.pair(0, "Status", text(pod, "/status/phase")),
    }
    sheet.known(0, "Reason", text(pod, "/status/reason"));
    sheet.known(0, "Message", text(pod, "/status/message"));
    sheet.pair(0, "IP", text(pod, "/status/podIP"));
    let ips = list(pod, "/status/podIPs").iter().map(|ip| text(ip, "/ip")).collect();
    sheet.pairs(0, "IPs", ips);
    if let Some(owner) = meta::controller_of(pod) {
        sheet.pair(
            0,
            "Controlled By",
            format!("{}/{}", text(owner, "/kind"), text(owner, "/name")),
        );
    }
    container::write_all(sheet, 0, pod, true);
    let conditions = list(pod, "/status/conditions");
    if !conditions.is_empty() {
        sheet.head(0, "Conditions");
        let rows = conditions
            .iter()
            .map(|c| ["/type", "/status", "/reason", "/message"].map(|p| text(c, p)).to_vec());
        sheet.table(1, &["Type", "Status", "Reason", "Message"], rows.collect());
    }
    write_volumes(sheet, 0, pod);
    sheet.known(0, "QoS Class", text(pod, "/status/qosClass"));
    sheet.pairs(0, "Node-Selectors", entries(pod, "/spec/nodeSelector", "="));
    sheet.pairs(0, "Tolerations", tolerations(pod));
}

/// Describes a pod template, under a head.
pub(super) fn write_template(sheet: &mut Sheet, level: usize, template: &Value) {
    sheet.head(level, "Pod Template");
    let inner = level + 1;
    sheet.pairs(inner, "Labels", entries(template, "/metadata/labels", "="));
    let notes = annotations(template, "/metadata/annotations");
    if !notes.is_empty() {
        sheet.pairs(inner, "Annotations", notes);
    }
    sheet.known(inner, "Service Account", text(template, "/spec/serviceAccountName"));
    container::write_all(sheet, inner, template, false);
    write_volumes(sheet, inner, template);
    sheet.pairs(inner, "Node-Selectors", entries(template, "/spec/nodeSelector", "="));
    sheet.pairs(inner, "Tolerations", tolerations(template));
}

fn write_volumes(sheet: &mut Sheet, level: usize, pod: &Value) {
    let volumes = list(pod, "/spec/volumes");
    if volumes.is_empty() {
        return sheet.pairs(level, "Volumes", Vec::new());
    }
    sheet.head(level, "Volumes");
    for volume in volumes {
        sheet.head(level + 1, &text(volume, "/name"));
        let known = VOLUMES.iter().find(|(key, _, _)| volume.get(key).is_some());
        match known {
            Some((_, kind, path)) => {
                sheet.pair(level + 2, "Type", *kind);
                let key = path.rsplit('/').next().unwrap_or_default();
                sheet.known(level + 2, key, text(volume, path));
            }
            None => {
                let keys = volume.as_object().map(|v| v.keys().cloned().collect::<Vec<_>>());
                let keys = keys.unwrap_or_default().into_iter().filter(|key| key != "name");
                sheet.pair(level + 2, "Type", keys.collect::<Vec<_>>().join(", "));
            }
        }
    }
}

/// `key=value:Effect op=Exists for 300s`.
fn tolerations(pod: &Value) -> Vec<String> {
    let one = |toleration: &Value| {
        let at = |path: &str| text(toleration, path);
        let mut line = at("/key");
        if !at("/value").is_empty() {
            line.push_str(&format!("={}", at("/value")));
        }
        if !at("/effect").is_empty() {
            line.push_str(&format!(":{}", at("/effect")));
        }
        if at("/operator") == "Exists" {
            line.push_str(if line.is_empty() { "op=Exists" } else { " op=Exists" });
        }
        if !at("/tolerationSeconds").is_empty() {
            line.push_str(&format!(" for {}s", at("/tolerationSeconds")));
        }
        line
    };
    list(pod, "/spec/tolerations").iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_in_a_crash_loop_is_told_with_state_reason_and_restarts() {
        let pod = json!({
            "metadata": {
                "name": "p", "namespace": "default", "labels": {"app": "p"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}"},
                "managedFields": [{"manager": "m"}],
                "ownerReferences": [{"kind": "ReplicaSet", "name": "p-1", "controller": true}],
            },
            "spec": {
                "nodeName": "one", "containers": [{
                    "name": "main", "image": "registry/p:1",
                    "ports": [{"name": "http", "containerPort": 8080}],
                    "env": [
                        {"name": "A", "value": "b"},
                        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                    ],
                    "readinessProbe": {"httpGet": {"path": "/", "port": 8080}},
                }],
                "tolerations": [
                    {"key": "k", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
                ],
            },
            "status": {
                "phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.1.0.2",
                "podIPs": [{"ip": "10.1.0.2"}],
                "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady"}],
                "containerStatuses": [{
                    "name": "main", "ready": false, "restartCount": 3,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
                    "lastState": {"terminated": {"reason": "Error", "exitCode": 1}},
                }],
            },
        });
        let mut sheet = Sheet::default();
        write(&mut sheet, &pod, Timestamp::UNIX_EPOCH);
        let text = sheet.render();
        for line in [
            "Node:            one/10.0.0.1",
            "Annotations:     <none>",
            "Controlled By:   ReplicaSet/p-1",
            "    Port:           8080/TCP (http)",
            "    State:          Waiting",
            "      Reason:   CrashLoopBackOff",
            "    Last State:     Terminated",
            "      Exit Code:  1",
            "    Restart Count:  3",
            "    Environment:    A: b",
            "                    S: <set to the key \"k\" in secret \"s\">",
            "  Ready   False    ContainersNotReady",
            "k:NoExecute op=Exists for 300s",
        ] {
            assert!(text.contains(line), "{line:?} expected in:\n{text}");
        }
        assert!(!text.contains("last-applied") && !text.contains("manager"), "{text}");
    }
}
