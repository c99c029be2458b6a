//! Carries a pod's status to the API: the newest one, when it differs, as often as the API can take it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::agent::pod::api::{PodApi, PodApiError};
use crate::agent::pod::state::PodState;
use crate::agent::pod::status::pod_status;
use crate::rt::{Rng, WallClock};

/// First and longest wait after the API did not answer.
const RETRY_MIN: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Wait after the API refused a status.
const REFUSED_WAIT: Duration = Duration::from_secs(30);
/// So many writes go out at once; after them one per [`WRITE_INTERVAL`]: a pod that crashes many
/// times a second must not wear out the servers' disks.
const WRITE_BURST: u32 = 20;
const WRITE_INTERVAL: Duration = Duration::from_millis(500);
/// Conflicts in a row before the writer waits like after an error.
const CONFLICTS_MAX: u32 = 5;

/// A pod that ran before the agent was restarted gets this long to be ready again before the API hears
/// of it: what is back so soon never leaves the endpoints.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// Most starts are over sooner: until then a new pod's machine does nothing else for it, and the API hears
/// of its arrival and of its start at once.
const START_MAX: Duration = Duration::from_millis(100);

/// A state and its number; higher is newer.
pub(crate) type Numbered = (u64, Arc<PodState>);

/// The task that owns what the API knows of one pod.
pub(crate) struct StatusWriter {
    pub(crate) api: Arc<dyn PodApi>,
    pub(crate) clock: WallClock,
    pub(crate) rng: Rng,
    /// Newest state of the worker; ends when the worker does.
    pub(crate) states: watch::Receiver<Numbered>,
    /// The pod as the informer sees it.
    pub(crate) seen: watch::Receiver<Arc<Pod>>,
    /// Number of the newest state the API has.
    pub(crate) written: watch::Sender<u64>,
    /// The pod ran here before the agent was restarted.
    pub(crate) is_back: bool,
}

