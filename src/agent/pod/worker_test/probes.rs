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
    let is_ready = |wanted: bool| move |s: &PodStatus| is(s, "app", |c| c.ready == wanted);
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
    let is_ready = |wanted: bool| move |s: &PodStatus| is(s, "app", |c| c.ready == wanted);
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

#[tokio::test(start_paused = true)]
async fn a_socket_of_another_host_is_not_taken_for_the_pods() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app",
        "readinessProbe": {"tcpSocket": {"host": "10.9.9.9", "port": 80}, "periodSeconds": 1}}]}}),
    );
    let said = "event Unhealthy app: Readiness probe failed: tcpSocket with a host other than the pod \
                is not supported";
    world.journal.until(said, 1).await;
}

#[tokio::test(start_paused = true)]
async fn the_startup_probe_holds_the_others() {
    let root = root();
    let probe = |path: &str, failures: u32| json!({"httpGet": {"path": path, "port": 80}, "periodSeconds": 1, "failureThreshold": failures});
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app", "startupProbe": probe("/up", 100),
            "livenessProbe": probe("/live", 1), "readinessProbe": probe("/ready", 1)}]}}),
    );
    world.net.broken.lock().extend(["/up".to_owned(), "/live".to_owned()]);
    world.journal.until("start app", 1).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    let status = world.api.statuses.borrow().clone();
    let app = of(&status, "app");
    assert_eq!((app.started, app.ready, app.restart_count), (Some(false), false, 0));
    assert_eq!(world.journal.count("GET /ready"), 0);
    world.net.broken.lock().retain(|path| path != "/up");
    let killing = "event Killing app: Container app failed liveness probe, will be restarted";
    world.journal.until(killing, 1).await;
    world.net.broken.lock().clear();
    world.status(|s| is(s, "app", |c| c.started == Some(true) && c.ready)).await;
}

#[tokio::test(start_paused = true)]
async fn before_its_first_try_a_probe_has_an_answer() {
    let root = root();
    let probe = json!({"tcpSocket": {"port": 1}, "initialDelaySeconds": 1000});
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "live", "livenessProbe": probe},
            {"name": "late", "readinessProbe": probe}, {"name": "slow", "startupProbe": probe}]}}),
    );
    world.journal.until("start slow", 1).await;
    let status = world.status(|s| is(s, "late", |c| c.started == Some(true))).await;
    let says = |s: &PodStatus, name: &str| (of(s, name).started, of(s, name).ready);
    assert_eq!(says(&status, "live"), (Some(true), true));
    assert_eq!(says(&status, "late"), (Some(true), false));
    assert_eq!(says(&status, "slow"), (Some(false), false));
}

#[tokio::test(start_paused = true)]
async fn only_so_many_failures_or_successes_in_a_row_count() {
    let root = root();
    let probe = |path: &str, failures: u32, successes: u32| {
        json!({"httpGet": {"path": path, "port": 80}, "periodSeconds": 10,
            "failureThreshold": failures, "successThreshold": successes})
    };
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app", "livenessProbe": probe("/live", 3, 1),
            "readinessProbe": probe("/ready", 3, 4)}]}}),
    );
    world.ready().await;
    assert_eq!(world.journal.count("GET /ready"), 4);
    let unhealthy =
        "event Unhealthy app: Liveness probe failed: HTTP probe failed with statuscode: 500";
    for round in 1..=3 {
        let seen = world.journal.count("GET /live");
        world.net.broken.lock().push("/live".to_owned());
        world.journal.until(unhealthy, 2 * round).await;
        world.net.broken.lock().clear();
        world.journal.until("GET /live", seen + 1).await;
    }
    assert_eq!(world.journal.count("start app"), 1, "never three in a row");
    world.net.broken.lock().push("/live".to_owned());
    world.journal.until("start app", 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_redirect_to_another_host_is_a_success_with_a_warning() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app", "livenessProbe": {
            "httpGet": {"path": "/live", "port": 80}, "periodSeconds": 1, "failureThreshold": 1}}]}}),
    );
    world.net.moved.lock().insert("/live".to_owned(), "http://example.org/".to_owned());
    let warning = "event ProbeWarning app: Liveness probe warning: Probe terminated redirects, \
                   Response body: ";
    world.journal.until(warning, 3).await;
    assert_eq!(world.journal.count("start app"), 1);
    // On the same host it is followed.
    world.net.moved.lock().insert("/live".to_owned(), "/broken".to_owned());
    world.net.broken.lock().push("/broken".to_owned());
    world.journal.until("start app", 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_cannot_be_made_does_not_count() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app", "livenessProbe": {
            "tcpSocket": {"port": "nobody"}, "periodSeconds": 1, "failureThreshold": 1}}]}}),
    );
    let errored = "event Unhealthy app: Liveness probe errored: the probe names a port that the \
                   container does not have";
    world.journal.until(errored, 5).await;
    assert_eq!(world.journal.count("start app"), 1);
    // One that is made and refused does.
    let root = self::root();
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "app", "livenessProbe": {
            "tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1}}]}}),
    );
    world.journal.until("start app", 2).await;
}
