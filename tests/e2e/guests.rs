//! The stand-ins of `wasm-apps`, in manifests as they are written for containers, and the samples
//! in other languages.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::{Answer, Block, Node, PATIENCE, eventually, get, guest, succeed};

/// Image of Kubernetes' end-to-end tests.
const AGNHOST: &str = "registry.k8s.io/e2e-test-images/agnhost:2.40";
/// How long it may take until a guest of 20 MB is compiled, by a compiler built for tests.
const COMPILING: Duration = Duration::from_secs(240);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);

/// A built sample, for example `python`.
fn sample(language: &str) -> PathBuf {
    let name = format!("wasm-apps/dist/hello-{language}.wasm");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    assert!(path.exists(), "{} is missing: run wasm-apps/samples/build first", path.display());
    path
}

/// Pushes guests and maps the images they stand for to them.
fn stand_in(node: &Node, names: &[(&str, &str)]) {
    let mut text = "images:\n".to_owned();
    for (name, image) in names {
        let file = guest(name);
        let seed = format!("seed-{name}");
        let args = ["deploy", file.to_str().unwrap(), "--name", &seed, "--replicas", "0"];
        succeed(&mut node.edgeorc(&args));
        let path = "jsonpath={.spec.template.spec.containers[0].image}";
        let pushed = succeed(&mut node.kubectl(&["get", "deploy", &seed, "-o", path]));
        text.push_str(&format!("  {image}: {pushed}\n"));
    }
    std::fs::write(node.data_dir.join("registries.yaml"), text).unwrap();
}

fn apply(node: &Node, text: &str) {
    let file = node.data_dir.with_extension("yaml");
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
}

fn field(node: &Node, object: &str, path: &str) -> String {
    let path = format!("jsonpath={{{path}}}");
    let output = node.kubectl(&["get", object, "-o", &path]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Waits until the JSONPath of an object gives `wanted`.
fn until(node: &Node, object: &str, path: &str, wanted: &str) {
    eventually(&format!("{object} {path}"), PATIENCE, || {
        let got = field(node, object, path);
        if got == wanted { Ok(()) } else { Err(got) }
    });
}

/// The address of a Service of type NodePort.
fn node_port(node: &Node, service: &str) -> SocketAddr {
    let port = field(node, &format!("service/{service}"), ".spec.ports[0].nodePort");
    SocketAddr::new(node.address, port.parse().unwrap())
}

/// Waits until a GET answers 200, and gives the body.
fn answered(address: SocketAddr, host: &str, path: &str) -> String {
    eventually(&format!("{host}{path} answers"), PATIENCE, || {
        match get(address, host, path, REQUEST) {
            Ok(Answer { code: 200, body }) => Ok(body),
            other => Err(other),
        }
    })
}

/// A GET with headers of one's own; the whole answer as text.
fn raw(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(REQUEST)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{headers}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn agnhost_netexec_answers_through_a_service_and_dials_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    stand_in(&node, &[("agnhost", "registry.k8s.io/e2e-test-images/agnhost")]);
    apply(
        &node,
        &format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: netexec}}
spec:
  replicas: 2
  selector: {{matchLabels: {{app: netexec}}}}
  template:
    metadata: {{labels: {{app: netexec}}}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: agnhost
        image: {AGNHOST}
        args: [netexec, --http-port=8083, --udp-port=-1]
        ports: [{{containerPort: 8083}}]
        readinessProbe: {{httpGet: {{path: /healthz, port: 8083}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: netexec}}
spec:
  type: NodePort
  selector: {{app: netexec}}
  ports: [{{port: 80, targetPort: 8083}}]
"
        ),
    );
    until(&node, "deploy/netexec", ".status.readyReplicas", "2");
    let service = node_port(&node, "netexec");
    let ask = |path: &str| get(service, "netexec", path, REQUEST).unwrap();
    let pods = field(&node, "pods", ".items[*].metadata.name");
    let mut seen = std::collections::BTreeSet::new();
    eventually("both pods answer", PATIENCE, || {
        seen.insert(answered(service, "netexec", "/hostname"));
        if seen.len() == 2 { Ok(()) } else { Err(seen.clone()) }
    });
    assert!(seen.iter().all(|pod| pods.split(' ').any(|known| known == pod)), "{seen:?}: {pods}");

    let echo = ask("/echo?msg=a%20b%2Bc&code=404");
    assert_eq!((echo.code, echo.body.as_str()), (404, "a b+c"));
    let shell = ask("/shell?cmd=ls");
    assert_eq!(shell.code, 417, "{shell:?}");
    assert!(shell.body.contains("there is no shell"), "{shell:?}");
    let name = answered(service, "netexec", "/dial?host=netexec&port=80&request=hostname&tries=3");
    assert!(name.starts_with("{\"responses\":[\"netexec-"), "{name}");
    // As the pod sees it: the node itself at its port, and a pod that asks by the Service's name.
    let client = answered(service, "netexec", "/clientip");
    assert!(client.starts_with("192.0.0.8:"), "{client}");
    let ips = field(&node, "pods", ".items[*].status.podIP");
    let caller = answered(service, "netexec", "/dial?host=netexec&port=80&request=clientip");
    assert!(
        ips.split(' ').any(|ip| caller.starts_with(&format!("{{\"responses\":[\"{ip}:"))),
        "{caller}"
    );
    for ip in ips.split(' ') {
        let path = format!("/dial?host={ip}&port=8083&request=echo%3Fmsg%3Dhello");
        assert_eq!(answered(service, "netexec", &path), "{\"responses\":[\"hello\"]}");
    }
    let nobody = ask("/dial?host=nobody&port=80&request=hostname");
    assert_eq!(nobody.code, 417, "{nobody:?}");
    assert!(nobody.body.contains("cannot connect to nobody:80: DNS"), "{nobody:?}");
}

#[test]
fn agnhost_liveness_is_restarted_by_its_probe_and_its_tools_say_what_they_found() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    stand_in(
        &node,
        &[
            ("agnhost", "registry.k8s.io/e2e-test-images/agnhost"),
            ("pause", "registry.k8s.io/pause"),
        ],
    );
    let pod = |name: &str, words: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: app, image: '{AGNHOST}', args: [{words}], volumeMounts: [{{name: files, mountPath: /files}}]}}\n  volumes: [{{name: files, configMap: {{name: files}}}}]\n"
        )
    };
    let text = [
        format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: live}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: liveness
    image: {AGNHOST}
    args: [liveness]
    livenessProbe:
      httpGet: {{path: /healthz, port: 8080}}
      periodSeconds: 1
