//! Jobs and CronJobs by a real kubectl.

use std::path::Path;

use crate::cluster::{leader, ready_and_untainted, start_three};
use crate::kubectl::push;
use crate::support::{Block, Node, PATIENCE, both, eventually, guest, succeed};

/// A node with busybox in its registry, and the folder of the test.
struct Town {
    node: Node,
    image: String,
    folder: tempfile::TempDir,
}

impl Town {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = Node::start(folder.path(), "one", Block::take().address(1), None);
        node.wait_ready();
        Self::of(node, folder)
    }

    fn of(node: Node, folder: tempfile::TempDir) -> Self {
        let image = push(&node, guest("busybox").to_str().unwrap());
        Self { node, image, folder }
    }

    fn kubectl(&self, args: &[&str]) -> String {
        succeed(&mut self.node.kubectl(args))
    }

    fn create(&self, manifest: &str) {
        let file = self.folder.path().join("manifest.yaml");
        std::fs::write(&file, manifest).unwrap();
        self.kubectl(&["create", "-f", Path::new(&file).to_str().unwrap()]);
    }

    /// A Job that runs `script`, with more of its spec.
    fn job(&self, name: &str, script: &str, more: &str) {
        let image = &self.image;
        self.create(&format!(
            "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: {name}}}\nspec:\n{more}  template:\n    spec:\n      restartPolicy: Never\n      containers:\n      - name: c\n        image: {image}\n        command: [sh, -c, {script:?}]\n"
        ));
    }

    fn get(&self, what: &str, path: &str) -> String {
        self.kubectl(&["get", what, "-o", &format!("jsonpath={path}")])
    }

    fn until(&self, what: &str, path: &str, wanted: &str) {
        eventually(&format!("{what} {path} is {wanted}"), PATIENCE, || {
            let found = self.get(what, path);
            if found == wanted { Ok(()) } else { Err(format!("{found}\n{}", self.state())) }
        });
    }

    fn pods_of(&self, job: &str) -> String {
        let selector = format!("batch.kubernetes.io/job-name={job}");
        self.kubectl(&["get", "pods", "-l", &selector, "-o", "name"])
    }

    fn until_no_pods(&self, job: &str) {
        eventually(&format!("no pod of {job} is left"), PATIENCE, || {
            let left = self.pods_of(job);
            if left.is_empty() { Ok(()) } else { Err(format!("{left}\n{}", self.state())) }
        });
    }

    fn state(&self) -> String {
        let all = both(&self.node.kubectl(&["get", "jobs,cj,pods"]).output().unwrap());
        format!("{all}\n{}", both(&self.node.kubectl(&["get", "events"]).output().unwrap()))
    }
}

