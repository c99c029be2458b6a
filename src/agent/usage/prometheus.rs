//! Kubelet's `/metrics/resource`, in Prometheus' text format.

use std::fmt::Write as _;

use jiff::Timestamp;

use crate::agent::usage::NodeUse;

/// The text.
pub(super) fn text(node: &NodeUse) -> String {
    let at = node.time.as_millisecond();
    let mut out = String::new();
    let containers = || {
        node.pods.iter().flat_map(|pod| {
            pod.containers.iter().map(move |container| {
                let labels = format!(
                    "container=\"{}\",namespace=\"{}\",pod=\"{}\"",
                    container.name,
                    pod.namespace(),
                    pod.name()
                );
                (labels, container)
            })
        })
    };
    let pods = || {
        let running = node.pods.iter().filter(|pod| !pod.containers.is_empty());
        running
            .map(|pod| (format!("namespace=\"{}\",pod=\"{}\"", pod.namespace(), pod.name()), pod))
    };
    family(
        &mut out,
        ("container_cpu_usage_seconds_total", "counter"),
        "Cumulative cpu time consumed by the container in core-seconds",
        containers().map(|(labels, one)| (labels, one.cpu.total.as_secs_f64().to_string(), at)),
    );
    family(
        &mut out,
        ("container_memory_working_set_bytes", "gauge"),
        "Current working set of the container in bytes",
        containers().map(|(labels, one)| (labels, one.memory_bytes.to_string(), at)),
    );
    family(
        &mut out,
        ("container_start_time_seconds", "gauge"),
        "Start time of the container since unix epoch in seconds",
        containers().map(|(labels, one)| (labels, unix(one.since), at)),
    );
    family(
        &mut out,
        ("node_cpu_usage_seconds_total", "counter"),
        "Cumulative cpu time consumed by the node in core-seconds",
        [(String::new(), node.cpu.total.as_secs_f64().to_string(), at)],
    );
    family(
        &mut out,
        ("node_memory_working_set_bytes", "gauge"),
        "Current working set of the node in bytes",
        [(String::new(), node.figures.memory_used_bytes().to_string(), at)],
    );
    family(
        &mut out,
        ("pod_cpu_usage_seconds_total", "counter"),
        "Cumulative cpu time consumed by the pod in core-seconds",
        pods().map(|(labels, one)| (labels, one.cpu.total.as_secs_f64().to_string(), at)),
    );
    family(
        &mut out,
        ("pod_memory_working_set_bytes", "gauge"),
        "Current working set of the pod in bytes",
        pods().map(|(labels, one)| (labels, one.memory_bytes.to_string(), at)),
    );
    out.push_str("# HELP resource_scrape_error [STABLE] 1 if there was an error while getting container metrics, 0 otherwise\n# TYPE resource_scrape_error gauge\nresource_scrape_error 0\n");
    out
}

/// One metric with its samples: labels, value, time in milliseconds.
fn family(
    out: &mut String,
    (name, kind): (&str, &str),
    help: &str,
    samples: impl IntoIterator<Item = (String, String, i64)>,
) {
    let mut samples = samples.into_iter().peekable();
    if samples.peek().is_none() {
        return;
    }
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP {name} [STABLE] {help}\n# TYPE {name} {kind}");
    for (labels, value, at) in samples {
        let _ = if labels.is_empty() {
            writeln!(out, "{name} {value} {at}")
        } else {
            writeln!(out, "{name}{{{labels}}} {value} {at}")
        };
    }
}

fn unix(time: Timestamp) -> String {
    let millis = time.as_millisecond();
    format!("{}.{:03}", millis.div_euclid(1000), millis.rem_euclid(1000))
}
