//! Goal: policies mean what Kubernetes says they mean.
//! Method: as its conformance tests do it: nine pods in three namespaces, here on two nodes; after
//! each set of policies, who reaches whom is compared for all 81 pairs.

use serde_json::{Value, json};

use super::table::{Incoming, Outgoing, PodRef, Ruling};
use super::testing::{World, ip_of};
use crate::mesh::routes::Protocol;

fn is_in(namespace: &str, pod: &str) -> bool {
    pod.split_once('/').unwrap().0 == namespace
}

fn deny(types: Value) -> Value {
    json!({ "podSelector": {}, "policyTypes": types })
}

fn from(peers: Value) -> Value {
    json!({ "podSelector": {}, "ingress": [{ "from": peers }] })
}

#[test]
fn without_a_policy_everything_is_allowed() {
    let world = World::new(&[]);
    world.check(|_, _| true);
    assert!(world.on("one").is_empty());
    assert!(world.outside("x/a", "192.0.2.1:443"));
}

#[test]
fn a_default_deny_closes_one_direction_of_its_namespace_only() {
    World::new(&[("x", deny(json!(["Ingress"])))]).check(|_, to| !is_in("x", to));
    World::new(&[("x", deny(json!(["Egress"])))]).check(|from, _| !is_in("x", from));
    let both = World::new(&[("x", deny(json!(["Ingress", "Egress"])))]);
    both.check(|from, to| !is_in("x", from) && !is_in("x", to));
    assert!(!both.outside("x/a", "192.0.2.1:443"));
    assert!(both.outside("y/a", "192.0.2.1:443"));
}

