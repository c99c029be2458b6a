//! Does to pods what a plan says.

use std::sync::Arc;

use futures_util::future::join_all;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt as _};

use crate::client::{EventType, Store, is_not_found, revision_of};
use crate::controllers::job::own::untrack;
use crate::controllers::job::plan::{NewPod, Plan};
use crate::controllers::job::template::pod_of;
use crate::controllers::job::tracking::is_tracked;
use crate::controllers::job::{CATCH_UP_MAX, Controller};
use crate::controllers::object::is_deleting;
use crate::controllers::owned::words_of;

/// Pods written at once.
const WRITES_AT_ONCE: usize = 32;
/// Pods created at once, at most: batches start at one and double while all goes well.
const CREATES_AT_ONCE: usize = 64;

impl Controller {
    /// Untracks, deletes, creates; returns once the cache shows it.
    pub(super) async fn act(&self, job: &Job, plan: &Plan) -> Result<(), kube::Error> {
        let api = self.pods_api(job);
        let free: Vec<Arc<Pod>> = plan.untrack.iter().chain(&plan.drop).cloned().collect();
        self.untrack_all(&api, &free).await?;
        let doomed: Vec<Arc<Pod>> = plan.drop.iter().chain(&plan.stop).cloned().collect();
        self.delete_all(job, &api, &doomed).await?;
        self.create_all(job, &api, &plan.create).await
    }

    async fn untrack_all(&self, api: &Api<Pod>, pods: &[Arc<Pod>]) -> Result<(), kube::Error> {
        for batch in pods.chunks(WRITES_AT_ONCE) {
            let writes = batch.iter().map(|pod| untrack(api, pod));
            join_all(writes).await.into_iter().collect::<Result<(), _>>()?;
        }
        let is_free = |found: &Arc<Pod>| !is_tracked(found);
        self.settle(pods, is_free).await;
        Ok(())
    }

    async fn delete_all(
        &self,
        job: &Job,
        api: &Api<Pod>,
        pods: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let mut failure = None;
        for batch in pods.chunks(WRITES_AT_ONCE) {
            let deletes = batch.iter().map(|pod| async move {
                let params = DeleteParams::default()
                    .preconditions(Preconditions { uid: pod.uid(), resource_version: None });
                (pod, api.delete(&pod.name_any(), &params).await)
            });
            for (pod, outcome) in join_all(deletes).await {
                match outcome {
                    Ok(_) => {
                        let message = format!("Deleted pod: {}", pod.name_any());
                        self.tell(job, EventType::Normal, "SuccessfulDelete", message);
                    }
                    Err(err) if is_not_found(&err) => {}
                    Err(err) => failure = Some(err),
                }
            }
            if let Some(err) = failure {
                let message = format!("Error deleting: {}", words_of(&err));
                self.tell(job, EventType::Warning, "FailedDelete", message);
                return Err(err);
            }
        }
        self.settle(pods, |found| is_deleting(&found.metadata)).await;
        Ok(())
    }

    /// Creates pods in batches of 1, 2, 4 …, so that what must fail fails once, not 500 times.
    async fn create_all(
        &self,
        job: &Job,
        api: &Api<Pod>,
        wanted: &[NewPod],
    ) -> Result<(), kube::Error> {
        let (mut rest, mut batch, mut revision, mut failure) = (wanted, 1_usize, 0, None);
        while !rest.is_empty() && failure.is_none() {
            let (now, later) = rest.split_at_checked(batch).unwrap_or((rest, &[]));
            let params = PostParams::default();
            let creates = now.iter().map(|new| {
                let pod = pod_of(job, new);
                let params = &params;
                async move { api.create(params, &pod).await }
            });
            for outcome in join_all(creates).await {
                match outcome {
                    Ok(created) => {
                        revision = revision.max(revision_of(&created).unwrap_or(0));
                        let message = format!("Created pod: {}", created.name_any());
                        self.tell(job, EventType::Normal, "SuccessfulCreate", message);
                    }
                    Err(err) => failure = Some(err),
                }
            }
            rest = later;
            batch = (batch * 2).min(CREATES_AT_ONCE);
        }
        self.context.informers.pods.catch_up(revision, CATCH_UP_MAX).await;
        match failure {
            None => Ok(()),
            Some(err) => {
                let message = format!("Error creating: {}", words_of(&err));
                self.tell(job, EventType::Warning, "FailedCreate", message);
                Err(err)
            }
        }
    }

    /// Waits until the cache shows each of the pods as `is_so`, or not at all.
    async fn settle(&self, pods: &[Arc<Pod>], is_so: impl Fn(&Arc<Pod>) -> bool) {
        if pods.is_empty() {
            return;
        }
        let is_settled = |store: &Store<Pod>| {
            pods.iter().all(|pod| {
                let found = store.named(&pod.namespace().unwrap_or_default(), &pod.name_any());
                found.is_none_or(|found| found.uid() != pod.uid() || is_so(&found))
            })
        };
        self.context.informers.pods.settled(CATCH_UP_MAX, is_settled).await;
    }
}
