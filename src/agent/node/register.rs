//! Making the Node, describing it, and learning its pod range.

use std::collections::BTreeMap;
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
use crate::agent::devices::Publisher;
use crate::agent::dirs::{Dirs, read_json, write_json_aside};
use crate::agent::eviction::Pressure;
use crate::agent::image::HeldImage;
use crate::agent::ipam::Ranges;
use crate::agent::node::hardware::Hardware;
use crate::agent::node::{describe, facts};
use crate::client::{EventRecorder, EventType, Regarding, is_not_found, revision_of};

/// Pause after the API did not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Pause between two looks at what the machine is like.
const FACTS_INTERVAL: Duration = Duration::from_secs(60);
/// Deadline of one call.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Keeps the Node as this machine is.
pub(crate) struct Registration {
    pub(crate) config: AgentConfig,
    pub(crate) dirs: Dirs,
    /// Gets the pod ranges as soon as they are known.
    pub(crate) range: watch::Sender<Option<Ranges>>,
    /// Wakes the next check: the heartbeats are answered (again).
    pub(crate) heard: Arc<Notify>,
    /// What the node is short of.
    pub(crate) pressure: watch::Receiver<Pressure>,
    /// The images that are here.
    pub(crate) images: watch::Receiver<Vec<HeldImage>>,
    /// What its sensors say.
    pub(crate) hardware: watch::Receiver<Hardware>,
    /// The pod ranges that are on disk.
    pub(crate) on_disk: Vec<String>,
    /// Revision of the Node when last it was as it should be: the cache may show an older one.
    pub(crate) settled: u64,
    /// Labels that say what the machine is like.
    pub(crate) facts: BTreeMap<String, String>,
    /// Tells what became of the node.
    pub(crate) events: EventRecorder,
    /// Tells of the devices that pods can claim.
    pub(crate) devices: Publisher,
    /// Whether the node was cordoned when it was last seen, if it was.
    pub(crate) was_cordoned: Option<bool>,
}

/// Where the Node is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The cache: it is as new as the change that it announced.
    Cache,
    /// The API: the cache may not know yet what happened while this node was away.
    Api,
}