#[test]
fn types_that_are_left_out_follow_from_the_rules() {
    World::new(&[("x", json!({}))]).check(|_, to| !is_in("x", to));
    let egress = json!({ "podSelector": {}, "egress": [{ "to": [{ "podSelector": {} }] }] });
    // With rules for egress, both directions are isolated.
    World::new(&[("x", egress)]).check(|from, to| !is_in("x", to) && !is_in("x", from));
    // With the type named, ingress stays as it was.
    let egress = json!({
        "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": [{ "podSelector": {} }] }],
    });
    World::new(&[("x", egress)]).check(|from, to| !is_in("x", from) || is_in("x", to));
    // Rules of a type that is not named mean nothing.
    let ignored =
        json!({ "podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{}], "egress": [] });
    World::new(&[("x", ignored)]).check(|_, _| true);
}

#[test]
fn empty_and_missing_lists_differ_as_they_do_in_kubernetes() {
    // No rule: nobody. An empty rule: everybody.
    World::new(&[("x", json!({ "podSelector": {}, "ingress": [] }))])
        .check(|_, to| !is_in("x", to));
    World::new(&[("x", json!({ "podSelector": {}, "ingress": [{}] }))]).check(|_, _| true);
    // Empty lists within a rule are as none.
    let rule = json!({ "podSelector": {}, "ingress": [{ "from": [], "ports": [] }] });
    World::new(&[("x", rule)]).check(|_, _| true);
    // An empty selector of pods is all of the namespace, one of namespaces is all of them.
    World::new(&[("x", from(json!([{ "podSelector": {} }])))])
        .check(|from, to| !is_in("x", to) || is_in("x", from));
    World::new(&[("x", from(json!([{ "namespaceSelector": {} }])))]).check(|_, _| true);
}

#[test]
fn a_policy_is_about_the_pods_it_selects() {
    let only_a = json!({ "podSelector": { "matchLabels": { "pod": "a" } } });
    World::new(&[("x", only_a)]).check(|_, to| to != "x/a");
    let not_a = json!({ "podSelector": { "matchExpressions": [
        { "key": "pod", "operator": "NotIn", "values": ["a"] },
    ]}});
    World::new(&[("x", not_a)]).check(|_, to| !is_in("x", to) || to == "x/a");
    let none = json!({ "podSelector": { "matchLabels": { "pod": "nobody" } } });
    World::new(&[("x", none)]).check(|_, _| true);
}

#[test]
fn peers_are_pods_of_the_namespace_of_others_or_of_both_together() {
    let pods = from(json!([{ "podSelector": { "matchLabels": { "pod": "b" } } }]));
    World::new(&[("x", pods)]).check(|from, to| !is_in("x", to) || from == "x/b");
    let namespaces = from(json!([{ "namespaceSelector": { "matchLabels": { "ns": "y" } } }]));
    World::new(&[("x", namespaces)]).check(|from, to| !is_in("x", to) || is_in("y", from));
    // In one peer: both must hold.
    let both = from(json!([{
        "namespaceSelector": { "matchLabels": { "ns": "y" } },
        "podSelector": { "matchLabels": { "pod": "a" } },
    }]));
    World::new(&[("x", both)]).check(|from, to| !is_in("x", to) || from == "y/a");
    // In two peers: one of them.
    let either = from(json!([
        { "namespaceSelector": { "matchLabels": { "ns": "y" } } },
        { "podSelector": { "matchLabels": { "pod": "a" } } },
    ]));
    World::new(&[("x", either)])
        .check(|from, to| !is_in("x", to) || is_in("y", from) || from == "x/a");
    // Several namespaces by expression, several pods in each.
    let expressions = from(json!([{
        "namespaceSelector": { "matchExpressions": [
            { "key": "ns", "operator": "In", "values": ["y", "z"] },
        ]},
        "podSelector": { "matchExpressions": [
            { "key": "pod", "operator": "In", "values": ["a", "c"] },
        ]},
    }]));
    World::new(&[("x", expressions)])
        .check(|from, to| !is_in("x", to) || (!is_in("x", from) && !from.ends_with('b')));
}

#[test]
fn policies_add_up_and_their_order_does_not_matter() {
    let a = from(json!([{ "podSelector": { "matchLabels": { "pod": "a" } } }]));
    let y = from(json!([{ "namespaceSelector": { "matchLabels": { "ns": "y" } } }]));
    let wanted = |from: &str, to: &str| !is_in("x", to) || from == "x/a" || is_in("y", from);
    World::new(&[("x", a.clone()), ("x", y.clone()), ("x", deny(json!(["Ingress"])))])
        .check(wanted);
    World::new(&[("x", deny(json!(["Ingress"]))), ("x", y), ("x", a)]).check(wanted);
    let all = json!({ "podSelector": {}, "ingress": [{}] });
    World::new(&[("x", deny(json!(["Ingress"]))), ("x", all)]).check(|_, _| true);
}

#[test]
fn both_ends_must_allow_a_connection() {
    let out = json!({ "podSelector": { "matchLabels": { "pod": "a" } }, "policyTypes": ["Egress"],
        "egress": [{ "to": [{ "namespaceSelector": { "matchLabels": { "ns": "y" } } }] }] });
    let inward = from(json!([{ "namespaceSelector": { "matchLabels": { "ns": "z" } } }]));
    World::new(&[("x", out), ("y", inward)]).check(|from, to| {
        let may_leave = from != "x/a" || is_in("y", to);
        let may_enter = !is_in("y", to) || is_in("z", from);
        may_leave && may_enter
    });
}

#[test]
fn ports_are_numbers_names_and_ranges_of_one_protocol() {
    let ports = |ports: Value| {
        World::new(&[("x", json!({ "podSelector": {}, "ingress": [{ "ports": ports }] }))])
    };
    let open = |world: &World, port, protocol| world.reaches("y/a", "x/c", port, protocol);
    let (tcp, udp) = (Protocol::Tcp, Protocol::Udp);
    for (rule, allowed, denied) in [
        (json!([{ "port": 80 }]), vec![(80, tcp)], vec![(81, tcp), (80, udp)]),
        (json!([{ "port": 80, "protocol": "UDP" }]), vec![(80, udp)], vec![(80, tcp)]),
        (json!([{ "port": "serve-81-tcp" }]), vec![(81, tcp)], vec![(80, tcp), (81, udp)]),
        (json!([{ "port": "serve-80-udp", "protocol": "UDP" }]), vec![(80, udp)], vec![(80, tcp)]),
        // A name of the other protocol is no port.
        (json!([{ "port": "serve-80-udp" }]), vec![], vec![(80, udp), (80, tcp)]),
        (json!([{ "port": "unknown" }]), vec![], vec![(80, tcp), (81, tcp)]),
        (
            json!([{ "port": 80, "endPort": 82 }]),
            vec![(80, tcp), (82, tcp)],
            vec![(79, tcp), (83, tcp), (81, udp)],
        ),
        (json!([{ "protocol": "UDP" }]), vec![(1, udp), (65535, udp)], vec![(80, tcp)]),
        (json!([{}]), vec![(1, tcp), (65535, tcp)], vec![(80, udp)]),
        (
            json!([{ "port": 80 }, { "port": 80, "protocol": "UDP" }]),
            vec![(80, tcp), (80, udp)],
            vec![(81, tcp)],
        ),
        (json!([{ "port": 80, "protocol": "SCTP" }]), vec![], vec![(80, tcp), (80, udp)]),
    ] {
        let world = ports(rule.clone());
        for (port, protocol) in allowed {
            assert!(open(&world, port, protocol), "{rule}: {protocol:?} {port}");
        }
        for (port, protocol) in denied {
            assert!(!open(&world, port, protocol), "{rule}: {protocol:?} {port}");
        }
    }
}

#[test]
fn a_rule_allows_its_ports_to_its_peers_and_another_rule_others() {
    let world = World::new(&[(
        "x",
        json!({ "podSelector": {}, "ingress": [
            { "from": [{ "namespaceSelector": { "matchLabels": { "ns": "y" } } }], "ports": [{ "port": 80 }] },
            { "from": [{ "namespaceSelector": { "matchLabels": { "ns": "z" } } }], "ports": [{ "port": 81 }] },
        ]}),
    )]);
    world.check_at(80, Protocol::Tcp, |from, to| !is_in("x", to) || is_in("y", from));
    world.check_at(81, Protocol::Tcp, |from, to| !is_in("x", to) || is_in("z", from));
    world.check_at(80, Protocol::Udp, |_, to| !is_in("x", to));
}

#[test]
fn names_of_ports_in_egress_are_those_of_the_pod_that_is_asked() {
    let egress = |port: Value| json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "ports": [port] }] });
    let world = World::new(&[("x", egress(json!({ "port": "serve-80-tcp" })))]);
    world.check_at(80, Protocol::Tcp, |_, _| true);
    world.check_at(81, Protocol::Tcp, |from, _| !is_in("x", from));
    // Nothing outside has a name.
    assert!(!world.outside("x/a", "192.0.2.1:80"));
    let world = World::new(&[("x", egress(json!({ "port": 443, "endPort": 444 })))]);
    assert!(world.outside("x/a", "192.0.2.1:444"));
    assert!(!world.outside("x/a", "192.0.2.1:445"));
}

