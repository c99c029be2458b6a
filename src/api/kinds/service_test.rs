use serde_json::json;

use super::*;
use crate::api::field_error::Errors;
use crate::api::{find, strategy};

fn made(spec: Value) -> Value {
    let mut service = json!({"metadata": {"name": "s", "namespace": "default"}, "spec": spec});
    strategy::prepare_create(&RESOURCE, &mut service);
    service
}

fn refusals(service: &Value) -> Vec<String> {
    let errors = strategy::validate_create(&RESOURCE, service);
    errors.iter().map(ToString::to_string).collect()
}

/// `old` after a client has written `change` over it, as a merge patch.
fn changed(old: &Value, change: &Value) -> Value {
    let mut new = old.clone();
    json_patch::merge(&mut new, change);
    strategy::prepare_update(&RESOURCE, old, &mut new);
    new
}

fn change_refusals(old: &Value, new: &Value) -> Vec<String> {
    strategy::validate_update(&RESOURCE, old, new).iter().map(ToString::to_string).collect()
}

#[test]
fn defaults_are_those_of_kubernetes() {
    let service =
        made(json!({"ports": [{"port": 80}, {"name": "b", "port": 81, "targetPort": 0}]}));
    let spec = &service["spec"];
    assert_eq!(spec["type"], "ClusterIP");
    assert_eq!(spec["ports"][0], json!({"port": 80, "protocol": "TCP", "targetPort": 80}));
    assert_eq!(spec["ports"][1]["targetPort"], 81);
    assert_eq!(spec["sessionAffinity"], "None");
    assert_eq!(spec["internalTrafficPolicy"], "Cluster");
    for key in ["externalTrafficPolicy", "allocateLoadBalancerNodePorts", "sessionAffinityConfig"] {
        assert!(spec.get(key).is_none(), "{key}");
    }
    let balanced = made(json!({"type": "LoadBalancer", "ports": [{"port": 80}]}));
    assert_eq!(balanced["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
    let named = made(json!({"type": "ExternalName", "externalName": "a.b"}));
    assert!(named["spec"].get("internalTrafficPolicy").is_none());
    let sticky = made(json!({"sessionAffinity": "ClientIP", "ports": [{"port": 80}]}));
    assert_eq!(sticky["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
    assert!(refusals(&sticky).is_empty());
}

#[test]
fn either_field_of_the_address_stands_for_both() {
    let one = made(json!({"clusterIP": "10.43.0.9", "ports": [{"port": 80}]}));
    assert_eq!(one["spec"]["clusterIPs"], json!(["10.43.0.9"]));
    let other = made(json!({"clusterIPs": ["10.43.0.9"], "ports": [{"port": 80}]}));
    assert_eq!(other["spec"]["clusterIP"], "10.43.0.9");
    let differs = made(json!({
        "clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.8"], "ports": [{"port": 80}],
    }));
    assert!(refusals(&differs)[0].contains("must match `clusterIP`"));
}

#[test]
fn what_breaks_a_rule_is_refused_with_the_field() {
    let port = json!([{"port": 80}]);
    for (spec, wanted) in [
        (json!({}), "spec.ports: Required value"),
        (json!({"type": "X", "ports": port}), "spec.type: Unsupported value"),
        (json!({"type": "ExternalName"}), "spec.externalName: Required value"),
        (
            json!({"type": "ExternalName", "externalName": "A_b"}),
            "spec.externalName: Invalid value",
        ),
        (
            json!({"type": "ExternalName", "externalName": "a.b", "clusterIP": "10.43.0.1"}),
            "spec.clusterIP: Forbidden: may not be set for ExternalName services",
        ),
        (json!({"type": "NodePort", "clusterIP": "None", "ports": port}), "spec.clusterIPs[0]"),
        (json!({"ports": [{"port": 0}]}), "spec.ports[0].port"),
        (json!({"ports": [{"port": 80}, {"port": 81}]}), "spec.ports[0].name: Required value"),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]}),
            "spec.ports[1].name: Duplicate value",
        ),
        (
            json!({"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}),
            "spec.ports[1]: Duplicate value",
        ),
        (json!({"ports": [{"port": 80, "protocol": "ICMP"}]}), "spec.ports[0].protocol"),
        (json!({"ports": [{"port": 80, "targetPort": "no-port-has-this-name"}]}), "[0].targetPort"),
        (
            json!({"ports": [{"port": 80, "nodePort": 30080}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (json!({"sessionAffinity": "Cookie", "ports": port}), "spec.sessionAffinity"),
        (
            json!({"sessionAffinity": "ClientIP", "ports": port,
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}}),
            "timeoutSeconds: Invalid value: 86401",
        ),
        (json!({"externalTrafficPolicy": "Local", "ports": port}), "spec.externalTrafficPolicy"),
        (json!({"internalTrafficPolicy": "Near", "ports": port}), "spec.internalTrafficPolicy"),
        (json!({"trafficDistribution": "Far", "ports": port}), "spec.trafficDistribution"),
        (json!({"healthCheckNodePort": 30000, "ports": port}), "spec.healthCheckNodePort"),
        (json!({"loadBalancerClass": "a/b", "ports": port}), "spec.loadBalancerClass: Forbidden"),
        (json!({"loadBalancerSourceRanges": ["10.0.0.0/8"], "ports": port}), "SourceRanges"),
        (json!({"externalIPs": ["127.0.0.1"], "ports": port}), "spec.externalIPs[0]"),
        (json!({"clusterIP": "x", "ports": port}), "spec.clusterIPs[0]"),
        (
            json!({"clusterIPs": ["10.43.0.1", "10.43.0.2"], "ports": port,
            "ipFamilyPolicy": "RequireDualStack"}),
            "no more than one IP for each IP family",
        ),
        (
            json!({"clusterIP": "fd00::1", "ipFamilies": ["IPv4"], "ports": port}),
            "expected an IPv6 value as indicated by `ipFamilies[0]`",
        ),
        (json!({"ipFamilies": ["IPv4", "IPv6"], "ports": port}), "spec.ipFamilyPolicy"),
        (
            json!({"ipFamilies": ["IPv4", "IPv4"], "ports": port,
            "ipFamilyPolicy": "RequireDualStack"}),
            "spec.ipFamilies[1]: Duplicate value",
        ),
        (json!({"selector": {"a b": "c"}, "ports": port}), "spec.selector"),
    ] {
        let refused = refusals(&made(spec.clone()));
        assert!(refused.iter().any(|text| text.contains(wanted)), "{spec}: {refused:?}");
    }
}

#[test]
fn what_breaks_no_rule_is_taken() {
    let port = json!([{"port": 80}]);
    for spec in [
        json!({"clusterIP": "None"}),
        json!({"type": "ExternalName", "externalName": "example.org."}),
        json!({"ports": [{"port": 53, "name": "a"}, {"port": 53, "name": "b", "protocol": "UDP"}]}),
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": port,
            "healthCheckNodePort": 30001, "loadBalancerSourceRanges": ["10.0.0.0/8"]}),
        json!({"externalIPs": ["192.0.2.1"], "externalTrafficPolicy": "Local", "ports": port}),
    ] {
        assert_eq!(refusals(&made(spec.clone())), Vec::<String>::new(), "{spec}");
    }
}

#[test]
fn a_name_is_a_dns_label() {
    let mut service = made(json!({"ports": [{"port": 80}]}));
    service["metadata"]["name"] = json!("a.b");
    assert!(refusals(&service)[0].starts_with("metadata.name"));
    assert!(find("", "v1", "services").is_some());
}

#[test]
fn a_cluster_ip_stays_for_life_but_for_external_names() {
    let service = |kind: &str, address: &str| json!({"spec": {"type": kind, "clusterIP": address}});
    let refused = |old: &Value, new: &Value| {
        let mut errors = Errors::default();
        validate_update(old, new, &mut errors);
        errors.into_vec().len()
    };
    let old = service("ClusterIP", "10.43.1.1");
    assert_eq!(refused(&old, &service("NodePort", "10.43.1.1")), 0);
    assert_eq!(refused(&old, &service("ClusterIP", "10.43.1.2")), 1);
    assert_eq!(refused(&old, &service("ClusterIP", "None")), 1);
    assert_eq!(refused(&service("ClusterIP", "None"), &old), 1);
    assert_eq!(refused(&old, &service("ExternalName", "")), 0);
    assert_eq!(refused(&service("ExternalName", ""), &old), 0);
}

/// As the server stores it.
fn node_port() -> Value {
    json!({"metadata": {"name": "s", "namespace": "default"}, "spec": {
        "type": "NodePort", "clusterIP": "10.43.1.1", "clusterIPs": ["10.43.1.1"],
        "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30080}],
    }})
}

#[test]
fn a_change_that_leaves_out_what_was_allocated_keeps_it() {
    let old = node_port();
    let written = json!({"metadata": old["metadata"], "spec": {
        "type": "NodePort", "ports": [{"port": 80}, {"port": 81, "name": "b"}]}});
    let mut new = written;
    strategy::prepare_update(&RESOURCE, &old, &mut new);
    assert_eq!(new["spec"]["clusterIP"], "10.43.1.1");
    assert_eq!(new["spec"]["clusterIPs"], json!(["10.43.1.1"]));
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
    assert!(new["spec"]["ports"][1].get("nodePort").is_none());
}

#[test]
fn what_a_type_does_not_need_goes_with_the_change_of_the_type() {
    let old = node_port();
    let plain = changed(&old, &json!({"spec": {"type": "ClusterIP"}}));
    assert_eq!(plain["spec"]["clusterIP"], "10.43.1.1");
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    assert!(plain["spec"].get("externalTrafficPolicy").is_none());
    assert!(change_refusals(&old, &plain).is_empty());

    let named =
        changed(&old, &json!({"spec": {"type": "ExternalName", "externalName": "example.org"}}));
    for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        assert!(named["spec"].get(key).is_none(), "{key}");
    }
    assert!(change_refusals(&old, &named).is_empty(), "{:?}", change_refusals(&old, &named));
    let back = changed(&named, &json!({"spec": {"type": "ClusterIP", "externalName": null}}));
    assert!(change_refusals(&named, &back).is_empty());

    let mut balanced = old.clone();
    balanced["spec"]["type"] = json!("LoadBalancer");
    balanced["spec"]["externalTrafficPolicy"] = json!("Local");
    balanced["spec"]["healthCheckNodePort"] = json!(30099);
    balanced["spec"]["allocateLoadBalancerNodePorts"] = json!(true);
    let plain = changed(&balanced, &json!({"spec": {"type": "NodePort"}}));
    assert!(plain["spec"].get("healthCheckNodePort").is_none());
    assert!(plain["spec"].get("allocateLoadBalancerNodePorts").is_none());
    assert_eq!(plain["spec"]["ports"][0]["nodePort"], 30080);
    assert!(change_refusals(&balanced, &plain).is_empty());
    // One who writes a new value for what the type does not have is told so.
    let mixed = changed(
        &old,
        &json!({"spec": {"type": "ClusterIP", "ports":
        [{"port": 80, "protocol": "TCP", "targetPort": 80, "nodePort": 30081}]}}),
    );
    assert!(change_refusals(&old, &mixed)[0].contains("may not be used when `type`"));
}

#[test]
fn a_second_family_may_come_and_go_but_the_first_stays() {
    let old = node_port();
    let both = json!({"spec": {"ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv4", "IPv6"],
        "clusterIPs": ["10.43.1.1", "fd00::1"]}});
    let both = changed(&old, &both);
    assert!(change_refusals(&old, &both).is_empty(), "{:?}", change_refusals(&old, &both));
    let single = changed(&both, &json!({"spec": {"ipFamilyPolicy": "SingleStack"}}));
    assert_eq!(single["spec"]["clusterIPs"], json!(["10.43.1.1"]));
    assert_eq!(single["spec"]["ipFamilies"], json!(["IPv4"]));
    assert!(change_refusals(&both, &single).is_empty());
    let turned = changed(&old, &json!({"spec": {"ipFamilies": ["IPv6"]}}));
    assert!(!change_refusals(&old, &turned).is_empty());
}

