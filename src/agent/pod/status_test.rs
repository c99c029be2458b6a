//! What a pod's status says, from what its worker knows.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::agent::pod::plan::PodPlan;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn ended(code: i32) -> Ended {
    Ended {
        code,
        is_stopped: false,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: String::new(),
        started_at: Some(at(10)),
        finished_at: at(20),
        container_id: "wasmtime://x".to_owned(),
    }
}

/// `i`, `s`, `m`, `e` for init, sidecar, main, ephemeral; then `w` waiting for its first run, `b`
/// for its next one, `r` running, `R` running, started and ready, or the code of its end.
fn containers(text: &str) -> Vec<ContainerRecord> {
    let of = |word: &str| {
        let mut letters = word.chars();
        let role = match letters.next().unwrap() {
            'i' => Role::Init,
            's' => Role::Sidecar,
            'e' => Role::Ephemeral,
            _ => Role::Main,
        };
        let letter = letters.next().unwrap();
        let waiting = |reason| RunState::Waiting { reason, message: "why".to_owned() };
        ContainerRecord {
            volume_mounts: Vec::new(),
            name: word.to_owned(),
            image: "img:1".to_owned(),
            role,
            state: match letter {
                'w' => waiting("ContainerCreating"),
                'b' => waiting("CrashLoopBackOff"),
                'r' | 'R' => RunState::Running {
                    started_at: at(30),
                    container_id: "wasmtime://x".to_owned(),
                },
                code => RunState::Ended(ended(i32::try_from(code.to_digit(10).unwrap()).unwrap())),
            },
            last: (letter == 'b').then(|| ended(1)),
            restart_count: u32::from(letter == 'b'),
            image_id: "img@sha256:1".to_owned(),
            ran: Duration::ZERO,
            is_started: letter == 'R',
            is_ready: letter == 'R',
            is_in_post_start: false,
            is_heir: false,
        }
    };
    text.split(' ').map(of).collect()
}

fn state(text: &str, is_initialized: bool, outcome: Option<Outcome>) -> PodState {
    let pod = Pod::default();
    let mut state = PodState::new(&PodPlan::read(&pod), &pod, &[], at(1));
    state.containers = containers(text);
    state.is_initialized = is_initialized;
    state.has_sandbox = true;
    state.outcome = outcome;
    state
}

fn failed() -> Option<Outcome> {
    Some(Outcome::Failed { reason: None, message: String::new() })
}

#[test]
fn the_phase_is_kubelets() {
    let succeeded = Some(Outcome::Succeeded);
    for (text, is_initialized, outcome, wanted) in [
        // Initialisation is not over.
        ("iw mw", false, None, "Pending"),
        ("ir mw", false, None, "Pending"),
        ("ib mw", false, None, "Pending"),
        ("i1 mw", false, None, "Pending"),
        ("i0 sw mw", false, None, "Pending"),
        ("i0 sr mw", false, None, "Pending"),
        // It is, but a main never ran.
        ("i0 mw", false, None, "Pending"),
        ("sR mw", false, None, "Pending"),
        ("mR mw", true, None, "Pending"),
        ("mb mw", true, None, "Pending"),
        // All have begun: running, or about to be again.
        ("mR", true, None, "Running"),
        ("mr m0", true, None, "Running"),
        ("mb mR", true, None, "Running"),
        ("mb", true, None, "Running"),
        ("m1", true, None, "Running"),
        ("sb mR", true, None, "Running"),
        ("ew mR", true, None, "Running"),
        // Over.
        ("sR m0 m0", true, succeeded.clone(), "Succeeded"),
        ("s1 m0", true, succeeded, "Succeeded"),
        ("m0 m1", true, failed(), "Failed"),
        ("i1 mw", false, failed(), "Failed"),
    ] {
        assert_eq!(phase(&state(text, is_initialized, outcome)), wanted, "{text}");
    }
}

#[test]
fn a_deleted_pod_succeeded_if_all_its_mains_did() {
    let outcome = |text: &str| state(text, true, None).outcome_of_deletion();
    assert_eq!(outcome("s1 m0 m0"), Some(Outcome::Succeeded));
    assert_eq!(outcome("m0 m1"), failed());
    assert_eq!(outcome("m0 mb"), failed(), "its last run had failed");
    assert_eq!(outcome("m0 mw"), None, "it never began");
    assert_eq!(outcome("iw mw"), None);
}

/// Status, reason and message of a condition.
fn condition(base: &Pod, state: &PodState, kind: &str) -> (String, String, String) {
    let status = pod_status(base, state, at(40));
    let all = status.conditions.unwrap();
    let found = all.into_iter().find(|c| c.type_ == kind).unwrap();
    (found.status, found.reason.unwrap_or_default(), found.message.unwrap_or_default())
}

