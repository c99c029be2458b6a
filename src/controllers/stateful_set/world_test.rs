use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use serde_json::{Value, json};

use crate::controllers::object::{is_deleting, selector_of};
use crate::controllers::revisions::{Write, stored};
use crate::controllers::stateful_set::plan::{Plan, View, Why, plan};

/// The API as far as one stateful set sees it; the test plays kubelet, scheduler and user.
pub(super) struct World {
    pub(super) set: StatefulSet,
    pub(super) pods: BTreeMap<String, Pod>,
    pub(super) revisions: BTreeMap<String, ControllerRevision>,
    pub(super) claims: BTreeMap<String, PersistentVolumeClaim>,
    pub(super) now: i64,
    uids: u32,
}

pub(super) fn set(changes: &Value) -> StatefulSet {
    let mut set = json!({
        "metadata": { "name": "db", "namespace": "default", "uid": "set", "generation": 1 },
        "spec": {
            "replicas": 3, "serviceName": "db", "podManagementPolicy": "OrderedReady",
            "selector": { "matchLabels": { "app": "db" } },
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } },
            "template": {
                "metadata": { "labels": { "app": "db" } },
                "spec": { "containers": [{ "name": "db", "image": "v1" }] },
            },
        },
    });
    json_patch::merge(&mut set, changes);
    serde_json::from_value(set).unwrap()
}

impl World {
    pub(super) fn new(changes: &Value) -> Self {
        let (pods, revisions, claims) = Default::default();
        Self { set: set(changes), pods, revisions, claims, now: 1_000, uids: 0 }
    }

    pub(super) fn uid(&mut self) -> String {
        self.uids += 1;
        format!("uid-{}", self.uids)
    }

    pub(super) fn change(&mut self, changes: &Value) {
        let mut set = serde_json::to_value(&self.set).unwrap();
        json_patch::merge(&mut set, changes);
        self.set = serde_json::from_value(set).unwrap();
        self.set.metadata.generation = self.set.metadata.generation.map(|n| n + 1);
    }

    pub(super) fn image(&mut self, image: &str) {
        let containers = json!([{ "name": "db", "image": image }]);
        self.change(&json!({"spec": {"template": {"spec": {"containers": containers}}}}));
    }

    pub(super) fn plan(&self) -> Plan {
        fn all<K: Clone>(map: &BTreeMap<String, K>) -> Vec<Arc<K>> {
            map.values().cloned().map(Arc::new).collect()
        }
        let selector = selector_of(&self.set.spec.as_ref().unwrap().selector);
        plan(&View {
            set: &self.set,
            selector: selector.as_ref(),
            pods: &all(&self.pods),
            revisions: &all(&self.revisions),
            claims: &all(&self.claims),
            now: Timestamp::from_second(self.now).unwrap(),
        })
    }

    /// One run of the controller, its writes done.
    pub(super) fn run(&mut self) -> Plan {
        let plan = self.plan();
        if let Some(write) = &plan.revision {
            let uid = match write {
                Write::Create(_) => self.uid(),
                Write::Renumber { of, .. } => of.uid().unwrap(),
            };
            let revision = stored(write, &uid);
            self.revisions.insert(revision.name_any(), revision.as_ref().clone());
        }
        self.set.status = Some(plan.status.clone());
        for (claim, owners) in &plan.own_claims {
            let claim = self.claims.get_mut(&claim.name_any()).unwrap();
            claim.metadata.owner_references = Some(owners.clone());
        }
        let births = plan.create.iter().flat_map(|birth| &birth.claims);
        for claim in births.chain(&plan.claims) {
            self.claims.insert(claim.name_any(), claim.clone());
        }
        for birth in &plan.create {
            let mut pod = birth.pod.clone();
            pod.metadata.uid = Some(self.uid());
            pod.status = serde_json::from_value(json!({"phase": "Pending"})).unwrap();
            let had = self.pods.insert(pod.name_any(), pod);
            assert!(had.is_none(), "an ordinal has two pods");
        }
        for (pod, _) in &plan.delete {
            let pod = self.pods.get_mut(&pod.name_any()).unwrap();
            assert!(!is_deleting(&pod.metadata), "{} is deleted twice", pod.name_any());
            pod.metadata.deletion_timestamp = Some(Time(Timestamp::from_second(self.now).unwrap()));
        }
        for revision in &plan.forget {
            self.revisions.remove(&revision.name_any()).unwrap();
        }
        plan
    }

    pub(super) fn set_status(&mut self, name: &str, phase: &str, is_ready: bool) {
        let since = Timestamp::from_second(self.now).unwrap().to_string();
        let ready = if is_ready { "True" } else { "False" };
        let status = json!({"phase": phase, "conditions": [
            {"type": "Ready", "status": ready, "lastTransitionTime": since}]});
        self.pods.get_mut(name).unwrap().status = serde_json::from_value(status).unwrap();
    }

    pub(super) fn ready(&mut self, name: &str) {
        self.set_status(name, "Running", true);
    }

    /// Agents end what is deleted.
    pub(super) fn end(&mut self) {
        self.pods.retain(|_, pod| !is_deleting(&pod.metadata));
    }

    /// Runs until nothing happens any more, with agents that do what they are told.
    pub(super) fn settle(&mut self) {
        for _ in 0..200 {
            self.end();
            let waiting: Vec<_> = self.pods.keys().cloned().collect();
            for name in waiting {
                let image = self.image_of(&name);
                let phase = self.pods[&name].status.clone().and_then(|s| s.phase);
                if image != "broken" && phase.as_deref() == Some("Pending") {
                    self.ready(&name);
                }
            }
            let plan = self.run();
            if plan.create.is_empty() && plan.delete.is_empty() && plan.revision.is_none() {
                self.run();
                return;
            }
        }
        panic!("it never settles: {:?}", self.images());
    }

    pub(super) fn image_of(&self, name: &str) -> String {
        self.pods[name].spec.as_ref().unwrap().containers[0].image.clone().unwrap()
    }

    pub(super) fn images(&self) -> Vec<(&str, String)> {
        self.pods.keys().map(|name| (name.as_str(), self.image_of(name))).collect()
    }

    pub(super) fn is(&self, wanted: &[(&str, &str)]) {
        let images = self.images();
        let images: Vec<_> = images.iter().map(|(name, image)| (*name, image.as_str())).collect();
        assert_eq!(images, wanted);
    }
}

pub(super) fn born(plan: &Plan) -> Vec<String> {
    plan.create.iter().map(|birth| birth.pod.name_any()).collect()
}

pub(super) fn doomed(plan: &Plan) -> Vec<(String, Why)> {
    plan.delete.iter().map(|(pod, why)| (pod.name_any(), *why)).collect()
}

pub(super) const PARALLEL: &str = "Parallel";
