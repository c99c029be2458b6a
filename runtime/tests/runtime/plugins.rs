//! Plugins of the scheduler: what they are told, and what becomes of those that misbehave.

use std::path::PathBuf;
use std::time::Duration;

use edgeorc_runtime::{
    Machine, PluginEngine, PluginError, PluginNode, PluginPod, SchedulerPlugin, StartError,
    compile_file,
};
use tempfile::TempDir;
use tokio::time::Instant;

use crate::support::app_bytes;

/// Memory of the plugins.
const MEMORY: u64 = 8 << 20;
/// Plenty, but where a test is about time.
const TIME: Duration = Duration::from_secs(10);

struct Loaded {
    plugin: SchedulerPlugin,
    engine: PluginEngine,
    code: PathBuf,
    _folder: TempDir,
}

fn load(app: &str) -> Loaded {
    let folder = tempfile::tempdir().unwrap();
    let (wasm, code) = (folder.path().join("in.wasm"), folder.path().join("out.cwasm"));
    std::fs::write(&wasm, app_bytes(app)).unwrap();
    compile_file(&wasm, &code).unwrap();
    let engine = PluginEngine::new(Machine::probe()).unwrap();
    let plugin = engine.load(&code, MEMORY, TIME).unwrap();
    Loaded { plugin, engine, code, _folder: folder }
}

fn pod(does: &str) -> PluginPod {
    PluginPod {
        namespace: "shop".to_owned(),
        labels: vec![("do".to_owned(), does.to_owned())],
        priority: -7,
        images: vec!["web:1".to_owned()],
        requests: vec![("cpu".to_owned(), 250)],
    }
}

fn node() -> PluginNode {
    PluginNode {
        name: "pi-1".to_owned(),
        labels: vec![("edgeorc.io/temperature".to_owned(), "warm".to_owned())],
        taints: vec![("gpu".to_owned(), "yes".to_owned(), "NoSchedule".to_owned())],
        allocatable: vec![("memory".to_owned(), 1 << 40)],
    }
}

#[test]
fn a_plugin_is_told_everything_and_answers() {
    let mut loaded = load("probe-plugin");
    assert_eq!(loaded.plugin.filter(&pod(""), &node(), TIME), Ok(Ok(())));
    let told = loaded.plugin.filter(&pod("refuse"), &node(), TIME).unwrap().unwrap_err();
    for words in [
        "\"shop\"",
        "-7",
        "\"web:1\"",
        "(\"cpu\", 250)",
        "\"pi-1\"",
        "\"warm\"",
        "\"gpu\"",
        "\"yes\"",
        "\"NoSchedule\"",
        "1099511627776",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    assert_eq!(loaded.plugin.score(&pod("high"), &node(), TIME), Ok(101), "the caller judges it");
}

#[test]
fn one_instance_answers_many_times_until_it_fails() {
    let mut loaded = load("probe-plugin");
    for expected in 0..100 {
        assert_eq!(loaded.plugin.score(&pod("count"), &node(), TIME), Ok(expected));
    }
    assert!(loaded.plugin.filter(&pod("trap"), &node(), TIME).is_err());
    assert_eq!(loaded.plugin.score(&pod("count"), &node(), TIME), Ok(0), "a new instance");
}

#[test]
fn who_computes_for_ever_is_stopped_in_time() {
    let mut loaded = load("probe-plugin");
    let time = Duration::from_millis(50);
    let began = Instant::now();
    let late = loaded.plugin.filter(&pod("spin"), &node(), time);
    assert_eq!(late, Err(PluginError::Late(time)));
    assert!(began.elapsed() >= time - Duration::from_millis(10), "{:?}", began.elapsed());
    assert!(began.elapsed() < TIME, "{:?}", began.elapsed());
    assert_eq!(loaded.plugin.filter(&pod(""), &node(), TIME), Ok(Ok(())));
}

#[test]
fn memory_ends_at_the_limit_and_there_is_no_way_out() {
    let mut loaded = load("probe-plugin");
    let grown = loaded.plugin.filter(&pod("grow"), &node(), TIME);
    assert_eq!(grown, Err(PluginError::Memory(MEMORY)));
    let asked = loaded.plugin.filter(&pod("clock"), &node(), TIME);
    assert!(matches!(asked, Err(PluginError::Failed(_))), "{asked:?}");
    let long = loaded.plugin.filter(&pod("long"), &node(), TIME);
    assert!(matches!(long, Err(PluginError::Failed(_))), "{long:?}");
    assert_eq!(loaded.plugin.filter(&pod(""), &node(), TIME), Ok(Ok(())));
}

#[test]
fn what_is_no_plugin_or_too_large_is_not_loaded() {
    let Loaded { engine, code, .. } = load("probe-plugin");
    let small = engine.load(&code, 64 << 10, TIME).unwrap_err();
    assert!(matches!(small, StartError::Unsupported { .. }), "{small:?}");
    let folder = tempfile::tempdir().unwrap();
    let (wasm, code) = (folder.path().join("in.wasm"), folder.path().join("out.cwasm"));
    std::fs::write(&wasm, app_bytes("hello")).unwrap();
    compile_file(&wasm, &code).unwrap();
    let hello = engine.load(&code, MEMORY, TIME).unwrap_err();
    assert!(hello.to_string().contains("edgeorc:scheduler/plugin"), "{hello}");
}

#[test]
fn the_sample_keeps_pods_off_hot_machines() {
    let mut loaded = load("thermal");
    let mut at = |temperature: &str, label: (&str, &str)| {
        let mut node = node();
        temperature.clone_into(&mut node.labels[0].1);
        let mut pod = pod("");
        pod.labels = vec![(label.0.to_owned(), label.1.to_owned())];
        let filtered = loaded.plugin.filter(&pod, &node, TIME).unwrap();
        (filtered.err(), loaded.plugin.score(&pod, &node, TIME).unwrap())
    };
    assert_eq!(at("hot", ("app", "web")), (Some("too hot".to_owned()), 0));
    assert_eq!(at("hot", ("edgeorc.io/heat", "any")), (None, 0));
    assert_eq!(at("cool", ("app", "web")), (None, 100));
    assert_eq!(at("warm", ("app", "web")), (None, 30));
}
