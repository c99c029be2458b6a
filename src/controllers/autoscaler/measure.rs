//! One metric of an autoscaler: fetched, and turned into replicas and a line of the status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricIdentifier, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus,
    ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt as _;

use crate::api::selector::LabelSelector;
use crate::controllers::autoscaler::calculator::{
    CalculationError, PodState, Proposal, Sample, Target, Tolerance, by_pods, by_share, by_value,
};
use crate::controllers::autoscaler::source::{self, Measured, millis};
use crate::controllers::object::{condition, elapsed, is_deleting, phase};

/// A pod's CPU in its first minutes says little: only a ready pod's counts, measured since it is.
const CPU_INITIALIZATION: Duration = Duration::from_secs(300);
/// A pod that was never ready since this long after its start has not been ready at all.
const READINESS_DELAY: Duration = Duration::from_secs(30);

/// What one look is made for.
pub(super) struct Look<'a> {
    pub(super) client: &'a kube::Client,
    pub(super) namespace: &'a str,
    pub(super) selector: &'a str,
    /// The workload's pods.
    pub(super) pods: &'a [Arc<Pod>],
    /// Replicas that are wanted now.
    pub(super) current: u32,
    pub(super) tolerance: Tolerance,
    pub(super) now: Timestamp,
}

/// Why a metric says nothing: a reason for the condition, and words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// What a metric says.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) replicas: u32,
    /// The metric as events name it.
    pub(super) name: String,
    pub(super) status: MetricStatus,
}

