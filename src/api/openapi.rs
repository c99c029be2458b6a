//! OpenAPI documents, as much as kubectl needs to choose server-side validation.

use serde_json::{Value, json};

/// `/openapi/v3`: where the documents are.
#[must_use]
pub fn v3_index() -> Value {
    json!({})
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/<group>/<version>`; `server_version` as in `/version`.
#[must_use]
pub fn v3_document(_group: &str, _version: &str, _server_version: &str) -> Option<Value> {
    None
}

/// `/openapi/v2` as JSON.
#[must_use]
pub fn v2_json(server_version: &str) -> Value {
    json!({ "swagger": "2.0", "info": { "title": "edgeorc", "version": server_version } })
}

/// `/openapi/v2` as `application/com.github.proto-openapi.spec.v2@v1.0+protobuf`.
#[must_use]
pub fn v2_protobuf(_server_version: &str) -> Vec<u8> {
    Vec::new()
}
