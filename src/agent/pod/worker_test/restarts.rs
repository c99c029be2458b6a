//! Who starts again when a container ends, and how soon.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_container_that_fails_takes_the_pod_with_it_and_all_start_again_in_order() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [{"name": "init"}, {"name": "proxy", "restartPolicy": "Always"}],
        "containers": [{"name": "app"}, {"name": "helper"}]}}),
    );
    world.journal.until("start init", 1).await;
    world.exit("init", 0);
    world.ready().await;
    world.exit("app", 3);
    world.journal.until("start helper", 2).await;
    let lines = world.journal.lines();
    let stopped = lines.iter().position(|l| l == "stop helper within 2s").unwrap();
    assert!(lines[stopped..].iter().any(|l| l == "stop proxy within 2s"), "{lines:#?}");
    let again: Vec<&String> = lines[stopped..].iter().filter(|l| l.starts_with("start ")).collect();
    assert_eq!(again, ["start proxy", "start app", "start helper"]);
    assert_eq!(world.journal.count("start init"), 1);
    let status = world
        .status(|s| s.container_statuses.iter().flatten().all(|c| c.ready && c.restart_count == 1))
        .await;
    let last = of(&status, "app").last_state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (3, Some("Error")));
    world
        .journal
        .until("event BackOff app: Back-off restarting failed container app in pod web_shop(u)", 1)
        .await;
}

#[tokio::test(start_paused = true)]
async fn with_a_fate_of_their_own_only_the_failed_one_starts_again() {
    let root = root();
    let world = World::start(
        &root,
        json!({
        "metadata": {"annotations": {"edgeorc.io/fate": "container"}},
        "spec": {"containers": [{"name": "app"}, {"name": "helper"}]}}),
    );
    world.ready().await;
    world.exit("app", 1);
    world.journal.until("start app", 2).await;
    assert_eq!(world.journal.count("start helper"), 1);
    assert_eq!(world.journal.count("stop helper within 2s"), 0);
}

#[tokio::test(start_paused = true)]
async fn who_was_told_to_end_and_did_runs_again_with_the_one_that_failed() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "OnFailure", "containers": [{"name": "app"},
            {"name": "polite", "livenessProbe": {"httpGet": {"path": "/live", "port": 80},
                "periodSeconds": 1, "failureThreshold": 1}}]}}),
    );
    world.ready().await;
    world.exit("app", 1);
    world.journal.until("start polite", 2).await;
    world.ready().await;
    world.net.broken.lock().push("/live".to_owned());
    world.journal.until("stop polite within 30s", 1).await;
    world.net.broken.lock().clear();
    world.journal.until("start polite", 3).await;
    world.ready().await;
    // What it does by itself counts.
    world.exit("polite", 0);
    world.exit("app", 0);
    world.phase("Succeeded").await;
}

#[tokio::test(start_paused = true)]
async fn siblings_are_stopped_together_with_their_hooks_and_sidecars_after_them() {
    let root = root();
    let hook = json!({"preStop": {"httpGet": {"path": "/bye", "port": 80}}});
    let world = World::start(
        &root,
        json!({"spec": {
            "initContainers": [{"name": "proxy", "restartPolicy": "Always", "lifecycle": hook}],
            "containers": [{"name": "app"}, {"name": "stubborn-1"}, {"name": "stubborn-2"}]}}),
    );
    world.ready().await;
    let since = Instant::now();
    world.exit("app", 1);
    world.journal.until("start stubborn-2", 2).await;
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    let at = |line: &str| world.journal.position(line);
    assert!(at("stop stubborn-1 within 2s") < at("GET /bye"));
    assert!(at("GET /bye") < at("stop proxy within 2s"));
}

#[tokio::test(start_paused = true)]
async fn a_sidecar_starts_again_whatever_the_policy_and_does_not_hold_the_pod() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never",
        "initContainers": [{"name": "proxy", "restartPolicy": "Always"}],
        "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    world.exit("proxy", 1);
    world.journal.until("start proxy", 2).await;
    assert_eq!(world.journal.count("start app"), 1);
    world.exit("app", 0);
    world.phase("Succeeded").await;
    assert!(world.journal.position("stop proxy within 30s") < world.journal.position("destroy"));
}

#[tokio::test(start_paused = true)]
async fn crash_loops_back_off_with_kubernetes_words() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    let mut waits = Vec::new();
    for run in 1..=12 {
        world.journal.until("start app", run).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let since = Instant::now();
        world.exit("app", 1);
        world.journal.until("start app", run + 1).await;
        waits.push(since.elapsed().as_secs_f64());
    }
    assert!(waits[0] < 0.03 && waits[5] < 0.4, "{waits:?}");
    assert!(waits[11] >= 10.0, "crashes soon after the start are a loop: {waits:?}");
    world.exit("app", 1);
    let status = world
        .status(|s| s.container_statuses.iter().flatten().any(|c| c.restart_count == 13))
        .await;
    let (reason, message) = waiting(of(&status, "app"));
    assert_eq!(reason, "CrashLoopBackOff");
    assert_eq!(message, "back-off 10s restarting failed container=app pod=web_shop(u)");
}
