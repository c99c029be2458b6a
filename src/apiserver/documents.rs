//! Discovery, OpenAPI and metrics: documents that are no resources.

use axum::body::Body;
use http::request::Parts;
use http::{HeaderMap, Method, Response, StatusCode, header};
use serde_json::Value;

use crate::api::discovery::{self, AggregatedVersion};
use crate::api::openapi;
use crate::api::status::Status;
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::{aggregate, health, response};

/// Media type of the aggregated discovery documents, without their version.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=";
/// How kubectl up to 1.26 asks for OpenAPI v2; `@` may not stand in a media type, so the answer bears
/// the other name.
const OPENAPI_V2_ASKED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// OpenAPI v2 in gnostic's protobuf.
const OPENAPI_V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// Answers by path.
pub(super) async fn respond(
    context: &Context,
    request: &Parts,
) -> Result<Response<Body>, ApiError> {
    let path = request.uri.path().trim_end_matches('/');
    if !matches!(request.method, Method::GET | Method::HEAD) {
        return Err(Status::no_such_path().into());
    }
    if path == "/metrics" {
        let text = context.metrics.encode().into_bytes();
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return Ok(response::bytes(StatusCode::OK, kind, text));
    }
    if path == "/openapi/v2" {
        return Ok(openapi_v2(&request.headers));
    }
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let document = match parts.as_slice() {
        ["api"] => return Ok(root(context, &request.headers, true).await),
        ["apis"] => return Ok(root(context, &request.headers, false).await),
        ["api", version] => discovery::api_resource_list("", version),
        ["apis", group] => {
            aggregate::group_document(context, group, discovery::api_group(group)).await
        }
        ["apis", group, version] => discovery::api_resource_list(group, version),
        ["openapi", "v3"] => Some(openapi::v3_index()),
        ["openapi", "v3", "api", version] => {
            openapi::v3_document("", version, &health::git_version())
        }
        ["openapi", "v3", "apis", group, version] => {
            openapi::v3_document(group, version, &health::git_version())
        }
        _ => None,
    };
    match document {
        Some(document) => Ok(response::json(StatusCode::OK, &document)),
        None => Err(Status::no_such_path().into()),
    }
}

/// `/api` and `/apis`: aggregated when asked for, else the older documents.
async fn root(context: &Context, headers: &HeaderMap, is_core: bool) -> Response<Body> {
    let accept = accept(headers);
    let asked = accept.split(',').find_map(|entry| {
        let rest = entry.trim().strip_prefix(AGGREGATED)?;
        match rest.split(';').next() {
            Some("v2") => Some((AggregatedVersion::V2, "v2")),
            Some("v2beta1") => Some((AggregatedVersion::V2beta1, "v2beta1")),
            _ => None,
        }
    });
    if let Some((version, name)) = asked {
        let mut document = if is_core {
            discovery::aggregated_core(version)
        } else {
            discovery::aggregated_groups(version)
        };
        if !is_core {
            aggregate::add_to_root(context, &mut document).await;
        }
        let mut answer = response::json(StatusCode::OK, &document);
        let kind = format!("{AGGREGATED}{name};as=APIGroupDiscoveryList");
        if let Ok(kind) = kind.parse() {
            answer.headers_mut().insert(header::CONTENT_TYPE, kind);
        }
        return answer;
    }
    let mut document: Value =
        if is_core { discovery::api_versions("") } else { discovery::api_group_list() };
    if !is_core {
        aggregate::add_to_root(context, &mut document).await;
    }
    response::json(StatusCode::OK, &document)
}

fn openapi_v2(headers: &HeaderMap) -> Response<Body> {
    let version = health::git_version();
    let accept = accept(headers);
    if accept.contains(OPENAPI_V2_ASKED) || accept.contains(OPENAPI_V2_PROTOBUF) {
        let bytes = openapi::v2_protobuf(&version);
        return response::bytes(StatusCode::OK, OPENAPI_V2_PROTOBUF, bytes);
    }
    response::json(StatusCode::OK, &openapi::v2_json(&version))
}

fn accept(headers: &HeaderMap) -> &str {
    headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default()
}
