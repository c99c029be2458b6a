//! What a worker knows about its pod: the only input of [`crate::agent::pod::status`].

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, VolumeMountStatus};

use crate::agent::pod::plan::{ContainerPlan, PodPlan, Role};

/// A container waits for its image, its configuration or its pod.
pub(crate) const CONTAINER_CREATING: &str = "ContainerCreating";
/// A main container waits for the init containers.
pub(crate) const POD_INITIALIZING: &str = "PodInitializing";
/// A container waits to be started again.
pub(crate) const CRASH_LOOP_BACK_OFF: &str = "CrashLoopBackOff";
/// The runtime refused to start a container.
pub(crate) const RUN_CONTAINER_ERROR: &str = "RunContainerError";
/// Environment or volumes could not be made.
pub(crate) const CREATE_CONTAINER_CONFIG_ERROR: &str = "CreateContainerConfigError";
/// The image is no component this node can run.
pub(crate) const CREATE_CONTAINER_ERROR: &str = "CreateContainerError";

/// Reason of a pod that had to leave its node.
pub(crate) const EVICTED: &str = "Evicted";

/// Exit code of a container that never came to run.
const CANNOT_RUN_CODE: i32 = 128;
/// Exit code of a container whose end nobody saw.
const UNSEEN_CODE: i32 = 255;
const UNSEEN_MESSAGE: &str = "the node's agent was restarted while the container ran";

/// How a run of a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    /// Somebody stopped it: its code says nothing of whether it has done its work.
    pub(crate) is_stopped: bool,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) finished_at: Timestamp,
    pub(crate) container_id: String,
}

/// Where a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunState {
    Waiting { reason: &'static str, message: String },
    Running { started_at: Timestamp, container_id: String },
    Ended(Ended),
}

/// Everything the status says about one container.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ContainerRecord {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) role: Role,
    pub(crate) state: RunState,
    pub(crate) last: Option<Ended>,
    pub(crate) restart_count: u32,
    pub(crate) image_id: String,
    /// Its volume mounts, once it has run.
    pub(crate) volume_mounts: Vec<VolumeMountStatus>,
    /// How long the last run that ended had lasted.
    pub(crate) ran: Duration,
    /// Its startup probe has passed, or it has none and runs.
    pub(crate) is_started: bool,
    /// Its readiness probe passes, or it has none and runs.
    pub(crate) is_ready: bool,
    /// Its postStart hook runs, or has failed.
    pub(crate) is_in_post_start: bool,
    /// Its next run takes the place of one that was ready.
    pub(crate) is_heir: bool,
}

impl ContainerRecord {
    pub(crate) fn is_running(&self) -> bool {
        matches!(self.state, RunState::Running { .. })
    }

    /// Whether the pod is ready only when this is.
    pub(crate) fn counts_for_readiness(&self) -> bool {
        matches!(self.role, Role::Main | Role::Sidecar)
    }

    /// A container before its first run.
    pub(crate) fn waiting(plan: &ContainerPlan, reason: &'static str) -> Self {
        Self {
            name: plan.name.clone(),
            image: plan.image.clone(),
            role: plan.role,
            state: RunState::Waiting { reason, message: String::new() },
            last: None,
            restart_count: 0,
            image_id: String::new(),
            volume_mounts: Vec::new(),
            ran: Duration::ZERO,
            is_started: false,
            is_ready: false,
            is_in_post_start: false,
            is_heir: false,
        }
    }

    /// Puts the container in front of its next run.
    pub(crate) fn wait(&mut self, reason: &'static str, message: impl Into<String>) {
        if let RunState::Ended(ended) = &self.state {
            self.last = Some(ended.clone());
        }
        self.is_started = false;
        self.is_ready = false;
        self.is_in_post_start = false;
        self.is_heir = false;
        self.state = RunState::Waiting { reason, message: message.into() };
    }

    /// The end of the run that is going on.
    pub(crate) fn end(&mut self, code: i32, reason: &str, message: &str, now: Timestamp) {
        let (started_at, container_id) = match &self.state {
            RunState::Running { started_at, container_id } => {
                (Some(*started_at), container_id.clone())
            }
            RunState::Waiting { .. } | RunState::Ended(_) => (None, String::new()),
        };
        self.is_started = false;
        self.is_ready = false;
        self.is_in_post_start = false;
        self.state = RunState::Ended(Ended {
            code,
            is_stopped: false,
            reason: reason.to_owned(),
            message: message.to_owned(),
            started_at,
            finished_at: now,
            container_id,
        });
    }

    /// The end of a run that was told to end, and did.
    pub(crate) fn end_stopped(&mut self, code: i32, reason: &str, message: &str, now: Timestamp) {
        self.end(code, reason, message, now);
        if let RunState::Ended(ended) = &mut self.state {
            ended.is_stopped = true;
        }
    }

    /// How its newest run ended, if it has.
    pub(crate) fn ended(&self) -> Option<&Ended> {
        match &self.state {
            RunState::Ended(ended) => Some(ended),
            RunState::Waiting { .. } | RunState::Running { .. } => None,
        }
    }

    /// Whether it runs or has run.
    pub(crate) fn has_begun(&self) -> bool {
        !matches!(self.state, RunState::Waiting { .. }) || self.last.is_some()
    }

    /// It will never run, and its pod is not one that tries again.
    pub(crate) fn end_unstarted(&mut self, message: &str, now: Timestamp) {
        self.end(CANNOT_RUN_CODE, "ContainerCannotRun", message, now);
    }

