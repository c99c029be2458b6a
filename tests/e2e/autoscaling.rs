//! HorizontalPodAutoscaler: by requests per second, down to none and back, with real requests.

use std::io::{BufRead as _, BufReader, Write as _};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::kubectl::push;
use crate::support::{Block, Node, PATIENCE, both, eventually, get, guest, hello, succeed};

/// An Ingress to a Service, and an autoscaler led by the Service's requests.
const MANIFEST: &str = "
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {name: web}
spec:
  rules:
  - host: web.local
    http:
      paths:
      - path: /
        pathType: Prefix
        backend: {service: {name: web, port: {number: 80}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 0
  maxReplicas: 3
  metrics:
  - type: Object
    object:
      describedObject: {apiVersion: v1, kind: Service, name: web}
      metric: {name: requests-per-second}
      target: {type: AverageValue, averageValue: '20'}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 0}
";

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 2
      containers: [{name: web, image: 'IMAGE'}]
---";

#[test]
fn a_workload_goes_to_zero_and_comes_back_with_the_first_request_and_none_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let seed = ["deploy", hello().to_str().unwrap(), "--name", "seed", "--replicas", "0"]
        .map(str::to_owned);
    succeed(&mut node.edgeorc(&seed.each_ref().map(String::as_str)));
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = succeed(&mut node.kubectl(&["get", "deploy", "seed", "-o", path]));
    let file = folder.path().join("web.yaml");
    std::fs::write(&file, DEPLOYMENT.replace("IMAGE", &image) + MANIFEST).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));

    let replicas =
        || succeed(&mut node.kubectl(&["get", "deploy", "web", "-o", "jsonpath={.spec.replicas}"]));
    let state = || both(&node.kubectl(&["describe", "hpa", "web"]).output().unwrap());
    let until = |wanted: &str| {
        eventually(&format!("{wanted} replicas"), PATIENCE * 2, || {
            let found = replicas();
            if found == wanted { Ok(()) } else { Err(format!("{found}\n{}", state())) }
        });
    };
    until("0");
    eventually("no pod is left", PATIENCE, || {
        let left = succeed(&mut node.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]));
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    let row = succeed(&mut node.kubectl(&["get", "hpa", "web"]));
    assert!(row.contains("Deployment/web") && row.contains("/20 (avg)"), "{row}");

    // The first request waits for the pod that it brings.
    let first = get(node.ingress(), "web.local", "/", PATIENCE).unwrap();
    assert_eq!(first.code, 200, "{first:?}\n{}", state());
    assert_eq!(replicas(), "1");

    // Load for more than one, then none; all the time somebody asks, and all are answered.
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let bad = Arc::new(Mutex::new(Vec::new()));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, asked, bad, at) = (stop.clone(), asked.clone(), bad.clone(), node.ingress());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match get(at, "web.local", "/", PATIENCE) {
                        Ok(answer) if answer.code == 200 => {}
                        other => bad.lock().unwrap().push(format!("{other:?}")),
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(20));
                }
            })
        })
        .collect();
    until("3");
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    assert_eq!(*bad.lock().unwrap(), Vec::<String>::new(), "of {}", asked.load(Ordering::Relaxed));
    until("0");
    let second = get(node.ingress(), "web.local", "/", PATIENCE).unwrap();
    assert_eq!(second.code, 200);
    assert!(state().contains("SuccessfulRescale"), "{}", state());

    // The old version of the kind says the same.
    let v1 = succeed(&mut node.kubectl(&[
        "get",
        "--raw",
        "/apis/autoscaling/v1/namespaces/default/horizontalpodautoscalers/web",
    ]));
    assert!(
        v1.contains("\"apiVersion\":\"autoscaling/v1\"")
            && v1.contains("autoscaling.alpha.kubernetes.io/metrics"),
        "{v1}"
    );
    let auto = ["autoscale", "deployment", "seed", "--max=3", "--cpu-percent=50"];
    succeed(&mut node.kubectl(&auto));
    let percent = "jsonpath={.spec.metrics[0].resource.target.averageUtilization}";
    assert_eq!(succeed(&mut node.kubectl(&["get", "hpa", "seed", "-o", percent])), "50");
    succeed(&mut node.kubectl(&["delete", "hpa", "web", "--timeout=60s"]));
    eventually("the mark goes with the autoscaler", PATIENCE, || {
        let marks = succeed(&mut node.kubectl(&[
            "get",
            "svc",
            "web",
            "-o",
            "jsonpath={.metadata.annotations}",
        ]));
        if marks.contains("scales-from-zero") { Err(marks) } else { Ok(()) }
    });
}

