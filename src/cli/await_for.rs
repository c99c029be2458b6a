//! `edgeorc wait`.

use std::time::Duration;

use clap::Args;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::api::{ACCEPT_JSON, ApiError, Session};
use super::args::Global;
use super::delete::{Deadline, until_gone};
use super::exit::{self, Failure};
use super::jsonpath::{self, JsonPath};
use super::target::{self, Target};
use super::words::duration;
use super::{get, output, wait};
use crate::api::meta;
use crate::config::Environment;

/// How often an object is looked at.
const POLL: Duration = Duration::from_millis(100);

/// `edgeorc wait`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc wait deploy/hello --for condition=Available\n  \
    edgeorc wait pods -l app.kubernetes.io/name=hello --for condition=Ready --timeout 1m\n  \
    edgeorc wait pod/hello-5d8c-abcde --for jsonpath='{.status.phase}'=Running\n  \
    edgeorc wait pod/hello-5d8c-abcde --for delete")]
pub(super) struct Wait {
    /// KIND/NAME, or KIND and NAMEs, or KIND with --selector or --all
    #[arg(required = true, value_name = "KIND[/NAME]")]
    what: Vec<String>,
    /// condition=NAME[=VALUE], jsonpath='{PATH}'[=VALUE], create, or delete
    #[arg(long = "for", value_name = "WISH", value_parser = Wish::parse)]
    wish: Wish,
    /// How long to wait: seconds, or for example 2m30s
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    timeout: Duration,
    /// The objects with these labels
    #[arg(short = 'l', long, conflicts_with = "all")]
    selector: Option<String>,
    /// All objects of the kind
    #[arg(long)]
    all: bool,
}

/// What is waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    /// A condition has this status.
    Condition { name: String, status: String },
    /// A path leads to this value, or to any when there is none.
    Path { path: JsonPath, value: Option<String> },
    /// The object is there.
    Create,
    /// The object is gone.
    Delete,
}

impl Wish {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(condition) = text.strip_prefix("condition=") {
            let (name, status) = condition.split_once('=').unwrap_or((condition, "True"));
            if name.is_empty() {
                return Err("name a condition, for example condition=Ready".to_owned());
            }
            return Ok(Self::Condition { name: name.to_owned(), status: status.to_owned() });
        }
        if let Some(path) = text.strip_prefix("jsonpath=") {
            // The value stands behind the braces: a filter inside them has equal signs as well.
            let (path, value) = match path.rfind('}').and_then(|at| path.split_at_checked(at + 1)) {
                Some((path, value)) => (path, value.strip_prefix('=')),
                None => path.split_once('=').map_or((path, None), |(p, v)| (p, Some(v))),
            };
            let value = value.map(|value| value.trim_matches(['\'', '"']).to_owned());
            return Ok(Self::Path { path: JsonPath::parse(path)?, value });
        }
        match text {
            "create" => Ok(Self::Create),
            "delete" => Ok(Self::Delete),
            _ => Err("write condition=NAME, jsonpath='{PATH}'=VALUE, create, or delete".to_owned()),
        }
    }

    /// Whether the object is as wished.
    fn is_met(&self, object: &Value) -> bool {
        match self {
            Self::Create => true,
            Self::Delete => false,
            Self::Path { path, value } => {
                let found = path.find(object);
                match value {
                    Some(value) => found.iter().any(|found| jsonpath::text(found) == *value),
                    None => !found.is_empty(),
                }
            }
            Self::Condition { name, status } => {
                let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
                conditions.into_iter().flatten().any(|condition| {
                    let text =
                        |key: &str| condition.get(key).and_then(Value::as_str).unwrap_or_default();
                    text("type").eq_ignore_ascii_case(name)
                        && text("status").eq_ignore_ascii_case(status)
                        && !is_stale(condition, object)
                })
            }
        }
    }
}

