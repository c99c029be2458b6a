//! `kubectl exec`, `cp`, `attach` and `port-forward`, over WebSocket and over SPDY.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use crate::support::{Block, Node, PATIENCE, both, eventually, get, guest, hello, succeed};

/// How kubectl is told to speak SPDY, as versions before 1.31 do.
const SPDY: [&str; 2] = ["KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "KUBECTL_PORT_FORWARD_WEBSOCKETS"];
/// How long a session may take; one that hangs fails.
const SESSION_LIMIT: &str = "30";
/// Sessions that a node has place for.
const SESSIONS_MAX: usize = 64;

/// Puts the tools where the node's agent looks for them.
fn give_tools(node: &Node) {
    let tools = node.data_dir.join("agent/tools");
    eventually("the agent has made its folders", PATIENCE, || {
        std::fs::copy(guest("busybox"), tools.join("busybox.wasm"))
    });
}

/// Pushes a component and says its image.
fn push(node: &Node, file: &Path, name: &str) -> String {
    let file = file.to_str().unwrap();
    succeed(&mut node.edgeorc(&["deploy", file, "--name", name, "--replicas", "0"]));
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    succeed(&mut node.kubectl(&["get", "deploy", name, "-o", image]))
}

/// A pod with a volume at `/data`; `more` are lines of its container.
fn pod(node: &Node, name: &str, on: &str, image: &str, more: &str) {
    let text = format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: {name}
spec:
  nodeName: {on}
  restartPolicy: Never
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: {image}
    volumeMounts:
    - name: data
      mountPath: /data
{more}
  volumes:
  - name: data
    emptyDir: {{}}
"
    );
    let file = node.data_dir.with_extension(format!("{name}.yaml"));
    std::fs::write(&file, text).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
    let ready = ["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")];
    succeed(&mut node.kubectl(&ready));
}

/// kubectl that ends in time, with one of the two protocols.
fn session(node: &Node, is_spdy: bool, args: &[&str]) -> Command {
    let kubectl = node.kubectl(args);
    let mut command = Command::new("timeout");
    command.arg(SESSION_LIMIT).arg(kubectl.get_program()).args(kubectl.get_args());
    if is_spdy {
        command.envs(SPDY.map(|name| (name, "false")));
    }
    command
}

/// Runs with this on its standard input.
fn with_input(command: &mut Command, input: &[u8]) -> Output {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

#[test]
fn tools_reach_services_by_name_and_take_parts_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    give_tools(&node);
    let app = hello();
    succeed(&mut node.edgeorc(&["deploy", app.to_str().unwrap(), "--name", "web", "--wait"]));
    let image = push(&node, &guest("ticker"), "ticker");
    pod(&node, "p", "one", &image, "");
    let run = |line: &str| {
        let args = ["exec", "p", "--", "sh", "-c", line];
        session(&node, false, &args).stdin(Stdio::null()).output().unwrap()
    };
    let page = run("wget -qO- http://web/");
    assert!(both(&page).starts_with("Hello from pod web-"), "{}", both(&page));
    let saved = run("cd /data && wget -O x web.default.svc/ && head -c 5 x && ls");
    assert!(
        both(&saved).contains("'x' saved") && both(&saved).contains("Hello"),
        "{}",
        both(&saved)
    );
    for (line, why) in [
        ("wget -q http://nobody.default.svc/", "wget: bad address 'nobody.default.svc'"),
        ("wget -q -T 5 http://web:81/", "wget: can't connect to remote host"),
        ("wget https://web/", "wget: https is not supported"),
    ] {
        let failed = run(line);
        assert!(!failed.status.success() && both(&failed).contains(why), "{}", both(&failed));
    }
    let address = "jsonpath={.spec.clusterIP}";
    let address = succeed(&mut node.kubectl(&["get", "service", "web", "-o", address]));
    let found = run("nslookup web");
    assert!(both(&found).contains(&format!("Name:\tweb\nAddress: {address}")), "{}", both(&found));
    let missing = run("nslookup nobody");
    assert!(!missing.status.success() && both(&missing).contains("NXDOMAIN"), "{}", both(&missing));
}

