//! Kinds that are served in a second version, which says the same in the same words.
//!
//! The version is changed at the door: behind it there is one version only, which is the stored one.
//! A request's path and body are put into that, the answer's objects into what was asked for, each
//! line of a watch included. Only `apiVersion` of the objects themselves is touched, and the fields in
//! which the two versions differ. A patch is the exception: alone it does not say what it means in the
//! other version, so the stored object is shown to it in its own.

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, Uri};
use serde_json::Value;

use crate::api::versions::{Alias, asked};
use crate::apiserver::error::ApiError;
use crate::apiserver::{apply, body};

/// Bytes of one line of a watch, or of an answer; longer ones pass as they are.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// What a request asked for, if that is not the stored version; the request then asks for that one.
pub(super) fn enter(request: &mut Request<Body>) -> Option<&'static Alias> {
    let (alias, path) = asked(request.uri().path())?;
    let whole = match request.uri().query() {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    // A path made of a valid one is valid.
    parts.path_and_query = PathAndQuery::try_from(whole).ok();
    *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
    Some(alias)
}

/// A request's body in the stored version; a patch stays as it is, for [`patched`]. What had to be read
/// for that goes on as JSON, and `headers` say so.
///
/// What is applied is changed alone, as a whole object is: metrics that only the stored object has are
/// not seen by it.
pub(super) async fn store(
    alias: &'static Alias,
    headers: &mut HeaderMap,
    sent: Body,
) -> Result<Body, ApiError> {
    if body::media_type(headers).ends_with("-patch+json") {
        return Ok(sent);
    }
    let bytes = body::read(sent).await?;
    if serde_json::from_slice::<serde::de::IgnoredAny>(&bytes).is_ok() {
        let bytes = changed(&bytes, |value| {
            rename(value, alias.asked, alias.stored);
            (alias.to_stored)(value);
        });
        return Ok(Body::from(bytes));
    }
    if alias.has_own_fields && !bytes.is_empty() {
        let is_applied = body::media_type(headers) == apply::MEDIA_TYPE;
        let media = if is_applied { "application/yaml" } else { body::media_type(headers) };
        let mut value = body::parse(media, &bytes)?.value;
        rename(&mut value, alias.asked, alias.stored);
        (alias.to_stored)(&mut value);
        // JSON is YAML, and only its media type makes it an apply.
        if !is_applied {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        return Ok(Body::from(value.to_string()));
    }
    Ok(Body::from(yaml(&bytes, alias)))
}

/// What `patch` makes of the stored object, which it sees in the version that was asked for.
pub(super) fn patched(
    alias: Option<&Alias>,
    current: &Value,
    patch: impl FnOnce(&Value) -> Result<Value, ApiError>,
) -> Result<Value, ApiError> {
    let Some(alias) = alias else { return patch(current) };
    let mut shown = current.clone();
    rename(&mut shown, alias.stored, alias.asked);
    (alias.to_asked)(&mut shown);
    let mut new = patch(&shown)?;
    rename(&mut new, alias.asked, alias.stored);
    (alias.to_stored)(&mut new);
    Ok(new)
}

/// The answer in the version that was asked for.
pub(super) async fn show(
    alias: &'static Alias,
    is_watch: bool,
    answer: Response<Body>,
) -> Response<Body> {
    let kind = answer.headers().get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/json")) {
        return answer;
    }
    let (mut parts, body) = answer.into_parts();
    parts.headers.remove(CONTENT_LENGTH);
    if is_watch && parts.status.is_success() {
        return Response::from_parts(parts, lines(alias, body));
    }
    match axum::body::to_bytes(body, ANSWER_BYTES_MAX).await {
        Ok(bytes) => {
            let bytes = changed(&bytes, |value| answered(value, alias));
            Response::from_parts(parts, Body::from(bytes))
        }
        Err(err) => {
            tracing::debug!(%err, "an answer broke off");
            Response::from_parts(parts, Body::empty())
        }
    }
}

