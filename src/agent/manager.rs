//! Which pods this node runs: one worker for each pod that is bound to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{Instrument as _, debug, info_span, warn};

use crate::agent::dirs::Dirs;
use crate::agent::logs::{LogSource, LogSources};
use crate::agent::pod::mirror;
use crate::agent::pod::start::Shared;
use crate::agent::pod::worker::Worker;
use crate::agent::residents::{Resident, Residents};
use crate::agent::sessions::{SessionPod, Sessions};
use crate::client::Informer;
use crate::rt::TaskGroup;

/// Starts, feeds and ends the workers.
pub(crate) struct Manager {
    pub(crate) shared: Arc<Shared>,
    pub(crate) dirs: Dirs,
    pub(crate) logs: LogSources,
    pub(crate) sessions: Sessions,
    pub(crate) residents: Residents,
    pub(crate) tasks: TaskGroup,
    /// Pods from a folder of this node.
    pub(crate) statics: watch::Receiver<Vec<Arc<Pod>>>,
    /// By uid: a pod of the same name with another uid is another pod.
    pub(crate) pods: BTreeMap<String, watch::Sender<Arc<Pod>>>,
    /// The workers of static pods by namespace and name: the next of a name begins when the last one has ended.
    pub(crate) statics_running: Turns,
}

/// Who ran last under a name. A token is cancelled when its holder has ended.
#[derive(Debug, Default)]
pub(crate) struct Turns(BTreeMap<(String, String), CancellationToken>);

impl Turns {
    /// The end of the last one of this name, if there was one, and what ends the turn of the next when dropped.
    fn next(&mut self, namespace: &str, name: &str) -> (Option<CancellationToken>, DropGuard) {
        self.0.retain(|_, running| !running.is_cancelled());
        let turn = CancellationToken::new();
        let last = self.0.insert((namespace.to_owned(), name.to_owned()), turn.clone());
        (last, turn.drop_guard())
    }
}

impl Manager {
    /// Follows the pods bound to this node until `cancel`.
    ///
    /// Pods that were here before are started from disk at once; what the API says of them is
    /// matched by uid as soon as it answers.
    pub(crate) async fn run(mut self, informer: Informer<Pod>, cancel: CancellationToken) {
        self.follow(informer, cancel).await;
        // The workers must end while their senders are still here: a sender that is gone says
        // that the pod is, and its files would go with it.
        self.tasks.shutdown(self.shared.shutdown_grace).await;
    }

    async fn follow(&mut self, informer: Informer<Pod>, cancel: CancellationToken) {
        self.start_from_disk().await;
        let mut statics = self.statics.clone();
        let ready = informer.ready();
        tokio::pin!(ready);
        let mut changed = informer.changed();
        let mut is_known = false;
        loop {
            changed.borrow_and_update();
            let own = statics.borrow_and_update().clone();
            if is_known {
                self.reconcile(informer.store.state(), own);
            } else {
                // Without the API nothing is taken away but what is no longer in the folder.
                self.take_away(|uid| {
                    own.iter().any(|pod| pod.metadata.uid.as_deref() == Some(uid))
                });
                for pod in own {
                    self.see(&uid(&pod), pod);
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                // An informer that has ended knows nothing: that is not "there are no pods".
                is_ready = &mut ready, if !is_known => match is_ready {
                    true => is_known = true,
                    false => return,
                },
                more = changed.changed(), if is_known => if more.is_err() { return },
                Ok(()) = statics.changed() => {}
            }
        }
    }

    async fn start_from_disk(&mut self) {
        let dirs = self.dirs.clone();
        let known = self.tasks.block("pods-from-disk", move || from_disk(&dirs)).await;
        let known = known.unwrap_or_default();
        for (uid, ips, _) in &known {
            self.shared.ipam.reserve(uid, ips);
        }
        for (uid, _, pod) in known {
            self.see(&uid, pod);
        }
    }

    fn reconcile(&mut self, pods: Vec<Arc<Pod>>, statics: Vec<Arc<Pod>>) {
        let (mirrors, pods): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| mirror::mirrored(pod).is_some());
        let own: BTreeMap<String, Arc<Pod>> =
            statics.into_iter().map(|pod| (uid(&pod), pod)).collect();
        let shown = self.tidy_mirrors(&mirrors, &own);
        let wanted: BTreeMap<String, Arc<Pod>> =
            pods.into_iter().map(|pod| (uid(&pod), mirror::from_api(pod))).chain(own).collect();
        self.take_away(|uid| wanted.contains_key(uid));
        // Dropping the sender tells the worker that its pod is gone.
        self.pods.retain(|uid, _| wanted.contains_key(uid));
        for (uid, pod) in wanted {
            if mirror::is_static(&pod) && !shown.contains(&uid) {
                self.show_again(&uid);
            }
            self.see(&uid, pod);
        }
    }

    /// Has the static pods end that are not in the folder any more.
    fn take_away(&mut self, is_there: impl Fn(&str) -> bool) {
        let now = self.shared.clock.now();
        self.pods.retain(|uid, sender| {
            let is_over = mirror::is_static(&sender.borrow()) && !is_there(uid);
            if is_over {
                sender.send_modify(|pod| *pod = Arc::new(deleted(pod, now)));
            }
            !is_over
        });
    }

