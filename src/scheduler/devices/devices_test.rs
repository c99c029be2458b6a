//! What claims ask for and what they get, without a cluster.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::resource::v1::{DeviceClass, ResourceClaim, ResourceSlice};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::scheduler::decide::decide_with;
use crate::scheduler::storage::Storage;
use crate::scheduler::testing::{node, pod, view};

/// What there is.
#[derive(Default)]
struct World {
    claims: Vec<Arc<ResourceClaim>>,
    classes: Vec<Arc<DeviceClass>>,
    slices: Vec<Arc<ResourceSlice>>,
}

impl DeviceShelf for World {
    fn resource_claim(&self, _: &str, name: &str) -> Option<Arc<ResourceClaim>> {
        self.claims.iter().find(|claim| claim.name_any() == name).cloned()
    }

    fn resource_claims(&self) -> Vec<Arc<ResourceClaim>> {
        self.claims.clone()
    }

    fn device_class(&self, name: &str) -> Option<Arc<DeviceClass>> {
        self.classes.iter().find(|class| class.name_any() == name).cloned()
    }

    fn resource_slices(&self) -> Vec<Arc<ResourceSlice>> {
        self.slices.clone()
    }
}

impl World {
    /// Two nodes with two cameras each, one of them of model x; a class of all cameras.
    fn new() -> Self {
        let mut world = Self::default();
        world.class("camera", "device.driver == 'edgeorc.io'");
        for node in ["a", "b"] {
            world.slice(
                node,
                json!({"nodeName": node}),
                json!([
                    {"name": "one", "attributes": {"model": {"string": "x"}, "bus": {"int": 1}}},
                    {"name": "two", "attributes": {"model": {"string": "y"}, "bus": {"int": 1}}},
                ]),
            );
        }
        world
    }

    fn class(&mut self, name: &str, expression: &str) {
        let class = json!({"metadata": {"name": name},
            "spec": {"selectors": [{"cel": {"expression": expression}}],
                "config": [{"opaque": {"driver": "edgeorc.io", "parameters": {"of": "class"}}}]}});
        self.classes.push(Arc::new(serde_json::from_value(class).unwrap()));
    }

    fn slice(&mut self, name: &str, place: Value, devices: Value) {
        let mut slice = json!({"metadata": {"name": name}, "spec": {
            "driver": "edgeorc.io", "devices": devices,
            "pool": {"name": name, "generation": 1, "resourceSliceCount": 1}}});
        json_patch::merge(&mut slice["spec"], &place);
        self.slices.push(Arc::new(serde_json::from_value(slice).unwrap()));
    }

    fn claim(&mut self, name: &str, devices: Value) {
        let claim = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"devices": devices}});
        self.claims.push(Arc::new(serde_json::from_value(claim).unwrap()));
    }

    /// The devices that the claims of a pod get on the node, or why they get none.
    fn ask(&self, names: &[&str], on: &str) -> Result<Vec<String>, String> {
        let devices = devices_of(self, &pod_of(names));
        if let Some(missing) = devices.missing {
            return Err(missing);
        }
        let facts = Facts::of(&node(on, &json!({})));
        let given = devices.allocate(on, &facts).map_err(|text| text.to_string())?;
        let shown = given.iter().flat_map(|given| ids(&given.allocation));
        Ok(shown.map(|(_, pool, device)| format!("{pool}/{device}")).collect())
    }

    /// Gives a claim its devices on the node, for the pod with this uid.
    fn give(&mut self, name: &str, on: &str, uid: &str) {
        let devices = devices_of(self, &pod_of(&[name]));
        let given = devices.allocate(on, &Facts::of(&node(on, &json!({})))).unwrap();
        let status = json!({"allocation": given[0].allocation,
            "reservedFor": [{"resource": "pods", "name": "p", "uid": uid}]});
        for claim in &mut self.claims {
            if claim.name_any() == name {
                let mut new = (**claim).clone();
                new.status = Some(serde_json::from_value(status.clone()).unwrap());
                *claim = Arc::new(new);
            }
        }
    }
}

