//! Keeps as many replicas as measured load asks for, down to none and back.
//!
//! Data in: HorizontalPodAutoscalers, scales, pods, metrics, and the nodes' heartbeats, which say which
//! Services have requests that wait. Data out: scales, the status of autoscalers, and a mark on Services
//! whose workload may be scaled to zero.
//!
//! # Invariants
//!
//! - What the load asks for (`calculator`) and what is done about it (`behavior`) are pure.
//! - Replicas are never taken away for a metric that could not be read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::PostParams;
use kube::{Api, ResourceExt as _};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::api::node_load;
use crate::api::selector::LabelSelector;
use crate::client::{Change, EventRecorder, EventType, Regarding, Store};
use crate::controllers::Context;
use crate::controllers::autoscaler::behavior::{Decision, Memory, decide};
use crate::controllers::autoscaler::calculator::Tolerance;
use crate::controllers::autoscaler::measure::{Failure, Look, together};
use crate::controllers::autoscaler::report::{Report, services_of};
use crate::controllers::autoscaler::source::{Scale, millis, scale};
use crate::controllers::object::{Key, key};
use crate::controllers::queue::{Next, Queue, Workers};

mod behavior;
mod calculator;
mod mark;
mod measure;
mod report;
mod source;

/// Autoscalers looked at at once.
const RUNS_MAX: usize = 8;
/// While requests wait, there is a look this often.
const WAITING_LOOK: Duration = Duration::from_secs(1);

/// Runs the controller until `cancel`.
pub(super) async fn run(context: Context, events: EventRecorder, cancel: CancellationToken) {
    let queue = Queue::new();
    let informers = &context.informers;
    informers.autoscalers.subscribe(queue.feed(
        |change: &Change<'_, HorizontalPodAutoscaler>, keys| {
            // Its own status is written at each look, and is no reason for another.
            let is_news = match change {
                Change::Applied { old: Some(old), new } => old.spec != new.spec,
                Change::Applied { old: None, .. } | Change::Removed(_) => true,
            };
            if is_news {
                keys.push(key(change.object().as_ref()));
            }
        },
    ));
    let autoscalers = informers.autoscalers.store.clone();
    informers.leases.subscribe(queue.feed(move |change: &Change<'_, Lease>, keys| {
        if let Change::Applied { old, new } = change {
            let before = old.map(|old| waiting(old)).unwrap_or_default();
            let now = waiting(new);
            if now != before {
                keys.extend(now.iter().flat_map(|service| scalers_of(&autoscalers, service)));
            }
        }
    }));
    let autoscalers = informers.autoscalers.store.clone();
    informers.services.subscribe(queue.feed(move |change: &Change<'_, Service>, keys| {
        // A Service that comes later than its autoscaler is to be marked.
        if let Change::Applied { old: None, new } = change {
            keys.extend(scalers_of(&autoscalers, &key(new.as_ref())));
        }
    }));
    let workers =
        Workers { controller: "autoscaler", runs_max: RUNS_MAX, rng: context.rng.clone() };
    let controller = Controller { context, events, memories: Mutex::default() };
    workers.run(queue, cancel, |key| controller.reconcile(key)).await;
}

/// The Services that have requests waiting at a node.
fn waiting(lease: &Lease) -> Vec<Key> {
    lease.metadata.annotations.as_ref().map(node_load::waiting).unwrap_or_default()
}

/// The autoscalers that are led by a Service.
fn scalers_of(store: &Store<HorizontalPodAutoscaler>, service: &Key) -> Vec<Key> {
    let all = store.in_namespace(&service.0);
    let is_led = |one: &&Arc<HorizontalPodAutoscaler>| services_of(one).contains(&service.1);
    all.iter().filter(is_led).map(|one| key(one.as_ref())).collect()
}

struct Controller {
    context: Context,
    events: EventRecorder,
    /// What was recommended and done, by autoscaler and its uid.
    memories: Mutex<BTreeMap<Key, (Option<String>, Memory)>>,
}

impl Controller {
    async fn reconcile(&self, key: Key) -> Result<Next, kube::Error> {
        let informers = &self.context.informers;
        let Some(autoscaler) = informers.autoscalers.store.named(&key.0, &key.1) else {
            self.memories.lock().remove(&key);
            self.unmark(&key).await?;
            return Ok(Next::Wait);
        };
        self.mark(&key, &autoscaler).await?;
        let mut report = Report::of(&autoscaler, self.context.clock.now());
        let is_waiting = self.has_waiting(&key.0, &autoscaler);
        self.look(&key, &autoscaler, is_waiting, &mut report).await;
        self.write(&key, &autoscaler, report).await?;
        let interval = self.context.settings.autoscaler_interval;
        Ok(Next::After(if is_waiting { WAITING_LOOK.min(interval) } else { interval }))
    }

