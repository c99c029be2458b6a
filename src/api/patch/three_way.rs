//! The patch that `apply` sends: what the user wants, and what the user no longer wants.

use serde_json::{Map, Value, json};

use crate::api::patch::merge_keys::{ListRule, Place};
use crate::api::resource::Resource;

/// A strategic merge patch that makes an object as `wanted` and takes away what only `last` (the
/// object as it was applied before) asked for. What others added stays.
pub(super) fn make(res: &Resource, last: &Value, wanted: &Value) -> Value {
    let empty = Map::new();
    let map = |value: &Value| value.as_object().cloned().unwrap_or_default();
    let last = last.as_object().unwrap_or(&empty);
    Value::Object(maps(Place::root(res), last, &map(wanted)))
}

/// What to send of the map at `place`.
fn maps(
    place: Place,
    last: &Map<String, Value>,
    wanted: &Map<String, Value>,
) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, value) in wanted {
        let change = match (last.get(key), value) {
            (Some(Value::Object(last)), Value::Object(value)) => {
                Value::Object(maps(place.field(key), last, value))
            }
            (Some(Value::Array(last)), Value::Array(value)) => {
                Value::Array(lists(place, key, last, value))
            }
            _ => value.clone(),
        };
        patch.insert(key.clone(), change);
    }
    for key in last.keys().filter(|key| !wanted.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    patch
}

fn lists(place: Place, field: &str, last: &[Value], wanted: &[Value]) -> Vec<Value> {
    let ListRule::MergeBy(key) = place.list_rule(field) else { return wanted.to_vec() };
    let same = |items: &[Value], id: Option<&Value>| -> Option<Value> {
        items.iter().find(|item| id.is_some() && item.get(key) == id).cloned()
    };
    let mut patch: Vec<Value> = wanted
        .iter()
        .map(|item| match (same(last, item.get(key)), item) {
            (Some(Value::Object(last)), Value::Object(item)) => {
                Value::Object(maps(place.field(field), &last, item))
            }
            _ => item.clone(),
        })
        .collect();
    for id in last.iter().filter_map(|item| item.get(key)) {
        if same(wanted, Some(id)).is_none() {
            patch.push(json!({key: id, "$patch": "delete"}));
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::patch::strategic;

    fn container(env: &Value, image: &str) -> Value {
        json!({"name": "a", "image": image, "env": env})
    }

    fn deployment(labels: &Value, containers: &[Value]) -> Value {
        json!({
            "metadata": {"name": "d", "labels": labels},
            "spec": {"template": {"spec": {"containers": containers}}},
        })
    }

    #[test]
    fn what_is_no_longer_wanted_goes_and_what_others_added_stays() {
        let res = crate::api::find("apps", "v1", "deployments").unwrap();
        let env = json!([{"name": "K", "value": "1"}, {"name": "OLD", "value": "1"}]);
        let sidecar = json!({"name": "sidecar", "image": "s"});
        let last = deployment(&json!({"x": "1", "y": "1"}), &[container(&env, "v1"), sidecar]);
        let wanted = deployment(
            &json!({"x": "2"}),
            &[container(&json!([{"name": "K", "value": "2"}]), "v2")],
        );
        let mut live = last.clone();
        live["spec"]["replicas"] = json!(5);
        live["metadata"]["labels"]["theirs"] = json!("z");
        live["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = json!("Always");
        strategic(res, &mut live, &make(res, &last, &wanted)).unwrap();
        assert_eq!(live["metadata"]["labels"], json!({"x": "2", "theirs": "z"}));
        assert_eq!(live["spec"]["replicas"], 5);
        let containers = live["spec"]["template"]["spec"]["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1, "{containers:?}");
        assert_eq!(containers[0]["env"], json!([{"name": "K", "value": "2"}]));
        assert_eq!(
            (&containers[0]["image"], &containers[0]["imagePullPolicy"]),
            (&json!("v2"), &json!("Always"))
        );
    }

    #[test]
    fn the_same_wish_again_changes_nothing() {
        let res = crate::api::find("", "v1", "services").unwrap();
        let wanted = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
        let live = json!({
            "metadata": {"name": "s", "uid": "u"},
            "spec": {"ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}]},
        });
        let mut after = live.clone();
        strategic(res, &mut after, &make(res, &wanted, &wanted)).unwrap();
        assert_eq!(after, live);
    }
}
