use std::collections::BTreeSet;

use super::*;
use crate::config::ServiceCidrs;
use crate::rt::Rng;

fn both() -> ServiceCidrs {
    let range = |text| crate::config::ServiceCidr::parse(text).unwrap();
    ServiceCidrs { primary: range("10.43.0.0/16"), secondary: Some(range("fd00:43::/112")) }
}

fn services() -> &'static Resource {
    crate::api::find("", "v1", "services").unwrap()
}

/// The Service completed, or the message of the refusal.
fn complete(cidrs: &ServiceCidrs, seed: u64, spec: Value) -> Result<Value, String> {
    let rng = Rng::seeded(seed);
    let mut service = json!({"metadata": {"name": "s"}, "spec": spec});
    claims(&Source::new(&rng, cidrs), services(), None, &mut service)
        .map(|_| service["spec"].clone())
        .map_err(|refused| refused.0.message)
}

#[test]
fn a_service_holds_its_addresses_and_its_ports() {
    let service = json!({"spec": {"clusterIPs": ["10.43.1.1", "fd00:43::0009"], "ports": [
        {"nodePort": 30001}, {"nodePort": 30001, "protocol": "UDP"}, {"port": 80}
    ], "healthCheckNodePort": 30002}});
    assert_eq!(
        held(&service),
        [
            "clusterip/10.43.1.1",
            "clusterip/fd00:43::9",
            "tcp-nodeport/30001",
            "tcp-nodeport/30002",
            "udp-nodeport/30001"
        ]
    );
    assert!(held(&json!({"spec": {"clusterIP": "None"}})).is_empty());
    assert_eq!(held(&json!({"spec": {"clusterIP": "10.43.1.1"}})), ["clusterip/10.43.1.1"]);
}

#[test]
fn addresses_are_chosen_above_the_band_that_people_choose_from() {
    let cidrs = ServiceCidrs::default();
    for seed in 0..200 {
        let spec = complete(&cidrs, seed, json!({"ports": [{"port": 80}]})).unwrap();
        let ip: std::net::Ipv4Addr = text(&spec, "/clusterIP").parse().unwrap();
        let offset = u32::from(ip) - u32::from(std::net::Ipv4Addr::new(10, 43, 0, 0));
        assert!((257..65_535).contains(&offset), "{ip}");
        assert_eq!(spec["clusterIPs"], json!([ip.to_string()]));
        assert_eq!(spec["ipFamilies"], json!(["IPv4"]));
        assert_eq!(spec["ipFamilyPolicy"], "SingleStack");
    }
}

#[test]
fn a_full_range_gives_its_last_free_addresses_and_then_says_so() {
    let cidrs = ServiceCidrs {
        primary: crate::config::ServiceCidr::parse("10.43.0.0/29").unwrap(),
        secondary: None,
    };
    let rng = Rng::seeded(1);
    let mut source = Source::new(&rng, &cidrs);
    let mut given = BTreeSet::new();
    loop {
        let mut service = json!({"metadata": {"name": "s"}, "spec": {}});
        match claims(&source, services(), None, &mut service) {
            Ok(sides) => {
                let [Side::Claim(key)] = sides.as_slice() else { panic!("{sides:?}") };
                assert!(given.insert(key.clone()), "{key} twice");
                source.taken.insert(key.clone());
            }
            Err(refused) => {
                assert!(refused.0.message.contains("range is full"), "{}", refused.0.message);
                break;
            }
        }
    }
    // Not the network, not the broadcast, not the API's own.
    assert_eq!(given.len(), 5, "{given:?}");
}

#[test]
fn only_addresses_of_the_range_may_be_chosen() {
    let cidrs = ServiceCidrs::default();
    let of = |ip: &str| complete(&cidrs, 1, json!({"clusterIP": ip, "clusterIPs": [ip]}));
    assert_eq!(of("10.43.0.10").unwrap()["clusterIP"], "10.43.0.10");
    let refused = of("10.44.0.0").unwrap_err();
    assert!(refused.contains("The range of valid IPs is 10.43.0.0/16"), "{refused}");
}

#[test]
fn families_follow_the_policy_and_what_the_cluster_has() {
    let single = ServiceCidrs::default();
    let of = |cidrs: &ServiceCidrs, spec: Value| {
        let spec = complete(cidrs, 1, spec)?;
        let ips = addresses::of(&json!({"spec": spec})).len();
        Ok::<_, String>((spec["ipFamilies"].clone(), spec["ipFamilyPolicy"].clone(), ips))
    };
    let (v4, both_families) = (json!(["IPv4"]), json!(["IPv4", "IPv6"]));
    let policy = |policy: &str| json!({"ipFamilyPolicy": policy, "selector": {"a": "b"}});
    assert_eq!(
        of(&single, policy("PreferDualStack")).unwrap(),
        (v4.clone(), json!("PreferDualStack"), 1)
    );
    assert_eq!(
        of(&both(), policy("PreferDualStack")).unwrap(),
        (both_families.clone(), json!("PreferDualStack"), 2)
    );
    assert_eq!(
        of(&both(), policy("RequireDualStack")).unwrap(),
        (both_families.clone(), json!("RequireDualStack"), 2)
    );
    assert_eq!(of(&both(), json!({})).unwrap(), (v4, json!("SingleStack"), 1));
    let v6 = json!({"ipFamilies": ["IPv6"]});
    assert_eq!(of(&both(), v6.clone()).unwrap(), (json!(["IPv6"]), json!("SingleStack"), 1));
    let turned = json!({"ipFamilies": ["IPv6"], "ipFamilyPolicy": "PreferDualStack"});
    assert_eq!(of(&both(), turned).unwrap().0, json!(["IPv6", "IPv4"]));
    assert!(of(&single, policy("RequireDualStack")).unwrap_err().contains("dual-stack"));
    assert!(of(&single, v6).unwrap_err().contains("not configured on this cluster"));
    // Users may write endpoints of any family behind a headless Service.
    let bare = json!({"clusterIP": "None", "clusterIPs": ["None"]});
    assert_eq!(of(&single, bare).unwrap(), (both_families, json!("RequireDualStack"), 1));
}

