//! `edgeorc delete`.

use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::api::{ACCEPT_JSON, Session};
use super::args::{Delete, Global};
use super::exit::{self, Failure};
use super::progress::Progress;
use super::target::{self, Target};
use super::{get, output, selector, wait};
use crate::api::meta;
use crate::config::Environment;

/// How often the object is looked for while waiting.
const POLL: Duration = Duration::from_millis(100);
/// What `deploy` makes, in the order in which it is taken away.
const APP_KINDS: &[&str] = &["ingress", "service", "deployment"];

/// Deletes objects and waits until they are gone; of an app, until its pods are gone as well.
pub(super) async fn run(
    delete: Delete,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let targets = targets(&delete.what)?;
    let session = Session::open(global, environment).await?;
    let is_app = is_app(&delete.what);
    let mut deleted = Vec::new();
    let mut pods = Vec::new();
    for target in targets {
        let path = target.path(Some(&session.namespace));
        let name = target.name.as_deref().unwrap_or_default();
        if is_app && delete.wait && target.resource.plural == "deployments" {
            pods.extend(Pods::of(&session, &path).await);
        }
        let body = json!({"propagationPolicy": "Background"});
        match session.json(Method::DELETE, &path, ACCEPT_JSON, Some(&body)).await {
            Ok(answer) => {
                output::data_line(&format!("{} \"{name}\" deleted", target.resource.singular))?;
                deleted.push((path, uid_of(&answer)));
            }
            // An app may have lost a part already.
            Err(refused) if (is_app || delete.ignore_not_found) && refused.is_not_found() => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    if deleted.is_empty() && !delete.ignore_not_found {
        return Err(Failure::failed("found nothing to delete"));
    }
    if !delete.wait {
        return Ok(());
    }
    let deadline = Deadline { at: Instant::now() + delete.timeout, limit: delete.timeout };
    let mut progress = Progress::start("waiting until the objects are gone");
    for (path, uid) in &deleted {
        until_gone(&session, path, uid.as_deref(), deadline).await?;
    }
    for pods in &pods {
        pods.until_gone(&session, deadline, &mut progress).await?;
    }
    progress.finish();
    Ok(())
}

/// The uid of what is deleted: of the object itself, or in the details of a Status.
fn uid_of(answer: &Value) -> Option<String> {
    ["/details/uid", "/metadata/uid"]
        .iter()
        .find_map(|path| answer.pointer(path).and_then(Value::as_str))
        .map(str::to_owned)
}

fn is_app(what: &[String]) -> bool {
    what.first().is_some_and(|word| word == "app" || word.starts_with("app/"))
}

fn targets(what: &[String]) -> Result<Vec<Target>, Failure> {
    let targets = if is_app(what) {
        let mut targets = Vec::new();
        let names = what.iter().filter_map(|w| match w.split_once('/') {
            Some((_, name)) => Some(name),
            None => (w != "app").then_some(w.as_str()),
        });
        for name in names {
            for kind in APP_KINDS {
                targets.extend(target::parse(&[format!("{kind}/{name}")])?);
            }
        }
        targets
    } else {
        target::parse(what)?
    };
    if targets.is_empty() || targets.iter().any(|t| t.name.is_none()) {
        return Err(Failure::with(
            exit::USAGE,
            "name the objects to delete, for example `pod/hello-abc`",
        ));
    }
    Ok(targets)
}

/// When to give up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    /// The moment.
    pub(super) at: Instant,
    /// How long that was, for the message.
    pub(super) limit: Duration,
}

impl Deadline {
    /// Sleeps a little; fails when the time is over.
    async fn pause(self, what: &str) -> Result<(), Failure> {
        if Instant::now() >= self.at {
            return Err(Failure::with(
                exit::TIMEOUT,
                format!(
                    "{what} still there after {} s; --timeout waits longer",
                    self.limit.as_secs()
                ),
            ));
        }
        sleep(POLL).await;
        Ok(())
    }
}

/// Waits until the object at `path` is gone, or another one (by `uid`) has taken its name.
pub(super) async fn until_gone(
    session: &Session,
    path: &str,
    uid: Option<&str>,
    deadline: Deadline,
) -> Result<(), Failure> {
    loop {
        match session.get(path, ACCEPT_JSON).await {
            Ok(object) if uid.is_some_and(|uid| uid != meta::uid(&object)) => return Ok(()),
            Err(refused) if refused.is_not_found() => return Ok(()),
            Err(refused) if !refused.is_transient() => return Err(refused.into()),
            _ => deadline.pause(&format!("{path} is")).await?,
        }
    }
}

/// The pods of a Deployment that is about to go.
struct Pods {
    name: String,
    path: String,
    /// Of the Deployment's ReplicaSets: an app that is deployed again at once has others.
    sets: Vec<String>,
}

impl Pods {
    /// Looked up before the Deployment is deleted: after it, nothing tells which pods were its.
    async fn of(session: &Session, deployment: &str) -> Option<Self> {
        let deployment = session.get(deployment, ACCEPT_JSON).await.ok()?;
        let selector = get::escape(&selector::of(&deployment));
        let namespace = &session.namespace;
        let sets =
            format!("/apis/apps/v1/namespaces/{namespace}/replicasets?labelSelector={selector}");
        let sets = session.get(&sets, ACCEPT_JSON).await.ok()?;
        Some(Self {
            name: meta::name(&deployment).to_owned(),
            path: format!("/api/v1/namespaces/{namespace}/pods?labelSelector={selector}"),
            sets: sets_of(&deployment, wait::items(&sets)),
        })
    }

    async fn until_gone(
        &self,
        session: &Session,
        deadline: Deadline,
        progress: &mut Progress,
    ) -> Result<(), Failure> {
        loop {
            let left = match session.get(&self.path, ACCEPT_JSON).await {
                Ok(pods) => count_of(&self.sets, wait::items(&pods)),
                Err(refused) if refused.is_transient() => usize::MAX,
                Err(refused) => return Err(refused.into()),
            };
            let what = match left {
                0 => return Ok(()),
                usize::MAX => "the API server does not answer; the pods may be".to_owned(),
                1 => format!("1 pod of {} is", self.name),
                many => format!("{many} pods of {} are", self.name),
            };
            progress.step(&format!("waiting: {what} still there"));
            deadline.pause(&what).await?;
        }
    }
}

/// The uids of a Deployment's ReplicaSets.
fn sets_of(deployment: &Value, sets: &[Value]) -> Vec<String> {
    let uid = meta::uid(deployment);
    let own = sets.iter().filter(|set| wait::is_controlled_by(set, uid));
    own.map(|set| meta::uid(set).to_owned()).collect()
}

/// How many pods belong to one of the sets.
fn count_of(sets: &[String], pods: &[Value]) -> usize {
    pods.iter().filter(|pod| sets.iter().any(|set| wait::is_controlled_by(pod, set))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(uid: &str, owner: &str) -> Value {
        json!({"metadata": {"uid": uid, "ownerReferences": [{"uid": owner, "controller": true}]}})
    }

    #[test]
    fn the_pods_of_an_app_are_those_of_its_own_replica_sets() {
        let deployment = json!({"metadata": {"uid": "d"}});
        let sets = sets_of(&deployment, &[owned("rs1", "d"), owned("rs2", "d"), owned("x", "y")]);
        assert_eq!(sets, ["rs1", "rs2"]);
        let pods = [owned("p", "rs1"), owned("q", "rs2"), owned("of-the-next-app", "rs3")];
        assert_eq!(count_of(&sets, &pods), 2);
    }

    #[test]
    fn an_app_is_its_ingress_service_and_deployment() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let kinds: Vec<_> =
            targets(&words("app hello")).unwrap().iter().map(|t| t.resource.kind).collect();
        assert_eq!(kinds, ["Ingress", "Service", "Deployment"]);
        assert_eq!(targets(&words("app/a app/b")).unwrap().len(), 6);
        assert!(targets(&words("pods")).is_err());
    }
}
