//! Failure drills: three nodes, six pods, load, and one failure after the other, each several times.
//!
//! Run by `just test-drills`; `EDGEORC_DRILL_TURNS` (20) is how often. Writes `target/bench/drills.json`
//! with the median and the worst of a hundred of every figure.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::cluster::{Load, REQUEST_LIMIT, ready_and_untainted, ready_pods, start_three};
use crate::support::{Node, PATIENCE, eventually, get, hello, succeed};

/// Turns of each drill when nobody says otherwise.
const TURNS_DEFAULT: usize = 20;
/// Pods of the app.
const PODS: usize = 6;
/// Load before a failure, and after it is over.
const CALM: Duration = Duration::from_secs(1);
/// How long a node stays frozen or cut off: longer than it takes to replace its pods.
const GONE_FOR: Duration = Duration::from_secs(8);

/// Milliseconds, by drill and figure.
#[derive(Default)]
struct Figures(BTreeMap<&'static str, BTreeMap<&'static str, Vec<f64>>>);

impl Figures {
    fn note(&mut self, drill: &'static str, figure: &'static str, value: f64) {
        eprintln!("{drill}: {figure} {value:.0}");
        self.0.entry(drill).or_default().entry(figure).or_default().push(value);
    }

    fn report(&self) {
        let of = |values: &[f64], part: f64| {
            let mut sorted = values.to_vec();
            sorted.sort_by(f64::total_cmp);
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss,
                reason = "a place in a short list"
            )]
            let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len()) - 1;
            sorted[at]
        };
        let mut report = serde_json::Map::new();
        for (drill, figures) in &self.0 {
            let mut rows = serde_json::Map::new();
            for (figure, values) in figures {
                let (p50, p99) = (of(values, 0.5), of(values, 0.99));
                eprintln!(
                    "{drill:<28} {figure:<22} n={:<3} p50 {p50:>8.0} p99 {p99:>8.0}",
                    values.len()
                );
                let row = json!({"turns": values.len(), "p50": p50, "p99": p99});
                rows.insert((*figure).to_owned(), row);
            }
            report.insert((*drill).to_owned(), Value::Object(rows));
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/drills.json");
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, serde_json::to_string_pretty(&report).unwrap()).unwrap();
        eprintln!("written to {}", path.display());
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

struct Drill {
    nodes: Vec<Node>,
    figures: Figures,
}

/// What is done to a node.
enum Blow {
    Kill,
    Freeze,
}

impl Drill {
    fn start(folder: &Path) -> Self {
        let nodes = start_three(folder);
        let app = hello();
        let replicas = PODS.to_string();
        let deploy = ["deploy", app.to_str().unwrap(), "--replicas", &replicas, "--wait"];
        succeed(&mut nodes[0].edgeorc(&deploy));
        Self { nodes, figures: Figures::default() }
    }

    /// Waits until all nodes are ready and all pods are, and serve at every node.
    fn settle(&self) {
        for node in &self.nodes {
            ready_and_untainted(&self.nodes[0], &node.name, "True");
        }
        eventually("all pods are ready", PATIENCE, || {
            let pods = ready_pods(&self.nodes[0])?;
            if pods.len() == PODS { Ok(()) } else { Err(format!("{pods:?}")) }
        });
        for node in &self.nodes {
            self.serves(node);
        }
        std::thread::sleep(CALM);
    }

