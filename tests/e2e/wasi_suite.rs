//! Guests that nobody here wrote: the socket and HTTP programs of wasmtime's own WASI test suite.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::support::{Block, Node, eventually, guest, succeed};

/// Time for all of them to be compiled and to end.
const ALL: Duration = Duration::from_secs(600);
/// What the suite expects of some programs, or of the world, instead of a good end.
const OTHERWISE: &[(&str, End)] = &[
    ("p2-udp-send-too-much", End::Failed),
    ("p2-http-outbound-request-timeout", End::Either),
    ("p3-http-outbound-request-timeout", End::Either),
    ("p2-http-outbound-request-invalid-header", End::Either),
    ("p3-http-outbound-request-invalid-header", End::Either),
    ("p2-http-outbound-request-invalid-version", End::Either),
    ("p3-http-outbound-request-invalid-version", End::Either),
];

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// It traps: the suite checks that the host does not let it go on.
    Failed,
    /// The suite's own host does what no other does: refuses a header field of its invention,
    /// answers in HTTP/2 only, or is sure that nobody answers at an address of TEST-NET-3.
    Either,
}

/// What a program needs that is not about sockets: a name of the Internet. The suite asks for one of
/// five, and a test must not depend on any.
const NAME: &str = "example.com";

fn pod(name: &str, image: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{suite: wasi}}}}
spec:
  restartPolicy: Never
  hostAliases: [{{ip: 192.0.2.1, hostnames: [{NAME}]}}]
  containers:
  - name: main
    image: '{image}'
    env: [{{name: HTTP_SERVER, value: mirror.default}}]
---
"
    )
}

fn image(node: &Node, file: &Path, name: &str) -> String {
    let file = file.to_str().unwrap();
    succeed(&mut node.edgeorc(&["deploy", file, "--name", name, "--replicas", "0"]));
    let path = "jsonpath={.spec.template.spec.containers[0].image}";
    succeed(&mut node.kubectl(&["get", "deploy", name, "-o", path])).trim().to_owned()
}

#[test]
#[ignore = "needs wasmtime's sources: just wasi-suite"]
fn the_wasi_suite_runs_unmodified() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let mirror = guest("mirror");
    let deploy = ["deploy", mirror.to_str().unwrap(), "--name", "mirror", "--wait"];
    succeed(&mut node.edgeorc(&deploy));
    let programs = guest("mirror").with_file_name("wasi-suite");
    let mut files: Vec<_> = std::fs::read_dir(&programs)
        .unwrap_or_else(|err| {
            panic!("{}: {err}: run wasm-apps/wasi-suite/build", programs.display())
        })
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() > 50, "only {} programs", files.len());
    let mut pods = String::new();
    for file in &files {
        let name = file.file_stem().unwrap().to_str().unwrap().replace('_', "-");
        pods += &pod(&name, &image(&node, file, &name));
    }
    let manifest = folder.path().join("suite.yaml");
    std::fs::write(&manifest, pods).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", manifest.to_str().unwrap()]));
    let phase = r#"jsonpath={range .items[*]}{.metadata.name} {.status.phase}{"\n"}{end}"#;
    let mut ended = BTreeMap::new();
    eventually("all programs end", ALL, || {
        let listed = succeed(&mut node.kubectl(&["get", "pods", "-l", "suite=wasi", "-o", phase]));
        ended = listed
            .lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(name, phase)| (name.to_owned(), phase.to_owned()))
            .collect();
        let running = ended.values().filter(|phase| *phase != "Succeeded" && *phase != "Failed");
        let running = running.count();
        if running == 0 { Ok(()) } else { Err(format!("{running} still run: {listed}")) }
    });
    assert_eq!(ended.len(), files.len());
    let failed: Vec<String> = ended
        .iter()
        .filter(|(name, phase)| {
            let otherwise = OTHERWISE.iter().find(|(other, _)| other == name);
            match otherwise.map(|(_, end)| *end) {
                None => *phase != "Succeeded",
                Some(End::Failed) => *phase != "Failed",
                Some(End::Either) => false,
            }
        })
        .map(|(name, _)| {
            let log = node.kubectl(&["logs", name, "--tail", "6"]).output().unwrap();
            format!("{name}: {}", String::from_utf8_lossy(&log.stdout))
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{} of {} failed:\n{}",
        failed.len(),
        ended.len(),
        failed.join("\n")
    );
}
