//! `edgeorc events`, and the events at the end of `describe`.

use clap::Args;
use futures_util::TryStreamExt as _;
use http::Method;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use serde_json::Value;

use super::api::{ACCEPT_JSON, ApiError, Session, build, chain};
use super::args::{Global, OutputFormat};
use super::exit::Failure;
use super::{get, output, target, wait};
use crate::api::{meta, table};
use crate::config::Environment;
use crate::rt::WallClock;

/// Longest line of a watch, in bytes.
const LINE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// `edgeorc events`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc events\n  edgeorc events --for pod/hello-abc -w\n  \
    edgeorc events -A --types Warning")]
pub(super) struct Events {
    /// Only about this object
    #[arg(long = "for", value_name = "KIND/NAME")]
    about: Option<String>,
    /// Only of these types, with commas: Normal, Warning
    #[arg(long, value_name = "TYPES", value_delimiter = ',')]
    types: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Go on as events happen
    #[arg(short, long)]
    watch: bool,
    /// Format of the output
    #[arg(short, long, value_enum)]
    output: Option<OutputFormat>,
}

/// Lists events, oldest first.
pub(super) async fn run(
    events: Events,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let about = match &events.about {
        Some(word) => Some(target::parse_one(std::slice::from_ref(word))?),
        None => None,
    };
    let session = Session::open(global, environment).await?;
    let mut query = String::new();
    if let Some(target) = &about {
        let name = target.name.as_deref().unwrap_or_default();
        let selector =
            format!("involvedObject.kind={},involvedObject.name={name}", target.resource.kind);
        query = format!("fieldSelector={}", get::escape(&selector));
    }
    let path = if events.all_namespaces {
        "/api/v1/events".to_owned()
    } else {
        format!("/api/v1/namespaces/{}/events", session.namespace)
    };
    let list = session.get(&format!("{path}?{query}"), ACCEPT_JSON).await?;
    let mut items: Vec<Value> = wait::items(&list).to_vec();
    items.retain(|event| is_of_types(event, &events.types));
    items.sort_by_key(|event| last_seen(event).map(str::to_owned));
    if let Some(format @ (OutputFormat::Json | OutputFormat::Yaml)) = events.output {
        let mut list = list;
        if let Some(list) = list.as_object_mut() {
            list.insert("items".to_owned(), items.into());
        }
        return output::document(&list, format);
    }
    let now = WallClock::system().now();
    if items.is_empty() && !events.watch {
        output::words("No events found.");
        return Ok(());
    }
    let mut rows = vec![head(events.all_namespaces)];
    rows.extend(items.iter().map(|event| row(event, events.all_namespaces, now)));
    output::data(&output::columns(&rows))?;
    if !events.watch {
        return Ok(());
    }
    let revision = meta::resource_version(&list).to_owned();
    let path = format!("{path}?{query}");
    tokio::select! {
        ended = follow(&session, &path, revision, &events) => ended,
        () = output::reader_gone() => Err(Failure::reader_gone()),
    }
}

/// Prints events as they come, from `revision` on.
async fn follow(
    session: &Session,
    path: &str,
    mut revision: String,
    events: &Events,
) -> Result<(), Failure> {
    let unreachable = |cause: kube::Error| Failure::from(ApiError::Unreachable(chain(&cause)));
    loop {
        let path = format!("{path}&watch=true&allowWatchBookmarks=true&resourceVersion={revision}");
        let request = build(Method::GET, &path, ACCEPT_JSON, ACCEPT_JSON, Vec::new())?;
        let answer = session.client.send(request).await.map_err(unreachable)?;
        if !answer.status().is_success() {
            return Err(Failure::failed(format!("cannot watch events: {}", answer.status())));
        }
        let mut body = answer.into_body().into_data_stream();
        let mut held: Vec<u8> = Vec::new();
        while let Some(chunk) = body.try_next().await.map_err(unreachable)? {
            held.extend_from_slice(&chunk);
            while let Some(end) = held.iter().position(|b| *b == b'\n') {
                let rest = held.split_off(end + 1);
                let line = std::mem::replace(&mut held, rest);
                let change: Value = serde_json::from_slice(&line).unwrap_or_default();
                let kind = change.get("type").and_then(Value::as_str).unwrap_or_default();
                let Some(object) = change.get("object") else { continue };
                if kind == "ERROR" {
                    let message = object.get("message").and_then(Value::as_str);
                    let message = message.unwrap_or("the watch broke");
                    return Err(Failure::failed(format!("cannot watch events: {message}")));
                }
                meta::resource_version(object).clone_into(&mut revision);
                if matches!(kind, "ADDED" | "MODIFIED") && is_of_types(object, &events.types) {
                    let now = WallClock::system().now();
                    let row = row(object, events.all_namespaces, now);
                    output::data(&output::columns(&[row]))?;
                }
            }
            if held.len() > LINE_BYTES_MAX {
                return Err(Failure::failed("cannot watch events: one is too long"));
            }
        }
    }
}

