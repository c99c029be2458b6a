//! What an agent takes over from the one before it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_that_had_ended_is_not_run_again_by_the_next_agent() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    world.exit("app", 0);
    world.phase("Succeeded").await;
    let dir = world.dir.clone();
    world.cut().await;
    let pod = dir.read_pod().unwrap();
    assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Succeeded"));
    let world = World::with(&root, pod);
    world.delete(30);
    world.journal.until("worker ended", 1).await;
    assert_eq!(world.journal.count("start app"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_part_of_a_pod_that_was_done_is_not_done_again_by_the_next_agent() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "OnFailure",
        "containers": [{"name": "once"}, {"name": "app"}]}}),
    );
    world.ready().await;
    world.exit("once", 0);
    world
        .status(|s| s.container_statuses.iter().flatten().any(|c| c.name == "once" && !c.ready))
        .await;
    let dir = world.dir.clone();
    world.cut().await;
    let world = World::with(&root, dir.read_pod().unwrap());
    world.journal.until("start app", 1).await;
    world.exit("app", 0);
    world.phase("Succeeded").await;
    assert_eq!(world.journal.count("start once"), 0);
}

#[tokio::test(start_paused = true)]
async fn restarts_are_counted_over_restarts_of_the_agent_without_writing_at_each() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    for run in 1..=3 {
        world.journal.until("start app", run).await;
        world.exit("app", 1);
    }
    world.journal.until("start app", 4).await;
    let dir = world.dir.clone();
    world.cut().await;
    assert_eq!(dir.read_pod().unwrap().status.unwrap().phase.as_deref(), Some("Pending"));
    let world = World::with(&root, dir.read_pod().unwrap());
    let status = world.ready().await;
    assert_eq!(of(&status, "app").restart_count, 4);
    let last = of(&status, "app").last_state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (255, Some("Unknown")));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_ends_its_containers_and_keeps_the_pod() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    world.cancel.cancel();
    world.journal.until("worker ended", 1).await;
    assert_eq!(world.journal.count("stop app within 10s"), 1);
    assert_eq!(world.journal.count("api delete"), 0);
    assert!(world.dir.has_pod());
}

#[tokio::test(start_paused = true)]
async fn what_a_stopping_node_has_stopped_is_not_done() {
    for (policy, then) in [("OnFailure", "Running"), ("Never", "Failed")] {
        let root = root();
        let world = World::start(
            &root,
            json!({"spec": {"restartPolicy": policy, "containers": [{"name": "polite"}]}}),
        );
        world.ready().await;
        world.cancel.cancel();
        world.journal.until("worker ended", 1).await;
        let world = World::with(&root, world.dir.read_pod().unwrap());
        let status = world.phase(then).await;
        let polite = of(&status, "polite");
        let ended = [&polite.state, &polite.last_state].map(|s| s.clone().unwrap().terminated);
        let code = ended.into_iter().flatten().next().unwrap().exit_code;
        assert_eq!(code, 255, "{policy}: nobody knows what it had done");
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_ran_is_not_pending_again_while_its_sidecar_starts() {
    let root = root();
    let pod = json!({"spec": {
        "initContainers": [{"name": "proxy", "restartPolicy": "Always",
            "startupProbe": {"httpGet": {"path": "/up", "port": 80}, "periodSeconds": 1}}],
        "containers": [{"name": "app"}]}});
    let world = World::start(&root, pod);
    world.ready().await;
    let dir = world.dir.clone();
    world.cut().await;
    let world = World::with(&root, dir.read_pod().unwrap());
    world.ready().await;
    let lines = world.journal.lines();
    assert!(lines.iter().all(|line| !line.starts_with("status Pending")), "{lines:#?}");
}