#[test]
fn conditions_say_what_is_missing() {
    let says = |text: &str, is_initialized, outcome, kind| {
        let (status, reason, message) =
            condition(&Pod::default(), &state(text, is_initialized, outcome), kind);
        format!("{status} {reason} {message}").trim_end().to_owned()
    };
    for (kind, text, is_initialized, outcome, wanted) in [
        (
            "Initialized",
            "ir sw mw",
            false,
            None,
            "False ContainersNotInitialized containers with incomplete status: [ir sw]",
        ),
        ("Initialized", "i0 sR mw", false, None, "True"),
        ("Initialized", "sb mR", true, None, "True"),
        (
            "ContainersReady",
            "i0 sR mr mR",
            true,
            None,
            "False ContainersNotReady containers with unready status: [mr]",
        ),
        (
            "ContainersReady",
            "sr mR",
            true,
            None,
            "False ContainersNotReady containers with unready status: [sr]",
        ),
        ("ContainersReady", "i0 sR mR er", true, None, "True"),
        (
            "Ready",
            "mr",
            true,
            None,
            "False ContainersNotReady containers with unready status: [mr]",
        ),
        ("Ready", "sR mR", true, None, "True"),
        ("Ready", "m0", true, Some(Outcome::Succeeded), "False PodCompleted"),
        ("ContainersReady", "m0", true, Some(Outcome::Succeeded), "False PodCompleted"),
        ("Ready", "m1", true, failed(), "False PodFailed"),
        ("PodReadyToStartContainers", "mw", false, None, "True"),
        ("PodReadyToStartContainers", "m0", true, Some(Outcome::Succeeded), "False"),
    ] {
        assert_eq!(says(text, is_initialized, outcome, kind), wanted, "{kind} {text}");
    }
    let mut fresh = state("mw", false, None);
    fresh.has_sandbox = false;
    let (status, ..) = condition(&Pod::default(), &fresh, "PodReadyToStartContainers");
    assert_eq!(status, "False");
    let mut leaving = state("mR", true, None);
    leaving.is_terminating = true;
    let (status, reason, _) = condition(&Pod::default(), &leaving, "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ContainersNotReady"));
    let (status, ..) = condition(&Pod::default(), &leaving, "ContainersReady");
    assert_eq!(status, "True");
}

#[test]
fn a_readiness_gate_holds_the_pod_and_conditions_of_others_stay() {
    let pod = |gate: &str| -> Pod {
        serde_json::from_value(json!({
            "spec": {"containers": [], "readinessGates": [{"conditionType": "acme.io/lit"}]},
            "status": {"conditions": [
                {"type": "acme.io/lit", "status": gate},
                {"type": "Ready", "status": "False", "lastTransitionTime": "1970-01-01T00:00:05Z"},
                {"type": "PodScheduled", "status": "True"}]}}))
        .unwrap()
    };
    let ready = state("mR", true, None);
    let (status, reason, message) = condition(&pod("False"), &ready, "Ready");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ReadinessGatesNotReady"));
    assert_eq!(
        message,
        "corresponding condition of pod readiness gate \"acme.io/lit\" does not exist or is not True."
    );
    assert_eq!(condition(&pod("True"), &ready, "Ready").0, "True");
    for (gate, since) in [("False", 5), ("True", 40)] {
        let all = pod_status(&pod(gate), &ready, at(40)).conditions.unwrap();
        let of = |kind: &str| all.iter().find(|c| c.type_ == kind).unwrap();
        assert_eq!(of("Ready").last_transition_time, Some(time(at(since))), "{gate}");
        assert_eq!(of("acme.io/lit").status, gate);
        assert_eq!(of("PodScheduled").status, "True");
    }
}

#[test]
fn a_containers_status_says_where_it_is_and_was() {
    let status = pod_status(&Pod::default(), &state("i0 sR mb mr e3", true, None), at(40));
    let of = |list: &Option<Vec<ContainerStatus>>, name: &str| {
        let found = list.iter().flatten().find(|c| c.name == name).unwrap();
        serde_json::to_value(found).unwrap()
    };
    let terminated = |code: i32, reason: &str| {
        json!({"terminated": {"exitCode": code, "reason": reason, "containerID": "wasmtime://x",
            "startedAt": "1970-01-01T00:00:10Z", "finishedAt": "1970-01-01T00:00:20Z"}})
    };
    let running = json!({"running": {"startedAt": "1970-01-01T00:00:30Z"}});
    let back_off = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "why"}});
    let (inits, mains) = (&status.init_container_statuses, &status.container_statuses);
    for (found, state, last, ready, started, restarts) in [
        (of(inits, "i0"), terminated(0, "Completed"), json!({}), true, false, 0),
        (of(inits, "sR"), running.clone(), json!({}), true, true, 0),
        (of(mains, "mb"), back_off, terminated(1, "Error"), false, false, 1),
        (of(mains, "mr"), running, json!({}), false, false, 0),
        (
            of(&status.ephemeral_container_statuses, "e3"),
            terminated(3, "Error"),
            json!({}),
            false,
            false,
            0,
        ),
    ] {
        assert_eq!(found["state"], state);
        assert_eq!(found["lastState"], last, "{found}");
        assert_eq!(
            (&found["ready"], &found["started"]),
            (&json!(ready), &json!(started)),
            "{found}"
        );
        assert_eq!(found["restartCount"], restarts);
        assert_eq!((&found["image"], &found["imageID"]), (&json!("img:1"), &json!("img@sha256:1")));
        assert_eq!(found["containerID"], "wasmtime://x");
    }
}

#[test]
fn the_last_words_of_a_pod_have_12_kib_together() {
    let length = |count: usize| {
        let text = vec!["m1"; count].join(" ");
        let mut pod = state(&text, true, None);
        for record in &mut pod.containers {
            let RunState::Ended(ended) = &mut record.state else { panic!() };
            ended.message = "\u{e4}".repeat(2048);
        }
        let status = pod_status(&Pod::default(), &pod, at(40));
        let first = status.container_statuses.unwrap().remove(0);
        first.state.unwrap().terminated.unwrap().message.unwrap().len()
    };
    assert_eq!(length(1), 4096);
    assert_eq!(length(3), 4096);
    assert_eq!(length(4), 3072);
    assert_eq!(length(5), 2456, "whole characters of 2457 bytes");
}
