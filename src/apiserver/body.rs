//! Request bodies: JSON, YAML and Kubernetes' protobuf, within limits.

use axum::body::Body;
use http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::Value;

use crate::api::decode::{self, DecodeError};
use crate::api::protobuf::{self, ProtobufError};
use crate::api::status::Status;
use crate::api::{Resource, meta, strategy};
use crate::apiserver::error::ApiError;
use crate::apiserver::query::FieldValidation;

/// Largest body, in bytes.
pub(super) const BODY_BYTES_MAX: usize = 3 * 1024 * 1024;
/// What bodies may be.
const SUPPORTED: &[&str] = &["application/json", "application/yaml", protobuf::MEDIA_TYPE];

/// Reads a body whole.
pub(super) async fn read(body: Body) -> Result<Vec<u8>, ApiError> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(whole) => Ok(whole.to_bytes().to_vec()),
        Err(cause) if cause.is::<http_body_util::LengthLimitError>() => {
            Err(Status::too_large(BODY_BYTES_MAX).into())
        }
        Err(_) => Err(Status::bad_request("the request body ended early").into()),
    }
}

/// The media type without parameters.
pub(super) fn media_type(headers: &HeaderMap) -> &str {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .map_or("", str::trim)
}

/// Makes a body of protobuf one of JSON, so that behind the door there is one form; other bodies pass
/// as they are.
pub(super) async fn enter(headers: &mut HeaderMap, body: Body) -> Result<Body, ApiError> {
    if media_type(headers) != protobuf::MEDIA_TYPE {
        return Ok(body);
    }
    let bytes = read(body).await?;
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.remove(header::CONTENT_LENGTH);
    if bytes.is_empty() {
        return Ok(Body::empty());
    }
    let object = protobuf::to_json(&bytes).map_err(|cause| match cause {
        ProtobufError::Malformed(_) => {
            Status::bad_request(format!("error decoding the request body: {cause}"))
        }
        ProtobufError::NoSuchKind { .. } => {
            Status::unsupported_media_type(&["application/json", "application/yaml"])
        }
    })?;
    Ok(Body::from(object.to_string()))
}

/// A parsed body, with the fields that stood in it twice.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) value: Value,
    pub(super) duplicates: Vec<String>,
}

/// Parses JSON or YAML by its media type.
pub(super) fn parse(media: &str, bytes: &[u8]) -> Result<Parsed, ApiError> {
    match media {
        "" | "application/json" => json(bytes),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            let text = std::str::from_utf8(bytes)
                .map_err(|_| Status::bad_request("the YAML body is not UTF-8"))?;
            let value: Value = serde_saphyr::from_str(text)
                .map_err(|cause| Status::bad_request(format!("cannot parse YAML: {cause}")))?;
            Ok(Parsed { value, duplicates: Vec::new() })
        }
        _ => Err(Status::unsupported_media_type(SUPPORTED).into()),
    }
}

/// Parses JSON.
pub(super) fn json(bytes: &[u8]) -> Result<Parsed, ApiError> {
    let decoded = decode::parse_json(bytes).map_err(|cause: DecodeError| {
        Status::bad_request(format!("error decoding the request body: {cause}"))
    })?;
    Ok(Parsed { value: decoded.value, duplicates: decoded.duplicates })
}

/// Checks that `object` is what `resource` says it is. Returns warnings about unknown fields, which it drops.
pub(super) fn check(
    resource: &Resource,
    object: &mut Value,
    duplicates: &[String],
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    check_with(resource, None, object, duplicates, validation)
}

/// The same for what a patch made of `old`, in which older versions may have left what is refused now.
pub(super) fn check_change(
    resource: &Resource,
    old: &Value,
    object: &mut Value,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    check_with(resource, Some(old), object, &[], validation)
}