#[test]
fn exec_carries_streams_and_exit_codes() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    give_tools(&node);
    let image = push(&node, &guest("ticker"), "ticker");
    pod(&node, "p", "one", &image, "");
    for is_spdy in [false, true] {
        let exec = |args: &[&str]| {
            let mut all = vec!["exec", "p", "--"];
            all.extend(args);
            session(&node, is_spdy, &all).stdin(Stdio::null()).output().unwrap()
        };
        let ended = exec(&["sh", "-c", "echo out; echo err 2>&1; nothing; exit 3"]);
        assert_eq!(ended.status.code(), Some(3), "{}", both(&ended));
        assert_eq!(String::from_utf8_lossy(&ended.stdout), "out\nerr\n");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(said.contains("sh: nothing: not found"), "{said}");
        assert!(said.contains("command terminated with exit code 3"), "{said}");

        let missing = exec(&["nobody"]);
        assert_eq!(missing.status.code(), Some(127), "{}", both(&missing));
        let text = "exec: \"nobody\": executable file not found in $PATH";
        assert!(both(&missing).contains(text), "{}", both(&missing));

        // The container's own component, and its surroundings.
        let own = exec(&["main", "--count", "2", "--interval-ms", "1", "--exit", "7"]);
        assert_eq!(own.status.code(), Some(7), "{}", both(&own));
        assert_eq!(String::from_utf8_lossy(&own.stdout), "tick 1\ntick 2\n");
        let name = exec(&["sh", "-c", "echo $POD_NAME $(hostname); ls /"]);
        assert_eq!(
            String::from_utf8_lossy(&name.stdout),
            "p p\ndata\ndev\netc\ntmp\nvar\n",
            "{}",
            both(&name)
        );

        // More than every buffer on the way holds, there and back.
        let much: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let echoed =
            with_input(&mut session(&node, is_spdy, &["exec", "-i", "p", "--", "cat"]), &much);
        assert!(echoed.status.success(), "{}", String::from_utf8_lossy(&echoed.stderr));
        assert!(echoed.stdout == much, "{} of {} bytes", echoed.stdout.len(), much.len());
    }
    // A file of the container wins over a tool.
    let wasm = guest("ticker");
    let copied = ["cp", wasm.to_str().unwrap(), "p:/data/mine.wasm"];
    succeed(&mut session(&node, false, &copied));
    let exec = ["exec", "p", "--", "/data/mine", "--count", "1", "--exit", "0"];
    assert_eq!(succeed(&mut session(&node, false, &exec)), "tick 1\n");
    // What is refused before anything runs.
    let nowhere = node.kubectl(&["exec", "nobody", "--", "true"]).output().unwrap();
    assert!(both(&nowhere).contains("pods \"nobody\" not found"), "{}", both(&nowhere));
}

#[test]
fn a_command_ends_with_its_client() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    give_tools(&node);
    let image = push(&node, &guest("ticker"), "ticker");
    pod(&node, "p", "one", &image, "");
    for is_spdy in [false, true] {
        let own = ["exec", "p", "--", "main", "--interval-ms", "10"];
        let mut child = node
            .kubectl(&own)
            .envs(is_spdy.then_some(SPDY.map(|name| (name, "false"))).into_iter().flatten())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "tick 1");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // Every place for sessions can be had again; a command that was left behind would keep one.
    let waiting: Vec<_> = (0..SESSIONS_MAX)
        .map(|_| {
            let mut sleep = session(&node, false, &["exec", "-i", "p", "--", "cat"]);
            sleep.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            sleep.spawn().unwrap()
        })
        .collect();
    for mut child in waiting {
        drop(child.stdin.take());
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", both(&ended));
    }
}

