use crate::scheduler::need::Resources;
use crate::scheduler::node::Facts;
use crate::scheduler::testing::{named, owned, pod};
use crate::scheduler::view::{ClusterView, PodKey};

fn key(name: &str) -> PodKey {
    ("default".into(), name.into())
}

fn web(name: &str) -> k8s_openapi::api::core::v1::Pod {
    named(&owned("g", "100m", "1"), name)
}

#[test]
fn an_assumption_holds_until_the_api_shows_or_refutes_it() {
    let mut view = ClusterView::new();
    view.set_node("a", Some(Facts::default()));
    view.assume(&web("p"), "a");
    assert!(view.is_assumed(&key("p"), "p"));
    assert_eq!(view.node("a").unwrap().used.cpu_millis, 100);
    view.place(&web("p"), "a");
    assert!(!view.is_assumed(&key("p"), "p"));
    assert_eq!(view.node("a").unwrap().used.cpu_millis, 100, "counted once");
    view.forget(&key("p"), "p");
    assert_eq!(view.node("a").unwrap().used.cpu_millis, 100, "what is shown is no assumption");
    view.remove(&key("p"));
    assert_eq!(view.node("a").unwrap().used, Resources::default());
    assert!(view.node("a").unwrap().pods.is_empty());
}

#[test]
fn a_node_that_goes_keeps_its_pods_until_they_go() {
    let mut view = ClusterView::new();
    for name in ["a", "b", "c"] {
        view.set_node(name, Some(Facts::default()));
    }
    view.place(&web("p"), "a");
    assert!(!view.set_node("a", None));
    assert_eq!((view.nodes().count(), view.nodes_known()), (3, 2));
    view.remove(&key("p"));
    assert_eq!(view.nodes().count(), 2);
    assert_eq!(view.node("c").unwrap().name, "c");
    assert!(view.node("a").is_none());
}

#[test]
fn a_measured_node_counts_the_larger_of_asked_and_used_and_what_came_since() {
    let measured = |cpu_millis| Some(Resources { cpu_millis, ..Resources::default() });
    let load = |view: &ClusterView| view.node("a").unwrap().load().cpu_millis;
    let mut view = ClusterView::new();
    view.set_measured("a", measured(5));
    view.set_node("a", Some(Facts::default()));
    view.place(&web("p"), "a");
    assert_eq!(load(&view), 100, "nobody has measured");
    view.set_measured("a", measured(30));
    assert_eq!(load(&view), 100);
    view.set_measured("a", measured(700));
    assert_eq!(load(&view), 700);
    view.assume(&named(&pod(&serde_json::json!({})), "q"), "a");
    assert_eq!(load(&view), 720, "it will use something");
    view.set_measured("a", measured(700));
    assert_eq!(load(&view), 720, "that was measured before");
    view.remove(&key("q"));
    view.remove(&key("p"));
    assert_eq!(load(&view), 700);
}

#[test]
fn only_a_real_change_of_a_node_wakes_pods() {
    let mut view = ClusterView::new();
    assert!(view.set_node("a", Some(Facts::default())));
    assert!(!view.set_node("a", Some(Facts::default())));
    let cordoned = Facts { is_unschedulable: true, ..Facts::default() };
    assert!(view.set_node("a", Some(cordoned)));
}
