//! A cluster on hosts of its own, with what runs on it, and how it is looked at.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::json;

use super::doubles::Doubles;
use super::figures::Figures;
use crate::hosts::{Host, Switch, enter, wait_ready};
use crate::network::{Load, Outcome};
use crate::support::{PATIENCE, both, eventually, get, guest, hello, succeed};

/// Longest a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// Load before a failure.
pub(super) const CALM: Duration = Duration::from_millis(500);

/// A pod as the API shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pod {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: String,
    pub(super) is_ready: bool,
    pub(super) is_going: bool,
    /// Restarts, and when the present run began.
    pub(super) run: String,
}

/// Pods by uid.
pub(super) type Pods = BTreeMap<String, Pod>;

pub(super) struct World {
    pub(super) hosts: Vec<Host>,
    pub(super) switch: Switch,
    pub(super) doubles: Doubles,
    pub(super) figures: Figures,
    replicas: usize,
    /// Pods of the StatefulSet.
    unique: usize,
    _folder: tempfile::TempDir,
}

/// What there is in a world.
pub(super) struct Plan {
    /// Of the switch, and the first three octets of its network.
    pub(super) network: (&'static str, &'static str),
    pub(super) hosts: &'static [&'static str],
    pub(super) replicas: usize,
    pub(super) unique: usize,
    /// Variables for each host, by the folder of the world and the name of the host.
    pub(super) environment: fn(&std::path::Path, &str) -> Vec<(&'static str, String)>,
}

