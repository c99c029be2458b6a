//! A pull from a real registry, Debian's `docker-registry`, whose line dies in the middle.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::cluster::start_three;
use crate::support::{Block, Node, PATIENCE, Process, eventually, get, guest, hello, succeed};

/// Port of the registry, and of the line in front of it.
const REGISTRY_PORT: u16 = 5000;
const LINE_PORT: u16 = 5001;
/// Port at which nobody listens: the registry that a mirror stands for.
const SILENT_PORT: u16 = 5002;
/// `open sesame`, as the registry keeps it.
const PASSWORD: &str = "open sesame";
const PASSWORD_HASH: &str = "$2b$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";
/// `user:open sesame` for `Authorization: Basic`.
const BASIC: &str = "dXNlcjpvcGVuIHNlc2FtZQ==";
/// Bytes added to the component, so that its transfer has a middle.
const PADDING_BYTES: usize = 8 * 1024 * 1024;
/// Bytes of an answer after which the line dies.
const CUT_BYTES: usize = 2 * 1024 * 1024;

/// Starts the registry; fails with what to do when it is not installed.
fn registry(folder: &Path, address: IpAddr) -> Process {
    let program = "docker-registry";
    let is_here = Command::new(program).arg("--version").output().is_ok();
    assert!(
        is_here,
        "docker-registry is missing: run ./test.sh, or apt-get install docker-registry"
    );
    let passwords = folder.join("htpasswd");
    std::fs::write(&passwords, format!("user:{PASSWORD_HASH}\n")).unwrap();
    let config = folder.join("registry.yml");
    std::fs::write(
        &config,
        format!(
            "version: 0.1\n\
             log: {{level: warn}}\n\
             storage: {{filesystem: {{rootdirectory: {root}}}}}\n\
             http: {{addr: \"{address}:{REGISTRY_PORT}\"}}\n\
             auth: {{htpasswd: {{realm: test, path: {passwords}}}}}\n",
            root = folder.join("registry").display(),
            passwords = passwords.display(),
        ),
    )
    .unwrap();
    let mut command = Command::new(program);
    command.arg("serve").arg(&config);
    let process = Process::spawn(&mut command, folder.join("registry.log"));
    let address = SocketAddr::new(address, REGISTRY_PORT);
    eventually("the registry listens", PATIENCE, || TcpStream::connect(address).map(drop));
    process
}

/// One exchange with the registry: status line and header fields of the answer.
fn exchange(address: IpAddr, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect((address, REGISTRY_PORT)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: registry\r\nAuthorization: Basic {BASIC}\r\n\
         Content-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let head = answer.split("\r\n\r\n").next().unwrap_or_default().to_owned();
    assert!(head.starts_with("HTTP/1.1 20"), "{method} {path}: {answer}");
    head
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// Uploads a blob; its digest.
fn push_blob(address: IpAddr, bytes: &[u8]) -> String {
    let kind = "application/octet-stream";
    let head = exchange(address, "POST", "/v2/team/hello/blobs/uploads/", kind, b"");
    let location = head
        .lines()
        .find_map(|line| line.strip_prefix("Location: "))
        .and_then(|url| url.split_once("/v2/"))
        .unwrap()
        .1;
    let digest = digest(bytes);
    exchange(address, "PUT", &format!("/v2/{location}&digest={digest}"), kind, bytes);
    digest
}

/// Pushes a component in the layout of OCI Wasm artifacts; the digest of its manifest.
fn push(address: IpAddr, wasm: &[u8]) -> String {
    let layer = push_blob(address, wasm);
    let config =
        format!("{{\"architecture\":\"wasm\",\"os\":\"wasip2\",\"layerDigests\":[\"{layer}\"]}}");
    let config_digest = push_blob(address, config.as_bytes());
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{kind}\",\
         \"config\":{{\"mediaType\":\"application/vnd.wasm.config.v0+json\",\"digest\":\"{config_digest}\",\"size\":{}}},\
         \"layers\":[{{\"mediaType\":\"application/wasm\",\"digest\":\"{layer}\",\"size\":{}}}]}}",
        config.len(),
        wasm.len()
    );
    exchange(address, "PUT", "/v2/team/hello/manifests/v1", kind, manifest.as_bytes());
    digest(manifest.as_bytes())
}

/// Pushes an image that is no component: an archive, one on top that takes a file away, and a plain
/// file. The digest of its manifest.
fn push_data(address: IpAddr, folder: &Path) -> String {
    let archive = |name: &str, files: &[(&str, &str)]| {
        let root = folder.join(name);
        for (path, content) in files {
            let path = root.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let tar = Command::new("tar").arg("-czC").arg(&root).arg(".").output().unwrap();
        assert!(tar.status.success(), "{tar:?}");
        tar.stdout
    };
    let layers = [
        archive("lower", &[("docs/greeting", "hello"), ("docs/old", "x"), ("sub/file", "sub")]),
        archive("upper", &[("docs/.wh.old", "")]),
        b"weights".to_vec(),
    ];
    let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
    let kinds = [
        (tar, ""),
        (tar, ""),
        (
            "application/octet-stream",
            ",\"annotations\":{\"org.opencontainers.image.title\":\"model.bin\"}",
        ),
    ];
    let layers: Vec<_> = layers
        .iter()
        .zip(kinds)
        .map(|(bytes, (kind, title))| {
            let digest = push_blob(address, bytes);
            let size = bytes.len();
            format!("{{\"mediaType\":\"{kind}\",\"digest\":\"{digest}\",\"size\":{size}{title}}}")
        })
        .collect();
    let config = push_blob(address, b"{}");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{kind}\",\
         \"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{config}\",\"size\":2}},\
         \"layers\":[{}]}}",
        layers.join(",")
    );
    exchange(address, "PUT", "/v2/team/hello/manifests/data", kind, manifest.as_bytes());
    digest(manifest.as_bytes())
}

/// The committed component with a custom section of bytes that do not compress.
fn large_hello() -> Vec<u8> {
    let mut wasm = std::fs::read(hello()).unwrap();
    let mut section = vec![3, b'p', b'a', b'd'];
    let mut state = 1_u32;
    section.extend((0..PADDING_BYTES).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    }));
    wasm.push(0);
    let mut size = section.len();
    while size >= 0x80 {
        wasm.push(u8::try_from(size & 0x7f).unwrap() | 0x80);
        size >>= 7;
    }
    wasm.push(u8::try_from(size).unwrap());
    wasm.extend(section);
    wasm
}

