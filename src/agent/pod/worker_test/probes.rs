//! What probes do to containers.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_liveness_failure_stops_the_container_with_hook_and_grace_and_starts_it_again() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "stubborn",
        "lifecycle": {"preStop": {"httpGet": {"path": "/bye", "port": 80}}},
        "livenessProbe": {"httpGet": {"path": "/live", "port": 80}, "periodSeconds": 1,
            "failureThreshold": 2, "terminationGracePeriodSeconds": 7}}]}}),
    );
    world.ready().await;
    world.net.broken.lock().push("/live".to_owned());
    world
        .journal
        .until(
            "event Killing stubborn: Container stubborn failed liveness probe, will be restarted",
            1,
        )
        .await;
    world.net.broken.lock().clear();
    world.journal.until("start stubborn", 2).await;
    assert!(world.journal.position("GET /bye") < world.journal.position("stop stubborn within 7s"));
    assert_eq!(world.journal.count("stop stubborn within 7s"), 1);
    // While it ends, the worker still listens: a second pod's deletion would not wait.
    let status = world.ready().await;
    assert_eq!(of(&status, "stubborn").restart_count, 1);
}

#[tokio::test(start_paused = true)]
async fn readiness_follows_its_probe() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app",
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}, "periodSeconds": 1}}]}}),
    );
    world.ready().await;
    world.net.broken.lock().push("/ready".to_owned());
    world.status(|s| s.container_statuses.iter().flatten().all(|c| !c.ready)).await;
    assert_eq!(world.journal.count("stop app within 30s"), 0);
    world.net.broken.lock().clear();
    world.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_looked_after_while_an_image_is_pulled() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"activeDeadlineSeconds": 600, "containers": [
            {"name": "app",
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}, "periodSeconds": 1},
                "livenessProbe": {"httpGet": {"path": "/live", "port": 80}, "periodSeconds": 1,
                    "failureThreshold": 2}},
            {"name": "late", "image": "endless"}]}}),
    );
    let is_ready = |wanted: bool| move |s: &PodStatus| of(s, "app").ready == wanted;
    world.status(is_ready(true)).await;
    world.net.broken.lock().push("/ready".to_owned());
    world.status(is_ready(false)).await;
    world.net.broken.lock().clear();
    world.status(is_ready(true)).await;
    world.net.broken.lock().push("/live".to_owned());
    world.journal.until("start app", 2).await;
    world.net.broken.lock().clear();
    world.exit("app", 1);
    world.journal.until("start app", 3).await;
    assert_eq!(world.journal.count("start late"), 0);
    let status = world.phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_looked_after_while_a_post_start_hook_runs() {
    let root = root();
    let hook = json!({"postStart": {"httpGet": {"path": "/hello", "port": 80}}});
    let world = World::start(
        &root,
        json!({"spec": {"activeDeadlineSeconds": 600, "containers": [
            {"name": "app",
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 80}, "periodSeconds": 1}},
            {"name": "slow", "lifecycle": hook,
                "livenessProbe": {"httpGet": {"path": "/live", "port": 80}}},
            {"name": "last"}]}}),
    );
    world.net.muted.lock().push("/hello".to_owned());
    let is_ready = |wanted: bool| move |s: &PodStatus| of(s, "app").ready == wanted;
    world.status(is_ready(true)).await;
    world.journal.until("GET /hello without an answer", 1).await;
    world.net.broken.lock().push("/ready".to_owned());
    world.status(is_ready(false)).await;
    world.net.broken.lock().clear();
    world.status(is_ready(true)).await;
    assert_eq!(world.journal.count("GET /live"), 0, "probes begin after the hook");
    assert_eq!(world.journal.count("start last"), 0, "the next container waits for the hook");
    // Its end is seen although its hook is not over.
    world.exit("slow", 1);
    world.journal.until("start slow", 2).await;
    assert_eq!(world.journal.count("start app"), 2, "the pod has one fate");
    let status = world.phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}