impl Registration {
    /// Registers and describes the node, and again whenever somebody changes it, until `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        // A node that boots without a server knows its range from its disk.
        self.on_disk = from_disk(&self.dirs);
        if !self.on_disk.is_empty() {
            self.learn(&self.on_disk);
        }
        let mut changed = self.config.nodes.changed();
        let mut source = Source::Api;
        self.facts = facts::labels(&self.config.machine_root, &self.facts);
        let mut looks = tokio::time::interval(FACTS_INTERVAL);
        looks.reset();
        loop {
            changed.borrow_and_update();
            let pause = match tokio::time::timeout(CALL_TIMEOUT, self.ensure(source)).await {
                Ok(Ok(())) => None,
                Ok(Err(err)) => {
                    debug!(%err, "the node is not registered yet");
                    Some(RETRY)
                }
                Err(_) => Some(RETRY),
            };
            source = if pause.is_none() { Source::Cache } else { Source::Api };
            let again = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.heard.notified() => source = Source::Api,
                Ok(()) = self.pressure.changed() => source = Source::Api,
                Ok(()) = self.hardware.changed() => source = Source::Api,
                Ok(()) = self.images.changed() => source = Source::Api,
                Ok(()) = changed.changed() => {}
                _ = looks.tick() => {
                    let facts = facts::labels(&self.config.machine_root, &self.facts);
                    if facts != self.facts {
                        self.facts = facts;
                        source = Source::Api;
                    }
                    if self.devices.has_any() {
                        self.devices.doubt();
                        source = Source::Api;
                    }
                }
                () = again => {}
            }
        }
    }

    fn learn(&self, cidrs: &[String]) {
        let range = Ranges::parse(cidrs);
        if range.is_none() {
            warn!(?cidrs, "the node's pod ranges are not understood");
        }
        self.range.send_if_modified(|had| {
            let is_news = range.is_some() && *had != range;
            if is_news {
                *had = range;
            }
            is_news
        });
    }

    /// Brings the Node up to date.
    async fn ensure(&mut self, source: Source) -> kube::Result<()> {
        let api: Api<Node> = Api::all(self.config.client.clone());
        let name = &self.config.node_name;
        let cached = match source {
            Source::Cache => self.config.nodes.store.named("", name),
            Source::Api => None,
        };
        let is_known = |node: &Arc<Node>| revision_of(node.as_ref()) <= Some(self.settled);
        let node = match cached {
            Some(node) if is_known(&node) => return Ok(()),
            Some(node) => node,
            None => match api.get(name).await {
                Ok(node) => Arc::new(node),
                Err(err) if is_not_found(&err) => Arc::new(self.create(&api).await?),
                Err(err) => return Err(err),
            },
        };
        let is_cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        if self.was_cordoned.replace(is_cordoned).is_some_and(|was| was != is_cordoned) {
            self.tell(if is_cordoned { "NodeNotSchedulable" } else { "NodeSchedulable" });
        }
        // Somebody else's change may be in what our own write brought back.
        let node = self.describe(&api, node).await?;
        let cidrs = ranges(&node);
        if !cidrs.is_empty() {
            self.keep(&cidrs).await;
            self.learn(&cidrs);
        }
        match self.devices.tell(&self.config.client, &node).await {
            // It is looked at again with the facts; the node itself is all right.
            Err(kube::Error::Api(refusal)) if refusal.code == 422 => {
                warn!(message = refusal.message, "the node's devices are not taken");
            }
            told => told?,
        }
        self.settled = revision_of(node.as_ref()).unwrap_or(0);
        Ok(())
    }

    /// Writes the pod ranges to disk when they are others.
    async fn keep(&mut self, cidrs: &[String]) {
        if self.on_disk == cidrs {
            return;
        }
        match write_json_aside(self.dirs.node_file(), &cidrs).await {
            Ok(()) => self.on_disk = cidrs.to_vec(),
            Err(err) => warn!(%err, "cannot keep the pod ranges on disk"),
        }
    }

    async fn create(&self, api: &Api<Node>) -> kube::Result<Node> {
        let metadata = ObjectMeta {
            name: Some(self.config.node_name.clone()),
            labels: Some(describe::labels(&self.config, &self.facts)),
            annotations: Some(describe::annotations(&self.config, &self.facts)),
            ..ObjectMeta::default()
        };
        let node = Node { metadata, ..Node::default() };
        let created = api.create(&PostParams::default(), &node).await?;
        info!(k8s.node.name = self.config.node_name, "node registered");
        Ok(created)
    }

    /// Writes labels, annotations and status where they differ. Returns the Node as it is then.
    async fn describe(&self, api: &Api<Node>, mut node: Arc<Node>) -> kube::Result<Arc<Node>> {
        let had = serde_json::to_value(node.as_ref()).map_err(kube::Error::SerdeError)?;
        let labels = describe::labels(&self.config, &self.facts);
        let gone = describe::gone_labels(&had, &labels);
        let mut labels = json!(labels);
        for name in gone {
            crate::api::json::set(&mut labels, &name, Value::Null);
        }
        let wanted = json!({
            "metadata": {
                "labels": labels,
                "annotations": describe::annotations(&self.config, &self.facts),
            },
        });
        let (name, params) = (&self.config.node_name, PatchParams::default());
        if !is_within(&wanted, &had) {
            node = Arc::new(api.patch(name, &params, &Patch::Merge(&wanted)).await?);
        }
        let status = had.get("status").cloned().unwrap_or(Value::Null);
        let now = self.config.clock.now_rfc3339();
        let (pressure, hardware) = (*self.pressure.borrow(), *self.hardware.borrow());
        let mut wanted = describe::status(&self.config, pressure, hardware, &status, &now);
        let images = serde_json::to_value(&*self.images.borrow()).unwrap_or_default();
        let is_told = is_same_list(&images, status.get("images"));
        crate::api::json::set(&mut wanted, "images", images);
        if !is_told || !is_within(&wanted, &status) {
            let patch = Patch::Strategic(status_patch(wanted));
            node = Arc::new(api.patch_status(name, &params, &patch).await?);
            if !is_ready(&had) {
                self.tell("NodeReady");
            }
        }
        Ok(node)
    }

    /// Records an event about the node, in a kubelet's words.
    fn tell(&self, reason: &'static str) {
        let name = &self.config.node_name;
        let message = format!("Node {name} status is now: {reason}");
        self.events.record(Regarding::node(name), EventType::Normal, reason, message);
    }
}

