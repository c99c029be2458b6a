//! Containers, of a pod or of a template.

use serde_json::Value;

use crate::cli::describe::sheet::{Sheet, entries, list, scalar, text};

/// Writes `Init Containers`, `Containers` and `Ephemeral Containers`; a template has no statuses.
pub(super) fn write_all(sheet: &mut Sheet, level: usize, pod: &Value, has_status: bool) {
    for (title, spec, status) in [
        ("Init Containers", "/spec/initContainers", "/status/initContainerStatuses"),
        ("Containers", "/spec/containers", "/status/containerStatuses"),
        ("Ephemeral Containers", "/spec/ephemeralContainers", "/status/ephemeralContainerStatuses"),
    ] {
        let containers = list(pod, spec);
        if containers.is_empty() {
            continue;
        }
        sheet.head(level, title);
        for container in containers {
            let name = container.get("name");
            let status = list(pod, status).iter().find(|status| status.get("name") == name);
            write(sheet, level + 1, container, has_status.then_some(status));
        }
    }
}

fn write(sheet: &mut Sheet, level: usize, container: &Value, status: Option<Option<&Value>>) {
    sheet.head(level, &text(container, "/name"));
    let inner = level + 1;
    if let Some(Some(status)) = status {
        sheet.known(inner, "Container ID", text(status, "/containerID"));
    }
    sheet.pair(inner, "Image", text(container, "/image"));
    if let Some(Some(status)) = status {
        sheet.known(inner, "Image ID", text(status, "/imageID"));
    }
    let ports = list(container, "/ports").iter().map(|port| {
        let protocol = Some(text(port, "/protocol")).filter(|p| !p.is_empty());
        let protocol = protocol.unwrap_or_else(|| "TCP".to_owned());
        let name = Some(text(port, "/name")).filter(|name| !name.is_empty());
        let name = name.map(|name| format!(" ({name})")).unwrap_or_default();
        format!("{}/{protocol}{name}", text(port, "/containerPort"))
    });
    let ports: Vec<_> = ports.collect();
    sheet.pair(
        inner,
        if ports.len() > 1 { "Ports" } else { "Port" },
        if ports.is_empty() { "<none>".to_owned() } else { ports.join(", ") },
    );
    for (title, path) in [("Command", "/command"), ("Args", "/args")] {
        let words = list(container, path);
        if !words.is_empty() {
            sheet.pairs(inner, title, words.iter().map(scalar).collect());
        }
    }
    if let Some(status) = status {
        write_status(sheet, inner, status);
    }
    for (title, path) in [("Limits", "/resources/limits"), ("Requests", "/resources/requests")] {
        let amounts = entries(container, path, ": ");
        if !amounts.is_empty() {
            sheet.pairs(inner, title, amounts);
        }
    }
    for (title, path) in [
        ("Liveness", "livenessProbe"),
        ("Readiness", "readinessProbe"),
        ("Startup", "startupProbe"),
    ] {
        if let Some(probe) = container.get(path).filter(|probe| !probe.is_null()) {
            sheet.pair(inner, title, describe_probe(probe));
        }
    }
    sheet.pairs(inner, "Environment", environment(container));
    sheet.pairs(inner, "Mounts", list(container, "/volumeMounts").iter().map(mount).collect());
}

fn write_status(sheet: &mut Sheet, level: usize, status: Option<&Value>) {
    let Some(status) = status else { return };
    write_state(sheet, level, "State", status.get("state"));
    let last = status.get("lastState").filter(|s| s.as_object().is_some_and(|s| !s.is_empty()));
    if last.is_some() {
        write_state(sheet, level, "Last State", last);
    }
    let is_ready = status.get("ready").and_then(Value::as_bool) == Some(true);
    sheet.pair(level, "Ready", if is_ready { "True" } else { "False" });
    let restarts = status.get("restartCount").and_then(Value::as_u64).unwrap_or(0);
    sheet.pair(level, "Restart Count", restarts.to_string());
}

