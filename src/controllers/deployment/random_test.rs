//! Deployments at random: templates, numbers, pauses and statuses that lag, in any order.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use serde_json::json;

use crate::controllers::deployment::plan::{View, plan, wanted};
use crate::controllers::deployment::plan_test::{START, at, deployment};
use crate::controllers::deployment::template::{DESIRED, REVISION, Wish, annotation, revision};
use crate::controllers::object::selector_of;

/// What happens between two runs.
#[derive(Debug, Clone)]
enum Happening {
    /// Somebody applies another template.
    Template(u8),
    /// Somebody holds the rollout, or lets it go on.
    Pause(bool),
    /// Somebody scales it.
    Scale(i32),
    /// So many pods of the newest template begin to serve.
    Serve(i32),
    /// Statuses of replica sets say what is.
    StatusCatchesUp,
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let one = prop_oneof![
        1 => (0..4_u8).prop_map(Happening::Template),
        1 => any::<bool>().prop_map(Happening::Pause),
        1 => (0..8_i32).prop_map(Happening::Scale),
        3 => (1..4_i32).prop_map(Happening::Serve),
        3 => Just(Happening::StatusCatchesUp),
    ];
    prop::collection::vec(one, 1..50)
}

/// The server, and the controller of replica sets.
struct World {
    deployment: Deployment,
    sets: Vec<Arc<ReplicaSet>>,
    /// Pods of each replica set that serve, whatever its status says.
    serving: BTreeMap<String, i32>,
    made: i64,
}

fn uid(set: &ReplicaSet) -> String {
    set.metadata.uid.clone().unwrap()
}

impl World {
    fn new(surge: i32, unavailable: i32) -> Self {
        let rolling = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let changes = json!({"spec": {"strategy": {"rollingUpdate": rolling}}});
        let deployment = deployment("v0", &changes);
        Self { deployment, sets: Vec::new(), serving: BTreeMap::new(), made: 0 }
    }

    fn replicas(&self) -> i32 {
        self.deployment.spec.as_ref().unwrap().replicas.unwrap()
    }

    fn total(&self) -> i32 {
        self.sets.iter().map(|set| wanted(set)).sum()
    }

    /// Whether the next run follows a change of `spec.replicas`.
    fn is_scaled(&self) -> bool {
        let wanted_now = self.replicas().to_string();
        self.sets.iter().any(|set| wanted(set) > 0 && annotation(set, DESIRED) != Some(&wanted_now))
    }

    fn serves(&self) -> i32 {
        self.serving.values().sum()
    }

    /// Pods that the controller knows to serve: those that the status of their set tells of.
    fn known_to_serve(&self) -> i32 {
        let told = |set: &ReplicaSet| set.status.as_ref()?.available_replicas;
        self.sets.iter().map(|set| self.serving[&uid(set)].min(told(set).unwrap_or(0))).sum()
    }

    /// One run of the controller, and what the server and the other controller make of it.
    fn run(&mut self) {
        let selector = selector_of(&self.deployment.spec.as_ref().unwrap().selector);
        let plan = plan(&View {
            deployment: &self.deployment,
            selector: selector.as_ref(),
            replica_sets: &self.sets,
            pods: &[],
            now: at(START),
        });
        if let Some(set) = plan.create {
            let mut set = *set;
            self.made += 1;
            set.metadata.uid = set.metadata.name.clone();
            set.metadata.generation = Some(1);
            let created = at(START) + jiff::SignedDuration::from_secs(self.made);
            set.metadata.creation_timestamp = Some(Time(created));
            self.sets.push(Arc::new(set));
        }
        for edit in plan.edits {
            let set = self.sets.iter_mut().find(|set| uid(set) == uid(&edit.of)).unwrap();
            let set = Arc::make_mut(set);
            set.metadata.annotations.get_or_insert_default().extend(edit.annotations);
            if let Some(replicas) = edit.replicas {
                set.spec.as_mut().unwrap().replicas = Some(replicas);
                *set.metadata.generation.as_mut().unwrap() += 1;
            }
        }
        let deleted: Vec<_> = plan.delete.iter().map(|set| uid(set)).collect();
        self.sets.retain(|set| !deleted.contains(&uid(set)));
        if let Some(revision) = plan.revision {
            let annotations = self.deployment.metadata.annotations.get_or_insert_default();
            annotations.insert(REVISION.into(), revision);
        }
        self.deployment.status = Some(plan.status);
        for set in &self.sets {
            // Pods that do not serve go first.
            let serving = self.serving.entry(uid(set)).or_insert(0);
            *serving = (*serving).min(wanted(set));
        }
    }

