//! Commands and reactors: output, exit codes, missing imports, stopping.

use std::time::Duration;

use bytes::Bytes;
use edgeorc_runtime::{ExitReason, StartError, Stdio};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::Instant;

use crate::support::{Node, app, exit, wat};

/// WASI p1: prints a line and exits with 3.
const EXITS_WITH_3: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\10\00\00\00\0d\00\00\00")
    (data (i32.const 16) "hello, world\n")
    (func (export "_start")
        (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))
        (call $proc_exit (i32.const 3))))"#;

const SPINS: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (loop (br 0))))"#;

#[tokio::test]
async fn a_core_module_prints_and_exits_with_its_code() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("p1", wat(EXITS_WITH_3))).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (3, ExitReason::Error));
    assert_eq!(node.log("p1"), "stdout F hello, world\n");
    assert_eq!(container.wait().await, exit, "it can be asked again");
}

#[tokio::test]
async fn a_component_exits_with_its_code() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    for (app_name, verb, code, reason) in [
        ("probe", "exit", 3, ExitReason::Error),
        ("probe", "exit-with-code", 250, ExitReason::Error),
        ("probe", "exit-with-code", 0, ExitReason::Completed),
        ("probe-p3", "exit-with-code", 4, ExitReason::Error),
    ] {
        let mut config = node.container("exits", app(app_name));
        config.args.extend([verb.to_owned(), code.to_string()]);
        let container = pod.start(config).await.unwrap();
        let exit = exit(&container).await;
        assert_eq!((exit.code, exit.reason), (code, reason), "{app_name} {verb}");
        assert_eq!(exit.message, "");
    }
}

#[tokio::test]
async fn a_command_of_a_real_toolchain_sees_its_arguments() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("ticker", app("ticker"));
    for arg in ["--count", "2", "--interval-ms", "1", "--exit", "7"] {
        config.args.push(arg.to_owned());
    }
    let container = pod.start(config).await.unwrap();
    assert_eq!(exit(&container).await.code, 7);
    assert_eq!(node.log("ticker"), "stdout F tick 1\nstdout F tick 2\n");
}

#[tokio::test]
async fn a_trap_is_an_error_that_the_log_explains() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let trap = wat(r#"(module (memory (export "memory") 1) (func (export "_start") unreachable))"#);
    let container = pod.start(node.container("trap", trap)).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (134, ExitReason::Error));
    assert!(exit.message.contains("unreachable"), "{}", exit.message);
    assert!(node.log("trap").contains("stderr F wasm trap"), "{}", node.log("trap"));
    assert_eq!(node.runtime.counters().get("guest_traps_total"), Some(&1));
}

#[tokio::test]
async fn a_spinning_guest_delays_nobody_and_can_be_stopped() {
    let node = Node::start();
    let spinning = node.pod("10.0.0.2").await;
    let spinner = spinning.start(node.container("spinner", wat(SPINS))).await.unwrap();
    let serving = node.pod("10.0.0.1").await;
    serving.start(node.container("hello", app("hello"))).await.unwrap();

    // One thread runs both.
    let begin = Instant::now();
    for _ in 0..10 {
        assert_eq!(node.get("10.0.0.1:8080", "/").await.unwrap().0, 200);
    }
    let elapsed = begin.elapsed();
    assert!(elapsed < Duration::from_secs(3), "ten requests took {elapsed:?}");
    assert!(spinner.usage().cpu > Duration::ZERO);

    spinner.stop(Duration::from_millis(20)).await;
    let exit = exit(&spinner).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::Killed));
}

#[tokio::test]
async fn a_command_without_connections_is_stopped_at_once() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("ticker", app("ticker"))).await.unwrap();
    let begin = Instant::now();
    container.stop(Duration::from_secs(60)).await;
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert_eq!(exit(&container).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn a_file_that_is_not_compiled_code_is_refused() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.cwasm");
    std::fs::write(&path, b"hello").unwrap();
    let error = pod.start(node.container("x", path)).await.err().unwrap();
    assert!(matches!(error, StartError::Unsupported { .. }), "{error}");
    let error = pod.start(node.container("x", dir.path().join("none"))).await.err().unwrap();
    assert!(matches!(error, StartError::Host(_)), "{error}");
}