    /// Takes over what the API says from an earlier life of this agent.
    fn adopt(&mut self, status: &ContainerStatus, now: Timestamp) {
        self.restart_count = u32::try_from(status.restart_count).unwrap_or(0);
        self.image_id.clone_from(&status.image_id);
        self.volume_mounts = status.volume_mounts.clone().unwrap_or_default();
        self.last = status.last_state.as_ref().and_then(|s| ended(s, now));
        match status.state.as_ref() {
            Some(state) if state.terminated.is_some() => {
                if let Some(ended) = ended(state, now) {
                    self.state = RunState::Ended(ended);
                }
            }
            Some(ContainerState { running: Some(running), .. }) => {
                self.state = RunState::Ended(Ended {
                    code: UNSEEN_CODE,
                    is_stopped: false,
                    reason: "Unknown".to_owned(),
                    message: UNSEEN_MESSAGE.to_owned(),
                    started_at: running.started_at.as_ref().map(|t| t.0),
                    finished_at: now,
                    container_id: status.container_id.clone().unwrap_or_default(),
                });
            }
            _ => {}
        }
    }
}

fn ended(state: &ContainerState, now: Timestamp) -> Option<Ended> {
    let t = state.terminated.as_ref()?;
    Some(Ended {
        code: t.exit_code,
        is_stopped: false,
        reason: t.reason.clone().unwrap_or_default(),
        message: t.message.clone().unwrap_or_default(),
        started_at: t.started_at.as_ref().map(|t| t.0),
        finished_at: t.finished_at.as_ref().map_or(now, |t| t.0),
        container_id: t.container_id.clone().unwrap_or_default(),
    })
}

/// How a pod ended for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    Failed { reason: Option<&'static str>, message: String },
}

impl Outcome {
    /// Whether its node made it go.
    pub(crate) fn is_evicted(&self) -> bool {
        matches!(self, Self::Failed { reason: Some(EVICTED), .. })
    }
}

/// Everything the status says about the pod.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PodState {
    /// In the order of [`PodPlan::containers`].
    pub(crate) containers: Vec<ContainerRecord>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) host_ips: Vec<IpAddr>,
    pub(crate) start_time: Timestamp,
    /// The sandbox exists or has existed.
    pub(crate) has_sandbox: bool,
    /// The mains were started at least once: initialisation is over for good.
    pub(crate) is_initialized: bool,
    /// The pod is on its way out.
    pub(crate) is_terminating: bool,
    pub(crate) outcome: Option<Outcome>,
}

impl PodState {
    /// Takes over what the logs tell of an earlier life of this agent: `last_run` gives the number of
    /// a container's newest run. A run whose end nobody saw has ended.
    pub(crate) fn adopt_runs(&mut self, last_run: impl Fn(&str) -> Option<u32>, now: Timestamp) {
        for record in &mut self.containers {
            let Some(run) = last_run(&record.name) else { continue };
            match (&record.state, record.role) {
                (RunState::Ended(_), _) if record.restart_count >= run => {}
                // Its next run has to come after the one that was there.
                (_, Role::Init) => record.restart_count = record.restart_count.max(run + 1),
                _ => {
                    record.restart_count = record.restart_count.max(run);
                    record.end(UNSEEN_CODE, "Unknown", UNSEEN_MESSAGE, now);
                }
            }
        }
        let mut mains = self.containers.iter().filter(|c| c.role == Role::Main);
        self.is_initialized |= mains.any(ContainerRecord::has_begun);
    }

    /// Whether the pod has ended or is about to.
    pub(crate) fn is_over(&self) -> bool {
        self.outcome.is_some() || self.is_terminating
    }

    /// How a pod ended that was deleted, once nothing of it runs any more; `None` if it never began.
    pub(crate) fn outcome_of_deletion(&self) -> Option<Outcome> {
        let mains = self.containers.iter().filter(|c| c.role == Role::Main);
        let codes: Option<Vec<i32>> = mains
            .map(|main| match &main.state {
                RunState::Ended(ended) => Some(ended.code),
                // It waits for its next run, which it will not have.
                RunState::Waiting { .. } => main.last.as_ref().map(|last| last.code),
                RunState::Running { .. } => None,
            })
            .collect();
        Some(if codes?.into_iter().all(|code| code == 0) {
            Outcome::Succeeded
        } else {
            Outcome::Failed { reason: None, message: String::new() }
        })
    }

    /// Whether every container that is to stay is ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.containers.iter().all(|c| !c.counts_for_readiness() || c.is_ready)
    }

    /// The state of a pod that this agent sees for the first time, or again after its own restart.
    pub(crate) fn new(plan: &PodPlan, pod: &Pod, host_ips: &[IpAddr], now: Timestamp) -> Self {
        let status = pod.status.as_ref();
        let has_inits =
            plan.containers.iter().any(|c| matches!(c.role, Role::Init | Role::Sidecar));
        let reason = |role| match role {
            Role::Ephemeral => CONTAINER_CREATING,
            _ if has_inits => POD_INITIALIZING,
            _ => CONTAINER_CREATING,
        };
        let records = plan.containers.iter().map(|c| ContainerRecord::waiting(c, reason(c.role)));
        let mut containers: Vec<_> = records.collect();
        let known = status.into_iter().flat_map(|s| {
            let lists = [
                &s.init_container_statuses,
                &s.container_statuses,
                &s.ephemeral_container_statuses,
            ];
            lists.into_iter().flatten().flatten()
        });
        for known in known {
            if let Some(record) = containers.iter_mut().find(|c| c.name == known.name) {
                record.adopt(known, now);
            }
        }
        Self {
            containers,
            ips: Vec::new(),
            host_ips: host_ips.to_vec(),
            start_time: status.and_then(|s| s.start_time.as_ref()).map_or(now, |t| t.0),
            has_sandbox: false,
            is_initialized: false,
            is_terminating: false,
            outcome: None,
        }
    }
}