fn devices_of(world: &World, pod: &Pod) -> Devices {
    Devices::of(pod, world, &Assumed::default(), &mut Selectors::default())
}

fn pod_of(claims: &[&str]) -> Pod {
    let entries: Vec<_> =
        claims.iter().map(|name| json!({"name": name, "resourceClaimName": name})).collect();
    pod(&json!({"spec": {"resourceClaims": entries}}))
}

fn one(selector: &str) -> Value {
    let selectors = match selector {
        "" => json!([]),
        selector => json!([{"cel": {"expression": selector}}]),
    };
    json!({"requests": [{"name": "r", "exactly": {"deviceClassName": "camera",
        "allocationMode": "ExactCount", "count": 1, "selectors": selectors}}]})
}

fn model(name: &str) -> Value {
    one(&format!("device.attributes['edgeorc.io'].model == '{name}'"))
}

#[test]
fn a_claim_gets_the_first_free_device_that_is_selected() {
    let mut world = World::new();
    world.claim("any", one(""));
    world.claim("y", model("y"));
    world.claim("z", model("z"));
    assert_eq!(world.ask(&["any"], "a"), Ok(vec!["a/one".to_owned()]));
    assert_eq!(world.ask(&["y"], "b"), Ok(vec!["b/two".to_owned()]));
    assert_eq!(world.ask(&["z"], "a"), Err(NONE_FREE.to_owned()));
    assert_eq!(world.ask(&["any"], "c"), Err(NONE_FREE.to_owned()), "a node without devices");
    world.give("any", "a", "p1");
    world.claim("more", one(""));
    assert_eq!(world.ask(&["more"], "a"), Ok(vec!["a/two".to_owned()]));
}

/// Goal: a choice that leads nowhere is taken back.
#[test]
fn the_claims_of_a_pod_are_served_together() {
    let mut world = World::new();
    world.claim("any", one(""));
    world.claim("x", model("x"));
    let wanted = Ok(vec!["a/two".to_owned(), "a/one".to_owned()]);
    assert_eq!(world.ask(&["any", "x"], "a"), wanted);
    let mut two = one("");
    two["requests"][0]["exactly"]["count"] = json!(2);
    world.claim("two", two.clone());
    assert_eq!(world.ask(&["two"], "a"), Ok(vec!["a/one".to_owned(), "a/two".to_owned()]));
    assert_eq!(world.ask(&["two", "x"], "a"), Err(NONE_FREE.to_owned()));
}

#[test]
fn all_means_all_and_none_may_be_anothers() {
    let mut world = World::new();
    let mut all = one("");
    all["requests"][0]["exactly"]["allocationMode"] = json!("All");
    world.claim("all", all);
    assert_eq!(world.ask(&["all"], "a"), Ok(vec!["a/one".to_owned(), "a/two".to_owned()]));
    assert_eq!(world.ask(&["all"], "c"), Err(NONE_FREE.to_owned()));
    world.claim("x", model("x"));
    world.give("x", "a", "p1");
    assert_eq!(world.ask(&["all"], "a"), Err(NONE_FREE.to_owned()));
    assert!(world.ask(&["all"], "b").is_ok());
    let pool = json!({"nodeName": "b", "pool": {"name": "late", "resourceSliceCount": 2}});
    world.slice("late", pool, json!([{"name": "three"}]));
    assert_eq!(world.ask(&["all"], "b"), Err(NONE_FREE.to_owned()), "not all are known");
}

