//! `edgeorc get`.

use serde_json::{Value, json};

use super::api::{ACCEPT_JSON, ACCEPT_TABLE, Session};
use super::args::{Get, Global, OutputFormat};
use super::exit::Failure;
use super::output;
use super::target::{self, Target};
use crate::config::Environment;

/// Lists or shows objects.
pub(super) async fn run(
    get: Get,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let targets = target::parse(&get.what)?;
    let session = Session::open(global, environment).await?;
    match get.output {
        None | Some(OutputFormat::Wide) => tables(&get, &session, &targets).await,
        Some(OutputFormat::Name) => names(&get, &session, &targets).await,
        Some(format) => {
            let mut items = Vec::new();
            for target in &targets {
                items.extend(objects(&get, &session, target).await?);
            }
            let is_single = targets.len() == 1 && targets.iter().all(|t| t.name.is_some());
            match (is_single, items.pop()) {
                (true, Some(only)) => output::document(&only, format),
                (_, last) => {
                    items.extend(last);
                    let list =
                        json!({"apiVersion": "v1", "kind": "List", "items": items, "metadata": {}});
                    output::document(&list, format)
                }
            }
        }
    }
}

/// Path with the query that the flags ask for.
fn path(get: &Get, session: &Session, target: &Target) -> String {
    let namespace = (!get.all_namespaces).then_some(session.namespace.as_str());
    let path = target.path(namespace);
    match (&get.selector, &target.name) {
        (Some(selector), None) => format!("{path}?labelSelector={}", escape(selector)),
        _ => path,
    }
}

/// Percent-encodes what a query value may not hold.
pub(super) fn escape(text: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/,()!".contains(&b);
    text.bytes()
        .map(|b| if is_plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The objects of one target, with apiVersion and kind on each.
async fn objects(get: &Get, session: &Session, target: &Target) -> Result<Vec<Value>, Failure> {
    let answer = session.get(&path(get, session, target), ACCEPT_JSON).await?;
    if target.name.is_some() {
        return Ok(vec![answer]);
    }
    let resource = target.resource;
    let api_version = if resource.group.is_empty() {
        resource.version.to_owned()
    } else {
        format!("{}/{}", resource.group, resource.version)
    };
    let items = answer.get("items").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(items
        .into_iter()
        .map(|mut item| {
            if let Some(fields) = item.as_object_mut() {
                fields.insert("apiVersion".into(), json!(api_version));
                fields.insert("kind".into(), json!(resource.kind));
            }
            item
        })
        .collect())
}

async fn names(get: &Get, session: &Session, targets: &[Target]) -> Result<(), Failure> {
    for target in targets {
        for item in objects(get, session, target).await? {
            let name = item.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default();
            let resource = target.resource;
            let group = if resource.group.is_empty() {
                String::new()
            } else {
                format!(".{}", resource.group)
            };
            output::data_line(&format!("{}{group}/{name}", resource.singular))?;
        }
    }
    Ok(())
}

/// Prints each target's server-side table.
async fn tables(get: &Get, session: &Session, targets: &[Target]) -> Result<(), Failure> {
    let is_wide = get.output == Some(OutputFormat::Wide);
    let mut is_first = true;
    for target in targets {
        let table = session.get(&path(get, session, target), ACCEPT_TABLE).await?;
        let prefix = (targets.len() > 1).then_some(target.resource.singular);
        let with_namespace = get.all_namespaces && target.resource.is_namespaced;
        let rows = rows(&table, is_wide, with_namespace, prefix);
        if rows.len() < 2 {
            if targets.len() == 1 {
                output::words(&nothing_found(get, session, target));
            }
            continue;
        }
        if !is_first {
            output::data_line("")?;
        }
        is_first = false;
        output::data(&output::columns(&rows))?;
    }
    Ok(())
}

fn nothing_found(get: &Get, session: &Session, target: &Target) -> String {
    if get.all_namespaces || !target.resource.is_namespaced {
        "No resources found".to_owned()
    } else {
        format!("No resources found in {} namespace.", session.namespace)
    }
}

/// Header and cells of a `meta.k8s.io/v1` Table as text.
fn rows(
    table: &Value,
    is_wide: bool,
    with_namespace: bool,
    prefix: Option<&str>,
) -> Vec<Vec<String>> {
    let list = |key: &str| table.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let shown: Vec<(usize, String)> = list("columnDefinitions")
        .iter()
        .enumerate()
        .filter(|(_, c)| is_wide || c.get("priority").and_then(Value::as_i64).unwrap_or(0) == 0)
        .map(|(at, c)| {
            (at, c.get("name").and_then(Value::as_str).unwrap_or_default().to_uppercase())
        })
        .collect();
    let mut head: Vec<String> = shown.iter().map(|(_, name)| name.clone()).collect();
    if with_namespace {
        head.insert(0, "NAMESPACE".to_owned());
    }
    let mut rows = vec![head];
    for row in list("rows") {
        let mut cells: Vec<String> = shown
            .iter()
            .map(|(at, _)| row.pointer(&format!("/cells/{at}")).map(cell).unwrap_or_default())
            .collect();
        if let (Some(prefix), Some(name)) = (prefix, cells.first_mut()) {
            *name = format!("{prefix}/{name}");
        }
        if with_namespace {
            let namespace = row.pointer("/object/metadata/namespace").and_then(Value::as_str);
            cells.insert(0, namespace.unwrap_or_default().to_owned());
        }
        rows.push(cells);
    }
    rows
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_hides_wide_columns_and_can_show_namespaces() {
        let table = json!({
            "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Node", "priority": 1}],
            "rows": [{"cells": ["a", "n1"], "object": {"metadata": {"namespace": "x"}}}]
        });
        assert_eq!(rows(&table, false, false, None), [["NAME"], ["a"]]);
        assert_eq!(rows(&table, true, false, Some("pod")), [["NAME", "NODE"], ["pod/a", "n1"]]);
        assert_eq!(rows(&table, false, true, None), [["NAMESPACE", "NAME"], ["x", "a"]]);
    }

    #[test]
    fn selectors_are_escaped() {
        assert_eq!(escape("a=b,c in (d)"), "a%3Db,c%20in%20(d)");
    }
}
