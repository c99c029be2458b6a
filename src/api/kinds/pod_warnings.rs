//! What of a pod is accepted, kept, and without effect: a sandbox of WebAssembly has no users, no
//! capabilities and no processes.

use serde_json::Value;

use crate::api::json::{is_empty, items_at, text_at};

const NO_USERS: &str = "kept without effect: WebAssembly guests have no users, groups, capabilities or system calls. \
     Rules that only take rights away hold for all of them";
const NO_SIGNALS: &str = "kept without effect: WebAssembly guests have no processes and signals";
const NO_FOLDER: &str =
    "guests begin at / and find it in the variable PWD: WASI has no working directory";
const NO_HOST_PORT: &str = "kept and not opened on the node: it only keeps pods that name the same one apart. A Service of \
     type NodePort or LoadBalancer, or an Ingress, leads to pods";
const NO_PROBE: &str = "the probe or hook will fail: the pod's own address is called, without TLS";
const NO_POD_LEVEL: &str =
    "kept without effect on the node: limits of the containers are what holds";

/// Fields of the pod, and of each of its containers, with what is said of them.
const OF_PODS: &[(&str, &str)] = &[
    ("/securityContext/runAsUser", NO_USERS),
    ("/securityContext/runAsGroup", NO_USERS),
    ("/securityContext/fsGroup", NO_USERS),
    ("/securityContext/supplementalGroups", NO_USERS),
    ("/securityContext/seLinuxOptions", NO_USERS),
    ("/securityContext/seccompProfile/localhostProfile", NO_USERS),
    ("/securityContext/appArmorProfile/localhostProfile", NO_USERS),
    ("/securityContext/sysctls", NO_USERS),
    ("/shareProcessNamespace", NO_SIGNALS),
    ("/resources/limits", NO_POD_LEVEL),
];
const OF_CONTAINERS: &[(&str, &str)] = &[
    ("/securityContext/runAsUser", NO_USERS),
    ("/securityContext/runAsGroup", NO_USERS),
    ("/securityContext/capabilities/add", NO_USERS),
    ("/securityContext/seLinuxOptions", NO_USERS),
    ("/securityContext/seccompProfile/localhostProfile", NO_USERS),
    ("/securityContext/appArmorProfile/localhostProfile", NO_USERS),
    ("/securityContext/procMount", NO_USERS),
    ("/workingDir", NO_FOLDER),
    ("/lifecycle/stopSignal", NO_SIGNALS),
];
/// Where a container calls itself.
const HANDLERS: &[&str] = &[
    "/startupProbe",
    "/livenessProbe",
    "/readinessProbe",
    "/lifecycle/postStart",
    "/lifecycle/preStop",
];
/// Most fields named in one warning.
const NAMED_MAX: usize = 8;

/// One warning for each thing that this cluster does not do, with the fields that ask for it; `path` is that of
/// the spec of `holder`.
pub(super) fn warnings(holder: &Value, path: &str) -> Vec<String> {
    let mut found = Found::default();
    let spec = holder.get("spec").unwrap_or(&Value::Null);
    for (pointer, why) in OF_PODS {
        if !is_empty(spec.pointer(pointer)) {
            found.add(path, pointer, why);
        }
    }
    for list in ["initContainers", "containers"] {
        for (at, container) in items_at(spec, &format!("/{list}")).iter().enumerate() {
            found.of_container(container, &format!("{path}.{list}[{at}]"));
        }
    }
    let warning = |(why, fields): (&str, Vec<String>)| {
        let more = fields.len().saturating_sub(NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named: Vec<String> = fields.into_iter().take(NAMED_MAX).collect();
        format!("{}{more}: {why}", named.join(", "))
    };
    found.0.into_iter().map(warning).collect()
}

/// The fields by what is said of them, in the order in which they were found.
#[derive(Default)]
struct Found(Vec<(&'static str, Vec<String>)>);

impl Found {
    fn add(&mut self, path: &str, pointer: &str, why: &'static str) {
        let field = format!("{path}{}", pointer.replace('/', "."));
        match self.0.iter_mut().find(|(known, _)| *known == why) {
            Some((_, fields)) => fields.push(field),
            None => self.0.push((why, vec![field])),
        }
    }

    fn of_container(&mut self, container: &Value, path: &str) {
        for (pointer, why) in OF_CONTAINERS {
            if !is_empty(container.pointer(pointer)) {
                self.add(path, pointer, why);
            }
        }
        for (at, port) in items_at(container, "/ports").iter().enumerate() {
            if !is_empty(port.get("hostPort")) {
                self.add(&format!("{path}.ports[{at}]"), "/hostPort", NO_HOST_PORT);
            }
        }
        for handler in HANDLERS {
            if text_at(container, &format!("{handler}/httpGet/scheme")) == "HTTPS" {
                self.add(path, &format!("{handler}/httpGet/scheme"), NO_PROBE);
            }
            for action in ["httpGet", "tcpSocket"] {
                let pointer = format!("{handler}/{action}/host");
                if !text_at(container, &pointer).is_empty() {
                    self.add(path, &pointer, NO_PROBE);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_no_effect_is_told_once_with_all_fields_that_ask_for_it() {
        let pod = json!({"spec": {
        "securityContext": {"fsGroup": 1000, "runAsNonRoot": true},
        "initContainers": [{"name": "i", "workingDir": "/app"}],
        "containers": [
            {"name": "a", "securityContext": {"runAsUser": 1, "capabilities": {"add": ["NET_ADMIN"]}},
                "ports": [{"containerPort": 80}, {"containerPort": 81, "hostPort": 81}],
                "livenessProbe": {"httpGet": {"port": 80, "scheme": "HTTPS"}}},
            {"name": "b", "readinessProbe": {"tcpSocket": {"port": 80, "host": "db"}}},
        ]}});
        assert_eq!(
            warnings(&pod, "spec"),
            [
                format!(
                    "spec.securityContext.fsGroup, spec.containers[0].securityContext.runAsUser, \
                     spec.containers[0].securityContext.capabilities.add: {NO_USERS}"
                ),
                format!("spec.initContainers[0].workingDir: {NO_FOLDER}"),
                format!("spec.containers[0].ports[1].hostPort: {NO_HOST_PORT}"),
                format!(
                    "spec.containers[0].livenessProbe.httpGet.scheme, \
                     spec.containers[1].readinessProbe.tcpSocket.host: {NO_PROBE}"
                ),
            ]
        );
    }

    #[test]
    fn a_pod_that_only_gives_up_rights_has_what_it_wants() {
        let restricted = json!({"runAsNonRoot": true, "allowPrivilegeEscalation": false,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
            "readOnlyRootFilesystem": true});
        let pod = json!({"spec": {"containers": [{"name": "a", "securityContext": restricted}]}});
        assert_eq!(warnings(&pod, "spec"), [""; 0]);
    }

    #[test]
    fn a_warning_names_some_fields_and_counts_the_rest() {
        let container = json!({"name": "a", "workingDir": "/app"});
        let pod = json!({"spec": {"containers": vec![container; 20]}});
        let said = warnings(&pod, "spec");
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("containers[7].workingDir and 12 more: guests"), "{said:?}");
    }
}