#[test]
fn jobs_run_fail_wait_and_expire() {
    let town = Town::new();
    town.job("once", "echo done", "");
    town.kubectl(&["wait", "--for=condition=complete", "job/once", "--timeout=60s"]);
    assert_eq!(town.kubectl(&["logs", "job/once"]).trim(), "done");
    let row = town.kubectl(&["get", "job", "once"]);
    assert!(row.contains("Complete") && row.contains("1/1"), "{row}");
    let described = town.kubectl(&["describe", "job", "once"]);
    for word in ["Pods Statuses:", "0 Active", "1 Succeeded", "SuccessfulCreate", "Completed"] {
        assert!(described.contains(word), "{word:?} expected in:\n{described}");
    }
    let found =
        town.kubectl(&["get", "jobs", "--field-selector", "status.successful=1", "-o", "name"]);
    assert_eq!(found, "job.batch/once\n");

    // Each index knows itself, and is counted once.
    let more = "  completionMode: Indexed\n  completions: 5\n  parallelism: 2\n";
    town.job("many", "echo $(JOB_COMPLETION_INDEX)", more);
    town.kubectl(&["wait", "--for=condition=complete", "job/many", "--timeout=60s"]);
    assert_eq!(town.get("job/many", "{.status.completedIndexes}"), "0-4");
    let log = town.kubectl(&["logs", "-l", "batch.kubernetes.io/job-name=many", "--tail=-1"]);
    let mut lines: Vec<&str> = log.lines().filter_map(|line| line.split(' ').next()).collect();
    lines.sort_unstable();
    assert_eq!(lines, ["0", "1", "2", "3", "4"], "{log}");

    // Failures are counted, and the last condition comes when nothing runs any more.
    town.job("bad", "exit 3", "  backoffLimit: 2\n");
    town.kubectl(&["wait", "--for=condition=failed", "job/bad", "--timeout=60s"]);
    assert_eq!(town.get("job/bad", "{.status.failed}"), "3");
    let reason = town.get("job/bad", "{.status.conditions[?(@.type==\"Failed\")].reason}");
    assert_eq!(reason, "BackoffLimitExceeded");
    let left = town.get("pods", "{.items[*].metadata.finalizers}");
    assert_eq!(left, "", "no finalizer is left");

    // Suspended and resumed.
    town.job("later", "echo now", "  suspend: true\n");
    town.until("job/later", "{.status.conditions[0].reason}", "JobSuspended");
    assert_eq!(town.pods_of("later"), "");
    town.kubectl(&["patch", "job", "later", "-p", "{\"spec\":{\"suspend\":false}}"]);
    town.kubectl(&["wait", "--for=condition=complete", "job/later", "--timeout=60s"]);
    town.job("stopped", "sleep 600", "");
    town.until("job/stopped", "{.status.ready}", "1");
    town.kubectl(&["patch", "job", "stopped", "-p", "{\"spec\":{\"suspend\":true}}"]);
    town.until_no_pods("stopped");
    assert_eq!(town.get("job/stopped", "{.status.failed}"), "", "a suspension is no failure");

    // It goes with its pods when its time is over.
    town.job("brief", "true", "  ttlSecondsAfterFinished: 0\n");
    let list = ["get", "jobs,pods", "-l", "batch.kubernetes.io/job-name=brief", "-o", "name"];
    eventually("the job is gone", PATIENCE, || {
        let gone = !town.node.kubectl(&["get", "job", "brief"]).output().unwrap().status.success();
        let left = town.kubectl(&list);
        if gone && left.is_empty() { Ok(()) } else { Err(town.state()) }
    });

    // kubectl says what becomes of the pods; without a word they stay.
    town.kubectl(&["delete", "job", "once", "--timeout=60s"]);
    town.until_no_pods("once");
    town.kubectl(&["delete", "job", "many", "--cascade=orphan", "--timeout=60s"]);
    assert_eq!(town.pods_of("many").lines().count(), 5);
    town.kubectl(&["delete", "--raw", "/apis/batch/v1/namespaces/default/jobs/bad"]);
    eventually("the job is gone", PATIENCE, || {
        let gone = !town.node.kubectl(&["get", "job", "bad"]).output().unwrap().status.success();
        if gone { Ok(()) } else { Err(town.state()) }
    });
    assert_eq!(town.pods_of("bad").lines().count(), 3);
}

