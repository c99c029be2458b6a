//! Workers whose pod has to leave its node.

use serde_json::json;

use super::*;

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_fails_soon_with_the_reason_and_leaves_no_files() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "stubborn"}, {"name": "app"}],
            "volumes": [{"name": "data", "emptyDir": {}}]}}),
    );
    world.ready().await;
    std::fs::write(world.dir.volume("data").join("file"), "x").unwrap();
    world.verdict.send_replace(Some("The node was low on resource: memory.".to_owned()));
    let status = world.phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    assert_eq!(status.message.as_deref(), Some("The node was low on resource: memory."));
    let conditions = status.conditions.unwrap();
    let target = conditions.iter().find(|c| c.type_ == "DisruptionTarget").unwrap();
    assert_eq!(
        (target.status.as_str(), target.reason.as_deref(), target.message.as_deref()),
        ("True", Some("TerminationByKubelet"), Some("The node was low on resource: memory."))
    );
    let ready = conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.status, "False");
    world.journal.position("stop stubborn within 2s");
    world.journal.position("event Evicted pod: The node was low on resource: memory.");
    world.journal.position("destroy");
    assert_eq!(world.journal.count("start app"), 1, "it does not run again");
    // Its object stays until somebody deletes it, its files do not.
    let gone = async {
        while world.dir.volume("data").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
    assert!(world.dir.has_pod());
    world.delete(0);
    world.journal.until("api delete", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_waits_for_its_image_is_evicted_as_well() {
    let root = root();
    let world =
        World::start(&root, json!({"spec": {"containers": [{"name": "app", "image": "missing"}]}}));
    world.status(|s| s.container_statuses.is_some()).await;
    world.verdict.send_replace(Some("no room".to_owned()));
    assert_eq!(world.phase("Failed").await.reason.as_deref(), Some("Evicted"));
}

#[tokio::test(start_paused = true)]
async fn an_evicted_pod_stays_so_when_the_agent_is_restarted() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    world.verdict.send_replace(Some("no room".to_owned()));
    world.phase("Failed").await;
    world.journal.position("destroy");
    let pod = world.dir.read_pod().unwrap();
    world.cut().await;
    let world = World::with(&root, pod);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.journal.count("start app"), 0);
}
