//! Goal: Kubernetes' rules of ownership, one by one, and what holds for any objects. Method: tables by
//! hand, and random ConfigMaps and Deployments with random managers.

use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use serde_json::json;

use super::*;
use crate::api;
use crate::api::apply::set::FieldSet;

fn deployments() -> &'static Resource {
    api::find("apps", "v1", "deployments").unwrap()
}

fn maps() -> &'static Resource {
    api::find("", "v1", "configmaps").unwrap()
}

fn writer(manager: &str) -> Writer<'_> {
    Writer { manager, subresource: "", now: "2026-01-01T00:00:00Z" }
}

fn map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": data})
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn applied(stored: &Value, object: &Value, by: &str) -> Value {
    let resource = api::find_kind(
        meta::split_api_version(text(object, "/apiVersion")).0,
        meta::split_api_version(text(object, "/apiVersion")).1,
        text(object, "/kind"),
    );
    let stored = Some(stored).filter(|stored| !stored.is_null());
    apply(resource.unwrap(), stored, object, &writer(by), false).unwrap()
}

/// `(manager, operation, fields)` of each entry.
fn owners(object: &Value) -> Vec<(String, String, Value)> {
    let entries = api::json::items_at(object, "/metadata/managedFields");
    let owner = |entry: &Value| {
        let (manager, operation) = (text(entry, "/manager"), text(entry, "/operation"));
        (manager.to_owned(), operation.to_owned(), entry["fieldsV1"].clone())
    };
    entries.iter().map(owner).collect()
}

fn owner(manager: &str, operation: &str, fields: Value) -> (String, String, Value) {
    (manager.to_owned(), operation.to_owned(), fields)
}

fn updated(stored: &Value, mut new: Value, by: &str) -> Value {
    let resource = if new["kind"] == "ConfigMap" { maps() } else { deployments() };
    let stored = Some(stored).filter(|stored| !stored.is_null());
    track(resource, stored, &mut new, &writer(by));
    new
}

#[test]
fn what_is_applied_is_owned_and_defaults_are_not() {
    let object = applied(
        &Value::Null,
        &deployment(json!({"replicas": 2, "template": {
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80}]}]}}})),
        "me",
    );
    let port = json!({".": {}, "f:containerPort": {}});
    let container = json!({".": {}, "f:name": {}, "f:image": {}, "f:ports": {
        "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": port}});
    assert_eq!(
        owners(&object),
        [owner(
            "me",
            "Apply",
            json!({"f:spec": {"f:replicas": {}, "f:template": {
            "f:metadata": {"f:labels": {"f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"c\"}": container}}}}})
        )]
    );
}

#[test]
fn a_field_that_only_one_manager_set_goes_with_it() {
    let first = applied(&Value::Null, &map(json!({"a": "1", "b": "1"})), "me");
    let both = applied(&first, &map(json!({"b": "1"})), "you");
    let without = applied(&both, &map(json!({})), "me");
    assert_eq!(without["data"], json!({"b": "1"}), "b is another one's too");
    assert_eq!(
        owners(&without),
        [owner("you", "Apply", json!({"f:data": {"f:b": {}}}))]
            .into_iter()
            .chain([owner("me", "Apply", json!({"f:data": {}}))])
            .rev()
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_change_of_what_another_owns_is_a_conflict_unless_forced() {
    let first = applied(&Value::Null, &deployment(json!({"replicas": 1})), "me");
    let other = deployment(json!({"replicas": 2}));
    let refused = apply(deployments(), Some(&first), &other, &writer("you"), false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 1 conflict: conflict with \"me\": .spec.replicas"
    );
    let ApplyError::Conflicts(conflicts) = refused else { panic!("{refused}") };
    assert_eq!(conflicts, [Conflict { manager: "\"me\"".into(), field: ".spec.replicas".into() }]);
    let forced = apply(deployments(), Some(&first), &other, &writer("you"), true).unwrap();
    assert_eq!(forced["spec"]["replicas"], 2);
    assert_eq!(owners(&forced), [owner("you", "Apply", json!({"f:spec": {"f:replicas": {}}}))]);
    let same = applied(&first, &deployment(json!({"replicas": 1})), "you");
    assert_eq!(owners(&same).len(), 2, "who says the same shares it");
}

#[test]
fn conflicts_of_several_managers_are_listed_by_manager() {
    let stored = updated(&Value::Null, map(json!({"a": "1", "b": "1"})), "kubectl-create");
    let stored = updated(&stored, map(json!({"a": "1", "b": "2"})), "kubectl-edit");
    let all = map(json!({"a": "x", "b": "x"}));
    let refused = apply(maps(), Some(&stored), &all, &writer("me"), false).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "Apply failed with 2 conflicts: conflicts with \"kubectl-create\" using v1 at \
         2026-01-01T00:00:00Z:\n- .data.a\nconflicts with \"kubectl-edit\" using v1 at \
         2026-01-01T00:00:00Z:\n- .data.b"
    );
}

#[test]
fn elements_of_a_keyed_list_have_owners_of_their_own() {
    let spec =
        |containers: Value| deployment(json!({"template": {"spec": {"containers": containers}}}));
    let first = applied(&Value::Null, &spec(json!([{"name": "a", "image": "1"}])), "me");
    let second = applied(&first, &spec(json!([{"name": "b", "image": "1"}])), "you");
    let containers = |object: &Value| object["spec"]["template"]["spec"]["containers"].clone();
    assert_eq!(
        containers(&second),
        json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])
    );
    // A field that a controller filled in goes with its container.
    let mut filled = second.clone();
    filled["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = json!("/x");
    let rest = applied(&filled, &spec(json!([])), "me");
    assert_eq!(containers(&rest), json!([{"name": "b", "image": "1"}]));
}

