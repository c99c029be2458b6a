use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt as _;
use proptest::prelude::*;
use serde_json::json;

use crate::controllers::object::{is_deleting, is_ready, is_terminal};
use crate::controllers::stateful_set::plan::{Plan, Why};
use crate::controllers::stateful_set::world_test::{PARALLEL, World};

/// What users, agents and time do between two runs.
#[derive(Debug, Clone)]
enum Happening {
    Ready(usize),
    Unready(usize),
    Fails(usize),
    Ends,
    Deleted(usize),
    Scaled(i32),
    Image(u8),
    Partition(i32),
    Start(i32),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    prop::collection::vec(
        prop_oneof![
            4 => (0..6_usize).prop_map(Happening::Ready),
            1 => (0..6_usize).prop_map(Happening::Unready),
            1 => (0..6_usize).prop_map(Happening::Fails),
            4 => Just(Happening::Ends),
            1 => (0..6_usize).prop_map(Happening::Deleted),
            1 => (0..5_i32).prop_map(Happening::Scaled),
            1 => (0..3_u8).prop_map(Happening::Image),
            1 => (0..5_i32).prop_map(Happening::Partition),
            1 => (0..3_i32).prop_map(Happening::Start),
        ],
        1..80,
    )
}

fn happen(world: &mut World, happening: &Happening) {
    let nth = |world: &World, n: usize| {
        let alive = world.pods.iter().filter(|(_, pod)| !is_deleting(&pod.metadata));
        alive.map(|(name, _)| name.clone()).nth(n)
    };
    match happening {
        Happening::Ready(n) => {
            if let Some(name) = nth(world, *n) {
                world.ready(&name);
            }
        }
        Happening::Unready(n) => {
            if let Some(name) = nth(world, *n) {
                world.set_status(&name, "Running", false);
            }
        }
        Happening::Fails(n) => {
            if let Some(name) = nth(world, *n) {
                world.set_status(&name, "Failed", false);
            }
        }
        Happening::Ends => world.end(),
        Happening::Deleted(n) => {
            if let Some(name) = nth(world, *n) {
                let now = Time(Timestamp::from_second(world.now).unwrap());
                world.pods.get_mut(&name).unwrap().metadata.deletion_timestamp = Some(now);
            }
        }
        Happening::Scaled(replicas) => world.change(&json!({"spec": {"replicas": replicas}})),
        Happening::Image(n) => world.image(&format!("v{n}")),
        Happening::Partition(n) => {
            world.change(&json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": n}}}}))
        }
        Happening::Start(n) => world.change(&json!({"spec": {"ordinals": {"start": n}}})),
    }
    world.now += 1;
}

fn serves(pod: &Pod) -> bool {
    !is_deleting(&pod.metadata) && is_ready(pod)
}

fn ordinal(pod: &Pod) -> i32 {
    pod.name_any().trim_start_matches("db-").parse().unwrap()
}

/// What holds of the pods that a run has just deleted.
fn check_order(world: &World, plan: &Plan, is_parallel: bool) -> Result<(), TestCaseError> {
    let spec = world.set.spec.as_ref().unwrap();
    let start = spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
    let end = start + spec.replicas.unwrap();
    for (pod, why) in &plan.delete {
        let own = ordinal(pod);
        if *why == Why::Outdated {
            let mut above = (own + 1..end).map(|at| world.pods.get(&format!("db-{at}")));
            let all_serve = above.all(|pod| pod.is_some_and(serves));
            prop_assert!(all_serve, "db-{own} is updated before those above it serve");
        } else if *why == Why::ScaledDown && !is_parallel && !serves(pod) && !is_terminal(pod) {
            let mut below = world.pods.values().filter(|pod| ordinal(pod) < own);
            prop_assert!(
                below.all(|pod| serves(pod) || is_terminal(pod)),
                "db-{own} goes, and neither it nor all below it serve"
            );
        }
    }
    Ok(())
}

proptest! {
    /// Goal: whatever happens, an ordinal never has two pods (asserted by the world), an ordered set
    /// changes one pod a run and never takes one that serves while another does not, updates go from
    /// the highest to the lowest, and in the end the wish is fulfilled. Method: plays users, agents
    /// and failures at random.
    #[test]
    fn no_order_of_events_breaks_a_set(happenings in happenings(), is_parallel in any::<bool>()) {
        let policy = if is_parallel { PARALLEL } else { "OrderedReady" };
        let mut world = World::new(&json!({"spec": {"podManagementPolicy": policy}}));
        for happening in &happenings {
            let serving = |world: &World| world.pods.values().filter(|pod| serves(pod)).count();
            let wanted = world.set.spec.as_ref().unwrap().replicas.unwrap();
            let before = serving(&world);
            let plan = world.run();
            if !is_parallel {
                prop_assert!(plan.create.len() + plan.delete.len() <= 1);
            }
            let outdated = plan.delete.iter().filter(|(_, why)| *why == Why::Outdated).count();
            prop_assert!(outdated <= 1, "{outdated} pods are updated at once");
            check_order(&world, &plan, is_parallel)?;
            if outdated > 0 && !is_parallel {
                let after = i32::try_from(serving(&world)).unwrap();
                let costs = serving(&world) < before;
                prop_assert!(!costs || after >= wanted - 1, "{after} of {wanted} serve");
            }
            happen(&mut world, happening);
        }
        world.change(&json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}}));
        let names: Vec<_> = world.pods.keys().cloned().collect();
        for name in names {
            if !is_deleting(&world.pods[&name].metadata) {
                world.ready(&name);
            }
        }
        world.settle();
        let spec = world.set.spec.clone().unwrap();
        let start = spec.ordinals.and_then(|ordinals| ordinals.start).unwrap_or(0);
        let wanted: Vec<_> =
            (start..start + spec.replicas.unwrap()).map(|n| format!("db-{n}")).collect();
        prop_assert_eq!(world.pods.keys().cloned().collect::<Vec<_>>(), wanted);
        let image = spec.template.spec.unwrap().containers[0].image.clone().unwrap();
        prop_assert!(world.images().iter().all(|(_, of)| *of == image));
        let status = world.set.status.clone().unwrap();
        prop_assert_eq!(status.current_revision, status.update_revision);
    }
}
