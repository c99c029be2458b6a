//! How the containers of a pod start, and what is said of those that cannot.

use super::*;

#[tokio::test(start_paused = true)]
async fn inits_run_one_after_another_then_sidecars_then_the_mains() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [
            {"name": "one"},
            {"name": "proxy", "restartPolicy": "Always",
                "startupProbe": {"httpGet": {"path": "/up", "port": 80}, "periodSeconds": 1}},
            {"name": "two"}],
        "containers": [{"name": "app"}, {"name": "helper"}]}}),
    );
    world.net.broken.lock().push("/up".to_owned());
    world.journal.until("start one", 1).await;
    assert_eq!(world.journal.count("start proxy"), 0);
    world.exit("one", 0);
    world.journal.until("start proxy", 1).await;
    world
        .journal
        .until(
            "event Unhealthy proxy: Startup probe failed: HTTP probe failed with statuscode: 500",
            1,
        )
        .await;
    assert_eq!(world.journal.count("start two"), 0, "the sidecar has not started yet");
    world.net.broken.lock().clear();
    world.journal.until("start two", 1).await;
    assert_eq!(world.journal.count("start app"), 0);
    world.exit("two", 0);
    let status = world.ready().await;
    assert!(world.journal.position("start app") < world.journal.position("start helper"));
    assert!(of(&status, "one").ready, "an init container that is done is ready");
    assert_eq!(status.phase.as_deref(), Some("Running"));
}

#[tokio::test(start_paused = true)]
async fn an_init_that_fails_ends_a_pod_that_never_restarts_and_is_tried_again_in_others() {
    let root = root();
    let spec = |policy: &str| {
        json!({"spec": {"restartPolicy": policy,
        "initContainers": [{"name": "init"}], "containers": [{"name": "app"}]}})
    };
    let world = World::start(&root, spec("Never"));
    world.journal.until("start init", 1).await;
    world.exit("init", 1);
    world.phase("Failed").await;
    assert_eq!(world.journal.count("start app"), 0);
    let root = self::root();
    let world = World::start(&root, spec("Always"));
    world.journal.until("start init", 1).await;
    world.exit("init", 1);
    world.journal.until("start init", 2).await;
    assert_eq!(world.journal.count("start app"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_container_is_ready_after_its_post_start_hook_and_killed_if_that_fails() {
    let root = root();
    let hook = json!({"postStart": {"httpGet": {"path": "/hello", "port": 80}}});
    let world = World::start(
        &root,
        json!({"spec": {"containers": [
        {"name": "app", "lifecycle": hook}, {"name": "next"}]}}),
    );
    world.net.broken.lock().push("/hello".to_owned());
    world
        .journal
        .until("event FailedPostStartHook app: HTTP probe failed with statuscode: 500", 1)
        .await;
    world.journal.until("stop app within 30s", 1).await;
    world.net.broken.lock().clear();
    world.ready().await;
    let lines = world.journal.lines();
    let failed = lines.iter().position(|l| l.starts_with("event FailedPostStartHook")).unwrap();
    assert!(failed < world.journal.position("start next"), "the next container waits for the hook");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_start_says_why_and_is_tried_again_if_that_can_help() {
    let root = root();
    let world =
        World::start(&root, json!({"spec": {"containers": [{"name": "app", "image": "missing"}]}}));
    let status = world
        .status(|s| s.container_statuses.iter().flatten().any(|c| waiting(c).0 == "ErrImagePull"))
        .await;
    assert!(waiting(of(&status, "app")).1.contains("no such image"));
    world.journal.until("event Failed app: Error: no such image", 3).await;
    let root = self::root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never",
        "containers": [{"name": "app", "args": ["--unsupported"]}]}}),
    );
    let status = world.phase("Failed").await;
    let ended = of(&status, "app").state.clone().unwrap().terminated.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_deref()), (128, Some("ContainerCannotRun")));
}

#[tokio::test(start_paused = true)]
async fn what_is_missing_is_waited_for_and_keys_that_are_no_names_are_told() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app",
            "envFrom": [{"configMapRef": {"name": "settings"}}]}]}}),
    );
    let status = world
        .status(|s| s.container_statuses.iter().flatten().any(|c| !waiting(c).1.is_empty()))
        .await;
    let (reason, message) = waiting(of(&status, "app"));
    assert_eq!(reason, "CreateContainerConfigError");
    assert_eq!(message, "configmap \"settings\" not found");
    let map = serde_json::from_value(json!({"data": {"a=b": "1", "C": "2"}})).unwrap();
    world.api.config_maps.lock().insert("settings".to_owned(), map);
    world.ready().await;
    let told = "event InvalidEnvironmentVariableNames app: Keys [a=b] from the EnvFrom configMap \
                shop/settings were skipped since they are considered invalid environment variable \
                names.";
    assert_eq!(world.journal.count(told), 1);
}

#[tokio::test(start_paused = true)]
async fn mains_wait_as_pod_initializing_and_others_as_container_creating() {
    for (inits, reason) in [
        (json!([{"name": "init", "image": "endless"}]), "PodInitializing"),
        (json!([]), "ContainerCreating"),
    ] {
        let root = root();
        let world = World::start(
            &root,
            json!({"spec": {"initContainers": inits,
                "containers": [{"name": "app", "image": "endless"}]}}),
        );
        let status = world.status(|s| s.container_statuses.is_some()).await;
        assert_eq!(waiting(of(&status, "app")).0, reason);
        assert_eq!(status.phase.as_deref(), Some("Pending"));
        world.delete(30);
        let since = Instant::now();
        world.journal.until("worker ended", 1).await;
        assert!(since.elapsed() < Duration::from_secs(5), "nothing runs that could take its time");
        assert_eq!(world.journal.count("start app"), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_volume_is_shown_in_the_status_and_one_that_cannot_be_had_holds_the_pod() {
    let pod = |image: &str| {
        json!({"spec": {
            "containers": [{"name": "app", "image": "app",
                "volumeMounts": [{"name": "v", "mountPath": "/m", "readOnly": true}]}],
            "volumes": [{"name": "v", "image": {"reference": image}}]}})
    };
    let first = root();
    std::fs::create_dir_all(first.path().join("images/trees/00")).unwrap();
    let world = World::start(&first, pod("data:v1"));
    let status = world.ready().await;
    let shown = serde_json::to_value(&status.container_statuses.unwrap()[0].volume_mounts).unwrap();
    assert_eq!(
        shown,
        json!([{"name": "v", "mountPath": "/m", "readOnly": true, "recursiveReadOnly": "Enabled",
            "volumeStatus": {"image": {"imageRef": "data:v1@sha256:00"}}}])
    );
    world.cut().await;
    let root = root();
    let world = World::start(&root, pod("missing"));
    let is_told = |status: &PodStatus| {
        let waiting = status.container_statuses.as_ref()?[0].state.as_ref()?.waiting.clone()?;
        (waiting.reason.as_deref() == Some("ErrImagePull")).then_some(())
    };
    world.status(|status| is_told(status).is_some()).await;
    assert_eq!(world.journal.count("start app"), 0);
}