fn check_with(
    resource: &Resource,
    old: Option<&Value>,
    object: &mut Value,
    duplicates: &[String],
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    let text = |key: &str| object.get(key).and_then(Value::as_str).unwrap_or_default();
    let (kind, version) = (text("kind"), text("apiVersion"));
    if (!kind.is_empty() && kind != resource.kind)
        || (!version.is_empty() && version != resource.api_version())
    {
        let wanted = format!("{}, Kind={}", resource.api_version(), resource.kind);
        return Err(Status::bad_request(format!(
            "the API version in the data ({version}, Kind={kind}) does not match the expected API version ({wanted})"
        ))
        .into());
    }
    let unknown = strategy::decode(resource, object, old).map_err(Status::bad_request)?;
    let mut complaints: Vec<String> =
        unknown.iter().map(|field| format!("unknown field {field:?}")).collect();
    complaints.extend(duplicates.iter().map(|field| format!("duplicate field {field:?}")));
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !complaints.is_empty() => {
            let list = complaints.join(", ");
            let kind = format!("{} in version {:?}", resource.kind, resource.version);
            Err(Status::bad_request(format!(
                "{kind} cannot be handled as a {}: strict decoding error: {list}",
                resource.kind
            ))
            .into())
        }
        FieldValidation::Warn | FieldValidation::Strict => Ok(complaints),
    }
}

/// Name and namespace of the body must be those of the path.
pub(super) fn check_place(
    object: &mut Value,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<(), ApiError> {
    if let Some(namespace) = namespace {
        let sent = meta::namespace(object);
        if !sent.is_empty() && sent != namespace {
            return Err(Status::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {sent:?} != {namespace:?}"
            ))
            .into());
        }
        meta::set_namespace(object, namespace);
    }
    if let Some(name) = name {
        let sent = meta::name(object);
        if !sent.is_empty() && sent != name {
            return Err(Status::bad_request(format!(
                "the name of the object ({sent}) does not match the name on the URL ({name})"
            ))
            .into());
        }
        meta::set_name(object, name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;

    #[test]
    fn a_field_of_the_wrong_type_is_named_once_with_its_path() {
        let pods = api::find("", "v1", "pods").unwrap();
        for (spec, said) in [
            (
                json!({"containers": 7}),
                "spec.containers: invalid type: integer `7`, expected an array",
            ),
            (
                json!({"containers": [{"name": "a", "env": [{"name": "X", "value": 1}]}]}),
                "spec.containers[0].env[0].value: invalid type: integer `1`, expected a string",
            ),
            (
                json!({"containers": [], "priority": "1"}),
                "spec.priority: invalid type: string \"1\", expected an integer (int32)",
            ),
            (json!("x"), "spec: invalid type: string \"x\", expected an object"),
            (
                json!({"containers": [{"name": "a", "resources": {"limits": {"cpu": "x"}}}]}),
                "spec.containers[0].resources.limits[cpu]: quantities must match the regular",
            ),
        ] {
            let mut object = json!({ "spec": spec });
            let refused = check(pods, &mut object, &[], FieldValidation::Warn).unwrap_err().0;
            assert_eq!(refused.code, 400);
            let begin = format!("Pod in version \"v1\" cannot be handled as a Pod: {said}");
            assert!(refused.message.starts_with(&begin), "{refused}");
        }
    }

    #[test]
    fn unknown_fields_are_told_once_and_dropped() {
        let pods = api::find("", "v1", "pods").unwrap();
        let container = json!({"name": "a", "image": null, "wrong": {"x": 1}});
        let mut object = json!({"metadata": {"name": "p"}, "spec": {"containers": [container]}});
        let told = check(pods, &mut object, &[], FieldValidation::Warn).unwrap();
        assert_eq!(told, ["unknown field \"spec.containers[0].wrong\""]);
        let left = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(object, left);
        assert_eq!(check(pods, &mut object, &[], FieldValidation::Strict).unwrap(), [""; 0]);
    }

    #[tokio::test]
    async fn a_body_over_the_limit_is_413() {
        let refused = read(Body::from(vec![b' '; BODY_BYTES_MAX + 1])).await.unwrap_err().0;
        assert_eq!((refused.code, refused.reason.as_str()), (413, "RequestEntityTooLarge"));
        assert_eq!(read(Body::from(vec![b' '; 9])).await.unwrap().len(), 9);
    }
}
