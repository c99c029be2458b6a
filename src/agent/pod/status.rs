//! The status of a pod: a pure function of the worker's state.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::agent::pod::plan::Role;
use crate::agent::pod::state::{ContainerRecord, Ended, Outcome, PodState, RunState};

/// Condition of a pod that ends for its node's sake.
const DISRUPTION_TARGET: &str = "DisruptionTarget";
/// Most bytes that the last words of all containers of a pod have together: kubelet's.
const MESSAGES_BYTES_MAX: usize = 12 * 1024;

/// What `base.status` becomes. Conditions and fields that others own stay as they are in `base`.
pub(crate) fn pod_status(base: &Pod, state: &PodState, now: Timestamp) -> PodStatus {
    let mut status = base.status.clone().unwrap_or_default();
    let generation = base.metadata.generation;
    let (reason, message) = match &state.outcome {
        Some(Outcome::Failed { reason, message }) => {
            (reason.map(str::to_owned), (!message.is_empty()).then(|| message.clone()))
        }
        Some(Outcome::Succeeded) | None => (None, None),
    };
    let phase = phase(state);
    let wanted = conditions(base, state, phase);
    let had = status.conditions.unwrap_or_default();
    let disruption = disruption(&had, state, now);
    let mut merged = merge_conditions(had, wanted, generation, now);
    if let Some(disruption) = disruption {
        merged.retain(|condition| condition.type_ != disruption.type_);
        merged.push(PodCondition { observed_generation: generation, ..disruption });
    }
    status.conditions = Some(merged);
    let message_bytes_max = MESSAGES_BYTES_MAX / state.containers.len().max(1);
    let statuses = |roles: &[Role]| {
        let records = state.containers.iter().filter(|c| roles.contains(&c.role));
        let list: Vec<_> = records.map(|c| container_status(c, message_bytes_max)).collect();
        (!list.is_empty()).then_some(list)
    };
    status.init_container_statuses = statuses(&[Role::Init, Role::Sidecar]);
    status.container_statuses = statuses(&[Role::Main]);
    status.ephemeral_container_statuses = statuses(&[Role::Ephemeral]);
    status.phase = Some(phase.to_owned());
    status.reason = reason;
    status.message = message;
    status.observed_generation = generation;
    status.start_time = Some(time(state.start_time));
    status.host_ip = state.host_ips.first().map(ToString::to_string);
    status.host_ips = (!state.host_ips.is_empty())
        .then(|| state.host_ips.iter().map(|ip| HostIP { ip: ip.to_string() }).collect());
    status.pod_ip = state.ips.first().map(ToString::to_string);
    status.pod_ips = (!state.ips.is_empty())
        .then(|| state.ips.iter().map(|ip| PodIP { ip: ip.to_string() }).collect());
    status
}

/// Kubernetes' one word for where a pod is.
pub(crate) fn phase(state: &PodState) -> &'static str {
    match &state.outcome {
        Some(Outcome::Succeeded) => "Succeeded",
        Some(Outcome::Failed { .. }) => "Failed",
        None => {
            let has_never_run = |c: &ContainerRecord| {
                matches!(c.state, RunState::Waiting { .. }) && c.last.is_none()
            };
            let is_init_open = !state.is_initialized
                && state.containers.iter().any(|c| c.role != Role::Main && !is_init_done(c));
            let mains = || state.containers.iter().filter(|c| c.role == Role::Main);
            if is_init_open || mains().any(has_never_run) { "Pending" } else { "Running" }
        }
    }
}

fn is_init_done(container: &ContainerRecord) -> bool {
    match container.role {
        Role::Init => matches!(&container.state, RunState::Ended(e) if e.code == 0),
        Role::Sidecar => container.is_started,
        Role::Main | Role::Ephemeral => true,
    }
}

/// Type, reason and message of a condition; no reason is `True`.
type Wanted = (&'static str, Option<(&'static str, String)>);

fn conditions(base: &Pod, state: &PodState, phase: &str) -> Vec<Wanted> {
    let not_done: Vec<_> = state
        .containers
        .iter()
        .filter(|c| c.role != Role::Main && !is_init_done(c))
        .map(|c| c.name.as_str())
        .collect();
    let initialized = if state.is_initialized || phase == "Succeeded" || not_done.is_empty() {
        None
    } else {
        Some((
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", not_done.join(" ")),
        ))
    };
    let not_ready: Vec<_> = state
        .containers
        .iter()
        .filter(|c| c.counts_for_readiness() && !c.is_ready)
        .map(|c| c.name.as_str())
        .collect();
    let containers_ready = match phase {
        "Succeeded" => Some(("PodCompleted", String::new())),
        "Failed" => Some(("PodFailed", String::new())),
        _ if !not_ready.is_empty() => Some((
            "ContainersNotReady",
            format!("containers with unready status: [{}]", not_ready.join(" ")),
        )),
        _ => None,
    };
    let ready = match &containers_ready {
        Some(why) => Some(why.clone()),
        None if state.is_terminating => {
            Some(("ContainersNotReady", "the pod is being terminated".to_owned()))
        }
        None => closed_gate(base).map(|gate| {
            ("ReadinessGatesNotReady", format!("corresponding condition of pod readiness gate \"{gate}\" does not exist or is not True."))
        }),
    };
    let has_sandbox = state.has_sandbox && state.outcome.is_none();
    let sandbox = (!has_sandbox).then(|| ("", String::new()));
    vec![
        ("PodReadyToStartContainers", sandbox),
        ("Initialized", initialized),
        ("Ready", ready),
        ("ContainersReady", containers_ready),
    ]
}

