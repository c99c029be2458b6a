//! Waiting for a Deployment, with an eye on what keeps it.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::api::{ACCEPT_JSON, Session};
use super::exit::{self, Failure};
use super::progress::Progress;
use super::{get, selector};
use crate::api::meta;

/// How often the Deployment is looked at.
const POLL: Duration = Duration::from_millis(50);
/// Restarts after which a crash loop is called a failure.
const RESTARTS_MAX: u64 = 5;
/// Label of a pod with the template it was made of.
const HASH_LABEL: &str = "pod-template-hash";
/// Counts the rollouts, on the Deployment and on its ReplicaSets.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// Waiting reasons that time does not heal.
const HOPELESS: &[&str] = &[
    "RunContainerError",
    "CreateContainerConfigError",
    "CreateContainerError",
    "InvalidImageName",
    "ErrImageNeverPull",
];

/// What a Deployment says of its rollout.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rollout {
    /// Every replica is of the newest template and available.
    Done,
    /// The controller has not seen the newest wish: what the status says is of an older one.
    Unseen,
    /// Still on the way, in words.
    Going(String),
    /// The controller gave up, in words.
    Failed(String),
}

impl Rollout {
    /// Reads it from the object.
    pub(super) fn of(deployment: &Value) -> Self {
        let count = |path: &str| deployment.pointer(path).and_then(Value::as_u64).unwrap_or(0);
        if count("/status/observedGeneration") < count("/metadata/generation") {
            return Self::Unseen;
        }
        let conditions = deployment.pointer("/status/conditions").and_then(Value::as_array);
        let given_up = conditions.into_iter().flatten().find(|condition| {
            condition.get("reason").and_then(Value::as_str) == Some("ProgressDeadlineExceeded")
        });
        if let Some(condition) = given_up {
            let message = condition.get("message").and_then(Value::as_str).unwrap_or_default();
            return Self::Failed(format!("it exceeded its progress deadline: {message}"));
        }
        let wanted = count("/spec/replicas");
        let updated = count("/status/updatedReplicas");
        let ready = count("/status/availableReplicas").min(updated);
        if ready >= wanted && count("/status/replicas") == wanted {
            return Self::Done;
        }
        if ready >= wanted {
            let old = count("/status/replicas").saturating_sub(updated);
            return Self::Going(format!("{wanted} of {wanted} pods ready, {old} old pods left"));
        }
        Self::Going(format!("{ready} of {wanted} pods ready"))
    }
}

/// What keeps pods from being ready.
#[derive(Debug, PartialEq, Eq)]
enum Trouble {
    /// Nothing, or nothing yet.
    None,
    /// Time may heal it.
    Passing(String),
    /// It does not.
    Hopeless(String),
}

/// Waits until every replica of the newest template is available.
pub(super) async fn until_ready(
    session: &Session,
    name: &str,
    limit: Duration,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/{name}", session.namespace);
    loop {
        let trouble = match session.get(&path, ACCEPT_JSON).await {
            Ok(deployment) => match Rollout::of(&deployment) {
                Rollout::Done => return Ok(()),
                // Whatever its pods do now is not what was asked for.
                Rollout::Unseen => None,
                Rollout::Failed(why) => {
                    let trouble = trouble(session, &deployment).await;
                    let more = match trouble {
                        Trouble::None => String::new(),
                        Trouble::Passing(why) | Trouble::Hopeless(why) => format!("; {why}"),
                    };
                    return Err(Failure::failed(format!("{name} is not rolled out: {why}{more}")));
                }
                Rollout::Going(step) => {
                    progress.step(&step);
                    match trouble(session, &deployment).await {
                        Trouble::None => None,
                        Trouble::Passing(why) => Some(why),
                        Trouble::Hopeless(why) => {
                            return Err(Failure::failed(format!("{name} does not start: {why}")));
                        }
                    }
                }
            },
            Err(error) if error.is_transient() => Some("the API server does not answer".to_owned()),
            Err(error) => return Err(error.into()),
        };
        if Instant::now() >= deadline {
            let why = trouble.map(|why| format!("; {why}")).unwrap_or_default();
            return Err(Failure::with(
                exit::TIMEOUT,
                format!("{name} is not ready after {} s{why}", limit.as_secs()),
            ));
        }
        sleep(POLL).await;
    }
}

/// What keeps the pods of the newest template; what cannot be read keeps nothing.
async fn trouble(session: &Session, deployment: &Value) -> Trouble {
    let selector = get::escape(&selector::of(deployment));
    let namespace = &session.namespace;
    let sets = format!("/apis/apps/v1/namespaces/{namespace}/replicasets?labelSelector={selector}");
    let Ok(sets) = session.get(&sets, ACCEPT_JSON).await else { return Trouble::None };
    let Some(newest) = newest_set(deployment, items(&sets)) else { return Trouble::None };
    let pods = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
    let Ok(pods) = session.get(&pods, ACCEPT_JSON).await else { return Trouble::None };
    trouble_of(newest, items(&pods))
}