#[test]
fn blocks_of_addresses_are_for_whoever_has_one_but_for_the_exceptions() {
    let block = json!([{ "ipBlock": { "cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"] } }]);
    let out = json!({ "podSelector": {}, "policyTypes": ["Egress"], "egress": [{ "to": block }] });
    let world = World::new(&[("x", out), ("y", from(block))]);
    assert!(world.outside("x/a", "192.0.2.127:443"));
    assert!(!world.outside("x/a", "192.0.2.128:443"));
    assert!(!world.outside("x/a", "198.51.100.1:443"));
    assert!(!world.outside("x/a", "[2001:db8::1]:443"));
    assert!(world.admits_outsider("192.0.2.1", "y/c", 80));
    assert!(!world.admits_outsider("192.0.2.200", "y/c", 80));
    // An exception of one block is no exception of another.
    let two = json!([
        { "ipBlock": { "cidr": "192.0.2.0/24", "except": ["192.0.2.0/25"] } },
        { "ipBlock": { "cidr": "192.0.2.7/32" } },
    ]);
    let world = World::new(&[("y", from(two))]);
    assert!(world.admits_outsider("192.0.2.7", "y/c", 80));
    assert!(!world.admits_outsider("192.0.2.8", "y/c", 80));
    let six = World::new(&[("y", from(json!([{ "ipBlock": { "cidr": "2001:db8::/32" } }])))]);
    assert!(six.admits_outsider("2001:db8::7", "y/a", 80));
    assert!(!six.admits_outsider("192.0.2.7", "y/a", 80));
}

#[test]
fn a_block_means_pods_too_by_their_own_addresses() {
    let block = json!([{ "ipBlock": { "cidr": "10.42.0.0/24", "except": ["10.42.0.20/32"] } }]);
    let world = World::new(&[("x", from(block))]);
    // On node one, but for y/a.
    world.check(|from, to| !is_in("x", to) || (!from.ends_with('c') && from != "y/a"));
    assert_eq!(ip_of("y/a").to_string(), "10.42.0.20");
}

