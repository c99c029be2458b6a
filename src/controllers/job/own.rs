//! Which pods are a Job's: taken in, let go, and those whose Job is gone.

use std::sync::Arc;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::SelectorExt as _;
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::client::{Store, is_not_found, revision_of};
use crate::controllers::job::tracking::{FINALIZER, is_tracked};
use crate::controllers::job::{CATCH_UP_MAX, Controller, Counts};
use crate::controllers::object::{
    Key, controller_of, controller_reference, is_active, is_controlled_by, is_deleting,
    owners_without, selector_of,
};
use crate::controllers::owned::patch_metadata;
use crate::controllers::queue::Next;

impl Controller {
    /// The Job's pods, those included that had no owner and match; as new as the Job's counts.
    pub(super) async fn pods_of(&self, key: &Key, job: &Job) -> Result<Vec<Arc<Pod>>, kube::Error> {
        if !self.is_known(key, job) {
            self.see_as_new_as(key, job).await?;
        }
        let selector = job.spec.as_ref().and_then(|spec| selector_of(spec.selector.as_ref()?));
        let store = &self.context.informers.pods.store;
        let matches = |pod: &Pod| selector.as_ref().is_some_and(|s| s.matches(pod.labels()));
        let is_alive = !is_deleting(&job.metadata);
        let (mut adopt, mut release) = (Vec::new(), Vec::new());
        for pod in store.in_namespace(&key.0) {
            let is_ours = is_controlled_by(&pod.metadata, job);
            if is_ours && !matches(&pod) && is_alive {
                release.push(pod);
            } else if !is_ours
                && matches(&pod)
                && is_alive
                && controller_of(&pod.metadata).is_none()
                && is_active(&pod)
            {
                adopt.push(pod);
            }
        }
        if !adopt.is_empty() || !release.is_empty() {
            self.claim(job, &adopt, &release).await?;
        }
        let mut pods = store.in_namespace(&key.0);
        pods.retain(|pod| is_controlled_by(&pod.metadata, job) && matches(pod));
        Ok(pods)
    }

    /// Waits until the cache shows all that the server does now, which is newer than the Job.
    async fn see_as_new_as(&self, key: &Key, job: &Job) -> Result<(), kube::Error> {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.0);
        let selector = job.spec.as_ref().and_then(|spec| selector_of(spec.selector.as_ref()?));
        let mut params = ListParams::default();
        if let Some(selector) = selector {
            params = params.labels_from(&selector);
        }
        let fresh = api.list(&params).await?;
        let listed: u64 =
            fresh.metadata.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let is_as_new = |store: &Store<Pod>| {
            let shown = store.in_namespace(&key.0);
            let has_all = fresh.items.iter().all(|pod| {
                let shown = shown.iter().find(|shown| shown.uid() == pod.uid());
                // One that is not there yet, or is gone again: its owner is asked about in the first
                // case by its own event.
                shown.is_some_and(|shown| revision_of(shown.as_ref()) >= revision_of(pod))
                    || self.context.informers.pods.revision() > listed
            });
            let is_gone = |pod: &Arc<Pod>| fresh.items.iter().all(|one| one.uid() != pod.uid());
            let ours = shown.iter().filter(|pod| is_controlled_by(&pod.metadata, job));
            has_all
                && ours
                    .filter(|pod| is_gone(pod))
                    .all(|pod| revision_of(pod.as_ref()).unwrap_or(0) > listed)
        };
        if self.context.informers.pods.settled(CATCH_UP_MAX, is_as_new).await {
            self.counted.lock().insert(key.clone(), Counts::of(job));
            return Ok(());
        }
        Err(kube::Error::Service("the cache of pods is behind the server".into()))
    }

    /// Takes in pods that match and have no controller, lets go those that no longer match.
    async fn claim(
        &self,
        job: &Job,
        adopt: &[Arc<Pod>],
        release: &[Arc<Pod>],
    ) -> Result<(), kube::Error> {
        let uid = job.uid().unwrap_or_default();
        let pods = self.pods_api(job);
        let mut revision = 0;
        for pod in release {
            let mut finalizers = pod.finalizers().to_vec();
            finalizers.retain(|finalizer| finalizer != FINALIZER);
            let change = json!({ "ownerReferences": owners_without(&pod.metadata, &uid),
                "finalizers": finalizers });
            revision = revision.max(patch_metadata(&pods, pod, change).await?);
        }
        if !adopt.is_empty() && self.is_still_there(job).await? {
            for pod in adopt {
                let mut owners = owners_without(&pod.metadata, &uid);
                owners.push(controller_reference(job));
                let mut finalizers = pod.finalizers().to_vec();
                if !is_tracked(pod) {
                    finalizers.push(FINALIZER.to_owned());
                }
                let change = json!({ "ownerReferences": owners, "finalizers": finalizers });
                revision = revision.max(patch_metadata(&pods, pod, change).await?);
            }
        }
        self.context.informers.pods.catch_up(revision, CATCH_UP_MAX).await;
        Ok(())
    }

    pub(super) fn pods_api(&self, job: &Job) -> Api<Pod> {
        Api::namespaced(self.context.client.clone(), &job.namespace().unwrap_or_default())
    }

    /// Takes the finalizer from a pod that has no owner any more.
    pub(super) async fn let_go_orphan(&self, key: &Key) -> Result<Next, kube::Error> {
        if let Some(pod) = self.context.informers.pods.store.named(&key.0, &key.1)
            && controller_of(&pod.metadata).is_none()
            && is_tracked(&pod)
        {
            let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.0);
            untrack(&api, &pod).await?;
        }
        Ok(Next::Wait)
    }

    /// Takes the finalizers from the pods of a Job that is gone, so that they can be collected.
    pub(super) async fn let_go_orphans_of(&self, key: &Key) -> Result<Next, kube::Error> {
        let owner = |pod: &Pod| {
            let owner = controller_of(&pod.metadata)?;
            (owner.kind == "Job" && owner.name == key.1).then(|| owner.uid.clone())
        };
        let mut pods = self.context.informers.pods.store.in_namespace(&key.0);
        pods.retain(|pod| is_tracked(pod) && owner(pod).is_some());
        if pods.is_empty() {
            return Ok(Next::Wait);
        }
        // The cache of Jobs may be behind: the server knows.
        let jobs: Api<Job> = Api::namespaced(self.context.client.clone(), &key.0);
        let present = jobs.get_opt(&key.1).await?.and_then(|job| job.uid());
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), &key.0);
        for pod in pods.iter().filter(|pod| owner(pod) != present) {
            untrack(&api, pod).await?;
        }
        Ok(Next::Wait)
    }
}

/// Takes the finalizer away. A pod that is gone, or another of its name, is no error.
pub(super) async fn untrack(api: &Api<Pod>, pod: &Pod) -> Result<(), kube::Error> {
    let patch = json!({ "metadata": {
        "uid": pod.uid(),
        "$deleteFromPrimitiveList/finalizers": [FINALIZER],
    }});
    let patch = Patch::Strategic(patch);
    match api.patch(&pod.name_any(), &PatchParams::default(), &patch).await {
        Ok(_) => Ok(()),
        Err(err) if is_not_found(&err) || is_another(&err) => Ok(()),
        Err(err) => Err(err),
    }
}

/// Whether the write was refused since another object has the name now.
fn is_another(err: &kube::Error) -> bool {
    matches!(err, kube::Error::Api(status) if status.message.contains("UID in precondition"))
}