    /// One look: reads the scale and the metrics, decides, and writes the scale.
    async fn look(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        is_waiting: bool,
        report: &mut Report,
    ) {
        let target = &autoscaler.spec.scale_target_ref;
        let api_version = target.api_version.as_deref().unwrap_or("apps/v1");
        let wanted = (api_version, target.kind.as_str(), target.name.as_str());
        let scale = match scale(&self.context.client, &key.0, wanted).await {
            Ok(scale) => scale,
            Err(why) => {
                report.unable("FailedGetScale", &why);
                let message = format!(
                    "the HPA controller was unable to get the target's current scale: {why}"
                );
                return self.tell(autoscaler, EventType::Warning, "FailedGetScale", message);
            }
        };
        report.found(scale.present());
        let current = scale.wanted();
        let count = |n: i32| u32::try_from(n).unwrap_or(0);
        let min = count(autoscaler.spec.min_replicas.unwrap_or(1));
        let max = count(autoscaler.spec.max_replicas);
        if current == 0 && min > 0 {
            report.inactive(
                "ScalingDisabled",
                "scaling is disabled since the replica count of the target is zero",
            );
            return;
        }
        let (decision, reason) = if current > max {
            (Some(max), "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < min {
            (Some(min), "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            match self.ask(key, autoscaler, &scale, is_waiting, report).await {
                Ok((decision, name)) => {
                    let text = if decision.replicas > current {
                        format!("{name} above target")
                    } else {
                        "All metrics below target".to_owned()
                    };
                    report.decided(&decision);
                    (Some(decision.replicas), text)
                }
                Err(failure) => {
                    report.inactive(failure.reason, &failure.message);
                    self.tell(autoscaler, EventType::Warning, failure.reason, failure.message);
                    (None, String::new())
                }
            }
        };
        let Some(wanted) = decision else { return };
        report.wants(wanted);
        if wanted != current {
            self.rescale(key, autoscaler, &scale, (wanted, reason), report).await;
        }
    }

    /// What the metrics ask for, and what is to be done about it.
    async fn ask(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        is_waiting: bool,
        report: &mut Report,
    ) -> Result<(Decision, String), Failure> {
        if scale.selector().is_empty() {
            let message = "the HPA target's scale is missing a selector".to_owned();
            return Err(Failure { reason: "InvalidSelector", message });
        }
        let now = self.context.clock.now();
        let current = scale.wanted();
        let pods = self.pods(&key.0, scale.selector());
        let look = Look {
            client: &self.context.client,
            namespace: &key.0,
            selector: scale.selector(),
            pods: &pods,
            current,
            tolerance: tolerance(autoscaler),
            now,
        };
        let mut answers = Vec::new();
        for metric in autoscaler.spec.metrics.iter().flatten() {
            answers.push(look.at(metric).await);
        }
        let (mut asked, mut name, statuses) = match together(current, answers) {
            Ok(found) => found,
            Err((failure, statuses)) if !is_waiting => {
                report.measured(statuses);
                return Err(failure);
            }
            // Requests wait: that is reason enough for one replica.
            Err((_, statuses)) => (current, String::new(), statuses),
        };
        if is_waiting && asked == 0 {
            (asked, name) = (1, "requests that wait".to_owned());
        }
        report.measured(statuses);
        report.active(&name);
        let mut memories = self.memories.lock();
        let memory = memories.entry(key.clone()).or_default();
        if memory.0 != autoscaler.uid() {
            *memory = (autoscaler.uid(), Memory::default());
        }
        memory.1.begin(current, now);
        Ok((decide(&autoscaler.spec, &mut memory.1, current, asked, now), name))
    }

    fn pods(&self, namespace: &str, selector: &str) -> Vec<Arc<Pod>> {
        let Ok(selector) = LabelSelector::parse(selector) else { return Vec::new() };
        let mut pods = self.context.informers.pods.store.in_namespace(namespace);
        pods.retain(|pod| selector.matches_labels(pod.labels()));
        pods
    }

    async fn rescale(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        (wanted, reason): (u32, String),
        report: &mut Report,
    ) {
        if let Err(err) = scale.set(&self.context.client, wanted).await {
            report.unable("FailedUpdateScale", &err.to_string());
            let message = format!("New size: {wanted}; reason: {reason}; error: {err}");
            return self.tell(autoscaler, EventType::Warning, "FailedRescale", message);
        }
        let now = self.context.clock.now();
        if let Some((_, memory)) = self.memories.lock().get_mut(key) {
            memory.changed(scale.wanted(), wanted, now);
        }
        report.rescaled(wanted);
        let message = format!("New size: {wanted}; reason: {reason}");
        self.tell(autoscaler, EventType::Normal, "SuccessfulRescale", message);
    }

    /// Whether requests wait at some node for one of the autoscaler's Services.
    fn has_waiting(&self, namespace: &str, autoscaler: &HorizontalPodAutoscaler) -> bool {
        let services = services_of(autoscaler);
        if services.is_empty() {
            return false;
        }
        let leases = self.context.informers.leases.store.state();
        leases
            .iter()
            .flat_map(|lease| waiting(lease))
            .any(|(of_namespace, service)| of_namespace == namespace && services.contains(&service))
    }

    async fn write(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        report: Report,
    ) -> Result<(), kube::Error> {
        let status: HorizontalPodAutoscalerStatus = report.into_status();
        if autoscaler.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api: Api<HorizontalPodAutoscaler> =
            Api::namespaced(self.context.client.clone(), &key.0);
        let new = HorizontalPodAutoscaler {
            status: Some(status),
            ..HorizontalPodAutoscaler::clone(autoscaler)
        };
        api.replace_status(&key.1, &PostParams::default(), &new).await.map(drop)
    }

    fn tell(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        event_type: EventType,
        reason: &'static str,
        message: String,
    ) {
        let name = autoscaler.name_any();
        debug!(object.name = name, object.reason = reason, message, "autoscaler event");
        self.events.record(Regarding::of(autoscaler), event_type, reason, message);
    }
}

fn tolerance(autoscaler: &HorizontalPodAutoscaler) -> Tolerance {
    let usual = Tolerance::default();
    let Some(behavior) = autoscaler.spec.behavior.as_ref() else { return usual };
    let of = |rules: Option<&k8s_openapi::api::autoscaling::v2::HPAScalingRules>| {
        let thousandths = millis(&rules?.tolerance.as_ref()?.0)?;
        i32::try_from(thousandths).ok().map(|n| f64::from(n) / 1000.0)
    };
    Tolerance {
        up: of(behavior.scale_up.as_ref()).unwrap_or(usual.up),
        down: of(behavior.scale_down.as_ref()).unwrap_or(usual.down),
    }
}
