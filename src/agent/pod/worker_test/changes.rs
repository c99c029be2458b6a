//! Images that change in a running pod, and ephemeral containers.

use k8s_openapi::api::core::v1::EphemeralContainer;

use super::*;

impl World {
    fn set_image(&self, container: &str, image: &str) {
        self.api.change(|pod| {
            let spec = pod.spec.as_mut().unwrap();
            let all = spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten());
            let container = all.into_iter().find(|c| c.name == container).unwrap();
            container.image = Some(image.to_owned());
        });
    }

    /// As `kubectl debug` does.
    fn debug(&self, container: Value) {
        let added: EphemeralContainer = serde_json::from_value(container).unwrap();
        self.api.change(|pod| {
            pod.spec.as_mut().unwrap().ephemeral_containers.get_or_insert_default().push(added);
        });
    }

    /// Waits for the state of the ephemeral container `debug`.
    async fn debugger(&self, wanted: impl Fn(&ContainerStatus) -> bool) -> ContainerStatus {
        let is = |c: &ContainerStatus| c.name == "debug" && wanted(c);
        let all = |s: &PodStatus| s.ephemeral_container_statuses.clone().unwrap_or_default();
        let status = self.status(|s| all(s).iter().any(is)).await;
        all(&status).into_iter().find(is).unwrap()
    }

    async fn debugger_runs(&self) {
        self.debugger(|c| c.state.as_ref().is_some_and(|s| s.running.is_some())).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_container_whose_image_changes_starts_again_with_it_and_alone() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never",
        "initContainers": [{"name": "proxy", "image": "p:1", "restartPolicy": "Always"}],
        "containers": [{"name": "app", "image": "a:1"}, {"name": "helper", "image": "h:1"}]}}),
    );
    world.ready().await;
    world.set_image("app", "a:2");
    let killing = "event Killing app: Container app definition changed, will be restarted";
    world.journal.until(killing, 1).await;
    world.journal.until("stop app within 30s", 1).await;
    world.journal.until("start app", 2).await;
    let has_both = |s: &PodStatus| s.container_statuses.as_ref().is_some_and(|c| c.len() == 2);
    let status = world
        .status(|s| has_both(s) && of(s, "app").restart_count == 1 && of(s, "app").ready)
        .await;
    let app = of(&status, "app");
    assert_eq!((app.image.as_str(), app.image_id.as_str()), ("a:2", "a:2"));
    assert_eq!(status.phase.as_deref(), Some("Running"));
    for other in ["helper", "proxy"] {
        assert_eq!(world.journal.count(&format!("start {other}")), 1, "{other}");
    }
    assert!(!world.journal.lines().iter().any(|line| line.contains("BackOff")));
    // A sidecar too, and what is on disk has the new images.
    world.set_image("proxy", "p:2");
    world.journal.until("start proxy", 2).await;
    assert_eq!(world.journal.count("start app"), 2);
    let kept = world.dir.read_pod().unwrap().spec.unwrap();
    assert_eq!(kept.containers[0].image.as_deref(), Some("a:2"));
    assert_eq!(kept.init_containers.unwrap()[0].image.as_deref(), Some("p:2"));
}

