//! How pods end: by themselves, by their deadline, by deletion.

use super::*;
use crate::agent::backlog::Backlog;

#[tokio::test(start_paused = true)]
async fn policy_and_exit_codes_give_the_phase() {
    for (policy, codes, phase) in [
        ("Never", [0, 0], "Succeeded"),
        ("Never", [0, 2], "Failed"),
        ("OnFailure", [0, 0], "Succeeded"),
    ] {
        let root = root();
        let world = World::start(
            &root,
            json!({"spec": {"restartPolicy": policy,
            "containers": [{"name": "a"}, {"name": "b"}]}}),
        );
        world.ready().await;
        world.exit("a", codes[0]);
        world.exit("b", codes[1]);
        let status = world.phase(phase).await;
        let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").unwrap();
        let reason = if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" };
        assert_eq!(ready.reason.as_deref(), Some(reason));
    }
    for (policy, code) in [("Always", 0), ("Always", 1), ("OnFailure", 1)] {
        let root = root();
        let world = World::start(
            &root,
            json!({"spec": {"restartPolicy": policy,
            "containers": [{"name": "a"}]}}),
        );
        world.ready().await;
        world.exit("a", code);
        world.journal.until("start a", 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn deletion_takes_the_pod_out_of_the_endpoints_runs_hooks_and_stops_in_order() {
    let root = root();
    let pre_stop = |path: &str| json!({"preStop": {"httpGet": {"path": path, "port": 80}}});
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [
            {"name": "first", "restartPolicy": "Always", "lifecycle": pre_stop("/bye-first")},
            {"name": "second", "restartPolicy": "Always"}],
        "containers": [{"name": "app", "lifecycle": pre_stop("/bye-app")}, {"name": "helper"}]}}),
    );
    world.ready().await;
    world.journal.until("status Running ready=true", 1).await;
    world.delete(20);
    world.journal.until("worker ended", 1).await;
    let order = [
        "event Killing app: Stopping container app",
        "status Running ready=false",
        "GET /bye-app",
        "stop app within 20s",
        "stop second within 20s",
        "GET /bye-first",
        "stop first within 20s",
        "destroy",
        "api delete",
        "worker ended",
    ];
    let lines = world.journal.lines();
    let deleted = world.journal.position(order[0]);
    let at: Vec<usize> = order
        .iter()
        .map(|wanted| {
            let found = lines[deleted..].iter().position(|line| line == wanted);
            found.unwrap_or_else(|| panic!("{wanted:?} is not in {lines:#?}"))
        })
        .collect();
    assert!(at.is_sorted(), "{at:?} {lines:#?}");
    assert!(!world.dir.has_pod(), "its files are gone");
}

