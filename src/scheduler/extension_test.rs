//! What plugins may and may not do to a choice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::json;

use crate::scheduler::decide::decide;
use crate::scheduler::explain::Snapshot;
use crate::scheduler::extension::{
    Extension, ExtensionError, NodeFacts, Plugin, PodFacts, Profile, Profiles,
};
use crate::scheduler::node::Facts;
use crate::scheduler::placer::{Placement, Placer};
use crate::scheduler::testing::{named, node, pod, view};
use crate::scheduler::view::ClusterView;

/// Refuses hot nodes, likes cool ones, and counts its calls; or fails.
#[derive(Default)]
struct Thermal {
    calls: AtomicUsize,
    fails: bool,
    points: Option<i64>,
}

fn heat<'a>(node: &NodeFacts<'a>) -> &'a str {
    node.facts.labels.get("temperature").map_or("", String::as_str)
}

impl Thermal {
    fn asked(&self) -> Result<(), ExtensionError> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.fails { Err(ExtensionError("it trapped".to_owned())) } else { Ok(()) }
    }
}

impl Extension for Thermal {
    fn filter(
        &self,
        _: &PodFacts<'_>,
        node: NodeFacts<'_>,
        _: Duration,
    ) -> Result<Result<(), String>, ExtensionError> {
        self.asked()?;
        Ok(if heat(&node) == "hot" { Err("too\nhot".to_owned()) } else { Ok(()) })
    }

    fn score(
        &self,
        _: &PodFacts<'_>,
        node: NodeFacts<'_>,
        _: Duration,
    ) -> Result<i64, ExtensionError> {
        self.asked()?;
        Ok(self.points.unwrap_or(if heat(&node) == "cool" { 100 } else { 0 }))
    }
}

fn profiles(thermal: &Arc<Thermal>, is_required: bool) -> Profiles {
    let plugin = Plugin {
        name: "thermal".into(),
        extension: Arc::clone(thermal) as Arc<dyn Extension>,
        is_required,
        time_max: Duration::from_secs(1),
    };
    let profile = Profile { plugins: vec![plugin], filters: vec![0], scores: vec![(0, 100)] };
    [("default-scheduler".to_owned(), Arc::new(profile))].into()
}

fn of_heat(name: &str, heat: &str) -> Node {
    node(name, &json!({ "metadata": { "labels": { "temperature": heat } } }))
}

fn three(thermal: &Arc<Thermal>, is_required: bool) -> ClusterView {
    let mut view = view(&[of_heat("a", "hot"), of_heat("b", "warm"), of_heat("c", "cool")]);
    view.set_profiles(profiles(thermal, is_required));
    view
}

#[test]
fn a_plugin_takes_nodes_away_and_gives_points() {
    let thermal = Arc::new(Thermal::default());
    let mut view = three(&thermal, true);
    for seed in 0..20 {
        assert_eq!(decide(&view, &pod(&json!({})), seed), Ok("c"));
    }
    view.set_node("c", None);
    assert_eq!(decide(&view, &pod(&json!({})), 1), Ok("b"));
    view.set_node("b", None);
    let refusal = decide(&view, &pod(&json!({})), 1).unwrap_err();
    let words = "0/1 nodes are available: 1 node(s) refused by plugin thermal: too hot.";
    assert_eq!(refusal.to_string(), words);
    assert!(!refusal.is_passing, "it says the same the next time");
    let other = pod(&json!({ "spec": { "schedulerName": "binpack" } }));
    assert_eq!(decide(&view, &other, 1), Ok("a"), "another profile has no plugins");
}

#[test]
fn an_answer_is_asked_for_once_until_the_node_says_something_else() {
    let thermal = Arc::new(Thermal::default());
    let mut placer = Placer { view: three(&thermal, true) };
    let place = |placer: &mut Placer, at: usize| match placer
        .place(&named(&pod(&json!({})), &format!("p{at}")), at as u64)
    {
        Placement::Placed { node } => node,
        other => panic!("{other:?}"),
    };
    for at in 0..10 {
        assert_eq!(place(&mut placer, at), "c");
    }
    // Three nodes are filtered, two of them have points.
    assert_eq!(thermal.calls.load(Ordering::Relaxed), 5);
    placer.view.set_node("c", Some(Facts::of(&of_heat("c", "hot"))));
    assert_eq!(place(&mut placer, 10), "b");
    assert_eq!(thermal.calls.load(Ordering::Relaxed), 6);
}

