//! The heartbeat.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::{Notify, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::agent::fence::Fence;
use crate::agent::usage::{Load, Usage};
use crate::api::node_load::{self, LEASE_NAMESPACE};
use crate::client::is_not_found;
use crate::mesh::Mesh;
use crate::rt::WallClock;

/// Pause between two heartbeats.
const INTERVAL: Duration = Duration::from_secs(1);
/// Deadline of one: a late heartbeat is worth nothing.
const DEADLINE: Duration = Duration::from_millis(900);
/// What begins to wait together is told together.
const SETTLE: Duration = Duration::from_millis(20);
/// What the Lease promises, in seconds; the leader itself decides sooner.
const DURATION_SECONDS: i32 = 10;

/// The Services that have requests waiting here.
type Waiting = watch::Receiver<BTreeMap<(String, String), usize>>;

/// How the last heartbeat went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// There was none yet.
    Untried,
    /// It was answered.
    Up,
    /// It was not.
    Down,
}

/// What the heartbeat of a node needs.
pub(crate) struct Heartbeat {
    pub(crate) client: kube::Client,
    pub(crate) node: String,
    pub(crate) clock: WallClock,
    pub(crate) usage: Usage,
    /// Is told when heartbeats begin to be answered: the node may have been called lost until then.
    pub(crate) heard: Arc<Notify>,
    /// Open as long as heartbeats are answered.
    pub(crate) fence: Fence,
}

impl Heartbeat {
    /// Renews the Lease of the node until `cancel`.
    pub(crate) async fn renew(self, cancel: CancellationToken) {
        let Self { client, node, clock, usage, heard, fence } = self;
        let api: Api<Lease> = Api::namespaced(client, LEASE_NAMESPACE);
        let mut ticks = interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut line = Line::Untried;
        let mut waiting = usage.mesh().map(Mesh::waiting_services);
        while cancel.run_until_cancelled(next_beat(&mut ticks, &mut waiting)).await.is_some() {
            let told = (usage.load(), node_load::waiting_text(names_of(waiting.as_ref())));
            let sent = fence.now();
            let beat = tokio::time::timeout(DEADLINE, once(&api, &node, &clock, told)).await;
            let err = match beat {
                Ok(Ok(())) => {
                    fence.heard(sent);
                    if line == Line::Down {
                        info!("heartbeats are answered again");
                    }
                    if line != Line::Up {
                        heard.notify_one();
                    }
                    line = Line::Up;
                    continue;
                }
                Ok(Err(err)) => err.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            if line == Line::Down {
                debug!(%err, "a heartbeat was not answered");
            } else {
                info!(%err, "a heartbeat was not answered");
            }
            line = Line::Down;
        }
    }
}

/// Services that have requests waiting here, by namespace and name.
fn names_of(waiting: Option<&Waiting>) -> Vec<(String, String)> {
    waiting.map(|all| all.borrow().keys().cloned().collect()).unwrap_or_default()
}

/// The time of the next heartbeat: at its interval, or at once when something begins or ends to wait.
async fn next_beat(ticks: &mut Interval, waiting: &mut Option<Waiting>) {
    match waiting {
        Some(waiting) => {
            tokio::select! {
                _ = ticks.tick() => {}
                Ok(()) = waiting.changed() => tokio::time::sleep(SETTLE).await,
            }
        }
        None => drop(ticks.tick().await),
    }
}

/// Renews the Lease. What the node uses goes with it: the one thing that is sent anyway, and is not
/// stored.
async fn once(
    api: &Api<Lease>,
    node: &str,
    clock: &WallClock,
    (load, waiting): (Option<Load>, String),
) -> kube::Result<()> {
    let spec = LeaseSpec {
        holder_identity: Some(node.to_owned()),
        lease_duration_seconds: Some(DURATION_SECONDS),
        renew_time: Some(MicroTime(clock.now())),
        ..LeaseSpec::default()
    };
    let told = load.map(|load| node_load::annotations(load.cpu_millis, load.memory_bytes));
    let mut annotations = told.unwrap_or_default();
    annotations.insert(node_load::WAITING.to_owned(), waiting);
    let patch = json!({"metadata": {"annotations": &annotations}, "spec": &spec});
    let patch = Patch::Merge(patch);
    match api.patch(node, &PatchParams::default(), &patch).await {
        Err(err) if is_not_found(&err) => {
            let name = Some(node.to_owned());
            let annotations = Some(annotations);
            let metadata = ObjectMeta { name, annotations, ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec) };
            api.create(&PostParams::default(), &lease).await.map(drop)
        }
        other => other.map(drop),
    }
}