#[tokio::test]
async fn a_reactor_is_kept_until_it_is_stopped() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let reactor = wat(r#"(module (memory (export "memory") 1) (func (export "_initialize")))"#);
    let container = pod.start(node.container("reactor", reactor)).await.unwrap();
    assert!(container.usage().memory_bytes >= 64 << 10);
    container.stop(Duration::from_secs(60)).await;
    assert_eq!(exit(&container).await.reason, ExitReason::Killed);
    assert_eq!(container.usage().memory_bytes, 0);
}

#[tokio::test]
async fn a_destroyed_pod_is_gone() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let spinner = pod.start(node.container("spinner", wat(SPINS))).await.unwrap();
    assert!(node.network.has(crate::support::ip("10.0.0.1")));
    pod.destroy().await;
    pod.destroy().await;
    assert_eq!(exit(&spinner).await.reason, ExitReason::Killed);
    assert!(!node.network.has(crate::support::ip("10.0.0.1")));
    assert!(pod.start(node.container("late", wat(SPINS))).await.is_err());
    let _again = node.pod("10.0.0.1").await;
}

/// Writes a file into the first preopened folder; exits with WASI's error number.
const WRITES: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $path_open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 16) "file")
    (func (export "_start")
        (call $proc_exit (call $path_open
            (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1)
            (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 0)))))"#;

#[tokio::test]
async fn a_read_only_mount_cannot_be_written() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    for is_read_only in [true, false] {
        let (folder, mount) = node.mount(is_read_only);
        let mut config = node.container("writer", wat(WRITES));
        config.mounts.push(mount);
        let container = pod.start(config).await.unwrap();
        let is_refused = exit(&container).await.code != 0;
        assert_eq!(is_refused, is_read_only);
        assert_eq!(folder.join("file").exists(), !is_read_only);
    }
}

/// WASI p1: writes what it reads, and exits with 5 at the end of its input.
const COPIES: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_read"
        (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start")
        (loop $next
            (i32.store (i32.const 0) (i32.const 64))
            (i32.store (i32.const 4) (i32.const 1024))
            (drop (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 16)))
            (if (i32.eqz (i32.load (i32.const 16))) (then (call $proc_exit (i32.const 5))))
            (i32.store (i32.const 4) (i32.load (i32.const 16)))
            (drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 20)))
            (br $next))))"#;

/// Streams with room for little, so that the guest has to wait.
fn stdio(stdin: Option<edgeorc_runtime::Input>) -> (Stdio, Receiver<Bytes>) {
    let (stdout, out) = channel(1);
    let (stderr, _) = channel(1);
    (Stdio { stdin, stdout, stderr, is_terminal: false }, out)
}

#[tokio::test]
async fn a_command_beside_the_containers_has_streams_of_its_own() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let (mut near, far) = tokio::io::duplex(16);
    let (stdio, mut out) = stdio(Some(Box::new(far)));
    let command = pod.exec(node.container("cat", wat(COPIES)), stdio).await.unwrap();
    let sent: Vec<u8> = (0..5000_u32).flat_map(u32::to_le_bytes).collect();
    let input = sent.clone();
    let writing = async move {
        near.write_all(&input).await.unwrap();
        drop(near);
    };
    let reading = async {
        let mut received = Vec::new();
        while let Some(bytes) = out.recv().await {
            received.extend_from_slice(&bytes);
        }
        received
    };
    let ((), received) = tokio::join!(writing, reading);
    assert!(received == sent);
    assert_eq!(exit(&command).await.code, 5);
}

#[tokio::test]
async fn a_command_dies_with_its_pod_and_an_http_component_is_none() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let (streams, _out) = stdio(None);
    let spinner = pod.exec(node.container("spin", wat(SPINS)), streams).await.unwrap();
    let (streams, _out) = stdio(None);
    let refused = pod.exec(node.container("web", app("hello")), streams).await;
    assert!(matches!(refused.err(), Some(StartError::Unsupported { .. })));
    pod.destroy().await;
    assert_eq!(exit(&spinner).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn a_container_reads_what_is_given_to_it_and_logs() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let (mut near, far) = tokio::io::duplex(64);
    let config = node.container("cat", wat(COPIES));
    let container = pod.start_with_stdin(config, Box::new(far), false).await.unwrap();
    near.write_all(b"hello\n").await.unwrap();
    node.logged("cat", "stdout F hello").await;
    drop(near);
    assert_eq!(exit(&container).await.code, 5);
}

#[tokio::test]
async fn the_loopback_of_a_pod_is_reached_from_its_node() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    assert!(pod.connect(8080).await.is_err());
    let _web = pod.start(node.container("web", app("hello"))).await.unwrap();
    let mut io = pod.connect(8080).await.unwrap();
    io.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
