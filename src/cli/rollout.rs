//! `edgeorc rollout`.

use std::time::Duration;

use clap::{Args, Subcommand};
use http::Method;
use serde_json::{Value, json};

use super::api::{ACCEPT_JSON, Session};
use super::args::Global;
use super::exit::{self, Failure};
use super::progress::Progress;
use super::target::{self, Target};
use super::wait::{self, Rollout, revision};
use super::words::duration;
use super::{describe, get, output, selector};
use crate::api::meta;
use crate::config::Environment;
use crate::rt::WallClock;

/// Annotation of the template whose change starts a rollout; kubectl's own.
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
/// Annotation that says why a revision was made.
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
/// Label that the controller adds to a template.
const HASH_LABEL: &str = "pod-template-hash";

/// `edgeorc rollout`.
#[derive(Debug, Subcommand)]
pub(super) enum RolloutVerb {
    /// Wait until the newest template runs everywhere
    #[command(after_help = "Example:\n  edgeorc rollout status deploy/hello --timeout 2m")]
    Status(Status),
    /// Replace all pods, one after the other
    #[command(after_help = "Example:\n  edgeorc rollout restart deploy/hello")]
    Restart(Which),
    /// List the revisions that can be gone back to, or show one
    #[command(after_help = "Examples:\n  edgeorc rollout history deploy/hello\n  \
        edgeorc rollout history deploy/hello --revision 2")]
    History(History),
    /// Go back to an earlier revision
    #[command(after_help = "Examples:\n  edgeorc rollout undo deploy/hello\n  \
        edgeorc rollout undo deploy/hello --to-revision 2")]
    Undo(Undo),
}

/// Which deployment.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// deploy/NAME, or `deploy NAME`
    #[arg(required = true, num_args = 1..=2, value_name = "deploy/NAME")]
    what: Vec<String>,
}

/// `edgeorc rollout status`.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    which: Which,
    /// How long to wait: seconds, or for example 2m30s; 0 waits for a day
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = duration)]
    timeout: Duration,
    /// Wait for the end; otherwise tell where it is
    #[arg(
        short, long, value_name = "BOOL", default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set
    )]
    watch: bool,
}

/// `edgeorc rollout history`.
#[derive(Debug, Args)]
pub(super) struct History {
    #[command(flatten)]
    which: Which,
    /// Show the pod template of this revision
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
}

/// `edgeorc rollout undo`.
#[derive(Debug, Args)]
pub(super) struct Undo {
    #[command(flatten)]
    which: Which,
    /// The revision [default: the one before the present]
    #[arg(long, value_name = "N")]
    to_revision: Option<u64>,
}

/// The longest wait when the user sets none.
const DAY: Duration = Duration::from_secs(86_400);

/// A deployment of the user.
struct Subject {
    session: Session,
    name: String,
    path: String,
}

impl Subject {
    async fn open(
        which: &Which,
        global: &Global,
        environment: &Environment,
    ) -> Result<Self, Failure> {
        let Target { resource, name } = target::parse_one(&which.what)?;
        if resource.plural != "deployments" {
            let text = format!("{} have no rollouts; name a deployment", resource.plural);
            return Err(Failure::with(exit::USAGE, text));
        }
        let session = Session::open(global, environment).await?;
        let path = Target { resource, name: name.clone() }.path(Some(&session.namespace));
        Ok(Self { session, name: name.unwrap_or_default(), path })
    }

    async fn deployment(&self) -> Result<Value, Failure> {
        Ok(self.session.get(&self.path, ACCEPT_JSON).await?)
    }

    /// Its ReplicaSets, oldest revision first.
    async fn sets(&self, deployment: &Value) -> Result<Vec<Value>, Failure> {
        let path = format!(
            "/apis/apps/v1/namespaces/{}/replicasets?labelSelector={}",
            self.session.namespace,
            get::escape(&selector::of(deployment))
        );
        let list = self.session.get(&path, ACCEPT_JSON).await?;
        let uid = meta::uid(deployment);
        let own = wait::items(&list).iter().filter(|set| wait::is_controlled_by(set, uid));
        let mut own: Vec<_> = own.cloned().collect();
        own.sort_by_key(revision);
        Ok(own)
    }

    async fn patch(&self, content_type: &str, patch: &Value) -> Result<(), Failure> {
        self.session.json(Method::PATCH, &self.path, content_type, Some(patch)).await?;
        Ok(())
    }
}

/// Runs one of the rollout verbs.
pub(super) async fn run(
    verb: RolloutVerb,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    match verb {
        RolloutVerb::Status(flags) => {
            status(&flags, &Subject::open(&flags.which, global, environment).await?).await
        }
        RolloutVerb::Restart(which) => {
            restart(&Subject::open(&which, global, environment).await?).await
        }
        RolloutVerb::History(flags) => {
            history(&flags, &Subject::open(&flags.which, global, environment).await?).await
        }
        RolloutVerb::Undo(flags) => {
            undo(&flags, &Subject::open(&flags.which, global, environment).await?).await
        }
    }
}

