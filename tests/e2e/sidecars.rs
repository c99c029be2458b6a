//! What restarts when one container of a pod ends, and in what order: the rules of `docs/pods.md`.
//!
//! Goal: a pod with init containers, a native sidecar that proxies for the main over the pod's
//! loopback, mains and a shared volume is whole again after any of them was ended by a trap, by
//! having no memory left, by its own exit, or by its probe. Method: one node, a pod for each case,
//! all at once. The proxy is ready only while it reaches the main over the loopback, and the main
//! only while it finds what the init container left on the volume, so `Ready` says both. The
//! culprit ends when a file appears on the volume, which it takes away first: so it ends once.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::{Block, Node, PATIENCE, both, eventually, guest, succeed};

/// What the culprit is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Init,
    Sidecar,
    Main,
}

/// How it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Trap,
    Oom,
    Exit,
    Probe,
}

/// Whether the pod's containers share their fate, as by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Pod,
    Container,
}

/// One pod, and what has to be seen of it.
struct Case {
    role: Role,
    manner: Manner,
    fate: Fate,
    /// Starts after the end of the culprit, in order.
    again: &'static [&'static str],
}

const CASES: &[Case] = &[
    case(Role::Init, Manner::Trap, Fate::Pod, &["culprit", "proxy", "web"]),
    case(Role::Init, Manner::Oom, Fate::Pod, &["culprit", "proxy", "web"]),
    case(Role::Init, Manner::Exit, Fate::Pod, &["culprit", "proxy", "web"]),
    case(Role::Sidecar, Manner::Trap, Fate::Pod, &["proxy", "culprit", "web"]),
    case(Role::Sidecar, Manner::Oom, Fate::Pod, &["proxy", "culprit", "web"]),
    case(Role::Sidecar, Manner::Exit, Fate::Pod, &["proxy", "culprit", "web"]),
    case(Role::Sidecar, Manner::Probe, Fate::Pod, &["proxy", "culprit", "web"]),
    case(Role::Main, Manner::Trap, Fate::Pod, &["proxy", "web", "culprit"]),
    case(Role::Main, Manner::Oom, Fate::Pod, &["proxy", "web", "culprit"]),
    case(Role::Main, Manner::Exit, Fate::Pod, &["proxy", "web", "culprit"]),
    case(Role::Main, Manner::Probe, Fate::Pod, &["proxy", "web", "culprit"]),
    case(Role::Sidecar, Manner::Trap, Fate::Container, &["culprit"]),
    case(Role::Main, Manner::Probe, Fate::Container, &["culprit"]),
];

const fn case(role: Role, manner: Manner, fate: Fate, again: &'static [&'static str]) -> Case {
    Case { role, manner, fate, again }
}

impl Case {
    fn name(&self) -> String {
        format!("{:?}-{:?}-{:?}", self.role, self.manner, self.fate).to_lowercase()
    }

    /// Exit code and reason of the run that ended.
    fn end(&self) -> (i64, &'static str) {
        match self.manner {
            Manner::Trap => (134, "Error"),
            Manner::Oom => (137, "OOMKilled"),
            Manner::Exit => (3, "Error"),
            Manner::Probe => (137, "Error"),
        }
    }