#[test]
fn cp_carries_files_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    give_tools(&node);
    let image = push(&node, &guest("ticker"), "ticker");
    pod(&node, "p", "one", &image, "");
    let tree = folder.path().join("tree");
    let content: Vec<u8> = (0..400_000_u32).flat_map(u32::to_be_bytes).collect();
    std::fs::create_dir_all(tree.join("deep")).unwrap();
    std::fs::write(tree.join("deep/content"), &content).unwrap();
    std::fs::write(tree.join("empty"), "").unwrap();
    for (is_spdy, name) in [(false, "a"), (true, "b")] {
        let (to, from) = (format!("p:/data/{name}"), tree.to_str().unwrap());
        succeed(&mut session(&node, is_spdy, &["cp", from, &to]));
        let list = ["exec", "p", "--", "ls", &format!("/data/{name}")];
        assert_eq!(succeed(&mut session(&node, is_spdy, &list)), "deep\nempty\n");
        let back = folder.path().join(format!("back-{name}"));
        succeed(&mut session(&node, is_spdy, &["cp", &to, back.to_str().unwrap()]));
        assert!(std::fs::read(back.join("deep/content")).unwrap() == content);
        assert!(std::fs::read(back.join("empty")).unwrap().is_empty());
    }
    let missing = ["cp", "p:/data/none", "none"];
    let missing = session(&node, false, &missing).current_dir(folder.path()).output().unwrap();
    assert!(!missing.status.success(), "{}", both(&missing));
    assert!(both(&missing).contains("No such file or directory"), "{}", both(&missing));
}

#[test]
fn attach_shows_output_and_carries_input() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let ticker = push(&node, &guest("ticker"), "ticker");
    let tools = push(&node, &guest("busybox"), "busybox");
    pod(&node, "ticks", "one", &ticker, "    args: [\"--interval-ms\", \"100\"]");
    for (is_spdy, name) in [(false, "shell-a"), (true, "shell-b")] {
        let mut attached = session(&node, is_spdy, &["attach", "ticks"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(attached.stdout.take().unwrap()).lines();
        assert!(lines.next().unwrap().unwrap().starts_with("tick "));
        attached.kill().unwrap();
        attached.wait().unwrap();
        drop(lines);

        pod(
            &node,
            name,
            "one",
            &tools,
            "    command: [\"sh\"]\n    stdin: true\n    stdinOnce: true",
        );
        let mut shell = session(&node, is_spdy, &["attach", "-i", name]);
        let ended = with_input(&mut shell, b"echo hello from $HOSTNAME\nexit 0\n");
        let text = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert!(text.contains(&format!("hello from {name}")), "{}", both(&ended));
        let phase = ["wait", "--for=jsonpath={.status.phase}=Succeeded", &format!("pod/{name}")];
        succeed(&mut node.kubectl(&phase));
    }
}

#[test]
fn debug_adds_a_container_to_a_running_pod() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let ticker = push(&node, &guest("ticker"), "ticker");
    let tools = push(&node, &guest("busybox"), "busybox");
    pod(&node, "p", "one", &ticker, "");
    let image = format!("--image={tools}");
    for (is_spdy, name) in [(false, "shell-a"), (true, "shell-b")] {
        let into = ["debug", "p", &image, "-c", name, "-it", "--target=main", "--", "sh"];
        let script = b"echo hello from $POD_NAME\nls /proc/1/root/data /\nexit 3\n";
        let ended = with_input(&mut session(&node, is_spdy, &into), script);
        let shown = both(&ended);
        assert!(shown.contains("hello from p") && shown.contains("/ # "), "{shown}");
        let code = format!(
            "{{.status.ephemeralContainerStatuses[?(@.name=='{name}')].state.terminated.exitCode}}"
        );
        eventually("the shell has ended", PATIENCE, || {
            let code = format!("jsonpath={code}");
            let got = succeed(&mut node.kubectl(&["get", "pod", "p", "-o", &code]));
            if got == "3" { Ok(()) } else { Err(got) }
        });
        // Its log stays, with the volumes of its target.
        let log = succeed(&mut node.kubectl(&["logs", "p", "-c", name]));
        assert!(log.contains("hello from p") && log.contains("proc"), "{log}");
    }
    // One that stays can be reached by exec and attach, and is told about.
    let into = ["debug", "p", &image, "-c", "stays", "--", "sleep", "3600"];
    succeed(&mut session(&node, false, &into));
    let path =
        "jsonpath={.status.ephemeralContainerStatuses[?(@.name=='stays')].state.running.startedAt}";
    eventually("the container runs", PATIENCE, || {
        let since = succeed(&mut node.kubectl(&["get", "pod", "p", "-o", path]));
        if since.is_empty() { Err(()) } else { Ok(()) }
    });
    let exec = ["exec", "p", "-c", "stays", "--", "sh", "-c", "echo $POD_NAME"];
    assert_eq!(succeed(&mut session(&node, false, &exec)), "p\n");
    let shown = succeed(&mut node.kubectl(&["describe", "pod", "p"]));
    assert!(shown.contains("Ephemeral Containers:") && shown.contains("  stays:"), "{shown}");
    let shown = succeed(&mut node.edgeorc(&["describe", "pod", "p"]));
    assert!(shown.contains("Ephemeral Containers:") && shown.contains("  stays:"), "{shown}");
    // The pod is as it was, and what is there cannot be changed.
    let line = succeed(&mut node.kubectl(&["get", "pod", "p", "--no-headers"]));
    let words: Vec<_> = line.split_whitespace().take(4).collect();
    assert_eq!(words, ["p", "1/1", "Running", "0"]);
    for (patch, part) in [
        (
            r#"{"spec":{"ephemeralContainers":[{"name":"stays","image":"other"}]}}"#,
            "existing ephemeral containers \"stays\" may not be changed",
        ),
        (
            r#"{"spec":{"ephemeralContainers":[{"name":"x","image":"x","targetContainerName":"y"}]}}"#,
            "spec.ephemeralContainers[3].targetContainerName: Not found: \"y\"",
        ),
        (
            r#"{"spec":{"ephemeralContainers":[{"name":"x","image":"x","ports":[{"containerPort":80}]}]}}"#,
            "spec.ephemeralContainers[3].ports: Forbidden: cannot be set for an Ephemeral Container",
        ),
    ] {
        let patch = ["patch", "pod", "p", "--subresource=ephemeralcontainers", "-p", patch];
        let refused = node.kubectl(&patch).output().unwrap();
        assert!(!refused.status.success() && both(&refused).contains(part), "{}", both(&refused));
    }
    // Another image starts the container again, and that alone.
    let other = push(&node, &hello(), "hello");
    succeed(&mut node.kubectl(&["set", "image", "pod/p", &format!("main={other}")]));
    eventually("the container runs again", PATIENCE, || {
        let path = "jsonpath={.status.containerStatuses[0]['restartCount','ready','image']}";
        let got = succeed(&mut node.kubectl(&["get", "pod", "p", "-o", path]));
        if got == format!("1 true {other}") { Ok(()) } else { Err(got) }
    });
    let since = succeed(&mut node.kubectl(&["get", "pod", "p", "-o", path]));
    assert!(!since.is_empty(), "the ephemeral container goes on");
    let shown = succeed(&mut node.kubectl(&["describe", "pod", "p"]));
    assert!(shown.contains("Container main definition changed, will be restarted"), "{shown}");
}