#[test]
fn ports_are_told_apart_by_number_and_protocol() {
    let spec = |ports: Value| {
        deployment(json!({"template": {"spec": {"containers": [
        {"name": "a", "ports": ports}]}}}))
    };
    let both = json!([{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 53}]);
    let first = applied(&Value::Null, &spec(both), "me");
    let named = json!([{"containerPort": 53, "protocol": "TCP", "name": "tcp"}]);
    let second = applied(&first, &spec(named), "you");
    let ports = &second["spec"]["template"]["spec"]["containers"][0]["ports"];
    assert_eq!(
        ports,
        &json!([{"containerPort": 53, "protocol": "UDP"},
        {"containerPort": 53, "protocol": "TCP", "name": "tcp"}])
    );
}

#[test]
fn atomic_lists_maps_and_types_are_owned_whole() {
    let spec = |args: Value| {
        deployment(json!({"selector": {"matchLabels": {"a": "b"}},
        "template": {"spec": {"containers": [{"name": "a", "args": args}]}}}))
    };
    let first = applied(&Value::Null, &spec(json!(["1"])), "me");
    let text = owners(&first).remove(0).2.to_string();
    assert!(text.contains(r#""f:selector":{}"#) && text.contains(r#""f:args":{}"#), "{text}");
    let refused =
        apply(deployments(), Some(&first), &spec(json!(["1", "2"])), &writer("you"), false);
    assert!(refused.unwrap_err().to_string().ends_with(".args"));
}

#[test]
fn sets_of_scalars_merge() {
    let finalizers = |list: Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "m", "finalizers": list}})
    };
    let first = applied(&Value::Null, &finalizers(json!(["x/a"])), "me");
    let second = applied(&first, &finalizers(json!(["x/b"])), "you");
    assert_eq!(second["metadata"]["finalizers"], json!(["x/a", "x/b"]));
    let rest = applied(&second, &finalizers(json!([])), "me");
    assert_eq!(rest["metadata"]["finalizers"], json!(["x/b"]));
}

#[test]
fn an_update_takes_over_what_it_changes_and_forgets_what_it_removes() {
    let first = applied(&Value::Null, &map(json!({"a": "1", "b": "1", "c": "1"})), "me");
    let mut edited = first.clone();
    edited["data"] = json!({"a": "2", "c": "1", "d": "1"});
    let second = updated(&first, edited, "kubectl-edit");
    assert_eq!(
        owners(&second),
        [
            owner("me", "Apply", json!({"f:data": {"f:c": {}}})),
            owner("kubectl-edit", "Update", json!({"f:data": {"f:a": {}, "f:d": {}}})),
        ]
    );
    // Whoever applies again without what was taken over leaves it.
    let third = applied(&second, &map(json!({"c": "1"})), "me");
    assert_eq!(third["data"], json!({"a": "2", "c": "1", "d": "1"}));
}

#[test]
fn an_object_without_owners_belongs_to_before_first_apply() {
    let stored = deployment(json!({"replicas": 1, "paused": false}));
    let other = deployment(json!({"replicas": 2}));
    let refused = apply(deployments(), Some(&stored), &other, &writer("me"), false).unwrap_err();
    assert!(refused.to_string().contains("conflict with \"before-first-apply\" using apps/v1"));
    let same = applied(&stored, &deployment(json!({"replicas": 1})), "me");
    let names: Vec<String> = owners(&same).into_iter().map(|owner| owner.0).collect();
    assert_eq!(names, ["me", "before-first-apply"]);
}