impl Look<'_> {
    /// Asks one metric.
    pub(super) async fn at(&self, metric: &MetricSpec) -> Result<Answer, Failure> {
        let bad = || Failure {
            reason: "InvalidMetricSourceType",
            message: format!("unknown metric source type {:?}", metric.type_),
        };
        match metric.type_.as_str() {
            "Resource" => {
                let source = metric.resource.as_ref().ok_or_else(bad)?;
                let (proposal, name) = self.resource(&source.name, None, &source.target).await?;
                let current = resource_value(proposal, &source.target);
                let status = ResourceMetricStatus { name: source.name.clone(), current };
                let status = MetricStatus { resource: Some(status), ..of_type("Resource") };
                Ok(Answer { replicas: proposal.replicas, name, status })
            }
            "ContainerResource" => {
                let source = metric.container_resource.as_ref().ok_or_else(bad)?;
                let container = Some(source.container.as_str());
                let (proposal, name) =
                    self.resource(&source.name, container, &source.target).await?;
                let current = resource_value(proposal, &source.target);
                let (container, resource) = (source.container.clone(), source.name.clone());
                let status = ContainerResourceMetricStatus { container, name: resource, current };
                let status = MetricStatus {
                    container_resource: Some(status),
                    ..of_type("ContainerResource")
                };
                Ok(Answer { replicas: proposal.replicas, name, status })
            }
            "Pods" => self.pods(metric).await.ok_or_else(bad)?,
            "Object" => self.object(metric).await.ok_or_else(bad)?,
            "External" => self.external(metric).await.ok_or_else(bad)?,
            _ => Err(bad()),
        }
    }

    async fn resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(Proposal, String), Failure> {
        let failed = |why: String| Failure {
            reason: "FailedGetResourceMetric",
            message: format!("failed to get {resource} utilization: {why}"),
        };
        let measured = source::resource(self.client, self.namespace, self.selector, resource);
        let measured = measured.await.map_err(failed)?;
        let samples: Vec<Sample> = self
            .pods
            .iter()
            .map(|pod| {
                let found = measured.get(&pod.name_any());
                let used = found.and_then(|found| match container {
                    Some(container) => found.by_container.get(container).copied(),
                    None => Some(found.by_container.values().sum()),
                });
                let state = state_of(pod, (resource == "cpu").then_some(found), self.now);
                Sample { state, used, requested: requested(pod, resource, container).ok() }
            })
            .collect();
        let wanted = match (target.average_utilization, &target.average_value) {
            (Some(percent), _) => Target::Utilization(i64::from(percent)),
            (None, value) => Target::Average(amount(value.as_ref())),
        };
        let proposal = by_pods(self.current, &samples, wanted, self.tolerance);
        let proposal =
            proposal.map_err(|err| failed(told(&err, self.pods, resource, container)))?;
        let what = match (container, wanted) {
            (None, Target::Utilization(_)) => {
                format!("{resource} resource utilization (percentage of request)")
            }
            (None, Target::Average(_)) => format!("{resource} resource"),
            (Some(container), _) => format!("{resource} container resource of {container}"),
        };
        Ok((proposal, what))
    }

    async fn pods(&self, metric: &MetricSpec) -> Option<Result<Answer, Failure>> {
        let source = metric.pods.as_ref()?;
        let failed = |why: String| Failure {
            reason: "FailedGetPodsMetric",
            message: format!("unable to get metric {}: {why}", source.metric.name),
        };
        let of_metric = selector_text(&source.metric);
        let asked = (source.metric.name.as_str(), of_metric.as_str());
        let values = source::pods(self.client, self.namespace, self.selector, asked).await;
        let values = match values {
            Ok(values) => values,
            Err(why) => return Some(Err(failed(why))),
        };
        let samples: Vec<Sample> = self
            .pods
            .iter()
            .map(|pod| Sample {
                state: state_of(pod, None, self.now),
                used: values.get(&pod.name_any()).copied(),
                requested: None,
            })
            .collect();
        let target = Target::Average(amount(source.target.average_value.as_ref()));
        let proposal = match by_pods(self.current, &samples, target, self.tolerance) {
            Ok(proposal) => proposal,
            Err(err) => return Some(Err(failed(err.to_string()))),
        };
        let current = MetricValueStatus {
            average_value: Some(quantity(proposal.value)),
            ..MetricValueStatus::default()
        };
        let status = PodsMetricStatus { metric: source.metric.clone(), current };
        let status = MetricStatus { pods: Some(status), ..of_type("Pods") };
        let name = format!("pods metric {}", source.metric.name);
        Some(Ok(Answer { replicas: proposal.replicas, name, status }))
    }

    async fn object(&self, metric: &MetricSpec) -> Option<Result<Answer, Failure>> {
        let source = metric.object.as_ref()?;
        let described = &source.described_object;
        let failed = |why: String| Failure {
            reason: "FailedGetObjectMetric",
            message: format!("unable to get metric {}: {why}", source.metric.name),
        };
        let of_metric = selector_text(&source.metric);
        let asked = (source.metric.name.as_str(), of_metric.as_str());
        let used = match source::object(self.client, self.namespace, described, asked).await {
            Ok(used) => used,
            Err(why) => return Some(Err(failed(why))),
        };
        let (proposal, current) = self.outer(used, &source.target);
        let status = ObjectMetricStatus {
            described_object: described.clone(),
            metric: source.metric.clone(),
            current,
        };
        let status = MetricStatus { object: Some(status), ..of_type("Object") };
        let name = format!("{} metric {}", described.kind, source.metric.name);
        Some(Ok(Answer { replicas: proposal.replicas, name, status }))
    }

    async fn external(&self, metric: &MetricSpec) -> Option<Result<Answer, Failure>> {
        let source = metric.external.as_ref()?;
        let (name, selector) = (source.metric.name.as_str(), selector_text(&source.metric));
        let used = match source::external(self.client, self.namespace, name, &selector).await {
            Ok(used) => used,
            Err(why) => {
                return Some(Err(Failure {
                    reason: "FailedGetExternalMetric",
                    message: format!(
                        "unable to get external metric {}/{name}: {why}",
                        self.namespace
                    ),
                }));
            }
        };
        let (proposal, current) = self.outer(used, &source.target);
        let status = ExternalMetricStatus { metric: source.metric.clone(), current };
        let status = MetricStatus { external: Some(status), ..of_type("External") };
        let name = format!("external metric {name}");
        Some(Ok(Answer { replicas: proposal.replicas, name, status }))
    }

    /// Of a value that is not measured at pods.
    fn outer(&self, used: i64, target: &MetricTarget) -> (Proposal, MetricValueStatus) {
        if let Some(share) = &target.average_value {
            let proposal = by_share(self.current, used, amount(Some(share)), self.tolerance);
            let average_value = Some(quantity(proposal.value));
            return (proposal, MetricValueStatus { average_value, ..MetricValueStatus::default() });
        }
        let ready = self.pods.iter().filter(|pod| is_serving(pod)).count();
        let wanted = amount(target.value.as_ref());
        let proposal = by_value(self.current, ready, used, wanted, self.tolerance);
        let value = Some(quantity(proposal.value));
        (proposal, MetricValueStatus { value, ..MetricValueStatus::default() })
    }
}