#[test]
fn a_failing_plugin_has_no_say_or_the_last_word_as_configured() {
    let failing = Arc::new(Thermal { fails: true, ..Thermal::default() });
    let view = three(&failing, false);
    assert!(decide(&view, &pod(&json!({})), 1).is_ok());
    // Once for filtering; after that this round does not ask it again.
    assert_eq!(failing.calls.load(Ordering::Relaxed), 1);
    let refusal = decide(&three(&failing, true), &pod(&json!({})), 1).unwrap_err();
    let words = "0/3 nodes are available: 3 node(s) refused by plugin thermal: it trapped.";
    assert_eq!(refusal.to_string(), words);
    assert!(refusal.is_passing, "it may work the next time");
    let generous = Arc::new(Thermal { points: Some(101), ..Thermal::default() });
    assert!(decide(&three(&generous, false), &pod(&json!({})), 1).is_ok());
    let refusal = decide(&three(&generous, true), &pod(&json!({})), 1).unwrap_err();
    assert!(refusal.to_string().contains("101 points"), "{refusal}");
}

#[test]
fn nobody_has_to_go_for_a_pod_that_a_plugin_refuses() {
    let thermal = Arc::new(Thermal::default());
    let mut placer = Placer::default();
    placer.view.set_node("a", Some(Facts::of(&of_heat("a", "hot"))));
    placer.view.set_profiles(profiles(&thermal, true));
    let asking = |cpu: &str, priority: i32| -> Pod {
        pod(&json!({ "spec": { "priority": priority, "containers": [{
            "name": "c", "resources": { "requests": { "cpu": cpu } } }] } }))
    };
    placer.view.assume(&named(&asking("4", 0), "low"), "a");
    let placed = placer.place(&named(&asking("4", 10), "high"), 1);
    assert!(matches!(placed, Placement::Refused(_)), "{placed:?}");
}

/// Goal: a choice stays bounded in a cluster where the plugin refuses nearly everything.
#[test]
fn one_round_asks_a_bounded_number_of_times_and_the_next_goes_on() {
    let thermal = Arc::new(Thermal::default());
    let nodes: Vec<_> = (0..3000).map(|at| of_heat(&format!("n{at}"), "hot")).collect();
    let mut placer = Placer { view: view(&nodes) };
    placer.view.set_profiles(profiles(&thermal, true));
    let refused = placer.place(&pod(&json!({})), 1);
    let Placement::Refused(refusal) = refused else { panic!("{refused:?}") };
    assert!(refusal.reasons.len() <= 2, "{refusal}");
    let first = thermal.calls.load(Ordering::Relaxed);
    assert!((2000..=3000).contains(&first), "{first}");
    let _ = placer.place(&pod(&json!({})), 2);
    assert_eq!(thermal.calls.load(Ordering::Relaxed), 3000, "all others come from memory");
}

#[test]
fn why_has_the_plugins_own_words() {
    let thermal = Arc::new(Thermal::default());
    let snapshot = Snapshot {
        nodes: vec![of_heat("a", "hot"), of_heat("b", "cool")],
        pods: vec![pod(&json!({}))],
        profiles: profiles(&thermal, true),
        ..Snapshot::default()
    };
    let told = snapshot.explain("default", "p").unwrap();
    assert_eq!(told.choice.as_deref(), Some("b"));
    let because = &told.nodes[0].reasons[0];
    assert_eq!(because.plugin, "thermal");
    assert_eq!(because.reason, "node(s) refused by plugin thermal: too hot");
    // What the node has besides is worth less than two hundred.
    assert!(told.nodes[1].score.unwrap() >= 10_000);
}
