//! Goal: what Go's encoder writes is read as the JSON that it would have written. Method: a tiny
//! encoder here, golden values by hand, and random bytes.

use base64::Engine as _;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api;
use crate::api::decode;
use crate::api::schema::{Field, Shape, Type};

/// A number, as protobuf writes it.
fn varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(u8::try_from(number & 0x7f).unwrap() | 0x80);
        number >>= 7;
    }
    out.push(u8::try_from(number).unwrap());
}

fn number(at: u32, value: i64, out: &mut Vec<u8>) {
    varint(u64::from(at) << 3, out);
    varint(u64::from_ne_bytes(value.to_ne_bytes()), out);
}

fn bytes(at: u32, value: &[u8], out: &mut Vec<u8>) {
    varint(u64::from(at) << 3 | 2, out);
    varint(value.len() as u64, out);
    out.extend_from_slice(value);
}

/// An object's fields, by the table.
fn encode(message: usize, object: &Value, out: &mut Vec<u8>) {
    for field in &SCHEMA.message(message).unwrap().fields {
        if field.is_inline {
            let mut inner = Vec::new();
            encode(field.kind.message().unwrap(), object, &mut inner);
            bytes(field.number, &inner, out);
            continue;
        }
        let Some(value) = object.get(field.name) else { continue };
        match field.shape {
            Shape::One => one(field, value, out),
            Shape::List(_) => value.as_array().unwrap().iter().for_each(|v| one(field, v, out)),
            Shape::Map => {
                for (key, value) in value.as_object().unwrap() {
                    let mut entry = Vec::new();
                    bytes(1, key.as_bytes(), &mut entry);
                    one(&Field { number: 2, shape: Shape::One, ..bare(field) }, value, &mut entry);
                    bytes(field.number, &entry, out);
                }
            }
        }
    }
}

fn bare(field: &Field) -> Field {
    Field { shape: field.shape.clone(), default: field.default, ..*field }
}

fn one(field: &Field, value: &Value, out: &mut Vec<u8>) {
    let at = field.number;
    let mut inner = Vec::new();
    match field.kind {
        Type::Whole => return number(at, value.as_i64().unwrap(), out),
        Type::Flag => return number(at, i64::from(value.as_bool().unwrap()), out),
        Type::Text => inner.extend_from_slice(value.as_str().unwrap().as_bytes()),
        Type::Bytes => {
            let engine = base64::engine::general_purpose::STANDARD;
            inner = engine.decode(value.as_str().unwrap()).unwrap();
        }
        Type::Quantity => bytes(1, value.as_str().unwrap().as_bytes(), &mut inner),
        Type::IntOrString => match value {
            Value::String(text) => {
                number(1, 1, &mut inner);
                number(2, 0, &mut inner);
                bytes(3, text.as_bytes(), &mut inner);
            }
            other => {
                number(1, 0, &mut inner);
                number(2, other.as_i64().unwrap(), &mut inner);
                bytes(3, b"", &mut inner);
            }
        },
        Type::Time | Type::MicroTime => {
            if let Some(text) = value.as_str() {
                let at: jiff::Timestamp = text.parse().unwrap();
                number(1, at.as_second(), &mut inner);
                number(2, at.subsec_nanosecond().into(), &mut inner);
            }
        }
        Type::Raw => bytes(1, value.to_string().as_bytes(), &mut inner),
        Type::Texts => {
            for text in value.as_array().unwrap() {
                bytes(1, text.as_str().unwrap().as_bytes(), &mut inner);
            }
        }
        Type::Message(message) => encode(message, value, &mut inner),
    }
    bytes(at, &inner, out);
}

/// A body as a client sends it.
fn body(object: &Value) -> Vec<u8> {
    let text = |key: &str| object[key].as_str().unwrap();
    let (api_version, kind_name) = (text("apiVersion"), text("kind"));
    let mut raw = Vec::new();
    encode(kind(&SCHEMA, api_version, kind_name).unwrap(), object, &mut raw);
    let (mut meta, mut unknown) = (Vec::new(), Vec::new());
    bytes(1, api_version.as_bytes(), &mut meta);
    bytes(2, kind_name.as_bytes(), &mut meta);
    bytes(1, &meta, &mut unknown);
    bytes(2, &raw, &mut unknown);
    bytes(3, b"", &mut unknown);
    bytes(4, b"", &mut unknown);
    [MAGIC, &unknown].concat()
}