    fn manifest(&self, images: &Images) -> Value {
        let mounts = json!([{"name": "data", "mountPath": "/data"}]);
        let make = |name: &str, image: &str, more: Value| {
            let mut container = json!({"name": name, "image": image, "volumeMounts": mounts});
            container.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            container
        };
        let leave = if self.role == Role::Init { "; touch /data/die" } else { "" };
        let leave = format!("echo hello > /data/word{leave}");
        let seed = make("seed", &images.busybox, json!({"command": ["sh", "-c", leave]}));
        let dial = "/dial?host=localhost&port=9000&request=data/word";
        let proxy = make(
            "proxy",
            &images.agnhost,
            json!({"restartPolicy": "Always", "args": ["netexec", "--http-port", "8080"],
                "readinessProbe": {"httpGet": {"port": 8080, "path": dial},
                    "periodSeconds": 1, "timeoutSeconds": 10}}),
        );
        let web = make(
            "web",
            &images.agnhost,
            json!({"args": ["test-webserver", "--port", "9000"],
                "readinessProbe": {"httpGet": {"port": 9000, "path": "/data/word"},
                    "periodSeconds": 1, "timeoutSeconds": 10}}),
        );
        let culprit = self.culprit(images, &make);
        let (mut inits, mut mains) = (vec![seed], vec![web]);
        match self.role {
            Role::Init => inits.extend([culprit, proxy]),
            Role::Sidecar => inits.extend([proxy, culprit]),
            Role::Main => {
                inits.push(proxy);
                mains.push(culprit);
            }
        }
        let fate = if self.fate == Fate::Container { "container" } else { "pod" };
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name(), "annotations": {"edgeorc.io/fate": fate}},
            "spec": {"automountServiceAccountToken": false, "terminationGracePeriodSeconds": 2,
                "initContainers": inits, "containers": mains,
                "volumes": [{"name": "data", "emptyDir": {}}]}})
    }

    fn culprit(&self, images: &Images, make: &impl Fn(&str, &str, Value) -> Value) -> Value {
        let limits = json!({"limits": {"memory": "32Mi"}});
        let mut culprit = match self.manner {
            // It fails once for each time that somebody leaves the file.
            Manner::Probe => make(
                "culprit",
                &images.agnhost,
                json!({"args": ["pause"], "livenessProbe": {
                    "exec": {"command": ["sh", "-c", "! rm /data/die"]},
                    "periodSeconds": 1, "timeoutSeconds": 20, "failureThreshold": 1}}),
            ),
            manner => {
                let image = images.mortals.iter().find(|(what, _)| *what == (manner, self.waits()));
                make("culprit", &image.unwrap().1, json!({"resources": limits}))
            }
        };
        if self.role == Role::Sidecar {
            culprit["restartPolicy"] = json!("Always");
        }
        culprit
    }

    /// An init container is to end; the others wait for their end.
    fn waits(&self) -> bool {
        self.role != Role::Init
    }

    /// Runs that each container had before the last one.
    fn restarts(&self, container: &str) -> i64 {
        let starts = self.again.iter().filter(|name| **name == container).count();
        let is_first = self.role == Role::Init && container != "culprit";
        i64::try_from(starts).unwrap() - i64::from(is_first && starts > 0)
    }
}