/// The first readiness gate whose condition is not `True`.
fn closed_gate(base: &Pod) -> Option<&str> {
    let gates = base.spec.as_ref().and_then(|s| s.readiness_gates.as_ref())?;
    let conditions = base.status.as_ref().and_then(|s| s.conditions.as_ref());
    gates.iter().map(|g| g.condition_type.as_str()).find(|gate| {
        !conditions.into_iter().flatten().any(|c| c.type_ == *gate && c.status == "True")
    })
}

/// What an evicted pod says beside its reason: others count such an end as nobody's failure.
fn disruption(had: &[PodCondition], state: &PodState, now: Timestamp) -> Option<PodCondition> {
    let Some(outcome @ Outcome::Failed { message, .. }) = &state.outcome else { return None };
    if !outcome.is_evicted() {
        return None;
    }
    let before = had.iter().find(|c| c.type_ == DISRUPTION_TARGET && c.status == "True");
    let since = before.and_then(|c| c.last_transition_time.clone());
    Some(PodCondition {
        type_: DISRUPTION_TARGET.to_owned(),
        status: "True".to_owned(),
        reason: Some("TerminationByKubelet".to_owned()),
        message: Some(message.clone()),
        last_transition_time: Some(since.unwrap_or_else(|| time(now))),
        ..PodCondition::default()
    })
}

fn merge_conditions(
    had: Vec<PodCondition>,
    wanted: Vec<Wanted>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<PodCondition> {
    let mut merged: Vec<PodCondition> = wanted
        .into_iter()
        .map(|(kind, why)| {
            let status = if why.is_none() { "True" } else { "False" };
            let before = had.iter().find(|c| c.type_ == kind);
            let since =
                before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
            let (reason, message) = why.unwrap_or_default();
            let text = |s: String| (!s.is_empty()).then_some(s);
            PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason: text(reason.to_owned()),
                message: text(message),
                last_transition_time: Some(since.unwrap_or_else(|| time(now))),
                last_probe_time: None,
                observed_generation: generation,
            }
        })
        .collect();
    let ours: Vec<String> = merged.iter().map(|c| c.type_.clone()).collect();
    merged.extend(had.into_iter().filter(|c| !ours.contains(&c.type_)));
    merged
}

fn container_status(record: &ContainerRecord, message_bytes_max: usize) -> ContainerStatus {
    let terminated = |ended: &Ended| terminated(ended, message_bytes_max);
    let id_of = |e: &Ended| Some(e.container_id.clone());
    let container_id = match &record.state {
        RunState::Running { container_id, .. } => Some(container_id.clone()),
        RunState::Ended(ended) => id_of(ended),
        RunState::Waiting { .. } => record.last.as_ref().and_then(id_of),
    };
    ContainerStatus {
        name: record.name.clone(),
        image: record.image.clone(),
        image_id: record.image_id.clone(),
        container_id: container_id.filter(|id| !id.is_empty()),
        ready: record.is_ready
            || (record.role == Role::Init
                && matches!(&record.state, RunState::Ended(e) if e.code == 0)),
        started: Some(record.is_started),
        restart_count: i32::try_from(record.restart_count).unwrap_or(i32::MAX),
        state: Some(match &record.state {
            RunState::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some((*reason).to_owned()),
                    message: (!message.is_empty()).then(|| message.clone()),
                }),
                ..ContainerState::default()
            },
            RunState::Running { started_at, .. } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(time(*started_at)) }),
                ..ContainerState::default()
            },
            RunState::Ended(ended) => terminated(ended),
        }),
        volume_mounts: (!record.volume_mounts.is_empty()).then(|| record.volume_mounts.clone()),
        last_state: Some(record.last.as_ref().map(terminated).unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

fn terminated(ended: &Ended, message_bytes_max: usize) -> ContainerState {
    let text = |s: &String| (!s.is_empty()).then(|| s.clone());
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: ended.code,
            reason: text(&ended.reason),
            message: text(&head(&ended.message, message_bytes_max)),
            started_at: ended.started_at.map(time),
            finished_at: Some(time(ended.finished_at)),
            container_id: text(&ended.container_id),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

/// The beginning of a text, whole characters of it.
fn head(text: &str, bytes_max: usize) -> String {
    let end = (0..=bytes_max.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text.get(..end.unwrap_or(0)).unwrap_or_default().to_owned()
}

/// A time as the API keeps it: whole seconds, so that what was written compares equal to what is read.
pub(crate) fn time(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

#[cfg(test)]
#[path = "status_test.rs"]
mod status_test;
