//! `pods/log`: streamed from the agent of the pod's node.

use axum::body::Body;
use futures_util::StreamExt as _;
use http::{Response, StatusCode, header};
use serde_json::Value;

use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::apiserver::forward;
use crate::apiserver::router::Call;
use crate::store::Freshness;

/// Parameters that the agent understands, under kubelet's names.
const PARAMETERS: &[&str] =
    &["follow", "tailLines", "sinceSeconds", "sinceTime", "timestamps", "limitBytes", "previous"];

/// Streams the log of one container.
pub(super) async fn respond(call: Call) -> Result<Response<Body>, ApiError> {
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    let found = call.context.store.get(&key, Freshness::Latest).await;
    let pod = found
        .map_err(|error| ApiError::store(error, &key))?
        .ok_or_else(|| Status::not_found(key.resource, &key.name))?
        .object;
    let namespace = key.namespace.clone().unwrap_or_default();
    let container = container(&pod, &key.name, call.query.get("container"))?;
    check_parameters(&key.name, |name| call.query.get(name).map(str::to_owned))?;
    let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    if node.is_empty() {
        return Err(
            Status::bad_request(format!("pod {} does not have a host assigned", key.name)).into()
        );
    }
    let is_previous = call.query.is_set("previous");
    check_state(&pod, &key.name, &container, is_previous)?;
    let mut path = format!("/containerLogs/{namespace}/{}/{container}?", key.name);
    for name in PARAMETERS {
        if let Some(value) = call.query.get(name) {
            // The plus sign is that of a time's offset.
            let value = value.replace(['&', ' ', '#'], "").replace('+', "%2B");
            path.push_str(&format!("{name}={value}&"));
        }
    }
    let request = forward::get(path.trim_end_matches(['&', '?']));
    let answer = call.context.forward.node(node, request).await?;
    let (head, body) = answer.into_parts();
    if head.status.is_server_error() {
        return Err(
            Status::internal(format!("node {node} cannot read the log of {}", key.name)).into()
        );
    }
    if head.status == StatusCode::TOO_MANY_REQUESTS {
        let text = format!("node {node} is read from by too many clients, try again later");
        return Err(Status::too_many_requests(text, 1).into());
    }
    if !head.status.is_success() {
        let what = if is_previous {
            no_previous(&container, &key.name)
        } else {
            format!("container {container:?} in pod {:?} has no such log", key.name)
        };
        return Err(Status::bad_request(what).into());
    }
    // A followed log has no end of its own.
    let ended = call.context.cancel.clone().cancelled_owned();
    let mut response = Response::new(Body::from_stream(body.into_data_stream().take_until(ended)));
    *response.status_mut() = StatusCode::OK;
    let text = http::HeaderValue::from_static("text/plain");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

/// The container asked for, or the only one.
pub(super) fn container(pod: &Value, name: &str, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let items = pod.pointer(list).and_then(Value::as_array);
        let name = |c: &Value| c.get("name").and_then(Value::as_str).map(str::to_owned);
        items.into_iter().flatten().filter_map(name).collect()
    };
    let (mains, inits) = (names("/spec/containers"), names("/spec/initContainers"));
    let ephemeral = names("/spec/ephemeralContainers");
    if let Some(asked) = asked {
        if mains.iter().chain(&inits).chain(&ephemeral).any(|name| name == asked) {
            return Ok(asked.to_owned());
        }
        return Err(
            Status::bad_request(format!("container {asked} is not valid for pod {name}")).into()
        );
    }
    match mains.as_slice() {
        [only] => Ok(only.clone()),
        many => Err(Status::bad_request(format!(
            "a container name must be specified for pod {name}, choose one of: [{}]",
            many.join(" ")
        ))
        .into()),
    }
}

/// What cannot be meant is refused as by Kubernetes' validation.
fn check_parameters(pod: &str, get: impl Fn(&str) -> Option<String>) -> Result<(), ApiError> {
    let mut wrong = Vec::new();
    for (name, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        let Some(text) = get(name) else { continue };
        let number: i64 = text.parse().map_err(|_| {
            Status::bad_request(format!("parameter {name}: {text:?} is not a number"))
        })?;
        if number < least {
            let detail = if least == 0 { "greater than or equal to 0" } else { "greater than 0" };
            wrong.push(format!("{name}: Invalid value: {number}: must be {detail}"));
        }
    }
    if let Some(text) = get("sinceTime") {
        if text.parse::<jiff::Timestamp>().is_err() {
            let what = format!("parameter sinceTime: {text:?} is not a time of RFC 3339");
            return Err(Status::bad_request(what).into());
        }
        if get("sinceSeconds").is_some() {
            let detail = "at most one of `sinceTime` or `sinceSeconds` may be specified";
            wrong.push(format!("sinceSeconds: Forbidden: {detail}"));
        }
    }
    let what = match wrong.as_slice() {
        [] => return Ok(()),
        [one] => one.clone(),
        many => format!("[{}]", many.join(", ")),
    };
    Err(Status::unprocessable(format!("PodLogOptions {pod:?} is invalid: {what}")).into())
}

