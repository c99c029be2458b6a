//! What must hold at every moment, whatever goes wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use super::world::World;
use crate::hollow::Board;
use crate::support::Api;

/// What a node gives to pods, in thousandths of a core.
pub(super) const NODE_MILLIS: u64 = 2_000;
/// What each pod asks for.
const POD_MILLIS: u64 = 100;

/// Checks lists of pods, each consistent in itself, one after the other.
pub(super) struct Promises {
    api: Arc<Api>,
    board: Arc<Board>,
    /// Node of each pod that was ever bound, by uid.
    bound: BTreeMap<String, String>,
}

fn text<'a>(object: &'a Value, at: &str) -> &'a str {
    object.pointer(at).and_then(Value::as_str).unwrap_or_default()
}

fn number(object: &Value, at: &str) -> u64 {
    object.pointer(at).and_then(Value::as_u64).unwrap_or_default()
}

pub(super) fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
}

fn is_over(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Failed" | "Succeeded")
}

fn is_going(pod: &Value) -> bool {
    pod.pointer("/metadata/deletionTimestamp").is_some()
}

impl Promises {
    pub(super) fn new(world: &World) -> Self {
        Self { api: world.api.clone(), board: world.board.clone(), bound: BTreeMap::new() }
    }

    /// `is_calm`: nothing goes wrong, so that replicas stay available.
    pub(super) async fn check(&mut self, is_calm: bool) -> Result<(), String> {
        if let Some(wrong) = self.board.wrongs.lock().first() {
            return Err(wrong.clone());
        }
        let list = self.api.get("/api/v1/namespaces/default/pods").await.json();
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        self.one_node_each(&pods)?;
        capacity(&pods)?;
        self.deployment(&pods, is_calm).await
    }

    fn one_node_each(&mut self, pods: &[Value]) -> Result<(), String> {
        for pod in pods {
            let (uid, node) = (text(pod, "/metadata/uid"), text(pod, "/spec/nodeName"));
            if node.is_empty() {
                continue;
            }
            let had = self.bound.entry(uid.to_owned()).or_insert_with(|| node.to_owned());
            if had != node {
                let name = text(pod, "/metadata/name");
                return Err(format!("{name} was bound to {had}, and then to {node}"));
            }
        }
        Ok(())
    }

    /// Bounds of a rolling update.
    async fn deployment(&self, pods: &[Value], is_calm: bool) -> Result<(), String> {
        let found =
            self.api.get("/apis/apps/v1/namespaces/default/deployments/steady").await.json();
        let wanted = number(&found, "/spec/replicas");
        let surge = number(&found, "/spec/strategy/rollingUpdate/maxSurge");
        let unavailable = number(&found, "/spec/strategy/rollingUpdate/maxUnavailable");
        let own = || pods.iter().filter(|pod| text(pod, "/metadata/labels/app") == "steady");
        let there = own().filter(|pod| !is_going(pod) && !is_over(pod)).count() as u64;
        if there > wanted + surge {
            return Err(format!("{there} pods of {wanted} and a surge of {surge}"));
        }
        let ready = own().filter(|pod| is_ready(pod) && !is_going(pod)).count() as u64;
        if is_calm && ready + unavailable < wanted {
            return Err(format!("{ready} ready of {wanted}, {unavailable} may be missing"));
        }
        Ok(())
    }
}

/// No node has more pods than fit on it.
fn capacity(pods: &[Value]) -> Result<(), String> {
    let mut asked: BTreeMap<&str, u64> = BTreeMap::new();
    for pod in pods.iter().filter(|pod| !is_over(pod)) {
        *asked.entry(text(pod, "/spec/nodeName")).or_default() += POD_MILLIS;
    }
    asked.remove("");
    match asked.into_iter().find(|(_, millis)| *millis > NODE_MILLIS) {
        Some((node, millis)) => Err(format!("{node} has pods for {millis}m, and {NODE_MILLIS}m")),
        None => Ok(()),
    }
}