/// A command that takes the file `die` of its volume away and then ends; without one it waits, or
/// is done at once. Written by hand: a trap and a want of memory cannot be asked of other guests.
fn mortal(manner: Manner, waits: bool) -> Vec<u8> {
    let death = match manner {
        Manner::Trap | Manner::Probe => "unreachable",
        Manner::Oom => {
            "(loop $more (br_if $more (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) unreachable"
        }
        Manner::Exit => "(call $exit (i32.const 3))",
    };
    let pause = if waits {
        // A subscription to the monotonic clock, 50 ms from now.
        "(i64.store (i32.const 64) (i64.const 0))
         (i32.store (i32.const 72) (i32.const 0))
         (i32.store (i32.const 80) (i32.const 1))
         (i64.store (i32.const 88) (i64.const 50000000))
         (i64.store (i32.const 96) (i64.const 0))
         (i32.store (i32.const 104) (i32.const 0))
         (drop (call $poll (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 192)))
         (br $again)"
    } else {
        ""
    };
    let text = format!(
        r#"(module
          (import "wasi_snapshot_preview1" "path_unlink_file"
            (func $unlink (param i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "poll_oneoff"
            (func $poll (param i32 i32 i32 i32) (result i32)))
          (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
          (memory (export "memory") 1)
          (data (i32.const 0) "die")
          (func (export "_start") (local $folder i32)
            (loop $again
              ;; The folders that the guest was given begin at 3.
              (local.set $folder (i32.const 3))
              (loop $next
                (if (i32.eqz (call $unlink (local.get $folder) (i32.const 0) (i32.const 3)))
                  (then {death}))
                (local.set $folder (i32.add (local.get $folder) (i32.const 1)))
                (br_if $next (i32.lt_u (local.get $folder) (i32.const 7))))
              {pause})))"#
    );
    wat::parse_str(text).unwrap()
}

struct Images {
    agnhost: String,
    busybox: String,
    mortals: Vec<((Manner, bool), String)>,
}

impl Images {
    fn push(node: &Node) -> Self {
        let push = |name: &str, file: &std::path::Path| {
            let file = file.to_str().unwrap();
            succeed(&mut node.edgeorc(&["deploy", file, "--name", name, "--replicas", "0"]));
            let image = "jsonpath={.spec.template.spec.containers[0].image}";
            succeed(&mut node.kubectl(&["get", "deploy", name, "-o", image]))
        };
        let mut mortals = Vec::new();
        for manner in [Manner::Trap, Manner::Oom, Manner::Exit] {
            for waits in [false, true] {
                let name = format!("{manner:?}-{waits}").to_lowercase();
                let file = node.data_dir.with_extension(format!("{name}.wasm"));
                std::fs::write(&file, mortal(manner, waits)).unwrap();
                mortals.push(((manner, waits), push(&name, &file)));
            }
        }
        let (agnhost, busybox) = (guest("agnhost"), guest("busybox"));
        let (agnhost, busybox) = (push("agnhost", &agnhost), push("busybox", &busybox));
        Self { agnhost, busybox, mortals }
    }
}

fn pod(node: &Node, name: &str) -> Value {
    let text = succeed(&mut node.kubectl(&["get", "pod", name, "-o", "json"]));
    serde_json::from_str(&text).unwrap()
}

fn statuses(pod: &Value) -> Vec<&Value> {
    let of = |list: &str| pod["status"][list].as_array().map_or(&[][..], Vec::as_slice);
    of("initContainerStatuses").iter().chain(of("containerStatuses")).collect()
}

/// Waits until all of the pod is ready, each container after so many restarts.
fn until_whole(node: &Node, name: &str, restarts: impl Fn(&str) -> i64) -> Value {
    eventually(&format!("{name} is whole"), PATIENCE * 3, || {
        let pod = pod(node, name);
        let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let is_ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
        let all = statuses(&pod);
        let is_as_wanted =
            |s: &&Value| s["restartCount"].as_i64() == Some(restarts(s["name"].as_str().unwrap()));
        if is_ready && all.len() >= 3 && all.iter().all(is_as_wanted) {
            Ok(pod.clone())
        } else {
            Err(format!("{:#}", pod["status"]))
        }
    })
}

/// The containers of a pod in the order in which they started, from the node's log.
fn starts(node: &Node, name: &str) -> Vec<String> {
    let log = node.process.stderr().replace('"', "");
    let lines = log.lines().filter(|line| {
        line.contains("container started") && line.contains(&format!("k8s.pod.name={name}}}"))
    });
    lines
        .map(|line| {
            let rest = line.split("k8s.container.name=").nth(1).unwrap();
            rest.split_whitespace().next().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn a_pod_with_a_sidecar_is_whole_again_whatever_ends_and_however() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let tools = node.data_dir.join("agent/tools");
    eventually("the agent has made its folders", PATIENCE, || {
        std::fs::copy(guest("busybox"), tools.join("busybox.wasm"))
    });
    let images = Images::push(&node);
    let manifests: Vec<Value> = CASES.iter().map(|case| case.manifest(&images)).collect();
    let file = node.data_dir.with_extension("pods.json");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": manifests});
    std::fs::write(&file, list.to_string()).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));

    // Whole before anybody ends; what ends while the pod is being initialised has ended already.
    for case in CASES.iter().filter(|case| case.waits()) {
        let name = case.name();
        until_whole(&node, &name, |_| 0);
        assert_eq!(starts(&node, &name).first().map(String::as_str), Some("seed"), "{name}");
        let touch = ["exec", &name, "-c", "web", "--", "sh", "-c", "touch /data/die"];
        let told = node.kubectl(&touch).output().unwrap();
        assert!(told.status.success(), "{name}: {}", both(&told));
    }

    for case in CASES {
        let name = case.name();
        let pod = until_whole(&node, &name, |container| case.restarts(container));
        let (code, reason) = case.end();
        let culprit = statuses(&pod).into_iter().find(|s| s["name"] == "culprit").cloned();
        // An init container has ended again since, and well.
        let culprit = culprit.unwrap();
        let last = &culprit["lastState"]["terminated"];
        assert_eq!(
            (last["exitCode"].as_i64(), last["reason"].as_str()),
            (Some(code), Some(reason)),
            "{name}: {culprit:#}"
        );
        let all = starts(&node, &name);
        let first: BTreeSet<_> = statuses(&pod).iter().map(|s| s["name"].to_string()).collect();
        let begun = if case.role == Role::Init { 2 } else { first.len() };
        let again: Vec<_> = all.iter().skip(begun).map(String::as_str).collect();
        assert_eq!(again, case.again, "{name}: {all:?}");
        let others = if case.fate == Fate::Pod { (137, "Error") } else { (0, "") };
        for status in statuses(&pod) {
            let container = status["name"].as_str().unwrap();
            if container != "culprit" && case.restarts(container) > 0 {
                let last = &status["lastState"]["terminated"];
                let ended = (last["exitCode"].as_i64(), last["reason"].as_str());
                assert_eq!(ended, (Some(others.0), Some(others.1)), "{name}: {status:#}");
            }
        }
        if case.manner == Manner::Probe {
            let events = succeed(&mut node.kubectl(&["get", "events", "-o", "json"]));
            let words = "Container culprit failed liveness probe, will be restarted";
            assert!(events.contains(words), "{name}: {events}");
        }
    }
}
