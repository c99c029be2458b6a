//! Static pods: those a person put into a folder of the node, which runs them with or without an API.
//!
//! Each file holds one Pod, as YAML or JSON. Kubelet's rules: the node's name is appended to the
//! pod's, the uid follows from the content, and ConfigMaps, Secrets and service accounts cannot be
//! referred to by what may run before there is an API (they are read when there is one). The API
//! shows a mirror of each: [`crate::agent::pod::mirror`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::agent::pod::mirror::{HASH_ANNOTATION, SOURCE_ANNOTATION, SOURCE_FILE};
use crate::api::{self, strategy};

/// How often the folder is looked at.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Most files that are read; those after them in the order of their names are left out.
const FILES_MAX: usize = 256;

/// What tells that a file changed: modification time and length.
type Stamp = (Option<SystemTime>, u64);

/// Follows a folder of manifests.
pub(crate) struct StaticPods {
    dir: PathBuf,
    node_name: String,
    stamps: BTreeMap<PathBuf, Stamp>,
    pods: watch::Sender<Vec<Arc<Pod>>>,
}

impl StaticPods {
    /// Reads the folder once; the pods found are in the receiver at once.
    pub(crate) fn new(dir: PathBuf, node_name: String) -> (Self, watch::Receiver<Vec<Arc<Pod>>>) {
        let (pods, receiver) = watch::channel(Vec::new());
        let mut this = Self { dir, node_name, stamps: BTreeMap::new(), pods };
        this.check();
        (this, receiver)
    }

    /// Looks again from time to time until `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        while cancel.run_until_cancelled(tokio::time::sleep(CHECK_INTERVAL)).await.is_some() {
            self.check();
        }
    }

    fn check(&mut self) {
        let stamps = match stamps(&self.dir) {
            Ok(stamps) => stamps,
            // Most nodes have no such folder.
            Err(err) if err.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(err) => {
                warn!(%err, path = %self.dir.display(), "cannot read the folder of static pods");
                return;
            }
        };
        if stamps == self.stamps {
            return;
        }
        self.stamps = stamps;
        let mut pods = BTreeMap::new();
        for path in self.stamps.keys() {
            match read(path, &self.node_name) {
                Ok(pod) => drop(pods.insert(pod.metadata.uid.clone(), Arc::new(pod))),
                Err(reason) => {
                    warn!(reason, path = %path.display(), "not a static pod, left out");
                }
            }
        }
        self.pods.send_replace(pods.into_values().collect());
    }
}

/// The manifests of the folder: no hidden files, and none that an editor has not finished.
fn stamps(dir: &Path) -> io::Result<BTreeMap<PathBuf, Stamp>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if is_hidden || !matches!(extension, "yaml" | "yml" | "json") {
            continue;
        }
        let Ok(meta) = std::fs::metadata(&path) else { continue };
        if meta.is_file() {
            found.insert(path, (meta.modified().ok(), meta.len()));
        }
    }
    while found.len() > FILES_MAX {
        if let Some((path, _)) = found.pop_last() {
            warn!(path = %path.display(), max = FILES_MAX, "too many static pods, left out");
        }
    }
    Ok(found)
}

fn read(path: &Path, node_name: &str) -> Result<Pod, String> {
    let size = std::fs::metadata(path).map_err(|err| err.to_string())?.len();
    if size > FILE_BYTES_MAX {
        return Err(format!("the file is larger than {FILE_BYTES_MAX} bytes"));
    }
    let text = std::fs::read_to_string(path).map_err(|err| err.to_string())?;
    parse(&text, node_name)
}