    fn happen(&mut self, happening: &Happening) {
        let spec = self.deployment.spec.as_mut().unwrap();
        match happening {
            Happening::Template(version) => {
                let containers = &mut spec.template.spec.as_mut().unwrap().containers;
                containers[0].image = Some(format!("v{version}"));
            }
            Happening::Pause(is_paused) => spec.paused = Some(*is_paused),
            Happening::Scale(replicas) => spec.replicas = Some(*replicas),
            Happening::Serve(count) => {
                if let Some(set) = self.sets.iter().max_by_key(|set| revision(set)) {
                    let serving = self.serving.entry(uid(set)).or_insert(0);
                    *serving = (*serving + count).min(wanted(set));
                }
            }
            Happening::StatusCatchesUp => {
                for set in &mut self.sets {
                    let (serving, wanted) = (self.serving[&uid(set)], wanted(set));
                    let set = Arc::make_mut(set);
                    set.status = serde_json::from_value(json!({
                        "replicas": wanted, "readyReplicas": serving,
                        "availableReplicas": serving,
                        "observedGeneration": set.metadata.generation,
                    }))
                    .unwrap();
                }
            }
        }
    }
}

proptest! {
    /// Goal: whatever people do, no run asks for more pods than may be or takes one that is needed, and in
    /// the end the newest template has them all.
    #[test]
    fn no_order_of_events_breaks_a_deployment(
        surge in 0..3_i32,
        unavailable in 0..3_i32,
        happenings in happenings(),
    ) {
        prop_assume!(surge + unavailable > 0);
        let mut world = World::new(surge, unavailable);
        let end = [Happening::Pause(false), Happening::Scale(3)];
        let settle = (0..60).flat_map(|_| [Happening::Serve(9), Happening::StatusCatchesUp]);
        for happening in happenings.into_iter().chain(end).chain(settle) {
            let (total, serves) = (world.total(), world.known_to_serve());
            let wish = Wish::of(&world.deployment);
            let is_scaled = wish.is_paused || world.is_scaled();
            world.run();
            prop_assert!(world.total() <= total.max(wish.total_max()), "{} of {wish:?}", world.total());
            // A change of scale is shared out by size, as in Kubernetes, whoever serves.
            let needed = if is_scaled { 0 } else { wish.available_min().min(serves) };
            prop_assert!(world.serves() >= needed, "{} of {wish:?} serve", world.serves());
            world.happen(&happening);
        }
        world.run();
        let (newest, others): (Vec<_>, Vec<_>) =
            world.sets.iter().partition(|set| wanted(set) > 0);
        prop_assert_eq!(newest.len(), 1);
        prop_assert_eq!(wanted(newest[0]), world.replicas());
        let image = |set: &ReplicaSet| {
            let template = set.spec.as_ref().unwrap().template.as_ref().unwrap();
            template.spec.as_ref().unwrap().containers[0].image.clone()
        };
        let spec = world.deployment.spec.as_ref().unwrap();
        let wanted_image = spec.template.spec.as_ref().unwrap().containers[0].image.clone();
        prop_assert_eq!(image(newest[0]), wanted_image);
        prop_assert!(others.iter().all(|set| revision(set) < revision(newest[0])));
        let mut images: Vec<_> = world.sets.iter().map(|set| image(set)).collect();
        images.sort();
        images.dedup();
        prop_assert_eq!(images.len(), world.sets.len(), "a template has one replica set");
        let told = &world.deployment.metadata.annotations.as_ref().unwrap()[REVISION];
        prop_assert_eq!(told, &revision(newest[0]).to_string());
    }
}