---
apiVersion: v1
kind: Pod
metadata: {{name: pause}}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{{name: pause, image: 'registry.k8s.io/pause:3.10'}}]
---
apiVersion: v1
kind: ConfigMap
metadata: {{name: files}}
data: {{greeting: hello from a file}}
"
        ),
        pod("entry", "entrypoint-tester, override, arguments"),
        pod("mount", "mounttest, --file_content=/files/greeting, --file_perm=/files/greeting"),
        pod("lines", "logs-generator, -t, '5', -d, 500ms"),
        pod("refused", "connect, '127.0.0.1:81'"),
        pod("webhook", "webhook"),
        pod("nonsense", "nonsense"),
    ];
    apply(&node, &text.concat());
    for (name, phase, words) in [
        ("entry", "Succeeded", "[app entrypoint-tester override arguments]"),
        ("mount", "Succeeded", "content of file \"/files/greeting\": hello from a file"),
        ("mount", "Succeeded", "perms of file \"/files/greeting\": -r--------"),
        ("lines", "Succeeded", " 4 "),
        ("refused", "Failed", "REFUSED"),
        ("webhook", "Failed", "webhook is left out: it needs a TLS server"),
        ("nonsense", "Failed", "Usage: agnhost SUBCOMMAND"),
    ] {
        until(&node, &format!("pod/{name}"), ".status.phase", phase);
        let log = succeed(&mut node.edgeorc(&["logs", name]));
        assert!(log.contains(words), "{words:?} expected in:\n{log}");
    }
    until(&node, "pod/pause", ".status.phase", "Running");
    eventually("the probe restarts it", PATIENCE, || {
        let count = field(&node, "pod/live", ".status.containerStatuses[0].restartCount");
        if count.parse::<u32>().is_ok_and(|count| count > 0) { Ok(()) } else { Err(count) }
    });
    let shown = succeed(&mut node.kubectl(&["describe", "pod", "live"]));
    assert!(shown.contains("Container liveness failed liveness probe"), "{shown}");
    until(&node, "pod/pause", ".status.containerStatuses[0].restartCount", "0");
}