fn is_serving(pod: &Pod) -> bool {
    phase(pod) == "Running" && crate::controllers::object::is_ready(pod)
}

/// Whether a pod counts. `cpu` is its measure if that is of CPU, which has rules of its own.
fn state_of(pod: &Pod, cpu: Option<Option<&Measured>>, now: Timestamp) -> PodState {
    if is_deleting(&pod.metadata) || phase(pod) == "Failed" {
        return PodState::Ignored;
    }
    if phase(pod) == "Pending" {
        return PodState::Unready;
    }
    let Some(Some(measured)) = cpu else { return PodState::Ready };
    let started = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
    let (Some(ready), Some(started)) = (condition(pod, "Ready"), started) else {
        return PodState::Unready;
    };
    let is_ready = ready.status != "False";
    let since = ready.last_transition_time.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    let is_unready = if elapsed(started.0, now) < CPU_INITIALIZATION {
        // What was measured before it was ready is its start, not its work.
        let begins = measured.at.checked_sub(measured.window).unwrap_or(measured.at);
        !is_ready || begins < since
    } else {
        !is_ready && elapsed(started.0, since) < READINESS_DELAY
    };
    if is_unready { PodState::Unready } else { PodState::Ready }
}

/// Thousandths of what the pod's containers and sidecars ask for, or the one of that name; or the name
/// of the first that does not say.
fn requested<'a>(pod: &'a Pod, resource: &str, container: Option<&str>) -> Result<i64, &'a str> {
    let Some(spec) = pod.spec.as_ref() else { return Ok(0) };
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let all = spec.containers.iter().chain(sidecars);
    let mut sum = 0_i64;
    for one in all.filter(|one| container.is_none_or(|wanted| one.name == wanted)) {
        let requests = one.resources.as_ref().and_then(|resources| resources.requests.as_ref());
        let request = requests.and_then(|requests| millis(&requests.get(resource)?.0));
        sum = sum.saturating_add(request.ok_or(one.name.as_str())?);
    }
    Ok(sum)
}

/// Why there is no proposal; of a missing request, which container lacks it.
fn told(
    err: &CalculationError,
    pods: &[Arc<Pod>],
    resource: &str,
    container: Option<&str>,
) -> String {
    if let CalculationError::NoRequest { at } = err
        && let Some(pod) = pods.get(*at)
        && let Err(silent) = requested(pod, resource, container)
    {
        let pod = pod.name_any();
        return format!("missing request for {resource} in container {silent} of Pod {pod}");
    }
    err.to_string()
}

fn resource_value(proposal: Proposal, target: &MetricTarget) -> MetricValueStatus {
    let percent = proposal.utilization.and_then(|n| i32::try_from(n).ok());
    MetricValueStatus {
        average_utilization: percent.filter(|_| target.average_utilization.is_some()),
        average_value: Some(quantity(proposal.value)),
        value: None,
    }
}

fn amount(value: Option<&Quantity>) -> i64 {
    value.and_then(|value| millis(&value.0)).unwrap_or(0)
}

fn quantity(amount: i64) -> Quantity {
    Quantity(crate::api::quantity::format_cpu_millis(amount))
}

fn of_type(name: &str) -> MetricStatus {
    MetricStatus { type_: name.to_owned(), ..MetricStatus::default() }
}