/// `State:  Terminated` and, below it, why and when.
fn write_state(sheet: &mut Sheet, level: usize, title: &str, state: Option<&Value>) {
    let known = [("running", "Running"), ("waiting", "Waiting"), ("terminated", "Terminated")];
    let found = known
        .iter()
        .find_map(|(key, word)| Some((*word, state?.get(key).filter(|s| !s.is_null())?)));
    let Some((word, state)) = found else {
        return sheet.pair(level, title, "Waiting");
    };
    sheet.pair(level, title, word);
    for (title, path) in [
        ("Reason", "/reason"),
        ("Message", "/message"),
        ("Exit Code", "/exitCode"),
        ("Signal", "/signal"),
        ("Started", "/startedAt"),
        ("Finished", "/finishedAt"),
    ] {
        let value = text(state, path);
        if !value.is_empty() {
            sheet.pairs(level + 1, title, value.lines().map(str::to_owned).collect());
        }
    }
}

/// `http-get http://:8080/healthz delay=0s timeout=1s period=10s #success=1 #failure=3`.
fn describe_probe(probe: &Value) -> String {
    let at = |path: &str| text(probe, path);
    let action = if probe.get("httpGet").is_some() {
        let scheme = Some(at("/httpGet/scheme")).filter(|scheme| !scheme.is_empty());
        let scheme = scheme.unwrap_or_else(|| "HTTP".to_owned()).to_lowercase();
        let (host, port) = (at("/httpGet/host"), at("/httpGet/port"));
        format!("http-get {scheme}://{host}:{port}{}", at("/httpGet/path"))
    } else if probe.get("tcpSocket").is_some() {
        format!("tcp-socket {}:{}", at("/tcpSocket/host"), at("/tcpSocket/port"))
    } else if probe.get("grpc").is_some() {
        format!("grpc :{}", at("/grpc/port"))
    } else {
        let words: Vec<_> = list(probe, "/exec/command").iter().map(scalar).collect();
        format!("exec [{}]", words.join(" "))
    };
    let number =
        |path: &str, default: u64| probe.pointer(path).and_then(Value::as_u64).unwrap_or(default);
    format!(
        "{action} delay={}s timeout={}s period={}s #success={} #failure={}",
        number("/initialDelaySeconds", 0),
        number("/timeoutSeconds", 1),
        number("/periodSeconds", 10),
        number("/successThreshold", 1),
        number("/failureThreshold", 3),
    )
}

/// Each variable with its value or where that comes from. Secrets are named, never shown.
fn environment(container: &Value) -> Vec<String> {
    let mut lines: Vec<_> = list(container, "/envFrom")
        .iter()
        .map(|from| {
            let map = text(from, "/configMapRef/name");
            if map.is_empty() {
                format!("all keys of secret {:?}", text(from, "/secretRef/name"))
            } else {
                format!("all keys of config map {map:?}")
            }
        })
        .collect();
    lines.extend(list(container, "/env").iter().map(|variable| {
        let at = |path: &str| text(variable, path);
        let source = |kind: &str, of: &str| {
            let key = at(&format!("/valueFrom/{of}/key"));
            format!("<set to the key {key:?} in {kind} {:?}>", at(&format!("/valueFrom/{of}/name")))
        };
        let value = match variable.get("valueFrom") {
            Some(from) if from.get("secretKeyRef").is_some() => source("secret", "secretKeyRef"),
            Some(from) if from.get("configMapKeyRef").is_some() => {
                source("config map", "configMapKeyRef")
            }
            Some(from) if from.get("fieldRef").is_some() => {
                format!("({})", at("/valueFrom/fieldRef/fieldPath"))
            }
            Some(from) if from.get("resourceFieldRef").is_some() => {
                format!("({})", at("/valueFrom/resourceFieldRef/resource"))
            }
            _ => at("/value"),
        };
        format!("{}: {value}", at("/name"))
    }));
    lines
}

fn mount(mount: &Value) -> String {
    let is_read_only = mount.get("readOnly").and_then(Value::as_bool) == Some(true);
    let mode = if is_read_only { "ro" } else { "rw" };
    format!("{} from {} ({mode})", text(mount, "/mountPath"), text(mount, "/name"))
}