fn is_ready(node: &Value) -> bool {
    let mut conditions = crate::api::json::items_at(node, "/status/conditions").iter();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// What an agent kept before; it may be of a version that knew one range only.
fn from_disk(dirs: &Dirs) -> Vec<String> {
    let file = dirs.node_file();
    let many = read_json::<Vec<String>>(&file);
    many.or_else(|| read_json::<String>(&file).map(|one| vec![one])).unwrap_or_default()
}

/// The Node's ranges of pod addresses, that of IPv4 first.
fn ranges(node: &Node) -> Vec<String> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let mut found: Vec<String> = spec.pod_cidr.iter().cloned().collect();
    for cidr in spec.pod_cidrs.iter().flatten() {
        if !found.contains(cidr) {
            found.push(cidr.clone());
        }
    }
    found
}

/// A strategic merge patch: conditions of other owners stay, which a merge patch would remove. Two
/// addresses may be of one type, by which they would be merged: they are replaced together.
fn status_patch(mut status: Value) -> Value {
    if let Some(addresses) = status.get_mut("addresses").and_then(Value::as_array_mut) {
        addresses.insert(0, json!({"$patch": "replace"}));
    }
    json!({"status": status})
}

/// Whether the lists are the same, none being an empty one.
fn is_same_list(wanted: &Value, has: Option<&Value>) -> bool {
    has.unwrap_or(&Value::Null) == wanted
        || (wanted == &json!([]) && has.is_none_or(Value::is_null))
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

    #[test]
    fn an_image_that_went_is_news_and_none_at_all_is_not() {
        let two = json!([{"names": ["a:1"], "sizeBytes": 2}, {"names": ["b:1"], "sizeBytes": 1}]);
        let one = json!([{"names": ["a:1"], "sizeBytes": 2}]);
        assert!(is_same_list(&two, Some(&two)));
        assert!(!is_same_list(&one, Some(&two)), "it is within, and not the same");
        assert!(!is_same_list(&json!([]), Some(&two)));
        assert!(is_same_list(&json!([]), None));
        assert!(!is_same_list(&one, None));
    }

    #[test]
    fn conditions_of_others_stay_and_addresses_are_those_of_this_machine() {
        let nodes = crate::api::find("", "v1", "nodes").unwrap();
        let mut node = json!({"status": {
            "conditions": [
                {"type": "Ready", "status": "Unknown"},
                {"type": "NetworkUnavailable", "status": "False", "reason": "Theirs"},
            ],
            "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
        }});
        let addresses = json!([
            {"type": "InternalIP", "address": "10.0.0.2"},
            {"type": "InternalIP", "address": "fd00::2"},
        ]);
        let ours = json!({
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": addresses,
        });
        crate::api::patch::strategic(nodes, &mut node, &status_patch(ours.clone())).unwrap();
        let conditions = node.pointer("/status/conditions").unwrap();
        let theirs = json!([{"type": "NetworkUnavailable", "status": "False", "reason": "Theirs"}]);
        assert!(is_within(&theirs, conditions), "{conditions}");
        assert_eq!(node.pointer("/status/addresses"), Some(&addresses));
        assert!(is_within(&ours, node.pointer("/status").unwrap()));
    }
}
