//! `edgeorc top`: what nodes or containers use, and how that went in the last hour.

use std::time::Duration;

use clap::{Args, ValueEnum};
use futures_util::{StreamExt as _, stream};
use serde_json::{Value, json};

use super::api::{ACCEPT_JSON, Session};
use super::args::Global;
use super::exit::Failure;
use super::output;
use super::words::duration;
use crate::api::json::{int_at, items_at, text_at};
use crate::api::meta;
use crate::api::quantity::format_bytes;
use crate::config::Environment;

/// Nodes asked at once.
const NODES_AT_ONCE: usize = 8;
/// Levels of a line.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Most characters of a line.
const LINE_CHARS_MAX: usize = 30;

/// `edgeorc top`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc top\n  edgeorc top nodes --since 15m\n  \
    edgeorc top pods -A -o json\n\n\
    Nodes keep the last hour in memory, a point for each minute: the mean of CPU, the most memory.\n\
    The lines go from nothing to the most of the time shown.")]
pub(super) struct Top {
    /// Of what
    #[arg(value_enum, default_value_t = What::Pods)]
    what: What,
    /// How far back: seconds, or for example 15m
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    since: Duration,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Format of the output
    #[arg(short, long, value_enum)]
    output: Option<TopFormat>,
}

/// What is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Containers of pods
    #[value(alias = "pod")]
    Pods,
    /// Machines
    #[value(alias = "node")]
    Nodes,
}

/// Formats of `top -o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TopFormat {
    /// One JSON document with all points
    Json,
}

/// Shows use.
pub(super) async fn run(
    top: Top,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let session = Session::open(global, environment).await?;
    let list = session.get("/api/v1/nodes", ACCEPT_JSON).await?;
    let names: Vec<String> =
        items_at(&list, "/items").iter().map(|node| meta::name(node).to_owned()).collect();
    let asked = names.into_iter().map(|name| {
        let session = &session;
        async move {
            let path = format!("/api/v1/nodes/{name}/proxy/stats/history");
            let answer = session.get(&path, ACCEPT_JSON).await;
            (name, answer)
        }
    });
    let answers: Vec<_> = stream::iter(asked).buffered(NODES_AT_ONCE).collect().await;
    let mut lines = Vec::new();
    for (name, answer) in answers {
        match answer {
            Ok(history) => lines.extend(lines_of(&top, &session.namespace, &name, &history)),
            Err(_) => output::words(&format!("node {name} does not answer")),
        }
    }
    if top.output == Some(TopFormat::Json) {
        let text = serde_json::to_string_pretty(&json!({ "items": lines }))
            .map_err(|cause| Failure::failed(format!("cannot write JSON: {cause}")))?;
        return output::data_line(&text);
    }
    output::data(&output::columns(&rows(&top, &lines)))
}

/// What is asked for of a node's history.
fn lines_of(top: &Top, namespace: &str, node: &str, history: &Value) -> Vec<Value> {
    let seconds = int_at(history, "/pointSeconds").unwrap_or(60).max(1);
    let wanted = top.since.as_secs().div_ceil(u64::try_from(seconds).unwrap_or(60)).max(1);
    let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
    let last = |usage: &Value, key: &str| -> Vec<i64> {
        let all = items_at(usage, &format!("/{key}"));
        all.iter().skip(all.len().saturating_sub(wanted)).filter_map(Value::as_i64).collect()
    };
    let line = |about: &Value| {
        let usage = about.get("usage").cloned().unwrap_or_default();
        json!({
            "node": node, "namespace": text_at(about, "/namespace"), "pod": text_at(about, "/pod"),
            "container": text_at(about, "/container"), "pointSeconds": seconds,
            "cpuMillis": last(&usage, "cpuMillis"), "memoryKiB": last(&usage, "memoryKiB"),
        })
    };
    if top.what == What::Nodes {
        return vec![line(history)];
    }
    let is_wanted = |one: &&Value| top.all_namespaces || text_at(one, "/namespace") == namespace;
    items_at(history, "/containers").iter().filter(is_wanted).map(line).collect()
}