/// The pod that `text` describes, completed as the API would do it.
fn parse(text: &str, node_name: &str) -> Result<Pod, String> {
    let mut pod: Value = serde_saphyr::from_str(text).map_err(|err| err.to_string())?;
    let of = |pod: &Value, key: &str| pod.get(key).and_then(Value::as_str).map(str::to_owned);
    if of(&pod, "kind").as_deref() != Some("Pod") || of(&pod, "apiVersion").as_deref() != Some("v1")
    {
        return Err("it must be one object with apiVersion: v1 and kind: Pod".to_owned());
    }
    let resource = api::find("", "v1", "pods").ok_or_else(|| "no pods".to_owned())?;
    strategy::prepare_create(resource, &mut pod);
    let name = pod.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
    if name.is_empty() {
        return Err("metadata.name is missing".to_owned());
    }
    let name = format!("{name}-{node_name}");
    let digest = Sha256::digest(format!("{node_name}\n{pod}"));
    let uid: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let overlay = json!({
        "metadata": {
            "name": name, "uid": uid, "resourceVersion": "1",
            "annotations": {SOURCE_ANNOTATION: SOURCE_FILE, HASH_ANNOTATION: uid},
        },
        "spec": {"nodeName": node_name},
    });
    if pod.pointer("/metadata/namespace").is_none() {
        json_patch::merge(&mut pod, &json!({"metadata": {"namespace": "default"}}));
    }
    json_patch::merge(&mut pod, &overlay);
    // As kubelet does: a taint would have its mirror deleted and made again for ever.
    if let Some(spec) = pod.get_mut("spec").and_then(Value::as_object_mut) {
        let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
        if let Some(list) = tolerations.as_array_mut() {
            list.push(json!({"operator": "Exists", "effect": "NoExecute"}));
        }
    }
    if let Some(error) = strategy::validate_create(resource, &pod).first() {
        return Err(error.to_string());
    }
    serde_json::from_value(pod).map_err(|err| err.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: watchdog\nspec:\n  containers:\n  - name: app\n    image: watchdog:1\n";

    #[test]
    fn a_manifest_becomes_a_pod_of_this_node_with_defaults() {
        let pod = parse(POD, "pi-1").unwrap();
        assert_eq!(pod.metadata.name.as_deref(), Some("watchdog-pi-1"));
        assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("pi-1"));
        assert_eq!(spec.termination_grace_period_seconds, Some(30));
        let tolerations = spec.tolerations.iter().flatten();
        let is_all = |one: &&k8s_openapi::api::core::v1::Toleration| {
            one.key.is_none() && one.effect.as_deref() == Some("NoExecute")
        };
        assert_eq!(tolerations.filter(is_all).count(), 1, "no taint drives its mirror away");
        assert_eq!(pod.metadata.uid, parse(POD, "pi-1").unwrap().metadata.uid);
        assert_ne!(pod.metadata.uid, parse(POD, "pi-2").unwrap().metadata.uid);
        assert_ne!(pod.metadata.uid, parse(&POD.replace(":1", ":2"), "pi-1").unwrap().metadata.uid);
    }

    #[test]
    fn what_is_no_pod_is_refused_with_the_reason() {
        for (text, why) in [
            ("kind: Service\napiVersion: v1\n", "kind: Pod"),
            ("{", ""),
            (
                "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: []}\n",
                "spec.containers",
            ),
            (
                "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a, image: b}]}\n",
                "metadata.name",
            ),
        ] {
            let refused = parse(text, "pi-1").unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn the_folder_is_followed_and_one_bad_file_does_not_hide_the_others() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("pods");
        let (mut pods, seen) = StaticPods::new(dir.clone(), "pi-1".to_owned());
        assert!(seen.borrow().is_empty(), "no folder, no pods");
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("a.yaml"), POD).unwrap();
        std::fs::write(dir.join("b.yaml"), "kind: Nonsense").unwrap();
        std::fs::write(dir.join(".c.yaml"), POD.replace("watchdog", "hidden")).unwrap();
        std::fs::write(dir.join("d.yaml~"), POD.replace("watchdog", "backup")).unwrap();
        pods.check();
        let names = |pods: &[Arc<Pod>]| -> Vec<String> {
            pods.iter().filter_map(|pod| pod.metadata.name.clone()).collect()
        };
        assert_eq!(names(&seen.borrow()), ["watchdog-pi-1"]);
        std::fs::remove_file(dir.join("a.yaml")).unwrap();
        pods.check();
        assert!(seen.borrow().is_empty());
    }
}