/// Changes the object of each event. An event is one line, wherever the body's pieces end.
fn lines(alias: &'static Alias, body: Body) -> Body {
    let mut rest = BytesMut::new();
    let stream = body.into_data_stream().map(move |piece| {
        let piece = piece?;
        rest.extend_from_slice(&piece);
        let end = rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let whole = if rest.len() > ANSWER_BYTES_MAX { rest.split() } else { rest.split_to(end) };
        let mut out = BytesMut::with_capacity(whole.len() + 64);
        for line in whole.split_inclusive(|byte| *byte == b'\n') {
            let event = |value: &mut Value| {
                if let Some(object) = value.get_mut("object") {
                    answered(object, alias);
                }
            };
            out.extend_from_slice(&changed(line, event));
            out.extend_from_slice(b"\n");
        }
        Ok::<Bytes, axum::Error>(out.freeze())
    });
    Body::from_stream(stream)
}

/// The same of YAML, whose own `apiVersion` stands at the beginning of a line.
fn yaml(bytes: &[u8], alias: &Alias) -> Vec<u8> {
    let text = String::from_utf8_lossy(bytes);
    let line = |line: &str| match line.strip_prefix("apiVersion:") {
        Some(version) if version.trim().trim_matches(['"', '\'']) == alias.asked => {
            format!("apiVersion: {}\n", alias.stored)
        }
        _ => line.to_owned(),
    };
    text.split_inclusive('\n').map(line).collect::<String>().into_bytes()
}

/// JSON with `change` made to it; what is no JSON stays as it is.
fn changed(bytes: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    match serde_json::from_slice::<Value>(bytes) {
        Ok(mut value) => {
            change(&mut value);
            value.to_string().into_bytes()
        }
        Err(_) => bytes.to_vec(),
    }
}

/// An object, a list, or a table with objects in its rows.
fn answered(value: &mut Value, alias: &Alias) {
    if rename(value, alias.stored, alias.asked) {
        (alias.to_asked)(value);
    }
    for list in ["items", "rows"] {
        for item in value.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            if rename(item, alias.stored, alias.asked) {
                (alias.to_asked)(item);
            }
            if let Some(object) = item.get_mut("object")
                && rename(object, alias.stored, alias.asked)
            {
                (alias.to_asked)(object);
            }
        }
    }
}