#[test]
fn nodes_and_clients_are_no_pods_whatever_they_are_selected_by() {
    let world = World::new(&[("x", from(json!([{ "podSelector": {}, "namespaceSelector": {} }])))]);
    world.check(|_, _| true);
    assert!(!world.admits_outsider("192.168.1.10", "x/a", 80));
    assert!(world.admits_outsider("192.168.1.10", "y/a", 80));
    let anyone = World::new(&[(
        "x",
        json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 80 }] }] }),
    )]);
    assert!(anyone.admits_outsider("192.168.1.10", "x/a", 80));
    assert!(!anyone.admits_outsider("192.168.1.10", "x/a", 81));
}

#[test]
fn what_cannot_be_read_allows_nobody() {
    for peer in [
        json!({}),
        json!({ "ipBlock": { "cidr": "nonsense" } }),
        json!({ "ipBlock": { "cidr": "0.0.0.0/0", "except": ["nonsense"] } }),
        json!({ "ipBlock": { "cidr": "0.0.0.0/0" }, "podSelector": {} }),
        json!({ "podSelector": { "matchExpressions": [{ "key": "pod", "operator": "Is" }] } }),
    ] {
        World::new(&[("x", from(json!([peer])))]).check(|_, to| !is_in("x", to));
    }
}

const X_A: PodRef<'_> = PodRef { namespace: "x", uid: "x/a" };

#[test]
fn a_pod_that_nobody_knows_yet_is_waited_for_where_it_matters() {
    let world =
        World::new(&[("x", from(json!([{ "podSelector": {} }]))), ("x", deny(json!(["Egress"])))]);
    let table = world.on("one");
    let to = "192.0.2.1:80".parse().unwrap();
    let fresh = PodRef { namespace: "x", uid: "fresh" };
    // Of a namespace without policies, nobody needs to know it.
    let free = PodRef { namespace: "y", uid: "fresh" };
    let incoming = Incoming::Pod { uid: "y/a", node: "one", ranges: &[] };
    let (tcp, outside) = (Protocol::Tcp, Outgoing::Outside);
    assert_eq!(table.egress(fresh, tcp, to, outside), Ruling::Unsettled);
    assert_eq!(table.egress(free, tcp, to, outside), Ruling::Allowed);
    assert_eq!(table.ingress(fresh, tcp, 80, incoming), Ruling::Unsettled);
    assert_eq!(table.ingress(free, tcp, 80, incoming), Ruling::Allowed);
    // A pod of another namespace does not borrow a known one's name.
    let foreign = PodRef { namespace: "x", uid: "y/a" };
    assert_eq!(table.egress(foreign, tcp, to, outside), Ruling::Unsettled);
    // Who comes may be new as well.
    let fresh = Incoming::Pod { uid: "fresh", node: "one", ranges: &[] };
    assert_eq!(table.ingress(X_A, tcp, 80, fresh), Ruling::Unsettled);
    let everybody = World::new(&[("x", json!({ "ingress": [{}] }))]);
    assert_eq!(everybody.on("one").ingress(X_A, tcp, 80, fresh), Ruling::Allowed);
    assert_eq!(table.ingress(X_A, tcp, 80, Incoming::Untold), Ruling::Denied);
}

#[test]
fn a_node_speaks_for_its_own_pods_only() {
    let world = World::new(&[("x", from(json!([{ "podSelector": {} }])))]);
    let table = world.on("one");
    let ask = |uid, node| {
        let incoming = Incoming::Pod { uid, node, ranges: &[] };
        table.ingress(X_A, Protocol::Tcp, 80, incoming)
    };
    assert_ne!(ask("x/b", "two"), Ruling::Allowed, "it is on node one");
    assert_ne!(ask("x/c", "one"), Ruling::Allowed, "it is on node two");
    assert_eq!(ask("x/c", "two"), Ruling::Allowed);
    // Nor for an address that is not its own.
    let block = World::new(&[("x", from(json!([{ "ipBlock": { "cidr": "10.42.1.0/24" } }])))]);
    let ranges = [crate::mesh::cidr::Cidr::parse("10.42.7.0/24").unwrap()];
    let incoming = Incoming::Pod { uid: "y/c", node: "two", ranges: &ranges };
    assert_ne!(block.on("one").ingress(X_A, Protocol::Tcp, 80, incoming), Ruling::Allowed);
}