#[tokio::test(start_paused = true)]
async fn a_server_gets_another_image_without_a_moment_of_not_being_ready() {
    let root = root();
    let hook = json!({"preStop": {"sleep": {"seconds": 1}}});
    let probe = json!({"httpGet": {"path": "/ready", "port": 80}, "periodSeconds": 1, "failureThreshold": 1});
    let world = World::start(
        &root,
        json!({"spec": {"containers": [
            {"name": "server", "image": "s:1", "readinessProbe": probe},
            {"name": "server-with-hook", "image": "h:1", "lifecycle": hook}]}}),
    );
    world.ready().await;
    let before = world.journal.lines().len();
    // One that cannot be had changes nothing but the events.
    world.set_image("server", "missing");
    world.journal.until("event Failed server: Error: no such image", 3).await;
    world.set_image("server", "s:1");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.journal.count("start server"), 1, "it has that image");
    world.set_image("server", "s:2");
    world.journal.until("start server", 2).await;
    let status = world.status(|s| is(s, "server", |c| c.image == "s:2" && c.ready)).await;
    let server = of(&status, "server");
    assert_eq!((server.restart_count, server.image_id.as_str()), (1, "s:2"));
    let last = server.last_state.as_ref().unwrap().terminated.clone().unwrap();
    assert_eq!((last.exit_code, last.reason.as_deref()), (0, Some("Completed")));
    world.journal.until("stop server within 30s", 1).await;
    let at = |line: &str| world.journal.position(line);
    assert!(at("hand over server") < at("stop server within 30s"));
    let lines = world.journal.lines();
    let was_unready = lines[before..].iter().any(|line| line.ends_with("ready=false"));
    assert!(!was_unready, "{lines:#?}");
    // What its probe says counts.
    world.net.broken.lock().push("/ready".to_owned());
    world.status(|s| is(s, "server", |c| !c.ready)).await;
    // A hook comes before the stop.
    world.set_image("server-with-hook", "h:2");
    world.journal.until("start server-with-hook", 2).await;
    assert_eq!(world.journal.count("hand over server-with-hook"), 0);
    assert_eq!(world.journal.count("stop server-with-hook within 29s"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_container_that_waits_for_its_image_waits_no_longer_when_that_changes() {
    let root = root();
    let world =
        World::start(&root, json!({"spec": {"containers": [{"name": "app", "image": "missing"}]}}));
    world.journal.until("event Failed app: Error: no such image", 3).await;
    world.set_image("app", "there");
    let since = Instant::now();
    let status = world.ready().await;
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!((of(&status, "app").restart_count, of(&status, "app").image.as_str()), (0, "there"));
}

#[tokio::test(start_paused = true)]
async fn an_older_version_of_the_pod_changes_nothing() {
    let root = root();
    let world = World::start(
        &root,
        json!({"metadata": {"generation": 3}, "spec": {"containers": [{"name": "app", "image": "a:3"}]}}),
    );
    world.ready().await;
    world.api.change(|pod| {
        pod.metadata.generation = Some(2);
        pod.spec.as_mut().unwrap().containers[0].image = Some("a:2".to_owned());
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.journal.count("start app"), 1);
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_container_joins_a_running_pod_and_changes_nothing_else() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {
        "volumes": [{"name": "data", "emptyDir": {}}],
        "containers": [{"name": "app", "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}}),
    );
    world.ready().await;
    world.debug(json!({"name": "debug", "image": "busybox", "command": ["sh"], "stdin": true,
        "tty": true, "targetContainerName": "app"}));
    world.debugger_runs().await;
    assert_eq!(world.journal.count("event Started debug: Started container debug"), 1);
    let live = world.live.container("debug").unwrap();
    assert!(live.stdin.is_some(), "it can be attached to");
    let mut paths: Vec<_> = live.config.mounts.iter().map(|m| m.guest_path.as_str()).collect();
    paths.sort_unstable();
    let own = ["/", "/dev", "/etc", "/tmp"];
    let of_target =
        ["/proc/1/root/data", "/proc/1/root/dev", "/proc/1/root/etc", "/proc/1/root/tmp"];
    let mut wanted = [own, of_target].concat();
    wanted.sort_unstable();
    assert_eq!(paths, wanted);

    // The pod is as ready as before, and what happens in it does not reach the debugger.
    world.exit("app", 1);
    world.journal.until("start app", 2).await;
    let status = world.ready().await;
    assert_eq!(status.phase.as_deref(), Some("Running"));
    assert_eq!(world.journal.count("stop debug within 2s"), 0);
    world.exit("debug", 5);
    let ended = world.debugger(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some())).await;
    let code = ended.state.unwrap().terminated.unwrap().exit_code;
    assert_eq!((code, ended.restart_count, ended.ready), (5, 0, false));
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!((world.journal.count("start debug"), world.journal.count("start app")), (1, 2));
    let status = world.api.statuses.borrow().clone();
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!((status.phase.as_deref(), ready.status.as_str()), (Some("Running"), "True"));

    // The next agent knows that it is over.
    let dir = world.dir.clone();
    let mut pod = world.api.seen.lock().as_ref().unwrap().borrow().as_ref().clone();
    world.cut().await;
    assert!(dir.read_pod().unwrap().spec.unwrap().ephemeral_containers.is_some());
    pod.status = Some(status);
    let world = World::with(&root, pod);
    world.ready().await;
    assert_eq!(world.journal.count("start debug"), 0);
}

#[tokio::test(start_paused = true)]
async fn a_pod_does_not_wait_for_an_ephemeral_container_and_ends_with_it() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    world.debug(json!({"name": "other", "image": "missing"}));
    world.journal.until("event Failed other: Error: no such image", 2).await;
    world.exit("app", 1);
    world.journal.until("start app", 2).await;
    world.debug(json!({"name": "debug", "image": "busybox"}));
    world.debugger_runs().await;
    let status = world.ready().await;
    let other = status.ephemeral_container_statuses.unwrap();
    let other = other.iter().find(|c| c.name == "other").unwrap();
    assert!(waiting(other).0.contains("ErrImagePull"), "{other:?}");
    world.delete(10);
    world.journal.until("worker ended", 1).await;
    assert_eq!(world.journal.count("stop debug within 10s"), 1);
    assert_eq!(world.journal.count("start other"), 0);
    assert!(!world.dir.has_pod());
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_done_whatever_its_ephemeral_containers_do() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    world.debug(json!({"name": "debug", "image": "busybox"}));
    world.debugger_runs().await;
    world.exit("app", 0);
    world.phase("Succeeded").await;
    assert_eq!(world.journal.count("stop debug within 30s"), 1);
    // And one whose target is not there is not started.
    let root = self::root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    world.debug(json!({"name": "debug", "image": "b", "targetContainerName": "nobody"}));
    let status = world.debugger(|c| waiting(c).0 == "RunContainerError").await;
    assert_eq!(waiting(&status).1, "unable to find target container \"nobody\"");
}