async fn status(flags: &Status, subject: &Subject) -> Result<(), Failure> {
    let name = &subject.name;
    if !flags.watch {
        return match Rollout::of(&subject.deployment().await?) {
            Rollout::Done => done(name),
            Rollout::Unseen => output::data_line(&format!(
                "Waiting for deployment {name:?}: its newest spec has not been seen yet"
            )),
            Rollout::Going(step) => output::data_line(&format!(
                "Waiting for deployment {name:?} rollout to finish: {step}"
            )),
            Rollout::Failed(why) => {
                Err(Failure::failed(format!("{name} is not rolled out: {why}")))
            }
        };
    }
    // A deployment that is not there is told at once.
    subject.deployment().await?;
    let limit = if flags.timeout.is_zero() { DAY } else { flags.timeout };
    let mut progress = Progress::start(&format!("waiting for deployment {name:?}"));
    let patience = wait::Patience { limit, settle: Duration::ZERO, since: None };
    wait::until_ready(&subject.session, name, patience, &mut progress).await?;
    progress.finish();
    done(name)
}

fn done(name: &str) -> Result<(), Failure> {
    output::data_line(&format!("deployment {name:?} successfully rolled out"))
}

async fn restart(subject: &Subject) -> Result<(), Failure> {
    let now = WallClock::system().now_rfc3339();
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now}}}}});
    subject.patch("application/merge-patch+json", &patch).await?;
    output::data_line(&format!("deployment.apps/{} restarted", subject.name))
}

async fn history(flags: &History, subject: &Subject) -> Result<(), Failure> {
    let deployment = subject.deployment().await?;
    let sets = subject.sets(&deployment).await?;
    let name = &subject.name;
    if let Some(wanted) = flags.revision {
        let set = sets.iter().find(|set| revision(set) == wanted).ok_or_else(|| {
            Failure::failed(format!("deployment {name:?} has no revision {wanted}"))
        })?;
        let template = set.pointer("/spec/template").cloned().unwrap_or_default();
        let text = describe::template(&template);
        return output::data(&format!("deployment.apps/{name} with revision #{wanted}\n{text}"));
    }
    let mut rows = vec![vec!["REVISION".to_owned(), "CHANGE-CAUSE".to_owned()]];
    for set in &sets {
        let cause = meta::annotation(set, CHANGE_CAUSE).unwrap_or("<none>");
        rows.push(vec![revision(set).to_string(), cause.to_owned()]);
    }
    output::data(&format!("deployment.apps/{name}\n{}", output::columns(&rows)))
}

async fn undo(flags: &Undo, subject: &Subject) -> Result<(), Failure> {
    let deployment = subject.deployment().await?;
    let sets = subject.sets(&deployment).await?;
    let name = &subject.name;
    let set = earlier(&sets, flags.to_revision).ok_or_else(|| match flags.to_revision {
        Some(wanted) => Failure::failed(format!("deployment {name:?} has no revision {wanted}")),
        None => Failure::failed(format!("deployment {name:?} has no earlier revision")),
    })?;
    let template = template_of(set);
    let patch = json!([{"op": "replace", "path": "/spec/template", "value": template}]);
    subject.patch("application/json-patch+json", &patch).await?;
    output::data_line(&format!("deployment.apps/{name} rolled back to revision {}", revision(set)))
}

/// The set of `wanted`, or the last but one of those sorted by revision.
fn earlier(sets: &[Value], wanted: Option<u64>) -> Option<&Value> {
    match wanted.filter(|wanted| *wanted > 0) {
        Some(wanted) => sets.iter().find(|set| revision(set) == wanted),
        None => sets.iter().rev().nth(1),
    }
}

/// The template as the user wrote it: without the controller's label.
fn template_of(set: &Value) -> Value {
    let mut template = set.pointer("/spec/template").cloned().unwrap_or_default();
    let labels = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut);
    if let Some(labels) = labels {
        labels.remove(HASH_LABEL);
    }
    template
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undo_takes_the_revision_before_the_present_one_or_the_one_named() {
        let set = |n: u64| {
            json!({
                "metadata": {"annotations": {wait::REVISION: n.to_string()}},
                "spec": {"template": {"metadata": {"labels": {"a": "b", HASH_LABEL: "x"}}}},
            })
        };
        let sets = [set(1), set(3), set(4)];
        assert_eq!(earlier(&sets, None).map(revision), Some(3));
        assert_eq!(earlier(&sets, Some(1)).map(revision), Some(1));
        assert_eq!(earlier(&sets, Some(2)), None);
        assert_eq!(earlier(&sets[..1], None), None);
        assert_eq!(template_of(&sets[0]), json!({"metadata": {"labels": {"a": "b"}}}));
    }
}