#[test]
fn what_kubectl_applied_in_its_own_way_is_no_conflict_for_it() {
    let mut before = map(json!({"a": "1"}));
    before["metadata"]["annotations"] = json!({LAST_APPLIED: map(json!({"a": "1"})).to_string()});
    let stored = updated(&Value::Null, before, "kubectl-client-side-apply");
    let next = map(json!({"a": "2"}));
    assert!(apply(maps(), Some(&stored), &next, &writer("you"), false).is_err());
    let done = applied(&stored, &next, "kubectl");
    assert_eq!(done["data"]["a"], "2");
    let last: Value = serde_json::from_str(meta::annotation(&done, LAST_APPLIED).unwrap()).unwrap();
    assert_eq!(last["data"]["a"], "2");
}

#[test]
fn a_null_takes_a_field_away_and_malformed_lists_are_refused() {
    let first = applied(&Value::Null, &deployment(json!({"replicas": 1, "paused": true})), "me");
    let second = applied(&first, &deployment(json!({"replicas": 1, "paused": null})), "me");
    assert_eq!(second["spec"], json!({"replicas": 1}));
    let cases = [
        (json!([{"image": "x"}]), ".spec.template.spec.containers[0]: element lacks"),
        (json!([{"name": "a"}, {"name": "a"}]), ".spec.template.spec.containers[1]: duplicate"),
    ];
    for (containers, wanted) in cases {
        let object = deployment(json!({"template": {"spec": {"containers": containers}}}));
        let refused = apply(deployments(), None, &object, &writer("me"), false).unwrap_err();
        assert!(refused.to_string().starts_with(wanted), "{refused}");
    }
}

#[test]
fn status_is_owned_by_who_writes_status() {
    let mut new = deployment(json!({"replicas": 1}));
    let stored = updated(&Value::Null, new.clone(), "kubectl-create");
    new["metadata"] = stored["metadata"].clone();
    new["status"] = json!({"replicas": 1, "conditions": [{"type": "Available", "status": "True"}]});
    let by = Writer { subresource: "status", ..writer("controller") };
    track(deployments(), Some(&stored), &mut new, &by);
    let entries = new["metadata"]["managedFields"].as_array().unwrap();
    assert_eq!(entries[0]["subresource"], "status", "{entries:?}");
    assert_eq!(
        entries[0]["fieldsV1"]["f:status"],
        json!({"f:replicas": {}, "f:conditions": {"k:{\"type\":\"Available\"}":
            {".": {}, "f:type": {}, "f:status": {}}}})
    );
    assert!(is_tracked(&new, true) && is_tracked(&stored, false) && !is_tracked(&stored, true));
}

#[test]
fn an_apply_to_status_says_nothing_of_the_rest() {
    let mut stored = updated(&Value::Null, deployment(json!({"replicas": 1})), "kubectl-create");
    stored["status"] = json!({"replicas": 1});
    let mut object = deployment(json!({"replicas": 5}));
    object["status"] = json!({"readyReplicas": 1});
    let by = Writer { subresource: "status", ..writer("me") };
    let made = apply(deployments(), Some(&stored), &object, &by, false).unwrap();
    assert_eq!(made["spec"], stored["spec"]);
    assert_eq!(made["status"], json!({"replicas": 1, "readyReplicas": 1}));
    let mine = owners(&made).remove(0);
    assert_eq!(mine, owner("me", "Apply", json!({"f:status": {"f:readyReplicas": {}}})));
    let main = applied(
        &stored,
        &json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "d"}, "status": {"replicas": 9}}),
        "me",
    );
    assert_eq!(main["status"], stored["status"]);
}

#[test]
fn the_oldest_of_too_many_updaters_become_one() {
    let mut stored = updated(&Value::Null, map(json!({})), "m");
    for n in 0..14 {
        let mut new = stored.clone();
        new["data"][format!("k{n}")] = json!("v");
        let (manager, now) = (format!("m{n}"), format!("2026-01-01T00:00:{n:02}Z"));
        let by = Writer { manager: &manager, subresource: "", now: &now };
        track(maps(), Some(&stored), &mut new, &by);
        stored = new;
    }
    let names: Vec<String> = owners(&stored).into_iter().map(|owner| owner.0).collect();
    assert_eq!(names.len(), 10, "{names:?}");
    assert_eq!(names[0], "ancient-changes");
    assert_eq!(names[9], "m13");
}

#[test]
fn clients_may_rewrite_the_managers_or_have_them_forgotten() {
    let first = updated(&Value::Null, map(json!({"a": "1"})), "kubectl-client-side-apply");
    let mut migrated = first.clone();
    migrated["metadata"]["managedFields"][0]["manager"] = json!("kubectl");
    migrated["metadata"]["managedFields"][0]["operation"] = json!("Apply");
    let second = updated(&first, migrated, "kubectl");
    assert_eq!(owners(&second)[0].0, "kubectl");
    assert_eq!(owners(&second).len(), 1);
    let mut reset = second.clone();
    reset["metadata"]["managedFields"] = json!([{}]);
    assert_eq!(owners(&updated(&second, reset, "kubectl")), []);
    let bare = map(json!({"a": "1"}));
    assert_eq!(owners(&updated(&second, bare, "x"))[0].0, "kubectl", "a PUT without keeps them");
}

