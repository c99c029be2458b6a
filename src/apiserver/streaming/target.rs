//! Which container of which node.

use serde_json::Value;

use super::Kind;
use crate::api::meta;
use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::apiserver::logs;
use crate::apiserver::query::Query;
use crate::apiserver::router::Call;
use crate::store::Freshness;

/// Parameters that the agent understands, beside `command`.
const PARAMETERS: &[&str] = &["stdin", "tty"];
/// Names the container that is meant when a client names none.
const DEFAULT_CONTAINER: &str = "/metadata/annotations/kubectl.kubernetes.io~1default-container";

/// Where a session goes.
#[derive(Debug, Clone)]
pub(in crate::apiserver) struct Target {
    pub(in crate::apiserver) namespace: String,
    pub(in crate::apiserver) pod: String,
    pub(in crate::apiserver) uid: String,
    pub(in crate::apiserver) node: String,
    /// Empty for port-forward.
    pub(in crate::apiserver) container: String,
}

/// Reads the pod and checks that it can have a session.
pub(super) async fn find(call: &Call, kind: Kind) -> Result<Target, ApiError> {
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    let found = call.context.store.get(&key, Freshness::Latest).await;
    let pod = found
        .map_err(|error| ApiError::store(error, &key))?
        .ok_or_else(|| Status::not_found(key.resource, &key.name))?
        .object;
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let (name, node) = (key.name.clone(), text("/spec/nodeName").to_owned());
    let refused = |text: String| ApiError::from(Status::bad_request(text));
    if node.is_empty() {
        return Err(refused(format!("pod {name} does not have a host assigned")));
    }
    let phase = text("/status/phase");
    if matches!(phase, "Succeeded" | "Failed") {
        let what = match kind {
            Kind::Exec => "exec into",
            Kind::Attach => "attach to",
            Kind::PortForward => "forward ports of",
        };
        let text =
            format!("cannot {what} a container in a completed pod; current phase is {phase}");
        return Err(refused(text));
    }
    let container = if kind == Kind::PortForward {
        String::new()
    } else {
        let by_default = Some(text(DEFAULT_CONTAINER)).filter(|name| !name.is_empty());
        let asked = call.query.get("container").or(by_default);
        logs::container(&pod, &name, asked)?
    };
    let namespace = key.namespace.clone().unwrap_or_default();
    Ok(Target { namespace, pod: name, uid: meta::uid(&pod).to_owned(), node, container })
}

impl Target {
    /// The agent's path for a command.
    pub(super) fn command_path(&self, kind: Kind, query: &Query) -> String {
        let verb = if kind == Kind::Attach { "attach" } else { "exec" };
        let Self { namespace, pod, container, .. } = self;
        let mut path = format!("/{verb}/{namespace}/{pod}/{container}?");
        for word in query.get_all("command") {
            path.push_str(&format!("command={}&", encode(word)));
        }
        for name in PARAMETERS {
            path.push_str(&format!("{name}={}&", query.is_set(name)));
        }
        path
    }

    /// The agent's path for a connection to a port.
    pub(in crate::apiserver) fn port_path(&self, port: u16) -> String {
        format!("/portForward/{}/{}?port={port}", self.namespace, self.pod)
    }
}

/// Percent-encodes all but what never needs it.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_reach_the_agent_word_by_word() {
        let target = Target {
            namespace: "default".to_owned(),
            pod: "p".to_owned(),
            uid: String::new(),
            node: "n".to_owned(),
            container: "c".to_owned(),
        };
        let query = Query::parse(Some("command=sh&command=-c&command=echo+%26+%C3%A9&stdin=true"));
        assert_eq!(
            target.command_path(Kind::Exec, &query),
            "/exec/default/p/c?command=sh&command=-c&command=echo%20%26%20%C3%A9&stdin=true&tty=false&"
        );
        assert_eq!(target.port_path(80), "/portForward/default/p?port=80");
    }
}