/// Goal: CPU that guests use, measured by their nodes, makes replicas and takes them away again.
/// Method: requests that each compute for a while, from two clients that never rest, then none.
#[test]
fn a_guest_that_computes_gets_company_until_it_rests() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let run = |args: &[&str]| succeed(&mut node.kubectl(args));
    succeed(&mut node.edgeorc(&["deploy", hello().to_str().unwrap(), "--replicas", "1", "--wait"]));
    run(&["autoscale", "deployment", "hello", "--min=1", "--max=3", "--cpu-percent=50"]);
    let now = r#"{"spec":{"behavior":{"scaleDown":{"stabilizationWindowSeconds":0}}}}"#;
    run(&["patch", "hpa", "hello", "--type=merge", "-p", now]);
    let state = || both(&node.kubectl(&["describe", "hpa", "hello"]).output().unwrap());
    let condition = |name: &str, wanted: &str| {
        let of = |field| format!("{{.status.conditions[?(@.type=='{name}')].{field}}}");
        let path = format!("jsonpath={} {}", of("status"), of("reason"));
        eventually(&format!("{name} is {wanted}"), PATIENCE, || {
            let found = run(&["get", "hpa", "hello", "-o", &path]);
            if found == wanted { Ok(()) } else { Err(format!("{found}\n{}", state())) }
        });
    };
    let until = |wanted: &str| {
        eventually(&format!("{wanted} replicas"), PATIENCE * 3, || {
            let found = run(&["get", "deploy", "hello", "-o", "jsonpath={.spec.replicas}"]);
            if found == wanted { Ok(()) } else { Err(format!("{found}\n{}", state())) }
        });
    };
    // A share of requests that are not made is no number.
    condition("ScalingActive", "False FailedGetResourceMetric");
    eventually("it says what is missing", PATIENCE, || {
        let said = state();
        if said.contains("missing request") { Ok(()) } else { Err(said) }
    });
    run(&["set", "resources", "deploy/hello", "--requests=cpu=20m"]);
    run(&["rollout", "status", "deploy/hello", "--timeout=60s"]);

    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..2)
        .map(|_| {
            let (stop, at) = (stop.clone(), node.ingress());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = get(at, "hello.default.localhost", "/burn?ms=100", PATIENCE);
                }
            })
        })
        .collect();
    until("3");
    condition("ScalingActive", "True ValidMetricFound");
    condition("ScalingLimited", "True TooManyReplicas");
    let events = run(&["get", "events", "--field-selector=reason=SuccessfulRescale"]);
    let reason =
        "New size: 3; reason: cpu resource utilization (percentage of request) above target";
    assert!(events.contains(reason), "{events}");
    let row = run(&["get", "hpa", "hello"]);
    let (used, _) = row.split_once("%/50%").unwrap_or_else(|| panic!("{row}"));
    let used: u32 = used.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(used > 55, "{row}");
    stop.store(true, Ordering::Relaxed);
    clients.into_iter().for_each(|client| client.join().unwrap());
    until("1");
    assert!(state().contains("All metrics below target"), "{}", state());
}

/// An adapter outside the cluster, a Deployment that follows it, and files that a pod serves as an API.
const ADAPTER: &str = "
apiVersion: v1
kind: Service
metadata: {name: adapter}
spec: {type: ExternalName, externalName: localhost, ports: [{port: PORT, appProtocol: http}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  group: external.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: default, name: adapter, port: PORT}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 1
  maxReplicas: 5
  metrics:
  - type: External
    external:
      metric: {name: queue-depth, selector: {matchLabels: {queue: orders}}}
      target: {type: AverageValue, averageValue: '10'}
  behavior:
    scaleDown: {stabilizationWindowSeconds: 0}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: files}
