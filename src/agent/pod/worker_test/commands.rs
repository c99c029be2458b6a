//! Commands as probes and hooks.

use super::*;
use crate::agent::command::KEPT_BYTES_MAX;

impl World {
    /// From now on the command ends at once, with this code and output.
    fn answers(&self, command: &str, code: i32, text: &str) {
        self.commands.lock().insert(command.to_owned(), (code, text.to_owned()));
    }

    /// The message of the first event with this beginning.
    async fn event(&self, beginning: &str) -> String {
        let mut lines = self.journal.0.subscribe();
        let has = |lines: &Vec<String>| lines.iter().any(|line| line.starts_with(beginning));
        let found = tokio::time::timeout(PATIENCE, lines.wait_for(has)).await;
        assert!(found.is_ok(), "{beginning:?} never came: {:#?}", self.journal.lines());
        let lines = self.journal.lines();
        let line = lines.iter().find_map(|line| line.strip_prefix(beginning));
        line.unwrap().to_owned()
    }
}

/// A pod of one container with this probe or these hooks.
fn app(more: Value) -> Value {
    let mut app = json!({"name": "app", "env": [{"name": "WHAT", "value": "check"}]});
    json_patch::merge(&mut app, &more);
    json!({"spec": {"containers": [app]}})
}

#[tokio::test(start_paused = true)]
async fn a_commands_exit_code_says_whether_a_container_is_ready() {
    let root = root();
    let probe = json!({"exec": {"command": ["app", "$(WHAT)"]}, "periodSeconds": 1});
    let world = World::start(&root, app(json!({"readinessProbe": probe})));
    world.answers("app check", 0, "");
    world.ready().await;
    world.journal.until("exec in app: app check", 1).await;
    world.answers("app check", 3, "cannot find\nthe sea\n");
    let why = world.event("event Unhealthy app: ").await;
    assert_eq!(why, "Readiness probe failed: cannot find\nthe sea");
    world.status(|s| s.container_statuses.iter().flatten().all(|c| !c.ready)).await;
    world.answers("app check", 0, "");
    world.ready().await;
    assert_eq!(std::fs::read(world.dir.log_file("app", 0)).unwrap(), b"", "no output in the log");
}

#[tokio::test(start_paused = true)]
async fn a_command_that_takes_too_long_is_killed_and_has_failed() {
    let root = root();
    let probe = json!({"exec": {"command": ["app", "check"]}, "timeoutSeconds": 2,
        "periodSeconds": 10, "failureThreshold": 2});
    let world = World::start(&root, app(json!({"livenessProbe": probe})));
    let why = world.event("event Unhealthy app: ").await;
    assert_eq!(why, "Liveness probe failed: command \"app check\" timed out");
    world.journal.until("stop command app check within 0s", 1).await;
    assert_eq!(world.journal.count("stop app within 30s"), 0, "it takes two failures");
    world.journal.until("start app", 2).await;
    assert_eq!(world.journal.count("stop command app check within 0s"), 2);
    let killing =
        "event Killing app: Container app failed liveness probe, will be restarted".to_owned();
    assert!(world.journal.lines().contains(&killing));
}

#[tokio::test(start_paused = true)]
async fn the_beginning_of_a_commands_output_is_told() {
    let root = root();
    let probe = json!({"exec": {"command": ["app", "check"]}, "failureThreshold": 1});
    let world = World::start(&root, app(json!({"startupProbe": probe})));
    world.answers("app check", 1, &"x".repeat(3 * KEPT_BYTES_MAX));
    let why = world.event("event Unhealthy app: Startup probe failed: ").await;
    assert_eq!(why.len(), KEPT_BYTES_MAX);
    world.journal.until("start app", 2).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_whose_command_is_not_there_says_nothing_of_the_container() {
    let root = root();
    let probe = json!({"exec": {"command": ["nobody"]}, "periodSeconds": 1, "failureThreshold": 1});
    let world = World::start(&root, app(json!({"livenessProbe": probe})));
    let why = "event Unhealthy app: Liveness probe errored: exec: \"nobody\": executable file not \
               found in $PATH";
    world.journal.until(why, 5).await;
    assert_eq!(world.journal.count("start app"), 1);
    assert!(of(&world.ready().await, "app").ready);
}

#[tokio::test(start_paused = true)]
async fn a_post_start_command_that_fails_stops_the_container() {
    let root = root();
    let hook = json!({"postStart": {"exec": {"command": ["app", "hello"]}}});
    let world = World::start(&root, app(json!({"lifecycle": hook})));
    world.answers("app hello", 4, "nobody there\n");
    let why = world.event("event FailedPostStartHook app: ").await;
    assert_eq!(why, "command 'app hello' exited with 4: nobody there");
    world.journal.until("stop app within 30s", 1).await;
    world.answers("app hello", 0, "");
    world.ready().await;
}

#[tokio::test(start_paused = true)]
async fn a_pre_stop_command_runs_before_the_stop_and_within_the_grace() {
    let root = root();
    let hook = json!({"preStop": {"exec": {"command": ["app", "bye"]}}});
    let world = World::start(&root, app(json!({"lifecycle": hook})));
    world.answers("app bye", 0, "");
    world.ready().await;
    world.delete(10);
    world.journal.until("worker ended", 1).await;
    let (hook, stop) = ("exec in app: app bye", "stop app within 10s");
    assert!(world.journal.position(hook) < world.journal.position(stop));

    let root = self::root();
    let hook = json!({"preStop": {"exec": {"command": ["app", "bye"]}}});
    let world = World::start(&root, app(json!({"lifecycle": hook})));
    world.ready().await;
    let since = Instant::now();
    world.delete(10);
    world.journal.until("worker ended", 1).await;
    assert!(since.elapsed() < Duration::from_secs(13), "{:?}", since.elapsed());
    let why = world.event("event FailedPreStopHook app: ").await;
    assert_eq!(why, "the hook took longer than the grace period");
    assert_eq!(world.journal.count("stop command app bye within 0s"), 1, "the command is killed");
}
