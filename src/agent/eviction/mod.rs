//! What a node does when it is short of memory or disk: it says so in its conditions, deletes what
//! nobody uses, and then evicts pods, one after another, until it has enough.
//!
//! ```text
//!  every look: figures ─► shortages ─► conditions ─► (taints by the node controller)
//!                             │
//!                             ├─ disk: files of ended pods, unused images ─► enough? done
//!                             └─ the node is tainted ─► one pod ─► gone ─► next look
//! ```
//!
//! Data in: the machine's figures, what pods use. Data out: [`Pressure`] for the Node, verdicts for
//! workers, events.
//!
//! # Invariants
//!
//! - Static pods and those of critical priority are never evicted.
//! - At most one pod per look, and none whose end would free next to nothing.
//! - A pod is evicted once nothing more is scheduled to the node, as far as that can be waited for.

#[cfg(test)]
mod eviction_test;
mod limits;
mod metrics;
mod pressure;
mod rank;
mod surroundings;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::agent::residents::Resident;
use crate::agent::usage::{Figures, PodUse, Usage};
use crate::client::EventType;
use crate::config::{EvictionSettings, Signal};
use pressure::{Conditions, Shortage, shortages};

pub(crate) use metrics::EvictionMetrics;
pub(crate) use pressure::Pressure;
pub(crate) use surroundings::{ClusterSurroundings, Surroundings};

/// How long an evicted pod may take to end before the next look.
const GONE_MAX: Duration = Duration::from_secs(30);

/// Looks at the node, and evicts.
pub(crate) struct Evictor {
    usage: Usage,
    surroundings: Arc<dyn Surroundings>,
    settings: EvictionSettings,
    conditions: Conditions,
    pressure: watch::Sender<Pressure>,
    metrics: EvictionMetrics,
    /// What was short at the last look.
    short_before: Vec<Signal>,
}

impl Evictor {
    /// Takes the first look; what the node's conditions are is in the receiver at once.
    pub(crate) fn new(
        usage: Usage,
        surroundings: Arc<dyn Surroundings>,
        settings: EvictionSettings,
    ) -> (Self, watch::Receiver<Pressure>) {
        let mut conditions = Conditions::new(settings.transition_period);
        let short = shortages(&settings.thresholds, &usage.figures());
        let (pressure, known) = watch::channel(conditions.note(&short, Instant::now()));
        let (metrics, short_before) = (usage.evictions().clone(), Vec::new());
        let this =
            Self { usage, surroundings, settings, conditions, pressure, metrics, short_before };
        (this, known)
    }