#[test]
fn httpd_serves_the_files_of_a_config_map_and_greets_without_any() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    stand_in(&node, &[("httpd", "httpd")]);
    let pod = |name: &str, more: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  containers:\n  - name: httpd\n    image: httpd:2.4-alpine\n    ports: [{{containerPort: 80}}]\n{more}---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{type: NodePort, selector: {{app: {name}}}, ports: [{{port: 80}}]}}\n"
        )
    };
    let volume = "    volumeMounts: [{name: site, mountPath: /usr/local/apache2/htdocs}]\n  volumes: [{name: site, configMap: {name: site}}]\n";
    let site = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: site}\ndata:\n  index.html: <h1>from a ConfigMap</h1>\n  app.js: let x = 1;\n";
    apply(&node, &[site.to_owned(), pod("web", volume), pod("empty", "")].concat());
    until(&node, "pod/web", ".status.containerStatuses[0].ready", "true");
    until(&node, "pod/empty", ".status.containerStatuses[0].ready", "true");

    let web = node_port(&node, "web");
    assert_eq!(answered(web, "web", "/"), "<h1>from a ConfigMap</h1>");
    let whole = raw(web, "/app.js", "").to_lowercase();
    assert!(whole.contains("content-type: text/javascript"), "{whole}");
    assert!(whole.ends_with("let x = 1;"), "{whole}");
    let etag = whole.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let again = raw(web, "/app.js", &format!("If-None-Match: {etag}\r\n"));
    assert!(again.starts_with("HTTP/1.1 304 "), "{again}");
    let part = raw(web, "/app.js", "Range: bytes=4-4\r\n");
    assert!(part.starts_with("HTTP/1.1 206 ") && part.ends_with("\r\n\r\nx"), "{part}");
    for path in ["/../../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2fetc/passwd"] {
        let refused = get(web, "web", path, REQUEST).unwrap();
        assert!([400, 404].contains(&refused.code), "{path}: {refused:?}");
    }
    let empty = answered(node_port(&node, "empty"), "empty", "/");
    assert!(empty.contains("It works!"), "{empty}");
}

#[test]
#[ignore = "needs node, npm, python3 and clang, and a minute for each large guest: just samples"]
fn samples_in_other_languages_serve_and_log() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    for (language, name) in [("javascript", "JavaScript"), ("python", "Python")] {
        let file = sample(language);
        succeed(&mut node.edgeorc(&["deploy", file.to_str().unwrap(), "--name", language]));
        let host = format!("{language}.default.localhost");
        let available = "--for=condition=Available";
        let (deploy, limit) = (format!("deploy/{language}"), format!("{}s", COMPILING.as_secs()));
        succeed(&mut node.kubectl(&["wait", available, &deploy, "--timeout", &limit]));
        // More than one request, so that an instance has to bear being used again.
        for request in 1..=3 {
            let body = answered(node.ingress(), &host, "/");
            let wanted = format!("Hello from {name} in pod {language}-");
            assert!(body.starts_with(&wanted), "request {request}: {body}");
            assert!(body.contains("on node one, request "), "{body}");
        }
        let headers = answered(node.ingress(), &host, "/headers");
        assert!(headers.contains("\"x-forwarded-host\""), "{headers}");
        let nothing = get(node.ingress(), &host, "/nothing", REQUEST).unwrap();
        assert_eq!(nothing.code, 404, "{nothing:?}");
        let log = succeed(&mut node.edgeorc(&["logs", &format!("deploy/{language}")]));
        assert!(log.contains("request 1"), "{log}");
    }
    let file = sample("c");
    succeed(&mut node.edgeorc(&["deploy", file.to_str().unwrap(), "--name", "c"]));
    eventually("C logs a line a second", PATIENCE, || {
        let output = node.edgeorc(&["logs", "deploy/c"]).output().unwrap();
        let log = String::from_utf8_lossy(&output.stdout).into_owned();
        let words = ["argument 0: ", "environment: POD_NAME=c-", "Hello from C, line 2"];
        if words.iter().all(|word| log.contains(word)) { Ok(()) } else { Err(log) }
    });
}

#[test]
fn hello_is_served_by_a_node_that_interprets() {
    let folder = tempfile::tempdir().unwrap();
    let address = Block::take().address(1);
    let flags = ["--pulley", "--address-bits-max", "32"];
    let node = Node::start_with(folder.path(), "one", address, None, &flags);
    node.wait_ready();
    let file = crate::support::hello();
    succeed(&mut node.edgeorc(&["deploy", file.to_str().unwrap(), "--name", "hello"]));
    let answer = answered(node.ingress(), "hello.default.localhost", "/");
    assert!(answer.starts_with("Hello from pod hello-"), "{answer}");
    assert!(node.process.stderr().contains("interpreted by Pulley"));
}
