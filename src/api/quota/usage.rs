//! What an object uses, by the names that quotas have for it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::api::json::{int_at, items_at, text_at};
use crate::api::quantity::Quantity;
use crate::api::quota::{Amounts, add, amount, amounts};
use crate::api::resource::Resource;

/// What every container must say once a quota is about it.
pub(crate) const COMPUTE: [&str; 6] =
    ["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
/// Ends the names of quotas for one storage class.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";
/// Kinds that quotas count under their own name as well.
const COUNTED: [&str; 7] = [
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];

/// `count/pods`, `count/deployments.apps`.
fn count_name(resource: &Resource) -> String {
    format!("count/{}", resource.qualified())
}

/// Whether the amount `name` of a quota is about objects of `resource`.
#[must_use]
pub fn tracks(resource: &Resource, name: &str) -> bool {
    if name == count_name(resource) {
        return true;
    }
    if !resource.group.is_empty() {
        return false;
    }
    if COUNTED.contains(&resource.plural) && name == resource.plural {
        return true;
    }
    match resource.plural {
        "pods" => is_of_pods(name),
        "services" => matches!(name, "services.nodeports" | "services.loadbalancers"),
        "persistentvolumeclaims" => name == "requests.storage" || name.contains(OF_CLASS),
        _ => false,
    }
}

fn is_of_pods(name: &str) -> bool {
    matches!(name, "cpu" | "memory" | "ephemeral-storage")
        || name.starts_with("limits.")
        || name.starts_with("hugepages-")
        || (name.starts_with("requests.") && name != "requests.storage")
}

/// Whether all that is used of `name` is the number of objects: they need not be read.
#[must_use]
pub fn is_countable(resource: &Resource, name: &str) -> bool {
    // A pod that has ended is counted as an object, and no more.
    name == count_name(resource) || (name == resource.plural && name != "pods")
}

/// What `object` uses.
#[must_use]
pub fn usage(resource: &Resource, object: &Value) -> Amounts {
    let one = Quantity::of_count(1);
    let mut used = Amounts::from([(count_name(resource), one)]);
    if !resource.group.is_empty() {
        return used;
    }
    match resource.plural {
        "pods" => of_pod(object, &mut used),
        "services" => of_service(object, &mut used),
        "persistentvolumeclaims" => of_claim(object, &mut used),
        plural if COUNTED.contains(&plural) => {
            used.insert(plural.to_owned(), one);
        }
        _ => {}
    }
    used
}

fn of_pod(pod: &Value, used: &mut Amounts) {
    // What has ended uses nothing but its place in the list.
    if matches!(text_at(pod, "/status/phase"), "Succeeded" | "Failed") {
        return;
    }
    used.insert("pods".to_owned(), Quantity::of_count(1));
    for (name, amount) in needs(pod, "requests") {
        match name.as_str() {
            "cpu" | "memory" | "ephemeral-storage" => {
                used.insert(format!("requests.{name}"), amount);
                used.insert(name, amount);
            }
            _ if name.starts_with("hugepages-") => {
                used.insert(format!("requests.{name}"), amount);
                used.insert(name, amount);
            }
            _ => drop(used.insert(format!("requests.{name}"), amount)),
        }
    }
    for (name, amount) in needs(pod, "limits") {
        used.insert(format!("limits.{name}"), amount);
    }
}

/// What a pod needs, with what running it costs.
fn needs(pod: &Value, list: &str) -> Amounts {
    let mut all = containers_need(pod, list);
    add(&mut all, &amounts(pod, "/spec/overhead"));
    all
}

/// What the containers of a pod need together: the mains and sidecars at once, or the largest init
/// container with the sidecars that were started before it. `list` is `requests` or `limits`.
pub(crate) fn containers_need(pod: &Value, list: &str) -> Amounts {
    let of = |container: &Value| amounts(container, &format!("/resources/{list}"));
    let (mut beside, mut largest) = (Amounts::new(), Amounts::new());
    for container in items_at(pod, "/spec/initContainers") {
        if text_at(container, "/restartPolicy") == "Always" {
            add(&mut beside, &of(container));
            continue;
        }
        let mut together = beside.clone();
        add(&mut together, &of(container));
        raise(&mut largest, together);
    }
    for container in items_at(pod, "/spec/containers") {
        add(&mut beside, &of(container));
    }
    raise(&mut beside, largest);
    // What is set for the pod as a whole stands above its containers.
    beside.extend(amounts(pod, &format!("/spec/resources/{list}")));
    beside
}

/// Each amount as large as in `other` at least.
fn raise(all: &mut Amounts, other: Amounts) {
    for (name, amount) in other {
        let most = all.get(&name).map_or(amount, |had| had.or_more(amount));
        all.insert(name, most);
    }
}

fn of_service(service: &Value, used: &mut Amounts) {
    used.insert("services".to_owned(), Quantity::of_count(1));
    let ports = items_at(service, "/spec/ports");
    let (balanced, open) = match text_at(service, "/spec/type") {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" => {
            let allocates = service.pointer("/spec/allocateLoadBalancerNodePorts");
            let is_open = |port: &&Value| int_at(port, "/nodePort").is_some_and(|port| port > 0);
            let open = if allocates.and_then(Value::as_bool) == Some(false) {
                ports.iter().filter(is_open).count()
            } else {
                ports.len()
            };
            (1, open)
        }
        _ => (0, 0),
    };
    let open = u32::try_from(open).unwrap_or(u32::MAX);
    used.insert("services.nodeports".to_owned(), Quantity::of_count(open));
    used.insert("services.loadbalancers".to_owned(), Quantity::of_count(balanced));
}