impl StatusWriter {
    /// Writes until the worker is gone, the pod is gone, or `cancel` fires.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let written = self.written.clone();
        let _ = cancel.run_until_cancelled(self.write_all()).await;
        // Whoever waits for a write must not wait for a writer that has ended.
        written.send_replace(u64::MAX);
    }

    async fn write_all(&mut self) {
        let mut base = Arc::clone(&self.seen.borrow_and_update());
        if self.is_back {
            let ready = self.states.wait_for(|(_, state)| state.is_ready() || state.is_over());
            // Not ready in time is what the API is then told.
            let _ = tokio::time::timeout(SETTLE_MAX, ready).await;
        } else {
            until_begun(&mut self.states).await;
        }
        let mut tokens = WRITE_BURST;
        let mut refilled = Instant::now();
        loop {
            let (number, state) = self.states.borrow_and_update().clone();
            adopt_newer(&mut base, &self.seen.borrow_and_update());
            // Boxed: what a write needs is not kept between writes.
            match Box::pin(self.write(&mut base, &state)).await {
                Ok(false) => {}
                Ok(true) => tokens = tokens.saturating_sub(1),
                Err(()) => return,
            }
            self.written.send_replace(number);
            if tokens == 0 {
                tokio::time::sleep(WRITE_INTERVAL).await;
            }
            let idle = refilled.elapsed().as_millis() / WRITE_INTERVAL.as_millis();
            if let Ok(earned @ 1..) = u32::try_from(idle) {
                tokens = tokens.saturating_add(earned).min(WRITE_BURST);
                refilled = Instant::now();
            }
            tokio::select! {
                changed = self.states.changed() => if changed.is_err() { return },
                changed = self.seen.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Brings `state` to the API. `Err` when the pod is gone; `Ok(true)` if something was written.
    async fn write(&self, base: &mut Arc<Pod>, state: &PodState) -> Result<bool, ()> {
        let mut wait = RETRY_MIN;
        let mut conflicts = 0;
        loop {
            let wanted = pod_status(base, state, self.clock.now());
            let Some(patch) = status_patch(base, &wanted) else { return Ok(false) };
            let pause = match self.api.patch_status(base, patch).await {
                Ok(pod) => {
                    *base = Arc::new(pod);
                    return Ok(true);
                }
                Err(PodApiError::Gone) => return Err(()),
                Err(PodApiError::Conflict) if conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    match self.api.get(base).await {
                        Ok(pod) => {
                            *base = Arc::new(pod);
                            continue;
                        }
                        Err(PodApiError::Gone) => return Err(()),
                        Err(_) => wait,
                    }
                }
                Err(PodApiError::Refused(reason)) => {
                    warn!(reason, "status refused");
                    REFUSED_WAIT
                }
                Err(err) => {
                    debug!(%err, "status not written");
                    wait
                }
            };
            wait = wait.saturating_mul(2).min(RETRY_MAX);
            let jitter = self.rng.below(u64::try_from(pause.as_millis() / 4).unwrap_or(0));
            tokio::time::sleep(pause + Duration::from_millis(jitter)).await;
            if self.states.has_changed().unwrap_or(true) {
                // A newer state is there: this one need not arrive any more.
                return Ok(false);
            }
        }
    }
}

/// Waits until there is more to tell of a new pod than that it is here, at most [`START_MAX`].
pub(super) async fn until_begun(states: &mut watch::Receiver<Numbered>) {
    let begun = states.wait_for(|(number, _)| *number > 0);
    let _ = tokio::time::timeout(START_MAX, begun).await;
}

/// Takes the informer's version unless it is older: that one is in memory anyway.
fn adopt_newer(base: &mut Arc<Pod>, seen: &Arc<Pod>) {
    let version = |pod: &Pod| -> u64 {
        pod.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
    };
    if version(seen) >= version(base) {
        *base = Arc::clone(seen);
    }
}

/// The merge patch that makes `base.status` into `wanted`, bound to the version of `base`.
fn status_patch(base: &Pod, wanted: &PodStatus) -> Option<Value> {
    let had = serde_json::to_value(base.status.clone().unwrap_or_default()).ok()?;
    let wanted = serde_json::to_value(wanted).ok()?;
    let changes = merge_diff(&had, &wanted)?;
    Some(json!({
        "metadata": {
            "uid": base.metadata.uid,
            "resourceVersion": base.metadata.resource_version,
        },
        "status": changes,
    }))
}

/// The merge patch from `had` to `wanted`; `None` if they are the same.
pub(crate) fn merge_diff(had: &Value, wanted: &Value) -> Option<Value> {
    if had == wanted {
        return None;
    }
    let (Value::Object(had), Value::Object(wanted)) = (had, wanted) else {
        return Some(wanted.clone());
    };
    let mut patch = Map::new();
    for (key, value) in wanted {
        let change = match had.get(key) {
            Some(before) => merge_diff(before, value),
            None => Some(value.clone()),
        };
        if let Some(change) = change {
            patch.insert(key.clone(), change);
        }
    }
    for key in had.keys().filter(|key| !wanted.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use parking_lot::Mutex;

    use super::*;
    use crate::agent::pod::api::Happening;
    use crate::agent::pod::plan::PodPlan;
    use crate::agent::pod::state::RunState;

    /// Takes every status, and keeps what it was told of readiness.
    #[derive(Default)]
    struct Told(Mutex<Vec<String>>);

    #[async_trait]
    impl PodApi for Told {
        async fn patch_status(&self, base: &Pod, patch: Value) -> Result<Pod, PodApiError> {
            let mut pod = serde_json::to_value(base).unwrap();
            json_patch::merge(&mut pod, &patch);
            let conditions = pod["status"]["conditions"].as_array().unwrap();
            let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
            self.0.lock().push(ready["status"].as_str().unwrap().to_owned());
            Ok(serde_json::from_value(pod).unwrap())
        }

        async fn get(&self, base: &Pod) -> Result<Pod, PodApiError> {
            Ok(base.clone())
        }

        async fn delete(&self, _: &Pod) -> Result<(), PodApiError> {
            Ok(())
        }

        fn event(&self, _: &Pod, _: Option<&str>, _: Happening) {}

        async fn config_map(&self, _: &Pod, _: &str) -> Result<Option<ConfigMap>, PodApiError> {
            Ok(None)
        }

        async fn secret(&self, _: &Pod, _: &str) -> Result<Option<Secret>, PodApiError> {
            Ok(None)
        }
    }

    /// What the API hears of a pod that ran before the agent's restart and is ready again `after`.
    async fn told_of_a_restart(after: Duration) -> Vec<String> {
        told(after, true).await
    }

    async fn told(after: Duration, is_back: bool) -> Vec<String> {
        let (clock, cancel) = (WallClock::system(), CancellationToken::new());
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "u", "resourceVersion": "5"},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        }))
        .unwrap();
        let pod = if is_back { pod } else { Pod { status: None, ..pod } };
        let mut state = PodState::new(&PodPlan::read(&pod), &pod, &[], clock.now());
        let (sender, states) = watch::channel((0, Arc::new(state.clone())));
        let (_seen, seen) = watch::channel(Arc::new(pod));
        let (written, _) = watch::channel(0);
        let told = Arc::new(Told::default());
        let api: Arc<dyn PodApi> = told.clone();
        let rng = Rng::seeded(1);
        let clock_of_writer = clock.clone();
        let writer =
            StatusWriter { api, clock: clock_of_writer, rng, states, seen, written, is_back };
        let worker = async {
            tokio::time::sleep(after).await;
            let container = &mut state.containers[0];
            let started_at = clock.now();
            container.state = RunState::Running { started_at, container_id: "x".to_owned() };
            (container.is_started, container.is_ready) = (true, true);
            sender.send_replace((1, Arc::new(state)));
            tokio::time::sleep(Duration::from_secs(1)).await;
            cancel.cancel();
        };
        tokio::join!(writer.run(cancel.clone()), worker);
        std::mem::take(&mut *told.0.lock())
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_that_is_ready_again_soon_never_leaves_the_endpoints() {
        assert_eq!(told_of_a_restart(Duration::from_millis(1500)).await, ["True"]);
        assert_eq!(told_of_a_restart(Duration::from_secs(5)).await, ["False", "True"]);
    }

    /// What the API hears of a new pod that is ready `after` its arrival.
    async fn told_of_a_start(after: Duration) -> Vec<String> {
        told(after, false).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_api_hears_of_a_new_pod_and_of_its_start_at_once_unless_that_takes_long() {
        assert_eq!(told_of_a_start(START_MAX / 2).await, ["True"]);
        assert_eq!(told_of_a_start(START_MAX * 2).await, ["False", "True"]);
    }

    #[test]
    fn a_merge_diff_applied_to_the_old_value_gives_the_new_one() {
        let cases = [
            (json!({"a": 1}), json!({"a": 1}), None),
            (json!({"a": 1, "b": 2}), json!({"a": 1}), Some(json!({"b": null}))),
            (
                json!({"a": {"x": 1, "y": 2}}),
                json!({"a": {"x": 1, "y": 3}}),
                Some(json!({"a": {"y": 3}})),
            ),
            (json!({"a": [1, 2]}), json!({"a": [1]}), Some(json!({"a": [1]}))),
            (json!({}), json!({"a": {"b": 1}}), Some(json!({"a": {"b": 1}}))),
        ];
        for (had, wanted, patch) in cases {
            assert_eq!(merge_diff(&had, &wanted), patch);
            let mut patched = had;
            if let Some(patch) = patch {
                json_patch::merge(&mut patched, &patch);
            }
            assert_eq!(patched, wanted);
        }
    }
}