#[test]
fn health_port_and_class_do_not_change() {
    let mut old = node_port();
    old["spec"]["type"] = json!("LoadBalancer");
    old["spec"]["externalTrafficPolicy"] = json!("Local");
    old["spec"]["healthCheckNodePort"] = json!(30099);
    let moved = changed(&old, &json!({"spec": {"healthCheckNodePort": 30098}}));
    assert!(change_refusals(&old, &moved)[0].contains("field is immutable"));
    let classed = changed(&old, &json!({"spec": {"loadBalancerClass": "example.org/x"}}));
    assert!(change_refusals(&old, &classed)[0].contains("may not change once set"));
}

#[test]
fn the_table_shows_where_clients_outside_find_the_service() {
    let with = |spec: Value, status: Value| outside(&json!({"spec": spec, "status": status}));
    assert_eq!(with(json!({"type": "ClusterIP"}), json!({})), "<none>");
    assert_eq!(with(json!({"type": "LoadBalancer"}), json!({})), "<pending>");
    let ingress = json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "a.b"}]}});
    let spec = json!({"type": "LoadBalancer", "externalIPs": ["5.6.7.8"]});
    assert_eq!(with(spec, ingress), "1.2.3.4,a.b,5.6.7.8");
    let spec = json!({"type": "ExternalName", "externalName": "example.org"});
    assert_eq!(with(spec, json!({})), "example.org");
}
