//! Where a pod's storage is, or can be made: a pod runs where its volumes are.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt as _;

use crate::api::local_volume::{self, PROVISIONER};
use crate::client::Informers;
use crate::scheduler::devices::Devices;
use crate::scheduler::node::Facts;
use crate::scheduler::view::{ClusterView, PodKey};

/// A bound volume is elsewhere, or another pod has already settled where an open claim will be.
const CONFLICT: &str = "node(s) had volume node affinity conflict";
/// No volume that an administrator made fits there.
const NONE_AVAILABLE: &str = "node(s) didn't find available persistent volumes to bind";

/// Where the objects of storage are found.
pub(super) trait Shelf {
    /// A claim by namespace and name.
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>>;
    /// A volume by name.
    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>>;
    /// All volumes.
    fn volumes(&self) -> Vec<Arc<PersistentVolume>>;
    /// A class by name.
    fn class(&self, name: &str) -> Option<Arc<StorageClass>>;
}

impl Shelf for Informers {
    fn claim(&self, namespace: &str, name: &str) -> Option<Arc<PersistentVolumeClaim>> {
        self.claims.store.named(namespace, name)
    }

    fn volume(&self, name: &str) -> Option<Arc<PersistentVolume>> {
        self.volumes.store.named("", name)
    }

    fn volumes(&self) -> Vec<Arc<PersistentVolume>> {
        self.volumes.store.state()
    }

    fn class(&self, name: &str) -> Option<Arc<StorageClass>> {
        self.storage_classes.store.named("", name)
    }
}

/// What a pod's claims ask of a node: claims of storage, and claims of devices.
#[derive(Debug, Clone, Default)]
pub struct Storage {
    /// Why no node will do.
    pub(super) missing: Option<String>,
    /// Volumes that its claims are bound to.
    bound: Vec<Arc<PersistentVolume>>,
    /// Claims that will be bound where the pod is.
    open: Vec<Open>,
    /// Claims that one pod alone may use.
    exclusive: Vec<PodKey>,
    /// Claims of devices.
    pub(super) devices: Devices,
}

#[derive(Debug, Clone)]
struct Open {
    key: PodKey,
    /// Of volumes that exist, those that fit; `None`: one is made on any node.
    candidates: Option<Vec<Arc<PersistentVolume>>>,
}

impl Storage {
    /// Of `pod`, as the shelf shows it.
    pub(super) fn of(pod: &Pod, shelf: &impl Shelf) -> Self {
        let namespace = pod.namespace().unwrap_or_default();
        let mut storage = Self::default();
        for name in local_volume::claims_of(pod) {
            let claim = shelf.claim(&namespace, name);
            let claim = claim.filter(|claim| claim.metadata.deletion_timestamp.is_none());
            let Some(claim) = claim else {
                storage.missing = Some(format!("persistentvolumeclaim {name:?} not found"));
                return storage;
            };
            if let Err(reason) = storage.add((namespace.clone(), name.to_owned()), &claim, shelf) {
                storage.missing = Some(reason);
                return storage;
            }
        }
        storage
    }

    /// With what the pod's claims of devices ask for.
    pub(super) fn with(self, devices: Devices) -> Self {
        Self { devices, ..self }
    }

