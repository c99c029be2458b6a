//! The status of an autoscaler while a look is made.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    HorizontalPodAutoscaler, HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerStatus,
    MetricStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::custom_metrics::REQUESTS_PER_SECOND;
use crate::controllers::autoscaler::behavior::Decision;

/// See the module.
#[derive(Debug)]
pub(super) struct Report {
    status: HorizontalPodAutoscalerStatus,
    now: Timestamp,
}

impl Report {
    /// Begins with what was written before.
    pub(super) fn of(autoscaler: &HorizontalPodAutoscaler, now: Timestamp) -> Self {
        Self { status: autoscaler.status.clone().unwrap_or_default(), now }
    }

    /// The scale was read.
    pub(super) fn found(&mut self, present: u32) {
        let message = "the HPA controller was able to get the target's current scale";
        self.set("AbleToScale", true, ("SucceededGetScale", message));
        self.status.current_replicas = Some(whole(present));
        self.status.desired_replicas = whole(present);
    }

    /// The scale could not be read or written.
    pub(super) fn unable(&mut self, reason: &'static str, why: &str) {
        let message = match reason {
            "FailedGetScale" => {
                format!("the HPA controller was unable to get the target's current scale: {why}")
            }
            _ => format!("the HPA controller was unable to update the target scale: {why}"),
        };
        self.set("AbleToScale", false, (reason, &message));
    }

    /// No metric can be used.
    pub(super) fn inactive(&mut self, reason: &'static str, why: &str) {
        let message = match reason {
            "ScalingDisabled" => why.to_owned(),
            _ => format!("the HPA was unable to compute the replica count: {why}"),
        };
        self.set("ScalingActive", false, (reason, &message));
    }

    /// A metric says how many.
    pub(super) fn active(&mut self, name: &str) {
        let message =
            format!("the HPA was able to successfully calculate a replica count from {name}");
        self.set("ScalingActive", true, ("ValidMetricFound", &message));
    }

    pub(super) fn measured(&mut self, statuses: Vec<MetricStatus>) {
        self.status.current_metrics = (!statuses.is_empty()).then_some(statuses);
    }

    pub(super) fn decided(&mut self, decision: &Decision) {
        self.set("AbleToScale", true, decision.able);
        self.set("ScalingLimited", decision.limited.0, decision.limited.1);
    }

    pub(super) fn wants(&mut self, replicas: u32) {
        self.status.desired_replicas = whole(replicas);
    }

    /// The scale was written.
    pub(super) fn rescaled(&mut self, replicas: u32) {
        let message =
            format!("the HPA controller was able to update the target scale to {replicas}");
        self.set("AbleToScale", true, ("SucceededRescale", &message));
        self.status.last_scale_time = Some(Time(self.now));
    }

    pub(super) fn into_status(self) -> HorizontalPodAutoscalerStatus {
        self.status
    }

    fn set(&mut self, condition_type: &str, is_true: bool, (reason, message): (&str, &str)) {
        let status = if is_true { "True" } else { "False" };
        let conditions = self.status.conditions.get_or_insert_default();
        let new = HorizontalPodAutoscalerCondition {
            type_: condition_type.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_transition_time: Some(Time(self.now)),
        };
        match conditions.iter_mut().find(|condition| condition.type_ == condition_type) {
            Some(had) if had.status == status => {
                (had.reason, had.message) = (new.reason, new.message);
            }
            Some(had) => *had = new,
            None => conditions.push(new),
        }
    }
}

fn whole(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

/// The Services whose requests per second lead the autoscaler.
pub(super) fn services_of(autoscaler: &HorizontalPodAutoscaler) -> Vec<String> {
    let metrics = autoscaler.spec.metrics.iter().flatten();
    let services = metrics.filter_map(|metric| {
        let object = metric.object.as_ref()?;
        let is_rate = object.metric.name == REQUESTS_PER_SECOND;
        let is_service = object.described_object.kind == "Service";
        (is_rate && is_service).then(|| object.described_object.name.clone())
    });
    services.collect()
}