data: {it: '{\"kind\": \"File\", \"said\": \"by a pod\"}'}
---
apiVersion: v1
kind: Pod
metadata: {name: files, labels: {app: files}}
spec:
  containers:
  - name: httpd
    image: 'HTTPD'
    ports: [{containerPort: 80}]
    volumeMounts: [{name: files, mountPath: /usr/local/apache2/htdocs/apis/files.example.com/v1}]
  volumes: [{name: files, configMap: {name: files}}]
---
apiVersion: v1
kind: Service
metadata: {name: files}
spec: {selector: {app: files}, ports: [{port: 80, appProtocol: http}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1.files.example.com}
spec:
  group: files.example.com
  version: v1
  groupPriorityMinimum: 100
  versionPriority: 100
  insecureSkipTLSVerify: true
  service: {namespace: default, name: files, port: 80}
---
";

/// Answers as a metrics adapter does, until the process ends: `depth` is the length of the queue.
fn adapter(depth: Arc<AtomicUsize>) -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = move |mut stream: std::net::TcpStream| -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        for line in lines.by_ref() {
            if line?.is_empty() {
                break;
            }
        }
        let path = first.split(' ').nth(1).unwrap_or_default();
        let group = "/apis/external.metrics.k8s.io/v1beta1";
        let metric = "/namespaces/default/queue-depth?labelSelector=queue%3Dorders";
        let value = depth.load(Ordering::Relaxed);
        let (code, body) = match path.strip_prefix(group) {
            Some("") => (
                200,
                r#"{"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "external.metrics.k8s.io/v1beta1", "resources": []}"#.to_owned(),
            ),
            Some(rest) if rest == metric => (
                200,
                format!(r#"{{"kind": "ExternalMetricValueList", "apiVersion": "external.metrics.k8s.io/v1beta1", "metadata": {{}}, "items": [{{"metricName": "queue-depth", "timestamp": "2026-01-01T00:00:00Z", "value": "{value}"}}]}}"#),
            ),
            _ => (404, path.to_owned()),
        };
        write!(
            stream,
            "HTTP/1.1 {code} OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = answer(stream);
        }
    });
    port
}

/// Goal: a Deployment follows a metric of an adapter, which is part of the API; so is what a pod serves.
#[test]
fn replicas_follow_an_external_metric_of_an_adapter() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let depth = Arc::new(AtomicUsize::new(35));
    let port = adapter(depth.clone()).to_string();
    let (web, httpd) =
        (push(&node, hello().to_str().unwrap()), push(&node, guest("httpd").to_str().unwrap()));
    let file = folder.path().join("web.yaml");
    let adapter = ADAPTER.replace("PORT", &port).replace("HTTPD", &httpd);
    std::fs::write(&file, adapter + &DEPLOYMENT.replace("IMAGE", &web)).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));

    let replicas = |wanted: &str| {
        eventually(&format!("{wanted} replicas"), PATIENCE * 2, || {
            let path = "jsonpath={.spec.replicas}";
            let found = succeed(&mut node.kubectl(&["get", "deploy", "web", "-o", path]));
            let state = || both(&node.kubectl(&["describe", "hpa", "web"]).output().unwrap());
            if found == wanted { Ok(()) } else { Err(format!("{found}\n{}", state())) }
        });
    };
    replicas("4");
    let name = "v1beta1.external.metrics.k8s.io";
    succeed(&mut node.kubectl(&[
        "wait",
        "apiservice",
        name,
        "--for=condition=Available",
        "--timeout=30s",
    ]));
    let row = succeed(&mut node.kubectl(&["get", "apiservice", name]));
    assert!(row.contains("default/adapter") && row.contains("True"), "{row}");
    depth.store(5, Ordering::Relaxed);
    replicas("1");

    let path = "/apis/files.example.com/v1/it";
    eventually("the pod's file", PATIENCE, || {
        let said = both(&node.kubectl(&["get", "--raw", path]).output().unwrap());
        if said.contains("by a pod") { Ok(()) } else { Err(said) }
    });
    let groups = succeed(&mut node.kubectl(&["api-versions"]));
    assert!(groups.contains("external.metrics.k8s.io/v1beta1"), "{groups}");
    succeed(&mut node.kubectl(&["delete", "pod", "files", "--grace-period=1"]));
    eventually("nobody answers", PATIENCE, || {
        let said = both(&node.kubectl(&["get", "--raw", path]).output().unwrap());
        if said.contains("unable to handle the request") { Ok(()) } else { Err(said) }
    });
}