/// Some keys with some values; few of each, so that managers meet.
fn data() -> impl Strategy<Value = Value> {
    proptest::collection::btree_map("[a-d]", "[12]", 0..4).prop_map(|map| json!(map))
}

/// Containers with some fields.
fn containers() -> impl Strategy<Value = Value> {
    let one = ("[12]", any::<bool>(), data());
    proptest::collection::btree_map("[a-c]", one, 0..3).prop_map(|map| {
        let one = |(name, (image, has_port, env)): (String, (String, bool, Value))| {
            let env: Vec<Value> = env
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, value)| json!({"name": name, "value": value}))
                .collect();
            let ports = if has_port { json!([{"containerPort": 80}]) } else { json!([]) };
            json!({"name": name, "image": image, "env": env, "ports": ports})
        };
        Value::Array(map.into_iter().map(one).collect())
    })
}

fn objects() -> impl Strategy<Value = Value> {
    (containers(), data(), proptest::option::of(0..3)).prop_map(|(containers, labels, replicas)| {
        let mut object = deployment(json!({"template": {"metadata": {"labels": labels},
            "spec": {"containers": containers}}}));
        if let Some(replicas) = replicas {
            object["spec"]["replicas"] = json!(replicas);
        }
        object
    })
}

fn steps() -> impl Strategy<Value = Vec<(usize, bool, Value)>> {
    proptest::collection::vec((0..3_usize, any::<bool>(), objects()), 1..8)
}

/// What comes of some writes by some managers; conflicts are forced.
fn history(steps: &[(usize, bool, Value)]) -> Value {
    let mut stored = Value::Null;
    for (manager, is_apply, object) in steps {
        let name = format!("m{manager}");
        let before = Some(&stored).filter(|stored| !stored.is_null());
        stored = if *is_apply {
            apply(deployments(), before, object, &writer(&name), true).unwrap()
        } else {
            updated(&stored, object.clone(), &name)
        };
    }
    stored
}

proptest! {
    #[test]
    fn to_apply_the_same_again_changes_nothing(steps in steps(), object in objects()) {
        let stored = history(&steps);
        let once = apply(deployments(), Some(&stored), &object, &writer("me"), true).unwrap();
        let later = Writer { now: "2027-01-01T00:00:00Z", ..writer("me") };
        let twice = apply(deployments(), Some(&once), &object, &later, false).unwrap();
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn what_is_applied_is_there(steps in steps(), object in objects()) {
        let stored = history(&steps);
        let made = apply(deployments(), Some(&stored), &object, &writer("me"), true).unwrap();
        let again = merge::merged(Place::root(deployments()), &made, &object);
        prop_assert_eq!(again, made);
    }

    #[test]
    fn what_another_owns_stays_when_an_applier_drops_all(steps in steps(), object in objects()) {
        let stored = history(&steps);
        let mine = apply(deployments(), Some(&stored), &object, &writer("me"), true).unwrap();
        let dropped = apply(deployments(), Some(&mine), &deployment(json!({})), &writer("me"), false).unwrap();
        let root = Place::root(deployments());
        let there = fields::own(fields::of(root, &dropped));
        for entry in managers::read(&mine) {
            if !entry.is_of(&writer("me"), Operation::Apply) {
                let lost: Vec<String> = {
                    let mut owned = entry.fields.clone();
                    owned.take(&there);
                    owned.paths()
                };
                // A map or an element that is owned itself is there as long as its keys are.
                let lost: Vec<_> = lost.into_iter()
                    .filter(|path| !there.paths().iter().any(|kept| kept.starts_with(path.as_str())))
                    .collect();
                prop_assert_eq!(lost, Vec::<String>::new());
            }
        }
    }

    #[test]
    fn no_two_updaters_own_the_same_leaf(steps in steps()) {
        let entries = managers::read(&history(&steps));
        let updates: Vec<_> = entries.iter().filter(|e| e.to_string().contains(" using ")).collect();
        for (at, one) in updates.iter().enumerate() {
            for other in updates.iter().skip(at + 1) {
                let both = one.fields.both(&other.fields).paths();
                let leaves: Vec<_> = both.iter().filter(|p| p.ends_with("image") || p.ends_with("replicas")).collect();
                prop_assert!(leaves.is_empty(), "{leaves:?}");
            }
        }
    }

    #[test]
    fn sets_survive_being_written(steps in steps()) {
        for entry in managers::read(&history(&steps)) {
            prop_assert_eq!(FieldSet::read(&entry.fields.write()), entry.fields);
        }
    }
}
