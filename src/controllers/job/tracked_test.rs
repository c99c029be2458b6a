//! Goal: every pod that ends is counted exactly once, wherever the controller stops, and never are there
//! more active pods than `parallelism`. Method: a model of the API with pods that end, fail and are
//! deleted at any time; of each pass only the first few writes are made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::controllers::job::plan::{Plan, View, plan};
use crate::controllers::job::template::pod_of;
use crate::controllers::job::tracking::{Backoff, FINALIZER, INDEX, is_over, is_tracked};
use crate::controllers::object::{is_active, is_deleting, phase};

#[derive(Debug, Clone)]
enum Step {
    /// A pass of which so many writes are made; then the controller stops and comes back.
    Pass(usize),
    /// The pod ends, well or not.
    End(usize, bool),
    /// Somebody deletes the pod.
    Delete(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_usize..8).prop_map(Step::Pass),
        (any::<usize>(), any::<bool>()).prop_map(|(at, ok)| Step::End(at, ok)),
        any::<usize>().prop_map(Step::Delete),
    ]
}

struct Model {
    job: Job,
    pods: BTreeMap<String, Pod>,
    made: usize,
    now: i64,
    /// Pods let go as counted: those that succeeded, and the others.
    ended: (i32, i32),
    /// Indexes of pods let go after a success.
    indexes: Vec<u32>,
}

impl Model {
    fn new(spec: &Value) -> Self {
        let mut full = json!({"parallelism": 2, "backoffLimit": 4, "template": {"spec": {
            "restartPolicy": "Never", "containers": [{"name": "c"}]}}});
        json_patch::merge(&mut full, spec);
        let job = serde_json::from_value(json!({
            "metadata": {"name": "j", "namespace": "n", "uid": "j"}, "spec": full,
        }))
        .unwrap();
        Self { job, pods: BTreeMap::new(), made: 0, now: 0, ended: (0, 0), indexes: vec![] }
    }

    fn plan(&mut self) -> Plan {
        self.now += 100;
        let pods: Vec<Arc<Pod>> = self.pods.values().cloned().map(Arc::new).collect();
        plan(&View {
            job: &self.job,
            pods: &pods,
            now: Timestamp::from_second(self.now).unwrap(),
            backoff: Backoff { min: Duration::from_secs(1), max: Duration::from_secs(10) },
        })
    }

    /// Makes the first `writes` writes of a pass; whether there were no more.
    fn pass(&mut self, mut writes: usize) -> bool {
        let plan = self.plan();
        let mut may = || writes.checked_sub(1).map(|left| writes = left).is_some();
        let is_status_due = plan.is_status_first || !plan.has_actions();
        if is_status_due && self.job.status.as_ref() != Some(&plan.status) {
            if !may() {
                return false;
            }
            let before = self.job.status.clone().unwrap_or_default();
            assert!(plan.status.succeeded >= before.succeeded, "succeeded went back");
            assert!(plan.status.failed >= before.failed, "failed went back");
            self.job.status = Some(plan.status.clone());
        }
        for pod in &plan.untrack {
            if !may() {
                return false;
            }
            self.check_noted(pod);
            self.untrack(&pod.name_any(), true);
        }
        for pod in &plan.drop {
            if !may() {
                return false;
            }
            self.untrack(&pod.name_any(), false);
        }
        for pod in plan.drop.iter().chain(&plan.stop) {
            if !may() {
                return false;
            }
            self.delete(&pod.name_any());
        }
        for new in &plan.create {
            if !may() {
                return false;
            }
            let mut pod = pod_of(&self.job, new);
            self.made += 1;
            let name = format!("p{:04}", self.made);
            pod.metadata.name = Some(name.clone());
            pod.metadata.uid = Some(name.clone());
            self.pods.insert(name, pod);
            let active = self.pods.values().filter(|pod| is_active(pod)).count();
            assert!(active <= 2, "{active} active pods");
        }
        !plan.has_actions()
    }

    /// Nothing is let go that is not written down, unless its index is.
    fn check_noted(&self, pod: &Pod) {
        let status = self.job.status.clone().unwrap_or_default();
        let noted = status.uncounted_terminated_pods.unwrap_or_default();
        let lists = [noted.succeeded, noted.failed];
        let uid = pod.uid().unwrap();
        let is_noted = lists.into_iter().flatten().flatten().any(|one| one == uid);
        let has_index = pod.annotations().contains_key(INDEX) && phase(pod) == "Succeeded";
        let finished = status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Complete" || c.type_ == "Failed");
        assert!(is_noted || has_index || finished, "{uid} was let go too early");
    }

    fn untrack(&mut self, name: &str, is_counted: bool) {
        let Some(pod) = self.pods.get_mut(name) else { return };
        if is_tracked(pod) && is_counted {
            if phase(pod) == "Succeeded" {
                self.ended.0 += 1;
                self.indexes
                    .extend(pod.annotations().get(INDEX).and_then(|i| i.parse::<u32>().ok()));
            } else {
                self.ended.1 += 1;
            }
        }
        pod.finalizers_mut().retain(|finalizer| finalizer != FINALIZER);
        self.collect(name);
    }

