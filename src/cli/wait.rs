//! Waiting for a Deployment, with an eye on what keeps it.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::api::{ACCEPT_JSON, Session};
use super::exit::{self, Failure};
use super::progress::Progress;
use super::{get, selector};
use crate::api::meta;

/// How often the Deployment is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long a Deployment that is ready has to stay so, with none of its containers starting again.
pub(super) const SETTLE: Duration = Duration::from_millis(500);
/// Pause between two looks at what pods' events tell.
const EVENTS_POLL: Duration = Duration::from_millis(500);
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

/// How long is waited for a Deployment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// Until it is ready.
    pub(super) limit: Duration,
    /// How long it has to stay so.
    pub(super) settle: Duration,
    /// When the only node started: what is told of containers that started before was told by a life of
    /// the node that has ended.
    pub(super) since: Option<Timestamp>,
}

/// Waits until every replica of the newest template is available, and stays so.
pub(super) async fn until_ready(
    session: &Session,
    name: &str,
    Patience { limit, settle, since }: Patience,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let path = format!("/apis/apps/v1/namespaces/{}/deployments/{name}", session.namespace);
    let mut settling = Settling::new(settle);
    let mut events = Events::default();
    loop {
        let trouble = match session.get(&path, ACCEPT_JSON).await {
            Ok(deployment) => match Rollout::of(&deployment) {
                Rollout::Done if settle.is_zero() && since.is_none() => return Ok(()),
                Rollout::Done => {
                    let pods = newest_pods(session, &deployment).await;
                    if since.is_some_and(|since| !are_back(pods.as_deref(), since)) {
                        settling.begin_again();
                    }
                    match pods.as_deref().map_or(Trouble::None, trouble_of) {
                        Trouble::Hopeless(why) => {
                            return Err(Failure::failed(format!(
                                "{name} was ready and does not stay so: {why}"
                            )));
                        }
                        trouble => {
                            if settling.is_over(pods.as_deref().map(restarts), Instant::now()) {
                                return Ok(());
                            }
                            progress.step("all pods ready, looking whether they stay so");
                            trouble.passing()
                        }
                    }
                }
                // Whatever its pods do now is not what was asked for.
                Rollout::Unseen => None,
                Rollout::Failed(why) => {
                    let pods = newest_pods(session, &deployment).await.unwrap_or_default();
                    let more = match trouble_of(&pods) {
                        Trouble::None => String::new(),
                        Trouble::Passing(why) | Trouble::Hopeless(why) => format!("; {why}"),
                    };
                    return Err(Failure::failed(format!("{name} is not rolled out: {why}{more}")));
                }
                Rollout::Going(step) => {
                    settling.begin_again();
                    let pods = newest_pods(session, &deployment).await.unwrap_or_default();
                    let doing = events.doing(session, &pods).await;
                    progress.step(&format!("{step}{doing}"));
                    match trouble_of(&pods) {
                        Trouble::Hopeless(why) => {
                            return Err(Failure::failed(format!("{name} does not start: {why}")));
                        }
                        trouble => trouble.passing(),
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

impl Trouble {
    /// What is told when the time is over.
    fn passing(self) -> Option<String> {
        match self {
            Self::None => None,
            Self::Passing(why) | Self::Hopeless(why) => Some(why),
        }
    }
}

/// Whether a Deployment that is ready stays so.
#[derive(Debug)]
struct Settling {
    time: Duration,
    /// Since when nothing has started again, and how often anything had by then.
    since: Option<(Instant, u64)>,
}

impl Settling {
    fn new(time: Duration) -> Self {
        Self { time, since: None }
    }

    /// It is not ready any more.
    fn begin_again(&mut self) {
        self.since = None;
    }

    /// Notes how often its containers were restarted; `None`: that could not be read.
    fn is_over(&mut self, restarts: Option<u64>, now: Instant) -> bool {
        let Some(restarts) = restarts else { return false };
        match self.since {
            Some((since, had)) if had == restarts => now.duration_since(since) >= self.time,
            _ => {
                self.since = Some((now, restarts));
                false
            }
        }
    }
}

/// What the events of pods tell that their status does not.
#[derive(Debug, Default)]
struct Events {
    looked: Option<Instant>,
    doing: &'static str,
}

impl Events {
    /// What is done for one of the pods now, as the end of a line.
    async fn doing(&mut self, session: &Session, pods: &[Value]) -> &'static str {
        if self.looked.is_some_and(|at| at.elapsed() < EVENTS_POLL) {
            return self.doing;
        }
        self.looked = Some(Instant::now());
        let path = format!(
            "/api/v1/namespaces/{}/events?fieldSelector=involvedObject.kind%3DPod",
            session.namespace
        );
        // Without them the line is shorter.
        if let Ok(events) = session.get(&path, ACCEPT_JSON).await {
            self.doing = doing(pods, items(&events));
        }
        self.doing
    }
}

/// The pods of the newest template; `None`: they cannot be read.
async fn newest_pods(session: &Session, deployment: &Value) -> Option<Vec<Value>> {
    let selector = get::escape(&selector::of(deployment));
    let namespace = &session.namespace;
    let sets = format!("/apis/apps/v1/namespaces/{namespace}/replicasets?labelSelector={selector}");
    let sets = session.get(&sets, ACCEPT_JSON).await.ok()?;
    let newest = newest_set(deployment, items(&sets))?;
    let pods = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}");
    let pods = session.get(&pods, ACCEPT_JSON).await.ok()?;
    Some(pods_of(newest, items(&pods)))
}

/// What the latest event of one of the pods says that is being done.
fn doing(pods: &[Value], events: &[Value]) -> &'static str {
    let text = |event: &'_ Value, path: &str| {
        event.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let is_starting = |pod: &&Value| {
        let reason = "/status/containerStatuses/0/state/waiting/reason";
        let reason = pod.pointer(reason).and_then(Value::as_str).unwrap_or_default();
        matches!(reason, "ContainerCreating" | "PodInitializing")
    };
    for pod in pods.iter().filter(is_starting) {
        let uid = meta::uid(pod);
        let of_pod = events.iter().filter(|event| text(event, "/involvedObject/uid") == uid);
        let last = of_pod.max_by_key(|event| {
            (text(event, "/lastTimestamp"), meta::resource_version(event).parse::<u64>().ok())
        });
        match last.map(|event| text(event, "/reason")).as_deref() {
            Some("Pulling") => return ", pulling the image",
            Some("Compiling") => return ", compiling the component",
            _ => {}
        }
    }
    ""
}

/// How often the containers of the pods were started again.
fn restarts(pods: &[Value]) -> u64 {
    let statuses = pods.iter().flat_map(|pod| {
        let list = |path| pod.pointer(path).and_then(Value::as_array).into_iter().flatten();
        list("/status/initContainerStatuses").chain(list("/status/containerStatuses"))
    });
    statuses.filter_map(|status| status.get("restartCount")?.as_u64()).sum()
}

/// Whether what is told of the pods was told after `since`; `None`: they cannot be read.
fn are_back(pods: Option<&[Value]>, since: Timestamp) -> bool {
    // Kubernetes' times have whole seconds.
    let is_of_now = |status: &Value| {
        let started = status.pointer("/state/running/startedAt").and_then(Value::as_str);
        let started = started.and_then(|text| text.parse::<Timestamp>().ok());
        started.is_some_and(|started| started.as_second() >= since.as_second())
    };
    pods.is_some_and(|pods| {
        pods.iter().all(|pod| {
            let statuses = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
            statuses.is_some_and(|all| all.iter().all(is_of_now))
        })
    })
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

/// The pods of `set` that are not on their way out.
fn pods_of(set: &Value, pods: &[Value]) -> Vec<Value> {
    let hash = meta::label(set, HASH_LABEL);
    let is_of_set = |pod: &&Value| {
        is_controlled_by(pod, meta::uid(set))
            && meta::label(pod, HASH_LABEL) == hash
            && meta::deletion_timestamp(pod).is_none()
    };
    pods.iter().filter(is_of_set).cloned().collect()
}

/// What keeps pods from being ready.
fn trouble_of(pods: &[Value]) -> Trouble {
    let mut found = Trouble::None;
    for pod in pods {
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
        assert_eq!(trouble_of(&pods_of(newest, &[old.clone(), starting])), Trouble::None);
        let broken = pod("fix", "CrashLoopBackOff");
        let found = trouble_of(&pods_of(newest, &[old, broken]));
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
        assert!(pods_of(newest, &[leaving]).is_empty());
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

    #[tokio::test(start_paused = true)]
    async fn what_is_ready_counts_once_nothing_has_started_again_for_a_while() {
        let mut settling = Settling::new(SETTLE);
        let mut ask = |restarts| settling.is_over(restarts, Instant::now());
        assert!(!ask(Some(0)));
        tokio::time::advance(SETTLE / 2).await;
        assert!(!ask(Some(1)), "it has started again");
        tokio::time::advance(SETTLE / 2).await;
        assert!(!ask(Some(1)) && !ask(None));
        tokio::time::advance(SETTLE / 2).await;
        assert!(ask(Some(1)));
        settling.begin_again();
        assert!(!settling.is_over(Some(1), Instant::now()));
    }

    #[test]
    fn what_a_life_of_the_node_told_that_has_ended_does_not_count() {
        let since: Timestamp = "2026-01-01T00:00:10.7Z".parse().unwrap();
        let pod = |state: Value| json!({"status": {"containerStatuses": [{"state": state}]}});
        let running = |at: &str| pod(json!({"running": {"startedAt": at}}));
        let (before, after) = (running("2026-01-01T00:00:09Z"), running("2026-01-01T00:00:10Z"));
        assert!(are_back(Some(std::slice::from_ref(&after)), since));
        assert!(!are_back(Some(&[after, before]), since));
        assert!(!are_back(Some(&[pod(json!({"waiting": {}}))]), since));
        assert!(!are_back(None, since));
    }

    #[test]
    fn the_latest_event_of_a_pod_that_starts_says_what_is_done() {
        let mut starting = pod("new", "ContainerCreating");
        starting["metadata"]["uid"] = json!("p");
        let event = |uid: &str, reason: &str, at: &str| json!({"involvedObject": {"uid": uid}, "reason": reason, "lastTimestamp": at});
        let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z");
        let pulled = [event("p", "Pulling", early), event("p", "Compiling", late)];
        assert_eq!(doing(&[starting.clone()], &pulled), ", compiling the component");
        assert_eq!(doing(&[starting.clone()], &pulled[..1]), ", pulling the image");
        let others = [event("q", "Compiling", late)];
        assert_eq!(doing(&[starting.clone()], &others), "");
        starting["status"] = json!({"containerStatuses": [{"state": {"running": {}}}]});
        assert_eq!(doing(&[starting], &pulled), "", "it runs");
    }
}