    /// Removes the mirrors of static pods that are not there any more, or that somebody deletes.
    /// Gives the hashes for which there is a mirror: one that goes is painted again once it is gone.
    fn tidy_mirrors(
        &self,
        mirrors: &[Arc<Pod>],
        own: &BTreeMap<String, Arc<Pod>>,
    ) -> BTreeSet<String> {
        let mut shown = BTreeSet::new();
        for mirror in mirrors {
            let hash = mirror::mirrored(mirror).unwrap_or_default();
            shown.insert(hash.to_owned());
            if own.contains_key(hash) && mirror.metadata.deletion_timestamp.is_none() {
                continue;
            }
            let (api, mirror) = (Arc::clone(&self.shared.api), Arc::clone(mirror));
            self.tasks.spawn_until_cancelled("mirror-delete", async move {
                if let Err(err) = api.delete(&mirror).await {
                    debug!(%err, "a mirror is not removed yet");
                }
            });
        }
        shown
    }

    /// Makes the worker of a static pod tell the API everything anew.
    fn show_again(&self, uid: &str) {
        let Some(sender) = self.pods.get(uid) else { return };
        sender.send_modify(|pod| {
            let mut again = pod.as_ref().clone();
            let version = again.metadata.resource_version.as_deref().unwrap_or_default();
            let version = version.parse::<u64>().unwrap_or(0).saturating_add(1);
            again.metadata.resource_version = Some(version.to_string());
            again.status = None;
            *pod = Arc::new(again);
        });
    }

    /// Tells the pod's worker what the API says; makes one for a new pod.
    fn see(&mut self, uid: &str, pod: Arc<Pod>) {
        if let Some(sender) = self.pods.get(uid) {
            if mirror::is_static(&pod) {
                // Another content has another uid.
                return;
            }
            sender.send_if_modified(|had| {
                let is_news = had.metadata.resource_version != pod.metadata.resource_version;
                if is_news {
                    *had = pod;
                }
                is_news
            });
            return;
        }
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let name = pod.metadata.name.clone().unwrap_or_default();
        let turn = mirror::is_static(&pod).then(|| self.statics_running.next(&namespace, &name));
        let (sender, seen) = watch::channel(pod);
        let dir = self.dirs.pod(uid);
        let worker = Worker::new(Arc::clone(&self.shared), &self.tasks, seen.clone(), dir.clone());
        let worker = Box::new(worker);
        let states = worker.states();
        let live = worker.live();
        let resident = Resident {
            seen,
            states: states.clone(),
            live: live.clone(),
            dir: dir.clone(),
            verdict: worker.verdict(),
        };
        self.residents.insert(uid, resident);
        let session_pod = SessionPod { dir: dir.clone(), live: live.clone() };
        self.sessions.insert(&namespace, &name, session_pod);
        self.logs.insert(&namespace, &name, LogSource { dir, states: states.clone() });
        self.pods.insert(uid.to_owned(), sender);
        let (logs, sessions) = (self.logs.clone(), self.sessions.clone());
        let (residents, uid) = (self.residents.clone(), uid.to_owned());
        let span = info_span!("pod", k8s.namespace.name = namespace, k8s.pod.name = name);
        self.tasks.spawn("pod", |cancel| {
            async move {
                let (last, _turn) = turn.unzip();
                if let Some(last) = last.flatten()
                    && cancel.run_until_cancelled(last.cancelled()).await.is_none()
                {
                    return;
                }
                worker.run(cancel).await;
                residents.remove(&uid);
                logs.remove(&namespace, &name, &states);
                sessions.remove(&namespace, &name, &live);
            }
            .instrument(span)
        });
    }
}

/// The pods that were here before, with their addresses. What is no pod goes.
fn from_disk(dirs: &Dirs) -> Vec<(String, Vec<IpAddr>, Arc<Pod>)> {
    if let Err(err) = dirs.remove_gone() {
        warn!(%err, "what is left of a pod cannot be removed");
    }
    let mut known = Vec::new();
    for (uid, dir) in dirs.all_pods().unwrap_or_default() {
        match dir.read_pod() {
            Some(pod) => known.push((uid, dir.read_addresses(), Arc::new(pod))),
            None => drop(dir.remove()),
        }
    }
    known
}

fn uid(pod: &Pod) -> String {
    pod.metadata.uid.clone().unwrap_or_default()
}

/// The pod as if somebody had asked for its deletion.
fn deleted(pod: &Pod, now: jiff::Timestamp) -> Pod {
    let mut pod = pod.clone();
    pod.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now));
    pod
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_of_a_name_waits_for_the_last_and_for_no_other() {
        let mut turns = Turns::default();
        let (before, first) = turns.next("n", "a");
        assert!(before.is_none());
        assert!(turns.next("n", "b").0.is_none());
        let (before, second) = turns.next("n", "a");
        let before = before.unwrap();
        assert!(!before.is_cancelled());
        drop(first);
        assert!(before.is_cancelled());
        drop(second);
        assert!(turns.next("n", "a").0.is_none(), "nobody runs");
        assert_eq!(turns.0.len(), 1);
    }
}
