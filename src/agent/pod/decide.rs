//! What a pod needs next: one pure function of where its containers are.

use tokio::time::Instant;

use crate::agent::pod::plan::{Fate, RestartPolicy, Role};
use crate::agent::pod::state::{ContainerRecord, Ended, Outcome, RunState};

/// When a waiting container may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    Now,
    At(Instant),
    /// What it needs is on its way: what is behind it waits as well.
    Coming,
    /// It cannot run at all; a new pod is needed.
    Never,
}

/// The next step of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Start this container.
    Start(usize),
    /// This container ended and will run again on its own: put it into back-off.
    Restart(usize),
    /// This container ended and takes the pod with it: stop the others, put all into back-off.
    RestartTogether(usize),
    /// Nothing to do before the time given, or before something happens.
    Wait(Option<Instant>),
    /// The pod has done what it was to do.
    Finish(Outcome),
}

/// What to do next. `due[i]` belongs to `containers[i]`.
pub(crate) fn decide(
    policy: RestartPolicy,
    fate: Fate,
    containers: &[ContainerRecord],
    due: &[Due],
    now: Instant,
) -> Step {
    if let Some(outcome) = outcome(policy, containers) {
        return Step::Finish(outcome);
    }
    // With the pod's fate they start in their order again and again, with their own only once.
    let has_begun = |c: &ContainerRecord| match fate {
        Fate::Pod => !matches!(c.state, RunState::Waiting { .. }),
        Fate::Container => c.has_begun(),
    };
    let have_mains_begun = containers.iter().any(|c| c.role == Role::Main && has_begun(c));
    for (at, container) in containers.iter().enumerate() {
        let RunState::Ended(ended) = &container.state else { continue };
        if !runs_again(policy, container.role, ended) {
            continue;
        }
        let is_shared = container.role != Role::Init
            && fate == Fate::Pod
            && policy != RestartPolicy::Never
            && have_mains_begun;
        return if is_shared { Step::RestartTogether(at) } else { Step::Restart(at) };
    }
    let mut wake: Option<Instant> = None;
    for (at, container) in containers.iter().enumerate() {
        if container.role == Role::Ephemeral {
            // It starts beside all this, and ends without a consequence.
            continue;
        }
        let is_gate = container.role != Role::Main && !have_mains_begun;
        match &container.state {
            RunState::Waiting { .. } => match due.get(at).copied().unwrap_or(Due::Now) {
                Due::At(then) if then > now => {
                    wake = Some(wake.map_or(then, |w| w.min(then)));
                    if is_gate {
                        return Step::Wait(wake);
                    }
                }
                Due::Coming => return Step::Wait(wake),
                Due::Never if is_gate => return Step::Wait(wake),
                Due::Never => {}
                Due::Now | Due::At(_) => return Step::Start(at),
            },
            RunState::Running { .. } => {
                let is_done = container.role == Role::Sidecar && container.is_started;
                if (is_gate && !is_done) || container.is_in_post_start {
                    return Step::Wait(wake);
                }
            }
            RunState::Ended(_) => {}
        }
    }
    Step::Wait(wake)
}

/// Whether a run that ended so is followed by another. One that was stopped has not done its work.
pub(super) fn runs_again(policy: RestartPolicy, role: Role, ended: &Ended) -> bool {
    let has_failed = ended.code != 0 || ended.is_stopped;
    match (role, policy) {
        (Role::Sidecar, _) | (Role::Main, RestartPolicy::Always) => true,
        (Role::Ephemeral, _) => false,
        (Role::Init, RestartPolicy::Always) | (_, RestartPolicy::OnFailure) => has_failed,
        (_, RestartPolicy::Never) => false,
    }
}

/// How the pod ended, if it has: an init container failed for good, or no main runs again.
fn outcome(policy: RestartPolicy, containers: &[ContainerRecord]) -> Option<Outcome> {
    let mut have_mains_ended = true;
    let mut failed: Option<&ContainerRecord> = None;
    for container in containers {
        match (&container.state, container.role) {
            (_, Role::Sidecar | Role::Ephemeral) => {}
            (RunState::Ended(ended), Role::Init) => {
                if ended.code != 0 && !runs_again(policy, Role::Init, ended) {
                    return Some(Outcome::Failed {
                        reason: None,
                        message: format!(
                            "init container {} failed with exit code {}",
                            container.name, ended.code
                        ),
                    });
                }
            }
            (RunState::Ended(ended), Role::Main) => {
                have_mains_ended &= !runs_again(policy, Role::Main, ended);
                if ended.code != 0 {
                    failed.get_or_insert(container);
                }
            }
            (_, Role::Main) => have_mains_ended = false,
            (_, Role::Init) => {}
        }
    }
    if !have_mains_ended {
        return None;
    }
    Some(match failed {
        Some(_) => Outcome::Failed { reason: None, message: String::new() },
        None => Outcome::Succeeded,
    })
}

#[cfg(test)]
#[path = "decide_test.rs"]
mod decide_test;