#[test]
fn ports_of_one_service_never_share_a_node_port_and_leave_the_low_band() {
    for seed in 0..20 {
        let ports: Vec<Value> = (0..200).map(|n| json!({"port": n + 1})).collect();
        let spec = json!({"type": "NodePort", "ports": ports});
        let spec = complete(&ServiceCidrs::default(), seed, spec).unwrap();
        let chosen: BTreeSet<u64> = spec["ports"]
            .as_array()
            .unwrap()
            .iter()
            .map(|port| port["nodePort"].as_u64().unwrap())
            .collect();
        assert_eq!(chosen.len(), 200, "seed {seed}");
        assert!(chosen.iter().all(|port| (30_086..32_768).contains(port)));
    }
}

#[test]
fn protocols_of_one_port_share_a_node_port() {
    let ports = json!([
        {"name": "t", "port": 53}, {"name": "u", "port": 53, "protocol": "UDP"},
        {"name": "o", "port": 54, "protocol": "UDP"},
    ]);
    let spec = json!({"type": "NodePort", "ports": ports});
    let spec = complete(&ServiceCidrs::default(), 1, spec).unwrap();
    assert_eq!(spec["ports"][0]["nodePort"], spec["ports"][1]["nodePort"]);
    assert_ne!(spec["ports"][1]["nodePort"], spec["ports"][2]["nodePort"]);
}

#[test]
fn a_node_port_given_twice_is_refused_but_protocols_do_not_clash() {
    let of = |second: Value| {
        let first = json!({"port": 1, "nodePort": 30001, "protocol": "TCP"});
        let spec = json!({"type": "NodePort", "ports": [first, second]});
        complete(&ServiceCidrs::default(), 1, spec)
    };
    let refused = of(json!({"port": 2, "nodePort": 30001})).unwrap_err();
    assert!(refused.contains("spec.ports[1].nodePort: Duplicate"), "{refused}");
    of(json!({"port": 1, "nodePort": 30001, "protocol": "UDP"})).unwrap();
    let refused = of(json!({"port": 1, "nodePort": 80})).unwrap_err();
    assert!(refused.contains("not in the valid range"), "{refused}");
}

#[test]
fn a_load_balancer_has_a_health_port_with_the_local_policy_and_may_have_no_node_ports() {
    let cidrs = ServiceCidrs::default();
    let local = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local",
        "allocateLoadBalancerNodePorts": false, "ports": [{"port": 80}]});
    let spec = complete(&cidrs, 1, local).unwrap();
    assert!(spec["ports"][0].get("nodePort").is_none());
    let health = spec["healthCheckNodePort"].as_u64().unwrap();
    assert!((30_086..32_768).contains(&health));
    let cluster = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Cluster",
        "ports": [{"port": 80}]});
    let spec = complete(&cidrs, 1, cluster).unwrap();
    assert!(spec["ports"][0].get("nodePort").is_some());
    assert!(spec.get("healthCheckNodePort").is_none());
}

#[test]
fn a_change_claims_what_is_new_and_releases_what_is_gone() {
    let (cidrs, rng) = (ServiceCidrs::default(), Rng::seeded(1));
    let source = Source::new(&rng, &cidrs);
    let old = json!({"spec": {"type": "NodePort", "clusterIP": "10.43.1.1",
        "clusterIPs": ["10.43.1.1"], "ports": [{"port": 80, "nodePort": 30001}]}});
    let mut plain = old.clone();
    plain["spec"]["type"] = json!("ClusterIP");
    let sides = claims(&source, services(), Some(&old), &mut plain).unwrap();
    assert_eq!(sides, [Side::Release("tcp-nodeport/30001".into())]);
    let mut named = json!({"spec": {"type": "ExternalName", "externalName": "a.b"}});
    let sides = claims(&source, services(), Some(&old), &mut named).unwrap();
    assert_eq!(
        sides,
        [Side::Release("clusterip/10.43.1.1".into()), Side::Release("tcp-nodeport/30001".into())]
    );
    let mut same = old.clone();
    assert!(claims(&source, services(), Some(&old), &mut same).unwrap().is_empty());
    // What was given out of another range stays.
    let old = json!({"spec": {"type": "ClusterIP", "clusterIPs": ["10.96.1.1"]}});
    let mut same = old.clone();
    assert!(claims(&source, services(), Some(&old), &mut same).unwrap().is_empty());
}

#[test]
fn only_what_the_client_chose_is_refused_for_good() {
    let sent = json!({"metadata": {"name": "s"}, "spec": {"type": "NodePort", "ports": [
        {"port": 1, "nodePort": 30000}, {"port": 2, "nodePort": 30001}]}});
    let chose = held_by(services(), &sent);
    let refused = refuse(services(), &sent, &chose, "tcp-nodeport/30001").unwrap().0;
    assert_eq!(refused.code, 422);
    let wanted = "spec.ports[1].nodePort: Invalid value: 30001: provided port is already allocated";
    assert!(refused.message.contains(wanted), "{refused}");
    assert!(refuse(services(), &sent, &chose, "tcp-nodeport/30002").is_none());
    assert!(refuse(services(), &sent, &chose, "clusterip/10.43.0.9").is_none());
}