    fn serves(&self, node: &Node) {
        eventually("the app answers", PATIENCE, || {
            match get(node.ingress(), "hello.default.localhost", "/", REQUEST_LIMIT) {
                Ok(answer) if answer.code == 200 => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }

    /// The node with the most pods, but not the one that is watched from.
    fn victim(&self) -> usize {
        let pods = ready_pods(&self.nodes[0]).unwrap();
        let count = |at: &usize| pods.values().filter(|on| **on == self.nodes[*at].name).count();
        (1..self.nodes.len()).max_by_key(count).unwrap()
    }

    /// One node is lost under load at another: for how long do requests fail, and when is everything
    /// as it should be without it.
    fn lose(&mut self, name: &'static str, blow: &Blow) {
        self.settle();
        let lost = self.victim();
        let load = Load::start(self.nodes[0].ingress());
        std::thread::sleep(CALM);
        match blow {
            Blow::Kill => self.nodes[lost].process.kill(),
            Blow::Freeze => self.nodes[lost].process.signal("STOP"),
        }
        let struck = Instant::now();
        let lost_name = self.nodes[lost].name.clone();
        eventually("the pods are replaced", PATIENCE, || {
            let pods = ready_pods(&self.nodes[0])?;
            let is_moved = pods.values().all(|node| *node != lost_name);
            if pods.len() == PODS && is_moved { Ok(()) } else { Err(format!("{pods:?}")) }
        });
        self.figures.note(name, "replicas_ms", millis(struck.elapsed()));
        std::thread::sleep(GONE_FOR.saturating_sub(struck.elapsed()));
        let (asked, failures) = load.stop();
        let last = failures
            .iter()
            .map(|(started, _)| started.saturating_duration_since(struck))
            .max()
            .unwrap_or_default();
        self.figures.note(name, "traffic_ms", millis(last));
        #[allow(clippy::cast_precision_loss, reason = "a share for people")]
        let share = failures.len() as f64 * 1e6 / asked.max(1) as f64;
        self.figures.note(name, "failed_per_million", share);
        let back = Instant::now();
        match blow {
            Blow::Kill => self.nodes[lost].restart(),
            Blow::Freeze => self.nodes[lost].process.signal("CONT"),
        }
        ready_and_untainted(&self.nodes[0], &lost_name, "True");
        self.figures.note(name, "back_ms", millis(back.elapsed()));
        // What it ran while it was away is not kept twice.
        self.settle();
    }

    /// The power goes, and comes back everywhere at once.
    fn power_cut(&mut self) {
        const NAME: &str = "all off and on";
        self.settle();
        let before: BTreeSet<_> = ready_pods(&self.nodes[0]).unwrap().into_keys().collect();
        for node in &mut self.nodes {
            node.process.kill();
        }
        for node in &mut self.nodes {
            node.restart();
        }
        let on = Instant::now();
        self.serves(&self.nodes[0]);
        self.figures.note(NAME, "traffic_ms", millis(on.elapsed()));
        eventually("all pods are ready", PATIENCE, || {
            let pods = ready_pods(&self.nodes[0])?;
            if pods.len() == PODS { Ok(()) } else { Err(format!("{pods:?}")) }
        });
        self.figures.note(NAME, "ready_ms", millis(on.elapsed()));
        self.settle();
        let after: BTreeSet<_> = ready_pods(&self.nodes[0]).unwrap().into_keys().collect();
        #[allow(clippy::cast_precision_loss, reason = "a handful of pods")]
        self.figures.note(NAME, "pods_replaced", before.difference(&after).count() as f64);
    }

    /// A node is stopped in order and started again, under load at another.
    fn restart(&mut self) {
        const NAME: &str = "restarted under load";
        self.settle();
        let at = self.victim();
        let load = Load::start(self.nodes[0].ingress());
        std::thread::sleep(CALM);
        let began = Instant::now();
        self.nodes[at].process.signal("TERM");
        assert_eq!(self.nodes[at].process.end(Duration::from_secs(30)), Some(0));
        self.figures.note(NAME, "stop_ms", millis(began.elapsed()));
        let started = Instant::now();
        self.nodes[at].restart();
        let name = self.nodes[at].name.clone();
        ready_and_untainted(&self.nodes[0], &name, "True");
        self.figures.note(NAME, "back_ms", millis(started.elapsed()));
        std::thread::sleep(CALM);
        let (asked, failures) = load.stop();
        #[allow(clippy::cast_precision_loss, reason = "a share for people")]
        let share = failures.len() as f64 * 1e6 / asked.max(1) as f64;
        self.figures.note(NAME, "failed_per_million", share);
    }
}

#[test]
#[ignore = "takes its time: `just test-drills`"]
fn drills() {
    let turns = std::env::var("EDGEORC_DRILL_TURNS").ok().and_then(|text| text.parse().ok());
    let folder = tempfile::tempdir().unwrap();
    let mut drill = Drill::start(folder.path());
    for _ in 0..turns.unwrap_or(TURNS_DEFAULT) {
        drill.lose("node killed", &Blow::Kill);
        drill.lose("node frozen", &Blow::Freeze);
        drill.power_cut();
        drill.restart();
        // Whoever stops it early has what there is.
        drill.figures.report();
    }
}