fn of_claim(claim: &Value, used: &mut Amounts) {
    let one = Quantity::of_count(1);
    used.insert("persistentvolumeclaims".to_owned(), one);
    let class = text_at(claim, "/spec/storageClassName");
    if !class.is_empty() {
        used.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), one);
    }
    let asked = claim.pointer("/spec/resources/requests/storage").and_then(amount);
    let Some(mut asked) = asked else { return };
    // A volume that has grown counts as large as it is.
    if let Some(has) = claim.pointer("/status/allocatedResources/storage").and_then(amount) {
        asked = asked.or_more(has);
    }
    used.insert("requests.storage".to_owned(), asked);
    if !class.is_empty() {
        used.insert(format!("{class}{OF_CLASS}requests.storage"), asked);
    }
}

/// What containers of a new pod leave unsaid although a quota is about it: `requests.cpu for: a,b`.
pub(crate) fn must_specify(
    resource: &Resource,
    pod: &Value,
    quota: &BTreeSet<&str>,
) -> Option<String> {
    if resource.plural != "pods" || !resource.group.is_empty() {
        return None;
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let lists = ["/spec/containers", "/spec/initContainers"];
    for container in lists.iter().flat_map(|list| items_at(pod, list)) {
        for name in COMPUTE.iter().filter(|name| quota.contains(**name)) {
            let pointer = match name.split_once('.') {
                Some((list, of)) => format!("/resources/{list}/{of}"),
                None => format!("/resources/requests/{name}"),
            };
            if container.pointer(&pointer).and_then(amount).is_none() {
                missing.entry(name).or_default().insert(text_at(container, "/name"));
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let texts = missing.iter().map(|(name, containers)| {
        let containers: Vec<_> = containers.iter().copied().collect();
        format!("{name} for: {}", containers.join(","))
    });
    Some(texts.collect::<Vec<_>>().join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api;
    use crate::api::quota::shown;

    fn used(plural: &str, object: &Value) -> Value {
        shown(&usage(api::find("", "v1", plural).unwrap(), object))
    }

    #[test]
    fn a_pod_uses_its_mains_and_sidecars_or_its_largest_init_container() {
        let with = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod = json!({"spec": {
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": with("100m")},
                {"name": "init", "resources": with("500m")},
            ],
            "containers": [{"name": "a", "resources": with("200m")},
                {"name": "b", "resources": {"limits": {"memory": "64Mi", "example.com/led": "1"},
                    "requests": {"example.com/led": "1"}}}],
        }});
        assert_eq!(
            used("pods", &pod),
            json!({"count/pods": "1", "cpu": "600m", "limits.example.com/led": "1",
                "limits.memory": "64Mi", "pods": "1", "requests.cpu": "600m",
                "requests.example.com/led": "1"})
        );
        let mut ended = pod;
        ended["status"] = json!({"phase": "Succeeded"});
        assert_eq!(used("pods", &ended), json!({"count/pods": "1"}));
    }

    #[test]
    fn services_and_claims_are_counted_in_their_ways() {
        let service =
            |kind: &str| json!({"spec": {"type": kind, "ports": [{}, {"nodePort": 30000}]}});
        let with = |nodeports: &str, balancers: &str| {
            json!({"count/services": "1", "services": "1",
            "services.loadbalancers": balancers, "services.nodeports": nodeports})
        };
        assert_eq!(used("services", &service("ClusterIP")), with("0", "0"));
        assert_eq!(used("services", &service("NodePort")), with("2", "0"));
        assert_eq!(used("services", &service("LoadBalancer")), with("2", "1"));
        let mut few = service("LoadBalancer");
        few["spec"]["allocateLoadBalancerNodePorts"] = json!(false);
        assert_eq!(used("services", &few), with("1", "1"));
        let claim = json!({"spec": {"storageClassName": "fast",
            "resources": {"requests": {"storage": "1Gi"}}}});
        assert_eq!(
            used("persistentvolumeclaims", &claim),
            json!({"count/persistentvolumeclaims": "1",
                "fast.storageclass.storage.k8s.io/persistentvolumeclaims": "1",
                "fast.storageclass.storage.k8s.io/requests.storage": "1Gi",
                "persistentvolumeclaims": "1", "requests.storage": "1Gi"})
        );
    }

    #[test]
    fn every_kind_is_counted_by_its_full_name() {
        let deployments = api::find("apps", "v1", "deployments").unwrap();
        assert_eq!(shown(&usage(deployments, &json!({}))), json!({"count/deployments.apps": "1"}));
        assert!(tracks(deployments, "count/deployments.apps") && !tracks(deployments, "pods"));
        let pods = api::find("", "v1", "pods").unwrap();
        for name in ["pods", "cpu", "limits.cpu", "requests.memory", "count/pods", "hugepages-2Mi"]
        {
            assert!(tracks(pods, name), "{name}");
        }
        for name in ["requests.storage", "services", "count/services"] {
            assert!(!tracks(pods, name), "{name}");
        }
        assert!(is_countable(pods, "count/pods") && !is_countable(pods, "pods"));
        let maps = api::find("", "v1", "configmaps").unwrap();
        assert!(is_countable(maps, "configmaps"));
    }
}