#[test]
fn the_first_alternative_that_can_be_had_is_taken() {
    let mut world = World::new();
    world.class("rare", "device.attributes['edgeorc.io'].model == 'x'");
    let want = |name: &str, class: &str| json!({"name": name, "deviceClassName": class, "allocationMode": "ExactCount", "count": 1});
    let rather = json!({"requests": [{"name": "r", "firstAvailable":
        [want("best", "rare"), want("good", "camera")]}],
        "config": [{"requests": ["r/good"], "opaque": {"driver": "edgeorc.io", "parameters": {}}}]});
    world.claim("first", rather.clone());
    world.claim("second", rather);
    assert_eq!(world.ask(&["first", "second"], "a"), Ok(vec!["a/one".into(), "a/two".into()]));
    let devices = devices_of(&world, &pod_of(&["first", "second"]));
    let given = devices.allocate("a", &Facts::default()).unwrap();
    let told = |at: usize| {
        let devices = given[at].allocation.devices.clone().unwrap();
        let sources: Vec<_> = devices.config.iter().flatten().map(|c| c.source.clone()).collect();
        (devices.results.unwrap()[0].request.clone(), sources)
    };
    assert_eq!(told(0), ("r/best".to_owned(), vec!["FromClass".to_owned()]));
    assert_eq!(
        told(1),
        ("r/good".to_owned(), vec!["FromClass".to_owned(), "FromClaim".to_owned()])
    );
    let selector = serde_json::to_value(&given[0].allocation.node_selector).unwrap();
    let field = &selector["nodeSelectorTerms"][0]["matchFields"][0];
    assert_eq!((&field["key"], &field["values"]), (&json!("metadata.name"), &json!(["a"])));
}

#[test]
fn constraints_hold_between_the_devices_of_a_claim() {
    let mut world = World::new();
    let pair = |constraint: Value| {
        let request = |name: &str| {
            json!({"name": name, "exactly": {"deviceClassName": "camera",
                "allocationMode": "ExactCount", "count": 1}})
        };
        json!({"requests": [request("r"), request("s")], "constraints": [constraint]})
    };
    world.claim("same", pair(json!({"matchAttribute": "edgeorc.io/bus"})));
    world.claim("unlike", pair(json!({"matchAttribute": "edgeorc.io/model"})));
    world.claim("other", pair(json!({"distinctAttribute": "edgeorc.io/model"})));
    world.claim("twice", pair(json!({"distinctAttribute": "edgeorc.io/bus"})));
    world.claim("unknown", pair(json!({"requests": ["r"], "matchAttribute": "edgeorc.io/speed"})));
    assert!(world.ask(&["same"], "a").is_ok() && world.ask(&["other"], "a").is_ok());
    for refused in ["unlike", "twice", "unknown"] {
        assert_eq!(world.ask(&[refused], "a"), Err(NONE_FREE.to_owned()), "{refused}");
    }
}

#[test]
fn taints_of_devices_are_tolerated_or_avoided() {
    let mut world = World::default();
    world.class("camera", "true");
    world.slice(
        "a",
        json!({"nodeName": "a"}),
        json!([
            {"name": "broken", "taints": [{"key": "broken", "effect": "NoSchedule"}]},
            {"name": "part", "consumesCounters": [{"counterSet": "s", "counters": {}}]},
        ]),
    );
    world.claim("plain", one(""));
    let mut brave = one("");
    brave["requests"][0]["exactly"]["tolerations"] =
        json!([{"key": "broken", "operator": "Exists"}]);
    world.claim("brave", brave);
    assert_eq!(world.ask(&["plain"], "a"), Err(NONE_FREE.to_owned()));
    assert_eq!(world.ask(&["brave"], "a"), Ok(vec!["a/broken".to_owned()]));
}

#[test]
fn only_the_newest_and_complete_pool_counts() {
    let mut world = World::default();
    world.class("camera", "true");
    let place = |generation: u32, count: u32| {
        json!({"nodeName": "a", "pool": {"name": "p", "generation": generation,
            "resourceSliceCount": count}})
    };
    world.claim("any", one(""));
    world.slice("old", place(1, 1), json!([{"name": "old"}]));
    world.slice("new", place(2, 2), json!([{"name": "new"}]));
    assert_eq!(world.ask(&["any"], "a"), Err(NONE_FREE.to_owned()), "one slice is still to come");
    world.slice("newer", place(2, 2), json!([{"name": "newer"}]));
    assert_eq!(world.ask(&["any"], "a"), Ok(vec!["p/new".to_owned()]));
}