#[test]
fn objects_are_read_as_they_were_written() {
    let objects = [
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {
                "name": "p", "labels": {"a": "b", "c": ""}, "creationTimestamp": "2026-01-02T03:04:05Z",
                "ownerReferences": [{"kind": "X", "name": "n", "uid": "u", "apiVersion": "v1", "controller": false}],
                "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "m", "defaultMode": 0}}],
                "containers": [{"name": "c", "image": "i", "args": ["", "-x"],
                    "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "env": [{"name": "E", "value": "1"}, {"name": "F", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k", "optional": false}}}],
                    "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "100m"}},
                    "livenessProbe": {"httpGet": {"path": "/", "port": "http"}, "timeoutSeconds": 1},
                    "readinessProbe": {"tcpSocket": {"port": 8080}}}],
                "terminationGracePeriodSeconds": 0, "hostUsers": false},
            "status": {}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "replicas": 0, "selector": {"matchLabels": {"a": "b"}}, "strategy": {"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "resources": {}}]}}}, "status": {}}),
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"k": "AAEC", "e": ""}, "type": "Opaque"}),
        json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
            "spec": {"holderIdentity": "", "renewTime": "2026-01-02T03:04:05.000600Z", "leaseTransitions": -1}}),
        json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "metadata": {"name": "r"}, "data": {"a": [1, null]}, "revision": 3}),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "i"}, "spec": {"rules": [
            {"host": "h", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "s", "port": {"number": 80}}}}]}}]}, "status": {"loadBalancer": {}}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"}, "spec": {
            "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "minReplicas": 0, "maxReplicas": 3,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}}}]}}),
        json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"}, "spec": {"maxUnavailable": 1}}),
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}, "deleteOptions": {"gracePeriodSeconds": 0}}),
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {}, "spec": {"audiences": ["a"], "expirationSeconds": 600}}),
        json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"}, "count": 2, "eventTime": "2026-01-02T03:04:05.123456Z", "reportingComponent": "r", "reportingInstance": ""}),
        json!({"apiVersion": "apps/v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0, "preconditions": {"uid": "u"}, "dryRun": ["All"]}),
    ];
    for object in objects {
        let decoded = to_json(&body(&object)).unwrap();
        assert_eq!(sorted(&decoded), sorted(&object));
    }
}

/// Order of fields is the table's.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| key.as_str());
            entries.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect()
        }
        Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

#[test]
fn zeros_that_nobody_set_are_left_out() {
    let (mut meta, mut raw) = (Vec::new(), Vec::new());
    bytes(1, b"x", &mut meta);
    for unset in [2, 3, 5, 6] {
        bytes(unset, b"", &mut meta);
    }
    number(7, 0, &mut meta);
    bytes(8, b"", &mut meta);
    bytes(1, &meta, &mut raw);
    let decoded = decoded("v1", "ConfigMap", &raw);
    assert_eq!(
        decoded,
        Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}))
    );
}

fn decoded(api_version: &str, kind: &str, raw: &[u8]) -> Result<Value, ProtobufError> {
    let (mut meta, mut unknown) = (Vec::new(), Vec::new());
    bytes(1, api_version.as_bytes(), &mut meta);
    bytes(2, kind.as_bytes(), &mut meta);
    bytes(1, &meta, &mut unknown);
    bytes(2, raw, &mut unknown);
    to_json(&[MAGIC, &unknown].concat())
}

#[test]
fn lists_of_numbers_come_packed_or_not_and_unknown_fields_are_skipped() {
    let (mut spec, mut security) = (Vec::new(), Vec::new());
    bytes(4, &[1, 2], &mut security);
    number(4, 300, &mut security);
    bytes(14, &security, &mut spec);
    bytes(9999, b"?", &mut spec);
    number(9998, 7, &mut spec);
    let mut raw = Vec::new();
    bytes(2, &spec, &mut raw);
    let pod = decoded("v1", "Pod", &raw).unwrap();
    assert_eq!(pod["spec"], json!({"securityContext": {"supplementalGroups": [1, 2, 300]}}));
}