/// A line to the registry that stands still in the middle of the first long answer, until it is
/// cut; after that it works.
struct Line {
    /// The heads of the requests that went over it.
    heads: Arc<Mutex<String>>,
    /// Hears when it stands still; dropped to cut it.
    still: Receiver<std::sync::mpsc::Sender<()>>,
}

fn line(address: IpAddr) -> Line {
    let listener = TcpListener::bind((address, LINE_PORT)).unwrap();
    let heads: Arc<Mutex<String>> = Arc::default();
    let (reached, still) = channel();
    let has_died = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&heads);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut up, mut down) = match (client, TcpStream::connect((address, REGISTRY_PORT))) {
                (Ok(client), Ok(server)) => (client, server),
                // The registry is dead: so is the line.
                _ => continue,
            };
            let (mut client, mut server) = (up.try_clone().unwrap(), down.try_clone().unwrap());
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                while let Ok(count @ 1..) = up.read(&mut buffer) {
                    seen.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
                    if down.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = down.shutdown(Shutdown::Both);
            });
            let (reached, has_died) = (reached.clone(), Arc::clone(&has_died));
            std::thread::spawn(move || {
                let mut buffer = [0; 16 * 1024];
                let mut passed = 0;
                while let Ok(count @ 1..) = server.read(&mut buffer) {
                    passed += count;
                    if passed > CUT_BYTES && !has_died.swap(true, Ordering::SeqCst) {
                        let (cut, until_cut) = channel::<()>();
                        let _ = reached.send(cut);
                        let _ = until_cut.recv();
                        break;
                    }
                    if client.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(Shutdown::Both);
            });
        }
    });
    Line { heads, still }
}

/// The pull secret `regcred` for the registry at `host`.
fn pull_secret(node: &Node, folder: &Path, host: &str) {
    let secret = folder.join("regcred.yaml");
    std::fs::write(
        &secret,
        format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: regcred}}\n\
             type: kubernetes.io/dockerconfigjson\nstringData:\n  .dockerconfigjson: >-\n    \
             {{\"auths\":{{\"{host}\":{{\"username\":\"user\",\"password\":\"{PASSWORD}\"}}}}}}\n"
        ),
    )
    .unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", secret.to_str().unwrap()]));
}

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}}}
spec:
  imagePullSecrets: [{{name: regcred}}]
  containers:
  - name: web
    image: {image}
"
    )
}