fn no_previous(container: &str, pod: &str) -> String {
    format!("previous terminated container {container:?} in pod {pod:?} not found")
}

/// A container that never ran has no log.
fn check_state(
    pod: &Value,
    name: &str,
    container: &str,
    is_previous: bool,
) -> Result<(), ApiError> {
    let status = ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]
        .map(|list| format!("/status/{list}"))
        .iter()
        .filter_map(|list| pod.pointer(list).and_then(Value::as_array))
        .flatten()
        .find(|status| status.get("name").and_then(Value::as_str) == Some(container));
    let restarts = status.and_then(|s| s.get("restartCount")).and_then(Value::as_u64).unwrap_or(0);
    if is_previous && restarts == 0 {
        return Err(Status::bad_request(no_previous(container, name)).into());
    }
    let waiting = status.and_then(|s| s.pointer("/state/waiting/reason")).and_then(Value::as_str);
    let reason = if status.is_none() { Some("ContainerCreating") } else { waiting };
    match reason {
        Some(reason) if restarts == 0 => Err(Status::bad_request(format!(
            "container {container:?} in pod {name:?} is waiting to start: {reason}"
        ))
        .into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_pod_with_several_containers_needs_a_name() {
        let pod = json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}});
        assert_eq!(container(&pod, "p", Some("b")).unwrap(), "b");
        let refused = container(&pod, "p", None).unwrap_err().0.message;
        assert_eq!(refused, "a container name must be specified for pod p, choose one of: [a b]");
    }

    #[test]
    fn a_container_that_waits_has_no_log() {
        let waiting = json!({"status": {"containerStatuses": [
            {"name": "a", "restartCount": 0, "state": {"waiting": {"reason": "ErrImagePull"}}}
        ]}});
        let refused = check_state(&waiting, "p", "a", false).unwrap_err().0.message;
        assert_eq!(refused, "container \"a\" in pod \"p\" is waiting to start: ErrImagePull");
        assert!(check_state(&json!({}), "p", "a", false).is_err());
        let crashed = json!({"status": {"containerStatuses": [
            {"name": "a", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}
        ]}});
        assert!(check_state(&crashed, "p", "a", false).is_ok());
        assert!(check_state(&crashed, "p", "a", true).is_ok());
        let refused = check_state(&waiting, "p", "a", true).unwrap_err().0.message;
        assert_eq!(refused, "previous terminated container \"a\" in pod \"p\" not found");
    }

    #[test]
    fn parameters_that_cannot_be_meant_are_refused() {
        let check = |pairs: &[(&str, &str)]| {
            let get = |name: &str| {
                pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            };
            match check_parameters("p", get) {
                Ok(()) => (200, String::new()),
                Err(refused) => (refused.0.code, refused.0.message),
            }
        };
        for fine in [
            &[("tailLines", "0"), ("limitBytes", "1"), ("sinceSeconds", "1")][..],
            &[("sinceTime", "2026-01-01T00:00:00Z"), ("follow", "true")],
        ] {
            assert_eq!(check(fine), (200, String::new()));
        }
        for (pairs, code, part) in [
            (
                &[("tailLines", "-1")][..],
                422,
                "tailLines: Invalid value: -1: must be greater than or equal to 0",
            ),
            (&[("limitBytes", "0")], 422, "limitBytes: Invalid value: 0: must be greater than 0"),
            (
                &[("sinceSeconds", "0")],
                422,
                "sinceSeconds: Invalid value: 0: must be greater than 0",
            ),
            (
                &[("sinceSeconds", "1"), ("sinceTime", "2026-01-01T00:00:00Z")],
                422,
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ),
            (&[("tailLines", "many")], 400, "\"many\" is not a number"),
            (&[("sinceTime", "noon")], 400, "\"noon\" is not a time"),
        ] {
            let (got, message) = check(pairs);
            assert!(got == code && message.contains(part), "{pairs:?}: {got} {message}");
        }
    }
}
