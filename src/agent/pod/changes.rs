//! What may change in a pod that runs: images of its containers, and ephemeral containers that
//! are added to it.

use std::time::Duration;

use edgeorc_runtime::Mount;
use tokio::time::Instant;

use crate::agent::command;
use crate::agent::pod::backoff::Backoff;
use crate::agent::pod::decide::Due;
use crate::agent::pod::plan::{ContainerPlan, Role, ephemeral};
use crate::agent::pod::start::StartFailure;
use crate::agent::pod::state::{
    CONTAINER_CREATING, ContainerRecord, RUN_CONTAINER_ERROR, RunState,
};
use crate::agent::pod::worker::Worker;
use crate::client::EventType;

/// Where an ephemeral container finds what its target has mounted: as on Linux, where the target's
/// first process is process 1.
const TARGET_ROOT: &str = "/proc/1/root";

impl Worker {
    /// Takes over what has changed in the spec since it was read last.
    pub(super) async fn take_changes(&mut self) {
        let pod = self.pod();
        let generation = pod.metadata.generation.unwrap_or_default();
        if generation < self.generation {
            // What an API server says that is behind must not start the old image again.
            return;
        }
        self.generation = generation;
        let mut has_news = false;
        for at in 0..self.plan.containers.len() {
            if self.plan.containers.get_mut(at).is_some_and(|plan| plan.take_image(&pod)) {
                self.replace(at);
                has_news = true;
            }
        }
        for added in ephemeral(&pod) {
            if self.plan.containers.iter().all(|known| known.name != added.name) {
                self.add(added);
                has_news = true;
            }
        }
        for at in 0..self.plan.containers.len() {
            self.fetch_ephemeral(at);
        }
        if has_news {
            self.save().await;
            self.publish();
        }
    }

    fn add(&mut self, plan: ContainerPlan) {
        self.state.containers.push(ContainerRecord::waiting(&plan, CONTAINER_CREATING));
        self.plan.containers.push(plan);
        self.running.push(None);
        self.due.push(Due::Now);
        self.backoffs.push(Backoff::new(self.shared.restart));
        self.replaced.push(false);
    }

    /// The container has another image now: one that runs goes on until that is here and is replaced then,
    /// whatever the restart policy says; one that waits waits no longer.
    fn replace(&mut self, at: usize) {
        let Some(plan) = self.plan.containers.get(at) else { return };
        let (image, role, is_stopping) = (plan.image.clone(), plan.role, self.is_stopping(at));
        if let Some(backoff) = self.backoffs.get_mut(at) {
            *backoff = Backoff::new(self.shared.restart);
        }
        let Some(record) = self.state.containers.get_mut(at) else { return };
        match record.state {
            RunState::Waiting { .. } => {
                record.image = image;
                if let Some(due) = self.due.get_mut(at) {
                    *due = Due::Now;
                }
            }
            // An init container's work is done, or about to be.
            RunState::Running { .. } if role != Role::Init => {
                let is_back = record.image == image;
                let (Some(is_replaced), Some(due)) =
                    (self.replaced.get_mut(at), self.due.get_mut(at))
                else {
                    return;
                };
                match (is_stopping, is_back) {
                    // It starts again with the new one.
                    (true, _) => *is_replaced = true,
                    (false, true) => (*is_replaced, *due) = (false, Due::Now),
                    (false, false) => {
                        *is_replaced = true;
                        self.fetch(at, Duration::ZERO);
                    }
                }
            }
            RunState::Running { .. } | RunState::Ended(_) => {}
        }
    }

    /// Whether it runs, and has an image that is to be replaced.
    pub(super) fn awaits_image(&self, at: usize) -> bool {
        self.replaced.get(at).is_some_and(|is_replaced| *is_replaced)
            && self.state.containers.get(at).is_some_and(ContainerRecord::is_running)
            && !self.is_stopping(at)
    }

    fn is_stopping(&self, at: usize) -> bool {
        let running = self.running.get(at).and_then(Option::as_ref);
        running.is_none_or(|running| running.probes.is_cancelled())
    }

    /// The new image of a running container is here: a server of HTTP hands its port over to the next run,
    /// everything else is stopped. `true` if the next run is to start now.
    pub(super) fn give_way(&mut self, at: usize) -> bool {
        let Some(plan) = self.plan.containers.get(at) else { return false };
        let name = plan.name.clone();
        let has_given_way = self.hand_over(at);
        let message = format!("Container {name} definition changed, will be restarted");
        self.event_of(at, EventType::Normal, "Killing", message);
        if has_given_way {
            if let Some(is_replaced) = self.replaced.get_mut(at) {
                *is_replaced = false;
            }
            return true;
        }
        if let Some(record) = self.state.containers.get_mut(at) {
            record.is_ready = false;
        }
        self.kill(at, self.plan.grace);
        self.publish();
        false
    }

    /// Has what an ephemeral container needs brought here, beside all else: the pod must not wait
    /// for it.
    fn fetch_ephemeral(&mut self, at: usize) {
        let is_waiting = self.state.containers.get(at).is_some_and(|record| {
            record.role == Role::Ephemeral && matches!(record.state, RunState::Waiting { .. })
        });
        let Some(due) = self.due.get_mut(at).filter(|_| is_waiting) else { return };
        let wait = match *due {
            Due::Now => Duration::ZERO,
            Due::At(then) => then.saturating_duration_since(Instant::now()),
            // It is on its way, or will never be.
            Due::Coming | Due::Never => return,
        };
        self.fetch(at, wait);
    }

    /// What an ephemeral container sees beside its own mounts: its target's, and a root folder to
    /// walk down from.
    pub(super) fn surroundings(
        &self,
        plan: &ContainerPlan,
        own: &[Mount],
    ) -> Result<Vec<Mount>, StartFailure> {
        let mut more = Vec::new();
        if let Some(target) = &plan.target {
            let missing = || {
                let message = format!("unable to find target container {target:?}");
                StartFailure::later(RUN_CONTAINER_ERROR, message)
            };
            let target = self.live.container(target).ok_or_else(missing)?;
            more.extend(target.config.mounts.iter().map(|mount| {
                let path = mount.guest_path.trim_matches('/');
                Mount { guest_path: format!("{TARGET_ROOT}/{path}"), ..mount.clone() }
            }));
        }
        let all: Vec<_> = own.iter().chain(&more).cloned().collect();
        more.extend(command::root(&self.dir, &plan.name, &all));
        Ok(more)
    }
}
