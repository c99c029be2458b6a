//! OpenAPI documents, as much as kubectl needs to choose server-side validation.
//!
//! The schemas say which fields there are and how their lists merge, for `kubectl explain`; those of
//! the Gateway API are permissive. The server validates. Strategic merge patch is not advertised in v3:
//! kubectl has Kubernetes' types built in, and they are the same.

use serde_json::{Map, Value, json};

use crate::api::openapi_types;
use crate::api::resource::Resource;
use crate::api::schema::{SCHEMA, TEXT_BYTES};
use crate::api::versions;

/// Query parameters of every write.
const WRITE_PARAMETERS: [&str; 3] = ["dryRun", "fieldManager", "fieldValidation"];

/// `/openapi/v3`: where the documents are.
#[must_use]
pub fn v3_index() -> Value {
    let mut paths = Map::new();
    for res in versions::served() {
        let path = res.version_path().trim_start_matches('/').to_owned();
        let version = env!("CARGO_PKG_VERSION").replace('.', "");
        let url = format!("/openapi/v3/{path}?hash={version}{TEXT_BYTES}");
        paths.insert(path, json!({ "serverRelativeURL": url }));
    }
    json!({ "paths": paths })
}

/// `/openapi/v3/api/v1`, `/openapi/v3/apis/<group>/<version>`; `server_version` as in `/version`.
#[must_use]
pub fn v3_document(group: &str, version: &str, server_version: &str) -> Option<Value> {
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    let mut schemas_of_fields = Map::new();
    for res in versions::served().filter(|res| res.group == group && res.version == version) {
        let root = res.version_path();
        let collection = if res.is_namespaced {
            format!("{root}/namespaces/{{namespace}}/{}", res.plural)
        } else {
            format!("{root}/{}", res.plural)
        };
        paths.insert(
            collection.clone(),
            json!({ "get": read(res, "list"), "post": write(res, "post", &["application/json"]) }),
        );
        let patches = [
            "application/apply-patch+yaml",
            "application/json-patch+json",
            "application/merge-patch+json",
        ];
        paths.insert(
            format!("{collection}/{{name}}"),
            json!({
                "get": read(res, "get"),
                "put": write(res, "put", &["application/json"]),
                "patch": write(res, "patch", &patches),
                "delete": read(res, "delete"),
            }),
        );
        schemas.insert(schema_name(res), schema(res, &mut schemas_of_fields));
    }
    schemas_of_fields.retain(|name, _| !schemas.contains_key(name));
    schemas.append(&mut schemas_of_fields);
    (!paths.is_empty()).then(|| {
        json!({
            "openapi": "3.0.0",
            "info": { "title": "edgeorc", "version": server_version },
            "paths": paths,
            "components": { "schemas": schemas },
        })
    })
}

fn kind_of(res: &Resource) -> Value {
    json!({ "group": res.group, "version": res.version, "kind": res.kind })
}

/// A name in the style of Kubernetes' own documents.
fn schema_name(res: &Resource) -> String {
    let group = if res.group.is_empty() { "core" } else { res.group };
    format!("io.edgeorc.{}.{}.{}", group, res.version, res.kind)
}

fn reference(res: &Resource) -> Value {
    json!({ "$ref": format!("#/components/schemas/{}", schema_name(res)) })
}

fn answer(res: &Resource) -> Value {
    json!({ "200": { "description": "OK", "content": { "application/json": { "schema": reference(res) } } } })
}

fn read(res: &Resource, action: &str) -> Value {
    json!({
        "description": res.description,
        "responses": answer(res),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind_of(res),
    })
}

fn write(res: &Resource, action: &str, media_types: &[&str]) -> Value {
    let parameters: Vec<Value> = WRITE_PARAMETERS
        .iter()
        .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } }))
        .collect();
    let content: Map<String, Value> = media_types
        .iter()
        .map(|media| ((*media).to_owned(), json!({ "schema": reference(res) })))
        .collect();
    json!({
        "description": res.description,
        "parameters": parameters,
        "requestBody": { "content": content, "required": true },
        "responses": answer(res),
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": kind_of(res),
    })
}

/// The schema of a kind; those of the types of its fields go into `others`.
fn schema(res: &Resource, others: &mut Map<String, Value>) -> Value {
    let message = SCHEMA.kind(&res.api_version(), res.kind);
    let fields = message.and_then(|message| openapi_types::fields(message, others));
    let Some(fields) = fields else { return permissive(res) };
    let mut properties = Map::new();
    for key in ["apiVersion", "kind"] {
        properties.insert(key.to_owned(), json!({ "type": "string" }));
    }
    properties.extend(fields);
    json!({
        "description": res.description,
        "type": "object",
        "properties": properties,
        "x-kubernetes-group-version-kind": [kind_of(res)],
    })
}

fn permissive(res: &Resource) -> Value {
    json!({
        "description": res.description,
        "type": "object",
        "properties": {
            "apiVersion": { "type": "string" },
            "kind": { "type": "string" },
            "metadata": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
        },
        "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-group-version-kind": [kind_of(res)],
    })
}

/// `/openapi/v2` in JSON. Without definitions, clients skip their own validation.
#[must_use]
pub fn v2_json(server_version: &str) -> Value {
    json!({
        "swagger": "2.0",
        "info": { "title": "edgeorc", "version": server_version },
        "paths": {},
        "definitions": {},
    })
}