/// The `items` of a list.
pub(super) fn items(list: &Value) -> &[Value] {
    list.get("items").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The revision that an annotation tells; 0 when none does.
pub(super) fn revision(object: &Value) -> u64 {
    meta::annotation(object, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether `object` is controlled by the object with this uid.
pub(super) fn is_controlled_by(object: &Value, uid: &str) -> bool {
    meta::controller_of(object).and_then(|owner| owner.get("uid")?.as_str()) == Some(uid)
}

/// The ReplicaSet of the Deployment's present template: the one with the highest revision.
fn newest_set<'a>(deployment: &Value, sets: &'a [Value]) -> Option<&'a Value> {
    let uid = meta::uid(deployment);
    sets.iter().filter(|set| is_controlled_by(set, uid)).max_by_key(|set| revision(set))
}

/// What keeps the pods of `set`. Pods of other sets, and those on their way out, do not count.
fn trouble_of(set: &Value, pods: &[Value]) -> Trouble {
    let hash = meta::label(set, HASH_LABEL);
    let is_of_set = |pod: &&Value| {
        is_controlled_by(pod, meta::uid(set))
            && meta::label(pod, HASH_LABEL) == hash
            && meta::deletion_timestamp(pod).is_none()
    };
    let mut found = Trouble::None;
    for pod in pods.iter().filter(is_of_set) {
        match trouble_of_pod(pod) {
            Trouble::None => {}
            hopeless @ Trouble::Hopeless(_) => return hopeless,
            passing @ Trouble::Passing(_) => found = passing,
        }
    }
    found
}

fn trouble_of_pod(pod: &Value) -> Trouble {
    let pod_name = meta::name(pod);
    let list = |path: &str| pod.pointer(path).and_then(Value::as_array).into_iter().flatten();
    let mut found = Trouble::None;
    for status in list("/status/initContainerStatuses").chain(list("/status/containerStatuses")) {
        let text = |path: &str| status.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let reason = text("/state/waiting/reason");
        let last = text("/lastState/terminated/message");
        let message = [text("/state/waiting/message"), last]
            .into_iter()
            .find(|message| !message.is_empty())
            .unwrap_or_default();
        let restarts = status.get("restartCount").and_then(Value::as_u64).unwrap_or(0);
        let sentence = format!("pod {pod_name}: {reason}: {message}");
        if HOPELESS.contains(&reason) || (reason == "CrashLoopBackOff" && restarts >= RESTARTS_MAX)
        {
            return Trouble::Hopeless(sentence);
        }
        if !matches!(reason, "" | "ContainerCreating" | "PodInitializing") {
            found = Trouble::Passing(sentence);
        }
    }
    for condition in list("/status/conditions") {
        if condition.get("reason").and_then(Value::as_str) == Some("Unschedulable") {
            let message = condition.get("message").and_then(Value::as_str).unwrap_or_default();
            found = Trouble::Passing(format!("pod {pod_name} cannot be scheduled: {message}"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn set(uid: &str, revision: &str) -> Value {
        json!({"metadata": {
            "uid": uid, "labels": {"pod-template-hash": uid},
            "annotations": {REVISION: revision},
            "ownerReferences": [{"uid": "d", "controller": true}],
        }})
    }

    fn pod(set: &str, reason: &str) -> Value {
        json!({
            "metadata": {
                "name": format!("p-{set}"), "labels": {"pod-template-hash": set},
                "ownerReferences": [{"uid": set, "controller": true}],
            },
            "status": {"containerStatuses": [
                {"name": "a", "restartCount": 9, "state": {"waiting": {"reason": reason}}}
            ]},
        })
    }

    #[test]
    fn broken_pods_of_an_older_template_do_not_fail_the_fix() {
        let deployment = json!({"metadata": {"uid": "d"}});
        let sets = [set("bad", "1"), set("fix", "2")];
        let newest = newest_set(&deployment, &sets).unwrap();
        assert_eq!(meta::uid(newest), "fix");
        let old = pod("bad", "CreateContainerError");
        let starting = pod("fix", "ContainerCreating");
        assert_eq!(trouble_of(newest, &[old.clone(), starting]), Trouble::None);
        let broken = pod("fix", "CrashLoopBackOff");
        let found = trouble_of(newest, &[old, broken]);
        assert!(matches!(&found, Trouble::Hopeless(why) if why.contains("p-fix")), "{found:?}");
    }

    #[test]
    fn pods_on_their_way_out_and_sets_of_others_do_not_count() {
        let deployment = json!({"metadata": {"uid": "d"}});
        let mut foreign = set("foreign", "9");
        foreign["metadata"]["ownerReferences"][0]["uid"] = json!("other");
        let sets = [foreign, set("own", "1")];
        let newest = newest_set(&deployment, &sets).unwrap();
        assert_eq!(meta::uid(newest), "own");
        let mut leaving = pod("own", "CreateContainerError");
        leaving["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        assert_eq!(trouble_of(newest, &[leaving]), Trouble::None);
    }

    #[test]
    fn a_status_of_an_older_generation_says_nothing() {
        let mut deployment = json!({
            "metadata": {"generation": 2}, "spec": {"replicas": 2},
            "status": {
                "observedGeneration": 1, "replicas": 2, "updatedReplicas": 2,
                "availableReplicas": 2,
            },
        });
        assert_eq!(Rollout::of(&deployment), Rollout::Unseen);
        deployment["status"]["observedGeneration"] = json!(2);
        assert_eq!(Rollout::of(&deployment), Rollout::Done);
        deployment["status"]["replicas"] = json!(3);
        let going = Rollout::Going("2 of 2 pods ready, 1 old pods left".into());
        assert_eq!(Rollout::of(&deployment), going);
        deployment["status"]["conditions"] =
            json!([{"type": "Progressing", "reason": "ProgressDeadlineExceeded"}]);
        assert!(matches!(Rollout::of(&deployment), Rollout::Failed(_)));
    }
}
