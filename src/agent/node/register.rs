//! Making the Node, describing it, and learning its pod range.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::config::AgentConfig;
use crate::agent::dirs::{Dirs, read_json, write_json};
use crate::agent::ipam::Range;
use crate::agent::node::describe;
use crate::client::is_not_found;

/// Pause between two looks at the Node until it is complete.
const LOOK: Duration = Duration::from_millis(50);
/// Pause after the API did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Pause between two checks that the Node is still described truly.
const CHECK: Duration = Duration::from_secs(5);
/// Deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the Node as this machine is.
pub(crate) struct Registration {
    pub(crate) config: AgentConfig,
    pub(crate) dirs: Dirs,
    /// Gets the pod range as soon as it is known.
    pub(crate) range: watch::Sender<Option<Range>>,
    /// Wakes the next check: the heartbeats are answered (again).
    pub(crate) heard: Arc<Notify>,
}

impl Registration {
    /// Registers and describes the node, again and again, until `cancel`.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        // A node that boots without a server knows its range from its disk.
        if let Some(cidr) = read_json::<String>(&self.dirs.node_file()) {
            self.learn(&cidr);
        }
        loop {
            let pause = match tokio::time::timeout(CALL_TIMEOUT, self.ensure()).await {
                Ok(Ok(true)) => CHECK,
                Ok(Ok(false)) => LOOK,
                Ok(Err(err)) => {
                    debug!(%err, "the node is not registered yet");
                    RETRY
                }
                Err(_) => RETRY,
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.heard.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn learn(&self, cidr: &str) {
        let range = Range::parse(cidr);
        if range.is_none() {
            warn!(cidr, "the node's pod range is not understood");
        }
        self.range.send_if_modified(|had| {
            let is_news = range.is_some() && *had != range;
            if is_news {
                *had = range;
            }
            is_news
        });
    }

    /// Brings the Node up to date; whether it is complete.
    async fn ensure(&self) -> kube::Result<bool> {
        let api: Api<Node> = Api::all(self.config.client.clone());
        let name = &self.config.node_name;
        let node = match api.get(name).await {
            Ok(node) => node,
            Err(err) if is_not_found(&err) => self.create(&api).await?,
            Err(err) => return Err(err),
        };
        self.describe(&api, &node).await?;
        let Some(cidr) = node.spec.as_ref().and_then(|spec| spec.pod_cidr.clone()) else {
            return Ok(false);
        };
        if self.range.borrow().is_none()
            && let Err(err) = write_json(&self.dirs.node_file(), &cidr)
        {
            warn!(%err, "cannot keep the pod range on disk");
        }
        self.learn(&cidr);
        Ok(true)
    }

    async fn create(&self, api: &Api<Node>) -> kube::Result<Node> {
        let metadata = ObjectMeta {
            name: Some(self.config.node_name.clone()),
            labels: Some(describe::labels(&self.config)),
            annotations: Some(describe::annotations(&self.config)),
            ..ObjectMeta::default()
        };
        let node = Node { metadata, ..Node::default() };
        let created = api.create(&PostParams::default(), &node).await?;
        info!(k8s.node.name = self.config.node_name, "node registered");
        Ok(created)
    }

    /// Writes labels, annotations and status where they differ.
    async fn describe(&self, api: &Api<Node>, node: &Node) -> kube::Result<()> {
        let had = serde_json::to_value(node).map_err(kube::Error::SerdeError)?;
        let wanted = json!({
            "metadata": {
                "labels": describe::labels(&self.config),
                "annotations": describe::annotations(&self.config),
            },
        });
        let (name, params) = (&self.config.node_name, PatchParams::default());
        if !is_within(&wanted, &had) {
            api.patch(name, &params, &Patch::Merge(&wanted)).await?;
        }
        let status = had.get("status").cloned().unwrap_or(Value::Null);
        let now = self.config.clock.now_rfc3339();
        let wanted = describe::status(&self.config, &status, &now);
        if !is_within(&wanted, &status) {
            let patch = json!({"status": wanted});
            api.patch_status(name, &params, &Patch::Merge(&patch)).await?;
        }
        Ok(())
    }
}

/// Whether `has` already says everything that `wanted` says.
fn is_within(wanted: &Value, has: &Value) -> bool {
    match (wanted, has) {
        (Value::Object(wanted), Value::Object(has)) => wanted
            .iter()
            .all(|(key, value)| has.get(key).is_some_and(|there| is_within(value, there))),
        (Value::Array(wanted), Value::Array(has)) => {
            wanted.iter().all(|value| has.iter().any(|there| is_within(value, there)))
        }
        (Value::String(empty), Value::Null) => empty.is_empty(),
        (wanted, has) => wanted == has,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written() {
        let has = json!({"a": 1, "b": {"c": [{"t": "x", "s": 1}, {"t": "y"}]}});
        assert!(is_within(&json!({"b": {"c": [{"t": "y"}]}}), &has));
        assert!(!is_within(&json!({"b": {"c": [{"t": "z"}]}}), &has));
        assert!(!is_within(&json!({"a": 2}), &has));
    }
}