/// `/openapi/v2` as the protobuf message `openapi.v2.Document` of gnostic, which kubectl up to
/// 1.26 asks for: swagger (1), info (2) with title (1) and version (2), and empty paths (8).
#[must_use]
pub fn v2_protobuf(server_version: &str) -> Vec<u8> {
    let mut info = Vec::new();
    field(1, b"edgeorc", &mut info);
    field(2, server_version.as_bytes(), &mut info);
    let mut document = Vec::new();
    field(1, b"2.0", &mut document);
    field(2, &info, &mut document);
    field(8, b"", &mut document);
    document
}

/// A length-delimited protobuf field. Numbers and lengths here are below 128 × 128.
fn field(number: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(number << 3 | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).unwrap_or(0) | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).unwrap_or(0));
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The patch operation of a kind, found as kubectl finds it.
    fn patch_of(res: &Resource) -> Value {
        let document = v3_document(res.group, res.version, "v1").unwrap();
        let paths = document["paths"].as_object().unwrap();
        let mut patches = paths.values().map(|path| &path["patch"]);
        patches.find(|op| op["x-kubernetes-group-version-kind"] == kind_of(res)).unwrap().clone()
    }

    #[test]
    fn patches_of_every_kind_are_validated_by_the_server_and_not_strategic_in_v3() {
        for res in versions::served() {
            let patch = patch_of(res);
            assert_eq!(patch["x-kubernetes-action"], "patch");
            let parameters = patch["parameters"].as_array().unwrap();
            let is_asked = |name: &str| {
                parameters.iter().any(|param| param["name"] == name && param["in"] == "query")
            };
            assert!(WRITE_PARAMETERS.iter().all(|name| is_asked(name)), "{}", res.kind);
            let content = patch["requestBody"]["content"].as_object().unwrap();
            let media: Vec<&str> = content.keys().map(String::as_str).collect();
            let wanted = ["apply-patch+yaml", "json-patch+json", "merge-patch+json"];
            assert_eq!(media, wanted.map(|kind| format!("application/{kind}")));
        }
        assert!(v3_document("apps", "v9", "v1").is_none());
    }

    #[test]
    fn every_kind_has_a_document_in_the_index_and_a_schema_in_it() {
        let index = v3_index();
        for res in versions::served() {
            let path = res.version_path().trim_start_matches('/').to_owned();
            let url = index["paths"][&path]["serverRelativeURL"].as_str().unwrap();
            assert!(url.starts_with(&format!("/openapi/v3/{path}?hash=")), "{url}");
            let document = v3_document(res.group, res.version, "v1").unwrap();
            let schema = &document["components"]["schemas"][schema_name(res)];
            assert_eq!(schema["x-kubernetes-group-version-kind"][0], kind_of(res));
            let is_open = schema["x-kubernetes-preserve-unknown-fields"] == true;
            assert_eq!(is_open, res.group == crate::api::gateway::GROUP, "{}", res.kind);
        }
    }

    #[test]
    fn every_type_that_a_schema_names_is_in_its_document() {
        let document = v3_document("apps", "v1", "v1").unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let text = document.to_string();
        let names = text.split("#/components/schemas/").skip(1).map(|rest| rest.split('"').next());
        for name in names.flatten() {
            assert!(schemas.contains_key(name), "{name}");
        }
        let spec = &schemas["io.edgeorc.core.v1.PodSpec"]["properties"];
        assert_eq!(spec["containers"]["x-kubernetes-list-map-keys"], json!(["name"]));
        assert_eq!(spec["containers"]["x-kubernetes-patch-merge-key"], "name");
        assert_eq!(spec["nodeSelector"]["x-kubernetes-map-type"], "atomic");
        assert_eq!(spec["hostNetwork"], json!({ "type": "boolean" }));
        let volume = &schemas["io.edgeorc.core.v1.Volume"]["properties"];
        assert!(volume["emptyDir"].is_object() && volume["volumeSource"].is_null());
    }

    #[test]
    fn names_are_in_the_path_of_one_object_only() {
        let document = v3_document("apps", "v1", "v1").unwrap();
        let collection = "/apis/apps/v1/namespaces/{namespace}/deployments";
        assert_eq!(document["paths"][collection]["post"]["x-kubernetes-action"], "post");
        let single = &document["paths"][format!("{collection}/{{name}}")];
        assert_eq!(single["put"]["x-kubernetes-action"], "put");
        let core = v3_document("", "v1", "v1").unwrap();
        assert!(core["paths"]["/api/v1/nodes/{name}"].is_object());
    }

    #[test]
    fn a_long_field_has_a_length_of_two_bytes() {
        let mut out = Vec::new();
        field(2, &[b'x'; 300], &mut out);
        assert_eq!(out.get(..4), Some(&[0x12, 0xac, 0x02, b'x'][..]));
        assert_eq!(out.len(), 303);
    }

    #[test]
    fn the_protobuf_document_begins_with_its_version() {
        let bytes = v2_protobuf("v1.36.0");
        assert!(bytes.starts_with(b"\x0a\x032.0\x12"));
        assert!(bytes.ends_with(b"\x42\x00"));
    }
}