/// Whether it was of that version, and now is of the other.
fn rename(value: &mut Value, from: &str, to: &str) -> bool {
    let found = value.get_mut("apiVersion").filter(|version| **version == from);
    let is_it = found.is_some();
    if let Some(version) = found {
        *version = Value::String(to.to_owned());
    }
    is_it
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use serde_json::json;

    use super::*;

    const V1: &str = "gateway.networking.k8s.io/v1";
    const V1BETA1: &str = "gateway.networking.k8s.io/v1beta1";

    fn alias() -> &'static Alias {
        let path = "/apis/gateway.networking.k8s.io/v1beta1/namespaces/n/gateways/g?x=1";
        let mut request = Request::get(path).body(Body::empty()).unwrap();
        let alias = enter(&mut request).unwrap();
        let wanted = "/apis/gateway.networking.k8s.io/v1/namespaces/n/gateways/g?x=1";
        assert_eq!(request.uri().to_string(), wanted);
        alias
    }

    #[tokio::test]
    async fn a_body_is_put_into_the_stored_version_and_only_itself() {
        let sent = json!({"apiVersion": V1BETA1, "metadata": {"annotations":
            {"a": format!("{{\"apiVersion\":\"{V1BETA1}\"}}")}, "ownerReferences": [{"apiVersion": V1BETA1}]}});
        let stored =
            store(alias(), &mut HeaderMap::new(), Body::from(sent.to_string())).await.unwrap();
        let stored = stored.collect().await.unwrap();
        let stored: Value = serde_json::from_slice(&stored.to_bytes()).unwrap();
        assert_eq!(stored["apiVersion"], V1);
        assert_eq!(stored["metadata"], sent["metadata"]);
        let sent = format!(
            "# x\napiVersion: \"{V1BETA1}\"\nkind: Gateway\nspec:\n  apiVersion: {V1BETA1}\n"
        );
        let stored = store(alias(), &mut HeaderMap::new(), Body::from(sent))
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
        let wanted =
            format!("# x\napiVersion: {V1}\nkind: Gateway\nspec:\n  apiVersion: {V1BETA1}\n");
        assert_eq!(stored.to_bytes(), wanted);
    }

    fn autoscaler() -> &'static Alias {
        let path = "/apis/autoscaling/v1/namespaces/n/horizontalpodautoscalers/h";
        enter(&mut Request::get(path).body(Body::empty()).unwrap()).unwrap()
    }

    fn of_type(media: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(media))])
    }

    #[tokio::test]
    async fn a_patch_stays_as_it_was_sent_and_changes_the_object_in_its_own_version() {
        let sent = json!({"spec": {"targetCPUUtilizationPercentage": 30}}).to_string();
        let mut headers = of_type("application/merge-patch+json");
        let body = store(autoscaler(), &mut headers, Body::from(sent.clone())).await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), sent);

        let metric = |name: &str, percent: u32| {
            json!({"type": "Resource", "resource": {"name": name,
                "target": {"type": "Utilization", "averageUtilization": percent}}})
        };
        let of = |metrics: Value| json!({"apiVersion": "autoscaling/v2", "metadata": {"name": "h"}, "spec": {"metrics": metrics}});
        let stored = of(json!([metric("memory", 60), metric("cpu", 50)]));
        let changed = patched(Some(autoscaler()), &stored, |shown| {
            assert_eq!(shown["apiVersion"], "autoscaling/v1");
            assert_eq!(shown["spec"], json!({"targetCPUUtilizationPercentage": 50}));
            let mut new = shown.clone();
            new["spec"]["targetCPUUtilizationPercentage"] = json!(30);
            Ok(new)
        });
        assert_eq!(changed.unwrap(), of(json!([metric("memory", 60), metric("cpu", 30)])));
        let same = patched(None, &stored, |shown| Ok(shown.clone()));
        assert_eq!(same.unwrap(), stored);
    }

    #[tokio::test]
    async fn what_is_applied_in_yaml_goes_on_as_an_apply() {
        let sent = "apiVersion: autoscaling/v1\nspec:\n  targetCPUUtilizationPercentage: 30\n";
        let mut headers = of_type(apply::MEDIA_TYPE);
        let body = store(autoscaler(), &mut headers, Body::from(sent)).await.unwrap();
        assert_eq!(headers, of_type(apply::MEDIA_TYPE));
        let stored: Value =
            serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
        assert_eq!(stored["apiVersion"], "autoscaling/v2");
        assert_eq!(stored["spec"]["metrics"][0]["resource"]["name"], "cpu");
    }

    #[tokio::test]
    async fn objects_lists_and_tables_are_shown_in_the_version_asked_for() {
        for (stored, pointer) in [
            (json!({"apiVersion": V1, "kind": "Gateway"}), "/apiVersion"),
            (json!({"apiVersion": V1, "kind": "GatewayList", "items": []}), "/apiVersion"),
            (
                json!({"apiVersion": "meta.k8s.io/v1", "rows": [{"object": {"apiVersion": V1}}]}),
                "/rows/0/object/apiVersion",
            ),
        ] {
            let answer = Response::builder()
                .header(CONTENT_TYPE, "application/json")
                .body(Body::from(stored.to_string()))
                .unwrap();
            let shown = show(alias(), false, answer).await.into_body().collect().await.unwrap();
            let shown: Value = serde_json::from_slice(&shown.to_bytes()).unwrap();
            assert_eq!(shown.pointer(pointer).unwrap(), V1BETA1);
        }
    }

    #[tokio::test]
    async fn events_are_changed_wherever_the_pieces_end() {
        let event = json!({"type": "ADDED", "object": {"apiVersion": V1, "kind": "Gateway"}});
        let text = format!("{event}\n{event}\n");
        let (a, b) = text.split_at(30);
        let pieces =
            [a, b].map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece.as_bytes())));
        let answer = Response::builder()
            .header(CONTENT_TYPE, "application/json")
            .body(Body::from_stream(futures_util::stream::iter(pieces)))
            .unwrap();
        let shown = show(alias(), true, answer).await.into_body().collect().await.unwrap();
        let shown = String::from_utf8(shown.to_bytes().to_vec()).unwrap();
        assert_eq!(shown.lines().count(), 2);
        assert_eq!(shown.matches(V1BETA1).count(), 2);
        assert!(!shown.contains("\n\n"));
    }
}