#[test]
fn devices_can_be_reached_from_one_node_from_some_or_from_all() {
    let mut world = World::default();
    world.class("camera", "true");
    world.claim("any", one(""));
    let term = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["b"]}]}]});
    world.slice("some", json!({"nodeSelector": term}), json!([{"name": "d"}]));
    assert!(world.ask(&["any"], "a").is_err());
    assert_eq!(world.ask(&["any"], "b"), Ok(vec!["some/d".to_owned()]));
    world.slices.clear();
    world.slice(
        "each",
        json!({"perDeviceNodeSelection": true}),
        json!([
        {"name": "mine", "nodeName": "a"}, {"name": "ours", "allNodes": true}]),
    );
    assert_eq!(world.ask(&["any"], "a"), Ok(vec!["each/mine".to_owned()]));
    assert_eq!(world.ask(&["any"], "b"), Ok(vec!["each/ours".to_owned()]));
}

#[test]
fn what_is_missing_is_named_and_what_cannot_be_evaluated_too() {
    let mut world = World::new();
    assert_eq!(world.ask(&["none"], "a"), Err("resourceclaim \"none\" not found".to_owned()));
    let mut other = one("");
    other["requests"][0]["exactly"]["deviceClassName"] = json!("radio");
    world.claim("radio", other);
    assert_eq!(world.ask(&["radio"], "a"), Err("device class radio does not exist".to_owned()));
    world.claim("wrong", one("device.attributes['acme.com'].model == 'x'"));
    let failed = world.ask(&["wrong"], "a").unwrap_err();
    assert!(failed.starts_with("request r: selector #0: device one: No such key"), "{failed}");
    let waiting = pod(&json!({"spec": {"resourceClaims":
        [{"name": "c", "resourceClaimTemplateName": "t"}]}}));
    let missing = devices_of(&world, &waiting).missing.unwrap();
    assert!(missing.contains("to create the resourceclaim \"c\""), "{missing}");
}

/// Goal: as in Kubernetes, a mistake in an expression is told, whatever other devices there are.
#[test]
fn a_device_that_cannot_be_asked_is_a_mistake_even_if_another_would_do() {
    let mut world = World::default();
    world.class("camera", "true");
    world.slice(
        "a",
        json!({"nodeName": "a"}),
        json!([
        {"name": "plain"}, {"name": "fast", "attributes": {"speed": {"int": 1}}}]),
    );
    world.claim("bold", one("device.attributes['edgeorc.io'].speed == 1"));
    let failed = world.ask(&["bold"], "a").unwrap_err();
    assert!(failed.starts_with("request r: selector #0: device plain: "), "{failed}");
    let careful = "has(device.attributes['edgeorc.io'].speed) && \
                   device.attributes['edgeorc.io'].speed == 1";
    world.claim("careful", one(careful));
    assert_eq!(world.ask(&["careful"], "a"), Ok(vec!["a/fast".to_owned()]));
}

#[test]
fn a_wish_that_cannot_be_met_ends() {
    let mut world = World::default();
    world.class("camera", "true");
    let devices: Vec<_> = (0..60)
        .map(|at| json!({"name": format!("d{at:02}"), "attributes": {"bus": {"int": at % 15}}}))
        .collect();
    world.slice("a", json!({"nodeName": "a"}), json!(devices));
    for (name, count) in [("possible", 15), ("impossible", 16)] {
        let mut wish = one("");
        wish["requests"][0]["exactly"]["count"] = json!(count);
        wish["constraints"] = json!([{"distinctAttribute": "edgeorc.io/bus"}]);
        world.claim(name, wish);
    }
    assert_eq!(world.ask(&["possible"], "a").map(|devices| devices.len()), Ok(15));
    assert_eq!(world.ask(&["impossible"], "a"), Err(NONE_FREE.to_owned()));
}

