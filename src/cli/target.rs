//! What the user means by `deploy/hello`, `po`, `svc,deploy` or `all`.

use super::exit::{self, Failure};
use crate::api::{self, Resource};

/// A kind, with or without a name.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// The resource.
    pub(super) resource: &'static Resource,
    /// Name of one object; `None` is all of them.
    pub(super) name: Option<String>,
}

impl Target {
    /// Path of the object or collection.
    pub(super) fn path(&self, namespace: Option<&str>) -> String {
        let collection = collection(self.resource, namespace);
        match &self.name {
            Some(name) => format!("{collection}/{name}"),
            None => collection,
        }
    }
}

/// Path of a collection; `None` is all namespaces.
pub(super) fn collection(resource: &Resource, namespace: Option<&str>) -> String {
    let root = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    match namespace {
        Some(namespace) if resource.is_namespaced => {
            format!("{root}/namespaces/{namespace}/{}", resource.plural)
        }
        _ => format!("{root}/{}", resource.plural),
    }
}

/// Parses `KIND[,KIND...] [NAME...]` and `KIND/NAME...`.
pub(super) fn parse(words: &[String]) -> Result<Vec<Target>, Failure> {
    let Some((first, rest)) = words.split_first() else {
        return Err(Failure::with(exit::USAGE, "name a kind, for example `pods`"));
    };
    if first.contains('/') {
        return words.iter().map(|word| slashed(word)).collect();
    }
    let mut targets = Vec::new();
    for kind in first.split(',').filter(|kind| !kind.is_empty()) {
        for resource in resolve(kind)? {
            if rest.is_empty() {
                targets.push(Target { resource, name: None });
            }
            for name in rest {
                targets.push(Target { resource, name: Some(name.clone()) });
            }
        }
    }
    Ok(targets)
}

/// Parses exactly one object.
pub(super) fn parse_one(words: &[String]) -> Result<Target, Failure> {
    if let [word] = words
        && !word.contains('/')
    {
        let text = format!(
            "{word:?} does not name one object; write KIND/NAME, for example `deploy/hello`"
        );
        return Err(Failure::with(exit::USAGE, text));
    }
    let mut targets = parse(words)?.into_iter();
    match (targets.next(), targets.next()) {
        (Some(target), None) if target.name.is_some() => Ok(target),
        _ => Err(Failure::with(exit::USAGE, "name one object, for example `deploy/hello`")),
    }
}

fn slashed(word: &str) -> Result<Target, Failure> {
    let (kind, name) = word
        .split_once('/')
        .filter(|(_, name)| !name.is_empty())
        .ok_or_else(|| Failure::with(exit::USAGE, format!("{word:?} is not KIND/NAME")))?;
    let resource = resolve(kind)?.into_iter().next();
    resource
        .map(|resource| Target { resource, name: Some(name.to_owned()) })
        .ok_or_else(|| unknown(kind))
}

/// The resources of a plural, singular, kind, short name, or category.
fn resolve(kind: &str) -> Result<Vec<&'static Resource>, Failure> {
    let kind = kind.to_lowercase();
    let bare = kind.split('.').next().unwrap_or_default();
    let is_named = |r: &&Resource| {
        r.plural == bare
            || r.singular == bare
            || r.kind.to_lowercase() == bare
            || r.short_names.contains(&bare)
    };
    if let Some(resource) = api::resources().iter().find(is_named) {
        return Ok(vec![resource]);
    }
    let of_category: Vec<_> =
        api::resources().iter().filter(|r| r.categories.contains(&bare)).collect();
    if of_category.is_empty() { Err(unknown(&kind)) } else { Ok(of_category) }
}

fn unknown(kind: &str) -> Failure {
    let known: Vec<_> = api::resources().iter().map(|r| r.plural).collect();
    Failure::with(
        exit::USAGE,
        format!("the server has no kind {kind:?}; it has {}", known.join(", ")),
    )
}