#[test]
fn a_pull_through_a_registry_that_dies_in_the_middle_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let place = block.address(9);
    let mut server = registry(folder.path(), place);
    let wasm = large_hello();
    let manifest = push(place, &wasm);
    let line = line(place);
    let host = format!("{place}:{LINE_PORT}");

    let node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    pull_secret(&node, folder.path(), &host);
    let file = folder.path().join("web.yaml");
    std::fs::write(&file, pod("web", &format!("{host}/team/hello:v1"))).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));

    // The registry dies while the line stands still, and comes back.
    let cut = line.still.recv_timeout(PATIENCE).expect("no long answer came over the line");
    server.kill();
    drop(cut);
    let _server = registry(folder.path(), place);

    succeed(&mut node.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]));
    let heads = line.heads.lock().unwrap().to_lowercase();
    assert!(heads.contains("range: bytes="), "the transfer began anew:\n{heads}");
    let id = succeed(&mut node.kubectl(&[
        "get",
        "pod",
        "web",
        "-o",
        "jsonpath={.status.containerStatuses[0].imageID}",
    ]));
    assert_eq!(id, format!("{host}/team/hello@{manifest}"));
    let ip = succeed(&mut node.kubectl(&["get", "pod", "web", "-o", "jsonpath={.status.podIP}"]));
    assert!(!ip.is_empty());
    let described = succeed(&mut node.kubectl(&["describe", "pod", "web"]));
    for words in ["Pulling image", "Successfully pulled image"] {
        assert!(described.contains(words), "{words}:\n{described}");
    }
}

/// Value of a counter on one node.
fn counter(node: &Node, name: &str) -> u64 {
    let metrics = succeed(&mut node.kubectl(&["get", "--raw", "/metrics"]));
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
}

#[test]
fn an_image_that_three_nodes_want_at_once_comes_from_the_registry_once() {
    let folder = tempfile::tempdir().unwrap();
    let place = Block::take().address(9);
    let server = registry(folder.path(), place);
    let wasm = large_hello();
    push(place, &wasm);
    let host = format!("{place}:{REGISTRY_PORT}");
    let nodes = start_three(folder.path());
    pull_secret(&nodes[0], folder.path(), &host);
    let file = folder.path().join("web.yaml");
    std::fs::write(
        &file,
        format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: 3
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      imagePullSecrets: [{{name: regcred}}]
      containers: [{{name: web, image: \"{host}/team/hello:v1\"}}]
"
        ),
    )
    .unwrap();
    succeed(&mut nodes[0].kubectl(&["apply", "-f", file.to_str().unwrap()]));
    succeed(&mut nodes[0].kubectl(&["rollout", "status", "deploy/web", "--timeout=120s"]));

    let layer = digest(&wasm);
    let log = server.rest();
    let asked = format!("\"GET /v2/team/hello/blobs/{layer}");
    assert!(log.iter().any(|line| line.contains("GET /v2/")), "no access log: {log:?}");
    assert_eq!(log.iter().filter(|line| line.contains(&asked)).count(), 1, "{log:#?}");
    let pulled = |source: &str| -> u64 {
        let name = format!("edgeorc_image_pulled_bytes_total{{source=\"{source}\"}}");
        nodes.iter().map(|node| counter(node, &name)).sum()
    };
    let size = wasm.len() as u64;
    assert_eq!((pulled("registry"), pulled("peer")), (size, 2 * size));
}

#[test]
fn a_tag_that_is_not_there_is_told_as_kubelet_does_and_found_once_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let place = block.address(9);
    let _server = registry(folder.path(), place);
    let node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    // The mirror and its password are the machine's, not the pod's; and a short name stands for it.
    let file = node.data_dir.join("registries.yaml");
    std::fs::write(
        &file,
        format!(
            "mirrors:\n  \"{place}:{SILENT_PORT}\":\n    endpoint: [\"http://{place}:{REGISTRY_PORT}\"]\n\
             configs:\n  \"{place}:{REGISTRY_PORT}\":\n    auth: {{username: user, password: {PASSWORD}}}\n\
             images:\n  busybox: \"{place}:{SILENT_PORT}/team/hello:v1\"\n"
        ),
    )
    .unwrap();
    let pod = folder.path().join("pod.yaml");
    std::fs::write(&pod, pod_of_busybox()).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", pod.to_str().unwrap()]));
    let reason = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
    eventually("the pod waits as ImagePullBackOff", PATIENCE, || {
        let reason = succeed(&mut node.kubectl(&["get", "pod", "box", "-o", reason]));
        if reason == "ImagePullBackOff" { Ok(()) } else { Err(reason) }
    });
    eventually("the events tell it", Duration::from_secs(10), || {
        let described = succeed(&mut node.kubectl(&["describe", "pod", "box"]));
        let words =
            ["Pulling image \"busybox:1.36\"", "Error: ErrImagePull", "Back-off pulling image"];
        match words.iter().find(|words| !described.contains(**words)) {
            None => Ok(()),
            Some(words) => Err(format!("{words}:\n{described}")),
        }
    });
    push(place, &std::fs::read(hello()).unwrap());
    succeed(&mut node.kubectl(&["wait", "--for=condition=Ready", "pod/box", "--timeout=120s"]));
    let port = succeed(&mut node.kubectl(&[
        "get",
        "svc",
        "box",
        "-o",
        "jsonpath={.spec.ports[0].nodePort}",
    ]));
    let address = SocketAddr::new(node.address, port.parse().unwrap());
    eventually("the component answers", PATIENCE, || match get(address, "box", "/", PATIENCE) {
        Ok(answer) if answer.code == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    });
}

fn pod_of_busybox() -> &'static str {
    "apiVersion: v1
kind: Pod
metadata: {name: box, labels: {app: box}}
spec:
  containers:
  - name: box
    image: busybox:1.36
    ports: [{containerPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: box}
spec:
  type: NodePort
  selector: {app: box}
  ports: [{port: 80, targetPort: 8080}]
"
}

#[test]
fn an_image_is_a_volume_that_outlives_its_registry() {
    let folder = tempfile::tempdir().unwrap();
    let block = Block::take();
    let place = block.address(9);
    let mut server = registry(folder.path(), place);
    push(place, &std::fs::read(hello()).unwrap());
    let manifest = push_data(place, folder.path());
    let mut node = Node::start(folder.path(), "one", block.address(1), None);
    node.wait_ready();
    let host = format!("{place}:{REGISTRY_PORT}");
    std::fs::write(
        node.data_dir.join("registries.yaml"),
        format!("configs:\n  \"{host}\":\n    auth: {{username: user, password: {PASSWORD}}}\n"),
    )
    .unwrap();
    std::fs::copy(guest("busybox"), node.data_dir.join("agent/tools/busybox.wasm")).unwrap();
    let file = folder.path().join("pod.yaml");
    let pod = format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: web}}