#[tokio::test(start_paused = true)]
async fn hooks_and_containers_share_one_grace_time() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {
        "initContainers": [{"name": "stubborn-proxy", "restartPolicy": "Always"}],
        "containers": [{"name": "stubborn-app", "lifecycle": {"preStop": {"sleep": {"seconds": 60}}}}]}}),
    );
    world.ready().await;
    let since = Instant::now();
    world.delete(10);
    world.journal.until("worker ended", 1).await;
    // Two containers that do not obey get the least time each, once the hook has used up all.
    assert!(since.elapsed() < Duration::from_secs(10 + 2 + 2 + 1), "{:?}", since.elapsed());
    world
        .journal
        .until(
            "event FailedPreStopHook stubborn-app: the hook took longer than the grace period",
            1,
        )
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_grace_that_is_shortened_while_the_pod_ends_counts() {
    let spec = json!({"spec": {"containers": [{"name": "stubborn",
        "lifecycle": {"preStop": {"sleep": {"seconds": 600}}}}]}});
    for is_forced in [false, true] {
        let root = root();
        let world = World::start(&root, spec.clone());
        world.ready().await;
        world.delete(3600);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let since = Instant::now();
        if is_forced {
            world.api.seen.lock().take();
        } else {
            world.delete(1);
        }
        world.journal.until("worker ended", 1).await;
        assert!(since.elapsed() < Duration::from_secs(6), "{is_forced}: {:?}", since.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_gone_from_the_api_is_stopped_and_forgotten() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    world.api.seen.lock().take();
    world.journal.until("worker ended", 1).await;
    assert_eq!(world.journal.count("api delete"), 0);
    assert!(!world.dir.has_pod());
}

#[tokio::test(start_paused = true)]
async fn an_active_deadline_ends_the_pod() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"activeDeadlineSeconds": 60,
        "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    let since = Instant::now();
    let status = world.phase("Failed").await;
    assert!((59..62).contains(&since.elapsed().as_secs()), "{:?}", since.elapsed());
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
    assert_eq!(
        status.message.as_deref(),
        Some("Pod was active on the node longer than the specified deadline")
    );
    assert_eq!(world.journal.count("stop app within 30s"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_lowered_while_the_pod_runs_counts() {
    let root = root();
    let world = World::start(&root, json!({"spec": {"containers": [{"name": "app"}]}}));
    world.ready().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    assert_eq!(world.journal.count("destroy"), 0);
    world.api.change(|pod| pod.spec.as_mut().unwrap().active_deadline_seconds = Some(5));
    let status = world.phase("Failed").await;
    assert_eq!(status.reason.as_deref(), Some("DeadlineExceeded"));
}

#[tokio::test(start_paused = true)]
async fn last_words_are_in_the_status() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "app"}]}}),
    );
    world.ready().await;
    std::fs::write(world.dir.termination("app").join("termination-log"), "out of paper").unwrap();
    world.exit("app", 4);
    let status = world.phase("Failed").await;
    let ended = of(&status, "app").state.clone().unwrap().terminated.unwrap();
    assert_eq!(ended.message.as_deref(), Some("out of paper"));
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_has_ended_gives_its_address_back() {
    let root = root();
    let world = World::start(
        &root,
        json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "app"}]}}),
    );
    let had = world.ready().await.pod_ip.unwrap();
    world.exit("app", 0);
    world.phase("Succeeded").await;
    world.shared.ipam.reserve("other", &[had.parse().unwrap()]);
    let dir = Dirs::create(root.path().to_owned()).unwrap().pod("other");
    let ips = world.shared.ipam.addresses("other", &dir, &Backlog::default()).await.unwrap();
    assert_eq!(ips, [had.parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test(start_paused = true)]
async fn whoever_watches_a_deletion_sees_how_the_pod_ended() {
    for (container, phase) in [("app", "Failed"), ("polite", "Succeeded")] {
        let root = root();
        let world = World::start(&root, json!({"spec": {"containers": [{"name": container}]}}));
        world.ready().await;
        world.delete(10);
        world.journal.until("worker ended", 1).await;
        let last = format!("status {phase} ready=false");
        assert!(world.journal.position(&last) < world.journal.position("api delete"));
        let status = world.api.statuses.borrow().clone();
        let ended = of(&status, container).state.clone().unwrap().terminated.unwrap();
        assert_eq!(ended.exit_code, if phase == "Failed" { 137 } else { 0 });
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_probed_any_more_once_the_pod_ends() {
    let root = root();
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 80}, "periodSeconds": 1});
    let world = World::start(
        &root,
        json!({"spec": {"containers": [{"name": "stubborn",
            "livenessProbe": probe("/live"), "readinessProbe": probe("/ready")}]}}),
    );
    world.ready().await;
    world.delete(20);
    world.journal.until("event Killing stubborn: Stopping container stubborn", 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = world.journal.count("GET /live") + world.journal.count("GET /ready");
    world.journal.until("worker ended", 1).await;
    let after = world.journal.count("GET /live") + world.journal.count("GET /ready");
    assert_eq!(before, after);
}