fn selector_text(metric: &MetricIdentifier) -> String {
    let selector = metric.selector.as_ref().and_then(|one| serde_json::to_value(one).ok());
    let parsed = selector.and_then(|selector| LabelSelector::from_json(&selector).ok());
    parsed.map(|selector| selector.to_string()).unwrap_or_default()
}

/// How many replicas, the metric that says so, and what all of them showed.
pub(super) type Wanted = (u32, String, Vec<MetricStatus>);

/// Of all metrics: the most replicas; with one that fails, only what is not fewer than there are. What
/// they showed is in their order, and of one that failed it is empty: they are told apart by place.
pub(super) fn together(
    current: u32,
    answers: Vec<Result<Answer, Failure>>,
) -> Result<Wanted, (Failure, Vec<MetricStatus>)> {
    let (mut best, mut failure, mut statuses) = (None, None, Vec::with_capacity(answers.len()));
    for answer in answers {
        match answer {
            Ok(answer) => {
                statuses.push(answer.status);
                let is_more = best.as_ref().is_none_or(|(most, _)| answer.replicas > *most);
                if is_more {
                    best = Some((answer.replicas, answer.name));
                }
            }
            Err(err) => {
                statuses.push(MetricStatus::default());
                failure = failure.or(Some(err));
            }
        }
    }
    match (best, failure) {
        (None, None) => Ok((current, String::new(), statuses)),
        (Some((most, name)), None) => Ok((most, name, statuses)),
        (Some((most, name)), Some(_)) if most >= current => Ok((most, name, statuses)),
        (_, Some(failure)) => Err((failure, statuses)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::{Value, json};

    use super::*;

    fn pod(changes: &Value) -> Pod {
        let mut pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Running",
            "startTime": "2026-01-01T00:00:00Z", "conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": "2026-01-01T00:00:10Z"}]}});
        json_patch::merge(&mut pod, changes);
        serde_json::from_value(pod).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        format!("2026-01-01T{text}Z").parse().unwrap()
    }

    /// How the pod counts for CPU when it was measured at `time` and it is a moment later.
    fn cpu(pod: &Pod, time: &str) -> PodState {
        let window = jiff::SignedDuration::from_secs(20);
        let measured = Measured { at: at(time), window, by_container: BTreeMap::new() };
        state_of(pod, Some(Some(&measured)), at(time))
    }

    #[test]
    fn cpu_of_a_pods_first_minutes_counts_once_it_is_measured_while_ready() {
        let ready = pod(&json!({}));
        assert_eq!(cpu(&ready, "00:00:25"), PodState::Unready, "the window began before");
        assert_eq!(cpu(&ready, "00:00:30"), PodState::Ready);
        let unready = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:00:10Z"}]);
        let never = pod(&json!({"status": {"conditions": unready}}));
        assert_eq!(cpu(&never, "00:01:00"), PodState::Unready);
        assert_eq!(cpu(&never, "00:10:00"), PodState::Unready, "it was never ready");
        let later = json!([{"type": "Ready", "status": "False", "lastTransitionTime": "2026-01-01T00:05:00Z"}]);
        let lost = pod(&json!({"status": {"conditions": later}}));
        assert_eq!(cpu(&lost, "00:10:00"), PodState::Ready, "it works, if badly");
        assert_eq!(
            cpu(&pod(&json!({"status": {"conditions": []}})), "00:10:00"),
            PodState::Unready
        );
    }

    #[test]
    fn a_pod_that_is_unready_within_half_a_minute_of_its_start_was_never_ready() {
        for (second, state) in
            [(29, PodState::Unready), (30, PodState::Ready), (31, PodState::Ready)]
        {
            let since = format!("2026-01-01T00:00:{second}Z");
            let unready =
                json!([{"type": "Ready", "status": "False", "lastTransitionTime": since}]);
            let unready = pod(&json!({"status": {"conditions": unready}}));
            assert_eq!(cpu(&unready, "00:10:00"), state, "unready since second {second}");
        }
    }

    #[test]
    fn pods_that_go_or_failed_count_for_nothing_and_waiting_ones_are_unready() {
        let deleted = pod(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        assert_eq!(state_of(&deleted, None, at("00:00:00")), PodState::Ignored);
        let failed = pod(&json!({"status": {"phase": "Failed"}}));
        assert_eq!(state_of(&failed, None, at("00:00:00")), PodState::Ignored);
        let pending = pod(&json!({"status": {"phase": "Pending"}}));
        assert_eq!(state_of(&pending, None, at("00:00:00")), PodState::Unready);
        assert_eq!(state_of(&pod(&json!({})), None, at("00:00:00")), PodState::Ready);
    }

    #[test]
    fn requests_are_summed_and_the_container_without_one_is_named() {
        let two = pod(&json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m"}}},
            {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}}));
        assert_eq!(requested(&two, "cpu", None), Ok(1100));
        assert_eq!(requested(&two, "cpu", Some("a")), Ok(100));
        assert_eq!(requested(&two, "memory", None), Err("a"));
        let half = pod(&json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m"}}}, {"name": "b"}]}}));
        assert_eq!(requested(&half, "cpu", None), Err("b"));
        assert_eq!(requested(&half, "cpu", Some("a")), Ok(100));

        let pods = [Arc::new(two), Arc::new(half)];
        let missing = CalculationError::NoRequest { at: 1 };
        assert_eq!(
            told(&missing, &pods, "cpu", None),
            "missing request for cpu in container b of Pod p"
        );
        let unmeasured = CalculationError::NoMetrics;
        assert_eq!(told(&unmeasured, &pods, "cpu", None), unmeasured.to_string());
    }

    #[test]
    fn requests_of_sidecars_count_and_those_of_init_containers_do_not() {
        let with = |sidecar: Value| {
            pod(&json!({"spec": {
                "containers": [{"name": "a", "resources": {"requests": {"cpu": "100m"}}}],
                "initContainers": [{"name": "first"},
                    {"name": "side", "restartPolicy": "Always", "resources": sidecar}]}}))
        };
        let asks = with(json!({"requests": {"cpu": "50m"}}));
        assert_eq!(requested(&asks, "cpu", None), Ok(150));
        assert_eq!(requested(&asks, "cpu", Some("side")), Ok(50));
        let silent = with(json!({}));
        assert_eq!(requested(&silent, "cpu", None), Err("side"));
        assert_eq!(requested(&silent, "cpu", Some("side")), Err("side"));
    }

    #[test]
    fn of_several_metrics_the_most_counts_and_a_failure_never_takes_away() {
        let says = |replicas: u32| {
            Ok(Answer { replicas, name: format!("m{replicas}"), status: of_type("Pods") })
        };
        let fails = || Err(Failure { reason: "FailedGetPodsMetric", message: "x".into() });
        let of = |answers| {
            together(3, answers).map(|(most, name, _)| (most, name)).map_err(|(f, _)| f.reason)
        };
        assert_eq!(of(vec![says(2), says(5), says(4)]), Ok((5, "m5".to_owned())));
        assert_eq!(of(vec![says(5), fails()]), Ok((5, "m5".to_owned())));
        assert_eq!(of(vec![says(2), fails()]), Err("FailedGetPodsMetric"));
        assert_eq!(of(vec![fails()]), Err("FailedGetPodsMetric"));
    }

    #[test]
    fn what_a_metric_showed_stands_in_its_place_also_beside_one_that_failed() {
        let says =
            |replicas: u32| Ok(Answer { replicas, name: "m".to_owned(), status: of_type("Pods") });
        let fails = || Err(Failure { reason: "FailedGetPodsMetric", message: "x".into() });
        let shown = |answers| {
            let (Ok((_, _, statuses)) | Err((_, statuses))) = together(3, answers);
            statuses.into_iter().map(|status| status.type_).collect::<Vec<_>>()
        };
        assert_eq!(shown(vec![says(2), fails(), says(5)]), ["Pods", "", "Pods"]);
        assert_eq!(shown(vec![fails(), says(2)]), ["", "Pods"], "it would be fewer");
        assert_eq!(shown(vec![fails(), fails()]), ["", ""]);
    }
}