    /// Looks from time to time until `cancel`.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut looks = interval(self.settings.interval);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while cancel.run_until_cancelled(looks.tick()).await.is_some() {
            // A look may wait for a pod's end: that must not hold up the node's.
            if cancel.run_until_cancelled(self.look()).await.is_none() {
                return;
            }
        }
    }

    /// One look, and what follows from it.
    async fn look(&mut self) {
        let figures = self.read().await;
        self.usage.look(figures);
        let short = shortages(&self.settings.thresholds, &figures);
        self.tell_pressure(&short);
        if self.keep_limits().await {
            return;
        }
        for shortage in &short {
            let is_news = !self.short_before.contains(&shortage.signal);
            if is_news {
                self.tell_shortage(shortage);
            }
            if self.relieve(shortage, figures.has_image_disk).await {
                break;
            }
        }
        self.short_before = short.iter().map(|shortage| shortage.signal).collect();
    }

    async fn read(&self) -> Figures {
        let usage = self.usage.clone();
        tokio::task::spawn_blocking(move || usage.figures()).await.unwrap_or_default()
    }

    fn tell_pressure(&mut self, short: &[Shortage]) {
        let now = self.conditions.note(short, Instant::now());
        let before = self.pressure.send_replace(now);
        if before == now {
            return;
        }
        let changes = [
            (before.memory, now.memory, "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
            (before.disk, now.disk, "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
            (before.pid, now.pid, "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ];
        for (was, is, bad, good) in changes {
            if was != is {
                let reason = if is { bad } else { good };
                info!(object.reason = reason, "the node's pressure has changed");
                let message = format!("Node {} status is now: {reason}", self.usage.node_name());
                self.surroundings.tell(EventType::Normal, reason, message);
            }
        }
    }

    fn tell_shortage(&self, shortage: &Shortage) {
        let resource = shortage.resource();
        warn!(
            signal = shortage.signal.name(),
            available = shortage.available,
            least = shortage.least,
            "the node is short of something"
        );
        let message = format!("Attempting to reclaim {resource}");
        self.surroundings.tell(EventType::Warning, "EvictionThresholdMet", message);
    }

    /// Evicts pods that are beyond limits of their own. Whether there were any.
    async fn keep_limits(&self) -> bool {
        let usage = self.usage.clone();
        let judged = tokio::task::spawn_blocking(move || {
            let residents = usage.residents().all().into_iter();
            let limited = residents.filter(|(_, resident)| {
                let pod = resident.pod();
                !resident.is_leaving() && !rank::is_critical(&pod) && limits::has_limits(&pod)
            });
            let broken = limited.filter_map(|(uid, resident)| {
                let walked = usage.disk_of(&uid, &resident);
                let why = limits::broken(&resident.pod(), &walked.disk)?;
                Some((resident, why))
            });
            broken.collect::<Vec<_>>()
        });
        let broken = judged.await.unwrap_or_default();
        for (resident, why) in &broken {
            self.metrics.evicted(None);
            evict(resident, why.clone());
        }
        for (resident, _) in &broken {
            until_gone(resident).await;
        }
        !broken.is_empty()
    }

    /// Frees some of what is short. Whether nothing more is to be done at this look.
    async fn relieve(&self, shortage: &Shortage, has_image_disk: bool) -> bool {
        let is_of_disk = match shortage.signal {
            // Guests have neither processes nor threads: their end would free none.
            Signal::PidAvailable => return false,
            Signal::MemoryAvailable => false,
            _ => true,
        };
        if is_of_disk {
            self.clean().await;
            let left = shortages(&self.settings.thresholds, &self.read().await);
            if left.iter().all(|found| found.signal != shortage.signal) {
                return true;
            }
            if shortage.signal == Signal::ImageFsAvailable && has_image_disk {
                // Pods have nothing there but images that they use.
                return false;
            }
        }
        let taint = if is_of_disk { DISK_TAINT } else { MEMORY_TAINT };
        self.surroundings.until_tainted(taint).await;
        let Some((resident, pod)) = self.victim(*shortage, is_of_disk).await else {
            return false;
        };
        self.metrics.evicted(Some(shortage.signal));
        evict(&resident, rank::message(shortage, &pod));
        until_gone(&resident).await;
        true
    }

    /// Deletes what ended pods have left, and images that nobody uses.
    async fn clean(&self) {
        let residents = self.usage.residents().clone();
        let swept = tokio::task::spawn_blocking(move || {
            for (_, resident) in residents.all().iter().filter(|(_, one)| one.has_ended()) {
                if let Err(err) = resident.dir.shed() {
                    warn!(%err, "cannot remove what an ended pod has left");
                }
            }
        });
        let _ = swept.await;
        let bytes = self.surroundings.reclaim_images().await;
        if bytes > 0 {
            info!(bytes, "unused images deleted, the disk is short");
        }
    }

    async fn victim(&self, shortage: Shortage, has_disk: bool) -> Option<(Resident, PodUse)> {
        let usage = self.usage.clone();
        let chosen = tokio::task::spawn_blocking(move || {
            let mut residents = usage.residents().all();
            residents.retain(|(_, resident)| !resident.is_leaving());
            let pods: Vec<PodUse> = residents
                .iter()
                .map(|(uid, resident)| PodUse {
                    disk: has_disk.then(|| usage.disk_of(uid, resident)),
                    ..usage.of_pod(uid, resident)
                })
                .collect();
            let chosen = rank::choose(&shortage, &pods)?.clone();
            let resident = residents.into_iter().find(|(uid, _)| *uid == chosen.uid)?.1;
            Some((resident, chosen))
        });
        chosen.await.ok().flatten()
    }
}

/// The taints that the node controller sets.
const MEMORY_TAINT: &str = "node.kubernetes.io/memory-pressure";
const DISK_TAINT: &str = "node.kubernetes.io/disk-pressure";

fn evict(resident: &Resident, why: String) {
    let meta = &resident.seen.borrow().metadata;
    let (namespace, name) = (meta.namespace.clone(), meta.name.clone());
    info!(
        k8s.namespace.name = namespace.unwrap_or_default(),
        k8s.pod.name = name.unwrap_or_default(),
        reason = why,
        "evicting a pod"
    );
    resident.verdict.send_replace(Some(why));
}

async fn until_gone(resident: &Resident) {
    let mut states = resident.states.clone();
    let ended = states.wait_for(|(_, state)| state.outcome.is_some());
    if tokio::time::timeout(GONE_MAX, ended).await.is_err() {
        warn!("an evicted pod takes long to end");
    }
}