/// Goal: a claim that two entries of a pod name is one claim, and a device that stands twice is given to
/// nobody.
#[test]
fn what_is_named_twice_is_not_given_twice() {
    let mut world = World::new();
    world.claim("any", one(""));
    assert_eq!(world.ask(&["any", "any"], "a"), Ok(vec!["a/one".to_owned()]));
    world.slices.clear();
    let half =
        json!({"nodeName": "a", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 2}});
    world.slice("half", half.clone(), json!([{"name": "d"}]));
    world.slice("other", half, json!([{"name": "d"}]));
    assert_eq!(world.ask(&["any"], "a"), Err(NONE_FREE.to_owned()));
}

#[test]
fn a_claim_that_many_pods_use_is_in_use() {
    let mut world = World::new();
    world.claim("any", one(""));
    world.give("any", "a", "p1");
    let consumers: Vec<_> = (0..CONSUMERS_MAX)
        .map(|at| json!({"resource": "pods", "name": "p", "uid": format!("p{at}")}))
        .collect();
    let mut full = (*world.claims[0]).clone();
    full.status.as_mut().unwrap().reserved_for =
        Some(serde_json::from_value(json!(consumers)).unwrap());
    world.claims[0] = Arc::new(full);
    let refused = world.ask(&["any"], "a").unwrap_err();
    assert_eq!(refused, "resourceclaim \"any\" is in use by 256 pods");
    let mut known = pod_of(&["any"]);
    known.metadata.uid = Some("p7".to_owned());
    assert_eq!(devices_of(&world, &known).missing, None, "it is one of them");
}

/// The claims of `wishes` (model and count) on devices of these models, some of which are taken.
fn world_of(devices: &[(usize, bool)], wishes: &[(usize, usize)]) -> World {
    let models = ["x", "y"];
    let mut world = World::default();
    world.class("camera", "true");
    let told = devices.iter().enumerate().map(|(at, (model, _))| {
        json!({"name": format!("d{at}"), "attributes": {"model": {"string": models[*model]}}})
    });
    world.slice("a", json!({"nodeName": "a"}), told.collect());
    let taken = devices.iter().enumerate().filter(|(_, (_, is_taken))| *is_taken);
    let taken: Value = taken
        .map(|(at, _)| {
            json!({"request": "r", "driver": "edgeorc.io", "pool": "a", "device": format!("d{at}")})
        })
        .collect();
    let holder = json!({"metadata": {"name": "holder", "namespace": "default"}, "spec": {},
        "status": {"allocation": {"devices": {"results": taken}}}});
    world.claims.push(Arc::new(serde_json::from_value(holder).unwrap()));
    for (at, (wanted, count)) in wishes.iter().enumerate() {
        let mut wish = models.get(*wanted).map_or_else(|| one(""), |name| model(name));
        wish["requests"][0]["exactly"]["count"] = json!(count);
        world.claim(&format!("c{at}"), wish);
    }
    world
}