#[test]
fn commands_probe_a_container_and_leave_its_log_alone() {
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    give_tools(&node);
    let image = push(&node, &guest("ticker"), "ticker");
    let probe = "    args: [\"--interval-ms\", \"100\"]
    readinessProbe:
      exec: {command: [cat, /data/ready]}
      periodSeconds: 1
      failureThreshold: 1
    lifecycle:
      postStart:
        exec: {command: [sh, -c, echo made by the hook > /data/ready]}";
    pod(&node, "p", "one", &image, probe);
    succeed(&mut session(&node, false, &["exec", "p", "--", "rm", "/data/ready"]));
    let gone = ["wait", "--for=condition=Ready=false", "--timeout=60s", "pod/p"];
    succeed(&mut node.kubectl(&gone));
    eventually("the event of the probe", PATIENCE, || {
        let shown = succeed(&mut node.kubectl(&["describe", "pod", "p"]));
        let is_told = shown.contains("Readiness probe failed: cat: ");
        if is_told { Ok(()) } else { Err(shown) }
    });
    let log = succeed(&mut node.kubectl(&["logs", "p"]));
    assert!(log.contains("tick 1") && !log.contains("hook") && !log.contains("cat:"), "{log}");
}

/// kubectl port-forward, until dropped.
struct Forward {
    child: Child,
    ports: Vec<u16>,
}

