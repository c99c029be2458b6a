//! What Kubernetes' ServiceAccount admission does: a new pod has an account, and the account's
//! token, the cluster's CA and the namespace as files.

use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{meta, names};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::apiserver::service_account::find;

/// Where the files are, for every client library.
const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Name of the account that every namespace has.
const ACCOUNT_DEFAULT: &str = "default";
/// Prefix of the volume's name.
const VOLUME_PREFIX: &str = "kube-api-access-";
/// Life of the token in seconds; the odd seven tell it from those that pods ask for themselves.
const TOKEN_SECONDS: i64 = 3607;
/// Mode of the files.
const FILE_MODE: i64 = 0o644;
/// Marks a pod that a node runs by itself: it has no account.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// Completes a new pod; leaves every other object alone.
///
/// # Errors
///
/// 403 when the pod names an account that does not exist.
pub(in crate::apiserver) async fn admit(call: &Call, pod: &mut Value) -> Result<(), ApiError> {
    let resource = call.info.resource;
    if resource.plural != "pods" || !resource.group.is_empty() {
        return Ok(());
    }
    if meta::annotation(pod, MIRROR_ANNOTATION).is_some() {
        return Ok(());
    }
    let name = choose_account(pod);
    let namespace = call.info.namespace.as_deref().unwrap_or_default();
    let account = find(&call.context, "serviceaccounts", Some(namespace), &name).await?;
    if account.is_none() && name != ACCOUNT_DEFAULT {
        let detail = format!(
            "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
        );
        return Err(Status::forbidden(resource, meta::name(pod), &detail).into());
    }
    // The default account of a namespace that was made this moment is made in the next one.
    let account = account.unwrap_or_default();
    pull_secrets(&account, pod);
    if wants_token(&account, pod) {
        let suffix = call.context.rng.name_suffix(names::SUFFIX_LEN);
        mount(pod, &format!("{VOLUME_PREFIX}{suffix}"));
    }
    Ok(())
}

/// Sets `serviceAccountName` and its old name `serviceAccount`.
fn choose_account(pod: &mut Value) -> String {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else {
        return ACCOUNT_DEFAULT.to_owned();
    };
    let named = ["serviceAccountName", "serviceAccount"]
        .iter()
        .filter_map(|key| spec.get(*key).and_then(Value::as_str))
        .find(|name| !name.is_empty());
    let name = named.unwrap_or(ACCOUNT_DEFAULT).to_owned();
    spec.insert("serviceAccountName".to_owned(), json!(name));
    spec.insert("serviceAccount".to_owned(), json!(name));
    name
}

fn pull_secrets(account: &Value, pod: &mut Value) {
    let secrets = account.get("imagePullSecrets").filter(|list| list.is_array()).cloned();
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let has_own =
        spec.get("imagePullSecrets").and_then(Value::as_array).is_some_and(|l| !l.is_empty());
    if let Some(secrets) = secrets.filter(|_| !has_own) {
        spec.insert("imagePullSecrets".to_owned(), secrets);
    }
}

/// The pod's word counts, then its account's.
fn wants_token(account: &Value, pod: &Value) -> bool {
    let flag = |object: &Value, path: &str| object.pointer(path).and_then(Value::as_bool);
    flag(pod, "/spec/automountServiceAccountToken")
        .or_else(|| flag(account, "/automountServiceAccountToken"))
        .unwrap_or(true)
}

/// Adds the volume, and a mount of it to each container that has nothing at the place.
fn mount(pod: &mut Value, name: &str) {
    let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) else { return };
    let mut is_used = false;
    for list in ["initContainers", "containers"] {
        for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(container) = container.as_object_mut() else { continue };
            let mounts = container.entry("volumeMounts").or_insert_with(|| json!([]));
            if mounts.is_null() {
                *mounts = json!([]);
            }
            let Some(mounts) = mounts.as_array_mut() else { continue };
            let at =
                |mount: &Value| mount.get("mountPath").and_then(Value::as_str) == Some(MOUNT_PATH);
            if !mounts.iter().any(at) {
                mounts.push(json!({"name": name, "readOnly": true, "mountPath": MOUNT_PATH}));
                is_used = true;
            }
        }
    }
    if !is_used {
        return;
    }
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if volumes.is_null() {
        *volumes = json!([]);
    }
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(json!({"name": name, "projected": {"defaultMode": FILE_MODE, "sources": [
            {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
            {"downwardAPI": {"items": [{"path": "namespace",
                "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]}},
        ]}}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_sees_the_token_once() {
        let mut pod = json!({"spec": {
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a", "volumeMounts": null},
                {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
        }});
        mount(&mut pod, "kube-api-access-x");
        for path in ["/spec/initContainers/0", "/spec/containers/0"] {
            let name = pod.pointer(&format!("{path}/volumeMounts/0/name"));
            assert_eq!(name, Some(&json!("kube-api-access-x")), "{path}");
        }
        assert_eq!(pod["spec"]["containers"][1]["volumeMounts"].as_array().unwrap().len(), 1);
        assert_eq!(pod["spec"]["volumes"][0]["projected"]["sources"].as_array().unwrap().len(), 3);
    }

    #[test]
    fn the_pod_says_no_before_its_account_says_yes() {
        let account = json!({"automountServiceAccountToken": false});
        assert!(!wants_token(&account, &json!({"spec": {}})));
        assert!(wants_token(&account, &json!({"spec": {"automountServiceAccountToken": true}})));
        assert!(wants_token(&json!({}), &json!({"spec": {}})));
        assert!(!wants_token(
            &json!({}),
            &json!({"spec": {"automountServiceAccountToken": false}})
        ));
    }

    #[test]
    fn a_pod_without_an_account_has_the_default_one() {
        let mut pod = json!({"spec": {"serviceAccount": "old"}});
        assert_eq!(choose_account(&mut pod), "old");
        assert_eq!(pod["spec"]["serviceAccountName"], "old");
        let mut pod = json!({"spec": {}});
        assert_eq!(choose_account(&mut pod), "default");
        assert_eq!(pod["spec"]["serviceAccount"], "default");
    }
}
