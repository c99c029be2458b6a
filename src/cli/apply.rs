//! `edgeorc apply`: kubectl's client-side apply.

use std::path::PathBuf;

use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::api::{ACCEPT_JSON, Session};
use super::args::Global;
use super::documents::{self, Document};
use super::exit::Failure;
use super::output;
use super::target::collection;
use crate::api::{self, Resource, meta, patch};
use crate::config::Environment;

/// Annotation with the object as it was applied last; kubectl's own, so that both tools may take
/// turns.
pub(super) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Who writes, in managed fields.
const FIELD_MANAGER: &str = "fieldManager=edgeorc-apply";

/// `edgeorc apply`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  edgeorc apply -f app.yaml\n  edgeorc apply -f manifests/ -R\n  \
    cat app.yaml | edgeorc apply -f -\n\n\
    Objects are applied in the order of the files. One that fails does not keep the others."
)]
pub(super) struct Apply {
    /// File or folder with objects in YAML or JSON; `-` is standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE|DIR|-")]
    filename: Vec<PathBuf>,
    /// Look into the folders of a folder as well
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// What came of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Created,
    Configured,
    Unchanged,
}

impl Outcome {
    fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
        }
    }
}

/// Creates or updates the objects of the files.
pub(super) async fn run(
    apply: Apply,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let documents = documents::read(&apply.filename, apply.recursive)?;
    if documents.is_empty() {
        return Err(Failure::failed("no objects were passed to apply"));
    }
    let session = Session::open(global, environment).await?;
    let count = documents.len();
    let mut failed = Vec::new();
    for Document { place, object } in documents {
        let applied = match object.and_then(|object| prepare(object, &session, global)) {
            Ok((resource, object)) => one(&session, resource, object).await,
            Err(why) => Err(Failure::failed(why)),
        };
        match applied {
            Ok(line) => output::data_line(&line)?,
            Err(failure) if failure.message.is_empty() => return Err(failure),
            Err(failure) => failed.push((place, failure)),
        }
    }
    let last = failed.pop();
    for (place, failure) in &failed {
        output::words(&format!("error: {place}: {failure}"));
    }
    match last {
        None => Ok(()),
        Some((place, failure)) if count == 1 => {
            Err(Failure::with(failure.code, format!("{place}: {failure}")))
        }
        Some((place, failure)) => Err(Failure::failed(format!("{place}: {failure}"))),
    }
}

/// Finds the resource of an object and sets its namespace.
fn prepare(
    mut object: Value,
    session: &Session,
    global: &Global,
) -> Result<(&'static Resource, Value), String> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if !object.is_object() || api_version.is_empty() || kind.is_empty() {
        return Err("an object has to set apiVersion and kind".to_owned());
    }
    let (group, version) = meta::split_api_version(&api_version);
    let resource = api::find_kind(group, version, &kind)
        .ok_or_else(|| format!("the server has no kind {kind:?} in version {api_version:?}"))?;
    if meta::name(&object).is_empty() {
        return Err(format!("the {kind} has no metadata.name"));
    }
    if resource.is_namespaced {
        let own = meta::namespace(&object).to_owned();
        if let Some(asked) = &global.namespace
            && !own.is_empty()
            && own != *asked
        {
            return Err(format!(
                "the namespace {own:?} of the {kind} is not {asked:?}, which --namespace names"
            ));
        }
        if own.is_empty() {
            meta::set_namespace(&mut object, &session.namespace);
        }
    }
    Ok((resource, object))
}

/// Creates or patches one object; the line for the user.
async fn one(
    session: &Session,
    resource: &'static Resource,
    wanted: Value,
) -> Result<String, Failure> {
    let name = meta::name(&wanted).to_owned();
    let namespace = meta::namespace(&wanted).to_owned();
    let all = collection(resource, Some(&namespace));
    let path = format!("{all}/{name}");
    let wanted = annotated(wanted);
    let outcome = match session.get(&path, ACCEPT_JSON).await {
        Ok(live) => {
            let patch = patch::three_way(resource, &last_applied(&live), &wanted);
            if is_change(resource, &live, &patch) {
                let path = format!("{path}?{FIELD_MANAGER}");
                let kind = "application/strategic-merge-patch+json";
                session.json(Method::PATCH, &path, kind, Some(&patch)).await?;
                Outcome::Configured
            } else {
                Outcome::Unchanged
            }
        }
        Err(refused) if refused.is_not_found() => {
            let path = format!("{all}?{FIELD_MANAGER}");
            session.json(Method::POST, &path, ACCEPT_JSON, Some(&wanted)).await?;
            Outcome::Created
        }
        Err(refused) => return Err(refused.into()),
    };
    let group = if resource.group.is_empty() { "" } else { "." };
    let (singular, of) = (resource.singular, resource.group);
    Ok(format!("{singular}{group}{of}/{name} {}", outcome.word()))
}

/// With the annotation that remembers what was asked for.
fn annotated(mut object: Value) -> Value {
    let annotations = |object: &mut Value| -> Option<serde_json::Map<String, Value>> {
        let metadata = object.get_mut("metadata")?.as_object_mut()?;
        let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
        if !annotations.is_object() {
            *annotations = json!({});
        }
        annotations.as_object().cloned()
    };
    let Some(mut own) = annotations(&mut object) else { return object };
    own.remove(LAST_APPLIED);
    meta::set_field(&mut object, "annotations", own.clone());
    own.insert(LAST_APPLIED.to_owned(), json!(format!("{object}\n")));
    meta::set_field(&mut object, "annotations", own);
    object
}

/// What was applied before; null when nothing was, or by somebody who does not say.
fn last_applied(live: &Value) -> Value {
    let text = meta::annotation(live, LAST_APPLIED).unwrap_or_default();
    serde_json::from_str(text).unwrap_or_default()
}

/// Whether the patch would make the object another one.
fn is_change(resource: &Resource, live: &Value, change: &Value) -> bool {
    let mut after = live.clone();
    patch::strategic(resource, &mut after, change).is_err() || after != *live
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: &str) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "c", "namespace": "n"}, "data": {"k": value},
        })
    }

    #[test]
    fn an_object_remembers_what_was_asked_for_and_not_what_was_asked_for_before() {
        let once = annotated(map("1"));
        assert_eq!(last_applied(&once)["data"]["k"], "1");
        let twice = annotated(once.clone());
        assert_eq!(twice, once, "the annotation is not part of itself");
    }

    #[test]
    fn applying_again_changes_nothing_and_a_key_left_out_is_taken_away() {
        let resource = api::find_kind("", "v1", "ConfigMap").unwrap();
        let mut live = annotated(map("1"));
        meta::set_resource_version(&mut live, 7);
        let again = patch::three_way(resource, &last_applied(&live), &annotated(map("1")));
        assert!(!is_change(resource, &live, &again), "{again}");
        let mut without = map("1");
        without["data"] = json!({"other": "2"});
        let change = patch::three_way(resource, &last_applied(&live), &annotated(without));
        assert!(is_change(resource, &live, &change));
        patch::strategic(resource, &mut live, &change).unwrap();
        assert_eq!(live["data"], json!({"other": "2"}));
    }
}