    fn add(
        &mut self,
        key: PodKey,
        claim: &PersistentVolumeClaim,
        shelf: &impl Shelf,
    ) -> Result<(), String> {
        let spec = claim.spec.clone().unwrap_or_default();
        if spec.access_modes.iter().flatten().any(|mode| mode == "ReadWriteOncePod") {
            self.exclusive.push(key.clone());
        }
        if let Some(volume) = spec.volume_name.filter(|name| !name.is_empty()) {
            let found = shelf.volume(&volume);
            let found = found.ok_or_else(|| format!("persistentvolume {volume:?} not found"))?;
            self.bound.push(found);
            return Ok(());
        }
        let class = spec.storage_class_name.unwrap_or_default();
        let class = shelf.class(&class);
        let is_made = class.as_ref().is_some_and(|class| class.provisioner == PROVISIONER);
        let waits = class
            .as_ref()
            .is_some_and(|c| c.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"));
        if !is_made && !waits {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        let volumes = shelf.volumes();
        let candidates =
            volumes.into_iter().filter(|volume| local_volume::is_match(volume, claim)).collect();
        self.open.push(Open { key, candidates: (!is_made).then_some(candidates) });
        Ok(())
    }

    /// With what the view knows of pods that share the claims.
    pub(super) fn on<'a>(&'a self, view: &'a ClusterView) -> Placed<'a> {
        let settled = self.open.iter().filter_map(|open| view.node_of_claim(&open.key)).collect();
        let exclusive = self.exclusive.iter().map(|claim| (claim, view.uses_of_claim(claim)));
        Placed { storage: self, settled, exclusive: exclusive.collect() }
    }
}

/// [`Storage`] in a cluster.
pub(super) struct Placed<'a> {
    storage: &'a Storage,
    /// Nodes where other pods of the open claims are.
    settled: Vec<&'a str>,
    /// Claims that one pod alone may use, and how often other pods do.
    pub(super) exclusive: Vec<(&'a PodKey, usize)>,
}

impl<'a> Placed<'a> {
    /// The pod's claims of devices.
    pub(super) fn devices(&self) -> &'a Devices {
        &self.storage.devices
    }

    /// Why the node cannot have the pod, if its storage speaks against it.
    pub(super) fn refusal(&self, node: &str, facts: &Facts) -> Option<&'static str> {
        let is_usable =
            |v: &Arc<PersistentVolume>| local_volume::is_usable_on(v, node, &facts.labels);
        if !self.storage.bound.iter().all(is_usable) || self.settled.iter().any(|at| *at != node) {
            return Some(CONFLICT);
        }
        let has_one = |open: &Open| {
            open.candidates.as_ref().is_none_or(|volumes| volumes.iter().any(is_usable))
        };
        (!self.storage.open.iter().all(has_one)).then_some(NONE_AVAILABLE)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::scheduler::decide::decide_with;
    use crate::scheduler::demand::{Demand, key_of};
    use crate::scheduler::need::Resources;
    use crate::scheduler::preempt::preempt;

    fn view() -> ClusterView {
        let mut view = ClusterView::new();
        for name in ["a", "b", "c"] {
            let labels = [("kubernetes.io/hostname".to_owned(), name.to_owned())].into();
            let allocatable = Resources {
                cpu_millis: 1000,
                memory_bytes: 1 << 30,
                pods: 10,
                ..Resources::default()
            };
            view.set_node(name, Some(Facts { labels, allocatable, ..Facts::default() }));
        }
        view
    }

    fn volume(node: &str) -> Arc<PersistentVolume> {
        Arc::new(
            serde_json::from_value(json!({"spec": {"nodeAffinity": {"required": {
                "nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}]}}}}))
            .unwrap(),
        )
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "n", "name": "p"}, "spec": {
            "containers": [], "volumes": [
                {"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]}}))
        .unwrap()
    }

    fn key() -> PodKey {
        ("n".into(), "data".into())
    }

    #[test]
    fn a_pod_runs_where_its_volume_is() {
        let storage = Storage { bound: vec![volume("b")], ..Storage::default() };
        for seed in 0..10 {
            assert_eq!(decide_with(&view(), &pod(), &storage, seed), Ok("b"));
        }
        let gone = Storage { bound: vec![volume("z")], ..Storage::default() };
        let refused = decide_with(&view(), &pod(), &gone, 0).unwrap_err().to_string();
        assert_eq!(
            refused,
            "0/3 nodes are available: 3 node(s) had volume node affinity conflict."
        );
    }

    #[test]
    fn pods_of_an_open_claim_go_to_one_node() {
        let mut view = view();
        let open = Open { key: key(), candidates: None };
        let storage = Storage { open: vec![open], ..Storage::default() };
        let first = decide_with(&view, &pod(), &storage, 7).unwrap().to_owned();
        let mut second = pod();
        second.metadata.name = Some("other".to_owned());
        view.assume(&second, &first);
        for seed in 0..10 {
            assert_eq!(decide_with(&view, &pod(), &storage, seed), Ok(first.as_str()));
        }
        view.remove(&key_of(&second));
        assert_eq!(view.node_of_claim(&key()), None);
    }

    #[test]
    fn a_claim_for_one_pod_is_given_to_one_pod() {
        let mut view = view();
        let storage =
            Storage { bound: vec![volume("b")], exclusive: vec![key()], ..Storage::default() };
        assert_eq!(decide_with(&view, &pod(), &storage, 1), Ok("b"));
        let mut other = pod();
        other.metadata.name = Some("other".to_owned());
        view.assume(&other, "b");
        let refused = decide_with(&view, &pod(), &storage, 1).unwrap_err().to_string();
        assert!(refused.contains("ReadWriteOncePod"), "{refused}");
    }

    /// Goal: the pod that has the claim goes, and nobody else, on its node and elsewhere; the claim is
    /// kept for the pod it went for.
    #[test]
    fn who_has_a_claim_for_one_pod_goes_for_a_pod_of_higher_priority() {
        let mut view = view();
        let named = |name: &str| {
            let mut pod = pod();
            pod.metadata.name = Some(name.to_owned());
            pod
        };
        for (name, node) in [("beside", "b"), ("elsewhere", "a")] {
            let mut other = named(name);
            other.spec.as_mut().unwrap().volumes = None;
            view.assume(&other, node);
        }
        let holder = named("holder");
        view.assume(&holder, "b");
        let storage = Storage { exclusive: vec![key()], ..Storage::default() };
        let mut plan = |pod: &Pod| {
            let class = view.enter_class(Demand::of(pod));
            preempt(&view, class, &key_of(pod), &storage, 1)
        };
        let mut vital = named("vital");
        assert!(plan(&vital).is_err(), "it is no more important");
        vital.spec.as_mut().unwrap().priority = Some(10);
        let plan = plan(&vital).unwrap();
        let victims: Vec<_> = plan.victims.iter().map(|victim| victim.key.1.as_str()).collect();
        assert_eq!((plan.node.as_str(), &victims[..]), ("b", &["holder"][..]));
        view.nominate(&vital, "b");
        view.remove(&key_of(&holder));
        let storage = Storage { bound: vec![volume("b")], ..storage };
        let refused = decide_with(&view, &named("late"), &storage, 1).unwrap_err().to_string();
        assert!(refused.contains("1 node has pod using PersistentVolumeClaim"), "{refused}");
        assert_eq!(decide_with(&view, &vital, &storage, 1), Ok("b"));
    }

    #[test]
    fn a_claim_of_made_volumes_goes_where_one_is_and_a_missing_claim_is_named() {
        let candidates = Some(vec![volume("c")]);
        let storage = Storage { open: vec![Open { key: key(), candidates }], ..Storage::default() };
        assert_eq!(decide_with(&view(), &pod(), &storage, 3), Ok("c"));
        let missing = "persistentvolumeclaim \"data\" not found".to_owned();
        let storage = Storage { missing: Some(missing), ..Storage::default() };
        assert_eq!(
            decide_with(&view(), &pod(), &storage, 3).unwrap_err().to_string(),
            "0/3 nodes are available: persistentvolumeclaim \"data\" not found."
        );
    }
}
