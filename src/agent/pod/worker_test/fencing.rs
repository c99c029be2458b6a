//! Workers whose pod must be unique, on a node that servers hear or do not.

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::api::unique_pod::{FENCED_AFTER, REPLACED_AFTER};

fn one_of_a_kind(container: &str) -> Value {
    json!({
        "metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet",
            "name": "web", "uid": "s", "controller": true}]},
        "spec": {"containers": [{"name": container}]},
    })
}

/// A pod whose node's fence looks at the clock.
fn start(root: &tempfile::TempDir, pod: Value) -> World {
    let world = World::start(root, pod);
    let fence = world.shared.fence.clone();
    world.tasks.spawn("fence", |cancel| fence.run(cancel));
    world
}

fn hear(world: &World) {
    world.shared.fence.heard(world.shared.fence.now());
}

/// Servers hear the node every second until the token fires.
fn keep_hearing(world: &World) -> CancellationToken {
    let (fence, until) = (world.shared.fence.clone(), CancellationToken::new());
    let end = until.clone();
    world.tasks.spawn("heartbeats", |_| async move {
        while end.run_until_cancelled(tokio::time::sleep(Duration::from_secs(1))).await.is_some() {
            fence.heard(fence.now());
        }
    });
    until
}

#[tokio::test(start_paused = true)]
async fn it_starts_when_a_server_has_heard_the_node_and_says_that_the_pod_is_still_its() {
    let root = root();
    let world = start(&root, one_of_a_kind("app"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.journal.count("start app"), 0);
    hear(&world);
    world.ready().await;
    assert_eq!(world.journal.count("start app"), 1);
}

#[tokio::test(start_paused = true)]
async fn it_is_stopped_before_anybody_replaces_it_and_runs_again_when_the_link_is_back() {
    let root = root();
    let world = start(&root, one_of_a_kind("stubborn"));
    let hearing = keep_hearing(&world);
    world.ready().await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.journal.count("stop stubborn within 0s"), 0);
    hearing.cancel();
    let cut = Instant::now();
    world.journal.until("stop stubborn within 0s", 1).await;
    world.journal.until("destroy", 1).await;
    assert!(cut.elapsed() < REPLACED_AFTER, "{:?}", cut.elapsed());
    assert!(cut.elapsed() > FENCED_AFTER - Duration::from_secs(2));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.journal.count("start stubborn"), 1);
    hear(&world);
    world.journal.until("start stubborn", 2).await;
}

/// Goal: a process that stood still for longer than its pod may run, and whose next heartbeat is answered
/// before anybody has looked at the clock, does not go on as if nothing had happened. Method: nobody ticks.
#[tokio::test(start_paused = true)]
async fn it_is_stopped_and_asked_about_even_if_nobody_saw_the_fence_closed() {
    let root = root();
    let world = World::start(&root, one_of_a_kind("stubborn"));
    hear(&world);
    world.ready().await;
    tokio::time::advance(REPLACED_AFTER).await;
    hear(&world);
    world.journal.until("stop stubborn within 0s", 1).await;
    world.journal.until("start stubborn", 2).await;
}

#[tokio::test(start_paused = true)]
async fn it_does_not_start_again_when_it_was_given_up_meanwhile() {
    let root = root();
    let world = start(&root, one_of_a_kind("app"));
    let mut marked = world.api.change(|_| {}).unwrap();
    marked.metadata.deletion_timestamp =
        Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(world.shared.clock.now()));
    *world.api.fresh.lock() = Some(marked);
    let _hearing = keep_hearing(&world);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.journal.count("start app"), 0, "the watch is late, the answer is not");
    world.delete(30);
    world.journal.until("api delete", 1).await;
    assert_eq!(world.journal.count("start app"), 0);
}

#[tokio::test(start_paused = true)]
async fn its_grace_ends_with_the_fence() {
    let root = root();
    let world = start(&root, one_of_a_kind("stubborn"));
    hear(&world);
    world.ready().await;
    let cut = Instant::now();
    world.delete(3600);
    world.journal.until("stop stubborn within 0s", 1).await;
    world.journal.until("api delete", 1).await;
    assert!(cut.elapsed() < REPLACED_AFTER, "{:?}", cut.elapsed());
}

#[tokio::test(start_paused = true)]
async fn other_pods_do_not_care_and_one_may_opt_out() {
    let root = root();
    let world = start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    let mut opted_out = one_of_a_kind("app");
    json_patch::merge(
        &mut opted_out,
        &json!({"metadata": {"annotations": {"edgeorc.io/fencing": "off"}}}),
    );
    let root = super::root();
    let world = start(&root, opted_out);
    world.ready().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.journal.count("stop app within 0s"), 0);
}
