//! What shape the client wants: JSON objects, a Table, or metadata only.

use axum::body::Body;
use http::{HeaderMap, Response, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::status::Status;
use crate::api::{Resource, meta, table};
use crate::apiserver::error::ApiError;
use crate::apiserver::query::Query;
use crate::apiserver::response;

/// Shape of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// The object as it is.
    Object,
    /// A `meta.k8s.io` Table of this version, and what each row carries of its object.
    Table { version: String, include: Include },
    /// `PartialObjectMetadata`.
    Metadata,
}

/// `includeObject` of a Table request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Include {
    None,
    Metadata,
    Object,
}

/// What this server can send, for 406 answers.
const SUPPORTED: &[&str] = &["application/json", "application/yaml"];

impl Shape {
    /// The first acceptable entry of `Accept`.
    pub(super) fn negotiate(headers: &HeaderMap, query: &Query) -> Result<Self, ApiError> {
        let Some(accept) = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()) else {
            return Ok(Self::Object);
        };
        for entry in accept.split(',') {
            let mut parts = entry.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            if !matches!(
                media,
                "application/json" | "*/*" | "application/*" | "application/yaml" | ""
            ) {
                continue;
            }
            let named = |key: &str| {
                let clone = parts.clone();
                clone
                    .filter_map(|part| part.split_once('='))
                    .find(|(k, _)| *k == key)
                    .map(|(_, v)| v)
            };
            match (named("as"), named("v")) {
                (None, _) => return Ok(Self::Object),
                (Some("Table"), version) => {
                    let include = match query.get("includeObject") {
                        Some("None") => Include::None,
                        Some("Object") => Include::Object,
                        _ => Include::Metadata,
                    };
                    let version = version.filter(|v| matches!(*v, "v1" | "v1beta1"));
                    if let Some(version) = version {
                        return Ok(Self::Table { version: version.to_owned(), include });
                    }
                }
                (Some("PartialObjectMetadata" | "PartialObjectMetadataList"), _) => {
                    return Ok(Self::Metadata);
                }
                (Some(_), _) => {}
            }
        }
        Err(Status::not_acceptable(SUPPORTED).into())
    }

    /// One object in this shape.
    pub(super) fn object(&self, resource: &Resource, object: &Value, now: Timestamp) -> Value {
        match self {
            Self::Object => object.clone(),
            Self::Metadata => meta::partial_object_metadata(object),
            Self::Table { version, include } => {
                let rows = vec![row(resource, object, *include, now)];
                let revision = meta::resource_version(object);
                table_of(resource, version, rows, json!({"resourceVersion": revision}))
            }
        }
    }

    /// An object in a watch event: a Table tells its columns only `with_columns`.
    pub(super) fn event(
        &self,
        resource: &Resource,
        object: &Value,
        now: Timestamp,
        with_columns: bool,
    ) -> Value {
        let mut shaped = self.object(resource, object, now);
        if let (Self::Table { .. }, false, Some(fields)) =
            (self, with_columns, shaped.as_object_mut())
        {
            fields.insert("columnDefinitions".to_owned(), Value::Null);
        }
        shaped
    }

    /// A collection in this shape; `list_meta` is its `metadata`.
    pub(super) fn list(
        &self,
        resource: &Resource,
        items: Vec<Value>,
        list_meta: Value,
        now: Timestamp,
    ) -> Value {
        match self {
            Self::Object => json!({
                "kind": resource.list_kind,
                "apiVersion": resource.api_version(),
                "metadata": list_meta,
                "items": items.into_iter().map(without_type).collect::<Vec<_>>(),
            }),
            Self::Metadata => json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": list_meta,
                "items": items.iter().map(meta::partial_object_metadata).collect::<Vec<_>>(),
            }),
            Self::Table { version, include } => {
                let rows = items.iter().map(|item| row(resource, item, *include, now)).collect();
                table_of(resource, version, rows, list_meta)
            }
        }
    }

    /// Sends one object.
    pub(super) fn respond(
        &self,
        code: StatusCode,
        resource: &Resource,
        object: &Value,
        now: Timestamp,
    ) -> Response<Body> {
        response::json(code, &self.object(resource, object, now))
    }
}

/// Items of a list do not repeat what the list says.
fn without_type(mut item: Value) -> Value {
    if let Some(fields) = item.as_object_mut() {
        fields.shift_remove("kind");
        fields.shift_remove("apiVersion");
    }
    item
}

fn row(resource: &Resource, object: &Value, include: Include, now: Timestamp) -> Value {
    let cells = table::row(resource, object, now);
    let object = match include {
        Include::None => return json!({"cells": cells}),
        Include::Metadata => meta::partial_object_metadata(object),
        Include::Object => object.clone(),
    };
    json!({"cells": cells, "object": object})
}

fn table_of(resource: &Resource, version: &str, rows: Vec<Value>, list_meta: Value) -> Value {
    json!({
        "kind": "Table",
        "apiVersion": format!("meta.k8s.io/{version}"),
        "metadata": list_meta,
        "columnDefinitions": table::definitions(resource),
        "rows": rows,
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn negotiate(accept: &'static str) -> Option<Shape> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
        Shape::negotiate(&headers, &Query::default()).ok()
    }

    #[test]
    fn the_first_acceptable_entry_wins() {
        let table = Shape::Table { version: "v1".into(), include: Include::Metadata };
        let cases = [
            ("application/json", Some(Shape::Object)),
            ("application/json, */*", Some(Shape::Object)),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Shape::Object)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(table.clone())),
            (
                "application/json;as=Table;g=meta.k8s.io;v=v2,application/json;as=Table;v=v1",
                Some(table),
            ),
            ("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", Some(Shape::Metadata)),
            ("application/vnd.kubernetes.protobuf", None),
            ("text/html", None),
        ];
        for (accept, wanted) in cases {
            assert_eq!(negotiate(accept), wanted, "{accept}");
        }
    }
}