spec:
  hostname: db
  hostAliases: [{{ip: 192.0.2.7, hostnames: [printer]}}]
  containers:
  - name: web
    image: {host}/team/hello:v1
    volumeMounts:
    - {{name: data, mountPath: /data}}
    - {{name: data, mountPath: /sub, subPath: sub}}
    - {{name: data, mountPath: /models/one, subPath: model.bin}}
  volumes:
  - name: data
    image: {{reference: \"{host}/team/hello:data\", pullPolicy: Always}}
"
    );
    std::fs::write(&file, pod).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
    succeed(&mut node.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]));
    let run = |node: &Node, command: &[&str]| {
        let mut args = vec!["exec", "web", "--"];
        args.extend(command);
        let output = node.kubectl(&args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let cat = ["cat", "/data/docs/greeting", "/data/model.bin", "/sub/file", "/models/one"];
    assert_eq!(run(&node, &cat), "helloweightssubweights");
    assert_eq!(run(&node, &["ls", "/data/docs"]).trim(), "greeting");
    let hosts = run(&node, &["cat", "/etc/hosts"]);
    assert!(hosts.contains("\tdb\n") && hosts.contains("192.0.2.7\tprinter"), "{hosts}");
    assert!(run(&node, &["cat", "/etc/resolv.conf"]).contains("default.svc.cluster.local"));
    assert_eq!(run(&node, &["cat", "/etc/hostname"]).trim(), "db");
    // Nothing of it can be changed.
    for command in [
        ["touch", "/data/new", ""],
        ["rm", "/data/model.bin", ""],
        ["mv", "/data/docs/greeting", "/data/moved"],
        ["cp", "/data/model.bin", "/models/one"],
        ["touch", "/etc/new", ""],
        ["rm", "/etc/hosts", ""],
    ] {
        let command: Vec<_> = command.into_iter().filter(|word| !word.is_empty()).collect();
        run(&node, &command);
    }
    assert_eq!(run(&node, &cat), "helloweightssubweights");
    assert_eq!(run(&node, &["ls", "/data"]).split_whitespace().count(), 3);
    assert_eq!(run(&node, &["ls", "/etc"]).split_whitespace().count(), 3);
    let path =
        "jsonpath={.status.containerStatuses[0].volumeMounts[0].volumeStatus.image.imageRef}";
    let shown = succeed(&mut node.kubectl(&["get", "pod", "web", "-o", path]));
    assert_eq!(shown, format!("{host}/team/hello@{manifest}"));
    let described = succeed(&mut node.kubectl(&["describe", "pod", "web"]));
    let pulled = format!("Successfully pulled image \"{host}/team/hello:data\"");
    assert!(described.contains(&pulled), "{described}");

    // A node that starts again without its registry has what its pods had.
    server.kill();
    node.process.kill();
    node.restart();
    node.wait_ready();
    eventually("the pod runs again", PATIENCE, || {
        let text = run(&node, &cat);
        if text == "helloweightssubweights" { Ok(()) } else { Err(text) }
    });
}