#[test]
fn what_is_no_object_is_refused_in_words() {
    let cut = {
        let whole = body(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}));
        whole[..whole.len() - 6].to_vec()
    };
    let mut not_text = Vec::new();
    bytes(1, &[0x0a, 0x01, 0xff], &mut not_text);
    let cases = [
        (to_json(b"{}"), "expected prefix 6b 38 73 00"),
        (to_json(&cut), "unexpected end"),
        (
            decoded("v1", "ConfigMap", &not_text),
            "metadata: name: malformed protobuf: a string is not UTF-8",
        ),
        (
            decoded("v1", "ConfigMap", &[0x08, 0x01]),
            "metadata: malformed protobuf: a field has the wrong wire type",
        ),
        (decoded("v1", "Nothing", &[]), "Nothing in version \"v1\" has no protobuf encoding here"),
        (decoded("gateway.networking.k8s.io/v1", "Gateway", &[]), "has no protobuf encoding here"),
    ];
    for (result, wanted) in cases {
        let refused = result.unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused}");
    }
}

#[test]
fn a_body_of_too_many_values_is_refused() {
    let mut spec = Vec::new();
    for _ in 0..=VALUES_MAX {
        bytes(2, b"", &mut spec);
    }
    let mut raw = Vec::new();
    bytes(2, &spec, &mut raw);
    let refused = decoded("v1", "Pod", &raw).unwrap_err().to_string();
    assert!(refused.contains("more than"), "{refused}");
}

#[test]
fn what_deep_nesting_there_can_be_is_refused() {
    // The only type that holds itself is JSON in JSON.
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let (mut data, mut raw) = (Vec::new(), Vec::new());
    bytes(1, deep.as_bytes(), &mut data);
    bytes(2, &data, &mut raw);
    assert!(decoded("apps/v1", "ControllerRevision", &raw).is_err());
}

/// The typed structs know every field of the table: nothing sent is called unknown.
#[test]
fn fields_of_the_table_are_fields_of_the_kinds() {
    for resource in api::resources() {
        let Some(message) = kind(&SCHEMA, &resource.api_version(), resource.kind) else { continue };
        let mut full = full(message, 0);
        let known = (resource.strategy.decode)(&full);
        let known = known.unwrap_or_else(|why| panic!("{}: {why}", resource.kind));
        let lost = decode::drop_lost(&mut full, &known);
        assert_eq!(lost, Vec::<String>::new(), "{}", resource.kind);
    }
}

/// An object with every field set.
fn full(message: usize, depth: usize) -> Value {
    let mut object = Map::new();
    for field in &SCHEMA.message(message).unwrap().fields {
        let value = match field.kind {
            Type::Whole | Type::IntOrString => json!(1),
            Type::Flag => json!(true),
            Type::Text => json!("x"),
            Type::Bytes => json!("eA=="),
            Type::Quantity => json!("1"),
            Type::Time => json!("2026-01-02T03:04:05Z"),
            Type::MicroTime => json!("2026-01-02T03:04:05.000001Z"),
            Type::Raw => json!({"x": 1}),
            Type::Texts => json!(["x"]),
            Type::Message(message) if depth < 12 => full(message, depth + 1),
            Type::Message(_) => continue,
        };
        if field.is_inline {
            object.extend(value.as_object().unwrap().clone());
            continue;
        }
        let value = match field.shape {
            Shape::One => value,
            Shape::List(_) => json!([value]),
            Shape::Map => json!({"k": value}),
        };
        object.insert(field.name.to_owned(), value);
    }
    Value::Object(object)
}

proptest! {
    #[test]
    fn random_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = to_json(&raw);
        let _ = to_json(&[MAGIC, &raw].concat());
        for (version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "Secret"), ("v1", "Event")] {
            let _ = decoded(version, kind, &raw);
        }
    }

    #[test]
    fn a_changed_byte_never_panics(at in 0_usize..400, to in any::<u8>()) {
        let mut sent = body(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}], "resources": {"limits": {"cpu": "1"}}}]}}));
        let at = at % sent.len();
        sent[at] = to;
        let _ = to_json(&sent);
    }
}
