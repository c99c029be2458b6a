//! Which pods this node runs: one worker for each pod that is bound to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, info_span};

use crate::agent::dirs::Dirs;
use crate::agent::logs::{LogSource, LogSources};
use crate::agent::pod::start::Shared;
use crate::agent::pod::worker::Worker;
use crate::agent::sessions::{SessionPod, Sessions};
use crate::client::Informer;
use crate::rt::TaskGroup;

/// Starts, feeds and ends the workers.
pub(crate) struct Manager {
    pub(crate) shared: Arc<Shared>,
    pub(crate) dirs: Dirs,
    pub(crate) logs: LogSources,
    pub(crate) sessions: Sessions,
    pub(crate) tasks: TaskGroup,
    /// By uid: a pod of the same name with another uid is another pod.
    pub(crate) pods: BTreeMap<String, watch::Sender<Arc<Pod>>>,
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
        self.start_from_disk();
        if cancel.run_until_cancelled(informer.ready()).await.is_none() {
            return;
        }
        let mut changed = informer.changed();
        loop {
            changed.borrow_and_update();
            self.reconcile(informer.store.state());
            tokio::select! {
                () = cancel.cancelled() => return,
                more = changed.changed() => if more.is_err() { return },
            }
        }
    }

    fn start_from_disk(&mut self) {
        let Ok(known) = self.dirs.all_pods() else { return };
        for (uid, dir) in known {
            match dir.read_pod() {
                Some(pod) => self.see(&uid, Arc::new(pod)),
                None => drop(dir.remove()),
            }
        }
    }

    fn reconcile(&mut self, pods: Vec<Arc<Pod>>) {
        let wanted: BTreeMap<String, Arc<Pod>> =
            pods.into_iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, pod))).collect();
        // Dropping the sender tells the worker that its pod is gone.
        self.pods.retain(|uid, _| wanted.contains_key(uid));
        for (uid, pod) in wanted {
            self.see(&uid, pod);
        }
    }

    /// Tells the pod's worker what the API says; makes one for a new pod.
    fn see(&mut self, uid: &str, pod: Arc<Pod>) {
        if let Some(sender) = self.pods.get(uid) {
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
        let (sender, seen) = watch::channel(pod);
        let dir = self.dirs.pod(uid);
        let worker = Worker::new(Arc::clone(&self.shared), &self.tasks, seen, dir.clone());
        let states = worker.states();
        let live = worker.live();
        let session_pod = SessionPod { dir: dir.clone(), live: live.clone() };
        self.sessions.insert(&namespace, &name, session_pod);
        self.logs.insert(&namespace, &name, LogSource { dir, states: states.clone() });
        self.pods.insert(uid.to_owned(), sender);
        let (logs, sessions) = (self.logs.clone(), self.sessions.clone());
        let span = info_span!("pod", k8s.namespace.name = namespace, k8s.pod.name = name);
        self.tasks.spawn("pod", |cancel| {
            async move {
                worker.run(cancel).await;
                logs.remove(&namespace, &name, &states);
                sessions.remove(&namespace, &name, &live);
            }
            .instrument(span)
        });
    }
}