/// Whether the condition, or the whole status, is about an older spec.
fn is_stale(condition: &Value, object: &Value) -> bool {
    let seen = condition
        .get("observedGeneration")
        .or_else(|| object.pointer("/status/observedGeneration"))
        .and_then(Value::as_i64);
    seen.is_some_and(|seen| seen < meta::generation(object))
}

/// Waits for each of the objects.
pub(super) async fn run(
    flags: Wait,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let targets = target::parse(&flags.what)?;
    let session = Session::open(global, environment).await?;
    let deadline = Deadline { at: Instant::now() + flags.timeout, limit: flags.timeout };
    let mut objects = Vec::new();
    for target in targets {
        objects.extend(named(&session, target, &flags).await?);
    }
    if objects.is_empty() && flags.wish != Wish::Delete {
        return Err(Failure::failed("no matching resources found"));
    }
    for (target, uid) in objects {
        let path = target.path(Some(&session.namespace));
        match flags.wish {
            Wish::Delete => until_gone(&session, &path, uid.as_deref(), deadline).await?,
            _ => until_met(&session, &path, &flags.wish, deadline).await?,
        }
        let name = target.name.unwrap_or_default();
        let resource = target.resource;
        let group = if resource.group.is_empty() { "" } else { "." };
        output::data_line(&format!(
            "{}{group}{}/{name} condition met",
            resource.singular, resource.group
        ))?;
    }
    Ok(())
}

/// The objects of a target with their uids, where they are known.
async fn named(
    session: &Session,
    target: Target,
    flags: &Wait,
) -> Result<Vec<(Target, Option<String>)>, Failure> {
    if target.name.is_some() {
        return Ok(vec![(target, None)]);
    }
    let mut path = target.path(Some(&session.namespace));
    match &flags.selector {
        Some(selector) => path.push_str(&format!("?labelSelector={}", get::escape(selector))),
        None if flags.all => {}
        None => {
            let text = "name the objects, for example `pod/hello-abc`, or set --selector or --all";
            return Err(Failure::with(exit::USAGE, text));
        }
    }
    let list = session.get(&path, ACCEPT_JSON).await?;
    let of = |object: &Value| {
        let name = Some(meta::name(object).to_owned());
        (Target { resource: target.resource, name }, Some(meta::uid(object).to_owned()))
    };
    Ok(wait::items(&list).iter().map(of).collect())
}

async fn until_met(
    session: &Session,
    path: &str,
    wish: &Wish,
    deadline: Deadline,
) -> Result<(), Failure> {
    loop {
        match session.get(path, ACCEPT_JSON).await {
            Ok(object) if wish.is_met(&object) => return Ok(()),
            Err(error) if error.is_not_found() && *wish == Wish::Create => {}
            Err(error @ ApiError::Refused { .. }) if !error.is_transient() => {
                return Err(error.into());
            }
            Ok(_) | Err(_) => {}
        }
        if Instant::now() >= deadline.at {
            return Err(Failure::with(
                exit::TIMEOUT,
                format!("timed out after {} s waiting for {path}", deadline.limit.as_secs()),
            ));
        }
        sleep(POLL).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_condition_counts_when_it_is_about_the_newest_spec() {
        let wish = Wish::parse("condition=available").unwrap();
        let mut object = json!({
            "metadata": {"generation": 2},
            "status": {
                "observedGeneration": 1,
                "conditions": [{"type": "Available", "status": "True"}],
            },
        });
        assert!(!wish.is_met(&object));
        object["status"]["observedGeneration"] = json!(2);
        assert!(wish.is_met(&object));
        assert!(!Wish::parse("condition=Available=false").unwrap().is_met(&object));
    }

    #[test]
    fn a_path_may_have_a_value_behind_its_braces() {
        let object = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        assert!(Wish::parse(path).unwrap().is_met(&object));
        assert!(Wish::parse(&format!("{path}=True")).unwrap().is_met(&object));
        assert!(!Wish::parse(&format!("{path}=False")).unwrap().is_met(&object));
        for bad in ["", "ready", "condition=", "jsonpath={.a"] {
            assert!(Wish::parse(bad).is_err(), "{bad}");
        }
    }
}