impl World {
    /// Starts the nodes, one after the other, then the apps: a Deployment that serves, and a
    /// StatefulSet that logs all the time. The first node is cordoned: a server that runs no pods.
    pub(super) fn start(plan: &Plan) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let switch = Switch::make(plan.network.0);
        let mut hosts = Vec::new();
        for (at, name) in plan.hosts.iter().enumerate() {
            let address = format!("{}.{}", plan.network.1, at + 1);
            let mut host = Host::new(folder.path(), name, &address);
            host.environment = (plan.environment)(folder.path(), name);
            switch.plug(&host);
            hosts.push(host);
        }
        hosts[0].start(None);
        wait_ready(&hosts[0], &plan.hosts[..1]);
        succeed(&mut hosts[0].kubectl(&["cordon", plan.hosts[0]]));
        let server = hosts[0].address;
        for at in 1..hosts.len() {
            let token = succeed(&mut hosts[0].edgeorc(&["node", "token", "create"]));
            hosts[at].start(Some((server, token.trim())));
            wait_ready(&hosts[0], &plan.hosts[at..=at]);
        }
        eventually("all servers are voters", PATIENCE, || {
            let metrics = succeed(&mut hosts[0].kubectl(&["get", "--raw", "/metrics"]));
            let are_voters = metrics.lines().any(|line| line == "edgeorc_store_voters 3");
            if are_voters { Ok(()) } else { Err(metrics) }
        });
        let doubles = Doubles::watch(hosts.iter().map(|host| host.data_dir.clone()).collect());
        let (replicas, unique, figures) = (plan.replicas, plan.unique, Figures::default());
        let this = Self { hosts, switch, doubles, figures, replicas, unique, _folder: folder };
        this.deploy();
        this
    }

    fn deploy(&self) {
        let (server, app) = (&self.hosts[0], hello());
        let replicas = self.replicas.to_string();
        succeed(&mut server.edgeorc(&[
            "deploy",
            app.to_str().unwrap(),
            "--replicas",
            &replicas,
            "--wait",
        ]));
        let ticker = guest("ticker");
        let seed = ["deploy", ticker.to_str().unwrap(), "--name", "seed", "--replicas", "0"];
        succeed(&mut server.edgeorc(&seed));
        let image = "jsonpath={.spec.template.spec.containers[0].image}";
        let image = succeed(&mut server.kubectl(&["get", "deploy", "seed", "-o", image]));
        let set = json!({"apiVersion": "apps/v1", "kind": "StatefulSet",
            "metadata": {"name": "db"}, "spec": {
                "serviceName": "db", "replicas": self.unique, "podManagementPolicy": "Parallel",
                "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{"name": "db", "image": image,
                        "args": ["--interval-ms", "50"]}]}}}});
        self.apply(&set);
        self.settle();
    }

    pub(super) fn apply(&self, object: &serde_json::Value) {
        use std::io::Write as _;
        let mut command = self.hosts[0].kubectl(&["apply", "-f", "-"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(object.to_string().as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "apply");
    }

    pub(super) fn at(&self, name: &str) -> usize {
        self.hosts.iter().position(|host| host.name == name).unwrap()
    }

    /// A server that is none of `lost`.
    pub(super) fn observer(&self, lost: &[usize]) -> &Host {
        let at = (0..self.servers()).find(|at| !lost.contains(at)).unwrap();
        &self.hosts[at]
    }

    pub(super) fn servers(&self) -> usize {
        self.hosts.len().min(3)
    }

    /// The pods of the apps, asked at `host`.
    pub(super) fn pods(host: &Host) -> Result<Pods, String> {
        let template = "jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.spec.nodeName} \
            {.status.conditions[?(@.type=='Ready')].status} \
            {.status.containerStatuses[0].restartCount}/\
            {.status.containerStatuses[0].state.running.startedAt} \
            {.metadata.deletionTimestamp}{'\\n'}{end}";
        let args = ["get", "pods", "--request-timeout=2s", "-o", template];
        let output = host.kubectl(&args).output().unwrap();
        if !output.status.success() {
            return Err(both(&output));
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let pods = text.lines().filter_map(|line| {
            let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
            let [name, uid, node, ready, run, going] = <[String; 6]>::try_from(words).ok()?;
            let (is_ready, is_going) = (ready == "True", !going.is_empty());
            Some((uid.clone(), Pod { name, uid, node, is_ready, is_going, run }))
        });
        Ok(pods.collect())
    }

    /// Waits until all pods that are wanted are ready.
    pub(super) fn until_whole(&self, asked: &Host) -> Pods {
        let apps = [("hello-", self.replicas), ("db-", self.unique)];
        self.until(asked, "all pods are ready", &apps, None)
    }

    /// Waits until the Deployment's pods are ready away from `lost`.
    pub(super) fn until_moved(&self, asked: &Host, lost: &str) -> Pods {
        self.until(asked, "the pods are replaced", &[("hello-", self.replicas)], Some(lost))
    }

    /// The same for the StatefulSet.
    pub(super) fn until_unique_moved(&self, asked: &Host, lost: &str) -> Pods {
        self.until(asked, "the set's pods are replaced", &[("db-", self.unique)], Some(lost))
    }

    /// Waits until of each of these apps all pods are ready, none on `lost` and none on its way out.
    fn until(&self, asked: &Host, what: &str, apps: &[(&str, usize)], lost: Option<&str>) -> Pods {
        let is_whole = |pods: &Pods, (app, wanted): &(&str, usize)| {
            let all: Vec<_> = pods.values().filter(|pod| pod.name.starts_with(app)).collect();
            let is_fine =
                |pod: &&Pod| pod.is_ready && !pod.is_going && Some(pod.node.as_str()) != lost;
            all.len() == *wanted && all.iter().all(is_fine)
        };
        eventually(what, PATIENCE, || {
            let pods = Self::pods(asked)?;
            let is_met = apps.iter().all(|app| is_whole(&pods, app));
            if is_met { Ok(pods) } else { Err(format!("{pods:#?}")) }
        })
    }

    /// Waits until the pods of `before` on these nodes have begun another run, and are ready: what the API
    /// shows may be older than the restart. Those that are gone are not waited for.
    pub(super) fn until_run_again(&self, asked: &Host, before: &Pods, nodes: &[&str]) {
        let there = before.values().filter(|pod| nodes.contains(&pod.node.as_str()));
        let there: Vec<_> = there.collect();
        eventually("the pods run again", PATIENCE, || {
            let now = Self::pods(asked)?;
            let has_rerun =
                |pod: &Pod| now.get(&pod.uid).is_none_or(|now| now.is_ready && now.run != pod.run);
            let late: Vec<_> = there.iter().filter(|pod| !has_rerun(pod)).collect();
            if late.is_empty() { Ok(()) } else { Err(format!("{late:?} of {now:#?}")) }
        });
    }

    /// Waits until every node is ready and free of the taints that come with trouble.
    pub(super) fn until_healthy(&self, asked: &Host) {
        let wanted: BTreeSet<_> = self.hosts.iter().map(|host| host.name.to_owned()).collect();
        eventually("all nodes are ready", PATIENCE, || {
            let ready = healthy(asked);
            if ready == wanted { Ok(()) } else { Err(format!("ready are {ready:?}")) }
        });
    }

    /// Waits until all is as it should be, and looks whether it was all the time.
    pub(super) fn settle(&self) -> Pods {
        let asked = &self.hosts[0];
        self.until_healthy(asked);
        let pods = self.until_whole(asked);
        for host in &self.hosts {
            self.serves(host);
        }
        self.doubles.assert_none();
        pods
    }

    /// Waits until the app answers at the ingress of `host`.
    pub(super) fn serves(&self, host: &Host) {
        let at = host.ingress();
        host.within(move || {
            eventually("the app answers", PATIENCE, || {
                match get(at, "hello.default.localhost", "/", REQUEST_LIMIT) {
                    Ok(answer) if answer.code == 200 => Ok(()),
                    other => Err(format!("{other:?}")),
                }
            });
        });
    }

    pub(super) fn load(host: &Host) -> Load {
        let space = host.space.0.clone();
        let load = Load::start_in(host.ingress(), move || enter(&space));
        std::thread::sleep(CALM);
        load
    }

    /// Notes for how long after `struck` requests were begun that failed, and how many of a million.
    pub(super) fn note_traffic(
        &mut self,
        drill: &'static str,
        outcome: &Outcome,
        struck: Instant,
        budget_ms: f64,
    ) {
        let after = |method: &str| {
            let failed = outcome.failures.iter().filter(|(_, of, _)| *of == method);
            failed.map(|(begun, _, _)| begun.saturating_duration_since(struck)).max()
        };
        let (reads, writes) = (after("GET").unwrap_or_default(), after("POST").unwrap_or_default());
        self.figures.took(drill, "GET failed until", reads, Some(budget_ms));
        self.figures.took(drill, "POST failed until", writes, Some(budget_ms));
        let per_million = outcome.failures.len() * 1_000_000 / outcome.asked.max(1);
        self.figures.counted(drill, "failed of a million", per_million, None);
    }

    /// The server that leads, by its own word.
    pub(super) fn leader(&self) -> usize {
        eventually("a leader is known", PATIENCE, || {
            (0..self.servers())
                .find(|at| {
                    let mut asking = self.hosts[*at].kubectl(&["get", "--raw", "/metrics"]);
                    let output = asking.output().unwrap();
                    let text = String::from_utf8_lossy(&output.stdout).into_owned();
                    text.lines().any(|line| line == "edgeorc_store_is_leader 1")
                })
                .ok_or("nobody leads")
        })
    }

    /// The node with the most pods whose names begin so, but not the first; of `nodes` only.
    pub(super) fn fullest(pods: &Pods, name: &str, nodes: &[&str]) -> String {
        let count = |node: &&&str| {
            pods.values().filter(|pod| pod.node == **node && pod.name.starts_with(name)).count()
        };
        (*nodes.iter().max_by_key(count).unwrap()).to_owned()
    }
}

/// Names of the nodes that are ready, and free of the taints that come with trouble.
pub(super) fn healthy(asked: &Host) -> BTreeSet<String> {
    let template = "jsonpath={range .items[*]}{.metadata.name} \
        {.status.conditions[?(@.type=='Ready')].status} \
        {range .spec.taints[*]}{.key},{end}{'\\n'}{end}";
    let args = ["get", "nodes", "--request-timeout=2s", "-o", template];
    let output = asked.kubectl(&args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let words = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let ready = words.filter(|words| {
        words.len() == 3
            && words[1] == "True"
            && !words[2].contains("/not-ready,")
            && !words[2].contains("/unreachable,")
    });
    ready.map(|words| words[0].to_owned()).collect()
}
