use tokio::time::{Duration, Instant};

use super::*;

/// `i`, `s`, `m` for init, sidecar, main; `w` waiting, `h` running with its postStart hook, `r`
/// running, `R` running and started, a digit for ended with that code, `x` told to end and ended well.
fn containers(text: &str) -> Vec<ContainerRecord> {
    let of = |word: &str| {
        let mut letters = word.chars();
        let role = match letters.next().unwrap() {
            'i' => Role::Init,
            's' => Role::Sidecar,
            _ => Role::Main,
        };
        let at = jiff::Timestamp::UNIX_EPOCH;
        let state = letters.next().unwrap();
        ContainerRecord {
            name: word.to_owned(),
            image: String::new(),
            role,
            state: match state {
                'w' => RunState::Waiting { reason: "", message: String::new() },
                'h' | 'r' | 'R' => {
                    RunState::Running { started_at: at, container_id: String::new() }
                }
                code => RunState::Ended(Ended {
                    code: i32::try_from(code.to_digit(10).unwrap_or(0)).unwrap(),
                    is_stopped: code == 'x',
                    reason: String::new(),
                    message: String::new(),
                    started_at: None,
                    finished_at: at,
                    container_id: String::new(),
                }),
            },
            last: None,
            restart_count: 0,
            image_id: String::new(),
            volume_mounts: Vec::new(),
            ran: Duration::ZERO,
            is_started: state == 'R',
            is_ready: false,
            is_in_post_start: state == 'h',
            is_heir: false,
        }
    };
    text.split(' ').map(of).collect()
}

#[test]
fn the_next_step_follows_from_policy_fate_and_where_the_containers_are() {
    use Fate::{Container, Pod};
    use RestartPolicy::{Always, Never, OnFailure};
    use Step::{Restart, RestartTogether, Start, Wait};
    let failed =
        |message: &str| Step::Finish(Outcome::Failed { reason: None, message: message.to_owned() });
    let succeeded = || Step::Finish(Outcome::Succeeded);
    let cases = [
        (Always, Pod, "iw mw", Start(0)),
        (Always, Pod, "ir mw", Wait(None)),
        (Always, Pod, "i0 mw", Start(1)),
        (Always, Pod, "i1 mw", Restart(0)),
        (Never, Pod, "i1 mw", failed("init container i1 failed with exit code 1")),
        (Never, Pod, "sr mw", Wait(None)),
        (Never, Pod, "sR mw", Start(1)),
        (Never, Pod, "s1 mR", Restart(0)),
        (Never, Pod, "sR m0", succeeded()),
        (Never, Pod, "sR m0 m2", failed("")),
        (Never, Pod, "m0 mR", Wait(None)),
        (OnFailure, Pod, "m0 m0", succeeded()),
        (OnFailure, Pod, "m0 m1", RestartTogether(1)),
        (OnFailure, Container, "m0 m1", Restart(1)),
        (OnFailure, Pod, "m0 mx", RestartTogether(1)),
        (OnFailure, Container, "m0 mx", Restart(1)),
        (Never, Pod, "m0 mx", succeeded()),
        (Always, Pod, "m0", RestartTogether(0)),
        (Always, Container, "mR m0", Restart(1)),
        (Always, Pod, "s1 mR", RestartTogether(0)),
        (Always, Pod, "s1 mw", Restart(0)),
        (Always, Pod, "sR mR mw", Start(2)),
        (Always, Pod, "mR mR", Wait(None)),
    ];
    let now = Instant::now();
    for (policy, fate, text, wanted) in cases {
        let containers = containers(text);
        let due = vec![Due::Now; containers.len()];
        assert_eq!(
            decide(policy, fate, &containers, &due, now),
            wanted,
            "{policy:?} {fate:?} {text}"
        );
    }
}

#[test]
fn a_container_in_back_off_holds_those_behind_it_only_before_the_mains() {
    let now = Instant::now();
    let later = now + Duration::from_secs(1);
    let step = |text: &str, due: &[Due]| {
        decide(RestartPolicy::Always, Fate::Pod, &containers(text), due, now)
    };
    assert_eq!(step("iw mw", &[Due::At(later), Due::Now]), Step::Wait(Some(later)));
    assert_eq!(step("iw mw", &[Due::Never, Due::Now]), Step::Wait(None));
    assert_eq!(step("mw mw", &[Due::At(later), Due::Now]), Step::Start(1));
    assert_eq!(step("mw mR", &[Due::Never, Due::Now]), Step::Wait(None));
    assert_eq!(step("sw mR", &[Due::At(now), Due::Now]), Step::Start(0));
    let mut both = containers("sw mw");
    both[1].last = containers("m1").remove(0).ended().cloned();
    let step = |fate| decide(RestartPolicy::Always, fate, &both, &[Due::At(later), Due::Now], now);
    assert_eq!(step(Fate::Pod), Step::Wait(Some(later)));
    assert_eq!(step(Fate::Container), Step::Start(1), "its fate is its own");
}

#[test]
fn what_is_behind_a_container_that_comes_or_is_in_its_hook_waits() {
    let now = Instant::now();
    let step = |text: &str, due: &[Due]| {
        decide(RestartPolicy::Always, Fate::Pod, &containers(text), due, now)
    };
    assert_eq!(step("mw mw", &[Due::Coming, Due::Now]), Step::Wait(None));
    assert_eq!(step("mR mw mw", &[Due::Now, Due::Coming, Due::Now]), Step::Wait(None));
    assert_eq!(step("mh mw", &[Due::Now, Due::Now]), Step::Wait(None));
    // An end is an end, whatever else is under way.
    assert_eq!(step("m1 mw", &[Due::Now, Due::Coming]), Step::RestartTogether(0));
    assert_eq!(step("m1 mh", &[Due::Now, Due::Now]), Step::RestartTogether(0));
    let later = now + Duration::from_secs(1);
    assert_eq!(step("mw mw", &[Due::At(later), Due::Coming]), Step::Wait(Some(later)));
}