    /// The agent is quick: a deleted pod has ended.
    fn delete(&mut self, name: &str) {
        let now = self.now;
        if let Some(pod) = self.pods.get_mut(name) {
            let mut value = serde_json::to_value(&*pod).unwrap();
            let at = Timestamp::from_second(now).unwrap().to_string();
            json_patch::merge(
                &mut value,
                &json!({"metadata": {
                "deletionTimestamp": at, "deletionGracePeriodSeconds": 0}}),
            );
            *pod = serde_json::from_value(value).unwrap();
        }
        if self.pods.get(name).is_some_and(|pod| !is_over(pod)) {
            self.end(name, false);
        }
        self.collect(name);
    }

    fn collect(&mut self, name: &str) {
        let is_gone = |pod: &Pod| is_deleting(&pod.metadata) && pod.finalizers().is_empty();
        if self.pods.get(name).is_some_and(is_gone) {
            self.pods.remove(name);
        }
    }

    fn end(&mut self, name: &str, is_well: bool) {
        let at = Timestamp::from_second(self.now).unwrap().to_string();
        if let Some(pod) = self.pods.get_mut(name).filter(|pod| !is_over(pod)) {
            let phase = if is_well { "Succeeded" } else { "Failed" };
            let status = json!({"phase": phase, "containerStatuses": [{"name": "c", "image": "",
                "imageID": "", "ready": false, "restartCount": 0,
                "state": {"terminated": {"exitCode": 1, "finishedAt": at}}}]});
            pod.status = Some(serde_json::from_value(status).unwrap());
        }
    }

    fn name(&self, at: usize) -> Option<String> {
        let at = at.checked_rem(self.pods.len())?;
        self.pods.keys().nth(at).cloned()
    }

    fn run(&mut self, steps: &[Step]) {
        for step in steps {
            match step {
                Step::Pass(writes) => drop(self.pass(*writes)),
                Step::End(at, is_well) => {
                    if let Some(name) = self.name(*at) {
                        self.end(&name, *is_well);
                    }
                }
                Step::Delete(at) => {
                    if let Some(name) = self.name(*at) {
                        self.delete(&name);
                    }
                }
            }
        }
        // Then nothing goes wrong any more.
        for _ in 0..200 {
            let is_idle = self.pass(usize::MAX);
            let running =
                self.pods.values().find(|pod| is_active(pod)).map(kube::ResourceExt::name_any);
            match running {
                Some(name) => self.end(&name, true),
                None if is_idle && self.is_finished() => return,
                None => {}
            }
        }
        panic!("the job never finished: {:?}", self.job.status);
    }

    fn is_finished(&self) -> bool {
        let conditions =
            self.job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "Complete" || c.type_ == "Failed")
    }

    fn has_failed(&self) -> bool {
        let conditions =
            self.job.status.iter().flat_map(|status| status.conditions.iter().flatten());
        conditions.into_iter().any(|condition| condition.type_ == "Failed")
    }

    fn counts(&self) -> (i32, i32) {
        let status = self.job.status.clone().unwrap_or_default();
        (status.succeeded.unwrap_or(0), status.failed.unwrap_or(0))
    }
}

#[test]
fn every_pod_that_ends_is_counted_exactly_once() {
    proptest!(|(
        steps in proptest::collection::vec(step(), 0..60),
        completions in proptest::option::of(1_u32..5),
    )| {
        let mut model = Model::new(&json!({"completions": completions}));
        model.run(&steps);
        let (counted, ended) = (model.counts(), model.ended);
        prop_assert_eq!(counted.0 + counted.1, ended.0 + ended.1);
        // What still ran when the Job failed is written down as failed; it may yet end well.
        prop_assert!(counted.0 == ended.0 || model.has_failed() && counted.0 < ended.0);
        prop_assert!(!model.pods.values().any(is_tracked));
    });
}

#[test]
fn every_index_succeeds_once_and_every_failure_counts_once() {
    proptest!(|(
        steps in proptest::collection::vec(step(), 0..60),
        per_index in proptest::option::of(0_u32..3),
    )| {
        let mut spec = json!({"completionMode": "Indexed", "completions": 4});
        if let Some(limit) = per_index {
            spec["backoffLimitPerIndex"] = json!(limit);
            spec["backoffLimit"] = json!(i32::MAX);
        }
        let mut model = Model::new(&spec);
        model.run(&steps);
        let status = model.job.status.clone().unwrap();
        let text = status.completed_indexes.unwrap_or_default();
        let wanted: crate::api::job_indexes::Indexes = model.indexes.iter().copied().collect();
        let (counted, ended) = (model.counts().1, model.ended.1);
        if model.has_failed() {
            prop_assert!(counted >= ended, "{counted} of {ended}");
        } else {
            prop_assert_eq!(text, wanted.to_string());
            prop_assert_eq!(counted, ended);
        }
    });
}