impl Forward {
    fn start(node: &Node, is_spdy: bool, ports: &[&str]) -> Self {
        let mut args = vec!["port-forward", "pod/web", "--address", "127.0.0.1"];
        args.extend(ports);
        let mut command = node.kubectl(&args);
        if is_spdy {
            command.envs(SPDY.map(|name| (name, "false")));
        }
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ports = ports.iter().map(|_| {
            let line = lines.next().unwrap().unwrap();
            let port = line.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split(' ').next());
            port.unwrap_or_else(|| panic!("no port in {line:?}")).parse().unwrap()
        });
        let ports = ports.collect();
        // kubectl goes on to write to it.
        std::thread::spawn(move || lines.count());
        Self { child, ports }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn port_forward_reaches_a_pod_of_another_node() {
    let (folder, block) = (tempfile::tempdir().unwrap(), Block::take());
    let server = Node::start(folder.path(), "server", block.address(1), None);
    server.wait_ready();
    let token = succeed(&mut server.edgeorc(&["node", "token", "create"]));
    let agent =
        Node::start(folder.path(), "agent", block.address(2), Some((&server, token.trim())));
    eventually("the agent is ready", PATIENCE, || {
        let nodes = succeed(&mut server.kubectl(&["get", "nodes"]));
        let is_ready = |name: &str| {
            nodes.lines().any(|line| line.starts_with(name) && line.contains(" Ready"))
        };
        if is_ready("agent") { Ok(()) } else { Err(format!("{nodes}\n{}", agent.process.stderr())) }
    });
    give_tools(&agent);
    let image = push(&server, &hello(), "hello");
    pod(&server, "web", "agent", &image, "");
    for is_spdy in [false, true] {
        let forward = Forward::start(&server, is_spdy, &[":8080", ":8080"]);
        for round in 0..20 {
            let port = forward.ports[round % forward.ports.len()];
            let at = ([127, 0, 0, 1], port).into();
            let answer = get(at, "web", "/", Duration::from_secs(10)).unwrap();
            assert_eq!(answer.code, 200, "{answer:?}");
            assert!(answer.body.contains("pod web on node agent"), "{answer:?}");
        }
        // Many at once.
        let port = forward.ports[0];
        let users: Vec<_> = (0..16)
            .map(|_| {
                std::thread::spawn(move || {
                    get(([127, 0, 0, 1], port).into(), "web", "/", Duration::from_secs(10))
                })
            })
            .collect();
        for user in users {
            assert_eq!(user.join().unwrap().unwrap().code, 200);
        }
        // And a command on the other node.
        let exec = ["exec", "web", "--", "sh", "-c", "echo $NODE_NAME"];
        assert_eq!(succeed(&mut session(&server, is_spdy, &exec)), "agent\n");
    }
    // And requests through the API.
    succeed(&mut server.kubectl(&["label", "pod", "web", "app=web"]));
    succeed(&mut server.kubectl(&["expose", "pod", "web", "--port=80", "--target-port=8080"]));
    for place in ["pods/web", "pods/web:8080", "services/web", "services/http:web:80"] {
        let path = format!("/api/v1/namespaces/default/{place}/proxy/");
        eventually(&path, PATIENCE, || {
            let output = server.kubectl(&["get", "--raw", &path]).output().unwrap();
            let text = both(&output);
            if text.contains("pod web on node agent") { Ok(()) } else { Err(text) }
        });
        assert_eq!(
            succeed(&mut server.kubectl(&["get", "--raw", &format!("{path}healthz")])),
            "ok\n"
        );
    }
    for (place, why) in [
        ("pods/none", "pods \"none\" not found"),
        ("services/web:81", "has no port 81"),
        ("services/ftp:web:80", "invalid proxy request"),
    ] {
        let path = format!("/api/v1/namespaces/default/{place}/proxy/");
        let refused = both(&server.kubectl(&["get", "--raw", &path]).output().unwrap());
        assert!(refused.contains(why), "{refused}");
    }
}