/// Goal: an index whose pod is lost with its node runs again elsewhere, the others are left alone, and
/// each pod counts once, though the leader is lost with the node. Method: six indexes at once on three
/// nodes; the leader's is killed while all run, and comes back when all indexes are done.
#[test]
fn an_indexed_job_on_three_nodes_loses_the_leaders_and_does_every_index_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut nodes = start_three(folder.path());
    let at = leader(&nodes);
    let mut lost = nodes.swap_remove(at);
    let town = Town::of(nodes.remove(0), folder);
    let more =
        "  completionMode: Indexed\n  completions: 6\n  parallelism: 6\n  backoffLimit: 12\n";
    town.job("spread", "sleep 15; echo index $JOB_COMPLETION_INDEX", more);
    // Index, node and phase of each pod.
    let pods = || -> Vec<[String; 3]> {
        let path = "jsonpath={range .items[*]}{.metadata.labels.batch\\.kubernetes\\.io/job-completion-index}\
            {' '}{.spec.nodeName}{' '}{.status.phase}{'\\n'}{end}";
        let label = "batch.kubernetes.io/job-name=spread";
        let asked = ["get", "pods", "-l", label, "--request-timeout=5s", "-o", path];
        let output = town.node.kubectl(&asked).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = text.lines().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
        words.filter_map(|words| words.try_into().ok()).collect()
    };
    let running = eventually("all indexes run", PATIENCE, || {
        let pods = pods();
        let is_up = pods.len() == 6 && pods.iter().all(|[_, _, phase]| phase == "Running");
        if is_up { Ok(pods) } else { Err(pods) }
    });
    lost.process.kill();
    let gone = running.iter().filter(|[_, node, _]| *node == lost.name).count();
    assert_eq!(gone, 2, "{running:?}");

    let read = |path: &str| {
        let path = format!("jsonpath={path}");
        let asked = ["get", "job/spread", "--request-timeout=5s", "-o", path.as_str()];
        let output = town.node.kubectl(&asked).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    eventually("every index is done", PATIENCE * 2, || {
        let found = read("{.status.completedIndexes} {.status.succeeded} {.status.failed}");
        if found == "0-5 6 2" { Ok(()) } else { Err((found, pods())) }
    });
    // What the lost node does is not known: the Job is not over before that is.
    assert_eq!(read("{.status.terminating}"), "2");
    assert_eq!(read("{.status.conditions[?(@.type=='SuccessCriteriaMet')].status}"), "True");
    assert_eq!(read("{.status.conditions[?(@.type=='Complete')].status}"), "");
    lost.restart();
    ready_and_untainted(&town.node, &lost.name, "True");
    town.kubectl(&["wait", "--for=condition=complete", "job/spread", "--timeout=60s"]);
    assert_eq!(read("{.status.completedIndexes} {.status.succeeded} {.status.failed}"), "0-5 6 2");
    let mut done: Vec<_> = pods()
        .into_iter()
        .filter(|[_, _, phase]| phase == "Succeeded")
        .map(|[index, node, _]| (index, node))
        .collect();
    done.sort();
    let indexes: Vec<_> = done.iter().map(|(index, _)| index.as_str()).collect();
    assert_eq!(indexes, ["0", "1", "2", "3", "4", "5"], "{done:?}");
    for (index, node) in &done {
        let [_, before, _] = running.iter().find(|[other, ..]| other == index).unwrap();
        let is_same = before == node;
        assert_eq!(is_same, *before != lost.name, "index {index} went from {before} to {node}");
    }
    let finalizers = town.get("pods", "{.items[*].metadata.finalizers}");
    assert_eq!(finalizers, "", "no finalizer is left");
}

#[test]
fn a_cron_job_makes_jobs_by_the_clock() {
    let town = Town::new();
    let image = &town.image;
    town.create(&format!(
        "apiVersion: batch/v1\nkind: CronJob\nmetadata: {{name: tick}}\nspec:\n  schedule: '* * * * *'\n  concurrencyPolicy: Forbid\n  jobTemplate:\n    spec:\n      template:\n        spec:\n          restartPolicy: OnFailure\n          containers: [{{name: c, image: {image:?}, command: [sh, -c, echo tock]}}]\n"
    ));
    let row = town.kubectl(&["get", "cj", "tick"]);
    assert!(row.contains("* * * * *") && row.contains("False") && row.contains("<none>"), "{row}");
    eventually("a job is made, and seen to be complete", PATIENCE * 2, || {
        let last = town.get("cj/tick", "{.status.lastSuccessfulTime}");
        if last.is_empty() { Err(town.state()) } else { Ok(()) }
    });
    let annotation =
        "{.items[0].metadata.annotations.batch\\.kubernetes\\.io/cronjob-scheduled-timestamp}";
    let scheduled = town.get("jobs", annotation);
    assert!(scheduled.ends_with(":00Z"), "{scheduled}");
    let name = town.get("jobs", "{.items[0].metadata.name}");
    let minutes: u64 = name.trim_start_matches("tick-").parse().unwrap();
    assert!(minutes > 29_000_000, "{name}");
    assert_eq!(town.kubectl(&["logs", &format!("job/{name}")]).trim(), "tock");
    town.kubectl(&["create", "job", "by-hand", "--from=cronjob/tick"]);
    town.kubectl(&["wait", "--for=condition=complete", "job/by-hand", "--timeout=60s"]);
    town.kubectl(&["patch", "cj", "tick", "-p", "{\"spec\":{\"suspend\":true}}"]);
    assert!(town.kubectl(&["get", "cj"]).contains("True"));
    let zone = "{\"spec\":{\"timeZone\":\"Middle/Earth\"}}";
    let refused = town.node.kubectl(&["patch", "cj", "tick", "-p", zone]).output().unwrap();
    assert!(both(&refused).contains("unknown time zone Middle/Earth"), "{}", both(&refused));
    town.kubectl(&["delete", "cj", "tick", "--timeout=60s"]);
    town.until("jobs,pods", "{.items[*].metadata.name}", "");
}
