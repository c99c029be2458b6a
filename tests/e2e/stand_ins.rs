//! Manifests written for containers, as Kubernetes' documentation has them, with no more changed than what
//! image stands for which.

use std::time::Duration;

use crate::kubectl::push;
use crate::support::{Block, Node, PATIENCE, eventually, guest, hello, succeed};

/// A counter, a probe of a file, an init container, one that waits for a Service, and a Job whose script is
/// more than one line.
const MANIFESTS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  containers:
  - name: count
    image: busybox:1.28
    args: [/bin/sh, -c, 'i=0; while true; do echo "$i: $(date)"; i=$((i+1)); sleep 0.1; done']
---
apiVersion: v1
kind: Pod
metadata: {name: liveness-exec}
spec:
  containers:
  - name: liveness
    image: busybox
    args: [/bin/sh, -c, "touch /tmp/healthy; sleep 4; rm -f /tmp/healthy; sleep 600"]
    livenessProbe:
      exec: {command: [cat, /tmp/healthy]}
      initialDelaySeconds: 2
      periodSeconds: 1
      timeoutSeconds: 10
      failureThreshold: 1
---
apiVersion: v1
kind: Pod
metadata: {name: init-demo}
spec:
  initContainers:
  - name: install
    image: busybox
    command: [sh, -c, "until [ -f /work-dir/index.html ]; do echo '<h1>from init</h1>' > /work-dir/index.html; done"]
    volumeMounts: [{name: workdir, mountPath: /work-dir}]
  containers:
  - name: reader
    image: busybox
    command: [sh, -c, "cat /work/index.html | sed 's/<[^>]*>//g'; sleep 600"]
    volumeMounts: [{name: workdir, mountPath: /work}]
  volumes: [{name: workdir, emptyDir: {}}]
---
apiVersion: v1
kind: Pod
metadata: {name: waits}
spec:
  restartPolicy: Never
  initContainers:
  - name: wait-for-db
    image: busybox
    command: [sh, -c, "until nc -z db 8080; do echo waiting for db; sleep 0.2; done"]
  containers:
  - name: client
    image: busybox
    command: [sh, -c]
    args:
    - |
      printf 'GET /healthz HTTP/1.0\r\n\r\n' | nc -w 20 db 8080 | head -n 1 | tr -d '\r'
      dd if=/dev/zero of=/tmp/zeros bs=1k count=32 status=none
      du -k /tmp/zeros
      expr $(stat -c %s /tmp/zeros) / 1024
      nc -z -w 20 db 81 || echo "nobody listens there"
---
apiVersion: batch/v1
kind: Job
metadata: {name: indexed}
spec:
  completions: 3
  completionMode: Indexed
  template:
    spec:
      restartPolicy: Never
      containers:
      - name: worker
        image: docker.io/library/busybox
        command: [sh, -c]
        args:
        - |
          set -eu
          items="foo bar baz"
          n=0
          for item in $items; do
            if [ "$n" -eq "$JOB_COMPLETION_INDEX" ]; then
              printf '%s is %03d\n' "$item" "$n" | tee /tmp/line
            fi
            n=$((n + 1))
          done
          cat <<EOF | tr a-z A-Z
          line: $(cut -d ' ' -f 1 < /tmp/line)
          EOF
          case "$JOB_COMPLETION_INDEX" in
            0|1) exit 0 ;;
            *) echo last >&2 ;;
          esac
"#;

#[test]
fn manifests_of_kubernetes_documentation_run_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let image = push(&node, guest("busybox").to_str().unwrap());
    std::fs::write(node.data_dir.join("registries.yaml"), format!("images:\n  busybox: {image}\n"))
        .unwrap();
    let file = folder.path().join("all.yaml");
    std::fs::write(&file, MANIFESTS).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));

    succeed(&mut node.kubectl(&[
        "wait",
        "--for=condition=Complete",
        "job/indexed",
        "--timeout=60s",
    ]));
    for (index, said) in [(0, "foo is 000\nLINE: FOO\n"), (2, "baz is 002\nLINE: BAZ\nlast\n")] {
        let selector = format!("batch.kubernetes.io/job-completion-index={index}");
        assert_eq!(succeed(&mut node.kubectl(&["logs", "-l", &selector])), said);
    }
    eventually("the counter counts", PATIENCE, || {
        let log = succeed(&mut node.kubectl(&["logs", "counter"]));
        let is_so = log.lines().enumerate().all(|(at, line)| line.starts_with(&format!("{at}: 2")));
        if is_so && log.lines().count() > 3 { Ok(()) } else { Err(log) }
    });
    eventually("the reader read", PATIENCE, || {
        let log = succeed(&mut node.kubectl(&["logs", "init-demo"]));
        if log == "from init\n" { Ok(()) } else { Err(log) }
    });

    let waiting = || succeed(&mut node.kubectl(&["logs", "waits", "-c", "wait-for-db"]));
    eventually("it waits for the Service", PATIENCE, || {
        if waiting().contains("waiting for db") { Ok(()) } else { Err(waiting()) }
    });
    let hello = push(&node, hello().to_str().unwrap());
    let run = ["run", "db", "--expose", "--port=8080", "--image"];
    succeed(&mut node.kubectl(&[&run[..], &[&hello]].concat()));
    let done = "--for=jsonpath={.status.phase}=Succeeded";
    succeed(&mut node.kubectl(&["wait", done, "pod/waits", "--timeout=60s"]));
    let said = succeed(&mut node.kubectl(&["logs", "waits", "-c", "client"]));
    let lines: Vec<&str> = said.lines().collect();
    let [answer, size, count, .., nobody] = lines[..] else { panic!("{said}") };
    assert!(answer.starts_with("HTTP/1.") && answer.ends_with("200 OK"), "{said}");
    assert_eq!((size, count, nobody), ("32\t/tmp/zeros", "32", "nobody listens there"));

    // Healthy for as long as the file is there: the last run ended after its four seconds.
    let path = "jsonpath={.status.containerStatuses[0].restartCount} \
        {.status.containerStatuses[0].lastState.terminated.startedAt} \
        {.status.containerStatuses[0].lastState.terminated.finishedAt}";
    let mut times = String::new();
    eventually("the probe failed", PATIENCE, || {
        times = succeed(&mut node.kubectl(&["get", "pod", "liveness-exec", "-o", path]));
        if times.starts_with('0') { Err(times.clone()) } else { Ok(()) }
    });
    let words: Vec<&str> = times.split_whitespace().collect();
    let at = |at: usize| words[at].parse::<jiff::Timestamp>().unwrap();
    let life = Duration::try_from(at(2) - at(1)).unwrap();
    assert!(life >= Duration::from_secs(3), "it was killed after {life:?}");
}