fn is_of_types(event: &Value, types: &[String]) -> bool {
    let of = event.get("type").and_then(Value::as_str).unwrap_or_default();
    types.is_empty() || types.iter().any(|wanted| wanted.eq_ignore_ascii_case(of))
}

fn head(with_namespace: bool) -> Vec<String> {
    let columns = ["LAST SEEN", "TYPE", "REASON", "OBJECT", "MESSAGE"];
    let namespace = with_namespace.then_some("NAMESPACE");
    namespace.into_iter().chain(columns).map(str::to_owned).collect()
}

fn row(event: &Value, with_namespace: bool, now: Timestamp) -> Vec<String> {
    let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let object = format!("{}/{}", text("/involvedObject/kind"), text("/involvedObject/name"));
    let namespace = with_namespace.then(|| meta::namespace(event).to_owned());
    let cells = [
        age(event, now),
        text("/type").to_owned(),
        text("/reason").to_owned(),
        object,
        text("/message").trim().to_owned(),
    ];
    namespace.into_iter().chain(cells).collect()
}

/// When it happened last: `series`, `lastTimestamp`, `eventTime`, `firstTimestamp`.
fn last_seen(event: &Value) -> Option<&str> {
    ["/series/lastObservedTime", "/lastTimestamp", "/eventTime", "/firstTimestamp"]
        .iter()
        .filter_map(|path| event.pointer(path).and_then(Value::as_str))
        .find(|time| !time.is_empty())
}

/// `5s`, or `5s (x3 over 2m)` when it happened more than once.
fn age(event: &Value, now: Timestamp) -> String {
    let last = table::since(last_seen(event), now);
    let count = ["/series/count", "/count"]
        .iter()
        .find_map(|path| event.pointer(path).and_then(Value::as_u64))
        .unwrap_or(1);
    if count < 2 {
        return last;
    }
    let first = event.pointer("/firstTimestamp").and_then(Value::as_str);
    format!("{last} (x{count} over {})", table::since(first.or(last_seen(event)), now))
}

/// The events about an object as `describe` ends: oldest first.
pub(super) async fn about(
    session: &Session,
    object: &Value,
    kind: &str,
) -> Result<String, Failure> {
    let selector = if kind == "Node" {
        // Events about nodes carry the node's name as uid, as kubelet's do.
        format!("involvedObject.kind=Node,involvedObject.name={}", meta::name(object))
    } else {
        format!("involvedObject.uid={}", meta::uid(object))
    };
    let path = format!("/api/v1/events?fieldSelector={}", get::escape(&selector));
    let list = session.get(&path, ACCEPT_JSON).await?;
    Ok(section(wait::items(&list), WallClock::system().now()))
}

fn section(events: &[Value], now: Timestamp) -> String {
    if events.is_empty() {
        return "Events:  <none>\n".to_owned();
    }
    let mut sorted: Vec<_> = events.iter().collect();
    sorted.sort_by_key(|event| last_seen(event).map(str::to_owned));
    let columns = ["Type", "Reason", "Age", "From", "Message"];
    let mut rows = vec![
        columns.map(str::to_owned).to_vec(),
        columns.map(|name| "-".repeat(name.len())).to_vec(),
    ];
    for event in sorted {
        let text = |path: &str| event.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let from = Some(text("/source/component")).filter(|from| !from.is_empty());
        rows.push(vec![
            text("/type").to_owned(),
            text("/reason").to_owned(),
            age(event, now),
            from.unwrap_or(text("/reportingComponent")).to_owned(),
            text("/message").trim().to_owned(),
        ]);
    }
    let table = output::columns(&rows);
    let indented: String = table.lines().map(|line| format!("  {line}\n")).collect();
    format!("Events:\n{indented}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn events_are_told_as_kubectl_tells_them() {
        let event = |reason: &str, last: &str, count: u64| {
            json!({
                "type": "Normal", "reason": reason, "count": count, "message": "m\n",
                "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": last,
                "source": {"component": "agent"},
                "involvedObject": {"kind": "Pod", "name": "p"},
            })
        };
        let now: Timestamp = "2026-01-01T00:01:00Z".parse().unwrap();
        let late = event("Pulled", "2026-01-01T00:00:50Z", 3);
        let early = event("Created", "2026-01-01T00:00:00Z", 1);
        assert_eq!(
            section(&[late.clone(), early], now),
            "Events:\n  \
               Type     Reason    Age                 From    Message\n  \
               ----     ------    ---                 ----    -------\n  \
               Normal   Created   60s                 agent   m\n  \
               Normal   Pulled    10s (x3 over 60s)   agent   m\n"
        );
        assert_eq!(section(&[], now), "Events:  <none>\n");
        assert_eq!(row(&late, false, now)[3], "Pod/p");
        assert!(is_of_types(&late, &["normal".into()]) && !is_of_types(&late, &["Warning".into()]));
    }
}