/// Goal: whatever can be given is found, and nothing is given twice. Each claim asks for devices of one
/// model, or of any: enough of each model, and enough in all, is enough.
#[test]
fn what_can_be_given_is_given_and_nothing_twice() {
    let config = ProptestConfig::with_cases(64);
    proptest!(config, |(
        devices in proptest::collection::vec((0..2_usize, any::<bool>()), 0..7),
        wishes in proptest::collection::vec((0..3_usize, 1..3_usize), 1..4),
    )| {
        let world = world_of(&devices, &wishes);
        let names: Vec<_> = (0..wishes.len()).map(|at| format!("c{at}")).collect();
        let names: Vec<_> = names.iter().map(String::as_str).collect();
        let free = |model: usize| devices.iter().filter(|it| it.0 == model && !it.1).count();
        let asked = |model: usize| {
            wishes.iter().filter(|it| it.0 == model).map(|it| it.1).sum::<usize>()
        };
        let is_enough = asked(0) <= free(0)
            && asked(1) <= free(1)
            && asked(0) + asked(1) + asked(2) <= free(0) + free(1);
        let given = world.ask(&names, "a");
        prop_assert_eq!(given.is_ok(), is_enough);
        let given = given.unwrap_or_default();
        let number = |device: &String| device.trim_start_matches("a/d").parse::<usize>().unwrap();
        let given: Vec<_> = given.iter().map(number).collect();
        prop_assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), given.len());
        prop_assert!(given.iter().all(|at| !devices[*at].1), "one was taken");
        let wanted = wishes.iter().flat_map(|(model, count)| std::iter::repeat_n(*model, *count));
        for (at, model) in given.iter().zip(wanted) {
            prop_assert!(model == 2 || devices[*at].0 == model);
        }
    });
}

/// Goal: the whole way of a decision: to the node that has what is asked for, to no other once it is
/// given, and back to the node of a claim that has its devices.
#[test]
fn a_pod_goes_where_its_devices_are() {
    let mut world = World::default();
    world.class("camera", "true");
    world.slice("b", json!({"nodeName": "b"}), json!([{"name": "only"}]));
    world.claim("first", one(""));
    world.claim("second", one(""));
    let nodes: Vec<_> = ["a", "b", "c"].iter().map(|name| node(name, &json!({}))).collect();
    let view = view(&nodes);
    let decide = |world: &World, claim: &str, assumed: &Assumed| {
        let pod = pod_of(&[claim]);
        let devices = Devices::of(&pod, world, assumed, &mut Selectors::default());
        let storage = Storage::default().with(devices);
        let decided = decide_with(&view, &pod, &storage, 1);
        decided.map(str::to_owned).map_err(|refusal| refusal.to_string())
    };
    let mut assumed = Assumed::default();
    assert_eq!(decide(&world, "first", &assumed), Ok("b".to_owned()));
    // Under way, and not yet in the cache.
    let devices = devices_of(&world, &pod_of(&["first"]));
    let given = devices.allocate("b", &Facts::default()).unwrap();
    assumed.add(&given);
    let refused = decide(&world, "second", &assumed).unwrap_err();
    assert_eq!(refused, "0/3 nodes are available: 3 cannot allocate all claims.");
    assert!(decide(&world, "first", &assumed).unwrap_err().contains("is being allocated"));
    let settled = |revision| [Settled { claim: key(&given[0].claim), revision }];
    assumed.settle(&settled(None), &world);
    assert_eq!(decide(&world, "second", &assumed), Ok("b".to_owned()), "it was not written");
    assumed.add(&given);
    assumed.settle(&settled(Some(5)), &world);
    assert!(decide(&world, "second", &assumed).is_err(), "the cache does not show it yet");
    world.give("first", "b", "p1");
    assumed.prune(&world);
    assert!(assumed.claims.is_empty());
    assert!(decide(&world, "second", &assumed).is_err());
    // Given and taken back before the scheduler looked.
    let mut back = World { slices: world.slices.clone(), ..World::default() };
    back.claim("first", one(""));
    assumed.add(&given);
    assumed.settle(&settled(Some(5)), &back);
    assert!(!assumed.claims.is_empty());
    Arc::make_mut(&mut back.claims[0]).metadata.resource_version = Some("6".to_owned());
    assumed.prune(&back);
    assert!(assumed.claims.is_empty());
    // Another pod of the same claim has to go there as well.
    assert_eq!(decide(&world, "first", &assumed), Ok("b".to_owned()));
    let own = devices_of(&world, &pod_of(&["first"]));
    assert!(own.own(&pod_of(&[])).is_empty(), "it is another pod's");
}
