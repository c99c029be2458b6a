//! Spreads pods again after a node has joined or come back, for those who ask for it.
//!
//! Data in: replica sets whose Deployment, or who themselves, carry `edgeorc.io/rebalance: "true"`;
//! their pods; nodes. Data out: evictions, one at a time and set, which disruption budgets may refuse.
//!
//! # Invariants
//!
//! - A pod moves only while all of its set are ready, and only by the eviction API.
//! - A set that does not become evener by a move is left alone for a while: the scheduler knows better.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::ResourceExt as _;
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::client::{EventRecorder, EventType, Regarding};
use crate::controllers::Context;
use crate::controllers::object::{controller_of, is_controlled_by, is_terminal};
use crate::controllers::rebalance::plan::{Move, Set, plan};

mod plan;

/// Who asks for it.
const ANNOTATION: &str = "edgeorc.io/rebalance";
/// Pause between two looks, and so between two moves of a set.
const TICK: Duration = Duration::from_secs(10);
/// How long a set is left alone that a move has not made evener.
const REST: Duration = Duration::from_secs(600);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let controller = Controller { context, events };
    let _ = cancel.run_until_cancelled(controller.run()).await;
}

/// The last move of a set.
struct Moved {
    gap: usize,
    rests_until: Option<Instant>,
}

struct Controller {
    context: Context,
    events: EventRecorder,
}

impl Controller {
    async fn run(&self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut moved: BTreeMap<String, Moved> = BTreeMap::new();
        loop {
            tick.tick().await;
            let sets = self.context.informers.replica_sets.store.select(|set| self.is_asked(set));
            moved.retain(|uid, _| sets.iter().any(|set| set.uid().as_deref() == Some(uid)));
            for set in sets {
                self.look_after(&set, &mut moved).await;
            }
        }
    }

    /// Whether the set, or the Deployment above it, asks to be spread.
    fn is_asked(&self, set: &ReplicaSet) -> bool {
        let says = |value: Option<&String>| value.is_some_and(|value| value == "true");
        if says(set.annotations().get(ANNOTATION)) {
            return true;
        }
        let namespace = set.namespace().unwrap_or_default();
        let above = controller_of(&set.metadata).filter(|owner| owner.kind == "Deployment");
        let deployments = &self.context.informers.deployments.store;
        above
            .and_then(|owner| deployments.named(&namespace, &owner.name))
            .is_some_and(|deployment| says(deployment.annotations().get(ANNOTATION)))
    }

    async fn look_after(&self, set: &ReplicaSet, moved: &mut BTreeMap<String, Moved>) {
        let Some(uid) = set.uid() else { return };
        let now = Instant::now();
        if moved.get(&uid).and_then(|last| last.rests_until).is_some_and(|until| now < until) {
            return;
        }
        let informers = &self.context.informers;
        let mut pods = informers.pods.store.in_namespace(&set.namespace().unwrap_or_default());
        pods.retain(|pod| is_controlled_by(&pod.metadata, set) && !is_terminal(pod));
        let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let wanted = usize::try_from(replicas).unwrap_or(0);
        let Some(step) = plan(&Set { wanted, pods }, &informers.nodes.store.state()) else {
            return;
        };
        let has_helped =
            moved.get(&uid).is_none_or(|last| last.rests_until.is_some() || step.gap < last.gap);
        if !has_helped {
            debug!(object.name = set.name_any(), "a move has not helped, the set rests");
            moved.insert(uid, Moved { gap: step.gap, rests_until: Some(now + REST) });
            return;
        }
        if self.evict(&step).await {
            moved.insert(uid, Moved { gap: step.gap, rests_until: None });
        }
    }

    /// Whether the pod was let go.
    async fn evict(&self, step: &Move) -> bool {
        let pod = &step.pod;
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        // kube's own `evict` misspells the options, which are ignored then.
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name},
            "deleteOptions": {"preconditions": {"uid": pod.uid()}},
        });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/eviction");
        let request = Request::post(path)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(eviction.to_string().into_bytes())
            .map_err(kube::Error::HttpError);
        let asked = async { self.context.client.request::<Value>(request?).await };
        match asked.await {
            Ok(_) => {
                info!(
                    k8s.namespace.name = namespace,
                    k8s.pod.name = name,
                    "pod moves to be spread"
                );
                let message = "Evicted to spread the pods of its set over more nodes";
                let regarding = Regarding::of(pod.as_ref());
                self.events.record(regarding, EventType::Normal, "Rebalanced", message);
                true
            }
            Err(err) => {
                debug!(%err, k8s.pod.name = name, "pod does not move now");
                false
            }
        }
    }
}