fn rows(top: &Top, lines: &[Value]) -> Vec<Vec<String>> {
    let mut head: Vec<&str> = match top.what {
        What::Nodes => vec!["NODE"],
        What::Pods => vec!["POD", "CONTAINER", "NODE"],
    };
    if top.what == What::Pods && top.all_namespaces {
        head.insert(0, "NAMESPACE");
    }
    let figures = ["CPU", "MEMORY", "CPU SO FAR", "MEMORY SO FAR"];
    let mut rows: Vec<Vec<String>> =
        vec![head.iter().chain(&figures).map(|word| (*word).to_owned()).collect()];
    let mut sorted: Vec<&Value> = lines.iter().collect();
    let place = |line: &Value| {
        ["namespace", "pod", "container", "node"]
            .map(|key| text_at(line, &format!("/{key}")).to_owned())
    };
    sorted.sort_by_key(|line| place(line));
    for line in sorted {
        let (cpu, memory) = (points(line, "/cpuMillis"), points(line, "/memoryKiB"));
        let now = |all: &[i64]| all.last().copied().unwrap_or(0);
        let about =
            head.iter().map(|word| text_at(line, &format!("/{}", word.to_lowercase())).to_owned());
        rows.push(
            about
                .chain([
                    format!("{}m", now(&cpu)),
                    format_bytes(now(&memory).saturating_mul(1024)),
                    sparkline(&cpu),
                    sparkline(&memory),
                ])
                .collect(),
        );
    }
    rows
}

fn points(line: &Value, pointer: &str) -> Vec<i64> {
    items_at(line, pointer).iter().filter_map(Value::as_i64).collect()
}

/// A line of blocks, from nothing to the most; what is too long is drawn together.
fn sparkline(points: &[i64]) -> String {
    let together = points.len().div_ceil(LINE_CHARS_MAX).max(1);
    let drawn: Vec<i64> =
        points.chunks(together).map(|some| some.iter().copied().max().unwrap_or(0)).collect();
    let most = drawn.iter().copied().max().unwrap_or(0).max(1);
    let top = i64::try_from(LEVELS.len()).unwrap_or(8) - 1;
    let level = |point: i64| {
        let at = point.max(0).saturating_mul(top).saturating_add(most / 2) / most;
        usize::try_from(at).ok().and_then(|at| LEVELS.get(at)).copied().unwrap_or('█')
    };
    drawn.into_iter().map(level).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_from_nothing_to_the_most() {
        assert_eq!(sparkline(&[]), "");
        assert_eq!(sparkline(&[0, 0]), "▁▁");
        assert_eq!(sparkline(&[0, 50, 100]), "▁▅█");
        assert_eq!(sparkline(&(0..60).collect::<Vec<_>>()).chars().count(), 30);
    }

    #[test]
    fn the_last_minutes_of_the_namespace_are_shown() {
        let history = json!({"pointSeconds": 60, "usage": {"cpuMillis": [5], "memoryKiB": [9]},
        "containers": [
            {"namespace": "default", "pod": "p", "container": "c",
                "usage": {"cpuMillis": [1, 2, 3], "memoryKiB": [1024, 1024, 2048]}},
            {"namespace": "other", "pod": "q", "container": "c", "usage": {}},
        ]});
        let top = |what, all_namespaces| Top {
            what,
            since: Duration::from_secs(120),
            all_namespaces,
            output: None,
        };
        let of = |top: &Top| {
            let lines = lines_of(top, "default", "n", &history);
            rows(top, &lines)
        };
        let pods = of(&top(What::Pods, false));
        assert_eq!(pods.len(), 2);
        assert_eq!(pods[1], ["p", "c", "n", "3m", "2Mi", "▆█", "▅█"]);
        assert_eq!(of(&top(What::Pods, true)).len(), 3);
        assert_eq!(of(&top(What::Nodes, false))[1][..3], ["n", "5m", "9Ki"]);
    }
}
